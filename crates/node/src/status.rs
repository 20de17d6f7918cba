//! The pod's status as the API shows it: a pure function of what is wanted and what is.
//!
//! Words, phases and conditions are upstream's kubelet's. Start with [`pod_status`].

use crate::pod::{Desired, RestartPolicy, Role};
use crate::state::{Actual, ContainerActual, Exited, Image, Run, Sandbox};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::net::IpAddr;

/// What a status tells besides the pod's own state.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings<'a> {
    pub(crate) node_ip: IpAddr,
    pub(crate) pod_ip: Option<IpAddr>,
    /// When the agent first saw the pod.
    pub(crate) start_time: Timestamp,
    pub(crate) now: Timestamp,
    /// Scheme of container ids: `salp-wasm`.
    pub(crate) runtime: &'a str,
    /// The conditions as they were, for their transition times.
    pub(crate) conditions: &'a [core::PodCondition],
}

/// The status.
pub(crate) fn pod_status(
    desired: &Desired,
    actual: &Actual,
    around: &Surroundings<'_>,
) -> core::PodStatus {
    let phase = phase(desired, actual);
    let list = |roles: &[Role]| -> Option<Vec<core::ContainerStatus>> {
        let list: Vec<_> = desired
            .containers
            .iter()
            .enumerate()
            .filter(|(_, d)| roles.contains(&d.role))
            .map(|(index, _)| container_status(desired, actual, index, around))
            .collect();
        (!list.is_empty()).then_some(list)
    };
    let rejected = is_rejected(actual);
    core::PodStatus {
        conditions: Some(conditions(desired, actual, phase, around)),
        container_statuses: list(&[Role::App]).filter(|_| !rejected),
        ephemeral_container_statuses: list(&[Role::Ephemeral]).filter(|_| !rejected),
        init_container_statuses: list(&[Role::Init, Role::Sidecar]).filter(|_| !rejected),
        host_ip: Some(around.node_ip.to_string()),
        host_ips: Some(vec![core::HostIP {
            ip: around.node_ip.to_string(),
        }]),
        message: actual.ended.as_ref().map(|e| e.message.clone()),
        reason: actual.ended.as_ref().map(|e| e.reason.clone()),
        observed_generation: desired.generation(),
        phase: Some(phase.into()),
        pod_ip: around.pod_ip.map(|ip| ip.to_string()),
        pod_ips: around
            .pod_ip
            .map(|ip| vec![core::PodIP { ip: ip.to_string() }]),
        qos_class: Some(qos_class(&desired.pod)),
        start_time: Some(Time(around.start_time)),
        ..core::PodStatus::default()
    }
}

/// Nothing of the pod was ever tried.
fn is_rejected(actual: &Actual) -> bool {
    actual.ended.is_some()
        && actual
            .containers
            .iter()
            .all(|c| c.run == Run::None && c.image == Image::Unknown && c.next_attempt == 0)
}

/// The phase. Containers are counted as upstream does.
pub(crate) fn phase(desired: &Desired, actual: &Actual) -> &'static str {
    match desired.api_phase() {
        Some("Succeeded") => return "Succeeded",
        Some("Failed") => return "Failed",
        _ => {}
    }
    // As upstream: a pod that may still run is not told to be over.
    if actual.ended.is_some() && !actual.containers.iter().any(|c| c.run.is_alive()) {
        return "Failed";
    }
    let mut count = Count::default();
    for (wanted, container) in desired.containers.iter().zip(&actual.containers) {
        count.add(wanted.role, container, actual.initialised);
    }
    if count.init_failed > 0 && desired.restart == RestartPolicy::Never {
        return "Failed";
    }
    if (count.init_pending > 0 && !actual.initialised) || count.waiting > 0 {
        return "Pending";
    }
    if count.running > 0 {
        return "Running";
    }
    let ends = desired.deleting || actual.gone || desired.restart != RestartPolicy::Always;
    if !ends || count.sidecars_running > 0 {
        return "Running";
    }
    if count.stopped == count.succeeded {
        return "Succeeded";
    }
    if desired.restart == RestartPolicy::OnFailure && !desired.deleting && !actual.gone {
        return "Running";
    }
    "Failed"
}

#[derive(Default)]
struct Count {
    init_pending: u32,
    init_failed: u32,
    sidecars_running: u32,
    running: u32,
    waiting: u32,
    stopped: u32,
    succeeded: u32,
}

impl Count {
    fn add(&mut self, role: Role, container: &ContainerActual, initialised: bool) {
        let code = container
            .run
            .exit_code()
            .or_else(|| container.last.as_ref().map(|last| last.code));
        match (role, &container.run) {
            (Role::Sidecar, Run::Running { started, .. }) => {
                self.sidecars_running += 1;
                self.init_pending += u32::from(!started);
            }
            (Role::Sidecar, Run::Exited { .. }) => {}
            (Role::Sidecar, _) | (Role::Init, Run::Running { .. }) => self.init_pending += 1,
            (Role::Init, Run::None) if initialised => {}
            (Role::Init, _) => match code {
                Some(0) => {}
                Some(_) => self.init_failed += 1,
                None => self.init_pending += 1,
            },
            (Role::App, Run::Running { .. }) => self.running += 1,
            (Role::App, _) => match code {
                Some(code) => {
                    self.stopped += 1;
                    self.succeeded += u32::from(code == 0);
                }
                None => self.waiting += 1,
            },
            (Role::Ephemeral, _) => {}
        }
        // An init container that failed and runs again still holds the pod back.
        if role == Role::Init && !initialised && code.is_some_and(|c| c != 0) {
            self.init_pending += 1;
        }
    }
}

fn container_status(
    desired: &Desired,
    actual: &Actual,
    index: usize,
    around: &Surroundings<'_>,
) -> core::ContainerStatus {
    let wanted = &desired.containers[index];
    let container = &actual.containers[index];
    let id = |attempt: u32| {
        format!(
            "{}://{}/{}/{attempt}",
            around.runtime, desired.uid, wanted.name
        )
    };
    let terminated = |exit: &Exited| core::ContainerState {
        terminated: Some(core::ContainerStateTerminated {
            container_id: Some(id(exit.attempt)),
            exit_code: exit.code,
            reason: Some(exit.reason.to_string()),
            message: Some(exit.message.clone()).filter(|m| !m.is_empty()),
            started_at: Some(time(exit.started_ms)),
            finished_at: Some(time(exit.finished_ms)),
            signal: None,
        }),
        ..core::ContainerState::default()
    };
    let finished = crate::plan::has_finished(desired, actual);
    let (state, last) = match (waiting(desired, actual, index, !finished), &container.run) {
        (Some((reason, message)), run) => {
            let state = core::ContainerState {
                waiting: Some(core::ContainerStateWaiting {
                    reason: Some(reason),
                    message,
                }),
                ..core::ContainerState::default()
            };
            let last = match run {
                Run::Exited { exit, .. } => Some(exit),
                _ => container.last.as_ref(),
            };
            (state, last)
        }
        (None, Run::Exited { exit, .. }) => (terminated(exit), container.last.as_ref()),
        (None, Run::Running { started_ms, .. }) => (
            core::ContainerState {
                running: Some(core::ContainerStateRunning {
                    started_at: Some(time(*started_ms)),
                }),
                ..core::ContainerState::default()
            },
            container.last.as_ref(),
        ),
        (None, _) => (core::ContainerState::default(), container.last.as_ref()),
    };
    // An init container is ready once it is done.
    let done = wanted.role == Role::Init && container.run.exit_code() == Some(0);
    core::ContainerStatus {
        container_id: (container.next_attempt > 0).then(|| id(container.attempt)),
        image: wanted.image.to_string(),
        image_id: container
            .image_id
            .as_deref()
            .unwrap_or_default()
            .to_string(),
        last_state: Some(last.map(|exit| terminated(exit)).unwrap_or_default()),
        name: wanted.name.to_string(),
        ready: (container.is_ready() && wanted.role != Role::Ephemeral) || done,
        restart_count: i32::try_from(container.attempt).unwrap_or(i32::MAX),
        started: (wanted.role != Role::Ephemeral).then(|| container.is_started()),
        state: Some(state),
        ..core::ContainerStatus::default()
    }
}

/// Why a container that has not run yet waits.
pub(crate) fn waiting_reason(desired: &Desired, actual: &Actual, index: usize) -> String {
    waiting(desired, actual, index, true)
        .map_or_else(|| "ContainerCreating".into(), |(reason, _)| reason)
}

/// Reason and message when the container waits.
fn waiting(
    desired: &Desired,
    actual: &Actual,
    index: usize,
    pod_goes_on: bool,
) -> Option<(String, Option<String>)> {
    let wanted = &desired.containers[index];
    let container = &actual.containers[index];
    let plain = |reason: &str| Some((reason.to_string(), None));
    let image_failure = || match &container.image {
        Image::Failed {
            reason, message, ..
        } => Some(((*reason).to_string(), Some(message.clone()))),
        _ => None,
    };
    match &container.run {
        Run::Running { .. } => None,
        Run::Failed {
            reason, message, ..
        } => Some(((*reason).to_string(), Some(message.clone()))),
        Run::None | Run::Starting => image_failure().or_else(|| {
            let init_under_way = !actual.initialised
                && desired
                    .containers
                    .iter()
                    .any(|d| matches!(d.role, Role::Init | Role::Sidecar));
            plain(if init_under_way {
                "PodInitializing"
            } else {
                "ContainerCreating"
            })
        }),
        Run::Exited { exit, restart_at } => {
            let restarts = pod_goes_on
                && !desired.deleting
                && !actual.gone
                && actual.ended.is_none()
                && ContainerActual::restarts(wanted.restart, exit.code);
            if !restarts {
                return None;
            }
            if let Some(failure) = image_failure() {
                return Some(failure);
            }
            // No wait yet: shown as terminated, as upstream does before the first restart.
            if *restart_at == 0 || container.crashes == crate::backoff::Backoff::default() {
                return None;
            }
            Some((
                "CrashLoopBackOff".to_string(),
                Some(format!(
                    "{} restarting failed container={} pod={}_{}({})",
                    back_off_words(container),
                    wanted.name,
                    desired.name,
                    desired.namespace,
                    desired.uid
                )),
            ))
        }
    }
}

/// `back-off 5m0s`, as Go prints durations.
fn back_off_words(container: &ContainerActual) -> String {
    format!("back-off {}", go_duration(container.crashes.in_force_ms()))
}

/// Whole seconds as Go's `time.Duration` prints them.
pub(crate) fn go_duration(ms: u64) -> String {
    let (minutes, seconds) = (ms / 60_000, (ms % 60_000) / 1000);
    if minutes > 0 {
        format!("{minutes}m{seconds}s")
    } else {
        format!("{seconds}s")
    }
}

fn conditions(
    desired: &Desired,
    actual: &Actual,
    phase: &str,
    around: &Surroundings<'_>,
) -> Vec<core::PodCondition> {
    let over = match phase {
        "Succeeded" => Some("PodCompleted"),
        "Failed" => Some("PodFailed"),
        _ => None,
    };
    let names = |wanted: &dyn Fn(usize) -> bool| -> Vec<&str> {
        (0..desired.containers.len())
            .filter(|i| wanted(*i))
            .map(|i| &*desired.containers[i].name)
            .collect()
    };
    let unready = names(&|i| {
        let role = desired.containers[i].role;
        !matches!(role, Role::Init | Role::Ephemeral) && !actual.containers[i].is_ready()
    });
    let incomplete = names(&|i| match desired.containers[i].role {
        Role::Init => !actual.initialised && actual.containers[i].run.exit_code() != Some(0),
        Role::Sidecar => !actual.initialised && !actual.containers[i].is_started(),
        Role::App | Role::Ephemeral => false,
    });
    let containers_ready = match over {
        Some(reason) => Verdict::no(reason, String::new()),
        None if unready.is_empty() => Verdict::yes(),
        None => Verdict::no(
            "ContainersNotReady",
            format!("containers with unready status: [{}]", unready.join(" ")),
        ),
    };
    let initialized = match over {
        Some("PodCompleted") => Verdict {
            reason: Some("PodCompleted".into()),
            ..Verdict::yes()
        },
        _ if incomplete.is_empty() => Verdict::yes(),
        Some(reason) => Verdict::no(reason, String::new()),
        None => Verdict::no(
            "ContainersNotInitialized",
            format!(
                "containers with incomplete status: [{}]",
                incomplete.join(" ")
            ),
        ),
    };
    let ready = gates(desired, around, &containers_ready);
    let sandbox_up =
        actual.sandbox == Sandbox::Up || actual.containers.iter().any(|c| c.run.is_alive());
    let sandbox = Verdict {
        status: sandbox_up,
        ..Verdict::yes()
    };
    let mut list: Vec<core::PodCondition> = around.conditions.to_vec();
    for (type_, verdict) in [
        ("PodReadyToStartContainers", sandbox),
        ("Initialized", initialized),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", Verdict::yes()),
    ] {
        set(&mut list, type_, verdict, desired.generation(), around.now);
    }
    list
}

/// `Ready`: the containers are, and every readiness gate's condition is `True`.
fn gates(desired: &Desired, around: &Surroundings<'_>, containers: &Verdict) -> Verdict {
    if !containers.status {
        return containers.clone();
    }
    let gates = desired
        .pod
        .spec
        .as_ref()
        .and_then(|s| s.readiness_gates.as_deref())
        .unwrap_or_default();
    let words: Vec<String> = gates
        .iter()
        .filter_map(|gate| {
            let known = around
                .conditions
                .iter()
                .find(|c| c.type_ == gate.condition_type);
            match known {
                Some(c) if c.status == "True" => None,
                Some(_) => Some(format!(
                    "the status of pod readiness gate \"{}\" is not \"True\", but False",
                    gate.condition_type
                )),
                None => Some(format!(
                    "corresponding condition of pod readiness gate \"{}\" does not exist.",
                    gate.condition_type
                )),
            }
        })
        .collect();
    if words.is_empty() {
        Verdict::yes()
    } else {
        Verdict::no("ReadinessGatesNotReady", words.join(", "))
    }
}

#[derive(Clone, Debug)]
struct Verdict {
    status: bool,
    reason: Option<String>,
    message: Option<String>,
}

impl Verdict {
    fn yes() -> Self {
        Self {
            status: true,
            reason: None,
            message: None,
        }
    }

    fn no(reason: &str, message: String) -> Self {
        Self {
            status: false,
            reason: Some(reason.into()),
            message: Some(message).filter(|m| !m.is_empty()),
        }
    }
}

fn set(
    list: &mut Vec<core::PodCondition>,
    type_: &str,
    verdict: Verdict,
    generation: Option<i64>,
    now: Timestamp,
) {
    let status = if verdict.status { "True" } else { "False" };
    let known = list.iter_mut().find(|c| c.type_ == type_);
    let since = known
        .as_ref()
        .filter(|c| c.status == status)
        .and_then(|c| c.last_transition_time.clone());
    let condition = core::PodCondition {
        last_probe_time: None,
        last_transition_time: Some(since.unwrap_or(Time(now))),
        message: verdict.message,
        observed_generation: generation,
        reason: verdict.reason,
        status: status.into(),
        type_: type_.into(),
    };
    match known {
        Some(known) => *known = condition,
        None => list.push(condition),
    }
}

/// `status.qosClass`: as the API server set it, for it stays as it is.
fn qos_class(pod: &core::Pod) -> String {
    let set = pod.status.as_ref().and_then(|s| s.qos_class.clone());
    let own = || {
        let class = pod.spec.as_ref().map(crate::resources::class);
        class.unwrap_or_default().name().to_owned()
    };
    set.unwrap_or_else(own)
}

fn time(ms: i64) -> Time {
    Time(Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH))
}

#[cfg(test)]
mod tests;

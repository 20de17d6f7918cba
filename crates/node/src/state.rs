//! What the agent knows of a pod as it is: its sandbox, its containers' images and runs.
//!
//! The runtime is the authority on runs ([`Actual::observe`]); jobs and probes write the
//! rest. Times called `…_at` are milliseconds of the agent's own clock, those called
//! `…_ms` in exits are Unix milliseconds as the runtime gave them.

use crate::backoff::Backoff;
use crate::pod::{Desired, DesiredContainer, RestartPolicy, Role};
use k8s_openapi::api::core::v1 as core;
use std::borrow::Cow;
use std::sync::Arc;

/// A pod as it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Actual {
    pub(crate) sandbox: Sandbox,
    /// In the order of [`Desired::containers`].
    pub(crate) containers: Vec<ContainerActual>,
    /// The agent ended the pod: rejected, deadline exceeded.
    pub(crate) ended: Option<Ended>,
    /// The API no longer has the pod.
    pub(crate) gone: bool,
    /// The final delete is under way or done.
    pub(crate) finishing: bool,
    /// One of the pod's own containers was started in this sandbox: init containers are
    /// over. A sandbox made anew runs them again.
    pub(crate) initialised: bool,
}

/// The pod's surroundings: volumes, address, sandbox at the runtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sandbox {
    /// Not made yet.
    #[default]
    Absent,
    /// A job makes or removes it.
    Busy,
    /// Made.
    Up,
    /// Could not be made; tried again at the time given.
    Failed { retry_at: u64 },
    /// Removed, with volumes and address given back.
    Released,
}

/// Why the agent ended a pod: `status.reason` and `status.message`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// A container as it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct ContainerActual {
    pub(crate) image: Image,
    /// Digest reference of the image that was pulled last.
    pub(crate) image_id: Option<Arc<str>>,
    pub(crate) run: Run,
    /// The image that the newest run was made of, as the pod named it then.
    pub(crate) run_image: Option<Arc<str>>,
    /// `restartCount`: the number of the newest run.
    pub(crate) attempt: u32,
    /// The number that the next run gets.
    pub(crate) next_attempt: u32,
    /// The run before the newest.
    pub(crate) last: Option<Box<Exited>>,
    pub(crate) crashes: Backoff,
    pub(crate) pulls: Backoff,
    /// A probe or a hook wants it killed, and why.
    pub(crate) unhealthy: Option<Box<str>>,
}

/// What is known of a container's image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Image {
    /// Not looked for yet.
    #[default]
    Unknown,
    /// A job pulls it.
    Pulling,
    /// In the store.
    Ready,
    /// Can't be had; tried again at the time given.
    Failed {
        reason: &'static str,
        message: String,
        retry_at: u64,
        /// By its name, where it is not the container's own but that of a volume it mounts.
        of_volume: Option<Arc<str>>,
    },
}

/// What a container does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Run {
    /// Never started.
    #[default]
    None,
    /// A job creates and starts it.
    Starting,
    /// It runs.
    Running {
        started_ms: i64,
        /// The startup probe passed, or there is none.
        started: bool,
        /// The readiness probe passes, or there is none.
        ready: bool,
        /// A job ends it.
        stopping: bool,
    },
    /// It ended; started again, if at all, not before the time given.
    Exited { exit: Box<Exited>, restart_at: u64 },
    /// It could not be created or started; tried again at the time given.
    Failed {
        reason: &'static str,
        message: String,
        retry_at: u64,
    },
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exited {
    pub(crate) attempt: u32,
    pub(crate) code: i32,
    pub(crate) reason: Cow<'static, str>,
    pub(crate) message: String,
    pub(crate) started_ms: i64,
    pub(crate) finished_ms: i64,
}

/// A run that the runtime knows no more of; upstream's words.
const LOST_REASON: &str = "ContainerStatusUnknown";
const LOST_MESSAGE: &str = "The container could not be located when the pod was running";

impl Run {
    /// Whether something of it is alive or about to be.
    pub(crate) fn is_alive(&self) -> bool {
        matches!(self, Self::Starting | Self::Running { .. })
    }

    pub(crate) fn exit_code(&self) -> Option<i32> {
        match self {
            Self::Exited { exit, .. } => Some(exit.code),
            _ => None,
        }
    }
}

impl ContainerActual {
    /// Whether a run of it was ever begun.
    pub(crate) fn ever_ran(&self) -> bool {
        self.next_attempt > 0 || matches!(self.run, Run::Running { .. } | Run::Exited { .. })
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.run, Run::Running { ready: true, .. })
    }

    pub(crate) fn is_started(&self) -> bool {
        matches!(self.run, Run::Running { started: true, .. })
    }

    /// Whether policy starts it again now that it ended with `code`.
    pub(crate) fn restarts(policy: RestartPolicy, code: i32) -> bool {
        match policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => code != 0,
            RestartPolicy::Never => false,
        }
    }

    /// Whether it runs another image than is wanted now.
    pub(crate) fn image_changed(&self, wanted: &str) -> bool {
        self.run_image.as_deref().is_some_and(|has| has != wanted)
    }

    /// Takes over what the API server knows and this does not. `known` is older.
    pub(crate) fn confirm(&mut self, known: Self) {
        if self.run == Run::None && self.next_attempt == 0 {
            // Its job, if one is under way, has its number already.
            let image = std::mem::take(&mut self.image);
            *self = Self { image, ..known };
            return;
        }
        self.image_id = self.image_id.take().or(known.image_id);
        if self.attempt != known.attempt {
            return;
        }
        self.last = self.last.take().or(known.last);
        if let (
            Run::Running {
                started_ms,
                started,
                ready,
                ..
            },
            Run::Running {
                started_ms: told_ms,
                started: told_started,
                ready: told_ready,
                ..
            },
        ) = (&mut self.run, known.run)
            && *started_ms / 1000 == told_ms / 1000
        {
            *started |= told_started;
            *ready |= told_ready;
        }
    }

    fn seed(status: &core::ContainerStatus) -> Self {
        let mut seeded = Self {
            attempt: u32::try_from(status.restart_count).unwrap_or(0),
            image_id: Some(status.image_id.as_str())
                .filter(|id| !id.is_empty())
                .map(Into::into),
            ..Self::default()
        };
        let state = status.state.as_ref();
        let attempt = seeded.attempt;
        let terminated = |s: Option<&core::ContainerState>, attempt| {
            s.and_then(|s| s.terminated.as_ref())
                .map(|t| Box::new(Exited::from_api(t, attempt)))
        };
        seeded.last = terminated(status.last_state.as_ref(), attempt.saturating_sub(1));
        if let Some(exit) = terminated(state, attempt) {
            seeded.next_attempt = attempt + 1;
            seeded.run = Run::Exited {
                exit,
                restart_at: 0,
            };
        } else if let Some(running) = state.and_then(|s| s.running.as_ref()) {
            seeded.next_attempt = attempt + 1;
            seeded.run = Run::Running {
                started_ms: millis(running.started_at.as_ref()),
                started: status.started.unwrap_or(status.ready),
                ready: status.ready,
                stopping: false,
            };
        } else if let Some(last) = seeded.last.take() {
            // It waits in a crash loop: the run that `lastState` tells of is the newest.
            seeded.next_attempt = attempt + 1;
            seeded.run = Run::Exited {
                exit: last,
                restart_at: 0,
            };
        }
        seeded
    }

    fn exited(&mut self, exit: Exited, now: u64) {
        let restart_at = now.saturating_add(self.crashes.delay_ms(now));
        self.unhealthy = None;
        self.run = Run::Exited {
            exit: Box::new(exit),
            restart_at,
        };
    }

    fn lost(&mut self, started_ms: i64, now: u64, wall_ms: i64) {
        let exit = Exited {
            attempt: self.attempt,
            code: 137,
            reason: LOST_REASON.into(),
            message: LOST_MESSAGE.into(),
            started_ms,
            finished_ms: wall_ms,
        };
        self.exited(exit, now);
    }

    fn observe(&mut self, desired: &DesiredContainer, seen: &runtime::ContainerStatus, now: u64) {
        if seen.attempt < self.attempt && self.ever_ran() {
            return;
        }
        match &seen.state {
            runtime::ContainerState::Created => {
                // Made by an agent that died before it started it: made again, same number.
                if !self.run.is_alive() {
                    self.next_attempt = seen.attempt;
                }
            }
            runtime::ContainerState::Running { started_ms } => {
                let same = self.attempt == seen.attempt;
                self.attempt = seen.attempt;
                self.next_attempt = seen.attempt + 1;
                if self.run_image.as_deref() != Some(&*seen.image) {
                    self.run_image = Some(seen.image.as_str().into());
                }
                if let (Run::Running { started_ms: at, .. }, true) = (&mut self.run, same) {
                    *at = *started_ms;
                    return;
                }
                self.run = Run::Running {
                    started_ms: *started_ms,
                    started: !desired.has_startup,
                    ready: !desired.has_startup && !desired.has_readiness,
                    stopping: false,
                };
            }
            runtime::ContainerState::Exited(exit) => {
                let known =
                    matches!(&self.run, Run::Exited { exit: k, .. } if k.attempt == seen.attempt);
                if known {
                    return;
                }
                self.attempt = seen.attempt;
                self.next_attempt = seen.attempt + 1;
                self.exited(Exited::from_runtime(exit, seen.attempt), now);
            }
        }
    }
}

impl Actual {
    /// A pod just seen. What its API status tells of earlier runs is kept, so that an
    /// agent that restarts neither counts from zero nor makes ready pods unready.
    pub(crate) fn seed(desired: &Desired) -> Self {
        let status = desired.pod.status.as_ref();
        let statuses = |list: Option<&Vec<core::ContainerStatus>>, name: &str| {
            list.and_then(|l| l.iter().find(|s| s.name == name))
                .map(ContainerActual::seed)
        };
        let containers = desired
            .containers
            .iter()
            .map(|c| {
                let list = status.and_then(|s| match c.role {
                    Role::App => s.container_statuses.as_ref(),
                    Role::Ephemeral => s.ephemeral_container_statuses.as_ref(),
                    Role::Init | Role::Sidecar => s.init_container_statuses.as_ref(),
                });
                statuses(list, &c.name).unwrap_or_default()
            })
            .collect();
        let ended = status
            .filter(|s| s.phase.as_deref() == Some("Failed"))
            .and_then(|s| {
                Some(Ended {
                    reason: s.reason.clone()?,
                    message: s.message.clone().unwrap_or_default(),
                })
            });
        Self {
            containers,
            ended,
            ..Self::default()
        }
    }

    /// Takes over what the runtime says; `None` when it has no such sandbox.
    pub(crate) fn observe(
        &mut self,
        desired: &Desired,
        seen: Option<&runtime::SandboxStatus>,
        now: u64,
        wall_ms: i64,
    ) {
        match (seen, self.sandbox) {
            (Some(_), Sandbox::Absent | Sandbox::Failed { .. }) => self.sandbox = Sandbox::Up,
            (None, Sandbox::Up) => self.lose_sandbox(desired),
            _ => {}
        }
        for (index, container) in self.containers.iter_mut().enumerate() {
            let wanted = &desired.containers[index];
            let newest = seen.and_then(|s| {
                s.containers
                    .iter()
                    .filter(|c| c.name == *wanted.name)
                    .max_by_key(|c| c.attempt)
            });
            match (newest, &container.run) {
                (Some(_), Run::Starting) => {}
                (Some(newest), _) => {
                    container.observe(wanted, newest, now);
                    self.initialised |= wanted.role == Role::App && container.ever_ran();
                }
                (None, Run::Running { started_ms, .. }) => {
                    let started_ms = *started_ms;
                    container.lost(started_ms, now, wall_ms);
                }
                (None, _) => {}
            }
        }
    }

    fn lose_sandbox(&mut self, desired: &Desired) {
        self.sandbox = Sandbox::Absent;
        self.initialised = false;
        for (wanted, container) in desired.containers.iter().zip(&mut self.containers) {
            let over = matches!(&container.run, Run::Exited { exit, .. } if exit.code == 0);
            if wanted.role == Role::Init && over {
                container.run = Run::None;
            }
        }
    }
}

impl Exited {
    fn from_runtime(exit: &runtime::Exit, attempt: u32) -> Self {
        let reason = match exit.reason {
            runtime::ExitReason::Completed => "Completed",
            runtime::ExitReason::Error => "Error",
            runtime::ExitReason::OomKilled => "OOMKilled",
            runtime::ExitReason::StartError => "StartError",
        };
        Self {
            attempt,
            code: exit.code,
            reason: reason.into(),
            message: exit.message.clone(),
            started_ms: exit.started_ms,
            finished_ms: exit.finished_ms,
        }
    }

    fn from_api(t: &core::ContainerStateTerminated, attempt: u32) -> Self {
        Self {
            attempt,
            code: t.exit_code,
            reason: t.reason.clone().unwrap_or_default().into(),
            message: t.message.clone().unwrap_or_default(),
            started_ms: millis(t.started_at.as_ref()),
            finished_ms: millis(t.finished_at.as_ref()),
        }
    }
}

fn millis(time: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>) -> i64 {
    time.map_or(0, |t| t.0.as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;
    use serde_json::json;

    fn seen(state: runtime::ContainerState, attempt: u32) -> runtime::SandboxStatus {
        runtime::SandboxStatus {
            id: runtime::SandboxId("u1".into()),
            namespace: "default".into(),
            name: "web".into(),
            ip: [127, 0, 0, 1].into(),
            containers: vec![runtime::ContainerStatus {
                id: runtime::ContainerId(format!("u1/c/{attempt}")),
                name: "c".into(),
                attempt,
                image: "i:1".into(),
                state,
            }],
            standby: false,
            beside: false,
        }
    }

    #[test]
    fn adopts_what_runs_and_keeps_its_number() {
        let d = pod(json!({"containers": [{"name": "c", "image": "i:1"}]}));
        let mut a = Actual::seed(&d);
        let status = seen(runtime::ContainerState::Running { started_ms: 5 }, 3);
        a.observe(&d, Some(&status), 0, 0);
        assert_eq!(a.sandbox, Sandbox::Up);
        assert_eq!(
            (a.containers[0].attempt, a.containers[0].next_attempt),
            (3, 4)
        );
        assert!(a.containers[0].is_ready());
    }

    #[test]
    fn a_lost_sandbox_ends_its_containers() {
        let d = pod(json!({"containers": [{"name": "c", "image": "i:1"}]}));
        let mut a = Actual::seed(&d);
        let status = seen(runtime::ContainerState::Running { started_ms: 5 }, 0);
        a.observe(&d, Some(&status), 0, 0);
        a.observe(&d, None, 10, 99);
        assert_eq!(a.sandbox, Sandbox::Absent);
        assert_eq!(a.containers[0].run.exit_code(), Some(137));
        assert_eq!(a.containers[0].next_attempt, 1);
    }

    #[test]
    fn a_running_container_with_a_readiness_probe_is_not_ready_yet() {
        let d = pod(json!({"containers": [{"name": "c", "image": "i:1",
            "readinessProbe": {"tcpSocket": {"port": 1}}}]}));
        let mut a = Actual::seed(&d);
        let status = seen(runtime::ContainerState::Running { started_ms: 5 }, 0);
        a.observe(&d, Some(&status), 0, 0);
        assert!(a.containers[0].is_started());
        assert!(!a.containers[0].is_ready());
    }
}

//! What must be done next for a pod: a pure function of what is wanted and what is.
//!
//! It performs nothing and remembers nothing. Each step that it names is begun at once
//! and marked in [`Actual`], so that the next plan does not name it again; when nothing
//! can be done before some time, it says which.

use crate::pod::{Desired, Role};
use crate::state::{Actual, ContainerActual, Image, Run, Sandbox};

/// Something to do. Containers are named by their place in [`Desired::containers`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Materialise volumes, take an address, make the sandbox.
    Setup,
    /// Find or pull the image.
    Pull { container: usize },
    /// Create the container and start it.
    Start { container: usize, attempt: u32 },
    /// Run its preStop hook and end it.
    Stop { container: usize, why: Why },
    /// Remove the sandbox, the volumes, give the address back.
    Teardown,
    /// Delete the API object for good.
    Delete,
    /// Drop all that is known of the pod.
    Forget,
}

/// Why a container is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The pod ends.
    PodEnds,
    /// A probe failed, or a postStart hook.
    Unhealthy,
    /// Its image in the spec is another one now.
    Changed,
}

/// Steps to begin, and when to plan again if nothing happens before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) wake_at: Option<u64>,
}

impl Plan {
    fn wake(&mut self, at: u64) {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }
}

/// Plans. `now` is of the agent's own clock.
pub(crate) fn plan(desired: &Desired, actual: &Actual, now: u64) -> Plan {
    let mut plan = Plan::default();
    if desired.deleting || actual.gone || actual.ended.is_some() || has_finished(desired, actual) {
        end(desired, actual, &mut plan);
    } else {
        run(desired, actual, now, &mut plan);
    }
    plan
}

/// Whether all that the pod had to do is done: every container ended for good, or an
/// init container failed for good.
pub(crate) fn has_finished(desired: &Desired, actual: &Actual) -> bool {
    if matches!(desired.api_phase(), Some("Succeeded" | "Failed")) {
        return true;
    }
    let pairs = || desired.containers.iter().zip(&actual.containers);
    let init_failed = pairs().any(|(d, c)| {
        d.role == Role::Init
            && c.run
                .exit_code()
                .is_some_and(|code| code != 0 && !ContainerActual::restarts(d.restart, code))
    });
    init_failed
        || pairs().filter(|(d, _)| d.role == Role::App).all(|(d, c)| {
            c.run
                .exit_code()
                .is_some_and(|code| !ContainerActual::restarts(d.restart, code))
        })
}

fn run(desired: &Desired, actual: &Actual, now: u64, plan: &mut Plan) {
    match actual.sandbox {
        Sandbox::Absent => plan.steps.push(Step::Setup),
        Sandbox::Failed { retry_at } if retry_at <= now => plan.steps.push(Step::Setup),
        Sandbox::Failed { retry_at } => plan.wake(retry_at),
        Sandbox::Busy | Sandbox::Up | Sandbox::Released => {}
    }
    let initialised = actual.initialised;
    let mut blocked = false;
    for (index, wanted) in desired.containers.iter().enumerate() {
        let container = &actual.containers[index];
        match wanted.role {
            Role::Init if initialised || blocked => {}
            Role::Init if container.run.exit_code() == Some(0) => {}
            Role::Init => {
                drive(desired, actual, index, now, plan);
                blocked = true;
            }
            Role::Sidecar if blocked => {}
            Role::Sidecar => {
                drive(desired, actual, index, now, plan);
                blocked = !initialised && !container.is_started();
            }
            Role::App if blocked => {}
            // Somebody wants to see why the others do not run.
            Role::App | Role::Ephemeral => drive(desired, actual, index, now, plan),
        }
    }
}

/// Brings one container, whose turn it is, a step nearer to running.
fn drive(desired: &Desired, actual: &Actual, index: usize, now: u64, plan: &mut Plan) {
    let wanted = &desired.containers[index];
    let container = &actual.containers[index];
    let due = match &container.run {
        Run::Running { stopping: true, .. } | Run::Starting => return,
        Run::Running { .. } => {
            if container.unhealthy.is_some() {
                plan.steps.push(stop(index, Why::Unhealthy));
            } else if actual.sandbox == Sandbox::Up && container.image_changed(&wanted.image) {
                plan.steps.push(stop(index, Why::Changed));
            }
            return;
        }
        Run::None => 0,
        Run::Exited { exit, .. } if !ContainerActual::restarts(wanted.restart, exit.code) => return,
        Run::Exited { restart_at, .. } => *restart_at,
        Run::Failed { retry_at, .. } => *retry_at,
    };
    if due > now {
        plan.wake(due);
        return;
    }
    match &container.image {
        Image::Unknown => plan.steps.push(Step::Pull { container: index }),
        Image::Failed { retry_at, .. } if *retry_at <= now => {
            plan.steps.push(Step::Pull { container: index });
        }
        Image::Failed { retry_at, .. } => plan.wake(*retry_at),
        Image::Pulling => {}
        Image::Ready if actual.sandbox == Sandbox::Up => plan.steps.push(Step::Start {
            container: index,
            attempt: container.next_attempt,
        }),
        Image::Ready => {}
    }
}

/// Ends the pod: first its containers, then its sidecars from the last to the first,
/// then its surroundings, then the API object.
fn end(desired: &Desired, actual: &Actual, plan: &mut Plan) {
    let alive = |role: Role| {
        desired
            .containers
            .iter()
            .zip(&actual.containers)
            .enumerate()
            .filter(move |(_, (d, c))| {
                (d.role == Role::Sidecar) == (role == Role::Sidecar) && c.run.is_alive()
            })
            .map(|(index, (_, c))| (index, c))
    };
    let mut waiting = false;
    for (index, container) in alive(Role::App) {
        waiting = true;
        if can_stop(container) {
            plan.steps.push(stop(index, Why::PodEnds));
        }
    }
    if !waiting && let Some((index, container)) = alive(Role::Sidecar).next_back() {
        waiting = true;
        if can_stop(container) {
            plan.steps.push(stop(index, Why::PodEnds));
        }
    }
    if waiting || actual.sandbox == Sandbox::Busy {
        return;
    }
    if actual.sandbox != Sandbox::Released {
        plan.steps.push(Step::Teardown);
    } else if actual.gone {
        plan.steps.push(Step::Forget);
    } else if desired.deleting && !actual.finishing {
        plan.steps.push(Step::Delete);
    }
}

fn can_stop(container: &ContainerActual) -> bool {
    matches!(
        container.run,
        Run::Running {
            stopping: false,
            ..
        }
    )
}

fn stop(container: usize, why: Why) -> Step {
    Step::Stop { container, why }
}

#[cfg(test)]
mod tests;

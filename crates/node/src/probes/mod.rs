//! Probes: startup, liveness, readiness.
//!
//! A container has a task for each of its probes while it runs, and none otherwise: a
//! pod without probes costs nothing here. Until the startup probe passed only that one
//! runs. Start with [`sync`].

mod check;
pub(crate) mod grpc;

use crate::agent::{Agent, Record, Slot};
use crate::exec::Exec;
use crate::state::Run;
use check::Outcome;
use client::EventType;
use k8s_openapi::api::core::v1 as core;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The probes of one run of a container; they end with this.
pub(crate) struct Running {
    attempt: u32,
    started: bool,
    token: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// Starts and ends probe tasks so that they fit the containers as they are.
pub(crate) fn sync(agent: &Arc<Agent>, slot: &Arc<Slot>, record: &mut Record) {
    for index in 0..record.desired.containers.len() {
        let wanted = &record.desired.containers[index];
        let actual = &record.actual.containers[index];
        let (started, started_ms) = match actual.run {
            Run::Running {
                started,
                started_ms,
                stopping: false,
                ..
            } if !slot.ending.is_cancelled() => (started, started_ms),
            _ => {
                record.sides[index].probes = None;
                continue;
            }
        };
        if !(wanted.has_startup || wanted.has_liveness || wanted.has_readiness) {
            continue;
        }
        let fits = record.sides[index]
            .probes
            .as_ref()
            .is_some_and(|p| p.attempt == actual.attempt && p.started == started);
        if fits {
            continue;
        }
        let Some(container) = record.desired.container(index).cloned() else {
            continue;
        };
        let token = slot.ending.child_token();
        let kinds: &[Kind] = if started {
            &[Kind::Liveness, Kind::Readiness]
        } else {
            &[Kind::Startup]
        };
        let container = Arc::new(container);
        for kind in kinds {
            let Some(probe) = probe_of(&container, *kind) else {
                continue;
            };
            let task = Task {
                agent: agent.clone(),
                slot: slot.clone(),
                index,
                attempt: actual.attempt,
                kind: *kind,
                timing: Timing::of(probe),
                container: container.clone(),
                started_ms,
            };
            let token = token.clone();
            agent.scope.spawn_cancellable(async move {
                token.run_until_cancelled(task.run()).await;
            });
        }
        record.sides[index].probes = Some(Running {
            attempt: actual.attempt,
            started,
            token,
        });
    }
}

fn probe_of(container: &core::Container, kind: Kind) -> Option<&core::Probe> {
    match kind {
        Kind::Startup => container.startup_probe.as_ref(),
        Kind::Liveness => container.liveness_probe.as_ref(),
        Kind::Readiness => container.readiness_probe.as_ref(),
    }
}

/// A probe's numbers with upstream's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Timing {
    initial: Duration,
    period: Duration,
    timeout: Duration,
    successes: u32,
    failures: u32,
    grace_s: Option<u64>,
}

impl Timing {
    fn of(probe: &core::Probe) -> Self {
        let number = |stated: Option<i32>, default: u32| {
            stated
                .and_then(|n| u32::try_from(n).ok())
                .filter(|n| *n > 0)
                .unwrap_or(default)
        };
        let seconds = |stated, default| Duration::from_secs(number(stated, default).into());
        Self {
            initial: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            successes: number(probe.success_threshold, 1),
            failures: number(probe.failure_threshold, 3),
            grace_s: probe
                .termination_grace_period_seconds
                .and_then(|s| u64::try_from(s).ok()),
        }
    }
}

struct Task {
    agent: Arc<Agent>,
    slot: Arc<Slot>,
    index: usize,
    attempt: u32,
    kind: Kind,
    timing: Timing,
    container: Arc<core::Container>,
    started_ms: i64,
}

impl Task {
    fn exec(&self) -> Exec {
        let record = self.slot.lock();
        let name = &self.container.name;
        Exec {
            runtime: self.agent.runtime(record.runtime.unwrap_or(0)).clone(),
            container: crate::container::container_id(&record.desired, name, self.attempt),
        }
    }

    async fn run(self) {
        let ran_ms = self.agent.clock.now().as_millisecond() - self.started_ms;
        let ran = Duration::from_millis(u64::try_from(ran_ms).unwrap_or(0));
        tokio::time::sleep(self.timing.initial.saturating_sub(ran)).await;
        let (mut successes, mut failures) = (0u32, 0u32);
        // From one probe's start to the next is a period, however long an answer takes.
        let mut ticks = tokio::time::interval(self.timing.period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Some(probe) = probe_of(&self.container, self.kind) else {
                return;
            };
            let ip = self.slot.lock().ip.unwrap_or(self.agent.fixed.node_ip);
            let exec = self.exec();
            match check::check(probe, &self.container, ip, &exec, self.timing.timeout).await {
                Outcome::Success => {
                    (successes, failures) = (successes + 1, 0);
                    if successes == self.timing.successes && self.passed() {
                        return;
                    }
                }
                Outcome::Failure(words) => {
                    (successes, failures) = (0, failures + 1);
                    self.tell(&format!("{} probe failed: {words}", self.kind.title()));
                    if failures == self.timing.failures && self.failed() {
                        return;
                    }
                }
                // Neither good nor bad, as upstream has it: nothing changes.
                Outcome::Unknown(words) => {
                    self.tell(&format!("{} probe errored: {words}", self.kind.title()));
                }
            }
        }
    }

    fn tell(&self, words: &str) {
        let record = self.slot.lock();
        self.agent
            .container_event(&record, self.index, EventType::Warning, "Unhealthy", words);
    }

    /// The threshold of successes is reached; whether the task is over.
    fn passed(&self) -> bool {
        self.change(|kind, run, wants_readiness| {
            if let Run::Running { started, ready, .. } = run {
                match kind {
                    Kind::Startup => {
                        *started = true;
                        *ready = !wants_readiness;
                    }
                    Kind::Readiness => *ready = true,
                    Kind::Liveness => {}
                }
            }
        });
        self.kind == Kind::Startup
    }

    /// The threshold of failures is reached; whether the task is over.
    fn failed(&self) -> bool {
        if self.kind == Kind::Readiness {
            self.change(|_, run, _| {
                if let Run::Running { ready, .. } = run {
                    *ready = false;
                }
            });
            return false;
        }
        {
            let mut record = self.slot.lock();
            let container = &mut record.actual.containers[self.index];
            if container.attempt == self.attempt {
                let what = self.kind.title().to_lowercase();
                container.unhealthy = Some(format!("failed {what} probe").into());
                record.sides[self.index].kill_grace_s = self.timing.grace_s;
            }
        }
        self.agent.queue.add(self.slot.uid.clone());
        true
    }

    fn change(&self, set: impl FnOnce(Kind, &mut Run, bool)) {
        {
            let mut record = self.slot.lock();
            let wants_readiness = record.desired.containers[self.index].has_readiness;
            let container = &mut record.actual.containers[self.index];
            if container.attempt != self.attempt {
                return;
            }
            set(self.kind, &mut container.run, wants_readiness);
        }
        self.agent.queue.add(self.slot.uid.clone());
    }
}

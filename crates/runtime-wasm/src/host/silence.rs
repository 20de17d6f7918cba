//! Kills what may not outlive its node's contact with its server: a pod whose partition
//! contract is to stop. The agent ends these in good time; here is what holds when the agent
//! is dead, stopped or stuck, or a pod outstays its grace.

use super::{Host, Sandbox};
use runtime::ContainerState;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// When the node last reached its server, as the agent told; before that, the host's start.
#[derive(Debug)]
pub(super) struct Contact(AtomicU64);

impl Contact {
    pub(super) fn now() -> Self {
        Self(AtomicU64::new(boot_ms()))
    }

    pub(super) fn made(&self, at_ms: u64) {
        self.0.fetch_max(at_ms, Ordering::SeqCst);
    }

    fn silence_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.0.load(Ordering::SeqCst))
    }
}

/// Milliseconds by a clock that no one sets and that runs while the machine sleeps.
fn boot_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(now.tv_sec * 1000 + now.tv_nsec / 1_000_000).unwrap_or_default()
}

/// Looks until its scope is cancelled.
pub(super) async fn watch(host: Host) {
    loop {
        tokio::time::sleep(LOOK).await;
        host.kill_silent(boot_ms());
    }
}

impl Host {
    fn kill_silent(&self, now_ms: u64) {
        let silence = self.shared.contact.silence_ms(now_ms);
        let dies = |s: &Arc<Sandbox>| {
            let limit = s.spec.dies_after_silence_ms;
            limit.is_some_and(|limit| silence >= limit)
        };
        for sandbox in self.shared.all().into_iter().filter(dies) {
            for container in sandbox.all() {
                if matches!(container.status().state, ContainerState::Running { .. }) {
                    let id = &container.id().0;
                    tracing::warn!(
                        container = id,
                        silence,
                        "killed: no contact with the server"
                    );
                    let scope = &self.shared.scope;
                    scope.spawn_cancellable(async move { container.stop(0).await });
                }
            }
        }
    }
}

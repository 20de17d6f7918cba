//! Whether a connection carries anything.

use crate::IDLE_MAX;
use std::sync::atomic::{AtomicBool, Ordering};

/// Looks in the time that a connection may be idle.
const LOOKS: u32 = 4;

#[derive(Debug, Default)]
pub(crate) struct Activity(AtomicBool);

impl Activity {
    /// Something was carried.
    pub(crate) fn mark(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns when nothing was for too long.
    pub(crate) async fn idle(&self) {
        let mut quiet = 0;
        while quiet < LOOKS {
            tokio::time::sleep(IDLE_MAX / LOOKS).await;
            quiet = if self.0.swap(false, Ordering::Relaxed) {
                0
            } else {
                quiet + 1
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn idle_begins_with_the_last_that_was_carried() {
        let activity = Activity::default();
        let began = Instant::now();
        let busy = async {
            for _ in 0..10 {
                tokio::time::sleep(IDLE_MAX / 2).await;
                activity.mark();
            }
        };
        tokio::join!(activity.idle(), busy);
        let after = began.elapsed() - IDLE_MAX * 5;
        assert!(after >= IDLE_MAX && after <= IDLE_MAX + IDLE_MAX / LOOKS + Duration::from_secs(1));
    }
}

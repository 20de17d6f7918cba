//! Growing delays between tries, as upstream counts them: the first try after a failure
//! comes at once or after the initial delay, each further one after twice the last, and a
//! long quiet time forgets it all. Times are milliseconds of the agent's own clock, which
//! never jumps.

/// First delay of crash loops and image pulls.
pub(crate) const INITIAL_MS: u64 = 10_000;
/// Delays grow no longer than this.
pub(crate) const MAX_MS: u64 = 300_000;
/// A container that ran this long has its delays forgotten.
pub(crate) const FORGET_MS: u64 = 2 * MAX_MS;

/// One thing's delays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    delay_ms: u64,
    updated_ms: u64,
}

impl Backoff {
    /// The delay now in force; zero before the first [`Backoff::grow`].
    pub(crate) fn delay_ms(&self, now_ms: u64) -> u64 {
        if now_ms.saturating_sub(self.updated_ms) > FORGET_MS {
            0
        } else {
            self.delay_ms
        }
    }

    /// The delay last counted, whether or not it has passed.
    pub(crate) fn in_force_ms(&self) -> u64 {
        self.delay_ms
    }

    /// Notes a further try at `now_ms`; the next delay.
    pub(crate) fn grow(&mut self, now_ms: u64) -> u64 {
        self.grow_from(now_ms, INITIAL_MS, MAX_MS)
    }

    /// The same with other bounds (volumes: 500 ms to 2 min).
    pub(crate) fn grow_from(&mut self, now_ms: u64, initial_ms: u64, max_ms: u64) -> u64 {
        self.delay_ms = match self.delay_ms(now_ms) {
            0 => initial_ms,
            delay => (delay * 2).min(max_ms),
        };
        self.updated_ms = now_ms;
        self.delay_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_maximum_and_forgets() {
        let mut b = Backoff::default();
        let mut now = 0;
        let mut seen = vec![b.delay_ms(now)];
        for _ in 0..7 {
            seen.push(b.grow(now) / 1000);
            now += b.delay_ms(now) + 1;
        }
        assert_eq!(seen, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(b.delay_ms(now + FORGET_MS), 0);
    }
}

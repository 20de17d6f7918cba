//! What must be done next for a Deployment that sleeps when nobody asks: pure.

use std::time::Duration;
use tokio::time::Instant;

/// What is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// How long it must be idle to sleep; `None` when it is not to sleep any more.
    pub(super) period: Option<Duration>,
    /// `spec.replicas`.
    pub(super) replicas: i32,
    /// Put to sleep on this node, with so many replicas to come back to.
    pub(super) asleep: Option<i32>,
    /// Its rollout is over, and all its pods are on this node and available.
    pub(super) settled: bool,
    /// How long no request of its Services was under way; `None` where it has none.
    pub(super) idle_for: Option<Duration>,
    pub(super) standby: Standby,
}

/// The pod that stands by for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standby {
    /// There is none.
    None,
    /// It could not be made; not tried again yet.
    Failed,
    /// Of a template that is not the newest, or of an object that has changed.
    Outdated,
    /// Ready to be woken.
    Ready,
    /// A request has woken it; the API does not know yet.
    Woken,
    /// The API knows; its pod is about to come.
    Rising,
    /// No ReplicaSet has taken it.
    Unclaimed,
    /// Its pod is an ordinary one.
    Adopted,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Rest,
    /// Make a pod that stands by, in the place of one that is outdated.
    Prepare,
    /// Remove the one that stands by.
    Discard,
    /// Scale to zero.
    Sleep,
    /// Scale to so many, which the pod that was woken is one of.
    Rise(i32),
    /// Somebody scaled it up by hand: it does not count as asleep any more.
    Unmark,
    /// Its pod is seen by all: forget that it ever stood by.
    Forget,
}

pub(super) fn plan(facts: &Facts) -> Step {
    match facts.standby {
        Standby::Adopted => return Step::Forget,
        Standby::Rising => return Step::Rest,
        Standby::Unclaimed => return Step::Discard,
        // Who scaled it up meanwhile has said how many.
        Standby::Woken if facts.replicas > 0 => return Step::Rise(facts.replicas),
        Standby::Woken => {
            // None here put it to sleep: zero is what somebody asked for.
            return facts
                .asleep
                .map_or(Step::Discard, |replicas| Step::Rise(replicas.max(1)));
        }
        Standby::None | Standby::Failed | Standby::Outdated | Standby::Ready => {}
    }
    if facts.asleep.is_some() && facts.replicas > 0 {
        return Step::Unmark;
    }
    let Some(period) = facts.period else {
        // What was put to sleep comes back before nothing can wake it.
        return match (facts.asleep, facts.standby) {
            (Some(replicas), _) => Step::Rise(replicas.max(1)),
            (None, Standby::None | Standby::Failed) => Step::Rest,
            (None, _) => Step::Discard,
        };
    };
    let sleeps = facts.asleep.is_some();
    let idle = facts.settled && facts.idle_for.is_some_and(|idle| idle >= period);
    let wants_to = facts.replicas > 0 && idle;
    match facts.standby {
        Standby::None | Standby::Outdated if sleeps || wants_to => Step::Prepare,
        Standby::Ready if wants_to => Step::Sleep,
        Standby::Ready if sleeps => Step::Rest,
        Standby::Ready | Standby::Outdated => Step::Discard,
        _ => Step::Rest,
    }
}

/// Since when nobody asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdleClock {
    carried: Option<u64>,
    since: Instant,
}

impl IdleClock {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            carried: None,
            since: now,
        }
    }

    /// Takes in what its Services have carried so far, and how many requests are under way.
    pub(super) fn observe(&mut self, carried: u64, under_way: u64, now: Instant) {
        // A count that went back is that of a new proxy, which knows nothing of before.
        if self.carried != Some(carried) || under_way > 0 {
            self.carried = Some(carried);
            self.since = now;
        }
    }

    /// Something else than a request has to do with it.
    pub(super) fn touch(&mut self, now: Instant) {
        self.since = now;
    }

    pub(super) fn idle_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use std::fmt::Write as _;

    const AWAKE: Facts = Facts {
        period: Some(Duration::from_secs(30)),
        replicas: 3,
        asleep: None,
        settled: true,
        idle_for: Some(Duration::ZERO),
        standby: Standby::None,
    };

    #[test]
    fn steps_by_standby() {
        let idle = Facts {
            idle_for: Some(Duration::from_secs(30)),
            ..AWAKE
        };
        let asleep = Facts {
            replicas: 0,
            asleep: Some(3),
            settled: false,
            ..AWAKE
        };
        let cases = [
            ("busy", AWAKE),
            ("idle", idle.clone()),
            (
                "idle, not settled",
                Facts {
                    settled: false,
                    ..idle.clone()
                },
            ),
            (
                "no Service",
                Facts {
                    idle_for: None,
                    ..idle.clone()
                },
            ),
            ("asleep", asleep.clone()),
            (
                "scaled up by hand",
                Facts {
                    replicas: 2,
                    ..asleep.clone()
                },
            ),
            (
                "scaled to zero by hand",
                Facts {
                    replicas: 0,
                    ..idle.clone()
                },
            ),
            (
                "asleep, then no annotation",
                Facts {
                    period: None,
                    ..asleep
                },
            ),
            (
                "no annotation",
                Facts {
                    period: None,
                    ..idle
                },
            ),
        ];
        let standbys = [
            Standby::None,
            Standby::Failed,
            Standby::Outdated,
            Standby::Ready,
            Standby::Woken,
            Standby::Rising,
            Standby::Unclaimed,
            Standby::Adopted,
        ];
        let mut text = String::new();
        for (name, facts) in cases {
            let steps = standbys.map(|standby| {
                let step = plan(&Facts {
                    standby,
                    ..facts.clone()
                });
                format!("{standby:?} {step:?}")
            });
            writeln!(text, "{name}: {}", steps.join(", ")).unwrap();
        }
        expect![[r#"
            busy: None Rest, Failed Rest, Outdated Discard, Ready Discard, Woken Rise(3), Rising Rest, Unclaimed Discard, Adopted Forget
            idle: None Prepare, Failed Rest, Outdated Prepare, Ready Sleep, Woken Rise(3), Rising Rest, Unclaimed Discard, Adopted Forget
            idle, not settled: None Rest, Failed Rest, Outdated Discard, Ready Discard, Woken Rise(3), Rising Rest, Unclaimed Discard, Adopted Forget
            no Service: None Rest, Failed Rest, Outdated Discard, Ready Discard, Woken Rise(3), Rising Rest, Unclaimed Discard, Adopted Forget
            asleep: None Prepare, Failed Rest, Outdated Prepare, Ready Rest, Woken Rise(3), Rising Rest, Unclaimed Discard, Adopted Forget
            scaled up by hand: None Unmark, Failed Unmark, Outdated Unmark, Ready Unmark, Woken Rise(2), Rising Rest, Unclaimed Discard, Adopted Forget
            scaled to zero by hand: None Rest, Failed Rest, Outdated Discard, Ready Discard, Woken Discard, Rising Rest, Unclaimed Discard, Adopted Forget
            asleep, then no annotation: None Rise(3), Failed Rise(3), Outdated Rise(3), Ready Rise(3), Woken Rise(3), Rising Rest, Unclaimed Discard, Adopted Forget
            no annotation: None Rest, Failed Rest, Outdated Discard, Ready Discard, Woken Rise(3), Rising Rest, Unclaimed Discard, Adopted Forget
        "#]]
        .assert_eq(&text);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_is_since_the_last_request_ended() {
        let second = Duration::from_secs(1);
        let mut clock = IdleClock::new(Instant::now());
        let mut idle = Vec::new();
        // One request at the second second that takes until the fourth, one at the seventh,
        // and a proxy that starts anew at the ninth.
        for (carried, under_way) in [
            (5, 0),
            (5, 0),
            (6, 1),
            (6, 1),
            (6, 0),
            (6, 0),
            (6, 0),
            (7, 0),
            (7, 0),
            (0, 0),
            (0, 0),
        ] {
            clock.observe(carried, under_way, Instant::now());
            idle.push(clock.idle_for(Instant::now()).as_secs());
            tokio::time::advance(second).await;
        }
        assert_eq!(idle, [0, 1, 0, 0, 1, 2, 3, 0, 1, 0, 1]);
        clock.touch(Instant::now());
        assert_eq!(clock.idle_for(Instant::now()), Duration::ZERO);
    }
}

//! One member's view of another, second by second.

use super::*;
use expect_test::{Expect, expect};

const OTHER: SiteId = SiteId([7; 16]);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A member whose link is up and who has just heard of another.
struct Case {
    membership: Membership,
    now: Duration,
    log: String,
}

impl Case {
    fn new() -> Self {
        let mut case = Self {
            membership: Membership::new(Timing::default(), Entropy::seeded(1)),
            now: Duration::ZERO,
            log: String::new(),
        };
        case.event(Event::Link(true));
        case.event(Event::Known(OTHER));
        case
    }

    fn event(&mut self, event: Event) -> Vec<Effect> {
        let before = self.state();
        let effects = self.membership.step(self.now, event);
        let after = self.state();
        if before != after
            && let Some(after) = after
        {
            self.log += &format!("{:.3}s {after:?}\n", self.now.as_secs_f64());
        }
        effects
    }

    fn state(&self) -> Option<SiteState> {
        Some(self.membership.peers().get(&OTHER)?.state)
    }

    fn hear(&mut self, incarnation: u64, message: Message) -> Vec<Effect> {
        self.event(Event::Heard {
            from: OTHER,
            incarnation,
            message: Some(message),
        })
    }

    /// Both have started at the same time.
    fn beat_of(&self, revision: u64) -> Message {
        Message::Beat {
            revision,
            uptime_s: self.now.as_secs(),
        }
    }

    fn beat(&mut self, incarnation: u64) -> Vec<Effect> {
        self.hear(incarnation, self.beat_of(0))
    }

    /// Lets time pass; pings are answered after `rtt`, if at all. How many there were.
    fn pass(&mut self, until: Duration, rtt: Option<Duration>) -> usize {
        let mut pings = 0;
        let mut answers: Vec<(Duration, u64)> = Vec::new();
        loop {
            let timer = self.membership.next(self.now);
            let answer = answers.iter().map(|a| a.0).min();
            let at = timer
                .into_iter()
                .chain(answer)
                .min()
                .filter(|at| *at <= until);
            let Some(at) = at else {
                self.now = until;
                return pings;
            };
            self.now = self.now.max(at);
            let mut effects = Vec::new();
            if let Some(i) = answers.iter().position(|a| a.0 <= self.now) {
                let (_, nonce) = answers.remove(i);
                effects.extend(self.hear(1, Message::Pong { nonce, revision: 0 }));
            }
            effects.extend(self.event(Event::Tick));
            for effect in effects {
                if let Effect::Send {
                    message: Message::Ping { nonce, .. },
                    ..
                } = effect
                {
                    pings += 1;
                    answers.extend(rtt.map(|rtt| (self.now + rtt, nonce)));
                }
            }
        }
    }

    fn check(&self, expected: Expect) {
        expected.assert_eq(&self.log);
    }
}

/// A member that has met the other and is answered.
fn met() -> Case {
    let mut case = Case::new();
    case.beat(1);
    case.pass(ms(2000), Some(ms(30)));
    assert_eq!(case.state(), Some(SiteState::Alive));
    case
}

#[test]
fn an_idle_site_is_suspected_then_gone_and_comes_back() {
    let mut case = met();
    case.pass(ms(20_000), None);
    case.beat(1);
    case.pass(ms(120_000), None);
    case.beat(1);
    case.pass(ms(125_000), Some(ms(30)));
    case.check(expect![[r#"
        0.000s Suspect
        1.030s Alive
        65.000s Suspect
        68.000s Gone
        120.000s Suspect
        121.030s Alive
    "#]]);
}

#[test]
fn a_site_with_traffic_is_missed_within_a_second() {
    let mut case = met();
    case.pass(ms(5000), None);
    case.event(Event::Traffic(OTHER));
    let pings = case.pass(ms(8000), Some(ms(30)));
    assert!((15..25).contains(&pings), "{pings}");
    case.event(Event::Traffic(OTHER));
    case.pass(ms(12_000), None);
    case.check(expect![[r#"
           0.000s Suspect
           1.030s Alive
           8.340s Suspect
           8.800s Gone
    "#]]);
    // Without traffic it costs nothing.
    let mut case = met();
    let measuring = case.pass(ms(10_000), Some(ms(30)));
    assert!(measuring <= usize::from(MEASURED_MIN), "{measuring}");
    assert_eq!(case.pass(ms(40_000), Some(ms(30))), 0);
}

#[test]
fn the_way_is_as_long_as_the_quickest_answers() {
    let mut case = Case::new();
    case.beat(1);
    // Both are busy when they meet.
    case.pass(ms(1100), Some(ms(80)));
    assert_eq!(case.membership.peers()[&OTHER].rtt, Some(ms(80)));
    case.pass(ms(8000), Some(ms(10)));
    assert_eq!(case.membership.peers()[&OTHER].rtt, Some(ms(10)));
    case.event(Event::Traffic(OTHER));
    case.pass(ms(8300), Some(ms(90)));
    let rtt = case.membership.peers()[&OTHER].rtt.unwrap();
    assert!(ms(10) < rtt && rtt < ms(40), "{rtt:?}");
}

#[test]
fn a_slow_line_is_given_its_round_trips() {
    let mut case = Case::new();
    case.beat(1);
    case.pass(ms(2500), Some(ms(900)));
    case.event(Event::Traffic(OTHER));
    case.pass(ms(9000), Some(ms(900)));
    assert_eq!(case.state(), Some(SiteState::Alive));
    let rtt = case.membership.peers()[&OTHER].rtt.unwrap();
    assert_eq!(rtt, ms(900));
    case.check(expect![[r#"
           0.000s Suspect
           1.900s Alive
    "#]]);
}

#[test]
fn its_own_lost_link_makes_suspects_before_anyone_is_gone() {
    let mut case = met();
    case.pass(ms(5000), None);
    case.event(Event::Link(false));
    case.pass(ms(9000), None);
    case.event(Event::Link(true));
    case.pass(ms(12_000), Some(ms(30)));
    case.event(Event::Link(false));
    case.pass(ms(40_000), None);
    case.check(expect![[r#"
        0.000s Suspect
        1.030s Alive
        5.000s Suspect
        10.030s Alive
        12.000s Suspect
        22.000s Gone
    "#]]);
}

#[test]
fn what_was_recorded_makes_nobody_alive() {
    let mut case = met();
    case.pass(ms(120_000), None);
    assert_eq!(case.state(), Some(SiteState::Gone));
    // Beats of an attacker's, or of a site that hears nothing: nobody answers.
    for i in 0..60 {
        case.beat(1);
        case.hear(
            1,
            Message::Pong {
                nonce: i,
                revision: 0,
            },
        );
        case.pass(ms(121_000 + i * 500), None);
        assert_ne!(case.state(), Some(SiteState::Alive));
    }
}

#[test]
fn a_beat_that_was_held_back_is_no_sign_of_life() {
    let mut case = met();
    case.pass(ms(20_000), None);
    case.beat(1);
    let held_back = case.beat_of(0);
    case.pass(ms(60_000), None);
    case.hear(1, held_back.clone());
    case.pass(ms(66_000), None);
    case.hear(1, held_back);
    case.pass(ms(80_000), None);
    case.check(expect![[r#"
        0.000s Suspect
        1.030s Alive
        65.000s Suspect
        68.000s Gone
    "#]]);
}

#[test]
fn leaving_is_believed_at_once_and_returning_has_to_answer() {
    let mut case = met();
    case.hear(1, Message::Bye);
    case.pass(ms(4000), Some(ms(30)));
    case.beat(2);
    case.pass(ms(5000), None);
    case.beat(1);
    case.check(expect![[r#"
           0.000s Suspect
           1.030s Alive
           2.000s Left
           4.000s Suspect
    "#]]);
}

#[test]
fn state_is_fetched_when_a_beat_tells_of_more() {
    let mut case = met();
    let fetches = |effects: Vec<Effect>| {
        effects.iter().any(|e| {
            matches!(
                e,
                Effect::Send {
                    message: Message::Fetch { since: 0 },
                    ..
                }
            )
        })
    };
    assert!(fetches(case.hear(1, case.beat_of(3))));
    assert!(!fetches(case.hear(1, case.beat_of(3))));
    case.now += FETCH_AGAIN;
    assert!(fetches(case.event(Event::Tick)));
    let delta = Delta {
        from: 0,
        to: 3,
        latest: 3,
        entries: vec![("a".into(), Some(Bytes::from_static(b"1")))],
    };
    assert!(
        case.hear(1, Message::Delta(delta))
            .contains(&Effect::Changed)
    );
    case.now += FETCH_AGAIN * 2;
    assert!(!fetches(case.event(Event::Tick)));
    assert_eq!(case.membership.peers()[&OTHER].copy.entries().len(), 1);
}

#[test]
fn an_idle_day_is_cheap() {
    let mut membership = Membership::new(Timing::default(), Entropy::seeded(1));
    membership.step(Duration::ZERO, Event::Link(true));
    let (mut now, mut beats) = (Duration::ZERO, 0u32);
    while now < Duration::from_secs(86_400) {
        now = membership.next(now).unwrap();
        beats += membership.step(now, Event::Tick).len() as u32;
    }
    // With NATS' own line, TLS, TCP and IP a beat is about 220 bytes, and NATS pings every
    // 30 s with 80 bytes and answers as often.
    let bytes = beats * 220 + 2 * 2880 * 80;
    assert!(bytes < 2_000_000, "{beats} beats, {bytes} bytes");
}

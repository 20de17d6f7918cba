//! One member's view of another, second by second.

use super::peer::{FETCH_AGAIN, MEASURED_MIN};
use super::*;
use crate::message::Called;
use expect_test::{Expect, expect};
use std::collections::BTreeSet;

const OWN: SiteId = SiteId([1; 16]);
const OTHER: SiteId = SiteId([7; 16]);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The answer of a site that has started at the same time.
fn pong(now: Duration, nonce: u64) -> Message {
    Message::Pong {
        nonce,
        revision: 0,
        uptime_s: now.as_secs(),
    }
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
            membership: Membership::new(OWN, false, Timing::default(), Entropy::seeded(1)),
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
            hub: false,
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
            let timer = self.membership.next();
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
                effects.extend(self.hear(1, pong(self.now, nonce)));
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

/// Whoever comes is told by a hub of those that it can't meet any more.
#[test]
fn one_that_comes_hears_of_those_that_are_gone() {
    let mut case = Case::new();
    case.membership = Membership::new(OWN, true, Timing::default(), Entropy::seeded(1));
    case.event(Event::Link(true));
    let third = SiteId([9; 16]);
    case.event(Event::Known(third));
    let members = |effects: &[Effect]| {
        let told = effects.iter();
        told.filter(|e| matches!(e, Effect::Members { .. })).count()
    };
    let come = |case: &mut Case, incarnation| {
        let mut effects = case.beat(incarnation);
        effects.extend(case.event(Event::Tick));
        let ping = effects.iter().find_map(|e| match e {
            Effect::Send {
                site,
                message: Message::Ping { nonce, .. },
            }
            | Effect::Tell {
                site,
                message: Message::Ping { nonce, .. },
            } if *site == OTHER => Some(*nonce),
            _ => None,
        });
        let nonce = ping.expect("it is asked");
        effects.extend(case.hear(incarnation, pong(case.now, nonce)));
        effects
    };
    case.event(Event::Known(OTHER));
    // The third may be there yet.
    assert_eq!(members(&come(&mut case, 1)), 0);
    case.pass(ms(100_000), None);
    assert_eq!(members(&come(&mut case, 2)), 1);
}

/// In a crowd a site is alive by another's word; who may be asked for a Service is measured.
#[test]
fn one_that_was_never_asked_is_measured_when_it_matters() {
    let mut peer = Peer::new(Duration::ZERO);
    peer.wait(ms(60_000), ms(1000));
    let word = Called {
        site: OTHER,
        incarnation: 1,
        revision: 0,
        uptime_s: 0,
        gone_s: None,
    };
    assert!(peer.take_word(ms(10), &word, ms(20), ms(60_000)));
    assert_eq!((peer.state, peer.rtt), (SiteState::Alive, None));
    let asked = |peer: &mut Peer, now| {
        let (timing, silence) = (Timing::default(), ms(3_600_000));
        peer.tend(now, &timing, silence, true, false, Link::Up).ping
    };
    assert!(!asked(&mut peer, ms(30)), "nobody wants to know");
    peer.measure(ms(40));
    assert!(asked(&mut peer, ms(40)));
    peer.asked(ms(40), 7);
    assert!(peer.answered(ms(50), 7, 0));
    assert_eq!(peer.rtt, Some(ms(10)));
    peer.measure(ms(60));
    assert!(!asked(&mut peer, ms(60)), "it is known");
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
        case.hear(1, pong(case.now, i));
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
fn an_answer_that_was_held_back_is_no_sign_of_life() {
    let mut case = met();
    case.pass(ms(5000), None);
    let asked = case.event(Event::Traffic(OTHER));
    let nonce = asked.iter().find_map(|e| match e {
        Effect::Send {
            message: Message::Ping { nonce, .. },
            ..
        } => Some(*nonce),
        _ => None,
    });
    case.pass(ms(17_000), None);
    assert_eq!(case.state(), Some(SiteState::Gone));
    case.hear(1, pong(case.now, nonce.unwrap_or_default()));
    assert_eq!(case.state(), Some(SiteState::Suspect));
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

/// Bytes of one message on the wire, with NATS' own line, TLS, TCP and IP; and of the
/// acknowledgement of what came in without an answer.
const BEAT_BYTES: u64 = 220;
const PING_BYTES: u64 = 210;
const ACK_BYTES: u64 = 52;
/// NATS is pinged every 30 s, and its answer acknowledged.
const NATS_BYTES: u64 = 2880 * (80 + ACK_BYTES);

/// Parts of a day, of which one is looked at.
const PARTS: u64 = 4;

/// What one idle site sends in a day, in bytes, and how many heartbeats it hears: a lattice of
/// sites that have met long ago.
fn idle_day(others: u16) -> (u64, u64) {
    let id = |i: u16| {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&i.to_be_bytes());
        SiteId(id)
    };
    let own = id(others / 2);
    let mut membership = Membership::new(own, false, Timing::default(), Entropy::seeded(1));
    let mut entropy = Entropy::seeded(2);
    membership.step(Duration::ZERO, Event::Link(true));
    let peers: Vec<SiteId> = (0..=others).map(id).filter(|i| *i != own).collect();
    let mut answers: Vec<(Duration, SiteId, u64)> = Vec::new();
    let between = if others > 3 {
        HEARD_EVERY * u32::from(others)
    } else {
        membership.timing.beat
    };
    let mut beats: BTreeMap<(Duration, SiteId), ()> = BTreeMap::new();
    for site in &peers {
        membership.step(Duration::ZERO, Event::Known(*site));
        let at = Duration::from_millis(entropy.below(between.as_millis() as u64));
        beats.insert((at, *site), ());
        // All have met before the day begins.
        let hello = Message::Beat {
            revision: 0,
            uptime_s: 0,
            hub: false,
        };
        let heard = |message| Event::Heard {
            from: *site,
            incarnation: 1,
            message: Some(message),
        };
        membership.step(Duration::ZERO, heard(hello));
    }
    let (mut sent, mut heard, mut asked) = (NATS_BYTES / PARTS, 0, Duration::ZERO);
    let start = Duration::from_secs(3600);
    let end = start + Duration::from_secs(86_400 / PARTS);
    let mut now = Duration::ZERO;
    loop {
        let timers = [
            membership.next(),
            answers.iter().map(|a| a.0).min(),
            beats.first_key_value().map(|((at, _), ())| *at),
            (others > 3).then_some(asked),
        ];
        now = now.max(timers.into_iter().flatten().min().unwrap());
        if now >= end {
            return (sent * PARTS, heard * PARTS);
        }
        let counted = now >= start;
        let event = |from, message| Event::Heard {
            from,
            incarnation: 1,
            message: Some(message),
        };
        let mut effects = Vec::new();
        if let Some(i) = answers.iter().position(|a| a.0 <= now) {
            let (_, from, nonce) = answers.swap_remove(i);
            effects.extend(membership.step(now, event(from, pong(now, nonce))));
            sent += if counted { ACK_BYTES } else { 0 };
        } else if let Some(((at, from), ())) = beats.first_key_value().map(|(k, v)| (*k, *v))
            && at <= now
        {
            beats.remove(&(at, from));
            beats.insert((at + between, from), ());
            let uptime_s = now.as_secs();
            let beat = Message::Beat {
                revision: 0,
                uptime_s,
                hub: false,
            };
            effects.extend(membership.step(now, event(from, beat)));
            heard += u64::from(counted);
            sent += if counted { ACK_BYTES } else { 0 };
        } else if others > 3 && asked <= now {
            // The site before it in the circle looks after it.
            asked = now + membership.timing.look;
            let ping = Message::Ping {
                nonce: 1,
                revision: 0,
            };
            let before = peers[usize::from(others / 2) - 1];
            effects.extend(membership.step(now, event(before, ping)));
        }
        effects.extend(membership.step(now, Event::Tick));
        for effect in effects {
            let bytes = match effect {
                Effect::Send { site, message } => {
                    if let Message::Ping { nonce, .. } = message {
                        answers.push((now + ms(30), site, nonce));
                    }
                    PING_BYTES
                }
                Effect::Changed => 0,
                _ => BEAT_BYTES,
            };
            sent += if counted { bytes } else { 0 };
        }
    }
}

#[test]
fn an_idle_day_is_cheap_in_a_lattice_of_any_size() {
    let mut text = String::new();
    for sites in [3, 4, 5, 10, 100, 1000] {
        let (sent, heard) = idle_day(sites - 1);
        assert!(sent < 2_000_000, "{sites} sites: {sent} bytes");
        // As much is heard of a thousand as of four.
        assert!(heard < 13_000, "{sites} sites: {heard} heartbeats");
        text += &format!("{sites} sites: {} kB, hears {heard}\n", sent / 1000);
    }
    expect![[r#"
        3 sites: 1651 kB, hears 7856
        4 sites: 1857 kB, hears 11784
        5 sites: 1830 kB, hears 7200
        10 sites: 1610 kB, hears 7200
        100 sites: 1459 kB, hears 7180
        1000 sites: 1441 kB, hears 7096
    "#]]
    .assert_eq(&text);
}

/// A member in a circle of twelve that all live.
fn circle() -> (Membership, Vec<SiteId>) {
    let sites: Vec<SiteId> = (2..13).map(|i| SiteId([i; 16])).collect();
    let mut membership = Membership::new(OWN, false, Timing::default(), Entropy::seeded(1));
    membership.step(Duration::ZERO, Event::Link(true));
    for site in &sites {
        membership.step(Duration::ZERO, Event::Known(*site));
        let beat = Message::Beat {
            revision: 0,
            uptime_s: 0,
            hub: false,
        };
        heard(&mut membership, Duration::ZERO, *site, beat);
    }
    live(&mut membership, Duration::ZERO, ms(3000), &[]);
    let alive = |s: &SiteId| membership.peers()[s].state == SiteState::Alive;
    assert!(sites.iter().all(alive));
    (membership, sites)
}

fn heard(m: &mut Membership, now: Duration, from: SiteId, message: Message) -> Vec<Effect> {
    let message = Some(message);
    let incarnation = 1;
    m.step(
        now,
        Event::Heard {
            from,
            incarnation,
            message,
        },
    )
}

/// Lets time pass; all but the dead answer at once. What was said but for pings.
fn live(m: &mut Membership, from: Duration, until: Duration, dead: &[SiteId]) -> Vec<Effect> {
    let (mut now, mut said) = (from, Vec::new());
    while let Some(at) = m.next().filter(|at| *at <= until) {
        now = now.max(at);
        let mut effects = m.step(now, Event::Tick);
        while let Some(effect) = effects.pop() {
            match effect {
                Effect::Send {
                    site,
                    message: Message::Ping { nonce, .. },
                } => {
                    if !dead.contains(&site) {
                        effects.extend(heard(m, now, site, pong(now, nonce)));
                    }
                }
                effect => said.push(effect),
            }
        }
    }
    said
}

fn missed(effects: &[Effect]) -> Vec<SiteId> {
    let broadcast = effects.iter().filter_map(|e| match e {
        Effect::Broadcast {
            message: Message::Missed { sites },
            ..
        } => Some(sites.clone()),
        _ => None,
    });
    broadcast.flatten().collect()
}

#[test]
fn who_dies_is_missed_by_the_one_before_it_in_the_circle() {
    let (mut m, sites) = circle();
    // The next two and one further on are dead: the first is found, and then the second.
    let dead = [sites[0], sites[1], sites[5]];
    let said = live(&mut m, ms(3000), ms(86_000), &dead);
    // They are told twice, in case that somebody has not heard.
    let told: BTreeSet<_> = missed(&said).into_iter().collect();
    assert_eq!(told, BTreeSet::from([sites[0], sites[1]]));
    assert_eq!(m.peers()[&sites[0]].state, SiteState::Gone);
    assert_eq!(m.peers()[&sites[5]].state, SiteState::Alive);
    // They are looked for as long as they are away, and told when they are back.
    live(&mut m, ms(86_000), ms(400_000), &dead);
    let said = live(&mut m, ms(400_000), ms(465_000), &dead[2..]);
    let told = said.iter().filter(|e| {
        matches!(e, Effect::Tell { site, message: Message::Missed { .. } } if dead[..2].contains(site))
    });
    assert_eq!(told.count(), 2, "{said:?}");
}

#[test]
fn who_is_missed_is_asked_before_it_is_believed() {
    let (mut m, sites) = circle();
    let (dead, lives) = (sites[5], sites[6]);
    live(&mut m, ms(3000), ms(31_000), &[dead]);
    let rumour = || Message::Missed {
        sites: vec![dead, lives, OWN],
    };
    let said = heard(&mut m, ms(31_000), sites[9], rumour());
    let beats = |said: &[Effect]| {
        let beat = |e: &&Effect| {
            matches!(
                e,
                Effect::Broadcast {
                    message: Message::Beat { .. },
                    ..
                }
            )
        };
        said.iter().filter(beat).count()
    };
    // Missed itself, it says that it is here; once.
    assert_eq!(beats(&said), 1);
    assert_eq!(beats(&heard(&mut m, ms(32_000), sites[9], rumour())), 0);
    let said = live(&mut m, ms(32_000), ms(38_000), &[dead]);
    assert_eq!(m.peers()[&dead].state, SiteState::Gone);
    assert_eq!(m.peers()[&lives].state, SiteState::Alive);
    // Only who looks after a site tells that it is gone.
    assert_eq!(missed(&said), []);
    // After a false word no further one is believed for a while.
    let again = |said: Vec<Effect>| {
        said.iter()
            .any(|e| matches!(e, Effect::Send { site, .. } if *site == lives))
    };
    let now = ms(40_000);
    let mut said = heard(&mut m, now, sites[9], rumour());
    said.extend(m.step(now + ms(100), Event::Tick));
    assert!(!again(said));
}

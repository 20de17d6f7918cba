//! Who is there: the state machine of heartbeats, probes and copies of others' state. Pure:
//! time comes with each call, and what to do goes out as [`Effect`]s.
//!
//! A site says "here I am" every [`Timing::beat`]; one that has been silent for almost
//! [`Timing::silence`] is asked, then suspected and probed, and without an answer gone after
//! [`Timing::confirm`]. While there is traffic to a site it is pinged every
//! [`Timing::watch`], so that its end is known within a second.
//!
//! With more than [`CIRCLE_MIN`] others that would be too much to hear. Their heartbeats get
//! rarer the more they are, and closer for a while after each change; and each site looks
//! after the next one in the circle of their ids: asks it every [`Timing::look`], and tells
//! all when it is gone, who then ask it themselves. So what a site sends and hears is the same
//! in a lattice of ten and of a thousand.
//!
//! How so many meet is in `crowd`: there, a member's word makes another one alive.
//!
//! Else nobody is alive on the word of a message that could have been recorded or held back: the
//! first sign of life of each incarnation is an answer to a ping of this site's, and further
//! ones are such answers, or heartbeats whose count of seconds goes with the time here.

use crate::crypto::Entropy;
use crate::identity::SiteId;
use crate::message::Message;
use crate::state::{Delta, PublishError, Published};
use bytes::Bytes;
pub(crate) use peer::Peer;
use peer::{Tended, WARDS_MAX};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

/// Deltas broadcast at once; who needs more asks.
const DELTAS_BROADCAST_MAX: usize = 4;
/// Sites remembered to have been asked about; of more, none is asked about until they fade.
const ASKED_MAX: usize = 64;
/// How long until a site is asked about again.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Others up to which all hear all heartbeats as often as [`Timing::beat`] says.
const CIRCLE_MIN: usize = 3;
/// With more others, how often one of their heartbeats is heard: to acknowledge it costs as
/// much as it does to speak, a quarter of the time.
const HEARD_EVERY: Duration = Duration::from_secs(12);
/// By how much longer a site may take to ask another for each that asks it as well, so that
/// it is not asked by a thousand at once.
const SPREAD: Duration = Duration::from_millis(2);
/// Sites that may be asked in a second, when all are suspects.
const ASKED_A_SECOND: u32 = 250;
/// A site that has just said that it is here does not say it again.
const SAID: Duration = Duration::from_secs(5);
/// How long changes are gathered before they are told.
const GATHER: Duration = Duration::from_millis(20);

/// How often and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between heartbeats of an idle site in a small lattice. One costs about 220 bytes on the
    /// wire with TLS: 0.86 MB a day, which stays below 2 MB with the connection's own pings and
    /// what acknowledges those of others.
    pub beat: Duration,
    /// Silence after which an idle site of a small lattice is suspected: two beats. It is asked
    /// before.
    pub silence: Duration,
    /// How long a suspect is probed before it is gone.
    pub confirm: Duration,
    /// Between probes of a suspect.
    pub probe: Duration,
    /// Between pings to a site that traffic goes to.
    pub watch: Duration,
    /// Silence (beyond two round trips) after which such a site is suspected, and after as
    /// much again gone.
    pub watch_silence: Duration,
    /// How long all are suspects, not gone, after this site's own link has broken.
    pub link_grace: Duration,
    /// Between pings to the site that this one looks after, in a larger lattice.
    pub look: Duration,
    /// Silence after which that site is suspected.
    pub look_silence: Duration,
    /// Others up to which each asks each that comes; of more, hubs tell.
    pub crowd: usize,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            beat: Duration::from_secs(22),
            silence: Duration::from_secs(45),
            confirm: Duration::from_secs(3),
            probe: Duration::from_millis(1000),
            watch: Duration::from_millis(150),
            watch_silence: Duration::from_millis(400),
            link_grace: Duration::from_secs(10),
            look: Duration::from_secs(60),
            look_silence: Duration::from_secs(75),
            crowd: 24,
        }
    }
}

/// Whether a site can be reached over the lattice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteState {
    /// It answers.
    Alive,
    /// It is silent, or has not answered yet.
    Suspect,
    /// It does not answer.
    Gone,
    /// It said that it leaves.
    Left,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Time has passed.
    Tick,
    /// This site's own link is up, or is not.
    Link(bool),
    /// A member's certificate came in.
    Known(SiteId),
    /// Those of many did at once.
    Introduced(Vec<SiteId>),
    /// A site is a member no more.
    Revoked(SiteId),
    /// A member said something, or something that is not for here (a stream's).
    Heard {
        from: SiteId,
        incarnation: u64,
        message: Option<Message>,
    },
    /// Something came from a site whose certificate is not known.
    Stranger(SiteId),
    /// There is traffic to a site.
    Traffic(SiteId),
    /// Somebody wants to know how far a site is.
    Measure(SiteId),
    /// This site leaves.
    Leave,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Say it to all, with this site's certificate or without.
    Broadcast { message: Message, introduce: bool },
    /// Say it by group message, with the certificate, to one.
    Tell { site: SiteId, message: Message },
    /// Say it by pair message.
    Send { site: SiteId, message: Message },
    /// Say it to the hubs, with the certificate.
    Report { message: Message },
    /// Tell one whom this site knows.
    Members { site: SiteId },
    /// Somebody's state or its standing has changed.
    Changed,
}

/// This site's own link to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Up,
    /// Since when.
    Lost(Duration),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Membership {
    own: SiteId,
    timing: Timing,
    entropy: Entropy,
    peers: BTreeMap<SiteId, Peer>,
    /// When one of them is due at the earliest.
    peers_due: Option<Duration>,
    /// How many of them are there, or may be.
    present: usize,
    published: Published,
    announced: u64,
    announce_at: Option<Duration>,
    beat_at: Option<Duration>,
    /// When it last said to all that it is here.
    beaten: Duration,
    /// Until its next heartbeat; doubles up to what the size of the lattice makes it.
    pace: Duration,
    link: Link,
    hub: bool,
    /// Others that there are, as a hub has said.
    expected: usize,
    /// When it tells the hubs and its neighbours that it is here.
    report_at: Option<Duration>,
    /// When it says so to all if nobody has answered.
    alone_at: Option<Duration>,
    /// When it asks who is there, and whether it has.
    census_at: Option<Duration>,
    census_asked: bool,
    census_again: Duration,
    /// Who has come and is to be told of, and when.
    call: BTreeSet<SiteId>,
    call_at: Option<Duration>,
    /// Who has asked who is there, and when some get their answers.
    censuses: BTreeMap<SiteId, u64>,
    answer_at: Option<Duration>,
    asked: BTreeMap<SiteId, Duration>,
    left: bool,
    out: Vec<Effect>,
}

impl Membership {
    pub(crate) fn new(own: SiteId, hub: bool, timing: Timing, entropy: Entropy) -> Self {
        Self {
            own,
            timing,
            entropy,
            peers: BTreeMap::new(),
            peers_due: None,
            present: 0,
            published: Published::default(),
            announced: 0,
            announce_at: None,
            beat_at: None,
            beaten: Duration::ZERO,
            pace: timing.beat,
            link: Link::Lost(Duration::ZERO),
            hub,
            expected: 0,
            report_at: None,
            alone_at: None,
            census_at: None,
            census_asked: false,
            census_again: crowd::CENSUS_AGAIN,
            call: BTreeSet::new(),
            call_at: None,
            censuses: BTreeMap::new(),
            answer_at: None,
            asked: BTreeMap::new(),
            left: false,
            out: Vec::new(),
        }
    }

    pub(crate) fn peers(&self) -> &BTreeMap<SiteId, Peer> {
        &self.peers
    }

    /// Whether another's word counts.
    pub(crate) fn believes(&self, site: SiteId) -> bool {
        self.peers.get(&site).is_some_and(|p| p.proven)
    }

    /// Sets values of this site's state; the others are told soon.
    pub(crate) fn publish(
        &mut self,
        now: Duration,
        key: &str,
        value: Option<Bytes>,
    ) -> Result<(), PublishError> {
        if self.published.set(key, value)? {
            self.announce_at.get_or_insert(now + GATHER);
        }
        Ok(())
    }

    /// When [`Event::Tick`] is due.
    pub(crate) fn next(&self) -> Option<Duration> {
        if self.left {
            return None;
        }
        let due = [
            self.beat_at,
            self.announce_at,
            self.peers_due,
            self.report_at,
            self.alone_at,
            self.census_at,
            self.call_at,
            self.answer_at,
        ];
        due.into_iter().flatten().min()
    }

    pub(crate) fn step(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        if self.left {
            return Vec::new();
        }
        // What looks at all of a thousand others is not done for each message of one.
        let mut touched = None;
        match event {
            Event::Tick => {}
            Event::Link(up) => self.link(now, up),
            Event::Known(site) => {
                self.known(now, site);
                touched = Some(site);
            }
            Event::Introduced(sites) => {
                for site in sites {
                    self.known(now, site);
                }
                self.peers_due = Some(now);
            }
            Event::Revoked(site) => {
                if self.peers.remove(&site).is_some() {
                    self.changed();
                    self.arrange(now);
                }
            }
            Event::Heard {
                from,
                incarnation,
                message,
            } => {
                self.heard(now, from, incarnation, message);
                touched = Some(from);
            }
            Event::Stranger(site) => self.stranger(now, site),
            Event::Traffic(site) => {
                self.traffic(now, site);
                touched = Some(site);
            }
            Event::Measure(site) => {
                if let Some(peer) = self.peers.get_mut(&site) {
                    peer.measure(now);
                }
                touched = Some(site);
            }
            Event::Leave => {
                let message = Message::Bye;
                self.broadcast(message, false);
                self.left = true;
            }
        }
        if !self.left {
            self.tick(now, touched);
        }
        std::mem::take(&mut self.out)
    }

    fn broadcast(&mut self, message: Message, introduce: bool) {
        self.out.push(Effect::Broadcast { message, introduce });
    }

    fn changed(&mut self) {
        if !self.out.contains(&Effect::Changed) {
            self.out.push(Effect::Changed);
        }
    }

    pub(crate) fn beat(&self, now: Duration) -> Message {
        Message::Beat {
            revision: self.published.revision(),
            uptime_s: now.as_secs(),
            hub: self.hub,
        }
    }

    fn link(&mut self, now: Duration, up: bool) {
        if up == (self.link == Link::Up) {
            return;
        }
        self.peers_due = Some(now);
        if !up {
            self.link = Link::Lost(now);
            self.beat_at = None;
            (self.report_at, self.alone_at, self.census_at) = (None, None, None);
            (self.call_at, self.answer_at) = (None, None);
            self.call.clear();
            self.censuses.clear();
            for peer in self.peers.values_mut() {
                if peer.state == SiteState::Alive {
                    peer.turn(now, SiteState::Suspect);
                }
            }
            self.changed();
            return;
        }
        self.link = Link::Up;
        self.pace = self.beat_min();
        if self.crowded() && !self.hub {
            self.arrive(now);
            return;
        }
        self.say(now, true);
        // Whoever was a suspect for the lost link's sake has its time to answer.
        for peer in self.peers.values_mut() {
            if peer.state == SiteState::Suspect {
                peer.grace = now + self.timing.link_grace;
                peer.ping_at = Some(now + spread(&mut self.entropy, self.present));
            } else {
                peer.tell(now);
            }
        }
    }

    /// Says to all that this site is here.
    fn say(&mut self, now: Duration, introduce: bool) {
        let message = self.beat(now);
        self.broadcast(message, introduce);
        self.beaten = now;
        self.beat_at = Some(now + self.interval());
    }

    /// A time of a small lattice, by as much longer as this one's heartbeats are rarer.
    fn stretch(&self, of: Duration) -> Duration {
        if self.present <= CIRCLE_MIN {
            return of;
        }
        let others = u32::try_from(self.present).unwrap_or(u32::MAX);
        let between = HEARD_EVERY.saturating_mul(others);
        of.mul_f64(between.div_duration_f64(self.timing.beat))
    }

    fn interval(&mut self) -> Duration {
        let (least, most) = (self.beat_min(), self.stretch(self.timing.beat));
        let beat = self.pace.min(most).max(least).as_millis() as u64;
        self.pace = self.pace.max((self.pace * 2).min(most));
        let jitter = self.entropy.below(beat / 5 + 1);
        Duration::from_millis(beat - beat / 10 + jitter)
    }

    /// After a change: what was lost of it on the way is told by the next heartbeats.
    fn hurry(&mut self, now: Duration) {
        self.pace = self.timing.beat;
        let soon = now + self.interval();
        self.beat_at = self.beat_at.map(|at| at.min(soon));
    }

    fn known(&mut self, now: Duration, site: SiteId) {
        self.asked.remove(&site);
        if self.peers.contains_key(&site) {
            return;
        }
        let mut peer = Peer::new(now);
        if self.crowded() && !self.hub {
            // It may have become so only now, and have asked nobody.
            if !self.census_asked && self.link == Link::Up {
                self.census_at.get_or_insert(now + crowd::CENSUS_AGAIN);
            }
            let grace = self.timing.link_grace;
            peer.wait(self.ask_at(now), grace);
        }
        self.peers.insert(site, peer);
        self.changed();
    }

    fn stranger(&mut self, now: Duration, site: SiteId) {
        self.asked.retain(|_, at| now < *at + ASK_AGAIN);
        if self.asked.len() >= ASKED_MAX || self.asked.contains_key(&site) {
            return;
        }
        self.asked.insert(site, now);
        let message = Message::Ask { sites: vec![site] };
        self.out.push(Effect::Tell { site, message });
    }

    fn traffic(&mut self, now: Duration, site: SiteId) {
        let Some(peer) = self.peers.get_mut(&site) else {
            return;
        };
        peer.watch(now);
    }

    fn heard(&mut self, now: Duration, from: SiteId, incarnation: u64, message: Option<Message>) {
        let later = now + spread(&mut self.entropy, self.present);
        // In a crowd a hub asks it, and those next to it do.
        let hub = matches!(message, Some(Message::Beat { hub: true, .. }));
        let waits = self.crowded() && !hub && !self.tells() && !self.is_told(from);
        let ask_at = waits.then(|| self.ask_at(now));
        let grace = self.timing.link_grace;
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        peer.hub |= hub;
        if incarnation < peer.incarnation {
            return;
        }
        let anew = incarnation > peer.incarnation;
        if anew {
            peer.meet(now, incarnation);
            match ask_at {
                Some(ask_at) => peer.wait(ask_at, grace),
                None => peer.ask(later),
            }
        }
        let was_proven = peer.proven;
        let lives = match message {
            Some(Message::Pong {
                nonce, uptime_s, ..
            }) => peer.answered(now, nonce, uptime_s),
            Some(Message::Beat { uptime_s, .. } | Message::Roll { uptime_s, .. }) => {
                peer.is_recent(now, uptime_s)
            }
            _ => false,
        };
        if lives {
            peer.heard(now);
        }
        let shifted = lives && peer.rtt_shifted();
        let (mut told, mut came) = (false, false);
        if lives && peer.proven && peer.state != SiteState::Alive {
            peer.turn(now, SiteState::Alive);
            told = std::mem::take(&mut peer.told_missed);
            came = true;
            self.changed();
        } else if !peer.proven && !matches!(peer.state, SiteState::Alive | SiteState::Suspect) {
            peer.turn(now, SiteState::Suspect);
            match ask_at {
                Some(ask_at) => peer.wait(ask_at, grace),
                None => peer.ask(later),
            }
        }
        if shifted {
            self.changed();
        }
        if came {
            self.came(now, from);
        }
        let proven = self.peers.get(&from).is_some_and(|p| p.proven);
        if self.hub && proven && !was_proven && !self.crowded() {
            self.introduce_gone(from);
        }
        if told {
            // All were told that it is gone, and it may not know that it was.
            let message = Message::Missed { sites: vec![from] };
            self.out.push(Effect::Tell {
                site: from,
                message,
            });
        }
        if anew && !waits {
            // It has started: it may not know of this one.
            let message = self.beat(now);
            self.out.push(Effect::Tell {
                site: from,
                message,
            });
        }
        if let Some(message) = message {
            self.take(now, from, incarnation, message);
        }
    }

    /// One that has come meets those that are there by itself. Of the others it hears only if
    /// somebody tells it.
    fn introduce_gone(&mut self, site: SiteId) {
        let is_gone = |p: &Peer| matches!(p.state, SiteState::Gone | SiteState::Left);
        if self.peers.iter().any(|(id, p)| *id != site && is_gone(p)) {
            self.out.push(Effect::Members { site });
        }
    }

    fn take(&mut self, now: Duration, from: SiteId, incarnation: u64, message: Message) {
        let own = self.published.revision();
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        match message {
            Message::Beat { revision, .. } | Message::Pong { revision, .. } => {
                peer.copy.heard(incarnation, revision);
                // Right after its start a site has not published yet what it will again.
                if now >= peer.met + self.timing.silence && peer.copy.clear_past() {
                    self.changed();
                }
            }
            Message::Delta(delta) => {
                // What was asked for has come; the next page is asked for at once.
                peer.fetch_at = None;
                if peer.copy.apply(incarnation, &delta) {
                    self.changed();
                }
            }
            Message::Bye => {
                // It can't be a recorded one: nothing is taken twice within an incarnation.
                if peer.proven || peer.vouched {
                    peer.turn(now, SiteState::Left);
                    peer.proven = false;
                    peer.vouched = false;
                    self.changed();
                }
            }
            Message::Ping { nonce, revision } => {
                peer.copy.heard(incarnation, revision);
                let message = Message::Pong {
                    nonce,
                    revision: own,
                    uptime_s: now.as_secs(),
                };
                self.out.push(Effect::Send {
                    site: from,
                    message,
                });
            }
            Message::Fetch { since } => {
                let message = Message::Delta(self.published.since(since));
                self.out.push(Effect::Send {
                    site: from,
                    message,
                });
            }
            Message::Ask { .. } => {
                let message = self.beat(now);
                self.out.push(Effect::Tell {
                    site: from,
                    message,
                });
            }
            Message::Missed { sites } => self.missed(now, &sites),
            Message::Census { known } => self.census(now, from, known),
            Message::Roll { last, sites, .. } => self.called(now, from, last, &sites),
            Message::Stale { .. } | Message::Members { .. } | Message::Frame(_) => {}
        }
    }

    /// Somebody has no answer of these: who is not sure of them asks as well.
    fn missed(&mut self, now: Duration, sites: &[SiteId]) {
        for site in sites {
            if *site == self.own && now >= self.beaten + SAID {
                self.pace = self.timing.beat;
                self.say(now, false);
            }
            let later = now + spread(&mut self.entropy, self.present);
            if let Some(peer) = self.peers.get_mut(site)
                && peer.doubt(now, later)
            {
                self.peers_due = Some(now);
            }
        }
    }

    fn tick(&mut self, now: Duration, touched: Option<SiteId>) {
        if self.announce_at.is_some_and(|at| at <= now) {
            self.announce_at = None;
            self.announce();
            self.hurry(now);
        }
        if self.link == Link::Up && self.beat_at.is_some_and(|at| at <= now) {
            self.say(now, false);
        }
        if self.link == Link::Up {
            self.meet_others(now);
        }
        let turned = if self.peers_due.is_some_and(|at| at <= now) {
            self.peers_due = None;
            self.tend(now, (Bound::Unbounded, Bound::Unbounded))
        } else if let Some(site) = touched {
            self.tend(now, (Bound::Included(site), Bound::Included(site)))
        } else {
            false
        };
        if turned {
            self.arrange(now);
        }
    }

    /// Lets time pass for some of the others; whether one turned.
    fn tend(&mut self, now: Duration, which: (Bound<SiteId>, Bound<SiteId>)) -> bool {
        let revision = self.published.revision();
        let circle = self.present > CIRCLE_MIN;
        let silence = self.stretch(self.timing.silence);
        // A thousand that are asked at once have more time to answer, and are not asked again
        // meanwhile.
        let more = 1 + u32::try_from(self.present).unwrap_or(u32::MAX) / ASKED_A_SECOND;
        let patient = Timing {
            probe: self.timing.probe * more,
            confirm: self.timing.confirm * more,
            ..self.timing
        };
        let (mut changed, mut turned) = (false, false);
        // Looking through all is for when all are looked at.
        let all = which.0 == Bound::Unbounded;
        let teller = all && self.census_asked && self.knows_teller();
        for (site, peer) in self.peers.range_mut(which) {
            let timing = if peer.is_close(now) {
                &self.timing
            } else {
                &patient
            };
            let Tended {
                turned: by_time,
                missed,
                ping,
                wordless,
                fetch,
            } = peer.tend(now, timing, silence, circle, teller, self.link);
            changed |= by_time;
            turned |= std::mem::take(&mut peer.turned);
            let site = *site;
            if missed {
                let message = Message::Missed { sites: vec![site] };
                self.out.push(Effect::Broadcast {
                    message,
                    introduce: false,
                });
            }
            if wordless {
                self.census_at.get_or_insert(now);
            }
            if ping {
                let nonce = u64::from_be_bytes(self.entropy.bytes());
                peer.asked(now, nonce);
                let message = Message::Ping { nonce, revision };
                self.out.push(Effect::Send { site, message });
            }
            if let Some(since) = fetch {
                let message = Message::Fetch { since };
                self.out.push(Effect::Send { site, message });
            }
            let due = peer.due(now, timing, silence, self.link);
            self.peers_due = self.peers_due.into_iter().chain(due).min();
        }
        if changed {
            self.changed();
        }
        turned
    }

    /// Counts who is there, and finds whom this site looks after: the next one in the circle,
    /// and those before it that are gone.
    fn arrange(&mut self, now: Duration) {
        let there = |p: &&Peer| matches!(p.state, SiteState::Alive | SiteState::Suspect);
        self.present = self.peers.values().filter(there).count();
        let mut wards = Vec::new();
        if self.present > CIRCLE_MIN {
            let behind = (Bound::Excluded(self.own), Bound::Unbounded);
            let round = self.peers.range(behind).chain(self.peers.range(..self.own));
            for (site, peer) in round {
                let gone = peer.state == SiteState::Gone;
                if peer.state != SiteState::Left && (!gone || wards.len() + 1 < WARDS_MAX) {
                    wards.push(*site);
                }
                if there(&peer) {
                    break;
                }
            }
        }
        for (site, peer) in &mut self.peers {
            peer.look_after(now, wards.contains(site));
        }
        // In a lattice that has become smaller all are heard more often.
        let most = self.stretch(self.timing.beat).max(self.beat_min());
        if self.beat_at.is_some_and(|at| at > now + most + most / 8) {
            self.beat_at = Some(now + self.interval());
        }
        self.peers_due = Some(now);
    }

    fn announce(&mut self) {
        for _ in 0..DELTAS_BROADCAST_MAX {
            let delta: Delta = self.published.since(self.announced);
            let (to, latest) = (delta.to, delta.latest);
            self.broadcast(Message::Delta(delta), false);
            if to == latest {
                break;
            }
            self.announced = to;
        }
        self.announced = self.published.revision();
    }
}

/// A while, the longer the more others do the same.
fn spread(entropy: &mut Entropy, others: usize) -> Duration {
    if others <= CIRCLE_MIN {
        return Duration::ZERO;
    }
    let most = SPREAD * u32::try_from(others).unwrap_or(u32::MAX);
    Duration::from_millis(entropy.below(most.as_millis() as u64 + 1))
}

mod crowd;
mod peer;

#[cfg(test)]
mod tests;

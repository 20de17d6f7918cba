//! Who is there: the state machine of heartbeats, probes and copies of others' state. Pure:
//! time comes with each call, and what to do goes out as [`Effect`]s.
//!
//! A site says "here I am" every [`Timing::beat`]; one that has been silent for longer than
//! [`Timing::silence`] is suspected and probed, and without an answer gone after
//! [`Timing::confirm`]. While there is traffic to a site it is pinged every
//! [`Timing::watch`], so that its end is known within a second.
//!
//! Nobody is alive on the word of a message that could have been recorded or held back: the
//! first sign of life of each incarnation is an answer to a ping of this site's, and further
//! ones are such answers, or heartbeats whose count of seconds goes with the time here.

use crate::crypto::Entropy;
use crate::identity::SiteId;
use crate::message::Message;
use crate::state::{Copy, Delta, PublishError, Published};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Deltas broadcast at once; who needs more asks.
const DELTAS_BROADCAST_MAX: usize = 4;
/// Sites remembered to have been asked about; of more, none is asked about until they fade.
const ASKED_MAX: usize = 64;
/// How long until a site is asked about again.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How long an answer to a question about state may take.
const FETCH_AGAIN: Duration = Duration::from_secs(2);
/// How long changes are gathered before they are told.
const GATHER: Duration = Duration::from_millis(20);

/// How often and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between heartbeats of an idle site. One costs about 220 bytes on the wire with TLS:
    /// 0.95 MB a day, which with the connection's own pings stays below 2 MB.
    pub beat: Duration,
    /// Silence after which an idle site is suspected: two beats and their jitter.
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
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            beat: Duration::from_secs(20),
            silence: Duration::from_secs(45),
            confirm: Duration::from_secs(3),
            probe: Duration::from_millis(1000),
            watch: Duration::from_millis(150),
            watch_silence: Duration::from_millis(400),
            link_grace: Duration::from_secs(10),
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

/// Another member.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) incarnation: u64,
    pub(crate) state: SiteState,
    /// Since when, as time since this site's start.
    pub(crate) since: Duration,
    pub(crate) rtt: Option<Duration>,
    rtt_shown: Option<Duration>,
    /// How often it was measured in its present incarnation.
    measured: u8,
    pub(crate) copy: Copy,
    heard: Duration,
    /// When its present incarnation was first heard.
    met: Duration,
    /// Whether it has answered a ping in its present incarnation.
    proven: bool,
    /// How much further its count of seconds is than this site's, at most.
    ahead_s: Option<i64>,
    /// Pings without an answer yet: nonce and when. Of more the oldest are forgotten.
    pings: VecDeque<(u64, Duration)>,
    /// A suspect is not given up before this.
    grace: Duration,
    ping_at: Option<Duration>,
    fetch_at: Option<Duration>,
    watched_from: Duration,
    watched_until: Duration,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Membership {
    timing: Timing,
    entropy: Entropy,
    peers: BTreeMap<SiteId, Peer>,
    published: Published,
    announced: u64,
    announce_at: Option<Duration>,
    beat_at: Option<Duration>,
    link: Link,
    asked: BTreeMap<SiteId, Duration>,
    left: bool,
    out: Vec<Effect>,
}

/// Seconds by which a beat may be late and still count.
const HELD_BACK_MAX_S: i64 = 10;
/// How often the round trip to a site that has come is measured: the first takes longer, for
/// both have much to do then.
const MEASURED_MIN: u8 = 4;
/// Pings of a site that may be on their way.
const PINGS_MAX: usize = 16;
/// How long a site that is gone is looked for, and how often.
const LOOKED_FOR: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_secs(5);
/// How long a site stays watched after traffic.
const WATCHED_FOR: Duration = Duration::from_secs(10);

impl Membership {
    pub(crate) fn new(timing: Timing, entropy: Entropy) -> Self {
        Self {
            timing,
            entropy,
            peers: BTreeMap::new(),
            published: Published::default(),
            announced: 0,
            announce_at: None,
            beat_at: None,
            link: Link::Lost(Duration::ZERO),
            asked: BTreeMap::new(),
            left: false,
            out: Vec::new(),
        }
    }

    pub(crate) fn peers(&self) -> &BTreeMap<SiteId, Peer> {
        &self.peers
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
    pub(crate) fn next(&self, now: Duration) -> Option<Duration> {
        if self.left {
            return None;
        }
        let own = [self.beat_at, self.announce_at];
        let peers = self.peers.values();
        let peers = peers.filter_map(|p| p.due(now, &self.timing, self.link));
        own.into_iter().flatten().chain(peers).min()
    }

    pub(crate) fn step(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        if self.left {
            return Vec::new();
        }
        match event {
            Event::Tick => {}
            Event::Link(up) => self.link(now, up),
            Event::Known(site) => self.known(now, site),
            Event::Revoked(site) => {
                if self.peers.remove(&site).is_some() {
                    self.changed();
                }
            }
            Event::Heard {
                from,
                incarnation,
                message,
            } => self.heard(now, from, incarnation, message),
            Event::Stranger(site) => self.stranger(now, site),
            Event::Traffic(site) => self.traffic(now, site),
            Event::Leave => {
                let message = Message::Bye;
                self.broadcast(message, false);
                self.left = true;
            }
        }
        if !self.left {
            self.tick(now);
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
        }
    }

    fn link(&mut self, now: Duration, up: bool) {
        if up == (self.link == Link::Up) {
            return;
        }
        if !up {
            self.link = Link::Lost(now);
            self.beat_at = None;
            for peer in self.peers.values_mut() {
                if peer.state == SiteState::Alive {
                    peer.turn(now, SiteState::Suspect);
                }
            }
            self.changed();
            return;
        }
        self.link = Link::Up;
        let message = self.beat(now);
        self.broadcast(message, true);
        self.beat_at = Some(now + self.interval());
        // Whoever was a suspect for the lost link's sake has its time to answer.
        for peer in self.peers.values_mut() {
            if peer.state == SiteState::Suspect {
                peer.grace = now + self.timing.link_grace;
                peer.ping_at = Some(now);
            }
        }
    }

    fn interval(&mut self) -> Duration {
        let beat = self.timing.beat.as_millis() as u64;
        let jitter = self.entropy.below(beat / 5 + 1);
        Duration::from_millis(beat - beat / 10 + jitter)
    }

    fn known(&mut self, now: Duration, site: SiteId) {
        self.asked.remove(&site);
        if self.peers.contains_key(&site) {
            return;
        }
        self.peers.insert(site, Peer::new(now));
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
        if peer.watched_until <= now {
            peer.watched_from = now;
            peer.ping_at = Some(now);
        }
        peer.watched_until = now + WATCHED_FOR;
    }

    fn heard(&mut self, now: Duration, from: SiteId, incarnation: u64, message: Option<Message>) {
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        if incarnation < peer.incarnation {
            return;
        }
        let anew = incarnation > peer.incarnation;
        if anew {
            peer.incarnation = incarnation;
            peer.proven = false;
            peer.met = now;
            peer.pings.clear();
            peer.measured = 0;
            peer.ahead_s = None;
            peer.ping_at = Some(now);
            if peer.state == SiteState::Alive {
                peer.turn(now, SiteState::Suspect);
            }
        }
        let lives = match message {
            Some(Message::Pong { nonce, .. }) => peer.answered(now, nonce),
            Some(Message::Beat { uptime_s, .. }) => peer.is_recent(now, uptime_s),
            _ => false,
        };
        if lives {
            peer.heard = now;
        }
        let shifted = lives && peer.rtt_shifted();
        if lives && peer.proven && peer.state != SiteState::Alive {
            peer.turn(now, SiteState::Alive);
            self.changed();
        } else if !peer.proven && !matches!(peer.state, SiteState::Alive | SiteState::Suspect) {
            peer.turn(now, SiteState::Suspect);
            peer.ping_at = Some(now);
        }
        if shifted {
            self.changed();
        }
        if anew {
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
                if peer.proven {
                    peer.turn(now, SiteState::Left);
                    peer.proven = false;
                    self.changed();
                }
            }
            Message::Ping { nonce, revision } => {
                peer.copy.heard(incarnation, revision);
                let message = Message::Pong {
                    nonce,
                    revision: own,
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
            Message::Stale { .. } | Message::Frame(_) => {}
        }
    }

    fn tick(&mut self, now: Duration) {
        if self.announce_at.is_some_and(|at| at <= now) {
            self.announce_at = None;
            self.announce();
        }
        if self.link == Link::Up && self.beat_at.is_some_and(|at| at <= now) {
            let message = self.beat(now);
            self.broadcast(message, false);
            self.beat_at = Some(now + self.interval());
        }
        let revision = self.published.revision();
        let mut changed = false;
        for (site, peer) in &mut self.peers {
            changed |= peer.age(now, &self.timing, self.link);
            if self.link != Link::Up {
                continue;
            }
            if peer.ping_at.is_some_and(|at| at <= now) {
                peer.ping_at = peer.next_ping(now, &self.timing);
                if peer.state != SiteState::Left {
                    let nonce = u64::from_be_bytes(self.entropy.bytes());
                    if peer.pings.len() == PINGS_MAX {
                        peer.pings.pop_front();
                    }
                    peer.pings.push_back((nonce, now));
                    self.out.push(Effect::Send {
                        site: *site,
                        message: Message::Ping { nonce, revision },
                    });
                }
            }
            let reachable = peer.state == SiteState::Alive;
            if reachable
                && let Some(since) = peer.copy.wanted()
                && peer.fetch_at.is_none_or(|at| at <= now)
            {
                peer.fetch_at = Some(now + FETCH_AGAIN);
                self.out.push(Effect::Send {
                    site: *site,
                    message: Message::Fetch { since },
                });
            }
        }
        if changed {
            self.changed();
        }
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

impl Peer {
    fn new(now: Duration) -> Self {
        Self {
            incarnation: 0,
            state: SiteState::Suspect,
            since: now,
            rtt: None,
            rtt_shown: None,
            measured: 0,
            copy: Copy::default(),
            heard: now,
            met: now,
            proven: false,
            ahead_s: None,
            pings: VecDeque::new(),
            grace: Duration::ZERO,
            ping_at: Some(now),
            fetch_at: None,
            watched_from: Duration::ZERO,
            watched_until: Duration::ZERO,
        }
    }

    fn turn(&mut self, now: Duration, state: SiteState) {
        self.state = state;
        self.since = now;
    }

    /// Takes an answer; whether it was waited for.
    fn answered(&mut self, now: Duration, nonce: u64) -> bool {
        let Some(at) = self.pings.iter().position(|(n, _)| *n == nonce) else {
            return false;
        };
        // Older ones are not waited for: they are lost, or their answers are.
        let sample = now.saturating_sub(self.pings[at].1);
        self.pings.drain(..=at);
        self.proven = true;
        // What it counts from now on is compared to its next beat.
        self.ahead_s = None;
        self.measured = self.measured.saturating_add(1);
        // What takes longer says more of how busy both are than of the way: it counts less.
        let down = |rtt: Duration| {
            if sample < rtt {
                sample
            } else {
                (rtt * 7 + sample) / 8
            }
        };
        self.rtt = Some(self.rtt.map_or(sample, down));
        true
    }

    /// Whether the round trip has become another since it was last shown.
    fn rtt_shifted(&mut self) -> bool {
        let (shown, now) = (self.rtt_shown, self.rtt);
        let shifted = match (shown, now) {
            (Some(shown), Some(now)) => now.abs_diff(shown) > shown / 4,
            (shown, now) => shown != now,
        };
        if shifted {
            self.rtt_shown = now;
        }
        shifted
    }

    /// Whether a beat is of now. If it seems not to be, the site is asked: its count of
    /// seconds may have stood still while it slept.
    fn is_recent(&mut self, now: Duration, uptime_s: u64) -> bool {
        let ahead = i64::try_from(uptime_s).unwrap_or(i64::MAX) - now.as_secs() as i64;
        let most = self.ahead_s.map_or(ahead, |most| most.max(ahead));
        if ahead < most - HELD_BACK_MAX_S {
            self.ping_at.get_or_insert(now);
            return false;
        }
        self.ahead_s = Some(most);
        true
    }

    fn watched(&self, now: Duration) -> bool {
        self.watched_until > now
    }

    /// How long a watched site may be silent.
    fn patience(&self, timing: &Timing) -> Duration {
        timing.watch_silence + self.rtt.unwrap_or_default() * 2
    }

    /// When it is suspected or given up if it stays silent.
    fn turns_at(&self, now: Duration, timing: &Timing, link: Link) -> Option<Duration> {
        let watched = self.watched(now);
        match self.state {
            SiteState::Alive if watched => {
                Some(self.heard.max(self.watched_from) + self.patience(timing))
            }
            SiteState::Alive => Some(self.heard + timing.silence),
            SiteState::Suspect => {
                let at = match link {
                    Link::Lost(at) => self.since.max(at) + timing.link_grace,
                    Link::Up if watched && self.proven => {
                        self.since.max(self.watched_from) + self.patience(timing)
                    }
                    Link::Up => self.since.max(self.heard) + timing.confirm,
                };
                Some(at.max(self.grace))
            }
            SiteState::Gone | SiteState::Left => None,
        }
    }

    /// Lets time pass; whether it turned.
    fn age(&mut self, now: Duration, timing: &Timing, link: Link) -> bool {
        let mut turned = false;
        while self.turns_at(now, timing, link).is_some_and(|at| at <= now) {
            turned = true;
            if self.state == SiteState::Alive {
                self.turn(now, SiteState::Suspect);
                self.ping_at = Some(now);
            } else {
                self.turn(now, SiteState::Gone);
                // When it is heard again it has to answer first.
                self.proven = false;
            }
        }
        if self.ping_at.is_none() && self.watched(now) {
            self.ping_at = self.next_ping(now, timing);
        }
        turned
    }

    fn next_ping(&self, now: Duration, timing: &Timing) -> Option<Duration> {
        match self.state {
            SiteState::Left => None,
            SiteState::Gone if self.watched(now) => Some(now + timing.probe),
            SiteState::Gone => (now < self.since + LOOKED_FOR).then(|| now + LOOK),
            _ if self.watched(now) => Some(now + timing.watch),
            SiteState::Suspect => Some(now + timing.probe),
            SiteState::Alive => (self.measured < MEASURED_MIN).then(|| now + timing.probe),
        }
    }

    /// When time has something to say about it.
    fn due(&self, now: Duration, timing: &Timing, link: Link) -> Option<Duration> {
        let turns = self.turns_at(now, timing, link);
        let up = link == Link::Up;
        let ping = self.ping_at.filter(|_| up);
        let fetching = up && self.state == SiteState::Alive && self.copy.wanted().is_some();
        let fetch = self.fetch_at.filter(|_| fetching);
        [turns, fetch, ping].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests;

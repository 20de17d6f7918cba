//! A site of the lattice without keys, for simulations of what is built on it by thousands:
//! the membership as it is, and around it what `member` and `keyring` do with envelopes (who
//! may speak, what is taken once, who is behind), told by plain fields instead of seals.
//! What seals keep is simulated with the real ones in `member::simulation`.
//!
//! Start with [`Machine::step`].

use crate::crypto::Entropy;
use crate::identity::SiteId;
use crate::membership::{Effect, Event, Membership, SiteState, Timing};
use crate::message::Message;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How long until the same site is told the same again.
const TELL_AGAIN: Duration = Duration::from_secs(2);
/// Numbers of a sender that are remembered.
const WINDOW: usize = 128;

/// Who are members, as the root says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Grows with each revocation.
    pub epoch: u64,
    /// Who is out.
    pub revoked: BTreeSet<SiteId>,
}

/// What a site writes down.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// How often it has started.
    pub incarnation: u64,
    /// Whose certificates it has.
    pub members: BTreeSet<SiteId>,
    /// The epoch.
    pub record: Record,
}

/// What goes over the wire.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// Whom it is for; nobody is all.
    pub to: Option<SiteId>,
    /// Whether it is for hubs only.
    pub hubs: bool,
    from: SiteId,
    body: Body,
}

#[derive(Clone, Debug)]
enum Body {
    Group {
        epoch: u64,
        incarnation: u64,
        number: u64,
        introduce: bool,
        message: Message,
    },
    Pair {
        incarnation: u64,
        theirs: u64,
        number: u64,
        message: Message,
    },
    /// The root's word on who are members.
    Members {
        incarnation: u64,
        theirs: Option<u64>,
        number: u64,
        sites: Vec<SiteId>,
    },
    /// What makes a member, by the root's word: whoever carries it.
    Welcome(Record),
}

/// What comes in.
#[derive(Debug)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// The link is up, or is not.
    Link(bool),
    /// An envelope.
    Received(Envelope),
    /// There is traffic to a site.
    Traffic(SiteId),
    /// At the hub: a site is out.
    Revoke(SiteId),
    /// The site leaves for now.
    Leave,
}

/// Another site, as it is seen from here.
#[derive(Debug)]
pub struct Seen {
    /// Whether it can be reached.
    pub state: SiteState,
    /// The round trip.
    pub rtt: Option<Duration>,
    /// What it tells.
    pub entries: Arc<BTreeMap<String, Bytes>>,
}

#[derive(Debug, Default)]
struct Sender {
    incarnation: u64,
    group: BTreeSet<u64>,
    pair: BTreeSet<u64>,
}

/// See the module.
#[derive(Debug)]
pub struct Machine {
    own: SiteId,
    disk: Disk,
    out_of_it: bool,
    link: bool,
    membership: Membership,
    entropy: Entropy,
    senders: BTreeMap<SiteId, Sender>,
    sent: u64,
    told: BTreeMap<SiteId, Duration>,
    /// What others say of how often one has started.
    claims: BTreeMap<SiteId, u64>,
    /// Who was introduced and is not handed on.
    new: BTreeSet<SiteId>,
    out: Vec<Envelope>,
}

impl Machine {
    /// Starts once more, which the disk has to count before. In more than `crowd` others hubs
    /// tell who comes.
    pub fn new(own: SiteId, hub: bool, crowd: usize, seed: u64, disk: Disk) -> Self {
        let timing = Timing {
            crowd,
            ..Timing::default()
        };
        let membership = Membership::new(own, hub, timing, Entropy::seeded(seed));
        let mut machine = Self {
            own,
            out_of_it: disk.record.revoked.contains(&own),
            disk,
            link: false,
            membership,
            entropy: Entropy::seeded(!seed),
            senders: BTreeMap::new(),
            sent: 0,
            told: BTreeMap::new(),
            claims: BTreeMap::new(),
            new: BTreeSet::new(),
            out: Vec::new(),
        };
        let members: Vec<SiteId> = machine.disk.members.iter().copied().collect();
        for site in members {
            machine.tell(Duration::ZERO, Event::Known(site));
        }
        machine
    }

    /// What is written down.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Whether it was told that it is out.
    pub fn is_revoked(&self) -> bool {
        self.out_of_it
    }

    /// When [`Input::Tick`] is due.
    pub fn next(&self) -> Option<Duration> {
        self.membership.next().filter(|_| !self.out_of_it)
    }

    /// Sets a value of its state.
    pub fn publish(&mut self, now: Duration, key: &str, value: Option<Bytes>) {
        let set = self.membership.publish(now, key, value);
        set.expect("a value of a simulation is small");
    }

    /// Others, as they are seen from here.
    pub fn seen(&self) -> impl Iterator<Item = (SiteId, Seen)> {
        let seen = |(id, peer): (&SiteId, &crate::membership::Peer)| {
            let seen = Seen {
                state: peer.state,
                rtt: peer.rtt,
                entries: Arc::clone(peer.copy.entries()),
            };
            (*id, seen)
        };
        let peers = self.membership.peers().iter();
        peers.filter(|_| !self.out_of_it).map(seen)
    }

    /// Takes something in; what goes out.
    pub fn step(&mut self, now: Duration, input: Input) -> Vec<Envelope> {
        if self.out_of_it {
            return Vec::new();
        }
        match input {
            Input::Tick => self.tell(now, Event::Tick),
            Input::Link(up) => {
                self.link = up;
                self.tell(now, Event::Link(up));
            }
            Input::Received(envelope) => self.received(now, envelope),
            Input::Traffic(site) => self.tell(now, Event::Traffic(site)),
            Input::Revoke(site) => {
                let mut record = self.disk.record.clone();
                record.epoch += 1;
                record.revoked.insert(site);
                self.advance(now, record);
                for to in self.disk.members.clone() {
                    self.welcome(to);
                }
            }
            Input::Leave => self.tell(now, Event::Leave),
        }
        std::mem::take(&mut self.out)
    }

    fn received(&mut self, now: Duration, envelope: Envelope) {
        let from = envelope.from;
        if let Body::Welcome(record) = envelope.body {
            return self.advance(now, record);
        }
        if from == self.own {
            return;
        }
        if self.disk.record.revoked.contains(&from) {
            if self.may_tell(now, from) {
                self.welcome(from);
            }
            return;
        }
        let (incarnation, number, message, pair) = match envelope.body {
            Body::Group {
                epoch,
                incarnation,
                number,
                introduce,
                message,
            } => {
                let own = self.disk.record.epoch;
                if epoch < own && self.disk.members.contains(&from) && self.may_tell(now, from) {
                    self.welcome(from);
                }
                if epoch + 1 < own {
                    return;
                }
                if epoch > own {
                    if self.disk.members.contains(&from) && self.may_tell(now, from) {
                        let beat = self.membership.beat(now);
                        self.group(Some(from), beat, true);
                    }
                    return;
                }
                if introduce && self.disk.members.insert(from) {
                    self.new.insert(from);
                }
                (incarnation, number, Some(message), false)
            }
            Body::Pair {
                incarnation,
                theirs,
                number,
                message,
            } => {
                if theirs != self.disk.incarnation {
                    return;
                }
                (incarnation, number, Some(message), true)
            }
            Body::Members {
                incarnation,
                theirs,
                number,
                ref sites,
            } => {
                if theirs.is_some_and(|theirs| theirs != self.disk.incarnation) {
                    return;
                }
                if self.disk.members.contains(&from) {
                    self.introduced(now, sites);
                }
                (incarnation, number, None, theirs.is_some())
            }
            Body::Welcome(_) => return,
        };
        let right = message.as_ref().is_none_or(|m| m.may_be(pair));
        assert!(right, "{message:?} is sent the wrong way");
        if !self.disk.members.contains(&from) {
            return self.tell(now, Event::Stranger(from));
        }
        let sender = self.senders.entry(from).or_default();
        if incarnation < sender.incarnation {
            let known = sender.incarnation;
            if !pair && self.may_tell(now, from) {
                self.group(Some(from), Message::Stale { known }, true);
            }
            return;
        }
        self.claims.remove(&from);
        if incarnation > sender.incarnation {
            *sender = Sender {
                incarnation,
                ..Sender::default()
            };
        }
        let taken = if pair {
            &mut sender.pair
        } else {
            &mut sender.group
        };
        let too_old = taken.len() >= WINDOW && taken.first().is_some_and(|old| number < *old);
        if too_old || !taken.insert(number) {
            return;
        }
        if taken.len() > WINDOW {
            taken.pop_first();
        }
        if !self.membership.peers().contains_key(&from) {
            self.tell(now, Event::Known(from));
        }
        match message {
            Some(Message::Stale { known }) => self.catch_up(now, known),
            message => {
                let asks_others =
                    |m: &Message| matches!(m, Message::Ask { sites } if !sites.contains(&self.own));
                if let Some(Message::Roll { sites, .. }) = &message
                    && self.membership.believes(from)
                {
                    for called in sites.iter().filter(|c| c.gone_s.is_none()) {
                        self.claims.insert(called.site, called.incarnation);
                    }
                }
                let event = Event::Heard {
                    from,
                    incarnation,
                    message: message.filter(|m| !asks_others(m)),
                };
                self.tell(now, event);
            }
        }
    }

    fn introduced(&mut self, now: Duration, sites: &[SiteId]) {
        let mut new = sites.to_vec();
        new.retain(|site| {
            let out = self.disk.record.revoked.contains(site) || *site == self.own;
            !out && self.disk.members.insert(*site)
        });
        self.tell(now, Event::Introduced(new));
    }

    fn catch_up(&mut self, now: Duration, known: u64) {
        if known < self.disk.incarnation {
            return;
        }
        self.disk.incarnation = crate::member::recounted(known, &mut self.entropy);
        self.sent = 0;
        let link = self.link;
        self.tell(now, Event::Link(false));
        self.tell(now, Event::Link(link));
    }

    fn advance(&mut self, now: Duration, record: Record) {
        if record.epoch <= self.disk.record.epoch {
            return;
        }
        self.out_of_it = record.revoked.contains(&self.own);
        self.disk.record = record;
        for site in self.disk.record.revoked.clone() {
            self.disk.members.remove(&site);
            self.tell(now, Event::Revoked(site));
        }
    }

    fn may_tell(&mut self, now: Duration, site: SiteId) -> bool {
        let again = self
            .told
            .get(&site)
            .is_none_or(|at| now >= *at + TELL_AGAIN);
        if again {
            self.told.insert(site, now);
        }
        again
    }

    fn tell(&mut self, now: Duration, event: Event) {
        for effect in self.membership.step(now, event) {
            match effect {
                Effect::Broadcast { message, introduce } => {
                    if let Message::Roll { sites, .. } = &message {
                        let called = sites.iter().map(|c| c.site);
                        let new = called.filter(|s| self.new.remove(s)).collect();
                        self.members(None, new);
                    }
                    self.group(None, message, introduce);
                }
                Effect::Report { message } => {
                    self.group(None, message, true);
                    if let Some(envelope) = self.out.last_mut() {
                        envelope.hubs = true;
                    }
                }
                Effect::Members { site } => {
                    let all = self.disk.members.iter().copied();
                    let all = all.filter(|other| *other != site).collect();
                    self.members(Some(site), all);
                }
                Effect::Tell { site, message } => self.group(Some(site), message, true),
                Effect::Send { site, message } => self.pair(site, message),
                Effect::Changed => {}
            }
        }
    }

    fn members(&mut self, to: Option<SiteId>, sites: Vec<SiteId>) {
        let theirs = to.map(|to| self.incarnation_of(to));
        if sites.is_empty() || theirs == Some(0) {
            return;
        }
        self.sent += 1;
        self.out.push(Envelope {
            to,
            hubs: false,
            from: self.own,
            body: Body::Members {
                incarnation: self.disk.incarnation,
                theirs,
                number: self.sent,
                sites,
            },
        });
    }

    fn incarnation_of(&self, site: SiteId) -> u64 {
        let claimed = self.claims.get(&site).copied().unwrap_or_default();
        let known = self.senders.get(&site).map_or(0, |s| s.incarnation);
        known.max(claimed)
    }

    fn welcome(&mut self, to: SiteId) {
        self.out.push(Envelope {
            to: Some(to),
            hubs: false,
            from: self.own,
            body: Body::Welcome(self.disk.record.clone()),
        });
    }

    fn group(&mut self, to: Option<SiteId>, message: Message, introduce: bool) {
        self.sent += 1;
        self.out.push(Envelope {
            to,
            hubs: false,
            from: self.own,
            body: Body::Group {
                epoch: self.disk.record.epoch,
                incarnation: self.disk.incarnation,
                number: self.sent,
                introduce,
                message,
            },
        });
    }

    fn pair(&mut self, to: SiteId, message: Message) {
        let theirs = self.incarnation_of(to);
        if theirs == 0 {
            return;
        }
        self.sent += 1;
        self.out.push(Envelope {
            to: Some(to),
            hubs: false,
            from: self.own,
            body: Body::Pair {
                incarnation: self.disk.incarnation,
                theirs,
                number: self.sent,
                message,
            },
        });
    }
}

#[cfg(test)]
mod crowd;

#[cfg(test)]
mod tests {
    use super::*;

    const SITES: usize = 60;

    fn id(i: usize) -> SiteId {
        // In another order than they start in.
        SiteId([(i * 37 % 251) as u8; 16])
    }

    struct World {
        now: Duration,
        machines: Vec<Option<Machine>>,
        flying: BTreeMap<(Duration, u64), (usize, Envelope)>,
        count: u64,
    }

    impl World {
        fn input(&mut self, i: usize, input: Input) {
            let Some(machine) = &mut self.machines[i] else {
                return;
            };
            for envelope in machine.step(self.now, input) {
                for to in (0..SITES).filter(|to| *to != i) {
                    if envelope.to.is_none_or(|site| site == id(to)) {
                        self.count += 1;
                        let at = self.now + Duration::from_millis(20);
                        let key = (at, self.count);
                        self.flying.insert(key, (to, envelope.clone()));
                    }
                }
            }
        }

        fn pass(&mut self, time: Duration) {
            let until = self.now + time;
            loop {
                let timers = self.machines.iter().flatten().filter_map(Machine::next);
                let first = self.flying.first_key_value().map(|((at, _), _)| *at);
                let Some(at) = timers.chain(first).min().filter(|at| *at <= until) else {
                    self.now = until;
                    return;
                };
                self.now = self.now.max(at);
                while let Some(entry) = self.flying.first_entry()
                    && entry.key().0 <= self.now
                {
                    let (to, envelope) = entry.remove();
                    self.input(to, Input::Received(envelope));
                }
                for i in 0..SITES {
                    let due = self.machines[i].as_ref().and_then(Machine::next);
                    if due.is_some_and(|at| at <= self.now) {
                        self.input(i, Input::Tick);
                    }
                }
            }
        }

        fn all_see(&self, of: usize, state: SiteState) -> bool {
            let others = self.machines.iter().flatten().filter(|m| m.own != id(of));
            let mut seen = others.map(|m| m.seen().find(|s| s.0 == id(of)).map(|s| s.1.state));
            seen.all(|s| s == Some(state))
        }
    }

    #[test]
    fn many_sites_meet_rest_and_miss_one() {
        let machine = |i| {
            let disk = Disk {
                incarnation: 1,
                ..Disk::default()
            };
            Some(Machine::new(id(i), i == 0, usize::MAX, i as u64, disk))
        };
        let mut world = World {
            now: Duration::ZERO,
            machines: (0..SITES).map(machine).collect(),
            flying: BTreeMap::new(),
            count: 0,
        };
        for i in 0..SITES {
            world.input(i, Input::Link(true));
            world.pass(Duration::from_millis(5));
        }
        world.pass(Duration::from_secs(30));
        assert!((0..SITES).all(|i| world.all_see(i, SiteState::Alive)));
        // Long after, each is asked once a minute and asks once, and one heartbeat is heard
        // every twelve seconds.
        world.pass(Duration::from_secs(3600));
        let before = world.count;
        world.pass(Duration::from_secs(3600));
        let each = (world.count - before) / SITES as u64;
        assert!((360..500).contains(&each), "{each} envelopes an hour");
        world.machines[7] = None;
        world.pass(Duration::from_secs(90));
        assert!(world.all_see(7, SiteState::Gone));
    }
}

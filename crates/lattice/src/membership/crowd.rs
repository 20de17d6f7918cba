//! How many sites meet: where each asked each, a thousand that come back at once, from a power
//! cut at their NATS, would need millions of messages. So in a crowd ([`super::Timing::crowd`])
//! a site that comes reports to the hubs and to those next to it in the circle; a hub asks it,
//! gathers those that have answered and tells all of them in one message, the roll; and the one
//! that came asks for a census: who is there, and who is not. Another member's word is enough
//! for a site that has not been asked; who wants more of it (there is traffic, or it is missed)
//! asks it then.
//!
//! Where no hub does, its deputies do the same a while later: the sites with the lowest ids. Who
//! has had no word of a site for long asks it itself.

use super::peer::Peer;
use super::{Effect, Membership, SiteState, spread};
use crate::identity::SiteId;
use crate::message::{Called, Message, ROLL_MAX};
use std::ops::Bound;
use std::time::Duration;

/// How long a hub gathers whom it tells of, and by how much longer for each that it tells.
const CALL_PAUSE: Duration = Duration::from_millis(300);
const CALL_PAUSE_EACH: Duration = Duration::from_millis(2);
/// How much later its deputies tell what a hub would have told.
const CALL_LATE: Duration = Duration::from_secs(6);
/// How long a site waits for another's word before it asks itself; longer by chance.
const WORD: Duration = Duration::from_secs(30);
/// By how much longer those things may take for each that does the same.
const SPREAD_EACH: Duration = Duration::from_millis(100);
/// By how much longer the state of a site that came may be fetched for each that does.
const FETCH_EACH: Duration = Duration::from_millis(5);
/// Without any answer until then, a site says to all that it is here.
const ALONE: Duration = Duration::from_secs(20);
/// Until a census is asked for again; doubles up to the longest.
pub(super) const CENSUS_AGAIN: Duration = Duration::from_secs(15);
const CENSUS_AGAIN_MAX: Duration = Duration::from_secs(1920);
/// Censuses answered at once, and how long until the next ones are: a hundred in a second.
const ANSWERED_AT_ONCE: usize = 2;
const ANSWER_PAUSE: Duration = Duration::from_millis(20);
/// Sites that wait for a census; further ones ask again.
const CENSUSES_MAX: usize = 4096;
/// Sites on each side in the circle that are told of one that comes.
const NEIGHBOURS: usize = 1;
/// Sites that tell of others when no hub does.
const DEPUTIES: usize = 2;
/// How often one of the others' heartbeats is heard at most, right after changes.
const HEARD_AT_MOST_EVERY: Duration = Duration::from_millis(200);

impl Membership {
    /// Whether there are so many that they do not all ask each other.
    pub(super) fn crowded(&self) -> bool {
        self.peers.len().max(self.expected) > self.timing.crowd
    }

    /// As many members are expected as a hub has said.
    pub(crate) fn expect(&mut self, members: u64) {
        let others = usize::try_from(members).unwrap_or(usize::MAX);
        self.expected = others.saturating_sub(1);
    }

    /// A while by chance, longer the more there are.
    pub(crate) fn by_chance(&mut self, each: Duration) -> Duration {
        let others = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
        let most = each.saturating_mul(others).as_millis() as u64;
        Duration::from_millis(self.entropy.below(most + 1))
    }

    /// The shortest time between heartbeats.
    pub(super) fn beat_min(&self) -> Duration {
        if !self.crowded() {
            return self.timing.beat;
        }
        let others = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
        self.timing.beat.max(HEARD_AT_MOST_EVERY * others)
    }

    /// The link of a site in a crowd is up.
    pub(super) fn arrive(&mut self, now: Duration) {
        let report = spread(&mut self.entropy, self.peers.len().max(self.expected));
        self.report_at = Some(now + report);
        self.census_at = Some(now + report + CENSUS_AGAIN);
        (self.census_asked, self.census_again) = (false, CENSUS_AGAIN);
        self.alone_at = Some(now + ALONE + self.by_chance(SPREAD_EACH));
        self.beat_at = Some(now + self.interval());
        let grace = self.timing.link_grace;
        let others: Vec<SiteId> = self.peers.keys().copied().collect();
        for site in others {
            let ask_at = now + WORD + self.by_chance(SPREAD_EACH);
            if let Some(peer) = self.peers.get_mut(&site) {
                peer.wait(ask_at, grace);
            }
        }
    }

    /// When a site is asked that was heard for the first time since it has started.
    pub(super) fn ask_at(&mut self, now: Duration) -> Duration {
        now + WORD + self.by_chance(SPREAD_EACH)
    }

    /// Whether this site tells of others.
    pub(super) fn tells(&self) -> bool {
        self.hub || self.deputies().any(|site| site == self.own)
    }

    /// Whether somebody can be asked for word of others.
    pub(super) fn knows_teller(&self) -> bool {
        let answers = |p: &Peer| p.proven && p.state == SiteState::Alive;
        let deputy = |site| self.peers.get(&site).is_some_and(answers);
        self.crowded()
            && !self.hub
            && (self.peers.values().any(|p| p.hub && answers(p)) || self.deputies().any(deputy))
    }

    /// Whether one that comes tells this site, and the other way about.
    pub(super) fn is_told(&self, site: SiteId) -> bool {
        self.neighbours().contains(&site) || self.deputies().any(|deputy| deputy == site)
    }

    fn deputies(&self) -> impl Iterator<Item = SiteId> {
        let may = |(site, peer): (&SiteId, &Peer)| peer.may_be_there().then_some(*site);
        let before = self.peers.range(..self.own).filter_map(may);
        let after = self.peers.range(self.own..).filter_map(may);
        let all = before.chain(std::iter::once(self.own)).chain(after);
        all.take(DEPUTIES)
    }

    /// Those next to this site in the circle.
    fn neighbours(&self) -> Vec<SiteId> {
        let after = (Bound::Excluded(self.own), Bound::Unbounded);
        let there = |(site, peer): (&SiteId, &Peer)| peer.may_be_there().then_some(*site);
        let next = self.peers.range(after).chain(self.peers.range(..self.own));
        let back = self.peers.range(..self.own).rev();
        let back = back.chain(self.peers.range(after).rev());
        let next = next.filter_map(there).take(NEIGHBOURS);
        next.chain(back.filter_map(there).take(NEIGHBOURS))
            .collect()
    }

    /// A site has answered that was not there.
    pub(super) fn came(&mut self, now: Duration, site: SiteId) {
        if !self.crowded() {
            return;
        }
        let hub = self.peers.get(&site).is_some_and(|p| p.hub);
        if self.tells() && !hub {
            self.call.insert(site);
            let others = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
            let late = if self.hub {
                CALL_PAUSE + CALL_PAUSE_EACH.saturating_mul(others)
            } else {
                CALL_LATE
            };
            self.call_at.get_or_insert(now + late);
        }
        if hub && self.census_at.is_some() && !self.census_asked {
            self.census_at = Some(now);
        }
    }

    /// What is due of all this.
    pub(super) fn meet_others(&mut self, now: Duration) {
        if self.report_at.is_some_and(|at| at <= now) {
            self.report_at = None;
            let message = self.beat(now);
            let mut told = self.neighbours();
            told.extend(self.deputies().filter(|site| *site != self.own));
            told.sort_unstable();
            told.dedup();
            for site in told {
                let message = message.clone();
                self.out.push(Effect::Tell { site, message });
            }
            self.out.push(Effect::Report { message });
        }
        if self.alone_at.is_some_and(|at| at <= now) {
            self.alone_at = None;
            if self.peers.values().all(|p| p.state != SiteState::Alive) {
                self.say(now, true);
            }
        }
        if self.census_at.is_some_and(|at| at <= now) {
            self.ask_census(now);
        }
        if self.call_at.is_some_and(|at| at <= now) {
            self.call_at = None;
            let sites: Vec<SiteId> = std::mem::take(&mut self.call).into_iter().collect();
            for sites in sites.chunks(ROLL_MAX) {
                let message = self.roll(now, sites, false);
                self.broadcast(message, false);
            }
        }
        if self.answer_at.is_some_and(|at| at <= now) {
            self.answer_at = None;
            self.answer(now);
        }
    }

    fn ask_census(&mut self, now: Duration) {
        let chance = self.entropy.below(CENSUS_AGAIN.as_millis() as u64 / 3);
        self.census_at = Some(now + self.census_again + Duration::from_millis(chance));
        self.census_again = (self.census_again * 2).min(CENSUS_AGAIN_MAX);
        let answers = |(_, p): &(&SiteId, &Peer)| p.proven && p.state == SiteState::Alive;
        let alive = || self.peers.iter().filter(answers);
        let hubs = alive().filter(|(_, p)| p.hub).map(|(site, _)| *site);
        let mut from: Vec<SiteId> = hubs.collect();
        if from.is_empty() {
            let deputy = |site: &SiteId| self.peers.get(site).is_some_and(|p| answers(&(site, p)));
            from = self.deputies().filter(deputy).collect();
        }
        if from.is_empty() {
            from = alive().map(|(site, _)| *site).collect();
        }
        if from.is_empty() {
            // Whoever is the first to answer is asked.
            self.census_asked = false;
            self.census_again = CENSUS_AGAIN;
            return;
        }
        let pick = self.entropy.below(from.len() as u64) as usize;
        self.census_asked = true;
        self.out.push(Effect::Send {
            site: from[pick],
            message: Message::Census {
                known: self.digest(),
            },
        });
    }

    /// Of the ids of all that are known here, this site among them.
    fn digest(&self) -> u64 {
        let all = self.peers.keys().chain(std::iter::once(&self.own));
        all.fold(0, |digest, id| {
            let mut part = [0; 8];
            part.copy_from_slice(&id.0[..8]);
            digest ^ u64::from_be_bytes(part)
        })
    }

    /// Somebody asks who is there.
    pub(super) fn census(&mut self, now: Duration, from: SiteId, known: u64) {
        if self.censuses.len() < CENSUSES_MAX {
            self.censuses.insert(from, known);
            self.answer_at.get_or_insert(now);
        }
    }

    fn answer(&mut self, now: Duration) {
        let own = self.digest();
        for _ in 0..ANSWERED_AT_ONCE {
            let Some((site, known)) = self.censuses.pop_first() else {
                return;
            };
            if known != own {
                self.out.push(Effect::Members { site });
            }
            let told = |(id, p): (&SiteId, &Peer)| {
                (*id != site && p.incarnation > 0 && p.state != SiteState::Suspect).then_some(*id)
            };
            let all: Vec<SiteId> = self.peers.iter().filter_map(told).collect();
            let parts: Vec<&[SiteId]> = if all.is_empty() {
                vec![&[]]
            } else {
                all.chunks(ROLL_MAX).collect()
            };
            for (i, sites) in parts.iter().enumerate() {
                let message = self.roll(now, sites, i + 1 == parts.len());
                self.out.push(Effect::Send { site, message });
            }
        }
        if !self.censuses.is_empty() {
            self.answer_at = Some(now + ANSWER_PAUSE);
        }
    }

    fn roll(&self, now: Duration, sites: &[SiteId], last: bool) -> Message {
        let called = |site: &SiteId| Some(self.peers.get(site)?.called(*site, now));
        Message::Roll {
            uptime_s: now.as_secs(),
            last,
            sites: sites.iter().filter_map(called).collect(),
        }
    }

    /// Another member tells of others.
    pub(super) fn called(&mut self, now: Duration, from: SiteId, last: bool, sites: &[Called]) {
        if !self.believes(from) {
            // It has to answer before its word counts, if there is anything in it.
            let waits = |c: &Called| self.peers.get(&c.site).is_none_or(|p| p.waits_for(c));
            let matters = sites.iter().any(|c| c.site != self.own && waits(c));
            if matters && let Some(peer) = self.peers.get_mut(&from) {
                peer.ask(now);
                self.census_at.get_or_insert(now + CENSUS_AGAIN);
                self.census_asked = false;
                self.peers_due = Some(now);
            }
            return;
        }
        if last {
            self.census_at = None;
            self.census_again = CENSUS_AGAIN;
        }
        let mut strangers = false;
        for called in sites {
            let fetch_at = now + self.by_chance(FETCH_EACH);
            let ask_at = now + spread(&mut self.entropy, self.present);
            let Some(peer) = self.peers.get_mut(&called.site) else {
                strangers |= called.site != self.own;
                continue;
            };
            if called.incarnation >= peer.incarnation {
                // All have been told.
                self.call.remove(&called.site);
            }
            if peer.take_word(now, called, fetch_at, ask_at) {
                self.changed();
            }
        }
        if strangers && !self.hub {
            self.census_at.get_or_insert(now + CENSUS_AGAIN);
        }
        self.peers_due = Some(now);
    }
}

//! Another member as this one sees it: what it has said, when it is asked, when it is given
//! up. What is said to whom is decided in the module above.

use super::{Link, SiteState, Timing};
use crate::identity::SiteId;
use crate::message::Called;
use crate::state::Copy;
use std::collections::VecDeque;
use std::time::Duration;

/// Sites that one looks after: the next one in the circle, and of those before it that are
/// gone the first. Of further ones the return is noticed by their own word.
pub(super) const WARDS_MAX: usize = 4;
/// By how much a sign of life may be late and still count.
const HELD_BACK_MAX: Duration = Duration::from_secs(10);
/// How often the round trip to a site that has come is measured: the first takes longer, for
/// both have much to do then. Once in a larger lattice, where it matters for few.
pub(super) const MEASURED_MIN: u8 = 4;
/// Pings of a site that may be on their way.
const PINGS_MAX: usize = 16;
/// How long a site that is gone is looked for, and how often; more rarely where so many do.
const LOOKED_FOR: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_secs(5);
const LOOK_IN_CIRCLE: Duration = Duration::from_secs(15);
/// How long a site stays watched after traffic.
const WATCHED_FOR: Duration = Duration::from_secs(10);
/// How long an answer to a question about state may take.
pub(super) const FETCH_AGAIN: Duration = Duration::from_secs(2);
/// A site that was heard so lately is not asked because another one misses it.
const FRESH: Duration = Duration::from_secs(5);
/// How often all are told that a site is gone.
const TELLS: u8 = 3;
/// How often, and for how long, others are asked again for word of a site before it is asked
/// itself.
const POSTPONED_MAX: u8 = 3;
const POSTPONE: Duration = Duration::from_secs(30);
/// How long nobody's word is taken that a site is missing, after it was not.
const BELIEVE_AGAIN: Duration = Duration::from_secs(600);

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
    pub(super) met: Duration,
    /// Whether it has answered a ping in its present incarnation.
    pub(super) proven: bool,
    /// Whether another member says that it is there, in its present incarnation.
    pub(super) vouched: bool,
    /// In a crowd: it is not asked before [`Self::ping_at`] for others may tell of it.
    waits: bool,
    /// How often it was not asked when it would have been, for somebody else knows better.
    postponed: u8,
    /// Whether it is a hub.
    pub(super) hub: bool,
    /// Since when it is gone, as time before this site's start: another's word.
    pub(crate) earlier: Duration,
    /// How much further its count of seconds is than this site's, at most.
    ahead_s: Option<i64>,
    /// Pings without an answer yet: nonce and when. Of more the oldest are forgotten.
    pings: VecDeque<(u64, Duration)>,
    /// A suspect is not given up before this.
    pub(super) grace: Duration,
    pub(super) ping_at: Option<Duration>,
    /// It was asked before it would be suspected, having been heard last then.
    asked_since: Option<Duration>,
    pub(super) fetch_at: Option<Duration>,
    watched_from: Duration,
    watched_until: Duration,
    /// Since when this site looks after it.
    ward: Option<Duration>,
    /// All were told that it is gone.
    pub(super) told_missed: bool,
    /// How often they still are: some of them, or this site, may not have been there.
    tells: u8,
    /// Another site misses it: when it is asked.
    doubted: Option<Duration>,
    /// Until then nobody is believed who misses it.
    trusted_until: Duration,
    /// Its state has changed, and nobody has looked at what follows.
    pub(super) turned: bool,
}

/// What follows from time for a peer.
#[derive(Debug, Default)]
pub(super) struct Tended {
    pub(super) turned: bool,
    /// All are to be told that it is gone.
    pub(super) missed: bool,
    pub(super) ping: bool,
    /// Nobody has told of it in time.
    pub(super) wordless: bool,
    /// Its state is to be asked for, from this revision on.
    pub(super) fetch: Option<u64>,
}

impl Peer {
    pub(super) fn new(now: Duration) -> Self {
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
            vouched: false,
            waits: false,
            postponed: 0,
            hub: false,
            earlier: Duration::ZERO,
            ahead_s: None,
            pings: VecDeque::new(),
            grace: Duration::ZERO,
            ping_at: Some(now),
            asked_since: None,
            fetch_at: None,
            watched_from: Duration::ZERO,
            watched_until: Duration::ZERO,
            ward: None,
            told_missed: false,
            tells: 0,
            doubted: None,
            trusted_until: Duration::ZERO,
            turned: true,
        }
    }

    pub(super) fn turn(&mut self, now: Duration, state: SiteState) {
        self.state = state;
        self.since = now;
        self.earlier = Duration::ZERO;
        self.waits &= state != SiteState::Alive;
        self.doubted = None;
        self.turned = true;
    }

    /// It has started anew.
    pub(super) fn meet(&mut self, now: Duration, incarnation: u64) {
        self.incarnation = incarnation;
        self.proven = false;
        self.vouched = false;
        self.met = now;
        self.pings.clear();
        self.measured = 0;
        self.ahead_s = None;
        if self.state == SiteState::Alive {
            self.turn(now, SiteState::Suspect);
        }
    }

    /// Others may tell of it until then.
    pub(super) fn wait(&mut self, ask_at: Duration, grace: Duration) {
        if self.state != SiteState::Left {
            self.waits = true;
            self.postponed = 0;
            self.ping_at = Some(ask_at);
            self.grace = ask_at + grace;
        }
    }

    /// Whether it is there, for all that is known.
    pub(super) fn may_be_there(&self) -> bool {
        match self.state {
            SiteState::Alive | SiteState::Suspect => true,
            // This site's link was down for so long.
            SiteState::Gone => self.waits,
            SiteState::Left => false,
        }
    }

    /// Whether another's word of it is news.
    pub(super) fn waits_for(&self, word: &Called) -> bool {
        let awaited = self.waits && word.incarnation == self.incarnation;
        word.incarnation > self.incarnation || awaited
    }

    /// What is told of it to others.
    pub(super) fn called(&self, site: SiteId, now: Duration) -> Called {
        let there = matches!(self.state, SiteState::Alive | SiteState::Suspect);
        let uptime_s = now.as_secs() as i64 + self.ahead_s.unwrap_or_default();
        Called {
            site,
            incarnation: self.incarnation,
            revision: self.copy.latest(),
            uptime_s: u64::try_from(uptime_s).unwrap_or_default(),
            gone_s: (!there).then(|| (now.saturating_sub(self.since) + self.earlier).as_secs()),
        }
    }

    /// Another member tells of it; whether that changed anything.
    pub(super) fn take_word(
        &mut self,
        now: Duration,
        word: &Called,
        fetch_at: Duration,
        ask_at: Duration,
    ) -> bool {
        let awaited = self.waits_for(word);
        if let Some(gone_s) = word.gone_s {
            if !awaited || self.state == SiteState::Alive {
                return false;
            }
            self.meet(now, word.incarnation);
            self.waits = false;
            self.ping_at = None;
            self.turn(now, SiteState::Gone);
            let gone = Duration::from_secs(gone_s);
            self.since = now.saturating_sub(gone);
            self.earlier = gone.saturating_sub(now);
            return true;
        }
        if !awaited {
            let asks = self.state == SiteState::Gone && word.incarnation == self.incarnation;
            if asks {
                self.ping_at.get_or_insert(ask_at);
            }
            return false;
        }
        if word.incarnation > self.incarnation {
            self.meet(now, word.incarnation);
        }
        self.waits = false;
        self.vouched = true;
        self.ahead_s = Some(ahead(now, word.uptime_s));
        self.heard(now);
        if !self.is_close(now) {
            self.ping_at = None;
        }
        self.copy.heard(word.incarnation, word.revision);
        self.fetch_at = Some(fetch_at);
        self.turn(now, SiteState::Alive);
        true
    }

    /// There is traffic to it.
    pub(super) fn watch(&mut self, now: Duration) {
        if self.watched_until <= now {
            self.watched_from = now;
            self.ping_at = Some(now);
        }
        self.watched_until = now + WATCHED_FOR;
    }

    /// Its round trip is to be known: in a crowd a site is alive by others' word.
    pub(super) fn measure(&mut self, now: Duration) {
        if self.rtt.is_none() && self.state == SiteState::Alive {
            self.ping_at.get_or_insert(now);
        }
    }

    /// It is looked after, or is not.
    pub(super) fn look_after(&mut self, now: Duration, ward: bool) {
        if !ward {
            self.ward = None;
        } else if self.ward.is_none() {
            self.ward = Some(now);
            self.tell(now);
        }
    }

    /// Whoever looks after it tells of it if it is gone.
    pub(super) fn tell(&mut self, now: Duration) {
        self.tells = TELLS;
        if self.ward.is_some() && !self.waits {
            self.ping_at = Some(now);
        }
    }

    /// It is asked then.
    pub(super) fn ask(&mut self, at: Duration) {
        self.waits = false;
        self.ping_at = Some(at);
    }

    /// Another site misses it. Whether that matters here.
    pub(super) fn doubt(&mut self, now: Duration, ask_at: Duration) -> bool {
        let sure = self.state != SiteState::Alive
            || self.doubted.is_some()
            || now < self.trusted_until
            || now < self.heard + FRESH;
        if !sure {
            self.doubted = Some(ask_at);
            self.ping_at = Some(self.ping_at.map_or(ask_at, |at| at.min(ask_at)));
        }
        !sure
    }

    /// It has shown that it lives.
    pub(super) fn heard(&mut self, now: Duration) {
        self.heard = now;
        if self.doubted.take().is_some() {
            self.trusted_until = now + BELIEVE_AGAIN;
        }
    }

    /// It is pinged.
    pub(super) fn asked(&mut self, now: Duration, nonce: u64) {
        if self.pings.len() == PINGS_MAX {
            self.pings.pop_front();
        }
        self.pings.push_back((nonce, now));
    }

    /// Takes an answer; whether it was waited for, and has not been held back.
    pub(super) fn answered(&mut self, now: Duration, nonce: u64, uptime_s: u64) -> bool {
        let Some(at) = self.pings.iter().position(|(n, _)| *n == nonce) else {
            return false;
        };
        // Older ones are not waited for: they are lost, or their answers are.
        let sample = now.saturating_sub(self.pings[at].1);
        self.pings.drain(..=at);
        if sample > HELD_BACK_MAX {
            return false;
        }
        self.proven = true;
        // Its beats from now on are compared to this.
        self.ahead_s = Some(ahead(now, uptime_s));
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
    pub(super) fn rtt_shifted(&mut self) -> bool {
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
    pub(super) fn is_recent(&mut self, now: Duration, uptime_s: u64) -> bool {
        let ahead = ahead(now, uptime_s);
        let most = self.ahead_s.map_or(ahead, |most| most.max(ahead));
        if ahead < most - HELD_BACK_MAX.as_secs() as i64 {
            self.ping_at.get_or_insert(now);
            return false;
        }
        self.ahead_s = Some(most);
        true
    }

    fn watched(&self, now: Duration) -> bool {
        self.watched_until > now
    }

    /// Whether there is traffic to it, or it is looked after.
    pub(super) fn is_close(&self, now: Duration) -> bool {
        self.watched(now) || self.ward.is_some()
    }

    /// How long a watched site may be silent.
    fn patience(&self, timing: &Timing) -> Duration {
        timing.watch_silence + self.rtt.unwrap_or_default() * 2
    }

    /// When it is suspected or given up if it stays silent; others than those that are watched
    /// or looked after are suspected after `silence`.
    fn turns_at(
        &self,
        now: Duration,
        timing: &Timing,
        silence: Duration,
        link: Link,
    ) -> Option<Duration> {
        let watched = self.watched(now);
        match self.state {
            SiteState::Alive if watched => {
                Some(self.heard.max(self.watched_from) + self.patience(timing))
            }
            SiteState::Alive => {
                let by_itself = self.heard + silence;
                let looked = self
                    .ward
                    .map(|since| (self.heard + timing.look_silence).max(since + timing.confirm));
                let doubted = self.doubted.map(|asked| asked + timing.confirm);
                [Some(by_itself), looked, doubted]
                    .into_iter()
                    .flatten()
                    .min()
            }
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

    /// When a silent site is asked before it is suspected, if it was not.
    fn asks_at(&self, now: Duration, timing: &Timing, silence: Duration) -> Option<Duration> {
        let idle = self.state == SiteState::Alive && !self.watched(now);
        let asked = self.asked_since == Some(self.heard);
        if !idle || asked {
            return None;
        }
        let turns = self.turns_at(now, timing, silence, Link::Up)?;
        Some(turns.saturating_sub(timing.confirm))
    }

    /// Lets time pass.
    pub(super) fn tend(
        &mut self,
        now: Duration,
        timing: &Timing,
        silence: Duration,
        circle: bool,
        teller: bool,
        link: Link,
    ) -> Tended {
        let mut tended = Tended::default();
        if link == Link::Up
            && self
                .asks_at(now, timing, silence)
                .is_some_and(|at| at <= now)
        {
            self.asked_since = Some(self.heard);
            self.ping_at = Some(now);
        }
        while self
            .turns_at(now, timing, silence, link)
            .is_some_and(|at| at <= now)
        {
            tended.turned = true;
            if self.state == SiteState::Alive {
                self.turn(now, SiteState::Suspect);
                self.ping_at = Some(now);
            } else {
                self.turn(now, SiteState::Gone);
                // When it is heard again it has to answer first.
                self.proven = false;
                self.vouched = false;
                self.tell(now);
            }
        }
        if self.ping_at.is_none() && (self.watched(now) || self.ward.is_some()) {
            self.ping_at = self.next_ping(now, timing, circle);
        }
        if link != Link::Up {
            return tended;
        }
        let due = self.ping_at.is_some_and(|at| at <= now);
        if due && teller && self.waits && !self.is_close(now) && self.postponed < POSTPONED_MAX {
            self.postponed += 1;
            self.ping_at = Some(now + POSTPONE);
            self.grace = self.grace.max(now + POSTPONE * 2);
            tended.wordless = true;
        } else if due {
            self.ping_at = self.next_ping(now, timing, circle);
            tended.ping = self.state != SiteState::Left;
            tended.wordless = std::mem::take(&mut self.waits);
            let met = self.ward.is_some() && self.incarnation > 0;
            let tells = self.tells > 0 && !tended.wordless;
            if self.state == SiteState::Gone && met && tells {
                self.tells -= 1;
                self.told_missed = true;
                tended.missed = true;
            }
        }
        if self.state == SiteState::Alive
            && let Some(since) = self.copy.wanted()
            && self.fetch_at.is_none_or(|at| at <= now)
        {
            self.fetch_at = Some(now + FETCH_AGAIN);
            tended.fetch = Some(since);
        }
        tended
    }

    fn next_ping(&self, now: Duration, timing: &Timing, circle: bool) -> Option<Duration> {
        let measured = if circle { 1 } else { MEASURED_MIN };
        match self.state {
            SiteState::Left => None,
            SiteState::Gone if self.watched(now) => Some(now + timing.probe),
            SiteState::Gone if self.ward.is_some() => Some(now + timing.look),
            SiteState::Gone => {
                let look = if circle { LOOK_IN_CIRCLE } else { LOOK };
                (now < self.since + LOOKED_FOR).then(|| now + look)
            }
            _ if self.watched(now) => Some(now + timing.watch),
            SiteState::Suspect => Some(now + timing.probe),
            SiteState::Alive if self.measured < measured => Some(now + timing.probe),
            SiteState::Alive => self.ward.map(|_| now + timing.look),
        }
    }

    /// When time has something to say about it.
    pub(super) fn due(
        &self,
        now: Duration,
        timing: &Timing,
        silence: Duration,
        link: Link,
    ) -> Option<Duration> {
        let turns = self.turns_at(now, timing, silence, link);
        let up = link == Link::Up;
        let ping = self.ping_at.filter(|_| up);
        let asks = self.asks_at(now, timing, silence).filter(|_| up);
        let fetching = up && self.state == SiteState::Alive && self.copy.wanted().is_some();
        let fetch = self.fetch_at.filter(|_| fetching);
        [turns, fetch, ping, asks].into_iter().flatten().min()
    }
}

/// By how much a site's count of seconds is further than this one's.
fn ahead(now: Duration, uptime_s: u64) -> i64 {
    i64::try_from(uptime_s).unwrap_or(i64::MAX) - now.as_secs() as i64
}

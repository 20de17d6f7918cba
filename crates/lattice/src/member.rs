//! A site of the lattice without its network: envelopes come in, envelopes go out. Puts
//! together admission, the keyring, membership and streams. Pure: time is passed in, and
//! random bytes and the clock are injected.
//!
//! Start with [`Member::step`].

use crate::admission::{JoinRequest, Welcome};
use crate::crypto::Entropy;
use crate::hub::{Decision, Hub, HubError};
use crate::identity::{LatticeId, SiteId, SiteKey};
use crate::keyring::{EnvelopeKind, Keyring, Refusal};
use crate::membership::{Effect, Event, Membership, SiteState, Timing};
use crate::message::Message;
use crate::mux::{Incoming, Mux, SiteStream};
use crate::saved::Saved;
use crate::state::PublishError;
use crate::streams::StreamError;
use crate::trust::{EpochRecord, JoinToken, SiteName};
use crate::wire::{DecodeError, Reader, Writer};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
pub use view::{SiteView, Standing, View};

/// How long until a site that has no answer asks again to join; up to a quarter more.
const JOIN_AGAIN: Duration = Duration::from_secs(5);
/// How long until a member asks the hub again for the present epoch.
const RENEW_AGAIN: Duration = Duration::from_secs(10);
/// How long until the same site is told the same again: that its epoch is old, that it is
/// revoked, that its count is too low.
const TELL_AGAIN: Duration = Duration::from_secs(2);
/// Sites remembered for that; when there are more, nobody is told until they fade.
const TOLD_MAX: usize = 256;
/// By how much longer a member may take to ask what holds now, for each that asks as well.
const RENEW_EACH: Duration = Duration::from_millis(10);
/// The subject on which hubs hear who wants to join.
const JOIN_SUBJECT: &str = "salp.join";
/// How far a lost count of starts is put forward at most.
const RECOUNT: u64 = 1 << 16;
/// A round trip as long as none is known.
const RTT_GUESS: Duration = Duration::from_millis(100);

/// What a site works with.
pub(crate) struct MemberConfig {
    pub(crate) key: Arc<SiteKey>,
    pub(crate) name: SiteName,
    pub(crate) timing: Timing,
    /// The lattice's root key, at its hub.
    pub(crate) root: Option<SiteKey>,
    pub(crate) token: Option<JoinToken>,
    /// As it was written down, the incarnation being this one.
    pub(crate) saved: Saved,
    pub(crate) entropy: Entropy,
    /// Seconds since 1970, for tokens only.
    pub(crate) unix: Box<dyn Fn() -> u64 + Send>,
}

/// What comes in.
#[derive(Debug)]
pub(crate) enum Input {
    /// Time has passed, or a stream is to be looked at.
    Tick,
    /// The link is up, or is not.
    Link(bool),
    /// An envelope.
    Received(Bytes),
    /// There is traffic to a site.
    Traffic(SiteId),
    /// Somebody wants to know how far a site is.
    Measure(SiteId),
    /// The site leaves for now.
    Leave,
}

/// What goes out.
#[derive(Debug)]
pub(crate) enum Output {
    /// An envelope, to be published.
    Publish { subject: String, bytes: Vec<u8> },
    /// What [`Member::view`] shows has changed.
    Changed,
    /// What [`Member::saved`] gives is to be written down.
    Save,
    /// It is to be written down soon: another's certificate is new.
    Remember,
    /// At the hub it is to be written down very soon: a site was admitted.
    Admitted,
    /// Another site has opened a stream.
    Incoming(Incoming),
}

enum Phase {
    Joining,
    Member(Box<Keyring>),
    Revoked(EpochRecord),
}

/// See the module.
pub(crate) struct Member {
    key: Arc<SiteKey>,
    name: SiteName,
    token: Option<JoinToken>,
    hub: Option<Hub>,
    phase: Phase,
    incarnation: u64,
    membership: Membership,
    mux: Mux,
    entropy: Entropy,
    unix: Box<dyn Fn() -> u64 + Send>,
    link: bool,
    ask_at: Option<Duration>,
    told: BTreeMap<SiteId, Duration>,
    /// Whose certificates came in and were not handed on to all.
    new: BTreeSet<SiteId>,
    out: Vec<Output>,
}

impl Member {
    pub(crate) fn new(mut config: MemberConfig) -> Result<Self, DecodeError> {
        let saved = config.saved;
        let mut hub = None;
        let mut welcome = saved.welcome;
        if let Some(root) = config.root {
            match &welcome {
                Some(own) if own.root == *root.public() => {
                    hub = Some(Hub::resume(root, own, saved.known.iter(), &saved.tokens)?);
                }
                _ => {
                    let group = config.entropy.bytes();
                    let (founded, own) = Hub::found(root, &config.key, config.name.clone(), group);
                    hub = Some(founded);
                    welcome = Some(own);
                }
            }
        }
        let entropy = Entropy::seeded_by(&mut config.entropy);
        let (own, is_hub) = (config.key.id(), hub.is_some());
        let mut member = Self {
            key: config.key,
            name: config.name,
            token: config.token,
            hub,
            phase: Phase::Joining,
            incarnation: saved.incarnation,
            membership: Membership::new(own, is_hub, config.timing, entropy),
            mux: Mux::default(),
            entropy: config.entropy,
            unix: config.unix,
            link: false,
            ask_at: None,
            told: BTreeMap::new(),
            new: BTreeSet::new(),
            out: Vec::new(),
        };
        if let Some(welcome) = welcome {
            member.join(welcome);
            let Phase::Member(keyring) = &mut member.phase else {
                return Ok(member);
            };
            let mut known = Vec::new();
            for certificate in saved.known {
                let site = certificate.site();
                if keyring.learn(certificate) {
                    known.push(site);
                }
            }
            member.tell(Duration::ZERO, Event::Introduced(known));
        }
        Ok(member)
    }

    pub(crate) fn id(&self) -> SiteId {
        self.key.id()
    }

    pub(crate) fn key(&self) -> Arc<SiteKey> {
        Arc::clone(&self.key)
    }

    /// How many others it knows.
    pub(crate) fn known(&self) -> usize {
        self.membership.peers().len()
    }

    pub(crate) fn dirty(&self) -> Arc<crate::mux::Dirty> {
        self.mux.dirty()
    }

    /// What is to be listened to now.
    pub(crate) fn subjects(&self) -> Vec<String> {
        let mut subjects = vec![welcome_subject(self.id())];
        if let Phase::Member(keyring) = &self.phase {
            let lattice = keyring.root().lattice_id();
            subjects.push(all_subject(lattice));
            subjects.push(site_subject(lattice, self.id()));
        }
        if self.hub.is_some() {
            subjects.push(JOIN_SUBJECT.to_owned());
            if let Phase::Member(keyring) = &self.phase {
                subjects.push(hub_subject(keyring.root().lattice_id()));
            }
        }
        subjects
    }

    /// When [`Input::Tick`] is due.
    pub(crate) fn next(&self) -> Option<Duration> {
        let ask = self.ask_at.filter(|_| self.link);
        let membership = match self.phase {
            Phase::Member(_) => self.membership.next(),
            _ => None,
        };
        [ask, membership, self.mux.next()]
            .into_iter()
            .flatten()
            .min()
    }

    pub(crate) fn step(&mut self, now: Duration, input: Input) -> Vec<Output> {
        match input {
            Input::Tick => self.tell(now, Event::Tick),
            Input::Link(up) => {
                self.link = up;
                if up {
                    self.ask_at = Some(match self.phase {
                        // A thousand may be back at once.
                        Phase::Member(_) => now + self.membership.by_chance(RENEW_EACH),
                        _ => now,
                    });
                }
                self.out.push(Output::Changed);
                self.tell(now, Event::Link(up));
            }
            Input::Received(bytes) => self.received(now, &bytes),
            Input::Traffic(site) => self.tell(now, Event::Traffic(site)),
            Input::Measure(site) => self.tell(now, Event::Measure(site)),
            Input::Leave => {
                self.tell(now, Event::Leave);
                self.mux.fail(None, &StreamError::Closed);
            }
        }
        if self.link && self.ask_at.is_some_and(|at| at <= now) {
            self.ask(now);
        }
        let mut frames = Vec::new();
        self.mux.pump_all(now, &mut frames);
        self.send_frames(frames);
        std::mem::take(&mut self.out)
    }

    /// Sets values of this site's state.
    pub(crate) fn publish(
        &mut self,
        now: Duration,
        values: Vec<(String, Option<Bytes>)>,
    ) -> Result<(), PublishError> {
        let mut result = Ok(());
        for (key, value) in values {
            let set = self.membership.publish(now, &key, value);
            if result.is_ok() {
                result = set;
            }
        }
        result
    }

    /// Opens a stream; it goes out with the next step.
    pub(crate) fn open(
        &mut self,
        now: Duration,
        site: SiteId,
        protocol: &str,
    ) -> Option<SiteStream> {
        let peer = self.membership.peers().get(&site)?;
        if matches!(peer.state, SiteState::Gone | SiteState::Left) {
            return None;
        }
        let rtt = peer.rtt.unwrap_or(RTT_GUESS);
        Some(self.mux.open(site, protocol, now, rtt))
    }

    /// What the hub is asked to do.
    pub(crate) fn approve(&mut self, now: Duration, site: &str) -> Result<SiteId, HubError> {
        let hub = self.hub.as_mut().ok_or(HubError::NoHub)?;
        let welcome = hub.approve(site)?;
        let id = welcome.certificate.site();
        self.admitted(now, welcome);
        // Who has no token could not ask again.
        self.out.push(Output::Save);
        Ok(id)
    }

    pub(crate) fn revoke(&mut self, now: Duration, site: &str) -> Result<(), HubError> {
        let own = self.id();
        let group = self.entropy.bytes();
        let hub = self.hub.as_mut().ok_or(HubError::NoHub)?;
        for welcome in hub.revoke(site, own, group)? {
            if welcome.certificate.site() == own {
                self.advance(now, welcome);
            } else {
                self.send_welcome(&welcome);
            }
        }
        self.out.push(Output::Changed);
        Ok(())
    }

    pub(crate) fn make_token(&mut self, ttl: Duration, uses: u32) -> Result<JoinToken, HubError> {
        let id = self.entropy.bytes();
        let unix = (self.unix)();
        let hub = self.hub.as_mut().ok_or(HubError::NoHub)?;
        let token = hub.token(id, unix, unix.saturating_add(ttl.as_secs()), uses)?;
        self.out.push(Output::Save);
        Ok(token)
    }

    pub(crate) fn saved(&self) -> Saved {
        let (welcome, known) = match &self.phase {
            Phase::Member(keyring) => {
                let own = Welcome {
                    root: *keyring.root(),
                    certificate: keyring.certificate().clone(),
                    record: keyring.record().clone(),
                    group: *keyring.group(),
                    members: self.known() as u64 + 1,
                };
                (Some(own), keyring.certificates().cloned().collect())
            }
            Phase::Joining | Phase::Revoked(_) => (None, Vec::new()),
        };
        Saved {
            incarnation: self.incarnation,
            welcome,
            known,
            tokens: self.hub.as_ref().map(Hub::tokens).unwrap_or_default(),
        }
    }

    fn join(&mut self, welcome: Welcome) {
        self.membership.expect(welcome.members);
        let keyring = Keyring::new(Arc::clone(&self.key), welcome, self.incarnation);
        self.phase = Phase::Member(Box::new(keyring));
    }

    /// Asks to join, or as a member for what holds now.
    fn ask(&mut self, now: Duration) {
        self.ask_at = None;
        if self.hub.is_some() || matches!(self.phase, Phase::Revoked(_)) {
            return;
        }
        let root = match &self.phase {
            Phase::Member(keyring) => Some(*keyring.root()),
            _ => {
                let again = JOIN_AGAIN.as_millis() as u64;
                let jitter = Duration::from_millis(self.entropy.below(again / 4));
                self.ask_at = Some(now + JOIN_AGAIN + jitter);
                self.token.as_ref().map(|t| t.root)
            }
        };
        let request = JoinRequest {
            keys: *self.key.public(),
            name: self.name.clone(),
            token: match self.phase {
                Phase::Joining => self.token.clone(),
                _ => None,
            },
        };
        let sealed = request.seal(&self.key, root.as_ref(), self.entropy.bytes());
        self.out.push(Output::Publish {
            subject: JOIN_SUBJECT.to_owned(),
            bytes: EnvelopeKind::Join.wrap(&sealed),
        });
    }

    fn received(&mut self, now: Duration, bytes: &Bytes) {
        let Ok((kind, body)) = EnvelopeKind::of(bytes) else {
            return;
        };
        match kind {
            EnvelopeKind::Group | EnvelopeKind::Pair => self.message(now, bytes),
            EnvelopeKind::Join => self.asked(now, body),
            EnvelopeKind::Welcome => self.welcomed(now, body),
            EnvelopeKind::Record => self.record(body),
        }
    }

    /// At the hub: somebody asks to join.
    fn asked(&mut self, now: Duration, body: &[u8]) {
        let unix = (self.unix)();
        let Some(hub) = &mut self.hub else {
            return;
        };
        let Ok(Some(request)) = JoinRequest::open(hub.root(), body) else {
            return;
        };
        let site = request.keys.site_id();
        if site == self.key.id() {
            return;
        }
        match hub.decide(request, unix) {
            Decision::Admit(welcome) => self.admitted(now, *welcome),
            Decision::Wait => self.out.push(Output::Changed),
            Decision::Revoked => self.tell_revoked(now, site),
        }
    }

    fn admitted(&mut self, now: Duration, welcome: Welcome) {
        self.send_welcome(&welcome);
        let site = welcome.certificate.site();
        let mut new = true;
        if let Phase::Member(keyring) = &mut self.phase {
            // Most only ask what holds now.
            new = keyring.certificate_of(site) != Some(&welcome.certificate);
            if keyring.learn(welcome.certificate) {
                self.new.insert(site);
            }
            self.tell(now, Event::Known(site));
        }
        if new {
            self.out.push(Output::Admitted);
            self.out.push(Output::Changed);
        }
    }

    fn send_welcome(&mut self, welcome: &Welcome) {
        let sealed = welcome.seal(self.entropy.bytes());
        self.out.push(Output::Publish {
            subject: welcome_subject(welcome.certificate.site()),
            bytes: EnvelopeKind::Welcome.wrap(&sealed),
        });
    }

    fn welcomed(&mut self, now: Duration, body: &[u8]) {
        let Ok(welcome) = Welcome::open(&self.key, body) else {
            return;
        };
        match &self.phase {
            Phase::Member(_) => self.advance(now, welcome),
            Phase::Revoked(_) => {}
            Phase::Joining => {
                if self.token.as_ref().is_some_and(|t| t.root != welcome.root) {
                    return;
                }
                self.join(welcome);
                self.ask_at = None;
                self.out.push(Output::Save);
                self.out.push(Output::Changed);
                // The first heartbeat carries the certificate.
                let link = self.link;
                self.tell(now, Event::Link(false));
                self.tell(now, Event::Link(link));
            }
        }
    }

    /// Takes in a newer epoch.
    fn advance(&mut self, now: Duration, welcome: Welcome) {
        let Phase::Member(keyring) = &mut self.phase else {
            return;
        };
        let Some(gone) = keyring.advance(welcome) else {
            return;
        };
        for site in gone {
            self.mux.fail(
                Some(site),
                &StreamError::Reset("the site is revoked".into()),
            );
            self.tell(now, Event::Revoked(site));
        }
        self.out.push(Output::Save);
        self.out.push(Output::Changed);
    }

    /// An epoch record in the open matters to those whom it revokes.
    fn record(&mut self, body: &[u8]) {
        let mut r = Reader::new(body);
        let Ok(record) = EpochRecord::read(&mut r) else {
            return;
        };
        let Phase::Member(keyring) = &self.phase else {
            return;
        };
        if self.hub.is_none()
            && record.epoch > keyring.record().epoch
            && record.revoked.contains(&self.key.id())
            && record.is_signed_by(keyring.root())
        {
            self.phase = Phase::Revoked(record);
            self.mux
                .fail(None, &StreamError::Reset("this site is revoked".into()));
            self.out.push(Output::Changed);
        }
    }

    fn message(&mut self, now: Duration, bytes: &[u8]) {
        let Phase::Member(keyring) = &mut self.phase else {
            return;
        };
        let opened = match keyring.open(bytes) {
            Ok(opened) => opened,
            Err(refusal) => return self.refused(now, refusal),
        };
        let from = opened.from;
        let Ok(message) = Message::decode(&opened.payload) else {
            return;
        };
        if !message.may_be(opened.pair) {
            return;
        }
        if opened.introduced {
            self.new.insert(from);
            self.out.push(Output::Remember);
        }
        if opened.behind {
            self.bring_up(now, from);
        }
        // Known certificates of those not heard before are here as well.
        if !self.membership.peers().contains_key(&from) {
            self.tell(now, Event::Known(from));
        }
        let before = self.membership.peers().get(&from).map(|p| p.incarnation);
        if before.is_some_and(|before| before != 0 && before < opened.incarnation) {
            let error = StreamError::Reset("the site has restarted".into());
            self.mux.fail(Some(from), &error);
        }
        let event = |message| Event::Heard {
            from,
            incarnation: opened.incarnation,
            message,
        };
        match message {
            Message::Frame(frame) => {
                self.tell(now, event(None));
                let rtt = self.membership.peers().get(&from).and_then(|p| p.rtt);
                let mut frames = Vec::new();
                let rtt = rtt.unwrap_or(RTT_GUESS);
                let incoming = self.mux.take(now, from, frame, rtt, &mut frames);
                self.out.extend(incoming.map(Output::Incoming));
                self.send_frames(frames);
            }
            Message::Stale { known } => self.catch_up(now, known),
            Message::Members {
                certificates,
                signature,
            } => {
                self.tell(now, event(None));
                self.introduced(now, certificates, signature);
            }
            Message::Roll { .. } => self.roll(now, from, event(Some(message))),
            Message::Ask { sites } if !sites.contains(&self.key.id()) => {
                self.tell(now, event(None));
            }
            message => self.tell(now, event(Some(message))),
        }
    }

    /// Somebody has heard a higher count of this site: the file was lost or is old.
    fn catch_up(&mut self, now: Duration, known: u64) {
        if known < self.incarnation || known > u64::MAX - RECOUNT {
            return;
        }
        self.incarnation = recounted(known, &mut self.entropy);
        if let Phase::Member(keyring) = &mut self.phase {
            keyring.restart(self.incarnation);
        }
        let error = StreamError::Reset("the site has restarted".into());
        self.mux.fail(None, &error);
        self.out.push(Output::Save);
        let link = self.link;
        self.tell(now, Event::Link(false));
        self.tell(now, Event::Link(link));
    }

    fn refused(&mut self, now: Duration, refusal: Refusal) {
        match refusal {
            Refusal::Forged | Refusal::Replayed => {}
            Refusal::Unknown(site) => self.tell(now, Event::Stranger(site)),
            Refusal::Revoked(site) => self.tell_revoked(now, site),
            Refusal::Behind(site) => self.bring_up(now, site),
            Refusal::Ahead(site) => {
                if !self.may_tell(now, site) {
                    return;
                }
                // Whoever is ahead sees by this that this site is behind, and brings it up;
                // so does the hub when it is asked.
                let beat = self.membership.beat(now);
                self.group_message(Some(site), &beat, true);
                let again = now + RENEW_AGAIN;
                if self.ask_at.is_none() && self.hub.is_none() {
                    self.ask(now);
                    self.ask_at = Some(again);
                }
            }
            Refusal::Stale { from, known } => {
                if self.may_tell(now, from) {
                    self.group_message(Some(from), &Message::Stale { known }, true);
                }
            }
        }
    }

    fn may_tell(&mut self, now: Duration, site: SiteId) -> bool {
        if self.told.len() >= TOLD_MAX {
            self.told.retain(|_, at| now < *at + TELL_AGAIN);
        }
        let recent = self
            .told
            .get(&site)
            .is_some_and(|at| now < *at + TELL_AGAIN);
        if recent || self.told.len() >= TOLD_MAX {
            return false;
        }
        self.told.insert(site, now);
        true
    }

    fn bring_up(&mut self, now: Duration, site: SiteId) {
        let Phase::Member(keyring) = &self.phase else {
            return;
        };
        if let Some(welcome) = keyring.welcome_for(site)
            && self.may_tell(now, site)
        {
            self.send_welcome(&welcome);
        }
    }

    fn tell_revoked(&mut self, now: Duration, site: SiteId) {
        if !self.may_tell(now, site) {
            return;
        }
        let Phase::Member(keyring) = &self.phase else {
            return;
        };
        let mut w = Writer::new();
        keyring.record().write(&mut w);
        let subject = site_subject(keyring.root().lattice_id(), site);
        let bytes = EnvelopeKind::Record.wrap(w.as_slice());
        self.out.push(Output::Publish { subject, bytes });
    }

    /// Lets the membership know, and does what it says.
    fn tell(&mut self, now: Duration, event: Event) {
        if !matches!(self.phase, Phase::Member(_)) {
            return;
        }
        for effect in self.membership.step(now, event) {
            match effect {
                Effect::Broadcast { message, introduce } => {
                    if let Message::Roll { sites, .. } = &message {
                        self.hand_on(sites);
                    }
                    self.group_message(None, &message, introduce);
                }
                Effect::Report { message } => self.report(&message),
                Effect::Members { site } => {
                    for message in self.certificates(|other| other != site) {
                        self.pair_message(site, &message);
                    }
                }
                Effect::Tell { site, message } => self.group_message(Some(site), &message, true),
                Effect::Send { site, message } => self.pair_message(site, &message),
                Effect::Changed => self.out.push(Output::Changed),
            }
        }
    }

    fn group_message(&mut self, to: Option<SiteId>, message: &Message, introduce: bool) {
        let Phase::Member(keyring) = &mut self.phase else {
            return;
        };
        let lattice = keyring.root().lattice_id();
        let bytes = keyring.seal_group(&message.encode(), introduce);
        let subject = to.map_or_else(|| all_subject(lattice), |site| site_subject(lattice, site));
        self.out.push(Output::Publish { subject, bytes });
    }

    fn pair_message(&mut self, to: SiteId, message: &Message) {
        let Phase::Member(keyring) = &mut self.phase else {
            return;
        };
        if let Some(bytes) = keyring.seal_pair(to, &message.encode()) {
            let subject = site_subject(keyring.root().lattice_id(), to);
            self.out.push(Output::Publish { subject, bytes });
        }
    }

    fn send_frames(&mut self, frames: Vec<(SiteId, crate::message::Frame)>) {
        for (site, frame) in frames {
            self.pair_message(site, &Message::Frame(frame));
        }
    }
}

/// A count that was never used, of a site that has lost its own and has heard of one: others
/// may know of a higher one, and what was sealed under a number must not be sealed again.
pub(crate) fn recounted(known: u64, entropy: &mut Entropy) -> u64 {
    known + 1 + entropy.below(RECOUNT - 1)
}

fn all_subject(lattice: LatticeId) -> String {
    format!("salp.{lattice}.all")
}

fn hub_subject(lattice: LatticeId) -> String {
    format!("salp.{lattice}.hub")
}

fn site_subject(lattice: LatticeId, site: SiteId) -> String {
    format!("salp.{lattice}.to.{site}")
}

fn welcome_subject(site: SiteId) -> String {
    format!("salp.welcome.{site}")
}

mod crowd;
#[cfg(test)]
mod simulation;
mod view;

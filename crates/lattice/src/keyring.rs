//! What a member seals and opens with: the group's key for what all may read, and for each
//! other member a key of the two. Every message names its sender, the sender's incarnation
//! (how often it has started) and a number, so that none is taken twice.
//!
//! - **Group messages** are sealed with a key derived from the epoch's group key for this
//!   sender and incarnation, and signed: members can't speak for each other.
//! - **Pair messages** are sealed with a key agreed on by the two static keys, for these two
//!   incarnations: what was recorded before either restarted opens no more.
//!
//! It looks at no clock. Start with [`Keyring::open`].

use crate::admission::Welcome;
use crate::crypto::{self, SealKey};
use crate::identity::{PublicKeys, SiteId, SiteKey};
use crate::trust::{Certificate, EpochRecord};
use crate::wire::{DecodeError, Reader, Writer};
use std::collections::HashMap;
use std::sync::Arc;

/// Members known at once; certificates of further ones are not taken in, so that they can't
/// be heard here.
pub(crate) const MEMBERS_MAX: usize = 4096;

/// The version of the envelope.
const VERSION: u8 = 1;
const SIGNED: &str = "salp group message 1";

/// What an envelope holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnvelopeKind {
    /// For all members.
    Group,
    /// For one member.
    Pair,
    /// A request to join, for hubs.
    Join,
    /// All that a member needs, for one site.
    Welcome,
    /// An epoch record in the open: how a revoked site learns that it is.
    Record,
}

impl EnvelopeKind {
    const ALL: [Self; 5] = [
        Self::Group,
        Self::Pair,
        Self::Join,
        Self::Welcome,
        Self::Record,
    ];

    /// Takes an envelope's first two bytes off.
    ///
    /// # Errors
    /// When they are of no known version or kind.
    pub fn of(bytes: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        let mut r = Reader::new(bytes);
        let version = r.u8()?;
        if version != VERSION {
            return Err(DecodeError::Unknown {
                what: "the version",
                value: version.into(),
            });
        }
        let value = r.u8()?;
        let kind = usize::from(value).checked_sub(1);
        let kind = kind.and_then(|i| Self::ALL.get(i));
        let kind = kind.ok_or(DecodeError::Unknown {
            what: "the envelope's kind",
            value: value.into(),
        })?;
        Ok((*kind, r.rest()))
    }

    pub(crate) fn head(self) -> Writer {
        let mut w = Writer::new();
        let kind = Self::ALL.iter().position(|k| *k == self).unwrap_or(0);
        w.u8(VERSION).u8(kind as u8 + 1);
        w
    }

    pub(crate) fn wrap(self, body: &[u8]) -> Vec<u8> {
        self.head().fixed(body).finish()
    }
}

/// A message that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    pub(crate) from: SiteId,
    pub(crate) incarnation: u64,
    /// Whether it was for this site alone.
    pub(crate) pair: bool,
    /// The sender is in an older epoch.
    pub(crate) behind: bool,
    /// The message came with a certificate that was new here.
    pub(crate) introduced: bool,
    pub(crate) payload: Vec<u8>,
}

/// Why a message was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is no message, is not what was sealed, or its sender may not send it.
    Forged,
    /// No certificate of the sender is known.
    Unknown(SiteId),
    /// The sender is a member no more.
    Revoked(SiteId),
    /// The sender, a member, is in an epoch whose key is gone here.
    Behind(SiteId),
    /// The sender, a member, is in an epoch that is not known here.
    Ahead(SiteId),
    /// The sender claims to have started less often than is known here: it lost its count.
    Stale { from: SiteId, known: u64 },
    /// It was taken before, or is meant for this site before it restarted.
    Replayed,
}

/// See the module.
pub(crate) struct Keyring {
    key: Arc<SiteKey>,
    root: PublicKeys,
    certificate: Certificate,
    record: EpochRecord,
    /// The present epoch's key, and the one before it for those who have not moved on.
    groups: Vec<(u64, [u8; 32])>,
    incarnation: u64,
    sealer: SealKey,
    group_sent: u64,
    peers: HashMap<SiteId, Peer>,
}

struct Peer {
    certificate: Certificate,
    /// 0 until heard.
    incarnation: u64,
    /// As others say, until it is heard itself.
    claimed: u64,
    group_window: Window,
    /// For the epoch and the incarnation.
    opener: Option<(u64, u64, SealKey)>,
    /// For the incarnation.
    pair: Option<(u64, Pair)>,
}

struct Pair {
    sealer: SealKey,
    opener: SealKey,
    sent: u64,
    window: Window,
}

impl Keyring {
    pub(crate) fn new(key: Arc<SiteKey>, welcome: Welcome, incarnation: u64) -> Self {
        let id = key.id();
        Self {
            key,
            root: welcome.root,
            certificate: welcome.certificate,
            groups: vec![(welcome.record.epoch, welcome.group)],
            record: welcome.record,
            incarnation,
            sealer: group_key(&welcome.group, id, incarnation),
            group_sent: 0,
            peers: HashMap::new(),
        }
    }

    pub(crate) fn id(&self) -> SiteId {
        self.key.id()
    }

    #[cfg(test)]
    pub(crate) fn key(&self) -> &SiteKey {
        &self.key
    }

    pub(crate) fn root(&self) -> &PublicKeys {
        &self.root
    }

    pub(crate) fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    pub(crate) fn record(&self) -> &EpochRecord {
        &self.record
    }

    pub(crate) fn group(&self) -> &[u8; 32] {
        // There is always the present one, and it is the last.
        &self.groups[self.groups.len() - 1].1
    }

    /// Others' certificates.
    pub(crate) fn certificates(&self) -> impl Iterator<Item = &Certificate> {
        self.peers.values().map(|p| &p.certificate)
    }

    pub(crate) fn certificate_of(&self, site: SiteId) -> Option<&Certificate> {
        Some(&self.peers.get(&site)?.certificate)
    }

    /// Starts over with a higher incarnation: all that was sent before is void.
    pub(crate) fn restart(&mut self, incarnation: u64) {
        self.incarnation = incarnation;
        self.group_sent = 0;
        self.sealer = group_key(self.group(), self.id(), incarnation);
        for peer in self.peers.values_mut() {
            peer.pair = None;
        }
    }

    /// Takes in another's certificate if it is a member's; whether it was new.
    pub(crate) fn learn(&mut self, certificate: Certificate) -> bool {
        certificate.is_signed_by(&self.root) && self.admit(certificate)
    }

    /// Takes in what is new of many certificates; whose they are.
    pub(crate) fn learn_all(
        &mut self,
        certificates: Vec<Certificate>,
        signature: Option<[u8; 64]>,
    ) -> Vec<SiteId> {
        let known = |c: &Certificate| self.certificate_of(c.site()) == Some(c);
        if certificates.iter().all(known) {
            return Vec::new();
        }
        let signed = signature.is_some_and(|signature| {
            Certificate::are_signed_by(&certificates, &self.root, &signature)
        });
        let mut new = Vec::new();
        for certificate in certificates {
            let site = certificate.site();
            let known = self.certificate_of(site) == Some(&certificate);
            if !known && (signed || certificate.is_signed_by(&self.root)) && self.admit(certificate)
            {
                new.push(site);
            }
        }
        new
    }

    fn admit(&mut self, certificate: Certificate) -> bool {
        let site = certificate.site();
        if site == self.id() || !self.admits(&certificate) {
            return false;
        }
        let full = self.peers.len() >= MEMBERS_MAX;
        match self.peers.get_mut(&site) {
            Some(peer) => {
                if certificate.epoch > peer.certificate.epoch {
                    peer.certificate = certificate;
                }
                false
            }
            None if full => false,
            None => {
                let peer = Peer {
                    certificate,
                    incarnation: 0,
                    claimed: 0,
                    group_window: Window::default(),
                    opener: None,
                    pair: None,
                };
                self.peers.insert(site, peer);
                true
            }
        }
    }

    /// Another member says that a site has this incarnation: what is for it is sealed so.
    pub(crate) fn claim(&mut self, site: SiteId, incarnation: u64) {
        if let Some(peer) = self.peers.get_mut(&site) {
            peer.claimed = incarnation;
        }
    }

    fn admits(&self, certificate: &Certificate) -> bool {
        certificate.last_epoch >= self.record.epoch
            && !self.record.revoked.contains(&certificate.site())
    }

    /// Moves on to a newer epoch, or takes in a newer certificate of its own. `None` when
    /// the welcome is another root's or nothing new; else the sites revoked by it.
    pub(crate) fn advance(&mut self, welcome: Welcome) -> Option<Vec<SiteId>> {
        if welcome.root != self.root || welcome.record.epoch < self.record.epoch {
            return None;
        }
        let newer = welcome.certificate.epoch > self.certificate.epoch;
        if newer {
            self.certificate = welcome.certificate;
        }
        if welcome.record.epoch == self.record.epoch {
            return newer.then(Vec::new);
        }
        self.groups.push((welcome.record.epoch, welcome.group));
        if self.groups.len() > 2 {
            self.groups.remove(0);
        }
        self.record = welcome.record;
        // The counter goes on: the key is another one.
        self.sealer = group_key(self.group(), self.id(), self.incarnation);
        let gone: Vec<SiteId> = self
            .peers
            .iter()
            .filter(|(site, peer)| {
                self.record.revoked.contains(site)
                    || peer.certificate.last_epoch < self.record.epoch
            })
            .map(|(site, _)| *site)
            .collect();
        for site in &gone {
            self.peers.remove(site);
        }
        Some(gone)
    }

    /// What brings a member up to date; `None` when the site is none.
    pub(crate) fn welcome_for(&self, site: SiteId) -> Option<Welcome> {
        Some(Welcome {
            root: self.root,
            certificate: self.certificate_of(site)?.clone(),
            record: self.record.clone(),
            group: *self.group(),
            members: self.peers.len() as u64 + 1,
        })
    }

    /// Seals a message that every member can open, with this site's certificate if the
    /// reader may not have it.
    pub(crate) fn seal_group(&mut self, payload: &[u8], introduce: bool) -> Vec<u8> {
        self.group_sent += 1;
        let mut head = EnvelopeKind::Group.head();
        head.fixed(&self.id().0)
            .number(self.record.epoch)
            .number(self.incarnation)
            .number(self.group_sent);
        let mut out = head.finish();
        let mut plain = Writer::new();
        plain.u8(introduce.into());
        if introduce {
            self.certificate.write(&mut plain);
        }
        plain.fixed(payload);
        self.sealer
            .seal(self.group_sent, &mut out, plain.as_slice());
        let signature = self.key.sign(SIGNED, &out);
        out.extend_from_slice(&signature);
        out
    }

    /// Seals a message for one member; `None` when it was not heard of yet.
    pub(crate) fn seal_pair(&mut self, to: SiteId, payload: &[u8]) -> Option<Vec<u8>> {
        let peer = self.peers.get(&to)?;
        let theirs = peer.incarnation.max(peer.claimed);
        if theirs == 0 {
            return None;
        }
        self.pair(to, theirs)?;
        let (id, incarnation) = (self.id(), self.incarnation);
        let (_, pair) = self.peers.get_mut(&to)?.pair.as_mut()?;
        pair.sent += 1;
        let mut head = EnvelopeKind::Pair.head();
        head.fixed(&id.0)
            .number(incarnation)
            .number(theirs)
            .number(pair.sent);
        let mut out = head.finish();
        pair.sealer.seal(pair.sent, &mut out, payload);
        Some(out)
    }

    /// Opens a group or pair message.
    pub(crate) fn open(&mut self, bytes: &[u8]) -> Result<Opened, Refusal> {
        match EnvelopeKind::of(bytes) {
            Ok((EnvelopeKind::Group, _)) => self.open_group(bytes),
            Ok((EnvelopeKind::Pair, _)) => self.open_pair(bytes),
            _ => Err(Refusal::Forged),
        }
    }

    fn sender(&self, r: &mut Reader<'_>) -> Result<SiteId, Refusal> {
        let from = SiteId(r.fixed().map_err(|_| Refusal::Forged)?);
        if from == self.id() {
            // A message of this site's own comes back, or a copy of this site is about.
            return Err(Refusal::Replayed);
        }
        if self.record.revoked.contains(&from) {
            return Err(Refusal::Revoked(from));
        }
        Ok(from)
    }

    fn open_group(&mut self, bytes: &[u8]) -> Result<Opened, Refusal> {
        let forged = |_| Refusal::Forged;
        let mut r = Reader::new(&bytes[2..]);
        let from = self.sender(&mut r)?;
        let epoch = r.number().map_err(forged)?;
        let incarnation = r.number().map_err(forged)?;
        let number = r.number().map_err(forged)?;
        let body = r.rest();
        let split = body.len().checked_sub(64).ok_or(Refusal::Forged)?;
        let (sealed, signature) = body.split_at(split);
        let signed = &bytes[..bytes.len() - 64];
        let head = &bytes[..bytes.len() - body.len()];

        let Some((_, group)) = self.groups.iter().find(|(e, _)| *e == epoch) else {
            // It can't be opened, but who sent it can be told.
            let peer = self.peers.get(&from).ok_or(Refusal::Unknown(from))?;
            if !peer.certificate.keys.verify(SIGNED, signed, signature) {
                return Err(Refusal::Forged);
            }
            return Err(if epoch < self.record.epoch {
                Refusal::Behind(from)
            } else {
                Refusal::Ahead(from)
            });
        };
        let group = *group;
        let cached = self.peers.get(&from).and_then(|p| p.opener.as_ref());
        let plain = match cached {
            Some((e, i, key)) if (*e, *i) == (epoch, incarnation) => key.open(number, head, sealed),
            _ => group_key(&group, from, incarnation).open(number, head, sealed),
        };
        let plain = plain.ok_or(Refusal::Forged)?;
        let mut r = Reader::new(&plain);
        let mut introduced = false;
        if r.flag("a certificate").map_err(forged)? {
            let certificate = Certificate::read(&mut r).map_err(forged)?;
            if certificate.site() != from {
                return Err(Refusal::Forged);
            }
            let renewed = self
                .certificate_of(from)
                .is_none_or(|known| known.epoch < certificate.epoch);
            // Checking costs a signature: only what is new is checked.
            if renewed && certificate.keys.verify(SIGNED, signed, signature) {
                introduced = self.learn(certificate);
            }
        }
        let behind = epoch < self.record.epoch;
        let peer = self.peers.get_mut(&from).ok_or(Refusal::Unknown(from))?;
        if !peer.certificate.keys.verify(SIGNED, signed, signature) {
            return Err(Refusal::Forged);
        }
        peer.meet(from, incarnation)?;
        if !peer.group_window.take(number) {
            return Err(Refusal::Replayed);
        }
        if peer.opener.as_ref().map(|o| (o.0, o.1)) != Some((epoch, incarnation)) {
            let key = group_key(&group, from, incarnation);
            peer.opener = Some((epoch, incarnation, key));
        }
        Ok(Opened {
            from,
            incarnation,
            pair: false,
            behind,
            introduced,
            payload: r.rest().to_vec(),
        })
    }

    fn open_pair(&mut self, bytes: &[u8]) -> Result<Opened, Refusal> {
        let forged = |_| Refusal::Forged;
        let mut r = Reader::new(&bytes[2..]);
        let from = self.sender(&mut r)?;
        let incarnation = r.number().map_err(forged)?;
        let mine = r.number().map_err(forged)?;
        let number = r.number().map_err(forged)?;
        let head = &bytes[..bytes.len() - r.rest().len()];
        let peer = self.peers.get(&from).ok_or(Refusal::Unknown(from))?;
        if mine != self.incarnation || incarnation < peer.incarnation {
            return Err(Refusal::Replayed);
        }
        let payload = if peer.pair.as_ref().is_some_and(|p| p.0 == incarnation) {
            let pair = self.pair(from, incarnation).ok_or(Refusal::Forged)?;
            pair.opener.open(number, head, r.rest())
        } else {
            // Not kept before it has proven to be the sender's.
            let pair = self.agree(from, incarnation).ok_or(Refusal::Forged)?;
            pair.opener.open(number, head, r.rest())
        };
        let payload = payload.ok_or(Refusal::Forged)?;
        let peer = self.peers.get_mut(&from).ok_or(Refusal::Unknown(from))?;
        peer.meet(from, incarnation)?;
        let pair = self.pair(from, incarnation).ok_or(Refusal::Forged)?;
        if !pair.window.take(number) {
            return Err(Refusal::Replayed);
        }
        Ok(Opened {
            from,
            incarnation,
            pair: true,
            behind: false,
            introduced: false,
            payload,
        })
    }

    fn agree(&self, with: SiteId, theirs: u64) -> Option<Pair> {
        let keys = &self.peers.get(&with)?.certificate.keys;
        let shared = self.key.agree(&keys.agree)?;
        let lattice = self.root.lattice_id();
        let derive = |from: SiteId, f: u64, to: SiteId, t: u64| {
            let context: [&[u8]; 5] = [
                &lattice.0,
                &from.0,
                &f.to_be_bytes(),
                &to.0,
                &t.to_be_bytes(),
            ];
            SealKey::new(&crypto::derive(b"salp pair 1", &shared, &context))
        };
        let (id, mine) = (self.id(), self.incarnation);
        Some(Pair {
            sealer: derive(id, mine, with, theirs),
            opener: derive(with, theirs, id, mine),
            sent: 0,
            window: Window::default(),
        })
    }

    /// The keys for a member's incarnation, made if there are none.
    fn pair(&mut self, with: SiteId, theirs: u64) -> Option<&mut Pair> {
        let held = self.peers.get(&with)?.pair.as_ref();
        if held.is_none_or(|(i, _)| *i != theirs) {
            let pair = self.agree(with, theirs)?;
            self.peers.get_mut(&with)?.pair = Some((theirs, pair));
        }
        Some(&mut self.peers.get_mut(&with)?.pair.as_mut()?.1)
    }
}

impl Peer {
    /// Takes in which incarnation speaks.
    fn meet(&mut self, from: SiteId, incarnation: u64) -> Result<(), Refusal> {
        if incarnation < self.incarnation {
            let known = self.incarnation;
            return Err(Refusal::Stale { from, known });
        }
        // Its own word counts for more than any claim.
        self.claimed = 0;
        if incarnation > self.incarnation {
            self.incarnation = incarnation;
            self.group_window = Window::default();
        }
        Ok(())
    }
}

fn group_key(group: &[u8; 32], sender: SiteId, incarnation: u64) -> SealKey {
    let context: [&[u8]; 2] = [&sender.0, &incarnation.to_be_bytes()];
    SealKey::new(&crypto::derive(b"salp group 1", group, &context))
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring")
            .field("id", &self.id())
            .field("epoch", &self.record.epoch)
            .field("incarnation", &self.incarnation)
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}

/// Numbers that were taken: the highest, and which of the 128 up to it.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    highest: u64,
    taken: u128,
}

impl Window {
    /// Takes a number unless it was taken or is too old to tell.
    fn take(&mut self, number: u64) -> bool {
        if number == 0 {
            return false;
        }
        if number > self.highest {
            let by = number - self.highest;
            self.taken = if by < 128 { self.taken << by } else { 0 };
            self.taken |= 1;
            self.highest = number;
            return true;
        }
        let back = self.highest - number;
        let bit = if back < 128 { 1u128 << back } else { 0 };
        let fresh = bit != 0 && self.taken & bit == 0;
        self.taken |= bit;
        fresh
    }
}

#[cfg(test)]
mod tests;

//! The hub's authority: it holds the lattice's root key, admits, approves and revokes. Pure
//! but for the clock that judges tokens, which is passed in.

use crate::admission::{JoinRequest, Welcome};
use crate::identity::{SiteId, SiteKey};
use crate::trust::{Certificate, EpochRecord, JoinToken, REVOKED_MAX, SiteName};
use crate::wire::{DecodeError, Reader, Writer};
use std::collections::{BTreeMap, BTreeSet};

/// Sites that wait for approval; of more, the longest waiting are forgotten and ask again.
const PENDING_MAX: usize = 256;
/// Tokens whose uses are counted; when there are more, no further one can be made.
const TOKENS_MAX: usize = 1024;

/// A site that asks to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingSite {
    /// Its id.
    pub id: SiteId,
    /// What it says about itself.
    pub name: SiteName,
    /// Why it was not admitted.
    pub reason: &'static str,
    /// When it first asked, in seconds since 1970 by this site's clock.
    pub since: u64,
}

/// Why the hub refuses what an operator asks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum HubError {
    #[error("change members: this site is not the lattice's hub")]
    NoHub,
    #[error("find site {0}: no such site has asked to join")]
    NotPending(String),
    #[error("find site {0}: no member has this name or id")]
    NoMember(String),
    #[error("approve site {0}: another member has this name; revoke that one or rename the site")]
    NameTaken(String),
    #[error("revoke site {0}: it is the hub itself")]
    Itself(String),
    #[error("revoke site {0}: {REVOKED_MAX} sites are revoked already")]
    RevokedFull(String),
    #[error("make join token: {TOKENS_MAX} are in use")]
    TokensFull,
    #[error("change members: the lattice has stopped")]
    Stopped,
}

/// What becomes of a request.
#[derive(Debug)]
pub(crate) enum Decision {
    Admit(Box<Welcome>),
    Wait,
    Revoked,
}

struct Waiting {
    request: JoinRequest,
    reason: &'static str,
    since: u64,
}

/// See the module.
pub(crate) struct Hub {
    root: SiteKey,
    members: BTreeMap<SiteId, Certificate>,
    record: EpochRecord,
    group: [u8; 32],
    /// For each token when it ends and who has used it.
    tokens: BTreeMap<[u8; 8], (u64, BTreeSet<SiteId>)>,
    pending: BTreeMap<SiteId, Waiting>,
}

impl Hub {
    /// Founds a lattice, its first member being the hub itself.
    pub(crate) fn found(
        root: SiteKey,
        own: &SiteKey,
        name: SiteName,
        group: [u8; 32],
    ) -> (Self, Welcome) {
        let record = EpochRecord::issue(&root, 1, &group, BTreeSet::new());
        let mut hub = Self {
            root,
            members: BTreeMap::new(),
            record,
            group,
            tokens: BTreeMap::new(),
            pending: BTreeMap::new(),
        };
        let welcome = hub.issue(*own.public(), name);
        (hub, welcome)
    }

    /// Goes on with what the hub knows as a member, and the tokens that were written.
    pub(crate) fn resume<'a>(
        root: SiteKey,
        own: &Welcome,
        others: impl Iterator<Item = &'a Certificate>,
        tokens: &[u8],
    ) -> Result<Self, DecodeError> {
        let mut hub = Self {
            root,
            members: others.map(|c| (c.site(), c.clone())).collect(),
            record: own.record.clone(),
            group: own.group,
            tokens: BTreeMap::new(),
            pending: BTreeMap::new(),
        };
        hub.members
            .insert(own.certificate.site(), own.certificate.clone());
        hub.read_tokens(tokens)?;
        Ok(hub)
    }

    pub(crate) fn root(&self) -> &SiteKey {
        &self.root
    }

    pub(crate) fn pending(&self) -> Vec<PendingSite> {
        self.pending
            .iter()
            .map(|(id, waiting)| PendingSite {
                id: *id,
                name: waiting.request.name.clone(),
                reason: waiting.reason,
                since: waiting.since,
            })
            .collect()
    }

    /// Hears a request.
    pub(crate) fn decide(&mut self, request: JoinRequest, unix: u64) -> Decision {
        let site = request.keys.site_id();
        if self.record.revoked.contains(&site) {
            return Decision::Revoked;
        }
        if let Some(member) = self.members.get(&site) {
            // It has moved, or only asks for what holds now.
            let same = member.name == request.name || self.name_taken(&request.name.name, site);
            return Decision::Admit(Box::new(match same {
                true => self.welcome(member.clone()),
                false => self.issue(request.keys, request.name),
            }));
        }
        let reason = if self.name_taken(&request.name.name, site) {
            "its name is another member's"
        } else {
            match &request.token {
                None => "it waits for approval",
                Some(token) => match self.admits(token, site, unix) {
                    Ok(()) => {
                        self.pending.remove(&site);
                        return Decision::Admit(Box::new(self.issue(request.keys, request.name)));
                    }
                    Err(reason) => reason,
                },
            }
        };
        let since = self.pending.get(&site).map_or(unix, |p| p.since);
        if self.pending.len() >= PENDING_MAX && !self.pending.contains_key(&site) {
            let oldest = self.pending.iter().min_by_key(|(_, w)| w.since);
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                self.pending.remove(&oldest);
            }
        }
        let waiting = Waiting {
            request,
            reason,
            since,
        };
        self.pending.insert(site, waiting);
        Decision::Wait
    }

    fn admits(&mut self, token: &JoinToken, site: SiteId, unix: u64) -> Result<(), &'static str> {
        if token.root != *self.root.public() || !token.is_signed() {
            return Err("its token is of another lattice");
        }
        let Some((_, used)) = self.tokens.get_mut(&token.id) else {
            return Err("its token is not valid any more");
        };
        if token.expires <= unix {
            return Err("its token has ended");
        }
        if used.len() as u64 >= u64::from(token.uses) && !used.contains(&site) {
            return Err("its token is used up");
        }
        used.insert(site);
        Ok(())
    }

    fn name_taken(&self, name: &str, by_another_than: SiteId) -> bool {
        self.members
            .iter()
            .any(|(id, c)| *id != by_another_than && c.name.name == name)
    }

    fn issue(&mut self, keys: crate::identity::PublicKeys, name: SiteName) -> Welcome {
        let epoch = self.record.epoch;
        let certificate = Certificate::issue(&self.root, keys, name, epoch, u64::MAX);
        self.members.insert(certificate.site(), certificate.clone());
        self.welcome(certificate)
    }

    fn welcome(&self, certificate: Certificate) -> Welcome {
        Welcome {
            root: *self.root.public(),
            certificate,
            record: self.record.clone(),
            group: self.group,
            members: self.members.len() as u64,
        }
    }

    /// Admits a waiting site, by name or id.
    pub(crate) fn approve(&mut self, site: &str) -> Result<Welcome, HubError> {
        let mut found = self
            .pending
            .iter()
            .filter(|(id, w)| w.request.name.name == site || id.to_string() == site)
            .map(|(id, _)| *id);
        let (Some(id), None) = (found.next(), found.next()) else {
            return Err(HubError::NotPending(site.to_owned()));
        };
        let name = self.pending.get(&id).map(|w| w.request.name.name.clone());
        if let Some(name) = name.filter(|name| self.name_taken(name, id)) {
            return Err(HubError::NameTaken(name));
        }
        let Some(waiting) = self.pending.remove(&id) else {
            return Err(HubError::NotPending(site.to_owned()));
        };
        Ok(self.issue(waiting.request.keys, waiting.request.name))
    }

    /// Takes a member out and changes the group's key: the welcomes of all who stay.
    pub(crate) fn revoke(
        &mut self,
        site: &str,
        own: SiteId,
        group: [u8; 32],
    ) -> Result<Vec<Welcome>, HubError> {
        let mut found = self
            .members
            .iter()
            .filter(|(id, c)| c.name.name == site || id.to_string() == site)
            .map(|(id, _)| *id);
        let Some(id) = found.next() else {
            return Err(HubError::NoMember(site.to_owned()));
        };
        if id == own {
            return Err(HubError::Itself(site.to_owned()));
        }
        if self.record.revoked.len() >= REVOKED_MAX {
            return Err(HubError::RevokedFull(site.to_owned()));
        }
        self.members.remove(&id);
        let mut revoked = self.record.revoked.clone();
        revoked.insert(id);
        let epoch = self.record.epoch + 1;
        self.record = EpochRecord::issue(&self.root, epoch, &group, revoked);
        self.group = group;
        let certificates = self.members.values();
        Ok(certificates.map(|c| self.welcome(c.clone())).collect())
    }

    /// Makes a token that admits `uses` sites until `expires`.
    pub(crate) fn token(
        &mut self,
        id: [u8; 8],
        unix: u64,
        expires: u64,
        uses: u32,
    ) -> Result<JoinToken, HubError> {
        self.tokens.retain(|_, (ends, _)| *ends > unix);
        if self.tokens.len() >= TOKENS_MAX {
            return Err(HubError::TokensFull);
        }
        self.tokens.insert(id, (expires, BTreeSet::new()));
        Ok(JoinToken::issue(&self.root, id, expires, uses))
    }

    /// The tokens as bytes, to be kept.
    pub(crate) fn tokens(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.number(self.tokens.len() as u64);
        for (id, (expires, used)) in &self.tokens {
            w.fixed(id).number(*expires).number(used.len() as u64);
            for site in used {
                w.fixed(&site.0);
            }
        }
        w.finish()
    }

    fn read_tokens(&mut self, bytes: &[u8]) -> Result<(), DecodeError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut r = Reader::new(bytes);
        for _ in 0..r.count("the list of tokens", TOKENS_MAX)? {
            let (id, expires) = (r.fixed()?, r.number()?);
            let mut used = BTreeSet::new();
            for _ in 0..r.count("a token's uses", u32::MAX as usize)? {
                used.insert(SiteId(r.fixed()?));
            }
            self.tokens.insert(id, (expires, used));
        }
        r.finish()
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("lattice", &self.root.public().lattice_id())
            .field("members", &self.members.len())
            .field("pending", &self.pending.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> SiteName {
        SiteName {
            name: name.into(),
            region: String::new(),
            zone: String::new(),
        }
    }

    fn hub() -> Hub {
        let own = SiteKey::from_seed(&[2; 32]);
        Hub::found(SiteKey::from_seed(&[1; 32]), &own, name("hub"), [3; 32]).0
    }

    fn request(seed: u8, called: &str, token: Option<JoinToken>) -> JoinRequest {
        JoinRequest {
            keys: *SiteKey::from_seed(&[seed; 32]).public(),
            name: name(called),
            token,
        }
    }

    /// What becomes of a request, for a table.
    fn outcome(hub: &mut Hub, request: JoinRequest, unix: u64) -> String {
        let id = request.keys.site_id();
        match hub.decide(request, unix) {
            Decision::Admit(welcome) => format!("admitted as {}", welcome.certificate.name.name),
            Decision::Revoked => "revoked".into(),
            Decision::Wait => {
                let pending = hub.pending();
                let waiting = pending.iter().find(|p| p.id == id).unwrap();
                format!("waits: {}", waiting.reason)
            }
        }
    }

    #[test]
    fn a_token_admits_as_often_and_as_long_as_it_says() {
        let mut hub = hub();
        let token = hub.token([1; 8], 100, 200, 2).unwrap();
        let ask = |seed, called: &str| request(seed, called, Some(token.clone()));
        for (asked, unix, expected) in [
            (ask(10, "a"), 150, "admitted as a"),
            // Asked twice for a lost answer: used once.
            (ask(10, "a"), 150, "admitted as a"),
            (ask(11, "a"), 150, "waits: its name is another member's"),
            (ask(11, "b"), 150, "admitted as b"),
            (ask(12, "c"), 150, "waits: its token is used up"),
            (ask(10, "moved"), 900, "admitted as moved"),
            (ask(13, "d"), 200, "waits: its token has ended"),
        ] {
            assert_eq!(outcome(&mut hub, asked, unix), expected);
        }
        let other = JoinToken::issue(&SiteKey::from_seed(&[50; 32]), [1; 8], 999, 9);
        let asked = request(14, "e", Some(other));
        assert_eq!(
            outcome(&mut hub, asked, 1),
            "waits: its token is of another lattice"
        );
    }

    #[test]
    fn approval_and_revocation_are_by_name_or_id() {
        let mut hub = hub();
        let own = SiteKey::from_seed(&[2; 32]).id();
        assert_eq!(
            outcome(&mut hub, request(10, "a", None), 5),
            "waits: it waits for approval"
        );
        assert_eq!(hub.approve("b"), Err(HubError::NotPending("b".into())));
        assert_eq!(hub.approve("a").unwrap().certificate.name.name, "a");
        assert_eq!(hub.pending(), []);
        assert_eq!(
            outcome(&mut hub, request(10, "a", None), 5),
            "admitted as a"
        );
        let stay = hub.revoke("a", own, [4; 32]).unwrap();
        assert_eq!(stay.len(), 1);
        assert_eq!((stay[0].record.epoch, stay[0].group), (2, [4; 32]));
        assert_eq!(outcome(&mut hub, request(10, "a", None), 5), "revoked");
        assert_eq!(
            hub.revoke("hub", own, [5; 32]),
            Err(HubError::Itself("hub".into()))
        );
        assert_eq!(
            hub.revoke("a", own, [5; 32]),
            Err(HubError::NoMember("a".into()))
        );
    }

    #[test]
    fn waiting_sites_are_bounded() {
        let mut hub = hub();
        for i in 0..=PENDING_MAX {
            let mut seed = [0; 32];
            seed[..8].copy_from_slice(&(i as u64 + 1).to_be_bytes());
            let mut asked = request(1, "x", None);
            asked.keys = *SiteKey::from_seed(&seed).public();
            hub.decide(asked, i as u64);
        }
        let pending = hub.pending();
        assert_eq!(pending.len(), PENDING_MAX);
        assert!(pending.iter().all(|p| p.since > 0));
    }

    #[test]
    fn tokens_survive_a_restart() {
        let mut hub = hub();
        let token = hub.token([1; 8], 100, 200, 1).unwrap();
        outcome(&mut hub, request(10, "a", Some(token.clone())), 150);
        let own = hub.members[&SiteKey::from_seed(&[2; 32]).id()].clone();
        let welcome = hub.welcome(own);
        let root = SiteKey::from_seed(&[1; 32]);
        let members: Vec<_> = hub.members.values().cloned().collect();
        let mut again = Hub::resume(root, &welcome, members.iter(), &hub.tokens()).unwrap();
        let asked = request(11, "b", Some(token));
        assert_eq!(
            outcome(&mut again, asked, 150),
            "waits: its token is used up"
        );
        assert_eq!(
            outcome(&mut again, request(10, "a", None), 150),
            "admitted as a"
        );
    }
}

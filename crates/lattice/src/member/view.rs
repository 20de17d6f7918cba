//! The lattice as it is seen from a site, for everything else.

use super::{Member, Phase};
use crate::hub::{Hub, PendingSite};
use crate::identity::{LatticeId, PublicKeys, SiteId};
use crate::membership::SiteState;
use crate::trust::SiteName;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Where a site stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has asked to join and waits.
    Joining,
    /// It is a member.
    Member,
    /// It was a member and is revoked.
    Revoked,
}

/// Another site, as it is seen from here.
#[derive(Clone, Debug)]
pub struct SiteView {
    /// Its id.
    pub id: SiteId,
    /// Its name and place, as the root certifies them.
    pub name: SiteName,
    /// Its keys, by the same word.
    pub keys: PublicKeys,
    /// Whether it can be reached.
    pub state: SiteState,
    /// Since when, as time since this site's start.
    pub since: Duration,
    /// By how much it was earlier than that start, of a site that was gone then: the word of
    /// those that were there.
    pub earlier: Duration,
    /// The round trip, once measured.
    pub rtt: Option<Duration>,
    /// Grows each time it starts.
    pub incarnation: u64,
    /// The revision of its state that is known here.
    pub revision: u64,
    /// What it publishes.
    pub entries: Arc<BTreeMap<String, Bytes>>,
}

/// The lattice, as it is seen from a site.
#[derive(Clone, Debug)]
pub struct View {
    /// This site.
    pub id: SiteId,
    /// Its name and place, as it is configured.
    pub name: SiteName,
    /// Where it stands.
    pub standing: Standing,
    /// The lattice that it is a member of.
    pub lattice: Option<LatticeId>,
    /// The epoch.
    pub epoch: u64,
    /// Whether this site is the hub.
    pub hub: bool,
    /// Whether its link is up.
    pub link: bool,
    /// The other members, by id.
    pub sites: Vec<SiteView>,
    /// Who waits for approval, at the hub.
    pub pending: Vec<PendingSite>,
}

impl Member {
    pub(crate) fn view(&self) -> View {
        let (standing, lattice, epoch) = match &self.phase {
            Phase::Joining => (Standing::Joining, None, 0),
            Phase::Member(k) => (
                Standing::Member,
                Some(k.root().lattice_id()),
                k.record().epoch,
            ),
            Phase::Revoked(record) => (Standing::Revoked, None, record.epoch),
        };
        let mut sites = Vec::new();
        if let Phase::Member(keyring) = &self.phase {
            for (id, peer) in self.membership.peers() {
                let Some(certificate) = keyring.certificate_of(*id) else {
                    continue;
                };
                sites.push(SiteView {
                    id: *id,
                    name: certificate.name.clone(),
                    keys: certificate.keys,
                    state: peer.state,
                    since: peer.since,
                    earlier: peer.earlier,
                    rtt: peer.rtt,
                    incarnation: peer.incarnation,
                    revision: peer.copy.revision(),
                    entries: Arc::clone(peer.copy.entries()),
                });
            }
        }
        View {
            id: self.id(),
            name: self.name.clone(),
            standing,
            lattice,
            epoch,
            hub: self.hub.is_some(),
            link: self.link,
            sites,
            pending: self.hub.as_ref().map(Hub::pending).unwrap_or_default(),
        }
    }
}

//! Who owns whom: pure, and small. Of an object without owners only its uid is kept,
//! unless its deletion waits for its dependents.

use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

/// A uid in 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Uid(u128);

impl Uid {
    /// Reads a UUID; any other text is hashed.
    pub(super) fn parse(text: &str) -> Self {
        let digits = text.bytes().filter(|b| *b != b'-');
        let mut value = 0_u128;
        let mut count = 0;
        for digit in digits {
            let Some(digit) = char::from(digit).to_digit(16) else {
                return Self::hashed(text);
            };
            value = value << 4 | u128::from(digit);
            count += 1;
        }
        if count == 32 {
            Self(value)
        } else {
            Self::hashed(text)
        }
    }

    /// That of an object.
    pub(super) fn of(meta: &ObjectMeta) -> Self {
        Self::parse(meta.uid.as_deref().unwrap_or_default())
    }

    fn hashed(text: &str) -> Self {
        let half = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            (salt, text).hash(&mut hasher);
            u128::from(hasher.finish())
        };
        Self(half(0) << 64 | half(1))
    }
}

/// Something to look into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Work {
    /// An object that may have lost its owners.
    Collect(Uid),
    /// An object that is deleted and leaves its dependents.
    Orphan(Uid),
    /// An object that is deleted once its dependents are.
    Foreground(Uid),
}

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) resource: u16,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One that is owned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Dependent {
    pub(super) uid: Uid,
    /// Its owner may not go before it, when deleted in the foreground.
    pub(super) blocks: bool,
}

#[derive(Debug)]
struct Object {
    resource: u16,
    namespace: Box<str>,
    name: Box<str>,
    owners: Box<[Uid]>,
    /// Deleted, and waits for its dependents.
    foreground: bool,
}

/// The graph.
#[derive(Debug, Default)]
pub(super) struct Graph {
    /// The resource of all that exist.
    alive: HashMap<Uid, u16>,
    /// Those that are owned, and those that wait for their dependents.
    objects: HashMap<Uid, Object>,
    /// By owner, whether or not that exists.
    dependents: HashMap<Uid, HashSet<Dependent>>,
}

impl Graph {
    /// An object came or changed.
    pub(super) fn apply(&mut self, resource: u16, meta: &ObjectMeta) -> Vec<Work> {
        let uid = Uid::of(meta);
        self.alive.insert(uid, resource);
        let mut work = self.set_owners(uid, meta);
        let deleted = meta.deletion_timestamp.is_some();
        let has = |finalizer: &str| meta.finalizers.iter().flatten().any(|f| f == finalizer);
        let foreground = deleted && has(super::FOREGROUND);
        let orphan = deleted && has(super::ORPHAN);
        let owners: Box<[Uid]> = meta
            .owner_references
            .iter()
            .flatten()
            .map(|o| Uid::parse(&o.uid))
            .collect();
        if owners.is_empty() && !foreground && !orphan {
            self.objects.remove(&uid);
            return work;
        }
        if foreground {
            work.push(Work::Foreground(uid));
            // They may have been left alone while it was solid.
            work.extend(self.dependents(uid).iter().map(|d| Work::Collect(d.uid)));
        }
        if orphan {
            work.push(Work::Orphan(uid));
        }
        self.objects.insert(
            uid,
            Object {
                resource,
                namespace: meta.namespace.as_deref().unwrap_or_default().into(),
                name: meta.name.as_deref().unwrap_or_default().into(),
                owners,
                foreground,
            },
        );
        work
    }

    /// An object is gone.
    pub(super) fn delete(&mut self, uid: Uid) -> Vec<Work> {
        self.alive.remove(&uid);
        let mut work = Vec::new();
        if let Some(object) = self.objects.remove(&uid) {
            for owner in &object.owners {
                self.unlink(*owner, uid, &mut work);
            }
        }
        work.extend(self.dependents(uid).iter().map(|d| Work::Collect(d.uid)));
        work
    }

    /// A resource was listed anew: what is not there any more is gone.
    pub(super) fn relisted(&mut self, resource: u16, listed: &HashSet<Uid>) -> Vec<Work> {
        let gone: Vec<Uid> = self
            .alive
            .iter()
            .filter(|(uid, of)| **of == resource && !listed.contains(uid))
            .map(|(uid, _)| *uid)
            .collect();
        gone.into_iter().flat_map(|uid| self.delete(uid)).collect()
    }

    /// A resource is no longer served.
    pub(super) fn forget_resource(&mut self, resource: u16) -> Vec<Work> {
        self.relisted(resource, &HashSet::new())
    }

    /// Those of whose owners one is not known: what was left behind while nobody watched.
    pub(super) fn without_owners(&self) -> Vec<Work> {
        self.objects
            .iter()
            .filter(|(_, o)| o.owners.iter().any(|owner| !self.alive.contains_key(owner)))
            .map(|(uid, _)| Work::Collect(*uid))
            .chain(
                self.objects
                    .iter()
                    .filter(|(_, o)| o.foreground)
                    .map(|(uid, _)| Work::Foreground(*uid)),
            )
            .collect()
    }

    /// Where an object is, if it is one that may have to be written.
    pub(super) fn place(&self, uid: Uid) -> Option<Place> {
        self.objects.get(&uid).map(|o| Place {
            resource: o.resource,
            namespace: o.namespace.to_string(),
            name: o.name.to_string(),
        })
    }

    /// Whether an object waits for its dependents; none when it is not known.
    pub(super) fn owner(&self, uid: Uid) -> Option<bool> {
        self.alive.get(&uid)?;
        Some(self.objects.get(&uid).is_some_and(|o| o.foreground))
    }

    /// Those that an object owns.
    pub(super) fn dependents(&self, uid: Uid) -> Vec<Dependent> {
        self.dependents
            .get(&uid)
            .map(|d| d.iter().copied().collect())
            .unwrap_or_default()
    }

    /// Whether it owns any.
    pub(super) fn has_dependents(&self, uid: Uid) -> bool {
        self.dependents.contains_key(&uid)
    }

    fn set_owners(&mut self, uid: Uid, meta: &ObjectMeta) -> Vec<Work> {
        let mut work = Vec::new();
        let before: Vec<Uid> = self
            .objects
            .get(&uid)
            .map(|o| o.owners.to_vec())
            .unwrap_or_default();
        let now: HashMap<Uid, bool> = meta
            .owner_references
            .iter()
            .flatten()
            .map(|o| (Uid::parse(&o.uid), o.block_owner_deletion == Some(true)))
            .collect();
        for owner in before {
            let gone = !now.contains_key(&owner);
            let changed = now.get(&owner).is_some_and(|blocks| {
                let link = Dependent {
                    uid,
                    blocks: *blocks,
                };
                !self
                    .dependents
                    .get(&owner)
                    .is_some_and(|d| d.contains(&link))
            });
            if gone || changed {
                self.unlink(owner, uid, &mut work);
            }
        }
        for (owner, blocks) in now {
            let new = self
                .dependents
                .entry(owner)
                .or_default()
                .insert(Dependent { uid, blocks });
            let solid = self.owner(owner) == Some(false);
            if new && !solid {
                work.push(Work::Collect(uid));
            }
        }
        work
    }

    fn unlink(&mut self, owner: Uid, uid: Uid, work: &mut Vec<Work>) {
        if let Some(dependents) = self.dependents.get_mut(&owner) {
            dependents.retain(|d| d.uid != uid);
            if dependents.is_empty() {
                self.dependents.remove(&owner);
            }
        }
        if self.owner(owner) == Some(true) {
            work.push(Work::Foreground(owner));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::object;
    use serde_json::json;

    fn meta(name: &str, owners: &[&str], more: serde_json::Value) -> ObjectMeta {
        let mut value = json!({"name": name, "namespace": "default", "uid": name,
            "ownerReferences": owners.iter().map(|o| json!({
                "apiVersion": "v1", "kind": "K", "name": o, "uid": o, "blockOwnerDeletion": true,
            })).collect::<Vec<_>>()});
        crate::fixture::merge(&mut value, more);
        object(value)
    }

    fn uid(name: &str) -> Uid {
        Uid::parse(name)
    }

    #[test]
    fn uids_are_read_as_numbers() {
        assert_eq!(Uid::parse("00000000-0000-0000-0000-0000000000ff"), Uid(255));
        assert_ne!(Uid::parse("a"), Uid::parse("b"));
    }

    #[test]
    fn dependents_are_looked_into_when_their_owner_goes() {
        let mut graph = Graph::default();
        assert!(graph.apply(0, &meta("owner", &[], json!({}))).is_empty());
        assert!(graph.apply(1, &meta("a", &["owner"], json!({}))).is_empty());
        assert_eq!(graph.objects.len(), 1, "unowned ones are only uids");
        assert_eq!(graph.delete(uid("owner")), [Work::Collect(uid("a"))]);
        assert!(graph.delete(uid("a")).is_empty());
        assert!(graph.dependents.is_empty() && graph.objects.is_empty());
    }

    #[test]
    fn one_whose_owner_is_not_known_is_looked_into() {
        let mut graph = Graph::default();
        let work = graph.apply(1, &meta("a", &["gone"], json!({})));
        assert_eq!(work, [Work::Collect(uid("a"))]);
        assert_eq!(graph.without_owners(), [Work::Collect(uid("a"))]);
        graph.apply(0, &meta("gone", &[], json!({})));
        assert!(graph.without_owners().is_empty());
    }

    #[test]
    fn an_owner_that_waits_is_looked_into_when_a_dependent_goes() {
        let mut graph = Graph::default();
        graph.apply(0, &meta("owner", &[], json!({})));
        graph.apply(1, &meta("a", &["owner"], json!({})));
        let waiting = json!({"deletionTimestamp": "2026-01-01T00:00:00Z",
            "finalizers": ["foregroundDeletion"]});
        let work = graph.apply(0, &meta("owner", &[], waiting));
        assert_eq!(
            work,
            [Work::Foreground(uid("owner")), Work::Collect(uid("a"))]
        );
        assert_eq!(graph.owner(uid("owner")), Some(true));
        assert!(graph.dependents(uid("owner"))[0].blocks);
        assert_eq!(graph.delete(uid("a")), [Work::Foreground(uid("owner"))]);
    }

    #[test]
    fn letting_go_of_an_owner_is_noticed() {
        let mut graph = Graph::default();
        graph.apply(0, &meta("owner", &[], json!({})));
        graph.apply(1, &meta("a", &["owner"], json!({})));
        graph.apply(1, &meta("a", &[], json!({})));
        assert!(!graph.has_dependents(uid("owner")));
        assert!(graph.delete(uid("owner")).is_empty());
    }

    #[test]
    fn a_new_listing_tells_what_went_meanwhile() {
        let mut graph = Graph::default();
        graph.apply(0, &meta("owner", &[], json!({})));
        graph.apply(0, &meta("stays", &[], json!({})));
        graph.apply(1, &meta("a", &["owner"], json!({})));
        let listed = HashSet::from([uid("stays")]);
        assert_eq!(graph.relisted(0, &listed), [Work::Collect(uid("a"))]);
        assert_eq!(graph.owner(uid("owner")), None);
        assert_eq!(graph.owner(uid("stays")), Some(false));
    }
}

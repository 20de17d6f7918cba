//! Who has which address and port: in memory ([`Here`]) or as keys of the store ([`Claims`]).
//!
//! A claim is a key that is made only if it is not there, so of two servers one gets it. It is
//! made before its Service is written, and given back when that fails. A server that dies
//! between leaves one; [`super::repair`] collects it.

use lifecycle::Scope;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use store::{Durability, Error, RangeRequest, Record, Revision, Store, Write};

/// Where claims are in the store.
pub(crate) const CLAIMS: &str = "/salp/services/";
/// Things tried blindly before all claims are read.
const BLIND_TRIES: usize = 4;
/// Tries of a claim that others change meanwhile.
const TRIES: usize = 16;

/// What only one Service may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Thing {
    Ip(IpAddr),
    /// Number and protocol.
    Port(u16, &'static str),
}

impl Thing {
    /// Its key in the store.
    pub(crate) fn key(self) -> String {
        match self {
            Self::Ip(ip) => format!("{CLAIMS}ips/{ip}"),
            Self::Port(port, protocol) => format!("{CLAIMS}ports/{protocol}/{port}"),
        }
    }
}

/// Who has what.
pub(super) enum Taken {
    Here(Arc<Here>),
    Shared(Arc<Claims>),
}

/// What a write has taken; given back when the write fails.
#[derive(Default)]
pub(crate) struct Reservation {
    of: Of,
}

#[derive(Default)]
enum Of {
    #[default]
    Nothing,
    Here {
        all: Arc<Here>,
        taken: Vec<Thing>,
        /// Given back when the write succeeds.
        freed: Vec<Thing>,
    },
    Shared {
        all: Arc<Claims>,
        taken: Vec<(Thing, Revision)>,
        freed: Vec<(Thing, Revision)>,
    },
}

impl Reservation {
    /// The write succeeded.
    pub(crate) async fn keep(mut self) {
        match std::mem::take(&mut self.of) {
            Of::Nothing => {}
            Of::Here { all, freed, .. } => {
                let mut owners = all.owners.lock();
                for thing in freed {
                    owners.remove(&thing);
                }
            }
            Of::Shared { all, freed, .. } => all.give_back(freed).await,
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        match std::mem::take(&mut self.of) {
            Of::Nothing => {}
            Of::Here { all, taken, .. } => {
                let mut owners = all.owners.lock();
                for thing in taken {
                    owners.remove(&thing);
                }
            }
            Of::Shared { all, taken, .. } if !taken.is_empty() => {
                let scope = all.scope.clone();
                scope.spawn(async move { all.give_back(taken).await });
            }
            Of::Shared { .. } => {}
        }
    }
}

impl Taken {
    pub(super) fn reservation(&self) -> Reservation {
        let of = match self {
            Self::Here(all) => Of::Here {
                all: all.clone(),
                taken: Vec::new(),
                freed: Vec::new(),
            },
            Self::Shared(all) => Of::Shared {
                all: all.clone(),
                taken: Vec::new(),
                freed: Vec::new(),
            },
        };
        Reservation { of }
    }

    /// Takes one thing; whether it was free. With `dry_run` it is only looked at.
    pub(super) async fn take(
        &self,
        reservation: &mut Reservation,
        thing: Thing,
        owner: &Arc<str>,
        dry_run: bool,
    ) -> Result<bool, Error> {
        match (self, &mut reservation.of) {
            (Self::Here(all), Of::Here { taken, .. }) => Ok(all
                .take_first(std::iter::once(thing), owner, taken)
                .is_some()),
            (Self::Shared(all), _) if dry_run => all.is_free(thing).await,
            (Self::Shared(all), Of::Shared { taken, .. }) => {
                let claimed = all.claim(thing, owner).await?;
                taken.extend(claimed.map(|revision| (thing, revision)));
                Ok(claimed.is_some())
            }
            _ => Ok(false),
        }
    }

    /// Takes the first of these that is free.
    pub(super) async fn take_first(
        &self,
        reservation: &mut Reservation,
        mut things: impl Iterator<Item = Thing> + Send,
        owner: &Arc<str>,
        dry_run: bool,
    ) -> Result<Option<Thing>, Error> {
        if let (Self::Here(all), Of::Here { taken, .. }) = (self, &mut reservation.of) {
            return Ok(all.take_first(things, owner, taken));
        }
        let Self::Shared(all) = self else {
            return Ok(None);
        };
        for thing in things.by_ref().take(BLIND_TRIES) {
            if self.take(reservation, thing, owner, dry_run).await? {
                return Ok(Some(thing));
            }
        }
        let known = all.all().await?;
        let known: HashSet<Arc<str>> = known.into_iter().map(|record| record.key).collect();
        for thing in things {
            if !known.contains(thing.key().as_str())
                && self.take(reservation, thing, owner, dry_run).await?
            {
                return Ok(Some(thing));
            }
        }
        Ok(None)
    }

    /// Remembers what is to be given back once the write has succeeded.
    pub(super) async fn note_freed(
        &self,
        reservation: &mut Reservation,
        things: &[Thing],
        owner: &str,
    ) -> Result<(), Error> {
        match (self, &mut reservation.of) {
            (Self::Here(_), Of::Here { freed, .. }) => freed.extend(things),
            (Self::Shared(all), Of::Shared { freed, .. }) => {
                for thing in things {
                    freed.extend(all.held(*thing, owner).await?.map(|at| (*thing, at)));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Gives back what an owner has of these.
    pub(super) async fn release(&self, things: &[Thing], owner: &str) {
        match self {
            Self::Here(all) => {
                let mut owners = all.owners.lock();
                for thing in things {
                    if owners.get(thing).is_some_and(|o| **o == *owner) {
                        owners.remove(thing);
                    }
                }
            }
            Self::Shared(all) => {
                for thing in things {
                    if let Ok(Some(at)) = all.held(*thing, owner).await {
                        all.give_back(vec![(*thing, at)]).await;
                    }
                }
            }
        }
    }
}

/// What the only server of a store knows.
pub(super) struct Here {
    /// Uid of the Service that has it; held for one look, never across a write to the store.
    owners: Mutex<HashMap<Thing, Arc<str>>>,
}

impl Here {
    pub(super) fn new(taken: impl Iterator<Item = (Thing, Arc<str>)>) -> Self {
        Self {
            owners: Mutex::new(taken.collect()),
        }
    }

    fn take_first(
        &self,
        mut things: impl Iterator<Item = Thing>,
        owner: &Arc<str>,
        taken: &mut Vec<Thing>,
    ) -> Option<Thing> {
        let mut owners = self.owners.lock();
        let thing = things.find(|thing| !owners.contains_key(thing))?;
        owners.insert(thing, owner.clone());
        taken.push(thing);
        Some(thing)
    }
}

/// What all servers of a store know: keys whose value is the owner's uid.
pub(super) struct Claims {
    store: Arc<dyn Store>,
    scope: Scope,
}

impl Claims {
    pub(super) fn new(store: Arc<dyn Store>, scope: &Scope) -> Self {
        Self {
            store,
            scope: scope.clone(),
        }
    }

    async fn all(&self) -> Result<Vec<Record>, Error> {
        let request = RangeRequest {
            prefix: CLAIMS.to_owned(),
            ..RangeRequest::default()
        };
        Ok(self.store.range(request).await?.records)
    }

    async fn is_free(&self, thing: Thing) -> Result<bool, Error> {
        Ok(self.store.get(&thing.key(), None).await?.is_none())
    }

    /// The revision of an owner's claim.
    async fn held(&self, thing: Thing, owner: &str) -> Result<Option<Revision>, Error> {
        let record = self.store.get(&thing.key(), None).await?;
        let record = record.filter(|record| record.value == owner.as_bytes());
        Ok(record.map(|record| record.modified))
    }

    /// Makes a claim; its revision, unless another has it. One that the owner has already (an
    /// earlier try of the same write) is written anew, so that giving that one back misses it.
    async fn claim(&self, thing: Thing, owner: &str) -> Result<Option<Revision>, Error> {
        let key = thing.key();
        let value = || bytes::Bytes::copy_from_slice(owner.as_bytes());
        for _ in 0..TRIES {
            let create = Write::Create { value: value() };
            match self.store.write(&key, create, Durability::Sync).await {
                Ok(record) => return Ok(Some(record.modified)),
                Err(Error::Exists(_)) => {}
                Err(e) => return Err(e),
            }
            let Some(expected) = self.held(thing, owner).await? else {
                if self.is_free(thing).await? {
                    continue;
                }
                return Ok(None);
            };
            let update = Write::Update {
                value: value(),
                expected,
            };
            match self.store.write(&key, update, Durability::Sync).await {
                Ok(record) => return Ok(Some(record.modified)),
                Err(Error::Conflict(_)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    /// Drops claims that nobody has written since.
    async fn give_back(&self, things: Vec<(Thing, Revision)>) {
        for (thing, expected) in things {
            let delete = Write::Delete { expected };
            match self
                .store
                .write(&thing.key(), delete, Durability::Sync)
                .await
            {
                Ok(_) | Err(Error::Conflict(_)) => {}
                // Collected later.
                Err(e) => tracing::debug!(error = %e, ?thing, "giving back"),
            }
        }
    }
}

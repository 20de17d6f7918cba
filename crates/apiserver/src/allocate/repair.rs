//! Brings claims and Services together again: what a server that died has left, and Services
//! that were made before there were claims (by the one server of a store that moved to etcd).
//! [`plan`] decides.

use super::taken::{CLAIMS, Thing};
use super::things_of;
use crate::server_state::Core;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use store::{Durability, Error, RangeRequest, Revision, Write};

/// Claims without a Service, and the revision at which they were seen so. Those that are at
/// the next look too are dropped: a request takes less time than there is between two.
pub(crate) type Suspects = HashMap<Arc<str>, Revision>;

/// A Service's uid and what it has.
type Owned = (Arc<str>, Vec<Thing>);

#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    missing: Vec<(Thing, Arc<str>)>,
    drop: Vec<(Arc<str>, Revision)>,
    suspects: Suspects,
}

/// One look.
pub(crate) async fn repair(core: &Arc<Core>, suspects: &mut Suspects) -> Result<(), Error> {
    let request = RangeRequest {
        prefix: CLAIMS.to_owned(),
        ..RangeRequest::default()
    };
    let claims = core.store.range(request).await?;
    // The Services are newer than the claims: what was claimed and written meanwhile is there.
    if core.cache.reach(claims.revision.0).await.is_err() {
        return Ok(());
    }
    let own = IpAddr::V4(core.services.cidr.at(1));
    let services = core.cache.named("", "services");
    let owned: Vec<Owned> = services
        .into_iter()
        .flat_map(|kind| kind.all())
        .map(|object| {
            let value = object.value();
            let mut things = things_of(&value);
            things.retain(|thing| *thing != Thing::Ip(own));
            (super::uid_of(&value), things)
        })
        .collect();
    let claimed: Vec<(Arc<str>, Revision)> = claims
        .records
        .iter()
        .map(|record| (record.key.clone(), record.modified))
        .collect();
    let plan = plan(&claimed, &owned, suspects);
    for (thing, owner) in plan.missing {
        let value = bytes::Bytes::copy_from_slice(owner.as_bytes());
        let create = Write::Create { value };
        match core
            .store
            .write(&thing.key(), create, Durability::Sync)
            .await
        {
            // Claimed meanwhile.
            Ok(_) | Err(Error::Exists(_)) => {}
            Err(e) => return Err(e),
        }
    }
    for (key, expected) in plan.drop {
        tracing::info!(%key, "no Service has this: given back");
        let delete = Write::Delete { expected };
        match core.store.write(&key, delete, Durability::Sync).await {
            Ok(_) | Err(Error::Conflict(_)) => {}
            Err(e) => return Err(e),
        }
    }
    *suspects = plan.suspects;
    Ok(())
}

fn plan(claimed: &[(Arc<str>, Revision)], owned: &[Owned], suspects: &Suspects) -> Plan {
    let keys: HashSet<&str> = claimed.iter().map(|(key, _)| &**key).collect();
    let mut used: HashSet<String> = HashSet::new();
    let mut plan = Plan::default();
    for (owner, things) in owned {
        for thing in things {
            let key = thing.key();
            if !keys.contains(key.as_str()) {
                plan.missing.push((*thing, owner.clone()));
            }
            used.insert(key);
        }
    }
    for (key, revision) in claimed {
        if used.contains(&**key) {
            continue;
        }
        if suspects.get(key) == Some(revision) {
            plan.drop.push((key.clone(), *revision));
        } else {
            plan.suspects.insert(key.clone(), *revision);
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_has_twice_is_dropped_and_what_is_missing_made() {
        let ip = |n: u8| Thing::Ip(IpAddr::from([10, 43, 0, n]));
        let port = Thing::Port(30_001, "TCP");
        let claim = |thing: Thing, at: u64| (Arc::from(thing.key()), Revision(at));
        let a: Owned = ("a".into(), vec![ip(7), port]);
        let claimed = [claim(ip(7), 3), claim(ip(8), 4), claim(ip(9), 5)];
        let first = plan(&claimed, std::slice::from_ref(&a), &Suspects::new());
        assert_eq!(first.missing, [(port, "a".into())]);
        assert_eq!(first.drop, []);
        assert_eq!(first.suspects.len(), 2);
        // One was claimed anew meanwhile, by a write that is under way.
        let claimed = [
            claim(port, 6),
            claim(ip(7), 3),
            claim(ip(8), 4),
            claim(ip(9), 7),
        ];
        let second = plan(&claimed, &[a], &first.suspects);
        assert_eq!(second.missing, []);
        assert_eq!(second.drop, [claim(ip(8), 4)]);
        assert_eq!(second.suspects, [claim(ip(9), 7)].into());
    }
}

//! How many pods each ReplicaSet of a Deployment should have: pure arithmetic.

use super::revision::{DESIRED_REPLICAS, MAX_REPLICAS};
use crate::pods::share;
use client::k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use client::k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::sync::Arc;

/// A set and the size that it is to have.
pub(super) type Sized = (Arc<ReplicaSet>, i32);

/// How many pods a Deployment wants.
pub(super) fn desired(deployment: &Deployment) -> i32 {
    deployment.spec.replicas.unwrap_or(1)
}

/// How many pods a set is asked for.
pub(super) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

/// How many pods of a set serve.
pub(super) fn available(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|s| s.available_replicas)
        .unwrap_or(0)
}

/// Whether pods are replaced gradually (the default).
pub(super) fn is_rolling(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.strategy.as_ref();
    strategy.and_then(|s| s.type_.as_deref()) != Some("Recreate")
}

/// How many pods may be there beyond, and lack from, the wanted number.
pub(super) fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    if !is_rolling(deployment) {
        return (0, 0);
    }
    let rolling = deployment
        .spec
        .strategy
        .as_ref()
        .and_then(|s| s.rolling_update.as_ref());
    let wanted = desired(deployment);
    let quarter = IntOrString::String("25%".to_owned());
    let of = |value: Option<&IntOrString>, up: bool| share(value.unwrap_or(&quarter), wanted, up);
    let surge = of(rolling.and_then(|r| r.max_surge.as_ref()), true);
    let mut lacking = of(rolling.and_then(|r| r.max_unavailable.as_ref()), false);
    if surge == 0 && lacking == 0 {
        // Else nothing could ever move.
        lacking = 1;
    }
    (surge, lacking.min(wanted))
}

/// The size of the new set in the next step of a rollout; `all` includes it if it exists.
pub(super) fn next_size_of_new(
    deployment: &Deployment,
    all: &[Arc<ReplicaSet>],
    new: Option<&ReplicaSet>,
) -> i32 {
    let wanted = desired(deployment);
    if !is_rolling(deployment) {
        return wanted;
    }
    let has = new.map_or(0, replicas);
    if has >= wanted {
        return wanted;
    }
    let (surge, _) = fenceposts(deployment);
    let total: i32 = all.iter().map(|s| replicas(s)).sum();
    let room = wanted.saturating_add(surge) - total;
    has + room.clamp(0, wanted - has)
}

/// The sizes of the old sets in the next step of a rolling update: first those pods go
/// that don't serve anyway, then as many of the others as there are more than needed.
pub(super) fn next_sizes_of_old(
    deployment: &Deployment,
    new: &ReplicaSet,
    old: &[Arc<ReplicaSet>],
) -> Vec<Sized> {
    let (_, lacking) = fenceposts(deployment);
    let least = desired(deployment) - lacking;
    let old_total: i32 = old.iter().map(|s| replicas(s)).sum();
    let new_unavailable = replicas(new) - available(new);
    let mut may_go = old_total + replicas(new) - least - new_unavailable;
    let mut sizes: Vec<Sized> = by_age(old)
        .into_iter()
        .filter(|s| replicas(s) > 0)
        .map(|s| (s.clone(), replicas(&s)))
        .collect();
    if may_go <= 0 {
        return Vec::new();
    }
    for (set, size) in &mut sizes {
        let idle = (*size - available(set)).clamp(0, may_go);
        *size -= idle;
        may_go -= idle;
    }
    let serving: i32 = old.iter().map(|s| available(s)).sum::<i32>() + available(new);
    let mut surplus = (serving - least).max(0);
    for (_, size) in &mut sizes {
        let goes = surplus.min(*size);
        *size -= goes;
        surplus -= goes;
    }
    sizes
}

/// Sizes after the Deployment's own size has changed: the one set that has pods gets it;
/// of several in a rolling update each its share.
pub(super) fn rescaled(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
) -> Vec<Sized> {
    let wanted = desired(deployment);
    if let Some(only) = active_or_latest(new, old) {
        return vec![(only, wanted)];
    }
    if new.is_some_and(|n| is_saturated(deployment, n)) {
        return old
            .iter()
            .filter(|s| replicas(s) > 0)
            .map(|s| (s.clone(), 0))
            .collect();
    }
    if is_rolling(deployment) {
        shares(deployment, new, old)
    } else {
        Vec::new()
    }
}

fn shares(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
) -> Vec<Sized> {
    let wanted = desired(deployment);
    let (surge, _) = fenceposts(deployment);
    let mut active: Vec<_> = old
        .iter()
        .chain(new)
        .filter(|s| replicas(s) > 0)
        .cloned()
        .collect();
    let total: i32 = active.iter().map(|s| replicas(s)).sum();
    let allowed = if wanted > 0 {
        wanted.saturating_add(surge)
    } else {
        0
    };
    let to_add = allowed - total;
    let created = |s: &ReplicaSet| s.metadata.creation_timestamp.as_ref().map(|t| t.0);
    // The largest get and give the most; among equals the newest get, the oldest give.
    active.sort_by(|a, b| {
        let by_age = created(a).cmp(&created(b));
        let by_age = if to_add > 0 { by_age.reverse() } else { by_age };
        replicas(b).cmp(&replicas(a)).then(by_age)
    });
    let mut added = 0;
    let mut sizes: Vec<Sized> = active
        .into_iter()
        .map(|set| {
            let share = if to_add == 0 || to_add == added {
                0
            } else {
                let (low, high) = (0.min(to_add - added), 0.max(to_add - added));
                fraction(deployment, &set, surge).clamp(low, high)
            };
            added += share;
            let size = replicas(&set) + share;
            (set, size)
        })
        .collect();
    if let Some((_, first)) = sizes.first_mut() {
        // What rounding left over.
        *first = (*first + to_add - added).max(0);
    }
    sizes
}

/// How much a set grows or shrinks to keep its share of a Deployment that was resized.
fn fraction(deployment: &Deployment, set: &ReplicaSet, surge: i32) -> i32 {
    let wanted = desired(deployment);
    let has = replicas(set);
    if wanted == 0 {
        return -has;
    }
    let before = annotation(set, MAX_REPLICAS)
        .or_else(|| deployment.status.as_ref().and_then(|s| s.replicas))
        .filter(|before| *before > 0);
    let Some(before) = before else { return 0 };
    let after = i64::from(wanted) + i64::from(surge);
    let scaled = f64::from(has) * as_f64(after) / f64::from(before);
    round(scaled) - has
}

#[allow(clippy::cast_precision_loss, reason = "the sum of two 32-bit numbers")]
fn as_f64(n: i64) -> f64 {
    n as f64
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "a number of pods; saturates"
)]
fn round(n: f64) -> i32 {
    n.round() as i32
}

/// The set that has all pods, or when none has any the newest; none when several have.
fn active_or_latest(
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
) -> Option<Arc<ReplicaSet>> {
    let mut active = old.iter().chain(new).filter(|s| replicas(s) > 0);
    match (active.next(), active.next()) {
        (Some(only), None) => Some(only.clone()),
        (Some(_), Some(_)) => None,
        (None, _) => new.cloned().or_else(|| by_age(old).pop()),
    }
}

fn is_saturated(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let wanted = desired(deployment);
    annotation(set, DESIRED_REPLICAS) == Some(wanted)
        && replicas(set) == wanted
        && available(set) == wanted
}

/// A number that a set is annotated with.
pub(super) fn annotation(set: &ReplicaSet, key: &str) -> Option<i32> {
    set.metadata.annotations.as_ref()?.get(key)?.parse().ok()
}

/// The oldest first.
pub(super) fn by_age(sets: &[Arc<ReplicaSet>]) -> Vec<Arc<ReplicaSet>> {
    let mut sorted = sets.to_vec();
    sorted.sort_by(|a, b| {
        let age = |s: &ReplicaSet| {
            (
                s.metadata.creation_timestamp.as_ref().map(|t| t.0),
                s.metadata.name.clone(),
            )
        };
        age(a).cmp(&age(b))
    });
    sorted
}

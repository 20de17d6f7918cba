//! What a DaemonSet needs next, and what its status says: pure.

use super::nodes::{self, Place};
use crate::history::REVISION_HASH;
use crate::pods;
use client::k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use client::k8s_openapi::api::core::v1::{Node, Pod};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Pods made in one go, as upstream.
const BURST_MAX: usize = 250;
/// Age that a pod that failed must have before it is replaced: one that always fails is not
/// made anew in a loop.
const FAILED_AGE_MIN: SignedDuration = SignedDuration::from_secs(10);

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Nodes to make a pod for.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Those of them that have failed.
    pub(super) failed: Vec<Arc<Pod>>,
    pub(super) status: DaemonSetStatus,
    pub(super) look_again_in: Option<Duration>,
}

/// A pod of a set, of its template's hash, that is for no node yet.
pub(super) fn pod(set: &DaemonSet, hash: &str) -> Pod {
    let mut pod = pods::from_template(set, &set.spec.template);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(REVISION_HASH.to_owned(), hash.to_owned());
    nodes::tolerate(&mut pod);
    pod
}

/// Plans the next step of a set with these pods; `deleted` ones are going, whatever they say.
pub(super) fn plan(
    set: &DaemonSet,
    mine: &[Arc<Pod>],
    deleted: &HashSet<String>,
    nodes: &[Arc<Node>],
    hash: &str,
    now: Timestamp,
) -> Plan {
    let mut planner = Planner {
        set,
        hash,
        deleted,
        min_ready: pods::seconds(set.spec.min_ready_seconds),
        now,
        nodes: BTreeMap::new(),
        plan: Plan::default(),
    };
    let pattern = pod(set, hash);
    for node in nodes {
        let name = node.metadata.name.clone().unwrap_or_default();
        let on = On {
            place: nodes::place(&pattern, node),
            pods: Vec::new(),
        };
        planner.nodes.insert(name, on);
    }
    let mut lost = Vec::new();
    for pod in mine {
        let node = nodes::target(pod).and_then(|n| planner.nodes.get_mut(n));
        match node {
            Some(on) => on.pods.push(pod.clone()),
            None => lost.push(pod.clone()),
        }
    }
    for on in planner.nodes.values_mut() {
        on.pods.sort_by_key(|p| {
            let created = p.metadata.creation_timestamp.as_ref().map(|t| t.0);
            (created, p.metadata.name.clone())
        });
    }
    planner.count();
    if set.metadata.deletion_timestamp.is_none() {
        // Pods for nodes that are gone and that were never placed can't ever run.
        lost.retain(|p| {
            !planner.is_going(p) && p.spec.as_ref().is_some_and(|s| s.node_name.is_none())
        });
        planner.plan.delete = lost;
        planner.fill();
        planner.roll();
        planner.plan.create.truncate(BURST_MAX);
    }
    planner.plan
}

/// A node and the set's pods there, oldest first.
struct On {
    place: Place,
    pods: Vec<Arc<Pod>>,
}

struct Planner<'a> {
    set: &'a DaemonSet,
    hash: &'a str,
    deleted: &'a HashSet<String>,
    min_ready: Duration,
    now: Timestamp,
    nodes: BTreeMap<String, On>,
    plan: Plan,
}

impl Planner<'_> {
    fn is_going(&self, pod: &Pod) -> bool {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        pod.metadata.deletion_timestamp.is_some() || self.deleted.contains(uid)
    }

    fn is_new(&self, pod: &Pod) -> bool {
        let labels = pod.metadata.labels.as_ref();
        labels
            .and_then(|l| l.get(REVISION_HASH))
            .map(String::as_str)
            == Some(self.hash)
    }

    /// How long until a ready pod counts as available.
    fn available_in(&self, pod: &Pod) -> Option<Duration> {
        if self.is_going(pod) {
            return None;
        }
        pods::available_in(pod, self.min_ready, self.now)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        self.available_in(pod) == Some(Duration::ZERO)
    }

    fn look_again_in(&mut self, delay: Duration) {
        let sooner = self.plan.look_again_in.map_or(delay, |d| d.min(delay));
        self.plan.look_again_in = Some(sooner);
    }

    fn count(&mut self) {
        let (mut desired, mut current, mut astray) = (0, 0, 0);
        let (mut ready, mut available, mut updated) = (0, 0, 0);
        let mut waits = None::<Duration>;
        for on in self.nodes.values() {
            let live: Vec<_> = on.pods.iter().filter(|p| !self.is_going(p)).collect();
            if on.place != Place::Wanted {
                astray += i32::from(!live.is_empty());
                continue;
            }
            desired += 1;
            let Some(oldest) = live.first() else { continue };
            current += 1;
            // With a surge there are two for a while: that which is ready serves.
            let serves = live.iter().find(|p| pods::is_ready(p)).unwrap_or(oldest);
            ready += i32::from(pods::is_ready(serves));
            for delay in live.iter().filter_map(|p| self.available_in(p)) {
                if !delay.is_zero() {
                    waits = Some(waits.map_or(delay, |w| w.min(delay)));
                }
            }
            available += i32::from(live.iter().any(|p| self.is_available(p)));
            updated += i32::from(live.iter().any(|p| self.is_new(p)));
        }
        self.plan.look_again_in = waits;
        let known = self.set.status.clone().unwrap_or_default();
        let some = |n: i32| (n > 0).then_some(n);
        self.plan.status = DaemonSetStatus {
            observed_generation: self.set.metadata.generation,
            desired_number_scheduled: desired,
            current_number_scheduled: current,
            number_misscheduled: astray,
            number_ready: ready,
            number_available: some(available),
            number_unavailable: some(desired - available),
            updated_number_scheduled: some(updated),
            collision_count: known.collision_count,
            conditions: known.conditions,
        };
    }

    /// One pod on each node where one is wanted, none where it is refused.
    fn fill(&mut self) {
        let mut soonest = None::<Duration>;
        let (mut create, mut delete, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        for (name, on) in &self.nodes {
            let live: Vec<_> = on.pods.iter().filter(|p| !self.is_going(p)).collect();
            if on.place == Place::Refused {
                delete.extend(live.into_iter().cloned());
                continue;
            }
            let (ended, running): (Vec<_>, Vec<_>) =
                live.into_iter().partition(|p| pods::has_ended(p));
            for pod in ended {
                let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
                let age = created.map_or(SignedDuration::MAX, |t| self.now.duration_since(t));
                if age < FAILED_AGE_MIN && pods::phase(pod) == "Failed" {
                    let left = Duration::try_from(FAILED_AGE_MIN - age).unwrap_or_default();
                    soonest = Some(soonest.map_or(left, |s| s.min(left)));
                    continue;
                }
                if pods::phase(pod) == "Failed" {
                    failed.push(pod.clone());
                }
                delete.push(pod.clone());
            }
            if on.place == Place::Wanted && on.pods.is_empty() {
                create.push(name.clone());
            }
            delete.extend(self.redundant(&running));
        }
        self.plan.create.extend(create);
        self.plan.delete.extend(delete);
        self.plan.failed = failed;
        if let Some(delay) = soonest {
            self.look_again_in(delay);
        }
    }

    /// All but the oldest; while pods are surged, all but the oldest of each kind, and the
    /// old one too once the new one is available.
    fn redundant(&self, running: &[&Arc<Pod>]) -> Vec<Arc<Pod>> {
        let cloned = |pods: &[&Arc<Pod>]| pods.iter().map(|p| Arc::clone(p)).collect::<Vec<_>>();
        if self.surge() == 0 {
            return cloned(running.get(1..).unwrap_or_default());
        }
        let (new, old): (Vec<_>, Vec<_>) = running.iter().partition(|p| self.is_new(p));
        let mut gone = cloned(new.get(1..).unwrap_or_default());
        let replaced = new.first().is_some_and(|p| self.is_available(p));
        gone.extend(cloned(
            old.get(usize::from(!replaced)..).unwrap_or_default(),
        ));
        gone
    }

    fn rolling(&self) -> Option<(i32, i32)> {
        let strategy = self.set.spec.update_strategy.as_ref()?;
        if strategy.type_.as_deref() == Some("OnDelete") {
            return None;
        }
        let total = self.plan.status.desired_number_scheduled;
        let rolling = strategy.rolling_update.as_ref();
        let lacking = rolling.and_then(|r| r.max_unavailable.as_ref());
        let surge = rolling.and_then(|r| r.max_surge.as_ref());
        let lacking = lacking.map_or(1, |v| pods::share(v, total, true));
        let surge = surge.map_or(0, |v| pods::share(v, total, true));
        // Else nothing could ever move.
        let lacking = if lacking == 0 && surge == 0 {
            1
        } else {
            lacking
        };
        Some((lacking, surge))
    }

    fn surge(&self) -> i32 {
        self.rolling().map_or(0, |(_, surge)| surge)
    }

    /// Replaces pods of other templates, within what may lack or be too much.
    fn roll(&mut self) {
        let Some((lacking, surge)) = self.rolling() else {
            return;
        };
        let mut free = Vec::new();
        let mut dear = Vec::new();
        let (mut unavailable, mut surging) = (0, 0);
        for (name, on) in &self.nodes {
            if on.place != Place::Wanted {
                continue;
            }
            let live = || {
                on.pods
                    .iter()
                    .filter(|p| !self.is_going(p) && !pods::has_ended(p))
            };
            let new = live().find(|p| self.is_new(p));
            let old = live().find(|p| !self.is_new(p));
            let serves = live().any(|p| self.is_available(p));
            unavailable += i32::from(!serves);
            match (new, old) {
                (Some(_), Some(_)) => surging += 1,
                (None, Some(old)) if serves => dear.push((name.clone(), old.clone())),
                // It does not serve anyway.
                (None, Some(old)) => free.push((name.clone(), old.clone())),
                _ => {}
            }
        }
        if surge > 0 {
            let room = usize::try_from(surge - surging).unwrap_or(0);
            let next = free.into_iter().chain(dear.into_iter().take(room));
            self.plan.create.extend(next.map(|(name, _)| name));
            return;
        }
        let room = usize::try_from(lacking - unavailable).unwrap_or(0);
        let next = free.into_iter().chain(dear.into_iter().take(room));
        self.plan.delete.extend(next.map(|(_, old)| old));
    }
}

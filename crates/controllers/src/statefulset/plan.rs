//! What a StatefulSet needs next, and what its status says: pure.
//!
//! Upstream's order: pods of low ordinals first, each only when all before it are ready
//! (unless `Parallel`); then those beyond the wanted number go, the highest first; then
//! pods of other revisions, the highest first, down to the partition.

use super::identity::{self, parent_and_ordinal, revision_of};
use crate::pods::{self, count};
use client::k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use client::k8s_openapi::api::core::v1::Pod;
use jiff::Timestamp;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) create: Vec<Create>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Pods that were adopted and lack the labels of the set's own.
    pub(super) relabel: Vec<Arc<Pod>>,
    /// Pods that stay.
    pub(super) keep: Vec<Arc<Pod>>,
    /// Pods beyond the wanted number, whether or not it is their turn to go.
    pub(super) condemned: Vec<Arc<Pod>>,
    pub(super) status: StatefulSetStatus,
    pub(super) look_again_in: Option<Duration>,
}

/// A pod to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Create {
    pub(super) ordinal: i32,
    /// Of the revision that a rollout goes to, else of that it comes from.
    pub(super) updated: bool,
}

/// Names of the two revisions; the same when no rollout is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Revisions<'a> {
    pub(super) current: &'a str,
    pub(super) update: &'a str,
}

/// Plans the next step of a set with these pods; `deleted` ones are going, whatever they say.
pub(super) fn plan(
    set: &StatefulSet,
    mine: &[Arc<Pod>],
    deleted: &HashSet<String>,
    revisions: Revisions<'_>,
    now: Timestamp,
) -> Plan {
    let start = set
        .spec
        .ordinals
        .as_ref()
        .and_then(|o| o.start)
        .unwrap_or(0);
    let replicas = set.spec.replicas.unwrap_or(1).max(0);
    let wanted = start..start.saturating_add(replicas);
    let (mut keep, mut condemned) = (BTreeMap::new(), BTreeMap::new());
    for pod in mine {
        let Some((_, ordinal)) = parent_and_ordinal(pod) else {
            continue;
        };
        let into = if wanted.contains(&ordinal) {
            &mut keep
        } else {
            &mut condemned
        };
        into.insert(ordinal, pod.clone());
    }
    let mut planner = Planner {
        set,
        wanted,
        keep,
        condemned,
        deleted,
        revisions,
        min_ready: pods::seconds(set.spec.min_ready_seconds),
        now,
        plan: Plan::default(),
    };
    planner.count();
    if set.metadata.deletion_timestamp.is_none() {
        planner.step();
    }
    planner.plan.keep = planner.keep.into_values().collect();
    planner.plan.condemned = planner.condemned.into_values().collect();
    planner.plan
}

struct Planner<'a> {
    set: &'a StatefulSet,
    wanted: std::ops::Range<i32>,
    keep: BTreeMap<i32, Arc<Pod>>,
    condemned: BTreeMap<i32, Arc<Pod>>,
    deleted: &'a HashSet<String>,
    revisions: Revisions<'a>,
    min_ready: Duration,
    now: Timestamp,
    plan: Plan,
}

impl Planner<'_> {
    fn is_going(&self, pod: &Pod) -> bool {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        pod.metadata.deletion_timestamp.is_some() || self.deleted.contains(uid)
    }

    /// Whether a pod has been ready for as long as it must be; if not yet, it is looked at
    /// again when it will have been.
    fn is_available(&mut self, pod: &Pod) -> bool {
        if !is_ready(pod) {
            return false;
        }
        match pods::available_in(pod, self.min_ready, self.now) {
            Some(Duration::ZERO) => true,
            Some(left) => {
                let sooner = self.plan.look_again_in.map_or(left, |d| d.min(left));
                self.plan.look_again_in = Some(sooner);
                false
            }
            None => false,
        }
    }

    fn is_healthy(&mut self, pod: &Pod) -> bool {
        !self.is_going(pod) && self.is_available(pod)
    }

    /// The status, from the pods as they are.
    fn count(&mut self) {
        let known = self.set.status.clone().unwrap_or_default();
        let all = self.keep.values().chain(self.condemned.values());
        let all: Vec<_> = all.cloned().collect();
        let (mut ready, mut available, mut current, mut updated) = (0, 0, 0, 0);
        for pod in &all {
            ready += i32::from(is_ready(pod));
            available += i32::from(self.is_available(pod));
            if !self.is_going(pod) {
                current += i32::from(revision_of(pod) == self.revisions.current);
                updated += i32::from(revision_of(pod) == self.revisions.update);
            }
        }
        let mut status = StatefulSetStatus {
            observed_generation: self.set.metadata.generation,
            replicas: count(all.len()),
            ready_replicas: some(ready),
            available_replicas: Some(available),
            current_replicas: some(current),
            updated_replicas: some(updated),
            current_revision: Some(self.revisions.current.to_owned()),
            update_revision: Some(self.revisions.update.to_owned()),
            collision_count: known.collision_count.or(Some(0)),
            conditions: known.conditions,
        };
        let wanted = self.wanted.end - self.wanted.start;
        let through = [status.replicas, updated, ready]
            .iter()
            .all(|n| *n == wanted);
        if self.is_rolling() && through {
            status.current_replicas = status.updated_replicas;
            status.current_revision.clone_from(&status.update_revision);
        }
        self.plan.status = status;
    }

    fn is_ordered(&self) -> bool {
        self.set.spec.pod_management_policy.as_deref() != Some("Parallel")
    }

    fn is_rolling(&self) -> bool {
        let strategy = self.set.spec.update_strategy.as_ref();
        strategy.and_then(|s| s.type_.as_deref()) != Some("OnDelete")
    }

    /// The lowest ordinal that a rollout reaches.
    fn partition(&self) -> i32 {
        let strategy = self.set.spec.update_strategy.as_ref();
        let partition = strategy
            .and_then(|s| s.rolling_update.as_ref())
            .and_then(|r| r.partition)
            .unwrap_or(0);
        self.wanted.start.saturating_add(partition)
    }

    fn step(&mut self) {
        if self.fill() && self.shrink() && self.is_rolling() {
            self.roll();
        }
    }

    /// Makes what lacks and makes ended pods anew; whether to go on.
    fn fill(&mut self) -> bool {
        let mut go_on = true;
        for ordinal in self.wanted.clone() {
            let Some(pod) = self.keep.get(&ordinal).cloned() else {
                let updated = !self.is_rolling() || ordinal >= self.partition();
                self.plan.create.push(Create { ordinal, updated });
                if self.is_ordered() {
                    return false;
                }
                continue;
            };
            if pods::has_ended(&pod) {
                if !self.is_going(&pod) {
                    self.plan.delete.push(pod);
                }
                if self.is_ordered() {
                    return false;
                }
                go_on = false;
                continue;
            }
            if self.is_ordered() && !self.is_healthy(&pod) {
                return false;
            }
            if identity::missing_labels(&pod).is_some() && !self.is_going(&pod) {
                self.plan.relabel.push(pod);
            }
        }
        go_on
    }

    /// Deletes what is too much; whether to go on.
    fn shrink(&mut self) -> bool {
        let pods: Vec<_> = self.condemned.values().cloned().collect();
        let mut first_unhealthy = None;
        for pod in &pods {
            if first_unhealthy.is_none() && !self.is_healthy(pod) {
                first_unhealthy = pod.metadata.uid.clone();
            }
        }
        for pod in pods.into_iter().rev() {
            if self.is_going(&pod) {
                if self.is_ordered() {
                    return false;
                }
                continue;
            }
            // One that fails is not waited for, once it is the only one that does.
            let excused = first_unhealthy.is_some() && pod.metadata.uid == first_unhealthy;
            if self.is_ordered() && !excused && !self.is_available(&pod) {
                return false;
            }
            self.plan.delete.push(pod);
            if self.is_ordered() {
                return false;
            }
        }
        true
    }

    /// Deletes pods of other revisions, as many as may lack.
    fn roll(&mut self) {
        let pods: Vec<_> = self.keep.iter().map(|(n, pod)| (*n, pod.clone())).collect();
        let lacking = self.wanted.len() - pods.len();
        let unhealthy = pods.iter().filter(|(_, pod)| !self.is_healthy(pod)).count();
        let mut budget = self.max_unavailable().saturating_sub(lacking + unhealthy);
        let partition = self.partition();
        for (ordinal, pod) in pods.into_iter().rev() {
            let old = revision_of(&pod) != self.revisions.update;
            if ordinal < partition || !old || self.is_going(&pod) {
                continue;
            }
            // What does not serve anyway costs nothing.
            if self.is_healthy(&pod) {
                if budget == 0 {
                    continue;
                }
                budget -= 1;
            }
            self.plan.delete.push(pod);
        }
    }

    fn max_unavailable(&self) -> usize {
        let strategy = self.set.spec.update_strategy.as_ref();
        let share = strategy
            .and_then(|s| s.rolling_update.as_ref())
            .and_then(|r| r.max_unavailable.as_ref())
            .map_or(1, |m| {
                pods::share(m, self.wanted.end - self.wanted.start, false)
            });
        usize::try_from(share).unwrap_or(1).max(1)
    }
}

fn is_ready(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && pods::is_ready(pod)
}

/// Zero is left out, as upstream does.
fn some(n: i32) -> Option<i32> {
    (n > 0).then_some(n)
}

//! The next step of a Deployment: pure.
//!
//! One step at a time: what a step changes comes back as changed ReplicaSets, and the
//! next is planned from those.

use super::amounts::{self, Sized, by_age, desired, is_rolling, replicas};
use super::revision::{self, REVISION};
use super::status;
use client::k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A write.
#[derive(Debug)]
pub(super) enum Action {
    /// Creates the set of the current template.
    Create(Box<ReplicaSet>),
    /// Changes a set; what is none or absent stays.
    Change {
        set: Arc<ReplicaSet>,
        replicas: Option<i32>,
        annotations: BTreeMap<String, String>,
        min_ready_seconds: Option<i32>,
    },
    /// Deletes a set that history no longer needs.
    Delete(Arc<ReplicaSet>),
    /// Annotates the Deployment.
    Annotate(BTreeMap<String, String>),
}

/// What to do now.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) actions: Vec<Action>,
    pub(super) status: DeploymentStatus,
    pub(super) look_again_in: Option<Duration>,
}

/// Plans the next step; `runs` tells whether a set still has pods that have not ended.
pub(super) fn plan(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    runs: impl Fn(&ReplicaSet) -> bool,
    now: Timestamp,
) -> Plan {
    let (new, old) = revision::split(deployment, sets);
    let mut planner = Planner {
        deployment,
        new,
        old,
        all: sets,
        actions: Vec::new(),
        status: DeploymentStatus::default(),
        now,
    };
    planner.status = status::counts(deployment, planner.new.as_ref(), sets, now);
    let look_again_in = planner.step(runs);
    Plan {
        actions: planner.actions,
        status: planner.status,
        look_again_in,
    }
}

struct Planner<'a> {
    deployment: &'a Deployment,
    new: Option<Arc<ReplicaSet>>,
    old: Vec<Arc<ReplicaSet>>,
    all: &'a [Arc<ReplicaSet>],
    actions: Vec<Action>,
    status: DeploymentStatus,
    now: Timestamp,
}

impl Planner<'_> {
    fn step(&mut self, runs: impl Fn(&ReplicaSet) -> bool) -> Option<Duration> {
        if self.deployment.metadata.deletion_timestamp.is_some() {
            return None;
        }
        status::pause(self.deployment, &mut self.status, self.now);
        let paused = self.deployment.spec.paused == Some(true);
        if paused || self.was_resized() {
            self.note_revision();
            let sizes = amounts::rescaled(self.deployment, self.new.as_ref(), &self.old);
            self.resize(sizes);
            if paused {
                self.forget_old();
            }
            return None;
        }
        if is_rolling(self.deployment) {
            self.roll();
        } else {
            self.recreate(runs);
        }
        status::progress(
            self.deployment,
            &mut self.status,
            self.new.as_ref(),
            self.all,
            self.now,
        )
    }

    /// Whether the Deployment's size has changed since its sets were last scaled.
    fn was_resized(&self) -> bool {
        let wanted = desired(self.deployment);
        self.all
            .iter()
            .filter(|s| replicas(s) > 0)
            .filter_map(|s| amounts::annotation(s, revision::DESIRED_REPLICAS))
            .any(|was| was != wanted)
    }

    fn roll(&mut self) {
        let Some(new) = self.new_set() else {
            return;
        };
        let size = amounts::next_size_of_new(self.deployment, self.all, Some(&new));
        if self.resize(vec![(new.clone(), size)]) {
            return;
        }
        let sizes = amounts::next_sizes_of_old(self.deployment, &new, &self.old);
        if self.resize(sizes) {
            return;
        }
        self.finish();
    }

    fn recreate(&mut self, runs: impl Fn(&ReplicaSet) -> bool) {
        let to_zero: Vec<Sized> = self.old.iter().map(|s| (s.clone(), 0)).collect();
        if status::size(&self.old) > 0 {
            self.note_revision();
            self.resize(to_zero);
            return;
        }
        if self.old.iter().any(|s| runs(s)) {
            return;
        }
        let Some(new) = self.new_set() else {
            return;
        };
        let size = desired(self.deployment);
        if !self.resize(vec![(new, size)]) {
            self.finish();
        }
    }

    /// The set of the current template with its revision noted; none when it is only
    /// about to be created.
    fn new_set(&mut self) -> Option<Arc<ReplicaSet>> {
        if let Some(new) = self.new.clone() {
            self.note_revision();
            if status::has_deadline(self.deployment)
                && !status::has_progress_condition(&self.status)
            {
                let name = new.metadata.name.clone().unwrap_or_default();
                status::new_set(&mut self.status, &name, true, self.now);
            }
            return Some(new);
        }
        let next = revision::next_revision(&self.old);
        let size = amounts::next_size_of_new(self.deployment, self.all, None);
        let set = revision::new_set(self.deployment, next, size);
        if status::has_deadline(self.deployment) {
            let name = set.metadata.name.clone().unwrap_or_default();
            status::new_set(&mut self.status, &name, false, self.now);
        }
        self.actions.push(Action::Create(Box::new(set)));
        self.annotate(next);
        None
    }

    /// Brings the annotations of the new set and the Deployment up to date.
    fn note_revision(&mut self) {
        let Some(new) = self.new.clone() else {
            return;
        };
        let next = revision::next_revision(&self.old);
        let mut annotations = revision::annotations(self.deployment, Some(&new), next);
        let had = new.metadata.annotations.clone().unwrap_or_default();
        let revision = annotations
            .get(REVISION)
            .and_then(|r| r.parse().ok())
            .unwrap_or(next);
        annotations.retain(|key, value| had.get(key) != Some(value));
        let min_ready = self.deployment.spec.min_ready_seconds.unwrap_or(0);
        let min_ready_changed = new.spec.min_ready_seconds.unwrap_or(0) != min_ready;
        if !annotations.is_empty() || min_ready_changed {
            self.actions.push(Action::Change {
                set: new,
                replicas: None,
                annotations,
                min_ready_seconds: min_ready_changed.then_some(min_ready),
            });
        }
        self.annotate(revision);
    }

    fn annotate(&mut self, revision: i64) {
        if revision::revision(self.deployment.metadata.annotations.as_ref()) != revision {
            self.actions.push(Action::Annotate(BTreeMap::from([(
                REVISION.to_owned(),
                revision.to_string(),
            )])));
        }
    }

    /// Gives sets other sizes; whether any pod comes or goes by it.
    fn resize(&mut self, sizes: Vec<Sized>) -> bool {
        let mut resized = false;
        for (set, size) in sizes {
            let mut annotations = revision::size_annotations(self.deployment);
            let had = set.metadata.annotations.as_ref();
            annotations.retain(|key, value| had.and_then(|a| a.get(key)) != Some(value));
            let differs = replicas(&set) != size;
            if differs && (replicas(&set) == 0 || size == 0) {
                annotations.extend(revision::woken_pod(self.deployment, &set));
            }
            if !differs && annotations.is_empty() {
                continue;
            }
            resized |= differs;
            self.change(set, differs.then_some(size), annotations);
        }
        resized
    }

    /// One change a set: two would be told apart by its resourceVersion.
    fn change(&mut self, set: Arc<ReplicaSet>, size: Option<i32>, more: BTreeMap<String, String>) {
        for action in &mut self.actions {
            if let Action::Change {
                set: known,
                replicas,
                annotations,
                ..
            } = action
                && Arc::ptr_eq(known, &set)
            {
                *replicas = size.or(*replicas);
                annotations.extend(more);
                return;
            }
        }
        self.actions.push(Action::Change {
            set,
            replicas: size,
            annotations: more,
            min_ready_seconds: None,
        });
    }

    fn finish(&mut self) {
        if status::is_complete(self.deployment, &self.status) {
            self.forget_old();
        }
    }

    /// Deletes the oldest revisions beyond the limit.
    fn forget_old(&mut self) {
        let Some(limit) = self.deployment.spec.revision_history_limit else {
            return;
        };
        let alive: Vec<_> = by_age(&self.old)
            .into_iter()
            .filter(|s| s.metadata.deletion_timestamp.is_none())
            .collect();
        let surplus = alive
            .len()
            .saturating_sub(usize::try_from(limit).unwrap_or(0));
        let mut oldest = alive;
        oldest.sort_by_key(|s| revision::revision(s.metadata.annotations.as_ref()));
        for set in oldest.into_iter().take(surplus) {
            let status = set.status.clone().unwrap_or_default();
            let observed = status.observed_generation >= set.metadata.generation;
            if status.replicas == 0 && replicas(&set) == 0 && observed {
                self.actions.push(Action::Delete(set));
            }
        }
    }
}

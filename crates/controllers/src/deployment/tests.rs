//! Rollouts played against sets whose pods come and go at once, or never.

use super::plan::{Action, plan};
use super::{amounts, revision, status};
use crate::fixture::{merge, now, object};
use client::k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetStatus};
use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use expect_test::{Expect, expect};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::sync::Arc;

fn deployment(more: Value) -> Deployment {
    let mut deployment = json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": 1,
            "annotations": {"team": "shop"}},
        "spec": {
            "replicas": 3, "progressDeadlineSeconds": 600, "revisionHistoryLimit": 2,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "web:1"}]},
            },
        },
    });
    merge(&mut deployment, more);
    object(deployment)
}

/// A cluster of one Deployment and its sets.
struct World {
    deployment: Deployment,
    sets: Vec<Arc<ReplicaSet>>,
    now: Timestamp,
    log: String,
}

impl World {
    fn new(more: Value) -> Self {
        Self {
            deployment: deployment(more),
            sets: Vec::new(),
            now: now(),
            log: String::new(),
        }
    }

    fn edit(&mut self, more: Value) {
        let mut value = serde_json::to_value(&self.deployment).unwrap();
        merge(&mut value, more);
        self.deployment = object(value);
        *self.deployment.metadata.generation.get_or_insert(0) += 1;
    }

    fn image(&mut self, image: &str) {
        self.edit(json!({"spec": {"template": {"spec": {"containers": [
            {"name": "c", "image": image}]}}}}));
    }

    /// Plans and acts once; whether anything was done.
    fn step(&mut self) -> bool {
        let runs = |s: &ReplicaSet| s.status.as_ref().is_some_and(|s| s.replicas > 0);
        let plan = plan(&self.deployment, &self.sets, runs, self.now);
        let mut acted = false;
        for action in plan.actions {
            acted = true;
            self.act(action);
        }
        acted |= self.deployment.status.as_ref() != Some(&plan.status);
        self.deployment.status = Some(plan.status);
        self.now += SignedDuration::from_secs(1);
        acted
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Create(set) => {
                let mut set = *set;
                set.metadata.uid = set.metadata.name.clone();
                set.metadata.creation_timestamp = Some(Time(self.now));
                self.note(&set, "create", set.spec.replicas);
                self.sets.push(Arc::new(set));
            }
            Action::Change {
                set,
                replicas,
                annotations,
                min_ready_seconds,
            } => {
                let mut changed = (*set).clone();
                if replicas.is_some() {
                    self.note(&set, "scale", replicas);
                    changed.spec.replicas = replicas;
                }
                changed
                    .metadata
                    .annotations
                    .get_or_insert_default()
                    .extend(annotations);
                if min_ready_seconds.is_some() {
                    changed.spec.min_ready_seconds = min_ready_seconds;
                }
                self.replace(changed);
            }
            Action::Delete(set) => {
                self.note(&set, "delete", None);
                self.sets.retain(|s| s.metadata.uid != set.metadata.uid);
            }
            Action::Annotate(annotations) => {
                self.deployment
                    .metadata
                    .annotations
                    .get_or_insert_default()
                    .extend(annotations);
            }
        }
    }

    fn note(&mut self, set: &ReplicaSet, what: &str, size: Option<i32>) {
        let template = set.spec.template.as_ref().and_then(|t| t.spec.as_ref());
        let image = template.and_then(|s| s.containers[0].image.clone());
        let _ = writeln!(
            self.log,
            "{what} {} {}",
            image.unwrap_or_default(),
            size.map(|n| n.to_string()).unwrap_or_default()
        );
    }

    fn replace(&mut self, set: ReplicaSet) {
        for known in &mut self.sets {
            if known.metadata.uid == set.metadata.uid {
                *known = Arc::new(set);
                return;
            }
        }
    }

    /// Makes each set's pods as many as asked for, serving if `healthy` says so.
    fn settle(&mut self, healthy: impl Fn(&ReplicaSet) -> bool) {
        for set in &mut self.sets {
            let n = amounts::replicas(set);
            let good = if healthy(set) { n } else { 0 };
            let mut changed = (**set).clone();
            changed.status = Some(ReplicaSetStatus {
                replicas: n,
                ready_replicas: Some(good),
                available_replicas: Some(good),
                ..ReplicaSetStatus::default()
            });
            *set = Arc::new(changed);
        }
    }

    /// Steps until nothing more happens.
    fn run(&mut self, healthy: impl Fn(&ReplicaSet) -> bool + Copy) {
        for _ in 0..200 {
            let acted = self.step();
            self.settle(healthy);
            if !acted && !self.step() {
                return;
            }
        }
        panic!("does not come to rest:\n{}", self.log);
    }

    fn check(&mut self, expect: Expect) {
        let conditions: Vec<_> = self
            .deployment
            .status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten())
            .map(|c| {
                format!(
                    "{}={} {}",
                    c.type_.as_deref().unwrap(),
                    c.status.as_deref().unwrap(),
                    c.reason.as_deref().unwrap()
                )
            })
            .collect();
        let _ = write!(self.log, "{}", conditions.join(", "));
        expect.assert_eq(&std::mem::take(&mut self.log));
    }

    fn pods(&self) -> i32 {
        status::size(&self.sets)
    }

    fn revisions(&self) -> Vec<(i64, i32)> {
        let mut revisions: Vec<_> = self
            .sets
            .iter()
            .map(|s| {
                (
                    revision::revision(s.metadata.annotations.as_ref()),
                    amounts::replicas(s),
                )
            })
            .collect();
        revisions.sort_unstable();
        revisions
    }
}

#[test]
fn a_new_one_makes_its_set_and_completes() {
    let mut world = World::new(json!({}));
    world.run(|_| true);
    world.check(expect![[r#"
        create web:1 3
        Available=True MinimumReplicasAvailable, Progressing=True NewReplicaSetAvailable"#]]);
    let set = &world.sets[0];
    let hash = &set.metadata.labels.as_ref().unwrap()["pod-template-hash"];
    assert_eq!(
        set.metadata.name.as_deref(),
        Some(format!("web-{hash}").as_str())
    );
    let selector = set.spec.selector.match_labels.as_ref().unwrap();
    assert_eq!(
        (&selector["app"], &selector["pod-template-hash"]),
        (&"web".to_owned(), hash)
    );
    let annotations = set.metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations["team"], "shop");
    assert_eq!(annotations["deployment.kubernetes.io/revision"], "1");
    assert_eq!(
        annotations["deployment.kubernetes.io/desired-replicas"],
        "3"
    );
    assert_eq!(annotations["deployment.kubernetes.io/max-replicas"], "4");
}

#[test]
fn a_new_image_rolls_within_the_fenceposts() {
    let mut world = World::new(json!({}));
    world.run(|_| true);
    world.log.clear();
    world.image("web:2");
    world.run(|_| true);
    world.check(expect![[r#"
        create web:2 1
        scale web:1 2
        scale web:2 2
        scale web:1 1
        scale web:2 3
        scale web:1 0
        Available=True MinimumReplicasAvailable, Progressing=True NewReplicaSetAvailable"#]]);
    assert_eq!(world.revisions(), [(1, 0), (2, 3)]);
}

#[test]
fn a_broken_image_leaves_the_old_pods_and_times_out() {
    let mut world = World::new(json!({}));
    world.run(|_| true);
    world.log.clear();
    world.image("web:broken");
    let healthy = |s: &ReplicaSet| {
        let template = s.spec.template.as_ref().unwrap().spec.as_ref().unwrap();
        template.containers[0].image.as_deref() != Some("web:broken")
    };
    world.run(healthy);
    world.now += SignedDuration::from_secs(600);
    world.run(healthy);
    world.check(expect![[r#"
        create web:broken 1
        Available=True MinimumReplicasAvailable, Progressing=False ProgressDeadlineExceeded"#]]);
    assert_eq!(world.revisions(), [(1, 3), (2, 1)]);
    // Undone: the old template is the current one again and gets the next revision.
    world.image("web:1");
    world.run(healthy);
    world.check(expect![[r#"
        scale web:broken 0
        Available=True MinimumReplicasAvailable, Progressing=True NewReplicaSetAvailable"#]]);
    assert_eq!(world.revisions(), [(2, 0), (3, 3)]);
    let back = world
        .sets
        .iter()
        .find(|s| amounts::replicas(s) == 3)
        .and_then(|s| s.metadata.annotations.clone())
        .unwrap();
    assert_eq!(back["deployment.kubernetes.io/revision-history"], "1");
    let annotations = world.deployment.metadata.annotations.unwrap();
    assert_eq!(annotations["deployment.kubernetes.io/revision"], "3");
}

#[test]
fn recreate_first_takes_all_away() {
    let mut world = World::new(json!({"spec": {"strategy": {"type": "Recreate"}}}));
    world.run(|_| true);
    world.image("web:2");
    world.run(|_| true);
    world.check(expect![[r#"
        create web:1 3
        scale web:1 0
        create web:2 3
        Available=True MinimumReplicasAvailable, Progressing=True NewReplicaSetAvailable"#]]);
}

#[test]
fn scaling_needs_no_rollout() {
    let mut world = World::new(json!({}));
    world.run(|_| true);
    world.log.clear();
    world.edit(json!({"spec": {"replicas": 5}}));
    world.run(|_| true);
    world.edit(json!({"spec": {"replicas": 0}}));
    world.run(|_| true);
    world.check(expect![[r#"
        scale web:1 5
        scale web:1 0
        Available=True MinimumReplicasAvailable, Progressing=True NewReplicaSetAvailable"#]]);
    assert_eq!(world.sets.len(), 1);
}

#[test]
fn scaling_amid_a_rollout_keeps_the_shares() {
    let mut world = World::new(json!({"spec": {"replicas": 10, "strategy": {
        "rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}}}));
    world.run(|_| true);
    world.image("web:2");
    let healthy = |s: &ReplicaSet| {
        let template = s.spec.template.as_ref().unwrap().spec.as_ref().unwrap();
        template.containers[0].image.as_deref() == Some("web:1")
    };
    world.run(healthy);
    world.log.clear();
    assert_eq!(world.revisions(), [(1, 8), (2, 5)]);
    world.edit(json!({"spec": {"replicas": 20}}));
    world.step();
    world.check(expect![[r#"
        scale web:1 14
        scale web:2 9
        Available=False MinimumReplicasUnavailable, Progressing=True ReplicaSetUpdated"#]]);
}

#[test]
fn paused_it_scales_but_does_not_roll() {
    let mut world = World::new(json!({}));
    world.run(|_| true);
    world.log.clear();
    world.edit(json!({"spec": {"paused": true, "replicas": 4}}));
    world.image("web:2");
    world.run(|_| true);
    world.check(expect![[r#"
        scale web:1 4
        Available=True MinimumReplicasAvailable, Progressing=Unknown DeploymentPaused"#]]);
    world.edit(json!({"spec": {"paused": false}}));
    world.run(|_| true);
    assert_eq!(world.revisions(), [(1, 0), (2, 4)]);
}

#[test]
fn history_is_kept_to_its_limit() {
    let mut world = World::new(json!({}));
    for n in 1..=5 {
        world.image(&format!("web:{n}"));
        world.run(|_| true);
    }
    assert_eq!(world.revisions(), [(3, 0), (4, 0), (5, 3)]);
}

#[test]
fn a_failure_of_the_set_is_shown() {
    let mut world = World::new(json!({}));
    world.step();
    let mut set = (*world.sets[0]).clone();
    set.status = Some(object(json!({"replicas": 0, "conditions": [{
        "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate",
        "message": "quota",
    }]})));
    world.replace(set);
    world.step();
    world.check(expect![[r#"
        create web:1 3
        Available=False MinimumReplicasUnavailable, Progressing=True NewReplicaSetCreated, ReplicaFailure=True FailedCreate"#]]);
}

#[test]
fn fenceposts_are_rounded_apart() {
    let of = |replicas: i32, surge: Value, unavailable: Value| {
        amounts::fenceposts(&deployment(
            json!({"spec": {"replicas": replicas, "strategy": {
            "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}}),
        ))
    };
    assert_eq!(of(3, json!("25%"), json!("25%")), (1, 0));
    assert_eq!(of(10, json!("25%"), json!("25%")), (3, 2));
    assert_eq!(of(1, json!(0), json!(0)), (0, 1));
    assert_eq!(of(2, json!(0), json!("150%")), (0, 2));
    assert_eq!(of(0, json!("25%"), json!("25%")), (0, 0));
}

#[test]
fn the_hash_differs_by_template_and_collision_but_not_by_chance() {
    let one = deployment(json!({})).spec.template;
    let two = deployment(json!({"spec": {"template": {"metadata": {"labels": {"x": "y"}}}}}))
        .spec
        .template;
    assert_eq!(
        crate::history::template_hash(&one, 0),
        crate::history::template_hash(&one, 0)
    );
    assert_ne!(
        crate::history::template_hash(&one, 0),
        crate::history::template_hash(&two, 0)
    );
    assert_ne!(
        crate::history::template_hash(&one, 0),
        crate::history::template_hash(&one, 1)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the size, the fenceposts and how pods come up: during a rollout there
    /// are never more pods than allowed, never fewer that serve, and it comes to its end.
    #[test]
    fn a_rollout_keeps_its_fenceposts_and_ends(
        replicas in 0..12_i32,
        surge in 0..5_i32,
        unavailable in 0..5_i32,
        ready in prop::collection::vec(0..3_i32, 1..40),
    ) {
        let mut world = World::new(json!({"spec": {"replicas": replicas, "strategy": {
            "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}}));
        world.run(|_| true);
        world.image("web:2");
        let (surge, lacking) = amounts::fenceposts(&world.deployment);
        let mut ready = ready.into_iter().cycle();
        let mut acted = true;
        for _ in 0..2000 {
            if !acted && status::is_complete(
                &world.deployment, &world.deployment.status.clone().unwrap_or_default()) {
                break;
            }
            acted = world.step();
            // Pods go at once but come up a few at a time.
            let more = ready.next().unwrap_or(1);
            for set in &mut world.sets {
                let size = amounts::replicas(set);
                let was = amounts::available(set).min(size);
                let good = (was + more).min(size);
                let mut changed = (**set).clone();
                changed.status = Some(ReplicaSetStatus {
                    replicas: size,
                    ready_replicas: Some(good),
                    available_replicas: Some(good),
                    ..ReplicaSetStatus::default()
                });
                *set = Arc::new(changed);
            }
            prop_assert!(world.pods() <= replicas + surge, "{}", world.log);
            let serving: i32 = world.sets.iter().map(|s| amounts::available(s)).sum();
            prop_assert!(serving >= replicas - lacking, "{}", world.log);
        }
        if ready.clone().take(40).any(|n| n > 0) {
            let status = world.deployment.status.clone().unwrap();
            prop_assert!(status::is_complete(&world.deployment, &status), "{}", world.log);
        }
    }
}

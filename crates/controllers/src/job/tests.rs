//! Jobs played to their end, pod by pod.

use super::members::{self, is_tracked};
use super::plan;
use crate::fixture::{merge, now, object};
use client::k8s_openapi::api::batch::v1::Job;
use client::k8s_openapi::api::core::v1::Pod;
use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use expect_test::{Expect, expect};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::Arc;

struct World {
    job: Job,
    pods: Vec<Arc<Pod>>,
    now: Timestamp,
    made: usize,
    events: Vec<String>,
    expired: bool,
}

impl World {
    fn new(spec: Value) -> Self {
        let mut job = json!({
            "metadata": {"name": "j", "namespace": "default", "uid": "j"},
            "spec": {"parallelism": 1, "completions": 1, "backoffLimit": 6, "template": {
                "metadata": {"labels": {"job-name": "j"}},
                "spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]},
            }},
        });
        merge(&mut job, json!({"spec": spec}));
        Self {
            job: object(job),
            pods: Vec::new(),
            now: now(),
            made: 0,
            events: Vec::new(),
            expired: false,
        }
    }

    fn spec(&mut self, more: Value) {
        let mut value = serde_json::to_value(&self.job).unwrap();
        merge(&mut value, json!({"spec": more}));
        self.job = object(value);
    }

    /// Plans and acts until nothing changes.
    fn settle(&mut self) {
        for _ in 0..20 {
            let plan = plan::plan(&self.job, &self.pods, self.now);
            let quiet = plan.create.is_empty()
                && plan.delete.is_empty()
                && plan.release.is_empty()
                && self.job.status.as_ref() == Some(&plan.status);
            self.expired |= plan.expired;
            if quiet || plan.expired {
                return;
            }
            for pod in &plan.delete {
                self.change(&pod.metadata.uid.clone().unwrap(), |p| {
                    p.metadata.deletion_timestamp = Some(Time(now()));
                });
            }
            for new in plan.create {
                let mut pod = members::pod(&self.job, new);
                pod.metadata.uid = Some(format!("p{}", self.made));
                pod.metadata.name.clone_from(&pod.metadata.uid);
                self.made += 1;
                self.pods.push(Arc::new(pod));
            }
            self.job.status = Some(plan.status);
            self.events.extend(
                plan.events
                    .iter()
                    .map(|(_, reason, _)| (*reason).to_owned()),
            );
            for pod in &plan.release {
                self.change(&pod.metadata.uid.clone().unwrap(), |p| {
                    p.metadata.finalizers = None;
                });
            }
            // What is deleted and has no finalizer is gone.
            self.pods
                .retain(|p| p.metadata.deletion_timestamp.is_none() || is_tracked(p));
        }
        panic!("does not come to rest: {:?}", self.job.status);
    }

    fn change(&mut self, uid: &str, change: impl FnOnce(&mut Pod)) {
        for pod in &mut self.pods {
            if pod.metadata.uid.as_deref() == Some(uid) {
                let mut changed = (**pod).clone();
                change(&mut changed);
                *pod = Arc::new(changed);
                return;
            }
        }
    }

    /// Ends the first running pod.
    fn end_one(&mut self, phase: &str) -> bool {
        self.end_with(phase, 0)
    }

    /// The same with an exit code.
    fn end_with(&mut self, phase: &str, code: i32) -> bool {
        let running = self
            .pods
            .iter()
            .find(|p| crate::pods::is_active(p))
            .and_then(|p| p.metadata.uid.clone());
        let Some(uid) = running else { return false };
        let at = self.now.to_string();
        self.change(&uid, |p| {
            p.status = Some(object(json!({"phase": phase, "containerStatuses": [{
                "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": code, "finishedAt": at}},
            }]})));
        });
        self.settle();
        true
    }

    fn wait(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
        self.settle();
    }

    fn shown(&self) -> String {
        let s = self.job.status.clone().unwrap();
        let conditions: Vec<_> = s
            .conditions
            .iter()
            .flatten()
            .filter(|c| c.status == "True")
            .map(|c| format!("{}:{}", c.type_, c.reason.as_deref().unwrap()))
            .collect();
        format!(
            "active {} succeeded {} failed {} {conditions:?} {:?}",
            s.active.unwrap_or(0),
            s.succeeded.unwrap_or(0),
            s.failed.unwrap_or(0),
            self.events,
        )
    }

    fn check(&self, expect: Expect) {
        expect.assert_eq(&self.shown());
    }
}

/// Upstream: "Pod failure policy".
#[test]
fn a_failure_policy_ends_a_job_at_once_or_overlooks_a_failure() {
    let mut world = World::new(json!({"backoffLimit": 0, "podFailurePolicy": {"rules": [
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [7]}},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]}}));
    world.settle();
    world.end_with("Failed", 7);
    world.wait(60);
    world.check(expect![[r#"active 1 succeeded 0 failed 0 [] []"#]]);
    world.end_with("Failed", 42);
    world.check(expect![[
        r#"active 0 succeeded 0 failed 1 ["FailureTarget:PodFailurePolicy", "Failed:PodFailurePolicy"] ["PodFailurePolicy"]"#
    ]]);
}

/// Upstream: "Backoff limit per index".
#[test]
fn an_index_that_fails_too_often_leaves_the_others_alone() {
    let mut world = World::new(json!({"completionMode": "Indexed", "completions": 2,
        "backoffLimitPerIndex": 1, "backoffLimit": i32::MAX}));
    world.settle();
    world.end_one("Failed");
    // The next index goes on meanwhile.
    world.end_one("Succeeded");
    world.check(expect![[r#"active 0 succeeded 1 failed 0 [] []"#]]);
    world.wait(10);
    let second = world.pods.last().map(|p| members::failures_before(p));
    assert_eq!(second, Some(1));
    world.end_one("Failed");
    world.check(expect![[
        r#"active 0 succeeded 1 failed 2 ["FailureTarget:FailedIndexes", "Failed:FailedIndexes"] ["FailedIndexes"]"#
    ]]);
    let status = world.job.status.clone().unwrap();
    assert_eq!(status.failed_indexes.as_deref(), Some("0"));
    assert_eq!(status.completed_indexes.as_deref(), Some("1"));
}

/// Upstream: "Success policy".
#[test]
fn enough_indexes_are_success() {
    let mut world = World::new(json!({"completionMode": "Indexed", "completions": 3,
        "parallelism": 3, "successPolicy": {"rules": [{"succeededIndexes": "0"}]}}));
    world.settle();
    world.end_one("Succeeded");
    world.check(expect![[
        r#"active 0 succeeded 1 failed 0 ["SuccessCriteriaMet:SuccessPolicy", "Complete:SuccessPolicy"] ["Completed"]"#
    ]]);
}

#[test]
fn one_pod_that_succeeds() {
    let mut world = World::new(json!({}));
    world.settle();
    world.check(expect!["active 1 succeeded 0 failed 0 [] []"]);
    world.end_one("Succeeded");
    world.check(expect![[
        r#"active 0 succeeded 1 failed 0 ["SuccessCriteriaMet:CompletionsReached", "Complete:CompletionsReached"] ["Completed"]"#
    ]]);
    assert!(world.pods.iter().all(|p| !is_tracked(p)));
    assert!(world.job.status.unwrap().completion_time.is_some());
}

#[test]
fn failures_are_tried_again_ever_later_until_too_many() {
    let mut world = World::new(json!({"backoffLimit": 2}));
    world.settle();
    world.end_one("Failed");
    assert_eq!(world.made, 1);
    world.wait(10);
    assert_eq!(world.made, 2);
    world.end_one("Failed");
    world.wait(10);
    assert_eq!(world.made, 2);
    world.wait(10);
    assert_eq!(world.made, 3);
    world.end_one("Failed");
    world.check(expect![[
        r#"active 0 succeeded 0 failed 3 ["FailureTarget:BackoffLimitExceeded", "Failed:BackoffLimitExceeded"] ["BackoffLimitExceeded"]"#
    ]]);
}

#[test]
fn a_deadline_ends_what_runs() {
    let mut world = World::new(json!({"activeDeadlineSeconds": 30}));
    world.settle();
    world.wait(30);
    world.check(expect![[
        r#"active 0 succeeded 0 failed 0 ["FailureTarget:DeadlineExceeded", "Failed:DeadlineExceeded"] ["DeadlineExceeded"]"#
    ]]);
}

#[test]
fn suspended_it_runs_nothing_and_fails_nothing() {
    let mut world = World::new(json!({"parallelism": 2, "completions": 2}));
    world.settle();
    world.spec(json!({"suspend": true}));
    world.settle();
    world.check(expect![[
        r#"active 0 succeeded 0 failed 0 ["Suspended:JobSuspended"] ["Suspended"]"#
    ]]);
    assert!(world.job.status.as_ref().unwrap().start_time.is_none());
    world.spec(json!({"suspend": false}));
    world.settle();
    world.check(expect![[
        r#"active 2 succeeded 0 failed 0 [] ["Suspended", "Resumed"]"#
    ]]);
}

#[test]
fn a_deleted_pod_counts_as_failed_and_is_replaced() {
    let mut world = World::new(json!({}));
    world.settle();
    world.change("p0", |p| p.metadata.deletion_timestamp = Some(Time(now())));
    world.settle();
    world.check(expect!["active 1 succeeded 0 failed 1 [] []"]);
}

#[test]
fn each_index_completes_once() {
    let mut world = World::new(json!({
        "completionMode": "Indexed", "completions": 4, "parallelism": 2}));
    world.settle();
    let indexes = |world: &World| -> Vec<String> {
        world
            .pods
            .iter()
            .filter(|p| crate::pods::is_active(p))
            .map(|p| p.spec.as_ref().unwrap().hostname.clone().unwrap())
            .collect()
    };
    assert_eq!(indexes(&world), ["j-0", "j-1"]);
    let env = &world.pods[0].spec.as_ref().unwrap().containers[0].env;
    assert_eq!(env.as_ref().unwrap()[0].name, "JOB_COMPLETION_INDEX");
    world.end_one("Succeeded");
    assert_eq!(indexes(&world), ["j-1", "j-2"]);
    world.end_one("Failed");
    world.wait(10);
    assert_eq!(indexes(&world), ["j-2", "j-1"]);
    while world.end_one("Succeeded") {}
    let status = world.job.status.clone().unwrap();
    assert_eq!(status.completed_indexes.as_deref(), Some("0-3"));
    world.check(expect![[
        r#"active 0 succeeded 4 failed 1 ["SuccessCriteriaMet:CompletionsReached", "Complete:CompletionsReached"] ["Completed"]"#
    ]]);
}

#[test]
fn without_completions_the_first_success_lets_the_others_end() {
    let mut world = World::new(json!({"completions": null, "parallelism": 3}));
    world.settle();
    world.end_one("Succeeded");
    world.check(expect!["active 2 succeeded 1 failed 0 [] []"]);
    world.end_one("Succeeded");
    world.end_one("Succeeded");
    world.check(expect![[
        r#"active 0 succeeded 3 failed 0 ["SuccessCriteriaMet:CompletionsReached", "Complete:CompletionsReached"] ["Completed"]"#
    ]]);
}

#[test]
fn it_is_deleted_after_its_time_to_live() {
    let mut world = World::new(json!({"ttlSecondsAfterFinished": 60}));
    world.settle();
    world.end_one("Succeeded");
    world.wait(59);
    assert!(!world.expired);
    world.wait(1);
    assert!(world.expired);
}

#[test]
fn fewer_in_parallel_takes_some_away() {
    let mut world = World::new(json!({"parallelism": 4, "completions": 9}));
    world.settle();
    world.spec(json!({"parallelism": 1}));
    let plan = plan::plan(&world.job, &world.pods, world.now);
    assert_eq!(plan.delete.len(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However pods end: a Job that can succeed does, with exactly as many as asked for,
    /// never more at once than allowed; no end is counted twice or left out.
    #[test]
    fn all_ends_are_counted_once(
        completions in 1..6_i32,
        parallelism in 1..4_i32,
        ends in prop::collection::vec(any::<bool>(), 1..20),
    ) {
        let mut world = World::new(json!({
            "completions": completions, "parallelism": parallelism, "backoffLimit": 1000}));
        world.settle();
        let (mut good, mut bad) = (0, 0);
        for end in ends.into_iter().chain(std::iter::repeat_n(true, 10)) {
            if world.end_one(if end { "Succeeded" } else { "Failed" }) {
                if end { good += 1 } else { bad += 1 }
            }
            world.wait(600);
            let status = world.job.status.clone().unwrap();
            prop_assert!(status.active.unwrap_or(0) <= parallelism);
            prop_assert_eq!(status.succeeded.unwrap_or(0), good);
            prop_assert_eq!(status.failed.unwrap_or(0), bad);
        }
        prop_assert_eq!(good, completions);
        prop_assert!(world.shown().contains("Complete:"));
    }
}

//! Tables of StatefulSets and their pods, and what comes next.

use super::identity;
use super::plan::{Plan, Revisions, plan};
use crate::fixture::{merge, now, object};
use client::k8s_openapi::api::apps::v1::StatefulSet;
use client::k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use expect_test::{Expect, expect};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::Arc;

fn set(more: Value) -> StatefulSet {
    let mut set = json!({
        "metadata": {"name": "db", "namespace": "ns", "uid": "set", "generation": 2},
        "spec": {
            "replicas": 3, "serviceName": "db", "podManagementPolicy": "OrderedReady",
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
            "selector": {"matchLabels": {"app": "db"}},
            "template": {"metadata": {"labels": {"app": "db"}},
                "spec": {"containers": [{"name": "c", "image": "db:1"}]}},
        },
    });
    merge(&mut set, more);
    object(set)
}

/// Of words: `old`, `pending`, `failed`, `going`, `young`; else a ready pod of the new revision.
fn pod(ordinal: i32, is: &str) -> Arc<Pod> {
    let since = if is.contains("young") {
        "2026-01-01T23:59:50Z"
    } else {
        "2026-01-01T00:00:00Z"
    };
    let ready = if is.contains("pending") || is.contains("failed") {
        "False"
    } else {
        "True"
    };
    let phase = match is {
        _ if is.contains("failed") => "Failed",
        _ if is.contains("pending") => "Pending",
        _ => "Running",
    };
    let name = format!("db-{ordinal}");
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {
            "app": "db", "statefulset.kubernetes.io/pod-name": name,
            "apps.kubernetes.io/pod-index": ordinal.to_string(),
            "controller-revision-hash": if is.contains("old") { "one" } else { "two" },
        }},
        "status": {"phase": phase,
            "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": since}]},
    });
    if is.contains("going") {
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    }
    Arc::new(object(pod))
}

fn planned(set: &StatefulSet, pods: &[(i32, &str)]) -> Plan {
    let pods: Vec<_> = pods.iter().map(|(n, is)| pod(*n, is)).collect();
    let revisions = Revisions {
        current: "one",
        update: "two",
    };
    plan(set, &pods, &HashSet::new(), revisions, now())
}

fn check(set: &StatefulSet, pods: &[(i32, &str)], expect: Expect) {
    let plan = planned(set, pods);
    let mut steps: Vec<String> = plan
        .create
        .iter()
        .map(|c| {
            format!(
                "create {}{}",
                c.ordinal,
                if c.updated { "" } else { " old" }
            )
        })
        .collect();
    let name = |p: &Arc<Pod>| p.metadata.name.clone().unwrap_or_default();
    steps.extend(plan.delete.iter().map(|p| format!("delete {}", name(p))));
    if let Some(delay) = plan.look_again_in {
        steps.push(format!("look again in {delay:?}"));
    }
    expect.assert_eq(&steps.join(", "));
}

/// Upstream: concepts page of StatefulSets, "Deployment and Scaling Guarantees".
#[test]
fn pods_are_made_in_order_each_when_those_before_are_ready() {
    let three = set(json!({}));
    check(&three, &[], expect!["create 0"]);
    check(&three, &[(0, "pending")], expect![""]);
    check(&three, &[(0, "")], expect!["create 1"]);
    check(&three, &[(0, ""), (1, ""), (2, "")], expect![""]);
    // A lower one that is missing comes before anything else.
    check(&three, &[(1, ""), (2, "")], expect!["create 0"]);
    check(&three, &[(0, "going"), (1, "")], expect![""]);
    // Ended ones are made anew.
    check(&three, &[(0, "failed"), (1, "")], expect!["delete db-0"]);
    let from_five = set(json!({"spec": {"ordinals": {"start": 5}}}));
    check(&from_five, &[], expect!["create 5"]);
    check(
        &from_five,
        &[(0, ""), (5, ""), (6, ""), (7, "")],
        expect!["delete db-0"],
    );
}

/// Upstream: "Pod Management Policies", Parallel.
#[test]
fn parallel_sets_wait_for_none() {
    let three = set(json!({"spec": {"podManagementPolicy": "Parallel"}}));
    check(&three, &[(1, "pending")], expect!["create 0, create 2"]);
    let none = set(json!({"spec": {"podManagementPolicy": "Parallel", "replicas": 0}}));
    check(
        &none,
        &[(0, "pending"), (1, "")],
        expect!["delete db-1, delete db-0"],
    );
}

#[test]
fn pods_beyond_the_wanted_number_go_from_the_highest_one_at_a_time() {
    let one = set(json!({"spec": {"replicas": 1}}));
    check(&one, &[(0, ""), (1, ""), (2, "")], expect!["delete db-2"]);
    check(&one, &[(0, ""), (1, ""), (2, "going")], expect![""]);
    // Not while one that stays is not ready.
    check(&one, &[(0, "pending"), (1, "")], expect![""]);
    // The one that fails is not waited for.
    check(&one, &[(0, ""), (1, "pending")], expect!["delete db-1"]);
    check(
        &one,
        &[(0, ""), (1, "pending"), (2, "")],
        expect!["delete db-2"],
    );
}

/// Upstream: "Update Strategies", "Partitioned rolling updates", "Maximum unavailable Pods".
#[test]
fn a_rollout_goes_down_from_the_highest_to_the_partition() {
    let all = set(json!({}));
    check(
        &all,
        &[(0, "old"), (1, "old"), (2, "old")],
        expect!["delete db-2"],
    );
    check(
        &all,
        &[(0, "old"), (1, "old"), (2, "")],
        expect!["delete db-1"],
    );
    check(&all, &[(0, "old"), (1, "old"), (2, "pending")], expect![""]);
    let part = set(json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 2}}}}));
    check(&part, &[(0, "old"), (1, "old"), (2, "")], expect![""]);
    // Below the partition what is made again is made of the old template.
    check(&part, &[(0, "old"), (2, "")], expect!["create 1 old"]);
    let two = set(json!({"spec": {"podManagementPolicy": "Parallel",
        "updateStrategy": {"rollingUpdate": {"maxUnavailable": 2}}}}));
    check(
        &two,
        &[(0, "old"), (1, "old"), (2, "old")],
        expect!["delete db-2, delete db-1"],
    );
    check(
        &two,
        &[(0, "old"), (1, "old"), (2, "pending")],
        expect!["delete db-1"],
    );
    check(
        &two,
        &[(0, "old pending"), (1, "old"), (2, "pending")],
        expect!["delete db-0"],
    );
    let by_hand = set(json!({"spec": {"updateStrategy": {"type": "OnDelete"}}}));
    check(&by_hand, &[(0, "old"), (1, "old"), (2, "old")], expect![""]);
    check(&by_hand, &[(0, "old")], expect!["create 1"]);
}

#[test]
fn a_pod_is_available_only_after_min_ready_seconds() {
    let slow = set(json!({"spec": {"minReadySeconds": 30}}));
    check(&slow, &[(0, "young")], expect!["look again in 20s"]);
    check(&slow, &[(0, "")], expect!["create 1"]);
    let plan = planned(&slow, &[(0, "young")]);
    assert_eq!(plan.status.ready_replicas, Some(1));
    assert_eq!(plan.status.available_replicas, Some(0));
}

#[test]
fn the_current_revision_follows_when_all_pods_are_of_the_new_one() {
    let half = planned(&set(json!({})), &[(0, "old"), (1, ""), (2, "")]);
    expect![[r#"{"availableReplicas":3,"collisionCount":0,"currentReplicas":1,"currentRevision":"one","observedGeneration":2,"readyReplicas":3,"replicas":3,"updateRevision":"two","updatedReplicas":2}"#]]
    .assert_eq(&serde_json::to_string(&half.status).unwrap_or_default());
    let whole = planned(&set(json!({})), &[(0, ""), (1, ""), (2, "")]);
    expect![[r#"{"availableReplicas":3,"collisionCount":0,"currentReplicas":3,"currentRevision":"two","observedGeneration":2,"readyReplicas":3,"replicas":3,"updateRevision":"two","updatedReplicas":3}"#]]
    .assert_eq(&serde_json::to_string(&whole.status).unwrap_or_default());
}

/// Upstream: "Pod Identity" and "Stable Storage".
#[test]
fn a_pod_has_its_name_host_name_labels_and_claims() {
    let set = set(json!({"spec": {"volumeClaimTemplates": [
        {"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}]}}));
    let pod = identity::pod(&set, &set.spec.template, "two", 1);
    let shown = json!([
        pod.metadata.name,
        pod.metadata.labels,
        pod.spec
            .map(|s| json!([s.hostname, s.subdomain, s.volumes]))
    ]);
    expect![[r#"["db-1",{"app":"db","apps.kubernetes.io/pod-index":"1","controller-revision-hash":"two","statefulset.kubernetes.io/pod-name":"db-1"},["db-1","db",[{"name":"data","persistentVolumeClaim":{"claimName":"data-db-1","readOnly":false}}]]]"#]]
    .assert_eq(&shown.to_string());
    let claims = identity::claims(&set, 1);
    expect![[r#"[{"apiVersion":"v1","kind":"PersistentVolumeClaim","metadata":{"labels":{"app":"db"},"name":"data-db-1","namespace":"ns"},"spec":{"accessModes":["ReadWriteOnce"]}}]"#]]
    .assert_eq(&json!(claims).to_string());
}

/// Upstream: "PersistentVolumeClaim retention", its table of four policies.
#[test]
fn claims_go_with_the_set_or_with_a_pod_that_is_scaled_away() {
    let owner = |deleted: &str, scaled: &str, condemned: bool| {
        let set = set(json!({"spec": {"persistentVolumeClaimRetentionPolicy":
            {"whenDeleted": deleted, "whenScaled": scaled}}}));
        let claim: PersistentVolumeClaim = object(json!({"metadata": {"name": "data-db-2"}}));
        let pod = pod(2, "");
        let owners = identity::claim_owners(&set, &claim, condemned.then_some(&*pod));
        owners.map_or_else(String::new, |o| format!("{} {}", o[0].kind, o[0].name))
    };
    assert_eq!(owner("Retain", "Retain", true), "");
    assert_eq!(owner("Delete", "Retain", true), "StatefulSet db");
    assert_eq!(owner("Delete", "Delete", false), "StatefulSet db");
    assert_eq!(owner("Delete", "Delete", true), "Pod db-2");
    assert_eq!(owner("Retain", "Delete", false), "");
    assert_eq!(owner("Retain", "Delete", true), "Pod db-2");
}

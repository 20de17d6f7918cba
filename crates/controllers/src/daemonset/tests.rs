//! Tables of DaemonSets, nodes and pods, and what comes next.

use super::nodes::{self, Place, place};
use super::plan::{self, plan};
use crate::fixture::{merge, now, object};
use client::k8s_openapi::api::apps::v1::DaemonSet;
use client::k8s_openapi::api::core::v1::{Node, Pod};
use expect_test::{Expect, expect};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::Arc;

fn set(more: Value) -> DaemonSet {
    let mut set = json!({
        "metadata": {"name": "log", "namespace": "ns", "uid": "set", "generation": 3},
        "spec": {
            "updateStrategy": {"type": "RollingUpdate"},
            "selector": {"matchLabels": {"app": "log"}},
            "template": {"metadata": {"labels": {"app": "log"}},
                "spec": {"containers": [{"name": "c", "image": "log:1"}]}},
        },
    });
    merge(&mut set, more);
    object(set)
}

fn node(name: &str, more: Value) -> Arc<Node> {
    let mut node = json!({"metadata": {"name": name, "labels": {"zone": "z1"}}});
    merge(&mut node, more);
    Arc::new(object(node))
}

fn tainted(name: &str, key: &str, effect: &str) -> Arc<Node> {
    node(
        name,
        json!({"spec": {"taints": [{"key": key, "effect": effect}]}}),
    )
}

/// On a node; of words: `old`, `pending`, `failed`, `going`, `young`; else ready and new.
fn pod(on: &str, is: &str) -> Arc<Pod> {
    let bad = is.contains("pending") || is.contains("failed");
    let phase = if is.contains("failed") {
        "Failed"
    } else if bad {
        "Pending"
    } else {
        "Running"
    };
    let since = if is.contains("young") {
        "2026-01-01T23:59:55Z"
    } else {
        "2026-01-01T00:00:00Z"
    };
    let (hash, name) = if is.contains("old") {
        ("one", "old")
    } else {
        ("two", "new")
    };
    let name = format!("{on}-{name}");
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "creationTimestamp": since,
            "labels": {"app": "log", "controller-revision-hash": hash}},
        "spec": {"nodeName": on, "containers": []},
        "status": {"phase": phase, "conditions": [{"type": "Ready",
            "status": if bad { "False" } else { "True" }, "lastTransitionTime": since}]},
    });
    if is.contains("going") {
        pod["metadata"]["deletionTimestamp"] = since.into();
    }
    Arc::new(object(pod))
}

fn check(set: &DaemonSet, nodes: &[Arc<Node>], pods: &[(&str, &str)], expect: Expect) {
    let pods: Vec<_> = pods.iter().map(|(on, is)| pod(on, is)).collect();
    let plan = plan(set, &pods, &HashSet::new(), nodes, "two", now());
    let mut steps: Vec<String> = plan.create.iter().map(|n| format!("create {n}")).collect();
    let name = |p: &Arc<Pod>| p.metadata.name.clone().unwrap_or_default();
    steps.extend(plan.delete.iter().map(|p| format!("delete {}", name(p))));
    if let Some(delay) = plan.look_again_in {
        steps.push(format!("look again in {delay:?}"));
    }
    let s = plan.status;
    steps.push(format!(
        "want {} have {} updated {} ready {} available {} astray {}",
        s.desired_number_scheduled,
        s.current_number_scheduled,
        s.updated_number_scheduled.unwrap_or(0),
        s.number_ready,
        s.number_available.unwrap_or(0),
        s.number_misscheduled,
    ));
    expect.assert_eq(&steps.join(", "));
}

/// Upstream: DaemonSet concepts page, "Taints and tolerations" and "How Daemon Pods are
/// scheduled".
#[test]
fn a_pod_is_wanted_where_it_fits_and_stands_the_taints_of_trouble() {
    let at = |set: &DaemonSet, node: &Node| place(&plan::pod(set, "two"), node);
    let any = set(json!({}));
    for (key, effect) in [
        ("node.kubernetes.io/not-ready", "NoExecute"),
        ("node.kubernetes.io/unschedulable", "NoSchedule"),
        ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ] {
        assert_eq!(at(&any, &tainted("n", key, effect)), Place::Wanted, "{key}");
    }
    let network = tainted("n", "node.kubernetes.io/network-unavailable", "NoSchedule");
    assert_eq!(at(&any, &network), Place::MayStay);
    let host = set(json!({"spec": {"template": {"spec": {"hostNetwork": true}}}}));
    assert_eq!(at(&host, &network), Place::Wanted);
    assert_eq!(at(&any, &tainted("n", "gpu", "NoSchedule")), Place::MayStay);
    assert_eq!(at(&any, &tainted("n", "gpu", "NoExecute")), Place::Refused);
    assert_eq!(
        at(&any, &tainted("n", "gpu", "PreferNoSchedule")),
        Place::Wanted
    );
    let zone = set(json!({"spec": {"template": {"spec": {"nodeSelector": {"zone": "z2"}}}}}));
    assert_eq!(at(&zone, &node("n", json!({}))), Place::Refused);
    let term = json!({"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["4"]}],
        "matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]});
    let affinity = set(
        json!({"spec": {"template": {"spec": {"affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}}}}}),
    );
    let cores = |name: &str, n: &str| node(name, json!({"metadata": {"labels": {"cores": n}}}));
    assert_eq!(at(&affinity, &cores("n", "8")), Place::Wanted);
    assert_eq!(at(&affinity, &cores("n", "4")), Place::Refused);
    assert_eq!(at(&affinity, &cores("m", "8")), Place::Refused);
}

#[test]
fn a_pod_for_a_node_asks_for_that_node_alone() {
    let mut pod = plan::pod(&set(json!({})), "two");
    nodes::pin(&mut pod, "n1");
    assert_eq!(nodes::target(&pod), Some("n1"));
    let keys: Vec<_> = client::taints::tolerations(&pod)
        .iter()
        .filter_map(|t| t.key.as_deref()?.strip_prefix("node.kubernetes.io/"))
        .collect();
    expect!["not-ready unreachable disk-pressure memory-pressure pid-pressure unschedulable"]
        .assert_eq(&keys.join(" "));
}

#[test]
fn every_node_that_fits_has_one() {
    let nodes = [
        node("a", json!({})),
        node("b", json!({})),
        tainted("c", "gpu", "NoExecute"),
        tainted("d", "gpu", "NoSchedule"),
    ];
    let any = set(json!({}));
    check(
        &any,
        &nodes,
        &[("a", ""), ("c", ""), ("d", "")],
        expect!["create b, delete c-new, want 2 have 1 updated 1 ready 1 available 1 astray 2"],
    );
    // What goes is waited for; what failed is replaced, though not at once.
    check(
        &any,
        &nodes,
        &[("a", "going"), ("b", "failed")],
        expect!["delete b-new, want 2 have 1 updated 1 ready 0 available 0 astray 0"],
    );
    check(
        &any,
        &nodes,
        &[("a", ""), ("b", "failed young")],
        expect!["look again in 5s, want 2 have 2 updated 2 ready 1 available 1 astray 0"],
    );
}

/// Upstream: "Perform a Rolling Update on a DaemonSet".
#[test]
fn old_pods_are_replaced_as_many_as_may_lack() {
    let nodes: Vec<_> = ["a", "b", "c"].map(|n| node(n, json!({}))).into();
    let one = set(json!({}));
    let old = [("a", "old"), ("b", "old"), ("c", "old")];
    check(
        &one,
        &nodes,
        &old,
        expect!["delete a-old, want 3 have 3 updated 0 ready 3 available 3 astray 0"],
    );
    // One lacks already; one that does not serve goes at no cost.
    check(
        &one,
        &nodes,
        &[("a", "pending"), ("b", "old"), ("c", "old pending")],
        expect!["delete c-old, want 3 have 3 updated 1 ready 1 available 1 astray 0"],
    );
    let two =
        set(json!({"spec": {"updateStrategy": {"rollingUpdate": {"maxUnavailable": "50%"}}}}));
    check(
        &two,
        &nodes,
        &old,
        expect!["delete a-old, delete b-old, want 3 have 3 updated 0 ready 3 available 3 astray 0"],
    );
    let by_hand = set(json!({"spec": {"updateStrategy": {"type": "OnDelete"}}}));
    check(
        &by_hand,
        &nodes,
        &old,
        expect!["want 3 have 3 updated 0 ready 3 available 3 astray 0"],
    );
}

#[test]
fn with_a_surge_the_new_pod_comes_before_the_old_one_goes() {
    let nodes: Vec<_> = ["a", "b"].map(|n| node(n, json!({}))).into();
    let surge = set(json!({"spec": {"minReadySeconds": 10, "updateStrategy":
        {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}}}));
    check(
        &surge,
        &nodes,
        &[("a", "old"), ("b", "old")],
        expect!["create a, want 2 have 2 updated 0 ready 2 available 2 astray 0"],
    );
    check(
        &surge,
        &nodes,
        &[("a", "old"), ("a", "young"), ("b", "old")],
        expect!["look again in 5s, want 2 have 2 updated 1 ready 2 available 2 astray 0"],
    );
    check(
        &surge,
        &nodes,
        &[("a", "old"), ("a", ""), ("b", "old")],
        expect!["delete a-old, want 2 have 2 updated 1 ready 2 available 2 astray 0"],
    );
}

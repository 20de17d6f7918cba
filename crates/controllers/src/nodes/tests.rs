//! Conditions, taints and evictions by table.

use super::{leftovers, plan};
use crate::fixture::{merge, now, object};
use client::k8s_openapi::api::core::v1::{Node, Pod, Taint};
use jiff::SignedDuration;
use serde_json::{Value, json};
use std::sync::Arc;

fn node(more: Value) -> Node {
    let mut node = json!({"metadata": {"name": "n"}});
    merge(&mut node, more);
    object(node)
}

fn ready(status: &str) -> Value {
    json!({"status": {"conditions": [{"type": "Ready", "status": status}]}})
}

fn shown(taints: Option<Vec<Taint>>) -> Option<Vec<String>> {
    taints.map(|t| {
        t.iter()
            .map(|t| format!("{}:{}", t.key, t.effect))
            .collect()
    })
}

#[test]
fn taints_follow_conditions() {
    let check = |more: Value| shown(plan::taints(&node(more), now()));
    let some = |taints: &[&str]| Some(taints.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
    assert_eq!(check(ready("True")), None);
    assert_eq!(
        check(ready("False")),
        some(&[
            "node.kubernetes.io/not-ready:NoSchedule",
            "node.kubernetes.io/not-ready:NoExecute"
        ])
    );
    assert_eq!(
        check(ready("Unknown")),
        some(&[
            "node.kubernetes.io/unreachable:NoSchedule",
            "node.kubernetes.io/unreachable:NoExecute"
        ])
    );
    let mut pressed = json!({"status": {"conditions": [
        {"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "True"}]}});
    merge(&mut pressed, json!({"spec": {"unschedulable": true}}));
    assert_eq!(
        check(pressed),
        some(&[
            "node.kubernetes.io/disk-pressure:NoSchedule",
            "node.kubernetes.io/unschedulable:NoSchedule"
        ])
    );
    // Those of others stay, those that no longer fit go.
    let mut back = ready("True");
    merge(
        &mut back,
        json!({"spec": {"taints": [
            {"key": "gpu", "effect": "NoSchedule"},
            {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"},
        ]}}),
    );
    assert_eq!(check(back), some(&["gpu:NoSchedule"]));
    // A node that registered with a taint keeps it until it has a condition.
    let registered = json!({"spec": {"taints": [
        {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]}});
    assert_eq!(check(registered), None);
}

#[test]
fn a_silent_node_is_unknown() {
    let conditions = |node: &Node| -> Vec<String> {
        plan::silent_conditions(node, now())
            .into_iter()
            .flatten()
            .map(|c| format!("{} {} {}", c.type_, c.status, c.reason.unwrap()))
            .collect()
    };
    assert_eq!(
        conditions(&node(ready("True"))),
        [
            "Ready Unknown NodeStatusUnknown",
            "MemoryPressure Unknown NodeStatusNeverUpdated",
            "DiskPressure Unknown NodeStatusNeverUpdated",
            "PIDPressure Unknown NodeStatusNeverUpdated",
        ]
    );
    let all = json!({"status": {"conditions": [
        {"type": "Ready", "status": "Unknown"}, {"type": "MemoryPressure", "status": "Unknown"},
        {"type": "DiskPressure", "status": "Unknown"}, {"type": "PIDPressure", "status": "Unknown"},
    ]}});
    assert!(conditions(&node(all)).is_empty());
}

#[test]
fn pods_leave_when_they_do_not_or_no_longer_tolerate() {
    let added = now() - SignedDuration::from_secs(100);
    let taints: Vec<Taint> = object(json!([
        {"key": "down", "effect": "NoExecute", "timeAdded": added.to_string()},
        {"key": "other", "effect": "NoSchedule"},
    ]));
    let leaves = |tolerations: Value| {
        let pod: Pod = object(json!({"spec": {"containers": [], "tolerations": tolerations}}));
        plan::leaves_at(&pod, &taints, now()).map(|at| at.duration_since(now()).as_secs())
    };
    assert_eq!(leaves(json!([])), Some(0));
    assert_eq!(leaves(json!([{"operator": "Exists"}])), None);
    let seconds = |n: i64| {
        json!([{"key": "down", "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": n}])
    };
    assert_eq!(leaves(seconds(300)), Some(200));
    assert_eq!(leaves(seconds(60)), Some(-40));
}

#[test]
fn the_oldest_ended_pods_go_beyond_the_limit() {
    let pod = |name: &str, phase: &str, day: u8| -> Arc<Pod> {
        Arc::new(object(json!({
            "metadata": {"name": name, "creationTimestamp": format!("2026-01-0{day}T00:00:00Z")},
            "status": {"phase": phase},
        })))
    };
    let pods = [
        pod("new", "Failed", 3),
        pod("old", "Succeeded", 1),
        pod("running", "Running", 1),
        pod("middle", "Failed", 2),
    ];
    let names = |max| -> Vec<String> {
        leftovers::too_many_ended(&pods, max)
            .iter()
            .map(|p| p.metadata.name.clone().unwrap())
            .collect()
    };
    assert_eq!(names(1), ["old", "middle"]);
    assert!(names(3).is_empty());
}

#[test]
fn contracts_say_when_a_silent_node_s_pods_leave() {
    let added = now() - SignedDuration::from_secs(30);
    let taints: Vec<Taint> = object(json!([
        {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": added.to_string()},
    ]));
    let leaves = |annotations: Value, extra: Value| {
        let mut pod = json!({"metadata": {"annotations": annotations}, "spec": {
            "containers": [], "terminationGracePeriodSeconds": 5,
            "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists",
                "effect": "NoExecute", "tolerationSeconds": 300}]}});
        crate::fixture::merge(&mut pod, extra);
        let pod: Pod = object(pod);
        let at = plan::leaves_at(&pod, &taints, now()).map(|at| at.duration_since(now()).as_secs());
        (at, plan::leaves_after(&pod, &taints).map(|d| d.as_secs()))
    };
    let none = json!({});
    assert_eq!(leaves(json!({}), none.clone()), (Some(270), None));
    let keep = json!({"salp.dev/when-disconnected": "keep"});
    assert_eq!(leaves(keep.clone(), none.clone()), (None, None));
    assert_eq!(
        leaves(keep, json!({"spec": {"tolerations": []}})),
        (None, None)
    );
    let stop = json!({"salp.dev/when-disconnected": "stop", "salp.dev/after": "45s"});
    // Whatever the tolerations say, and whatever other taints there are.
    assert_eq!(leaves(stop, none), (Some(0), Some(45 + 5 + 10)));
}

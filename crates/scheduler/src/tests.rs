//! Placements by table, and properties of any placement.

use crate::preempt::preempt;
use crate::{Demand, Snapshot, place};
use client::k8s_openapi::api::core::v1::{Node, Pod};
use expect_test::{Expect, expect};
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

fn node(name: &str, more: Value) -> Arc<Node> {
    let mut node = json!({
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/arch": "amd64",
        }},
        "status": {"allocatable": {
            "cpu": "2", "memory": "4Gi", "pods": "10", "ephemeral-storage": "10Gi",
        }},
    });
    merge(&mut node, more);
    Arc::new(serde_json::from_value(node).unwrap())
}

fn pod(name: &str, more: Value) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"containers": [{"name": "c"}]},
    });
    merge(&mut pod, more);
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn requests(requests: Value) -> Value {
    json!({"spec": {"containers": [{"name": "c", "resources": {"requests": requests}}]}})
}

fn snapshot(nodes: &[Arc<Node>], pods: &[(&str, Arc<Pod>)]) -> Snapshot {
    let mut snapshot = Snapshot::new();
    for node in nodes {
        snapshot.set_node(node.clone());
    }
    for (node, pod) in pods {
        snapshot.add_pod(node, pod.clone());
    }
    snapshot
}

/// Checks the node, or the message why there is none.
fn check(snapshot: &Snapshot, pod: &Pod, expect: Expect) {
    let mut rng = StdRng::seed_from_u64(1);
    let shown = match place(&Demand::of(pod), snapshot, &mut rng) {
        Ok(node) => node.to_owned(),
        Err(reasons) => reasons.to_string(),
    };
    expect.assert_eq(&shown);
}

#[test]
fn no_nodes() {
    check(
        &Snapshot::new(),
        &pod("p", json!({})),
        expect!["no nodes available to schedule pods"],
    );
}

#[test]
fn each_filter_tells_its_reason() {
    let nodes = [
        node(
            "tainted",
            json!({"spec": {"taints": [
                {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"},
            ]}}),
        ),
        node("small", json!({"status": {"allocatable": {"cpu": "500m"}}})),
        node("full", json!({"status": {"allocatable": {"pods": "1"}}})),
        node("cordoned", json!({"spec": {"unschedulable": true}})),
        node(
            "arm",
            json!({"metadata": {"labels": {"kubernetes.io/arch": "arm64"}}}),
        ),
    ];
    let snapshot = snapshot(&nodes, &[("full", pod("other", json!({})))]);
    let mut wanted = requests(json!({"cpu": "1", "memory": "1Gi"}));
    merge(
        &mut wanted,
        json!({"spec": {"nodeSelector": {"kubernetes.io/arch": "amd64"}}}),
    );
    check(
        &snapshot,
        &pod("p", wanted),
        expect![
            "0/5 nodes are available: 1 Insufficient cpu, 1 Too many pods, 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }, 1 node(s) were unschedulable. preemption: 0/5 nodes are available: 1 No preemption victims found for incoming pod, 4 Preemption is not helpful for scheduling."
        ],
    );
}

#[test]
fn tolerated_taints_do_not_reject() {
    let nodes = [node(
        "n",
        json!({"spec": {"unschedulable": true, "taints": [
            {"key": "gpu", "value": "a100", "effect": "NoSchedule"},
            {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"},
        ]}}),
    )];
    let snapshot = snapshot(&nodes, &[]);
    let tolerating = |tolerations: Value| pod("p", json!({"spec": {"tolerations": tolerations}}));
    check(
        &snapshot,
        &tolerating(json!([{"operator": "Exists"}])),
        expect!["n"],
    );
    check(
        &snapshot,
        &tolerating(json!([
            {"key": "gpu", "value": "a100"},
            {"key": "node.kubernetes.io/unschedulable", "operator": "Exists"},
        ])),
        expect!["n"],
    );
    check(
        &snapshot,
        &tolerating(json!([
            {"key": "gpu", "value": "h100"},
            {"key": "node.kubernetes.io/unschedulable", "operator": "Exists"},
        ])),
        expect![
            "0/1 nodes are available: 1 node(s) had untolerated taint {gpu: a100}. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
        ],
    );
}

#[test]
fn init_containers_sidecars_overhead_and_extended_resources_count() {
    let nodes = [node(
        "n",
        json!({"status": {"allocatable": {"example.com/fpga": "1"}}}),
    )];
    let asks = |init: &str, sidecar: &str, main: &str| {
        let of = |cpu: &str| json!({"requests": {"cpu": cpu}});
        pod(
            "p",
            json!({"spec": {
                "overhead": {"cpu": "100m"},
                "initContainers": [
                    {"name": "s", "restartPolicy": "Always", "resources": of(sidecar)},
                    {"name": "i", "resources": of(init)},
                ],
                "containers": [{"name": "c", "resources": of(main)}],
            }}),
        )
    };
    let empty = snapshot(&nodes, &[]);
    check(&empty, &asks("1400m", "500m", "1400m"), expect!["n"]);
    let insufficient = expect![
        "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
    ];
    check(&empty, &asks("1401m", "500m", "100m"), insufficient);
    let fpga = requests(json!({"example.com/fpga": "1"}));
    check(&empty, &pod("p", fpga.clone()), expect!["n"]);
    let taken = snapshot(&nodes, &[("n", pod("other", fpga.clone()))]);
    check(
        &taken,
        &pod("p", fpga),
        expect![
            "0/1 nodes are available: 1 Insufficient example.com/fpga. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
        ],
    );
}

#[test]
fn a_host_port_is_had_once_a_node() {
    let port = |name: &str, ip: &str, protocol: &str| {
        pod(
            name,
            json!({"spec": {"containers": [{"name": "c", "ports": [
                {"containerPort": 80, "hostPort": 8080, "hostIP": ip, "protocol": protocol},
            ]}]}}),
        )
    };
    let nodes = [node("n", json!({}))];
    let taken = snapshot(&nodes, &[("n", port("other", "127.0.0.1", "TCP"))]);
    check(&taken, &port("p", "127.0.0.2", "TCP"), expect!["n"]);
    check(&taken, &port("p", "", "UDP"), expect!["n"]);
    check(
        &taken,
        &port("p", "", "TCP"),
        expect![
            "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
        ],
    );
}

#[test]
fn node_affinity_required_and_preferred() {
    let zone = |name: &str, zone: &str, size: &str| {
        node(
            name,
            json!({"metadata": {"labels": {"zone": zone, "size": size}}}),
        )
    };
    let snapshot = snapshot(
        &[
            zone("a", "1", "3"),
            zone("b", "2", "5"),
            zone("c", "2", "9"),
        ],
        &[],
    );
    let affine = |affinity: Value| {
        pod(
            "p",
            json!({"spec": {"affinity": {"nodeAffinity": affinity}}}),
        )
    };
    let required = |expressions: Value| {
        json!({"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchExpressions": expressions}]}})
    };
    check(
        &snapshot,
        &affine(required(json!([
            {"key": "zone", "operator": "In", "values": ["2"]},
            {"key": "size", "operator": "Gt", "values": ["5"]},
        ]))),
        expect!["c"],
    );
    check(
        &snapshot,
        &affine(json!({"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1, "preference": {"matchExpressions": [
                {"key": "zone", "operator": "Exists"}]}},
            {"weight": 50, "preference": {"matchExpressions": [
                {"key": "size", "operator": "Lt", "values": ["4"]}]}},
        ]})),
        expect!["a"],
    );
    check(
        &snapshot,
        &affine(json!({"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchFields": [
                {"key": "metadata.name", "operator": "In", "values": ["b"]}]}]}})),
        expect!["b"],
    );
    check(
        &snapshot,
        &affine(required(json!([]))),
        expect![
            "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
        ],
    );
}

#[test]
fn pods_stay_together_and_apart() {
    let nodes: Vec<_> = ["a", "b", "c"]
        .iter()
        .map(|n| {
            node(
                n,
                json!({"metadata": {"labels": {"zone": if *n == "c" {"2"} else {"1"}}}}),
            )
        })
        .collect();
    let rule = |key: &str, app: &str| {
        json!({"requiredDuringSchedulingIgnoredDuringExecution": [{
            "topologyKey": key, "labelSelector": {"matchLabels": {"app": app}},
        }]})
    };
    let with = |name: &str, app: &str, affinity: Value| {
        pod(
            name,
            json!({"metadata": {"labels": {"app": app}}, "spec": {"affinity": affinity}}),
        )
    };
    let cache = with("cache", "cache", json!({}));
    let placed = snapshot(&nodes, &[("c", cache)]);
    check(
        &placed,
        &with("p", "web", json!({"podAffinity": rule("zone", "cache")})),
        expect!["c"],
    );
    check(
        &placed,
        &with("p", "web", json!({"podAffinity": rule("zone", "none")})),
        expect![
            "0/3 nodes are available: 3 node(s) didn't match pod affinity rules. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
        ],
    );
    let apart = json!({"podAntiAffinity": rule("zone", "web")});
    let two = snapshot(
        &nodes,
        &[
            ("a", with("1", "web", apart.clone())),
            ("c", with("2", "web", apart.clone())),
        ],
    );
    check(
        &two,
        &with("p", "web", apart),
        expect![
            "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules. preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pod."
        ],
    );
    check(
        &two,
        &with("p", "web", json!({})),
        expect![
            "0/3 nodes are available: 3 node(s) didn't satisfy existing pods anti-affinity rules. preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pod."
        ],
    );
    // The first of a group that wants to be together may start anywhere labelled.
    let together = with("p", "db", json!({"podAffinity": rule("zone", "db")}));
    let mut rng = StdRng::seed_from_u64(1);
    assert!(place(&Demand::of(&together), &placed, &mut rng).is_ok());
}

#[test]
fn hard_spreading_bounds_the_skew() {
    let nodes: Vec<_> = ["a", "b", "c"].iter().map(|n| node(n, json!({}))).collect();
    let spread = |name: &str, more: Value| {
        let mut constraint = json!({
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "web"}},
        });
        merge(&mut constraint, more);
        pod(
            name,
            json!({"metadata": {"labels": {"app": "web"}},
                "spec": {"topologySpreadConstraints": [constraint]}}),
        )
    };
    let placed = snapshot(
        &nodes,
        &[("a", spread("1", json!({}))), ("b", spread("2", json!({})))],
    );
    check(&placed, &spread("p", json!({})), expect!["c"]);
    check(
        &placed,
        &spread("p", json!({"minDomains": 4, "maxSkew": 1})),
        expect!["c"],
    );
    check(
        &placed,
        &spread("p", json!({"topologyKey": "zone"})),
        expect![
            "0/3 nodes are available: 3 node(s) didn't match pod topology spread constraints (missing required label). preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
        ],
    );
}

#[test]
fn replicas_spread_over_nodes_by_default() {
    let nodes: Vec<_> = ["a", "b", "c"].iter().map(|n| node(n, json!({}))).collect();
    let mut snapshot = snapshot(&nodes, &[]);
    let mut rng = StdRng::seed_from_u64(7);
    for n in 0..9 {
        let pod = pod(
            &format!("p{n}"),
            json!({"metadata": {"ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "rs",
                "controller": true,
            }]}}),
        );
        let node = place(&Demand::of(&pod), &snapshot, &mut rng)
            .unwrap()
            .to_owned();
        snapshot.add_pod(&node, pod);
    }
    let counts: Vec<_> = snapshot.nodes().map(|(_, n)| n.pods().len()).collect();
    assert_eq!(counts, [3, 3, 3]);
}

#[test]
fn a_lightly_used_node_is_liked_better() {
    let nodes = [node("busy", json!({})), node("idle", json!({}))];
    let snapshot = snapshot(
        &nodes,
        &[(
            "busy",
            pod("other", requests(json!({"cpu": "1", "memory": "2Gi"}))),
        )],
    );
    check(&snapshot, &pod("p", json!({})), expect!["idle"]);
}

#[test]
fn a_removed_node_takes_nothing_but_keeps_its_pods() {
    let nodes = [node("n", json!({"status": {"allocatable": {"cpu": "1"}}}))];
    let one = requests(json!({"cpu": "1"}));
    let mut snapshot = snapshot(&nodes, &[("n", pod("other", one.clone()))]);
    snapshot.remove_node("n");
    assert!(snapshot.is_empty());
    snapshot.set_node(nodes[0].clone());
    check(
        &snapshot,
        &pod("p", one),
        expect![
            "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
        ],
    );
}

proptest! {
    /// Whatever is asked for and in whatever order pods come and go: no node is ever
    /// overcommitted, a pod is refused only when no node has room, and the sums that are
    /// kept step by step equal those of a snapshot made at once.
    #[test]
    fn never_overcommits_nor_refuses_what_fits(
        sizes in prop::collection::vec(1_i64..40, 1..5),
        steps in prop::collection::vec((any::<bool>(), 1_i64..30), 1..60),
        seed in any::<u64>(),
    ) {
        let nodes: Vec<_> = sizes.iter().enumerate().map(|(n, size)| node(
            &format!("n{n}"),
            json!({"status": {"allocatable": {"cpu": format!("{size}"), "pods": "8"}}}),
        )).collect();
        let mut snapshot = snapshot(&nodes, &[]);
        let mut rng = StdRng::seed_from_u64(seed);
        let mut placed: Vec<(String, i64, Arc<Pod>)> = Vec::new();
        for (n, (remove, cpu)) in steps.into_iter().enumerate() {
            if remove && !placed.is_empty() {
                let (node, _, pod) = placed.remove(n % placed.len());
                prop_assert!(snapshot.remove_pod(&node, pod.metadata.uid.as_deref().unwrap()));
                continue;
            }
            let mut used: BTreeMap<String, (i64, i64)> = BTreeMap::new();
            for (node, cpu, _) in &placed {
                let entry = used.entry(node.clone()).or_default();
                *entry = (entry.0 + cpu, entry.1 + 1);
            }
            let fits = |n: usize, size: i64| {
                let (cpu_used, pods) = used.get(&format!("n{n}")).copied().unwrap_or_default();
                cpu_used + cpu <= size && pods < 8
            };
            let could = sizes.iter().enumerate().any(|(n, size)| fits(n, *size));
            let pod = pod(&format!("p{n}"), requests(json!({"cpu": cpu.to_string()})));
            match place(&Demand::of(&pod), &snapshot, &mut rng) {
                Ok(node) => {
                    let node = node.to_owned();
                    let n: usize = node[1..].parse().unwrap();
                    prop_assert!(fits(n, sizes[n]));
                    snapshot.add_pod(&node, pod.clone());
                    placed.push((node, cpu, pod));
                }
                Err(_) => prop_assert!(!could),
            }
        }
        let mut at_once = Snapshot::new();
        for node in &nodes {
            at_once.set_node(node.clone());
        }
        for (node, _, pod) in &placed {
            at_once.add_pod(node, pod.clone());
        }
        for ((_, kept), (_, fresh)) in snapshot.nodes().zip(at_once.nodes()) {
            prop_assert_eq!(&kept.used, &fresh.used);
            prop_assert_eq!(&kept.used_for_score, &fresh.used_for_score);
        }
    }
}

/// Checks who goes from where, or that none does; and that the snapshot stays as it was.
fn check_preemption(
    nodes: &[Arc<Node>],
    pods: &[(&str, Arc<Pod>)],
    budgets: &[Value],
    wants: &Pod,
    expect: Expect,
) {
    let mut snapshot = snapshot(nodes, pods);
    let before = format!("{snapshot:?}").len();
    let budgets: Vec<_> = budgets
        .iter()
        .map(|b| Arc::new(serde_json::from_value(b.clone()).unwrap()))
        .collect();
    let found = preempt(&Demand::of(wants), &mut snapshot, &budgets);
    let shown = found.map_or("none".to_owned(), |found| {
        let names = found.victims.iter().filter_map(|p| p.metadata.name.clone());
        format!("{}: {}", found.node, names.collect::<Vec<_>>().join(", "))
    });
    expect.assert_eq(&shown);
    assert_eq!(format!("{snapshot:?}").len(), before);
}

fn ranked(name: &str, priority: i32, cpu: &str, more: Value) -> Arc<Pod> {
    let mut wanted = requests(json!({"cpu": cpu}));
    merge(&mut wanted, json!({"spec": {"priority": priority}}));
    merge(&mut wanted, more);
    pod(name, wanted)
}

/// Upstream: `pkg/scheduler/framework/plugins/defaultpreemption/default_preemption_test.go`.
#[test]
fn as_few_and_as_unimportant_pods_go_as_can() {
    let none = || json!({});
    let node = |name: &str| node(name, json!({}));
    let (a, b) = (node("a"), node("b"));
    let wants = ranked("wants", 10, "1500m", none());
    let started = |at: &str| json!({"status": {"startTime": at}});
    // Nothing of a lower priority.
    check_preemption(
        std::slice::from_ref(&a),
        &[("a", ranked("same", 10, "1", none()))],
        &[],
        &wants,
        expect!["none"],
    );
    // It would not fit on an empty node.
    check_preemption(
        std::slice::from_ref(&a),
        &[("a", ranked("low", 1, "1", none()))],
        &[],
        &ranked("large", 10, "3", none()),
        expect!["none"],
    );
    // Of two that could go the less important goes, then the younger.
    check_preemption(
        std::slice::from_ref(&a),
        &[
            ("a", ranked("low", 1, "1", none())),
            ("a", ranked("lower", 0, "1", none())),
            ("a", ranked("tiny", 0, "0", none())),
        ],
        &[],
        &ranked("wants", 10, "1", none()),
        expect!["a: lower"],
    );
    check_preemption(
        std::slice::from_ref(&a),
        &[
            (
                "a",
                ranked("young", 1, "1", started("2026-01-02T00:00:00Z")),
            ),
            ("a", ranked("old", 1, "1", started("2026-01-01T00:00:00Z"))),
        ],
        &[],
        &ranked("wants", 10, "1", none()),
        expect!["a: young"],
    );
    // The node whose most important victim is the least important.
    check_preemption(
        &[a.clone(), b.clone()],
        &[
            ("a", ranked("mid", 5, "2", none())),
            ("b", ranked("low", 1, "1", none())),
            ("b", ranked("low2", 1, "1", none())),
        ],
        &[],
        &wants,
        expect!["b: low, low2"],
    );
    // Then the fewest.
    check_preemption(
        &[a.clone(), b.clone()],
        &[
            ("a", ranked("low", 1, "1", none())),
            ("a", ranked("low2", 1, "1", none())),
            ("b", ranked("one", 1, "2", none())),
        ],
        &[],
        &wants,
        expect!["b: one"],
    );
    // A budget that is used up weighs more than priorities.
    let labels = json!({"metadata": {"labels": {"app": "kept"}}});
    let budget = |allowed: i32| {
        json!({"metadata": {"name": "b", "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": "kept"}}},
            "status": {"disruptionsAllowed": allowed}})
    };
    let pods = [
        ("a", ranked("kept", 1, "2", labels)),
        ("b", ranked("mid", 5, "2", none())),
    ];
    let nodes = [a, b];
    check_preemption(&nodes, &pods, &[budget(0)], &wants, expect!["b: mid"]);
    check_preemption(&nodes, &pods, &[budget(1)], &wants, expect!["a: kept"]);
}

#[test]
fn what_stands_against_a_pod_goes_for_it() {
    let nodes = [node("a", json!({}))];
    let alone = json!({"spec": {"affinity": {"podAntiAffinity": {
    "requiredDuringSchedulingIgnoredDuringExecution": [{
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": {"app": "rival"}},
    }]}}}});
    let rival = json!({"metadata": {"labels": {"app": "rival"}}});
    check_preemption(
        &nodes,
        &[
            ("a", ranked("rival", 0, "0", rival)),
            ("a", ranked("other", 0, "0", json!({}))),
        ],
        &[],
        &ranked("alone", 10, "0", alone),
        expect!["a: rival"],
    );
}

proptest! {
    /// Once those are gone who are to go there is room, and not with one of them left; all have a
    /// lower priority.
    #[test]
    fn who_goes_is_enough_and_no_more(
        sizes in prop::collection::vec(1_i64..12, 1..4),
        pods in prop::collection::vec((0_usize..4, 0_i32..4, 0_i64..5), 0..12),
        (own, cpu) in (0_i32..4, 1_i64..10),
    ) {
        let nodes: Vec<_> = sizes.iter().enumerate().map(|(n, size)| node(
            &format!("n{n}"),
            json!({"status": {"allocatable": {"cpu": format!("{size}"), "pods": "8"}}}),
        )).collect();
        let mut snapshot = snapshot(&nodes, &[]);
        for (i, (n, priority, cpu)) in pods.iter().enumerate() {
            let pod = ranked(&format!("p{i}"), *priority, &cpu.to_string(), json!({}));
            snapshot.add_pod(&format!("n{}", n % sizes.len()), pod);
        }
        let wants = ranked("wants", own, &cpu.to_string(), json!({}));
        let demand = Demand::of(&wants);
        let mut rng = StdRng::seed_from_u64(1);
        prop_assume!(place(&demand, &snapshot, &mut rng).is_err());
        let Some(found) = preempt(&demand, &mut snapshot, &[]) else {
            return Ok(());
        };
        prop_assert!(!found.victims.is_empty());
        for victim in &found.victims {
            let priority = victim.spec.as_ref().and_then(|s| s.priority);
            prop_assert!(priority < Some(own));
            snapshot.remove_pod(&found.node, victim.metadata.uid.as_deref().unwrap());
        }
        prop_assert_eq!(place(&demand, &snapshot, &mut rng).ok(), Some(&*found.node));
        for victim in &found.victims {
            snapshot.add_pod(&found.node, victim.clone());
            prop_assert!(place(&demand, &snapshot, &mut rng).is_err());
            snapshot.remove_pod(&found.node, victim.metadata.uid.as_deref().unwrap());
        }
    }
}

//! Slices by table, and a property of any sequence of changes.

use super::{legacy, plan};
use crate::fixture::{merge, object};
use client::k8s_openapi::api::core::v1::{Pod, Service};
use client::k8s_openapi::api::discovery::v1::EndpointSlice;
use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

fn service(more: Value) -> Service {
    let mut service = json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "s", "labels": {"a": "b"}},
        "spec": {"selector": {"app": "web"}, "clusterIP": "10.43.0.7", "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    });
    merge(&mut service, more);
    object(service)
}

fn pod(name: &str, ip: &str, more: Value) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [
            {"name": "web", "containerPort": 3000}]}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}]},
    });
    merge(&mut pod, more);
    Arc::new(object(pod))
}

fn not_ready() -> Value {
    json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}})
}

/// The slices after all writes.
fn apply(
    service: &Service,
    pods: &[Arc<Pod>],
    known: &[Arc<EndpointSlice>],
) -> Vec<Arc<EndpointSlice>> {
    let zone = |node: &str| (node == "n1").then(|| "z1".to_owned());
    let changes = plan::changes(service, plan::wanted(service, pods, zone), known);
    let mut slices: Vec<_> = known
        .iter()
        .filter(|s| !changes.delete.contains(s.metadata.name.as_ref().unwrap()))
        .cloned()
        .collect();
    for changed in changes.update {
        for slice in &mut slices {
            if slice.metadata.name == changed.metadata.name {
                *slice = Arc::new(changed.clone());
            }
        }
    }
    for mut made in changes.create {
        // As the API server: a name that no other has.
        let is_free = |name: &String| {
            !slices
                .iter()
                .any(|s| s.metadata.name.as_ref() == Some(name))
        };
        made.metadata.name = (0..).map(|n| format!("web-{n}")).find(is_free);
        slices.push(Arc::new(made));
    }
    slices
}

fn shown(slices: &[Arc<EndpointSlice>]) -> String {
    let mut text = String::new();
    for slice in slices {
        let ports: Vec<_> = slice
            .ports
            .iter()
            .flatten()
            .map(|p| format!("{}:{}", p.name.as_deref().unwrap_or("-"), p.port.unwrap()))
            .collect();
        let _ = writeln!(text, "{} {ports:?}", slice.address_type);
        for endpoint in slice.endpoints.iter().flatten() {
            let c = endpoint.conditions.clone().unwrap();
            let _ = writeln!(
                text,
                "  {} ready={} serving={} terminating={} {} {}",
                endpoint.addresses[0],
                c.ready.unwrap(),
                c.serving.unwrap(),
                c.terminating.unwrap(),
                endpoint.node_name.as_deref().unwrap_or("-"),
                endpoint.zone.as_deref().unwrap_or("-"),
            );
        }
    }
    text
}

fn check(service: &Service, pods: &[Arc<Pod>], expect: Expect) {
    expect.assert_eq(&shown(&apply(service, pods, &[])));
}

#[test]
fn states_of_pods() {
    let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let pods = [
        pod("ready", "10.0.0.1", json!({})),
        pod("starting", "10.0.0.2", not_ready()),
        pod("going", "10.0.0.3", going),
        pod("ended", "10.0.0.4", json!({"status": {"phase": "Failed"}})),
        pod("pending", "", not_ready()),
    ];
    check(
        &service(json!({})),
        &pods,
        expect![[r#"
            IPv4 ["http:8080"]
              10.0.0.1 ready=true serving=true terminating=false n1 z1
              10.0.0.2 ready=false serving=false terminating=false n1 z1
              10.0.0.3 ready=false serving=true terminating=true n1 z1
        "#]],
    );
    check(
        &service(json!({"spec": {"publishNotReadyAddresses": true}})),
        &pods[1..2],
        expect![[r#"
            IPv4 ["http:8080"]
              10.0.0.2 ready=true serving=false terminating=false n1 z1
        "#]],
    );
}

#[test]
fn without_pods_there_is_one_empty_slice_a_family() {
    check(
        &service(json!({"spec": {"ipFamilies": ["IPv4", "IPv6"]}})),
        &[],
        expect![[r#"
            IPv4 []
            IPv6 []
        "#]],
    );
}

#[test]
fn named_ports_are_each_pods_own() {
    let other = json!({"spec": {"containers": [{"name": "c", "ports": [
        {"name": "web", "containerPort": 4000}]}]}});
    let none = json!({"spec": {"containers": [{"name": "c"}]}});
    check(
        &service(json!({"spec": {"ports": [{"port": 80, "targetPort": "web"}]}})),
        &[
            pod("a", "10.0.0.1", json!({})),
            pod("b", "10.0.0.2", other),
            pod("c", "10.0.0.3", none),
        ],
        expect![[r#"
            IPv4 [":3000"]
              10.0.0.1 ready=true serving=true terminating=false n1 z1
            IPv4 [":4000"]
              10.0.0.2 ready=true serving=true terminating=false n1 z1
            IPv4 []
              10.0.0.3 ready=true serving=true terminating=false n1 z1
        "#]],
    );
}

#[test]
fn who_is_to_prefer_an_endpoint() {
    let pods = [
        pod("ready", "10.0.0.1", json!({})),
        pod("starting", "10.0.0.2", not_ready()),
    ];
    for (distribution, expected) in [
        (None, json!([null, null])),
        (
            Some("PreferSameNode"),
            json!([{"forNodes": [{"name": "n1"}], "forZones": [{"name": "z1"}]}, null]),
        ),
        (
            Some("PreferSameZone"),
            json!([{"forZones": [{"name": "z1"}]}, null]),
        ),
        (
            Some("PreferClose"),
            json!([{"forZones": [{"name": "z1"}]}, null]),
        ),
    ] {
        let service = service(json!({"spec": {"trafficDistribution": distribution}}));
        let slices = apply(&service, &pods, &[]);
        let endpoints = slices[0].endpoints.iter().flatten();
        let hints: Vec<_> = endpoints.map(|e| json!(e.hints)).collect();
        assert_eq!(json!(hints), expected, "{distribution:?}");
    }
}

#[test]
fn a_headless_service_names_its_pods_and_labels_its_slices() {
    let service = service(json!({"spec": {"clusterIP": "None", "ports": null}}));
    let named = json!({"spec": {"hostname": "db-0", "subdomain": "web"}});
    let slices = apply(&service, &[pod("db-0", "10.0.0.1", named)], &[]);
    let endpoint = &slices[0].endpoints.as_ref().unwrap()[0];
    assert_eq!(endpoint.hostname.as_deref(), Some("db-0"));
    let labels: Vec<_> = slices[0].metadata.labels.iter().flatten().collect();
    expect![[r#"
        [
            (
                "a",
                "b",
            ),
            (
                "endpointslice.kubernetes.io/managed-by",
                "endpointslice-controller.k8s.io",
            ),
            (
                "kubernetes.io/service-name",
                "web",
            ),
            (
                "service.kubernetes.io/headless",
                "",
            ),
        ]
    "#]]
    .assert_debug_eq(&labels);
}

#[test]
fn a_change_of_one_pod_writes_one_slice() {
    let service = service(json!({}));
    let mut pods: Vec<_> = (0..250)
        .map(|n| pod(&format!("p{n}"), &format!("10.0.1.{n}"), json!({})))
        .collect();
    let slices = apply(&service, &pods, &[]);
    assert_eq!(slices.len(), 3);
    pods[7] = pod("p7", "10.0.1.7", not_ready());
    let wanted = plan::wanted(&service, &pods, |_| Some("z1".to_owned()));
    let changes = plan::changes(&service, wanted, &slices);
    assert_eq!(
        (
            changes.create.len(),
            changes.update.len(),
            changes.delete.len()
        ),
        (0, 1, 0)
    );
    assert!(
        plan::changes(
            &service,
            plan::wanted(&service, &[], |_| None),
            &apply(&service, &[], &slices)
        )
        .update
        .is_empty()
    );
}

#[test]
fn services_that_others_look_after_are_left_alone() {
    assert!(plan::selector(&service(json!({"spec": {"selector": null}}))).is_none());
    assert!(plan::selector(&service(json!({"spec": {"type": "ExternalName"}}))).is_none());
    assert!(plan::selector(&service(json!({}))).is_some());
}

#[test]
fn the_older_object_splits_ready_from_not_ready() {
    let service = service(json!({}));
    let pods = [
        pod("b", "10.0.0.2", json!({})),
        pod("a", "10.0.0.1", json!({})),
        pod("c", "10.0.0.3", not_ready()),
    ];
    let made = legacy::change(&service, &pods, None).unwrap();
    let subset = &made.subsets.as_ref().unwrap()[0];
    let ips = |addresses: &Option<Vec<_>>| -> Vec<String> {
        addresses
            .iter()
            .flatten()
            .map(|a: &client::k8s_openapi::api::core::v1::EndpointAddress| a.ip.clone())
            .collect()
    };
    assert_eq!(ips(&subset.addresses), ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(ips(&subset.not_ready_addresses), ["10.0.0.3"]);
    assert_eq!(subset.ports.as_ref().unwrap()[0].port, 8080);
    assert!(legacy::is_ours(&made));
    assert!(legacy::change(&service, &pods, Some(&made)).is_none());
    let emptied = legacy::change(&service, &[], Some(&made)).unwrap();
    assert!(emptied.subsets.is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever comes and goes: the slices hold each address once, none is too full, and
    /// a second look finds nothing to write.
    #[test]
    fn slices_hold_exactly_the_pods(rounds in prop::collection::vec(
        prop::collection::btree_set(0..400_u32, 0..300), 1..6)
    ) {
        let service = service(json!({}));
        let mut slices = Vec::new();
        for round in rounds {
            let pods: Vec<_> = round.iter()
                .map(|n| pod(&format!("p{n}"), &format!("10.0.{}.{}", n / 256, n % 256), json!({})))
                .collect();
            slices = apply(&service, &pods, &slices);
            let held: Vec<String> = slices.iter()
                .flat_map(|s| s.endpoints.iter().flatten())
                .map(|e| e.addresses[0].clone())
                .collect();
            let wanted: BTreeSet<String> = pods.iter()
                .map(|p| p.status.as_ref().unwrap().pod_ip.clone().unwrap())
                .collect();
            prop_assert_eq!(held.len(), wanted.len());
            prop_assert_eq!(held.into_iter().collect::<BTreeSet<_>>(), wanted);
            for slice in &slices {
                prop_assert!(slice.endpoints.as_ref().unwrap().len() <= 100);
            }
            let zone = |_: &str| Some("z1".to_owned());
            let again = plan::changes(&service, plan::wanted(&service, &pods, zone), &slices);
            prop_assert!(again.create.is_empty() && again.update.is_empty() && again.delete.is_empty());
        }
    }
}

//! Deployments, ReplicaSets, Services.

use crate::site::Site;
use anyhow::Result;
use client::k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use client::k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Pod, ReplicationController, ServiceAccount,
};
use client::k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use std::sync::Arc;

pub(crate) const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

pub(crate) fn web(replicas: i32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "web:1"}]},
            },
        },
    })
}

pub(crate) fn running(_: &str) -> Option<&'static str> {
    Some("Running")
}

/// What `kubectl rollout status` waits for, of this generation.
pub(crate) fn is_rolled_out(
    deployments: &[Arc<Deployment>],
    replicas: i32,
    generation: i64,
) -> Option<()> {
    let web = deployments.first()?;
    if web.metadata.generation < Some(generation) {
        return None;
    }
    let status = web.status.as_ref()?;
    let all = [
        status.replicas,
        status.updated_replicas,
        status.available_replicas,
    ];
    (status.observed_generation >= web.metadata.generation
        && all.iter().all(|n| n.unwrap_or(0) == replicas))
    .then_some(())
}

pub(crate) fn addresses(slices: &[Arc<EndpointSlice>]) -> usize {
    slices
        .iter()
        .filter(|s| {
            s.metadata
                .name
                .as_deref()
                .is_some_and(|n| n.starts_with("web-"))
        })
        .flat_map(|s| s.endpoints.iter().flatten())
        .filter(|e| e.conditions.as_ref().and_then(|c| c.ready) == Some(true))
        .count()
}

#[tokio::test]
async fn a_deployment_rolls_out_scales_rolls_on_and_back() -> Result<()> {
    let site = Site::start().await?;
    site.play_node(running);
    site.create(
        "/api/v1/namespaces/default/services",
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}),
    )
    .await?;
    site.create(DEPLOYMENTS, web(3)).await?;
    let rolled_out = async |replicas: i32| {
        let generation = site.get(&format!("{DEPLOYMENTS}/web")).await?["metadata"]["generation"]
            .as_i64()
            .unwrap_or(0);
        site.until::<Deployment, _>("rolled out", |d| is_rolled_out(d, replicas, generation))
            .await
    };
    rolled_out(3).await?;
    site.until::<EndpointSlice, _>("three endpoints", |s| (addresses(s) == 3).then_some(()))
        .await?;
    site.until::<Endpoints, _>("the older endpoints", |e| {
        let web = e
            .iter()
            .find(|e| e.metadata.name.as_deref() == Some("web"))?;
        let subset = web.subsets.as_ref()?.first()?;
        (subset.addresses.as_ref()?.len() == 3).then_some(())
    })
    .await?;

    let scale = format!("{DEPLOYMENTS}/web/scale");
    site.patch(&scale, json!({"spec": {"replicas": 5}})).await?;
    rolled_out(5).await?;

    let web = format!("{DEPLOYMENTS}/web");
    let image = |image: &str| json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
    site.patch(&web, image("web:2")).await?;
    rolled_out(5).await?;
    let sets = site
        .until::<ReplicaSet, _>("two sets", |s| (s.len() == 2).then(|| s.to_vec()))
        .await?;
    let mut revisions: Vec<_> = sets
        .iter()
        .map(|s| {
            let annotations = s.metadata.annotations.clone().unwrap_or_default();
            (
                annotations["deployment.kubernetes.io/revision"].clone(),
                s.spec.replicas,
            )
        })
        .collect();
    revisions.sort();
    assert_eq!(revisions, [("1".into(), Some(0)), ("2".into(), Some(5))]);

    site.patch(&web, image("web:1")).await?;
    rolled_out(5).await?;
    let deployment = site.get(&web).await?;
    assert_eq!(
        deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"],
        "3"
    );
    assert_eq!(
        site.get("/apis/apps/v1/replicasets").await?["items"]
            .as_array()
            .map(Vec::len),
        Some(2)
    );
    site.stop().await
}

#[tokio::test]
async fn a_replication_controller_keeps_its_pods() -> Result<()> {
    let site = Site::start().await?;
    site.play_node(running);
    let path = "/api/v1/namespaces/default/replicationcontrollers";
    site.create(
        path,
        json!({"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "rc"},
            "spec": {"replicas": 2, "template": {"metadata": {"labels": {"app": "rc"}},
                "spec": {"containers": [{"name": "c", "image": "web:1"}]}}}}),
    )
    .await?;
    site.until::<ReplicationController, _>("two ready", |rcs| {
        (rcs.first()?.status.as_ref()?.ready_replicas == Some(2)).then_some(())
    })
    .await?;
    site.patch(&format!("{path}/rc"), json!({"spec": {"replicas": 1}}))
        .await?;
    site.until::<Pod, _>("one pod", |p| (p.len() == 1).then_some(()))
        .await?;
    site.delete(&format!("{path}/rc"), "Background").await?;
    site.until::<Pod, _>("none", |p| p.is_empty().then_some(()))
        .await?;
    site.stop().await
}

/// Upstream: "EndpointSlice mirroring".
#[tokio::test]
async fn endpoints_written_by_hand_are_shown_as_slices() -> Result<()> {
    let site = Site::start().await?;
    site.create(
        "/api/v1/namespaces/default/services",
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"ports": [{"port": 80}]}}),
    )
    .await?;
    let endpoints = "/api/v1/namespaces/default/endpoints";
    let address = |ip: &str| {
        json!({"metadata": {"name": "web"}, "subsets": [
            {"addresses": [{"ip": ip}], "ports": [{"port": 8080}]}]})
    };
    site.create(endpoints, address("192.0.2.1")).await?;
    let shown = |ip: &'static str| {
        move |slices: &[Arc<EndpointSlice>]| {
            let of = |s: &&Arc<EndpointSlice>| {
                let name = s.metadata.name.as_deref().unwrap_or_default();
                name.starts_with("web-")
            };
            let slice = slices.iter().find(of)?;
            let endpoint = slice.endpoints.as_ref()?.first()?;
            (endpoint.addresses == [ip]).then_some(())
        }
    };
    site.until::<EndpointSlice, _>("a slice", shown("192.0.2.1"))
        .await?;
    site.patch(&format!("{endpoints}/web"), address("192.0.2.2"))
        .await?;
    site.until::<EndpointSlice, _>("the other address", shown("192.0.2.2"))
        .await?;
    site.delete(&format!("{endpoints}/web"), "Background")
        .await?;
    site.until::<EndpointSlice, _>("no slice", |s| (addresses(s) == 0).then_some(()))
        .await?;
    site.stop().await
}

#[tokio::test]
async fn a_pod_that_is_deleted_is_replaced_and_one_that_fits_adopted() -> Result<()> {
    let site = Site::start().await?;
    site.play_node(running);
    let stray = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "stray", "labels": {"app": "set"}},
        "spec": {"containers": [{"name": "c", "image": "web:1"}]}});
    site.create("/api/v1/namespaces/default/pods", stray)
        .await?;
    site.create(
        "/apis/apps/v1/namespaces/default/replicasets",
        json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "set"},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "set"}},
                "template": {"metadata": {"labels": {"app": "set"}},
                    "spec": {"containers": [{"name": "c", "image": "web:1"}]}}}}),
    )
    .await?;
    let owned = |pods: &[Arc<Pod>]| {
        let names: Vec<String> = pods
            .iter()
            .filter(|p| p.metadata.owner_references.is_some())
            .filter_map(|p| p.metadata.name.clone())
            .collect();
        (names.len() == 2 && pods.len() == 2).then_some(names)
    };
    let names = site.until::<Pod, _>("two pods", owned).await?;
    assert!(names.contains(&"stray".to_owned()));
    site.delete("/api/v1/namespaces/default/pods/stray", "Background")
        .await?;
    let names = site
        .until::<Pod, _>("two others", |pods| {
            owned(pods).filter(|names| !names.contains(&"stray".to_owned()))
        })
        .await?;
    assert!(names.iter().all(|n| n.starts_with("set-")));
    // What no longer matches is let go and replaced.
    site.patch(
        &format!("/api/v1/namespaces/default/pods/{}", names[0]),
        json!({"metadata": {"labels": {"app": "other"}}}),
    )
    .await?;
    site.until::<Pod, _>("three pods, one free", |pods| {
        let free = pods
            .iter()
            .filter(|p| p.metadata.owner_references.is_none())
            .count();
        (pods.len() == 3 && free == 1).then_some(())
    })
    .await?;
    site.stop().await
}

#[tokio::test]
async fn every_namespace_has_its_account_and_root_certificates() -> Result<()> {
    let site = Site::start().await?;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    site.create("/api/v1/namespaces", namespace).await?;
    site.until::<ServiceAccount, _>("an account", |accounts| {
        accounts
            .iter()
            .any(|a| a.metadata.namespace.as_deref() == Some("shop"))
            .then_some(())
    })
    .await?;
    let certificates = |maps: &[Arc<ConfigMap>]| {
        let map = maps
            .iter()
            .find(|m| m.metadata.namespace.as_deref() == Some("shop"))?;
        (map.data.as_ref()?.get("ca.crt")? == "-----BEGIN CERTIFICATE-----").then_some(())
    };
    site.until::<ConfigMap, _>("certificates", certificates)
        .await?;
    site.patch(
        "/api/v1/namespaces/shop/configmaps/kube-root-ca.crt",
        json!({"data": {"ca.crt": "changed"}}),
    )
    .await?;
    site.until::<ConfigMap, _>("certificates again", certificates)
        .await?;
    site.stop().await
}

//! Claims and volumes: bound, made, given up, kept while they are in use.

use crate::site::Site;
use anyhow::Result;
use client::informer::Kind;
use client::k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde_json::{Value, json};
use std::sync::Arc;

const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const VOLUMES: &str = "/api/v1/persistentvolumes";

fn claim(name: &str, class: &str, size: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": {"requests": {"storage": size}}},
    })
}

fn volume(name: &str, class: &str, size: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "capacity": {"storage": size}, "hostPath": {"path": "/srv"}},
    })
}

fn phase_of<K: Kind + serde::Serialize>(all: &[Arc<K>], name: &str) -> Option<(Value, String)> {
    let found = all
        .iter()
        .find(|o| o.meta().name.as_deref() == Some(name))?;
    let found = serde_json::to_value(&**found).ok()?;
    let phase = found["status"]["phase"].as_str()?.to_owned();
    Some((found, phase))
}

async fn claim_is(site: &Site, name: &str, wanted: &str) -> Result<Value> {
    site.until::<PersistentVolumeClaim, _>(&format!("claim {name} {wanted}"), |all| {
        phase_of(all, name).filter(|(_, is)| is == wanted)
    })
    .await
    .map(|(found, _)| found)
}

async fn volume_is(site: &Site, name: &str, wanted: &str) -> Result<Value> {
    site.until::<PersistentVolume, _>(&format!("volume {name} {wanted}"), |all| {
        phase_of(all, name).filter(|(_, is)| is == wanted)
    })
    .await
    .map(|(found, _)| found)
}

#[tokio::test]
async fn a_volume_made_by_hand_is_bound_released_and_bound_again() -> Result<()> {
    let site = Site::start().await?;
    site.create(VOLUMES, volume("large", "disk", "9Gi")).await?;
    site.create(VOLUMES, volume("small", "disk", "2Gi")).await?;
    volume_is(&site, "large", "Available").await?;
    volume_is(&site, "small", "Available").await?;
    site.create(CLAIMS, claim("data", "disk", "1Gi")).await?;
    let bound = claim_is(&site, "data", "Bound").await?;
    assert_eq!(bound["spec"]["volumeName"], "small");
    assert_eq!(bound["status"]["capacity"]["storage"], "2Gi");
    let of = volume_is(&site, "small", "Bound").await?;
    assert_eq!(of["spec"]["claimRef"]["uid"], bound["metadata"]["uid"]);

    // One that is bound stays until nobody has it.
    let path = format!("{VOLUMES}/small");
    site.api.call("DELETE", &path, None).await?;
    assert!(site.get(&path).await?["metadata"]["deletionTimestamp"].is_string());
    site.create(CLAIMS, claim("more", "disk", "1Gi")).await?;
    let more = claim_is(&site, "more", "Bound").await?;
    assert_eq!(more["spec"]["volumeName"], "large");
    for name in ["data", "more"] {
        site.api
            .call("DELETE", &format!("{CLAIMS}/{name}"), None)
            .await?;
    }
    site.until::<PersistentVolume, _>("it goes with its claim", |all| {
        phase_of(all, "small").is_none().then_some(())
    })
    .await?;

    // What is kept is nobody's, until somebody gives it free.
    volume_is(&site, "large", "Released").await?;
    site.create(CLAIMS, claim("late", "disk", "1Gi")).await?;
    site.patch(
        &format!("{VOLUMES}/large"),
        json!({"spec": {"claimRef": null}}),
    )
    .await?;
    let late = claim_is(&site, "late", "Bound").await?;
    assert_eq!(late["spec"]["volumeName"], "large");
    site.stop().await
}

#[tokio::test]
async fn a_claim_in_use_stays_and_its_volume_is_made_where_its_pod_is() -> Result<()> {
    let site = Site::start().await?;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1",
        "labels": {"kubernetes.io/hostname": "n1"},
        "annotations": {"salp.dev/volumes-dir": "/var/lib/volumes"}}});
    site.create("/api/v1/nodes", node).await?;
    site.create(CLAIMS, claim("data", "local-path", "1Gi"))
        .await?;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
        "nodeName": "n1", "containers": [{"name": "c", "image": "app:1"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}});
    site.create("/api/v1/namespaces/default/pods", pod).await?;
    claim_is(&site, "data", "Pending").await?;
    // As the scheduler does.
    let path = format!("{CLAIMS}/data");
    let chosen = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "n1"}}});
    site.patch(&path, chosen).await?;
    let bound = claim_is(&site, "data", "Bound").await?;
    let name = bound["spec"]["volumeName"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let made = volume_is(&site, &name, "Bound").await?;
    assert_eq!(
        made["spec"]["hostPath"]["path"],
        format!("/var/lib/volumes/{name}")
    );
    assert_eq!(made["spec"]["persistentVolumeReclaimPolicy"], "Delete");

    // A directory grows by being said to.
    let more = json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}});
    site.patch(&path, more).await?;
    let grown = site
        .until::<PersistentVolumeClaim, _>("the claim grows", |all| {
            let (found, _) = phase_of(all, "data")?;
            (found["status"]["capacity"]["storage"] == "3Gi").then_some(found)
        })
        .await?;
    assert_eq!(grown["status"]["allocatedResources"]["storage"], "3Gi");
    assert_eq!(grown["status"]["phase"], "Bound");
    let volume = site.get(&format!("{VOLUMES}/{name}")).await?;
    assert_eq!(volume["spec"]["capacity"]["storage"], "3Gi");

    site.api.call("DELETE", &path, None).await?;
    assert!(site.get(&path).await?["metadata"]["deletionTimestamp"].is_string());
    let ended = json!({"status": {"phase": "Succeeded"}});
    site.patch("/api/v1/namespaces/default/pods/p/status", ended)
        .await?;
    // Its node would remove the directory; without a node there is none.
    volume_is(&site, &name, "Released").await?;
    site.api.call("DELETE", "/api/v1/nodes/n1", None).await?;
    site.until::<PersistentVolume, _>("the volume goes with its node", |all| {
        phase_of(all, &name).is_none().then_some(())
    })
    .await?;
    site.stop().await
}

/// Upstream: `TestRetroactiveStorageClassAssignment` (`test/integration/volume`).
#[tokio::test]
async fn a_claim_takes_the_class_that_becomes_the_default() -> Result<()> {
    const CLASSES: &str = "/apis/storage.k8s.io/v1/storageclasses";
    const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
    let site = Site::start().await?;
    site.patch(
        &format!("{CLASSES}/local-path"),
        json!({"metadata": {"annotations": {DEFAULT: "false"}}}),
    )
    .await?;
    let mut unclassed = claim("early", "", "1Gi");
    if let Some(spec) = unclassed["spec"].as_object_mut() {
        spec.remove("storageClassName");
    }
    site.create(CLAIMS, unclassed).await?;
    site.create(CLAIMS, claim("none", "", "1Gi")).await?;
    let early = claim_is(&site, "early", "Pending").await?;
    assert!(early["spec"]["storageClassName"].is_null(), "{early}");
    site.create(VOLUMES, volume("disk", "late", "2Gi")).await?;
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": "late", "annotations": {DEFAULT: "true"}},
        "provisioner": "kubernetes.io/no-provisioner",
    });
    site.create(CLASSES, class).await?;
    let early = claim_is(&site, "early", "Bound").await?;
    assert_eq!(early["spec"]["storageClassName"], "late");
    assert_eq!(early["spec"]["volumeName"], "disk");
    // An empty name asks for none, then as before.
    let none = claim_is(&site, "none", "Pending").await?;
    assert_eq!(none["spec"]["storageClassName"], "");
    site.stop().await
}

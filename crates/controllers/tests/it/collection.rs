//! Garbage collection, namespaces that go, Jobs.

use crate::site::Site;
use anyhow::Result;
use client::k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use client::k8s_openapi::api::batch::v1::Job;
use client::k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use serde_json::{Value, json};
use std::sync::Arc;

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn running(_: &str) -> Option<&'static str> {
    Some("Running")
}

fn web(namespace: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": namespace},
        "spec": {
            "replicas": 3,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "web:1"}]},
            },
        },
    })
}

fn three_running(pods: &[Arc<Pod>]) -> Option<()> {
    let running = pods
        .iter()
        .filter(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running"))
        .count();
    (running == 3).then_some(())
}

fn none<K>(objects: &[Arc<K>]) -> Option<()> {
    objects.is_empty().then_some(())
}

#[tokio::test]
async fn what_is_owned_goes_with_its_owner() -> Result<()> {
    for policy in ["Background", "Foreground"] {
        let site = Site::start().await?;
        site.play_node(running);
        site.create(DEPLOYMENTS, web("default")).await?;
        site.until::<Pod, _>("three pods", three_running).await?;
        site.delete(&format!("{DEPLOYMENTS}/web"), policy).await?;
        site.until::<ReplicaSet, _>("no sets", none).await?;
        site.until::<Pod, _>("no pods", none).await?;
        site.until::<Deployment, _>("no Deployment", none).await?;
        site.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn orphans_stay_and_have_no_owner() -> Result<()> {
    let site = Site::start().await?;
    site.play_node(running);
    site.create(DEPLOYMENTS, web("default")).await?;
    site.until::<Pod, _>("three pods", three_running).await?;
    site.delete(&format!("{DEPLOYMENTS}/web"), "Orphan").await?;
    site.until::<ReplicaSet, _>("a set without owner", |sets| {
        let [set] = sets else { return None };
        set.metadata
            .owner_references
            .as_ref()
            .is_none_or(Vec::is_empty)
            .then_some(())
    })
    .await?;
    site.until::<Pod, _>("its pods", three_running).await?;
    site.stop().await
}

#[tokio::test]
async fn an_object_goes_with_the_last_of_its_owners() -> Result<()> {
    let site = Site::start().await?;
    let maps = "/api/v1/namespaces/default/configmaps";
    let mut owners = Vec::new();
    for name in ["one", "two"] {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        let made = site.create(maps, map).await?;
        owners.push(
            json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name,
            "uid": made["metadata"]["uid"]}),
        );
    }
    site.create(
        maps,
        json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "owned", "ownerReferences": owners}}),
    )
    .await?;
    let owned = |maps: &[Arc<ConfigMap>]| {
        maps.iter()
            .find(|m| m.metadata.name.as_deref() == Some("owned"))
            .map(|m| m.metadata.owner_references.as_ref().map_or(0, Vec::len))
    };
    site.delete(&format!("{maps}/one"), "Background").await?;
    site.until::<ConfigMap, _>("one owner left", |m| (owned(m) == Some(1)).then_some(()))
        .await?;
    site.delete(&format!("{maps}/two"), "Background").await?;
    site.until::<ConfigMap, _>("gone", |m| owned(m).is_none().then_some(()))
        .await?;
    site.stop().await
}

#[tokio::test]
async fn a_namespace_goes_with_all_that_is_in_it() -> Result<()> {
    let site = Site::start().await?;
    site.play_node(running);
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    site.create("/api/v1/namespaces", namespace).await?;
    site.create("/apis/apps/v1/namespaces/shop/deployments", web("shop"))
        .await?;
    site.until::<Pod, _>("three pods", three_running).await?;
    site.delete("/api/v1/namespaces/shop", "Background").await?;
    site.until::<Namespace, _>("gone", |namespaces| {
        let there = namespaces
            .iter()
            .any(|n| n.metadata.name.as_deref() == Some("shop"));
        (!there).then_some(())
    })
    .await?;
    site.until::<Pod, _>("no pods", none).await?;
    site.stop().await
}

#[tokio::test]
async fn a_job_completes_and_another_fails() -> Result<()> {
    let site = Site::start().await?;
    site.play_node(|image| {
        Some(if image == "bad" {
            "Failed"
        } else {
            "Succeeded"
        })
    });
    let jobs = "/apis/batch/v1/namespaces/default/jobs";
    for (name, completions) in [("good", 3), ("bad", 1)] {
        site.create(
            jobs,
            json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
                "spec": {"completions": completions, "parallelism": 2, "backoffLimit": 0,
                    "template": {"spec": {"restartPolicy": "Never",
                        "containers": [{"name": "c", "image": name}]}}}}),
        )
        .await?;
    }
    let condition = |jobs: &[Arc<Job>], name: &str, kind: &str| {
        let job = jobs
            .iter()
            .find(|j| j.metadata.name.as_deref() == Some(name))?;
        let status = job.status.clone()?;
        status
            .conditions
            .iter()
            .flatten()
            .any(|c| c.type_ == kind && c.status == "True")
            .then_some(status)
    };
    let good = site
        .until::<Job, _>("complete", |j| condition(j, "good", "Complete"))
        .await?;
    assert_eq!((good.succeeded, good.failed), (Some(3), None));
    let bad = site
        .until::<Job, _>("failed", |j| condition(j, "bad", "Failed"))
        .await?;
    assert_eq!((bad.succeeded, bad.failed), (None, Some(1)));
    site.until::<Pod, _>("pods without finalizers", |pods| {
        pods.iter()
            .all(|p| p.metadata.finalizers.as_ref().is_none_or(Vec::is_empty))
            .then_some(())
    })
    .await?;
    site.delete(&format!("{jobs}/good"), "Background").await?;
    site.until::<Pod, _>("its pods are gone", |pods| (pods.len() == 1).then_some(()))
        .await?;
    site.stop().await
}

#[tokio::test]
async fn expired_bootstrap_tokens_are_deleted() -> Result<()> {
    let site = Site::start().await?;
    let secrets = "/api/v1/namespaces/kube-system/secrets";
    let token = |id: &str, expiration: &str| {
        json!({"type": "bootstrap.kubernetes.io/token",
            "metadata": {"name": format!("bootstrap-token-{id}")},
            "stringData": {"token-id": id, "token-secret": "0123456789abcdef",
                "expiration": expiration}})
    };
    for (id, expiration) in [
        ("aaaaaa", "2020-01-01T00:00:00Z"),
        ("bbbbbb", "2999-01-01T00:00:00Z"),
    ] {
        site.create(secrets, token(id, expiration)).await?;
    }
    let other = json!({"metadata": {"name": "other"},
        "stringData": {"expiration": "2020-01-01T00:00:00Z"}});
    site.create(secrets, other).await?;
    site.until::<Secret, _>("the expired one is gone", |secrets| {
        let mut names: Vec<_> = secrets
            .iter()
            .flat_map(|s| s.metadata.name.clone())
            .collect();
        names.sort();
        (names == ["bootstrap-token-bbbbbb", "other"]).then_some(())
    })
    .await?;
    site.stop().await
}

//! Nodes that fall silent, and pods on nodes that are not ready.

use crate::site::Site;
use anyhow::Result;
use client::k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;
use std::sync::Arc;

fn taints(nodes: &[Arc<Node>]) -> Vec<String> {
    nodes
        .iter()
        .flat_map(|n| n.spec.iter())
        .flat_map(|s| s.taints.iter().flatten())
        .map(|t| format!("{}:{}", t.key, t.effect))
        .collect()
}

#[tokio::test]
async fn a_node_that_is_not_ready_is_tainted_and_loses_its_pods() -> Result<()> {
    let site = Site::start().await?;
    site.create(
        "/api/v1/nodes",
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}),
    )
    .await?;
    let status =
        |ready: &str| json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
    site.patch("/api/v1/nodes/n1/status", status("True"))
        .await?;
    for (name, seconds) in [("leaves", Some(0)), ("stays", None)] {
        let toleration = json!({"key": "node.kubernetes.io/not-ready", "operator": "Exists",
            "effect": "NoExecute", "tolerationSeconds": seconds});
        site.create(
            "/api/v1/namespaces/default/pods",
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
                "spec": {"nodeName": "n1", "tolerations": [toleration],
                    "containers": [{"name": "c", "image": "web:1"}]}}),
        )
        .await?;
        site.patch(
            &format!("/api/v1/namespaces/default/pods/{name}/status"),
            json!({"status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True"}]}}),
        )
        .await?;
    }
    site.patch("/api/v1/nodes/n1/status", status("False"))
        .await?;
    site.until::<Node, _>("tainted", |nodes| {
        (taints(nodes).len() == 2 && taints(nodes).iter().all(|t| t.contains("not-ready")))
            .then_some(())
    })
    .await?;
    site.until::<Pod, _>("one is deleted, the other not ready", |pods| {
        let of = |name: &str| {
            pods.iter()
                .find(|p| p.metadata.name.as_deref() == Some(name))
        };
        let gone = of("leaves").is_none_or(|p| p.metadata.deletion_timestamp.is_some());
        let stays = of("stays")?;
        let ready = stays
            .status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten())
            .any(|c| c.type_ == "Ready" && c.status == "True");
        (gone && stays.metadata.deletion_timestamp.is_none() && !ready).then_some(())
    })
    .await?;
    site.patch("/api/v1/nodes/n1/status", status("True"))
        .await?;
    site.until::<Node, _>("taints gone", |n| taints(n).is_empty().then_some(()))
        .await?;
    site.stop().await
}

//! What bounds others: quotas and disruption budgets, the latter as `kubectl drain` meets them.

use crate::kubectl::Kubectl;
use crate::site::Site;
use anyhow::Result;
use client::k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use client::k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};
use std::sync::Arc;

const PODS: &str = "/api/v1/namespaces/default/pods";

fn running(_: &str) -> Option<&'static str> {
    Some("Running")
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "web:1"}]}})
}

fn used(quotas: &[Arc<ResourceQuota>], name: &str) -> Option<String> {
    let status = quotas.first()?.status.as_ref()?;
    Some(status.used.as_ref()?.get(name)?.0.clone())
}

/// Upstream: "Resource Quotas": what is deleted is given back.
#[tokio::test]
async fn a_quota_is_counted_anew_when_something_has_gone() -> Result<()> {
    let site = Site::start().await?;
    let maps = "/api/v1/namespaces/default/configmaps";
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard":
        {"pods": "2", "count/configmaps": "3", "count/deployments.apps": "4"}}});
    site.create(PODS, pod("a")).await?;
    site.create("/api/v1/namespaces/default/resourcequotas", quota)
        .await?;
    let until = async |name: &str, n: &str| {
        let found = |q: &[Arc<ResourceQuota>]| (used(q, name)? == n).then_some(());
        site.until::<ResourceQuota, _>(&format!("{name} is {n}"), found)
            .await
    };
    until("pods", "1").await?;
    // One has the root certificates already.
    until("count/configmaps", "1").await?;
    until("count/deployments.apps", "0").await?;
    site.create(maps, json!({"metadata": {"name": "m"}}))
        .await?;
    until("count/configmaps", "2").await?;
    site.create(PODS, pod("b")).await?;
    until("pods", "2").await?;
    assert!(site.create(PODS, pod("c")).await.is_err());
    site.delete(&format!("{PODS}/a"), "Background").await?;
    until("pods", "1").await?;
    site.delete(&format!("{maps}/m"), "Background").await?;
    until("count/configmaps", "1").await?;
    site.stop().await
}

/// Upstream: "Safely Drain a Node": evictions beyond the budget are refused and tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_lets_pods_go_one_by_one() -> Result<()> {
    let site = Site::start().await?;
    site.play_node(running);
    site.create("/api/v1/nodes", json!({"metadata": {"name": "n1"}}))
        .await?;
    let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}}, "spec": {"nodeName": "n1",
                "containers": [{"name": "c", "image": "web:1"}]}}}});
    site.create("/apis/apps/v1/namespaces/default/replicasets", set)
        .await?;
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"metadata": {"name": "web"}, "spec": {"maxUnavailable": 0,
        "selector": {"matchLabels": {"app": "web"}}}});
    site.create(budgets, budget).await?;
    let allowed = async |n: i32| {
        let found = |b: &[Arc<PodDisruptionBudget>]| {
            let status = b.first()?.status.as_ref()?;
            let whole = status.current_healthy == Some(2) && status.expected_pods == Some(2);
            (whole && status.disruptions_allowed == Some(n)).then_some(())
        };
        site.until::<PodDisruptionBudget, _>("healthy", found).await
    };
    allowed(0).await?;
    let kubectl = Kubectl::of(&site)?;
    let drain = "drain n1 --timeout=1s --ignore-daemonsets";
    let (done, text) = kubectl.try_run(drain, "").await?;
    assert!(
        !done && text.contains("Cannot evict pod as it would violate"),
        "{text}"
    );
    let pods = site.until::<Pod, _>("pods", |p| Some(p.len())).await?;
    assert_eq!(pods, 2);
    site.patch(
        &format!("{budgets}/web"),
        json!({"spec": {"maxUnavailable": 1}}),
    )
    .await?;
    allowed(1).await?;
    let name = site
        .until::<Pod, _>("pods", |p| p.first()?.metadata.name.clone())
        .await?;
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
    site.create(&format!("{PODS}/{name}/eviction"), eviction)
        .await?;
    // Upstream: "Pod disruption conditions": the pod says why it goes.
    let why = site.get(&format!("{PODS}/{name}")).await?;
    let conditions = why["status"]["conditions"].to_string();
    let gone = why["kind"] == "Status";
    assert!(
        gone || conditions.contains("EvictionByEvictionAPI"),
        "{why}"
    );
    site.until::<Pod, _>("another in its place", |p| {
        let gone = !p.iter().any(|p| p.metadata.name.as_deref() == Some(&name));
        (p.len() == 2 && gone).then_some(())
    })
    .await?;
    allowed(1).await?;
    site.stop().await
}

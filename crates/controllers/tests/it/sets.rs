//! StatefulSets and DaemonSets, also as `kubectl rollout` sees them.

use crate::kubectl::Kubectl;
use crate::site::Site;
use anyhow::Result;
use client::k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, StatefulSet};
use client::k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use serde_json::{Value, json};
use std::sync::Arc;

const STATEFUL_SETS: &str = "/apis/apps/v1/namespaces/default/statefulsets";
const DAEMON_SETS: &str = "/apis/apps/v1/namespaces/default/daemonsets";

fn template(app: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}},
        "spec": {"containers": [{"name": "c", "image": "app:1"}]}})
}

fn database() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"},
        "spec": {
            "replicas": 2, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
            "template": template("db"),
            "persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete", "whenDeleted": "Retain"},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}],
        },
    })
}

fn running(_: &str) -> Option<&'static str> {
    Some("Running")
}

fn names<K: kube::Resource>(objects: &[Arc<K>]) -> Vec<String> {
    objects
        .iter()
        .filter_map(|o| o.meta().name.clone())
        .collect()
}

fn images(pods: &[Arc<Pod>]) -> Vec<&str> {
    pods.iter()
        .filter_map(|p| p.spec.as_ref()?.containers[0].image.as_deref())
        .collect()
}

/// All pods are there, of the newest template, and so says the status.
fn is_through(sets: &[Arc<StatefulSet>], replicas: i32, generation: i64) -> Option<()> {
    let set = sets.first()?;
    let status = set.status.as_ref()?;
    (status.observed_generation >= Some(generation)
        && status.replicas == replicas
        && status.available_replicas == Some(replicas)
        && status.updated_replicas == Some(replicas)
        && status.current_revision == status.update_revision)
        .then_some(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_keeps_names_and_claims_through_rollouts() -> Result<()> {
    let site = Site::start().await?;
    site.play_node(running);
    site.create(STATEFUL_SETS, database()).await?;
    site.until::<StatefulSet, _>("two pods", |s| is_through(s, 2, 1))
        .await?;
    let claims = site
        .until::<PersistentVolumeClaim, _>("two claims", |c| (c.len() == 2).then(|| names(c)))
        .await?;
    assert_eq!(claims, ["data-db-0", "data-db-1"]);
    let db = format!("{STATEFUL_SETS}/db");
    let image = |image: &str| json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
    site.patch(&db, image("app:2")).await?;
    site.until::<StatefulSet, _>("rolled out", |s| is_through(s, 2, 2))
        .await?;
    let pods = site.until::<Pod, _>("pods", |p| Some(p.to_vec())).await?;
    assert_eq!(names(&pods), ["db-0", "db-1"]);
    assert_eq!(images(&pods), ["app:2", "app:2"]);
    let kubectl = Kubectl::of(&site)?;
    let done = kubectl
        .run("rollout status statefulset/db --timeout=30s")
        .await?;
    assert!(done.contains("2 new pods have been updated"), "{done}");
    let history = kubectl.run("rollout history statefulset/db").await?;
    assert!(
        history.contains("1         <none>\n2         <none>"),
        "{history}"
    );
    kubectl.run("rollout undo statefulset/db").await?;
    site.until::<StatefulSet, _>("undone", |s| is_through(s, 2, 3))
        .await?;
    let pods = site.until::<Pod, _>("pods", |p| Some(p.to_vec())).await?;
    assert_eq!(images(&pods), ["app:1", "app:1"]);
    let history = kubectl.run("rollout history statefulset/db").await?;
    assert!(
        history.contains("2         <none>\n3         <none>"),
        "{history}"
    );
    kubectl.run("rollout restart statefulset/db").await?;
    kubectl
        .run("rollout status statefulset/db --timeout=30s")
        .await?;
    site.until::<ControllerRevision, _>("a third revision", |r| (r.len() == 3).then_some(()))
        .await?;
    // Scaled away with its claim.
    site.patch(&db, json!({"spec": {"replicas": 1}})).await?;
    site.until::<PersistentVolumeClaim, _>("one claim", |c| {
        (names(c) == ["data-db-0"]).then_some(())
    })
    .await?;
    site.delete(&db, "Background").await?;
    site.until::<Pod, _>("no pod", |p| p.is_empty().then_some(()))
        .await?;
    let claims = site
        .until::<PersistentVolumeClaim, _>("claims", |c| Some(names(c)))
        .await?;
    assert_eq!(claims, ["data-db-0"]);
    site.until::<ControllerRevision, _>("no revision", |r| r.is_empty().then_some(()))
        .await?;
    site.stop().await
}

fn node(name: &str, zone: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"zone": zone}}})
}

fn counts(sets: &[Arc<DaemonSet>], generation: i64) -> Option<(i32, i32, i32)> {
    let status = sets.first()?.status.as_ref()?;
    (status.observed_generation >= Some(generation)).then_some((
        status.desired_number_scheduled,
        status.updated_number_scheduled.unwrap_or(0),
        status.number_available.unwrap_or(0),
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_set_has_a_pod_on_each_node_that_fits() -> Result<()> {
    let site = Site::start().await?;
    site.play_node(running);
    for (name, zone) in [("a", "z1"), ("b", "z1"), ("c", "z2")] {
        site.create("/api/v1/nodes", node(name, zone)).await?;
    }
    site.create(
        DAEMON_SETS,
        json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "log"},
            "spec": {"selector": {"matchLabels": {"app": "log"}}, "template": template("log")}}),
    )
    .await?;
    let until = async |what: &str, generation, is: (i32, i32, i32)| {
        let found = |s: &[Arc<DaemonSet>]| (counts(s, generation) == Some(is)).then_some(());
        site.until::<DaemonSet, _>(what, found).await
    };
    until("three pods", 1, (3, 3, 3)).await?;
    let log = format!("{DAEMON_SETS}/log");
    let selector = |zone: Value| json!({"spec": {"template": {"spec": {"nodeSelector": zone}}}});
    site.patch(&log, selector(json!({"zone": "z1"}))).await?;
    until("only those of a zone", 2, (2, 2, 2)).await?;
    site.until::<Pod, _>("two pods", |p| (p.len() == 2).then_some(()))
        .await?;
    site.patch(
        "/api/v1/nodes/c",
        json!({"metadata": {"labels": {"zone": "z1"}}}),
    )
    .await?;
    until("the third again", 2, (3, 3, 3)).await?;
    let kubectl = Kubectl::of(&site)?;
    kubectl.run("rollout undo daemonset/log").await?;
    let done = kubectl
        .run("rollout status daemonset/log --timeout=30s")
        .await?;
    assert!(
        done.contains("daemon set \"log\" successfully rolled out"),
        "{done}"
    );
    let selector = &site.get(&log).await?["spec"]["template"]["spec"]["nodeSelector"];
    assert!(selector.is_null(), "{selector}");
    let history = kubectl.run("rollout history daemonset/log").await?;
    assert!(
        history.contains("2         <none>\n3         <none>"),
        "{history}"
    );
    site.stop().await
}

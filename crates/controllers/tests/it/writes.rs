//! What controllers write, seen by who stands between them and the API server.

use crate::site::Site;
use crate::workloads::{DEPLOYMENTS, addresses, is_rolled_out, running, web};
use anyhow::{Context as _, Result};
use client::k8s_openapi::api::apps::v1::Deployment;
use client::k8s_openapi::api::core::v1::Pod;
use client::k8s_openapi::api::discovery::v1::EndpointSlice;
use http::{Method, Request};
use kube::api::{Api, DeleteParams};
use kube::client::Body;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tracing::{Event, Level, Metadata, Subscriber, span};

const SERVICES: &str = "/api/v1/namespaces/default/services";

/// Counts what is told at WARN or above.
struct Warnings(Arc<AtomicUsize>);

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// A client whose requests `before` sees first.
fn seen<F, Fut>(own: kube::Client, before: F) -> kube::Client
where
    F: Fn(Method, String, bool) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send,
{
    let service = tower::service_fn(move |request: Request<Body>| {
        let (own, before) = (own.clone(), before.clone());
        async move {
            let path = request.uri().path().to_owned();
            let dry = request.uri().query().is_some_and(|q| q.contains("dryRun"));
            before(request.method().clone(), path, dry).await;
            own.send(request).await
        }
    });
    kube::Client::new(service, "default")
}

/// Garbage collection, or anybody, may be quicker than what was decided on.
#[tokio::test]
async fn a_slice_that_goes_before_its_update_is_made_again() -> Result<()> {
    let warnings = Arc::new(AtomicUsize::new(0));
    let _guard = tracing::subscriber::set_default(Warnings(warnings.clone()));
    let race = Arc::new(AtomicBool::new(false));
    let site = Site::start_between(|own, admin| {
        let race = race.clone();
        seen(own, move |method, path, _| {
            let (race, admin) = (race.clone(), admin.clone());
            async move {
                let slice = path.split_once("/endpointslices/").map(|(_, name)| name);
                let once = |_: &&str| race.swap(false, Ordering::Relaxed);
                if let Some(name) = slice.filter(|_| method == Method::PUT).filter(once) {
                    let slices: Api<EndpointSlice> = Api::namespaced(admin, "default");
                    let _ = slices.delete(name, &DeleteParams::default()).await;
                }
            }
        })
    })
    .await?;
    site.play_node(running);
    let ports = json!([{"port": 80, "targetPort": 8080}]);
    let service = json!({"metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": ports}});
    site.create(SERVICES, service).await?;
    site.create(DEPLOYMENTS, web(2)).await?;
    let shown = async |pods: usize| {
        site.until::<EndpointSlice, _>("all pods in a slice", |slices| {
            (addresses(slices) == pods).then_some(())
        })
        .await
    };
    shown(2).await?;
    race.store(true, Ordering::Relaxed);
    site.patch(
        &format!("{DEPLOYMENTS}/web"),
        json!({"spec": {"replicas": 3}}),
    )
    .await?;
    shown(3).await?;
    assert!(!race.load(Ordering::Relaxed), "nobody was quicker");
    assert_eq!(warnings.load(Ordering::Relaxed), 0);
    site.stop().await
}

/// Each write that follows a wake takes the processor from those who wait for answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wake_and_a_sleep_write_each_status_once() -> Result<()> {
    let counts: Arc<Mutex<BTreeMap<&str, usize>>> = Arc::default();
    let site = Site::start_between(|own, _| {
        let counts = counts.clone();
        seen(own, move |method, path, dry| {
            let what = match () {
                () if method == Method::GET || dry => None,
                () if path.ends_with("/deployments/web/status") => Some("Deployment status"),
                () if path.contains("/replicasets/") && path.ends_with("/status") => {
                    Some("ReplicaSet status")
                }
                () if path.contains("/replicasets") => Some("ReplicaSet"),
                () if path.contains("/deployments") => Some("Deployment"),
                () => None,
            };
            if let Some(what) = what {
                *counts.lock().unwrap().entry(what).or_default() += 1;
            }
            std::future::ready(())
        })
    })
    .await?;
    site.play_node(running);
    site.create("/api/v1/nodes", json!({"metadata": {"name": "n1"}}))
        .await?;
    site.create(DEPLOYMENTS, web(1)).await?;
    let rolled_out = async |replicas: i32| {
        let web = site.get(&format!("{DEPLOYMENTS}/web")).await?;
        let generation = web["metadata"]["generation"].as_i64().unwrap_or(0);
        site.until::<Deployment, _>("rolled out", |d| {
            is_rolled_out(d, replicas, generation)?;
            let status = d.first()?.status.as_ref()?;
            (status.terminating_replicas.unwrap_or(0) == 0).then_some(generation)
        })
        .await
    };
    rolled_out(1).await?;
    counts.lock().unwrap().clear();
    for round in 0..2 {
        let place = json!({"salp.dev/woken-pod": null});
        let sleep = json!({"metadata": {"annotations": place}, "spec": {"replicas": 0}});
        site.patch(&format!("{DEPLOYMENTS}/web"), sleep).await?;
        let generation = rolled_out(0).await? + 1;
        let name = format!("web-woken-{round}");
        let place = json!({"salp.dev/woken-pod": format!("n1/{name}@{generation}")});
        let wake = json!({"metadata": {"annotations": place}, "spec": {"replicas": 1}});
        site.patch(&format!("{DEPLOYMENTS}/web"), wake).await?;
        assert_eq!(rolled_out(1).await?, generation);
        let pod = site
            .until::<Pod, _>("the pod that was woken", |pods| Some(pods.first()?.clone()))
            .await?;
        assert_eq!(pod.metadata.name.as_deref(), Some(name.as_str()));
        let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
        assert_eq!(node, Some("n1"));
    }
    let counts = counts.lock().unwrap().clone();
    // Two rounds of two changes each; a slow machine may see some half way.
    let status = counts["Deployment status"].max(counts["ReplicaSet status"]);
    assert!(status <= 6, "{counts:?}");
    assert_eq!(counts["ReplicaSet"], 4, "{counts:?}");
    assert_eq!(counts.get("Deployment"), None, "{counts:?}");

    // What is told of an earlier wake is not done again.
    site.patch(
        &format!("{DEPLOYMENTS}/web"),
        json!({"spec": {"replicas": 0}}),
    )
    .await?;
    rolled_out(0).await?;
    site.patch(
        &format!("{DEPLOYMENTS}/web"),
        json!({"spec": {"replicas": 1}}),
    )
    .await?;
    rolled_out(1).await?;
    let pod = site
        .until::<Pod, _>("a pod", |pods| Some(pods.first()?.clone()))
        .await?;
    let name = pod.metadata.name.clone().context("a name")?;
    assert!(!name.contains("woken"), "{name}");
    site.stop().await
}

//! HorizontalPodAutoscalers with the real kubectl and a kubelet that tells what pods use.

use crate::kubectl::Kubectl;
use crate::site::Site;
use anyhow::Result;
use client::Informer;
use client::k8s_openapi::api::apps::v1::Deployment;
use client::k8s_openapi::api::core::v1::{Event, Pod};
use http::Response;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use std::sync::Arc;

/// Tells that each pod uses 100m and 64Mi.
async fn kubelet(site: &Site) -> Result<u16> {
    let pki = &site.api.pki.serving;
    let chain =
        CertificateDer::pem_slice_iter(pki.cert.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(pki.key.as_bytes())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let (scope, pods) = (site.scope.clone(), site.informers.get::<Pod>());
    let began = std::time::Instant::now();
    site.scope.spawn_cancellable(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, pods) = (acceptor.clone(), pods.clone());
            let service =
                hyper::service::service_fn(move |_: http::Request<hyper::body::Incoming>| {
                    let text = summary(&pods, began.elapsed().as_nanos()).to_string();
                    async move { anyhow::Ok(Response::new(Full::new(bytes::Bytes::from(text)))) }
                });
            scope.spawn_cancellable(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                }
            });
        }
    });
    Ok(port)
}

fn summary(pods: &Informer<Pod>, ns: u128) -> Value {
    let used = json!({"startTime": "2026-01-01T00:00:00Z", "name": "c",
        "cpu": {"usageCoreNanoSeconds": u64::try_from(ns / 10).unwrap_or(u64::MAX)},
        "memory": {"workingSetBytes": 64 << 20}});
    let pods: Vec<Value> = pods
        .list()
        .iter()
        .map(|p| json!({"podRef": {"uid": p.metadata.uid}, "containers": [used]}))
        .collect();
    json!({"node": used, "pods": pods})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_is_sized_by_what_its_pods_use() -> Result<()> {
    let site = Site::start().await?;
    let port = kubelet(&site).await?;
    site.create("/api/v1/nodes", json!({"metadata": {"name": "n"}}))
        .await?;
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        "conditions": [{"type": "Ready", "status": "True"}],
    }});
    site.patch("/api/v1/nodes/n/status", status).await?;
    let resources = json!({"requests": {"cpu": "100m", "memory": "128Mi"}});
    site.create(
        "/apis/apps/v1/namespaces/default/deployments",
        json!({"metadata": {"name": "web"}, "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"nodeName": "n",
                "containers": [{"name": "c", "image": "web:1", "resources": resources}]}}}}),
    )
    .await?;
    let first = site
        .until::<Pod, _>("a pod", |pods| pods.first()?.metadata.name.clone())
        .await?;
    let ready = json!({"status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z",
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:01:00Z"}]}});
    site.patch(
        &format!("/api/v1/namespaces/default/pods/{first}/status"),
        ready,
    )
    .await?;
    let k = Kubectl::of(&site)?;
    k.run("autoscale deployment web --cpu=60% --min=1 --max=5")
        .await?;
    // All of its request where 60 % are wanted: 1.7 pods, so two.
    site.until::<Deployment, _>("twice as many", |all| {
        (all.first()?.spec.replicas == Some(2)).then_some(())
    })
    .await?;
    site.until::<Event, _>("the event", |all| {
        let of = all
            .iter()
            .find(|e| e.reason.as_deref() == Some("SuccessfulRescale"))?;
        let words =
            "New size: 2; reason: cpu resource utilization (percentage of request) above target";
        (of.message.as_deref() == Some(words)).then_some(())
    })
    .await?;
    let base = "namespaces/default/horizontalpodautoscalers/web";
    k.run("wait --for=jsonpath={.status.desiredReplicas}=2 hpa/web --timeout=20s")
        .await?;
    let status = site.get(&format!("/apis/autoscaling/v2/{base}")).await?["status"].clone();
    let shown: Vec<String> = status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|c| {
            let text = |k: &str| c[k].as_str().unwrap_or_default().to_owned();
            format!("{} {} {}", text("type"), text("status"), text("reason"))
        })
        .collect();
    assert_eq!(
        shown,
        [
            "AbleToScale True SucceededRescale",
            "ScalingActive True ValidMetricFound",
            "ScalingLimited False DesiredWithinRange",
        ]
    );
    let percent = status["currentMetrics"][0]["resource"]["current"]["averageUtilization"]
        .as_i64()
        .unwrap_or(0);
    assert!((80..=120).contains(&percent), "{status}");
    let v1 = site.get(&format!("/apis/autoscaling/v1/{base}")).await?;
    assert_eq!(v1["spec"]["targetCPUUtilizationPercentage"], 60);
    assert_eq!(v1["status"]["desiredReplicas"], 2);
    assert!(k.run("get hpa web").await?.contains("/60%"));
    // One whose target is not there says so.
    k.run("autoscale deployment web --name=lost --cpu=50% --max=2")
        .await?;
    site.patch(
        "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers/lost",
        json!({"spec": {"scaleTargetRef": {"name": "gone"}}}),
    )
    .await?;
    k.run("wait --for=condition=AbleToScale=false hpa/lost --timeout=20s")
        .await?;
    site.stop().await
}

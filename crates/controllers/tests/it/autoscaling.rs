//! HorizontalPodAutoscalers with the real kubectl, a kubelet that tells what pods use, and
//! extension servers that tell other metrics.

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

/// Answers paths over HTTPS; what has no answer is not found.
async fn serve(
    site: &Site,
    answer: impl Fn(&str) -> Option<Value> + Clone + Send + Sync + 'static,
) -> Result<u16> {
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
    let scope = site.scope.clone();
    site.scope.spawn_cancellable(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            let service =
                hyper::service::service_fn(move |r: http::Request<hyper::body::Incoming>| {
                    let found = answer(&r.uri().to_string());
                    let code = if found.is_some() { 200 } else { 404 };
                    let none = || {
                        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                        "message": format!("there is no {}", r.uri()), "code": 404})
                    };
                    let text = found.unwrap_or_else(none).to_string();
                    let response = Response::builder()
                        .status(code)
                        .header("content-type", "application/json")
                        .body(Full::new(bytes::Bytes::from(text)));
                    async move { anyhow::Ok(response?) }
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

/// Tells that each pod uses 100m and 64Mi.
async fn kubelet(site: &Site) -> Result<u16> {
    let pods = site.informers.get::<Pod>();
    let began = std::time::Instant::now();
    serve(site, move |_| {
        Some(summary(&pods, began.elapsed().as_nanos()))
    })
    .await
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

/// What the extension server of other metrics answers.
fn metrics(path: &str, pods: &Informer<Pod>) -> Option<Value> {
    const CUSTOM: &str = "/apis/custom.metrics.k8s.io/v1beta2";
    const EXTERNAL: &str = "/apis/external.metrics.k8s.io/v1beta1";
    let list = |items: Vec<Value>| Some(json!({"kind": "MetricValueList", "items": items}));
    if path == CUSTOM || path == EXTERNAL {
        return Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "resources": []}));
    }
    if let Some(rest) = path.strip_prefix(CUSTOM) {
        return match rest {
            "/namespaces/default/pods/*/hits?labelSelector=app%3Dweb" => {
                let each = pods.list().into_iter().map(|p| {
                    json!({"describedObject": {"kind": "Pod", "name": p.metadata.name},
                        "metric": {"name": "hits"}, "value": "1500m"})
                });
                list(each.collect())
            }
            "/namespaces/default/ingresses.networking.k8s.io/main/requests?metricLabelSelector=verb%3Dget" => {
                list(vec![
                    json!({"describedObject": {"kind": "Ingress", "name": "main"}, "value": "30"}),
                ])
            }
            _ => None,
        };
    }
    match path.strip_prefix(EXTERNAL)? {
        "/namespaces/default/orders?labelSelector=queue%3Dshop" => list(vec![
            json!({"metricName": "orders", "value": "10"}),
            json!({"metricName": "orders", "value": "15500m"}),
        ]),
        "/namespaces/default/nothing" => list(Vec::new()),
        _ => None,
    }
}

/// Has both metrics APIs answered.
async fn adapter(site: &Site, k: &Kubectl) -> Result<()> {
    let pods = site.informers.get::<Pod>();
    let port = serve(site, move |path| metrics(path, &pods)).await?;
    let named = json!({"name": "adapter"});
    let service = json!({"metadata": named,
        "spec": {"ports": [{"name": "https", "port": 443, "targetPort": port}]}});
    site.create("/api/v1/namespaces/default/services", service)
        .await?;
    let slice = json!({
        "metadata": {"name": "adapter-1", "labels": {"kubernetes.io/service-name": "adapter"}},
        "addressType": "IPv4", "ports": [{"name": "https", "port": port}],
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}],
    });
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    site.create(slices, slice).await?;
    for (version, group) in [
        ("v1beta2", "custom.metrics.k8s.io"),
        ("v1beta1", "external.metrics.k8s.io"),
    ] {
        let object = json!({"metadata": {"name": format!("{version}.{group}")},
            "spec": {"group": group, "version": version, "groupPriorityMinimum": 100,
                "versionPriority": 100, "insecureSkipTLSVerify": true,
                "service": {"namespace": "default", "name": "adapter"}}});
        site.create("/apis/apiregistration.k8s.io/v1/apiservices", object)
            .await?;
        k.run(&format!(
            "wait --for=condition=Available apiservice/{version}.{group} --timeout=20s"
        ))
        .await?;
    }
    Ok(())
}

const AUTOSCALERS: &str = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";

fn autoscaler(name: &str, metrics: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"minReplicas": 1, "maxReplicas": 9,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        "metrics": metrics}})
}

/// Waits until an autoscaler tells why it does nothing.
async fn inactive(site: &Site, k: &Kubectl, name: &str) -> Result<String> {
    k.run(&format!(
        "wait --for=condition=ScalingActive=false hpa/{name} --timeout=20s"
    ))
    .await?;
    let status = site.get(&format!("{AUTOSCALERS}/{name}")).await?["status"].clone();
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let active = conditions
        .into_iter()
        .find(|c| c["type"] == "ScalingActive");
    let active = active.cloned().unwrap_or_default();
    let text = |key: &str| active[key].as_str().unwrap_or_default().to_owned();
    Ok(format!("{}: {}", text("reason"), text("message")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_is_sized_by_metrics_of_extension_servers() -> Result<()> {
    let site = Site::start().await?;
    let k = Kubectl::of(&site)?;
    site.create(
        "/apis/apps/v1/namespaces/default/deployments",
        json!({"metadata": {"name": "web"}, "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
                "containers": [{"name": "c", "image": "web:1"}]}}}}),
    )
    .await?;
    let first = site
        .until::<Pod, _>("a pod", |pods| pods.first()?.metadata.name.clone())
        .await?;
    let ready = json!({"status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z",
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:01:00Z"}]}});
    let path = format!("/api/v1/namespaces/default/pods/{first}/status");
    site.patch(&path, ready).await?;
    k.run("wait --for=jsonpath={.status.replicas}=1 deployment/web --timeout=20s")
        .await?;
    let hits = json!({"type": "Pods", "pods": {"metric": {"name": "hits"},
        "target": {"type": "AverageValue", "averageValue": "1"}}});
    // Before there is such an API.
    site.create(AUTOSCALERS, autoscaler("early", json!([hits])))
        .await?;
    assert_eq!(
        inactive(&site, &k, "early").await?,
        "FailedGetPodsMetric: the HPA was unable to compute the replica count: failed to get pods metric value: unable to get metric hits: unable to fetch metrics from custom metrics API: no custom metrics API (custom.metrics.k8s.io) registered"
    );
    k.run("delete hpa early").await?;
    adapter(&site, &k).await?;
    let nothing = json!({"type": "External", "external": {"metric": {"name": "nothing"},
        "target": {"type": "Value", "value": "1"}}});
    site.create(AUTOSCALERS, autoscaler("nothing", json!([nothing])))
        .await?;
    assert_eq!(
        inactive(&site, &k, "nothing").await?,
        "FailedGetExternalMetric: the HPA was unable to compute the replica count: failed to get external metric nothing: unable to get external metric default/nothing/nil: no metrics returned from external metrics API"
    );
    k.run("delete hpa nothing").await?;
    let main = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "name": "main"});
    let get = json!({"name": "requests", "selector": {"matchLabels": {"verb": "get"}}});
    let requests = json!({"type": "Object", "object": {"metric": get, "describedObject": main,
        "target": {"type": "Value", "value": "10"}}});
    let queue = json!({"name": "orders", "selector": {"matchLabels": {"queue": "shop"}}});
    let orders = json!({"type": "External", "external": {"metric": queue,
        "target": {"type": "AverageValue", "averageValue": "10"}}});
    let wanted = autoscaler("web", json!([hits, requests, orders]));
    site.create(AUTOSCALERS, wanted).await?;
    // Two by the pods' hits, three by the requests and by the orders: the most counts.
    site.until::<Deployment, _>("three of them", |all| {
        (all.first()?.spec.replicas == Some(3)).then_some(())
    })
    .await?;
    site.until::<Event, _>("the event", |all| {
        let of = all
            .iter()
            .find(|e| e.reason.as_deref() == Some("SuccessfulRescale"))?;
        let words = "New size: 3; reason: Ingress metric requests above target";
        (of.message.as_deref() == Some(words)).then_some(())
    })
    .await?;
    k.run("wait --for=jsonpath={.status.desiredReplicas}=3 hpa/web --timeout=20s")
        .await?;
    let mut status = site.get(&format!("{AUTOSCALERS}/web")).await?["status"].clone();
    // How many share the orders changes once they are there.
    let average = status["currentMetrics"][2]["external"]["current"].take();
    assert!(average["averageValue"].is_string(), "{average}");
    assert_eq!(
        status["currentMetrics"],
        json!([
            {"type": "Pods", "pods": {"metric": {"name": "hits"}, "current": {"averageValue": "1500m"}}},
            {"type": "Object", "object": {"metric": get, "describedObject": main, "current": {"value": "30"}}},
            {"type": "External", "external": {"metric": queue, "current": null}},
        ]),
        "{status}"
    );
    let listed = k.run("get hpa web").await?;
    assert!(listed.contains("1500m/1, 30/10 + 1 more..."), "{listed}");
    site.stop().await
}

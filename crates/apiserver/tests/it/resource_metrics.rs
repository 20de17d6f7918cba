//! `metrics.k8s.io` and `kubectl top`, with a kubelet that says what upstream's says.

use super::kubectl::Kubectl;
use super::{PODS, default_account, pod};
use anyhow::{Context as _, Result};
use apimachinery::protobuf::{self, Envelope};
use apimachinery::schema::{Field, List, ListKind, Scalar, Schema, Struct, Type, TypeId};
use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use lifecycle::Scope;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use testkit::{Pki, TestApi};

/// A pod's uid and its containers: name, cores, MiB.
type Running = (String, Vec<(&'static str, f64, u64)>);

/// Answers `/stats/summary`; use of CPU grows as the cores say with the time since the start.
async fn kubelet(
    pki: &Pki,
    pods: Vec<Running>,
    asked: Arc<AtomicU64>,
    scope: &Scope,
) -> Result<u16> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = CertificateDer::pem_slice_iter(pki.serving.cert.as_bytes())
        .collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(pki.serving.key.as_bytes())?;
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let (connections, began) = (scope.clone(), std::time::Instant::now());
    let pods = Arc::new(pods);
    scope.spawn_cancellable(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, pods, asked) = (acceptor.clone(), pods.clone(), asked.clone());
            let service =
                hyper::service::service_fn(move |_: http::Request<hyper::body::Incoming>| {
                    asked.fetch_add(1, Ordering::SeqCst);
                    let text = summary(&pods, began.elapsed().as_nanos() as f64).to_string();
                    async move { anyhow::Ok(Response::new(Full::new(Bytes::from(text)))) }
                });
            connections.spawn_cancellable(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                }
            });
        }
    });
    Ok(port)
}

fn summary(pods: &[Running], ns: f64) -> Value {
    let used = |cores: f64, mib: u64| {
        json!({
            "cpu": {"usageCoreNanoSeconds": (5e9 + cores * ns) as u64},
            "memory": {"workingSetBytes": mib << 20}, "startTime": "2026-01-01T00:00:00Z",
        })
    };
    let pods: Vec<Value> = pods
        .iter()
        .map(|(uid, containers)| {
            let containers: Vec<Value> = containers
                .iter()
                .map(|(name, cores, mib)| {
                    let mut c = used(*cores, *mib);
                    c["name"] = (*name).into();
                    c
                })
                .collect();
            json!({"podRef": {"uid": uid}, "containers": containers})
        })
        .collect();
    json!({"node": used(0.75, 512), "pods": pods})
}

/// Millicores as `kubectl top` shows them; what is measured by a clock is near, not equal.
fn near(text: &str, millicores: i64) -> bool {
    let shown = text.trim_end_matches('m').parse::<i64>().unwrap_or(-1);
    (shown - millicores).abs() <= millicores / 4
}

/// The messages of upstream's `k8s.io/metrics/pkg/apis/metrics/v1beta1/generated.proto`, of which
/// clients in protobuf (a HorizontalPodAutoscaler's among them) read the same as others in JSON.
fn messages() -> Schema {
    let mut all = Schema::over(Schema::builtin());
    let meta = all.by_name("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
    let scalars = [
        Scalar::String,
        Scalar::Quantity,
        Scalar::Time,
        Scalar::Duration,
    ];
    let [text, amount, time, duration] = scalars.map(|s| all.add(Type::Scalar(s)));
    let usage = all.add(Type::Map(amount));
    let message = |all: &mut Schema, name: &str, fields: &[(&str, TypeId, u32)]| {
        let field = |(name, ty, number): &(&str, TypeId, u32)| Field {
            name: (*name).into(),
            ty: *ty,
            number: *number,
            ..Field::default()
        };
        all.add(Type::Struct(Struct {
            name: name.into(),
            fields: fields.iter().map(field).collect(),
            atomic: false,
            preserve_unknown: false,
        }))
    };
    let (meta, named) = (
        ("metadata", meta.unwrap_or_default(), 1),
        ("usage", usage, 2),
    );
    let container = message(&mut all, "ContainerMetrics", &[("name", text, 1), named]);
    let containers = all.add(Type::List(List {
        item: container,
        kind: ListKind::Atomic,
        patch_merge_key: None,
    }));
    let (time, window) = (("timestamp", time, 2), ("window", duration, 3));
    let pod = [("containers", containers, 4), meta, time, window];
    message(&mut all, "PodMetrics", &pod);
    message(
        &mut all,
        "NodeMetrics",
        &[meta, time, ("usage", usage, 4), window],
    );
    all
}

async fn in_messages(api: &TestApi) -> Result<()> {
    let schema = messages();
    for (kind, path) in [
        ("NodeMetrics", "/apis/metrics.k8s.io/v1beta1/nodes/n"),
        (
            "PodMetrics",
            "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods/big",
        ),
    ] {
        let accept = [("accept", "application/vnd.kubernetes.protobuf")];
        let answer = api.send("GET", path, &accept, Vec::new()).await?;
        assert_eq!(answer.code, 200, "{}", answer.text);
        let ty = schema.by_name(kind).context("a type")?;
        let envelope = Envelope::parse(&answer.body)?;
        let gvk = (envelope.api_version, envelope.kind);
        assert_eq!(gvk, ("metrics.k8s.io/v1beta1", kind));
        let told = protobuf::decode(&schema, ty, &answer.body)?;
        let mut text = api.call("GET", path, None).await?.json;
        for key in ["kind", "apiVersion"] {
            text.as_object_mut().context("an object")?.remove(key);
        }
        assert!(told["window"].as_str().is_some_and(|w| w.ends_with('s')));
        assert_eq!(told, text);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_top_shows_what_nodes_and_pods_use() -> Result<()> {
    let api = TestApi::start().await?;
    default_account(&api).await?;
    let mut running = Vec::new();
    for (name, label, containers) in [
        ("big", "a", vec![("c", 0.5, 64), ("side", 0.1, 16)]),
        ("small", "b", vec![("c", 0.05, 128)]),
    ] {
        let mut p = pod(name, Some("n"));
        p["metadata"]["labels"] = json!({"app": label});
        if containers.len() > 1 {
            let side = json!({"name": "side", "image": "example.com/s:1"});
            if let Some(all) = p["spec"]["containers"].as_array_mut() {
                all.push(side);
            }
        }
        let made = api.call("POST", PODS, Some(&p)).await?;
        anyhow::ensure!(made.code == 201, "{}", made.text);
        let uid = made.json["metadata"]["uid"].as_str().unwrap_or_default();
        running.push((uid.to_owned(), containers));
    }
    let (scope, asked) = (Scope::new(), Arc::<AtomicU64>::default());
    let port = kubelet(&api.pki, running, asked.clone(), &scope).await?;
    let node = json!({"metadata": {"name": "n"}});
    api.call("POST", "/api/v1/nodes", Some(&node)).await?;
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "allocatable": {"cpu": "2", "memory": "2Gi"},
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }});
    let patch = [("content-type", "application/merge-patch+json")];
    let told = status.to_string().into_bytes();
    let a = api
        .send("PATCH", "/api/v1/nodes/n/status", &patch, told)
        .await?;
    anyhow::ensure!(a.code == 200, "{}", a.text);
    let k = Kubectl::of(&api)?;
    let rows = async |args: &str| -> Result<Vec<Vec<String>>> {
        let text = k.run(true, args, "").await?;
        let words = |l: &str| l.split_whitespace().map(str::to_owned).collect();
        Ok(text.lines().map(words).collect())
    };
    let top = rows("top pods --no-headers --sort-by=cpu").await?;
    assert_eq!((top[0][0].as_str(), top[0][2].as_str()), ("big", "80Mi"));
    assert!(near(&top[0][1], 600), "{top:?}");
    assert_eq!((top[1][0].as_str(), top[1][2].as_str()), ("small", "128Mi"));
    let top = rows("top pods --no-headers --sort-by=memory").await?;
    assert_eq!(top[0][0], "small", "{top:?}");
    let top = rows("top pods --no-headers -l app=a --containers").await?;
    let names: Vec<(&str, &str)> = top.iter().map(|r| (&*r[0], &*r[1])).collect();
    assert_eq!(names, [("big", "c"), ("big", "side")]);
    assert!(near(&top[0][2], 500), "{top:?}");
    let top = rows("top pod small --no-headers").await?;
    assert_eq!(top[0][0], "small", "{top:?}");
    let top = rows("top nodes --no-headers").await?;
    assert_eq!(
        (&*top[0][0], &*top[0][3], &*top[0][4]),
        ("n", "512Mi", "25%"),
        "{top:?}"
    );
    assert!(near(&top[0][1], 750), "{top:?}");
    in_messages(&api).await?;
    // All that time the kubelet was asked for two readings.
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    let missing = k.run(false, "top pod gone", "").await?;
    assert!(missing.contains("NotFound"), "{missing}");
    // Whoever may view a namespace may see what its pods use.
    let may = k
        .run(
            true,
            "create rolebinding v --clusterrole=view --user=eve",
            "",
        )
        .await?;
    assert!(may.contains("created"), "{may}");
    let role = api
        .call(
            "GET",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:aggregated-metrics-reader",
            None,
        )
        .await?;
    assert_eq!(role.code, 200, "{}", role.text);
    let explained = k
        .run(
            true,
            "explain pods.containers.usage --api-version=metrics.k8s.io/v1beta1",
            "",
        )
        .await?;
    assert!(explained.contains("usage"), "{explained}");
    scope.close().await;
    api.close().await
}

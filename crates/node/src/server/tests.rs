//! The kubelet API over real TLS.

use crate::config::Kubelet;
use crate::fakes::{Rig, one};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

struct Certs {
    ca: CertificateDer<'static>,
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Certs {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap();
        Self {
            ca: ca.der().clone(),
            ca_pem: ca.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    fn issue(&self, name: &str, group: &str) -> (String, String) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        (cert.pem(), key.serialize_pem())
    }
}

async fn get(
    port: u16,
    certs: &Certs,
    client: Option<(String, String)>,
    path: &str,
) -> (u16, String) {
    use rustls_pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certs.ca.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match client {
        Some((cert, key)) => config
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap(),
        None => config.with_no_client_auth(),
    };
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from("127.0.0.1").unwrap(), stream)
        .await
        .unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let scope = lifecycle::Scope::new();
    scope.spawn_cancellable(connection);
    let request = http::Request::get(path)
        .header("Host", "n1")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    scope.close().await;
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn answers_those_who_may_ask() {
    let rig = Rig::new().await;
    let certs = Certs::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (cert_pem, key_pem) = certs.issue("system:node:n1", "system:nodes");
    let kubelet = Kubelet {
        listener,
        cert_pem,
        key_pem,
        client_ca_pem: certs.ca_pem.clone(),
    };
    super::Server::start(rig.agent.clone(), kubelet, &rig.scope).unwrap();
    let admin = || Some(certs.issue("kube-apiserver-kubelet-client", "x"));

    assert_eq!(
        get(port, &certs, None, "/healthz").await,
        (200, "ok\n".into())
    );
    assert_eq!(get(port, &certs, None, "/pods").await.0, 401);
    let other = Some(certs.issue("alice", "devs"));
    assert_eq!(
        get(port, &certs, other, "/pods").await,
        (403, "Forbidden (user=alice)\n".into())
    );
    let root = Some(certs.issue("admin", "system:masters"));
    assert_eq!(get(port, &certs, root, "/pods").await.0, 200);

    let mut spec = one();
    spec["restartPolicy"] = serde_json::json!("Never");
    rig.apply("web", spec);
    rig.until("running", |r| r.api.status("web")["phase"] == "Running")
        .await;
    let (_, pods) = get(port, &certs, admin(), "/pods").await;
    let pods: Value = serde_json::from_str(&pods).unwrap();
    assert_eq!(pods["items"][0]["status"]["phase"], "Running");
    let (_, stats) = get(port, &certs, admin(), "/stats/salp").await;
    let stats: Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(stats["pods"][0]["containers"][0]["requests"], 7);
    assert_eq!(stats["pods"][0]["containers"][0]["cpuNs"], 1_500_000_000u64);
    let (_, summary) = get(port, &certs, admin(), "/stats/summary").await;
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["pods"][0]["podRef"]["name"], "web");
    let (_, metrics) = get(port, &certs, admin(), "/metrics/resource").await;
    let line = "container_cpu_usage_seconds_total{container=\"c\",namespace=\"default\",pod=\"web\"} 1.500000000";
    assert!(metrics.contains(line), "{metrics}");
    let (status, exec) = get(port, &certs, admin(), "/exec/default/web/c").await;
    assert_eq!(
        (status, exec.as_str()),
        (
            400,
            "you must specify at least 1 of stdin, stdout, stderr\n"
        )
    );

    let log = rig.dir.path().join("logs/pods/default_web_web/c/0.log");
    std::fs::write(
        &log,
        "2026-01-01T00:00:01Z stdout F one\n2026-01-01T00:00:02Z stderr F two\n",
    )
    .unwrap();
    let logs = async |query: &str| {
        get(
            port,
            &certs,
            admin(),
            &format!("/containerLogs/default/web/{query}"),
        )
        .await
    };
    assert_eq!(logs("c").await, (200, "one\ntwo\n".into()));
    assert_eq!(
        logs("c?tailLines=1&timestamps=true").await,
        (200, "2026-01-01T00:00:02Z two\n".into())
    );
    assert_eq!(logs("c?tailLines=x").await.0, 400);
    assert_eq!(
        logs("nope").await,
        (400, "container nope is not valid for pod web\n".into())
    );
    assert_eq!(
        logs("c?previous=true").await,
        (
            400,
            "previous terminated container \"c\" in pod \"web\" not found\n".into()
        )
    );
    // A follower ends with the container.
    let (followed, ()) = tokio::join!(logs("c?follow=true"), async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        rig.runtime.exit("web", "c", 0);
    });
    assert_eq!(followed, (200, "one\ntwo\n".into()));
    rig.scope.close().await;
}

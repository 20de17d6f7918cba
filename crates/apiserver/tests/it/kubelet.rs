//! What nodes answer, with a kubelet that says what it was asked.

use super::{PODS, default_account, pod};
use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use lifecycle::Scope;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use std::convert::Infallible;
use std::sync::Arc;
use testkit::{Pki, TestApi};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Serves HTTPS: answers with the path asked for; an upgraded connection echoes.
async fn kubelet(pki: &Pki, scope: &Scope) -> Result<u16> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = CertificateDer::pem_slice_iter(pki.serving.cert.as_bytes())
        .collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(pki.serving.key.as_bytes())?;
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let tasks = scope.clone();
    scope.spawn_cancellable(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, inner) = (acceptor.clone(), tasks.clone());
            tasks.spawn_cancellable(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service =
                    hyper::service::service_fn(move |request| answer(request, inner.clone()));
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades()
                    .await;
            });
        }
    });
    Ok(port)
}

async fn answer(
    mut request: Request<hyper::body::Incoming>,
    scope: Scope,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().to_string();
    if !request.headers().contains_key("upgrade") {
        assert!(!request.headers().contains_key("authorization"));
        if path.contains("previous=true") {
            let mut refused = Response::new(Full::from("no previous run\n"));
            *refused.status_mut() = http::StatusCode::BAD_REQUEST;
            return Ok(refused);
        }
        return Ok(Response::new(Full::from(path)));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    scope.spawn_cancellable(async move {
        let Ok(connection) = upgrade.await else {
            return;
        };
        let (mut read, mut write) = tokio::io::split(TokioIo::new(connection));
        let _ = write.write_all(path.as_bytes()).await;
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    let mut response = Response::new(Full::default());
    *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
    for name in ["upgrade", "connection"] {
        if let Some(v) = request.headers().get(name) {
            response.headers_mut().insert(name, v.clone());
        }
    }
    Ok(response)
}

async fn site() -> Result<(TestApi, Scope)> {
    let api = TestApi::start().await?;
    let scope = Scope::new();
    let port = kubelet(&api.pki, &scope).await?;
    default_account(&api).await?;
    let node = json!({"metadata": {"name": "n"}});
    let made = api.call("POST", "/api/v1/nodes", Some(&node)).await?;
    anyhow::ensure!(made.code == 201, "{}", made.text);
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }});
    let patch = [("content-type", "application/merge-patch+json")];
    let a = api
        .send(
            "PATCH",
            "/api/v1/nodes/n/status",
            &patch,
            status.to_string().into_bytes(),
        )
        .await?;
    anyhow::ensure!(a.code == 200, "{}", a.text);
    let made = api.call("POST", PODS, Some(&pod("p", Some("n")))).await?;
    anyhow::ensure!(made.code == 201, "{}", made.text);
    Ok((api, scope))
}

/// Upstream: `test/e2e/network/proxy.go`.
#[tokio::test]
async fn logs_and_proxies_reach_the_node() -> Result<()> {
    let (api, scope) = site().await?;
    for (path, want) in [
        (format!("{PODS}/p/log"), "/containerLogs/default/p/c"),
        (
            format!("{PODS}/p/log?container=c&follow=true&tailLines=5"),
            "/containerLogs/default/p/c?follow=true&tailLines=5",
        ),
        (
            "/api/v1/nodes/n/proxy/stats/summary?a=b".to_owned(),
            "/stats/summary?a=b",
        ),
    ] {
        let a = api
            .send(
                "GET",
                &path,
                &[("authorization", "Bearer secret")],
                Vec::new(),
            )
            .await?;
        assert_eq!((a.code, a.text.as_str()), (200, want));
    }
    let refused = api
        .call("GET", &format!("{PODS}/p/log?previous=true"), None)
        .await?;
    assert_eq!(
        (
            refused.code,
            &refused.json["message"],
            &refused.json["reason"]
        ),
        (400, &json!("no previous run"), &json!("BadRequest"))
    );
    let plain = api
        .call("GET", &format!("{PODS}/p/exec?command=ls"), None)
        .await?;
    assert_eq!(
        (plain.code, plain.json["message"].as_str()),
        (400, Some("Upgrade request required"))
    );
    scope.close().await;
    let gone = api.call("GET", &format!("{PODS}/p/log"), None).await?;
    assert_eq!(gone.code, 503, "{}", gone.text);
    api.close().await
}

#[tokio::test]
async fn upgraded_connections_are_passed_through() -> Result<()> {
    let (api, scope) = site().await?;
    let identity = api.pki.identity("root", &["system:masters"])?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(api.pki.ca_cert.as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = vec![CertificateDer::from_pem_slice(identity.cert.as_bytes())?];
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    let url = api.url();
    let address = url.strip_prefix("https://").context("a URL")?;
    let tcp = TcpStream::connect(address).await?;
    let mut stream = TlsConnector::from(Arc::new(tls))
        .connect("127.0.0.1".try_into()?, tcp)
        .await?;
    let request = format!(
        "POST {PODS}/p/exec?command=sh&command=-c&stdin=true&stdout=true HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    assert!(
        head.starts_with("http/1.1 101") && head.contains("upgrade: spdy/3.1"),
        "{head}"
    );
    stream.write_all(b"bytes").await?;
    let want = "/exec/default/p/c?input=1&output=1&command=sh&command=-cbytes";
    let mut got = vec![0; want.len()];
    stream.read_exact(&mut got).await?;
    assert_eq!(String::from_utf8_lossy(&got), want);
    scope.close().await;
    api.close().await
}

/// Upstream: `test/integration/apiserver/admissionwebhook/admission_test.go`.
#[tokio::test]
async fn policies_may_refuse_connections() -> Result<()> {
    let (api, scope) = site().await?;
    let policy = json!({"metadata": {"name": "no-shells"}, "spec": {
        "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
            "operations": ["CONNECT"], "resources": ["pods/exec"]}]},
        "validations": [{"expression": "request.operation == 'CONNECT' && object.kind == 'PodExecOptions' && !('sh' in object.command)",
            "message": "no shells here"}]}});
    let binding = json!({"metadata": {"name": "no-shells"},
        "spec": {"policyName": "no-shells", "validationActions": ["Deny"]}});
    for (plural, object) in [
        ("validatingadmissionpolicies", policy),
        ("validatingadmissionpolicybindings", binding),
    ] {
        let path = format!("{}/{plural}", super::webhooks::BASE);
        let made = api.call("POST", &path, Some(&object)).await?;
        anyhow::ensure!(made.code == 201, "{}", made.text);
    }
    let exec = async |command: &str| {
        let path = format!("{PODS}/p/exec?stdout=true&command={command}");
        api.call("POST", &path, None).await
    };
    let refused = exec("sh").await?;
    assert!(
        refused.code == 422 && refused.text.contains("no shells here"),
        "{}",
        refused.text
    );
    // Another gets as far as to the handshake.
    let other = exec("ls").await?;
    assert_eq!(other.json["message"], "Upgrade request required");
    let proxied = api.call("GET", "/api/v1/nodes/n/proxy/x", None).await?;
    assert_eq!(proxied.code, 200, "{}", proxied.text);
    scope.close().await;
    api.close().await
}

//! APIServices: a real extension server over TLS, behind a Service. Behaviour from the
//! documentation "Configure the Aggregation Layer" and `test/integration/examples/apiserver_test.go`
//! of upstream.

use super::kubectl::Kubectl;
use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use lifecycle::Scope;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use std::sync::Arc;
use testkit::{Pki, TestApi};

const API_SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const FISH: &str = "/apis/sea.example.com/v1/namespaces/default/fish";

/// Serves `fish` to whoever shows a certificate of the front proxy's authority.
async fn extension(pki: &Pki, proxy_ca: &str, scope: &Scope) -> Result<u16> {
    let identity = pki.serving_for(&["sea.default.svc"])?;
    let chain =
        CertificateDer::pem_slice_iter(identity.cert.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(proxy_ca.as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        provider.clone(),
    )
    .build()?;
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let connections = scope.clone();
    scope.spawn_cancellable(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            connections.spawn_cancellable(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    let service = hyper::service::service_fn(answer);
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                }
            });
        }
    });
    Ok(port)
}

/// What the extension server says in OpenAPI v2, of another group too.
fn swagger() -> Value {
    let of = |group: &str| {
        let schema = json!({"$ref": "#/definitions/com.example.sea.v1.Fish"});
        let answer = json!({"200": {"description": "OK", "schema": schema}});
        let get = json!({"operationId": format!("list{group}"), "responses": answer,
            "parameters": [{"$ref": "#/parameters/pretty"}],
            "produces": ["application/json"], "schemes": ["https"]});
        json!({"get": get})
    };
    json!({
        "swagger": "2.0", "info": {"title": "Sea", "version": "v1"},
        "paths": {"/apis/sea.example.com/v1/fish": of("sea"), "/apis/land.example.com/v1/mice": of("land")},
        "parameters": {"pretty": {"in": "query", "name": "pretty", "type": "string", "uniqueItems": true}},
        "definitions": {
            "com.example.sea.v1.Fish": {
                "type": "object", "description": "Fish lives in the sea.",
                "properties": {
                    "apiVersion": {"type": "string"}, "kind": {"type": "string"},
                    "metadata": {"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"},
                    "fins": {"type": "integer", "format": "int32", "description": "How many fins it has."},
                },
                "x-kubernetes-group-version-kind": [{"group": "sea.example.com", "version": "v1", "kind": "Fish"}],
            },
            "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta": {
                "type": "object", "description": "As the sea knows it.",
                "properties": {"name": {"type": "string"}},
            },
        },
    })
}

async fn answer(request: Request<hyper::body::Incoming>) -> Result<Response<Full<Bytes>>> {
    let header = |name: &str| -> Vec<String> {
        let all = request.headers().get_all(name).iter();
        all.filter_map(|v| Some(v.to_str().ok()?.to_owned()))
            .collect()
    };
    let path = request.uri().to_string();
    let (user, groups) = (header("x-remote-user"), header("x-remote-group"));
    let mut code = 200;
    let value = match (request.method().as_str(), path.as_str()) {
        ("GET", "/apis/sea.example.com/v1") => {
            json!({"kind": "APIResourceList", "apiVersion": "v1",
            "groupVersion": "sea.example.com/v1", "resources": [
                {"name": "fish", "singularName": "fish", "namespaced": true, "kind": "Fish",
                    "verbs": ["create", "get", "list", "watch"], "shortNames": ["fi"]}]})
        }
        ("GET", "/openapi/v2") => swagger(),
        ("GET", "/openapi/v3") => json!({"paths": {"apis/sea.example.com/v1": {
            "serverRelativeURL": "/openapi/v3/apis/sea.example.com/v1?hash=ABC"}}}),
        ("GET", p) if p.starts_with("/openapi/v3/apis/") => json!({"openapi": "3.0.0"}),
        ("GET", p) if p.starts_with(FISH) => {
            json!({"kind": "FishList", "apiVersion": "sea.example.com/v1",
            "metadata": {}, "items": [{"kind": "Fish", "apiVersion": "sea.example.com/v1",
                "metadata": {"name": "carp", "namespace": "default",
                    "annotations": {"user": user.join(","), "groups": groups.join(","), "asked": p}}}]})
        }
        ("POST", FISH) => {
            code = 201;
            serde_json::from_slice(&request.into_body().collect().await?.to_bytes())?
        }
        _ => {
            code = 404;
            json!({"kind": "Status", "apiVersion": "v1", "code": 404})
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    *response.status_mut() = http::StatusCode::from_u16(code)?;
    let media = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert("content-type", media);
    Ok(response)
}

struct Site {
    api: TestApi,
    scope: Scope,
    /// Signs what extension servers show, and what they are shown.
    server: Pki,
    proxy: Pki,
}

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

/// An API server whose `sea.example.com/v1` is answered by another.
async fn site() -> Result<Site> {
    let (proxy, server) = (Pki::new()?, Pki::new()?);
    let shown = proxy.identity("front-proxy-client", &[])?;
    let ca = proxy.ca_cert.clone();
    let api = TestApi::start_with(|c| {
        c.front_proxy = Some(apiserver::FrontProxy {
            cert: shown.cert,
            key: shown.key,
            ca,
        });
    })
    .await?;
    let scope = Scope::new();
    let port = extension(&server, &proxy.ca_cert, &scope).await?;
    let service = json!({"metadata": {"name": "sea"},
        "spec": {"ports": [{"name": "https", "port": 443, "targetPort": port}]}});
    let slice = json!({
        "metadata": {"name": "sea-1", "labels": {"kubernetes.io/service-name": "sea"}},
        "addressType": "IPv4", "ports": [{"name": "https", "port": port}],
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}],
    });
    for (path, object) in [(super::SERVICES, &service), (SLICES, &slice)] {
        let made = api.call("POST", path, Some(object)).await?;
        anyhow::ensure!(made.code == 201, "{}", made.text);
    }
    Ok(Site {
        api,
        scope,
        server,
        proxy,
    })
}

fn api_service(ca: &str) -> Value {
    use base64::Engine as _;
    let ca = base64::engine::general_purpose::STANDARD.encode(ca);
    json!({"kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1",
        "metadata": {"name": "v1.sea.example.com"},
        "spec": {"group": "sea.example.com", "version": "v1", "groupPriorityMinimum": 1000,
            "versionPriority": 15, "caBundle": ca,
            "service": {"namespace": "default", "name": "sea"}}})
}

/// Waits for the reason of `Available`.
async fn available(api: &TestApi, reason: &str) -> Result<Value> {
    let path = format!("{API_SERVICES}?watch=1&fieldSelector=metadata.name%3Dv1.sea.example.com");
    let mut watch = api.watch(&path, &[]).await?;
    loop {
        let event = watch.next().await?.context("the watch has ended")?;
        let condition = event["object"]["status"]["conditions"][0].clone();
        if condition["reason"] == reason {
            return Ok(condition);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extension_server_answers_its_group() -> Result<()> {
    let Site {
        api, scope, server, ..
    } = site().await?;
    let made = api
        .call("POST", API_SERVICES, Some(&api_service(&server.ca_cert)))
        .await?;
    assert_eq!(made.code, 201, "{}", made.text);
    let condition = available(&api, "Passed").await?;
    assert_eq!(
        (&condition["status"], &condition["message"]),
        (&json!("True"), &json!("all checks passed"))
    );
    // In the name of who asks, whatever he claims; the query is passed on.
    let asked = api
        .send_as(
            ("anna", &["system:masters"]),
            "GET",
            &format!("{FISH}?limit=5"),
            &[("x-remote-user", "root"), ("authorization", "Bearer x")],
            Vec::new(),
        )
        .await?;
    let seen = &asked.json["items"][0]["metadata"]["annotations"];
    assert_eq!(
        *seen,
        json!({"user": "anna", "groups": "system:masters,system:authenticated",
            "asked": format!("{FISH}?limit=5")}),
        "{}",
        asked.text
    );
    let sent = json!({"kind": "Fish", "metadata": {"name": "pike"}});
    let made = api.call("POST", FISH, Some(&sent)).await?;
    assert_eq!((made.code, made.json), (201, sent));
    // Roles are asked first.
    let refused = api
        .send_as(("eve", &[]), "GET", FISH, &[], Vec::new())
        .await?;
    assert_eq!(refused.code, 403, "{}", refused.text);
    let k = Kubectl::of(&api)?;
    let listed = k.run(true, "get apiservices", "").await?;
    let line = |name: &str| -> Vec<String> {
        let mut lines = listed.lines();
        let line = lines.find(|l| l.starts_with(&format!("{name} ")));
        let words = line.unwrap_or_default().split_whitespace();
        words.take(3).map(str::to_owned).collect()
    };
    assert_eq!(
        line("v1.sea.example.com"),
        ["v1.sea.example.com", "default/sea", "True"],
        "{listed}"
    );
    assert_eq!(line("v1.apps"), ["v1.apps", "Local", "True"], "{listed}");
    assert_eq!(line("v1."), ["v1.", "Local", "True"], "{listed}");
    assert_eq!(
        line("v1beta1.metrics.k8s.io"),
        ["v1beta1.metrics.k8s.io", "Local", "True"],
        "{listed}"
    );
    assert!(k.run(true, "get fi", "").await?.contains("carp"));
    assert!(
        k.run(true, "api-resources --api-group=sea.example.com", "")
            .await?
            .contains("sea.example.com/v1")
    );
    let index = api.call("GET", "/openapi/v3", None).await?.json;
    let url = &index["paths"]["apis/sea.example.com/v1"]["serverRelativeURL"];
    assert_eq!(url, "/openapi/v3/apis/sea.example.com/v1?hash=ABC");
    let document = api
        .call("GET", "/openapi/v3/apis/sea.example.com/v1", None)
        .await?;
    assert_eq!(document.json, json!({"openapi": "3.0.0"}));
    // Of v2 there is one document, with what clients need of it.
    let explained = k
        .run(true, "explain fish --output plaintext-openapiv2", "")
        .await?;
    for part in ["Fish lives in the sea.", "fins", "How many fins it has."] {
        assert!(explained.contains(part), "{part}: {explained}");
    }
    let explained = k
        .run(
            true,
            "explain pod.metadata --output plaintext-openapiv2",
            "",
        )
        .await?;
    assert!(explained.contains("generateName"), "{explained}");
    let document = api.call("GET", "/openapi/v2", None).await?.json;
    assert!(document["paths"]["/apis/sea.example.com/v1/fish"]["get"].is_object());
    assert!(document["paths"]["/apis/land.example.com/v1/mice"].is_null());
    let meta = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
    let definitions = &document["definitions"];
    assert_eq!(
        definitions["com.example.sea.v1.Fish"]["properties"]["metadata"]["$ref"],
        format!("#/definitions/{meta}_v2")
    );
    assert_eq!(
        definitions[format!("{meta}_v2")]["description"],
        "As the sea knows it."
    );
    assert!(definitions[meta]["properties"]["generateName"].is_object());
    scope.close().await;
    api.close().await
}

#[tokio::test]
async fn a_server_that_is_away_is_told_of_and_holds_nobody_up() -> Result<()> {
    let Site {
        api, scope, server, ..
    } = site().await?;
    // A certificate of nobody that is trusted.
    let mut wrong = api_service(&Pki::new()?.ca_cert);
    let made = api.call("POST", API_SERVICES, Some(&wrong)).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    let condition = available(&api, "FailedDiscoveryCheck").await?;
    let message = condition["message"].as_str().unwrap_or_default();
    assert!(
        condition["status"] == "False"
            && message.starts_with("failing or missing response from https://127.0.0.1:"),
        "{condition}"
    );
    assert_eq!(api.call("GET", FISH, None).await?.code, 503);
    // Aggregated discovery says that it does not know, and all else is there.
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let groups = api
        .send("GET", "/apis", &[("accept", aggregated)], Vec::new())
        .await?
        .json;
    let group = |name: &str| {
        let mut all = groups["items"].as_array().into_iter().flatten();
        all.find(|g| g["metadata"]["name"] == name)
            .cloned()
            .unwrap_or_default()
    };
    assert_eq!(
        group("sea.example.com")["versions"][0]["freshness"],
        "Stale"
    );
    assert_eq!(group("apps")["versions"][0]["freshness"], "Current");
    let fish = async || -> Result<Value> {
        let document = api.call("GET", "/openapi/v2", None).await?;
        anyhow::ensure!(document.code == 200, "{}", document.text);
        anyhow::ensure!(document.json["paths"]["/api/v1/pods"].is_object());
        Ok(document.json["definitions"]["com.example.sea.v1.Fish"]["description"].clone())
    };
    assert_eq!(fish().await?, Value::Null);
    let put = async |object: &mut Value| -> Result<()> {
        let path = format!("{API_SERVICES}/v1.sea.example.com");
        let now = api.call("GET", &path, None).await?.json;
        object["metadata"] = now["metadata"].clone();
        let changed = api.call("PUT", &path, Some(object)).await?;
        anyhow::ensure!(changed.code == 200, "{}", changed.text);
        Ok(())
    };
    put(&mut api_service(&server.ca_cert)).await?;
    available(&api, "Passed").await?;
    assert_eq!(api.call("GET", FISH, None).await?.code, 200);
    let gone = api.call("DELETE", &format!("{SLICES}/sea-1"), None).await?;
    assert_eq!(gone.code, 200, "{}", gone.text);
    available(&api, "EndpointsNotFound").await?;
    assert_eq!(api.call("GET", FISH, None).await?.code, 503);
    // What it last said is known while it is away.
    assert_eq!(fish().await?, "Fish lives in the sea.");
    wrong["spec"]["service"]["port"] = 8443.into();
    put(&mut wrong).await?;
    available(&api, "ServicePortError").await?;
    let gone = api
        .call(
            "DELETE",
            &format!("{API_SERVICES}/v1.sea.example.com"),
            None,
        )
        .await?;
    assert_eq!(gone.code, 200, "{}", gone.text);
    scope.close().await;
    api.close().await
}

#[tokio::test]
async fn api_services_are_checked_and_extension_servers_told_whom_to_believe() -> Result<()> {
    let Site {
        api, scope, server, ..
    } = site().await?;
    let mut bad = api_service(&server.ca_cert);
    bad["metadata"]["name"] = "other".into();
    bad["spec"]["insecureSkipTLSVerify"] = true.into();
    bad["spec"]["versionPriority"] = 0.into();
    let refused = api.call("POST", API_SERVICES, Some(&bad)).await?;
    assert_eq!(refused.code, 422, "{}", refused.text);
    for field in [
        "metadata.name",
        "spec.versionPriority",
        "spec.insecureSkipTLSVerify",
    ] {
        assert!(refused.text.contains(field), "{field}: {}", refused.text);
    }
    let path = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
    let told = api.call("GET", path, None).await?.json;
    assert_eq!(
        told["data"]["requestheader-allowed-names"],
        "[\"front-proxy-client\"]"
    );
    assert_eq!(
        told["data"]["requestheader-username-headers"],
        "[\"X-Remote-User\"]"
    );
    assert!(
        told["data"]["requestheader-client-ca-file"]
            .as_str()
            .is_some_and(|ca| ca.contains("BEGIN CERTIFICATE"))
    );
    scope.close().await;
    api.close().await
}

/// In process only: it hands the server certificates, which the binary makes itself.
#[tokio::test]
async fn extension_servers_are_shown_the_certificate_that_replaces_another() -> Result<()> {
    let Site {
        api,
        scope,
        server,
        proxy,
    } = site().await?;
    // It is believed by nobody, and so is what this server asks.
    let stranger = Pki::new()?.identity("front-proxy-client", &[])?;
    api.server()?
        .call_extensions_with(&stranger.cert, &stranger.key)?;
    let wanted = api_service(&server.ca_cert);
    let made = api.call("POST", API_SERVICES, Some(&wanted)).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    available(&api, "FailedDiscoveryCheck").await?;
    let renewed = proxy.identity("front-proxy-client", &[])?;
    let mixed = (api.server()?).call_extensions_with(&renewed.cert, &stranger.key);
    assert!(mixed.is_err(), "a key of another certificate was taken");
    api.server()?
        .call_extensions_with(&renewed.cert, &renewed.key)?;
    available(&api, "Passed").await?;
    assert_eq!(api.call("GET", FISH, None).await?.code, 200);
    scope.close().await;
    api.close().await
}

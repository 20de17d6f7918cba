//! Webhooks over TLS, as URL and as Service: admission and conversion. Behaviour from the
//! documentation "Dynamic Admission Control" and `test/integration/apiserver/admissionwebhook`
//! of upstream.

use anyhow::Result;
use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use lifecycle::Scope;
use parking_lot::Mutex;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use std::sync::Arc;
use testkit::{Pki, TestApi};

pub(super) const BASE: &str = "/apis/admissionregistration.k8s.io/v1";

/// A webhook of the test's own.
pub(super) struct Server {
    pub(super) port: u16,
    pub(super) ca: String,
    /// Requests as they came.
    pub(super) seen: Arc<Mutex<Vec<Value>>>,
    scope: Scope,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.scope.token().cancel();
    }
}

/// Starts a server that answers each review with what a function makes of it.
pub(super) async fn serve(
    answer: impl Fn(&str, &Value) -> Value + Send + Sync + 'static,
) -> Result<Server> {
    let pki = Pki::new()?;
    let identity = pki.serving_for(&["127.0.0.1", "hook.default.svc"])?;
    let chain =
        CertificateDer::pem_slice_iter(identity.cert.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let (seen, scope, answer) = (
        Arc::<Mutex<Vec<Value>>>::default(),
        Scope::new(),
        Arc::new(answer),
    );
    let (log, connections) = (seen.clone(), scope.clone());
    let accepting = async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer, log) = (acceptor.clone(), answer.clone(), log.clone());
            let service =
                hyper::service::service_fn(move |r: http::Request<hyper::body::Incoming>| {
                    let (answer, log) = (answer.clone(), log.clone());
                    async move {
                        let path = r.uri().path().to_owned();
                        let body = r.into_body().collect().await?.to_bytes();
                        let review: Value = serde_json::from_slice(&body).unwrap_or_default();
                        log.lock().push(review["request"].clone());
                        let text = answer(&path, &review["request"]).to_string();
                        anyhow::Ok(http::Response::new(Full::new(Bytes::from(text))))
                    }
                });
            connections.spawn_cancellable(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                }
            });
        }
    };
    scope.spawn_cancellable(accepting);
    Ok(Server {
        port,
        ca: base64::engine::general_purpose::STANDARD.encode(pki.ca_cert),
        seen,
        scope,
    })
}

fn reviewed(request: &Value, mut response: Value) -> Value {
    response["uid"] = request["uid"].clone();
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
}

fn patched(request: &Value, patch: Value) -> Value {
    let patch = base64::engine::general_purpose::STANDARD.encode(patch.to_string());
    reviewed(
        request,
        json!({"allowed": true, "patchType": "JSONPatch", "patch": patch}),
    )
}

fn hook(name: &str, server: &Server, path: &str) -> Value {
    json!({
        "name": name, "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 5,
        "clientConfig": {"url": format!("https://127.0.0.1:{}{path}", server.port), "caBundle": server.ca},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["configmaps"]}],
    })
}

async fn configure(api: &TestApi, plural: &str, hooks: Value) -> Result<()> {
    let object = json!({"metadata": {"name": "hooks"}, "webhooks": hooks});
    let made = api
        .call("POST", &format!("{BASE}/{plural}"), Some(&object))
        .await?;
    anyhow::ensure!(made.code == 201, "{}", made.text);
    Ok(())
}

#[tokio::test]
async fn a_validating_webhook_refuses_and_warns() -> Result<()> {
    let api = TestApi::start().await?;
    let server = serve(|_, request| {
        let allowed = request["object"]["data"]["k"] != "bad";
        let status = json!({"message": "bad value", "code": 409, "reason": "Conflict"});
        reviewed(
            request,
            json!({"allowed": allowed, "status": status, "warnings": ["mind the k"]}),
        )
    })
    .await?;
    let mut only = hook("v.example.com", &server, "/v");
    only["matchConditions"] = json!([{"name": "c", "expression": "request.operation != 'DELETE'"}]);
    only["objectSelector"] = json!({"matchLabels": {"l": "a"}});
    configure(&api, "validatingwebhookconfigurations", json!([only])).await?;
    let made = api
        .call(
            "POST",
            super::CONFIG_MAPS,
            Some(&super::config_map("a", "a")),
        )
        .await?;
    assert_eq!(made.code, 201, "{}", made.text);
    assert_eq!(made.headers["warning"], "299 - \"mind the k\"");
    let mut bad = super::config_map("b", "a");
    bad["data"]["k"] = "bad".into();
    let refused = api.call("POST", super::CONFIG_MAPS, Some(&bad)).await?;
    assert_eq!(
        (refused.code, &refused.json["reason"]),
        (409, &json!("Conflict")),
        "{}",
        refused.text
    );
    assert_eq!(
        refused.json["message"],
        "admission webhook \"v.example.com\" denied the request: bad value"
    );
    assert_eq!(refused.headers["warning"], "299 - \"mind the k\"");
    bad["metadata"]["labels"]["l"] = "other".into();
    assert_eq!(
        api.call("POST", super::CONFIG_MAPS, Some(&bad)).await?.code,
        201
    );
    let gone = api
        .call("DELETE", &format!("{}/a", super::CONFIG_MAPS), None)
        .await?;
    assert_eq!(gone.code, 200, "{}", gone.text);
    let seen = server.seen.lock().clone();
    assert_eq!(seen.len(), 2);
    assert_eq!(
        seen[0]["resource"],
        json!({"group": "", "version": "v1", "resource": "configmaps"})
    );
    assert_eq!(
        (&seen[0]["operation"], &seen[0]["namespace"]),
        (&json!("CREATE"), &json!("default"))
    );
    assert_eq!(seen[0]["userInfo"]["username"], "kubernetes-admin");
    api.close().await
}

#[tokio::test]
async fn mutating_webhooks_change_objects_in_order_and_again() -> Result<()> {
    let api = TestApi::start().await?;
    let server = serve(|path, request| {
        let data = &request["object"]["data"];
        let field = |k: &str| json!([{"op": "add", "path": format!("/data/{k}"), "value": "x"}]);
        match path {
            // The first wants to know of the second's.
            "/first" if data["second"].is_null() => patched(request, field("first")),
            "/first" => patched(request, field("again")),
            _ => patched(request, field("second")),
        }
    })
    .await?;
    let mut first = hook("a.example.com", &server, "/first");
    first["reinvocationPolicy"] = "IfNeeded".into();
    configure(
        &api,
        "mutatingwebhookconfigurations",
        json!([first, hook("b.example.com", &server, "/second")]),
    )
    .await?;
    let made = api
        .call(
            "POST",
            super::CONFIG_MAPS,
            Some(&super::config_map("a", "a")),
        )
        .await?;
    assert_eq!(made.code, 201, "{}", made.text);
    assert_eq!(
        made.json["data"],
        json!({"k": "v", "first": "x", "second": "x", "again": "x"})
    );
    // Whoever sent the request owns what it sent and no more.
    let fields = made.json["metadata"]["managedFields"].to_string();
    assert!(
        fields.contains("f:k") && !fields.contains("f:first"),
        "{fields}"
    );
    api.close().await
}

#[tokio::test]
async fn what_fails_counts_as_the_failure_policy_says() -> Result<()> {
    let api = TestApi::start().await?;
    api.expects("a webhook that may fail has")?;
    let server = serve(|_, _| json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {"uid": "x"}})).await?;
    let mut passed_over = hook("i.example.com", &server, "/");
    passed_over["failurePolicy"] = "Ignore".into();
    configure(
        &api,
        "validatingwebhookconfigurations",
        json!([passed_over]),
    )
    .await?;
    let post = async |name: &str, query: &str| {
        let path = format!("{}{query}", super::CONFIG_MAPS);
        api.call("POST", &path, Some(&super::config_map(name, "a")))
            .await
    };
    assert_eq!(post("a", "").await?.code, 201);
    // A certificate that is not trusted, and a server that is not there.
    let other = serve(|_, r| reviewed(r, json!({"allowed": true}))).await?;
    let mut distrusted = hook("t.example.com", &server, "/");
    distrusted["clientConfig"]["caBundle"] = other.ca.clone().into();
    distrusted["sideEffects"] = "None".into();
    configure(&api, "mutatingwebhookconfigurations", json!([distrusted])).await?;
    let refused = post("b", "").await?;
    assert_eq!(
        (refused.code, &refused.json["reason"]),
        (500, &json!("InternalError")),
        "{}",
        refused.text
    );
    let message = refused.json["message"].as_str().unwrap_or_default();
    assert!(
        message.starts_with("Internal error occurred: failed calling webhook \"t.example.com\": failed to call webhook: Post \"https://127.0.0.1:"),
        "{message}"
    );
    // Configurations can be taken back whatever they say.
    let path = format!("{BASE}/mutatingwebhookconfigurations/hooks");
    assert_eq!(api.call("DELETE", &path, None).await?.code, 200);
    assert_eq!(post("b", "").await?.code, 201);
    assert_eq!(post("c", "?dryRun=All").await?.code, 201);
    api.close().await
}

#[tokio::test]
async fn a_service_is_called_where_its_endpoint_is() -> Result<()> {
    let api = TestApi::start().await?;
    let server = serve(|path, r| reviewed(r, json!({"allowed": path == "/check"}))).await?;
    let service = json!({"metadata": {"name": "hook"}, "spec": {"ports": [{"name": "https", "port": 443, "targetPort": server.port}]}});
    assert_eq!(
        api.call("POST", super::SERVICES, Some(&service))
            .await?
            .code,
        201
    );
    let slice = json!({
        "metadata": {"name": "hook-1", "labels": {"kubernetes.io/service-name": "hook"}},
        "addressType": "IPv4", "ports": [{"name": "https", "port": server.port}],
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}],
    });
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let made = api.call("POST", slices, Some(&slice)).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    let mut hook = hook("s.example.com", &server, "");
    hook["clientConfig"] = json!({"caBundle": server.ca, "service": {"namespace": "default", "name": "hook", "path": "check"}});
    configure(&api, "validatingwebhookconfigurations", json!([hook])).await?;
    let made = api
        .call(
            "POST",
            super::CONFIG_MAPS,
            Some(&super::config_map("a", "a")),
        )
        .await?;
    assert_eq!(made.code, 201, "{}", made.text);
    assert_eq!(server.seen.lock().len(), 1);
    api.close().await
}

pub(super) const TABS: &str = "/apis/stable.example.com/v1/namespaces/default/crontabs";
const TABS2: &str = "/apis/stable.example.com/v2/namespaces/default/crontabs";
const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// `spec.hostPort` of v1 is `spec.host` and `spec.port` of v2: the example of the
/// documentation, "Versions in CustomResourceDefinitions".
pub(super) fn converted(request: &Value) -> Value {
    let wanted = request["desiredAPIVersion"].as_str().unwrap_or_default();
    let turned = |v: &Value| {
        let mut v = v.clone();
        v["apiVersion"] = wanted.into();
        let spec = &mut v["spec"];
        if wanted.ends_with("v2") {
            let both = spec["hostPort"].as_str().unwrap_or_default().to_owned();
            let (host, port) = both.split_once(':').unwrap_or((&both, ""));
            *spec = json!({"host": host, "port": port});
        } else {
            let text = |k: &str| spec[k].as_str().unwrap_or_default().to_owned();
            *spec = json!({"hostPort": format!("{}:{}", text("host"), text("port"))});
        }
        v
    };
    let objects: Vec<Value> = request["objects"]
        .as_array()
        .into_iter()
        .flatten()
        .map(turned)
        .collect();
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": {
        "uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": objects}})
}

pub(super) fn versions(server: &Server, storage: &str) -> Value {
    let version = |name: &str, properties: Value| {
        json!({"name": name, "served": true, "storage": name == storage, "schema": {"openAPIV3Schema": {
            "type": "object", "properties": {"spec": {"type": "object", "properties": properties}}}}})
    };
    let text = json!({"type": "string"});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "crontabs.stable.example.com"},
        "spec": {
            "group": "stable.example.com", "scope": "Namespaced",
            "names": {"plural": "crontabs", "singular": "crontab", "kind": "CronTab"},
            "versions": [version("v1", json!({"hostPort": text})), version("v2", json!({"host": text, "port": text}))],
            "conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
                "clientConfig": {"url": format!("https://127.0.0.1:{}/convert", server.port), "caBundle": server.ca}}},
        },
    })
}

/// Serves crontabs in two versions, of which the first is stored.
pub(super) async fn define(api: &TestApi, server: &Server) -> Result<()> {
    let made = api
        .call("POST", CRDS, Some(&versions(server, "v1")))
        .await?;
    anyhow::ensure!(made.code == 201, "{}", made.text);
    let established =
        format!("{CRDS}?watch=1&fieldSelector=metadata.name%3Dcrontabs.stable.example.com");
    let mut watch = api.watch(&established, &[]).await?;
    while !watch
        .next()
        .await?
        .is_none_or(|e| e.to_string().contains("\"Established\""))
    {}
    Ok(())
}

pub(super) fn tab(version: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("stable.example.com/{version}"), "kind": "CronTab",
        "metadata": {"name": name}, "spec": spec})
}

// test/integration/apiserver/admissionwebhook/match_conditions_test.go and
// `generic.VersionedAttributes` of k8s.io/apiserver.
#[tokio::test]
async fn admission_is_asked_in_the_version_of_its_rule() -> Result<()> {
    let api = TestApi::start().await?;
    let conversion = serve(|_, request| converted(request)).await?;
    define(&api, &conversion).await?;
    let server = serve(|path, request| {
        if path == "/mutate" {
            let set = json!([{"op": "replace", "path": "/spec/port", "value": "99"}]);
            return patched(request, set);
        }
        let allowed = request["object"]["spec"]["port"] != "13";
        reviewed(request, json!({"allowed": allowed}))
    })
    .await?;
    let hook = |name: &str, path: &str, more: Value| {
        let mut hook = hook(name, &server, path);
        hook["rules"] = json!([{"apiGroups": ["stable.example.com"], "apiVersions": ["v2"],
            "operations": ["*"], "resources": ["crontabs"]}]);
        hook["matchConditions"] =
            json!([{"name": "host", "expression": "object == null || object.spec.host != 'free'"}]);
        for (key, value) in more.as_object().into_iter().flatten() {
            hook[key] = value.clone();
        }
        hook
    };
    let mutating = hook(
        "port.example.com",
        "/mutate",
        json!({"objectSelector": {"matchLabels": {"port": "given"}}}),
    );
    configure(&api, "mutatingwebhookconfigurations", json!([mutating])).await?;
    let exact = hook(
        "exact.example.com",
        "/exact",
        json!({"matchPolicy": "Exact"}),
    );
    let validating = hook("rule.example.com", "/validate", json!({}));
    configure(
        &api,
        "validatingwebhookconfigurations",
        json!([exact, validating]),
    )
    .await?;
    let mut one = tab("v1", "one", json!({"hostPort": "a:1"}));
    one["metadata"]["labels"] = json!({"port": "given"});
    let made = api.call("POST", TABS, Some(&one)).await?;
    // What it changed in its version is changed in the version that was written.
    assert_eq!(
        (made.code, &made.json["spec"]),
        (201, &json!({"hostPort": "a:99"})),
        "{}",
        made.text
    );
    assert_eq!(made.json["apiVersion"], "stable.example.com/v1");
    {
        let seen = server.seen.lock();
        // Not the one that wants its own version alone.
        assert_eq!(seen.len(), 2, "{seen:?}");
        for (request, port) in seen.iter().zip(["1", "99"]) {
            assert_eq!(request["object"]["apiVersion"], "stable.example.com/v2");
            assert_eq!(
                request["object"]["spec"],
                json!({"host": "a", "port": port})
            );
            assert_eq!(request["kind"]["version"], "v2");
            assert_eq!(request["requestKind"]["version"], "v1");
            assert_eq!(request["resource"]["version"], "v2");
            assert_eq!(request["requestResource"]["version"], "v1");
        }
    }
    let mut other = tab("v1", "two", json!({"hostPort": "b:13"}));
    let refused = api.call("POST", TABS, Some(&other)).await?;
    assert_eq!(refused.code, 400, "{}", refused.text);
    // Conditions are held against the converted object.
    other["spec"]["hostPort"] = "free:13".into();
    let made = api.call("POST", TABS, Some(&other)).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    let mut changed = made.json.clone();
    changed["spec"]["hostPort"] = "c:3".into();
    let put = api
        .call("PUT", &format!("{TABS}/two"), Some(&changed))
        .await?;
    assert_eq!(put.code, 200, "{}", put.text);
    let last = server.seen.lock().last().cloned().unwrap_or_default();
    assert_eq!(last["oldObject"]["spec"]["host"], "free", "{last}");
    assert_eq!(last["object"]["spec"]["host"], "c", "{last}");
    let gone = api.call("DELETE", &format!("{TABS}/two"), None).await?;
    assert_eq!(gone.code, 200, "{}", gone.text);
    let last = server.seen.lock().last().cloned().unwrap_or_default();
    assert_eq!(
        (&last["operation"], &last["oldObject"]["spec"]),
        (&json!("DELETE"), &json!({"host": "c", "port": "3"}))
    );
    // Who can't be told in his version can't say yes.
    drop(conversion);
    let refused = api
        .call(
            "POST",
            TABS,
            Some(&tab("v1", "three", json!({"hostPort": "d:4"}))),
        )
        .await?;
    assert!(
        refused.code == 500 && refused.text.contains("conversion webhook"),
        "{}",
        refused.text
    );
    api.close().await
}

#[tokio::test]
async fn objects_are_converted_by_a_webhook() -> Result<()> {
    let api = TestApi::start().await?;
    let server = serve(|_, request| converted(request)).await?;
    define(&api, &server).await?;
    let one = tab("v1", "one", json!({"hostPort": "a:1"}));
    let made = api.call("POST", TABS, Some(&one)).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    // What is made in another version is stored in this one, and shown as it was sent.
    let mut events = api
        .watch(
            &format!(
                "{TABS}?watch=1&resourceVersion={}",
                made.json["metadata"]["resourceVersion"]
                    .as_str()
                    .unwrap_or_default()
            ),
            &[],
        )
        .await?;
    let mut events2 = api.watch(&format!("{TABS2}?watch=1"), &[]).await?;
    let two = tab("v2", "two", json!({"host": "b", "port": "2"}));
    let made = api.call("POST", TABS2, Some(&two)).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    assert_eq!(made.json["spec"], json!({"host": "b", "port": "2"}));
    let event = events.next().await?.unwrap_or_default();
    assert_eq!(
        event["object"]["spec"],
        json!({"hostPort": "b:2"}),
        "{event}"
    );
    for wanted in [
        json!({"host": "a", "port": "1"}),
        json!({"host": "b", "port": "2"}),
    ] {
        let event = events2.next().await?.unwrap_or_default();
        assert_eq!(event["object"]["spec"], wanted, "{event}");
    }
    let list = api.call("GET", TABS2, None).await?.json;
    assert_eq!(list["items"][0]["spec"], json!({"host": "a", "port": "1"}));
    let got = api.call("GET", &format!("{TABS2}/one"), None).await?.json;
    assert_eq!(
        (&got["apiVersion"], &got["spec"]["host"]),
        (&json!("stable.example.com/v2"), &json!("a"))
    );
    let patched = api
        .send(
            "PATCH",
            &format!("{TABS2}/one"),
            &[("content-type", "application/merge-patch+json")],
            json!({"spec": {"port": "9"}}).to_string().into_bytes(),
        )
        .await?;
    assert_eq!(
        patched.json["spec"],
        json!({"host": "a", "port": "9"}),
        "{}",
        patched.text
    );
    let got = api.call("GET", &format!("{TABS}/one"), None).await?.json;
    assert_eq!(got["spec"], json!({"hostPort": "a:9"}));
    // Another storage version: what is there stays readable in both.
    let mut definition = api
        .call("GET", &format!("{CRDS}/crontabs.stable.example.com"), None)
        .await?
        .json;
    definition["spec"] = versions(&server, "v2")["spec"].clone();
    let changed = api
        .call(
            "PUT",
            &format!("{CRDS}/crontabs.stable.example.com"),
            Some(&definition),
        )
        .await?;
    assert_eq!(changed.code, 200, "{}", changed.text);
    assert_eq!(
        changed.json["status"]["storedVersions"],
        json!(["v1", "v2"])
    );
    let list = api.call("GET", TABS, None).await?.json;
    assert_eq!(list["items"][0]["spec"], json!({"hostPort": "a:9"}));
    // Without its webhook nothing can be shown in another version, and that is said.
    drop(server);
    let three = tab("v1", "three", json!({"hostPort": "c:3"}));
    let refused = api.call("POST", TABS, Some(&three)).await?;
    assert_eq!(refused.code, 500, "{}", refused.text);
    assert!(
        refused
            .text
            .contains("conversion webhook for stable.example.com/v1, Kind=CronTab failed: Post"),
        "{}",
        refused.text
    );
    assert_eq!(
        api.call("GET", &format!("{TABS}/one"), None).await?.code,
        200
    );
    api.close().await
}

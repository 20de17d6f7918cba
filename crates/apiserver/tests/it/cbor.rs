//! CBOR, asked for by `Accept` and sent by `Content-Type`: what is told in it is what is told in
//! JSON. Behaviour from KEP-4222 and from upstream's `test/integration/apiserver/cbor`
//! (`TestCBORServingEnablement`, `TestCBORStorageEnablement`), `endpoints/handlers/{watch,patch,
//! response}.go` and `negotiation` of its apiserver, `runtime/serializer/cbor` of its apimachinery.

use super::crds::{crontabs, define};
use super::watch::at_rest;
use super::{CONFIG_MAPS, DEPLOYMENTS, config_map, deployment};
use anyhow::{Context as _, Result};
use apimachinery::GroupVersion;
use apimachinery::cbor::{self, Error, MAGIC};
use apimachinery::schema::Schema;
use serde_json::{Value, json};
use testkit::{Answer, TestApi, Watch};

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const CBOR: &str = "application/cbor";
const SEQUENCE: &str = "application/cbor-seq";
const APPLY: &str = "application/apply-patch+cbor";
const TABLE: &str = "application/cbor;as=Table;g=meta.k8s.io;v=v1";
const PARTIAL: &str = "application/cbor;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// A body as a client of Go's types sends it, or one of unstructured objects.
fn body(value: &Value, typed: bool) -> Vec<u8> {
    let of = |key: &str| value[key].as_str().unwrap_or_default();
    let ty = GroupVersion::parse(of("apiVersion"))
        .and_then(|v| Schema::builtin().kind(&v.kind(of("kind"))))
        .filter(|_| typed);
    let mut out = Vec::new();
    cbor::enclose(&mut out, |out| {
        cbor::write(ty.map(|ty| (Schema::builtin(), ty)), value, out);
    });
    out
}

fn opened(answer: &Answer) -> Result<Value> {
    assert_eq!(answer.headers["content-type"], CBOR, "{}", answer.text);
    assert_eq!(answer.body[..3], MAGIC);
    Ok(cbor::read(&answer.body)?)
}

async fn send(api: &TestApi, method: &str, path: &str, sent: Option<&Value>) -> Result<Answer> {
    let media = if method == "PATCH" { APPLY } else { CBOR };
    let headers = [("accept", CBOR), ("content-type", media)];
    let sent = sent.map(|v| body(v, true)).unwrap_or_default();
    api.send(method, path, &headers, sent).await
}

/// What JSON tells now.
async fn shown(api: &TestApi, path: &str) -> Result<Value> {
    Ok(api.call("GET", path, None).await?.json)
}

/// Upstream: `TestCBORServingEnablement`, and the verbs of `TestNondeterministicResponseEncoding`.
#[tokio::test]
async fn every_verb_speaks_it() -> Result<()> {
    let api = TestApi::start().await?;
    let path = format!("{DEPLOYMENTS}/d");
    let made = send(&api, "POST", DEPLOYMENTS, Some(&deployment("d"))).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    let mut object = opened(&made)?;
    assert_eq!(object, shown(&api, &path).await?);
    object["spec"]["replicas"] = 5.into();
    let put = send(&api, "PUT", &path, Some(&object)).await?;
    assert_eq!(
        (put.code, &opened(&put)?["spec"]["replicas"]),
        (200, &json!(5))
    );
    let got = send(&api, "GET", &path, None).await?;
    assert_eq!(opened(&got)?, shown(&api, &path).await?);
    let list = opened(&send(&api, "GET", DEPLOYMENTS, None).await?)?;
    assert_eq!(list["kind"], "DeploymentList");
    assert_eq!(list["items"][0]["spec"], shown(&api, &path).await?["spec"]);
    let scale = format!("{path}/scale");
    let got = opened(&send(&api, "GET", &scale, None).await?)?;
    assert_eq!(got, shown(&api, &scale).await?);
    let options =
        json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": "other"}});
    let refused = send(&api, "DELETE", &path, Some(&options)).await?;
    assert_eq!(
        (refused.code, &opened(&refused)?["reason"]),
        (409, &json!("Conflict"))
    );
    let gone = send(&api, "DELETE", &path, None).await?;
    assert_eq!(
        (gone.code, &opened(&gone)?["status"]),
        (200, &json!("Success"))
    );
    let review = json!({"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1"});
    let reviews = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let review = send(&api, "POST", reviews, Some(&review)).await?;
    assert!(opened(&review)?["status"]["userInfo"]["username"].is_string());
    api.close().await
}

/// Upstream: `ByteSliceLaterFormat`, `ByteStringExpectedFormat` of `cbor/internal/modes`.
#[tokio::test]
async fn bytes_are_bytes() -> Result<()> {
    let api = TestApi::start().await?;
    for (name, typed) in [("typed", true), ("unstructured", false)] {
        let secret = json!({
            "kind": "Secret", "apiVersion": "v1", "metadata": {"name": name}, "data": {"k": "AP/+"},
        });
        let headers = [("accept", CBOR), ("content-type", CBOR)];
        let made = api
            .send("POST", SECRETS, &headers, body(&secret, typed))
            .await?;
        assert_eq!(made.code, 201, "{}", made.text);
        assert_eq!(opened(&made)?["data"], secret["data"]);
        let path = format!("{SECRETS}/{name}");
        assert_eq!(shown(&api, &path).await?["data"], secret["data"]);
        // Under tag 22, of the list's items as well.
        let bytes = [0x41, b'k', 0xd6, 0x43, 0, 0xff, 0xfe];
        for path in [&*path, SECRETS] {
            let got = send(&api, "GET", path, None).await?;
            assert!(got.body.windows(bytes.len()).any(|w| w == bytes), "{path}");
        }
    }
    api.close().await
}

/// Upstream: KEP-4222 ("application/apply-patch+cbor"), `handlers/patch.go`.
#[tokio::test]
async fn it_is_applied() -> Result<()> {
    let api = TestApi::start().await?;
    let path = format!("{CONFIG_MAPS}/a");
    let mut config = config_map("a", "x");
    config["kind"] = "ConfigMap".into();
    config["apiVersion"] = "v1".into();
    let unnamed = send(&api, "PATCH", &path, Some(&config)).await?;
    assert_eq!(
        (unnamed.code, &opened(&unnamed)?["reason"]),
        (422, &json!("Invalid"))
    );
    let applied = format!("{path}?fieldManager=one");
    let made = send(&api, "PATCH", &applied, Some(&config)).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    let manager = &opened(&made)?["metadata"]["managedFields"][0];
    assert_eq!(
        (&manager["manager"], &manager["operation"]),
        (&json!("one"), &json!("Apply"))
    );
    assert_eq!(
        manager,
        &shown(&api, &path).await?["metadata"]["managedFields"][0]
    );
    config["data"]["k"] = "other".into();
    let two = format!("{path}?fieldManager=two");
    let conflict = send(&api, "PATCH", &two, Some(&config)).await?;
    assert_eq!(
        (conflict.code, &opened(&conflict)?["reason"]),
        (409, &json!("Conflict"))
    );
    let media = [("content-type", "application/merge-patch+cbor")];
    let other = api
        .send("PATCH", &path, &media, body(&config, true))
        .await?;
    assert_eq!(other.code, 415);
    assert!(other.text.contains(APPLY), "{}", other.text);
    api.close().await
}

/// Upstream: `modes/decode.go`; `handlers/create.go` for what is strict.
#[tokio::test]
async fn bad_bodies_are_refused() -> Result<()> {
    let api = TestApi::start().await?;
    let headers = [("accept", CBOR), ("content-type", CBOR)];
    let twice = b"\xa2\x44kind\x49ConfigMap\x44kind\x49ConfigMap".to_vec();
    let deep = [vec![0x81; 100_000], vec![0xf6]].concat();
    for sent in [
        b"{}".to_vec(),
        MAGIC.to_vec(),
        twice,
        deep,
        vec![0x5f; 1000],
    ] {
        let answer = api.send("POST", CONFIG_MAPS, &headers, sent).await?;
        let status = opened(&answer)?;
        assert_eq!(
            (answer.code, &status["reason"]),
            (400, &json!("BadRequest")),
            "{status}"
        );
        assert!(
            status["message"]
                .as_str()
                .is_some_and(|m| m.contains("cbor: ")),
            "{status}"
        );
    }
    let mut unknown = config_map("u", "x");
    unknown["what"] = 1.into();
    let strict = format!("{CONFIG_MAPS}?fieldValidation=Strict");
    let refused = send(&api, "POST", &strict, Some(&unknown)).await?;
    assert_eq!(refused.code, 400);
    let warned = send(&api, "POST", CONFIG_MAPS, Some(&unknown)).await?;
    assert_eq!(warned.code, 201, "{}", warned.text);
    assert_eq!(
        warned.headers["warning"],
        r#"299 - "unknown field \"what\"""#
    );
    api.close().await
}

/// Type and object of the next event of a sequence.
async fn event(watch: &mut Watch) -> Result<(String, Value)> {
    // Two documents are one and something after it.
    let end = |buffer: &[u8]| match cbor::read(buffer) {
        Ok(_) => Some(buffer.len()),
        Err(Error::Trailing(_, end)) => Some(end),
        Err(_) => None,
    };
    let document = watch.next_by(end).await?.context("an event")?;
    // Each is marked, and so is the object in it.
    assert_eq!(document[..4], [MAGIC[0], MAGIC[1], MAGIC[2], 0xa2]);
    assert_eq!(document.windows(3).filter(|w| *w == MAGIC).count(), 2);
    let event = cbor::read(&document)?;
    let kind = event["type"].as_str().context("type")?;
    Ok((kind.to_owned(), event["object"].clone()))
}

/// Upstream: `handlers/watch.go` (`application/cbor` is answered with `application/cbor-seq`),
/// `cbor/framer.go`, and `negotiation.MediaTypesForSerializer`, which names that type for streams.
#[tokio::test]
async fn events_come_in_a_sequence() -> Result<()> {
    let api = TestApi::start().await?;
    api.call("POST", CONFIG_MAPS, Some(&config_map("a", "x")))
        .await?;
    let start =
        "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let path = format!("{CONFIG_MAPS}?{start}");
    let streamed = format!("{CBOR};stream=watch");
    let mut text = api.watch(&path, &[]).await?;
    let mut all = Vec::new();
    for accept in [CBOR, SEQUENCE, &streamed, PARTIAL, TABLE] {
        let watch = api.watch(&path, &[("accept", accept)]).await?;
        assert_eq!(watch.headers["content-type"], SEQUENCE, "{accept}");
        all.push(watch);
    }
    api.call(
        "PUT",
        &format!("{CONFIG_MAPS}/a"),
        Some(&config_map("a", "y")),
    )
    .await?;
    api.call("DELETE", &format!("{CONFIG_MAPS}/a"), None)
        .await?;
    for want in ["ADDED", "BOOKMARK", "MODIFIED", "DELETED"] {
        let mut told = text.next().await?.context("event")?;
        assert_eq!(told["type"], want);
        // Each watch began at the revision that was the newest then.
        let since = |object: &mut Value| {
            if want == "BOOKMARK" {
                object["metadata"]["resourceVersion"].take();
            }
        };
        since(&mut told["object"]);
        for (i, watch) in all.iter_mut().enumerate() {
            let (kind, mut object) = event(watch).await?;
            assert_eq!(kind, want);
            since(&mut object);
            match i {
                0..3 => assert_eq!(object, told["object"]),
                3 => assert_eq!(object["metadata"], told["object"]["metadata"]),
                _ => assert_eq!(object["kind"], "Table"),
            }
        }
    }
    let old = format!("{CONFIG_MAPS}?watch=1&resourceVersion=99999999999");
    let answer = send(&api, "GET", &old, None).await?;
    assert_eq!(
        (answer.code, &opened(&answer)?["reason"]),
        (504, &json!("Timeout"))
    );
    api.close().await
}

/// Upstream: `RequestScope.AllowsMediaTypeTransform` (`handlers/rest.go`), `NewNotAcceptableError`.
#[tokio::test]
async fn shapes_and_other_types() -> Result<()> {
    let api = TestApi::start().await?;
    api.call("POST", CONFIG_MAPS, Some(&config_map("a", "x")))
        .await?;
    for (accept, kind) in [(TABLE, "Table"), (PARTIAL, "PartialObjectMetadataList")] {
        let headers = [("accept", accept)];
        let answer = api.send("GET", CONFIG_MAPS, &headers, Vec::new()).await?;
        let json = accept.replace("cbor", "json");
        let text = api
            .send("GET", CONFIG_MAPS, &[("accept", &json)], Vec::new())
            .await?;
        assert_eq!(at_rest(opened(&answer)?), at_rest(text.json.clone()));
        assert_eq!(text.json["kind"], kind);
    }
    for path in ["/api", "/apis", "/api/v1", "/apis/apps", "/apis/apps/v1"] {
        let answer = send(&api, "GET", path, None).await?;
        assert_eq!(opened(&answer)?, shown(&api, path).await?, "{path}");
    }
    // One object is no sequence.
    let one = api
        .send("GET", CONFIG_MAPS, &[("accept", SEQUENCE)], Vec::new())
        .await?;
    assert_eq!(one.code, 406);
    let types =
        "application/json, application/yaml, application/vnd.kubernetes.protobuf, application/cbor";
    let message = format!("only the following media types are accepted: {types}");
    assert_eq!(one.json["message"], message);
    api.close().await
}

/// Upstream: the apiextensions server takes and gives CBOR for custom resources, which have no
/// protobuf (`customresource_handler.go`).
#[tokio::test]
async fn custom_resources_too() -> Result<()> {
    let api = TestApi::start().await?;
    define(&api, &crontabs()).await?;
    let tabs = "/apis/stable.example.com/v1/namespaces/default/crontabs";
    let tab = json!({
        "kind": "CronTab", "apiVersion": "stable.example.com/v1", "metadata": {"name": "t"},
        "spec": {"cronSpec": "* * * * *", "image": "YWJj"},
    });
    let made = send(&api, "POST", tabs, Some(&tab)).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    let path = format!("{tabs}/t");
    assert_eq!(opened(&made)?, shown(&api, &path).await?);
    let list = opened(&send(&api, "GET", tabs, None).await?)?;
    assert_eq!(list["items"][0], shown(&api, &path).await?);
    let mut watch = api
        .watch(&format!("{tabs}?watch=1"), &[("accept", CBOR)])
        .await?;
    assert_eq!(event(&mut watch).await?.1, shown(&api, &path).await?);
    api.close().await
}

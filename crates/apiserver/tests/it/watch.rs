//! Watches.

use super::{CONFIG_MAPS, config_map};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use testkit::TestApi;

/// Upstream: `test/e2e/apimachinery/watch.go`.
#[tokio::test]
async fn from_a_revision_on() -> Result<()> {
    let api = TestApi::start().await?;
    api.call("POST", CONFIG_MAPS, Some(&config_map("a", "x")))
        .await?;
    let list = api.call("GET", CONFIG_MAPS, None).await?.json;
    let revision = list["metadata"]["resourceVersion"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let mut watch = api
        .watch(
            &format!("{CONFIG_MAPS}?watch=1&resourceVersion={revision}"),
            &[],
        )
        .await?;
    let made = api
        .call("POST", CONFIG_MAPS, Some(&config_map("b", "x")))
        .await?
        .json;
    let event = watch.next().await?.context("event")?;
    assert_eq!((&event["type"], &event["object"]), (&json!("ADDED"), &made));
    let mut next = made.clone();
    next["data"]["k"] = "w".into();
    api.call("PUT", &format!("{CONFIG_MAPS}/b"), Some(&next))
        .await?;
    assert_eq!(watch.brief().await?, "MODIFIED b");
    api.call("DELETE", &format!("{CONFIG_MAPS}/b"), None)
        .await?;
    let gone = watch.next().await?.context("event")?;
    assert_eq!(gone["type"], "DELETED");
    assert_eq!(gone["object"]["data"]["k"], "w");
    // Another watcher from the same revision sees the same history.
    let mut late = api
        .watch(
            &format!("{CONFIG_MAPS}?watch=1&resourceVersion={revision}"),
            &[],
        )
        .await?;
    for want in ["ADDED b", "MODIFIED b", "DELETED b"] {
        assert_eq!(late.brief().await?, want);
    }
    api.close().await
}

/// Upstream: `test/e2e/apimachinery/watch.go`.
#[tokio::test]
async fn without_a_revision_the_state_comes_first() -> Result<()> {
    let api = TestApi::start().await?;
    for name in ["a", "b"] {
        api.call("POST", CONFIG_MAPS, Some(&config_map(name, "x")))
            .await?;
    }
    let mut watch = api.watch(&format!("{CONFIG_MAPS}?watch=true"), &[]).await?;
    assert_eq!(watch.brief().await?, "ADDED a");
    assert_eq!(watch.brief().await?, "ADDED b");
    api.call("POST", CONFIG_MAPS, Some(&config_map("c", "x")))
        .await?;
    assert_eq!(watch.brief().await?, "ADDED c");
    api.close().await
}

/// Upstream: `test/e2e/apimachinery/watchlist.go`.
#[tokio::test]
async fn watch_list_ends_its_start_with_a_bookmark() -> Result<()> {
    let api = TestApi::start().await?;
    api.call("POST", CONFIG_MAPS, Some(&config_map("a", "x")))
        .await?;
    let path = format!(
        "{CONFIG_MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    );
    let mut watch = api.watch(&path, &[]).await?;
    assert_eq!(watch.brief().await?, "ADDED a");
    let mark = watch.next().await?.context("bookmark")?;
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(
        mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    assert_eq!(mark["object"]["kind"], "ConfigMap");
    let revision = mark["object"]["metadata"]["resourceVersion"]
        .as_str()
        .unwrap_or_default();
    let mut resumed = api
        .watch(
            &format!("{CONFIG_MAPS}?watch=1&resourceVersion={revision}"),
            &[],
        )
        .await?;
    api.call("POST", CONFIG_MAPS, Some(&config_map("b", "x")))
        .await?;
    assert_eq!(watch.brief().await?, "ADDED b");
    assert_eq!(resumed.brief().await?, "ADDED b");
    let alone = api
        .call(
            "GET",
            &format!("{CONFIG_MAPS}?watch=1&sendInitialEvents=true"),
            None,
        )
        .await?;
    assert_eq!(alone.code, 422, "{}", alone.text);
    api.close().await
}

/// Upstream: `test/e2e/apimachinery/watch.go`.
#[tokio::test]
async fn selections_are_entered_and_left() -> Result<()> {
    let api = TestApi::start().await?;
    let mut watch = api
        .watch(&format!("{CONFIG_MAPS}?watch=1&labelSelector=l%3Dx"), &[])
        .await?;
    api.call("POST", CONFIG_MAPS, Some(&config_map("a", "y")))
        .await?;
    api.call("POST", CONFIG_MAPS, Some(&config_map("b", "x")))
        .await?;
    api.call(
        "PUT",
        &format!("{CONFIG_MAPS}/a"),
        Some(&config_map("a", "x")),
    )
    .await?;
    api.call(
        "PUT",
        &format!("{CONFIG_MAPS}/b"),
        Some(&config_map("b", "y")),
    )
    .await?;
    api.call("DELETE", &format!("{CONFIG_MAPS}/b"), None)
        .await?;
    api.call("DELETE", &format!("{CONFIG_MAPS}/a"), None)
        .await?;
    for want in ["ADDED b", "ADDED a", "DELETED b", "DELETED a"] {
        assert_eq!(watch.brief().await?, want);
    }
    api.close().await
}

/// Upstream: `test/integration/apiserver/apiserver_test.go`.
#[tokio::test]
async fn tables_are_watched() -> Result<()> {
    let api = TestApi::start().await?;
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let mut watch = api.watch(&format!("{CONFIG_MAPS}?watch=1"), &table).await?;
    api.call("POST", CONFIG_MAPS, Some(&config_map("a", "x")))
        .await?;
    api.call("POST", CONFIG_MAPS, Some(&config_map("b", "x")))
        .await?;
    let first = watch.next().await?.context("event")?;
    assert_eq!(first["object"]["rows"][0]["cells"][0], "a");
    assert!(first["object"]["columnDefinitions"].is_array());
    let second = watch.next().await?.context("event")?;
    assert_eq!(second["object"]["rows"][0]["cells"][0], "b");
    assert!(second["object"]["columnDefinitions"].is_null());
    api.close().await
}

/// Upstream: `staging/src/k8s.io/apiserver/pkg/endpoints/watch_test.go`.
#[tokio::test]
async fn time_runs_out() -> Result<()> {
    let api = TestApi::start().await?;
    let mut watch = api
        .watch(&format!("{CONFIG_MAPS}?watch=1&timeoutSeconds=1"), &[])
        .await?;
    assert_eq!(watch.next().await?, None);
    api.close().await
}

/// The ring forgets; the store does not, until it is compacted.
/// Upstream: `test/e2e/apimachinery/watch.go`.
///
/// In process only: the watch cache must be small, which no flag makes it.
#[tokio::test]
async fn old_revisions_come_from_the_store_until_compacted() -> Result<()> {
    let api = TestApi::start_with(|c| c.limits.events_max = 2).await?;
    let first = api
        .call("POST", CONFIG_MAPS, Some(&config_map("a", "x")))
        .await?
        .json;
    let revision = first["metadata"]["resourceVersion"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    for name in ["b", "c", "d", "e"] {
        api.call("POST", CONFIG_MAPS, Some(&config_map(name, "x")))
            .await?;
    }
    let path = format!("{CONFIG_MAPS}?watch=1&resourceVersion={revision}");
    let mut watch = api.watch(&path, &[]).await?;
    for want in ["ADDED b", "ADDED c", "ADDED d", "ADDED e"] {
        assert_eq!(watch.brief().await?, want);
    }
    api.call("POST", CONFIG_MAPS, Some(&config_map("f", "x")))
        .await?;
    assert_eq!(watch.brief().await?, "ADDED f");
    let newest = api.store()?.revision().await?;
    api.store()?.compact(newest).await?;
    let gone = api.call("GET", &path, None).await?;
    assert_eq!(
        (gone.code, gone.json["reason"].as_str()),
        (410, Some("Expired")),
        "{}",
        gone.text
    );
    api.close().await
}

#[tokio::test]
async fn the_server_ends_its_watches_when_it_stops() -> Result<()> {
    let api = TestApi::start().await?;
    let mut watch = api.watch(&format!("{CONFIG_MAPS}?watch=1"), &[]).await?;
    api.close().await?;
    assert_eq!(watch.next().await?, None);
    Ok(())
}

/// A watcher that the ring has left behind misses nothing and sees nothing twice.
///
/// In process only: the watch cache must be small, which no flag makes it.
#[tokio::test]
async fn a_slow_watcher_reads_on_from_the_store() -> Result<()> {
    let api = TestApi::start_with(|c| c.limits.events_max = 2).await?;
    let mut watch = api.watch(&format!("{CONFIG_MAPS}?watch=1"), &[]).await?;
    for round in 0..3 {
        for i in 0..10 {
            let name = format!("r{round}-{i}");
            let made = api
                .call("POST", CONFIG_MAPS, Some(&config_map(&name, "x")))
                .await?;
            assert_eq!(made.code, 201, "{}", made.text);
        }
        for i in 0..10 {
            assert_eq!(watch.brief().await?, format!("ADDED r{round}-{i}"));
        }
    }
    // Caught up, it is in step again.
    api.call("POST", CONFIG_MAPS, Some(&config_map("last", "x")))
        .await?;
    assert_eq!(watch.brief().await?, "ADDED last");
    api.close().await
}

/// Who may watch one object by its name sees that one, whatever else is selected.
#[tokio::test]
async fn a_named_watch_is_of_that_name() -> Result<()> {
    let api = TestApi::start().await?;
    let maps = "/api/v1/namespaces/default/configmaps";
    for name in ["mine", "theirs"] {
        let map = json!({"metadata": {"name": name}});
        api.call("POST", maps, Some(&map)).await?;
    }
    let path = "/api/v1/watch/namespaces/default/configmaps/mine";
    let query = "fieldSelector=metadata.namespace%3Ddefault&timeoutSeconds=1";
    let seen = api.call("GET", &format!("{path}?{query}"), None).await?;
    assert!(seen.text.contains("\"mine\""), "{}", seen.text);
    assert!(!seen.text.contains("\"theirs\""), "{}", seen.text);
    api.close().await
}

/// A list or Table without what time changes: its revision, and ages.
pub(super) fn at_rest(mut shown: Value) -> Value {
    if shown["rows"].is_array() || shown["items"].is_array() {
        shown["metadata"] = Value::Null;
    }
    for row in shown["rows"].as_array_mut().into_iter().flatten() {
        row["cells"] = Value::Null;
    }
    shown
}

/// Upstream: `RequestScope.AllowsMediaTypeTransform` and `handlers/response.go` (`asTable`,
/// `asPartialObjectMetadata`) know both versions of `meta.k8s.io`.
#[tokio::test]
async fn tables_and_metadata_in_the_older_version() -> Result<()> {
    const BETA: &str = "meta.k8s.io/v1beta1";
    let api = TestApi::start().await?;
    api.call("POST", CONFIG_MAPS, Some(&config_map("a", "x")))
        .await?;
    let one = format!("{CONFIG_MAPS}/a");
    let watch = format!("{CONFIG_MAPS}?watch=1");
    let accept = |media: &str, kind: &str, version: &str| {
        format!("{media};as={kind};g=meta.k8s.io;v={version}")
    };
    for (path, kind) in [
        (&*one, "Table"),
        (CONFIG_MAPS, "Table"),
        (&*one, "PartialObjectMetadata"),
        (CONFIG_MAPS, "PartialObjectMetadataList"),
    ] {
        let json = "application/json";
        let [new, old] = ["v1", "v1beta1"].map(|v| accept(json, kind, v));
        let old = api
            .send("GET", path, &[("accept", &old)], Vec::new())
            .await?;
        let new = api
            .send("GET", path, &[("accept", &new)], Vec::new())
            .await?;
        assert_eq!(
            (&old.json["kind"], &old.json["apiVersion"]),
            (&json!(kind), &json!(BETA))
        );
        let told = new.text.replace("meta.k8s.io/v1", BETA);
        assert_eq!(
            at_rest(serde_json::from_str(&told)?),
            at_rest(old.json),
            "{kind}"
        );
        if kind != "Table" {
            let binary = accept("application/vnd.kubernetes.protobuf", kind, "v1beta1");
            let answer = api
                .send("GET", path, &[("accept", &binary)], Vec::new())
                .await?;
            let envelope = apimachinery::protobuf::Envelope::parse(&answer.body)?;
            assert_eq!((envelope.api_version, envelope.kind), (BETA, kind));
        }
    }
    for kind in ["Table", "PartialObjectMetadata"] {
        let accept = accept("application/json", kind, "v1beta1");
        let mut watch = api.watch(&watch, &[("accept", &accept)]).await?;
        let told = watch.next().await?.context("an event")?;
        assert_eq!(told["object"]["apiVersion"], BETA);
        assert_eq!(told["object"]["kind"], kind);
    }
    api.close().await
}

/// Upstream: `NegotiateOutputMediaTypeStream` (`endpoints/handlers/negotiation`): YAML has no
/// stream serializer (`runtime/serializer/codec_factory.go`), so a watch that accepts nothing
/// else is refused with the types of streams.
#[tokio::test]
async fn yaml_has_no_watch() -> Result<()> {
    let api = TestApi::start().await?;
    let path = format!("{CONFIG_MAPS}?watch=1");
    for accept in ["application/yaml", "application/yaml;stream=watch"] {
        let refused = api
            .send("GET", &path, &[("accept", accept)], Vec::new())
            .await?;
        assert_eq!(refused.code, 406, "{accept}");
        let types = "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch, application/cbor-seq";
        assert!(refused.text.contains(types), "{}", refused.text);
        assert!(refused.text.contains("NotAcceptable"), "{}", refused.text);
    }
    api.close().await
}

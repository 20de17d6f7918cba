//! Events are one kind in two versions.

use anyhow::{Context as _, Result};
use serde_json::json;
use testkit::TestApi;

const CORE: &str = "/api/v1/namespaces/default/events";
const NEW: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

/// Upstream: `test/e2e/instrumentation/events.go`.
#[tokio::test]
async fn each_version_shows_the_other() -> Result<()> {
    let api = TestApi::start().await?;
    let mut watch = api.watch(&format!("{NEW}?watch=1"), &[]).await?;
    let old = json!({"kind": "Event", "apiVersion": "v1", "metadata": {"name": "a"},
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "R", "message": "text", "type": "Normal", "count": 2,
        "source": {"component": "kubelet"}, "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z"});
    let made = api.call("POST", CORE, Some(&old)).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    let new = api.call("GET", &format!("{NEW}/a"), None).await?.json;
    assert_eq!(new["apiVersion"], "events.k8s.io/v1");
    assert_eq!(
        (&new["regarding"]["name"], &new["note"]),
        (&json!("p"), &json!("text"))
    );
    assert_eq!(
        (
            &new["deprecatedCount"],
            &new["deprecatedSource"]["component"]
        ),
        (&json!(2), &json!("kubelet"))
    );
    assert_eq!(new.get("message"), None);
    assert_eq!(watch.next().await?.context("event")?["object"], new);
    let other = json!({"kind": "Event", "apiVersion": "events.k8s.io/v1", "metadata": {"name": "b"},
        "regarding": {"kind": "Pod", "name": "q", "namespace": "default"}, "eventTime": "2026-01-01T00:00:00.000000Z",
        "reason": "R", "note": "n", "type": "Warning", "action": "Act", "reportingController": "c", "reportingInstance": "i"});
    let made = api.call("POST", NEW, Some(&other)).await?;
    assert_eq!(
        (made.code, &made.json["note"]),
        (201, &json!("n")),
        "{}",
        made.text
    );
    let core = api
        .call(
            "GET",
            &format!("{CORE}?fieldSelector=involvedObject.name%3Dq,type%3DWarning"),
            None,
        )
        .await?
        .json;
    assert_eq!(core["items"][0]["message"], "n", "{core}");
    assert_eq!(core["items"][0]["reportingComponent"], "c");
    let patch = [("content-type", "application/merge-patch+json")];
    let patched = api
        .send(
            "PATCH",
            &format!("{NEW}/b"),
            &patch,
            br#"{"series":{"count":2,"lastObservedTime":"2026-01-01T00:00:00.000000Z"}}"#.to_vec(),
        )
        .await?;
    assert_eq!(
        (patched.code, &patched.json["series"]["count"]),
        (200, &json!(2)),
        "{}",
        patched.text
    );
    api.close().await
}

/// Upstream: `pkg/apis/core/validation/events_test.go`; what the old version made is left alone.
#[tokio::test]
async fn the_new_version_says_who_saw_what_and_when() -> Result<()> {
    let api = TestApi::start().await?;
    let bare = json!({"kind": "Event", "apiVersion": "events.k8s.io/v1", "metadata": {"name": "a"},
        "regarding": {"kind": "Pod", "name": "p", "namespace": "default"}, "deprecatedCount": 1});
    let made = api.call("POST", NEW, Some(&bare)).await?;
    assert_eq!(made.code, 422, "{}", made.text);
    assert_eq!(
        made.json["message"],
        "Event.events.k8s.io \"a\" is invalid: [eventTime: Required value, type: Invalid value: \"\": has invalid value: , count: Invalid value: \"\": needs to be unset]"
    );
    let old = json!({"kind": "Event", "apiVersion": "v1", "metadata": {"name": "a"}, "count": 1,
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}});
    assert_eq!(api.call("POST", CORE, Some(&old)).await?.code, 201);
    let patch = [("content-type", "application/merge-patch+json")];
    let change = |url: String, body: &str| {
        let body = body.as_bytes().to_vec();
        let api = &api;
        async move { api.send("PATCH", &url, &patch, body).await }
    };
    let labelled = change(format!("{NEW}/a"), r#"{"metadata":{"labels":{"a":"b"}}}"#).await?;
    assert_eq!(labelled.code, 200, "{}", labelled.text);
    let counted = change(format!("{NEW}/a"), r#"{"deprecatedCount":2}"#).await?;
    assert_eq!(
        (counted.code, &counted.json["details"]["causes"][0]["field"]),
        (422, &json!("count")),
        "{}",
        counted.text
    );
    let counted = change(format!("{CORE}/a"), r#"{"count":2}"#).await?;
    assert_eq!(counted.code, 200, "{}", counted.text);
    api.close().await
}

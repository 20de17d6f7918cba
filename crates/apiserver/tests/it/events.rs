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

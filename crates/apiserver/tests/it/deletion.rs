//! Deleting: grace, finalizers, preconditions, namespaces.

use super::{CONFIG_MAPS, PODS, config_map, default_account, pod};
use anyhow::Result;
use serde_json::json;
use testkit::TestApi;

/// Upstream: `pkg/registry/core/pod/storage/storage_test.go`.
#[tokio::test]
async fn pods_on_a_node_have_their_grace() -> Result<()> {
    let api = TestApi::start().await?;
    default_account(&api).await?;
    api.call("POST", PODS, Some(&pod("loose", None))).await?;
    let gone = api.call("DELETE", &format!("{PODS}/loose"), None).await?;
    assert_eq!(
        (gone.code, gone.json["kind"].as_str()),
        (200, Some("Pod")),
        "{}",
        gone.text
    );
    assert_eq!(
        api.call("GET", &format!("{PODS}/loose"), None).await?.code,
        404
    );
    api.call("POST", PODS, Some(&pod("held", Some("n"))))
        .await?;
    let path = format!("{PODS}/held");
    let held = api.call("DELETE", &path, None).await?.json;
    assert_eq!(held["metadata"]["deletionGracePeriodSeconds"], 30, "{held}");
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    let shorter = api
        .call("DELETE", &format!("{path}?gracePeriodSeconds=5"), None)
        .await?
        .json;
    assert_eq!(
        shorter["metadata"]["deletionGracePeriodSeconds"], 5,
        "{shorter}"
    );
    let longer = api
        .call("DELETE", &format!("{path}?gracePeriodSeconds=60"), None)
        .await?
        .json;
    assert_eq!(longer["metadata"]["deletionGracePeriodSeconds"], 5);
    let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
    assert_eq!(api.call("DELETE", &path, Some(&options)).await?.code, 200);
    assert_eq!(api.call("GET", &path, None).await?.code, 404);
    api.close().await
}

/// Upstream: `test/e2e/apimachinery/garbage_collector.go`.
#[tokio::test]
async fn finalizers_hold_and_let_go() -> Result<()> {
    let api = TestApi::start().await?;
    let mut body = config_map("a", "x");
    body["metadata"]["finalizers"] = json!(["example.com/wait"]);
    api.call("POST", CONFIG_MAPS, Some(&body)).await?;
    let path = format!("{CONFIG_MAPS}/a");
    let pending = api.call("DELETE", &path, None).await?;
    assert!(
        pending.json["metadata"]["deletionTimestamp"].is_string(),
        "{}",
        pending.text
    );
    let again = api.call("DELETE", &path, None).await?;
    assert_eq!(
        again.json["metadata"]["resourceVersion"],
        pending.json["metadata"]["resourceVersion"]
    );
    let mut more = again.json.clone();
    more["metadata"]["finalizers"] = json!(["example.com/wait", "example.com/late"]);
    let refused = api.call("PUT", &path, Some(&more)).await?;
    assert_eq!(refused.code, 422, "{}", refused.text);
    let patch = [("content-type", "application/merge-patch+json")];
    let free = br#"{"metadata":{"finalizers":null}}"#.to_vec();
    assert_eq!(api.send("PATCH", &path, &patch, free).await?.code, 200);
    assert_eq!(api.call("GET", &path, None).await?.code, 404);
    api.close().await
}

/// Upstream: `test/e2e/apimachinery/garbage_collector.go`.
#[tokio::test]
async fn propagation_is_left_to_the_collector_as_finalizers() -> Result<()> {
    let api = TestApi::start().await?;
    for (policy, finalizer) in [("Orphan", "orphan"), ("Foreground", "foregroundDeletion")] {
        let name = policy.to_lowercase();
        api.call("POST", CONFIG_MAPS, Some(&config_map(&name, "x")))
            .await?;
        let path = format!("{CONFIG_MAPS}/{name}?propagationPolicy={policy}");
        let a = api.call("DELETE", &path, None).await?;
        assert_eq!(
            a.json["metadata"]["finalizers"],
            json!([finalizer]),
            "{}",
            a.text
        );
    }
    let bad = api
        .call(
            "DELETE",
            &format!("{CONFIG_MAPS}/orphan?propagationPolicy=No"),
            None,
        )
        .await?;
    assert_eq!(bad.code, 422);
    api.close().await
}

/// Upstream: `test/integration/dryrun/dryrun_test.go`.
#[tokio::test]
async fn preconditions_are_kept() -> Result<()> {
    let api = TestApi::start().await?;
    let made = api
        .call("POST", CONFIG_MAPS, Some(&config_map("a", "x")))
        .await?
        .json;
    let path = format!("{CONFIG_MAPS}/a");
    for bad in [json!({"uid": "other"}), json!({"resourceVersion": "1"})] {
        let a = api
            .call("DELETE", &path, Some(&json!({"preconditions": bad})))
            .await?;
        assert_eq!(a.code, 409, "{}", a.text);
    }
    let good = json!({"uid": made["metadata"]["uid"], "resourceVersion": made["metadata"]["resourceVersion"]});
    assert_eq!(
        api.call("DELETE", &path, Some(&json!({"preconditions": good})))
            .await?
            .code,
        200
    );
    api.close().await
}

/// Upstream: `test/e2e/apimachinery/namespace.go`.
#[tokio::test]
async fn namespaces_go_through_finalize() -> Result<()> {
    let api = TestApi::start().await?;
    let path = "/api/v1/namespaces";
    let made = api
        .call("POST", path, Some(&json!({"metadata": {"name": "n"}})))
        .await?
        .json;
    assert_eq!(made["spec"]["finalizers"], json!(["kubernetes"]), "{made}");
    assert_eq!(
        made["metadata"]["labels"]["kubernetes.io/metadata.name"],
        "n"
    );
    let going = api.call("DELETE", &format!("{path}/n"), None).await?.json;
    assert_eq!(going["status"]["phase"], "Terminating", "{going}");
    let late = api
        .call(
            "POST",
            &format!("{path}/n/configmaps"),
            Some(&config_map("a", "x")),
        )
        .await?;
    assert_eq!(late.code, 403, "{}", late.text);
    assert_eq!(
        late.json["details"]["causes"][0]["reason"],
        "NamespaceTerminating"
    );
    let mut done = going.clone();
    done["spec"]["finalizers"] = json!([]);
    let finalized = api
        .call("PUT", &format!("{path}/n/finalize"), Some(&done))
        .await?;
    assert_eq!(finalized.code, 200, "{}", finalized.text);
    assert_eq!(api.call("GET", &format!("{path}/n"), None).await?.code, 404);
    assert_eq!(
        api.call("DELETE", &format!("{path}/default"), None)
            .await?
            .code,
        403
    );
    api.close().await
}

/// Upstream: `test/e2e/common/node/configmap.go`.
#[tokio::test]
async fn collections_are_deleted_by_selector() -> Result<()> {
    let api = TestApi::start().await?;
    for (name, label) in [("a", "x"), ("b", "y"), ("c", "x")] {
        api.call("POST", CONFIG_MAPS, Some(&config_map(name, label)))
            .await?;
    }
    let gone = api
        .call(
            "DELETE",
            &format!("{CONFIG_MAPS}?labelSelector=l%3Dx"),
            None,
        )
        .await?;
    assert_eq!(
        gone.json["items"].as_array().map(Vec::len),
        Some(2),
        "{}",
        gone.text
    );
    let left = api.call("GET", CONFIG_MAPS, None).await?.json;
    assert_eq!(left["items"][0]["metadata"]["name"], "b");
    api.close().await
}

//! The four patches.

use super::{CONFIG_MAPS, DEPLOYMENTS, config_map, deployment};
use anyhow::Result;
use serde_json::{Value, json};
use testkit::{Answer, TestApi};

async fn patch(api: &TestApi, path: &str, kind: &str, body: &Value) -> Result<Answer> {
    let media = format!("application/{kind}");
    api.send(
        "PATCH",
        path,
        &[("content-type", &media)],
        body.to_string().into_bytes(),
    )
    .await
}

/// Upstream: `test/integration/apiserver/patch_test.go`.
#[tokio::test]
async fn three_patches_change_a_deployment() -> Result<()> {
    let api = TestApi::start().await?;
    api.call("POST", DEPLOYMENTS, Some(&deployment("d")))
        .await?;
    let path = format!("{DEPLOYMENTS}/d");
    let strategic =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "side", "image": "s"}]}}}});
    let a = patch(&api, &path, "strategic-merge-patch+json", &strategic).await?;
    assert_eq!(
        a.json["spec"]["template"]["spec"]["containers"]
            .as_array()
            .map(Vec::len),
        Some(2),
        "{}",
        a.text
    );
    let merge =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i2"}]}}}});
    let a = patch(&api, &path, "merge-patch+json", &merge).await?;
    assert_eq!(
        a.json["spec"]["template"]["spec"]["containers"]
            .as_array()
            .map(Vec::len),
        Some(1),
        "{}",
        a.text
    );
    let ops = json!([{"op": "test", "path": "/spec/replicas", "value": 1}, {"op": "replace", "path": "/spec/replicas", "value": 4}]);
    let a = patch(&api, &path, "json-patch+json", &ops).await?;
    assert_eq!(a.json["spec"]["replicas"], 4, "{}", a.text);
    let a = patch(&api, &path, "json-patch+json", &ops).await?;
    assert_eq!(a.code, 422, "{}", a.text);
    // A patch that changes nothing keeps the version, one for another version conflicts.
    let before = api.call("GET", &path, None).await?.json;
    let a = patch(
        &api,
        &path,
        "merge-patch+json",
        &json!({"spec": {"replicas": 4}}),
    )
    .await?;
    assert_eq!(a.json, before);
    let a = patch(
        &api,
        &path,
        "merge-patch+json",
        &json!({"metadata": {"resourceVersion": "1"}}),
    )
    .await?;
    assert_eq!(a.code, 409, "{}", a.text);
    let a = patch(
        &api,
        &path,
        "merge-patch+json",
        &json!({"spec": {"replicas": "x"}}),
    )
    .await?;
    assert!(matches!(a.code, 400 | 422), "{}", a.text);
    let a = patch(&api, &path, "unknown", &json!({})).await?;
    assert_eq!(a.code, 415, "{}", a.text);
    let a = patch(
        &api,
        &format!("{DEPLOYMENTS}/none"),
        "merge-patch+json",
        &json!({}),
    )
    .await?;
    assert_eq!(a.code, 404);
    let a = patch(
        &api,
        &format!("{path}/status"),
        "merge-patch+json",
        &json!({"spec": {"replicas": 9}, "status": {"replicas": 4}}),
    )
    .await?;
    assert_eq!(
        (&a.json["spec"]["replicas"], &a.json["status"]["replicas"]),
        (&json!(4), &json!(4))
    );
    api.close().await
}

/// Upstream: `test/integration/apiserver/apply/apply_test.go`.
#[tokio::test]
async fn server_side_apply_makes_owns_and_conflicts() -> Result<()> {
    let api = TestApi::start().await?;
    let path = format!("{CONFIG_MAPS}/a");
    let config = |v: &str| json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a"}, "data": {"k": v}});
    let kind = "apply-patch+yaml";
    let nobody = patch(&api, &path, kind, &config("1")).await?;
    assert_eq!(nobody.code, 422, "{}", nobody.text);
    let made = patch(
        &api,
        &format!("{path}?fieldManager=one"),
        kind,
        &config("1"),
    )
    .await?;
    assert_eq!(made.code, 201, "{}", made.text);
    assert_eq!(made.json["metadata"]["managedFields"][0]["manager"], "one");
    assert_eq!(
        made.json["metadata"]["managedFields"]
            .as_array()
            .map(Vec::len),
        Some(1),
        "{}",
        made.text
    );
    let same = patch(
        &api,
        &format!("{path}?fieldManager=one"),
        kind,
        &config("1"),
    )
    .await?;
    assert_eq!((same.code, &same.json), (200, &made.json));
    let other = patch(
        &api,
        &format!("{path}?fieldManager=two"),
        kind,
        &config("2"),
    )
    .await?;
    assert_eq!(
        (other.code, other.json["reason"].as_str()),
        (409, Some("Conflict")),
        "{}",
        other.text
    );
    assert_eq!(
        other.json["details"]["causes"][0]["reason"],
        "FieldManagerConflict"
    );
    let forced = patch(
        &api,
        &format!("{path}?fieldManager=two&force=true"),
        kind,
        &config("2"),
    )
    .await?;
    assert_eq!(forced.json["data"]["k"], "2", "{}", forced.text);
    let dropped = patch(
        &api,
        &format!("{path}?fieldManager=two"),
        kind,
        &json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a"}}),
    )
    .await?;
    assert_eq!(dropped.json.get("data"), None, "{}", dropped.text);
    api.close().await
}

/// Many writers of one object: each patch is there in the end.
/// Upstream: `test/integration/apiserver/patch_test.go`.
#[tokio::test]
async fn patches_do_not_lose_each_other() -> Result<()> {
    let api = TestApi::start().await?;
    api.call("POST", CONFIG_MAPS, Some(&config_map("a", "x")))
        .await?;
    let path = format!("{CONFIG_MAPS}/a");
    let all = (0..8).map(|i| {
        let (api, path) = (&api, &path);
        async move {
            let key = format!("k{i}");
            patch(api, path, "merge-patch+json", &json!({"data": {key: "v"}})).await
        }
    });
    for a in futures::future::try_join_all(all).await? {
        assert_eq!(a.code, 200, "{}", a.text);
    }
    let data = api.call("GET", &path, None).await?.json["data"].clone();
    assert_eq!(
        data.as_object().map(serde_json::Map::len),
        Some(9),
        "{data}"
    );
    api.close().await
}

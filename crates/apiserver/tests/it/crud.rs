//! Objects come, change and go.

use anyhow::Result;
use serde_json::json;
use testkit::TestApi;

#[tokio::test]
async fn a_config_map_lives() -> Result<()> {
    let api = TestApi::start().await?;
    let path = "/api/v1/namespaces/default/configmaps";
    let made = api
        .call(
            "POST",
            path,
            Some(&json!({"metadata": {"name": "a"}, "data": {"k": "v"}})),
        )
        .await?;
    assert_eq!(made.code, 201, "{}", made.text);
    let uid = made.json["metadata"]["uid"].clone();
    let version = made.json["metadata"]["resourceVersion"].clone();
    assert!(uid.is_string() && version.is_string(), "{}", made.text);
    let got = api.call("GET", &format!("{path}/a"), None).await?;
    assert_eq!(got.json, made.json);
    // A write that changes nothing keeps the version.
    let same = api
        .call("PUT", &format!("{path}/a"), Some(&made.json))
        .await?;
    assert_eq!(
        (same.code, &same.json["metadata"]["resourceVersion"]),
        (200, &version),
        "{}",
        same.text
    );
    let mut next = made.json.clone();
    next["data"]["k"] = "w".into();
    let put = api.call("PUT", &format!("{path}/a"), Some(&next)).await?;
    assert_eq!(put.json["data"]["k"], "w", "{}", put.text);
    let stale = api.call("PUT", &format!("{path}/a"), Some(&next)).await?;
    assert_eq!(
        (stale.code, stale.json["reason"].as_str()),
        (409, Some("Conflict")),
        "{}",
        stale.text
    );
    let again = api
        .call("POST", path, Some(&json!({"metadata": {"name": "a"}})))
        .await?;
    assert_eq!(
        (again.code, again.json["reason"].as_str()),
        (409, Some("AlreadyExists"))
    );
    let list = api.call("GET", path, None).await?;
    assert_eq!(list.json["kind"], "ConfigMapList");
    assert_eq!(
        list.json["items"].as_array().map(Vec::len),
        Some(1),
        "{}",
        list.text
    );
    let gone = api.call("DELETE", &format!("{path}/a"), None).await?;
    assert_eq!(
        (gone.code, gone.json["status"].as_str()),
        (200, Some("Success")),
        "{}",
        gone.text
    );
    let missing = api.call("GET", &format!("{path}/a"), None).await?;
    assert_eq!(missing.json["message"], "configmaps \"a\" not found");
    api.close().await
}

//! Subresources.

use super::{DEPLOYMENTS, PODS, default_account, deployment, pod};
use anyhow::Result;
use serde_json::json;
use testkit::TestApi;

/// Upstream: `test/integration/scale/scale_test.go`.
#[tokio::test]
async fn scale_reads_and_writes_replicas() -> Result<()> {
    let api = TestApi::start().await?;
    api.call("POST", DEPLOYMENTS, Some(&deployment("d")))
        .await?;
    let path = format!("{DEPLOYMENTS}/d/scale");
    let scale = api.call("GET", &path, None).await?.json;
    assert_eq!(
        (&scale["kind"], &scale["spec"]["replicas"]),
        (&json!("Scale"), &json!(1))
    );
    assert_eq!(scale["status"]["selector"], "app=d");
    let mut three = scale.clone();
    three["spec"]["replicas"] = 3.into();
    let put = api.call("PUT", &path, Some(&three)).await?;
    assert_eq!(put.json["spec"]["replicas"], 3, "{}", put.text);
    let stale = api.call("PUT", &path, Some(&three)).await?;
    assert_eq!(stale.code, 409, "{}", stale.text);
    let patch = [("content-type", "application/merge-patch+json")];
    let five = api
        .send(
            "PATCH",
            &path,
            &patch,
            br#"{"spec":{"replicas":5}}"#.to_vec(),
        )
        .await?;
    assert_eq!(five.json["spec"]["replicas"], 5, "{}", five.text);
    let less = api
        .send(
            "PATCH",
            &path,
            &patch,
            br#"{"spec":{"replicas":-1}}"#.to_vec(),
        )
        .await?;
    assert_eq!(less.code, 422, "{}", less.text);
    // Upstream: `PatchResource` (`handlers/patch.go`) knows the types of patches alone.
    let other = [("content-type", "application/json")];
    let untyped = api.send("PATCH", &path, &other, b"{}".to_vec()).await?;
    assert_eq!(untyped.code, 415, "{}", untyped.text);
    let d = api
        .call("GET", &format!("{DEPLOYMENTS}/d"), None)
        .await?
        .json;
    assert_eq!(
        (&d["spec"]["replicas"], &d["metadata"]["generation"]),
        (&json!(5), &json!(3))
    );
    api.close().await
}

/// Upstream: `scaleUpdatedObjectInfo` of `pkg/registry/apps/deployment/storage/storage.go`.
#[tokio::test]
async fn errors_of_scale_name_what_is_wrong() -> Result<()> {
    let api = TestApi::start().await?;
    let made = api
        .call("POST", DEPLOYMENTS, Some(&deployment("d")))
        .await?;
    let path = format!("{DEPLOYMENTS}/d/scale");
    let scale = api.call("GET", &path, None).await?.json;
    let uid = made.json["metadata"]["uid"].as_str().unwrap_or_default();
    let other = format!(
        "Operation cannot be fulfilled on deployments/scale.apps \"d\": Precondition failed: UID in precondition: other, UID in object meta: {uid}"
    );
    for (field, value, code, message, kind) in [
        (
            "/metadata/resourceVersion",
            json!("1"),
            409,
            "Operation cannot be fulfilled on deployments.apps \"d\": the object has been modified; please apply your changes to the latest version and try again",
            "deployments",
        ),
        (
            "/metadata/uid",
            json!("other"),
            409,
            &other,
            "deployments/scale",
        ),
        (
            "/spec/replicas",
            json!(-1),
            422,
            "Scale.autoscaling \"d\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            "Scale",
        ),
        (
            "/metadata/name",
            json!(""),
            422,
            "Scale.autoscaling \"d\" is invalid: metadata.name: Required value: name or generateName is required",
            "Scale",
        ),
    ] {
        let mut asked = scale.clone();
        *asked.pointer_mut(field).expect("the field is there") = value;
        let told = api.call("PUT", &path, Some(&asked)).await?;
        assert_eq!(
            (told.code, &*told.json["message"].to_string()),
            (code, &*json!(message).to_string())
        );
        let group = if kind == "Scale" {
            "autoscaling"
        } else {
            "apps"
        };
        let details = &told.json["details"];
        assert_eq!(
            (&details["kind"], &details["group"]),
            (&json!(kind), &json!(group)),
            "{}",
            told.text
        );
    }
    let gone = api
        .call(
            "PUT",
            &format!("{DEPLOYMENTS}/e/scale"),
            Some(&json!({"metadata": {"name": "e"}})),
        )
        .await?;
    assert_eq!(
        (gone.code, &gone.json["message"]),
        (404, &json!("deployments.apps \"e\" not found"))
    );
    api.close().await
}

/// Upstream: `test/integration/apiserver/apply/scale_test.go`.
#[tokio::test]
async fn scale_is_applied_and_owned() -> Result<()> {
    let api = TestApi::start().await?;
    api.call("POST", DEPLOYMENTS, Some(&deployment("d")))
        .await?;
    let path = format!("{DEPLOYMENTS}/d/scale");
    let apply = async |manager: &str, replicas: i64, force: bool| {
        let scale = json!({"kind": "Scale", "apiVersion": "autoscaling/v1",
            "metadata": {"name": "d", "labels": {"not": "its"}}, "spec": {"replicas": replicas}});
        let url = format!("{path}?fieldManager={manager}&force={force}");
        let media = [("content-type", "application/apply-patch+yaml")];
        let body = serde_json::to_vec(&scale)?;
        api.send("PATCH", &url, &media, body).await
    };
    let put = api.call("GET", &path, None).await?.json;
    let put = api
        .call("PUT", &format!("{path}?fieldManager=putter"), Some(&put))
        .await?;
    assert_eq!(put.code, 200, "{}", put.text);
    let merged = api
        .send(
            "PATCH",
            &format!("{path}?fieldManager=patcher"),
            &[("content-type", "application/merge-patch+json")],
            br#"{"spec":{"replicas":2}}"#.to_vec(),
        )
        .await?;
    assert_eq!(merged.code, 200, "{}", merged.text);
    let refused = apply("applier", 3, false).await?;
    assert_eq!(refused.code, 409, "{}", refused.text);
    let cause = &refused.json["details"]["causes"][0];
    assert_eq!(cause["field"], ".spec.replicas", "{}", refused.text);
    assert!(refused.text.contains("patcher"), "{}", refused.text);
    // What is as it wants it is shared.
    let shared = apply("applier", 2, false).await?;
    assert_eq!(shared.code, 200, "{}", shared.text);
    let forced = apply("other", 5, true).await?;
    assert_eq!(forced.json["spec"]["replicas"], 5, "{}", forced.text);
    let managers = &forced.json["metadata"]["managedFields"];
    assert_eq!(managers.as_array().map(Vec::len), Some(1), "{managers}");
    let owner = &managers[0];
    assert_eq!(
        (
            &owner["manager"],
            &owner["operation"],
            &owner["subresource"],
            &owner["apiVersion"],
            &owner["fieldsV1"]
        ),
        (
            &json!("other"),
            &json!("Apply"),
            &json!("scale"),
            &json!("autoscaling/v1"),
            &json!({"f:spec": {"f:replicas": {}}})
        )
    );
    let d = api
        .call("GET", &format!("{DEPLOYMENTS}/d"), None)
        .await?
        .json;
    assert_eq!(d["spec"]["replicas"], 5);
    assert!(d["metadata"]["labels"]["not"].is_null(), "{d}");
    let less = apply("other", -1, true).await?;
    assert_eq!(less.code, 422, "{}", less.text);
    let unnamed = api
        .send(
            "PATCH",
            &path,
            &[("content-type", "application/apply-patch+yaml")],
            b"{}".to_vec(),
        )
        .await?;
    assert_eq!(unnamed.code, 422, "{}", unnamed.text);
    api.close().await
}

/// Upstream: `pkg/registry/core/pod/storage/storage_test.go`.
#[tokio::test]
async fn pods_are_bound_once() -> Result<()> {
    let api = TestApi::start().await?;
    default_account(&api).await?;
    api.call("POST", PODS, Some(&pod("p", None))).await?;
    let binding = json!({"kind": "Binding", "apiVersion": "v1", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let path = format!("{PODS}/p/binding");
    let bound = api.call("POST", &path, Some(&binding)).await?;
    assert_eq!(
        (bound.code, bound.json["status"].as_str()),
        (201, Some("Success")),
        "{}",
        bound.text
    );
    let p = api.call("GET", &format!("{PODS}/p"), None).await?.json;
    assert_eq!(p["spec"]["nodeName"], "n");
    assert_eq!(p["status"]["conditions"][0]["type"], "PodScheduled");
    let again = api.call("POST", &path, Some(&binding)).await?;
    assert_eq!(again.code, 409, "{}", again.text);
    let chosen = api
        .call(
            "GET",
            &format!("{PODS}?fieldSelector=spec.nodeName%3Dn"),
            None,
        )
        .await?
        .json;
    assert_eq!(chosen["items"].as_array().map(Vec::len), Some(1));
    let patch = [("content-type", "application/strategic-merge-patch+json")];
    let status =
        br#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}"#
            .to_vec();
    let status = api
        .send("PATCH", &format!("{PODS}/p/status"), &patch, status)
        .await?;
    assert_eq!(
        status.json["status"]["conditions"].as_array().map(Vec::len),
        Some(2),
        "{}",
        status.text
    );
    let running = api
        .call(
            "GET",
            &format!("{PODS}?fieldSelector=status.phase%3DRunning"),
            None,
        )
        .await?
        .json;
    assert_eq!(running["items"].as_array().map(Vec::len), Some(1));
    api.close().await
}

/// Upstream: `test/integration/evictions/evictions_test.go`.
#[tokio::test]
async fn evictions_heed_budgets() -> Result<()> {
    let api = TestApi::start().await?;
    default_account(&api).await?;
    let mut p = pod("p", Some("n"));
    p["metadata"]["labels"] = json!({"a": "b"});
    api.call("POST", PODS, Some(&p)).await?;
    let patch = [("content-type", "application/merge-patch+json")];
    api.send(
        "PATCH",
        &format!("{PODS}/p/status"),
        &patch,
        br#"{"status":{"phase":"Running"}}"#.to_vec(),
    )
    .await?;
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}}});
    let made = api.call("POST", budgets, Some(&budget)).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    let eviction =
        json!({"kind": "Eviction", "apiVersion": "policy/v1", "metadata": {"name": "p"}});
    let path = format!("{PODS}/p/eviction");
    let refused = api.call("POST", &path, Some(&eviction)).await?;
    assert_eq!(
        (refused.code, refused.json["reason"].as_str()),
        (429, Some("TooManyRequests")),
        "{}",
        refused.text
    );
    api.call("DELETE", &format!("{budgets}/b"), None).await?;
    assert_eq!(api.call("POST", &path, Some(&eviction)).await?.code, 201);
    let going = api.call("GET", &format!("{PODS}/p"), None).await?.json;
    assert!(
        going["metadata"]["deletionTimestamp"].is_string(),
        "{going}"
    );
    api.close().await
}

#[tokio::test]
async fn logs_come_from_the_node() -> Result<()> {
    let api = TestApi::start().await?;
    default_account(&api).await?;
    api.call("POST", PODS, Some(&pod("p", None))).await?;
    let unbound = api.call("GET", &format!("{PODS}/p/log"), None).await?;
    assert_eq!(unbound.code, 400, "{}", unbound.text);
    let wrong = api
        .call("GET", &format!("{PODS}/p/log?container=x"), None)
        .await?;
    assert!(
        wrong.text.contains("container x is not valid for pod p"),
        "{}",
        wrong.text
    );
    api.close().await
}

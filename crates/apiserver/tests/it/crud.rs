//! Objects come and change.

use super::{CONFIG_MAPS, DEPLOYMENTS, PODS, config_map, default_account, deployment, pod};
use anyhow::Result;
use serde_json::{Value, json};
use testkit::TestApi;

/// Upstream: `test/e2e/common/node/configmap.go`.
#[tokio::test]
async fn a_config_map_lives() -> Result<()> {
    let api = TestApi::start().await?;
    let path = CONFIG_MAPS;
    let made = api.call("POST", path, Some(&config_map("a", "x"))).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    let version = made.json["metadata"]["resourceVersion"].clone();
    assert!(
        made.json["metadata"]["uid"].is_string() && version.is_string(),
        "{}",
        made.text
    );
    let got = api.call("GET", &format!("{path}/a"), None).await?;
    assert_eq!(got.json, made.json);
    // A write that changes nothing keeps the version.
    let same = api
        .call("PUT", &format!("{path}/a"), Some(&made.json))
        .await?;
    assert_eq!((same.code, &same.json), (200, &made.json), "{}", same.text);
    let mut next = made.json.clone();
    next["data"]["k"] = "w".into();
    let put = api.call("PUT", &format!("{path}/a"), Some(&next)).await?;
    assert_eq!(put.json["data"]["k"], "w", "{}", put.text);
    let stale = api
        .call("PUT", &format!("{path}/a"), Some(&made.json))
        .await?;
    assert_eq!(
        (stale.code, stale.json["reason"].as_str()),
        (409, Some("Conflict")),
        "{}",
        stale.text
    );
    let again = api.call("POST", path, Some(&config_map("a", "x"))).await?;
    assert_eq!(
        (again.code, again.json["reason"].as_str()),
        (409, Some("AlreadyExists"))
    );
    let gone = api.call("DELETE", &format!("{path}/a"), None).await?;
    assert_eq!(
        (gone.code, gone.json["status"].as_str()),
        (200, Some("Success")),
        "{}",
        gone.text
    );
    assert_eq!(gone.json["details"]["uid"], made.json["metadata"]["uid"]);
    let missing = api.call("GET", &format!("{path}/a"), None).await?;
    assert_eq!(missing.json["message"], "configmaps \"a\" not found");
    api.close().await
}

/// Upstream: `test/e2e/apimachinery/field_validation.go`.
#[tokio::test]
async fn bad_input_changes_nothing_and_says_why() -> Result<()> {
    let api = TestApi::start().await?;
    let typo = json!({"metadata": {"name": "a"}, "dat": {}});
    let body = || typo.to_string().into_bytes();
    let strict = format!("{CONFIG_MAPS}?fieldValidation=Strict");
    let cases = [
        (
            strict.as_str(),
            "application/json",
            body(),
            400,
            "strict decoding error: unknown field \"dat\"",
        ),
        (
            CONFIG_MAPS,
            "application/xml",
            body(),
            415,
            "unknown format",
        ),
        (CONFIG_MAPS, "application/json", b"{".to_vec(), 400, ""),
        (CONFIG_MAPS, "application/json", b"".to_vec(), 400, "empty"),
        (
            CONFIG_MAPS,
            "application/json",
            br#"{"kind":"Secret","apiVersion":"v1","metadata":{"name":"a"}}"#.to_vec(),
            400,
            "Secret",
        ),
        (
            CONFIG_MAPS,
            "application/json",
            br#"{"apiVersion":"v2","kind":"ConfigMap","metadata":{"name":"a"}}"#.to_vec(),
            400,
            "does not match the expected API version (v1)",
        ),
        (
            CONFIG_MAPS,
            "application/json",
            br#"{"metadata":{"name":"a","namespace":"b"}}"#.to_vec(),
            400,
            "does not match the namespace",
        ),
        (
            CONFIG_MAPS,
            "application/json",
            br#"{"metadata":{"name":"A_"}}"#.to_vec(),
            422,
            "metadata.name: Invalid value",
        ),
        (
            CONFIG_MAPS,
            "application/json",
            br#"{"metadata":{}}"#.to_vec(),
            422,
            "name or generateName is required",
        ),
        (
            CONFIG_MAPS,
            "application/json",
            br#"{"metadata":{"name":"a","labels":{"-":"b"}}}"#.to_vec(),
            422,
            "metadata.labels",
        ),
        (
            "/api/v1/namespaces/nope/configmaps",
            "application/json",
            br#"{"metadata":{"name":"a"}}"#.to_vec(),
            404,
            "namespaces \"nope\" not found",
        ),
    ];
    for (path, media, body, code, text) in cases {
        let shown = String::from_utf8_lossy(&body).into_owned();
        let a = api
            .send("POST", path, &[("content-type", media)], body)
            .await?;
        assert_eq!(a.code, code, "{shown}: {}", a.text);
        assert!(
            a.json["message"]
                .as_str()
                .unwrap_or_default()
                .contains(text),
            "{shown}: {}",
            a.text
        );
        assert_eq!(a.json["kind"], "Status");
    }
    let warned = api.send("POST", CONFIG_MAPS, &[], body()).await?;
    assert_eq!(warned.code, 201);
    let warning = warned
        .headers
        .get("warning")
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    assert_eq!(warning, "299 - \"unknown field \\\"dat\\\"\"");
    let ignored = api.call("GET", CONFIG_MAPS, None).await?;
    assert_eq!(ignored.json["items"].as_array().map(Vec::len), Some(1));
    let huge = vec![b' '; 3 * 1024 * 1024 + 1];
    assert_eq!(api.send("POST", CONFIG_MAPS, &[], huge).await?.code, 413);
    let unknown = api.call("GET", "/api/v1/nothings", None).await?;
    assert_eq!(
        (unknown.code, unknown.text.as_str()),
        (404, "404 page not found\n")
    );
    api.close().await
}

/// Upstream: `test/integration/dryrun/dryrun_test.go`.
#[tokio::test]
async fn names_are_generated_and_dry_runs_leave_nothing() -> Result<()> {
    let api = TestApi::start().await?;
    let body = json!({"metadata": {"generateName": "web-"}});
    let a = api.call("POST", CONFIG_MAPS, Some(&body)).await?;
    let name = a.json["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(name.starts_with("web-") && name.len() == 9, "{name}");
    let dry = api
        .call(
            "POST",
            &format!("{CONFIG_MAPS}?dryRun=All"),
            Some(&config_map("b", "x")),
        )
        .await?;
    assert_eq!(dry.code, 201, "{}", dry.text);
    assert!(dry.json["metadata"]["uid"].is_string());
    assert_eq!(
        api.call("GET", &format!("{CONFIG_MAPS}/b"), None)
            .await?
            .code,
        404
    );
    api.close().await
}

/// Upstream: `test/integration/apiserver/apidefinitions/generation_test.go`.
#[tokio::test]
async fn status_and_spec_do_not_mix_and_generation_counts_spec() -> Result<()> {
    let api = TestApi::start().await?;
    let mut body = deployment("d");
    body["status"] = json!({"replicas": 9});
    let made = api.call("POST", DEPLOYMENTS, Some(&body)).await?.json;
    assert_eq!(made["status"]["replicas"], Value::Null);
    assert_eq!(made["metadata"]["generation"], 1);
    let path = format!("{DEPLOYMENTS}/d");
    let mut both = made.clone();
    both["spec"]["replicas"] = 3.into();
    both["status"] = json!({"replicas": 2, "observedGeneration": 1});
    let status = api
        .call("PUT", &format!("{path}/status"), Some(&both))
        .await?;
    assert_eq!(status.code, 200, "{}", status.text);
    assert_eq!(status.json["spec"]["replicas"], 1);
    assert_eq!(status.json["status"]["replicas"], 2);
    assert_eq!(status.json["metadata"]["generation"], 1);
    both["status"] = json!({});
    both["metadata"]["resourceVersion"] = status.json["metadata"]["resourceVersion"].clone();
    let spec = api.call("PUT", &path, Some(&both)).await?;
    assert_eq!(spec.json["spec"]["replicas"], 3, "{}", spec.text);
    assert_eq!(spec.json["status"]["replicas"], 2);
    assert_eq!(spec.json["metadata"]["generation"], 2);
    api.close().await
}

/// Upstream: `pkg/registry/core/pod/storage/storage_test.go`.
#[tokio::test]
async fn pods_are_filled_in() -> Result<()> {
    let api = TestApi::start().await?;
    let early = api
        .call(
            "POST",
            PODS,
            Some(&json!({"metadata": {"name": "p"},
        "spec": {"serviceAccountName": "absent", "containers": [{"name": "c", "image": "i"}]}})),
        )
        .await?;
    assert_eq!(early.code, 403, "{}", early.text);
    default_account(&api).await?;
    let made = api.call("POST", PODS, Some(&pod("p", None))).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    let spec = &made.json["spec"];
    assert_eq!(spec["serviceAccountName"], "default");
    assert_eq!(spec["tolerations"].as_array().map(Vec::len), Some(2));
    assert_eq!(spec["priority"], 0);
    assert_eq!(
        spec["containers"][0]["volumeMounts"][0]["name"],
        spec["volumes"][0]["name"]
    );
    assert_eq!(made.json["status"]["phase"], "Pending");
    assert!(!made.text.contains("null"), "{}", made.text);
    api.close().await
}

/// What is written is there after a restart, under the same versions.
#[tokio::test]
async fn a_restart_finds_everything() -> Result<()> {
    let api = TestApi::start().await?;
    api.call("POST", CONFIG_MAPS, Some(&config_map("a", "x")))
        .await?;
    let before = api.call("GET", CONFIG_MAPS, None).await?.json["items"].clone();
    let api = api.restart().await?;
    let after = api.call("GET", CONFIG_MAPS, None).await?.json["items"].clone();
    assert_eq!(before, after);
    api.close().await
}

/// A body as kubectl sends it: `k8s\0`, then the envelope with type and object.
/// Upstream: `test/integration/apiserver/apiserver_test.go`.
#[tokio::test]
async fn protobuf_bodies_are_understood() -> Result<()> {
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        out.extend_from_slice(bytes);
        out
    }
    let api = TestApi::start().await?;
    let meta = field(1, b"proto");
    let entry = [field(1, b"k"), field(2, b"v")].concat();
    let object = [field(1, &meta), field(2, &entry)].concat();
    let kind = [field(1, b"v1"), field(2, b"ConfigMap")].concat();
    let body = [b"k8s\0".to_vec(), field(1, &kind), field(2, &object)].concat();
    let proto = "application/vnd.kubernetes.protobuf";
    let accept = "application/vnd.kubernetes.protobuf,application/json";
    let made = api
        .send(
            "POST",
            CONFIG_MAPS,
            &[("content-type", proto), ("accept", accept)],
            body,
        )
        .await?;
    assert_eq!(made.code, 201, "{}", made.text);
    let shown = api
        .call("GET", &format!("{CONFIG_MAPS}/proto"), None)
        .await?;
    assert_eq!(shown.json["data"]["k"], "v");
    api.close().await
}

/// Stored as autoscaling/v2, written and read as v1 by older clients.
#[tokio::test]
async fn an_autoscaler_is_served_in_both_versions() -> Result<()> {
    let api = TestApi::start().await?;
    let [v1, v2] = ["v1", "v2"]
        .map(|v| format!("/apis/autoscaling/{v}/namespaces/default/horizontalpodautoscalers"));
    let made = api
        .call(
            "POST",
            &v1,
            Some(&json!({
                "apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
                "metadata": {"name": "web"},
                "spec": {"maxReplicas": 5, "targetCPUUtilizationPercentage": 60,
                    "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}},
            })),
        )
        .await?;
    assert_eq!(made.code, 201, "{}", made.text);
    assert_eq!(made.json["spec"]["targetCPUUtilizationPercentage"], 60);
    let new = api.call("GET", &format!("{v2}/web"), None).await?;
    let cpu = json!({"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}});
    assert_eq!(
        new.json["spec"]["metrics"],
        json!([{"type": "Resource", "resource": cpu}]),
        "{}",
        new.text
    );
    // What v1 has no field for survives a client of v1.
    let mut more = new.json.clone();
    more["spec"]["behavior"] = json!({"scaleDown": {"selectPolicy": "Disabled"}});
    let put = api.call("PUT", &format!("{v2}/web"), Some(&more)).await?;
    assert_eq!(put.code, 200, "{}", put.text);
    let mut old = api.call("GET", &format!("{v1}/web"), None).await?.json;
    assert_eq!(old["apiVersion"], "autoscaling/v1");
    old["spec"]["maxReplicas"] = 7.into();
    let put = api.call("PUT", &format!("{v1}/web"), Some(&old)).await?;
    assert_eq!(put.code, 200, "{}", put.text);
    let new = api.call("GET", &format!("{v2}/web"), None).await?.json;
    assert_eq!(
        (
            &new["spec"]["maxReplicas"],
            &new["spec"]["behavior"]["scaleDown"]["selectPolicy"]
        ),
        (&json!(7), &json!("Disabled"))
    );
    assert_eq!(new["metadata"].get("annotations"), None);
    let list = api.call("GET", &v1, None).await?;
    assert_eq!(
        list.json["items"][0]["spec"]["maxReplicas"], 7,
        "{}",
        list.text
    );
    api.close().await
}

//! Discovery, OpenAPI, health.

use anyhow::Result;
use serde_json::json;
use testkit::TestApi;

/// Upstream: `test/e2e/apimachinery/aggregated_discovery.go`.
#[tokio::test]
async fn both_ways_name_the_same() -> Result<()> {
    let api = TestApi::start().await?;
    let accept =
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let all = api
        .send("GET", "/apis", &[("accept", accept)], Vec::new())
        .await?;
    let media = all.headers["content-type"].to_str()?;
    assert!(media.contains("as=APIGroupDiscoveryList"), "{media}");
    let apps = all.json["items"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|g| g["metadata"]["name"] == "apps");
    let resources = apps
        .map(|a| a["versions"][0]["resources"].clone())
        .unwrap_or_default();
    let deployments = resources
        .as_array()
        .into_iter()
        .flatten()
        .find(|r| r["resource"] == "deployments")
        .cloned()
        .unwrap_or_default();
    assert_eq!(deployments["shortNames"], json!(["deploy"]));
    assert_eq!(deployments["scope"], "Namespaced");
    let subs: Vec<&str> = deployments["subresources"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|s| s["subresource"].as_str())
        .collect();
    assert_eq!(subs, ["scale", "status"]);
    let legacy = api.call("GET", "/apis/apps/v1", None).await?.json;
    assert_eq!(legacy["kind"], "APIResourceList");
    let names: Vec<&str> = legacy["resources"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|r| r["name"].as_str())
        .collect();
    assert!(
        names.contains(&"deployments") && names.contains(&"deployments/scale"),
        "{names:?}"
    );
    assert_eq!(
        api.call("GET", "/api", None).await?.json["versions"],
        json!(["v1"])
    );
    assert_eq!(
        api.call("GET", "/apis/batch", None).await?.json["preferredVersion"]["version"],
        "v1"
    );
    for path in ["/apis/none", "/apis/apps/v9", "/nothing", "/api/v9"] {
        assert_eq!(api.call("GET", path, None).await?.code, 404, "{path}");
    }
    api.close().await
}

/// Upstream: `test/e2e/apimachinery/openapiv3.go`.
#[tokio::test]
async fn openapi_documents_have_patch_paths() -> Result<()> {
    let api = TestApi::start().await?;
    let index = api.call("GET", "/openapi/v3", None).await?.json;
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let doc = api.call("GET", &url, None).await?;
    assert_eq!(doc.code, 200, "{}", doc.text);
    let patch =
        &doc.json["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(
        patch["x-kubernetes-group-version-kind"]["kind"],
        "Deployment"
    );
    let tag = doc.headers["etag"].to_str()?.to_owned();
    let same = api
        .send("GET", &url, &[("if-none-match", &tag)], Vec::new())
        .await?;
    assert_eq!((same.code, same.text.as_str()), (304, ""));
    let packed = api
        .send("GET", &url, &[("accept-encoding", "gzip")], Vec::new())
        .await?;
    assert_eq!(packed.headers["content-encoding"], "gzip");
    for (path, _) in index["paths"].as_object().into_iter().flatten() {
        assert_eq!(
            api.call("GET", &format!("/openapi/v3/{path}"), None)
                .await?
                .code,
            200,
            "{path}"
        );
    }
    api.close().await
}

/// Upstream: `test/e2e/apimachinery/health_handlers.go`.
#[tokio::test]
async fn health_version_and_metrics() -> Result<()> {
    let api = TestApi::start().await?;
    for path in ["/livez", "/readyz", "/healthz"] {
        let anyone = api
            .send_as(
                ("system:anonymous", &["system:unauthenticated"]),
                "GET",
                path,
                &[],
                Vec::new(),
            )
            .await?;
        assert_eq!((anyone.code, anyone.text.as_str()), (200, "ok"), "{path}");
    }
    let verbose = api.call("GET", "/readyz?verbose", None).await?.text;
    assert!(
        verbose.ends_with("readyz check passed\n") && verbose.contains("[+]ping ok"),
        "{verbose}"
    );
    let version = api.call("GET", "/version", None).await?.json;
    assert_eq!(
        (&version["major"], &version["minor"]),
        (&json!("1"), &json!("37"))
    );
    let metrics = api.call("GET", "/metrics", None).await?.text;
    assert!(
        metrics.contains("apiserver_request_total{verb=\"get\""),
        "{metrics}"
    );
    assert_eq!(api.call("POST", "/version", None).await?.code, 405);
    api.close().await
}

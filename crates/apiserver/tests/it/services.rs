//! Cluster IPs and NodePorts.

use super::SERVICES;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use testkit::TestApi;

fn service(name: &str, spec: &Value) -> Value {
    let mut v = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
    for (k, x) in spec.as_object().into_iter().flatten() {
        v["spec"][k] = x.clone();
    }
    v
}

/// Upstream: `pkg/registry/core/service/storage/storage_test.go`.
#[tokio::test]
async fn addresses_are_given_kept_and_given_back() -> Result<()> {
    let api = TestApi::start().await?;
    let own = api
        .call("GET", &format!("{SERVICES}/kubernetes"), None)
        .await?
        .json;
    // The first of a block of 65,536, which a site chooses.
    let first = own["spec"]["clusterIP"].as_str().unwrap_or_default();
    let block = first.strip_suffix("0.1").context("the first address")?;
    let a = api
        .call("POST", SERVICES, Some(&service("a", &json!({}))))
        .await?;
    assert_eq!(a.code, 201, "{}", a.text);
    let ip = a.json["spec"]["clusterIP"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(ip.starts_with(block), "{}", a.text);
    assert_eq!(a.json["spec"]["clusterIPs"], json!([ip]));
    let taken = api
        .call(
            "POST",
            SERVICES,
            Some(&service("b", &json!({"clusterIP": ip}))),
        )
        .await?;
    assert_eq!(taken.code, 422);
    assert!(
        taken.text.contains("provided IP is already allocated"),
        "{}",
        taken.text
    );
    let outside = api
        .call(
            "POST",
            SERVICES,
            Some(&service("b", &json!({"clusterIP": "10.1.2.3"}))),
        )
        .await?;
    assert!(
        outside.text.contains("not in the valid range"),
        "{}",
        outside.text
    );
    let headless = api
        .call(
            "POST",
            SERVICES,
            Some(&service("h", &json!({"clusterIP": "None"}))),
        )
        .await?;
    assert_eq!(
        headless.json["spec"]["clusterIP"], "None",
        "{}",
        headless.text
    );
    // An update that says nothing of the address keeps it.
    let put = api
        .call(
            "PUT",
            &format!("{SERVICES}/a"),
            Some(&service("a", &json!({"selector": {"x": "y"}}))),
        )
        .await?;
    assert_eq!(put.json["spec"]["clusterIP"], ip.as_str(), "{}", put.text);
    api.call("DELETE", &format!("{SERVICES}/a"), None).await?;
    let free = api
        .call(
            "POST",
            SERVICES,
            Some(&service("b", &json!({"clusterIP": ip}))),
        )
        .await?;
    assert_eq!(free.code, 201, "{}", free.text);
    // Also after a restart it is known who has what.
    let api = api.restart().await?;
    let taken = api
        .call(
            "POST",
            SERVICES,
            Some(&service("c", &json!({"clusterIP": ip}))),
        )
        .await?;
    assert_eq!(taken.code, 422, "{}", taken.text);
    api.close().await
}

/// Upstream: `pkg/registry/core/service/storage/storage_test.go`.
#[tokio::test]
async fn node_ports_are_given_kept_and_given_back() -> Result<()> {
    let api = TestApi::start().await?;
    let a = api
        .call(
            "POST",
            SERVICES,
            Some(&service("a", &json!({"type": "NodePort"}))),
        )
        .await?;
    let port = a.json["spec"]["ports"][0]["nodePort"].as_u64().unwrap_or(0);
    assert!((30000..=32767).contains(&port), "{}", a.text);
    let stated = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    let taken = api
        .call("POST", SERVICES, Some(&service("b", &stated)))
        .await?;
    assert!(
        taken.code == 422 && taken.text.contains("provided port is already allocated"),
        "{}",
        taken.text
    );
    let wrong = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]});
    let wrong = api
        .call("POST", SERVICES, Some(&service("b", &wrong)))
        .await?;
    assert!(wrong.text.contains("30000-32767"), "{}", wrong.text);
    let put = api
        .call(
            "PUT",
            &format!("{SERVICES}/a"),
            Some(&service(
                "a",
                &json!({"type": "NodePort", "selector": {"x": "y"}}),
            )),
        )
        .await?;
    assert_eq!(
        put.json["spec"]["ports"][0]["nodePort"], port,
        "{}",
        put.text
    );
    let mut plain = put.json.clone();
    plain["spec"]["type"] = "ClusterIP".into();
    let plain = api
        .call("PUT", &format!("{SERVICES}/a"), Some(&plain))
        .await?;
    assert_eq!(
        plain.json["spec"]["ports"][0].get("nodePort"),
        None,
        "{}",
        plain.text
    );
    let free = api
        .call("POST", SERVICES, Some(&service("b", &stated)))
        .await?;
    assert_eq!(free.code, 201, "{}", free.text);
    // A refused write gives back what it had taken.
    let both = json!({"type": "NodePort", "ports": [{"name": "a", "port": 80, "nodePort": 31999}, {"name": "b", "port": 81, "nodePort": port}]});
    assert_eq!(
        api.call("POST", SERVICES, Some(&service("c", &both)))
            .await?
            .code,
        422
    );
    let one = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 31999}]});
    assert_eq!(
        api.call("POST", SERVICES, Some(&service("c", &one)))
            .await?
            .code,
        201
    );
    api.close().await
}

//! Lists: selectors, pages, shapes.

use super::{CONFIG_MAPS, config_map};
use anyhow::Result;
use serde_json::{Value, json};
use std::io::Read as _;
use testkit::TestApi;

fn names(list: &Value) -> String {
    let items = list["items"].as_array().cloned().unwrap_or_default();
    items
        .iter()
        .filter_map(|i| i["metadata"]["name"].as_str())
        .collect::<Vec<_>>()
        .join(",")
}

async fn filled() -> Result<TestApi> {
    let api = TestApi::start().await?;
    for (name, label) in [("a", "x"), ("b", "y"), ("c", "x"), ("d", "y"), ("e", "x")] {
        let made = api
            .call("POST", CONFIG_MAPS, Some(&config_map(name, label)))
            .await?;
        assert_eq!(made.code, 201, "{}", made.text);
    }
    Ok(api)
}

/// Upstream: `test/integration/apiserver/apiserver_test.go`.
#[tokio::test]
async fn selectors_choose() -> Result<()> {
    let api = filled().await?;
    for (query, want) in [
        ("", "a,b,c,d,e"),
        ("labelSelector=l%3Dx", "a,c,e"),
        ("labelSelector=l%20in%20(y)", "b,d"),
        ("labelSelector=l!%3Dx", "b,d"),
        ("labelSelector=!l", ""),
        ("fieldSelector=metadata.name%3Db", "b"),
        ("fieldSelector=metadata.name!%3Db", "a,c,d,e"),
        ("fieldSelector=metadata.namespace%3Dother", ""),
        ("labelSelector=l%3Dx&limit=2", "a,c"),
    ] {
        let list = api
            .call("GET", &format!("{CONFIG_MAPS}?{query}"), None)
            .await?;
        assert_eq!(names(&list.json), want, "{query}: {}", list.text);
    }
    for bad in [
        "fieldSelector=data.k%3Dv",
        "labelSelector=%3D%3D",
        "resourceVersion=x",
        "limit=x",
        "continue=x",
    ] {
        let a = api
            .call("GET", &format!("{CONFIG_MAPS}?{bad}"), None)
            .await?;
        assert_eq!(a.code, 400, "{bad}: {}", a.text);
    }
    api.close().await
}

/// Upstream: `test/e2e/apimachinery/chunking.go`.
#[tokio::test]
async fn pages_are_of_one_revision() -> Result<()> {
    let api = filled().await?;
    let first = api
        .call("GET", &format!("{CONFIG_MAPS}?limit=2"), None)
        .await?
        .json;
    assert_eq!(names(&first), "a,b");
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    // What happens between pages is not seen.
    api.call("DELETE", &format!("{CONFIG_MAPS}/c"), None)
        .await?;
    api.call("POST", CONFIG_MAPS, Some(&config_map("cc", "x")))
        .await?;
    let token = first["metadata"]["continue"].as_str().unwrap_or_default();
    let second = api
        .call(
            "GET",
            &format!("{CONFIG_MAPS}?limit=2&continue={token}"),
            None,
        )
        .await?
        .json;
    assert_eq!(names(&second), "c,d");
    assert_eq!(
        second["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    let token = second["metadata"]["continue"].as_str().unwrap_or_default();
    let third = api
        .call(
            "GET",
            &format!("{CONFIG_MAPS}?limit=2&continue={token}"),
            None,
        )
        .await?
        .json;
    assert_eq!(names(&third), "e");
    assert_eq!(third["metadata"]["continue"], Value::Null);
    let revision = first["metadata"]["resourceVersion"]
        .as_str()
        .unwrap_or_default();
    let exact = format!("{CONFIG_MAPS}?resourceVersion={revision}&resourceVersionMatch=Exact");
    assert_eq!(
        names(&api.call("GET", &exact, None).await?.json),
        "a,b,c,d,e"
    );
    api.close().await
}

/// Upstream: `test/e2e/apimachinery/table_conversion.go`.
#[tokio::test]
async fn tables_and_metadata() -> Result<()> {
    let api = filled().await?;
    let table = (
        "accept",
        "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
    );
    let list = api
        .send("GET", CONFIG_MAPS, &[table], Vec::new())
        .await?
        .json;
    assert_eq!(list["kind"], "Table");
    assert_eq!(list["columnDefinitions"][0]["name"], "Name");
    assert_eq!(list["rows"][1]["cells"][0], "b");
    assert_eq!(list["rows"][1]["object"]["kind"], "PartialObjectMetadata");
    let columns = list["columnDefinitions"].as_array().map(Vec::len);
    assert_eq!(list["rows"][1]["cells"].as_array().map(Vec::len), columns);
    let one = api
        .send(
            "GET",
            &format!("{CONFIG_MAPS}/a?includeObject=Object"),
            &[table],
            Vec::new(),
        )
        .await?
        .json;
    assert_eq!(one["rows"][0]["object"]["data"], json!({"k": "v"}));
    let meta = (
        "accept",
        "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
    );
    let list = api
        .send("GET", CONFIG_MAPS, &[meta], Vec::new())
        .await?
        .json;
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert_eq!(list["items"][0]["metadata"]["labels"], json!({"l": "x"}));
    assert_eq!(list["items"][0].get("data"), None);
    api.close().await
}

/// Every kind can be listed, also as a Table.
#[tokio::test]
async fn every_kind_lists() -> Result<()> {
    let api = TestApi::start().await?;
    for (_, path) in super::listed() {
        for accept in [
            "application/json",
            "application/json;as=Table;v=v1;g=meta.k8s.io",
        ] {
            let a = api
                .send("GET", &path, &[("accept", accept)], Vec::new())
                .await?;
            assert_eq!(a.code, 200, "{path}: {}", a.text);
        }
    }
    api.close().await
}

/// Upstream: `StreamingCollectionEncodingToJSON`.
#[tokio::test]
async fn large_lists_come_in_pieces() -> Result<()> {
    let api = TestApi::start().await?;
    for i in 0..5 {
        let value = format!("{i}").repeat(100_000);
        let object = json!({"metadata": {"name": format!("large-{i}")}, "data": {"k": value}});
        let made = api.call("POST", CONFIG_MAPS, Some(&object)).await?;
        assert_eq!(made.code, 201, "{}", made.text);
    }
    let whole = api.call("GET", CONFIG_MAPS, None).await?;
    assert_eq!(
        names(&whole.json),
        "large-0,large-1,large-2,large-3,large-4"
    );
    for (i, item) in whole.json["items"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let value = item["data"]["k"].as_str().unwrap_or_default();
        assert_eq!(value, format!("{i}").repeat(100_000));
    }
    let packed = api
        .send(
            "GET",
            CONFIG_MAPS,
            &[("accept-encoding", "gzip")],
            Vec::new(),
        )
        .await?;
    assert_eq!(packed.headers["content-encoding"], "gzip");
    let mut text = String::new();
    flate2::read::GzDecoder::new(&packed.body[..]).read_to_string(&mut text)?;
    // The revision is that of whatever was written last.
    let unpacked: Value = serde_json::from_str(&text)?;
    assert!(unpacked["items"] == whole.json["items"], "another list");
    api.close().await
}

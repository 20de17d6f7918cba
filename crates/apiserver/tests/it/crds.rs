//! Custom resources: definitions take effect, and their objects are as good as built-in ones.

use super::kubectl::Kubectl;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use testkit::{Answer, TestApi};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const TABS: &str = "/apis/stable.example.com/v1/namespaces/default/crontabs";

/// A definition with a bit of everything.
pub(crate) fn crontabs() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "crontabs.stable.example.com"},
        "spec": {
            "group": "stable.example.com", "scope": "Namespaced",
            "names": {"plural": "crontabs", "singular": "crontab", "kind": "CronTab", "shortNames": ["ct"], "categories": ["all"]},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
                    "labelSelectorPath": ".status.labelSelector",
                }},
                "additionalPrinterColumns": [
                    {"name": "Spec", "type": "string", "jsonPath": ".spec.cronSpec"},
                    {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                ],
                "selectableFields": [{"jsonPath": ".spec.color"}],
                "schema": {"openAPIV3Schema": schema()},
            }],
        },
    })
}

fn schema() -> Value {
    json!({"type": "object", "required": ["spec"], "properties": {
        "spec": {"type": "object", "required": ["cronSpec"], "properties": {
            "cronSpec": {"type": "string", "pattern": "^(\\d+|\\*)(/\\d+)?(\\s+(\\d+|\\*)(/\\d+)?){4}$"},
            "image": {"type": "string"},
            "replicas": {"type": "integer", "minimum": 1, "maximum": 10, "default": 1},
            "color": {"type": "string"},
            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "required": ["name"], "properties": {
                    "name": {"type": "string"}, "port": {"x-kubernetes-int-or-string": true}}}},
        }},
        "status": {"type": "object", "properties": {
            "replicas": {"type": "integer"}, "labelSelector": {"type": "string"},
        }},
    }})
}

fn tab(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "stable.example.com/v1", "kind": "CronTab", "metadata": {"name": name}, "spec": spec})
}

fn good(name: &str) -> Value {
    tab(name, json!({"cronSpec": "* * * * */5"}))
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    object["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|c| c["type"] == kind)
        .unwrap_or(&Value::Null)
}

/// Waits until a watch of one definition shows what is asked for.
async fn until(api: &TestApi, name: &str, met: impl Fn(&Value) -> bool) -> Result<Value> {
    let path = format!("{CRDS}?watch=1&fieldSelector=metadata.name%3D{name}");
    let mut watch = api.watch(&path, &[]).await?;
    loop {
        let event = watch.next().await?.context("the watch has ended")?;
        if met(&event["object"]) {
            return Ok(event["object"].clone());
        }
    }
}

pub(crate) async fn define(api: &TestApi, definition: &Value) -> Result<Value> {
    let made = api.call("POST", CRDS, Some(definition)).await?;
    anyhow::ensure!(made.code == 201, "{}", made.text);
    let name = made.json["metadata"]["name"].as_str().unwrap_or_default();
    until(api, name, |d| {
        condition(d, "Established")["status"] == "True"
    })
    .await
}

async fn patch(api: &TestApi, path: &str, kind: &str, body: Value) -> Result<Answer> {
    let media = format!("application/{kind}");
    let headers = [("content-type", media.as_str())];
    api.send("PATCH", path, &headers, body.to_string().into_bytes())
        .await
}

/// Upstream: `staging/src/k8s.io/apiextensions-apiserver/test/integration/basic_test.go`.
#[tokio::test]
async fn a_definition_serves_its_objects() -> Result<()> {
    let api = TestApi::start().await?;
    let before = api.call("GET", TABS, None).await?;
    assert_eq!(before.code, 404, "{}", before.text);
    let definition = define(&api, &crontabs()).await?;
    assert_eq!(
        condition(&definition, "NamesAccepted")["reason"],
        "NoConflicts"
    );
    assert_eq!(
        condition(&definition, "Established")["reason"],
        "InitialNamesAccepted"
    );
    assert_eq!(definition["status"]["storedVersions"], json!(["v1"]));
    assert_eq!(
        definition["status"]["acceptedNames"]["shortNames"],
        json!(["ct"])
    );
    let made = api.call("POST", TABS, Some(&good("a"))).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    assert_eq!(made.json["spec"]["replicas"], 1);
    assert_eq!(made.json["metadata"]["generation"], 1);
    let list = api.call("GET", TABS, None).await?.json;
    assert_eq!(list["kind"], "CronTabList");
    assert_eq!(list["apiVersion"], "stable.example.com/v1");
    let all = api
        .call("GET", "/apis/stable.example.com/v1/crontabs", None)
        .await?
        .json;
    assert_eq!(all["items"][0]["metadata"]["name"], "a");
    // What is defined is there after a restart, and so are its objects.
    let api = api.restart().await?;
    let again = api.call("GET", &format!("{TABS}/a"), None).await?;
    assert_eq!(
        again.json["metadata"]["uid"], made.json["metadata"]["uid"],
        "{}",
        again.text
    );
    api.close().await
}

/// Upstream: `test/e2e/apimachinery/crd_publish_openapi.go`.
#[tokio::test]
async fn discovery_and_openapi_tell_of_custom_resources() -> Result<()> {
    let api = TestApi::start().await?;
    define(&api, &crontabs()).await?;
    let groups = api.call("GET", "/apis", None).await?.json;
    let group = groups["groups"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|g| g["name"] == "stable.example.com");
    assert_eq!(
        group.map(|g| &g["preferredVersion"]["version"]),
        Some(&json!("v1"))
    );
    let list = api
        .call("GET", "/apis/stable.example.com/v1", None)
        .await?
        .json;
    let names: Vec<&str> = list["resources"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|r| r["name"].as_str())
        .collect();
    assert_eq!(names, ["crontabs", "crontabs/scale", "crontabs/status"]);
    assert_eq!(list["resources"][0]["shortNames"], json!(["ct"]));
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let aggregated = api
        .send("GET", "/apis", &[("accept", accept)], Vec::new())
        .await?
        .json;
    let found = aggregated["items"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|g| g["metadata"]["name"] == "stable.example.com")
        .context("the group is discovered")?;
    assert_eq!(
        found["versions"][0]["resources"][0]["responseKind"]["kind"],
        "CronTab"
    );
    let index = api.call("GET", "/openapi/v3", None).await?.json;
    let path = index["paths"]["apis/stable.example.com/v1"]["serverRelativeURL"]
        .as_str()
        .context("a document is listed")?
        .to_owned();
    let document = api.call("GET", &path, None).await?.json;
    let kind = &document["components"]["schemas"]["com.example.stable.v1.CronTab"];
    assert_eq!(
        kind["properties"]["spec"]["properties"]["cronSpec"]["type"],
        "string"
    );
    assert_eq!(
        kind["x-kubernetes-group-version-kind"][0]["kind"],
        "CronTab"
    );
    let patch = &document["paths"]["/apis/stable.example.com/v1/namespaces/{namespace}/crontabs/{name}"]
        ["patch"];
    assert!(patch["parameters"].to_string().contains("fieldValidation"));
    openapi_v2_tells_too(&api).await?;
    // A changed schema is another document.
    let change = json!([{"op": "add", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/more", "value": {"type": "string"}}]);
    let changed = patch_crd(&api, "json-patch+json", change).await?;
    assert_eq!(changed.code, 200, "{}", changed.text);
    let index = api.call("GET", "/openapi/v3", None).await?.json;
    let now = &index["paths"]["apis/stable.example.com/v1"]["serverRelativeURL"];
    assert_ne!(now.as_str(), Some(&*path));
    api.close().await
}

/// The one document of version 2, as JSON and as Go clients read it; upstream:
/// `test/e2e/apimachinery/crd_publish_openapi.go`.
async fn openapi_v2_tells_too(api: &TestApi) -> Result<()> {
    let get = async |accept: &str, more: (&str, &str)| {
        let headers = [("accept", accept), more];
        api.send("GET", "/openapi/v2", &headers, Vec::new()).await
    };
    let plain = ("accept-encoding", "identity");
    let document = get("application/json", plain).await?;
    assert_eq!(document.code, 200);
    assert_eq!(document.headers["content-type"], "application/json");
    let of = |name: &str| document.json["definitions"][name].clone();
    let spec = &of("com.example.stable.v1.CronTab")["properties"]["spec"];
    assert_eq!(spec["properties"]["cronSpec"]["type"], "string");
    assert_eq!(of("io.k8s.api.core.v1.Pod")["type"], "object");
    let tag = document.headers["etag"].to_str()?;
    let again = get("application/json", ("if-none-match", tag)).await?;
    assert_eq!((again.code, &*again.text), (304, ""));
    let go = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let messages = get(go, plain).await?;
    assert_eq!(
        messages.headers["content-type"],
        "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
    );
    assert_eq!(get("text/html", plain).await?.code, 406);
    let kubectl = Kubectl::of(api)?;
    let told = kubectl.run(
        true,
        "explain crontabs.spec --output=plaintext-openapiv2",
        "",
    );
    let told = told.await?;
    assert!(told.contains("cronSpec\t<string>"), "{told}");
    let told = kubectl.run(
        true,
        "explain deployment.spec.strategy.rollingUpdate --output=plaintext-openapiv2 --recursive",
        "",
    );
    let told = told.await?;
    assert!(told.contains("maxSurge\t<string>"), "{told}");
    Ok(())
}

async fn patch_crd(api: &TestApi, kind: &str, body: Value) -> Result<Answer> {
    patch(
        api,
        &format!("{CRDS}/crontabs.stable.example.com"),
        kind,
        body,
    )
    .await
}

/// Upstream: `staging/src/k8s.io/apiextensions-apiserver/test/integration/validation_test.go`.
#[tokio::test]
async fn wrong_objects_are_refused_in_upstream_s_words() -> Result<()> {
    let api = TestApi::start().await?;
    define(&api, &crontabs()).await?;
    let wrong = tab("a", json!({"cronSpec": "x", "replicas": 15, "image": 5}));
    let refused = api.call("POST", TABS, Some(&wrong)).await?;
    assert_eq!(refused.code, 422, "{}", refused.text);
    assert_eq!(
        refused.json["message"],
        "CronTab.stable.example.com \"a\" is invalid: [spec.cronSpec: Invalid value: \"x\": spec.cronSpec in body should match '^(\\d+|\\*)(/\\d+)?(\\s+(\\d+|\\*)(/\\d+)?){4}$', spec.image: Invalid value: \"integer\": spec.image in body must be of type string: \"integer\", spec.replicas: Invalid value: 15: spec.replicas in body should be less than or equal to 10]"
    );
    assert_eq!(refused.json["details"]["causes"][1]["field"], "spec.image");
    let none = api.call("POST", TABS, Some(&tab("a", json!({})))).await?;
    assert_eq!(
        none.json["message"],
        "CronTab.stable.example.com \"a\" is invalid: spec.cronSpec: Required value"
    );
    // Unknown fields: warned of, refused when strict, and never stored.
    let more = tab("a", json!({"cronSpec": "* * * * *", "unknown": 1}));
    let strict = api
        .call(
            "POST",
            &format!("{TABS}?fieldValidation=Strict"),
            Some(&more),
        )
        .await?;
    assert_eq!(strict.code, 400);
    assert!(
        strict
            .text
            .contains("strict decoding error: unknown field \\\"spec.unknown\\\""),
        "{}",
        strict.text
    );
    let warned = api.call("POST", TABS, Some(&more)).await?;
    assert_eq!(warned.code, 201);
    assert_eq!(
        warned
            .headers
            .get("warning")
            .map(|v| v.to_str().unwrap_or_default()),
        Some("299 - \"unknown field \\\"spec.unknown\\\"\"")
    );
    assert!(warned.json["spec"].get("unknown").is_none());
    // Names of objects are checked as those of built-in kinds.
    let named = api.call("POST", TABS, Some(&good("A"))).await?;
    assert_eq!(named.code, 422, "{}", named.text);
    let protobuf = [("content-type", "application/vnd.kubernetes.protobuf")];
    let unread = api.send("POST", TABS, &protobuf, b"k8s\0".to_vec()).await?;
    assert_eq!(unread.code, 415, "{}", unread.text);
    api.close().await
}

/// Upstream: `staging/src/k8s.io/apiextensions-apiserver/test/integration/validation_test.go`.
#[tokio::test]
async fn wrong_definitions_are_refused() -> Result<()> {
    let api = TestApi::start().await?;
    let mut wrong = crontabs();
    wrong["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = json!({});
    let refused = api.call("POST", CRDS, Some(&wrong)).await?;
    assert_eq!(refused.code, 422);
    assert_eq!(
        refused.json["details"]["causes"][0]["field"],
        "spec.validation.openAPIV3Schema.properties[spec].type"
    );
    let mut webhook = crontabs();
    webhook["spec"]["conversion"] = json!({"strategy": "Webhook"});
    let mut second = webhook["spec"]["versions"][0].clone();
    second["name"] = "v2".into();
    second["storage"] = false.into();
    webhook["spec"]["versions"]
        .as_array_mut()
        .context("a list")?
        .push(second);
    let refused = api.call("POST", CRDS, Some(&webhook)).await?;
    assert_eq!(refused.code, 422, "{}", refused.text);
    assert_eq!(
        refused.json["details"]["causes"][0]["field"],
        "spec.conversion.webhook.clientConfig"
    );
    api.close().await
}

/// Upstream: `staging/src/k8s.io/apiextensions-apiserver/test/integration/subresources_test.go`.
#[tokio::test]
async fn status_and_spec_are_apart_and_generation_counts_specs() -> Result<()> {
    let api = TestApi::start().await?;
    define(&api, &crontabs()).await?;
    let mut first = good("a");
    first["status"] = json!({"replicas": 9});
    let made = api.call("POST", TABS, Some(&first)).await?.json;
    assert!(made.get("status").is_none(), "{made}");
    let one = format!("{TABS}/a");
    let both = json!({"spec": {"replicas": 2}, "status": {"replicas": 2}});
    let spec = patch(&api, &one, "merge-patch+json", both.clone())
        .await?
        .json;
    assert_eq!(
        (&spec["spec"]["replicas"], spec.get("status")),
        (&json!(2), None)
    );
    assert_eq!(spec["metadata"]["generation"], 2);
    let path = format!("{one}/status");
    let status =
        json!({"spec": {"replicas": 5}, "status": {"replicas": 2, "labelSelector": "a=b"}});
    let status = patch(&api, &path, "merge-patch+json", status).await?.json;
    assert_eq!(status["spec"]["replicas"], 2);
    assert_eq!(status["status"]["replicas"], 2);
    assert_eq!(status["metadata"]["generation"], 2);
    let wrong = json!({"status": {"replicas": "two"}});
    let wrong = patch(&api, &path, "merge-patch+json", wrong).await?;
    assert_eq!(wrong.code, 422, "{}", wrong.text);
    let labels = json!({"metadata": {"labels": {"x": "y"}}});
    let labelled = patch(&api, &one, "merge-patch+json", labels).await?.json;
    assert_eq!(labelled["metadata"]["generation"], 2);
    // Strategic merge needs strategies, which definitions do not state.
    let smp = patch(&api, &one, "strategic-merge-patch+json", both).await?;
    assert_eq!(smp.code, 415, "{}", smp.text);
    let scale = api.call("GET", &format!("{one}/scale"), None).await?.json;
    assert_eq!(
        (&scale["spec"]["replicas"], &scale["status"]["selector"]),
        (&json!(2), &json!("a=b"))
    );
    let scaled = patch(
        &api,
        &format!("{one}/scale"),
        "merge-patch+json",
        json!({"spec": {"replicas": 3}}),
    )
    .await?;
    assert_eq!(scaled.json["spec"]["replicas"], 3, "{}", scaled.text);
    let too_many = patch(
        &api,
        &format!("{one}/scale"),
        "merge-patch+json",
        json!({"spec": {"replicas": 99}}),
    )
    .await?;
    assert_eq!(too_many.code, 422, "{}", too_many.text);
    let stale = api.call("PUT", &one, Some(&good("a"))).await?;
    assert_eq!(
        stale.code, 422,
        "a PUT states a resourceVersion: {}",
        stale.text
    );
    api.close().await
}

/// Upstream: `test/integration/apiserver/apply/apply_crd_test.go`.
#[tokio::test]
async fn server_side_apply_merges_keyed_lists() -> Result<()> {
    let api = TestApi::start().await?;
    define(&api, &crontabs()).await?;
    let one = format!("{TABS}/a");
    let apply = async |manager: &str, spec: Value, force: bool| {
        let path = format!("{one}?fieldManager={manager}&force={force}");
        patch(&api, &path, "apply-patch+yaml", tab("a", spec)).await
    };
    let first = apply(
        "one",
        json!({"cronSpec": "* * * * *", "ports": [{"name": "web", "port": 80}]}),
        false,
    )
    .await?;
    assert_eq!(first.code, 201, "{}", first.text);
    let second = apply(
        "two",
        json!({"ports": [{"name": "metrics", "port": "m"}]}),
        false,
    )
    .await?;
    assert_eq!(second.code, 200, "{}", second.text);
    assert_eq!(
        second.json["spec"]["ports"].as_array().map(Vec::len),
        Some(2)
    );
    let conflict = apply("two", json!({"cronSpec": "1 * * * *"}), false).await?;
    assert_eq!(conflict.code, 409, "{}", conflict.text);
    let forced = apply("two", json!({"cronSpec": "1 * * * *"}), true).await?;
    assert_eq!(
        forced.json["spec"]["ports"],
        json!([{"name": "web", "port": 80}]),
        "{}",
        forced.text
    );
    let wrong = apply("two", json!({"cronSpec": "no"}), true).await?;
    assert_eq!(wrong.code, 422, "{}", wrong.text);
    api.close().await
}

/// Upstream: `staging/src/k8s.io/apiextensions-apiserver/test/integration/fieldselector_test.go`.
#[tokio::test]
async fn tables_and_selectable_fields() -> Result<()> {
    let api = TestApi::start().await?;
    define(&api, &crontabs()).await?;
    for (name, color) in [("a", "red"), ("b", "blue")] {
        let tab = tab(name, json!({"cronSpec": "* * * * *", "color": color}));
        api.call("POST", TABS, Some(&tab)).await?;
    }
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = api.send("GET", TABS, &accept, Vec::new()).await?.json;
    let names: Vec<&Value> = table["columnDefinitions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|c| &c["name"])
        .collect();
    assert_eq!(names, ["Name", "Spec", "Replicas", "Age"]);
    let cells = &table["rows"][0]["cells"];
    assert_eq!(
        (&cells[0], &cells[1], &cells[2]),
        (&json!("a"), &json!("* * * * *"), &json!(1))
    );
    let blue = api
        .call(
            "GET",
            &format!("{TABS}?fieldSelector=spec.color%3Dblue"),
            None,
        )
        .await?
        .json;
    assert_eq!(blue["items"][0]["metadata"]["name"], "b");
    assert_eq!(blue["items"].as_array().map(Vec::len), Some(1));
    let image = api
        .call("GET", &format!("{TABS}?fieldSelector=spec.image%3Dx"), None)
        .await?;
    assert_eq!(image.code, 400);
    assert!(
        image.text.contains("field label not supported: spec.image"),
        "{}",
        image.text
    );
    api.close().await
}

/// Upstream: `staging/src/k8s.io/apiextensions-apiserver/test/integration/defaulting_test.go`.
#[tokio::test]
async fn versions_convert_and_old_objects_are_defaulted() -> Result<()> {
    let api = TestApi::start().await?;
    define(&api, &crontabs()).await?;
    api.call("POST", TABS, Some(&good("a"))).await?;
    // A second version becomes the stored one, with a field that has a default.
    let mut two = crontabs()["spec"]["versions"][0].clone();
    two["name"] = "v2".into();
    two["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["tz"] =
        json!({"type": "string", "default": "UTC"});
    let change = json!([
        {"op": "replace", "path": "/spec/versions/0/storage", "value": false},
        {"op": "replace", "path": "/spec/versions/0/deprecated", "value": true},
        {"op": "add", "path": "/spec/versions/-", "value": two},
    ]);
    let change = {
        let mut change = change;
        change[1]["op"] = "add".into();
        change
    };
    let changed = patch_crd(&api, "json-patch+json", change).await?;
    assert_eq!(changed.code, 200, "{}", changed.text);
    assert_eq!(
        changed.json["status"]["storedVersions"],
        json!(["v1", "v2"])
    );
    let v2 = "/apis/stable.example.com/v2/namespaces/default/crontabs";
    let seen = api.call("GET", &format!("{v2}/a"), None).await?;
    assert_eq!(
        seen.json["apiVersion"], "stable.example.com/v2",
        "{}",
        seen.text
    );
    assert_eq!(seen.json["spec"]["tz"], "UTC");
    let old = api.call("GET", &format!("{TABS}/a"), None).await?;
    assert_eq!(old.json["apiVersion"], "stable.example.com/v1");
    assert!(old.json["spec"].get("tz").is_none(), "{}", old.text);
    assert_eq!(
        old.headers
            .get("warning")
            .map(|v| v.to_str().unwrap_or_default()),
        Some("299 - \"stable.example.com/v1 CronTab is deprecated\"")
    );
    let list = api.call("GET", v2, None).await?.json;
    assert_eq!(list["items"][0]["spec"]["tz"], "UTC");
    let mut written = old.json.clone();
    written["spec"]["image"] = "i".into();
    let put = api
        .call("PUT", &format!("{TABS}/a"), Some(&written))
        .await?;
    assert_eq!(put.code, 200, "{}", put.text);
    let seen = api.call("GET", &format!("{v2}/a"), None).await?.json;
    assert_eq!(
        (&seen["spec"]["image"], &seen["apiVersion"]),
        (&json!("i"), &json!("stable.example.com/v2"))
    );
    // The version that objects are still stored in must stay.
    let gone = json!([{"op": "remove", "path": "/spec/versions/0"}]);
    let refused = patch_crd(&api, "json-patch+json", gone).await?;
    assert_eq!(refused.code, 422);
    assert!(
        refused.text.contains("must appear in spec.versions"),
        "{}",
        refused.text
    );
    // One that is not served is not there.
    let unserved = json!([{"op": "replace", "path": "/spec/versions/0/served", "value": false}]);
    patch_crd(&api, "json-patch+json", unserved).await?;
    assert_eq!(api.call("GET", TABS, None).await?.code, 404);
    api.close().await
}

/// Upstream: `staging/src/k8s.io/apiextensions-apiserver/test/integration/change_test.go`.
#[tokio::test]
async fn names_belong_to_one_definition() -> Result<()> {
    let api = TestApi::start().await?;
    define(&api, &crontabs()).await?;
    let mut other = crontabs();
    other["metadata"]["name"] = "others.stable.example.com".into();
    other["spec"]["names"] =
        json!({"plural": "others", "singular": "other", "kind": "Other", "shortNames": ["ct"]});
    let made = api.call("POST", CRDS, Some(&other)).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    let refused = until(&api, "others.stable.example.com", |d| {
        condition(d, "NamesAccepted")["status"] == "False"
    })
    .await?;
    assert_eq!(
        condition(&refused, "NamesAccepted")["reason"],
        "ShortNamesConflict"
    );
    assert_eq!(
        condition(&refused, "NamesAccepted")["message"],
        "\"ct\" is already in use"
    );
    assert_eq!(condition(&refused, "Established")["reason"], "NotAccepted");
    let path = "/apis/stable.example.com/v1/others";
    assert_eq!(api.call("GET", path, None).await?.code, 404);
    // When the first goes, its names are free.
    api.call(
        "DELETE",
        &format!("{CRDS}/crontabs.stable.example.com"),
        None,
    )
    .await?;
    until(&api, "others.stable.example.com", |d| {
        condition(d, "Established")["status"] == "True"
    })
    .await?;
    assert_eq!(api.call("GET", path, None).await?.code, 200);
    api.close().await
}

/// Upstream: `staging/src/k8s.io/apiextensions-apiserver/test/integration/finalization_test.go`.
#[tokio::test]
async fn a_definition_takes_its_objects_and_watches_along() -> Result<()> {
    let api = TestApi::start().await?;
    define(&api, &crontabs()).await?;
    let mut held = good("held");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    api.call("POST", TABS, Some(&held)).await?;
    api.call("POST", TABS, Some(&good("plain"))).await?;
    let mut watch = api.watch(&format!("{TABS}?watch=1"), &[]).await?;
    assert_eq!(watch.brief().await?, "ADDED held");
    assert_eq!(watch.brief().await?, "ADDED plain");
    let one = format!("{CRDS}/crontabs.stable.example.com");
    let begun = api.call("DELETE", &one, None).await?;
    assert_eq!(begun.code, 200, "{}", begun.text);
    assert_eq!(
        condition(&begun.json, "Terminating")["reason"],
        "InstanceDeletionPending"
    );
    assert_eq!(
        begun.json["metadata"]["finalizers"],
        json!(["customresourcecleanup.apiextensions.k8s.io"])
    );
    let late = api.call("POST", TABS, Some(&good("late"))).await?;
    assert_eq!(late.code, 405, "{}", late.text);
    let mut seen = vec![watch.brief().await?, watch.brief().await?];
    seen.sort();
    assert_eq!(seen, ["DELETED plain", "MODIFIED held"]);
    // The last object goes, then the definition, then the watch.
    let free = json!({"metadata": {"finalizers": null}});
    patch(&api, &format!("{TABS}/held"), "merge-patch+json", free).await?;
    assert_eq!(watch.brief().await?, "DELETED held");
    assert_eq!(watch.next().await?, None);
    assert_eq!(api.call("GET", TABS, None).await?.code, 404);
    assert_eq!(api.call("GET", &one, None).await?.code, 404);
    // Defined anew, it is empty.
    define(&api, &crontabs()).await?;
    let list = api.call("GET", TABS, None).await?.json;
    assert_eq!(list["items"], json!([]));
    api.close().await
}

/// Upstream: `staging/src/k8s.io/apiextensions-apiserver/test/integration/basic_test.go`.
#[tokio::test]
async fn cluster_wide_resources_with_names_of_built_in_ones() -> Result<()> {
    let api = TestApi::start().await?;
    let definition = json!({
        "metadata": {"name": "services.example.com"},
        "spec": {"group": "example.com", "scope": "Cluster",
            "names": {"plural": "services", "singular": "service", "kind": "Service"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]},
    });
    define(&api, &definition).await?;
    let path = "/apis/example.com/v1/services";
    let one = json!({"apiVersion": "example.com/v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"free": [1]}});
    let made = api.call("POST", path, Some(&one)).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    // No address is given out, and a spec may be anything.
    assert_eq!(made.json["spec"], json!({"free": [1]}));
    let gone = api.call("DELETE", &format!("{path}/s"), None).await?;
    assert_eq!(gone.json["kind"], "Status", "{}", gone.text);
    // Without a status subresource the status is a field like others.
    let mut with = one.clone();
    with["status"] = json!({"a": 1});
    let made = api.call("POST", path, Some(&with)).await?.json;
    assert_eq!(made["status"], json!({"a": 1}));
    let more = patch(
        &api,
        &format!("{path}/s"),
        "merge-patch+json",
        json!({"status": {"a": 2}}),
    )
    .await?
    .json;
    assert_eq!(more["metadata"]["generation"], 2);
    api.close().await
}

/// Upstream: `test/integration/auth/rbac_test.go`.
#[tokio::test]
async fn roles_hold_for_custom_resources() -> Result<()> {
    let api = TestApi::start().await?;
    define(&api, &crontabs()).await?;
    api.call("POST", TABS, Some(&good("a"))).await?;
    let role = json!({"metadata": {"name": "reader"}, "rules": [{"apiGroups": ["stable.example.com"], "resources": ["crontabs"], "verbs": ["get"]}]});
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    api.call("POST", &format!("{rbac}/roles"), Some(&role))
        .await?;
    let binding = json!({"metadata": {"name": "reader"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}]});
    api.call("POST", &format!("{rbac}/rolebindings"), Some(&binding))
        .await?;
    let jane = [("impersonate-user", "jane")];
    let read = api
        .send("GET", &format!("{TABS}/a"), &jane, Vec::new())
        .await?;
    assert_eq!(read.code, 200, "{}", read.text);
    let list = api.send("GET", TABS, &jane, Vec::new()).await?;
    assert_eq!(list.code, 403, "{}", list.text);
    api.close().await
}

/// Documentation of CustomResourceDefinitions, "Validation rules".
/// Upstream: `test/integration/apiserver/crd_validation_expressions_test.go`.
#[tokio::test]
async fn rules_hold_objects_and_are_held_themselves() -> Result<()> {
    let api = TestApi::start().await?;
    let with_rule = |rule: &str| {
        let mut definition = crontabs();
        let spec = &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
            ["spec"];
        spec["x-kubernetes-validations"] = json!([
            {"rule": rule},
            {"rule": "self.cronSpec == oldSelf.cronSpec", "message": "the schedule stays"},
        ]);
        definition
    };
    let refused = api
        .call("POST", CRDS, Some(&with_rule("self.nope > 1")))
        .await?;
    assert_eq!(refused.code, 422, "{}", refused.text);
    let message = refused.json["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("properties[spec].x-kubernetes-validations[0].rule: Invalid value: apiextensions.ValidationRule{Rule:\"self.nope > 1\""),
        "{message}"
    );
    assert!(
        message.contains("compilation failed: ERROR: <input>:1:5: undefined field 'nope'"),
        "{message}"
    );
    define(&api, &with_rule("self.replicas % 2 == 1")).await?;
    let even = api
        .call(
            "POST",
            TABS,
            Some(&tab("a", json!({"cronSpec": "* * * * *", "replicas": 2}))),
        )
        .await?;
    assert_eq!(even.code, 422, "{}", even.text);
    assert_eq!(
        even.json["message"],
        "CronTab.stable.example.com \"a\" is invalid: spec: Invalid value: \"object\": failed rule: self.replicas % 2 == 1"
    );
    // The default is there before the rule is asked.
    let made = api.call("POST", TABS, Some(&good("a"))).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    let path = format!("{TABS}/a");
    let changed = patch(
        &api,
        &path,
        "merge-patch+json",
        json!({"spec": {"cronSpec": "1 * * * *"}}),
    )
    .await?;
    assert_eq!(changed.code, 422, "{}", changed.text);
    assert!(
        changed.text.contains("the schedule stays"),
        "{}",
        changed.text
    );
    let grown = patch(
        &api,
        &path,
        "merge-patch+json",
        json!({"spec": {"replicas": 3}}),
    )
    .await?;
    assert_eq!(grown.code, 200, "{}", grown.text);
    api.close().await
}

//! What clients look for in a document.

use super::*;
use expect_test::expect;

fn apps() -> Value {
    let docs = Schema::descriptions();
    v3_document_described(
        Schema::builtin(),
        &docs,
        "apps",
        "v1",
        &[ResourcePaths {
            plural: "deployments",
            kind: "Deployment",
            namespaced: true,
            verbs: &[
                "create",
                "delete",
                "deletecollection",
                "get",
                "list",
                "patch",
                "update",
                "watch",
            ],
            subresources: &[
                ("scale", ("autoscaling", "v1", "Scale")),
                ("status", ("apps", "v1", "Deployment")),
            ],
        }],
    )
}

#[test]
fn paths_and_methods() {
    let doc = apps();
    let mut lines = String::new();
    for (path, item) in doc["paths"].as_object().unwrap() {
        for (method, op) in item.as_object().unwrap() {
            if method != "parameters" {
                lines += &format!(
                    "{method} {path} {} {} {}\n",
                    op["x-kubernetes-action"],
                    op["operationId"],
                    op["x-kubernetes-group-version-kind"]["kind"]
                );
            }
        }
    }
    expect![[r#"
        get /apis/apps/v1/deployments "list" "listAppsV1DeploymentForAllNamespaces" "Deployment"
        delete /apis/apps/v1/namespaces/{namespace}/deployments "deletecollection" "deleteCollectionAppsV1NamespacedDeployment" "Deployment"
        get /apis/apps/v1/namespaces/{namespace}/deployments "list" "listAppsV1NamespacedDeployment" "Deployment"
        post /apis/apps/v1/namespaces/{namespace}/deployments "post" "createAppsV1NamespacedDeployment" "Deployment"
        delete /apis/apps/v1/namespaces/{namespace}/deployments/{name} "delete" "deleteAppsV1NamespacedDeployment" "Deployment"
        get /apis/apps/v1/namespaces/{namespace}/deployments/{name} "get" "readAppsV1NamespacedDeployment" "Deployment"
        patch /apis/apps/v1/namespaces/{namespace}/deployments/{name} "patch" "patchAppsV1NamespacedDeployment" "Deployment"
        put /apis/apps/v1/namespaces/{namespace}/deployments/{name} "put" "replaceAppsV1NamespacedDeployment" "Deployment"
        get /apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale "get" "readAppsV1NamespacedDeploymentScale" "Scale"
        patch /apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale "patch" "patchAppsV1NamespacedDeploymentScale" "Scale"
        put /apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale "put" "replaceAppsV1NamespacedDeploymentScale" "Scale"
        get /apis/apps/v1/namespaces/{namespace}/deployments/{name}/status "get" "readAppsV1NamespacedDeploymentStatus" "Deployment"
        patch /apis/apps/v1/namespaces/{namespace}/deployments/{name}/status "patch" "patchAppsV1NamespacedDeploymentStatus" "Deployment"
        put /apis/apps/v1/namespaces/{namespace}/deployments/{name}/status "put" "replaceAppsV1NamespacedDeploymentStatus" "Deployment"
    "#]].assert_eq(&lines);
}

#[test]
fn kubectl_finds_field_validation_in_patch() {
    let doc = apps();
    let item = &doc["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
    let names: Vec<&str> = item["patch"]["parameters"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|p| p["name"].as_str())
        .collect();
    assert_eq!(
        names,
        [
            "pretty",
            "dryRun",
            "fieldManager",
            "fieldValidation",
            "force"
        ]
    );
}

#[test]
fn component_schemas() {
    let doc = apps();
    let schemas = &doc["components"]["schemas"];
    let mut deployment = schemas["io.k8s.api.apps.v1.Deployment"].clone();
    for property in deployment["properties"]
        .as_object_mut()
        .unwrap()
        .values_mut()
    {
        property["description"].take();
    }
    expect![[r##"
        {
          "description": "Deployment enables declarative updates for Pods and ReplicaSets.",
          "properties": {
            "apiVersion": {
              "description": null,
              "type": "string"
            },
            "kind": {
              "description": null,
              "type": "string"
            },
            "metadata": {
              "allOf": [
                {
                  "$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
                }
              ],
              "description": null
            },
            "spec": {
              "allOf": [
                {
                  "$ref": "#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec"
                }
              ],
              "description": null
            },
            "status": {
              "allOf": [
                {
                  "$ref": "#/components/schemas/io.k8s.api.apps.v1.DeploymentStatus"
                }
              ],
              "description": null
            }
          },
          "required": [
            "spec"
          ],
          "type": "object",
          "x-kubernetes-group-version-kind": [
            {
              "group": "apps",
              "kind": "Deployment",
              "version": "v1"
            }
          ]
        }
    "##]]
    .assert_eq(&format!("{deployment:#}\n"));
    let mut spec = schemas["io.k8s.api.core.v1.PodSpec"]["properties"].clone();
    for name in ["containers", "volumes", "nodeSelector"] {
        spec[name]["description"].take();
    }
    expect![[r##"
        {"description":null,"items":{"$ref":"#/components/schemas/io.k8s.api.core.v1.Container"},"type":"array","x-kubernetes-list-map-keys":["name"],"x-kubernetes-list-type":"map","x-kubernetes-patch-merge-key":"name","x-kubernetes-patch-strategy":"merge"}
        {"description":null,"items":{"$ref":"#/components/schemas/io.k8s.api.core.v1.Volume"},"type":"array","x-kubernetes-list-map-keys":["name"],"x-kubernetes-list-type":"map","x-kubernetes-patch-merge-key":"name","x-kubernetes-patch-strategy":"merge,retainKeys"}
        {"additionalProperties":{"type":"string"},"description":null,"type":"object","x-kubernetes-map-type":"atomic"}"##]].assert_eq(&format!(
        "{}\n{}\n{}",
        spec["containers"], spec["volumes"], spec["nodeSelector"]
    ));
}

/// Every reference leads to a schema, for the largest group too.
#[test]
fn references_are_whole() {
    fn refs<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
        match value {
            Value::Object(o) => {
                for (k, v) in o {
                    match v {
                        Value::String(s) if k == "$ref" => out.push(s),
                        v => refs(v, out),
                    }
                }
            }
            Value::Array(a) => a.iter().for_each(|v| refs(v, out)),
            _ => {}
        }
    }
    let resource = |plural, kind| ResourcePaths {
        plural,
        kind,
        namespaced: true,
        verbs: &["create", "get", "list", "patch"],
        subresources: &[
            ("log", ("", "v1", "Pod")),
            ("eviction", ("policy", "v1", "Eviction")),
        ],
    };
    let core = [resource("pods", "Pod"), resource("services", "Service")];
    let extensions = [resource(
        "customresourcedefinitions",
        "CustomResourceDefinition",
    )];
    for (group, resources) in [("", &core[..]), ("apiextensions.k8s.io", &extensions)] {
        let doc = v3_document(Schema::builtin(), group, "v1", resources);
        let mut found = Vec::new();
        refs(&doc, &mut found);
        assert!(found.len() > 10);
        for reference in found {
            let name = reference.strip_prefix("#/components/schemas/").unwrap();
            assert!(
                doc["components"]["schemas"][name].is_object(),
                "{reference}"
            );
        }
        assert!(!doc.to_string().contains(":null"));
    }
}

#[test]
fn custom_resources_take_no_strategic_patches() {
    let resource = |plural, kind| ResourcePaths {
        plural,
        kind,
        namespaced: true,
        verbs: &["get", "patch"],
        subresources: &[("status", ("fair.example", "v1", "Ticket"))],
    };
    let custom = super::CustomKind {
        kind: "Ticket".to_owned(),
        list_kind: "TicketList".to_owned(),
        name: "example.fair.v1.Ticket".to_owned(),
        schema: json!({"type": "object"}),
    };
    let doc = super::v3_document_custom(
        Schema::builtin(),
        &Schema::descriptions(),
        "fair.example",
        "v1",
        &[resource("tickets", "Ticket")],
        vec![custom],
    );
    let types = |path: &str| -> Vec<String> {
        let content = &doc["paths"][path]["patch"]["requestBody"]["content"];
        let content = content.as_object().expect("content");
        content.keys().cloned().collect()
    };
    let item = "/apis/fair.example/v1/namespaces/{namespace}/tickets/{name}";
    for path in [item.to_owned(), format!("{item}/status")] {
        assert_eq!(
            types(&path),
            [
                "application/apply-patch+yaml",
                "application/json-patch+json",
                "application/merge-patch+json"
            ]
        );
    }
}

fn v2(format: v2::Format) -> Vec<u8> {
    let mut document = v2::Document::new(format);
    document.add(apps());
    document.add(v3_document(Schema::builtin(), "", "v1", &[]));
    document.finish("v1.37.0")
}

/// Every schema in a document, with where it stands.
fn each_object(value: &Value, at: &str, see: &mut dyn FnMut(&str, &Map<String, Value>)) {
    match value {
        Value::Object(object) => {
            see(at, object);
            for (key, inner) in object {
                // What these hold is data.
                if key != "default" && key != "enum" {
                    each_object(inner, &format!("{at}/{key}"), see);
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|v| each_object(v, at, see)),
        _ => {}
    }
}

#[test]
fn version_2_says_nothing_that_it_has_no_words_for() {
    let document: Value = serde_json::from_slice(&v2(v2::Format::Json)).unwrap();
    assert_eq!(document["swagger"], "2.0");
    assert_eq!(document["info"]["version"], "v1.37.0");
    let definitions = document["definitions"].as_object().unwrap();
    assert!(definitions.len() > 50, "{}", definitions.len());
    let mut references = 0;
    each_object(&document, "", &mut |at, object| {
        // A property may have any name.
        if !at.ends_with("/properties") {
            for word in [
                "oneOf",
                "anyOf",
                "not",
                "nullable",
                "requestBody",
                "content",
            ] {
                assert!(!object.contains_key(word), "{word} in {at}");
            }
        }
        if let Some(Value::String(reference)) = object.get("$ref") {
            let name = reference.strip_prefix("#/definitions/").unwrap();
            assert!(definitions.contains_key(name), "{reference} in {at}");
            references += 1;
        }
    });
    assert!(references > 100, "{references}");
    let item = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
    assert_eq!(
        item["parameters"][0],
        json!({"in": "path", "name": "namespace", "required": true,
            "type": "string", "uniqueItems": true})
    );
    let patch = &item["patch"];
    let body = &patch["parameters"].as_array().unwrap().last().unwrap();
    assert_eq!(
        **body,
        json!({"in": "body", "name": "body", "required": true,
            "schema": {"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.Patch"}})
    );
    assert_eq!(patch["consumes"].as_array().unwrap().len(), 4);
    assert_eq!(
        patch["responses"]["200"]["schema"]["$ref"],
        "#/definitions/io.k8s.api.apps.v1.Deployment"
    );
    let ty = |name: &str| {
        let of = &definitions[name];
        (of["type"].clone(), of["format"].clone())
    };
    assert_eq!(
        ty("io.k8s.apimachinery.pkg.util.intstr.IntOrString"),
        ("string".into(), "int-or-string".into())
    );
    assert_eq!(
        ty("io.k8s.apimachinery.pkg.api.resource.Quantity"),
        ("string".into(), Value::Null)
    );
}

#[test]
fn version_2_lets_be_what_could_be_null_or_unknown() {
    let custom = |field: &Value| {
        let schema = json!({"type": "object", "properties": {"spec": field}});
        let kind = CustomKind {
            kind: "Carp".into(),
            list_kind: "CarpList".into(),
            name: "sea.v1.Carp".into(),
            schema,
        };
        let docs = Schema::descriptions();
        let v3 = v3_document_custom(Schema::builtin(), &docs, "sea", "v1", &[], vec![kind]);
        let mut document = v2::Document::new(v2::Format::Json);
        document.add(v3);
        let document: Value = serde_json::from_slice(&document.finish("")).unwrap();
        document["definitions"]["sea.v1.Carp"]["properties"]["spec"].clone()
    };
    for (v3, v2) in [
        (
            json!({"type": "object", "nullable": true, "properties": {"a": {}}, "description": "D"}),
            json!({"description": "D"}),
        ),
        (
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"a": {}}}),
            json!({"x-kubernetes-preserve-unknown-fields": true}),
        ),
        (
            json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
            json!({"x-kubernetes-int-or-string": true}),
        ),
        (
            json!({"type": "object", "properties": {"not": {"type": "string", "not": {"enum": ["a"]}}}}),
            json!({"type": "object", "properties": {"not": {"type": "string"}}}),
        ),
    ] {
        assert_eq!(custom(&v3), v2, "{v3}");
    }
}

#[test]
fn version_2_as_messages_has_the_same_paths_and_definitions() {
    use crate::protobuf::wire::Input;
    let json: Value = serde_json::from_slice(&v2(v2::Format::Json)).unwrap();
    let bytes = v2(v2::Format::Protobuf);
    let (mut paths, mut definitions) = (Vec::new(), Vec::new());
    let mut document = Input::new(&bytes);
    while let Some((number, payload)) = document.next().unwrap() {
        let (into, inner) = match number {
            8 => (&mut paths, 2),
            9 => (&mut definitions, 1),
            _ => continue,
        };
        let mut pairs = Input::new(payload.bytes().unwrap());
        let (n, pair) = pairs.next().unwrap().unwrap();
        assert_eq!(n, inner);
        let mut pair = Input::new(pair.bytes().unwrap());
        let (_, name) = pair.next().unwrap().unwrap();
        into.push(name.text().unwrap().to_owned());
    }
    let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let sorted = |mut all: Vec<String>| {
        all.sort();
        all
    };
    assert_eq!(sorted(paths), sorted(keys(&json["paths"])));
    assert_eq!(sorted(definitions), sorted(keys(&json["definitions"])));
}

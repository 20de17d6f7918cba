//! Decoding of JSON and YAML: what is kept, what is dropped, what is said.

use super::*;
use crate::GroupVersion;
use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::json;

fn kind(api: &str, kind: &str) -> TypeId {
    let gvk = GroupVersion::parse(api).unwrap().kind(kind);
    Schema::builtin().kind(&gvk).unwrap()
}

fn pod(body: &str, validation: FieldValidation) -> Result<Decoded, Status> {
    let media = if body.trim_start().starts_with('{') {
        MediaType::Json
    } else {
        MediaType::Yaml
    };
    decode(
        Schema::builtin(),
        kind("v1", "Pod"),
        media,
        body.as_bytes(),
        validation,
    )
}

fn check(body: &str, expect: Expect) {
    let text = match pod(body, FieldValidation::Warn) {
        Ok(d) if d.warnings.is_empty() => d.value.to_string(),
        Ok(d) => format!("{} {:?}", d.value, d.warnings),
        Err(e) => format!("{} {}: {}", e.code, e.reason, e.message),
    };
    expect.assert_eq(&text);
}

#[test]
fn fields_are_pruned_and_checked() {
    check(
        r#"{"kind":"Pod","apiVersion":"v1","spec":{"foo":{"a":[1]},"nodeName":"n","containers":[{"name":"c","bar":1}]}}"#,
        expect![[
            r#"{"apiVersion":"v1","kind":"Pod","spec":{"containers":[{"name":"c"}],"nodeName":"n"}} ["unknown field \"spec.foo\"", "unknown field \"spec.containers[0].bar\""]"#
        ]],
    );
    check(
        r#"{"spec":{"nodeName":"a","nodeName":"b","nodeSelector":{"a":"1","a":"2"}}}"#,
        expect![[
            r#"{"spec":{"nodeName":"b","nodeSelector":{"a":"2"}}} ["duplicate field \"spec.nodeName\"", "duplicate field \"spec.nodeSelector.a\""]"#
        ]],
    );
    check(
        r#"{"metadata":null,"spec":{"hostname":null,"nodeSelector":{"a":null},"containers":[null]}}"#,
        expect![[r#"{"spec":{"containers":[{}],"nodeSelector":{"a":""}}}"#]],
    );
    check(
        r#"{"spec":{"priority":1.0,"terminationGracePeriodSeconds":3e1,"containers":[{"resources":{"limits":{"cpu":0.5,"memory":1073741824,"x":"1000m"}}}]}}"#,
        expect![[
            r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"500m","memory":"1073741824","x":"1"}}}],"priority":1,"terminationGracePeriodSeconds":30}}"#
        ]],
    );
    check(
        r#"{"metadata":{"creationTimestamp":"2026-01-02T03:04:05.6+01:00","managedFields":[{"fieldsV1":{"f:a":{"k":null}}}]}}"#,
        expect![[
            r#"{"metadata":{"creationTimestamp":"2026-01-02T02:04:05Z","managedFields":[{"fieldsV1":{"f:a":{"k":null}}}]}}"#
        ]],
    );
}

#[test]
fn wrong_types_name_the_path() {
    check(
        r#"{"kind":"Pod","apiVersion":"v1","spec":{"containers":[{"name":"c","ports":[{"containerPort":"80"}]}]}}"#,
        expect![[
            r#"400 BadRequest: Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal string into Go struct field ContainerPort.spec.containers[0].ports[0].containerPort of type int32"#
        ]],
    );
    check(
        r#"{"kind":"Pod","apiVersion":"v1","spec":{"priority":3000000000}}"#,
        expect![[
            r#"400 BadRequest: Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal number 3000000000 into Go struct field PodSpec.spec.priority of type int32"#
        ]],
    );
    check(
        r#"{"kind":"Pod","apiVersion":"v1","spec":{"priority":1.5}}"#,
        expect![[
            r#"400 BadRequest: Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.priority of type int32"#
        ]],
    );
    check(
        r#"{"kind":"Pod","apiVersion":"v1","spec":[]}"#,
        expect![[
            r#"400 BadRequest: Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal array into Go struct field Pod.spec of type v1.PodSpec"#
        ]],
    );
    check(
        r#"{"kind":"Pod","metadata":{"labels":{"a":true}}}"#,
        expect![[
            r#"400 BadRequest: Pod in version "" cannot be handled as a Pod: json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.labels.a of type string"#
        ]],
    );
    check(
        r#"{"kind":"Pod","metadata":{"creationTimestamp":"today"}}"#,
        expect![[
            r#"400 BadRequest: Pod in version "" cannot be handled as a Pod: metadata.creationTimestamp: parsing time "today" as "2006-01-02T15:04:05Z07:00": cannot parse "today""#
        ]],
    );
    check(
        r#"{"kind":"Pod","spec":{"containers":[{"resources":{"limits":{"cpu":"1x"}}}]}}"#,
        expect![[
            r#"400 BadRequest: Pod in version "" cannot be handled as a Pod: spec.containers[0].resources.limits.cpu: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"#
        ]],
    );
}

#[test]
fn malformed_bodies_are_refused() {
    check(
        r#"{"spec":"#,
        expect![
            "400 BadRequest: the object provided is unrecognized (must be of type Pod): EOF while parsing a value at line 1 column 8"
        ],
    );
    check(
        r#"{"spec":{}} x"#,
        expect![
            "400 BadRequest: the object provided is unrecognized (must be of type Pod): trailing characters at line 1 column 13"
        ],
    );
    check(
        "[]",
        expect![
            "400 BadRequest: the object provided is unrecognized (must be of type Pod): json: cannot unmarshal array into Go value of type v1.Pod"
        ],
    );
    check(
        "kind: Pod\nspec: {",
        expect![
            "400 BadRequest: the object provided is unrecognized (must be of type Pod): unclosed bracket '{' at line 2, column 7"
        ],
    );
    let secret = kind("v1", "Secret");
    let body = br#"{"kind":"Secret","apiVersion":"v1","data":{"a":"*"}}"#;
    let error = decode(
        Schema::builtin(),
        secret,
        MediaType::Json,
        body,
        FieldValidation::Warn,
    )
    .unwrap_err();
    expect![[
        r#"Secret in version "v1" cannot be handled as a Secret: data.a: illegal base64 data"#
    ]]
    .assert_eq(&error.message);
}

#[test]
fn strict_refuses_what_warn_reports() {
    let body = "kind: Pod\napiVersion: v1\nspec:\n  foo: 1\n  nodeName: a\n  nodeName: b\n";
    let warned = pod(body, FieldValidation::Warn).unwrap();
    assert_eq!(warned.value["spec"], json!({"nodeName": "b"}));
    expect![[r#"["unknown field \"spec.foo\"", "duplicate field \"spec.nodeName\""]"#]]
        .assert_eq(&format!("{:?}", warned.warnings));
    expect![[r#"Pod in version "v1" cannot be handled as a Pod: strict decoding error: unknown field "spec.foo", duplicate field "spec.nodeName""#]].assert_eq(&pod(body, FieldValidation::Strict).unwrap_err().message);
    assert_eq!(
        pod(body, FieldValidation::Ignore).unwrap().warnings.len(),
        0
    );
}

#[test]
fn yaml_and_json_give_the_same() {
    let yaml = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {n: \"1\"}}\nspec:\n  containers:\n  - name: c\n    args: [\"yes\", \"1\"]\n    env:\n    - {name: A, value: \"true\"}\n    ports: [{containerPort: 80}]\n";
    let json = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","annotations":{"n":"1"}},"spec":{"containers":[{"name":"c","args":["yes","1"],"env":[{"name":"A","value":"true"}],"ports":[{"containerPort":80}]}]}}"#;
    assert_eq!(
        pod(yaml, FieldValidation::Strict).unwrap(),
        pod(json, FieldValidation::Strict).unwrap()
    );
    assert_eq!(
        type_meta(MediaType::Yaml, yaml.as_bytes()).unwrap(),
        (Some("v1".to_owned()), Some("Pod".to_owned()))
    );
}

#[test]
fn unions_of_schemas_are_checked_inside() {
    let body = r#"{"spec":{"versions":[{"name":"v1","schema":{"openAPIV3Schema":{
        "items":{"type":"string","oops":1},"additionalProperties":true,
        "properties":{"a":{"additionalProperties":{"type":"object"}}}}}}]}}"#;
    let crd = kind("apiextensions.k8s.io/v1", "CustomResourceDefinition");
    let decoded = decode(
        Schema::builtin(),
        crd,
        MediaType::Json,
        body.as_bytes(),
        FieldValidation::Warn,
    )
    .unwrap();
    expect![[r#"["unknown field \"spec.versions[0].schema.openAPIV3Schema.items.oops\""]"#]]
        .assert_eq(&format!("{:?}", decoded.warnings));
    let schema = &decoded.value["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    assert_eq!(schema["items"], json!({"type": "string"}));
    assert_eq!(schema["additionalProperties"], json!(true));
}

#[test]
fn depth_is_limited() {
    for (open, close, media) in [
        ("{\"a\":", "}", MediaType::Json),
        ("[", "]", MediaType::Json),
        ("[", "]", MediaType::Yaml),
    ] {
        let body = format!(
            "{{\"metadata\":{{\"managedFields\":[{{\"fieldsV1\":{}1{}}}]}}}}",
            open.repeat(5000),
            close.repeat(5000)
        );
        let ty = kind("v1", "Pod");
        let result = decode(
            Schema::builtin(),
            ty,
            media,
            body.as_bytes(),
            FieldValidation::Warn,
        );
        assert_eq!(result.unwrap_err().code, 400);
        assert_eq!(parse(media, body.as_bytes()).unwrap_err().code, 400);
    }
    let mut value = json!(1);
    for _ in 0..500 {
        value = json!([value]);
    }
    let value = json!({"metadata": {"managedFields": [{"fieldsV1": value}]}});
    let error = conform(
        Schema::builtin(),
        kind("v1", "Pod"),
        value,
        FieldValidation::Warn,
    );
    assert_eq!(error.unwrap_err().code, 400);
}

#[test]
fn durations_as_go_writes_them() {
    for (nanos, text) in [
        (0, "0s"),
        (1, "1ns"),
        (1_500, "1.5µs"),
        (300_000_000, "300ms"),
        (1_500_000_000, "1.5s"),
        (3_600_000_000_000, "1h0m0s"),
        (-90_000_000_000, "-1m30s"),
    ] {
        assert_eq!(go_duration(nanos), text);
    }
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(body in ".{0,200}") {
        for media in [MediaType::Json, MediaType::Yaml] {
            let _ = type_meta(media, body.as_bytes());
            let _ = parse(media, body.as_bytes());
            let _ = decode(
                Schema::builtin(), kind("v1", "Pod"), media, body.as_bytes(), FieldValidation::Strict,
            );
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        for media in [MediaType::Json, MediaType::Yaml, MediaType::Protobuf] {
            let _ = type_meta(media, &body);
            let _ = decode(
                Schema::builtin(), kind("v1", "Pod"), media, &body, FieldValidation::Warn,
            );
        }
    }

    /// Decoding is idempotent: a decoded value conforms to its type.
    #[test]
    fn decoded_values_conform(
        name in "[a-z]{1,8}", cpu in 0u32..5000, port in 0i32..70000, extra in "[a-z]{1,8}",
    ) {
        let body = json!({
            "metadata": {"name": name, extra.clone(): 1},
            "spec": {"containers": [{
                "name": name, "ports": [{"containerPort": port, extra: null}],
                "resources": {"limits": {"cpu": format!("{cpu}m")}},
            }]},
        });
        let first = pod(&body.to_string(), FieldValidation::Ignore).unwrap().value;
        let again = conform(
            Schema::builtin(), kind("v1", "Pod"), first.clone(), FieldValidation::Strict,
        ).unwrap();
        prop_assert_eq!(again.value, first);
    }
}

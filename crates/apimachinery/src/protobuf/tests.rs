//! Bodies that kubectl 1.37.1 sent, round trips of generated objects, and broken bytes.

use super::*;
use crate::schema::{Field, List, Scalar, Type, Union};
use crate::{GroupVersion, decode};
use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::json;

fn kind(api: &str, kind: &str) -> TypeId {
    let gvk = GroupVersion::parse(api).unwrap().kind(kind);
    Schema::builtin().kind(&gvk).unwrap()
}

fn check(bytes: &[u8], expect: &Expect) {
    let envelope = Envelope::parse(bytes).unwrap();
    let ty = kind(envelope.api_version, envelope.kind);
    let value = super::decode(Schema::builtin(), ty, bytes).unwrap();
    expect.assert_eq(&format!("{value:#}\n"));
    // What was decoded is what JSON would have brought.
    let conformed = decode::conform(
        Schema::builtin(),
        ty,
        value.clone(),
        decode::FieldValidation::Strict,
    );
    assert_eq!(conformed.unwrap().value, value);
}

#[test]
fn create_deployment() {
    check(
        include_bytes!("fixtures/deployments.pb"),
        &expect![[r#"
        {
          "apiVersion": "apps/v1",
          "kind": "Deployment",
          "metadata": {
            "labels": {
              "app": "web"
            },
            "name": "web"
          },
          "spec": {
            "replicas": 0,
            "selector": {
              "matchLabels": {
                "app": "web"
              }
            },
            "strategy": {},
            "template": {
              "metadata": {
                "labels": {
                  "app": "web"
                }
              },
              "spec": {
                "containers": [
                  {
                    "image": "localhost:5000/hello:1",
                    "name": "hello",
                    "ports": [
                      {
                        "containerPort": 8080
                      }
                    ],
                    "resources": {}
                  }
                ]
              }
            }
          },
          "status": {}
        }
    "#]],
    );
}

#[test]
fn create_job() {
    check(
        include_bytes!("fixtures/jobs.pb"),
        &expect![[r#"
        {
          "apiVersion": "batch/v1",
          "kind": "Job",
          "metadata": {
            "name": "j"
          },
          "spec": {
            "template": {
              "metadata": {},
              "spec": {
                "containers": [
                  {
                    "command": [
                      "echo",
                      "hi"
                    ],
                    "image": "x",
                    "name": "j",
                    "resources": {}
                  }
                ],
                "restartPolicy": "Never"
              }
            }
          },
          "status": {}
        }
    "#]],
    );
}

#[test]
fn create_secret() {
    check(
        include_bytes!("fixtures/secrets.pb"),
        &expect![[r#"
        {
          "apiVersion": "v1",
          "data": {
            "password": "eA=="
          },
          "kind": "Secret",
          "metadata": {
            "name": "s"
          }
        }
    "#]],
    );
}

#[test]
fn create_service() {
    check(
        include_bytes!("fixtures/services.pb"),
        &expect![[r#"
        {
          "apiVersion": "v1",
          "kind": "Service",
          "metadata": {
            "labels": {
              "app": "svc"
            },
            "name": "svc"
          },
          "spec": {
            "ports": [
              {
                "name": "80-8080",
                "port": 80,
                "protocol": "TCP",
                "targetPort": 8080
              }
            ],
            "selector": {
              "app": "svc"
            },
            "type": "ClusterIP"
          },
          "status": {
            "loadBalancer": {}
          }
        }
    "#]],
    );
}

#[test]
fn create_quota_and_ingress_and_budget() {
    check(
        include_bytes!("fixtures/resourcequotas.pb"),
        &expect![[r#"
        {
          "apiVersion": "v1",
          "kind": "ResourceQuota",
          "metadata": {
            "name": "q"
          },
          "spec": {
            "hard": {
              "cpu": "1",
              "memory": "1Gi"
            }
          },
          "status": {}
        }
    "#]],
    );
    check(
        include_bytes!("fixtures/ingresses.pb"),
        &expect![[r#"
        {
          "apiVersion": "networking.k8s.io/v1",
          "kind": "Ingress",
          "metadata": {
            "name": "i"
          },
          "spec": {
            "rules": [
              {
                "host": "a.example",
                "http": {
                  "paths": [
                    {
                      "backend": {
                        "service": {
                          "name": "svc",
                          "port": {
                            "number": 80
                          }
                        }
                      },
                      "path": "/",
                      "pathType": "Prefix"
                    }
                  ]
                }
              }
            ]
          },
          "status": {
            "loadBalancer": {}
          }
        }
    "#]],
    );
    check(
        include_bytes!("fixtures/poddisruptionbudgets.pb"),
        &expect![[r#"
            {
              "apiVersion": "policy/v1",
              "kind": "PodDisruptionBudget",
              "metadata": {
                "name": "p"
              },
              "spec": {
                "minAvailable": 1,
                "selector": {
                  "matchLabels": {
                    "a": "b"
                  }
                }
              },
              "status": {
                "currentHealthy": 0,
                "desiredHealthy": 0,
                "disruptionsAllowed": 0,
                "expectedPods": 0
              }
            }
        "#]],
    );
}

#[test]
fn pointers_keep_their_zeros_and_values_drop_them() {
    let ty = kind("apps/v1", "Deployment");
    let value = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "spec": {"replicas": 0, "paused": false, "minReadySeconds": 0},
    });
    let bytes = encode(Schema::builtin(), ty, &value);
    assert_eq!(
        super::decode(Schema::builtin(), ty, &bytes).unwrap(),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 0}})
    );
}

#[test]
fn inline_messages_unions_and_wrapped_lists() {
    let round = |api: &str, name: &str, mut value: Value| {
        let ty = kind(api, name);
        value["apiVersion"] = api.into();
        value["kind"] = name.into();
        let bytes = encode(Schema::builtin(), ty, &value);
        let back = super::decode(Schema::builtin(), ty, &bytes).unwrap();
        assert_eq!(back, value);
    };
    round(
        "v1",
        "Pod",
        json!({"spec": {
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}],
            "containers": [{"name": "c", "livenessProbe": {"httpGet": {"port": "web"}}}],
            "ephemeralContainers": [{"name": "e", "image": "i", "targetContainerName": "c"}],
        }}),
    );
    round(
        "admissionregistration.k8s.io/v1",
        "ValidatingAdmissionPolicyBinding",
        json!({"spec": {"matchResources": {"resourceRules": [
            {"resourceNames": ["n"], "operations": ["*"], "apiGroups": ["apps"]}
        ]}}}),
    );
    round(
        "authorization.k8s.io/v1",
        "SubjectAccessReview",
        json!({"spec": {"user": "u", "extra": {"k": ["a", "b"]}}}),
    );
    let schema = json!({
        "type": "object", "maximum": 0.5,
        "items": [{"type": "string"}, {"type": "integer"}],
        "properties": {"a": {"items": {"type": "string"}, "additionalProperties": true}},
        "additionalProperties": {"x-kubernetes-preserve-unknown-fields": true},
        "dependencies": {"a": ["b"], "c": {"type": "string"}},
        "default": {"a": [1, null]}, "enum": ["x", 1],
    });
    round(
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
        json!({"spec": {
            "group": "g",
            "versions": [{"name": "v1", "served": true, "storage": false,
                "schema": {"openAPIV3Schema": schema}}],
        }}),
    );
    round(
        "v1",
        "ConfigMap",
        json!({
            "metadata": {"managedFields": [{"manager": "m", "time": "2026-01-02T03:04:05Z",
                "fieldsV1": {"f:data": {}}}]},
            "binaryData": {"b": "AAH/"},
        }),
    );
}

#[test]
fn broken_bytes_name_the_field() {
    let ty = kind("v1", "Pod");
    let check = |raw: &[u8], expect: Expect| {
        let error = decode_message(Schema::builtin(), ty, raw).unwrap_err();
        expect.assert_eq(&error.to_string());
    };
    // metadata.name cut short.
    check(
        &[0x0a, 0x03, 0x0a, 0x05, b'x'],
        expect!["proto: metadata: unexpected EOF"],
    );
    // spec.hostNetwork as text.
    check(
        &[0x12, 0x03, 0x5a, 0x01, b'x'],
        expect!["proto: spec.hostNetwork: wrong wireType = 2"],
    );
    // metadata.name is not UTF-8.
    check(
        &[0x0a, 0x03, 0x0a, 0x01, 0xff],
        expect!["proto: metadata.name: string field contains invalid UTF-8"],
    );
    // A field after the last is skipped, but must be whole.
    check(
        &[0xfa, 0x3f, 0x09, 0x00],
        expect!["proto: object: unexpected EOF"],
    );
    assert_eq!(
        super::decode(Schema::builtin(), ty, b"{}").unwrap_err(),
        DecodeError::NoMagic
    );
    let zipped = [&MAGIC[..], &[0x1a, 0x04], b"gzip"].concat();
    assert_eq!(
        super::decode(Schema::builtin(), ty, &zipped).unwrap_err(),
        DecodeError::Content("gzip".to_owned())
    );
}

#[test]
fn depth_is_limited() {
    // JSONSchemaProps.not is field 27 of itself: a message of a thousand levels.
    let mut raw = Vec::new();
    for _ in 0..1000 {
        let mut outer = Vec::new();
        write::bytes(&mut outer, 27, &raw);
        raw = outer;
    }
    let ty = Schema::builtin()
        .by_name("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
        .unwrap();
    let error = decode_message(Schema::builtin(), ty, &raw).unwrap_err();
    assert!(error.to_string().ends_with("exceeded max depth"), "{error}");
}

/// An object of a type as a sequence of random bytes makes it; never a zero value.
fn generate(ty: TypeId, seed: &mut std::slice::Iter<'_, u8>, depth: usize) -> Option<Value> {
    let schema = Schema::builtin();
    let byte = *seed.next()?;
    let text = || format!("t{byte}");
    Some(match schema.get(ty) {
        Type::Scalar(s) => match s {
            Scalar::String => text().into(),
            Scalar::Bool => true.into(),
            Scalar::Int32 => (i32::from(byte) - 128).clamp(-128, -1).into(),
            Scalar::Int64 => ((i64::from(byte) + 1) << 40).into(),
            Scalar::Double => (f64::from(byte) + 0.5).into(),
            Scalar::Bytes => "aGk=".into(),
            Scalar::Quantity => format!("{}m", u32::from(byte) * 1000 + 1).into(),
            Scalar::IntOrString if byte % 2 == 0 => text().into(),
            Scalar::IntOrString => byte.into(),
            Scalar::Time => format!("2026-01-02T03:04:{:02}Z", byte % 60).into(),
            Scalar::MicroTime => format!("2026-01-02T03:04:05.{byte:06}Z").into(),
            Scalar::Duration => return None,
        },
        Type::Any => match (schema.union(ty), byte % 3) {
            (None, _) => json!({text(): [byte, null, {"a": 0.5}]}),
            (Some(Union::SchemaOrBool), 0) => (byte < 128).into(),
            (Some(Union::SchemaOrStrings), 0) => json!([text(), "u"]),
            (Some(Union::SchemaOrArray), 0) => json!([{"type": text()}, {}]),
            (Some(_), _) => json!({"type": text(), "not": {"format": "f"}}),
        },
        Type::Map(value) => json!({text(): generate(*value, seed, depth)?}),
        Type::List(List { item, .. }) => Value::Array(
            (0..=byte % 2)
                .filter_map(|_| generate(*item, seed, depth))
                .collect(),
        ),
        Type::Struct(_) if depth > 8 => return None,
        Type::Struct(def) => {
            let count = def.fields.len().max(1);
            let step = usize::from(byte) % 7 + 1;
            let object = (usize::from(byte) % count..count)
                .step_by(step)
                .filter_map(|i| def.fields.get(i))
                .filter(|f: &&Field| f.number != 0)
                .filter_map(|f| Some((f.name.to_string(), generate(f.ty, seed, depth + 1)?)))
                .filter(|(_, v)| *v != json!([]))
                .collect();
            Value::Object(object)
        }
    })
}

#[test]
fn every_kind_round_trips() {
    let schema = Schema::builtin();
    for (gvk, ty) in schema.kinds() {
        for salt in 0..12u32 {
            let seed: Vec<u8> = (0..600u32)
                .map(|i| ((i + salt * 7919).wrapping_mul(2_654_435_761) >> 11) as u8)
                .collect();
            let value = generate(ty, &mut seed.iter(), 0).unwrap();
            let bytes = encode_message(schema, ty, &value);
            let back = decode_message(schema, ty, &bytes).unwrap();
            assert_eq!(back, value, "{gvk:?}");
            let mut bytes = Vec::new();
            crate::cbor::write(Some((schema, ty)), &value, &mut bytes);
            assert_eq!(crate::cbor::read(&bytes).as_ref(), Ok(&value), "{gvk:?}");
        }
    }
}

/// Of what we write nothing is missing in what Go has written of the same object, which also
/// has the zeros.
#[test]
fn go_has_written_the_same() {
    fn within(ours: &[u8], theirs: &[u8]) -> bool {
        fn read(bytes: &[u8]) -> Option<Vec<(u32, Payload<'_>)>> {
            let mut input = Input::new(bytes);
            let mut out = Vec::new();
            while let Some(field) = input.next().ok()? {
                out.push(field);
            }
            Some(out)
        }
        let (Some(ours), Some(theirs)) = (read(ours), read(theirs)) else {
            return false;
        };
        // Repeated fields are in one order; others are there once.
        let mut left = theirs;
        ours.iter().all(|(number, payload)| {
            let found = left.iter().position(|(n, theirs)| {
                n == number
                    && match (payload, theirs) {
                        (Payload::Bytes(a), Payload::Bytes(b)) => a == b || within(a, b),
                        (Payload::Varint(a), Payload::Varint(b))
                        | (Payload::Fixed64(a), Payload::Fixed64(b)) => a == b,
                        _ => false,
                    }
            });
            found.map(|i| left.remove(i)).is_some()
        })
    }
    for raw in [
        &include_bytes!("fixtures/configmaps.pb")[..],
        include_bytes!("fixtures/cronjobs.pb"),
        include_bytes!("fixtures/deployments.pb"),
        include_bytes!("fixtures/ingresses.pb"),
        include_bytes!("fixtures/jobs.pb"),
        include_bytes!("fixtures/namespaces.pb"),
        include_bytes!("fixtures/poddisruptionbudgets.pb"),
        include_bytes!("fixtures/priorityclasses.pb"),
        include_bytes!("fixtures/resourcequotas.pb"),
        include_bytes!("fixtures/secrets.pb"),
        include_bytes!("fixtures/serviceaccounts.pb"),
        include_bytes!("fixtures/services.pb"),
    ] {
        let envelope = Envelope::parse(raw).unwrap();
        let ty = kind(envelope.api_version, envelope.kind);
        let value = super::decode(Schema::builtin(), ty, raw).unwrap();
        let ours = encode(Schema::builtin(), ty, &value);
        assert!(within(&ours[4..], &raw[4..]), "{value:#}");
        assert_eq!(super::decode(Schema::builtin(), ty, &ours), Ok(value));
    }
}

/// Bytes as the generated code of `k8s.io/api` and `apimachinery` marshals them.
#[test]
fn values_without_parts() {
    let check = |api: &str, name: &str, value: Value, want: &[u8]| {
        let got = encode_message(Schema::builtin(), kind(api, name), &value);
        assert_eq!(got, want, "{value}");
    };
    let meta = |value: Value| json!({"metadata": value});
    // ObjectMeta.creationTimestamp is field 8 of field 1, a Timestamp; null is no time.
    check(
        "v1",
        "ConfigMap",
        meta(json!({"creationTimestamp": "1970-01-01T00:00:02Z"})),
        &[0x0a, 6, 0x42, 4, 0x08, 2, 0x10, 0],
    );
    check(
        "v1",
        "ConfigMap",
        meta(json!({"creationTimestamp": null})),
        &[0x0a, 0],
    );
    // LeaseSpec.acquireTime is field 3: half a second before the epoch, and after.
    let minus_one = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    check(
        "coordination.k8s.io/v1",
        "Lease",
        json!({"spec": {"acquireTime": "1969-12-31T23:59:59.500000Z"}}),
        &[
            &[0x12, 19, 0x1a, 17, 0x08][..],
            &minus_one,
            &[0x10, 0x80, 0xca, 0xb5, 0xee, 0x01],
        ]
        .concat(),
    );
    // Negative numbers are ten bytes: PriorityClass.value is field 2.
    check(
        "scheduling.k8s.io/v1",
        "PriorityClass",
        json!({"value": -1}),
        &[&[0x10][..], &minus_one].concat(),
    );
    // Secret.data is field 2, a map of bytes.
    check(
        "v1",
        "Secret",
        json!({"data": {"k": "AP8=", "wrong": "!"}}),
        &[
            0x12, 7, 0x0a, 1, b'k', 0x12, 2, 0, 0xff, 0x12, 7, 0x0a, 5, b'w', b'r', b'o', b'n',
            b'g',
        ],
    );
    // PodDisruptionBudgetSpec.minAvailable is field 1, an IntOrString.
    for (value, message) in [
        (json!(-1), [&[0x08, 0, 0x10][..], &minus_one].concat()),
        (json!("5%"), vec![0x08, 1, 0x1a, 2, b'5', b'%']),
    ] {
        let len = u8::try_from(message.len()).unwrap();
        check(
            "policy/v1",
            "PodDisruptionBudget",
            json!({"spec": {"minAvailable": value}}),
            &[&[0x12, len + 2, 0x0a, len][..], &message].concat(),
        );
    }
    // ControllerRevision.data is field 2, a RawExtension with JSON text.
    check(
        "apps/v1",
        "ControllerRevision",
        json!({"data": {"a": 1}}),
        &[&[0x12, 9, 0x0a, 7][..], br#"{"a":1}"#].concat(),
    );
}

#[test]
fn lengths_take_as_many_bytes_as_they_need() {
    let ty = kind("v1", "ConfigMap");
    for len in [
        0, 1, 110, 119, 120, 121, 127, 128, 16370, 16383, 16384, 3_000_000,
    ] {
        let value = json!({"metadata": {"annotations": {"a": "x".repeat(len), "b": "y"}}});
        let bytes = encode_message(Schema::builtin(), ty, &value);
        assert_eq!(
            decode_message(Schema::builtin(), ty, &bytes),
            Ok(value),
            "{len}"
        );
    }
}

#[test]
fn frames_and_broken_text() {
    let schema = Schema::builtin();
    let ty = kind("v1", "ConfigMap");
    let mut out = b"before".to_vec();
    assert!(write_text(schema, ty, br#"{"data":{"a":"b"},"#, &mut out).is_err());
    assert!(write_text(schema, ty, br#"{"data":{"a":"b"}} {}"#, &mut out).is_err());
    assert_eq!(out, b"before");
    out.clear();
    frame(&mut out, "ADDED", |out| {
        enclose(out, "v1", "ConfigMap", |out| {
            write_text(schema, ty, br#"{"data":{"a":"b"}}"#, out)
        })
    })
    .unwrap();
    let len = u32::from_be_bytes(out[..4].try_into().unwrap());
    assert_eq!(len as usize, out.len() - 4);
    let event = schema.by_name("io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent");
    let Type::Struct(def) = schema.get(event.unwrap()) else {
        panic!("no struct");
    };
    assert_eq!(
        [
            def.field("type").unwrap().number,
            def.field("object").unwrap().number
        ],
        [1, 2]
    );
    let mut input = Input::new(&out[4..]);
    let Ok(Some((1, kind))) = input.next() else {
        panic!("no type");
    };
    assert_eq!(kind.text(), Ok("ADDED"));
    let Ok(Some((2, object))) = input.next() else {
        panic!("no object");
    };
    let mut object = Input::new(object.bytes().unwrap());
    let Ok(Some((1, raw))) = object.next() else {
        panic!("no raw");
    };
    let value = super::decode(schema, ty, raw.bytes().unwrap()).unwrap();
    assert_eq!(
        value,
        json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "b"}})
    );
}

/// Lists are put together of these fields, whatever they are lists of.
#[test]
fn lists_are_alike() {
    let schema = Schema::builtin();
    for (gvk, ty) in schema.kinds() {
        let def = schema.get_struct(ty).unwrap();
        if let (Some(items), Some(meta)) = (def.field("items"), def.field("metadata")) {
            assert_eq!((meta.number, items.number), (1, 2), "{gvk:?}");
        }
    }
}

proptest! {
    #[test]
    fn round_trip(which in any::<prop::sample::Index>(), seed in prop::collection::vec(any::<u8>(), 0..400)) {
        let schema = Schema::builtin();
        let mut kinds: Vec<_> = schema.kinds().collect();
        kinds.sort();
        let (_, ty) = *which.get(&kinds);
        let value = generate(ty, &mut seed.iter(), 0).unwrap_or(json!({}));
        let bytes = encode_message(schema, ty, &value);
        let mut from_text = Vec::new();
        write_text(schema, ty, value.to_string().as_bytes(), &mut from_text).unwrap();
        prop_assert_eq!(&from_text, &bytes);
        let back = decode_message(schema, ty, &bytes).unwrap();
        prop_assert_eq!(back, value);
    }

    /// Whatever the text holds that the type does not have, and however wrong its values are.
    #[test]
    fn any_json_is_encoded(
        which in any::<prop::sample::Index>(),
        seed in prop::collection::vec(any::<u8>(), 0..200),
        to in prop_oneof![
            Just(json!(null)), Just(json!(true)), Just(json!(-1)), Just(json!(u64::MAX)),
            Just(json!(0.5)), Just(json!("x")), Just(json!([[1]])), Just(json!({"a": {"b": []}})),
        ],
        at in any::<prop::sample::Index>(),
    ) {
        fn replace(value: &mut Value, at: &mut usize, to: &Value) {
            if *at == 0 {
                value.clone_from(to);
            }
            *at = at.wrapping_sub(1);
            match value {
                Value::Array(items) => items.iter_mut().for_each(|v| replace(v, at, to)),
                Value::Object(fields) => fields.values_mut().for_each(|v| replace(v, at, to)),
                _ => {}
            }
        }
        let schema = Schema::builtin();
        let mut kinds: Vec<_> = schema.kinds().collect();
        kinds.sort();
        let (_, ty) = *which.get(&kinds);
        let mut value = generate(ty, &mut seed.iter(), 0).unwrap_or(json!({}));
        replace(&mut value, &mut at.index(40), &to);
        if let Some(object) = value.as_object_mut() {
            object.insert("no such field".to_owned(), to);
        }
        let bytes = encode_message(schema, ty, &value);
        prop_assert!(decode_message(schema, ty, &bytes).is_ok());
    }

    #[test]
    fn arbitrary_bytes_never_panic(which in any::<prop::sample::Index>(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let schema = Schema::builtin();
        let mut kinds: Vec<_> = schema.kinds().collect();
        kinds.sort();
        let (_, ty) = *which.get(&kinds);
        let _ = decode_message(schema, ty, &bytes);
        let _ = super::decode(schema, ty, &[&MAGIC[..], &bytes].concat());
    }

    #[test]
    fn what_is_decoded_survives_encoding(
        at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let schema = Schema::builtin();
        for (name, raw) in [
            ("Deployment", &include_bytes!("fixtures/deployments.pb")[..]),
            ("Job", include_bytes!("fixtures/jobs.pb")),
        ] {
            let api = if name == "Job" { "batch/v1" } else { "apps/v1" };
            let mut bytes = raw.to_vec();
            for (at, to) in &at {
                let at = at.index(bytes.len());
                bytes[at] = *to;
            }
            let ty = kind(api, name);
            if let Ok(value) = super::decode(schema, ty, &bytes) {
                let again = encode_message(schema, ty, &value);
                let mut value = value;
                for key in ["apiVersion", "kind"] {
                    value.as_object_mut().unwrap().remove(key);
                }
                prop_assert_eq!(decode_message(schema, ty, &again), Ok(value));
            }
        }
    }
}

//! What definitions may say, and what they do to objects.

use super::*;
use crate::decode::{FieldValidation, MediaType, decode};
use crate::schema::{Schema, TypeId};
use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::{Value, json};

fn shown(errors: &[crate::FieldError]) -> String {
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// A schema of an object whose `spec` has these properties.
fn spec(properties: Value) -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}})
}

#[track_caller]
fn refuses(schema: Value, want: Expect) {
    want.assert_eq(&shown(&check(&schema, "openAPIV3Schema")));
}

/// Decodes, defaults and validates an object of a schema.
fn taken(schema: &Value, object: &Value) -> (Value, String) {
    assert_eq!(shown(&check(schema, "s")), "");
    let c = compile(schema, "io.example.v1.Thing");
    let bytes = object.to_string();
    let decoded = decode(
        &c.schema,
        c.root,
        MediaType::Json,
        bytes.as_bytes(),
        FieldValidation::Warn,
    )
    .expect("custom resources are decoded whatever their types");
    let mut value = decoded.value;
    super::default(&c.schema, c.root, &mut value);
    let errors = validate(&c.schema, c.root, &value, None);
    let mut told = decoded.warnings.join("\n");
    if !errors.is_empty() {
        told = format!("{told}{}", shown(&errors));
    }
    (value, told)
}

#[track_caller]
fn tells(properties: Value, given: Value, want: Expect) {
    let (_, told) = taken(&spec(properties), &json!({"spec": given}));
    want.assert_eq(&told);
}

#[test]
fn refuses_what_is_not_structural() {
    refuses(
        json!({"properties": {"spec": {}}}),
        expect![[r#"
            openAPIV3Schema.type: Required value: must not be empty at the root
            openAPIV3Schema.type: Invalid value: null: must be object if properties is specified
            openAPIV3Schema.properties[spec].type: Required value: must not be empty for specified object fields"#]],
    );
    refuses(
        spec(json!({
            "a": {"type": "array"},
            "b": {"type": "text"},
            "c": {"type": "object", "properties": {}, "additionalProperties": {"type": "string"}},
            "d": {"type": "string", "x-kubernetes-int-or-string": true},
            "e": {"$ref": "#/x"},
            "f": {"type": "string", "pattern": "("},
            "g": {"type": "array", "items": {"type": "string"}, "uniqueItems": true},
        })),
        expect![[r#"
            openAPIV3Schema.properties[spec].properties[a].items: Required value: must be specified
            openAPIV3Schema.properties[spec].properties[b].type: Unsupported value: "text": supported values: "array", "boolean", "integer", "number", "object", "string"
            openAPIV3Schema.properties[spec].properties[c].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive
            openAPIV3Schema.properties[spec].properties[d].type: Invalid value: "string": must be empty if x-kubernetes-int-or-string is true
            openAPIV3Schema.properties[spec].properties[e].type: Required value: must not be empty for specified object fields
            openAPIV3Schema.properties[spec].properties[e].$ref: Forbidden: $ref is not supported
            openAPIV3Schema.properties[spec].properties[f].pattern: Invalid value: "(": must be a valid regular expression, but isn't: unclosed group
            openAPIV3Schema.properties[spec].properties[g].uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic"#]],
    );
}

#[test]
fn refuses_lists_without_their_keys() {
    let list = |extra: Value| {
        let mut list = json!({"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}});
        for (k, v) in extra.as_object().into_iter().flatten() {
            list[k] = v.clone();
        }
        spec(json!({"l": list}))
    };
    refuses(
        list(
            json!({"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name", "port"]}),
        ),
        expect![[r#"
            openAPIV3Schema.properties[spec].properties[l].items.properties[name].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property
            openAPIV3Schema.properties[spec].properties[l].x-kubernetes-list-map-keys[1]: Invalid value: "port": entries must all be names of item properties"#]],
    );
    refuses(
        list(json!({"x-kubernetes-list-type": "set"})),
        expect![[
            r#"openAPIV3Schema.properties[spec].properties[l].items: Invalid value: "object": must be a scalar, or an atomic list or map, as item of a list with x-kubernetes-list-type=set"#
        ]],
    );
}

#[test]
fn logic_adds_no_structure() {
    let mut schema = spec(json!({"a": {"type": "string"}}));
    schema["properties"]["spec"]["anyOf"] = json!([
        {"properties": {"a": {"type": "string"}}},
        {"properties": {"b": {"enum": ["x"]}}},
    ]);
    refuses(
        schema,
        expect![[r#"
            openAPIV3Schema.properties[spec].anyOf[0].properties[a].type: Forbidden: must be empty to be structural
            openAPIV3Schema.properties[spec].properties[b]: Required value: because it is defined in anyOf[1].properties[b]"#]],
    );
}

#[test]
fn defaults_fit_their_fields() {
    refuses(
        spec(
            json!({"a": {"type": "integer", "default": "x"}, "b": {"type": "string", "enum": ["x"], "default": "y"}}),
        ),
        expect![[r#"
            openAPIV3Schema.properties[spec].properties[a].default: Invalid value: "string": default in body must be of type integer: "string"
            openAPIV3Schema.properties[spec].properties[b].default: Unsupported value: "y": supported values: "x""#]],
    );
}

#[test]
fn tells_wrong_values_as_upstream_does() {
    tells(
        json!({
            "n": {"type": "integer", "minimum": 1, "maximum": 10}, "s": {"type": "string", "pattern": "^a+$", "maxLength": 3},
            "e": {"type": "string", "enum": ["x", "y"]}, "l": {"type": "array", "maxItems": 1, "items": {"type": "string"}},
            "t": {"type": "string", "format": "date-time"}, "p": {"x-kubernetes-int-or-string": true},
            "m": {"type": "object", "additionalProperties": {"type": "boolean"}},
        }),
        json!({"n": 11, "s": "bbbb", "e": "z", "l": ["a", 1], "t": "now", "p": true, "m": {"k": "v"}}),
        expect![[r#"
            spec.e: Unsupported value: "z": supported values: "x", "y"
            spec.l: Too many: 2: must have at most 1 items
            spec.l[1]: Invalid value: "integer": spec.l[1] in body must be of type string: "integer"
            spec.m.k: Invalid value: "string": spec.m.k in body must be of type boolean: "string"
            spec.n: Invalid value: 11: spec.n in body should be less than or equal to 10
            spec.p: Invalid value: "boolean": spec.p in body must be of type integer,string: "boolean"
            spec.s: Too long: may not be more than 3 bytes
            spec.s: Invalid value: "bbbb": spec.s in body should match '^a+$'
            spec.t: Invalid value: "now": spec.t in body must be of type date-time: "now""#]],
    );
    let mut schema = spec(json!({"a": {"type": "string"}, "b": {"type": "string"}}));
    schema["properties"]["spec"]["oneOf"] = json!([{"required": ["a"]}, {"required": ["b"]}]);
    schema["required"] = json!(["spec"]);
    let (_, told) = taken(&schema, &json!({"spec": {"a": "", "b": ""}}));
    expect![[r#"spec: Invalid value: "": "spec" must validate one and only one schema (oneOf). Found 2 valid alternatives"#]].assert_eq(&told);
    let (_, told) = taken(&schema, &json!({}));
    expect!["spec: Required value"].assert_eq(&told);
}

#[test]
fn lists_are_sets_and_maps() {
    tells(
        json!({
            "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "v": {"type": "integer"}}}},
        }),
        json!({"set": ["a", "b", "a"], "map": [{"name": "x", "v": 1}, {"name": "x", "v": 2}]}),
        expect![[r#"
            spec.map[1]: Duplicate value: {"name":"x"}
            spec.set[2]: Duplicate value: "a""#]],
    );
}

#[test]
fn unknown_fields_go_unless_kept() {
    let schema = spec(json!({
        "known": {"type": "object", "properties": {"a": {"type": "string"}}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"a": {"type": "object"}}},
        "any": {"x-kubernetes-preserve-unknown-fields": true},
    }));
    let object = json!({"apiVersion": "v1", "kind": "Thing", "metadata": {"name": "n", "labels": {"l": "v"}},
        "spec": {"known": {"a": "x", "b": 1}, "free": {"a": {"b": 1}, "c": {"d": [null]}}, "any": [{"x": null}]},
        "more": 1});
    let (value, told) = taken(&schema, &object);
    expect![[r#"
        unknown field "more"
        unknown field "spec.free.a.b"
        unknown field "spec.known.b""#]]
    .assert_eq(&told);
    assert_eq!(
        value,
        json!({"apiVersion": "v1", "kind": "Thing", "metadata": {"name": "n", "labels": {"l": "v"}},
            "spec": {"known": {"a": "x"}, "free": {"a": {}, "c": {"d": [null]}}, "any": [{"x": null}]}})
    );
}

#[test]
fn defaults_are_filled_in_where_the_parent_is() {
    let schema = spec(json!({
        "a": {"type": "string", "default": "x"},
        "n": {"type": "string", "nullable": true, "default": "x"},
        "o": {"type": "object", "properties": {"p": {"type": "integer", "default": 7}}},
        "q": {"type": "object", "default": {}, "properties": {"p": {"type": "integer", "default": 7}}},
        "l": {"type": "array", "items": {"type": "object", "properties": {"p": {"type": "integer", "default": 7}}}},
    }));
    let (value, told) = taken(&schema, &json!({"spec": {"a": null, "n": null, "l": [{}]}}));
    assert_eq!(told, "");
    assert_eq!(
        value["spec"],
        json!({"a": "x", "n": null, "l": [{"p": 7}], "q": {"p": 7}})
    );
    let (value, _) = taken(&schema, &json!({}));
    assert_eq!(value, json!({}));
}

#[test]
fn embedded_objects_have_kinds() {
    let schema = spec(
        json!({"o": {"type": "object", "x-kubernetes-embedded-resource": true,
        "x-kubernetes-preserve-unknown-fields": true}}),
    );
    let good = json!({"spec": {"o": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {}}}});
    assert_eq!(taken(&schema, &good).1, "");
    let (_, told) = taken(&schema, &json!({"spec": {"o": {"kind": "Pod"}}}));
    expect!["spec.o.apiVersion: Required value: must not be empty"].assert_eq(&told);
}

#[test]
fn what_did_not_change_is_not_asked_again() {
    let schema = spec(json!({"a": {"type": "string", "maxLength": 1}, "b": {"type": "string"}}));
    let c = compile(&schema, "t");
    let old = json!({"spec": {"a": "long", "b": "x"}});
    let new = json!({"spec": {"a": "long", "b": "y"}});
    assert_eq!(validate(&c.schema, c.root, &new, Some(&old)), []);
    let worse = json!({"spec": {"a": "longer", "b": "y"}});
    assert_eq!(validate(&c.schema, c.root, &worse, Some(&old)).len(), 1);
}

#[test]
fn names_may_be_constrained() {
    let mut schema = spec(json!({}));
    schema["properties"]["metadata"] =
        json!({"type": "object", "properties": {"name": {"type": "string", "pattern": "^a"}}});
    let (_, told) = taken(&schema, &json!({"metadata": {"name": "b"}}));
    expect![[r#"metadata.name: Invalid value: "b": metadata.name in body should match '^a'"#]]
        .assert_eq(&told);
    schema["properties"]["metadata"]["properties"]["labels"] = json!({"type": "object"});
    refuses(
        schema,
        expect![
            "openAPIV3Schema.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified"
        ],
    );
}

/// Any structural schema, with objects in mind.
fn any_schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "string"})),
        Just(json!({"type": "string", "default": "d", "maxLength": 4})),
        Just(json!({"type": "integer", "minimum": 0, "nullable": true})),
        Just(json!({"type": "boolean", "default": true})),
        Just(json!({"x-kubernetes-int-or-string": true})),
        Just(json!({"x-kubernetes-preserve-unknown-fields": true})),
        Just(json!({"type": "object"})),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::btree_map("[a-d]", inner.clone(), 0..4)
                .prop_map(|p| json!({"type": "object", "properties": p})),
            inner
                .clone()
                .prop_map(|i| json!({"type": "object", "additionalProperties": i})),
            inner.clone().prop_map(|i| json!({"type": "array", "items": i})),
            prop::collection::btree_map("[a-d]", inner, 1..3).prop_map(
                |p| json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": p})
            ),
        ]
    })
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2i64..3).prop_map(Value::from),
        "[a-e]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-e]", inner, 0..4).prop_map(|m| json!(m)),
        ]
    })
}

/// A small model of pruning: what a schema keeps of a value.
fn kept(schema: &Value, v: &Value) -> Value {
    let preserve = schema["x-kubernetes-preserve-unknown-fields"] == true;
    match v {
        Value::Object(m) => {
            if !schema["type"].is_string() || schema["type"] != "object" {
                return v.clone();
            }
            let mut out = serde_json::Map::new();
            for (k, v) in m {
                let (property, values) =
                    (&schema["properties"][k], &schema["additionalProperties"]);
                if property.is_object() {
                    out.insert(k.clone(), kept(property, v));
                } else if values.is_object() {
                    out.insert(k.clone(), kept(values, v));
                } else if preserve {
                    out.insert(k.clone(), v.clone());
                }
            }
            Value::Object(out)
        }
        Value::Array(a) if schema["type"] == "array" => {
            a.iter().map(|v| kept(&schema["items"], v)).collect()
        }
        other => other.clone(),
    }
}

proptest! {
    #[test]
    fn any_json_is_checked_without_harm(v in any_value(), key in "[a-z$]{1,8}") {
        let mut schema = json!({"type": "object", "properties": {"spec": v.clone()}});
        schema[key] = v;
        if check(&schema, "s").is_empty() {
            let c = compile(&schema, "t");
            let _ = validate(&c.schema, c.root, &json!({"spec": {"a": 1}}), None);
        }
    }

    #[test]
    fn pruning_is_the_model_s(schema in any_schema(), v in any_value()) {
        let schema = spec(json!({"a": schema}));
        prop_assert_eq!(shown(&check(&schema, "s")), "");
        let c = compile(&schema, "t");
        let object = json!({"spec": {"a": v}});
        let decoded = decode(&c.schema, c.root, MediaType::Json, object.to_string().as_bytes(), FieldValidation::Ignore).expect("decodes");
        prop_assert_eq!(&decoded.value["spec"], &kept(&schema["properties"]["spec"], &object["spec"]));
        // Once pruned and defaulted, doing it again changes nothing.
        let mut once = decoded.value;
        super::default(&c.schema, c.root, &mut once);
        let again = crate::decode::conform(&c.schema, c.root, once.clone(), FieldValidation::Strict);
        let mut again = again.expect("nothing is unknown").value;
        super::default(&c.schema, c.root, &mut again);
        prop_assert_eq!(&once, &again);
        // An object is no worse than itself.
        prop_assert_eq!(validate(&c.schema, c.root, &once, Some(&once)), []);
    }
}

#[test]
fn shared_types_cost_nothing_per_field() {
    let many: serde_json::Map<String, Value> = (0..100)
        .map(|i| {
            (
                format!("f{i}"),
                json!({"type": "string", "description": "text"}),
            )
        })
        .collect();
    let c = compile(&spec(Value::Object(many)), "t");
    // The root, its spec, and one type of strings.
    let types = |s: &Schema| (0..).take_while(|i| s.has(TypeId(*i))).count();
    assert_eq!(types(&c.schema) - types(Schema::builtin()), 3);
}

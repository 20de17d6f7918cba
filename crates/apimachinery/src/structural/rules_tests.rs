//! Rules of definitions: what is refused when they are written, and what objects are told.
//! Cases from `k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/validation_test.go`,
//! `…/pkg/apis/apiextensions/validation/validation_test.go` and the documentation of
//! CustomResourceDefinitions, "Validation rules".

use super::Rules;
use super::rules::check;
use expect_test::{Expect, expect};
use serde_json::{Value, json};

fn lines(errors: &[crate::FieldError]) -> String {
    errors.iter().map(|e| format!("{e}\n")).collect()
}

/// A schema of `spec` with one rule.
fn schema(spec: Value, rule: Value) -> Value {
    let mut spec = spec;
    spec["x-kubernetes-validations"] = json!([rule]);
    json!({"type": "object", "properties": {"spec": spec}})
}

fn sizes() -> Value {
    json!({"type": "object", "properties": {
        "min": {"type": "integer"}, "max": {"type": "integer"}, "name": {"type": "string"},
        "namespace": {"type": "string"}, "foo-bar": {"type": "string"},
        "port": {"x-kubernetes-int-or-string": true},
        "list": {"type": "array", "maxItems": 10, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string", "maxLength": 10}, "v": {"type": "integer"}}}},
    }})
}

fn refused(open_api: &Value, wanted: Expect) {
    wanted.assert_eq(&lines(&check(open_api, "schema")));
}

fn told(open_api: &Value, new: Value, old: Option<Value>, wanted: Expect) {
    assert_eq!(lines(&check(open_api, "schema")), "");
    let rules = Rules::compile(open_api);
    wanted.assert_eq(&lines(&rules.validate(&new, old.as_ref())));
}

#[test]
fn wrong_rules_are_refused() {
    let rule = |rule: &str| json!({"rule": rule});
    refused(
        &schema(sizes(), rule("self.min == true")),
        expect![[r#"
        schema.properties[spec].x-kubernetes-validations[0].rule: Invalid value: apiextensions.ValidationRule{Rule:"self.min == true", Message:"", MessageExpression:"", Reason:(*apiextensions.FieldValueErrorReason)(nil), FieldPath:"", OptionalOldSelf:(*bool)(nil)}: compilation failed: ERROR: <input>:1:10: found no matching overload for '_==_' applied to '(int, bool)'
         | self.min == true
         | .........^
    "#]],
    );
    refused(
        &schema(sizes(), rule("self.nope")),
        expect![[r#"
        schema.properties[spec].x-kubernetes-validations[0].rule: Invalid value: apiextensions.ValidationRule{Rule:"self.nope", Message:"", MessageExpression:"", Reason:(*apiextensions.FieldValueErrorReason)(nil), FieldPath:"", OptionalOldSelf:(*bool)(nil)}: compilation failed: ERROR: <input>:1:5: undefined field 'nope'
         | self.nope
         | ....^
    "#]],
    );
    refused(
        &schema(sizes(), rule("self.min")),
        expect![[r#"
        schema.properties[spec].x-kubernetes-validations[0].rule: Invalid value: apiextensions.ValidationRule{Rule:"self.min", Message:"", MessageExpression:"", Reason:(*apiextensions.FieldValueErrorReason)(nil), FieldPath:"", OptionalOldSelf:(*bool)(nil)}: cel expression must evaluate to a bool
    "#]],
    );
    refused(
        &schema(sizes(), rule("")),
        expect![[r#"
        schema.properties[spec].x-kubernetes-validations[0].rule: Required value: rule is not specified
    "#]],
    );
    refused(
        &schema(sizes(), rule("self.min <\n self.max")),
        expect![[r#"
            schema.properties[spec].x-kubernetes-validations[0].message: Required value: message must be specified if rule contains line breaks
        "#]],
    );
    refused(
        &schema(
            sizes(),
            json!({"rule": "true", "message": "a\nb", "reason": "No", "fieldPath": ".nope", "messageExpression": "1"}),
        ),
        expect![[r#"
            schema.properties[spec].x-kubernetes-validations[0].message: Invalid value: "a\nb": message must not contain line breaks
            schema.properties[spec].x-kubernetes-validations[0].reason: Unsupported value: "No": supported values: "FieldValueRequired", "FieldValueForbidden", "FieldValueInvalid", "FieldValueDuplicate"
            schema.properties[spec].x-kubernetes-validations[0].fieldPath: Invalid value: ".nope": fieldPath must be a valid path: does not refer to a valid field
            schema.properties[spec].x-kubernetes-validations[0].messageExpression: Invalid value: apiextensions.ValidationRule{Rule:"true", Message:"a\nb", MessageExpression:"1", Reason:(*apiextensions.FieldValueErrorReason)(nil), FieldPath:".nope", OptionalOldSelf:(*bool)(nil)}: messageExpression must evaluate to a string
        "#]],
    );
    refused(
        &schema(sizes(), json!({"rule": "true", "optionalOldSelf": true})),
        expect![[r#"
            schema.properties[spec].x-kubernetes-validations[0].optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule
        "#]],
    );
    refused(
        &schema(
            sizes(),
            rule(
                "self.port == 80 || self.port == '80' || self.__namespace__ == self.foo__dash__bar",
            ),
        ),
        expect![[r#""#]],
    );
}

#[test]
fn transition_rules_need_a_past() {
    let item =
        json!({"type": "integer", "x-kubernetes-validations": [{"rule": "self >= oldSelf"}]});
    let list = json!({"type": "array", "maxItems": 5, "items": item});
    refused(
        &json!({"type": "object", "properties": {"l": list}}),
        expect![[r#"
            schema.properties[l].items.x-kubernetes-validations[0].rule: Invalid value: "self >= oldSelf": oldSelf cannot be used on the uncorrelatable portion of the schema within schema.properties[l]
        "#]],
    );
}

#[test]
fn dear_rules_are_refused() {
    let list = json!({"type": "array", "items": {"type": "string"}});
    let all = "self.all(x, self.all(y, x == y))";
    refused(
        &schema(list, json!({"rule": all})),
        expect![[r#"
        schema.properties[spec].x-kubernetes-validations[0].rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)
        schema.properties[spec].x-kubernetes-validations[0].rule: Forbidden: contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema
        schema: Forbidden: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)
    "#]],
    );
    let list =
        json!({"type": "array", "maxItems": 10, "items": {"type": "string", "maxLength": 10}});
    refused(&schema(list, json!({"rule": all})), expect![[r#""#]]);
}

#[test]
fn objects_are_held_against_rules() {
    let of = |rule: Value| schema(sizes(), rule);
    let plain = of(json!({"rule": "self.min <= self.max"}));
    told(
        &plain,
        json!({"spec": {"min": 1, "max": 2}}),
        None,
        expect![[r#""#]],
    );
    told(
        &plain,
        json!({"spec": {"min": 3, "max": 2}}),
        None,
        expect![[r#"
            spec: Invalid value: "object": failed rule: self.min <= self.max
        "#]],
    );
    told(
        &plain,
        json!({"spec": {"min": 3}}),
        None,
        expect![[r#"
        spec: Invalid value: "object": no such key: max evaluating rule: self.min <= self.max
    "#]],
    );
    let worded = of(
        json!({"rule": "self.min <= self.max", "message": "too small", "reason": "FieldValueForbidden", "fieldPath": ".max"}),
    );
    told(
        &worded,
        json!({"spec": {"min": 3, "max": 2}}),
        None,
        expect![[r#"
            spec.max: Forbidden: too small
        "#]],
    );
    let made = of(
        json!({"rule": "self.min <= self.max", "messageExpression": "'%d is more than %d'.format([self.min, self.max])"}),
    );
    told(
        &made,
        json!({"spec": {"min": 3, "max": 2}}),
        None,
        expect![[r#"
            spec: Invalid value: "object": 3 is more than 2
        "#]],
    );
    let either = of(json!({"rule": "self.port + 1 == 81"}));
    told(
        &either,
        json!({"spec": {"port": 80}}),
        None,
        expect![[r#""#]],
    );
    told(
        &either,
        json!({"spec": {"port": "http"}}),
        None,
        expect![[r#"
            spec: Invalid value: "object": 'no such overload': call arguments did not match a supported operator, function or macro signature for rule: self.port + 1 == 81
        "#]],
    );
    let root = json!({"type": "object", "properties": {},
        "x-kubernetes-validations": [{"rule": "self.metadata.name.startsWith('a') && self.kind == 'K'"}]});
    told(
        &root,
        json!({"kind": "K", "metadata": {"name": "b"}}),
        None,
        expect![[r#"
            <nil>: Invalid value: "object": failed rule: self.metadata.name.startsWith('a') && self.kind == 'K'
        "#]],
    );
}

#[test]
fn transitions_and_ratcheting() {
    let immutable = schema(
        sizes(),
        json!({"rule": "self.name == oldSelf.name", "message": "name stays"}),
    );
    told(
        &immutable,
        json!({"spec": {"name": "a"}}),
        None,
        expect![[r#""#]],
    );
    told(
        &immutable,
        json!({"spec": {"name": "a"}}),
        Some(json!({"spec": {"name": "b"}})),
        expect![[r#"
            spec: Invalid value: "object": name stays
        "#]],
    );
    let optional = schema(
        sizes(),
        json!({"rule": "oldSelf.hasValue() || self.min == 1", "optionalOldSelf": true}),
    );
    told(
        &optional,
        json!({"spec": {"min": 2}}),
        None,
        expect![[r#"
            spec: Invalid value: "object": failed rule: oldSelf.hasValue() || self.min == 1
        "#]],
    );
    told(
        &optional,
        json!({"spec": {"min": 2}}),
        Some(json!({"spec": {"min": 1}})),
        expect![[r#""#]],
    );
    // What broke a rule before and has not changed may stay.
    let strict = schema(sizes(), json!({"rule": "self.min <= self.max"}));
    let bad = json!({"spec": {"min": 3, "max": 2}});
    told(&strict, bad.clone(), Some(bad.clone()), expect![[r#""#]]);
    told(
        &strict,
        json!({"spec": {"min": 4, "max": 2}}),
        Some(bad),
        expect![[r#"
            spec: Invalid value: "object": failed rule: self.min <= self.max
        "#]],
    );
}

#[test]
fn items_of_keyed_lists_have_their_past() {
    let mut spec = sizes();
    spec["properties"]["list"]["items"]["properties"]["v"]["x-kubernetes-validations"] =
        json!([{"rule": "self >= oldSelf", "message": "may only grow"}]);
    let open_api = json!({"type": "object", "properties": {"spec": spec}});
    let list = |a: i64, b: i64| json!({"spec": {"list": [{"k": "a", "v": a}, {"k": "b", "v": b}]}});
    let turned =
        json!({"spec": {"list": [{"k": "b", "v": 2}, {"k": "a", "v": 0}, {"k": "c", "v": 0}]}});
    told(
        &open_api,
        turned,
        Some(list(1, 1)),
        expect![[r#"
        spec.list[1].v: Invalid value: "integer": may only grow
    "#]],
    );
    told(&open_api, list(1, 2), Some(list(1, 1)), expect![[r#""#]]);
}

#[test]
fn a_costly_run_is_stopped() {
    // No bound that the estimate knows of: the schema is taken as it is.
    let open_api = schema(
        json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "integer"}}}}),
        json!({"rule": "self.l.all(x, self.l.all(y, x + y >= 0))"}),
    );
    let long: Vec<i64> = (0..3000).collect();
    let errors = Rules::compile(&open_api).validate(&json!({"spec": {"l": long}}), None);
    expect![[r#"
        spec: Invalid value: "object": 'operation cancelled: actual cost limit exceeded': no further validation rules will be run due to call cost exceeds limit for rule: self.l.all(x, self.l.all(y, x + y >= 0))
    "#]].assert_eq(&lines(&errors));
}

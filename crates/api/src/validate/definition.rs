//! `CustomResourceDefinition`: names, versions, schemas, columns and subresources.
//!
//! Errors of what all versions have alike are told of the whole definition
//! (`spec.validation.openAPIV3Schema`), as upstream's internal form has it there.

use super::Check;
use crate::access::{at, is_empty, list, text};
use apimachinery::FieldError;
use apimachinery::json_path::JsonPath;
use apimachinery::{names, structural};
use serde_json::Value;
use std::collections::HashSet;

/// Says that somebody answers for a name in Kubernetes' own groups.
const APPROVAL: &str = "api-approved.kubernetes.io";

/// A whole definition.
pub(crate) fn definition(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    named(&mut c, v);
    group(&mut c, v);
    c.one_of(
        "spec.scope",
        at(v, "spec.scope"),
        &["Cluster", "Namespaced"],
    );
    resource_names(&mut c, at(v, "spec.names"));
    if at(v, "spec.preserveUnknownFields") == true {
        c.invalid(
            "spec.preserveUnknownFields",
            at(v, "spec.preserveUnknownFields"),
            "must be false",
        );
    }
    versions(&mut c, v);
    conversion(&mut c, v);
    c.0
}

/// A definition's group, scope and plural stay, and no version goes that objects are stored in.
pub(crate) fn definition_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    for path in [
        "spec.group",
        "spec.scope",
        "spec.names.plural",
        "spec.names.kind",
    ] {
        let established = list(old, "status.conditions")
            .iter()
            .any(|c| text(c, "type") == "Established" && text(c, "status") == "True");
        if established || path != "spec.names.kind" {
            c.immutable(path, new, old);
        }
    }
    for (i, stored) in list(new, "status.storedVersions").iter().enumerate() {
        let known = list(new, "spec.versions")
            .iter()
            .any(|v| at(v, "name") == stored);
        if !known {
            c.invalid(
                format!("status.storedVersions[{i}]"),
                stored,
                "must appear in spec.versions",
            );
        }
    }
    c.0
}

fn named(c: &mut Check, v: &Value) {
    let expected = format!("{}.{}", text(v, "spec.names.plural"), text(v, "spec.group"));
    if text(v, "metadata.name") != expected {
        c.invalid(
            "metadata.name",
            at(v, "metadata.name"),
            "must be spec.names.plural+\".\"+spec.group",
        );
    }
}

fn group(c: &mut Check, v: &Value) {
    let group = text(v, "spec.group");
    if group.is_empty() {
        c.required("spec.group", "");
        return;
    }
    c.rule("spec.group", at(v, "spec.group"), names::dns1123_subdomain);
    if !group.contains('.') {
        c.invalid(
            "spec.group",
            at(v, "spec.group"),
            "should be a domain with at least one dot",
        );
    }
    let protected = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|d| group == *d || group.ends_with(&format!(".{d}")));
    if !protected {
        return;
    }
    let field = format!("metadata.annotations[{APPROVAL}]");
    let approval = &v["metadata"]["annotations"][APPROVAL];
    match approval.as_str().unwrap_or_default() {
        "" => c.required(
            field,
            "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111",
        ),
        a if a.starts_with("unapproved") || a.contains("://") => {}
        _ => c.invalid(
            field,
            approval,
            "protected groups must have approval annotation \"api-approved.kubernetes.io\" with either a URL or a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111",
        ),
    }
}

fn resource_names(c: &mut Check, v: &Value) {
    let rule = |c: &mut Check, path: String, v: &Value| {
        if let Err(e) = names::dns1035_label(v.as_str().unwrap_or_default()) {
            c.invalid(path, v, e);
        }
    };
    for name in ["plural", "singular"] {
        let path = format!("spec.names.{name}");
        match text(v, name) {
            "" if name == "plural" => c.required(path, ""),
            "" => {}
            _ => rule(c, path, at(v, name)),
        }
    }
    for name in ["kind", "listKind"] {
        let path = format!("spec.names.{name}");
        let given = text(v, name);
        if given.is_empty() {
            c.required(path, "");
        } else if let Err(e) = names::dns1035_label(&given.to_lowercase()) {
            let detail = format!("may have mixed case, but should otherwise match: {e}");
            c.invalid(path, at(v, name), detail);
        }
    }
    if !text(v, "kind").is_empty() && text(v, "kind") == text(v, "listKind") {
        c.invalid(
            "spec.names.listKind",
            at(v, "listKind"),
            "kind and listKind may not be the same",
        );
    }
    for name in ["shortNames", "categories"] {
        for (i, given) in list(v, name).iter().enumerate() {
            rule(c, format!("spec.names.{name}[{i}]"), given);
        }
    }
}

fn versions(c: &mut Check, v: &Value) {
    let versions = list(v, "spec.versions");
    let storages = versions.iter().filter(|v| at(v, "storage") == true).count();
    if versions.is_empty() {
        c.required("spec.versions", "");
        return;
    }
    if storages != 1 {
        c.invalid(
            "spec.versions",
            at(v, "spec.versions"),
            "must have exactly one version marked as storage version",
        );
    }
    let mut seen = HashSet::new();
    for (i, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{i}].name");
        c.rule(path.clone(), at(version, "name"), names::dns1035_label);
        if !seen.insert(text(version, "name")) {
            c.add(FieldError::duplicate(path, at(version, "name")));
        }
        if !is_empty(at(version, "deprecationWarning")) && at(version, "deprecated") != true {
            c.invalid(
                format!("spec.versions[{i}].deprecationWarning"),
                at(version, "deprecationWarning"),
                "can only be set for deprecated versions",
            );
        }
    }
    let alike = |field: &str| {
        versions
            .iter()
            .all(|v| at(v, field) == at(&versions[0], field))
    };
    let (schemas, columns, subresources) = (
        alike("schema"),
        alike("additionalPrinterColumns"),
        alike("subresources"),
    );
    for (i, version) in versions.iter().enumerate() {
        let own = format!("spec.versions[{i}].");
        let path = |alike: bool| if alike { "spec." } else { own.as_str() };
        if i == 0 || !schemas {
            let path = match schemas {
                true => "spec.validation.openAPIV3Schema".to_owned(),
                false => format!("{own}schema.openAPIV3Schema"),
            };
            schema(c, at(version, "schema.openAPIV3Schema"), &path, &own);
        }
        if i == 0 || !columns {
            printer_columns(c, version, path(columns));
        }
        if i == 0 || !subresources {
            scale(c, at(version, "subresources.scale"), path(subresources));
        }
        selectable_fields(c, version, &own);
    }
}

fn schema(c: &mut Check, schema: &Value, path: &str, own: &str) {
    if schema.is_null() {
        c.required(
            format!("{own}schema.openAPIV3Schema"),
            "schemas are required",
        );
        return;
    }
    for e in structural::check(schema, path) {
        c.add(e);
    }
}

fn printer_columns(c: &mut Check, version: &Value, path: &str) {
    const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
    for (i, column) in list(version, "additionalPrinterColumns").iter().enumerate() {
        let at_column = |f: &str| format!("{path}additionalPrinterColumns[{i}].{f}");
        if text(column, "name").is_empty() {
            c.required(at_column("name"), "");
        }
        match text(column, "type") {
            "" => {
                let detail = "must be one of boolean,date,integer,number,string";
                c.required(at_column("type"), detail);
            }
            t if TYPES.contains(&t) => {}
            _ => c.invalid(
                at_column("type"),
                at(column, "type"),
                "must be one of boolean,date,integer,number,string",
            ),
        }
        json_path(c, at(column, "jsonPath"), &at_column("JSONPath"));
    }
}

fn json_path(c: &mut Check, v: &Value, path: &str) -> Option<JsonPath> {
    let given = v.as_str().unwrap_or_default();
    if given.is_empty() {
        c.required(path, "");
        return None;
    }
    match JsonPath::parse(given) {
        Ok(parsed) => Some(parsed),
        Err(e) => {
            c.invalid(path, v, e);
            None
        }
    }
}

fn scale(c: &mut Check, scale: &Value, path: &str) {
    if scale.is_null() {
        return;
    }
    for (field, roots, required) in [
        ("specReplicasPath", &["spec"][..], true),
        ("statusReplicasPath", &["status"], true),
        ("labelSelectorPath", &["spec", "status"], false),
    ] {
        let v = at(scale, field);
        if !required && is_empty(v) {
            continue;
        }
        let path = format!("{path}subresources.scale.{field}");
        let Some(parsed) = json_path(c, v, &path) else {
            continue;
        };
        let below = match parsed.fields().as_deref() {
            Some([root, _, ..]) => roots.contains(root),
            _ => false,
        };
        if !below {
            let roots: Vec<String> = roots.iter().map(|r| format!(".{r}")).collect();
            let detail = format!("should be a json path under {}", roots.join(" or "));
            c.invalid(path, v, detail);
        }
    }
}

fn selectable_fields(c: &mut Check, version: &Value, path: &str) {
    let mut seen = HashSet::new();
    for (i, field) in list(version, "selectableFields").iter().enumerate() {
        let v = at(field, "jsonPath");
        let path = format!("{path}selectableFields[{i}].jsonPath");
        let Some(parsed) = json_path(c, v, &path) else {
            continue;
        };
        if !seen.insert(text(field, "jsonPath")) {
            c.add(FieldError::duplicate(path.clone(), v));
        }
        let Some(fields) = parsed.fields() else {
            c.invalid(path, v, "must be a simple json path of fields");
            continue;
        };
        if fields.first() == Some(&"metadata") {
            c.invalid(path, v, "must not point to fields in metadata");
            continue;
        }
        let schema = at(version, "schema.openAPIV3Schema");
        let target = fields.iter().fold(schema, |s, f| &s["properties"][*f]);
        if !matches!(
            target["type"].as_str(),
            Some("string" | "boolean" | "integer")
        ) {
            let detail = "must point to a field of type string, boolean or integer with the schema";
            c.invalid(path, v, detail);
        }
    }
}

fn conversion(c: &mut Check, v: &Value) {
    let strategy = at(v, "spec.conversion.strategy");
    match strategy.as_str() {
        None | Some("" | "None") => {
            if !is_empty(at(v, "spec.conversion.webhook")) {
                c.forbidden(
                    "spec.conversion.webhook",
                    "should not be set when strategy is not set to Webhook",
                );
            }
        }
        Some("Webhook") => conversion_webhook(c, v),
        Some(_) => c.add(FieldError::not_supported(
            "spec.conversion.strategy",
            strategy,
            &["None", "Webhook"],
        )),
    }
}

fn conversion_webhook(c: &mut Check, v: &Value) {
    let path = "spec.conversion.webhook";
    let client = at(v, "spec.conversion.webhook.clientConfig");
    if client.is_null() {
        c.required(
            format!("{path}.clientConfig"),
            "required when strategy is set to Webhook",
        );
    } else {
        super::admission::client_config(c, &format!("{path}.clientConfig"), client);
    }
    let versions = at(v, "spec.conversion.webhook.conversionReviewVersions");
    match versions.as_array() {
        None => c.required(format!("{path}.conversionReviewVersions"), ""),
        Some(all) if !all.iter().any(|v| v == "v1") => c.invalid(
            format!("{path}.conversionReviewVersions"),
            versions,
            "must include at least one of v1",
        ),
        Some(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use serde_json::json;

    fn crd() -> Value {
        json!({
            "metadata": {"name": "things.example.com"},
            "spec": {
                "group": "example.com", "scope": "Namespaced",
                "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
                "versions": [{"name": "v1", "served": true, "storage": true,
                    "schema": {"openAPIV3Schema": {"type": "object"}}}],
            },
        })
    }

    #[track_caller]
    fn check(change: impl Fn(&mut Value), want: Expect) {
        let mut v = crd();
        change(&mut v);
        let lines: Vec<String> = definition(&v).iter().map(ToString::to_string).collect();
        want.assert_eq(&lines.join("\n"));
    }

    #[test]
    fn a_sound_definition_passes() {
        check(|_| {}, expect![""]);
    }

    #[test]
    fn wrong_definitions_are_told_of_as_upstream_does() {
        check(
            |v| {
                v["spec"]["group"] = "example".into();
                v["spec"]["names"]["kind"] = "A_b".into();
                v["spec"]["names"]["shortNames"] = json!(["T"]);
                v["spec"]["preserveUnknownFields"] = true.into();
            },
            expect![[r#"
                metadata.name: Invalid value: "things.example.com": must be spec.names.plural+"."+spec.group
                spec.group: Invalid value: "example": should be a domain with at least one dot
                spec.names.kind: Invalid value: "A_b": may have mixed case, but should otherwise match: a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')
                spec.names.shortNames[0]: Invalid value: "T": a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')
                spec.preserveUnknownFields: Invalid value: true: must be false"#]],
        );
        check(
            |v| v["spec"]["versions"][0]["schema"] = Value::Null,
            expect![
                "spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required"
            ],
        );
        check(
            |v| {
                v["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"] =
                    json!({"spec": {}});
            },
            expect![
                "spec.validation.openAPIV3Schema.properties[spec].type: Required value: must not be empty for specified object fields"
            ],
        );
        check(
            |v| {
                let mut second = v["spec"]["versions"][0].clone();
                second["name"] = "v2".into();
                second["schema"]["openAPIV3Schema"]["type"] = "array".into();
                let first = v["spec"]["versions"][0].take();
                v["spec"]["versions"] = json!([first, second]);
            },
            expect![[r#"
                spec.versions: Invalid value: [{"name":"v1","schema":{"openAPIV3Schema":{"type":"object"}},"served":true,"storage":true},{"name":"v2","schema":{"openAPIV3Schema":{"type":"array"}},"served":true,"storage":true}]: must have exactly one version marked as storage version
                spec.versions[1].schema.openAPIV3Schema.type: Invalid value: "array": must be object at the root
                spec.versions[1].schema.openAPIV3Schema.items: Required value: must be specified"#]],
        );
    }

    #[test]
    fn columns_and_subresources() {
        check(
            |v| {
                let version = &mut v["spec"]["versions"][0];
                version["additionalPrinterColumns"] =
                    json!([{"name": "A", "type": "text", "jsonPath": ".a["}, {"type": "string"}]);
                version["subresources"] = json!({"scale": {"specReplicasPath": ".status.replicas", "statusReplicasPath": ".status.replicas"}});
                version["selectableFields"] = json!([{"jsonPath": ".spec.a"}]);
            },
            expect![[r#"
                spec.additionalPrinterColumns[0].type: Invalid value: "text": must be one of boolean,date,integer,number,string
                spec.additionalPrinterColumns[0].JSONPath: Invalid value: ".a[": parse JSONPath ".a[": unterminated bracket
                spec.additionalPrinterColumns[1].name: Required value
                spec.additionalPrinterColumns[1].JSONPath: Required value
                spec.subresources.scale.specReplicasPath: Invalid value: ".status.replicas": should be a json path under .spec
                spec.versions[0].selectableFields[0].jsonPath: Invalid value: ".spec.a": must point to a field of type string, boolean or integer with the schema"#]],
        );
    }

    #[test]
    fn protected_groups_need_approval() {
        let protect = |v: &mut Value| {
            v["metadata"]["name"] = "things.x.k8s.io".into();
            v["spec"]["group"] = "x.k8s.io".into();
        };
        check(
            protect,
            expect![[
                r#"metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval annotation "api-approved.kubernetes.io", see https://github.com/kubernetes/enhancements/pull/1111"#
            ]],
        );
        check(
            |v| {
                protect(v);
                v["metadata"]["annotations"] = json!({APPROVAL: "unapproved, a test"});
            },
            expect![""],
        );
    }
}

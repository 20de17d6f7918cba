//! Whether `openAPIV3Schema` is one that the server can serve: upstream's rules for
//! structural schemas, with its field paths and messages.

use super::compile::compile;
use super::validate::validate;
use crate::schema::{JsonType, Pattern};
use crate::status::FieldError;
use serde_json::Value;

/// Keywords of one schema; a larger one is refused, so that no definition costs the server
/// more than a few megabytes.
pub const KEYWORDS_MAX: usize = 100_000;

/// How deep schemas may nest.
const DEPTH_MAX: usize = 100;

/// Errors that are reported of one schema.
const ERRORS_MAX: usize = 50;

/// Keywords that may not be used at all.
const UNSUPPORTED: [(&str, &str); 6] = [
    ("$ref", "$ref is not supported"),
    ("id", "id is not supported"),
    ("definitions", "definitions is not supported"),
    ("dependencies", "dependencies is not supported"),
    ("patternProperties", "patternProperties is not supported"),
    ("additionalItems", "additionalItems is not supported"),
];

/// Keywords that structure objects and may not stand inside `allOf`, `anyOf`, `oneOf`, `not`.
const STRUCTURAL_ONLY: [&str; 10] = [
    "additionalProperties",
    "nullable",
    "type",
    "default",
    "title",
    "description",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
];

/// Checks a schema; `path` is where it is in its definition. No errors means structural.
pub fn check(open_api: &Value, path: &str) -> Vec<FieldError> {
    let mut c = Checker {
        errors: Vec::new(),
        keywords: 0,
    };
    c.node(open_api, path, Level::Root, 0);
    c.metadata(&open_api["properties"]["metadata"], path);
    if c.errors.is_empty() {
        c.defaults(open_api, path);
        c.errors.extend(super::rules::check(open_api, path));
    }
    c.errors
}

/// Where a schema stands in the one around it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Field,
    Item,
}

struct Checker {
    errors: Vec<FieldError>,
    keywords: usize,
}

impl Checker {
    fn push(&mut self, error: FieldError) {
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(error);
        }
    }

    fn forbid(&mut self, path: impl Into<String>, detail: &str) {
        self.push(FieldError::forbidden(path, detail));
    }

    fn invalid(&mut self, path: impl Into<String>, v: &Value, detail: &str) {
        self.push(FieldError::invalid(path, v, detail));
    }

    fn require(&mut self, path: impl Into<String>, detail: &str) {
        self.push(FieldError::required(path, detail));
    }

    /// Counts keywords; whether there is room for more.
    fn room(&mut self, node: &Value, path: &str, depth: usize) -> bool {
        self.keywords += node.as_object().map_or(0, serde_json::Map::len);
        if self.keywords > KEYWORDS_MAX || depth > DEPTH_MAX {
            if self.errors.iter().all(|e| e.reason != "FieldValueTooMany") {
                self.push(FieldError {
                    field: path.to_owned(),
                    reason: "FieldValueTooMany",
                    message: format!(
                        "Too many: the schema has more than {KEYWORDS_MAX} keywords or is nested deeper than {DEPTH_MAX}"
                    ),
                });
            }
            return false;
        }
        true
    }

    fn node(&mut self, node: &Value, path: &str, level: Level, depth: usize) {
        if !self.room(node, path, depth) {
            return;
        }
        self.types(node, path, level);
        self.extensions(node, path, level);
        self.keywords(node, path);
        for (name, property) in node["properties"].as_object().into_iter().flatten() {
            // Metadata of the root has rules of its own.
            if level == Level::Root && name == "metadata" {
                continue;
            }
            let path = format!("{path}.properties[{name}]");
            self.node(property, &path, Level::Field, depth + 1);
        }
        if node["additionalProperties"].is_object() {
            let path = format!("{path}.additionalProperties");
            self.node(
                &node["additionalProperties"],
                &path,
                Level::Field,
                depth + 1,
            );
        }
        match &node["items"] {
            items @ Value::Object(_) => {
                self.node(items, &format!("{path}.items"), Level::Item, depth + 1);
            }
            Value::Array(_) => self.forbid(
                format!("{path}.items"),
                "items must be a schema object and not an array",
            ),
            _ => {}
        }
        self.logic(node, node, path, depth);
    }

    fn types(&mut self, node: &Value, path: &str, level: Level) {
        let ty = &node["type"];
        let name = ty.as_str().unwrap_or_default();
        let at = |field: &str| format!("{path}.{field}");
        let free = node["x-kubernetes-int-or-string"] == true
            || node["x-kubernetes-preserve-unknown-fields"] == true;
        match (name, level) {
            ("", Level::Root) => self.require(at("type"), "must not be empty at the root"),
            ("", _) if free => {}
            ("", Level::Field) => {
                self.require(at("type"), "must not be empty for specified object fields");
            }
            ("", Level::Item) => {
                self.require(at("type"), "must not be empty for specified array items");
            }
            ("object", _) => {}
            (_, Level::Root) => self.invalid(at("type"), ty, "must be object at the root"),
            _ => {}
        }
        if !name.is_empty() && JsonType::parse(name).is_none() {
            const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
            self.push(FieldError::not_supported(at("type"), ty, &TYPES));
        }
        if node["x-kubernetes-int-or-string"] == true && !name.is_empty() {
            self.invalid(
                at("type"),
                ty,
                "must be empty if x-kubernetes-int-or-string is true",
            );
        }
        if name != "object" {
            for (field, there) in [
                ("properties", node["properties"].is_object()),
                (
                    "additionalProperties",
                    !node["additionalProperties"].is_null(),
                ),
            ] {
                if there && !(name.is_empty() && free) {
                    let detail = format!("must be object if {field} is specified");
                    self.invalid(at("type"), ty, &detail);
                }
            }
        }
        if name == "array" && node["items"].is_null() {
            self.require(at("items"), "must be specified");
        }
        if name != "array" && node["items"].is_object() {
            self.invalid(at("type"), ty, "must be array if items is specified");
        }
        if node["properties"].is_object() && !node["additionalProperties"].is_null() {
            self.forbid(
                at("additionalProperties"),
                "additionalProperties and properties are mutual exclusive",
            );
        }
        if node["additionalProperties"] == false {
            self.forbid(
                at("additionalProperties"),
                "additionalProperties cannot be set to false",
            );
        }
    }

    fn extensions(&mut self, node: &Value, path: &str, level: Level) {
        let at = |field: &str| format!("{path}.{field}");
        let name = node["type"].as_str().unwrap_or_default();
        let preserves = &node["x-kubernetes-preserve-unknown-fields"];
        if *preserves == false {
            self.invalid(
                at("x-kubernetes-preserve-unknown-fields"),
                preserves,
                "must be true or undefined",
            );
        }
        if node["x-kubernetes-embedded-resource"] == true {
            if level == Level::Root {
                self.forbid(
                    at("x-kubernetes-embedded-resource"),
                    "must not be used at the root",
                );
            }
            if name != "object" {
                self.invalid(
                    at("type"),
                    &node["type"],
                    "must be object if x-kubernetes-embedded-resource is true",
                );
            }
            if node["properties"].is_null() && *preserves != true {
                self.require(
                    at("properties"),
                    "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
                );
            }
        }
        self.map_type(node, path, name);
        self.list_type(node, path, name);
    }

    fn map_type(&mut self, node: &Value, path: &str, name: &str) {
        let map_type = &node["x-kubernetes-map-type"];
        match map_type.as_str() {
            None => {}
            Some("granular" | "atomic") if name == "object" => {}
            Some("granular" | "atomic") => self.invalid(
                format!("{path}.type"),
                &node["type"],
                "must be object if x-kubernetes-map-type is specified",
            ),
            Some(_) => self.push(FieldError::not_supported(
                format!("{path}.x-kubernetes-map-type"),
                map_type,
                &["atomic", "granular"],
            )),
        }
    }

    fn list_type(&mut self, node: &Value, path: &str, name: &str) {
        let at = |field: &str| format!("{path}.{field}");
        let list_type = &node["x-kubernetes-list-type"];
        let keys = node["x-kubernetes-list-map-keys"].as_array();
        let kind = list_type.as_str().unwrap_or_default();
        if !matches!(kind, "" | "atomic" | "set" | "map") {
            self.push(FieldError::not_supported(
                at("x-kubernetes-list-type"),
                list_type,
                &["atomic", "set", "map"],
            ));
            return;
        }
        if !kind.is_empty() && name != "array" {
            self.invalid(
                at("type"),
                &node["type"],
                "must be array if x-kubernetes-list-type is specified",
            );
            return;
        }
        let items = &node["items"];
        if kind == "map" {
            if items["type"] != "object" {
                self.invalid(
                    at("items.type"),
                    &items["type"],
                    "must be object if parent array's x-kubernetes-list-type is map",
                );
            }
            if keys.is_none_or(Vec::is_empty) {
                self.require(
                    at("x-kubernetes-list-map-keys"),
                    "must not be empty if x-kubernetes-list-type is map",
                );
            }
        } else if keys.is_some_and(|k| !k.is_empty()) {
            self.invalid(
                at("x-kubernetes-list-type"),
                list_type,
                "must be map if x-kubernetes-list-map-keys is non-empty",
            );
            return;
        }
        if kind == "set"
            && (items["type"] == "array" && items["x-kubernetes-list-type"] != "atomic"
                || items["type"] == "object" && items["x-kubernetes-map-type"] != "atomic")
        {
            self.invalid(
                at("items"),
                &items["type"],
                "must be a scalar, or an atomic list or map, as item of a list with x-kubernetes-list-type=set",
            );
        }
        for (i, key) in keys.into_iter().flatten().enumerate() {
            let Some(name) = key.as_str() else { continue };
            let property = &items["properties"][name];
            if property.is_null() {
                self.invalid(
                    format!("{path}.x-kubernetes-list-map-keys[{i}]"),
                    key,
                    "entries must all be names of item properties",
                );
                continue;
            }
            let required = items["required"]
                .as_array()
                .is_some_and(|r| r.contains(key));
            if !required && property["default"].is_null() {
                self.require(
                    format!("{path}.items.properties[{name}].default"),
                    "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
                );
            }
        }
    }

    /// Keywords that are refused anywhere, and values that keywords may not have.
    fn keywords(&mut self, node: &Value, path: &str) {
        for (name, detail) in UNSUPPORTED {
            if !node[name].is_null() {
                self.forbid(format!("{path}.{name}"), detail);
            }
        }
        if node["uniqueItems"] == true {
            self.forbid(
                format!("{path}.uniqueItems"),
                "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            );
        }
        if let Some(Err(e)) = node["pattern"].as_str().map(Pattern::check) {
            let detail = format!("must be a valid regular expression, but isn't: {e}");
            self.invalid(format!("{path}.pattern"), &node["pattern"], &detail);
        }
        for name in [
            "maxLength",
            "minLength",
            "maxItems",
            "minItems",
            "maxProperties",
            "minProperties",
        ] {
            if node[name].as_i64().is_some_and(|n| n < 0) {
                self.invalid(
                    format!("{path}.{name}"),
                    &node[name],
                    "must be greater than or equal to 0",
                );
            }
        }
    }

    /// Logical keywords may constrain what the schema around them has, and nothing else.
    fn logic(&mut self, around: &Value, node: &Value, path: &str, depth: usize) {
        for keyword in ["allOf", "anyOf", "oneOf"] {
            for (i, n) in node[keyword].as_array().into_iter().flatten().enumerate() {
                self.nested(
                    around,
                    n,
                    &format!("{path}.{keyword}[{i}]"),
                    path,
                    depth + 1,
                );
            }
        }
        if node["not"].is_object() {
            self.nested(
                around,
                &node["not"],
                &format!("{path}.not"),
                path,
                depth + 1,
            );
        }
    }

    fn nested(&mut self, around: &Value, node: &Value, path: &str, origin: &str, depth: usize) {
        if !self.room(node, path, depth) {
            return;
        }
        let int_or_string = around["x-kubernetes-int-or-string"] == true;
        for keyword in STRUCTURAL_ONLY {
            let v = &node[keyword];
            let absent = v.is_null() || *v == false || *v == "";
            let allowed = keyword == "type" && int_or_string;
            if !(absent || allowed) {
                self.forbid(
                    format!("{path}.{keyword}"),
                    "must be empty to be structural",
                );
            }
        }
        self.keywords(node, path);
        for (name, property) in node["properties"].as_object().into_iter().flatten() {
            let inner = format!("{path}.properties[{name}]");
            let known = &around["properties"][name.as_str()];
            let values = &around["additionalProperties"];
            let target = if known.is_null() { values } else { known };
            if !target.is_object() && around["x-kubernetes-preserve-unknown-fields"] != true {
                let tail = inner.strip_prefix(origin).unwrap_or(&inner);
                self.require(
                    format!("{origin}.properties[{name}]"),
                    &format!("because it is defined in {}", tail.trim_start_matches('.')),
                );
                continue;
            }
            self.nested(
                target,
                property,
                &inner,
                &format!("{origin}.properties[{name}]"),
                depth + 1,
            );
        }
        if node["items"].is_object() {
            let inner = format!("{path}.items");
            if around["items"].is_object() {
                self.nested(
                    &around["items"],
                    &node["items"],
                    &inner,
                    &format!("{origin}.items"),
                    depth + 1,
                );
            } else {
                let tail = inner.strip_prefix(origin).unwrap_or(&inner);
                self.require(
                    format!("{origin}.items"),
                    &format!("because it is defined in {}", tail.trim_start_matches('.')),
                );
            }
        }
        self.logic(around, node, path, depth);
    }

    /// Of metadata a definition may constrain only the names.
    fn metadata(&mut self, node: &Value, path: &str) {
        let Some(map) = node.as_object() else { return };
        let names_only = node["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .all(|(k, _)| matches!(k.as_str(), "name" | "generateName"));
        let plain = map
            .keys()
            .all(|k| matches!(k.as_str(), "type" | "properties" | "description"));
        let at = format!("{path}.properties[metadata]");
        if node["type"] != "object" {
            self.invalid(format!("{at}.type"), &node["type"], "must be object");
        }
        if !names_only || !plain {
            self.forbid(
                at,
                "must not specify anything other than name and generateName, but metadata is implicitly specified",
            );
        }
    }

    /// A default is a value of what it is the default of.
    fn defaults(&mut self, node: &Value, path: &str) {
        if let Some(default) = node.get("default").filter(|d| !d.is_null()) {
            // The node alone, under a name: an object whose only field it is.
            let around = serde_json::json!({"type": "object", "properties": {"default": node}});
            let compiled = compile(&around, "default");
            let mut value = serde_json::json!({"default": default});
            super::default(&compiled.schema, compiled.root, &mut value);
            let field = format!("{path}.default");
            for e in validate(&compiled.schema, compiled.root, &value, None) {
                let rest = e.field.strip_prefix("default").unwrap_or_default();
                self.push(FieldError {
                    field: format!("{field}{rest}"),
                    ..e
                });
            }
        }
        for (name, property) in node["properties"].as_object().into_iter().flatten() {
            self.defaults(property, &format!("{path}.properties[{name}]"));
        }
        for keyword in ["items", "additionalProperties"] {
            if node[keyword].is_object() {
                self.defaults(&node[keyword], &format!("{path}.{keyword}"));
            }
        }
    }
}

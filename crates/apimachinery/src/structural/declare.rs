//! From `openAPIV3Schema` to the types that expressions see, with sizes estimated from what
//! a request can hold.
//!
//! The reference is `k8s.io/apiserver/pkg/cel/common/schemas.go`.

use crate::cel::{FieldType, ListType, MapType, ObjectType, Type, escape};
use crate::schema::ListKind;
use serde_json::Value;
use std::sync::Arc;

/// Bytes of the largest request.
const REQUEST_BYTES_MAX: u64 = 3 * 1024 * 1024;
/// Bytes of a character.
const CHAR_BYTES_MAX: u64 = 4;
/// `"0000-01-01T00:00:00Z"`, and the longest time.
const TIME_BYTES: (u64, u64) = (22, 38);
/// `"0s"`, and the longest duration.
const DURATION_BYTES: (u64, u64) = (4, 34);
/// A date in quotes.
const DATE_BYTES: u64 = 12;

/// A type and the fewest bytes of JSON that a value takes.
#[derive(Debug)]
pub(crate) struct Declared {
    pub(crate) ty: Type,
    bytes_min: u64,
}

impl Declared {
    /// How many values of the type fit in a request.
    pub(crate) fn count_max(&self) -> u64 {
        (REQUEST_BYTES_MAX - 2) / (self.bytes_min + 1)
    }

    fn new(ty: Type, bytes_min: u64) -> Self {
        Self { ty, bytes_min }
    }
}

/// The type of a node; `None` when expressions can't see it. A `root` is an object with a
/// kind, a version and metadata.
pub(crate) fn declare(node: &Value, root: bool) -> Option<Declared> {
    if node["x-kubernetes-int-or-string"] == true {
        return Some(Declared::new(Type::Dyn, 1));
    }
    let max = |name: &str| node[name].as_i64().map(|n| u64::try_from(n).unwrap_or(0));
    match node["type"].as_str().unwrap_or_default() {
        "array" => {
            let item = declare(&node["items"], false)?;
            let kind = match node["x-kubernetes-list-type"].as_str() {
                Some("set") => ListKind::Set,
                Some("map") => ListKind::Map(
                    node["x-kubernetes-list-map-keys"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(|k| k.as_str().map(Box::from))
                        .collect(),
                ),
                _ => ListKind::Atomic,
            };
            let max = max("maxItems").unwrap_or_else(|| item.count_max());
            let item = item.ty;
            Some(Declared::new(
                Type::List(Arc::new(ListType { item, max, kind })),
                2,
            ))
        }
        "object" => object(node, root),
        "string" => Some(string(node)),
        "boolean" => Some(Declared::new(Type::Bool, 4)),
        "number" => Some(Declared::new(Type::Double, 1)),
        "integer" => Some(Declared::new(Type::Int, 1)),
        // Whatever it is, it is kept: expressions can't know it.
        _ => None,
    }
}

fn object(node: &Value, root: bool) -> Option<Declared> {
    let embedded = root || node["x-kubernetes-embedded-resource"] == true;
    if node["additionalProperties"].is_object() {
        let value = declare(&node["additionalProperties"], false)?;
        // A key of no length, quotes, a colon and a comma.
        let fit = (REQUEST_BYTES_MAX - 2) / (value.bytes_min + 6);
        let max = node["maxProperties"].as_u64().unwrap_or(fit);
        let key = Type::String(REQUEST_BYTES_MAX - 2);
        let map = MapType {
            key,
            value: value.ty,
            max,
        };
        return Some(Declared::new(Type::Map(Arc::new(map)), 2));
    }
    let required: Vec<&str> = node["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut fields = Vec::new();
    let mut bytes_min = 2;
    for (name, property) in node["properties"].as_object().into_iter().flatten() {
        if embedded && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            continue;
        }
        let Some(declared) = declare(property, false) else {
            continue;
        };
        if required.contains(&name.as_str()) && property["default"].is_null() {
            bytes_min += name.len() as u64 + 4 + declared.bytes_min;
        }
        // One that expressions can't write is not there for them.
        if let Some(escaped) = escape(name) {
            fields.push(FieldType {
                name: escaped.into(),
                key: name.as_str().into(),
                ty: declared.ty,
            });
        }
    }
    if embedded {
        let text = || Type::String(REQUEST_BYTES_MAX - 2);
        let metadata = vec![
            FieldType::plain("name", text()),
            FieldType::plain("generateName", text()),
        ];
        fields.push(FieldType::plain("apiVersion", text()));
        fields.push(FieldType::plain("kind", text()));
        fields.push(FieldType::plain(
            "metadata",
            Type::object("object", metadata),
        ));
    }
    let ty = Type::Object(Arc::new(ObjectType::new("object", fields)));
    Some(Declared::new(ty, bytes_min))
}

fn string(node: &Value) -> Declared {
    match node["format"].as_str() {
        Some("byte") => {
            let max = node["maxLength"].as_u64().unwrap_or(REQUEST_BYTES_MAX - 2);
            return Declared::new(Type::Bytes(max), 2);
        }
        Some("duration") => return Declared::new(Type::Duration, DURATION_BYTES.0),
        Some("date") => return Declared::new(Type::Timestamp, DATE_BYTES),
        Some("date-time") => return Declared::new(Type::Timestamp, TIME_BYTES.0),
        _ => {}
    }
    let values = node["enum"].as_array();
    let longest = values
        .into_iter()
        .flatten()
        .map(|v| v.as_str().map_or(0, str::len) as u64)
        .max();
    let length = node["maxLength"]
        .as_i64()
        .map(|n| u64::try_from(n).unwrap_or(0));
    let max = match (length, longest) {
        (Some(n), _) => n.saturating_mul(CHAR_BYTES_MAX),
        (None, Some(n)) => n,
        (None, None) => REQUEST_BYTES_MAX - 2,
    };
    Declared::new(Type::String(max), 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sizes_come_from_bounds_and_from_what_a_request_holds() {
        let max = |node: Value| match declare(&node, false).unwrap().ty {
            Type::String(n) => n,
            Type::List(l) => l.max,
            Type::Map(m) => m.max,
            other => panic!("{other}"),
        };
        assert_eq!(max(json!({"type": "string", "maxLength": 5})), 20);
        assert_eq!(max(json!({"type": "string", "enum": ["a", "abc"]})), 3);
        assert_eq!(max(json!({"type": "string"})), 3_145_726);
        let list = json!({"type": "array", "items": {"type": "string"}});
        assert_eq!(max(list), 1_048_575);
        let map = json!({"type": "object", "additionalProperties": {"type": "integer"}});
        assert_eq!(max(map), 449_389);
        assert!(
            declare(
                &json!({"x-kubernetes-preserve-unknown-fields": true}),
                false
            )
            .is_none()
        );
    }
}

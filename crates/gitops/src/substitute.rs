//! `postBuild`: `${name}` in objects replaced by values, as Flux (and before it a shell) does.
//!
//! A text that was only a variable becomes what YAML makes of the value, unless its field
//! holds text: `replicas: ${n}` is a number, `value: ${n}` of an environment variable is not.
//! `$${name}` stands for `${name}`.

use apimachinery::gvk::GroupVersion;
use apimachinery::schema::{Scalar, Schema, Type, TypeId};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Label or annotation of objects that are left as they are.
const SUBSTITUTE: &str = "kustomize.toolkit.fluxcd.io/substitute";
/// Most bytes that one text may grow to.
const TEXT_MAX: usize = 4 << 20;

/// An expression that is not understood, or a text that grows too long.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("substitute {expression}: {why}")]
pub struct SubstituteError {
    /// As it stands.
    pub expression: String,
    /// Why.
    pub why: &'static str,
}

/// Replaces variables in an object.
///
/// # Errors
/// [`SubstituteError`]; the object is then half done.
pub fn substitute(
    object: &mut Value,
    variables: &BTreeMap<String, String>,
) -> Result<(), SubstituteError> {
    let disabled = ["labels", "annotations"]
        .iter()
        .any(|field| object["metadata"][*field][SUBSTITUTE] == "disabled");
    if disabled {
        return Ok(());
    }
    let schema = Schema::builtin();
    let ty = GroupVersion::parse(object["apiVersion"].as_str().unwrap_or_default())
        .map(|gv| gv.kind(object["kind"].as_str().unwrap_or_default()))
        .and_then(|gvk| schema.kind(&gvk));
    let walk = Walk { schema, variables };
    walk.value(object, Place::At(ty))
}

/// What is known of the field that is looked at.
#[derive(Clone, Copy)]
enum Place {
    At(Option<TypeId>),
    /// Texts only: metadata of any kind.
    Texts,
}

struct Walk<'a> {
    schema: &'a Schema,
    variables: &'a BTreeMap<String, String>,
}

impl Walk<'_> {
    fn value(&self, value: &mut Value, place: Place) -> Result<(), SubstituteError> {
        match value {
            Value::String(text) if text.contains('$') => {
                let whole = is_whole(text);
                let new = expand(text, self.variables)?;
                *value = if whole && !self.is_text(place) {
                    scalar(&new)
                } else {
                    Value::String(new)
                };
            }
            Value::Array(list) => {
                let item = match place {
                    Place::At(Some(ty)) => match self.schema.get(ty) {
                        Type::List(list) => Place::At(Some(list.item)),
                        _ => Place::At(None),
                    },
                    other => other,
                };
                for inner in list {
                    self.value(inner, item)?;
                }
            }
            Value::Object(map) => {
                if map.keys().any(|k| k.contains("${")) {
                    let mut renamed = Map::new();
                    for (key, inner) in std::mem::take(map) {
                        renamed.insert(expand(&key, self.variables)?, inner);
                    }
                    *map = renamed;
                }
                for (key, inner) in map {
                    self.value(inner, self.field(place, key))?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn field(&self, place: Place, key: &str) -> Place {
        match place {
            Place::Texts => Place::Texts,
            Place::At(Some(ty)) => Place::At(match self.schema.get(ty) {
                Type::Struct(s) => s.field(key).map(|f| f.ty),
                Type::Map(inner) => Some(*inner),
                _ => None,
            }),
            Place::At(None) if key == "metadata" => Place::Texts,
            Place::At(None) => Place::At(None),
        }
    }

    fn is_text(&self, place: Place) -> bool {
        match place {
            Place::Texts => true,
            Place::At(None) => false,
            Place::At(Some(ty)) => matches!(
                self.schema.get(ty),
                Type::Scalar(
                    Scalar::String
                        | Scalar::Bytes
                        | Scalar::Quantity
                        | Scalar::Time
                        | Scalar::MicroTime
                        | Scalar::Duration
                )
            ),
        }
    }
}

/// Whether a text is one expression and nothing else.
fn is_whole(text: &str) -> bool {
    text.starts_with("${") && closing(&text[2..]).is_some_and(|end| end + 3 == text.len())
}

/// What YAML makes of a plain text.
fn scalar(text: &str) -> Value {
    if text.is_empty() {
        return Value::Null;
    }
    if text.contains('\n') || text.len() > 64 {
        return Value::String(text.to_owned());
    }
    match serde_saphyr::from_str::<Value>(text) {
        Ok(value @ (Value::Number(_) | Value::Bool(_) | Value::Null | Value::String(_))) => value,
        _ => Value::String(text.to_owned()),
    }
}

/// Where an expression ends: braces inside it are paired.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn expand(text: &str, variables: &BTreeMap<String, String>) -> Result<String, SubstituteError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(escaped) = rest.strip_prefix("$${") {
            out.push_str("${");
            rest = escaped;
            continue;
        }
        let inner = rest.strip_prefix("${");
        match inner.and_then(|inner| closing(inner).map(|end| (&inner[..end], &inner[end + 1..]))) {
            Some((expression, after)) => {
                out.push_str(&evaluate(expression, variables)?);
                rest = after;
            }
            None => {
                out.push('$');
                rest = &rest[1..];
            }
        }
        if out.len() > TEXT_MAX {
            return Err(SubstituteError {
                expression: text.chars().take(40).collect(),
                why: "the text grows too long",
            });
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn evaluate(
    expression: &str,
    variables: &BTreeMap<String, String>,
) -> Result<String, SubstituteError> {
    let fail = |why| SubstituteError {
        expression: format!("${{{expression}}}"),
        why,
    };
    let value_of = |name: &str| variables.get(name).map(String::as_str);
    if let Some(name) = expression.strip_prefix('#') {
        return Ok(value_of(name)
            .unwrap_or_default()
            .chars()
            .count()
            .to_string());
    }
    let end = expression
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .unwrap_or(expression.len());
    let (name, operation) = expression.split_at(end);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(fail("it does not begin with a variable's name"));
    }
    let value = value_of(name).unwrap_or_default();
    let default = |text: &str| -> Result<String, SubstituteError> {
        if value.is_empty() {
            expand(text, variables)
        } else {
            Ok(value.to_owned())
        }
    };
    if operation.is_empty() {
        return Ok(value.to_owned());
    }
    for prefix in [":=", ":-", "=", "-"] {
        if let Some(text) = operation.strip_prefix(prefix) {
            return default(text);
        }
    }
    if let Some(text) = operation.strip_prefix(":+").or(operation.strip_prefix('+')) {
        return if value.is_empty() {
            Ok(String::new())
        } else {
            expand(text, variables)
        };
    }
    if let Some(range) = operation.strip_prefix(':') {
        return slice(value, range).ok_or_else(|| fail("the range is not understood"));
    }
    match operation {
        "^^" => return Ok(value.to_uppercase()),
        ",," => return Ok(value.to_lowercase()),
        "^" => return Ok(first(value, |c| c.to_uppercase().collect())),
        "," => return Ok(first(value, |c| c.to_lowercase().collect())),
        _ => {}
    }
    if let Some(rest) = operation.strip_prefix("//") {
        let (old, new) = rest.split_once('/').unwrap_or((rest, ""));
        return if old.is_empty() {
            Ok(value.to_owned())
        } else {
            Ok(value.replace(old, new))
        };
    }
    if let Some(rest) = operation.strip_prefix('/') {
        let (old, new) = rest.split_once('/').unwrap_or((rest, ""));
        return Ok(value.replacen(old, new, 1));
    }
    Err(fail("the operation is not supported"))
}

fn first(value: &str, f: impl Fn(char) -> String) -> String {
    let mut chars = value.chars();
    chars
        .next()
        .map_or_else(String::new, |c| f(c) + chars.as_str())
}

/// `offset` or `offset:length`, in characters.
fn slice(value: &str, range: &str) -> Option<String> {
    let (offset, length) = match range.split_once(':') {
        Some((offset, length)) => (offset.trim(), Some(length.trim().parse::<usize>().ok()?)),
        None => (range.trim(), None),
    };
    let offset: usize = offset.parse().ok()?;
    let rest = value.chars().skip(offset);
    Some(match length {
        Some(length) => rest.take(length).collect(),
        None => rest.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn variables() -> BTreeMap<String, String> {
        [("n", "3"), ("site", "Shop-1"), ("empty", "")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into()
    }

    #[test]
    fn expressions_are_those_of_a_shell() {
        for (text, want) in [
            ("a ${site} b", "a Shop-1 b"),
            ("${absent}", ""),
            ("${absent:=x}", "x"),
            ("${empty:-${site}}", "Shop-1"),
            ("${site:=x}", "Shop-1"),
            ("${site,,} ${site^^} ${#site}", "shop-1 SHOP-1 6"),
            ("${site:5} ${site:0:4}", "1 Shop"),
            ("${site/o/0} ${site//-/_}", "Sh0p-1 Shop_1"),
            ("$${site} $site $ {x} ${open", "${site} $site $ {x} ${open"),
        ] {
            assert_eq!(expand(text, &variables()).as_deref(), Ok(want), "{text}");
        }
        for text in ["${1x}", "${}", "${site%%x}", "${site:a}"] {
            assert!(expand(text, &variables()).is_err(), "{text}");
        }
    }

    #[test]
    fn texts_stay_texts_where_the_field_holds_text() {
        let mut object = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "${site,,}", "labels": {"n": "${n}"}},
            "spec": {"replicas": "${n}", "template": {"spec": {"containers": [{
                "name": "c", "env": [{"name": "N", "value": "${n}"}],
                "ports": [{"containerPort": "${port:=80}"}],
            }]}}},
        });
        substitute(&mut object, &variables()).unwrap();
        assert_eq!(object["metadata"]["labels"]["n"], "3");
        assert_eq!(object["spec"]["replicas"], 3);
        let container = &object["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["env"][0]["value"], "3");
        assert_eq!(container["ports"][0]["containerPort"], 80);

        let mut other = json!({
            "apiVersion": "example.com/v1", "kind": "Widget",
            "metadata": {"name": "w", "annotations": {"n": "${n}"}}, "spec": {"n": "${n}"},
        });
        substitute(&mut other, &variables()).unwrap();
        assert_eq!(other["metadata"]["annotations"]["n"], "3");
        assert_eq!(other["spec"]["n"], 3);

        let mut off = json!({"metadata": {"annotations": {SUBSTITUTE: "disabled"}}, "x": "${n}"});
        substitute(&mut off, &variables()).unwrap();
        assert_eq!(off["x"], "${n}");
    }
}

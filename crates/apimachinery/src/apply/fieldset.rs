//! Sets of field paths, and their text form `FieldsV1`.
//!
//! A set is a tree whose edges are path elements in the very form that
//! `FieldsV1` writes them: `f:name`, `k:{"name":"a"}` (keys sorted, no spaces),
//! `v:"x"`, `i:0`. So equality and order of elements are those of strings, and
//! reading and writing the text form is a walk.

use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One step of a path, as `FieldsV1` writes it.
pub(super) type Element = Box<str>;

/// A set of paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Set(pub(super) BTreeMap<Element, Node>);

/// What a set knows of one element.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    /// The path to here is in the set.
    pub(super) member: bool,
    /// Longer paths in the set.
    pub(super) children: Set,
}

pub(super) fn field(name: &str) -> Element {
    format!("f:{name}").into()
}

impl Set {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn insert(&mut self, path: &[Element]) {
        let Some((first, rest)) = path.split_first() else {
            return;
        };
        let node = match self.0.get_mut(first) {
            Some(node) => node,
            None => self.0.entry(first.clone()).or_default(),
        };
        if rest.is_empty() {
            node.member = true;
        } else {
            node.children.insert(rest);
        }
    }

    /// Adds all paths of `other`; whether any was new.
    pub(super) fn unite(&mut self, other: &Set) -> bool {
        let mut changed = false;
        for (e, theirs) in &other.0 {
            match self.0.get_mut(e) {
                Some(ours) => {
                    changed |= theirs.member && !ours.member;
                    ours.member |= theirs.member;
                    changed |= ours.children.unite(&theirs.children);
                }
                None => {
                    self.0.insert(e.clone(), theirs.clone());
                    changed = true;
                }
            }
        }
        changed
    }

    /// Drops the paths of `other`; whether any was there.
    pub(super) fn subtract(&mut self, other: &Set) -> bool {
        if other.is_empty() {
            return false;
        }
        let mut changed = false;
        self.0.retain(|e, ours| {
            let Some(theirs) = other.0.get(e) else {
                return true;
            };
            if theirs.member && ours.member {
                ours.member = false;
                changed = true;
            }
            changed |= ours.children.subtract(&theirs.children);
            ours.member || !ours.children.is_empty()
        });
        changed
    }

    /// The paths that are in both.
    pub(super) fn intersection(&self, other: &Set) -> Set {
        let mut out = Set::default();
        for (e, ours) in &self.0 {
            if let Some(theirs) = other.0.get(e) {
                let node = Node {
                    member: ours.member && theirs.member,
                    children: ours.children.intersection(&theirs.children),
                };
                if node.member || !node.children.is_empty() {
                    out.0.insert(e.clone(), node);
                }
            }
        }
        out
    }

    /// Every path as people read it, such as `.spec.containers[name="a"].image`.
    pub(super) fn paths(&self) -> Vec<String> {
        fn walk(set: &Set, prefix: &str, out: &mut Vec<String>) {
            for (e, node) in &set.0 {
                let path = format!("{prefix}{}", shown(e));
                if node.member {
                    out.push(path.clone());
                }
                walk(&node.children, &path, out);
            }
        }
        let mut out = Vec::new();
        walk(self, "", &mut out);
        out
    }

    /// The `FieldsV1` object.
    pub(super) fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (e, node) in &self.0 {
            let mut inner = match node.children.to_value() {
                Value::Object(m) => m,
                _ => Map::new(),
            };
            if node.member && !node.children.is_empty() {
                inner.insert(".".to_owned(), Value::Object(Map::new()));
            }
            out.insert(e.to_string(), Value::Object(inner));
        }
        Value::Object(out)
    }

    /// Reads a `FieldsV1` object.
    pub(super) fn from_value(v: &Value) -> Result<Set, String> {
        let map = v
            .as_object()
            .ok_or_else(|| format!("fieldsV1 must be an object, got {v}"))?;
        let mut set = Set::default();
        for (key, inner) in map {
            if key == "." {
                continue;
            }
            let element = canonical(key)?;
            let children = Set::from_value(inner)?;
            let member = children.is_empty() || inner.get(".").is_some();
            set.0.insert(element, Node { member, children });
        }
        Ok(set)
    }
}

/// An element in canonical form; what a server wrote is so already.
fn canonical(key: &str) -> Result<Element, String> {
    let bad = || format!("fieldsV1: unknown path element {key:?}");
    let (kind, rest) = key.split_once(':').ok_or_else(bad)?;
    match kind {
        "f" => Ok(key.into()),
        "i" if rest.parse::<u32>().is_ok() => Ok(key.into()),
        "v" => {
            let v: Value = serde_json::from_str(rest).map_err(|_| bad())?;
            Ok(format!("v:{v}").into())
        }
        "k" => {
            let v: Value = serde_json::from_str(rest).map_err(|_| bad())?;
            let mut pairs: Vec<_> = v.as_object().ok_or_else(bad)?.iter().collect();
            pairs.sort_by_key(|(k, _)| *k);
            Ok(keyed(pairs.into_iter().map(|(k, v)| (&**k, v))))
        }
        _ => Err(bad()),
    }
}

/// The element of a list item with these key fields, which must be sorted by name.
pub(super) fn keyed<'a>(pairs: impl Iterator<Item = (&'a str, &'a Value)>) -> Element {
    let mut out = String::from("k:{");
    for (i, (k, v)) in pairs.enumerate() {
        if i > 0 {
            out.push(',');
        }
        let _ = write!(out, "{}:{v}", Value::from(k));
    }
    out.push('}');
    out.into()
}

fn shown(e: &str) -> String {
    let Some((kind, rest)) = e.split_once(':') else {
        return e.to_owned();
    };
    match kind {
        "f" => format!(".{rest}"),
        "v" => format!("[={rest}]"),
        "k" => {
            let v: Value = serde_json::from_str(rest).unwrap_or_default();
            let pairs: Vec<_> = v
                .as_object()
                .into_iter()
                .flatten()
                .map(|(k, v)| format!("{k}={v}"))
                .collect();
            format!("[{}]", pairs.join(","))
        }
        _ => format!("[{rest}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_form_reads_back() {
        let v = json!({
            "f:metadata": {"f:labels": {".": {}, "f:a": {}}, "f:finalizers": {"v:\"x\"": {}}},
            "f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}},
        });
        let set = Set::from_value(&v).expect("is well-formed");
        assert_eq!(set.to_value(), v);
        assert_eq!(
            set.paths(),
            [
                r#".metadata.finalizers[="x"]"#,
                ".metadata.labels",
                ".metadata.labels.a",
                r#".spec.ports[port=80,protocol="TCP"]"#,
                r#".spec.ports[port=80,protocol="TCP"].port"#,
            ]
        );
        let spaced = json!({"k:{\"protocol\": \"TCP\", \"port\": 80}": {}});
        let set = Set::from_value(&spaced).expect("is well-formed");
        assert_eq!(
            set.to_value(),
            json!({"k:{\"port\":80,\"protocol\":\"TCP\"}": {}})
        );
        for bad in [
            json!({"x": {}}),
            json!({"q:x": {}}),
            json!({"k:[]": {}}),
            json!({"f:a": 1}),
        ] {
            assert!(Set::from_value(&bad).is_err(), "{bad}");
        }
    }
}

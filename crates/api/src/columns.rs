//! Printed columns: what `kubectl get` shows of each kind, cell by cell.
//!
//! Each kind has a list of columns and a function that makes one object's
//! cells in that order; upstream's printers are the reference. `Name` comes
//! first for every kind whose row says so and is not in these lists.

mod age;
pub(crate) mod cluster;
pub(crate) mod network;
pub(crate) mod pod;
pub(crate) mod storage;
pub(crate) mod workloads;

pub use age::human_duration;

use crate::Column;
use crate::access::{at, is_empty, list, text};
use serde_json::{Value, json};

pub(crate) const AGE: &[Column] = &[string("Age")];

pub(crate) fn age_only(object: &Value, now: i64) -> Vec<Value> {
    vec![age(object, now)]
}

const NONE: &str = "<none>";
const UNSET: &str = "<unset>";

const fn string(name: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        priority: 0,
    }
}

const fn integer(name: &'static str) -> Column {
    Column {
        name,
        kind: "integer",
        priority: 0,
    }
}

/// A column of wide output only.
const fn wide(name: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        priority: 1,
    }
}

/// `metadata.creationTimestamp` as an age.
fn age(object: &Value, now: i64) -> Value {
    json!(since(at(object, "metadata.creationTimestamp"), now))
}

/// `metadata.creationTimestamp` as it is.
fn created(object: &Value) -> Value {
    json!(text(object, "metadata.creationTimestamp"))
}

/// How long ago an RFC 3339 time was; `<unknown>` when there is none.
fn since(time: &Value, now: i64) -> String {
    match age::unix_seconds(time) {
        Some(t) => human_duration(now - t),
        None => "<unknown>".to_owned(),
    }
}

/// The text at a path, or something instead of nothing.
fn or(v: &Value, path: &str, instead: &str) -> Value {
    match text(v, path) {
        "" => json!(instead),
        s => json!(s),
    }
}

/// A number or string as a cell.
fn scalar(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn count(v: &Value) -> usize {
    match v {
        Value::Array(a) => a.len(),
        Value::Object(o) => o.len(),
        _ => 0,
    }
}

/// `True`, `False`, or something instead of nothing.
fn yes_no(v: &Value, instead: &str) -> Value {
    match v {
        Value::Bool(true) => json!("true"),
        Value::Bool(false) => json!("false"),
        _ => json!(instead),
    }
}

/// A map of labels as `a=1,b=2`.
fn labels(v: &Value) -> String {
    let Some(map) = v.as_object().filter(|m| !m.is_empty()) else {
        return NONE.to_owned();
    };
    let mut pairs: Vec<String> = map
        .iter()
        .map(|(k, v)| format!("{k}={}", scalar(v)))
        .collect();
    pairs.sort();
    pairs.join(",")
}

/// A label selector object as text.
fn selector(v: &Value) -> String {
    if v.is_null() {
        return NONE.to_owned();
    }
    match apimachinery::selector::LabelSelector::from_object(v) {
        Ok(s) if s.is_empty() => NONE.to_owned(),
        Ok(s) => s.to_string(),
        Err(_) => "<error>".to_owned(),
    }
}

/// Names and images of a pod spec's containers.
fn containers(pod_spec: &Value) -> [Value; 2] {
    let all = |field: &str| {
        let values: Vec<&str> = list(pod_spec, "containers")
            .iter()
            .map(|c| text(c, field))
            .collect();
        json!(values.join(","))
    };
    [all("name"), all("image")]
}

/// Up to `max` of the items, and how many more there are.
fn some_of(items: &[String], max: usize, instead: &str) -> String {
    if items.is_empty() {
        return instead.to_owned();
    }
    if items.len() > max {
        return format!("{} + {} more...", items[..max].join(","), items.len() - max);
    }
    items.join(",")
}

/// The condition of a type, if the status has it.
fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    list(object, "status.conditions")
        .iter()
        .find(|c| text(c, "type") == kind)
}

fn condition_is_true(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|c| text(c, "status") == "True")
}

fn deleting(object: &Value) -> bool {
    !is_empty(at(object, "metadata.deletionTimestamp"))
}

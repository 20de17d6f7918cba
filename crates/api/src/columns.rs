//! Printed columns: what `kubectl get` shows of each kind, cell by cell.

mod age;

pub use age::human_duration;

use crate::Column;
use crate::access::at;
use serde_json::{Value, json};

pub(crate) const AGE: &[Column] = &[column("Age", "string")];

pub(crate) fn age_only(object: &Value, now: i64) -> Vec<Value> {
    vec![age(object, now)]
}

const fn column(name: &'static str, kind: &'static str) -> Column {
    Column {
        name,
        kind,
        priority: 0,
    }
}

/// `metadata.creationTimestamp` as an age.
fn age(object: &Value, now: i64) -> Value {
    json!(since(at(object, "metadata.creationTimestamp"), now))
}

/// How long ago an RFC 3339 time was; `<unknown>` when there is none.
fn since(time: &Value, now: i64) -> String {
    match age::unix_seconds(time) {
        Some(t) => human_duration(now - t),
        None => "<unknown>".to_owned(),
    }
}

//! Objects and times for the tests of this crate.

use client::k8s_openapi::serde::de::DeserializeOwned;
use serde_json::Value;

/// A moment.
pub(crate) fn now() -> jiff::Timestamp {
    "2026-01-02T00:00:00Z".parse().unwrap()
}

/// An object of its JSON.
pub(crate) fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// Puts `from` over `into`, objects deeply.
pub(crate) fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

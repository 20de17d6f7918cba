//! Kinds that are served in two versions but stored in one.
//!
//! Events are stored as core/v1 and also served as events.k8s.io/v1; fields map one to one
//! as upstream's conversion does.

use api::Resource;
use serde_json::{Map, Value, json};
use std::borrow::Cow;

/// (core/v1 name, events.k8s.io/v1 name)
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// Whether a row's objects differ from what is stored.
pub(crate) fn differs(row: &Resource) -> bool {
    row.stored_as.is_some()
}

/// From the stored version to a row's.
pub(crate) fn from_stored(row: &Resource, stored: Value) -> Value {
    if !differs(row) {
        return stored;
    }
    rename(row, stored, |(old, new)| (old, new))
}

/// From a row's version to the stored one.
pub(crate) fn to_stored<'v>(row: &Resource, value: &'v Value) -> Cow<'v, Value> {
    let target = row
        .stored_as
        .and_then(|(group, version)| api::find(group, version, row.plural));
    match target {
        None => Cow::Borrowed(value),
        Some(target) => Cow::Owned(rename(target, value.clone(), |(old, new)| (new, old))),
    }
}

fn rename(
    target: &Resource,
    value: Value,
    order: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str),
) -> Value {
    let Value::Object(top) = value else {
        return value;
    };
    let mut out = Map::new();
    for (key, v) in top {
        let renamed = if target.plural == "events" {
            EVENT_FIELDS
                .iter()
                .map(|p| order(*p))
                .find(|(from, _)| *from == key)
                .map(|(_, to)| to)
        } else {
            None
        };
        out.insert(renamed.map_or(key, str::to_owned), v);
    }
    out.insert("kind".to_owned(), target.kind.into());
    out.insert(
        "apiVersion".to_owned(),
        crate::registry::api_version(target).into(),
    );
    // The core version requires these two.
    if target.plural == "events" && target.group.is_empty() {
        for key in ["involvedObject", "source"] {
            out.entry(key).or_insert_with(|| json!({}));
        }
    }
    Value::Object(out)
}

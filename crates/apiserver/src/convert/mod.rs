//! Kinds that are served in other versions than they are stored in.
//!
//! Events are stored as core/v1 and also served as events.k8s.io/v1; fields map one to one
//! as upstream's conversion does. Autoscalers are in [`autoscaler`]. Custom resources change their
//! `apiVersion` only (strategy `None`), or are converted by a [`webhook`]; what was written under an older schema is pruned and defaulted anew.

mod autoscaler;
mod webhook;

pub(crate) use webhook::{into, prepare, stored};

use crate::cache::Object;
use crate::definitions::Custom;
use crate::row::Row;
use apimachinery::decode::{self, FieldValidation};
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

/// Autoscalers are stored as autoscaling/v2 and also served as v1.
const AUTOSCALERS: &str = "horizontalpodautoscalers";

/// Whether an object differs from its stored bytes in a row's version.
pub(crate) fn differs(row: &Row, object: &Object) -> bool {
    match row {
        Row::Builtin(r) => r.stored_as.is_some(),
        Row::Custom(c) if c.conversion.is_some() => {
            object.stored_api_version() != row.api_version() || object.written <= c.since
        }
        Row::Custom(c) => !c.is_stored() || object.written <= c.since,
    }
}

/// An object parsed, in a row's version.
pub(crate) fn view(row: &Row, object: &Object) -> Value {
    // What a webhook must convert, [`webhook::prepare`] has converted.
    if matches!(row, Row::Custom(c) if c.conversion.is_some())
        && let Some(value) = object.converted(row.version())
    {
        return value;
    }
    let stored = object.value();
    if !differs(row, object) {
        return stored;
    }
    match row {
        Row::Builtin(_) if row.plural() == AUTOSCALERS => autoscaler::to_v1(stored),
        Row::Builtin(_) => rename(row, stored, |(old, new)| (old, new)),
        Row::Custom(c) => renewed(c, row, stored),
    }
}

/// An object of one version in another of the same resource, for which no webhook is asked.
fn between(from: &Row, to: &Row, value: &Value) -> Value {
    if from.version() == to.version() && from.group() == to.group() {
        return value.clone();
    }
    let stored = to_stored(from, value).into_owned();
    match to {
        Row::Builtin(r) if r.stored_as.is_none() => stored,
        Row::Builtin(_) if to.plural() == AUTOSCALERS => autoscaler::to_v1(stored),
        Row::Builtin(_) => rename(to, stored, |(old, new)| (old, new)),
        Row::Custom(c) => renewed(c, to, stored),
    }
}

/// A custom resource as if it were written now, in this version.
fn renewed(custom: &Custom, row: &Row, mut stored: Value) -> Value {
    stored["apiVersion"] = row.api_version().into();
    let Ok(compiled) = custom.compiled() else {
        return stored;
    };
    let (schema, root) = (&compiled.schema, compiled.root);
    match decode::conform(schema, root, stored.clone(), FieldValidation::Ignore) {
        Ok(decoded) => {
            let mut value = decoded.value;
            custom.default(&mut value);
            value
        }
        Err(_) => stored,
    }
}

/// From a row's version to the stored one.
pub(crate) fn to_stored<'v>(row: &Row, value: &'v Value) -> Cow<'v, Value> {
    match row {
        Row::Builtin(r) if r.stored_as.is_none() => Cow::Borrowed(value),
        Row::Builtin(_) if row.plural() == AUTOSCALERS => {
            Cow::Owned(autoscaler::to_v2(value.clone()))
        }
        Row::Builtin(_) => {
            let target = row.stored_row();
            Cow::Owned(rename(&target, value.clone(), |(old, new)| (new, old)))
        }
        Row::Custom(c) if c.is_stored() => Cow::Borrowed(value),
        Row::Custom(c) => {
            let mut value = value.clone();
            value["apiVersion"] = c.stored_api_version().into();
            Cow::Owned(value)
        }
    }
}

/// An event under its fields' names in another version.
fn rename(
    target: &Row,
    value: Value,
    order: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str),
) -> Value {
    let Value::Object(top) = value else {
        return value;
    };
    let mut out = Map::new();
    for (key, v) in top {
        let renamed = EVENT_FIELDS
            .iter()
            .map(|p| order(*p))
            .find(|(from, _)| *from == key)
            .map(|(_, to)| to);
        out.insert(renamed.map_or(key, str::to_owned), v);
    }
    out.insert("kind".to_owned(), target.kind().into());
    out.insert("apiVersion".to_owned(), target.api_version().into());
    // The core version requires these two.
    if target.group().is_empty() {
        for key in ["involvedObject", "source"] {
            out.entry(key).or_insert_with(|| json!({}));
        }
    }
    Value::Object(out)
}

//! Events, in both their versions.
//!
//! What is told by the new version must say who saw what and when; what is told by the old one
//! need not, as `pkg/apis/core/validation/events.go` of upstream has it. Errors name fields as
//! the core version does, whichever was asked for.

use super::Check;
use crate::access::{at, int, is_empty, text};
use apimachinery::names;
use apimachinery::status::FieldError;
use serde_json::Value;

/// Longest texts.
const TEXT_BYTES_MAX: usize = 128;
const NOTE_BYTES_MAX: usize = 1024;

/// (core/v1 name, events.k8s.io/v1 name) of what the new version lets nobody change; the others
/// have one name.
const NAMES: [(&str, &str); 14] = [
    ("involvedObject", "regarding"),
    ("reason", "reason"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("type", "type"),
    ("eventTime", "eventTime"),
    ("action", "action"),
    ("related", "related"),
    ("reportingController", "reportingController"),
    ("reportingController", "reportingComponent"),
    ("reportingInstance", "reportingInstance"),
];

/// A field by its core name, in an event of either version.
fn field<'a>(v: &'a Value, name: &str) -> &'a Value {
    let names = NAMES.iter().filter(|(core, _)| *core == name);
    let found = names.flat_map(|(core, new)| [at(v, core), at(v, new)]);
    found
        .into_iter()
        .find(|v| !v.is_null())
        .unwrap_or(&Value::Null)
}

/// What every event obeys.
pub(crate) fn event(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let own = text(v, "metadata.namespace");
    let of = at(field(v, "involvedObject"), "namespace");
    let is_new = !at(v, "eventTime").is_null();
    let fits = match of.as_str().unwrap_or_default() {
        "" if is_new => matches!(own, "default" | "kube-system"),
        "" => matches!(own, "" | "default"),
        of => is_new || of == own,
    };
    if !fits {
        let shown = Value::from(of.as_str().unwrap_or_default());
        c.invalid(
            "involvedObject.namespace",
            &shown,
            "does not match event.namespace",
        );
    }
    if !is_new {
        return c.0;
    }
    for (name, required, max) in [
        ("reportingController", true, None),
        ("reportingInstance", true, Some(TEXT_BYTES_MAX)),
        ("action", true, Some(TEXT_BYTES_MAX)),
        ("reason", true, Some(TEXT_BYTES_MAX)),
        ("message", false, Some(NOTE_BYTES_MAX)),
    ] {
        let text = field(v, name).as_str().unwrap_or_default();
        if text.is_empty() && required {
            c.required(name, "");
        }
        match max {
            None => c.rule(name, &text.into(), names::qualified_name),
            Some(max) if text.len() > max => {
                let detail = format!("can have at most {max} characters");
                c.invalid(name, &"".into(), detail);
            }
            Some(_) => {}
        }
    }
    c.0
}

/// What one that is made by the new version obeys besides.
pub(crate) fn new_event(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    series(&mut c, v);
    if at(v, "eventTime").is_null() {
        c.required("eventTime", "");
    }
    let kind = text(v, "type");
    if !matches!(kind, "Normal" | "Warning") {
        c.invalid("type", &"".into(), format!("has invalid value: {kind}"));
    }
    let source = field(v, "source");
    for (name, set) in [
        ("firstTimestamp", !field(v, "firstTimestamp").is_null()),
        ("lastTimestamp", !field(v, "lastTimestamp").is_null()),
        ("count", field(v, "count").as_i64().unwrap_or(0) != 0),
        (
            "source",
            ["component", "host"]
                .iter()
                .any(|f| !is_empty(at(source, f))),
        ),
    ] {
        if set {
            c.invalid(name, &"".into(), "needs to be unset");
        }
    }
    c.0
}

/// By the new version an event is only told again.
pub(crate) fn new_event_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    if at(new, "series") != at(old, "series") {
        series(&mut c, new);
    }
    for (name, _) in NAMES {
        let (n, o) = (field(new, name), field(old, name));
        let twice = c.0.last().is_some_and(|e| e.field == name);
        if n != o && !(is_empty(n) && is_empty(o)) && !twice {
            c.invalid(name, n, super::IMMUTABLE);
        }
    }
    c.0
}

fn series(c: &mut Check, v: &Value) {
    let series = at(v, "series");
    if series.is_null() {
        return;
    }
    if int(series, "count") < 2 {
        c.invalid("series.count", &"".into(), "should be at least 2");
    }
    if at(series, "lastObservedTime").is_null() {
        c.required("series.lastObservedTime", "");
    }
}

#[cfg(test)]
mod tests {
    use super::super::told;
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    fn sound() -> Value {
        json!({
            "metadata": {"name": "a", "namespace": "default"}, "eventTime": "2026-01-01T00:00:00.000000Z",
            "reportingController": "x.y/c", "reportingInstance": "i", "action": "Act", "reason": "R",
            "type": "Normal", "regarding": {"kind": "Pod", "namespace": "other", "name": "p"},
        })
    }

    #[test]
    fn the_new_version_is_strict() {
        let all = |v: &Value| [event(v), new_event(v)].concat();
        told(all(&sound()), expect![""]);
        let empty = json!({"metadata": {"namespace": "x"}, "series": {"count": 1}, "type": "Bad",
            "deprecatedCount": 1, "deprecatedSource": {"host": "h"}, "deprecatedLastTimestamp": "t"});
        told(
            all(&empty),
            expect![[r#"
                involvedObject.namespace: Invalid value: "": does not match event.namespace
                series.count: Invalid value: "": should be at least 2
                series.lastObservedTime: Required value
                eventTime: Required value
                type: Invalid value: "": has invalid value: Bad
                lastTimestamp: Invalid value: "": needs to be unset
                count: Invalid value: "": needs to be unset
                source: Invalid value: "": needs to be unset"#]],
        );
        let mut v = sound();
        for (name, value) in [
            ("reportingController", json!("a b")),
            ("reportingInstance", json!("i".repeat(129))),
            ("action", json!("")),
            ("reason", json!("r".repeat(129))),
            ("note", json!("n".repeat(1025))),
        ] {
            v[name] = value;
        }
        told(
            all(&v),
            expect![[r#"
                reportingController: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
                reportingInstance: Invalid value: "": can have at most 128 characters
                action: Required value
                reason: Invalid value: "": can have at most 128 characters
                message: Invalid value: "": can have at most 1024 characters"#]],
        );
    }

    #[test]
    fn the_old_version_asks_for_little() {
        let v = json!({"metadata": {"namespace": "a"}, "involvedObject": {"namespace": "a"}});
        told(event(&v), expect![""]);
        let v = json!({"metadata": {"namespace": "kube-system"}, "involvedObject": {}});
        told(
            event(&v),
            expect![[
                r#"involvedObject.namespace: Invalid value: "": does not match event.namespace"#
            ]],
        );
        // Whoever states a time tells by the new rules.
        let v = json!({"metadata": {"namespace": "kube-system"}, "involvedObject": {}, "eventTime": "t",
            "reportingComponent": "c", "reportingInstance": "i", "action": "a", "reason": "r"});
        told(event(&v), expect![""]);
    }

    #[test]
    fn what_was_told_stays() {
        let (old, mut new) = (sound(), sound());
        new["series"] = json!({"count": 2, "lastObservedTime": "t"});
        told(new_event_update(&new, &old), expect![""]);
        new["series"]["count"] = json!(0);
        new["note"] = json!("n");
        new["regarding"]["name"] = json!("q");
        new["reportingController"] = json!("d");
        told(
            new_event_update(&new, &old),
            expect![[r#"
                series.count: Invalid value: "": should be at least 2
                involvedObject: Invalid value: {"kind":"Pod","name":"q","namespace":"other"}: field is immutable
                message: Invalid value: "n": field is immutable
                reportingController: Invalid value: "d": field is immutable"#]],
        );
    }
}

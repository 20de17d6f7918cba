//! What a whole object must satisfy, and what may not change.
//!
//! One pair of functions a kind; paths, reasons and messages are upstream's.
//! Names and metadata are checked by the registry. [`Check`] collects.

pub(crate) mod addresses;
pub(crate) mod admission;
pub(crate) mod aggregation;
pub(crate) mod certificates;
pub(crate) mod claim_status;
pub(crate) mod claims;
pub(crate) mod cluster;
pub(crate) mod definition;
pub(crate) mod events;
pub(crate) mod flow;
pub(crate) mod network;
pub(crate) mod pod;
pub(crate) mod pod_certificates;
mod pod_context;
pub(crate) mod pod_parts;
mod pod_update;
mod policies;
pub(crate) mod slices;
pub(crate) mod storage;
pub(crate) mod volumes;
pub(crate) mod workloads;

use crate::access::{at, is_empty, list, text};
use apimachinery::names;
use apimachinery::quantity::Quantity;
use apimachinery::selector::LabelSelector;
use apimachinery::status::FieldError;
use serde_json::Value;
use std::collections::HashSet;

const IMMUTABLE: &str = "field is immutable";

/// Errors found so far.
#[derive(Default)]
pub(super) struct Check(pub(super) Vec<FieldError>);

impl Check {
    pub(super) fn add(&mut self, e: FieldError) {
        self.0.push(e);
    }

    pub(super) fn required(&mut self, path: impl Into<String>, detail: &str) {
        self.add(FieldError::required(path, detail));
    }

    pub(super) fn invalid(
        &mut self,
        path: impl Into<String>,
        v: &Value,
        detail: impl std::fmt::Display,
    ) {
        self.add(FieldError::invalid(path, v, detail));
    }

    pub(super) fn forbidden(&mut self, path: impl Into<String>, detail: impl std::fmt::Display) {
        self.add(FieldError::forbidden(path, detail));
    }

    /// A text that a rule must accept.
    pub(super) fn rule(
        &mut self,
        path: impl Into<String>,
        v: &Value,
        rule: fn(&str) -> Result<(), String>,
    ) {
        if let Err(e) = rule(v.as_str().unwrap_or_default()) {
            self.invalid(path, v, e);
        }
    }

    /// A field that must be there and satisfy a rule.
    pub(super) fn required_rule(
        &mut self,
        path: impl Into<String>,
        v: &Value,
        rule: fn(&str) -> Result<(), String>,
    ) {
        if is_empty(v) {
            self.required(path, "");
        } else {
            self.rule(path, v, rule);
        }
    }

    /// A text that must be one of these.
    pub(super) fn one_of(&mut self, path: impl Into<String>, v: &Value, supported: &[&str]) {
        match v.as_str() {
            None | Some("") => self.required(path, ""),
            Some(s) if supported.contains(&s) => {}
            Some(_) => self.add(FieldError::not_supported(path, v, supported)),
        }
    }

    /// The same where nothing is allowed too.
    pub(super) fn optional_one_of(
        &mut self,
        path: impl Into<String>,
        v: &Value,
        supported: &[&str],
    ) {
        if !is_empty(v) {
            self.one_of(path, v, supported);
        }
    }

    /// An integer that may not be negative.
    pub(super) fn not_negative(&mut self, path: impl Into<String>, v: &Value) {
        if v.as_i64().is_some_and(|n| n < 0) {
            self.invalid(path, v, "must be greater than or equal to 0");
        }
    }

    /// A port number or the name of one.
    pub(super) fn port(&mut self, path: impl Into<String>, v: &Value) {
        let result = match v {
            Value::Number(n) => names::port_number(n.as_i64().unwrap_or(0)),
            Value::String(s) => names::port_name(s),
            _ => return self.required(path, ""),
        };
        if let Err(e) = result {
            self.invalid(path, v, e);
        }
    }

    /// Labels, as of a pod template.
    pub(super) fn labels(&mut self, path: &str, v: &Value) {
        for (k, value) in v.as_object().into_iter().flatten() {
            self.rule(path, &Value::from(k.as_str()), names::qualified_name);
            self.rule(path, value, names::label_value);
        }
    }

    /// A label selector object that may be empty or not.
    pub(super) fn selector(&mut self, path: &str, v: &Value) -> Option<LabelSelector> {
        self.labels(&format!("{path}.matchLabels"), at(v, "matchLabels"));
        for (i, e) in list(v, "matchExpressions").iter().enumerate() {
            self.requirement(&format!("{path}.matchExpressions[{i}]"), e, false);
        }
        LabelSelector::from_object(v).ok()
    }

    /// One expression of a selector; those that select nodes may compare numbers too.
    pub(super) fn requirement(&mut self, path: &str, e: &Value, compares: bool) {
        let values = list(e, "values");
        match text(e, "operator") {
            "In" | "NotIn" if values.is_empty() => self.required(
                format!("{path}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            ),
            "Exists" | "DoesNotExist" if !values.is_empty() => self.forbidden(
                format!("{path}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            "Gt" | "Lt" if compares && values.len() != 1 => self.required(
                format!("{path}.values"),
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            ),
            "Gt" | "Lt" if compares => {}
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => self.invalid(
                format!("{path}.operator"),
                at(e, "operator"),
                "not a valid selector operator",
            ),
        }
        self.rule(format!("{path}.key"), at(e, "key"), names::qualified_name);
    }

    /// A field that may not change.
    pub(super) fn immutable(&mut self, path: &str, new: &Value, old: &Value) {
        let (n, o) = (at(new, path), at(old, path));
        if n != o && !(is_empty(n) && is_empty(o)) {
            self.invalid(path, n, IMMUTABLE);
        }
    }

    /// Items of a list, each at its path, unless there are too many of them.
    pub(super) fn each(
        &mut self,
        path: &str,
        items: &[Value],
        max: usize,
        mut one: impl FnMut(&mut Self, &str, &Value),
    ) {
        if items.len() > max {
            return self.add(FieldError::too_many(path, items.len(), max));
        }
        for (i, item) in items.iter().enumerate() {
            one(self, &format!("{path}[{i}]"), item);
        }
    }

    /// Conditions as `metav1.Condition` has them.
    pub(super) fn conditions(&mut self, path: &str, v: &Value, max: usize) {
        const REASON: &str = "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')";
        const BYTES_MAX: [(&str, usize); 2] = [("reason", 1024), ("message", 32 * 1024)];
        let mut seen = Unique::default();
        let all = v.as_array().map_or(&[][..], Vec::as_slice);
        for (i, one) in all.iter().enumerate() {
            seen.check(self, format!("{path}[{i}].type"), at(one, "type"));
        }
        self.each(path, all, max, |c, path, one| {
            c.rule(
                format!("{path}.type"),
                at(one, "type"),
                names::qualified_name,
            );
            let status = text(one, "status");
            const STATUSES: [&str; 3] = ["False", "True", "Unknown"];
            if !STATUSES.contains(&status) {
                let path = format!("{path}.status");
                let e = FieldError::not_supported(path, &status.into(), &STATUSES);
                c.add(e);
            }
            if at(one, "lastTransitionTime").is_null() {
                c.required(format!("{path}.lastTransitionTime"), "must be set");
            }
            let reason = text(one, "reason");
            let inner = |b: u8| b.is_ascii_alphanumeric() || b"_,:".contains(&b);
            if reason.is_empty() {
                c.required(format!("{path}.reason"), "must be set");
            } else if !reason.starts_with(|c: char| c.is_ascii_alphabetic())
                || !reason.bytes().all(inner)
                || reason.ends_with([',', ':'])
            {
                c.invalid(format!("{path}.reason"), at(one, "reason"), REASON);
            }
            for (name, max) in BYTES_MAX {
                if text(one, name).len() > max {
                    c.add(FieldError::too_long(format!("{path}.{name}"), max));
                }
            }
        });
    }

    /// A quantity, or an error; `None` when there is none.
    pub(super) fn quantity(&mut self, path: &str, v: &Value) -> Option<Quantity> {
        if v.is_null() {
            return None;
        }
        let Some(q) = Quantity::from_json(v) else {
            let e = apimachinery::quantity::ParseQuantityError;
            self.invalid(path, v, e);
            return None;
        };
        if q.nano < 0 {
            self.invalid(path, v, "must be greater than or equal to 0");
        }
        Some(q)
    }
}

/// Names seen in a list, to find the second of a name.
#[derive(Default)]
pub(super) struct Unique<'a>(HashSet<&'a str>);

impl<'a> Unique<'a> {
    pub(super) fn check(&mut self, check: &mut Check, path: String, v: &'a Value) {
        if let Some(name) = v.as_str().filter(|n| !n.is_empty())
            && !self.0.insert(name)
        {
            check.add(FieldError::duplicate(path, v));
        }
    }
}

/// What is asked for stays.
pub(crate) fn spec_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    c.immutable("spec", new, old);
    c.0
}

/// Compares errors, one a line.
#[cfg(test)]
fn told(errors: impl AsRef<[FieldError]>, want: expect_test::Expect) {
    let lines: Vec<String> = errors.as_ref().iter().map(ToString::to_string).collect();
    want.assert_eq(&lines.join("\n"));
}

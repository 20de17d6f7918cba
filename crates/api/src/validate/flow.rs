//! Flow schemas and priority levels. The reference is `pkg/apis/flowcontrol/validation`.

use super::Check;
use crate::access::{at, int, is_empty, list, text};
use apimachinery::status::FieldError;
use serde_json::Value;

/// `FlowSchema`.
pub(crate) fn schema(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let path = "spec.matchingPrecedence";
    let precedence = int(v, path);
    let exempt = text(v, "metadata.name") == "exempt";
    if !(1..=10_000).contains(&precedence) {
        c.invalid(path, at(v, path), "must be a value between 1 and 10000");
    } else if precedence == 1 && !exempt {
        c.invalid(
            path,
            at(v, path),
            "only the schema named 'exempt' may have matchingPrecedence 1",
        );
    }
    let path = "spec.priorityLevelConfiguration.name";
    if text(v, path).is_empty() {
        c.required(path, "must reference a priority level");
    }
    let by = at(v, "spec.distinguisherMethod");
    if !is_empty(by) {
        let path = "spec.distinguisherMethod.type";
        c.one_of(path, at(v, path), &["ByNamespace", "ByUser"]);
    }
    for (i, rule) in list(v, "spec.rules").iter().enumerate() {
        let path = format!("spec.rules[{i}]");
        if list(rule, "subjects").is_empty() {
            c.required(
                format!("{path}.subjects"),
                "subjects must contain at least one value",
            );
        }
        for (j, s) in list(rule, "subjects").iter().enumerate() {
            let path = format!("{path}.subjects[{j}]");
            let (field, kind) = match text(s, "kind") {
                "User" => ("user", "User"),
                "Group" => ("group", "Group"),
                "ServiceAccount" => ("serviceAccount", "ServiceAccount"),
                _ => {
                    let known = ["Group", "ServiceAccount", "User"];
                    let error =
                        FieldError::not_supported(format!("{path}.kind"), &s["kind"], &known);
                    c.add(error);
                    continue;
                }
            };
            if text(s, &format!("{field}.name")).is_empty() {
                let detail = format!("name is required when subject kind is '{kind}'");
                c.required(format!("{path}.{field}.name"), &detail);
            }
        }
        if list(rule, "resourceRules").is_empty() && list(rule, "nonResourceRules").is_empty() {
            c.required(
                path,
                "at least one of resourceRules and nonResourceRules has to be non-empty",
            );
        }
    }
    c.0
}

/// `PriorityLevelConfiguration`.
pub(crate) fn level(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let kind = text(v, "spec.type");
    let (limited, exempt) = (at(v, "spec.limited"), at(v, "spec.exempt"));
    match kind {
        "Exempt" if !limited.is_null() => {
            c.forbidden("spec.limited", "must be nil if the type is not Limited");
        }
        "Limited" if limited.is_null() => {
            c.required("spec.limited", "must not be empty when type is Limited");
        }
        "Limited" if !exempt.is_null() => {
            c.forbidden("spec.exempt", "must be nil if the type is Limited");
        }
        "Exempt" | "Limited" => {}
        _ => c.one_of("spec.type", at(v, "spec.type"), &["Exempt", "Limited"]),
    }
    let own = |name: &str| text(v, "metadata.name") == name;
    if own("exempt") && kind != "Exempt" || own("catch-all") && kind != "Limited" {
        c.invalid(
            "spec.type",
            at(v, "spec.type"),
            "the type of this object can't be changed",
        );
    }
    for key in ["lendablePercent", "borrowingLimitPercent"] {
        let path = format!("spec.limited.{key}");
        let most = if key == "lendablePercent" {
            100
        } else {
            i64::MAX
        };
        if at(v, &path)
            .as_i64()
            .is_some_and(|n| !(0..=most).contains(&n))
        {
            c.invalid(
                path.as_str(),
                at(v, &path),
                "must be between 0 and 100, inclusive",
            );
        }
    }
    let shares = "spec.limited.nominalConcurrencyShares";
    if int(v, shares) < 0 {
        c.invalid(shares, at(v, shares), "must be a non-negative integer");
    }
    let response = at(limited, "limitResponse");
    let queuing = at(response, "queuing");
    match text(response, "type") {
        _ if limited.is_null() => {}
        "Reject" if !queuing.is_null() => {
            let path = "spec.limited.limitResponse.queuing";
            c.forbidden(
                path,
                "must be nil if limited.limitResponse.type is not Limited",
            );
        }
        "Queue" | "Reject" => {}
        _ => {
            let path = "spec.limited.limitResponse.type";
            c.one_of(path, at(response, "type"), &["Queue", "Reject"]);
        }
    }
    if !queuing.is_null() {
        let path = |key: &str| format!("spec.limited.limitResponse.queuing.{key}");
        for key in ["queues", "handSize", "queueLengthLimit"] {
            if int(queuing, key) < 1 {
                c.invalid(path(key), at(queuing, key), "must be positive");
            }
        }
        if int(queuing, "handSize") > int(queuing, "queues") {
            let detail = "should not be greater than queues";
            c.invalid(path("handSize"), at(queuing, "handSize"), detail);
        }
        // More have no meaning, and each costs memory.
        if int(queuing, "queues") > 10_000_000 {
            c.invalid(
                path("queues"),
                at(queuing, "queues"),
                "must not be greater than 10000000",
            );
        }
    }
    c.0
}

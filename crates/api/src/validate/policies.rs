//! Rules of the finer parts of workloads and quotas: rollouts of StatefulSets and
//! DaemonSets, what failed pods mean to a Job, scopes of a ResourceQuota.

use super::Check;
use super::workloads::share;
use crate::access::{at, is_empty, list, text};
use apimachinery::quantity::Quantity;
use apimachinery::status::FieldError;
use serde_json::Value;

const ROLLING: &str = "spec.updateStrategy.rollingUpdate";
const INDEXED: &str = "requires indexed completion mode";
const SCOPES: [&str; 7] = [
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];

fn none_negative(c: &mut Check, v: &Value, paths: &[&str]) {
    for path in paths {
        c.not_negative(*path, at(v, path));
    }
}

/// `StatefulSet`.
pub(super) fn stateful_set(c: &mut Check, v: &Value) {
    none_negative(
        c,
        v,
        &[
            "spec.minReadySeconds",
            "spec.revisionHistoryLimit",
            "spec.ordinals.start",
            "spec.updateStrategy.rollingUpdate.partition",
        ],
    );
    let rolling = at(v, ROLLING);
    if text(v, "spec.updateStrategy.type") == "OnDelete" && !rolling.is_null() {
        let detail = "only allowed for updateStrategy 'RollingUpdate'";
        c.invalid(ROLLING, rolling, detail);
    }
    let most = at(rolling, "maxUnavailable");
    let path = format!("{ROLLING}.maxUnavailable");
    share(c, &path, most);
    if is_zero(most) && !most.is_null() {
        c.invalid(path, most, "cannot be 0");
    }
    for name in ["whenDeleted", "whenScaled"] {
        let path = format!("spec.persistentVolumeClaimRetentionPolicy.{name}");
        c.optional_one_of(path.clone(), at(v, &path), &["Delete", "Retain"]);
    }
}

/// `DaemonSet`.
pub(super) fn daemon_set(c: &mut Check, v: &Value) {
    none_negative(c, v, &["spec.minReadySeconds", "spec.revisionHistoryLimit"]);
    if text(v, "spec.updateStrategy.type") != "RollingUpdate" {
        return;
    }
    let (most, surge) = (
        at(v, "spec.updateStrategy.rollingUpdate.maxUnavailable"),
        at(v, "spec.updateStrategy.rollingUpdate.maxSurge"),
    );
    let (unavailable, surging) = (
        format!("{ROLLING}.maxUnavailable"),
        format!("{ROLLING}.maxSurge"),
    );
    share(c, &unavailable, most);
    share(c, &surging, surge);
    match (is_zero(most), is_zero(surge)) {
        (false, false) => {
            c.invalid(
                surging,
                surge,
                "may not be set when maxUnavailable is non-zero",
            );
        }
        (true, true) => c.required(unavailable, "cannot be 0 when maxSurge is 0"),
        _ => {}
    }
}

fn is_zero(v: &Value) -> bool {
    match v {
        Value::Number(n) => n.as_i64() == Some(0),
        Value::String(s) => s.trim_end_matches('%').parse() == Ok(0),
        _ => true,
    }
}

/// `Job`: its spec, which stands at `path`.
pub(super) fn job(c: &mut Check, path: &str, v: &Value) {
    let indexed = text(v, "completionMode") == "Indexed";
    let per_index = at(v, "backoffLimitPerIndex");
    if !per_index.is_null() && !indexed {
        c.invalid(format!("{path}.backoffLimitPerIndex"), per_index, INDEXED);
    }
    let most = at(v, "maxFailedIndexes");
    let most_path = format!("{path}.maxFailedIndexes");
    c.not_negative(most_path.clone(), most);
    if !most.is_null() && per_index.is_null() {
        let detail = "when maxFailedIndexes is specified";
        c.required(format!("{path}.backoffLimitPerIndex"), detail);
    }
    if most.as_i64() > at(v, "completions").as_i64() && most.is_i64() {
        c.invalid(most_path, most, "must be less than or equal to completions");
    }
    let failure = at(v, "podFailurePolicy");
    if !failure.is_null() {
        failure_policy(c, path, v, failure);
    }
    let supported: &[&str] = if failure.is_null() {
        &["Failed", "TerminatingOrFailed"]
    } else {
        &["Failed"]
    };
    let replacement = at(v, "podReplacementPolicy");
    c.optional_one_of(
        format!("{path}.podReplacementPolicy"),
        replacement,
        supported,
    );
    let success = at(v, "successPolicy");
    if !success.is_null() {
        if !indexed {
            c.invalid(format!("{path}.successPolicy"), success, INDEXED);
        }
        success_policy(c, &format!("{path}.successPolicy.rules"), success);
    }
}

fn failure_policy(c: &mut Check, path: &str, v: &Value, policy: &Value) {
    let restart = at(v, "template.spec.restartPolicy");
    if restart != "Never" {
        c.invalid(
            format!("{path}.template.spec.restartPolicy"),
            restart,
            "only \"Never\" is supported when podFailurePolicy is specified",
        );
    }
    for (i, rule) in list(policy, "rules").iter().enumerate() {
        let path = format!("{path}.podFailurePolicy.rules[{i}]");
        let per_index = !at(v, "backoffLimitPerIndex").is_null();
        let actions: &[&str] = if per_index {
            &["Count", "FailIndex", "FailJob", "Ignore"]
        } else {
            &["Count", "FailJob", "Ignore"]
        };
        c.one_of(format!("{path}.action"), at(rule, "action"), actions);
        let (codes, conditions) = (at(rule, "onExitCodes"), at(rule, "onPodConditions"));
        match (codes.is_null(), is_empty(conditions)) {
            (true, true) => c.invalid(
                path.clone(),
                rule,
                "specifying one of OnExitCodes and OnPodConditions is required",
            ),
            (false, false) => c.invalid(
                path.clone(),
                rule,
                "specifying both OnExitCodes and OnPodConditions is not supported",
            ),
            _ => {}
        }
        if !codes.is_null() {
            exit_codes(c, &format!("{path}.onExitCodes"), codes);
        }
    }
}

fn exit_codes(c: &mut Check, path: &str, codes: &Value) {
    c.one_of(
        format!("{path}.operator"),
        at(codes, "operator"),
        &["In", "NotIn"],
    );
    let values = list(codes, "values");
    if values.is_empty() {
        c.invalid(
            format!("{path}.values"),
            at(codes, "values"),
            "at least one value is required",
        );
    }
    for (i, value) in values.iter().enumerate() {
        if value == 0 && text(codes, "operator") == "In" {
            c.invalid(
                format!("{path}.values[{i}]"),
                value,
                "must not be 0 for the In operator",
            );
        }
        if values[..i].contains(value) {
            let error = FieldError::duplicate(format!("{path}.values[{i}]"), value);
            c.add(error);
        }
    }
}

fn success_policy(c: &mut Check, path: &str, policy: &Value) {
    let rules = list(policy, "rules");
    if rules.is_empty() {
        c.required(
            path,
            "at least one rules must be specified when the successPolicy is specified",
        );
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let (count, indexes) = (at(rule, "succeededCount"), at(rule, "succeededIndexes"));
        if count.is_null() && is_empty(indexes) {
            let detail = "at least one of succeededCount or succeededIndexes must be specified";
            c.required(path.clone(), detail);
        }
        c.not_negative(format!("{path}.succeededCount"), count);
    }
}

/// `ResourceQuota`: which objects it is about.
pub(super) fn scopes(c: &mut Check, v: &Value) {
    let plain: Vec<&str> = list(v, "spec.scopes")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let given = at(v, "spec.scopes");
    if plain.iter().any(|s| !SCOPES.contains(s)) {
        c.invalid("spec.scopes", given, "unsupported scope");
    }
    for pair in [
        ["Terminating", "NotTerminating"],
        ["BestEffort", "NotBestEffort"],
    ] {
        if pair.iter().all(|s| plain.contains(s)) {
            c.invalid("spec.scopes", given, "conflicting scopes");
        }
    }
    let hard = at(v, "spec.hard").as_object().into_iter().flatten();
    let pods_only = hard
        .into_iter()
        .all(|(name, _)| name == "pods" || name == "count/pods");
    if plain.contains(&"BestEffort") && !pods_only {
        c.invalid(
            "spec.scopes",
            given,
            "unsupported scope applied to resource",
        );
    }
    for (i, e) in list(v, "spec.scopeSelector.matchExpressions")
        .iter()
        .enumerate()
    {
        let path = format!("spec.scopeSelector.matchExpressions[{i}]");
        c.one_of(format!("{path}.scopeName"), at(e, "scopeName"), &SCOPES);
        let operators = ["DoesNotExist", "Exists", "In", "NotIn"];
        c.one_of(format!("{path}.operator"), at(e, "operator"), &operators);
        let values = list(e, "values");
        match text(e, "operator") {
            "In" | "NotIn" if values.is_empty() => c.required(
                format!("{path}.values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            ),
            "Exists" | "DoesNotExist" if !values.is_empty() => c.invalid(
                format!("{path}.values"),
                at(e, "values"),
                "must be no value when `operator` is 'Exists' or 'DoesNotExist' for scope selector",
            ),
            _ => {}
        }
    }
}

/// `LimitRange`: bounds that no pod could keep to are refused.
pub(super) fn limit_range(c: &mut Check, v: &Value) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, item) in list(v, "spec.limits").iter().enumerate() {
        let path = format!("spec.limits[{i}]");
        let kind = text(item, "type");
        if kind.is_empty() {
            c.required(format!("{path}.type"), "");
        } else if seen.contains(&kind) {
            c.add(FieldError::duplicate(
                format!("{path}.type"),
                at(item, "type"),
            ));
        }
        seen.push(kind);
        match kind {
            "Pod" => {
                for name in ["default", "defaultRequest"] {
                    if !is_empty(at(item, name)) {
                        let detail = "may not be specified when `type` is 'Pod'";
                        c.forbidden(format!("{path}.{name}"), detail);
                    }
                }
            }
            "PersistentVolumeClaim" => {
                let bounds = |name: &str| !at(at(item, name), "storage").is_null();
                if !bounds("min") && !bounds("max") {
                    let detail = "either minimum or maximum storage value is required, but neither was provided";
                    c.required(format!("{path}.limits"), detail);
                }
            }
            _ => {}
        }
        limits_agree(c, &path, item);
    }
}

/// No amount is greater than another that must not be less.
fn limits_agree(c: &mut Check, path: &str, item: &Value) {
    // (the lesser, the greater, which of them is wrong, what both are called)
    const ORDER: [(&str, &str, bool, &str, &str); 6] = [
        ("min", "max", true, "min value", "max value"),
        (
            "min",
            "defaultRequest",
            false,
            "min value",
            "default request value",
        ),
        (
            "defaultRequest",
            "max",
            true,
            "default request value",
            "max value",
        ),
        (
            "defaultRequest",
            "default",
            true,
            "default request value",
            "default limit value",
        ),
        ("min", "default", false, "min value", "default value"),
        ("default", "max", true, "default value", "max value"),
    ];
    for list in [
        "min",
        "max",
        "default",
        "defaultRequest",
        "maxLimitRequestRatio",
    ] {
        for (name, q) in at(item, list).as_object().into_iter().flatten() {
            c.quantity(&format!("{path}.{list}[{name}]"), q);
        }
    }
    for (less, more, less_is_wrong, less_word, more_word) in ORDER {
        for (name, low) in at(item, less).as_object().into_iter().flatten() {
            let high = &at(item, more)[name];
            let (Some(a), Some(b)) = (Quantity::from_json(low), Quantity::from_json(high)) else {
                continue;
            };
            if a > b {
                let (wrong, value) = if less_is_wrong {
                    (less, low)
                } else {
                    (more, high)
                };
                let shown = |v: &Value| v.as_str().unwrap_or_default().to_owned();
                let detail = format!(
                    "{less_word} {} is greater than {more_word} {}",
                    shown(low),
                    shown(high)
                );
                c.invalid(format!("{path}.{wrong}[{name}]"), value, detail);
            }
        }
    }
    let one = Quantity::from_value(1);
    for (name, q) in at(item, "maxLimitRequestRatio")
        .as_object()
        .into_iter()
        .flatten()
    {
        if Quantity::from_json(q).is_some_and(|ratio| ratio < one) {
            let detail = format!("ratio {} is less than 1", q.as_str().unwrap_or_default());
            c.invalid(format!("{path}.maxLimitRequestRatio[{name}]"), q, detail);
        }
    }
}

/// `PodDisruptionBudget`.
pub(super) fn disruption_budget(c: &mut Check, v: &Value) {
    let policy = "spec.unhealthyPodEvictionPolicy";
    c.optional_one_of(policy, at(v, policy), &["AlwaysAllow", "IfHealthyBudget"]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use serde_json::json;

    fn check(rules: fn(&mut Check, &Value), v: Value, expect: Expect) {
        let mut c = Check::default();
        rules(&mut c, &v);
        let errors: Vec<String> = c.0.iter().map(ToString::to_string).collect();
        expect.assert_eq(&errors.join("\n"));
    }

    #[test]
    fn rollouts() {
        let strategy = |more: Value| {
            json!({"spec": {"ordinals": {"start": -1}, "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": more},
                "persistentVolumeClaimRetentionPolicy": {"whenScaled": "Drop"}}})
        };
        check(
            stateful_set,
            strategy(json!({"partition": -1, "maxUnavailable": 0})),
            expect![[r#"
                spec.ordinals.start: Invalid value: -1: must be greater than or equal to 0
                spec.updateStrategy.rollingUpdate.partition: Invalid value: -1: must be greater than or equal to 0
                spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: 0: cannot be 0
                spec.persistentVolumeClaimRetentionPolicy.whenScaled: Unsupported value: "Drop": supported values: "Delete", "Retain""#]],
        );
        check(
            daemon_set,
            strategy(json!({"maxUnavailable": 1, "maxSurge": "10%"})),
            expect![[
                r#"spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: "10%": may not be set when maxUnavailable is non-zero"#
            ]],
        );
        check(
            daemon_set,
            strategy(json!({"maxUnavailable": "0%", "maxSurge": 0})),
            expect![
                "spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0"
            ],
        );
    }

    #[test]
    fn what_failed_pods_mean() {
        let rules = |c: &mut Check, v: &Value| job(c, "spec", v);
        check(
            rules,
            json!({"backoffLimitPerIndex": 1, "successPolicy": {"rules": [{}]}, "podFailurePolicy": {"rules": [
                {"action": "Stop", "onExitCodes": {"operator": "In", "values": [0, 1]}},
                {"action": "Ignore"}]}, "template": {"spec": {"restartPolicy": "OnFailure"}}}),
            expect![[r#"
                spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode
                spec.template.spec.restartPolicy: Invalid value: "OnFailure": only "Never" is supported when podFailurePolicy is specified
                spec.podFailurePolicy.rules[0].action: Unsupported value: "Stop": supported values: "Count", "FailIndex", "FailJob", "Ignore"
                spec.podFailurePolicy.rules[0].onExitCodes.values[0]: Invalid value: 0: must not be 0 for the In operator
                spec.podFailurePolicy.rules[1]: Invalid value: {"action":"Ignore"}: specifying one of OnExitCodes and OnPodConditions is required
                spec.successPolicy: Invalid value: {"rules":[{}]}: requires indexed completion mode
                spec.successPolicy.rules[0]: Required value: at least one of succeededCount or succeededIndexes must be specified"#]],
        );
    }

    #[test]
    fn scopes_of_quotas() {
        check(
            scopes,
            json!({"spec": {"hard": {"cpu": "1"}, "scopes": ["BestEffort", "NotBestEffort", "All"],
                "scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In"}]}}}),
            expect![[r#"
                spec.scopes: Invalid value: ["BestEffort","NotBestEffort","All"]: unsupported scope
                spec.scopes: Invalid value: ["BestEffort","NotBestEffort","All"]: conflicting scopes
                spec.scopes: Invalid value: ["BestEffort","NotBestEffort","All"]: unsupported scope applied to resource
                spec.scopeSelector.matchExpressions[0].values: Required value: must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"#]],
        );
    }

    /// Upstream: what a LimitRange that nothing could keep to is told.
    #[test]
    fn bounds_that_contradict_each_other() {
        check(
            limit_range,
            json!({"spec": {"limits": [
                {"type": "Container", "min": {"cpu": "2"}, "max": {"cpu": "1"}, "default": {"cpu": "1"},
                    "defaultRequest": {"cpu": "3"}, "maxLimitRequestRatio": {"cpu": "500m"}},
                {"type": "Pod", "default": {"cpu": "1"}},
                {"type": "PersistentVolumeClaim", "max": {"cpu": "1"}},
                {"type": "Pod"}]}}),
            expect![[r#"
                spec.limits[0].min[cpu]: Invalid value: "2": min value 2 is greater than max value 1
                spec.limits[0].defaultRequest[cpu]: Invalid value: "3": default request value 3 is greater than max value 1
                spec.limits[0].defaultRequest[cpu]: Invalid value: "3": default request value 3 is greater than default limit value 1
                spec.limits[0].default[cpu]: Invalid value: "1": min value 2 is greater than default value 1
                spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: "500m": ratio 500m is less than 1
                spec.limits[1].default: Forbidden: may not be specified when `type` is 'Pod'
                spec.limits[2].limits: Required value: either minimum or maximum storage value is required, but neither was provided
                spec.limits[3].type: Duplicate value: "Pod""#]],
        );
    }
}

//! What a failed pod means, and when enough indexes have succeeded: pure.
//!
//! Upstream: "Pod failure policy", "Backoff limit per index", "Success policy" in the Job
//! concepts page.

use super::indexes;
use client::k8s_openapi::api::batch::v1::{
    JobSpec, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern,
};
use client::k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeSet;

/// What becomes of a Job by one failed pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Consequence {
    /// It counts towards the limits.
    Count,
    /// It is as if it had not been.
    Ignore,
    /// Its index has failed for good.
    FailIndex,
    /// The Job has failed, for this reason.
    FailJob(String),
}

/// What the first rule that fits a failed pod says.
pub(super) fn consequence(spec: &JobSpec, pod: &Pod) -> Consequence {
    let rules = spec.pod_failure_policy.as_ref().map(|p| p.rules.as_slice());
    for (at, rule) in rules.unwrap_or_default().iter().enumerate() {
        let found = match (&rule.on_exit_codes, &rule.on_pod_conditions) {
            (Some(codes), _) => by_exit_code(pod, codes),
            (None, Some(patterns)) => by_condition(pod, patterns),
            (None, None) => None,
        };
        let Some(why) = found else { continue };
        return match rule.action.as_str() {
            "FailJob" => Consequence::FailJob(format!("{why} matching FailJob rule at index {at}")),
            "FailIndex" => Consequence::FailIndex,
            "Ignore" => Consequence::Ignore,
            _ => Consequence::Count,
        };
    }
    Consequence::Count
}

fn named(pod: &Pod) -> String {
    let meta = &pod.metadata;
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    format!("{}/{}", text(&meta.namespace), text(&meta.name))
}

fn by_exit_code(pod: &Pod, asked: &PodFailurePolicyOnExitCodesRequirement) -> Option<String> {
    let status = pod.status.as_ref()?;
    let init = status.init_container_statuses.iter().flatten();
    let all = init.chain(status.container_statuses.iter().flatten());
    for container in all {
        if asked
            .container_name
            .as_ref()
            .is_some_and(|n| *n != container.name)
        {
            continue;
        }
        let ended = container.state.as_ref().and_then(|s| s.terminated.as_ref());
        let Some(code) = ended.map(|t| t.exit_code).filter(|code| *code != 0) else {
            continue;
        };
        if asked.values.contains(&code) == (asked.operator == "In") {
            let pod = named(pod);
            let name = &container.name;
            return Some(format!(
                "Container {name} for pod {pod} failed with exit code {code}"
            ));
        }
    }
    None
}

fn by_condition(pod: &Pod, patterns: &[PodFailurePolicyOnPodConditionsPattern]) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|c| {
        let fits = |p: &PodFailurePolicyOnPodConditionsPattern| {
            p.type_ == c.type_ && p.status.as_deref().unwrap_or("True") == c.status
        };
        patterns.iter().any(fits)
    })?;
    Some(format!("Pod {} has condition {}", named(pod), found.type_))
}

/// The first rule of a success policy that these indexes satisfy.
pub(super) fn success(spec: &JobSpec, completed: &BTreeSet<i32>) -> Option<usize> {
    let rules = &spec.success_policy.as_ref()?.rules;
    let limit = spec.completions.unwrap_or(i32::MAX);
    rules.iter().position(|rule| {
        let asked = rule.succeeded_indexes.as_ref();
        let asked = asked.map(|text| indexes::parse(text, limit));
        let of = match &asked {
            Some(asked) => completed.intersection(asked).count(),
            None => completed.len(),
        };
        match (rule.succeeded_count, asked) {
            (Some(count), _) => i32::try_from(of).unwrap_or(i32::MAX) >= count,
            (None, Some(asked)) => of == asked.len(),
            (None, None) => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::object;
    use serde_json::{Value, json};

    fn spec(more: Value) -> JobSpec {
        let mut spec = json!({"completions": 10, "template": {}});
        crate::fixture::merge(&mut spec, more);
        object(spec)
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let spec = spec(json!({"podFailurePolicy": {"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [42]}},
            {"action": "FailIndex", "onExitCodes": {"operator": "NotIn", "values": [1, 42]}},
        ]}}));
        let pod = |container: &str, code: i32, condition: &str| -> Pod {
            object(
                json!({"metadata": {"name": "p", "namespace": "ns"}, "status": {
                "conditions": [{"type": condition, "status": "True"}],
                "containerStatuses": [
                    {"name": "fine", "state": {"terminated": {"exitCode": 0}}, "image": "", "imageID": "", "ready": false, "restartCount": 0},
                    {"name": container, "state": {"terminated": {"exitCode": code}}, "image": "", "imageID": "", "ready": false, "restartCount": 0}]}}),
            )
        };
        let of = |container: &str, code: i32, condition: &str| {
            consequence(&spec, &pod(container, code, condition))
        };
        assert_eq!(of("main", 42, "DisruptionTarget"), Consequence::Ignore);
        assert_eq!(
            of("main", 42, "Ready"),
            Consequence::FailJob("Container main for pod ns/p failed with exit code 42 matching FailJob rule at index 1".into())
        );
        assert_eq!(of("side", 42, "Ready"), Consequence::Count);
        assert_eq!(of("side", 7, "Ready"), Consequence::FailIndex);
        assert_eq!(of("side", 1, "Ready"), Consequence::Count);
    }

    #[test]
    fn indexes_that_have_succeeded_may_be_enough() {
        let policy = |rules: Value| spec(json!({"successPolicy": {"rules": rules}}));
        let completed = BTreeSet::from([0, 2, 3]);
        for (rules, expected) in [
            (json!([{"succeededIndexes": "0,2-3"}]), Some(0)),
            (json!([{"succeededIndexes": "0-1"}]), None),
            (
                json!([{"succeededIndexes": "0-1"}, {"succeededCount": 3}]),
                Some(1),
            ),
            (
                json!([{"succeededIndexes": "1-4", "succeededCount": 2}]),
                Some(0),
            ),
            (
                json!([{"succeededIndexes": "1,4", "succeededCount": 1}]),
                None,
            ),
        ] {
            assert_eq!(
                success(&policy(rules.clone()), &completed),
                expected,
                "{rules}"
            );
        }
    }
}

//! How many pods of a budget may be evicted: pure.

use crate::pods::{self, count, share};
use client::k8s_openapi::api::core::v1::Pod;
use client::k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use client::k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long an eviction that was granted is waited for, as upstream.
const GRANTED_FOR: SignedDuration = SignedDuration::from_secs(120);
const CONDITION: &str = "DisruptionAllowed";

/// The new status, and when to look again.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) status: PodDisruptionBudgetStatus,
    pub(super) look_again_in: Option<Duration>,
}

/// How many pods there should be: what the owners of these pods ask for, or why that can't
/// be told.
pub(super) type Expected = Result<i32, String>;

/// Plans the status of a budget that covers these pods.
pub(super) fn plan(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    expected: impl FnOnce() -> Expected,
    now: Timestamp,
) -> Plan {
    let known = budget.status.clone().unwrap_or_default();
    let (granted, look_again_in) = still_granted(&known, pods, now);
    let healthy = pods
        .iter()
        .filter(|p| pods::is_ready(p) && p.metadata.deletion_timestamp.is_none())
        .filter(|p| !granted.contains_key(p.metadata.name.as_deref().unwrap_or_default()))
        .count();
    let healthy = count(healthy);
    let mut status = PodDisruptionBudgetStatus {
        observed_generation: budget.metadata.generation,
        current_healthy: Some(healthy),
        disrupted_pods: Some(granted).filter(|g| !g.is_empty()),
        ..known
    };
    let bounds = wanted(budget, pods, expected);
    let (reason, text) = match bounds {
        Ok((desired, expected)) => {
            let allowed = if expected > 0 {
                (healthy - desired).max(0)
            } else {
                0
            };
            status.desired_healthy = Some(desired);
            status.expected_pods = Some(expected);
            status.disruptions_allowed = Some(allowed);
            let reason = if allowed > 0 {
                "SufficientPods"
            } else {
                "InsufficientPods"
            };
            (reason, String::new())
        }
        Err(text) => {
            status.disruptions_allowed = Some(0);
            status.desired_healthy.get_or_insert(0);
            status.expected_pods.get_or_insert(0);
            ("SyncFailed", text)
        }
    };
    let allowed = status.disruptions_allowed > Some(0);
    set_condition(&mut status, budget, allowed, reason, text, now);
    Plan {
        status,
        look_again_in,
    }
}

/// Evictions that were granted and whose pods are still there, not yet being deleted.
fn still_granted(
    known: &PodDisruptionBudgetStatus,
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> (BTreeMap<String, Time>, Option<Duration>) {
    let mut granted = BTreeMap::new();
    let mut soonest: Option<Duration> = None;
    for (name, at) in known.disrupted_pods.iter().flatten() {
        let left = GRANTED_FOR.saturating_sub(now.duration_since(at.0));
        let there = pods.iter().any(|p| {
            p.metadata.name.as_ref() == Some(name) && p.metadata.deletion_timestamp.is_none()
        });
        if !there || left <= SignedDuration::ZERO {
            continue;
        }
        granted.insert(name.clone(), at.clone());
        let left = Duration::try_from(left).unwrap_or_default();
        soonest = Some(soonest.map_or(left, |s| s.min(left)));
    }
    (granted, soonest)
}

/// How many pods must be healthy, of how many.
fn wanted(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    expected: impl FnOnce() -> Expected,
) -> Result<(i32, i32), String> {
    let spec = budget.spec.clone().unwrap_or_default();
    if let Some(most) = &spec.max_unavailable {
        let expected = expected()?;
        let most = share(most, expected, true);
        return Ok(((expected - most).max(0), expected));
    }
    match &spec.min_available {
        Some(IntOrString::Int(least)) => Ok((*least, count(pods.len()))),
        Some(percent) => {
            let expected = expected()?;
            Ok((share(percent, expected, true), expected))
        }
        None => Ok((1, count(pods.len()))),
    }
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    budget: &PodDisruptionBudget,
    allowed: bool,
    reason: &str,
    text: String,
    now: Timestamp,
) {
    let value = if allowed { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    let since = conditions
        .iter()
        .find(|c| c.type_ == CONDITION && c.status == value)
        .map_or(Time(now), |c| c.last_transition_time.clone());
    let new = Condition {
        type_: CONDITION.to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message: text,
        observed_generation: budget.metadata.generation,
        last_transition_time: since,
    };
    match conditions.iter_mut().find(|c| c.type_ == CONDITION) {
        Some(known) => *known = new,
        None => conditions.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{now, object};
    use serde_json::{Value, json};

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        object(json!({"metadata": {"name": "b", "generation": 1}, "spec": spec, "status": status}))
    }

    fn pods(ready: usize, not: usize) -> Vec<Arc<Pod>> {
        (0..ready + not)
            .map(|n| {
                let status = if n < ready { "True" } else { "False" };
                Arc::new(object(
                    json!({"metadata": {"name": format!("p{n}")}, "status":
                    {"conditions": [{"type": "Ready", "status": status}]}}),
                ))
            })
            .collect()
    }

    fn check(
        budget: &PodDisruptionBudget,
        pods: &[Arc<Pod>],
        expected: i32,
    ) -> (i32, i32, i32, i32) {
        let status = plan(budget, pods, || Ok(expected), now()).status;
        (
            status.disruptions_allowed.unwrap_or(-1),
            status.current_healthy.unwrap_or(-1),
            status.desired_healthy.unwrap_or(-1),
            status.expected_pods.unwrap_or(-1),
        )
    }

    /// Upstream: "Specifying a Disruption Budget for your Application", its rounding included.
    #[test]
    fn as_many_may_go_as_are_healthy_beyond_what_is_wanted() {
        let spec = |spec: Value| budget(spec, json!({}));
        assert_eq!(
            check(&spec(json!({"minAvailable": 2})), &pods(3, 1), 9),
            (1, 3, 2, 4)
        );
        assert_eq!(
            check(&spec(json!({"minAvailable": "50%"})), &pods(5, 0), 7),
            (1, 5, 4, 7)
        );
        assert_eq!(
            check(&spec(json!({"maxUnavailable": 1})), &pods(3, 0), 3),
            (1, 3, 2, 3)
        );
        assert_eq!(
            check(&spec(json!({"maxUnavailable": "30%"})), &pods(5, 0), 5),
            (2, 5, 3, 5)
        );
        assert_eq!(
            check(&spec(json!({"maxUnavailable": 1})), &pods(2, 1), 3),
            (0, 2, 2, 3)
        );
        assert_eq!(
            check(&spec(json!({"minAvailable": 0})), &[], 0),
            (0, 0, 0, 0)
        );
    }

    #[test]
    fn evictions_that_were_granted_count_until_they_are_seen() {
        let at = |seconds: i64| (now() - SignedDuration::from_secs(seconds)).to_string();
        let known = json!({"disruptedPods": {"p0": at(30), "p1": at(300), "gone": at(1)}});
        let budget = budget(json!({"minAvailable": 1}), known);
        let plan = plan(&budget, &pods(3, 0), || Ok(3), now());
        let granted: Vec<_> = plan
            .status
            .disrupted_pods
            .iter()
            .flatten()
            .map(|(n, _)| n)
            .collect();
        assert_eq!(granted, ["p0"]);
        assert_eq!(plan.status.current_healthy, Some(2));
        assert_eq!(plan.look_again_in, Some(Duration::from_secs(90)));
    }

    #[test]
    fn what_has_no_owner_to_ask_is_not_evicted_by_percentage() {
        let budget = budget(json!({"maxUnavailable": "50%"}), json!({}));
        let status = plan(&budget, &pods(2, 0), || Err("no owner".into()), now()).status;
        let condition = &status.conditions.unwrap_or_default()[0];
        assert_eq!(status.disruptions_allowed, Some(0));
        assert_eq!(
            (condition.reason.as_str(), condition.message.as_str()),
            ("SyncFailed", "no owner")
        );
    }
}

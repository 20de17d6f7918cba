//! What a ReplicaSet needs: pure.

use crate::error::Error;
use crate::pods;
use client::k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use client::k8s_openapi::api::core::v1::Pod;
use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use client::labels;
use jiff::Timestamp;
use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// Pods created or deleted in one go, as upstream.
const BURST_MAX: usize = 500;
/// Lower values are deleted first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What to do, and the status as it was before.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) create: usize,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Without conditions.
    pub(super) status: ReplicaSetStatus,
    /// When the next ready pod becomes available by time alone.
    pub(super) available_in: Option<Duration>,
}

/// `mine` are the set's pods; `deleted` the uids of those whose deletion may not be told
/// yet; `crowding` how many related pods share a pod's node.
pub(super) fn plan(
    set: &ReplicaSet,
    mine: &[Arc<Pod>],
    deleted: &HashSet<String>,
    crowding: impl Fn(&Pod) -> usize,
    now: Timestamp,
) -> Plan {
    let spec = &set.spec;
    let active: Vec<&Arc<Pod>> = mine
        .iter()
        .filter(|p| {
            pods::is_active(p)
                && !p
                    .metadata
                    .uid
                    .as_ref()
                    .is_some_and(|uid| deleted.contains(uid))
        })
        .collect();
    let desired = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    let (mut create, mut delete) = (0, Vec::new());
    if set.metadata.deletion_timestamp.is_none() {
        create = desired.saturating_sub(active.len()).min(BURST_MAX);
        let surplus = active.len().saturating_sub(desired).min(BURST_MAX);
        if surplus > 0 {
            delete = victims(&active, surplus, &crowding, now);
        }
    }
    let min_ready = pods::seconds(spec.min_ready_seconds);
    let available_in: Vec<Duration> = active
        .iter()
        .filter_map(|p| pods::available_in(p, min_ready, now))
        .collect();
    let template = spec.template.as_ref().and_then(|t| t.metadata.as_ref());
    let wanted = labels::of_map(template.and_then(|m| m.labels.as_ref()));
    let labelled = active
        .iter()
        .filter(|p| labels::matches(&wanted, p.metadata.labels.as_ref()));
    let terminating = mine
        .iter()
        .filter(|p| p.metadata.deletion_timestamp.is_some() && !pods::has_ended(p));
    Plan {
        create,
        delete,
        status: ReplicaSetStatus {
            replicas: count(active.len()),
            fully_labeled_replicas: some_count(labelled.count()),
            ready_replicas: some_count(active.iter().filter(|p| pods::is_ready(p)).count()),
            available_replicas: some_count(available_in.iter().filter(|d| d.is_zero()).count()),
            terminating_replicas: Some(count(terminating.count())),
            observed_generation: set.metadata.generation,
            conditions: None,
        },
        available_in: available_in.into_iter().filter(|d| !d.is_zero()).min(),
    }
}

/// Whether all pods are there and serve, and no others are left: nothing is under way that
/// would change the status soon.
pub(super) fn is_at_rest(set: &ReplicaSet, status: &ReplicaSetStatus) -> bool {
    let n = status.replicas;
    set.spec.replicas.unwrap_or(1) == n
        && status.ready_replicas.unwrap_or(0) == n
        && status.available_replicas.unwrap_or(0) == n
        && status.terminating_replicas.unwrap_or(0) == 0
}

/// The conditions with ReplicaFailure set or taken away.
pub(super) fn conditions(
    known: Option<&ReplicaSetStatus>,
    failure: Option<&Error>,
    creating: bool,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let mut conditions = known.and_then(|s| s.conditions.clone()).unwrap_or_default();
    let was = conditions
        .iter()
        .position(|c| c.type_.as_deref() == Some("ReplicaFailure"))
        .map(|at| conditions.remove(at));
    if let Some(failure) = failure {
        let reason = if creating {
            "FailedCreate"
        } else {
            "FailedDelete"
        };
        let source = std::error::Error::source(failure)
            .and_then(|e| e.downcast_ref::<kube::Error>())
            .map(super::message);
        conditions.push(
            was.filter(|c| c.reason.as_deref() == Some(reason))
                .unwrap_or_else(|| ReplicaSetCondition {
                    type_: Some("ReplicaFailure".to_owned()),
                    status: Some("True".to_owned()),
                    reason: Some(reason.to_owned()),
                    message: Some(source.unwrap_or_else(|| failure.to_string())),
                    last_transition_time: Some(Time(now)),
                }),
        );
    }
    (!conditions.is_empty()).then_some(conditions)
}

/// Which pods go first: those of least worth to the users of the set.
fn victims(
    active: &[&Arc<Pod>],
    surplus: usize,
    crowding: &impl Fn(&Pod) -> usize,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    let mut ranked: Vec<_> = active
        .iter()
        .map(|pod| (worth(pod, crowding(pod), now), *pod))
        .collect();
    ranked.sort_by(|(a, pod_a), (b, pod_b)| {
        a.cmp(b)
            .then_with(|| pod_a.metadata.name.cmp(&pod_b.metadata.name))
    });
    ranked
        .into_iter()
        .take(surplus)
        .map(|(_, pod)| pod.clone())
        .collect()
}

/// Compared in upstream's order; the least goes first: not assigned before assigned,
/// pending before unknown before running, not ready before ready, cheap before dear,
/// on a crowded node before alone, ready for short before ready for long, restarted
/// often before rarely, young before old.
fn worth(pod: &Pod, crowding: usize, now: Timestamp) -> impl Ord + use<> {
    let assigned = pod
        .spec
        .as_ref()
        .is_some_and(|s| s.node_name.as_ref().is_some_and(|n| !n.is_empty()));
    let phase = match pods::phase(pod) {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    };
    let cost = pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(DELETION_COST)?.parse::<i32>().ok())
        .unwrap_or(0);
    let restarts = pod
        .status
        .iter()
        .flat_map(|s| s.container_statuses.iter().flatten())
        .map(|c| c.restart_count)
        .max()
        .unwrap_or(0);
    let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let ready_since = pods::ready_since(pod);
    (
        assigned,
        phase,
        ready_since.is_some(),
        cost,
        Reverse(crowding),
        ready_since.map(|since| age_class(since, now)),
        Reverse(restarts),
        created.map(|c| age_class(c, now)),
    )
}

/// Ages alike within a factor of two count as the same, so that no pattern of ages makes
/// one node lose all of its pods.
fn age_class(since: Timestamp, now: Timestamp) -> u32 {
    u64::try_from(now.duration_since(since).as_secs())
        .unwrap_or(0)
        .saturating_add(1)
        .ilog2()
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// Zero is left out, as upstream does.
fn some_count(n: usize) -> Option<i32> {
    (n > 0).then(|| count(n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{now, object};
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    fn set(replicas: i32) -> ReplicaSet {
        object(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "web", "generation": 4},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web", "v": "2"}}},
            },
        }))
    }

    fn pod(name: &str, more: Value) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": {
                "name": name, "namespace": "default", "uid": name, "labels": {"app": "web"},
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {"nodeName": "n1", "containers": []},
            "status": {"phase": "Running", "conditions": [{
                "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z",
            }]},
        });
        crate::fixture::merge(&mut pod, more);
        Arc::new(object(pod))
    }

    fn check(set: &ReplicaSet, pods: &[Arc<Pod>], expect: Expect) {
        let plan = plan(set, pods, &HashSet::new(), |_| 1, now());
        let delete: Vec<_> = plan
            .delete
            .iter()
            .map(|p| p.metadata.name.clone().unwrap())
            .collect();
        expect.assert_eq(&format!(
            "create {} delete {delete:?} status {}",
            plan.create,
            serde_json::to_string(&plan.status).unwrap()
        ));
    }

    #[test]
    fn makes_what_lacks_and_counts_what_is() {
        check(
            &set(3),
            &[
                pod("ready", json!({"metadata": {"labels": {"v": "2"}}})),
                pod("ended", json!({"status": {"phase": "Failed"}})),
                pod(
                    "going",
                    json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
                ),
            ],
            expect![[
                r#"create 2 delete [] status {"availableReplicas":1,"fullyLabeledReplicas":1,"observedGeneration":4,"readyReplicas":1,"replicas":1,"terminatingReplicas":1}"#
            ]],
        );
    }

    #[test]
    fn the_least_worthy_go_first() {
        let annotated = |cost: &str| {
            json!({"metadata": {"annotations": {
                "controller.kubernetes.io/pod-deletion-cost": cost}}})
        };
        let not_ready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
        let pods = [
            pod("old", json!({})),
            pod("dear", annotated("10")),
            pod("cheap", annotated("-1")),
            pod("not-ready", not_ready),
            pod(
                "pending",
                json!({"status": {"phase": "Pending", "conditions": []}}),
            ),
            pod(
                "unassigned",
                json!({"spec": {"nodeName": null}, "status": {"phase": "Pending"}}),
            ),
        ];
        check(
            &set(1),
            &pods,
            expect![[
                r#"create 0 delete ["unassigned", "pending", "not-ready", "cheap", "old"] status {"availableReplicas":4,"observedGeneration":4,"readyReplicas":4,"replicas":6,"terminatingReplicas":0}"#
            ]],
        );
    }

    #[test]
    fn what_was_deleted_but_is_still_told_does_not_count() {
        let pods = [pod("a", json!({})), pod("b", json!({}))];
        let deleted = HashSet::from(["a".to_owned()]);
        let plan = plan(&set(1), &pods, &deleted, |_| 1, now());
        assert_eq!((plan.create, plan.delete.len()), (0, 0));
        assert_eq!(plan.status.replicas, 1);
    }

    #[test]
    fn a_set_that_is_deleted_makes_nothing() {
        let mut set = set(3);
        set.metadata.deletion_timestamp = Some(Time(now()));
        let plan = plan(&set, &[], &HashSet::new(), |_| 1, now());
        assert_eq!(plan.create, 0);
    }

    #[test]
    fn a_ready_pod_is_available_only_after_min_ready_seconds() {
        let mut set = set(1);
        set.spec.min_ready_seconds = Some(30);
        let since = (now() - jiff::SignedDuration::from_secs(10)).to_string();
        let young = pod(
            "young",
            json!({"status": {"conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": since}]}}),
        );
        let plan = plan(&set, &[young], &HashSet::new(), |_| 1, now());
        assert_eq!(plan.status.available_replicas, None);
        assert_eq!(plan.status.ready_replicas, Some(1));
        assert_eq!(plan.available_in, Some(Duration::from_secs(20)));
    }

    #[test]
    fn a_failure_is_a_condition_until_it_is_over() {
        let failure = Error::Create {
            what: "Pod".into(),
            source: kube::Error::Api(
                kube::core::Status::failure("pods \"x\" is forbidden: quota", "Forbidden").boxed(),
            ),
        };
        let failed = conditions(None, Some(&failure), true, now());
        let shown = failed
            .as_ref()
            .map(|c| (c[0].reason.clone().unwrap(), c[0].message.clone().unwrap()));
        assert_eq!(
            shown,
            Some((
                "FailedCreate".into(),
                "pods \"x\" is forbidden: quota".into()
            ))
        );
        let known = ReplicaSetStatus {
            conditions: failed,
            ..ReplicaSetStatus::default()
        };
        assert_eq!(conditions(Some(&known), None, false, now()), None);
    }
}

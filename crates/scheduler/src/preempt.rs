//! Preemption: which pods must go, on which node, for a pod that finds no room.
//!
//! Upstream: `DefaultPreemption` (KEP-268). Those that go have a lower priority; of them as many stay
//! as can, those whose disruption budget is used up first, then the more important. Of the nodes
//! it is the one where least is lost.

use crate::demand::Demand;
use crate::filter;
use crate::snapshot::Snapshot;
use crate::topology::Topology;
use client::k8s_openapi::api::core::v1::Pod;
use client::k8s_openapi::api::policy::v1::PodDisruptionBudget;
use client::labels;
use jiff::Timestamp;
use std::cmp::Reverse;
use std::sync::Arc;

/// Nodes that are looked at for one pod, at most.
const NODES_MAX: usize = 100;

/// What makes room for a pod.
#[derive(Debug)]
pub(crate) struct Preemption {
    pub(crate) node: String,
    /// The pods that go.
    pub(crate) victims: Vec<Arc<Pod>>,
    /// Pods without a node that were to have room there, and are not now.
    pub(crate) outdone: Vec<Arc<Pod>>,
}

/// What is lost by it: less is better.
type Cost = (usize, i32, i64, usize, Reverse<Timestamp>);

/// A pod's priority.
pub(crate) fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0)
}

/// Why a pod may make no others go, if so.
pub(crate) fn not_eligible(pod: &Pod, snapshot: &Snapshot) -> Option<&'static str> {
    let policy = pod.spec.as_ref()?.preemption_policy.as_deref();
    if policy == Some("Never") {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let nominated = pod.status.as_ref()?.nominated_node_name.as_deref()?;
    let going =
        |p: &Arc<Pod>| priority(p) < priority(pod) && p.metadata.deletion_timestamp.is_some();
    let awaited = snapshot.node(nominated)?.pods().any(going);
    awaited.then_some("not eligible due to a terminating pod on the nominated node.")
}

/// The least that must go so that a node can take a pod; none if nothing helps.
/// `snapshot` is the same afterwards.
pub(crate) fn preempt(
    demand: &Demand<'_>,
    snapshot: &mut Snapshot,
    budgets: &[Arc<PodDisruptionBudget>],
) -> Option<Preemption> {
    let own = priority(demand.pod);
    let with_lower: Vec<String> = snapshot
        .nodes()
        .filter(|(_, node)| node.pods().any(|pod| priority(pod) < own))
        .map(|(name, _)| name.to_owned())
        .collect();
    let found = with_lower.into_iter().filter_map(|node| {
        let (victims, violations) = victims(demand, snapshot, &node, budgets)?;
        let cost = cost(&victims, violations)?;
        let outdone = Vec::new();
        let preemption = Preemption {
            node,
            victims,
            outdone,
        };
        Some((cost, preemption))
    });
    let best = found.take(NODES_MAX).min_by_key(|(cost, _)| *cost);
    best.map(|(_, preemption)| preemption)
}

/// Who must go from a node, and how many of them against their budgets.
fn victims(
    demand: &Demand<'_>,
    snapshot: &mut Snapshot,
    node: &str,
    budgets: &[Arc<PodDisruptionBudget>],
) -> Option<(Vec<Arc<Pod>>, usize)> {
    let own = priority(demand.pod);
    let pods = snapshot.node(node)?.pods();
    let mut lower: Vec<Arc<Pod>> = pods.filter(|pod| priority(pod) < own).cloned().collect();
    lower.sort_by_cached_key(|pod| (Reverse(priority(pod)), started(pod), uid(pod).to_owned()));
    for pod in &lower {
        snapshot.remove_pod(node, uid(pod));
    }
    let helps = fits(demand, snapshot, node);
    let mut victims = Vec::new();
    let mut violations = 0;
    for (pod, violates) in by_budgets(lower, budgets) {
        snapshot.add_pod(node, pod.clone());
        if helps && !fits(demand, snapshot, node) {
            snapshot.remove_pod(node, uid(&pod));
            violations += usize::from(violates);
            victims.push(pod);
        }
    }
    for pod in &victims {
        snapshot.add_pod(node, pod.clone());
    }
    helps.then_some((victims, violations))
}

fn fits(demand: &Demand<'_>, snapshot: &Snapshot, name: &str) -> bool {
    snapshot.node(name).is_some_and(|node| {
        filter::check(demand, name, node).is_ok()
            && Topology::count(demand, snapshot).check(node).is_ok()
    })
}

/// Pods with whether their end is against a budget; those first.
fn by_budgets(
    pods: Vec<Arc<Pod>>,
    budgets: &[Arc<PodDisruptionBudget>],
) -> impl Iterator<Item = (Arc<Pod>, bool)> + use<> {
    let mut left: Vec<(&PodDisruptionBudget, i32)> = budgets
        .iter()
        .map(|budget| {
            let status = budget.status.as_ref();
            (
                &**budget,
                status.and_then(|s| s.disruptions_allowed).unwrap_or(0),
            )
        })
        .collect();
    let (against, within): (Vec<_>, Vec<_>) = pods
        .into_iter()
        .map(|pod| {
            let mut violates = false;
            for (_, left) in left.iter_mut().filter(|(budget, _)| covers(budget, &pod)) {
                *left -= 1;
                violates |= *left < 0;
            }
            (pod, violates)
        })
        .partition(|(_, violates)| *violates);
    against.into_iter().chain(within)
}

/// Whether a budget counts a pod that has not been disrupted yet.
fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    let selector = selector.and_then(|s| labels::parse(s).ok());
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let disrupted = budget
        .status
        .as_ref()
        .and_then(|s| s.disrupted_pods.as_ref());
    budget.metadata.namespace == pod.metadata.namespace
        && selector.is_some_and(|s| {
            !s.requirements.is_empty() && labels::matches(&s, pod.metadata.labels.as_ref())
        })
        && !disrupted.is_some_and(|d| d.contains_key(name))
}

fn cost(victims: &[Arc<Pod>], violations: usize) -> Option<Cost> {
    let highest = victims.iter().map(|pod| priority(pod)).max()?;
    // Upstream lifts each above zero, so that fewer are better than lower.
    let lifted = |pod: &Arc<Pod>| i64::from(priority(pod)) + i64::from(i32::MAX) + 1;
    let of_highest = victims.iter().filter(|pod| priority(pod) == highest);
    let earliest = of_highest.map(|pod| started(pod)).min()?;
    Some((
        violations,
        highest,
        victims.iter().map(lifted).sum(),
        victims.len(),
        Reverse(earliest),
    ))
}

/// When it began to run; one that has not yet is the youngest.
fn started(pod: &Pod) -> Timestamp {
    let start = pod.status.as_ref().and_then(|s| s.start_time.as_ref());
    start.map_or(Timestamp::MAX, |time| time.0)
}

pub(crate) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

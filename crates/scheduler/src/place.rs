//! The decision: filter, score, choose.

use crate::demand::Demand;
use crate::filter::{self, Rejection};
use crate::score;
use crate::snapshot::{NodeState, Snapshot};
use crate::topology::Topology;
use rand::RngExt as _;
use std::collections::BTreeMap;
use std::fmt;

/// No node can take a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unschedulable {
    /// How many nodes there are.
    pub nodes: usize,
    /// What the pod itself lacks, so that no node was looked at.
    pub pod: Option<String>,
    /// Why, and of how many nodes; a node may have several reasons.
    pub reasons: BTreeMap<String, usize>,
    /// Of how many nodes it is other pods that stand in the way.
    pub blocked_by_pods: usize,
    /// What came of preemption, in place of what the numbers say of it; empty when others make
    /// room.
    pub preemption: Option<String>,
}

impl std::error::Error for Unschedulable {}

impl fmt::Display for Unschedulable {
    /// The message that users know from the FailedScheduling event.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        let all = self.nodes;
        let reasons = match &self.pod {
            Some(reason) => reason.clone(),
            None => counted(&self.reasons),
        };
        write!(f, "0/{all} nodes are available: {reasons}.")?;
        if let Some(text) = &self.preemption {
            return match text.as_str() {
                "" => Ok(()),
                text => write!(f, " preemption: {text}"),
            };
        }
        let mut preemption = BTreeMap::new();
        for (reason, count) in [
            (
                "No preemption victims found for incoming pod",
                self.blocked_by_pods,
            ),
            (
                "Preemption is not helpful for scheduling",
                all.saturating_sub(self.blocked_by_pods),
            ),
        ] {
            if count > 0 {
                preemption.insert(reason.to_owned(), count);
            }
        }
        write!(
            f,
            " preemption: 0/{all} nodes are available: {}.",
            counted(&preemption)
        )
    }
}

/// Chooses the node for a pod: of those that pass all filters one of those with the
/// greatest score, by chance where several have it.
///
/// # Errors
/// The reasons, when no node passes.
pub fn place<'s>(
    demand: &Demand<'_>,
    snapshot: &'s Snapshot,
    rng: &mut impl rand::Rng,
) -> Result<&'s str, Unschedulable> {
    let mut failed = Unschedulable::default();
    let mut feasible: Vec<(&str, &NodeState)> = Vec::new();
    let topology = Topology::count(demand, snapshot);
    for (name, node) in snapshot.nodes() {
        failed.nodes += 1;
        match filter::check(demand, name, node).and_then(|()| topology.check(node)) {
            Ok(()) => feasible.push((name, node)),
            Err(Rejection { reasons, by_pods }) => {
                failed.blocked_by_pods += usize::from(by_pods);
                for reason in reasons {
                    *failed.reasons.entry(reason).or_insert(0) += 1;
                }
            }
        }
    }
    match feasible.as_slice() {
        [] => Err(failed),
        [(only, _)] => Ok(only),
        _ => {
            let totals = score::totals(demand, snapshot, &feasible);
            let best = totals.iter().copied().max().unwrap_or(0);
            let ties: Vec<&str> = feasible
                .iter()
                .zip(&totals)
                .filter(|(_, total)| **total == best)
                .map(|((name, _), _)| *name)
                .collect();
            Ok(ties[rng.random_range(0..ties.len())])
        }
    }
}

/// `2 Insufficient cpu, 1 node(s) …`, sorted as text.
fn counted(reasons: &BTreeMap<String, usize>) -> String {
    let mut parts: Vec<String> = reasons
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    parts.sort_unstable();
    parts.join(", ")
}

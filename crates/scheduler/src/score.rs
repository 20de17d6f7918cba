//! Scores: which of the nodes that can take a pod takes it best.
//!
//! Each score is brought to 0–100 over the nodes in question, then weighed as upstream's
//! default profile does.

use crate::demand::Demand;
use crate::resources::Resources;
use crate::snapshot::{NodeState, Snapshot};
use crate::topology;
use client::taints::tolerates;

const MAX: i64 = 100;

/// The total of each of the given nodes; greater is better.
pub(crate) fn totals(
    demand: &Demand<'_>,
    snapshot: &Snapshot,
    nodes: &[(&str, &NodeState)],
) -> Vec<i64> {
    let mut totals: Vec<i64> = nodes.iter().map(|(_, n)| room(demand, n)).collect();
    let mut add = |weight: i64, scores: Vec<i64>| {
        for (total, score) in totals.iter_mut().zip(scores) {
            *total += weight * score;
        }
    };
    let disliked = nodes
        .iter()
        .map(|(_, n)| taints_disliked(demand, n))
        .collect();
    add(3, least_is_best(disliked));
    if !demand.nodes.preferred.is_empty() {
        let liked = nodes
            .iter()
            .map(|(name, n)| affinity(demand, name, n))
            .collect();
        add(2, most_is_best(liked));
    }
    if let Some(liked) = topology::preferences(demand, snapshot, nodes) {
        add(2, between(&liked));
    }
    if let Some(crowded) = topology::crowding(demand, snapshot, nodes) {
        add(2, emptiest_is_best(&crowded));
    }
    totals
}

/// How much stays free, and how evenly CPU and memory would be used.
fn room(demand: &Demand<'_>, node: &NodeState) -> i64 {
    let mut used = node.used_for_score.clone();
    used.add(&demand.requests_for_score);
    least_allocated(&used, &node.allocatable) + balanced(&used, &node.allocatable)
}

fn least_allocated(used: &Resources, has: &Resources) -> i64 {
    let free = |used: i64, has: i64| {
        if has <= 0 || used > has {
            0
        } else {
            // In 128 bits: bytes times a hundred.
            i64::try_from(i128::from(has - used) * i128::from(MAX) / i128::from(has)).unwrap_or(0)
        }
    };
    (free(used.cpu_milli, has.cpu_milli) + free(used.memory, has.memory)) / 2
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a share between 0 and 1 brought to 0..=100"
)]
fn balanced(used: &Resources, has: &Resources) -> i64 {
    let share = |used: i64, has: i64| {
        if has <= 0 {
            0.0
        } else {
            (used as f64 / has as f64).min(1.0)
        }
    };
    let (cpu, memory) = (
        share(used.cpu_milli, has.cpu_milli),
        share(used.memory, has.memory),
    );
    // The standard deviation of two numbers is half their distance.
    ((1.0 - (cpu - memory).abs() / 2.0) * MAX as f64) as i64
}

fn taints_disliked(demand: &Demand<'_>, node: &NodeState) -> i64 {
    let disliked = node.taints().iter().filter(|taint| {
        taint.effect == "PreferNoSchedule"
            && !demand.tolerations().iter().any(|t| tolerates(t, taint))
    });
    i64::try_from(disliked.count()).unwrap_or(i64::MAX)
}

fn affinity(demand: &Demand<'_>, name: &str, node: &NodeState) -> i64 {
    demand
        .nodes
        .preferred
        .iter()
        .filter(|(_, term)| term.matches(name, node.labels()))
        .map(|(weight, _)| weight)
        .sum()
}

fn most_is_best(scores: Vec<i64>) -> Vec<i64> {
    let most = scores.iter().copied().max().unwrap_or(0);
    if most <= 0 {
        return vec![0; scores.len()];
    }
    scores.into_iter().map(|s| s.max(0) * MAX / most).collect()
}

fn least_is_best(scores: Vec<i64>) -> Vec<i64> {
    most_is_best(scores).into_iter().map(|s| MAX - s).collect()
}

fn between(scores: &[i64]) -> Vec<i64> {
    let least = scores.iter().copied().min().unwrap_or(0);
    let most = scores.iter().copied().max().unwrap_or(0);
    scores
        .iter()
        .map(|s| {
            if most == least {
                0
            } else {
                (s - least) * MAX / (most - least)
            }
        })
        .collect()
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a share between 0 and 1 brought to 0..=100"
)]
fn emptiest_is_best(crowded: &[f64]) -> Vec<i64> {
    let most = crowded.iter().copied().fold(0.0, f64::max);
    let least = crowded.iter().copied().fold(f64::INFINITY, f64::min);
    crowded
        .iter()
        .map(|c| {
            if most <= 0.0 {
                MAX
            } else {
                ((most + least - c) / most * MAX as f64) as i64
            }
        })
        .collect()
}

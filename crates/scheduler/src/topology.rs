//! Filters and scores that look at where other pods are: spreading, affinity to pods
//! and against them. What they count is counted once a placement, over all nodes.

use crate::demand::{Demand, Spread, Term};
use crate::filter::{Rejection, untolerated};
use crate::snapshot::{NodeState, Snapshot};
use client::k8s_openapi::api::core::v1::Pod;
use std::collections::HashMap;

/// A topology: a label's key and its value.
type Place<'a> = (&'a str, &'a str);

/// Counts of pods by topology, for one placement.
#[derive(Debug)]
pub(crate) struct Topology<'a> {
    demand: &'a Demand<'a>,
    /// Beside each hard constraint, how many pods are in each of its domains.
    spread: Vec<(&'a Spread, HashMap<&'a str, i64>)>,
    /// Pods that satisfy all affinity terms, by place.
    wanted: HashMap<Place<'a>, i64>,
    /// Places that hold a pod which an anti-affinity term means.
    unwanted: HashMap<Place<'a>, i64>,
    /// Places that a pod there wants for itself.
    forbidden: HashMap<Place<'a>, i64>,
    /// The pod satisfies its own affinity terms.
    suits_itself: bool,
}

impl<'a> Topology<'a> {
    pub(crate) fn count(demand: &'a Demand<'a>, snapshot: &'a Snapshot) -> Self {
        let mut this = Self {
            demand,
            spread: Vec::new(),
            wanted: HashMap::new(),
            unwanted: HashMap::new(),
            forbidden: HashMap::new(),
            suits_itself: false,
        };
        this.count_spread(snapshot);
        this.count_rules(snapshot);
        this
    }

    fn count_spread(&mut self, snapshot: &'a Snapshot) {
        let demand = self.demand;
        let hard: Vec<&Spread> = demand.spread.iter().filter(|s| s.hard).collect();
        for constraint in &hard {
            let mut domains = HashMap::new();
            for (name, node) in snapshot.nodes() {
                if hard.iter().any(|s| node.label(&s.topology_key).is_none())
                    || !is_counted(demand, constraint, name, node)
                {
                    continue;
                }
                if let Some(domain) = node.label(&constraint.topology_key) {
                    *domains.entry(domain).or_insert(0) += counted_pods(demand, constraint, node);
                }
            }
            self.spread.push((constraint, domains));
        }
    }

    fn count_rules(&mut self, snapshot: &'a Snapshot) {
        let demand = self.demand;
        let own = snapshot.namespace_labels(Some(demand.namespace()));
        let rules = &demand.rules;
        if snapshot.has_rules() {
            for (_, node) in snapshot.nodes() {
                for term in node.rules().flat_map(|r| &r.anti_affinity) {
                    if term.matches(demand.pod, own) {
                        note(&mut self.forbidden, node, term, 1);
                    }
                }
            }
        }
        if rules.affinity.is_empty() && rules.anti_affinity.is_empty() {
            return;
        }
        self.suits_itself = rules.affinity.iter().all(|t| t.matches(demand.pod, own));
        for (_, node) in snapshot.nodes() {
            for pod in node.pods() {
                let labels = snapshot.namespace_labels(pod.metadata.namespace.as_deref());
                let means = |term: &Term| term.matches(pod, labels);
                if !rules.affinity.is_empty() && rules.affinity.iter().all(means) {
                    for term in &rules.affinity {
                        note(&mut self.wanted, node, term, 1);
                    }
                }
                for term in rules.anti_affinity.iter().filter(|t| means(t)) {
                    note(&mut self.unwanted, node, term, 1);
                }
            }
        }
    }

    /// The first of these filters that rejects a node.
    pub(crate) fn check(&self, node: &NodeState) -> Result<(), Rejection> {
        self.check_spread(node)?;
        self.check_rules(node)
    }

    fn check_spread(&self, node: &NodeState) -> Result<(), Rejection> {
        for (constraint, domains) in &self.spread {
            let Some(domain) = node.label(&constraint.topology_key) else {
                return Err(Rejection::by_node(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                ));
            };
            let here = domains.get(domain).copied().unwrap_or(0);
            let enough = i64::try_from(domains.len()).is_ok_and(|n| n >= constraint.min_domains);
            let least = if enough {
                domains.values().copied().min().unwrap_or(0)
            } else {
                0
            };
            let itself = i64::from(constraint.counts(self.demand.pod));
            if here + itself - least > constraint.max_skew {
                return Err(Rejection::by_pods(
                    "node(s) didn't match pod topology spread constraints",
                ));
            }
        }
        Ok(())
    }

    fn check_rules(&self, node: &NodeState) -> Result<(), Rejection> {
        let rules = &self.demand.rules;
        let at = |counts: &HashMap<Place<'_>, i64>, term: &Term| {
            node.label(&term.topology_key)
                .is_some_and(|value| counts.contains_key(&(term.topology_key.as_str(), value)))
        };
        let everywhere_labelled = rules
            .affinity
            .iter()
            .all(|t| node.label(&t.topology_key).is_some());
        let satisfied = rules.affinity.iter().all(|t| at(&self.wanted, t));
        // The first of a group that wants to be together finds nobody yet.
        let first = self.wanted.is_empty() && self.suits_itself && everywhere_labelled;
        if !satisfied && !first {
            return Err(Rejection::by_node(
                "node(s) didn't match pod affinity rules",
            ));
        }
        if rules.anti_affinity.iter().any(|t| at(&self.unwanted, t)) {
            return Err(Rejection::by_pods(
                "node(s) didn't match pod anti-affinity rules",
            ));
        }
        if self
            .forbidden
            .keys()
            .any(|(key, value)| node.label(key) == Some(value))
        {
            return Err(Rejection::by_pods(
                "node(s) didn't satisfy existing pods anti-affinity rules",
            ));
        }
        Ok(())
    }
}

/// How much each of the given nodes is liked by the pod's preferences about other pods
/// and by theirs about it; any number, greater is better.
pub(crate) fn preferences(
    demand: &Demand<'_>,
    snapshot: &Snapshot,
    nodes: &[(&str, &NodeState)],
) -> Option<Vec<i64>> {
    if demand.rules.preferred.is_empty() && !snapshot.has_rules() {
        return None;
    }
    let own = snapshot.namespace_labels(Some(demand.namespace()));
    let mut liked: HashMap<Place<'_>, i64> = HashMap::new();
    for (_, node) in snapshot.nodes() {
        for theirs in node.rules() {
            for (weight, term) in &theirs.preferred {
                if term.matches(demand.pod, own) {
                    note(&mut liked, node, term, *weight);
                }
            }
            // Whoever needs such pods about it is glad of one more.
            for term in &theirs.affinity {
                if term.matches(demand.pod, own) {
                    note(&mut liked, node, term, 1);
                }
            }
        }
        if demand.rules.preferred.is_empty() {
            continue;
        }
        for pod in node.pods() {
            let labels = snapshot.namespace_labels(pod.metadata.namespace.as_deref());
            for (weight, term) in &demand.rules.preferred {
                if term.matches(pod, labels) {
                    note(&mut liked, node, term, *weight);
                }
            }
        }
    }
    if liked.is_empty() {
        return None;
    }
    let sum = |node: &NodeState| {
        liked
            .iter()
            .filter(|((key, value), _)| node.label(key) == Some(value))
            .map(|(_, weight)| weight)
            .sum()
    };
    Some(nodes.iter().map(|(_, node)| sum(node)).collect())
}

/// How crowded each of the given nodes is by pods of the same kind, by the pod's soft
/// constraints or, when it has none at all, by its controller's other pods on the node
/// and in its zone; less is better.
pub(crate) fn crowding(
    demand: &Demand<'_>,
    snapshot: &Snapshot,
    nodes: &[(&str, &NodeState)],
) -> Option<Vec<f64>> {
    if demand.spread.is_empty() {
        return Some(default_crowding(demand.owner?, snapshot, nodes));
    }
    let soft: Vec<&Spread> = demand.spread.iter().filter(|s| !s.hard).collect();
    if soft.is_empty() {
        return None;
    }
    let mut crowded = vec![0.0; nodes.len()];
    for constraint in soft {
        let mut domains: HashMap<&str, i64> = HashMap::new();
        for (name, node) in snapshot.nodes() {
            if let Some(domain) = node.label(&constraint.topology_key)
                && is_counted(demand, constraint, name, node)
            {
                *domains.entry(domain).or_insert(0) += counted_pods(demand, constraint, node);
            }
        }
        let most = domains.values().copied().max().unwrap_or(0);
        let weight = weight_of(domains.len());
        for ((_, node), crowded) in nodes.iter().zip(&mut crowded) {
            // A node outside of all domains is as bad as the worst.
            let here = node
                .label(&constraint.topology_key)
                .map_or(most + 1, |d| domains.get(d).copied().unwrap_or(0));
            *crowded += as_f64(here) * weight + as_f64(constraint.max_skew - 1);
        }
    }
    Some(crowded)
}

fn default_crowding(owner: &str, snapshot: &Snapshot, nodes: &[(&str, &NodeState)]) -> Vec<f64> {
    const ZONE: &str = "topology.kubernetes.io/zone";
    let mut zones: HashMap<&str, i64> = HashMap::new();
    for (_, node) in snapshot.nodes() {
        if let Some(zone) = node.label(ZONE) {
            *zones.entry(zone).or_insert(0) += node.owned_by(owner);
        }
    }
    let (by_node, by_zone) = (weight_of(nodes.len()), weight_of(zones.len()));
    nodes
        .iter()
        .map(|(_, node)| {
            let zone = node.label(ZONE).and_then(|z| zones.get(z)).copied();
            as_f64(node.owned_by(owner)) * by_node + as_f64(zone.unwrap_or(0)) * by_zone
        })
        .collect()
}

/// Domains weigh more the more of them there are, since each then holds fewer pods.
fn weight_of(domains: usize) -> f64 {
    as_f64(i64::try_from(domains).unwrap_or(i64::MAX).saturating_add(2)).ln()
}

#[allow(clippy::cast_precision_loss, reason = "counts of pods and domains")]
fn as_f64(n: i64) -> f64 {
    n as f64
}

fn is_counted(demand: &Demand<'_>, constraint: &Spread, name: &str, node: &NodeState) -> bool {
    (!constraint.honour_affinity || demand.nodes.accepts(name, node.labels()))
        && (!constraint.honour_taints || untolerated(demand, node).is_none())
}

fn counted_pods(demand: &Demand<'_>, constraint: &Spread, node: &NodeState) -> i64 {
    let counted = |pod: &Pod| {
        pod.metadata.deletion_timestamp.is_none()
            && pod.metadata.namespace.as_deref().unwrap_or_default() == demand.namespace()
            && constraint.counts(pod)
    };
    i64::try_from(node.pods().filter(|pod| counted(pod)).count()).unwrap_or(i64::MAX)
}

fn note<'a>(counts: &mut HashMap<Place<'a>, i64>, node: &'a NodeState, term: &'a Term, by: i64) {
    if let Some(value) = node.label(&term.topology_key) {
        *counts
            .entry((term.topology_key.as_str(), value))
            .or_insert(0) += by;
    }
}

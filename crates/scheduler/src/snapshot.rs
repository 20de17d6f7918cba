//! What is known of the nodes and of what runs on them, as filters and scores need it.
//!
//! It is kept up to date pod by pod; pods are shared with the informer, not copied.

use crate::demand::{self, Rules};
use crate::resources::{self, Resources};
use client::k8s_openapi::api::core::v1::{Node, Pod, Taint};
use client::labels::Labels;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// All nodes and the pods placed on them.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// By name, so that a decision does not depend on the order of arrival. Also nodes
    /// that are not known but have pods.
    nodes: BTreeMap<String, NodeState>,
    namespaces: HashMap<String, Labels>,
    /// How many pods have rules about other pods; mostly none, and then nobody looks.
    pods_with_rules: usize,
}

/// One node.
#[derive(Debug, Default)]
pub(crate) struct NodeState {
    node: Option<Arc<Node>>,
    pub(crate) allocatable: Resources,
    pub(crate) pods_max: i64,
    pub(crate) used: Resources,
    pub(crate) used_for_score: Resources,
    pods: HashMap<String, Arc<Pod>>,
    rules: HashMap<String, Rules>,
    owners: HashMap<String, i64>,
}

impl NodeState {
    pub(crate) fn labels(&self) -> Option<&Labels> {
        self.node.as_ref()?.metadata.labels.as_ref()
    }

    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.labels()?.get(key).map(String::as_str)
    }

    pub(crate) fn taints(&self) -> &[Taint] {
        self.node
            .as_ref()
            .and_then(|n| n.spec.as_ref())
            .and_then(|s| s.taints.as_deref())
            .unwrap_or_default()
    }

    pub(crate) fn is_unschedulable(&self) -> bool {
        self.node
            .as_ref()
            .and_then(|n| n.spec.as_ref())
            .and_then(|s| s.unschedulable)
            == Some(true)
    }

    pub(crate) fn pods(&self) -> impl ExactSizeIterator<Item = &Arc<Pod>> {
        self.pods.values()
    }

    /// Pods with rules about other pods.
    pub(crate) fn rules(&self) -> impl Iterator<Item = &Rules> {
        self.rules.values()
    }

    /// How many pods of a controller are here.
    pub(crate) fn owned_by(&self, uid: &str) -> i64 {
        self.owners.get(uid).copied().unwrap_or(0)
    }
}

impl Snapshot {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a node in, or in place of what was known of it. Whether anything changed that
    /// a placement looks at.
    pub fn set_node(&mut self, node: Arc<Node>) -> bool {
        let name = node.metadata.name.clone().unwrap_or_default();
        let state = self.nodes.entry(name).or_default();
        let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
        let amounts = Resources::of(allocatable);
        let pods_max = allocatable
            .and_then(|a| {
                a.get("pods")?
                    .0
                    .parse::<apimachinery::quantity::Quantity>()
                    .ok()
            })
            .map_or(0, apimachinery::quantity::Quantity::value);
        let changed =
            state.node.as_ref().is_none_or(|old| {
                old.spec != node.spec || old.metadata.labels != node.metadata.labels
            }) || state.allocatable != amounts
                || state.pods_max != pods_max;
        state.allocatable = amounts;
        state.pods_max = pods_max;
        state.node = Some(node);
        changed
    }

    /// Forgets a node; its pods stay known in case it returns.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(state) = self.nodes.get_mut(name) {
            state.node = None;
            state.allocatable = Resources::default();
        }
        self.drop_if_unused(name);
    }

    /// Puts a pod on a node, or in place of what was known of it there.
    pub fn add_pod(&mut self, node: &str, pod: Arc<Pod>) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let known = self.nodes.get_mut(node).and_then(|s| s.pods.get_mut(&uid));
        if let Some(known) = known {
            // Mostly only the status changed; the older object must not be kept alive.
            if known.spec == pod.spec
                && known.metadata.labels == pod.metadata.labels
                && known.metadata.owner_references == pod.metadata.owner_references
            {
                *known = pod;
                return;
            }
            self.remove_pod(node, &uid);
        }
        let state = self.nodes.entry(node.to_owned()).or_default();
        state.used.add(&resources::requests(&pod));
        state
            .used_for_score
            .add(&resources::requests_for_score(&pod));
        if let Some(owner) = demand::owner(&pod) {
            *state.owners.entry(owner.to_owned()).or_insert(0) += 1;
        }
        let rules = Rules::of(&pod);
        if !rules.is_empty() {
            self.pods_with_rules += 1;
            state.rules.insert(uid.clone(), rules);
        }
        state.pods.insert(uid, pod);
    }

    /// Takes a pod from a node; whether it was there.
    pub fn remove_pod(&mut self, node: &str, uid: &str) -> bool {
        let Some(state) = self.nodes.get_mut(node) else {
            return false;
        };
        let Some(pod) = state.pods.remove(uid) else {
            return false;
        };
        state.used.subtract(&resources::requests(&pod));
        state
            .used_for_score
            .subtract(&resources::requests_for_score(&pod));
        if state.rules.remove(uid).is_some() {
            self.pods_with_rules -= 1;
        }
        if let Some(owner) = demand::owner(&pod)
            && let Some(count) = state.owners.get_mut(owner)
        {
            *count -= 1;
            if *count == 0 {
                state.owners.remove(owner);
            }
        }
        self.drop_if_unused(node);
        true
    }

    /// Sets a namespace's labels.
    pub fn set_namespace(&mut self, name: &str, labels: Labels) {
        self.namespaces.insert(name.to_owned(), labels);
    }

    /// Forgets a namespace.
    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.nodes().count()
    }

    /// Whether there are no nodes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&str, &NodeState)> {
        self.nodes
            .iter()
            .filter(|(_, state)| state.node.is_some())
            .map(|(name, state)| (name.as_str(), state))
    }

    pub(crate) fn node(&self, name: &str) -> Option<&NodeState> {
        self.nodes.get(name).filter(|state| state.node.is_some())
    }

    pub(crate) fn has_rules(&self) -> bool {
        self.pods_with_rules > 0
    }

    pub(crate) fn namespace_labels(&self, namespace: Option<&str>) -> Option<&Labels> {
        self.namespaces.get(namespace?)
    }

    fn drop_if_unused(&mut self, name: &str) {
        if self
            .nodes
            .get(name)
            .is_some_and(|s| s.node.is_none() && s.pods.is_empty())
        {
            self.nodes.remove(name);
        }
    }
}

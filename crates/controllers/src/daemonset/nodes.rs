//! On which nodes a DaemonSet's pods belong: pure.

use apimachinery::selector::{LabelSelector, Op, Requirement};
use client::k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod,
    Taint, Toleration,
};
use client::labels;
use client::taints::{tolerates, tolerations};

const NAME_FIELD: &str = "metadata.name";
/// Taints that a daemon's pod stands, as the DaemonSet concepts page lists them.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
const NETWORK: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// Whether a pod is to be on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It is to be there.
    Wanted,
    /// One that is there may stay; none is made.
    MayStay,
    /// It must not be there.
    Refused,
}

/// What a node is to a set's pod (made by [`tolerate`], of no node yet).
pub(super) fn place(pod: &Pod, node: &Node) -> Place {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let named = spec
        .and_then(|s| s.node_name.as_deref())
        .filter(|n| !n.is_empty());
    if named.is_some_and(|n| n != name) || !accepts(pod, node) {
        return Place::Refused;
    }
    let stands = |t: &Taint| tolerations(pod).iter().any(|known| tolerates(known, t));
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    let untolerated = |effect: &str| {
        let mut taints = taints.into_iter().flatten();
        taints.any(|t| t.effect == effect && !stands(t))
    };
    if untolerated("NoExecute") {
        Place::Refused
    } else if untolerated("NoSchedule") {
        Place::MayStay
    } else {
        Place::Wanted
    }
}

fn accepts(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let labels = node.metadata.labels.as_ref();
    let selected = labels::matches(&labels::of_map(spec.node_selector.as_ref()), labels);
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| {
            a.required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    let one_of = |s: &NodeSelector| s.node_selector_terms.iter().any(|t| term_matches(t, node));
    selected && required.is_none_or(one_of)
}

/// A term without requirements matches no node.
fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let parse = |requirements: &Option<Vec<NodeSelectorRequirement>>| LabelSelector {
        requirements: requirements.iter().flatten().map(requirement).collect(),
    };
    let (expressions, fields) = (parse(&term.match_expressions), parse(&term.match_fields));
    let name = node.metadata.name.as_deref();
    let empty = expressions.requirements.is_empty() && fields.requirements.is_empty();
    !empty
        && labels::matches(&expressions, node.metadata.labels.as_ref())
        && fields.matches(|field| name.filter(|_| field == NAME_FIELD))
}

fn requirement(r: &NodeSelectorRequirement) -> Requirement {
    let values = r.values.clone().unwrap_or_default();
    let number = || values.first().and_then(|v| v.parse().ok());
    let op = match r.operator.as_str() {
        "In" => Op::In(values),
        "NotIn" => Op::NotIn(values),
        "Exists" => Op::Exists,
        "DoesNotExist" => Op::DoesNotExist,
        "Gt" => number().map_or(Op::In(Vec::new()), Op::Gt),
        "Lt" => number().map_or(Op::In(Vec::new()), Op::Lt),
        // Matches nothing.
        _ => Op::In(Vec::new()),
    };
    Requirement {
        key: r.key.clone(),
        op,
    }
}

/// Lets a pod stand what a daemon's must.
pub(super) fn tolerate(pod: &mut Pod) {
    let spec = pod.spec.get_or_insert_default();
    let network = Some(NETWORK).filter(|_| spec.host_network == Some(true));
    let list = spec.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.into_iter().chain(network) {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        let known = list.iter_mut().find(|t| {
            t.key == toleration.key
                && t.effect == toleration.effect
                && t.operator == toleration.operator
        });
        match known {
            // It stands it for as long as it lasts.
            Some(known) => *known = toleration,
            None => list.push(toleration),
        }
    }
}

/// Asks the scheduler for one node. That it fits is known already, so this replaces what
/// node affinity requires.
pub(super) fn pin(pod: &mut Pod, node: &str) {
    let affinity: &mut Affinity = pod
        .spec
        .get_or_insert_default()
        .affinity
        .get_or_insert_default();
    let of_node: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    of_node.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_fields: Some(vec![NodeSelectorRequirement {
                key: NAME_FIELD.to_owned(),
                operator: "In".to_owned(),
                values: Some(vec![node.to_owned()]),
            }]),
            ..NodeSelectorTerm::default()
        }],
    });
}

/// The node that a pod is on or was made for.
pub(super) fn target(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.as_deref().filter(|n| !n.is_empty()) {
        return Some(node);
    }
    let required = spec
        .affinity
        .as_ref()?
        .node_affinity
        .as_ref()?
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let fields = required
        .node_selector_terms
        .first()?
        .match_fields
        .as_ref()?;
    let field = fields.iter().find(|f| f.key == NAME_FIELD)?;
    field.values.as_ref()?.first().map(String::as_str)
}

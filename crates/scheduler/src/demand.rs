//! What a pod asks of a node, parsed once for each placement.

use crate::claims::Claims;
use crate::resources::{self, Resources};
use apimachinery::selector::{LabelSelector, Op, Requirement};
use client::k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, Pod, PodAffinityTerm, Toleration,
    TopologySpreadConstraint, WeightedPodAffinityTerm,
};
use client::labels::{self, Labels};

/// A pod with what it asks for in a form that filters and scores can use.
#[derive(Debug)]
pub struct Demand<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) requests: Resources,
    pub(crate) requests_for_score: Resources,
    pub(crate) host_ports: Vec<HostPort>,
    pub(crate) nodes: NodeDemand,
    pub(crate) rules: Rules,
    pub(crate) spread: Vec<Spread>,
    /// Where its volumes are or can be.
    pub(crate) claims: Claims,
    /// Uid of the controller whose pods are spread when the pod states no constraint.
    pub(crate) owner: Option<&'a str>,
}

/// A port of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    ip: String,
    protocol: String,
    port: i32,
}

impl HostPort {
    /// Whether both can't be had on one machine.
    pub(crate) fn conflicts(&self, other: &Self) -> bool {
        let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || any(&self.ip) || any(&other.ip))
    }
}

/// Which nodes a pod may and likes to run on.
#[derive(Debug, Default)]
pub(crate) struct NodeDemand {
    /// All must hold (`nodeSelector`).
    pub(crate) selector: Labels,
    /// One must hold, if there are any (`required…` node affinity); none when it is absent.
    pub(crate) required: Option<Vec<NodeTerm>>,
    pub(crate) preferred: Vec<(i64, NodeTerm)>,
}

/// Requirements on a node's labels and on its name.
#[derive(Debug)]
pub(crate) struct NodeTerm {
    labels: LabelSelector,
    fields: LabelSelector,
    /// A term without requirements matches no node.
    empty: bool,
}

impl NodeTerm {
    pub(crate) fn of(term: &NodeSelectorTerm) -> Self {
        let parse = |requirements: &Option<Vec<NodeSelectorRequirement>>| LabelSelector {
            requirements: requirements
                .iter()
                .flatten()
                .map(node_requirement)
                .collect(),
        };
        let labels = parse(&term.match_expressions);
        let fields = parse(&term.match_fields);
        Self {
            empty: labels.requirements.is_empty() && fields.requirements.is_empty(),
            labels,
            fields,
        }
    }

    pub(crate) fn matches(&self, name: &str, labels: Option<&Labels>) -> bool {
        !self.empty
            && labels::matches(&self.labels, labels)
            && self
                .fields
                .matches(|field| (field == "metadata.name").then_some(name))
    }
}

impl NodeDemand {
    fn of(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else {
            return Self::default();
        };
        let affinity = spec
            .affinity
            .as_ref()
            .and_then(|a| a.node_affinity.as_ref());
        Self {
            selector: spec.node_selector.clone().unwrap_or_default(),
            required: affinity
                .and_then(|a| {
                    a.required_during_scheduling_ignored_during_execution
                        .as_ref()
                })
                .map(|s| s.node_selector_terms.iter().map(NodeTerm::of).collect()),
            preferred: affinity
                .and_then(|a| {
                    a.preferred_during_scheduling_ignored_during_execution
                        .as_ref()
                })
                .into_iter()
                .flatten()
                .map(|p| (i64::from(p.weight), NodeTerm::of(&p.preference)))
                .collect(),
        }
    }

    /// Whether a node's labels and name satisfy what is required.
    pub(crate) fn accepts(&self, name: &str, labels: Option<&Labels>) -> bool {
        self.selector
            .iter()
            .all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value))
            && self
                .required
                .as_ref()
                .is_none_or(|terms| terms.iter().any(|t| t.matches(name, labels)))
    }
}

/// A pod's rules about other pods.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    pub(crate) affinity: Vec<Term>,
    pub(crate) anti_affinity: Vec<Term>,
    pub(crate) preferred: Vec<(i64, Term)>,
}

/// Other pods, and the label of the nodes that are counted as one place.
#[derive(Debug)]
pub(crate) struct Term {
    selector: Option<LabelSelector>,
    namespaces: Vec<String>,
    namespace_selector: Option<LabelSelector>,
    pub(crate) topology_key: String,
}

impl Rules {
    pub(crate) fn of(pod: &Pod) -> Self {
        let Some(affinity) = pod.spec.as_ref().and_then(|s| s.affinity.as_ref()) else {
            return Self::default();
        };
        let required = |terms: Option<&Vec<PodAffinityTerm>>| {
            terms
                .into_iter()
                .flatten()
                .map(|t| Term::of(pod, t))
                .collect()
        };
        let preferred = |terms: Option<&Vec<WeightedPodAffinityTerm>>, sign: i64| {
            terms
                .into_iter()
                .flatten()
                .map(|t| {
                    (
                        sign * i64::from(t.weight),
                        Term::of(pod, &t.pod_affinity_term),
                    )
                })
                .collect::<Vec<_>>()
        };
        let with = affinity.pod_affinity.as_ref();
        let without = affinity.pod_anti_affinity.as_ref();
        let mut liked = preferred(
            with.and_then(|a| {
                a.preferred_during_scheduling_ignored_during_execution
                    .as_ref()
            }),
            1,
        );
        liked.extend(preferred(
            without.and_then(|a| {
                a.preferred_during_scheduling_ignored_during_execution
                    .as_ref()
            }),
            -1,
        ));
        Self {
            affinity: required(with.and_then(|a| {
                a.required_during_scheduling_ignored_during_execution
                    .as_ref()
            })),
            anti_affinity: required(without.and_then(|a| {
                a.required_during_scheduling_ignored_during_execution
                    .as_ref()
            })),
            preferred: liked,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.affinity.is_empty() && self.anti_affinity.is_empty() && self.preferred.is_empty()
    }
}

impl Term {
    fn of(owner: &Pod, term: &PodAffinityTerm) -> Self {
        let own = owner.metadata.namespace.clone().unwrap_or_default();
        let namespaces = term.namespaces.clone().unwrap_or_default();
        let namespace_selector = term
            .namespace_selector
            .as_ref()
            .and_then(|s| labels::parse(s).ok());
        Self {
            selector: pod_selector(
                owner,
                term.label_selector.as_ref(),
                term.match_label_keys.as_deref(),
                term.mismatch_label_keys.as_deref(),
            ),
            namespaces: if namespaces.is_empty() && namespace_selector.is_none() {
                vec![own]
            } else {
                namespaces
            },
            namespace_selector,
            topology_key: term.topology_key.clone(),
        }
    }

    /// Whether it means this pod; `namespace_labels` are those of the pod's namespace.
    pub(crate) fn matches(&self, pod: &Pod, namespace_labels: Option<&Labels>) -> bool {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let here = self.namespaces.iter().any(|n| n == namespace)
            || self
                .namespace_selector
                .as_ref()
                .is_some_and(|s| labels::matches(s, namespace_labels));
        here && self
            .selector
            .as_ref()
            .is_some_and(|s| labels::matches(s, pod.metadata.labels.as_ref()))
    }
}

/// A topology spread constraint.
#[derive(Debug)]
pub(crate) struct Spread {
    pub(crate) topology_key: String,
    pub(crate) max_skew: i64,
    pub(crate) min_domains: i64,
    /// `DoNotSchedule`, not `ScheduleAnyway`.
    pub(crate) hard: bool,
    pub(crate) honour_affinity: bool,
    pub(crate) honour_taints: bool,
    selector: Option<LabelSelector>,
}

impl Spread {
    fn of(pod: &Pod, constraint: &TopologySpreadConstraint) -> Self {
        Self {
            topology_key: constraint.topology_key.clone(),
            max_skew: i64::from(constraint.max_skew),
            min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
            hard: constraint.when_unsatisfiable != "ScheduleAnyway",
            honour_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honour_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
            selector: pod_selector(
                pod,
                constraint.label_selector.as_ref(),
                constraint.match_label_keys.as_deref(),
                None,
            ),
        }
    }

    /// Whether a pod of the same namespace is counted.
    pub(crate) fn counts(&self, pod: &Pod) -> bool {
        self.selector
            .as_ref()
            .is_some_and(|s| labels::matches(s, pod.metadata.labels.as_ref()))
    }
}

impl<'a> Demand<'a> {
    /// Parses what a pod asks for. What validation would have refused asks for nothing.
    pub fn of(pod: &'a Pod) -> Self {
        Self {
            requests: resources::requests(pod),
            requests_for_score: resources::requests_for_score(pod),
            host_ports: host_ports(pod),
            nodes: NodeDemand::of(pod),
            rules: Rules::of(pod),
            spread: pod
                .spec
                .iter()
                .flat_map(|s| s.topology_spread_constraints.iter().flatten())
                .map(|c| Spread::of(pod, c))
                .collect(),
            claims: Claims::default(),
            owner: owner(pod),
            pod,
        }
    }

    /// With what is known of its claims.
    pub(crate) fn with_claims(mut self, claims: Claims) -> Self {
        self.claims = claims;
        self
    }

    pub(crate) fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    pub(crate) fn tolerations(&self) -> &[Toleration] {
        client::taints::tolerations(self.pod)
    }

    /// The node that the pod itself names.
    pub(crate) fn node_name(&self) -> Option<&str> {
        self.pod
            .spec
            .as_ref()?
            .node_name
            .as_deref()
            .filter(|n| !n.is_empty())
    }
}

/// The uid of a pod's controller.
pub(crate) fn owner(pod: &Pod) -> Option<&str> {
    pod.metadata
        .owner_references
        .iter()
        .flatten()
        .find(|o| o.controller == Some(true))
        .map(|o| o.uid.as_str())
}

pub(crate) fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| {
            Some(HostPort {
                ip: p.host_ip.clone().unwrap_or_default(),
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
                port: p.host_port.filter(|port| *port > 0)?,
            })
        })
        .collect()
}

fn node_requirement(requirement: &NodeSelectorRequirement) -> Requirement {
    let values = requirement.values.clone().unwrap_or_default();
    let number = values.first().and_then(|v| v.parse().ok());
    let op = match (requirement.operator.as_str(), number) {
        ("In", _) => Op::In(values),
        ("NotIn", _) => Op::NotIn(values),
        ("Exists", _) => Op::Exists,
        ("DoesNotExist", _) => Op::DoesNotExist,
        ("Gt", Some(n)) => Op::Gt(n),
        ("Lt", Some(n)) => Op::Lt(n),
        // Nothing is in no values: what can't be read matches no node.
        _ => Op::In(Vec::new()),
    };
    Requirement {
        key: requirement.key.clone(),
        op,
    }
}

/// A selector of pods with the labels that are taken from the pod that states it; none
/// (which matches nothing) when it is absent or unreadable.
fn pod_selector(
    pod: &Pod,
    selector: Option<&client::k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector>,
    same: Option<&[String]>,
    different: Option<&[String]>,
) -> Option<LabelSelector> {
    let mut parsed = labels::parse(selector?).ok()?;
    let own = pod.metadata.labels.as_ref();
    let mut ask = |keys: Option<&[String]>, op: fn(Vec<String>) -> Op| {
        for key in keys.into_iter().flatten() {
            if let Some(value) = own.and_then(|l| l.get(key)) {
                parsed.requirements.push(Requirement {
                    key: key.clone(),
                    op: op(vec![value.clone()]),
                });
            }
        }
    };
    ask(same, Op::In);
    ask(different, Op::NotIn);
    Some(parsed)
}

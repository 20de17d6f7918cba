//! Filters: whether a node can take a pod at all, looking at that node alone.

use crate::demand::{Demand, host_ports};
use crate::snapshot::NodeState;
use api::constants::TAINT_UNSCHEDULABLE;
use client::k8s_openapi::api::core::v1::Taint;
use client::taints::tolerates;

/// Why a node can't take a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    /// As users know them.
    pub(crate) reasons: Vec<String>,
    /// Whether fewer other pods on the node could change it.
    pub(crate) by_pods: bool,
}

impl Rejection {
    /// By what the node is.
    pub(crate) fn by_node(reason: impl Into<String>) -> Self {
        Self {
            reasons: vec![reason.into()],
            by_pods: false,
        }
    }

    /// By what runs on it.
    pub(crate) fn by_pods(reason: impl Into<String>) -> Self {
        Self {
            reasons: vec![reason.into()],
            by_pods: true,
        }
    }
}

/// The first filter, in upstream's order, that rejects a node.
pub(crate) fn check(demand: &Demand<'_>, name: &str, node: &NodeState) -> Result<(), Rejection> {
    unschedulable(demand, node)?;
    if demand.node_name().is_some_and(|wanted| wanted != name) {
        return Err(Rejection::by_node(
            "node(s) didn't match the requested node name",
        ));
    }
    taints(demand, node)?;
    if !demand.nodes.accepts(name, node.labels()) {
        return Err(Rejection::by_node(
            "node(s) didn't match Pod's node affinity/selector",
        ));
    }
    ports(demand, node)?;
    fit(demand, node)?;
    demand.claims.check(name, node)
}

fn unschedulable(demand: &Demand<'_>, node: &NodeState) -> Result<(), Rejection> {
    let cordon = Taint {
        key: TAINT_UNSCHEDULABLE.to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    if node.is_unschedulable() && !demand.tolerations().iter().any(|t| tolerates(t, &cordon)) {
        return Err(Rejection::by_node("node(s) were unschedulable"));
    }
    Ok(())
}

fn taints(demand: &Demand<'_>, node: &NodeState) -> Result<(), Rejection> {
    match untolerated(demand, node) {
        None => Ok(()),
        Some(taint) => Err(Rejection::by_node(format!(
            "node(s) had untolerated taint {{{}: {}}}",
            taint.key,
            taint.value.as_deref().unwrap_or_default()
        ))),
    }
}

/// The first taint that keeps a pod away.
pub(crate) fn untolerated<'a>(demand: &Demand<'_>, node: &'a NodeState) -> Option<&'a Taint> {
    node.taints()
        .iter()
        .filter(|taint| taint.effect == "NoSchedule" || taint.effect == "NoExecute")
        .find(|taint| !demand.tolerations().iter().any(|t| tolerates(t, taint)))
}

fn ports(demand: &Demand<'_>, node: &NodeState) -> Result<(), Rejection> {
    if demand.host_ports.is_empty() {
        return Ok(());
    }
    let taken = node.pods().any(|pod| {
        host_ports(pod).iter().any(|used| {
            demand
                .host_ports
                .iter()
                .any(|wanted| wanted.conflicts(used))
        })
    });
    if taken {
        return Err(Rejection::by_pods(
            "node(s) didn't have free ports for the requested pod ports",
        ));
    }
    Ok(())
}

fn fit(demand: &Demand<'_>, node: &NodeState) -> Result<(), Rejection> {
    let mut reasons = Vec::new();
    let mut by_pods = true;
    if i64::try_from(node.pods().len()).unwrap_or(i64::MAX) >= node.pods_max {
        reasons.push("Too many pods".to_owned());
        by_pods &= node.pods_max > 0;
    }
    let (wanted, has, used) = (&demand.requests, &node.allocatable, &node.used);
    let mut check = |name: &str, wanted: i64, has: i64, used: i64| {
        if wanted > 0 && wanted > has.saturating_sub(used) {
            reasons.push(format!("Insufficient {name}"));
            // No eviction makes a node larger.
            by_pods &= wanted <= has;
        }
    };
    check("cpu", wanted.cpu_milli, has.cpu_milli, used.cpu_milli);
    check("memory", wanted.memory, has.memory, used.memory);
    check(
        "ephemeral-storage",
        wanted.ephemeral_storage,
        has.ephemeral_storage,
        used.ephemeral_storage,
    );
    for (name, wanted) in &wanted.extended {
        let of = |amounts: &std::collections::BTreeMap<String, i64>| {
            amounts.get(name).copied().unwrap_or(0)
        };
        check(name, *wanted, of(&has.extended), of(&used.extended));
    }
    if reasons.is_empty() {
        Ok(())
    } else {
        Err(Rejection { reasons, by_pods })
    }
}

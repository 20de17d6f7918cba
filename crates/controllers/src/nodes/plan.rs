//! What follows from a node's conditions and taints: pure.

use api::constants::{TAINT_NOT_READY, TAINT_UNREACHABLE, TAINT_UNSCHEDULABLE};
use api::partition::Contract;
use client::k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use client::taints::{tolerates, tolerations};
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// Conditions that a silent node can no longer vouch for.
const VOUCHED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Taints that follow from a condition being true.
const BY_CONDITION: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    (
        "NetworkUnavailable",
        "node.kubernetes.io/network-unavailable",
    ),
];

/// A condition of a node.
pub(super) fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status
        .as_ref()?
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == kind)
}

/// The conditions of a node that is not heard from; none when they say so already.
pub(super) fn silent_conditions(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let changed: Vec<NodeCondition> = VOUCHED
        .iter()
        .filter_map(|kind| {
            let known = condition(node, kind);
            if known.is_some_and(|c| c.status == "Unknown") {
                return None;
            }
            let (reason, message) = match known {
                Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
                None => (
                    "NodeStatusNeverUpdated",
                    "Kubelet never posted node status.",
                ),
            };
            Some(NodeCondition {
                type_: (*kind).to_owned(),
                status: "Unknown".to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message.to_owned()),
                last_heartbeat_time: known.map_or_else(
                    || node.metadata.creation_timestamp.clone(),
                    |c| c.last_heartbeat_time.clone(),
                ),
                last_transition_time: Some(Time(now)),
            })
        })
        .collect();
    (!changed.is_empty()).then_some(changed)
}

/// The taints that a node should have, those of others kept; none when it has them.
pub(super) fn taints(node: &Node, now: Timestamp) -> Option<Vec<Taint>> {
    let spec = node.spec.clone().unwrap_or_default();
    let had = spec.taints.unwrap_or_default();
    let status = |kind: &str| condition(node, kind).map(|c| c.status.as_str());
    let ready = status("Ready");
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for effect in ["NoSchedule", "NoExecute"] {
        match ready {
            Some("False") => wanted.push((TAINT_NOT_READY, effect)),
            Some("Unknown") => wanted.push((TAINT_UNREACHABLE, effect)),
            _ => {}
        }
    }
    for (kind, key) in BY_CONDITION {
        if status(kind) == Some("True") {
            wanted.push((key, "NoSchedule"));
        }
    }
    if spec.unschedulable == Some(true) {
        wanted.push((TAINT_UNSCHEDULABLE, "NoSchedule"));
    }
    let is_ours = |taint: &Taint| match taint.key.as_str() {
        // What a node registers with stays until it has said how it is.
        TAINT_NOT_READY | TAINT_UNREACHABLE => {
            ready.is_some() && taint.effect != "PreferNoSchedule"
        }
        TAINT_UNSCHEDULABLE => taint.effect == "NoSchedule",
        key => BY_CONDITION.iter().any(|(_, known)| *known == key) && taint.effect == "NoSchedule",
    };
    let is_wanted = |taint: &Taint| {
        wanted
            .iter()
            .any(|(key, effect)| taint.key == *key && taint.effect == *effect)
    };
    let mut taints: Vec<Taint> = had
        .iter()
        .filter(|t| !is_ours(t) || is_wanted(t))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|t| t.key == key && t.effect == effect) {
            taints.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    (taints != had).then_some(taints)
}

/// The partition contract of a pod.
pub(super) fn contract(pod: &Pod) -> Contract {
    Contract::of(|key| {
        let annotations = pod.metadata.annotations.as_ref()?;
        annotations.get(key).map(String::as_str)
    })
}

/// After which silence of its node a pod has ended there; none when its contract does not
/// say.
pub(super) fn ends_after(pod: &Pod) -> Option<Duration> {
    const GRACE_DEFAULT_SECONDS: i64 = 30;
    let spec = pod.spec.as_ref();
    let grace = spec.and_then(|s| s.termination_grace_period_seconds);
    // A negative one is taken for 1.
    let grace = u64::try_from(grace.unwrap_or(GRACE_DEFAULT_SECONDS)).unwrap_or(1);
    contract(pod).replaced_after(Duration::from_secs(grace))
}

/// How long its node must have been silent before a pod may leave it, and be replaced, for
/// whatever reason: it may run there as long.
pub(super) fn leaves_after(pod: &Pod, taints: &[Taint]) -> Option<Duration> {
    let unreachable = taints.iter().any(|t| t.key == TAINT_UNREACHABLE);
    ends_after(pod).filter(|_| unreachable)
}

/// When a pod must leave a node with these taints; none when it may stay.
pub(super) fn leaves_at(pod: &Pod, taints: &[Taint], now: Timestamp) -> Option<Timestamp> {
    let mut earliest: Option<Timestamp> = None;
    let contract = contract(pod);
    for taint in taints.iter().filter(|t| t.effect == "NoExecute") {
        if taint.key == TAINT_UNREACHABLE {
            match contract {
                Contract::Unstated => {}
                Contract::Keep => continue,
                // As soon as it has ended there: [`leaves_after`].
                Contract::Stop { .. } => {
                    earliest = Some(earliest.map_or(now, |e| e.min(now)));
                    continue;
                }
            }
        }
        let tolerating = tolerations(pod).iter().filter(|t| tolerates(t, taint));
        let mut tolerated = false;
        for toleration in tolerating {
            tolerated = true;
            let Some(seconds) = toleration.toleration_seconds else {
                continue;
            };
            let since = taint.time_added.as_ref().map_or(now, |t| t.0);
            let at = since
                .checked_add(SignedDuration::from_secs(seconds.max(0)))
                .unwrap_or(Timestamp::MAX);
            earliest = Some(earliest.map_or(at, |e| e.min(at)));
        }
        if !tolerated {
            return Some(now);
        }
    }
    earliest
}

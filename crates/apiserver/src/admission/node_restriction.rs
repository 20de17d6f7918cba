//! NodeRestriction: a node writes its own Node and Lease, and the pods that are bound to it,
//! and gets tokens of ServiceAccounts for those pods alone.
//! What a node may *read* is `authz::node`'s.

use super::Operation;
use crate::registry::Call;
use apimachinery::Status;
use serde_json::Value;

const PREFIX: &str = "system:node:";
const MIRROR: &str = "kubernetes.io/config.mirror";
const RESERVED_LABEL: &str = "node-restriction.kubernetes.io";

/// The node that a user is.
pub(crate) fn node_of(user: &crate::authn::User) -> Option<&str> {
    let name = user.name.strip_prefix(PREFIX)?;
    user.in_group("system:nodes").then_some(name)
}

pub(super) fn validate(
    call: &Call<'_>,
    operation: Operation,
    new: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let Some(node) = node_of(call.user) else {
        return Ok(());
    };
    let refuse = |what: String| Err(call.forbidden(format!("node {node:?} {what}")));
    match call.row.known() {
        "nodes" => {
            if call.name != node {
                return refuse(format!("is not allowed to modify node {:?}", call.name));
            }
            let reserved = |v: &Value| -> Vec<String> {
                v["metadata"]["labels"]
                    .as_object()
                    .into_iter()
                    .flatten()
                    .filter(|(k, _)| is_reserved(k))
                    .map(|(k, v)| format!("{k}={v}"))
                    .collect()
            };
            if operation != Operation::Delete
                && reserved(new) != old.map(reserved).unwrap_or_default()
            {
                return refuse("is not allowed to modify labels that are not its own".to_owned());
            }
            let taints = |v: &Value| v["spec"]["taints"].clone();
            if operation == Operation::Update && old.is_some_and(|o| taints(o) != taints(new)) {
                return refuse("is not allowed to modify taints".to_owned());
            }
            let blocks = |v: &Value| ["podCIDR", "podCIDRs"].map(|field| v["spec"][field].clone());
            if operation == Operation::Update && old.is_some_and(|o| blocks(o) != blocks(new)) {
                return refuse("is not allowed to modify its block of pod addresses".to_owned());
            }
            Ok(())
        }
        "leases" if call.namespace == "kube-node-lease" && call.name != node => {
            refuse(format!("can only access lease named {node:?}"))
        }
        "leases" if call.namespace != "kube-node-lease" => {
            refuse("can only access leases in kube-node-lease".to_owned())
        }
        "csinodes" if call.name != node => {
            refuse(format!("is not allowed to modify CSINode {:?}", call.name))
        }
        "pods" => pods(call, operation, new, old, node),
        _ => Ok(()),
    }
}

fn pods(
    call: &Call<'_>,
    operation: Operation,
    new: &Value,
    old: Option<&Value>,
    node: &str,
) -> Result<(), Status> {
    let refuse = |what: String| Err(call.forbidden(format!("node {node:?} {what}")));
    let bound = |v: &Value| v["spec"]["nodeName"] == node;
    match operation {
        Operation::Create => {
            if !is_mirror(new) {
                return refuse(format!(
                    "can only create pods with the annotation {MIRROR:?}"
                ));
            }
            if !bound(new) {
                return refuse(format!(
                    "can only create pods with spec.nodeName set to itself, not {:?}",
                    new["spec"]["nodeName"].as_str().unwrap_or_default()
                ));
            }
            if speaks_or_reads(&new["spec"]) {
                return refuse(
                    "can not create pods that reference a service account, secrets, configmaps or persistentvolumeclaims"
                        .to_owned(),
                );
            }
            Ok(())
        }
        Operation::Update | Operation::Delete => {
            let Some(old) = old.filter(|old| bound(old)) else {
                return refuse("can only change pods with spec.nodeName set to itself".to_owned());
            };
            let theirs = |v: &Value| {
                let meta = &v["metadata"];
                let kept = ["labels", "ownerReferences"].map(|field| meta[field].clone());
                (kept, meta["annotations"][MIRROR].clone())
            };
            if operation == Operation::Update && theirs(old) != theirs(new) {
                // By labels and owners a pod is let in behind Services and counted by controllers.
                return refuse("cannot update labels or owners through pod status".to_owned());
            }
            Ok(())
        }
    }
}

/// Whether a node made the pod of its own accord.
pub(crate) fn is_mirror(pod: &Value) -> bool {
    !pod["metadata"]["annotations"][MIRROR].is_null()
}

/// Whether a pod would give its node what the node has no right to.
fn speaks_or_reads(spec: &Value) -> bool {
    let named = |field: &str| spec[field].as_str().is_some_and(|s| !s.is_empty());
    let in_volumes = spec["volumes"].as_array().into_iter().flatten().any(|v| {
        ["persistentVolumeClaim", "projected"]
            .iter()
            .any(|kind| !v[*kind].is_null())
    });
    named("serviceAccountName")
        || named("serviceAccount")
        || in_volumes
        || crate::authz::names_any(spec)
}

/// A node asks for tokens of ServiceAccounts for its own pods only; that the pod is the
/// account's is checked for everybody.
pub(crate) fn token(call: &Call<'_>, reference: &Value) -> Result<(), Status> {
    let Some(node) = node_of(call.user) else {
        return Ok(());
    };
    let refuse = |what: &str| Err(call.forbidden(format!("node {node:?} {what}")));
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    if text("kind") != "Pod" || text("name").is_empty() {
        return refuse("requested token not bound to a pod");
    }
    if text("uid").is_empty() {
        return refuse("requested token with a pod binding without a uid");
    }
    let pod = call
        .core
        .peek("", "pods", call.namespace, text("name"))
        .ok_or_else(|| Status::not_found("", "pods", text("name")))?
        .value();
    if pod["spec"]["nodeName"] != node {
        return refuse("requested token bound to a pod scheduled on a different node");
    }
    Ok(())
}

/// Kubernetes' own labels that a node may give itself, as upstream has them.
const OWN_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
/// Domains of such labels.
const OWN_DOMAINS: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];

/// A label of Kubernetes that is not for a node to give itself.
fn is_reserved(label: &str) -> bool {
    let Some((domain, _)) = label.split_once('/') else {
        return false;
    };
    let within = |of: &str| domain == of || domain.ends_with(&format!(".{of}"));
    let kubernetes = within("kubernetes.io") || within("k8s.io");
    let own = OWN_LABELS.contains(&label) || OWN_DOMAINS.iter().any(|of| within(of));
    kubernetes && (!own || within(RESERVED_LABEL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_labels_are_not_a_node_s_to_give() {
        for label in [
            "node-restriction.kubernetes.io/fips",
            "x.node-restriction.kubernetes.io/fips",
            "node-role.kubernetes.io/control-plane",
            "storage.k8s.io/fast",
        ] {
            assert!(is_reserved(label), "{label}");
        }
        for label in [
            "kubernetes.io/hostname",
            "topology.kubernetes.io/zone",
            "node.kubernetes.io/instance-type",
            "salp.dev/site",
            "disk",
        ] {
            assert!(!is_reserved(label), "{label}");
        }
    }
}

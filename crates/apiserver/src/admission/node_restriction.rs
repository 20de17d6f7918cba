//! NodeRestriction: a node writes its own Node and Lease, the status of the pods that are bound
//! to it and of their claims, and gets certificates for itself and tokens for those pods alone.
//! Whose objects a node may *reach* is `authz::node`'s.

use super::Operation;
use crate::registry::Call;
use apimachinery::Status;
use base64::Engine as _;
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
    let judged = match call.row.known() {
        "nodes" if call.name != node => {
            Err(format!("is not allowed to modify node {:?}", call.name))
        }
        "nodes" => own_node(operation, new, old),
        "leases" if call.namespace != "kube-node-lease" => {
            Err("can only access leases in kube-node-lease".to_owned())
        }
        "leases" if call.name != node => Err(format!("can only access lease named {node:?}")),
        "csinodes" if call.name != node => {
            Err(format!("is not allowed to modify CSINode {:?}", call.name))
        }
        "pods" => pods(call, operation, new, old, node),
        "persistentvolumeclaims" => claim(call.subresource, operation, new, old),
        "resourceslices"
            if ![Some(new), old]
                .into_iter()
                .flatten()
                .all(|s| is_on(s, node)) =>
        {
            Err("can only write ResourceSlices with spec.nodeName set to itself".to_owned())
        }
        "certificatesigningrequests" if operation == Operation::Create => request(new, node),
        _ => Ok(()),
    };
    judged.map_err(|what| call.forbidden(format!("node {node:?} {what}")))
}

/// Whether an object's spec names a node as its own.
fn is_on(object: &Value, node: &str) -> bool {
    object["spec"]["nodeName"] == node
}

/// What a node says of itself draws no pods to it that were not meant for it.
fn own_node(operation: Operation, new: &Value, old: Option<&Value>) -> Result<(), String> {
    let none = Value::Null;
    let (is, was) = match operation {
        Operation::Create => (new, &none),
        Operation::Update => (new, old.unwrap_or(&none)),
        Operation::Delete => return sheds_nothing(new),
        Operation::Connect => return Ok(()),
    };
    if !is["spec"]["configSource"].is_null()
        && is["spec"]["configSource"] != was["spec"]["configSource"]
    {
        return Err("is not allowed to set a configSource".to_owned());
    }
    let labels = reserved(is);
    if labels != reserved(was) {
        return Err(format!(
            "is not allowed to modify labels that are not its own: {}",
            labels.join(", ")
        ));
    }
    let owners = |v: &Value| v["metadata"]["ownerReferences"].clone();
    if !is_same(&owners(is), &owners(was)) {
        // Garbage collection would delete it, taints and all.
        return Err("is not allowed to modify its owners".to_owned());
    }
    if operation == Operation::Create {
        return Ok(());
    }
    if !is_same(&is["spec"]["taints"], &was["spec"]["taints"]) {
        return Err("is not allowed to modify taints".to_owned());
    }
    if ["podCIDR", "podCIDRs"]
        .iter()
        .any(|f| is["spec"][*f] != was["spec"][*f])
    {
        return Err("is not allowed to modify its block of pod addresses".to_owned());
    }
    Ok(())
}

/// Null and empty lists are alike.
fn is_same(a: &Value, b: &Value) -> bool {
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    list(a) == list(b)
}

/// Labels that a node may not give itself, and their values.
fn reserved(node: &Value) -> Vec<String> {
    let labels = node["metadata"]["labels"].as_object().into_iter().flatten();
    labels
        .filter(|(label, _)| is_reserved(label))
        .map(|(label, value)| format!("{label}={}", value.as_str().unwrap_or_default()))
        .collect()
}

/// A node that leaves deletes its Node, which upstream's never do. One that came again without
/// what others gave it would be another node, so that is what it must not have.
fn sheds_nothing(node: &Value) -> Result<(), String> {
    let taints = node["spec"]["taints"].as_array().into_iter().flatten();
    let mut others: Vec<String> = taints
        .filter_map(|taint| taint["key"].as_str())
        .filter(|key| !CONDITION_TAINTS.contains(key))
        .map(str::to_owned)
        .collect();
    others.extend(reserved(node));
    if others.is_empty() {
        return Ok(());
    }
    Err(format!(
        "is not allowed to delete its Node with taints or labels that others gave it: {}",
        others.join(", ")
    ))
}

/// Taints that controllers give and take by a node's conditions.
const CONDITION_TAINTS: &[&str] = &[
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/unschedulable",
    "node.kubernetes.io/memory-pressure",
    "node.kubernetes.io/disk-pressure",
    "node.kubernetes.io/pid-pressure",
    "node.kubernetes.io/network-unavailable",
];

fn pods(
    call: &Call<'_>,
    operation: Operation,
    new: &Value,
    old: Option<&Value>,
    node: &str,
) -> Result<(), String> {
    if operation == Operation::Create {
        let uid = || {
            let found = call.core.peek("", "nodes", "", node)?.value();
            found["metadata"]["uid"].as_str().map(str::to_owned)
        };
        return mirror(new, node, uid);
    }
    let Some(old) = old.filter(|old| is_on(old, node)) else {
        return Err("can only change pods with spec.nodeName set to itself".to_owned());
    };
    if operation == Operation::Delete {
        return Ok(());
    }
    if call.subresource != "status" {
        return Err("can only change the status of pods".to_owned());
    }
    let theirs = |v: &Value| {
        let meta = &v["metadata"];
        let kept = ["labels", "ownerReferences"].map(|field| meta[field].clone());
        (kept, meta["annotations"][MIRROR].clone())
    };
    if theirs(old) != theirs(new) {
        // By labels and owners a pod is let in behind Services and counted by controllers.
        return Err("cannot update labels or owners through pod status".to_owned());
    }
    let claims = |v: &Value| v["status"]["resourceClaimStatuses"].clone();
    if !is_same(&claims(old), &claims(new)) {
        return Err("cannot update resource claim statuses".to_owned());
    }
    Ok(())
}

/// A pod that a node runs of its own accord, and shows. `uid` is its Node's.
fn mirror(pod: &Value, node: &str, uid: impl Fn() -> Option<String>) -> Result<(), String> {
    if !is_mirror(pod) {
        return Err(format!(
            "can only create pods with the annotation {MIRROR:?}"
        ));
    }
    if !is_on(pod, node) {
        return Err("can only create pods with spec.nodeName set to itself".to_owned());
    }
    let owners = pod["metadata"]["ownerReferences"].as_array();
    let [owner] = owners.map_or(&[][..], Vec::as_slice) else {
        return Err("can only create pods with one owner, itself".to_owned());
    };
    let itself = owner["apiVersion"] == "v1" && owner["kind"] == "Node" && owner["name"] == node;
    if !itself || owner["controller"] != true {
        return Err("can only create pods whose owner and controller is itself".to_owned());
    }
    if owner["blockOwnerDeletion"] == true {
        return Err("can not create pods that block its deletion".to_owned());
    }
    if uid().as_deref() != owner["uid"].as_str() {
        return Err("can not create pods of a Node with another uid".to_owned());
    }
    if speaks_or_reads(&pod["spec"]) {
        return Err(
            "can not create pods that reference a service account, secrets, configmaps or persistentvolumeclaims"
                .to_owned(),
        );
    }
    Ok(())
}

/// A node says how large a volume has become, and no more.
fn claim(
    subresource: &str,
    operation: Operation,
    new: &Value,
    old: Option<&Value>,
) -> Result<(), String> {
    if subresource != "status" || operation != Operation::Update {
        return Err("can only update the status of persistentvolumeclaims".to_owned());
    }
    let rest = |v: &Value| {
        let mut v = v.clone();
        for field in ["resourceVersion", "managedFields"] {
            v["metadata"][field] = Value::Null;
        }
        for field in [
            "capacity",
            "conditions",
            "allocatedResources",
            "allocatedResourceStatuses",
        ] {
            v["status"][field] = Value::Null;
        }
        v
    };
    if old.map(rest) == Some(rest(new)) {
        return Ok(());
    }
    Err("can only update capacity and conditions of persistentvolumeclaims".to_owned())
}

/// A node asks for its own certificates. What else they must be is their signer's to check.
fn request(new: &Value, node: &str) -> Result<(), String> {
    const SIGNERS: &[&str] = &[
        "kubernetes.io/kube-apiserver-client-kubelet",
        "kubernetes.io/kubelet-serving",
    ];
    let signer = new["spec"]["signerName"].as_str().unwrap_or_default();
    if !SIGNERS.contains(&signer) {
        return Ok(());
    }
    let name = common_name(new["spec"]["request"].as_str().unwrap_or_default());
    if name.is_some_and(|name| name.strip_prefix(PREFIX) == Some(node)) {
        return Ok(());
    }
    Err(format!(
        "can only ask for certificates with the common name {PREFIX}{node}"
    ))
}

/// Whom a request in base64 of PEM is for.
fn common_name(request: &str) -> Option<String> {
    use x509_parser::prelude::{FromDer as _, X509CertificationRequest};
    let pem = base64::engine::general_purpose::STANDARD
        .decode(request)
        .ok()?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).ok()?;
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).ok()?;
    let subject = &request.certification_request_info.subject;
    let mut names = subject.iter_common_name();
    match (names.next(), names.next()) {
        (Some(name), None) => name.as_str().ok().map(str::to_owned),
        _ => None,
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
    use serde_json::json;

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

    #[test]
    fn a_node_deletes_its_node_when_it_sheds_nothing() {
        let node = |taint: &str, label: &str| {
            json!({"metadata": {"labels": {label: "x", "disk": "ssd"}},
                "spec": {"taints": [{"key": taint, "effect": "NoSchedule"}]}})
        };
        const CORDONED: &str = "node.kubernetes.io/unschedulable";
        for (node, deletes) in [
            (json!({}), true),
            (node(CORDONED, "topology.kubernetes.io/zone"), true),
            (node("dedicated", "disk"), false),
            (node("node.kubernetes.io/out-of-service", "disk"), false),
            (node(CORDONED, "node-role.kubernetes.io/edge"), false),
        ] {
            let judged = own_node(Operation::Delete, &node, Some(&node));
            assert_eq!(judged.is_ok(), deletes, "{node}: {judged:?}");
        }
    }

    #[test]
    fn a_node_changes_of_itself_what_is_its_own() {
        let old = json!({"metadata": {"labels": {"a": "b"}}, "spec": {
            "podCIDR": "10.0.0.0/24", "taints": [{"key": "t", "effect": "NoExecute"}]}});
        for (patch, ok) in [
            (json!({"metadata": {"labels": {"a": "c"}}}), true),
            (json!({"spec": {"unschedulable": true}}), true),
            (json!({"status": {"phase": "x"}}), true),
            (json!({"spec": {"taints": []}}), false),
            (json!({"spec": {"podCIDR": "10.0.1.0/24"}}), false),
            (json!({"spec": {"configSource": {"configMap": {}}}}), false),
            (json!({"metadata": {"labels": {"x.k8s.io/y": "z"}}}), false),
            (
                json!({"metadata": {"ownerReferences": [{"kind": "ConfigMap"}]}}),
                false,
            ),
        ] {
            let mut new = old.clone();
            apimachinery::patch::merge_patch(&mut new, &patch);
            let judged = own_node(Operation::Update, &new, Some(&old));
            assert_eq!(judged.is_ok(), ok, "{patch}: {judged:?}");
        }
        // At first it says what taints it has, as a kubelet's flags do.
        for (node, ok) in [
            (
                json!({"spec": {"taints": [{"key": "t"}], "podCIDR": "10.0.0.0/24"}}),
                true,
            ),
            (
                json!({"metadata": {"labels": {"node-role.kubernetes.io/x": ""}}}),
                false,
            ),
            (
                json!({"metadata": {"ownerReferences": [{"kind": "Pod"}]}}),
                false,
            ),
            (json!({"spec": {"configSource": {}}}), false),
        ] {
            let judged = own_node(Operation::Create, &node, None);
            assert_eq!(judged.is_ok(), ok, "{node}: {judged:?}");
        }
    }

    #[test]
    fn a_mirror_pod_belongs_to_its_node() {
        let pod = json!({
            "metadata": {"annotations": {MIRROR: "x"}, "ownerReferences": [{
                "apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u", "controller": true}]},
            "spec": {"nodeName": "n1", "containers": [{"name": "c"}]},
        });
        let uid = || Some("u".to_owned());
        assert_eq!(mirror(&pod, "n1", uid), Ok(()));
        assert!(mirror(&pod, "n1", || None).is_err());
        let owner = |patch: Value| {
            let mut owner = pod["metadata"]["ownerReferences"][0].clone();
            apimachinery::patch::merge_patch(&mut owner, &patch);
            json!({"metadata": {"ownerReferences": [owner]}})
        };
        for patch in [
            json!({"metadata": {"annotations": null}}),
            json!({"metadata": {"ownerReferences": null}}),
            json!({"metadata": {"ownerReferences": [1, 2]}}),
            owner(json!({"kind": "Pod"})),
            owner(json!({"apiVersion": "v2"})),
            owner(json!({"name": "n2"})),
            owner(json!({"uid": "other"})),
            owner(json!({"controller": null})),
            owner(json!({"blockOwnerDeletion": true})),
            json!({"spec": {"nodeName": "n2"}}),
            json!({"spec": {"serviceAccountName": "default"}}),
            json!({"spec": {"imagePullSecrets": [{"name": "s"}]}}),
            json!({"spec": {"volumes": [{"persistentVolumeClaim": {"claimName": "c"}}]}}),
        ] {
            let mut pod = pod.clone();
            apimachinery::patch::merge_patch(&mut pod, &patch);
            assert!(mirror(&pod, "n1", uid).is_err(), "{patch}");
        }
    }

    #[test]
    fn a_node_tells_the_size_of_claims() {
        let old = json!({"metadata": {"name": "c", "resourceVersion": "1"},
            "spec": {"volumeName": "v"}, "status": {"phase": "Bound"}});
        for (patch, ok) in [
            (
                json!({"status": {"capacity": {"storage": "1Gi"}, "conditions": []}}),
                true,
            ),
            (
                json!({"metadata": {"resourceVersion": "2", "managedFields": []}}),
                true,
            ),
            (json!({"status": {"phase": "Lost"}}), false),
            (json!({"metadata": {"labels": {"a": "b"}}}), false),
            (json!({"metadata": {"finalizers": ["f"]}}), false),
            (json!({"spec": {"volumeName": "other"}}), false),
        ] {
            let mut new = old.clone();
            apimachinery::patch::merge_patch(&mut new, &patch);
            let judged = claim("status", Operation::Update, &new, Some(&old));
            assert_eq!(judged.is_ok(), ok, "{patch}");
            assert!(claim("", Operation::Update, &new, Some(&old)).is_err());
        }
        assert!(claim("", Operation::Delete, &old, Some(&old)).is_err());
    }
}

//! What a node may reach because a pod of its names it: Secrets, ConfigMaps, volume claims and
//! their volumes, one by one, as upstream's node authorizer has it. What else a node may do is
//! RBAC's, and what it may write is further bounded by admission (NodeRestriction).
//!
//! The agent in the server's own process is believed: it makes pods that the server does not
//! have yet.

use super::Attributes;
use super::named::Named;
use crate::admission::node_restriction::node_of;
use crate::authn::User;
use crate::server_state::Core;
use api::constants;

/// Whether this is a node that asks for what it needs. `own` is the server's own process.
pub(crate) fn allowed(core: &Core, user: &User, asked: &Attributes<'_>, own: bool) -> bool {
    let Some(node) = node_of(user) else {
        return false;
    };
    if !asked.resource_request || !asked.group.is_empty() {
        return false;
    }
    let reads = matches!(asked.verb, "get" | "list" | "watch");
    let kind = match (asked.resource, asked.subresource, asked.verb) {
        ("secrets", "", _) if reads => Named::Secret,
        ("configmaps", "", _) if reads => Named::ConfigMap,
        ("persistentvolumeclaims", "", "get")
        | ("persistentvolumeclaims", "status", "get" | "patch" | "update") => Named::Claim,
        ("persistentvolumes", "", "get") => {
            return own
                || has_volume(core, node, asked.name)
                || is_given_up(core, node, asked.name);
        }
        ("persistentvolumes", "", "delete") => return is_given_up(core, node, asked.name),
        _ => return false,
    };
    own || core.named.by(node, kind, asked.namespace, asked.name)
}

/// Whether a volume is a directory of this node, which no claim has any more and nobody wants
/// kept. Not upstream's: there such volumes are removed by pods that may do anything.
fn is_given_up(core: &Core, node: &str, name: &str) -> bool {
    let Some(volume) = core.peek("", "persistentvolumes", "", name) else {
        return false;
    };
    let volume = volume.value();
    let terms = &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
    let pinned = serde_json::json!([{"matchExpressions": [
        {"key": constants::LABEL_HOSTNAME, "operator": "In", "values": [node]},
    ]}]);
    *terms == pinned
        && volume["metadata"]["annotations"][constants::ANNOTATION_PROVISIONED_BY]
            == constants::LOCAL_PATH_PROVISIONER
        && volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
        && volume["status"]["phase"] == "Released"
}

/// Whether a volume is bound to a claim that the node's pods name.
fn has_volume(core: &Core, node: &str, name: &str) -> bool {
    core.peek("", "persistentvolumes", "", name)
        .is_some_and(|volume| {
            let volume = volume.value();
            let text = |field: &str| {
                let claim = &volume["spec"]["claimRef"];
                claim[field].as_str().unwrap_or_default()
            };
            core.named
                .by(node, Named::Claim, text("namespace"), text("name"))
        })
}

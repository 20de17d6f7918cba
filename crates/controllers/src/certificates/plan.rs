//! Which certificates a node gets without anybody's word.

use super::Asked;
use api::constants::API_SERVER_NAMES;
use client::k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use std::collections::HashSet;
use std::net::IpAddr;

/// Signs clients' certificates of nodes.
pub(super) const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signs the certificates that nodes serve with.
pub(super) const SERVING: &str = "kubernetes.io/kubelet-serving";
/// User names of nodes.
pub(super) const NODE_PREFIX: &str = "system:node:";
const NODES: &str = "system:nodes";

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is approved if who asked may create this subresource.
    Ask(&'static str),
    /// It is not for this controller to say.
    Leave(&'static str),
    /// Not yet.
    Later(&'static str),
}

/// What others answer for.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// All Nodes that are in touch, that of who asked too.
    pub(super) in_touch: HashSet<String>,
    pub(super) names: HashSet<String>,
    pub(super) addresses: HashSet<IpAddr>,
}

/// Whether this controller signs for the request's signer.
pub(super) fn is_ours(request: &CertificateSigningRequest) -> bool {
    matches!(request.spec.signer_name.as_str(), CLIENT | SERVING)
}

pub(super) fn is_approved(request: &CertificateSigningRequest) -> bool {
    has(request, "Approved")
}

pub(super) fn is_denied(request: &CertificateSigningRequest) -> bool {
    has(request, "Denied") || has(request, "Failed")
}

fn has(request: &CertificateSigningRequest, kind: &str) -> bool {
    request
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .any(|c| c.type_ == kind)
}

/// What a certificate of these signers must be, whoever approves it; the node's name.
pub(super) fn shape<'a>(
    request: &CertificateSigningRequest,
    asked: &'a Asked,
) -> Result<&'a str, &'static str> {
    if asked.organizations != [NODES] {
        return Err("the organization is not system:nodes alone");
    }
    let node = asked
        .common_name
        .strip_prefix(NODE_PREFIX)
        .filter(|node| apimachinery::names::dns1123_subdomain(node).is_ok());
    let Some(node) = node else {
        return Err("the common name is not a node's");
    };
    if asked.others {
        return Err("it asks for more than names and addresses");
    }
    let nameless = asked.names.is_empty() && asked.addresses.is_empty();
    match request.spec.signer_name.as_str() {
        CLIENT if !usages(request, "client auth") => Err("the usages are not a client's"),
        CLIENT if !nameless => Err("a client has no names or addresses"),
        SERVING if !usages(request, "server auth") => Err("the usages are not a server's"),
        SERVING if nameless => Err("a node serves under names and addresses"),
        CLIENT | SERVING => Ok(node),
        _ => Err("another signer's"),
    }
}

/// Judges a request by what it asks for, who asked, and what others have.
pub(super) fn judge(request: &CertificateSigningRequest, asked: &Asked, taken: &Taken) -> Verdict {
    let user = request.spec.username.as_deref().unwrap_or_default();
    let node = match shape(request, asked) {
        Ok(node) => node,
        Err(reason) => return Verdict::Leave(reason),
    };
    if API_SERVER_NAMES.contains(&node) {
        return Verdict::Leave("the name is the API server's");
    }
    if request.spec.signer_name == SERVING {
        return serving(request, asked, user, node, taken);
    }
    if user == asked.common_name {
        return Verdict::Ask("selfnodeclient");
    }
    if taken.in_touch.contains(node) {
        // Or a token for new machines would be one for the machines that are there. One that
        // lost its certificate, or let it expire, is silent by that.
        return Verdict::Later("there is a Node of that name, and it is in touch");
    }
    Verdict::Ask("nodeclient")
}

/// Exactly a signature and this; the key may be enciphered with as well.
fn usages(request: &CertificateSigningRequest, kind: &str) -> bool {
    const SIGNATURE: &str = "digital signature";
    let usages: Vec<&str> = request.spec.usages.iter().flatten().map(|u| &**u).collect();
    usages.contains(&kind)
        && usages.contains(&SIGNATURE)
        && usages
            .iter()
            .all(|u| [kind, SIGNATURE, "key encipherment"].contains(u))
}

fn serving(
    request: &CertificateSigningRequest,
    asked: &Asked,
    user: &str,
    node: &str,
    taken: &Taken,
) -> Verdict {
    let in_group = request.spec.groups.iter().flatten().any(|g| g == NODES);
    if user != asked.common_name || !in_group {
        return Verdict::Leave("a node may ask for itself only");
    }
    if asked
        .names
        .iter()
        .any(|n| n != node || taken.names.contains(n))
    {
        return Verdict::Leave("a name is not the node's own");
    }
    let foreign = |a: &IpAddr| {
        let link_local = match a {
            IpAddr::V4(a) => a.is_link_local() || a.is_broadcast(),
            IpAddr::V6(a) => a.is_unicast_link_local(),
        };
        let nobody_s = a.is_loopback() || a.is_unspecified() || a.is_multicast() || link_local;
        nobody_s || taken.addresses.contains(a)
    };
    if asked.addresses.iter().any(foreign) {
        return Verdict::Leave("an address is not the node's own");
    }
    Verdict::Ask("selfnodeserver")
}

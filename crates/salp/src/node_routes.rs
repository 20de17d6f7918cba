//! Keeps a route to the pods of every other node of the site, for as long as its Node is there.

use crate::site::overlap;
use client::Informer;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use pod_network::{Prefix, via};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// Pause before routes that could not be set are tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Follows the Nodes until its scope is cancelled.
pub async fn run(nodes: Informer<Node>, own: String) {
    nodes.synced().await;
    let mut changes = nodes.subscribe();
    let mut set: BTreeMap<Prefix, IpAddr> = BTreeMap::new();
    let mut told = BTreeMap::new();
    loop {
        let wanted = wanted(nodes.list().iter().map(|n| &**n), &own);
        let failed = apply(&mut set, &wanted).await;
        // Once each: a node on no link of this machine stays there.
        for (prefix, (address, error)) in &failed {
            if told.get(prefix) != Some(address) {
                tracing::warn!(%error, %prefix, %address, "no route to a node's pods");
            }
        }
        let again = !failed.is_empty();
        let known = failed.into_iter();
        told = known
            .map(|(prefix, (address, _))| (prefix, address))
            .collect();
        tokio::select! {
            change = changes.next() => if change.is_none() { return },
            () = tokio::time::sleep(RETRY), if again => {}
        }
    }
}

/// Fewest bits of a node's block of pod addresses, those that a site gives; other clusters give
/// smaller blocks.
const BLOCK_BITS_MIN: u8 = 16;

/// Prefix and address of every node but the own one. A node says itself which block is its own,
/// so only what can be one is believed, and of two that overlap the older Node: else one machine
/// could have the others send it what is for somebody else.
fn wanted<'n>(nodes: impl Iterator<Item = &'n Node>, own: &str) -> BTreeMap<Prefix, IpAddr> {
    let mut all: Vec<&Node> = nodes.collect();
    // The own block is nobody else's.
    all.sort_by_key(|n| {
        let meta = &n.metadata;
        (
            meta.name.as_deref() != Some(own),
            &meta.creation_timestamp,
            &meta.name,
        )
    });
    let internal = |n: &Node| -> Option<IpAddr> {
        let addresses = n.status.as_ref()?.addresses.as_ref()?;
        let internal = addresses.iter().find(|a| a.type_ == "InternalIP")?;
        internal.address.parse().ok()
    };
    let machines: Vec<IpAddr> = all.iter().filter_map(|n| internal(n)).collect();
    let mut blocks: Vec<Prefix> = Vec::new();
    let mut routes = BTreeMap::new();
    for node in all {
        let text = node.spec.as_ref().and_then(|s| s.pod_cidr.as_ref());
        let Some(block) = text.and_then(|text| text.parse::<Prefix>().ok()) else {
            continue;
        };
        let private = matches!(block.address(), IpAddr::V4(a) if a.is_private());
        let is_block = private && block.length() >= BLOCK_BITS_MIN;
        let is_taken = blocks.iter().any(|other| overlap(block, *other));
        if !is_block || is_taken || machines.iter().any(|m| block.contains(*m)) {
            continue;
        }
        blocks.push(block);
        let others = node.metadata.name.as_deref() != Some(own);
        // A loopback address leads nowhere else.
        let address = internal(node).filter(|a| others && !a.is_loopback());
        routes.extend(address.map(|address| (block, address)));
    }
    routes
}

/// Brings routes in line; those that could not be set, and why.
async fn apply(
    set: &mut BTreeMap<Prefix, IpAddr>,
    wanted: &BTreeMap<Prefix, IpAddr>,
) -> BTreeMap<Prefix, (IpAddr, via::Error)> {
    let gone: Vec<(Prefix, IpAddr)> = set
        .iter()
        .filter(|(p, _)| !wanted.contains_key(p))
        .map(|(p, a)| (*p, *a))
        .collect();
    for (prefix, address) in gone {
        set.remove(&prefix);
        if let Err(error) = via::remove(prefix, address).await {
            tracing::debug!(%error, "route to a node that is gone");
        }
    }
    let mut failed = BTreeMap::new();
    for (prefix, address) in wanted {
        if set.get(prefix) == Some(address) {
            continue;
        }
        match via::add(*prefix, *address).await {
            Ok(()) => {
                set.insert(*prefix, *address);
            }
            Err(error) => {
                failed.insert(*prefix, (*address, error));
            }
        }
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn other_nodes_have_routes() {
        let node = |name: &str, cidr: &str, address: &str| -> Node {
            serde_json::from_value(json!({
                "metadata": {"name": name}, "spec": {"podCIDR": cidr},
                "status": {"addresses": [{"type": "InternalIP", "address": address}]},
            }))
            .expect("a node")
        };
        let nodes = [
            node("own", "10.42.0.0/16", "192.0.2.1"),
            node("far", "10.44.0.0/16", "192.0.2.2"),
            node("local", "127.42.0.0/16", "127.0.0.1"),
            node("same-as-far", "10.44.0.0/16", "192.0.2.3"),
            node("all", "0.0.0.0/0", "192.0.2.4"),
            node("ours", "10.42.0.0/16", "192.0.2.5"),
            node("public", "198.51.0.0/16", "192.0.2.6"),
            node("part-of-far", "10.44.7.0/24", "192.0.2.7"),
            node("small", "10.244.3.0/24", "192.0.2.8"),
            node("wide", "10.128.0.0/9", "192.0.2.9"),
        ];
        let routes = wanted(nodes.iter(), "own");
        let shown: Vec<String> = routes.iter().map(|(p, a)| format!("{p} {a}")).collect();
        assert_eq!(shown, ["10.44.0.0/16 192.0.2.2", "10.244.3.0/24 192.0.2.8"]);
    }
}

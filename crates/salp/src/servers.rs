//! The API servers of the site that a machine knows: those that the `kubernetes` Service lists, and
//! some that it has listed before. They are kept in a file, so that a machine that starts finds
//! a server though the one that it was told of is gone; kubeconfigs name them all.

use crate::config::{Layout, write_atomic};
use anyhow::{Context as _, Result};
use client::{Informer, Informers, Selected};
use futures::StreamExt as _;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::net::IpAddr;
use std::path::PathBuf;

/// Servers that are kept at most; those that were listed longest ago go first.
const KEPT_MAX: usize = 8;
const SERVICE: &str = "kubernetes.io/service-name=kubernetes";

/// URLs of those that are known; none at a site of one server.
pub fn known(layout: &Layout) -> Vec<String> {
    // A file that can't be read costs no more than the others' addresses.
    let text = std::fs::read(file(layout)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

fn file(layout: &Layout) -> PathBuf {
    layout.pki().join("servers.json")
}

/// Keeps the file, and calls `changed` after each change, until its scope is cancelled.
pub async fn follow(layout: Layout, informers: Informers, changed: impl Fn() -> Result<()>) {
    let slices: Informer<EndpointSlice> = informers.get_selected(Selected::labels(SERVICE));
    slices.synced().await;
    let mut changes = slices.subscribe();
    while changes.next().await.is_some() {
        let before = known(&layout);
        let after = merge(&before, &listed(slices.list().iter().map(|slice| &**slice)));
        if after == before || after.len() < 2 {
            continue;
        }
        if let Err(error) = keep(&layout, &after).and_then(|()| changed()) {
            tracing::warn!("keep the servers' addresses: {error:#}");
        }
    }
}

fn keep(layout: &Layout, servers: &[String]) -> Result<()> {
    let text = serde_json::to_vec(servers).context("write servers")?;
    write_atomic(&file(layout), &text, 0o600)
}

/// URLs of the servers that live, but those that are no other machine's to reach.
fn listed<'s>(slices: impl Iterator<Item = &'s EndpointSlice>) -> Vec<String> {
    let mut urls = Vec::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten();
        for port in ports.filter_map(|port| port.port) {
            let addresses = slice.endpoints.iter().flatten().flat_map(|e| &e.addresses);
            for address in addresses.filter_map(|a| a.parse::<IpAddr>().ok()) {
                if !address.is_loopback() {
                    let port = u16::try_from(port).unwrap_or_default();
                    urls.push(format!(
                        "https://{}",
                        std::net::SocketAddr::new(address, port)
                    ));
                }
            }
        }
    }
    urls.sort();
    urls.dedup();
    urls
}

/// Those that live, then those that did.
fn merge(before: &[String], live: &[String]) -> Vec<String> {
    let gone = before.iter().filter(|url| !live.contains(url));
    live.iter().chain(gone).take(KEPT_MAX).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_lives_comes_first_and_who_lived_is_kept() {
        let slices: Vec<EndpointSlice> = serde_json::from_value(serde_json::json!([
            {"addressType": "IPv4", "metadata": {}, "ports": [{"port": 6443}],
             "endpoints": [{"addresses": ["192.0.2.2"]}, {"addresses": ["127.0.0.1"]}]},
            {"addressType": "IPv4", "metadata": {}, "ports": [{"port": 7443}],
             "endpoints": [{"addresses": ["192.0.2.1"]}]},
        ]))
        .unwrap();
        let live = listed(slices.iter());
        assert_eq!(live, ["https://192.0.2.1:7443", "https://192.0.2.2:6443"]);
        let before = ["https://192.0.2.9:6443", "https://192.0.2.2:6443"].map(str::to_owned);
        assert_eq!(
            merge(&before, &live),
            [
                "https://192.0.2.1:7443",
                "https://192.0.2.2:6443",
                "https://192.0.2.9:6443"
            ]
        );
        let many: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        assert_eq!(merge(&many, &live).len(), KEPT_MAX);
    }
}

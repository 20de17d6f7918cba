//! What a site is, fixed at its first start: its address blocks.
//!
//! As root a site takes 10.42.0.0/16 and 10.43.0.0/16 (as k3s does) by a `local` route; without
//! root it takes blocks of 127.0.0.0/8, which every Linux machine can bind. A second site on the
//! same machine takes the next free pair: a block is in use when its first address can't be
//! claimed (see [`Claim`]).

use crate::config::{Layout, write_atomic};
use anyhow::{Context as _, Result, bail};
use pod_network::Prefix;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};

/// Port on which a running site claims its service block, by UDP.
const CLAIM_PORT: u16 = 10_256;
/// Pairs of blocks that are tried for a new site.
const PAIRS_MAX: u8 = 100;

/// Fixed facts of a site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Site {
    /// First address of the pods' block.
    pub pod_network: Ipv4Addr,
    /// First address of the services' block.
    pub service_network: Ipv4Addr,
    /// Lengths of both blocks: [`PREFIX`], but on a node of a cluster that is not Salp's.
    #[serde(default = "usual_length")]
    pub pod_length: u8,
    #[serde(default = "usual_length")]
    pub service_length: u8,
}

fn usual_length() -> u8 {
    PREFIX
}

/// Ports of the site's own services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Of the `kubernetes` Service; pods are told it by `KUBERNETES_SERVICE_PORT`.
    pub api: u16,
    /// Of the cluster DNS; Wasm guests are resolved for by the data plane, which knows it.
    pub dns: u16,
}

const USUAL: Ports = Ports { api: 443, dns: 53 };
const UNPRIVILEGED: Ports = Ports {
    api: 6443,
    dns: 10_053,
};

/// Prefix length of a site's blocks.
pub const PREFIX: u8 = 16;

impl Site {
    fn new(pods: Prefix, services: Prefix) -> Result<Self> {
        let (IpAddr::V4(pod_network), IpAddr::V4(service_network)) =
            (pods.address(), services.address())
        else {
            bail!("use addresses {pods} for pods and {services} for Services: only IPv4 can be");
        };
        Ok(Self {
            pod_network,
            service_network,
            pod_length: pods.length(),
            service_length: services.length(),
        })
    }

    /// Address of the `kubernetes` Service.
    pub fn api_service(&self) -> Ipv4Addr {
        offset(self.service_network, 1)
    }

    /// Address of the cluster DNS.
    pub fn dns(&self) -> Ipv4Addr {
        offset(self.service_network, 10)
    }

    /// Where connections for other sites are taken: an address that no pod gets, and that all
    /// nodes reach as they do pods.
    pub fn gates(&self) -> Ipv4Addr {
        offset(self.pod_network, 1)
    }

    /// The ports that the site's own services have: the usual ones where this process may
    /// listen there (root, a capability, a lowered `net.ipv4.ip_unprivileged_port_start`).
    pub fn ports(&self) -> Ports {
        match UdpSocket::bind(SocketAddrV4::new(self.dns(), USUAL.dns)) {
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => UNPRIVILEGED,
            // Taken by the data plane that is to be adopted, if not free.
            _ => USUAL,
        }
    }

    /// Both blocks.
    pub fn networks(&self) -> Result<[Prefix; 2]> {
        let prefix =
            |address, length| Prefix::new(IpAddr::V4(address), length).context("read site facts");
        Ok([
            prefix(self.pod_network, self.pod_length)?,
            prefix(self.service_network, self.service_length)?,
        ])
    }

    /// Whether the blocks need a `local` route to be bindable.
    pub fn needs_route(&self) -> bool {
        !self.pod_network.is_loopback()
    }
}

fn offset(network: Ipv4Addr, n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(network) + n)
}

/// Holds a site's blocks while it runs: a bound socket on the first service address.
#[derive(Debug)]
pub struct Claim {
    _socket: UdpSocket,
}

/// The facts of a node that joins a site: the site's block for services, and for pods the one
/// that its Node has, or the first that no Node has. That of a node which is only down is
/// somebody's.
pub async fn settle_as_node(
    layout: &Layout,
    services: Prefix,
    own: Option<Prefix>,
    taken: &[Prefix],
) -> Result<(Site, Claim)> {
    if services.address().is_loopback() {
        bail!(
            "join: the site's services are at {services}, which no other machine reaches: its `salp up` must run as root"
        );
    }
    let Some(pods) = free_block(services, own, taken) else {
        bail!("find a free address block: {} nodes have one", taken.len());
    };
    let site = Site::new(pods, services)?;
    prepare(&site).await?;
    let claim = claim_own(&site)?;
    let bytes = serde_json::to_vec_pretty(&site).context("write site facts")?;
    write_atomic(&layout.site_file(), &bytes, 0o600)?;
    Ok((site, claim))
}

/// The first block that nobody has.
fn free_block(services: Prefix, own: Option<Prefix>, taken: &[Prefix]) -> Option<Prefix> {
    let usual = (0..PAIRS_MAX).map(|pair| Ipv4Addr::new(10, 42 + 2 * pair, 0, 0));
    let usual = usual.filter_map(|network| Prefix::new(IpAddr::V4(network), PREFIX).ok());
    let mut blocks = own.into_iter().chain(usual);
    blocks.find(|block| {
        let mut others = taken.iter().chain([&services]);
        !others.any(|other| overlap(*block, *other))
    })
}

/// Whether two blocks share an address.
pub fn overlap(a: Prefix, b: Prefix) -> bool {
    a.contains(b.address()) || b.contains(a.address())
}

/// Reads the site's facts, or settles them at its first start; claims its blocks.
pub async fn load_or_create(layout: &Layout) -> Result<(Site, Claim)> {
    let path = layout.site_file();
    match std::fs::read(&path) {
        Ok(bytes) => {
            let site: Site = serde_json::from_slice(&bytes)
                .with_context(|| format!("read {}", path.display()))?;
            prepare(&site).await?;
            let claim = claim_own(&site)?;
            Ok((site, claim))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let (site, claim) = settle().await?;
            write_atomic(
                &path,
                &serde_json::to_vec_pretty(&site).context("write site facts")?,
                0o600,
            )?;
            Ok((site, claim))
        }
        Err(e) => Err(e).with_context(|| format!("read {}", path.display())),
    }
}

/// Claims the blocks that a site has settled on before.
fn claim_own(site: &Site) -> Result<Claim> {
    claim(site).with_context(|| {
        format!(
            "claim addresses {}/{}: another site on this machine uses them; stop that one first (salp down --data-dir DIR)",
            site.service_network, site.service_length
        )
    })
}

async fn settle() -> Result<(Site, Claim)> {
    let routed = rustix::process::geteuid().is_root();
    let mut last = None;
    // Container pods can't have loopback addresses: those come last.
    for first in if routed {
        &[10u8, 127][..]
    } else {
        &[127u8][..]
    } {
        for pair in 0..PAIRS_MAX {
            let (pods, services) = (42 + 2 * pair, 43 + 2 * pair);
            let site = Site {
                pod_network: Ipv4Addr::new(*first, pods, 0, 0),
                service_network: Ipv4Addr::new(*first, services, 0, 0),
                pod_length: PREFIX,
                service_length: PREFIX,
            };
            let claimed = match prepare(&site).await {
                Ok(()) => claim(&site)
                    .and_then(|claim| unused(&site).map(|()| claim))
                    .with_context(|| format!("claim {}", site.service_network)),
                Err(error) => Err(error),
            };
            match claimed {
                Ok(claim) => return Ok((site, claim)),
                Err(error) => last = Some(error),
            }
        }
    }
    match last {
        Some(error) => Err(error.context("find free address blocks")),
        None => bail!("find free address blocks: none tried"),
    }
}

async fn prepare(site: &Site) -> Result<()> {
    if site.needs_route() {
        for network in site.networks()? {
            pod_network::anyip::add(network)
                .await
                .with_context(|| format!("make {network} bindable"))?;
        }
    }
    Ok(())
}

/// Takes the site's routes away: nothing of it is left on the machine.
pub async fn clear(layout: &Layout) -> Result<()> {
    let Ok(bytes) = std::fs::read(layout.site_file()) else {
        return Ok(());
    };
    let site: Site = serde_json::from_slice(&bytes).context("read site facts")?;
    if site.needs_route() {
        for network in site.networks()? {
            pod_network::anyip::remove(network)
                .await
                .with_context(|| format!("remove route {network}"))?;
        }
    }
    Ok(())
}

/// Takes away the routes that a site left behind which was killed; whether there were any. By now
/// its blocks may be another's: then they stay.
pub async fn clear_leftovers(layout: &Layout) -> Result<bool> {
    let Ok(bytes) = std::fs::read(layout.site_file()) else {
        return Ok(false);
    };
    let site: Site = serde_json::from_slice(&bytes).context("read site facts")?;
    if !site.needs_route() {
        return Ok(false);
    }
    // Held while they go, so that no site that starts takes them for its own. Without routes
    // there is nothing to hold.
    let Ok(_claim) = claim(&site) else {
        return Ok(false);
    };
    if unused(&site).is_err() {
        return Ok(false);
    }
    clear(layout).await?;
    Ok(true)
}

fn claim(site: &Site) -> std::io::Result<Claim> {
    UdpSocket::bind(SocketAddrV4::new(site.api_service(), CLAIM_PORT))
        .map(|socket| Claim { _socket: socket })
}

/// Whether no data plane serves there: it outlives the process that holds the claim.
fn unused(site: &Site) -> std::io::Result<()> {
    for ports in [USUAL, UNPRIVILEGED] {
        match UdpSocket::bind(SocketAddrV4::new(site.dns(), ports.dns)) {
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => return Err(e),
            // Free, or of a kind of site that this process can't judge.
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_given_once() {
        let services: Prefix = "10.43.0.0/16".parse().expect("a prefix");
        let taken = |blocks: &[&str]| -> Vec<Prefix> {
            blocks
                .iter()
                .map(|b| b.parse().expect("a prefix"))
                .collect()
        };
        let free = |own: Option<&str>, blocks: &[&str]| {
            let own = own.map(|own| own.parse().expect("a prefix"));
            let found = free_block(services, own, &taken(blocks));
            found.map_or_else(String::new, |network| network.to_string())
        };
        let first = ["10.42.0.0/16"];
        assert_eq!(free(None, &first), "10.44.0.0/16");
        // A gap is filled, parts of a block count, and what is a Node's stays its own.
        let gap = ["10.42.0.0/16", "10.46.0.0/16"];
        assert_eq!(free(None, &gap), "10.44.0.0/16");
        let part = ["10.42.7.0/24", "10.44.0.0/14"];
        assert_eq!(free(None, &part), "10.48.0.0/16");
        assert_eq!(free(Some("10.50.0.0/16"), &first), "10.50.0.0/16");
        assert_eq!(free(Some("10.244.3.0/24"), &first), "10.244.3.0/24");
        assert_eq!(free(Some("10.42.0.0/16"), &first), "10.44.0.0/16");
        assert_eq!(free(Some("10.43.7.0/24"), &first), "10.44.0.0/16");
        assert_eq!(free(None, &["10.0.0.0/8"]), "");
    }

    #[test]
    fn facts_of_an_earlier_version_are_read() {
        let text = r#"{"podNetwork": "10.42.0.0", "serviceNetwork": "10.43.0.0"}"#;
        let site: Site = serde_json::from_str(text).expect("facts");
        let blocks = site.networks().expect("blocks").map(|b| b.to_string());
        assert_eq!(blocks, ["10.42.0.0/16", "10.43.0.0/16"]);
    }
}

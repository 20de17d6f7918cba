//! A site of several servers: what they share through their store beside the API's objects.
//!
//! The first server writes who the site is: its authority, the key that signs tokens and the
//! block of its Services' addresses. Any other with an empty data directory takes that over and
//! is a server of the same site; one whose directory is of another site is refused. Whoever
//! may read the store may read this, and could write the API's objects as well: guard the store
//! with TLS and client certificates.

use crate::config::{Layout, Site as SiteConfig};
use crate::join_token::Pinned;
use crate::pki::{self, Secrets};
use crate::site::{self, Claim, Site};
use crate::up;
use anyhow::{Context as _, Result, bail};
use pod_network::Prefix;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use store::{Durability, Error, RangeRequest, Store, Write};

/// Where the site is described. Nothing of the API is below `/salp/`.
const SITE: &str = "/salp/site";
/// Blocks of pod addresses, by the node that has them.
const POD_NETWORKS: &str = "/salp/pod-networks/";
/// Where the API server keeps Nodes.
const NODES: &str = "/registry/core/nodes/";

/// Who a site is.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    /// For people: of the lattice, or of the first server.
    name: String,
    service_network: Ipv4Addr,
    /// Of the first server, which claims it only after it has written this.
    pod_network: Ipv4Addr,
    secrets: Secrets,
}

/// Whether the data directory is one of a site that has run: it needs nobody to start.
pub fn is_settled(layout: &Layout) -> bool {
    layout.site_file().exists() && pki::has_authority(layout)
}

/// Settles who a new data directory is of: the site that the store is of, or a new one.
///
/// # Errors
/// When this machine can't be a server of that site, and those of the store.
pub async fn settle(
    store: &dyn Store,
    config: &SiteConfig,
    layout: &Layout,
) -> Result<(Site, Claim)> {
    loop {
        if let Some(record) = read(store).await? {
            return join(store, &record, config, layout).await;
        }
        let had_authority = pki::has_authority(layout);
        let (site, claim) = site::load_or_create(layout).await?;
        if found(store, config, layout, &site).await? {
            return Ok((site, claim));
        }
        // Another was first: this one joins it.
        forget(layout).await?;
        if !had_authority {
            pki::forget(layout)?;
        }
    }
}

/// Checks that the store is of the site that the data directory is of, and describes the site
/// there when nobody has. Whether a key of the directory was replaced by the site's.
///
/// # Errors
/// When the store is another site's, and those of the store.
pub async fn agree(
    store: &dyn Store,
    config: &SiteConfig,
    layout: &Layout,
    site: &Site,
) -> Result<bool> {
    let record = loop {
        if let Some(record) = read(store).await? {
            break record;
        }
        found(store, config, layout, site).await?;
    };
    let own = pki::secrets(layout)?;
    if own.ca_pem() != record.secrets.ca_pem() {
        bail!(
            "use this store: it has the objects of site {} ({}), and {} is of site {} ({}); give another etcd or --store-prefix, or an empty --data-dir to be one more server of {0}",
            record.name,
            Pinned::read(record.secrets.ca_pem())?.hash,
            layout.root.display(),
            name(config),
            Pinned::read(own.ca_pem())?.hash,
        );
    }
    let (block, node) = (site.pod_network, config.node_name.as_str());
    if !claim_block(store, block, node).await? && !renamed(store, block, node).await? {
        bail!(
            "use pod addresses {}/{}: another node of site {} has them",
            site.pod_network,
            site::PREFIX,
            record.name
        );
    }
    let differs = own != record.secrets;
    if differs {
        pki::adopt(layout, &record.secrets)?;
    }
    Ok(differs)
}

/// Describes the site in the store; not when another was first.
async fn found(
    store: &dyn Store,
    config: &SiteConfig,
    layout: &Layout,
    site: &Site,
) -> Result<bool> {
    let record = Record {
        name: name(config),
        service_network: site.service_network,
        pod_network: site.pod_network,
        secrets: pki::secrets(layout)?,
    };
    let value = serde_json::to_vec(&record).context("describe site")?;
    let value = value.into();
    match store
        .write(SITE, Write::Create { value }, Durability::Sync)
        .await
    {
        Ok(_) => Ok(true),
        Err(Error::Exists(_)) => Ok(false),
        Err(e) => Err(e).context("describe site in the store"),
    }
}

async fn read(store: &dyn Store) -> Result<Option<Record>> {
    let found = store
        .get(SITE, None)
        .await
        .context("read site from the store")?;
    let record = found.map(|record| serde_json::from_slice(&record.value));
    record.transpose().context("read site from the store")
}

/// This machine as one more server.
async fn join(
    store: &dyn Store,
    record: &Record,
    config: &SiteConfig,
    layout: &Layout,
) -> Result<(Site, Claim)> {
    let name = &record.name;
    if up::node_ip(config.bind_address)?.is_loopback() {
        bail!(
            "be a server of site {name}: other machines can't reach {}: give this one's address with --bind-address",
            config.bind_address
        );
    }
    if !pki::has_authority(layout) {
        pki::adopt(layout, &record.secrets)?;
    }
    let node = &config.node_name;
    let Blocks { own, mut taken } = Blocks::read(store, node).await?;
    if own != Some(record.pod_network) {
        taken.extend(prefix(record.pod_network));
    }
    let services = prefix(record.service_network).context("read site from the store")?;
    let own = own.and_then(prefix);
    loop {
        let settled = site::settle_as_node(layout, services, own, &taken).await;
        let (site, claim) = settled.with_context(|| format!("be a server of site {name}"))?;
        if claim_block(store, site.pod_network, node).await? {
            return Ok((site, claim));
        }
        taken.extend(prefix(site.pod_network));
        forget(layout).await?;
    }
}

/// Blocks of pod addresses that somebody has.
#[derive(Default)]
struct Blocks {
    /// What the node of this name had: its directory is gone.
    own: Option<Ipv4Addr>,
    taken: Vec<Prefix>,
}

impl Blocks {
    async fn read(store: &dyn Store, node: &str) -> Result<Self> {
        let all = async |prefix: &str| {
            let request = RangeRequest {
                prefix: prefix.to_owned(),
                ..RangeRequest::default()
            };
            let range = store.range(request).await;
            range.context("read the site's nodes from the store")
        };
        let mut blocks = Self::default();
        for record in all(POD_NETWORKS).await?.records {
            if let Ok(block) = record.key[POD_NETWORKS.len()..].parse() {
                blocks.add(block, record.value == node.as_bytes());
            }
        }
        for record in all(NODES).await?.records {
            if let Some(block) = block_of(&record.value) {
                blocks.add(block, record.key[NODES.len()..] == *node);
            }
        }
        Ok(blocks)
    }

    fn add(&mut self, block: Ipv4Addr, own: bool) {
        if own {
            self.own = Some(block);
        } else {
            self.taken.extend(prefix(block));
        }
    }
}

fn prefix(block: Ipv4Addr) -> Option<Prefix> {
    Prefix::new(block.into(), site::PREFIX).ok()
}

fn block_of(node: &[u8]) -> Option<Ipv4Addr> {
    let node: serde_json::Value = serde_json::from_slice(node).ok()?;
    let block = node["spec"]["podCIDR"].as_str()?;
    block.split('/').next()?.parse().ok()
}

/// Makes a block this node's; not when another node has it.
async fn claim_block(store: &dyn Store, block: Ipv4Addr, node: &str) -> Result<bool> {
    let key = format!("{POD_NETWORKS}{block}");
    let value = node.to_owned().into();
    match store
        .write(&key, Write::Create { value }, Durability::Sync)
        .await
    {
        Ok(_) => return Ok(true),
        Err(Error::Exists(_)) => {}
        Err(e) => return Err(e).context("claim pod addresses"),
    }
    let Some(there) = store.get(&key, None).await.context("claim pod addresses")? else {
        return Ok(false);
    };
    Ok(there.value == node.as_bytes())
}

/// Takes over a block that is this directory's from the node whose name it was claimed by, when
/// that has gone: it had another name then.
async fn renamed(store: &dyn Store, block: Ipv4Addr, node: &str) -> Result<bool> {
    let key = format!("{POD_NETWORKS}{block}");
    let there = store.get(&key, None).await.context("claim pod addresses")?;
    let Some(there) = there else {
        return Ok(false);
    };
    let holder = String::from_utf8_lossy(&there.value).into_owned();
    let of_holder = store.get(&format!("{NODES}{holder}"), None).await;
    let of_holder = of_holder.context("claim pod addresses")?;
    if of_holder.is_some_and(|record| block_of(&record.value) == Some(block)) {
        return Ok(false);
    }
    let update = Write::Update {
        value: node.to_owned().into(),
        expected: there.modified,
    };
    match store.write(&key, update, Durability::Sync).await {
        Ok(_) => Ok(true),
        Err(Error::Conflict(_)) => Ok(false),
        Err(e) => Err(e).context("claim pod addresses"),
    }
}

fn name(config: &SiteConfig) -> String {
    let lattice = config.lattice.as_ref().map(|lattice| lattice.name.clone());
    lattice.unwrap_or_else(|| config.node_name.clone())
}

/// Takes back what was settled.
async fn forget(layout: &Layout) -> Result<()> {
    site::clear(layout).await?;
    let path = layout.site_file();
    std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
}

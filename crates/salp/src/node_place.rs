//! Which addresses a node that joins has: for Services those of the cluster, for its pods the
//! block that its Node names. Salp's own sites leave it to each node to take one that nobody
//! has; other clusters give each Node one, which is then waited for.

use crate::api_access::Access;
use crate::config::{Layout, Site as SiteConfig};
use crate::output;
use crate::site::{self, Claim, Site};
use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{Node, NodeSpec};
use kube::Api;
use kube::api::{ListParams, ObjectMeta, PostParams};
use pod_network::Prefix;
use std::net::IpAddr;
use std::time::Duration;

/// How long a machine that has addresses looks whose they are now.
const LOOK_AROUND: Duration = Duration::from_secs(2);
/// Between looks whether the cluster has given the Node a block, and after how many somebody is
/// told of it.
const LOOK: Duration = Duration::from_millis(200);
const LOOKS_UNTIL_TOLD: u32 = 15;

/// Settles the addresses of a node, or finds those of an earlier start.
pub async fn place(
    layout: &Layout,
    client: &kube::Client,
    config: &SiteConfig,
    by_kubeconfig: bool,
) -> Result<(Site, Claim)> {
    let name = config.node_name.as_str();
    let nodes: Api<Node> = Api::all(client.clone());
    if layout.site_file().exists() {
        let (site, claim) = site::load_or_create(layout).await?;
        // A machine that is cut off starts with what it has, and so does one that may not look.
        if let Ok(Ok(Some(nodes))) = tokio::time::timeout(LOOK_AROUND, all(&nodes)).await {
            let own = site.networks()?[0];
            let all = nodes.iter().filter_map(block_of);
            let (given, others): (Vec<_>, Vec<_>) = all.partition(|(other, _)| *other == name);
            if let Some((_, block)) = given.first().filter(|(_, block)| *block != own) {
                bail!(
                    "join as node {name}: its pods' addresses {own} are not those of its Node, {block}; run `salp node leave` with this --data-dir, then join again"
                );
            }
            let mut others = others.into_iter();
            if let Some((other, block)) = others.find(|(_, block)| site::overlap(own, *block)) {
                bail!(
                    "join as node {name}: its pods' addresses {own} overlap {block} of node {other}; run `salp node leave` with this --data-dir, then join again to get others"
                );
            }
        }
        return Ok((site, claim));
    }
    let access = Access {
        client: client.clone(),
        namespace: "default".to_owned(),
    };
    let services = service_block(&access).await?;
    let known = all(&nodes).await.context("read the site's nodes")?;
    let is_foreign = by_kubeconfig || !is_salp(&access).await?;
    if is_foreign && known.as_deref().is_none_or(gives_blocks) {
        let block = given(&nodes, config).await?;
        return site::settle_as_node(layout, services, Some(block), &[]).await;
    }
    let (own, others): (Vec<_>, Vec<_>) = known
        .iter()
        .flatten()
        .filter_map(block_of)
        .partition(|(other, _)| *other == name);
    let own = own.first().map(|(_, block)| *block);
    let taken: Vec<Prefix> = others.iter().map(|(_, block)| *block).collect();
    site::settle_as_node(layout, services, own, &taken).await
}

/// All Nodes; nothing where this node may not list them, as upstream has it.
async fn all(nodes: &Api<Node>) -> Result<Option<Vec<Node>>, kube::Error> {
    match nodes.list(&ListParams::default()).await {
        Ok(list) => Ok(Some(list.items)),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(None),
        Err(error) => Err(error),
    }
}

/// The addresses of Services: the ServiceCIDR that the `kubernetes` Service is in. A cluster
/// that has none, or tells nodes of none, is taken to have as many as a site.
async fn service_block(access: &Access) -> Result<Prefix> {
    const READ: &str = "read the site's addresses";
    let service = access
        .get("/api/v1/namespaces/default/services/kubernetes")
        .await
        .context(READ)?;
    let address: IpAddr = service["spec"]["clusterIP"]
        .as_str()
        .unwrap_or_default()
        .parse()
        .context(READ)?;
    let listed = access
        .get("/apis/networking.k8s.io/v1/servicecidrs")
        .await
        .inspect_err(|error| tracing::debug!("list ServiceCIDRs: {error:#}"))
        .unwrap_or_default();
    let items = listed["items"].as_array().into_iter().flatten();
    let blocks = items.flat_map(|item| item["spec"]["cidrs"].as_array().into_iter().flatten());
    let mut blocks = blocks.filter_map(|block| block.as_str()?.parse::<Prefix>().ok());
    match blocks.find(|block| block.contains(address)) {
        Some(block) => Ok(block),
        None => Prefix::new(address, site::PREFIX).context(READ),
    }
}

/// Whether the control plane is Salp's.
async fn is_salp(access: &Access) -> Result<bool> {
    let version = access
        .get("/version")
        .await
        .context("read the server's version")?;
    let version = version["gitVersion"].as_str().unwrap_or_default();
    Ok(version.contains("+salp"))
}

/// Whether somebody gives Nodes their blocks: one that is not Salp's has one.
fn gives_blocks(nodes: &[Node]) -> bool {
    nodes.iter().any(|node| {
        let spec = node.spec.as_ref();
        let provider = spec.and_then(|s| s.provider_id.as_deref());
        let is_ours = provider.is_some_and(|id| id.starts_with("salp://"));
        !is_ours && spec.is_some_and(|s| s.pod_cidr.is_some())
    })
}

/// The block that the cluster gives this Node, which is made for it if it is not there.
async fn given(nodes: &Api<Node>, config: &SiteConfig) -> Result<Prefix> {
    let name = config.node_name.as_str();
    let node = Node {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(config.node_labels.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            provider_id: Some(format!("salp://{name}")),
            // A node can't give itself any later.
            taints: Some(config.node_taints.clone()).filter(|t| !t.is_empty()),
            ..NodeSpec::default()
        }),
        status: None,
    };
    match nodes.create(&PostParams::default(), &node).await {
        Err(error) if !client::is_already_exists(&error) => {
            return Err(error).with_context(|| format!("register node {name}"));
        }
        _ => {}
    }
    for looks in 0u32.. {
        let node = nodes.get(name).await.context("read the own Node")?;
        if let Some(block) = node.spec.and_then(|s| s.pod_cidr) {
            return block.parse().context("read the own Node's podCIDR");
        }
        if looks == LOOKS_UNTIL_TOLD {
            output::note(format!(
                "waiting for the cluster to give node {name} addresses for its pods (spec.podCIDR)"
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
    bail!("wait for addresses of node {name}'s pods")
}

/// A Node's name and the block of its pods' addresses.
fn block_of(node: &Node) -> Option<(&str, Prefix)> {
    let block = node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()?;
    Some((node.metadata.name.as_deref()?, block))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_cluster_that_gives_blocks_is_known_by_its_nodes() {
        let node = |spec: serde_json::Value| -> Node {
            serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec}))
                .expect("a node")
        };
        let ours = json!({"podCIDR": "10.42.0.0/16", "providerID": "salp://n"});
        let elsewhere = json!({"providerID": "aws://n"});
        let given = json!({"podCIDR": "10.244.0.0/24"});
        for (specs, gives) in [
            (vec![], false),
            (vec![&ours], false),
            (vec![&ours, &elsewhere], false),
            (vec![&ours, &elsewhere, &given], true),
        ] {
            let nodes: Vec<Node> = specs.into_iter().cloned().map(node).collect();
            assert_eq!(gives_blocks(&nodes), gives, "{nodes:?}");
        }
    }
}

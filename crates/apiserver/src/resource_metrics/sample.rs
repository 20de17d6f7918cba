//! One reading of every node: its kubelet's `/stats/summary`, upstream's or Salp's.

use crate::server_state::Core;
use futures::{StreamExt as _, stream};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Kubelets that are asked at once.
const NODES_AT_ONCE: usize = 32;
/// How long a kubelet may take; one that does not answer leaves a gap.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of an answer; a longer one counts as none.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// What all nodes said.
pub(super) struct Look {
    pub(super) at: Instant,
    pub(super) time: jiff::Timestamp,
    /// By name.
    pub(super) nodes: HashMap<String, NodeUse>,
}

/// What a node said.
pub(super) struct NodeUse {
    pub(super) at: Instant,
    pub(super) own: Use,
    /// Containers by the pod's uid.
    pub(super) pods: HashMap<String, Vec<(String, Use)>>,
}

/// What something has used since it started.
pub(super) struct Use {
    pub(super) cpu_ns: u64,
    pub(super) memory_bytes: u64,
    /// Tells runs of the same container apart.
    pub(super) started: String,
}

/// Asks all kubelets.
pub(super) async fn look(core: &Arc<Core>) -> Look {
    let nodes = core.cache.named("", "nodes");
    let all = nodes.map_or_else(Vec::new, |n| n.all());
    let asked = all.into_iter().map(|node| async move {
        let name = node.name().to_owned();
        let node = node.value();
        let ask = core.kubelets.ask(&node, "/stats/summary", ANSWER_BYTES_MAX);
        match tokio::time::timeout(TIMEOUT, ask).await {
            Ok(Ok(summary)) => Some((name, node_use(&summary)?)),
            Ok(Err(error)) => {
                tracing::debug!(node = name, error, "use of a node not read");
                None
            }
            Err(_) => None,
        }
    });
    let nodes = stream::iter(asked)
        .buffer_unordered(NODES_AT_ONCE)
        .filter_map(|n| async move { n })
        .collect()
        .await;
    Look {
        at: Instant::now(),
        time: core.clock.now(),
        nodes,
    }
}

fn node_use(summary: &Value) -> Option<NodeUse> {
    let pods = summary["pods"].as_array().into_iter().flatten();
    let pods = pods.filter_map(|pod| {
        let uid = pod["podRef"]["uid"].as_str()?.to_owned();
        let containers = pod["containers"].as_array()?;
        let containers = containers
            .iter()
            .filter_map(|c| Some((c["name"].as_str()?.to_owned(), read(c)?)));
        Some((uid, containers.collect()))
    });
    Some(NodeUse {
        at: Instant::now(),
        own: read(&summary["node"])?,
        pods: pods.collect(),
    })
}

fn read(v: &Value) -> Option<Use> {
    Some(Use {
        cpu_ns: v["cpu"]["usageCoreNanoSeconds"].as_u64()?,
        memory_bytes: v["memory"]["workingSetBytes"].as_u64()?,
        started: v["startTime"].as_str().unwrap_or_default().to_owned(),
    })
}

//! Deletes pods that nobody looks after: bound to a node that is gone, deleted before
//! they were bound, or ended long ago when there are too many of those.

use super::{SILENCE_MAX, node_of, plan};
use crate::context::Context;
use crate::error::Error;
use crate::pods;
use crate::writes::for_each;
use client::k8s_openapi::api::core::v1::{Node, Pod};
use client::{Informer, ObjectKey};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(20);
/// Pods that have ended are kept up to this many, the newest.
const ENDED_MAX: usize = 12_500;

struct Leftovers {
    context: Context,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    /// Nodes that have pods but are not there, and since when.
    missing: HashMap<String, Instant>,
}

pub(super) fn start(context: &Context, nodes: &Informer<Node>, pods: &Informer<Pod>) {
    let mut leftovers = Leftovers {
        context: context.clone(),
        nodes: nodes.clone(),
        pods: pods.clone(),
        missing: HashMap::new(),
    };
    context.scope.spawn_cancellable(async move {
        leftovers.nodes.synced().await;
        leftovers.pods.synced().await;
        loop {
            if let Err(error) = leftovers.look().await {
                tracing::warn!(%error, "leftover pods not deleted, trying again");
            }
            tokio::time::sleep(EVERY).await;
        }
    });
}

impl Leftovers {
    async fn look(&mut self) -> Result<(), Error> {
        let pods = self.pods.list();
        let gone = self.gone_nodes(&pods).await?;
        let this = &*self;
        let pick = |wanted: &dyn Fn(&Pod) -> bool| -> Vec<Arc<Pod>> {
            pods.iter().filter(|p| wanted(p)).cloned().collect()
        };
        // It may run on a machine that does not know that its Node is gone.
        let ended = |p: &Pod, since: &Instant| {
            plan::ends_after(p).is_none_or(|after| since.elapsed() >= after)
        };
        let orphaned =
            pick(&|p| node_of(p).is_some_and(|node| gone.get(node).is_some_and(|t| ended(p, t))));
        let unbound = pick(&|p| node_of(p).is_none() && p.metadata.deletion_timestamp.is_some());
        for_each(orphaned, |pod| async move { this.remove(&pod, true).await }).await?;
        for_each(unbound, |pod| async move { this.remove(&pod, false).await }).await?;
        for_each(too_many_ended(&pods, ENDED_MAX), |pod| async move {
            this.remove(&pod, false).await
        })
        .await
    }

    /// Nodes that have been missing for long enough and are so for certain, and since when.
    async fn gone_nodes(&mut self, pods: &[Arc<Pod>]) -> Result<HashMap<String, Instant>, Error> {
        let missing: HashSet<&str> = pods
            .iter()
            .filter_map(|p| node_of(p))
            .filter(|node| self.nodes.get("", node).is_none())
            .collect();
        self.missing
            .retain(|node, _| missing.contains(node.as_str()));
        for node in missing {
            self.missing
                .entry(node.to_owned())
                .or_insert_with(Instant::now);
        }
        let mut gone = HashMap::new();
        let api: Api<Node> = Api::all(self.context.client.clone());
        for (node, since) in &self.missing {
            if since.elapsed() < SILENCE_MAX {
                continue;
            }
            let live = api.get_metadata_opt(node).await;
            let live = live.map_err(|source| Error::Get {
                what: format!("Node {node}"),
                source,
            })?;
            if live.is_none() {
                gone.insert(node.clone(), *since);
            }
        }
        Ok(gone)
    }

    /// Deletes a pod at once; first marks it as failed when it can't have ended well.
    async fn remove(&self, pod: &Pod, lost: bool) -> Result<(), Error> {
        let key = ObjectKey::of(pod);
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        if lost && !pods::has_ended(pod) {
            let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {
                "phase": "Failed",
                "conditions": [{"type": "DisruptionTarget", "status": "True",
                    "reason": "DeletionByPodGC",
                    "message": "PodGC: node no longer exists"}],
            }});
            match api
                .patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch))
                .await
            {
                Ok(_) => {}
                Err(error) if client::is_not_found(&error) => return Ok(()),
                Err(source) => {
                    return Err(Error::Update {
                        what: format!("status of Pod {key}"),
                        source,
                    });
                }
            }
        }
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: pod.metadata.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match api.delete(&key.name, &params).await {
            Ok(_) => Ok(()),
            Err(error) if client::is_not_found(&error) || client::is_conflict(&error) => Ok(()),
            Err(source) => Err(Error::Delete {
                what: format!("Pod {key}"),
                source,
            }),
        }
    }
}

/// The oldest of those that have ended, beyond `max`.
pub(super) fn too_many_ended(pods: &[Arc<Pod>], max: usize) -> Vec<Arc<Pod>> {
    let mut ended: Vec<_> = pods
        .iter()
        .filter(|p| pods::has_ended(p) && p.metadata.deletion_timestamp.is_none())
        .cloned()
        .collect();
    if ended.len() <= max {
        return Vec::new();
    }
    ended.sort_by_key(|p| p.metadata.creation_timestamp.as_ref().map(|t| t.0));
    ended.truncate(ended.len() - max);
    ended
}

//! Nodes: whether they are heard from, the taints that follow from their conditions, the
//! pods that must leave them, and pods that nobody looks after any more.
//!
//! Silence is counted from when this process last saw a sign of life, by its own
//! monotonic clock: a node's wrong clock does not make it dead. Start with [`plan`].

mod contact;
mod eviction;
mod leftovers;
mod plan;
#[cfg(test)]
mod tests;

use crate::context::Context;
use crate::error::Error;
use crate::pods;
use crate::writes::for_each;
use client::k8s_openapi::api::coordination::v1::Lease;
use client::k8s_openapi::api::core::v1::{Node, Pod};
use client::{EventRecorder, Informer, Informers, ObjectKey, Outcome, Selected, WorkQueue};
use kube::api::{Api, Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const NAME: &str = "node-controller";
const WORKERS: usize = 2;
/// Silence after which a node counts as unreachable.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(40);
/// The same for a node that has never said anything.
const SILENCE_AT_START_MAX: Duration = Duration::from_secs(60);
/// Where nodes renew their Leases.
const LEASES: &str = "kube-node-lease";

/// Signs of life as last told: the Lease's renewal, the Ready condition's heartbeat.
type Signs = (Option<jiff::Timestamp>, Option<jiff::Timestamp>);

struct Controller {
    context: Context,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
    recorder: EventRecorder,
    /// By node, the last signs of life and when they were first seen.
    seen: Mutex<HashMap<String, (Signs, Instant)>>,
}

pub(crate) fn start(context: &Context) {
    let nodes = context.informers.get::<Node>();
    let leases = node_leases(&context.informers);
    let pods = context.informers.get::<Pod>();
    let queue = context.queue::<String>();
    {
        let queue = queue.clone();
        context.follow(&nodes, move |old, new| {
            if let Some(name) = new.or(old).and_then(|n| n.metadata.name.clone()) {
                queue.add(name);
            }
        });
    }
    follow_leases(context, &leases, &queue);
    let contacts = contact::Contacts::follow(context, &leases);
    let ready = vec![nodes.ready(), leases.ready(), pods.ready()];
    let controller = Arc::new(Controller {
        context: context.clone(),
        nodes: nodes.clone(),
        leases,
        pods: pods.clone(),
        recorder: context.recorder(NAME),
        seen: Mutex::default(),
    });
    context.work(NAME, queue, WORKERS, ready, move |name| {
        let controller = controller.clone();
        async move { controller.reconcile(&name).await }
    });
    eviction::start(context, &nodes, &pods, contacts);
    leftovers::start(context, &nodes, &pods);
}

/// Only nodes' Leases; others elect leaders.
fn node_leases(informers: &Informers) -> Informer<Lease> {
    informers.get_selected(Selected::fields(format!("metadata.namespace={LEASES}")))
}

/// Each renewal is noted when it is told, not when the silence has become suspicious.
fn follow_leases(context: &Context, leases: &Informer<Lease>, queue: &WorkQueue<String>) {
    let queue = queue.clone();
    context.follow(leases, move |old, new| {
        if let Some(name) = new.or(old).and_then(|l| l.metadata.name.clone()) {
            queue.add(name);
        }
    });
}

impl Controller {
    async fn reconcile(&self, name: &str) -> Result<Outcome, Error> {
        let Some(node) = self.nodes.get("", name) else {
            self.seen.lock().remove(name);
            return Ok(Outcome::Done);
        };
        let silence = self.silence(name, &node);
        let never_ready = plan::condition(&node, "Ready").is_none();
        let limit = if never_ready {
            SILENCE_AT_START_MAX
        } else {
            SILENCE_MAX
        };
        let now = self.context.clock.now();
        if silence >= limit
            && let Some(conditions) = plan::silent_conditions(&node, now)
        {
            self.recorder.normal(
                &*node,
                "NodeNotReady",
                &format!("Node {name} status is now: NodeNotReady"),
            );
            let patch = json!({"metadata": {"uid": node.metadata.uid},
                "status": {"conditions": conditions}});
            // The change comes back and sets the taints.
            return self.patch_status(name, patch).await.map(|()| Outcome::Done);
        }
        if let Some(taints) = plan::taints(&node, now) {
            self.set_taints(name, &node, taints).await?;
        }
        if plan::condition(&node, "Ready").is_some_and(|c| c.status != "True") {
            self.mark_pods(name).await?;
        }
        Ok(if silence >= limit {
            Outcome::Done
        } else {
            Outcome::After(limit - silence)
        })
    }

    /// For how long nothing has been heard of a node.
    fn silence(&self, name: &str, node: &Node) -> Duration {
        let lease = self.leases.get(LEASES, name);
        let renewed = lease.and_then(|l| Some(l.spec.as_ref()?.renew_time.as_ref()?.0));
        let heartbeat = plan::condition(node, "Ready")
            // Written here, it is no sign of life.
            .filter(|c| c.status != "Unknown")
            .and_then(|c| Some(c.last_heartbeat_time.as_ref()?.0));
        let signs = (renewed, heartbeat);
        let mut seen = self.seen.lock();
        let (known, at) = seen
            .entry(name.to_owned())
            .or_insert_with(|| (signs, Instant::now()));
        let news = (signs.0 != known.0) || (signs.1.is_some() && signs.1 != known.1);
        if news {
            *known = (signs.0, signs.1.or(known.1));
            *at = Instant::now();
        }
        at.elapsed()
    }

    async fn set_taints(
        &self,
        name: &str,
        node: &Node,
        taints: Vec<client::k8s_openapi::api::core::v1::Taint>,
    ) -> Result<(), Error> {
        let patch = json!({
            "metadata": {
                "uid": node.metadata.uid,
                "resourceVersion": node.metadata.resource_version,
            },
            "spec": {"taints": taints},
        });
        let api: Api<Node> = Api::all(self.context.client.clone());
        match api
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if client::is_not_found(&error) => Ok(()),
            Err(source) => Err(Error::Update {
                what: format!("Node {name}"),
                source,
            }),
        }
    }

    async fn patch_status(&self, name: &str, patch: serde_json::Value) -> Result<(), Error> {
        let api: Api<Node> = Api::all(self.context.client.clone());
        match api
            .patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if client::is_not_found(&error) => Ok(()),
            Err(source) => Err(Error::Update {
                what: format!("status of Node {name}"),
                source,
            }),
        }
    }

    /// Marks the pods of a node that is not ready as not ready, so that Services leave
    /// them out; the node itself may not be able to.
    async fn mark_pods(&self, node: &str) -> Result<(), Error> {
        let now = self.context.clock.now();
        let ready: Vec<Arc<Pod>> = on_node(&self.pods, node)
            .into_iter()
            .filter(|p| pods::is_ready(p))
            .collect();
        for_each(ready, |pod| async move {
            let key = ObjectKey::of(&*pod);
            let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [{
                "type": "Ready", "status": "False", "lastTransitionTime":
                    client::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now),
            }]}});
            let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
            match api
                .patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch))
                .await
            {
                Ok(_) => {
                    self.recorder
                        .warning(&*pod, "NodeNotReady", "Node is not ready");
                    Ok(())
                }
                Err(error) if client::is_not_found(&error) => Ok(()),
                Err(source) => Err(Error::Update {
                    what: format!("status of Pod {key}"),
                    source,
                }),
            }
        })
        .await
    }
}

/// The pods of a node.
fn on_node(pods: &Informer<Pod>, node: &str) -> Vec<Arc<Pod>> {
    pods.select(|pod| node_of(pod) == Some(node))
}

/// The node that a pod is on.
fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()?
        .node_name
        .as_deref()
        .filter(|n| !n.is_empty())
}

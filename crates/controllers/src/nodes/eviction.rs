//! Deletes pods that do not tolerate a `NoExecute` taint of their node, at once or after
//! the time for which they do.

use super::contact::Contacts;
use super::{node_of, on_node, plan};
use crate::context::Context;
use crate::error::Error;
use client::k8s_openapi::api::core::v1::{Node, Pod, Taint};
use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use client::{EventRecorder, Informer, ObjectKey, Outcome};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "taint-eviction-controller";
const WORKERS: usize = 2;

struct Eviction {
    context: Context,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    contacts: Arc<Contacts>,
    recorder: EventRecorder,
}

/// Between tries to end the epoch of a node that was just heard.
const FENCE_RETRY: Duration = Duration::from_secs(1);

pub(super) fn start(
    context: &Context,
    nodes: &Informer<Node>,
    pods: &Informer<Pod>,
    contacts: Arc<Contacts>,
) {
    let queue = context.queue::<ObjectKey>();
    {
        let (queue, pods) = (queue.clone(), pods.clone());
        context.follow(nodes, move |old, new| {
            let Some(node) = new else { return };
            let same = old.is_some_and(|old| evicting(old).eq(evicting(node)));
            if same || evicting(node).next().is_none() {
                return;
            }
            let name = node.metadata.name.as_deref().unwrap_or_default();
            for pod in on_node(&pods, name) {
                queue.add(ObjectKey::of(&*pod));
            }
        });
    }
    {
        let (queue, nodes) = (queue.clone(), nodes.clone());
        context.follow(pods, move |_, new| {
            let node = new.and_then(|p| nodes.get("", node_of(p)?));
            if let (Some(pod), Some(node)) = (new, node)
                && evicting(&node).next().is_some()
            {
                queue.add(ObjectKey::of(&**pod));
            }
        });
    }
    let eviction = Arc::new(Eviction {
        context: context.clone(),
        nodes: nodes.clone(),
        pods: pods.clone(),
        contacts,
        recorder: context.recorder(NAME),
    });
    let ready = vec![nodes.ready(), pods.ready()];
    context.work(NAME, queue, WORKERS, ready, move |key| {
        let eviction = eviction.clone();
        async move { eviction.reconcile(&key).await }
    });
}

fn evicting(node: &Node) -> impl Iterator<Item = &Taint> {
    node.spec
        .iter()
        .flat_map(|s| s.taints.iter().flatten())
        .filter(|t| t.effect == "NoExecute")
}

impl Eviction {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Error> {
        let Some(pod) = self.pods.get_key(key) else {
            return Ok(Outcome::Done);
        };
        let node = node_of(&pod).and_then(|node| self.nodes.get("", node));
        let Some(node) = node.filter(|_| pod.metadata.deletion_timestamp.is_none()) else {
            return Ok(Outcome::Done);
        };
        let taints: Vec<Taint> = evicting(&node).cloned().collect();
        let now = self.context.clock.now();
        let Some(at) = plan::leaves_at(&pod, &taints, now) else {
            return Ok(Outcome::Done);
        };
        let mut left = Duration::try_from(at.duration_since(now)).unwrap_or_default();
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let silence = plan::leaves_after(&pod, &taints);
        if let Some(silence) = silence {
            left = left.max(silence.saturating_sub(self.contacts.silence(name)));
        }
        if !left.is_zero() {
            return Ok(Outcome::After(left));
        }
        if silence.is_some() && !self.contacts.fence(&self.context, name).await? {
            return Ok(Outcome::After(FENCE_RETRY));
        }
        self.evict(key, &pod, now).await?;
        Ok(Outcome::Done)
    }

    async fn evict(&self, key: &ObjectKey, pod: &Pod, now: jiff::Timestamp) -> Result<(), Error> {
        self.recorder.normal(
            pod,
            "TaintManagerEviction",
            &format!("Marking for deletion Pod {key}"),
        );
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
            "lastTransitionTime": Time(now),
        }]}});
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
        let params = DeleteParams {
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

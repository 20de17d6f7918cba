//! DaemonSets: keeps one pod of a template on each node that it fits.
//!
//! Start with [`plan::plan`]; which nodes fit is in `nodes`.

mod nodes;
mod plan;
#[cfg(test)]
mod tests;

use crate::context::{Context, named};
use crate::error::{Error, is_terminating};
use crate::history::{self, REVISION_HASH};
use crate::pods;
use crate::replicaset::message;
use crate::writes::{UNSEEN_RETRY, Unseen, for_each, slow_start};
use client::k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use client::k8s_openapi::api::core::v1::{Node, Pod};
use client::{EventRecorder, Informer, ObjectKey, Outcome, WorkQueue, labels};
use plan::Plan;
use std::collections::HashSet;
use std::sync::Arc;

const NAME: &str = "daemonset-controller";
const WORKERS: usize = 2;

struct Controller {
    context: Context,
    sets: Informer<DaemonSet>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    revisions: Informer<ControllerRevision>,
    unseen: Unseen,
    recorder: EventRecorder,
}

pub(crate) fn start(context: &Context) {
    let sets = context.informers.get::<DaemonSet>();
    let pods = context.informers.get::<Pod>();
    let nodes = context.informers.get::<Node>();
    let revisions = context.informers.get::<ControllerRevision>();
    let queue = context.queue();
    context.enqueue(&sets, &queue);
    context.enqueue_owners::<DaemonSet, Pod>(&pods, &queue);
    enqueue_at_nodes(context, &sets, &nodes, &queue);
    let ready = vec![sets.ready(), pods.ready(), nodes.ready(), revisions.ready()];
    let controller = Arc::new(Controller {
        context: context.clone(),
        sets,
        pods,
        nodes,
        revisions,
        unseen: Unseen::default(),
        recorder: context.recorder(NAME),
    });
    context.work(NAME, queue, WORKERS, ready, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

/// All sets, when a node comes, goes or is labelled or tainted otherwise; not at heartbeats.
fn enqueue_at_nodes(
    context: &Context,
    sets: &Informer<DaemonSet>,
    nodes: &Informer<Node>,
    queue: &WorkQueue<ObjectKey>,
) {
    let (sets, queue) = (sets.clone(), queue.clone());
    context.follow(nodes, move |old, new| {
        let taints = |node: &Node| node.spec.as_ref().and_then(|s| s.taints.clone());
        let same = match (old, new) {
            (Some(old), Some(new)) => {
                old.metadata.labels == new.metadata.labels && taints(old) == taints(new)
            }
            _ => false,
        };
        if !same {
            sets.keys().into_iter().for_each(|key| queue.add(key));
        }
    });
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Outcome, Error> {
        let seen = self.pods.revision();
        let Some(set) = self.sets.get_key(&key) else {
            self.unseen.forget(&key);
            return Ok(Outcome::Done);
        };
        if !self.unseen.is_seen(&key, seen) {
            return Ok(Outcome::After(UNSEEN_RETRY));
        }
        let selector = labels::parse(&set.spec.selector).map_err(|source| Error::Selector {
            what: named::<DaemonSet>(&key),
            source,
        })?;
        let client = &self.context.client;
        let mine = pods::claim(client, &*set, &selector, &self.pods).await?;
        let uids = mine.iter().filter_map(|p| p.metadata.uid.as_deref());
        let deleted = self.unseen.deleted_of(&key, uids);
        let known = pods::claim(client, &*set, &selector, &self.revisions).await?;
        let known = history::sorted(known);
        let mut collisions = set.status.as_ref().and_then(|s| s.collision_count);
        let going = set.metadata.deletion_timestamp.is_some();
        let update = match known.last().filter(|_| going) {
            Some(last) => last.clone(),
            None if going => return Ok(Outcome::Done),
            None => {
                let template = &set.spec.template;
                history::sync(
                    client,
                    &*set,
                    template,
                    REVISION_HASH,
                    &known,
                    &mut collisions,
                )
                .await?
            }
        };
        let labels = update.metadata.labels.as_ref();
        let hash = labels
            .and_then(|l| l.get(REVISION_HASH))
            .cloned()
            .unwrap_or_default();
        let now = self.context.clock.now();
        let mut plan = plan::plan(&set, &mine, &deleted, &self.nodes.list(), &hash, now);
        plan.status.collision_count = collisions;
        let done = self.carry_out(&key, &set, &hash, &plan).await;
        self.write_status(&key, &set, plan.status).await?;
        done?;
        self.tidy(&set, &known, &update, &mine).await?;
        Ok(Outcome::after(plan.look_again_in))
    }

    async fn carry_out(
        &self,
        key: &ObjectKey,
        set: &DaemonSet,
        hash: &str,
        plan: &Plan,
    ) -> Result<(), Error> {
        for pod in &plan.failed {
            let name = ObjectKey::of(&**pod);
            let node = nodes::target(pod).unwrap_or_default();
            let text =
                format!("Found failed daemon pod {name} on node {node}, will try to kill it");
            self.recorder.warning(set, "FailedDaemonPod", &text);
        }
        for_each(plan.delete.clone(), |pod| async move {
            let name = pod.metadata.name.clone().unwrap_or_default();
            if pods::delete(&self.context, &self.unseen, key, &pod).await? {
                let text = format!("Deleted pod: {name}");
                self.recorder.normal(set, "SuccessfulDelete", &text);
            }
            Ok(())
        })
        .await?;
        let pattern = plan::pod(set, hash);
        let (_, failure) = slow_start(plan.create.len(), |n| {
            let mut pod = pattern.clone();
            nodes::pin(&mut pod, &plan.create[n]);
            async move {
                let made = pods::create(&self.context, &self.unseen, key, &pod).await?;
                let name = made.metadata.name.unwrap_or_default();
                self.recorder
                    .normal(set, "SuccessfulCreate", &format!("Created pod: {name}"));
                Ok::<_, kube::Error>(())
            }
        })
        .await;
        // A namespace that goes takes this set with it: nothing to tell.
        let Some(source) = failure.filter(|e| !is_terminating(e)) else {
            return Ok(());
        };
        let text = format!("Error creating: {}", message(&source));
        self.recorder.warning(set, "FailedCreate", &text);
        Err(Error::Create {
            what: format!("Pod of {}", named::<DaemonSet>(key)),
            source,
        })
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        set: &DaemonSet,
        status: DaemonSetStatus,
    ) -> Result<(), Error> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut set = set.clone();
        set.status = Some(status);
        self.context.write_status(key, &set).await
    }

    /// Deletes revisions that nothing uses, beyond those that are to be kept.
    async fn tidy(
        &self,
        set: &DaemonSet,
        known: &[Arc<ControllerRevision>],
        update: &ControllerRevision,
        mine: &[Arc<Pod>],
    ) -> Result<(), Error> {
        let hashes: HashSet<&str> = mine
            .iter()
            .filter_map(|p| p.metadata.labels.as_ref()?.get(REVISION_HASH))
            .map(String::as_str)
            .collect();
        let used = known.iter().filter(|r| {
            let hash = r
                .metadata
                .labels
                .as_ref()
                .and_then(|l| l.get(REVISION_HASH));
            hash.is_some_and(|h| hashes.contains(h.as_str()))
        });
        let used = used.filter_map(|r| r.metadata.name.as_deref());
        let used: HashSet<&str> = used.chain(update.metadata.name.as_deref()).collect();
        for revision in history::surplus(known, &used, set.spec.revision_history_limit) {
            history::delete(&self.context.client, &revision).await?;
        }
        Ok(())
    }
}

//! ReplicaSets: keeps as many pods of a template as asked for. And ReplicationControllers,
//! which do the same.
//!
//! Start with [`plan::plan`].

mod controllers;
mod plan;

use crate::context::{Context, named};
use crate::error::{Error, is_terminating};
use crate::pods;
use crate::writes::{Lulls, UNSEEN_RETRY, Unseen, for_each, slow_start};
use api::constants::{ANNOTATION_WOKEN_ON, ANNOTATION_WOKEN_POD};
use client::k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use client::k8s_openapi::api::core::v1::Pod;
use client::{EventRecorder, Informer, ObjectKey, Outcome, labels};
use plan::Plan;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "replicaset-controller";
const WORKERS: usize = 4;

struct Controller {
    context: Context,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    unseen: Unseen,
    lulls: Lulls,
    recorder: EventRecorder,
}

pub(crate) fn start(context: &Context) {
    controllers::start(context);
    let sets = context.informers.get::<ReplicaSet>();
    let pods = context.informers.get::<Pod>();
    let queue = context.queue();
    context.enqueue(&sets, &queue);
    context.enqueue_owners::<ReplicaSet, Pod>(&pods, &queue);
    enqueue_adopters(context, &sets, &pods, &queue);
    let ready = vec![sets.ready(), pods.ready()];
    let controller = Arc::new(Controller {
        context: context.clone(),
        sets,
        pods,
        unseen: Unseen::default(),
        lulls: Lulls::default(),
        recorder: context.recorder(NAME),
    });
    context.work(NAME, queue, WORKERS, ready, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

/// Sets that may adopt a pod that has no controller.
fn enqueue_adopters(
    context: &Context,
    sets: &Informer<ReplicaSet>,
    pods: &Informer<Pod>,
    queue: &client::WorkQueue<ObjectKey>,
) {
    let (sets, queue) = (sets.clone(), queue.clone());
    context.follow(pods, move |_, new| {
        let Some(pod) = new.filter(|p| crate::context::controller_uid(&***p).is_none()) else {
            return;
        };
        if pod.metadata.labels.as_ref().is_none_or(|l| l.is_empty()) {
            return;
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        for set in sets.list_namespace(namespace) {
            let selector = labels::parse(&set.spec.selector).ok();
            if selector.is_some_and(|s| labels::matches(&s, pod.metadata.labels.as_ref())) {
                queue.add(ObjectKey::of(&*set));
            }
        }
    });
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Outcome, Error> {
        // Read before the pods, so that these are at least as new.
        let revision = self.pods.revision();
        let Some(set) = self.sets.get_key(&key) else {
            self.unseen.forget(&key);
            self.lulls.end(&key);
            return Ok(Outcome::Done);
        };
        if !self.unseen.is_seen(&key, revision) {
            return Ok(Outcome::After(UNSEEN_RETRY));
        }
        let selector = labels::parse(&set.spec.selector).map_err(|source| Error::Selector {
            what: named::<ReplicaSet>(&key),
            source,
        })?;
        let mine = pods::claim(&self.context.client, &*set, &selector, &self.pods).await?;
        let uids = mine.iter().filter_map(|p| p.metadata.uid.as_deref());
        let deleted = self.unseen.deleted_of(&key, uids);
        let plan = {
            // Counted only when some pods must go.
            let crowding = OnceCell::new();
            let node_crowding = |pod: &Pod| {
                let nodes = crowding.get_or_init(|| self.crowding(&set));
                let node = pod.spec.as_ref().and_then(|s| s.node_name.as_ref());
                node.and_then(|n| nodes.get(n)).copied().unwrap_or(0)
            };
            let now = self.context.clock.now();
            plan::plan(&set, &mine, &deleted, node_crowding, now)
        };
        let failure = self.act(&key, &set, &plan).await;
        let after = plan.available_in;
        let wait = self
            .write_status(&key, &set, plan, failure.as_ref())
            .await?;
        match failure {
            Some(error) => Err(error),
            None => Ok(Outcome::after(after.into_iter().chain(wait).min())),
        }
    }

    /// How many active pods of the same owner (a Deployment's sets taken together) are on
    /// each node.
    fn crowding(&self, set: &ReplicaSet) -> HashMap<String, usize> {
        let family: Vec<String> = match crate::context::controller_uid(set) {
            Some(owner) => self
                .sets
                .owned_by(owner)
                .iter()
                .filter_map(|s| s.metadata.uid.clone())
                .collect(),
            None => set.metadata.uid.iter().cloned().collect(),
        };
        let mut nodes = HashMap::new();
        for pod in family.iter().flat_map(|uid| self.pods.owned_by(uid)) {
            let node = pod.spec.as_ref().and_then(|s| s.node_name.clone());
            if let Some(node) = node.filter(|_| pods::is_active(&pod)) {
                *nodes.entry(node).or_insert(0) += 1;
            }
        }
        nodes
    }

    /// Creates or deletes pods; the first failure.
    async fn act(&self, key: &ObjectKey, set: &Arc<ReplicaSet>, plan: &Plan) -> Option<Error> {
        if plan.create > 0 {
            return self.create(key, set, plan.create).await;
        }
        for_each(plan.delete.clone(), |pod| async move {
            let name = pod.metadata.name.clone().unwrap_or_default();
            match pods::delete(&self.context, &self.unseen, key, &pod).await {
                Ok(true) => self.recorder.normal(
                    &**set,
                    "SuccessfulDelete",
                    &format!("Deleted pod: {name}"),
                ),
                Ok(false) => {}
                Err(error) => {
                    let text = format!("Error deleting: {}", cause(&error));
                    self.recorder.warning(&**set, "FailedDelete", &text);
                    return Err(error);
                }
            }
            Ok(())
        })
        .await
        .err()
    }

    async fn create(&self, key: &ObjectKey, set: &ReplicaSet, count: usize) -> Option<Error> {
        let template = set.spec.template.as_ref()?;
        let pod = pods::from_template(set, template);
        let woken = self.woken(set, &pod);
        let (_, failure) = slow_start(count, |index| {
            let pod = woken.as_ref().filter(|_| index == 0).unwrap_or(&pod);
            async move {
                let made = pods::create(&self.context, &self.unseen, key, pod).await?;
                let name = made.metadata.name.unwrap_or_default();
                self.recorder
                    .normal(set, "SuccessfulCreate", &format!("Created pod: {name}"));
                Ok::<_, kube::Error>(())
            }
        })
        .await;
        // A namespace that goes takes this set with it: nothing to tell.
        let source = failure.filter(|e| !is_terminating(e))?;
        let text = format!("Error creating: {}", message(&source));
        self.recorder.warning(set, "FailedCreate", &text);
        Some(Error::Create {
            what: format!("Pod of {}", named::<ReplicaSet>(key)),
            source,
        })
    }

    /// The pod that runs already and only lacks its object: a node has woken it.
    fn woken(&self, set: &ReplicaSet, pod: &Pod) -> Option<Pod> {
        let place = set
            .metadata
            .annotations
            .as_ref()?
            .get(ANNOTATION_WOKEN_POD)?;
        let (node, name) = place.split_once('/')?;
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        // It was created, and its node has not yet said that it knows.
        if self.pods.get(namespace, name).is_some() {
            return None;
        }
        let mut pod = pod.clone();
        pod.metadata.generate_name = None;
        pod.metadata.name = Some(name.to_owned());
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.insert(ANNOTATION_WOKEN_ON.to_owned(), node.to_owned());
        pod.spec.get_or_insert_default().node_name = Some(node.to_owned());
        Some(pod)
    }

    /// Writes the status, or says how long to wait with it, because it changes again soon.
    async fn write_status(
        &self,
        key: &ObjectKey,
        set: &ReplicaSet,
        plan: Plan,
        failure: Option<&Error>,
    ) -> Result<Option<Duration>, Error> {
        let now = self.context.clock.now();
        let known = set.status.as_ref();
        let status = ReplicaSetStatus {
            conditions: plan::conditions(known, failure, plan.create > 0, now),
            ..plan.status
        };
        let changed = known != Some(&status);
        if changed && failure.is_none() && !plan::is_at_rest(set, &status) {
            let wait = self.lulls.wait(key);
            if wait.is_some() {
                return Ok(wait);
            }
        }
        self.lulls.end(key);
        if changed {
            self.context.patch_status(key, set, known, &status).await?;
        }
        Ok(None)
    }
}

/// What the API server said, without the wrapping.
pub(crate) fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

fn cause(error: &Error) -> String {
    match error {
        Error::Create { source, .. } | Error::Delete { source, .. } => message(source),
        other => other.to_string(),
    }
}

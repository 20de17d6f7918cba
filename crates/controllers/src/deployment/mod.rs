//! Deployments: moves pods from one template to the next through ReplicaSets.
//!
//! Start with [`plan::plan`]; the arithmetic of rolling is in `amounts`, revisions and
//! hashes in `revision`, conditions in `status`.

mod amounts;
mod plan;
mod revision;
mod status;
#[cfg(test)]
mod tests;

use crate::context::{Context, controller_key, named};
use crate::error::Error;
use crate::pods;
use crate::writes::{Lulls, UNSEEN_RETRY, Unseen};
use client::k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use client::k8s_openapi::api::core::v1::Pod;
use client::{EventRecorder, Informer, ObjectKey, Outcome, labels};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use plan::{Action, Plan};
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "deployment-controller";
const WORKERS: usize = 4;

struct Controller {
    context: Context,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    unseen: Unseen,
    lulls: Lulls,
    recorder: EventRecorder,
}

pub(crate) fn start(context: &Context) {
    let deployments = context.informers.get::<Deployment>();
    let sets = context.informers.get::<ReplicaSet>();
    let pods = context.informers.get::<Pod>();
    let queue = context.queue();
    context.enqueue(&deployments, &queue);
    context.enqueue_owners::<Deployment, ReplicaSet>(&sets, &queue);
    {
        // Recreate goes on when the last old pod is gone.
        let (queue, sets) = (queue.clone(), sets.clone());
        context.follow(&pods, move |old, new| {
            let (Some(old), None) = (old, new) else {
                return;
            };
            let set = controller_key::<ReplicaSet>(&**old).and_then(|key| sets.get_key(&key));
            if let Some(key) = set.and_then(|set| controller_key::<Deployment>(&*set)) {
                queue.add(key);
            }
        });
    }
    let ready = vec![deployments.ready(), sets.ready(), pods.ready()];
    let controller = Arc::new(Controller {
        context: context.clone(),
        deployments,
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

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Outcome, Error> {
        let revision = self.sets.revision();
        let Some(deployment) = self.deployments.get_key(&key) else {
            self.unseen.forget(&key);
            self.lulls.end(&key);
            return Ok(Outcome::Done);
        };
        if !self.unseen.is_seen(&key, revision) {
            return Ok(Outcome::After(UNSEEN_RETRY));
        }
        let selector =
            labels::parse(&deployment.spec.selector).map_err(|source| Error::Selector {
                what: named::<Deployment>(&key),
                source,
            })?;
        if selector.is_empty() {
            self.recorder.warning(
                &*deployment,
                "SelectingAll",
                "This deployment is selecting all pods. A non-empty selector is required.",
            );
            return Ok(Outcome::Done);
        }
        let sets = pods::claim(&self.context.client, &*deployment, &selector, &self.sets).await?;
        let runs = |set: &ReplicaSet| {
            let uid = set.metadata.uid.as_deref().unwrap_or_default();
            self.pods
                .owned_by(uid)
                .iter()
                .any(|pod| !pods::has_ended(pod))
        };
        let plan = plan::plan(&deployment, &sets, runs, self.context.clock.now());
        self.carry_out(&key, &deployment, plan).await
    }

    async fn carry_out(
        &self,
        key: &ObjectKey,
        deployment: &Arc<Deployment>,
        plan: Plan,
    ) -> Result<Outcome, Error> {
        let mut status = plan.status;
        let mut failure = None;
        for action in plan.actions {
            if let Err(error) = self.act(key, deployment, action, &mut status).await {
                failure = Some(error);
                break;
            }
        }
        let wait = self.wait(key, deployment, &status, failure.is_some());
        if wait.is_none() {
            self.write_status(key, deployment, status).await?;
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(Outcome::after(
                wait.into_iter().chain(plan.look_again_in).min(),
            )),
        }
    }

    /// How long to wait with a status, which changes again soon; none to write it now.
    fn wait(
        &self,
        key: &ObjectKey,
        deployment: &Deployment,
        status: &DeploymentStatus,
        failed: bool,
    ) -> Option<Duration> {
        // What failed is told at once: the next try reads from it what was tried.
        let now = failed
            || deployment.status.as_ref() == Some(status)
            || status::is_at_rest(deployment, status);
        if now {
            self.lulls.end(key);
            return None;
        }
        self.lulls.wait(key)
    }

    async fn act(
        &self,
        key: &ObjectKey,
        deployment: &Arc<Deployment>,
        action: Action,
        status: &mut DeploymentStatus,
    ) -> Result<(), Error> {
        match action {
            Action::Create(set) => self.create(key, deployment, *set, status).await,
            Action::Change {
                set,
                replicas,
                annotations,
                min_ready_seconds,
            } => {
                // Null would delete a field: what stays must not be named.
                let mut spec = serde_json::Map::new();
                if let Some(replicas) = replicas {
                    spec.insert("replicas".to_owned(), replicas.into());
                }
                if let Some(seconds) = min_ready_seconds {
                    spec.insert("minReadySeconds".to_owned(), seconds.into());
                }
                let patch = serde_json::json!({
                    "metadata": {
                        "uid": set.metadata.uid,
                        "resourceVersion": set.metadata.resource_version,
                        "annotations": annotations,
                    },
                    "spec": spec,
                });
                let set_key = ObjectKey::of(&*set);
                let changed = self
                    .sets(key)
                    .patch(&set_key.name, &PatchParams::default(), &Patch::Merge(patch))
                    .await
                    .map_err(|source| Error::Update {
                        what: named::<ReplicaSet>(&set_key),
                        source,
                    })?;
                self.unseen.wrote(key, &changed);
                if replicas.is_some() {
                    self.tell_scaled(deployment, &set_key.name, set.spec.replicas, replicas);
                }
                Ok(())
            }
            Action::Delete(set) => {
                let set_key = ObjectKey::of(&*set);
                let params = DeleteParams {
                    preconditions: Some(Preconditions {
                        uid: set.metadata.uid.clone(),
                        resource_version: set.metadata.resource_version.clone(),
                    }),
                    ..DeleteParams::background()
                };
                match self.sets(key).delete(&set_key.name, &params).await {
                    Ok(_) => Ok(()),
                    Err(error) if client::is_not_found(&error) => Ok(()),
                    Err(source) => Err(Error::Delete {
                        what: named::<ReplicaSet>(&set_key),
                        source,
                    }),
                }
            }
            Action::Annotate(annotations) => {
                let patch = serde_json::json!({"metadata": {
                    "uid": deployment.metadata.uid, "annotations": annotations,
                }});
                self.deployments(key)
                    .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
                    .await
                    .map(drop)
                    .map_err(|source| Error::Update {
                        what: named::<Deployment>(key),
                        source,
                    })
            }
        }
    }

    /// Creates the set of the current template. A set of that name and another template
    /// is a collision of hashes: the next try uses another name.
    async fn create(
        &self,
        key: &ObjectKey,
        deployment: &Arc<Deployment>,
        set: ReplicaSet,
        status: &mut DeploymentStatus,
    ) -> Result<(), Error> {
        let name = set.metadata.name.clone().unwrap_or_default();
        let api = self.sets(key);
        let source = match api.create(&PostParams::default(), &set).await {
            Ok(made) => {
                self.unseen.wrote(key, &made);
                self.tell_scaled(deployment, &name, Some(0), set.spec.replicas);
                return Ok(());
            }
            Err(source) => source,
        };
        let what = format!("ReplicaSet {}/{name}", key.namespace);
        if client::is_already_exists(&source) {
            let there = api.get_opt(&name).await.map_err(|source| Error::Get {
                what: what.clone(),
                source,
            })?;
            let same = there.is_some_and(|there| {
                there.metadata.owner_references == set.metadata.owner_references
                    && revision::same_template(&there, deployment)
            });
            if !same {
                status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
            }
        } else {
            let now = self.context.clock.now();
            let text = crate::replicaset::message(&source);
            status::creation_failed(status, &name, &text, now);
            self.recorder.warning(
                &**deployment,
                "ReplicaSetCreateError",
                &format!("Failed to create new replica set \"{name}\": {text}"),
            );
        }
        Err(Error::Create { what, source })
    }

    fn tell_scaled(
        &self,
        deployment: &Arc<Deployment>,
        set: &str,
        from: Option<i32>,
        to: Option<i32>,
    ) {
        let (from, to) = (from.unwrap_or(1), to.unwrap_or(1));
        if from == to {
            return;
        }
        let way = if to > from { "up" } else { "down" };
        self.recorder.normal(
            &**deployment,
            "ScalingReplicaSet",
            &format!("Scaled {way} replica set {set} from {from} to {to}"),
        );
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        deployment: &Arc<Deployment>,
        status: DeploymentStatus,
    ) -> Result<(), Error> {
        if deployment.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let known = deployment.status.as_ref();
        let context = &self.context;
        context
            .patch_status(key, &**deployment, known, &status)
            .await
    }

    fn sets(&self, key: &ObjectKey) -> Api<ReplicaSet> {
        Api::namespaced(self.context.client.clone(), &key.namespace)
    }

    fn deployments(&self, key: &ObjectKey) -> Api<Deployment> {
        Api::namespaced(self.context.client.clone(), &key.namespace)
    }
}

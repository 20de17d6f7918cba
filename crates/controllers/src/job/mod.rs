//! Jobs: runs pods until enough have succeeded, or too many have failed.
//!
//! Each pod carries a finalizer until its end is in the Job's status, so that none is
//! counted twice or lost, whoever deletes it. Start with [`plan::plan`].

mod indexes;
mod members;
mod plan;
mod policy;
#[cfg(test)]
mod tests;

use crate::context::{Context, controller_key, named};
use crate::error::Error;
use crate::pods;
use crate::writes::{UNSEEN_RETRY, Unseen, for_each, slow_start};
use client::k8s_openapi::api::batch::v1::{Job, JobStatus};
use client::k8s_openapi::api::core::v1::Pod;
use client::{EventRecorder, Informer, ObjectKey, Outcome};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use members::{New, TRACKING_FINALIZER};
use plan::Plan;
use std::sync::Arc;

const NAME: &str = "job-controller";
const WORKERS: usize = 4;

struct Controller {
    context: Context,
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    unseen: Unseen,
    recorder: EventRecorder,
}

pub(crate) fn start(context: &Context) {
    let jobs = context.informers.get::<Job>();
    let pods = context.informers.get::<Pod>();
    let queue = context.queue();
    context.enqueue(&jobs, &queue);
    context.enqueue_owners::<Job, Pod>(&pods, &queue);
    let ready = vec![jobs.ready(), pods.ready()];
    let controller = Arc::new(Controller {
        context: context.clone(),
        jobs,
        pods,
        unseen: Unseen::default(),
        recorder: context.recorder(NAME),
    });
    context.work(NAME, queue, WORKERS, ready, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Outcome, Error> {
        let revision = self.pods.revision();
        let Some(job) = self.jobs.get_key(&key) else {
            self.unseen.forget(&key);
            self.release_orphans(&key).await?;
            return Ok(Outcome::Done);
        };
        let managed_by = job.spec.as_ref().and_then(|s| s.managed_by.as_deref());
        if managed_by.is_some_and(|by| by != "kubernetes.io/job-controller") {
            return Ok(Outcome::Done);
        }
        if !self.unseen.is_seen(&key, revision) {
            return Ok(Outcome::After(UNSEEN_RETRY));
        }
        let mut mine = self
            .pods
            .owned_by(job.metadata.uid.as_deref().unwrap_or_default());
        let uids = mine.iter().filter_map(|p| p.metadata.uid.as_deref());
        let deleted = self.unseen.deleted_of(&key, uids);
        mine.retain(|p| {
            !p.metadata
                .uid
                .as_ref()
                .is_some_and(|uid| deleted.contains(uid))
        });
        mine.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        let plan = plan::plan(&job, &mine, self.context.clock.now());
        self.carry_out(&key, &job, plan).await
    }

    async fn carry_out(&self, key: &ObjectKey, job: &Job, plan: Plan) -> Result<Outcome, Error> {
        if plan.expired {
            self.delete(key, job).await?;
            return Ok(Outcome::Done);
        }
        let deleted = for_each(plan.delete, |pod| self.delete_pod(key, job, pod)).await;
        let created = self.create(key, job, &plan.create).await;
        // First the count, then the finalizers: what is not in the status stays.
        self.write_status(key, job, plan.status).await?;
        for (kind, reason, message) in &plan.events {
            let about = client::events::reference(job);
            self.recorder.record(about, *kind, reason, message);
        }
        for_each(plan.release, |pod| self.release(key, pod)).await?;
        deleted?;
        created?;
        Ok(Outcome::after(plan.look_again_in))
    }

    async fn create(&self, key: &ObjectKey, job: &Job, new: &[New]) -> Result<(), Error> {
        let (_, failure) = slow_start(new.len(), |n| async move {
            let pod = members::pod(job, new[n]);
            let made = pods::create(&self.context, &self.unseen, key, &pod).await?;
            let name = made.metadata.name.unwrap_or_default();
            self.recorder
                .normal(job, "SuccessfulCreate", &format!("Created pod: {name}"));
            Ok::<_, kube::Error>(())
        })
        .await;
        let Some(source) = failure else {
            return Ok(());
        };
        let text = format!("Error creating: {}", crate::replicaset::message(&source));
        self.recorder.warning(job, "FailedCreate", &text);
        Err(Error::Create {
            what: format!("Pod of {}", named::<Job>(key)),
            source,
        })
    }

    async fn delete_pod(&self, key: &ObjectKey, job: &Job, pod: Arc<Pod>) -> Result<(), Error> {
        // Not noted as deleted: its end is still to be counted.
        if pods::delete(&self.context, &Unseen::default(), key, &pod).await? {
            let name = pod.metadata.name.clone().unwrap_or_default();
            self.recorder
                .normal(job, "SuccessfulDelete", &format!("Deleted pod: {name}"));
        }
        Ok(())
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        job: &Job,
        status: JobStatus,
    ) -> Result<(), Error> {
        if job.status.as_ref() == Some(&status) {
            return Ok(());
        }
        // With its resourceVersion: counts must not be added to an older state twice.
        let mut changed = job.clone();
        changed.status = Some(status);
        let api: Api<Job> = Api::namespaced(self.context.client.clone(), &key.namespace);
        api.replace_status(&key.name, &PostParams::default(), &changed)
            .await
            .map(drop)
            .map_err(|source| Error::Update {
                what: format!("status of {}", named::<Job>(key)),
                source,
            })
    }

    /// Takes the finalizer from a pod whose end is counted.
    async fn release(&self, key: &ObjectKey, pod: Arc<Pod>) -> Result<(), Error> {
        let mut finalizers = pod.metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|f| f != TRACKING_FINALIZER);
        let patch = serde_json::json!({"metadata": {
            "uid": pod.metadata.uid,
            "resourceVersion": pod.metadata.resource_version,
            "finalizers": finalizers,
        }});
        let pod_key = ObjectKey::of(&*pod);
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &pod_key.namespace);
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        match api
            .patch(&pod_key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(patched) => {
                self.unseen.wrote(key, &patched);
                if pod.metadata.deletion_timestamp.is_some() {
                    self.unseen.deleted(key, uid);
                }
                Ok(())
            }
            Err(error) if client::is_not_found(&error) => {
                self.unseen.deleted(key, uid);
                Ok(())
            }
            Err(source) => Err(Error::Update {
                what: named::<Pod>(&pod_key),
                source,
            }),
        }
    }

    /// Takes the finalizers from pods whose Job is gone.
    async fn release_orphans(&self, key: &ObjectKey) -> Result<(), Error> {
        let orphans = self.pods.select_namespace(&key.namespace, |pod| {
            members::is_tracked(pod) && controller_key::<Job>(pod).as_ref() == Some(key)
        });
        let result = for_each(orphans, |pod| self.release(key, pod)).await;
        self.unseen.forget(key);
        result
    }

    /// Deletes a Job that has been over for long enough.
    async fn delete(&self, key: &ObjectKey, job: &Job) -> Result<(), Error> {
        let api: Api<Job> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: job.metadata.uid.clone(),
                resource_version: job.metadata.resource_version.clone(),
            }),
            ..DeleteParams::foreground()
        };
        match api.delete(&key.name, &params).await {
            Ok(_) => Ok(()),
            Err(error) if client::is_not_found(&error) => Ok(()),
            Err(source) => Err(Error::Delete {
                what: named::<Job>(key),
                source,
            }),
        }
    }
}

//! CronJobs: starts Jobs by the clock.
//!
//! Start with [`plan::plan`]; how schedules are read is in `api::cron`.

mod plan;

use crate::context::{Context, named};
use crate::error::{Error, is_terminating};
use crate::replicaset::message;
use crate::writes::{UNSEEN_RETRY, Unseen, for_each};
use client::k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use client::{EventRecorder, Informer, ObjectKey, Outcome};
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use plan::Plan;
use std::sync::Arc;

const NAME: &str = "cronjob-controller";
const WORKERS: usize = 2;

struct Controller {
    context: Context,
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
    unseen: Unseen,
    recorder: EventRecorder,
}

pub(crate) fn start(context: &Context) {
    let crons = context.informers.get::<CronJob>();
    let jobs = context.informers.get::<Job>();
    let queue = context.queue();
    context.enqueue(&crons, &queue);
    context.enqueue_owners::<CronJob, Job>(&jobs, &queue);
    let ready = vec![crons.ready(), jobs.ready()];
    let controller = Arc::new(Controller {
        context: context.clone(),
        crons,
        jobs,
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
        let seen = self.jobs.revision();
        let Some(cron) = self.crons.get_key(&key) else {
            self.unseen.forget(&key);
            return Ok(Outcome::Done);
        };
        if !self.unseen.is_seen(&key, seen) {
            return Ok(Outcome::After(UNSEEN_RETRY));
        }
        let uid = cron.metadata.uid.as_deref().unwrap_or_default();
        let mut mine = self.jobs.owned_by(uid);
        mine.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        let plan = plan::plan(&cron, &mine, self.context.clock.now());
        self.carry_out(&key, &cron, plan).await
    }

    async fn carry_out(
        &self,
        key: &ObjectKey,
        cron: &CronJob,
        plan: Plan,
    ) -> Result<Outcome, Error> {
        let mut status = plan.status;
        for (kind, reason, text) in &plan.events {
            let about = client::events::reference(cron);
            self.recorder.record(about, *kind, reason, text);
        }
        for_each(plan.delete, |job| self.delete(cron, job)).await?;
        if let Some(job) = plan.create {
            let made = self.create(key, cron, &job).await?;
            let active = status.active.get_or_insert_default();
            active.extend(made.map(|job| plan::reference(&job)));
        }
        self.write_status(key, cron, status).await?;
        Ok(Outcome::after(plan.look_again_in))
    }

    /// Starts a job; none when its namespace goes, or it was started before.
    async fn create(
        &self,
        key: &ObjectKey,
        cron: &CronJob,
        job: &Job,
    ) -> Result<Option<Job>, Error> {
        let api: Api<Job> = Api::namespaced(self.context.client.clone(), &key.namespace);
        match api.create(&PostParams::default(), job).await {
            Ok(made) => {
                self.unseen.wrote(key, &made);
                let name = made.metadata.name.clone().unwrap_or_default();
                let text = format!("Created job {name}");
                self.recorder.normal(cron, "SuccessfulCreate", &text);
                Ok(Some(made))
            }
            Err(error) if is_terminating(&error) || client::is_already_exists(&error) => Ok(None),
            Err(source) => {
                let text = format!("Error creating job: {}", message(&source));
                self.recorder.warning(cron, "FailedCreate", &text);
                Err(Error::Create {
                    what: format!("Job of {}", named::<CronJob>(key)),
                    source,
                })
            }
        }
    }

    async fn delete(&self, cron: &CronJob, job: Arc<Job>) -> Result<(), Error> {
        let key = ObjectKey::of(&*job);
        let api: Api<Job> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: job.metadata.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::background()
        };
        match api.delete(&key.name, &params).await {
            Ok(_) => {
                let text = format!("Deleted job {}", key.name);
                self.recorder.normal(cron, "SuccessfulDelete", &text);
                Ok(())
            }
            Err(error) if client::is_not_found(&error) || client::is_conflict(&error) => Ok(()),
            Err(source) => {
                let text = format!("Deleted job: {}", message(&source));
                self.recorder.warning(cron, "FailedDelete", &text);
                Err(Error::Delete {
                    what: named::<Job>(&key),
                    source,
                })
            }
        }
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        cron: &CronJob,
        status: CronJobStatus,
    ) -> Result<(), Error> {
        if cron.status.clone().unwrap_or_default() == status {
            return Ok(());
        }
        let mut cron = cron.clone();
        cron.status = Some(status);
        self.context.write_status(key, &cron).await
    }
}

//! CronJobs: by the clock, and by hand with kubectl.

use crate::kubectl::Kubectl;
use crate::site::Site;
use anyhow::Result;
use client::k8s_openapi::api::batch::v1::{CronJob, Job};
use serde_json::json;

const CRON_JOBS: &str = "/apis/batch/v1/namespaces/default/cronjobs";

fn ended(_: &str) -> Option<&'static str> {
    Some("Succeeded")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_start_by_the_clock_and_by_hand() -> Result<()> {
    let site = Site::start().await?;
    site.play_node(ended);
    let cron = json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "tick"},
        "spec": {"schedule": "@every 1s", "successfulJobsHistoryLimit": 1,
            "concurrencyPolicy": "Forbid",
            "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never",
                "containers": [{"name": "c", "image": "task:1"}]}}}}}});
    site.create(CRON_JOBS, cron).await?;
    site.until::<CronJob, _>("a success", |crons| {
        let status = crons.first()?.status.as_ref()?;
        status.last_successful_time.as_ref().map(drop)
    })
    .await?;
    let tick = format!("{CRON_JOBS}/tick");
    site.patch(&tick, json!({"spec": {"suspend": true}}))
        .await?;
    let kubectl = Kubectl::of(&site)?;
    kubectl
        .run("create job by-hand --from=cronjob/tick")
        .await?;
    site.until::<Job, _>("the job is done", |jobs| {
        let job = jobs
            .iter()
            .find(|j| j.metadata.name.as_deref() == Some("by-hand"))?;
        let done = job.status.as_ref()?.conditions.as_ref()?;
        done.iter().any(|c| c.type_ == "Complete").then_some(())
    })
    .await?;
    site.until::<CronJob, _>("none is active", |crons| {
        crons
            .first()?
            .status
            .as_ref()?
            .active
            .is_none()
            .then_some(())
    })
    .await?;
    site.delete(&tick, "Background").await?;
    site.until::<Job, _>("no jobs", |jobs| jobs.is_empty().then_some(()))
        .await?;
    site.stop().await
}

//! A Job's pods: how they are made, and what they tell. Pure.

use crate::pods;
use client::k8s_openapi::api::batch::v1::Job;
use client::k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use jiff::Timestamp;

/// Finalizer of pods whose end is not in the status yet.
pub(super) const TRACKING_FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// Label and annotation: a pod's completion index.
const COMPLETION_INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Annotation: how often pods of its index had failed before.
const FAILURE_COUNT: &str = "batch.kubernetes.io/job-index-failure-count";
/// A pod to make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct New {
    /// Its completion index, if it has one.
    pub(super) index: Option<i32>,
    /// How often pods of that index have failed, where that is limited.
    pub(super) failures: Option<i32>,
}

/// Whether a pod's end is not counted yet.
pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.metadata
        .finalizers
        .iter()
        .flatten()
        .any(|f| f == TRACKING_FINALIZER)
}

/// A pod of a Job, with its completion index if it has one.
pub(super) fn pod(job: &Job, new: New) -> Pod {
    let spec = job.spec.clone().unwrap_or_default();
    let mut pod = pods::from_template(job, &spec.template);
    let meta = &mut pod.metadata;
    meta.finalizers
        .get_or_insert_default()
        .push(TRACKING_FINALIZER.to_owned());
    let Some(index) = new.index else {
        return pod;
    };
    if let Some(failures) = new.failures {
        let annotations = meta.annotations.get_or_insert_default();
        annotations.insert(FAILURE_COUNT.to_owned(), failures.to_string());
    }
    let job_name = job.metadata.name.as_deref().unwrap_or_default();
    meta.generate_name = Some(format!("{job_name}-{index}-"));
    for map in [&mut meta.labels, &mut meta.annotations] {
        map.get_or_insert_default()
            .insert(COMPLETION_INDEX.to_owned(), index.to_string());
    }
    if let Some(spec) = &mut pod.spec {
        spec.hostname
            .get_or_insert_with(|| format!("{job_name}-{index}"));
        let init = spec.init_containers.iter_mut().flatten();
        for container in spec.containers.iter_mut().chain(init) {
            let env = container.env.get_or_insert_default();
            if !env.iter().any(|e| e.name == "JOB_COMPLETION_INDEX") {
                env.push(index_variable());
            }
        }
    }
    pod
}

/// When a pod ended, by its containers or its deletion.
pub(super) fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref()?;
    status
        .container_statuses
        .iter()
        .flatten()
        .filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref())
        .map(|t| t.0)
        .max()
        .or_else(|| pod.metadata.deletion_timestamp.as_ref().map(|t| t.0))
        .or_else(|| {
            let ready = pods::condition(pod, "Ready")?;
            Some(ready.last_transition_time.as_ref()?.0)
        })
        .or_else(|| pod.metadata.creation_timestamp.as_ref().map(|t| t.0))
}

pub(super) fn restarts(pod: &Pod) -> i32 {
    let Some(status) = &pod.status else { return 0 };
    let init = status.init_container_statuses.iter().flatten();
    status
        .container_statuses
        .iter()
        .flatten()
        .chain(init)
        .map(|c| c.restart_count)
        .sum()
}

pub(super) fn index_of(pod: &Pod) -> Option<i32> {
    pod.metadata
        .annotations
        .as_ref()?
        .get(COMPLETION_INDEX)?
        .parse()
        .ok()
}

/// How often the pods of its index had failed before this one.
pub(super) fn failures_before(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    annotations
        .and_then(|a| a.get(FAILURE_COUNT)?.parse().ok())
        .unwrap_or(0)
}

fn index_variable() -> EnvVar {
    EnvVar {
        name: "JOB_COMPLETION_INDEX".to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: format!("metadata.annotations['{COMPLETION_INDEX}']"),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

//! What a Job needs next, and what its status says: pure.

use super::indexes;
use crate::pods;
use client::EventType;
use client::k8s_openapi::api::batch::v1::{
    Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods,
};
use client::k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Finalizer of pods whose end is not in the status yet.
pub(super) const TRACKING_FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// Label and annotation: a pod's completion index.
const COMPLETION_INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Delay after the first failure in a row; doubles with each further one, as upstream.
const RETRY_DELAY_MIN: SignedDuration = SignedDuration::from_secs(10);
const RETRY_DELAY_MAX: SignedDuration = SignedDuration::from_secs(600);
/// Pods made in one go, as upstream.
const BURST_MAX: usize = 500;

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Completion indexes of pods to make; none for those without.
    pub(super) create: Vec<Option<i32>>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Pods to take the finalizer from once the status is written.
    pub(super) release: Vec<Arc<Pod>>,
    pub(super) status: JobStatus,
    pub(super) events: Vec<(EventType, &'static str, &'static str)>,
    pub(super) look_again_in: Option<Duration>,
    /// It is over, and was for as long as it is to be kept.
    pub(super) expired: bool,
}

/// A reason and a message of a condition.
type Verdict = (&'static str, &'static str);

/// Plans the next step of a Job with these pods, sorted by name.
pub(super) fn plan(job: &Job, mine: &[Arc<Pod>], now: Timestamp) -> Plan {
    let spec = job.spec.clone().unwrap_or_default();
    let mut planner = Planner {
        status: job.status.clone().unwrap_or_default(),
        plan: Plan::default(),
        completed: BTreeSet::new(),
        active: mine
            .iter()
            .filter(|p| pods::is_active(p))
            .cloned()
            .collect(),
        mine,
        spec,
        now,
    };
    planner.count();
    if job.metadata.deletion_timestamp.is_some() {
        planner.plan.release = mine.iter().filter(|p| is_tracked(p)).cloned().collect();
    } else if let Some(over_at) = over_at(&planner.status) {
        planner.age(over_at);
    } else {
        planner.step();
    }
    planner.finish()
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
pub(super) fn pod(job: &Job, index: Option<i32>) -> Pod {
    let spec = job.spec.clone().unwrap_or_default();
    let mut pod = pods::from_template(job, &spec.template);
    let meta = &mut pod.metadata;
    meta.finalizers
        .get_or_insert_default()
        .push(TRACKING_FINALIZER.to_owned());
    let Some(index) = index else {
        return pod;
    };
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

struct Planner<'a> {
    spec: JobSpec,
    status: JobStatus,
    plan: Plan,
    mine: &'a [Arc<Pod>],
    active: Vec<Arc<Pod>>,
    completed: BTreeSet<i32>,
    now: Timestamp,
}

impl Planner<'_> {
    fn is_indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    fn is_suspended(&self) -> bool {
        self.spec.suspend == Some(true)
    }

    /// Whether a pod that is being deleted but has not ended counts as failed.
    fn counts_deleted_as_failed(&self) -> bool {
        !self.is_suspended()
            && self.verdict().is_none()
            && self.spec.pod_replacement_policy.as_deref() != Some("Failed")
    }

    /// Moves pods from running to uncounted, and from uncounted to counted once their
    /// finalizer is gone.
    fn count(&mut self) {
        let limit = self.spec.completions.unwrap_or(i32::MAX);
        if let Some(text) = &self.status.completed_indexes {
            self.completed = indexes::parse(text, limit);
        }
        let tracked: HashSet<&str> = self
            .mine
            .iter()
            .filter(|p| is_tracked(p))
            .filter_map(|p| p.metadata.uid.as_deref())
            .collect();
        let mut uncounted = self
            .status
            .uncounted_terminated_pods
            .take()
            .unwrap_or_default();
        for (uids, counter) in [
            (&mut uncounted.succeeded, &mut self.status.succeeded),
            (&mut uncounted.failed, &mut self.status.failed),
        ] {
            let uids = uids.get_or_insert_default();
            let before = uids.len();
            uids.retain(|uid| tracked.contains(uid.as_str()));
            add(counter, before - uids.len());
        }
        let deleted_failed = self.counts_deleted_as_failed();
        for pod in self.mine.iter().filter(|p| is_tracked(p)) {
            let going = pod.metadata.deletion_timestamp.is_some();
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            match pods::phase(pod) {
                "Succeeded" => match index_of(pod).filter(|_| self.is_indexed()) {
                    Some(index) if index < limit => {
                        self.completed.insert(index);
                    }
                    Some(_) => {}
                    None => note(&mut uncounted.succeeded, uid),
                },
                "Failed" => note(&mut uncounted.failed, uid),
                _ if going && deleted_failed => note(&mut uncounted.failed, uid),
                // Ended by this controller: neither succeeded nor failed.
                _ if going && (self.is_suspended() || self.verdict().is_some()) => {}
                _ => continue,
            }
            self.plan.release.push(pod.clone());
        }
        for uids in [&mut uncounted.succeeded, &mut uncounted.failed] {
            *uids = uids.take().filter(|uids| !uids.is_empty());
        }
        self.status.uncounted_terminated_pods = Some(uncounted);
        if self.is_indexed() {
            self.status.succeeded =
                (!self.completed.is_empty()).then(|| to_i32(self.completed.len()));
            self.status.completed_indexes =
                Some(indexes::format(&self.completed)).filter(|t| !t.is_empty());
        }
    }

    fn succeeded(&self) -> i32 {
        self.status.succeeded.unwrap_or(0) + self.uncounted(|u| u.succeeded.as_ref())
    }

    fn failed(&self) -> i32 {
        self.status.failed.unwrap_or(0) + self.uncounted(|u| u.failed.as_ref())
    }

    fn uncounted(&self, of: impl Fn(&UncountedTerminatedPods) -> Option<&Vec<String>>) -> i32 {
        let uncounted = self.status.uncounted_terminated_pods.as_ref();
        to_i32(uncounted.and_then(of).map_or(0, Vec::len))
    }

    fn step(&mut self) {
        if self.verdict().is_none() {
            self.judge();
        }
        if self.verdict().is_some() {
            self.plan.delete.clone_from(&self.active);
            return;
        }
        if self.is_suspended() {
            self.plan.delete.clone_from(&self.active);
            if condition(&self.status, "Suspended") != Some("True") {
                self.set("Suspended", "True", "JobSuspended", "Job suspended");
                self.tell(EventType::Normal, "Suspended", "Job suspended");
            }
            self.status.start_time = None;
            return;
        }
        if condition(&self.status, "Suspended") == Some("True") {
            self.set("Suspended", "False", "JobResumed", "Job resumed");
            self.tell(EventType::Normal, "Resumed", "Job resumed");
        }
        self.status.start_time.get_or_insert(Time(self.now));
        if let Some(left) = self.deadline_in() {
            self.look_again_in(left);
        }
        self.fill();
    }

    /// Whether the Job has succeeded or failed, though its pods may still be ending:
    /// the condition, its reason and message.
    fn verdict(&self) -> Option<(&str, &str, &str)> {
        self.status
            .conditions
            .iter()
            .flatten()
            .find(|c| {
                c.status == "True"
                    && matches!(c.type_.as_str(), "SuccessCriteriaMet" | "FailureTarget")
            })
            .map(|c| {
                (
                    c.type_.as_str(),
                    c.reason.as_deref().unwrap_or_default(),
                    c.message.as_deref().unwrap_or_default(),
                )
            })
    }

    /// Finds out whether it has.
    fn judge(&mut self) {
        if let Some((reason, message)) = self.failure() {
            self.set("FailureTarget", "True", reason, message);
            self.tell(EventType::Warning, reason, message);
            return;
        }
        let succeeded = self.succeeded();
        let met = match self.spec.completions {
            Some(completions) => succeeded >= completions,
            None => succeeded > 0 && self.active.is_empty(),
        };
        if met && !self.is_suspended() {
            self.set(
                "SuccessCriteriaMet",
                "True",
                "CompletionsReached",
                "Reached expected number of succeeded pods",
            );
        }
    }

    fn failure(&self) -> Option<Verdict> {
        let limit = self.spec.backoff_limit.unwrap_or(6);
        let restarts_in_place = self
            .spec
            .template
            .spec
            .as_ref()
            .and_then(|s| s.restart_policy.as_deref())
            == Some("OnFailure");
        let restarts: i32 = self.active.iter().map(|p| restarts(p)).sum();
        let too_many =
            self.failed() > limit || (restarts_in_place && restarts > 0 && restarts >= limit);
        if too_many {
            return Some((
                "BackoffLimitExceeded",
                "Job has reached the specified backoff limit",
            ));
        }
        (self.deadline_in() == Some(Duration::ZERO) && !self.is_suspended()).then_some((
            "DeadlineExceeded",
            "Job was active longer than specified deadline",
        ))
    }

    /// How long it may still run.
    fn deadline_in(&self) -> Option<Duration> {
        let limit = SignedDuration::from_secs(self.spec.active_deadline_seconds?);
        let since = self.status.start_time.as_ref()?.0;
        let left = limit.saturating_sub(self.now.duration_since(since));
        Some(Duration::try_from(left).unwrap_or(Duration::ZERO))
    }

    /// Makes pods, or takes some away, so that as many run as should.
    fn fill(&mut self) {
        let parallelism = self.spec.parallelism.unwrap_or(1).max(0);
        let succeeded = self.succeeded();
        let wanted = match self.spec.completions {
            Some(completions) => parallelism.min((completions - succeeded).max(0)),
            // Once one has succeeded no more are started.
            None if succeeded > 0 => parallelism.min(to_i32(self.active.len())),
            None => parallelism,
        };
        let wanted = usize::try_from(wanted).unwrap_or(0);
        if self.active.len() > wanted {
            let mut active = self.active.clone();
            // Those that have got least far go first.
            active.sort_by_key(|p| (pods::phase(p) == "Running", pods::is_ready(p)));
            active.truncate(self.active.len() - wanted);
            self.plan.delete = active;
            return;
        }
        let terminating = if self.spec.pod_replacement_policy.as_deref() == Some("Failed") {
            self.terminating()
        } else {
            0
        };
        let lacking = wanted.saturating_sub(self.active.len() + terminating);
        if lacking == 0 {
            return;
        }
        if let Some(delay) = self.retry_in() {
            self.look_again_in(delay);
            return;
        }
        self.plan.create = if self.is_indexed() {
            self.next_indexes(lacking.min(BURST_MAX))
        } else {
            vec![None; lacking.min(BURST_MAX)]
        };
    }

    fn next_indexes(&self, count: usize) -> Vec<Option<i32>> {
        let running: HashSet<i32> = self.active.iter().filter_map(|p| index_of(p)).collect();
        (0..self.spec.completions.unwrap_or(0))
            .filter(|index| !self.completed.contains(index) && !running.contains(index))
            .take(count)
            .map(Some)
            .collect()
    }

    /// How long to wait before the next pod: longer the more have failed in a row.
    fn retry_in(&self) -> Option<Duration> {
        let mut ended: Vec<(Timestamp, bool)> = self
            .mine
            .iter()
            .filter_map(|p| match pods::phase(p) {
                "Failed" => Some((ended_at(p)?, true)),
                "Succeeded" => Some((ended_at(p)?, false)),
                _ => None,
            })
            .collect();
        ended.sort_unstable();
        let (last, _) = *ended.last()?;
        let failures = ended.iter().rev().take_while(|(_, failed)| *failed).count();
        if failures == 0 {
            return None;
        }
        let doublings = u32::try_from(failures - 1).unwrap_or(u32::MAX).min(16);
        let delay = RETRY_DELAY_MIN
            .saturating_mul(1 << doublings)
            .min(RETRY_DELAY_MAX);
        let left = delay.saturating_sub(self.now.duration_since(last));
        Duration::try_from(left).ok().filter(|left| !left.is_zero())
    }

    fn terminating(&self) -> usize {
        self.mine
            .iter()
            .filter(|p| p.metadata.deletion_timestamp.is_some() && !pods::has_ended(p))
            .count()
    }

    /// A Job that is over: deleted after its time to live, if it has one.
    fn age(&mut self, over_at: Timestamp) {
        let Some(ttl) = self.spec.ttl_seconds_after_finished else {
            return;
        };
        let ttl = SignedDuration::from_secs(i64::from(ttl));
        let left = ttl.saturating_sub(self.now.duration_since(over_at));
        match Duration::try_from(left) {
            Ok(left) if !left.is_zero() => self.look_again_in(left),
            _ => self.plan.expired = true,
        }
    }

    fn finish(mut self) -> Plan {
        let over = over_at(&self.status).is_some();
        let gone: HashSet<_> = self
            .plan
            .delete
            .iter()
            .map(|p| p.metadata.uid.clone())
            .collect();
        let left = self
            .active
            .iter()
            .filter(|p| !gone.contains(&p.metadata.uid));
        let (active, ready) = left.fold((0, 0), |(active, ready), p| {
            (active + 1, ready + usize::from(pods::is_ready(p)))
        });
        self.status.active = (active > 0).then(|| to_i32(active));
        self.status.ready = Some(to_i32(ready));
        self.status.terminating = Some(to_i32(self.terminating() + gone.len()));
        if !over {
            self.conclude();
        }
        self.plan.status = self.status;
        self.plan
    }

    /// Makes the verdict final once nothing runs and all is counted.
    fn conclude(&mut self) {
        let Some((kind, reason, message)) = self.verdict() else {
            return;
        };
        let (success, reason, message) = (
            kind == "SuccessCriteriaMet",
            reason.to_owned(),
            message.to_owned(),
        );
        let uncounted = self.uncounted(|u| u.succeeded.as_ref())
            + self.uncounted(|u| u.failed.as_ref())
            + to_i32(self.plan.release.len());
        if uncounted > 0 || self.status.terminating != Some(0) || !self.active.is_empty() {
            return;
        }
        if success {
            self.set("Complete", "True", &reason, &message);
            self.status.completion_time = Some(Time(self.now));
            self.tell(EventType::Normal, "Completed", "Job completed");
        } else {
            self.set("Failed", "True", &reason, &message);
        }
        if let Some(ttl) = self.spec.ttl_seconds_after_finished {
            self.look_again_in(pods::seconds(Some(ttl)));
        }
    }

    fn set(&mut self, kind: &str, value: &str, reason: &str, message: &str) {
        let conditions = self.status.conditions.get_or_insert_default();
        let new = JobCondition {
            type_: kind.to_owned(),
            status: value.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_probe_time: Some(Time(self.now)),
            last_transition_time: Some(Time(self.now)),
        };
        match conditions.iter_mut().find(|c| c.type_ == kind) {
            Some(known) => *known = new,
            None => conditions.push(new),
        }
    }

    fn tell(&mut self, kind: EventType, reason: &'static str, message: &'static str) {
        self.plan.events.push((kind, reason, message));
    }

    fn look_again_in(&mut self, delay: Duration) {
        let sooner = self.plan.look_again_in.map_or(delay, |d| d.min(delay));
        self.plan.look_again_in = Some(sooner);
    }
}

/// Since when a Job is over.
fn over_at(status: &JobStatus) -> Option<Timestamp> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|c| c.status == "True" && matches!(c.type_.as_str(), "Complete" | "Failed"))
        .map(|c| {
            c.last_transition_time
                .as_ref()
                .map_or(Timestamp::MIN, |t| t.0)
        })
}

fn condition<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a str> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == kind)
        .map(|c| c.status.as_str())
}

/// When a pod ended, by its containers or its deletion.
fn ended_at(pod: &Pod) -> Option<Timestamp> {
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

fn restarts(pod: &Pod) -> i32 {
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

fn index_of(pod: &Pod) -> Option<i32> {
    pod.metadata
        .annotations
        .as_ref()?
        .get(COMPLETION_INDEX)?
        .parse()
        .ok()
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

fn note(uids: &mut Option<Vec<String>>, uid: String) {
    let uids = uids.get_or_insert_default();
    if !uids.contains(&uid) {
        uids.push(uid);
    }
}

fn add(counter: &mut Option<i32>, n: usize) {
    if n > 0 {
        *counter = Some(counter.unwrap_or(0) + to_i32(n));
    }
}

fn to_i32(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

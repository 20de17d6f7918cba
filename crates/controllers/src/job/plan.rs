//! What a Job needs next, and what its status says: pure.

use super::indexes;
use super::members::{New, ended_at, failures_before, index_of, is_tracked, restarts};
use super::policy::{self, Consequence};
use crate::pods;
use client::EventType;
use client::k8s_openapi::api::batch::v1::{
    Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods,
};
use client::k8s_openapi::api::core::v1::Pod;
use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Delay after the first failure in a row; doubles with each further one, as upstream.
const RETRY_DELAY_MIN: SignedDuration = SignedDuration::from_secs(10);
const RETRY_DELAY_MAX: SignedDuration = SignedDuration::from_secs(600);
/// Pods made in one go, as upstream.
const BURST_MAX: usize = 500;

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) create: Vec<New>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Pods to take the finalizer from once the status is written.
    pub(super) release: Vec<Arc<Pod>>,
    pub(super) status: JobStatus,
    pub(super) events: Vec<(EventType, &'static str, String)>,
    pub(super) look_again_in: Option<Duration>,
    /// It is over, and was for as long as it is to be kept.
    pub(super) expired: bool,
}

/// A reason and a message of a condition.
type Verdict = (&'static str, String);

/// Plans the next step of a Job with these pods, sorted by name.
pub(super) fn plan(job: &Job, mine: &[Arc<Pod>], now: Timestamp) -> Plan {
    let spec = job.spec.clone().unwrap_or_default();
    let mut planner = Planner {
        status: job.status.clone().unwrap_or_default(),
        plan: Plan::default(),
        completed: BTreeSet::new(),
        failed_indexes: BTreeSet::new(),
        fail_job: None,
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

struct Planner<'a> {
    spec: JobSpec,
    status: JobStatus,
    plan: Plan,
    mine: &'a [Arc<Pod>],
    active: Vec<Arc<Pod>>,
    completed: BTreeSet<i32>,
    /// Those that have failed for good, where failures are limited by index.
    failed_indexes: BTreeSet<i32>,
    /// Why one failed pod makes the Job fail.
    fail_job: Option<String>,
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
        if let Some(text) = &self.status.failed_indexes {
            self.failed_indexes = indexes::parse(text, limit);
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
                phase if phase == "Failed" || (going && deleted_failed) => {
                    if !self.note_failed(pod, uid, &mut uncounted) {
                        continue;
                    }
                }
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
        if self.spec.backoff_limit_per_index.is_some() {
            self.status.failed_indexes = Some(indexes::format(&self.failed_indexes));
        }
        if self.is_indexed() {
            self.status.succeeded =
                (!self.completed.is_empty()).then(|| to_i32(self.completed.len()));
            self.status.completed_indexes =
                Some(indexes::format(&self.completed)).filter(|t| !t.is_empty());
        }
    }

    /// Notes what a failed pod means; whether its finalizer may go.
    fn note_failed(
        &mut self,
        pod: &Pod,
        uid: String,
        uncounted: &mut UncountedTerminatedPods,
    ) -> bool {
        let consequence = policy::consequence(&self.spec, pod);
        let index = index_of(pod);
        match consequence {
            Consequence::Ignore => return true,
            Consequence::Count => {}
            Consequence::FailIndex => self.failed_indexes.extend(index),
            Consequence::FailJob(why) => {
                self.fail_job.get_or_insert(why);
            }
        }
        note(&mut uncounted.failed, uid);
        let (Some(limit), Some(index)) = (self.spec.backoff_limit_per_index, index) else {
            return true;
        };
        if failures_before(pod) >= limit {
            self.failed_indexes.insert(index);
        }
        let over = self.failed_indexes.contains(&index) || self.completed.contains(&index);
        // Kept until a later pod of its index knows how often it has failed.
        let known =
            |p: &Arc<Pod>| index_of(p) == Some(index) && failures_before(p) > failures_before(pod);
        let verdict = self.fail_job.is_some() || self.verdict().is_some();
        over || verdict || self.mine.iter().any(known)
    }

    /// How often the pods of an index have failed, and when the last did.
    fn failures_of(&self, index: i32) -> (i32, Option<Timestamp>) {
        let failed = self.mine.iter().filter(|p| {
            index_of(p) == Some(index) && !pods::is_active(p) && pods::phase(p) != "Succeeded"
        });
        failed.fold((0, None), |(failures, last), pod| {
            let ignored = policy::consequence(&self.spec, pod) == Consequence::Ignore;
            let now = failures_before(pod) + i32::from(!ignored);
            (failures.max(now), last.max(ended_at(pod)))
        })
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
            self.set("FailureTarget", "True", reason, &message);
            self.tell(EventType::Warning, reason, &message);
            return;
        }
        if let Some(rule) = policy::success(&self.spec, &self.completed) {
            let message = format!("Matched rules at index {rule}");
            self.set("SuccessCriteriaMet", "True", "SuccessPolicy", &message);
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
        if let Some(why) = &self.fail_job {
            return Some(("PodFailurePolicy", why.clone()));
        }
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
            let message = "Job has reached the specified backoff limit";
            return Some(("BackoffLimitExceeded", message.to_owned()));
        }
        if self.deadline_in() == Some(Duration::ZERO) && !self.is_suspended() {
            let message = "Job was active longer than specified deadline";
            return Some(("DeadlineExceeded", message.to_owned()));
        }
        let failed = to_i32(self.failed_indexes.len());
        if self.spec.max_failed_indexes.is_some_and(|max| failed > max) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(("MaxFailedIndexesExceeded", message.to_owned()));
        }
        let done = self.succeeded().saturating_add(failed);
        (failed > 0 && self.spec.completions.is_some_and(|all| done >= all))
            .then(|| ("FailedIndexes", "Job has failed indexes".to_owned()))
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
            Some(completions) => {
                let over = succeeded + to_i32(self.failed_indexes.len());
                parallelism.min((completions - over).max(0))
            }
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
        // Where failures are limited by index, each index waits for itself.
        let by_index = self.spec.backoff_limit_per_index.is_some();
        if let Some(delay) = self.retry_in().filter(|_| !by_index) {
            self.look_again_in(delay);
            return;
        }
        self.plan.create = if self.is_indexed() {
            self.next_indexes(lacking.min(BURST_MAX), by_index)
        } else {
            vec![New::default(); lacking.min(BURST_MAX)]
        };
    }

    fn next_indexes(&mut self, count: usize, by_index: bool) -> Vec<New> {
        let running: HashSet<i32> = self.active.iter().filter_map(|p| index_of(p)).collect();
        let mut next = Vec::new();
        for index in 0..self.spec.completions.unwrap_or(0) {
            let over = self.completed.contains(&index) || self.failed_indexes.contains(&index);
            if over || running.contains(&index) {
                continue;
            }
            if next.len() == count {
                break;
            }
            let mut new = New {
                index: Some(index),
                failures: None,
            };
            if by_index {
                let (failures, last) = self.failures_of(index);
                let times = usize::try_from(failures).unwrap_or(0);
                if let Some(delay) = last.and_then(|last| self.delay_left(times, last)) {
                    self.look_again_in(delay);
                    continue;
                }
                new.failures = Some(failures);
            }
            next.push(new);
        }
        next
    }

    /// How long to wait after so many failures, the last at `last`.
    fn delay_left(&self, failures: usize, last: Timestamp) -> Option<Duration> {
        let doublings = u32::try_from(failures.checked_sub(1)?).unwrap_or(u32::MAX);
        let delay = RETRY_DELAY_MIN
            .saturating_mul(1 << doublings.min(16))
            .min(RETRY_DELAY_MAX);
        let left = delay.saturating_sub(self.now.duration_since(last));
        Duration::try_from(left).ok().filter(|left| !left.is_zero())
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
        self.delay_left(failures, last)
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

    fn tell(&mut self, kind: EventType, reason: &'static str, message: &str) {
        self.plan.events.push((kind, reason, message.to_owned()));
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

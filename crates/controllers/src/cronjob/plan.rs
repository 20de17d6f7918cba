//! What a CronJob needs next, and what its status says: pure.

use crate::pods::controller_reference;
use api::cron::{self, Schedule};
use client::EventType;
use client::k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use client::k8s_openapi::api::core::v1::ObjectReference;
use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Duration;

/// Annotation of jobs: when they were due.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Times missed in a row that are told of: then something is wrong, as upstream.
const MISSED_TOLD: usize = 100;
/// Times looked at one by one before the search starts nearer to now.
const SEARCH_MAX: usize = 10_000;
/// A little after the time, so that it has come.
const SLACK: Duration = Duration::from_millis(100);

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) create: Option<Job>,
    pub(super) delete: Vec<Arc<Job>>,
    pub(super) status: CronJobStatus,
    pub(super) events: Vec<(EventType, &'static str, String)>,
    pub(super) look_again_in: Option<Duration>,
}

/// Plans the next step of a CronJob that controls these jobs.
pub(super) fn plan(cron: &CronJob, jobs: &[Arc<Job>], now: Timestamp) -> Plan {
    let mut planner = Planner {
        cron,
        now,
        plan: Plan {
            status: cron.status.clone().unwrap_or_default(),
            ..Plan::default()
        },
    };
    let mut active: Vec<_> = jobs.iter().filter(|j| over(j).is_none()).cloned().collect();
    active.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    planner.finished(jobs);
    if cron.metadata.deletion_timestamp.is_none() {
        planner.trim(jobs);
        planner.schedule(&mut active, jobs);
    }
    let refs: Vec<_> = active.iter().map(|j| reference(j)).collect();
    planner.plan.status.active = Some(refs).filter(|r| !r.is_empty());
    planner.plan
}

/// Whether a job has ended: `Complete` or `Failed`.
fn over(job: &Job) -> Option<&str> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let done = conditions
        .iter()
        .find(|c| c.status == "True" && matches!(c.type_.as_str(), "Complete" | "Failed"));
    done.map(|c| c.type_.as_str())
}

/// A job as `status.active` names it.
pub(super) fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".to_owned()),
        kind: Some("Job".to_owned()),
        name: job.metadata.name.clone(),
        namespace: job.metadata.namespace.clone(),
        uid: job.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

struct Planner<'a> {
    cron: &'a CronJob,
    now: Timestamp,
    plan: Plan,
}

impl Planner<'_> {
    fn warn(&mut self, reason: &'static str, text: String) {
        self.plan.events.push((EventType::Warning, reason, text));
    }

    /// Notes what has ended since the last look.
    fn finished(&mut self, jobs: &[Arc<Job>]) {
        let was: Vec<_> = self.plan.status.active.iter().flatten().cloned().collect();
        for job in jobs {
            let Some(how) = over(job) else { continue };
            let name = job.metadata.name.clone().unwrap_or_default();
            if was.iter().any(|r| r.uid == job.metadata.uid) {
                let text = format!("Saw completed job: {name}, condition: {how}");
                self.plan
                    .events
                    .push((EventType::Normal, "SawCompletedJob", text));
            }
            let ended = job.status.as_ref().and_then(|s| s.completion_time.clone());
            let last = &mut self.plan.status.last_successful_time;
            if let Some(ended) = ended.filter(|_| how == "Complete")
                && last.as_ref().is_none_or(|l| l.0 < ended.0)
            {
                *last = Some(ended);
            }
        }
        for gone in was {
            if !jobs.iter().any(|j| j.metadata.uid == gone.uid) {
                let name = gone.name.unwrap_or_default();
                let text = format!("Active job went missing: {name}");
                self.plan
                    .events
                    .push((EventType::Normal, "MissingJob", text));
            }
        }
    }

    /// Takes away the oldest of those that have ended, beyond the history's limits.
    fn trim(&mut self, jobs: &[Arc<Job>]) {
        let spec = &self.cron.spec;
        for (how, limit) in [
            ("Complete", spec.successful_jobs_history_limit.unwrap_or(3)),
            ("Failed", spec.failed_jobs_history_limit.unwrap_or(1)),
        ] {
            let mut ended: Vec<_> = jobs.iter().filter(|j| over(j) == Some(how)).collect();
            ended.sort_by_key(|j| {
                let started = j.status.as_ref().and_then(|s| s.start_time.as_ref());
                (started.map(|t| t.0), j.metadata.name.clone())
            });
            let keep = usize::try_from(limit).unwrap_or(0);
            let surplus = ended.len().saturating_sub(keep);
            self.plan
                .delete
                .extend(ended.into_iter().take(surplus).cloned());
        }
    }

    fn schedule(&mut self, active: &mut Vec<Arc<Job>>, jobs: &[Arc<Job>]) {
        let spec = &self.cron.spec;
        if spec.suspend == Some(true) {
            return;
        }
        let zone = match spec
            .time_zone
            .as_deref()
            .map(|name| (name, cron::zone(name)))
        {
            None => TimeZone::UTC,
            Some((_, Some(zone))) => zone,
            Some((name, None)) => {
                return self.warn("UnknownTimeZone", format!("invalid timeZone: {name:?}"));
            }
        };
        let schedule = match Schedule::parse(&spec.schedule) {
            Ok(schedule) => schedule,
            Err(error) => {
                let text = format!("unparseable schedule: {:?} : {error}", spec.schedule);
                return self.warn("UnparseableSchedule", text);
            }
        };
        self.look_again(&schedule, &zone);
        let Some(due) = self.due(&schedule, &zone) else {
            return;
        };
        let name = self.job_name(due);
        let known = jobs.iter().any(|j| j.metadata.name.as_ref() == Some(&name));
        let last = self.plan.status.last_schedule_time.as_ref();
        if known || last.is_some_and(|l| l.0 == due) {
            return;
        }
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                let text = "Not starting job because prior execution is running and concurrency policy is Forbid";
                let event = (EventType::Normal, "JobAlreadyActive", text.to_owned());
                return self.plan.events.push(event);
            }
            Some("Replace") => self.plan.delete.append(active),
            _ => {}
        }
        self.plan.create = Some(self.job(name, due, &zone));
        self.plan.status.last_schedule_time = Some(Time(due));
    }

    fn look_again(&mut self, schedule: &Schedule, zone: &TimeZone) {
        let from = match schedule {
            // Counted from the last time, not from whenever it is looked at.
            Schedule::Every(_) => self.due(schedule, zone).unwrap_or_else(|| self.earliest()),
            Schedule::Fields(_) => self.now,
        };
        let next = schedule.next_after(zone, from);
        self.plan.look_again_in = next.map(|next| {
            let left = Duration::try_from(next.duration_since(self.now)).unwrap_or_default();
            left.saturating_add(SLACK)
        });
    }

    /// After when a time may still be due.
    fn earliest(&self) -> Timestamp {
        let status = self.plan.status.last_schedule_time.as_ref();
        let made = self.cron.metadata.creation_timestamp.as_ref();
        let since = status.or(made).map_or(self.now, |t| t.0);
        let Some(deadline) = self.cron.spec.starting_deadline_seconds else {
            return since;
        };
        let deadline = self.now.checked_sub(SignedDuration::from_secs(deadline));
        since.max(deadline.unwrap_or(Timestamp::MIN))
    }

    /// The latest time that has come and for which nothing was started.
    fn due(&mut self, schedule: &Schedule, zone: &TimeZone) -> Option<Timestamp> {
        let (mut due, mut missed) = (None, 0_usize);
        let mut from = self.earliest();
        while let Some(next) = schedule.next_after(zone, from).filter(|n| *n <= self.now) {
            (due, from) = (Some(next), next);
            missed += 1;
            if missed.is_multiple_of(SEARCH_MAX) {
                // It was away for long: only the last half of that time matters.
                let half = self.now.duration_since(from) / 2;
                from = from.checked_add(half).unwrap_or(from);
            }
        }
        let told = |e: &(EventType, &str, String)| e.1 == "TooManyMissedTimes";
        if missed > MISSED_TOLD && !self.plan.events.iter().any(told) {
            let text = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.warn("TooManyMissedTimes", text.to_owned());
        }
        due
    }

    /// Named by the minute, so that none is started twice for the same time.
    fn job_name(&self, due: Timestamp) -> String {
        let name = self.cron.metadata.name.as_deref().unwrap_or_default();
        format!("{name}-{}", due.as_second() / 60)
    }

    fn job(&self, name: String, due: Timestamp, zone: &TimeZone) -> Job {
        let template = &self.cron.spec.job_template;
        let meta = template.metadata.clone().unwrap_or_default();
        let mut annotations = meta.annotations.unwrap_or_default();
        let at = due.to_zoned(zone.clone());
        let at = if *zone == TimeZone::UTC {
            at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
        } else {
            at.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
        };
        annotations.insert(SCHEDULED.to_owned(), at);
        Job {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: self.cron.metadata.namespace.clone(),
                labels: meta.labels,
                annotations: Some(annotations),
                owner_references: Some(vec![controller_reference(self.cron)]),
                ..ObjectMeta::default()
            },
            spec: template.spec.clone(),
            status: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{merge, now, object};
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    fn cron(more: Value) -> CronJob {
        let mut cron = json!({
            "metadata": {"name": "tidy", "namespace": "ns", "uid": "cron",
                "creationTimestamp": "2026-01-01T23:30:00Z"},
            "spec": {"schedule": "*/10 * * * *", "concurrencyPolicy": "Allow",
                "jobTemplate": {"metadata": {"labels": {"a": "b"}},
                    "spec": {"template": {"spec": {"containers": []}}}}},
        });
        merge(&mut cron, more);
        object(cron)
    }

    fn job(name: &str, how: &str) -> Arc<Job> {
        let started = format!("2026-01-01T2{}:00:00Z", name.len() % 4);
        let mut job = json!({"metadata": {"name": name, "namespace": "ns", "uid": name},
            "status": {"startTime": started}});
        if !how.is_empty() {
            job["status"]["conditions"] = json!([{"type": how, "status": "True"}]);
        }
        if how == "Complete" {
            job["status"]["completionTime"] = "2026-01-01T23:59:00Z".into();
        }
        Arc::new(object(job))
    }

    fn check(cron: &CronJob, jobs: &[Arc<Job>], expect: Expect) {
        let plan = plan(cron, jobs, now());
        let mut steps: Vec<String> = Vec::new();
        let name = |j: &Job| j.metadata.name.clone().unwrap_or_default();
        if let Some(job) = &plan.create {
            let due = &job.metadata.annotations.clone().unwrap_or_default()[SCHEDULED];
            steps.push(format!("create {} of {due}", name(job)));
        }
        steps.extend(plan.delete.iter().map(|j| format!("delete {}", name(j))));
        steps.extend(
            plan.events
                .iter()
                .map(|(_, reason, _)| (*reason).to_owned()),
        );
        if let Some(delay) = plan.look_again_in {
            steps.push(format!("look again in {}s", delay.as_secs()));
        }
        let active = plan.status.active.iter().flatten();
        let active: Vec<_> = active.filter_map(|r| r.name.clone()).collect();
        steps.push(format!("active {active:?}"));
        expect.assert_eq(&steps.join(", "));
    }

    /// Upstream: CronJob concepts page and its controller's rules of missed times.
    #[test]
    fn the_latest_time_that_has_come_is_started_once() {
        check(
            &cron(json!({})),
            &[],
            expect!["create tidy-29455200 of 2026-01-02T00:00:00Z, look again in 600s, active []"],
        );
        let last = |at: &str| json!({"status": {"lastScheduleTime": at}});
        check(
            &cron(last("2026-01-02T00:00:00Z")),
            &[],
            expect!["look again in 600s, active []"],
        );
        check(
            &cron(json!({})),
            &[job("tidy-29455200", "")],
            expect![[r#"look again in 600s, active ["tidy-29455200"]"#]],
        );
        check(
            &cron(last("2025-12-01T00:00:00Z")),
            &[],
            expect![
                "create tidy-29455200 of 2026-01-02T00:00:00Z, TooManyMissedTimes, look again in 600s, active []"
            ],
        );
        let zone = json!({"spec": {"schedule": "5 9 * * *", "timeZone": "Asia/Tokyo"},
            "status": {"lastScheduleTime": "2025-12-31T00:05:00Z"}});
        check(
            &cron(zone),
            &[],
            expect![
                "create tidy-29453765 of 2026-01-01T09:05:00+09:00, look again in 300s, active []"
            ],
        );
        let every = json!({"spec": {"schedule": "@every 7m"}});
        check(
            &cron(every),
            &[],
            expect!["create tidy-29455198 of 2026-01-01T23:58:00Z, look again in 300s, active []"],
        );
    }

    #[test]
    fn a_time_is_missed_after_its_deadline_and_while_suspended() {
        let deadline = json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"schedule": "50 23 * * *", "startingDeadlineSeconds": 300}});
        check(
            &cron(deadline),
            &[],
            expect!["look again in 85800s, active []"],
        );
        check(
            &cron(json!({"spec": {"suspend": true}})),
            &[],
            expect!["active []"],
        );
        check(
            &cron(json!({"spec": {"schedule": "bad"}})),
            &[],
            expect!["UnparseableSchedule, active []"],
        );
        check(
            &cron(json!({"spec": {"timeZone": "Mars/North"}})),
            &[],
            expect!["UnknownTimeZone, active []"],
        );
    }

    #[test]
    fn jobs_run_beside_each_other_only_if_they_may() {
        let policy = |p: &str| cron(json!({"spec": {"concurrencyPolicy": p}}));
        let running = [job("tidy-1", "")];
        check(
            &policy("Allow"),
            &running,
            expect![[
                r#"create tidy-29455200 of 2026-01-02T00:00:00Z, look again in 600s, active ["tidy-1"]"#
            ]],
        );
        check(
            &policy("Forbid"),
            &running,
            expect![[r#"JobAlreadyActive, look again in 600s, active ["tidy-1"]"#]],
        );
        check(
            &policy("Replace"),
            &running,
            expect![
                "create tidy-29455200 of 2026-01-02T00:00:00Z, delete tidy-1, look again in 600s, active []"
            ],
        );
    }

    #[test]
    fn what_has_ended_is_told_and_the_oldest_of_it_goes() {
        let known = cron(json!({
            "spec": {"successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0, "suspend": true},
            "status": {"active": [{"name": "aa", "uid": "aa"}, {"name": "lost", "uid": "lost"}]},
        }));
        let jobs = [
            job("a", "Complete"),
            job("aa", "Complete"),
            job("aaa", "Failed"),
            job("b", ""),
        ];
        check(
            &known,
            &jobs,
            expect![[r#"delete a, delete aaa, SawCompletedJob, MissingJob, active ["b"]"#]],
        );
        let status = plan(&known, &jobs, now()).status;
        assert_eq!(
            status
                .last_successful_time
                .map(|t| t.0.to_string())
                .as_deref(),
            Some("2026-01-01T23:59:00Z")
        );
    }
}

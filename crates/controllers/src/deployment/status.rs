//! A Deployment's status and conditions: pure. Reasons and messages are those that
//! `kubectl rollout status` and users know.

use super::amounts::{self, available, desired, fenceposts, replicas};
use client::k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet,
};
use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Duration;

pub(super) const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const REPLICA_FAILURE: &str = "ReplicaFailure";
/// Reason: the rollout is complete.
const NEW_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";

/// The counts, and the conditions as they were but for Available.
pub(super) fn counts(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    all: &[Arc<ReplicaSet>],
    now: Timestamp,
) -> DeploymentStatus {
    let sum = |of: fn(&ReplicaSet) -> i32| all.iter().map(|s| of(s)).sum::<i32>();
    let has = |s: &ReplicaSet| s.status.as_ref().map_or(0, |s| s.replicas);
    let ready = |s: &ReplicaSet| {
        s.status
            .as_ref()
            .and_then(|s| s.ready_replicas)
            .unwrap_or(0)
    };
    let going = |s: &ReplicaSet| {
        s.status
            .as_ref()
            .and_then(|s| s.terminating_replicas)
            .unwrap_or(0)
    };
    let serving = sum(available);
    let known = deployment.status.clone().unwrap_or_default();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(sum(has)),
        updated_replicas: some(new.map_or(0, |s| has(s))),
        ready_replicas: some(sum(ready)),
        available_replicas: some(serving),
        unavailable_replicas: some((sum(replicas) - serving).max(0)),
        terminating_replicas: Some(sum(going)),
        collision_count: known.collision_count,
        conditions: known.conditions,
    };
    let (_, lacking) = fenceposts(deployment);
    let condition = if serving >= desired(deployment) - lacking {
        condition(
            AVAILABLE,
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
            now,
        )
    } else {
        condition(
            AVAILABLE,
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
            now,
        )
    };
    set(&mut status, condition);
    status
}

/// Brings the Progressing and ReplicaFailure conditions up to date. When to look again,
/// should nothing happen until then.
pub(super) fn progress(
    deployment: &Deployment,
    status: &mut DeploymentStatus,
    new: Option<&Arc<ReplicaSet>>,
    all: &[Arc<ReplicaSet>],
    now: Timestamp,
) -> Option<Duration> {
    let Some(deadline) = deadline(deployment) else {
        remove(status, PROGRESSING);
        fail(status, new, all);
        return None;
    };
    let settled = status.replicas == status.updated_replicas
        && reason(status, PROGRESSING) == Some(NEW_AVAILABLE);
    if !settled {
        let subject = new.and_then(|s| s.metadata.name.as_ref()).map_or_else(
            || format!("Deployment \"{}\"", name(deployment)),
            |set| format!("ReplicaSet \"{set}\""),
        );
        if is_complete(deployment, status) {
            let message = format!("{subject} has successfully progressed.");
            set(
                status,
                condition(PROGRESSING, "True", NEW_AVAILABLE, &message, now),
            );
        } else if has_progressed(deployment, status) {
            let message = format!("{subject} is progressing.");
            let since = find(status, PROGRESSING)
                .filter(|c| c.status.as_deref() == Some("True"))
                .and_then(|c| c.last_transition_time.clone());
            let mut updated = condition(PROGRESSING, "True", "ReplicaSetUpdated", &message, now);
            if since.is_some() {
                updated.last_transition_time = since;
            }
            // Even with the same reason, so that the deadline counts from now.
            remove(status, PROGRESSING);
            set(status, updated);
        } else if due_in(status, deadline, now) == Some(Duration::ZERO) {
            let message = format!("{subject} has timed out progressing.");
            set(
                status,
                condition(PROGRESSING, "False", TIMED_OUT, &message, now),
            );
        }
    }
    fail(status, new, all);
    due_in(status, deadline, now)
}

/// Adds the condition that says that a rollout stands still, or goes on.
pub(super) fn pause(deployment: &Deployment, status: &mut DeploymentStatus, now: Timestamp) {
    if deadline(deployment).is_none() || reason(status, PROGRESSING) == Some(TIMED_OUT) {
        return;
    }
    let is_paused = deployment.spec.paused == Some(true);
    let was_paused = reason(status, PROGRESSING) == Some("DeploymentPaused");
    let new = match (is_paused, was_paused) {
        (true, false) => ("DeploymentPaused", "Deployment is paused"),
        (false, true) => ("DeploymentResumed", "Deployment is resumed"),
        _ => return,
    };
    set(status, condition(PROGRESSING, "Unknown", new.0, new.1, now));
}

/// Says that a new set was created or found.
pub(super) fn new_set(status: &mut DeploymentStatus, set_name: &str, found: bool, now: Timestamp) {
    let (reason, what) = if found {
        ("FoundNewReplicaSet", "Found")
    } else {
        ("NewReplicaSetCreated", "Created")
    };
    let message = format!("{what} new replica set \"{set_name}\"");
    set(
        status,
        condition(PROGRESSING, "True", reason, &message, now),
    );
}

/// Says that the new set could not be created.
pub(super) fn creation_failed(
    status: &mut DeploymentStatus,
    set_name: &str,
    text: &str,
    now: Timestamp,
) {
    let message = format!("Failed to create new replica set \"{set_name}\": {text}");
    set(
        status,
        condition(PROGRESSING, "False", "ReplicaSetCreateError", &message, now),
    );
}

/// Whether all pods are new and serve, and no others are left.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = desired(deployment);
    [
        status.updated_replicas,
        status.replicas,
        status.available_replicas,
    ]
    .iter()
    .all(|n| n.unwrap_or(0) == wanted)
        && status.observed_generation >= deployment.metadata.generation
}

/// Whether nothing is under way that would change the status soon.
pub(super) fn is_at_rest(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    is_complete(deployment, status)
        && status.ready_replicas == status.replicas
        && status.terminating_replicas.unwrap_or(0) == 0
}

/// Whether a Deployment has a Progressing condition.
pub(super) fn has_progress_condition(status: &DeploymentStatus) -> bool {
    find(status, PROGRESSING).is_some()
}

/// Whether progress is looked after at all.
pub(super) fn has_deadline(deployment: &Deployment) -> bool {
    deadline(deployment).is_some()
}

fn has_progressed(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let known = deployment.status.clone().unwrap_or_default();
    let n = |value: Option<i32>| value.unwrap_or(0);
    let old_pods = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(status.updated_replicas) > n(known.updated_replicas)
        || old_pods(status) < old_pods(&known)
        || n(status.ready_replicas) > n(known.ready_replicas)
        || n(status.available_replicas) > n(known.available_replicas)
}

/// How long until a rollout that makes no progress is late; none when that is not
/// looked after or has been said.
fn due_in(status: &DeploymentStatus, deadline: SignedDuration, now: Timestamp) -> Option<Duration> {
    let condition = find(status, PROGRESSING)?;
    if matches!(
        condition.reason.as_deref(),
        Some(NEW_AVAILABLE | TIMED_OUT | "DeploymentPaused")
    ) {
        return None;
    }
    let from = condition
        .last_update_time
        .as_ref()
        .or(condition.last_transition_time.as_ref())?;
    let left = deadline.checked_sub(now.duration_since(from.0))?;
    Some(Duration::try_from(left).unwrap_or(Duration::ZERO))
}

/// Takes over the sets' ReplicaFailure: the new one's before the old ones'.
fn fail(status: &mut DeploymentStatus, new: Option<&Arc<ReplicaSet>>, all: &[Arc<ReplicaSet>]) {
    let failure = new
        .into_iter()
        .chain(all)
        .flat_map(|s| s.status.iter())
        .flat_map(|s| s.conditions.iter().flatten())
        .find(|c| c.type_.as_deref() == Some(REPLICA_FAILURE));
    match failure {
        Some(failure) => set(
            status,
            DeploymentCondition {
                type_: failure.type_.clone(),
                status: failure.status.clone(),
                reason: failure.reason.clone(),
                message: failure.message.clone(),
                last_transition_time: failure.last_transition_time.clone(),
                last_update_time: failure.last_transition_time.clone(),
            },
        ),
        None => remove(status, REPLICA_FAILURE),
    }
}

fn deadline(deployment: &Deployment) -> Option<SignedDuration> {
    deployment
        .spec
        .progress_deadline_seconds
        .filter(|seconds| *seconds != i32::MAX)
        .map(|seconds| SignedDuration::from_secs(i64::from(seconds)))
}

fn condition(
    kind: &str,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: Some(kind.to_owned()),
        status: Some(value.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(Time(now)),
        last_update_time: Some(Time(now)),
    }
}

/// Puts a condition in, unless one of the same status and reason is there.
fn set(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    let conditions = status.conditions.get_or_insert_default();
    let Some(known) = conditions.iter_mut().find(|c| c.type_ == new.type_) else {
        conditions.push(new);
        return;
    };
    if known.status == new.status {
        if known.reason == new.reason {
            return;
        }
        new.last_transition_time = known.last_transition_time.clone();
    }
    *known = new;
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|c| c.type_.as_deref() != Some(kind));
    }
}

fn find<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_.as_deref() == Some(kind))
}

fn reason<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a str> {
    find(status, kind)?.reason.as_deref()
}

fn name(deployment: &Deployment) -> &str {
    deployment.metadata.name.as_deref().unwrap_or_default()
}

/// Zero is left out, as upstream does.
fn some(n: i32) -> Option<i32> {
    (n != 0).then_some(n)
}

/// How many pods of which the old sets are asked for.
pub(super) fn size(sets: &[Arc<ReplicaSet>]) -> i32 {
    sets.iter().map(|s| amounts::replicas(s)).sum()
}

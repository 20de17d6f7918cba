//! apps, batch, autoscaling.

use super::pod::template;
use crate::access::{at, default, default_text, items_mut, object_entry, object_mut, text};
use serde_json::{Value, json};

/// `Deployment`.
pub(crate) fn deployment(v: &mut Value) {
    let Some(spec) = object_mut(v, "spec") else {
        return;
    };
    default(spec, "replicas", 1);
    default(spec, "revisionHistoryLimit", 10);
    default(spec, "progressDeadlineSeconds", 600);
    if let Some(strategy) = object_entry(spec, "strategy") {
        default_text(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = object_entry(strategy, "rollingUpdate")
        {
            default(rolling, "maxUnavailable", "25%");
            default(rolling, "maxSurge", "25%");
        }
    }
    template(spec, "template");
}

/// `ReplicaSet`.
pub(crate) fn replica_set(v: &mut Value) {
    if let Some(spec) = object_mut(v, "spec") {
        default(spec, "replicas", 1);
        template(spec, "template");
    }
}

/// `ReplicationController`: labels and selector come from the template.
pub(crate) fn replication_controller(v: &mut Value) {
    let labels = at(v, "spec.template.metadata.labels").clone();
    if labels.as_object().is_some_and(|l| !l.is_empty()) {
        if let Some(meta) = object_entry(v, "metadata") {
            default(meta, "labels", labels.clone());
        }
        if let Some(spec) = object_mut(v, "spec") {
            default(spec, "selector", labels);
        }
    }
    replica_set(v);
}

/// `StatefulSet`.
pub(crate) fn stateful_set(v: &mut Value) {
    let Some(spec) = object_mut(v, "spec") else {
        return;
    };
    default_text(spec, "podManagementPolicy", "OrderedReady");
    if let Some(strategy) = object_entry(spec, "updateStrategy") {
        default_text(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = object_entry(strategy, "rollingUpdate")
        {
            default(rolling, "partition", 0);
        }
    }
    if let Some(policy) = object_entry(spec, "persistentVolumeClaimRetentionPolicy") {
        default_text(policy, "whenDeleted", "Retain");
        default_text(policy, "whenScaled", "Retain");
    }
    default(spec, "replicas", 1);
    default(spec, "revisionHistoryLimit", 10);
    for claim in items_mut(spec, "volumeClaimTemplates") {
        default_text(claim, "apiVersion", "v1");
        default_text(claim, "kind", "PersistentVolumeClaim");
        super::cluster::persistent_volume_claim(claim);
    }
    template(spec, "template");
}

/// `DaemonSet`.
pub(crate) fn daemon_set(v: &mut Value) {
    let Some(spec) = object_mut(v, "spec") else {
        return;
    };
    if let Some(strategy) = object_entry(spec, "updateStrategy") {
        default_text(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = object_entry(strategy, "rollingUpdate")
        {
            default(rolling, "maxUnavailable", 1);
            default(rolling, "maxSurge", 0);
        }
    }
    default(spec, "revisionHistoryLimit", 10);
    template(spec, "template");
}

/// `Job`.
pub(crate) fn job(v: &mut Value) {
    job_labels(v);
    let Some(spec) = object_mut(v, "spec") else {
        return;
    };
    if at(spec, "completions").is_null() && at(spec, "parallelism").is_null() {
        default(spec, "completions", 1);
    }
    default(spec, "parallelism", 1);
    let limit = if at(spec, "backoffLimitPerIndex").is_null() {
        6
    } else {
        i32::MAX
    };
    default(spec, "backoffLimit", limit);
    default_text(spec, "completionMode", "NonIndexed");
    default(spec, "suspend", false);
    default(spec, "manualSelector", false);
    let replacement = if at(spec, "podFailurePolicy").is_null() {
        "TerminatingOrFailed"
    } else {
        "Failed"
    };
    default_text(spec, "podReplacementPolicy", replacement);
    if let Some(policy) = object_mut(spec, "podFailurePolicy") {
        for rule in items_mut(policy, "rules") {
            for c in items_mut(rule, "onPodConditions") {
                default_text(c, "status", "True");
            }
        }
    }
    template(spec, "template");
}

/// A job without labels of its own has those of its pods.
pub(crate) fn job_labels(v: &mut Value) {
    let labels = at(v, "spec.template.metadata.labels");
    let own = at(v, "metadata.labels");
    if labels.as_object().is_some_and(|l| !l.is_empty()) && crate::access::is_empty(own) {
        let labels = labels.clone();
        if let Some(meta) = object_entry(v, "metadata") {
            meta["labels"] = labels;
        }
    }
}

/// `CronJob`: of the job only its pods are defaulted.
pub(crate) fn cron_job(v: &mut Value) {
    let Some(spec) = object_mut(v, "spec") else {
        return;
    };
    default_text(spec, "concurrencyPolicy", "Allow");
    default(spec, "suspend", false);
    default(spec, "successfulJobsHistoryLimit", 3);
    default(spec, "failedJobsHistoryLimit", 1);
    if let Some(job) = object_mut(spec, "jobTemplate").and_then(|j| object_mut(j, "spec")) {
        template(job, "template");
    }
}

/// `HorizontalPodAutoscaler` v1.
pub(crate) fn autoscaler_v1(v: &mut Value) {
    if let Some(spec) = object_mut(v, "spec") {
        default(spec, "minReplicas", 1);
    }
}

/// `HorizontalPodAutoscaler` v2.
pub(crate) fn autoscaler_v2(v: &mut Value) {
    let Some(spec) = object_mut(v, "spec") else {
        return;
    };
    default(spec, "minReplicas", 1);
    if crate::access::is_empty(at(spec, "metrics")) {
        spec["metrics"] = json!([{
            "type": "Resource",
            "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
        }]);
    }
    let Some(behavior) = object_mut(spec, "behavior") else {
        return;
    };
    let doubling = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    if let Some(up) = object_entry(behavior, "scaleUp") {
        default(up, "stabilizationWindowSeconds", 0);
        default_text(up, "selectPolicy", "Max");
        default(
            up,
            "policies",
            json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, doubling]),
        );
    }
    if let Some(down) = object_entry(behavior, "scaleDown") {
        default_text(down, "selectPolicy", "Max");
        default(down, "policies", json!([doubling]));
    }
}

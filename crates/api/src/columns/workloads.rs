//! apps, batch, autoscaling, policy.

use super::{
    NONE, age, condition_is_true, containers, count, deleting, integer, labels, or, scalar,
    selector, since, string, wide,
};
use crate::Column;
use crate::access::{at, int, list, text};
use crate::columns::age::unix_seconds;
use serde_json::{Value, json};

pub(crate) const DEPLOYMENT: &[Column] = &[
    string("Ready"),
    integer("Up-to-date"),
    integer("Available"),
    string("Age"),
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

pub(crate) fn deployment(v: &Value, now: i64) -> Vec<Value> {
    let [names, images] = containers(at(v, "spec.template.spec"));
    vec![
        json!(ready_of(v)),
        json!(int(v, "status.updatedReplicas")),
        json!(int(v, "status.availableReplicas")),
        age(v, now),
        names,
        images,
        json!(selector(at(v, "spec.selector"))),
    ]
}

fn ready_of(v: &Value) -> String {
    format!(
        "{}/{}",
        int(v, "status.readyReplicas"),
        int(v, "spec.replicas")
    )
}

pub(crate) const REPLICA_SET: &[Column] = &[
    integer("Desired"),
    integer("Current"),
    integer("Ready"),
    string("Age"),
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

pub(crate) fn replica_set(v: &Value, now: i64) -> Vec<Value> {
    replicas(v, now, selector(at(v, "spec.selector")))
}

/// The same columns; the selector is a plain map.
pub(crate) fn replication_controller(v: &Value, now: i64) -> Vec<Value> {
    replicas(v, now, labels(at(v, "spec.selector")))
}

fn replicas(v: &Value, now: i64, selector: String) -> Vec<Value> {
    let [names, images] = containers(at(v, "spec.template.spec"));
    vec![
        json!(int(v, "spec.replicas")),
        json!(int(v, "status.replicas")),
        json!(int(v, "status.readyReplicas")),
        age(v, now),
        names,
        images,
        json!(selector),
    ]
}

pub(crate) const STATEFUL_SET: &[Column] = &[
    string("Ready"),
    string("Age"),
    wide("Containers"),
    wide("Images"),
];

pub(crate) fn stateful_set(v: &Value, now: i64) -> Vec<Value> {
    let [names, images] = containers(at(v, "spec.template.spec"));
    vec![json!(ready_of(v)), age(v, now), names, images]
}

pub(crate) const DAEMON_SET: &[Column] = &[
    integer("Desired"),
    integer("Current"),
    integer("Ready"),
    integer("Up-to-date"),
    integer("Available"),
    string("Node Selector"),
    string("Age"),
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

pub(crate) fn daemon_set(v: &Value, now: i64) -> Vec<Value> {
    let [names, images] = containers(at(v, "spec.template.spec"));
    vec![
        json!(int(v, "status.desiredNumberScheduled")),
        json!(int(v, "status.currentNumberScheduled")),
        json!(int(v, "status.numberReady")),
        json!(int(v, "status.updatedNumberScheduled")),
        json!(int(v, "status.numberAvailable")),
        json!(labels(at(v, "spec.template.spec.nodeSelector"))),
        age(v, now),
        names,
        images,
        json!(selector(at(v, "spec.selector"))),
    ]
}

pub(crate) const JOB: &[Column] = &[
    string("Status"),
    string("Completions"),
    string("Duration"),
    string("Age"),
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

pub(crate) fn job(v: &Value, now: i64) -> Vec<Value> {
    let succeeded = int(v, "status.succeeded");
    let completions = match at(v, "spec.completions").as_i64() {
        Some(n) => format!("{succeeded}/{n}"),
        None => match int(v, "spec.parallelism") {
            n if n > 1 => format!("{succeeded}/1 of {n}"),
            _ => format!("{succeeded}/1"),
        },
    };
    let status = ["Complete", "Failed"]
        .into_iter()
        .find(|c| condition_is_true(v, c))
        .or(deleting(v).then_some("Terminating"))
        .or_else(|| {
            let others = ["Suspended", "FailureTarget", "SuccessCriteriaMet"];
            others.into_iter().find(|c| condition_is_true(v, c))
        })
        .unwrap_or("Running");
    let duration = unix_seconds(at(v, "status.startTime")).map_or(String::new(), |start| {
        let end = unix_seconds(at(v, "status.completionTime")).unwrap_or(now);
        super::human_duration(end - start)
    });
    let [names, images] = containers(at(v, "spec.template.spec"));
    vec![
        json!(status),
        json!(completions),
        json!(duration),
        age(v, now),
        names,
        images,
        json!(selector(at(v, "spec.selector"))),
    ]
}

pub(crate) const CRON_JOB: &[Column] = &[
    string("Schedule"),
    string("Timezone"),
    string("Suspend"),
    integer("Active"),
    string("Last Schedule"),
    string("Age"),
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

pub(crate) fn cron_job(v: &Value, now: i64) -> Vec<Value> {
    let last = at(v, "status.lastScheduleTime");
    let last = if last.is_null() {
        NONE.to_owned()
    } else {
        since(last, now)
    };
    let [names, images] = containers(at(v, "spec.jobTemplate.spec.template.spec"));
    let suspended = match at(v, "spec.suspend") {
        Value::Bool(true) => "True",
        Value::Bool(false) => "False",
        _ => super::UNSET,
    };
    vec![
        json!(text(v, "spec.schedule")),
        or(v, "spec.timeZone", NONE),
        json!(suspended),
        json!(list(v, "status.active").len()),
        json!(last),
        age(v, now),
        names,
        images,
        json!(selector(at(v, "spec.jobTemplate.spec.selector"))),
    ]
}

pub(crate) const CONTROLLER_REVISION: &[Column] =
    &[string("Controller"), string("Revision"), string("Age")];

pub(crate) fn controller_revision(v: &Value, now: i64) -> Vec<Value> {
    let owner = list(v, "metadata.ownerReferences")
        .iter()
        .find(|o| at(o, "controller") == true);
    let owner = owner.map_or(NONE.to_owned(), |o| {
        let (group, _) = text(o, "apiVersion").split_once('/').unwrap_or(("", ""));
        let kind = text(o, "kind").to_lowercase();
        match group {
            "" => format!("{kind}/{}", text(o, "name")),
            group => format!("{kind}.{group}/{}", text(o, "name")),
        }
    });
    vec![json!(owner), json!(int(v, "revision")), age(v, now)]
}

pub(crate) const AUTOSCALER: &[Column] = &[
    string("Reference"),
    string("Targets"),
    string("MinPods"),
    string("MaxPods"),
    string("Replicas"),
    string("Age"),
];

pub(crate) fn autoscaler(v: &Value, now: i64) -> Vec<Value> {
    let reference = format!(
        "{}/{}",
        text(v, "spec.scaleTargetRef.kind"),
        text(v, "spec.scaleTargetRef.name")
    );
    let minimum = match at(v, "spec.minReplicas") {
        Value::Null => super::UNSET.to_owned(),
        n => n.to_string(),
    };
    vec![
        json!(reference),
        json!(metrics(v)),
        json!(minimum),
        json!(int(v, "spec.maxReplicas")),
        json!(int(v, "status.currentReplicas")),
        age(v, now),
    ]
}

fn metrics(v: &Value) -> String {
    // Version 1 knows one metric only.
    if let Some(target) = at(v, "spec.targetCPUUtilizationPercentage").as_i64() {
        let now = at(v, "status.currentCPUUtilizationPercentage");
        let now = now
            .as_i64()
            .map_or("<unknown>".to_owned(), |n| format!("{n}%"));
        return format!("cpu: {now}/{target}%");
    }
    let shown: Vec<String> = list(v, "spec.metrics")
        .iter()
        .enumerate()
        .map(|(i, m)| metric(m, list(v, "status.currentMetrics").get(i)))
        .collect();
    match &shown[..] {
        [] => NONE.to_owned(),
        [a, b, rest @ ..] if !rest.is_empty() => format!("{a}, {b} + {} more...", rest.len()),
        all => all.join(", "),
    }
}

fn metric(m: &Value, current: Option<&Value>) -> String {
    let source = match text(m, "type") {
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        "Pods" => "pods",
        "Object" => "object",
        "External" => "external",
        _ => return "<unknown type>".to_owned(),
    };
    let m = at(m, source);
    let now = current.map_or(&Value::Null, |c| at(c, &format!("{source}.current")));
    let value = |v: &Value, utilization: bool| {
        let (field, unit) = if utilization {
            ("averageUtilization", "%")
        } else if at(v, "averageValue").is_null() {
            ("value", "")
        } else {
            ("averageValue", "")
        };
        match at(v, field) {
            Value::Null => None,
            n => Some(format!("{}{unit}", scalar(n))),
        }
    };
    let utilization = !at(m, "target.averageUtilization").is_null();
    let now = value(now, utilization).unwrap_or_else(|| "<unknown>".to_owned());
    let target = value(at(m, "target"), utilization).unwrap_or_else(|| "<auto>".to_owned());
    match source {
        "resource" | "containerResource" => format!("{}: {now}/{target}", text(m, "name")),
        _ => format!("{now}/{target}"),
    }
}

pub(crate) const DISRUPTION_BUDGET: &[Column] = &[
    string("Min Available"),
    string("Max Unavailable"),
    integer("Allowed Disruptions"),
    string("Age"),
];

pub(crate) fn disruption_budget(v: &Value, now: i64) -> Vec<Value> {
    let limit = |path: &str| match at(v, path) {
        Value::Null => json!("N/A"),
        n => json!(scalar(n)),
    };
    vec![
        limit("spec.minAvailable"),
        limit("spec.maxUnavailable"),
        json!(int(v, "status.disruptionsAllowed")),
        age(v, now),
    ]
}

pub(crate) const POD_TEMPLATE: &[Column] =
    &[string("Containers"), string("Images"), string("Pod Labels")];

pub(crate) fn pod_template(v: &Value, _now: i64) -> Vec<Value> {
    let [names, images] = containers(at(v, "template.spec"));
    vec![
        names,
        images,
        json!(labels(at(v, "template.metadata.labels"))),
    ]
}

pub(crate) const WEBHOOKS: &[Column] = &[integer("Webhooks"), string("Age")];

pub(crate) fn webhooks(v: &Value, now: i64) -> Vec<Value> {
    vec![json!(count(at(v, "webhooks"))), age(v, now)]
}

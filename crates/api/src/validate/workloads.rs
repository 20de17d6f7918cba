//! apps, batch, autoscaling, policy.

use super::{Check, pod::template, policies};
use crate::access::{at, is_empty, list, object_mut, text};
use apimachinery::status::FieldError;
use serde_json::{Value, json};
use std::borrow::Cow;

const ALWAYS: &[&str] = &["Always"];
const FINITE: &[&str] = &["OnFailure", "Never"];
/// 63 less the suffix of the pods' names.
const CRON_NAME_BYTES_MAX: usize = 52;

/// `Deployment`.
pub(crate) fn deployment(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    replicated(&mut c, v, "deployment");
    for name in [
        "minReadySeconds",
        "revisionHistoryLimit",
        "progressDeadlineSeconds",
    ] {
        c.not_negative(format!("spec.{name}"), at(v, &format!("spec.{name}")));
    }
    let (deadline, ready) = (
        at(v, "spec.progressDeadlineSeconds"),
        crate::access::int(v, "spec.minReadySeconds"),
    );
    if deadline.as_i64().is_some_and(|d| d <= ready) {
        c.invalid(
            "spec.progressDeadlineSeconds",
            deadline,
            "must be greater than minReadySeconds",
        );
    }
    let strategy = at(v, "spec.strategy");
    c.one_of(
        "spec.strategy.type",
        at(strategy, "type"),
        &["Recreate", "RollingUpdate"],
    );
    let rolling = at(strategy, "rollingUpdate");
    match text(strategy, "type") {
        "Recreate" if !rolling.is_null() => c.forbidden(
            "spec.strategy.rollingUpdate",
            "may not be specified when strategy `type` is 'Recreate'",
        ),
        "RollingUpdate" => rolling_update(&mut c, "spec.strategy.rollingUpdate", rolling),
        _ => {}
    }
    c.0
}

fn rolling_update(c: &mut Check, path: &str, v: &Value) {
    for name in ["maxUnavailable", "maxSurge"] {
        share(c, &format!("{path}.{name}"), at(v, name));
    }
    let zero = |name: &str| {
        let v = at(v, name);
        v == 0 || v == "0%" || v == "0"
    };
    if zero("maxUnavailable") && zero("maxSurge") {
        c.invalid(
            format!("{path}.maxUnavailable"),
            at(v, "maxUnavailable"),
            "may not be 0 when `maxSurge` is 0",
        );
    }
}

/// A count or a percentage.
pub(super) fn share(c: &mut Check, path: &str, v: &Value) {
    match v {
        Value::Number(_) => c.not_negative(path, v),
        Value::String(s) => {
            let percent = s.strip_suffix('%').and_then(|n| n.parse::<u32>().ok());
            match percent {
                None => c.invalid(
                    path,
                    v,
                    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
                ),
                Some(n) if n > 100 && path.ends_with("maxUnavailable") => {
                    c.invalid(path, v, "must not be greater than 100%");
                }
                Some(_) => {}
            }
        }
        _ => {}
    }
}

/// Replicas, a selector that is not empty, and a template that it matches.
fn replicated(c: &mut Check, v: &Value, who: &str) {
    c.not_negative("spec.replicas", at(v, "spec.replicas"));
    let labels = at(v, "spec.template.metadata.labels");
    let given = at(v, "spec.selector");
    if given.is_null() {
        c.required("spec.selector", "");
    } else {
        let selector = c.selector("spec.selector", given);
        if is_empty(at(given, "matchLabels")) && is_empty(at(given, "matchExpressions")) {
            c.invalid(
                "spec.selector",
                given,
                format!("empty selector is invalid for {who}"),
            );
        } else if selector.is_some_and(|s| !s.matches_value(labels)) {
            c.invalid(
                "spec.template.metadata.labels",
                labels,
                "`selector` does not match template `labels`",
            );
        }
    }
    if at(v, "spec.template").is_null() {
        c.required("spec.template", "");
    } else {
        let of_pods = with_claims(v);
        template(c, "spec.template", &of_pods, ALWAYS);
    }
}

/// A template of pods with the volumes that a `StatefulSet`'s claims become.
fn with_claims(v: &Value) -> Cow<'_, Value> {
    let mut of_pods = Cow::Borrowed(at(v, "spec.template"));
    for claim in list(v, "spec.volumeClaimTemplates") {
        let name = at(claim, "metadata.name");
        let known = |volume: &Value| at(volume, "name") == name;
        if list(&of_pods, "spec.volumes").iter().any(known) {
            continue;
        }
        let volume = json!({"name": name, "persistentVolumeClaim": {"claimName": name}});
        let Some(spec) = object_mut(of_pods.to_mut(), "spec") else {
            break;
        };
        match spec.get_mut("volumes").and_then(Value::as_array_mut) {
            Some(volumes) => volumes.push(volume),
            None => spec["volumes"] = json!([volume]),
        }
    }
    of_pods
}

/// `Deployment`, `ReplicaSet`, `DaemonSet`: the selector stays.
pub(crate) fn selector_stays(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    c.immutable("spec.selector", new, old);
    c.0
}

/// `ReplicaSet`.
pub(crate) fn replica_set(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    replicated(&mut c, v, "deployment");
    c.not_negative("spec.minReadySeconds", at(v, "spec.minReadySeconds"));
    c.0
}

/// `ReplicationController`: its selector is a plain map.
pub(crate) fn replication_controller(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    for name in ["replicas", "minReadySeconds"] {
        c.not_negative(format!("spec.{name}"), at(v, &format!("spec.{name}")));
    }
    let (selector, labels) = (
        at(v, "spec.selector"),
        at(v, "spec.template.metadata.labels"),
    );
    if is_empty(selector) {
        c.required("spec.selector", "");
    }
    if at(v, "spec.template").is_null() {
        c.required("spec.template", "");
        return c.0;
    }
    let mut wanted = selector.as_object().into_iter().flatten();
    if !wanted.all(|(key, value)| labels.get(key) == Some(value)) {
        c.invalid(
            "spec.template.metadata.labels",
            labels,
            "`selector` does not match template `labels`",
        );
    }
    template(&mut c, "spec.template", at(v, "spec.template"), ALWAYS);
    if !at(v, "spec.template.spec.activeDeadlineSeconds").is_null() {
        c.forbidden(
            "spec.template.spec.activeDeadlineSeconds",
            "activeDeadlineSeconds in ReplicationController is not Supported",
        );
    }
    c.0
}

/// `PodTemplate`.
pub(crate) fn pod_template(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let all = ["Always", "OnFailure", "Never"];
    template(&mut c, "template", at(v, "template"), &all);
    c.0
}

/// `ControllerRevision`.
pub(crate) fn controller_revision(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    c.not_negative("revision", at(v, "revision"));
    match at(v, "data") {
        Value::Null => c.required("data", "data is mandatory"),
        Value::Object(_) => {}
        other => c.invalid("data", other, "data is not a valid JSON object"),
    }
    c.0
}

/// What a `ControllerRevision` keeps stays.
pub(crate) fn controller_revision_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    c.immutable("data", new, old);
    c.0
}

/// `DaemonSet`.
pub(crate) fn daemon_set(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    replicated(&mut c, v, "daemonset");
    c.one_of(
        "spec.updateStrategy.type",
        at(v, "spec.updateStrategy.type"),
        &["RollingUpdate", "OnDelete"],
    );
    policies::daemon_set(&mut c, v);
    c.0
}

/// `StatefulSet`.
pub(crate) fn stateful_set(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    c.one_of(
        "spec.podManagementPolicy",
        at(v, "spec.podManagementPolicy"),
        &["OrderedReady", "Parallel"],
    );
    c.one_of(
        "spec.updateStrategy.type",
        at(v, "spec.updateStrategy.type"),
        &["RollingUpdate", "OnDelete"],
    );
    replicated(&mut c, v, "statefulset");
    policies::stateful_set(&mut c, v);
    c.0
}

/// Of a `StatefulSet`'s spec only a few fields may change.
pub(crate) fn stateful_set_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let frozen = |v: &Value| {
        let mut spec = at(v, "spec").clone();
        if let Some(map) = spec.as_object_mut() {
            for name in [
                "replicas",
                "ordinals",
                "template",
                "updateStrategy",
                "revisionHistoryLimit",
                "persistentVolumeClaimRetentionPolicy",
                "minReadySeconds",
            ] {
                map.remove(name);
            }
        }
        spec
    };
    let mut c = Check::default();
    if frozen(new) != frozen(old) {
        c.forbidden(
            "spec",
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        );
    }
    c.0
}

/// `Job`.
pub(crate) fn job(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    job_spec(&mut c, "spec", at(v, "spec"));
    let labels = at(v, "spec.template.metadata.labels");
    match at(v, "spec.selector") {
        Value::Null => c.required("spec.selector", ""),
        given => {
            if c.selector("spec.selector", given)
                .is_some_and(|s| !s.matches_value(labels))
            {
                c.invalid(
                    "spec.template.metadata.labels",
                    labels,
                    "`selector` does not match template `labels`",
                );
            }
        }
    }
    c.0
}

fn job_spec(c: &mut Check, path: &str, v: &Value) {
    for name in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
    ] {
        c.not_negative(format!("{path}.{name}"), at(v, name));
    }
    c.optional_one_of(
        format!("{path}.completionMode"),
        at(v, "completionMode"),
        &["Indexed", "NonIndexed"],
    );
    if text(v, "completionMode") == "Indexed" && at(v, "completions").is_null() {
        c.required(
            format!("{path}.completions"),
            "when completion mode is Indexed",
        );
    }
    if at(v, "template").is_null() {
        return c.required(format!("{path}.template"), "");
    }
    policies::job(c, path, v);
    let policy = text(v, "template.spec.restartPolicy");
    // Upstream words it like this because jobs once defaulted to no policy.
    if policy == "Always" || policy.is_empty() {
        c.add(FieldError {
            field: format!("{path}.template.spec.restartPolicy"),
            ..if policy.is_empty() {
                FieldError::required("", "valid values: \"OnFailure\", \"Never\"")
            } else {
                FieldError::not_supported("", &json!(policy), FINITE)
            }
        });
        let mut v = at(v, "template").clone();
        v["spec"]["restartPolicy"] = "Never".into();
        template(c, &format!("{path}.template"), &v, FINITE);
    } else {
        template(c, &format!("{path}.template"), at(v, "template"), FINITE);
    }
}

/// A `Job`'s shape is fixed; how much of it runs is not.
pub(crate) fn job_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let elastic = text(new, "spec.completionMode") == "Indexed"
        && at(new, "spec.completions") == at(new, "spec.parallelism");
    if !elastic {
        c.immutable("spec.completions", new, old);
    }
    for path in [
        "spec.selector",
        "spec.completionMode",
        "spec.podFailurePolicy",
        "spec.backoffLimitPerIndex",
        "spec.managedBy",
        "spec.successPolicy",
    ] {
        c.immutable(path, new, old);
    }
    // A job that has not begun may still be told where to run.
    let unstarted = at(old, "spec.suspend") == true && at(old, "status.startTime").is_null();
    let frozen = |v: &Value| {
        let mut t = at(v, "spec.template").clone();
        if unstarted {
            if let Some(spec) = t.get_mut("spec").and_then(Value::as_object_mut) {
                for name in ["nodeSelector", "affinity", "tolerations", "schedulingGates"] {
                    spec.remove(name);
                }
            }
            if let Some(m) = t.get_mut("metadata").and_then(Value::as_object_mut) {
                m.remove("labels");
                m.remove("annotations");
            }
        }
        t
    };
    if frozen(new) != frozen(old) {
        c.invalid("spec.template", at(new, "spec.template"), super::IMMUTABLE);
    }
    c.0
}

/// `CronJob`.
pub(crate) fn cron_job(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    if text(v, "metadata.name").len() > CRON_NAME_BYTES_MAX {
        c.invalid(
            "metadata.name",
            at(v, "metadata.name"),
            format!("must be no more than {CRON_NAME_BYTES_MAX} characters"),
        );
    }
    let schedule = text(v, "spec.schedule");
    if schedule.is_empty() {
        c.required("spec.schedule", "");
    } else if schedule.contains("TZ") {
        c.invalid(
            "spec.schedule",
            at(v, "spec.schedule"),
            "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        );
    } else if let Err(e) = crate::cron::Schedule::parse(schedule) {
        c.invalid("spec.schedule", at(v, "spec.schedule"), e);
    }
    let zone = at(v, "spec.timeZone");
    match zone.as_str() {
        None => {}
        Some("" | "Local") => c.invalid(
            "spec.timeZone",
            zone,
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        ),
        Some(name) if crate::cron::zone(name).is_none() => {
            c.invalid("spec.timeZone", zone, format!("unknown time zone {name}"));
        }
        Some(_) => {}
    }
    c.one_of(
        "spec.concurrencyPolicy",
        at(v, "spec.concurrencyPolicy"),
        &["Allow", "Forbid", "Replace"],
    );
    for name in [
        "startingDeadlineSeconds",
        "successfulJobsHistoryLimit",
        "failedJobsHistoryLimit",
    ] {
        c.not_negative(format!("spec.{name}"), at(v, &format!("spec.{name}")));
    }
    job_spec(
        &mut c,
        "spec.jobTemplate.spec",
        at(v, "spec.jobTemplate.spec"),
    );
    c.0
}

/// `HorizontalPodAutoscaler`.
pub(crate) fn autoscaler(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let (min, max) = (
        at(v, "spec.minReplicas"),
        crate::access::int(v, "spec.maxReplicas"),
    );
    if min.as_i64().is_some_and(|n| n < 1) {
        c.invalid(
            "spec.minReplicas",
            min,
            "must be greater than or equal to 1",
        );
    }
    if max < 1 {
        c.invalid("spec.maxReplicas", &json!(max), "must be greater than 0");
    }
    if min.as_i64().is_some_and(|n| n > max) {
        c.invalid(
            "spec.maxReplicas",
            &json!(max),
            "must be greater than or equal to `minReplicas`",
        );
    }
    for name in ["kind", "name"] {
        let path = format!("spec.scaleTargetRef.{name}");
        if text(v, &path).is_empty() {
            c.required(path, "");
        }
    }
    c.0
}

/// `PodDisruptionBudget`.
pub(crate) fn disruption_budget(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    if !at(v, "spec.minAvailable").is_null() && !at(v, "spec.maxUnavailable").is_null() {
        c.invalid(
            "spec",
            at(v, "spec"),
            "minAvailable and maxUnavailable cannot be both set",
        );
    }
    for name in ["minAvailable", "maxUnavailable"] {
        let path = format!("spec.{name}");
        share(&mut c, &path, at(v, &path));
    }
    c.selector("spec.selector", at(v, "spec.selector"));
    policies::disruption_budget(&mut c, v);
    c.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::defaults::workloads as defaults;
    use expect_test::expect;

    fn shown(errors: &[FieldError]) -> String {
        errors
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn controllers_of_old_templates_and_revisions() {
        let mut v = json!({"spec": {
            "replicas": -1, "selector": {"a": "1"},
            "template": {"metadata": {"labels": {"a": "2"}}, "spec": {
                "restartPolicy": "Never", "activeDeadlineSeconds": 5,
                "containers": [{"name": "a", "image": "x"}],
            }},
        }});
        defaults::replication_controller(&mut v);
        expect![[r#"
            spec.replicas: Invalid value: -1: must be greater than or equal to 0
            spec.template.metadata.labels: Invalid value: {"a":"2"}: `selector` does not match template `labels`
            spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"
            spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in ReplicationController is not Supported"#]].assert_eq(&shown(&replication_controller(&v)));
        let revision = json!({"revision": -1});
        expect![[r#"
            revision: Invalid value: -1: must be greater than or equal to 0
            data: Required value: data is mandatory"#]]
        .assert_eq(&shown(&controller_revision(&revision)));
        let (new, old) = (json!({"data": {"a": 2}}), json!({"data": {"a": 1}}));
        expect![[r#"data: Invalid value: {"a":2}: field is immutable"#]]
            .assert_eq(&shown(&controller_revision_update(&new, &old)));
        let template = json!({"template": {"spec": {"restartPolicy": "Never"}}});
        assert_ne!(shown(&pod_template(&template)), "");
    }

    #[test]
    fn claims_of_a_stateful_set_are_volumes_of_its_pods() {
        let mount = |name: &str| json!([{"name": name, "mountPath": "/data"}]);
        let mut set = json!({"spec": {
            "serviceName": "db",
            "selector": {"matchLabels": {"a": "1"}},
            "template": {"metadata": {"labels": {"a": "1"}}, "spec": {"containers": [
                {"name": "a", "image": "x", "volumeMounts": mount("data")}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}],
        }});
        defaults::stateful_set(&mut set);
        assert_eq!(stateful_set(&set), []);
        set["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = mount("other");
        expect![[r#"spec.template.spec.containers[0].volumeMounts[0].name: Not found: "other""#]]
            .assert_eq(&shown(&stateful_set(&set)));
    }

    #[test]
    fn deployments() {
        let mut good = json!({"spec": {
            "selector": {"matchLabels": {"a": "1"}},
            "template": {"metadata": {"labels": {"a": "1"}}, "spec": {"containers": [{"name": "a", "image": "x"}]}},
        }});
        defaults::deployment(&mut good);
        assert_eq!(deployment(&good), []);

        let mut bad = good.clone();
        bad["spec"]["selector"] = json!({"matchLabels": {"a": "2"}});
        bad["spec"]["replicas"] = (-1).into();
        bad["spec"]["strategy"]["rollingUpdate"] = json!({"maxSurge": 0, "maxUnavailable": "0%"});
        bad["spec"]["template"]["spec"]["restartPolicy"] = "Never".into();
        expect![[r#"
            spec.replicas: Invalid value: -1: must be greater than or equal to 0
            spec.template.metadata.labels: Invalid value: {"a":"1"}: `selector` does not match template `labels`
            spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"
            spec.strategy.rollingUpdate.maxUnavailable: Invalid value: "0%": may not be 0 when `maxSurge` is 0"#]]
        .assert_eq(&shown(&deployment(&bad)));
        expect![[r#"spec.selector: Invalid value: {"matchLabels":{"a":"2"}}: field is immutable"#]]
            .assert_eq(&shown(&selector_stays(&bad, &good)));
    }

    #[test]
    fn cron_jobs() {
        let of = |schedule: &str, zone: &str| {
            let mut v = json!({"metadata": {"name": "c"}, "spec": {"schedule": schedule, "timeZone": zone,
                "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never",
                    "containers": [{"name": "a", "image": "x"}]}}}}}});
            defaults::cron_job(&mut v);
            shown(&cron_job(&v))
        };
        assert_eq!(of("*/5 * * * *", "Europe/Berlin"), "");
        expect![[r#"
            spec.schedule: Invalid value: "61 * * * *": end of range (61) above maximum (59): 61
            spec.timeZone: Invalid value: "Mars/North": unknown time zone Mars/North"#]]
        .assert_eq(&of("61 * * * *", "Mars/North"));
    }

    #[test]
    fn jobs() {
        let mut v = json!({"metadata": {"uid": "u", "name": "j"}, "spec": {"completionMode": "Indexed", "template": {"spec": {
            "containers": [{"name": "a", "image": "x"}]}}}});
        defaults::job(&mut v);
        crate::strategy::job_create(&mut v);
        expect![[r#"spec.template.spec.restartPolicy: Unsupported value: "Always": supported values: "OnFailure", "Never""#]]
            .assert_eq(&shown(&job(&v)));
        let mut new = v.clone();
        new["spec"]["template"]["spec"]["containers"][0]["image"] = "y".into();
        new["spec"]["parallelism"] = 2.into();
        let errors = job_update(&new, &v);
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].field, "spec.template");
    }
}

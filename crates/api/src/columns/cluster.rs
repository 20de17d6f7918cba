//! Nodes, namespaces, events, configuration, access control, extension.

use super::{
    NONE, age, condition, count, created, integer, list, or, scalar, since, string, wide, yes_no,
};
use crate::Column;
use crate::access::{at, int, is_empty, text};
use apimachinery::quantity::Quantity;
use serde_json::{Value, json};

pub(crate) const NODE: &[Column] = &[
    string("Status"),
    string("Roles"),
    string("Age"),
    string("Version"),
    wide("Internal-IP"),
    wide("External-IP"),
    wide("OS-Image"),
    wide("Kernel-Version"),
    wide("Container-Runtime"),
];

pub(crate) fn node(v: &Value, now: i64) -> Vec<Value> {
    let mut status = match condition(v, "Ready").map(|c| text(c, "status")) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if at(v, "spec.unschedulable") == true {
        status.push_str(",SchedulingDisabled");
    }
    let address = |kind: &str| {
        let found = list(v, "status.addresses")
            .iter()
            .find(|a| text(a, "type") == kind);
        found.map_or(NONE, |a| text(a, "address"))
    };
    let info = |name: &str| or(v, &format!("status.nodeInfo.{name}"), "<unknown>");
    vec![
        json!(status),
        json!(roles(v)),
        age(v, now),
        json!(text(v, "status.nodeInfo.kubeletVersion")),
        json!(address("InternalIP")),
        json!(address("ExternalIP")),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn roles(v: &Value) -> String {
    let mut roles: Vec<&str> = at(v, "metadata.labels")
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(k, v)| match k.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if k == "kubernetes.io/role" => v.as_str(),
            None => None,
        })
        .filter(|r| !r.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    match roles.is_empty() {
        true => NONE.to_owned(),
        false => roles.join(","),
    }
}

pub(crate) const NAMESPACE: &[Column] = &[string("Status"), string("Age")];

pub(crate) fn namespace(v: &Value, now: i64) -> Vec<Value> {
    vec![json!(text(v, "status.phase")), age(v, now)]
}

pub(crate) const EVENT: &[Column] = &[
    string("Last Seen"),
    string("Type"),
    string("Reason"),
    string("Object"),
    wide("Subobject"),
    wide("Source"),
    string("Message"),
    wide("First Seen"),
    wide("Count"),
    wide("Name"),
];

/// An event in the core version or, field for field the same under other names, its own.
pub(crate) fn event(v: &Value, now: i64) -> Vec<Value> {
    let pick = |core: &str, own: &str| match at(v, core) {
        Value::Null => at(v, own).clone(),
        found => found.clone(),
    };
    let first = match pick("firstTimestamp", "deprecatedFirstTimestamp") {
        Value::Null => at(v, "eventTime").clone(),
        t => t,
    };
    let mut last = match pick("lastTimestamp", "deprecatedLastTimestamp") {
        Value::Null => first.clone(),
        t => t,
    };
    let mut times = pick("count", "deprecatedCount")
        .as_i64()
        .unwrap_or(0)
        .max(1);
    if !at(v, "series").is_null() {
        last = at(v, "series.lastObservedTime").clone();
        times = int(v, "series.count");
    }
    let about = pick("involvedObject", "regarding");
    let kind = text(&about, "kind").to_lowercase();
    let target = match text(&about, "name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let source = pick("source", "deprecatedSource");
    let reporter = pick("reportingComponent", "reportingController");
    let component = match text(&source, "component") {
        "" => reporter.as_str().unwrap_or_default(),
        c => c,
    };
    let host = match text(&source, "host") {
        "" => text(v, "reportingInstance"),
        h => h,
    };
    let source = match host {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    };
    vec![
        json!(since(&last, now)),
        json!(text(v, "type")),
        json!(text(v, "reason")),
        json!(target),
        json!(text(&about, "fieldPath")),
        json!(source),
        json!(pick("message", "note").as_str().unwrap_or_default().trim()),
        json!(since(&first, now)),
        json!(times),
        json!(text(v, "metadata.name")),
    ]
}

pub(crate) const CONFIG_MAP: &[Column] = &[integer("Data"), string("Age")];

pub(crate) fn config_map(v: &Value, now: i64) -> Vec<Value> {
    vec![
        json!(count(at(v, "data")) + count(at(v, "binaryData"))),
        age(v, now),
    ]
}

pub(crate) const SECRET: &[Column] = &[string("Type"), integer("Data"), string("Age")];

pub(crate) fn secret(v: &Value, now: i64) -> Vec<Value> {
    vec![
        json!(text(v, "type")),
        json!(count(at(v, "data"))),
        age(v, now),
    ]
}

pub(crate) const SERVICE_ACCOUNT: &[Column] = &[integer("Secrets"), string("Age")];

pub(crate) fn service_account(v: &Value, now: i64) -> Vec<Value> {
    vec![json!(count(at(v, "secrets"))), age(v, now)]
}

pub(crate) const RESOURCE_QUOTA: &[Column] = &[string("Request"), string("Limit"), string("Age")];

pub(crate) fn resource_quota(v: &Value, now: i64) -> Vec<Value> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (name, hard) in at(v, "status.hard").as_object().into_iter().flatten() {
        let used = at(v, "status.used").get(name).unwrap_or(&Value::Null);
        let shown = format!("{name}: {}/{}", scalar(used), scalar(hard));
        if name.starts_with("limits.") {
            limits.push(shown);
        } else {
            requests.push(shown);
        }
    }
    vec![
        json!(requests.join(", ")),
        json!(limits.join(", ")),
        age(v, now),
    ]
}

pub(crate) const CREATED_AT: &[Column] = &[string("Created At")];

pub(crate) fn created_at(v: &Value, _now: i64) -> Vec<Value> {
    vec![created(v)]
}

pub(crate) const ROLE_BINDING: &[Column] = &[
    string("Role"),
    string("Age"),
    wide("Users"),
    wide("Groups"),
    wide("ServiceAccounts"),
];

pub(crate) fn role_binding(v: &Value, now: i64) -> Vec<Value> {
    let of = |kind: &str| {
        let all: Vec<String> = list(v, "subjects")
            .iter()
            .filter(|s| text(s, "kind") == kind)
            .map(|s| match (kind, text(s, "namespace")) {
                ("ServiceAccount", ns) if !ns.is_empty() => format!("{ns}/{}", text(s, "name")),
                _ => text(s, "name").to_owned(),
            })
            .collect();
        json!(all.join(", "))
    };
    let role = format!("{}/{}", text(v, "roleRef.kind"), text(v, "roleRef.name"));
    vec![
        json!(role),
        age(v, now),
        of("User"),
        of("Group"),
        of("ServiceAccount"),
    ]
}

pub(crate) const SIGNING_REQUEST: &[Column] = &[
    string("Age"),
    string("SignerName"),
    string("Requestor"),
    string("RequestedDuration"),
    string("Condition"),
];

pub(crate) fn signing_request(v: &Value, now: i64) -> Vec<Value> {
    let has = |kind: &str| condition(v, kind).is_some();
    let mut status = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied".to_owned(),
        (_, true) => "Approved".to_owned(),
        _ => "Pending".to_owned(),
    };
    if has("Failed") {
        status.push_str(",Failed");
    }
    if !is_empty(at(v, "status.certificate")) {
        status.push_str(",Issued");
    }
    let duration = at(v, "spec.expirationSeconds")
        .as_i64()
        .map_or(NONE.to_owned(), super::human_duration);
    vec![
        age(v, now),
        or(v, "spec.signerName", NONE),
        json!(text(v, "spec.username")),
        json!(duration),
        json!(status),
    ]
}

pub(crate) const TRUST_BUNDLE: &[Column] = &[string("SignerName")];

pub(crate) fn trust_bundle(v: &Value, _now: i64) -> Vec<Value> {
    vec![or(v, "spec.signerName", NONE)]
}

pub(crate) const PRIORITY_CLASS: &[Column] = &[
    integer("Value"),
    string("Global-Default"),
    string("Age"),
    string("PreemptionPolicy"),
];

pub(crate) fn priority_class(v: &Value, now: i64) -> Vec<Value> {
    vec![
        json!(int(v, "value")),
        yes_no(at(v, "globalDefault"), "false"),
        age(v, now),
        json!(text(v, "preemptionPolicy")),
    ]
}

pub(crate) const RUNTIME_CLASS: &[Column] = &[string("Handler"), string("Age")];

pub(crate) fn runtime_class(v: &Value, now: i64) -> Vec<Value> {
    vec![json!(text(v, "handler")), age(v, now)]
}

pub(crate) const API_SERVICE: &[Column] = &[string("Service"), string("Available"), string("Age")];

pub(crate) fn api_service(v: &Value, now: i64) -> Vec<Value> {
    let service = match at(v, "spec.service") {
        Value::Null => "Local".to_owned(),
        s => format!("{}/{}", text(s, "namespace"), text(s, "name")),
    };
    let available = match condition(v, "Available") {
        None => "Unknown".to_owned(),
        Some(c) => match (text(c, "status"), text(c, "reason")) {
            ("True", _) | (_, "") => text(c, "status").to_owned(),
            (status, reason) => format!("{status} ({reason})"),
        },
    };
    vec![json!(service), json!(available), age(v, now)]
}

pub(crate) const METRICS: &[Column] = &[string("CPU"), string("Memory"), string("Window")];

pub(crate) fn node_metrics(v: &Value, _: i64) -> Vec<Value> {
    let usage = at(v, "usage");
    vec![
        json!(text(usage, "cpu")),
        json!(text(usage, "memory")),
        json!(text(v, "window")),
    ]
}

/// The sum of a pod's containers.
pub(crate) fn pod_metrics(v: &Value, _: i64) -> Vec<Value> {
    let sum = |key: &str| {
        let parts = at(v, "containers").as_array().into_iter().flatten();
        let parsed = parts.filter_map(|c| text(at(c, "usage"), key).parse::<Quantity>().ok());
        parsed.map(|q| q.nano).sum::<i128>()
    };
    vec![
        json!(format!("{}n", sum("cpu"))),
        json!(format!("{}Ki", sum("memory") / 1_000_000_000 / 1024)),
        json!(text(v, "window")),
    ]
}

pub(crate) const ADMISSION_POLICY: &[Column] =
    &[integer("Validations"), string("ParamKind"), string("Age")];

pub(crate) fn admission_policy(v: &Value, now: i64) -> Vec<Value> {
    vec![
        json!(count(at(v, "spec.validations"))),
        param_kind(v),
        age(v, now),
    ]
}

pub(crate) const MUTATING_POLICY: &[Column] =
    &[integer("Mutations"), string("ParamKind"), string("Age")];

pub(crate) fn mutating_policy(v: &Value, now: i64) -> Vec<Value> {
    vec![
        json!(count(at(v, "spec.mutations"))),
        param_kind(v),
        age(v, now),
    ]
}

fn param_kind(v: &Value) -> Value {
    match at(v, "spec.paramKind") {
        Value::Null => json!(super::UNSET),
        p => json!(format!("{}/{}", text(p, "apiVersion"), text(p, "kind"))),
    }
}

pub(crate) const POLICY_BINDING: &[Column] =
    &[string("PolicyName"), string("ParamRef"), string("Age")];

pub(crate) fn policy_binding(v: &Value, now: i64) -> Vec<Value> {
    let params = match at(v, "spec.paramRef") {
        Value::Null => super::UNSET.to_owned(),
        p => match text(p, "namespace") {
            "" => format!("*/{}", text(p, "name")),
            ns => format!("{ns}/{}", text(p, "name")),
        },
    };
    vec![
        json!(text(v, "spec.policyName")),
        json!(params),
        age(v, now),
    ]
}

pub(crate) const COMPONENT_STATUS: &[Column] =
    &[string("Status"), string("Message"), string("Error")];

pub(crate) fn component_status(v: &Value, _now: i64) -> Vec<Value> {
    let healthy = list(v, "conditions")
        .iter()
        .find(|c| text(c, "type") == "Healthy");
    let status = match healthy.map(|c| text(c, "status")) {
        Some("True") => "Healthy",
        Some("False") => "Unhealthy",
        _ => "Unknown",
    };
    let part = |name: &str| json!(healthy.map_or("", |c| text(c, name)));
    vec![json!(status), part("message"), part("error")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    const NOW: i64 = 1_767_225_600;

    #[test]
    fn nodes_and_events() {
        let v = json!({
            "metadata": {"creationTimestamp": "2025-12-31T00:00:00Z", "labels": {
                "node-role.kubernetes.io/control-plane": "", "node-role.kubernetes.io/edge": ""}},
            "spec": {"unschedulable": true},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1.37.1"},
            },
        });
        expect![[r#"["Ready,SchedulingDisabled","control-plane,edge","24h","v1.37.1","10.0.0.1","<none>","<unknown>","<unknown>","<unknown>"]"#]]
        .assert_eq(&Value::from(node(&v, NOW)).to_string());

        let v = json!({
            "metadata": {"name": "e"}, "type": "Normal", "reason": "Pulled", "message": "done ",
            "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec.containers{a}"},
            "source": {"component": "kubelet", "host": "n"}, "count": 2,
            "firstTimestamp": "2025-12-31T23:50:00Z", "lastTimestamp": "2025-12-31T23:59:30Z",
        });
        expect![[r#"["30s","Normal","Pulled","pod/p","spec.containers{a}","kubelet, n","done","10m",2,"e"]"#]]
        .assert_eq(&Value::from(event(&v, NOW)).to_string());
    }

    #[test]
    fn every_row_has_a_cell_for_every_column() {
        let nothing = json!({});
        for r in crate::resources() {
            assert_eq!(
                (r.row)(&nothing, NOW).len(),
                r.columns.len(),
                "{}",
                r.plural
            );
        }
    }
}

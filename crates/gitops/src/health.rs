//! Whether an object is as its controller should make it: the rules that tools which wait
//! for objects agree on (kstatus), for the common kinds, and the general ones for the rest.

use serde_json::Value;

/// How an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// As desired.
    Current,
    /// On its way.
    InProgress(String),
    /// It will not get there by itself.
    Failed(String),
    /// Being deleted.
    Terminating,
    /// Not there.
    NotFound,
}

impl Health {
    /// The word that conditions use.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Current => "Current",
            Self::InProgress(_) => "InProgress",
            Self::Failed(_) => "Failed",
            Self::Terminating => "Terminating",
            Self::NotFound => "NotFound",
        }
    }
}

/// How an object is.
pub fn health(object: &Value) -> Health {
    if !object["metadata"]["deletionTimestamp"].is_null() {
        return Health::Terminating;
    }
    let generation = object["metadata"]["generation"].as_i64();
    let observed = object["status"]["observedGeneration"].as_i64();
    if let (Some(generation), Some(observed)) = (generation, observed)
        && observed < generation
    {
        return waiting("generation is not observed yet");
    }
    let group = object["apiVersion"]
        .as_str()
        .and_then(|v| v.split_once('/'))
        .map_or("", |(g, _)| g);
    match (group, object["kind"].as_str().unwrap_or_default()) {
        ("apps", "Deployment") => deployment(object),
        ("apps", "StatefulSet") => stateful_set(object),
        ("apps", "DaemonSet") => daemon_set(object),
        ("apps", "ReplicaSet") => replica_set(object),
        ("batch", "Job") => job(object),
        ("", "Pod") => pod(object),
        ("", "PersistentVolumeClaim") => claim(object),
        ("", "Service") => service(object),
        ("policy", "PodDisruptionBudget") => observed_or_wait(object, observed),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => definition(object),
        ("", "Namespace") => match object["status"]["phase"].as_str() {
            Some("Terminating") => Health::Terminating,
            _ => Health::Current,
        },
        _ => general(object),
    }
}

fn waiting(why: impl Into<String>) -> Health {
    Health::InProgress(why.into())
}

/// Status, reason and message of a condition.
fn condition<'a>(object: &'a Value, kind: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let conditions = object["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|c| c["type"] == kind)?;
    let text = |field: &str| found[field].as_str().unwrap_or_default();
    Some((text("status"), text("reason"), text("message")))
}

fn number(object: &Value, path: &str) -> i64 {
    object
        .pointer(path)
        .and_then(Value::as_i64)
        .unwrap_or_default()
}

fn desired(object: &Value) -> i64 {
    object["spec"]["replicas"].as_i64().unwrap_or(1)
}

fn general(object: &Value) -> Health {
    if let Some(("True", reason, message)) = condition(object, "Stalled") {
        return Health::Failed(format!("{reason}: {message}"));
    }
    if let Some(("True", _, message)) = condition(object, "Reconciling") {
        return waiting(message);
    }
    match condition(object, "Ready") {
        Some(("False" | "Unknown", _, message)) => waiting(message),
        _ => Health::Current,
    }
}

fn observed_or_wait(_: &Value, observed: Option<i64>) -> Health {
    if observed.is_some() {
        Health::Current
    } else {
        waiting("not observed yet")
    }
}

fn deployment(object: &Value) -> Health {
    if let Some((_, "ProgressDeadlineExceeded", message)) = condition(object, "Progressing") {
        return Health::Failed(format!("progress deadline exceeded: {message}"));
    }
    let want = desired(object);
    let (all, updated, ready, available) = (
        number(object, "/status/replicas"),
        number(object, "/status/updatedReplicas"),
        number(object, "/status/readyReplicas"),
        number(object, "/status/availableReplicas"),
    );
    if object["status"]["observedGeneration"].is_null() {
        waiting("not observed yet")
    } else if updated < want {
        waiting(format!("updated: {updated}/{want}"))
    } else if all > updated {
        waiting(format!("pending termination: {}", all - updated))
    } else if available < want {
        waiting(format!("available: {available}/{want}"))
    } else if ready < want {
        waiting(format!("ready: {ready}/{want}"))
    } else {
        Health::Current
    }
}

fn stateful_set(object: &Value) -> Health {
    let want = desired(object);
    let (ready, updated) = (
        number(object, "/status/readyReplicas"),
        number(object, "/status/updatedReplicas"),
    );
    let partition = number(object, "/spec/updateStrategy/rollingUpdate/partition");
    let on_delete = object["spec"]["updateStrategy"]["type"] == "OnDelete";
    if object["status"]["observedGeneration"].is_null() {
        waiting("not observed yet")
    } else if ready < want {
        waiting(format!("ready: {ready}/{want}"))
    } else if !on_delete && updated < want - partition {
        waiting(format!("updated: {updated}/{}", want - partition))
    } else {
        Health::Current
    }
}

fn daemon_set(object: &Value) -> Health {
    let Some(want) = object["status"]["desiredNumberScheduled"].as_i64() else {
        return waiting("not observed yet");
    };
    for (what, path) in [
        ("updated", "/status/updatedNumberScheduled"),
        ("available", "/status/numberAvailable"),
        ("ready", "/status/numberReady"),
    ] {
        let have = number(object, path);
        if have < want {
            return waiting(format!("{what}: {have}/{want}"));
        }
    }
    if object["status"]["observedGeneration"].is_null() {
        return waiting("not observed yet");
    }
    Health::Current
}

fn replica_set(object: &Value) -> Health {
    if let Some(("True", _, message)) = condition(object, "ReplicaFailure") {
        return waiting(message);
    }
    let want = desired(object);
    let available = number(object, "/status/availableReplicas");
    if object["status"]["observedGeneration"].is_null() {
        waiting("not observed yet")
    } else if available < want {
        waiting(format!("available: {available}/{want}"))
    } else {
        Health::Current
    }
}

fn job(object: &Value) -> Health {
    if let Some(("True", reason, message)) = condition(object, "Failed") {
        return Health::Failed(format!("{reason}: {message}"));
    }
    if matches!(condition(object, "Complete"), Some(("True", ..))) {
        return Health::Current;
    }
    // A job that runs may run for hours: it counts once it has begun.
    if object["status"]["startTime"].is_string() {
        Health::Current
    } else {
        waiting("not started")
    }
}

fn pod(object: &Value) -> Health {
    match object["status"]["phase"].as_str() {
        Some("Succeeded") => Health::Current,
        Some("Failed") => Health::Failed("the pod has failed".into()),
        Some("Running") => match condition(object, "Ready") {
            Some(("True", ..)) => Health::Current,
            _ if crashing(object) => Health::Failed("a container restarts again and again".into()),
            _ => waiting("the pod is not ready"),
        },
        _ => match condition(object, "PodScheduled") {
            Some(("False", "Unschedulable", message)) => Health::Failed(message.into()),
            _ => waiting("the pod is pending"),
        },
    }
}

fn crashing(object: &Value) -> bool {
    object["status"]["containerStatuses"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["state"]["waiting"]["reason"] == "CrashLoopBackOff")
}

fn claim(object: &Value) -> Health {
    if object["status"]["phase"] == "Bound" {
        Health::Current
    } else {
        waiting("the claim is not bound")
    }
}

fn service(object: &Value) -> Health {
    if object["spec"]["type"] != "LoadBalancer" {
        return Health::Current;
    }
    let ingress = object["status"]["loadBalancer"]["ingress"].as_array();
    if ingress.is_some_and(|list| !list.is_empty()) {
        Health::Current
    } else {
        waiting("the load balancer has no address")
    }
}

fn definition(object: &Value) -> Health {
    if let Some(("False", reason, message)) = condition(object, "NamesAccepted") {
        return Health::Failed(format!("{reason}: {message}"));
    }
    match condition(object, "Established") {
        Some(("True", ..)) => Health::Current,
        _ => waiting("the kind is not served yet"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn the_common_kinds_are_known() {
        let of = |api: &str, kind: &str, spec: Value, status: Value| {
            let object = json!({"apiVersion": api, "kind": kind,
                "metadata": {"generation": 2}, "spec": spec, "status": status});
            let health = health(&object);
            let why = match &health {
                Health::InProgress(why) | Health::Failed(why) => why.as_str(),
                _ => "",
            };
            format!("{kind} {} {why}\n", health.word())
        };
        let text = [
            of("apps/v1", "Deployment", json!({"replicas": 2}), json!({"observedGeneration": 1})),
            of("apps/v1", "Deployment", json!({"replicas": 2}), json!({"observedGeneration": 2, "updatedReplicas": 1, "replicas": 2})),
            of("apps/v1", "Deployment", json!({"replicas": 2}), json!({"observedGeneration": 2, "updatedReplicas": 2, "replicas": 3})),
            of("apps/v1", "Deployment", json!({"replicas": 2}), json!({"observedGeneration": 2, "updatedReplicas": 2, "replicas": 2, "availableReplicas": 2, "readyReplicas": 2})),
            of("apps/v1", "Deployment", json!({"replicas": 0}), json!({"observedGeneration": 2})),
            of("apps/v1", "Deployment", json!({}), json!({"observedGeneration": 2, "conditions": [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "m"}]})),
            of("apps/v1", "StatefulSet", json!({"replicas": 3, "updateStrategy": {"rollingUpdate": {"partition": 1}}}), json!({"observedGeneration": 2, "readyReplicas": 3, "updatedReplicas": 2})),
            of("apps/v1", "DaemonSet", json!({}), json!({"observedGeneration": 2, "desiredNumberScheduled": 1})),
            of("batch/v1", "Job", json!({}), json!({})),
            of("batch/v1", "Job", json!({}), json!({"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "m"}]})),
            of("v1", "Pod", json!({}), json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})),
            of("v1", "Pod", json!({}), json!({"phase": "Running", "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]})),
            of("v1", "PersistentVolumeClaim", json!({}), json!({"phase": "Pending"})),
            of("v1", "Service", json!({"type": "LoadBalancer"}), json!({})),
            of("v1", "ConfigMap", json!({}), json!({})),
            of("example.com/v1", "Widget", json!({}), json!({"conditions": [{"type": "Ready", "status": "False", "message": "m"}]})),
            of("example.com/v1", "Widget", json!({}), json!({"conditions": [{"type": "Stalled", "status": "True", "reason": "R", "message": "m"}]})),
            of("apiextensions.k8s.io/v1", "CustomResourceDefinition", json!({}), json!({"conditions": [{"type": "Established", "status": "True"}]})),
        ]
        .concat();
        expect![[r#"
            Deployment InProgress generation is not observed yet
            Deployment InProgress updated: 1/2
            Deployment InProgress pending termination: 1
            Deployment Current 
            Deployment Current 
            Deployment Failed progress deadline exceeded: m
            StatefulSet Current 
            DaemonSet InProgress updated: 0/1
            Job InProgress not started
            Job Failed BackoffLimitExceeded: m
            Pod Current 
            Pod Failed a container restarts again and again
            PersistentVolumeClaim InProgress the claim is not bound
            Service InProgress the load balancer has no address
            ConfigMap Current 
            Widget InProgress m
            Widget Failed R: m
            CustomResourceDefinition Current 
        "#]]
        .assert_eq(&text);
    }
}

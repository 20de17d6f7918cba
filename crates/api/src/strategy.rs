//! What the server itself sets or keeps when an object is created or updated.
//!
//! Runs after defaults and after the registry has set name, uid and times and
//! has dropped (create) or restored (update) the status. Allocation of
//! addresses and ports is the registry's.

use crate::access::{at, int, is_empty, list, object_entry, object_mut, remove, text};
use crate::defaults::{pod, workloads};
use serde_json::{Value, json};

/// An object without a status yet.
pub(crate) fn empty_status(v: &mut Value) {
    set_status(v, json!({}));
}

/// A status of the counts that it must have, all zero: upstream always writes these, and
/// strict clients can't read a status without them.
macro_rules! counting {
    ($($(#[$doc:meta])* $name:ident: $($count:literal),*;)*) => {$(
        $(#[$doc])*
        pub(crate) fn $name(v: &mut Value) {
            set_status(v, json!({$($count: 0),*}));
        }
    )*};
}

counting! {
    /// A replica set or replication controller that has no pod yet.
    replica_set_create: "replicas";
    /// A stateful set that has no pod yet.
    stateful_set_create: "replicas", "availableReplicas";
    /// A daemon set that has no pod yet.
    daemon_set_create: "currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled",
        "numberReady";
    /// An autoscaler that has seen nothing yet.
    autoscaler_create: "desiredReplicas";
    /// The same by the older version.
    autoscaler_v1_create: "currentReplicas", "desiredReplicas";
    /// A disruption budget that nobody has counted yet: it allows nothing.
    disruption_budget_create: "currentHealthy", "desiredHealthy", "disruptionsAllowed",
        "expectedPods";
}

/// A service or ingress that no load balancer serves yet.
pub(crate) fn load_balancer_status(v: &mut Value) {
    set_status(v, json!({"loadBalancer": {}}));
}

/// A volume or claim that is not bound yet.
pub(crate) fn pending_create(v: &mut Value) {
    set_status(v, json!({"phase": "Pending"}));
}

/// A pod starts Pending, with its class of service fixed.
pub(crate) fn pod_create(v: &mut Value) {
    let class = pod::qos_class(v);
    set_status(v, json!({"phase": "Pending", "qosClass": class}));
}

/// A namespace is active and ends only when its content is gone.
pub(crate) fn namespace_create(v: &mut Value) {
    if let Some(spec) = object_entry(v, "spec") {
        let has = list(spec, "finalizers").iter().any(|f| f == "kubernetes");
        if !has {
            match spec.get_mut("finalizers").and_then(Value::as_array_mut) {
                Some(finalizers) => finalizers.push("kubernetes".into()),
                None => spec["finalizers"] = json!(["kubernetes"]),
            }
        }
    }
    set_status(v, json!({"phase": "Active"}));
}

/// Only `/finalize` changes a namespace's finalizers.
pub(crate) fn namespace_update(new: &mut Value, old: &Value) {
    let finalizers = at(old, "spec.finalizers").clone();
    if let Some(spec) = object_entry(new, "spec") {
        spec["finalizers"] = finalizers;
    }
}

/// A job selects its pods by its own uid unless the client selects by hand.
pub(crate) fn job_create(v: &mut Value) {
    set_status(v, json!({}));
    let uid = text(v, "metadata.uid").to_owned();
    let name = text(v, "metadata.name").to_owned();
    if at(v, "spec.manualSelector") != true && !uid.is_empty() {
        let Some(spec) = object_mut(v, "spec") else {
            return;
        };
        let labels = object_entry(spec, "template")
            .and_then(|t| object_entry(t, "metadata"))
            .and_then(|m| object_entry(m, "labels"));
        if let Some(labels) = labels {
            for key in ["batch.kubernetes.io/controller-uid", "controller-uid"] {
                labels[key] = uid.clone().into();
            }
            for key in ["batch.kubernetes.io/job-name", "job-name"] {
                labels[key] = name.clone().into();
            }
        }
        if let Some(selected) =
            object_entry(spec, "selector").and_then(|s| object_entry(s, "matchLabels"))
        {
            selected["batch.kubernetes.io/controller-uid"] = uid.into();
        }
    }
    workloads::job_labels(v);
}

/// A service of one IPv4 family; headless ones have the address `None`.
pub(crate) fn service_create(v: &mut Value) {
    load_balancer_status(v);
    let Some(spec) = object_entry(v, "spec") else {
        return;
    };
    service_families(spec);
}

fn service_families(spec: &mut Value) {
    if text(spec, "type") == "ExternalName" {
        for name in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            remove(spec, name);
        }
        return;
    }
    if is_empty(at(spec, "ipFamilies")) {
        spec["ipFamilies"] = json!(["IPv4"]);
    }
    if text(spec, "ipFamilyPolicy").is_empty() {
        spec["ipFamilyPolicy"] = "SingleStack".into();
    }
    let ip = text(spec, "clusterIP").to_owned();
    let first = list(spec, "clusterIPs").first().cloned();
    match (ip.is_empty(), first) {
        (false, None) => spec["clusterIPs"] = json!([ip]),
        (true, Some(first)) => spec["clusterIP"] = first,
        _ => {}
    }
}

/// What was allocated stays unless the client asks for something else.
pub(crate) fn service_update(new: &mut Value, old: &Value) {
    let needs_ip = |v: &Value| {
        matches!(
            text(v, "spec.type"),
            "ClusterIP" | "NodePort" | "LoadBalancer"
        )
    };
    let needs_ports = |v: &Value| match text(v, "spec.type") {
        "NodePort" => true,
        "LoadBalancer" => at(v, "spec.allocateLoadBalancerNodePorts") != false,
        _ => false,
    };
    let (keep_ip, keep_ports) = (
        needs_ip(old) && needs_ip(new),
        needs_ports(old) && needs_ports(new),
    );
    let lost_ports = needs_ports(old) && !needs_ports(new);
    let Some(spec) = object_entry(new, "spec") else {
        return;
    };
    let old_spec = at(old, "spec");
    if keep_ip {
        for name in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            let same_ip = text(spec, "clusterIP") == text(old_spec, "clusterIP");
            if is_empty(at(spec, name)) && (name != "clusterIPs" || same_ip) {
                let kept = at(old_spec, name);
                if !kept.is_null() {
                    spec[name] = kept.clone();
                }
            }
        }
    }
    if keep_ports {
        keep_node_ports(spec, old_spec);
    }
    if lost_ports {
        // A node port that the client merely sent back goes with the type.
        let used: Vec<i64> = list(old_spec, "ports")
            .iter()
            .map(|p| int(p, "nodePort"))
            .collect();
        for p in crate::access::items_mut(spec, "ports") {
            if used.contains(&int(p, "nodePort")) {
                remove(p, "nodePort");
            }
        }
        if text(spec, "externalTrafficPolicy") == text(old_spec, "externalTrafficPolicy") {
            remove(spec, "externalTrafficPolicy");
        }
    }
    if text(spec, "healthCheckNodePort").is_empty() && int(spec, "healthCheckNodePort") == 0 {
        let kept = at(old_spec, "healthCheckNodePort");
        if !kept.is_null() && text(spec, "externalTrafficPolicy") == "Local" {
            spec["healthCheckNodePort"] = kept.clone();
        }
    }
    service_families(spec);
}

fn keep_node_ports(spec: &mut Value, old_spec: &Value) {
    let key = |p: &Value| (text(p, "protocol").to_owned(), int(p, "port"));
    let mut free: Vec<_> = list(old_spec, "ports")
        .iter()
        .filter(|p| int(p, "nodePort") != 0)
        .map(|p| (key(p), int(p, "nodePort")))
        .collect();
    free.retain(|(_, n)| !list(spec, "ports").iter().any(|p| int(p, "nodePort") == *n));
    for p in crate::access::items_mut(spec, "ports") {
        if int(p, "nodePort") == 0
            && let Some(i) = free.iter().position(|(k, _)| *k == key(p))
        {
            p["nodePort"] = free.swap_remove(i).1.into();
        }
    }
}

/// A definition remembers every version that was ever stored.
pub(crate) fn crd_create(v: &mut Value) {
    set_status(v, json!({}));
    remember_storage_version(v);
}

/// The same when it changes.
pub(crate) fn crd_update(new: &mut Value, _old: &Value) {
    remember_storage_version(new);
}

fn remember_storage_version(v: &mut Value) {
    let stored = list(v, "spec.versions")
        .iter()
        .find(|v| at(v, "storage") == true)
        .map(|v| at(v, "name").clone());
    let (Some(name), Some(status)) = (stored, object_entry(v, "status")) else {
        return;
    };
    match status
        .get_mut("storedVersions")
        .and_then(Value::as_array_mut)
    {
        Some(all) if all.contains(&name) => {}
        Some(all) => all.push(name),
        None => status["storedVersions"] = json!([name]),
    }
}

fn set_status(v: &mut Value, status: Value) {
    if let Some(map) = v.as_object_mut() {
        map.insert("status".to_owned(), status);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_starts_at_zero() {
        let mut v = json!({"status": {"numberReady": 7}});
        daemon_set_create(&mut v);
        let counts = json!({"currentNumberScheduled": 0, "desiredNumberScheduled": 0,
            "numberMisscheduled": 0, "numberReady": 0});
        assert_eq!(v, json!({"status": counts}));
    }

    #[test]
    fn a_job_selects_by_its_uid() {
        let mut v = json!({
            "metadata": {"name": "j", "uid": "u"},
            "spec": {"template": {"spec": {}}, "manualSelector": false},
        });
        job_create(&mut v);
        assert_eq!(
            v["spec"]["selector"],
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}})
        );
        let labels = json!({
            "batch.kubernetes.io/controller-uid": "u", "controller-uid": "u",
            "batch.kubernetes.io/job-name": "j", "job-name": "j",
        });
        assert_eq!(v["spec"]["template"]["metadata"]["labels"], labels);
        assert_eq!(v["metadata"]["labels"], labels);
    }

    #[test]
    fn a_service_keeps_its_addresses() {
        let old = json!({"spec": {
            "type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "externalTrafficPolicy": "Cluster",
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30000}],
        }});
        let mut new = json!({"spec": {
            "type": "NodePort", "ports": [{"port": 81, "protocol": "TCP"}, {"port": 80, "protocol": "TCP"}],
        }});
        service_update(&mut new, &old);
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.0.0.1"]));
        assert_eq!(new["spec"]["ports"][1]["nodePort"], 30000);
        assert!(new["spec"]["ports"][0].get("nodePort").is_none());

        let mut new = old.clone();
        new["spec"]["type"] = "ClusterIP".into();
        service_update(&mut new, &old);
        assert_eq!(new["spec"]["clusterIP"], "10.0.0.1");
        assert_eq!(
            new["spec"]["ports"],
            json!([{"port": 80, "protocol": "TCP"}])
        );

        let mut new = old.clone();
        new["spec"]["type"] = "ExternalName".into();
        service_update(&mut new, &old);
        assert!(new["spec"].get("clusterIP").is_none());
    }
}

//! Services, endpoints, ingresses, network policies.

use crate::access::{
    at, default, default_text, is_empty, items_mut, list, object_entry, object_mut, text,
};
use serde_json::{Value, json};

/// `Service`; addresses are given by the registry.
pub(crate) fn service(v: &mut Value) {
    let Some(spec) = object_entry(v, "spec") else {
        return;
    };
    default_text(spec, "sessionAffinity", "None");
    if text(spec, "sessionAffinity") == "ClientIP"
        && let Some(client) =
            object_entry(spec, "sessionAffinityConfig").and_then(|c| object_entry(c, "clientIP"))
    {
        default(client, "timeoutSeconds", 10_800);
    }
    default_text(spec, "type", "ClusterIP");
    for p in items_mut(spec, "ports") {
        default_text(p, "protocol", "TCP");
        let target = at(p, "targetPort");
        let port = at(p, "port");
        if (target.is_null() || target == 0 || target == "") && !port.is_null() {
            let port = port.clone();
            p["targetPort"] = port;
        }
    }
    let kind = text(spec, "type").to_owned();
    let from_outside = matches!(&*kind, "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP" && !list(spec, "externalIPs").is_empty());
    if from_outside {
        default_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(&*kind, "NodePort" | "LoadBalancer" | "ClusterIP") {
        default_text(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
    }
}

/// `Endpoints`.
pub(crate) fn endpoints(v: &mut Value) {
    for subset in items_mut(v, "subsets") {
        for p in items_mut(subset, "ports") {
            default_text(p, "protocol", "TCP");
        }
    }
}

/// `EndpointSlice`.
pub(crate) fn endpoint_slice(v: &mut Value) {
    for p in items_mut(v, "ports") {
        default(p, "name", "");
        default_text(p, "protocol", "TCP");
    }
}

/// `NetworkPolicy`.
pub(crate) fn network_policy(v: &mut Value) {
    let Some(spec) = object_mut(v, "spec") else {
        return;
    };
    if is_empty(at(spec, "policyTypes")) {
        spec["policyTypes"] = if list(spec, "egress").is_empty() {
            json!(["Ingress"])
        } else {
            json!(["Ingress", "Egress"])
        };
    }
    for direction in ["ingress", "egress"] {
        for rule in items_mut(spec, direction) {
            for p in items_mut(rule, "ports") {
                default_text(p, "protocol", "TCP");
            }
        }
    }
}

/// `IngressClass`.
pub(crate) fn ingress_class(v: &mut Value) {
    if let Some(p) = object_mut(v, "spec").and_then(|s| object_mut(s, "parameters")) {
        default_text(p, "scope", "Cluster");
    }
}

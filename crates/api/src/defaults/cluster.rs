//! Namespaces, nodes, secrets, storage, access control, extension.

use super::pod::{canonical_quantity, canonical_resources};
use crate::access::{
    at, default, default_text, is_empty, items_mut, object_entry, object_mut, text,
};
use base64::Engine as _;
use serde_json::{Value, json};

const RBAC: &str = "rbac.authorization.k8s.io";

/// `Namespace`: selectable by its own name.
pub(crate) fn namespace(v: &mut Value) {
    let name = text(v, "metadata.name").to_owned();
    if name.is_empty() {
        return;
    }
    if let Some(labels) = object_entry(v, "metadata").and_then(|m| object_entry(m, "labels")) {
        labels["kubernetes.io/metadata.name"] = name.into();
    }
}

/// `Node`.
pub(crate) fn node(v: &mut Value) {
    let Some(status) = object_mut(v, "status") else {
        return;
    };
    if is_empty(at(status, "allocatable")) && !is_empty(at(status, "capacity")) {
        let capacity = at(status, "capacity").clone();
        status["allocatable"] = capacity;
    }
    for list in ["capacity", "allocatable"] {
        if let Some(map) = status.get_mut(list).and_then(Value::as_object_mut) {
            map.values_mut().for_each(canonical_quantity);
        }
    }
}

/// `Secret`: `stringData` is write-only and ends up in `data`.
pub(crate) fn secret(v: &mut Value) {
    default_text(v, "type", "Opaque");
    let Some(Value::Object(plain)) = v.as_object_mut().and_then(|m| m.remove("stringData")) else {
        return;
    };
    if plain.is_empty() {
        return;
    }
    if let Some(data) = object_entry(v, "data") {
        for (k, text) in plain {
            let bytes = text.as_str().unwrap_or_default();
            data[k] = base64::engine::general_purpose::STANDARD
                .encode(bytes)
                .into();
        }
    }
}

/// `PersistentVolumeClaim`.
pub(crate) fn persistent_volume_claim(v: &mut Value) {
    if let Some(status) = object_entry(v, "status") {
        default_text(status, "phase", "Pending");
    }
    if let Some(spec) = object_mut(v, "spec") {
        default_text(spec, "volumeMode", "Filesystem");
        canonical_resources(spec);
    }
}

/// `PersistentVolume`.
pub(crate) fn persistent_volume(v: &mut Value) {
    if let Some(status) = object_entry(v, "status") {
        default_text(status, "phase", "Pending");
    }
    if let Some(spec) = object_mut(v, "spec") {
        default_text(spec, "persistentVolumeReclaimPolicy", "Retain");
        default_text(spec, "volumeMode", "Filesystem");
        if let Some(h) = object_mut(spec, "hostPath") {
            default(h, "type", "");
        }
        if let Some(q) = spec.get_mut("capacity").and_then(Value::as_object_mut) {
            q.values_mut().for_each(canonical_quantity);
        }
    }
}

/// `ResourceQuota`.
pub(crate) fn resource_quota(v: &mut Value) {
    if let Some(hard) = object_mut(v, "spec")
        .and_then(|s| s.get_mut("hard"))
        .and_then(Value::as_object_mut)
    {
        hard.values_mut().for_each(canonical_quantity);
    }
}

/// `LimitRange`: for containers a limit stands in for what is not said.
pub(crate) fn limit_range(v: &mut Value) {
    let Some(spec) = object_mut(v, "spec") else {
        return;
    };
    for item in items_mut(spec, "limits") {
        for list in [
            "max",
            "min",
            "default",
            "defaultRequest",
            "maxLimitRequestRatio",
        ] {
            if let Some(m) = item.get_mut(list).and_then(Value::as_object_mut) {
                m.values_mut().for_each(canonical_quantity);
            }
        }
        if text(item, "type") != "Container" {
            continue;
        }
        for (from, to) in [
            ("max", "default"),
            ("default", "defaultRequest"),
            ("min", "defaultRequest"),
        ] {
            let Some(source) = at(item, from).as_object().cloned() else {
                continue;
            };
            if let Some(target) = object_entry(item, to) {
                for (k, q) in source {
                    default(target, &k, q);
                }
            }
        }
    }
}

/// `StorageClass`.
pub(crate) fn storage_class(v: &mut Value) {
    default_text(v, "reclaimPolicy", "Delete");
    default_text(v, "volumeBindingMode", "Immediate");
}

/// `CSIDriver`.
pub(crate) fn csi_driver(v: &mut Value) {
    if let Some(spec) = object_entry(v, "spec") {
        default(spec, "attachRequired", true);
        default(spec, "podInfoOnMount", false);
        default(spec, "storageCapacity", false);
        default_text(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
        default(spec, "requiresRepublish", false);
        default(spec, "seLinuxMount", false);
        if is_empty(at(spec, "volumeLifecycleModes")) {
            spec["volumeLifecycleModes"] = json!(["Persistent"]);
        }
    }
}

/// `PriorityClass`.
pub(crate) fn priority_class(v: &mut Value) {
    default_text(v, "preemptionPolicy", "PreemptLowerPriority");
}

/// `RoleBinding` and `ClusterRoleBinding`.
pub(crate) fn role_binding(v: &mut Value) {
    if let Some(role) = object_mut(v, "roleRef") {
        default_text(role, "apiGroup", RBAC);
    }
    for s in items_mut(v, "subjects") {
        if matches!(text(s, "kind"), "User" | "Group") {
            default_text(s, "apiGroup", RBAC);
        }
    }
}

/// Both webhook configurations.
pub(crate) fn webhooks(v: &mut Value) {
    let mutating = text(v, "kind") == "MutatingWebhookConfiguration";
    for w in items_mut(v, "webhooks") {
        default_text(w, "failurePolicy", "Fail");
        default_text(w, "matchPolicy", "Equivalent");
        default(w, "namespaceSelector", json!({}));
        default(w, "objectSelector", json!({}));
        default(w, "timeoutSeconds", 10);
        if mutating {
            default_text(w, "reinvocationPolicy", "Never");
        }
        if let Some(s) = object_mut(w, "clientConfig").and_then(|c| object_mut(c, "service")) {
            default(s, "port", 443);
        }
        for r in items_mut(w, "rules") {
            default_text(r, "scope", "*");
        }
    }
}

/// Both admission policies.
pub(crate) fn admission_policy(v: &mut Value) {
    if let Some(spec) = object_mut(v, "spec") {
        default_text(spec, "failurePolicy", "Fail");
        if let Some(m) = object_mut(spec, "matchConstraints") {
            match_resources(m);
        }
    }
}

/// Both admission policy bindings.
pub(crate) fn admission_policy_binding(v: &mut Value) {
    if let Some(m) = object_mut(v, "spec").and_then(|s| object_mut(s, "matchResources")) {
        match_resources(m);
    }
}

fn match_resources(m: &mut Value) {
    default_text(m, "matchPolicy", "Equivalent");
    default(m, "namespaceSelector", json!({}));
    default(m, "objectSelector", json!({}));
    for list in ["resourceRules", "excludeResourceRules"] {
        for r in items_mut(m, list) {
            default_text(r, "scope", "*");
        }
    }
}

/// `CustomResourceDefinition`.
pub(crate) fn custom_resource_definition(v: &mut Value) {
    let Some(spec) = object_mut(v, "spec") else {
        return;
    };
    if let Some(names) = object_mut(spec, "names") {
        let kind = text(names, "kind").to_owned();
        if !kind.is_empty() {
            default_text(names, "singular", &kind.to_lowercase());
            default_text(names, "listKind", &format!("{kind}List"));
        }
    }
    if let Some(conversion) = object_entry(spec, "conversion") {
        default_text(conversion, "strategy", "None");
        if let Some(s) = object_mut(conversion, "webhook")
            .and_then(|w| object_mut(w, "clientConfig"))
            .and_then(|c| object_mut(c, "service"))
        {
            default(s, "port", 443);
        }
    }
}

/// `APIService`.
pub(crate) fn api_service(v: &mut Value) {
    if let Some(s) = object_mut(v, "spec").and_then(|s| object_mut(s, "service")) {
        default(s, "port", 443);
    }
}

/// `FlowSchema`.
pub(crate) fn flow_schema(v: &mut Value) {
    if let Some(spec) = object_mut(v, "spec") {
        default(spec, "matchingPrecedence", 1000);
    }
}

/// `PriorityLevelConfiguration`.
pub(crate) fn priority_level(v: &mut Value) {
    let Some(spec) = object_mut(v, "spec") else {
        return;
    };
    if text(spec, "type") == "Limited"
        && let Some(limited) = object_entry(spec, "limited")
    {
        default(limited, "nominalConcurrencyShares", 30);
        default(limited, "lendablePercent", 0);
        if let Some(response) = object_entry(limited, "limitResponse") {
            default_text(response, "type", "Reject");
            if text(response, "type") == "Queue"
                && let Some(q) = object_entry(response, "queuing")
            {
                default(q, "handSize", 8);
                default(q, "queues", 64);
                default(q, "queueLengthLimit", 50);
            }
        }
    }
}

/// `ResourceClaim` (and, through its template, `ResourceClaimTemplate`).
pub(crate) fn resource_claim(v: &mut Value) {
    let given = object_mut(v, "status").and_then(|s| object_mut(s, "allocation"));
    if let Some(given) = given.and_then(|a| object_mut(a, "devices")) {
        items_mut(given, "results").for_each(device_tolerations);
    }
    let spec = if text(v, "kind") == "ResourceClaimTemplate" {
        object_mut(v, "spec").and_then(|s| object_mut(s, "spec"))
    } else {
        object_mut(v, "spec")
    };
    let Some(devices) = spec.and_then(|s| object_mut(s, "devices")) else {
        return;
    };
    for r in items_mut(devices, "requests") {
        if let Some(e) = object_mut(r, "exactly") {
            device_request(e);
        }
        for s in items_mut(r, "firstAvailable") {
            device_request(s);
        }
    }
}

fn device_request(r: &mut Value) {
    default_text(r, "allocationMode", "ExactCount");
    if text(r, "allocationMode") == "ExactCount" && at(r, "count").as_i64().unwrap_or(0) == 0 {
        r["count"] = 1.into();
    }
    device_tolerations(r);
}

fn device_tolerations(v: &mut Value) {
    for t in items_mut(v, "tolerations") {
        default_text(t, "operator", "Equal");
    }
}

/// `ResourceSlice`: its devices' taints are from now on.
pub(crate) fn resource_slice(v: &mut Value) {
    let devices = object_mut(v, "spec").map(|s| items_mut(s, "devices"));
    for d in devices.into_iter().flatten() {
        items_mut(d, "taints").for_each(device_taint);
    }
}

/// `DeviceTaintRule`.
pub(crate) fn device_taint_rule(v: &mut Value) {
    if let Some(t) = object_mut(v, "spec").and_then(|s| object_mut(s, "taint")) {
        device_taint(t);
    }
}

fn device_taint(t: &mut Value) {
    let now = jiff::Timestamp::now().as_second();
    if let Ok(now) = jiff::Timestamp::from_second(now) {
        default(t, "timeAdded", now.to_string());
    }
}

/// `PodCertificateRequest`.
pub(crate) fn pod_certificate_request(v: &mut Value) {
    const DAY_SECONDS: i64 = 24 * 60 * 60;
    if let Some(spec) = object_mut(v, "spec") {
        default(spec, "maxExpirationSeconds", DAY_SECONDS);
    }
}

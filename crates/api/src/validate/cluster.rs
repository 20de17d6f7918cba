//! Configuration, claims, leases, access control, quotas, classes.

use super::Check;
use crate::access::{at, is_empty, list, text};
use apimachinery::names;
use apimachinery::status::FieldError;
use base64::Engine as _;
use serde_json::Value;
use std::collections::HashSet;

/// Most bytes that a ConfigMap or Secret holds.
const DATA_BYTES_MAX: usize = 1024 * 1024;

/// `ConfigMap`.
pub(crate) fn config_map(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let mut size = 0;
    let mut seen = HashSet::new();
    for list in ["data", "binaryData"] {
        for (key, value) in at(v, list).as_object().into_iter().flatten() {
            let path = format!("{list}[{key}]");
            c.rule(path.as_str(), &Value::from(key.as_str()), names::config_key);
            size += value.as_str().map_or(0, str::len);
            if !seen.insert(key) {
                c.invalid(
                    path,
                    &Value::from(key.as_str()),
                    "duplicate of key present in data",
                );
            }
        }
    }
    too_long(&mut c, "", size);
    c.0
}

/// `Secret`.
pub(crate) fn secret(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let data = at(v, "data");
    let mut size = 0;
    for (key, value) in data.as_object().into_iter().flatten() {
        let path = format!("data[{key}]");
        c.rule(path, &Value::from(key.as_str()), names::config_key);
        // Base64 takes four characters for three bytes.
        size += value.as_str().map_or(0, |s| s.len() / 4 * 3);
    }
    too_long(&mut c, "data", size);
    for key in needed_keys(text(v, "type")) {
        let value = data.get(*key);
        if value.is_none() {
            c.required(format!("data[{key}]"), "");
        } else if *key == ".dockerconfigjson" && !is_json(value) {
            c.invalid(
                format!("data[{key}]"),
                &Value::from("<secret contents redacted>"),
                "invalid character in literal",
            );
        }
    }
    if text(v, "type") == "kubernetes.io/service-account-token"
        && at(v, "metadata.annotations")
            .get("kubernetes.io/service-account.name")
            .is_none()
    {
        c.required(
            "metadata.annotations[kubernetes.io/service-account.name]",
            "",
        );
    }
    c.0
}

fn needed_keys(kind: &str) -> &'static [&'static str] {
    match kind {
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        _ => &[],
    }
}

fn is_json(v: Option<&Value>) -> bool {
    let text = v.and_then(Value::as_str).unwrap_or_default();
    let bytes = base64::engine::general_purpose::STANDARD.decode(text);
    bytes.is_ok_and(|b| serde_json::from_slice::<serde::de::IgnoredAny>(&b).is_ok())
}

fn too_long(c: &mut Check, path: &str, size: usize) {
    if size > DATA_BYTES_MAX {
        c.add(FieldError::too_long(path, DATA_BYTES_MAX));
    }
}

/// What is marked `immutable` stays as it is for good.
pub(crate) fn config_map_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    sealed(&mut c, new, old, &["data", "binaryData"]);
    c.0
}

/// The same; a secret's type never changes.
pub(crate) fn secret_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    c.immutable("type", new, old);
    sealed(&mut c, new, old, &["data"]);
    c.0
}

fn sealed(c: &mut Check, new: &Value, old: &Value, fields: &[&str]) {
    if at(old, "immutable") != true {
        return;
    }
    if at(new, "immutable") != true {
        c.forbidden("immutable", "field is immutable when `immutable` is set");
    }
    for f in fields {
        let (n, o) = (at(new, f), at(old, f));
        if n != o && !(is_empty(n) && is_empty(o)) {
            c.forbidden(*f, "field is immutable when `immutable` is set");
        }
    }
}

/// `PersistentVolumeClaim`.
pub(crate) fn claim(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    if list(v, "spec.accessModes").is_empty() {
        c.required("spec.accessModes", "at least 1 access mode is required");
    }
    access_modes(&mut c, v);
    let storage = at(v, "spec.resources.requests.storage");
    if storage.is_null() {
        c.required("spec.resources[storage]", "");
    } else {
        let q = c.quantity("spec.resources[storage]", storage);
        if q.is_some_and(|q| q.nano == 0) {
            c.invalid(
                "spec.resources[storage]",
                storage,
                "must be greater than zero",
            );
        }
    }
    c.optional_one_of(
        "spec.volumeMode",
        at(v, "spec.volumeMode"),
        &["Block", "Filesystem"],
    );
    c.0
}

/// Those that there are; the one of a single pod stands alone.
fn access_modes(c: &mut Check, v: &Value) {
    const ALONE: &str = "ReadWriteOncePod";
    let modes = list(v, "spec.accessModes");
    for mode in modes {
        let known = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", ALONE];
        c.one_of("spec.accessModes", mode, &known);
    }
    if modes.iter().any(|m| m == ALONE) && modes.iter().any(|m| m != ALONE) {
        c.forbidden(
            "spec.accessModes",
            "may not use ReadWriteOncePod with other access modes",
        );
    }
}

/// A bound claim may grow, down to what it has where growing has failed, and nothing else.
/// Whether its class lets it is admission's to say.
pub(crate) fn claim_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let size = |v: &Value, path: &str| {
        apimachinery::quantity::Quantity::from_json(at(v, path)).map_or(0, |q| q.nano)
    };
    const ASKED: &str = "spec.resources.requests.storage";
    let (wants, wanted) = (size(new, ASKED), size(old, ASKED));
    let sized = wants == wanted || text(old, "status.phase") == "Bound";
    let frozen = |v: &Value| {
        let mut spec = at(v, "spec").clone();
        if let Some(map) = spec.as_object_mut() {
            map.remove("volumeAttributesClassName");
            if text(old, "spec.volumeName").is_empty() {
                // The binder names the volume.
                map.remove("volumeName");
            }
            if at(old, "spec.storageClassName").is_null() {
                // One that had none may get the class that has become the default.
                map.remove("storageClassName");
            }
        }
        let requests = spec.pointer_mut("/resources/requests");
        if let Some(requests) = requests.and_then(Value::as_object_mut).filter(|_| sized) {
            requests.remove("storage");
        }
        spec
    };
    let mut c = Check::default();
    if frozen(new) != frozen(old) {
        c.forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        );
    }
    if wants < wanted && wants <= size(old, "status.capacity.storage") {
        c.forbidden(ASKED, "field can not be less than status.capacity");
    }
    c.0
}

/// `PersistentVolume`.
pub(crate) fn volume(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    if list(v, "spec.accessModes").is_empty() {
        c.required("spec.accessModes", "");
    }
    access_modes(&mut c, v);
    let storage = at(v, "spec.capacity.storage");
    if storage.is_null() {
        c.required("spec.capacity", "");
    } else {
        c.quantity("spec.capacity[storage]", storage);
    }
    c.optional_one_of(
        "spec.persistentVolumeReclaimPolicy",
        at(v, "spec.persistentVolumeReclaimPolicy"),
        &["Delete", "Recycle", "Retain"],
    );
    c.0.extend(super::pod_context::volume_affinity(v));
    c.0
}

/// What a `PersistentVolume` is stays; for whom, and what becomes of it, does not.
pub(crate) fn volume_update(new: &Value, old: &Value) -> Vec<FieldError> {
    const NOT_OF_THE_SOURCE: [&str; 9] = [
        "accessModes",
        "capacity",
        "claimRef",
        "mountOptions",
        "nodeAffinity",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "volumeAttributesClassName",
        "volumeMode",
    ];
    let mut c = Check::default();
    let source = |v: &Value| {
        let mut spec = at(v, "spec").clone();
        if let Some(spec) = spec.as_object_mut() {
            spec.retain(|k, v| !NOT_OF_THE_SOURCE.contains(&&**k) && !v.is_null());
        }
        // What it is made larger by may be said later.
        let before = at(old, "spec.csi.controllerExpandSecretRef");
        if let Some(csi) = spec.get_mut("csi").and_then(Value::as_object_mut)
            && before.is_null()
        {
            csi.remove("controllerExpandSecretRef");
        }
        spec
    };
    if source(new) != source(old) {
        c.forbidden(
            "spec.persistentvolumesource",
            "spec.persistentvolumesource is immutable after creation",
        );
    }
    let (mode, affinity) = (at(new, "spec.volumeMode"), at(new, "spec.nodeAffinity"));
    if mode != at(old, "spec.volumeMode") {
        c.invalid("volumeMode", mode, super::IMMUTABLE);
    }
    let before = at(old, "spec.nodeAffinity");
    if !before.is_null() && affinity != before {
        c.invalid("nodeAffinity", affinity, super::IMMUTABLE);
    }
    c.0
}

/// A `Node`'s addresses for pods, and who provides it, are given once.
pub(crate) fn node_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    for (path, detail) in [
        (
            "spec.podCIDRs",
            "node updates may not change podCIDR except from \"\" to valid",
        ),
        (
            "spec.providerID",
            "node updates may not change providerID except from \"\" to valid",
        ),
    ] {
        if !is_empty(at(old, path)) && at(new, path) != at(old, path) {
            c.forbidden(path, detail);
        }
    }
    c.0
}

/// What a `ResourceQuota` counts stays.
pub(crate) fn resource_quota_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let scopes = |v| list(v, "spec.scopes").iter().collect::<HashSet<_>>();
    let mut c = Check::default();
    if scopes(new) != scopes(old) {
        c.invalid("spec.scopes", at(new, "spec.scopes"), super::IMMUTABLE);
    }
    c.0
}

/// `Lease`.
pub(crate) fn lease(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    for (name, minimum) in [("leaseDurationSeconds", 1), ("leaseTransitions", 0)] {
        let path = format!("spec.{name}");
        if let Some(n) = at(v, &path).as_i64()
            && n < minimum
        {
            let detail = if minimum == 1 {
                "must be greater than 0"
            } else {
                "must be greater than or equal to 0"
            };
            c.invalid(path.clone(), at(v, &path), detail);
        }
    }
    c.0
}

/// `Role` and `ClusterRole`.
pub(crate) fn role(v: &Value) -> Vec<FieldError> {
    let namespaced = text(v, "kind") == "Role";
    let mut c = Check::default();
    for (i, r) in list(v, "rules").iter().enumerate() {
        let path = format!("rules[{i}]");
        if list(r, "verbs").is_empty() {
            c.required(
                format!("{path}.verbs"),
                "verbs must contain at least one value",
            );
        }
        if !list(r, "nonResourceURLs").is_empty() {
            if namespaced {
                c.invalid(
                    format!("{path}.nonResourceURLs"),
                    at(r, "nonResourceURLs"),
                    "namespaced rules cannot apply to non-resource URLs",
                );
            }
            if !list(r, "apiGroups").is_empty() || !list(r, "resources").is_empty() {
                c.invalid(
                    format!("{path}.nonResourceURLs"),
                    at(r, "nonResourceURLs"),
                    "rules cannot apply to both regular resources and non-resource URLs",
                );
            }
            continue;
        }
        if list(r, "apiGroups").is_empty() {
            c.required(
                format!("{path}.apiGroups"),
                "resource rules must supply at least one api group",
            );
        }
        if list(r, "resources").is_empty() {
            c.required(
                format!("{path}.resources"),
                "resource rules must supply at least one resource",
            );
        }
    }
    c.0
}

/// `RoleBinding` and `ClusterRoleBinding`.
pub(crate) fn role_binding(v: &Value) -> Vec<FieldError> {
    const RBAC: &str = "rbac.authorization.k8s.io";
    let namespaced = text(v, "kind") == "RoleBinding";
    let mut c = Check::default();
    if text(v, "roleRef.apiGroup") != RBAC {
        c.add(FieldError::not_supported(
            "roleRef.apiGroup",
            at(v, "roleRef.apiGroup"),
            &[RBAC],
        ));
    }
    let kinds: &[&str] = if namespaced {
        &["Role", "ClusterRole"]
    } else {
        &["ClusterRole"]
    };
    if !kinds.contains(&text(v, "roleRef.kind")) {
        c.add(FieldError::not_supported(
            "roleRef.kind",
            at(v, "roleRef.kind"),
            kinds,
        ));
    }
    c.required_rule("roleRef.name", at(v, "roleRef.name"), names::path_segment);
    for (i, s) in list(v, "subjects").iter().enumerate() {
        let path = format!("subjects[{i}]");
        if text(s, "name").is_empty() {
            c.required(format!("{path}.name"), "");
        }
        match text(s, "kind") {
            "ServiceAccount" => {
                if !is_empty(at(s, "name")) {
                    c.rule(
                        format!("{path}.name"),
                        at(s, "name"),
                        names::dns1123_subdomain,
                    );
                }
                if !text(s, "apiGroup").is_empty() {
                    c.add(FieldError::not_supported(
                        format!("{path}.apiGroup"),
                        at(s, "apiGroup"),
                        &[""],
                    ));
                }
                if text(s, "namespace").is_empty() && !namespaced {
                    c.required(format!("{path}.namespace"), "");
                }
            }
            "User" | "Group" => {
                if text(s, "apiGroup") != RBAC {
                    c.add(FieldError::not_supported(
                        format!("{path}.apiGroup"),
                        at(s, "apiGroup"),
                        &[RBAC],
                    ));
                }
            }
            _ => c.add(FieldError::not_supported(
                format!("{path}.kind"),
                at(s, "kind"),
                &["ServiceAccount", "User", "Group"],
            )),
        }
    }
    c.0
}

/// What a binding grants is fixed; to whom is not.
pub(crate) fn role_binding_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    if at(new, "roleRef") != at(old, "roleRef") {
        c.invalid("roleRef", at(new, "roleRef"), "cannot change roleRef");
    }
    c.0
}

/// `Namespace`.
pub(crate) fn namespace(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    for (i, finalizer) in list(v, "spec.finalizers").iter().enumerate() {
        let name = finalizer.as_str().unwrap_or_default();
        let path = format!("spec.finalizers[{i}]");
        if let Err(e) = names::qualified_name(name) {
            c.invalid(path, finalizer, e);
        } else if name != "kubernetes" && !name.contains('/') {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            c.invalid(path, finalizer, detail);
        }
    }
    c.0
}

/// `LimitRange` and `ResourceQuota`: quantities must be such.
pub(crate) fn resource_quota(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    for (name, q) in at(v, "spec.hard").as_object().into_iter().flatten() {
        c.quantity(&format!("spec.hard[{name}]"), q);
    }
    super::policies::scopes(&mut c, v);
    c.0
}

/// `PriorityClass`.
pub(crate) fn priority_class(v: &Value) -> Vec<FieldError> {
    const USER_MAX: i64 = 1_000_000_000;
    let mut c = Check::default();
    let value = at(v, "value").as_i64().unwrap_or(0);
    let system = matches!(
        text(v, "metadata.name"),
        "system-cluster-critical" | "system-node-critical"
    );
    if value > USER_MAX && !system {
        c.forbidden(
            "value",
            format!("maximum allowed value of a user defined priority is {USER_MAX}"),
        );
    }
    if text(v, "metadata.name").starts_with("system-") && !system {
        c.forbidden(
            "metadata.name",
            "priority class names with 'system-' prefix are reserved for system use only. error: ",
        );
    }
    c.one_of(
        "preemptionPolicy",
        at(v, "preemptionPolicy"),
        &["PreemptLowerPriority", "Never"],
    );
    c.0
}

/// A `PriorityClass`'s meaning stays.
pub(crate) fn priority_class_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    if at(new, "value") != at(old, "value") {
        c.forbidden("value", "may not be changed in an update.");
    }
    if at(new, "preemptionPolicy") != at(old, "preemptionPolicy") {
        c.invalid(
            "preemptionPolicy",
            at(new, "preemptionPolicy"),
            super::IMMUTABLE,
        );
    }
    c.0
}

/// `StorageClass`.
pub(crate) fn storage_class(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    if text(v, "provisioner").is_empty() {
        c.required("provisioner", "");
    }
    c.one_of(
        "reclaimPolicy",
        at(v, "reclaimPolicy"),
        &["Delete", "Retain"],
    );
    c.one_of(
        "volumeBindingMode",
        at(v, "volumeBindingMode"),
        &["Immediate", "WaitForFirstConsumer"],
    );
    c.0
}

/// A `StorageClass` is what volumes were made by.
pub(crate) fn storage_class_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    for (path, detail) in [
        ("parameters", "updates to parameters are forbidden."),
        ("provisioner", "updates to provisioner are forbidden."),
        ("reclaimPolicy", "updates to reclaimPolicy are forbidden."),
    ] {
        let (n, o) = (at(new, path), at(old, path));
        if n != o && !(is_empty(n) && is_empty(o)) {
            c.forbidden(path, detail);
        }
    }
    c.immutable("volumeBindingMode", new, old);
    c.0
}

/// `RuntimeClass`.
pub(crate) fn runtime_class(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    c.required_rule("handler", at(v, "handler"), names::dns1123_label);
    c.0
}

/// A `RuntimeClass`'s handler stays.
pub(crate) fn runtime_class_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    c.immutable("handler", new, old);
    c.0
}

/// `Node`: taints and labels that everybody reads.
pub(crate) fn node(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let mut seen = HashSet::new();
    for (i, t) in list(v, "spec.taints").iter().enumerate() {
        let path = format!("spec.taints[{i}]");
        c.required_rule(format!("{path}.key"), at(t, "key"), names::qualified_name);
        if !is_empty(at(t, "value")) {
            c.rule(format!("{path}.value"), at(t, "value"), names::label_value);
        }
        c.one_of(
            format!("{path}.effect"),
            at(t, "effect"),
            &["NoSchedule", "PreferNoSchedule", "NoExecute"],
        );
        if !seen.insert((text(t, "key"), text(t, "effect"))) {
            let mut e = FieldError::duplicate(path, t);
            e.message
                .push_str(": taints must be unique by key and effect pair");
            c.add(e);
        }
    }
    c.0
}

/// Requests and limits of a `LimitRange`'s items are quantities.
pub(crate) fn limit_range(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    super::policies::limit_range(&mut c, v);
    c.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(errors: &[FieldError]) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn configuration() {
        assert_eq!(
            shown(&config_map(&json!({"data": {"a/b": "x"}}))),
            [
                r#"data[a/b]: Invalid value: "a/b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"#
            ]
        );
        let old = json!({"data": {"a": "1"}, "immutable": true});
        assert_eq!(
            shown(&config_map_update(&json!({"data": {"a": "2"}}), &old)),
            [
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set",
            ]
        );
        assert_eq!(
            shown(&secret(
                &json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}})
            )),
            ["data[tls.key]: Required value"]
        );
    }

    #[test]
    fn what_was_given_once_stays() {
        let fields = |errors: Vec<FieldError>| -> Vec<String> {
            errors.into_iter().map(|e| e.field).collect()
        };
        let old = json!({"spec": {"capacity": {"storage": "1"}, "hostPath": {"path": "/a"},
            "volumeMode": "Filesystem", "nodeAffinity": {"required": {}}}});
        let mut new = old.clone();
        new["spec"]["capacity"]["storage"] = json!("2");
        new["spec"]["claimRef"] = json!({"name": "c"});
        assert_eq!(volume_update(&new, &old), []);
        new["spec"]["hostPath"]["path"] = json!("/b");
        new["spec"]["volumeMode"] = json!("Block");
        new["spec"]["nodeAffinity"] = Value::Null;
        assert_eq!(
            fields(volume_update(&new, &old)),
            ["spec.persistentvolumesource", "volumeMode", "nodeAffinity"]
        );
        let csi = |secret: Value| json!({"spec": {"csi": {"driver": "x.y", "controllerExpandSecretRef": secret}}});
        let (none, one, two) = (
            csi(Value::Null),
            csi(json!({"name": "a"})),
            csi(json!({"name": "b"})),
        );
        assert_eq!(volume_update(&one, &none), []);
        assert_eq!(
            fields(volume_update(&two, &one)),
            ["spec.persistentvolumesource"]
        );

        let bare = json!({"spec": {}});
        let node = json!({"spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"], "providerID": "x://n"}});
        assert_eq!(node_update(&node, &bare), []);
        assert_eq!(
            fields(node_update(&bare, &node)),
            ["spec.podCIDRs", "spec.providerID"]
        );

        let quota = |scopes: Value| json!({"spec": {"scopes": scopes}});
        let (both, same) = (
            json!(["BestEffort", "Terminating"]),
            json!(["Terminating", "BestEffort"]),
        );
        assert_eq!(
            resource_quota_update(&quota(both.clone()), &quota(same)),
            []
        );
        assert_eq!(
            fields(resource_quota_update(&quota(both), &quota(json!([])))),
            ["spec.scopes"]
        );
    }

    #[test]
    fn bindings() {
        let v = json!({"kind": "ClusterRoleBinding",
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
            "subjects": [{"kind": "ServiceAccount", "name": "a"}]});
        assert_eq!(
            shown(&role_binding(&v)),
            [
                r#"roleRef.kind: Unsupported value: "Role": supported values: "ClusterRole""#,
                "subjects[0].namespace: Required value",
            ]
        );
        let mut new = v.clone();
        new["roleRef"]["name"] = "s".into();
        assert_eq!(role_binding_update(&new, &v)[0].field, "roleRef");
    }
}

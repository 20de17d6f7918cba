//! What a node may read because a pod of its names it: Secrets and ConfigMaps, one by one, as
//! upstream's node authorizer has it. What else a node may do is RBAC's, and what it may
//! write is further bounded by admission (NodeRestriction).
//!
//! The agent in the server's own process is believed: it makes pods that the server does not
//! have yet.

use super::Attributes;
use crate::admission::node_restriction::{is_mirror, node_of};
use crate::authn::User;
use crate::row::Row;
use crate::server_state::Core;
use serde_json::Value;

/// Where a pod names a Secret, as `KEY: {name: …}` or in a list of these.
const SECRETS: &[&str] = &[
    "secret",
    "secretRef",
    "secretKeyRef",
    "imagePullSecrets",
    "nodePublishSecretRef",
];
/// The same for ConfigMaps.
const CONFIG_MAPS: &[&str] = &["configMap", "configMapRef", "configMapKeyRef"];

/// Whether this is a node that reads what it needs. `own` is the server's own process.
pub(crate) fn allowed(core: &Core, user: &User, asked: &Attributes<'_>, own: bool) -> bool {
    let Some(node) = node_of(user) else {
        return false;
    };
    let reads = asked.resource_request
        && asked.group.is_empty()
        && asked.subresource.is_empty()
        && matches!(asked.verb, "get" | "list" | "watch");
    let keys = match asked.resource {
        "secrets" => SECRETS,
        "configmaps" => CONFIG_MAPS,
        _ => return false,
    };
    if !reads || own {
        return reads;
    }
    let (Some(pods), Some(row)) = (core.cache.named("", "pods"), Row::builtin("", "v1", "pods"))
    else {
        return false;
    };
    !asked.name.is_empty()
        && pods.all().iter().any(|pod| {
            pod.namespace() == asked.namespace
                && pod.field(&row, "spec.nodeName") == node
                // Far cheaper than to parse every pod.
                && std::str::from_utf8(&pod.json()).is_ok_and(|text| text.contains(asked.name))
                && {
                    let pod = pod.value();
                    // A node's own word is no reason to let it read.
                    !is_mirror(&pod) && pod_names(&pod["spec"], keys, asked.name)
                }
        })
}

/// Where a pod names other objects.
const NAMING: &[&str] = &[
    "volumes",
    "containers",
    "initContainers",
    "ephemeralContainers",
];

fn pod_names(spec: &Value, keys: &[&str], name: &str) -> bool {
    finds(spec, keys, &|found| found == name)
}

/// Whether a pod names any Secret or ConfigMap.
pub(crate) fn names_any(spec: &Value) -> bool {
    finds(spec, SECRETS, &|_| true) || finds(spec, CONFIG_MAPS, &|_| true)
}

/// Whether a pod names, by one of these keys, an object that is meant.
fn finds(spec: &Value, keys: &[&str], meant: &dyn Fn(&Value) -> bool) -> bool {
    let mut pull = spec["imagePullSecrets"].as_array().into_iter().flatten();
    NAMING
        .iter()
        .any(|field| finds_below(&spec[*field], keys, meant))
        || (keys.contains(&"imagePullSecrets") && pull.any(|secret| meant(&secret["name"])))
}

fn finds_below(value: &Value, keys: &[&str], meant: &dyn Fn(&Value) -> bool) -> bool {
    match value {
        Value::Object(fields) => fields.iter().any(|(key, value)| {
            let named = keys.contains(&&**key) && value.is_object() && meant(&value["name"]);
            let by_name = key == "secretName" && keys.contains(&"secret") && meant(value);
            named || by_name || finds_below(value, keys, meant)
        }),
        Value::Array(all) => all.iter().any(|value| finds_below(value, keys, meant)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_name_what_their_node_may_read() {
        let spec = json!({
            "volumes": [
                {"name": "a", "secret": {"secretName": "volume"}},
                {"name": "b", "configMap": {"name": "map"}},
                {"name": "c", "projected": {"sources": [
                    {"secret": {"name": "part"}}, {"configMap": {"name": "root"}}]}},
            ],
            "containers": [{"name": "label", "env": [
                {"name": "x", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}}],
                "envFrom": [{"configMapRef": {"name": "env"}}]}],
            "imagePullSecrets": [{"name": "pull"}],
        });
        for name in ["volume", "part", "key", "pull"] {
            assert!(pod_names(&spec, SECRETS, name), "{name}");
            assert!(!pod_names(&spec, CONFIG_MAPS, name), "{name}");
        }
        for name in ["map", "root", "env"] {
            assert!(pod_names(&spec, CONFIG_MAPS, name), "{name}");
            assert!(!pod_names(&spec, SECRETS, name), "{name}");
        }
        assert!(!pod_names(&spec, SECRETS, "label"));
        let spec = json!({"nodeSelector": {"secretName": "x"}, "containers": [{"name": "c"}]});
        assert!(!pod_names(&spec, SECRETS, "x") && !names_any(&spec));
        for spec in [
            json!({"imagePullSecrets": [{"name": "x"}]}),
            json!({"volumes": [{"csi": {"nodePublishSecretRef": {"name": "x"}}}]}),
            json!({"ephemeralContainers": [{"envFrom": [{"secretRef": {"name": "x"}}]}]}),
            json!({"volumes": [{"azureFile": {"secretName": "x"}}]}),
        ] {
            assert!(pod_names(&spec, SECRETS, "x") && names_any(&spec), "{spec}");
        }
    }
}

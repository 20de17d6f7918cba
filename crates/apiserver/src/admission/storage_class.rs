//! DefaultStorageClass: a new claim that names no class gets the default one.
//!
//! Upstream: "Storage Classes", "Default StorageClass"; of several defaults the newest.

use crate::registry::Call;
use api::constants::ANNOTATIONS_DEFAULT_CLASS;
use serde_json::Value;

const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// Fills in a new claim.
pub(super) fn mutate(call: &Call<'_>, claim: &mut Value) {
    // An empty name asks for no class.
    if class_of(claim).is_some() || !claim["spec"].is_object() {
        return;
    }
    let kind = call.core.cache.named("storage.k8s.io", "storageclasses");
    let all = kind.into_iter().flat_map(|k| k.all()).map(|o| o.value());
    if let Some(class) = choose(all) {
        claim["spec"]["storageClassName"] = class["metadata"]["name"].clone();
    }
}

/// The class that a claim states, be it none (`""`).
pub(super) fn class_of(claim: &Value) -> Option<&str> {
    let old = &claim["metadata"]["annotations"][OLD_CLASS];
    old.as_str().or(claim["spec"]["storageClassName"].as_str())
}

fn choose(all: impl Iterator<Item = Value>) -> Option<Value> {
    let is_default = |c: &Value| {
        let annotations = &c["metadata"]["annotations"];
        ANNOTATIONS_DEFAULT_CLASS
            .iter()
            .any(|key| annotations[*key] == "true")
    };
    let text = |c: &Value, key: &str| c["metadata"][key].as_str().unwrap_or_default().to_owned();
    all.filter(is_default).max_by(|a, b| {
        text(a, "creationTimestamp")
            .cmp(&text(b, "creationTimestamp"))
            .then_with(|| text(b, "name").cmp(&text(a, "name")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_newest_default_wins() {
        let class = |name: &str, at: &str, default: &str| {
            json!({"metadata": {"name": name, "creationTimestamp": at,
                "annotations": {"storageclass.kubernetes.io/is-default-class": default}}})
        };
        let all = [
            class("a", "2026-01-01T00:00:00Z", "true"),
            class("b", "2026-01-02T00:00:00Z", "true"),
            class("c", "2026-01-02T00:00:00Z", "true"),
            class("d", "2026-01-03T00:00:00Z", "false"),
        ];
        let chosen = choose(all.into_iter()).unwrap_or_default();
        assert_eq!(chosen["metadata"]["name"], "b");
        assert_eq!(choose(std::iter::empty()), None);
    }
}

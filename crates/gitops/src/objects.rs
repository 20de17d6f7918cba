//! What tells applied objects apart, and the inventory that remembers them.
//!
//! An entry of the inventory is `namespace_name_group_kind` and a version, as Flux writes
//! them; a `:` in a name (RBAC has such) stands there as `__`.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// An object whatever its version.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    /// Kind.
    pub kind: String,
    /// API group, empty for the core group.
    pub group: String,
    /// Namespace, empty for cluster-scoped kinds.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ObjectId {
    /// Of an object as it is written.
    pub fn of(object: &Value) -> Self {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let api_version = object["apiVersion"].as_str().unwrap_or_default();
        Self {
            kind: text(&object["kind"]),
            group: api_version
                .split_once('/')
                .map_or_else(String::new, |(group, _)| group.to_owned()),
            namespace: text(&object["metadata"]["namespace"]),
            name: text(&object["metadata"]["name"]),
        }
    }
}

impl fmt::Display for ObjectId {
    /// `Kind/namespace/name`, as conditions and events name objects.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// An entry of an inventory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Entry {
    /// `namespace_name_group_kind`.
    pub id: String,
    /// API version.
    pub v: String,
}

impl Entry {
    /// Of an object in a version.
    pub fn new(id: &ObjectId, version: &str) -> Self {
        Self {
            id: format!(
                "{}_{}_{}_{}",
                id.namespace,
                id.name.replace(':', "__"),
                id.group,
                id.kind
            ),
            v: version.to_owned(),
        }
    }

    /// The object that it stands for; none when it is malformed.
    pub fn object(&self) -> Option<ObjectId> {
        // Names may hold `__`, the other parts hold no `_`.
        let (namespace, rest) = self.id.split_once('_')?;
        let (rest, kind) = rest.rsplit_once('_')?;
        let (name, group) = rest.rsplit_once('_')?;
        if name.is_empty() || kind.is_empty() {
            return None;
        }
        Some(ObjectId {
            kind: kind.to_owned(),
            group: group.to_owned(),
            namespace: namespace.to_owned(),
            name: name.replace("__", ":"),
        })
    }

    /// The value of `apiVersion`.
    pub fn api_version(&self) -> String {
        match self.object() {
            Some(id) if !id.group.is_empty() => format!("{}/{}", id.group, self.v),
            _ => self.v.clone(),
        }
    }
}

/// The part of `apiVersion` after the group.
pub fn version_of(object: &Value) -> &str {
    let whole = object["apiVersion"].as_str().unwrap_or_default();
    whole.split_once('/').map_or(whole, |(_, v)| v)
}

/// Where a kind stands when many are applied: what others need comes first.
pub fn rank(group: &str, kind: &str) -> u8 {
    match (group, kind) {
        ("", "Namespace") | ("apiextensions.k8s.io", "CustomResourceDefinition") => 0,
        (_, kind) if kind.ends_with("Class") => 1,
        ("", "ResourceQuota" | "LimitRange" | "ServiceAccount") => 2,
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => 3,
        ("rbac.authorization.k8s.io", _) => 4,
        ("", "ConfigMap" | "Secret" | "PersistentVolume") => 5,
        ("", "PersistentVolumeClaim") => 6,
        ("", "Service" | "Endpoints") => 7,
        ("apiregistration.k8s.io", _) => 11,
        ("admissionregistration.k8s.io", _) => 12,
        ("" | "apps" | "batch", _) => 8,
        ("autoscaling" | "policy" | "networking.k8s.io", _) => 9,
        _ => 10,
    }
}

/// Whether what follows may need this one to be there and working.
pub fn is_first_stage(id: &ObjectId) -> bool {
    rank(&id.group, &id.kind) <= 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn entries_are_written_as_flux_writes_them() {
        let deployment = ObjectId {
            kind: "Deployment".into(),
            group: "apps".into(),
            namespace: "web".into(),
            name: "front".into(),
        };
        assert_eq!(
            Entry::new(&deployment, "v1").id,
            "web_front_apps_Deployment"
        );
        let role = Entry {
            id: "_system__web_rbac.authorization.k8s.io_ClusterRole".into(),
            v: "v1".into(),
        };
        let id = role.object().unwrap();
        assert_eq!(id.name, "system:web");
        assert_eq!(role.api_version(), "rbac.authorization.k8s.io/v1");
        for junk in ["", "_", "a_b", "__", "___"] {
            let entry = Entry {
                id: junk.into(),
                v: "v1".into(),
            };
            assert_eq!(entry.object(), None, "{junk}");
        }
    }

    proptest! {
        #[test]
        fn an_entry_stands_for_its_object(
            namespace in "[a-z]{0,5}", name in "[a-z][a-z0-9.:-]{0,8}", group in "[a-z.]{0,6}", kind in "[A-Z][a-z]{1,5}",
        ) {
            let id = ObjectId { kind, group, namespace, name };
            prop_assert_eq!(Entry::new(&id, "v1").object(), Some(id));
        }
    }
}

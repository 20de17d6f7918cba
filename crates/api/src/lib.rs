//! The resource table: every built-in kind with its names, scope, subresources,
//! defaults, validation, update rules and printed columns; and Salp's own names.
//!
//! Pure data and functions over `serde_json::Value`. Start with [`resources`].

mod access;
mod catalog;
mod columns;
pub mod constants;
pub mod cron;
mod defaults;
mod names;
pub mod partition;
pub mod policy;
pub mod quota;
mod strategy;
mod validate;
mod warnings;

pub use columns::human_duration;
pub use validate::certificates::approval_errors;
pub use validate::pod_parts::part_errors as pod_part_errors;

use apimachinery::status::FieldError;
use serde_json::Value;

/// One row of the resource table.
#[derive(Clone, Copy, Debug)]
pub struct Resource {
    /// API group, empty for core.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Plural, as in paths.
    pub plural: &'static str,
    /// Singular, as kubectl accepts it.
    pub singular: &'static str,
    /// Short names.
    pub short_names: &'static [&'static str],
    /// Categories, such as `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Verbs in discovery's order. Virtual kinds (`TokenReview`) have `create` only.
    pub verbs: &'static [&'static str],
    /// Objects are stored; false for reviews and the like.
    pub stored: bool,
    /// Has `/status`.
    pub status: bool,
    /// A create keeps the status that the client sent (nodes: a kubelet registers with one).
    pub status_on_create: bool,
    /// Where `/scale` finds replicas, if it has it.
    pub scale: Option<Scale>,
    /// Other subresources: (name, kind's group, version, kind, verbs).
    pub subresources: &'static [Subresource],
    /// `metadata.generation` is kept: it rises with any change outside `metadata` and `status`.
    pub generation: bool,
    /// OpenAPI name of the type, key into `Schema::builtin()`.
    pub type_name: &'static str,
    /// Two rows with the same stored key hold the same objects in other versions
    /// (`events` in core and events.k8s.io): (group, version) of the row that is stored,
    /// which has the same plural.
    pub stored_as: Option<(&'static str, &'static str)>,
    /// Fills defaults in.
    pub default: fn(&mut Value),
    /// Sets or clears what clients may not write at create (status, generation are done by the registry).
    pub prepare_create: fn(&mut Value),
    /// The same at update (`new`, `old`).
    pub prepare_update: fn(&mut Value, &Value),
    /// Checks a whole object; no errors means valid.
    pub validate: fn(&Value) -> Vec<FieldError>,
    /// Checks a change (`new`, `old`): immutable fields.
    pub validate_update: fn(&Value, &Value) -> Vec<FieldError>,
    /// Checks what only a new object must satisfy, after `validate`.
    pub validate_create: fn(&Value) -> Vec<FieldError>,
    /// Checks what is written by `/status` (`new`, `old`).
    pub validate_status: fn(&Value, &Value) -> Vec<FieldError>,
    /// What a valid write (`new`, `old` at an update) is warned of.
    pub warnings: fn(&Value, Option<&Value>) -> Vec<String>,
    /// What clients of the kind are told, if it is deprecated.
    pub deprecation: Option<&'static str>,
    /// Selectable fields besides `metadata.name` and `metadata.namespace`.
    pub selectable: &'static [&'static str],
    /// A table starts with the column `Name` (all kinds but events).
    pub name_column: bool,
    /// Printed columns after `Name` (Age included where upstream has it).
    pub columns: &'static [Column],
    /// The cells of one object, one a column, in order. `now` is Unix seconds.
    pub row: fn(&Value, i64) -> Vec<Value>,
    /// Checks `metadata.name`; `Err` is upstream's message.
    pub validate_name: fn(&str) -> Result<(), String>,
}

/// Paths that `/scale` reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Path of desired replicas.
    pub spec_replicas: &'static str,
    /// Path of current replicas.
    pub status_replicas: &'static str,
}

/// A subresource other than status and scale.
#[derive(Clone, Copy, Debug)]
pub struct Subresource {
    /// Path segment, such as `log`.
    pub name: &'static str,
    /// Group, version and kind of its body in discovery.
    pub gvk: (&'static str, &'static str, &'static str),
    /// Verbs in discovery.
    pub verbs: &'static [&'static str],
}

/// A column of `kubectl get`.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Heading.
    pub name: &'static str,
    /// OpenAPI type.
    pub kind: &'static str,
    /// 0 always, 1 only in wide output.
    pub priority: i32,
}

/// All rows. The order is that of discovery.
pub fn resources() -> &'static [Resource] {
    catalog::rows()
}

/// The row of a resource by group, version and plural.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    resources()
        .iter()
        .find(|r| r.group == group && r.version == version && r.plural == plural)
}

/// The row of a kind.
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    resources()
        .iter()
        .find(|r| r.group == group && r.version == version && r.kind == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::HashSet;

    #[test]
    fn rows_are_consistent() {
        let mut seen = HashSet::new();
        for r in resources() {
            assert!(
                seen.insert((r.group, r.version, r.plural)),
                "{} twice",
                r.plural
            );
            assert_eq!(r.singular, r.kind.to_lowercase());
            assert!(r.type_name.ends_with(r.kind), "{}", r.type_name);
            let mut verbs = r.verbs.to_vec();
            verbs.sort_unstable();
            assert_eq!(verbs, r.verbs, "{}", r.plural);
            if let Some((group, version)) = r.stored_as {
                assert!(find(group, version, r.plural).is_some_and(|s| s.stored_as.is_none()));
            }
        }
        assert!(resources().len() >= 65);
        assert!(find("apps", "v1", "deployments").is_some());
        assert!(find_kind("", "v1", "Pod").is_some());
    }

    #[test]
    fn short_names_are_unique() {
        let mut seen = HashSet::new();
        for r in resources().iter().filter(|r| r.stored_as.is_none()) {
            for s in r.short_names {
                assert!(seen.insert(*s), "{s} twice");
            }
        }
    }

    /// Bodies are type-checked before, but anything may be missing or null.
    #[test]
    fn sparse_objects_do_no_harm() {
        let spec = json!({
            "ports": [null, {}], "containers": [null, {"env": [null], "ports": [{}]}], "volumes": [{}, null],
            "template": {"spec": {"containers": [{}]}, "metadata": null}, "selector": {}, "strategy": {},
            "jobTemplate": {"spec": {"template": {}}}, "versions": [{}], "rules": [{}], "limits": [{}],
        });
        for r in resources() {
            for v in [
                json!({}),
                json!({"metadata": null, "spec": null, "status": null}),
                json!({"metadata": {}, "spec": {}, "data": {}, "rules": [{}], "subjects": [{}], "webhooks": [{}]}),
                json!({"metadata": {"name": "a", "uid": "u", "labels": null}, "spec": spec.clone()}),
            ] {
                let mut made = v.clone();
                (r.default)(&mut made);
                let once = made.clone();
                (r.default)(&mut made);
                assert_eq!(made, once, "{}: defaults are idempotent", r.plural);
                (r.prepare_create)(&mut made);
                let mut new = made.clone();
                (r.prepare_update)(&mut new, &v);
                let _ = (r.validate)(&new);
                let _ = (r.validate_create)(&new);
                let _ = (r.validate_status)(&new, &v);
                let _ = (r.validate_update)(&new, &v);
                assert_eq!((r.validate_update)(&made, &made), [], "{}", r.plural);
                let _ = (r.row)(&made, 0);
            }
        }
    }
}

//! What is served under a group, version and plural: a row of the built-in resource table or
//! a version of a custom resource. The registry asks a [`Row`] and never cares which.

use crate::definitions::Custom;
use crate::resource_metrics;
use api::{Resource, Subresource};
use apimachinery::schema::{Schema, TypeId};
use apimachinery::{FieldError, Status};
use serde_json::{Value, json};
use std::sync::Arc;

/// Verbs of every custom resource.
const CUSTOM_VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// A served resource. Clones are cheap.
#[derive(Clone, Debug)]
pub(crate) enum Row {
    Builtin(&'static Resource),
    Custom(Arc<Custom>),
}

/// Paths that `/scale` reads and writes, without a leading dot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScalePaths<'r> {
    pub(crate) spec_replicas: &'r str,
    pub(crate) status_replicas: &'r str,
    /// Where the selector is as text; without it `spec.selector` is written as text.
    pub(crate) selector: Option<&'r str>,
}

impl Row {
    /// The built-in row of this name.
    pub(crate) fn builtin(group: &str, version: &str, plural: &str) -> Option<Self> {
        api::find(group, version, plural).map(Self::Builtin)
    }

    pub(crate) fn group(&self) -> &str {
        match self {
            Self::Builtin(r) => r.group,
            Self::Custom(c) => &c.names.group,
        }
    }

    pub(crate) fn version(&self) -> &str {
        match self {
            Self::Builtin(r) => r.version,
            Self::Custom(c) => &c.version,
        }
    }

    pub(crate) fn kind(&self) -> &str {
        match self {
            Self::Builtin(r) => r.kind,
            Self::Custom(c) => &c.names.kind,
        }
    }

    pub(crate) fn list_kind(&self) -> String {
        match self {
            Self::Builtin(r) => format!("{}List", r.kind),
            Self::Custom(c) => c.names.list_kind.to_string(),
        }
    }

    pub(crate) fn plural(&self) -> &str {
        match self {
            Self::Builtin(r) => r.plural,
            Self::Custom(c) => &c.names.plural,
        }
    }

    /// Plural of a built-in kind, empty for custom ones: what rules of single kinds ask,
    /// lest they mean somebody else's `services`.
    pub(crate) fn known(&self) -> &'static str {
        match self {
            Self::Builtin(r) => r.plural,
            Self::Custom(_) => "",
        }
    }

    pub(crate) fn singular(&self) -> &str {
        match self {
            Self::Builtin(r) => r.singular,
            Self::Custom(c) => &c.names.singular,
        }
    }

    pub(crate) fn short_names(&self) -> Vec<&str> {
        match self {
            Self::Builtin(r) => r.short_names.to_vec(),
            Self::Custom(c) => c.names.short_names.iter().map(|s| &**s).collect(),
        }
    }

    pub(crate) fn categories(&self) -> Vec<&str> {
        match self {
            Self::Builtin(r) => r.categories.to_vec(),
            Self::Custom(c) => c.names.categories.iter().map(|s| &**s).collect(),
        }
    }

    pub(crate) fn namespaced(&self) -> bool {
        match self {
            Self::Builtin(r) => r.namespaced,
            Self::Custom(c) => c.names.namespaced,
        }
    }

    pub(crate) fn verbs(&self) -> &'static [&'static str] {
        match self {
            Self::Builtin(r) => r.verbs,
            Self::Custom(_) => CUSTOM_VERBS,
        }
    }

    /// Objects are stored; false for reviews and the like.
    pub(crate) fn stored(&self) -> bool {
        match self {
            Self::Builtin(r) => r.stored,
            Self::Custom(_) => true,
        }
    }

    /// Has `/status`.
    pub(crate) fn status(&self) -> bool {
        match self {
            Self::Builtin(r) => r.status,
            Self::Custom(c) => c.status,
        }
    }

    /// A create keeps the status that the client sent.
    pub(crate) fn status_on_create(&self) -> bool {
        match self {
            Self::Builtin(r) => r.status_on_create,
            Self::Custom(c) => !c.status,
        }
    }

    pub(crate) fn scale(&self) -> Option<ScalePaths<'_>> {
        match self {
            Self::Builtin(r) => r.scale.map(|s| ScalePaths {
                spec_replicas: s.spec_replicas,
                status_replicas: s.status_replicas,
                selector: None,
            }),
            Self::Custom(c) => c.scale.as_ref().map(|s| ScalePaths {
                spec_replicas: &s.spec_replicas,
                status_replicas: &s.status_replicas,
                // Without a path there is no selector.
                selector: Some(s.selector.as_deref().unwrap_or_default()),
            }),
        }
    }

    /// Subresources besides status and scale.
    pub(crate) fn subresources(&self) -> &'static [Subresource] {
        match self {
            Self::Builtin(r) => r.subresources,
            Self::Custom(_) => &[],
        }
    }

    /// `metadata.generation` is kept.
    pub(crate) fn generation(&self) -> bool {
        match self {
            Self::Builtin(r) => r.generation,
            Self::Custom(_) => true,
        }
    }

    /// Objects are stored under another built-in row's names.
    pub(crate) fn stored_elsewhere(&self) -> bool {
        matches!(self, Self::Builtin(r) if r.stored_as.is_some())
    }

    /// The row whose selectable fields and names stored objects have.
    pub(crate) fn stored_row(&self) -> Row {
        match self {
            Self::Builtin(r) => r
                .stored_as
                .and_then(|(g, v)| Self::builtin(g, v, r.plural))
                .unwrap_or_else(|| self.clone()),
            Self::Custom(_) => self.clone(),
        }
    }

    /// Whether objects can be chosen by this field, besides name and namespace.
    pub(crate) fn selectable(&self, path: &str) -> bool {
        match self {
            Self::Builtin(r) => r.selectable.contains(&path),
            Self::Custom(c) => c.selectable.iter().any(|s| **s == *path),
        }
    }

    /// `apiVersion` of its objects.
    pub(crate) fn api_version(&self) -> String {
        match self.group() {
            "" => self.version().to_owned(),
            group => format!("{group}/{}", self.version()),
        }
    }

    /// The schema and the type of its objects in it.
    pub(crate) fn schema(&self) -> Result<(&Schema, TypeId), Status> {
        match self {
            Self::Builtin(r) => {
                let schema = match r.group {
                    resource_metrics::GROUP => resource_metrics::schema(),
                    _ => Schema::builtin(),
                };
                let ty = schema
                    .by_name(r.type_name)
                    .ok_or_else(|| Status::internal(format!("no schema for {}", r.type_name)))?;
                Ok((schema, ty))
            }
            Self::Custom(c) => {
                let compiled = c.compiled()?;
                Ok((&compiled.schema, compiled.root))
            }
        }
    }

    /// Whether its objects have protobuf messages.
    pub(crate) fn has_messages(&self) -> bool {
        matches!(self, Self::Builtin(_)) && self.schema().is_ok()
    }

    /// Fills defaults in.
    pub(crate) fn default(&self, value: &mut Value) {
        match self {
            Self::Builtin(r) => (r.default)(value),
            Self::Custom(c) => c.default(value),
        }
    }

    /// Sets or clears what clients may not write at create.
    pub(crate) fn prepare_create(&self, value: &mut Value) {
        if let Self::Builtin(r) = self {
            (r.prepare_create)(value);
        }
    }

    /// The same at update.
    pub(crate) fn prepare_update(&self, new: &mut Value, old: &Value) {
        if let Self::Builtin(r) = self {
            (r.prepare_update)(new, old);
        }
    }

    /// Checks a new object.
    pub(crate) fn validate(&self, value: &Value) -> Vec<FieldError> {
        match self {
            Self::Builtin(r) => {
                let mut errors = (r.validate)(value);
                errors.extend((r.validate_create)(value));
                errors
            }
            Self::Custom(c) => c.validate(value, None),
        }
    }

    /// Checks a changed object.
    pub(crate) fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        match self {
            Self::Builtin(r) => {
                let mut errors = (r.validate)(new);
                for e in (r.validate_update)(new, old) {
                    if !errors.contains(&e) {
                        errors.push(e);
                    }
                }
                errors
            }
            Self::Custom(c) => c.validate(new, Some(old)),
        }
    }

    /// Checks a changed status.
    pub(crate) fn validate_status(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        match self {
            Self::Builtin(r) => (r.validate_status)(new, old),
            Self::Custom(c) => c.validate(new, Some(old)),
        }
    }

    /// Checks `metadata.name`.
    pub(crate) fn validate_name(&self, name: &str) -> Result<(), String> {
        match self {
            Self::Builtin(r) => (r.validate_name)(name),
            Self::Custom(_) => apimachinery::names::dns1123_subdomain(name),
        }
    }

    /// A table starts with the column `Name`.
    pub(crate) fn name_column(&self) -> bool {
        match self {
            Self::Builtin(r) => r.name_column,
            Self::Custom(_) => true,
        }
    }

    /// How many columns follow `Name`.
    pub(crate) fn column_count(&self) -> usize {
        match self {
            Self::Builtin(r) => r.columns.len(),
            Self::Custom(c) => c.columns.len(),
        }
    }

    /// Column definitions after `Name`.
    pub(crate) fn columns(&self) -> Vec<Value> {
        match self {
            Self::Builtin(r) => r
                .columns
                .iter()
                .map(|c| {
                    json!({
                        "name": c.name, "type": c.kind, "format": "", "priority": c.priority,
                        "description": "",
                    })
                })
                .collect(),
            Self::Custom(c) => c.columns.iter().map(|c| c.definition()).collect(),
        }
    }

    /// The cells of one object after `Name`; `now` is Unix seconds.
    pub(crate) fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        match self {
            Self::Builtin(r) => (r.row)(object, now),
            Self::Custom(c) => c.columns.iter().map(|c| c.cell(object, now)).collect(),
        }
    }

    /// What a valid write is warned of.
    pub(crate) fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        match self {
            Self::Builtin(r) => (r.warnings)(new, old),
            Self::Custom(_) => Vec::new(),
        }
    }

    /// What clients of a deprecated version are told.
    pub(crate) fn deprecation(&self) -> Option<&str> {
        match self {
            Self::Builtin(r) => r.deprecation,
            Self::Custom(c) => c.deprecation.as_deref(),
        }
    }
}

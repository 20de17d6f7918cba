//! The JSON schemas of the built-in types, with the `x-kubernetes-*` extensions.

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Definitions by OpenAPI name.
pub(crate) type Definitions = BTreeMap<String, Definition>;

/// One definition or property.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Definition {
    #[serde(default)]
    pub(crate) description: String,
    #[serde(default)]
    pub(crate) properties: BTreeMap<String, Definition>,
    #[serde(default)]
    pub(crate) required: Vec<String>,
    #[serde(rename = "$ref")]
    pub(crate) reference: Option<String>,
    #[serde(rename = "type")]
    pub(crate) ty: Option<Value>,
    pub(crate) format: Option<String>,
    pub(crate) items: Option<Box<Definition>>,
    #[serde(rename = "additionalProperties")]
    pub(crate) additional: Option<Box<Definition>>,
    #[serde(rename = "x-kubernetes-list-type")]
    pub(crate) list_type: Option<String>,
    #[serde(rename = "x-kubernetes-list-map-keys", default)]
    pub(crate) list_map_keys: Vec<String>,
    #[serde(rename = "x-kubernetes-map-type")]
    pub(crate) map_type: Option<String>,
    #[serde(rename = "x-kubernetes-patch-strategy")]
    pub(crate) patch_strategy: Option<String>,
    #[serde(rename = "x-kubernetes-patch-merge-key")]
    pub(crate) patch_merge_key: Option<String>,
    #[serde(rename = "x-kubernetes-group-version-kind", default)]
    pub(crate) kinds: Vec<Kind>,
}

/// An entry of `x-kubernetes-group-version-kind`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kind {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
}

impl Definition {
    /// The type's name, without the `null` that the schemas add everywhere.
    pub(crate) fn type_name(&self) -> &str {
        match &self.ty {
            Some(Value::String(s)) => s,
            Some(Value::Array(a)) => a
                .iter()
                .filter_map(Value::as_str)
                .find(|s| *s != "null")
                .unwrap_or(""),
            _ => "",
        }
    }

    /// OpenAPI name that a `$ref` leads to.
    pub(crate) fn target(&self) -> Option<&str> {
        self.reference.as_deref()?.rsplit('/').next()
    }
}

/// Reads `_definitions.json`.
pub(crate) fn read(bytes: &[u8]) -> Result<Definitions> {
    let mut all: BTreeMap<String, Value> = serde_json::from_slice(bytes)?;
    let defs = all.remove("$defs").context("no $defs")?;
    Ok(serde_json::from_value(defs)?)
}

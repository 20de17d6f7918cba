//! OpenAPI v3 documents built from a [`crate::schema::Schema`], one a group-version, on demand;
//! and the one of v2 made of them ([`v2`]).
//!
//! They hold what clients read: `kubectl` looks for a `fieldValidation` parameter of PATCH,
//! for merge keys in component schemas, and, for `explain`, for descriptions. Paths are made
//! by [`paths`], component schemas by [`components`]. A document is large and soon dropped:
//! keep its bytes, not the `Value`.

mod components;
mod gnostic;
mod paths;
pub mod v2;

use crate::gvk::GroupVersion;
use crate::schema::{Descriptions, Schema};
use serde_json::{Map, Value, json};

/// One resource as the document needs it.
#[derive(Clone, Debug)]
pub struct ResourcePaths<'a> {
    /// Plural.
    pub plural: &'a str,
    /// Kind.
    pub kind: &'a str,
    /// Whether its paths have `namespaces/{namespace}`.
    pub namespaced: bool,
    /// Verbs that it has: `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verbs: &'a [&'a str],
    /// Subresources with their kind's (group, version, kind): `("scale", ("autoscaling", "v1", "Scale"))`.
    pub subresources: &'a [(&'a str, (&'a str, &'a str, &'a str))],
}

/// A kind that a definition defines, with the schema that it states.
#[derive(Clone, Debug)]
pub struct CustomKind {
    /// Kind.
    pub kind: String,
    /// Kind of its lists.
    pub list_kind: String,
    /// OpenAPI name of its type.
    pub name: String,
    /// `openAPIV3Schema`, which is published as it is with the fields of every object added.
    pub schema: Value,
}

/// The OpenAPI v3 document of a group-version: paths with `x-kubernetes-action`,
/// `x-kubernetes-group-version-kind` and the usual query parameters (`fieldValidation`,
/// `fieldManager`, `dryRun`, `force`…), and every component schema that they reach.
/// It has no descriptions: see [`v3_document_described`].
pub fn v3_document(
    schema: &Schema,
    group: &str,
    version: &str,
    resources: &[ResourcePaths<'_>],
) -> Value {
    let gv = GroupVersion::new(group, version);
    document(schema, None, &gv, resources, Vec::new())
}

/// As [`v3_document`], with descriptions of types and fields ([`Schema::descriptions`]).
pub fn v3_document_described(
    schema: &Schema,
    docs: &Descriptions,
    group: &str,
    version: &str,
    resources: &[ResourcePaths<'_>],
) -> Value {
    let gv = GroupVersion::new(group, version);
    document(schema, Some(docs), &gv, resources, Vec::new())
}

/// As [`v3_document_described`], where some of the kinds are custom resources.
pub fn v3_document_custom(
    schema: &Schema,
    docs: &Descriptions,
    group: &str,
    version: &str,
    resources: &[ResourcePaths<'_>],
    custom: Vec<CustomKind>,
) -> Value {
    let gv = GroupVersion::new(group, version);
    document(schema, Some(docs), &gv, resources, custom)
}

fn document(
    schema: &Schema,
    docs: Option<&Descriptions>,
    gv: &GroupVersion,
    resources: &[ResourcePaths<'_>],
    custom: Vec<CustomKind>,
) -> Value {
    let mut components = components::Components::new(schema, docs, gv);
    for kind in custom {
        components.define(kind);
    }
    let mut all = Map::new();
    for resource in resources {
        paths::add(&mut all, &mut components, gv, resource);
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "unversioned"},
        "paths": all,
        "components": {
            "schemas": components.finish(),
            "securitySchemes": {"BearerToken": {
                "type": "apiKey", "name": "authorization", "in": "header",
                "description": "Bearer Token authentication",
            }},
        },
    })
}

#[cfg(test)]
mod tests;

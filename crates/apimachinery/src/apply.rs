//! Server-side apply: field sets, ownership, merge, conflicts.
//!
//! Follows KEP-555 and the behaviour of `sigs.k8s.io/structured-merge-diff`.
//! `metadata.managedFields` lives in the objects that are passed in and out.

use crate::schema::{Schema, TypeId};
use crate::status::Status;
use serde_json::Value;

/// Who writes, and when.
#[derive(Clone, Debug)]
pub struct Manager<'a> {
    /// `fieldManager`.
    pub name: &'a str,
    /// `apiVersion` of the request.
    pub api_version: &'a str,
    /// Subresource written through, empty for none.
    pub subresource: &'a str,
    /// RFC 3339 time of the request, seconds.
    pub time: &'a str,
}

/// Applies `config` on behalf of a manager. `live` is the stored object (`None`: it is created).
/// Returns the merged object with its `managedFields`; equal to `live` when nothing changed.
///
/// # Errors
/// 409 `Conflict` with one cause a field (reason `FieldManagerConflict`) unless `force`;
/// 400/422 for a config that can't be keyed.
pub fn apply(
    schema: &Schema,
    ty: TypeId,
    live: Option<&Value>,
    config: &Value,
    manager: &Manager<'_>,
    force: bool,
) -> Result<Value, Status> {
    let _ = (schema, ty, live, config, manager, force);
    todo!()
}

/// Updates `managedFields` of `new` after a create, update or patch by `manager`:
/// it owns (operation `Update`) what it changed against `live`; removed fields are dropped
/// from all. A write that changes nothing keeps `live`'s managedFields and their times.
///
/// # Errors
/// 400 for managedFields that a client sent malformed.
pub fn update(
    schema: &Schema,
    ty: TypeId,
    live: Option<&Value>,
    new: &mut Value,
    manager: &Manager<'_>,
) -> Result<(), Status> {
    let _ = (schema, ty, live, new, manager);
    todo!()
}

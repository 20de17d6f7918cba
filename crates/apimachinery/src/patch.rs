//! JSON patch (RFC 6902), JSON merge patch (RFC 7396) and strategic merge patch.

use crate::schema::{Schema, TypeId};
use crate::status::Status;
use serde_json::Value;

/// Applies a JSON patch document (an array of operations).
///
/// # Errors
/// 400 for a malformed patch, 422 `Invalid` when an operation fails (also `test`).
pub fn json_patch(target: &mut Value, patch: &Value) -> Result<(), Status> {
    let _ = (target, patch);
    todo!()
}

/// Applies a JSON merge patch.
pub fn merge_patch(target: &mut Value, patch: &Value) {
    let _ = (target, patch);
    todo!()
}

/// Applies a strategic merge patch with its directives (`$patch`, `$retainKeys`,
/// `$setElementOrder/…`, `$deleteFromPrimitiveList/…`).
///
/// # Errors
/// 400 for a directive that is malformed or does not fit the schema.
pub fn strategic_merge_patch(
    schema: &Schema,
    ty: TypeId,
    target: &mut Value,
    patch: &Value,
) -> Result<(), Status> {
    let _ = (schema, ty, target, patch);
    todo!()
}

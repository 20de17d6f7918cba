//! JSON patch (RFC 6902), JSON merge patch (RFC 7396) and strategic merge patch.
//!
//! The last is Kubernetes' own and schema-driven; it lives in [`strategic`].

mod order;
mod strategic;

pub use strategic::strategic_merge_patch;

use crate::status::Status;
use serde_json::{Value, json};

/// Most operations in one JSON patch; more is answered 413.
pub const JSON_PATCH_OPERATIONS_MAX: usize = 10_000;

/// Applies a JSON patch document (an array of operations).
///
/// # Errors
/// 400 for a malformed patch, 422 `Invalid` when an operation fails (also `test`); `target` is
/// then as it was.
pub fn json_patch(target: &mut Value, patch: &Value) -> Result<(), Status> {
    let count = patch.as_array().map_or(0, Vec::len);
    if count > JSON_PATCH_OPERATIONS_MAX {
        return Err(Status::new(
            413,
            "RequestEntityTooLarge",
            format!(
                "The allowed maximum operations in a JSON patch is {JSON_PATCH_OPERATIONS_MAX}, got {count}"
            ),
        ));
    }
    let operations: json_patch::Patch = serde::Deserialize::deserialize(patch)
        .map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    json_patch::patch(target, &operations).map_err(|e| {
        Status::new(
            422,
            "Invalid",
            "the server rejected our request due to an error in our request",
        )
        .with_details(json!({"causes": [{
            "reason": "UnexpectedServerResponse",
            "message": e.to_string(),
        }]}))
    })
}

/// Applies a JSON merge patch.
pub fn merge_patch(target: &mut Value, patch: &Value) {
    json_patch::merge(target, patch);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_operation_changes_nothing() {
        let mut v = json!({"a": 1});
        let e = json_patch(
            &mut v,
            &json!([{"op": "add", "path": "/b", "value": 2}, {"op": "test", "path": "/a", "value": 2}]),
        )
        .expect_err("the test fails");
        assert_eq!((e.code, e.reason), (422, "Invalid"));
        assert_eq!(v, json!({"a": 1}));
        let e = json_patch(&mut v, &json!([{"op": "sing"}])).expect_err("no such operation");
        assert_eq!(e.code, 400);
    }

    #[test]
    fn json_and_merge_patches_apply() {
        let mut v = json!({"a": {"b": 1}, "l": [1]});
        json_patch(
            &mut v,
            &json!([{"op": "add", "path": "/l/-", "value": 2}, {"op": "remove", "path": "/a/b"}]),
        )
        .expect("applies");
        assert_eq!(v, json!({"a": {}, "l": [1, 2]}));
        merge_patch(&mut v, &json!({"a": null, "l": [3]}));
        assert_eq!(v, json!({"l": [3]}));
    }
}

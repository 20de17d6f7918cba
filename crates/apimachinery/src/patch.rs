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
    apply(target, &operations).map_err(|e| {
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

/// All operations or none. Beyond RFC 6902 a `test` for null holds where an object lacks the
/// member: so does the library that upstream uses, and clients that add the first finalizer of
/// an object test for it this way.
fn apply(target: &mut Value, operations: &json_patch::Patch) -> Result<(), json_patch::PatchError> {
    if !operations.iter().any(|o| tests_for_null(o).is_some()) {
        return json_patch::patch(target, operations);
    }
    let before = target.clone();
    for operation in operations.iter() {
        if tests_for_null(operation).is_some_and(|path| is_absent(target, path)) {
            continue;
        }
        if let Err(error) = json_patch::patch(target, std::slice::from_ref(operation)) {
            *target = before;
            return Err(error);
        }
    }
    Ok(())
}

fn tests_for_null(operation: &json_patch::PatchOperation) -> Option<&str> {
    match operation {
        json_patch::PatchOperation::Test(test) if test.value.is_null() => Some(test.path.as_str()),
        _ => None,
    }
}

/// Whether the path names a member of an object that is there, and that has no such member.
fn is_absent(target: &Value, path: &str) -> bool {
    let Some((parent, _)) = path.rsplit_once('/') else {
        return false;
    };
    target.pointer(parent).is_some_and(Value::is_object) && target.pointer(path).is_none()
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
    fn a_test_for_null_holds_where_there_is_nothing() {
        let first = json!([
            {"op": "test", "path": "/metadata/finalizers", "value": null},
            {"op": "add", "path": "/metadata/finalizers", "value": ["a/b"]},
        ]);
        let mut v = json!({"metadata": {}});
        json_patch(&mut v, &first).expect("applies");
        assert_eq!(v, json!({"metadata": {"finalizers": ["a/b"]}}));
        json_patch(&mut v, &first).expect_err("there are finalizers now");
        assert_eq!(v, json!({"metadata": {"finalizers": ["a/b"]}}));
        json_patch(&mut json!({}), &first).expect_err("there is nothing to lack it");
        let late = json!([{"op": "add", "path": "/a", "value": 1},
            {"op": "test", "path": "/b", "value": null}, {"op": "remove", "path": "/c"}]);
        let mut v = json!({});
        json_patch(&mut v, &late).expect_err("there is no /c");
        assert_eq!(v, json!({}));
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

//! StorageObjectInUseProtection: claims and volumes get the finalizer by which they stay while
//! they are in use. The controller of volumes takes it away.

use crate::registry::Call;
use api::constants::{FINALIZER_CLAIM_IN_USE, FINALIZER_VOLUME_IN_USE};
use serde_json::{Value, json};

/// Fills in a new claim or volume.
pub(super) fn mutate(call: &Call<'_>, object: &mut Value) {
    if !call.row.group().is_empty() || !call.subresource.is_empty() {
        return;
    }
    let finalizer = match call.row.plural() {
        "persistentvolumeclaims" => FINALIZER_CLAIM_IN_USE,
        "persistentvolumes" => FINALIZER_VOLUME_IN_USE,
        _ => return,
    };
    let finalizers = &mut object["metadata"]["finalizers"];
    match finalizers.as_array_mut() {
        Some(list) if list.iter().any(|f| f == finalizer) => {}
        Some(list) => list.push(finalizer.into()),
        None => *finalizers = json!([finalizer]),
    }
}

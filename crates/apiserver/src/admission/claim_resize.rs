//! PersistentVolumeClaimResize: a claim may grow only once it is bound, and only where its class
//! lets volumes grow.
//!
//! Upstream: `plugin/pkg/admission/storage/persistentvolume/resize`.

use super::{Operation, storage_class};
use crate::registry::Call;
use apimachinery::Status;
use apimachinery::quantity::Quantity;
use serde_json::Value;

/// Refuses claims that may not grow.
pub(super) fn validate(
    call: &Call<'_>,
    operation: Operation,
    new: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let Some(old) = old.filter(|_| operation == Operation::Update) else {
        return Ok(());
    };
    if call.row.known() != "persistentvolumeclaims" || !call.subresource.is_empty() {
        return Ok(());
    }
    let size =
        |claim: &Value| Quantity::from_json(&claim["spec"]["resources"]["requests"]["storage"]);
    if size(new) <= size(old) {
        return Ok(());
    }
    if old["status"]["phase"] != "Bound" {
        return Err(call.forbidden("Only bound persistent volume claims can be expanded"));
    }
    let class_of = |claim| storage_class::class_of(claim).unwrap_or_default();
    let name = class_of(new);
    let class = call.core.peek("storage.k8s.io", "storageclasses", "", name);
    let grows = class.is_some_and(|c| c.value()["allowVolumeExpansion"] == true);
    if name.is_empty() || name != class_of(old) || !grows {
        return Err(call.forbidden(
            "only dynamically provisioned pvc can be resized and the storageclass that \
             provisions the pvc must support resize",
        ));
    }
    Ok(())
}

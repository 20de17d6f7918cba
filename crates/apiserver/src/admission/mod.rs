//! Built-in admission: what is filled in or refused after authorization and before the
//! kind's own rules. One module a plug-in, in upstream's order.

mod certificate;
mod namespace;
pub(crate) mod node_restriction;
mod pod_defaults;
mod rbac_escalation;
mod service_account;

use crate::registry::Call;
use apimachinery::Status;
use serde_json::Value;

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
}

/// Lets the plug-ins fill in; some refuse already here.
pub(crate) async fn mutate(
    call: &Call<'_>,
    operation: Operation,
    new: &mut Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    namespace::mutate(call, operation, new).await?;
    if call.row.group().is_empty() && call.row.plural() == "pods" && call.subresource.is_empty() {
        if operation == Operation::Create {
            service_account::mutate(call, new).await?;
            pod_defaults::priority(call, new)?;
        }
        pod_defaults::tolerations(new);
    }
    certificate::mutate(call, operation, new, old);
    Ok(())
}

/// Lets the plug-ins refuse.
pub(crate) async fn validate(
    call: &Call<'_>,
    operation: Operation,
    new: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    node_restriction::validate(call, operation, new, old)?;
    if operation == Operation::Delete {
        return namespace::validate_delete(call);
    }
    rbac_escalation::validate(call, new, old)
}

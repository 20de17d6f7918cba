//! Built-in admission: what is filled in or refused after authorization and before the
//! kind's own rules. One module a plug-in, in upstream's order; [`dynamic`] are the policies and
//! webhooks that the API's own objects configure.

mod certificate;
mod claim_resize;
pub(crate) mod dynamic;
mod limits;
mod namespace;
pub(crate) mod node_restriction;
mod pod_defaults;
mod pod_security;
mod quota;
mod rbac_escalation;
mod runtime_class;
mod service_account;
mod storage_class;
mod storage_in_use;
mod warnings;

pub(crate) use warnings::Warnings;

use crate::http::request::Query;
use crate::registry::Call;
use apimachinery::Status;
use serde_json::{Value, json};

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
    /// A connection to what runs in a pod or behind an object: exec, attach, port-forward, proxy.
    Connect,
}

/// Lets policies and webhooks refuse a connection, which they are told of by its options.
pub(crate) async fn connect(call: &Call<'_>, query: &Query, tail: &str) -> Result<(), Status> {
    let kind = match (call.row.known(), call.subresource) {
        (_, "exec") => "PodExecOptions",
        (_, "attach") => "PodAttachOptions",
        (_, "portforward") => "PodPortForwardOptions",
        ("nodes", _) => "NodeProxyOptions",
        ("services", _) => "ServiceProxyOptions",
        _ => "PodProxyOptions",
    };
    let mut options = json!({"kind": kind, "apiVersion": "v1"});
    if call.subresource == "proxy" {
        options["path"] = tail.into();
    }
    for key in ["stdin", "stdout", "stderr", "tty"] {
        if query.flag(key) {
            options[key] = true.into();
        }
    }
    if let Some(container) = query.get("container") {
        options["container"] = container.into();
    }
    let command: Vec<&str> = query.all("command").collect();
    if !command.is_empty() {
        options["command"] = json!(command);
    }
    let ports: Vec<u16> = query.all("ports").filter_map(|p| p.parse().ok()).collect();
    if !ports.is_empty() {
        options["ports"] = json!(ports);
    }
    Box::pin(dynamic::validate(call, Operation::Connect, &options, None)).await
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
            limits::mutate(call, new);
            service_account::mutate(call, new).await?;
            pod_defaults::priority(call, new)?;
            runtime_class::mutate(call, new)?;
        }
        pod_defaults::tolerations(new);
    }
    if call.row.known() == "persistentvolumeclaims" && operation == Operation::Create {
        storage_class::mutate(call, new);
    }
    if operation == Operation::Create {
        storage_in_use::mutate(call, new);
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
        namespace::validate_delete(call)?;
        // There is nothing to change, but mutating webhooks may refuse.
        Box::pin(dynamic::mutate(call, operation, &mut Value::Null, old)).await?;
        return Box::pin(dynamic::validate(call, operation, new, old)).await;
    }
    rbac_escalation::validate(call, new, old)?;
    limits::validate(call, operation, new)?;
    pod_security::validate(call, operation, new, old)?;
    claim_resize::validate(call, operation, new, old)?;
    Box::pin(dynamic::validate(call, operation, new, old)).await?;
    // Last: what another refuses is not charged.
    quota::validate(call, operation, new, old).await
}

/// Lets policies and webhooks change what is about to be written.
pub(crate) async fn mutate_last(
    call: &Call<'_>,
    operation: Operation,
    new: &mut Value,
    old: Option<&Value>,
) -> Result<bool, Status> {
    Box::pin(dynamic::mutate(call, operation, new, old)).await
}

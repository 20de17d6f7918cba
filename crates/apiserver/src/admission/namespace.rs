//! NamespaceLifecycle: nothing is made in a namespace that is missing or going; the system
//! namespaces stay. And every namespace is labelled with its own name.

use super::Operation;
use crate::registry::{Call, meta};
use apimachinery::Status;
use serde_json::{Value, json};

const LABEL: &str = "kubernetes.io/metadata.name";
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) async fn mutate(
    call: &Call<'_>,
    operation: Operation,
    new: &mut Value,
) -> Result<(), Status> {
    if call.row.plural() == "namespaces" && call.row.group().is_empty() {
        if call.subresource.is_empty() || operation == Operation::Create {
            let name = meta::text(new, "name").to_owned();
            let m = meta::of_mut(new);
            if !m.get("labels").is_some_and(Value::is_object) {
                m.insert("labels".to_owned(), json!({}));
            }
            m["labels"][LABEL] = name.into();
        }
        return Ok(());
    }
    if !call.row.namespaced() || operation != Operation::Create {
        return Ok(());
    }
    let find = || call.core.peek("", "namespaces", "", call.namespace);
    let mut found = find();
    if found.is_none() {
        // It may have been made a moment ago.
        call.core.fresh().await?;
        found = find();
    }
    let namespace = found
        .ok_or_else(|| Status::not_found("", "namespaces", call.namespace))?
        .value();
    if meta::deleting(&namespace) || namespace["status"]["phase"] == "Terminating" {
        let mut refused = call.forbidden(format!(
            "unable to create new content in namespace {} because it is being terminated",
            call.namespace
        ));
        let details = refused.details.get_or_insert_default();
        details["causes"] = json!([{
            "reason": "NamespaceTerminating",
            "message": format!("namespace {} is being terminated", call.namespace),
            "field": "metadata.namespace",
        }]);
        return Err(refused);
    }
    Ok(())
}

pub(super) fn validate_delete(call: &Call<'_>) -> Result<(), Status> {
    if call.row.plural() == "namespaces"
        && call.row.group().is_empty()
        && IMMORTAL.contains(&call.name)
    {
        return Err(call.forbidden("this namespace may not be deleted"));
    }
    Ok(())
}

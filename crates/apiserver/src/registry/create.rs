//! Making objects.

use super::{Call, meta, write_failed};
use crate::admission::{self, Operation};
use crate::cache::{Object, object_key};
use crate::row::Row;
use crate::server_state::Core;
use apimachinery::{FieldError, Status};
use serde_json::Value;
use std::sync::Arc;

/// Names tried for `generateName` before the collision is reported.
const GENERATE_TRIES: usize = 8;

/// How `managedFields` of a new object come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tracking {
    /// The manager owns all that it sent.
    Update,
    /// Server-side apply has already written them.
    Applied,
    /// They stay as they were: whoever asks writes no field, the server does.
    Kept,
}

/// Creates an object of the request's kind from a decoded value.
pub(crate) async fn create(
    call: &Call<'_>,
    value: Value,
    tracking: Tracking,
) -> Result<Arc<Object>, Status> {
    let row = call.row;
    if matches!(row, Row::Custom(c) if c.deleting) {
        let mut refused = Status::method_not_allowed(row.group(), row.plural(), "create");
        refused.message =
            "create not allowed while custom resource definition is terminating".to_owned();
        return Err(refused);
    }
    if !row.stored() {
        return Err(Status::method_not_allowed(
            row.group(),
            row.plural(),
            "create",
        ));
    }
    let generated = meta::text(&value, "name").is_empty();
    for _ in 1..if generated { GENERATE_TRIES } else { 1 } {
        match attempt(call, value.clone(), tracking).await {
            Err(s) if s.reason == "AlreadyExists" => {}
            done => return done,
        }
    }
    attempt(call, value, tracking).await
}

async fn attempt(
    call: &Call<'_>,
    mut value: Value,
    tracking: Tracking,
) -> Result<Arc<Object>, Status> {
    let row = call.row;
    check_identity(call, &value)?;
    if row.status() && !row.status_on_create() {
        value.as_object_mut().map(|o| o.remove("status"));
    }
    fill_metadata(call, &mut value);
    row.default(&mut value);
    let name = meta::text(&value, "name").to_owned();
    let call = &Call {
        name: &name,
        ..*call
    };
    admission::mutate(call, Operation::Create, &mut value, None).await?;
    row.default(&mut value);
    if tracking == Tracking::Update {
        call.track(None, &mut value)?;
    }
    admission::mutate_last(call, Operation::Create, &mut value, None).await?;
    row.prepare_create(&mut value);
    let reservation = call.core.services.assign(call, &mut value, None).await?;
    meta::tidy(&mut value);
    let errors = errors_of(call, &value);
    if !errors.is_empty() {
        return Err(Status::invalid(row.group(), row.kind(), &name, &errors));
    }
    call.warnings.tell_all(row.warnings(&value, None));
    admission::validate(call, Operation::Create, &value, None).await?;
    let key = object_key(call.namespace, &name);
    if call.dry_run {
        call.core.fresh().await?;
        if call.core.kind(row)?.get(call.namespace, &name).is_some() {
            return Err(Status::already_exists(row.group(), row.plural(), &name));
        }
        return Ok(call.unwritten(&key, &value, 0));
    }
    let bytes = call.stored(&value).await?;
    let object = call
        .insert(&key, &value, bytes)
        .await
        .map_err(|e| write_failed(call, &name, e))?;
    reservation.keep().await;
    Ok(object)
}

/// Name, namespace, uid and resourceVersion that the client sent must fit the request.
fn check_identity(call: &Call<'_>, value: &Value) -> Result<(), Status> {
    let sent = meta::text(value, "namespace");
    if call.row.namespaced() {
        if call.namespace.is_empty() {
            return Err(Status::bad_request(
                "an empty namespace may not be set during creation",
            ));
        }
        if !sent.is_empty() && sent != call.namespace {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
    }
    if !meta::text(value, "resourceVersion").is_empty() {
        return Err(Status::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    let name = meta::text(value, "name");
    if !call.name.is_empty() && !name.is_empty() && name != call.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.name
        )));
    }
    Ok(())
}

fn fill_metadata(call: &Call<'_>, value: &mut Value) {
    let core: &Core = call.core;
    let mut name = meta::text(value, "name").to_owned();
    if name.is_empty() {
        call.name.clone_into(&mut name);
    }
    let prefix = meta::text(value, "generateName");
    if name.is_empty() && !prefix.is_empty() {
        // 63 less the suffix, as upstream cuts it.
        const PREFIX_MAX: usize = 58;
        let cut = prefix
            .char_indices()
            .map(|(i, _)| i)
            .nth(PREFIX_MAX)
            .unwrap_or(prefix.len());
        name = format!("{}{}", &prefix[..cut], core.suffix());
    }
    let meta = meta::of_mut(value);
    for key in [
        "selfLink",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "resourceVersion",
        "generation",
    ] {
        meta.remove(key);
    }
    meta.insert("name".to_owned(), name.into());
    if call.row.namespaced() {
        meta.insert("namespace".to_owned(), call.namespace.into());
    } else {
        meta.remove("namespace");
    }
    meta.insert("uid".to_owned(), core.uid().into());
    meta.insert("creationTimestamp".to_owned(), core.timestamp().into());
    if call.row.generation() {
        meta.insert("generation".to_owned(), 1.into());
    }
}

fn errors_of(call: &Call<'_>, value: &Value) -> Vec<FieldError> {
    let name = &value["metadata"]["name"];
    let mut errors = Vec::new();
    match name.as_str() {
        None | Some("") => {
            errors.push(FieldError::required(
                "metadata.name",
                "name or generateName is required",
            ));
        }
        Some(text) => {
            if let Err(e) = call.row.validate_name(text) {
                errors.push(FieldError::invalid("metadata.name", name, e));
            }
        }
    }
    errors.extend(meta::validate(value));
    for e in call.row.validate(value) {
        if !errors.contains(&e) {
            errors.push(e);
        }
    }
    errors
}

//! Replacing objects: the one read-modify-write that updates, patches, applies,
//! status writes and subresources go through.

use super::create::{Tracking, create};
use super::{Call, WRITE_TRIES, meta, write_failed};
use crate::admission::{self, Operation};
use crate::cache::{Object, store_key};
use apimachinery::{FieldError, Status};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Which part of an object a write may change.
#[derive(Clone, Copy)]
pub(crate) enum Part {
    /// All but status.
    Main,
    /// Status (and metadata).
    Status,
    /// What the function copies from the new object (second) into the old one (first);
    /// the kind's rules for updates are not asked.
    Only(fn(&mut Value, &Value)),
}

/// Makes the new object from the current one; both in the request's version.
pub(crate) type Transform<'t> = dyn Fn(&Value) -> Result<Value, Status> + Send + Sync + 't;

/// Kinds whose updates must state a resourceVersion.
const CONDITIONAL_ONLY: &[&str] = &[
    "leases",
    "priorityclasses",
    "storageclasses",
    "csidrivers",
    "csinodes",
    "volumeattachments",
    "ingressclasses",
    "runtimeclasses",
    "apiservices",
    "customresourcedefinitions",
    "flowschemas",
    "prioritylevelconfigurations",
];

/// Kinds that a PUT creates when they are missing.
const CREATED_BY_PUT: &[&str] = &[
    "leases",
    "endpoints",
    "events",
    "roles",
    "clusterroles",
    "rolebindings",
    "clusterrolebindings",
    "limitranges",
    "resourcequotas",
];

/// Replaces an object by a decoded one (PUT).
pub(crate) async fn put(
    call: &Call<'_>,
    part: Part,
    value: Value,
) -> Result<(Arc<Object>, bool), Status> {
    let name = meta::text(&value, "name");
    if name.is_empty() {
        let error = FieldError::required("metadata.name", "name must be provided");
        return Err(Status::invalid(
            call.row.group(),
            call.row.kind(),
            "",
            &[error],
        ));
    }
    if name != call.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.name
        )));
    }
    let namespace = meta::text(&value, "namespace");
    if !namespace.is_empty() && namespace != call.namespace && call.row.namespaced() {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let version = meta::text(&value, "resourceVersion");
    if version.is_empty() || version == "0" {
        if (CONDITIONAL_ONLY.contains(&call.row.known()) || call.row.known().is_empty())
            && call.current().await.is_ok()
        {
            let error = FieldError::invalid(
                "metadata.resourceVersion",
                &Value::from(0),
                "must be specified for an update",
            );
            return Err(Status::invalid(
                call.row.group(),
                call.row.kind(),
                name,
                &[error],
            ));
        }
        if call.subresource.is_empty()
            && CREATED_BY_PUT.contains(&call.row.known())
            && matches!(call.current().await, Err(s) if s.code == 404)
        {
            return Ok((create(call, value, Tracking::Update).await?, true));
        }
    }
    let object = modify(call, part, Tracking::Update, &|_| Ok(value.clone())).await?;
    Ok((object, false))
}

/// Reads, transforms and writes an object until no other write comes between.
/// A resourceVersion or uid in the transformed object that is not the current one is a conflict.
pub(crate) async fn modify(
    call: &Call<'_>,
    part: Part,
    tracking: Tracking,
    transform: &Transform<'_>,
) -> Result<Arc<Object>, Status> {
    for _ in 0..WRITE_TRIES {
        let old = call.current().await?;
        let old_value = call.view(&old);
        let asked = transform(&old_value)?;
        check_preconditions(call, &asked, &old_value)?;
        let mut new = assemble(call, part, &asked, &old_value);
        if matches!(part, Part::Main) || is_validated(call) {
            call.row.default(&mut new);
        }
        if matches!(part, Part::Main) {
            call.row.prepare_update(&mut new, &old_value);
        }
        let reservation = call
            .core
            .services
            .assign(call, &mut new, Some(&old_value))
            .await?;
        admission::mutate(call, Operation::Update, &mut new, Some(&old_value)).await?;
        if tracking == Tracking::Update {
            call.track(Some(&old_value), &mut new)?;
        }
        admission::mutate_last(call, Operation::Update, &mut new, Some(&old_value)).await?;
        bump_generation(call, &mut new, &old_value);
        meta::tidy(&mut new);
        let errors = errors_of(call, part, &new, &old_value);
        if !errors.is_empty() {
            return Err(Status::invalid(
                call.row.group(),
                call.row.kind(),
                call.name,
                &errors,
            ));
        }
        if matches!(part, Part::Main) {
            call.warnings
                .tell_all(call.row.warnings(&new, Some(&old_value)));
        }
        admission::validate(call, Operation::Update, &new, Some(&old_value)).await?;
        if new == old_value && !is_stale(call, &old).await {
            return Ok(old);
        }
        if call.dry_run {
            return Ok(call.unwritten(&old.key, &new, old.revision));
        }
        let written = if gone_with_this(&new) {
            call.remove(&old, &new).await
        } else {
            let bytes = call.stored(&new).await?;
            call.replace(&old, &new, bytes).await
        };
        match written {
            Ok(object) => {
                reservation.keep().await;
                return Ok(object);
            }
            // Read again: the transform sees the newer object and a stated
            // resourceVersion no longer fits it.
            Err(store::Error::Conflict(Some(_))) => {}
            Err(e) => return Err(write_failed(call, call.name, e)),
        }
    }
    Err(Status::modified(
        call.row.group(),
        call.row.plural(),
        call.name,
    ))
}

/// Whether the store would keep it under another key now: writing what is there anew is how
/// keys are changed.
async fn is_stale(call: &Call<'_>, old: &Object) -> bool {
    match &call.core.encrypted {
        Some(store) if !call.dry_run => store.is_stale(&store_key(call.row, &old.key)).await,
        _ => false,
    }
}

fn check_preconditions(call: &Call<'_>, asked: &Value, old: &Value) -> Result<(), Status> {
    let (version, current) = (
        meta::text(asked, "resourceVersion"),
        meta::text(old, "resourceVersion"),
    );
    if !version.is_empty() && version != "0" && version != current {
        return Err(Status::modified(
            call.row.group(),
            call.row.plural(),
            call.name,
        ));
    }
    let (uid, current) = (meta::text(asked, "uid"), meta::text(old, "uid"));
    if !uid.is_empty() && uid != current {
        return Err(Status::conflict(
            call.row.group(),
            call.row.plural(),
            call.name,
            format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {current}"
            ),
        ));
    }
    Ok(())
}

/// Takes the part that may change from `asked` and the rest from `old`.
fn assemble(call: &Call<'_>, part: Part, asked: &Value, old: &Value) -> Value {
    let mut new = match part {
        Part::Main => {
            let mut new = asked.clone();
            if call.row.status()
                && let Some(top) = new.as_object_mut()
            {
                match old.get("status") {
                    Some(status) => top.insert("status".to_owned(), status.clone()),
                    None => top.remove("status"),
                };
            }
            new
        }
        Part::Status => {
            let mut new = old.clone();
            if let Some(top) = new.as_object_mut() {
                match asked.get("status") {
                    Some(status) => top.insert("status".to_owned(), status.clone()),
                    None => top.remove("status"),
                };
                top.insert("metadata".to_owned(), asked["metadata"].clone());
            }
            // Owners and finalizers are not a status writer's business.
            for key in ["ownerReferences", "finalizers"] {
                match old["metadata"].get(key) {
                    Some(v) => meta::of_mut(&mut new).insert(key.to_owned(), v.clone()),
                    None => meta::of_mut(&mut new).remove(key),
                };
            }
            new
        }
        Part::Only(copy) => {
            let mut new = old.clone();
            copy(&mut new, asked);
            new
        }
    };
    meta::carry(&mut new, old);
    let version = old["metadata"]["resourceVersion"].clone();
    meta::of_mut(&mut new).insert("resourceVersion".to_owned(), version);
    new
}

/// `generation` counts changes of everything but metadata and a status with a subresource.
fn bump_generation(call: &Call<'_>, new: &mut Value, old: &Value) {
    if !call.row.generation() {
        return;
    }
    let empty = Map::new();
    let body = |v: &Value| -> Vec<(String, Value)> {
        v.as_object()
            .unwrap_or(&empty)
            .iter()
            .filter(|(k, _)| *k != "metadata" && !(*k == "status" && call.row.status()))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    };
    if body(new) != body(old) {
        let next = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        meta::of_mut(new).insert("generation".to_owned(), next.into());
    }
}

/// Whether a subresource writes what has defaults and rules of its own.
fn is_validated(call: &Call<'_>) -> bool {
    call.row.known() == "pods" && matches!(call.subresource, "resize" | "ephemeralcontainers")
}

fn errors_of(call: &Call<'_>, part: Part, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::validate(new);
    errors.extend(meta::late_finalizers(new, old));
    match part {
        Part::Main => errors.extend(call.row.validate_update(new, old)),
        Part::Status => errors.extend(call.row.validate_status(new, old)),
        Part::Only(_) if is_validated(call) => {
            errors.extend(call.row.validate(new));
            errors.extend(api::pod_part_errors(call.subresource, new, old));
        }
        Part::Only(_) if call.subresource == "approval" => {
            errors.extend(api::approval_errors(new, old));
        }
        Part::Only(_) => {}
    }
    errors
}

/// Whether this write takes away the last reason to keep an object that is being deleted.
pub(crate) fn gone_with_this(new: &Value) -> bool {
    meta::deleting(new)
        && meta::finalizers(new).is_empty()
        && new["metadata"]["deletionGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(0)
            == 0
        && !(new["kind"] == "Namespace"
            && new["spec"]["finalizers"]
                .as_array()
                .is_some_and(|f| !f.is_empty()))
}

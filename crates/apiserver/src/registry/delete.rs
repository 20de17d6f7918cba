//! Deleting: preconditions, grace, finalizers, propagation.

use super::update::gone_with_this;
use super::{Call, WRITE_TRIES, meta, write_failed};
use crate::admission::{self, Operation};
use crate::cache::Object;
use crate::definitions;
use crate::server_state::rfc3339;
use apimachinery::Status;
use jiff::SignedDuration;
use serde_json::{Value, json};
use std::sync::Arc;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// `metav1.DeleteOptions`, from the body or the query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeleteOptions {
    pub(crate) grace: Option<i64>,
    pub(crate) propagation: Option<Propagation>,
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
    pub(crate) dry_run: bool,
}

/// What happens to dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    Orphan,
    Background,
    Foreground,
}

impl Propagation {
    pub(crate) fn parse(text: &str) -> Result<Self, Status> {
        match text {
            "Orphan" => Ok(Self::Orphan),
            "Background" => Ok(Self::Background),
            "Foreground" => Ok(Self::Foreground),
            other => Err(Status::new(
                422,
                "Invalid",
                format!(
                    "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: {other:?}: supported values: \"Background\", \"Foreground\", \"Orphan\""
                ),
            )),
        }
    }
}

impl DeleteOptions {
    /// From a decoded body.
    pub(crate) fn from_value(v: &Value) -> Result<Self, Status> {
        let propagation = match v["propagationPolicy"].as_str() {
            Some(p) => Some(Propagation::parse(p)?),
            None => match v["orphanDependents"].as_bool() {
                Some(true) => Some(Propagation::Orphan),
                Some(false) => Some(Propagation::Background),
                None => None,
            },
        };
        let text = |v: &Value| v.as_str().filter(|s| !s.is_empty()).map(str::to_owned);
        Ok(Self {
            grace: v["gracePeriodSeconds"].as_i64(),
            propagation,
            uid: text(&v["preconditions"]["uid"]),
            resource_version: text(&v["preconditions"]["resourceVersion"]),
            dry_run: v["dryRun"]
                .as_array()
                .is_some_and(|d| d.iter().any(|x| x == "All")),
        })
    }
}

/// What became of a deletion.
#[derive(Debug)]
pub(crate) enum Deleted {
    /// It is gone; its last state.
    Gone(Arc<Object>),
    /// It waits for its grace period or its finalizers.
    Pending(Arc<Object>),
}

/// Deletes one object, or begins to.
pub(crate) async fn delete(call: &Call<'_>, options: &DeleteOptions) -> Result<Deleted, Status> {
    let dry_run = call.dry_run || options.dry_run;
    for _ in 0..WRITE_TRIES {
        let old = call.current().await?;
        let value = call.view(&old);
        check(call, options, &value)?;
        admission::validate(call, Operation::Delete, &value, Some(&value)).await?;
        let (new, changed) = begin(call, options, &value);
        if !meta::deleting(&new) || gone_with_this(&new) {
            if dry_run {
                return Ok(Deleted::Gone(old));
            }
            match call.remove(&old, &new).await {
                Ok(object) => return Ok(Deleted::Gone(object)),
                Err(store::Error::Conflict(Some(_))) => continue,
                Err(e) => return Err(write_failed(call, call.name, e)),
            }
        }
        if !changed {
            return Ok(Deleted::Pending(old));
        }
        if dry_run {
            return Ok(Deleted::Pending(call.unwritten(
                &old.key,
                &new,
                old.revision,
            )));
        }
        let bytes = call.stored(&new).await?;
        match call.replace(&old, &new, bytes).await {
            Ok(object) => return Ok(Deleted::Pending(object)),
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

fn check(call: &Call<'_>, options: &DeleteOptions, value: &Value) -> Result<(), Status> {
    let conflict = |what: &str, asked: &str, is: &str| {
        Status::conflict(
            call.row.group(),
            call.row.plural(),
            call.name,
            format!(
                "Precondition failed: {what} in precondition: {asked}, {what} in object meta: {is}"
            ),
        )
    };
    if let Some(uid) = &options.uid {
        let is = meta::text(value, "uid");
        if uid != is {
            return Err(conflict("UID", uid, is));
        }
    }
    if let Some(version) = &options.resource_version {
        let is = meta::text(value, "resourceVersion");
        if version != is {
            return Err(conflict("ResourceVersion", version, is));
        }
    }
    Ok(())
}

/// The object as it is once deletion has begun, and whether that changes it. An object
/// without a reason to wait comes back unchanged and without a deletionTimestamp.
fn begin(call: &Call<'_>, options: &DeleteOptions, old: &Value) -> (Value, bool) {
    let mut new = old.clone();
    let mut finalizers = finalizers_for(options.propagation, old);
    let defines = call.row.known() == definitions::PLURAL;
    if defines && !meta::deleting(old) && !finalizers.iter().any(|f| f == definitions::FINALIZER) {
        finalizers.push(definitions::FINALIZER.to_owned());
    }
    let grace = grace_of(call, options, old);
    let namespace_content = call.row.known() == "namespaces"
        && new["spec"]["finalizers"]
            .as_array()
            .is_some_and(|f| !f.is_empty());
    let waits = grace > 0 || !finalizers.is_empty() || namespace_content;
    if !waits && !meta::deleting(old) {
        return (new, false);
    }
    let m = meta::of_mut(&mut new);
    if finalizers.is_empty() {
        m.remove("finalizers");
    } else {
        m.insert("finalizers".to_owned(), json!(finalizers));
    }
    let running = old["metadata"]["deletionGracePeriodSeconds"].as_i64();
    if !meta::deleting(old) || running.is_some_and(|r| grace < r) {
        let began = match (running, old["metadata"]["deletionTimestamp"].as_str()) {
            // A shorter grace counts from when deletion began.
            (Some(r), Some(t)) => t.parse::<jiff::Timestamp>().map_or_else(
                |_| call.core.clock.now(),
                |t| t - SignedDuration::from_secs(r),
            ),
            _ => call.core.clock.now(),
        };
        let at = began + SignedDuration::from_secs(grace);
        m.insert("deletionTimestamp".to_owned(), rfc3339(at).into());
        m.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
        if call.row.generation()
            && let Some(g) = m.get("generation").and_then(Value::as_i64)
        {
            m.insert("generation".to_owned(), (g + 1).into());
        }
    }
    if call.row.known() == "namespaces" {
        // Namespaces have no grace period, and their phase tells that they go.
        meta::of_mut(&mut new).remove("deletionGracePeriodSeconds");
        new["status"]["phase"] = "Terminating".into();
    }
    if defines && !meta::deleting(old) {
        let message =
            "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
        let pending = ("Terminating", true, "InstanceDeletionPending", message);
        definitions::set_condition(&mut new["status"], pending, &call.core.timestamp());
    }
    let changed = new != *old;
    (new, changed)
}

/// Only pods have a grace period.
fn grace_of(call: &Call<'_>, options: &DeleteOptions, pod: &Value) -> i64 {
    if call.row.known() != "pods" {
        return 0;
    }
    let unscheduled = pod["spec"]["nodeName"]
        .as_str()
        .unwrap_or_default()
        .is_empty();
    if unscheduled
        || matches!(
            pod["status"]["phase"].as_str(),
            Some("Succeeded" | "Failed")
        )
    {
        return 0;
    }
    const DEFAULT_GRACE: i64 = 30;
    let asked = options
        .grace
        .or_else(|| pod["metadata"]["deletionGracePeriodSeconds"].as_i64())
        .or_else(|| pod["spec"]["terminationGracePeriodSeconds"].as_i64())
        .unwrap_or(DEFAULT_GRACE);
    // A negative value means: at once, but through the node.
    if asked < 0 { 1 } else { asked }
}

fn finalizers_for(propagation: Option<Propagation>, old: &Value) -> Vec<String> {
    let mut list: Vec<String> = meta::finalizers(old)
        .into_iter()
        .map(str::to_owned)
        .collect();
    if let Some(p) = propagation {
        list.retain(|f| f != ORPHAN && f != FOREGROUND);
        match p {
            Propagation::Orphan => list.push(ORPHAN.to_owned()),
            Propagation::Foreground => list.push(FOREGROUND.to_owned()),
            Propagation::Background => {}
        }
    }
    list
}

/// The `Success` status that answers a finished deletion.
pub(crate) fn success(call: &Call<'_>, object: &Object) -> Value {
    let value = object.value();
    let mut details = json!({
        "name": object.name(), "kind": call.row.plural(), "uid": value["metadata"]["uid"],
    });
    if !call.row.group().is_empty() {
        details["group"] = call.row.group().into();
    }
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
    })
}

/// Kinds whose finished deletion answers with the object instead of a `Status`.
pub(crate) fn returns_object(plural: &str) -> bool {
    matches!(
        plural,
        "pods"
            | "services"
            | "serviceaccounts"
            | "persistentvolumes"
            | "persistentvolumeclaims"
            | "podtemplates"
            | "resourcequotas"
    )
}

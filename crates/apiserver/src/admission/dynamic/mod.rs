//! Admission that objects of the API configure: policies in the Common Expression Language,
//! and webhooks.
//!
//! [`mutate`] and [`validate`] are asked at every write; without configurations they cost a
//! look at five counters. What configures is parsed and compiled once a revision and kept:
//! as many as there are objects. The reference is `k8s.io/apiserver/pkg/admission/plugin`.

mod mutating;
mod policy;
mod request;
mod rules;
mod type_check;
mod validating;
mod webhook;

pub(crate) use type_check::start;

use super::Operation;
use crate::cache::{Kind, Object};
use crate::registry::Call;
use crate::webhook::Webhooks;
use apimachinery::Status;
use parking_lot::Mutex;
use serde_json::Value;
use std::sync::Arc;

const GROUP: &str = "admissionregistration.k8s.io";

/// What configures admission is itself admitted by nobody but the server: else a wrong
/// configuration could not be taken back.
const EXEMPT: [&str; 6] = [
    "validatingwebhookconfigurations",
    "mutatingwebhookconfigurations",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
];

/// What is known of the configurations.
#[derive(Default)]
pub(crate) struct Dynamic {
    validating: Kept<policy::Policy>,
    validating_bindings: Kept<policy::Binding>,
    mutating: Kept<policy::Policy>,
    mutating_bindings: Kept<policy::Binding>,
    validating_hooks: Kept<Vec<webhook::Hook>>,
    mutating_hooks: Kept<Vec<webhook::Hook>>,
    pub(crate) webhooks: Webhooks,
}

/// Objects of a kind as they were parsed, in order of their names.
struct Kept<T> {
    /// The kind's revision that this is of, and what was made then. Guards nothing else.
    state: Mutex<(u64, Arc<Vec<One<T>>>)>,
}

/// One object.
struct One<T> {
    name: Arc<str>,
    revision: u64,
    made: Arc<T>,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self {
            state: Mutex::new((0, Arc::default())),
        }
    }
}

impl<T> Kept<T> {
    fn get(&self, kind: &Kind, make: impl Fn(&Object) -> T) -> Arc<Vec<One<T>>> {
        let now = kind.revision();
        let mut state = self.state.lock();
        if state.0 == now {
            return state.1.clone();
        }
        let (before, objects) = (state.1.clone(), kind.all());
        let all = objects.iter().map(|o| {
            let same = before
                .iter()
                .find(|b| *b.name == *o.name() && b.revision == o.revision);
            One {
                name: o.name().into(),
                revision: o.revision,
                made: same.map_or_else(|| Arc::new(make(o)), |b| b.made.clone()),
            }
        });
        *state = (now, Arc::new(all.collect()));
        state.1.clone()
    }
}

/// The kind of this plural, if it has objects.
fn configured(call: &Call<'_>, plural: &str) -> Option<Arc<Kind>> {
    let kind = call.core.cache.named(GROUP, plural)?;
    (kind.len() > 0).then_some(kind)
}

fn is_exempt(call: &Call<'_>) -> bool {
    call.row.group() == GROUP && EXEMPT.contains(&call.row.plural())
}

/// Lets policies and webhooks change an object; whether one did.
pub(crate) async fn mutate(
    call: &Call<'_>,
    operation: Operation,
    new: &mut Value,
    old: Option<&Value>,
) -> Result<bool, Status> {
    let any = ["mutatingadmissionpolicies", "mutatingwebhookconfigurations"]
        .into_iter()
        .any(|plural| configured(call, plural).is_some());
    if !any || is_exempt(call) || call.subresource == "scale" {
        return Ok(false);
    }
    let before = new.clone();
    let policies = mutating::run(call, operation, new, old, None).await?;
    let hooks = webhook::mutate(call, operation, new, old, None).await?;
    // Once more for those that ask for it, of what somebody else has changed since.
    if hooks.changed && !policies.ran.is_empty() {
        mutating::run(call, operation, new, old, Some(&policies.ran)).await?;
    }
    if !hooks.again.is_empty() {
        webhook::mutate(call, operation, new, old, Some(&hooks.again)).await?;
    }
    if *new == before {
        return Ok(false);
    }
    tidy(call, new, &before)?;
    Ok(true)
}

/// What was changed is of the kind's form again; who owns which field is not for policies and
/// webhooks to say.
fn tidy(call: &Call<'_>, new: &mut Value, before: &Value) -> Result<(), Status> {
    let (schema, ty) = call.row.schema()?;
    let ignore = apimachinery::decode::FieldValidation::Ignore;
    *new = apimachinery::decode::conform(schema, ty, new.take(), ignore)?.value;
    new["kind"] = before["kind"].clone();
    new["apiVersion"] = before["apiVersion"].clone();
    let meta = crate::registry::meta::of_mut(new);
    for key in [
        "managedFields",
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        match before["metadata"].get(key) {
            Some(v) => meta.insert(key.to_owned(), v.clone()),
            None => meta.remove(key),
        };
    }
    call.row.default(new);
    Ok(())
}

/// Lets policies and webhooks refuse.
pub(crate) async fn validate(
    call: &Call<'_>,
    operation: Operation,
    new: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    if is_exempt(call) {
        return Ok(());
    }
    validating::run(call, operation, new, old).await?;
    webhook::validate(call, operation, new, old).await
}

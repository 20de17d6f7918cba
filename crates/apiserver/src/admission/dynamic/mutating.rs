//! Runs MutatingAdmissionPolicies: patches and apply configurations that expressions make.
//!
//! The reference is `k8s.io/apiserver/pkg/admission/plugin/policy/mutating`.

use super::configured;
use super::policy::{Asked, Binding, Condition, Given, Mutation, Policy, failed, refusal};
use super::request::Subject;
use crate::admission::Operation;
use crate::convert;
use crate::registry::Call;
use apimachinery::apply::{self, Manager};
use apimachinery::cel::{Activation, CALL_COST_MAX, OBJECT_COST_MAX};
use apimachinery::{Status, patch};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Policies that ran and want to run again after others.
#[derive(Default)]
pub(super) struct Ran {
    pub(super) ran: BTreeSet<Arc<str>>,
}

/// Runs the policies, or those of a first round that ask for another.
pub(super) async fn run(
    call: &Call<'_>,
    operation: Operation,
    new: &mut Value,
    old: Option<&Value>,
    only: Option<&BTreeSet<Arc<str>>>,
) -> Result<Ran, Status> {
    let mut done = Ran::default();
    let (Some(policies), Some(bindings)) = (
        configured(call, "mutatingadmissionpolicies"),
        configured(call, "mutatingadmissionpolicybindings"),
    ) else {
        return Ok(done);
    };
    let dynamic = &call.core.dynamic;
    let policies = dynamic.mutating.get(&policies, Policy::parse);
    let bindings = dynamic.mutating_bindings.get(&bindings, Binding::parse);
    for one in policies.iter() {
        if operation == Operation::Delete || only.is_some_and(|o| !o.contains(&one.name)) {
            continue;
        }
        let asked = Asked {
            name: one.name.clone(),
            policy: one.made.clone(),
            bindings: bindings
                .iter()
                .filter(|b| b.made.policy == *one.name)
                .map(|b| (&*b.name, &*b.made))
                .collect(),
        };
        if Box::pin(policy(call, operation, new, old, &asked)).await? && asked.policy.reinvoked {
            done.ran.insert(one.name.clone());
        }
    }
    Ok(done)
}

/// Runs one policy for all its bindings; whether it was asked.
async fn policy(
    call: &Call<'_>,
    operation: Operation,
    new: &mut Value,
    old: Option<&Value>,
    asked: &Asked<'_>,
) -> Result<bool, Status> {
    let mut ran = false;
    for (name, binding) in &asked.bindings {
        let before = new.clone();
        let subject = Subject::new(call, operation, &before, old);
        let Some(row) = asked.policy.constraints.matches(&subject) else {
            continue;
        };
        if binding.resources.matches(&subject).is_none() {
            continue;
        }
        ran = true;
        // In the version that its rule names; what it makes is converted back.
        let subject = subject.in_version(&row).await?;
        let done = asked
            .policy
            .params(&subject, binding)
            .map_err(|e| format!("failed to configure binding: {e}"))
            .and_then(|all| {
                let mut made = (*subject.object).clone();
                for p in &all {
                    made = evaluate(&subject, &asked.policy, made, p.as_ref())?;
                }
                Ok(made)
            });
        match done {
            Ok(made) if made == *subject.object => {}
            Ok(made) => *new = convert::into(call.core, &row, call.row, &made).await?,
            Err(e) if asked.policy.fails => {
                let message = format!(
                    "MutatingAdmissionPolicy '{}' with binding '{name}' denied request: {e}",
                    asked.name
                );
                return Err(refusal(&subject, &message, ""));
            }
            Err(e) => tracing::debug!(
                policy = &*asked.name,
                error = e,
                "a policy that may fail has"
            ),
        }
    }
    Ok(ran)
}

fn evaluate(
    s: &Subject<'_>,
    policy: &Policy,
    mut object: Value,
    params: Option<&Value>,
) -> Result<Value, String> {
    let given = Given::new(s);
    {
        let activation = given.activation_of(&object, &s.old, params);
        if !Condition::hold(&policy.conditions, &activation)? {
            return Ok(object);
        }
    }
    if let Some(e) = &policy.variables_error {
        return Err(e.clone());
    }
    let mut left = OBJECT_COST_MAX;
    for mutation in &policy.mutations {
        let made = {
            let activation = given
                .activation_of(&object, &s.old, params)
                .with_variables(&policy.variables);
            value_of(mutation, &activation, &mut left)?
        };
        object = if mutation.is_patch {
            let mut patched = object;
            patch::json_patch(&mut patched, &made).map_err(|e| e.message)?;
            patched
        } else {
            merged(s, &object, &made)?
        };
    }
    Ok(object)
}

fn value_of(
    mutation: &Mutation,
    activation: &Activation<'_>,
    left: &mut u64,
) -> Result<Value, String> {
    let program = mutation.program.as_ref().map_err(Clone::clone)?;
    let (value, spent) = program.run(activation, (*left).min(CALL_COST_MAX));
    *left = left.saturating_sub(spent);
    let value = value.map_err(|e| failed(&mutation.source, &e))?;
    let wanted = if mutation.is_patch {
        "an array of JSONPatch"
    } else {
        "an Object"
    };
    value
        .to_json()
        .filter(|v| {
            if mutation.is_patch {
                v.is_array()
            } else {
                v.is_object()
            }
        })
        .ok_or_else(|| format!("expression '{}' must evaluate to {wanted}", mutation.source))
}

/// What an apply configuration makes of an object: merged as server-side apply merges, and
/// owned by nobody.
fn merged(s: &Subject<'_>, object: &Value, config: &Value) -> Result<Value, String> {
    let (schema, ty) = s.row.schema().map_err(|e| e.message)?;
    let version = s.row.api_version();
    let manager = Manager {
        // No client can be called so: it owns nothing that could be taken away.
        name: "\u{0}mutating-policy",
        api_version: &version,
        subresource: s.call.subresource,
        time: "1970-01-01T00:00:00Z",
    };
    let mut config = config.clone();
    config["apiVersion"] = object["apiVersion"].clone();
    config["kind"] = object["kind"].clone();
    let mut made =
        apply::apply(schema, ty, Some(object), &config, &manager, true).map_err(|e| e.message)?;
    let meta = crate::registry::meta::of_mut(&mut made);
    match object["metadata"].get("managedFields") {
        Some(fields) => meta.insert("managedFields".to_owned(), fields.clone()),
        None => meta.remove("managedFields"),
    };
    Ok(made)
}

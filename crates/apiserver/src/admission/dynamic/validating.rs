//! Runs ValidatingAdmissionPolicies.
//!
//! The reference is `k8s.io/apiserver/pkg/admission/plugin/policy/validating`.

use super::configured;
use super::policy::{Asked, Binding, Condition, Given, Policy, Validation, failed, refusal};
use super::request::Subject;
use crate::admission::Operation;
use crate::registry::Call;
use apimachinery::Status;
use apimachinery::cel::{Activation, CALL_COST_MAX, EvalError, OBJECT_COST_MAX, Value as Cel};
use serde_json::Value;

/// Bytes of a message that an expression makes.
const MESSAGE_BYTES_MAX: usize = 5 * 1024;

/// Annotation of the audit log with what would have been refused.
const FAILURE: &str = "validation.policy.admission.k8s.io/validation_failure";

/// A validation that failed.
struct Failure {
    message: String,
    reason: String,
    /// Which of the policy's.
    index: usize,
}

/// Why a write is refused.
struct Denial {
    binding: Option<String>,
    message: String,
    reason: String,
}

pub(super) async fn run(
    call: &Call<'_>,
    operation: Operation,
    new: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let (Some(policies), Some(bindings)) = (
        configured(call, "validatingadmissionpolicies"),
        configured(call, "validatingadmissionpolicybindings"),
    ) else {
        return Ok(());
    };
    let dynamic = &call.core.dynamic;
    let policies = dynamic.validating.get(&policies, Policy::parse);
    let bindings = dynamic.validating_bindings.get(&bindings, Binding::parse);
    let subject = Subject::new(call, operation, new, old);
    for one in policies.iter() {
        let asked = Asked {
            name: one.name.clone(),
            policy: one.made.clone(),
            bindings: bindings
                .iter()
                .filter(|b| b.made.policy == *one.name)
                .map(|b| (&*b.name, &*b.made))
                .collect(),
        };
        if asked.bindings.is_empty() {
            continue;
        }
        let Some(row) = asked.policy.constraints.matches(&subject) else {
            continue;
        };
        let turned;
        let subject =
            if row.version() == subject.row.version() && row.group() == subject.row.group() {
                &subject
            } else {
                turned = Box::pin(subject.in_version(&row)).await?;
                &turned
            };
        if let Some(denial) = ask(subject, &asked) {
            let by = match &denial.binding {
                Some(b) => format!(
                    "ValidatingAdmissionPolicy '{}' with binding '{b}'",
                    asked.name
                ),
                None => format!("ValidatingAdmissionPolicy '{}'", asked.name),
            };
            let message = format!("{by} denied request: {}", denial.message);
            return Err(refusal(subject, &message, &denial.reason));
        }
    }
    Ok(())
}

/// The first denial of a policy's bindings.
fn ask(s: &Subject<'_>, asked: &Asked<'_>) -> Option<Denial> {
    let given = Given::new(s);
    for (name, binding) in &asked.bindings {
        if binding.resources.matches(s).is_none() {
            continue;
        }
        let params = match asked.policy.params(s, binding) {
            Ok(params) => params,
            Err(e) if asked.policy.fails => {
                return Some(Denial {
                    binding: Some((*name).to_owned()),
                    message: format!("failed to configure binding: {e}"),
                    reason: String::new(),
                });
            }
            Err(_) => continue,
        };
        for p in &params {
            for Failure {
                message,
                reason,
                index,
            } in evaluate(asked, &given, s, p.as_ref())
            {
                for action in &binding.actions {
                    match action.as_str() {
                        "Deny" => {
                            return Some(Denial {
                                binding: Some((*name).to_owned()),
                                message,
                                reason,
                            });
                        }
                        "Warn" => s.call.warnings.tell(format!(
                            "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{name}': {message}",
                            asked.name
                        )),
                        _ => {
                            let failure = serde_json::json!([{
                                "message": message, "policy": &*asked.name, "binding": name,
                                "expressionIndex": index, "validationActions": binding.actions,
                            }]);
                            s.call.warnings.note(FAILURE, failure.to_string());
                        }
                    }
                }
            }
        }
    }
    None
}

/// The validations that fail; what is noted for the audit log is noted.
fn evaluate(
    asked: &Asked<'_>,
    given: &Given<'_>,
    s: &Subject<'_>,
    params: Option<&Value>,
) -> Vec<Failure> {
    let policy = &*asked.policy;
    let activation = given.activation(s, params);
    let error = |message: String, index: usize| {
        policy.fails.then_some(Failure {
            message,
            reason: String::new(),
            index,
        })
    };
    let wrong = |text: String| error(text, 0).into_iter().collect();
    match Condition::hold(&policy.conditions, &activation) {
        Ok(true) => {}
        Ok(false) => return Vec::new(),
        Err(e) => return wrong(e),
    }
    if let Some(e) = &policy.variables_error {
        return wrong(e.clone());
    }
    let activation = activation.with_variables(&policy.variables);
    let (mut left, mut out) = (OBJECT_COST_MAX, Vec::new());
    for (index, v) in policy.validations.iter().enumerate() {
        let value = match &v.program {
            Ok(program) => {
                let (value, spent) = program.run(&activation, left.min(CALL_COST_MAX));
                left = left.saturating_sub(spent);
                value
            }
            Err(e) => {
                out.extend(error(e.clone(), index));
                continue;
            }
        };
        match value {
            Ok(Cel::Bool(true)) => {}
            Ok(_) => {
                let message = message(v, &activation, &mut left);
                out.push(Failure {
                    message,
                    reason: v.reason.clone().unwrap_or_default(),
                    index,
                });
            }
            Err(e) => {
                out.extend(error(failed(&v.source, &e), index));
                if e == EvalError::Cost {
                    break;
                }
            }
        }
    }
    if s.call.core.audit.is_some() {
        for (key, program) in &policy.annotations {
            let Ok(program) = program else { continue };
            let (value, spent) = program.run(&activation, left.min(CALL_COST_MAX));
            left = left.saturating_sub(spent);
            if let Ok(Cel::String(text)) = value {
                let key = format!("{}/{key}", asked.name);
                s.call.warnings.note(key, text.trim());
            }
        }
    }
    out
}

fn message(v: &Validation, activation: &Activation<'_>, left: &mut u64) -> String {
    let made = v.message_program.as_ref().and_then(|p| {
        let (value, spent) = p.run(activation, (*left).min(CALL_COST_MAX));
        *left = left.saturating_sub(spent);
        match value {
            Ok(Cel::String(s)) => {
                let text = s.trim();
                let good =
                    !text.is_empty() && text.len() <= MESSAGE_BYTES_MAX && !text.contains('\n');
                good.then(|| text.to_owned())
            }
            _ => None,
        }
    });
    made.or_else(|| v.message.clone())
        .unwrap_or_else(|| format!("failed expression: {}", v.source))
}

//! Admission policies and their bindings, parsed and compiled.
//!
//! The reference is `k8s.io/apiserver/pkg/admission/plugin/policy`.

use super::request::Subject;
use super::rules::Match;
use crate::authn::User;
use crate::authz::{self, Attributes};
use crate::cache::Object;
use crate::row::Row;
use apimachinery::Status;
use apimachinery::cel::{
    Activation, Authorize, CALL_COST_MAX, CONDITIONS_COST_MAX, Check, EvalError, Program, Question,
    Value as Cel,
};
use apimachinery::selector::LabelSelector;
use serde_json::Value;
use std::sync::Arc;

/// A policy of either kind.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) constraints: Match,
    /// `apiVersion` and `kind` of parameters.
    pub(super) params: Option<(String, String)>,
    /// Errors deny; else they are passed over.
    pub(super) fails: bool,
    pub(super) conditions: Vec<Condition>,
    /// Expressions that are named, in order.
    pub(super) variables: Vec<(Box<str>, Program)>,
    /// What is wrong with them.
    pub(super) variables_error: Option<String>,
    pub(super) validations: Vec<Validation>,
    pub(super) mutations: Vec<Mutation>,
    /// Keys and expressions of what is noted for the audit log.
    pub(super) annotations: Vec<(String, Result<Program, String>)>,
    pub(super) reinvoked: bool,
}

/// Whether a policy or webhook is asked at all.
#[derive(Debug)]
pub(super) struct Condition {
    pub(super) name: String,
    program: Result<Program, String>,
}

#[derive(Debug)]
pub(super) struct Validation {
    pub(super) source: String,
    pub(super) program: Result<Program, String>,
    pub(super) message: Option<String>,
    pub(super) message_program: Option<Program>,
    pub(super) reason: Option<String>,
}

#[derive(Debug)]
pub(super) struct Mutation {
    pub(super) is_patch: bool,
    pub(super) source: String,
    pub(super) program: Result<Program, String>,
}

/// A binding of either kind.
#[derive(Debug)]
pub(super) struct Binding {
    pub(super) policy: String,
    pub(super) resources: Match,
    pub(super) params: Option<ParamRef>,
    pub(super) actions: Vec<String>,
}

#[derive(Debug)]
pub(super) struct ParamRef {
    name: String,
    namespace: String,
    selector: Option<LabelSelector>,
    /// Without any, the policy is not asked; else that is an error.
    missing_allowed: bool,
}

impl Policy {
    pub(super) fn parse(object: &Object) -> Self {
        let v = object.value();
        let spec = &v["spec"];
        let params = spec["paramKind"].as_object().map(|p| {
            let text = |k: &str| {
                p.get(k)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned()
            };
            (text("apiVersion"), text("kind"))
        });
        let (env, variables, variables_error) = match api::policy::variables(spec) {
            Ok((env, variables)) => (env, variables, None),
            Err((i, e)) => {
                let name = spec["variables"][i]["name"].as_str().unwrap_or_default();
                let text = format!(
                    "composited variable {name:?} fails to compile: compilation failed: {e}"
                );
                (api::policy::env(params.is_some()), Vec::new(), Some(text))
            }
        };
        let text = |v: &Value, k: &str| v[k].as_str().map(|t| t.trim().to_owned());
        let compile = |source: &str| {
            Program::compile(&env, source)
                .map_err(|e| format!("compilation error: compilation failed: {e}"))
        };
        let validations = list(&spec["validations"]).map(|v| {
            let source = text(v, "expression").unwrap_or_default();
            Validation {
                program: compile(&source),
                message: text(v, "message").filter(|m| !m.is_empty()),
                message_program: text(v, "messageExpression").and_then(|m| compile(&m).ok()),
                reason: text(v, "reason").filter(|r| !r.is_empty()),
                source,
            }
        });
        let validations = validations.collect();
        let mutations = list(&spec["mutations"]).map(|m| {
            let is_patch = m["patchType"] == "JSONPatch";
            let key = if is_patch {
                "jsonPatch"
            } else {
                "applyConfiguration"
            };
            let source = text(&m[key], "expression").unwrap_or_default();
            Mutation {
                is_patch,
                program: compile(&source),
                source,
            }
        });
        let annotations = list(&spec["auditAnnotations"]).map(|a| {
            let source = text(a, "valueExpression").unwrap_or_default();
            (text(a, "key").unwrap_or_default(), compile(&source))
        });
        let annotations = annotations.collect();
        Self {
            annotations,
            constraints: Match::parse(&spec["matchConstraints"]),
            params,
            fails: spec["failurePolicy"] != "Ignore",
            conditions: Condition::all(&spec["matchConditions"], spec["paramKind"].is_object()),
            validations,
            mutations: mutations.collect(),
            variables,
            variables_error,
            reinvoked: spec["reinvocationPolicy"] == "IfNeeded",
        }
    }

    /// Parameters of a binding: `[None]` when the policy takes none.
    pub(super) fn params(
        &self,
        s: &Subject<'_>,
        binding: &Binding,
    ) -> Result<Vec<Option<Value>>, String> {
        let (Some((version, kind)), Some(of)) = (&self.params, &binding.params) else {
            return Ok(vec![None]);
        };
        let (group, short) = version.split_once('/').unwrap_or(("", version));
        let core = s.call.core;
        let row = api::find_kind(group, short, kind)
            .map(Row::Builtin)
            .or_else(|| {
                let all = core.cache.definitions.of_group(group);
                let mut served = all.iter().flat_map(|d| d.all_served().collect::<Vec<_>>());
                served
                    .find(|c| *c.version == *short && *c.names.kind == **kind)
                    .map(Row::Custom)
            });
        let row = row.ok_or_else(|| {
            format!("failed to find resource referenced by paramKind: '{version}, Kind={kind}'")
        })?;
        let kind = core
            .cache
            .kind(&row)
            .ok_or("paramKind kind is not served")?;
        let namespace = match (row.namespaced(), of.namespace.as_str()) {
            (false, "") => "",
            (false, _) => return Err("cannot use namespaced paramRef in policy binding that refers to cluster-scoped paramKind".to_owned()),
            (true, "") if s.namespace().is_empty() => {
                return Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".to_owned());
            }
            (true, "") => s.namespace(),
            (true, own) => own,
        };
        let view = |o: &Object| Some(crate::convert::view(&row, o));
        let found: Vec<Option<Value>> = match &of.selector {
            Some(selector) => kind
                .all()
                .iter()
                .filter(|o| o.namespace() == namespace && selector.matches(|k| o.label(k)))
                .map(|o| view(o))
                .collect(),
            None => kind
                .get(namespace, &of.name)
                .iter()
                .map(|o| view(o))
                .collect(),
        };
        if found.is_empty() && !of.missing_allowed {
            return Err(
                "no params found for policy binding with `Deny` parameterNotFoundAction".to_owned(),
            );
        }
        Ok(found)
    }
}

impl Condition {
    pub(super) fn all(v: &Value, params: bool) -> Vec<Self> {
        let env = api::policy::env(params);
        list(v)
            .map(|c| Self {
                name: c["name"].as_str().unwrap_or_default().to_owned(),
                program: Program::compile(&env, c["expression"].as_str().unwrap_or_default())
                    .map_err(|e| format!("compilation error: compilation failed: {e}")),
            })
            .collect()
    }

    /// Whether all hold; what is wrong when none says no and one can't tell.
    pub(super) fn hold(all: &[Self], activation: &Activation<'_>) -> Result<bool, String> {
        let (mut left, mut wrong) = (CONDITIONS_COST_MAX, None);
        for c in all {
            let failed = match &c.program {
                Ok(program) => {
                    let (value, spent) = program.run(activation, left.min(CALL_COST_MAX));
                    left = left.saturating_sub(spent);
                    match value {
                        Ok(Cel::Bool(false)) => return Ok(false),
                        Ok(Cel::Bool(true)) => continue,
                        Ok(_) => "cel expression did not evaluate to bool".to_owned(),
                        Err(e) => e.to_string(),
                    }
                }
                Err(e) => e.clone(),
            };
            wrong.get_or_insert(format!(
                "match condition '{}' resulted in error: {failed}",
                c.name
            ));
        }
        wrong.map_or(Ok(true), Err)
    }
}

impl Binding {
    pub(super) fn parse(object: &Object) -> Self {
        let v = object.value();
        let spec = &v["spec"];
        let text = |v: &Value, k: &str| v[k].as_str().unwrap_or_default().to_owned();
        let of = &spec["paramRef"];
        let mut resources = Match::parse(&spec["matchResources"]);
        resources.any = true;
        Self {
            policy: text(spec, "policyName"),
            resources,
            params: of.is_object().then(|| ParamRef {
                name: text(of, "name"),
                namespace: text(of, "namespace"),
                selector: of["selector"]
                    .is_object()
                    .then(|| LabelSelector::from_object(&of["selector"]).ok())
                    .flatten(),
                missing_allowed: of["parameterNotFoundAction"] == "Allow",
            }),
            actions: list(&spec["validationActions"])
                .filter_map(|a| a.as_str().map(str::to_owned))
                .collect(),
        }
    }
}

/// What expressions are given besides parameters.
pub(super) struct Given<'s> {
    pub(super) request: Value,
    pub(super) namespace: Value,
    pub(super) ask: Ask<'s>,
}

impl<'s> Given<'s> {
    pub(super) fn new(s: &'s Subject<'s>) -> Self {
        Self {
            request: s.request(""),
            namespace: s.namespace_object(),
            ask: Ask(s),
        }
    }

    /// The variables of expressions.
    pub(super) fn activation<'g>(
        &'g self,
        s: &'g Subject<'_>,
        params: Option<&'g Value>,
    ) -> Activation<'g> {
        self.activation_of(&s.object, &s.old, params)
    }

    pub(super) fn activation_of<'g>(
        &'g self,
        object: &'g Value,
        old: &'g Value,
        params: Option<&'g Value>,
    ) -> Activation<'g> {
        use apimachinery::cel::Type;
        let any = |v: &'g Value| Cel::of(v, &Type::Dyn);
        let own = self.ask.question();
        Activation::new()
            .with("object", any(object))
            .with("oldObject", any(old))
            .with("request", any(&self.request))
            .with("namespaceObject", any(&self.namespace))
            .with("params", params.map_or(Cel::Null, any))
            .with("authorizer", Check::authorizer(&self.ask))
            .with(
                "authorizer.requestResource",
                Check::request_resource(&self.ask, own),
            )
    }
}

/// Asks what the user of a request may.
pub(super) struct Ask<'s>(&'s Subject<'s>);

impl Ask<'_> {
    fn question(&self) -> Question {
        let call = self.0.call;
        Question {
            group: call.row.group().to_owned(),
            resource: call.row.plural().to_owned(),
            subresource: call.subresource.to_owned(),
            namespace: self.0.namespace().to_owned(),
            name: call.name.to_owned(),
            ..Question::default()
        }
    }
}

impl Authorize for Ask<'_> {
    fn allowed(&self, q: &Question) -> bool {
        let call = self.0.call;
        let account = q.service_account.as_ref().map(|(namespace, name)| {
            let group = format!("system:serviceaccounts:{namespace}");
            User::new(
                &format!("system:serviceaccount:{namespace}:{name}"),
                &["system:serviceaccounts", &group],
            )
        });
        let user = account.as_ref().unwrap_or(call.user);
        let a = Attributes {
            verb: &q.verb,
            resource_request: q.path.is_none(),
            group: &q.group,
            resource: &q.resource,
            subresource: &q.subresource,
            namespace: &q.namespace,
            name: &q.name,
            path: q.path.as_deref().unwrap_or_default(),
        };
        call.core.authz.allowed(user, &a) || authz::node::allowed(call.core, user, &a, false)
    }
}

/// A policy, one of its bindings, and what they are asked about.
pub(super) struct Asked<'b> {
    pub(super) name: Arc<str>,
    pub(super) policy: Arc<Policy>,
    pub(super) bindings: Vec<(&'b str, &'b Binding)>,
}

/// Why an expression did not end in a value.
pub(super) fn failed(source: &str, e: &EvalError) -> String {
    match e {
        EvalError::Cost => "validation failed due to running out of cost budget, no further validation rules will be run".to_owned(),
        e => format!("expression '{source}' resulted in error: {e}"),
    }
}

/// 403 or another code in the words of upstream's `admission.NewForbidden`.
pub(super) fn refusal(s: &Subject<'_>, message: &str, reason: &str) -> Status {
    let mut status = s.call.forbidden(message);
    let (code, reason) = match reason {
        "Unauthorized" => (401, "Unauthorized"),
        "Forbidden" => (403, "Forbidden"),
        "RequestEntityTooLarge" => (413, "RequestEntityTooLarge"),
        _ => (422, "Invalid"),
    };
    status.code = code;
    status.reason = reason;
    status.details.get_or_insert_default()["causes"] = serde_json::json!([{"message": message}]);
    status
}

pub(super) fn list(v: &Value) -> impl Iterator<Item = &Value> {
    v.as_array().into_iter().flatten()
}

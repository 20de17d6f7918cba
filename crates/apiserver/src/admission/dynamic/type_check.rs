//! Holds the expressions of ValidatingAdmissionPolicies against the types that they are about,
//! and tells in `status.typeChecking` what does not fit. It refuses nothing.
//!
//! The reference is `k8s.io/apiserver/pkg/admission/plugin/policy/validating/typechecking.go`.

use crate::registry::Call;
use crate::registry::create::Tracking;
use crate::registry::update::{Part, modify};
use crate::row::Row;
use crate::server_state::Core;
use apimachinery::Status;
use apimachinery::cel::{Program, Type};
use lifecycle::Scope;
use serde_json::{Value, json};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Kinds that one policy is held against.
const KINDS_MAX: usize = 10;
/// Pause after a failed write.
const RETRY: Duration = Duration::from_secs(1);

const PLURAL: &str = "validatingadmissionpolicies";

/// Checks policies as they are written, in `scope`.
pub(crate) fn start(core: &Arc<Core>, scope: &Scope) {
    scope.spawn_cancellable(run(Arc::downgrade(core)));
}

async fn run(core: Weak<Core>) {
    let kind = core
        .upgrade()
        .and_then(|c| c.cache.named(super::GROUP, PLURAL));
    let Some(kind) = kind else { return };
    let mut changed = kind.subscribe();
    loop {
        changed.mark_unchanged();
        let mut failed = false;
        for object in kind.all() {
            let Some(core) = core.upgrade() else { return };
            let value = object.value();
            if value["status"]["observedGeneration"] == value["metadata"]["generation"] {
                continue;
            }
            if let Err(e) = check(&core, object.name()).await
                && e.code != 404
            {
                tracing::warn!(error = %e, policy = object.name(), "checking a policy's types");
                failed = true;
            }
        }
        if failed {
            tokio::time::sleep(RETRY).await;
        } else if changed.changed().await.is_err() {
            return;
        }
    }
}

async fn check(core: &Arc<Core>, name: &str) -> Result<(), Status> {
    let row = Row::builtin(super::GROUP, "v1", PLURAL)
        .ok_or_else(|| Status::internal("no row for policies"))?;
    let user = Core::own_user();
    let call = Call {
        subresource: "status",
        ..Call::own(core, &row, "", name, &user)
    };
    modify(&call, Part::Status, Tracking::Update, &|old| {
        let mut new = old.clone();
        let mut status =
            json!({"observedGeneration": old["metadata"]["generation"], "typeChecking": {}});
        let warnings = warnings(core, &old["spec"]);
        if !warnings.is_empty() {
            status["typeChecking"]["expressionWarnings"] = warnings.into();
        }
        if let Some(conditions) = old["status"].get("conditions") {
            status["conditions"] = conditions.clone();
        }
        new["status"] = status;
        Ok(new)
    })
    .await
    .map(drop)
}

/// What of a policy does not fit the kinds that it is about.
fn warnings(core: &Core, spec: &Value) -> Vec<Value> {
    let kinds = kinds(core, &spec["matchConstraints"]);
    let params = spec["paramKind"].is_object().then_some(Type::Dyn);
    let mut expressions = Vec::new();
    for (i, v) in super::policy::list(&spec["validations"]).enumerate() {
        for key in ["expression", "messageExpression"] {
            if let Some(source) = v[key].as_str().filter(|s| !s.trim().is_empty()) {
                expressions.push((format!("spec.validations[{i}].{key}"), source.trim()));
            }
        }
    }
    let mut told: Vec<(String, String)> = Vec::new();
    for row in kinds {
        let Ok((schema, ty)) = row.schema() else {
            continue;
        };
        let env = api::policy::env_of(Type::of_schema(schema, ty), params.clone());
        let Ok((env, _)) = api::policy::variables_in(env, spec) else {
            continue;
        };
        for (field, source) in &expressions {
            if let Err(e) = Program::compile(&env, source) {
                let text = format!("{}, Kind={}: {e}\n", row.api_version(), row.kind());
                match told.iter_mut().find(|(f, _)| f == field) {
                    Some((_, all)) => all.push_str(&text),
                    None => told.push((field.clone(), text)),
                }
            }
        }
    }
    told.into_iter()
        .map(|(field, text)| json!({"fieldRef": field, "warning": text}))
        .collect()
}

/// The kinds that rules name one by one; what they name with `*` is not followed.
fn kinds(core: &Core, constraints: &Value) -> Vec<Row> {
    let mut found: Vec<Row> = Vec::new();
    for rule in super::policy::list(&constraints["resourceRules"]) {
        let texts = |key: &str| -> Vec<String> {
            let all = super::policy::list(&rule[key]);
            all.filter_map(|v| v.as_str().map(str::to_owned)).collect()
        };
        for group in texts("apiGroups") {
            for version in texts("apiVersions") {
                for plural in texts("resources") {
                    let row = core.row(&group, &version, &plural);
                    let Some(row) = row.filter(|r| {
                        found
                            .iter()
                            .all(|f| f.api_version() != r.api_version() || f.kind() != r.kind())
                    }) else {
                        continue;
                    };
                    found.push(row);
                    if found.len() == KINDS_MAX {
                        return found;
                    }
                }
            }
        }
    }
    found
}

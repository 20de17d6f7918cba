//! What expressions of admission policies and of webhooks' match conditions may name.
//!
//! The reference is `k8s.io/apiserver/pkg/admission/plugin/cel/compile.go`.

use apimachinery::cel::{CompileError, Env, FieldType, Opaque, Program, Type};
use serde_json::Value;

/// The environment of a policy; `params` says whether it takes parameters.
pub fn env(params: bool) -> Env {
    env_of(Type::Dyn, params.then_some(Type::Dyn))
}

/// The environment of a policy about objects of one type.
pub fn env_of(object: Type, params: Option<Type>) -> Env {
    let env = Env::new()
        .with("object", object.clone())
        .with("oldObject", object)
        .with("namespaceObject", Type::Dyn)
        .with("request", request())
        .with("authorizer", Type::Opaque(Opaque::Authorizer))
        .with(
            "authorizer.requestResource",
            Type::Opaque(Opaque::ResourceCheck),
        );
    match params {
        Some(ty) => env.with("params", ty),
        None => env,
    }
}

/// Expressions by name.
pub type Programs = Vec<(Box<str>, Program)>;

/// The environment with a policy's `variables`, and the variables compiled.
///
/// # Errors
/// The index of the first wrong variable, and what is wrong with it.
pub fn variables(spec: &Value) -> Result<(Env, Programs), (usize, CompileError)> {
    variables_in(env(spec["paramKind"].is_object()), spec)
}

/// The same on another environment.
///
/// # Errors
/// The index of the first wrong variable, and what is wrong with it.
pub fn variables_in(mut env: Env, spec: &Value) -> Result<(Env, Programs), (usize, CompileError)> {
    if spec["mutations"].is_array() {
        env = env.with_objects();
    }
    let (mut done, mut fields) = (Vec::new(), Vec::new());
    for (i, v) in (spec["variables"].as_array().into_iter().flatten()).enumerate() {
        let text = |k: &str| v[k].as_str().unwrap_or_default();
        let program = Program::compile(&env, text("expression")).map_err(|e| (i, e))?;
        fields.push((text("name"), program.output().clone()));
        let known = fields.iter().map(|(n, t)| FieldType::plain(n, t.clone()));
        env = env.with(
            "variables",
            Type::object("kubernetes.variables", known.collect()),
        );
        done.push((text("name").into(), program));
    }
    Ok((env, done))
}

/// `AdmissionRequest` without the objects.
fn request() -> Type {
    let text = |name: &str| FieldType::plain(name, Type::TEXT);
    let kind = || {
        Type::object(
            "kubernetes.GroupVersionKind",
            ["group", "version", "kind"].map(text).into(),
        )
    };
    let resource = || {
        Type::object(
            "kubernetes.GroupVersionResource",
            ["group", "version", "resource"].map(text).into(),
        )
    };
    let user = Type::object(
        "kubernetes.UserInfo",
        vec![
            text("username"),
            text("uid"),
            FieldType::plain("groups", Type::list(Type::TEXT)),
            FieldType::plain("extra", Type::map(Type::TEXT, Type::list(Type::TEXT))),
        ],
    );
    Type::object(
        "kubernetes.AdmissionRequest",
        vec![
            FieldType::plain("kind", kind()),
            FieldType::plain("resource", resource()),
            text("subResource"),
            FieldType::plain("requestKind", kind()),
            FieldType::plain("requestResource", resource()),
            text("requestSubResource"),
            text("name"),
            text("namespace"),
            text("operation"),
            FieldType::plain("userInfo", user),
            FieldType::plain("dryRun", Type::Bool),
            FieldType::plain("options", Type::Dyn),
        ],
    )
}

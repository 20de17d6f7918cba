//! The review kinds: access reviews, rules reviews, token and self reviews. Nothing is stored.

use super::Attributes;
use crate::authn::{User, token::Live};
use crate::server_state::Core;
use apimachinery::{FieldError, Status};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Answers a review of a kind.
///
/// # Errors
/// 422 for a review that asks nothing.
pub(crate) async fn answer(
    core: &Core,
    kind: &str,
    namespace: &str,
    user: &User,
    mut review: Value,
) -> Result<Value, Status> {
    let spec = review["spec"].clone();
    if kind.ends_with("AccessReview") {
        let errors = errors_of(kind, namespace, &spec);
        if !errors.is_empty() {
            return Err(Status::invalid("authorization.k8s.io", kind, "", &errors));
        }
    }
    let status = match kind {
        "SelfSubjectAccessReview" => access(core, user, &spec, ""),
        "SubjectAccessReview" => access(core, &subject(&spec), &spec, ""),
        "LocalSubjectAccessReview" => access(core, &subject(&spec), &spec, namespace),
        "SelfSubjectRulesReview" => {
            rules(core, user, spec["namespace"].as_str().unwrap_or_default())?
        }
        "SelfSubjectReview" => json!({"userInfo": user_info(user)}),
        "TokenReview" => token(core, &spec).await?,
        other => return Err(Status::internal(format!("no review {other}"))),
    };
    review["status"] = status;
    Ok(review)
}

/// What is wrong with a question about access, as `pkg/apis/authorization/validation` of upstream
/// tells it.
fn errors_of(kind: &str, namespace: &str, spec: &Value) -> Vec<FieldError> {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let mut errors = Vec::new();
    let mut wrong = |field: &str, value: &Value, detail: &str| {
        errors.push(FieldError::invalid(format!("spec.{field}"), value, detail));
    };
    match (resource.is_null(), path.is_null()) {
        (true, true) => wrong(
            "resourceAttributes",
            &Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
        (false, false) => wrong(
            "nonResourceAttributes",
            path,
            "cannot be specified in combination with resourceAttributes",
        ),
        _ => {}
    }
    let named = |v: &Value| v.as_str().is_some_and(|s| !s.is_empty());
    let grouped = |v: &Value| v.as_array().is_some_and(|g| !g.is_empty());
    if kind != "SelfSubjectAccessReview" && !named(&spec["user"]) && !grouped(&spec["groups"]) {
        let detail = "at least one of user or group must be specified";
        wrong("user", &json!(""), detail);
    }
    if kind != "LocalSubjectAccessReview" {
        return errors;
    }
    let asked = resource["namespace"].as_str().unwrap_or_default();
    if !resource.is_null() && asked != namespace {
        let detail = "must match metadata.namespace";
        wrong("resourceAttributes.namespace", &json!(asked), detail);
    }
    if !path.is_null() {
        let detail = "disallowed on this kind of request";
        wrong("nonResourceAttributes", path, detail);
    }
    errors
}

fn access(core: &Core, user: &User, spec: &Value, namespace: &str) -> Value {
    let text = |v: &'_ Value, k: &str| v[k].as_str().unwrap_or_default().to_owned();
    let resource = &spec["resourceAttributes"];
    let path = &spec["nonResourceAttributes"];
    let allowed = if resource.is_null() {
        let (verb, path) = (text(path, "verb"), text(path, "path"));
        core.authz.allowed(
            user,
            &Attributes {
                verb: &verb,
                path: &path,
                ..Attributes::default()
            },
        )
    } else {
        let (verb, group, name) = (
            text(resource, "verb"),
            text(resource, "group"),
            text(resource, "name"),
        );
        let (res, sub) = (text(resource, "resource"), text(resource, "subresource"));
        let ns = if namespace.is_empty() {
            text(resource, "namespace")
        } else {
            namespace.to_owned()
        };
        core.authz.allowed(
            user,
            &Attributes {
                verb: &verb,
                resource_request: true,
                group: &group,
                resource: &res,
                subresource: &sub,
                namespace: &ns,
                name: &name,
                path: "",
            },
        )
    };
    json!({"allowed": allowed})
}

fn subject(spec: &Value) -> User {
    let list = |v: &Value| -> Vec<String> {
        v.as_array()
            .into_iter()
            .flatten()
            .filter_map(|g| g.as_str().map(str::to_owned))
            .collect()
    };
    User {
        name: spec["user"].as_str().unwrap_or_default().to_owned(),
        uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
        groups: list(&spec["groups"]),
        extra: BTreeMap::new(),
    }
}

fn rules(core: &Core, user: &User, namespace: &str) -> Result<Value, Status> {
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let (mut resources, mut urls) = (Vec::new(), Vec::new());
    for r in core.authz.rules(user, namespace) {
        if r.non_resource_urls.is_empty() {
            let mut rule =
                json!({"verbs": r.verbs, "apiGroups": r.api_groups, "resources": r.resources});
            if !r.resource_names.is_empty() {
                rule["resourceNames"] = json!(r.resource_names);
            }
            resources.push(rule);
        } else {
            urls.push(json!({"verbs": r.verbs, "nonResourceURLs": r.non_resource_urls}));
        }
    }
    Ok(json!({"resourceRules": resources, "nonResourceRules": urls, "incomplete": false}))
}

fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

async fn token(core: &Core, spec: &Value) -> Result<Value, Status> {
    let text = spec["token"].as_str().unwrap_or_default();
    if text.is_empty() {
        return Err(Status::bad_request(
            "token is required for TokenReview in authentication",
        ));
    }
    let audiences: Vec<String> = spec["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    Ok(match core.token(text, &audiences).await {
        Ok((user, matched)) => json!({
            "authenticated": true, "user": user_info(&user), "audiences": matched,
        }),
        Err(reason) => {
            let error = match reason.as_str() {
                "" => "invalid bearer token".to_owned(),
                reason => format!("[invalid bearer token, {reason}]"),
            };
            json!({"user": {}, "error": error})
        }
    })
}

impl Live for Core {
    fn uid(&self, plural: &str, namespace: &str, name: &str) -> Option<String> {
        let object = self.peek("", plural, namespace, name)?.value();
        // A pod that is being deleted may use its token until its grace is over.
        let gone = crate::registry::meta::deleting(&object) && plural != "pods";
        (!gone).then(|| crate::registry::meta::text(&object, "uid").to_owned())
    }

    fn bootstrap_secret(&self, id: &str) -> Option<serde_json::Value> {
        use crate::authn::bootstrap::{NAMESPACE, secret_name};
        let secret = self.peek("", "secrets", NAMESPACE, &secret_name(id))?;
        Some(secret.value())
    }
}

//! Admission policies, their bindings, and webhook configurations.
//!
//! The reference is `pkg/apis/admissionregistration/validation` of upstream.

use super::Check;
use crate::access::{at, is_empty, list, text};
use crate::policy;
use apimachinery::cel::{Env, Program, Type};
use apimachinery::names;
use apimachinery::selector::LabelSelector;
use apimachinery::status::FieldError;
use serde_json::Value;
use std::collections::HashSet;

/// Match conditions of one webhook or policy.
const CONDITIONS_MAX: usize = 64;

/// Nothing of these kinds is fixed once it is written.
pub(crate) fn no_update_rule(_: &Value, _: &Value) -> Vec<FieldError> {
    Vec::new()
}

/// `ValidatingAdmissionPolicy`.
pub(crate) fn validating_policy(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let env = common(&mut c, v);
    let (validations, audits) = (
        list(v, "spec.validations"),
        list(v, "spec.auditAnnotations"),
    );
    if validations.is_empty() && audits.is_empty() {
        let text = "validations or auditAnnotations must contain at least one item";
        c.required("spec.validations", text);
        c.required("spec.auditAnnotations", text);
    }
    for (i, one) in validations.iter().enumerate() {
        let path = format!("spec.validations[{i}]");
        let at = |name: &str| format!("{path}.{name}");
        expression(
            &mut c,
            env.as_ref(),
            &at("expression"),
            &one["expression"],
            &Type::Bool,
            "bool",
        );
        let source = text(one, "expression").trim();
        let message = text(one, "message");
        if !message.is_empty() && message.trim().is_empty() {
            c.invalid(
                at("message"),
                &one["message"],
                "message must be non-empty if specified",
            );
        } else if message.trim().contains('\n') {
            c.invalid(
                at("message"),
                &one["message"],
                "message must not contain line breaks",
            );
        } else if message.is_empty() && source.contains('\n') {
            c.required(
                at("message"),
                "message must be specified if expression contains line breaks",
            );
        }
        if one["messageExpression"]
            .as_str()
            .is_some_and(|m| !m.is_empty())
        {
            expression(
                &mut c,
                env.as_ref(),
                &at("messageExpression"),
                &one["messageExpression"],
                &Type::TEXT,
                "string",
            );
        }
        const REASONS: [&str; 4] = [
            "Forbidden",
            "Invalid",
            "RequestEntityTooLarge",
            "Unauthorized",
        ];
        if one["reason"]
            .as_str()
            .is_some_and(|r| !REASONS.contains(&r))
        {
            c.add(FieldError::not_supported(
                at("reason"),
                &one["reason"],
                &REASONS,
            ));
        }
    }
    for (i, one) in audits.iter().enumerate() {
        let path = format!("spec.auditAnnotations[{i}]");
        if text(one, "key").is_empty() {
            c.required(format!("{path}.key"), "");
        }
        // It may give nothing instead of a text.
        let (at, source) = (format!("{path}.valueExpression"), &one["valueExpression"]);
        expression(
            &mut c,
            env.as_ref(),
            &at,
            source,
            &Type::Dyn,
            "string or null",
        );
    }
    c.0
}

/// `MutatingAdmissionPolicy`.
pub(crate) fn mutating_policy(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let env = common(&mut c, v);
    let mutations = list(v, "spec.mutations");
    if mutations.is_empty() {
        c.required("spec.mutations", "mutations must contain at least one item");
    }
    for (i, one) in mutations.iter().enumerate() {
        let path = format!("spec.mutations[{i}]");
        let (key, other) = match text(one, "patchType") {
            "ApplyConfiguration" => ("applyConfiguration", "jsonPatch"),
            "JSONPatch" => ("jsonPatch", "applyConfiguration"),
            "" => {
                c.required(format!("{path}.patchType"), "");
                continue;
            }
            _ => {
                let known = ["ApplyConfiguration", "JSONPatch"];
                c.add(FieldError::not_supported(
                    format!("{path}.patchType"),
                    &one["patchType"],
                    &known,
                ));
                continue;
            }
        };
        if one[key].is_null() {
            c.required(
                format!("{path}.{key}"),
                &format!(
                    "must be specified when patchType is {}",
                    text(one, "patchType")
                ),
            );
            continue;
        }
        if !one[other].is_null() {
            c.invalid(
                format!("{path}.{other}"),
                &one[other],
                format!(
                    "must not be specified when patchType is {}",
                    text(one, "patchType")
                ),
            );
        }
        let at = format!("{path}.{key}.expression");
        expression(
            &mut c,
            env.as_ref(),
            &at,
            &one[key]["expression"],
            &Type::Dyn,
            "object",
        );
    }
    const AGAIN: [&str; 2] = ["IfNeeded", "Never"];
    match v["spec"]["reinvocationPolicy"].as_str() {
        None => c.required("spec.reinvocationPolicy", ""),
        Some(p) if !AGAIN.contains(&p) => {
            c.add(FieldError::not_supported(
                "spec.reinvocationPolicy",
                &v["spec"]["reinvocationPolicy"],
                &AGAIN,
            ));
        }
        Some(_) => {}
    }
    c.0
}

/// What both kinds of policy have; the environment of their expressions, when it is sound.
fn common(c: &mut Check, v: &Value) -> Option<Env> {
    let spec = &v["spec"];
    failure_policy(c, "spec.failurePolicy", &spec["failurePolicy"]);
    if !spec["paramKind"].is_null() {
        for key in ["apiVersion", "kind"] {
            if text(&spec["paramKind"], key).is_empty() {
                c.required(format!("spec.paramKind.{key}"), "");
            }
        }
    }
    if spec["matchConstraints"].is_null() {
        c.required("spec.matchConstraints", "");
    } else {
        if list(spec, "matchConstraints.resourceRules").is_empty() {
            c.required("spec.matchConstraints.resourceRules", "");
        }
        match_resources(c, "spec.matchConstraints", &spec["matchConstraints"]);
    }
    conditions(
        c,
        "spec.matchConditions",
        &spec["matchConditions"],
        spec["paramKind"].is_object(),
    );
    let mut seen = HashSet::new();
    for (i, variable) in list(spec, "variables").iter().enumerate() {
        let (name, path) = (text(variable, "name"), format!("spec.variables[{i}].name"));
        if name.is_empty() {
            c.required(path, "name is not specified");
        } else if !is_identifier(name) {
            c.invalid(
                path,
                &variable["name"],
                "name is not a valid CEL identifier",
            );
        } else if !seen.insert(name) {
            c.add(FieldError::duplicate(path, &variable["name"]));
        }
    }
    match policy::variables(spec) {
        Ok((env, _)) => Some(env),
        Err((i, e)) => {
            let source = &spec["variables"][i]["expression"];
            let path = format!("spec.variables[{i}].expression");
            if source.as_str().unwrap_or_default().trim().is_empty() {
                c.required(path, "expression is not specified");
            } else {
                c.invalid(path, source, format!("compilation failed: {e}"));
            }
            None
        }
    }
}

fn is_identifier(name: &str) -> bool {
    let mut chars = name.chars();
    let first = chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    first && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn expression(
    c: &mut Check,
    env: Option<&Env>,
    path: &str,
    source: &Value,
    wanted: &Type,
    name: &str,
) {
    let text = source.as_str().unwrap_or_default().trim();
    if text.is_empty() {
        c.required(path, "expression is not specified");
        return;
    }
    let Some(env) = env else { return };
    match Program::compile(env, text) {
        Ok(p) if p.gives(wanted) => {}
        Ok(_) => c.invalid(path, source, format!("must evaluate to {name}")),
        Err(e) => c.invalid(path, source, format!("compilation failed: {e}")),
    }
}

fn conditions(c: &mut Check, path: &str, all: &Value, params: bool) {
    let all = all.as_array().map_or(&[][..], Vec::as_slice);
    if all.len() > CONDITIONS_MAX {
        c.add(FieldError {
            field: path.to_owned(),
            reason: "FieldValueTooMany",
            message: format!(
                "Too many: {}: must have at most {CONDITIONS_MAX} items",
                all.len()
            ),
        });
        return;
    }
    let (env, mut seen) = (policy::env(params), HashSet::new());
    for (i, one) in all.iter().enumerate() {
        let name = text(one, "name");
        let at = format!("{path}[{i}].name");
        if name.is_empty() {
            c.required(at, "");
        } else {
            c.rule(at.as_str(), &one["name"], names::qualified_name);
            if !seen.insert(name) {
                c.add(FieldError::duplicate(at, &one["name"]));
            }
        }
        expression(
            c,
            Some(&env),
            &format!("{path}[{i}].expression"),
            &one["expression"],
            &Type::Bool,
            "bool",
        );
    }
}

fn failure_policy(c: &mut Check, path: &str, v: &Value) {
    const KNOWN: [&str; 2] = ["Fail", "Ignore"];
    if v.as_str().is_some_and(|p| !KNOWN.contains(&p)) {
        c.add(FieldError::not_supported(path, v, &KNOWN));
    }
}

fn match_resources(c: &mut Check, path: &str, v: &Value) {
    const KNOWN: [&str; 2] = ["Equivalent", "Exact"];
    if v["matchPolicy"]
        .as_str()
        .is_some_and(|p| !KNOWN.contains(&p))
    {
        c.add(FieldError::not_supported(
            format!("{path}.matchPolicy"),
            &v["matchPolicy"],
            &KNOWN,
        ));
    }
    for key in ["namespaceSelector", "objectSelector"] {
        if v[key].is_object() && LabelSelector::from_object(&v[key]).is_err() {
            c.invalid(format!("{path}.{key}"), &v[key], "invalid label selector");
        }
    }
    for key in ["resourceRules", "excludeResourceRules", "rules"] {
        for (i, rule) in list(v, key).iter().enumerate() {
            rule_of(c, &format!("{path}.{key}[{i}]"), rule);
        }
    }
}

fn rule_of(c: &mut Check, path: &str, rule: &Value) {
    for key in ["apiGroups", "apiVersions", "resources", "operations"] {
        let at = format!("{path}.{key}");
        let all = list(rule, key);
        if all.is_empty() {
            c.required(at, "");
        } else if all.len() > 1 && key != "resources" && all.iter().any(|v| v == "*") {
            c.invalid(
                at,
                &rule[key],
                "if '*' is present, must not specify other API groups",
            );
        }
    }
    const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
    for (i, one) in list(rule, "operations").iter().enumerate() {
        if one.as_str().is_none_or(|o| !OPERATIONS.contains(&o)) {
            c.add(FieldError::not_supported(
                format!("{path}.operations[{i}]"),
                one,
                &OPERATIONS,
            ));
        }
    }
    const SCOPES: [&str; 3] = ["*", "Cluster", "Namespaced"];
    if rule["scope"].as_str().is_some_and(|s| !SCOPES.contains(&s)) {
        c.add(FieldError::not_supported(
            format!("{path}.scope"),
            &rule["scope"],
            &SCOPES,
        ));
    }
}

/// `ValidatingAdmissionPolicyBinding`.
pub(crate) fn validating_binding(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    binding(&mut c, v);
    let actions = list(v, "spec.validationActions");
    if actions.is_empty() {
        c.required("spec.validationActions", "");
    }
    const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];
    let mut seen = HashSet::new();
    for (i, one) in actions.iter().enumerate() {
        let at = format!("spec.validationActions[{i}]");
        if one.as_str().is_none_or(|a| !ACTIONS.contains(&a)) {
            c.add(FieldError::not_supported(at.as_str(), one, &ACTIONS));
        }
        if !seen.insert(one.as_str()) {
            c.add(FieldError::duplicate(at, one));
        }
    }
    if seen.contains(&Some("Deny")) && seen.contains(&Some("Warn")) {
        c.invalid(
            "spec.validationActions",
            &v["spec"]["validationActions"],
            "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)",
        );
    }
    c.0
}

/// `MutatingAdmissionPolicyBinding`.
pub(crate) fn mutating_binding(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    binding(&mut c, v);
    c.0
}

fn binding(c: &mut Check, v: &Value) {
    let spec = &v["spec"];
    if text(spec, "policyName").is_empty() {
        c.required("spec.policyName", "");
    }
    match_resources(c, "spec.matchResources", &spec["matchResources"]);
    let of = &spec["paramRef"];
    if of.is_null() {
        return;
    }
    let path = "spec.paramRef";
    match (text(of, "name").is_empty(), of["selector"].is_null()) {
        (false, false) => c.forbidden(
            format!("{path}.name"),
            "name and selector are mutually exclusive",
        ),
        (true, true) => c.required(path, "one of name or selector must be specified"),
        _ => {}
    }
    const MISSING: [&str; 2] = ["Allow", "Deny"];
    match of["parameterNotFoundAction"].as_str() {
        None | Some("") => c.required(format!("{path}.parameterNotFoundAction"), ""),
        Some(a) if !MISSING.contains(&a) => {
            let at = format!("{path}.parameterNotFoundAction");
            c.add(FieldError::not_supported(
                at,
                &of["parameterNotFoundAction"],
                &MISSING,
            ));
        }
        Some(_) => {}
    }
}

/// Both webhook configurations.
pub(crate) fn webhooks(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let mut seen = HashSet::new();
    for (i, hook) in list(v, "webhooks").iter().enumerate() {
        let path = format!("webhooks[{i}]");
        let at = |name: &str| format!("{path}.{name}");
        let name = text(hook, "name");
        if name.is_empty() {
            c.required(at("name"), "");
        } else if name.split('.').count() < 3 {
            c.invalid(
                at("name"),
                &hook["name"],
                "should be a domain with at least three segments separated by dots",
            );
        } else {
            c.rule(at("name"), &hook["name"], names::dns1123_subdomain);
        }
        if !seen.insert(name) {
            c.add(FieldError::duplicate(at("name"), &hook["name"]));
        }
        let versions = list(hook, "admissionReviewVersions");
        if versions.is_empty() {
            c.required(
                at("admissionReviewVersions"),
                "must specify one of v1, v1beta1",
            );
        } else if !versions.iter().any(|v| v == "v1" || v == "v1beta1") {
            c.invalid(
                at("admissionReviewVersions"),
                &hook["admissionReviewVersions"],
                "must include at least one of v1, v1beta1",
            );
        }
        const EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];
        match hook["sideEffects"].as_str() {
            None => c.required(at("sideEffects"), "must specify one of None, NoneOnDryRun"),
            Some(e) if !EFFECTS.contains(&e) => {
                c.add(FieldError::not_supported(
                    at("sideEffects"),
                    &hook["sideEffects"],
                    &EFFECTS,
                ));
            }
            Some(_) => {}
        }
        if hook["timeoutSeconds"]
            .as_i64()
            .is_some_and(|n| !(1..=30).contains(&n))
        {
            c.invalid(
                at("timeoutSeconds"),
                &hook["timeoutSeconds"],
                "the timeout value must be between 1 and 30 seconds",
            );
        }
        const AGAIN: [&str; 2] = ["IfNeeded", "Never"];
        if hook["reinvocationPolicy"]
            .as_str()
            .is_some_and(|p| !AGAIN.contains(&p))
        {
            c.add(FieldError::not_supported(
                at("reinvocationPolicy"),
                &hook["reinvocationPolicy"],
                &AGAIN,
            ));
        }
        failure_policy(&mut c, &at("failurePolicy"), &hook["failurePolicy"]);
        match_resources(&mut c, &path, hook);
        conditions(
            &mut c,
            &at("matchConditions"),
            &hook["matchConditions"],
            false,
        );
        client_config(&mut c, &at("clientConfig"), &hook["clientConfig"]);
    }
    c.0
}

/// `clientConfig` of a webhook: a URL or a Service.
pub(super) fn client_config(c: &mut Check, path: &str, v: &Value) {
    let url = text(v, "url");
    match (url.is_empty(), is_empty(at(v, "service"))) {
        (true, true) | (false, false) => {
            c.required(path, "exactly one of url or service is required");
        }
        (false, true) => {
            let at = format!("{path}.url");
            if !url.starts_with("https://") {
                c.invalid(
                    at,
                    &v["url"],
                    "'https' is the only allowed URL scheme; desired format: https://host[/path]",
                );
            } else if url["https://".len()..]
                .split(['/', '?', '#'])
                .next()
                .unwrap_or_default()
                .is_empty()
            {
                c.invalid(
                    at,
                    &v["url"],
                    "host must be specified; desired format: https://host[/path]",
                );
            }
        }
        (true, false) => {
            for key in ["name", "namespace"] {
                if text(&v["service"], key).is_empty() {
                    c.required(
                        format!("{path}.service.{key}"),
                        &format!("service {key} is required"),
                    );
                }
            }
            let port = &v["service"]["port"];
            if port.as_i64().is_some_and(|p| !(1..=65535).contains(&p)) {
                c.invalid(
                    format!("{path}.service.port"),
                    port,
                    "port is not valid: must be between 1 and 65535, inclusive",
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::told;
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    #[track_caller]
    fn constraints() -> Value {
        json!({"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]})
    }

    #[test]
    fn sound_ones_pass() {
        let policy = json!({"spec": {
            "failurePolicy": "Fail", "matchConstraints": constraints(),
            "variables": [{"name": "a", "expression": "object.spec"}, {"name": "b", "expression": "variables.a.containers"}],
            "matchConditions": [{"name": "x.example.com", "expression": "request.userInfo.username != 'a'"}],
            "validations": [{"expression": "variables.b.all(c, c.image != '')", "messageExpression": "'bad ' + request.name"}],
            "auditAnnotations": [{"key": "k", "valueExpression": "null"}],
        }});
        told(validating_policy(&policy), expect![[r#""#]]);
        let hook = json!({"webhooks": [{"name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": "https://h/p"}, "rules": constraints()["resourceRules"]}]});
        told(webhooks(&hook), expect![[r#""#]]);
    }

    // pkg/apis/admissionregistration/validation/validation_test.go
    #[test]
    fn wrong_ones_are_told_of_as_upstream_does() {
        told(
            validating_policy(&json!({"spec": {}})),
            expect![[r#"
            spec.matchConstraints: Required value
            spec.validations: Required value: validations or auditAnnotations must contain at least one item
            spec.auditAnnotations: Required value: validations or auditAnnotations must contain at least one item"#]],
        );
        let policy = json!({"spec": {
            "matchConstraints": constraints(),
            "validations": [
                {"expression": "object.spec +"}, {"expression": "1"}, {"expression": "params.x == 1", "reason": "No"},
                {"expression": "request.nope == 1"}, {"expression": "true", "messageExpression": "1"},
            ],
        }});
        told(
            validating_policy(&policy),
            expect![[r#"
            spec.validations[0].expression: Invalid value: "object.spec +": compilation failed: ERROR: <input>:1:14: Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}
             | object.spec +
             | .............^
            spec.validations[1].expression: Invalid value: "1": must evaluate to bool
            spec.validations[2].expression: Invalid value: "params.x == 1": compilation failed: ERROR: <input>:1:1: undeclared reference to 'params' (in container '')
             | params.x == 1
             | ^
            spec.validations[2].reason: Unsupported value: "No": supported values: "Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"
            spec.validations[3].expression: Invalid value: "request.nope == 1": compilation failed: ERROR: <input>:1:8: undefined field 'nope'
             | request.nope == 1
             | .......^
            spec.validations[4].messageExpression: Invalid value: "1": must evaluate to string"#]],
        );
        let policy = json!({"spec": {"matchConstraints": constraints(), "validations": [{"expression": "true"}],
            "variables": [{"name": "a b", "expression": "1"}, {"name": "x", "expression": "variables.y"}],
            "matchConditions": [{"name": "", "expression": "1"}]}});
        told(
            validating_policy(&policy),
            expect![[r#"
            spec.matchConditions[0].name: Required value
            spec.matchConditions[0].expression: Invalid value: "1": must evaluate to bool
            spec.variables[0].name: Invalid value: "a b": name is not a valid CEL identifier
            spec.variables[1].expression: Invalid value: "variables.y": compilation failed: ERROR: <input>:1:10: undefined field 'y'
             | variables.y
             | .........^"#]],
        );
        let policy = json!({"spec": {"matchConstraints": constraints(), "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "JSONPatch", "applyConfiguration": {"expression": "Object{}"}}, {"patchType": "X"}]}});
        told(
            mutating_policy(&policy),
            expect![[r#"
            spec.mutations[0].jsonPatch: Required value: must be specified when patchType is JSONPatch
            spec.mutations[1].patchType: Unsupported value: "X": supported values: "ApplyConfiguration", "JSONPatch""#]],
        );
        let binding =
            json!({"spec": {"validationActions": ["Deny", "Warn", "No"], "paramRef": {}}});
        told(
            validating_binding(&binding),
            expect![[r#"
            spec.policyName: Required value
            spec.paramRef: Required value: one of name or selector must be specified
            spec.paramRef.parameterNotFoundAction: Required value
            spec.validationActions[2]: Unsupported value: "No": supported values: "Audit", "Deny", "Warn"
            spec.validationActions: Invalid value: ["Deny","Warn","No"]: must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)"#]],
        );
        let hooks = json!({"webhooks": [{"name": "a.b", "sideEffects": "Some", "timeoutSeconds": 31,
            "clientConfig": {"url": "http://h", "service": {"name": "s"}}, "rules": [{"operations": ["NO"]}]}]});
        told(
            webhooks(&hooks),
            expect![[r#"
            webhooks[0].name: Invalid value: "a.b": should be a domain with at least three segments separated by dots
            webhooks[0].admissionReviewVersions: Required value: must specify one of v1, v1beta1
            webhooks[0].sideEffects: Unsupported value: "Some": supported values: "None", "NoneOnDryRun"
            webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds
            webhooks[0].rules[0].apiGroups: Required value
            webhooks[0].rules[0].apiVersions: Required value
            webhooks[0].rules[0].resources: Required value
            webhooks[0].rules[0].operations[0]: Unsupported value: "NO": supported values: "*", "CONNECT", "CREATE", "DELETE", "UPDATE"
            webhooks[0].clientConfig: Required value: exactly one of url or service is required"#]],
        );
    }
}

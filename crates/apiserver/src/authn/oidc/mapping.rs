//! From claims to a user: mappings, prefixes and rules, plain or in the Common Expression
//! Language.

use super::{list, text};
use crate::authn::{AUTHENTICATED, User};
use apimachinery::cel::{Activation, CONDITIONS_COST_MAX, Env, Program, Type, Value as Cel};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What is made of claims.
#[derive(Debug)]
pub(super) struct Mapping {
    rules: Vec<Rule>,
    username: Source,
    groups: Option<Source>,
    uid: Option<Source>,
    extra: Vec<(String, Program)>,
    user_rules: Vec<(Program, String)>,
}

/// Where a fact comes from.
#[derive(Debug)]
enum Source {
    Claim { name: String, prefix: String },
    Expression(Program),
}

/// What claims must satisfy.
#[derive(Debug)]
enum Rule {
    Equal { claim: String, value: String },
    Holds { program: Program, message: String },
}

fn compile(path: &str, env: &Env, v: &Value) -> Result<Program, String> {
    let source = v.as_str().unwrap_or_default();
    Program::compile(env, source)
        .map_err(|e| format!("{path}: Invalid value: {source:?}: compilation failed: {e}"))
}

fn source(path: &str, env: &Env, v: &Value, prefixed: bool) -> Result<Option<Source>, String> {
    let (claim, expression) = (text(v, "claim"), text(v, "expression"));
    match (claim.is_empty(), expression.is_empty()) {
        (true, true) => Ok(None),
        (false, false) => Err(format!(
            "{path}: Invalid value: {expression:?}: claim and expression can't both be set"
        )),
        (true, false) => {
            if !v["prefix"].is_null() {
                return Err(format!(
                    "{path}.prefix: Invalid value: prefix can't be set with an expression"
                ));
            }
            let program = compile(&format!("{path}.expression"), env, &v["expression"])?;
            Ok(Some(Source::Expression(program)))
        }
        (false, true) => {
            if prefixed && !v["prefix"].is_string() {
                return Err(format!(
                    "{path}.prefix: Required value: prefix is required when claim is set. It can be set to an empty string to disable prefixing"
                ));
            }
            Ok(Some(Source::Claim {
                name: claim.to_owned(),
                prefix: text(v, "prefix").to_owned(),
            }))
        }
    }
}

impl Mapping {
    pub(super) fn parse(jwt: &Value) -> Result<Self, String> {
        let env = Env::new().with("claims", Type::Dyn);
        let of_user = Env::new().with("user", Type::Dyn);
        let mut rules = Vec::new();
        for (i, r) in list(&jwt["claimValidationRules"]).enumerate() {
            let at = format!("claimValidationRules[{i}]");
            let claim = text(r, "claim");
            rules.push(match (claim.is_empty(), text(r, "expression").is_empty()) {
                (false, true) => Rule::Equal {
                    claim: claim.to_owned(),
                    value: text(r, "requiredValue").to_owned(),
                },
                (true, false) => Rule::Holds {
                    program: compile(&format!("{at}.expression"), &env, &r["expression"])?,
                    message: text(r, "message").to_owned(),
                },
                _ => {
                    return Err(format!(
                        "{at}: Required value: claim or expression is required"
                    ));
                }
            });
        }
        let maps = &jwt["claimMappings"];
        let username = source("claimMappings.username", &env, &maps["username"], true)?
            .ok_or("claimMappings.username: Required value: claim or expression is required")?;
        let mut extra = Vec::new();
        for (i, e) in list(&maps["extra"]).enumerate() {
            let at = format!("claimMappings.extra[{i}]");
            let key = text(e, "key");
            if key.is_empty() || key != key.to_lowercase() || !key.contains('/') {
                return Err(format!(
                    "{at}.key: Invalid value: {key:?}: must be a domain-prefixed path in lower case"
                ));
            }
            let program = compile(
                &format!("{at}.valueExpression"),
                &env,
                &e["valueExpression"],
            )?;
            extra.push((key.to_owned(), program));
        }
        let mut user_rules = Vec::new();
        for (i, r) in list(&jwt["userValidationRules"]).enumerate() {
            let at = format!("userValidationRules[{i}].expression");
            let program = compile(&at, &of_user, &r["expression"])?;
            user_rules.push((program, text(r, "message").to_owned()));
        }
        Ok(Self {
            rules,
            username,
            groups: source("claimMappings.groups", &env, &maps["groups"], true)?,
            uid: source("claimMappings.uid", &env, &maps["uid"], false)?,
            extra,
            user_rules,
        })
    }

    /// The user of claims that are believed.
    pub(super) fn user(&self, claims: &Value) -> Result<User, String> {
        let given = Activation::new().with("claims", Cel::of(claims, &Type::Dyn));
        for rule in &self.rules {
            rule.check(claims, &given)?;
        }
        // A prefix alone is nobody.
        let blank = match &self.username {
            Source::Claim { name, .. } => claims[name].as_str().is_none_or(str::is_empty),
            Source::Expression(_) => false,
        };
        let name = match self.username.read(claims, &given)? {
            Value::String(name) if !name.is_empty() && !blank => name,
            _ => return Err("oidc: the username is empty or no string".to_owned()),
        };
        if let Source::Claim { name, .. } = &self.username
            && name == "email"
            && claims["email_verified"].as_bool() == Some(false)
        {
            return Err("oidc: email not verified".to_owned());
        }
        let groups = match &self.groups {
            Some(source) => texts(source.read(claims, &given)?)
                .ok_or("oidc: the groups are no list of strings")?,
            None => Vec::new(),
        };
        let uid = match &self.uid {
            Some(source) => match source.read(claims, &given)? {
                Value::String(uid) => uid,
                _ => return Err("oidc: the uid is no string".to_owned()),
            },
            None => String::new(),
        };
        let mut extra = BTreeMap::new();
        for (key, program) in &self.extra {
            let values = texts(run(program, &given)?);
            let mut values = values.ok_or_else(|| format!("oidc: extra {key:?} is no text"))?;
            values.retain(|v| !v.is_empty());
            if !values.is_empty() {
                extra.insert(key.clone(), values);
            }
        }
        let mut user = User {
            name,
            uid,
            groups,
            extra,
        };
        let shown = json!({"username": user.name, "uid": user.uid, "groups": user.groups,
            "extra": user.extra});
        let given = Activation::new().with("user", Cel::of(&shown, &Type::Dyn));
        for (program, message) in &self.user_rules {
            if run(program, &given)? != true {
                return Err(format!(
                    "oidc: error evaluating user info validation rule: {message}"
                ));
            }
        }
        if !user.in_group(AUTHENTICATED) {
            user.groups.push(AUTHENTICATED.to_owned());
        }
        Ok(user)
    }
}

/// The value of an expression as JSON.
fn run(program: &Program, given: &Activation<'_>) -> Result<Value, String> {
    let (value, _) = program.run(given, CONDITIONS_COST_MAX);
    let value = value.map_err(|e| format!("oidc: error evaluating an expression: {e}"))?;
    Ok(value.to_json().unwrap_or_default())
}

/// One text or several; nothing is none.
fn texts(v: Value) -> Option<Vec<String>> {
    match v {
        Value::Null => Some(Vec::new()),
        Value::String(one) if one.is_empty() => Some(Vec::new()),
        Value::String(one) => Some(vec![one]),
        Value::Array(all) => all
            .into_iter()
            .map(|v| v.as_str().map(str::to_owned))
            .collect(),
        _ => None,
    }
}

impl Source {
    fn read(&self, claims: &Value, given: &Activation<'_>) -> Result<Value, String> {
        match self {
            Self::Expression(program) => run(program, given),
            Self::Claim { name, prefix } => Ok(match &claims[name] {
                Value::String(one) => Value::from(format!("{prefix}{one}")),
                Value::Array(all) => all
                    .iter()
                    .map(|v| match v.as_str() {
                        Some(one) => Value::from(format!("{prefix}{one}")),
                        None => v.clone(),
                    })
                    .collect(),
                other => other.clone(),
            }),
        }
    }
}

impl Rule {
    fn check(&self, claims: &Value, given: &Activation<'_>) -> Result<(), String> {
        match self {
            Self::Equal { claim, value } => match claims[claim].as_str() {
                Some(has) if has == value => Ok(()),
                Some(has) => Err(format!(
                    "oidc: required claim {claim} value does not match. Got = {has}, want = {value}"
                )),
                None => Err(format!(
                    "oidc: required claim {claim} not present in ID token"
                )),
            },
            Self::Holds { program, message } => match run(program, given)? {
                Value::Bool(true) => Ok(()),
                _ => Err(format!(
                    "oidc: error evaluating claim validation expression: {message}"
                )),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(jwt: Value, claims: Value) -> Result<User, String> {
        Mapping::parse(&jwt)?.user(&claims)
    }

    #[test]
    fn claims_become_a_user() {
        let jwt = json!({
            "claimValidationRules": [{"claim": "hd", "requiredValue": "example.com"},
                {"expression": "claims.exp - claims.nbf <= 86400", "message": "too long"}],
            "claimMappings": {
                "username": {"expression": "'shop:' + claims.sub"},
                "groups": {"claim": "roles", "prefix": "oidc:"},
                "uid": {"claim": "id"},
                "extra": [{"key": "example.com/tenant", "valueExpression": "claims.tenant"}]},
            "userValidationRules": [{"expression": "!user.username.startsWith('system:')", "message": "reserved"}],
        });
        let claims = json!({"sub": "anna", "roles": ["a", "b"], "id": "7", "tenant": "t", "hd": "example.com",
            "nbf": 0, "exp": 3600});
        let made = user(jwt.clone(), claims.clone()).unwrap();
        assert_eq!(made.name, "shop:anna");
        assert_eq!(made.groups, ["oidc:a", "oidc:b", AUTHENTICATED]);
        assert_eq!(
            (made.uid.as_str(), &made.extra["example.com/tenant"]),
            ("7", &vec!["t".to_owned()])
        );
        let with = |key: &str, value: Value| {
            let mut c = claims.clone();
            c[key] = value;
            user(jwt.clone(), c).unwrap_err()
        };
        assert!(with("hd", json!("other")).contains("required claim hd value does not match"));
        assert!(with("exp", json!(999_999)).contains("too long"));
        assert!(with("sub", json!(null)).contains("oidc"));
        let mut named = jwt.clone();
        named["claimMappings"]["username"] = json!({"claim": "sub", "prefix": ""});
        let mut reserved = claims.clone();
        reserved["sub"] = "system:admin".into();
        assert!(user(named, reserved).unwrap_err().contains("reserved"));
    }

    #[test]
    fn what_is_no_mapping_is_told() {
        for (jwt, want) in [
            (json!({}), "claimMappings.username: Required value"),
            (
                json!({"claimMappings": {"username": {"claim": "sub"}}}),
                "username.prefix: Required value",
            ),
            (
                json!({"claimMappings": {"username": {"claim": "sub", "expression": "claims.sub"}}}),
                "can't both be set",
            ),
            (
                json!({"claimMappings": {"username": {"expression": "claims."}}}),
                "compilation failed",
            ),
        ] {
            let error = Mapping::parse(&jwt).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}

//! Rules in the Common Expression Language that a definition gives its objects
//! (`x-kubernetes-validations`): compiled, checked when the definition is written, and run
//! when an object is.
//!
//! The reference is `k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel` and
//! `…/apis/apiextensions/validation`.

use super::declare::{Declared, declare};
use crate::cel::{self, Env, Program, Type};
use crate::status::FieldError;
use serde_json::Value;

/// Reasons that a rule may give.
const REASONS: [&str; 4] = [
    "FieldValueRequired",
    "FieldValueForbidden",
    "FieldValueInvalid",
    "FieldValueDuplicate",
];

/// Where rules stand in a definition.
const KEYWORD: &str = "x-kubernetes-validations";

/// The rules of one version of a definition.
#[derive(Debug, Default)]
pub struct Rules {
    pub(super) root: Option<Node>,
}

/// The rules of one node of a schema and of those below it.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) rules: Vec<OneRule>,
    pub(super) ty: Type,
    /// `type` of the schema, which errors show in place of the value.
    pub(super) json_type: Box<str>,
    pub(super) items: Option<Box<Node>>,
    /// Keys of a keyed list.
    pub(super) keys: Option<Box<[Box<str>]>>,
    pub(super) values: Option<Box<Node>>,
    pub(super) properties: Vec<(Box<str>, Node)>,
    pub(super) all_of: Vec<Node>,
    /// Parts of an atomic map have no past.
    pub(super) atomic: bool,
}

#[derive(Debug)]
pub(super) struct OneRule {
    pub(super) source: Box<str>,
    pub(super) message: Option<Box<str>>,
    pub(super) reason: Option<Box<str>>,
    /// As paths of errors write it.
    pub(super) field_path: Option<Box<str>>,
    pub(super) optional_old: bool,
    pub(super) uses_old: bool,
    /// What does not compile fails whatever is asked: it was refused when it was written.
    pub(super) program: Result<Program, Box<str>>,
    pub(super) message_program: Option<Program>,
}

impl Rules {
    /// Compiles the rules of a schema.
    pub fn compile(open_api: &Value) -> Self {
        let mut builder = Builder::default();
        Self {
            root: builder.root(open_api, ""),
        }
    }
}

/// Whether there is a rule anywhere in a schema.
fn has_rules(node: &Value) -> bool {
    let nested = |name: &str| match &node[name] {
        Value::Object(m) => m.values().any(has_rules),
        Value::Array(a) => a.iter().any(has_rules),
        _ => false,
    };
    node[KEYWORD].as_array().is_some_and(|r| !r.is_empty())
        || nested("properties")
        || nested("allOf")
        || has_rules_in(node, "items")
        || has_rules_in(node, "additionalProperties")
}

fn has_rules_in(node: &Value, name: &str) -> bool {
    node[name].is_object() && has_rules(&node[name])
}

/// Checks the rules of a schema; `path` is where it is in its definition.
pub(super) fn check(open_api: &Value, path: &str) -> Vec<FieldError> {
    let mut builder = Builder {
        reporting: true,
        ..Builder::default()
    };
    drop(builder.root(open_api, path));
    builder.finish(path)
}

/// How often a node can be there, and where the past of one is lost.
#[derive(Clone, Debug)]
struct Place<'n> {
    /// `None` when nothing but the size of a request bounds it.
    count: Option<u64>,
    lost_at: Option<String>,
    structural: &'n Value,
}

#[derive(Default)]
struct Builder {
    reporting: bool,
    errors: Vec<FieldError>,
    /// Cost and path of every rule.
    costs: Vec<(u64, String)>,
}

impl Builder {
    fn root(&mut self, open_api: &Value, path: &str) -> Option<Node> {
        if !has_rules(open_api) {
            return None;
        }
        let declared = declare(open_api, true)?;
        let place = Place {
            count: Some(1),
            lost_at: None,
            structural: open_api,
        };
        self.node(open_api, declared, path, &place)
    }

    /// `node` has the rules, `place.structural` the form: they differ inside `allOf`.
    fn node(
        &mut self,
        node: &Value,
        declared: Declared,
        path: &str,
        place: &Place<'_>,
    ) -> Option<Node> {
        if !has_rules(node) {
            return None;
        }
        let form = place.structural;
        let mut made = Node {
            rules: Vec::new(),
            json_type: form["type"].as_str().unwrap_or_default().into(),
            items: None,
            keys: (form["x-kubernetes-list-type"] == "map")
                .then(|| texts(&form["x-kubernetes-list-map-keys"])),
            values: None,
            properties: Vec::new(),
            all_of: Vec::new(),
            atomic: form["x-kubernetes-map-type"] == "atomic",
            ty: declared.ty.clone(),
        };
        for (i, rule) in node[KEYWORD].as_array().into_iter().flatten().enumerate() {
            let at = format!("{path}.{KEYWORD}[{i}]");
            if let Some(rule) = self.rule(rule, &declared, &at, place) {
                made.rules.push(rule);
            }
        }
        let lost = |here: bool, at: &str| {
            place
                .lost_at
                .clone()
                .or_else(|| here.then(|| at.to_owned()))
        };
        if node["items"].is_object() && form["items"].is_object() {
            let at = format!("{path}.items");
            let inner = Place {
                count: place
                    .count
                    .zip(form["maxItems"].as_u64())
                    .map(|(a, b)| a.saturating_mul(b)),
                lost_at: lost(made.keys.is_none(), path),
                structural: &form["items"],
            };
            made.items = self.below(&node["items"], &at, &inner).map(Box::new);
        }
        if node["additionalProperties"].is_object() && form["additionalProperties"].is_object() {
            let at = format!("{path}.additionalProperties");
            let inner = Place {
                count: place
                    .count
                    .zip(form["maxProperties"].as_u64())
                    .map(|(a, b)| a.saturating_mul(b)),
                lost_at: lost(made.atomic, path),
                structural: &form["additionalProperties"],
            };
            made.values = self
                .below(&node["additionalProperties"], &at, &inner)
                .map(Box::new);
        }
        for (name, property) in node["properties"].as_object().into_iter().flatten() {
            let inner = Place {
                count: place.count,
                lost_at: lost(made.atomic, path),
                structural: &form["properties"][name.as_str()],
            };
            let at = format!("{path}.properties[{name}]");
            if inner.structural.is_object()
                && let Some(n) = self.below(property, &at, &inner)
            {
                made.properties.push((name.as_str().into(), n));
            }
        }
        for (i, part) in node["allOf"].as_array().into_iter().flatten().enumerate() {
            let at = format!("{path}.allOf[{i}]");
            if let Some(again) = declare(form, place.count == Some(1) && path.is_empty())
                && let Some(n) = self.node(part, again, &at, place)
            {
                made.all_of.push(n);
            }
        }
        Some(made)
    }

    fn below(&mut self, node: &Value, path: &str, place: &Place<'_>) -> Option<Node> {
        if !has_rules(node) {
            return None;
        }
        let declared = declare(place.structural, false)?;
        self.node(node, declared, path, place)
    }

    fn rule(
        &mut self,
        rule: &Value,
        declared: &Declared,
        path: &str,
        place: &Place<'_>,
    ) -> Option<OneRule> {
        let text = |name: &str| rule[name].as_str().unwrap_or_default().trim();
        let source = text("rule");
        if source.is_empty() {
            self.report(|| FieldError::required(format!("{path}.rule"), "rule is not specified"));
            return None;
        }
        self.words(rule, path, place.structural);
        let optional_old = rule["optionalOldSelf"] == true;
        let old = if optional_old {
            Type::optional(declared.ty.clone())
        } else {
            declared.ty.clone()
        };
        let env = Env::new()
            .with("self", declared.ty.clone())
            .with("oldSelf", old);
        let program = match Program::compile(&env, source) {
            Ok(p) if !p.gives(&Type::Bool) => Err("cel expression must evaluate to a bool".into()),
            Ok(p) => Ok(p),
            Err(e) => Err(format!("compilation failed: {e}").into_boxed_str()),
        };
        let uses_old = program.as_ref().is_ok_and(|p| p.uses("oldSelf"));
        match &program {
            Err(e) => self.report(|| told(format!("{path}.rule"), rule, e)),
            Ok(p) => {
                self.cost(
                    p,
                    declared,
                    place,
                    &format!("{path}.rule"),
                    "estimated rule cost",
                );
                if uses_old && !optional_old {
                    if let Some(lost) = &place.lost_at {
                        let detail = format!(
                            "oldSelf cannot be used on the uncorrelatable portion of the schema within {lost}"
                        );
                        self.report(|| {
                            FieldError::invalid(format!("{path}.rule"), &rule["rule"], detail)
                        });
                    }
                } else if optional_old && !uses_old {
                    self.report(|| {
                        FieldError::invalid(
                            format!("{path}.optionalOldSelf"),
                            &rule["optionalOldSelf"],
                            "may not be set if oldSelf is not used in rule",
                        )
                    });
                }
            }
        }
        let message_program = self.message(rule, &env, declared, path, place);
        let own = |name: &str| Some(text(name)).filter(|t| !t.is_empty()).map(Box::from);
        Some(OneRule {
            source: source.into(),
            message: own("message"),
            reason: own("reason"),
            field_path: field_path(text("fieldPath"), place.structural)
                .ok()
                .flatten(),
            optional_old,
            uses_old,
            program,
            message_program,
        })
    }

    fn message(
        &mut self,
        rule: &Value,
        env: &Env,
        declared: &Declared,
        path: &str,
        place: &Place<'_>,
    ) -> Option<Program> {
        let source = rule["messageExpression"].as_str()?;
        let at = format!("{path}.messageExpression");
        if source.trim().is_empty() {
            self.report(|| {
                FieldError::required(at, "messageExpression must be non-empty if specified")
            });
            return None;
        }
        let problem = match Program::compile(env, source) {
            Ok(p) if p.gives(&Type::TEXT) => {
                self.cost(&p, declared, place, &at, "estimated messageExpression cost");
                return Some(p);
            }
            Ok(_) => "messageExpression must evaluate to a string".to_owned(),
            Err(e) => format!("messageExpression compilation failed: {e}"),
        };
        self.report(|| told(at, rule, &problem));
        None
    }

    /// What is said besides expressions.
    fn words(&mut self, rule: &Value, path: &str, form: &Value) {
        let at = |name: &str| format!("{path}.{name}");
        let source = rule["rule"].as_str().unwrap_or_default().trim();
        let message = rule["message"].as_str();
        let has_lines = |s: &str| s.contains('\n');
        if let Some(m) = message.filter(|m| !m.is_empty()) {
            if m.trim().is_empty() {
                self.report(|| {
                    FieldError::invalid(
                        at("message"),
                        &rule["message"],
                        "message must be non-empty if specified",
                    )
                });
            } else if has_lines(m.trim()) {
                self.report(|| {
                    FieldError::invalid(
                        at("message"),
                        &rule["message"],
                        "message must not contain line breaks",
                    )
                });
            }
        } else if has_lines(source) {
            self.report(|| {
                FieldError::required(
                    at("message"),
                    "message must be specified if rule contains line breaks",
                )
            });
        }
        if rule["reason"]
            .as_str()
            .is_some_and(|r| !REASONS.contains(&r))
        {
            self.report(|| FieldError::not_supported(at("reason"), &rule["reason"], &REASONS));
        }
        if let Some(p) = rule["fieldPath"].as_str().filter(|p| !p.is_empty())
            && let Err(e) = field_path(p, form)
        {
            let detail = format!("fieldPath must be a valid path: {e}");
            self.report(|| FieldError::invalid(at("fieldPath"), &rule["fieldPath"], detail));
        }
    }

    fn report(&mut self, error: impl FnOnce() -> FieldError) {
        /// Errors of one schema's rules that are told.
        const ERRORS_MAX: usize = 50;
        if self.reporting && self.errors.len() < ERRORS_MAX {
            self.errors.push(error());
        }
    }

    fn cost(
        &mut self,
        program: &Program,
        declared: &Declared,
        place: &Place<'_>,
        path: &str,
        what: &str,
    ) {
        if !self.reporting {
            return;
        }
        let times = place.count.unwrap_or_else(|| declared.count_max());
        let cost = program.cost_max().saturating_mul(times);
        if cost > cel::RULE_ESTIMATE_MAX {
            let detail = over(what, cost, cel::RULE_ESTIMATE_MAX);
            self.report(|| FieldError::forbidden(path, detail));
        }
        self.costs.push((cost, path.to_owned()));
    }

    fn finish(mut self, path: &str) -> Vec<FieldError> {
        let total = self
            .costs
            .iter()
            .fold(0u64, |n, (c, _)| n.saturating_add(*c));
        if total > cel::SCHEMA_ESTIMATE_MAX {
            /// The dearest rules, which are told.
            const TOLD: usize = 4;
            self.costs.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
            self.costs
                .retain(|(cost, _)| *cost > cel::SCHEMA_ESTIMATE_MAX / 100);
            self.costs.truncate(TOLD);
            for (_, path) in &self.costs {
                self.errors.push(FieldError::forbidden(
                    path.as_str(),
                    "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema",
                ));
            }
            let what =
                "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
            let detail = over(what, total, cel::SCHEMA_ESTIMATE_MAX);
            self.errors.push(FieldError::forbidden(path, detail));
        }
        self.errors
    }
}

/// An error that shows the rule, as upstream's server prints one.
fn told(path: String, rule: &Value, detail: &str) -> FieldError {
    let text = |name: &str| rule[name].as_str().unwrap_or_default();
    let shown = format!(
        "apiextensions.ValidationRule{{Rule:{:?}, Message:{:?}, MessageExpression:{:?}, Reason:(*apiextensions.FieldValueErrorReason)(nil), FieldPath:{:?}, OptionalOldSelf:(*bool)(nil)}}",
        text("rule"),
        text("message"),
        text("messageExpression"),
        text("fieldPath")
    );
    FieldError {
        field: path,
        reason: "FieldValueInvalid",
        message: format!("Invalid value: {shown}: {detail}"),
    }
}

fn over(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

/// `.a['b.c'].d` as paths of errors write it, when the schema has it.
fn field_path(path: &str, schema: &Value) -> Result<Option<Box<str>>, String> {
    if path.is_empty() {
        return Ok(None);
    }
    let (mut at, mut rest, mut out) = (schema, path, String::new());
    while !rest.is_empty() {
        let (name, tail);
        if let Some(r) = rest.strip_prefix('.') {
            let end = r.find(['.', '[']).unwrap_or(r.len());
            (name, tail) = (r[..end].to_owned(), &r[end..]);
            if name.is_empty() {
                return Err("unexpected end of JSON path".to_owned());
            }
        } else if let Some(r) = rest.strip_prefix('[') {
            let bad = || format!("expected single quoted string but got {r}");
            let inner = r.strip_prefix('\'').ok_or_else(bad)?;
            let end = inner.find("']").ok_or("unexpected end of JSON path")?;
            name = inner[..end].replace("\\'", "'").replace("\\\\", "\\");
            tail = &inner[end + 2..];
        } else {
            return Err(format!("expected [ or . but got: {rest}"));
        }
        if at["properties"].is_object() {
            at = &at["properties"][name.as_str()];
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(&name);
        } else {
            at = &at["additionalProperties"];
            out.push_str(&format!("[{name}]"));
        }
        if !at.is_object() {
            return Err("does not refer to a valid field".to_owned());
        }
        rest = tail;
    }
    Ok(Some(out.into()))
}

fn texts(v: &Value) -> Box<[Box<str>]> {
    let all = v.as_array().into_iter().flatten();
    all.filter_map(|k| k.as_str().map(Box::from)).collect()
}

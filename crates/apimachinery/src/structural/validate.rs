//! Holds custom resources against their schema; errors are worded as upstream words them.
//!
//! With an old value, what did not change is not asked again (ratcheting, KEP-4008): a
//! definition may become stricter without freezing the objects that are there.

use super::default::is_nullable;
use super::formats::has_format;
use crate::names;
use crate::schema::{JsonType, Rule, Scalar, Schema, Type, TypeId};
use crate::status::FieldError;
use serde_json::{Number, Value};
use std::fmt::Write as _;

/// Errors of one object that are reported; further ones are not looked for.
pub const ERRORS_MAX: usize = 100;

/// Validates a value of type `ty`; no errors means valid.
pub fn validate(schema: &Schema, ty: TypeId, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut walk = Walk {
        schema,
        path: String::new(),
        errors: Vec::new(),
    };
    walk.value(ty, new, old);
    walk.errors
}

struct Walk<'s> {
    schema: &'s Schema,
    path: String,
    errors: Vec<FieldError>,
}

impl Walk<'_> {
    fn value(&mut self, ty: TypeId, new: &Value, old: Option<&Value>) {
        if old == Some(new) || self.errors.len() >= ERRORS_MAX || !self.schema.is_custom(ty) {
            return;
        }
        if new.is_null() && is_nullable(self.schema, ty) {
            return;
        }
        let wanted = types_of(self.schema.get(ty));
        if !wanted.is_empty() && !wanted.iter().any(|t| is_of(*t, new)) {
            let names: Vec<&str> = wanted.iter().map(|t| t.name()).collect();
            self.wrong_type(&names.join(","), new);
            return;
        }
        let schema = self.schema;
        for rule in schema.rules(ty) {
            self.rule(rule, new);
        }
        match (schema.get(ty), new) {
            (Type::Struct(def), Value::Object(map)) => {
                for (name, v) in map {
                    if let Some(field) = def.field(name) {
                        let before = old.and_then(|o| o.get(name));
                        self.inside(Step::Name(name), |w| w.value(field.ty, v, before));
                    }
                }
            }
            (Type::Map(of), Value::Object(map)) => {
                for (name, v) in map {
                    let before = old.and_then(|o| o.get(name));
                    self.inside(Step::Name(name), |w| w.value(*of, v, before));
                }
            }
            (Type::List(list), Value::Array(items)) => {
                let keys = match &list.kind {
                    crate::schema::ListKind::Map(keys) => Some(&**keys),
                    _ => None,
                };
                for (i, v) in items.iter().enumerate() {
                    let before = old.and_then(|o| twin(o, v, keys?));
                    self.inside(Step::Index(i), |w| w.value(list.item, v, before));
                }
            }
            _ => {}
        }
    }

    fn inside(&mut self, step: Step<'_>, f: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        match step {
            Step::Name(name) => {
                if length > 0 {
                    self.path.push('.');
                }
                self.path.push_str(name);
            }
            // Writing to a String can't fail.
            Step::Index(i) => drop(write!(self.path, "[{i}]")),
        }
        f(self);
        self.path.truncate(length);
    }

    /// Whether rules of a logical branch hold.
    fn holds(&self, rules: &[Rule], v: &Value) -> bool {
        let mut trial = Walk {
            schema: self.schema,
            path: String::new(),
            errors: Vec::new(),
        };
        for rule in rules {
            trial.rule(rule, v);
        }
        trial.errors.is_empty()
    }

    fn rule(&mut self, rule: &Rule, v: &Value) {
        match rule {
            Rule::Nullable => {}
            Rule::Type(t) if !is_of(*t, v) => self.wrong_type(t.name(), v),
            Rule::Enum(values) => {
                if !values.contains(v) {
                    let shown: Vec<String> = values.iter().map(bare).collect();
                    let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
                    let error = FieldError::not_supported(self.field(), v, &shown);
                    self.errors.push(error);
                }
            }
            Rule::AllOf(all) => self.all_of(all, v),
            Rule::AnyOf(any) if !any.iter().any(|r| self.holds(r, v)) => {
                self.logic(v, "must validate at least one schema (anyOf)", any);
            }
            Rule::OneOf(one) => {
                let count = one.iter().filter(|r| self.holds(r, v)).count();
                if count == 0 {
                    let text = "must validate one and only one schema (oneOf). Found none valid";
                    self.logic(v, text, one);
                } else if count > 1 {
                    self.invalid(v, &format!("must validate one and only one schema (oneOf). Found {count} valid alternatives"));
                }
            }
            Rule::Not(not) if self.holds(not, v) => {
                self.invalid(v, "must not validate the schema (not)");
            }
            _ => match v {
                Value::String(s) => self.string_rule(rule, v, s),
                Value::Number(n) => self.number_rule(rule, v, n),
                Value::Array(items) => self.list_rule(rule, items),
                Value::Object(map) => self.object_rule(rule, v, map),
                Value::Null | Value::Bool(_) => {}
            },
        }
    }

    fn all_of(&mut self, all: &[Box<[Rule]>], v: &Value) {
        let mut failed = 0;
        for rules in all {
            let before = self.errors.len();
            for rule in rules {
                self.rule(rule, v);
            }
            failed += usize::from(self.errors.len() > before);
        }
        if failed > 0 {
            let none = if failed == all.len() {
                ". None validated"
            } else {
                ""
            };
            self.invalid(v, &format!("must validate all the schemas (allOf){none}"));
        }
    }

    /// A logical keyword failed: it is told, and, when there is one way only, what that lacks.
    fn logic(&mut self, v: &Value, text: &str, branches: &[Box<[Rule]>]) {
        self.invalid(v, text);
        if let [only] = branches {
            for rule in only {
                self.rule(rule, v);
            }
        }
    }

    fn string_rule(&mut self, rule: &Rule, v: &Value, text: &str) {
        let length = || text.chars().count() as u64;
        match rule {
            Rule::Pattern(p) if !p.is_match(text) => {
                let error = format!("should match '{}'", p.source);
                self.invalid(v, &error);
            }
            Rule::MaxLength(max) if length() > *max => self.push(
                "FieldValueTooLong",
                format!("Too long: may not be more than {max} bytes"),
            ),
            Rule::MinLength(min) if length() < *min => {
                self.invalid(v, &format!("should be at least {min} chars long"));
            }
            Rule::Format(f) if !has_format(*f, text) => {
                let message = format!(
                    "Invalid value: {v}: {} in body must be of type {}: {v}",
                    self.path,
                    f.name()
                );
                self.push("FieldValueInvalid", message);
            }
            _ => {}
        }
    }

    fn number_rule(&mut self, rule: &Rule, v: &Value, n: &Number) {
        use std::cmp::Ordering::{Equal, Greater, Less};
        match rule {
            Rule::Maximum(max, exclusive) => match (order(n, max), exclusive) {
                (Greater, false) => {
                    self.invalid(v, &format!("should be less than or equal to {max}"))
                }
                (Greater | Equal, true) => self.invalid(v, &format!("should be less than {max}")),
                _ => {}
            },
            Rule::Minimum(min, exclusive) => match (order(n, min), exclusive) {
                (Less, false) => {
                    self.invalid(v, &format!("should be greater than or equal to {min}"));
                }
                (Less | Equal, true) => self.invalid(v, &format!("should be greater than {min}")),
                _ => {}
            },
            Rule::MultipleOf(of) if !is_multiple(n, of) => {
                self.invalid(v, &format!("should be a multiple of {of}"));
            }
            _ => {}
        }
    }

    fn list_rule(&mut self, rule: &Rule, items: &[Value]) {
        let length = items.len() as u64;
        match rule {
            Rule::MaxItems(max) if length > *max => self.push(
                "FieldValueTooMany",
                format!("Too many: {length}: must have at most {max} items"),
            ),
            Rule::MinItems(min) if length < *min => {
                let v = Value::from(items);
                self.invalid(&v, &format!("should have at least {min} items"));
            }
            Rule::UniqueItems => {
                let mut seen = std::collections::HashSet::with_capacity(items.len());
                for (i, item) in items.iter().enumerate() {
                    if !seen.insert(item.to_string()) {
                        let error = FieldError::duplicate(format!("{}[{i}]", self.path), item);
                        self.errors.push(error);
                    }
                }
            }
            Rule::UniqueKeys(keys) => {
                let mut seen = std::collections::HashSet::with_capacity(items.len());
                for (i, item) in items.iter().enumerate() {
                    let key: serde_json::Map<String, Value> = keys
                        .iter()
                        .filter_map(|k| Some((k.to_string(), item.get(&**k)?.clone())))
                        .collect();
                    let key = Value::Object(key);
                    if !seen.insert(key.to_string()) {
                        let error = FieldError::duplicate(format!("{}[{i}]", self.path), &key);
                        self.errors.push(error);
                    }
                }
            }
            Rule::Items(rules) => {
                for (i, item) in items.iter().enumerate() {
                    self.inside(Step::Index(i), |w| w.all(rules, item));
                }
            }
            _ => {}
        }
    }

    fn object_rule(&mut self, rule: &Rule, v: &Value, map: &serde_json::Map<String, Value>) {
        let length = map.len() as u64;
        match rule {
            Rule::MaxProperties(max) if length > *max => self.push(
                "FieldValueTooMany",
                format!("Too many: {length}: must have at most {max} items"),
            ),
            Rule::MinProperties(min) if length < *min => {
                self.invalid(v, &format!("should have at least {min} properties"));
            }
            Rule::Required(names) => {
                for name in names.iter().filter(|n| !map.contains_key(&***n)) {
                    self.inside(Step::Name(name), |w| {
                        w.errors.push(FieldError::required(w.field(), ""));
                    });
                }
            }
            Rule::Property(name, rules) => {
                if let Some(v) = map.get(&**name) {
                    self.inside(Step::Name(name), |w| w.all(rules, v));
                }
            }
            Rule::Values(rules) => {
                for (name, v) in map {
                    self.inside(Step::Name(name), |w| w.all(rules, v));
                }
            }
            Rule::Embedded => self.embedded(v),
            _ => {}
        }
    }

    fn all(&mut self, rules: &[Rule], v: &Value) {
        for rule in rules {
            self.rule(rule, v);
        }
    }

    /// An object inside an object has a kind, a version and sound metadata.
    fn embedded(&mut self, v: &Value) {
        for name in ["apiVersion", "kind"] {
            if v[name].as_str().unwrap_or_default().is_empty() {
                self.inside(Step::Name(name), |w| {
                    let error = FieldError::required(w.field(), "must not be empty");
                    w.errors.push(error);
                });
            }
        }
        let name = &v["metadata"]["name"];
        if let Some(Err(e)) = name.as_str().map(names::path_segment) {
            let field = format!("{}.metadata.name", self.path);
            self.errors.push(FieldError::invalid(field, name, e));
        }
    }

    fn field(&self) -> String {
        if self.path.is_empty() {
            "<nil>".to_owned()
        } else {
            self.path.clone()
        }
    }

    fn push(&mut self, reason: &'static str, message: String) {
        let field = self.field();
        self.errors.push(FieldError {
            field,
            reason,
            message,
        });
    }

    fn invalid(&mut self, v: &Value, detail: &str) {
        // A logical keyword is not about one value, and its error shows none.
        let (v, lead) = if detail.starts_with("must ") {
            (
                &Value::String(String::new()),
                format!("{:?} {detail}", self.path),
            )
        } else {
            (v, format!("{} in body {detail}", self.path))
        };
        let error = FieldError::invalid(self.field(), v, lead);
        self.errors.push(error);
    }

    fn wrong_type(&mut self, wanted: &str, v: &Value) {
        let found = type_name(v);
        let message = format!(
            "Invalid value: {found:?}: {} in body must be of type {wanted}: {found:?}",
            self.path
        );
        self.push("FieldValueTypeInvalid", message);
    }
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Name(&'a str),
    Index(usize),
}

/// The item of an old keyed list with the same keys.
pub(super) fn twin<'o>(old: &'o Value, item: &Value, keys: &[Box<str>]) -> Option<&'o Value> {
    old.as_array()?
        .iter()
        .find(|o| keys.iter().all(|k| o.get(&**k) == item.get(&**k)))
}

fn types_of(ty: &Type) -> &'static [JsonType] {
    match ty {
        Type::Scalar(Scalar::Bool) => &[JsonType::Boolean],
        Type::Scalar(Scalar::Int32 | Scalar::Int64) => &[JsonType::Integer],
        Type::Scalar(Scalar::Double) => &[JsonType::Number],
        Type::Scalar(Scalar::IntOrString) => &[JsonType::Integer, JsonType::String],
        Type::Scalar(_) => &[JsonType::String],
        Type::Struct(_) | Type::Map(_) => &[JsonType::Object],
        Type::List(_) => &[JsonType::Array],
        Type::Any => &[],
    }
}

fn is_of(ty: JsonType, v: &Value) -> bool {
    match ty {
        JsonType::Object => v.is_object(),
        JsonType::Array => v.is_array(),
        JsonType::String => v.is_string(),
        JsonType::Boolean => v.is_boolean(),
        JsonType::Number => v.is_number(),
        JsonType::Integer => match v {
            Value::Number(n) => {
                n.is_i64() || n.is_u64() || n.as_f64().is_some_and(|f| f.fract() == 0.0)
            }
            _ => false,
        },
    }
}

fn type_name(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn order(a: &Number, b: &Number) -> std::cmp::Ordering {
    match (a.as_i128(), b.as_i128()) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => {
            let (a, b) = (a.as_f64().unwrap_or(0.0), b.as_f64().unwrap_or(0.0));
            a.total_cmp(&b)
        }
    }
}

fn is_multiple(n: &Number, of: &Number) -> bool {
    match (n.as_i128(), of.as_i128()) {
        (_, Some(0)) => true,
        (Some(n), Some(of)) => n % of == 0,
        _ => {
            let ratio = n.as_f64().unwrap_or(0.0) / of.as_f64().unwrap_or(1.0);
            (ratio - ratio.round()).abs() < 1e-9
        }
    }
}

/// A value of an enum as the list of supported values shows it.
fn bare(v: &Value) -> String {
    v.as_str().map_or_else(|| v.to_string(), str::to_owned)
}

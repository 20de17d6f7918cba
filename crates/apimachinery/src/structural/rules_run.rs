//! Runs the rules of a definition over an object.

use super::rules::{Node, OneRule, Rules};
use super::validate::{ERRORS_MAX, twin};
use crate::cel::{self, Activation, EvalError, Value as Cel};
use crate::status::FieldError;
use serde_json::Value;

/// Bytes of a message that an expression makes.
const MESSAGE_BYTES_MAX: usize = 5 * 1024;

impl Rules {
    /// Holds an object against the rules. With an old one, a rule that does not ask for it is
    /// only run where something has changed (ratcheting, KEP-4008).
    pub fn validate(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut run = Run {
            path: String::new(),
            errors: Vec::new(),
            budget: cel::OBJECT_COST_MAX,
            stopped: false,
        };
        if let Some(root) = &self.root {
            run.node(root, new, old, false);
        }
        run.errors
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }
}

struct Run {
    path: String,
    errors: Vec<FieldError>,
    budget: u64,
    /// The budget is used up: nothing more is run.
    stopped: bool,
}

impl Run {
    /// `same` says that the nearest part with a past has not changed.
    fn node(&mut self, node: &Node, new: &Value, old: Option<&Value>, same: bool) {
        if new.is_null() || self.stopped || self.errors.len() >= ERRORS_MAX {
            return;
        }
        let same = same || old == Some(new);
        for rule in &node.rules {
            if self.stopped {
                return;
            }
            if rule.uses_old && old.is_none() && !rule.optional_old || !rule.uses_old && same {
                continue;
            }
            self.rule(node, rule, new, old);
        }
        for part in &node.all_of {
            self.node(part, new, old, same);
        }
        match new {
            Value::Object(map) => {
                for (name, inner) in &node.properties {
                    if let Some(v) = map.get(&**name) {
                        let before = old.filter(|_| !node.atomic).and_then(|o| o.get(&**name));
                        self.inside(name, false, |r| r.node(inner, v, before, same));
                    }
                }
                if let Some(inner) = &node.values {
                    for (name, v) in map {
                        let before = old.filter(|_| !node.atomic).and_then(|o| o.get(name));
                        self.inside(name, true, |r| r.node(inner, v, before, same));
                    }
                }
            }
            Value::Array(items) => {
                if let Some(inner) = &node.items {
                    for (i, v) in items.iter().enumerate() {
                        let keys = node.keys.as_deref();
                        let before = old.and_then(|o| twin(o, v, keys?));
                        self.inside(&i.to_string(), true, |r| r.node(inner, v, before, same));
                    }
                }
            }
            _ => {}
        }
    }

    fn inside(&mut self, step: &str, key: bool, f: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        if key {
            self.path.push('[');
            self.path.push_str(step);
            self.path.push(']');
        } else {
            if length > 0 {
                self.path.push('.');
            }
            self.path.push_str(step);
        }
        f(self);
        self.path.truncate(length);
    }

    fn rule(&mut self, node: &Node, rule: &OneRule, new: &Value, old: Option<&Value>) {
        let said = rule.message.as_deref().unwrap_or(&rule.source);
        let program = match &rule.program {
            Ok(p) => p,
            Err(e) => return self.fail(node, None, &format!("rule compile error: {e}")),
        };
        let old = old.map(|o| Cel::of(o, &node.ty));
        let mut activation = Activation::new().with("self", Cel::of(new, &node.ty));
        if rule.optional_old {
            let old = Cel::Optional(old.map(std::sync::Arc::new));
            activation = activation.with("oldSelf", old);
        } else if let Some(old) = old {
            activation = activation.with("oldSelf", old);
        }
        let (value, spent) = program.run(&activation, cel::CALL_COST_MAX);
        if !self.spend(spent) {
            let text = "validation failed due to running out of cost budget, no further validation rules will be run";
            return self.fail(node, None, text);
        }
        match value {
            Ok(Cel::Bool(true)) => {}
            Ok(_) => self.broken(node, rule, &activation),
            Err(EvalError::Cost) => {
                let e = EvalError::Cost;
                self.fail(node, None, &format!("'{e}': no further validation rules will be run due to call cost exceeds limit for rule: {said}"));
                self.stopped = true;
            }
            Err(EvalError::Failed(e)) if e.starts_with("no such overload") => {
                self.fail(node, None, &format!("'{e}': call arguments did not match a supported operator, function or macro signature for rule: {said}"));
            }
            Err(EvalError::Failed(e)) => {
                self.fail(node, None, &format!("{e} evaluating rule: {said}"))
            }
        }
    }

    /// Whether there is enough left.
    fn spend(&mut self, cost: u64) -> bool {
        match self.budget.checked_sub(cost) {
            Some(left) => {
                self.budget = left;
                true
            }
            None => {
                self.stopped = true;
                false
            }
        }
    }

    fn broken(&mut self, node: &Node, rule: &OneRule, activation: &Activation<'_>) {
        let made = rule.message_program.as_ref().and_then(|p| {
            let (value, spent) = p.run(activation, cel::CALL_COST_MAX);
            self.spend(spent);
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
        let detail = made.unwrap_or_else(|| match &rule.message {
            Some(m) => m.to_string(),
            None => format!("failed rule: {}", rule.source),
        });
        self.fail(node, Some(rule), &detail);
    }

    fn fail(&mut self, node: &Node, rule: Option<&OneRule>, detail: &str) {
        let mut field = self.path.clone();
        if let Some(path) = rule.and_then(|r| r.field_path.as_deref()) {
            if !field.is_empty() && !path.starts_with('[') {
                field.push('.');
            }
            field.push_str(path);
        }
        if field.is_empty() {
            field.push_str("<nil>");
        }
        let shown = Value::from(&*node.json_type);
        let error = match rule.and_then(|r| r.reason.as_deref()) {
            Some("FieldValueForbidden") => FieldError::forbidden(field, detail),
            Some("FieldValueRequired") => FieldError::required(field, detail),
            Some("FieldValueDuplicate") => FieldError::duplicate(field, &shown),
            _ => FieldError::invalid(field, &shown, detail),
        };
        self.errors.push(error);
    }
}

//! Runs a checked expression, and counts what it costs as it goes.

use super::Activation;
use super::ast::{Binary, Call, Expr, Form, Kind, Macro, Select, Unary};
use super::cost;
use super::standard;
use super::value::{Key, List, Map, Value};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// What went wrong, worded as `cel-go` words it.
    #[error("{0}")]
    Failed(String),
    /// It was stopped.
    #[error("operation cancelled: actual cost limit exceeded")]
    Cost,
}

impl EvalError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }

    pub(super) fn overload() -> Self {
        Self::new("no such overload")
    }
}

type Result<T> = std::result::Result<T, EvalError>;

/// Runs expressions.
pub(super) struct Machine<'p, 'a> {
    pub(super) activation: &'p Activation<'a>,
    pub(super) scope: Vec<(&'p str, Value<'a>)>,
    pub(super) spent: u64,
    pub(super) limit: u64,
}

impl<'p, 'a> Machine<'p, 'a> {
    fn spend(&mut self, cost: u64) -> Result<()> {
        self.spent = self.spent.saturating_add(cost);
        if self.spent > self.limit {
            return Err(EvalError::Cost);
        }
        Ok(())
    }

    pub(super) fn eval(&mut self, e: &'p Expr) -> Result<Value<'a>> {
        match &e.kind {
            Kind::Const(v) => Ok(v.clone()),
            Kind::Ident(name) => self.ident(name),
            Kind::Select {
                operand,
                field,
                mode,
            } => self.select(operand, field, *mode),
            Kind::Index {
                operand,
                index,
                optional,
            } => {
                let (of, at) = (self.eval(operand)?, self.eval(index)?);
                self.spend(1)?;
                index_of(of, &at, *optional)
            }
            Kind::Unary(op, operand) => {
                let v = self.eval(operand)?;
                self.spend(1)?;
                match (op, v) {
                    (Unary::Not, Value::Bool(b)) => Ok(Value::Bool(!b)),
                    (Unary::Negate, Value::Int(n)) => n
                        .checked_neg()
                        .map(Value::Int)
                        .ok_or_else(standard::overflow),
                    (Unary::Negate, Value::Double(n)) => Ok(Value::Double(-n)),
                    _ => Err(EvalError::overload()),
                }
            }
            Kind::Binary(op @ (Binary::And | Binary::Or), a, b) => self.logic(*op, a, b),
            Kind::Binary(op, a, b) => {
                let (a, b) = (self.eval(a)?, self.eval(b)?);
                self.binary(*op, &a, &b)
            }
            Kind::Conditional(parts) => {
                let [test, yes, no] = &**parts;
                match self.eval(test)? {
                    Value::Bool(true) => self.eval(yes),
                    Value::Bool(false) => self.eval(no),
                    _ => Err(EvalError::overload()),
                }
            }
            Kind::Call(call) => self.call(call),
            Kind::List(items) => self.list(items),
            Kind::Map(entries) => self.map(entries),
            Kind::Struct(_, fields) => self.eval(fields),
            Kind::Macro(m) => self.macro_call(m),
        }
    }

    fn ident(&mut self, name: &str) -> Result<Value<'a>> {
        self.spend(1)?;
        if let Some((_, v)) = self.scope.iter().rev().find(|(n, _)| *n == name) {
            return Ok(v.clone());
        }
        if let Some(v) = self.activation.get(name) {
            return Ok(v);
        }
        standard::type_named(name)
            .map(Value::Type)
            .ok_or_else(|| EvalError::new(format!("no such attribute(s): {name}")))
    }

    fn select(&mut self, operand: &'p Expr, field: &str, mode: Select) -> Result<Value<'a>> {
        if let Kind::Ident(name) = &operand.kind
            && **name == *"variables"
            && let Some(variables) = &self.activation.variables
            && !self.scope.iter().any(|(n, _)| *n == "variables")
        {
            self.spend(if mode == Select::Test { 1 } else { 2 })?;
            if mode == Select::Test {
                return Ok(Value::Bool(variables.has(field)));
            }
            let left = self.limit - self.spent;
            let (value, spent) = variables.get(field, self.activation, left);
            self.spend(spent)?;
            return value;
        }
        let of = self.eval(operand)?;
        if mode != Select::Test {
            self.spend(1)?;
        }
        let (of, through) = match of {
            Value::Optional(None) => {
                return Ok(match mode {
                    Select::Test => Value::Bool(false),
                    _ => Value::Optional(None),
                });
            }
            Value::Optional(Some(v)) => ((*v).clone(), true),
            other => (other, false),
        };
        let Value::Map(map) = &of else {
            return Err(EvalError::overload());
        };
        let found = map.field(field);
        match (mode, found) {
            (Select::Test, found) => Ok(Value::Bool(found.is_some())),
            (Select::Optional, found) => Ok(Value::Optional(found.map(Arc::new))),
            (Select::Plain, found) if through => Ok(Value::Optional(found.map(Arc::new))),
            (Select::Plain, Some(v)) => Ok(v),
            (Select::Plain, None) => Err(EvalError::new(format!("no such key: {field}"))),
        }
    }

    /// An error of one side is none when the other side decides.
    fn logic(&mut self, op: Binary, a: &'p Expr, b: &'p Expr) -> Result<Value<'a>> {
        let decides = op == Binary::Or;
        let first = self.eval(a);
        match &first {
            Ok(Value::Bool(b)) if *b == decides => return first,
            Err(EvalError::Cost) => return first,
            _ => {}
        }
        let second = self.eval(b)?;
        match (first, second) {
            (_, Value::Bool(b)) if b == decides => Ok(Value::Bool(decides)),
            (Ok(Value::Bool(_)), Value::Bool(b)) => Ok(Value::Bool(b)),
            (Err(e), _) => Err(e),
            _ => Err(EvalError::overload()),
        }
    }

    fn binary(&mut self, op: Binary, a: &Value<'a>, b: &Value<'a>) -> Result<Value<'a>> {
        let walk = |n: u64| ((n as f64) * cost::TRAVERSAL).ceil() as u64;
        match op {
            Binary::Equal | Binary::NotEqual => {
                self.spend(walk(a.size().min(b.size())))?;
                Ok(Value::Bool(a.equals(b) == (op == Binary::Equal)))
            }
            Binary::Less | Binary::LessEqual | Binary::Greater | Binary::GreaterEqual => {
                self.spend(walk(a.size().min(b.size())))?;
                let Some(order) = a.compare(b) else {
                    return match (a, b) {
                        // Not a number is not less, not greater, not equal.
                        (Value::Double(_), _) | (_, Value::Double(_)) => Ok(Value::Bool(false)),
                        _ => Err(EvalError::overload()),
                    };
                };
                Ok(Value::Bool(match op {
                    Binary::Less => order == Ordering::Less,
                    Binary::LessEqual => order != Ordering::Greater,
                    Binary::Greater => order == Ordering::Greater,
                    _ => order != Ordering::Less,
                }))
            }
            Binary::In => match b {
                Value::List(l) => {
                    self.spend(b.size())?;
                    Ok(Value::Bool(l.has(a)))
                }
                Value::Map(m) => {
                    self.spend(1)?;
                    Ok(Value::Bool(a.key().is_some_and(|k| m.get(&k).is_some())))
                }
                _ => Err(EvalError::overload()),
            },
            Binary::Add => {
                self.spend(match (a, b) {
                    (Value::String(_), _) | (Value::Bytes(_), _) => {
                        walk(a.size().saturating_add(b.size()))
                    }
                    _ => 1,
                })?;
                standard::add(a, b)
            }
            _ => {
                self.spend(1)?;
                standard::arithmetic(op, a, b)
            }
        }
    }

    fn call(&mut self, call: &'p Call) -> Result<Value<'a>> {
        let mut args = Vec::with_capacity(call.args.len());
        for a in &call.args {
            args.push(self.eval(a)?);
        }
        let Some(function) = call.function else {
            return Err(EvalError::overload());
        };
        let compiled = call.pattern.as_ref().and_then(|p| p.regex());
        let result = match compiled {
            Some(regex) => {
                // Before it runs: it is the text that makes it long.
                self.spend(cost::of_run(function.name, &args, None))?;
                return super::texts::by_pattern(function.name, regex, &args);
            }
            None => (function.library)(function.name, &args),
        };
        self.spend(cost::of_run(function.name, &args, result.as_ref().ok()))?;
        result
    }

    fn list(&mut self, items: &'p [(Expr, bool)]) -> Result<Value<'a>> {
        let mut out = Vec::with_capacity(items.len());
        for (e, optional) in items {
            match (self.eval(e)?, optional) {
                (Value::Optional(None), true) => {}
                (Value::Optional(Some(v)), true) => out.push((*v).clone()),
                (v, _) => out.push(v),
            }
        }
        self.spend(cost::LIST)?;
        Ok(out.into())
    }

    fn map(&mut self, entries: &'p [(Expr, Expr, bool)]) -> Result<Value<'a>> {
        let mut out = BTreeMap::new();
        for (k, v, optional) in entries {
            let (k, v) = (self.eval(k)?, self.eval(v)?);
            let key = k
                .key()
                .ok_or_else(|| EvalError::new("unsupported key type"))?;
            let v = match (v, optional) {
                (Value::Optional(None), true) => continue,
                (Value::Optional(Some(v)), true) => (*v).clone(),
                (v, _) => v,
            };
            if out.insert(key, v).is_some() {
                return Err(EvalError::new("Failed with repeated key"));
            }
        }
        self.spend(cost::MAP)?;
        Ok(Value::Map(Map::Own(Arc::new(out))))
    }

    fn macro_call(&mut self, m: &'p Macro) -> Result<Value<'a>> {
        let range = self.eval(&m.range)?;
        match m.form {
            Form::Bind => {
                self.spend(1)?;
                return self.with(m, range);
            }
            Form::OptMap | Form::OptFlatMap => {
                self.spend(1)?;
                return match range {
                    Value::Optional(Some(v)) => {
                        let made = self.with(m, (*v).clone())?;
                        Ok(match m.form {
                            Form::OptMap => Value::some(made),
                            _ => made,
                        })
                    }
                    Value::Optional(None) => Ok(Value::Optional(None)),
                    _ => Err(EvalError::overload()),
                };
            }
            _ => {}
        }
        self.spend(cost::of_frame(m.form).max)?;
        let depth = self.scope.len();
        let done = match &range {
            Value::List(l) => self.fold(m, Elements::List(l)),
            Value::Map(map) => self.fold(m, Elements::Map(map.entries().into_iter())),
            _ => Err(EvalError::overload()),
        };
        self.scope.truncate(depth);
        done
    }

    fn with(&mut self, m: &'p Macro, v: Value<'a>) -> Result<Value<'a>> {
        let Some(body) = &m.body else {
            return Err(EvalError::overload());
        };
        self.scope.push((&m.var, v));
        let done = self.eval(body);
        self.scope.pop();
        done
    }

    fn fold(&mut self, m: &'p Macro, elements: Elements<'_, 'a>) -> Result<Value<'a>> {
        let depth = self.scope.len();
        let mut fold = Fold::default();
        let of_list = matches!(elements, Elements::List(_));
        for (first, second) in elements.all() {
            self.scope.truncate(depth);
            match &m.var2 {
                Some(name) => {
                    self.scope.push((&m.var, first.clone()));
                    self.scope.push((name, second.clone()));
                }
                None => {
                    let one = if of_list { &second } else { &first };
                    self.scope.push((&m.var, one.clone()));
                }
            }
            let test = match &m.test {
                None => Ok(true),
                Some(e) => match self.eval(e) {
                    Ok(Value::Bool(b)) => Ok(b),
                    Ok(_) => Err(EvalError::overload()),
                    Err(e) => Err(e),
                },
            };
            if matches!(test, Err(EvalError::Cost)) {
                return Err(EvalError::Cost);
            }
            self.spend(cost::of_step(m.form, None, None).min.max(1))?;
            let element = if of_list { &second } else { &first };
            if !self.step(m, &mut fold, test, (&first, element))? {
                break;
            }
        }
        self.scope.truncate(depth);
        fold.end(m.form)
    }

    /// Takes one element in; whether to go on.
    fn step(
        &mut self,
        m: &'p Macro,
        fold: &mut Fold<'a>,
        test: Result<bool>,
        (key, element): (&Value<'a>, &Value<'a>),
    ) -> Result<bool> {
        match (m.form, test) {
            (Form::All, Ok(false)) => {
                fold.decided = Some(false);
                return Ok(false);
            }
            (Form::Exists, Ok(true)) => {
                fold.decided = Some(true);
                return Ok(false);
            }
            (Form::All | Form::Exists, Ok(_)) => {}
            (Form::All | Form::Exists, Err(e)) => {
                fold.error.get_or_insert(e);
            }
            (_, Err(e)) => return Err(e),
            (_, Ok(false)) => {}
            (Form::ExistsOne, Ok(true)) => fold.count += 1,
            (form, Ok(true)) => {
                let body = match &m.body {
                    Some(body) => Some(self.eval(body)?),
                    None => None,
                };
                self.spend(2 + cost::LIST)?;
                match (form, body) {
                    (Form::SortBy, Some(by)) => fold.sorted.push((by, element.clone())),
                    (Form::TransformMap, Some(v)) => {
                        let key = key.key().ok_or_else(EvalError::overload)?;
                        fold.map.insert(key, v);
                    }
                    (Form::TransformMapEntry, Some(Value::Map(entry))) => {
                        for (k, v) in entry.entries() {
                            if fold.map.insert(k, v).is_some() {
                                return Err(EvalError::new("insert failed: key already exists"));
                            }
                        }
                    }
                    (Form::TransformMapEntry, _) => return Err(EvalError::overload()),
                    (_, Some(v)) => fold.list.push(v),
                    (_, None) => fold.list.push(element.clone()),
                }
            }
        }
        Ok(true)
    }
}

/// What a loop goes over.
enum Elements<'l, 'a> {
    List(&'l List<'a>),
    Map(std::vec::IntoIter<(Key, Value<'a>)>),
}

impl<'l, 'a> Elements<'l, 'a> {
    /// Index and item, or key and value.
    fn all(self) -> Box<dyn Iterator<Item = (Value<'a>, Value<'a>)> + 'l>
    where
        'a: 'l,
    {
        match self {
            Self::List(l) => {
                let indexed = l.iter().enumerate();
                Box::new(indexed.map(|(i, v)| (Value::Int(i as i64), v)))
            }
            Self::Map(m) => Box::new(m.map(|(k, v)| (k.value(), v))),
        }
    }
}

/// The state of a loop.
#[derive(Default)]
struct Fold<'a> {
    decided: Option<bool>,
    error: Option<EvalError>,
    count: u64,
    list: Vec<Value<'a>>,
    map: BTreeMap<Key, Value<'a>>,
    sorted: Vec<(Value<'a>, Value<'a>)>,
}

impl<'a> Fold<'a> {
    fn end(mut self, form: Form) -> Result<Value<'a>> {
        Ok(match form {
            Form::All | Form::Exists => match (self.decided, self.error) {
                (Some(b), _) => Value::Bool(b),
                (None, Some(e)) => return Err(e),
                (None, None) => Value::Bool(form == Form::All),
            },
            Form::ExistsOne => Value::Bool(self.count == 1),
            Form::TransformMap | Form::TransformMapEntry => {
                Value::Map(Map::Own(Arc::new(self.map)))
            }
            Form::SortBy => {
                super::lists::sort_pairs(&mut self.sorted)?;
                self.sorted
                    .into_iter()
                    .map(|(_, v)| v)
                    .collect::<Vec<_>>()
                    .into()
            }
            _ => self.list.into(),
        })
    }
}

fn index_of<'a>(of: Value<'a>, at: &Value<'a>, optional: bool) -> Result<Value<'a>> {
    let (of, through) = match of {
        Value::Optional(None) => return Ok(Value::Optional(None)),
        Value::Optional(Some(v)) => ((*v).clone(), true),
        other => (other, false),
    };
    let wrap = optional || through;
    let found = match &of {
        Value::List(l) => {
            let i = match at {
                Value::Int(n) => usize::try_from(*n).ok(),
                Value::Uint(n) => usize::try_from(*n).ok(),
                Value::Double(f) if f.fract() == 0.0 && *f >= 0.0 && *f < 1e15 => Some(*f as usize),
                _ => return Err(EvalError::overload()),
            };
            match i.and_then(|i| l.get(i)) {
                None if !wrap => {
                    let shown = standard::display(at);
                    return Err(EvalError::new(format!("index out of bounds: {shown}")));
                }
                found => found,
            }
        }
        Value::Map(m) => {
            let key = at
                .key()
                .ok_or_else(|| EvalError::new("unsupported key type"))?;
            match m.get(&key) {
                None if !wrap => {
                    let shown = standard::display(at);
                    return Err(EvalError::new(format!("no such key: {shown}")));
                }
                found => found,
            }
        }
        _ => return Err(EvalError::overload()),
    };
    match found {
        found if wrap => Ok(Value::Optional(found.map(Arc::new))),
        Some(v) => Ok(v),
        None => Err(EvalError::overload()),
    }
}

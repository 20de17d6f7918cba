//! The Common Expression Language, as Kubernetes has it: rules of custom resources, admission
//! policies and match conditions are written in it.
//!
//! An [`Env`] says which variables there are. [`Program::compile`] parses an expression,
//! checks its types and estimates what it can cost at most; a [`Program`] is then
//! run over an [`Activation`] of [`Value`]s, which look at JSON where it is, and stops at a
//! limit of cost. Names of properties that expressions can't write are [`escape()`]d.
//!
//! It is not a general CEL: there are no protobuf messages and no containers. The reference is
//! `cel-go` with the environment of `k8s.io/apiserver/pkg/cel/environment`.

mod ast;
mod authorize;
mod check;
mod cost;
mod declare;
mod escape;
mod eval;
mod lex;
mod lists;
mod net;
mod of_schema;
mod parse;
mod standard;
mod texts;
mod time;
mod ty;
mod value;

#[cfg(test)]
mod tests;

pub use authorize::{Authorize, Check, Question};
pub use escape::{escape, unescape};
pub use eval::EvalError;
pub use ty::{FieldType, ListType, MapType, ObjectType, Opaque, Type, UNBOUNDED};
pub use value::{Key, List, Map, Text, Value};

use std::cell::RefCell;
use std::rc::Rc;

/// What one run of one expression may cost.
pub const CALL_COST_MAX: u64 = 1_000_000;
/// What all rules of one object may cost together.
pub const OBJECT_COST_MAX: u64 = 10_000_000;
/// What one rule of a definition may be estimated to cost.
pub const RULE_ESTIMATE_MAX: u64 = 10_000_000;
/// What all rules of one definition's version may be estimated to cost.
pub const SCHEMA_ESTIMATE_MAX: u64 = 100_000_000;
/// What all match conditions of one webhook or policy may cost.
pub const CONDITIONS_COST_MAX: u64 = 2_500_000;
/// Bytes of one expression's source.
pub const SOURCE_BYTES_MAX: usize = 256 * 1024;

/// An expression that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct CompileError {
    text: String,
}

impl CompileError {
    /// An error at a character of the source, with the line and a mark below it.
    fn at(source: &str, at: usize, message: &str) -> Self {
        let (mut line, mut column, mut start) = (1, 1, 0);
        for (i, (byte, c)) in source.char_indices().enumerate() {
            if i >= at {
                break;
            }
            column += 1;
            if c == '\n' {
                line += 1;
                column = 1;
                start = byte + 1;
            }
        }
        /// Of a longer line only the beginning is shown.
        const SHOWN_MAX: usize = 300;
        let shown: String = source[start..]
            .lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(SHOWN_MAX)
            .collect();
        let dots = ".".repeat((column - 1).min(SHOWN_MAX));
        Self {
            text: format!("ERROR: <input>:{line}:{column}: {message}\n | {shown}\n | {dots}^"),
        }
    }

    fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }
}

/// Variables and their types.
#[derive(Clone, Debug, Default)]
pub struct Env {
    variables: Vec<(Box<str>, Type)>,
    objects: bool,
}

impl Env {
    /// An environment without variables.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with one more.
    pub fn with(mut self, name: &str, ty: Type) -> Self {
        self.variables.retain(|(n, _)| **n != *name);
        self.variables.push((name.into(), ty));
        self
    }

    /// The same where `Object{…}`, `Object.spec{…}` and `JSONPatch{…}` make objects.
    pub fn with_objects(mut self) -> Self {
        self.objects = true;
        self
    }

    fn variable(&self, name: &str) -> Option<&Type> {
        self.variables
            .iter()
            .find(|(n, _)| **n == *name)
            .map(|(_, t)| t)
    }
}

/// A checked expression.
#[derive(Debug)]
pub struct Program {
    expr: ast::Expr,
    output: Type,
    cost_max: u64,
    uses: Vec<Box<str>>,
}

impl Program {
    /// Parses and checks an expression.
    ///
    /// # Errors
    /// What is wrong with it, as `cel-go` tells it.
    pub fn compile(env: &Env, source: &str) -> Result<Self, CompileError> {
        if source.len() > SOURCE_BYTES_MAX {
            let text = format!(
                "expression code point size exceeds limit: size: {}, limit {SOURCE_BYTES_MAX}",
                source.len()
            );
            return Err(CompileError::plain(text));
        }
        let mut expr = parse::parse(source)?;
        let mut checker = check::Checker::new(env, source);
        let node = checker.expr(&mut expr);
        if !checker.errors.is_empty() {
            let all: Vec<String> = checker.errors.iter().map(ToString::to_string).collect();
            return Err(CompileError::plain(all.join("\n")));
        }
        Ok(Self {
            expr,
            output: node.ty,
            cost_max: node.cost.max,
            uses: checker.uses.into_iter().collect(),
        })
    }

    /// The type of its values.
    pub fn output(&self) -> &Type {
        &self.output
    }

    /// What it can cost at most; [`UNBOUNDED`] when nothing bounds it.
    pub fn cost_max(&self) -> u64 {
        self.cost_max
    }

    /// Whether it reads a variable.
    pub fn uses(&self, name: &str) -> bool {
        self.uses.iter().any(|n| **n == *name)
    }

    /// Whether its values can be of a type.
    pub fn gives(&self, ty: &Type) -> bool {
        ty.same(&self.output)
    }

    /// Runs it; the value and what it cost. It stops when it costs more than `limit`.
    pub fn run<'a>(
        &self,
        activation: &Activation<'a>,
        limit: u64,
    ) -> (Result<Value<'a>, EvalError>, u64) {
        let mut machine = eval::Machine {
            activation,
            scope: Vec::new(),
            spent: 0,
            limit,
        };
        let value = machine.eval(&self.expr);
        (value, machine.spent)
    }
}

/// Values of variables.
#[derive(Clone, Debug, Default)]
pub struct Activation<'a> {
    values: Vec<(&'a str, Value<'a>)>,
    variables: Option<Rc<Variables<'a>>>,
}

impl<'a> Activation<'a> {
    /// No variables.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with one more.
    pub fn with(mut self, name: &'a str, value: Value<'a>) -> Self {
        self.values.push((name, value));
        self
    }

    /// The same with `variables`, whose fields are expressions of their own: each is run when
    /// it is first read, and may read those before it.
    pub fn with_variables(mut self, programs: &'a [(Box<str>, Program)]) -> Self {
        self.variables = Some(Rc::new(Variables {
            programs,
            done: RefCell::new(vec![None; programs.len()]),
        }));
        self
    }

    fn get(&self, name: &str) -> Option<Value<'a>> {
        let mut all = self.values.iter().rev();
        all.find(|(n, _)| *n == name).map(|(_, v)| v.clone())
    }
}

/// Values that are made when they are first asked for.
#[derive(Debug)]
struct Variables<'a> {
    programs: &'a [(Box<str>, Program)],
    done: RefCell<Vec<Option<Result<Value<'a>, EvalError>>>>,
}

impl<'a> Variables<'a> {
    fn has(&self, name: &str) -> bool {
        self.programs.iter().any(|(n, _)| **n == *name)
    }

    /// The value and what it cost just now.
    fn get(
        &self,
        name: &str,
        activation: &Activation<'a>,
        limit: u64,
    ) -> (Result<Value<'a>, EvalError>, u64) {
        let Some(i) = self.programs.iter().position(|(n, _)| **n == *name) else {
            return (Err(EvalError::new(format!("no such key: {name}"))), 0);
        };
        if let Some(done) = &self.done.borrow()[i] {
            return (done.clone(), 0);
        }
        let (value, spent) = self.programs[i].1.run(activation, limit);
        let value = match value {
            Err(EvalError::Cost) => return (Err(EvalError::Cost), spent),
            Err(e) => Err(EvalError::new(format!(
                "composited variable {name:?} fails to evaluate: {e}"
            ))),
            value => value,
        };
        self.done.borrow_mut()[i] = Some(value.clone());
        (value, spent)
    }
}

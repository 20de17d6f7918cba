//! Types of an expression, and what it can cost at most.
//!
//! One walk does both: sizes come with types. The costs are those of `cel-go/checker/cost.go`
//! with upstream's estimates of its libraries (`k8s.io/apiserver/pkg/cel/library/cost.go`).

use super::ast::{Binary, Call, Expr, Form, Kind, Macro, Select, Unary};
use super::cost::{self, Range};
use super::declare::{self, Function};
use super::ty::{Type, UNBOUNDED};
use super::value::Value;
use super::{CompileError, Env};
use crate::schema::Pattern;
use std::collections::BTreeSet;

/// What is known of a node.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) ty: Type,
    pub(super) cost: Range,
    pub(super) size: Range,
}

/// Errors of one expression that are reported.
const ERRORS_MAX: usize = 10;

pub(super) struct Checker<'e> {
    env: &'e Env,
    source: &'e str,
    scope: Vec<(Box<str>, Type)>,
    pub(super) errors: Vec<CompileError>,
    pub(super) uses: BTreeSet<Box<str>>,
    /// What `format` is given may be of any types.
    mixed: bool,
}

impl<'e> Checker<'e> {
    pub(super) fn new(env: &'e Env, source: &'e str) -> Self {
        Self {
            env,
            source,
            scope: Vec::new(),
            errors: Vec::new(),
            uses: BTreeSet::new(),
            mixed: false,
        }
    }

    fn fail(&mut self, at: u32, message: &str) -> Node {
        if self.errors.len() < ERRORS_MAX {
            let error = CompileError::at(self.source, at as usize, message);
            self.errors.push(error);
        }
        node(Type::Dyn, Range::ONE)
    }

    pub(super) fn expr(&mut self, e: &mut Expr) -> Node {
        let at = e.at;
        match &mut e.kind {
            Kind::Const(v) => constant(v),
            Kind::Ident(name) => match self.variable(name) {
                Some(ty) => node(ty, Range::ONE),
                None => {
                    let text = format!("undeclared reference to '{name}' (in container '')");
                    self.fail(at, &text)
                }
            },
            Kind::Select { .. } => self.select(e),
            Kind::Index {
                operand,
                index,
                optional,
            } => {
                let (operand, index) = (self.expr(operand), self.expr(index));
                let optional = *optional;
                self.index(at, operand, index, optional)
            }
            Kind::Unary(op, operand) => {
                let name = if *op == Unary::Not { "!_" } else { "-_" };
                let operand = self.expr(operand);
                self.operator(at, name, vec![operand])
            }
            Kind::Binary(op, a, b) => {
                let (op, nodes) = (*op, vec![self.expr(a), self.expr(b)]);
                let made = self.operator(at, op.function(), nodes.clone());
                self.binary(op, &nodes, made)
            }
            Kind::Conditional(parts) => {
                let nodes: Vec<Node> = parts.iter_mut().map(|p| self.expr(p)).collect();
                let mut made = self.operator(at, "_?_:_", nodes.clone());
                made.cost = nodes[0].cost.add(nodes[1].cost.union(nodes[2].cost));
                made.size = nodes[1].size.union(nodes[2].size);
                made
            }
            Kind::Call(_) => self.call(e),
            Kind::List(items) => {
                let (mut cost, mut item) = (Range::of(cost::LIST), None);
                let count = items.len() as u64;
                let mut least = count;
                for (e, optional) in items {
                    let mut n = self.expr(e);
                    cost = cost.add(n.cost);
                    if *optional {
                        least -= 1;
                        n.ty = self.unwrapped(e.at, n.ty);
                    }
                    item = Some(self.joined(e.at, item, n.ty));
                }
                let ty = Type::list(item.unwrap_or(Type::Dyn));
                let size = Range {
                    min: least,
                    max: count,
                };
                Node {
                    ty: sized(ty, count),
                    cost,
                    size,
                }
            }
            Kind::Map(entries) => {
                let (mut cost, mut key, mut value) = (Range::of(cost::MAP), None, None);
                let count = entries.len() as u64;
                for (k, v, optional) in entries {
                    let (a, mut b) = (self.expr(k), self.expr(v));
                    cost = cost.add(a.cost).add(b.cost);
                    if *optional {
                        b.ty = self.unwrapped(v.at, b.ty);
                    }
                    key = Some(self.joined(k.at, key, a.ty));
                    value = Some(self.joined(v.at, value, b.ty));
                }
                let ty = Type::map(key.unwrap_or(Type::Dyn), value.unwrap_or(Type::Dyn));
                Node {
                    ty: sized(ty, count),
                    cost,
                    size: Range { min: 0, max: count },
                }
            }
            Kind::Macro(m) => self.macro_call(at, m),
            Kind::Struct(name, fields) => {
                let known = &**name == "JSONPatch" || name.split('.').next() == Some("Object");
                if !(self.env.objects && known) {
                    let text = format!("undeclared reference to '{name}' (in container '')");
                    return self.fail(at, &text);
                }
                let before = std::mem::replace(&mut self.mixed, true);
                let made = self.expr(fields);
                self.mixed = before;
                node(Type::Dyn, made.cost)
            }
        }
    }

    fn variable(&mut self, name: &str) -> Option<Type> {
        let local = self.scope.iter().rev().find(|(n, _)| **n == *name);
        if let Some((_, ty)) = local {
            return Some(ty.clone());
        }
        if let Some(ty) = self.env.variable(name) {
            self.uses.insert(name.into());
            return Some(ty.clone());
        }
        const TYPES: [&str; 11] = [
            "bool",
            "int",
            "uint",
            "double",
            "string",
            "bytes",
            "list",
            "map",
            "null_type",
            "type",
            "optional_type",
        ];
        TYPES.contains(&name).then_some(Type::Type)
    }

    fn select(&mut self, e: &mut Expr) -> Node {
        let at = e.at;
        // Dotted names of types.
        if let Some(name) = e.dotted()
            && matches!(
                &*name,
                "google.protobuf.Timestamp" | "google.protobuf.Duration" | "net.IP" | "net.CIDR"
            )
            && self.env.variable("net").is_none()
        {
            let known = if &*name == "google.protobuf.Timestamp" {
                "google.protobuf.Timestamp"
            } else if &*name == "google.protobuf.Duration" {
                "google.protobuf.Duration"
            } else if &*name == "net.IP" {
                "net.IP"
            } else {
                "net.CIDR"
            };
            e.kind = Kind::Const(Value::Type(known));
            return node(Type::Type, Range::ONE);
        }
        // Variables with a dot in their name.
        if let Some(name) = e.dotted()
            && let Some(ty) = self.env.variable(&name).cloned()
        {
            self.uses.insert(name.as_str().into());
            e.kind = Kind::Ident(name.into());
            return node(ty, Range::ONE);
        }
        let Kind::Select {
            operand,
            field,
            mode,
        } = &mut e.kind
        else {
            return node(Type::Dyn, Range::ONE);
        };
        let (field, mode) = (field.clone(), *mode);
        let inner = self.expr(operand);
        let (ty, through) = match &inner.ty {
            Type::Optional(t) => ((**t).clone(), true),
            other => (other.clone(), false),
        };
        let found = match &ty {
            Type::Dyn => Some(Type::Dyn),
            Type::Map(m) => Some(m.value.clone()),
            Type::Object(o) => match o.field(&field) {
                Some(f) => Some(f.ty.clone()),
                None => {
                    self.fail(at, &format!("undefined field '{field}'"));
                    None
                }
            },
            other => {
                let text = format!("type '{other}' does not support field selection");
                self.fail(at, &text);
                None
            }
        };
        let found = found.unwrap_or(Type::Dyn);
        if mode == Select::Test {
            return node(Type::Bool, inner.cost);
        }
        let made = if mode == Select::Optional || through {
            Type::optional(found)
        } else {
            found
        };
        node(made, inner.cost.add(Range::ONE))
    }

    fn index(&mut self, at: u32, operand: Node, index: Node, optional: bool) -> Node {
        let (ty, through) = match &operand.ty {
            Type::Optional(t) => ((**t).clone(), true),
            other => (other.clone(), false),
        };
        let cost = operand.cost.add(index.cost).add(Range::ONE);
        let inner = Node { ty, ..operand };
        let mut made = self.operator(at, "_[_]", vec![inner, index]);
        if optional || through {
            made.ty = Type::optional(made.ty);
        }
        node(made.ty, cost)
    }

    /// An operator whose cost is that of its operands and one.
    fn operator(&mut self, at: u32, name: &'static str, nodes: Vec<Node>) -> Node {
        let cost = nodes.iter().fold(Range::ONE, |c, n| c.add(n.cost));
        let types: Vec<Type> = nodes.into_iter().map(|n| n.ty).collect();
        let ty = declare::find(name).map(|f| resolve(f, false, &types));
        match ty {
            Some(Some(ty)) => node(ty, cost),
            _ => {
                self.no_overload(at, name, false, &types);
                node(Type::Dyn, cost)
            }
        }
    }

    fn no_overload(&mut self, at: u32, name: &str, receiver: bool, types: &[Type]) {
        let shown = |t: &[Type]| t.iter().map(Type::to_string).collect::<Vec<_>>().join(", ");
        let applied = match types {
            [first, rest @ ..] if receiver => format!("{first}.({})", shown(rest)),
            all => format!("({})", shown(all)),
        };
        let text = format!("found no matching overload for '{name}' applied to '{applied}'");
        self.fail(at, &text);
    }

    fn binary(&self, op: Binary, nodes: &[Node], mut made: Node) -> Node {
        let (a, b) = (&nodes[0], &nodes[1]);
        let args = a.cost.add(b.cost);
        match op {
            Binary::And | Binary::Or => {
                made.cost = Range {
                    min: a.cost.min,
                    max: args.max,
                };
            }
            Binary::Equal
            | Binary::NotEqual
            | Binary::Less
            | Binary::LessEqual
            | Binary::Greater
            | Binary::GreaterEqual => {
                let max = a.size.max.min(b.size.max);
                let walked = Range {
                    min: u64::from(max > 0),
                    max,
                };
                made.cost = walked.times(cost::TRAVERSAL).add(args);
            }
            Binary::In if !matches!(b.ty, Type::Map(_)) => made.cost = b.size.add(args),
            Binary::Add if has_parts(&made.ty) => {
                let size = a.size.add(b.size);
                made.size = size;
                made.ty = sized(made.ty, size.max);
                if !matches!(a.ty, Type::List(_)) {
                    made.cost = size.times(cost::TRAVERSAL).add(args);
                }
            }
            _ => {}
        }
        made
    }

    fn call(&mut self, e: &mut Expr) -> Node {
        let at = e.at;
        let Kind::Call(call) = &mut e.kind else {
            return node(Type::Dyn, Range::ONE);
        };
        self.qualify(call);
        let before = std::mem::replace(&mut self.mixed, &*call.name == "format");
        let nodes: Vec<Node> = call.args.iter_mut().map(|a| self.expr(a)).collect();
        self.mixed = before;
        let types: Vec<Type> = nodes.iter().map(|n| n.ty.clone()).collect();
        let Some(function) =
            declare::find(&call.name).filter(|f| !f.name.starts_with(['_', '@', '!', '-']))
        else {
            let text = format!("undeclared reference to '{}' (in container '')", call.name);
            return self.fail(at, &text);
        };
        call.function = Some(function);
        let Some(ty) = resolve(function, call.receiver, &types) else {
            self.no_overload(at, function.name, call.receiver, &types);
            return node(Type::Dyn, Range::ONE);
        };
        self.patterns(at, call);
        let args = nodes.iter().fold(Range::NONE, |c, n| c.add(n.cost));
        let (own, size) = cost::of_call(function.name, &nodes, &ty);
        let mut made = node(ty, own.add(args));
        if let Some(size) = size {
            made.size = size;
            made.ty = sized(made.ty, size.max);
        }
        made
    }

    /// `sets.contains(…)`: what looks like a receiver is the library.
    fn qualify(&self, call: &mut Call) {
        if !call.receiver {
            return;
        }
        let Some(Expr {
            kind: Kind::Ident(first),
            ..
        }) = call.args.first()
        else {
            return;
        };
        let name = format!("{first}.{}", call.name);
        let shadowed =
            self.scope.iter().any(|(n, _)| n == first) || self.env.variable(first).is_some();
        if !shadowed && declare::find(&name).is_some() {
            call.args.remove(0);
            call.receiver = false;
            call.name = name.into();
        }
    }

    /// Regular expressions that are written out are compiled here.
    fn patterns(&mut self, at: u32, call: &mut Call) {
        if !matches!(&*call.name, "matches" | "find" | "findAll") {
            return;
        }
        if let Some(Expr {
            kind: Kind::Const(Value::String(s)),
            ..
        }) = call.args.get(1)
        {
            match Pattern::check(s) {
                Ok(()) => call.pattern = Some(Box::new(Pattern::new(s))),
                Err(e) => {
                    let text = format!("invalid {} argument: {e}", call.name);
                    self.fail(at, &text);
                }
            }
        }
    }

    fn unwrapped(&mut self, at: u32, ty: Type) -> Type {
        match ty {
            Type::Optional(t) => (*t).clone(),
            Type::Dyn => Type::Dyn,
            other => {
                let text = format!("expected type 'optional_type(dyn)' but found '{other}'");
                self.fail(at, &text);
                Type::Dyn
            }
        }
    }

    /// The type of what is in a literal: all alike.
    fn joined(&mut self, at: u32, before: Option<Type>, ty: Type) -> Type {
        let Some(before) = before else { return ty };
        if before.is_dyn() || ty.is_dyn() {
            return Type::Dyn;
        }
        if before.same(&ty) {
            let max = before.size_max().max(ty.size_max());
            return sized(before, max);
        }
        if !self.mixed {
            self.fail(at, &format!("expected type '{before}' but found '{ty}'"));
        }
        Type::Dyn
    }

    fn macro_call(&mut self, at: u32, m: &mut Macro) -> Node {
        let range = self.expr(&mut m.range);
        match m.form {
            Form::Bind | Form::OptMap | Form::OptFlatMap => return self.binding(m, range),
            _ => {}
        }
        let (first, second) = match (&range.ty, &m.var2) {
            (Type::Dyn, _) => (Type::Dyn, Type::Dyn),
            (Type::List(l), None) => (l.item.clone(), Type::Dyn),
            (Type::List(l), Some(_)) => (Type::Int, l.item.clone()),
            (Type::Map(t), _) => (t.key.clone(), t.value.clone()),
            (other, _) => {
                let text = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.fail(at, &text);
                (Type::Dyn, Type::Dyn)
            }
        };
        let item = first.clone();
        let depth = self.scope.len();
        self.scope.push((m.var.clone(), first));
        if let Some(name) = &m.var2 {
            self.scope.push((name.clone(), second.clone()));
        }
        let test = m.test.as_mut().map(|e| {
            let n = self.expr(e);
            if !Type::Bool.same(&n.ty) {
                let text = format!("expected type 'bool' but found '{}'", n.ty);
                self.fail(e.at, &text);
            }
            n
        });
        let body = m.body.as_mut().map(|e| (self.expr(e), e.at));
        self.scope.truncate(depth);
        let step = cost::of_step(
            m.form,
            test.as_ref().map(|t| t.cost),
            body.as_ref().map(|b| b.0.cost),
        );
        let fixed = cost::of_frame(m.form);
        let cost = range.cost.add(fixed).add(range.size.multiply(step));
        let max = range.size.max;
        let made = |ty: Type| Node {
            ty: sized(ty, max),
            cost,
            size: Range { min: 0, max },
        };
        let body_ty = body.as_ref().map_or(Type::Dyn, |b| b.0.ty.clone());
        match m.form {
            Form::Filter => made(Type::list(item)),
            Form::Map | Form::TransformList => made(Type::list(body_ty)),
            Form::SortBy => made(range.ty.clone()),
            Form::TransformMap => {
                let key = match &range.ty {
                    Type::Map(t) => t.key.clone(),
                    Type::List(_) => Type::Int,
                    _ => Type::Dyn,
                };
                made(Type::map(key, body_ty))
            }
            Form::TransformMapEntry => made(match body_ty {
                t @ Type::Map(_) => t,
                _ => Type::map(Type::Dyn, Type::Dyn),
            }),
            _ => node(Type::Bool, cost),
        }
    }

    fn binding(&mut self, m: &mut Macro, range: Node) -> Node {
        let bound = match (&m.form, range.ty) {
            (Form::Bind, ty) => ty,
            (_, Type::Optional(t)) => (*t).clone(),
            (_, Type::Dyn) => Type::Dyn,
            (_, other) => {
                let at = m.range.at;
                self.no_overload(at, "hasValue", true, &[other]);
                Type::Dyn
            }
        };
        self.scope.push((m.var.clone(), bound));
        let body = m.body.as_mut().map(|e| self.expr(e));
        self.scope.pop();
        let Some(body) = body else {
            return node(Type::Dyn, Range::ONE);
        };
        let cost = range.cost.add(body.cost).add(Range::ONE);
        match m.form {
            Form::OptMap => node(Type::optional(body.ty), cost),
            _ => Node { cost, ..body },
        }
    }
}

/// The result of the overloads that fit; `None` when none does.
fn resolve(function: &Function, receiver: bool, types: &[Type]) -> Option<Type> {
    let mut found: Option<Type> = None;
    for o in &function.overloads {
        if o.receiver != receiver || o.args.len() != types.len() {
            continue;
        }
        let mut bound = [None, None];
        if !o
            .args
            .iter()
            .zip(types)
            .all(|(a, t)| a.accepts(t, &mut bound))
        {
            continue;
        }
        let result = o.result.bind(&bound);
        found = Some(match found {
            Some(before) if std::mem::discriminant(&before) != std::mem::discriminant(&result) => {
                Type::Dyn
            }
            _ => result,
        });
    }
    found
}

fn has_parts(ty: &Type) -> bool {
    matches!(
        ty,
        Type::String(_) | Type::Bytes(_) | Type::List(_) | Type::Dyn
    )
}

fn constant(v: &Value<'static>) -> Node {
    let size = v.size();
    let ty = match v {
        Value::Null => Type::Null,
        Value::Bool(_) => Type::Bool,
        Value::Int(_) => Type::Int,
        Value::Uint(_) => Type::Uint,
        Value::Double(_) => Type::Double,
        Value::String(_) => Type::String(size),
        Value::Bytes(_) => Type::Bytes(size),
        Value::Type(_) => Type::Type,
        _ => Type::Dyn,
    };
    Node {
        ty,
        cost: Range::NONE,
        size: Range::of(size),
    }
}

/// A node whose size is what its type says.
fn node(ty: Type, cost: Range) -> Node {
    let max = ty.size_max();
    let min = u64::from(max == 1);
    Node {
        ty,
        cost,
        size: Range { min, max },
    }
}

/// A type with another bound.
fn sized(ty: Type, max: u64) -> Type {
    match ty {
        Type::String(_) => Type::String(max),
        Type::Bytes(_) => Type::Bytes(max),
        Type::List(l) if max != UNBOUNDED || l.max != UNBOUNDED => {
            Type::List(std::sync::Arc::new(super::ty::ListType {
                max,
                ..(*l).clone()
            }))
        }
        Type::Map(m) if max != UNBOUNDED || m.max != UNBOUNDED => {
            Type::Map(std::sync::Arc::new(super::ty::MapType {
                max,
                ..(*m).clone()
            }))
        }
        other => other,
    }
}

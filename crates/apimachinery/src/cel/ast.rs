//! The tree of an expression. Every node knows how deep it is, so that no tree is built that
//! is too deep to walk or to drop.

use super::value::Value;
use crate::schema::Pattern;

/// How deep a tree may be: what a thread's stack has room to walk.
pub(super) const DEPTH_MAX: u16 = 160;
/// How deep brackets, calls and conditionals may be nested in a source.
pub(super) const NESTING_MAX: u16 = 64;

/// A node.
#[derive(Debug)]
pub(super) struct Expr {
    pub(super) kind: Kind,
    /// Character of the source where it starts (its operator for operators).
    pub(super) at: u32,
    pub(super) depth: u16,
}

/// What a node is.
#[derive(Debug)]
pub(super) enum Kind {
    Const(Value<'static>),
    Ident(Box<str>),
    /// `operand.field`, `operand.?field`, `has(operand.field)`.
    Select {
        operand: Box<Expr>,
        field: Box<str>,
        mode: Select,
    },
    /// `operand[index]`, `operand[?index]`.
    Index {
        operand: Box<Expr>,
        index: Box<Expr>,
        optional: bool,
    },
    Unary(Unary, Box<Expr>),
    Binary(Binary, Box<Expr>, Box<Expr>),
    Conditional(Box<[Expr; 3]>),
    Call(Call),
    /// Items; `true` for `?item`.
    List(Vec<(Expr, bool)>),
    /// Keys and values; `true` for `?key: value`.
    Map(Vec<(Expr, Expr, bool)>),
    /// `Object.spec{field: value}`: the name, and the fields as a map.
    Struct(Box<str>, Box<Expr>),
    Macro(Box<Macro>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Select {
    Plain,
    Optional,
    Test,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unary {
    Not,
    Negate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binary {
    Or,
    And,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
}

impl Binary {
    /// Name of the function in declarations and messages.
    pub(super) fn function(self) -> &'static str {
        match self {
            Self::Or => "_||_",
            Self::And => "_&&_",
            Self::Equal => "_==_",
            Self::NotEqual => "_!=_",
            Self::Less => "_<_",
            Self::LessEqual => "_<=_",
            Self::Greater => "_>_",
            Self::GreaterEqual => "_>=_",
            Self::In => "@in",
            Self::Add => "_+_",
            Self::Subtract => "_-_",
            Self::Multiply => "_*_",
            Self::Divide => "_/_",
            Self::Modulo => "_%_",
        }
    }
}

/// A function call. The receiver, if any, is the first argument.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) name: Box<str>,
    pub(super) receiver: bool,
    pub(super) args: Vec<Expr>,
    /// Set by the checker.
    pub(super) function: Option<&'static super::declare::Function>,
    /// A regular expression that is a literal, compiled once.
    pub(super) pattern: Option<Box<Pattern>>,
}

/// A loop over a list or map, or a binding.
#[derive(Debug)]
pub(super) struct Macro {
    pub(super) form: Form,
    pub(super) range: Expr,
    pub(super) var: Box<str>,
    pub(super) var2: Option<Box<str>>,
    /// The condition; of a mapping without filter, none.
    pub(super) test: Option<Expr>,
    /// What is made of each element, or of a bound value.
    pub(super) body: Option<Expr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    All,
    Exists,
    ExistsOne,
    Filter,
    Map,
    TransformList,
    TransformMap,
    TransformMapEntry,
    SortBy,
    /// `cel.bind(var, range, body)`
    Bind,
    /// `range.optMap(var, body)`
    OptMap,
    /// `range.optFlatMap(var, body)`
    OptFlatMap,
}

impl Expr {
    /// `a.b.c` as a text.
    pub(super) fn dotted(&self) -> Option<String> {
        match &self.kind {
            Kind::Ident(name) => Some(name.to_string()),
            Kind::Select {
                operand,
                field,
                mode: Select::Plain,
            } => Some(format!("{}.{field}", operand.dotted()?)),
            _ => None,
        }
    }
}

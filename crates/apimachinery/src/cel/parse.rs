//! Tokens to a tree: CEL's grammar, with the macros recognised where they are called.

use super::CompileError;
use super::ast::{Binary, Call, DEPTH_MAX, Expr, Form, Kind, Macro, NESTING_MAX, Select, Unary};
use super::lex::{Lexer, Token};
use super::value::Value;

/// Words that no variable may be called.
pub(super) const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Nodes of one expression.
const NODES_MAX: usize = 100_000;

pub(super) fn parse(source: &str) -> Result<Expr, CompileError> {
    let mut lexer = Lexer::new(source);
    let (token, at) = lexer.next()?;
    let mut parser = Parser {
        lexer,
        source,
        token,
        at,
        level: 0,
        nodes: 0,
    };
    let expr = parser.expr()?;
    if parser.token != Token::End {
        return Err(parser.unexpected("<EOF>"));
    }
    Ok(expr)
}

struct Parser<'s> {
    lexer: Lexer<'s>,
    source: &'s str,
    token: Token,
    at: usize,
    /// Nesting of calls of `expr` and of prefix operators.
    level: u16,
    nodes: usize,
}

impl Parser<'_> {
    fn fail(&self, at: usize, message: &str) -> CompileError {
        CompileError::at(self.source, at, message)
    }

    fn unexpected(&self, wanted: &str) -> CompileError {
        let found = match &self.token {
            Token::End => "<EOF>".to_owned(),
            Token::Ident(name) => name.clone(),
            Token::Sign(s) => (*s).to_owned(),
            Token::Int(n) => n.to_string(),
            Token::Uint(n) => format!("{n}u"),
            Token::Double(n) => n.to_string(),
            Token::IntMin => "9223372036854775808".to_owned(),
            Token::Text(t) => format!("\"{t}\""),
            Token::Bytes(_) => "bytes".to_owned(),
        };
        let text = format!("Syntax error: mismatched input '{found}' expecting {wanted}");
        self.fail(self.at, &text)
    }

    fn step(&mut self) -> Result<(Token, usize), CompileError> {
        let (next, at) = self.lexer.next()?;
        let token = std::mem::replace(&mut self.token, next);
        Ok((token, std::mem::replace(&mut self.at, at)))
    }

    fn is(&self, sign: &str) -> bool {
        matches!(self.token, Token::Sign(s) if s == sign)
    }

    fn take(&mut self, sign: &str) -> Result<bool, CompileError> {
        let there = self.is(sign);
        if there {
            self.step()?;
        }
        Ok(there)
    }

    fn want(&mut self, sign: &str) -> Result<(), CompileError> {
        if self.take(sign)? {
            Ok(())
        } else {
            Err(self.unexpected(&format!("'{sign}'")))
        }
    }

    /// A node one deeper than its parts.
    fn node(&mut self, kind: Kind, at: usize, parts: u16) -> Result<Expr, CompileError> {
        self.nodes += 1;
        let depth = parts + 1;
        if depth > DEPTH_MAX || self.nodes > NODES_MAX {
            return Err(self.too_deep(at));
        }
        Ok(Expr {
            kind,
            at: at as u32,
            depth,
        })
    }

    fn too_deep(&self, at: usize) -> CompileError {
        let text = format!("expression recursion limit exceeded: {DEPTH_MAX}");
        self.fail(at, &text)
    }

    fn expr(&mut self) -> Result<Expr, CompileError> {
        self.level += 1;
        if self.level > NESTING_MAX {
            return Err(self.too_deep(self.at));
        }
        let first = self.binary(0)?;
        let done = if self.is("?") {
            let (_, at) = self.step()?;
            let yes = self.binary(0)?;
            self.want(":")?;
            let no = self.expr()?;
            let depth = first.depth.max(yes.depth).max(no.depth);
            self.node(Kind::Conditional(Box::new([first, yes, no])), at, depth)?
        } else {
            first
        };
        self.level -= 1;
        Ok(done)
    }

    /// Operators that bind at least as tight as `least`.
    fn binary(&mut self, least: u8) -> Result<Expr, CompileError> {
        let mut left = self.unary()?;
        while let Some((op, tight)) = self.operator().filter(|(_, tight)| *tight >= least) {
            let (_, at) = self.step()?;
            let right = self.binary(tight + 1)?;
            if matches!(op, Binary::Or | Binary::And) {
                // Any number of terms makes a tree that is no deeper than it must be.
                let mut terms = vec![left, right];
                while self.operator().is_some_and(|(o, _)| o == op) {
                    self.step()?;
                    terms.push(self.binary(tight + 1)?);
                }
                left = self.balanced(op, terms, at)?;
                continue;
            }
            let depth = left.depth.max(right.depth);
            let kind = Kind::Binary(op, Box::new(left), Box::new(right));
            left = self.node(kind, at, depth)?;
        }
        Ok(left)
    }

    fn balanced(
        &mut self,
        op: Binary,
        mut terms: Vec<Expr>,
        at: usize,
    ) -> Result<Expr, CompileError> {
        while terms.len() > 1 {
            let mut joined = Vec::with_capacity(terms.len().div_ceil(2));
            let mut rest = terms.into_iter();
            while let Some(a) = rest.next() {
                match rest.next() {
                    Some(b) => {
                        let depth = a.depth.max(b.depth);
                        let kind = Kind::Binary(op, Box::new(a), Box::new(b));
                        joined.push(self.node(kind, at, depth)?);
                    }
                    None => joined.push(a),
                }
            }
            terms = joined;
        }
        terms.pop().ok_or_else(|| self.unexpected("an expression"))
    }

    fn operator(&self) -> Option<(Binary, u8)> {
        Some(match &self.token {
            Token::Ident(name) if name == "in" => (Binary::In, 2),
            Token::Sign(s) => match *s {
                "||" => (Binary::Or, 0),
                "&&" => (Binary::And, 1),
                "==" => (Binary::Equal, 2),
                "!=" => (Binary::NotEqual, 2),
                "<" => (Binary::Less, 2),
                "<=" => (Binary::LessEqual, 2),
                ">" => (Binary::Greater, 2),
                ">=" => (Binary::GreaterEqual, 2),
                "+" => (Binary::Add, 3),
                "-" => (Binary::Subtract, 3),
                "*" => (Binary::Multiply, 4),
                "/" => (Binary::Divide, 4),
                "%" => (Binary::Modulo, 4),
                _ => return None,
            },
            _ => return None,
        })
    }

    fn unary(&mut self) -> Result<Expr, CompileError> {
        let mut prefixes = Vec::new();
        while self.is("!") || self.is("-") {
            let (token, at) = self.step()?;
            let op = if token == Token::Sign("!") {
                Unary::Not
            } else {
                Unary::Negate
            };
            prefixes.push((op, at));
            if prefixes.len() > usize::from(DEPTH_MAX) {
                return Err(self.too_deep(at));
            }
        }
        let literal = match (prefixes.last(), &self.token) {
            (Some((Unary::Negate, _)), Token::Int(n)) => Some(Value::Int(-n)),
            (Some((Unary::Negate, _)), Token::IntMin) => Some(Value::Int(i64::MIN)),
            (Some((Unary::Negate, _)), Token::Double(n)) => Some(Value::Double(-n)),
            _ => None,
        };
        let mut expr = match literal {
            Some(value) => {
                self.step()?;
                let at = prefixes.pop().map_or(0, |p| p.1);
                let literal = self.node(Kind::Const(value), at, 0)?;
                self.member(literal)?
            }
            None => {
                let first = self.primary()?;
                self.member(first)?
            }
        };
        for (op, at) in prefixes.into_iter().rev() {
            let depth = expr.depth;
            expr = self.node(Kind::Unary(op, Box::new(expr)), at, depth)?;
        }
        Ok(expr)
    }

    fn member(&mut self, mut expr: Expr) -> Result<Expr, CompileError> {
        loop {
            if self.is(".") {
                let (_, at) = self.step()?;
                let optional = self.take("?")?;
                let (token, name_at) = self.step()?;
                let Token::Ident(name) = token else {
                    return Err(self.fail(name_at, "Syntax error: missing IDENTIFIER"));
                };
                if is_keyword(&name) {
                    let text =
                        format!("Syntax error: mismatched input '{name}' expecting IDENTIFIER");
                    return Err(self.fail(name_at, &text));
                }
                if !optional && self.is("(") {
                    let (_, open) = self.step()?;
                    let args = self.list(")")?;
                    expr = self.call(name, Some(expr), args, open)?;
                    continue;
                }
                let depth = expr.depth;
                let kind = Kind::Select {
                    operand: Box::new(expr),
                    field: name.into(),
                    mode: if optional {
                        Select::Optional
                    } else {
                        Select::Plain
                    },
                };
                expr = self.node(kind, at, depth)?;
            } else if self.is("[") {
                let (_, at) = self.step()?;
                let optional = self.take("?")?;
                let index = self.expr()?;
                self.want("]")?;
                let depth = expr.depth.max(index.depth);
                let kind = Kind::Index {
                    operand: Box::new(expr),
                    index: Box::new(index),
                    optional,
                };
                expr = self.node(kind, at, depth)?;
            } else if self.is("{")
                && let Some(name) = expr.dotted()
            {
                let at = expr.at as usize;
                let fields = self.fields()?;
                let depth = fields.depth;
                expr = self.node(Kind::Struct(name.into(), Box::new(fields)), at, depth)?;
            } else {
                return Ok(expr);
            }
        }
    }

    /// `{field: value, …}` as a map.
    fn fields(&mut self) -> Result<Expr, CompileError> {
        let (_, at) = self.step()?;
        let (mut entries, mut depth) = (Vec::new(), 0);
        while !self.is("}") {
            let optional = self.take("?")?;
            let (token, name_at) = self.step()?;
            let Token::Ident(name) = token else {
                return Err(self.fail(name_at, "Syntax error: missing IDENTIFIER"));
            };
            self.want(":")?;
            let value = self.expr()?;
            depth = value.depth.max(depth).max(1);
            let name = super::escape::unescape(&name).unwrap_or(name);
            let key = self.node(Kind::Const(Value::from(name)), name_at, 0)?;
            entries.push((key, value, optional));
            if !self.take(",")? {
                break;
            }
        }
        self.want("}")?;
        self.node(Kind::Map(entries), at, depth)
    }

    fn list(&mut self, end: &str) -> Result<Vec<Expr>, CompileError> {
        let mut out = Vec::new();
        if !self.is(end) {
            loop {
                out.push(self.expr()?);
                if !self.take(",")? {
                    break;
                }
            }
        }
        self.want(end)?;
        Ok(out)
    }

    fn primary(&mut self) -> Result<Expr, CompileError> {
        if self.take("(")? {
            let inner = self.expr()?;
            self.want(")")?;
            return Ok(inner);
        }
        if self.is("[") {
            return self.list_literal();
        }
        if self.is("{") {
            return self.map_literal();
        }
        if self.is(".") {
            // A leading dot names the root scope, which is the only one here.
            self.step()?;
        }
        let constant = match &self.token {
            Token::Int(n) => Value::Int(*n),
            Token::Uint(n) => Value::Uint(*n),
            Token::Double(n) => Value::Double(*n),
            Token::Text(t) => Value::from(t.clone()),
            Token::Bytes(b) => Value::Bytes(b.as_slice().into()),
            Token::Ident(name) => match name.as_str() {
                "true" => Value::Bool(true),
                "false" => Value::Bool(false),
                "null" => Value::Null,
                "in" => return Err(self.unexpected("an expression")),
                _ => return self.name(),
            },
            _ => {
                return Err(self.unexpected(
                    "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}",
                ));
            }
        };
        let (_, at) = self.step()?;
        self.node(Kind::Const(constant), at, 0)
    }

    fn name(&mut self) -> Result<Expr, CompileError> {
        let (token, at) = self.step()?;
        let Token::Ident(name) = token else {
            return Err(self.unexpected("IDENTIFIER"));
        };
        if self.is("(") {
            let (_, open) = self.step()?;
            let args = self.list(")")?;
            return self.call(name, None, args, open);
        }
        if RESERVED.contains(&name.as_str()) {
            return Err(self.fail(at, &format!("reserved identifier: {name}")));
        }
        self.node(Kind::Ident(name.into()), at, 0)
    }

    fn list_literal(&mut self) -> Result<Expr, CompileError> {
        let (_, at) = self.step()?;
        let (mut items, mut depth) = (Vec::new(), 0);
        while !self.is("]") {
            let optional = self.take("?")?;
            let item = self.expr()?;
            depth = item.depth.max(depth);
            items.push((item, optional));
            if !self.take(",")? {
                break;
            }
        }
        self.want("]")?;
        self.node(Kind::List(items), at, depth)
    }

    fn map_literal(&mut self) -> Result<Expr, CompileError> {
        let (_, at) = self.step()?;
        let (mut entries, mut depth) = (Vec::new(), 0);
        while !self.is("}") {
            let optional = self.take("?")?;
            let key = self.expr()?;
            self.want(":")?;
            let value = self.expr()?;
            depth = key.depth.max(value.depth).max(depth);
            entries.push((key, value, optional));
            if !self.take(",")? {
                break;
            }
        }
        self.want("}")?;
        self.node(Kind::Map(entries), at, depth)
    }

    fn call(
        &mut self,
        name: String,
        target: Option<Expr>,
        mut args: Vec<Expr>,
        at: usize,
    ) -> Result<Expr, CompileError> {
        if target.is_none() && name == "has" && args.len() == 1 {
            let arg = args.remove(0);
            let depth = arg.depth;
            if let Kind::Select {
                operand,
                field,
                mode: Select::Plain,
            } = arg.kind
            {
                let kind = Kind::Select {
                    operand,
                    field,
                    mode: Select::Test,
                };
                return self.node(kind, at, depth);
            }
            return Err(self.fail(arg.at as usize, "invalid argument to has() macro"));
        }
        if let Some(target) = target {
            return match form_of(&name, &target, args.len()) {
                Some(form) => self.make_macro(form, &name, target, args, at),
                None => {
                    args.insert(0, target);
                    self.function(name, true, args, at)
                }
            };
        }
        self.function(name, false, args, at)
    }

    fn function(
        &mut self,
        name: String,
        receiver: bool,
        args: Vec<Expr>,
        at: usize,
    ) -> Result<Expr, CompileError> {
        let depth = args.iter().map(|a| a.depth).max().unwrap_or(0);
        let kind = Kind::Call(Call {
            name: name.into(),
            receiver,
            args,
            function: None,
            pattern: None,
        });
        self.node(kind, at, depth)
    }

    fn make_macro(
        &mut self,
        form: Form,
        name: &str,
        target: Expr,
        mut args: Vec<Expr>,
        at: usize,
    ) -> Result<Expr, CompileError> {
        let depth = args
            .iter()
            .map(|a| a.depth)
            .max()
            .unwrap_or(0)
            .max(target.depth);
        let var = self.variable(args.remove(0))?;
        let transform = name.starts_with("transform");
        let two = transform
            || (args.len() == 2 && matches!(form, Form::All | Form::Exists | Form::ExistsOne));
        let var2 = if two {
            Some(self.variable(args.remove(0))?)
        } else {
            None
        };
        if var2.as_ref() == Some(&var) {
            return Err(self.fail(at, &format!("duplicate variable name: {var}")));
        }
        let (range, test, body) = match form {
            Form::Bind => {
                let body = args.pop();
                (args.remove(0), None, body)
            }
            Form::All | Form::Exists | Form::ExistsOne | Form::Filter => (target, args.pop(), None),
            _ => {
                let body = args.pop();
                (target, args.pop(), body)
            }
        };
        let kind = Kind::Macro(Box::new(Macro {
            form,
            range,
            var,
            var2,
            test,
            body,
        }));
        self.node(kind, at, depth)
    }

    fn variable(&self, expr: Expr) -> Result<Box<str>, CompileError> {
        match expr.kind {
            Kind::Ident(name) => Ok(name),
            _ => Err(self.fail(expr.at as usize, "argument must be a simple name")),
        }
    }
}

/// Which macro a call on a target is, if one.
fn form_of(name: &str, target: &Expr, args: usize) -> Option<Form> {
    let of_cel = matches!(&target.kind, Kind::Ident(n) if &**n == "cel");
    Some(match (name, args) {
        ("bind", 3) if of_cel => Form::Bind,
        ("all", 2 | 3) => Form::All,
        ("exists", 2 | 3) => Form::Exists,
        ("exists_one" | "existsOne", 2 | 3) => Form::ExistsOne,
        ("filter", 2) => Form::Filter,
        ("map", 2 | 3) => Form::Map,
        ("transformList", 3 | 4) => Form::TransformList,
        ("transformMap", 3 | 4) => Form::TransformMap,
        ("transformMapEntry", 3 | 4) => Form::TransformMapEntry,
        ("sortBy", 2) => Form::SortBy,
        ("optMap", 2) => Form::OptMap,
        ("optFlatMap", 2) => Form::OptFlatMap,
        _ => return None,
    })
}

fn is_keyword(name: &str) -> bool {
    matches!(name, "in" | "true" | "false" | "null")
}

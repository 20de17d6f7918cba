//! JSONPath as definitions use it for printed columns, scales and selectable fields:
//! `.a.b`, `['a.b']`, `.a\.b`, `[0]`, `[-1]`, `[*]`, `.*` and `[?(@.type=="Ready")]`.
//!
//! The dialect is that of `k8s.io/client-go/util/jsonpath` without recursion and ranges.

use serde_json::Value;
use std::cmp::Ordering;

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Box<[Step]>);

/// A text that is no path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("parse JSONPath {path:?}: {detail}")]
pub struct ParseError {
    path: String,
    detail: &'static str,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(Box<str>),
    Index(i64),
    All,
    Filter(Box<Filter>),
}

#[derive(Clone, Debug, PartialEq)]
struct Filter {
    path: JsonPath,
    /// What to compare with; without it the path must be there.
    compare: Option<(Op, Value)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

impl JsonPath {
    /// Parses a path; a leading `$` and surrounding braces are allowed.
    ///
    /// # Errors
    /// When the text is no path of this dialect.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let inner = text.trim();
        let inner = inner
            .strip_prefix('{')
            .and_then(|t| t.strip_suffix('}'))
            .unwrap_or(inner);
        let mut parser = Parser {
            rest: inner.trim_start_matches('$'),
        };
        parser.steps().map(Self).map_err(|detail| ParseError {
            path: text.to_owned(),
            detail,
        })
    }

    /// The first value that the path leads to.
    pub fn first<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        first(&self.0, value)
    }

    /// The path as dotted field names, if it has only fields.
    pub fn fields(&self) -> Option<Vec<&str>> {
        self.0
            .iter()
            .map(|s| match s {
                Step::Field(name) => Some(&**name),
                _ => None,
            })
            .collect()
    }
}

fn first<'v>(steps: &[Step], value: &'v Value) -> Option<&'v Value> {
    let Some((step, rest)) = steps.split_first() else {
        return Some(value);
    };
    match (step, value) {
        (Step::Field(name), Value::Object(map)) => first(rest, map.get(&**name)?),
        (Step::Index(i), Value::Array(items)) => {
            let at = if *i < 0 {
                items.len().checked_sub(usize::try_from(-i).ok()?)?
            } else {
                usize::try_from(*i).ok()?
            };
            first(rest, items.get(at)?)
        }
        (Step::All, Value::Array(items)) => items.iter().find_map(|v| first(rest, v)),
        (Step::All, Value::Object(map)) => map.values().find_map(|v| first(rest, v)),
        (Step::Filter(f), Value::Array(items)) => items
            .iter()
            .filter(|v| f.holds(v))
            .find_map(|v| first(rest, v)),
        _ => None,
    }
}

impl Filter {
    fn holds(&self, item: &Value) -> bool {
        let Some(found) = self.path.first(item) else {
            return false;
        };
        let Some((op, with)) = &self.compare else {
            return true;
        };
        let order = match (found, with) {
            (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
            (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
            (a, b) if a == b => Some(Ordering::Equal),
            _ => None,
        };
        match op {
            Op::Eq => order == Some(Ordering::Equal),
            Op::Ne => order != Some(Ordering::Equal),
            Op::Lt => order == Some(Ordering::Less),
            Op::Le => order.is_some_and(Ordering::is_le),
            Op::Gt => order == Some(Ordering::Greater),
            Op::Ge => order.is_some_and(Ordering::is_ge),
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn eat(&mut self, text: &str) -> bool {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn steps(&mut self) -> Result<Box<[Step]>, &'static str> {
        let mut out = Vec::new();
        while !self.rest.is_empty() {
            if self.eat("..") {
                return Err("recursive descent is not supported");
            } else if self.eat(".") {
                if self.eat("*") {
                    out.push(Step::All);
                } else if !self.rest.starts_with('[') && !self.rest.is_empty() {
                    out.push(self.field()?);
                }
            } else if self.eat("[") {
                out.push(self.bracket()?);
            } else if out.is_empty() {
                out.push(self.field()?);
            } else {
                return Err("unexpected character");
            }
        }
        Ok(out.into())
    }

    fn field(&mut self) -> Result<Step, &'static str> {
        let mut name = String::new();
        let mut chars = self.rest.char_indices();
        let mut end = self.rest.len();
        while let Some((i, c)) = chars.next() {
            match c {
                '\\' => match chars.next() {
                    Some((_, escaped)) => name.push(escaped),
                    None => return Err("unterminated escape"),
                },
                '.' | '[' => {
                    end = i;
                    break;
                }
                c if c.is_alphanumeric() || matches!(c, '_' | '-' | '/' | ':' | '@') => {
                    name.push(c)
                }
                _ => return Err("unexpected character in a field name"),
            }
        }
        self.rest = &self.rest[end..];
        if name.is_empty() {
            return Err("a field name is missing");
        }
        Ok(Step::Field(name.into()))
    }

    fn bracket(&mut self) -> Result<Step, &'static str> {
        if self.eat("?(") {
            return self.filter();
        }
        let step = if self.eat("*") {
            Step::All
        } else if self.rest.starts_with(['\'', '"']) {
            Step::Field(self.quoted()?.into())
        } else {
            let end = self.rest.find(']').ok_or("unterminated bracket")?;
            let number = self.rest[..end].trim();
            let step = Step::Index(number.parse().map_err(|_| "invalid array index")?);
            self.rest = &self.rest[end..];
            step
        };
        if self.eat("]") {
            Ok(step)
        } else {
            Err("unterminated bracket")
        }
    }

    fn quoted(&mut self) -> Result<String, &'static str> {
        let mut chars = self.rest.char_indices();
        let Some((_, quote)) = chars.next() else {
            return Err("a quote is missing");
        };
        let mut out = String::new();
        while let Some((i, c)) = chars.next() {
            match c {
                '\\' => out.extend(chars.next().map(|(_, c)| c)),
                c if c == quote => {
                    self.rest = &self.rest[i + c.len_utf8()..];
                    return Ok(out);
                }
                c => out.push(c),
            }
        }
        Err("unterminated quote")
    }

    fn filter(&mut self) -> Result<Step, &'static str> {
        self.rest = self.rest.trim_start();
        if !self.eat("@") {
            return Err("a filter starts with @");
        }
        let end = self
            .rest
            .find(['=', '!', '<', '>', ')', ' '])
            .ok_or("unterminated filter")?;
        let (path, rest) = self.rest.split_at(end);
        let path = JsonPath(Parser { rest: path }.steps()?);
        self.rest = rest.trim_start();
        const OPS: [(&str, Op); 6] = [
            ("==", Op::Eq),
            ("!=", Op::Ne),
            ("<=", Op::Le),
            (">=", Op::Ge),
            ("<", Op::Lt),
            (">", Op::Gt),
        ];
        let op = OPS
            .iter()
            .find(|(text, _)| self.eat(text))
            .map(|(_, op)| *op);
        let compare = match op {
            None => None,
            Some(op) => {
                self.rest = self.rest.trim_start();
                Some((op, self.literal()?))
            }
        };
        self.rest = self.rest.trim_start();
        if self.eat(")") && self.eat("]") {
            Ok(Step::Filter(Box::new(Filter { path, compare })))
        } else {
            Err("unterminated filter")
        }
    }

    fn literal(&mut self) -> Result<Value, &'static str> {
        if self.rest.starts_with(['\'', '"']) {
            return self.quoted().map(Value::String);
        }
        let end = self.rest.find(')').ok_or("unterminated filter")?;
        let text = self.rest[..end].trim();
        self.rest = &self.rest[end..];
        serde_json::from_str(text).map_err(|_| "invalid literal in a filter")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn finds_what_upstream_finds() {
        let v = json!({
            "spec": {"a.b": 1, "list": [{"n": "x", "v": 1}, {"n": "y", "v": 2}], "m": {"k": "z"}},
            "status": {"conditions": [{"type": "A", "status": "False"}, {"type": "Ready", "status": "True"}]},
        });
        for (path, want) in [
            (".spec.list[0].n", json!("x")),
            ("{.spec.list[-1].n}", json!("y")),
            ("$.spec.m.k", json!("z")),
            (".spec['a.b']", json!(1)),
            (".spec.a\\.b", json!(1)),
            (".spec.list[*].v", json!(1)),
            (".spec.m.*", json!("z")),
            (".spec.list[?(@.v>1)].n", json!("y")),
            (".spec.list[?(@.n != 'x')].n", json!("y")),
            (
                ".status.conditions[?(@.type==\"Ready\")].status",
                json!("True"),
            ),
            ("spec.m", json!({"k": "z"})),
        ] {
            let parsed = JsonPath::parse(path).expect(path);
            assert_eq!(parsed.first(&v), Some(&want), "{path}");
        }
        for path in [
            ".spec.none",
            ".spec.list[7]",
            ".spec.list[?(@.n==\"q\")].n",
            ".spec.m[0]",
        ] {
            assert_eq!(JsonPath::parse(path).expect(path).first(&v), None, "{path}");
        }
        for path in ["..a", ".a[", ".a[x]", ".a[?(b)]", ".a[?(@.b==)]", ".a!"] {
            assert!(JsonPath::parse(path).is_err(), "{path}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "[.\\[\\]?(@)='\"\\\\a*0-9 ]{0,20}") {
            if let Ok(path) = JsonPath::parse(&text) {
                let _ = path.first(&json!({"a": [{"a": 1}, "x"]}));
            }
        }
    }
}

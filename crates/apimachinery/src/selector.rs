//! Label and field selectors: text form, object form, matching.
//!
//! The text grammar, its leniencies and its complaints are those of
//! `k8s.io/apimachinery/pkg/labels` and `…/fields`.

use crate::names;
use crate::status::Status;
use serde_json::Value;
use std::fmt;

/// A parsed label selector; the empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// All must hold.
    pub requirements: Vec<Requirement>,
}

/// One requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// What must hold of its value.
    pub op: Op,
}

/// What a requirement asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The value is one of these.
    In(Vec<String>),
    /// The label is absent or its value none of these.
    NotIn(Vec<String>),
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
    /// The value is an integer above this (node affinity and `key>n`).
    Gt(i64),
    /// The value is an integer below this.
    Lt(i64),
}

impl Requirement {
    /// Whether a label's value (`None`: it is absent) satisfies it.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let integer = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.op {
            Op::In(vs) => value.is_some_and(|v| vs.iter().any(|x| x == v)),
            Op::NotIn(vs) => value.is_none_or(|v| vs.iter().all(|x| x != v)),
            Op::Exists => value.is_some(),
            Op::DoesNotExist => value.is_none(),
            Op::Gt(n) => integer().is_some_and(|v| v > *n),
            Op::Lt(n) => integer().is_some_and(|v| v < *n),
        }
    }
}

impl LabelSelector {
    /// Parses the query form: `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
    ///
    /// # Errors
    /// 400 as upstream words it: `unable to parse requirement: …`.
    pub fn parse(text: &str) -> Result<Self, Status> {
        Parser::new(text)
            .and_then(|mut p| p.selector())
            .map(|requirements| Self { requirements })
            .map_err(Status::bad_request)
    }

    /// From a `metav1.LabelSelector` object (`matchLabels`, `matchExpressions`).
    ///
    /// # Errors
    /// 400 for an unknown operator or missing values.
    pub fn from_object(selector: &Value) -> Result<Self, Status> {
        let mut requirements = Vec::new();
        if let Some(labels) = selector.get("matchLabels").and_then(Value::as_object) {
            for (k, v) in labels {
                requirements.push(Requirement {
                    key: k.clone(),
                    op: Op::In(vec![v.as_str().unwrap_or_default().to_owned()]),
                });
            }
        }
        let expressions = selector.get("matchExpressions").and_then(Value::as_array);
        for e in expressions.into_iter().flatten() {
            requirements.push(expression(e)?);
        }
        Ok(Self { requirements })
    }

    /// From a plain map of labels, as Services have it.
    pub fn from_map(labels: &Value) -> Self {
        let requirements = labels
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, v)| Requirement {
                key: k.clone(),
                op: Op::In(vec![v.as_str().unwrap_or_default().to_owned()]),
            })
            .collect();
        Self { requirements }
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether labels (looked up by key) satisfy it.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|r| r.matches(label(&r.key)))
    }

    /// Whether an object's `labels` map (or `null`) satisfies it.
    pub fn matches_value(&self, labels: &Value) -> bool {
        self.matches(|k| labels.get(k).and_then(Value::as_str))
    }
}

impl fmt::Display for LabelSelector {
    /// Writes the query form, as `kubectl` prints selectors.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            let k = &r.key;
            match &r.op {
                Op::In(v) if v.len() == 1 => write!(f, "{k}={}", v[0])?,
                Op::In(v) => write!(f, "{k} in ({})", v.join(","))?,
                Op::NotIn(v) if v.len() == 1 => write!(f, "{k}!={}", v[0])?,
                Op::NotIn(v) => write!(f, "{k} notin ({})", v.join(","))?,
                Op::Exists => f.write_str(k)?,
                Op::DoesNotExist => write!(f, "!{k}")?,
                Op::Gt(n) => write!(f, "{k}>{n}")?,
                Op::Lt(n) => write!(f, "{k}<{n}")?,
            }
        }
        Ok(())
    }
}

fn expression(e: &Value) -> Result<Requirement, Status> {
    let text = |name: &str| e.get(name).and_then(Value::as_str).unwrap_or_default();
    let values: Vec<String> = e
        .get("values")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|v| v.as_str().map(str::to_owned))
        .collect();
    let key = text("key").to_owned();
    names::qualified_name(&key).map_err(|m| {
        Status::bad_request(format!("key: Invalid value: {}: {m}", Value::from(&*key)))
    })?;
    let operator = text("operator");
    let op = match operator {
        "In" | "NotIn" if values.is_empty() => {
            return Err(Status::bad_request(
                "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty",
            ));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            return Err(Status::bad_request(format!(
                "values: Invalid value: {}: values set must be empty for exists and does not exist",
                Value::from(values)
            )));
        }
        "In" => Op::In(values),
        "NotIn" => Op::NotIn(values),
        "Exists" => Op::Exists,
        "DoesNotExist" => Op::DoesNotExist,
        "Gt" | "Lt" => {
            let n = match &values[..] {
                [one] => one.parse().ok(),
                _ => None,
            };
            match (operator, n) {
                ("Gt", Some(n)) => Op::Gt(n),
                (_, Some(n)) => Op::Lt(n),
                (_, None) => return Err(Status::bad_request(NOT_INTEGER)),
            }
        }
        other => {
            return Err(Status::bad_request(format!(
                "\"{other}\" is not a valid label selector operator"
            )));
        }
    };
    Ok(Requirement { key, op })
}

const NOT_INTEGER: &str =
    "values[0]: Invalid value: for 'Gt', 'Lt' operators, the value must be an integer";

/// A parsed field selector: `metadata.name=a,status.phase!=Running`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// (path, value, must be equal)
    pub requirements: Vec<(String, String, bool)>,
}

impl FieldSelector {
    /// Parses the query form (`=`, `==`, `!=`, `\,` escapes).
    ///
    /// # Errors
    /// 400 for malformed text.
    pub fn parse(text: &str) -> Result<Self, Status> {
        let mut requirements = Vec::new();
        for term in split_terms(text) {
            if term.is_empty() {
                continue;
            }
            let at = term
                .find(['=', '!'])
                .filter(|&i| term[i..].starts_with('=') || term[i..].starts_with("!="));
            let Some(at) = at else {
                return Err(Status::bad_request(format!(
                    "invalid selector: '{text}'; can't understand '{term}'"
                )));
            };
            let (path, rest) = term.split_at(at);
            let (equal, value) = if let Some(v) = rest.strip_prefix("!=") {
                (false, v)
            } else if let Some(v) = rest.strip_prefix("==") {
                (true, v)
            } else {
                (true, &rest[1..])
            };
            let value = unescape(value).map_err(Status::bad_request)?;
            requirements.push((path.to_owned(), value, equal));
        }
        Ok(Self { requirements })
    }

    /// Whether the fields (looked up by path; absent is the empty string) satisfy it.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> &'a str) -> bool {
        self.requirements
            .iter()
            .all(|(path, value, equal)| (field(path) == value) == *equal)
    }
}

/// Splits at commas that no backslash precedes.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn unescape(s: &str) -> Result<String, String> {
    let mut out = String::with_capacity(s.len());
    let mut chars = s.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(e @ ('\\' | ',' | '=')) => out.push(e),
                other => {
                    let tail: String = other.into_iter().collect();
                    return Err(format!(
                        "invalid field selector: invalid escape sequence: \\{tail}"
                    ));
                }
            },
            ',' | '=' => {
                return Err(format!(
                    "invalid field selector: unescaped character in value: {c}"
                ));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

/// Tokens of the label selector grammar, with their text.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Token {
    End,
    Identifier,
    In,
    NotIn,
    Open,
    Close,
    Comma,
    Not,
    Equals,
    DoubleEquals,
    NotEquals,
    Greater,
    Less,
}

struct Parser<'a> {
    tokens: Vec<(Token, &'a str)>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self, String> {
        let mut tokens = Vec::new();
        let special = |c: char| matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<');
        let space = |c: char| matches!(c, ' ' | '\t' | '\r' | '\n');
        let mut rest = text.trim_start_matches(space);
        while let Some(first) = rest.chars().next() {
            let (token, len) = if special(first) {
                match first {
                    '=' if rest.starts_with("==") => (Token::DoubleEquals, 2),
                    '!' if rest.starts_with("!=") => (Token::NotEquals, 2),
                    '=' => (Token::Equals, 1),
                    '!' => (Token::Not, 1),
                    '(' => (Token::Open, 1),
                    ')' => (Token::Close, 1),
                    ',' => (Token::Comma, 1),
                    '>' => (Token::Greater, 1),
                    _ => (Token::Less, 1),
                }
            } else {
                let len = rest.find(|c| special(c) || space(c)).unwrap_or(rest.len());
                let token = match &rest[..len] {
                    "in" => Token::In,
                    "notin" => Token::NotIn,
                    _ => Token::Identifier,
                };
                (token, len)
            };
            tokens.push((token, &rest[..len]));
            rest = rest[len..].trim_start_matches(space);
        }
        Ok(Self { tokens, at: 0 })
    }

    /// The next token where `in` and `notin` are words like others.
    fn peek(&self) -> (Token, &'a str) {
        match self.tokens.get(self.at) {
            None => (Token::End, ""),
            Some(&(Token::In | Token::NotIn, text)) => (Token::Identifier, text),
            Some(&t) => t,
        }
    }

    fn next(&mut self) -> (Token, &'a str) {
        let t = self.peek();
        self.at += 1;
        t
    }

    fn selector(&mut self) -> Result<Vec<Requirement>, String> {
        let mut out = Vec::new();
        loop {
            match self.peek() {
                (Token::Identifier | Token::Not, _) => {
                    let r = self
                        .requirement()
                        .map_err(|e| format!("unable to parse requirement: {e}"))?;
                    out.push(r);
                    match self.next() {
                        (Token::End, _) => return Ok(out),
                        (Token::Comma, _) => {
                            let (t, text) = self.peek();
                            if !matches!(t, Token::Identifier | Token::Not) {
                                return Err(format!(
                                    "found '{text}', expected: identifier after ','"
                                ));
                            }
                        }
                        (_, text) => {
                            return Err(format!(
                                "found '{text}', expected: ',' or 'end of string'"
                            ));
                        }
                    }
                }
                (Token::End, _) => return Ok(out),
                (_, text) => {
                    return Err(format!(
                        "found '{text}', expected: !, identifier, or 'end of string'"
                    ));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let (mut token, mut text) = self.next();
        let negated = token == Token::Not;
        if negated {
            (token, text) = self.next();
        }
        if token != Token::Identifier {
            return Err(format!("found '{text}', expected: identifier"));
        }
        names::qualified_name(text)
            .map_err(|m| format!("<nil>: Invalid value: {}: {m}", Value::from(text)))?;
        let key = text.to_owned();
        if negated {
            return Ok(Requirement {
                key,
                op: Op::DoesNotExist,
            });
        }
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Ok(Requirement {
                key,
                op: Op::Exists,
            });
        }
        let op = self.operation(&key)?;
        Ok(Requirement { key, op })
    }

    fn operation(&mut self, key: &str) -> Result<Op, String> {
        let (token, text) = self
            .tokens
            .get(self.at)
            .copied()
            .unwrap_or((Token::End, ""));
        self.at += 1;
        let checked = |values: Vec<String>| {
            for (i, v) in values.iter().enumerate() {
                names::label_value(v).map_err(|m| {
                    format!(
                        "values[{i}][{key}]: Invalid value: {}: {m}",
                        Value::from(&**v)
                    )
                })?;
            }
            Ok::<_, String>(values)
        };
        Ok(match token {
            Token::In | Token::NotIn => {
                let values = self.values()?;
                if values.is_empty() {
                    return Err("values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty".into());
                }
                let values = checked(values)?;
                if token == Token::In {
                    Op::In(values)
                } else {
                    Op::NotIn(values)
                }
            }
            Token::Equals | Token::DoubleEquals => Op::In(checked(vec![self.exact()?])?),
            Token::NotEquals => Op::NotIn(checked(vec![self.exact()?])?),
            Token::Greater | Token::Less => {
                let n = self.exact()?;
                let n = n.parse().map_err(|_| {
                    format!(
                        "values[0]: Invalid value: {}: for 'Gt', 'Lt' operators, the value must be an integer",
                        Value::from(n)
                    )
                })?;
                if token == Token::Greater {
                    Op::Gt(n)
                } else {
                    Op::Lt(n)
                }
            }
            _ => {
                return Err(format!(
                    "found '{text}', expected: in, notin, =, ==, !=, gt, lt"
                ));
            }
        })
    }

    fn exact(&mut self) -> Result<String, String> {
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.next() {
            (Token::Identifier, text) => Ok(text.to_owned()),
            (_, text) => Err(format!("found '{text}', expected: identifier")),
        }
    }

    /// The values in parentheses, sorted, each once; an empty place is the empty value.
    fn values(&mut self) -> Result<Vec<String>, String> {
        let (token, text) = self.next();
        if token != Token::Open {
            return Err(format!("found '{text}' expected: '('"));
        }
        let mut set = std::collections::BTreeSet::new();
        let mut expect_value = true;
        if self.peek().0 == Token::Close {
            self.at += 1;
            return Ok(Vec::new());
        }
        loop {
            match self.next() {
                (Token::Identifier, text) if expect_value => {
                    set.insert(text.to_owned());
                    expect_value = false;
                }
                (Token::Identifier, text) => {
                    return Err(format!("found '{text}', expected: ',' or ')'"));
                }
                (Token::Comma, _) => {
                    if expect_value {
                        set.insert(String::new());
                    }
                    expect_value = true;
                }
                (Token::Close, _) => {
                    if expect_value {
                        set.insert(String::new());
                    }
                    return Ok(set.into_iter().collect());
                }
                (_, text) => {
                    return Err(format!("found '{text}', expected: ',', ')' or identifier"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn shown(text: &str) -> String {
        match LabelSelector::parse(text) {
            Ok(s) => s.to_string(),
            Err(e) => format!("{} {}", e.code, e.message),
        }
    }

    #[test]
    fn parses_the_query_form() {
        for (text, want) in [
            ("", ""),
            ("a", "a"),
            ("!a", "!a"),
            ("! a", "!a"),
            ("a=b", "a=b"),
            ("a==b , c != d", "a=b,c!=d"),
            ("a=", "a="),
            ("a=,b", "a=,b"),
            ("a in (x,y, x)", "a in (x,y)"),
            ("a in (x)", "a=x"),
            ("a notin (,x)", "a notin (,x)"),
            ("in in (in,notin)", "in in (in,notin)"),
            ("example.com/a=b", "example.com/a=b"),
            ("a>1,b<2", "a>1,b<2"),
            ("a=b=c", "400 found '=', expected: ',' or 'end of string'"),
            ("a,", "400 found '', expected: identifier after ','"),
            (
                "=a",
                "400 found '=', expected: !, identifier, or 'end of string'",
            ),
            (
                "a in x",
                "400 unable to parse requirement: found 'x' expected: '('",
            ),
            (
                "a b",
                "400 unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
            ),
            (
                "a in ()",
                "400 unable to parse requirement: values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty",
            ),
            (
                "a>x",
                "400 unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ] {
            assert_eq!(shown(text), want, "{text}");
        }
        assert!(shown("a@=b").starts_with(
            "400 unable to parse requirement: <nil>: Invalid value: \"a@\": name part must consist of"
        ));
        assert!(shown("a=b@").starts_with(
            "400 unable to parse requirement: values[0][a]: Invalid value: \"b@\": a valid label must be"
        ));
    }

    #[test]
    fn matches_labels() {
        let labels = json!({"a": "1", "b": "x"});
        for (text, want) in [
            ("", true),
            ("a", true),
            ("!a", false),
            ("c!=1", true),
            ("a!=1", false),
            ("a in (1,2),b notin (y)", true),
            ("a>0", true),
            ("b>0", false),
            ("a<1", false),
        ] {
            let s = LabelSelector::parse(text).expect("parses");
            assert_eq!(s.matches_value(&labels), want, "{text}");
        }
    }

    #[test]
    fn reads_objects() {
        let s = LabelSelector::from_object(&json!({
            "matchLabels": {"a": "1"},
            "matchExpressions": [
                {"key": "b", "operator": "In", "values": ["x", "y"]},
                {"key": "c", "operator": "DoesNotExist"},
            ],
        }))
        .expect("is valid");
        assert_eq!(s.to_string(), "a=1,b in (x,y),!c");
        for (expression, want) in [
            (
                json!({"key": "a", "operator": "Is"}),
                "\"Is\" is not a valid label selector operator",
            ),
            (
                json!({"key": "a", "operator": "In"}),
                "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty",
            ),
        ] {
            let e = LabelSelector::from_object(&json!({"matchExpressions": [expression]}))
                .expect_err("is not valid");
            assert_eq!((e.code, &*e.message), (400, want));
        }
    }

    #[test]
    fn field_selectors() {
        let s =
            FieldSelector::parse(r"metadata.name=a\,b,status.phase!=Running,x==").expect("parses");
        assert_eq!(
            s.requirements,
            [
                ("metadata.name".into(), "a,b".into(), true),
                ("status.phase".into(), "Running".into(), false),
                ("x".into(), String::new(), true),
            ]
        );
        assert!(s.matches(|f| if f == "metadata.name" { "a,b" } else { "" }));
        assert!(!s.matches(|_| ""));
        for (text, want) in [
            ("a", "invalid selector: 'a'; can't understand 'a'"),
            (
                r"a=\x",
                r"invalid field selector: invalid escape sequence: \x",
            ),
            (
                "a=b=c",
                "invalid field selector: unescaped character in value: =",
            ),
        ] {
            let e = FieldSelector::parse(text).expect_err("is malformed");
            assert_eq!((e.code, &*e.message), (400, want));
        }
    }

    proptest! {
        #[test]
        fn display_parses_back(
            raw in prop::collection::vec(
                ("[a-z]([a-z./]{0,3}[a-z])?", 0..6u8, prop::collection::btree_set("[a-z0-9]{0,3}", 1..3), any::<i32>()),
                0..4,
            )
        ) {
            let requirements: Vec<_> = raw
                .into_iter()
                .filter(|(k, ..)| names::qualified_name(k).is_ok())
                .map(|(key, op, values, n)| Requirement {
                    key,
                    op: match op {
                        0 => Op::In(values.into_iter().collect()),
                        1 => Op::NotIn(values.into_iter().collect()),
                        2 => Op::Exists,
                        3 => Op::DoesNotExist,
                        4 => Op::Gt(n.into()),
                        _ => Op::Lt(n.into()),
                    },
                })
                .collect();
            let s = LabelSelector { requirements };
            prop_assert_eq!(LabelSelector::parse(&s.to_string()).expect("parses"), s);
        }

        #[test]
        fn parsing_never_panics(s in "[a-z=!(),<> é/@\\\\]{0,12}") {
            let _ = LabelSelector::parse(&s);
            let _ = FieldSelector::parse(&s);
        }
    }
}

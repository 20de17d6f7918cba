//! Functions of texts: strings, regular expressions, `format`, named formats, encodings.

use super::eval::EvalError;
use super::lists::ITEMS_MAX;
use super::standard::{display, double};
use super::value::{Value, base64_decode, base64_encode};
use crate::names;
use crate::schema::{Format, Pattern};
use regex::Regex;

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

/// Bytes of a text that a function makes; more is an error.
const TEXT_MAX: usize = 16 << 20;

pub(super) fn call<'a>(name: &'static str, args: &[Value<'a>]) -> Result<'a> {
    if let Some(kind) = name.strip_prefix("format.") {
        return named(kind, args);
    }
    match (name, args) {
        ("matches" | "find" | "findAll", [_, Value::String(p), ..]) => {
            let pattern = Pattern::new(p);
            match pattern.regex() {
                Some(regex) => by_pattern(name, regex, args),
                None => {
                    let e = Pattern::check(p).err().unwrap_or_default();
                    Err(EvalError::new(format!("error parsing regexp: {e}")))
                }
            }
        }
        ("contains", [Value::String(s), Value::String(p)]) => Ok(Value::Bool(s.contains(&**p))),
        ("startsWith", [Value::String(s), Value::String(p)]) => {
            Ok(Value::Bool(s.starts_with(&**p)))
        }
        ("endsWith", [Value::String(s), Value::String(p)]) => Ok(Value::Bool(s.ends_with(&**p))),
        ("lowerAscii", [Value::String(s)]) => Ok(s.to_ascii_lowercase().into()),
        ("upperAscii", [Value::String(s)]) => Ok(s.to_ascii_uppercase().into()),
        ("trim", [Value::String(s)]) => Ok(s.trim().to_owned().into()),
        ("reverse", [Value::String(s)]) => Ok(s.chars().rev().collect::<String>().into()),
        ("reverse", [Value::List(_)]) => super::lists::call(name, args),
        ("charAt" | "substring", [Value::String(s), rest @ ..]) => slice(name, s, rest),
        ("indexOf" | "lastIndexOf", [Value::String(s), Value::String(p), rest @ ..]) => {
            index(name, s, p, rest)
        }
        (
            "replace",
            [
                Value::String(s),
                Value::String(from),
                Value::String(to),
                rest @ ..,
            ],
        ) => {
            let count = match rest {
                [Value::Int(n)] if *n >= 0 => usize::try_from(*n).unwrap_or(usize::MAX),
                _ => usize::MAX,
            };
            let times = (s.len() + 1).min(count);
            if times.saturating_mul(to.len()).saturating_add(s.len()) > TEXT_MAX
                && s.matches(&**from)
                    .count()
                    .min(count)
                    .saturating_mul(to.len())
                    > TEXT_MAX
            {
                return Err(EvalError::new("string is too large"));
            }
            Ok(s.replacen(&**from, to, count).into())
        }
        ("split", [Value::String(s), Value::String(by), rest @ ..]) => split(s, by, rest),
        ("join", [Value::List(l), rest @ ..]) => {
            let separator = match rest {
                [Value::String(s)] => s.to_string(),
                _ => String::new(),
            };
            let mut out = String::new();
            for (i, v) in l.iter().enumerate() {
                let Value::String(s) = v else {
                    return Err(EvalError::overload());
                };
                if i > 0 {
                    out.push_str(&separator);
                }
                out.push_str(&s);
                if out.len() > TEXT_MAX {
                    return Err(EvalError::new("string is too large"));
                }
            }
            Ok(out.into())
        }
        ("format", [Value::String(s), Value::List(l)]) => {
            let args: Vec<Value<'a>> = l.iter().collect();
            formatted(s, &args).map(Into::into)
        }
        ("strings.quote", [Value::String(s)]) => Ok(quote(s).into()),
        ("jsonpatch.escapeKey", [Value::String(s)]) => {
            Ok(s.replace('~', "~0").replace('/', "~1").into())
        }
        ("base64.encode", [Value::Bytes(b)]) => Ok(base64_encode(b).into()),
        ("base64.decode", [Value::String(s)]) => base64_decode(s)
            .map(|b| Value::Bytes(b.into()))
            .ok_or_else(|| EvalError::new("illegal base64 data")),
        ("validate", [Value::Format(f), Value::String(s)]) => {
            let errors: Vec<Value<'a>> = format_errors(f, s).into_iter().map(Into::into).collect();
            Ok(Value::Optional(
                (!errors.is_empty()).then(|| std::sync::Arc::new(errors.into())),
            ))
        }
        _ => Err(EvalError::overload()),
    }
}

/// What a compiled regular expression finds in a text.
pub(super) fn by_pattern<'a>(name: &str, regex: &Regex, args: &[Value<'a>]) -> Result<'a> {
    let Some(Value::String(s)) = args.first() else {
        return Err(EvalError::overload());
    };
    Ok(match name {
        "matches" => Value::Bool(regex.is_match(s)),
        "find" => regex.find(s).map_or("", |m| m.as_str()).to_owned().into(),
        _ => {
            let most = match args.get(2) {
                Some(Value::Int(n)) if *n >= 0 => usize::try_from(*n).unwrap_or(ITEMS_MAX),
                _ => ITEMS_MAX,
            };
            let found = regex.find_iter(s).take(most.min(ITEMS_MAX));
            found
                .map(|m| m.as_str().to_owned().into())
                .collect::<Vec<Value<'a>>>()
                .into()
        }
    })
}

fn slice<'a>(name: &str, s: &str, rest: &[Value<'a>]) -> Result<'a> {
    let length = s.chars().count();
    let bad = |n: i64| EvalError::new(format!("index out of range: {n}"));
    let at = |v: Option<&Value<'a>>| match v {
        Some(Value::Int(n)) => usize::try_from(*n)
            .ok()
            .filter(|i| *i <= length)
            .ok_or_else(|| bad(*n)),
        _ => Err(EvalError::overload()),
    };
    let from = at(rest.first())?;
    let to = match (name, rest.len()) {
        ("charAt", _) => (from + 1).min(length),
        (_, 1) => length,
        _ => at(rest.get(1))?,
    };
    if from > to {
        let text = format!("invalid substring range. start: {from}, end: {to}");
        return Err(EvalError::new(text));
    }
    Ok(s.chars()
        .skip(from)
        .take(to - from)
        .collect::<String>()
        .into())
}

fn index<'a>(name: &str, s: &str, p: &str, rest: &[Value<'a>]) -> Result<'a> {
    let byte = |i: usize| s.char_indices().nth(i).map_or(s.len(), |(b, _)| b);
    let length = || s.chars().count() as i64;
    let offset = match rest {
        [] => None,
        [Value::Int(n)] if *n >= 0 && *n <= length() => Some(byte(*n as usize)),
        [Value::Int(n)] => return Err(EvalError::new(format!("index out of range: {n}"))),
        _ => return Err(EvalError::overload()),
    };
    let found = match (name, offset) {
        ("indexOf", None) => s.find(p),
        ("indexOf", Some(b)) => s[b..].find(p).map(|i| i + b),
        (_, None) => s.rfind(p),
        (_, Some(b)) => {
            let end = (b + p.len()).min(s.len());
            let end = (end..=s.len())
                .find(|e| s.is_char_boundary(*e))
                .unwrap_or(s.len());
            s[..end].rfind(p)
        }
    };
    Ok(Value::Int(
        found.map_or(-1, |b| s[..b].chars().count() as i64),
    ))
}

fn split<'a>(s: &str, by: &str, rest: &[Value<'a>]) -> Result<'a> {
    let limit = match rest {
        [] => None,
        [Value::Int(n)] if *n < 0 => None,
        [Value::Int(n)] => Some(usize::try_from(*n).unwrap_or(usize::MAX)),
        _ => return Err(EvalError::overload()),
    };
    if limit == Some(0) {
        return Ok(Vec::new().into());
    }
    let most = limit.unwrap_or(usize::MAX);
    let mut out: Vec<Value<'a>> = Vec::new();
    if by.is_empty() {
        let mut rest = s;
        while let Some(c) = rest.chars().next() {
            if out.len() + 1 >= most || out.len() >= ITEMS_MAX {
                out.push(rest.to_owned().into());
                return Ok(out.into());
            }
            out.push(c.to_string().into());
            rest = &rest[c.len_utf8()..];
        }
        return Ok(out.into());
    }
    for part in s.splitn(most.min(ITEMS_MAX), by) {
        out.push(part.to_owned().into());
    }
    Ok(out.into())
}

/// `%s`, `%d`, `%f`, `%e`, `%b`, `%o`, `%x`, `%X`.
fn formatted(template: &str, args: &[Value<'_>]) -> std::result::Result<String, EvalError> {
    let mut out = String::new();
    let (mut chars, mut args, mut i) = (template.chars().peekable(), args.iter(), 0);
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut precision = None;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut n = 0usize;
            while let Some(d) = chars.peek().and_then(|c| c.to_digit(10)) {
                n = n.saturating_mul(10).saturating_add(d as usize);
                chars.next();
            }
            /// Digits after the point.
            const PRECISION_MAX: usize = 300;
            precision = Some(n.min(PRECISION_MAX));
        }
        let Some(verb) = chars.next() else {
            return Err(EvalError::new("unexpected end of string"));
        };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let v = args
            .next()
            .ok_or_else(|| EvalError::new(format!("index {i} out of range")))?;
        i += 1;
        out.push_str(&verb_of(verb, precision, v)?);
        if out.len() > TEXT_MAX {
            return Err(EvalError::new("string is too large"));
        }
    }
    Ok(out)
}

fn verb_of(
    verb: char,
    precision: Option<usize>,
    v: &Value<'_>,
) -> std::result::Result<String, EvalError> {
    let bad = || {
        EvalError::new(format!(
            "error during formatting: %{verb} does not support {}",
            v.type_name()
        ))
    };
    Ok(match (verb, v) {
        ('s', v) => shown(v),
        ('d', Value::Int(_) | Value::Uint(_)) => display(v),
        ('f', Value::Double(n)) => format!("{n:.*}", precision.unwrap_or(6)),
        ('f', Value::Int(n)) => format!("{:.*}", precision.unwrap_or(6), *n as f64),
        ('e', Value::Double(n)) => {
            let text = format!("{n:.*e}", precision.unwrap_or(6));
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            match exponent.strip_prefix('-') {
                Some(e) => format!("{digits}e-{e:0>2}"),
                None => format!("{digits}e+{exponent:0>2}"),
            }
        }
        ('b', Value::Bool(b)) => u8::from(*b).to_string(),
        ('b' | 'o' | 'x' | 'X', Value::Int(n)) => {
            let sign = if *n < 0 { "-" } else { "" };
            format!("{sign}{}", radix(verb, n.unsigned_abs()))
        }
        ('b' | 'o' | 'x' | 'X', Value::Uint(n)) => radix(verb, *n),
        ('x' | 'X', Value::String(_) | Value::Bytes(_)) => {
            let bytes = match v {
                Value::String(s) => s.as_bytes(),
                Value::Bytes(b) => b,
                _ => return Err(bad()),
            };
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            if verb == 'X' { hex.to_uppercase() } else { hex }
        }
        _ => return Err(bad()),
    })
}

fn radix(verb: char, n: u64) -> String {
    match verb {
        'b' => format!("{n:b}"),
        'o' => format!("{n:o}"),
        'x' => format!("{n:x}"),
        _ => format!("{n:X}"),
    }
}

/// As `%s` shows a value.
fn shown(v: &Value<'_>) -> String {
    match v {
        Value::Double(n) => double(*n),
        Value::List(l) => {
            let all: Vec<String> = l.iter().map(|v| shown(&v)).collect();
            format!("[{}]", all.join(", "))
        }
        Value::Map(m) => {
            let all = m
                .entries()
                .into_iter()
                .map(|(k, v)| format!("{}: {}", shown(&k.value()), shown(&v)));
            format!("{{{}}}", all.collect::<Vec<_>>().join(", "))
        }
        other => display(other),
    }
}

fn quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

const FORMATS: [&str; 13] = [
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
];

fn named<'a>(kind: &str, args: &[Value<'a>]) -> Result<'a> {
    let find = |name: &str| FORMATS.into_iter().find(|f| *f == name).map(Value::Format);
    match (kind, args) {
        ("named", [Value::String(s)]) => Ok(Value::Optional(find(s).map(std::sync::Arc::new))),
        (name, []) => find(name).ok_or_else(EvalError::overload),
        _ => Err(EvalError::overload()),
    }
}

fn format_errors(format: &str, s: &str) -> Vec<String> {
    // A prefix may end with a dash: something is added to it.
    let masked = match s.strip_suffix('-') {
        Some(head) => format!("{head}a"),
        None => s.to_owned(),
    };
    let checked = match format {
        "dns1123Label" => names::dns1123_label(s),
        "dns1123Subdomain" => names::dns1123_subdomain(s),
        "dns1035Label" => names::dns1035_label(s),
        "dns1123LabelPrefix" => names::dns1123_label(&masked),
        "dns1123SubdomainPrefix" => names::dns1123_subdomain(&masked),
        "dns1035LabelPrefix" => names::dns1035_label(&masked),
        "qualifiedName" => names::qualified_name(s),
        "labelValue" => names::label_value(s),
        "uri" if super::net::Url::parse(s).is_none() => {
            Err(format!("parse {s:?}: invalid URI for request"))
        }
        "uuid" if !crate::structural::has_format(Format::Uuid, s) => {
            Err("does not match the UUID format".to_owned())
        }
        "byte" if !crate::structural::has_format(Format::Byte, s) => {
            Err("invalid base64".to_owned())
        }
        "date" if !crate::structural::has_format(Format::Date, s) => Err("invalid date".to_owned()),
        "datetime" if !crate::structural::has_format(Format::DateTime, s) => {
            Err("invalid datetime".to_owned())
        }
        _ => Ok(()),
    };
    checked.err().into_iter().collect()
}

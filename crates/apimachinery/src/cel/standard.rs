//! The standard functions, optionals, quantities, versions and mathematics.

use super::ast::Binary;
use super::eval::EvalError;
use super::time;
use super::value::{List, Value};
use crate::quantity::Quantity;
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

pub(super) fn overflow() -> EvalError {
    EvalError::new("integer overflow")
}

fn unsigned_overflow() -> EvalError {
    EvalError::new("unsigned integer overflow")
}

/// Types by the names that expressions know.
pub(super) fn type_named(name: &str) -> Option<&'static str> {
    [
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
    ]
    .into_iter()
    .find(|n| *n == name)
}

pub(super) fn call<'a>(name: &'static str, args: &[Value<'a>]) -> Result<'a> {
    if let Some(rest) = name.strip_prefix("math.") {
        return math(rest, args);
    }
    match (name, args) {
        ("size", [v]) => size(v),
        ("type", [v]) => Ok(Value::Type(v.type_name())),
        ("dyn", [v]) => Ok(v.clone()),
        (
            "bool" | "bytes" | "double" | "uint" | "int" | "string" | "timestamp" | "duration",
            [v],
        ) => convert(name, v),
        ("optional.of", [v]) => Ok(Value::some(v.clone())),
        ("optional.ofNonZeroValue", [v]) if v.is_zero() => Ok(Value::Optional(None)),
        ("optional.ofNonZeroValue", [v]) => Ok(Value::some(v.clone())),
        ("optional.none", []) => Ok(Value::Optional(None)),
        ("hasValue", [Value::Optional(o)]) => Ok(Value::Bool(o.is_some())),
        ("value", [Value::Optional(Some(v))]) => Ok((**v).clone()),
        ("value", [Value::Optional(None)]) => Err(EvalError::new("optional.none() dereference")),
        ("or" | "orValue", [Value::Optional(Some(v)), _]) => Ok(match name {
            "or" => args[0].clone(),
            _ => (**v).clone(),
        }),
        ("or" | "orValue", [Value::Optional(None), v]) => Ok(v.clone()),
        ("optional.unwrap" | "unwrapOpt", [Value::List(l)]) => {
            let there = l.iter().filter_map(|v| match v {
                Value::Optional(Some(v)) => Some((*v).clone()),
                _ => None,
            });
            Ok(there.collect::<Vec<_>>().into())
        }
        ("quantity", [Value::String(s)]) => s
            .parse()
            .map(Value::Quantity)
            .map_err(|e: crate::quantity::ParseQuantityError| EvalError::new(e.to_string())),
        ("isQuantity", [Value::String(s)]) => Ok(Value::Bool(s.parse::<Quantity>().is_ok())),
        (_, [Value::Quantity(q), rest @ ..]) => quantity(name, *q, rest),
        ("semver" | "isSemver", [Value::String(s), rest @ ..]) => {
            let normalize = matches!(rest, [Value::Bool(true)]);
            let parsed = version(s, normalize);
            if name == "isSemver" {
                return Ok(Value::Bool(parsed.is_ok()));
            }
            parsed
                .map(|v| Value::Semver(Arc::new(v)))
                .map_err(EvalError::new)
        }
        (_, [Value::Semver(v), rest @ ..]) => semver(name, v, rest),
        (_, [Value::Timestamp(t)]) => part(name, *t, None),
        (_, [Value::Timestamp(t), Value::String(zone)]) => part(name, *t, Some(zone)),
        ("getHours", [Value::Duration(n)]) => Ok(Value::Int(n / 3_600_000_000_000)),
        ("getMinutes", [Value::Duration(n)]) => Ok(Value::Int(n / 60_000_000_000)),
        ("getSeconds", [Value::Duration(n)]) => Ok(Value::Int(n / 1_000_000_000)),
        ("getMilliseconds", [Value::Duration(n)]) => Ok(Value::Int(n / 1_000_000)),
        _ => Err(EvalError::overload()),
    }
}

fn size<'a>(v: &Value<'a>) -> Result<'a> {
    let n = match v {
        Value::String(s) => s.chars().count(),
        Value::Bytes(b) => b.len(),
        Value::List(l) => l.len(),
        Value::Map(m) => m.len(),
        _ => return Err(EvalError::overload()),
    };
    Ok(Value::Int(n as i64))
}

fn convert<'a>(to: &'static str, v: &Value<'a>) -> Result<'a> {
    let bad = || {
        EvalError::new(format!(
            "type conversion error from '{}' to '{to}'",
            v.type_name()
        ))
    };
    Ok(match (to, v) {
        ("bool", Value::Bool(_))
        | ("bytes", Value::Bytes(_))
        | ("double", Value::Double(_))
        | ("uint", Value::Uint(_))
        | ("int", Value::Int(_))
        | ("string", Value::String(_))
        | ("timestamp", Value::Timestamp(_))
        | ("duration", Value::Duration(_)) => v.clone(),
        ("bool", Value::String(s)) => Value::Bool(match &**s {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => true,
            "0" | "f" | "F" | "FALSE" | "false" | "False" => false,
            _ => return Err(bad()),
        }),
        ("bytes", Value::String(s)) => Value::Bytes(s.as_bytes().into()),
        ("double", Value::Int(n)) => Value::Double(*n as f64),
        ("double", Value::Uint(n)) => Value::Double(*n as f64),
        ("double", Value::String(s)) => Value::Double(s.trim().parse().map_err(|_| bad())?),
        ("uint", Value::Int(n)) => Value::Uint(u64::try_from(*n).map_err(|_| unsigned_overflow())?),
        ("uint", Value::Double(f)) if *f >= 0.0 && *f < 1.8e19 => Value::Uint(*f as u64),
        ("uint", Value::Double(_)) => return Err(unsigned_overflow()),
        ("uint", Value::String(s)) => Value::Uint(s.parse().map_err(|_| bad())?),
        ("int", Value::Uint(n)) => Value::Int(i64::try_from(*n).map_err(|_| overflow())?),
        ("int", Value::Double(f)) if f.abs() < 9.2e18 => Value::Int(*f as i64),
        ("int", Value::Double(_)) => return Err(overflow()),
        ("int", Value::String(s)) => Value::Int(s.parse().map_err(|_| bad())?),
        ("int", Value::Timestamp(t)) => Value::Int(t.as_second()),
        ("int", Value::Duration(n)) => Value::Int(*n),
        ("string", Value::Bytes(b)) => {
            let text = std::str::from_utf8(b);
            text.map_err(|_| EvalError::new("invalid UTF-8 in bytes, cannot convert to string"))?
                .to_owned()
                .into()
        }
        (
            "string",
            Value::List(_) | Value::Map(_) | Value::Null | Value::Type(_) | Value::Optional(_),
        ) => {
            return Err(bad());
        }
        ("string", v) => display(v).into(),
        ("timestamp", Value::String(s)) => Value::Timestamp(time::parse_time(s).ok_or_else(bad)?),
        ("timestamp", Value::Int(n)) => {
            let t = Timestamp::from_second(*n)
                .ok()
                .filter(|t| time::in_range(*t));
            Value::Timestamp(t.ok_or_else(|| EvalError::new("timestamp overflow"))?)
        }
        ("duration", Value::String(s)) => Value::Duration(time::parse_duration(s).ok_or_else(bad)?),
        ("duration", Value::Int(n)) => Value::Duration(*n),
        _ => return Err(bad()),
    })
}

/// As `string()` and error messages have it.
pub(super) fn display(v: &Value<'_>) -> String {
    match v {
        Value::Null => "null".to_owned(),
        Value::Bool(b) => b.to_string(),
        Value::Int(n) => n.to_string(),
        Value::Uint(n) => n.to_string(),
        Value::Double(n) => double(*n),
        Value::String(s) => s.to_string(),
        Value::Bytes(b) => String::from_utf8_lossy(b).into_owned(),
        Value::Timestamp(t) => time::format_time(*t),
        Value::Duration(n) => time::format_duration(*n),
        Value::Type(t) => (*t).to_owned(),
        Value::Ip(a) => a.to_string(),
        Value::Cidr(c) => c.to_string(),
        Value::Semver(v) => v.to_string(),
        Value::Quantity(q) => q.text(crate::quantity::Format::DecimalSi),
        other => other.to_json().unwrap_or_default().to_string(),
    }
}

/// As Go writes a float that needs no more digits.
pub(super) fn double(n: f64) -> String {
    if n.is_nan() {
        return "NaN".to_owned();
    }
    if n.is_infinite() {
        return if n > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    if n != 0.0 && (n.abs() < 1e-4 || n.abs() >= 1e21) {
        let text = format!("{n:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(e) => ('-', e),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    n.to_string()
}

pub(super) fn add<'a>(a: &Value<'a>, b: &Value<'a>) -> Result<'a> {
    Ok(match (a, b) {
        (Value::String(a), Value::String(b)) => {
            let mut out = String::with_capacity(a.len() + b.len());
            out.push_str(a);
            out.push_str(b);
            out.into()
        }
        (Value::Bytes(a), Value::Bytes(b)) => Value::Bytes([&**a, &**b].concat().into()),
        (Value::List(a), Value::List(b)) => Value::List(List::Own(Arc::new(a.joined(b)))),
        (Value::Timestamp(t), Value::Duration(d)) | (Value::Duration(d), Value::Timestamp(t)) => {
            shifted(*t, *d)?
        }
        _ => return arithmetic(Binary::Add, a, b),
    })
}

fn shifted<'a>(t: Timestamp, nanos: i64) -> Result<'a> {
    t.checked_add(SignedDuration::from_nanos(nanos))
        .ok()
        .filter(|t| time::in_range(*t))
        .map(Value::Timestamp)
        .ok_or_else(|| EvalError::new("timestamp overflow"))
}

pub(super) fn arithmetic<'a>(op: Binary, a: &Value<'a>, b: &Value<'a>) -> Result<'a> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => {
            let done = match op {
                Binary::Add => a.checked_add(*b),
                Binary::Subtract => a.checked_sub(*b),
                Binary::Multiply => a.checked_mul(*b),
                Binary::Divide if *b == 0 => return Err(EvalError::new("division by zero")),
                Binary::Divide => a.checked_div(*b),
                _ if *b == 0 => return Err(EvalError::new("modulus by zero")),
                _ => a.checked_rem(*b),
            };
            done.map(Value::Int).ok_or_else(overflow)
        }
        (Value::Uint(a), Value::Uint(b)) => {
            let done = match op {
                Binary::Add => a.checked_add(*b),
                Binary::Subtract => a.checked_sub(*b),
                Binary::Multiply => a.checked_mul(*b),
                Binary::Divide if *b == 0 => return Err(EvalError::new("division by zero")),
                Binary::Divide => a.checked_div(*b),
                _ if *b == 0 => return Err(EvalError::new("modulus by zero")),
                _ => a.checked_rem(*b),
            };
            done.map(Value::Uint).ok_or_else(unsigned_overflow)
        }
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(match op {
            Binary::Add => a + b,
            Binary::Subtract => a - b,
            Binary::Multiply => a * b,
            Binary::Divide => a / b,
            _ => return Err(EvalError::overload()),
        })),
        (Value::Duration(a), Value::Duration(b)) => {
            let done = match op {
                Binary::Add => a.checked_add(*b),
                Binary::Subtract => a.checked_sub(*b),
                _ => return Err(EvalError::overload()),
            };
            done.map(Value::Duration)
                .ok_or_else(|| EvalError::new("duration overflow"))
        }
        (Value::Timestamp(a), Value::Timestamp(b)) if op == Binary::Subtract => {
            let nanos = a.duration_since(*b).as_nanos();
            i64::try_from(nanos)
                .map(Value::Duration)
                .map_err(|_| EvalError::new("duration overflow"))
        }
        (Value::Timestamp(t), Value::Duration(d)) if op == Binary::Subtract => shifted(
            *t,
            d.checked_neg()
                .ok_or_else(|| EvalError::new("duration overflow"))?,
        ),
        _ => Err(EvalError::overload()),
    }
}

fn part<'a>(name: &str, t: Timestamp, zone: Option<&str>) -> Result<'a> {
    let at = time::civil(t, zone).map_err(EvalError::new)?;
    Ok(Value::Int(i64::from(match name {
        "getFullYear" => i32::from(at.year()),
        "getMonth" => i32::from(at.month()) - 1,
        "getDayOfYear" => i32::from(at.day_of_year()) - 1,
        "getDayOfMonth" => i32::from(at.day()) - 1,
        "getDate" => i32::from(at.day()),
        "getDayOfWeek" => i32::from(at.weekday().to_sunday_zero_offset()),
        "getHours" => i32::from(at.hour()),
        "getMinutes" => i32::from(at.minute()),
        "getSeconds" => i32::from(at.second()),
        "getMilliseconds" => i32::from(at.millisecond()),
        _ => return Err(EvalError::overload()),
    })))
}

fn quantity<'a>(name: &str, q: Quantity, rest: &[Value<'a>]) -> Result<'a> {
    const NANO: i128 = 1_000_000_000;
    let whole = q.nano % NANO == 0;
    let int = || i64::try_from(q.nano / NANO).ok().filter(|_| whole);
    let other = match rest {
        [Value::Quantity(o)] => Some(*o),
        [Value::Int(n)] => Some(Quantity::from_value(*n)),
        _ => None,
    };
    let order = || other.map(|o| q.cmp(&o)).ok_or_else(EvalError::overload);
    Ok(match name {
        "sign" => Value::Int(q.nano.signum() as i64),
        "isInteger" => Value::Bool(int().is_some()),
        "asInteger" => {
            let message = "cannot convert value to integer";
            Value::Int(int().ok_or_else(|| EvalError::new(message))?)
        }
        "asApproximateFloat" => Value::Double(q.nano as f64 / NANO as f64),
        "add" | "sub" => {
            let o = other.ok_or_else(EvalError::overload)?.nano;
            let o = if name == "add" { o } else { -o };
            Value::Quantity(Quantity {
                nano: q.nano.saturating_add(o),
            })
        }
        "isGreaterThan" => Value::Bool(order()?.is_gt()),
        "isLessThan" => Value::Bool(order()?.is_lt()),
        "compareTo" => Value::Int(order()? as i64),
        _ => return Err(EvalError::overload()),
    })
}

/// A version; normalized, what is missing is zero and a leading `v` is dropped.
fn version(s: &str, normalize: bool) -> std::result::Result<semver::Version, String> {
    let mut text = s.to_owned();
    if normalize {
        let bare = s.trim_start_matches('v');
        let (core, tail) = bare.split_at(bare.find(['-', '+']).unwrap_or(bare.len()));
        let mut parts: Vec<String> = core
            .split('.')
            .map(|p| {
                let short = p.trim_start_matches('0');
                if short.is_empty() && !p.is_empty() {
                    "0".to_owned()
                } else {
                    short.to_owned()
                }
            })
            .collect();
        while parts.len() < 3 {
            parts.push("0".to_owned());
        }
        text = format!("{}{tail}", parts.join("."));
    }
    semver::Version::parse(&text).map_err(|e| e.to_string())
}

fn semver<'a>(name: &str, v: &semver::Version, rest: &[Value<'a>]) -> Result<'a> {
    let order = || match rest {
        // What is built differs in nothing that orders.
        [Value::Semver(o)] => Ok(v.cmp_precedence(o)),
        _ => Err(EvalError::overload()),
    };
    Ok(match name {
        "major" => Value::Int(v.major as i64),
        "minor" => Value::Int(v.minor as i64),
        "patch" => Value::Int(v.patch as i64),
        "isGreaterThan" => Value::Bool(order()?.is_gt()),
        "isLessThan" => Value::Bool(order()?.is_lt()),
        "compareTo" => Value::Int(order()? as i64),
        _ => return Err(EvalError::overload()),
    })
}

fn math<'a>(name: &str, args: &[Value<'a>]) -> Result<'a> {
    Ok(match (name, args) {
        ("greatest" | "least", [Value::List(l)]) => {
            let all: Vec<Value<'a>> = l.iter().collect();
            return extreme(name, &all);
        }
        ("greatest" | "least", all) => return extreme(name, all),
        ("ceil", [Value::Double(n)]) => Value::Double(n.ceil()),
        ("floor", [Value::Double(n)]) => Value::Double(n.floor()),
        ("round", [Value::Double(n)]) => Value::Double(n.round()),
        ("trunc", [Value::Double(n)]) => Value::Double(n.trunc()),
        ("abs", [Value::Double(n)]) => Value::Double(n.abs()),
        ("abs", [Value::Int(n)]) => Value::Int(n.checked_abs().ok_or_else(overflow)?),
        ("sign", [Value::Double(n)]) if *n == 0.0 => Value::Double(0.0),
        ("sign", [Value::Double(n)]) => Value::Double(n.signum()),
        ("sign", [Value::Int(n)]) => Value::Int(n.signum()),
        ("sign", [Value::Uint(n)]) => Value::Uint(u64::from(*n > 0)),
        ("abs", [v @ Value::Uint(_)]) => v.clone(),
        ("isInf", [Value::Double(n)]) => Value::Bool(n.is_infinite()),
        ("isNaN", [Value::Double(n)]) => Value::Bool(n.is_nan()),
        ("isFinite", [Value::Double(n)]) => Value::Bool(n.is_finite()),
        ("sqrt", [Value::Double(n)]) => Value::Double(n.sqrt()),
        ("sqrt", [Value::Int(n)]) => Value::Double((*n as f64).sqrt()),
        ("sqrt", [Value::Uint(n)]) => Value::Double((*n as f64).sqrt()),
        ("bitAnd", [Value::Int(a), Value::Int(b)]) => Value::Int(a & b),
        ("bitOr", [Value::Int(a), Value::Int(b)]) => Value::Int(a | b),
        ("bitXor", [Value::Int(a), Value::Int(b)]) => Value::Int(a ^ b),
        ("bitAnd", [Value::Uint(a), Value::Uint(b)]) => Value::Uint(a & b),
        ("bitOr", [Value::Uint(a), Value::Uint(b)]) => Value::Uint(a | b),
        ("bitXor", [Value::Uint(a), Value::Uint(b)]) => Value::Uint(a ^ b),
        ("bitNot", [Value::Int(a)]) => Value::Int(!a),
        ("bitNot", [Value::Uint(a)]) => Value::Uint(!a),
        (_, [_, Value::Int(by)]) if *by < 0 => {
            return Err(EvalError::new(format!(
                "math.{name}() negative offset: {by}"
            )));
        }
        ("bitShiftLeft", [Value::Int(a), Value::Int(by)]) => {
            Value::Int(shift(*by).map_or(0, |n| a << n))
        }
        ("bitShiftLeft", [Value::Uint(a), Value::Int(by)]) => {
            Value::Uint(shift(*by).map_or(0, |n| a << n))
        }
        ("bitShiftRight", [Value::Int(a), Value::Int(by)]) => {
            Value::Int(shift(*by).map_or(0, |n| ((*a as u64) >> n) as i64))
        }
        ("bitShiftRight", [Value::Uint(a), Value::Int(by)]) => {
            Value::Uint(shift(*by).map_or(0, |n| a >> n))
        }
        _ => return Err(EvalError::overload()),
    })
}

fn shift(by: i64) -> Option<u32> {
    u32::try_from(by).ok().filter(|n| *n < 64)
}

fn extreme<'a>(name: &str, all: &[Value<'a>]) -> Result<'a> {
    let mut best: Option<&Value<'a>> = None;
    for v in all {
        let better = match best {
            None => true,
            Some(b) => {
                let order = v.compare(b).ok_or_else(EvalError::overload)?;
                if name == "greatest" {
                    order.is_gt()
                } else {
                    order.is_lt()
                }
            }
        };
        if better {
            best = Some(v);
        }
    }
    best.cloned().ok_or_else(EvalError::overload)
}

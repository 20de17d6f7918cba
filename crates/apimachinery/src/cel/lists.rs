//! Functions of lists and sets.

use super::eval::EvalError;
use super::value::{List, Value};
use std::cmp::Ordering;

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

/// Items of a list that a function makes; more is an error.
pub(super) const ITEMS_MAX: usize = 1_000_000;

pub(super) fn call<'a>(name: &'static str, args: &[Value<'a>]) -> Result<'a> {
    match (name, args) {
        ("indexOf" | "lastIndexOf" | "reverse", [Value::String(_), ..]) => {
            super::texts::call(name, args)
        }
        ("isSorted", [Value::List(l)]) => {
            let all: Vec<Value<'a>> = l.iter().collect();
            for pair in all.windows(2) {
                if order(&pair[0], &pair[1])?.is_gt() {
                    return Ok(Value::Bool(false));
                }
            }
            Ok(Value::Bool(true))
        }
        ("sum", [Value::List(l)]) => {
            let mut sum: Option<Value<'a>> = None;
            for v in l.iter() {
                sum = Some(match sum {
                    None => v,
                    Some(s) => super::standard::add(&s, &v)?,
                });
            }
            Ok(sum.unwrap_or(Value::Int(0)))
        }
        ("min" | "max", [Value::List(l)]) => {
            let mut best: Option<Value<'a>> = None;
            for v in l.iter() {
                let better = match &best {
                    None => true,
                    Some(b) if name == "min" => order(&v, b)?.is_lt(),
                    Some(b) => order(&v, b)?.is_gt(),
                };
                if better {
                    best = Some(v);
                }
            }
            best.ok_or_else(|| EvalError::new(format!("{name} called on empty list")))
        }
        ("indexOf", [Value::List(l), v]) => Ok(at(l.iter().position(|i| i.equals(v)))),
        ("lastIndexOf", [Value::List(l), v]) => {
            let found = l.iter().enumerate().filter(|(_, i)| i.equals(v)).last();
            Ok(at(found.map(|(i, _)| i)))
        }
        ("sets.contains", [Value::List(a), Value::List(b)]) => Ok(Value::Bool(covers(a, b))),
        ("sets.equivalent", [Value::List(a), Value::List(b)]) => {
            Ok(Value::Bool(covers(a, b) && covers(b, a)))
        }
        ("sets.intersects", [Value::List(a), Value::List(b)]) => {
            Ok(Value::Bool(b.iter().any(|v| a.has(&v))))
        }
        ("slice", [Value::List(l), Value::Int(from), Value::Int(to)]) => {
            let fits = *from >= 0 && from <= to && *to <= l.len() as i64;
            if !fits {
                let text = format!("cannot slice({from}, {to}), list is length {}", l.len());
                return Err(EvalError::new(text));
            }
            let part = l.iter().skip(*from as usize).take((to - from) as usize);
            Ok(part.collect::<Vec<_>>().into())
        }
        ("flatten", [Value::List(l)]) => flatten(l, 1),
        ("flatten", [Value::List(_), Value::Int(n)]) if *n < 0 => {
            Err(EvalError::new("level must be non-negative"))
        }
        ("flatten", [Value::List(l), Value::Int(n)]) => flatten(l, *n),
        ("distinct", [Value::List(l)]) => {
            let mut out: Vec<Value<'a>> = Vec::new();
            for v in l.iter() {
                if !out.iter().any(|o| o.equals(&v)) {
                    out.push(v);
                }
            }
            Ok(out.into())
        }
        ("sort", [Value::List(l)]) => {
            let mut pairs: Vec<_> = l.iter().map(|v| (v.clone(), v)).collect();
            sort_pairs(&mut pairs)?;
            Ok(pairs.into_iter().map(|(_, v)| v).collect::<Vec<_>>().into())
        }
        ("reverse", [Value::List(l)]) => {
            let mut all: Vec<Value<'a>> = l.iter().collect();
            all.reverse();
            Ok(all.into())
        }
        ("first", [Value::List(l)]) => Ok(Value::Optional(l.get(0).map(std::sync::Arc::new))),
        ("last", [Value::List(l)]) => {
            let last = l.len().checked_sub(1).and_then(|i| l.get(i));
            Ok(Value::Optional(last.map(std::sync::Arc::new)))
        }
        ("lists.range", [Value::Int(n)]) => {
            let n = usize::try_from(*n).unwrap_or(0);
            if n > ITEMS_MAX {
                return Err(EvalError::new("list is too large"));
            }
            Ok((0..n as i64).map(Value::Int).collect::<Vec<_>>().into())
        }
        _ => Err(EvalError::overload()),
    }
}

fn order(a: &Value<'_>, b: &Value<'_>) -> std::result::Result<Ordering, EvalError> {
    a.compare(b).ok_or_else(EvalError::overload)
}

fn at<'a>(i: Option<usize>) -> Value<'a> {
    Value::Int(i.map_or(-1, |i| i as i64))
}

fn covers(a: &List<'_>, b: &List<'_>) -> bool {
    b.iter().all(|v| a.has(&v))
}

fn flatten<'a>(l: &List<'a>, levels: i64) -> Result<'a> {
    let mut out: Vec<Value<'a>> = l.iter().collect();
    for _ in 0..levels.min(i64::from(super::ast::DEPTH_MAX)) {
        let mut next = Vec::with_capacity(out.len());
        let mut nested = false;
        for v in out {
            match v {
                Value::List(inner) => {
                    nested = true;
                    next.extend(inner.iter());
                }
                other => next.push(other),
            }
            if next.len() > ITEMS_MAX {
                return Err(EvalError::new("list is too large"));
            }
        }
        out = next;
        if !nested {
            break;
        }
    }
    Ok(out.into())
}

/// Sorts by the first of each pair; all must have an order among them.
pub(super) fn sort_pairs(
    pairs: &mut [(Value<'_>, Value<'_>)],
) -> std::result::Result<(), EvalError> {
    if let Some((first, rest)) = pairs.split_first() {
        for (v, _) in rest {
            order(&first.0, v)?;
        }
    }
    pairs.sort_by(|a, b| a.0.compare(&b.0).unwrap_or(Ordering::Equal));
    Ok(())
}

//! What things cost, in upstream's units, before and while an expression runs.

use super::ast::Form;
use super::check::Node;
use super::ty::{Type, UNBOUNDED};
use super::value::Value;

/// A list literal, and a map literal.
pub(super) const LIST: u64 = 10;
pub(super) const MAP: u64 = 30;
/// Walking one byte of a text.
pub(super) const TRAVERSAL: f64 = 0.1;
/// One byte of a regular expression.
const REGEX: f64 = 0.25;
/// One question to the authorizer: two of them are all that one expression can ask.
const AUTHORIZE: u64 = 350_000;

/// At least and at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) min: u64,
    pub(super) max: u64,
}

impl Range {
    pub(super) const NONE: Self = Self::of(0);
    pub(super) const ONE: Self = Self::of(1);

    pub(super) const fn of(n: u64) -> Self {
        Self { min: n, max: n }
    }

    pub(super) fn add(self, o: Self) -> Self {
        Self {
            min: self.min.saturating_add(o.min),
            max: self.max.saturating_add(o.max),
        }
    }

    pub(super) fn multiply(self, o: Self) -> Self {
        Self {
            min: self.min.saturating_mul(o.min),
            max: self.max.saturating_mul(o.max),
        }
    }

    pub(super) fn times(self, factor: f64) -> Self {
        Self {
            min: scaled(self.min, factor),
            max: scaled(self.max, factor),
        }
    }

    pub(super) fn union(self, o: Self) -> Self {
        Self {
            min: self.min.min(o.min),
            max: self.max.max(o.max),
        }
    }
}

/// `n · factor`, rounded up; what is unbounded stays so.
fn scaled(n: u64, factor: f64) -> u64 {
    if n == UNBOUNDED {
        return n;
    }
    let product = (n as f64 * factor).ceil();
    if product >= u64::MAX as f64 {
        u64::MAX
    } else {
        product as u64
    }
}

/// What comes besides the steps of a loop: its result, and the list that it begins with.
pub(super) fn of_frame(form: Form) -> Range {
    Range::of(match form {
        Form::All | Form::Exists => 1,
        Form::ExistsOne => 2,
        Form::TransformMap | Form::TransformMapEntry => 1 + MAP,
        _ => 1 + LIST,
    })
}

/// One step of a loop: its condition, what is kept, and what is made.
pub(super) fn of_step(form: Form, test: Option<Range>, body: Option<Range>) -> Range {
    let test_cost = test.unwrap_or(Range::NONE);
    let body_cost = body.unwrap_or(Range::NONE);
    // Naming the result, making a list of one, joining.
    let kept = Range::of(2 + LIST);
    match form {
        Form::All => Range::of(3).add(test_cost),
        Form::Exists => Range::of(4).add(test_cost),
        Form::ExistsOne => test_cost.add(Range { min: 1, max: 2 }),
        Form::Filter => test_cost.add(Range {
            min: 1,
            max: kept.max + 1,
        }),
        _ => {
            let made = kept.add(body_cost);
            match test {
                None => made,
                Some(t) => t.add(Range {
                    min: 1,
                    max: made.max,
                }),
            }
        }
    }
}

/// What a function costs besides its arguments, and how large its result is.
pub(super) fn of_call(name: &str, args: &[Node], result: &Type) -> (Range, Option<Range>) {
    let size = |i: usize| args.get(i).map_or(Range::of(1), |n| n.size);
    let walk = |i: usize| size(i).times(TRAVERSAL);
    let upto = |r: Range| Range { min: 0, max: r.max };
    match name {
        "check" => (Range::of(AUTHORIZE), None),
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => {
            match args.first().map(|a| &a.ty) {
                Some(Type::List(l)) => {
                    let mut each = Range::ONE;
                    if let Type::String(n) | Type::Bytes(n) = l.item {
                        each = each.add(Range { min: 0, max: n }.times(TRAVERSAL));
                    }
                    (size(0).multiply(each), None)
                }
                _ => (walk(0), None),
            }
        }
        "lowerAscii" | "upperAscii" | "substring" | "trim" => (walk(0), Some(upto(size(0)))),
        "replace" => {
            let (whole, from, to) = (size(0), size(1), size(2));
            let max = if from.min == 0 {
                whole
                    .max
                    .saturating_add(1)
                    .saturating_mul(to.max)
                    .saturating_add(whole.max)
            } else if to.max <= from.min {
                whole.max
            } else {
                whole.max.div_ceil(from.min).saturating_mul(to.max)
            };
            (whole.times(2.0 * TRAVERSAL), Some(Range { min: 0, max }))
        }
        "split" => (size(0).times(2.0 * TRAVERSAL), Some(upto(size(0)))),
        "join" => {
            let item = match args.first().map(|a| &a.ty) {
                Some(Type::List(l)) => l.item.size_max(),
                _ => UNBOUNDED,
            };
            let gaps = size(0).max.saturating_sub(1);
            let separator = if args.len() > 1 { size(1).max } else { 0 };
            let max = size(0)
                .max
                .saturating_mul(item)
                .saturating_add(gaps.saturating_mul(separator));
            let made = Range { min: 0, max };
            (made.times(TRAVERSAL), Some(made))
        }
        "matches" | "find" | "findAll" => {
            let text = size(0).add(Range::ONE).times(TRAVERSAL);
            let cost = text.multiply(size(1).times(REGEX));
            (cost, (name != "matches").then(|| upto(size(0))))
        }
        "contains" => (walk(0).multiply(walk(1)), None),
        "startsWith" | "endsWith" => (walk(1), None),
        "sets.contains" | "sets.intersects" => (size(0).multiply(size(1)), None),
        "sets.equivalent" => (size(0).multiply(size(1)).multiply(Range::of(2)), None),
        "containsIP" => (
            Range { min: 1, max: 4 }.add(if is_text(args, 1) {
                walk(1)
            } else {
                Range::NONE
            }),
            None,
        ),
        "containsCIDR" => (
            Range { min: 3, max: 7 }.add(if is_text(args, 1) {
                walk(1)
            } else {
                Range::NONE
            }),
            None,
        ),
        "url" | "isURL" | "cidr" | "isIP" | "isCIDR" | "ip" | "quantity" | "isQuantity"
        | "semver" | "isSemver" | "validate" | "bytes" | "string" => {
            let text = args
                .iter()
                .position(|a| matches!(a.ty, Type::String(_) | Type::Bytes(_)));
            let cost = text.map_or(Range::ONE, walk);
            let made = text.map(|i| match name {
                "bytes" => Range {
                    min: size(i).min,
                    max: size(i).max.saturating_mul(4),
                },
                _ => size(i),
            });
            (
                cost,
                made.filter(|_| matches!(result, Type::String(_) | Type::Bytes(_))),
            )
        }
        "ip.isCanonical" => (size(0).times(2.0 * TRAVERSAL), None),
        "format" => (walk(0).add(Range::ONE), None),
        "slice" | "distinct" | "sort" | "reverse" | "flatten" | "lists.range" | "unwrapOpt"
        | "optional.unwrap" => {
            let made = if name == "lists.range" || name == "flatten" {
                None
            } else {
                Some(upto(size(0)))
            };
            let square = matches!(name, "distinct" | "sort");
            let cost = if square {
                size(0).multiply(size(0))
            } else {
                size(0)
            };
            (cost.add(Range::of(LIST)), made)
        }
        _ => (Range::ONE, None),
    }
}

fn is_text(args: &[Node], i: usize) -> bool {
    args.get(i).is_some_and(|a| matches!(a.ty, Type::String(_)))
}

/// What a function did cost.
pub(super) fn of_run(name: &str, args: &[Value<'_>], result: Option<&Value<'_>>) -> u64 {
    let size = |i: usize| args.get(i).map_or(1, Value::size);
    let walk = |i: usize| scaled(size(i), TRAVERSAL);
    match name {
        "check" => AUTHORIZE,
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => match args.first() {
            Some(Value::List(l)) => l.iter().fold(size(0), |c, v| match v {
                Value::String(_) | Value::Bytes(_) => c + scaled(v.size(), TRAVERSAL),
                _ => c,
            }),
            _ => walk(0),
        },
        "lowerAscii" | "upperAscii" | "substring" | "trim" | "url" | "cidr" | "isIP" | "isCIDR"
        | "ip" | "quantity" | "isQuantity" | "isURL" | "semver" | "isSemver" | "bytes"
        | "string" => walk(0).max(1),
        "validate" => walk(1),
        "replace" | "split" | "ip.isCanonical" => scaled(size(0), 2.0 * TRAVERSAL),
        "join" | "format" => result.map_or(1, |r| scaled(r.size(), 2.0 * TRAVERSAL)),
        "matches" | "find" | "findAll" => {
            scaled(size(0).saturating_add(1), TRAVERSAL).saturating_mul(scaled(size(1), REGEX))
        }
        "contains" => walk(0).saturating_mul(walk(1)),
        "startsWith" | "endsWith" => walk(1),
        "sets.contains" | "sets.intersects" => size(0).saturating_mul(size(1)),
        "sets.equivalent" => size(0).saturating_mul(size(1)).saturating_mul(2),
        "containsIP" | "containsCIDR" => scaled(size(0) * 2, TRAVERSAL) + walk(1),
        "distinct" | "sort" => size(0).saturating_mul(size(0)).saturating_add(LIST),
        "slice" | "reverse" | "flatten" | "lists.range" | "unwrapOpt" | "optional.unwrap" => {
            size(0).max(result.map_or(0, Value::size)) + LIST
        }
        _ => 1,
    }
}

//! Values of expressions. Parts of an object are looked at where they are: only what an
//! expression touches is turned into a value.

use super::authorize::Check;
use super::net::{Cidr, Url};
use super::ty::{ObjectType, Type};
use crate::quantity::Quantity;
use crate::schema::ListKind;
use jiff::Timestamp;
use serde_json::Value as Json;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

/// A value.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the names are those of the types")]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Text<'a>),
    Bytes(Arc<[u8]>),
    Timestamp(Timestamp),
    /// Nanoseconds.
    Duration(i64),
    Type(&'static str),
    List(List<'a>),
    Map(Map<'a>),
    Optional(Option<Arc<Value<'a>>>),
    Quantity(Quantity),
    Ip(IpAddr),
    Cidr(Cidr),
    Url(Arc<Url>),
    Semver(Arc<semver::Version>),
    Format(&'static str),
    Check(Arc<Check<'a>>),
}

/// A text of the object or one that was made.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "they are what the type says")]
pub enum Text<'a> {
    Ref(&'a str),
    Own(Arc<str>),
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Ref(s) => s,
            Self::Own(s) => s,
        }
    }
}

/// A list of the object or one that was made.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "they are what the type says")]
pub enum List<'a> {
    Json(&'a [Json], &'a Type, &'a ListKind),
    Own(Arc<Vec<Value<'a>>>),
}

/// A map or object.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "they are what the type says")]
pub enum Map<'a> {
    /// Values are of one type.
    Json(&'a serde_json::Map<String, Json>, &'a Type),
    /// Fields are known.
    Object(&'a serde_json::Map<String, Json>, &'a ObjectType),
    Own(Arc<BTreeMap<Key, Value<'a>>>),
}

/// A key of a map. Equal numbers are one key, whatever their type.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are those of the types")]
pub enum Key {
    Bool(bool),
    Int(i64),
    /// Above the greatest `Int`.
    Uint(u64),
    String(Box<str>),
}

impl From<String> for Value<'_> {
    fn from(s: String) -> Self {
        Self::String(Text::Own(s.into()))
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(s: &'a str) -> Self {
        Self::String(Text::Ref(s))
    }
}

impl<'a> From<Vec<Value<'a>>> for Value<'a> {
    fn from(v: Vec<Value<'a>>) -> Self {
        Self::List(List::Own(Arc::new(v)))
    }
}

impl<'a> Value<'a> {
    /// Something.
    pub fn some(v: Self) -> Self {
        Self::Optional(Some(Arc::new(v)))
    }

    /// A part of an object as its type has it; what is not of the type is what it looks like.
    pub fn of(json: &'a Json, ty: &'a Type) -> Self {
        match (ty, json) {
            (Type::Double, Json::Number(n)) => Self::Double(n.as_f64().unwrap_or(0.0)),
            (Type::Int, Json::Number(n)) => match (n.as_i64(), n.as_f64()) {
                (Some(n), _) => Self::Int(n),
                (None, Some(f)) if f.fract() == 0.0 && f.abs() < 9.3e18 => Self::Int(f as i64),
                _ => Self::of_any(json),
            },
            (Type::Bytes(_), Json::String(s)) => match base64_decode(s) {
                Some(bytes) => Self::Bytes(bytes.into()),
                None => Self::from(s.as_str()),
            },
            (Type::Timestamp, Json::String(s)) => match super::time::parse_json_time(s) {
                Some(t) => Self::Timestamp(t),
                None => Self::from(s.as_str()),
            },
            (Type::Duration, Json::String(s)) => match super::time::parse_duration(s) {
                Some(d) => Self::Duration(d),
                None => Self::from(s.as_str()),
            },
            (Type::List(l), Json::Array(items)) => Self::List(List::Json(items, &l.item, &l.kind)),
            (Type::Map(m), Json::Object(map)) => Self::Map(Map::Json(map, &m.value)),
            (Type::Object(o), Json::Object(map)) => Self::Map(Map::Object(map, o)),
            _ => Self::of_any(json),
        }
    }

    fn of_any(json: &'a Json) -> Self {
        const ANY: &Type = &Type::Dyn;
        const ATOMIC: &ListKind = &ListKind::Atomic;
        match json {
            Json::Null => Self::Null,
            Json::Bool(b) => Self::Bool(*b),
            Json::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(n), _) => Self::Int(n),
                (None, Some(n)) => Self::Uint(n),
                _ => Self::Double(n.as_f64().unwrap_or(0.0)),
            },
            Json::String(s) => Self::from(s.as_str()),
            Json::Array(items) => Self::List(List::Json(items, ANY, ATOMIC)),
            Json::Object(map) => Self::Map(Map::Json(map, ANY)),
        }
    }

    /// The name of its type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Type(_) => "type",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Optional(_) => "optional_type",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Ip(_) => "net.IP",
            Self::Cidr(_) => "net.CIDR",
            Self::Url(_) => "kubernetes.URL",
            Self::Semver(_) => "kubernetes.Semver",
            Self::Format(_) => "kubernetes.NamedFormat",
            Self::Check(c) => c.type_name(),
        }
    }

    /// How much there is to walk: bytes, items, entries; one for what has no parts.
    pub(super) fn size(&self) -> u64 {
        (match self {
            Self::String(s) => s.len(),
            Self::Bytes(b) => b.len(),
            Self::List(l) => l.len(),
            Self::Map(m) => m.len(),
            Self::Ip(IpAddr::V4(_)) => 4,
            Self::Ip(IpAddr::V6(_)) => 16,
            Self::Cidr(c) if c.address.is_ipv4() => 4,
            Self::Cidr(_) => 16,
            _ => 1,
        }) as u64
    }

    /// As the key of a map, if it can be one.
    pub(super) fn key(&self) -> Option<Key> {
        Some(match self {
            Self::Bool(b) => Key::Bool(*b),
            Self::Int(n) => Key::Int(*n),
            Self::Uint(n) => i64::try_from(*n).map_or(Key::Uint(*n), Key::Int),
            Self::Double(f) if f.fract() == 0.0 && f.abs() < 9.2e18 => Key::Int(*f as i64),
            Self::String(s) => Key::String((**s).into()),
            _ => return None,
        })
    }

    /// Whether it is what its type has when nothing is said.
    pub(super) fn is_zero(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Bool(b) => !b,
            Self::Int(n) => *n == 0,
            Self::Uint(n) => *n == 0,
            Self::Double(n) => *n == 0.0,
            Self::String(s) => s.is_empty(),
            Self::Bytes(b) => b.is_empty(),
            Self::Duration(n) => *n == 0,
            Self::List(l) => l.len() == 0,
            Self::Map(m) => m.len() == 0,
            Self::Optional(o) => o.is_none(),
            _ => false,
        }
    }

    /// Equality of CEL: numbers across types, sets whatever their order.
    pub fn equals(&self, other: &Value<'_>) -> bool {
        match (self, other) {
            (Self::Null, Value::Null) => true,
            (Self::Bool(a), Value::Bool(b)) => a == b,
            (Self::String(a), Value::String(b)) => **a == **b,
            (Self::Bytes(a), Value::Bytes(b)) => a == b,
            (Self::Timestamp(a), Value::Timestamp(b)) => a == b,
            (Self::Duration(a), Value::Duration(b)) => a == b,
            (Self::Type(a), Value::Type(b)) => a == b,
            (Self::List(a), Value::List(b)) => a.equals(b),
            (Self::Map(a), Value::Map(b)) => a.equals(b),
            (Self::Optional(a), Value::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(b),
                (None, None) => true,
                _ => false,
            },
            (Self::Quantity(a), Value::Quantity(b)) => a == b,
            (Self::Ip(a), Value::Ip(b)) => a == b,
            (Self::Cidr(a), Value::Cidr(b)) => a == b,
            (Self::Url(a), Value::Url(b)) => a == b,
            (Self::Semver(a), Value::Semver(b)) => a == b,
            (Self::Format(a), Value::Format(b)) => a == b,
            _ => self.compare_numbers(other) == Some(Ordering::Equal),
        }
    }

    fn compare_numbers(&self, other: &Value<'_>) -> Option<Ordering> {
        let whole = |v: &Value<'_>| match v {
            Value::Int(n) => Some(i128::from(*n)),
            Value::Uint(n) => Some(i128::from(*n)),
            _ => None,
        };
        match (whole(self), whole(other), self, other) {
            (Some(a), Some(b), ..) => Some(a.cmp(&b)),
            (None, None, Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
            (Some(a), None, _, Value::Double(b)) => compare_exactly(a, *b),
            (None, Some(b), Value::Double(a), _) => compare_exactly(b, *a).map(Ordering::reverse),
            _ => None,
        }
    }

    /// Order, where there is one.
    pub fn compare(&self, other: &Value<'_>) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
            (Self::String(a), Value::String(b)) => Some((**a).cmp(&**b)),
            (Self::Bytes(a), Value::Bytes(b)) => Some(a.cmp(b)),
            (Self::Timestamp(a), Value::Timestamp(b)) => Some(a.cmp(b)),
            (Self::Duration(a), Value::Duration(b)) => Some(a.cmp(b)),
            _ => self.compare_numbers(other),
        }
    }

    /// As JSON; `None` for what JSON can't say.
    pub fn to_json(&self) -> Option<Json> {
        Some(match self {
            Self::Null => Json::Null,
            Self::Bool(b) => (*b).into(),
            Self::Int(n) => (*n).into(),
            Self::Uint(n) => (*n).into(),
            Self::Double(n) => (*n).into(),
            Self::String(s) => (**s).into(),
            Self::Bytes(b) => base64_encode(b).into(),
            Self::Timestamp(t) => super::time::format_time(*t).into(),
            Self::Duration(d) => super::time::format_duration(*d).into(),
            Self::List(l) => l.iter().map(|v| v.to_json()).collect::<Option<Json>>()?,
            Self::Map(m) => {
                let mut out = serde_json::Map::new();
                for (k, v) in m.entries() {
                    out.insert(k.text(), v.to_json()?);
                }
                Json::Object(out)
            }
            Self::Optional(Some(v)) => v.to_json()?,
            Self::Quantity(q) => q.text(crate::quantity::Format::DecimalSi).into(),
            _ => return None,
        })
    }
}

impl<'a> List<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Json(items, ..) => items.len(),
            Self::Own(items) => items.len(),
        }
    }

    pub(super) fn get(&self, i: usize) -> Option<Value<'a>> {
        match self {
            Self::Json(items, ty, _) => items.get(i).map(|v| Value::of(v, ty)),
            Self::Own(items) => items.get(i).cloned(),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Value<'a>> + '_ {
        (0..self.len()).filter_map(|i| self.get(i))
    }

    pub(super) fn has(&self, v: &Value<'_>) -> bool {
        self.iter().any(|i| i.equals(v))
    }

    fn equals(&self, other: &List<'_>) -> bool {
        if self.len() != other.len() {
            return false;
        }
        let unordered = |l: &List<'_>| match l {
            List::Json(_, _, kind) => **kind != ListKind::Atomic,
            List::Own(_) => false,
        };
        if unordered(self) || unordered(other) {
            return self.iter().all(|v| other.has(&v));
        }
        self.iter().zip(other.iter()).all(|(a, b)| a.equals(&b))
    }

    /// Both lists; of a set or keyed list what the second has is taken over.
    pub(super) fn joined(&self, other: &List<'a>) -> Vec<Value<'a>> {
        let mut out: Vec<Value<'a>> = self.iter().collect();
        match self {
            List::Json(_, _, ListKind::Set) => {
                out.extend(other.iter().filter(|v| !self.has(v)));
            }
            List::Json(_, _, ListKind::Map(keys)) => {
                let id = |v: &Value<'a>| -> Option<Vec<Option<Value<'a>>>> {
                    let Value::Map(m) = v else { return None };
                    Some(keys.iter().map(|k| m.keyed(k)).collect())
                };
                let same = |a: &Value<'a>, b: &Value<'a>| match (id(a), id(b)) {
                    (Some(a), Some(b)) => a.iter().zip(&b).all(|(a, b)| match (a, b) {
                        (Some(a), Some(b)) => a.equals(b),
                        (None, None) => true,
                        _ => false,
                    }),
                    _ => false,
                };
                for v in other.iter() {
                    match out.iter().position(|o| same(o, &v)) {
                        Some(i) => out[i] = v,
                        None => out.push(v),
                    }
                }
            }
            _ => out.extend(other.iter()),
        }
        out
    }
}

impl<'a> Map<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Json(m, _) | Self::Object(m, _) => m.len(),
            Self::Own(m) => m.len(),
        }
    }

    /// The value of a field, as expressions call it.
    pub(super) fn field(&self, name: &str) -> Option<Value<'a>> {
        match self {
            Self::Json(m, ty) => match m.get(name) {
                Some(v) => Some(Value::of(v, ty)),
                // Names that expressions can't write are written with escapes.
                None => m
                    .get(&*super::escape::unescape(name)?)
                    .map(|v| Value::of(v, ty)),
            },
            Self::Object(m, ty) => {
                let field = ty.field(name)?;
                m.get(&*field.key).map(|v| Value::of(v, &field.ty))
            }
            Self::Own(m) => m.get(&Key::String(name.into())).cloned(),
        }
    }

    /// The value under an object's own key.
    fn keyed(&self, key: &str) -> Option<Value<'a>> {
        match self {
            Self::Json(m, ty) => m.get(key).map(|v| Value::of(v, ty)),
            Self::Object(m, ty) => {
                let field = ty.keyed(key)?;
                m.get(key).map(|v| Value::of(v, &field.ty))
            }
            Self::Own(m) => m.get(&Key::String(key.into())).cloned(),
        }
    }

    pub(super) fn get(&self, key: &Key) -> Option<Value<'a>> {
        match (self, key) {
            (Self::Own(m), key) => m.get(key).cloned(),
            (_, Key::String(s)) => self.keyed(s),
            _ => None,
        }
    }

    /// Keys and values in order of the keys.
    pub(super) fn entries(&self) -> Vec<(Key, Value<'a>)> {
        match self {
            Self::Json(m, ty) => m
                .iter()
                .map(|(k, v)| (Key::String(k.as_str().into()), Value::of(v, ty)))
                .collect(),
            Self::Object(m, ty) => m
                .iter()
                .filter_map(|(k, v)| {
                    let field = ty.keyed(k)?;
                    Some((Key::String(k.as_str().into()), Value::of(v, &field.ty)))
                })
                .collect(),
            Self::Own(m) => m.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        }
    }

    fn equals(&self, other: &Map<'_>) -> bool {
        self.len() == other.len()
            && self
                .entries()
                .into_iter()
                .all(|(k, v)| other.get(&k).is_some_and(|o| v.equals(&o)))
    }
}

impl Key {
    pub(super) fn value<'a>(self) -> Value<'a> {
        match self {
            Self::Bool(b) => Value::Bool(b),
            Self::Int(n) => Value::Int(n),
            Self::Uint(n) => Value::Uint(n),
            Self::String(s) => Value::String(Text::Own(s.into())),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Bool(b) => b.to_string(),
            Self::Int(n) => n.to_string(),
            Self::Uint(n) => n.to_string(),
            Self::String(s) => s.to_string(),
        }
    }
}

/// A whole number beside a float, without rounding either: orders that contradict each other
/// would make sorting panic.
fn compare_exactly(n: i128, f: f64) -> Option<Ordering> {
    /// Beyond every whole number here.
    const FAR: f64 = 1e30;
    if f.is_nan() {
        None
    } else if f >= FAR {
        Some(Ordering::Less)
    } else if f <= -FAR {
        Some(Ordering::Greater)
    } else {
        let below = f.floor();
        let order = n.cmp(&(below as i128));
        Some(if order.is_eq() && f > below {
            Ordering::Less
        } else {
            order
        })
    }
}

pub(super) fn base64_decode(s: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    let padded = base64::engine::general_purpose::STANDARD.decode(s);
    padded
        .or_else(|_| base64::engine::general_purpose::STANDARD_NO_PAD.decode(s))
        .ok()
}

pub(super) fn base64_encode(b: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(b)
}

//! Types of expressions and of the values they are given.
//!
//! Texts, lists and maps carry how large they can be: what the estimate of costs is made of.
//! Equality of types does not ask for it.

use crate::schema::ListKind;
use std::fmt;
use std::sync::Arc;

/// A size that nothing bounds.
pub const UNBOUNDED: u64 = u64::MAX;

/// A type.
#[derive(Clone, Debug)]
pub enum Type {
    /// Known only when it is there.
    Dyn,
    /// `null`.
    Null,
    /// A truth value.
    Bool,
    /// A signed whole number.
    Int,
    /// An unsigned whole number.
    Uint,
    /// A floating-point number.
    Double,
    /// A text of at most so many bytes.
    String(u64),
    /// Bytes, at most so many.
    Bytes(u64),
    /// A point in time.
    Timestamp,
    /// A length of time.
    Duration,
    /// The type of types.
    Type,
    /// A list.
    List(Arc<ListType>),
    /// A map.
    Map(Arc<MapType>),
    /// An object with known fields.
    Object(Arc<ObjectType>),
    /// Something or nothing.
    Optional(Arc<Type>),
    /// A type of a library.
    Opaque(Opaque),
    /// Stands for any one type in a declaration.
    Param(u8),
}

/// A list type.
#[derive(Clone, Debug)]
pub struct ListType {
    /// Type of the items.
    pub item: Type,
    /// Items at most.
    pub max: u64,
    /// Sets and keyed lists are equal whatever their order.
    pub kind: ListKind,
}

/// A map type.
#[derive(Clone, Debug)]
pub struct MapType {
    /// Type of the keys.
    pub key: Type,
    /// Type of the values.
    pub value: Type,
    /// Entries at most.
    pub max: u64,
}

/// An object type.
#[derive(Debug, Default)]
pub struct ObjectType {
    /// As messages call it.
    pub name: Box<str>,
    /// Fields sorted by name.
    pub fields: Box<[FieldType]>,
}

/// A field of an [`ObjectType`].
#[derive(Debug)]
pub struct FieldType {
    /// As expressions write it.
    pub name: Box<str>,
    /// As the object has it.
    pub key: Box<str>,
    /// Its type.
    pub ty: Type,
}

/// Types of libraries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the types")]
pub enum Opaque {
    Url,
    Ip,
    Cidr,
    Quantity,
    Semver,
    Format,
    Authorizer,
    PathCheck,
    GroupCheck,
    ResourceCheck,
    Decision,
}

impl Opaque {
    pub(super) const ALL: [(Self, &'static str); 11] = [
        (Self::Url, "kubernetes.URL"),
        (Self::Ip, "net.IP"),
        (Self::Cidr, "net.CIDR"),
        (Self::Quantity, "kubernetes.Quantity"),
        (Self::Semver, "kubernetes.Semver"),
        (Self::Format, "kubernetes.NamedFormat"),
        (Self::Authorizer, "kubernetes.authorization.Authorizer"),
        (Self::PathCheck, "kubernetes.authorization.PathCheck"),
        (Self::GroupCheck, "kubernetes.authorization.GroupCheck"),
        (
            Self::ResourceCheck,
            "kubernetes.authorization.ResourceCheck",
        ),
        (Self::Decision, "kubernetes.authorization.Decision"),
    ];

    /// As messages call it.
    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(o, _)| *o == self)
            .map_or("", |(_, name)| name)
    }
}

impl ObjectType {
    /// A type of these fields.
    pub fn new(name: &str, mut fields: Vec<FieldType>) -> Self {
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        fields.dedup_by(|a, b| a.name == b.name);
        Self {
            name: name.into(),
            fields: fields.into(),
        }
    }

    /// The field that expressions call so.
    pub fn field(&self, name: &str) -> Option<&FieldType> {
        self.fields
            .binary_search_by(|f| (*f.name).cmp(name))
            .ok()
            .map(|i| &self.fields[i])
    }

    /// The field that objects have under this key.
    pub fn keyed(&self, key: &str) -> Option<&FieldType> {
        self.field(key)
            .filter(|f| *f.key == *key)
            .or_else(|| self.fields.iter().find(|f| *f.key == *key))
    }
}

impl FieldType {
    /// A field whose name needs no escape.
    pub fn plain(name: &str, ty: Type) -> Self {
        Self {
            name: name.into(),
            key: name.into(),
            ty,
        }
    }
}

impl Type {
    /// A text of any size.
    pub const TEXT: Self = Self::String(UNBOUNDED);

    /// A list of any size.
    pub fn list(item: Self) -> Self {
        Self::List(Arc::new(ListType {
            item,
            max: UNBOUNDED,
            kind: ListKind::Atomic,
        }))
    }

    /// A map of any size.
    pub fn map(key: Self, value: Self) -> Self {
        Self::Map(Arc::new(MapType {
            key,
            value,
            max: UNBOUNDED,
        }))
    }

    /// Something of a type or nothing.
    pub fn optional(of: Self) -> Self {
        Self::Optional(Arc::new(of))
    }

    /// An object type.
    pub fn object(name: &str, fields: Vec<FieldType>) -> Self {
        Self::Object(Arc::new(ObjectType::new(name, fields)))
    }

    pub(super) fn is_dyn(&self) -> bool {
        matches!(self, Self::Dyn)
    }

    /// Whether `null` may stand for it.
    fn is_nullable(&self) -> bool {
        matches!(
            self,
            Self::Object(_)
                | Self::Optional(_)
                | Self::Opaque(_)
                | Self::Timestamp
                | Self::Duration
        )
    }

    /// Whether a value of `given` can be used where `self` is wanted; parameters of `self`
    /// are bound in `bound`.
    pub(super) fn accepts(&self, given: &Self, bound: &mut [Option<Type>; 2]) -> bool {
        if given.is_dyn() {
            return true;
        }
        match (self, given) {
            (Self::Dyn, _) => true,
            (Self::Param(p), _) => {
                let slot = usize::from(*p) & 1;
                match bound[slot].clone() {
                    None | Some(Self::Dyn) => {
                        bound[slot] = Some(given.clone());
                        true
                    }
                    Some(before) if before.same(given) => {
                        // The wider of the two: `[]` is a list of anything.
                        if before.has_dyn() {
                            bound[slot] = Some(given.clone());
                        }
                        true
                    }
                    Some(Self::Null) if given.is_nullable() => {
                        bound[slot] = Some(given.clone());
                        true
                    }
                    Some(before) => matches!(given, Self::Null) && before.is_nullable(),
                }
            }
            (Self::List(a), Self::List(b)) => a.item.accepts(&b.item, bound),
            (Self::Map(a), Self::Map(b)) => {
                a.key.accepts(&b.key, bound) && a.value.accepts(&b.value, bound)
            }
            (Self::Optional(a), Self::Optional(b)) => a.accepts(b, bound),
            (wanted, Self::Null) if wanted.is_nullable() => true,
            _ => self.same(given),
        }
    }

    fn has_dyn(&self) -> bool {
        match self {
            Self::Dyn => true,
            Self::List(l) => l.item.has_dyn(),
            Self::Map(m) => m.key.has_dyn() || m.value.has_dyn(),
            Self::Optional(t) => t.has_dyn(),
            _ => false,
        }
    }

    /// Whether two types are one; what is dynamic in either fits.
    pub(super) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dyn, _) | (_, Self::Dyn) => true,
            (Self::List(a), Self::List(b)) => a.item.same(&b.item),
            (Self::Map(a), Self::Map(b)) => a.key.same(&b.key) && a.value.same(&b.value),
            (Self::Optional(a), Self::Optional(b)) => a.same(b),
            (Self::Object(a), Self::Object(b)) => Arc::ptr_eq(a, b) || a.name == b.name,
            (Self::Opaque(a), Self::Opaque(b)) => a == b,
            (Self::Param(a), Self::Param(b)) => a == b,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }

    /// The type with its parameters replaced.
    pub(super) fn bind(&self, bound: &[Option<Type>; 2]) -> Self {
        match self {
            Self::Param(p) => bound[usize::from(*p) & 1].clone().unwrap_or(Self::Dyn),
            Self::List(l) => Self::List(Arc::new(ListType {
                item: l.item.bind(bound),
                max: l.max,
                kind: ListKind::Atomic,
            })),
            Self::Map(m) => Self::map(m.key.bind(bound), m.value.bind(bound)),
            Self::Optional(t) => Self::optional(t.bind(bound)),
            other => other.clone(),
        }
    }

    /// How many bytes, items or entries a value can have; one for what has no parts.
    pub(super) fn size_max(&self) -> u64 {
        match self {
            Self::String(n) | Self::Bytes(n) => *n,
            Self::List(l) => l.max,
            Self::Map(m) => m.max,
            Self::Bool | Self::Int | Self::Uint | Self::Double | Self::Null => 1,
            Self::Timestamp | Self::Duration => 1,
            _ => UNBOUNDED,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dyn => f.write_str("dyn"),
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::String(_) => f.write_str("string"),
            Self::Bytes(_) => f.write_str("bytes"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::Duration => f.write_str("duration"),
            Self::Type => f.write_str("type"),
            Self::List(l) => write!(f, "list({})", l.item),
            Self::Map(m) => write!(f, "map({}, {})", m.key, m.value),
            Self::Object(o) => f.write_str(&o.name),
            Self::Optional(t) => write!(f, "optional_type({t})"),
            Self::Opaque(o) => f.write_str(o.name()),
            Self::Param(p) => write!(f, "{}", char::from(b'A' + p)),
        }
    }
}

//! Types of objects as data: one in-memory form that the built-in table and
//! custom resource definitions both compile to. It drives pruning, strict
//! decoding, protobuf⇄JSON, strategic merge, server-side apply and OpenAPI.
//!
//! A [`Schema`] is an arena of [`Type`]s addressed by [`TypeId`]. The built-in
//! one is inflated once from the committed file that `cargo xtask schema` makes.

use crate::gvk::GroupVersionKind;

/// Index of a type in its [`Schema`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(pub u32);

/// A set of types that refer to each other, and the kinds that start in it.
#[derive(Debug, Default)]
pub struct Schema {
    types: Vec<Type>,
    kinds: std::collections::HashMap<GroupVersionKind, TypeId>,
    names: std::collections::HashMap<Box<str>, TypeId>,
}

/// What a value may be.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// A value without parts.
    Scalar(Scalar),
    /// An object with known fields.
    Struct(Struct),
    /// An object whose keys are free and whose values are of one type.
    Map(TypeId),
    /// A list.
    List(List),
    /// Any JSON at all, kept as it is (`RawExtension`, `FieldsV1`, `JSON`).
    Any,
}

/// Types of values without parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// A string.
    String,
    /// A boolean.
    Bool,
    /// A 32-bit signed integer.
    Int32,
    /// A 64-bit signed integer.
    Int64,
    /// A 64-bit float.
    Double,
    /// Bytes; base64 in JSON.
    Bytes,
    /// `resource.Quantity`: a string or number in JSON, a message with one string in protobuf.
    Quantity,
    /// `intstr.IntOrString`.
    IntOrString,
    /// `metav1.Time`: RFC 3339 with seconds.
    Time,
    /// `metav1.MicroTime`: RFC 3339 with six decimals.
    MicroTime,
    /// `metav1.Duration`: such as `1h0m0s` in JSON.
    Duration,
}

/// An object type with known fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Struct {
    /// OpenAPI name, such as `io.k8s.api.core.v1.PodSpec`.
    pub name: Box<str>,
    /// Fields sorted by JSON name.
    pub fields: Box<[Field]>,
    /// Owned and replaced as a whole (`x-kubernetes-map-type: atomic`).
    pub atomic: bool,
    /// Keys that are no field are kept (custom resources only).
    pub preserve_unknown: bool,
}

/// A field of a [`Struct`].
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// JSON name.
    pub name: Box<str>,
    /// Its type.
    pub ty: TypeId,
    /// Must be there.
    pub required: bool,
    /// Protobuf field number, 0 if it has none.
    pub number: u32,
    /// Default of the schema itself (`protocol: TCP`); takes part in list-map keys.
    pub default: Option<serde_json::Value>,
    /// How strategic merge patch treats it.
    pub patch: PatchStrategy,
    /// Values that are allowed, empty when free.
    pub values: Box<[Box<str>]>,
}

/// `x-kubernetes-patch-strategy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    /// Lists are merged (by the list's `patch_merge_key`, or as sets) instead of replaced.
    pub merge: bool,
    /// Keys that the patch's `$retainKeys` does not name are dropped.
    pub retain_keys: bool,
}

/// A list type.
#[derive(Clone, Debug, PartialEq)]
pub struct List {
    /// Type of the items.
    pub item: TypeId,
    /// How server-side apply treats it.
    pub kind: ListKind,
    /// Key field for strategic merge; may differ from the apply keys.
    pub patch_merge_key: Option<Box<str>>,
}

/// `x-kubernetes-list-type` and `x-kubernetes-list-map-keys`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListKind {
    /// Replaced as a whole.
    #[default]
    Atomic,
    /// A set of scalars.
    Set,
    /// Items are told apart by these fields.
    Map(Box<[Box<str>]>),
}

impl Schema {
    /// The schema of all built-in kinds, inflated on first use.
    pub fn builtin() -> &'static Schema {
        static BUILTIN: std::sync::LazyLock<Schema> =
            std::sync::LazyLock::new(|| todo!("inflate the generated table"));
        &BUILTIN
    }

    /// The type with this index.
    pub fn get(&self, id: TypeId) -> &Type {
        &self.types[id.0 as usize]
    }

    /// The type that a kind's objects have.
    pub fn kind(&self, gvk: &GroupVersionKind) -> Option<TypeId> {
        self.kinds.get(gvk).copied()
    }

    /// A struct type by its OpenAPI name.
    pub fn by_name(&self, name: &str) -> Option<TypeId> {
        self.names.get(name).copied()
    }
}

impl Struct {
    /// The field with this JSON name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields
            .binary_search_by(|f| (*f.name).cmp(name))
            .ok()
            .map(|i| &self.fields[i])
    }
}

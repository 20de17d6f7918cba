//! Types of objects as data: one in-memory form that the built-in table and
//! custom resource definitions both compile to. It drives pruning, strict
//! decoding, protobuf⇄JSON, strategic merge, server-side apply and OpenAPI.
//!
//! A [`Schema`] is an arena of [`Type`]s addressed by [`TypeId`]. The built-in
//! one is inflated once from the committed file that `cargo xtask schema` makes.

mod docs;
mod rule;
mod table;

pub use docs::Descriptions;
pub use rule::{Format, JsonType, Pattern, Rule};
pub use table::TableError;

use crate::gvk::GroupVersionKind;
use std::collections::HashMap;

/// Index of a type in its [`Schema`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(pub u32);

/// A set of types that refer to each other, and the kinds that start in it.
#[derive(Debug, Default)]
pub struct Schema {
    types: Vec<Type>,
    kinds: HashMap<GroupVersionKind, TypeId>,
    /// Kinds that every group and version has, such as `DeleteOptions`.
    everywhere: HashMap<Box<str>, TypeId>,
    names: HashMap<Box<str>, TypeId>,
    /// Types of [`Type::Any`] that are unions rather than JSON text in protobuf.
    unions: HashMap<TypeId, Union>,
    /// Types below its end are these; own types come after them.
    base: Option<&'static Schema>,
    /// What validation asks of values of own types.
    rules: HashMap<TypeId, Box<[Rule]>>,
}

/// The unions of `JSONSchemaProps`: in JSON told apart by form, in protobuf messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Union {
    /// `JSONSchemaPropsOrArray`: a schema or an array of schemas.
    SchemaOrArray,
    /// `JSONSchemaPropsOrBool`: a schema or a boolean.
    SchemaOrBool,
    /// `JSONSchemaPropsOrStringArray`: a schema or an array of strings.
    SchemaOrStrings,
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

/// A field of a [`Struct`]. Make one with `Field { name, ty, ..Field::default() }`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Field {
    /// JSON name.
    pub name: Box<str>,
    /// Its type.
    pub ty: TypeId,
    /// Must be there.
    pub required: bool,
    /// Protobuf field number, 0 if it has none.
    pub number: u32,
    /// Numbers of the messages that hold this field in protobuf where JSON has it inline
    /// (`Volume.volumeSource`), outermost first, 0 for none.
    pub inline: [u8; 2],
    /// The Go field is no pointer and leaves zero values out of JSON: a zero in protobuf,
    /// where it is always written, means that the field is not set.
    pub omit_zero: bool,
    /// This map or struct is owned and replaced as a whole here, whatever its type says.
    pub atomic: bool,
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
        static BUILTIN: std::sync::LazyLock<Schema> = std::sync::LazyLock::new(|| {
            Schema::from_table(include_bytes!("builtin.bin"))
                .expect("the committed table is well-formed, as the tests show")
        });
        &BUILTIN
    }

    /// Reads a table that `cargo xtask schema` wrote.
    ///
    /// # Errors
    /// When the bytes are no such table.
    pub fn from_table(bytes: &[u8]) -> Result<Schema, TableError> {
        table::read(bytes)
    }

    /// An empty schema to which [`add`](Self::add) adds.
    pub fn new() -> Schema {
        Schema::default()
    }

    /// A schema that adds to another, whose types it shares: what custom resources compile
    /// to. Values of its own types are not type-checked while they are read: that is
    /// validation's, which names every wrong field at once ([`crate::structural`]).
    pub fn over(base: &'static Schema) -> Schema {
        Schema {
            base: Some(base),
            ..Schema::default()
        }
    }

    /// How many types there are below the own ones.
    fn shared(&self) -> usize {
        self.base.map_or(0, |b| b.types.len())
    }

    /// Whether this type came by [`add`](Self::add) to a schema [`over`](Self::over) another.
    pub fn is_custom(&self, id: TypeId) -> bool {
        self.base.is_some() && id.0 as usize >= self.shared()
    }

    /// Whether this schema lies over another.
    pub fn is_overlay(&self) -> bool {
        self.base.is_some()
    }

    /// Adds a type; a struct with a name is then found by it.
    pub fn add(&mut self, ty: Type) -> TypeId {
        let next = self.shared() + self.types.len();
        let id = TypeId(u32::try_from(next).unwrap_or(u32::MAX));
        if let Type::Struct(s) = &ty
            && !s.name.is_empty()
        {
            self.names.insert(s.name.clone(), id);
        }
        self.types.push(ty);
        id
    }

    /// States what validation asks of values of a type besides their form.
    pub fn add_rules(&mut self, id: TypeId, rules: Vec<Rule>) {
        if !rules.is_empty() {
            self.rules.insert(id, rules.into());
        }
    }

    /// What validation asks of values of a type.
    pub fn rules(&self, id: TypeId) -> &[Rule] {
        self.rules.get(&id).map_or(&[], |r| r)
    }

    /// Gives back what growing set aside: nothing is added any more.
    pub fn shrink(&mut self) {
        self.types.shrink_to_fit();
        self.names.shrink_to_fit();
        self.rules.shrink_to_fit();
    }

    /// States which type a kind's objects have.
    pub fn add_kind(&mut self, gvk: GroupVersionKind, ty: TypeId) {
        self.kinds.insert(gvk, ty);
    }

    /// The type with this index.
    pub fn get(&self, id: TypeId) -> &Type {
        let at = id.0 as usize;
        match self.base {
            None => &self.types[at],
            Some(base) => match base.types.get(at) {
                Some(ty) => ty,
                None => &self.types[at - base.types.len()],
            },
        }
    }

    /// Whether there is a type with this index.
    pub fn has(&self, id: TypeId) -> bool {
        (id.0 as usize) < self.shared() + self.types.len()
    }

    /// The struct with this index, if it is one.
    pub fn get_struct(&self, id: TypeId) -> Option<&Struct> {
        match self.get(id) {
            Type::Struct(s) => Some(s),
            _ => None,
        }
    }

    /// The type that a kind's objects have. `DeleteOptions` and its like are in every group.
    pub fn kind(&self, gvk: &GroupVersionKind) -> Option<TypeId> {
        self.kinds
            .get(gvk)
            .or_else(|| self.everywhere.get(gvk.kind.as_str()))
            .copied()
            .or_else(|| self.base?.kind(gvk))
    }

    /// All kinds with their types, except those that every group has; in no order.
    pub fn kinds(&self) -> impl Iterator<Item = (&GroupVersionKind, TypeId)> {
        self.kinds.iter().map(|(gvk, id)| (gvk, *id))
    }

    /// A struct type by its OpenAPI name.
    pub fn by_name(&self, name: &str) -> Option<TypeId> {
        let own = self.names.get(name).copied();
        own.or_else(|| self.base?.by_name(name))
    }

    /// Which union a [`Type::Any`] is, if one.
    pub fn union(&self, id: TypeId) -> Option<Union> {
        match self.base {
            None => self.unions.get(&id).copied(),
            Some(base) => base.unions.get(&id).copied(),
        }
    }

    /// Descriptions of the built-in types, inflated anew at each call: for `kubectl explain`.
    pub fn descriptions() -> Descriptions {
        Descriptions::builtin()
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

    /// The kind's or type's own name, without the package.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }
}

#[cfg(test)]
mod tests;

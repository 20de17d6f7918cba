//! A serde seed that the schema drives: it builds the final `Value` while the input is
//! parsed, drops what the type does not have, and knows the path of every error.
//!
//! The path is a list of stack frames, so the good case allocates nothing for it.

use super::{DEPTH_MAX, FieldValidation, STRICT_ERRORS_MAX, text};
use crate::quantity;
use crate::schema::{List, Scalar, Schema, Struct, Type, TypeId, Union};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::cell::RefCell;
use std::fmt;

/// The two fields that say what an object is.
#[derive(serde::Deserialize)]
pub(super) struct TypeMeta {
    #[serde(rename = "apiVersion", default)]
    pub(super) api_version: Option<String>,
    #[serde(default)]
    pub(super) kind: Option<String>,
}

/// What one decoding knows and collects.
pub(super) struct Reader<'s> {
    schema: &'s Schema,
    validation: FieldValidation,
    /// Unknown and duplicate fields.
    found: RefCell<Vec<String>>,
    /// The error as it is to be reported; serde's own adds a position that means nothing here.
    failure: RefCell<Option<String>>,
}

impl<'s> Reader<'s> {
    pub(super) fn new(schema: &'s Schema, validation: FieldValidation) -> Self {
        Self {
            schema,
            validation,
            found: RefCell::default(),
            failure: RefCell::default(),
        }
    }

    pub(super) fn read<'de, D: Deserializer<'de>>(
        &self,
        ty: TypeId,
        input: D,
    ) -> Result<Value, String> {
        let seed = Seed {
            reader: self,
            ty: Some(ty),
            path: &Path::Root,
            owner: "",
            depth: 0,
        };
        let result = seed.deserialize(input).map_err(|e| e.to_string());
        let value = result.map_err(|e| self.failure.take().unwrap_or(e))?;
        if matches!(self.schema.get(ty), Type::Struct(_)) && !value.is_object() {
            return Err("json: cannot unmarshal null into an object".to_owned());
        }
        Ok(value)
    }

    /// How unknown fields are treated, and those that were found.
    pub(super) fn into_found(self) -> (FieldValidation, Vec<String>) {
        (self.validation, self.found.into_inner())
    }

    fn report(&self, what: &str, path: &Path<'_>) {
        let mut found = self.found.borrow_mut();
        if self.validation != FieldValidation::Ignore && found.len() < STRICT_ERRORS_MAX {
            let text = format!("{what} field \"{path}\"");
            if !found.contains(&text) {
                found.push(text);
            }
        }
    }
}

/// Any JSON, with the depth limit.
pub(crate) fn read_any<'de, D: Deserializer<'de>>(input: D) -> Result<Value, String> {
    static NONE: std::sync::LazyLock<Schema> = std::sync::LazyLock::new(Schema::new);
    let reader = Reader::new(&NONE, FieldValidation::Ignore);
    let seed = Seed {
        reader: &reader,
        ty: None,
        path: &Path::Root,
        owner: "",
        depth: 0,
    };
    let result = seed.deserialize(input).map_err(|e| e.to_string());
    result.map_err(|e| reader.failure.take().unwrap_or(e))
}

/// Where a value is.
enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Field(Path::Root, name) => f.write_str(name),
            Path::Field(parent, name) => write!(f, "{parent}.{name}"),
            Path::Index(parent, i) => write!(f, "{parent}[{i}]"),
        }
    }
}

#[derive(Clone, Copy)]
struct Seed<'a> {
    reader: &'a Reader<'a>,
    /// `None`: any JSON.
    ty: Option<TypeId>,
    path: &'a Path<'a>,
    /// Innermost struct around the value.
    owner: &'a str,
    depth: usize,
}

impl<'a> Seed<'a> {
    fn schema_type(&self) -> &'a Type {
        self.ty.map_or(&Type::Any, |ty| self.reader.schema.get(ty))
    }

    fn scalar(&self) -> Option<Scalar> {
        match self.schema_type() {
            Type::Scalar(s) => Some(*s),
            _ => None,
        }
    }

    /// Whether this is any JSON, and not a union of schemas.
    fn is_any(&self) -> bool {
        self.is_loose() || (matches!(self.schema_type(), Type::Any) && self.union().is_none())
    }

    /// Whether a value of a wrong JSON type is kept, for validation to name it.
    fn is_loose(&self) -> bool {
        self.ty.map_or(self.reader.schema.is_overlay(), |ty| {
            self.reader.schema.is_custom(ty)
        })
    }

    fn union(&self) -> Option<Union> {
        self.reader.schema.union(self.ty?)
    }

    fn fail<E: Error>(&self, message: String) -> E {
        let error = E::custom(&message);
        self.reader.failure.replace(Some(message));
        error
    }

    /// The error of a value whose JSON type is wrong.
    fn mismatch<E: Error>(&self, found: &str) -> E {
        let wanted = go_type(self.reader.schema, self.ty);
        let path = self.path;
        self.fail(if matches!(path, Path::Root) {
            format!("json: cannot unmarshal {found} into Go value of type {wanted}")
        } else {
            let owner = self.owner;
            format!(
                "json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {wanted}"
            )
        })
    }

    /// A value that has the right JSON type and yet can't be read.
    fn unreadable<E: Error>(&self, message: &dyn fmt::Display) -> E {
        self.fail(format!("{}: {message}", self.path))
    }

    fn quantity<E: Error>(&self, text: &str) -> Result<Value, E> {
        quantity::canonical(text.trim())
            .map(Value::String)
            .map_err(|e| self.unreadable(&e))
    }

    fn integer<E: Error>(&self, n: i64) -> Result<Value, E> {
        let small = i32::try_from(n).is_ok();
        match self.scalar().filter(|_| !self.is_loose()) {
            None if self.is_any() => Ok(n.into()),
            Some(Scalar::Int32 | Scalar::IntOrString) if small => Ok(n.into()),
            Some(Scalar::Int64 | Scalar::Double) => Ok(n.into()),
            Some(Scalar::Quantity) => self.quantity(&n.to_string()),
            Some(Scalar::Int32 | Scalar::IntOrString) => Err(self.mismatch(&format!("number {n}"))),
            _ => Err(self.mismatch("number")),
        }
    }

    /// What upstream's decoder leaves where an item or a map's value is `null`.
    fn zero(&self) -> Option<Value> {
        Some(match self.schema_type() {
            Type::Scalar(Scalar::String | Scalar::Bytes) => Value::String(String::new()),
            Type::Scalar(Scalar::Int32 | Scalar::Int64) => 0.into(),
            Type::Scalar(Scalar::Bool) => false.into(),
            Type::Struct(_) => Value::Object(Map::new()),
            Type::Any => Value::Null,
            _ => return None,
        })
    }

    fn inner<'b>(self, ty: Option<TypeId>, path: &'b Path<'b>, owner: &'b str) -> Seed<'b>
    where
        'a: 'b,
    {
        Seed {
            reader: self.reader,
            ty,
            path,
            owner,
            depth: self.depth + 1,
        }
    }

    fn items<'de, A: SeqAccess<'de>>(
        self,
        ty: Option<TypeId>,
        mut seq: A,
    ) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        for i in 0.. {
            let path = Path::Index(self.path, i);
            let seed = self.inner(ty, &path, self.owner);
            match seq.next_element_seed(seed)? {
                None => break,
                Some(Value::Null) if seed.is_loose() => out.push(Value::Null),
                Some(Value::Null) => out.extend(seed.zero()),
                Some(value) => out.push(value),
            }
        }
        Ok(Value::Array(out))
    }

    fn entries<'de, A: MapAccess<'de>>(
        self,
        ty: Option<TypeId>,
        mut map: A,
    ) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let path = Path::Field(self.path, &key);
            let seed = self.inner(ty, &path, self.owner);
            let value = match map.next_value_seed(seed)? {
                Value::Null if !seed.is_loose() => seed.zero(),
                value => Some(value),
            };
            if (ty.is_some() || self.is_loose()) && out.contains_key(&key) {
                self.reader.report("duplicate", &path);
            }
            if let Some(value) = value {
                out.insert(key, value);
            }
        }
        Ok(Value::Object(out))
    }

    fn fields<'de, A: MapAccess<'de>>(
        self,
        def: &'a Struct,
        mut map: A,
    ) -> Result<Value, A::Error> {
        let mut out = Map::new();
        let mut seen = 0u128;
        while let Some(key) = map.next_key_seed(KeySeed(def))? {
            let index = match key {
                Key::Known(index) => index,
                Key::Unknown(name) => {
                    let path = Path::Field(self.path, &name);
                    if def.preserve_unknown {
                        let value = map.next_value_seed(self.inner(None, &path, ""))?;
                        if out.insert(name.clone(), value).is_some() {
                            self.reader.report("duplicate", &path);
                        }
                    } else {
                        self.reader.report("unknown", &path);
                        map.next_value::<IgnoredAny>()?;
                    }
                    continue;
                }
            };
            let field = &def.fields[index];
            let path = Path::Field(self.path, &field.name);
            let bit = 1u128.checked_shl(index as u32).unwrap_or(0);
            if seen & bit != 0 {
                self.reader.report("duplicate", &path);
            }
            seen |= bit;
            let seed = self.inner(Some(field.ty), &path, def.short_name());
            match map.next_value_seed(seed)? {
                Value::Null if !seed.is_loose() => {}
                value => {
                    out.insert(field.name.as_ref().to_owned(), value);
                }
            }
        }
        Ok(Value::Object(out))
    }

    fn schema_props(&self) -> Option<TypeId> {
        self.reader
            .schema
            .by_name("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Value, D::Error> {
        if self.depth > DEPTH_MAX {
            return Err(self.fail(format!("exceeded max depth of {DEPTH_MAX}")));
        }
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&go_type(self.reader.schema, self.ty))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, input: D) -> Result<Value, D::Error> {
        input.deserialize_any(self)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, input: D) -> Result<Value, D::Error> {
        input.deserialize_any(self)
    }

    fn visit_bool<E: Error>(self, v: bool) -> Result<Value, E> {
        match self.scalar() {
            Some(Scalar::Bool) => Ok(v.into()),
            None if self.union() == Some(Union::SchemaOrBool) => Ok(v.into()),
            _ if self.is_any() => Ok(v.into()),
            _ => Err(self.mismatch("bool")),
        }
    }

    fn visit_i64<E: Error>(self, v: i64) -> Result<Value, E> {
        self.integer(v)
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<Value, E> {
        match i64::try_from(v) {
            Ok(v) => self.integer(v),
            Err(_) if self.is_any() || self.scalar() == Some(Scalar::Double) => Ok(v.into()),
            Err(_) if self.scalar() == Some(Scalar::Quantity) => self.quantity(&v.to_string()),
            Err(_) => Err(self.mismatch(&format!("number {v}"))),
        }
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<Value, E> {
        let number = || Number::from_f64(v).map_or(Value::Null, Value::Number);
        match self.scalar() {
            // 2⁵³, as below.
            Some(Scalar::Int64)
                if self.is_loose() && v.fract() == 0.0 && v.abs() <= 9_007_199_254_740_992.0 =>
            {
                Ok((v as i64).into())
            }
            _ if self.is_any() => Ok(number()),
            Some(Scalar::Double) => Ok(number()),
            Some(Scalar::Quantity) => self.quantity(&v.to_string()),
            // 2⁵³: every integer below is exact as a float.
            Some(Scalar::Int32 | Scalar::Int64 | Scalar::IntOrString)
                if v.fract() == 0.0 && v.abs() <= 9_007_199_254_740_992.0 =>
            {
                self.integer(v as i64)
            }
            _ => Err(self.mismatch(&format!("number {v}"))),
        }
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<Value, E> {
        match self.scalar() {
            Some(Scalar::String | Scalar::IntOrString | Scalar::Duration) => Ok(v.into()),
            _ if self.is_any() => Ok(v.into()),
            Some(Scalar::Bytes) => text::base64(v)
                .map(Value::String)
                .map_err(|e| self.unreadable(&e)),
            Some(Scalar::Quantity) => self.quantity(v),
            Some(Scalar::Time) => text::parse_time(v).map_err(|e| self.unreadable(&e)),
            Some(Scalar::MicroTime) => text::parse_micro_time(v).map_err(|e| self.unreadable(&e)),
            _ => Err(self.mismatch("string")),
        }
    }

    fn visit_string<E: Error>(self, v: String) -> Result<Value, E> {
        match self.scalar() {
            Some(Scalar::String) => Ok(Value::String(v)),
            _ => self.visit_str(&v),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Value, A::Error> {
        match self.schema_type() {
            Type::List(List { item, .. }) => self.items(Some(*item), seq),
            Type::Any => match self.union() {
                None => self.items(None, seq),
                Some(Union::SchemaOrArray) => self.items(self.schema_props(), seq),
                Some(Union::SchemaOrStrings) => self.items(None, seq),
                Some(Union::SchemaOrBool) => Err(self.mismatch("array")),
            },
            _ if self.is_loose() => self.items(None, seq),
            _ => Err(self.mismatch("array")),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
        match self.schema_type() {
            Type::Struct(def) => self.fields(def, map),
            Type::Map(value) => self.entries(Some(*value), map),
            Type::Any if self.union().is_some() => {
                let props = self.schema_props();
                match props.and_then(|p| self.reader.schema.get_struct(p)) {
                    Some(def) => self.fields(def, map),
                    None => self.entries(None, map),
                }
            }
            Type::Any => self.entries(None, map),
            _ if self.is_loose() => self.entries(None, map),
            _ => Err(self.mismatch("object")),
        }
    }
}

enum Key {
    Known(usize),
    Unknown(String),
}

struct KeySeed<'a>(&'a Struct);

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Key, D::Error> {
        input.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed<'_> {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<Key, E> {
        Ok(match self.0.fields.binary_search_by(|f| (*f.name).cmp(v)) {
            Ok(index) => Key::Known(index),
            Err(_) => Key::Unknown(v.to_owned()),
        })
    }
}

/// A type as upstream's errors write it.
fn go_type(schema: &Schema, ty: Option<TypeId>) -> String {
    let Some(ty) = ty else {
        return "interface {}".to_owned();
    };
    match schema.get(ty) {
        Type::Scalar(s) => match s {
            Scalar::String => "string",
            Scalar::Bool => "bool",
            Scalar::Int32 => "int32",
            Scalar::Int64 => "int64",
            Scalar::Double => "float64",
            Scalar::Bytes => "[]uint8",
            Scalar::Quantity => "resource.Quantity",
            Scalar::IntOrString => "intstr.IntOrString",
            Scalar::Time => "v1.Time",
            Scalar::MicroTime => "v1.MicroTime",
            Scalar::Duration => "v1.Duration",
        }
        .to_owned(),
        Type::Struct(s) => {
            let mut parts = s.name.rsplit('.');
            let name = parts.next().unwrap_or_default();
            match parts.next() {
                Some(package) => format!("{package}.{name}"),
                None => name.to_owned(),
            }
        }
        Type::Map(value) => format!("map[string]{}", go_type(schema, Some(*value))),
        Type::List(list) => format!("[]{}", go_type(schema, Some(list.item))),
        Type::Any => "interface {}".to_owned(),
    }
}

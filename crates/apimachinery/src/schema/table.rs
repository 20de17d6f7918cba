//! The form of the built-in table, and its reader. `cargo xtask schema` writes it.
//!
//! A zlib stream of LEB128 numbers and text: the strings (length, UTF-8), then the types,
//! then the kinds (group, version, kind, type), each list after its count. Strings are
//! referred to by index. A type starts with its form: a [`Scalar`] by its position, 16 any,
//! 17 union (name), 18 map (item), 19 list (item; 0 atomic, 1 set, 1 + n keys; merge key + 1),
//! 20 struct (name, atomic, fields by name). A field is name, type, flags, number and,
//! by its flags, the numbers of its two inline messages and its default as JSON text.

use super::{Field, List, ListKind, PatchStrategy, Scalar, Schema, Struct, Type, TypeId, Union};
use crate::gvk::GroupVersionKind;
use std::io::Read as _;

/// A table that can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// It is no zlib stream.
    #[error("inflate the schema table")]
    Inflate,
    /// It ends early or refers to what is not there.
    #[error("read the schema table")]
    Malformed,
}

/// Forms of types, in the order of their numbers.
const SCALARS: [Scalar; 11] = [
    Scalar::String,
    Scalar::Bool,
    Scalar::Int32,
    Scalar::Int64,
    Scalar::Double,
    Scalar::Bytes,
    Scalar::Quantity,
    Scalar::IntOrString,
    Scalar::Time,
    Scalar::MicroTime,
    Scalar::Duration,
];

pub(super) fn inflate(bytes: &[u8]) -> Result<Vec<u8>, TableError> {
    let mut out = Vec::with_capacity(bytes.len() * 5);
    flate2::read::ZlibDecoder::new(bytes)
        .read_to_end(&mut out)
        .map_err(|_| TableError::Inflate)?;
    Ok(out)
}

pub(super) fn read(bytes: &[u8]) -> Result<Schema, TableError> {
    let bytes = inflate(bytes)?;
    let mut input = Input { rest: &bytes };
    let count = input.count()?;
    let strings: Vec<&str> = (0..count).map(|_| input.text()).collect::<Result<_, _>>()?;
    let strings = Strings(&strings);
    let mut schema = Schema::default();
    let count = input.count()?;
    schema.types.reserve_exact(count);
    for _ in 0..count {
        let (ty, union) = read_type(&mut input, &strings, count)?;
        let id = schema.add(ty);
        if let Some(union) = union {
            schema.unions.insert(id, union);
        }
    }
    for _ in 0..input.count()? {
        let group = strings.get(input.number()?)?;
        let version = strings.get(input.number()?)?;
        let kind = strings.get(input.number()?)?;
        let id = input.type_id(count)?;
        if group == "*" {
            schema.everywhere.insert(kind.into(), id);
        } else {
            schema
                .kinds
                .insert(GroupVersionKind::new(group, version, kind), id);
        }
    }
    Ok(schema)
}

fn read_type(
    input: &mut Input<'_>,
    strings: &Strings<'_>,
    types: usize,
) -> Result<(Type, Option<Union>), TableError> {
    let form = input.number()?;
    let ty = match form {
        16 => Type::Any,
        17 => {
            let name = strings.get(input.number()?)?;
            let union = match name.rsplit('.').next() {
                Some("JSONSchemaPropsOrArray") => Union::SchemaOrArray,
                Some("JSONSchemaPropsOrBool") => Union::SchemaOrBool,
                Some("JSONSchemaPropsOrStringArray") => Union::SchemaOrStrings,
                _ => return Err(TableError::Malformed),
            };
            return Ok((Type::Any, Some(union)));
        }
        18 => Type::Map(input.type_id(types)?),
        19 => {
            let item = input.type_id(types)?;
            let kind = match input.count()? {
                0 => ListKind::Atomic,
                1 => ListKind::Set,
                n => ListKind::Map(
                    (1..n)
                        .map(|_| Ok(strings.get(input.number()?)?.into()))
                        .collect::<Result<_, TableError>>()?,
                ),
            };
            let patch_merge_key = match input.number()? {
                0 => None,
                n => Some(strings.get(n - 1)?.into()),
            };
            Type::List(List {
                item,
                kind,
                patch_merge_key,
            })
        }
        20 => {
            let name = strings.get(input.number()?)?.into();
            let atomic = input.number()? != 0;
            let count = input.count()?;
            let fields = (0..count)
                .map(|_| read_field(input, strings, types))
                .collect::<Result<_, _>>()?;
            Type::Struct(Struct {
                name,
                fields,
                atomic,
                preserve_unknown: false,
            })
        }
        n => Type::Scalar(
            *usize::try_from(n)
                .ok()
                .and_then(|n| SCALARS.get(n))
                .ok_or(TableError::Malformed)?,
        ),
    };
    Ok((ty, None))
}

fn read_field(
    input: &mut Input<'_>,
    strings: &Strings<'_>,
    types: usize,
) -> Result<Field, TableError> {
    let name = strings.get(input.number()?)?.into();
    let ty = input.type_id(types)?;
    let flags = input.number()?;
    let flag = |bit: u32| flags & (1 << bit) != 0;
    let number = input.small()?;
    let mut inline = [0; 2];
    if flag(6) {
        for outer in &mut inline {
            *outer = u8::try_from(input.number()?).map_err(|_| TableError::Malformed)?;
        }
    }
    let default = if flag(5) {
        let text = strings.get(input.number()?)?;
        Some(serde_json::from_str(text).map_err(|_| TableError::Malformed)?)
    } else {
        None
    };
    Ok(Field {
        name,
        ty,
        required: flag(0),
        number,
        inline,
        omit_zero: flag(1),
        atomic: flag(2),
        default,
        patch: PatchStrategy {
            merge: flag(3),
            retain_keys: flag(4),
        },
        values: Box::default(),
    })
}

struct Strings<'a>(&'a [&'a str]);

impl<'a> Strings<'a> {
    fn get(&self, index: u64) -> Result<&'a str, TableError> {
        usize::try_from(index)
            .ok()
            .and_then(|i| self.0.get(i))
            .copied()
            .ok_or(TableError::Malformed)
    }
}

/// What is left to read.
pub(super) struct Input<'a> {
    pub(super) rest: &'a [u8],
}

impl<'a> Input<'a> {
    pub(super) fn number(&mut self) -> Result<u64, TableError> {
        let mut n = 0;
        for shift in (0..63).step_by(7) {
            let (b, rest) = self.rest.split_first().ok_or(TableError::Malformed)?;
            self.rest = rest;
            n |= u64::from(b & 0x7f) << shift;
            if b & 0x80 == 0 {
                return Ok(n);
            }
        }
        Err(TableError::Malformed)
    }

    /// A count of things that take at least a byte each.
    pub(super) fn count(&mut self) -> Result<usize, TableError> {
        let n = usize::try_from(self.number()?).map_err(|_| TableError::Malformed)?;
        if n > self.rest.len() {
            return Err(TableError::Malformed);
        }
        Ok(n)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, TableError> {
        let len = self.count()?;
        let (text, rest) = self.rest.split_at(len);
        self.rest = rest;
        std::str::from_utf8(text).map_err(|_| TableError::Malformed)
    }

    fn small(&mut self) -> Result<u32, TableError> {
        u32::try_from(self.number()?).map_err(|_| TableError::Malformed)
    }

    fn type_id(&mut self, types: usize) -> Result<TypeId, TableError> {
        let id = self.small()?;
        if id as usize >= types {
            return Err(TableError::Malformed);
        }
        Ok(TypeId(id))
    }
}

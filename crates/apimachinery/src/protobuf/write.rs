//! From JSON to messages: a serde seed that the schema drives. Text is turned into a message
//! while it is parsed, with no tree of values between.
//!
//! Fields come in the order of the text; decoders take them in any. A message's length, which
//! comes before it, is known after it: one byte is kept free, and a message that needs more is
//! moved.

use crate::schema::{Field, Scalar, Schema, Struct, Type, TypeId, Union};
use base64::Engine as _;
use jiff::{SignedDuration, Timestamp};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// Name of the type that the unions of schemas are of.
const PROPS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// Appends the fields of a struct's message. What the type does not have is left out, and so
/// is what is of another type than the schema says.
///
/// # Errors
/// When the input is malformed.
pub(super) fn message<'de, D: Deserializer<'de>>(
    schema: &Schema,
    ty: TypeId,
    input: D,
    out: &mut Vec<u8>,
) -> Result<(), D::Error> {
    Put {
        schema,
        out,
        number: 0,
        ty,
        place: Place::Field,
    }
    .deserialize(input)
}

/// Where a value is, which says what stands for a list and for null.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A struct's field: lists repeat it, null leaves it out.
    Field,
    /// A list's item or a map's value: a list is in a message of its own.
    Item,
}

/// Appends one value as field `number`; the message alone when that is 0.
struct Put<'a> {
    schema: &'a Schema,
    out: &'a mut Vec<u8>,
    number: u32,
    ty: TypeId,
    place: Place,
}

impl<'de> DeserializeSeed<'de> for Put<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        if !matches!(self.schema.get(self.ty), Type::Any) || self.union().is_some() {
            return input.deserialize_any(self);
        }
        // Any JSON: its text as field 1 of a message.
        let raw = <Box<RawValue> as serde::Deserialize>::deserialize(input)?;
        if raw.get() != "null" || self.place == Place::Item {
            nested(self.out, self.number, |out| text(out, 1, raw.get()));
        }
        Ok(())
    }
}

impl Put<'_> {
    fn scalar(&self) -> Option<Scalar> {
        match self.schema.get(self.ty) {
            Type::Scalar(kind) => Some(*kind),
            _ => None,
        }
    }

    fn union(&self) -> Option<Union> {
        match self.schema.get(self.ty) {
            Type::Any => self.schema.union(self.ty),
            _ => None,
        }
    }

    fn int(self, n: i64) {
        match self.scalar() {
            Some(Scalar::Int32 | Scalar::Int64) => varint_field(self.out, self.number, n as u64),
            Some(Scalar::Double) => double(self.out, self.number, n as f64),
            Some(Scalar::IntOrString) => nested(self.out, self.number, |out| {
                varint_field(out, 1, 0);
                varint_field(out, 2, n as u64);
            }),
            Some(Scalar::Quantity) => {
                nested(self.out, self.number, |out| text(out, 1, &n.to_string()));
            }
            _ => {}
        }
    }

    /// The fields of a struct. Those that protobuf has in messages of their own are gathered
    /// beside it until it ends.
    fn fields<'de, A: MapAccess<'de>>(self, def: &Struct, map: &mut A) -> Result<(), A::Error> {
        let mut inline: Vec<([u8; 2], Vec<u8>)> = Vec::new();
        let mut at = 0;
        while let Some(field) = map.next_key_seed(Key(&def.fields, &mut at))? {
            let Some(field) = field.filter(|f| f.number != 0) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let out = match field.inline {
                [0, _] => &mut *self.out,
                within => {
                    let at = inline.iter().position(|(w, _)| *w == within);
                    let at = at.unwrap_or_else(|| {
                        inline.push((within, Vec::new()));
                        inline.len() - 1
                    });
                    &mut inline[at].1
                }
            };
            map.next_value_seed(Put {
                schema: self.schema,
                out,
                number: field.number,
                ty: field.ty,
                place: Place::Field,
            })?;
        }
        inline.sort_unstable();
        for same in inline.chunk_by(|a, b| a.0[0] == b.0[0]) {
            nested(self.out, same[0].0[0].into(), |out| {
                for ([_, within], content) in same {
                    match within {
                        0 => out.extend_from_slice(content),
                        n => bytes(out, (*n).into(), content),
                    }
                }
            });
        }
        Ok(())
    }

    fn entries<'de, A: MapAccess<'de>>(self, ty: TypeId, map: &mut A) -> Result<(), A::Error> {
        loop {
            let start = open(self.out, self.number);
            if map.next_key_seed(Text(self.out, 1))?.is_none() {
                // There was no entry to begin.
                self.out.truncate(start.tag);
                return Ok(());
            }
            map.next_value_seed(Put {
                schema: self.schema,
                out: self.out,
                number: 2,
                ty,
                place: Place::Item,
            })?;
            close(self.out, &start);
        }
    }

    fn items<'de, A: SeqAccess<'de>>(
        &mut self,
        number: u32,
        ty: TypeId,
        seq: &mut A,
    ) -> Result<(), A::Error> {
        loop {
            let item = Put {
                schema: self.schema,
                out: &mut *self.out,
                number,
                ty,
                place: Place::Item,
            };
            if seq.next_element_seed(item)?.is_none() {
                return Ok(());
            }
        }
    }
}

impl<'de> Visitor<'de> for Put<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        if self.place == Place::Item && matches!(self.schema.get(self.ty), Type::Struct(_)) {
            bytes(self.out, self.number, b"");
        }
        Ok(())
    }

    fn visit_bool<E: Error>(self, v: bool) -> Result<(), E> {
        match (self.scalar(), self.union()) {
            (Some(Scalar::Bool), _) => varint_field(self.out, self.number, u64::from(v)),
            (None, Some(Union::SchemaOrBool)) => nested(self.out, self.number, |out| {
                varint_field(out, 1, u64::from(v));
            }),
            _ => {}
        }
        Ok(())
    }

    fn visit_i64<E: Error>(self, v: i64) -> Result<(), E> {
        self.int(v);
        Ok(())
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<(), E> {
        match i64::try_from(v) {
            Ok(v) => self.int(v),
            Err(_) => return self.visit_f64(v as f64),
        }
        Ok(())
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<(), E> {
        match self.scalar() {
            Some(Scalar::Double) => double(self.out, self.number, v),
            Some(Scalar::Quantity) => {
                nested(self.out, self.number, |out| text(out, 1, &v.to_string()));
            }
            _ => {}
        }
        Ok(())
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<(), E> {
        let (out, number) = (self.out, self.number);
        match self.schema.get(self.ty) {
            Type::Scalar(Scalar::String) => text(out, number, v),
            Type::Scalar(Scalar::Bytes) => {
                let start = open(out, number);
                match base64::engine::general_purpose::STANDARD.decode_vec(v, out) {
                    Ok(()) => close(out, &start),
                    Err(_) => out.truncate(start.tag),
                }
            }
            Type::Scalar(Scalar::Quantity) => nested(out, number, |out| text(out, 1, v)),
            Type::Scalar(Scalar::IntOrString) => nested(out, number, |out| {
                varint_field(out, 1, 1);
                text(out, 3, v);
            }),
            Type::Scalar(Scalar::Time | Scalar::MicroTime) => {
                if let Ok(t) = v.parse::<Timestamp>() {
                    time(out, number, t);
                }
            }
            Type::Scalar(Scalar::Duration) => {
                let nanos = v.parse::<SignedDuration>().map(|d| d.as_nanos());
                if let Some(nanos) = nanos.ok().and_then(|n| i64::try_from(n).ok()) {
                    nested(out, number, |out| varint_field(out, 1, nanos as u64));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        match (self.schema.get(self.ty), self.union()) {
            (Type::Struct(def), _) if self.number == 0 => self.fields(def, &mut map),
            (Type::Struct(def), _) => {
                let start = open(self.out, self.number);
                Put {
                    out: &mut *self.out,
                    ..self
                }
                .fields(def, &mut map)?;
                close(self.out, &start);
                Ok(())
            }
            (Type::Map(ty), _) => self.entries(*ty, &mut map),
            (_, Some(union)) => {
                let start = open(self.out, self.number);
                let number = if union == Union::SchemaOrBool {
                    varint_field(self.out, 1, 1);
                    2
                } else {
                    1
                };
                if let Some(ty) = self.schema.by_name(PROPS) {
                    Put {
                        schema: self.schema,
                        out: &mut *self.out,
                        number,
                        ty,
                        place: Place::Field,
                    }
                    .visit_map(map)?;
                }
                close(self.out, &start);
                Ok(())
            }
            _ => IgnoredAny.visit_map(map).map(|_| ()),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        match (self.schema.get(self.ty), self.union()) {
            (Type::List(list), _) if self.place == Place::Field => {
                self.items(self.number, list.item, &mut seq)
            }
            (Type::List(list), _) => {
                let start = open(self.out, self.number);
                self.items(1, list.item, &mut seq)?;
                close(self.out, &start);
                Ok(())
            }
            (_, Some(union)) => {
                let start = open(self.out, self.number);
                match (union, self.schema.by_name(PROPS)) {
                    (Union::SchemaOrStrings, _) => {
                        while seq.next_element_seed(Text(&mut *self.out, 2))?.is_some() {}
                    }
                    (_, Some(ty)) => self.items(2, ty, &mut seq)?,
                    (_, None) => {}
                }
                close(self.out, &start);
                Ok(())
            }
            _ => IgnoredAny.visit_seq(seq).map(|_| ()),
        }
    }
}

/// Reads a key as the field that it names. Keys mostly come in the order of the fields: it is
/// looked for from after the last one on, by its length first.
struct Key<'a>(&'a [Field], &'a mut usize);

impl<'de, 'a> DeserializeSeed<'de> for Key<'a> {
    type Value = Option<&'a Field>;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Self::Value, D::Error> {
        input.deserialize_str(self)
    }
}

impl<'a> Visitor<'_> for Key<'a> {
    type Value = Option<&'a Field>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        let Key(fields, at) = self;
        let (before, after) = fields.split_at(*at);
        let mut turned = after.iter().chain(before);
        let Some(found) = turned.position(|f| f.name.len() == name.len() && *f.name == *name)
        else {
            return Ok(None);
        };
        let index = (*at + found) % fields.len();
        *at = index + 1;
        Ok(fields.get(index))
    }
}

/// Appends a string as a field.
struct Text<'a>(&'a mut Vec<u8>, u32);

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        input.deserialize_str(self)
    }
}

impl Visitor<'_> for Text<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<(), E> {
        text(self.0, self.1, v);
        Ok(())
    }
}

/// A message that is being written.
struct Open {
    /// Where its tag starts.
    tag: usize,
    /// Where its content starts, after the byte for its length.
    content: usize,
}

fn open(out: &mut Vec<u8>, number: u32) -> Open {
    let tag = out.len();
    varint(out, u64::from(number) << 3 | 2);
    out.push(0);
    Open {
        tag,
        content: out.len(),
    }
}

fn close(out: &mut Vec<u8>, start: &Open) {
    let end = out.len();
    let len = end - start.content;
    if len > 0x7f {
        let more = (len.ilog2() / 7) as usize;
        out.resize(end + more, 0);
        out.copy_within(start.content..end, start.content + more);
    }
    let mut rest = len;
    for byte in &mut out[start.content - 1..] {
        *byte = rest as u8 & 0x7f;
        rest >>= 7;
        if rest == 0 {
            break;
        }
        *byte |= 0x80;
    }
}

/// Appends a message that `write` fills as a field.
pub(super) fn nested<T>(
    out: &mut Vec<u8>,
    number: u32,
    write: impl FnOnce(&mut Vec<u8>) -> T,
) -> T {
    let start = open(out, number);
    let done = write(out);
    close(out, &start);
    done
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n > 0x7f {
        out.push((n as u8 & 0x7f) | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

pub(crate) fn varint_field(out: &mut Vec<u8>, number: u32, n: u64) {
    varint(out, u64::from(number) << 3);
    varint(out, n);
}

pub(crate) fn double(out: &mut Vec<u8>, number: u32, n: f64) {
    varint(out, u64::from(number) << 3 | 1);
    out.extend_from_slice(&n.to_bits().to_le_bytes());
}

/// Seconds since 1970 and the nanoseconds after them, which are never negative.
fn time(out: &mut Vec<u8>, number: u32, t: Timestamp) {
    let (mut seconds, mut nanos) = (t.as_second(), t.subsec_nanosecond());
    if nanos < 0 {
        seconds -= 1;
        nanos += 1_000_000_000;
    }
    nested(out, number, |out| {
        varint_field(out, 1, seconds as u64);
        varint_field(out, 2, nanos as u64);
    });
}

pub(crate) fn bytes(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    varint(out, u64::from(number) << 3 | 2);
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

pub(crate) fn text(out: &mut Vec<u8>, number: u32, content: &str) {
    bytes(out, number, content.as_bytes());
}

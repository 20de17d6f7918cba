//! From messages to values.

use super::DecodeError;
use super::wire::{Input, Payload, WireError};
use crate::decode::{DEPTH_MAX, go_duration, micro_time, read_any, time};
use crate::schema::{Field, Scalar, Schema, Struct, Type, TypeId, Union};
use base64::Engine as _;
use jiff::Timestamp;
use serde_json::{Map, Number, Value};

pub(super) struct Decoder<'s> {
    pub(super) schema: &'s Schema,
}

/// An error and the names of the fields around it, innermost first.
pub(super) struct Failure {
    path: Vec<String>,
    error: WireError,
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        Self {
            path: Vec::new(),
            error,
        }
    }
}

impl Failure {
    fn within(mut self, name: &str) -> Self {
        self.path.push(name.to_owned());
        self
    }

    pub(super) fn into_error(mut self) -> DecodeError {
        if self.path.is_empty() {
            self.path.push("object".to_owned());
        }
        self.path.reverse();
        DecodeError::Wire {
            field: self.path.join("."),
            error: self.error,
        }
    }
}

type Read<T> = Result<T, Failure>;

impl Decoder<'_> {
    /// One value that is not repeated.
    pub(super) fn value(&self, ty: TypeId, payload: Payload<'_>, depth: usize) -> Read<Value> {
        if depth > DEPTH_MAX {
            return Err(WireError::Depth.into());
        }
        match self.schema.get(ty) {
            Type::Scalar(s) => Ok(scalar(*s, payload)?),
            Type::Struct(def) => {
                let mut out = Map::new();
                self.fields(def, [0; 2], payload.bytes()?, &mut out, depth)?;
                Ok(Value::Object(out))
            }
            // A list where only one value fits (a map's value) is wrapped in a message.
            Type::List(list) => {
                let mut items = Vec::new();
                let mut input = Input::new(payload.bytes()?);
                while let Some((number, payload)) = input.next()? {
                    if number == 1 {
                        self.item(list.item, payload, &mut items, depth + 1)?;
                    }
                }
                Ok(Value::Array(items))
            }
            Type::Map(_) => Err(WireError::WireType(2).into()),
            Type::Any => match self.schema.union(ty) {
                Some(union) => self.union(union, payload.bytes()?, depth),
                None => self.raw(payload.bytes()?),
            },
        }
    }

    /// A message with JSON text as its field 1.
    fn raw(&self, bytes: &[u8]) -> Read<Value> {
        let mut raw: &[u8] = &[];
        let mut input = Input::new(bytes);
        while let Some((number, payload)) = input.next()? {
            if number == 1 {
                raw = payload.bytes()?;
            }
        }
        if raw.is_empty() {
            return Ok(Value::Null);
        }
        let mut input = serde_json::Deserializer::from_slice(raw);
        let value = read_any(&mut input).map_err(WireError::Json)?;
        input.end().map_err(|e| WireError::Json(e.to_string()))?;
        Ok(value)
    }

    fn union(&self, union: Union, bytes: &[u8], depth: usize) -> Read<Value> {
        let props = self
            .schema
            .by_name("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
            .ok_or(WireError::Tag)?;
        let schema_number = if union == Union::SchemaOrBool { 2 } else { 1 };
        let (mut one, mut many) = (None, Vec::new());
        let mut input = Input::new(bytes);
        while let Some((number, payload)) = input.next()? {
            match (union, number) {
                (_, n) if n == schema_number => {
                    one = Some(self.value(props, payload, depth + 1)?);
                }
                (Union::SchemaOrBool, 1) => {
                    let allows = Value::Bool(payload.varint()? != 0);
                    one = one.or(Some(allows));
                }
                (Union::SchemaOrArray, 2) => many.push(self.value(props, payload, depth + 1)?),
                (Union::SchemaOrStrings, 2) => many.push(payload.text()?.into()),
                _ => {}
            }
        }
        Ok(one.unwrap_or(match union {
            Union::SchemaOrBool => Value::Bool(false),
            _ => Value::Array(many),
        }))
    }

    /// The fields of a message. Where JSON has a message inline, its fields join `out`:
    /// `within` are the numbers of such messages that lead here.
    fn fields(
        &self,
        def: &Struct,
        within: [u8; 2],
        bytes: &[u8],
        out: &mut Map<String, Value>,
        depth: usize,
    ) -> Read<()> {
        let level = within.iter().take_while(|n| **n != 0).count();
        let mut input = Input::new(bytes);
        while let Some((number, payload)) = input.next()? {
            let own = |f: &&Field| f.number == number && f.inline == within;
            if let Some(field) = def.fields.iter().find(own) {
                self.field(field, payload, out, depth)
                    .map_err(|e| e.within(&field.name))?;
                continue;
            }
            let Some(slot) = u8::try_from(number).ok().filter(|_| level < 2) else {
                continue;
            };
            let mut deeper = within;
            deeper[level] = slot;
            if def
                .fields
                .iter()
                .any(|f| f.inline[..=level] == deeper[..=level])
            {
                self.fields(def, deeper, payload.bytes()?, out, depth)?;
            }
        }
        Ok(())
    }

    fn field(
        &self,
        field: &Field,
        payload: Payload<'_>,
        out: &mut Map<String, Value>,
        depth: usize,
    ) -> Read<()> {
        let name = &*field.name;
        match self.schema.get(field.ty) {
            Type::List(list) => {
                let items = out.entry(name).or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(items) = items {
                    self.item(list.item, payload, items, depth + 1)?;
                }
            }
            Type::Map(value) => {
                let (key, value) = self.entry(*value, payload, depth + 1)?;
                let entries = out.entry(name).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(entries) = entries {
                    entries.insert(key, value);
                }
            }
            // A message may come in parts; they add up.
            Type::Struct(def) if out.contains_key(name) => {
                if let Some(Value::Object(there)) = out.get_mut(name) {
                    self.fields(def, [0; 2], payload.bytes()?, there, depth + 1)?;
                }
            }
            _ => {
                let value = self.value(field.ty, payload, depth + 1)?;
                let unset = value.is_null() || field.omit_zero && is_zero(&value);
                if !unset {
                    out.insert(name.to_owned(), value);
                }
            }
        }
        Ok(())
    }

    fn entry(&self, ty: TypeId, payload: Payload<'_>, depth: usize) -> Read<(String, Value)> {
        let (mut key, mut value) = ("", None);
        let mut input = Input::new(payload.bytes()?);
        while let Some((number, payload)) = input.next()? {
            match number {
                1 => key = payload.text()?,
                2 => value = Some(self.value(ty, payload, depth).map_err(|e| e.within(key))?),
                _ => {}
            }
        }
        let value = match value {
            Some(value) => value,
            None => match self.schema.get(ty) {
                Type::Scalar(Scalar::Bool) => Value::Bool(false),
                Type::Scalar(Scalar::Int32 | Scalar::Int64) => 0.into(),
                Type::Scalar(Scalar::Double) => 0.0.into(),
                _ => self.value(ty, Payload::Bytes(&[]), depth)?,
            },
        };
        Ok((key.to_owned(), value))
    }

    fn item(
        &self,
        ty: TypeId,
        payload: Payload<'_>,
        items: &mut Vec<Value>,
        depth: usize,
    ) -> Read<()> {
        let packed = match (self.schema.get(ty), payload) {
            (
                Type::Scalar(s @ (Scalar::Bool | Scalar::Int32 | Scalar::Int64 | Scalar::Double)),
                Payload::Bytes(bytes),
            ) => Some((*s, Input::new(bytes))),
            _ => None,
        };
        let Some((kind, mut input)) = packed else {
            items.push(self.value(ty, payload, depth)?);
            return Ok(());
        };
        while !input.is_empty() {
            let payload = match kind {
                Scalar::Double => Payload::Fixed64(input.fixed64()?),
                _ => Payload::Varint(input.varint()?),
            };
            items.push(scalar(kind, payload)?);
        }
        Ok(())
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
    }
}

fn scalar(kind: Scalar, payload: Payload<'_>) -> Result<Value, WireError> {
    Ok(match kind {
        Scalar::String => payload.text()?.into(),
        Scalar::Bool => (payload.varint()? != 0).into(),
        // Negative numbers are sign-extended to 64 bits.
        Scalar::Int32 => (payload.varint()? as i32).into(),
        Scalar::Int64 => (payload.varint()? as i64).into(),
        Scalar::Double => {
            let n = f64::from_bits(payload.fixed64()?);
            // Go writes whole numbers without a point.
            if n.fract() == 0.0 && n.abs() < WHOLE_MAX {
                (n as i64).into()
            } else {
                Number::from_f64(n).map_or(Value::Null, Value::Number)
            }
        }
        Scalar::Bytes => base64::engine::general_purpose::STANDARD
            .encode(payload.bytes()?)
            .into(),
        Scalar::Quantity => {
            let mut text = "";
            let mut input = Input::new(payload.bytes()?);
            while let Some((number, payload)) = input.next()? {
                if number == 1 {
                    text = payload.text()?;
                }
            }
            if text.is_empty() { "0" } else { text }.into()
        }
        Scalar::IntOrString => {
            let (mut is_text, mut int, mut text) = (false, 0, "");
            let mut input = Input::new(payload.bytes()?);
            while let Some((number, payload)) = input.next()? {
                match number {
                    1 => is_text = payload.varint()? == 1,
                    2 => int = payload.varint()? as i32,
                    3 => text = payload.text()?,
                    _ => {}
                }
            }
            if is_text { text.into() } else { int.into() }
        }
        Scalar::Time => timestamp(payload.bytes()?)?.map_or(Value::Null, |t| time(t).into()),
        Scalar::MicroTime => {
            timestamp(payload.bytes()?)?.map_or(Value::Null, |t| micro_time(t).into())
        }
        Scalar::Duration => {
            let mut nanos = 0;
            let mut input = Input::new(payload.bytes()?);
            while let Some((number, payload)) = input.next()? {
                if number == 1 {
                    nanos = payload.varint()? as i64;
                }
            }
            go_duration(nanos).into()
        }
    })
}

/// Up to here a float tells all whole numbers apart.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

/// Seconds of the first year that RFC 3339 can write.
const YEAR_0: i64 = -62_167_219_200;

/// An empty message is no time.
fn timestamp(bytes: &[u8]) -> Result<Option<Timestamp>, WireError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let (mut seconds, mut nanos) = (0, 0);
    let mut input = Input::new(bytes);
    while let Some((number, payload)) = input.next()? {
        match number {
            1 => seconds = payload.varint()? as i64,
            2 => nanos = payload.varint()? as i32,
            _ => {}
        }
    }
    if seconds < YEAR_0 {
        return Err(WireError::Time);
    }
    Timestamp::new(seconds, nanos)
        .map(Some)
        .map_err(|_| WireError::Time)
}

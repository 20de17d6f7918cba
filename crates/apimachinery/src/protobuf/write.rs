//! From values to messages.

use crate::schema::{Scalar, Schema, Struct, Type, TypeId, Union};
use base64::Engine as _;
use jiff::Timestamp;
use serde_json::Value;

pub(super) struct Encoder<'s> {
    pub(super) schema: &'s Schema,
}

impl Encoder<'_> {
    /// The fields of a struct's message.
    pub(super) fn message(&self, out: &mut Vec<u8>, ty: TypeId, value: &Value) {
        if let Type::Struct(def) = self.schema.get(ty) {
            self.fields(out, def, [0; 2], value);
        }
    }

    fn fields(&self, out: &mut Vec<u8>, def: &Struct, within: [u8; 2], value: &Value) {
        let level = within.iter().take_while(|n| **n != 0).count();
        let mut inline = Vec::new();
        let mut own = Vec::new();
        for field in &def.fields {
            if field.number == 0 || value.get(&*field.name).is_none() {
                continue;
            }
            if field.inline == within {
                own.push(field);
            } else if level < 2
                && field.inline[..level] == within[..level]
                && !inline.contains(&field.inline[level])
            {
                inline.push(field.inline[level]);
            }
        }
        own.sort_unstable_by_key(|f| f.number);
        for field in own {
            self.field(out, field.number, field.ty, &value[&*field.name]);
        }
        for number in inline {
            let mut deeper = within;
            deeper[level] = number;
            let mut message = Vec::new();
            self.fields(&mut message, def, deeper, value);
            bytes(out, number.into(), &message);
        }
    }

    fn field(&self, out: &mut Vec<u8>, number: u32, ty: TypeId, value: &Value) {
        match (self.schema.get(ty), value) {
            (Type::List(list), Value::Array(items)) => {
                for item in items {
                    self.value(out, number, list.item, item);
                }
            }
            (Type::Map(ty), Value::Object(entries)) => {
                for (key, value) in entries {
                    let mut entry = Vec::new();
                    text(&mut entry, 1, key);
                    self.value(&mut entry, 2, *ty, value);
                    bytes(out, number, &entry);
                }
            }
            _ => self.value(out, number, ty, value),
        }
    }

    /// One value that is not repeated.
    fn value(&self, out: &mut Vec<u8>, number: u32, ty: TypeId, value: &Value) {
        let mut message = Vec::new();
        match (self.schema.get(ty), value) {
            (Type::Scalar(kind), value) => return scalar(out, number, *kind, value),
            (Type::Struct(def), Value::Object(_)) => {
                self.fields(&mut message, def, [0; 2], value);
            }
            (Type::List(list), Value::Array(items)) => {
                for item in items {
                    self.value(&mut message, 1, list.item, item);
                }
            }
            (Type::Any, value) => match self.schema.union(ty) {
                Some(union) => self.union(&mut message, union, value),
                None => text(&mut message, 1, &value.to_string()),
            },
            _ => return,
        }
        bytes(out, number, &message);
    }

    fn union(&self, out: &mut Vec<u8>, union: Union, value: &Value) {
        let Some(props) = self
            .schema
            .by_name("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
        else {
            return;
        };
        match value {
            Value::Bool(allows) => varint_field(out, 1, u64::from(*allows)),
            Value::Object(_) if union == Union::SchemaOrBool => {
                varint_field(out, 1, 1);
                self.value(out, 2, props, value);
            }
            Value::Object(_) => self.value(out, 1, props, value),
            Value::Array(items) => {
                for item in items {
                    match item {
                        Value::String(s) => text(out, 2, s),
                        item => self.value(out, 2, props, item),
                    }
                }
            }
            _ => {}
        }
    }
}

fn scalar(out: &mut Vec<u8>, number: u32, kind: Scalar, value: &Value) {
    match (kind, value) {
        (Scalar::String, Value::String(s)) => text(out, number, s),
        (Scalar::Bool, Value::Bool(b)) => varint_field(out, number, u64::from(*b)),
        (Scalar::Int32 | Scalar::Int64, Value::Number(n)) => {
            if let Some(n) = n.as_i64() {
                varint_field(out, number, n as u64);
            }
        }
        (Scalar::Double, Value::Number(n)) => {
            if let Some(n) = n.as_f64() {
                varint(out, u64::from(number) << 3 | 1);
                out.extend_from_slice(&n.to_bits().to_le_bytes());
            }
        }
        (Scalar::Bytes, Value::String(s)) => {
            if let Ok(b) = base64::engine::general_purpose::STANDARD.decode(s) {
                bytes(out, number, &b);
            }
        }
        (Scalar::Quantity, Value::String(s)) => {
            let mut message = Vec::new();
            text(&mut message, 1, s);
            bytes(out, number, &message);
        }
        (Scalar::IntOrString, value) => {
            let mut message = Vec::new();
            varint_field(&mut message, 1, u64::from(value.is_string()));
            varint_field(&mut message, 2, value.as_i64().unwrap_or(0) as u64);
            text(&mut message, 3, value.as_str().unwrap_or(""));
            bytes(out, number, &message);
        }
        (Scalar::Time | Scalar::MicroTime, Value::String(s)) => {
            if let Ok(t) = s.parse::<Timestamp>() {
                let mut message = Vec::new();
                varint_field(&mut message, 1, t.as_second() as u64);
                varint_field(&mut message, 2, t.subsec_nanosecond() as u64);
                bytes(out, number, &message);
            }
        }
        // No type of a served group has one.
        _ => {}
    }
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n > 0x7f {
        out.push((n as u8 & 0x7f) | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn varint_field(out: &mut Vec<u8>, number: u32, n: u64) {
    varint(out, u64::from(number) << 3);
    varint(out, n);
}

pub(super) fn bytes(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    varint(out, u64::from(number) << 3 | 2);
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

pub(super) fn text(out: &mut Vec<u8>, number: u32, content: &str) {
    bytes(out, number, content.as_bytes());
}

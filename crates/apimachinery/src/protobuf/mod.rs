//! Kubernetes' protobuf encoding, driven by the schema: `k8s\0`, then a `runtime.Unknown`
//! that names the kind and holds the object's message.
//!
//! Bodies of `kubectl create` and of all Go clients have this form. [`decode`] gives what
//! Go's JSON encoder would give of the same object: its messages carry zero values that JSON
//! leaves out. [`encode`] is the reverse; it leaves zero values out. Answers are put together
//! of [`write_text`], [`enclose`] and [`frame`], from the JSON that is stored.

mod read;
pub(crate) mod wire;
pub(crate) mod write;

pub use wire::WireError;

use crate::schema::{Schema, TypeId};
use serde_json::Value;
use wire::{Input, Payload};

/// First bytes of every body.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// Why bytes are no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The magic bytes are missing.
    #[error("provided data does not appear to be a protobuf message, expected prefix {MAGIC:?}")]
    NoMagic,
    /// The content has an encoding or type that is not served.
    #[error("unsupported protobuf content {0:?}")]
    Content(String),
    /// The wire format is broken.
    #[error("proto: {field}: {error}")]
    Wire {
        /// Path of the message or field.
        field: String,
        /// What is wrong.
        error: WireError,
    },
}

/// `runtime.Unknown`: what is around an object's message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// `typeMeta.apiVersion`, may be empty.
    pub api_version: &'a str,
    /// `typeMeta.kind`, may be empty.
    pub kind: &'a str,
    /// The object's message.
    pub raw: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Opens a body.
    ///
    /// # Errors
    /// When the bytes are no envelope or its content is compressed or no protobuf.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let body = bytes.strip_prefix(MAGIC).ok_or(DecodeError::NoMagic)?;
        let mut out = Self::default();
        let mut content = ("", "");
        let mut read = || -> Result<(), WireError> {
            let mut input = Input::new(body);
            while let Some((number, payload)) = input.next()? {
                match number {
                    1 => {
                        let mut meta = Input::new(payload.bytes()?);
                        while let Some((number, payload)) = meta.next()? {
                            match number {
                                1 => out.api_version = payload.text()?,
                                2 => out.kind = payload.text()?,
                                _ => {}
                            }
                        }
                    }
                    2 => out.raw = payload.bytes()?,
                    3 => content.0 = payload.text()?,
                    4 => content.1 = payload.text()?,
                    _ => {}
                }
            }
            Ok(())
        };
        read().map_err(|error| DecodeError::Wire {
            field: "Unknown".to_owned(),
            error,
        })?;
        let protobuf = ["", "application/vnd.kubernetes.protobuf"].contains(&content.1);
        if !content.0.is_empty() || !protobuf {
            return Err(DecodeError::Content(format!("{}{}", content.0, content.1)));
        }
        Ok(out)
    }
}

/// Decodes a body as an object of type `ty`; `apiVersion` and `kind` are the envelope's.
///
/// # Errors
/// When the bytes break the wire format or a field's type. Unknown fields are skipped.
pub fn decode(schema: &Schema, ty: TypeId, bytes: &[u8]) -> Result<Value, DecodeError> {
    let envelope = Envelope::parse(bytes)?;
    let mut value = decode_message(schema, ty, envelope.raw)?;
    if let (Some(object), Some(def)) = (value.as_object_mut(), schema.get_struct(ty)) {
        for (key, text) in [
            ("apiVersion", envelope.api_version),
            ("kind", envelope.kind),
        ] {
            if !text.is_empty() && def.field(key).is_some() {
                object.insert(key.to_owned(), text.into());
            }
        }
    }
    Ok(value)
}

/// Decodes an object's message without an envelope.
///
/// # Errors
/// As [`decode`].
pub fn decode_message(schema: &Schema, ty: TypeId, bytes: &[u8]) -> Result<Value, DecodeError> {
    read::Decoder { schema }
        .value(ty, Payload::Bytes(bytes), 0)
        .map_err(read::Failure::into_error)
}

/// Encodes an object with its envelope. The value must be of type `ty` (as [`decode`] and
/// [`crate::decode`] give it); what is not, is left out.
pub fn encode(schema: &Schema, ty: TypeId, value: &Value) -> Vec<u8> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or("");
    let mut out = Vec::new();
    enclose(&mut out, text("apiVersion"), text("kind"), |out| {
        write_value(schema, ty, value, out);
    });
    out
}

/// Encodes an object's message without an envelope.
pub fn encode_message(schema: &Schema, ty: TypeId, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write_value(schema, ty, value, &mut out);
    out
}

/// Appends the message of an object that is a value.
pub fn write_value(schema: &Schema, ty: TypeId, value: &Value, out: &mut Vec<u8>) {
    let done = write::message(schema, ty, value, out);
    debug_assert!(done.is_ok(), "a value is well-formed: {done:?}");
}

/// Appends the message of an object that is JSON text, as [`encode_message`] does.
///
/// # Errors
/// When the text is no JSON; nothing is appended then.
pub fn write_text(
    schema: &Schema,
    ty: TypeId,
    json: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), serde_json::Error> {
    let before = out.len();
    let mut input = serde_json::Deserializer::from_slice(json);
    let done = write::message(schema, ty, &mut input, out).and_then(|()| input.end());
    done.inspect_err(|_| out.truncate(before))
}

/// Appends an envelope around the message that `write` appends.
pub fn enclose<T>(
    out: &mut Vec<u8>,
    api_version: &str,
    kind: &str,
    write: impl FnOnce(&mut Vec<u8>) -> T,
) -> T {
    out.extend_from_slice(MAGIC);
    write::nested(out, 1, |out| {
        write::text(out, 1, api_version);
        write::text(out, 2, kind);
    });
    let done = write::nested(out, 2, write);
    write::bytes(out, 3, b"");
    write::bytes(out, 4, b"");
    done
}

/// Appends what `write` appends as field `number` of a message.
pub fn nested<T>(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    write::nested(out, number, write)
}

/// Appends an event of a watch as `stream=watch` has it: its length in four bytes, then a
/// `WatchEvent` with the object that `write` appends in its envelope.
pub fn frame<T>(out: &mut Vec<u8>, event: &str, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let start = out.len() + 4;
    out.extend_from_slice(&[0; 4]);
    write::text(out, 1, event);
    // A RawExtension, which has the object as its field 1.
    let done = write::nested(out, 2, |out| write::nested(out, 1, write));
    let len = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start - 4..start].copy_from_slice(&len.to_be_bytes());
    done
}

#[cfg(test)]
mod tests;

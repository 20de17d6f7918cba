//! From request bytes to a pruned, type-checked `Value`.
//!
//! JSON and YAML are read straight into their final form by [`reader`], driven by the
//! schema, in one pass; protobuf by [`crate::protobuf`], CBOR by [`crate::cbor`]. Defaults and
//! validation are not done here. Start with [`decode`].

mod reader;
mod text;

pub(crate) use reader::read_any;
pub(crate) use text::{go_duration, micro_time, time};

use crate::cbor;
use crate::protobuf;
use crate::schema::{Schema, TypeId};
use crate::status::Status;
use reader::Reader;
use serde::Deserialize as _;
use serde_json::Value;

/// How deep objects may nest. Upstream allows 10,000, on stacks that grow.
pub const DEPTH_MAX: usize = 120;

/// How many unknown and duplicate fields are reported; further ones are not collected.
/// As many as upstream reports.
pub const STRICT_ERRORS_MAX: usize = 100;

/// Encoding of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaType {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
    /// `application/vnd.kubernetes.protobuf`
    Protobuf,
    /// `application/cbor`
    Cbor,
}

/// What happens to unknown and duplicate fields (`fieldValidation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// Drop them silently.
    Ignore,
    /// Drop them and say so in a `Warning` header.
    #[default]
    Warn,
    /// Refuse the request.
    Strict,
}

/// A decoded body.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The object; unknown fields are pruned, `null`s are dropped and types are checked.
    /// Quantities and times are in their canonical form.
    pub value: Value,
    /// Texts for `Warning: 299` headers, such as `unknown field "spec.foo"`.
    pub warnings: Vec<String>,
}

/// The bytes' own `apiVersion` and `kind` where they carry them
/// (protobuf: from the envelope; others: the top-level fields).
///
/// # Errors
/// 400 `BadRequest` for malformed bytes.
pub fn type_meta(
    media: MediaType,
    bytes: &[u8],
) -> Result<(Option<String>, Option<String>), Status> {
    let meta = match media {
        MediaType::Json => serde_json::from_slice(bytes).map_err(|e| e.to_string()),
        MediaType::Yaml => {
            serde_saphyr::with_deserializer_from_slice_with_options(bytes, yaml_options(), |d| {
                reader::TypeMeta::deserialize(d)
            })
            .map_err(|e| e.to_string())
        }
        MediaType::Protobuf => {
            let envelope = protobuf::Envelope::parse(bytes).map_err(|e| malformed(media, &e))?;
            return Ok((not_empty(envelope.api_version), not_empty(envelope.kind)));
        }
        MediaType::Cbor => cbor::read(bytes)
            .map_err(|e| e.to_string())
            .and_then(|v| reader::TypeMeta::deserialize(v).map_err(|e| e.to_string())),
    };
    let reader::TypeMeta { api_version, kind } = meta.map_err(|e| malformed(media, &e))?;
    Ok((api_version, kind))
}

/// Decodes a body as an object of type `ty`.
///
/// # Errors
/// 400 `BadRequest` for malformed bytes, a value of a wrong type (named by path), or, when
/// `Strict`, unknown or duplicate fields: `strict decoding error: unknown field "spec.foo"`.
pub fn decode(
    schema: &Schema,
    ty: TypeId,
    media: MediaType,
    bytes: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    let reader = Reader::new(schema, validation);
    let result = match media {
        MediaType::Json => {
            let mut input = serde_json::Deserializer::from_slice(bytes);
            reader
                .read(ty, &mut input)
                .and_then(|v| input.end().map(|()| v).map_err(|e| e.to_string()))
        }
        MediaType::Yaml => yaml(bytes, |d| reader.read(ty, d)),
        MediaType::Protobuf => {
            let decoded = protobuf::decode(schema, ty, bytes)
                .map_err(|e| handled_as(schema, ty, media, bytes, &e.to_string()))?;
            return Ok(Decoded {
                value: decoded,
                warnings: Vec::new(),
            });
        }
        MediaType::Cbor => cbor::read(bytes)
            .map_err(|e| e.to_string())
            .and_then(|v| reader.read(ty, v)),
    };
    finish(reader, result).map_err(|e| handled_as(schema, ty, media, bytes, &e))
}

/// Prunes and type-checks a value that is already parsed (the result of a patch).
///
/// # Errors
/// 400 `BadRequest` as [`decode`] has it.
pub fn conform(
    schema: &Schema,
    ty: TypeId,
    value: Value,
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    let reader = Reader::new(schema, validation);
    let result = reader.read(ty, value);
    finish(reader, result).map_err(Status::bad_request)
}

/// Parses JSON, YAML or CBOR of no known type (a patch body) with the limits of [`decode`].
///
/// # Errors
/// 400 `BadRequest` for malformed bytes, and for protobuf, which needs a type.
pub fn parse(media: MediaType, bytes: &[u8]) -> Result<Value, Status> {
    let parsed = match media {
        MediaType::Json => {
            let mut input = serde_json::Deserializer::from_slice(bytes);
            read_any(&mut input).and_then(|v| input.end().map(|()| v).map_err(|e| e.to_string()))
        }
        MediaType::Yaml => yaml(bytes, |d| read_any(d)),
        MediaType::Protobuf => Err("protobuf needs a known type".to_owned()),
        MediaType::Cbor => cbor::read(bytes).map_err(|e| e.to_string()),
    };
    parsed.map_err(|e| malformed(media, &e))
}

fn finish(reader: Reader<'_>, result: Result<Value, String>) -> Result<Decoded, String> {
    let value = result?;
    let (validation, found) = reader.into_found();
    match validation {
        FieldValidation::Strict if !found.is_empty() => {
            Err(format!("strict decoding error: {}", found.join(", ")))
        }
        FieldValidation::Ignore | FieldValidation::Strict => Ok(Decoded {
            value,
            warnings: Vec::new(),
        }),
        FieldValidation::Warn => Ok(Decoded {
            value,
            warnings: found,
        }),
    }
}

fn not_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn malformed(media: MediaType, error: &dyn std::fmt::Display) -> Status {
    let format = match media {
        MediaType::Json => "json",
        MediaType::Yaml => "yaml",
        MediaType::Protobuf => "protobuf",
        MediaType::Cbor => "cbor",
    };
    Status::bad_request(format!(
        "couldn't get version/kind; {format} parse error: {error}"
    ))
}

/// The error of a body that names its kind, as upstream words it.
fn handled_as(schema: &Schema, ty: TypeId, media: MediaType, bytes: &[u8], error: &str) -> Status {
    let expected = schema.get_struct(ty).map_or("object", |s| s.short_name());
    match type_meta(media, bytes) {
        Ok((api_version, Some(kind))) => {
            let api_version = api_version.unwrap_or_default();
            let version = api_version.rsplit('/').next().unwrap_or_default();
            Status::bad_request(format!(
                "{kind} in version {version:?} cannot be handled as a {expected}: {error}"
            ))
        }
        _ => Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {expected}): {error}"
        )),
    }
}

fn yaml(
    bytes: &[u8],
    read: impl FnOnce(serde_saphyr::Deserializer<'_, '_>) -> Result<Value, String>,
) -> Result<Value, String> {
    let mut value = Ok(Value::Null);
    let whole =
        serde_saphyr::with_deserializer_from_slice_with_options(bytes, yaml_options(), |d| {
            value = read(d);
            Ok(())
        });
    // An error of the reader leaves input behind, of which the parser would complain too.
    let value = value?;
    whole.map(|()| value).map_err(|e| e.to_string())
}

/// Duplicates are left to the reader, which reports them as unknown fields are reported.
fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::PassThrough,
        with_snippet: false,
    }
}

#[cfg(test)]
mod tests;

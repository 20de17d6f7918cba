//! From request bytes to a pruned, type-checked `Value`.

use crate::schema::{Schema, TypeId};
use crate::status::Status;
use serde_json::Value;

/// Encoding of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaType {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
    /// `application/vnd.kubernetes.protobuf`
    Protobuf,
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
    /// The object; unknown fields are pruned, `null`s and types are checked.
    pub value: Value,
    /// Texts for `Warning: 299` headers, such as `unknown field "spec.foo"`.
    pub warnings: Vec<String>,
}

/// The bytes' own `apiVersion` and `kind` where they carry them
/// (protobuf: from the envelope; JSON and YAML: the top-level fields).
pub fn type_meta(
    media: MediaType,
    bytes: &[u8],
) -> Result<(Option<String>, Option<String>), Status> {
    let _ = (media, bytes);
    todo!()
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
    let _ = (schema, ty, media, bytes, validation);
    todo!()
}

/// Prunes and type-checks a value that is already parsed (the result of a patch).
pub fn conform(
    schema: &Schema,
    ty: TypeId,
    value: Value,
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    let _ = (schema, ty, value, validation);
    todo!()
}

//! Parts of an OpenAPI v2 document as messages of `openapi.v2`, the form that Go clients read:
//! field numbers from `openapiv2/OpenAPIv2.proto` of `github.com/google/gnostic-models`.
//!
//! Values of any type are YAML in it, which JSON is.

use crate::protobuf::write::{bytes, double, text, varint_field};
use serde_json::{Map, Value};

/// How a member of an object is written.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Texts,
    Flag,
    Int,
    Double,
    /// YAML.
    Any,
    Anys,
    /// A message of another sort.
    One(fn(&Value) -> Vec<u8>),
    Many(fn(&Value) -> Vec<u8>),
}

/// Members by name, with field numbers; those that start with `x-` go to a number of their own.
type Fields = &'static [(&'static str, u32, Form)];

/// Of Document.
const PATHS: u32 = 8;
const DEFINITIONS: u32 = 9;

const DOCUMENT: Fields = &[
    ("swagger", 1, Form::Text),
    ("info", 2, Form::One(info)),
    ("security", 12, Form::Many(security)),
    ("securityDefinitions", 13, Form::One(security_definitions)),
];

const INFO: Fields = &[("title", 1, Form::Text), ("version", 2, Form::Text)];

const API_KEY: Fields = &[
    ("type", 1, Form::Text),
    ("name", 2, Form::Text),
    ("in", 3, Form::Text),
    ("description", 4, Form::Text),
];

const PATH_ITEM: Fields = &[
    ("get", 2, Form::One(operation)),
    ("put", 3, Form::One(operation)),
    ("post", 4, Form::One(operation)),
    ("delete", 5, Form::One(operation)),
    ("options", 6, Form::One(operation)),
    ("head", 7, Form::One(operation)),
    ("patch", 8, Form::One(operation)),
    ("parameters", 9, Form::Many(parameter)),
];

const OPERATION: Fields = &[
    ("tags", 1, Form::Texts),
    ("description", 3, Form::Text),
    ("operationId", 5, Form::Text),
    ("produces", 6, Form::Texts),
    ("consumes", 7, Form::Texts),
    ("parameters", 8, Form::Many(parameter)),
    ("responses", 9, Form::One(responses)),
    ("schemes", 10, Form::Texts),
];

const BODY_PARAMETER: Fields = &[
    ("description", 1, Form::Text),
    ("name", 2, Form::Text),
    ("in", 3, Form::Text),
    ("required", 4, Form::Flag),
    ("schema", 5, Form::One(schema)),
];

const QUERY_PARAMETER: Fields = &[
    ("required", 1, Form::Flag),
    ("in", 2, Form::Text),
    ("description", 3, Form::Text),
    ("name", 4, Form::Text),
    ("type", 6, Form::Text),
    ("uniqueItems", 20, Form::Flag),
];

const PATH_PARAMETER: Fields = &[
    ("required", 1, Form::Flag),
    ("in", 2, Form::Text),
    ("description", 3, Form::Text),
    ("name", 4, Form::Text),
    ("type", 5, Form::Text),
    ("uniqueItems", 19, Form::Flag),
];

const RESPONSE: Fields = &[
    ("description", 1, Form::Text),
    ("schema", 2, Form::One(|v| only(1, &schema(v)))),
];

const SCHEMA: Fields = &[
    ("$ref", 1, Form::Text),
    ("format", 2, Form::Text),
    ("title", 3, Form::Text),
    ("description", 4, Form::Text),
    ("default", 5, Form::Any),
    ("multipleOf", 6, Form::Double),
    ("maximum", 7, Form::Double),
    ("exclusiveMaximum", 8, Form::Flag),
    ("minimum", 9, Form::Double),
    ("exclusiveMinimum", 10, Form::Flag),
    ("maxLength", 11, Form::Int),
    ("minLength", 12, Form::Int),
    ("pattern", 13, Form::Text),
    ("maxItems", 14, Form::Int),
    ("minItems", 15, Form::Int),
    ("uniqueItems", 16, Form::Flag),
    ("maxProperties", 17, Form::Int),
    ("minProperties", 18, Form::Int),
    ("required", 19, Form::Texts),
    ("enum", 20, Form::Anys),
    ("additionalProperties", 21, Form::One(additional)),
    ("type", 22, Form::One(one_type)),
    ("items", 23, Form::One(|v| only(1, &schema(v)))),
    ("allOf", 24, Form::Many(schema)),
    ("properties", 25, Form::One(|v| named(1, v, schema))),
    ("example", 30, Form::Any),
];

/// The members of a document that are not paths or definitions.
pub(super) fn head(document: &Value) -> Vec<u8> {
    message(document, DOCUMENT, 16)
}

/// Appends one path to the fields of a document.
pub(super) fn path(out: &mut Vec<u8>, name: &str, item: &Value) {
    let item = message(item, PATH_ITEM, 10);
    bytes(out, PATHS, &only(2, &entry(name, &item)));
}

/// Appends one definition to the fields of a document.
pub(super) fn definition(out: &mut Vec<u8>, name: &str, definition: &Value) {
    bytes(
        out,
        DEFINITIONS,
        &only(1, &entry(name, &schema(definition))),
    );
}

fn info(value: &Value) -> Vec<u8> {
    message(value, INFO, 7)
}

fn security(value: &Value) -> Vec<u8> {
    named(1, value, |scopes| {
        let mut out = Vec::new();
        texts(&mut out, 1, scopes);
        out
    })
}

fn security_definitions(value: &Value) -> Vec<u8> {
    named(1, value, |v| only(2, &message(v, API_KEY, 5)))
}

fn operation(value: &Value) -> Vec<u8> {
    message(value, OPERATION, 13)
}

/// ParametersItem: what sort of parameter it is says `in`.
fn parameter(value: &Value) -> Vec<u8> {
    let sort = match value["in"].as_str() {
        Some("body") => only(1, &message(value, BODY_PARAMETER, 6)),
        Some("path") => only(2, &only(4, &message(value, PATH_PARAMETER, 22))),
        _ => only(2, &only(3, &message(value, QUERY_PARAMETER, 23))),
    };
    only(1, &sort)
}

fn responses(value: &Value) -> Vec<u8> {
    named(1, value, |v| only(1, &message(v, RESPONSE, 5)))
}

fn schema(value: &Value) -> Vec<u8> {
    message(value, SCHEMA, 31)
}

fn additional(value: &Value) -> Vec<u8> {
    match value {
        Value::Bool(any) => {
            let mut out = Vec::new();
            varint_field(&mut out, 2, u64::from(*any));
            out
        }
        other => only(1, &schema(other)),
    }
}

fn one_type(value: &Value) -> Vec<u8> {
    only(1, value.as_str().unwrap_or_default().as_bytes())
}

/// All members that have a number.
fn message(value: &Value, fields: Fields, extensions: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let members = value.as_object().into_iter().flat_map(Map::iter);
    for (name, value) in members {
        if name.starts_with("x-") {
            bytes(&mut out, extensions, &entry(name, &yaml(value)));
        } else if let Some((_, number, form)) = fields.iter().find(|(n, ..)| n == name) {
            field(&mut out, *number, *form, value);
        }
    }
    out
}

fn field(out: &mut Vec<u8>, number: u32, form: Form, value: &Value) {
    let all = || value.as_array().into_iter().flatten();
    match form {
        Form::Text => text(out, number, value.as_str().unwrap_or_default()),
        Form::Texts => texts(out, number, value),
        Form::Flag => varint_field(out, number, u64::from(value == &Value::Bool(true))),
        Form::Int => varint_field(out, number, value.as_i64().unwrap_or_default() as u64),
        Form::Double => double(out, number, value.as_f64().unwrap_or_default()),
        Form::Any => bytes(out, number, &yaml(value)),
        Form::Anys => all().for_each(|v| bytes(out, number, &yaml(v))),
        Form::One(write) => bytes(out, number, &write(value)),
        Form::Many(write) => all().for_each(|v| bytes(out, number, &write(v))),
    }
}

fn texts(out: &mut Vec<u8>, number: u32, value: &Value) {
    for item in value.as_array().into_iter().flatten() {
        text(out, number, item.as_str().unwrap_or_default());
    }
}

/// A message with one field.
fn only(number: u32, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 6);
    bytes(&mut out, number, content);
    out
}

/// Any.
fn yaml(value: &Value) -> Vec<u8> {
    only(2, value.to_string().as_bytes())
}

/// A pair of a map, such as NamedSchema.
fn entry(name: &str, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len() + content.len() + 12);
    text(&mut out, 1, name);
    bytes(&mut out, 2, content);
    out
}

/// A map: a pair for each member.
fn named(number: u32, value: &Value, write: fn(&Value) -> Vec<u8>) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in value.as_object().into_iter().flat_map(Map::iter) {
        bytes(&mut out, number, &entry(name, &write(value)));
    }
    out
}

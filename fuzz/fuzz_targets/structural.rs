//! Schemas of definitions: the first line is the schema, the rest an object. Whatever is
//! accepted compiles, and holds any object without harm.
#![no_main]

use apimachinery::decode::{FieldValidation, MediaType, conform, parse};
use apimachinery::structural;

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let at = body.iter().position(|b| *b == b'\n').unwrap_or(body.len());
    let (schema, object) = body.split_at(at);
    let (Ok(schema), Ok(object)) = (
        parse(MediaType::Json, schema),
        parse(MediaType::Json, object),
    ) else {
        return;
    };
    if !structural::check(&schema, "schema").is_empty() {
        return;
    }
    let compiled = structural::compile(&schema, "io.example.v1.Thing");
    let (schema, root) = (&compiled.schema, compiled.root);
    let Ok(mut decoded) = conform(schema, root, object, FieldValidation::Ignore) else {
        return;
    };
    structural::default(schema, root, &mut decoded.value);
    let value = decoded.value;
    let _ = structural::validate(schema, root, &value, None);
    assert!(structural::validate(schema, root, &value, Some(&value)).is_empty());
});

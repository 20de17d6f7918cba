//! JSON and YAML bodies: decoding never panics, and its result conforms to the type.
#![no_main]

use apimachinery::GroupVersionKind;
use apimachinery::decode::{FieldValidation, MediaType, conform, decode, parse, type_meta};
use apimachinery::schema::Schema;

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let schema = Schema::builtin();
    for kind in ["Pod", "Service"] {
        let Some(ty) = schema.kind(&GroupVersionKind::new("", "v1", kind)) else {
            continue;
        };
        for media in [MediaType::Json, MediaType::Yaml] {
            let _ = type_meta(media, body);
            let _ = parse(media, body);
            let _ = decode(schema, ty, media, body, FieldValidation::Strict);
            if let Ok(decoded) = decode(schema, ty, media, body, FieldValidation::Warn) {
                let again = conform(schema, ty, decoded.value.clone(), FieldValidation::Strict);
                assert_eq!(again.map(|d| d.value), Ok(decoded.value));
            }
        }
    }
});

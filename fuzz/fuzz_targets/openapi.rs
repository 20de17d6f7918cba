//! OpenAPI v2 documents of extension servers, merged into another in both forms.
#![no_main]

use apimachinery::openapi::v2::{Document, Format, part};
use serde_json::{Value, json};

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let Ok(given) = serde_json::from_slice::<Value>(body) else {
        return;
    };
    for format in [Format::Json, Format::Protobuf] {
        let mut document = Document::new(format);
        document.add(json!({
            "paths": {"/apis/a": {}},
            "components": {"schemas": {"a": {"type": "object"}}},
        }));
        document.merge(part(given.clone(), "/apis/"));
        let text = document.finish("v1");
        if format == Format::Json {
            let made: Value = serde_json::from_slice(&text).expect("JSON");
            assert_eq!(made["definitions"]["a"]["type"], "object");
        }
    }
});

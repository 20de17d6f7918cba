//! Protobuf messages: decoding never panics, and its result survives encoding.
#![no_main]

use apimachinery::GroupVersionKind;
use apimachinery::protobuf::{Envelope, decode_message, encode_message};
use apimachinery::schema::Schema;

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let _ = Envelope::parse(body);
    let schema = Schema::builtin();
    for (group, kind) in [
        ("", "Pod"),
        ("apps", "Deployment"),
        ("apiextensions.k8s.io", "CustomResourceDefinition"),
    ] {
        let Some(ty) = schema.kind(&GroupVersionKind::new(group, "v1", kind)) else {
            continue;
        };
        if let Ok(value) = decode_message(schema, ty, body) {
            let bytes = encode_message(schema, ty, &value);
            assert_eq!(decode_message(schema, ty, &bytes).as_ref(), Ok(&value));
        }
    }
});

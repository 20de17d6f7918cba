//! JSON text as messages: what is encoded of any JSON decodes, and that survives encoding.
#![no_main]

use apimachinery::GroupVersionKind;
use apimachinery::protobuf::{decode_message, encode_message, write_text};
use apimachinery::schema::Schema;

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    let schema = Schema::builtin();
    for (group, kind) in [
        ("", "Pod"),
        ("policy", "PodDisruptionBudget"),
        ("authorization.k8s.io", "SubjectAccessReview"),
        ("apiextensions.k8s.io", "CustomResourceDefinition"),
    ] {
        let Some(ty) = schema.kind(&GroupVersionKind::new(group, "v1", kind)) else {
            continue;
        };
        let mut bytes = b"before".to_vec();
        if write_text(schema, ty, text, &mut bytes).is_err() {
            assert_eq!(bytes, b"before");
            continue;
        }
        // Times that no date has are all that decoding may refuse of it.
        if let Ok(value) = decode_message(schema, ty, &bytes[6..]) {
            let again = encode_message(schema, ty, &value);
            assert_eq!(decode_message(schema, ty, &again).as_ref(), Ok(&value));
        }
    }
});

//! CBOR bodies: reading never panics, what is read can be written and read again, and what is
//! decoded conforms to its type.
#![no_main]

use apimachinery::GroupVersionKind;
use apimachinery::cbor::{enclose, read, write};
use apimachinery::decode::{FieldValidation, MediaType, conform, decode, type_meta};
use apimachinery::schema::Schema;

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let Ok(value) = read(body) else { return };
    let mut out = Vec::new();
    enclose(&mut out, |out| write(None, &value, out));
    assert_eq!(read(&out).as_ref(), Ok(&value));
    let _ = type_meta(MediaType::Cbor, body);
    let schema = Schema::builtin();
    for kind in ["Pod", "Secret"] {
        let Some(ty) = schema.kind(&GroupVersionKind::new("", "v1", kind)) else {
            continue;
        };
        let Ok(decoded) = decode(schema, ty, MediaType::Cbor, body, FieldValidation::Warn) else {
            continue;
        };
        let again = conform(schema, ty, decoded.value.clone(), FieldValidation::Strict);
        assert_eq!(again.map(|d| d.value).as_ref(), Ok(&decoded.value));
        out.clear();
        write(Some((schema, ty)), &decoded.value, &mut out);
        assert!(read(&out).is_ok());
    }
});

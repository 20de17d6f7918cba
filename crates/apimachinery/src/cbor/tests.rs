//! Cases named by their upstream source are those of `TestDecode`, `TestEncode` and
//! `TestRoundtrip` of apimachinery's `runtime/serializer/cbor/internal/modes`, and of KEP-4222.

use super::*;
use crate::GroupVersion;
use crate::decode::{DEPTH_MAX, FieldValidation, MediaType, decode, parse, type_meta};
use proptest::prelude::*;
use serde_json::json;

/// Bytes as RFC 8949 prints them.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let pair = |p: &[u8]| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

fn untyped(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    enclose(&mut out, |out| write(None, value, out));
    out
}

fn kind(api: &str, kind: &str) -> (&'static Schema, TypeId) {
    let gvk = GroupVersion::parse(api).unwrap().kind(kind);
    (Schema::builtin(), Schema::builtin().kind(&gvk).unwrap())
}

/// Upstream: `modes/decode_test.go`; examples of RFC 8949, appendix A.
#[test]
fn what_is_read() {
    let cases = [
        ("d9d9f7 a0", json!({})),
        ("d9d9f7 d9d9f7 a0", json!({})),
        ("a0", json!({})),
        ("00", json!(0)),
        ("1b7fffffffffffffff", json!(i64::MAX)),
        ("3b7fffffffffffffff", json!(i64::MIN)),
        ("20", json!(-1)),
        ("f93e00", json!(1.5)),
        ("fa47c35000", json!(100_000.0)),
        ("fb3ff199999999999a", json!(1.1)),
        ("f4", json!(false)),
        ("f5", json!(true)),
        ("f6", json!(null)),
        // Text and bytes are strings, in one piece or in several.
        ("63616263", json!("abc")),
        ("43616263", json!("abc")),
        ("7f 61 61 62 6263 ff", json!("abc")),
        ("5f 41 61 42 6263 ff", json!("abc")),
        // Bytes that are to be told in another encoding, at any depth.
        ("d6 43 616263", json!("YWJj")),
        ("d5 43 fbefff", json!("--__")),
        ("d7 43 616263", json!("616263")),
        ("d6 81 43 616263", json!(["YWJj"])),
        ("d6 a1 4161 43 616263", json!({"a": "YWJj"})),
        // A text is text already.
        ("d6 63 616263", json!("abc")),
        ("a2 6161 01 4162 02", json!({"a": 1, "b": 2})),
        ("bf 6161 9f 01 ff ff", json!({"a": [1]})),
        // Times are told as in JSON.
        (
            "c0 74 323031332d30332d32315432303a30343a30305a",
            json!("2013-03-21T20:04:00Z"),
        ),
        ("c1 1a514b67b0", json!("2013-03-21T20:04:00Z")),
        ("c1 fb41d452d9ec200000", json!("2013-03-21T20:04:00.5Z")),
        // Of tags that say nothing here, the content.
        ("d9 ffff 01", json!(1)),
    ];
    for (bytes, want) in cases {
        assert_eq!(read(&hex(bytes)), Ok(want), "{bytes}");
    }
}

/// Upstream: `modes/decode_test.go` ("rejects …"), `modes/decode.go`.
#[test]
fn what_is_refused() {
    let cases = [
        ("", "unexpected end of data"),
        ("d9d9f7", "unexpected end of data"),
        ("43 6162", "unexpected end of data"),
        ("5b ffffffffffffffff", "unexpected end of data"),
        (
            "9b 00000000ffffffff",
            "max number of elements of an array 1024",
        ),
        ("bb 00000000ffffffff", "max number of pairs of a map 1024"),
        ("a0 00", "1 bytes of extraneous data starting at index 1"),
        ("a2 4161 01 6161 02", "duplicate map key \"a\""),
        ("a1 01 02", "a key that is no string"),
        ("a1 f6 02", "a key that is no string"),
        ("1b8000000000000000", "an integer above int64"),
        ("3b8000000000000000", "an integer below int64"),
        ("c2 41 01", "an integer of any size"),
        ("c3 41 01", "an integer of any size"),
        ("f97e00", "not finite"),
        ("f97c00", "not finite"),
        ("fbfff0000000000000", "not finite"),
        ("f7", "a simple value"),
        ("e0", "a simple value"),
        ("f8ff", "a simple value"),
        ("ff", "malformed item at byte 0"),
        ("81 ff", "malformed item at byte 1"),
        ("1c", "malformed item"),
        ("1f", "malformed item"),
        ("5f 61 61 ff", "malformed item"),
        ("5f 5f ff ff", "malformed item"),
        ("7f 41 61 ff", "malformed item"),
        ("61 ff", "not UTF-8"),
        ("41 ff", "not UTF-8"),
        ("7f 61 c3 61 a9 ff", "not UTF-8"),
        ("c0 63 616263", "a tag for times"),
        ("c0 01", "a tag for times"),
        ("c1 fb 7fefffffffffffff", "a tag for times"),
    ];
    for (bytes, want) in cases {
        match read(&hex(bytes)) {
            Err(e) => assert!(e.to_string().contains(want), "{bytes}: {e}"),
            Ok(v) => panic!("{bytes}: {v}"),
        }
    }
}

/// Upstream: `MaxNestedLevels`, `MaxArrayElements` and `MaxMapPairs` of `modes/decode.go`.
#[test]
fn depth_and_width_are_limited() {
    for around in [vec![0x81], hex("a14161"), hex("d9ffff"), vec![0x9f]] {
        let nested = |n: usize| [around.repeat(n), vec![0x01]].concat();
        let ends = |n: usize| {
            if around == [0x9f] {
                vec![0xff; n]
            } else {
                vec![]
            }
        };
        let whole = |n: usize| [nested(n), ends(n)].concat();
        assert!(read(&whole(LEVELS_MAX)).is_ok());
        assert!(read(&[&MAGIC, &*whole(LEVELS_MAX)].concat()).is_ok());
        assert_eq!(read(&whole(LEVELS_MAX + 1)), Err(Error::Depth));
        assert_eq!(read(&nested(1_000_000)), Err(Error::Depth));
    }
    const { assert!(LEVELS_MAX < DEPTH_MAX) };
    let wide = |n: usize| json!(vec![0; n]);
    assert!(read(&untyped(&wide(ITEMS_MAX))).is_ok());
    let of = "elements of an array";
    assert_eq!(read(&untyped(&wide(ITEMS_MAX + 1))), Err(Error::Items(of)));
    let endless = [vec![0x9f], vec![0; ITEMS_MAX + 1], vec![0xff]].concat();
    assert_eq!(read(&endless), Err(Error::Items(of)));
    let exactly = [vec![0x9f], vec![0; ITEMS_MAX], vec![0xff]].concat();
    assert_eq!(read(&exactly), Ok(wide(ITEMS_MAX)));
}

/// Upstream: `modes/encode_test.go`; KEP-4222 ("Byte and text strings", "Self-described CBOR").
#[test]
fn what_is_written() {
    let cases = [
        (json!({"kind": "A"}), "d9d9f7 a1 44 6b696e64 41 41"),
        (
            json!([1, -1, 24, 1.5, 1.1]),
            "d9d9f7 85 01 20 1818 f93e00 fb3ff199999999999a",
        ),
        (json!([null, true, false]), "d9d9f7 83 f6 f5 f4"),
        (json!("YWJj"), "d9d9f7 44 59574a6a"),
    ];
    for (value, want) in cases {
        assert_eq!(untyped(&value), hex(want), "{value}");
    }
    // Bytes of a type that has them, under the tag for base64.
    let mut out = Vec::new();
    let secret = json!({"data": {"k": "YWJj", "e": ""}, "type": "t"});
    write(Some(kind("v1", "Secret")), &secret, &mut out);
    let want = "a2 44 64617461 a2 41 65 d6 40 41 6b d6 43 616263 44 74797065 41 74";
    assert_eq!(out, hex(want));
    assert_eq!(read(&out), Ok(secret));
    // A float of a type that has them, whatever JSON made of it.
    let mut out = Vec::new();
    let schema = kind("apiextensions.k8s.io/v1", "CustomResourceDefinition").0;
    let props = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
    let ty = schema.by_name(props).unwrap();
    write(Some((schema, ty)), &json!({"maximum": 1}), &mut out);
    assert_eq!(out, hex("a1 47 6d6178696d756d f93c00"));
}

/// Upstream: `TestDecode` of `runtime/serializer/cbor/cbor_test.go`; `RawExtension`, `FieldsV1`.
#[test]
fn bodies_are_decoded_as_in_other_formats() {
    let (schema, ty) = kind("v1", "Secret");
    let body = json!({
        "apiVersion": "v1", "kind": "Secret", "data": {"k": "YWJj"}, "what": 1,
        "metadata": {"name": "s", "managedFields": [{"fieldsV1": {"f:data": {".": {}}}}]},
    });
    let mut typed = Vec::new();
    enclose(&mut typed, |out| write(Some((schema, ty)), &body, out));
    // As a client of unstructured objects sends it: base64 in a string.
    for bytes in [typed, untyped(&body)] {
        let meta = type_meta(MediaType::Cbor, &bytes).unwrap();
        assert_eq!(meta, (Some("v1".to_owned()), Some("Secret".to_owned())));
        let of = |validation| decode(schema, ty, MediaType::Cbor, &bytes, validation);
        let decoded = of(FieldValidation::Warn).unwrap();
        assert_eq!(decoded.warnings, [r#"unknown field "what""#]);
        let mut want = body.clone();
        want.as_object_mut().unwrap().remove("what");
        assert_eq!(decoded.value, want);
        let strict = of(FieldValidation::Strict).unwrap_err();
        assert!(
            strict.message.contains("strict decoding error"),
            "{}",
            strict.message
        );
        assert_eq!(parse(MediaType::Cbor, &bytes), Ok(body.clone()));
    }
    let wrong = decode(schema, ty, MediaType::Cbor, b"{}", FieldValidation::Warn).unwrap_err();
    assert_eq!((wrong.code, wrong.reason), (400, "BadRequest"));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_filter_map("finite", |f| Number::from_f64(f).map(Value::Number)),
        any::<f32>().prop_filter_map("finite", |f| Number::from_f64(f.into()).map(Value::Number)),
        ".{0,30}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 60, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::Array),
            prop::collection::btree_map(".{0,8}", inner, 0..8)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Upstream: `modes/roundtrip_test.go`.
    #[test]
    fn what_is_written_is_read(value in any_json()) {
        prop_assert_eq!(read(&untyped(&value)), Ok(value));
    }

    /// With the bytes of a type, too.
    #[test]
    fn bytes_survive(data in prop::collection::btree_map("[a-z]{1,8}", any::<Vec<u8>>(), 0..8)) {
        let data: Map<String, Value> =
            data.into_iter().map(|(k, v)| (k, STANDARD.encode(v).into())).collect();
        let value = json!({"data": data});
        let mut out = Vec::new();
        write(Some(kind("v1", "Secret")), &value, &mut out);
        prop_assert_eq!(read(&out), Ok(value));
    }

    /// Whatever is read can be written and read again, and nothing makes it panic.
    #[test]
    fn hostile_input(bytes in any::<Vec<u8>>(), cut in any::<prop::sample::Index>(), value in any_json()) {
        if let Ok(value) = read(&bytes) {
            prop_assert_eq!(read(&untyped(&value)), Ok(value));
        }
        let whole = untyped(&value);
        // No beginning of a document is one.
        prop_assert!(read(&whole[..cut.index(whole.len())]).is_err());
    }
}

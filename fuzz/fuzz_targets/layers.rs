//! Layers of images, as a registry may hand them out: unpacking writes nowhere but into their
//! directory, makes no device and keeps its bounds.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    images::hostile::check(bytes).expect("a place to unpack in");
});

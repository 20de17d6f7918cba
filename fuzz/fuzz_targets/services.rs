//! The proxy's checkpoint of Services: reading it never panics, whatever a disk made of it,
//! and what is accepted is what would be written.
#![no_main]

use service_proxy::checkpoint::{decode, encode};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(known) = decode(bytes) {
        let again = encode(&known).expect("what was read can be written");
        assert_eq!(decode(&again).expect("what was written can be read"), known);
    }
});

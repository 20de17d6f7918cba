//! What comes over NATS: reading it never panics, and what is read is written as the same bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    lattice::fuzzing::parse_all(bytes);
    let key = lattice::SiteKey::from_seed(&[1; 32]);
    let _ = lattice::fuzzing::JoinRequest::open(&key, bytes);
    assert!(lattice::fuzzing::Welcome::open(&key, bytes).is_err());
});

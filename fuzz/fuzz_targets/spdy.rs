//! What clients of exec and port-forward send by SPDY: reading it never panics, and headers
//! never unpack to more than their bound.
#![no_main]

use streaming::spdy::{Frame, Head, Unpacker, parse_head};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut unpacker = Unpacker::default();
    let mut rest = bytes;
    while let Some((head, after)) = rest.split_first_chunk::<8>() {
        let Ok(head) = parse_head(*head) else {
            return;
        };
        let (length, kind) = match head {
            Head::Data { length, .. } => (length, None),
            Head::Control {
                kind,
                flags,
                length,
            } => (length, Some((kind, flags))),
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let (payload, next) = after.split_at(length.min(after.len()));
        if let Some((kind, flags)) = kind
            && Frame::parse(kind, flags, payload, &mut unpacker).is_err()
        {
            return;
        }
        rest = next;
    }
});

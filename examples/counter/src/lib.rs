//! A `wasi:http` 0.2 component that counts its visits in a file.
//!
//! `GET /` adds one to `$COUNTER_FILE` (`/data/visits`) and answers the count. Every visit
//! appends one byte: appends of several instances never lose one another, and the file's length
//! is the count.

use std::fs::File;
use std::io::Write as _;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

struct Counter;

wasip2::http::proxy::export!(Counter);

impl Guest for Counter {
    fn handle(_request: IncomingRequest, out: ResponseOutparam) {
        let path = std::env::var("COUNTER_FILE").unwrap_or_else(|_| "/data/visits".to_owned());
        match visit(&path) {
            Ok(count) => answer(out, 200, &format!("{count}\n")),
            Err(error) => answer(out, 500, &format!("count in {path}: {error}\n")),
        }
    }
}

/// Counts one visit; the count with it.
fn visit(path: &str) -> std::io::Result<u64> {
    let mut file = File::options().append(true).create(true).open(path)?;
    file.write_all(b"|")?;
    file.sync_data()?;
    Ok(file.metadata()?.len())
}

/// Sends a whole text response. A client that went away is nobody's error.
fn answer(out: ResponseOutparam, status: u16, text: &str) {
    let headers = Fields::new();
    let _ = headers.set("content-type", &[b"text/plain; charset=utf-8".to_vec()]);
    let response = OutgoingResponse::new(headers);
    let _ = response.set_status_code(status);
    let Ok(body) = response.body() else { return };
    ResponseOutparam::set(out, Ok(response));
    if let Ok(stream) = body.write() {
        let _ = stream.blocking_write_and_flush(text.as_bytes());
    }
    let _ = OutgoingBody::finish(body, None);
}

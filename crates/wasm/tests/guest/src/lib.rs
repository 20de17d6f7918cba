//! A `wasi:http` 0.2 component that behaves well or badly as its request's path says.
//!
//! - `/count` answers how many requests this instance has served
//! - `/echo` sends the request's body back piece by piece
//! - `/env?NAME` answers a variable of the environment
//! - `/log?TEXT` writes a line to standard output
//! - `/trap`, `/trap-late` trap before and in the middle of the response
//! - `/spin` never ends; `/slow?N` answers after N milliseconds
//! - `/eat?N` takes N MiB of memory and answers
//! - `/silent` returns without a response
//! - `/fetch?URL` asks another server and answers its status, or the error

use std::cell::Cell;
use wasip2::cli::environment::get_environment;
use wasip2::cli::stdout::get_stdout;
use wasip2::clocks::monotonic_clock::subscribe_duration;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingRequest, OutgoingResponse, ResponseOutparam,
    Scheme,
};

struct Trials;

wasip2::http::proxy::export!(Trials);

thread_local! {
    static SERVED: Cell<u32> = const { Cell::new(0) };
}

impl Guest for Trials {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let served = SERVED.get() + 1;
        SERVED.set(served);
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        match path {
            "/count" => answer(out, &served.to_string()),
            "/echo" => echo(&request, out),
            "/env" => {
                let value = get_environment().into_iter().find(|(name, _)| name == query);
                answer(out, &value.map(|(_, value)| value).unwrap_or_default());
            }
            "/log" => {
                let line = format!("{query}\n");
                let _ = get_stdout().blocking_write_and_flush(line.as_bytes());
                answer(out, "logged");
            }
            "/trap" => panic!("asked to"),
            "/trap-late" => {
                let body = begin(out);
                let stream = body.write().unwrap();
                let _ = stream.blocking_write_and_flush(b"half");
                subscribe_duration(1_000_000).block();
                panic!("asked to");
            }
            "/spin" => loop {
                std::hint::spin_loop();
            },
            "/slow" => {
                subscribe_duration(query.parse::<u64>().unwrap() * 1_000_000).block();
                answer(out, "slept");
            }
            "/eat" => {
                let bytes = query.parse::<usize>().unwrap() << 20;
                let eaten = vec![1u8; bytes];
                let eaten = std::hint::black_box(eaten);
                answer(out, &format!("ate {}", eaten.len()));
            }
            "/silent" => {}
            "/fetch" => {
                let text = fetch(query).unwrap_or_else(|error| error);
                answer(out, &text);
            }
            _ => answer(out, "trials"),
        }
    }
}

fn begin(out: ResponseOutparam) -> OutgoingBody {
    let response = OutgoingResponse::new(Fields::new());
    let body = response.body().unwrap();
    ResponseOutparam::set(out, Ok(response));
    body
}

fn answer(out: ResponseOutparam, text: &str) {
    let body = begin(out);
    let stream = body.write().unwrap();
    let _ = stream.blocking_write_and_flush(text.as_bytes());
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
}

fn echo(request: &IncomingRequest, out: ResponseOutparam) {
    let incoming = request.consume().unwrap();
    let from = incoming.stream().unwrap();
    let body = begin(out);
    let to = body.write().unwrap();
    // 4096 is the most that one blocking write takes.
    while let Ok(piece) = from.blocking_read(4096) {
        if to.blocking_write_and_flush(&piece).is_err() {
            return;
        }
    }
    drop(to);
    let _ = OutgoingBody::finish(body, None);
}

fn fetch(url: &str) -> Result<String, String> {
    let (authority, path) = url.split_once('/').unwrap_or((url, ""));
    let request = OutgoingRequest::new(Fields::new());
    request.set_scheme(Some(&Scheme::Http)).map_err(|()| "scheme")?;
    request.set_authority(Some(authority)).map_err(|()| "authority")?;
    request
        .set_path_with_query(Some(&format!("/{path}")))
        .map_err(|()| "path")?;
    let pending = outgoing_handler::handle(request, None).map_err(|code| format!("{code:?}"))?;
    pending.subscribe().block();
    let response = pending
        .get()
        .ok_or("not ready")?
        .map_err(|()| "taken")?
        .map_err(|code| format!("{code:?}"))?;
    Ok(response.status().to_string())
}

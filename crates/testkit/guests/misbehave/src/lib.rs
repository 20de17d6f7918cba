//! A `wasi:http` 0.2 component that does on request what guests should not do, and shows what
//! it can see. For tests only.
//!
//! | path | what happens |
//! |---|---|
//! | `/` | `ok` |
//! | `/spin` | never ends |
//! | `/alloc?mb=N` | touches N MiB, answers `N` |
//! | `/trap` | hits `unreachable` |
//! | `/exit?code=N` | `wasi:cli/exit` (failure unless N is 0) |
//! | `/sleep?ms=N` | answers after N ms |
//! | `/log?text=T` | writes T to stdout and stderr |
//! | `/env` | the environment, `NAME=VALUE` lines |
//! | `/args` | the arguments, one a line |
//! | `/read?path=P` | a file's content, or the error with 500 |
//! | `/list?path=P` | a folder's names, sorted |
//! | `/write?path=P&text=T` | writes a file |
//! | `/status?code=N` | that status |
//! | `/echo` | the request's body |
//! | `/fetch?url=U` | asks another server: its status, a line break, its body |
//! | `/lookup?name=N` | the addresses of a host, one a line |
//! | `/grpc.health.v1.Health/Check` | SERVING, but of the service `sick` NOT_SERVING |

use std::io::Write as _;
use std::time::Duration;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, IncomingBody, IncomingRequest, OutgoingBody, OutgoingRequest, OutgoingResponse,
    ResponseOutparam, Scheme,
};
use wasip2::io::streams::StreamError;
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::ip_name_lookup::resolve_addresses;
use wasip2::sockets::network::{ErrorCode, IpAddress};

struct Misbehave;

wasip2::http::proxy::export!(Misbehave);

impl Guest for Misbehave {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        if path == "/grpc.health.v1.Health/Check" {
            return health(out, &body(&request));
        }
        let (status, body) = match act(path, query, &request) {
            Ok((status, body)) => (status, body),
            Err(error) => (500, format!("{error}\n").into_bytes()),
        };
        answer(out, status, &body);
    }
}

fn act(path: &str, query: &str, request: &IncomingRequest) -> std::io::Result<(u16, Vec<u8>)> {
    let text = |name| parameter(query, name).unwrap_or_default();
    let number = |name, default| text(name).parse::<u64>().unwrap_or(default);
    let done = |body: String| Ok((200, body.into_bytes()));
    match path {
        "/" => done("ok\n".to_owned()),
        "/spin" => loop {
            std::hint::black_box(0);
        },
        "/alloc" => {
            let bytes = usize::try_from(number("mb", 1) << 20).unwrap_or(usize::MAX);
            // Not zero, so that every page is touched.
            let memory = std::hint::black_box(vec![1_u8; bytes]);
            done(format!("{}\n", memory.len() >> 20))
        }
        "/trap" => core::arch::wasm32::unreachable(),
        "/exit" => {
            let code = number("code", 1);
            wasip2::cli::exit::exit(if code == 0 { Ok(()) } else { Err(()) });
            done("not reached\n".to_owned())
        }
        "/sleep" => {
            std::thread::sleep(Duration::from_millis(number("ms", 1000)));
            done("slept\n".to_owned())
        }
        "/log" => {
            writeln!(std::io::stdout(), "{}", text("text"))?;
            writeln!(std::io::stderr(), "{}", text("text"))?;
            done("logged\n".to_owned())
        }
        "/env" => done(std::env::vars().map(|(k, v)| format!("{k}={v}\n")).collect()),
        "/args" => done(std::env::args().map(|arg| arg + "\n").collect()),
        "/read" => Ok((200, std::fs::read(text("path"))?)),
        "/list" => {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(text("path"))? {
                names.push(entry?.file_name().to_string_lossy().into_owned() + "\n");
            }
            names.sort();
            done(names.concat())
        }
        "/write" => {
            std::fs::write(text("path"), text("text"))?;
            done("written\n".to_owned())
        }
        "/status" => {
            let code = number("code", 200) as u16;
            Ok((code, format!("{code}\n").into_bytes()))
        }
        "/echo" => Ok((200, body(request))),
        "/fetch" => fetch(&text("url")).map(|answer| (200, answer)).map_err(std::io::Error::other),
        "/lookup" => {
            let found = lookup(&text("name")).map_err(std::io::Error::other)?;
            done(found.into_iter().map(|ip| format!("{ip}\n")).collect())
        }
        _ => Ok((404, b"not found\n".to_vec())),
    }
}

/// A query parameter, percent-decoded.
fn parameter(query: &str, name: &str) -> Option<String> {
    let pair = query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key == name).then_some(value)
    })?;
    let mut bytes = Vec::new();
    let mut rest = pair.as_bytes();
    while let [first, after @ ..] = rest {
        let decoded = (*first == b'%')
            .then(|| u8::from_str_radix(std::str::from_utf8(after.get(..2)?).ok()?, 16).ok())
            .flatten();
        bytes.push(decoded.unwrap_or(*first));
        rest = if decoded.is_some() { &after[2..] } else { after };
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn body(request: &IncomingRequest) -> Vec<u8> {
    request.consume().map(|body| read(&body)).unwrap_or_default()
}

fn read(body: &IncomingBody) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(stream) = body.stream() {
        loop {
            match stream.blocking_read(64 << 10) {
                Ok(chunk) => bytes.extend(chunk),
                Err(StreamError::Closed | StreamError::LastOperationFailed(_)) => break,
            }
        }
    }
    bytes
}

fn fetch(url: &str) -> Result<Vec<u8>, String> {
    let rest = url.strip_prefix("http://").ok_or("no URL")?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let request = OutgoingRequest::new(Fields::new());
    request.set_scheme(Some(&Scheme::Http)).map_err(|()| "scheme")?;
    request.set_authority(Some(authority)).map_err(|()| "authority")?;
    let path = format!("/{path}");
    request.set_path_with_query(Some(&path)).map_err(|()| "path")?;
    let pending = outgoing_handler::handle(request, None).map_err(|e| format!("{e:?}"))?;
    pending.subscribe().block();
    let answer = pending.get().ok_or("not ready")?.map_err(|()| "taken")?;
    let answer = answer.map_err(|e| format!("{e:?}"))?;
    let mut said = format!("{}\n", answer.status()).into_bytes();
    said.extend(read(&answer.consume().map_err(|()| "no body")?));
    Ok(said)
}

fn lookup(name: &str) -> Result<Vec<std::net::IpAddr>, String> {
    let stream = resolve_addresses(&instance_network(), name).map_err(|e| e.name().to_owned())?;
    let mut found = Vec::new();
    loop {
        match stream.resolve_next_address() {
            Ok(Some(IpAddress::Ipv4((a, b, c, d)))) => found.push([a, b, c, d].into()),
            Ok(Some(IpAddress::Ipv6((a, b, c, d, e, f, g, h)))) => {
                found.push([a, b, c, d, e, f, g, h].into());
            }
            Ok(None) => return Ok(found),
            Err(ErrorCode::WouldBlock) => stream.subscribe().block(),
            Err(code) => return Err(code.name().to_owned()),
        }
    }
}

/// `HealthCheckResponse` with the status that the service asked for has.
fn health(out: ResponseOutparam, asked: &[u8]) {
    let sick = asked.windows(4).any(|word| word == b"sick");
    let headers = Fields::new();
    let _ = headers.set("content-type", &[b"application/grpc".to_vec()]);
    let response = OutgoingResponse::new(headers);
    let Ok(body) = response.body() else { return };
    ResponseOutparam::set(out, Ok(response));
    if let Ok(stream) = body.write() {
        let status = if sick { 2 } else { 1 };
        let _ = stream.blocking_write_and_flush(&[0, 0, 0, 0, 2, 8, status]);
    }
    let trailers = Fields::new();
    let _ = trailers.set("grpc-status", &[b"0".to_vec()]);
    let _ = OutgoingBody::finish(body, Some(trailers));
}

fn answer(out: ResponseOutparam, status: u16, bytes: &[u8]) {
    let response = OutgoingResponse::new(Fields::new());
    let _ = response.set_status_code(status);
    let Ok(body) = response.body() else { return };
    ResponseOutparam::set(out, Ok(response));
    if let Ok(stream) = body.write() {
        // What may be written at once is bounded.
        for chunk in bytes.chunks(4096) {
            if stream.blocking_write_and_flush(chunk).is_err() {
                break;
            }
        }
    }
    let _ = OutgoingBody::finish(body, None);
}

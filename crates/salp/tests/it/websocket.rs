//! WebSockets through Services, from site to site: a server of another process behind a Service
//! without selector. As little of RFC 6455 as that needs.

use crate::harness::http::{exchange, get};
use crate::harness::{eventually, text};
use crate::nats::Nats;
use crate::sites::{export, hub, import_address, shop};
use base64::Engine as _;
use std::io::{self, Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// What a server answers to [`KEY`], as the standard has it.
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const TEXT: u8 = 0x81;
pub(crate) const CLOSE: u8 = 0x88;

fn accept_of(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let algorithm = &ring::digest::SHA1_FOR_LEGACY_USE_ONLY;
    let digest = ring::digest::digest(algorithm, text.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(digest)
}

pub(crate) fn head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    let mut found = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name));
    found.next().map(|(_, value)| value.trim())
}

/// Reads one frame of at most 64 KiB: kind and payload.
pub(crate) fn read_frame(stream: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut start = [0; 2];
    stream.read_exact(&mut start)?;
    let mut length = usize::from(start[1] & 0x7f);
    if length == 126 {
        let mut long = [0; 2];
        stream.read_exact(&mut long)?;
        length = usize::from(u16::from_be_bytes(long));
    }
    let mut mask = [0; 4];
    if start[1] & 0x80 != 0 {
        stream.read_exact(&mut mask)?;
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload)?;
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    Ok((start[0], payload))
}

pub(crate) fn write_frame(
    stream: &mut TcpStream,
    kind: u8,
    payload: &[u8],
    mask: Option<[u8; 4]>,
) -> io::Result<()> {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    let mut frame = vec![kind];
    match u8::try_from(payload.len()) {
        Ok(length) if length < 126 => frame.push(masked | length),
        _ => {
            let length = u16::try_from(payload.len()).map_err(io::Error::other)?;
            frame.push(masked | 126);
            frame.extend(length.to_be_bytes());
        }
    }
    frame.extend(mask.into_iter().flatten());
    let mask = mask.unwrap_or_default();
    let bytes = payload.iter().zip(mask.iter().cycle());
    frame.extend(bytes.map(|(byte, mask)| byte ^ mask));
    stream.write_all(&frame)
}

/// Sends back what it is sent.
fn serve(mut stream: TcpStream) -> io::Result<()> {
    let head = head(&mut stream)?;
    let Some(key) = header(&head, "sec-websocket-key") else {
        return stream
            .write_all(b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: close, Upgrade\r\nContent-Length: 0\r\n\r\n");
    };
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
        accept_of(key)
    );
    stream.write_all(answer.as_bytes())?;
    loop {
        let (kind, payload) = read_frame(&mut stream)?;
        write_frame(&mut stream, kind, &payload, None)?;
        if kind == CLOSE {
            return Ok(());
        }
    }
}

/// A WebSocket to an address.
fn open(address: &str) -> Result<TcpStream, String> {
    let say = |error: io::Error| error.to_string();
    let at: SocketAddr = address.parse().expect("an address");
    let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(10)).map_err(say)?;
    let patience = Some(Duration::from_secs(60));
    stream.set_read_timeout(patience).map_err(say)?;
    let request = format!(
        "GET /chat HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).map_err(say)?;
    let head = head(&mut stream).map_err(say)?;
    let switched = head.starts_with("HTTP/1.1 101 ")
        && header(&head, "sec-websocket-accept") == Some(ACCEPT)
        && header(&head, "upgrade") == Some("websocket");
    if switched { Ok(stream) } else { Err(head) }
}

fn echoes(stream: &mut TcpStream, payload: &[u8]) {
    write_frame(stream, TEXT, payload, Some([1, 2, 3, 4])).expect("send");
    let (kind, back) = read_frame(stream).expect("an answer");
    assert_eq!(kind, TEXT);
    assert!(back == payload, "{} bytes", back.len());
}

#[test]
fn a_websocket_goes_from_site_to_site() {
    let nats = Nats::start();
    let hub = hub(&nats, &[]);
    let shop = shop(&nats, &hub, "shop-1", &[]);
    // A server that is no pod, at an address that its site can bind and no pod gets.
    let nodes = hub.json(&["get", "nodes"]);
    let block = nodes["items"][0]["spec"]["podCIDR"].as_str();
    let (block, _) = block.and_then(|b| b.rsplit_once(".0/")).expect("a block");
    let (block, _) = block.rsplit_once('.').expect("a block");
    let listener = TcpListener::bind(format!("{block}.255.1:0")).expect("bind");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || serve(stream));
        }
    });
    hub.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: hello}}\nspec:\n  ports: [{{name: http, port: 8080, appProtocol: http}}]\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: hello-own\n  labels: {{kubernetes.io/service-name: hello}}\naddressType: IPv4\nendpoints: [{{addresses: ['{}'], conditions: {{ready: true}}}}]\nports: [{{name: http, port: {}, protocol: TCP}}]\n",
        address.ip(),
        address.port()
    ));
    export(&hub);
    let at_shop = import_address(&shop);
    let mut first = eventually("the other site's server answers", || open(&at_shop));
    echoes(&mut first, b"hello");
    // Beside it requests, and another.
    let mut second = open(&at_shop).expect("a WebSocket");
    let plain = get(&at_shop, "/").expect("an answer");
    assert_eq!(plain.code, 426);
    echoes(&mut second, &[b'x'; 60_000]);
    echoes(&mut first, b"again");
    write_frame(&mut first, CLOSE, b"", Some([0; 4])).expect("send");
    assert_eq!(read_frame(&mut first).expect("an answer").0, CLOSE);
    let mut rest = Vec::new();
    first.read_to_end(&mut rest).expect("the end");
    assert!(rest.is_empty());
    echoes(&mut second, b"still there");
    // It is a Service of requests: what is no HTTP is told so.
    let junk = exchange(&at_shop, b"junk\r\n\r\n").expect("an answer");
    assert_eq!(junk.code, 400);
    let out = shop.kubectl(&["get", "serviceimport", "hello"]);
    assert!(out.status.success(), "{}", text(&out));
}

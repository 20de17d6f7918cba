//! Requests that change their connection's protocol, by servers and clients that write bytes.

use crate::http::site;
use crate::{Fixture, eventually};
use client::ObjectKey;
use lifecycle::Scope;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const ASK: &str = "GET /chat HTTP/1.1\r\nHost: web\r\nConnection: keep-alive, Upgrade\r\n\
     Upgrade: echo\r\nSec-Own: a\r\nKeep-Alive: 5\r\n\r\n";
const AGREE: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\n\
     Connection: Upgrade\r\nX-Own: b\r\n\r\n";

/// A server of another process. It answers each connection's request with the same bytes and,
/// having agreed, sends back what it gets.
#[derive(Default)]
struct Away {
    heads: Mutex<Vec<String>>,
}

impl Away {
    async fn start(address: SocketAddr, answer: &'static str, scope: &Scope) -> Arc<Self> {
        let away = Arc::new(Self::default());
        let listener = TcpListener::bind(address).await.expect("bind");
        let (server, inner) = (away.clone(), scope.clone());
        scope.spawn_cancellable(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("accept");
                let away = server.clone();
                inner.spawn_cancellable(async move {
                    let head = head(&mut stream).await;
                    away.heads.lock().push(head);
                    stream.write_all(answer.as_bytes()).await.expect("answer");
                    if answer == AGREE {
                        let (mut from, mut to) = stream.split();
                        let _ = tokio::io::copy(&mut from, &mut to).await;
                    }
                });
            }
        });
        away
    }
}

/// Reads up to the end of a head.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).to_lowercase()
}

async fn ask(service: SocketAddr, request: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(service).await.expect("connect");
    let sent = stream.write_all(request.as_bytes()).await;
    sent.expect("send");
    let head = head(&mut stream).await;
    (stream, head)
}

async fn echoes(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.expect("send");
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).await.expect("an echo");
    assert_eq!(back, text.as_bytes());
}

/// A Service of requests, all of whose endpoints are elsewhere: its one guest is gone.
async fn elsewhere(ports: &[u8]) -> (Fixture, SocketAddr, Vec<SocketAddr>) {
    let (fixture, guests, service, addresses) = site(1).await;
    let there: Vec<_> = ports.iter().map(|n| fixture.address(*n, 8080)).collect();
    let mut all = vec![(addresses[0], true)];
    all.extend(there.iter().map(|address| (*address, true)));
    fixture.endpoints("web", "TCP", &all);
    guests.kill(addresses[0]);
    (fixture, service, there)
}

fn under_way(fixture: &Fixture) -> usize {
    let traffic = fixture.proxy.traffic(&[ObjectKey::new("d", "web")]);
    traffic.iter().map(|traffic| traffic.under_way).sum()
}

#[tokio::test]
async fn a_connection_changes_its_protocol() {
    let (fixture, service, there) = elsewhere(&[9]).await;
    let servers = Scope::new();
    let away = Away::start(there[0], AGREE, &servers).await;
    // A client need not wait for the answer.
    let (mut stream, head) = ask(service, &format!("{ASK}early")).await;
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    for header in [
        "connection: upgrade\r\n",
        "upgrade: echo\r\n",
        "x-own: b\r\n",
    ] {
        assert!(head.contains(header), "{head}");
    }
    let seen = away.heads.lock().concat();
    for header in [
        "connection: upgrade\r\n",
        "upgrade: echo\r\n",
        "sec-own: a\r\n",
    ] {
        assert!(seen.contains(header), "{seen}");
    }
    assert!(!seen.contains("keep-alive"), "{seen}");
    let mut early = [0; 5];
    stream.read_exact(&mut early).await.expect("an echo");
    assert_eq!(&early, b"early");
    echoes(&mut stream, &"x".repeat(100_000)).await;
    assert_eq!(under_way(&fixture), 1);
    // One side closes, the other says what it has to say.
    stream.write_all(b"last").await.expect("send");
    stream.shutdown().await.expect("shut down");
    let mut last = Vec::new();
    stream.read_to_end(&mut last).await.expect("the last");
    assert_eq!(last, b"last");
    eventually(async || (under_way(&fixture) == 0).then_some(())).await;
    servers.close().await;
    fixture.scope.close().await;
}

/// What was begun goes on while the proxy stops, until it ends.
#[tokio::test]
async fn a_changed_connection_is_waited_for() {
    let (fixture, service, there) = elsewhere(&[9]).await;
    let servers = Scope::new();
    Away::start(there[0], AGREE, &servers).await;
    let (mut stream, _) = ask(service, ASK).await;
    let closing = tokio::join!(fixture.scope.close(), async {
        fixture.scope.token().cancelled().await;
        echoes(&mut stream, "still there").await;
        drop(stream);
    });
    let ((), ()) = closing;
    servers.close().await;
}

#[tokio::test]
async fn who_does_not_agree_is_passed_on() {
    let (fixture, service, there) = elsewhere(&[9]).await;
    let servers = Scope::new();
    let refused = "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno";
    Away::start(there[0], refused, &servers).await;
    let (mut stream, head) = ask(service, ASK).await;
    assert!(head.starts_with("http/1.1 403 "), "{head}");
    let mut body = [0; 2];
    stream.read_exact(&mut body).await.expect("a body");
    assert_eq!(&body, b"no");
    servers.close().await;
    fixture.scope.close().await;
}

/// An endpoint that can't be reached has seen nothing: another is asked. One that has seen the
/// request and goes without an answer is the only one.
#[tokio::test]
async fn it_is_asked_of_one_endpoint() {
    let (fixture, service, there) = elsewhere(&[9, 10]).await;
    let servers = Scope::new();
    let silent = Away::start(there[1], "", &servers).await;
    for n in 1..4 {
        let (_, head) = ask(service, ASK).await;
        assert!(head.starts_with("http/1.1 502 "), "{head}");
        assert_eq!(silent.heads.lock().len(), n);
    }
    servers.close().await;
    fixture.scope.close().await;
}

/// Guests answer such a request as any other; nobody changes what was not asked for.
#[tokio::test]
async fn guests_and_others_keep_to_http() {
    let (fixture, _guests, service, _) = site(1).await;
    let (_, head) = ask(service, ASK).await;
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    fixture.scope.close().await;

    let (fixture, service, there) = elsewhere(&[9]).await;
    let servers = Scope::new();
    let away = Away::start(there[0], AGREE, &servers).await;
    for request in [
        "GET / HTTP/1.1\r\nHost: web\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: web\r\nUpgrade: echo\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade, HTTP2-Settings\r\n\
         Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    ] {
        let (_, head) = ask(service, request).await;
        assert!(head.starts_with("http/1.1 502 "), "{head}");
    }
    assert!(!away.heads.lock().concat().contains("upgrade"));
    servers.close().await;
    fixture.scope.close().await;
}

#[tokio::test]
async fn tunnels_and_junk_are_refused() {
    let (fixture, _guests, service, _) = site(1).await;
    let connect = "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n";
    let (_, head) = ask(service, connect).await;
    assert!(head.starts_with("http/1.1 405 "), "{head}");
    assert!(head.contains("allow: get"), "{head}");
    for junk in [
        "\x16\x03\x01\x02\x00\x01\r\n\r\n",
        "hello\r\n\r\n",
        "GET / SPDY/3\r\n\r\n",
    ] {
        let (mut stream, head) = ask(service, junk).await;
        assert!(head.starts_with("http/1.1 400 "), "{junk:?}: {head}");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("the end");
    }
    fixture.scope.close().await;
}

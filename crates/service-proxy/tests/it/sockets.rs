//! Connections and datagrams through Services.

use crate::{Fixture, eventually};
use lifecycle::Scope;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Sends its address to whoever connects, then echoes until the client is done.
pub(crate) async fn server(scope: &Scope, address: SocketAddr) {
    let listener = TcpListener::bind(address).await.expect("bind");
    let token = scope.token().clone();
    let inner = scope.clone();
    scope.spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = token.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (mut stream, _) = accepted.expect("accept");
            inner.spawn(async move {
                let hello = format!("{address}\n");
                stream.write_all(hello.as_bytes()).await.ok()?;
                let (mut reader, mut writer) = stream.split();
                tokio::io::copy(&mut reader, &mut writer).await.ok()
            });
        }
    });
}

/// Connects, says something and reads everything; the server's address.
pub(crate) async fn ask(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(b"hi").await.ok()?;
    stream.shutdown().await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer.strip_suffix("\nhi")?.to_owned())
}

#[tokio::test]
async fn connections_spread_over_ready_endpoints() {
    let fixture = Fixture::start().await;
    let servers = Scope::new();
    let endpoints = [1, 2, 3, 4].map(|host| fixture.address(host, 9000));
    for endpoint in endpoints {
        server(&servers, endpoint).await;
    }
    let service = fixture.address(100, 80_00);
    let node_port = fixture.address(254, 30_000);
    fixture.service(
        "web",
        service,
        json!({"type": "NodePort", "ports": [
            {"name": "p", "port": service.port(), "nodePort": node_port.port()}]}),
    );
    let ready = endpoints.map(|address| (address, address != endpoints[3]));
    fixture.endpoints("web", "TCP", &ready);
    for address in [service, node_port] {
        eventually(async || ask(address).await).await;
        let mut counts = BTreeMap::new();
        for _ in 0..30 {
            let answer = ask(address).await.expect("an answer");
            *counts.entry(answer).or_insert(0) += 1;
        }
        let all: Vec<_> = counts.values().copied().collect();
        assert_eq!(all, [10, 10, 10], "{counts:?}");
    }
    fixture.scope.close().await;
    servers.close().await;
}

#[tokio::test]
async fn no_connection_fails_while_endpoints_go_and_come() {
    let fixture = Fixture::start().await;
    let service = fixture.address(100, 8000);
    fixture.service("web", service, json!({}));
    let keeper = Scope::new();
    let stable = fixture.address(1, 9000);
    server(&keeper, stable).await;
    let clients = Scope::new();
    for round in 0..5u8 {
        // One is dead from the start: it is tried and skipped. Another ends while used.
        let dead = fixture.address(200, 9000);
        let ending = fixture.address(10 + round, 9000);
        let servers = Scope::new();
        server(&servers, ending).await;
        let all = [(stable, true), (dead, true), (ending, true)];
        fixture.endpoints("web", "TCP", &all);
        eventually(async || ask(service).await).await;
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                clients.spawn(async move {
                    for _ in 0..10 {
                        assert!(ask(service).await.is_some());
                    }
                })
            })
            .collect();
        // It leaves the slice first, as a terminating pod does, then closes.
        fixture.endpoints("web", "TCP", &[(stable, true), (dead, true)]);
        for task in tasks {
            task.await.expect("no client failed");
        }
        servers.close().await;
    }
    fixture.scope.close().await;
    keeper.close().await;
}

#[tokio::test]
async fn open_connections_outlive_their_endpoint_and_the_stop() {
    let fixture = Fixture::start().await;
    let servers = Scope::new();
    let endpoint = fixture.address(1, 9000);
    server(&servers, endpoint).await;
    let service = fixture.address(100, 8000);
    fixture.service("web", service, json!({}));
    fixture.endpoints("web", "TCP", &[(endpoint, true)]);
    eventually(async || ask(service).await).await;
    let mut stream = TcpStream::connect(service).await.expect("connect");
    let mut hello = vec![0; endpoint.to_string().len() + 1];
    stream.read_exact(&mut hello).await.expect("hello");

    fixture.endpoints("web", "TCP", &[]);
    eventually(async || ask(service).await.is_none().then_some(())).await;
    let mut echo = [0; 5];
    stream.write_all(b"still").await.expect("write");
    stream.read_exact(&mut echo).await.expect("read");
    assert_eq!(&echo, b"still");

    fixture.api.remove("services", "web");
    eventually(async || TcpStream::connect(service).await.err()).await;
    let scope = fixture.scope.clone();
    let closing = Scope::new();
    let closed = closing.spawn(async move { scope.close().await });
    fixture.scope.token().cancelled().await;
    stream.write_all(b"again").await.expect("write");
    stream.read_exact(&mut echo).await.expect("read");
    assert_eq!(&echo, b"again");
    drop(stream);
    closed
        .await
        .expect("it stops when its last connection has ended");
    servers.close().await;
}

#[tokio::test]
async fn clients_wait_for_an_endpoint_that_is_coming() {
    let fixture = Fixture::start().await;
    let service = fixture.address(100, 8000);
    fixture.service("web", service, json!({}));
    let endpoint = fixture.address(1, 9000);
    fixture.endpoints("web", "TCP", &[(endpoint, false)]);
    // Listening is all that there is to see from outside.
    eventually(async || TcpStream::connect(service).await.ok()).await;
    let clients = Scope::new();
    let asked = clients.spawn(ask(service));
    let servers = Scope::new();
    server(&servers, endpoint).await;
    fixture.endpoints("web", "TCP", &[(endpoint, true)]);
    assert_eq!(asked.await.expect("no panic"), Some(endpoint.to_string()));
    fixture.scope.close().await;
    servers.close().await;
}

#[tokio::test]
async fn clients_with_affinity_stay() {
    let fixture = Fixture::start().await;
    let servers = Scope::new();
    let endpoints = [1, 2, 3].map(|host| fixture.address(host, 9000));
    for endpoint in endpoints {
        server(&servers, endpoint).await;
    }
    let service = fixture.address(100, 8000);
    fixture.service("web", service, json!({"sessionAffinity": "ClientIP"}));
    fixture.endpoints("web", "TCP", &endpoints.map(|address| (address, true)));
    let first = eventually(async || ask(service).await).await;
    for _ in 0..10 {
        assert_eq!(ask(service).await.as_ref(), Some(&first));
    }
    let rest = endpoints.into_iter().filter(|e| e.to_string() != first);
    let rest: Vec<_> = rest.map(|address| (address, true)).collect();
    fixture.endpoints("web", "TCP", &rest);
    let next = eventually(async || ask(service).await.filter(|next| *next != first)).await;
    assert_eq!(ask(service).await, Some(next));
    fixture.scope.close().await;
    servers.close().await;
}

#[tokio::test]
async fn a_port_in_use_hurts_no_other_service() {
    let fixture = Fixture::start().await;
    let servers = Scope::new();
    let endpoint = fixture.address(1, 9000);
    server(&servers, endpoint).await;
    let taken = fixture.address(100, 8000);
    let other = TcpListener::bind(taken).await.expect("bind");
    let free = fixture.address(101, 8000);
    for (name, address) in [("taken", taken), ("free", free)] {
        fixture.service(name, address, json!({}));
        fixture.endpoints(name, "TCP", &[(endpoint, true)]);
    }
    eventually(async || ask(free).await).await;
    let mut failures = fixture.proxy.failures();
    let failure = failures.wait_for(|failures| !failures.is_empty()).await;
    let failure = failure.expect("the proxy runs")[0].clone();
    assert_eq!(
        (failure.service.as_str(), failure.address),
        ("taken", taken)
    );
    assert!(failure.message.contains("another program listens there"));
    drop(other);
    let cured = failures.wait_for(Vec::is_empty).await;
    assert!(cured.is_ok());
    drop(cured);
    assert!(ask(taken).await.is_some());
    fixture.scope.close().await;
    servers.close().await;
}

/// Answers datagrams with its address.
async fn udp_server(scope: &Scope, address: SocketAddr) {
    let socket = UdpSocket::bind(address).await.expect("bind");
    scope.spawn_cancellable(async move {
        let mut buffer = [0; 64];
        while let Ok((_, client)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(address.to_string().as_bytes(), client).await;
        }
    });
}

#[tokio::test]
async fn datagrams_of_a_client_go_one_way_until_it_is_gone() {
    let fixture = Fixture::start().await;
    let servers = Scope::new();
    let endpoints = [1, 2].map(|host| fixture.address(host, 9000));
    for endpoint in endpoints {
        udp_server(&servers, endpoint).await;
    }
    let service = fixture.address(100, 5300);
    let ports = json!([{"name": "p", "port": service.port(), "protocol": "UDP"}]);
    fixture.service("dns", service, json!({ "ports": ports }));
    fixture.endpoints("dns", "UDP", &endpoints.map(|address| (address, true)));
    let ask = async |client: &UdpSocket| {
        let mut buffer = [0; 64];
        client.send_to(b"?", service).await.ok()?;
        let answer = client.recv_from(&mut buffer);
        let (length, from) = tokio::time::timeout(Duration::from_millis(200), answer)
            .await
            .ok()?
            .ok()?;
        assert_eq!(from, service);
        String::from_utf8(buffer[..length].to_vec()).ok()
    };
    let mut seen = BTreeMap::new();
    for host in 0..6 {
        let client = UdpSocket::bind(fixture.address(20 + host, 0))
            .await
            .expect("bind");
        let first = eventually(async || ask(&client).await).await;
        for _ in 0..3 {
            assert_eq!(ask(&client).await.as_ref(), Some(&first));
        }
        seen.entry(first).or_insert(client);
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    // The endpoint of one client goes: its datagrams go to the other.
    fixture.endpoints("dns", "UDP", &[(endpoints[1], true)]);
    let client = &seen[&endpoints[0].to_string()];
    let other = endpoints[1].to_string();
    eventually(async || ask(client).await.filter(|answer| *answer == other)).await;
    fixture.scope.close().await;
    servers.close().await;
}

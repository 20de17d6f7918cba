//! Requests to HTTP endpoints of the same process.

use crate::{Fixture, eventually};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lifecycle::Scope;
use parking_lot::Mutex;
use serde_json::json;
use service_proxy::{CallError, LocalEndpoints, LocalHttp, RequestBody, ResponseBody};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// Guests by address.
#[derive(Default)]
pub(crate) struct Guests(Mutex<HashMap<SocketAddr, Arc<Guest>>>);

/// Answers with its address and what it was sent.
struct Guest {
    address: SocketAddr,
    in_flight: AtomicUsize,
    /// Requests wait here when it is slow.
    slow: AtomicBool,
    killed: Notify,
    dead: AtomicBool,
}

impl Guests {
    fn add(&self, address: SocketAddr) -> Arc<Guest> {
        let guest = Arc::new(Guest {
            address,
            in_flight: AtomicUsize::new(0),
            slow: AtomicBool::new(false),
            killed: Notify::new(),
            dead: AtomicBool::new(false),
        });
        self.0.lock().insert(address, guest.clone());
        guest
    }

    /// The guest ends with all that it does.
    pub(crate) fn kill(&self, address: SocketAddr) {
        if let Some(guest) = self.0.lock().remove(&address) {
            guest.dead.store(true, Ordering::SeqCst);
            guest.killed.notify_waiters();
        }
    }
}

impl LocalEndpoints for Guests {
    fn http(&self, address: SocketAddr) -> Option<Arc<dyn LocalHttp>> {
        let guest = self.0.lock().get(&address)?.clone();
        Some(Arc::new(Handle(guest)))
    }
}

struct Handle(Arc<Guest>);

impl LocalHttp for Handle {
    fn call(
        &self,
        request: Request<RequestBody>,
    ) -> BoxFuture<'static, Result<Response<ResponseBody>, CallError>> {
        let guest = self.0.clone();
        async move {
            let killed = guest.killed.notified();
            if guest.dead.load(Ordering::SeqCst) {
                return Err(CallError::Gone(Some(Box::new(request))));
            }
            guest.in_flight.fetch_add(1, Ordering::SeqCst);
            if guest.slow.load(Ordering::SeqCst) {
                killed.await;
            } else {
                tokio::task::yield_now().await;
            }
            guest.in_flight.fetch_sub(1, Ordering::SeqCst);
            if guest.dead.load(Ordering::SeqCst) {
                return Err(CallError::Gone(None));
            }
            let body = request.into_body().collect().await;
            let body = body.map_err(|error| CallError::Failed(error.into()))?;
            let text = format!("{} {}", guest.address, body.to_bytes().len());
            let body = Full::new(Bytes::from(text)).map_err(|never| match never {});
            Ok(Response::new(body.boxed_unsync()))
        }
        .boxed()
    }

    fn in_flight(&self) -> usize {
        self.0.in_flight.load(Ordering::SeqCst)
    }
}

/// A client that keeps its connection.
struct Client {
    sender: http1::SendRequest<Full<Bytes>>,
    scope: Scope,
}

impl Client {
    async fn connect(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(address).await.ok()?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        let scope = Scope::new();
        scope.spawn_cancellable(connection);
        Some(Self { sender, scope })
    }

    async fn send(&mut self, method: Method, body: &'static str) -> Result<String, String> {
        let request = Request::builder()
            .method(method)
            .uri("/")
            .header("host", "web")
            .body(Full::new(Bytes::from_static(body.as_bytes())))
            .map_err(|error| error.to_string())?;
        self.sender
            .ready()
            .await
            .map_err(|error| error.to_string())?;
        let response = self.sender.send_request(request).await;
        let response = response.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = response.into_body().collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        if status.is_success() {
            Ok(body)
        } else {
            Err(format!("{status} {body}"))
        }
    }

    async fn get(&mut self) -> Result<String, String> {
        self.send(Method::GET, "").await
    }
}

/// A Service over guests, and a client once they answer.
pub(crate) async fn site(count: u8) -> (Fixture, Arc<Guests>, SocketAddr, Vec<SocketAddr>) {
    let guests = Arc::new(Guests::default());
    let fixture = Fixture::start_with(guests.clone(), |_| None).await;
    let addresses: Vec<_> = (1..=count)
        .map(|host| fixture.address(host, 8080))
        .collect();
    for address in &addresses {
        guests.add(*address);
    }
    let service = fixture.address(100, 8000);
    fixture.service("web", service, json!({}));
    let endpoints: Vec<_> = addresses.iter().map(|address| (*address, true)).collect();
    fixture.endpoints("web", "TCP", &endpoints);
    eventually(async || Client::connect(service).await?.get().await.ok()).await;
    (fixture, guests, service, addresses)
}

#[tokio::test]
async fn requests_of_one_connection_spread() {
    let (fixture, _guests, service, _) = site(3).await;
    let mut client = Client::connect(service).await.expect("connect");
    let mut counts = BTreeMap::new();
    for _ in 0..30 {
        let answer = client.send(Method::POST, "body").await.expect("an answer");
        assert!(answer.ends_with(" 4"), "{answer}");
        *counts.entry(answer).or_insert(0) += 1;
    }
    assert_eq!(counts.values().copied().collect::<Vec<_>>(), [10, 10, 10]);
    let mut registry = prometheus_client::registry::Registry::default();
    fixture.proxy.metrics().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
    let line = "salp_service_http_requests_total{namespace=\"d\",service=\"web\",port=\"p\"}";
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(line))
        .expect("counted");
    assert!(line.trim().parse::<u32>().expect("a number") > 30);
    drop(client);
    fixture.scope.close().await;
}

#[tokio::test]
async fn killing_guests_fails_no_request() {
    let (fixture, guests, service, addresses) = site(4).await;
    let clients = Scope::new();
    let stop = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..6)
        .map(|n| {
            let stop = stop.clone();
            clients.spawn(async move {
                let mut client = Client::connect(service).await.expect("connect");
                let mut count = 0;
                while !stop.load(Ordering::SeqCst) {
                    let (method, body) = match n % 2 {
                        0 => (Method::GET, ""),
                        _ => (Method::PUT, ""),
                    };
                    client.send(method, body).await.expect("no request fails");
                    count += 1;
                }
                count
            })
        })
        .collect();
    for round in 0..40 {
        let address = addresses[round % 4];
        guests.kill(address);
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        guests.add(address);
    }
    // All at once: requests wait until one is back.
    for address in &addresses {
        guests.kill(*address);
    }
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    guests.add(addresses[0]);
    stop.store(true, Ordering::SeqCst);
    let mut total = 0;
    for task in tasks {
        total += task.await.expect("no client failed");
    }
    assert!(total > 40, "{total}");
    fixture.scope.close().await;
}

/// A guest dies and its slice is late: new connections are served all the same by request.
#[tokio::test]
async fn connections_made_beside_a_dead_guest_are_safe() {
    let (fixture, guests, service, addresses) = site(2).await;
    guests.kill(addresses[0]);
    // Endpoints change at the same time, so that all are looked at again.
    let more = fixture.address(3, 8080);
    guests.add(more);
    let endpoints = [addresses[0], addresses[1], more].map(|address| (address, true));
    fixture.endpoints("web", "TCP", &endpoints);
    let mut client = eventually(async || {
        let mut client = Client::connect(service).await?;
        let answer = client.get().await.expect("an answer");
        answer.starts_with(&more.to_string()).then_some(client)
    })
    .await;
    guests.kill(more);
    let answer = client.get().await;
    assert_eq!(answer, Ok(format!("{} 0", addresses[1])));
    fixture.scope.close().await;
}

#[tokio::test]
async fn a_busy_guest_gets_less() {
    let (fixture, guests, service, addresses) = site(2).await;
    let busy = guests.add(addresses[0]);
    busy.slow.store(true, Ordering::SeqCst);
    let clients = Scope::new();
    let mut waiting = Client::connect(service).await.expect("connect");
    let task = clients.spawn(async move {
        let first = waiting.get().await;
        let second = waiting.get().await;
        (first, second)
    });
    eventually(async || (busy.in_flight.load(Ordering::SeqCst) == 1).then_some(())).await;
    let mut client = Client::connect(service).await.expect("connect");
    for _ in 0..10 {
        let answer = client.get().await.expect("an answer");
        assert_eq!(answer, format!("{} 0", addresses[1]));
    }
    // What it had is asked of the other.
    guests.kill(addresses[0]);
    let (first, second) = task.await.expect("no panic");
    assert_eq!(first, Ok(format!("{} 0", addresses[1])));
    assert_eq!(second, first);
    fixture.scope.close().await;
}

#[tokio::test]
async fn what_may_not_be_repeated_is_not() {
    let (fixture, guests, service, addresses) = site(1).await;
    let busy = guests.add(addresses[0]);
    busy.slow.store(true, Ordering::SeqCst);
    let clients = Scope::new();
    let mut client = Client::connect(service).await.expect("connect");
    let task = clients.spawn(async move { client.send(Method::POST, "once").await });
    eventually(async || (busy.in_flight.load(Ordering::SeqCst) == 1).then_some(())).await;
    guests.kill(addresses[0]);
    guests.add(addresses[0]);
    let answer = task.await.expect("no panic");
    assert_eq!(answer, Err("502 Bad Gateway the endpoint has gone".into()));
    // Untouched, it is: the guest is gone before it has seen it.
    guests.kill(addresses[0]);
    let mut client = Client::connect(service).await.expect("connect");
    let task = clients.spawn(async move { client.send(Method::POST, "wait").await });
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    guests.add(addresses[0]);
    assert_eq!(
        task.await.expect("no panic"),
        Ok(format!("{} 4", addresses[0]))
    );
    fixture.scope.close().await;
}

#[tokio::test]
async fn http2_without_tls_is_spoken() {
    let (fixture, _guests, service, _) = site(2).await;
    let stream = TcpStream::connect(service).await.expect("connect");
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .expect("handshake");
    let scope = Scope::new();
    scope.spawn_cancellable(connection);
    let mut answers = Vec::new();
    for _ in 0..4 {
        let request = Request::builder().uri(format!("http://{service}/"));
        let request = request.body(Full::new(Bytes::new())).expect("a request");
        let response = sender.send_request(request).await.expect("a response");
        let body = response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        answers.push(body);
    }
    assert_eq!(answers[0], answers[2]);
    assert_ne!(answers[0], answers[1]);
    scope.close().await;
    fixture.scope.close().await;
}

/// Endpoints move to another node: the same connection goes on, over the network.
#[tokio::test]
async fn requests_follow_when_endpoints_move_away() {
    let (fixture, guests, service, addresses) = site(1).await;
    let mut client = Client::connect(service).await.expect("connect");
    client.get().await.expect("an answer");
    let away = fixture.address(9, 8080);
    let listener = tokio::net::TcpListener::bind(away).await.expect("bind");
    let servers = Scope::new();
    servers.spawn_cancellable(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            let service = hyper::service::service_fn(|_| async {
                Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from("away"))))
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
    });
    fixture.endpoints("web", "TCP", &[(away, true)]);
    guests.kill(addresses[0]);
    let answer = client.get().await;
    assert_eq!(answer, Ok("away".into()));
    client.scope.close().await;
    servers.close().await;
    fixture.scope.close().await;
}

/// An HTTP server of another process, which ends its connections when told.
#[derive(Default)]
struct Away {
    connections: AtomicUsize,
    requests: AtomicUsize,
    end: Notify,
}

impl Away {
    async fn start(address: SocketAddr, scope: &Scope) -> Arc<Self> {
        let away = Arc::new(Self::default());
        let listener = tokio::net::TcpListener::bind(address).await.expect("bind");
        let (server, inner) = (away.clone(), scope.clone());
        scope.spawn_cancellable(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("accept");
                let away = server.clone();
                inner.spawn_cancellable(async move { away.serve(stream).await });
            }
        });
        away
    }

    async fn serve(self: Arc<Self>, stream: TcpStream) {
        self.connections.fetch_add(1, Ordering::SeqCst);
        let away = self.clone();
        let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
            away.requests.fetch_add(1, Ordering::SeqCst);
            async move {
                let body = request.into_body().collect().await?.to_bytes();
                let text = format!("away {}", body.len());
                Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(text))))
            }
        });
        let io = TokioIo::new(stream);
        let serving = hyper::server::conn::http1::Builder::new().serve_connection(io, service);
        tokio::select! {
            _ = serving => {}
            () = self.end.notified() => {}
        }
    }
}

/// One endpoint here, one elsewhere: requests spread over both, and those that leave share
/// connections.
#[tokio::test]
async fn connections_to_endpoints_elsewhere_are_used_again() {
    let (fixture, _guests, service, addresses) = site(1).await;
    let there = fixture.address(9, 8080);
    let servers = Scope::new();
    let away = Away::start(there, &servers).await;
    let both = [(addresses[0], true), (there, true)];
    fixture.endpoints("web", "TCP", &both);
    let mut client = eventually(async || {
        let mut client = Client::connect(service).await?;
        let answer = client.get().await.expect("an answer");
        (answer == "away 0").then_some(client)
    })
    .await;
    let before = away.requests.load(Ordering::SeqCst);
    for _ in 0..20 {
        client.send(Method::POST, "body").await.expect("an answer");
    }
    assert_eq!(away.requests.load(Ordering::SeqCst) - before, 10);
    assert_eq!(away.connections.load(Ordering::SeqCst), 1);

    // Dead connections in the pool fail no request, at whatever moment they die.
    for round in 2..12 {
        away.end.notify_waiters();
        for _ in 0..4 {
            client.get().await.expect("an answer");
        }
        assert_eq!(away.connections.load(Ordering::SeqCst), round);
    }

    // Nor does an endpoint that is gone.
    servers.close().await;
    for _ in 0..4 {
        let answer = client.get().await;
        assert_eq!(answer, Ok(format!("{} 0", addresses[0])));
    }
    client.scope.close().await;
    fixture.scope.close().await;
}

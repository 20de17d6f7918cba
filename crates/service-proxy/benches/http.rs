//! What a request through a Service costs: requests a second of an endpoint in the same
//! process through the proxy, against plain hyper in the same run and with the same
//! clients. `cargo bench -p service-proxy`.

#[path = "../tests/it/api.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod api;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use lifecycle::Scope;
use serde_json::json;
use service_proxy::{
    CallError, LocalEndpoints, LocalHttp, Proxy, ProxyConfig, RequestBody, ResponseBody,
};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};

const RUN: Duration = Duration::from_secs(2);
const SERVICE: &str = "127.77.255.1:8000";
const PLAIN: &str = "127.77.255.2:8000";

struct Hello;

impl LocalEndpoints for Hello {
    fn http(&self, _: SocketAddr) -> Option<Arc<dyn LocalHttp>> {
        Some(Arc::new(Self))
    }
}

impl LocalHttp for Hello {
    fn call(
        &self,
        _: Request<RequestBody>,
    ) -> BoxFuture<'static, Result<Response<ResponseBody>, CallError>> {
        let body = Full::new(Bytes::from_static(b"hello\n")).map_err(|never| match never {});
        async move { Ok(Response::new(body.boxed_unsync())) }.boxed()
    }

    fn in_flight(&self) -> usize {
        0
    }
}

#[allow(clippy::print_stdout, reason = "a bench prints its figures")]
fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let scope = Scope::new();
        plain(&scope).await;
        service(&scope).await;
        for connections in [1, 8, 64] {
            let plain = requests(PLAIN, connections).await;
            let service = requests(SERVICE, connections).await;
            println!(
                "{connections:2} connections: {service:6.0} requests/s through a Service, \
                 {plain:6.0} of plain hyper, ratio {:.2}",
                service / plain
            );
        }
        scope.close().await;
    });
}

async fn plain(scope: &Scope) {
    let listener = TcpListener::bind(PLAIN).await.expect("bind");
    let connections = scope.clone();
    scope.spawn_cancellable(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            let service = hyper::service::service_fn(|_| async {
                let body = Full::new(Bytes::from_static(b"hello\n"));
                Ok::<_, Infallible>(Response::new(body))
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .pipeline_flush(true)
                .serve_connection(TokioIo::new(stream), service);
            connections.spawn_cancellable(connection);
        }
    });
}

async fn service(scope: &Scope) {
    let api = api::FakeApi::default();
    let address: SocketAddr = SERVICE.parse().expect("an address");
    api.put(
        "services",
        json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "hello", "namespace": "d"},
            "spec": {"clusterIP": address.ip(), "ports": [{"port": address.port()}]}}),
    );
    api.put(
        "endpointslices",
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "hello-1", "namespace": "d",
                "labels": {"kubernetes.io/service-name": "hello"}},
            "addressType": "IPv4", "ports": [{"port": 80}],
            "endpoints": [{"addresses": ["127.77.255.11"]}, {"addresses": ["127.77.255.12"]},
                {"addresses": ["127.77.255.13"]}]}),
    );
    let config = ProxyConfig {
        informers: client::Informers::new(api.client(), scope),
        local: Arc::new(Hello),
        activator: Arc::new(service_proxy::NoActivator),
        node_name: "here".into(),
        node_port_addresses: Vec::new(),
        dns: None,
        checkpoint: None,
        connections_max: 1000,
        drain: Duration::from_secs(1),
    };
    Proxy::start(config, scope).ready().await;
}

async fn requests(address: &str, connections: usize) -> f64 {
    let address: SocketAddr = address.parse().expect("an address");
    let scope = Scope::new();
    let end = Instant::now() + RUN;
    let tasks: Vec<_> = (0..connections)
        .map(|_| {
            let inner = scope.clone();
            scope.spawn(async move {
                let stream = TcpStream::connect(address).await.expect("connect");
                let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
                    .await
                    .expect("handshake");
                inner.spawn_cancellable(connection);
                let mut count = 0u32;
                while Instant::now() < end {
                    let request = Request::builder().uri("/").header("host", "hello");
                    let request = request.body(Full::<Bytes>::default()).expect("a request");
                    sender.ready().await.expect("ready");
                    let response = sender.send_request(request).await.expect("a response");
                    response.into_body().collect().await.expect("a body");
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut total = 0;
    for task in tasks {
        total += task.await.expect("a client");
    }
    scope.close().await;
    f64::from(total) / RUN.as_secs_f64()
}

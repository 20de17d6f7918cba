//! HTTP requests balanced one by one over endpoints, those of this process without a second
//! hop; an endpoint that goes away fails no request.
//!
//! This is the hot path: per request one look at the endpoints (no lock), one call.

use crate::Shared;
use crate::backend::{Backend, Connected, Hold, Target, Tried};
use crate::local::{BoxError, CallError, LocalHttp, RequestBody, ResponseBody};
use crate::tcp::speaks_http;
use crate::upgrade::{self, Switch, Tunnel};
use crate::wake::{self, Woken};
use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::Builder;
use lifecycle::{CancellationToken, Scope};
use parking_lot::Mutex;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::net::TcpStream;

/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;

/// Runs what HTTP/2 runs beside its connection.
#[derive(Clone)]
pub(crate) struct InScope(pub(crate) Scope);

impl<F> hyper::rt::Executor<F> for InScope
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        drop(self.0.spawn(task));
    }
}

/// How connections are served.
pub(crate) fn builder(scope: &Scope) -> Builder<InScope> {
    let mut builder = Builder::new(InScope(scope.clone()));
    // Without `pipeline_flush`, which keeps an answer back while bytes behind the request are
    // unread: those of a client that is early with its new protocol, or junk.
    builder.http2().max_concurrent_streams(STREAMS_MAX);
    builder
}

/// What all requests of a connection share.
struct Client {
    address: IpAddr,
    backend: Arc<Backend>,
    shared: Arc<Shared>,
    /// What becomes of the connection when a request has changed its protocol.
    tunnel: Mutex<Option<Tunnel>>,
}

/// Serves a connection until its client closes it; after the token is cancelled only what
/// has begun, for a while.
pub(crate) async fn serve(
    stream: TcpStream,
    address: IpAddr,
    backend: Arc<Backend>,
    shared: Arc<Shared>,
    token: CancellationToken,
) {
    let drain = shared.drain;
    let builder = shared.http.clone();
    let client = Arc::new(Client {
        address,
        backend,
        shared,
        tunnel: Mutex::default(),
    });
    let answering = client.clone();
    let service = service_fn(move |request| {
        let client = answering.clone();
        async move { Ok::<_, Infallible>(client.answer(request).await) }
    });
    let io = TokioIo::new(stream);
    let mut connection = std::pin::pin!(builder.serve_connection_with_upgrades(io, service));
    tokio::select! {
        // How a connection ends is its client's affair.
        _ = connection.as_mut() => {}
        () = token.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(drain, connection).await;
        }
    }
    let tunnel = client.tunnel.lock().take();
    if let Some(tunnel) = tunnel {
        tunnel.run(&client.shared).await;
    }
}

/// What is needed to make a request once more.
pub(crate) struct Copy {
    method: Method,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
}

impl Copy {
    /// Only of requests that can be made twice and have no body to lose.
    fn of(request: &Request<Incoming>) -> Option<Self> {
        let repeatable = request.method().is_idempotent() && request.body().is_end_stream();
        repeatable.then(|| Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            headers: request.headers().clone(),
        })
    }

    pub(crate) fn request(&self) -> Request<RequestBody> {
        let mut request = Request::new(RequestBody::Empty);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers.clone();
        request
    }
}

impl Client {
    async fn answer(&self, mut request: Request<Incoming>) -> Response<ResponseBody> {
        let backend = &*self.backend;
        backend.metrics.requests.inc();
        if request.method() == Method::CONNECT {
            return no_tunnels();
        }
        // What changes its protocol is asked of one endpoint only.
        let switches = upgrade::note(&mut request);
        let copy = if switches { None } else { Copy::of(&request) };
        let mut request = request.map(RequestBody::Received);
        let mut tried = Tried::default();
        let mut hold = None;
        loop {
            let picked = backend.pick(self.address, |target| {
                if tried.is_full() || tried.contains(target.address) {
                    return None;
                }
                match self.shared.local.http(target.address) {
                    Some(http) => Some((http.in_flight(), Turn::Local(http))),
                    None => self.away(target, &tried, false),
                }
            });
            let Some((address, turn)) = picked else {
                // Boxed: rare, and the future of every request would be as large.
                match Box::pin(self.elsewhere(request, copy.as_ref(), &mut hold)).await {
                    Elsewhere::Answered(response) => return response,
                    Elsewhere::Again(untouched) => request = untouched,
                }
                tried.clear();
                continue;
            };
            let called = match turn {
                Turn::Local(http) => http.call(request).await,
                Turn::Away(target) => Box::pin(self.send(target, request, copy.as_ref())).await,
            };
            match called {
                Ok(response) => return response,
                Err(CallError::Gone(untouched)) => match once_more(untouched, copy.as_ref()) {
                    Elsewhere::Answered(response) => return response,
                    Elsewhere::Again(again) => {
                        backend.metrics.retries.inc();
                        tried.push(address);
                        request = again;
                    }
                },
                Err(CallError::Failed(error)) => return self.failed(address, &error),
            }
        }
    }

    /// An endpoint that is reached over the network, if it is one.
    fn away(&self, target: &Arc<Target>, tried: &Tried, desperate: bool) -> Option<(usize, Turn)> {
        // A guest that has just died, and whose slice does not know yet, is none.
        if target.was_local.load(Ordering::Relaxed) {
            return None;
        }
        let (load, target) = self.backend.connect_load(target, tried, desperate)?;
        Some((load, Turn::Away(target)))
    }

    /// Makes a request over the network.
    async fn send(
        &self,
        target: Arc<Target>,
        request: Request<RequestBody>,
        copy: Option<&Copy>,
    ) -> Result<Response<ResponseBody>, CallError> {
        if let Some(switch) = Switch::of(&request) {
            return Box::pin(self.switch(target, request, switch)).await;
        }
        let connected = Connected::new(target.clone());
        let version = request.version();
        let upstreams = &self.shared.upstreams;
        let sent = upstreams.call(target.address, request, copy, connected);
        let mut sent = sent.await;
        match &mut sent {
            // All endpoints have moved away: connected anew the client gets there directly.
            Ok(response)
                if version != Version::HTTP_2 && !speaks_http(&self.backend, &self.shared) =>
            {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            Err(CallError::Gone(Some(_))) => self.backend.avoid(&target),
            _ => {}
        }
        sent
    }

    /// Makes a request over the network that asks for another protocol.
    async fn switch(
        &self,
        target: Arc<Target>,
        request: Request<RequestBody>,
        switch: Switch,
    ) -> Result<Response<ResponseBody>, CallError> {
        let connected = Connected::new(target.clone());
        let upstreams = &self.shared.upstreams;
        let sent = upstreams.switch(target.address, request, switch, connected);
        match sent.await {
            Ok((response, tunnel)) => {
                *self.tunnel.lock() = tunnel;
                Ok(response)
            }
            Err(error) => {
                if matches!(error, CallError::Gone(Some(_))) {
                    self.backend.avoid(&target);
                }
                Err(error)
            }
        }
    }

    /// Nobody is awake: starts a pod that stands by, and gives it the request.
    async fn wake(&self, request: Request<RequestBody>, copy: Option<&Copy>) -> Elsewhere {
        let shared = &self.shared;
        let snapshot = self.backend.snapshot();
        let since = wake::timed(&request);
        let mut awake = wake::awake(&snapshot.sleepers, &*shared.local);
        if awake.is_none() {
            let bytes = wake::head_bytes(&request);
            match shared.waking.wake(&snapshot.sleepers, bytes).await {
                Woken::Awake(_) => awake = wake::awake(&snapshot.sleepers, &*shared.local),
                Woken::Failed => {}
                Woken::Refused => {
                    let refused = refuse(StatusCode::SERVICE_UNAVAILABLE, "too many wait");
                    return Elsewhere::Answered(refused);
                }
            }
        }
        let Some((address, http)) = awake else {
            return Elsewhere::Again(request);
        };
        match http.call(request).await {
            Ok(mut response) => {
                if let Some(since) = since {
                    wake::tell_timing(&mut response, since);
                }
                Elsewhere::Answered(response)
            }
            Err(CallError::Gone(untouched)) => once_more(untouched, copy),
            Err(CallError::Failed(error)) => Elsewhere::Answered(self.failed(address, &error)),
        }
    }

    fn failed(&self, address: SocketAddr, error: &BoxError) -> Response<ResponseBody> {
        tracing::debug!(route = %self.backend.name, %address, %error, "request failed");
        refuse(StatusCode::BAD_GATEWAY, "the endpoint gave no answer")
    }

    /// No endpoint is left: wakes one, asks one that is avoided, or waits.
    async fn elsewhere<'a>(
        &'a self,
        mut request: Request<RequestBody>,
        copy: Option<&Copy>,
        hold: &mut Option<Hold<'a>>,
    ) -> Elsewhere {
        if self.backend.has_sleepers() {
            match self.wake(request, copy).await {
                Elsewhere::Again(untouched) => request = untouched,
                answered => return answered,
            }
        }
        let desperate = self.backend.pick(self.address, |target| {
            self.away(target, &Tried::default(), true)
        });
        if let Some((_, Turn::Away(target))) = desperate {
            match self.send(target, request, copy).await {
                Ok(response) => return Elsewhere::Answered(response),
                Err(error) => {
                    let untouched = match error {
                        CallError::Gone(untouched) => untouched,
                        CallError::Failed(_) => None,
                    };
                    match once_more(untouched, copy) {
                        Elsewhere::Again(again) => request = again,
                        refused => return refused,
                    }
                }
            }
        }
        if hold.is_none() {
            *hold = self.backend.hold();
        }
        let again = match hold {
            Some(hold) => hold.pause().await,
            None => false,
        };
        if again {
            return Elsewhere::Again(request);
        }
        let refused = refuse(StatusCode::SERVICE_UNAVAILABLE, "no endpoint is ready");
        Elsewhere::Answered(refused)
    }
}

/// Whose turn it is.
enum Turn {
    /// An endpoint of this process.
    Local(Arc<dyn LocalHttp>),
    /// One that is reached over the network.
    Away(Arc<Target>),
}

/// What came of a request that no endpoint of this process could take.
enum Elsewhere {
    Answered(Response<ResponseBody>),
    /// There may be one now.
    Again(Request<RequestBody>),
}

/// The request again after its endpoint has gone, when it is untouched or may be made twice.
fn once_more(untouched: Option<Box<Request<RequestBody>>>, copy: Option<&Copy>) -> Elsewhere {
    untouched
        .map(|request| *request)
        .or_else(|| copy.map(Copy::request))
        .map_or_else(
            || Elsewhere::Answered(refuse(StatusCode::BAD_GATEWAY, "the endpoint has gone")),
            Elsewhere::Again,
        )
}

/// `CONNECT` asks a proxy for a tunnel to anywhere, which this is not.
fn no_tunnels() -> Response<ResponseBody> {
    let why = "this is a Service: it makes no tunnels to elsewhere";
    let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, why);
    let allowed = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
    response.headers_mut().insert(ALLOW, allowed);
    response
}

fn refuse(status: StatusCode, why: &'static str) -> Response<ResponseBody> {
    let body = Full::new(Bytes::from_static(why.as_bytes()));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let soon = HeaderValue::from_static("1");
        response.headers_mut().insert(RETRY_AFTER, soon);
    }
    response
}

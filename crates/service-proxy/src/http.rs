//! HTTP requests balanced one by one over endpoints of this process: no second hop, and
//! an endpoint that goes away fails no request.
//!
//! This is the hot path: per request one look at the endpoints (no lock), one call.

use crate::Shared;
use crate::backend::{Backend, Hold, Tried};
use crate::local::{BoxError, CallError, RequestBody, ResponseBody};
use crate::tcp::connect;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::Builder;
use lifecycle::{CancellationToken, Scope};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
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
    builder.http1().pipeline_flush(true);
    builder.http2().max_concurrent_streams(STREAMS_MAX);
    builder
}

/// What all requests of a connection share.
struct Client {
    address: IpAddr,
    backend: Arc<Backend>,
    shared: Arc<Shared>,
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
    });
    let service = service_fn(move |request| {
        let client = client.clone();
        async move { Ok::<_, Infallible>(client.answer(request).await) }
    });
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // How a connection ends is its client's affair.
        _ = connection.as_mut() => return,
        () = token.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = tokio::time::timeout(drain, connection).await;
}

/// What is needed to make a request once more.
struct Copy {
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

    fn request(&self) -> Request<RequestBody> {
        let mut request = Request::new(RequestBody::Empty);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers.clone();
        request
    }
}

impl Client {
    async fn answer(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        let backend = &*self.backend;
        backend.metrics.requests.inc();
        let copy = Copy::of(&request);
        let mut request = request.map(RequestBody::Received);
        let mut tried = Tried::default();
        let mut hold = None;
        loop {
            let picked = backend.pick(self.address, |target| {
                if tried.is_full() || tried.contains(target.address) {
                    return None;
                }
                let http = self.shared.local.http(target.address)?;
                Some((http.in_flight(), http))
            });
            let Some((address, http)) = picked else {
                // Boxed: rare, and the future of every request would be as large.
                match Box::pin(self.elsewhere(request, &mut hold)).await {
                    Elsewhere::Answered(response) => return response,
                    Elsewhere::Again(untouched) => request = untouched,
                }
                tried.clear();
                continue;
            };
            match http.call(request).await {
                Ok(response) => return response,
                Err(CallError::Gone(untouched)) => {
                    let again = untouched
                        .map(|request| *request)
                        .or_else(|| copy.as_ref().map(Copy::request));
                    let Some(again) = again else {
                        return refuse(StatusCode::BAD_GATEWAY, "the endpoint has gone");
                    };
                    backend.metrics.retries.inc();
                    tried.push(address);
                    request = again;
                }
                Err(CallError::Failed(error)) => {
                    tracing::debug!(route = %backend.name, %address, %error, "request failed");
                    return refuse(StatusCode::BAD_GATEWAY, "the endpoint gave no answer");
                }
            }
        }
    }

    /// No endpoint of this process is left: asks one elsewhere, or waits for one here.
    async fn elsewhere<'a>(
        &'a self,
        request: Request<RequestBody>,
        hold: &mut Option<Hold<'a>>,
    ) -> Elsewhere {
        if let Some((stream, _connected)) = connect(&self.backend, self.address).await {
            let response = forward(stream, request, &self.shared).await;
            return Elsewhere::Answered(response);
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

/// What came of a request that no endpoint of this process could take.
enum Elsewhere {
    Answered(Response<ResponseBody>),
    /// There may be one now.
    Again(Request<RequestBody>),
}

/// Makes a request over a connection to an endpoint elsewhere. Rare: endpoints have just
/// changed; the client is told to connect anew and then gets there directly.
async fn forward(
    stream: TcpStream,
    request: Request<RequestBody>,
    shared: &Shared,
) -> Response<ResponseBody> {
    let version = request.version();
    let sent = if version == Version::HTTP_2 {
        let executor = InScope(shared.scope.clone());
        match hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await {
            Ok((mut sender, connection)) => {
                shared.scope.spawn_cancellable(connection);
                sender.send_request(request).await
            }
            Err(error) => Err(error),
        }
    } else {
        match hyper::client::conn::http1::handshake(TokioIo::new(stream)).await {
            Ok((mut sender, connection)) => {
                shared.scope.spawn_cancellable(connection);
                sender.send_request(request).await
            }
            Err(error) => Err(error),
        }
    };
    match sent {
        Ok(response) => {
            let mut response = response.map(|body| body.map_err(BoxError::from).boxed_unsync());
            if version != Version::HTTP_2 {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            response
        }
        Err(error) => {
            tracing::debug!(%error, "request not forwarded");
            refuse(StatusCode::BAD_GATEWAY, "the endpoint gave no answer")
        }
    }
}

fn refuse(status: StatusCode, why: &'static str) -> Response<ResponseBody> {
    let body = Full::new(Bytes::from_static(why.as_bytes()));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text);
    response
}

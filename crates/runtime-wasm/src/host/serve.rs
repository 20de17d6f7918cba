//! An HTTP container's listeners, and its endpoint for callers in this process.

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use lifecycle::{CancellationToken, Scope};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use wasm::{GuestBody, HttpError, HttpGuest};

/// Connections that the kernel holds until they are accepted.
const BACKLOG: u32 = 1024;

/// Pause after an accept that failed for want of a resource (file handles, memory).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An HTTP container, callable without a connection.
#[derive(Debug)]
pub struct HttpEndpoint {
    guest: HttpGuest,
    gone: AtomicBool,
    /// Calls that the guest may not know of yet; a container waits for them before it stops.
    calls: AtomicUsize,
}

impl HttpEndpoint {
    pub(super) fn new(guest: HttpGuest) -> Arc<Self> {
        Arc::new(Self {
            guest,
            gone: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
        })
    }

    /// [`HttpEndpoint::call`], unless it takes no more requests: then the request comes back
    /// untouched, for another endpoint. Once taken, a request is finished before the
    /// container stops, as far as the grace period allows.
    ///
    /// # Errors
    /// The request.
    pub async fn try_call<B>(
        &self,
        request: Request<B>,
    ) -> Result<Response<ResponseBody>, Request<B>>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        // Counted first: whoever drains either sees this call or has set `gone` before.
        let _counted = Counted::add(&self.calls);
        if self.is_gone() {
            return Err(request);
        }
        Ok(self.call(request).await)
    }

    /// Lets the guest answer. A guest that fails gives a response that says so: 500 when it
    /// trapped, 503 when it takes no more, 504 when it took too long.
    pub async fn call<B>(&self, request: Request<B>) -> Response<ResponseBody>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        match self.guest.handle(request).await {
            Ok(response) => response.map(ResponseBody::Guest),
            Err(error) => failure(&error),
        }
    }

    /// Requests not yet answered to the last byte.
    pub fn in_flight(&self) -> usize {
        self.guest.in_flight()
    }

    /// Whether it takes no more requests: find another endpoint.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    pub(super) fn leave(&self) {
        self.gone.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.calls.load(Ordering::SeqCst) == 0 && self.guest.in_flight() == 0
    }
}

struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn add(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A response's body: the guest's, or the host's few words about a guest that failed.
#[derive(Debug)]
pub enum ResponseBody {
    /// From the guest.
    Guest(GuestBody),
    /// From the host.
    Text(Option<Bytes>),
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Guest(body) => Pin::new(body).poll_frame(cx),
            Self::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Guest(body) => body.is_end_stream(),
            Self::Text(text) => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Guest(body) => body.size_hint(),
            Self::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
        }
    }
}

fn failure(error: &HttpError) -> Response<ResponseBody> {
    let (status, text) = match error {
        HttpError::Trap(_) | HttpError::NoResponse(_) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "the program failed; its log says why\n",
        ),
        HttpError::OutOfMemory(_) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "the program ran out of memory\n",
        ),
        HttpError::Timeout(_) => (
            StatusCode::GATEWAY_TIMEOUT,
            "the program did not answer in time\n",
        ),
        HttpError::Overloaded => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the program has too many requests waiting\n",
        ),
        HttpError::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "the program is stopped\n"),
    };
    let mut response = Response::new(ResponseBody::Text(Some(Bytes::from_static(
        text.as_bytes(),
    ))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Binds an address of a pod.
pub(super) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // A restarted container takes the port over from connections that still linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Why a listener accepts no more.
pub(super) enum Closed {
    Draining,
    OutOfMemory,
}

/// Accepts connections until told to drain, those then finish what they began, or until the
/// guest is out of memory. This is all that a container at rest keeps running.
pub(super) async fn accept(
    listener: TcpListener,
    endpoint: Arc<HttpEndpoint>,
    draining: CancellationToken,
    connections: Scope,
) -> Closed {
    loop {
        let accepted = tokio::select! {
            biased;
            () = draining.cancelled() => return Closed::Draining,
            () = endpoint.guest.out_of_memory().cancelled() => return Closed::OutOfMemory,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn_cancellable(connection(
                    stream,
                    endpoint.clone(),
                    draining.clone(),
                ));
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, endpoint: Arc<HttpEndpoint>, draining: CancellationToken) {
    // A response must not wait for the client's acknowledgement of the one before.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "could not switch off delays");
    }
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .http2()
        .timer(TokioTimer::new());
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let endpoint = endpoint.clone();
        async move { Ok::<_, Infallible>(endpoint.call(request).await) }
    });
    let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = &mut serving => ended,
        () = draining.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        // The client's doing, or a response that was cut off because its guest failed; the
        // guest's log has that.
        tracing::debug!(%error, "connection ended");
    }
}

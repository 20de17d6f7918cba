//! Endpoints that live in this process: called, not connected to.

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Any error of a body or of a guest.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a response.
pub type ResponseBody = UnsyncBoxBody<Bytes, BoxError>;

/// The endpoints that this process itself answers for.
pub trait LocalEndpoints: Send + Sync + 'static {
    /// The HTTP endpoint at a pod's address and port, if it is here and alive now.
    /// Asked for each request: must be quick.
    fn http(&self, address: SocketAddr) -> Option<Arc<dyn LocalHttp>>;
}

/// No endpoint is local.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoLocalEndpoints;

impl LocalEndpoints for NoLocalEndpoints {
    fn http(&self, _: SocketAddr) -> Option<Arc<dyn LocalHttp>> {
        None
    }
}

/// An HTTP server without a socket.
pub trait LocalHttp: Send + Sync + 'static {
    /// Answers a request. The future is `'static`: it keeps alive what it needs.
    fn call(
        &self,
        request: Request<RequestBody>,
    ) -> BoxFuture<'static, Result<Response<ResponseBody>, CallError>>;

    /// Requests that it has now: of two endpoints the one with fewer is called.
    fn in_flight(&self) -> usize;
}

/// Why a local endpoint gave no response.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It has stopped, or was stopped before it answered. With the request when that is
    /// untouched: then it is given to another endpoint whatever it is; without, only when
    /// it is idempotent and had no body.
    #[error("call endpoint: it is gone")]
    Gone(Option<Box<Request<RequestBody>>>),
    /// It failed to answer this request; another would hardly do better.
    #[error("call endpoint")]
    Failed(#[source] BoxError),
}

/// The body of a request.
#[derive(Debug)]
pub enum RequestBody {
    /// As it comes from the client.
    Received(Incoming),
    /// None.
    Empty,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Received(body) => Pin::new(body).poll_frame(cx),
            Self::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Received(body) => body.is_end_stream(),
            Self::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Received(body) => body.size_hint(),
            Self::Empty => SizeHint::with_exact(0),
        }
    }
}

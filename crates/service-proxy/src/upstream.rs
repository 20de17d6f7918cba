//! HTTP endpoints of other processes and nodes: connections to them are kept and used
//! again, and one that died meanwhile fails no request.
//!
//! A request is given to another connection when it came back unsent, and made once more
//! when it may be made twice. Not here: whose turn it is, see `backend`.

use crate::backend::Connected;
use crate::http::{Copy, InScope};
use crate::local::{BoxError, CallError, RequestBody, ResponseBody};
use crate::upgrade::{self, Switch, Tunnel};
use bytes::Bytes;
use http::header::{CONNECTION, HeaderMap, HeaderName, UPGRADE};
use http::{Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::TokioIo;
use lifecycle::Scope;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Idle connections kept to one endpoint; further ones are closed.
const IDLE_PER_ENDPOINT_MAX: usize = 32;
/// Idle connections kept to all; further ones are closed.
const IDLE_MAX: usize = 1024;
/// How long one is kept.
const IDLE_FOR: Duration = Duration::from_secs(30);
/// What may not be made twice is only given to a connection that was used just now:
/// servers close those that were idle for long, at any moment.
const IDLE_FOR_ONCE: Duration = Duration::from_secs(1);
/// Kept connections that are tried for one request; then a new one is made.
const KEPT_TRIES_MAX: usize = 3;
/// A connection whose last exchange is not over by then is not waited for.
const READY_TIMEOUT: Duration = Duration::from_millis(10);
/// An endpoint of this network answers sooner, or is gone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Connections to endpoints of other processes.
pub(crate) struct Upstreams {
    scope: Scope,
    /// Never held across an await.
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    http1: HashMap<SocketAddr, Vec<(http1::SendRequest<RequestBody>, Instant)>>,
    http1_count: usize,
    /// One each: it carries many requests at once.
    http2: HashMap<SocketAddr, http2::SendRequest<RequestBody>>,
}

/// Why a connection gave no response.
enum Unanswered {
    /// The request came back as it was.
    Unsent(Box<Request<RequestBody>>),
    /// It may have been seen.
    Sent,
    /// The endpoint changed the protocol, which nobody had asked for.
    Switched,
}

impl From<TrySendError<Request<RequestBody>>> for Unanswered {
    fn from(mut error: TrySendError<Request<RequestBody>>) -> Self {
        match error.take_message() {
            Some(request) => Self::Unsent(Box::new(request)),
            None => {
                tracing::debug!(error = %error.error(), "request not answered");
                Self::Sent
            }
        }
    }
}

impl Upstreams {
    pub(crate) fn new(scope: &Scope) -> Arc<Self> {
        let upstreams = Arc::new(Self {
            scope: scope.clone(),
            idle: Mutex::default(),
        });
        let swept = upstreams.clone();
        scope.spawn_cancellable(async move {
            loop {
                tokio::time::sleep(IDLE_FOR / 2).await;
                swept.sweep();
            }
        });
        upstreams
    }

    /// Makes a request. [`CallError::Gone`] with the request where it was not sent.
    pub(crate) async fn call(
        self: &Arc<Self>,
        address: SocketAddr,
        mut request: Request<RequestBody>,
        copy: Option<&Copy>,
        connected: Connected,
    ) -> Result<Response<ResponseBody>, CallError> {
        let h2 = request.version() == Version::HTTP_2;
        prepare(&mut request);
        for _ in 0..KEPT_TRIES_MAX {
            let Some(kept) = self.take(address, h2, copy.is_some()).await else {
                break;
            };
            match self.send(address, kept, request, connected.clone()).await {
                Ok(response) => return Ok(response),
                Err(Unanswered::Unsent(unsent)) => request = *unsent,
                Err(Unanswered::Sent) => {
                    request = copy.ok_or(CallError::Gone(None))?.request();
                    prepare(&mut request);
                }
                Err(Unanswered::Switched) => return Err(switched()),
            }
        }
        let fresh = tokio::time::timeout(CONNECT_TIMEOUT, self.connect(address, h2)).await;
        let Ok(Some(fresh)) = fresh else {
            return Err(CallError::Gone(Some(Box::new(request))));
        };
        match self.send(address, fresh, request, connected).await {
            Ok(response) => Ok(response),
            Err(Unanswered::Unsent(request)) => Err(CallError::Gone(Some(request))),
            Err(Unanswered::Sent) => Err(CallError::Gone(None)),
            Err(Unanswered::Switched) => Err(switched()),
        }
    }

    /// Makes a request that asks for another protocol, on a connection of its own. The response
    /// is the endpoint's; with a tunnel when it agrees.
    pub(crate) async fn switch(
        self: &Arc<Self>,
        address: SocketAddr,
        mut request: Request<RequestBody>,
        switch: Switch,
        connected: Connected,
    ) -> Result<(Response<ResponseBody>, Option<Tunnel>), CallError> {
        prepare(&mut request);
        switch.ask(request.headers_mut());
        let fresh = tokio::time::timeout(CONNECT_TIMEOUT, self.connect_to_switch(address)).await;
        let Ok(Some(mut sender)) = fresh else {
            return Err(CallError::Gone(Some(Box::new(request))));
        };
        let mut response = match sender.try_send_request(request).await.map_err(Into::into) {
            Ok(response) => response,
            Err(Unanswered::Unsent(request)) => return Err(CallError::Gone(Some(request))),
            Err(_) => return Err(CallError::Gone(None)),
        };
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let back = Some((self.clone(), address, sender));
            return Ok((received(response, back, connected), None));
        }
        let tunnel = switch.tunnel(hyper::upgrade::on(&mut response), connected);
        upgrade::keep(response.headers_mut(), hop);
        let response = response.map(|_| ResponseBody::new(RequestBody::Empty.map_err(Into::into)));
        Ok((response, Some(tunnel)))
    }

    async fn connect_to_switch(
        &self,
        address: SocketAddr,
    ) -> Option<http1::SendRequest<RequestBody>> {
        let (sender, connection) = http1::handshake(dial(address).await?).await.ok()?;
        self.scope.spawn_cancellable(connection.with_upgrades());
        Some(sender)
    }

    /// A kept connection that is alive as far as is known.
    async fn take(&self, address: SocketAddr, h2: bool, repeatable: bool) -> Option<Sender> {
        if h2 {
            let mut sender = self.idle.lock().http2.get(&address)?.clone();
            if sender.ready().await.is_ok() {
                return Some(Sender::Http2(sender));
            }
            self.idle.lock().http2.remove(&address);
            return None;
        }
        let idle_for = if repeatable { IDLE_FOR } else { IDLE_FOR_ONCE };
        loop {
            let mut sender = {
                let mut idle = self.idle.lock();
                let kept = idle.http1.get_mut(&address)?;
                // The newest: if that is too old, all are.
                let (sender, _) = kept.pop_if(|(_, since)| since.elapsed() < idle_for)?;
                idle.http1_count -= 1;
                sender
            };
            let ready = tokio::time::timeout(READY_TIMEOUT, sender.ready()).await;
            if matches!(ready, Ok(Ok(()))) {
                return Some(Sender::Http1(sender));
            }
        }
    }

    async fn connect(&self, address: SocketAddr, h2: bool) -> Option<Sender> {
        let io = dial(address).await?;
        if h2 {
            let executor = InScope(self.scope.clone());
            let (sender, connection) = http2::handshake(executor, io).await.ok()?;
            self.scope.spawn_cancellable(connection);
            let mut idle = self.idle.lock();
            if idle.http2.len() < IDLE_MAX {
                idle.http2.insert(address, sender.clone());
            }
            return Some(Sender::Http2(sender));
        }
        let (sender, connection) = http1::handshake(io).await.ok()?;
        self.scope.spawn_cancellable(connection);
        Some(Sender::Http1(sender))
    }

    async fn send(
        self: &Arc<Self>,
        address: SocketAddr,
        sender: Sender,
        request: Request<RequestBody>,
        connected: Connected,
    ) -> Result<Response<ResponseBody>, Unanswered> {
        let (response, back) = match sender {
            Sender::Http1(mut sender) => {
                let response = sender.try_send_request(request).await?;
                (response, Some((self.clone(), address, sender)))
            }
            Sender::Http2(mut sender) => (sender.try_send_request(request).await?, None),
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Unanswered::Switched);
        }
        Ok(received(response, back, connected))
    }

    /// Keeps a connection that is free again.
    fn put(&self, address: SocketAddr, sender: http1::SendRequest<RequestBody>) {
        let mut idle = self.idle.lock();
        if sender.is_closed() || idle.http1_count >= IDLE_MAX {
            return;
        }
        let kept = idle.http1.entry(address).or_default();
        if kept.len() >= IDLE_PER_ENDPOINT_MAX {
            return;
        }
        kept.push((sender, Instant::now()));
        idle.http1_count += 1;
    }

    /// Closes what was idle for long.
    fn sweep(&self) {
        let mut idle = self.idle.lock();
        let idle = &mut *idle;
        idle.http1.retain(|_, kept| {
            kept.retain(|(sender, since)| !sender.is_closed() && since.elapsed() < IDLE_FOR);
            !kept.is_empty()
        });
        idle.http1_count = idle.http1.values().map(Vec::len).sum();
        idle.http2.retain(|_, sender| !sender.is_closed());
    }
}

enum Sender {
    Http1(http1::SendRequest<RequestBody>),
    Http2(http2::SendRequest<RequestBody>),
}

fn switched() -> CallError {
    CallError::Failed("it changed the protocol unasked".into())
}

async fn dial(address: SocketAddr) -> Option<TokioIo<TcpStream>> {
    let stream = TcpStream::connect(address).await.ok()?;
    // Failing only makes it slower.
    let _ = stream.set_nodelay(true);
    Some(TokioIo::new(stream))
}

/// An endpoint's response, whose connection is free again when its body has ended.
fn received(
    response: Response<Incoming>,
    back: Option<Back>,
    connected: Connected,
) -> Response<ResponseBody> {
    let (mut head, body) = response.into_parts();
    hop(&mut head.headers);
    let mut body = UpstreamBody {
        body,
        back,
        _connected: connected,
    };
    body.check_end();
    Response::from_parts(head, ResponseBody::new(body))
}

/// Takes out what is between the client and this proxy only.
fn prepare(request: &mut Request<RequestBody>) {
    hop(request.headers_mut());
    if request.version() != Version::HTTP_2 {
        *request.version_mut() = Version::HTTP_11;
    }
}

/// Removes headers that are for one connection (RFC 9110, 7.6.1).
fn hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, UPGRADE] {
        headers.remove(name);
    }
}

/// Where a connection goes when it is free.
type Back = (Arc<Upstreams>, SocketAddr, http1::SendRequest<RequestBody>);

/// A response's body; when it has ended its connection is free again.
struct UpstreamBody {
    body: Incoming,
    back: Option<Back>,
    _connected: Connected,
}

impl UpstreamBody {
    fn check_end(&mut self) {
        if self.body.is_end_stream()
            && let Some((upstreams, address, sender)) = self.back.take()
        {
            upstreams.put(address, sender);
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(_)) => this.check_end(),
            Some(Err(_)) => drop(this.back.take()),
            None => {
                if let Some((upstreams, address, sender)) = this.back.take() {
                    upstreams.put(address, sender);
                }
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

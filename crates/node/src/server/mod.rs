//! The kubelet's HTTPS API: what the API server asks of a node (logs, exec, port-forward, stats)
//! and what monitoring reads (metrics, stats).
//!
//! Clients show a certificate of the cluster's CA or a token that the API server knows; only
//! `/healthz` answers without.
//! Start with [`Server::start`] and [`Server::route`].

mod delegate;
mod metrics;
mod stats;
mod streams;
mod tls;

use crate::agent::{Agent, Slot};
use crate::config::{Error, Kubelet};
use crate::logs::{self, read};
use crate::state::Run;
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tls::Identity;
pub(crate) use tls::Serving;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, mpsc};

/// Connections at once; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 256;
/// A handshake or a request's head may take this long.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);

type Body = BoxBody<Bytes, io::Error>;

/// What serves the API.
pub(crate) struct Server {
    agent: Arc<Agent>,
    tls: tokio_rustls::TlsAcceptor,
    sessions: Arc<Semaphore>,
    delegate: delegate::Delegate,
    scope: lifecycle::Scope,
}

impl Server {
    /// Serves until the scope is cancelled.
    pub(crate) fn start(
        agent: Arc<Agent>,
        kubelet: Kubelet,
        scope: &lifecycle::Scope,
    ) -> Result<Arc<Serving>, Error> {
        let (tls, serving) = tls::acceptor(&kubelet).map_err(Error::Tls)?;
        kubelet
            .listener
            .set_nonblocking(true)
            .map_err(Error::Listen)?;
        let listener = TcpListener::from_std(kubelet.listener).map_err(Error::Listen)?;
        let server = Arc::new(Self {
            delegate: delegate::Delegate::new(agent.client.clone(), &agent.fixed.name),
            agent,
            tls,
            sessions: Arc::new(Semaphore::new(streams::SESSIONS_MAX)),
            scope: scope.clone(),
        });
        scope.spawn_cancellable(server.accept(listener));
        Ok(serving)
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(turn) = connections.clone().acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = self.clone();
                    self.scope.spawn_cancellable(async move {
                        server.serve(stream).await;
                        drop(turn);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, stream: TcpStream) {
        let accepted = tokio::time::timeout(HEAD_DEADLINE, self.tls.accept(stream)).await;
        let stream = match accepted {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => return tracing::debug!("TLS handshake took too long"),
        };
        let identity = Arc::new(tls::identity(&stream));
        let service = hyper::service::service_fn(move |request| {
            let (server, identity) = (self.clone(), identity.clone());
            async move { Ok::<_, std::convert::Infallible>(server.answer(&identity, request).await) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "connection ended");
        }
    }

    async fn answer(&self, identity: &Identity, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
        if parts == ["healthz"] {
            return text(StatusCode::OK, "ok");
        }
        let by_token = match (identity, bearer(request.headers())) {
            (Identity::None, Some(token)) => self.delegate.identify(token).await,
            _ => None,
        };
        let identity = by_token.as_ref().unwrap_or(identity);
        // Without a server administrators and the server itself are known by their certificates.
        if !identity.may_use_kubelet() {
            let asked = self.delegate.allows(identity, request.method(), &parts);
            match asked.await {
                Ok(()) => {}
                Err(StatusCode::UNAUTHORIZED) => {
                    return text(StatusCode::UNAUTHORIZED, "Unauthorized");
                }
                Err(status) => {
                    let reason = status.canonical_reason().unwrap_or_default();
                    return text(status, &format!("{reason} ({identity})"));
                }
            }
        }
        if let ["exec" | "attach" | "portForward", ..] = parts.as_slice() {
            return self.stream(request).await;
        }
        if let ["run" | "checkpoint", ..] = parts.as_slice() {
            let words = format!("{} is not supported by this node's runtimes", parts[0]);
            return text(StatusCode::NOT_IMPLEMENTED, &words);
        }
        if request.method() != Method::GET {
            return text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
        }
        self.route(&parts, request.uri().query().unwrap_or_default())
            .await
    }

    async fn route(&self, parts: &[&str], query: &str) -> Response<Body> {
        match parts {
            ["pods" | "runningpods"] => json(&stats::pods(&self.agent)),
            ["stats", "summary"] => json(&stats::summary(&self.agent).await),
            ["stats", "salp"] => json(&stats::salp(&self.agent).await),
            ["metrics"] => metrics_text(metrics::node(&self.agent)),
            ["metrics", "resource"] => metrics_text(metrics::resource(&self.agent).await),
            ["metrics", "dataplane"] => metrics_text(metrics::dataplane(&self.agent).await),
            ["configz"] => json(&stats::configz(&self.agent)),
            ["containerLogs", namespace, pod, container] => {
                self.logs(namespace, pod, container, query)
            }
            _ => text(StatusCode::NOT_FOUND, "404 page not found"),
        }
    }

    fn logs(&self, namespace: &str, pod: &str, container: &str, query: &str) -> Response<Body> {
        let bad = |words: &str| text(StatusCode::BAD_REQUEST, words);
        let (options, previous) = match log_options(query, self.agent.clock.now()) {
            Ok(parsed) => parsed,
            Err(words) => return bad(&words),
        };
        let Some(slot) = self.agent.find(namespace, pod) else {
            return text(
                StatusCode::NOT_FOUND,
                &format!("pod {pod:?} does not exist on this node"),
            );
        };
        let found = logs::find(&self.agent.fixed.dir, &slot.lock(), container, previous);
        let found = match found {
            Ok(found) => found,
            Err(error) => return bad(&error.to_string()),
        };
        let (out, pieces) = mpsc::channel(read::PIECES_PENDING_MAX);
        self.scope.spawn_cancellable(async move {
            let writer = Follower {
                slot,
                container: found.container,
                attempt: found.attempt,
            };
            read::stream(&found.path, &options, &writer, out).await;
        });
        let mut response = Response::new(streamed(received(pieces)));
        response.headers_mut().insert(
            http::header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        response
    }
}

/// The token that a request shows.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let shown = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = shown.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn received(
    mut pieces: mpsc::Receiver<io::Result<Bytes>>,
) -> impl Stream<Item = io::Result<Bytes>> {
    futures::stream::poll_fn(move |context| pieces.poll_recv(context))
}

/// A run of a container as a log's follower sees it.
struct Follower {
    slot: Arc<Slot>,
    container: usize,
    attempt: u32,
}

impl read::Writer for Follower {
    fn is_alive(&self) -> bool {
        let record = self.slot.lock();
        let container = record.actual.containers.get(self.container);
        container.is_some_and(|c| c.attempt == self.attempt && matches!(c.run, Run::Running { .. }))
    }

    fn changed(&self) -> &Notify {
        &self.slot.changed
    }
}

/// The options of a request for logs, and whether the previous run is meant.
fn log_options(query: &str, now: jiff::Timestamp) -> Result<(read::Options, bool), String> {
    let mut options = read::Options::default();
    let mut previous = false;
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        let number = || {
            value
                .parse::<u64>()
                .map_err(|_| format!("{name} must be a number, not {value:?}"))
        };
        let truth = || matches!(&*value, "true" | "1" | "");
        match &*name {
            "tailLines" => options.tail_lines = Some(number()?),
            "limitBytes" => options.limit_bytes = Some(number()?),
            "sinceSeconds" => {
                let back = jiff::SignedDuration::from_secs(i64::try_from(number()?).unwrap_or(0));
                options.since = now.checked_sub(back).ok();
            }
            "sinceTime" => {
                let time = value.parse();
                options.since = Some(time.map_err(|_| format!("sinceTime {value:?} is no time"))?);
            }
            "timestamps" => options.timestamps = truth(),
            "follow" => options.follow = truth(),
            "previous" => previous = truth(),
            "stream" => match &*value {
                "" | "All" => {}
                "Stdout" => options.stream = Some("stdout".into()),
                "Stderr" => options.stream = Some("stderr".into()),
                other => {
                    return Err(format!(
                        "stream must be All, Stdout or Stderr, not {other:?}"
                    ));
                }
            },
            // Unknown parameters are left to newer kubelets.
            _ => {}
        }
    }
    Ok((options, previous))
}

fn text(status: StatusCode, words: &str) -> Response<Body> {
    typed(
        status,
        "text/plain; charset=utf-8",
        format!("{words}\n").into(),
    )
}

fn json(value: &impl serde::Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => typed(StatusCode::OK, "application/json", bytes.into()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn metrics_text(text: String) -> Response<Body> {
    let type_ = "text/plain; version=0.0.4; charset=utf-8";
    typed(StatusCode::OK, type_, text.into())
}

fn typed(status: StatusCode, type_: &'static str, bytes: Bytes) -> Response<Body> {
    let body = Full::new(bytes).map_err(|never| match never {}).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(type_));
    response
}

fn streamed(pieces: impl Stream<Item = io::Result<Bytes>> + Send + Sync + 'static) -> Body {
    BodyExt::boxed(StreamBody::new(pieces.map(|piece| piece.map(Frame::data))))
}

#[cfg(test)]
mod tests;

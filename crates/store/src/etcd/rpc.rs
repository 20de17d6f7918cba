//! Calls to the members of an etcd cluster: one at a time is asked, the next when it fails.

use super::messages::{WatchRequest, WatchResponse};
use crate::Error;
use futures::{Stream, StreamExt as _};
use http::uri::PathAndQuery;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tonic::client::Grpc;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// How long a call is tried again before it fails: an election of etcd takes a second or two.
const TRIED_FOR: Duration = Duration::from_secs(15);
/// How long one member may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long one member may take to be connected to.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Before the first new try; doubled for each up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A member that does not answer a ping so long is taken for gone.
const PING_MAX: Duration = Duration::from_secs(5);
const PING_EVERY: Duration = Duration::from_secs(10);
/// Largest answer that is read; etcd's own limit for a message.
const ANSWER_BYTES_MAX: usize = i32::MAX as usize;

/// Where an etcd cluster is and how it is spoken to.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Client URLs of its members, such as `https://10.0.0.1:2379`.
    pub endpoints: Vec<String>,
    /// PEM of the authorities that signed the members' certificates.
    pub ca_pem: Option<String>,
    /// PEM of the client's certificate and key.
    pub identity: Option<(String, String)>,
    /// What all keys begin with in etcd, so that several sites may use one; clients see none
    /// of it.
    pub prefix: String,
}

/// The members, and which of them is asked.
#[derive(Debug)]
pub(super) struct Members {
    channels: Vec<Channel>,
    current: AtomicUsize,
}

impl Members {
    /// Connects to nobody yet.
    pub(super) fn new(config: &Config) -> Result<Self, Error> {
        let invalid =
            |text: String| Error::Corrupt(io::Error::new(io::ErrorKind::InvalidInput, text).into());
        if config.endpoints.is_empty() {
            return Err(invalid("no etcd endpoint is given".into()));
        }
        let channel = |url: &String| {
            let uri: Uri = url
                .parse()
                .map_err(|e| invalid(format!("etcd endpoint {url:?}: {e}")))?;
            let tls = match uri.scheme_str() {
                Some("https") => true,
                Some("http") => false,
                _ => {
                    let text = format!("etcd endpoint {url:?}: begin it with https:// or http://");
                    return Err(invalid(text));
                }
            };
            let mut endpoint = Endpoint::from(uri)
                .connect_timeout(CONNECT_MAX)
                .http2_keep_alive_interval(PING_EVERY)
                .keep_alive_timeout(PING_MAX)
                .keep_alive_while_idle(true)
                .tcp_nodelay(true);
            if tls {
                let mut tls = ClientTlsConfig::new();
                if let Some(ca) = &config.ca_pem {
                    tls = tls.ca_certificate(Certificate::from_pem(ca));
                }
                if let Some((cert, key)) = &config.identity {
                    tls = tls.identity(Identity::from_pem(cert, key));
                }
                endpoint = endpoint
                    .tls_config(tls)
                    .map_err(|e| Error::Corrupt(Box::new(e)))?;
            }
            Ok(endpoint.connect_lazy())
        };
        Ok(Self {
            channels: config
                .endpoints
                .iter()
                .map(channel)
                .collect::<Result<_, _>>()?,
            current: AtomicUsize::new(0),
        })
    }

    /// Asks until a member answers; whether it was asked more than once, so that the first
    /// time may have been heard, is told beside the answer.
    ///
    /// # Errors
    /// What etcd refuses, and [`Code::Unavailable`] when nobody answers in time.
    pub(super) async fn call<Q, A>(
        &self,
        path: &'static str,
        request: &Q,
    ) -> Result<(A, bool), Status>
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let until = tokio::time::Instant::now() + TRIED_FOR;
        let mut pause = PAUSE;
        let mut again = false;
        loop {
            let index = self.current.load(Ordering::Relaxed);
            let asked = tokio::time::timeout(ANSWER_MAX, async {
                let mut grpc = self.grpc(index);
                ready(&mut grpc).await?;
                let path = PathAndQuery::from_static(path);
                grpc.unary(Request::new(request.clone()), path, ProstCodec::default())
                    .await
            });
            let failed = match asked.await {
                Ok(Ok(answer)) => return Ok((answer.into_inner(), again)),
                Ok(Err(status)) if !passes(&status) => return Err(status),
                Ok(Err(status)) => status,
                Err(_) => Status::unavailable("no answer in time"),
            };
            self.leave(index);
            if tokio::time::Instant::now() + pause > until {
                return Err(Status::unavailable(failed.message()));
            }
            tracing::debug!(error = %failed, "ask etcd again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            again = true;
        }
    }

    /// Opens a stream of watch answers at one member.
    pub(super) async fn watch(
        &self,
        requests: impl Stream<Item = WatchRequest> + Send + 'static,
    ) -> Result<Streaming<WatchResponse>, Status> {
        let index = self.current.load(Ordering::Relaxed);
        let opened = tokio::time::timeout(ANSWER_MAX, async {
            let mut grpc = self.grpc(index);
            ready(&mut grpc).await?;
            let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
            grpc.streaming(
                Request::new(requests.boxed()),
                path,
                ProstCodec::<WatchRequest, WatchResponse>::default(),
            )
            .await
        });
        let opened = opened
            .await
            .unwrap_or_else(|_| Err(Status::unavailable("no answer in time")));
        if opened.is_err() {
            self.leave(index);
        }
        Ok(opened?.into_inner())
    }

    /// The next member is asked from now on, if nobody has gone on to it yet.
    fn leave(&self, index: usize) {
        let next = (index + 1) % self.channels.len();
        // Someone else may have done so.
        let _ = self
            .current
            .compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn grpc(&self, index: usize) -> Grpc<Channel> {
        Grpc::new(self.channels[index].clone())
            .max_decoding_message_size(ANSWER_BYTES_MAX)
            .max_encoding_message_size(ANSWER_BYTES_MAX)
    }
}

async fn ready(grpc: &mut Grpc<Channel>) -> Result<(), Status> {
    grpc.ready()
        .await
        .map_err(|e| Status::unavailable(e.to_string()))
}

/// Whether another member, or the same one later, may answer.
fn passes(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => true,
        // A connection that broke; etcd's own errors have other codes or begin with its name.
        Code::Unknown | Code::Internal => !status.message().starts_with("etcdserver:"),
        Code::ResourceExhausted => status.message().contains("too many requests"),
        _ => false,
    }
}

//! Sends one request of a guest: finds the host as the pod does, connects, speaks HTTP/1.1.
//!
//! wasmtime's own way to do this asks the machine's resolver and takes the machine's loopback
//! for the pod's; otherwise this behaves alike.

use crate::names::ResolveError;
use crate::surroundings::Surroundings;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, Uri, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

/// Where a guest says nothing, as wasmtime has it.
const PATIENCE: Duration = Duration::from_secs(600);

/// Drives the rest of the connection.
pub(crate) type Io = Box<dyn Future<Output = Result<(), Error>> + Send>;

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Sends it; the response's body goes on as long as the second part is polled.
pub(crate) async fn send(
    mut request: Request<WasiBody>,
    options: Option<RequestOptions>,
    around: &Surroundings,
) -> Result<(Response<WasiBody>, Io), Error> {
    let limit = |chosen: fn(&RequestOptions) -> Option<Duration>| {
        options.as_ref().and_then(chosen).unwrap_or(PATIENCE)
    };
    let (to_connect, to_begin) = (
        limit(|o| o.connect_timeout),
        limit(|o| o.first_byte_timeout),
    );
    let between = limit(|o| o.between_bytes_timeout);
    let uri = request.uri();
    let authority = uri
        .authority()
        .cloned()
        .ok_or(Error::HttpRequestUriInvalid)?;
    let tls = uri.scheme() == Some(&Scheme::HTTPS);
    let stream = timeout(to_connect, connect(&authority, tls, around))
        .await
        .map_err(|_| Error::ConnectionTimeout)??;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // On the wire the target has no scheme and no host; those are in the header.
    let path = uri.path_and_query().cloned();
    *request.uri_mut() = Uri::from(path.unwrap_or(PathAndQuery::from_static("/")));
    if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
        request.headers_mut().entry(header::HOST).or_insert(host);
    }
    let mut connection = Some(Box::pin(connection));
    let mut sending = pin!(timeout(to_begin, sender.send_request(request)));
    let response = poll_fn(|cx| {
        if let Poll::Ready(response) = sending.as_mut().poll(cx) {
            return Poll::Ready(
                response
                    .map_err(|_| Error::ConnectionReadTimeout)?
                    .map_err(Error::from),
            );
        }
        let Some(driven) = &mut connection else {
            return Poll::Pending;
        };
        let ended = ready!(driven.as_mut().poll(cx));
        connection = None;
        ended?;
        // It ended well, so the response is there.
        match ready!(sending.as_mut().poll(cx)) {
            Ok(response) => Poll::Ready(response.map_err(Error::from)),
            Err(_) => Poll::Ready(Err(Error::ConnectionReadTimeout)),
        }
    })
    .await?;
    let response = response.map(|incoming| Timed::new(incoming, between).boxed_unsync());
    let rest: Io = Box::new(async move {
        match connection {
            Some(connection) => Ok(connection.await?),
            None => Ok(()),
        }
    });
    Ok((response, rest))
}

async fn connect(
    authority: &Authority,
    tls: bool,
    around: &Surroundings,
) -> Result<Box<dyn Duplex>, Error> {
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let found = around
        .lookup(authority.host())
        .await
        .map_err(|error| match error {
            ResolveError::NotFound => Error::DnsError {
                rcode: Some("NXDOMAIN".into()),
                info_code: None,
            },
            ResolveError::NoAnswer => Error::DnsTimeout,
        })?;
    let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for ip in found {
        match around.connect(SocketAddr::new(ip, port)).await {
            Ok(stream) if tls => return secure(authority.host(), stream).await,
            Ok(stream) => return Ok(Box::new(stream)),
            Err(error) => failed = error,
        }
    }
    Err(Error::Connect(failed))
}

async fn secure(host: &str, stream: TcpStream) -> Result<Box<dyn Duplex>, Error> {
    static CONFIG: OnceLock<Option<Arc<ClientConfig>>> = OnceLock::new();
    let config = CONFIG.get_or_init(|| {
        let roots = RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.into(),
        };
        let provider = Arc::new(crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().ok()?;
        let config = builder.with_root_certificates(roots).with_no_client_auth();
        Some(Arc::new(config))
    });
    let config = config.clone().ok_or(Error::ConfigurationError)?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(bare.to_owned()).map_err(|_| Error::HttpRequestUriInvalid)?;
    let connecting = TlsConnector::from(config).connect(name, stream);
    Ok(Box::new(connecting.await.map_err(Error::Tls)?))
}

/// A response's body that fails when nothing came for too long.
struct Timed {
    incoming: Incoming,
    patience: Duration,
    waiting: Pin<Box<Sleep>>,
}

impl Timed {
    fn new(incoming: Incoming, patience: Duration) -> Self {
        Self {
            incoming,
            patience,
            waiting: Box::pin(sleep(patience)),
        }
    }
}

impl Body for Timed {
    type Data = bytes::Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Error>>> {
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(frame) => {
                let next = Instant::now() + self.patience;
                self.waiting.as_mut().reset(next);
                Poll::Ready(frame.map(|frame| frame.map_err(Error::from)))
            }
            Poll::Pending => {
                ready!(self.waiting.as_mut().poll(cx));
                Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

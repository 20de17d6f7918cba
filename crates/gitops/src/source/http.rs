//! Git over HTTP by the client that the rest of the site uses.
//!
//! Git's side reads and writes like files, so requests are made by blocking on the runtime;
//! this must run off its async threads. Answers are bounded.

use base64::Engine as _;
use gix::error::{ErrorExt as _, Result, message};
use gix_transport::client::blocking_io::http::{GetResponse, Http, PostBodyDataKind, PostResponse};
use reqwest::header::{HeaderName, HeaderValue};
use std::collections::BTreeMap;
use std::io::{self, BufRead, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;

/// Most bytes that all answers of one fetch may have; more breaks it off.
const BYTES_MAX: u64 = 512 << 20;
/// Most bytes of a request's body: negotiation is short.
const REQUEST_MAX: usize = 16 << 20;
const CONNECT: Duration = Duration::from_secs(20);

/// A client with credentials, for one fetch.
pub(crate) struct Web {
    handle: Handle,
    http: reqwest::Client,
    authorization: Option<HeaderValue>,
    /// Bytes that may still come.
    left: Arc<AtomicU64>,
}

impl Web {
    /// With what a Secret holds: `username` and `password`, or `bearerToken`; `ca.crt`.
    pub(crate) fn new(
        handle: Handle,
        secrets: &BTreeMap<String, Vec<u8>>,
        timeout: Duration,
        plain: bool,
    ) -> std::result::Result<Self, String> {
        // Installed once by the first who needs it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .read_timeout(timeout)
            .user_agent(concat!("git/salp-", env!("CARGO_PKG_VERSION")));
        let pem = secrets.get("ca.crt").or_else(|| secrets.get("caFile"));
        builder = match pem {
            // Without the machine's certificates: it may have none.
            _ if plain => builder.tls_certs_only([]),
            Some(pem) => builder.tls_certs_merge(
                reqwest::Certificate::from_pem_bundle(pem)
                    .map_err(|e| format!("read ca.crt: {e}"))?,
            ),
            None => builder,
        };
        let text = |key: &str| {
            secrets
                .get(key)
                .map(|v| String::from_utf8_lossy(v).trim_end().to_owned())
        };
        let authorization = if let Some(token) = text("bearerToken") {
            Some(format!("Bearer {token}"))
        } else if let (Some(user), Some(password)) = (text("username"), text("password")) {
            let both = format!("{user}:{password}");
            let coded = base64::engine::general_purpose::STANDARD.encode(both);
            Some(format!("Basic {coded}"))
        } else {
            None
        };
        let authorization = authorization
            .map(|text| HeaderValue::from_str(&text))
            .transpose()
            .map_err(|_| "use credentials: they have characters that no header can have")?
            .map(|mut value| {
                value.set_sensitive(true);
                value
            });
        Ok(Self {
            handle,
            http: builder.build().map_err(|e| format!("make client: {e}"))?,
            authorization,
            left: Arc::new(AtomicU64::new(BYTES_MAX)),
        })
    }

    fn request(
        &self,
        request: reqwest::RequestBuilder,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> reqwest::RequestBuilder {
        let mut request = request;
        for line in headers {
            let Some((name, value)) = line.as_ref().split_once(':') else {
                continue;
            };
            if let (Ok(name), Ok(value)) = (
                HeaderName::from_bytes(name.trim().as_bytes()),
                HeaderValue::from_str(value.trim()),
            ) {
                request = request.header(name, value);
            }
        }
        if let Some(value) = &self.authorization {
            request = request.header(reqwest::header::AUTHORIZATION, value.clone());
        }
        request
    }

    fn exchange(&self) -> Shared {
        Shared {
            state: Arc::new(Mutex::new(State::default())),
            handle: self.handle.clone(),
            left: self.left.clone(),
        }
    }
}

impl Http for Web {
    type Headers = Headers;
    type ResponseBody = Body;
    type PostBody = Upload;

    fn get(
        &mut self,
        url: &str,
        _base_url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<GetResponse<Headers, Body>> {
        let shared = self.exchange();
        shared.begin(self.request(self.http.get(url), headers));
        shared
            .send(Vec::new())
            .map_err(|e| message!("{e}").raise())?;
        Ok(GetResponse {
            headers: Headers::new(shared.clone()),
            body: Body::new(shared),
        })
    }

    fn post(
        &mut self,
        url: &str,
        _base_url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
        _body: PostBodyDataKind,
    ) -> Result<PostResponse<Headers, Body, Upload>> {
        let shared = self.exchange();
        shared.begin(self.request(self.http.post(url), headers));
        Ok(PostResponse {
            post_body: Upload {
                shared: shared.clone(),
                bytes: Vec::new(),
            },
            headers: Headers::new(shared.clone()),
            body: Body::new(shared),
        })
    }

    fn configure(&mut self, _config: &dyn std::any::Any) -> Result {
        Ok(())
    }
}

/// One request and its answer, shared by who writes, reads headers and reads the body.
#[derive(Clone)]
pub(crate) struct Shared {
    /// Guards single steps; they are taken one after the other.
    state: Arc<Mutex<State>>,
    handle: Handle,
    left: Arc<AtomicU64>,
}

#[derive(Default)]
struct State {
    request: Option<reqwest::RequestBuilder>,
    response: Option<reqwest::Response>,
    failure: Option<(io::ErrorKind, String)>,
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, request: reqwest::RequestBuilder) {
        self.state().request = Some(request);
    }

    /// Sends the request; a failure is kept for who reads.
    fn send(&self, body: Vec<u8>) -> io::Result<()> {
        let mut state = self.state();
        let Some(request) = state.request.take() else {
            return Ok(());
        };
        let request = if body.is_empty() {
            request
        } else {
            request.body(body)
        };
        let failure = match self.handle.block_on(request.send()) {
            Err(error) => (io::ErrorKind::Other, chain(&error)),
            Ok(response) if response.status().is_success() => {
                state.response = Some(response);
                return Ok(());
            }
            Ok(response) if response.status() == reqwest::StatusCode::UNAUTHORIZED => (
                io::ErrorKind::PermissionDenied,
                "authentication required: the server answered 401".to_owned(),
            ),
            Ok(response) => (
                io::ErrorKind::Other,
                format!("the server answered {}", response.status()),
            ),
        };
        let error = io::Error::new(failure.0, failure.1.clone());
        state.failure = Some(failure);
        Err(error)
    }

    fn failure(state: &State) -> io::Result<()> {
        match &state.failure {
            Some((kind, text)) => Err(io::Error::new(*kind, text.clone())),
            None => Ok(()),
        }
    }

    fn headers(&self) -> io::Result<Vec<u8>> {
        let state = self.state();
        Self::failure(&state)?;
        let Some(response) = &state.response else {
            return Ok(Vec::new());
        };
        let mut text = Vec::new();
        for (name, value) in response.headers() {
            text.extend_from_slice(name.as_str().as_bytes());
            text.extend_from_slice(b": ");
            text.extend_from_slice(value.as_bytes());
            text.push(b'\n');
        }
        Ok(text)
    }

    fn chunk(&self) -> io::Result<bytes::Bytes> {
        let mut state = self.state();
        Self::failure(&state)?;
        let Some(response) = &mut state.response else {
            return Ok(bytes::Bytes::new());
        };
        loop {
            let chunk = self
                .handle
                .block_on(response.chunk())
                .map_err(|e| io::Error::other(chain(&e)))?;
            let Some(chunk) = chunk else {
                return Ok(bytes::Bytes::new());
            };
            let length = chunk.len() as u64;
            let took = self
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    left.checked_sub(length)
                });
            if took.is_err() {
                return Err(io::Error::other(format!(
                    "the repository is larger than {} MiB",
                    BYTES_MAX >> 20
                )));
            }
            if !chunk.is_empty() {
                return Ok(chunk);
            }
        }
    }
}

/// An error of the client with its causes, without the URL: it may hold a password.
fn chain(error: &reqwest::Error) -> String {
    use std::error::Error as _;
    let mut text = if error.is_timeout() {
        "request timed out".to_owned()
    } else if error.is_connect() {
        "connection failed".to_owned()
    } else {
        "request failed".to_owned()
    };
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

/// What is posted; sent when it is dropped.
pub(crate) struct Upload {
    shared: Shared,
    bytes: Vec<u8>,
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > REQUEST_MAX {
            return Err(io::Error::other("the request grows too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Who reads the answer is told of a failure.
        let _ = self.shared.send(std::mem::take(&mut self.bytes));
    }
}

/// Header lines.
pub(crate) struct Headers {
    shared: Shared,
    text: Option<io::Cursor<Vec<u8>>>,
}

impl Headers {
    fn new(shared: Shared) -> Self {
        Self { shared, text: None }
    }

    fn text(&mut self) -> io::Result<&mut io::Cursor<Vec<u8>>> {
        if self.text.is_none() {
            self.text = Some(io::Cursor::new(self.shared.headers()?));
        }
        self.text
            .as_mut()
            .ok_or_else(|| io::Error::other("no headers"))
    }
}

impl Read for Headers {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.text()?.read(into)
    }
}

impl BufRead for Headers {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.text()?.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        if let Some(text) = &mut self.text {
            text.consume(count);
        }
    }
}

/// The answer's body, as it comes.
pub(crate) struct Body {
    shared: Shared,
    chunk: bytes::Bytes,
}

impl Body {
    fn new(shared: Shared) -> Self {
        Self {
            shared,
            chunk: bytes::Bytes::new(),
        }
    }
}

impl Read for Body {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let chunk = self.fill_buf()?;
        let count = chunk.len().min(into.len());
        into[..count].copy_from_slice(&chunk[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Body {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.chunk.is_empty() {
            self.chunk = self.shared.chunk()?;
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, count: usize) {
        let count = count.min(self.chunk.len());
        let _ = self.chunk.split_to(count);
    }
}

//! A registry in this process that can be told to misbehave, and that notes what it is asked.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use images::{Digest, Reference};
use lifecycle::Scope;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// What to do instead of answering properly.
#[derive(Clone, Debug)]
pub(crate) enum Trick {
    /// A status with headers.
    Status(u16, Vec<(&'static str, String)>),
    /// Break the connection off after so many bytes of the body.
    DropAfter(usize),
    /// Say nothing more after so many bytes of the body.
    StallAfter(usize),
    /// Never answer.
    Silence,
    /// Send other bytes of the same length.
    Corrupt,
    /// Send more than there is.
    TooLong,
    /// Send these bytes.
    Bytes(&'static str),
    /// Ignore a range.
    NoRange,
}

/// What is asked: method, path with query, range and authorization.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
}

type Rule = Box<dyn Fn(&Asked, usize) -> Option<Trick> + Send + Sync>;

#[derive(Default)]
struct State {
    blobs: HashMap<String, Bytes>,
    manifests: HashMap<String, (String, Bytes)>,
    asked: Vec<Asked>,
    rule: Option<Rule>,
}

/// A running fake registry.
pub(crate) struct Fake {
    pub(crate) addr: SocketAddr,
    state: Arc<Mutex<State>>,
    scope: Scope,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.scope.token().cancel();
    }
}

impl Fake {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let state: Arc<Mutex<State>> = Arc::default();
        let scope = Scope::new();
        let (accepted, connections) = (Arc::clone(&state), scope.clone());
        scope.spawn_cancellable(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&accepted);
                let service = service_fn(move |request| {
                    let state = Arc::clone(&state);
                    async move { Ok::<_, Infallible>(serve(&state, request).await) }
                });
                connections.spawn_cancellable(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { addr, state, scope }
    }

    /// The rule sees what is asked and how often that path was asked before.
    pub(crate) fn rule(
        &self,
        rule: impl Fn(&Asked, usize) -> Option<Trick> + Send + Sync + 'static,
    ) {
        self.state.lock().unwrap().rule = Some(Box::new(rule));
    }

    pub(crate) fn good(&self) {
        self.state.lock().unwrap().rule = None;
    }

    /// What was asked since the last call.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }

    /// What was asked since the last call, as `METHOD last/two/parts`.
    pub(crate) fn asked_short(&self) -> Vec<String> {
        let short = |asked: &Asked| {
            let path = asked.path.split('?').next().unwrap_or_default();
            let parts: Vec<_> = path.rsplitn(3, '/').collect();
            let key = parts[0].get(..13).unwrap_or(parts[0]);
            format!("{} {}/{key}", asked.method, parts.get(1).unwrap_or(&""))
        };
        self.asked().iter().map(short).collect()
    }

    pub(crate) fn name(&self, rest: &str) -> Reference {
        Reference::parse(&format!("{}/{rest}", self.addr)).unwrap()
    }

    pub(crate) fn blob(&self, bytes: impl Into<Bytes>) -> (Digest, usize) {
        let bytes = bytes.into();
        let digest = Digest::sha256(&bytes);
        let len = bytes.len();
        let mut state = self.state.lock().unwrap();
        state.blobs.insert(digest.to_string(), bytes);
        (digest, len)
    }

    pub(crate) fn has_blob(&self, digest: &Digest) -> bool {
        self.state
            .lock()
            .unwrap()
            .blobs
            .contains_key(digest.as_str())
    }

    /// A descriptor of a blob that is added.
    pub(crate) fn layer(&self, media_type: &str, bytes: impl Into<Bytes>) -> Value {
        let (digest, size) = self.blob(bytes);
        json!({"mediaType": media_type, "digest": digest, "size": size})
    }

    pub(crate) fn manifest(&self, tag: &str, manifest: &Value) -> Digest {
        let media_type = manifest["mediaType"].as_str().unwrap_or(OCI_MANIFEST);
        let bytes = Bytes::from(manifest.to_string());
        let digest = Digest::sha256(&bytes);
        let mut state = self.state.lock().unwrap();
        for key in [tag, digest.as_str()] {
            let entry = (media_type.to_owned(), bytes.clone());
            state.manifests.insert(key.to_owned(), entry);
        }
        digest
    }

    /// An artifact with one Wasm layer.
    pub(crate) fn artifact(&self, tag: &str, wasm: impl Into<Bytes>) -> Digest {
        let config = self.layer("application/vnd.wasm.config.v0+json", "{}");
        let layer = self.layer("application/wasm", wasm);
        self.manifest(tag, &image(config, &[layer]))
    }
}

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A manifest.
pub(crate) fn image(config: Value, layers: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers})
}

/// A Wasm module of about this length whose content is hard to guess.
pub(crate) fn big_wasm(len: usize) -> Vec<u8> {
    let mut bytes = b"\0asm\x01\0\0\0".to_vec();
    let mut word = 1_u32;
    while bytes.len() < len {
        word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.push((word >> 24) as u8);
    }
    bytes
}

async fn serve(state: &Mutex<State>, request: Request<Incoming>) -> Response<Body> {
    let text = |name: header::HeaderName| {
        let value = request.headers().get(name)?;
        value.to_str().ok().map(str::to_owned)
    };
    let asked = Asked {
        method: request.method().clone(),
        path: request.uri().to_string(),
        range: text(header::RANGE),
        authorization: text(header::AUTHORIZATION),
    };
    let content_type = text(header::CONTENT_TYPE).unwrap_or_default();
    let body = request.into_body().collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let (trick, mut response) = {
        let mut state = state.lock().unwrap();
        let before = state
            .asked
            .iter()
            .filter(|earlier| earlier.path == asked.path && earlier.method == asked.method)
            .count();
        let trick = state.rule.as_ref().and_then(|rule| rule(&asked, before));
        let response = answer(&mut state, &asked, &content_type, body, trick.as_ref());
        state.asked.push(asked);
        (trick, response)
    };
    let bytes = response.body().clone();
    let body = match trick {
        Some(Trick::Status(code, headers)) => {
            let mut refused = Response::new(Bytes::new());
            *refused.status_mut() = StatusCode::from_u16(code).unwrap();
            for (name, value) in headers {
                refused.headers_mut().insert(name, value.parse().unwrap());
            }
            response = refused;
            whole(Bytes::new())
        }
        Some(Trick::Silence) => std::future::pending().await,
        Some(Trick::DropAfter(len)) => partly(bytes.slice(..len.min(bytes.len())), true),
        Some(Trick::StallAfter(len)) => partly(bytes.slice(..len.min(bytes.len())), false),
        Some(Trick::Corrupt) => whole(bytes.iter().map(|byte| byte ^ 1).collect::<Vec<_>>()),
        Some(Trick::TooLong) => {
            response.headers_mut().remove(header::CONTENT_LENGTH);
            whole([&bytes[..], b"more"].concat())
        }
        Some(Trick::Bytes(text)) => {
            *response.headers_mut() = HeaderMap::new();
            *response.status_mut() = StatusCode::OK;
            whole(text)
        }
        Some(Trick::NoRange) | None => whole(bytes),
    };
    response.map(|_| body)
}

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Some bytes, then an error or nothing more.
fn partly(bytes: Bytes, fail: bool) -> Body {
    let stream = futures::stream::unfold(Some(bytes), move |bytes| async move {
        match bytes {
            Some(bytes) => Some((Ok(Frame::data(bytes)), None)),
            None if fail => {
                let error = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
                // What was sent has to leave before the connection breaks.
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                Some((Err(error), None))
            }
            None => std::future::pending().await,
        }
    });
    StreamBody::new(stream).boxed_unsync()
}

fn answer(
    state: &mut State,
    asked: &Asked,
    content_type: &str,
    body: Bytes,
    trick: Option<&Trick>,
) -> Response<Bytes> {
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    let parts: Vec<_> = path.split('/').collect();
    let key = parts.last().copied().unwrap_or_default();
    let digest = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("digest="))
        .map(|digest| digest.replace("%3A", ":"));
    let response = Response::builder();
    let made = match (&asked.method, path) {
        (&Method::POST, path) if path.ends_with("/blobs/uploads/") => response
            .status(202)
            .header("location", "/v2/x/upload/1?state=a")
            .body(Bytes::new()),
        (&Method::PUT, path) if path.contains("/upload/") => {
            state.blobs.insert(digest.unwrap_or_default(), body);
            response.status(201).body(Bytes::new())
        }
        (&Method::PUT, path) if path.contains("/manifests/") => {
            let digest = Digest::sha256(&body).to_string();
            let entry = (content_type.to_owned(), body);
            state.manifests.insert(digest.clone(), entry.clone());
            state.manifests.insert(key.to_owned(), entry);
            response
                .status(201)
                .header("docker-content-digest", digest)
                .body(Bytes::new())
        }
        (&Method::GET | &Method::HEAD, path) if path.contains("/manifests/") => {
            match state.manifests.get(key) {
                Some((media_type, bytes)) => response
                    .header("content-type", media_type)
                    .header("docker-content-digest", Digest::sha256(bytes).as_str())
                    .body(bytes.clone()),
                None => response.status(404).body(Bytes::from(
                    r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}"#,
                )),
            }
        }
        (&Method::GET | &Method::HEAD, path) if path.contains("/blobs/") => {
            let range = asked.range.as_deref().and_then(|range| {
                let start = range.strip_prefix("bytes=")?.strip_suffix('-')?;
                start.parse::<usize>().ok()
            });
            let no_range = matches!(trick, Some(Trick::NoRange));
            match (state.blobs.get(key), range.filter(|_| !no_range)) {
                (Some(bytes), Some(start)) if start < bytes.len() => response
                    .status(206)
                    .header(
                        "content-range",
                        format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len()),
                    )
                    .body(bytes.slice(start..)),
                (Some(_), Some(_)) => response.status(416).body(Bytes::new()),
                (Some(bytes), None) => response.body(bytes.clone()),
                (None, _) => response.status(404).body(Bytes::new()),
            }
        }
        _ => response.status(404).body(Bytes::new()),
    };
    let mut response = made.unwrap();
    if asked.method != Method::HEAD {
        let len = response.body().len();
        response.headers_mut().insert("content-length", len.into());
    } else {
        *response.body_mut() = Bytes::new();
    }
    response
}

//! Answers: bodies, objects in JSON, YAML, protobuf and CBOR, `Status` errors, warnings, gzip.

use super::negotiate::{Accepted, CBOR, Encoding, PROTOBUF};
use apimachinery::cbor;
use apimachinery::protobuf::{self, Envelope};
use apimachinery::schema::{Schema, TypeId};
use apimachinery::{GroupVersion, Status};
use bytes::Bytes;
use flate2::write::GzEncoder;
use futures::Stream;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, VARY, WARNING};
use http::{HeaderValue, Response, StatusCode};
use http_body::{Frame, SizeHint};
use serde_json::Value;
use std::io::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Errors that can end a body early.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Bytes from which on a body is sent in pieces, and those of a piece.
pub(crate) const PIECE: usize = 128 * 1024;

/// A body that is made while it is sent.
type Pieces = Box<dyn Iterator<Item = Bytes> + Send>;

/// Body of an answer: bytes at hand, pieces that are made one by one, or a stream.
#[derive(Default)]
pub struct Body {
    inner: Inner,
    /// Dropped with the body.
    kept: Option<Box<dyn Send>>,
}

#[derive(Default)]
enum Inner {
    #[default]
    Empty,
    Full(Bytes),
    Pieces(Pieces),
    Stream(Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send>>),
}

impl Body {
    /// A body that is sent as it becomes ready.
    pub(crate) fn stream(s: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static) -> Self {
        Inner::Stream(Box::pin(s)).into()
    }

    /// A body of pieces that are made when they can be sent, so that no client makes this
    /// process hold more than one.
    pub(crate) fn pieces(mut pieces: impl Iterator<Item = Bytes> + Send + 'static) -> Self {
        let (first, second) = (pieces.next(), pieces.next());
        match (first, second) {
            (None, _) => Self::default(),
            (Some(only), None) => only.into(),
            (Some(first), Some(second)) => {
                Inner::Pieces(Box::new([first, second].into_iter().chain(pieces))).into()
            }
        }
    }

    /// Makes all pieces now.
    pub(crate) fn make(&mut self) {
        if let Inner::Pieces(pieces) = &mut self.inner {
            self.inner = Self::from(pieces.collect::<Vec<_>>().concat()).inner;
        }
    }

    /// The same body; `kept` is dropped when it ends, or nobody reads it any more.
    pub(crate) fn with(mut self, kept: impl Send + 'static) -> Self {
        self.kept = Some(match self.kept {
            Some(before) => Box::new((before, kept)),
            None => Box::new(kept),
        });
        self
    }

    /// The bytes, when they are all here.
    pub(crate) fn full(&self) -> Option<&Bytes> {
        match &self.inner {
            Inner::Full(b) => Some(b),
            _ => None,
        }
    }
}

impl From<Inner> for Body {
    fn from(inner: Inner) -> Self {
        Self { inner, kept: None }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() {
            Self::default()
        } else {
            Inner::Full(bytes).into()
        }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.inner {
            Inner::Empty => f.write_str("Body(empty)"),
            Inner::Full(b) => write!(f, "Body({} bytes)", b.len()),
            Inner::Pieces(_) => f.write_str("Body(pieces)"),
            Inner::Stream(_) => f.write_str("Body(stream)"),
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.inner {
            Inner::Empty => Poll::Ready(None),
            Inner::Full(_) => {
                let Inner::Full(bytes) = std::mem::take(&mut self.inner) else {
                    return Poll::Ready(None);
                };
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Inner::Pieces(pieces) => Poll::Ready(pieces.next().map(|b| Ok(Frame::data(b)))),
            Inner::Stream(s) => s
                .as_mut()
                .poll_next(cx)
                .map(|o| o.map(|r| r.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.inner, Inner::Empty)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Empty => SizeHint::with_exact(0),
            Inner::Full(b) => SizeHint::with_exact(b.len() as u64),
            Inner::Pieces(_) | Inner::Stream(_) => SizeHint::default(),
        }
    }
}

/// An answer with bytes of a stated type.
pub(crate) fn bytes(code: u16, media: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    self::body(code, media, body.into().into())
}

/// An answer with a body of a stated type.
pub(crate) fn body(code: u16, media: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

/// Plain text.
pub(crate) fn text(code: u16, body: impl Into<String>) -> Response<Body> {
    bytes(code, "text/plain; charset=utf-8", body.into().into_bytes())
}

/// JSON bytes that are already encoded, in the encoding that the client takes.
pub(crate) fn encoded(code: u16, accepted: Accepted, json: Vec<u8>) -> Response<Body> {
    match accepted.encoding {
        Encoding::Json => bytes(code, "application/json", json),
        Encoding::Yaml => match serde_json::from_slice::<Value>(&json)
            .map_err(|e| e.to_string())
            .and_then(|v| serde_saphyr::to_string(&v).map_err(|e| e.to_string()))
        {
            Ok(yaml) => bytes(code, "application/yaml", yaml.into_bytes()),
            Err(e) => status(&Status::internal(e), Accepted::JSON),
        },
        Encoding::Protobuf | Encoding::Cbor => match serde_json::from_slice::<Value>(&json) {
            Ok(v) => value(code, accepted, &v),
            Err(e) => status(&Status::internal(e), Accepted::JSON),
        },
    }
}

/// A JSON value; in protobuf where that is accepted and the value's kind has messages.
pub(crate) fn value(code: u16, accepted: Accepted, v: &Value) -> Response<Body> {
    match accepted.encoding {
        Encoding::Protobuf => match to_protobuf(v) {
            Some(body) => bytes(code, PROTOBUF, body),
            None => bytes(code, "application/json", to_json(v)),
        },
        Encoding::Cbor => bytes(code, CBOR, to_cbor(v)),
        Encoding::Json | Encoding::Yaml => encoded(code, accepted, to_json(v)),
    }
}

/// A value as a document in CBOR, with the types of its kind where that is known.
pub(crate) fn to_cbor(v: &Value) -> Vec<u8> {
    let text = |key: &str| v.get(key).and_then(Value::as_str);
    let ty = message(
        text("apiVersion").unwrap_or("v1"),
        text("kind").unwrap_or_default(),
    );
    let mut out = Vec::new();
    cbor::enclose(&mut out, |out| {
        cbor::write(ty.map(|ty| (Schema::builtin(), ty)), v, out);
    });
    out
}

/// A value in protobuf with its envelope, if its kind has messages.
pub(crate) fn to_protobuf(v: &Value) -> Option<Vec<u8>> {
    let text = |key: &str| v.get(key).and_then(Value::as_str);
    // One kind of discovery states none in JSON, but decoders ask envelopes for it.
    let (api_version, kind) = (text("apiVersion").unwrap_or("v1"), text("kind")?);
    let ty = message(api_version, kind)?;
    let mut out = Vec::new();
    protobuf::enclose(&mut out, api_version, kind, |out| {
        protobuf::write_value(Schema::builtin(), ty, v, out);
    });
    Some(out)
}

fn message(api_version: &str, kind: &str) -> Option<TypeId> {
    let gvk = GroupVersion::parse(api_version)?.kind(kind);
    Schema::builtin().kind(&gvk)
}

/// The object that an answer holds, when that is all here.
pub(crate) fn read(response: &Response<Body>) -> Option<Value> {
    let body = response.body().full()?;
    match response.headers().get(CONTENT_TYPE)?.to_str().ok()? {
        PROTOBUF => {}
        CBOR => return cbor::read(body).ok(),
        _ => return serde_json::from_slice(body).ok(),
    }
    let envelope = Envelope::parse(body).ok()?;
    let ty = message(envelope.api_version, envelope.kind)?;
    protobuf::decode(Schema::builtin(), ty, body).ok()
}

/// JSON text of a value; values that this crate makes always encode.
pub(crate) fn to_json(v: &Value) -> Vec<u8> {
    serde_json::to_vec(v).unwrap_or_default()
}

/// An error.
pub(crate) fn status(s: &Status, accepted: Accepted) -> Response<Body> {
    let mut body = s.to_value();
    let retry = match s.code {
        429 | 503 => Some(1),
        504 if s.reason == "Timeout" => Some(1),
        _ => None,
    };
    if let Some(seconds) = retry {
        if !body["details"].is_object() {
            body["details"] = serde_json::json!({});
        }
        body["details"]["retryAfterSeconds"] = seconds.into();
    }
    let mut response = value(s.code, accepted, &body);
    if let Some(seconds) = retry {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Adds `Warning: 299` headers, as many and as long as upstream lets through.
pub(crate) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    const WARNING_BYTES_MAX: usize = 4096;
    let mut sent = 0;
    for text in warnings {
        let clean: String = text.chars().filter(|c| !c.is_control()).collect();
        sent += clean.len();
        if sent > WARNING_BYTES_MAX {
            break;
        }
        let quoted = clean.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(v) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(WARNING, v);
        }
    }
}

/// Compresses a large body while it is sent; small ones are not worth it.
pub(crate) fn gzip(mut response: Response<Body>) -> Response<Body> {
    if response.headers().contains_key(CONTENT_ENCODING) {
        return response;
    }
    let pieces: Pieces = match std::mem::take(&mut response.body_mut().inner) {
        Inner::Full(mut bytes) if bytes.len() > PIECE => Box::new(std::iter::from_fn(move || {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            (!piece.is_empty()).then_some(piece)
        })),
        Inner::Pieces(pieces) => pieces,
        other => {
            response.body_mut().inner = other;
            return response;
        }
    };
    let headers = response.headers_mut();
    headers.remove(CONTENT_LENGTH);
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    *response.body_mut() = Body::stream(packed(pieces));
    response
}

fn packed(pieces: Pieces) -> impl Stream<Item = Result<Bytes, BoxError>> + Send {
    let encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    futures::stream::unfold(Some((pieces, encoder)), |state| async move {
        let (mut pieces, mut encoder) = state?;
        while let Some(piece) = pieces.next() {
            if let Err(error) = encoder.write_all(&piece) {
                return Some((Err(error.into()), None));
            }
            // A millisecond's work: others get their turn.
            tokio::task::yield_now().await;
            let made = std::mem::take(encoder.get_mut());
            if !made.is_empty() {
                return Some((Ok(made.into()), Some((pieces, encoder))));
            }
        }
        Some((encoder.finish().map(Bytes::from).map_err(Into::into), None))
    })
}

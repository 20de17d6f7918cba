//! WebSockets: the handshake from both ends, then channels: the first byte of each binary
//! message says which one the rest is for.

mod command;
mod ports;
mod tunnel;

pub use command::{CommandSink, CommandSource, command_client, serve_command};
pub use ports::serve_ports;
pub use tunnel::Tunnel;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::{Sink, SinkExt as _};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use ring::rand::SecureRandom as _;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

/// Subprotocols of exec and attach, the newest first. Only the fifth lets a client end its input.
pub const COMMAND_PROTOCOLS: &[&str] = &[V5, V4, "v3.channel.k8s.io", "v2.channel.k8s.io", V1];
/// Subprotocols of port-forward.
pub const PORTS_PROTOCOLS: &[&str] = &[SPDY_TUNNEL, V4, V1];
/// SPDY/3.1 in binary messages, as for port-forward.
pub const SPDY_TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
const V1: &str = "channel.k8s.io";

/// Longest message; a longer one ends the connection. Clients send pieces of some 32 KiB.
const MESSAGE_MAX_BYTES: usize = 4 << 20;
/// Bytes not yet written to a slow client; past it who writes waits.
const UNWRITTEN_MAX_BYTES: usize = 256 << 10;

/// What a server appends to a client's key (RFC 6455, 1.3).
const ACCEPT_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Why a handshake is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// A header is missing or says something else.
    #[error("the WebSocket handshake needs a header {0}")]
    Header(&'static str),
    /// None of the subprotocols is spoken here.
    #[error("unsupported WebSocket subprotocol {0:?}")]
    Protocol(String),
    /// The server answered something else than was asked.
    #[error("the server's WebSocket handshake is wrong")]
    Answer,
}

/// Whether a request asks for a WebSocket.
pub fn is_asked(headers: &HeaderMap) -> bool {
    has(headers, &header::CONNECTION, "upgrade") && has(headers, &header::UPGRADE, "websocket")
}

/// The first of the client's subprotocols that is among the supported ones; a client that
/// names none gets the last.
///
/// # Errors
/// When it is no handshake, or no subprotocol fits.
pub fn accept(
    headers: &HeaderMap,
    supported: &[&'static str],
) -> Result<(&'static str, Response<()>), HandshakeError> {
    let key = headers.get(header::SEC_WEBSOCKET_KEY);
    let key = key.ok_or(HandshakeError::Header("Sec-WebSocket-Key"))?;
    if !has(headers, &header::SEC_WEBSOCKET_VERSION, "13") {
        return Err(HandshakeError::Header("Sec-WebSocket-Version: 13"));
    }
    let offered: Vec<&str> = words(headers, &header::SEC_WEBSOCKET_PROTOCOL).collect();
    let chosen = match offered.as_slice() {
        [] => supported.last().copied(),
        offered => offered
            .iter()
            .find_map(|o| supported.iter().find(|s| *s == o).copied()),
    };
    let chosen = chosen.ok_or_else(|| HandshakeError::Protocol(offered.join(", ")))?;
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(header::SEC_WEBSOCKET_ACCEPT, accept_of(key.as_bytes()));
    if !offered.is_empty() {
        let chosen = HeaderValue::from_static(chosen);
        answer.insert(header::SEC_WEBSOCKET_PROTOCOL, chosen);
    }
    Ok((chosen, response))
}

/// A client's handshake.
#[derive(Debug)]
pub struct Handshake {
    key: String,
}

impl Handshake {
    /// Adds its headers to a request for a command's streams.
    pub fn ask(headers: &mut HeaderMap) -> Self {
        let mut key = [0; 16];
        // It is no secret, and only old caches would take one for another.
        let _ = ring::rand::SystemRandom::new().fill(&mut key);
        let key = STANDARD.encode(key);
        let mut set = |name: HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        set(header::CONNECTION, "Upgrade");
        set(header::UPGRADE, "websocket");
        set(header::SEC_WEBSOCKET_VERSION, "13");
        set(header::SEC_WEBSOCKET_KEY, &key);
        set(header::SEC_WEBSOCKET_PROTOCOL, &format!("{V5}, {V4}"));
        Self { key }
    }

    /// Checks the answer; the subprotocol.
    ///
    /// # Errors
    /// When it is no answer to this handshake.
    pub fn check(&self, headers: &HeaderMap) -> Result<&'static str, HandshakeError> {
        let accepted = headers.get(header::SEC_WEBSOCKET_ACCEPT);
        if !is_asked(headers) || accepted != Some(&accept_of(self.key.as_bytes())) {
            return Err(HandshakeError::Answer);
        }
        let chosen = words(headers, &header::SEC_WEBSOCKET_PROTOCOL).next();
        let known = [V5, V4].into_iter().find(|k| Some(*k) == chosen);
        known.ok_or_else(|| HandshakeError::Protocol(chosen.unwrap_or_default().to_owned()))
    }
}

fn accept_of(key: &[u8]) -> HeaderValue {
    let text = [key, ACCEPT_SUFFIX.as_bytes()].concat();
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &text);
    // Base64 is always a header's value.
    HeaderValue::try_from(STANDARD.encode(digest)).unwrap_or(HeaderValue::from_static(""))
}

fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter();
    let values = values.filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|word| !word.is_empty())
}

fn has(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    words(headers, name).any(|word| word.eq_ignore_ascii_case(wanted))
}

async fn over<S: AsyncRead + AsyncWrite + Unpin>(stream: S, role: Role) -> WebSocketStream<S> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_MAX_BYTES))
        .max_frame_size(Some(MESSAGE_MAX_BYTES))
        .write_buffer_size(0)
        .max_write_buffer_size(UNWRITTEN_MAX_BYTES.max(MESSAGE_MAX_BYTES));
    WebSocketStream::from_raw_socket(stream, role, Some(config)).await
}

/// Ends a connection as clients expect it that look at the code.
async fn close(sink: &mut (impl Sink<Message, Error = Error> + Unpin)) -> io::Result<()> {
    let frame = CloseFrame {
        code: CloseCode::Normal,
        reason: Utf8Bytes::default(),
    };
    let closed = async {
        sink.send(Message::Close(Some(frame))).await?;
        sink.close().await
    };
    match closed.await {
        Ok(()) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

fn failed(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        error => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = list.iter().map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        pairs.collect()
    }

    #[test]
    fn the_client_s_first_choice_that_is_spoken_here_is_taken() {
        let ask = |protocols: &'static str| {
            let mut asked = headers(&[
                ("connection", "keep-alive, Upgrade"),
                ("upgrade", "WebSocket"),
                ("sec-websocket-version", "13"),
                ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ]);
            if !protocols.is_empty() {
                let value = HeaderValue::from_static(protocols);
                asked.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
            }
            assert!(is_asked(&asked));
            let (chosen, answer) = accept(&asked, COMMAND_PROTOCOLS)?;
            // The standard's example.
            let accepted = &answer.headers()[header::SEC_WEBSOCKET_ACCEPT];
            assert_eq!(accepted, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
            Ok(chosen)
        };
        assert_eq!(ask("v4.channel.k8s.io"), Ok(V4));
        assert_eq!(ask("v9.channel.k8s.io, v5.channel.k8s.io,x"), Ok(V5));
        assert_eq!(ask(""), Ok(V1));
        let other = Err(HandshakeError::Protocol("chat".to_owned()));
        assert_eq!(ask("chat"), other);
    }

    #[test]
    fn a_client_believes_the_answer_to_its_own_question() {
        let mut asked = HeaderMap::new();
        let handshake = Handshake::ask(&mut asked);
        let (_, answer) = accept(&asked, COMMAND_PROTOCOLS).unwrap();
        assert_eq!(handshake.check(answer.headers()), Ok(V5));
        let another = Handshake::ask(&mut HeaderMap::new());
        assert_eq!(another.check(answer.headers()), Err(HandshakeError::Answer));
    }

    #[test]
    fn a_handshake_without_its_headers_is_refused() {
        let plain = headers(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(
            accept(&plain, COMMAND_PROTOCOLS).unwrap_err(),
            HandshakeError::Header("Sec-WebSocket-Key")
        );
        assert!(!is_asked(&headers(&[("upgrade", "websocket")])));
    }
}

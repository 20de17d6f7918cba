//! The gRPC health check, `grpc.health.v1.Health/Check`: one call over plaintext HTTP/2.
//!
//! Its messages have one field each, so they are written and read by hand.

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::rt::Executor;
use hyper_util::rt::TokioIo;
use std::net::IpAddr;
use tokio::net::TcpStream;

/// The health that a server claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    Unknown,
    Serving,
    NotServing,
    ServiceUnknown,
}

impl Health {
    /// As the protocol's enumeration names it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::Serving => "SERVING",
            Self::NotServing => "NOT_SERVING",
            Self::ServiceUnknown => "SERVICE_UNKNOWN",
        }
    }
}

/// Why the server's health is not known; Display is what events show.
#[derive(Debug, thiserror::Error)]
pub(super) enum HealthError {
    #[error("failed to connect service at {address:?}: {source}")]
    Connect {
        address: String,
        source: std::io::Error,
    },
    #[error("health rpc failed: {0}")]
    Http(#[from] hyper::Error),
    #[error("health rpc failed: {0}")]
    Request(#[from] http::Error),
    #[error("health rpc failed: HTTP status {0}")]
    HttpStatus(u16),
    #[error("health rpc failed: rpc error: code = {code} desc = {message}")]
    Status { code: String, message: String },
    #[error("health rpc failed: the answer is no HealthCheckResponse")]
    Malformed,
}

/// Asks for the health of a service; the empty name means the whole server.
pub(super) async fn health(ip: IpAddr, port: u16, service: &str) -> Result<Health, HealthError> {
    let address = std::net::SocketAddr::new(ip, port).to_string();
    let stream = TcpStream::connect((ip, port))
        .await
        .map_err(|source| HealthError::Connect {
            address: address.clone(),
            source,
        })?;
    // The connection's tasks end with the call.
    let scope = lifecycle::Scope::new();
    let _ends = scope.token().clone().drop_guard();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(InScope(scope.clone()), TokioIo::new(stream)).await?;
    scope.spawn_cancellable(connection);
    let request = http::Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.37")
        .body(Full::new(request_message(service)))?;
    let answer = sender.send_request(request).await?;
    if answer.status() != http::StatusCode::OK {
        return Err(HealthError::HttpStatus(answer.status().as_u16()));
    }
    // An error without a message comes in the headers alone.
    check_status(answer.headers())?;
    let body = answer.into_body().collect().await?;
    if let Some(trailers) = body.trailers() {
        check_status(trailers)?;
    }
    parse_response(&body.to_bytes()).ok_or(HealthError::Malformed)
}

fn check_status(headers: &http::HeaderMap) -> Result<(), HealthError> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
            .to_string()
    };
    match text("grpc-status").as_str() {
        "" | "0" => Ok(()),
        code => Err(HealthError::Status {
            code: code.into(),
            message: text("grpc-message"),
        }),
    }
}

/// Length-prefixed `HealthCheckRequest { string service = 1 }`.
fn request_message(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(&message);
    framed.freeze()
}

/// `HealthCheckResponse { ServingStatus status = 1 }` behind its length prefix.
fn parse_response(framed: &[u8]) -> Option<Health> {
    let (head, message) = framed.split_at_checked(5)?;
    if head[0] != 0 {
        return None;
    }
    match message {
        [] => Some(Health::Unknown),
        [0x08, 0, ..] => Some(Health::Unknown),
        [0x08, 1, ..] => Some(Health::Serving),
        [0x08, 2, ..] => Some(Health::NotServing),
        [0x08, 3, ..] => Some(Health::ServiceUnknown),
        _ => None,
    }
}

/// Runs the connection's tasks in a scope.
#[derive(Clone)]
pub(crate) struct InScope(pub(crate) lifecycle::Scope);

impl<F> Executor<F> for InScope
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn_cancellable(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use std::convert::Infallible;
    use tokio::net::TcpListener;

    /// A server that knows the service `shop`, which serves, and `rest`, which does not.
    async fn server(scope: &lifecycle::Scope) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let inner = scope.clone();
        scope.spawn_cancellable(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = hyper::service::service_fn(
                    |request: http::Request<hyper::body::Incoming>| async {
                        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                        let asked = request.into_body().collect().await.unwrap().to_bytes();
                        let (status, code) = match asked.get(7..) {
                            Some(b"shop") => (1u8, "0"),
                            Some(b"rest") => (2, "0"),
                            _ => (0, "5"),
                        };
                        let mut trailers = http::HeaderMap::new();
                        trailers.insert("grpc-status", code.parse().unwrap());
                        let message = Bytes::from(vec![0, 0, 0, 0, 2, 8, status]);
                        let frames: Vec<Result<Frame<Bytes>, Infallible>> =
                            vec![Ok(Frame::data(message)), Ok(Frame::trailers(trailers))];
                        Ok::<_, Infallible>(http::Response::new(StreamBody::new(
                            futures::stream::iter(frames),
                        )))
                    },
                );
                let connection = hyper::server::conn::http2::Builder::new(InScope(inner.clone()))
                    .serve_connection(TokioIo::new(stream), service);
                inner.spawn_cancellable(connection);
            }
        });
        port
    }

    #[tokio::test]
    async fn asks_a_real_http2_server() {
        let scope = lifecycle::Scope::new();
        let port = server(&scope).await;
        let local = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(health(local, port, "shop").await.unwrap(), Health::Serving);
        assert_eq!(
            health(local, port, "rest").await.unwrap(),
            Health::NotServing
        );
        let unknown = health(local, port, "nope").await.unwrap_err();
        assert!(matches!(unknown, HealthError::Status { code, .. } if code == "5"));
        scope.close().await;
    }

    #[test]
    fn long_service_names_have_a_longer_length() {
        let message = request_message(&"x".repeat(200));
        assert_eq!(&message[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 1]);
    }
}

//! Connections that change their protocol (WebSocket, SPDY): the handshake is passed on,
//! then the bytes both ways, whatever they say.

use super::{hop_by_hop, unreachable};
use crate::handler::Incoming;
use crate::http::respond::Body;
use crate::server_state::Core;
use apimachinery::Status;
use http::header::{self, HeaderMap, HeaderValue};
use http::uri::Scheme;
use http::{Method, Request, Response, StatusCode, Uri};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// How the other side is reached.
pub(crate) struct Way<'a> {
    pub(crate) uri: &'a Uri,
    pub(crate) tls: &'a Arc<ClientConfig>,
    /// Whose certificate is expected there, unless it is the URI's host.
    pub(crate) server_name: Option<ServerName<'static>>,
}

/// Opens a connection of its own to the target and joins the two.
pub(crate) async fn join(
    core: &Arc<Core>,
    way: Way<'_>,
    method: &Method,
    sent: &HeaderMap,
    body: Incoming,
    upgrade: Option<OnUpgrade>,
) -> Result<Response<Body>, Status> {
    let uri = way.uri;
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    let Some(client_side) = upgrade else {
        return Err(Status::bad_request(
            "the connection can't change its protocol: HTTP/1.1 is needed",
        ));
    };
    let stream = connect(&way)
        .await
        .map_err(|e| unreachable(&authority, &e))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| unreachable(&authority, &e))?;
    core.streams.spawn_cancellable(async move {
        if let Err(e) = connection.with_upgrades().await {
            tracing::debug!(error = %e, "connection to a node ended");
        }
    });
    let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .body(body)
        .map_err(Status::internal)?;
    for (name, value) in sent {
        if !hop_by_hop(name) {
            request.headers_mut().append(name, value.clone());
        }
    }
    let headers = request.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Some(protocol) = sent.get(header::UPGRADE) {
        headers.insert(header::UPGRADE, protocol.clone());
    }
    if let Ok(host) = HeaderValue::from_str(&authority) {
        headers.insert(header::HOST, host);
    }
    let mut answer = sender
        .send_request(request)
        .await
        .map_err(|e| unreachable(&authority, &e))?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(super::pass_on(core, answer));
    }
    let node_side = hyper::upgrade::on(&mut answer);
    core.streams.spawn_cancellable(async move {
        let (Ok(client), Ok(node)) = (client_side.await, node_side.await) else {
            return;
        };
        let (mut client, mut node) = (TokioIo::new(client), TokioIo::new(node));
        if let Err(e) = tokio::io::copy_bidirectional(&mut client, &mut node).await {
            tracing::debug!(error = %e, "upgraded connection ended");
        }
    });
    let (mut parts, _) = answer.into_parts();
    parts.extensions = http::Extensions::new();
    Ok(Response::from_parts(parts, Body::default()))
}

async fn connect(way: &Way<'_>) -> std::io::Result<Box<dyn Stream>> {
    let uri = way.uri;
    let bad = |e: &str| std::io::Error::new(std::io::ErrorKind::InvalidInput, e.to_owned());
    let host = uri
        .host()
        .unwrap_or_default()
        .trim_matches(['[', ']'])
        .to_owned();
    let secure = uri.scheme() == Some(&Scheme::HTTPS);
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let tcp = TcpStream::connect((host.as_str(), port)).await?;
    tcp.set_nodelay(true)?;
    if !secure {
        return Ok(Box::new(tcp));
    }
    let name = match &way.server_name {
        Some(name) => name.clone(),
        None => ServerName::try_from(host).map_err(|_| bad("not a host name"))?,
    };
    let tls = TlsConnector::from(way.tls.clone())
        .connect(name, tcp)
        .await?;
    Ok(Box::new(tls))
}

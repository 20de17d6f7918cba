//! Connections that change their protocol (WebSocket, SPDY): the handshake is passed on,
//! then the bytes both ways, whatever they say.

use super::{Forwarded, hop_by_hop, unreachable};
use crate::http::respond::Body;
use crate::registry::Call;
use apimachinery::Status;
use http::header::{self, HeaderValue};
use http::uri::Scheme;
use http::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Opens a connection of its own to the target and joins the two.
pub(super) async fn forward(
    call: &Call<'_>,
    target: &str,
    sent: Forwarded<'_>,
) -> Result<Response<Body>, Status> {
    let uri: Uri = target.parse().map_err(Status::internal)?;
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    let Some(client_side) = sent.upgrade else {
        return Err(Status::bad_request(
            "the connection can't change its protocol: HTTP/1.1 is needed",
        ));
    };
    let stream = connect(call, &uri)
        .await
        .map_err(|e| unreachable(&authority, &e))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| unreachable(&authority, &e))?;
    call.core.streams.spawn_cancellable(async move {
        if let Err(e) = connection.with_upgrades().await {
            tracing::debug!(error = %e, "connection to a node ended");
        }
    });
    let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let mut request = Request::builder()
        .method(sent.method)
        .uri(path)
        .body(sent.body)
        .map_err(Status::internal)?;
    for (name, value) in sent.headers {
        if !hop_by_hop(name) {
            request.headers_mut().append(name, value.clone());
        }
    }
    let headers = request.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Some(protocol) = sent.headers.get(header::UPGRADE) {
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
        return super::pass_on(call, answer);
    }
    let node_side = hyper::upgrade::on(&mut answer);
    call.core.streams.spawn_cancellable(async move {
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

async fn connect(call: &Call<'_>, uri: &Uri) -> std::io::Result<Box<dyn Stream>> {
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
    let name = ServerName::try_from(host).map_err(|_| bad("not a host name"))?;
    let tls = TlsConnector::from(call.core.kubelets.tls.clone())
        .connect(name, tcp)
        .await?;
    Ok(Box::new(tls))
}

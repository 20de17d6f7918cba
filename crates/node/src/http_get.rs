//! One HTTP GET as probes and hooks make it: a fresh connection, no certificate checks,
//! upstream's headers.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls_pki_types::ServerName;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Bytes of an answer that are read; the rest is cut off, as upstream does.
const BODY_BYTES_MAX: usize = 10 * 1024;

/// Why there was no answer. Display is what events show.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpGetError {
    #[error("unknown port {0:?}")]
    Port(String),
    #[error("bad request: {0}")]
    Request(#[from] http::Error),
    #[error("dial tcp {address}: connect: {source}")]
    Connect {
        address: String,
        source: std::io::Error,
    },
    #[error("tls: {0}")]
    Tls(std::io::Error),
    #[error("Get {url:?}: {source}")]
    Http { url: String, source: hyper::Error },
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
}

/// The number of a port that is given by number or by name.
pub(crate) fn port_of(
    port: &IntOrString,
    container: &core::Container,
) -> Result<u16, HttpGetError> {
    match port {
        IntOrString::Int(n) => u16::try_from(*n).map_err(|_| HttpGetError::Port(n.to_string())),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref() == Some(name))
            .and_then(|p| u16::try_from(p.container_port).ok())
            .or_else(|| name.parse().ok())
            .ok_or_else(|| HttpGetError::Port(name.clone())),
    }
}

/// Makes the request. The caller bounds its time.
pub(crate) async fn get(
    action: &core::HTTPGetAction,
    container: &core::Container,
    pod_ip: IpAddr,
) -> Result<Answer, HttpGetError> {
    let port = port_of(&action.port, container)?;
    let host = match action.host.as_deref() {
        None | Some("") => pod_ip.to_string(),
        Some(host) => host.to_string(),
    };
    let authority = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    let path = match action.path.as_deref() {
        None | Some("") => "/".to_string(),
        Some(p) if p.starts_with('/') => p.to_string(),
        Some(p) => format!("/{p}"),
    };
    let tls = action.scheme.as_deref() == Some("HTTPS");
    let url = format!("{}://{authority}{path}", if tls { "https" } else { "http" });
    let request = request(action, &authority, &path)?;
    let stream = TcpStream::connect((host.as_str(), port))
        .await
        .map_err(|source| HttpGetError::Connect {
            address: authority.clone(),
            source,
        })?;
    let wrap = |source| HttpGetError::Http {
        url: url.clone(),
        source,
    };
    if !tls {
        return exchange(stream, request).await.map_err(wrap);
    }
    let name = ServerName::try_from(host).unwrap_or(ServerName::IpAddress(pod_ip.into()));
    let connector = tokio_rustls::TlsConnector::from(unchecked_tls());
    let stream = connector
        .connect(name, stream)
        .await
        .map_err(HttpGetError::Tls)?;
    exchange(stream, request).await.map_err(wrap)
}

fn request(
    action: &core::HTTPGetAction,
    authority: &str,
    path: &str,
) -> Result<http::Request<Empty<Bytes>>, http::Error> {
    let mut request = http::Request::get(path);
    let (mut host, mut agent, mut accept) = (None, None, None);
    for header in action.http_headers.iter().flatten() {
        match header.name.to_ascii_lowercase().as_str() {
            "host" => host = Some(header.value.clone()),
            "user-agent" => agent = Some(header.value.clone()),
            "accept" => accept = Some(header.value.clone()),
            _ => request = request.header(&header.name, &header.value),
        }
    }
    let agent = agent.unwrap_or_else(|| "kube-probe/1.37".into());
    if !agent.is_empty() {
        request = request.header("User-Agent", agent);
    }
    let accept = accept.unwrap_or_else(|| "*/*".into());
    if !accept.is_empty() {
        request = request.header("Accept", accept);
    }
    request
        .header("Host", host.unwrap_or_else(|| authority.into()))
        .header("Connection", "close")
        .body(Empty::new())
}

async fn exchange<S>(
    stream: S,
    request: http::Request<Empty<Bytes>>,
) -> Result<Answer, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let work = async move {
        let answer = sender.send_request(request).await?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), BODY_BYTES_MAX)
            .collect()
            .await;
        Ok(Answer {
            status,
            body: body.map(|b| b.to_bytes()).unwrap_or_default(),
        })
    };
    // The connection is driven here, so nothing outlives the request.
    let mut connection = std::pin::pin!(connection);
    let mut work = std::pin::pin!(work);
    tokio::select! {
        answer = &mut work => answer,
        ended = &mut connection => {
            ended?;
            work.await
        }
    }
}

/// Probes ask whether it answers, not who it is.
fn unchecked_tls() -> Arc<rustls::ClientConfig> {
    static CONFIG: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    CONFIG
        .get_or_init(|| {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = rustls::ClientConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()
                .map(|builder| {
                    builder
                        .dangerous()
                        .with_custom_certificate_verifier(client::tls::AnyCertificate::new(
                            provider,
                        ))
                        .with_no_client_auth()
                });
            match config {
                Ok(config) => Arc::new(config),
                Err(error) => unreachable!("ring offers TLS 1.2 and 1.3: {error}"),
            }
        })
        .clone()
}

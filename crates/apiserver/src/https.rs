//! Requests to servers outside: extension servers and issuers of tokens.

pub(crate) use crate::http::respond::BoxError;

use crate::handler::Incoming;
use crate::serving::Identity;
use crate::trust::Bundle;
use bytes::Bytes;
use http::header::IF_NONE_MATCH;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// A client that keeps connections.
pub(crate) type Client = legacy::Client<HttpsConnector<HttpConnector>, Incoming>;

/// Trusts a bundle, without one what everybody trusts, or anybody; shows an identity.
///
/// # Errors
/// What is wrong with the bundle.
pub(crate) fn trusting(
    ca: &[u8],
    anybody: bool,
    identity: Option<Arc<Identity>>,
) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let builder = if anybody {
        builder
            .dangerous()
            .with_custom_certificate_verifier(client::tls::AnyCertificate::new(provider))
    } else {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Bundle::parse(ca, &provider)?)
    };
    Ok(match identity {
        Some(identity) => builder.with_client_cert_resolver(identity),
        None => builder.with_no_client_auth(),
    })
}

/// A client; `name` is whose certificate is expected, unless it is the URL's host.
pub(crate) fn client(tls: ClientConfig, name: Option<ServerName<'static>>) -> Client {
    let builder = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_only();
    let builder = match name {
        Some(name) => builder.with_server_name_resolver(FixedServerNameResolver::new(name)),
        None => builder,
    };
    legacy::Client::builder(TokioExecutor::new()).build(builder.enable_http1().build())
}

/// The JSON that a request is answered with.
///
/// # Errors
/// Why there is none, in words.
pub(crate) async fn json(
    client: &Client,
    request: Request<Incoming>,
    bytes_max: usize,
    timeout: Duration,
) -> Result<Value, String> {
    let answer = answer(client, request, bytes_max, timeout).await?;
    serde_json::from_slice(answer.body()).map_err(|e| e.to_string())
}

/// What a request is answered with, if it succeeds or what is asked for has not changed (304).
///
/// # Errors
/// Why there is none, in words.
pub(crate) async fn answer(
    client: &Client,
    request: Request<Incoming>,
    bytes_max: usize,
    timeout: Duration,
) -> Result<Response<Bytes>, String> {
    let url = request.uri().to_string();
    let asked = request.headers().contains_key(IF_NONE_MATCH);
    let work = async {
        let response = client.request(request).await.map_err(|e| innermost(&e))?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, bytes_max)
            .collect()
            .await
            .map_err(|e| e.to_string())?
            .to_bytes();
        let code = parts.status;
        let same = asked && code == StatusCode::NOT_MODIFIED;
        if !(code.is_success() || same) {
            return Err(format!("bad status from {url}: {}", code.as_u16()));
        }
        Ok(Response::from_parts(parts, body))
    };
    tokio::time::timeout(timeout, work)
        .await
        .unwrap_or_else(|_| Err("context deadline exceeded".to_owned()))
}

/// The cause that says most.
fn innermost(e: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(e), |e| e.source())
        .last()
        .map_or_else(String::new, ToString::to_string)
}

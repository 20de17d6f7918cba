//! The way of a request: into a server of this process, or to one over HTTPS.

use crate::Identity;
use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;
use tower::util::BoxCloneService;
use tower::{BoxError, ServiceExt as _};

/// Body of a request or an answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Whatever answers requests as one user; their URIs are paths.
pub(crate) type Service = BoxCloneService<Request<Body>, Response<Body>, BoxError>;

/// In this process.
pub(crate) fn within(service: apiserver::InProcess) -> Service {
    service
        .map_request(|request: Request<Body>| request)
        .map_response(|answer| answer.map(|body| body.boxed_unsync()))
        .map_err(|never| match never {})
        .boxed_clone()
}

/// Over HTTPS at `url`, by HTTP/2, as whom the certificate names.
pub(crate) fn over_https(url: &str, ca_pem: &str, identity: &Identity) -> Result<Service> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(identity.cert.as_bytes())?],
            PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?,
        )?;
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_only()
        .enable_all_versions()
        .build();
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let authority = url.strip_prefix("https://").context("an https URL")?;
    let authority: http::uri::Authority = authority.parse()?;
    let send = move |request: Request<Body>| {
        let (client, authority) = (client.clone(), authority.clone());
        async move {
            let (mut parts, body) = request.into_parts();
            let mut uri = parts.uri.into_parts();
            uri.scheme = Some(http::uri::Scheme::HTTPS);
            uri.authority = Some(authority);
            parts.uri = http::Uri::from_parts(uri)?;
            let answer = client.request(Request::from_parts(parts, body)).await?;
            Ok(answer.map(|body| body.map_err(Into::into).boxed_unsync()))
        }
    };
    Ok(tower::service_fn(send).boxed_clone())
}

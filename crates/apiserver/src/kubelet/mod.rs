//! Requests that a node answers: logs, exec, attach, port-forward, and the node, pod and
//! service proxies. `target.rs` says where each goes, `upgrade.rs` passes connections through.

mod target;
pub(crate) mod upgrade;

use crate::config::KubeletAccess;
use crate::handler::Incoming;
use crate::http::request::Query;
use crate::http::respond::{Body, BoxError};
use crate::registry::Call;
use crate::server::Error;
use crate::server_state::Core;
use apimachinery::Status;
use futures::StreamExt as _;
use http::header::{self, HeaderMap, HeaderName};
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Limited};
use hyper::upgrade::OnUpgrade;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use parking_lot::RwLock;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;

/// Longest refusal of a node that is passed on.
const REFUSAL_BYTES_MAX: usize = 50 * 1024;

/// Reaches nodes and what runs on them.
pub(crate) struct Kubelets(RwLock<Reach>);

/// As what.
#[derive(Clone)]
struct Reach {
    client: Client<HttpsConnector<HttpConnector>, Incoming>,
    tls: Arc<ClientConfig>,
}

impl Kubelets {
    pub(crate) fn new(access: &KubeletAccess) -> Result<Self, Error> {
        Ok(Self(RwLock::new(Reach::new(access)?)))
    }

    /// Shows them another certificate from now on.
    pub(crate) fn replace(&self, access: &KubeletAccess) -> Result<(), Error> {
        let reach = Reach::new(access)?;
        *self.0.write() = reach;
        Ok(())
    }

    fn client(&self) -> Client<HttpsConnector<HttpConnector>, Incoming> {
        self.0.read().client.clone()
    }

    fn tls(&self) -> Arc<ClientConfig> {
        self.0.read().tls.clone()
    }
}

impl Reach {
    fn new(access: &KubeletAccess) -> Result<Self, Error> {
        let fail = |e: BoxError| Error::Kubelet(e);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| fail(e.into()))?;
        let builder = match &access.ca {
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for cert in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                    roots
                        .add(cert.map_err(|e| fail(e.into()))?)
                        .map_err(|e| fail(e.into()))?;
                }
                builder.with_root_certificates(roots)
            }
            None => builder
                .dangerous()
                .with_custom_certificate_verifier(client::tls::AnyCertificate::new(provider)),
        };
        let tls = match &access.client_identity {
            Some((cert, key)) => {
                let chain = CertificateDer::pem_slice_iter(cert.as_bytes())
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|e| fail(e.into()))?;
                let key =
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| fail(e.into()))?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|e| fail(e.into()))?
            }
            None => builder.with_no_client_auth(),
        };
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls.clone())
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            tls: Arc::new(tls),
        })
    }
}

impl Kubelets {
    /// What a node's kubelet says at a path.
    ///
    /// # Errors
    /// When it does not answer, or with something else than JSON of this size.
    pub(crate) async fn ask(
        &self,
        node: &serde_json::Value,
        path: &str,
        bytes_max: usize,
    ) -> Result<serde_json::Value, BoxError> {
        let base = target::base_of(node, "").map_err(|s| s.message)?;
        let body = http_body_util::Empty::new().map_err(|e| -> BoxError { match e {} });
        let mut request = Request::new(body.boxed_unsync());
        *request.uri_mut() = format!("{base}{path}").parse()?;
        let response = self.client().request(request).await?;
        if !response.status().is_success() {
            return Err(format!("the kubelet answered {}", response.status()).into());
        }
        let body = Limited::new(response.into_body(), bytes_max)
            .collect()
            .await?;
        Ok(serde_json::from_slice(&body.to_bytes())?)
    }
}

/// A request for something that runs elsewhere.
pub(crate) struct Forwarded<'a> {
    pub(crate) query: &'a Query,
    /// Path below `proxy`.
    pub(crate) tail: &'a str,
    pub(crate) method: &'a Method,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) body: Incoming,
    /// Where the connection goes after `101 Switching Protocols`.
    pub(crate) upgrade: Option<OnUpgrade>,
}

/// Answers a subresource that lives on a node.
pub(crate) async fn serve(
    call: &Call<'_>,
    request: Forwarded<'_>,
) -> Result<Response<Body>, Status> {
    let target = target::url(call, request.query, request.tail).await?;
    if request.headers.contains_key(header::UPGRADE) {
        let uri: Uri = target.parse().map_err(Status::internal)?;
        let way = upgrade::Way {
            uri: &uri,
            tls: &call.core.kubelets.tls(),
            server_name: None,
        };
        let Forwarded {
            method,
            headers,
            body,
            upgrade,
            ..
        } = request;
        return upgrade::join(call.core, way, method, headers, body, upgrade).await;
    }
    if matches!(call.subresource, "exec" | "attach" | "portforward") {
        return Err(Status::bad_request("Upgrade request required"));
    }
    forward(call, &target, request).await
}

async fn forward(
    call: &Call<'_>,
    target: &str,
    sent: Forwarded<'_>,
) -> Result<Response<Body>, Status> {
    let Forwarded {
        method,
        headers,
        body,
        ..
    } = sent;
    let uri: Uri = target.parse().map_err(Status::internal)?;
    let host = uri.authority().map(ToString::to_string).unwrap_or_default();
    let mut request = Request::new(body);
    *request.method_mut() = method.clone();
    *request.uri_mut() = uri;
    for (name, value) in headers {
        if !hop_by_hop(name) {
            request.headers_mut().append(name, value.clone());
        }
    }
    let response = call
        .core
        .kubelets
        .client()
        .request(request)
        .await
        .map_err(|e| unreachable(&host, &e))?;
    // A proxied answer is what its server made it; of a refused log clients expect a Status.
    if call.subresource == "log" && response.status().as_u16() >= 400 {
        return Err(refused(call, response).await);
    }
    Ok(pass_on(call.core, response))
}

/// The node's words in a Status with its code.
async fn refused(call: &Call<'_>, response: Response<hyper::body::Incoming>) -> Status {
    let code = response.status().as_u16();
    let body = Limited::new(response.into_body(), REFUSAL_BYTES_MAX)
        .collect()
        .await;
    let words = body.map_or_else(
        |e| format!("the node's answer could not be read: {e}"),
        |body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
    );
    match code {
        400 => Status::bad_request(words),
        404 => Status::new(404, "NotFound", words)
            .with_details(serde_json::json!({"name": call.name, "kind": "pods"})),
        500 => Status::internal(words),
        503 => Status::new(503, "ServiceUnavailable", words),
        _ => Status::new(code, "", words),
    }
}

/// A node's answer as ours; its body ends when the server stops.
pub(crate) fn pass_on(core: &Core, response: Response<hyper::body::Incoming>) -> Response<Body> {
    let (mut parts, incoming) = response.into_parts();
    for name in ["connection", "transfer-encoding", "keep-alive"] {
        parts.headers.remove(name);
    }
    let stop = core.stop.clone();
    let stream = incoming
        .into_data_stream()
        .map(|r| r.map_err(|e| Box::new(e) as BoxError))
        .take_until(async move { stop.cancelled().await });
    parts.extensions = http::Extensions::new();
    parts.version = http::Version::default();
    Response::from_parts(parts, Body::stream(stream))
}

/// 503 with the innermost cause.
pub(crate) fn unreachable(host: &str, e: &(dyn std::error::Error + 'static)) -> Status {
    let cause = std::iter::successors(Some(e), |e| e.source())
        .last()
        .map_or_else(String::new, ToString::to_string);
    Status::new(
        503,
        "ServiceUnavailable",
        format!("error trying to reach service: {host}: {cause}"),
    )
}

/// Headers of this connection, not of the request; and credentials, which are for us alone.
pub(crate) fn hop_by_hop(name: &HeaderName) -> bool {
    [
        header::CONNECTION,
        header::HOST,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::TE,
        header::TRAILER,
        header::AUTHORIZATION,
        header::ACCEPT_ENCODING,
        header::CONTENT_LENGTH,
    ]
    .contains(name)
        || name == "keep-alive"
}

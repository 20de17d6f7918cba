//! Requests that a node answers: logs, and the node, pod and service proxies.

use crate::config::KubeletAccess;
use crate::handler::Incoming;
use crate::http::request::Query;
use crate::http::respond::{Body, BoxError};
use crate::registry::Call;
use crate::server::Error;
use apimachinery::Status;
use futures::StreamExt as _;
use http::header::{self, HeaderMap, HeaderName};
use http::{Method, Request, Response, Uri};
use http_body_util::BodyExt as _;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde_json::Value;
use std::sync::Arc;

/// Default kubelet port.
const KUBELET_PORT: u64 = 10250;

/// Reaches nodes and what runs on them.
pub(crate) struct Kubelets {
    client: Client<HttpsConnector<HttpConnector>, Incoming>,
}

impl Kubelets {
    pub(crate) fn new(access: &KubeletAccess) -> Result<Self, Error> {
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
                .with_custom_certificate_verifier(Arc::new(Unchecked(provider))),
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
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
        })
    }
}

/// Answers a subresource that lives on a node.
pub(crate) async fn serve(
    call: &Call<'_>,
    query: &Query,
    tail: &str,
    method: &Method,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Response<Body>, Status> {
    let object = call.view(&*call.current().await?);
    let target = match (call.row.plural, call.subresource) {
        ("pods", "log") => log_url(call, query, &object)?,
        ("nodes", "proxy") => format!("{}{tail}{}", kubelet_base(call, &object)?, raw_query(query)),
        ("pods", "proxy") => pod_url(call, &object, tail, query)?,
        _ => {
            return Err(Status::new(
                501,
                "NotImplemented",
                format!("{} is not served by this server", call.subresource),
            ));
        }
    };
    forward(call, &target, method, headers, body).await
}

fn raw_query(query: &Query) -> String {
    let text = query.encode();
    if text.is_empty() {
        text
    } else {
        format!("?{text}")
    }
}

/// `https://ADDRESS:PORT` of a node's kubelet.
fn kubelet_base(call: &Call<'_>, node: &Value) -> Result<String, Status> {
    let addresses = node["status"]["addresses"].as_array();
    let of = |kind: &str| {
        addresses
            .into_iter()
            .flatten()
            .find(|a| a["type"] == kind)
            .and_then(|a| a["address"].as_str())
    };
    let address = of("InternalIP")
        .or_else(|| of("Hostname"))
        .or_else(|| of("ExternalIP"));
    let Some(address) = address else {
        return Err(Status::internal(format!(
            "no preferred addresses found for node {:?}",
            node["metadata"]["name"].as_str().unwrap_or(call.name)
        )));
    };
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        .as_u64()
        .filter(|p| *p > 0)
        .unwrap_or(KUBELET_PORT);
    let host = if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    };
    Ok(format!("https://{host}:{port}"))
}

fn log_url(call: &Call<'_>, query: &Query, pod: &Value) -> Result<String, Status> {
    let names = |list: &str| -> Vec<String> {
        pod["spec"][list]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|c| c["name"].as_str().map(str::to_owned))
            .collect()
    };
    let (containers, init) = (names("containers"), names("initContainers"));
    let container = match query.get("container") {
        Some(c) => {
            let all = containers
                .iter()
                .chain(&init)
                .chain(&names("ephemeralContainers"))
                .any(|n| n == c);
            if !all {
                return Err(Status::bad_request(format!(
                    "container {c} is not valid for pod {}",
                    call.name
                )));
            }
            c.to_owned()
        }
        None => match containers.as_slice() {
            [one] => one.clone(),
            several => {
                let mut text = format!(
                    "a container name must be specified for pod {}, choose one of: [{}]",
                    call.name,
                    several.join(" ")
                );
                if !init.is_empty() {
                    text.push_str(&format!(
                        " or one of the init containers: [{}]",
                        init.join(" ")
                    ));
                }
                return Err(Status::bad_request(text));
            }
        },
    };
    let node_name = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node_name.is_empty() {
        return Err(Status::bad_request(format!(
            "pod {} does not have a host assigned",
            call.name
        )));
    }
    let node = call
        .core
        .peek("", "nodes", "", node_name)
        .ok_or_else(|| Status::not_found("", "nodes", node_name))?
        .value();
    let mut out = url::form_urlencoded::Serializer::new(String::new());
    for key in [
        "follow",
        "previous",
        "sinceSeconds",
        "sinceTime",
        "timestamps",
        "tailLines",
        "limitBytes",
        "stream",
    ] {
        if let Some(v) = query.get(key) {
            out.append_pair(key, v);
        }
    }
    let tail = out.finish();
    let question = if tail.is_empty() { "" } else { "?" };
    Ok(format!(
        "{}/containerLogs/{}/{}/{container}{question}{tail}",
        kubelet_base(call, &node)?,
        call.namespace,
        call.name
    ))
}

fn pod_url(call: &Call<'_>, pod: &Value, tail: &str, query: &Query) -> Result<String, Status> {
    let ip = pod["status"]["podIP"].as_str().unwrap_or_default();
    if ip.is_empty() {
        return Err(Status::bad_request(format!(
            "pod {} has no address yet",
            call.name
        )));
    }
    let port = pod["spec"]["containers"][0]["ports"][0]["containerPort"]
        .as_u64()
        .unwrap_or(80);
    let tail = if tail.is_empty() { "/" } else { tail };
    Ok(format!("http://{ip}:{port}{tail}{}", raw_query(query)))
}

async fn forward(
    call: &Call<'_>,
    target: &str,
    method: &Method,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Response<Body>, Status> {
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
        .client
        .request(request)
        .await
        .map_err(|e| {
            let cause = std::iter::successors(Some(&e as &dyn std::error::Error), |e| e.source())
                .last()
                .map_or_else(String::new, ToString::to_string);
            Status::new(
                503,
                "ServiceUnavailable",
                format!("error trying to reach service: {host}: {cause}"),
            )
        })?;
    let (mut parts, incoming) = response.into_parts();
    for name in ["connection", "transfer-encoding", "keep-alive"] {
        parts.headers.remove(name);
    }
    let stop = call.core.stop.clone();
    let stream = incoming
        .into_data_stream()
        .map(|r| r.map_err(|e| Box::new(e) as BoxError))
        .take_until(async move { stop.cancelled().await });
    parts.extensions = http::Extensions::new();
    parts.version = http::Version::default();
    Ok(Response::from_parts(parts, Body::stream(stream)))
}

/// Headers of this connection, not of the request; and credentials, which are for us alone.
fn hop_by_hop(name: &HeaderName) -> bool {
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

/// Accepts any serving certificate, as upstream does where no kubelet CA is given.
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

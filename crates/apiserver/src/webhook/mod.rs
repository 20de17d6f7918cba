//! Calls to webhooks: admission reviews and conversions, over TLS, to a URL or a Service.
//!
//! The reference is `k8s.io/apiserver/pkg/util/webhook`.

use crate::https;
use crate::server_state::Core;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

/// Calls at a time; further ones wait, as long as their timeout lasts.
const CALLS_MAX: usize = 64;
/// Bytes of an answer; a longer one is an error.
const ANSWER_BYTES_MAX: usize = 10 << 20;
/// Idle connections to one target, and targets that are remembered; more are closed.
const IDLE_MAX: usize = 4;
const TARGETS_MAX: usize = 64;

/// Calls webhooks.
pub(crate) struct Webhooks {
    permits: Semaphore,
    /// Idle connections by target and trust. Guards nothing else.
    idle: Mutex<HashMap<Target, Vec<Sender>>>,
}

type Sender = SendRequest<Full<Bytes>>;

impl Default for Webhooks {
    fn default() -> Self {
        Self {
            permits: Semaphore::new(CALLS_MAX),
            idle: Mutex::default(),
        }
    }
}

/// `clientConfig` of a webhook.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Endpoint {
    url: String,
    service: Option<Service>,
    /// PEM.
    ca: Vec<u8>,
}

/// Where in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Service {
    pub(crate) namespace: String,
    pub(crate) name: String,
    path: String,
    pub(crate) port: u16,
}

impl Service {
    /// `None` when there is none.
    pub(crate) fn parse(v: &Value) -> Option<Self> {
        let text = |key: &str| v[key].as_str().unwrap_or_default().to_owned();
        v.is_object().then(|| Self {
            namespace: text("namespace"),
            name: text("name"),
            path: text("path"),
            port: v["port"]
                .as_u64()
                .and_then(|p| p.try_into().ok())
                .unwrap_or(443),
        })
    }
}

/// Where a call goes and what is believed there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Target {
    host: String,
    port: u16,
    server_name: String,
    ca: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Config(String),
    #[error("service {0:?} not found")]
    NoService(String),
    #[error("no endpoints available for service {0:?}")]
    NoEndpoint(String),
    #[error("dial tcp {0}: {1}")]
    Connect(String, std::io::Error),
    #[error("tls: {0}")]
    Tls(std::io::Error),
    #[error("{0}")]
    Http(hyper::Error),
    #[error("the server answered {0}: {1}")]
    Code(u16, String),
    #[error("reading the answer: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("decoding the answer: {0}")]
    Json(serde_json::Error),
    #[error("context deadline exceeded")]
    Timeout,
}

impl Endpoint {
    pub(crate) fn parse(v: &Value) -> Self {
        use base64::Engine as _;
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let ca = v["caBundle"].as_str().unwrap_or_default();
        Self {
            url: text(&v["url"]),
            service: Service::parse(&v["service"]),
            ca: base64::engine::general_purpose::STANDARD
                .decode(ca)
                .unwrap_or_default(),
        }
    }

    /// As errors show it.
    pub(crate) fn shown(&self) -> String {
        match &self.service {
            Some(s) => format!(
                "https://{}.{}.svc:{}{}",
                s.name, s.namespace, s.port, s.path
            ),
            None => self.url.clone(),
        }
    }

    /// Where it is now, and the path to ask for.
    fn target(&self, core: &Core) -> Result<(Target, String), Error> {
        if let Some(s) = &self.service {
            let (host, port) = endpoint(core, s)?;
            let path = if s.path.starts_with('/') {
                s.path.clone()
            } else {
                format!("/{}", s.path)
            };
            let target = Target {
                host,
                port,
                server_name: format!("{}.{}.svc", s.name, s.namespace),
                ca: self.ca.clone(),
            };
            return Ok((target, path));
        }
        let url = url::Url::parse(&self.url)
            .map_err(|e| Error::Config(format!("url {:?}: {e}", self.url)))?;
        if url.scheme() != "https" {
            return Err(Error::Config(format!(
                "url {:?}: the scheme must be https",
                self.url
            )));
        }
        let host = url
            .host_str()
            .unwrap_or_default()
            .trim_matches(['[', ']'])
            .to_owned();
        let target = Target {
            port: url.port_or_known_default().unwrap_or(443),
            server_name: host.clone(),
            host,
            ca: self.ca.clone(),
        };
        let path = match url.query() {
            Some(q) => format!("{}?{q}", url.path()),
            None => url.path().to_owned(),
        };
        Ok((target, path))
    }
}

/// A ready endpoint of a Service, else its cluster address.
pub(crate) fn endpoint(core: &Core, s: &Service) -> Result<(String, u16), Error> {
    let service = core
        .peek("", "services", &s.namespace, &s.name)
        .ok_or_else(|| Error::NoService(s.name.clone()))?
        .value();
    if service["spec"]["type"] == "ExternalName" {
        let host = service["spec"]["externalName"].as_str().unwrap_or_default();
        return Ok((host.to_owned(), s.port));
    }
    let ports = service["spec"]["ports"].as_array();
    let port = ports.into_iter().flatten().find(|p| p["port"] == s.port);
    let none = || Error::NoEndpoint(s.name.clone());
    let port = port.ok_or_else(none)?;
    let slices = core
        .cache
        .named("discovery.k8s.io", "endpointslices")
        .ok_or_else(none)?;
    let of = "kubernetes.io/service-name";
    for slice in slices.all() {
        if slice.namespace() != s.namespace || slice.label(of) != Some(s.name.as_str()) {
            continue;
        }
        let slice = slice.value();
        let name = port["name"].as_str().unwrap_or_default();
        let mut numbers = slice["ports"].as_array().into_iter().flatten();
        let number = numbers.find(|p| p["name"].as_str().unwrap_or_default() == name);
        let number = number.and_then(|p| p["port"].as_u64()?.try_into().ok());
        let mut ready = slice["endpoints"].as_array().into_iter().flatten();
        let address = ready.find(|e| e["conditions"]["ready"] != false);
        if let (Some(number), Some(address)) =
            (number, address.and_then(|e| e["addresses"][0].as_str()))
        {
            return Ok((address.to_owned(), number));
        }
    }
    match service["spec"]["clusterIP"].as_str() {
        Some(ip) if !ip.is_empty() && ip != "None" => Ok((ip.to_owned(), s.port)),
        _ => Err(none()),
    }
}

impl Webhooks {
    /// Posts a review and reads the answer.
    pub(crate) async fn post(
        &self,
        core: &Arc<Core>,
        config: &Endpoint,
        review: &Value,
        timeout: Duration,
    ) -> Result<Value, Error> {
        let work = async {
            let _permit = self.permits.acquire().await;
            let (target, path) = config.target(core)?;
            let body = Bytes::from(serde_json::to_vec(review).map_err(Error::Json)?);
            // An idle connection may have ended meanwhile; a new one has not.
            if let Some(sender) = self.idle_to(&target)
                && let Ok(answer) = self.ask(&target, sender, &path, body.clone()).await
            {
                return Ok(answer);
            }
            let sender = connect(core, &target).await?;
            self.ask(&target, sender, &path, body).await
        };
        tokio::time::timeout(timeout, work)
            .await
            .unwrap_or(Err(Error::Timeout))
    }

    fn idle_to(&self, target: &Target) -> Option<Sender> {
        let mut idle = self.idle.lock();
        let of = idle.get_mut(target)?;
        of.retain(|s| !s.is_closed());
        of.pop()
    }

    async fn ask(
        &self,
        target: &Target,
        mut sender: Sender,
        path: &str,
        body: Bytes,
    ) -> Result<Value, Error> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = path
            .parse()
            .map_err(|_| Error::Config(format!("path {path:?}")))?;
        let host = HeaderValue::from_str(&target.server_name);
        let headers = request.headers_mut();
        headers.insert(
            HOST,
            host.map_err(|_| Error::Config(format!("host {:?}", target.server_name)))?,
        );
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let response = sender.send_request(request).await.map_err(Error::Http)?;
        let code = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await;
        let body = body.map_err(Error::Body)?.to_bytes();
        if code != 200 {
            /// Of a refusal only the beginning is told.
            const TOLD_MAX: usize = 1024;
            let text = String::from_utf8_lossy(&body[..body.len().min(TOLD_MAX)]).into_owned();
            return Err(Error::Code(code, text));
        }
        let mut idle = self.idle.lock();
        if idle.len() < TARGETS_MAX || idle.contains_key(target) {
            let of = idle.entry(target.clone()).or_default();
            if of.len() < IDLE_MAX {
                of.push(sender);
            }
        } else {
            idle.clear();
        }
        drop(idle);
        serde_json::from_slice(&body).map_err(Error::Json)
    }
}

async fn connect(core: &Arc<Core>, target: &Target) -> Result<Sender, Error> {
    let at = if target.host.contains(':') {
        format!("[{}]:{}", target.host, target.port)
    } else {
        format!("{}:{}", target.host, target.port)
    };
    let stream = TcpStream::connect(&at)
        .await
        .map_err(|e| Error::Connect(at, e))?;
    let _ = stream.set_nodelay(true);
    let name = ServerName::try_from(target.server_name.clone())
        .map_err(|_| Error::Config(format!("server name {:?}", target.server_name)))?;
    let tls = TlsConnector::from(Arc::new(
        https::trusting(&target.ca, false, None)
            .map_err(|e| Error::Config(format!("caBundle: {e}")))?,
    ));
    let stream = tls.connect(name, stream).await.map_err(Error::Tls)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(Error::Http)?;
    core.streams.spawn_cancellable(async move {
        if let Err(e) = connection.await {
            tracing::debug!(error = %e, "a connection to a webhook has ended");
        }
    });
    Ok(sender)
}

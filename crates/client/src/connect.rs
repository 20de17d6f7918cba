//! Making a `kube::Client`.

use http::HeaderValue;
use http::header::USER_AGENT;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use std::path::Path;
use tower::ServiceExt as _;

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig can't be read or has no usable context.
    #[error("read kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// TLS could not be set up from it.
    #[error("set up client")]
    Client(#[source] kube::Error),
}

/// A client from a kubeconfig file, its current context, over HTTPS.
///
/// # Errors
/// When the file is unreadable or its certificates are.
pub async fn from_kubeconfig(path: &Path) -> Result<kube::Client, ConnectError> {
    from_kubeconfig_as(path, Agent::default()).await
}

/// The same for a program that calls itself `agent`.
///
/// # Errors
/// As [`from_kubeconfig`].
pub async fn from_kubeconfig_as(path: &Path, agent: Agent) -> Result<kube::Client, ConnectError> {
    let failed = |source| ConnectError::Kubeconfig {
        path: path.display().to_string(),
        source,
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    let mut config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(failed)?;
    config.headers.push((USER_AGENT, agent.header()));
    kube::Client::try_from(config).map_err(ConnectError::Client)
}

/// The program that requests name themselves after: what `managedFields` calls the manager
/// of a write that names no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agent(pub &'static str);

impl Default for Agent {
    fn default() -> Self {
        Self("salp")
    }
}

impl Agent {
    /// The `User-Agent` header: name and version, of which the API server keeps the name.
    fn header(self) -> HeaderValue {
        let text = format!("{}/{}", self.0, env!("CARGO_PKG_VERSION"));
        // A name that can't be sent is a slip of the programmer's; it costs only the name.
        HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("salp"))
    }
}

/// A client straight into an API server of this process: no socket, no TLS. The service
/// itself decides as whom its requests are made. Needs a running tokio runtime.
pub fn from_service<S, B>(service: S) -> kube::Client
where
    S: tower::Service<http::Request<Body>, Response = http::Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<tower::BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<tower::BoxError>,
{
    from_service_as(service, Agent::default())
}

/// The same for a part that calls itself `agent`.
pub fn from_service_as<S, B>(service: S, agent: Agent) -> kube::Client
where
    S: tower::Service<http::Request<Body>, Response = http::Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<tower::BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<tower::BoxError>,
{
    let header = agent.header();
    let named = service.map_request(move |mut request: http::Request<Body>| {
        request
            .headers_mut()
            .entry(USER_AGENT)
            .or_insert_with(|| header.clone());
        request
    });
    kube::Client::new(named, "default")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_kubeconfig_is_named() {
        let error = from_kubeconfig(Path::new("/nowhere/kubeconfig"))
            .await
            .err()
            .map(|e| e.to_string());
        assert_eq!(
            error.as_deref(),
            Some("read kubeconfig /nowhere/kubeconfig")
        );
    }
}

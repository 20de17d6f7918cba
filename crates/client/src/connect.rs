//! Making a `kube::Client`.

use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use std::path::Path;

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
    let failed = |source| ConnectError::Kubeconfig {
        path: path.display().to_string(),
        source,
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(failed)?;
    kube::Client::try_from(config).map_err(ConnectError::Client)
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
    kube::Client::new(service, "default")
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

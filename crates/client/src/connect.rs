//! Making a `kube::Client`.

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
    let _ = path;
    todo!()
}

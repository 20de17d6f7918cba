//! Host names as a guest's pod sees them. Who is asked, and in which order, is the caller's
//! affair: see [`Resolve`].

use futures::future::BoxFuture;
use std::net::IpAddr;

/// Why a name has no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The servers know of none.
    #[error("find address: no such name")]
    NotFound,
    /// No server answered, or none could say.
    #[error("find address: no name server answered")]
    NoAnswer,
}

/// Finds addresses of names as a pod's DNS configuration has it.
pub trait Resolve: Send + Sync + 'static {
    /// Addresses of a host, the best first, at least one. Never asked for what is an address
    /// already.
    fn resolve(&self, host: String) -> BoxFuture<'static, Result<Vec<IpAddr>, ResolveError>>;
}

/// The machine's own resolver, for guests whose pod has none.
pub(crate) async fn of_the_machine(host: String) -> Result<Vec<IpAddr>, ResolveError> {
    match tokio::net::lookup_host((host.as_str(), 0)).await {
        Ok(found) => {
            let found: Vec<IpAddr> = found.map(|address| address.ip().to_canonical()).collect();
            if found.is_empty() {
                Err(ResolveError::NotFound)
            } else {
                Ok(found)
            }
        }
        // The system does not say which of the two it was.
        Err(error) => {
            tracing::debug!(host, %error, "name not found");
            Err(ResolveError::NotFound)
        }
    }
}

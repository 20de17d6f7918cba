//! What port-forward needs of a pod: connections to its ports.

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

/// A pod's ports.
pub trait Ports: Send + Sync + 'static {
    /// Connects to one.
    fn dial(&self, port: u16) -> BoxFuture<'static, Result<Dialled, DialError>>;
}

/// A connection to a port.
pub type Dialled = Box<dyn Connection>;

/// What bytes go both ways through.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Why there is none; a client is told so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DialError(pub String);

/// Bytes read at once of a pod.
pub(crate) const CHUNK_BYTES: usize = 32 << 10;

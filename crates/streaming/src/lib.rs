//! Streams of exec, attach and port-forward over one connection, as Kubernetes' clients and
//! kubelets speak: WebSocket channels ([`websocket`]) and SPDY/3.1 ([`spdy`]).
//!
//! Pods and runtimes are not known here: a connection is joined with channels that carry
//! [`FromClient`] and [`ToClient`]. All that comes from outside is bounded by constants.

mod activity;
mod command;
mod ports;
pub mod spdy;
pub mod websocket;

pub use command::{Ended, FromClient, Resize, ToClient};
pub use ports::{DialError, Dialled, Ports};

use std::time::Duration;

/// A connection that carries nothing for so long is ended (and at most a quarter later): the
/// kubelet's `streamingConnectionIdleTimeout`.
pub const IDLE_MAX: Duration = Duration::from_secs(4 * 3600);

/// How long a client may take to see that all was said.
const END_WITHIN: Duration = Duration::from_secs(10);

//! Wasm pods: the host in the data plane process and the agent's side of its socket.
//!
//! [`Host`] keeps sandboxes and containers, runs commands, and serves each HTTP container at
//! its pod's address. [`Remote`] is the same runtime seen from another process; it may come and
//! go while guests run on. Both are a [`runtime::PodRuntime`]. How guests compute is in crate
//! `wasm`; what a pod is, in `node`. Start at [`Host::start`].

mod host;
mod log_file;
mod names;
mod protocol;
mod remote;
mod session;

pub use host::{Host, HostConfig, HostError, HttpEndpoint, ResponseBody, Standby, Standbys};
pub use log_file::{LogFile, LogLimits};
pub use protocol::{Frames, PROTOCOL, ProtocolError};
pub use remote::Remote;

/// What the node reports as `containerRuntimeVersion`.
pub(crate) fn version() -> String {
    format!("salp-wasm://{}", env!("CARGO_PKG_VERSION"))
}

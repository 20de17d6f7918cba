//! Wasm pods: the host in the data plane process.
//!
//! [`Host`] keeps sandboxes and containers, runs commands, and serves each HTTP container at
//! its pod's address. The agent has it over a socket ([`connect`]), and may come and go while
//! guests run on. How guests compute is in crate `wasm`; what a pod is, in `node`. Start at
//! [`Host::start`].

mod host;
mod names;

pub use host::{Host, HostConfig, HostError, HttpEndpoint, ResponseBody, Standby, Standbys, Woken};
pub use remote_runtime::{LogLimits, Remote};

use remote_runtime::Peer;

/// What the node reports as `containerRuntimeVersion`.
const VERSION: &str = concat!("salp-wasm://", env!("CARGO_PKG_VERSION"));

/// The host of a data plane, from the agent's process.
pub fn connect(socket: &std::path::Path, scope: &lifecycle::Scope) -> Remote {
    let peer = Peer {
        name: "the data plane",
        version: VERSION,
    };
    Remote::connect(peer, socket, scope)
}

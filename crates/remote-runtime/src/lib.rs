//! A pod runtime in another process than the agent: both ends of its unix socket, what is said
//! over it, and the logs that such a process writes.
//!
//! [`listen`] serves anything that is a [`runtime::PodRuntime`]; [`Remote`] is the same runtime
//! seen from the agent, which may come and go while pods run on. How pods are run is the affair
//! of the crates `runtime-…`.

mod log_file;
mod protocol;
mod remote;
mod server;
mod session;

pub use log_file::{LineWriter, LogFile, LogLimits, OutputStream};
pub use protocol::{Frames, PROTOCOL, ProtocolError};
pub use remote::{Peer, Remote, hints};
pub use server::{Served, listen};
pub use session::{input, sizes};

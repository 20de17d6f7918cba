//! WebAssembly for pods: engines, an ahead-of-time cache, limits and the WASI hosts.
//!
//! Not here: pods, listeners, log files (that is `runtime-wasm`). This is the only crate that
//! knows wasmtime. Start with [`Runtime::load`], which turns a file into a [`Program`], then
//! [`Program::guest`], which ties it to arguments, directories, limits and a log, and gives an
//! [`HttpGuest`] or a [`CommandGuest`].
//!
//! What must hold: a guest's trap, loop or memory hunger never touches another guest; a guest
//! at rest has no instance, thread or task; the same file is compiled once on a machine.

mod admit;
mod cache;
mod command;
mod egress;
mod engine;
mod environment;
mod guest;
mod http;
mod http03;
mod keyvalue;
mod kind;
mod limits;
mod names;
mod network;
mod pipe;
mod precompiled;
mod program;
mod running;
mod send;
mod settings;
mod sockets;
mod state;
mod stdio;
mod surroundings;
mod ticker;

pub use command::{CommandGuest, Outcome};
pub use egress::EgressRules;
pub use engine::{Runtime, RuntimeConfig, RuntimeError};
pub use environment::Environment;
pub use guest::{Guest, GuestInput, GuestSpec, HttpOptions, Preopen, PrepareError};
pub use http::{GuestBody, HttpError, HttpGuest};
pub use keyvalue::KeyValue;
pub use kind::{GuestKind, KindError};
pub use limits::{CpuMeter, MemoryExceeded, MemoryMeter};
pub use names::{Resolve, ResolveError};
pub use network::Network;
pub use pipe::{OutputPipe, Stdio};
pub use program::{LoadError, Program};
pub use stdio::{LogSink, LogStream, LogWriter};

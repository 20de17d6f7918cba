//! The Wasm runtime as an agent sees it, in its own process and over the socket.

mod containers;
mod kept;
mod pod;
mod sessions;
mod socket;

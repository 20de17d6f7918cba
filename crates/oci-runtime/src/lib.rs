//! The built-in OCI runtime: it makes the container that a bundle describes, starts it, runs further
//! programs in it and deletes it, as the [OCI runtime specification] has it. Start with [`create`].
//!
//! Each call is a process of its own with one thread, which ends when it is done: what it enters
//! (namespaces, control groups) ends with it, and the container's process becomes a child of who
//! reaps orphans. It is a copy of the calling process, so nothing of the image runs before it is
//! confined; the program that calls should lie on a mount that can only be read, for a container
//! can open it as `/proc/PID/exe`.
//!
//! It is no general runtime: what a `config.json` may say is what crate `runtime-oci` writes, and
//! everything else is refused.
//!
//! [OCI runtime specification]: https://github.com/opencontainers/runtime-spec

#![allow(
    unreachable_pub,
    reason = "modules are private; what is public is re-exported here"
)]

mod config;
mod groups;
mod kernel;
mod process;
mod rootfs;
mod seccomp;
mod state;
mod within;

mod container;

pub use container::{Error, Operation, create, delete, exec, start};
pub use groups::{hand_down, weight};

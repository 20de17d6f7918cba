//! The node agent, Kubernetes' kubelet: it runs the pods that are bound to its node.
//!
//! It speaks to the control plane only through the Kubernetes API and to runtimes only
//! through [`runtime::PodRuntime`]; it knows none of either by name. Stopping it stops no
//! pod: the next agent adopts what runs.
//!
//! Start with [`Node::start`]; then `agent` (the loop), `plan` (what it decides), `jobs`
//! (what it does), `status` (what it tells).

mod addresses;
mod admit;
mod agent;
mod backoff;
mod checkpoint;
mod config;
mod contact;
mod container;
mod devices;
mod env;
mod exec;
#[cfg(test)]
mod fakes;
mod feed;
mod hooks;
mod http_get;
mod image;
mod jobs;
mod linux;
mod logs;
mod machine;
mod node;
mod objects;
mod plan;
mod pod;
mod probes;
mod publish;
mod register;
mod resources;
mod server;
mod shutdown;
mod sleep;
mod state;
mod static_pods;
mod status;
mod tokens;
mod volumes;

pub use config::{Config, Error, Kubelet, TlsError};
pub use image::{ImageSource, PullFailure, PulledImage, Wanted};
pub use node::{Node, own_pods};
pub use shutdown::ShutdownGrace;
pub use sleep::Sleep;
pub use volumes::images_in_use;

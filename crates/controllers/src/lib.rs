//! The controllers: each brings the objects of a kind nearer to what they ask for.
//!
//! One module a controller. A reconcile takes only a key, reads what is from the shared
//! informers, decides purely (`plan`) and then acts; it can be repeated at any time.
//! They know nothing of each other: what joins them are the objects. Start with
//! [`run`], then `replicaset`, the simplest of those that own pods.

mod aggregation;
mod autoscaling;
mod certificates;
mod context;
mod cronjob;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod error;
mod gc;
mod history;
mod job;
mod namespace;
mod nodes;
mod pods;
mod quota;
mod replicaset;
mod roots;
mod statefulset;
mod tokens;
mod volumes;
mod writes;

pub use certificates::{Asked, Signer};
pub use context::{Config, run};
pub use error::Error;

#[cfg(test)]
mod fixture;

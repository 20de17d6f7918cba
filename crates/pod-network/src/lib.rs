//! Addresses of pods: which prefixes this machine answers for, and which address a pod
//! gets.
//!
//! [`anyip`] makes a whole prefix bindable with one route; [`via`] leads to other nodes;
//! [`veth`] gives a pod a network namespace of its own;
//! [`IpPool`] hands out a node's
//! share of the pod network. It knows no Kubernetes objects and nothing of runtimes.

pub mod anyip;
mod pool;
mod prefix;
pub mod veth;
pub mod via;

pub use pool::{IpPool, PoolError, set_aside};
pub use prefix::{ParsePrefixError, Prefix};

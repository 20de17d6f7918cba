//! Access to a Kubernetes API for all other parts: a `kube::Client` over HTTPS or
//! straight into an API server of the same process, shared informers, work queues.
//!
//! A kind is watched and parsed once a process: [`Informers`] hands out the same
//! [`Informer`] of `Arc<K>` to all who ask.

pub mod connect;
pub mod informer;
pub mod queue;

pub use informer::{Informer, Informers, ObjectKey};
pub use k8s_openapi;
pub use kube;
pub use queue::WorkQueue;

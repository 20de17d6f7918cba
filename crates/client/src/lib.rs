//! Access to a Kubernetes API for all other parts: a `kube::Client` over HTTPS or
//! straight into an API server of the same process, shared informers, work queues,
//! events. It knows nothing of what is done with them.
//!
//! A kind is watched and parsed once a process: [`Informers`] hands out the same
//! [`Informer`] of `Arc<K>` to all who ask. Start with [`informer`].

pub mod clock;
pub mod connect;
pub mod election;
pub mod events;
pub mod informer;
pub mod kinds;
pub mod labels;
pub mod metadata;
pub mod queue;
pub mod resources;
mod store;
pub mod taints;
mod text;
pub mod tls;
pub mod volumes;

pub use clock::Clock;
pub use election::Election;
pub use events::{EventRecorder, EventType};
pub use informer::{Change, Informer, Informers, ObjectKey, Selected};
pub use k8s_openapi;
pub use kube;
pub use queue::{Outcome, WorkQueue, run_workers, start_workers};

/// Whether the API server says that the object is not there.
pub fn is_not_found(error: &kube::Error) -> bool {
    code(error) == Some(404)
}

/// Whether the API server refused a write because the object has changed meanwhile,
/// or because it is there already.
pub fn is_conflict(error: &kube::Error) -> bool {
    code(error) == Some(409)
}

/// Whether a create failed because an object of that name is there.
pub fn is_already_exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.reason == "AlreadyExists")
}

/// The HTTP code of an answer that is a `Status`.
pub fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

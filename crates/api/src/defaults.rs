//! Values that upstream fills in when a client leaves them out.
//!
//! One function a kind, grouped as the catalog is; they never overwrite what
//! is set and are idempotent. What needs cluster state (addresses, service
//! accounts, tolerations) is admission's work, not this module's.

pub(crate) mod cluster;
pub(crate) mod network;
pub(crate) mod pod;
pub(crate) mod workloads;

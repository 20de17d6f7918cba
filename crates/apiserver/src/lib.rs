//! The Kubernetes API server: HTTP → authentication → authorization → admission →
//! registry → store, with a watch cache in front of the store.
//!
//! One generic registry serves every row of `api::resources()` and every custom resource
//! (`definitions/`); there is no handler a kind.
//! It knows no controller, no scheduler and no node code. Start with [`ApiServer::start`],
//! then `handler.rs` (what happens to a request) and `registry/` (what happens to an object).

mod admission;
mod aggregation;
mod allocate;
mod audit;
mod authn;
mod authz;
mod bootstrap;
mod cache;
mod config;
mod convert;
mod definitions;
mod discovery;
mod encryption;
mod expiry;
mod flow;
mod handler;
mod health;
mod http;
mod https;
mod input;
mod kubelet;
mod metrics;
mod peers;
mod registry;
mod resource_metrics;
mod row;
mod server;
mod server_state;
mod serving;
mod trust;
mod webhook;

pub use audit::{Config as AuditConfig, Log as AuditLog};
pub use authn::User;
pub use config::{
    Clock, Config, Entropy, FrontProxy, KubeletAccess, Limits, RequestHeader, ServiceCidr, Shared,
    SystemClock,
};
pub use http::respond::Body;
pub use server::{ApiServer, Error, InProcess};

//! Git feeds a site: repositories and OCI artifacts are followed, built and applied.
//!
//! Kinds and their meaning are Flux's (`source.toolkit.fluxcd.io`, `kustomize.toolkit.fluxcd.io`).
//! It speaks to the control plane through the Kubernetes API alone. Start with [`run`], then
//! [`apply::prepare`] and [`kustomize::build`].

pub mod apply;
pub mod artifact;
pub mod cluster;
mod controllers;
pub mod diff;
pub mod directory;
pub mod health;
pub mod kinds;
pub mod kustomize;
pub mod objects;
pub mod plan;
pub mod revision;
mod source;
pub mod status;
pub mod substitute;
pub mod tree;
pub mod variables;

pub use controllers::{Config, run};

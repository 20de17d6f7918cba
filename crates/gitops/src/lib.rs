//! Git feeds a site: repositories and OCI artifacts are followed, built and applied.
//!
//! Kinds and their meaning are Flux's (`source.toolkit.fluxcd.io`, `kustomize.toolkit.fluxcd.io`).
//! It speaks to the control plane through the Kubernetes API alone. Start with
//! [`kustomize::build`].

pub mod apply;
pub mod artifact;
pub mod cluster;
pub mod health;
pub mod kinds;
pub mod kustomize;
pub mod objects;
pub mod plan;
pub mod revision;
pub mod status;
pub mod substitute;
pub mod tree;

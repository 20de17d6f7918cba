//! Kustomize against kubectl's, and sites that follow folders and repositories.

mod directory;
mod follow;
mod kustomize;
mod remote;
mod site;

//! Kustomize against kubectl's, and sites that follow sources.

mod kustomize;

//! The rules that all Kubernetes objects obey, as pure functions over
//! `serde_json::Value`: schema tables, codecs, patches, server-side apply,
//! selectors, quantities and the `Status` error.
//!
//! No I/O, no async. It knows no single kind: the resource table is crate `api`.
//! Start with [`schema`], which everything else is driven by.

pub mod apply;
pub mod cbor;
pub mod cel;
pub mod decode;
pub mod gvk;
pub mod json_path;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod review;
pub mod schema;
pub mod selector;
pub mod status;
pub mod structural;

pub use gvk::{GroupVersion, GroupVersionKind, GroupVersionResource};
pub use status::{FieldError, Status};

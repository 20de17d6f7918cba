//! OCI images: pull, verify, resume, keep, unpack, push, collect garbage.
//!
//! [`ImageStore`] is a content store on disk (an OCI image layout) that pulls into itself and
//! answers with an [`Image`]; [`Registry`] speaks to registries and can push a Wasm file.
//! Nothing here runs an image or knows pods. Start reading at [`ImageStore::pull`].

mod artifact;
mod auth;
mod blobs;
mod digest;
mod error;
mod files;
mod gc;
mod grants;
mod image;
mod index;
mod layers;
mod layout;
mod manifest;
mod pull;
mod push;
mod reference;
mod registry;
mod store;
mod unpack;

pub use auth::{Auth, AuthError, Credential, default_auth_files};
pub use digest::{Digest, InvalidDigest};
pub use error::{PullError, PushError, StoreError};
pub use gc::{GcPolicy, GcReport, Usage};
pub use image::{Image, ImageKind, ImageSummary, WasmForm};
pub use manifest::{Descriptor, ImageConfig, ManifestError, Platform};
pub use pull::{Policy, PullOptions, Wanted};
pub use push::{PushOptions, Pushed};
pub use reference::{InvalidImageName, Reference};
pub use registry::{HostConfig, Registry, RegistryConfig, RegistryError, Scheme};
pub use store::ImageStore;
pub use unpack::UnpackError;
#[doc(hidden)]
pub use unpack::hostile;

/// Told how a pull or push goes on. Called often and from any thread: return at once.
pub trait Progress: Send + Sync {
    /// A step began or went on.
    fn step(&self, step: Step<'_>);
}

/// Where a pull or push is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Asking the registry what the name stands for.
    Resolving,
    /// The name stands for this; so many bytes are to move.
    Resolved {
        /// Manifest or index.
        digest: &'a Digest,
        /// Bytes of the layers needed, present ones included.
        total_bytes: u64,
    },
    /// So far a layer or file was moved.
    Blob {
        /// Which.
        digest: &'a Digest,
        /// Bytes so far.
        done_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    },
    /// Unpacking layers.
    Unpacking,
    /// All is there.
    Done,
}

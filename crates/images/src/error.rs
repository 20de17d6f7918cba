//! Why a pull, a push or the store fails. The texts follow what users of a kubelet know.

use crate::manifest::ManifestError;
use crate::registry::RegistryError;
use crate::unpack::UnpackError;
use crate::{Digest, InvalidImageName, Reference};
use std::path::PathBuf;

/// The content store's disk failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", .path.display())]
pub struct StoreError {
    /// What was done: `write`, `open`, …
    pub operation: &'static str,
    /// To which file.
    pub path: PathBuf,
    /// Why it failed.
    pub source: std::io::Error,
}

impl StoreError {
    pub(crate) fn new(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self {
            operation,
            path,
            source,
        }
    }

    /// Whether the disk (or the quota) is full.
    pub fn is_full(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self.source.kind(), StorageFull | QuotaExceeded)
    }
}

/// Why an image can't be had.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The name breaks the grammar.
    #[error(transparent)]
    InvalidName(#[from] InvalidImageName),
    /// No registry has it.
    #[error(
        "failed to pull and unpack image \"{reference}\": failed to resolve reference \
         \"{reference}\": {reference}: not found"
    )]
    NotFound {
        /// What was asked for.
        reference: Reference,
    },
    /// No credentials, or the wrong ones.
    #[error(
        "failed to pull and unpack image \"{reference}\": failed to resolve reference \
         \"{reference}\": pull access denied, repository does not exist or may require \
         authorization: {detail}"
    )]
    Unauthorized {
        /// What was asked for.
        reference: Reference,
        /// What the registry or the token service said.
        detail: String,
    },
    /// Content is not what its digest says.
    #[error(
        "failed to pull and unpack image \"{reference}\": content has another digest than \
         {wanted}"
    )]
    DigestMismatch {
        /// What was asked for.
        reference: Reference,
        /// What was promised.
        wanted: Digest,
    },
    /// The registry can't be reached, stalls, or breaks off.
    #[error("failed to pull and unpack image \"{reference}\": registry is not reachable")]
    Network {
        /// What was asked for.
        reference: Reference,
        /// What went wrong last.
        source: RegistryError,
    },
    /// The registry answers, but not as the protocol asks.
    #[error("failed to pull and unpack image \"{reference}\": registry failed")]
    Registry {
        /// What was asked for.
        reference: Reference,
        /// What it answered last.
        source: RegistryError,
    },
    /// More bytes than an image may have here.
    #[error(
        "failed to pull and unpack image \"{reference}\": {what} of {bytes} bytes is over the \
         limit of {bytes_max}"
    )]
    TooLarge {
        /// What was asked for.
        reference: Reference,
        /// Which part.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// The image is for other machines.
    #[error("failed to pull and unpack image \"{reference}\": {source}")]
    NoPlatform {
        /// What was asked for.
        reference: Reference,
        /// What it offers.
        source: ManifestError,
    },
    /// Neither Wasm nor a container image.
    #[error("failed to pull and unpack image \"{reference}\": {detail}")]
    UnsupportedArtifact {
        /// What was asked for.
        reference: Reference,
        /// What it is.
        detail: String,
    },
    /// An archive in it is broken or hostile.
    #[error("failed to pull and unpack image \"{reference}\": failed to extract layer")]
    Unpack {
        /// What was asked for.
        reference: Reference,
        /// What is wrong.
        source: UnpackError,
    },
    /// The content store failed; [`StoreError::is_full`] tells a full disk.
    #[error("failed to pull and unpack image \"{reference}\": {}", disk(.source))]
    Disk {
        /// What was asked for.
        reference: Reference,
        /// Why.
        source: StoreError,
    },
    /// The policy is `Never` and it is not here.
    #[error("Container image \"{reference}\" is not present with pull policy of Never")]
    NeverPull {
        /// What was asked for.
        reference: Reference,
    },
}

fn disk(error: &StoreError) -> &'static str {
    if error.is_full() {
        "no space left on device"
    } else {
        "content store failed"
    }
}

impl PullError {
    /// The waiting reason that Kubernetes shows for it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidName(_) => "InvalidImageName",
            Self::NeverPull { .. } => "ErrImageNeverPull",
            _ => "ErrImagePull",
        }
    }

    /// The message with all its causes, for events and conditions.
    pub fn report(&self) -> String {
        report(self)
    }
}

/// Why an image can't be published.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The file can't be read.
    #[error("read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not binary Wasm.
    #[error("read {}: not a Wasm module or component", .path.display())]
    NotWasm {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, if it began well.
        source: Option<wasmparser::BinaryReaderError>,
    },
    /// The content store can't take it.
    #[error("keep {reference}")]
    Keep {
        /// Its name.
        reference: Reference,
        /// Why.
        source: Box<StoreError>,
    },
    /// A digest can't be pushed to, only tags.
    #[error("push {0}: name a tag, not a digest")]
    NotATag(Reference),
    /// No credentials, or the wrong ones.
    #[error("push {reference}: access denied: {detail}; log in to {}", .reference.registry())]
    Unauthorized {
        /// Where to.
        reference: Reference,
        /// What the registry said.
        detail: String,
    },
    /// The registry failed or can't be reached.
    #[error("push {reference}")]
    Registry {
        /// Where to.
        reference: Reference,
        /// Why.
        source: Box<RegistryError>,
    },
}

impl PushError {
    /// The message with all its causes.
    pub fn report(&self) -> String {
        report(self)
    }
}

fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        // Some libraries repeat their source in their own text.
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}

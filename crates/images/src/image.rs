//! What a pull gives: an [`Image`] whose files are in the content store.

use crate::manifest::{Descriptor, ImageConfig};
use crate::{Digest, Reference};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// An image that is present and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The name it was asked for by.
    pub reference: Reference,
    /// What that name resolved to: the digest of the manifest, or of the index around it.
    pub digest: Digest,
    /// The manifest that was chosen for this machine; equal to `digest` without an index.
    pub manifest_digest: Digest,
    /// Bytes of its manifest, configuration and layers as transferred.
    pub size_bytes: u64,
    /// The manifest's annotations.
    pub annotations: BTreeMap<String, String>,
    /// Entry point, environment and so on; empty for plain artifacts.
    pub config: ImageConfig,
    /// What it is.
    pub kind: ImageKind,
}

impl Image {
    /// `status.containerStatuses[].imageID`: `registry/repository@sha256:…`.
    pub fn id(&self) -> String {
        format!("{}@{}", self.reference.name(), self.digest)
    }
}

/// What an image is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageKind {
    /// A Wasm module or component.
    Wasm {
        /// Digest of the file at `path`: the key of its compiled form.
        digest: Digest,
        /// The file.
        path: PathBuf,
        /// Its form, by its first bytes.
        form: WasmForm,
        /// The image's other files, when the packaging has any.
        rootfs: Option<PathBuf>,
    },
    /// A container image for this machine.
    Container {
        /// Layers, lowest first.
        layers: Vec<Descriptor>,
        /// The same unpacked, to be mounted over each other; none where the store is not
        /// [`crate::ImageStore::for_containers`], which fetches no layers either.
        dirs: Vec<PathBuf>,
    },
    /// Pulled for its files alone ([`crate::Wanted::Files`]).
    Files {
        /// All of them, to be read only.
        dir: PathBuf,
    },
}

/// What Wasm code is, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WasmForm {
    /// A core module.
    Module,
    /// A component.
    Component,
    /// The text format of either.
    Text,
}

impl WasmForm {
    /// By magic bytes: `\0asm`, then version 1 and layer 0 (module) or layer 1 (component);
    /// text begins with a parenthesis or a comment. `head` should have 64 bytes if there are.
    pub fn sniff(head: &[u8]) -> Option<Self> {
        if let Some(rest) = head.strip_prefix(b"\0asm") {
            return match rest.get(2..4)? {
                [0, 0] => Some(Self::Module),
                [1, 0] => Some(Self::Component),
                _ => None,
            };
        }
        let text = head.trim_ascii_start();
        [&b"(module"[..], b"(component", b";;", b"(;"]
            .iter()
            .any(|start| text.starts_with(start))
            .then_some(Self::Text)
    }
}

/// One image of the store, as `salp image ls` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageSummary {
    /// Its name.
    pub reference: Reference,
    /// What the name resolves to.
    pub digest: Digest,
    /// Bytes of everything below it that is present.
    pub size_bytes: u64,
    /// When it was last pulled or used, Unix seconds.
    pub used_s: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_told_by_their_first_bytes() {
        for (head, want) in [
            (&b"\0asm\x01\0\0\0"[..], Some(WasmForm::Module)),
            (b"\0asm\x0d\0\x01\0", Some(WasmForm::Component)),
            (b"\0asm\x0d\0\x02\0", None),
            (b"\0asm\x01", None),
            (b"  (module)", Some(WasmForm::Text)),
            (b"(component", Some(WasmForm::Text)),
            (b";; x", Some(WasmForm::Text)),
            (b"\x1f\x8b\x08", None),
            (b"", None),
        ] {
            assert_eq!(WasmForm::sniff(head), want, "{head:?}");
        }
    }
}

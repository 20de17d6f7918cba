//! Layers of container images, each unpacked into a directory of its own to be mounted over those
//! below it.
//!
//! A layer's directory is named by what it is and what it lies over: directories that its archive
//! does not tell of are made as the layers below have them, so the same archive over others is
//! another directory. Images that begin with the same layers share them.

use crate::manifest::{Descriptor, Document};
use crate::store::{Inner, LoadError, sync_filesystem};
use crate::unpack::{UnpackLimits, Unpacker};
use crate::{Digest, ImageKind, StoreError};
use sha2::Digest as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Of the digest that names a directory: many of them must fit into one mount option (a page).
const NAME_HEX: usize = 32;

/// The names of the directories of these layers, lowest first.
fn names(layers: &[Descriptor]) -> Vec<String> {
    let mut below = String::new();
    let name = |layer: &Descriptor| {
        let mut hasher = sha2::Sha256::new();
        hasher.update(below.as_bytes());
        hasher.update(layer.digest.as_str().as_bytes());
        let mut name = hex::encode(hasher.finalize());
        name.truncate(NAME_HEX);
        below.clone_from(&name);
        name
    };
    layers.iter().map(name).collect()
}

impl Inner {
    fn layer_dirs(&self, layers: &[Descriptor]) -> Vec<PathBuf> {
        let dir = self.root.join("layers");
        names(layers).iter().map(|name| dir.join(name)).collect()
    }

    /// The image of these layers; `None` when one of them is to be unpacked first.
    pub(crate) fn container(&self, layers: &[Descriptor]) -> Option<ImageKind> {
        let dirs = if self.containers {
            self.layer_dirs(layers)
        } else {
            Vec::new()
        };
        dirs.iter()
            .all(|dir| dir.is_dir())
            .then(|| ImageKind::Container {
                layers: layers.to_vec(),
                dirs,
            })
    }

    /// Unpacks the layers that are not. Blocking; call under the manifest's flight.
    pub(crate) fn unpack_layers(&self, layers: &[Descriptor]) -> Result<(), LoadError> {
        let dirs = self.layer_dirs(layers);
        for (at, (layer, dir)) in layers.iter().zip(&dirs).enumerate() {
            if dir.is_dir() {
                continue;
            }
            fill(dir, |fresh| {
                let below: Vec<PathBuf> = dirs[..at].iter().rev().cloned().collect();
                let mut unpacker = Unpacker::over(fresh, UnpackLimits::LAYER, below);
                Ok(unpacker.layer(&self.blobs.path(&layer.digest))?)
            })?;
        }
        Ok(())
    }

    /// The names of the layer directories of a manifest or index that is present.
    pub(crate) fn layer_keys(&self, digest: &Digest) -> Vec<String> {
        let read = |digest: &Digest| {
            let bytes = self.blobs.read(digest).ok()??;
            Document::parse(&bytes, None).ok()
        };
        let documents = match read(digest) {
            Some(Document::Index(entries)) => {
                let present = entries
                    .iter()
                    .filter(|entry| self.blobs.path(&entry.digest).exists());
                present.filter_map(|entry| read(&entry.digest)).collect()
            }
            other => other.into_iter().collect::<Vec<_>>(),
        };
        let layers = documents.iter().filter_map(|document| match document {
            Document::Manifest(manifest) => Some(names(&manifest.layers)),
            Document::Index(_) => None,
        });
        layers.flatten().collect()
    }
}

/// Makes a directory that is there with all its files or not at all. Blocking.
pub(crate) fn fill(
    dir: &Path,
    work: impl FnOnce(&Path) -> Result<(), LoadError>,
) -> Result<(), LoadError> {
    let parent = dir.parent().unwrap_or(dir);
    let fresh = tempfile::Builder::new()
        .prefix(".new-")
        .tempdir_in(parent)
        .map_err(StoreError::new("make", parent))?;
    // Containers see it, whoever they run as.
    fs::set_permissions(fresh.path(), fs::Permissions::from_mode(0o755))
        .map_err(StoreError::new("open up", fresh.path()))?;
    work(fresh.path())?;
    // A crash must not leave the name without the files.
    sync_filesystem(fresh.path())?;
    let fresh = fresh.keep();
    if let Err(error) = fs::rename(&fresh, dir) {
        let _ = fs::remove_dir_all(&fresh);
        // Another pull was first.
        if !dir.is_dir() {
            return Err(StoreError::new("rename", dir)(error).into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_layer_is_named_by_what_it_lies_over() {
        let layer = |content: &[u8]| Descriptor {
            media_type: String::new(),
            digest: Digest::sha256(content),
            size: 1,
            platform: None,
            annotations: BTreeMap::new(),
        };
        let (a, b) = (layer(b"a"), layer(b"b"));
        let ab = names(&[a.clone(), b.clone()]);
        assert_eq!(
            ab[0],
            names(std::slice::from_ref(&a))[0],
            "the same base is shared"
        );
        assert_ne!(ab[1], names(std::slice::from_ref(&b))[0]);
        assert_ne!(ab[1], names(&[b, a])[1]);
        assert_eq!(ab[1].len(), NAME_HEX);
    }
}

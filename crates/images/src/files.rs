//! Images and artifacts whose files are shown, not run: `image` volumes of pods (KEP-4639).
//!
//! An image's layers are unpacked over each other. Of an artifact each layer is a file by the name
//! that its annotations give it, as CRI-O has it; a layer without a name is left out unless it is
//! an archive.

use crate::layers::fill;
use crate::manifest::{Descriptor, is_image_config, is_tar_layer};
use crate::store::{ImageStore, Inner, LoadError, Plan};
use crate::unpack::{UnpackLimits, Unpacker};
use crate::{Digest, Image, ImageKind, Reference, StoreError};
use std::path::{Path, PathBuf};

/// What names a layer's file: OCI's annotation, then that of models.
const NAMES: [&str; 2] = ["org.opencontainers.image.title", "org.cnai.model.filepath"];

/// The name of a layer's file.
fn name_of(layer: &Descriptor) -> Option<&str> {
    let mut names = NAMES.iter().filter_map(|key| layer.annotations.get(*key));
    names.find(|name| !name.is_empty()).map(String::as_str)
}

impl ImageStore {
    /// An image that is present with all its files; `None` when a pull for them is needed.
    ///
    /// # Errors
    /// When the store can't be read.
    pub fn get_files(&self, reference: &Reference) -> Result<Option<Image>, StoreError> {
        let Some(top) = self.inner.index.get(reference)? else {
            return Ok(None);
        };
        match self.inner.files(reference, &top.digest) {
            Ok(found) => Ok(found),
            Err(LoadError::Store(error)) => Err(error),
            // A pull will say it better.
            Err(_) => Ok(None),
        }
    }
}

impl Inner {
    /// Named by what the image's name stands for, which tells garbage collection what is used.
    fn files_dir(&self, digest: &Digest) -> PathBuf {
        self.root.join("volumes").join(digest.hex())
    }

    pub(crate) fn files(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<Option<Image>, LoadError> {
        let dir = self.files_dir(digest);
        if !dir.is_dir() {
            return Ok(None);
        }
        let Some(plan) = self.plan(digest, None)? else {
            return Ok(None);
        };
        self.touch(digest);
        Ok(Some(Image {
            reference: reference.clone(),
            digest: plan.digest,
            manifest_digest: plan.manifest_digest,
            size_bytes: plan.size_bytes,
            annotations: plan.manifest.annotations,
            config: plan.config,
            kind: ImageKind::Files { dir },
        }))
    }

    /// Unpacks all files of an image into one directory. Blocking; call under the manifest's
    /// flight.
    pub(crate) fn unpack_all_files(&self, plan: &Plan) -> Result<(), LoadError> {
        let dir = self.files_dir(&plan.digest);
        if dir.is_dir() {
            return Ok(());
        }
        let layers = &plan.manifest.layers;
        let is_image = is_image_config(&plan.manifest.config.media_type);
        fill(&dir, |fresh| {
            let mut unpacker = Unpacker::whole(fresh, UnpackLimits::LAYER);
            let mut shown = 0;
            for layer in layers {
                let content = self.blobs.path(&layer.digest);
                match name_of(layer) {
                    Some(name) if !is_image => unpacker.link(Path::new(name), &content)?,
                    _ if is_tar_layer(&layer.media_type) => unpacker.layer(&content)?,
                    Some(name) => unpacker.link(Path::new(name), &content)?,
                    None => continue,
                }
                shown += 1;
            }
            if shown == 0 && !layers.is_empty() {
                return Err(LoadError::Unsupported(format!(
                    "no layer of the artifact has a file name (annotation {:?})",
                    NAMES[0]
                )));
            }
            Ok(())
        })
    }
}

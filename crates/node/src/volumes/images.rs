//! Volumes that are the files of an image or artifact (KEP-4639).
//!
//! The image store unpacks them once for all pods; a pod's directory has a link there, which says
//! what is in use and stays for the pod's life: a tag that moves changes no volume of a pod.

use super::{VolumeError, make_dir, volume_dir};
use k8s_openapi::api::core::v1 as core;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Where the links lie in a pod's directory: upstream's name.
pub(super) const PLUGIN: &str = "kubernetes.io~image";

/// The volumes that a container mounts and whose images are to be fetched first.
pub(crate) fn missing_images(
    pod_dir: &Path,
    pod: &core::Pod,
    container: &core::Container,
) -> Vec<core::Volume> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    let missing = volumes.filter(|volume| {
        let mut mounts = container.volume_mounts.iter().flatten();
        volume.image.is_some()
            && mounts.any(|mount| mount.name == volume.name)
            && !volume_dir(pod_dir, volume).is_some_and(|link| link.is_dir())
    });
    missing.cloned().collect()
}

/// Shows a pod's volume what is in `dir`.
pub(crate) fn link_image(
    pod_dir: &Path,
    volume: &core::Volume,
    dir: &Path,
) -> Result<(), VolumeError> {
    let link = volume_dir(pod_dir, volume).ok_or(VolumeError::Unsupported)?;
    if let Some(parent) = link.parent() {
        make_dir(parent, 0o755)?;
    }
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let make = || {
        match std::fs::remove_file(&link) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        std::os::unix::fs::symlink(&dir, &link)
    };
    make().map_err(|source| VolumeError::Write { path: link, source })
}

/// A path inside an image: nothing can be made there.
pub(super) fn sub_path(
    volume: &Path,
    sub: &str,
    image: &core::ImageVolumeSource,
) -> Result<PathBuf, VolumeError> {
    if volume.join(sub).exists() {
        return super::sub_path(volume, sub);
    }
    Err(VolumeError::ImageSubPath {
        path: sub.to_owned(),
        reference: image.reference.clone().unwrap_or_default(),
    })
}

/// Digests of the images that volumes of pods of this node show; `dir` is the node's.
pub fn images_in_use(dir: &Path) -> HashSet<String> {
    let list = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
    let links = list(dir.join("pods"))
        .flat_map(|pod| list(pod.path().join("volumes").join(PLUGIN)))
        .filter_map(|link| std::fs::read_link(link.path()).ok());
    links
        .filter_map(|target| {
            // The store names directories by digests.
            let hex = target.file_name()?.to_str()?;
            let algorithm = if hex.len() == 128 { "sha512" } else { "sha256" };
            Some(format!("{algorithm}:{hex}"))
        })
        .collect()
}

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

/// Where in a pod's directory it is kept which images its containers run.
const NOTED: &str = "images";

/// The volumes that a container mounts and whose images are to be fetched first.
pub(crate) fn missing_images(
    pod_dir: &Path,
    pod: &core::Pod,
    container: &core::Container,
) -> Vec<(PathBuf, core::ImageVolumeSource)> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    let missing = volumes.filter_map(|volume| {
        let mut mounts = container.volume_mounts.iter().flatten();
        let mounted = mounts.any(|mount| mount.name == volume.name);
        let image = volume.image.as_ref().filter(|_| mounted)?;
        let place = volume_dir(pod_dir, volume)?;
        (!place.is_dir()).then(|| (place, image.clone()))
    });
    missing.collect()
}

/// Shows a pod's volume, which is at `place`, what is in `dir`.
pub(crate) fn link_image(place: &Path, dir: &Path) -> Result<(), VolumeError> {
    if let Some(parent) = place.parent() {
        make_dir(parent, 0o755)?;
    }
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let make = || {
        match std::fs::remove_file(place) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        std::os::unix::fs::symlink(&dir, place)
    };
    make().map_err(|source| VolumeError::Write {
        path: place.to_owned(),
        source,
    })
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

/// Keeps that a container of the pod runs an image (`repository@digest`), for as long as the pod
/// has files here, whether or not an API server or an agent knows of it.
pub(crate) fn note_image(pod_dir: &Path, id: &str) -> Result<(), VolumeError> {
    let dir = pod_dir.join(NOTED);
    make_dir(&dir, 0o755)?;
    let digest = id.rsplit_once('@').map_or(id, |(_, digest)| digest);
    let path = dir.join(digest.replace('/', "_"));
    std::fs::write(&path, "").map_err(|source| VolumeError::Write { path, source })
}

/// Digests of the images that pods of this node run, or show in volumes, those that stand by
/// among them; `dir` is the node's.
pub fn images_in_use(dir: &Path) -> HashSet<String> {
    let list = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut used = HashSet::new();
    for pod in list(dir.join("pods")) {
        let noted = list(pod.path().join(NOTED));
        used.extend(noted.filter_map(|file| file.file_name().into_string().ok()));
        for link in list(pod.path().join("volumes").join(PLUGIN)) {
            // The store names directories by digests.
            let Ok(target) = std::fs::read_link(link.path()) else {
                continue;
            };
            if let Some(hex) = target.file_name().and_then(|name| name.to_str()) {
                let algorithm = if hex.len() == 128 { "sha512" } else { "sha256" };
                used.insert(format!("{algorithm}:{hex}"));
            }
        }
    }
    used
}

//! Volumes as directories of the host: what each holds, where it lies, how a container
//! is shown it.
//!
//! Known types: emptyDir, configMap, secret, downwardAPI, projected, hostPath, image, and claims
//! that are bound to directories of the machine. No mounts are made here, so a site without root has them
//! all; an `emptyDir` in memory is one for containers, whose runtime mounts it. Start with [`set_up`] and [`mounts`].

mod files;
mod images;
mod limits;
mod own;
mod payload;
mod persistent;
mod write;

pub(crate) use files::in_directories;
pub use images::images_in_use;
pub(crate) use images::{link_image, missing_images, note_image};
pub(crate) use limits::watch_limits;
pub(crate) use persistent::{directory, reclaim};

use crate::env::{ConfigError, Facts};
use crate::objects::PodObjects;
use crate::tokens::Tokens;
use apimachinery::quantity::Quantity;
use k8s_openapi::api::core::v1 as core;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

/// Why a volume can't be had; Display is what events show after
/// `MountVolume.SetUp failed for volume "x" : `.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error("{0}")]
    Content(#[from] ConfigError),
    #[error("references non-existent {what} key: {key}")]
    Key { what: &'static str, key: String },
    #[error("{0} is no path inside the volume")]
    Path(String),
    #[error(
        "ImageVolumeMountFailed: sub path {path:?} does not exist in image volume {reference:?}"
    )]
    ImageSubPath { path: String, reference: String },
    #[error("claim {0:?} is not bound to a volume")]
    Unbound(String),
    #[error("volume uses the ReadWriteOncePod access mode and is already in use by another pod")]
    InUse,
    #[error("{0}")]
    NotOwner(String),
    #[error("path {:?} does not exist", .0.display())]
    NoPath(PathBuf),
    #[error("read {what}: {source}")]
    Claim { what: String, source: kube::Error },
    #[error("volumes of this type are not supported on this node")]
    Unsupported,
    #[error("huge pages are not supported on this node: use medium \"\" or \"Memory\"")]
    HugePages,
    #[error(
        "mount propagation Bidirectional is not supported: what a container mounts stays in its pod"
    )]
    Bidirectional,
    #[error("hostPath type check failed: {path} is not a {wanted}")]
    HostPathType { path: String, wanted: String },
    #[error("fetch service account token: {0}")]
    Token(crate::tokens::TokenError),
    #[error(
        "the file mount {0} is in a directory that is a mount itself; a Wasm guest can have one of \
         the two"
    )]
    FileInMount(String),
    #[error(
        "the file mount {guest} can't be linked to {}: {source}; mount its directory instead",
        .file.display()
    )]
    File {
        guest: String,
        file: PathBuf,
        source: std::io::Error,
    },
    #[error("write {}: {source}", .path.display())]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// Which volume, and why.
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume {volume:?} : {source}")]
pub(crate) struct SetUpError {
    pub(crate) volume: String,
    pub(crate) source: VolumeError,
}

/// What volumes are made of.
pub(crate) struct Sources<'a> {
    pub(crate) facts: Facts<'a>,
    pub(crate) objects: &'a PodObjects,
    pub(crate) tokens: &'a Tokens,
    /// Asked for claims and their volumes.
    pub(crate) client: &'a kube::Client,
}

/// Materialises all volumes of the pod, or brings them up to date. Returns when its
/// tokens are to be fetched again, as Unix seconds.
pub(crate) async fn set_up(
    pod_dir: &Path,
    sources: &Sources<'_>,
) -> Result<Option<i64>, SetUpError> {
    let mut refresh: Option<i64> = None;
    let spec = sources.facts.pod.spec.as_ref();
    for volume in spec.and_then(|s| s.volumes.as_deref()).unwrap_or_default() {
        let again = set_up_one(pod_dir, volume, sources)
            .await
            .map_err(|source| SetUpError {
                volume: volume.name.clone(),
                source,
            })?;
        refresh = match (refresh, again) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
    Ok(refresh)
}

async fn set_up_one(
    pod_dir: &Path,
    volume: &core::Volume,
    sources: &Sources<'_>,
) -> Result<Option<i64>, VolumeError> {
    if let Some(host) = &volume.host_path {
        check_host_path(host)?;
        return Ok(None);
    }
    if volume.image.is_some() {
        // Pulled when a container that mounts it is about to start, as upstream.
        return Ok(None);
    }
    let dir = volume_dir(pod_dir, volume).ok_or(VolumeError::Unsupported)?;
    if let Some((claim, made)) = client::volumes::claim_of(sources.facts.pod, volume) {
        persistent::set_up(&claim, made, &dir, sources).await?;
        return Ok(None);
    }
    let group = own::Group::of(sources.facts.pod);
    if let Some(empty) = &volume.empty_dir {
        if empty
            .medium
            .as_deref()
            .is_some_and(|m| m.starts_with("HugePages"))
        {
            return Err(VolumeError::HugePages);
        }
        // Guests may run as any user.
        make_dir(&dir, 0o777)?;
        let once = group.map(|group| own::Group {
            on_mismatch: true,
            ..group
        });
        let owned = once.map_or(Ok(()), |group| group.own(&dir));
        owned.map_err(|source| VolumeError::Write { path: dir, source })?;
        return Ok(None);
    }
    let (mut files, refresh) = payload::payload(volume, sources, &dir).await?;
    make_dir(&dir, 0o755)?;
    if group.is_some() {
        for file in files.values_mut() {
            file.mode = own::Group::mode_of_read_only(file.mode);
        }
    }
    let updated = write::update(&dir, &files, group);
    updated.map_err(|source| VolumeError::Write { path: dir, source })?;
    Ok(refresh)
}

/// How the container sees its volumes. All of them must be set up.
pub(crate) fn mounts(
    pod_dir: &Path,
    pod: &core::Pod,
    container: &core::Container,
    env: &[(String, String)],
) -> Result<Vec<runtime::Mount>, VolumeError> {
    let volumes = pod
        .spec
        .as_ref()
        .and_then(|s| s.volumes.as_deref())
        .unwrap_or_default();
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let Some(volume) = volumes.iter().find(|v| v.name == mount.name) else {
            return Err(VolumeError::Unsupported);
        };
        let mut host_path = match &volume.host_path {
            Some(host) => PathBuf::from(&host.path),
            None => {
                let dir = volume_dir(pod_dir, volume).ok_or(VolumeError::Unsupported)?;
                // What a claim is bound to is behind a link, and so are images.
                std::fs::read_link(&dir).unwrap_or(dir)
            }
        };
        let expanded = mount.sub_path_expr.as_deref().map(|e| {
            crate::env::expand(e, |name| {
                env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
            })
        });
        if let Some(sub) = expanded.or_else(|| mount.sub_path.clone()) {
            host_path = match &volume.image {
                Some(image) => images::sub_path(&host_path, &sub, image)?,
                None => sub_path(&host_path, &sub)?,
            };
        }
        let propagation = mount.mount_propagation.as_deref();
        if propagation == Some("Bidirectional") {
            return Err(VolumeError::Bidirectional);
        }
        mounts.push(runtime::Mount {
            host_path,
            guest_path: mount.mount_path.clone(),
            read_only: mount.read_only.unwrap_or(false) || is_read_only(volume),
            recursive_read_only: mount.recursive_read_only.as_deref() == Some("Enabled"),
            follows_machine: propagation == Some("HostToContainer"),
            data_only: volume.image.is_some(),
            memory: in_memory(pod_dir, pod, volume),
        });
    }
    Ok(mounts)
}

/// What containers see of an `emptyDir` in memory: no larger than it says, nor than the pod's
/// memory.
fn in_memory(pod_dir: &Path, pod: &core::Pod, volume: &core::Volume) -> Option<runtime::Memory> {
    let empty = volume.empty_dir.as_ref()?;
    (empty.medium.as_deref() == Some("Memory")).then_some(())?;
    let stated = empty.size_limit.as_ref();
    let stated: Option<Quantity> = stated.and_then(|limit| limit.0.parse().ok());
    let stated = stated.and_then(|limit| u64::try_from(limit.value()).ok());
    let whole = pod.spec.as_ref()?;
    let whole = crate::resources::group(whole, None).limits.memory_bytes;
    let limits = [stated.filter(|bytes| *bytes > 0), whole];
    Some(runtime::Memory {
        dir: volume_dir(pod_dir, volume)?,
        size_bytes: limits.into_iter().flatten().min(),
        group: own::Group::of(pod).map(|group| group.gid),
    })
}

/// Where the pod's directory is: `<dir>/pods/<uid>`.
pub(crate) fn pod_dir(dir: &Path, uid: &str) -> PathBuf {
    dir.join("pods").join(uid)
}

/// Removes a pod's directory with all its volumes; nothing of a hostPath is touched.
pub(crate) fn tear_down(pod_dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(pod_dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The plugin name in the path is upstream's, so that tools that look there find it.
fn volume_dir(pod_dir: &Path, volume: &core::Volume) -> Option<PathBuf> {
    let plugin = if volume.empty_dir.is_some() {
        "kubernetes.io~empty-dir"
    } else if volume.config_map.is_some() {
        "kubernetes.io~configmap"
    } else if volume.secret.is_some() {
        "kubernetes.io~secret"
    } else if volume.downward_api.is_some() {
        "kubernetes.io~downward-api"
    } else if volume.projected.is_some() {
        "kubernetes.io~projected"
    } else if volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some() {
        persistent::PLUGIN
    } else if volume.image.is_some() {
        images::PLUGIN
    } else {
        return None;
    };
    Some(pod_dir.join("volumes").join(plugin).join(&volume.name))
}

/// What the API server wrote is no guest's to change, nor what the pod says it only reads.
fn is_read_only(volume: &core::Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
        || volume.image.is_some()
        || volume
            .persistent_volume_claim
            .as_ref()
            .is_some_and(|claim| claim.read_only == Some(true))
}

/// Parents are for the agent only: they keep what secrets' own modes may show.
fn make_dir(dir: &Path, mode: u32) -> Result<(), VolumeError> {
    let wrap = |source| VolumeError::Write {
        path: dir.into(),
        source,
    };
    if dir.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(wrap)?;
    // Set after, for the process's umask must not take away from it.
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode)).map_err(wrap)
}

fn check_host_path(host: &core::HostPathVolumeSource) -> Result<(), VolumeError> {
    let path = Path::new(&host.path);
    let wanted = host.type_.as_deref().unwrap_or_default();
    let wrap = |source| VolumeError::Write {
        path: path.into(),
        source,
    };
    if path.components().any(|c| c == Component::ParentDir) {
        return Err(VolumeError::Path(host.path.clone()));
    }
    match wanted {
        "DirectoryOrCreate" if !path.exists() => {
            std::fs::create_dir_all(path).map_err(wrap)?;
        }
        "FileOrCreate" if !path.exists() => {
            std::fs::File::create_new(path).map_err(wrap)?;
        }
        _ => {}
    }
    let kind = std::fs::metadata(path).map(|m| m.file_type());
    let fits = match (wanted, &kind) {
        ("", _) => true,
        ("Directory" | "DirectoryOrCreate", Ok(k)) => k.is_dir(),
        ("File" | "FileOrCreate", Ok(k)) => k.is_file(),
        ("Socket", Ok(k)) => k.is_socket(),
        ("CharDevice", Ok(k)) => k.is_char_device(),
        ("BlockDevice", Ok(k)) => k.is_block_device(),
        _ => false,
    };
    if fits {
        return Ok(());
    }
    Err(VolumeError::HostPathType {
        path: host.path.clone(),
        wanted: wanted.into(),
    })
}

/// A path inside a volume, made as a directory when nothing is there. Links may not lead
/// out of the volume.
fn sub_path(volume: &Path, sub: &str) -> Result<PathBuf, VolumeError> {
    let inside = Path::new(sub)
        .components()
        .all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if !inside {
        return Err(VolumeError::Path(sub.into()));
    }
    let wrap = |source| VolumeError::Write {
        path: volume.join(sub),
        source,
    };
    let root = volume.canonicalize().map_err(wrap)?;
    let wanted = root.join(sub);
    if !wanted.exists() {
        // What exists of the way must not lead out before anything is made below it.
        let mut known = wanted.as_path();
        while !known.exists() {
            known = known.parent().unwrap_or(&root);
        }
        if !known.canonicalize().map_err(wrap)?.starts_with(&root) {
            return Err(VolumeError::Path(sub.into()));
        }
        std::fs::create_dir_all(&wanted).map_err(wrap)?;
    }
    let real = wanted.canonicalize().map_err(wrap)?;
    if real.starts_with(&root) {
        Ok(real)
    } else {
        Err(VolumeError::Path(sub.into()))
    }
}

#[cfg(test)]
mod tests;

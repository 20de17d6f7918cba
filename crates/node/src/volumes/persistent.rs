//! Volumes that outlive pods: what a claim is bound to, as a directory of this machine.
//!
//! Where it lies is kept in the pod's own directory as a link, so that a pod starts again while
//! no API server can be asked. Directories of volumes that the site makes itself are in
//! `<dir>/volumes`; one whose volume is given up, and is not to be kept, is removed here.

use super::own::Group;
use super::{Sources, VolumeError, check_host_path, make_dir};
use crate::agent::Agent;
use api::constants::{ANNOTATION_PROVISIONED_BY, LOCAL_PATH_PROVISIONER};
use k8s_openapi::api::core::v1 as core;
use kube::api::{Api, DeleteParams, Preconditions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Between looks at volumes that were given up.
const LOOK: Duration = Duration::from_secs(5);
/// Below the agent's directory, and as long as nobody asks, all that it may delete of.
const DIRECTORY: &str = "volumes";
/// Where links to what claims are bound to lie in a pod's directory: upstream's name.
pub(super) const PLUGIN: &str = "kubernetes.io~local-volume";

/// Where this node keeps the volumes that are made for it.
pub(crate) fn directory(dir: &Path) -> PathBuf {
    let path = dir.join(DIRECTORY);
    std::path::absolute(&path).unwrap_or(path)
}

/// Links `link` to the directory that the claim is bound to; `made` is whether a controller makes
/// the claim for this pod alone.
pub(super) async fn set_up(
    claim: &str,
    made: bool,
    link: &Path,
    sources: &Sources<'_>,
) -> Result<(), VolumeError> {
    let owner = made.then_some(sources.facts.pod);
    let namespace = sources.facts.pod.metadata.namespace.as_deref();
    let found = find(sources.client, namespace.unwrap_or_default(), claim, owner).await;
    let (target, alone) = match found {
        Ok(found) => found,
        // What was there before is there still.
        Err(VolumeError::Claim { .. }) if link.is_dir() => return Ok(()),
        Err(error) => return Err(error),
    };
    let wrap = |source| VolumeError::Write {
        path: link.into(),
        source,
    };
    match &target {
        Target::Made(path) => make_dir(path, 0o777)?,
        Target::Host(host) => check_host_path(host)?,
        Target::Local(path) if !path.exists() => {
            return Err(VolumeError::NoPath(path.clone()));
        }
        Target::Local(_) => {}
    }
    if std::fs::read_link(link).is_ok_and(|to| to == target.path()) {
        return Ok(());
    }
    // Of two pods that are set up at once only one is first.
    let _first = CLAIMING.lock().await;
    if alone && is_elsewhere(link, target.path()) {
        return Err(VolumeError::InUse);
    }
    // A directory of the machine's own stays whose it is, as upstream.
    let group = Group::of(sources.facts.pod);
    if let (Some(group), Target::Made(path) | Target::Local(path)) = (group, &target) {
        let path = path.clone();
        let owned = tokio::task::spawn_blocking(move || group.own(&path)).await;
        owned
            .unwrap_or_else(|e| Err(std::io::Error::other(e)))
            .map_err(wrap)?;
    }
    if let Some(parent) = link.parent() {
        make_dir(parent, 0o755)?;
    }
    match std::fs::remove_file(link) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(wrap(e)),
        _ => {}
    }
    std::os::unix::fs::symlink(target.path(), link).map_err(wrap)
}

/// Held while it is looked whether another pod has a volume, until this one has it.
static CLAIMING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// What a claim leads to.
enum Target {
    /// A directory that this site makes.
    Made(PathBuf),
    /// One of the host, of a volume that somebody else made.
    Host(core::HostPathVolumeSource),
    /// One that must be there.
    Local(PathBuf),
}

impl Target {
    fn path(&self) -> &Path {
        match self {
            Self::Made(path) | Self::Local(path) => path,
            Self::Host(host) => Path::new(&host.path),
        }
    }
}

/// Where the claim's volume is, and whether it is for one pod alone.
async fn find(
    client: &kube::Client,
    namespace: &str,
    name: &str,
    owner: Option<&core::Pod>,
) -> Result<(Target, bool), VolumeError> {
    let asked = |what: String| move |source| VolumeError::Claim { what, source };
    let claims: Api<core::PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let claim = claims
        .get(name)
        .await
        .map_err(asked(format!("claim {namespace}/{name}")))?;
    if let Some(owner) = owner {
        client::volumes::made_for(&claim, owner).map_err(VolumeError::NotOwner)?;
    }
    let volume = client::volumes::volume_of(&claim);
    if volume.is_empty() {
        return Err(VolumeError::Unbound(name.into()));
    }
    let volumes: Api<core::PersistentVolume> = Api::all(client.clone());
    let volume = volumes
        .get(volume)
        .await
        .map_err(asked(format!("volume {volume}")))?;
    if !client::volumes::is_for(&volume, &claim) {
        return Err(VolumeError::Unbound(name.into()));
    }
    let made = is_made_here(&volume);
    let spec = volume.spec.unwrap_or_default();
    let alone = client::volumes::is_for_one_pod(spec.access_modes.as_deref());
    let target = match (spec.host_path, spec.local) {
        (Some(host), _) if made => Target::Made(host.path.into()),
        (Some(host), _) => Target::Host(host),
        (_, Some(local)) => Target::Local(local.path.into()),
        _ => return Err(VolumeError::Unsupported),
    };
    Ok((target, alone))
}

fn is_made_here(volume: &core::PersistentVolume) -> bool {
    let annotations = volume.metadata.annotations.as_ref();
    let by = annotations.and_then(|a| a.get(ANNOTATION_PROVISIONED_BY));
    by.is_some_and(|by| by == LOCAL_PATH_PROVISIONER)
}

/// Never returns: removes what is in the directories of volumes that were given up, and then
/// the volumes.
pub(crate) async fn reclaim(agent: Arc<Agent>) {
    let directory = directory(&agent.fixed.dir);
    let volumes: Api<core::PersistentVolume> = Api::all(agent.client.clone());
    loop {
        tokio::time::sleep(LOOK).await;
        let Ok(entries) = std::fs::read_dir(&directory) else {
            continue;
        };
        let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
        let used = in_use(&agent.fixed.dir);
        for name in names {
            let path = directory.join(&name);
            if used.contains(&path) {
                continue;
            }
            let Ok(volume) = volumes.get(&name).await else {
                // One that has gone, and was to be kept, or nobody who can be asked.
                continue;
            };
            if !given_up(&volume, &path) {
                continue;
            }
            if let Err(error) = std::fs::remove_dir_all(&path) {
                tracing::warn!(volume = name, %error, "volume not removed, trying again");
                continue;
            }
            let this = DeleteParams::default().preconditions(Preconditions {
                uid: volume.metadata.uid,
                resource_version: None,
            });
            match volumes.delete(&name, &this).await {
                Err(error) if !client::is_not_found(&error) => {
                    // The directory is made again, for it is how the volume is found again.
                    let _ = make_dir(&path, 0o777);
                    tracing::warn!(volume = name, %error, "volume not deleted, trying again");
                }
                _ => tracing::info!(volume = name, "volume removed"),
            }
        }
    }
}

/// Whether nobody claims what is at this path any more, and nobody wants it kept.
fn given_up(volume: &core::PersistentVolume, path: &Path) -> bool {
    let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref());
    let Some(spec) = &volume.spec else {
        return false;
    };
    phase == Some("Released")
        && volume.metadata.deletion_timestamp.is_none()
        && spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete")
        && is_made_here(volume)
        && spec
            .host_path
            .as_ref()
            .is_some_and(|host| Path::new(&host.path) == path)
}

/// Where the links of all pods lead that are still on this machine.
fn in_use(dir: &Path) -> std::collections::HashSet<PathBuf> {
    links(&dir.join("pods")).map(|(_, to)| to).collect()
}

/// Whether another pod than a link's has a link to the same place.
fn is_elsewhere(link: &Path, target: &Path) -> bool {
    // pods/UID/volumes/PLUGIN/NAME
    let own = link.ancestors().nth(3);
    let pods = own.and_then(Path::parent).unwrap_or(link);
    links(pods).any(|(pod, to)| Some(&*pod) != own && to == target)
}

/// The directories of pods, and where their links lead, each.
fn links(pods: &Path) -> impl Iterator<Item = (PathBuf, PathBuf)> {
    let list = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
    list(pods.to_owned()).flat_map(move |pod| {
        let own = list(pod.path().join("volumes").join(PLUGIN));
        own.filter_map(move |link| Some((pod.path(), std::fs::read_link(link.path()).ok()?)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_pod_has_is_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let link = |pod: &str, to: &str| {
            let plugin = dir
                .path()
                .join("pods")
                .join(pod)
                .join("volumes")
                .join(PLUGIN);
            std::fs::create_dir_all(&plugin).unwrap();
            let link = plugin.join("v");
            std::os::unix::fs::symlink(to, &link).unwrap();
            link
        };
        let (one, two) = (link("one", "/srv/a"), link("two", "/srv/b"));
        let check = |link: &Path, to: &str| is_elsewhere(link, Path::new(to));
        assert!(!check(&one, "/srv/a") && !check(&two, "/srv/b"));
        assert!(check(&two, "/srv/a") && check(&one, "/srv/b"));
        // A second volume of the same pod is no other pod's.
        assert!(!check(&one.with_file_name("w"), "/srv/a"));
        assert!(!check(&dir.path().join("pods/new/volumes/p/v"), "/srv/c"));
        assert!(check(&dir.path().join("pods/new/volumes/p/v"), "/srv/a"));
        assert_eq!(in_use(dir.path()).len(), 2);
    }
}

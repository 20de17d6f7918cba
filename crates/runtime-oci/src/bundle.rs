//! A container's files: its root directory (the image's layers with one to write into over them),
//! and what an OCI runtime is told.

use crate::cgroup::Tree;
use crate::confine::{self, ConfineError};
use crate::mounts;
use crate::sandbox::Surroundings;
use crate::spec::{self, Places, Rights};
use crate::users::{self, Identity, UserError};
use runtime::{Artifact, ContainerSpec, SandboxSpec};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Of a termination message so much is told, as upstream has it.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BundleError {
    #[error("write {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
    #[error("mount the image's {layers} layers")]
    Mount { layers: usize, source: io::Error },
    #[error(transparent)]
    User(#[from] UserError),
    #[error("the image is no container image: its pod has a runtime for containers only")]
    NotAContainer,
    #[error(
        "container images are not unpacked on this node: container pods need root (and the \
         capabilities SYS_ADMIN and NET_ADMIN); start the node as root"
    )]
    NoLayers,
    #[error("no command specified")]
    NoCommand,
    #[error(transparent)]
    Confine(#[from] ConfineError),
}

/// Mounts a volume in memory, and makes what a container is shown of it.
fn in_memory(shown: &Path, volume: &runtime::Memory) -> Result<(), BundleError> {
    let failed = |e| BundleError::Write(shown.to_owned(), e);
    mounts::memory(volume).map_err(failed)?;
    fs::create_dir_all(shown).map_err(failed)?;
    // Whoever wrote into it before may have left a link there.
    let (top, found) = (volume.dir.canonicalize(), shown.canonicalize());
    if !found.map_err(failed)?.starts_with(top.map_err(failed)?) {
        return Err(failed(io::ErrorKind::PermissionDenied.into()));
    }
    Ok(())
}

/// Where a container's files are.
#[derive(Clone, Debug)]
pub(crate) struct Bundle {
    pub(crate) dir: PathBuf,
}

impl Bundle {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    fn termination(&self) -> PathBuf {
        self.dir.join("termination-log")
    }

    /// Makes it; who the container runs as. It sees the processes of `target`. Blocking.
    pub(crate) fn make(
        &self,
        sandbox: &SandboxSpec,
        spec: &ContainerSpec,
        surroundings: &Surroundings,
        (tree, cgroup): (&Tree, &str),
        rights: Rights,
        target: Option<i32>,
    ) -> Result<Identity, BundleError> {
        let layers = match &spec.artifact {
            Artifact::Container { layers, .. } if layers.is_empty() => {
                return Err(BundleError::NoLayers);
            }
            Artifact::Container { layers, .. } => layers,
            Artifact::Wasm { .. } => return Err(BundleError::NotAContainer),
        };
        if spec.args.is_empty() {
            return Err(BundleError::NoCommand);
        }
        let usual = runtime::LinuxContainer::default();
        let linux = spec.linux.as_deref().unwrap_or(&usual);
        let seccomp = match &linux.seccomp {
            runtime::Seccomp::Localhost(path) => Some(confine::seccomp(path)?),
            _ => None,
        };
        let apparmor = confine::apparmor(&linux.apparmor)?;
        let (upper, work, root) = (self.dir.join("upper"), self.dir.join("work"), self.root());
        for dir in [&upper, &work, &root] {
            // The upper one's own is the root directory's, for whoever the container runs as.
            make_dir(dir, 0o755).map_err(|e| BundleError::Write(dir.clone(), e))?;
        }
        let highest_first: Vec<PathBuf> = layers.iter().rev().cloned().collect();
        mounts::overlay(&highest_first, &upper, &work, &root).map_err(|source| {
            BundleError::Mount {
                layers: layers.len(),
                source,
            }
        })?;
        let identity = users::find(linux, &root)?;
        for mount in &spec.mounts {
            if let Some(volume) = &mount.memory {
                in_memory(&mount.host_path, volume)?;
            }
        }
        let termination = self.termination();
        let write = |path: &Path, text: &[u8]| {
            fs::write(path, text).map_err(|e| BundleError::Write(path.to_owned(), e))
        };
        write(&termination, b"")?;
        // Whoever the container runs as writes it.
        let open = fs::Permissions::from_mode(0o666);
        fs::set_permissions(&termination, open)
            .map_err(|e| BundleError::Write(termination.clone(), e))?;
        let processes = match target {
            _ if surroundings.shared_processes => Some(surroundings.namespace("pid")),
            Some(pid) => Some(format!("/proc/{pid}/ns/pid").into()),
            None => None,
        };
        let (hosts, hostname, resolv_conf) = (
            surroundings.hosts(),
            surroundings.hostname(),
            surroundings.resolv_conf(),
        );
        let namespaces = surroundings
            .kinds()
            .iter()
            .map(|kind| (*kind, surroundings.namespace(kind)))
            .chain(processes.map(|path| ("pid", path)));
        let places = Places {
            root: &root,
            hosts: &hosts,
            hostname: &hostname,
            resolv_conf: &resolv_conf,
            termination: linux
                .termination_path
                .as_deref()
                .map(|path| (termination.as_path(), path)),
            namespaces: namespaces.collect(),
            seccomp,
            apparmor,
            cgroup,
            unified: tree.is_unified(),
            rights,
        };
        let config = spec::config(sandbox, spec, &identity, &places);
        let config = serde_json::to_vec(&config).map_err(io::Error::from);
        let path = self.dir.join("config.json");
        let config = config.map_err(|e| BundleError::Write(path.clone(), e))?;
        write(&path, &config)?;
        Ok(identity)
    }

    /// What the container left as its last words.
    pub(crate) fn message(&self) -> String {
        let bytes = fs::read(self.termination()).unwrap_or_default();
        let bytes = &bytes[..bytes.len().min(MESSAGE_BYTES_MAX)];
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// Takes all of it away.
    pub(crate) fn remove(&self) -> Result<(), BundleError> {
        let root = self.root();
        mounts::unmount(&root).map_err(|e| BundleError::Write(root, e))?;
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(BundleError::Write(self.dir.clone(), error))
            }
            _ => Ok(()),
        }
    }
}

fn make_dir(dir: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))
}

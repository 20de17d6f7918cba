//! Sandboxes on disk: what a host that was killed serves again before any agent asks.
//!
//! A folder for each sandbox with a file for the pod, one for the newest run of each
//! container, and a mark beside it while that runs. Files are replaced whole and carry
//! their checksum; one that is torn costs its own sandbox only. They are not synced: after
//! a power cut the agent, which has its own checkpoint, makes the pods. Not here: what is
//! done with them, see `Host::restore`.

use runtime::{ContainerSpec, SandboxId, SandboxSpec};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// The first words of a file of this version.
const HEAD: &str = "salp-sandbox 1 ";
/// No container has a name that begins with a dot.
const POD: &str = ".pod";

/// What a container is to a host that starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Runs {
    /// Requests come and go: it can go on serving.
    Http,
    /// What a program did before it was killed may not be done twice.
    Command,
}

/// A sandbox as it was.
#[derive(Debug, PartialEq)]
pub(super) struct KeptSandbox {
    pub(super) spec: SandboxSpec,
    pub(super) containers: Vec<(ContainerSpec, Option<Runs>)>,
}

/// The folder.
pub(super) struct Kept {
    dir: PathBuf,
    closed: AtomicBool,
}

impl Kept {
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        make(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            closed: AtomicBool::new(false),
        })
    }

    /// What happens from now on is the host's own end, not its sandboxes'.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    pub(super) fn sandbox(&self, spec: &SandboxSpec) {
        self.with(&spec.id, |dir| {
            make(dir)?;
            write(&dir.join(POD), spec)
        });
    }

    /// The newest run of a container.
    pub(super) fn container(&self, spec: &ContainerSpec) {
        self.with(&spec.sandbox, |dir| {
            write(&dir.join(format!("{}.run", spec.name)), spec)
        });
    }

    pub(super) fn started(&self, sandbox: &SandboxId, name: &str, runs: Runs) {
        self.with(sandbox, |dir| write(&dir.join(mark(name)), &runs));
    }

    pub(super) fn ended(&self, sandbox: &SandboxId, name: &str) {
        self.with(sandbox, |dir| fs::remove_file(dir.join(mark(name))));
    }

    pub(super) fn remove(&self, sandbox: &SandboxId) {
        self.with(sandbox, |dir| fs::remove_dir_all(dir));
    }

    /// Everything that is whole. What is not is removed.
    pub(super) fn read(&self) -> Vec<KeptSandbox> {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return Vec::new();
        };
        let dirs = entries.flatten().map(|entry| entry.path());
        dirs.filter_map(|dir| match read_sandbox(&dir) {
            Ok(sandbox) => Some(sandbox),
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "a sandbox of before is left out");
                // Refused again, if it can't be removed.
                let _ = fs::remove_dir_all(&dir);
                None
            }
        })
        .collect()
    }

    fn with(&self, sandbox: &SandboxId, what: impl FnOnce(&Path) -> io::Result<()>) {
        let id = &sandbox.0;
        if self.closed.load(Ordering::SeqCst) || id.starts_with('.') || id.contains('/') {
            return;
        }
        match what(&self.dir.join(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // It costs a little time after a crash, no more.
                tracing::debug!(sandbox = id, %error, "sandbox not kept");
            }
            _ => {}
        }
    }
}

fn mark(name: &str) -> String {
    format!("{name}.runs")
}

fn make(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}

fn write<T: Serialize>(path: &Path, what: &T) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(&encode(what)?)?;
    fs::rename(&new, path)
}

fn read_sandbox(dir: &Path) -> io::Result<KeptSandbox> {
    let spec: SandboxSpec = decode(&fs::read(dir.join(POD))?)?;
    if dir
        .file_name()
        .is_none_or(|name| name != spec.id.0.as_str())
    {
        return Err(io::Error::other("it is another sandbox's"));
    }
    let mut containers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "run") {
            continue;
        }
        let container: ContainerSpec = decode(&fs::read(&path)?)?;
        let runs = match fs::read(path.with_extension("runs")) {
            Ok(bytes) => Some(decode(&bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        containers.push((container, runs));
    }
    containers.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    Ok(KeptSandbox { spec, containers })
}

fn encode<T: Serialize>(what: &T) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(what)?;
    let mut bytes = head(&json).into_bytes();
    bytes.extend_from_slice(&json);
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    let end = bytes.iter().position(|b| *b == b'\n');
    let (stated, json) = bytes.split_at(end.map_or(0, |end| end + 1));
    if stated != head(json).as_bytes() {
        return Err(io::Error::other("it is torn, or of another version"));
    }
    Ok(serde_json::from_slice(json)?)
}

fn head(json: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut head = HEAD.to_owned();
    for byte in Sha256::digest(json) {
        // Writing to a String can't fail.
        let _ = write!(head, "{byte:02x}");
    }
    head.push('\n');
    head
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use runtime::{Artifact, ContainerId, Dns};

    fn sandbox(id: &str) -> SandboxSpec {
        SandboxSpec {
            id: SandboxId(id.into()),
            namespace: "d".into(),
            name: id.into(),
            labels: [].into(),
            annotations: [].into(),
            hostname: id.into(),
            ip: [127, 0, 0, 1].into(),
            memory_limit_bytes: None,
            dns: Dns::default(),
            standby: false,
            dies_after_silence_ms: None,
            linux: None,
        }
    }

    fn container(sandbox: &str, name: &str) -> ContainerSpec {
        ContainerSpec {
            id: ContainerId(format!("{sandbox}/{name}/0")),
            sandbox: SandboxId(sandbox.into()),
            name: name.into(),
            attempt: 0,
            image: "i:1".into(),
            artifact: Artifact::Container {
                digest: "sha256:0".into(),
                layers: Vec::new(),
            },
            args: Vec::new(),
            env: vec![("KEY".into(), "secret".into())],
            mounts: Vec::new(),
            ports: Vec::new(),
            memory_limit_bytes: None,
            cpu_request_millis: 0,
            cpu_limit_millis: None,
            working_dir: None,
            log_path: "/tmp/0.log".into(),
            tty: false,
            stdin: false,
            stdin_once: false,
            linux: None,
        }
    }

    #[test]
    fn what_ran_is_known_again() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(dir.path()).unwrap();
        for id in ["a", "b"] {
            kept.sandbox(&sandbox(id));
            kept.container(&container(id, "app"));
            kept.started(&SandboxId(id.into()), "app", Runs::Http);
        }
        kept.ended(&SandboxId("b".into()), "app");
        kept.sandbox(&sandbox("c"));
        kept.remove(&SandboxId("c".into()));
        kept.sandbox(&sandbox("../d"));
        // The host itself ends: its sandboxes' ends are not their own.
        kept.close();
        kept.ended(&SandboxId("a".into()), "app");
        let mut found = Kept::open(dir.path()).unwrap().read();
        found.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        let expected = [("a", Some(Runs::Http)), ("b", None)].map(|(id, runs)| KeptSandbox {
            spec: sandbox(id),
            containers: vec![(container(id, "app"), runs)],
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn a_torn_file_costs_its_own_sandbox() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(dir.path()).unwrap();
        for id in ["a", "b"] {
            kept.sandbox(&sandbox(id));
            kept.container(&container(id, "app"));
        }
        let file = dir.path().join("b/app.run");
        let whole = fs::read(&file).unwrap();
        fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        let found = kept.read();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].spec.name, "a");
        assert!(!dir.path().join("b").exists());
    }

    proptest! {
        #[test]
        fn noise_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), flip in 1..=255u8) {
            prop_assert!(decode::<SandboxSpec>(&bytes).is_err());
            let mut changed = encode(&sandbox("a")).unwrap();
            prop_assert!(decode::<SandboxSpec>(&changed[..at.index(changed.len())]).is_err());
            let place = at.index(changed.len());
            changed[place] ^= flip;
            prop_assert!(decode::<SandboxSpec>(&changed).is_err());
        }
    }
}

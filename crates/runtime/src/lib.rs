//! What a pod runtime is to the node agent: [`PodRuntime`] and the types that cross it.
//!
//! No I/O here. `runtime-wasm` implements it; `node` calls it and knows no runtime by name.
//! The words follow the Container Runtime Interface: a sandbox is a pod's address and
//! surroundings, containers live in it.

mod linux;
mod session;

pub use linux::{
    AppArmor, Device, Limits, LinuxContainer, LinuxSandbox, PodGroup, QosClass, Seccomp,
};
pub use session::{AttachSpec, ExecSpec, Said, Session, TerminalSize};

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A pod's identity at the runtime: its UID.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SandboxId(pub String);

/// One run of one container of a pod: restarts get new ids (`<pod uid>/<container>/<attempt>`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerId(pub String);

/// What a pod's surroundings must be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The pod's UID.
    pub id: SandboxId,
    /// Pod namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Pod labels.
    pub labels: BTreeMap<String, String>,
    /// Pod annotations.
    pub annotations: BTreeMap<String, String>,
    /// Host name that guests see.
    pub hostname: String,
    /// The address that the agent gave the pod.
    pub ip: IpAddr,
    /// Memory that all containers together may use, bytes; `None` for no limit.
    pub memory_limit_bytes: Option<u64>,
    /// DNS servers and search list for guests.
    pub dns: Dns,
    /// Its containers are made and not started until a request wakes it: the data plane
    /// starts them then, without asking the agent.
    #[serde(default)]
    pub standby: bool,
    /// It is killed when the node was not in contact with its server for so many milliseconds
    /// ([`PodRuntime::contact`]), whether there is an agent or not.
    #[serde(default)]
    pub dies_after_silence_ms: Option<u64>,
    /// What its containers' surroundings are; `None` for the usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linux: Option<Box<LinuxSandbox>>,
}

impl SandboxSpec {
    /// What there is to say of a sandbox that has these containers.
    #[must_use]
    pub fn status(&self, containers: Vec<ContainerStatus>, standby: bool) -> SandboxStatus {
        SandboxStatus {
            id: self.id.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            ip: self.ip,
            containers,
            standby,
            beside: self.linux.as_ref().is_some_and(|l| l.mixed),
        }
    }
}

/// Resolver configuration of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Server addresses.
    pub servers: Vec<IpAddr>,
    /// Search list.
    pub searches: Vec<String>,
    /// Options such as `ndots:5`.
    pub options: Vec<String>,
}

/// What a container must be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Its id.
    pub id: ContainerId,
    /// The sandbox it lives in.
    pub sandbox: SandboxId,
    /// Container name.
    pub name: String,
    /// Restart count so far.
    pub attempt: u32,
    /// Image as the pod names it.
    pub image: String,
    /// What is to run, from the content store.
    pub artifact: Artifact,
    /// Program name and arguments (`argv`), image defaults already merged in.
    pub args: Vec<String>,
    /// Environment in order; later wins.
    pub env: Vec<(String, String)>,
    /// Directories and files of the host to show the guest.
    pub mounts: Vec<Mount>,
    /// Ports that the pod spec declares.
    pub ports: Vec<Port>,
    /// Memory limit, bytes.
    pub memory_limit_bytes: Option<u64>,
    /// CPU request, thousandths of a core (its share when cores are busy).
    pub cpu_request_millis: u64,
    /// CPU limit, thousandths of a core.
    pub cpu_limit_millis: Option<u64>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// Where stdout and stderr are logged, CRI format.
    pub log_path: PathBuf,
    /// Runs to its end once (init container, restartPolicy decides what follows); a `wasi:http` guest serves all the same.
    pub tty: bool,
    /// Its input waits for who attaches; else there is none.
    #[serde(default)]
    pub stdin: bool,
    /// Input ends with the first who attached.
    #[serde(default)]
    pub stdin_once: bool,
    /// What its process is, where the artifact is a container's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linux: Option<Box<LinuxContainer>>,
}

/// What an image resolved to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Artifact {
    /// A Wasm module or component file in the content store.
    Wasm {
        /// `sha256:…` of the file, the key of its compiled form.
        digest: String,
        /// The file.
        path: PathBuf,
        /// Root directory of the image's other files, preopened as `/` where the packaging has any.
        rootfs: Option<PathBuf>,
    },
    /// An OCI container's unpacked layers, lowest first.
    Container {
        /// Image manifest digest.
        digest: String,
        /// Layer directories.
        layers: Vec<PathBuf>,
    },
}

/// A host path shown to the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// On the host.
    pub host_path: PathBuf,
    /// In the guest, absolute.
    pub guest_path: String,
    /// Guests may not write.
    pub read_only: bool,
    /// Nor to what is mounted below it (`recursiveReadOnly`).
    #[serde(default)]
    pub recursive_read_only: bool,
    /// What is mounted below it on the machine later shows to containers too (`HostToContainer`).
    #[serde(default)]
    pub follows_machine: bool,
    /// Nothing there is a program, a device or has a user's rights (`noexec`, `nodev`, `nosuid`).
    #[serde(default)]
    pub data_only: bool,
    /// It is in memory: containers see this in place of the directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
}

/// A volume in memory that the containers of a pod share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Where it is mounted; [`Mount::host_path`] is this or below it.
    pub dir: PathBuf,
    /// Bytes at most.
    pub size_bytes: Option<u64>,
    /// The group that it belongs to (`fsGroup`).
    pub group: Option<u32>,
}

/// A declared container port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its name, may be empty.
    pub name: String,
    /// Number, 1–65535.
    pub number: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

/// A sandbox and its containers as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// The pod's UID.
    pub id: SandboxId,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its address.
    pub ip: IpAddr,
    /// Its containers, the newest attempt of each and older ones until removed.
    pub containers: Vec<ContainerStatus>,
    /// As [`SandboxSpec::standby`]; a sandbox that was woken is none any more.
    #[serde(default)]
    pub standby: bool,
    /// Its pod has containers of two runtimes, and each has this of it.
    #[serde(default)]
    pub beside: bool,
}

/// A container as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Its id.
    pub id: ContainerId,
    /// Container name.
    pub name: String,
    /// Restart count.
    pub attempt: u32,
    /// Image as the pod names it.
    pub image: String,
    /// What it does.
    pub state: ContainerState,
}

/// What a container does. Times are Unix milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Running, or ready to serve with no instance alive.
    Running {
        /// Start.
        started_ms: i64,
    },
    /// Ended.
    Exited(Exit),
}

/// How a container ended. Times are Unix milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code (137 when killed).
    pub code: i32,
    /// Why, as Kubernetes has it.
    pub reason: ExitReason,
    /// What a person reads: the trap, the last error.
    pub message: String,
    /// Start.
    pub started_ms: i64,
    /// End.
    pub finished_ms: i64,
}

/// `terminated.reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// Exit code 0.
    Completed,
    /// Any other exit code, or a trap.
    Error,
    /// Its memory limit was exceeded.
    OomKilled,
    /// Its program could not be run.
    StartError,
}

/// A hint that a sandbox changed: read its status again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed(pub SandboxId);

/// What a container has used so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerStats {
    /// CPU time, nanoseconds.
    pub cpu_ns: u64,
    /// Memory in use, bytes.
    pub memory_bytes: u64,
    /// Requests answered (HTTP guests).
    pub requests: u64,
    /// Live instances (Wasm) or processes.
    pub instances: u32,
}

/// Why a runtime operation failed. `reason` names end in pod status and events.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum RuntimeError {
    /// The artifact can't be loaded or linked; the message names what is missing.
    #[error("create container: {0}")]
    CreateContainer(String),
    /// It was made but did not start.
    #[error("start container: {0}")]
    StartContainer(String),
    /// The sandbox could not be set up (address taken, …).
    #[error("run sandbox: {0}")]
    RunSandbox(String),
    /// No such sandbox or container.
    #[error("find {0}: not known to the runtime")]
    NotFound(String),
    /// The runtime process can't be reached; try again.
    #[error("reach runtime: {0}")]
    Unavailable(String),
    /// A program can't be run beside the container's, or nobody can take part in that.
    #[error("exec: {message}")]
    Exec {
        /// What a shell would exit with: 127 not found, 126 found and no program for this.
        code: i32,
        /// What is wrong, and what could be run.
        message: String,
    },
}

/// A pod runtime. All operations are idempotent: doing what is already done succeeds.
#[async_trait]
pub trait PodRuntime: Send + Sync + 'static {
    /// Name and version for the node's `containerRuntimeVersion`: `salp-wasm://0.1.0`.
    fn version(&self) -> String;

    /// Makes a pod's surroundings.
    async fn run_sandbox(&self, spec: SandboxSpec) -> Result<(), RuntimeError>;

    /// Loads, links and checks a container; it does not run yet.
    async fn create_container(&self, spec: ContainerSpec) -> Result<(), RuntimeError>;

    /// Runs it.
    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError>;

    /// Asks it to end, waits up to `grace_ms` (requests under way are finished), then kills it.
    /// Returns when it has exited.
    async fn stop_container(&self, id: &ContainerId, grace_ms: u64) -> Result<(), RuntimeError>;

    /// Forgets an exited or never-started container.
    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError>;

    /// Stops and forgets a sandbox with all its containers.
    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError>;

    /// Starts the containers of a sandbox on standby, in the order of their names; done when
    /// they take requests. Waking one that is awake succeeds, and many may ask at once.
    async fn wake(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let sandbox = self.sandbox(id).await?;
        let sandbox = sandbox.ok_or_else(|| RuntimeError::NotFound(id.0.clone()))?;
        for container in &sandbox.containers {
            self.start_container(&container.id).await?;
        }
        Ok(())
    }

    /// A sandbox that was woken is an ordinary pod now: whoever asks for its Service is told
    /// of it by the API alone.
    async fn adopted(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let _ = id;
        Ok(())
    }

    /// The node was in contact with its server then, in milliseconds of the machine's
    /// `CLOCK_BOOTTIME`.
    async fn contact(&self, at_ms: u64) -> Result<(), RuntimeError> {
        let _ = at_ms;
        Ok(())
    }

    /// Runs a program beside a container's own.
    async fn exec(&self, spec: ExecSpec) -> Result<Session, RuntimeError> {
        let _ = spec;
        Err(RuntimeError::Exec {
            code: 126,
            message: "this runtime runs no further programs".to_owned(),
        })
    }

    /// Takes part in what a container runs, from now on.
    async fn attach(&self, spec: AttachSpec) -> Result<Session, RuntimeError> {
        let _ = spec;
        Err(RuntimeError::Exec {
            code: 126,
            message: "this runtime lets nobody take part".to_owned(),
        })
    }

    /// All sandboxes: what a restarted agent adopts.
    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError>;

    /// One sandbox.
    async fn sandbox(&self, id: &SandboxId) -> Result<Option<SandboxStatus>, RuntimeError>;

    /// What each container of all sandboxes has used; a sandbox that is measured as a whole is
    /// told of too, by its own id.
    async fn stats(&self) -> Result<Vec<(ContainerId, ContainerStats)>, RuntimeError>;

    /// Hints from now on. The stream ends when the runtime is lost; subscribe and list again.
    async fn changes(&self) -> Result<BoxStream<'static, Changed>, RuntimeError>;
}

/// What the Services of this node carry.
#[async_trait]
pub trait Traffic: Send + Sync + 'static {
    /// Of each of these Services, in their order.
    async fn traffic(&self, services: &[ServiceName]) -> Result<Vec<ServiceTraffic>, RuntimeError>;

    /// The metrics of what carries them, in Prometheus' text format.
    async fn metrics(&self) -> Result<String, RuntimeError>;
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What a Service has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceTraffic {
    /// Grows with every request and connection; by how much is not told.
    pub carried: u64,
    /// Requests and connections not yet over.
    pub under_way: u64,
}

/// A duration as Go writes it: `30s`, `1h30m`, `500ms`.
pub fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut sum = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, after) = rest.split_at(end);
        let number: u32 = number.parse().ok()?;
        let end = after.find(|c: char| c.is_ascii_digit());
        let (unit, after) = after.split_at(end.unwrap_or(after.len()));
        let unit = match unit {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return None,
        };
        sum = sum.checked_add(unit.checked_mul(number)?)?;
        rest = after;
    }
    (!sum.is_zero()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        for (text, seconds) in [("30s", 30), ("5m", 300), ("1h30m", 5400), ("1000ms", 1)] {
            assert_eq!(
                go_duration(text),
                Some(Duration::from_secs(seconds)),
                "{text}"
            );
        }
        for text in [
            "",
            "0s",
            "30",
            "s",
            "-5s",
            "1d",
            "99999999999h",
            "4294967295h1",
        ] {
            assert_eq!(go_duration(text), None, "{text}");
        }
    }
}

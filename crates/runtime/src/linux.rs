//! What a container has beyond what any guest has: Linux' namespaces, users and rights. Wasm
//! guests have none of it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// What a pod's surroundings are on Linux, where that is not what most pods have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinuxSandbox {
    /// Of a RuntimeClass: which of the machine's OCI runtimes.
    pub handler: Option<String>,
    /// `hostNetwork`.
    pub host_network: bool,
    /// `hostPID`.
    pub host_pid: bool,
    /// `hostIPC`.
    pub host_ipc: bool,
    /// `shareProcessNamespace`.
    pub share_process_namespace: bool,
    /// `hostAliases`.
    pub host_aliases: Vec<(IpAddr, Vec<String>)>,
    /// `securityContext.sysctls`.
    pub sysctls: Vec<(String, String)>,
    /// `HOSTNAME.SUBDOMAIN.NAMESPACE.svc.DOMAIN`, where the pod has a subdomain.
    pub fqdn: Option<String>,
    /// The control group that its containers' are in.
    pub group: PodGroup,
    /// The pod has both Wasm and container images.
    pub mixed: bool,
    /// The namespace that another runtime has made for the pod: Wasm guests live in it too.
    pub network: Option<PathBuf>,
}

/// A pod's control group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodGroup {
    /// By which it is placed.
    pub class: QosClass,
    /// What the pod as a whole may use.
    pub limits: Limits,
}

/// A pod's quality of service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum QosClass {
    /// Nothing is asked for: the first to give way.
    #[default]
    BestEffort,
    /// Some is.
    Burstable,
    /// All that it may use is.
    Guaranteed,
}

impl QosClass {
    /// As the API writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BestEffort => "BestEffort",
            Self::Burstable => "Burstable",
            Self::Guaranteed => "Guaranteed",
        }
    }
}

/// What may be used of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Processor time that it gets when cores are busy, thousandths of a core.
    pub cpu_request_millis: u64,
    /// Processor time at most, thousandths of a core.
    pub cpu_limit_millis: Option<u64>,
    /// Memory at most, bytes.
    pub memory_bytes: Option<u64>,
    /// Processes and threads at most.
    pub pids: Option<u64>,
}

/// What a container's process is on Linux.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinuxContainer {
    /// `runAsUser`.
    pub user: Option<u32>,
    /// `runAsGroup`.
    pub group: Option<u32>,
    /// `USER` of the image: `name`, `uid`, or either with a group behind a colon.
    pub image_user: Option<String>,
    /// `supplementalGroups` and `fsGroup`.
    pub groups: Vec<u32>,
    /// `privileged`.
    pub privileged: bool,
    /// `readOnlyRootFilesystem`.
    pub read_only_root: bool,
    /// `allowPrivilegeEscalation: false`.
    pub no_new_privileges: bool,
    /// `capabilities.add`, without `CAP_`.
    pub add_capabilities: Vec<String>,
    /// `capabilities.drop`, without `CAP_`.
    pub drop_capabilities: Vec<String>,
    /// `procMount: Unmasked`.
    pub unmasked_proc: bool,
    /// Which system calls it may use.
    pub seccomp: Seccomp,
    /// Which AppArmor profile confines it.
    pub apparmor: AppArmor,
    /// The container whose processes it sees.
    pub target: Option<String>,
    /// How soon the kernel ends it for want of memory: -1000 is never, 1000 is first.
    pub oom_score_adj: i32,
    /// `STOPSIGNAL` of the image or the pod.
    pub stop_signal: Option<String>,
    /// `terminationMessagePath`.
    pub termination_path: Option<String>,
    /// Devices of the machine beside those that every container has.
    pub devices: Vec<Device>,
    /// What the OCI runtime is told beside the usual.
    pub annotations: BTreeMap<String, String>,
    /// `terminationMessagePolicy: FallbackToLogsOnError`.
    pub termination_from_log: bool,
}

/// A device of the machine in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// In the container.
    pub path: String,
    /// A block device; else a character device.
    pub is_block: bool,
    /// Its numbers.
    pub major: u32,
    /// Its numbers.
    pub minor: u32,
    /// Permissions of the file.
    pub mode: u32,
    /// Whose the file is.
    pub user: u32,
    /// Whose the file is.
    pub group: u32,
    /// What may be done with it: some of `rwm`.
    pub access: String,
}

/// `appArmorProfile`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppArmor {
    /// The machine's usual one, where it has one.
    #[default]
    Usual,
    /// The machine's usual one, and nothing without it.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// One that is loaded on the machine.
    Localhost(String),
}

/// `seccompProfile`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// The usual ones.
    #[default]
    RuntimeDefault,
    /// All.
    Unconfined,
    /// Those of a profile on the machine.
    Localhost(PathBuf),
}

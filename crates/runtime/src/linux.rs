//! What a container has beyond what any guest has: Linux' namespaces, users and rights. Wasm
//! guests have none of it.

use serde::{Deserialize, Serialize};
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
    /// It may not run as root (`runAsNonRoot`).
    pub non_root: bool,
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
    /// `STOPSIGNAL` of the image or the pod.
    pub stop_signal: Option<String>,
    /// `terminationMessagePath`.
    pub termination_path: Option<String>,
    /// `terminationMessagePolicy: FallbackToLogsOnError`.
    pub termination_from_log: bool,
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

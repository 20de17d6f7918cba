//! From what a pod's container must be to the OCI runtime specification's `config.json`. Pure:
//! nothing is read or written. Start with [`config`]; a further program's process is [`process`].

use crate::cgroup;
use crate::seccomp;
use crate::users::Identity;
use runtime::{ContainerSpec, Device, LinuxContainer, LinuxSandbox, SandboxSpec, Seccomp};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// What containers may do that state nothing, as other engines have it.
const CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// All that Linux has, by the kernel's numbers, for `privileged` and `ALL`.
const ALL_CAPABILITIES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What the supervisor itself may do: nobody can be given more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rights {
    /// Capabilities, a bit for each of the kernel's numbers.
    capabilities: u64,
    /// The lowest [`LinuxContainer::oom_score_adj`] that the machine takes.
    pub(crate) oom_score_adj_min: i32,
}

impl Rights {
    /// Of a process, by what the kernel tells of it.
    pub(crate) fn of(status: &str, oom_score_adj_min: i32) -> Self {
        let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
        let bits = line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
        Self {
            capabilities: bits.unwrap_or(u64::MAX),
            oom_score_adj_min,
        }
    }

    fn has(self, name: &str) -> bool {
        let number = ALL_CAPABILITIES.iter().position(|known| *known == name);
        number.is_some_and(|number| self.capabilities & (1 << number) != 0)
    }
}

/// What of the kernel is not for containers to see.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What of it they may see and not change.
const READ_ONLY: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Where programs are looked for when an image does not say.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a container's parts lie on the machine.
pub(crate) struct Places<'a> {
    pub(crate) root: &'a Path,
    pub(crate) hosts: &'a Path,
    pub(crate) hostname: &'a Path,
    pub(crate) resolv_conf: &'a Path,
    /// The file that becomes its termination message, and where it sees that.
    pub(crate) termination: Option<(&'a Path, &'a str)>,
    /// Namespaces by kind that the pod has already.
    pub(crate) namespaces: Vec<(&'static str, std::path::PathBuf)>,
    /// The machine's own profiles that confine it.
    pub(crate) seccomp: Option<Value>,
    pub(crate) apparmor: Option<String>,
    pub(crate) cgroup: &'a str,
    /// Control groups of version 2.
    pub(crate) unified: bool,
    pub(crate) rights: Rights,
}

/// `config.json`.
pub(crate) fn config(
    sandbox: &SandboxSpec,
    spec: &ContainerSpec,
    identity: &Identity,
    places: &Places<'_>,
) -> Value {
    let usual = LinuxContainer::default();
    let linux = spec.linux.as_deref().unwrap_or(&usual);
    let usual = LinuxSandbox::default();
    let pod = sandbox.linux.as_deref().unwrap_or(&usual);
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": process(spec, identity, &sandbox.hostname, places.rights),
        "root": {"path": places.root, "readonly": linux.read_only_root},
        "mounts": mounts(spec, linux, pod, places),
        // None says that it is a container of a sandbox: runtimes that make machines of sandboxes
        // (runsc, kata) would look for the one that it belongs to.
        "annotations": {
            "io.kubernetes.cri.container-name": spec.name,
            "io.kubernetes.cri.sandbox-name": sandbox.name,
            "io.kubernetes.cri.sandbox-namespace": sandbox.namespace,
        },
        "linux": {
            "cgroupsPath": places.cgroup,
            "namespaces": namespaces(pod, places),
            "resources": resources(spec, linux, places.unified),
        },
    });
    if let Some(name) = places.apparmor.as_ref().filter(|_| !linux.privileged) {
        config["process"]["apparmorProfile"] = json!(name);
    }
    for (name, value) in &linux.annotations {
        config["annotations"][name] = json!(value);
    }
    if !linux.devices.is_empty() {
        let device = |d: &Device| {
            json!({"path": d.path, "type": kind(d), "major": d.major, "minor": d.minor,
                "fileMode": d.mode, "uid": d.user, "gid": d.group})
        };
        config["linux"]["devices"] = linux.devices.iter().map(device).collect();
    }
    if spec.mounts.iter().any(|mount| mount.follows_machine) {
        config["linux"]["rootfsPropagation"] = json!("rslave");
    }
    let kernel = &mut config["linux"];
    if !linux.privileged {
        if !linux.unmasked_proc {
            kernel["maskedPaths"] = json!(MASKED);
            kernel["readonlyPaths"] = json!(READ_ONLY);
        }
        if let Some(profile) = &places.seccomp {
            kernel["seccomp"] = profile.clone();
        } else if linux.seccomp == Seccomp::RuntimeDefault {
            kernel["seccomp"] = seccomp::usual(&capabilities(linux));
        }
    }
    config
}

/// The process of a container, or by other arguments of a further program in it.
pub(crate) fn process(
    spec: &ContainerSpec,
    identity: &Identity,
    hostname: &str,
    rights: Rights,
) -> Value {
    let usual = LinuxContainer::default();
    let linux = spec.linux.as_deref().unwrap_or(&usual);
    let mut env = Vec::new();
    if !spec.env.iter().any(|(name, _)| name == "PATH") {
        env.push(PATH.to_owned());
    }
    env.push(format!("HOSTNAME={hostname}"));
    if spec.tty {
        env.push("TERM=xterm".to_owned());
    }
    env.extend(
        spec.env
            .iter()
            .map(|(name, value)| format!("{name}={value}")),
    );
    if !spec.env.iter().any(|(name, _)| name == "HOME") {
        env.push(format!("HOME={}", identity.home));
    }
    let caps: Vec<String> = capabilities(linux)
        .iter()
        .filter(|name| rights.has(name))
        .map(|name| format!("CAP_{name}"))
        .collect();
    // Who is not root has them only by a program's own.
    let held = if identity.uid == 0 {
        caps.as_slice()
    } else {
        &[]
    };
    json!({
        "terminal": spec.tty,
        "user": {"uid": identity.uid, "gid": identity.gid, "additionalGids": identity.groups},
        "args": spec.args,
        "env": env,
        "cwd": spec.working_dir.as_deref().filter(|d| !d.is_empty()).unwrap_or("/"),
        "capabilities": {"bounding": caps, "effective": held, "permitted": held},
        "noNewPrivileges": linux.no_new_privileges,
        "oomScoreAdj": linux.oom_score_adj.max(rights.oom_score_adj_min),
    })
}

fn capabilities(linux: &LinuxContainer) -> BTreeSet<String> {
    if linux.privileged {
        return ALL_CAPABILITIES.iter().map(|c| (*c).to_owned()).collect();
    }
    let names = |list: &[String]| -> BTreeSet<String> {
        let bare = |name: &String| {
            let name = name.to_uppercase();
            name.strip_prefix("CAP_").unwrap_or(&name).to_owned()
        };
        list.iter().map(bare).collect()
    };
    let (add, drop) = (
        names(&linux.add_capabilities),
        names(&linux.drop_capabilities),
    );
    let from = if add.contains("ALL") {
        ALL_CAPABILITIES
    } else if drop.contains("ALL") {
        &[]
    } else {
        CAPABILITIES
    };
    let mut held: BTreeSet<String> = from.iter().map(|c| (*c).to_owned()).collect();
    held.extend(
        add.into_iter()
            .filter(|c| ALL_CAPABILITIES.contains(&c.as_str())),
    );
    if !drop.contains("ALL") {
        held.retain(|c| !drop.contains(c));
    }
    held
}

fn namespaces(pod: &LinuxSandbox, places: &Places<'_>) -> Vec<Value> {
    let mut list = vec![json!({"type": "mount"}), json!({"type": "cgroup"})];
    let joined = |kind: &str| places.namespaces.iter().any(|(known, _)| *known == kind);
    if !pod.host_pid && !joined("pid") {
        list.push(json!({"type": "pid"}));
    }
    let joined = places.namespaces.iter();
    list.extend(joined.map(|(kind, path)| json!({"type": kind, "path": path})));
    list
}

fn mounts(
    spec: &ContainerSpec,
    linux: &LinuxContainer,
    pod: &LinuxSandbox,
    places: &Places<'_>,
) -> Vec<Value> {
    let kernel = if linux.privileged { "rw" } else { "ro" };
    let mut list = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc",
            "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}),
        // Of a network namespace that is not its own a container may not mount this anew.
        if pod.host_network {
            json!({"destination": "/sys", "type": "bind", "source": "/sys",
                "options": ["rbind", "nosuid", "noexec", "nodev", kernel]})
        } else {
            json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", kernel]})
        },
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", kernel]}),
    ];
    let own = |path: &str| spec.mounts.iter().any(|m| m.guest_path == path);
    let access = if linux.read_only_root { "ro" } else { "rw" };
    for (path, source) in [
        ("/etc/hosts", places.hosts),
        ("/etc/hostname", places.hostname),
        ("/etc/resolv.conf", places.resolv_conf),
    ] {
        if !own(path) {
            list.push(bind(path, source, access));
        }
    }
    // A mount inside another comes after it.
    let mut volumes: Vec<_> = spec.mounts.iter().collect();
    volumes.sort_by_key(|mount| mount.guest_path.matches('/').count());
    for mount in volumes {
        let access = match (mount.read_only, mount.recursive_read_only) {
            (true, true) => "rro",
            (true, false) => "ro",
            (false, _) => "rw",
        };
        let mut shown = bind(&mount.guest_path, &mount.host_path, access);
        if mount.follows_machine {
            shown["options"][1] = json!("rslave");
        }
        if mount.data_only
            && let Some(options) = shown["options"].as_array_mut()
        {
            options.extend(["noexec", "nosuid", "nodev"].map(Value::from));
        }
        list.push(shown);
    }
    if let Some((file, path)) = places.termination.filter(|(_, path)| !own(path)) {
        list.push(bind(path, file, "rw"));
    }
    list
}

fn bind(destination: &str, source: &Path, access: &str) -> Value {
    json!({"destination": destination, "type": "bind", "source": source,
        "options": ["rbind", "rprivate", access]})
}

fn kind(device: &Device) -> &'static str {
    if device.is_block { "b" } else { "c" }
}

fn resources(spec: &ContainerSpec, linux: &LinuxContainer, unified: bool) -> Value {
    let device = |kind: &str, major: Option<u32>, minor: Option<u32>, access: &str| {
        let mut rule = json!({"allow": true, "type": kind, "access": access});
        rule["major"] = major.map_or(Value::Null, |n| json!(n));
        rule["minor"] = minor.map_or(Value::Null, |n| json!(n));
        if let Some(rule) = rule.as_object_mut() {
            rule.retain(|_, value| !value.is_null());
        }
        rule
    };
    let mut devices = if linux.privileged {
        vec![json!({"allow": true, "access": "rwm"})]
    } else {
        vec![
            json!({"allow": false, "access": "rwm"}),
            // Nodes may be made, but only those that the runtime gives can be used.
            device("c", None, None, "m"),
            device("b", None, None, "m"),
        ]
    };
    let given = linux.devices.iter();
    devices.extend(given.map(|d| device(kind(d), Some(d.major), Some(d.minor), &d.access)));
    let mut cpu = json!({"shares": cgroup::shares(spec.cpu_request_millis)});
    if let Some(limit) = spec.cpu_limit_millis {
        cpu["quota"] = json!(cgroup::quota_us(limit));
        cpu["period"] = json!(cgroup::CPU_PERIOD_US);
    }
    let mut resources = json!({"devices": devices, "cpu": cpu});
    if let Some(limit) = spec.memory_limit_bytes {
        resources["memory"] = json!({"limit": limit});
    }
    if unified {
        // A container for want of memory ends as a whole, as a kubelet has it.
        resources["unified"] = json!({"memory.oom.group": "1"});
    }
    resources
}

#[cfg(test)]
pub(crate) mod tests;

//! From a pod's words to what a runtime is given: sandboxes and containers.

use crate::agent::Fixed;
use crate::devices::Given;
use crate::env::{self, ConfigError, Facts};
use crate::image::PulledImage;
use crate::linux;
use crate::objects::PodObjects;
use crate::pod::Desired;
use crate::volumes::{self, VolumeError};
use apimachinery::quantity::Quantity;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use runtime::{Artifact, ContainerId, ContainerSpec, Dns, Mount, Port, SandboxId, SandboxSpec};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a container's spec can't be made: `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Volume(#[from] VolumeError),
    #[error("{0}")]
    NonRoot(String),
    #[error("find device {path}: {source}")]
    Device {
        path: String,
        source: std::io::Error,
    },
    #[error("failed to create log directory for container: {0}")]
    LogDir(std::io::Error),
}

/// The directory that holds a pod's logs, named as a kubelet names it.
pub(crate) fn log_dir(dir: &Path, namespace: &str, name: &str, uid: &str) -> PathBuf {
    dir.join("logs/pods")
        .join(format!("{namespace}_{name}_{uid}"))
}

/// The log file of one run of a container.
pub(crate) fn log_path(dir: &Path, desired: &Desired, container: &str, attempt: u32) -> PathBuf {
    log_dir(dir, &desired.namespace, &desired.name, &desired.uid.0)
        .join(container)
        .join(format!("{attempt}.log"))
}

/// The id that a run of a container has at the runtime.
pub(crate) fn container_id(desired: &Desired, container: &str, attempt: u32) -> ContainerId {
    ContainerId(format!("{}/{container}/{attempt}", desired.uid))
}

/// The pod's surroundings as the runtime is told.
pub(crate) fn sandbox_spec(
    desired: &Desired,
    ip: IpAddr,
    fixed: &Fixed,
    standby: bool,
) -> SandboxSpec {
    let meta = &desired.pod.metadata;
    let spec = desired.pod.spec.as_ref();
    let hostname = spec
        .and_then(|s| s.hostname.clone())
        .unwrap_or_else(|| desired.name.chars().take(63).collect());
    SandboxSpec {
        id: SandboxId(desired.uid.0.to_string()),
        namespace: desired.namespace.to_string(),
        name: desired.name.to_string(),
        labels: meta.labels.clone().unwrap_or_default(),
        annotations: meta.annotations.clone().unwrap_or_default(),
        hostname,
        ip,
        memory_limit_bytes: pod_memory_limit(desired),
        dns: dns(desired, fixed),
        standby,
        dies_after_silence_ms: dies_after_silence_ms(desired),
        linux: linux::sandbox(desired, &fixed.cluster_domain, fixed.pod_pids_limit),
    }
}

/// What its partition contract allows, and its grace.
fn dies_after_silence_ms(desired: &Desired) -> Option<u64> {
    let api::partition::Contract::Stop { after } = desired.contract else {
        return None;
    };
    let dies = after.saturating_add(std::time::Duration::from_secs(desired.grace_s));
    Some(u64::try_from(dies.as_millis()).unwrap_or(u64::MAX))
}

/// The containers' limits together, when each has one.
fn pod_memory_limit(desired: &Desired) -> Option<u64> {
    let spec = desired.pod.spec.as_ref()?;
    let stated = spec.resources.as_ref().and_then(|r| r.limits.as_ref());
    if let Some(limit) = quantity(stated, "memory") {
        return u64::try_from(limit.value()).ok();
    }
    let mut sum = 0u64;
    for container in &spec.containers {
        let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
        sum = sum.checked_add(u64::try_from(quantity(limits, "memory")?.value()).ok()?)?;
    }
    Some(sum)
}

fn dns(desired: &Desired, fixed: &Fixed) -> Dns {
    let spec = desired.pod.spec.as_ref();
    let policy = spec.and_then(|s| s.dns_policy.as_deref());
    let mut dns = match policy.unwrap_or("ClusterFirst") {
        "None" => Dns::default(),
        "Default" => host_dns(),
        "ClusterFirst" if spec.and_then(|s| s.host_network) == Some(true) => host_dns(),
        _ => Dns {
            servers: fixed.cluster_dns.clone(),
            searches: vec![
                format!("{}.svc.{}", desired.namespace, fixed.cluster_domain),
                format!("svc.{}", fixed.cluster_domain),
                fixed.cluster_domain.clone(),
            ],
            options: vec!["ndots:5".into()],
        },
    };
    if let Some(own) = spec.and_then(|s| s.dns_config.as_ref()) {
        let servers = own.nameservers.iter().flatten();
        dns.servers
            .extend(servers.filter_map(|s| s.parse::<IpAddr>().ok()));
        dns.searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            dns.options
                .retain(|known| known.split(':').next() != Some(name.as_str()));
            dns.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name,
            });
        }
    }
    dns
}

/// The machine's own resolver configuration.
fn host_dns() -> Dns {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns
                .servers
                .extend(words.filter_map(|w| w.parse::<IpAddr>().ok())),
            Some("search") => dns.searches = words.map(Into::into).collect(),
            Some("options") => dns.options.extend(words.map(Into::into)),
            _ => {}
        }
    }
    dns
}

/// What one container is made of.
pub(crate) struct Ingredients<'a> {
    pub(crate) desired: &'a Desired,
    pub(crate) container: &'a core::Container,
    pub(crate) attempt: u32,
    pub(crate) image: &'a PulledImage,
    pub(crate) objects: &'a PodObjects,
    /// Devices, by resource.
    pub(crate) given: &'a BTreeMap<String, Given>,
    pub(crate) services: &'a [Arc<core::Service>],
    pub(crate) facts: Facts<'a>,
    pub(crate) fixed: &'a Fixed,
}

/// The container as the runtime is told. Makes its log directory.
pub(crate) fn container_spec(from: &Ingredients<'_>) -> Result<ContainerSpec, SpecError> {
    let container = from.container;
    let mut own = env::environment(container, &from.facts, from.objects, from.services)?;
    for (name, value) in from.given.values().flat_map(|given| &given.env) {
        // What the pod says itself wins.
        if !own.iter().any(|(known, _)| known == name) {
            own.push((name.clone(), value.clone()));
        }
    }
    let pod_dir = volumes::pod_dir(&from.fixed.dir, &from.desired.uid.0);
    let mut mounts: Vec<Mount> = volumes::mounts(&pod_dir, from.facts.pod, container, &own)?;
    let given = from.given.values().flat_map(|given| &given.mounts);
    mounts.extend(given.map(|(host, guest, read_only)| Mount {
        host_path: host.into(),
        guest_path: guest.clone(),
        read_only: *read_only,
        ..Mount::default()
    }));
    if let Artifact::Wasm { .. } = &from.image.artifact {
        mounts = volumes::in_directories(&pod_dir, &container.name, mounts)?;
    }
    let args = args(container, from.image, &own);
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|r| r.limits.as_ref());
    let requests = resources.and_then(|r| r.requests.as_ref());
    let log_path = log_path(&from.fixed.dir, from.desired, &container.name, from.attempt);
    if let Some(parent) = log_path.parent() {
        make_private(parent).map_err(SpecError::LogDir)?;
    }
    Ok(ContainerSpec {
        id: container_id(from.desired, &container.name, from.attempt),
        sandbox: SandboxId(from.desired.uid.0.to_string()),
        name: container.name.clone(),
        attempt: from.attempt,
        image: container.image.clone().unwrap_or_default(),
        artifact: from.image.artifact.clone(),
        args,
        env: merge_env(&from.image.env, own),
        mounts,
        ports: container.ports.iter().flatten().filter_map(port).collect(),
        memory_limit_bytes: quantity(limits, "memory").and_then(|q| u64::try_from(q.value()).ok()),
        cpu_request_millis: quantity(requests, "cpu")
            .or_else(|| quantity(limits, "cpu"))
            .and_then(|q| u64::try_from(q.milli_value()).ok())
            .unwrap_or(0),
        cpu_limit_millis: quantity(limits, "cpu").and_then(|q| u64::try_from(q.milli_value()).ok()),
        working_dir: container
            .working_dir
            .clone()
            .filter(|d| !d.is_empty())
            .or_else(|| from.image.working_dir.clone()),
        log_path,
        tty: container.tty.unwrap_or(false),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        linux: match from.image.artifact {
            Artifact::Wasm { .. } => None,
            Artifact::Container { .. } => {
                let memory = from.fixed.allocatable.get("memory");
                let machine = linux::Machine {
                    memory_bytes: memory.map_or(0, |quantity| quantity.value().into()),
                    seccomp_profiles: &from.fixed.dir.with_file_name("seccomp"),
                    target: from.desired.target_of(&container.name),
                };
                linux::verify_non_root(from.facts.pod, container, from.image)
                    .map_err(SpecError::NonRoot)?;
                let pod = from.facts.pod;
                let mut linux = linux::container(pod, container, from.image, &machine);
                linux.devices = devices(from.given)?;
                let annotations = from.given.values().flat_map(|given| &given.annotations);
                linux
                    .annotations
                    .extend(annotations.map(|(k, v)| (k.clone(), v.clone())));
                Some(linux)
            }
        },
    })
}

/// Devices that plugins gave, as the machine has them.
fn devices(given: &BTreeMap<String, Given>) -> Result<Vec<runtime::Device>, SpecError> {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let all = given.values().flat_map(|given| &given.devices);
    let find = |(host, guest, access): &(String, String, String)| {
        let failed = |source| SpecError::Device {
            path: host.clone(),
            source,
        };
        let facts = std::fs::metadata(host).map_err(failed)?;
        let kind = facts.file_type();
        if !kind.is_char_device() && !kind.is_block_device() {
            return Err(failed(std::io::Error::other("it is no device")));
        }
        Ok(runtime::Device {
            path: guest.clone(),
            is_block: kind.is_block_device(),
            major: rustix::fs::major(facts.rdev()),
            minor: rustix::fs::minor(facts.rdev()),
            mode: facts.mode() & 0o777,
            user: facts.uid(),
            group: facts.gid(),
            access: access.clone(),
        })
    };
    all.map(find).collect()
}

/// `command` replaces entry point and CMD, `args` only CMD. A bare Wasm file has no path to be
/// called by: where nothing names a program it is the container's name, so that the first
/// argument is not taken for it.
fn args(container: &core::Container, image: &PulledImage, env: &[(String, String)]) -> Vec<String> {
    let expand_all = |words: &[String]| -> Vec<String> {
        words
            .iter()
            .map(|w| {
                env::expand(w, |name| {
                    env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
                })
            })
            .collect()
    };
    let filled = |words: &Option<Vec<String>>| words.clone().filter(|w| !w.is_empty());
    let (command, args) = (filled(&container.command), filled(&container.args));
    let mut argv = match &command {
        Some(command) => expand_all(command),
        None => image.entrypoint.clone(),
    };
    let bare = matches!(image.artifact, runtime::Artifact::Wasm { .. })
        && image.entrypoint.is_empty()
        && image.cmd.is_empty();
    if bare && command.is_none() {
        argv.push(container.name.clone());
    }
    match (args, command) {
        (Some(args), _) => argv.extend(expand_all(&args)),
        (None, None) => argv.extend(image.cmd.iter().cloned()),
        (None, Some(_)) => {}
    }
    argv
}

fn merge_env(image: &[String], own: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = image
        .iter()
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| !own.iter().any(|(n, _)| n == name))
        .map(|(n, v)| (n.to_string(), v.to_string()))
        .collect();
    env.extend(own);
    env
}

fn port(port: &core::ContainerPort) -> Option<Port> {
    Some(Port {
        name: port.name.clone().unwrap_or_default(),
        number: u16::try_from(port.container_port).ok()?,
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
    })
}

fn quantity(from: Option<&BTreeMap<String, ApiQuantity>>, name: &str) -> Option<Quantity> {
    from?.get(name)?.0.parse().ok()
}

fn make_private(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(container: serde_json::Value, expected: &[&str]) {
        let mut container: core::Container = serde_json::from_value(container).unwrap();
        container.name = "c".into();
        let image = PulledImage {
            id: String::new(),
            artifact: runtime::Artifact::Container {
                digest: String::new(),
                layers: vec![],
            },
            entrypoint: vec!["/app".into()],
            cmd: vec!["serve".into()],
            env: vec![],
            working_dir: None,
            user: None,
            stop_signal: None,
            size_bytes: 0,
        };
        let env = [("WHO".to_string(), "you".to_string())];
        assert_eq!(args(&container, &image, &env), expected);
    }

    #[test]
    fn command_and_args_replace_what_the_image_says() {
        check(json!({"name": "c"}), &["/app", "serve"]);
        check(json!({"name": "c", "args": ["$(WHO)"]}), &["/app", "you"]);
        check(json!({"name": "c", "command": ["/x"]}), &["/x"]);
        check(
            json!({"name": "c", "command": ["/x"], "args": ["a"]}),
            &["/x", "a"],
        );
    }

    #[test]
    fn a_bare_wasm_file_is_called_by_its_container_s_name() {
        let image = PulledImage {
            id: String::new(),
            artifact: runtime::Artifact::Wasm {
                digest: String::new(),
                path: "/blobs/x".into(),
                rootfs: None,
            },
            entrypoint: vec![],
            cmd: vec![],
            env: vec![],
            working_dir: None,
            user: None,
            stop_signal: None,
            size_bytes: 0,
        };
        let argv = |spec: serde_json::Value| {
            let container: core::Container = serde_json::from_value(spec).unwrap();
            args(&container, &image, &[])
        };
        assert_eq!(argv(json!({"name": "c"})), ["c"]);
        assert_eq!(
            argv(json!({"name": "c", "args": ["1", "2"]})),
            ["c", "1", "2"]
        );
        let own = json!({"name": "c", "command": ["x"], "args": ["1"]});
        assert_eq!(argv(own), ["x", "1"]);
        let image = PulledImage {
            cmd: vec!["/app.wasm".into()],
            ..image
        };
        let container: core::Container = serde_json::from_value(json!({"name": "c"})).unwrap();
        assert_eq!(args(&container, &image, &[]), ["/app.wasm"]);
    }

    #[test]
    fn own_environment_wins_over_the_images() {
        let env = merge_env(
            &["A=1".into(), "B=2".into()],
            vec![("A".into(), "3".into())],
        );
        assert_eq!(env, [("B".into(), "2".into()), ("A".into(), "3".into())]);
    }
}

//! From what a pod says to what a guest is given.

use runtime::{Artifact, ContainerSpec, SandboxSpec};
use std::path::{Path, PathBuf};
use std::time::Duration;
use wasm::{EgressRules, HttpOptions, Preopen};

/// Requests that one instance serves.
const REUSE: &str = "salp.dev/instance-reuse";
/// How old an instance may get, as `1h`.
const LIFETIME: &str = "salp.dev/max-lifetime";
/// Seconds until a response must begin.
const TIMEOUT: &str = "salp.dev/request-timeout-seconds";
/// Krustlet's: a JSON list of hosts that the guest may send requests to.
const ALLOWED_DOMAINS: &str = "alpha.wasi.krustlet.dev/allowed-domains";
/// Krustlet's: requests at once.
const MAX_CONCURRENT: &str = "alpha.wasi.krustlet.dev/max-concurrent-requests";

/// Files that a node shows every container and that no Wasm guest reads: WASI has its own way
/// to names and no directory that could hold them.
const UNUSED_FILES: [&str; 4] = [
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/dev/termination-log",
];

/// The program's file and digest.
pub(super) fn artifact(spec: &ContainerSpec) -> Result<(&str, &Path), String> {
    match &spec.artifact {
        Artifact::Wasm { digest, path, .. } => Ok((digest, path)),
        Artifact::Container { .. } => Err(format!(
            "the image {} is an OCI container and no WebAssembly",
            spec.image
        )),
    }
}

/// How requests are served.
pub(super) fn http_options(sandbox: &SandboxSpec) -> Result<HttpOptions, String> {
    let mut options = HttpOptions::default();
    if let Some(reuse) = number(sandbox, REUSE)? {
        options.requests_per_instance = Some(reuse);
    }
    if let Some(max) = number(sandbox, MAX_CONCURRENT)? {
        options.requests_max = max;
    }
    if let Some(seconds) = number(sandbox, TIMEOUT)? {
        options.timeout = Duration::from_secs(seconds.into());
    }
    if let Some(text) = sandbox.annotations.get(LIFETIME) {
        let lifetime = runtime::go_duration(text);
        let told = || format!("annotation {LIFETIME}: {text:?} is no duration such as \"1h\"");
        options.lifetime = Some(lifetime.ok_or_else(told)?);
    }
    Ok(options)
}

/// Where the guest may send requests.
pub(super) fn egress(sandbox: &SandboxSpec) -> Result<EgressRules, String> {
    let Some(text) = sandbox.annotations.get(ALLOWED_DOMAINS) else {
        return Ok(EgressRules::anywhere());
    };
    let domains: Vec<String> = serde_json::from_str(text)
        .map_err(|_| format!("annotation {ALLOWED_DOMAINS} is no JSON list of strings"))?;
    EgressRules::only(&domains)
        .map_err(|domain| format!("annotation {ALLOWED_DOMAINS}: {domain:?} is no host or URL"))
}

/// Directories that the guest sees.
pub(super) fn preopens(spec: &ContainerSpec) -> Result<Vec<Preopen>, String> {
    let mut preopens = Vec::new();
    if let Artifact::Wasm {
        rootfs: Some(rootfs),
        ..
    } = &spec.artifact
    {
        preopens.push(Preopen {
            host: rootfs.clone(),
            guest: "/".into(),
            read_only: true,
        });
    }
    for mount in &spec.mounts {
        if UNUSED_FILES.contains(&mount.guest_path.as_str()) {
            continue;
        }
        // A missing path is named when it is opened.
        if mount.host_path.is_file() {
            return Err(format!(
                "the mount {} is a single file; Wasm guests can be given directories only",
                mount.guest_path
            ));
        }
        preopens.push(Preopen {
            host: PathBuf::from(&mount.host_path),
            guest: mount.guest_path.clone(),
            read_only: mount.read_only,
        });
    }
    Ok(preopens)
}

/// The ports that an HTTP guest serves at: the declared ones, else 80.
pub(super) fn ports(spec: &ContainerSpec) -> Vec<u16> {
    let mut ports: Vec<u16> = spec
        .ports
        .iter()
        .filter(|port| port.protocol == "TCP")
        .map(|port| port.number)
        .collect();
    ports.sort_unstable();
    ports.dedup();
    if ports.is_empty() { vec![80] } else { ports }
}

fn number(sandbox: &SandboxSpec, annotation: &str) -> Result<Option<u32>, String> {
    let Some(text) = sandbox.annotations.get(annotation) else {
        return Ok(None);
    };
    match text.parse() {
        Ok(0) | Err(_) => Err(format!(
            "annotation {annotation}: {text:?} is no number above 0"
        )),
        Ok(number) => Ok(Some(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(annotation: &str, value: &str) -> SandboxSpec {
        SandboxSpec {
            id: runtime::SandboxId("uid".into()),
            namespace: "default".into(),
            name: "pod".into(),
            labels: [].into(),
            annotations: [(annotation.into(), value.into())].into(),
            hostname: "pod".into(),
            ip: [127, 1, 0, 1].into(),
            memory_limit_bytes: None,
            dns: runtime::Dns::default(),
            standby: false,
            dies_after_silence_ms: None,
            linux: None,
        }
    }

    #[test]
    fn a_lifetime_is_a_duration() {
        let lifetime = |value| http_options(&sandbox(LIFETIME, value)).map(|o| o.lifetime);
        assert_eq!(lifetime("1h"), Ok(Some(Duration::from_secs(3600))));
        let error = lifetime("soon").unwrap_err();
        assert_eq!(
            error,
            "annotation salp.dev/max-lifetime: \"soon\" is no duration such as \"1h\""
        );
    }

    #[test]
    fn annotations() {
        let reuse = |value| http_options(&sandbox(REUSE, value)).map(|o| o.requests_per_instance);
        assert_eq!(reuse("100"), Ok(Some(100)));
        assert_eq!(
            reuse("0"),
            Err("annotation salp.dev/instance-reuse: \"0\" is no number above 0".into())
        );
        assert!(reuse("many").is_err());
        assert!(egress(&sandbox(ALLOWED_DOMAINS, r#"["https://a.example"]"#)).is_ok());
        assert!(egress(&sandbox(ALLOWED_DOMAINS, "a.example")).is_err());
        assert!(egress(&sandbox(ALLOWED_DOMAINS, r#"["ftp://a"]"#)).is_err());
    }
}

//! The process of container pods (`salp supervisor`): started by the first of them, found again by
//! the next `salp up`, ended by `salp down`. What it does is in crate `runtime-oci`.

use crate::config::{Layout, write_atomic};
use crate::{process, stop};
use anyhow::{Context as _, Result, anyhow, bail};
use lifecycle::{Scope, Stack};
use pod_network::Prefix;
use runtime::PodRuntime;
use runtime_oci::{
    BUILT_IN, ByImage, Config, Containers, Place, SELF, StatedProgram, built_in, find_programs,
};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a new supervisor may take to answer.
const START_DEADLINE: Duration = Duration::from_secs(10);
/// Between looks at whether it does.
const LOOK: Duration = Duration::from_millis(5);
/// The handler of the runtime that pods have which name none.
const WASM: &str = "wasm";
/// Why there are no container pods, and what to do.
const NEED_ROOT: &str = "container pods need root: start salp as root, or run Wasm images";

/// Whether this node may run containers at all.
pub fn is_possible() -> bool {
    rustix::process::geteuid().is_root()
}

/// The node's runtimes by RuntimeClass handler; the first runs pods that name none, by what their
/// images are.
pub fn runtimes(
    layout: &Layout,
    pods: Prefix,
    stated: &BTreeMap<String, StatedProgram>,
    wasm: Arc<dyn PodRuntime>,
    stack: &mut Stack,
) -> Result<Vec<(String, Arc<dyn PodRuntime>)>> {
    let scope = Scope::new();
    let path = std::env::var("PATH").unwrap_or_default();
    for own in [WASM, BUILT_IN] {
        if stated.contains_key(own) {
            bail!("use oci-runtimes: {own:?} is the node's own: name it otherwise");
        }
    }
    let mut programs = find_programs(&path, stated).map_err(|name| {
        anyhow!("use oci-runtimes: no program {name} is where it should be; state its path")
    })?;
    programs.insert(0, built_in([crate::oci::NAME]));
    let handlers: Vec<String> = programs.iter().map(|p| p.name.clone()).collect();
    let config = Config {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        socket: layout.supervisor_socket(),
        pid_file: layout.supervisor_pid(),
        dir: layout.containers(),
        gateway: gateway(pods),
        runtimes: programs,
        pause: [SELF, "pause"].map(Into::into).to_vec(),
        log_limits: runtime_oci::LogLimits::default(),
    };
    let runs = process::running(&layout.supervisor_pid()).is_some();
    let layout = layout.clone();
    let place = Place {
        socket: config.socket.clone(),
        pid_file: config.pid_file.clone(),
        dir: config.dir.clone(),
    };
    let launch = Arc::new(move || launch(&layout, &config).map_err(|error| format!("{error:#}")));
    let containers = Containers::new(place, runs, launch, &scope);
    stack.push(
        "supervisor connection",
        Duration::from_secs(1),
        move || async move { scope.close().await },
    );
    let mut runtimes: Vec<(String, Arc<dyn PodRuntime>)> = Vec::new();
    let by_image = ByImage::new(wasm, containers.clone());
    runtimes.push((WASM.to_owned(), Arc::new(by_image)));
    if is_possible() {
        runtimes.extend(handlers.into_iter().map(|name| {
            let runtime: Arc<dyn PodRuntime> = Arc::new(containers.with_handler(&name));
            (name, runtime)
        }));
    }
    Ok(runtimes)
}

/// The first address of the pods' block: the machine answers for it and no pod has it.
fn gateway(pods: Prefix) -> Ipv4Addr {
    match pods.address() {
        IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() | 1),
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}

/// Starts it unless it runs, and waits until it answers.
fn launch(layout: &Layout, config: &Config) -> Result<()> {
    if !is_possible() {
        bail!(NEED_ROOT);
    }
    let answers = || std::os::unix::net::UnixStream::connect(&config.socket).is_ok();
    let pid = match process::running(&config.pid_file) {
        Some(_) if answers() => return Ok(()),
        Some(pid) => pid,
        None => {
            let bytes = serde_json::to_vec_pretty(config).context("encode configuration")?;
            write_atomic(&layout.supervisor_config(), &bytes, 0o600)?;
            process::spawn_supervisor(layout)?
        }
    };
    let until = Instant::now() + START_DEADLINE;
    while !answers() {
        if process::ends_within(pid, LOOK)? || Instant::now() > until {
            let log = layout.supervisor_log();
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let last = text.lines().last().unwrap_or("it says nothing");
            bail!("start supervisor: {last}; see {}", log.display());
        }
    }
    Ok(())
}

/// `salp supervisor`.
pub fn main(config: &Path) -> Result<ExitCode> {
    let bytes = std::fs::read(config).with_context(|| format!("read {}", config.display()))?;
    let config: Config =
        serde_json::from_slice(&bytes).with_context(|| format!("read {}", config.display()))?;
    runtime_oci::supervise(config)?;
    Ok(ExitCode::SUCCESS)
}

/// `salp pause`.
pub fn pause(dir: &Path) -> Result<ExitCode> {
    runtime_oci::pause(dir).context("be a pod's first process")?;
    Ok(ExitCode::SUCCESS)
}

/// Ends it with all containers; whether it ran.
pub fn end(layout: &Layout) -> Result<bool> {
    let Some(pid) = process::running(&layout.supervisor_pid()) else {
        return Ok(false);
    };
    process::end(pid, rustix::process::Signal::TERM, stop::DRAIN)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_out_is_the_first_address() {
        let gateway = gateway("10.42.0.0/16".parse().unwrap());
        assert_eq!(gateway, Ipv4Addr::new(10, 42, 0, 1));
    }
}

//! What machine this is: the facts that a Node object shows, read from the kernel.

use apimachinery::quantity::Quantity;
use k8s_openapi::api::core::v1::NodeSystemInfo;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use std::collections::BTreeMap;
use std::path::Path;

/// Free memory below which the node reports `MemoryPressure`, as upstream's default.
const MEMORY_FREE_MIN_BYTES: u64 = 100 << 20;
/// Share of the disk that must stay free, as upstream's default…
const DISK_FREE_MIN_PERCENT: u64 = 10;
/// …but never more than this: images here are kilobytes to megabytes, and a tenth of a large
/// disk would take a healthy node out of service.
const DISK_FREE_MIN_BYTES_MAX: u64 = 1 << 30;

/// Resources of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capacity {
    pub(crate) cpus: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) disk_bytes: u64,
    pub(crate) pods_max: u32,
}

impl Capacity {
    /// Of this machine; the disk is the one that `dir` is on.
    pub(crate) fn read(dir: &Path, pods_max: u32) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            cpus: cpus as u64,
            memory_bytes: meminfo("MemTotal").unwrap_or(0),
            disk_bytes: disk(dir).map_or(0, |(total, _)| total),
            pods_max,
        }
    }

    /// As `status.capacity` has it.
    pub(crate) fn api(&self) -> BTreeMap<String, ApiQuantity> {
        let entry = |name: &str, text: String| (name.to_string(), ApiQuantity(text));
        BTreeMap::from([
            entry("cpu", self.cpus.to_string()),
            entry("memory", format!("{}Ki", self.memory_bytes / 1024)),
            entry("ephemeral-storage", format!("{}Ki", self.disk_bytes / 1024)),
            entry("pods", self.pods_max.to_string()),
        ])
    }

    /// The same as numbers.
    pub(crate) fn quantities(&self) -> BTreeMap<String, Quantity> {
        self.api()
            .into_iter()
            .filter_map(|(name, q)| Some((name, q.0.parse().ok()?)))
            .collect()
    }
}

/// What presses the node, by condition type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pressure {
    pub(crate) memory: bool,
    pub(crate) disk: bool,
    pub(crate) pid: bool,
}

impl Pressure {
    pub(crate) fn read(dir: &Path) -> Self {
        let memory = meminfo("MemAvailable").is_some_and(|free| free < MEMORY_FREE_MIN_BYTES);
        let disk = disk(dir).is_some_and(|(total, free)| free < disk_free_min(total));
        Self {
            memory,
            disk,
            pid: pids_short(),
        }
    }
}

/// What is in use on the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) cpu_ns: u64,
    pub(crate) memory_used_bytes: u64,
    pub(crate) memory_free_bytes: u64,
    pub(crate) disk_bytes: u64,
    pub(crate) disk_free_bytes: u64,
}

impl Used {
    pub(crate) fn read(dir: &Path) -> Self {
        let free = meminfo("MemAvailable").unwrap_or(0);
        let (disk_bytes, disk_free_bytes) = disk(dir).unwrap_or_default();
        Self {
            cpu_ns: cpu_ns().unwrap_or(0),
            memory_used_bytes: meminfo("MemTotal").unwrap_or(0).saturating_sub(free),
            memory_free_bytes: free,
            disk_bytes,
            disk_free_bytes,
        }
    }
}

/// CPU time of the whole machine that was not idle. `/proc/stat` counts in hundredths of
/// a second on every Linux.
fn cpu_ns() -> Option<u64> {
    let text = read("/proc/stat");
    let fields: Vec<u64> = text
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .filter_map(|f| f.parse().ok())
        .collect();
    // user, nice, system, (idle, iowait), irq, softirq, steal
    let busy: u64 = [0, 1, 2, 5, 6, 7]
        .iter()
        .filter_map(|i| fields.get(*i))
        .sum();
    Some(busy * 10_000_000)
}

/// Less than a tenth of the process ids is left.
fn pids_short() -> bool {
    let max = read("/proc/sys/kernel/pid_max").parse::<u64>().ok();
    let loadavg = read("/proc/loadavg");
    let tasks = loadavg
        .split_whitespace()
        .nth(3)
        .and_then(|f| f.split_once('/'))
        .and_then(|(_, all)| all.parse::<u64>().ok());
    matches!((max, tasks), (Some(max), Some(tasks)) if tasks > max / 10 * 9)
}

/// `status.nodeInfo`.
pub(crate) fn system_info(runtime: &str, version: &str) -> NodeSystemInfo {
    let uname = rustix::system::uname();
    let machine_id = read("/etc/machine-id");
    let system_uuid = read("/sys/class/dmi/id/product_uuid");
    NodeSystemInfo {
        architecture: architecture().into(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: runtime.into(),
        kernel_version: uname.release().to_string_lossy().into_owned(),
        kube_proxy_version: String::new(),
        kubelet_version: version.into(),
        operating_system: "linux".into(),
        os_image: os_image(),
        system_uuid: if system_uuid.is_empty() {
            machine_id.clone()
        } else {
            system_uuid
        },
        machine_id,
        ..NodeSystemInfo::default()
    }
}

/// The architecture in Go's words, as labels have it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "riscv64" => "riscv64",
        other => other,
    }
}

fn os_image() -> String {
    read("/etc/os-release")
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map_or_else(|| "Linux".into(), |name| name.trim_matches('"').into())
}

fn meminfo(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse().ok()?;
    Some(kib * 1024)
}

/// Bytes that must stay free on a disk of `total` bytes.
fn disk_free_min(total: u64) -> u64 {
    (total / 100 * DISK_FREE_MIN_PERCENT).min(DISK_FREE_MIN_BYTES_MAX)
}

/// Bytes of the file system in all, and free for users.
fn disk(dir: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some((stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
}

/// A small file's text without the last newline; empty when it can't be read.
fn read(path: &str) -> String {
    std::fs::read_to_string(path)
        .map(|text| text.trim_end().to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_machine() {
        let capacity = Capacity::read(Path::new("/"), 110);
        assert!(capacity.cpus > 0 && capacity.memory_bytes > 0 && capacity.disk_bytes > 0);
        assert_eq!(capacity.quantities().len(), 4);
        let info = system_info("salp-wasm://0", "v1");
        assert!(!info.kernel_version.is_empty() && !info.boot_id.is_empty());
    }
}

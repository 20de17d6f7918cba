//! Control groups as they are read and cleared away; the OCI runtime makes and limits them. Both
//! versions: with the first, each controller has a tree of its own.

use runtime::ContainerStats;
use std::fs;
use std::path::{Path, PathBuf};

const MOUNT: &str = "/sys/fs/cgroup";
/// All pods' groups are below it.
pub(crate) const TOP: &str = "/salp";

/// Whether the machine has version 2 alone.
pub(crate) fn is_unified() -> bool {
    Path::new(MOUNT).join("cgroup.controllers").exists()
}

fn at(controller: &str, group: &str) -> PathBuf {
    let group = group.trim_start_matches('/');
    if is_unified() {
        Path::new(MOUNT).join(group)
    } else {
        Path::new(MOUNT).join(controller).join(group)
    }
}

/// How often the kernel ended a process of the group for want of memory.
pub(crate) fn oom_kills(group: &str) -> u64 {
    let file = if is_unified() {
        "memory.events"
    } else {
        "memory.oom_control"
    };
    let text = fs::read_to_string(at("memory", group).join(file)).unwrap_or_default();
    field(&text, "oom_kill").unwrap_or(0)
}

/// What the group has used.
pub(crate) fn stats(group: &str) -> ContainerStats {
    let number = |controller: &str, file: &str| -> Option<u64> {
        let text = fs::read_to_string(at(controller, group).join(file)).ok()?;
        text.trim().parse().ok()
    };
    let stat = |file: &str, name: &str| {
        let text = fs::read_to_string(at("memory", group).join(file)).unwrap_or_default();
        field(&text, name).unwrap_or(0)
    };
    let (cpu_ns, used, cache) = if is_unified() {
        (
            stat("cpu.stat", "usage_usec").saturating_mul(1000),
            number("memory", "memory.current"),
            stat("memory.stat", "inactive_file"),
        )
    } else {
        (
            number("cpuacct", "cpuacct.usage").unwrap_or(0),
            number("memory", "memory.usage_in_bytes"),
            stat("memory.stat", "total_inactive_file"),
        )
    };
    ContainerStats {
        cpu_ns,
        memory_bytes: used.unwrap_or(0).saturating_sub(cache),
        requests: 0,
        instances: 1,
    }
}

fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(key, _)| *key == name)?.1.trim().parse().ok()
}

/// Removes an empty group and, of the pods', the one above all if it was the last.
pub(crate) fn remove(group: &str) {
    let trees: Vec<PathBuf> = if is_unified() {
        vec![PathBuf::from(MOUNT)]
    } else {
        let entries = fs::read_dir(MOUNT).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    for tree in trees {
        for group in [group, TOP] {
            // One that is not empty, or not there, stays as it is.
            let _ = fs::remove_dir(tree.join(group.trim_start_matches('/')));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_flat_files() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(field(text, "oom_kill"), Some(3));
        assert_eq!(field("low 0\noom 1\noom_kill 2\n", "oom_kill"), Some(2));
        assert_eq!(field("", "oom_kill"), None);
    }
}

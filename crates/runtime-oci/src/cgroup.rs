//! Control groups, laid out as a kubelet does: `kubepods`, below it a group for each quality of
//! service but the best, a pod's group, and in that its containers', which the OCI runtime makes.
//!
//! Both versions: with the first, each controller has a tree of its own.

use runtime::{ContainerStats, Limits, QosClass};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const TOP: &str = "kubepods";
/// Where a class' pods are.
const BURSTABLE: &str = "kubepods/burstable";
const BEST_EFFORT: &str = "kubepods/besteffort";
/// The period of processor limits, as a kubelet has it.
pub(crate) const CPU_PERIOD_US: u64 = 100_000;
/// The least quota that the kernel takes.
const CPU_QUOTA_MIN_US: u64 = 1000;
/// What the kernel takes as shares.
const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;
/// Controllers that this sets; the OCI runtime sees to the others.
const CONTROLLERS: [&str; 4] = ["cpu", "cpuacct", "memory", "pids"];
/// Groups above a pod's are taken away with the last of them, by any site of the machine.
const TRIES: usize = 16;

/// As upstream turns a request into shares: 1024 a core.
pub(crate) fn shares(millis: u64) -> u64 {
    (millis.saturating_mul(1024) / 1000).clamp(*SHARES.start(), *SHARES.end())
}

/// A limit in a period.
pub(crate) fn quota_us(millis: u64) -> u64 {
    (millis.saturating_mul(CPU_PERIOD_US) / 1000).max(CPU_QUOTA_MIN_US)
}

fn class_group(class: QosClass) -> &'static str {
    match class {
        QosClass::Guaranteed => TOP,
        QosClass::Burstable => BURSTABLE,
        QosClass::BestEffort => BEST_EFFORT,
    }
}

/// The name of a pod's group.
pub(crate) fn pod_group(class: QosClass, id: &str) -> String {
    format!("{}/pod{id}", class_group(class))
}

/// Why a group is not as it should be.
#[derive(Debug, thiserror::Error)]
#[error("write control group {}", path.display())]
pub(crate) struct GroupError {
    path: PathBuf,
    source: io::Error,
}

/// The machine's groups.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    mount: PathBuf,
    unified: bool,
}

impl Tree {
    pub(crate) fn of_machine() -> Self {
        Self::at(PathBuf::from("/sys/fs/cgroup"))
    }

    fn at(mount: PathBuf) -> Self {
        let unified = mount.join("cgroup.controllers").exists();
        Self { mount, unified }
    }

    /// Whether the machine has version 2 alone.
    pub(crate) fn is_unified(&self) -> bool {
        self.unified
    }

    fn dir(&self, controller: &str, group: &str) -> PathBuf {
        let group = group.trim_start_matches('/');
        if self.unified {
            self.mount.join(group)
        } else {
            self.mount.join(controller).join(group)
        }
    }

    /// Makes a pod's group, and those above it.
    pub(crate) fn make(&self, group: &str, limits: &Limits) -> Result<(), GroupError> {
        for controller in self.controllers() {
            self.make_dirs(controller, group)?;
        }
        self.limit(group, limits)
    }

    /// One tree has all of them with version 2.
    fn controllers(&self) -> impl Iterator<Item = &'static str> {
        let all: &[&str] = if self.unified {
            &CONTROLLERS[..1]
        } else {
            &CONTROLLERS
        };
        let there = |name: &&&str| self.unified || self.mount.join(name).is_dir();
        let there: Vec<_> = all.iter().filter(there).copied().collect();
        there.into_iter()
    }

    fn make_dirs(&self, controller: &str, group: &str) -> Result<(), GroupError> {
        let dir = self.dir(controller, group);
        let mut made = Ok(());
        for _ in 0..TRIES {
            made = fs::create_dir_all(&dir).and_then(|()| {
                if self.unified {
                    oci_runtime::hand_down(&self.mount, &dir)?;
                }
                Ok(())
            });
            match &made {
                // Taken away meanwhile, with the last pod of another site.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                _ => break,
            }
        }
        made.map_err(|source| GroupError { path: dir, source })
    }

    /// Sets what a group may use.
    pub(crate) fn limit(&self, group: &str, limits: &Limits) -> Result<(), GroupError> {
        for (controller, file, value) in settings(self.unified, limits) {
            let path = self.dir(controller, group).join(file);
            let written = fs::write(&path, value);
            written.map_err(|source| GroupError { path, source })?;
        }
        Ok(())
    }

    /// What the classes get when cores are busy: the burstable what their pods ask for, those that
    /// ask for nothing the least.
    pub(crate) fn share(&self, burstable_millis: u64, machine_millis: u64) {
        for (group, millis) in [
            (TOP, machine_millis),
            (BURSTABLE, burstable_millis),
            (BEST_EFFORT, 0),
        ] {
            let (file, value) = weight(self.unified, millis);
            let path = self.dir("cpu", group).join(file);
            // A class without pods has no group.
            if path.exists()
                && let Err(error) = fs::write(&path, value)
            {
                tracing::warn!(path = %path.display(), %error, "share of processors not set");
            }
        }
    }

    /// Removes an empty group, a pod's with those above it if it was the last.
    pub(crate) fn remove(&self, group: &str) {
        let trees: Vec<PathBuf> = if self.unified {
            vec![self.mount.clone()]
        } else {
            let entries = fs::read_dir(&self.mount).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).collect()
        };
        let group = Path::new(group.trim_start_matches('/'));
        for tree in trees {
            for group in group.ancestors().filter(|g| g.starts_with(TOP)) {
                // One that is not empty, or not there, stays as it is.
                let _ = fs::remove_dir(tree.join(group));
            }
        }
    }

    /// Removes a pod's group, wherever it is.
    pub(crate) fn remove_pod(&self, id: &str) {
        for class in [
            QosClass::Guaranteed,
            QosClass::Burstable,
            QosClass::BestEffort,
        ] {
            self.remove(&pod_group(class, id));
        }
    }

    /// How often the kernel ended a process of the group for want of memory.
    pub(crate) fn oom_kills(&self, group: &str) -> u64 {
        let file = if self.unified {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let path = self.dir("memory", group).join(file);
        field(&fs::read_to_string(path).unwrap_or_default(), "oom_kill").unwrap_or(0)
    }

    /// What the group has used.
    pub(crate) fn stats(&self, group: &str) -> ContainerStats {
        let number = |controller: &str, file: &str| -> Option<u64> {
            let text = fs::read_to_string(self.dir(controller, group).join(file)).ok()?;
            text.trim().parse().ok()
        };
        let stat = |file: &str, name: &str| {
            let path = self.dir("memory", group).join(file);
            field(&fs::read_to_string(path).unwrap_or_default(), name).unwrap_or(0)
        };
        let (cpu_ns, used, cache) = if self.unified {
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
}

/// What is written where: controller, file, value. A group that was just made has no limits, and
/// none is ever taken back.
fn settings(unified: bool, limits: &Limits) -> Vec<(&'static str, &'static str, String)> {
    let (file, value) = weight(unified, limits.cpu_request_millis);
    let mut list = vec![("cpu", file, value)];
    if let Some(quota) = limits.cpu_limit_millis.map(quota_us) {
        if unified {
            list.push(("cpu", "cpu.max", format!("{quota} {CPU_PERIOD_US}")));
        } else {
            list.push(("cpu", "cpu.cfs_period_us", CPU_PERIOD_US.to_string()));
            list.push(("cpu", "cpu.cfs_quota_us", quota.to_string()));
        }
    }
    if let Some(bytes) = limits.memory_bytes {
        let file = if unified {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        list.push(("memory", file, bytes.to_string()));
    }
    if let Some(pids) = limits.pids {
        list.push(("pids", "pids.max", pids.to_string()));
    }
    list
}

fn weight(unified: bool, millis: u64) -> (&'static str, String) {
    let shares = shares(millis);
    if unified {
        ("cpu.weight", oci_runtime::weight(shares).to_string())
    } else {
        ("cpu.shares", shares.to_string())
    }
}

fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(key, _)| *key == name)?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    #[test]
    fn fields_of_flat_files() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(field(text, "oom_kill"), Some(3));
        assert_eq!(field("low 0\noom 1\noom_kill 2\n", "oom_kill"), Some(2));
        assert_eq!(field("", "oom_kill"), None);
    }

    fn files(dir: &Path, lines: &mut Vec<String>, root: &Path) {
        let mut entries: Vec<_> = fs::read_dir(dir).unwrap().flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            if path.is_dir() {
                files(&path, lines, root);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                lines.push(format!(
                    "{} {text}",
                    path.strip_prefix(root).unwrap().display()
                ));
            }
        }
    }

    fn check(prepare: impl Fn(&Path), limits: Limits, expected: Expect) {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path());
        let tree = Tree::at(dir.path().to_owned());
        let group = pod_group(QosClass::Burstable, "u1");
        tree.make(&group, &limits).unwrap();
        let mut lines = Vec::new();
        files(dir.path(), &mut lines, dir.path());
        expected.assert_eq(&lines.join("\n"));
    }

    #[test]
    fn a_pod_s_group_with_version_1() {
        check(
            |root| {
                for name in CONTROLLERS {
                    fs::create_dir(root.join(name)).unwrap();
                }
            },
            Limits {
                cpu_request_millis: 500,
                cpu_limit_millis: Some(1000),
                memory_bytes: Some(64 << 20),
                pids: Some(100),
            },
            expect![[r#"
                cpu/kubepods/burstable/podu1/cpu.cfs_period_us 100000
                cpu/kubepods/burstable/podu1/cpu.cfs_quota_us 100000
                cpu/kubepods/burstable/podu1/cpu.shares 512
                memory/kubepods/burstable/podu1/memory.limit_in_bytes 67108864
                pids/kubepods/burstable/podu1/pids.max 100"#]],
        );
    }

    #[test]
    fn a_pod_s_group_with_version_2() {
        check(
            |root| {
                let pod = root.join("kubepods/burstable");
                fs::create_dir_all(&pod).unwrap();
                for dir in [root, &root.join("kubepods"), &pod] {
                    fs::write(dir.join("cgroup.controllers"), "cpu io memory").unwrap();
                }
            },
            Limits {
                cpu_limit_millis: Some(250),
                ..Limits::default()
            },
            expect![[r#"
                cgroup.controllers cpu io memory
                cgroup.subtree_control +memory
                kubepods/burstable/cgroup.controllers cpu io memory
                kubepods/burstable/cgroup.subtree_control +memory
                kubepods/burstable/podu1/cpu.max 25000 100000
                kubepods/burstable/podu1/cpu.weight 1
                kubepods/cgroup.controllers cpu io memory
                kubepods/cgroup.subtree_control +memory"#]],
        );
    }

    #[test]
    fn the_last_pod_takes_the_groups_above_along() {
        let dir = tempfile::tempdir().unwrap();
        for tree in ["cpu", "devices"] {
            for pod in ["burstable/podu1", "podu2"] {
                fs::create_dir_all(dir.path().join(tree).join(TOP).join(pod)).unwrap();
            }
        }
        let tree = Tree::at(dir.path().to_owned());
        let left = |group: &str| dir.path().join("devices").join(group).exists();
        tree.remove_pod("u1");
        assert!(left("kubepods/podu2") && !left(BURSTABLE));
        tree.remove_pod("u2");
        assert!(!left(TOP));
    }
}

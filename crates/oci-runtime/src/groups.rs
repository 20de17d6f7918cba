//! A container's control groups, of both versions. Those of its pod are there already.
//!
//! With the first version the container has a group in the tree of each controller that is mounted;
//! with the second alone, one, where a program of the kernel decides on devices.

use crate::config::{DeviceKind, DeviceRule, Resources};
use crate::kernel::{self, Instruction};
use rustix::fs::{Mode, OFlags};
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a super block says beside its controllers.
const NOT_CONTROLLERS: [&str; 6] = [
    "rw",
    "ro",
    "xattr",
    "clone_children",
    "noprefix",
    "cpuset_v2_mode",
];
/// Controllers of version 2 that limits are set with.
const LIMITERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Devices that all containers can use: kind, major and minor number.
const USUAL_DEVICES: [(DeviceKind, u32, Option<u32>); 9] = [
    (DeviceKind::Character, 1, Some(3)), // null
    (DeviceKind::Character, 1, Some(5)), // zero
    (DeviceKind::Character, 1, Some(7)), // full
    (DeviceKind::Character, 1, Some(8)), // random
    (DeviceKind::Character, 1, Some(9)), // urandom
    (DeviceKind::Character, 5, Some(0)), // tty
    (DeviceKind::Character, 5, Some(1)), // console
    (DeviceKind::Character, 5, Some(2)), // ptmx
    (DeviceKind::Character, 136, None),  // pts/*
];
/// How long processes that were killed may take to leave a group, and between looks.
const LEAVE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(2);

/// Why a group is not as it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GroupError {
    #[error("read how control groups are mounted")]
    Mounts(#[source] io::Error),
    #[error("no control groups are mounted")]
    None,
    #[error("limit {0}: the machine has no such controller of control groups")]
    NoController(&'static str),
    #[error("write control group {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
    #[error("decide on devices of control group {}", .0.display())]
    Devices(PathBuf, #[source] io::Error),
}

/// A tree of groups that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tree {
    pub(crate) mount: PathBuf,
    /// As mount options name them; empty for version 2.
    pub(crate) controllers: Vec<String>,
}

impl Tree {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|known| known == controller)
    }

    fn dir(&self, path: &Path) -> PathBuf {
        self.mount.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// The machine's trees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trees {
    /// Version 1, maybe with an empty tree of version 2 beside.
    Each(Vec<Tree>),
    /// Version 2.
    One(Tree),
}

impl Trees {
    pub(crate) fn of_machine() -> Result<Self, GroupError> {
        let text = fs::read_to_string("/proc/self/mountinfo").map_err(GroupError::Mounts)?;
        Self::of(&text).ok_or(GroupError::None)
    }

    /// By `/proc/self/mountinfo`.
    fn of(text: &str) -> Option<Self> {
        let (mut each, mut one) = (Vec::new(), None);
        for line in text.lines() {
            let Some((before, after)) = line.split_once(" - ") else {
                continue;
            };
            let mut before = before.split(' ').skip(3);
            let (Some("/"), Some(mount)) = (before.next(), before.next()) else {
                continue;
            };
            let mut after = after.split(' ');
            let (kind, options) = (after.next(), after.nth(1).unwrap_or_default());
            let mount = PathBuf::from(mount);
            let options = options.split(',');
            let controllers = options
                .filter(|o| !NOT_CONTROLLERS.contains(o) && !o.starts_with("release_agent="));
            let controllers: Vec<_> = controllers.map(str::to_owned).collect();
            match kind {
                Some("cgroup") if !each.iter().any(|t: &Tree| t.controllers == controllers) => {
                    each.push(Tree { mount, controllers });
                }
                Some("cgroup2") => {
                    one = one.or(Some(Tree {
                        mount,
                        controllers: Vec::new(),
                    }));
                }
                _ => {}
            }
        }
        if each.is_empty() {
            return one.map(Self::One);
        }
        Some(Self::Each(each))
    }

    pub(crate) fn all(&self) -> &[Tree] {
        match self {
            Self::Each(trees) => trees,
            Self::One(tree) => std::slice::from_ref(tree),
        }
    }

    /// Makes a container's groups, which this process joins.
    pub(crate) fn enter(&self, path: &Path, resources: &Resources) -> Result<(), GroupError> {
        for tree in self.all() {
            let dir = tree.dir(path);
            let failed = |e| GroupError::Write(dir.clone(), e);
            fs::create_dir_all(&dir).map_err(failed)?;
            match self {
                Self::One(_) => hand_down(&tree.mount, &dir).map_err(failed)?,
                Self::Each(_) if tree.has("cpuset") => {
                    take_over(&tree.mount, &dir).map_err(failed)?;
                }
                Self::Each(_) => {}
            }
        }
        self.limit(path, resources)?;
        for tree in self.all() {
            let dir = tree.dir(path);
            join(&dir).map_err(|e| GroupError::Write(dir, e))?;
        }
        Ok(())
    }

    fn limit(&self, path: &Path, resources: &Resources) -> Result<(), GroupError> {
        let rules = with_usual(&resources.devices);
        for (controller, file, value) in settings(matches!(self, Self::One(_)), resources) {
            let tree = match self {
                Self::One(tree) => Some(tree),
                Self::Each(trees) => trees.iter().find(|tree| tree.has(controller)),
            };
            let tree = tree.ok_or(GroupError::NoController(controller))?;
            let file = tree.dir(path).join(file);
            fs::write(&file, value).map_err(|e| GroupError::Write(file, e))?;
        }
        match self {
            Self::One(tree) => {
                let dir = tree.dir(path);
                let failed = |e| GroupError::Devices(dir.clone(), e);
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let group = rustix::fs::open(&dir, flags, Mode::empty());
                let group = group.map_err(|e| failed(e.into()))?;
                kernel::set_device_program(group.as_fd(), &program(&rules)).map_err(failed)
            }
            Self::Each(trees) => {
                let tree = trees.iter().find(|tree| tree.has("devices"));
                let dir = tree.ok_or(GroupError::NoController("devices"))?.dir(path);
                for rule in &rules {
                    let file = if rule.allow {
                        "devices.allow"
                    } else {
                        "devices.deny"
                    };
                    let written = fs::write(dir.join(file), line(rule));
                    written.map_err(|e| GroupError::Devices(dir.clone(), e))?;
                }
                Ok(())
            }
        }
    }

    /// This process joins the groups that another is in.
    pub(crate) fn join_those_of(&self, pid: i32) -> Result<(), GroupError> {
        let file = PathBuf::from(format!("/proc/{pid}/cgroup"));
        let text = fs::read_to_string(&file).map_err(GroupError::Mounts)?;
        for (controllers, path) in memberships(&text) {
            let tree = self.all().iter().find(|tree| match self {
                Self::One(_) => controllers.is_empty(),
                Self::Each(_) => controllers.split(',').any(|name| tree.has(name)),
            });
            if let Some(tree) = tree {
                let dir = tree.dir(path);
                join(&dir).map_err(|e| GroupError::Write(dir, e))?;
            }
        }
        Ok(())
    }

    /// Ends all processes of a container's groups, and takes the groups away.
    #[allow(
        clippy::disallowed_methods,
        reason = "with version 1 no event tells that the last process has left a group"
    )]
    pub(crate) fn remove(&self, path: &Path) -> Result<(), GroupError> {
        let until = Instant::now() + LEAVE;
        for tree in self.all() {
            let dir = tree.dir(path);
            loop {
                match remove_all(&dir) {
                    Ok(()) => break,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => break,
                    Err(e) if Instant::now() > until => return Err(GroupError::Write(dir, e)),
                    Err(_) => std::thread::sleep(LOOK),
                }
            }
        }
        Ok(())
    }
}

/// `/proc/PID/cgroup`: controllers and path.
fn memberships(text: &str) -> impl Iterator<Item = (&str, &Path)> {
    text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some((fields.next()?, Path::new(fields.next()?)))
    })
}

fn join(dir: &Path) -> io::Result<()> {
    fs::write(dir.join("cgroup.procs"), "0")
}

/// Kills what is in a group and those below it, and removes them; an error where something is left.
fn remove_all(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_all(&entry.path())?;
        }
    }
    let members = fs::read_to_string(dir.join("cgroup.procs"))?;
    for pid in members.lines().filter_map(|line| line.parse().ok()) {
        let Some(pid) = rustix::process::Pid::from_raw(pid) else {
            continue;
        };
        match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    fs::remove_dir(dir)
}

/// With version 2 a group has the controllers that those above hand down: those that limits are set
/// with.
///
/// # Errors
/// When a group above, from the top of the tree on, can't be read or written.
pub fn hand_down(top: &Path, dir: &Path) -> io::Result<()> {
    let mut above: Vec<&Path> = dir.ancestors().skip(1).collect();
    above.retain(|path| path.starts_with(top));
    for path in above.into_iter().rev() {
        let has = fs::read_to_string(path.join("cgroup.controllers"))?;
        for name in has.split_whitespace().filter(|n| LIMITERS.contains(n)) {
            fs::write(path.join("cgroup.subtree_control"), format!("+{name}"))?;
        }
    }
    Ok(())
}

/// Shares of version 1 as the weight of version 2, the way all OCI runtimes turn one into the other.
#[must_use]
pub fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// With version 1 a new group has no processors and no memory of its own: those of the one above.
fn take_over(top: &Path, dir: &Path) -> io::Result<()> {
    let mut groups: Vec<&Path> = dir.ancestors().collect();
    groups.retain(|path| path.starts_with(top) && *path != top);
    for group in groups.into_iter().rev() {
        let above = group.parent().unwrap_or(top);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if fs::read_to_string(group.join(file))?.trim().is_empty() {
                fs::write(group.join(file), fs::read_to_string(above.join(file))?)?;
            }
        }
    }
    Ok(())
}

/// What is written where: controller, file, value.
fn settings(unified: bool, resources: &Resources) -> Vec<(&'static str, String, String)> {
    let mut list = Vec::new();
    let mut push = |controller, file: &str, value: String| {
        list.push((controller, file.to_owned(), value));
    };
    let (cpu, memory) = (&resources.cpu, &resources.memory);
    let period = cpu.period.unwrap_or(100_000);
    if unified {
        if let Some(shares) = cpu.shares {
            push("cpu", "cpu.weight", weight(shares).to_string());
        }
        if let Some(quota) = cpu.quota {
            push("cpu", "cpu.max", format!("{quota} {period}"));
        }
        if let Some(limit) = memory.limit {
            push("memory", "memory.max", limit.to_string());
        }
        for (file, value) in &resources.unified {
            push("memory", file, value.clone());
        }
        return list;
    }
    if let Some(shares) = cpu.shares {
        push("cpu", "cpu.shares", shares.to_string());
    }
    if let Some(quota) = cpu.quota {
        push("cpu", "cpu.cfs_period_us", period.to_string());
        push("cpu", "cpu.cfs_quota_us", quota.to_string());
    }
    if let Some(limit) = memory.limit {
        push("memory", "memory.limit_in_bytes", limit.to_string());
    }
    list
}

fn with_usual(rules: &[DeviceRule]) -> Vec<DeviceRule> {
    let usual = USUAL_DEVICES.map(|(kind, major, minor)| DeviceRule {
        allow: true,
        kind: Some(kind),
        major: Some(major),
        minor,
        access: "rwm".to_owned(),
    });
    rules.iter().cloned().chain(usual).collect()
}

/// A rule as version 1 takes it.
fn line(rule: &DeviceRule) -> String {
    let kind = match rule.kind {
        // All devices, whatever is done with them.
        None => return "a".to_owned(),
        Some(DeviceKind::Block) => "b",
        Some(DeviceKind::Character) => "c",
    };
    let number = |number: Option<u32>| number.map_or("*".to_owned(), |n| n.to_string());
    let (major, minor) = (number(rule.major), number(rule.minor));
    format!("{kind} {major}:{minor} {}", rule.access)
}

// Instructions: load a word, copy, mask, shift, jump where not equal, set, end.
const LOAD: u8 = 0x61;
const COPY: u8 = 0xbc;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_NOT: u8 = 0x55;
const JUMP_NOT_THAT: u8 = 0x5d;
const SET: u8 = 0xb7;
const EXIT: u8 = 0x95;

/// Rules as version 2 takes them: a program, which is told the kind and what is to be done, and
/// the numbers. The last rule is looked at first.
fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    let make = |code, target: u8, source: u8, offset, immediate| Instruction {
        code,
        registers: source << 4 | target,
        offset,
        immediate,
    };
    // Kind in 2, access in 3, numbers in 4 and 5.
    let mut out = vec![
        make(LOAD, 2, 1, 0, 0),
        make(COPY, 3, 2, 0, 0),
        make(AND, 2, 0, 0, 0xffff),
        make(SHIFT_RIGHT, 3, 0, 0, 16),
        make(LOAD, 4, 1, 4, 0),
        make(LOAD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut looks = Vec::new();
        if let Some(kind) = rule.kind {
            let kind = match kind {
                DeviceKind::Block => 1,
                DeviceKind::Character => 2,
            };
            looks.push(make(JUMP_NOT, 2, 0, 0, kind));
        }
        let access = [('m', 1), ('r', 2), ('w', 4)];
        let access = access.iter().filter(|(c, _)| rule.access.contains(*c));
        let access: i32 = access.map(|(_, bit)| bit).sum();
        if rule.kind.is_some() && access != 7 {
            looks.push(make(COPY, 0, 3, 0, 0));
            looks.push(make(AND, 0, 0, 0, access));
            looks.push(make(JUMP_NOT_THAT, 0, 3, 0, 0));
        }
        for (register, number) in [(4, rule.major), (5, rule.minor)] {
            if let Some(number) = number {
                looks.push(make(JUMP_NOT, register, 0, 0, number.cast_signed()));
            }
        }
        // To the next rule, over this one's answer.
        let count = looks.len();
        for (at, look) in looks.iter_mut().enumerate() {
            if matches!(look.code, JUMP_NOT | JUMP_NOT_THAT) {
                look.offset = i16::try_from(count - at - 1 + 2).unwrap_or(i16::MAX);
            }
        }
        out.append(&mut looks);
        out.push(make(SET, 0, 0, 0, i32::from(rule.allow)));
        out.push(make(EXIT, 0, 0, 0, 0));
    }
    out.push(make(SET, 0, 0, 0, 0));
    out.push(make(EXIT, 0, 0, 0, 0));
    out
}

#[cfg(test)]
mod tests;

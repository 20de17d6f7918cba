//! What a container sees as its files: its mounts, its devices, and nothing of the machine beyond.

use crate::config::{Config, Device, DeviceKind, Mount};
use crate::groups::Trees;
use crate::kernel;
use crate::within::{self, Missing, Place, path_of};
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Gid, Mode, OFlags, StatVfsMountFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// `PROC_SUPER_MAGIC`.
const PROC: u64 = 0x9fa0;
/// The type of mounts that show control groups, as the specification has it.
const GROUPS: &str = "cgroup";
/// Devices of all containers: name and number.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
/// Links of all containers: where, and to what.
const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// Why a container's files are not as they should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    #[error("open root directory {}", .0.display())]
    Open(PathBuf, #[source] Errno),
    #[error("mount {} at {}", .source_path.display(), .destination.display())]
    Mount {
        source_path: PathBuf,
        destination: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("mount at {}: it leads into /proc", .0.display())]
    IntoProc(PathBuf),
    #[error("mount at {}: option {:?} is not known", .0.display(), .1)]
    Option(PathBuf, String),
    #[error("make device {}", .0.display())]
    Device(PathBuf, #[source] Errno),
    #[error("make directory {}", .0.display())]
    Directory(PathBuf, #[source] Errno),
    #[error("leave the machine's files")]
    Leave(#[source] Errno),
    #[error("hide {}", .0.display())]
    Hide(PathBuf, #[source] Errno),
}

/// What mount options mean.
#[derive(Debug, PartialEq)]
struct Options {
    flags: MountFlags,
    bind: bool,
    /// A bind that takes along what is mounted below.
    recursive: bool,
    /// Read only with what is mounted below.
    read_only_below: bool,
    propagation: Option<MountPropagationFlags>,
    /// For the file system.
    data: String,
}

impl Options {
    fn none() -> Self {
        Self {
            flags: MountFlags::empty(),
            bind: false,
            recursive: false,
            read_only_below: false,
            propagation: None,
            data: String::new(),
        }
    }

    fn of(mount: &Mount) -> Result<Self, RootError> {
        let mut options = Self::none();
        for option in &mount.options {
            if let Some(propagation) = propagation(option) {
                options.propagation = Some(propagation);
                continue;
            }
            match option.as_str() {
                "bind" => options.bind = true,
                "rbind" => (options.bind, options.recursive) = (true, true),
                "rro" => options.read_only_below = true,
                "ro" => options.flags |= MountFlags::RDONLY,
                "nosuid" => options.flags |= MountFlags::NOSUID,
                "nodev" => options.flags |= MountFlags::NODEV,
                "noexec" => options.flags |= MountFlags::NOEXEC,
                "noatime" => options.flags |= MountFlags::NOATIME,
                "relatime" => options.flags |= MountFlags::RELATIME,
                "strictatime" => options.flags |= MountFlags::STRICTATIME,
                "rw" | "suid" | "dev" | "exec" | "defaults" => {}
                other if options.bind || mount.kind == "bind" => {
                    let option = other.to_owned();
                    return Err(RootError::Option(mount.destination.clone(), option));
                }
                other => {
                    if !options.data.is_empty() {
                        options.data.push(',');
                    }
                    options.data.push_str(other);
                }
            }
        }
        options.bind |= mount.kind == "bind";
        Ok(options)
    }
}

fn propagation(option: &str) -> Option<MountPropagationFlags> {
    let (name, below) = match option.strip_prefix('r') {
        Some(name @ ("private" | "shared" | "slave")) => (name, MountPropagationFlags::REC),
        _ => (option, MountPropagationFlags::empty()),
    };
    let kind = match name {
        "private" => MountPropagationFlags::PRIVATE,
        "shared" => MountPropagationFlags::SHARED,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        _ => return None,
    };
    Some(kind | below)
}

/// Makes a container's files and enters its root directory. The process has a mount namespace of
/// its own.
pub(crate) fn enter(config: &Config, trees: &Trees) -> Result<(), RootError> {
    // Nothing that is mounted here shows outside.
    let below = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", below).map_err(RootError::Leave)?;
    let root = &config.root.path;
    let failed = |e| RootError::Open(root.clone(), e);
    // The root directory must be a mount of its own.
    rustix::mount::mount_bind_recursive(root, root).map_err(failed)?;
    let private = MountPropagationFlags::PRIVATE;
    rustix::mount::mount_change(root, private).map_err(failed)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(root, flags, Mode::empty()).map_err(failed)?;
    for mount in &config.mounts {
        if mount.kind == GROUPS {
            show_groups(&fd, mount, trees)?;
        } else {
            make(&fd, mount)?;
        }
    }
    devices(&fd, config)?;
    let cwd = &config.process.cwd;
    let made = within::find(&fd, cwd, Missing::Directory);
    made.map_err(|e| RootError::Directory(cwd.clone(), e))?;
    pivot(&fd)?;
    if let Some(option) = &config.linux.rootfs_propagation {
        let flags = propagation(option);
        let flags = flags.ok_or_else(|| RootError::Option("/".into(), option.clone()))?;
        rustix::mount::mount_change("/", flags).map_err(RootError::Leave)?;
    }
    if config.root.readonly {
        remount("/".as_ref(), MountFlags::RDONLY).map_err(|e| RootError::Hide("/".into(), e))?;
    }
    let lock = |paths: &[PathBuf], how: fn(&Path) -> Result<(), Errno>| {
        paths.iter().try_for_each(|path| {
            how(path).or_else(|error| match error {
                // Not every kernel has all of them.
                Errno::NOENT | Errno::NOTDIR => Ok(()),
                error => Err(RootError::Hide(path.clone(), error)),
            })
        })
    };
    lock(&config.linux.readonly_paths, read_only)?;
    lock(&config.linux.masked_paths, mask)
}

fn make(root: &OwnedFd, mount: &Mount) -> Result<(), RootError> {
    let destination = &mount.destination;
    let failed = |e: io::Error| RootError::Mount {
        source_path: mount.source.clone(),
        destination: destination.clone(),
        source: e,
    };
    let options = Options::of(mount)?;
    let is_file = options.bind && !std::fs::metadata(&mount.source).map_err(failed)?.is_dir();
    let missing = if is_file {
        Missing::File
    } else {
        Missing::Directory
    };
    let place = within::find(root, destination, missing).map_err(|e| failed(e.into()))?;
    let target = place.open().map_err(|e| failed(e.into()))?;
    if destination != Path::new("/proc") && is_proc(&target).map_err(|e| failed(e.into()))? {
        return Err(RootError::IntoProc(destination.clone()));
    }
    put(mount, &options, &place, &target).map_err(failed)
}

/// Over another mount of the same place, too.
fn put(mount: &Mount, options: &Options, place: &Place, target: &OwnedFd) -> io::Result<()> {
    let target = path_of(target);
    if options.bind {
        if options.recursive {
            rustix::mount::mount_bind_recursive(&mount.source, &target)?;
        } else {
            rustix::mount::mount_bind(&mount.source, &target)?;
        }
    } else {
        let data = CString::new(options.data.as_bytes())?;
        rustix::mount::mount(
            &mount.source,
            &target,
            mount.kind.as_str(),
            options.flags,
            data.as_c_str(),
        )?;
    }
    let mounted = place.open()?;
    if options.bind && !options.flags.is_empty() {
        remount(&path_of(&mounted), options.flags)?;
    }
    if options.read_only_below {
        use rustix::fd::AsFd as _;
        kernel::read_only_recursively(mounted.as_fd())?;
    }
    if let Some(propagation) = options.propagation {
        rustix::mount::mount_change(path_of(&mounted), propagation)?;
    }
    Ok(())
}

/// Adds flags to a mount, which keeps those that it has.
fn remount(path: &Path, flags: MountFlags) -> Result<(), Errno> {
    let has = rustix::fs::statvfs(path)?.f_flag;
    let mut all = flags;
    for (is, flag) in [
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ] {
        all.set(flag, flags.contains(flag) || has.contains(is));
    }
    rustix::mount::mount_remount(path, MountFlags::BIND | all, c"")
}

fn is_proc(fd: &OwnedFd) -> Result<bool, Errno> {
    Ok(u64::try_from(rustix::fs::fstatfs(fd)?.f_type).is_ok_and(|kind| kind == PROC))
}

/// The container's own groups: with version 1 a directory of trees.
fn show_groups(root: &OwnedFd, mount: &Mount, trees: &Trees) -> Result<(), RootError> {
    let plain = |kind: &str, destination: PathBuf, options: Vec<String>| Mount {
        destination,
        kind: kind.to_owned(),
        source: kind.into(),
        options,
    };
    let each = match trees {
        Trees::One(_) => {
            let all = plain("cgroup2", mount.destination.clone(), mount.options.clone());
            return make(root, &all);
        }
        Trees::Each(each) => each,
    };
    let top = |access: &str| {
        let options = ["nosuid", "noexec", "nodev", "mode=755", access];
        let options = options.map(str::to_owned).to_vec();
        plain("tmpfs", mount.destination.clone(), options)
    };
    make(root, &top("rw"))?;
    let failed = |source: Errno| RootError::Mount {
        source_path: GROUPS.into(),
        destination: mount.destination.clone(),
        source: source.into(),
    };
    for tree in each {
        let name = tree.mount.file_name().unwrap_or_default();
        let mut options = mount.options.clone();
        if let [controller] = tree.controllers.as_slice()
            && controller.starts_with("name=")
        {
            options.push("none".to_owned());
        }
        options.extend(tree.controllers.iter().cloned());
        make(root, &plain(GROUPS, mount.destination.join(name), options))?;
        for controller in &tree.controllers {
            if OsStr::new(controller) != name && !controller.starts_with("name=") {
                let path = mount.destination.join(controller);
                link(root, &path, Path::new(name)).map_err(failed)?;
            }
        }
    }
    if mount.options.iter().any(|option| option == "ro") {
        let place = within::find(root, &mount.destination, Missing::Directory);
        let top = place.and_then(|place| place.open()).map_err(failed)?;
        remount(&path_of(&top), MountFlags::RDONLY).map_err(failed)?;
    }
    Ok(())
}

/// Makes a link where there is nothing.
fn link(root: &OwnedFd, path: &Path, target: &Path) -> Result<(), Errno> {
    let (dir, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name());
    let place = within::find(root, dir, Missing::Directory)?.open()?;
    match rustix::fs::symlinkat(target, &place, name.unwrap_or_default()) {
        Err(Errno::EXIST) => Ok(()),
        done => done,
    }
}

fn devices(root: &OwnedFd, config: &Config) -> Result<(), RootError> {
    let usual = DEVICES.map(|(name, major, minor)| Device {
        path: Path::new("/dev").join(name),
        kind: DeviceKind::Character,
        major,
        minor,
        file_mode: Some(0o666),
        uid: 0,
        gid: 0,
    });
    for device in config.linux.devices.iter().chain(&usual) {
        node(root, device).map_err(|e| RootError::Device(device.path.clone(), e))?;
    }
    for (path, target) in LINKS {
        let failed = |e| RootError::Device(path.into(), e);
        link(root, path.as_ref(), target.as_ref()).map_err(failed)?;
    }
    Ok(())
}

fn node(root: &OwnedFd, device: &Device) -> Result<(), Errno> {
    let (dir, name) = (device.path.parent(), device.path.file_name());
    let (Some(dir), Some(name)) = (dir, name) else {
        return Err(Errno::INVAL);
    };
    let dir = within::find(root, dir, Missing::Directory)?.open()?;
    let kind = match device.kind {
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Character => FileType::CharacterDevice,
    };
    let number = rustix::fs::makedev(device.major, device.minor);
    // Special bits are no device's.
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o777);
    match rustix::fs::mknodat(&dir, name, kind, mode, number) {
        // A volume has it, or it was named twice.
        Err(Errno::EXIST) => return Ok(()),
        done => done?,
    }
    // The mask of this process does not count.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(&dir, name, flags, Mode::empty())?;
    let path = path_of(&made);
    rustix::fs::chmod(&path, mode)?;
    let (user, group) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    rustix::fs::chown(&path, Some(user), Some(group))
}

/// Its root directory is that of this process, and the machine's is gone.
fn pivot(root: &OwnedFd) -> Result<(), RootError> {
    let pivot = || {
        rustix::process::fchdir(root)?;
        // The old one lies over the new one: no directory for it is needed.
        rustix::process::pivot_root(".", ".")?;
        // What is unmounted here stays mounted outside.
        let below = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        rustix::mount::mount_change(".", below)?;
        rustix::mount::unmount(".", UnmountFlags::DETACH)?;
        rustix::process::chdir("/")
    };
    pivot().map_err(RootError::Leave)
}

/// What is there, no link.
fn itself(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

fn read_only(path: &Path) -> Result<(), Errno> {
    let below = itself(path)?;
    rustix::mount::mount_bind_recursive(path_of(&below), path_of(&below))?;
    remount(&path_of(&itself(path)?), MountFlags::RDONLY)
}

/// A file looks empty, a directory too.
fn mask(path: &Path) -> Result<(), Errno> {
    let hidden = itself(path)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&hidden)?.st_mode);
    if kind == FileType::Directory {
        let (nothing, target) = (OsStr::from_bytes(b"tmpfs"), path_of(&hidden));
        return rustix::mount::mount(nothing, target, "tmpfs", MountFlags::RDONLY, c"");
    }
    let null = itself(Path::new("/dev/null"))?;
    if rustix::fs::fstat(&null)?.st_rdev != rustix::fs::makedev(1, 3) {
        // Another's in its place would be shown instead.
        return Err(Errno::NODEV);
    }
    rustix::mount::mount_bind(path_of(&null), path_of(&hidden))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(kind: &str, list: &[&str]) -> Result<Options, String> {
        let mount = Mount {
            destination: "/vol".into(),
            kind: kind.to_owned(),
            source: "/source".into(),
            options: list.iter().map(|o| (*o).to_owned()).collect(),
        };
        Options::of(&mount).map_err(|e| e.to_string())
    }

    #[test]
    fn options_are_flags_or_the_file_system_s() {
        let tmpfs = options(
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        );
        let expected = Options {
            flags: MountFlags::NOSUID | MountFlags::STRICTATIME,
            data: "mode=755,size=65536k".to_owned(),
            ..Options::none()
        };
        assert_eq!(tmpfs, Ok(expected));
        let bind = options("bind", &["rbind", "rslave", "rro", "noexec"]);
        let expected = Options {
            flags: MountFlags::NOEXEC,
            bind: true,
            recursive: true,
            read_only_below: true,
            propagation: Some(MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC),
            data: String::new(),
        };
        assert_eq!(bind, Ok(expected));
        let said = "mount at /vol: option \"idmap\" is not known";
        assert_eq!(options("bind", &["rbind", "idmap"]), Err(said.to_owned()));
    }
}

//! The mounts that containers need before they are made, and the only unsafe code of this crate.

#![allow(
    unsafe_code,
    reason = "unshare(2) and signal(2) have no safe wrapper in what is linked"
)]

use crate::programs::SELF;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Mounts of this process and those it starts are their own from now on: they end with them, and
/// what is mounted on the machine later shows here too. The process has one thread.
pub(crate) fn leave_machine() -> io::Result<()> {
    unshare(UnshareFlags::NEWNS)?;
    let below = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", below)?)
}

/// Children of this process are reaped by the kernel from now on.
pub(crate) fn ignore_children() -> io::Result<()> {
    // SAFETY: ignoring a signal runs no code of this process.
    let before = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    if before == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Leaves what the flags name, this thread alone.
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    debug_assert!(
        !flags.contains(UnshareFlags::FILES),
        "descriptors stay shared"
    );
    // SAFETY: only CLONE_FILES would break what others rely on, and it is not among the flags.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Shows a file or directory at another place.
pub(crate) fn bind(source: &Path, target: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount_bind(source, target)?)
}

/// Shows the program that runs at another place, where nobody can write to it. Where another took
/// its place on disk since it was started, that is a copy.
pub(crate) fn own_program(target: &Path) -> io::Result<()> {
    let running = Path::new(SELF);
    // What runs lies on a mount of the namespace that was left: only its name can be shown here.
    let path = fs::read_link(running)?;
    let number = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
    let _old = fs::remove_file(target);
    if number(&path).ok() == Some(number(running)?) {
        drop(fs::File::create(target)?);
        bind(&path, target)?;
    } else {
        fs::copy(running, target)?;
        bind(target, target)?;
    }
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID;
    Ok(rustix::mount::mount_remount(target, flags, c"")?)
}

/// Mounts memory at a directory, for any user or a group; nothing is done where there is some.
pub(crate) fn memory(volume: &runtime::Memory) -> io::Result<()> {
    let inside = fs::metadata(&volume.dir)?;
    let outside = fs::metadata(volume.dir.parent().unwrap_or(Path::new("/")))?;
    if inside.dev() != outside.dev() {
        return Ok(());
    }
    let mut options = "mode=0777".to_owned();
    if let Some(group) = volume.group {
        options = format!("mode=2777,gid={group}");
    }
    if let Some(bytes) = volume.size_bytes {
        options.push_str(&format!(",size={bytes}"));
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", &volume.dir, flags, options.into_bytes())
}

/// Mounts layers, the highest first, with a directory over them that takes what is written.
///
/// # Errors
/// Where the kernel has no overlay file system, or the layers are too many for one call (a page
/// of names).
pub(crate) fn overlay(
    layers: &[PathBuf],
    upper: &Path,
    work: &Path,
    target: &Path,
) -> io::Result<()> {
    let parent = layers.first().and_then(|layer| layer.parent());
    let parent = parent.unwrap_or(Path::new("/")).to_owned();
    // By their names alone: whole paths of many layers would not fit.
    let names: Option<Vec<_>> = layers
        .iter()
        .map(|layer| {
            (layer.parent() == Some(&parent))
                .then(|| layer.file_name())
                .flatten()
        })
        .collect();
    let names = names.ok_or(io::ErrorKind::InvalidInput)?;
    let mut options = b"lowerdir=".to_vec();
    for (at, name) in names.iter().enumerate() {
        if at > 0 {
            options.push(b':');
        }
        options.extend(escaped(name.as_bytes()));
    }
    options.extend_from_slice(b",upperdir=");
    options.extend(escaped(upper.as_os_str().as_bytes()));
    options.extend_from_slice(b",workdir=");
    options.extend(escaped(work.as_os_str().as_bytes()));
    let target = target.to_owned();
    let mounted = std::thread::Builder::new()
        .stack_size(128 << 10)
        .spawn(move || {
            // This thread's working directory only.
            unshare(UnshareFlags::FS)?;
            rustix::process::chdir(&parent)?;
            mount("overlay", &target, MountFlags::empty(), options)
        })?;
    mounted.join().unwrap_or(Err(io::ErrorKind::Other.into()))
}

/// The option's own separators in a name.
fn escaped(name: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(name.len());
    for byte in name {
        if matches!(byte, b':' | b',' | b'\\') {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    escaped
}

/// Takes a mount away, later if it is in use; nothing is done where there is none.
pub(crate) fn unmount(target: &Path) -> io::Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn mount(kind: &str, target: &Path, flags: MountFlags, options: Vec<u8>) -> io::Result<()> {
    let options = CString::new(options).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(rustix::mount::mount(
        kind,
        target,
        kind,
        flags,
        options.as_c_str(),
    )?)
}

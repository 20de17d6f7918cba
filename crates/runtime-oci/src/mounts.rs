//! The few calls of mount(2) that containers need. The only unsafe code of this crate, for the
//! kernel's interface takes C strings.

#![allow(
    unsafe_code,
    reason = "mount(2), umount2(2), unshare(2) and signal(2) have no safe wrapper in what is linked"
)]

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
    mount(
        None,
        Path::new("/"),
        None,
        libc::MS_REC | libc::MS_SLAVE,
        "",
    )
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
    mount(Some(source), target, None, libc::MS_BIND, "")
}

/// Shows the program that runs at another place, where nobody can write to it. Where another took
/// its place on disk since it was started, that is a copy.
pub(crate) fn own_program(target: &Path) -> io::Result<()> {
    let running = Path::new("/proc/self/exe");
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
    let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | libc::MS_NOSUID;
    mount(None, target, None, flags, "")
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
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    mount(
        Some(Path::new("tmpfs")),
        &volume.dir,
        Some("tmpfs"),
        flags,
        &options,
    )
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
    let options = String::from_utf8(options).map_err(|_| io::ErrorKind::InvalidInput)?;
    let target = target.to_owned();
    let mounted = std::thread::Builder::new()
        .stack_size(128 << 10)
        .spawn(move || {
            // This thread's working directory only.
            unshare(UnshareFlags::FS)?;
            rustix::process::chdir(&parent)?;
            mount(
                Some(Path::new("overlay")),
                &target,
                Some("overlay"),
                0,
                &options,
            )
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
    let target = c_string(target.as_os_str().as_bytes())?;
    // SAFETY: the string lives across the call and ends with NUL.
    let done = unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    if done == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENOENT) => Ok(()),
        _ => Err(error),
    }
}

fn mount(
    source: Option<&Path>,
    target: &Path,
    kind: Option<&str>,
    flags: libc::c_ulong,
    options: &str,
) -> io::Result<()> {
    let none = || c_string(b"none");
    let source = source.map_or_else(none, |source| c_string(source.as_os_str().as_bytes()))?;
    let target = c_string(target.as_os_str().as_bytes())?;
    let kind = c_string(kind.unwrap_or("none").as_bytes())?;
    let options = c_string(options.as_bytes())?;
    // SAFETY: all four strings live across the call and end with NUL.
    let done = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::ErrorKind::InvalidInput.into())
}

//! Paths inside a container's root directory, whatever links an image has: they are followed as if
//! the root were the machine's. Each step is a descriptor of what is there, so that nobody can put
//! something else in its place meanwhile.

use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

/// Links that are followed at most, as the kernel has it.
const LINKS_MAX: usize = 40;
const DIR_MODE: Mode = Mode::from_raw_mode(0o755);
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);

/// What is made where there is nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    Directory,
    File,
}

/// A place in a root directory: the directory that it is in, and its name there (`.` for the root).
#[derive(Debug)]
pub(crate) struct Place {
    parent: OwnedFd,
    name: OsString,
}

impl Place {
    /// What is there now, the topmost mount of it.
    pub(crate) fn open(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.parent, &self.name, flags, Mode::empty())
    }
}

/// Finds a path in a root directory; what is missing of it is made.
pub(crate) fn find(root: &OwnedFd, path: &Path, missing: Missing) -> Result<Place, Errno> {
    // From the root to where the walk is.
    let mut dirs = vec![root.try_clone().map_err(errno)?];
    let mut rest: Vec<OsString> = parts(path);
    let mut links = 0;
    let mut name = OsString::from(".");
    while let Some(part) = rest.pop() {
        if part == ".." {
            if dirs.len() > 1 {
                dirs.pop();
            }
            name = OsString::from(".");
            continue;
        }
        let last = rest.is_empty();
        let dir = dirs.last().ok_or(Errno::INVAL)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = match rustix::fs::openat(dir, &part, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                make(dir, &part, if last { missing } else { Missing::Directory })?;
                rustix::fs::openat(dir, &part, flags, Mode::empty())?
            }
            found => found?,
        };
        let stat = rustix::fs::fstat(&found)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Errno::LOOP);
                }
                let target = rustix::fs::readlinkat(&found, "", Vec::new())?;
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    dirs.truncate(1);
                }
                name = OsString::from(".");
                rest.extend(parts(&target));
            }
            _ if last => name = part,
            FileType::Directory => {
                dirs.push(found);
                name = OsString::from(".");
            }
            _ => return Err(Errno::NOTDIR),
        }
    }
    let parent = dirs.pop().ok_or(Errno::INVAL)?;
    Ok(Place { parent, name })
}

/// The last comes first.
fn parts(path: &Path) -> Vec<OsString> {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    let mut parts: Vec<_> = parts.collect();
    parts.reverse();
    parts
}

fn make(dir: &OwnedFd, name: &OsString, missing: Missing) -> Result<(), Errno> {
    match missing {
        Missing::Directory => rustix::fs::mkdirat(dir, name, DIR_MODE),
        Missing::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW;
            rustix::fs::openat(dir, name, flags | OFlags::CLOEXEC, FILE_MODE).map(drop)
        }
    }
}

/// What is open as a path, for calls that take no descriptor.
pub(crate) fn path_of(fd: &OwnedFd) -> PathBuf {
    use rustix::fd::AsRawFd as _;
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn open(dir: &Path) -> OwnedFd {
        rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    fn found(root: &Path, path: &str, missing: Missing) -> Result<PathBuf, Errno> {
        let place = find(&open(root), Path::new(path), missing)?;
        let path = fs::read_link(path_of(&place.open()?)).unwrap();
        Ok(path.strip_prefix(root).unwrap().to_owned())
    }

    #[test]
    fn links_lead_to_places_in_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        symlink("/a", root.join("absolute")).unwrap();
        symlink("../../../../a/b", root.join("up")).unwrap();
        symlink("../run/late/file", root.join("a/dangling")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        fs::write(root.join("plain"), "").unwrap();
        let of = |path| found(&root, path, Missing::File);
        assert_eq!(of("/absolute/b"), Ok("a/b".into()));
        assert_eq!(of("up"), Ok("a/b".into()));
        assert_eq!(of("/a/dangling"), Ok("run/late/file".into()));
        assert!(root.join("run/late/file").is_file());
        assert_eq!(of("/new/dir/file"), Ok("new/dir/file".into()));
        assert_eq!(of("/../../a"), Ok("a".into()));
        assert_eq!(of("/a/.."), Ok("".into()));
        assert_eq!(of("loop"), Err(Errno::LOOP));
        assert_eq!(of("plain/x"), Err(Errno::NOTDIR));
        assert_eq!(found(&root, "d/e", Missing::Directory), Ok("d/e".into()));
        assert!(root.join("d/e").is_dir());
    }

    proptest! {
        /// Whatever links there are, nothing outside is found or made.
        #[test]
        fn nothing_leads_out(
            links in prop::collection::vec(("[ab]", prop::collection::vec("a|b|\\.\\.|c", 1..5), any::<bool>()), 0..4),
            path in prop::collection::vec("a|b|\\.\\.|c", 1..6),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().canonicalize().unwrap().join("root");
            fs::create_dir(&root).unwrap();
            for (name, target, absolute) in links {
                let target = target.join("/");
                let target = if absolute { format!("/{target}") } else { target };
                let _exists = symlink(target, root.join(name));
            }
            if let Ok(place) = find(&open(&root), Path::new(&path.join("/")), Missing::Directory) {
                let shown = fs::read_link(path_of(&place.open().unwrap())).unwrap();
                prop_assert!(shown.starts_with(&root), "{}", shown.display());
            }
            prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }
}

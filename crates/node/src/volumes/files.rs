//! Single files for runtimes that can show directories only: a Wasm guest's files lie in
//! preopened directories.
//!
//! The files that a container mounts into one directory are linked into a directory of the
//! pod's own, made anew at each start of the container. A link is to the file itself as a bind
//! mount is: it goes on showing the file as it was when the container started.

use super::VolumeError;
use runtime::Mount;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// The mounts, with directories in place of files.
pub(crate) fn in_directories(
    pod_dir: &Path,
    container: &str,
    mounts: Vec<Mount>,
) -> Result<Vec<Mount>, VolumeError> {
    let (files, mut mounts): (Vec<_>, Vec<_>) =
        mounts.into_iter().partition(|m| m.host_path.is_file());
    if files.is_empty() {
        return Ok(mounts);
    }
    let mut by_parent: BTreeMap<String, Vec<Mount>> = BTreeMap::new();
    for file in files {
        let parent = Path::new(&file.guest_path).parent();
        let parent = parent.unwrap_or(Path::new("/")).display().to_string();
        if mounts.iter().any(|m| is_same(&m.guest_path, &parent)) {
            return Err(VolumeError::FileInMount(file.guest_path));
        }
        by_parent.entry(parent).or_default().push(file);
    }
    let root = pod_dir.join("files").join(container);
    make_anew(&root)?;
    for (number, (parent, files)) in by_parent.into_iter().enumerate() {
        let dir = root.join(number.to_string());
        make_anew(&dir)?;
        let read_only = files.iter().all(|file| file.read_only);
        for file in files {
            show(&file, &dir, read_only)?;
        }
        mounts.push(Mount {
            host_path: dir,
            guest_path: parent,
            read_only,
            ..Mount::default()
        });
    }
    Ok(mounts)
}

fn is_same(a: &str, b: &str) -> bool {
    Path::new(a).components().eq(Path::new(b).components())
}

fn show(file: &Mount, dir: &Path, read_only_dir: bool) -> Result<(), VolumeError> {
    let failed = |source| VolumeError::File {
        guest: file.guest_path.clone(),
        file: file.host_path.clone(),
        source,
    };
    let name = Path::new(&file.guest_path).file_name();
    let target = dir.join(name.ok_or_else(|| VolumeError::Path(file.guest_path.clone()))?);
    // Links of the volume are followed: it is the file that is shown.
    let real = file.host_path.canonicalize().map_err(failed)?;
    // In a directory that may be written a file that may not is a copy.
    if file.read_only != read_only_dir {
        return std::fs::copy(&real, &target).map(drop).map_err(failed);
    }
    match std::fs::hard_link(&real, &target) {
        // On another file system, or another user's.
        Err(error) if file.read_only && error.kind() != io::ErrorKind::AlreadyExists => {
            std::fs::copy(&real, &target).map(drop).map_err(failed)
        }
        done => done.map_err(failed),
    }
}

fn make_anew(dir: &Path) -> Result<(), VolumeError> {
    let wrap = |source| VolumeError::Write {
        path: PathBuf::from(dir),
        source,
    };
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(wrap(error)),
        _ => {}
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(wrap)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(host: &Path, guest: &str, read_only: bool) -> Mount {
        Mount {
            host_path: host.into(),
            guest_path: guest.into(),
            read_only,
            ..Mount::default()
        }
    }

    #[test]
    fn files_of_one_directory_are_shown_together() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["a", "b", "c"] {
            std::fs::write(at(name), name).unwrap();
        }
        std::fs::create_dir(at("d")).unwrap();
        let mounts = vec![
            mount(&at("a"), "/etc/app/a.conf", true),
            mount(&at("b"), "/etc/app/b.conf", false),
            mount(&at("c"), "/etc/c.conf", true),
            mount(&at("d"), "/data", false),
        ];
        let again = mounts.clone();
        let shown = in_directories(&at("pod"), "main", mounts).unwrap();
        let text = |shown: &[Mount]| -> Vec<String> {
            let line = |m: &Mount| format!("{} {}", m.guest_path, m.read_only);
            shown.iter().map(line).collect()
        };
        assert_eq!(text(&shown), ["/data false", "/etc true", "/etc/app false"]);
        let app = &shown[2].host_path;
        assert_eq!(std::fs::read_to_string(app.join("a.conf")).unwrap(), "a");
        std::fs::write(app.join("b.conf"), "written").unwrap();
        assert_eq!(std::fs::read_to_string(at("b")).unwrap(), "written");
        std::fs::write(app.join("a.conf"), "written").unwrap();
        assert_eq!(std::fs::read_to_string(at("a")).unwrap(), "a", "is a copy");
        let again = in_directories(&at("pod"), "main", again).unwrap();
        assert_eq!(text(&again), text(&shown));
        assert_eq!(std::fs::read_to_string(app.join("a.conf")).unwrap(), "a");
    }

    #[test]
    fn a_file_in_another_mount_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        std::fs::write(&file, "a").unwrap();
        let mounts = vec![
            mount(dir.path(), "/data/", false),
            mount(&file, "/data/a", false),
        ];
        let refused = in_directories(dir.path(), "main", mounts).unwrap_err();
        assert!(
            refused.to_string().contains("/data/a is in a directory"),
            "{refused}"
        );
    }
}

//! Writing a volume's files so that readers see all of the old or all of the new.
//!
//! The layout is upstream's: files lie in a directory of this version, `..data` is a link
//! to it that is replaced in one rename, and each name at the top is a link through
//! `..data`. Programs that watch for changes look for exactly that. All links stay inside
//! the volume, so a WASI preopen can follow them.

use super::own::Group;
use super::payload::Files;
use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Makes the directory hold exactly `files`. Whether anything changed.
pub(super) fn update(dir: &Path, files: &Files, group: Option<Group>) -> io::Result<bool> {
    let old = std::fs::read_link(dir.join(DATA)).ok();
    if let Some(old) = &old
        && holds(&dir.join(old), files)
    {
        // The links may be missing if the agent died between its steps.
        link_names(dir, files)?;
        return Ok(false);
    }
    let version = new_version(dir)?;
    for (path, file) in files {
        let target = version.join(path);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&target, &file.bytes)?;
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(file.mode))?;
    }
    if let Some(group) = group {
        group.own_read_only(&version)?;
        lchown(dir, None, Some(group.gid))?;
    }
    let name = version.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let link = dir.join(DATA_NEW);
    remove_if_there(&link)?;
    symlink(name, &link)?;
    std::fs::rename(&link, dir.join(DATA))?;
    link_names(dir, files)?;
    if let Some(old) = old {
        std::fs::remove_dir_all(dir.join(old))?;
    }
    Ok(true)
}

fn new_version(dir: &Path) -> io::Result<PathBuf> {
    let stamp = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S.");
    // Numbered, for two updates may fall in one second.
    for number in 0..1000 {
        let path = dir.join(format!("{stamp}{number}"));
        match std::fs::create_dir(&path) {
            Ok(()) => {
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
                return Ok(path);
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Whether the directory holds these files and no others.
fn holds(dir: &Path, files: &Files) -> bool {
    let mut count = 0;
    let mut todo = vec![dir.to_path_buf()];
    while let Some(at) = todo.pop() {
        let Ok(entries) = std::fs::read_dir(&at) else {
            return false;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                todo.push(path);
            } else {
                count += 1;
            }
        }
    }
    count == files.len()
        && files.iter().all(|(path, file)| {
            let path = dir.join(path);
            let mode = std::fs::metadata(&path).map(|m| m.permissions().mode() & 0o777);
            mode.is_ok_and(|m| m == file.mode)
                && std::fs::read(&path).is_ok_and(|bytes| bytes == file.bytes)
        })
}

fn link_names(dir: &Path, files: &Files) -> io::Result<()> {
    let wanted: BTreeSet<&str> = files
        .keys()
        .filter_map(|path| path.split('/').next())
        .collect();
    for name in &wanted {
        match symlink(Path::new(DATA).join(name), dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(&*name) {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

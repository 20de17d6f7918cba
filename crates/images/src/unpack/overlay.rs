//! What a layer needs that is mounted over others: whiteouts as the kernel has them, and all that
//! a container may ask a file for. Only root can write these.
//!
//! The kernel's own marks (`trusted.overlay.…`) are never taken from an image.

use super::{UnpackError, Unpacker};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The mark of a directory that hides what is below it.
const OPAQUE: &str = "trusted.overlay.opaque";
/// Extended attributes of one entry at most; more are left out.
const XATTRS_MAX: usize = 64;
/// How an archive names an extended attribute.
const XATTR_KEY: &[u8] = b"SCHILY.xattr.";

/// What an extended header says of an entry besides its names.
#[derive(Debug, Default)]
pub(super) struct Pax {
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<i64>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Pax {
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) {
        let text = || std::str::from_utf8(value).ok();
        match key {
            b"uid" => self.uid = text().and_then(|t| t.parse().ok()),
            b"gid" => self.gid = text().and_then(|t| t.parse().ok()),
            b"mtime" => {
                let whole = text().and_then(|t| t.split('.').next());
                self.mtime = whole.and_then(|t| t.parse().ok());
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_KEY)
                    && is_for_containers(name)
                    && self.xattrs.len() < XATTRS_MAX
                {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
    }
}

/// File capabilities, and what users keep with their files.
fn is_for_containers(name: &[u8]) -> bool {
    name == b"security.capability"
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// Owner, mode, time and attributes of an entry.
#[derive(Debug)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    uid: u32,
    gid: u32,
    mtime: i64,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Attributes {
    pub(super) fn of(header: &tar::Header, pax: Pax) -> Self {
        let id = |id: io::Result<u64>| id.ok().and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
        let mtime = header.mtime().ok().and_then(|t| i64::try_from(t).ok());
        Self {
            mode: header.mode().unwrap_or(0o600) & 0o7777,
            uid: pax.uid.unwrap_or_else(|| id(header.uid())),
            gid: pax.gid.unwrap_or_else(|| id(header.gid())),
            mtime: pax.mtime.or(mtime).unwrap_or(0),
            xattrs: pax.xattrs,
        }
    }

    /// Gives them to what was just written there; links are not followed.
    pub(super) fn apply(&self, path: &Path) -> io::Result<()> {
        std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid))?;
        let found = path.symlink_metadata()?;
        if !found.is_symlink() {
            // After the owner: a change of owner takes the set-user-ID bit away.
            fs::set_permissions(path, fs::Permissions::from_mode(self.mode))?;
            for (name, value) in &self.xattrs {
                let set = rustix::fs::lsetxattr(path, name.as_slice(), value, XattrFlags::empty());
                match set {
                    // The disk keeps none: as with other engines the file is there without.
                    Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        let time = Timespec {
            tv_sec: self.mtime,
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        Ok(rustix::fs::utimensat(
            CWD,
            path,
            &times,
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }
}

/// Whether it is the kernel's mark that hides a name of lower layers.
pub(super) fn is_whiteout(found: &Metadata) -> bool {
    found.file_type().is_char_device() && found.rdev() == 0
}

/// Hides what lower layers have in a directory.
pub(super) fn make_opaque(dir: &Path) -> io::Result<()> {
    Ok(rustix::fs::lsetxattr(
        dir,
        OPAQUE,
        b"y",
        XattrFlags::empty(),
    )?)
}

fn is_opaque(dir: &Path) -> bool {
    let mut value = [0; 8];
    rustix::fs::lgetxattr(dir, OPAQUE, &mut value).is_ok_and(|n| &value[..n] == b"y")
}

impl Unpacker {
    /// A whiteout: hides a name of lower layers, or all that they have in a directory.
    pub(super) fn hide(&mut self, target: &[OsString], opaque: bool) -> Result<(), UnpackError> {
        // Without its parent there is nothing to hide.
        let Some((hidden, parents)) = target.split_last().filter(|_| !opaque) else {
            let Some(dir) = self.directory(target, super::LINKS_MAX, false)? else {
                return Ok(());
            };
            return make_opaque(&dir).map_err(|source| UnpackError::Write { path: dir, source });
        };
        let Some(dir) = self.directory(parents, super::LINKS_MAX, false)? else {
            return Ok(());
        };
        let path = dir.join(hidden);
        let hidden = match path.symlink_metadata() {
            // What the layer itself has there stays.
            Ok(own) if own.is_dir() => make_opaque(&path),
            Ok(_) => Ok(()),
            Err(_) => {
                self.entries += 1;
                let made =
                    rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), 0);
                made.map_err(Into::into)
            }
        };
        hidden.map_err(|source| UnpackError::Write { path, source })
    }

    /// What lower layers show at a path, if anything; no link is followed.
    pub(super) fn below(&self, parts: &[OsString]) -> Option<(PathBuf, Metadata)> {
        let (last, parents) = parts.split_last()?;
        'layers: for layer in self.over.iter().flatten() {
            let mut path = layer.clone();
            // An opaque directory of this layer hides the ones below it.
            let mut hides = false;
            for part in parents {
                path.push(part);
                match path.symlink_metadata() {
                    Ok(found) if found.is_dir() => hides |= is_opaque(&path),
                    Ok(_) => return None,
                    Err(_) if hides => return None,
                    Err(_) => continue 'layers,
                }
            }
            path.push(last);
            match path.symlink_metadata() {
                Ok(found) if is_whiteout(&found) => return None,
                Ok(found) => return Some((path, found)),
                Err(_) if hides => return None,
                Err(_) => {}
            }
        }
        None
    }

    /// A directory that the archive does not tell of, as lower layers have it: else mounting
    /// this layer over them would change it.
    pub(super) fn make_dir_as(
        &mut self,
        dir: &Path,
        below: &Path,
        found: &Metadata,
    ) -> Result<(), UnpackError> {
        self.entries += 1;
        let make = || -> io::Result<()> {
            fs::create_dir(dir)?;
            std::os::unix::fs::lchown(dir, Some(found.uid()), Some(found.gid()))?;
            fs::set_permissions(dir, found.permissions())
        };
        make().map_err(|source| UnpackError::Write {
            path: below.to_owned(),
            source,
        })
    }

    /// A hard link to a file of a lower layer: a copy. Whether there is one.
    pub(super) fn copy_from_below(
        &mut self,
        parts: &[OsString],
        path: &Path,
    ) -> Result<bool, UnpackError> {
        let Some((from, found)) = self.below(parts).filter(|(_, found)| found.is_file()) else {
            return Ok(false);
        };
        let mut content = File::open(&from).map_err(UnpackError::Read)?;
        self.write_file(path, 0o600, &mut content, found.len())?;
        let like = Attributes {
            mode: found.mode() & 0o7777,
            uid: found.uid(),
            gid: found.gid(),
            mtime: found.mtime(),
            xattrs: capabilities(&from),
        };
        let applied = like.apply(path);
        applied.map_err(|source| UnpackError::Write {
            path: path.to_owned(),
            source,
        })?;
        Ok(true)
    }
}

fn capabilities(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    const NAME: &str = "security.capability";
    let mut value = [0; 64];
    match rustix::fs::lgetxattr(path, NAME, &mut value) {
        Ok(length) => vec![(NAME.into(), value[..length].to_vec())],
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_marks_are_not_taken_from_images() {
        for (name, wanted) in [
            (&b"security.capability"[..], true),
            (b"user.mime", true),
            (b"user.overlay.opaque", false),
            (b"trusted.overlay.opaque", false),
            (b"trusted.overlay.redirect", false),
            (b"security.selinux", false),
        ] {
            assert_eq!(is_for_containers(name), wanted, "{name:?}");
        }
    }
}

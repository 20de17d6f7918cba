//! Image layers into a directory: whiteouts, links inside the root only, bounds on everything.
//!
//! Either all layers go into one directory, as Wasm guests are shown files, or each into one of
//! its own for the kernel's overlay file system ([`Unpacker::over`], `overlay`). The directory
//! must be private to the caller while this runs (a fresh temporary one): links are resolved by
//! name before use.

pub mod hostile;
mod overlay;

use rustix::fs::CWD;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

/// What an image may unpack to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UnpackLimits {
    /// Bytes of all files together, and of what is decompressed.
    pub(crate) bytes_max: u64,
    /// Files, directories and links together.
    pub(crate) entries_max: u64,
}

impl UnpackLimits {
    /// Of one layer of a container image: some carry whole distributions, or models.
    pub(crate) const LAYER: Self = Self {
        bytes_max: 32 << 30,
        entries_max: 1_000_000,
    };
}

impl Default for UnpackLimits {
    fn default() -> Self {
        Self {
            bytes_max: 4 << 30,
            entries_max: 200_000,
        }
    }
}

/// Extended headers (long names, attributes) at most.
const HEADER_BYTES_MAX: u64 = 256 << 10;
/// Links followed in one path at most, as the kernel has it.
const LINKS_MAX: usize = 40;
/// Parts of a path at most.
const DEPTH_MAX: usize = 256;

/// Why layers can't be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive is broken, truncated, or of an unknown compression.
    #[error("read archive")]
    Read(#[source] io::Error),
    /// A name that leaves the root.
    #[error("read archive: entry {0:?} is outside the root")]
    Escape(String),
    /// An entry that no image should hold.
    #[error("read archive: entry {name:?}: {detail}")]
    Entry {
        /// Its name.
        name: String,
        /// What is wrong with it.
        detail: &'static str,
    },
    /// More than an image may unpack to.
    #[error("read archive: more than {0} bytes unpacked")]
    TooManyBytes(u64),
    /// More entries than an image may have.
    #[error("read archive: more than {0} entries")]
    TooManyEntries(u64),
    /// Writing failed.
    #[error("write {}", .path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Unpacks layers one after the other into a directory that exists.
pub(crate) struct Unpacker {
    root: PathBuf,
    limits: UnpackLimits,
    bytes: u64,
    entries: u64,
    /// Paths written by the layer at hand: an opaque whiteout spares them.
    fresh: HashSet<PathBuf>,
    /// For the overlay file system, over these layers, the highest first.
    over: Option<Vec<PathBuf>>,
    /// What a container may use is kept: owners, all modes, times, attributes.
    keeps: bool,
}

impl Unpacker {
    pub(crate) fn new(root: &Path, limits: UnpackLimits) -> Self {
        Self {
            root: root.to_owned(),
            limits,
            bytes: 0,
            entries: 0,
            fresh: HashSet::new(),
            over: None,
            keeps: false,
        }
    }

    /// All layers into one directory, for containers too where this is root.
    pub(crate) fn whole(root: &Path, limits: UnpackLimits) -> Self {
        Self {
            keeps: rustix::process::geteuid().is_root(),
            ..Self::new(root, limits)
        }
    }

    /// One layer as a directory of its own, to be mounted over others: the highest first.
    pub(crate) fn over(root: &Path, limits: UnpackLimits, lower: Vec<PathBuf>) -> Self {
        Self {
            over: Some(lower),
            keeps: true,
            ..Self::new(root, limits)
        }
    }

    /// Unpacks one layer: tar, gzip or zstd by its first bytes.
    pub(crate) fn layer(&mut self, path: &Path) -> Result<(), UnpackError> {
        self.fresh.clear();
        let file = File::open(path).map_err(UnpackError::Read)?;
        let mut reader = BufReader::with_capacity(128 << 10, file);
        let head = io::BufRead::fill_buf(&mut reader).map_err(UnpackError::Read)?;
        let gzip = head.starts_with(&[0x1f, 0x8b]);
        let zstd = head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
        // Headers and padding count as well: an archive of nothing can be endless.
        let allowed = self.limits.bytes_max.saturating_mul(2);
        if gzip {
            self.archive(flate2::bufread::MultiGzDecoder::new(reader).take(allowed))
        } else if zstd {
            let decoder = zstd::stream::read::Decoder::with_buffer(reader);
            self.archive(decoder.map_err(UnpackError::Read)?.take(allowed))
        } else {
            self.archive(reader.take(allowed))
        }
    }

    /// Adds one file under a path of the image (packagings that ship files as blobs).
    pub(crate) fn file(&mut self, name: &Path, content: &mut dyn Read) -> Result<(), UnpackError> {
        let parts = parts(name)?;
        let Some(path) = self.place(&parts)? else {
            return Err(escape(name));
        };
        self.write_file(&path, 0o600, content, u64::MAX).map(drop)
    }

    /// Adds a file of the same disk under a path of the image, for anybody to read.
    pub(crate) fn link(&mut self, name: &Path, content: &Path) -> Result<(), UnpackError> {
        let parts = parts(name)?;
        let path = self.place(&parts)?.ok_or_else(|| escape(name))?;
        let link = || {
            remove(&path)?;
            fs::set_permissions(content, fs::Permissions::from_mode(0o644))?;
            fs::hard_link(content, &path)
        };
        link().map_err(|source| UnpackError::Write { path, source })
    }

    fn archive(&mut self, reader: impl Read) -> Result<(), UnpackError> {
        let mut archive = tar::Archive::new(reader);
        let mut next = Extended::default();
        // Raw: the library would read extended headers of any length into memory.
        for entry in archive.entries().map_err(UnpackError::Read)?.raw(true) {
            let mut entry = entry.map_err(UnpackError::Read)?;
            let kind = entry.header().entry_type();
            match kind {
                tar::EntryType::GNULongName
                | tar::EntryType::GNULongLink
                | tar::EntryType::XHeader => next.read(kind, &mut entry)?,
                tar::EntryType::XGlobalHeader => {}
                _ => {
                    let extended = std::mem::take(&mut next);
                    self.entry(kind, extended, &mut entry)?;
                }
            }
        }
        Ok(())
    }

    fn entry<R: Read>(
        &mut self,
        kind: tar::EntryType,
        extended: Extended,
        entry: &mut tar::Entry<'_, R>,
    ) -> Result<(), UnpackError> {
        self.entries += 1;
        if self.entries > self.limits.entries_max {
            return Err(UnpackError::TooManyEntries(self.limits.entries_max));
        }
        let name = extended
            .path
            .unwrap_or_else(|| entry.path_bytes().into_owned());
        let name = Path::new(std::ffi::OsStr::from_bytes(&name));
        let parts = parts(name)?;
        let Some(base) = parts.last().cloned() else {
            return Ok(()); // The root itself.
        };
        if let Some(hidden) = base.as_bytes().strip_prefix(b".wh.") {
            return self.whiteout(&parts, hidden, name);
        }
        let bad = |detail| UnpackError::Entry {
            name: show(name),
            detail,
        };
        if extended.has_size {
            // Raw entries are framed by the plain header's size, which is then not the truth.
            return Err(bad("size in an extended header"));
        }
        let attributes = overlay::Attributes::of(entry.header(), extended.pax);
        let mode = attributes.mode & 0o777;
        let Some(path) = self.place(&parts)? else {
            return Err(bad("its parent is not a directory"));
        };
        let write = |source| UnpackError::Write {
            path: path.clone(),
            source,
        };
        match kind {
            tar::EntryType::Directory => {
                if !fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
                    self.replace_by_dir(&path)?;
                }
                let mode = fs::Permissions::from_mode(mode | 0o700);
                fs::set_permissions(&path, mode).map_err(write)?;
            }
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let size = entry.size();
                let written = self.write_file(&path, mode | 0o600, entry, size)?;
                if written != size {
                    return Err(UnpackError::Read(io::ErrorKind::UnexpectedEof.into()));
                }
            }
            tar::EntryType::Symlink | tar::EntryType::Link => {
                let header = entry.link_name_bytes().map(std::borrow::Cow::into_owned);
                let target = extended.link.or(header).unwrap_or_default();
                let target = Path::new(std::ffi::OsStr::from_bytes(&target));
                if target.as_os_str().is_empty() {
                    return Err(bad("link without target"));
                }
                if kind == tar::EntryType::Symlink {
                    remove(&path).map_err(write)?;
                    std::os::unix::fs::symlink(target, &path).map_err(write)?;
                } else {
                    let parts = self::parts(target)?;
                    let from = self.place(&parts)?;
                    let from = from.filter(|from| {
                        let found = from.symlink_metadata();
                        found.is_ok_and(|m| !m.is_dir() && !overlay::is_whiteout(&m))
                    });
                    let Some(from) = from else {
                        let below = self.copy_from_below(&parts, &path)?;
                        return if below {
                            self.written(path);
                            Ok(())
                        } else {
                            Err(bad("hard link to nothing"))
                        };
                    };
                    if from != path {
                        remove(&path).map_err(write)?;
                        fs::hard_link(&from, &path).map_err(write)?;
                    }
                }
            }
            tar::EntryType::Fifo if self.over.is_some() => {
                remove(&path).map_err(write)?;
                let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
                rustix::fs::mknodat(CWD, &path, rustix::fs::FileType::Fifo, mode, 0)
                    .map_err(|e| write(e.into()))?;
            }
            // Devices and pipes: no guest here can use them, and a container has its own.
            tar::EntryType::Char | tar::EntryType::Block | tar::EntryType::Fifo => return Ok(()),
            _ => return Err(bad("unsupported entry type")),
        }
        // A link has what its file has.
        if self.keeps && kind != tar::EntryType::Link {
            attributes.apply(&path).map_err(write)?;
        }
        self.written(path);
        Ok(())
    }

    /// Notes what the layer at hand wrote.
    fn written(&mut self, mut path: PathBuf) {
        if self.over.is_some() {
            return; // Nothing of another layer is in this directory.
        }
        // Its parents too: an opaque whiteout that follows must not take them.
        while path != self.root && self.fresh.insert(path.clone()) {
            path.pop();
        }
    }

    fn whiteout(
        &mut self,
        parts: &[std::ffi::OsString],
        hidden: &[u8],
        name: &Path,
    ) -> Result<(), UnpackError> {
        let opaque = hidden == b".wh..opq";
        let mut target = parts[..parts.len() - 1].to_vec();
        if !opaque {
            if hidden.is_empty() || hidden == b"." || hidden == b".." {
                return Err(escape(name));
            }
            target.push(std::ffi::OsStr::from_bytes(hidden).to_owned());
        }
        if self.over.is_some() {
            return self.hide(&target, opaque);
        }
        // Without its parent there is nothing to hide.
        let path = if opaque {
            self.resolve(&target, true)?
        } else {
            self.resolve(&target, false)?
        };
        let Some(path) = path else { return Ok(()) };
        let done = if opaque {
            self.clear(&path)
        } else {
            remove(&path)
        };
        done.map_err(|source| UnpackError::Write { path, source })
    }

    /// Removes what lower layers put into a directory.
    fn clear(&self, dir: &Path) -> io::Result<()> {
        if !dir.symlink_metadata().is_ok_and(|m| m.is_dir()) {
            return Ok(());
        }
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let path = entry.path();
            if !self.fresh.contains(&path) {
                remove(&path)?;
            } else if entry.file_type()?.is_dir() {
                self.clear(&path)?;
            }
        }
        Ok(())
    }

    fn write_file(
        &mut self,
        path: &Path,
        mode: u32,
        content: &mut dyn Read,
        size_max: u64,
    ) -> Result<u64, UnpackError> {
        let write = |source| UnpackError::Write {
            path: path.to_owned(),
            source,
        };
        let left = self.limits.bytes_max - self.bytes;
        remove(path).map_err(write)?;
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)
            .map_err(write)?;
        let mut content = content.take(size_max.min(left.saturating_add(1)));
        let mut buffer = vec![0; 64 << 10];
        let mut written = 0;
        loop {
            let read = content.read(&mut buffer).map_err(UnpackError::Read)?;
            if read == 0 {
                break;
            }
            written += read as u64;
            if written > left {
                return Err(UnpackError::TooManyBytes(self.limits.bytes_max));
            }
            io::Write::write_all(&mut file, &buffer[..read]).map_err(write)?;
        }
        self.bytes += written;
        Ok(written)
    }

    /// Where an entry goes: its parent resolved and made, its last part not followed.
    /// `None` when something on the way is no directory.
    fn place(&mut self, parts: &[std::ffi::OsString]) -> Result<Option<PathBuf>, UnpackError> {
        let Some((base, parents)) = parts.split_last() else {
            return Ok(None);
        };
        let dir = self.directory(parents, LINKS_MAX, true)?;
        Ok(dir.map(|dir| dir.join(base)))
    }

    /// The directory that a path of the image names, made where it is missing, or where only the
    /// layers below have it; links are taken as inside the root, and so many of them followed.
    /// `None` when there is something else, or nothing where none is to be made.
    fn directory(
        &mut self,
        parts: &[std::ffi::OsString],
        links: usize,
        make: bool,
    ) -> Result<Option<PathBuf>, UnpackError> {
        let mut real: Vec<std::ffi::OsString> = Vec::new();
        let mut dir = self.root.clone();
        for part in parts {
            if part == ".." {
                if real.pop().is_some() {
                    dir.pop();
                }
                continue;
            }
            real.push(part.clone());
            dir.push(part);
            let below;
            let link = match dir.symlink_metadata() {
                Ok(found) if found.is_dir() => continue,
                Ok(found) if found.is_symlink() => Some(dir.clone()),
                Ok(found) if overlay::is_whiteout(&found) && self.over.is_some() => None,
                Ok(_) => return Ok(None),
                Err(_) => {
                    below = self.below(&real);
                    match &below {
                        Some((path, found)) if found.is_symlink() => Some(path.clone()),
                        Some((path, found)) if found.is_dir() => {
                            self.make_dir_as(&dir, path, found)?;
                            continue;
                        }
                        Some(_) => return Ok(None),
                        None => None,
                    }
                }
            };
            let Some(link) = link else {
                if !make {
                    return Ok(None);
                }
                self.entries += 1;
                self.replace_by_dir(&dir)?;
                continue;
            };
            let (Ok(target), 1..) = (fs::read_link(&link), links) else {
                return Ok(None);
            };
            real.pop();
            if target.is_absolute() {
                real.clear();
            }
            for component in target.components() {
                match component {
                    Component::Normal(part) => real.push(part.to_owned()),
                    Component::ParentDir => real.push("..".into()),
                    Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
                }
            }
            if real.len() > DEPTH_MAX {
                return Ok(None);
            }
            // Wasm guests' files: a link must lead to what is there.
            let make = make && self.over.is_some();
            let Some(found) = self.directory(&real, links - 1, make)? else {
                return Ok(None);
            };
            let inside = found.strip_prefix(&self.root).unwrap_or(Path::new(""));
            real = inside.iter().map(ToOwned::to_owned).collect();
            dir = found;
        }
        Ok(Some(dir))
    }

    /// Puts an empty directory where something else or nothing was.
    fn replace_by_dir(&self, path: &Path) -> Result<(), UnpackError> {
        let write = |source| UnpackError::Write {
            path: path.to_owned(),
            source,
        };
        let hid = path
            .symlink_metadata()
            .is_ok_and(|m| overlay::is_whiteout(&m));
        remove(path).map_err(write)?;
        fs::create_dir(path).map_err(write)?;
        if hid && self.over.is_some() {
            overlay::make_opaque(path).map_err(write)?;
        }
        Ok(())
    }

    /// The file that a path of the image names, links taken as inside the root; `None` if it
    /// is not there.
    pub(crate) fn resolve(
        &self,
        parts: &[std::ffi::OsString],
        follow_last: bool,
    ) -> Result<Option<PathBuf>, UnpackError> {
        resolve_in(&self.root, parts, follow_last)
    }
}

/// See [`Unpacker::resolve`].
fn resolve_in(
    root: &Path,
    parts: &[std::ffi::OsString],
    follow_last: bool,
) -> Result<Option<PathBuf>, UnpackError> {
    let mut pending: Vec<std::ffi::OsString> = parts.iter().rev().cloned().collect();
    let mut path = root.to_owned();
    let mut links = 0;
    while let Some(part) = pending.pop() {
        if part == ".." {
            if path != root {
                path.pop();
            }
            continue;
        }
        path.push(&part);
        let Ok(metadata) = path.symlink_metadata() else {
            return Ok(None);
        };
        if !metadata.is_symlink() || (pending.is_empty() && !follow_last) {
            continue;
        }
        links += 1;
        if links > LINKS_MAX {
            return Ok(None);
        }
        let Ok(target) = fs::read_link(&path) else {
            return Ok(None);
        };
        path.pop();
        for component in target.components().rev() {
            match component {
                Component::Normal(part) => pending.push(part.to_owned()),
                Component::ParentDir => pending.push("..".into()),
                Component::RootDir => path = root.to_owned(),
                Component::CurDir | Component::Prefix(_) => {}
            }
        }
        if pending.len() > DEPTH_MAX {
            return Ok(None);
        }
    }
    Ok(Some(path))
}

/// The file that an absolute or relative path names inside an unpacked image, links included.
pub(crate) fn find(root: &Path, name: &str) -> Option<PathBuf> {
    let parts = parts(Path::new(name)).ok()?;
    let path = resolve_in(root, &parts, true).ok()??;
    path.is_file().then_some(path)
}

/// Long names and links that precede an entry.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    has_size: bool,
    pax: overlay::Pax,
}

impl Extended {
    fn read(&mut self, kind: tar::EntryType, entry: &mut impl Read) -> Result<(), UnpackError> {
        let mut bytes = Vec::new();
        entry
            .take(HEADER_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(UnpackError::Read)?;
        if bytes.len() as u64 > HEADER_BYTES_MAX {
            return Err(UnpackError::Entry {
                name: "extended header".to_owned(),
                detail: "too long",
            });
        }
        let until_nul = |mut bytes: Vec<u8>| {
            bytes.truncate(bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len()));
            bytes
        };
        match kind {
            tar::EntryType::GNULongName => self.path = Some(until_nul(bytes)),
            tar::EntryType::GNULongLink => self.link = Some(until_nul(bytes)),
            _ => {
                for extension in tar::PaxExtensions::new(&bytes) {
                    let extension = extension.map_err(UnpackError::Read)?;
                    match extension.key_bytes() {
                        b"path" => self.path = Some(extension.value_bytes().to_vec()),
                        b"linkpath" => self.link = Some(extension.value_bytes().to_vec()),
                        b"size" => self.has_size = true,
                        key => self.pax.take(key, extension.value_bytes()),
                    }
                }
            }
        }
        Ok(())
    }
}

/// A path's parts without leading slashes and dots; names that climb are refused.
fn parts(name: &Path) -> Result<Vec<std::ffi::OsString>, UnpackError> {
    let mut parts = Vec::new();
    for component in name.components() {
        match component {
            Component::Normal(part) if part.as_bytes().contains(&0) => return Err(escape(name)),
            Component::Normal(part) => parts.push(part.to_owned()),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(escape(name)),
        }
    }
    if parts.len() > DEPTH_MAX {
        return Err(escape(name));
    }
    Ok(parts)
}

fn escape(name: &Path) -> UnpackError {
    UnpackError::Escape(show(name))
}

fn show(name: &Path) -> String {
    name.to_string_lossy().chars().take(160).collect()
}

/// Removes whatever is there; nothing is as good.
fn remove(path: &Path) -> io::Result<()> {
    let done = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => return Ok(()),
    };
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests;

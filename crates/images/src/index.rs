//! `index.json` of the store: which name stands for which content.
//!
//! An OCI image layout's own file, so other tools read the store too. Every change reads it
//! again under a lock between processes and replaces it whole.

use crate::manifest::{Descriptor, OCI_INDEX};
use crate::{Reference, StoreError};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

const REF_NAME: &str = "org.opencontainers.image.ref.name";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    manifests: Vec<Descriptor>,
}

/// Names and what they stand for.
pub(crate) type Names = BTreeMap<Reference, Descriptor>;

/// The file, and what it held when it was last read.
#[derive(Debug)]
pub(crate) struct Index {
    path: PathBuf,
    /// Guards the copy in memory; the lock file is taken inside it.
    cached: Mutex<Cached>,
}

#[derive(Debug, Default)]
struct Cached {
    stamp: Option<(u64, i64, i64, u64)>,
    names: Names,
}

impl Index {
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            path: root.join("index.json"),
            cached: Mutex::default(),
        }
    }

    /// What a name stands for.
    pub(crate) fn get(&self, reference: &Reference) -> Result<Option<Descriptor>, StoreError> {
        let mut cached = self.cached.lock();
        self.refresh(&mut cached)?;
        if let Some(found) = cached.names.get(reference) {
            return Ok(Some(found.clone()));
        }
        // By digest, any name of the same repository will do.
        Ok(reference.digest().and_then(|digest| {
            cached
                .names
                .iter()
                .find(|(name, found)| found.digest == *digest && name.name() == reference.name())
                .map(|(_, found)| found.clone())
        }))
    }

    pub(crate) fn all(&self) -> Result<Names, StoreError> {
        let mut cached = self.cached.lock();
        self.refresh(&mut cached)?;
        Ok(cached.names.clone())
    }

    /// Changes the names; the file is replaced and on disk when this returns.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut Names) -> T) -> Result<T, StoreError> {
        let mut cached = self.cached.lock();
        let lock_path = self.path.with_extension("lock");
        let lock = private().open(&lock_path);
        let lock = lock.map_err(StoreError::new("open", &lock_path))?;
        lock.lock().map_err(StoreError::new("lock", &lock_path))?;
        self.refresh(&mut cached)?;
        let mut names = cached.names.clone();
        let out = change(&mut names);
        if names != cached.names {
            let document = Document {
                schema_version: 2,
                media_type: OCI_INDEX.to_owned(),
                manifests: names
                    .iter()
                    .map(|(reference, descriptor)| {
                        let mut descriptor = descriptor.clone();
                        descriptor
                            .annotations
                            .insert(REF_NAME.to_owned(), reference.to_string());
                        descriptor
                    })
                    .collect(),
            };
            let bytes = serde_json::to_vec(&document)
                .map_err(std::io::Error::from)
                .map_err(StoreError::new("encode", &self.path))?;
            replace(&self.path, &bytes)?;
            cached.stamp = stamp(&self.path);
            cached.names = names;
        }
        Ok(out)
    }

    fn refresh(&self, cached: &mut Cached) -> Result<(), StoreError> {
        let stamp = stamp(&self.path);
        if stamp == cached.stamp {
            return Ok(());
        }
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                *cached = Cached::default();
                return Ok(());
            }
            Err(error) => return Err(StoreError::new("read", &self.path)(error)),
        };
        let document: Document = serde_json::from_slice(&bytes)
            .map_err(std::io::Error::from)
            .map_err(StoreError::new("parse", &self.path))?;
        cached.names = document
            .manifests
            .into_iter()
            .filter_map(|mut descriptor| {
                let name = descriptor.annotations.remove(REF_NAME)?;
                Some((Reference::parse(&name).ok()?, descriptor))
            })
            .collect();
        cached.stamp = stamp;
        Ok(())
    }
}

/// Tells one version of a file from another: every change makes a new file.
fn stamp(path: &Path) -> Option<(u64, i64, i64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((
        metadata.ino(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.len(),
    ))
}

/// Options for a file of ours: made when missing, for us alone.
pub(crate) fn private() -> fs::OpenOptions {
    let mut options = File::options();
    options.read(true).write(true).create(true).mode(0o600);
    options
}

/// Writes a file whole: a crash leaves the old one or the new one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        // Made 0600 by the library.
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(StoreError::new("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;

    fn descriptor(text: &str) -> Descriptor {
        Descriptor {
            media_type: OCI_INDEX.to_owned(),
            digest: Digest::sha256(text.as_bytes()),
            size: 1,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn changes_are_seen_by_others_and_survive() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (Index::new(dir.path()), Index::new(dir.path()));
        let name = Reference::parse("r.io/a:1").unwrap();
        assert_eq!(other.get(&name).unwrap(), None);
        one.update(|names| names.insert(name.clone(), descriptor("x")))
            .unwrap();
        assert_eq!(other.get(&name).unwrap(), Some(descriptor("x")));
        let by_digest = name.at(descriptor("x").digest);
        assert_eq!(other.get(&by_digest).unwrap(), Some(descriptor("x")));
        let elsewhere = Reference::parse("r.io/b")
            .unwrap()
            .at(descriptor("x").digest);
        assert_eq!(other.get(&elsewhere).unwrap(), None);
        other.update(Names::clear).unwrap();
        assert_eq!(one.all().unwrap(), Names::new());
    }
}

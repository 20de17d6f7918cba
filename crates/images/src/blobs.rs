//! Blobs on disk: present ones, and partial ones that a later attempt goes on with.
//!
//! A blob appears under its name only when it is whole, verified and synced.

use crate::digest::Hasher;
use crate::index::{private, replace};
use crate::manifest::Descriptor;
use crate::{Digest, StoreError};
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Where blobs lie: `blobs/<algorithm>/<hex>` and `partial/<hex>`.
#[derive(Clone, Debug)]
pub(crate) struct Blobs {
    root: PathBuf,
}

impl Blobs {
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.root
            .join("blobs")
            .join(digest.algorithm())
            .join(digest.hex())
    }

    pub(crate) fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("partial").join(digest.hex())
    }

    /// Whether the blob is present in its full length.
    pub(crate) fn has(&self, blob: &Descriptor) -> bool {
        fs::metadata(self.path(&blob.digest)).is_ok_and(|metadata| metadata.len() == blob.size)
    }

    /// A small blob's bytes, if it is present.
    pub(crate) fn read(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(digest);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::new("read", path)(error)),
        }
    }

    /// Keeps bytes that were verified.
    pub(crate) fn write(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.path(digest);
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == bytes.len() as u64) {
            return Ok(());
        }
        replace(&path, bytes)
    }

    /// Opens the partial file of a blob, waiting for another process that is at it.
    /// Blocking. `None` when the blob is there after all.
    pub(crate) fn partial(&self, blob: &Descriptor) -> Result<Option<Partial>, StoreError> {
        let path = self.partial_path(&blob.digest);
        loop {
            let file = private()
                .open(&path)
                .map_err(StoreError::new("open", &path))?;
            file.lock().map_err(StoreError::new("lock", &path))?;
            if self.has(blob) {
                return Ok(None);
            }
            // While waiting, the file may have become the blob, or been given up.
            let mine = file
                .metadata()
                .map_err(StoreError::new("stat", &path))?
                .ino();
            if fs::metadata(&path).is_ok_and(|metadata| metadata.ino() == mine) {
                let mut partial = Partial {
                    file,
                    hasher: Hasher::new(&blob.digest),
                    len: 0,
                    old: false,
                    path,
                    target: self.path(&blob.digest),
                };
                partial.take_up(blob.size)?;
                return Ok(Some(partial));
            }
        }
    }
}

/// A blob being written, hashed as it grows.
pub(crate) struct Partial {
    file: File,
    hasher: Hasher,
    len: u64,
    /// Whether some of it is from an earlier attempt.
    old: bool,
    path: PathBuf,
    target: PathBuf,
}

/// Whether a finished blob is what it should be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finished {
    /// Verified, and in its place.
    Kept,
    /// What an earlier attempt left was bad: begin again.
    Again,
    /// The content is bad.
    Mismatch,
}

impl Partial {
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    fn take_up(&mut self, size: u64) -> Result<(), StoreError> {
        let len = self
            .file
            .metadata()
            .map_err(StoreError::new("stat", &self.path))?
            .len();
        if len > size {
            return self.truncate();
        }
        let mut buffer = vec![0; 256 << 10];
        loop {
            let read = self.file.read(&mut buffer);
            let read = read.map_err(StoreError::new("read", &self.path))?;
            if read == 0 {
                break;
            }
            self.hasher.update(&buffer[..read]);
            self.len += read as u64;
        }
        self.old = self.len > 0;
        Ok(())
    }

    /// Begins again at zero.
    pub(crate) fn truncate(&mut self) -> Result<(), StoreError> {
        self.hasher = match self.hasher {
            Hasher::Sha256(_) => Hasher::Sha256(Default::default()),
            Hasher::Sha512(_) => Hasher::Sha512(Default::default()),
        };
        self.len = 0;
        self.old = false;
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)).map(drop))
            .map_err(StoreError::new("truncate", &self.path))
    }

    /// Adds bytes. On a full disk the file is given up, or it would keep the disk full.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.file.write_all(bytes);
        if let Err(error) = written.map_err(StoreError::new("write", &self.path)) {
            if error.is_full() {
                let _ = fs::remove_file(&self.path);
            }
            return Err(error);
        }
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Verifies and publishes.
    pub(crate) fn finish(&mut self, wanted: &Digest) -> Result<Finished, StoreError> {
        if self.hasher.clone().finish() != *wanted {
            if self.old {
                self.truncate()?;
                return Ok(Finished::Again);
            }
            let removed = fs::remove_file(&self.path);
            removed.map_err(StoreError::new("remove", &self.path))?;
            return Ok(Finished::Mismatch);
        }
        let publish = || -> std::io::Result<()> {
            self.file.sync_all()?;
            fs::rename(&self.path, &self.target)?;
            let dir = self.target.parent().unwrap_or(Path::new("."));
            File::open(dir)?.sync_all()
        };
        publish().map_err(StoreError::new("write", &self.target))?;
        Ok(Finished::Kept)
    }
}

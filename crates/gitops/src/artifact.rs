//! The last good revision of a source, kept on disk as an archive.
//!
//! An archive is there whole or not at all: it is written beside its place and renamed. It is
//! read back only when its digest is that of the source's status.

use crate::tree::{TooLarge, Tree};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};

/// Most bytes of an archive.
const ARCHIVE_BYTES_MAX: u64 = 64 << 20;

/// A kept revision, as a source's status states it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Artifact {
    /// `main@sha1:…` or `latest@sha256:…`.
    pub revision: String,
    /// `sha256:…` of the archive.
    pub digest: String,
    /// Below the folder of archives.
    pub path: String,
    /// The same as a URL.
    pub url: String,
    /// When it was made.
    pub last_update_time: String,
    /// Bytes of the archive.
    pub size: u64,
}

/// Why an archive can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The disk.
    #[error("{what} {path}: {source}")]
    Disk {
        /// What was done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The archive is not the one that the status states.
    #[error("read {path}: its digest is not {digest}")]
    Digest {
        /// Which file.
        path: PathBuf,
        /// What it should be.
        digest: String,
    },
    /// It unpacks to too much.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// It has an entry that leads out of it.
    #[error("read archive: entry {path:?} lies outside of it")]
    Escape {
        /// The entry.
        path: String,
    },
}

/// A folder of archives.
#[derive(Clone, Debug)]
pub struct Archives {
    root: PathBuf,
}

impl Archives {
    /// In a folder that need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Writes a revision; older ones of the same source go.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn write(
        &self,
        (kind, namespace, name): (&str, &str, &str),
        revision: &str,
        tree: &Tree,
        now: jiff::Timestamp,
    ) -> Result<Artifact, ArtifactError> {
        let bytes = pack(tree);
        let digest = hex::encode(Sha256::digest(&bytes));
        let dir = self.dir(kind, namespace, name);
        let disk = |what, path: &Path| {
            let path = path.to_owned();
            move |source| ArtifactError::Disk { what, path, source }
        };
        std::fs::create_dir_all(&dir).map_err(disk("make folder", &dir))?;
        let file = dir.join(format!("{digest}.tar.gz"));
        let write = || -> std::io::Result<()> {
            let mut temporary = tempfile::Builder::new().prefix(".new").tempfile_in(&dir)?;
            temporary.write_all(&bytes)?;
            temporary.as_file().sync_all()?;
            temporary.persist(&file)?;
            Ok(())
        };
        write().map_err(disk("write", &file))?;
        if let Ok(entries) = std::fs::read_dir(&dir) {
            for entry in entries.flatten().filter(|e| e.path() != file) {
                // What stays is only garbage.
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(Artifact {
            revision: revision.to_owned(),
            digest: format!("sha256:{digest}"),
            path: format!("{}/{namespace}/{name}/{digest}.tar.gz", kind.to_lowercase()),
            url: format!("file://{}", file.display()),
            last_update_time: rfc3339(now),
            size: bytes.len() as u64,
        })
    }

    /// Whether an archive is still there.
    pub fn has(&self, artifact: &Artifact) -> bool {
        self.file(artifact).is_some_and(|file| file.is_file())
    }

    /// Reads an archive.
    ///
    /// # Errors
    /// When it is not there, not the one that is meant, or too large.
    pub fn read(&self, artifact: &Artifact) -> Result<Tree, ArtifactError> {
        let file = self.file(artifact).ok_or_else(|| ArtifactError::Escape {
            path: artifact.path.clone(),
        })?;
        let mut bytes = Vec::new();
        std::fs::File::open(&file)
            .and_then(|f| f.take(ARCHIVE_BYTES_MAX).read_to_end(&mut bytes))
            .map_err(|source| ArtifactError::Disk {
                what: "read",
                path: file.clone(),
                source,
            })?;
        if format!("sha256:{}", hex::encode(Sha256::digest(&bytes))) != artifact.digest {
            return Err(ArtifactError::Digest {
                path: file,
                digest: artifact.digest.clone(),
            });
        }
        unpack(&bytes[..], |_| true)
    }

    /// Forgets a source.
    pub fn remove(&self, kind: &str, namespace: &str, name: &str) {
        // It may never have had an archive.
        let _ = std::fs::remove_dir_all(self.dir(kind, namespace, name));
    }

    fn dir(&self, kind: &str, namespace: &str, name: &str) -> PathBuf {
        self.root
            .join(kind.to_lowercase())
            .join(namespace)
            .join(name)
    }

    fn file(&self, artifact: &Artifact) -> Option<PathBuf> {
        crate::tree::join("", &artifact.path).map(|path| self.root.join(path))
    }
}

/// Time as the API has it.
pub fn rfc3339(now: jiff::Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn pack(tree: &Tree) -> Vec<u8> {
    let encoder = GzEncoder::new(Vec::new(), Compression::default());
    let mut archive = tar::Builder::new(encoder);
    for (path, bytes) in tree.files() {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(0);
        // Writing to memory does not fail; a path that is too long gets an entry of its own.
        let _ = archive.append_data(&mut header, path, bytes);
    }
    archive
        .into_inner()
        .and_then(GzEncoder::finish)
        .unwrap_or_default()
}

/// Unpacks a gzipped archive; only plain files that `wanted` picks are kept.
///
/// # Errors
/// When it is malformed, leads out of itself or is too large.
pub fn unpack(bytes: impl Read, wanted: impl Fn(&str) -> bool) -> Result<Tree, ArtifactError> {
    let broken = |source| ArtifactError::Disk {
        what: "unpack",
        path: PathBuf::from("archive"),
        source,
    };
    let mut tree = Tree::default();
    let mut archive = tar::Archive::new(GzDecoder::new(bytes));
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = entry.path().map_err(broken)?.to_string_lossy().into_owned();
        let path = crate::tree::join("", &path).ok_or(ArtifactError::Escape { path })?;
        if !wanted(&path) {
            continue;
        }
        if entry.size() > crate::tree::BYTES_MAX as u64 {
            return Err(TooLarge.into());
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(broken)?;
        tree.insert(path, &content)?;
    }
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_read_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let archives = Archives::new(dir.path());
        let mut tree = Tree::default();
        tree.insert("a/b.yaml", b"x").unwrap();
        tree.insert(format!("{}/c", "long".repeat(40)), b"y")
            .unwrap();
        let now = jiff::Timestamp::UNIX_EPOCH;
        let source = ("GitRepository", "ns", "web");
        let old = archives.write(source, "main@sha1:1", &tree, now).unwrap();
        assert_eq!(archives.read(&old).unwrap(), tree);
        assert_eq!(old.last_update_time, "1970-01-01T00:00:00Z");
        assert_eq!(
            old,
            archives.write(source, "main@sha1:1", &tree, now).unwrap()
        );

        tree.insert("d", b"z").unwrap();
        let new = archives.write(source, "main@sha1:2", &tree, now).unwrap();
        assert!(!archives.has(&old) && archives.has(&new));

        let wrong = Artifact {
            digest: "sha256:0".into(),
            ..new.clone()
        };
        assert!(matches!(
            archives.read(&wrong),
            Err(ArtifactError::Digest { .. })
        ));
        let outside = Artifact {
            path: "../x".into(),
            ..new
        };
        assert!(matches!(
            archives.read(&outside),
            Err(ArtifactError::Escape { .. })
        ));
        archives.remove("GitRepository", "ns", "web");
        assert!(archives.read(&old).is_err());
    }
}

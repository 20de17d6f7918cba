//! The Services of the last run, on disk: a proxy that starts with no API server in reach
//! serves those until it is told better.
//!
//! One file, written whole beside the old one and renamed over it: a line with the format's
//! name, its version and the SHA-256 of the rest, then JSON. Whatever else a file holds, it
//! is refused as a whole. Not here: what Services mean, see `table`.

use client::Informer;
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// The first words of a file of this version; those of others are refused.
const HEAD: &str = "salp-services 1 ";
/// Changes gather this long before they are written together, so that endpoints that come
/// and go by the thousand cost one file a while.
const GATHER: Duration = Duration::from_secs(1);
/// A larger file is refused: no site has as many Services.
const FILE_MAX_BYTES: u64 = 512 << 20;

/// What is known of all Services.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Known {
    /// The Services.
    pub services: Vec<Arc<Service>>,
    /// Who is behind them.
    pub slices: Vec<Arc<EndpointSlice>>,
}

/// Why a checkpoint is not used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It can't be read.
    #[error("read checkpoint")]
    Read(#[source] io::Error),
    /// It is of another program or another version.
    #[error("read checkpoint: it does not begin as version 1 does")]
    Foreign,
    /// It is torn or was changed.
    #[error("read checkpoint: it does not have the checksum that it states")]
    Damaged,
    /// It is whole and yet not understood.
    #[error("decode checkpoint")]
    Decode(#[source] serde_json::Error),
}

/// As it is in the file.
///
/// # Errors
/// When an object can't be encoded, which none that came from an API server is.
pub fn encode(known: &Known) -> Result<Vec<u8>, serde_json::Error> {
    let json = serde_json::to_vec(known)?;
    let mut bytes = head(&json).into_bytes();
    bytes.extend_from_slice(&json);
    Ok(bytes)
}

/// From what is in a file.
///
/// # Errors
/// When it is anything but what [`encode`] makes.
pub fn decode(bytes: &[u8]) -> Result<Known, CheckpointError> {
    if !bytes.starts_with(HEAD.as_bytes()) {
        return Err(CheckpointError::Foreign);
    }
    let end = bytes.iter().position(|b| *b == b'\n');
    let (stated, json) = bytes.split_at(end.ok_or(CheckpointError::Damaged)? + 1);
    if stated != head(json).as_bytes() {
        return Err(CheckpointError::Damaged);
    }
    let json = std::str::from_utf8(json).map_err(|_| CheckpointError::Damaged)?;
    serde_json::from_str(json).map_err(CheckpointError::Decode)
}

fn head(json: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut head = HEAD.to_owned();
    for byte in Sha256::digest(json) {
        // Writing to a String can't fail.
        let _ = write!(head, "{byte:02x}");
    }
    head.push('\n');
    head
}

/// What the file holds; nothing if there is none, or it can't be used.
pub(crate) fn read(path: &Path) -> Option<Known> {
    match try_read(path) {
        Ok(known) => Some(known),
        Err(CheckpointError::Read(error)) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(path = %path.display(), %error, cause, "Services of the last run are left out");
            None
        }
    }
}

fn try_read(path: &Path) -> Result<Known, CheckpointError> {
    let size = std::fs::metadata(path)
        .map_err(CheckpointError::Read)?
        .len();
    if size > FILE_MAX_BYTES {
        return Err(CheckpointError::Foreign);
    }
    decode(&std::fs::read(path).map_err(CheckpointError::Read)?)
}

/// Writes the checkpoint whenever it is told that something changed.
#[derive(Clone)]
pub(crate) struct Writer {
    changed: Arc<Notify>,
}

impl Writer {
    /// Writes what these informers hold; what is due when the scope ends is written then.
    pub(crate) fn start(
        path: PathBuf,
        services: Informer<Service>,
        slices: Informer<EndpointSlice>,
        scope: &lifecycle::Scope,
    ) -> Self {
        let changed = Arc::new(Notify::new());
        let (told, token) = (changed.clone(), scope.token().clone());
        scope.spawn(async move {
            let mut last = Vec::new();
            loop {
                let first = token.run_until_cancelled(told.notified()).await;
                if first.is_none() && told.notified().now_or_never().is_none() {
                    return;
                }
                token.run_until_cancelled(tokio::time::sleep(GATHER)).await;
                let known = Known {
                    services: services.list(),
                    slices: slices.list(),
                };
                let path = path.clone();
                let written = tokio::task::spawn_blocking(move || write(&path, &known, last));
                // It ends early only when the process does.
                let Ok(digest) = written.await else { return };
                last = digest;
            }
        });
        Self { changed }
    }

    pub(crate) fn changed(&self) {
        self.changed.notify_one();
    }
}

/// Writes it unless `last` says that it is there already; what is there then.
fn write(path: &Path, known: &Known, last: Vec<u8>) -> Vec<u8> {
    let bytes = match encode(known) {
        Ok(bytes) => bytes,
        Err(error) => {
            tracing::warn!(%error, "Services are not kept for the next start");
            return last;
        }
    };
    let end = bytes.iter().position(|b| *b == b'\n').unwrap_or(0);
    if bytes[..end] == last {
        return last;
    }
    match replace(path, &bytes) {
        Ok(()) => bytes[..end].to_vec(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "Services are not kept for the next start");
            last
        }
    }
}

/// Whole or not at all, for this user alone.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn known() -> impl Strategy<Value = Known> {
        let service = ("[a-z]{1,8}", any::<u8>(), 1..=65_535i32).prop_map(|(name, host, port)| {
            let service = json!({"metadata": {"name": name, "namespace": "d"},
                "spec": {"clusterIP": format!("10.43.0.{host}"), "ports": [{"port": port}]}});
            serde_json::from_value(service)
                .map(Arc::new)
                .expect("Service")
        });
        let slice = ("[a-z]{1,8}", any::<u8>(), any::<bool>()).prop_map(|(name, host, ready)| {
            let slice = json!({"metadata": {"name": name, "namespace": "d"},
                "addressType": "IPv4", "ports": [{"port": 80}],
                "endpoints": [{"addresses": [format!("10.42.0.{host}")],
                    "conditions": {"ready": ready}}]});
            serde_json::from_value(slice).map(Arc::new).expect("slice")
        });
        let lists = (
            prop::collection::vec(service, 0..4),
            prop::collection::vec(slice, 0..4),
        );
        lists.prop_map(|(services, slices)| Known { services, slices })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(known in known()) {
            prop_assert_eq!(decode(&encode(&known).unwrap()).unwrap(), known);
        }

        /// Whatever a crash or a disk leaves of a file, it is the old one or refused.
        #[test]
        fn a_torn_or_changed_file_is_refused(
            known in known(),
            at in any::<prop::sample::Index>(),
            flip in 1..=255u8,
        ) {
            let whole = encode(&known).unwrap();
            let cut = &whole[..at.index(whole.len())];
            prop_assert!(decode(cut).is_err());
            let mut changed = whole.clone();
            let place = at.index(changed.len());
            changed[place] ^= flip;
            prop_assert!(decode(&changed).is_err());
        }

        #[test]
        fn a_foreign_file_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode(&bytes).is_err());
            let mut like = HEAD.as_bytes().to_vec();
            like.extend_from_slice(&bytes);
            prop_assert!(decode(&like).is_err());
        }
    }

    #[test]
    fn a_file_of_another_version_is_refused() {
        let mut bytes = encode(&Known::default()).unwrap();
        bytes["salp-services ".len()] = b'2';
        assert!(matches!(decode(&bytes), Err(CheckpointError::Foreign)));
    }

    #[test]
    fn what_is_there_is_not_written_again() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("services");
        assert_eq!(read(&path), None);
        let last = write(&path, &Known::default(), Vec::new());
        assert_eq!(read(&path), Some(Known::default()));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(&path, "torn").unwrap();
        assert_eq!(read(&path), None);
        assert_eq!(write(&path, &Known::default(), last.clone()), last);
        assert_eq!(read(&path), None, "it was not written again");
    }
}

//! Where revisions come from: Git repositories and OCI artifacts.
//!
//! Each fetches a whole revision into memory or fails; a broken link leaves what was kept
//! before as it is.

pub(crate) mod git;
pub(crate) mod http;
pub(crate) mod ignore;
pub(crate) mod oci;
pub(crate) mod verify;

use crate::artifact::ArtifactError;
use crate::cluster::explain;
use crate::status::reason;
use crate::tree::{TooLarge, Tree};
use std::time::Duration;

/// A revision as it was fetched.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// `main@sha1:…`.
    pub(crate) revision: String,
    pub(crate) tree: Tree,
    /// Whose signature it bears, when that was asked for.
    pub(crate) signed_by: Option<String>,
}

/// Why a source could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// A field of the spec that can't be followed.
    #[error("{0}")]
    Spec(String),
    /// The Secret is missing or holds nothing of use.
    #[error("get secret '{name}': {why}")]
    Secret { name: String, why: String },
    /// The repository could not be reached, or has no such revision.
    #[error("failed to checkout and determine revision: {0}")]
    Git(String),
    /// The registry could not be reached, or has no such artifact.
    #[error("failed to pull artifact: {0}")]
    Oci(String),
    /// A signature is missing or not valid.
    #[error("signature verification failed: {0}")]
    Signature(String),
    /// It took too long.
    #[error("fetch took longer than {}s", .0.as_secs())]
    TimedOut(Duration),
    /// The process is stopping.
    #[error("fetch was interrupted")]
    Interrupted,
    /// Too many files.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// It could not be kept.
    #[error("store artifact: {0}")]
    Keep(#[from] ArtifactError),
}

impl SourceError {
    /// The reason of the condition, if a better one than the kind's is known.
    pub(crate) fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Spec(_) => Some(reason::INVALID_SPEC),
            Self::Secret { .. } => Some(reason::AUTHENTICATION_FAILED),
            Self::Signature(_) => Some(reason::VERIFICATION),
            Self::Keep(_) | Self::TooLarge(_) => Some(reason::STORAGE),
            _ => None,
        }
    }

    /// Whether only a change of the spec helps.
    pub(crate) fn is_stalled(&self) -> bool {
        matches!(self, Self::Spec(_))
    }
}

/// The decoded data of a Secret.
pub(crate) async fn secret(
    cluster: &crate::cluster::Cluster,
    namespace: &str,
    name: &str,
) -> Result<std::collections::BTreeMap<String, Vec<u8>>, SourceError> {
    use base64::Engine as _;
    let fail = |why: String| SourceError::Secret {
        name: format!("{namespace}/{name}"),
        why,
    };
    let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
    let secret = cluster.read(&path).await.map_err(|e| fail(explain(&e)))?;
    let mut data = std::collections::BTreeMap::new();
    for (key, value) in secret["data"].as_object().into_iter().flatten() {
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(value.as_str().unwrap_or_default())
            .map_err(|e| fail(format!("key {key}: {e}")))?;
        data.insert(key.clone(), bytes);
    }
    Ok(data)
}

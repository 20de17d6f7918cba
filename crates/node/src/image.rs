//! Where images come from, as the agent sees it.

use crate::pod::PullPolicy;
use async_trait::async_trait;

/// An image in the content store, ready to run.
#[derive(Clone, Debug, PartialEq)]
pub struct PulledImage {
    /// `imageID` of container statuses.
    pub id: String,
    /// What is to run.
    pub artifact: runtime::Artifact,
    /// `ENTRYPOINT`.
    pub entrypoint: Vec<String>,
    /// `CMD`.
    pub cmd: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// `WORKDIR`.
    pub working_dir: Option<String>,
    /// Bytes as transferred.
    pub size_bytes: u64,
}

/// Why there is no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PullFailure {
    /// The waiting reason: `ErrImagePull`, `InvalidImageName`, `ErrImageNeverPull`.
    pub reason: &'static str,
    /// What a person reads.
    pub message: String,
    /// The registry could not be reached: what is in the store may serve.
    pub unreachable: bool,
}

/// The content store, or a fake in tests.
#[async_trait]
pub trait ImageSource: Send + Sync + 'static {
    /// The image as the store has it, without asking a registry.
    async fn local(&self, image: &str) -> Result<Option<PulledImage>, PullFailure>;

    /// Brings it from its registry; `secrets` are contents of `.dockerconfigjson`.
    async fn pull(&self, image: &str, secrets: &[Vec<u8>]) -> Result<PulledImage, PullFailure>;

    /// Names and sizes of what the store holds, for the node's status.
    async fn list(&self) -> Vec<(Vec<String>, u64)>;
}

/// What `obtain` did.
pub(crate) enum Obtained {
    /// It was there.
    Present(PulledImage),
    /// A registry was asked.
    Pulled(PulledImage),
}

/// The image by pull policy. `pulling` is called before a registry is asked.
pub(crate) async fn obtain(
    images: &dyn ImageSource,
    image: &str,
    policy: PullPolicy,
    secrets: &[Vec<u8>],
    pulling: impl FnOnce() + Send,
) -> Result<Obtained, PullFailure> {
    if policy != PullPolicy::Always
        && let Some(found) = images.local(image).await?
    {
        return Ok(Obtained::Present(found));
    }
    if policy == PullPolicy::Never {
        return Err(PullFailure {
            reason: "ErrImageNeverPull",
            message: format!("Container image {image:?} is not present with pull policy of Never"),
            unreachable: false,
        });
    }
    pulling();
    match images.pull(image, secrets).await {
        Ok(pulled) => Ok(Obtained::Pulled(pulled)),
        Err(failure) => Err(failure),
    }
}

//! Where images come from, as the agent sees it.

use crate::pod::PullPolicy;
use async_trait::async_trait;
pub use images::Wanted;
use images::{Auth, Image, ImageKind, ImageStore, Policy, PullError, PullOptions, Reference};

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
    /// `USER`.
    pub user: Option<String>,
    /// `STOPSIGNAL`.
    pub stop_signal: Option<String>,
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
    /// The image as the store has it, without asking a registry. Wanted for its files, its
    /// artifact is a container's of one layer.
    async fn local(&self, image: &str, wanted: Wanted) -> Result<Option<PulledImage>, PullFailure>;

    /// Whether a pod with these secrets may use what the store has of the image, without its
    /// registry being asked.
    async fn permits(&self, image: &str, secrets: &[Vec<u8>]) -> Result<bool, PullFailure>;

    /// Brings it from its registry; `secrets` are contents of `.dockerconfigjson`.
    async fn pull(
        &self,
        image: &str,
        wanted: Wanted,
        secrets: &[Vec<u8>],
    ) -> Result<PulledImage, PullFailure>;

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
    (image, wanted): (&str, Wanted),
    policy: PullPolicy,
    secrets: &[Vec<u8>],
    pulling: impl FnOnce() + Send,
) -> Result<Obtained, PullFailure> {
    if policy != PullPolicy::Always
        && let Some(found) = images.local(image, wanted).await?
    {
        if images.permits(image, secrets).await? {
            return Ok(Obtained::Present(found));
        }
        if policy == PullPolicy::Never {
            return Err(never(format!(
                "Container image {image:?} is present with pull policy of Never but does not \
                 have the proper credentials to access the image"
            )));
        }
    }
    if policy == PullPolicy::Never {
        return Err(never(format!(
            "Container image {image:?} is not present with pull policy of Never"
        )));
    }
    pulling();
    let pulled = images.pull(image, wanted, secrets).await?;
    Ok(Obtained::Pulled(pulled))
}

fn never(message: String) -> PullFailure {
    PullFailure {
        reason: "ErrImageNeverPull",
        message,
        unreachable: false,
    }
}

/// What the secrets hold; one that can't be read is passed over.
fn auths(image: &str, secrets: &[Vec<u8>]) -> Vec<Auth> {
    let mut auths = Vec::new();
    for secret in secrets {
        match Auth::from_docker_config_json(secret) {
            Ok(more) => auths.extend(more),
            // The registry may do without, or say itself what it lacks.
            Err(error) => tracing::warn!(image, %error, "pull secret not usable"),
        }
    }
    auths
}

#[async_trait]
impl ImageSource for ImageStore {
    async fn local(&self, image: &str, wanted: Wanted) -> Result<Option<PulledImage>, PullFailure> {
        let reference = Reference::parse(image).map_err(|e| failure(e.into()))?;
        let found = match wanted {
            Wanted::Run => self.get(&reference, None),
            Wanted::Files => self.get_files(&reference),
        };
        match found {
            Ok(found) => Ok(found.map(pulled)),
            Err(source) => Err(failure(PullError::Disk { reference, source })),
        }
    }

    async fn permits(&self, image: &str, secrets: &[Vec<u8>]) -> Result<bool, PullFailure> {
        let reference = Reference::parse(image).map_err(|e| failure(e.into()))?;
        ImageStore::permits(self, &reference, &auths(image, secrets))
            .map_err(|source| failure(PullError::Disk { reference, source }))
    }

    async fn pull(
        &self,
        image: &str,
        wanted: Wanted,
        secrets: &[Vec<u8>],
    ) -> Result<PulledImage, PullFailure> {
        let reference = Reference::parse(image).map_err(|e| failure(e.into()))?;
        let options = PullOptions {
            policy: Policy::Always,
            auths: auths(image, secrets),
            wanted,
            ..PullOptions::default()
        };
        // The inherent method of the same name.
        ImageStore::pull(self, &reference, options)
            .await
            .map(pulled)
            .map_err(failure)
    }

    async fn list(&self) -> Vec<(Vec<String>, u64)> {
        match ImageStore::list(self) {
            Ok(list) => list
                .into_iter()
                .map(|i| {
                    let by_digest = format!("{}@{}", i.reference.name(), i.digest);
                    (vec![by_digest, i.reference.to_string()], i.size_bytes)
                })
                .collect(),
            Err(error) => {
                tracing::debug!(%error, "images not listed");
                Vec::new()
            }
        }
    }
}

fn pulled(image: Image) -> PulledImage {
    let artifact = match &image.kind {
        ImageKind::Wasm {
            digest,
            path,
            rootfs,
            ..
        } => runtime::Artifact::Wasm {
            digest: digest.as_str().into(),
            path: path.clone(),
            rootfs: rootfs.clone(),
        },
        // Without layers where the node runs no containers: its runtime says so.
        ImageKind::Container { dirs, .. } => runtime::Artifact::Container {
            digest: image.manifest_digest.as_str().into(),
            layers: dirs.clone(),
        },
        ImageKind::Files { dir } => runtime::Artifact::Container {
            digest: image.digest.as_str().into(),
            layers: vec![dir.clone()],
        },
    };
    PulledImage {
        id: image.id(),
        artifact,
        entrypoint: image.config.entrypoint,
        cmd: image.config.cmd,
        env: image.config.env,
        working_dir: image.config.working_dir,
        user: image.config.user,
        stop_signal: image.config.stop_signal,
        size_bytes: image.size_bytes,
    }
}

fn failure(error: PullError) -> PullFailure {
    PullFailure {
        reason: error.reason(),
        message: error.report(),
        unreachable: matches!(error, PullError::Network { .. }),
    }
}

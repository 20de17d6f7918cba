//! The content store as the node agent sees it.

use async_trait::async_trait;
use images::{Auth, Image, ImageKind, ImageStore, Policy, PullError, PullOptions, Reference};
use node::{ImageSource, PullFailure, PulledImage};
use runtime::Artifact;

/// Answers the agent from an [`ImageStore`].
#[derive(Clone, Debug)]
pub struct Images(pub ImageStore);

#[async_trait]
impl ImageSource for Images {
    async fn local(&self, image: &str) -> Result<Option<PulledImage>, PullFailure> {
        let reference = parse(image)?;
        let store = self.0.clone();
        let found = tokio::task::spawn_blocking(move || store.get(&reference, None)).await;
        let found = found
            .map_err(|e| failure(e.to_string()))?
            .map_err(|e| failure(e.to_string()))?;
        found.map(|image| pulled(&image)).transpose()
    }

    async fn pull(&self, image: &str, secrets: &[Vec<u8>]) -> Result<PulledImage, PullFailure> {
        let reference = parse(image)?;
        let mut auths = Vec::new();
        for secret in secrets {
            // A secret that can't be read is as good as none: others may do.
            match Auth::from_docker_config_json(secret).or_else(|_| Auth::from_dockercfg(secret)) {
                Ok(more) => auths.extend(more),
                Err(error) => tracing::warn!(%error, image, "read image pull secret"),
            }
        }
        let options = PullOptions {
            policy: Policy::Always,
            auths,
            ..PullOptions::default()
        };
        match self.0.pull(&reference, options).await {
            Ok(image) => pulled(&image),
            Err(error) => Err(PullFailure {
                reason: error.reason(),
                unreachable: matches!(&error, PullError::Registry { source, .. } if source.is_network()),
                message: error.report(),
            }),
        }
    }

    async fn list(&self) -> Vec<(Vec<String>, u64)> {
        let store = self.0.clone();
        let listed = tokio::task::spawn_blocking(move || store.list()).await;
        match listed {
            Ok(Ok(images)) => images
                .into_iter()
                .map(|i| {
                    let by_digest = format!("{}@{}", i.reference.name(), i.digest);
                    (vec![by_digest, i.reference.to_string()], i.size_bytes)
                })
                .collect(),
            _ => Vec::new(),
        }
    }
}

fn parse(image: &str) -> Result<Reference, PullFailure> {
    Reference::parse(image).map_err(|error| PullFailure {
        reason: "InvalidImageName",
        message: format!("Failed to apply default image tag \"{image}\": {error}"),
        unreachable: false,
    })
}

fn failure(message: String) -> PullFailure {
    PullFailure {
        reason: "ErrImagePull",
        message,
        unreachable: false,
    }
}

fn pulled(image: &Image) -> Result<PulledImage, PullFailure> {
    let artifact = match &image.kind {
        ImageKind::Wasm {
            digest,
            path,
            rootfs,
            ..
        } => Artifact::Wasm {
            digest: digest.to_string(),
            path: path.clone(),
            rootfs: rootfs.clone(),
        },
        ImageKind::Container { .. } => Artifact::Container {
            digest: image.manifest_digest.to_string(),
            layers: Vec::new(),
        },
    };
    Ok(PulledImage {
        id: image.id(),
        artifact,
        entrypoint: image.config.entrypoint.clone(),
        cmd: image.config.cmd.clone(),
        env: image.config.env.clone(),
        working_dir: image.config.working_dir.clone(),
        size_bytes: image.size_bytes,
    })
}

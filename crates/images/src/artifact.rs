//! Artifacts that are no images: one layer of a manifest, straight into memory.
//!
//! Nothing is kept on disk; who asks says how much it takes at most. Mirrors are asked as for
//! images.

use crate::auth::Auth;
use crate::registry::{HostConfig, Registry, RegistryError, Scheme};
use crate::{Descriptor, Digest, Reference};
use bytes::Bytes;
use serde::Deserialize;

/// As much of a manifest as is read here.
#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Descriptor>,
}

impl Registry {
    /// The same registry client, but plain HTTP with the host that a name begins with.
    pub fn insecure(&self, name: &str) -> Self {
        let mut config = self.config().clone();
        let host = name.split('/').next().unwrap_or(name).to_owned();
        let own: &mut HostConfig = config.hosts.entry(host).or_default();
        own.scheme = Some(Scheme::Http);
        Self::new(config)
    }

    /// The digest that a reference stands for now.
    ///
    /// # Errors
    /// When no endpoint knows it or can be reached.
    pub async fn resolve(
        &self,
        reference: &Reference,
        auths: &[Auth],
    ) -> Result<Digest, RegistryError> {
        if let Some(digest) = reference.digest() {
            return Ok(digest.clone());
        }
        let mut failure = None;
        for endpoint in self.endpoints(reference)? {
            let session = self.connect(endpoint, reference, auths, "pull").await?;
            let found = match session.head_manifest(reference).await {
                Ok(Some(digest)) => return Ok(digest),
                Ok(None) => session.manifest(reference).await.map(|m| m.digest),
                Err(error) => Err(error),
            };
            match found {
                Ok(digest) => return Ok(digest),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| not_found(reference)))
    }

    /// All tags of a repository, as far as the registry lists them at once.
    ///
    /// # Errors
    /// When the registry can't be reached or lists none.
    pub async fn tags(
        &self,
        reference: &Reference,
        auths: &[Auth],
    ) -> Result<Vec<String>, RegistryError> {
        let endpoint = self.upstream(reference)?;
        let session = self.connect(endpoint, reference, auths, "pull").await?;
        session.tags().await
    }

    /// The first layer of a manifest, or the first of a media type, verified.
    ///
    /// # Errors
    /// When there is no such layer, it is larger than `bytes_max`, or no endpoint has it whole.
    pub async fn layer(
        &self,
        reference: &Reference,
        auths: &[Auth],
        media_type: Option<&str>,
        bytes_max: u64,
    ) -> Result<Bytes, RegistryError> {
        let mut failure = None;
        for endpoint in self.endpoints(reference)? {
            let session = self.connect(endpoint, reference, auths, "pull").await?;
            let whole = async {
                let answer = session.manifest(reference).await?;
                let manifest: Manifest = serde_json::from_slice(&answer.bytes)
                    .map_err(|_| session.protocol("manifest that is no JSON"))?;
                let layer = manifest
                    .layers
                    .iter()
                    .find(|layer| media_type.is_none_or(|wanted| layer.media_type == wanted))
                    .ok_or_else(|| RegistryError::NotFound {
                        what: match media_type {
                            Some(wanted) => format!("layer of type {wanted}"),
                            None => "layer".to_owned(),
                        },
                    })?;
                session.whole_blob(&layer.digest, bytes_max).await
            };
            match whole.await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| not_found(reference)))
    }
}

fn not_found(reference: &Reference) -> RegistryError {
    RegistryError::NotFound {
        what: reference.to_string(),
    }
}

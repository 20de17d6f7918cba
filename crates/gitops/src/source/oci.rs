//! OCI artifacts: the layer of an artifact that holds files.

use super::git::greatest_version;
use super::ignore::{self, Rules};
use super::{Fetched, SourceError, secret};
use crate::artifact::unpack;
use crate::controllers::Context;
use crate::kinds::OciRepositorySpec;
use client::ObjectKey;
use images::{Auth, Digest, Reference};

/// Most bytes of a layer as it is sent.
const LAYER_BYTES_MAX: u64 = 64 << 20;

/// The artifact that the spec names, or none when it is the known one.
pub(crate) async fn fetch(
    context: &Context,
    key: &ObjectKey,
    spec: &OciRepositorySpec,
    known: Option<&str>,
) -> Result<Option<Fetched>, SourceError> {
    if spec.verify.is_some() {
        return Err(SourceError::Spec(
            "use spec.verify: not supported by this site; leave it out".to_owned(),
        ));
    }
    let selector = spec.layer_selector.clone().unwrap_or_default();
    if selector
        .operation
        .as_deref()
        .is_some_and(|o| o != "extract")
    {
        return Err(SourceError::Spec(
            "use spec.layerSelector.operation: only extract is supported".to_owned(),
        ));
    }
    let name = spec.url.strip_prefix("oci://").ok_or_else(|| {
        SourceError::Spec(format!("use url {}: it must begin with oci://", spec.url))
    })?;
    let auths = match &spec.secret_ref {
        Some(named) => {
            let data = secret(&context.cluster, &key.namespace, &named.name).await?;
            let bytes = data
                .get(".dockerconfigjson")
                .ok_or_else(|| SourceError::Secret {
                    name: format!("{}/{}", key.namespace, named.name),
                    why: "it has no key .dockerconfigjson".to_owned(),
                })?;
            Auth::from_docker_config_json(bytes).map_err(|e| SourceError::Secret {
                name: format!("{}/{}", key.namespace, named.name),
                why: e.to_string(),
            })?
        }
        None => Vec::new(),
    };
    let failed = |error: images::RegistryError| SourceError::Oci(client::queue::chain(&error));
    let registry = if spec.insecure {
        context.registry.insecure(name)
    } else {
        context.registry.clone()
    };
    let (reference, tag) = wanted(&registry, name, spec, &auths).await?;
    let digest = registry.resolve(&reference, &auths).await.map_err(failed)?;
    let revision = match &tag {
        Some(tag) => format!("{tag}@{digest}"),
        None => digest.to_string(),
    };
    if known == Some(revision.as_str()) {
        return Ok(None);
    }
    let layer = registry
        .layer(
            &reference.at(digest),
            &auths,
            selector.media_type.as_deref(),
            LAYER_BYTES_MAX,
        )
        .await
        .map_err(failed)?;
    let rules = spec.ignore.clone();
    let tree = tokio::task::spawn_blocking(move || {
        let mut rules = Rules::new(rules.as_deref());
        let all = unpack(&layer[..], |_| true)?;
        if let Some(more) = all.get(ignore::FILE) {
            rules.add(&String::from_utf8_lossy(more));
        }
        let mut tree = crate::tree::Tree::default();
        for (path, bytes) in all.files().filter(|(path, _)| !rules.leave_out(path)) {
            tree.insert(path, bytes)?;
        }
        Ok::<_, SourceError>(tree)
    })
    .await
    .map_err(|_| SourceError::Interrupted)??;
    Ok(Some(Fetched {
        revision,
        tree,
        signed_by: None,
    }))
}

/// The reference, and the tag that it was found by.
async fn wanted(
    registry: &images::Registry,
    name: &str,
    spec: &OciRepositorySpec,
    auths: &[Auth],
) -> Result<(Reference, Option<String>), SourceError> {
    let parse = |text: &str| Reference::parse(text).map_err(|e| SourceError::Spec(e.to_string()));
    let chosen = spec.reference.clone().unwrap_or_default();
    let set = |field: Option<String>| field.filter(|f| !f.is_empty());
    if let Some(digest) = set(chosen.digest) {
        let digest: Digest = digest
            .parse()
            .map_err(|e: images::InvalidDigest| SourceError::Spec(e.to_string()))?;
        return Ok((parse(name)?.at(digest), None));
    }
    let tag = match (set(chosen.semver), set(chosen.tag)) {
        (Some(range), _) => {
            let tags = registry.tags(&parse(name)?, auths).await;
            let tags = tags.map_err(|e| SourceError::Oci(client::queue::chain(&e)))?;
            greatest_version(&range, tags.iter().map(String::as_str))
                .map_err(SourceError::Spec)?
                .ok_or_else(|| SourceError::Oci(format!("no match found for semver: {range}")))?
        }
        (None, Some(tag)) => tag,
        (None, None) => "latest".to_owned(),
    };
    Ok((parse(&format!("{name}:{tag}"))?, Some(tag)))
}

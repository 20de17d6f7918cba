//! Has the API server serve imports and exports.

use crate::kinds::{ServiceExport, ServiceImport};
use crate::plan::OWNER;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams};
use serde_json::Value;
use std::time::Duration;

/// How often it is asked whether the kinds are served, and how long.
const ESTABLISHED_EVERY: Duration = Duration::from_millis(50);
const ESTABLISHED_WITHIN: Duration = Duration::from_secs(30);

/// Why the kinds are not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetUpError {
    #[error("read the built-in definition of an import or export")]
    Definition(#[source] serde_saphyr::Error),
    #[error("apply the definitions of imports and exports")]
    Apply(#[source] kube::Error),
    #[error("serve imports and exports: the API server does not after {ESTABLISHED_WITHIN:?}")]
    NotServed,
}

/// Has the API server serve the kinds.
///
/// # Errors
/// When it refuses, or does not serve them in time.
pub(crate) async fn set_up(client: &kube::Client) -> Result<(), SetUpError> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for text in crate::crds() {
        let definition: Result<Value, _> = serde_saphyr::from_str(text);
        let definition = definition.map_err(SetUpError::Definition)?;
        let name = definition["metadata"]["name"].as_str().unwrap_or_default();
        let params = PatchParams::apply(OWNER).force();
        let patch = Patch::Apply(&definition);
        let applied = definitions.patch(name, &params, &patch);
        applied.await.map_err(SetUpError::Apply)?;
    }
    let served = async {
        loop {
            let exports: Api<ServiceExport> = Api::all(client.clone());
            let imports: Api<ServiceImport> = Api::all(client.clone());
            let one = kube::api::ListParams::default().limit(1);
            if exports.list(&one).await.is_ok() && imports.list(&one).await.is_ok() {
                return;
            }
            tokio::time::sleep(ESTABLISHED_EVERY).await;
        }
    };
    tokio::time::timeout(ESTABLISHED_WITHIN, served)
        .await
        .map_err(|_| SetUpError::NotServed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_can_be_read() {
        for text in crate::crds() {
            let definition: CustomResourceDefinition = serde_saphyr::from_str(text).unwrap();
            assert_eq!(definition.spec.group, crate::GROUP);
            assert_eq!(definition.spec.versions[0].name, crate::VERSION);
        }
    }
}

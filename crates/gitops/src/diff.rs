//! What a folder would change if it were a Kustomization's next revision.

use crate::apply::{ApplyError, Owner, Request, prepare};
use crate::cluster::{Cluster, explain};
use crate::kinds::Kustomization;
use crate::plan::Action;
use crate::revision::{RevisionError, objects};
use crate::tree::Tree;
use crate::variables::{VariablesError, variables};

/// Why it can't be told.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// The Kustomization is not there or can't be read.
    #[error("get Kustomization {name}: {why}")]
    Get {
        /// Which.
        name: String,
        /// Why.
        why: String,
    },
    /// Its variables.
    #[error(transparent)]
    Variables(#[from] VariablesError),
    /// The folder does not build.
    #[error(transparent)]
    Build(#[from] RevisionError),
    /// The server refuses an object.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// Actions that the folder would lead to. Changes nothing.
///
/// # Errors
/// [`DiffError`].
pub async fn diff(
    client: kube::Client,
    (namespace, name): (&str, &str),
    tree: &Tree,
) -> Result<Vec<Action>, DiffError> {
    let cluster = Cluster::new(client);
    let fail = |why: String| DiffError::Get {
        name: format!("{namespace}/{name}"),
        why,
    };
    let path = format!(
        "/apis/kustomize.toolkit.fluxcd.io/v1/namespaces/{namespace}/kustomizations/{name}"
    );
    let found = cluster.read(&path).await.map_err(|e| fail(explain(&e)))?;
    let object: Kustomization = serde_json::from_value(found).map_err(|e| fail(e.to_string()))?;
    let variables = variables(&cluster, namespace, &object.spec).await?;
    let inventory = object.status["inventory"]["entries"].clone();
    let request = Request {
        owner: Owner {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
        },
        objects: objects(tree, &object.spec, variables.as_ref())?,
        namespace: "default".to_owned(),
        inventory: serde_json::from_value(inventory).unwrap_or_default(),
        prune: object.spec.prune,
        force: object.spec.force,
    };
    Ok(prepare(&cluster, request).await?.actions().to_vec())
}

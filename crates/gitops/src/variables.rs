//! The variables of a Kustomization's `postBuild`, from where they are stated.

use crate::cluster::{Cluster, explain};
use crate::kinds::{KustomizationSpec, SubstituteReference};
use base64::Engine as _;
use std::collections::BTreeMap;

/// A ConfigMap or Secret that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("substitute from {kind} '{name}' error: {why}")]
pub struct VariablesError {
    kind: String,
    name: String,
    why: String,
}

/// All variables; none when there is no `postBuild`, so that nothing is substituted.
///
/// # Errors
/// When one of those that are named is missing or not text.
pub async fn variables(
    cluster: &Cluster,
    namespace: &str,
    spec: &KustomizationSpec,
) -> Result<Option<BTreeMap<String, String>>, VariablesError> {
    let Some(post_build) = &spec.post_build else {
        return Ok(None);
    };
    let mut all = BTreeMap::new();
    for from in &post_build.substitute_from {
        all.extend(variables_of(cluster, namespace, from).await?);
    }
    all.extend(post_build.substitute.clone());
    Ok(Some(all))
}

async fn variables_of(
    cluster: &Cluster,
    namespace: &str,
    from: &SubstituteReference,
) -> Result<BTreeMap<String, String>, VariablesError> {
    let fail = |why: String| VariablesError {
        kind: from.kind.clone(),
        name: format!("{namespace}/{}", from.name),
        why,
    };
    let plural = match from.kind.as_str() {
        "ConfigMap" => "configmaps",
        "Secret" => "secrets",
        other => return Err(fail(format!("kind {other} holds no variables"))),
    };
    let path = format!("/api/v1/namespaces/{namespace}/{plural}/{}", from.name);
    let found = match cluster.read(&path).await {
        Ok(found) => found,
        Err(error) if from.optional && client::is_not_found(&error) => {
            return Ok(BTreeMap::new());
        }
        Err(error) => return Err(fail(explain(&error))),
    };
    let mut variables = BTreeMap::new();
    for (name, value) in found["data"].as_object().into_iter().flatten() {
        let text = value.as_str().unwrap_or_default();
        let text = if plural == "secrets" {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text);
            let bytes = bytes.map_err(|e| fail(format!("key {name}: {e}")))?;
            String::from_utf8(bytes).map_err(|_| fail(format!("key {name} is no text")))?
        } else {
            text.to_owned()
        };
        variables.insert(name.clone(), text);
    }
    Ok(variables)
}

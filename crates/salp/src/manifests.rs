//! `salp up -f`: applies manifests by server-side apply and finds the URLs that answer.

use crate::api_access::Access;
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Field manager of what is applied.
const FIELD_MANAGER: &str = "salp-up";

/// An object and where it was applied.
#[derive(Debug)]
pub struct Applied {
    pub kind: String,
    pub name: String,
    pub path: String,
}

/// Reads every YAML and JSON document of files and directories (not recursive, as `kubectl -f`).
pub fn read(paths: &[PathBuf]) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    for path in paths {
        let mut files = Vec::new();
        if path.is_dir() {
            for entry in
                std::fs::read_dir(path).with_context(|| format!("read {}", path.display()))?
            {
                let file = entry
                    .with_context(|| format!("read {}", path.display()))?
                    .path();
                let wanted = file
                    .extension()
                    .is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
                if file.is_file() && wanted {
                    files.push(file);
                }
            }
            files.sort();
            if files.is_empty() {
                bail!(
                    "read {}: no .yaml, .yml or .json file there",
                    path.display()
                );
            }
        } else {
            files.push(path.clone());
        }
        for file in files {
            read_file(&file, &mut objects)?;
        }
    }
    Ok(objects)
}

fn read_file(file: &Path, objects: &mut Vec<Value>) -> Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(&text).with_context(|| format!("read {}", file.display()))?;
    for document in documents {
        if document.is_null() {
            continue;
        }
        let kind = document["kind"].as_str().unwrap_or_default();
        if kind.is_empty() || document["apiVersion"].as_str().is_none_or(str::is_empty) {
            bail!(
                "read {}: a document without apiVersion and kind is no Kubernetes object",
                file.display()
            );
        }
        if kind.ends_with("List") && document["items"].is_array() {
            objects.extend(document["items"].as_array().into_iter().flatten().cloned());
        } else {
            objects.push(document);
        }
    }
    Ok(())
}

/// Wasm files that lie beside manifests and the images they stand for: `hello.wasm` in a
/// directory of manifests is the image whose repository ends in `hello`. So an example runs
/// without a registry.
pub fn images_beside(paths: &[PathBuf], objects: &[Value]) -> Result<Vec<(PathBuf, String)>> {
    let mut images = std::collections::BTreeSet::new();
    objects
        .iter()
        .for_each(|object| collect_images(object, &mut images));
    let mut found = Vec::new();
    for dir in paths.iter().filter(|p| p.is_dir()) {
        for image in &images {
            let repository = image.split('@').next().unwrap_or(image);
            let last = repository.rsplit('/').next().unwrap_or(repository);
            let stem = last.split(':').next().unwrap_or(last);
            let file = dir.join(format!("{stem}.wasm"));
            if !image.contains('@') && file.is_file() {
                found.push((file, image.clone()));
            }
        }
    }
    Ok(found)
}

/// Every `image:` inside `containers` and `initContainers`, at any depth.
fn collect_images(value: &Value, images: &mut std::collections::BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                if key == "containers" || key == "initContainers" {
                    let list = inner.as_array().into_iter().flatten();
                    images.extend(list.filter_map(|c| c["image"].as_str()).map(str::to_owned));
                } else {
                    collect_images(inner, images);
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|inner| collect_images(inner, images)),
        _ => {}
    }
}

/// Applies objects in order, namespaces and their like first.
pub async fn apply(access: &Access, mut objects: Vec<Value>) -> Result<Vec<Applied>> {
    objects.sort_by_key(|o| match o["kind"].as_str() {
        Some("Namespace" | "CustomResourceDefinition") => 0,
        Some("ServiceAccount" | "ConfigMap" | "Secret" | "PersistentVolumeClaim") => 1,
        _ => 2,
    });
    let mut plurals = BTreeMap::new();
    let mut applied = Vec::new();
    for object in objects {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        let api_version = object["apiVersion"].as_str().unwrap_or_default().to_owned();
        let name = object["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let base = if api_version.contains('/') {
            format!("/apis/{api_version}")
        } else {
            format!("/api/{api_version}")
        };
        if !plurals.contains_key(&base) {
            let list = access
                .get(&base)
                .await
                .with_context(|| format!("apply {kind} {name}"))?;
            plurals.insert(base.clone(), list);
        }
        let resource = plurals[&base]["resources"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|r| {
                r["kind"] == kind.as_str() && !r["name"].as_str().unwrap_or("/").contains('/')
            })
            .with_context(|| {
                format!("apply {kind} {name}: the server has no such kind in {api_version}")
            })?;
        let plural = resource["name"].as_str().unwrap_or_default();
        let path = if resource["namespaced"].as_bool().unwrap_or(false) {
            let namespace = object["metadata"]["namespace"]
                .as_str()
                .unwrap_or(&access.namespace);
            format!("{base}/namespaces/{namespace}/{plural}/{name}")
        } else {
            format!("{base}/{plural}/{name}")
        };
        let body = serde_json::to_vec(&object).context("encode object")?;
        access
            .send(
                "PATCH",
                &format!("{path}?fieldManager={FIELD_MANAGER}&force=true&fieldValidation=Strict"),
                "application/apply-patch+yaml",
                body,
            )
            .await
            .with_context(|| format!("apply {kind} {name}"))?;
        applied.push(Applied { kind, name, path });
    }
    Ok(applied)
}

/// URLs of the services among what was applied: node port first, else cluster address.
pub async fn urls(access: &Access, applied: &[Applied], node_address: &str) -> Result<Vec<String>> {
    let mut urls = Vec::new();
    for service in applied.iter().filter(|a| a.kind == "Service") {
        let object = access.get(&service.path).await?;
        for port in object["spec"]["ports"].as_array().into_iter().flatten() {
            if port["protocol"].as_str().is_some_and(|p| p != "TCP") {
                continue;
            }
            if let Some(n) = port["nodePort"].as_u64() {
                urls.push(format!("http://{node_address}:{n}/"));
            } else if let (Some(ip), Some(n)) =
                (object["spec"]["clusterIP"].as_str(), port["port"].as_u64())
                && ip != "None"
            {
                urls.push(format!("http://{ip}:{n}/"));
            }
        }
    }
    Ok(urls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_documents_and_lists_and_refuses_others() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.yaml");
        std::fs::write(
            &file,
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: b}}\n",
        )
        .unwrap();
        let objects = read(&[dir.path().to_owned()]).unwrap();
        let kinds: Vec<_> = objects
            .iter()
            .map(|o| o["kind"].as_str().unwrap())
            .collect();
        assert_eq!(kinds, ["Namespace", "ConfigMap"]);
        std::fs::write(&file, "hello: world\n").unwrap();
        assert!(
            read(&[file])
                .unwrap_err()
                .to_string()
                .contains("apiVersion")
        );
    }
}

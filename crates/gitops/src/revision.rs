//! From the files of a source and a Kustomization's spec to the objects to apply.
//!
//! A folder with a kustomization file is built as it says; any other is taken as all of its
//! YAML files. What the spec adds comes on top. Pure.

use crate::kinds::KustomizationSpec;
use crate::kustomize::{self, BuildError, file_of};
use crate::substitute::{SubstituteError, substitute};
use crate::tree::{self, Tree};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Why a revision can't be turned into objects.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevisionError {
    /// The spec's path is not in the source.
    #[error("find path {path:?}: the source has no such folder")]
    Path {
        /// The path.
        path: String,
    },
    /// A field of the spec that is known but not done.
    #[error("use spec.{field}: not supported by this site; leave it out")]
    Unsupported {
        /// The field.
        field: &'static str,
    },
    /// The build failed.
    #[error("build failed: {0}")]
    Build(#[from] BuildError),
    /// Variables could not be put in.
    #[error("post build failed for {object}: {source}")]
    Substitute {
        /// Kind and name.
        object: String,
        /// Why.
        source: SubstituteError,
    },
}

/// Objects of a Kustomization; `variables` are those of `postBuild`, when it has it.
///
/// # Errors
/// [`RevisionError`].
pub fn objects(
    tree: &Tree,
    spec: &KustomizationSpec,
    variables: Option<&BTreeMap<String, String>>,
) -> Result<Vec<Value>, RevisionError> {
    for (field, set) in [
        ("decryption", spec.decryption.is_some()),
        ("kubeConfig", spec.kube_config.is_some()),
        ("healthCheckExprs", !spec.health_check_exprs.is_empty()),
    ] {
        if set {
            return Err(RevisionError::Unsupported { field });
        }
    }
    let no_path = || RevisionError::Path {
        path: spec.path.clone(),
    };
    let dir = tree::join("", spec.path.trim_start_matches('/')).ok_or_else(no_path)?;
    if !tree.is_dir(&dir) {
        return Err(no_path());
    }
    let file = overlay(tree, &dir, spec)?;
    let mut objects = kustomize::build_with(tree, &dir, Some(&file))?;
    if let Some(common) = &spec.common_metadata {
        for object in &mut objects {
            put(object, "labels", &common.labels);
            put(object, "annotations", &common.annotations);
        }
    }
    if let Some(variables) = variables {
        for object in &mut objects {
            let name = crate::objects::ObjectId::of(object).to_string();
            substitute(object, variables).map_err(|source| RevisionError::Substitute {
                object: name,
                source,
            })?;
        }
    }
    Ok(objects)
}

/// The folder's kustomization, or one of all its files, with what the spec adds.
fn overlay(tree: &Tree, dir: &str, spec: &KustomizationSpec) -> Result<Value, BuildError> {
    let mut file = match file_of(tree, dir) {
        Some(path) => {
            let mut all = kustomize::documents(&path, tree.get(&path).unwrap_or_default())?;
            match (all.pop(), all.is_empty()) {
                (Some(Value::Object(map)), true) => map,
                _ => {
                    return Err(BuildError::Read {
                        path,
                        why: "it is no single map".to_owned(),
                    });
                }
            }
        }
        None => generated(tree, dir),
    };
    let mut set = |field: &str, value: &Option<String>| {
        if let Some(value) = value.as_deref().filter(|v| !v.is_empty()) {
            file.insert(field.to_owned(), json!(value));
        }
    };
    set("namespace", &spec.target_namespace);
    set("namePrefix", &spec.name_prefix);
    set("nameSuffix", &spec.name_suffix);
    let mut append = |field: &str, more: Value| {
        let list = file
            .entry(field.to_owned())
            .or_insert_with(|| Value::Array(Vec::new()));
        if list.is_null() {
            *list = Value::Array(Vec::new());
        }
        if let (Value::Array(list), Value::Array(more)) = (list, more) {
            list.extend(more);
        }
    };
    append("patches", json!(spec.patches));
    append("components", json!(spec.components));
    if !spec.images.is_empty() {
        // An image that the spec names is no longer the file's.
        let names: BTreeSet<&str> = spec.images.iter().map(|i| i.name.as_str()).collect();
        if let Some(Value::Array(list)) = file.get_mut("images") {
            list.retain(|i| i["name"].as_str().is_none_or(|n| !names.contains(n)));
        }
        let list = file
            .entry("images".to_owned())
            .or_insert_with(|| Value::Array(Vec::new()));
        if let (Value::Array(list), Value::Array(more)) = (list, json!(spec.images)) {
            list.extend(more);
        }
    }
    Ok(Value::Object(file))
}

/// All YAML files below a folder; a folder with a kustomization of its own stands as that.
fn generated(tree: &Tree, dir: &str) -> Map<String, Value> {
    let mut resources = BTreeSet::new();
    let below = if dir.is_empty() { 0 } else { dir.len() + 1 };
    for (path, _) in tree.below(dir) {
        let relative = &path[below..];
        let built = relative
            .match_indices('/')
            .map(|(at, _)| &relative[..at])
            .find(|inner| tree::join(dir, inner).is_some_and(|d| file_of(tree, &d).is_some()));
        if let Some(inner) = built {
            resources.insert(inner.to_owned());
        } else if is_manifest(relative) {
            resources.insert(relative.to_owned());
        }
    }
    let mut file = Map::new();
    file.insert("resources".to_owned(), json!(resources));
    file
}

fn is_manifest(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    !name.starts_with('.')
        && [".yaml", ".yml", ".json"]
            .iter()
            .any(|ending| name.ends_with(ending))
}

fn put(object: &mut Value, field: &str, pairs: &BTreeMap<String, String>) {
    if pairs.is_empty() {
        return;
    }
    let at = &mut object["metadata"][field];
    if !at.is_object() {
        *at = Value::Object(Map::new());
    }
    for (key, value) in pairs {
        at[key] = json!(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn tree(files: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::default();
        for (path, text) in files {
            tree.insert(*path, text.as_bytes()).unwrap();
        }
        tree
    }

    fn map(name: &str) -> String {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{k: '${{v}}'}}\n"
        )
    }

    fn spec(value: Value) -> KustomizationSpec {
        serde_json::from_value(value).unwrap()
    }

    fn names(objects: &[Value]) -> Vec<&str> {
        objects
            .iter()
            .filter_map(|o| o["metadata"]["name"].as_str())
            .collect()
    }

    #[test]
    fn a_plain_folder_is_all_of_its_files() {
        let tree = tree(&[
            ("x.yaml", &map("outside")),
            ("a/m.yaml", &map("m")),
            ("a/.hidden.yaml", &map("hidden")),
            ("a/sub/n.yml", &map("nn")),
            ("a/readme.md", "# no"),
            (
                "a/k/kustomization.yaml",
                "resources: [o.yaml]\nnamePrefix: k-",
            ),
            ("a/k/o.yaml", &map("o")),
            ("a/k/left-out.yaml", &map("left-out")),
        ]);
        let built = objects(&tree, &spec(json!({"path": "./a"})), None).unwrap();
        assert_eq!(names(&built), ["k-o", "m", "nn"]);
        let gone = objects(&tree, &spec(json!({"path": "./b"})), None).unwrap_err();
        assert_eq!(
            gone.to_string(),
            r#"find path "./b": the source has no such folder"#
        );
        assert!(objects(&tree, &spec(json!({"path": "../a"})), None).is_err());
    }

    #[test]
    fn what_the_spec_says_comes_on_top() {
        let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {template: {spec: {containers: [{name: c, image: 'i:1'}]}}}\n";
        let tree = tree(&[
            (
                "kustomization.yaml",
                "resources: [d.yaml, m.yaml]\nnamePrefix: file-\nimages: [{name: i, newTag: '2'}]",
            ),
            ("d.yaml", deployment),
            ("m.yaml", &map("m")),
        ]);
        let spec = spec(json!({
            "targetNamespace": "ns", "nameSuffix": "-s",
            "commonMetadata": {"labels": {"l": "v"}, "annotations": {"a": "v"}},
            "images": [{"name": "i", "newTag": "3"}],
            "patches": [{"patch": "- {op: add, path: /spec/paused, value: true}", "target": {"kind": "Deployment"}}],
        }));
        let variables = BTreeMap::from([("v".to_owned(), "1".to_owned())]);
        let built = objects(&tree, &spec, Some(&variables)).unwrap();
        expect![[r#"
            [
              {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {
                  "annotations": {
                    "a": "v"
                  },
                  "labels": {
                    "l": "v"
                  },
                  "name": "file-d-s",
                  "namespace": "ns"
                },
                "spec": {
                  "paused": true,
                  "template": {
                    "spec": {
                      "containers": [
                        {
                          "image": "i:3",
                          "name": "c"
                        }
                      ]
                    }
                  }
                }
              },
              {
                "apiVersion": "v1",
                "data": {
                  "k": "1"
                },
                "kind": "ConfigMap",
                "metadata": {
                  "annotations": {
                    "a": "v"
                  },
                  "labels": {
                    "l": "v"
                  },
                  "name": "file-m-s",
                  "namespace": "ns"
                }
              }
            ]"#]]
        .assert_eq(&serde_json::to_string_pretty(&built).unwrap());
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        let spec = spec(json!({"decryption": {"provider": "sops"}}));
        assert_eq!(
            objects(&Tree::default(), &spec, None)
                .unwrap_err()
                .to_string(),
            "use spec.decryption: not supported by this site; leave it out"
        );
    }
}

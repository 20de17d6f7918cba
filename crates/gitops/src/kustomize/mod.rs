//! Kustomize: from a folder with a kustomization file to objects.
//!
//! Pure: files in, objects out, the same for the same. Follows what `kubectl kustomize`
//! does, down to the suffixes of generated names, so that both agree; the tests compare
//! with it. What fetches (remote bases), runs programs (generators and transformers as
//! plugins, Helm charts) or is on its way out (`vars`) is refused by name.
//!
//! Start with [`build`]; [`Builder::kustomization`] is one layer.

mod fields;
mod file;
mod generate;
mod patch;
mod references;
mod replace;
mod resource;
mod transform;

pub use file::{FILE_NAMES, Image, Patch, Selector};

use crate::tree::{self, Tree};
use file::File;
use resource::{Resource, Resources};
use serde_json::Value;

/// How deep bases and components may nest.
const DEPTH_MAX: usize = 32;
/// Most objects of one build.
pub const OBJECTS_MAX: usize = 10_000;

/// Why a build failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// A file is missing or can't be read as what it should be.
    #[error("read {path}: {why}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        why: String,
    },
    /// A path that leads out of the source.
    #[error("read {target} named by {path}: it lies outside of the source")]
    Escape {
        /// The kustomization file.
        path: String,
        /// What it names.
        target: String,
    },
    /// A base that would have to be fetched.
    #[error("read {url} named by {path}: remote bases are not fetched; copy it into the source")]
    Remote {
        /// The kustomization file.
        path: String,
        /// What it names.
        url: String,
    },
    /// A field that is known but not done.
    #[error("use field {field} of {path}: not supported")]
    Unsupported {
        /// The kustomization file.
        path: String,
        /// The field.
        field: String,
    },
    /// Bases that name each other, or nest too deep.
    #[error("build {path}: it includes itself, or nests deeper than {DEPTH_MAX}")]
    Cycle {
        /// The folder.
        path: String,
    },
    /// Two objects of one name.
    #[error("add {id} of {path}: an object of that name is there already")]
    Duplicate {
        /// Where.
        path: String,
        /// Which.
        id: String,
    },
    /// A ConfigMap or Secret that can't be made.
    #[error("generate {name} of {path}: {why}")]
    Generate {
        /// Where.
        path: String,
        /// Which.
        name: String,
        /// Why.
        why: String,
    },
    /// A patch that can't be applied.
    #[error("patch by {path}: {why}")]
    Patch {
        /// Where.
        path: String,
        /// Why.
        why: String,
    },
    /// A change of names, labels and the like that can't be made.
    #[error("transform by {path}: {why}")]
    Transform {
        /// Where.
        path: String,
        /// Why.
        why: String,
    },
    /// Too many objects.
    #[error("build {path}: more than {OBJECTS_MAX} objects")]
    TooMany {
        /// The folder.
        path: String,
    },
}

/// Builds a folder that has a kustomization file.
///
/// # Errors
/// [`BuildError`].
pub fn build(tree: &Tree, dir: &str) -> Result<Vec<Value>, BuildError> {
    build_with(tree, dir, None)
}

/// Builds a folder whose kustomization file is `over` instead of the one there, if any.
///
/// # Errors
/// [`BuildError`].
pub fn build_with(tree: &Tree, dir: &str, over: Option<&Value>) -> Result<Vec<Value>, BuildError> {
    let builder = Builder { tree };
    let file = match over {
        Some(value) => File::from_value(&format!("{dir}/kustomization.yaml"), value.clone())?,
        None => builder.file(dir)?,
    };
    let mut resources = Resources::default();
    builder.kustomization(dir, &file, &mut resources, &mut vec![dir.to_owned()])?;
    generate::add_hashes(&mut resources);
    references::fix(&mut resources).map_err(|why| BuildError::Transform {
        path: dir.to_owned(),
        why,
    })?;
    Ok(resources.list.into_iter().map(Resource::finish).collect())
}

/// The kustomization file of a folder, if it has one.
pub fn file_of(tree: &Tree, dir: &str) -> Option<String> {
    FILE_NAMES
        .iter()
        .filter_map(|name| tree::join(dir, name))
        .find(|path| tree.get(path).is_some())
}

/// Reads all documents of a YAML or JSON file.
///
/// # Errors
/// [`BuildError::Read`].
pub fn documents(path: &str, bytes: &[u8]) -> Result<Vec<Value>, BuildError> {
    let fail = |why: String| BuildError::Read {
        path: path.to_owned(),
        why,
    };
    let text = std::str::from_utf8(bytes).map_err(|e| fail(e.to_string()))?;
    // As kustomize reads them: `yes` and `n` are texts.
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    let all: Vec<Value> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|e| fail(e.to_string()))?;
    Ok(all.into_iter().filter(|v| !v.is_null()).collect())
}

/// Reads all objects of a file; lists are taken apart.
///
/// # Errors
/// [`BuildError::Read`] also for a document that is no object.
pub fn objects(path: &str, bytes: &[u8]) -> Result<Vec<Value>, BuildError> {
    let mut found = Vec::new();
    for document in documents(path, bytes)? {
        let kind = document["kind"].as_str().unwrap_or_default();
        if kind.is_empty() || document["apiVersion"].as_str().is_none_or(str::is_empty) {
            return Err(BuildError::Read {
                path: path.to_owned(),
                why: "a document without apiVersion and kind is no Kubernetes object".to_owned(),
            });
        }
        match document["items"].as_array() {
            Some(items) if kind.ends_with("List") => found.extend(items.iter().cloned()),
            _ => found.push(document),
        }
    }
    for object in &found {
        let meta = &object["metadata"];
        let named = |field: &str| meta[field].as_str().is_some_and(|n| !n.is_empty());
        if !named("name") && !named("generateName") {
            return Err(BuildError::Read {
                path: path.to_owned(),
                why: format!(
                    "missing metadata.name in object of kind {}",
                    object["kind"].as_str().unwrap_or("unknown")
                ),
            });
        }
    }
    Ok(found)
}

struct Builder<'a> {
    tree: &'a Tree,
}

impl Builder<'_> {
    fn file(&self, dir: &str) -> Result<File, BuildError> {
        let Some(path) = file_of(self.tree, dir) else {
            return Err(BuildError::Read {
                path: if dir.is_empty() { "." } else { dir }.to_owned(),
                why: format!("no {} there", FILE_NAMES.join(", ")),
            });
        };
        File::parse(&path, self.tree.get(&path).unwrap_or_default())
    }

    /// One layer: what it names, what it generates, then its changes to all of that.
    fn kustomization(
        &self,
        dir: &str,
        file: &File,
        into: &mut Resources,
        above: &mut Vec<String>,
    ) -> Result<(), BuildError> {
        for named in &file.resources {
            self.resource(dir, file, named, into, above)?;
        }
        generate::run(self.tree, dir, file, into)?;
        for named in &file.components {
            self.component(dir, file, named, into, above)?;
        }
        patch::run(self.tree, dir, file, into)?;
        transform::run(file, into)?;
        patch::run_json6902(self.tree, dir, file, into)?;
        transform::run_late(file, into)?;
        replace::run(self.tree, dir, file, into)
    }

    fn resource(
        &self,
        dir: &str,
        file: &File,
        named: &str,
        into: &mut Resources,
        above: &mut Vec<String>,
    ) -> Result<(), BuildError> {
        let path = inside(dir, file, named)?;
        if let Some(bytes) = self.tree.get(&path) {
            for object in objects(&path, bytes)? {
                into.add(Resource::new(object), &path)?;
            }
            return Ok(());
        }
        let mut base = Resources::default();
        self.layer(&path, &mut base, above, false)?;
        for resource in base.list {
            into.add(resource, &path)?;
        }
        Ok(())
    }

    /// A component changes what is there already.
    fn component(
        &self,
        dir: &str,
        file: &File,
        named: &str,
        into: &mut Resources,
        above: &mut Vec<String>,
    ) -> Result<(), BuildError> {
        let path = inside(dir, file, named)?;
        self.layer(&path, into, above, true)
    }

    fn layer(
        &self,
        path: &str,
        into: &mut Resources,
        above: &mut Vec<String>,
        component: bool,
    ) -> Result<(), BuildError> {
        if !self.tree.is_dir(path) {
            return Err(BuildError::Read {
                path: path.to_owned(),
                why: "no such file or folder".to_owned(),
            });
        }
        if above.len() >= DEPTH_MAX || above.iter().any(|a| a == path) {
            return Err(BuildError::Cycle {
                path: path.to_owned(),
            });
        }
        let file = self.file(path)?;
        if file.is_component() != component {
            let wanted = if component {
                "Component"
            } else {
                "Kustomization"
            };
            return Err(BuildError::Read {
                path: file.path.clone(),
                why: format!("its kind is not {wanted}"),
            });
        }
        above.push(path.to_owned());
        let done = self.kustomization(path, &file, into, above);
        above.pop();
        done
    }
}

/// A path that a kustomization file names, seen from the root.
fn inside(dir: &str, file: &File, named: &str) -> Result<String, BuildError> {
    if is_remote(named) {
        return Err(BuildError::Remote {
            path: file.path.clone(),
            url: named.to_owned(),
        });
    }
    tree::join(dir, named).ok_or_else(|| BuildError::Escape {
        path: file.path.clone(),
        target: named.to_owned(),
    })
}

fn is_remote(named: &str) -> bool {
    named.contains("://")
        || named.starts_with("git@")
        || named.starts_with("git::")
        || named.starts_with("github.com/")
        || named.contains("?ref=")
}

#[cfg(test)]
mod tests;

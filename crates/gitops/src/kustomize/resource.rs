//! An object under construction: what it is, what it was called before, what is due.

use super::{BuildError, OBJECTS_MAX};
use serde_json::{Map, Value};
use std::fmt;

/// What tells an object from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Id {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Id {
    /// Whether both name one object: no namespace is the default one.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.group == other.group
            && self.version == other.version
            && self.kind == other.kind
            && self.name == other.name
            && effective(&self.namespace) == effective(&other.namespace)
    }
}

/// The namespace that an object without one lands in.
pub(crate) fn effective(namespace: &str) -> &str {
    if namespace.is_empty() {
        "default"
    } else {
        namespace
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.kind, self.version)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        write!(f, "/{}", self.name)?;
        if !self.namespace.is_empty() {
            write!(f, " in {}", self.namespace)?;
        }
        Ok(())
    }
}

/// One object.
#[derive(Clone, Debug)]
pub(crate) struct Resource {
    pub(crate) value: Value,
    /// What it was before each renaming, the original first.
    pub(crate) before: Vec<Id>,
    pub(crate) prefixes: Vec<String>,
    pub(crate) suffixes: Vec<String>,
    /// Its name gets a suffix by its content in the end.
    pub(crate) wants_hash: bool,
}

impl Resource {
    pub(crate) fn new(mut value: Value) -> Self {
        if !value["metadata"].is_object() {
            value["metadata"] = Value::Object(Map::new());
        }
        Self {
            value,
            before: Vec::new(),
            prefixes: Vec::new(),
            suffixes: Vec::new(),
            wants_hash: false,
        }
    }

    pub(crate) fn kind(&self) -> &str {
        self.value["kind"].as_str().unwrap_or_default()
    }

    pub(crate) fn group(&self) -> &str {
        self.api_version().split_once('/').map_or("", |(g, _)| g)
    }

    pub(crate) fn version(&self) -> &str {
        let whole = self.api_version();
        whole.split_once('/').map_or(whole, |(_, v)| v)
    }

    fn api_version(&self) -> &str {
        self.value["apiVersion"].as_str().unwrap_or_default()
    }

    pub(crate) fn name(&self) -> &str {
        self.value["metadata"]["name"].as_str().unwrap_or_default()
    }

    pub(crate) fn namespace(&self) -> &str {
        self.value["metadata"]["namespace"]
            .as_str()
            .unwrap_or_default()
    }

    pub(crate) fn set_name(&mut self, name: &str) {
        self.value["metadata"]["name"] = Value::String(name.to_owned());
    }

    /// Kinds that are not built in are taken for namespaced, as kustomize does.
    pub(crate) fn is_cluster_scoped(&self) -> bool {
        api::find_kind(self.group(), self.version(), self.kind()).is_some_and(|r| !r.namespaced)
    }

    /// What it is now.
    pub(crate) fn id(&self) -> Id {
        Id {
            group: self.group().to_owned(),
            version: self.version().to_owned(),
            kind: self.kind().to_owned(),
            namespace: self.namespace().to_owned(),
            name: self.name().to_owned(),
        }
    }

    /// All that it is and was.
    pub(crate) fn ids(&self) -> impl Iterator<Item = Id> + '_ {
        std::iter::once(self.id()).chain(self.before.iter().rev().cloned())
    }

    /// Remembers what it is before it becomes something else.
    pub(crate) fn remember(&mut self) {
        let id = self.id();
        if self.before.last() != Some(&id) {
            self.before.push(id);
        }
    }

    /// The object, without maps that were only made to be filled.
    pub(crate) fn finish(mut self) -> Value {
        if let Some(meta) = self.value["metadata"].as_object_mut() {
            for field in ["labels", "annotations"] {
                if meta
                    .get(field)
                    .is_some_and(|v| v.is_null() || v.as_object().is_some_and(Map::is_empty))
                {
                    meta.remove(field);
                }
            }
            if let Some(Value::Object(annotations)) = meta.get_mut("annotations") {
                annotations.retain(|_, v| !v.is_null());
            }
        }
        self.value
    }
}

/// Objects in the order in which they came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resources {
    pub(crate) list: Vec<Resource>,
}

impl Resources {
    pub(crate) fn add(&mut self, resource: Resource, path: &str) -> Result<(), BuildError> {
        let id = resource.id();
        if !id.name.is_empty() && self.list.iter().any(|r| r.id().same(&id)) {
            return Err(BuildError::Duplicate {
                path: path.to_owned(),
                id: id.to_string(),
            });
        }
        if self.list.len() >= OBJECTS_MAX {
            return Err(BuildError::TooMany {
                path: path.to_owned(),
            });
        }
        self.list.push(resource);
        Ok(())
    }

    /// Those that are or were called so.
    pub(crate) fn called<'a>(&'a self, id: &'a Id) -> impl Iterator<Item = usize> + 'a {
        self.list
            .iter()
            .enumerate()
            .filter(|(_, r)| r.ids().any(|known| known.same(id)))
            .map(|(i, _)| i)
    }
}

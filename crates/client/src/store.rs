//! What an informer remembers: objects by namespace and name, and by their controller.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Objects by namespace, then name, so that a lookup needs no owned key and a
/// namespace is one range.
#[derive(Debug)]
pub(crate) struct Objects<K> {
    namespaces: BTreeMap<Box<str>, BTreeMap<Box<str>, Arc<K>>>,
    /// Objects by the uid of their controller (empty: none), each under its address,
    /// which is its own as long as it is in here.
    owned: HashMap<Box<str>, HashMap<usize, Arc<K>>>,
    len: usize,
    /// The greatest resourceVersion seen.
    pub(crate) revision: u64,
}

impl<K> Default for Objects<K> {
    fn default() -> Self {
        Self {
            namespaces: BTreeMap::new(),
            owned: HashMap::new(),
            len: 0,
            revision: 0,
        }
    }
}

impl<K: kube::Resource> Objects<K> {
    pub(crate) fn insert(&mut self, namespace: &str, name: &str, object: Arc<K>) -> Option<Arc<K>> {
        self.saw(&*object);
        let owner = owner(&*object);
        if !self.owned.contains_key(owner) {
            self.owned.insert(owner.into(), HashMap::new());
        }
        if let Some(owned) = self.owned.get_mut(owner) {
            owned.insert(Arc::as_ptr(&object).addr(), object.clone());
        }
        if !self.namespaces.contains_key(namespace) {
            self.namespaces.insert(namespace.into(), BTreeMap::new());
        }
        let names = self.namespaces.get_mut(namespace)?;
        if let Some(slot) = names.get_mut(name) {
            let again = Arc::ptr_eq(slot, &object);
            let old = std::mem::replace(slot, object);
            if !again {
                self.disown(&old);
            }
            return Some(old);
        }
        names.insert(name.into(), object);
        self.len += 1;
        None
    }

    pub(crate) fn remove(&mut self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let names = self.namespaces.get_mut(namespace)?;
        let old = names.remove(name)?;
        if names.is_empty() {
            self.namespaces.remove(namespace);
        }
        self.disown(&old);
        self.len -= 1;
        Some(old)
    }

    /// Takes note of an object's resourceVersion.
    pub(crate) fn saw(&mut self, object: &impl kube::Resource) {
        let version = object.meta().resource_version.as_deref();
        let version = version.and_then(|v| v.parse().ok()).unwrap_or(0);
        self.revision = self.revision.max(version);
    }

    fn disown(&mut self, old: &Arc<K>) {
        let owner = owner(&**old);
        if let Some(owned) = self.owned.get_mut(owner) {
            owned.remove(&Arc::as_ptr(old).addr());
            if owned.is_empty() {
                self.owned.remove(owner);
            }
        }
    }
}

/// The uid of an object's controller, or the empty string.
fn owner<K: kube::Resource>(object: &K) -> &str {
    object
        .meta()
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))
        .map_or("", |owner| owner.uid.as_str())
}

impl<K> Objects<K> {
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<&Arc<K>> {
        self.namespaces.get(namespace)?.get(name)
    }

    /// Those with a controller of this uid; with the empty string, those without one.
    pub(crate) fn owned_by(&self, uid: &str) -> impl Iterator<Item = &Arc<K>> {
        self.owned.get(uid).into_iter().flat_map(HashMap::values)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &str, &Arc<K>)> {
        self.namespaces
            .iter()
            .flat_map(|(ns, names)| names.iter().map(move |(name, o)| (&**ns, &**name, o)))
    }

    pub(crate) fn namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<K>> {
        self.namespaces
            .get(namespace)
            .into_iter()
            .flat_map(BTreeMap::values)
    }
}

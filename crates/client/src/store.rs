//! What an informer remembers: objects by namespace and name.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Objects by namespace, then name, so that a lookup needs no owned key and a
/// namespace is one range.
#[derive(Debug)]
pub(crate) struct Objects<K> {
    namespaces: BTreeMap<Box<str>, BTreeMap<Box<str>, Arc<K>>>,
    len: usize,
}

impl<K> Default for Objects<K> {
    fn default() -> Self {
        Self {
            namespaces: BTreeMap::new(),
            len: 0,
        }
    }
}

impl<K> Objects<K> {
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<&Arc<K>> {
        self.namespaces.get(namespace)?.get(name)
    }

    pub(crate) fn insert(&mut self, namespace: &str, name: &str, object: Arc<K>) -> Option<Arc<K>> {
        if !self.namespaces.contains_key(namespace) {
            self.namespaces.insert(namespace.into(), BTreeMap::new());
        }
        let names = self.namespaces.get_mut(namespace)?;
        if let Some(slot) = names.get_mut(name) {
            return Some(std::mem::replace(slot, object));
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
        self.len -= 1;
        Some(old)
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

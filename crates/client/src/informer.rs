//! Shared informers.

use std::sync::Arc;

/// Namespace and name of an object; the namespace of cluster-scoped ones is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Namespace, or empty.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// All informers of a process, one a kind (and selector).
#[derive(Clone, Debug)]
pub struct Informers {}

/// A kind's objects as the API server last told. Clones share it.
#[derive(Clone, Debug)]
pub struct Informer<K> {
    _kind: std::marker::PhantomData<K>,
}

impl<K> Informer<K> {
    /// One object.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let _ = (namespace, name);
        todo!()
    }
}

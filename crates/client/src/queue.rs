//! A work queue of keys: each key once, retried with back-off.
/// placeholder
#[derive(Debug)]
pub struct WorkQueue<K> {
    _k: std::marker::PhantomData<K>,
}

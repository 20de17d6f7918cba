//! The image store against registries: a misbehaving one in this process, and a real one.

mod fake;
mod files;
mod gc;
mod packagings;
mod pull;
mod real;

use images::{ImageStore, Reference, RegistryConfig};
use std::time::Duration;

/// A component that any test may push and pull.
pub(crate) const HELLO: &[u8] = include_bytes!("../../../../examples/hello/hello.wasm");

/// Settings under which failures show soon.
pub(crate) fn quick() -> RegistryConfig {
    RegistryConfig {
        stall_timeout: Duration::from_millis(300),
        attempts_max: 3,
        backoff_base: Duration::from_millis(1),
        backoff_max: Duration::from_millis(5),
        ..RegistryConfig::default()
    }
}

/// A store in a directory that goes away with the first of the pair.
pub(crate) fn store() -> (tempfile::TempDir, ImageStore) {
    store_with(quick())
}

pub(crate) fn store_with(config: RegistryConfig) -> (tempfile::TempDir, ImageStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open_with(dir.path(), config).unwrap();
    (dir, store)
}

pub(crate) fn reference(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

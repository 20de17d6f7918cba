//! What every store must do (`conformance`, `model`), and what the embedded one must
//! survive (`crash`, `torn`); and what the one in etcd must (`etcd`).

mod conformance;
mod crash;
mod etcd;
mod model;
mod torn;

use store::{Durability, EmbeddedStore, Record, Revision, Store, Write};

/// A store in a folder that goes with it.
struct Fixture {
    store: Option<EmbeddedStore>,
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = Some(open(folder.path()));
        Self { store, folder }
    }

    fn store(&self) -> &EmbeddedStore {
        self.store.as_ref().expect("the store is open")
    }

    /// Closes it in order and opens it again.
    fn reopen(&mut self) {
        self.store = None;
        self.store = Some(open(self.folder.path()));
    }
}

fn open(folder: &std::path::Path) -> EmbeddedStore {
    EmbeddedStore::open(&folder.join("state.db")).expect("the store opens")
}

async fn create(store: &dyn Store, key: &str, value: &str) -> Record {
    let value = value.to_owned().into();
    let write = Write::Create { value };
    store
        .write(key, write, Durability::Sync)
        .await
        .expect("create")
}

async fn update(store: &dyn Store, key: &str, value: &str, expected: Revision) -> Record {
    let value = value.to_owned().into();
    let write = Write::Update { value, expected };
    store
        .write(key, write, Durability::Sync)
        .await
        .expect("update")
}

async fn delete(store: &dyn Store, key: &str, expected: Revision) -> Record {
    let write = Write::Delete { expected };
    store
        .write(key, write, Durability::Sync)
        .await
        .expect("delete")
}

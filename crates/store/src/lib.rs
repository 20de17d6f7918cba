//! Revisioned key-value store with etcd's semantics: one global revision,
//! compare-and-swap on a key's revision, range and watch at a revision, compaction.
//!
//! [`Store`] is the trait; [`embedded`] keeps it in SQLite, [`etcd`] in an etcd cluster. Only
//! `apiserver` uses this crate.

pub mod embedded;
pub mod etcd;
pub mod snapshot;

pub use embedded::EmbeddedStore;
pub use etcd::EtcdStore;
pub use snapshot::Snapshot;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use std::path::PathBuf;
use std::sync::Arc;

/// Position in the one history of all writes; the first write makes 1... and rises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// A key's value at some revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The key, such as `/registry/pods/default/web-0`.
    pub key: Arc<str>,
    /// The value; empty in the `previous`-less deletion record of a watch.
    pub value: Bytes,
    /// Revision of the write that created the key.
    pub created: Revision,
    /// Revision of the last write.
    pub modified: Revision,
}

/// How soon a write must be on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Synced before it is acknowledged.
    #[default]
    Sync,
    /// Within five seconds or with the next durable write (heartbeats, events).
    Lazy,
}

/// A write; all compare before they act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Makes a key that must not be there.
    Create {
        /// Its value.
        value: Bytes,
    },
    /// Replaces a key whose last write must be `expected`.
    Update {
        /// The new value.
        value: Bytes,
        /// Revision that the key must be at.
        expected: Revision,
    },
    /// Removes a key whose last write must be `expected`.
    Delete {
        /// Revision that the key must be at.
        expected: Revision,
    },
}

/// Part of the key space, read at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeRequest {
    /// Keys that start with this.
    pub prefix: String,
    /// Only keys after this one (exclusive): where the last page ended.
    pub after: Option<String>,
    /// At most so many records, 0 for all.
    pub limit: usize,
    /// At this revision; `None` for the newest.
    pub at: Option<Revision>,
}

/// Answer to a [`RangeRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// Records in key order.
    pub records: Vec<Record>,
    /// The revision they were read at.
    pub revision: Revision,
    /// How many more there are after the limit.
    pub remaining: usize,
}

/// Something that happened to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The key's new record; for a deletion its value is empty and `modified` the deletion's revision.
    pub record: Record,
    /// The value before, if there was one.
    pub previous: Option<Bytes>,
    /// What happened.
    pub kind: EventKind,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was made.
    Created,
    /// It was replaced.
    Updated,
    /// It was removed.
    Deleted,
}

/// What a watch yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchItem {
    /// Events of one commit, in revision order.
    Events(Arc<[Event]>),
    /// Everything up to this revision has been delivered.
    Progress(Revision),
}

/// Why a store operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Create of a key that is there; its revision.
    #[error("create key: it exists at revision {}", .0.0)]
    Exists(Revision),
    /// Update or delete with a wrong `expected`; what is there now (`None`: no such key).
    #[error("write key: it is not at the expected revision")]
    Conflict(Option<Record>),
    /// The revision asked for is gone; the oldest there is.
    #[error("read revision: compacted, the oldest is {}", .0.0)]
    Compacted(Revision),
    /// The revision asked for has not been reached.
    #[error("read revision: in the future, the newest is {}", .0.0)]
    Future(Revision),
    /// A watcher that did not keep up was dropped.
    #[error("watch: too slow, events were dropped")]
    Slow,
    /// The disk is full or failing; nothing of the write remains.
    #[error("write to disk")]
    Disk(#[source] std::io::Error),
    /// The database file is damaged or of another program.
    #[error("open store")]
    Corrupt(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Another process has the database open.
    #[error("open store {}: another process has it open; stop that one first", .0.display())]
    Locked(PathBuf),
    /// The value is larger than the store takes.
    #[error("write key: the value is too large for the store")]
    TooLarge,
    /// No server of the store answers, or it is not able to now; whether a write was done is
    /// not known.
    #[error("reach store")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store was closed.
    #[error("use store: it is closed")]
    Closed,
}

/// A revisioned key-value store. All methods may be called from any task.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// One key, at a revision or newest.
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Record>, Error>;

    /// Records by prefix, in key order, all at one revision.
    async fn range(&self, request: RangeRequest) -> Result<Range, Error>;

    /// How many keys have the prefix now.
    async fn count(&self, prefix: &str) -> Result<usize, Error>;

    /// Does one write; the record it made (for a deletion, the record with its last value and the deletion's revision).
    async fn write(&self, key: &str, write: Write, durability: Durability)
    -> Result<Record, Error>;

    /// Events after revision `from` (exclusive) for keys with the prefix; `None` from now on.
    /// The stream ends with an error when the watcher falls too far behind.
    async fn watch(
        &self,
        prefix: &str,
        from: Option<Revision>,
    ) -> Result<BoxStream<'static, Result<WatchItem, Error>>, Error>;

    /// The newest revision.
    async fn revision(&self) -> Result<Revision, Error>;

    /// Forgets what was superseded before `at`; reads and watches below it fail as compacted.
    async fn compact(&self, at: Revision) -> Result<(), Error>;

    /// Commits what is pending and releases the files.
    async fn close(&self) -> Result<(), Error>;
}

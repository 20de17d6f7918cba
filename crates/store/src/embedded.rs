//! The embedded store: SQLite in WAL mode with one committer thread.
//!
//! Writes go through a bounded queue to the committer (`committer`), which decides
//! them against the index (`index`), writes a group at once (`table`), and only then
//! changes what readers see and tells watchers (`watch`). Reads never wait for
//! writes: keys and revisions are in memory, values come from a few reader
//! connections off the async threads.
//!
//! Lazy writes are visible at once but reach the disk later; a power cut may lose
//! them. Their revisions are reserved on disk beforehand, so that no revision is ever
//! given to two different writes, and clients that saw a lost one are told to list again.

mod committer;
mod index;
mod table;
mod watch;

use crate::{Durability, Error, Range, RangeRequest, Record, Revision, Store, WatchItem, Write};
use async_trait::async_trait;
use bytes::Bytes;
use committer::{Command, Committer, Decided};
use futures::stream::BoxStream;
use index::{Index, Version};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use table::{Meta, Table};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Writes on their way to the committer; further writers wait for a place.
const COMMANDS_PENDING_MAX: usize = 1024;
/// Reads of the file at once; further readers wait for their turn.
const READERS_MAX: usize = 4;
/// Reader connections kept open between reads.
const READERS_KEPT: usize = 2;
/// Values read in one go; between goes a checkpoint can pass.
const READ_CHUNK: usize = 512;
/// Newest values kept in memory; the oldest go first.
const RECENT_BYTES_MAX: usize = 2 << 20;
/// How often a read of the newest state is begun again because compaction overtook it.
const READ_AGAIN_MAX: usize = 8;

/// A command and its place in the queue.
type Placed = (Command, OwnedSemaphorePermit);

/// A [`Store`] in one file of this machine.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    commands: Option<SyncSender<Placed>>,
    /// As many permits as the queue has places, so that sending never blocks a thread.
    places: Arc<Semaphore>,
    committer: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedStore")
            .field("path", &self.shared.path)
            .finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens the database file at `path`, making it (and its folder) if there is none.
    /// Blocks for as long as it takes to read the keys. Beside the file there will be
    /// `-wal`, `-shm` and `.lock`; all are readable by the owner only.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process has it, [`Error::Corrupt`] when the file is
    /// not a store, [`Error::Disk`] when it can't be read or written.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_with(path, |_| ())
    }

    fn open_with(path: &Path, tune: impl FnOnce(&Table)) -> Result<Self, Error> {
        let lock = prepare_files(path)?;
        let mut table = Table::open_writer(path)?;
        let (index, mut meta, last_row) = table.load()?;
        tune(&table);
        let last = last_row.max(meta.compacted).max(meta.gap.1);
        let mut newest = last;
        if meta.reserved > last {
            // Not closed in order: lazy writes up to `reserved` may have been seen and lost.
            // Two such gaps become one; who asks for what is between them lists again.
            newest = meta.reserved + 1;
            let low = if meta.gap.1 > meta.compacted {
                meta.gap.0
            } else {
                last
            };
            meta.gap = (low, newest);
            meta.reserved = 0;
            table.commit([].iter(), Some(meta), &[])?;
        }
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            state: RwLock::new(State {
                index,
                newest,
                flushed: newest,
                meta,
                lazy: BTreeMap::new(),
                recent: Recent::default(),
                watchers: Vec::new(),
                closed: false,
            }),
            readers: Mutex::new(Vec::new()),
            reads: Semaphore::new(READERS_MAX),
        });
        let (sender, receiver) = sync_channel(COMMANDS_PENDING_MAX);
        let committer = Committer::new(shared.clone(), table, receiver, lock);
        let committer = std::thread::Builder::new()
            .name("store-committer".into())
            .spawn(move || committer.run())
            .map_err(Error::Disk)?;
        Ok(Self {
            shared,
            commands: Some(sender),
            places: Arc::new(Semaphore::new(COMMANDS_PENDING_MAX)),
            committer: Some(committer),
        })
    }

    async fn send<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Command,
    ) -> Result<T, Error> {
        let place = self.places.clone().acquire_owned().await;
        let place = place.map_err(|_| Error::Closed)?;
        let (answer, answered) = oneshot::channel();
        let sender = self.commands.as_ref().ok_or(Error::Closed)?;
        sender
            .send((command(answer), place))
            .map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)?
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        // The committer commits what is pending and ends once nobody can send.
        self.commands = None;
        if let Some(committer) = self.committer.take()
            && committer.join().is_err()
        {
            tracing::error!("store committer panicked");
        }
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Record>, Error> {
        for _ in 0..READ_AGAIN_MAX {
            let (found, cached) = {
                let state = self.shared.state.read();
                let at = state.readable(at)?;
                let Some((key, version)) = state.index.at(key, at) else {
                    return Ok(None);
                };
                let cached = state.cached(version.revision);
                ((key, version), cached)
            };
            let revision = found.1.revision;
            let value = match cached {
                Some(value) => Some(value),
                None => self.shared.read(move |t| t.value(revision)).await?,
            };
            if let Some(value) = value {
                return Ok(Some(record(found.0, found.1, value)));
            }
        }
        self.overtaken()
    }

    async fn range(&self, request: RangeRequest) -> Result<Range, Error> {
        for _ in 0..READ_AGAIN_MAX {
            let (found, mut range) = self.shared.state.read().plan_range(&request)?;
            let missing: Vec<u64> = found
                .iter()
                .filter(|(_, _, value)| value.is_none())
                .map(|(_, version, _)| version.revision)
                .collect();
            let Some(mut values) = self.shared.read_values(missing).await? else {
                continue;
            };
            range.records = found
                .into_iter()
                .map(|(key, version, value)| {
                    let value = value.or_else(|| values.remove(&version.revision));
                    record(key, version, value.unwrap_or_default())
                })
                .collect();
            return Ok(range);
        }
        self.overtaken()
    }

    async fn count(&self, prefix: &str) -> Result<usize, Error> {
        let state = self.shared.state.read();
        let at = state.readable(None)?;
        Ok(state.index.range(prefix, None, at).count())
    }

    async fn write(
        &self,
        key: &str,
        write: Write,
        durability: Durability,
    ) -> Result<Record, Error> {
        let key = key.to_owned();
        self.send(|answer| Command::Write {
            key,
            write,
            durability,
            answer,
        })
        .await
    }

    async fn watch(
        &self,
        prefix: &str,
        from: Option<Revision>,
    ) -> Result<BoxStream<'static, Result<WatchItem, Error>>, Error> {
        watch::watch(&self.shared, prefix, from)
    }

    async fn revision(&self) -> Result<Revision, Error> {
        let state = self.shared.state.read();
        state.readable(None).map(Revision)
    }

    async fn compact(&self, at: Revision) -> Result<(), Error> {
        self.send(|answer| Command::Compact { at: at.0, answer })
            .await
    }

    async fn close(&self) -> Result<(), Error> {
        match self.send(|answer| Command::Close { answer }).await {
            // Closed before.
            Err(Error::Closed) => Ok(()),
            other => other,
        }
    }
}

impl EmbeddedStore {
    /// The end of a read that compaction overtook again and again.
    fn overtaken<T>(&self) -> Result<T, Error> {
        let compacted = self.shared.state.read().meta.compacted;
        Err(Error::Compacted(Revision(compacted)))
    }
}

/// What the store, its committer and its watches share.
struct Shared {
    path: PathBuf,
    /// Taken alone, never across a read of the file. Only the committer changes it,
    /// but for watchers, which add themselves.
    state: RwLock<State>,
    /// Idle reader connections.
    readers: Mutex<Vec<Table>>,
    reads: Semaphore,
}

struct State {
    index: Index,
    /// The last revision that readers see.
    newest: u64,
    /// The last revision that is in the file.
    flushed: u64,
    meta: Meta,
    /// Lazy writes after `flushed`.
    lazy: BTreeMap<u64, Decided>,
    recent: Recent,
    watchers: Vec<watch::Watcher>,
    closed: bool,
}

/// A key found in the index, and its value if that is in memory.
type Found = (Arc<str>, Version, Option<Bytes>);

impl State {
    /// The revision to read at, if it can be.
    fn readable(&self, at: Option<Revision>) -> Result<u64, Error> {
        if self.closed {
            return Err(Error::Closed);
        }
        let Some(Revision(at)) = at else {
            return Ok(self.newest);
        };
        if at > self.newest {
            Err(Error::Future(Revision(self.newest)))
        } else if at < self.meta.compacted {
            Err(Error::Compacted(Revision(self.meta.compacted)))
        } else if at > self.meta.gap.0 && at < self.meta.gap.1 {
            Err(Error::Compacted(Revision(self.meta.gap.1)))
        } else {
            Ok(at)
        }
    }

    fn cached(&self, revision: u64) -> Option<Bytes> {
        match self.lazy.get(&revision) {
            Some(decided) => decided.row.value.clone(),
            None => self.recent.values.get(&revision).cloned(),
        }
    }

    fn plan_range(&self, request: &RangeRequest) -> Result<(Vec<Found>, Range), Error> {
        let at = self.readable(request.at)?;
        let mut keys = self
            .index
            .range(&request.prefix, request.after.as_deref(), at);
        let limit = match request.limit {
            0 => usize::MAX,
            limit => limit,
        };
        let found = keys
            .by_ref()
            .take(limit)
            .map(|(key, version)| (key.clone(), version, self.cached(version.revision)))
            .collect();
        let range = Range {
            records: Vec::new(),
            revision: Revision(at),
            remaining: keys.count(),
        };
        Ok((found, range))
    }
}

impl Shared {
    /// Runs a read of the file off the async threads.
    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&mut Table) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let _turn = self.reads.acquire().await.map_err(|_| Error::Closed)?;
        let shared = self.clone();
        let read = move || {
            let idle = shared.readers.lock().pop();
            let mut table = match idle {
                Some(table) => table,
                None => Table::open_reader(&shared.path)?,
            };
            let result = read(&mut table);
            let mut readers = shared.readers.lock();
            if readers.len() < READERS_KEPT && !shared.reads.is_closed() {
                readers.push(table);
            }
            result
        };
        tokio::task::spawn_blocking(read)
            .await
            .map_err(|error| Error::Disk(io::Error::other(error)))?
    }

    /// The values of rows; `None` when compaction has removed one meanwhile.
    async fn read_values(
        self: &Arc<Self>,
        mut revisions: Vec<u64>,
    ) -> Result<Option<HashMap<u64, Bytes>>, Error> {
        if revisions.is_empty() {
            return Ok(Some(HashMap::new()));
        }
        // In the order of the file.
        revisions.sort_unstable();
        self.read(move |table| {
            let mut values = HashMap::with_capacity(revisions.len());
            for chunk in revisions.chunks(READ_CHUNK) {
                for (revision, value) in chunk.iter().zip(table.values(chunk)?) {
                    let Some(value) = value else {
                        return Ok(None);
                    };
                    values.insert(*revision, value);
                }
            }
            Ok(Some(values))
        })
        .await
    }
}

/// Values of the last writes, by revision.
#[derive(Default)]
struct Recent {
    values: HashMap<u64, Bytes>,
    order: VecDeque<u64>,
    bytes: usize,
}

impl Recent {
    fn insert(&mut self, revision: u64, value: Bytes) {
        self.bytes += value.len();
        self.values.insert(revision, value);
        self.order.push_back(revision);
        while self.bytes > RECENT_BYTES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            if let Some(value) = self.values.remove(&oldest) {
                self.bytes -= value.len();
            }
        }
    }
}

fn record(key: Arc<str>, version: Version, value: Bytes) -> Record {
    Record {
        key,
        value,
        created: Revision(version.created),
        modified: Revision(version.revision),
    }
}

/// Makes folder, database and lock file where they are missing, and takes the lock.
fn prepare_files(path: &Path) -> Result<File, Error> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(folder).map_err(Error::Disk)?;
    let open = |path: &Path| {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
    };
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock = open(Path::new(&lock_path)).map_err(Error::Disk)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Error::Locked(path.to_owned())),
        Err(TryLockError::Error(error)) => return Err(Error::Disk(error)),
    }
    // SQLite gives its other files the mode of this one.
    open(path).map_err(Error::Disk)?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::Disk)?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn put(store: &EmbeddedStore, key: &str, value: Vec<u8>) -> Result<Record, Error> {
        let write = Write::Create {
            value: value.into(),
        };
        store.write(key, write, Durability::Sync).await
    }

    /// Bytes that do not compress.
    fn noise(seed: u32) -> Vec<u8> {
        let mut state = seed.wrapping_mul(2_654_435_769) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        };
        (0..20_000).map(|_| next()).collect()
    }

    #[tokio::test]
    async fn a_full_disk_refuses_writes_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("state.db");
        let store = EmbeddedStore::open_with(&path, |table| table.limit_pages(40)).expect("open");
        let mut watch = store.watch("/", None).await.expect("watch");
        let mut made = Vec::new();
        let error = loop {
            let key = format!("/{:03}", made.len());
            match put(&store, &key, noise(made.len() as u32)).await {
                Ok(record) => made.push(record),
                Err(error) => break error,
            }
        };
        let Error::Disk(source) = &error else {
            panic!("{error:?}");
        };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
        assert!(made.len() > 2);

        // Nothing of the refused write is seen, now or after a restart.
        let range = store.range(RangeRequest::default()).await.expect("range");
        assert_eq!(range.records, made);
        let last = made.last().expect("some").modified;
        assert_eq!(store.revision().await.expect("revision"), last);
        let mut told = 0;
        while told < made.len() {
            use futures::StreamExt as _;
            if let Some(Ok(WatchItem::Events(events))) = watch.next().await {
                told += events.len();
            }
        }
        assert_eq!(told, made.len());

        // Small writes into the rest of the last page work, and so do large ones given room.
        drop(store);
        let store = EmbeddedStore::open(&path).expect("open");
        let range = store.range(RangeRequest::default()).await.expect("range");
        assert_eq!(range.records, made);
        let next = put(&store, "/next", noise(1)).await.expect("there is room");
        assert_eq!(next.modified.0, last.0 + 1);
    }

    #[tokio::test]
    async fn the_file_shrinks_after_compaction() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("state.db");
        let store = EmbeddedStore::open(&path).expect("open");
        for n in 0..300 {
            let made = put(&store, &format!("/{n}"), noise(n)).await.expect("put");
            let write = Write::Delete {
                expected: made.modified,
            };
            store
                .write(&made.key, write, Durability::Sync)
                .await
                .expect("delete");
        }
        let newest = store.revision().await.expect("revision");
        store.compact(newest).await.expect("compact");
        // It happens bit by bit while nobody writes.
        while std::fs::metadata(&path).expect("metadata").len() > 2 << 20 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert_eq!(store.shared.state.read().index.superseded_len(), 0);
        drop(store);
        let store = EmbeddedStore::open(&path).expect("open");
        assert_eq!(store.revision().await.expect("revision"), newest);
    }
}

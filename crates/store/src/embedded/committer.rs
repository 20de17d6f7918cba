//! The one thread that writes: groups, commits, publishes, and tidies up in between.
//!
//! Start reading at [`Committer::run`]. Nothing that it has not committed (or taken
//! in as lazy) is ever visible, so a failed commit needs no undoing in memory.

use super::index::Version;
use super::table::{Row, Table, event};
use super::{Placed, Shared};
use crate::{Durability, Error, Event, Record, Revision, Write};
use bytes::Bytes;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Commands in one commit; the rest makes the next.
const GROUP_MAX: usize = 256;
/// Lazy writes reach the disk after this at the latest.
const LAZY_DELAY: Duration = Duration::from_secs(5);
/// So many lazy writes, or bytes of them, are committed at once.
const LAZY_PENDING_MAX: usize = 1024;
const LAZY_BYTES_MAX: usize = 4 << 20;
/// Revisions reserved at a time for lazy writes.
const RESERVE_BLOCK: u64 = 1024;
/// The log is moved to its place when it is this long.
const CHECKPOINT_BYTES: u64 = 4 << 20;
/// Rows removed in one go, while others write and while nobody does.
const GARBAGE_BUSY: usize = 32;
const GARBAGE_IDLE: usize = 256;
/// Superseded rows after which the store compacts by itself, down to half of it.
const HISTORY_MAX: usize = 200_000;
/// Pages given back to the file system in one go.
const SHRINK_PAGES: u32 = 128;
/// After a failure to tidy up (a full disk).
const TIDY_AGAIN: Duration = Duration::from_secs(5);
/// A watcher that nothing matched for is told the revision after this.
const PROGRESS_DELAY: Duration = Duration::from_millis(250);

/// What a writer is told.
type Answer = Result<Record, Error>;

/// What the committer is asked to do.
pub(super) enum Command {
    Write {
        key: String,
        write: Write,
        durability: Durability,
        answer: oneshot::Sender<Answer>,
    },
    Compact {
        at: u64,
        answer: oneshot::Sender<Result<(), Error>>,
    },
    Close {
        answer: oneshot::Sender<Result<(), Error>>,
    },
}

pub(super) struct Committer {
    shared: Arc<Shared>,
    table: Table,
    commands: Receiver<Placed>,
    /// When the oldest lazy write must be on disk.
    lazy_due: Option<Instant>,
    lazy_bytes: usize,
    /// When watchers behind the newest revision are told it.
    progress_due: Option<Instant>,
    shrinking: bool,
    /// Tidying up failed; it is tried again then.
    tidy_again: Option<Instant>,
    /// Held until the end.
    _lock: File,
}

/// A write that passed its check, with what is needed to tell of it.
pub(super) struct Decided {
    pub(super) row: Row,
    pub(super) previous: Option<Bytes>,
}

/// Writes decided together, not visible yet.
#[derive(Default)]
struct Group {
    decided: Vec<Decided>,
    /// Index into `decided` of the newest write of a key.
    newest: HashMap<Arc<str>, usize>,
    answers: Vec<(oneshot::Sender<Answer>, Answer)>,
    durable: bool,
}

impl Committer {
    pub(super) fn new(
        shared: Arc<Shared>,
        table: Table,
        commands: Receiver<Placed>,
        lock: File,
    ) -> Self {
        Self {
            shared,
            table,
            commands,
            lazy_due: None,
            lazy_bytes: 0,
            progress_due: None,
            shrinking: false,
            tidy_again: None,
            _lock: lock,
        }
    }

    /// Works until it is told to close or nobody can send any more.
    pub(super) fn run(mut self) {
        loop {
            let first = match self.wait() {
                Duration::MAX => self.commands.recv().map_err(RecvTimeoutError::from),
                wait => self.commands.recv_timeout(wait),
            };
            let first = match first {
                Ok((command, _place)) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => {
                    if let Err(error) = self.close() {
                        tracing::error!(?error, "store closed with lazy writes lost");
                    }
                    return;
                }
            };
            let idle = first.is_none();
            if let Some(close) = self.take_group(first) {
                let _ = close.send(self.close());
                return;
            }
            self.tidy(idle);
        }
    }

    /// How long nothing needs doing.
    fn wait(&self) -> Duration {
        let now = Instant::now();
        let tidy_due =
            (self.shrinking || self.has_garbage()).then(|| self.tidy_again.unwrap_or(now));
        let due = [self.lazy_due, self.progress_due, tidy_due];
        due.into_iter()
            .flatten()
            .min()
            .map_or(Duration::MAX, |due| due.saturating_duration_since(now))
    }

    fn has_garbage(&self) -> bool {
        let state = self.shared.state.read();
        !state.index.garbage(state.meta.compacted, 1).is_empty()
    }

    /// Commits what has come in; who asked to close, if somebody did.
    fn take_group(&mut self, first: Option<Command>) -> Option<oneshot::Sender<Result<(), Error>>> {
        let mut group = Group::default();
        let mut next = first;
        for count in 1..=GROUP_MAX {
            match next {
                Some(Command::Write {
                    key,
                    write,
                    durability,
                    answer,
                }) => self.take_write(&mut group, key, write, durability, answer),
                Some(Command::Compact { at, answer }) => {
                    self.finish(std::mem::take(&mut group));
                    let _ = answer.send(self.compact(at));
                }
                Some(Command::Close { answer }) => {
                    self.finish(group);
                    return Some(answer);
                }
                None => break,
            }
            if count == GROUP_MAX {
                break;
            }
            next = self
                .commands
                .try_recv()
                .ok()
                .map(|(command, _place)| command);
        }
        self.finish(group);
        None
    }

    fn take_write(
        &mut self,
        group: &mut Group,
        key: String,
        write: Write,
        durability: Durability,
        answer: oneshot::Sender<Answer>,
    ) {
        let result = self.decide(group, key, write);
        let result = result.map(|decided| {
            let record = answer_record(&decided);
            group.durable |= durability == Durability::Sync;
            group
                .newest
                .insert(decided.row.key.clone(), group.decided.len());
            group.decided.push(decided);
            record
        });
        group.answers.push((answer, result));
    }

    /// Checks a write against what is there, counting what is in the group.
    fn decide(&mut self, group: &Group, key: String, write: Write) -> Result<Decided, Error> {
        let in_group = group.newest.get(key.as_str()).map(|at| &group.decided[*at]);
        let (next, known) = {
            let state = self.shared.state.read();
            let known = match in_group {
                Some(decided) => Some((decided.row.key.clone(), version_of(&decided.row))),
                None => state.index.newest(&key),
            };
            (state.newest + 1 + group.decided.len() as u64, known)
        };
        let live = known.as_ref().map(|(_, v)| *v).filter(|v| v.created != 0);
        // Keys share their allocation with the index.
        let key = known.map_or_else(|| Arc::from(key), |(key, _)| key);
        let (value, expected) = match write {
            Write::Create { value } => {
                if let Some(version) = live {
                    return Err(Error::Exists(Revision(version.revision)));
                }
                let row = Row {
                    revision: next,
                    key,
                    created: next,
                    previous: 0,
                    value: Some(value),
                };
                return Ok(Decided {
                    row,
                    previous: None,
                });
            }
            Write::Update { value, expected } => (Some(value), expected),
            Write::Delete { expected } => (None, expected),
        };
        let Some(version) = live else {
            return Err(Error::Conflict(None));
        };
        let previous = match in_group.and_then(|decided| decided.row.value.clone()) {
            Some(value) => value,
            None => self.value(version.revision)?,
        };
        if version.revision != expected.0 {
            let there = super::record(key, version, previous);
            return Err(Error::Conflict(Some(there)));
        }
        let row = Row {
            revision: next,
            key,
            created: version.created,
            previous: version.revision,
            value,
        };
        Ok(Decided {
            row,
            previous: Some(previous),
        })
    }

    fn value(&mut self, revision: u64) -> Result<Bytes, Error> {
        let cached = self.shared.state.read().cached(revision);
        match cached {
            Some(value) => Ok(value),
            None => self.table.value(revision)?.ok_or_else(|| {
                Error::Corrupt(format!("the row of revision {revision} is missing").into())
            }),
        }
    }

    /// Commits a group, or takes it in as lazy; then publishes it and answers.
    fn finish(&mut self, group: Group) {
        let Group {
            decided, answers, ..
        } = group;
        let mut failed = None;
        if let Some(last) = decided.last() {
            let last = last.row.revision;
            let reserved = self.shared.state.read().meta.reserved;
            let lazy_full = self.lazy_bytes > LAZY_BYTES_MAX
                || self.shared.state.read().lazy.len() + decided.len() > LAZY_PENDING_MAX;
            if group.durable || last > reserved || lazy_full {
                match self.commit(&decided, !group.durable) {
                    Ok(()) => self.publish(decided, true),
                    Err(error) => failed = Some(error),
                }
            } else {
                self.publish(decided, false);
            }
        }
        for (answer, result) in answers {
            let result = match &failed {
                Some(error) => Err(again(error)),
                None => result,
            };
            // Nobody waits for it any more: it is done all the same.
            let _ = answer.send(result);
        }
    }

    /// Writes the lazy rows, those of a group and a little garbage removal to disk.
    fn commit(&mut self, decided: &[Decided], reserve: bool) -> Result<(), Error> {
        let (lazy, old, garbage) = {
            let state = self.shared.state.read();
            let lazy: Vec<Row> = state.lazy.values().map(|d| d.row.clone()).collect();
            let garbage = state.index.garbage(state.meta.compacted, GARBAGE_BUSY);
            (lazy, state.meta, garbage)
        };
        let rows = || lazy.iter().chain(decided.iter().map(|d| &d.row));
        let Some(last) = rows().next_back().map(|row| row.revision) else {
            return Ok(());
        };
        let mut meta = old;
        // Topped up early, so that the top-up rides along with a durable commit.
        let low = last + RESERVE_BLOCK / 2 > meta.reserved;
        if reserve || (meta.reserved != 0 && low) {
            meta.reserved = last + RESERVE_BLOCK;
        }
        let changed = (meta != old).then_some(meta);
        self.table.commit(rows(), changed, &garbage)?;
        let mut state = self.shared.state.write();
        state.meta = meta;
        state.index.forget(garbage.len());
        let lazy = std::mem::take(&mut state.lazy);
        for (revision, decided) in lazy {
            state.flushed = revision;
            if let Some(value) = decided.row.value {
                state.recent.insert(revision, value);
            }
        }
        drop(state);
        self.lazy_due = None;
        self.lazy_bytes = 0;
        Ok(())
    }

    /// Makes writes visible and tells watchers.
    fn publish(&mut self, decided: Vec<Decided>, on_disk: bool) {
        let mut state = self.shared.state.write();
        let mut events: Vec<Event> = Vec::with_capacity(decided.len());
        for decided in decided {
            let Decided { row, previous } = &decided;
            state.newest = row.revision;
            state.index.insert(&row.key, version_of(row));
            events.push(event(row.clone(), previous.clone()));
            if on_disk {
                state.flushed = row.revision;
                if let Some(value) = &row.value {
                    state.recent.insert(row.revision, value.clone());
                }
            } else {
                self.lazy_bytes += row.value.as_ref().map_or(0, Bytes::len);
                self.lazy_due
                    .get_or_insert_with(|| Instant::now() + LAZY_DELAY);
                state.lazy.insert(row.revision, decided);
            }
        }
        if state.publish(events.into()) {
            self.progress_due
                .get_or_insert_with(|| Instant::now() + PROGRESS_DELAY);
        }
    }

    /// Remembers that history up to `at` is gone; its rows go bit by bit.
    fn compact(&mut self, at: u64) -> Result<(), Error> {
        let (newest, mut meta) = {
            let state = self.shared.state.read();
            (state.newest, state.meta)
        };
        if at > newest {
            return Err(Error::Future(Revision(newest)));
        }
        if at <= meta.compacted {
            return Ok(());
        }
        // Lazy writes go along, or the newest revision could be below the compacted one.
        self.commit(&[], false)?;
        meta.reserved = self.shared.state.read().meta.reserved;
        meta.compacted = at;
        self.table.commit([].iter(), Some(meta), &[])?;
        self.shared.state.write().meta = meta;
        Ok(())
    }

    /// What is to be done besides writing; much of it only when nobody writes.
    fn tidy(&mut self, idle: bool) {
        let now = Instant::now();
        if self.lazy_due.is_some_and(|due| due <= now)
            && let Err(error) = self.commit(&[], false)
        {
            // They stay in memory; new lazy writes are refused once that is full.
            tracing::warn!(?error, "lazy writes can't be committed yet");
            self.lazy_due = Some(now + LAZY_DELAY);
        }
        if self.progress_due.is_some_and(|due| due <= now) {
            self.shared.state.write().publish_progress();
            self.progress_due = None;
        }
        if self.tidy_again.is_some_and(|again| again > now) {
            return;
        }
        self.tidy_again = None;
        if let Err(error) = self.tidy_file(idle) {
            tracing::warn!(?error, "store can't be tidied up yet");
            self.tidy_again = Some(now + TIDY_AGAIN);
        }
    }

    fn tidy_file(&mut self, idle: bool) -> Result<(), Error> {
        let compact_at = {
            let state = self.shared.state.read();
            let long = state.index.superseded_len() > HISTORY_MAX;
            long.then(|| state.index.compaction_keeping(HISTORY_MAX / 2))
        };
        if let Some(at) = compact_at.flatten() {
            self.compact(at)?;
        }
        if idle && self.has_garbage() {
            let garbage = {
                let state = self.shared.state.read();
                state.index.garbage(state.meta.compacted, GARBAGE_IDLE)
            };
            self.table.commit([].iter(), None, &garbage)?;
            self.shared.state.write().index.forget(garbage.len());
            self.shrinking = !self.has_garbage();
        } else if idle && self.shrinking {
            self.shrinking = self.table.shrink(SHRINK_PAGES)?;
            if !self.shrinking {
                // Only this makes the file shorter.
                self.table.checkpoint()?;
            }
        }
        if self.table.wal_bytes() > CHECKPOINT_BYTES {
            self.table.checkpoint()?;
        }
        Ok(())
    }

    /// Leaves the file as short and as clean as it can be.
    fn close(mut self) -> Result<(), Error> {
        let result = self.commit(&[], false).and_then(|()| {
            let mut meta = self.shared.state.read().meta;
            if meta.reserved == 0 {
                return Ok(());
            }
            // Everything handed out is on disk.
            meta.reserved = 0;
            self.table.commit([].iter(), Some(meta), &[])
        });
        let mut state = self.shared.state.write();
        state.closed = true;
        state.watchers.clear();
        drop(state);
        self.shared.reads.close();
        self.shared.readers.lock().clear();
        result.and_then(|()| self.table.truncate_log())
    }
}

fn version_of(row: &Row) -> Version {
    Version {
        revision: row.revision,
        created: row.value.as_ref().map_or(0, |_| row.created),
    }
}

/// What the writer is told: the record; for a deletion with its last value.
fn answer_record(decided: &Decided) -> Record {
    let Decided { row, previous } = decided;
    Record {
        key: row.key.clone(),
        value: row
            .value
            .clone()
            .or_else(|| previous.clone())
            .unwrap_or_default(),
        created: Revision(row.created),
        modified: Revision(row.revision),
    }
}

/// The same failure for each write of a group.
fn again(error: &Error) -> Error {
    match error {
        Error::Disk(source) => Error::Disk(io::Error::new(source.kind(), source.to_string())),
        Error::Corrupt(source) => Error::Corrupt(source.to_string().into()),
        _ => Error::Closed,
    }
}

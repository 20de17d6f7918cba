//! The database file: its schema, rows and settings. The only SQL there is.
//!
//! One [`Table`] is the writer, owned by the committer; the others read. No read
//! lasts longer than one call.

use super::index::{Index, Version};
use crate::{Error, Event, EventKind, Record, Revision};
use bytes::Bytes;
use rusqlite::hooks::Wal;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, TransactionBehavior};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// "Salp" in ASCII: a file of another program is refused.
const APPLICATION_ID: i64 = 0x5361_6c70;
/// Rises with the schema.
const SCHEMA_VERSION: i64 = 1;
/// Two kilobyte objects, compressed, make about ten a page.
const PAGE_BYTES: u32 = 8192;
/// Shorter values hardly shrink.
const COMPRESS_MIN: usize = 128;
/// Fast; the higher levels save a few per cent of such small values.
const COMPRESS_LEVEL: i32 = 1;
/// Pages of the database held per connection, in KiB.
const WRITER_CACHE_KIB: i64 = 2048;
const READER_CACHE_KIB: i64 = 512;
/// Readers and the committer hardly ever meet; a checkpoint may.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// One write as it is stored.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) revision: u64,
    pub(super) key: Arc<str>,
    pub(super) created: u64,
    /// The revision that it supersedes, 0 for none.
    pub(super) previous: u64,
    /// `None` for a deletion.
    pub(super) value: Option<Bytes>,
}

/// What is remembered besides rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Meta {
    /// Below this, reads and watches fail.
    pub(super) compacted: u64,
    /// Revisions up to this may have been handed out without being on disk; 0 for none.
    pub(super) reserved: u64,
    /// Revisions between these (both exclusive) were or may have been lost in a power cut.
    pub(super) gap: (u64, u64),
}

impl Meta {
    const NAMES: [&'static str; 4] = ["compacted", "reserved", "gap_low", "gap_high"];

    fn values(self) -> [u64; 4] {
        [self.compacted, self.reserved, self.gap.0, self.gap.1]
    }
}

/// A connection with what compresses for it.
pub(super) struct Table {
    conn: Connection,
    compressor: zstd::bulk::Compressor<'static>,
    decompressor: zstd::bulk::Decompressor<'static>,
    /// How long the write-ahead log was after the last commit, in pages.
    wal_pages: Arc<AtomicU32>,
}

impl Table {
    /// Opens the file to write, making it if there is none.
    pub(super) fn open_writer(path: &Path) -> Result<Self, Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let mut table = Self::open(path, flags)?;
        table.set_up().map_err(failed)?;
        let wal_pages = table.wal_pages.clone();
        table
            .conn
            .wal_hook(Some(move |_: &mut Wal, pages: std::ffi::c_int| {
                wal_pages.store(u32::try_from(pages).unwrap_or(0), Ordering::Relaxed);
                Ok(())
            }))
            .map_err(failed)?;
        Ok(table)
    }

    /// Opens the file, which the writer has set up, to read.
    pub(super) fn open_reader(path: &Path) -> Result<Self, Error> {
        let table = Self::open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let read_only = |conn: &Connection| {
            conn.pragma_update(None, "query_only", true)?;
            conn.pragma_update(None, "cache_size", -READER_CACHE_KIB)
        };
        read_only(&table.conn).map_err(failed)?;
        Ok(table)
    }

    fn open(path: &Path, flags: OpenFlags) -> Result<Self, Error> {
        let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(path, flags).map_err(failed)?;
        conn.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
        Ok(Self {
            conn,
            compressor: zstd::bulk::Compressor::new(COMPRESS_LEVEL).map_err(Error::Disk)?,
            decompressor: zstd::bulk::Decompressor::new().map_err(Error::Disk)?,
            wal_pages: Arc::default(),
        })
    }

    fn set_up(&mut self) -> rusqlite::Result<()> {
        let conn = &self.conn;
        // Order matters: both are fixed by the first page, which the journal mode writes.
        conn.pragma_update(None, "page_size", PAGE_BYTES)?;
        conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        conn.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        conn.pragma_update(None, "synchronous", "FULL")?;
        conn.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))?;
        conn.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
        conn.pragma_update(None, "temp_store", "MEMORY")?;
        let id: i64 = conn.pragma_query_value(None, "application_id", |row| row.get(0))?;
        let version: i64 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if (id, version) == (APPLICATION_ID, SCHEMA_VERSION) {
            return Ok(());
        }
        let tables: i64 =
            conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if id != 0 || tables != 0 {
            let message = format!("application {id:#x}, schema {version}, not a store of ours");
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_NOTADB);
            return Err(rusqlite::Error::SqliteFailure(code, Some(message)));
        }
        conn.execute_batch(&format!(
            "BEGIN IMMEDIATE;
             CREATE TABLE record (
                 revision INTEGER PRIMARY KEY,
                 key TEXT NOT NULL,
                 created INTEGER NOT NULL,
                 previous INTEGER NOT NULL,
                 size INTEGER NOT NULL, -- of the value when it is compressed, else 0
                 value BLOB -- NULL for a deletion
             );
             CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
             PRAGMA application_id = {APPLICATION_ID};
             PRAGMA user_version = {SCHEMA_VERSION};
             COMMIT;"
        ))
    }

    /// Everything but the values, and the newest revision that has a row (0 for none).
    pub(super) fn load(&self) -> Result<(Index, Meta, u64), Error> {
        let load = || -> rusqlite::Result<_> {
            let mut index = Index::default();
            let mut newest = 0;
            let mut statement = self
                .conn
                .prepare("SELECT revision, key, created, value IS NULL FROM record ORDER BY 1")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                newest = number(row, 0)?;
                let deleted: bool = row.get(3)?;
                let key = row.get_ref(1)?.as_str()?;
                // Keys of one object share their allocation.
                let key = match index.newest(key) {
                    Some((key, _)) => key,
                    None => Arc::from(key),
                };
                let created = if deleted { 0 } else { number(row, 2)? };
                let version = Version {
                    revision: newest,
                    created,
                };
                index.insert(&key, version);
            }
            let mut meta = [0; 4];
            for (value, name) in meta.iter_mut().zip(Meta::NAMES) {
                *value = self
                    .conn
                    .query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| {
                        number(row, 0)
                    })
                    .optional()?
                    .unwrap_or(0);
            }
            let meta = Meta {
                compacted: meta[0],
                reserved: meta[1],
                gap: (meta[2], meta[3]),
            };
            Ok((index, meta, newest))
        };
        load().map_err(failed)
    }

    /// Adds rows, changes the memory beside them and removes garbage, all or nothing, synced.
    pub(super) fn commit<'a>(
        &mut self,
        rows: impl Iterator<Item = &'a Row>,
        meta: Option<Meta>,
        garbage: &[u64],
    ) -> Result<(), Error> {
        let compressor = &mut self.compressor;
        let transaction = self
            .conn
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed)?;
        let write = || -> rusqlite::Result<()> {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO record (revision, key, created, previous, size, value)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?;
            for row in rows {
                let compressed = row.value.as_ref().and_then(|v| compress(compressor, v));
                let (size, value) = match (&compressed, &row.value) {
                    (Some(compressed), Some(value)) => (value.len(), Some(&compressed[..])),
                    (_, value) => (0, value.as_deref()),
                };
                insert.execute((
                    signed(row.revision),
                    &*row.key,
                    signed(row.created),
                    signed(row.previous),
                    signed(size as u64),
                    value,
                ))?;
            }
            drop(insert);
            if let Some(meta) = meta {
                let mut set = transaction
                    .prepare_cached("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)")?;
                for (name, value) in Meta::NAMES.into_iter().zip(meta.values()) {
                    set.execute((name, signed(value)))?;
                }
            }
            if !garbage.is_empty() {
                let mut delete =
                    transaction.prepare_cached("DELETE FROM record WHERE revision = ?1")?;
                for revision in garbage {
                    delete.execute([signed(*revision)])?;
                }
            }
            transaction.commit()
        };
        // A failure drops the transaction, which rolls it back.
        write().map_err(failed)
    }

    /// The value of one row; `None` when there is none.
    pub(super) fn value(&mut self, revision: u64) -> Result<Option<Bytes>, Error> {
        let mut statement = self
            .conn
            .prepare_cached("SELECT size, value FROM record WHERE revision = ?1")
            .map_err(failed)?;
        let mut rows = statement.query([signed(revision)]).map_err(failed)?;
        match rows.next().map_err(failed)? {
            Some(row) => decode(&mut self.decompressor, row, 0),
            None => Ok(None),
        }
    }

    /// The values of rows, in the given order, read from one state of the file.
    pub(super) fn values(&mut self, revisions: &[u64]) -> Result<Vec<Option<Bytes>>, Error> {
        let transaction = self.conn.unchecked_transaction().map_err(failed)?;
        let mut statement = transaction
            .prepare_cached("SELECT size, value FROM record WHERE revision = ?1")
            .map_err(failed)?;
        let decompressor = &mut self.decompressor;
        revisions
            .iter()
            .map(|revision| {
                let mut rows = statement.query([signed(*revision)]).map_err(failed)?;
                match rows.next().map_err(failed)? {
                    Some(row) => decode(decompressor, row, 0),
                    None => Ok(None),
                }
            })
            .collect()
    }

    /// Events after `from` up to `until` for keys with the prefix, looking at up to
    /// `rows_max` rows; and the revision that was reached.
    pub(super) fn history(
        &mut self,
        prefix: &str,
        from: u64,
        until: u64,
        rows_max: usize,
    ) -> Result<(Vec<Event>, u64), Error> {
        let mut statement = self
            .conn
            .prepare_cached(
                "SELECT r.revision, r.key, r.created, r.previous, r.size, r.value, p.size, p.value
                 FROM record r LEFT JOIN record p ON p.revision = r.previous
                 WHERE r.revision > ?1 AND r.revision <= ?2 ORDER BY r.revision LIMIT ?3",
            )
            .map_err(failed)?;
        let mut rows = statement
            .query((signed(from), signed(until), signed(rows_max as u64)))
            .map_err(failed)?;
        let mut events = Vec::new();
        let mut reached = from;
        let mut seen = 0;
        while let Some(row) = rows.next().map_err(failed)? {
            seen += 1;
            reached = number(row, 0).map_err(failed)?;
            let key = row.get_ref(1).and_then(|key| Ok(key.as_str()?));
            let key = key.map_err(failed)?;
            if !key.starts_with(prefix) {
                continue;
            }
            let value = decode(&mut self.decompressor, row, 4)?;
            let previous = decode(&mut self.decompressor, row, 6)?;
            events.push(event(
                Row {
                    revision: reached,
                    key: Arc::from(key),
                    created: number(row, 2).map_err(failed)?,
                    previous: number(row, 3).map_err(failed)?,
                    value,
                },
                previous,
            ));
        }
        let reached = if seen < rows_max { until } else { reached };
        Ok((events, reached))
    }

    /// How long the write-ahead log is, in bytes.
    pub(super) fn wal_bytes(&self) -> u64 {
        u64::from(self.wal_pages.load(Ordering::Relaxed)) * u64::from(PAGE_BYTES)
    }

    /// Moves what is in the log to its place, as far as readers allow; the log is then reused.
    pub(super) fn checkpoint(&mut self) -> Result<(), Error> {
        self.run_checkpoint("PRAGMA wal_checkpoint(PASSIVE)")?;
        self.wal_pages.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// As [`Table::checkpoint`], and gives the log's space back.
    pub(super) fn truncate_log(&mut self) -> Result<(), Error> {
        self.run_checkpoint("PRAGMA wal_checkpoint(TRUNCATE)")
    }

    fn run_checkpoint(&mut self, sql: &str) -> Result<(), Error> {
        self.conn.query_row(sql, [], |_| Ok(())).map_err(failed)
    }

    /// Gives up to `pages` unused pages back to the file system when many are unused;
    /// whether there is more to give.
    pub(super) fn shrink(&mut self, pages: u32) -> Result<bool, Error> {
        let shrink = || -> rusqlite::Result<bool> {
            let pragma = |name| -> rusqlite::Result<i64> {
                self.conn.pragma_query_value(None, name, |row| row.get(0))
            };
            let unused = pragma("freelist_count")?;
            // Some are kept for the writes to come.
            if unused <= (pragma("page_count")? / 4).max(i64::from(pages)) {
                return Ok(false);
            }
            let mut statement = self
                .conn
                .prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
            let mut rows = statement.query([])?;
            while rows.next()?.is_some() {}
            Ok(true)
        };
        shrink().map_err(failed)
    }

    /// Limits the file to so many pages, as a full disk would.
    #[cfg(test)]
    pub(super) fn limit_pages(&self, pages: u32) {
        let limit = self
            .conn
            .pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()));
        assert!(limit.is_ok(), "{limit:?}");
    }
}

/// The event that a row is.
pub(super) fn event(row: Row, previous: Option<Bytes>) -> Event {
    let kind = match (&row.value, row.previous) {
        (None, _) => EventKind::Deleted,
        (Some(_), 0) => EventKind::Created,
        (Some(_), _) => EventKind::Updated,
    };
    Event {
        record: Record {
            key: row.key,
            value: row.value.unwrap_or_default(),
            created: Revision(row.created),
            modified: Revision(row.revision),
        },
        previous,
        kind,
    }
}

/// What a failure of SQLite means to a caller.
fn failed(error: rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Error::Disk(io::Error::new(io::ErrorKind::StorageFull, error)),
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) | None => {
            Error::Corrupt(Box::new(error))
        }
        Some(_) => Error::Disk(io::Error::other(error)),
    }
}

fn compress(compressor: &mut zstd::bulk::Compressor<'_>, value: &[u8]) -> Option<Vec<u8>> {
    if value.len() < COMPRESS_MIN {
        return None;
    }
    let compressed = compressor.compress(value).ok()?;
    // A slower read must be worth an eighth.
    (compressed.len() < value.len() - value.len() / 8).then_some(compressed)
}

/// Reads the columns `size` and `value`, the first at `column`.
fn decode(
    decompressor: &mut zstd::bulk::Decompressor<'_>,
    row: &rusqlite::Row<'_>,
    column: usize,
) -> Result<Option<Bytes>, Error> {
    let value = row
        .get_ref(column + 1)
        .and_then(|value| Ok(value.as_blob_or_null()?))
        .map_err(failed)?;
    let Some(value) = value else {
        return Ok(None);
    };
    let size = number(row, column).map_err(failed)?;
    if size == 0 {
        return Ok(Some(Bytes::copy_from_slice(value)));
    }
    let size = usize::try_from(size).map_err(|error| Error::Corrupt(Box::new(error)))?;
    let value = decompressor
        .decompress(value, size)
        .map_err(|error| Error::Corrupt(Box::new(error)))?;
    Ok(Some(Bytes::from(value)))
}

/// SQLite's integers are signed; revisions stay far below the difference.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn number(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let number: i64 = row.get(column)?;
    Ok(u64::try_from(number).unwrap_or(0))
}

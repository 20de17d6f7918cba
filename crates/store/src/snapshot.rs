//! All keys of a store at one revision: to keep in a file, or to put into another store.
//!
//! The file is one zstd stream of JSON lines: a header, a line for each key in key order, and
//! a last line with their number, so that a file that was cut off is recognised.

use crate::{Durability, Error, RangeRequest, Record, Revision, Store, Write};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::sync::Arc;

/// What the first line calls the format.
const FORMAT: &str = "salp-store-snapshot/1";
/// Longest line that is read: a value of twice etcd's largest request.
const LINE_BYTES_MAX: u64 = 8 << 20;
/// Writes under way at once.
const WRITES: usize = 64;
/// Records read at once.
const PAGE: usize = 500;
/// Below this is what the servers of a site tell each other: it is not of the API, and they tell
/// it anew.
const OWN: &str = "/salp/";
/// zstd's level.
const LEVEL: i32 = 3;

/// All keys at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The revision.
    pub revision: Revision,
    /// Keys and values, in key order.
    pub records: Vec<(Arc<str>, Bytes)>,
}

/// Why a file is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It can't be read, or is no zstd stream.
    #[error("read snapshot")]
    Io(#[from] io::Error),
    /// It is something else, or damaged.
    #[error("read snapshot: {0}")]
    Invalid(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    revision: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Line {
    Record { key: String, value: String },
    End { records: u64 },
}

impl Snapshot {
    /// What a store has now.
    ///
    /// # Errors
    /// Those of reading it.
    pub async fn of(store: &dyn Store) -> Result<Self, Error> {
        let mut records: Vec<(Arc<str>, Bytes)> = Vec::new();
        let mut at = None;
        loop {
            let range = store
                .range(RangeRequest {
                    prefix: String::new(),
                    after: records.last().map(|(key, _)| key.to_string()),
                    limit: PAGE,
                    at,
                })
                .await?;
            at = Some(range.revision);
            let of = |record: Record| (record.key, record.value);
            records.extend(range.records.into_iter().map(of));
            if range.remaining == 0 {
                records.retain(|(key, _)| !key.starts_with(OWN));
                return Ok(Self {
                    revision: range.revision,
                    records,
                });
            }
        }
    }

    /// Puts all into a store that has nothing, and goes on to a later revision than it was
    /// read at, so that clients that saw that one see time go forward. `told` hears how many
    /// records are written.
    ///
    /// # Errors
    /// [`Error::Exists`] when something is there, and those of writing.
    pub async fn put_into(
        &self,
        store: &dyn Store,
        told: impl Fn(usize) + Sync,
    ) -> Result<(), Error> {
        if store.count("").await? > 0 {
            return Err(Error::Exists(store.revision().await?));
        }
        let written = std::sync::atomic::AtomicUsize::new(0);
        stream::iter(&self.records)
            .map(|(key, value)| {
                let value = value.clone();
                store.write(key, Write::Create { value }, Durability::Sync)
            })
            .buffer_unordered(WRITES)
            .try_for_each(async |_| {
                told(1 + written.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
                Ok(())
            })
            .await?;
        pass(store, self.revision).await
    }

    /// Writes the file.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_to(&self, out: impl io::Write) -> io::Result<()> {
        let mut out = zstd::Encoder::new(out, LEVEL)?;
        out.include_checksum(true)?;
        let header = Header {
            format: FORMAT.to_owned(),
            revision: self.revision.0,
        };
        serde_json::to_writer(&mut out, &header)?;
        let lines = self.records.iter().map(|(key, value)| Line::Record {
            key: key.to_string(),
            value: STANDARD.encode(value),
        });
        let end = Line::End {
            records: self.records.len() as u64,
        };
        for line in lines.chain([end]) {
            out.write_all(b"\n")?;
            serde_json::to_writer(&mut out, &line)?;
        }
        out.write_all(b"\n")?;
        out.finish()?.flush()
    }

    /// Reads a whole file.
    ///
    /// # Errors
    /// When it is no snapshot, or not whole.
    pub fn read_from(file: impl Read) -> Result<Self, ReadError> {
        let invalid = |why: &str| ReadError::Invalid(why.to_owned());
        let mut lines = BufReader::new(zstd::Decoder::new(file)?);
        let mut line = String::new();
        let mut next = || -> Result<Option<String>, ReadError> {
            line.clear();
            let read = lines.by_ref().take(LINE_BYTES_MAX).read_line(&mut line)?;
            if read > 0 && !line.ends_with('\n') {
                return Err(ReadError::Invalid("it ends within a line".into()));
            }
            Ok((read > 0).then(|| line.trim_end().to_owned()))
        };
        let header = next()?.ok_or_else(|| invalid("it is empty"))?;
        let header: Header =
            serde_json::from_str(&header).map_err(|_| invalid("it is no snapshot of a store"))?;
        if header.format != FORMAT {
            let other = format!("it has the format {}, this is for {FORMAT}", header.format);
            return Err(ReadError::Invalid(other));
        }
        let mut records: Vec<(Arc<str>, Bytes)> = Vec::new();
        while let Some(line) = next()? {
            match serde_json::from_str(&line) {
                Ok(Line::Record { key, value }) => {
                    let value = STANDARD.decode(value);
                    let value = value.map_err(|_| invalid(&format!("the value of {key}")))?;
                    if records.last().is_some_and(|(last, _)| **last >= *key) {
                        return Err(invalid(&format!("{key} is out of order")));
                    }
                    records.push((key.into(), value.into()));
                }
                Ok(Line::End { records: count }) => {
                    if count != records.len() as u64 || next()?.is_some() {
                        return Err(invalid("it has not as many records as it says"));
                    }
                    return Ok(Self {
                        revision: Revision(header.revision),
                        records,
                    });
                }
                Err(e) => return Err(invalid(&format!("record {}: {e}", records.len() + 1))),
            }
        }
        Err(invalid("its end is missing"))
    }
}

/// Writes and removes keys until the newest revision is later than this one.
async fn pass(store: &dyn Store, revision: Revision) -> Result<(), Error> {
    let newest = store.revision().await?;
    let missing = (revision.0 + 1).saturating_sub(newest.0);
    stream::iter(0..missing.div_ceil(2))
        .map(async |n| {
            let key = format!("/passed/{n}");
            let value = Bytes::new();
            let made = store.write(&key, Write::Create { value }, Durability::Lazy);
            let expected = made.await?.modified;
            let removed = store.write(&key, Write::Delete { expected }, Durability::Lazy);
            removed.await.map(|_| ())
        })
        .buffer_unordered(WRITES)
        .try_collect::<()>()
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn snapshots() -> impl Strategy<Value = Snapshot> {
        let values = prop::collection::vec(any::<u8>(), 0..200);
        let records = prop::collection::btree_map("[/a-z]{1,20}", values, 0..20);
        (any::<u64>(), records).prop_map(|(revision, records)| Snapshot {
            revision: Revision(revision),
            records: records
                .into_iter()
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
        })
    }

    fn file(snapshot: &Snapshot) -> Vec<u8> {
        let mut file = Vec::new();
        snapshot.write_to(&mut file).expect("a vector takes all");
        file
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(snapshot in snapshots()) {
            let read = Snapshot::read_from(&file(&snapshot)[..]);
            prop_assert_eq!(read.expect("is whole"), snapshot);
        }

        #[test]
        fn what_is_cut_off_or_changed_is_refused(
            snapshot in snapshots(),
            at in any::<prop::sample::Index>(),
            bit in 0..8u8,
            cut in any::<bool>(),
        ) {
            let mut file = file(&snapshot);
            let at = at.index(file.len());
            if cut {
                file.truncate(at);
            } else {
                file[at] ^= 1 << bit;
            }
            // A changed bit may be one that means nothing; then all is as it was.
            if let Ok(read) = Snapshot::read_from(&file[..]) {
                prop_assert_eq!(read, snapshot);
            }
        }
    }
}

//! What a site tells all others: named values with revisions. Others hold copies, follow by
//! deltas, and catch up from the revision they have. Pure.
//!
//! A value is bytes that nothing here understands. A site's revisions start again at 1 when
//! it does; its incarnation tells the two counts apart.

use crate::wire::{DecodeError, Reader, Writer};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Values a site may publish; more are refused.
pub const ENTRIES_MAX: usize = 10_000;
/// Bytes of a key; longer ones are refused.
pub const KEY_MAX: usize = 512;
/// Bytes of a value; longer ones are refused.
pub const VALUE_MAX: usize = 64 * 1024;
/// Bytes of all keys and values of a site; more are refused.
pub const STATE_MAX: usize = 8 * 1024 * 1024;
/// Values that are gone and remembered, so that others need not start over. Of more, the
/// oldest are forgotten, and who has missed them gets everything again.
const TOMBSTONES_MAX: usize = 1024;
/// Bytes of keys and values in one delta, about: it always holds at least one entry.
const DELTA_BYTES: usize = 96 * 1024;
/// Entries in one delta.
const DELTA_ENTRIES: usize = 1024;

/// A stretch of a site's changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// It continues from this revision; 0 starts over.
    pub from: u64,
    /// It leads to this one.
    pub to: u64,
    /// The site's revision when it was made: there is more when it is above `to`.
    pub latest: u64,
    /// Values set, and keys that are gone.
    pub entries: Vec<(String, Option<Bytes>)>,
}

impl Delta {
    pub(crate) fn write(&self, w: &mut Writer) {
        w.number(self.from).number(self.to).number(self.latest);
        w.number(self.entries.len() as u64);
        for (key, value) in &self.entries {
            w.text(key).u8(value.is_some().into());
            if let Some(value) = value {
                w.bytes(value);
            }
        }
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (from, to, latest) = (r.number()?, r.number()?, r.number()?);
        if from > to || to > latest {
            return Err(DecodeError::Form("a delta's revisions"));
        }
        let count = r.count("a delta", DELTA_ENTRIES)?;
        let mut entries = Vec::new();
        for _ in 0..count {
            let key = r.text("a key", KEY_MAX)?.to_owned();
            let value = match r.flag("a value")? {
                true => Some(Bytes::copy_from_slice(r.bytes("a value", VALUE_MAX)?)),
                false => None,
            };
            entries.push((key, value));
        }
        Ok(Self {
            from,
            to,
            latest,
            entries,
        })
    }
}

/// Why a value can't be published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum PublishError {
    #[error("publish {key:.64}: the key is longer than {KEY_MAX} bytes")]
    Key { key: String },
    #[error("publish {key}: {size} bytes are more than {VALUE_MAX}")]
    Value { key: String, size: usize },
    #[error("publish {key}: a site publishes at most {ENTRIES_MAX} values of {STATE_MAX} bytes")]
    Full { key: String },
}

/// What this site tells.
#[derive(Debug, Default)]
pub(crate) struct Published {
    revision: u64,
    entries: BTreeMap<String, (u64, Option<Bytes>)>,
    by_revision: BTreeMap<u64, String>,
    tombstones: usize,
    bytes: usize,
    /// Deltas from below this are made from everything.
    floor: u64,
}

impl Published {
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Sets a value or takes it away; whether that changed anything.
    pub(crate) fn set(&mut self, key: &str, value: Option<Bytes>) -> Result<bool, PublishError> {
        let key = key.to_owned();
        if key.len() > KEY_MAX {
            return Err(PublishError::Key { key });
        }
        let size = |value: &Option<Bytes>| value.as_ref().map_or(0, |v| v.len() + key.len());
        let old = self.entries.get(&key);
        let old_value = old.and_then(|(_, v)| v.clone());
        if old_value == value {
            return Ok(false);
        }
        if let Some(value) = value.as_ref().filter(|v| v.len() > VALUE_MAX) {
            let size = value.len();
            return Err(PublishError::Value { key, size });
        }
        let live = self.entries.len() - self.tombstones;
        let bytes = self.bytes - size(&old_value) + size(&value);
        if value.is_some() && (bytes > STATE_MAX || old_value.is_none() && live >= ENTRIES_MAX) {
            return Err(PublishError::Full { key });
        }
        self.bytes = bytes;
        match old {
            Some((revision, None)) => {
                self.by_revision.remove(revision);
                self.tombstones -= 1;
            }
            Some((revision, Some(_))) => {
                self.by_revision.remove(revision);
            }
            None => {}
        }
        self.revision += 1;
        self.tombstones += usize::from(value.is_none());
        self.by_revision.insert(self.revision, key.clone());
        self.entries.insert(key, (self.revision, value));
        self.forget();
        Ok(true)
    }

    fn forget(&mut self) {
        if self.tombstones <= TOMBSTONES_MAX {
            return;
        }
        // Half of them at once, so that this is rare.
        let gone: Vec<u64> = self
            .by_revision
            .iter()
            .filter(|(_, key)| self.entries.get(*key).is_some_and(|e| e.1.is_none()))
            .map(|(revision, _)| *revision)
            .take(TOMBSTONES_MAX / 2)
            .collect();
        for revision in gone {
            if let Some(key) = self.by_revision.remove(&revision) {
                self.entries.remove(&key);
                self.tombstones -= 1;
                self.floor = revision;
            }
        }
    }

    /// What has changed since a revision, at most a message full of it.
    pub(crate) fn since(&self, revision: u64) -> Delta {
        // Who is ahead has known another count of revisions.
        let known = revision >= self.floor && revision <= self.revision;
        let from = if known { revision } else { 0 };
        let mut delta = Delta {
            from,
            to: self.revision,
            latest: self.revision,
            entries: Vec::new(),
        };
        let mut bytes = 0;
        let mut reached = from;
        for (revision, key) in self.by_revision.range(from + 1..) {
            let value = self.entries.get(key).and_then(|(_, v)| v.clone());
            let size = key.len() + value.as_ref().map_or(0, Bytes::len);
            let full = bytes + size > DELTA_BYTES || delta.entries.len() == DELTA_ENTRIES;
            if full && !delta.entries.is_empty() {
                delta.to = reached;
                return delta;
            }
            bytes += size;
            reached = *revision;
            delta.entries.push((key.clone(), value));
        }
        delta
    }
}

/// A copy of what another site tells.
#[derive(Clone, Debug, Default)]
pub(crate) struct Copy {
    incarnation: u64,
    revision: u64,
    /// The highest revision heard of in this incarnation.
    latest: u64,
    entries: Arc<BTreeMap<String, Bytes>>,
    bytes: usize,
    /// What replaces the entries once it is whole: the site starts over.
    incoming: Option<(u64, BTreeMap<String, Bytes>)>,
}

impl Copy {
    pub(crate) fn entries(&self) -> &Arc<BTreeMap<String, Bytes>> {
        &self.entries
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// The highest revision that was heard of.
    pub(crate) fn latest(&self) -> u64 {
        self.latest.max(self.revision)
    }

    /// Hears of a revision.
    pub(crate) fn heard(&mut self, incarnation: u64, latest: u64) {
        if incarnation > self.incarnation {
            self.incarnation = incarnation;
            self.revision = 0;
            self.latest = 0;
            self.incoming = None;
        }
        if incarnation == self.incarnation {
            self.latest = self.latest.max(latest);
        }
    }

    /// The site has started again and still tells nothing: what is here is of the past.
    /// Whether there was something.
    pub(crate) fn clear_past(&mut self) -> bool {
        let past = self.latest == 0 && !self.entries.is_empty();
        if past {
            self.entries = Arc::default();
            self.bytes = 0;
        }
        past
    }

    /// From where to ask for more, if there is more.
    pub(crate) fn wanted(&self) -> Option<u64> {
        let have = self.incoming.as_ref().map_or(self.revision, |i| i.0);
        (self.latest > have || self.incoming.is_some()).then_some(have)
    }

    /// Takes in a delta; whether what is seen from outside has changed.
    pub(crate) fn apply(&mut self, incarnation: u64, delta: &Delta) -> bool {
        self.heard(incarnation, delta.latest);
        if incarnation != self.incarnation {
            return false;
        }
        let whole = delta.to == delta.latest;
        // Everything from the start, or the next page of that.
        // (its first page may come twice).
        let starts = delta.from == 0
            && delta.to > self.revision
            && self.incoming.as_ref().is_none_or(|i| i.0 != delta.to);
        let continues = self.incoming.as_ref().is_some_and(|i| i.0 == delta.from);
        if starts || continues {
            let (_, mut entries) = self.incoming.take().unwrap_or_default();
            if starts {
                entries.clear();
            }
            for (key, value) in &delta.entries {
                match value {
                    Some(value) => entries.insert(key.clone(), value.clone()),
                    None => entries.remove(key),
                };
            }
            if measure(&entries) > STATE_MAX || entries.len() > ENTRIES_MAX {
                return false;
            }
            if !whole {
                self.incoming = Some((delta.to, entries));
                return false;
            }
            self.revision = delta.to;
            self.bytes = measure(&entries);
            let changed = *self.entries != entries;
            self.entries = Arc::new(entries);
            return changed;
        }
        if self.incoming.is_some()
            || self.revision == 0
            || delta.from > self.revision
            || delta.to <= self.revision
        {
            return false;
        }
        let mut changed = false;
        let entries = Arc::make_mut(&mut self.entries);
        for (key, value) in &delta.entries {
            let size = |v: &Bytes| v.len() + key.len();
            match value {
                Some(value) => {
                    let old = entries.get(key);
                    let bytes = self.bytes + size(value) - old.map_or(0, size);
                    if bytes > STATE_MAX || old.is_none() && entries.len() >= ENTRIES_MAX {
                        // An honest site sends no such thing.
                        return changed;
                    }
                    self.bytes = bytes;
                    changed |= entries.insert(key.clone(), value.clone()).as_ref() != Some(value);
                }
                None => {
                    if let Some(old) = entries.remove(key) {
                        self.bytes -= size(&old);
                        changed = true;
                    }
                }
            }
        }
        self.revision = delta.to;
        changed
    }
}

fn measure(entries: &BTreeMap<String, Bytes>) -> usize {
    entries.iter().map(|(k, v)| k.len() + v.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(text: &str) -> Option<Bytes> {
        Some(Bytes::copy_from_slice(text.as_bytes()))
    }

    /// Follows to the end, as a site does by asking.
    fn follow(copy: &mut Copy, of: &Published, incarnation: u64) {
        copy.heard(incarnation, of.revision());
        while let Some(since) = copy.wanted() {
            copy.apply(incarnation, &of.since(since));
        }
    }

    fn live(of: &Published) -> BTreeMap<String, Bytes> {
        let entries = of.entries.iter();
        entries
            .filter_map(|(k, (_, v))| Some((k.clone(), v.clone()?)))
            .collect()
    }

    #[test]
    fn bounds_are_refused_by_name() {
        let mut p = Published::default();
        let long = "k".repeat(KEY_MAX + 1);
        assert!(matches!(
            p.set(&long, value("")),
            Err(PublishError::Key { .. })
        ));
        let large = Some(Bytes::from(vec![0; VALUE_MAX + 1]));
        assert_eq!(
            p.set("a", large).unwrap_err().to_string(),
            "publish a: 65537 bytes are more than 65536"
        );
        for i in 0..ENTRIES_MAX {
            assert_eq!(p.set(&i.to_string(), value("v")), Ok(true));
        }
        assert_eq!(
            p.set("more", value("v")),
            Err(PublishError::Full { key: "more".into() })
        );
        assert_eq!(p.set("1", None), Ok(true));
        assert_eq!(p.set("more", value("v")), Ok(true));
        assert_eq!(p.set("more", value("v")), Ok(false));
    }

    #[test]
    fn many_pages_come_together_and_replace_at_once() {
        let mut p = Published::default();
        for i in 0..3000 {
            p.set(&format!("k{i}"), value("v")).unwrap();
        }
        let mut copy = Copy::default();
        follow(&mut copy, &p, 1);
        assert_eq!(copy.entries().len(), 3000);
        // The site restarts with fewer: until all of it is here the old is seen.
        let mut q = Published::default();
        for i in 0..2000 {
            q.set(&format!("k{i}"), value("w")).unwrap();
        }
        copy.heard(2, q.revision());
        assert!(!copy.apply(2, &q.since(0)));
        assert_eq!(copy.entries().len(), 3000);
        follow(&mut copy, &q, 2);
        assert_eq!(**copy.entries(), live(&q));
        // Of the incarnation before nothing is taken in.
        assert!(!copy.apply(1, &p.since(0)));
    }

    #[test]
    fn forgotten_removals_start_over() {
        let mut p = Published::default();
        p.set("stays", value("v")).unwrap();
        p.set("goes", value("v")).unwrap();
        let mut copy = Copy::default();
        follow(&mut copy, &p, 1);
        p.set("goes", None).unwrap();
        for i in 0..3 * TOMBSTONES_MAX {
            p.set(&i.to_string(), value("v")).unwrap();
            p.set(&i.to_string(), None).unwrap();
        }
        assert!(p.entries.len() <= TOMBSTONES_MAX + 1);
        follow(&mut copy, &p, 1);
        assert_eq!(**copy.entries(), live(&p));
    }

    proptest! {
        #[test]
        fn copies_converge(
            steps in prop::collection::vec((0u8..6, 0u8..4, any::<bool>(), any::<bool>()), 1..80),
        ) {
            let mut p = Published::default();
            let mut copy = Copy::default();
            let mut announced = 0;
            for (key, v, remove, deliver) in steps {
                let v = if remove { None } else { value(&v.to_string()) };
                p.set(&key.to_string(), v).unwrap();
                let delta = p.since(announced);
                announced = p.revision();
                // Some are lost; a copy never shows what was not so at some revision.
                if deliver {
                    copy.apply(1, &delta);
                }
                if copy.revision() == p.revision() {
                    prop_assert_eq!(&**copy.entries(), &live(&p));
                }
            }
            follow(&mut copy, &p, 1);
            prop_assert_eq!(&**copy.entries(), &live(&p));
        }

        #[test]
        fn a_delta_survives(entries in prop::collection::vec(("[a-z/]{0,9}", prop::option::of(prop::collection::vec(any::<u8>(), 0..9))), 0..9), from in 0u64..9, more in 0u64..9) {
            let delta = Delta {
                from, to: from + more, latest: from + 2 * more,
                entries: entries.into_iter().map(|(k, v)| (k, v.map(Bytes::from))).collect(),
            };
            let mut w = Writer::new();
            delta.write(&mut w);
            prop_assert_eq!(Delta::read(&mut Reader::new(w.as_slice())), Ok(delta));
        }
    }
}

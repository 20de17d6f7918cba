//! Which keys there are and at which revisions, in memory; no values.
//!
//! Rebuilt at start from the table, changed only by the committer after a commit.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

/// One version of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version {
    /// Its write, which is also its row.
    pub(super) revision: u64,
    /// The write that made the key; 0 when this version is a deletion.
    pub(super) created: u64,
}

impl Version {
    fn live(self) -> bool {
        self.created != 0
    }
}

#[derive(Debug)]
struct Versions {
    newest: Version,
    /// Versions before the newest that are not compacted yet, oldest first.
    older: Vec<Version>,
}

/// A row that compaction at or after `superseding` may remove.
#[derive(Debug)]
struct Superseded {
    superseding: u64,
    revision: u64,
    key: Arc<str>,
}

/// The index. Its size is the number of keys plus the history that is not compacted.
#[derive(Debug, Default)]
pub(super) struct Index {
    keys: BTreeMap<Arc<str>, Versions>,
    /// Rising by `superseding`.
    superseded: VecDeque<Superseded>,
}

impl Index {
    /// Adds a version; revisions come in rising order.
    pub(super) fn insert(&mut self, key: &Arc<str>, version: Version) {
        let superseding = version.revision;
        match self.keys.get_mut(key) {
            Some(versions) => {
                let old = std::mem::replace(&mut versions.newest, version);
                versions.older.push(old);
                // A deletion is queued as its own garbage when it is made.
                if old.live() {
                    self.superseded.push_back(Superseded {
                        superseding,
                        revision: old.revision,
                        key: key.clone(),
                    });
                }
            }
            None => {
                let versions = Versions {
                    newest: version,
                    older: Vec::new(),
                };
                self.keys.insert(key.clone(), versions);
            }
        }
        if !version.live() {
            self.superseded.push_back(Superseded {
                superseding,
                revision: superseding,
                key: key.clone(),
            });
        }
    }

    /// The key's newest version, deletions too, and the shared key.
    pub(super) fn newest(&self, key: &str) -> Option<(Arc<str>, Version)> {
        let (key, versions) = self.keys.get_key_value(key)?;
        Some((key.clone(), versions.newest))
    }

    /// What the key was at a revision, unless it was not there.
    pub(super) fn at(&self, key: &str, at: u64) -> Option<(Arc<str>, Version)> {
        let (key, versions) = self.keys.get_key_value(key)?;
        versions.at(at).map(|version| (key.clone(), version))
    }

    /// Live keys with the prefix, after one (exclusive), at a revision, in order.
    pub(super) fn range<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        at: u64,
    ) -> impl Iterator<Item = (&'a Arc<str>, Version)> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.keys
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .filter_map(move |(key, versions)| Some((key, versions.at(at)?)))
    }

    /// How many rows wait for a compaction that has not been asked for, or not got to them.
    pub(super) fn superseded_len(&self) -> usize {
        self.superseded.len()
    }

    /// Where to compact so that `keep` superseded rows remain.
    pub(super) fn compaction_keeping(&self, keep: usize) -> Option<u64> {
        let last = self.superseded.len().checked_sub(keep + 1)?;
        Some(self.superseded[last].superseding)
    }

    /// Up to `max` rows that a compaction at `compacted` removes, oldest first.
    pub(super) fn garbage(&self, compacted: u64, max: usize) -> Vec<u64> {
        self.superseded
            .iter()
            .take(max)
            .take_while(|s| s.superseding <= compacted)
            .map(|s| s.revision)
            .collect()
    }

    /// Forgets the first `count` rows of [`Index::garbage`].
    pub(super) fn forget(&mut self, count: usize) {
        for Superseded { revision, key, .. } in self.superseded.drain(..count) {
            let Some(versions) = self.keys.get_mut(&key) else {
                continue;
            };
            if versions.newest.revision == revision {
                self.keys.remove(&key);
            } else {
                versions.older.retain(|v| v.revision != revision);
                if versions.older.is_empty() {
                    versions.older = Vec::new();
                }
            }
        }
        // A burst of history must not stay paid for.
        if self.superseded.capacity() > 4 * self.superseded.len().max(256) {
            self.superseded.shrink_to_fit();
        }
    }
}

impl Versions {
    fn at(&self, at: u64) -> Option<Version> {
        let version = if self.newest.revision <= at {
            self.newest
        } else {
            *self.older.iter().rev().find(|v| v.revision <= at)?
        };
        version.live().then_some(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(index: &mut Index, key: &str, revision: u64, created: u64) {
        index.insert(&Arc::from(key), Version { revision, created });
    }

    fn keys(index: &Index, prefix: &str, after: Option<&str>, at: u64) -> Vec<String> {
        index
            .range(prefix, after, at)
            .map(|(key, v)| format!("{key}@{}", v.revision))
            .collect()
    }

    #[test]
    fn shows_the_past_until_it_is_forgotten() {
        let mut index = Index::default();
        put(&mut index, "a", 1, 1);
        put(&mut index, "ab", 2, 2);
        put(&mut index, "a", 3, 1);
        put(&mut index, "ab", 4, 0);
        put(&mut index, "b", 5, 5);
        assert_eq!(keys(&index, "a", None, 2), ["a@1", "ab@2"]);
        assert_eq!(keys(&index, "a", Some("a"), 3), ["ab@2"]);
        assert_eq!(keys(&index, "", None, 5), ["a@3", "b@5"]);
        assert_eq!(index.garbage(3, 10), [1]);
        assert_eq!(index.garbage(5, 10), [1, 2, 4]);
        index.forget(3);
        assert_eq!(index.superseded_len(), 0);
        assert!(index.newest("ab").is_none());
        assert_eq!(keys(&index, "", None, 5), ["a@3", "b@5"]);
    }

    #[test]
    fn a_key_made_again_loses_only_its_old_life() {
        let mut index = Index::default();
        put(&mut index, "a", 1, 1);
        put(&mut index, "a", 2, 0);
        put(&mut index, "a", 3, 3);
        assert_eq!(index.garbage(9, 10), [1, 2]);
        index.forget(2);
        assert_eq!(keys(&index, "", None, 9), ["a@3"]);
        assert_eq!(index.compaction_keeping(0), None);
    }
}

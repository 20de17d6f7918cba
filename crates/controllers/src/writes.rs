//! What was written but may not be told by an informer yet, statuses that wait for more to
//! tell, and writing many objects.
//!
//! A controller that counts pods must not count from before its own last writes, or it
//! makes them twice. It remembers the revision of the last pod that it made and waits
//! until the informer has seen as much; pods that it deleted it no longer counts,
//! whatever the informer says.

use client::ObjectKey;
use futures::StreamExt as _;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::time::Instant;

/// How long a write is waited for. It is told sooner, except when it was undone while
/// the watch was broken: then there is nothing to be told.
const UNSEEN_MAX: Duration = Duration::from_secs(30);
/// When to look again in case what is waited for was told before it was waited for.
pub(crate) const UNSEEN_RETRY: Duration = Duration::from_millis(200);
/// Requests of one reconcile that are under way at once.
const AT_ONCE_MAX: usize = 32;

/// Unseen writes by the key of who made them. Forgotten with it, and when seen.
#[derive(Debug, Default)]
pub(crate) struct Unseen {
    /// Guards the table for single look-ups.
    writes: Mutex<HashMap<ObjectKey, Writes>>,
}

#[derive(Debug)]
struct Writes {
    revision: u64,
    at: Instant,
    deleted: HashSet<String>,
}

impl Unseen {
    /// Whether all writes of `key` are seen by an informer that has seen `revision`.
    pub(crate) fn is_seen(&self, key: &ObjectKey, revision: u64) -> bool {
        let mut writes = self.writes.lock();
        let Some(mine) = writes.get_mut(key) else {
            return true;
        };
        if mine.revision > revision && mine.at.elapsed() < UNSEEN_MAX {
            return false;
        }
        mine.revision = 0;
        if mine.deleted.is_empty() {
            writes.remove(key);
        }
        true
    }

    /// Notes an object that `key` made or changed.
    pub(crate) fn wrote(&self, key: &ObjectKey, object: &impl kube::Resource) {
        let version = object.meta().resource_version.as_deref();
        let Some(version) = version.and_then(|v| v.parse::<u64>().ok()) else {
            return;
        };
        let mut writes = self.writes.lock();
        let mine = writes.entry(key.clone()).or_insert_with(Writes::new);
        mine.revision = mine.revision.max(version);
        mine.at = Instant::now();
    }

    /// Notes an object that `key` deleted.
    pub(crate) fn deleted(&self, key: &ObjectKey, uid: &str) {
        self.writes
            .lock()
            .entry(key.clone())
            .or_insert_with(Writes::new)
            .deleted
            .insert(uid.to_owned());
    }

    /// The uids among `present` that `key` has deleted; others are forgotten.
    pub(crate) fn deleted_of<'a>(
        &self,
        key: &ObjectKey,
        present: impl Iterator<Item = &'a str>,
    ) -> HashSet<String> {
        let mut writes = self.writes.lock();
        let Some(mine) = writes.get_mut(key).filter(|w| !w.deleted.is_empty()) else {
            return HashSet::new();
        };
        let still: HashSet<String> = present
            .filter(|uid| mine.deleted.contains(*uid))
            .map(ToOwned::to_owned)
            .collect();
        mine.deleted.clone_from(&still);
        still
    }

    /// Forgets all of `key`.
    pub(crate) fn forget(&self, key: &ObjectKey) {
        self.writes.lock().remove(key);
    }
}

impl Writes {
    fn new() -> Self {
        Self {
            revision: 0,
            at: Instant::now(),
            deleted: HashSet::new(),
        }
    }
}

/// How long a status that is about to change again is not written.
const LULL: Duration = Duration::from_millis(250);

/// Statuses that are on their way somewhere: each is written when it has arrived, or when
/// it has waited for [`LULL`]. A pod that comes or goes is four changes of its set's counts
/// in some tens of milliseconds, of which only the last is news to anybody.
#[derive(Debug, Default)]
pub(crate) struct Lulls {
    /// Since when the status of each has waited. Guards the table for single look-ups.
    since: Mutex<HashMap<ObjectKey, Instant>>,
}

impl Lulls {
    /// How long the status of `key` is to wait yet; none when it is to be written now.
    pub(crate) fn wait(&self, key: &ObjectKey) -> Option<Duration> {
        let mut since = self.since.lock();
        let at = *since.entry(key.clone()).or_insert_with(Instant::now);
        let left = LULL.checked_sub(at.elapsed()).filter(|d| !d.is_zero());
        if left.is_none() {
            since.remove(key);
        }
        left
    }

    /// The status of `key` is written, or it has none any more.
    pub(crate) fn end(&self, key: &ObjectKey) {
        self.since.lock().remove(key);
    }
}

/// Does the same `count` times, first once, then twice as many at once as succeeded
/// before, so that what fails always fails once, not thousands of times. How many
/// succeeded, and the first failure.
pub(crate) async fn slow_start<T, E, F, Fut>(count: usize, attempt: F) -> (Vec<T>, Option<E>)
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let mut done = Vec::with_capacity(count);
    let (mut next, mut batch) = (0, 1);
    while next < count {
        let end = (next + batch).min(count);
        let results: Vec<_> = futures::stream::iter((next..end).map(&attempt))
            .buffer_unordered(AT_ONCE_MAX)
            .collect()
            .await;
        let mut failure = None;
        for result in results {
            match result {
                Ok(value) => done.push(value),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if failure.is_some() {
            return (done, failure);
        }
        next = end;
        batch *= 2;
    }
    (done, None)
}

/// Does something for each item, many at once; the first failure, after all have ended.
pub(crate) async fn for_each<I, T, E, Fut>(items: I, attempt: impl Fn(T) -> Fut) -> Result<(), E>
where
    I: IntoIterator<Item = T>,
    Fut: Future<Output = Result<(), E>>,
{
    let results: Vec<_> = futures::stream::iter(items.into_iter().map(attempt))
        .buffer_unordered(AT_ONCE_MAX)
        .collect()
        .await;
    results.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[tokio::test]
    async fn a_slow_start_doubles_and_stops_at_the_first_batch_that_fails() {
        let tried = RefCell::new(Vec::new());
        let (done, failure) = slow_start(20, |n| {
            tried.borrow_mut().push(n);
            async move { if n == 5 { Err("no") } else { Ok(n) } }
        })
        .await;
        assert_eq!(done, [0, 1, 2, 3, 4, 6]);
        assert_eq!(failure, Some("no"));
        assert_eq!(tried.borrow().len(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn writes_are_unseen_until_told_or_too_old() {
        let unseen = Unseen::default();
        let key = ObjectKey::new("ns", "rs");
        let mut pod = client::k8s_openapi::api::core::v1::Pod::default();
        pod.metadata.resource_version = Some("7".into());
        unseen.wrote(&key, &pod);
        assert!(!unseen.is_seen(&key, 6));
        assert!(unseen.is_seen(&key, 7));
        assert!(unseen.is_seen(&key, 0), "seen once, no longer asked");
        unseen.wrote(&key, &pod);
        tokio::time::advance(UNSEEN_MAX).await;
        assert!(unseen.is_seen(&key, 6));
    }

    #[tokio::test(start_paused = true)]
    async fn a_status_waits_for_a_lull_and_no_longer() {
        let lulls = Lulls::default();
        let key = ObjectKey::new("ns", "web");
        assert_eq!(lulls.wait(&key), Some(LULL));
        tokio::time::advance(LULL / 2).await;
        assert_eq!(lulls.wait(&key), Some(LULL / 2), "not from anew");
        tokio::time::advance(LULL / 2).await;
        assert_eq!(lulls.wait(&key), None);
        assert_eq!(lulls.wait(&key), Some(LULL), "the next");
        lulls.end(&key);
        assert_eq!(lulls.wait(&key), Some(LULL), "one after that");
    }

    #[test]
    fn deleted_ones_are_remembered_while_present() {
        let unseen = Unseen::default();
        let key = ObjectKey::new("ns", "rs");
        unseen.deleted(&key, "a");
        unseen.deleted(&key, "b");
        let left = unseen.deleted_of(&key, ["b", "c"].into_iter());
        assert_eq!(left, HashSet::from(["b".to_owned()]));
        assert!(unseen.deleted_of(&key, ["a"].into_iter()).is_empty());
    }
}

//! Pods that wait for a node: in the order of their priority, with back-off after a
//! failure, and asleep while nothing has changed that could help them.
//!
//! Pure: the time is handed in. Bounded by the number of pods without a node.

use client::ObjectKey;
use client::k8s_openapi::api::core::v1::Pod;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Delay after the first failure of a pod; doubles with each further one, as upstream.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// The longest delay.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A pod that nothing woke is tried again after this time, in case a change was misjudged.
const SLEEP_MAX: Duration = Duration::from_secs(300);

/// Greatest priority first, then who waits longest.
type Rank = (Reverse<i32>, u64);

#[derive(Debug)]
enum Place {
    Active(Rank),
    /// Becomes active then, if not woken before.
    Waiting(Instant),
    /// Being placed or bound.
    Taken,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<Pod>,
    place: Place,
    attempts: u32,
    /// Not before this, even when woken.
    backoff_until: Instant,
    /// No node could take it: it sleeps until something changes.
    asleep: bool,
}

/// The queue.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    entries: HashMap<ObjectKey, Entry>,
    active: BTreeMap<Rank, ObjectKey>,
    waiting: BTreeSet<(Instant, ObjectKey)>,
    arrivals: u64,
}

impl Pending {
    /// Adds a pod, or takes note of its new state. One that failed is tried again at once
    /// when it asks for something else now.
    pub(crate) fn add(&mut self, pod: Arc<Pod>, now: Instant) {
        let key = ObjectKey::of(&*pod);
        match self.entries.get_mut(&key) {
            Some(entry) if entry.pod.metadata.uid == pod.metadata.uid => {
                let same =
                    entry.pod.spec == pod.spec && entry.pod.metadata.labels == pod.metadata.labels;
                entry.pod = pod;
                if !same && entry.asleep {
                    self.activate(&key);
                }
            }
            _ => {
                self.remove(&key);
                self.entries.insert(
                    key.clone(),
                    Entry {
                        pod,
                        place: Place::Taken,
                        attempts: 0,
                        backoff_until: now,
                        asleep: false,
                    },
                );
                self.activate(&key);
            }
        }
    }

    /// Forgets a pod.
    pub(crate) fn remove(&mut self, key: &ObjectKey) {
        self.unlink(key);
        self.entries.remove(key);
    }

    /// Forgets all pods but these.
    pub(crate) fn retain(&mut self, keep: impl Fn(&ObjectKey) -> bool) {
        let gone: Vec<_> = self.entries.keys().filter(|k| !keep(k)).cloned().collect();
        for key in gone {
            self.remove(&key);
        }
    }

    /// The next pod to place; the caller then says [`Pending::remove`] or [`Pending::failed`].
    pub(crate) fn take(&mut self, now: Instant) -> Option<Arc<Pod>> {
        self.release_due(now);
        let (_, key) = self.active.pop_first()?;
        let entry = self.entries.get_mut(&key)?;
        entry.place = Place::Taken;
        Some(entry.pod.clone())
    }

    /// Puts a taken pod back: asleep when no node could take it, else for another try
    /// after its back-off.
    pub(crate) fn failed(&mut self, key: &ObjectKey, asleep: bool, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let factor = 1_u32.checked_shl(entry.attempts).unwrap_or(u32::MAX);
        let delay = BACKOFF_MIN.saturating_mul(factor.max(1)).min(BACKOFF_MAX);
        entry.attempts = entry.attempts.saturating_add(1);
        entry.backoff_until = now + delay;
        entry.asleep = asleep;
        let at = if asleep { now + SLEEP_MAX } else { now + delay };
        entry.place = Place::Waiting(at);
        self.waiting.insert((at, key.clone()));
    }

    /// Puts a taken pod back asleep that waits for something which is on its way: it has not
    /// failed, and is tried again as soon as it is woken.
    pub(crate) fn parked(&mut self, key: &ObjectKey, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.backoff_until = now;
        entry.asleep = true;
        let at = now + SLEEP_MAX;
        entry.place = Place::Waiting(at);
        self.waiting.insert((at, key.clone()));
    }

    /// Something changed that may help: those asleep whom `helped` picks are tried again
    /// once their back-off has passed.
    pub(crate) fn wake(&mut self, helped: impl Fn(&Pod) -> bool, now: Instant) {
        let woken: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, e)| e.asleep && matches!(e.place, Place::Waiting(_)) && helped(&e.pod))
            .map(|(key, e)| (key.clone(), e.backoff_until))
            .collect();
        for (key, until) in woken {
            if until <= now {
                self.activate(&key);
                continue;
            }
            self.unlink(&key);
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.asleep = false;
                entry.place = Place::Waiting(until);
                self.waiting.insert((until, key));
            }
        }
    }

    /// Whether a pod can be taken now.
    pub(crate) fn has_active(&mut self, now: Instant) -> bool {
        self.release_due(now);
        !self.active.is_empty()
    }

    /// When the next waiting pod becomes active.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.waiting.first().map(|(at, _)| *at)
    }

    fn release_due(&mut self, now: Instant) {
        while self.next_due().is_some_and(|at| at <= now) {
            if let Some((_, key)) = self.waiting.pop_first() {
                self.activate(&key);
            }
        }
    }

    fn activate(&mut self, key: &ObjectKey) {
        self.unlink(key);
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let priority = entry.pod.spec.as_ref().and_then(|s| s.priority);
        let rank = (Reverse(priority.unwrap_or(0)), self.arrivals);
        self.arrivals += 1;
        entry.asleep = false;
        entry.place = Place::Active(rank);
        self.active.insert(rank, key.clone());
    }

    fn unlink(&mut self, key: &ObjectKey) {
        match self.entries.get(key).map(|e| &e.place) {
            Some(Place::Active(rank)) => {
                self.active.remove(rank);
            }
            Some(Place::Waiting(at)) => {
                self.waiting.remove(&(*at, key.clone()));
            }
            Some(Place::Taken) | None => {}
        }
    }
}

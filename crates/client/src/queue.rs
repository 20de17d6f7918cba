//! A work queue of keys: each key waits at most once, is worked on by one worker at a
//! time, and is tried again with growing delays.
//!
//! It holds no payload: a key says only that something about it may need work. Its size
//! is therefore bounded by the number of distinct keys that exist; nothing is ever
//! dropped. Start with [`WorkQueue::add`], then [`run_workers`].

use futures::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::error::Error as StdError;
use std::fmt;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Delay after the first failure of a key; doubles with each further one (as upstream's
/// controllers have it).
pub const RETRY_DELAY_MIN: Duration = Duration::from_millis(5);
/// The longest delay between two tries.
pub const RETRY_DELAY_MAX: Duration = Duration::from_secs(1000);

/// What can be queued.
pub trait Key: Clone + Eq + Ord + Hash + fmt::Debug + Send + 'static {}

impl<K: Clone + Eq + Ord + Hash + fmt::Debug + Send + 'static> Key for K {}

/// How each failure delays the next try.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// After the first failure.
    pub min: Duration,
    /// At most.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            min: RETRY_DELAY_MIN,
            max: RETRY_DELAY_MAX,
        }
    }
}

impl Backoff {
    /// The delay after `failures` failures in a row (the first is 1), without jitter.
    pub fn delay(self, failures: u32) -> Duration {
        let factor = 1_u32
            .checked_shl(failures.saturating_sub(1))
            .unwrap_or(u32::MAX);
        self.min.saturating_mul(factor.max(1)).min(self.max)
    }
}

/// A queue of keys. Clones share it.
pub struct WorkQueue<K> {
    shared: Arc<Shared<K>>,
}

struct Shared<K> {
    state: Mutex<State<K>>,
    /// Told of every key that becomes ready or delayed, and of the shutdown.
    wake: Notify,
    backoff: Backoff,
}

struct State<K> {
    ready: VecDeque<K>,
    /// Keys in `ready`, and those in `working` that were added again meanwhile.
    dirty: HashSet<K>,
    working: HashSet<K>,
    /// Keys by the time at which they become ready; `delayed_until` is its index.
    delayed: BTreeSet<(Instant, K)>,
    delayed_until: HashMap<K, Instant>,
    failures: HashMap<K, u32>,
    jitter: StdRng,
    closed: bool,
}

impl<K> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl<K> fmt::Debug for WorkQueue<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state.lock();
        f.debug_struct("WorkQueue")
            .field("ready", &state.ready.len())
            .field("delayed", &state.delayed.len())
            .field("working", &state.working.len())
            .finish_non_exhaustive()
    }
}

impl<K: Key> Default for WorkQueue<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Key> WorkQueue<K> {
    /// An empty queue with upstream's delays.
    pub fn new() -> Self {
        Self::with(Backoff::default(), 0)
    }

    /// An empty queue with other delays and a seed for their jitter.
    pub fn with(backoff: Backoff, seed: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    ready: VecDeque::new(),
                    dirty: HashSet::new(),
                    working: HashSet::new(),
                    delayed: BTreeSet::new(),
                    delayed_until: HashMap::new(),
                    failures: HashMap::new(),
                    jitter: StdRng::seed_from_u64(seed),
                    closed: false,
                }),
                wake: Notify::new(),
                backoff,
            }),
        }
    }

    /// Makes a key ready; while it is worked on, once that is done. A key that waits
    /// already is not added twice.
    pub fn add(&self, key: K) {
        let woken = self.shared.state.lock().make_ready(key);
        if woken {
            self.shared.wake.notify_one();
        }
    }

    /// Makes a key ready after a delay; the earlier of two delays counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let at = Instant::now() + delay;
        {
            let mut state = self.shared.state.lock();
            if state.closed {
                return;
            }
            if let Some(known) = state.delayed_until.get(&key).copied() {
                if known <= at {
                    return;
                }
                state.delayed.remove(&(known, key.clone()));
            }
            state.delayed_until.insert(key.clone(), at);
            state.delayed.insert((at, key));
        }
        self.shared.wake.notify_one();
    }

    /// Makes a key ready after a delay that doubles with each call until
    /// [`WorkQueue::forget`]; up to a tenth is added at random.
    pub fn add_rate_limited(&self, key: K) {
        let delay = {
            let mut state = self.shared.state.lock();
            let failures = state.failures.entry(key.clone()).or_insert(0);
            *failures = failures.saturating_add(1);
            let delay = self.shared.backoff.delay(*failures);
            delay + delay.mul_f64(state.jitter.random_range(0.0..0.1))
        };
        self.add_after(key, delay);
    }

    /// Sets a key's delay back to the shortest.
    pub fn forget(&self, key: &K) {
        self.shared.state.lock().failures.remove(key);
    }

    /// How often a key failed in a row.
    pub fn failures(&self, key: &K) -> u32 {
        self.shared
            .state
            .lock()
            .failures
            .get(key)
            .copied()
            .unwrap_or(0)
    }

    /// The next ready key, which nobody else gets until [`WorkQueue::done`]; none once
    /// the queue is shut down. Cancel-safe: a key is taken only by the poll that returns it.
    pub async fn next(&self) -> Option<K> {
        loop {
            let woken = self.shared.wake.notified();
            let due = {
                let mut state = self.shared.state.lock();
                if state.closed {
                    return None;
                }
                let due = state.release_due(Instant::now());
                if let Some(key) = state.take() {
                    // Others may sleep while more than this key became ready.
                    let more = !state.ready.is_empty() || due.is_some();
                    drop(state);
                    if more {
                        self.shared.wake.notify_one();
                    }
                    return Some(key);
                }
                due
            };
            match due {
                Some(at) => {
                    let _ = tokio::time::timeout_at(at, woken).await;
                }
                None => woken.await,
            }
        }
    }

    /// Ends the work on a key; it is ready again at once when it was added meanwhile.
    pub fn done(&self, key: &K) {
        let again = {
            let mut state = self.shared.state.lock();
            state.working.remove(key);
            let again = state.dirty.contains(key) && !state.closed;
            if again {
                state.ready.push_back(key.clone());
            }
            again
        };
        if again {
            self.shared.wake.notify_one();
        }
    }

    /// How many keys are ready.
    pub fn len(&self) -> usize {
        self.shared.state.lock().ready.len()
    }

    /// Whether no key is ready.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether no key is ready, delayed or worked on.
    pub fn is_idle(&self) -> bool {
        let state = self.shared.state.lock();
        state.ready.is_empty() && state.delayed.is_empty() && state.working.is_empty()
    }

    /// Ends the queue: what waits is dropped, all [`WorkQueue::next`] return none.
    pub fn shut_down(&self) {
        {
            let mut state = self.shared.state.lock();
            state.closed = true;
            state.ready.clear();
            state.dirty.clear();
            state.delayed.clear();
            state.delayed_until.clear();
        }
        self.shared.wake.notify_waiters();
    }
}

impl<K: Key> State<K> {
    /// Whether a worker must be woken for it.
    fn make_ready(&mut self, key: K) -> bool {
        if self.closed || !self.dirty.insert(key.clone()) || self.working.contains(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    /// Makes delayed keys ready whose time has come; the time of the next one.
    fn release_due(&mut self, now: Instant) -> Option<Instant> {
        while let Some((at, _)) = self.delayed.first() {
            if *at > now {
                return Some(*at);
            }
            if let Some((_, key)) = self.delayed.pop_first() {
                self.delayed_until.remove(&key);
                self.make_ready(key);
            }
        }
        None
    }

    fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        self.dirty.remove(&key);
        self.working.insert(key.clone());
        Some(key)
    }
}

/// What a reconcile that did not fail asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing until the key is added again.
    Done,
    /// Another look after this time.
    After(Duration),
}

impl Outcome {
    /// Another look after this time, if any.
    pub fn after(delay: Option<Duration>) -> Self {
        delay.map_or(Self::Done, Self::After)
    }
}

/// [`run_workers`] once what they read has synced ([`crate::Informer::ready`]).
pub fn start_workers<K, F, Fut, E>(
    name: &'static str,
    queue: WorkQueue<K>,
    workers: usize,
    synced: Vec<BoxFuture<'static, ()>>,
    scope: &lifecycle::Scope,
    reconcile: F,
) where
    K: Key + Sync,
    F: Fn(K) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Outcome, E>> + Send + 'static,
    E: StdError + 'static,
{
    let started_in = scope.clone();
    scope.spawn_cancellable(async move {
        futures::future::join_all(synced).await;
        run_workers(name, &queue, workers, &started_in, reconcile);
    });
}

/// Starts `workers` tasks in `scope` that take keys and reconcile them until the scope is
/// cancelled. A failed key is tried again with back-off; so is one whose reconcile
/// panicked. A reconcile under way when the scope is cancelled is dropped at its next
/// await point.
pub fn run_workers<K, F, Fut, E>(
    name: &'static str,
    queue: &WorkQueue<K>,
    workers: usize,
    scope: &lifecycle::Scope,
    reconcile: F,
) where
    K: Key + Sync,
    F: Fn(K) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Outcome, E>> + Send + 'static,
    E: StdError + 'static,
{
    for _ in 0..workers {
        let queue = queue.clone();
        let reconcile = reconcile.clone();
        scope.spawn_cancellable(async move {
            while let Some(key) = queue.next().await {
                let attempt = AssertUnwindSafe(async { reconcile(key.clone()).await });
                let ended = futures::FutureExt::catch_unwind(attempt).await;
                settle(name, &queue, &key, ended.ok());
                queue.done(&key);
            }
        });
    }
    let queue = queue.clone();
    let token = scope.token().clone();
    scope.spawn(async move {
        token.cancelled().await;
        queue.shut_down();
    });
}

/// Decides when a key is tried again; `ended` is none when the reconcile panicked.
fn settle<K: Key, E: StdError + 'static>(
    name: &str,
    queue: &WorkQueue<K>,
    key: &K,
    ended: Option<Result<Outcome, E>>,
) {
    match ended {
        Some(Ok(outcome)) => {
            queue.forget(key);
            if let Outcome::After(delay) = outcome {
                queue.add_after(key.clone(), delay);
            }
        }
        Some(Err(error)) => {
            let text = chain(&error);
            if is_race(&error) {
                tracing::debug!(controller = name, ?key, error = text, "raced, trying again");
            } else {
                tracing::warn!(controller = name, ?key, error = text, "reconcile failed");
            }
            queue.add_rate_limited(key.clone());
        }
        None => {
            tracing::error!(controller = name, ?key, "reconcile panicked");
            queue.add_rate_limited(key.clone());
        }
    }
}

/// Whether an error is only the API server refusing a write made from an older state.
fn is_race(error: &(dyn StdError + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref().is_some_and(crate::is_conflict) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// An error and its causes in one line.
pub fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once_and_is_worked_on_once() {
        let queue = WorkQueue::new();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, Some("a"));
        queue.add("a");
        assert_eq!(queue.next().await, Some("b"));
        let empty = tokio::time::timeout(Duration::from_secs(1), queue.next()).await;
        assert!(empty.is_err(), "a is still worked on");
        queue.done(&"a");
        assert_eq!(queue.next().await, Some("a"));
        queue.done(&"a");
        queue.done(&"b");
        assert!(queue.is_idle());
    }

    #[tokio::test(start_paused = true)]
    async fn the_earlier_delay_counts() {
        let queue = WorkQueue::new();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(10));
        queue.add_after("a", Duration::from_secs(3));
        queue.add_after("a", Duration::from_secs(20));
        assert_eq!(queue.next().await, Some("a"));
        assert_eq!(start.elapsed().as_secs(), 3);
        queue.done(&"a");
        assert!(queue.is_idle());
    }

    #[tokio::test(start_paused = true)]
    async fn an_added_key_wakes_who_sleeps_until_a_delay() {
        let queue = WorkQueue::new();
        queue.add_after("late", Duration::from_secs(60));
        let other = queue.clone();
        let scope = lifecycle::Scope::new();
        let waiter = scope.spawn(async move { other.next().await });
        tokio::task::yield_now().await;
        queue.add("now");
        assert_eq!(waiter.await.ok().flatten(), Some("now"));
        scope.close().await;
    }

    #[test]
    fn delays_double_up_to_the_longest() {
        let backoff = Backoff::default();
        assert_eq!(backoff.delay(1), Duration::from_millis(5));
        assert_eq!(backoff.delay(2), Duration::from_millis(10));
        assert_eq!(backoff.delay(9), Duration::from_millis(1280));
        assert_eq!(backoff.delay(19), RETRY_DELAY_MAX);
        assert_eq!(backoff.delay(u32::MAX), RETRY_DELAY_MAX);
    }

    #[derive(Debug, thiserror::Error)]
    #[error("fail")]
    struct Fail;

    #[tokio::test(start_paused = true)]
    async fn workers_retry_failures_and_panics_until_they_pass() {
        let scope = lifecycle::Scope::new();
        let queue = WorkQueue::new();
        let tries = Arc::new(AtomicUsize::new(0));
        let (passed_tx, mut passed) = tokio::sync::mpsc::channel(1);
        let counter = tries.clone();
        run_workers("test", &queue, 3, &scope, move |key: &'static str| {
            let tries = counter.clone();
            let passed = passed_tx.clone();
            async move {
                match tries.fetch_add(1, Ordering::SeqCst) {
                    0 => Err(Fail),
                    1 => panic!("second try"),
                    2 => Ok(Outcome::After(Duration::from_secs(5))),
                    _ => {
                        let _ = passed.send(key).await;
                        Ok(Outcome::Done)
                    }
                }
            }
        });
        queue.add("a");
        assert_eq!(passed.recv().await, Some("a"));
        assert_eq!(tries.load(Ordering::SeqCst), 4);
        assert_eq!(queue.failures(&"a"), 0);
        scope.close().await;
        assert_eq!(queue.next().await, None);
    }
}

//! Who is behind a route, and whose turn it is. Read on every connection and request
//! without a lock; replaced as a whole when endpoints change.

use crate::metrics::RouteMetrics;
use crate::table::{Route, RouteName, SleepingEndpoint};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

/// Clients remembered for affinity a route; of more, arbitrary ones are forgotten.
const STICKY_MAX: usize = 10_000;
/// Connections and requests of a route that wait for an endpoint; more are refused.
const HELD_MAX: usize = 1024;
/// How long they wait.
const HELD_FOR: Duration = Duration::from_secs(5);
/// A local endpoint may come back (a container restarts) without any endpoint changing.
/// It is looked for after this, then less and less often.
const HELD_LOOK: Duration = Duration::from_millis(20);
const HELD_LOOK_MAX: Duration = Duration::from_millis(320);
/// How long an endpoint that refused a connection is avoided.
const AVOID_FOR: Duration = Duration::from_secs(1);
/// Endpoints tried for one connection or request.
pub(crate) const ATTEMPTS_MAX: usize = 5;

/// One endpoint. Kept while it is in the route, so that its counts go on.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// Connections through this route.
    connections: AtomicUsize,
    /// Milliseconds after the backend was made; avoided until then.
    avoid_until: AtomicU64,
    /// Whether it was ever found to be an HTTP endpoint of this process. It stays one when
    /// its guest has just died and the slice does not know yet.
    pub(crate) was_local: AtomicBool,
}

/// The endpoints at one time.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) targets: Vec<Arc<Target>>,
    /// Whether some may become ready.
    pub(crate) coming: bool,
    /// Whether one of them was found to be a local HTTP endpoint: then all speak HTTP.
    pub(crate) http: AtomicBool,
    /// Who is woken when none of them takes a request.
    pub(crate) sleepers: Vec<SleepingEndpoint>,
}

/// A route at work.
pub(crate) struct Backend {
    pub(crate) name: RouteName,
    pub(crate) metrics: RouteMetrics,
    /// How long a client stays with its endpoint, milliseconds; 0 for not at all.
    affinity_ms: AtomicU64,
    snapshot: ArcSwap<Snapshot>,
    changed: Notify,
    /// Whole connections passed on so far.
    pub(crate) passed: AtomicU64,
    held: Semaphore,
    next: AtomicUsize,
    sticky: Mutex<HashMap<IpAddr, (SocketAddr, Instant)>>,
    made: Instant,
}

/// Endpoints that one connection or request has tried.
#[derive(Default)]
pub(crate) struct Tried {
    addresses: [Option<SocketAddr>; ATTEMPTS_MAX],
    count: usize,
}

impl Tried {
    /// Adds one; whether more may be tried.
    pub(crate) fn push(&mut self, address: SocketAddr) -> bool {
        if let Some(place) = self.addresses.get_mut(self.count) {
            *place = Some(address);
            self.count += 1;
        }
        self.count < ATTEMPTS_MAX
    }

    pub(crate) fn contains(&self, address: SocketAddr) -> bool {
        self.addresses[..self.count].contains(&Some(address))
    }

    /// Whether no more may be tried.
    pub(crate) fn is_full(&self) -> bool {
        self.count == ATTEMPTS_MAX
    }

    /// Lets those tried be tried again, as after waiting.
    pub(crate) fn clear(&mut self) {
        self.count = 0;
    }
}

impl Backend {
    pub(crate) fn new(route: &Route, metrics: RouteMetrics) -> Self {
        let backend = Self {
            name: route.name.clone(),
            metrics,
            affinity_ms: AtomicU64::new(0),
            snapshot: ArcSwap::default(),
            changed: Notify::new(),
            passed: AtomicU64::new(0),
            held: Semaphore::new(HELD_MAX),
            next: AtomicUsize::new(0),
            sticky: Mutex::default(),
            made: Instant::now(),
        };
        backend.update(route);
        backend
    }

    /// Takes in a route's endpoints as they are now.
    pub(crate) fn update(&self, route: &Route) {
        let affinity = route.affinity.unwrap_or_default().as_millis() as u64;
        self.affinity_ms.store(affinity, Ordering::Relaxed);
        let old = self.snapshot.load();
        let old: HashMap<_, _> = old.targets.iter().map(|t| (t.address, t)).collect();
        // While the API lists nobody, those that stood by may be awake already.
        let asleep = route.sleepers.iter().map(|s| (s.address, s.http));
        let asleep = asleep.filter(|_| route.endpoints.is_empty());
        let listed = route.endpoints.iter().map(|address| (*address, false));
        let targets = listed.chain(asleep).map(|(address, http)| {
            old.get(&address).map_or_else(
                || {
                    Arc::new(Target {
                        address,
                        connections: AtomicUsize::new(0),
                        avoid_until: AtomicU64::new(0),
                        was_local: AtomicBool::new(http),
                    })
                },
                |target| Arc::clone(target),
            )
        });
        self.snapshot.store(Arc::new(Snapshot {
            targets: targets.collect(),
            coming: route.coming,
            http: AtomicBool::new(route.http || route.sleepers.iter().any(|s| s.http)),
            sleepers: route.sleepers.clone(),
        }));
        self.changed.notify_waiters();
    }

    /// Nobody is behind it any more.
    pub(crate) fn clear(&self) {
        self.snapshot.store(Arc::default());
        self.changed.notify_waiters();
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Chooses an endpoint. `load` tells how busy one is, `None` that it can't be used.
    /// Each in turn, unless the next one is less busy; a client with affinity stays.
    pub(crate) fn pick<T>(
        &self,
        client: IpAddr,
        load: impl Fn(&Arc<Target>) -> Option<(usize, T)>,
    ) -> Option<(SocketAddr, T)> {
        let snapshot = self.snapshot.load();
        let targets = &snapshot.targets;
        if targets.is_empty() {
            return None;
        }
        if let Some(kept) = self.kept(client)
            && let Some(target) = targets.iter().find(|t| t.address == kept)
            && let Some((_, found)) = load(target)
        {
            self.keep(client, kept);
            return Some((kept, found));
        }
        let start = self.next.fetch_add(1, Ordering::Relaxed) % targets.len();
        let (before, after) = targets.split_at(start);
        let mut usable = after.iter().chain(before).filter_map(|target| {
            let (load, found) = load(target)?;
            Some((load, target.address, found))
        });
        let first = usable.next()?;
        let chosen = if first.0 == 0 {
            first
        } else {
            match usable.next() {
                Some(second) if second.0 < first.0 => second,
                _ => first,
            }
        };
        self.keep(client, chosen.1);
        Some((chosen.1, chosen.2))
    }

    /// How busy an endpoint that is connected to is; `None` when it was tried.
    pub(crate) fn connect_load(
        &self,
        target: &Arc<Target>,
        tried: &Tried,
        desperate: bool,
    ) -> Option<(usize, Arc<Target>)> {
        let avoided = target.avoid_until.load(Ordering::Relaxed) > self.now_ms();
        if tried.contains(target.address) || (avoided && !desperate) {
            return None;
        }
        let connections = target.connections.load(Ordering::Relaxed);
        Some((connections, target.clone()))
    }

    /// Remembers that an endpoint could not be connected to.
    pub(crate) fn avoid(&self, target: &Target) {
        let until = self.now_ms() + AVOID_FOR.as_millis() as u64;
        target.avoid_until.store(until, Ordering::Relaxed);
    }

    fn now_ms(&self) -> u64 {
        self.made.elapsed().as_millis() as u64
    }

    fn affinity(&self) -> Option<Duration> {
        match self.affinity_ms.load(Ordering::Relaxed) {
            0 => None,
            ms => Some(Duration::from_millis(ms)),
        }
    }

    fn kept(&self, client: IpAddr) -> Option<SocketAddr> {
        let affinity = self.affinity()?;
        let sticky = self.sticky.lock();
        let (address, since) = sticky.get(&client)?;
        (since.elapsed() < affinity).then_some(*address)
    }

    fn keep(&self, client: IpAddr, address: SocketAddr) {
        let Some(affinity) = self.affinity() else {
            return;
        };
        let mut sticky = self.sticky.lock();
        if sticky.len() >= STICKY_MAX && !sticky.contains_key(&client) {
            sticky.retain(|_, (_, since)| since.elapsed() < affinity);
            if sticky.len() >= STICKY_MAX
                && let Some(any) = sticky.keys().next().copied()
            {
                sticky.remove(&any);
            }
        }
        sticky.insert(client, (address, Instant::now()));
    }

    /// A place to wait in until an endpoint comes; none when too many wait already.
    pub(crate) fn hold(&self) -> Option<Hold<'_>> {
        Some(Hold {
            backend: self,
            _place: self.held.try_acquire().ok()?,
            deadline: tokio::time::Instant::now() + HELD_FOR,
            pause: HELD_LOOK,
        })
    }
}

/// Waiting for an endpoint.
pub(crate) struct Hold<'a> {
    backend: &'a Backend,
    _place: SemaphorePermit<'a>,
    deadline: tokio::time::Instant,
    pause: Duration,
}

impl Hold<'_> {
    /// Waits a little; whether it is worth another look. It is not when the time is over,
    /// or there is no endpoint that could come.
    pub(crate) async fn pause(&mut self) -> bool {
        let changed = self.backend.changed.notified();
        let hopeless = {
            let snapshot = self.backend.snapshot.load();
            snapshot.targets.is_empty() && !snapshot.coming
        };
        if hopeless || tokio::time::Instant::now() >= self.deadline {
            return false;
        }
        let _ = tokio::time::timeout(self.pause, changed).await;
        self.pause = (self.pause * 2).min(HELD_LOOK_MAX);
        true
    }
}

impl Backend {
    pub(crate) fn has_sleepers(&self) -> bool {
        !self.snapshot.load().sleepers.is_empty()
    }

    /// Requests and connections so far.
    pub(crate) fn carried(&self) -> u64 {
        self.metrics.requests.get() + self.passed.load(Ordering::Relaxed)
    }

    /// Connections and requests to endpoints elsewhere, and of those who wait for one.
    pub(crate) fn busy(&self) -> usize {
        let snapshot = self.snapshot.load();
        let connections = snapshot.targets.iter();
        let connections = connections.map(|t| t.connections.load(Ordering::Relaxed));
        connections.sum::<usize>() + HELD_MAX - self.held.available_permits()
    }
}

/// Counts a connection to an endpoint while it lives.
pub(crate) struct Connected(Arc<Target>);

impl Clone for Connected {
    fn clone(&self) -> Self {
        Self::new(self.0.clone())
    }
}

impl Connected {
    pub(crate) fn new(target: Arc<Target>) -> Self {
        target.connections.fetch_add(1, Ordering::Relaxed);
        Self(target)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

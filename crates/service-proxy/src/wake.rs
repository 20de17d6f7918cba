//! Requests and connections that find nobody awake: held, within bounds, while a pod that
//! stands by is started.
//!
//! How a pod is started the binary knows ([`Activator`]); which pods stand by for a Service
//! is in its [`Route`](crate::table::Route). Waking waits for nothing but the start itself:
//! no API server, no agent.

use crate::local::{BoxError, LocalEndpoints, LocalHttp};
use crate::metrics::WakeMetrics;
use crate::table::{Sleeper, SleepingEndpoint};
use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response, header};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// A request with this header is told by `Server-Timing` how long it was held.
pub const TIMING_HEADER: &str = "salp-server-timing";

/// Requests and connections held at once; more are refused with 503.
const HELD_MAX: usize = 4096;
/// Bytes of the heads of held requests; more are refused with 503. Bodies are not read
/// while a request is held.
const HELD_BYTES_MAX: usize = 64 << 20;
/// How long one is held; then it is refused with 503.
const HELD_FOR: Duration = Duration::from_secs(30);

/// Pods that stand by. In a new list those that stay are the same pointers in the same order.
pub type Sleepers = Arc<Vec<Arc<Sleeper>>>;

/// Pods that stand by, and what starts them.
pub trait Activator: Send + Sync + 'static {
    /// Those of this node, as they change.
    fn sleepers(&self) -> watch::Receiver<Sleepers>;

    /// Starts the one that an address is of; done when it takes connections there. Starting one
    /// that is awake succeeds. Many may ask at once.
    fn wake(&self, address: SocketAddr) -> BoxFuture<'static, Result<(), BoxError>>;
}

/// Nobody stands by.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoActivator;

impl Activator for NoActivator {
    fn sleepers(&self) -> watch::Receiver<Sleepers> {
        watch::Sender::new(Arc::default()).subscribe()
    }

    fn wake(&self, address: SocketAddr) -> BoxFuture<'static, Result<(), BoxError>> {
        Box::pin(async move { Err(format!("nobody stands by at {address}").into()) })
    }
}

/// What holds requests.
pub(crate) struct Waking {
    activator: Arc<dyn Activator>,
    pub(crate) metrics: WakeMetrics,
    held: Mutex<Amount>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amount {
    count: usize,
    bytes: usize,
}

/// What came of waking.
pub(crate) enum Woken {
    /// This endpoint answers now.
    Awake(SocketAddr),
    /// None could be started; another look may find one.
    Failed,
    /// Too many wait, or it took too long.
    Refused,
}

/// A place among those that wait.
struct Held<'a> {
    waking: &'a Waking,
    bytes: usize,
}

impl Waking {
    pub(crate) fn new(activator: Arc<dyn Activator>, metrics: WakeMetrics) -> Self {
        Self {
            activator,
            metrics,
            held: Mutex::default(),
        }
    }

    /// Starts one of these, the first that can be.
    pub(crate) async fn wake(&self, sleepers: &[SleepingEndpoint], bytes: usize) -> Woken {
        let began = Instant::now();
        let Some(_held) = self.hold(bytes) else {
            self.metrics.refused.inc();
            return Woken::Refused;
        };
        let started = async {
            for sleeper in sleepers {
                match self.activator.wake(sleeper.address).await {
                    Ok(()) => return Some(sleeper.address),
                    Err(error) => {
                        tracing::debug!(address = %sleeper.address, %error, "not woken");
                    }
                }
            }
            None
        };
        match tokio::time::timeout(HELD_FOR, started).await {
            Ok(Some(address)) => {
                self.metrics.seconds.observe(began.elapsed().as_secs_f64());
                Woken::Awake(address)
            }
            Ok(None) => Woken::Failed,
            Err(_) => {
                self.metrics.refused.inc();
                Woken::Refused
            }
        }
    }

    fn hold(&self, bytes: usize) -> Option<Held<'_>> {
        let mut held = self.held.lock();
        if held.count >= HELD_MAX || held.bytes + bytes > HELD_BYTES_MAX {
            return None;
        }
        held.count += 1;
        held.bytes += bytes;
        self.metrics.held.inc();
        Some(Held {
            waking: self,
            bytes,
        })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self.waking.held.lock();
        held.count -= 1;
        held.bytes -= self.bytes;
        self.waking.metrics.held.dec();
    }
}

/// What is only in the one list and only in the other, of lists of which the second is mostly
/// the first.
pub(crate) fn differ<'l>(
    before: &'l [Arc<Sleeper>],
    now: &'l [Arc<Sleeper>],
) -> (Vec<&'l Sleeper>, Vec<&'l Sleeper>) {
    let same = |(a, b): &(&Arc<Sleeper>, &Arc<Sleeper>)| Arc::ptr_eq(a, b);
    let head = before.iter().zip(now).take_while(same).count();
    let (before, now) = (&before[head..], &now[head..]);
    let ends = before.iter().rev().zip(now.iter().rev());
    let tail = ends.take_while(same).count();
    let (before, now) = (&before[..before.len() - tail], &now[..now.len() - tail]);
    let only = |these: &'l [Arc<Sleeper>], others: &[Arc<Sleeper>]| {
        let others: HashSet<_> = others.iter().map(Arc::as_ptr).collect();
        let gone = these.iter().filter(|s| !others.contains(&Arc::as_ptr(s)));
        gone.map(|s| &**s).collect()
    };
    (only(before, now), only(now, before))
}

/// The first of these that is awake.
pub(crate) fn awake(
    sleepers: &[SleepingEndpoint],
    local: &dyn LocalEndpoints,
) -> Option<(SocketAddr, Arc<dyn LocalHttp>)> {
    let mut found = sleepers.iter().filter_map(|sleeper| {
        let http = local.http(sleeper.address)?;
        Some((sleeper.address, http))
    });
    found.next()
}

/// What a request's head takes while it is held.
pub(crate) fn head_bytes<B>(request: &Request<B>) -> usize {
    let headers = request.headers().iter();
    let headers: usize = headers.map(|(k, v)| k.as_str().len() + v.len()).sum();
    let path = request.uri().path_and_query();
    size_of::<Request<B>>() + headers + path.map_or(0, |path| path.as_str().len())
}

/// When the request asks for it: since when it waits.
pub(crate) fn timed<B>(request: &Request<B>) -> Option<Instant> {
    request
        .headers()
        .contains_key(TIMING_HEADER)
        .then(Instant::now)
}

/// Tells how long it was held.
pub(crate) fn tell_timing<B>(response: &mut Response<B>, since: Instant) {
    let ms = since.elapsed().as_secs_f64() * 1000.0;
    let name = header::HeaderName::from_static("server-timing");
    if let Ok(value) = HeaderValue::try_from(format!("wake;dur={ms:.3}")) {
        response.headers_mut().append(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;
    use tokio::sync::Notify;

    /// Starts a pod when it is told to, or never.
    #[derive(Default)]
    struct Slow {
        go: Arc<Notify>,
    }

    impl Activator for Slow {
        fn sleepers(&self) -> watch::Receiver<Sleepers> {
            NoActivator.sleepers()
        }

        fn wake(&self, _: SocketAddr) -> BoxFuture<'static, Result<(), BoxError>> {
            let go = self.go.clone();
            Box::pin(async move {
                go.notified().await;
                Ok(())
            })
        }
    }

    #[test]
    fn what_came_and_what_went_is_found() {
        let all: Vec<Arc<Sleeper>> = (0..8)
            .map(|host| {
                Arc::new(Sleeper {
                    namespace: "d".into(),
                    labels: [].into(),
                    ip: [10, 42, 0, host].into(),
                    ports: Vec::new(),
                    http: true,
                })
            })
            .collect();
        let list = |hosts: &[usize]| -> Vec<_> { hosts.iter().map(|h| all[*h].clone()).collect() };
        let hosts = |list: &[&Sleeper]| -> Vec<u8> {
            let last = |s: &&Sleeper| match s.ip {
                IpAddr::V4(ip) => ip.octets()[3],
                IpAddr::V6(_) => unreachable!("they have none"),
            };
            list.iter().map(last).collect()
        };
        for (before, now, went, came) in [
            (&[][..], &[][..], &[][..], &[][..]),
            (&[], &[1, 2], &[], &[1, 2]),
            (&[1, 2], &[], &[1, 2], &[]),
            (&[1, 2, 3], &[1, 2, 3], &[], &[]),
            (&[1, 2, 3], &[1, 3], &[2], &[]),
            (&[1, 3], &[1, 2, 3], &[], &[2]),
            (&[1, 2, 3, 4], &[1, 5, 3, 6], &[2, 4], &[5, 6]),
            (&[1, 2, 3, 4, 5], &[0, 2, 4, 7], &[1, 3, 5], &[0, 7]),
        ] {
            let (before_list, now_list) = (list(before), list(now));
            let (gone, new) = differ(&before_list, &now_list);
            assert_eq!((hosts(&gone), hosts(&new)), (went.to_vec(), came.to_vec()));
        }
    }

    fn sleeper() -> [SleepingEndpoint; 1] {
        [SleepingEndpoint {
            address: ([10, 42, 0, 2], 80).into(),
            http: true,
        }]
    }

    fn waking(activator: impl Activator) -> Waking {
        Waking::new(Arc::new(activator), WakeMetrics::default())
    }

    #[tokio::test]
    async fn so_many_are_held_and_no_more() {
        let slow = Slow::default();
        let go = slow.go.clone();
        let waking = waking(slow);
        let sleeper = sleeper();
        let mut held: Vec<_> = (0..HELD_MAX)
            .map(|_| Box::pin(waking.wake(&sleeper, 10)))
            .collect();
        for waiting in &mut held {
            assert!(futures::poll!(waiting).is_pending());
        }
        assert_eq!(waking.metrics.held.get(), HELD_MAX as i64);
        assert!(matches!(waking.wake(&sleeper, 10).await, Woken::Refused));
        assert_eq!(waking.metrics.refused.get(), 1);
        go.notify_waiters();
        for waiting in held {
            assert!(matches!(waiting.await, Woken::Awake(_)));
        }
        assert_eq!(*waking.held.lock(), Amount::default());
        assert_eq!(waking.metrics.held.get(), 0);
    }

    #[tokio::test]
    async fn so_many_bytes_are_held_and_no_more() {
        let waking = waking(Slow::default());
        let sleeper = sleeper();
        let mut large = Box::pin(waking.wake(&sleeper, HELD_BYTES_MAX - 5));
        assert!(futures::poll!(&mut large).is_pending());
        assert!(matches!(waking.wake(&sleeper, 6).await, Woken::Refused));
        let mut small = Box::pin(waking.wake(&sleeper, 5));
        assert!(futures::poll!(&mut small).is_pending());
        // A client that leaves gives its place back.
        drop((large, small));
        assert_eq!(*waking.held.lock(), Amount::default());
    }

    #[tokio::test(start_paused = true)]
    async fn none_is_held_for_ever() {
        let waking = waking(Slow::default());
        let began = Instant::now();
        assert!(matches!(waking.wake(&sleeper(), 0).await, Woken::Refused));
        assert_eq!(began.elapsed(), HELD_FOR);
        assert_eq!(*waking.held.lock(), Amount::default());
    }

    #[tokio::test]
    async fn nobody_stands_by_is_no_refusal() {
        let waking = waking(NoActivator);
        assert!(matches!(waking.wake(&sleeper(), 0).await, Woken::Failed));
    }
}

//! The sockets: opened and closed as the table says, tried again when they can't be.

use crate::backend::Backend;
use crate::table::{Action, Listen, Protocol, RouteName, plan};
use crate::{Shared, tcp, udp};
use lifecycle::CancellationToken;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Failures told; of more, those with the highest addresses are left out.
const FAILURES_MAX: usize = 256;
/// A socket that can't be opened is tried again after this, then ever less often.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_LAST: Duration = Duration::from_secs(30);

/// An address that can't be listened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindFailure {
    /// Namespace of the Service.
    pub namespace: String,
    /// The Service.
    pub service: String,
    /// Over what.
    pub protocol: Protocol,
    /// Where.
    pub address: SocketAddr,
    /// Why, for people.
    pub message: String,
}

/// What can't be listened on now.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    current: Mutex<BTreeMap<Listen, BindFailure>>,
    told: watch::Sender<Vec<BindFailure>>,
}

impl Failures {
    pub(crate) fn subscribe(&self) -> watch::Receiver<Vec<BindFailure>> {
        self.told.subscribe()
    }

    pub(crate) fn set(&self, listen: Listen, namespace: &str, service: &str, error: &io::Error) {
        let failure = BindFailure {
            namespace: namespace.to_owned(),
            service: service.to_owned(),
            protocol: listen.protocol,
            address: listen.address,
            message: explain(listen, error),
        };
        let mut current = self.current.lock();
        let old = current.insert(listen, failure.clone());
        if old.as_ref() != Some(&failure) {
            tracing::warn!(service, namespace, "{}", failure.message);
            self.tell(&current);
        }
    }

    pub(crate) fn clear(&self, listen: Listen) {
        let mut current = self.current.lock();
        if current.remove(&listen).is_some() {
            self.tell(&current);
        }
    }

    fn tell(&self, current: &BTreeMap<Listen, BindFailure>) {
        let told = current.values().take(FAILURES_MAX).cloned().collect();
        self.told.send_replace(told);
    }
}

fn explain(listen: Listen, error: &io::Error) -> String {
    let cure = match error.kind() {
        io::ErrorKind::PermissionDenied if listen.address.port() < 1024 => {
            "; ports below 1024 need root, the capability net_bind_service, or a lower net.ipv4.ip_unprivileged_port_start"
        }
        io::ErrorKind::AddrInUse => "; another program listens there",
        io::ErrorKind::AddrNotAvailable => "; the address has no local route",
        _ => "",
    };
    format!("listen on {listen}: {error}{cure}")
}

struct Open {
    route: RouteName,
    token: CancellationToken,
    task: JoinHandle<()>,
}

struct Failed {
    route: RouteName,
    again: Instant,
    wait: Duration,
}

pub(crate) struct Listeners {
    shared: Arc<Shared>,
    open: BTreeMap<Listen, Open>,
    failed: BTreeMap<Listen, Failed>,
}

impl Listeners {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            open: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    /// When a socket that failed is to be tried again.
    pub(crate) fn again(&self) -> Option<Instant> {
        self.failed.values().map(|failed| failed.again).min()
    }

    /// Opens and closes until what is wanted is open, or has failed.
    pub(crate) async fn apply(
        &mut self,
        wanted: &BTreeMap<Listen, RouteName>,
        backends: &HashMap<RouteName, Arc<Backend>>,
    ) {
        let shared = &self.shared;
        self.failed.retain(|listen, failed| {
            let keep = wanted.get(listen) == Some(&failed.route);
            if !keep {
                shared.failures.clear(*listen);
            }
            keep
        });
        let is = |(listen, open): (&Listen, &Open)| (*listen, open.route.clone());
        let open = self.open.iter().map(is).collect();
        let mut closing = Vec::new();
        for action in plan(&open, wanted) {
            match action {
                Action::Close(listen) => {
                    if let Some(open) = self.open.remove(&listen) {
                        open.token.cancel();
                        closing.push(open.task);
                    }
                }
                Action::Open(listen, route) => {
                    // Its address may be one that is being closed.
                    for task in closing.drain(..) {
                        let _ = task.await;
                    }
                    if let Some(backend) = backends.get(&route) {
                        self.open(listen, route, backend.clone());
                    }
                }
            }
        }
        for task in closing {
            let _ = task.await;
        }
    }

    fn open(&mut self, listen: Listen, route: RouteName, backend: Arc<Backend>) {
        let now = Instant::now();
        let failed = self.failed.get(&listen);
        if failed.is_some_and(|failed| failed.again > now) {
            return;
        }
        let token = self.shared.scope.token().child_token();
        match self.listen(listen, backend, token.clone()) {
            Ok(task) => {
                self.failed.remove(&listen);
                self.shared.failures.clear(listen);
                let open = Open { route, token, task };
                self.open.insert(listen, open);
            }
            Err(error) => {
                let wait = failed.map_or(AGAIN_FIRST, |failed| (failed.wait * 2).min(AGAIN_LAST));
                self.shared
                    .failures
                    .set(listen, &route.namespace, &route.service, &error);
                let failed = Failed {
                    route,
                    again: now + wait,
                    wait,
                };
                self.failed.insert(listen, failed);
            }
        }
    }

    fn listen(
        &self,
        listen: Listen,
        backend: Arc<Backend>,
        token: CancellationToken,
    ) -> io::Result<JoinHandle<()>> {
        let shared = self.shared.clone();
        let scope = shared.scope.clone();
        Ok(match listen.protocol {
            Protocol::Tcp => {
                let listener = tcp::bind(listen.address)?;
                scope.spawn(tcp::serve(listener, backend, shared, token))
            }
            Protocol::Udp => {
                let socket = udp::bind(listen.address)?;
                scope.spawn(udp::serve(socket, backend, shared, token))
            }
        })
    }
}

//! Service addresses, in user space: cluster IPs and node ports listen on this machine
//! (one `local` route makes all of them bindable, see `pod-network`), connections and
//! HTTP requests are balanced over endpoints, and cluster names are resolved.
//!
//! Start with [`Proxy::start`]; what Services mean is in [`table`] (pure), whose turn it is
//! in `backend`, connections in `tcp`, HTTP requests to guests of this process in `http`,
//! those that change their protocol (WebSocket) in `upgrade`,
//! names in [`dns`]. It reads the Kubernetes API and writes nothing; it knows no runtime:
//! the binary gives it [`LocalEndpoints`].

mod backend;
pub mod checkpoint;
pub mod dns;
mod http;
mod listeners;
mod local;
mod metrics;
pub mod table;
mod tcp;
mod udp;
mod upgrade;
mod upstream;
mod wake;

pub use listeners::BindFailure;
pub use local::{
    BoxError, CallError, LocalEndpoints, LocalHttp, NoLocalEndpoints, RequestBody, ResponseBody,
};
pub use metrics::Metrics;
pub use wake::{Activator, NoActivator, Sleepers, TIMING_HEADER};

use backend::Backend;
use checkpoint::Known;
use client::{Change, Informer, Informers, ObjectKey, Selected};
use dns::Zone;
use futures::{FutureExt as _, Stream, StreamExt as _};
use hyper_util::server::conn::auto::Builder;
use k8s_openapi::api::core::v1::{Node as CoreNode, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use lifecycle::Scope;
use listeners::{Failures, Listeners};
use parking_lot::RwLock;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use table::{Node, RouteName, SERVICE_NAME_LABEL, ServiceTable, Sleeper};
use tokio::sync::{Semaphore, watch};

/// Changes taken together before listeners and endpoints follow.
const CHANGES_AT_ONCE: usize = 1024;

/// Label of a Node that says where it is.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// What a proxy works with.
pub struct ProxyConfig {
    /// Where Services and EndpointSlices come from.
    pub informers: Informers,
    /// Endpoints of this process.
    pub local: Arc<dyn LocalEndpoints>,
    /// Pods of this node that stand by, and what starts them.
    pub activator: Arc<dyn Activator>,
    /// This node's name.
    pub node_name: String,
    /// Addresses on which node ports listen.
    pub node_port_addresses: Vec<IpAddr>,
    /// Cluster DNS, if it is to be served.
    pub dns: Option<dns::DnsConfig>,
    /// Where the Services are kept for a start without an API server, if they are.
    pub checkpoint: Option<PathBuf>,
    /// Connections at once; further ones wait in the kernel.
    pub connections_max: usize,
    /// How long connections may go on after the scope is closed.
    pub drain: Duration,
}

/// A running proxy. It stops with the scope that it was started in: listeners close at
/// once, connections get [`ProxyConfig::drain`] to finish.
#[derive(Clone)]
pub struct Proxy {
    backends: Backends,
    local: Arc<dyn LocalEndpoints>,
    metrics: Metrics,
    failures: watch::Receiver<Vec<BindFailure>>,
    ready: watch::Receiver<bool>,
}

impl Proxy {
    /// Starts listening for all Services there are and will be.
    pub fn start(config: ProxyConfig, scope: &Scope) -> Self {
        let metrics = Metrics::default();
        let sleepers = config.activator.sleepers();
        let shared = Arc::new(Shared {
            local: config.local,
            waking: wake::Waking::new(config.activator, metrics.wake()),
            http: http::builder(scope),
            upstreams: upstream::Upstreams::new(scope),
            scope: scope.clone(),
            drain: config.drain,
            connections: Arc::new(Semaphore::new(config.connections_max)),
            failures: Failures::default(),
        });
        let zone = Arc::new(RwLock::new(Zone::new(
            config.dns.as_ref().map_or("", |dns| &dns.domain),
        )));
        let reserved = config.dns.as_ref().map(|dns| dns.address);
        if let Some(dns) = config.dns {
            dns::start(dns, zone.clone(), &shared);
        }
        let failures = shared.failures.subscribe();
        let (is_ready, ready) = watch::channel(false);
        let services = config.informers.get::<Service>();
        let slices = config.informers.get::<EndpointSlice>();
        let own = Selected::fields(format!("metadata.name={}", config.node_name));
        let own_node = config.informers.get_selected::<CoreNode>(own);
        let known = config.checkpoint.as_deref().and_then(checkpoint::read);
        let keep = config
            .checkpoint
            .map(|path| checkpoint::Writer::start(path, services.clone(), slices.clone(), scope));
        let state = State {
            services,
            slices,
            own_node,
            keep,
            node: Node {
                name: config.node_name,
                zone: None,
                node_port_addresses: config.node_port_addresses,
                reserved: reserved.into_iter().collect(),
            },
            table: ServiceTable::default(),
            zone,
            sleepers,
            backends: Backends::default(),
            listeners: Listeners::new(shared.clone()),
            metrics: metrics.clone(),
            ready: is_ready,
        };
        let backends = state.backends.clone();
        scope.spawn_cancellable(state.run(known));
        Self {
            backends,
            local: shared.local.clone(),
            metrics,
            failures,
            ready,
        }
    }

    /// Returns when the Services known at the start are listened for, which can't be before
    /// the API server has told them. Cancel-safe.
    pub async fn ready(&self) {
        // An error means that the proxy was stopped.
        let _ = self.ready.clone().wait_for(|ready| *ready).await;
    }

    /// What some Services have carried so far: how many requests and connections, and how
    /// many are under way.
    pub fn traffic(&self, services: &[ObjectKey]) -> Vec<Traffic> {
        let mut all: Vec<_> = services.iter().map(|_| Traffic::default()).collect();
        for (name, backend) in &*self.backends.read() {
            let wanted =
                |key: &ObjectKey| key.namespace == *name.namespace && key.name == *name.service;
            let places = services.iter().zip(&mut all);
            for (_, traffic) in places.filter(|(key, _)| wanted(key)) {
                let snapshot = backend.snapshot();
                let local = snapshot.targets.iter().filter_map(|target| {
                    let http = self.local.http(target.address)?;
                    Some(http.in_flight())
                });
                traffic.carried += backend.carried();
                traffic.under_way += local.sum::<usize>() + backend.busy();
            }
        }
        all
    }

    /// Its metrics, to register.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The addresses that can't be listened on now, as it changes. They are tried again.
    pub fn failures(&self) -> watch::Receiver<Vec<BindFailure>> {
        self.failures.clone()
    }
}

/// What a Service has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests and whole connections since the proxy started. Grows with every one; by how
    /// much is not told, for a port's two routes share a count.
    pub carried: u64,
    /// Those not yet over.
    pub under_way: usize,
}

/// Routes at work; written by one task.
type Backends = Arc<RwLock<HashMap<RouteName, Arc<Backend>>>>;

/// What connections need.
struct Shared {
    local: Arc<dyn LocalEndpoints>,
    http: Builder<http::InScope>,
    upstreams: Arc<upstream::Upstreams>,
    waking: wake::Waking,
    scope: Scope,
    drain: Duration,
    connections: Arc<Semaphore>,
    failures: Failures,
}

/// What follows the API: owned by one task.
struct State {
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    own_node: Informer<CoreNode>,
    keep: Option<checkpoint::Writer>,
    sleepers: watch::Receiver<Sleepers>,
    node: Node,
    table: ServiceTable,
    zone: Arc<RwLock<Zone>>,
    backends: Backends,
    listeners: Listeners,
    metrics: Metrics,
    ready: watch::Sender<bool>,
}

/// Which Services may have changed.
#[derive(Default)]
struct Dirty {
    all: bool,
    keys: BTreeSet<(String, String)>,
}

impl State {
    async fn run(mut self, known: Option<Known>) {
        if let Some(known) = known {
            self.restore(&known).await;
        }
        // Endpoints first known after their Service would make it look empty.
        let (services, slices) = (self.services.clone(), self.slices.clone());
        let synced = async { tokio::join!(services.synced(), slices.synced()) };
        let mut synced = std::pin::pin!(synced);
        loop {
            let again = self.listeners.again();
            tokio::select! {
                _ = &mut synced => break,
                () = wait_until(again) => self.listen().await,
            }
        }
        let mut sleepers = self.sleepers.clone();
        let mut known = sleepers.borrow_and_update().clone();
        let mut services = self.services.subscribe();
        let mut slices = self.slices.subscribe();
        let mut own_node = self.own_node.subscribe();
        self.node.zone = self.zone_of_node();
        loop {
            let mut dirty = Dirty::default();
            let again = self.listeners.again();
            tokio::select! {
                Some(change) = services.next() => dirty.service(&change),
                Some(change) = slices.next() => dirty.slice(&change),
                Ok(()) = sleepers.changed() => {
                    let now = sleepers.borrow_and_update().clone();
                    self.selected(&known, &now, &mut dirty);
                    known = now;
                }
                Some(_) = own_node.next() => {
                    let zone = self.zone_of_node();
                    if zone == self.node.zone {
                        continue;
                    }
                    self.node.zone = zone;
                    dirty.all = true;
                }
                () = wait_until(again) => {}
            }
            while dirty.keys.len() < CHANGES_AT_ONCE {
                let service = now(&mut services).inspect(|change| dirty.service(change));
                let slice = now(&mut slices).inspect(|change| dirty.slice(change));
                if service.is_none() && slice.is_none() {
                    break;
                }
            }
            self.apply(dirty).await;
            if let Some(keep) = &self.keep {
                keep.changed();
            }
            self.ready.send_replace(true);
        }
    }

    /// The zone that this node's label names.
    fn zone_of_node(&self) -> Option<String> {
        let node = self.own_node.get("", &self.node.name)?;
        node.metadata.labels.as_ref()?.get(ZONE_LABEL).cloned()
    }

    /// Serves what the last run knew, as far as it goes without the API server.
    async fn restore(&mut self, known: &Known) {
        let mut slices = by_service(&known.slices);
        for service in &known.services {
            let ObjectKey { namespace, name } = ObjectKey::of(&**service);
            let key = (namespace, name);
            let slices = slices.remove(&key).unwrap_or_default();
            self.set(&key, Some(service), &slices);
        }
        tracing::info!(
            services = known.services.len(),
            "serving the Services of the last run"
        );
        self.listen().await;
    }

    async fn apply(&mut self, dirty: Dirty) {
        if dirty.all {
            let mut slices = by_service(&self.slices.list());
            let mut keys: BTreeSet<_> = self.table.services().cloned().collect();
            keys.extend(self.zone.read().services());
            for ObjectKey { namespace, name } in self.services.keys() {
                keys.insert((namespace, name));
            }
            for key in keys {
                let service = self.services.get(&key.0, &key.1);
                let slices = slices.remove(&key).unwrap_or_default();
                self.set(&key, service.as_deref(), &slices);
            }
        } else {
            for key in dirty.keys {
                let slices = self
                    .slices
                    .select_namespace(&key.0, |slice| is_of(slice, &key.1));
                let service = self.services.get(&key.0, &key.1);
                self.set(&key, service.as_deref(), &slices);
            }
        }
        self.listen().await;
    }

    /// Services of the sleepers that came or went.
    fn selected(&self, before: &[Arc<Sleeper>], now: &[Arc<Sleeper>], dirty: &mut Dirty) {
        let (went, came) = wake::differ(before, now);
        for sleeper in came.into_iter().chain(went) {
            let of = |service: &Service| sleeper.is_of(&sleeper.namespace, service);
            for service in self.services.select_namespace(&sleeper.namespace, of) {
                let ObjectKey { namespace, name } = ObjectKey::of(&*service);
                dirty.keys.insert((namespace, name));
            }
        }
    }

    /// Opens and closes what the table says, if that may have changed.
    async fn listen(&mut self) {
        let due = self.listeners.again();
        let due = due.is_some_and(|at| at <= tokio::time::Instant::now());
        if !self.table.take_listens_changed() && !due {
            return;
        }
        let wanted = self.table.listens();
        let routes: HashSet<_> = self.table.routes().map(|route| &route.name).collect();
        let metrics = &self.metrics;
        self.backends.write().retain(|name, backend| {
            let keep = routes.contains(name);
            if !keep {
                backend.clear();
                metrics.forget(&backend.metrics);
            }
            keep
        });
        let backends = self.backends.read().clone();
        self.listeners.apply(&wanted, &backends).await;
    }

    fn set(
        &mut self,
        (namespace, name): &(String, String),
        service: Option<&Service>,
        slices: &[Arc<EndpointSlice>],
    ) {
        self.zone.write().set(namespace, name, service, slices);
        let sleepers = self.sleepers.borrow().clone();
        let table = &mut self.table;
        for route in table.set(namespace, name, service, slices, &sleepers, &self.node) {
            let known = self.backends.read().get(&route.name).cloned();
            match known {
                Some(backend) => backend.update(route),
                None => {
                    let metrics = self.metrics.route(&route.name);
                    let backend = Arc::new(Backend::new(route, metrics));
                    self.backends.write().insert(route.name.clone(), backend);
                }
            }
        }
    }
}

impl Dirty {
    fn service(&mut self, change: &Change<Service>) {
        match change {
            Change::Resync => self.all = true,
            Change::Object { key, .. } => {
                self.keys.insert((key.namespace.clone(), key.name.clone()));
            }
        }
    }

    fn slice(&mut self, change: &Change<EndpointSlice>) {
        match change {
            Change::Resync => self.all = true,
            Change::Object { old, new, .. } => {
                let both = [old, new].into_iter().flatten();
                self.keys.extend(both.filter_map(|slice| service_of(slice)));
            }
        }
    }
}

/// Slices by the Service that they name.
fn by_service(slices: &[Arc<EndpointSlice>]) -> HashMap<(String, String), Vec<Arc<EndpointSlice>>> {
    let mut of: HashMap<_, Vec<_>> = HashMap::new();
    for slice in slices {
        if let Some(key) = service_of(slice) {
            of.entry(key).or_default().push(slice.clone());
        }
    }
    of
}

fn service_of(slice: &EndpointSlice) -> Option<(String, String)> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    let namespace = slice.metadata.namespace.clone().unwrap_or_default();
    Some((namespace, service.clone()))
}

fn is_of(slice: &EndpointSlice, service: &str) -> bool {
    let labels = slice.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(SERVICE_NAME_LABEL))
        .map(String::as_str)
        == Some(service)
}

/// The next item if it is there already.
fn now<T>(stream: &mut (impl Stream<Item = T> + Unpin)) -> Option<T> {
    stream.next().now_or_never().flatten()
}

async fn wait_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy")
            .field("routes", &self.backends.read().len())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ProxyConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProxyConfig")
            .field("node_name", &self.node_name)
            .field("node_port_addresses", &self.node_port_addresses)
            .field("dns", &self.dns)
            .finish_non_exhaustive()
    }
}

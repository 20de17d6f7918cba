//! Service addresses, in user space: cluster IPs and node ports listen on this machine
//! (one `local` route makes all of them bindable, see `pod-network`), connections and
//! HTTP requests are balanced over endpoints, and cluster names are resolved.
//!
//! Start with [`Proxy::start`]; what Services mean is in [`table`] (pure), whose turn it is
//! in `backend`, connections in `tcp`, HTTP requests to guests of this process in `http`,
//! names in [`dns`]. It reads the Kubernetes API and writes nothing; it knows no runtime:
//! the binary gives it [`LocalEndpoints`].

mod backend;
pub mod dns;
mod http;
mod listeners;
mod local;
mod metrics;
pub mod table;
mod tcp;
mod udp;

pub use listeners::BindFailure;
pub use local::{
    BoxError, CallError, LocalEndpoints, LocalHttp, NoLocalEndpoints, RequestBody, ResponseBody,
};
pub use metrics::Metrics;

use backend::Backend;
use client::{Change, Informer, Informers, ObjectKey};
use dns::Zone;
use futures::{FutureExt as _, Stream, StreamExt as _};
use hyper_util::server::conn::auto::Builder;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use lifecycle::Scope;
use listeners::{Failures, Listeners};
use parking_lot::RwLock;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use table::{Node, RouteName, SERVICE_NAME_LABEL, ServiceTable};
use tokio::sync::{Semaphore, watch};

/// Changes taken together before listeners and endpoints follow.
const CHANGES_AT_ONCE: usize = 1024;

/// What a proxy works with.
pub struct ProxyConfig {
    /// Where Services and EndpointSlices come from.
    pub informers: Informers,
    /// Endpoints of this process.
    pub local: Arc<dyn LocalEndpoints>,
    /// This node's name.
    pub node_name: String,
    /// Addresses on which node ports listen.
    pub node_port_addresses: Vec<IpAddr>,
    /// Cluster DNS, if it is to be served.
    pub dns: Option<dns::DnsConfig>,
    /// Connections at once; further ones wait in the kernel.
    pub connections_max: usize,
    /// How long connections may go on after the scope is closed.
    pub drain: Duration,
}

/// A running proxy. It stops with the scope that it was started in: listeners close at
/// once, connections get [`ProxyConfig::drain`] to finish.
#[derive(Clone, Debug)]
pub struct Proxy {
    metrics: Metrics,
    failures: watch::Receiver<Vec<BindFailure>>,
    ready: watch::Receiver<bool>,
}

impl Proxy {
    /// Starts listening for all Services there are and will be.
    pub fn start(config: ProxyConfig, scope: &Scope) -> Self {
        let shared = Arc::new(Shared {
            local: config.local,
            http: http::builder(scope),
            scope: scope.clone(),
            drain: config.drain,
            connections: Arc::new(Semaphore::new(config.connections_max)),
            failures: Failures::default(),
        });
        let metrics = Metrics::default();
        let zone = Arc::new(RwLock::new(Zone::new(
            config.dns.as_ref().map_or("", |dns| &dns.domain),
        )));
        let reserved = config.dns.as_ref().map(|dns| dns.address);
        if let Some(dns) = config.dns {
            dns::start(dns, zone.clone(), &shared);
        }
        let failures = shared.failures.subscribe();
        let (is_ready, ready) = watch::channel(false);
        let state = State {
            services: config.informers.get(),
            slices: config.informers.get(),
            node: Node {
                name: config.node_name,
                node_port_addresses: config.node_port_addresses,
                reserved: reserved.into_iter().collect(),
            },
            table: ServiceTable::default(),
            zone,
            backends: HashMap::new(),
            listeners: Listeners::new(shared),
            metrics: metrics.clone(),
            ready: is_ready,
        };
        scope.spawn_cancellable(state.run());
        Self {
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

    /// Its metrics, to register.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The addresses that can't be listened on now, as it changes. They are tried again.
    pub fn failures(&self) -> watch::Receiver<Vec<BindFailure>> {
        self.failures.clone()
    }
}

/// What connections need.
struct Shared {
    local: Arc<dyn LocalEndpoints>,
    http: Builder<http::InScope>,
    scope: Scope,
    drain: Duration,
    connections: Arc<Semaphore>,
    failures: Failures,
}

/// What follows the API: owned by one task.
struct State {
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    node: Node,
    table: ServiceTable,
    zone: Arc<RwLock<Zone>>,
    backends: HashMap<RouteName, Arc<Backend>>,
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
    async fn run(mut self) {
        // Endpoints first known after their Service would make it look empty.
        self.services.synced().await;
        self.slices.synced().await;
        let mut services = self.services.subscribe();
        let mut slices = self.slices.subscribe();
        loop {
            let mut dirty = Dirty::default();
            let again = self.listeners.again();
            tokio::select! {
                Some(change) = services.next() => dirty.service(&change),
                Some(change) = slices.next() => dirty.slice(&change),
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
            self.ready.send_replace(true);
        }
    }

    async fn apply(&mut self, dirty: Dirty) {
        if dirty.all {
            let mut slices: HashMap<(String, String), Vec<Arc<EndpointSlice>>> = HashMap::new();
            for slice in self.slices.list() {
                if let Some(key) = service_of(&slice) {
                    slices.entry(key).or_default().push(slice);
                }
            }
            let mut keys: BTreeSet<_> = self.table.services().cloned().collect();
            keys.extend(self.zone.read().services());
            for ObjectKey { namespace, name } in self.services.keys() {
                keys.insert((namespace, name));
            }
            for key in keys {
                let slices = slices.remove(&key).unwrap_or_default();
                self.set(&key, &slices);
            }
        } else {
            for key in dirty.keys {
                let slices = self
                    .slices
                    .select_namespace(&key.0, |slice| is_of(slice, &key.1));
                self.set(&key, &slices);
            }
        }
        let due = self.listeners.again();
        let due = due.is_some_and(|at| at <= tokio::time::Instant::now());
        if !self.table.take_listens_changed() && !due {
            return;
        }
        let wanted = self.table.listens();
        let routes: HashSet<_> = self.table.routes().map(|route| &route.name).collect();
        let metrics = &self.metrics;
        self.backends.retain(|name, backend| {
            let keep = routes.contains(name);
            if !keep {
                backend.clear();
                metrics.forget(&backend.metrics);
            }
            keep
        });
        self.listeners.apply(&wanted, &self.backends).await;
    }

    fn set(&mut self, (namespace, name): &(String, String), slices: &[Arc<EndpointSlice>]) {
        let service = self.services.get(namespace, name);
        let service = service.as_deref();
        self.zone.write().set(namespace, name, service, slices);
        for route in self.table.set(namespace, name, service, slices, &self.node) {
            match self.backends.get(&route.name) {
                Some(backend) => backend.update(route),
                None => {
                    let metrics = self.metrics.route(&route.name);
                    let backend = Arc::new(Backend::new(route, metrics));
                    self.backends.insert(route.name.clone(), backend);
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

impl std::fmt::Debug for ProxyConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProxyConfig")
            .field("node_name", &self.node_name)
            .field("node_port_addresses", &self.node_port_addresses)
            .field("dns", &self.dns)
            .finish_non_exhaustive()
    }
}

//! What the proxy counts.

use crate::table::RouteName;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::collections::HashMap;

/// Services with series of their own; those beyond share the series of service `other`.
const SERVICES_MAX: usize = 2000;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    namespace: String,
    service: String,
    port: String,
}

/// The proxy's metrics. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    inner: std::sync::Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    requests: Family<Labels, Counter>,
    connections: Family<Labels, Counter>,
    active: Family<Labels, Gauge>,
    retries: Family<Labels, Counter>,
    wake: WakeMetrics,
    /// How many routes use the series of each label set.
    users: Mutex<HashMap<Labels, usize>>,
}

/// What is counted of requests that found nobody awake.
#[derive(Clone, Debug)]
pub(crate) struct WakeMetrics {
    pub(crate) seconds: Histogram,
    pub(crate) held: Gauge,
    pub(crate) refused: Counter,
}

/// From what a guest of this process takes to what a container's image does.
const WAKE_BUCKETS: [f64; 16] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    10.0, 30.0,
];

impl Default for WakeMetrics {
    fn default() -> Self {
        Self {
            seconds: Histogram::new(WAKE_BUCKETS),
            held: Gauge::default(),
            refused: Counter::default(),
        }
    }
}

/// The series of one route, looked up once.
#[derive(Clone, Debug)]
pub(crate) struct RouteMetrics {
    pub(crate) requests: Counter,
    pub(crate) connections: Counter,
    pub(crate) active: Gauge,
    pub(crate) retries: Counter,
    labels: Labels,
}

impl Metrics {
    /// Makes them part of a registry.
    pub fn register(&self, registry: &mut Registry) {
        let inner = &self.inner;
        registry.register(
            "salp_service_http_requests",
            "HTTP requests balanced one by one",
            inner.requests.clone(),
        );
        registry.register(
            "salp_service_connections",
            "Connections and UDP sessions accepted",
            inner.connections.clone(),
        );
        registry.register(
            "salp_service_connections_active",
            "Connections and UDP sessions open now",
            inner.active.clone(),
        );
        registry.register(
            "salp_service_retries",
            "Attempts made with another endpoint because one was gone",
            inner.retries.clone(),
        );
        registry.register(
            "salp_wake_seconds",
            "How long requests and connections were held until a pod that stood by took them",
            inner.wake.seconds.clone(),
        );
        registry.register(
            "salp_wake_held",
            "Requests and connections held now while a pod is woken",
            inner.wake.held.clone(),
        );
        registry.register(
            "salp_wake_refused",
            "Requests and connections refused because too many waited, or for too long",
            inner.wake.refused.clone(),
        );
    }

    pub(crate) fn wake(&self) -> WakeMetrics {
        self.inner.wake.clone()
    }

    pub(crate) fn route(&self, name: &RouteName) -> RouteMetrics {
        let inner = &self.inner;
        let mut labels = Labels {
            namespace: name.namespace.to_string(),
            service: name.service.to_string(),
            port: name.port.to_string(),
        };
        let mut users = inner.users.lock();
        if users.len() >= SERVICES_MAX && !users.contains_key(&labels) {
            labels = Labels {
                namespace: String::new(),
                service: "other".into(),
                port: String::new(),
            };
        }
        *users.entry(labels.clone()).or_default() += 1;
        RouteMetrics {
            requests: inner.requests.get_or_create(&labels).clone(),
            connections: inner.connections.get_or_create(&labels).clone(),
            active: inner.active.get_or_create(&labels).clone(),
            retries: inner.retries.get_or_create(&labels).clone(),
            labels,
        }
    }

    pub(crate) fn forget(&self, route: &RouteMetrics) {
        let inner = &self.inner;
        let mut users = inner.users.lock();
        if let Some(count) = users.get_mut(&route.labels) {
            *count -= 1;
            if *count == 0 {
                users.remove(&route.labels);
                inner.requests.remove(&route.labels);
                inner.connections.remove(&route.labels);
                inner.active.remove(&route.labels);
                inner.retries.remove(&route.labels);
            }
        }
    }
}

/// Counts something as active while it lives.
pub(crate) struct Active(Gauge);

impl RouteMetrics {
    pub(crate) fn connection(&self) -> Active {
        self.connections.inc();
        self.active.inc();
        Active(self.active.clone())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.dec();
    }
}

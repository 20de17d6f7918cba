//! A whole proxy on real sockets inside 127.0.0.0/8, fed by an API that is a list of
//! objects.

mod api;
mod http;
mod names;
mod sockets;

use api::FakeApi;
use client::Informers;
use lifecycle::Scope;
use serde_json::{Value, json};
use service_proxy::dns::DnsConfig;
use service_proxy::{LocalEndpoints, NoLocalEndpoints, Proxy, ProxyConfig};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// Each test has a network of its own, so that all can run at once.
static NETWORKS: AtomicU8 = AtomicU8::new(1);

struct Fixture {
    api: FakeApi,
    proxy: Proxy,
    scope: Scope,
    network: u8,
}

impl Fixture {
    async fn start() -> Self {
        Self::start_with(Arc::new(NoLocalEndpoints), |_| None).await
    }

    async fn start_with(
        local: Arc<dyn LocalEndpoints>,
        dns: impl FnOnce(u8) -> Option<DnsConfig>,
    ) -> Self {
        let api = FakeApi::default();
        let scope = Scope::new();
        let network = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let config = ProxyConfig {
            informers: Informers::new(api.client(), &scope),
            local,
            node_name: "here".into(),
            node_port_addresses: vec![ip(network, 254)],
            dns: dns(network),
            connections_max: 1000,
            drain: Duration::from_secs(5),
        };
        let proxy = Proxy::start(config, &scope);
        proxy.ready().await;
        Self {
            api,
            proxy,
            scope,
            network,
        }
    }

    /// A free address of this test's network.
    fn address(&self, host: u8, port: u16) -> SocketAddr {
        SocketAddr::new(ip(self.network, host), port)
    }

    /// Makes a Service with one port.
    fn service(&self, name: &str, address: SocketAddr, more: Value) {
        let mut spec = json!({"clusterIP": address.ip(), "clusterIPs": [address.ip()],
            "ports": [{"name": "p", "port": address.port(), "protocol": "TCP"}]});
        merge(&mut spec, more);
        let service = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "d"}, "spec": spec});
        self.api.put("services", service);
    }

    /// Says who is behind it: addresses and whether they are ready.
    fn endpoints(&self, service: &str, protocol: &str, endpoints: &[(SocketAddr, bool)]) {
        let port = endpoints.first().map_or(1, |(address, _)| address.port());
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|(address, ready)| {
                assert_eq!(address.port(), port, "a slice has one port for all");
                json!({"addresses": [address.ip()], "conditions": {"ready": ready}})
            })
            .collect();
        let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("{service}-1"), "namespace": "d",
                "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "p", "port": port, "protocol": protocol}]});
        self.api.put("endpointslices", slice);
    }
}

fn ip(network: u8, host: u8) -> IpAddr {
    Ipv4Addr::new(127, 77, network, host).into()
}

fn merge(into: &mut Value, more: Value) {
    if let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) {
        into.extend(more);
    }
}

/// Repeats until something is there; a hung test is ended by its runner.
async fn eventually<T>(mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    loop {
        if let Some(found) = attempt().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

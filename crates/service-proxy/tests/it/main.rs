//! A whole proxy on real sockets inside 127.0.0.0/8, fed by an API that is a list of
//! objects.

mod api;
mod checkpoint;
mod http;
mod names;
mod sockets;
mod upgrade;

use api::FakeApi;
use client::Informers;
use lifecycle::Scope;
use serde_json::{Value, json};
use service_proxy::dns::DnsConfig;
use service_proxy::{LocalEndpoints, NoActivator, NoLocalEndpoints, Proxy, ProxyConfig};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

struct Fixture {
    api: FakeApi,
    proxy: Proxy,
    scope: Scope,
    network: u8,
    /// Holds the network against tests of other processes.
    _claim: std::net::UdpSocket,
}

impl Fixture {
    async fn start() -> Self {
        Self::start_with(Arc::new(NoLocalEndpoints), |_| None).await
    }

    async fn start_with(
        local: Arc<dyn LocalEndpoints>,
        dns: impl FnOnce(u8) -> Option<DnsConfig>,
    ) -> Self {
        let fixture = Self::start_cold(FakeApi::default(), local, dns, None);
        fixture.proxy.ready().await;
        fixture
    }

    /// Without waiting for the API.
    fn start_cold(
        api: FakeApi,
        local: Arc<dyn LocalEndpoints>,
        dns: impl FnOnce(u8) -> Option<DnsConfig>,
        checkpoint: Option<PathBuf>,
    ) -> Self {
        let scope = Scope::new();
        let (network, claim) = claim_network();
        let proxy = start_proxy(&api, local, network, dns(network), checkpoint, &scope);
        Self {
            api,
            proxy,
            scope,
            network,
            _claim: claim,
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

fn start_proxy(
    api: &FakeApi,
    local: Arc<dyn LocalEndpoints>,
    network: u8,
    dns: Option<DnsConfig>,
    checkpoint: Option<PathBuf>,
    scope: &Scope,
) -> Proxy {
    let config = ProxyConfig {
        informers: Informers::new(api.client(), scope),
        local,
        activator: Arc::new(NoActivator),
        node_name: "here".into(),
        node_port_addresses: vec![ip(network, 254)],
        dns,
        checkpoint,
        connections_max: 2000,
        drain: Duration::from_secs(5),
    };
    Proxy::start(config, scope)
}

/// A network of this test's own, so that all can run at once, in one process or several: the
/// first whose address 253 nobody holds.
fn claim_network() -> (u8, std::net::UdpSocket) {
    (1..=u8::MAX)
        .find_map(|network| {
            let socket = std::net::UdpSocket::bind((ip(network, 253), 7007)).ok()?;
            Some((network, socket))
        })
        .expect("a free network")
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

//! What Services and EndpointSlices mean for this node: which addresses listen, and who
//! is behind them. Pure: nothing here binds or connects.
//!
//! Start with [`ServiceTable::set`]; [`plan`] tells what to open and close.

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{EndpointHints, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Label by which a slice names its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Label of a Service that stands for one that other sites export: the name it has there.
pub(crate) const IMPORTED_LABEL: &str = "multicluster.kubernetes.io/service-name";
/// Another proxy is responsible for a Service with this label.
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// How long `ClientIP` affinity lasts when the Service does not say.
const AFFINITY_DEFAULT: Duration = Duration::from_secs(10_800);

/// Transport of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// An address to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Listen {
    /// Over what.
    pub protocol: Protocol,
    /// Where.
    pub address: SocketAddr,
}

/// Whose traffic a route takes: policies and thus endpoints can differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// Through the cluster IP: `internalTrafficPolicy` holds.
    Cluster,
    /// Through a node port: `externalTrafficPolicy` holds.
    Node,
}

/// A Service's port as one kind of client sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteName {
    /// Namespace of the Service.
    pub namespace: Arc<str>,
    /// The Service.
    pub service: Arc<str>,
    /// The port's name, or empty.
    pub port: Arc<str>,
    /// TCP and UDP ports may share a name's absence.
    pub protocol: Protocol,
    /// For whom.
    pub origin: Origin,
}

/// A route and who is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its name.
    pub name: RouteName,
    /// Requests are understood one by one, whoever is behind it: HTTP that several sites
    /// answer, where one of them may fall silent at any moment.
    pub http: bool,
    /// How long a client stays with its endpoint, if it does.
    pub affinity: Option<Duration>,
    /// Where it listens.
    pub listens: Vec<SocketAddr>,
    /// Who takes traffic: those ready, else those that terminate but still serve.
    pub endpoints: Vec<SocketAddr>,
    /// Whether there are endpoints that are not ready, so that some may come.
    pub coming: bool,
    /// Pods of this node that stand by, and are woken when no endpoint takes a request.
    pub sleepers: Vec<SleepingEndpoint>,
}

/// One port of a pod that stands by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SleepingEndpoint {
    /// Where it answers once it is awake.
    pub address: SocketAddr,
    /// It will be an HTTP endpoint of this process.
    pub http: bool,
}

/// A pod of this node that is started by the first request to a Service of it. It stays
/// one after it was woken, until its Service lists it, or it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sleeper {
    /// Its namespace.
    pub namespace: String,
    /// Its labels: Services select it by these.
    pub labels: BTreeMap<String, String>,
    /// Its address.
    pub ip: IpAddr,
    /// Its ports.
    pub ports: Vec<SleeperPort>,
    /// It serves HTTP in this process.
    pub http: bool,
}

/// A port that a sleeper declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SleeperPort {
    /// Its name, may be empty.
    pub name: String,
    /// Its number.
    pub number: u16,
    /// Over what.
    pub protocol: Protocol,
}

impl Sleeper {
    /// Whether a Service selects it.
    pub fn is_of(&self, namespace: &str, service: &Service) -> bool {
        let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
        self.namespace == namespace
            && selector.is_some_and(|selector| {
                let has = |(k, v): (&String, &String)| self.labels.get(k) == Some(v);
                !selector.is_empty() && selector.iter().all(has)
            })
    }

    /// Where a Service's port leads.
    fn endpoint(&self, port: &ServicePort, protocol: Protocol) -> Option<SleepingEndpoint> {
        let number = match &port.target_port {
            None => u16::try_from(port.port).ok()?,
            Some(IntOrString::Int(number)) => u16::try_from(*number).ok()?,
            Some(IntOrString::String(name)) => {
                let named = |p: &&SleeperPort| p.name == *name && p.protocol == protocol;
                self.ports.iter().find(named)?.number
            }
        };
        Some(SleepingEndpoint {
            address: SocketAddr::new(self.ip, number),
            http: self.http && protocol == Protocol::Tcp,
        })
    }
}

/// All routes of this node.
#[derive(Debug, Default)]
pub struct ServiceTable {
    services: BTreeMap<(String, String), Vec<Route>>,
    listens_changed: bool,
}

impl ServiceTable {
    /// Sets what a Service has become; `None` when it is gone. `slices` are those that
    /// name it. The routes that it has now.
    pub fn set(
        &mut self,
        namespace: &str,
        name: &str,
        service: Option<&Service>,
        slices: &[Arc<EndpointSlice>],
        sleepers: &[Arc<Sleeper>],
        node: &Node,
    ) -> &[Route] {
        let key = (namespace.to_owned(), name.to_owned());
        let routes = service.map_or_else(Vec::new, |service| {
            routes(namespace, name, service, slices, sleepers, node)
        });
        let listens = |routes: &[Route]| -> Vec<_> {
            let names_and_listens = routes.iter().map(|r| (r.name.clone(), r.listens.clone()));
            names_and_listens.collect()
        };
        let old = self.services.get(&key).map_or(&[][..], Vec::as_slice);
        self.listens_changed |= listens(old) != listens(&routes);
        if routes.is_empty() {
            self.services.remove(&key);
            return &[];
        }
        let entry = self.services.entry(key).insert_entry(routes);
        entry.into_mut()
    }

    /// Whether [`ServiceTable::listens`] may be different from when this was last asked:
    /// endpoints change far more often than addresses.
    pub fn take_listens_changed(&mut self) -> bool {
        std::mem::take(&mut self.listens_changed)
    }

    /// The Services that have routes.
    pub fn services(&self) -> impl Iterator<Item = &(String, String)> {
        self.services.keys()
    }

    /// All routes.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.services.values().flatten()
    }

    /// Which route each address belongs to. Of two that want the same the first by name
    /// has it.
    pub fn listens(&self) -> BTreeMap<Listen, RouteName> {
        let mut listens = BTreeMap::new();
        for route in self.routes() {
            for address in &route.listens {
                let listen = Listen {
                    protocol: route.name.protocol,
                    address: *address,
                };
                listens.entry(listen).or_insert_with(|| route.name.clone());
            }
        }
        listens
    }
}

/// What routes depend on besides API objects.
#[derive(Clone, Debug)]
pub struct Node {
    /// This node's name, for `Local` traffic policies and what is to be preferred.
    pub name: String,
    /// The zone that its label names.
    pub zone: Option<String>,
    /// Addresses on which node ports listen.
    pub node_port_addresses: Vec<IpAddr>,
    /// Addresses that are listened on by others (the cluster DNS).
    pub reserved: Vec<SocketAddr>,
}

/// One step from what is listened on to what should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stop listening.
    Close(Listen),
    /// Start listening for a route.
    Open(Listen, RouteName),
}

/// What to close, then what to open, to get from one set of listeners to another.
pub fn plan(
    open: &BTreeMap<Listen, RouteName>,
    wanted: &BTreeMap<Listen, RouteName>,
) -> Vec<Action> {
    let closed = open
        .iter()
        .filter(|(listen, route)| wanted.get(listen) != Some(route))
        .map(|(listen, _)| Action::Close(*listen));
    let opened = wanted
        .iter()
        .filter(|(listen, route)| open.get(listen) != Some(route))
        .map(|(listen, route)| Action::Open(*listen, route.clone()));
    closed.chain(opened).collect()
}

fn routes(
    namespace: &str,
    name: &str,
    service: &Service,
    slices: &[Arc<EndpointSlice>],
    sleepers: &[Arc<Sleeper>],
    node: &Node,
) -> Vec<Route> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let of_another = service
        .metadata
        .labels
        .as_ref()
        .is_some_and(|labels| labels.contains_key(PROXY_NAME_LABEL));
    if of_another || spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let cluster_ips = cluster_ips(service);
    if cluster_ips.is_empty() {
        return Vec::new();
    }
    let labels = service.metadata.labels.as_ref();
    let imported = labels.is_some_and(|labels| labels.contains_key(IMPORTED_LABEL));
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref();
        let seconds = config.and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
        seconds
            .and_then(|s| u64::try_from(s).ok())
            .map_or(AFFINITY_DEFAULT, Duration::from_secs)
    });
    let (namespace, name) = (Arc::from(namespace), Arc::from(name));
    let mut routes = Vec::new();
    for port in spec.ports.iter().flatten() {
        let Some(protocol) = protocol(port.protocol.as_deref()) else {
            continue;
        };
        let candidates = candidates(port, protocol, slices);
        let asleep: Vec<_> = sleepers
            .iter()
            .filter(|sleeper| sleeper.is_of(&namespace, service))
            .filter_map(|sleeper| sleeper.endpoint(port, protocol))
            .collect();
        let mut add = |origin, policy: Option<&str>, addresses: Vec<SocketAddr>| {
            let listens: Vec<_> = addresses
                .into_iter()
                .filter(|address| !node.reserved.contains(address))
                .collect();
            if listens.is_empty() {
                return;
            }
            let local_only = policy == Some("Local");
            let ipv4 = listens[0].is_ipv4();
            let (endpoints, coming) = choose(&candidates, ipv4, local_only, node);
            let same = |s: &&SleepingEndpoint| s.address.is_ipv4() == ipv4;
            routes.push(Route {
                name: RouteName {
                    namespace: Arc::clone(&namespace),
                    service: Arc::clone(&name),
                    port: Arc::from(port.name.as_deref().unwrap_or_default()),
                    protocol,
                    origin,
                },
                http: imported && protocol == Protocol::Tcp && speaks_http(port),
                affinity,
                listens,
                endpoints,
                coming,
                sleepers: asleep.iter().filter(same).copied().collect(),
            });
        };
        let at = |ips: &[IpAddr], port: i32| match u16::try_from(port) {
            Ok(port @ 1..) => ips.iter().map(|ip| SocketAddr::new(*ip, port)).collect(),
            _ => Vec::new(),
        };
        let internal = spec.internal_traffic_policy.as_deref();
        add(Origin::Cluster, internal, at(&cluster_ips, port.port));
        let external = spec.external_traffic_policy.as_deref();
        let node_port = at(&node.node_port_addresses, port.node_port.unwrap_or(0));
        add(Origin::Node, external, node_port);
    }
    routes
}

/// What `appProtocol` says of a port.
fn speaks_http(port: &ServicePort) -> bool {
    let named = port.app_protocol.as_deref();
    matches!(named, Some("http" | "kubernetes.io/h2c"))
}

/// The Service's own addresses; none for a headless one.
pub(crate) fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let mut texts = spec.cluster_ips.clone().unwrap_or_default();
    if texts.is_empty() {
        texts.extend(spec.cluster_ip.clone());
    }
    texts.iter().filter_map(|ip| ip.parse().ok()).collect()
}

fn protocol(protocol: Option<&str>) -> Option<Protocol> {
    match protocol {
        None | Some("TCP" | "") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        // SCTP is not proxied.
        Some(_) => None,
    }
}

struct Candidate<'a> {
    address: SocketAddr,
    node: Option<&'a str>,
    hints: Option<&'a EndpointHints>,
    ready: bool,
    serving: bool,
    terminating: bool,
}

fn candidates<'a>(
    port: &ServicePort,
    protocol: Protocol,
    slices: &'a [Arc<EndpointSlice>],
) -> Vec<Candidate<'a>> {
    let mut candidates = Vec::new();
    let port_name = port.name.as_deref().unwrap_or_default();
    for slice in slices {
        let number = slice.ports.iter().flatten().find_map(|p| {
            let same = p.name.as_deref().unwrap_or_default() == port_name
                && self::protocol(p.protocol.as_deref()) == Some(protocol);
            same.then(|| p.port.and_then(|port| u16::try_from(port).ok()))?
        });
        let Some(number) = number else {
            continue;
        };
        for endpoint in slice.endpoints.iter().flatten() {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            // Absent means ready (and serving as ready), and not terminating.
            let ready = conditions.ready.unwrap_or(true);
            // Of several addresses only the first is used, as by every consumer.
            let Some(Ok(ip)) = endpoint.addresses.first().map(|ip| ip.parse()) else {
                continue;
            };
            candidates.push(Candidate {
                address: SocketAddr::new(ip, number),
                node: endpoint.node_name.as_deref(),
                hints: endpoint.hints.as_ref(),
                ready,
                serving: conditions.serving.unwrap_or(ready),
                terminating: conditions.terminating.unwrap_or(false),
            });
        }
    }
    candidates
}

/// Those that take traffic, and whether others may come.
fn choose(
    candidates: &[Candidate<'_>],
    ipv4: bool,
    local_only: bool,
    node: &Node,
) -> (Vec<SocketAddr>, bool) {
    let here = |c: &Candidate<'_>| c.node == Some(node.name.as_str());
    let eligible: Vec<_> = candidates
        .iter()
        .filter(|c| c.address.is_ipv4() == ipv4 && (!local_only || here(c)))
        .collect();
    let mut picked: Vec<_> = eligible.iter().filter(|c| c.ready).copied().collect();
    if !local_only {
        prefer(&mut picked, node);
    }
    if picked.is_empty() {
        let ending = eligible.iter().filter(|c| c.serving && c.terminating);
        picked = ending.copied().collect();
    }
    let mut endpoints: Vec<_> = picked.iter().map(|c| c.address).collect();
    endpoints.sort_unstable();
    endpoints.dedup();
    let coming = eligible.iter().any(|c| !c.ready && !c.terminating);
    (endpoints, coming)
}

/// Leaves those that are meant for this node, else those for its zone, as kube-proxy does: only
/// when all say for whom they are, and some for here.
fn prefer(picked: &mut Vec<&Candidate<'_>>, node: &Node) {
    let nodes = |c: &Candidate<'_>| {
        let nodes = c.hints?.for_nodes.as_deref().filter(|n| !n.is_empty())?;
        Some(nodes.iter().any(|n| n.name == node.name))
    };
    let zones = |c: &Candidate<'_>| {
        let zones = c.hints?.for_zones.as_deref().filter(|z| !z.is_empty())?;
        Some(zones.iter().any(|z| Some(&z.name) == node.zone.as_ref()))
    };
    for meant in [&nodes as &dyn Fn(&Candidate<'_>) -> Option<bool>, &zones] {
        let all_say = picked.iter().all(|c| meant(c).is_some());
        if all_say && picked.iter().any(|c| meant(c) == Some(true)) {
            picked.retain(|c| meant(c) == Some(true));
            return;
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{protocol} {}", self.address)
    }
}

impl fmt::Display for RouteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service)?;
        if !self.port.is_empty() {
            write!(f, ":{}", self.port)?;
        }
        match self.origin {
            Origin::Cluster => Ok(()),
            Origin::Node => f.write_str(" (node port)"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Close(listen) => write!(f, "close {listen}"),
            Self::Open(listen, route) => write!(f, "open {listen} for {route}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};
    use std::fmt::Write as _;

    fn node() -> Node {
        Node {
            name: "here".into(),
            zone: Some("z1".into()),
            node_port_addresses: vec!["127.0.0.1".parse().unwrap()],
            reserved: vec!["10.43.0.10:53".parse().unwrap()],
        }
    }

    fn slice(endpoints: Value) -> Arc<EndpointSlice> {
        let slice = json!({
            "metadata": {"name": "s", "namespace": "d"}, "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"},
                      {"name": "dns", "port": 5353, "protocol": "UDP"}],
        });
        Arc::new(serde_json::from_value(slice).unwrap())
    }

    fn check(spec: Value, endpoints: Value, expected: Expect) {
        check_with(spec, endpoints, &[], expected);
    }

    fn check_with(spec: Value, endpoints: Value, sleepers: &[Sleeper], expected: Expect) {
        let sleepers: Vec<_> = sleepers.iter().cloned().map(Arc::new).collect();
        let service = json!({"metadata": {"name": "web", "namespace": "d"}, "spec": spec});
        let service: Service = serde_json::from_value(service).unwrap();
        let mut table = ServiceTable::default();
        let mut text = String::new();
        let slices = [slice(endpoints)];
        for route in table.set("d", "web", Some(&service), &slices, &sleepers, &node()) {
            let asleep: Vec<_> = route.sleepers.iter().map(|s| s.address).collect();
            writeln!(
                text,
                "{} at {:?} to {:?}{}{}{}",
                route.name,
                route.listens,
                route.endpoints,
                if route.coming { ", coming" } else { "" },
                route
                    .affinity
                    .map(|a| format!(", affinity {a:?}"))
                    .unwrap_or_default(),
                if asleep.is_empty() {
                    String::new()
                } else {
                    format!(", asleep {asleep:?}")
                },
            )
            .unwrap();
        }
        expected.assert_eq(&text);
    }

    #[test]
    fn ready_endpoints_take_traffic() {
        check(
            json!({"clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7"], "type": "NodePort",
                "ports": [{"name": "http", "port": 80, "nodePort": 30080},
                          {"name": "dns", "port": 53, "protocol": "UDP"},
                          {"name": "none", "port": 99}]}),
            json!([{"addresses": ["10.42.0.3"]},
                   {"addresses": ["10.42.0.2"], "conditions": {"ready": true}},
                   {"addresses": ["10.42.0.4"], "conditions": {"ready": false}},
                   {"addresses": ["10.42.0.5"], "conditions":
                       {"ready": false, "serving": true, "terminating": true}}]),
            expect![[r#"
                d/web:http at [10.43.0.7:80] to [10.42.0.2:8080, 10.42.0.3:8080], coming
                d/web:http (node port) at [127.0.0.1:30080] to [10.42.0.2:8080, 10.42.0.3:8080], coming
                d/web:dns at [10.43.0.7:53] to [10.42.0.2:5353, 10.42.0.3:5353], coming
                d/web:none at [10.43.0.7:99] to []
            "#]],
        );
    }

    #[test]
    fn terminating_ones_take_it_when_none_is_ready() {
        check(
            json!({"clusterIP": "10.43.0.7", "ports": [{"name": "http", "port": 80}],
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}),
            json!([{"addresses": ["10.42.0.4"], "conditions":
                       {"ready": false, "serving": false, "terminating": true}},
                   {"addresses": ["10.42.0.5"], "conditions":
                       {"ready": false, "serving": true, "terminating": true}}]),
            expect![[r#"
                d/web:http at [10.43.0.7:80] to [10.42.0.5:8080], affinity 60s
            "#]],
        );
    }

    #[test]
    fn local_policies_are_for_one_origin_each() {
        check(
            json!({"clusterIP": "10.43.0.7", "externalTrafficPolicy": "Local",
                "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}),
            json!([{"addresses": ["10.42.0.2"], "nodeName": "here"},
                   {"addresses": ["10.42.1.2"], "nodeName": "there"}]),
            expect![[r#"
                d/web:http at [10.43.0.7:80] to [10.42.0.2:8080, 10.42.1.2:8080]
                d/web:http (node port) at [127.0.0.1:30080] to [10.42.0.2:8080]
            "#]],
        );
    }

    #[test]
    fn headless_external_and_reserved_do_not_listen() {
        for spec in [
            json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]}),
            json!({"type": "ExternalName", "externalName": "example.org", "clusterIP": ""}),
            json!({"clusterIP": "10.43.0.10", "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}),
        ] {
            check(spec, json!([{"addresses": ["10.42.0.2"]}]), expect![""]);
        }
    }

    #[test]
    fn endpoints_meant_for_here_are_preferred() {
        let spec = json!({"clusterIP": "10.43.0.7", "ports": [{"name": "http", "port": 80}]});
        let at = |host: u8, hints: Value| json!({"addresses": [format!("10.42.0.{host}")], "hints": hints});
        let of = |node: &str, zone: &str| json!({"forNodes": [{"name": node}], "forZones": [{"name": zone}]});
        let zone = |zone: &str| json!({"forZones": [{"name": zone}]});
        for (endpoints, expected) in [
            // This node, this zone, anywhere.
            (
                json!([at(2, of("here", "z1")), at(3, of("there", "z1"))]),
                "10.42.0.2:8080",
            ),
            (
                json!([at(2, of("there", "z2")), at(3, of("near", "z1"))]),
                "10.42.0.3:8080",
            ),
            (
                json!([at(2, of("there", "z2")), at(3, of("far", "z3"))]),
                "10.42.0.2:8080, 10.42.0.3:8080",
            ),
            (
                json!([at(2, zone("z2")), at(3, zone("z1"))]),
                "10.42.0.3:8080",
            ),
            // One that says nothing spoils it for all.
            (
                json!([at(2, of("here", "z1")), at(3, json!({}))]),
                "10.42.0.2:8080, 10.42.0.3:8080",
            ),
        ] {
            let service = json!({"metadata": {"name": "web", "namespace": "d"}, "spec": spec});
            let service: Service = serde_json::from_value(service).unwrap();
            let slices = [slice(endpoints.clone())];
            let mut table = ServiceTable::default();
            let routes = table.set("d", "web", Some(&service), &slices, &[], &node());
            let shown: Vec<_> = routes[0]
                .endpoints
                .iter()
                .map(ToString::to_string)
                .collect();
            assert_eq!(shown.join(", "), expected, "{endpoints}");
        }
    }

    #[test]
    fn sleepers_are_those_that_the_selector_means() {
        let sleeper = |namespace: &str, app: &str, host: u8| Sleeper {
            namespace: namespace.into(),
            labels: [("app".into(), app.into()), ("hash".into(), "1".into())].into(),
            ip: [10, 42, 0, host].into(),
            ports: vec![SleeperPort {
                name: "web".into(),
                number: 8080,
                protocol: Protocol::Tcp,
            }],
            http: true,
        };
        check_with(
            json!({"clusterIP": "10.43.0.7", "selector": {"app": "web"}, "ports": [
                {"name": "named", "port": 80, "targetPort": "web"},
                {"name": "numbered", "port": 81, "targetPort": 9090},
                {"name": "same", "port": 82},
                {"name": "unknown", "port": 83, "targetPort": "other"}]}),
            json!([]),
            &[
                sleeper("d", "web", 2),
                sleeper("e", "web", 3),
                sleeper("d", "other", 4),
            ],
            expect![[r#"
                d/web:named at [10.43.0.7:80] to [], asleep [10.42.0.2:8080]
                d/web:numbered at [10.43.0.7:81] to [], asleep [10.42.0.2:9090]
                d/web:same at [10.43.0.7:82] to [], asleep [10.42.0.2:82]
                d/web:unknown at [10.43.0.7:83] to []
            "#]],
        );
        // A Service without a selector selects nothing.
        check_with(
            json!({"clusterIP": "10.43.0.7", "ports": [{"port": 80}]}),
            json!([]),
            &[sleeper("d", "web", 2)],
            expect![[r#"
                d/web at [10.43.0.7:80] to []
            "#]],
        );
    }

    #[test]
    fn plans_the_difference() {
        let service = |ip: &str, port: u16| {
            let spec = json!({"clusterIP": ip, "ports": [{"name": "http", "port": port}]});
            let service = json!({"metadata": {}, "spec": spec});
            serde_json::from_value::<Service>(service).unwrap()
        };
        let mut table = ServiceTable::default();
        table.set("d", "a", Some(&service("10.43.0.1", 80)), &[], &[], &node());
        table.set("d", "b", Some(&service("10.43.0.2", 80)), &[], &[], &node());
        table.set("d", "c", Some(&service("10.43.0.3", 80)), &[], &[], &node());
        let before = table.listens();
        assert!(table.take_listens_changed());
        table.set("d", "a", Some(&service("10.43.0.1", 80)), &[], &[], &node());
        assert!(!table.take_listens_changed());
        table.set("d", "a", Some(&service("10.43.0.1", 81)), &[], &[], &node());
        table.set("d", "b", None, &[], &[], &node());
        // The address of one that is gone; and one that somebody before it has.
        table.set("d", "e", Some(&service("10.43.0.2", 80)), &[], &[], &node());
        table.set("d", "z", Some(&service("10.43.0.3", 80)), &[], &[], &node());
        assert!(table.take_listens_changed());
        let actions = plan(&before, &table.listens());
        let text: Vec<_> = actions.iter().map(ToString::to_string).collect();
        expect![[r#"
            close tcp 10.43.0.1:80
            close tcp 10.43.0.2:80
            open tcp 10.43.0.1:81 for d/a:http
            open tcp 10.43.0.2:80 for d/e:http"#]]
        .assert_eq(&text.join("\n"));
        assert_eq!(plan(&before, &before), []);
    }
}

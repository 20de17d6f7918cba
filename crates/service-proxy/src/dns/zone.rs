//! What names mean, as the Kubernetes DNS specification (1.1.0) has them. Pure.

use crate::table::{IMPORTED_LABEL, cluster_ips};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// Seconds that answers may be kept: endpoints change quickly.
const TTL: u32 = 5;
/// Version of the specification, told by `dns-version`.
const SCHEMA_VERSION: &str = "1.1.0";

/// What a name and type have.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// These.
    Records(Vec<Record>),
    /// The name is another's: the record that says so, and that name.
    Alias(Box<Record>, Name),
    /// Nothing of that type; the zone's SOA.
    NoData(Box<Record>),
    /// There is no such name; the zone's SOA.
    NoName(Box<Record>),
    /// The name is not in this zone.
    NotOurs,
}

#[derive(Clone, Debug, PartialEq)]
struct Port {
    name: String,
    protocol: &'static str,
    number: u16,
}

#[derive(Clone, Debug, PartialEq)]
struct Endpoint {
    address: IpAddr,
    /// The pod's host name, or its address with dashes.
    label: String,
    named: bool,
    /// The site that has it, of an import.
    cluster: Option<String>,
    ports: Vec<Port>,
}

impl Endpoint {
    /// The labels below the Service's name.
    fn labels(&self) -> impl Iterator<Item = &str> {
        [self.label.as_str()]
            .into_iter()
            .chain(self.cluster.as_deref())
    }
}

#[derive(Clone, Debug)]
enum Kind {
    Cluster(Vec<IpAddr>),
    Headless,
    External(String),
}

#[derive(Clone, Debug)]
struct Entry {
    kind: Kind,
    ports: Vec<Port>,
    /// Ready ones; of a Service with an address only those with a host name.
    endpoints: Vec<Endpoint>,
}

/// Whose an address is.
#[derive(Clone, Debug)]
struct Owner {
    namespace: String,
    service: String,
    /// The endpoint's label, or that of none when it is the Service's own address.
    endpoint: Option<String>,
}

/// Label of a slice of an import: the site whose endpoints it has.
const CLUSTER_LABEL: &str = "multicluster.kubernetes.io/source-cluster";
/// Where imported Services have their names.
const CLUSTERSET_DOMAIN: &str = "clusterset.local";

/// The zone of a cluster.
#[derive(Debug)]
pub struct Zone {
    /// The zone of Services that several sites export; none has one of its own.
    imports: Option<Box<Zone>>,
    /// Which import a Service of this cluster stands for.
    imported_as: HashMap<(String, String), String>,
    domain: Name,
    services: BTreeMap<String, BTreeMap<String, Entry>>,
    addresses: HashMap<IpAddr, Owner>,
    /// Rises with each change.
    serial: u32,
}

impl Zone {
    /// An empty zone of a domain such as `cluster.local`. One that can't be a name is the
    /// usual one.
    pub fn new(domain: &str) -> Self {
        Self {
            imports: Some(Box::new(Self::alone(CLUSTERSET_DOMAIN))),
            ..Self::alone(domain)
        }
    }

    fn alone(domain: &str) -> Self {
        let name = |text: &str| {
            let mut name = Name::from_ascii(text).ok()?.to_lowercase();
            name.set_fqdn(true);
            (!name.is_root()).then_some(name)
        };
        Self {
            imports: None,
            imported_as: HashMap::new(),
            domain: name(domain)
                .or_else(|| name("cluster.local"))
                .unwrap_or_default(),
            services: BTreeMap::new(),
            addresses: HashMap::new(),
            serial: 1,
        }
    }

    /// The Services that have names.
    pub fn services(&self) -> Vec<(String, String)> {
        let names = self.services.iter().flat_map(|(namespace, services)| {
            services
                .keys()
                .map(|name| (namespace.clone(), name.clone()))
        });
        names.collect()
    }

    /// Sets what a Service has become; `None` when it is gone. `slices` are its own.
    pub fn set(
        &mut self,
        namespace: &str,
        name: &str,
        service: Option<&Service>,
        slices: &[Arc<EndpointSlice>],
    ) {
        self.set_import(namespace, name, service, slices);
        self.serial = self.serial.wrapping_add(1);
        let old = self
            .services
            .get_mut(namespace)
            .and_then(|s| s.remove(name));
        for address in old.iter().flat_map(Entry::addresses) {
            let owner = self.addresses.get(&address);
            if owner.is_some_and(|o| o.namespace == namespace && o.service == name) {
                self.addresses.remove(&address);
            }
        }
        let Some(entry) = service.and_then(|service| Entry::new(service, slices)) else {
            if self.services.get(namespace).is_some_and(BTreeMap::is_empty) {
                self.services.remove(namespace);
            }
            return;
        };
        let owner = |endpoint: Option<&Endpoint>| Owner {
            namespace: namespace.to_owned(),
            service: name.to_owned(),
            endpoint: endpoint.map(|e| e.label.clone()),
        };
        if let Kind::Cluster(addresses) = &entry.kind {
            for address in addresses {
                self.addresses.insert(*address, owner(None));
            }
        }
        for endpoint in entry.endpoints.iter().filter(|e| e.named) {
            let address = self.addresses.entry(endpoint.address);
            address.or_insert_with(|| owner(Some(endpoint)));
        }
        let services = self.services.entry(namespace.to_owned()).or_default();
        services.insert(name.to_owned(), entry);
    }

    /// A Service may stand for one that other sites export, or have stood for one.
    fn set_import(
        &mut self,
        namespace: &str,
        name: &str,
        service: Option<&Service>,
        slices: &[Arc<EndpointSlice>],
    ) {
        let Some(imports) = &mut self.imports else {
            return;
        };
        let labels = service.and_then(|s| s.metadata.labels.as_ref());
        let import = labels.and_then(|l| l.get(IMPORTED_LABEL));
        let key = (namespace.to_owned(), name.to_owned());
        let before = match import {
            Some(import) => self.imported_as.insert(key, import.clone()),
            None => self.imported_as.remove(&key),
        };
        if let Some(before) = before.filter(|before| Some(before) != import) {
            imports.set(namespace, &before, None, &[]);
        }
        if let Some(import) = import {
            imports.set(namespace, import, service, slices);
        }
    }

    /// What a name and type have.
    pub fn lookup(&self, name: &Name, kind: RecordType) -> Found {
        if !self.domain.zone_of(name) {
            if let Some(imports) = &self.imports
                && imports.domain.zone_of(name)
            {
                return imports.lookup(name, kind);
            }
            return self.reverse(name, kind).unwrap_or(Found::NotOurs);
        }
        let depth = usize::from(name.num_labels() - self.domain.num_labels());
        let labels: Vec<String> = name
            .iter()
            .take(depth)
            .map(|label| String::from_utf8_lossy(label).to_lowercase())
            .collect();
        let labels: Vec<&str> = labels.iter().rev().map(String::as_str).collect();
        let records = match labels[..] {
            [] if kind == RecordType::SOA => Some(vec![self.soa().data]),
            [] | ["svc" | "pod"] => Some(Vec::new()),
            ["dns-version"] => {
                let text = TXT::new(vec![SCHEMA_VERSION.into()]);
                Some(self.only(kind, RecordType::TXT, vec![RData::TXT(text)]))
            }
            ["svc" | "pod", namespace] => self.services.get(namespace).map(|_| Vec::new()),
            ["pod", _, address] => dashed(address).map(|a| addresses(kind, [a])),
            ["svc", namespace, service, ref rest @ ..] => {
                let entry = self.services.get(namespace).and_then(|s| s.get(service));
                let Some(entry) = entry else {
                    return Found::NoName(Box::new(self.soa()));
                };
                if let (Kind::External(target), []) = (&entry.kind, rest) {
                    return self.alias(name, kind, target);
                }
                self.service(namespace, service, entry, rest, kind)
            }
            _ => None,
        };
        match records {
            None => Found::NoName(Box::new(self.soa())),
            Some(data) if data.is_empty() => Found::NoData(Box::new(self.soa())),
            Some(data) => {
                let record = |data| Record::from_rdata(name.clone(), TTL, data);
                Found::Records(data.into_iter().map(record).collect())
            }
        }
    }

    fn service(
        &self,
        namespace: &str,
        service: &str,
        entry: &Entry,
        rest: &[&str],
        kind: RecordType,
    ) -> Option<Vec<RData>> {
        match *rest {
            [] => Some(match &entry.kind {
                Kind::Cluster(own) => addresses(kind, own.iter().copied()),
                _ => addresses(kind, entry.endpoints.iter().map(|e| e.address)),
            }),
            // Is there as soon as a port is below it.
            [protocol @ ("_tcp" | "_udp")] => {
                let any = entry.ports.iter().any(|p| p.protocol == &protocol[1..]);
                any.then(Vec::new)
            }
            [protocol, port] if protocol.starts_with('_') => {
                let (protocol, port) = (&protocol[1..], port.strip_prefix('_')?);
                let wanted = |p: &&Port| p.protocol == protocol && p.name == port;
                let below = self.name_of(namespace, service, None)?;
                let mut found = Vec::new();
                match entry.kind {
                    Kind::Headless => {
                        for endpoint in &entry.endpoints {
                            let labels = Name::from_labels(endpoint.labels().map(str::as_bytes));
                            let target = labels.ok()?.append_domain(&below).ok()?;
                            let ports = endpoint.ports.iter().filter(wanted);
                            found.extend(ports.map(|p| srv(p.number, target.clone())));
                        }
                    }
                    _ => {
                        let ports = entry.ports.iter().filter(wanted);
                        found.extend(ports.map(|p| srv(p.number, below.clone())));
                    }
                }
                (!found.is_empty()).then(|| self.only(kind, RecordType::SRV, found))
            }
            // Of an import each site's names are below the site's.
            ref labels => {
                let named = |e: &&Endpoint| e.labels().eq(labels.iter().rev().copied());
                let mut those = entry.endpoints.iter().filter(named).peekable();
                if those.peek().is_some() {
                    return Some(addresses(kind, those.map(|e| e.address)));
                }
                // There because of what is below it.
                let site = |e: &Endpoint| e.cluster.as_deref().is_some_and(|c| [c] == *labels);
                entry.endpoints.iter().any(site).then(Vec::new)
            }
        }
    }

    fn alias(&self, name: &Name, kind: RecordType, target: &str) -> Found {
        let target = Name::from_ascii(target).map(|mut target| {
            target.set_fqdn(true);
            target
        });
        let Ok(target) = target else {
            return Found::NoData(Box::new(self.soa()));
        };
        let data = RData::CNAME(CNAME(target.clone()));
        let record = Record::from_rdata(name.clone(), TTL, data);
        match kind {
            RecordType::CNAME => Found::Records(vec![record]),
            RecordType::A | RecordType::AAAA => Found::Alias(Box::new(record), target),
            _ => Found::NoData(Box::new(self.soa())),
        }
    }

    /// Names of the cluster's addresses; those of others are not ours.
    fn reverse(&self, name: &Name, kind: RecordType) -> Option<Found> {
        let network = name.to_lowercase().parse_arpa_name().ok()?;
        if network.prefix_len() != network.max_prefix_len() {
            return None;
        }
        let owner = self.addresses.get(&network.addr())?;
        let target = self.name_of(&owner.namespace, &owner.service, owner.endpoint.as_deref())?;
        if kind != RecordType::PTR {
            return Some(Found::NoData(Box::new(self.soa())));
        }
        let data = RData::PTR(PTR(target));
        Some(Found::Records(vec![Record::from_rdata(
            name.clone(),
            TTL,
            data,
        )]))
    }

    fn name_of(&self, namespace: &str, service: &str, endpoint: Option<&str>) -> Option<Name> {
        let labels = endpoint.into_iter().chain([service, namespace, "svc"]);
        let name = Name::from_labels(labels.map(str::as_bytes)).ok()?;
        name.append_domain(&self.domain).ok()
    }

    fn soa(&self) -> Record {
        let below = |label: &str| {
            let labels: Vec<_> = label.split('.').map(str::as_bytes).collect();
            let name = Name::from_labels(labels).and_then(|n| n.append_domain(&self.domain));
            name.unwrap_or_else(|_| self.domain.clone())
        };
        let soa = SOA::new(
            below("ns.dns"),
            below("hostmaster"),
            self.serial,
            7200,
            1800,
            86_400,
            TTL,
        );
        Record::from_rdata(self.domain.clone(), TTL, RData::SOA(soa))
    }

    fn only(&self, asked: RecordType, kind: RecordType, data: Vec<RData>) -> Vec<RData> {
        if asked == kind || asked == RecordType::ANY {
            data
        } else {
            Vec::new()
        }
    }
}

impl Entry {
    fn new(service: &Service, slices: &[Arc<EndpointSlice>]) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let kind = match (spec.type_.as_deref(), spec.cluster_ip.as_deref()) {
            (Some("ExternalName"), _) => Kind::External(spec.external_name.clone()?),
            (_, Some("None")) => Kind::Headless,
            _ => Kind::Cluster(cluster_ips(service)),
        };
        let ports = spec.ports.iter().flatten();
        let ports = ports.filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), p.port));
        let mut endpoints: Vec<Endpoint> = Vec::new();
        let labels = service.metadata.labels.as_ref();
        let imported = labels.is_some_and(|l| l.contains_key(IMPORTED_LABEL));
        for slice in slices {
            let labels = slice.metadata.labels.as_ref();
            let cluster = labels
                .and_then(|l| l.get(CLUSTER_LABEL))
                .filter(|_| imported);
            let ports: Vec<_> = slice
                .ports
                .iter()
                .flatten()
                .filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), p.port?))
                .collect();
            for endpoint in slice.endpoints.iter().flatten() {
                let ready = endpoint.conditions.as_ref().and_then(|c| c.ready);
                let named = endpoint.hostname.is_some();
                let wanted = matches!(kind, Kind::Headless) || named;
                let Some(Ok(address)) = endpoint.addresses.first().map(|a| a.parse()) else {
                    continue;
                };
                if !ready.unwrap_or(true) || !wanted {
                    continue;
                }
                let label = endpoint.hostname.as_deref().map(str::to_lowercase);
                endpoints.push(Endpoint {
                    address,
                    label: label.unwrap_or_else(|| dash(address)),
                    named,
                    cluster: cluster.map(|c| c.to_lowercase()),
                    ports: ports.clone(),
                });
            }
        }
        endpoints.sort_by(|a, b| (a.address, &a.label).cmp(&(b.address, &b.label)));
        endpoints.dedup();
        Some(Self {
            kind,
            ports: ports.collect(),
            endpoints,
        })
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let own = match &self.kind {
            Kind::Cluster(own) => &own[..],
            _ => &[],
        };
        let endpoints = self.endpoints.iter().map(|e| e.address);
        own.iter().copied().chain(endpoints)
    }
}

fn port(name: Option<&str>, protocol: Option<&str>, number: i32) -> Option<Port> {
    Some(Port {
        name: name.unwrap_or_default().to_lowercase(),
        protocol: match protocol {
            None | Some("TCP" | "") => "tcp",
            Some("UDP") => "udp",
            Some(_) => return None,
        },
        number: u16::try_from(number).ok()?,
    })
}

fn addresses(kind: RecordType, addresses: impl IntoIterator<Item = IpAddr>) -> Vec<RData> {
    let any = kind == RecordType::ANY;
    let data = addresses.into_iter().filter_map(|address| match address {
        IpAddr::V4(v4) if any || kind == RecordType::A => Some(RData::A(A(v4))),
        IpAddr::V6(v6) if any || kind == RecordType::AAAA => Some(RData::AAAA(AAAA(v6))),
        _ => None,
    });
    let mut unique: Vec<RData> = Vec::new();
    for data in data {
        if unique.last() != Some(&data) {
            unique.push(data);
        }
    }
    unique
}

fn srv(port: u16, target: Name) -> RData {
    RData::SRV(SRV::new(0, 100, port, target))
}

fn dash(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// The address in a pod's name.
fn dashed(label: &str) -> Option<IpAddr> {
    if let Ok(v4) = label.replace('-', ".").parse::<Ipv4Addr>() {
        return Some(v4.into());
    }
    label.replace('-', ":").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    fn zone() -> Zone {
        let mut zone = Zone::new("cluster.local");
        let mut set = |name: &str, spec: Value, endpoints: Value| {
            let service = json!({"metadata": {}, "spec": spec});
            let service: Service = serde_json::from_value(service).unwrap();
            let slice = json!({"metadata": {}, "addressType": "IPv4", "endpoints": endpoints,
                "ports": [{"name": "http", "port": 8080}]});
            let slice = Arc::new(serde_json::from_value(slice).unwrap());
            zone.set("shop", name, Some(&service), &[slice]);
        };
        set(
            "web",
            json!({"clusterIP": "10.43.0.7", "ports": [
                {"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
            json!([{"addresses": ["10.42.0.2"]}]),
        );
        set(
            "db",
            json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]}),
            json!([{"addresses": ["10.42.0.3"], "hostname": "db-0"},
                   {"addresses": ["10.42.0.4"]},
                   {"addresses": ["10.42.0.5"], "conditions": {"ready": false}}]),
        );
        set(
            "away",
            json!({"type": "ExternalName", "externalName": "example.org"}),
            json!([]),
        );
        zone
    }

    fn check(questions: &[(&str, RecordType)], expected: Expect) {
        let zone = zone();
        let answers = questions.iter().map(|(name, kind)| {
            let found = zone.lookup(&Name::from_ascii(name).unwrap(), *kind);
            let found = match found {
                Found::Records(records) => {
                    let data = records.iter().map(|r| r.data.to_string());
                    data.collect::<Vec<_>>().join(", ")
                }
                Found::Alias(_, target) => format!("alias of {target}"),
                Found::NoData(soa) => format!("no data in {}", soa.name),
                Found::NoName(_) => "no such name".into(),
                Found::NotOurs => "not ours".into(),
            };
            format!("{name} {kind}: {found}\n")
        });
        expected.assert_eq(&answers.collect::<String>());
    }

    #[test]
    fn services_with_an_address() {
        check(
            &[
                ("web.shop.svc.cluster.local.", RecordType::A),
                ("WEB.Shop.svc.Cluster.local.", RecordType::A),
                ("web.shop.svc.cluster.local.", RecordType::AAAA),
                ("_http._tcp.web.shop.svc.cluster.local.", RecordType::SRV),
                ("_dns._udp.web.shop.svc.cluster.local.", RecordType::SRV),
                ("_dns._tcp.web.shop.svc.cluster.local.", RecordType::SRV),
                ("_tcp.web.shop.svc.cluster.local.", RecordType::SRV),
                ("7.0.43.10.in-addr.arpa.", RecordType::PTR),
                ("10-42-0-2.web.shop.svc.cluster.local.", RecordType::A),
            ],
            expect![[r#"
                web.shop.svc.cluster.local. A: 10.43.0.7
                WEB.Shop.svc.Cluster.local. A: 10.43.0.7
                web.shop.svc.cluster.local. AAAA: no data in cluster.local.
                _http._tcp.web.shop.svc.cluster.local. SRV: 0 100 80 web.shop.svc.cluster.local.
                _dns._udp.web.shop.svc.cluster.local. SRV: 0 100 53 web.shop.svc.cluster.local.
                _dns._tcp.web.shop.svc.cluster.local. SRV: no such name
                _tcp.web.shop.svc.cluster.local. SRV: no data in cluster.local.
                7.0.43.10.in-addr.arpa. PTR: web.shop.svc.cluster.local.
                10-42-0-2.web.shop.svc.cluster.local. A: no such name
            "#]],
        );
    }

    #[test]
    fn headless_services_name_their_ready_endpoints() {
        check(
            &[
                ("db.shop.svc.cluster.local.", RecordType::A),
                ("db-0.db.shop.svc.cluster.local.", RecordType::A),
                ("10-42-0-4.db.shop.svc.cluster.local.", RecordType::A),
                ("10-42-0-5.db.shop.svc.cluster.local.", RecordType::A),
                ("_http._tcp.db.shop.svc.cluster.local.", RecordType::SRV),
                ("3.0.42.10.in-addr.arpa.", RecordType::PTR),
                ("4.0.42.10.in-addr.arpa.", RecordType::PTR),
            ],
            expect![[r#"
                db.shop.svc.cluster.local. A: 10.42.0.3, 10.42.0.4
                db-0.db.shop.svc.cluster.local. A: 10.42.0.3
                10-42-0-4.db.shop.svc.cluster.local. A: 10.42.0.4
                10-42-0-5.db.shop.svc.cluster.local. A: no such name
                _http._tcp.db.shop.svc.cluster.local. SRV: 0 100 8080 db-0.db.shop.svc.cluster.local., 0 100 8080 10-42-0-4.db.shop.svc.cluster.local.
                3.0.42.10.in-addr.arpa. PTR: db-0.db.shop.svc.cluster.local.
                4.0.42.10.in-addr.arpa. PTR: not ours
            "#]],
        );
    }

    #[test]
    fn other_names() {
        check(
            &[
                ("away.shop.svc.cluster.local.", RecordType::A),
                ("away.shop.svc.cluster.local.", RecordType::CNAME),
                ("away.shop.svc.cluster.local.", RecordType::TXT),
                ("10-42-0-9.shop.pod.cluster.local.", RecordType::A),
                ("nonsense.shop.pod.cluster.local.", RecordType::A),
                ("dns-version.cluster.local.", RecordType::TXT),
                ("cluster.local.", RecordType::SOA),
                ("shop.svc.cluster.local.", RecordType::A),
                ("none.svc.cluster.local.", RecordType::A),
                ("none.shop.svc.cluster.local.", RecordType::A),
                ("example.org.shop.svc.cluster.local.", RecordType::A),
                ("example.org.cluster.local.", RecordType::A),
                ("example.org.", RecordType::A),
                ("1.1.1.1.in-addr.arpa.", RecordType::PTR),
            ],
            expect![[r#"
                away.shop.svc.cluster.local. A: alias of example.org.
                away.shop.svc.cluster.local. CNAME: example.org.
                away.shop.svc.cluster.local. TXT: no data in cluster.local.
                10-42-0-9.shop.pod.cluster.local. A: 10.42.0.9
                nonsense.shop.pod.cluster.local. A: no such name
                dns-version.cluster.local. TXT: 1.1.0
                cluster.local. SOA: ns.dns.cluster.local. hostmaster.cluster.local. 4 7200 1800 86400 5
                shop.svc.cluster.local. A: no data in cluster.local.
                none.svc.cluster.local. A: no such name
                none.shop.svc.cluster.local. A: no such name
                example.org.shop.svc.cluster.local. A: no such name
                example.org.cluster.local. A: no such name
                example.org. A: not ours
                1.1.1.1.in-addr.arpa. PTR: not ours
            "#]],
        );
    }

    #[test]
    fn imports_have_names_in_all_sites() {
        let service = |label: Option<&str>| -> Service {
            let labels = label.map(|l| json!({IMPORTED_LABEL: l}));
            let object = json!({"metadata": {"labels": labels}, "spec": {"clusterIP": "10.43.0.77",
                "ports": [{"name": "http", "port": 80}]}});
            serde_json::from_value(object).unwrap()
        };
        let mut zone = Zone::new("cluster.local");
        let found = |zone: &Zone, name: &str| {
            let name = Name::from_ascii(name).unwrap();
            match zone.lookup(&name, RecordType::A) {
                Found::Records(records) => records.len(),
                Found::NoName(_) => 0,
                other => panic!("{other:?}"),
            }
        };
        zone.set("shop", "derived-1", Some(&service(Some("till"))), &[]);
        assert_eq!(found(&zone, "till.shop.svc.clusterset.local."), 1);
        assert_eq!(found(&zone, "till.shop.svc.cluster.local."), 0);
        assert_eq!(found(&zone, "derived-1.shop.svc.clusterset.local."), 0);
        zone.set("shop", "derived-1", Some(&service(Some("desk"))), &[]);
        assert_eq!(found(&zone, "till.shop.svc.clusterset.local."), 0);
        assert_eq!(found(&zone, "desk.shop.svc.clusterset.local."), 1);
        zone.set("shop", "derived-1", None, &[]);
        assert_eq!(found(&zone, "desk.shop.svc.clusterset.local."), 0);
    }

    /// KEP-1645's DNS specification, 2.4: a multicluster headless Service.
    #[test]
    fn endpoints_of_imports_have_names_below_their_sites() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"labels": {IMPORTED_LABEL: "db"}},
            "spec": {"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}}))
        .unwrap();
        let slice = |site: &str, endpoints: serde_json::Value| -> Arc<EndpointSlice> {
            let object = json!({"metadata": {"labels": {CLUSTER_LABEL: site}},
                "addressType": "IPv4", "endpoints": endpoints,
                "ports": [{"name": "sql", "protocol": "TCP", "port": 5432}]});
            Arc::new(serde_json::from_value(object).unwrap())
        };
        let slices = [
            slice(
                "hub",
                json!([{"addresses": ["10.42.255.7"], "hostname": "db-0"},
                {"addresses": ["10.42.255.8"], "hostname": "db-1"}]),
            ),
            slice(
                "shop-1",
                json!([{"addresses": ["10.42.0.9"], "hostname": "db-0"},
                {"addresses": ["10.42.0.10"]}]),
            ),
        ];
        let mut zone = Zone::new("cluster.local");
        zone.set("shop", "derived-1", Some(&service), &slices);
        let text = |name: &str, kind| {
            let full = Name::from_ascii(format!("{name}.shop.svc.clusterset.local.")).unwrap();
            match zone.lookup(&full, kind) {
                Found::Records(records) => {
                    let data = records.iter().map(|r| format!("{name}: {}\n", r.data));
                    data.collect()
                }
                Found::NoData(_) => format!("{name}: no data\n"),
                Found::NoName(_) => format!("{name}: no such name\n"),
                other => panic!("{other:?}"),
            }
        };
        let mut all = String::new();
        for name in [
            "db",
            "db-0.hub.db",
            "db-0.shop-1.db",
            "10-42-0-10.shop-1.db",
            "db-0.db",
            "hub.db",
            "db-7.hub.db",
        ] {
            all.push_str(&text(name, RecordType::A));
        }
        all.push_str(&text("_sql._tcp.db", RecordType::SRV));
        expect![[r#"
            db: 10.42.0.9
            db: 10.42.0.10
            db: 10.42.255.7
            db: 10.42.255.8
            db-0.hub.db: 10.42.255.7
            db-0.shop-1.db: 10.42.0.9
            10-42-0-10.shop-1.db: 10.42.0.10
            db-0.db: no such name
            hub.db: no data
            db-7.hub.db: no such name
            _sql._tcp.db: 0 100 5432 db-0.shop-1.db.shop.svc.clusterset.local.
            _sql._tcp.db: 0 100 5432 10-42-0-10.shop-1.db.shop.svc.clusterset.local.
            _sql._tcp.db: 0 100 5432 db-0.hub.db.shop.svc.clusterset.local.
            _sql._tcp.db: 0 100 5432 db-1.hub.db.shop.svc.clusterset.local.
        "#]]
        .assert_eq(&all);
    }

    #[test]
    fn what_is_gone_has_no_name() {
        let mut zone = zone();
        for (namespace, name) in zone.services() {
            zone.set(&namespace, &name, None, &[]);
        }
        assert!(zone.services.is_empty() && zone.addresses.is_empty());
    }
}

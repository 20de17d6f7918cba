//! The objects that an import is made of: the ServiceImport, a Service without selector that
//! gives it an address and a name, and slices, one for each site's listener. Pure.
//!
//! What the service proxy sees is an ordinary Service whose ready endpoints are this site's
//! pods, or, while there are none, listeners of tunnels to the nearest sites that have some.

use crate::choose::{Candidate, choose, order};
use crate::exported::Exported;
use crate::kinds::{CLUSTER_LABEL, GROUP, ImportType, Port, SERVICE_LABEL, VERSION};
use crate::merge::{Merged, Source, merge};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice, ForNode};
use lattice::{SiteId, SiteName, SiteState};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Label of what is made here: the import that it is for.
pub(crate) const IMPORT_LABEL: &str = "salp.dev/service-import";
/// Who writes these objects.
pub(crate) const OWNER: &str = "salp-sites";

/// Where requests to an import go when no export says it.
const SAME_NODE: &str = "PreferSameNode";

/// One site's export of the Service.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    /// Nothing for this site.
    pub(crate) site: Option<SiteId>,
    pub(crate) candidate: Candidate,
    pub(crate) exported: Exported,
}

/// A listener whose connections go to a site: import, port, site, share; and where there is
/// no address for all, which endpoint of the site, and at which port it answers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Gate {
    pub(crate) namespace: String,
    pub(crate) service: String,
    pub(crate) port: String,
    pub(crate) site: SiteId,
    pub(crate) share: u32,
    /// The endpoint's host name; any endpoint's when empty.
    pub(crate) host: String,
    /// Where it listens, at an address of its own; none: anywhere.
    pub(crate) own: Option<u16>,
}

impl Gate {
    /// Whether it is for another port of the same.
    pub(crate) fn is_beside(&self, other: &Self) -> bool {
        (&self.namespace, &self.service) == (&other.namespace, &other.service)
            && (self.site, self.share, &self.host) == (other.site, other.share, &other.host)
    }
}

/// What is to be there for one import.
#[derive(Clone, Debug)]
pub(crate) struct Import {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) merged: Merged,
    /// The names of the sites that export it.
    pub(crate) clusters: Vec<String>,
    /// Slices of tunnels: site name, whether it takes requests, its gates by port.
    pub(crate) tunnels: Vec<Tunnel>,
    /// Who is asked when a site that was chosen can't be, nearest first.
    pub(crate) order: Vec<SiteId>,
    /// Whether this site's own endpoints are part of it.
    pub(crate) own: Option<String>,
}

/// A slice of one listener a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tunnel {
    pub(crate) site: String,
    pub(crate) ready: bool,
    pub(crate) gates: Vec<Gate>,
}

/// Puts the exports of one Service together.
pub(crate) fn import(
    own: &SiteName,
    namespace: &str,
    name: &str,
    offers: &[Offer],
) -> Option<Import> {
    let sources: Vec<Source<'_>> = offers
        .iter()
        .map(|o| Source {
            site: &o.candidate.place.name,
            exported: &o.exported,
        })
        .collect();
    let merged = merge(&sources)?;
    let candidates: Vec<Candidate> = offers.iter().map(|o| o.candidate.clone()).collect();
    let tunnels = if merged.spec.type_ == ImportType::Headless {
        endpoints(namespace, name, &merged.spec.ports, offers)
    } else {
        shares(own, namespace, name, &merged.spec.ports, offers)
    };
    let order = order(own, &candidates).into_iter();
    let order = order.filter(|i| candidates[*i].ready > 0);
    let order = order.filter_map(|i| offers[i].site).collect();
    let mut clusters: Vec<String> = sources.iter().map(|s| s.site.to_owned()).collect();
    clusters.sort();
    let own = offers.iter().find(|o| o.site.is_none());
    Some(Import {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        merged,
        clusters,
        tunnels,
        order,
        own: own.map(|o| o.candidate.place.name.clone()),
    })
}

fn is_reached(offer: &Offer) -> bool {
    matches!(offer.candidate.state, SiteState::Alive | SiteState::Suspect)
}

/// The ports of an import that a site has, and can be tunnelled.
fn tunnelled<'a>(ports: &'a [Port], offer: &'a Offer) -> impl Iterator<Item = &'a Port> {
    ports.iter().filter(|p| {
        let exports = |q: &Port| q.name == p.name && q.protocol == "TCP";
        p.protocol == "TCP" && offer.exported.ports.iter().any(exports)
    })
}

/// The tunnels of an import that has one address: to those who answer now, by their shares,
/// and to the others, who stand by.
fn shares(
    own: &SiteName,
    namespace: &str,
    name: &str,
    ports: &[Port],
    offers: &[Offer],
) -> Vec<Tunnel> {
    let candidates: Vec<Candidate> = offers.iter().map(|o| o.candidate.clone()).collect();
    let choices = choose(own, &candidates);
    let mut tunnels = Vec::new();
    for (offer, choice) in offers.iter().zip(&choices) {
        let Some(site) = offer.site.filter(|_| is_reached(offer)) else {
            continue;
        };
        for share in 0..choice.shares.max(1) {
            let gates: Vec<Gate> = tunnelled(ports, offer)
                .map(|p| Gate {
                    namespace: namespace.to_owned(),
                    service: name.to_owned(),
                    port: p.name.clone(),
                    site,
                    share,
                    host: String::new(),
                    own: None,
                })
                .collect();
            if !gates.is_empty() {
                tunnels.push(Tunnel {
                    site: offer.candidate.place.name.clone(),
                    ready: choice.shares > 0,
                    gates,
                });
            }
        }
    }
    tunnels
}

/// The tunnels of an import without address: clients are told all endpoints of all sites and
/// choose themselves. Endpoints with a host name have a tunnel each, the others of a site one
/// together.
fn endpoints(namespace: &str, name: &str, ports: &[Port], offers: &[Offer]) -> Vec<Tunnel> {
    let answers = |o: &Offer| o.candidate.ready > 0 && o.candidate.state == SiteState::Alive;
    let anybody = offers.iter().any(answers);
    let mut tunnels = Vec::new();
    for offer in offers {
        let Some(site) = offer.site.filter(|_| is_reached(offer)) else {
            continue;
        };
        let told = &offer.exported;
        // Who is suspect is asked when nobody better is left.
        let ready = answers(offer) || offer.candidate.ready > 0 && !anybody;
        let nameless = told.hosts.len() < told.ready.max(1) as usize;
        let any = nameless.then(String::new);
        for host in told.hosts.iter().cloned().chain(any) {
            let gates: Vec<Gate> = tunnelled(ports, offer)
                .map(|p| Gate {
                    namespace: namespace.to_owned(),
                    service: name.to_owned(),
                    port: p.name.clone(),
                    site,
                    share: 0,
                    host: host.clone(),
                    own: told
                        .ports
                        .iter()
                        .find(|q| q.name == p.name && q.protocol == p.protocol)
                        .and_then(|q| told.target_port(q)),
                })
                .collect();
            if !gates.is_empty() {
                tunnels.push(Tunnel {
                    site: offer.candidate.place.name.clone(),
                    ready,
                    gates,
                });
            }
        }
    }
    tunnels
}

/// The name of the Service that an import has.
pub(crate) fn derived(namespace: &str, name: &str) -> String {
    let digest = Sha256::digest(format!("{namespace}/{name}"));
    format!("derived-{}", hex::encode(&digest[..5]))
}

/// The ServiceImport, but for its status.
pub(crate) fn service_import(import: &Import, ips: &[String]) -> Value {
    let mut spec = json!(import.merged.spec);
    if import.merged.spec.type_ == ImportType::ClusterSetIP && !ips.is_empty() {
        spec["ips"] = json!(ips);
    }
    let mut labels = import.merged.labels.clone();
    labels.insert(IMPORT_LABEL.to_owned(), import.name.clone());
    json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "ServiceImport",
        "metadata": {
            "namespace": import.namespace, "name": import.name,
            "labels": labels, "annotations": import.merged.annotations,
        },
        "spec": spec,
    })
}

fn metadata(import: &Import, name: String, uid: &str, labels: BTreeMap<&str, &str>) -> Value {
    json!({
        "namespace": import.namespace, "name": name, "labels": labels,
        "ownerReferences": [{
            "apiVersion": format!("{GROUP}/{VERSION}"), "kind": "ServiceImport",
            "name": import.name, "uid": uid, "controller": true,
        }],
    })
}

/// What a port speaks: as it says, or as its name says (`http`, `http-…`, as is the custom).
fn app_protocol(port: &Port) -> Option<&str> {
    let named = port.name == "http" || port.name.starts_with("http-");
    let by_name = (named && port.protocol == "TCP").then_some("http");
    port.app_protocol.as_deref().or(by_name)
}

/// The Service that gives the import its address.
pub(crate) fn service(import: &Import, uid: &str) -> Value {
    let labels = BTreeMap::from([
        (IMPORT_LABEL, import.name.as_str()),
        (SERVICE_LABEL, import.name.as_str()),
    ]);
    let spec = &import.merged.spec;
    let ports: Vec<Value> = spec
        .ports
        .iter()
        .map(|p| {
            let mut port = json!({"port": p.port, "targetPort": p.port, "protocol": p.protocol});
            if !p.name.is_empty() {
                port["name"] = json!(p.name);
            }
            if let Some(app) = app_protocol(p) {
                port["appProtocol"] = json!(app);
            }
            port
        })
        .collect();
    let mut body = json!({"type": "ClusterIP", "ports": ports});
    // A pod of this node answers first, if nobody wants it otherwise.
    let distribution = spec.traffic_distribution.as_deref();
    body["trafficDistribution"] = json!(distribution.unwrap_or(SAME_NODE));
    if spec.type_ == ImportType::Headless {
        body["clusterIP"] = json!("None");
    } else if let Some(affinity) = &spec.session_affinity {
        body["sessionAffinity"] = json!(affinity);
        body["sessionAffinityConfig"] = json!(spec.session_affinity_config);
    }
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": metadata(import, derived(&import.namespace, &import.name), uid, labels),
        "spec": body,
    })
}

/// Has a pod preferred by its own node.
fn for_its_node(endpoint: &mut Endpoint) {
    let ready = endpoint.conditions.as_ref().and_then(|c| c.ready);
    if ready.unwrap_or(true)
        && let Some(node) = endpoint.node_name.clone()
    {
        let hints = endpoint.hints.get_or_insert_default();
        hints
            .for_nodes
            .get_or_insert_with(|| vec![ForNode { name: node }]);
    }
}

/// The slices: this site's own endpoints, and the tunnels to others.
pub(crate) fn slices(
    import: &Import,
    uid: &str,
    own: &[Arc<EndpointSlice>],
    listens: &BTreeMap<Gate, SocketAddr>,
) -> Vec<Value> {
    let derived = derived(&import.namespace, &import.name);
    let labels = |site| {
        BTreeMap::from([
            (IMPORT_LABEL, import.name.as_str()),
            (SERVICE_LABEL, import.name.as_str()),
            (CLUSTER_LABEL, site),
            ("kubernetes.io/service-name", derived.as_str()),
            ("endpointslice.kubernetes.io/managed-by", OWNER),
        ])
    };
    let mut slices = Vec::new();
    if let Some(site) = &import.own {
        for (i, slice) in own.iter().enumerate() {
            let name = format!("{derived}-{site}-{i}");
            let mut endpoints = slice.endpoints.clone();
            if import.merged.spec.traffic_distribution.is_none() {
                endpoints.iter_mut().flatten().for_each(for_its_node);
            }
            slices.push(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": metadata(import, name, uid, labels(site)),
                "addressType": slice.address_type,
                "endpoints": endpoints, "ports": slice.ports,
            }));
        }
    }
    let mut count = 0;
    for tunnel in &import.tunnels {
        // All ports of one are at one address, unless one of them was taken there.
        let mut by_address: BTreeMap<IpAddr, (Vec<Value>, &str)> = BTreeMap::new();
        for gate in &tunnel.gates {
            if let Some(at) = listens.get(gate) {
                let (ports, _) = by_address
                    .entry(at.ip())
                    .or_insert((Vec::new(), &gate.host));
                ports.push(json!({"name": gate.port, "protocol": "TCP", "port": at.port()}));
            }
        }
        for (address, (ports, host)) in by_address {
            let name = format!("{derived}-{}-{count}", tunnel.site);
            count += 1;
            let mut endpoint = json!({
                "addresses": [address.to_string()],
                "conditions": {"ready": tunnel.ready, "serving": tunnel.ready, "terminating": false},
            });
            if !host.is_empty() {
                endpoint["hostname"] = json!(host);
            }
            slices.push(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": metadata(import, name, uid, labels(&tunnel.site)),
                "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
                "endpoints": [endpoint],
                "ports": ports,
            }));
        }
    }
    slices
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::tests::{export, port};
    use expect_test::{Expect, expect};
    use std::fmt::Write as _;
    use std::time::Duration;

    fn offer(name: &str, own: bool, state: SiteState, ready: u32) -> Offer {
        let place = SiteName {
            name: name.into(),
            region: String::new(),
            zone: String::new(),
        };
        let mut exported = export(1, vec![port("http", 80)]);
        exported.ready = ready;
        Offer {
            site: (!own).then_some(SiteId([name.len() as u8; 16])),
            candidate: Candidate {
                place,
                own,
                state,
                rtt: Some(Duration::from_millis(5)),
                ready,
                weight: 1,
            },
            exported,
        }
    }

    fn check(offers: &[Offer], expected: Expect) {
        let import = import(&offers[0].candidate.place, "shop", "till", offers).unwrap();
        let gates = import.tunnels.iter().flat_map(|t| &t.gates);
        let listens = gates.enumerate().map(|(i, gate)| {
            let at = match gate.own {
                Some(port) => SocketAddr::from(([10, 42, 255, 1 + i as u8], port)),
                None => SocketAddr::from(([127, 0, 0, 1], 9000 + i as u16)),
            };
            (gate.clone(), at)
        });
        let own: EndpointSlice = serde_json::from_value(json!({
            "metadata": {}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.42.0.7"], "conditions": {"ready": true}}],
            "ports": [{"name": "http", "port": 8080}]}))
        .unwrap();
        let mut text = format!("{:?}\n", import.clusters);
        for slice in slices(&import, "u", &[Arc::new(own)], &listens.collect()) {
            let (labels, endpoints) = (&slice["metadata"]["labels"], &slice["endpoints"]);
            writeln!(
                text,
                "{} of {}: {}:{} ready {}{}",
                slice["metadata"]["name"].as_str().unwrap(),
                labels[CLUSTER_LABEL].as_str().unwrap(),
                endpoints[0]["addresses"][0].as_str().unwrap(),
                slice["ports"][0]["port"],
                endpoints[0]["conditions"]["ready"],
                endpoints[0]["hostname"]
                    .as_str()
                    .map_or(String::new(), |h| format!(" {h}")),
            )
            .unwrap();
        }
        expected.assert_eq(&text);
    }

    #[test]
    fn other_sites_stand_by_while_this_one_answers() {
        let own = |ready| offer("a", true, SiteState::Alive, ready);
        check(
            &[own(1), offer("bb", false, SiteState::Alive, 1)],
            expect![[r#"
                ["a", "bb"]
                derived-c55ad709dd-a-0 of a: 10.42.0.7:8080 ready true
                derived-c55ad709dd-bb-0 of bb: 127.0.0.1:9000 ready false
            "#]],
        );
        check(
            &[
                own(0),
                offer("bb", false, SiteState::Alive, 1),
                offer("ccc", false, SiteState::Gone, 1),
            ],
            expect![[r#"
                ["a", "bb", "ccc"]
                derived-c55ad709dd-a-0 of a: 10.42.0.7:8080 ready true
                derived-c55ad709dd-bb-0 of bb: 127.0.0.1:9000 ready true
            "#]],
        );
    }

    #[test]
    fn without_an_address_all_endpoints_of_all_sites_are_told() {
        let headless = |mut offer: Offer, hosts: &[&str]| {
            offer.exported.type_ = ImportType::Headless;
            offer.exported.hosts = hosts.iter().map(|h| (*h).to_owned()).collect();
            offer
        };
        let mut named = headless(offer("bb", false, SiteState::Alive, 2), &["web-0", "web-1"]);
        named.exported.target_ports = BTreeMap::from([("http".to_owned(), 8080)]);
        check(
            &[
                headless(offer("a", true, SiteState::Alive, 1), &[]),
                named,
                headless(offer("ccc", false, SiteState::Alive, 3), &["web-0"]),
                headless(offer("dddd", false, SiteState::Suspect, 1), &[]),
                headless(offer("eeeee", false, SiteState::Gone, 1), &[]),
            ],
            expect![[r#"
                ["a", "bb", "ccc", "dddd", "eeeee"]
                derived-c55ad709dd-a-0 of a: 10.42.0.7:8080 ready true
                derived-c55ad709dd-bb-0 of bb: 10.42.255.1:8080 ready true web-0
                derived-c55ad709dd-bb-1 of bb: 10.42.255.2:8080 ready true web-1
                derived-c55ad709dd-ccc-2 of ccc: 10.42.255.3:80 ready true web-0
                derived-c55ad709dd-ccc-3 of ccc: 10.42.255.4:80 ready true
                derived-c55ad709dd-dddd-4 of dddd: 10.42.255.5:80 ready false
            "#]],
        );
    }

    #[test]
    fn a_service_for_each_kind_of_import() {
        let one = [offer("a", true, SiteState::Alive, 1)];
        let mut import = import(&one[0].candidate.place, "shop", "till", &one).unwrap();
        import.merged.spec.session_affinity = Some("ClientIP".into());
        let made = service(&import, "u");
        assert_eq!(made["spec"]["sessionAffinity"], "ClientIP");
        assert_eq!(made["spec"]["trafficDistribution"], "PreferSameNode");
        assert_eq!(made["spec"]["ports"][0]["name"], "http");
        let name = made["metadata"]["name"].as_str().unwrap();
        assert!(name.starts_with("derived-") && name.len() == 18, "{name}");
        import.merged.spec.type_ = ImportType::Headless;
        assert_eq!(service(&import, "u")["spec"]["clusterIP"], "None");
        let ips = vec!["10.43.0.9".to_owned()];
        assert!(service_import(&import, &ips)["spec"].get("ips").is_none());
        import.merged.spec.type_ = ImportType::ClusterSetIP;
        assert_eq!(service_import(&import, &ips)["spec"]["ips"][0], "10.43.0.9");
    }
}

//! Which EndpointSlices a Service should have, and how to get there with few writes: pure.

use super::mirror;
use crate::pods;
use ::api::constants::{LABEL_MANAGED_BY, LABEL_SERVICE_NAME};
use apimachinery::selector::LabelSelector;
use client::k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use client::k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use client::k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use client::{ObjectKey, labels};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// Endpoints in one slice, as upstream by default.
const ENDPOINTS_MAX: usize = 100;
/// Value of the label that says whose slices these are.
pub(super) const MANAGED_BY: &str = "endpointslice-controller.k8s.io";
/// Label that Services without a cluster IP hand to their slices.
pub(super) const HEADLESS: &str = "service.kubernetes.io/headless";

/// Endpoints that fit in the same slices: their address family and ports.
pub(super) type Group = (String, Vec<EndpointPort>);

/// Slices to write.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) create: Vec<EndpointSlice>,
    pub(super) update: Vec<EndpointSlice>,
    /// Names.
    pub(super) delete: Vec<String>,
}

/// The selector of a Service whose endpoints are kept here.
pub(super) fn selector(service: &Service) -> Option<LabelSelector> {
    let spec = service.spec.as_ref()?;
    let selector = spec.selector.as_ref().filter(|s| !s.is_empty())?;
    (spec.type_.as_deref() != Some("ExternalName")).then(|| labels::of_map(Some(selector)))
}

/// The Service that a slice of ours belongs to.
pub(super) fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(LABEL_SERVICE_NAME)?;
    (is_ours(slice) || mirror::is_ours(slice)).then(|| {
        ObjectKey::new(
            slice.metadata.namespace.clone().unwrap_or_default(),
            name.clone(),
        )
    })
}

/// Whether this controller made a slice for a Service's pods.
pub(super) fn is_ours(slice: &EndpointSlice) -> bool {
    is_managed_by(slice, MANAGED_BY)
}

/// Whether a slice's label says that this one looks after it.
pub(super) fn is_managed_by(slice: &EndpointSlice, who: &str) -> bool {
    let labels = slice.metadata.labels.as_ref();
    labels
        .and_then(|l| l.get(LABEL_MANAGED_BY))
        .is_some_and(|by| by == who)
}

/// Whose slices are made, and what all of them carry.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub(super) reference: OwnerReference,
    pub(super) namespace: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
}

impl Owner {
    fn of(service: &Service) -> Self {
        Self {
            reference: pods::controller_reference(service),
            namespace: service.metadata.namespace.clone(),
            labels: slice_labels(service),
        }
    }
}

/// Whether two states of a pod look the same to Services.
pub(super) fn shows_same(old: &Pod, new: &Pod) -> bool {
    let shown = |pod: &Pod| {
        let status = pod.status.as_ref();
        (
            status.and_then(|s| s.pod_ip.clone()),
            status.map(|s| s.pod_ips.clone()),
            pods::is_ready(pod),
            pods::has_ended(pod),
            pod.metadata.deletion_timestamp.is_some(),
            pod.spec.as_ref().and_then(|s| s.node_name.clone()),
        )
    };
    old.metadata.uid == new.metadata.uid
        && old.metadata.labels == new.metadata.labels
        && shown(old) == shown(new)
}

/// Whether a Service has no cluster IP.
pub(super) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// Whether pods that are not ready count as ready.
pub(super) fn publishes_not_ready(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|s| s.publish_not_ready_addresses)
        == Some(true)
}

/// A pod's port that a Service's port leads to.
pub(super) fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    match port.target_port.as_ref() {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) if name.is_empty() => Some(port.port),
        Some(IntOrString::String(name)) => {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let spec = pod.spec.as_ref()?;
            let sidecars = spec
                .init_containers
                .iter()
                .flatten()
                .filter(|c| c.restart_policy.as_deref() == Some("Always"));
            spec.containers
                .iter()
                .chain(sidecars)
                .flat_map(|c| c.ports.iter().flatten())
                .find(|p| {
                    p.name.as_ref() == Some(name)
                        && p.protocol.as_deref().unwrap_or("TCP") == protocol
                })
                .map(|p| p.container_port)
                .or_else(|| name.parse().ok())
        }
    }
}

/// All endpoints that a Service should have, by group; each address family of the Service
/// is there, be it empty.
pub(super) fn wanted(
    service: &Service,
    pods: &[Arc<Pod>],
    zone: impl Fn(&str) -> Option<String>,
) -> Vec<(Group, Vec<Endpoint>)> {
    let mut groups: Vec<(Group, Vec<Endpoint>)> = Vec::new();
    for family in families(service) {
        let first = groups.len();
        for pod in pods {
            let Some(address) = address(pod, family) else {
                continue;
            };
            let group = (family.to_owned(), ports(service, pod));
            let endpoint = endpoint(service, pod, address, &zone);
            match groups.iter_mut().find(|(known, _)| *known == group) {
                Some((_, endpoints)) => endpoints.push(endpoint),
                None => groups.push((group, vec![endpoint])),
            }
        }
        if groups.len() == first {
            groups.push(((family.to_owned(), Vec::new()), Vec::new()));
        }
    }
    groups
}

/// The writes that make `known` slices hold what is wanted: endpoints stay in the slice
/// that has them, new ones fill what has room.
pub(super) fn changes(
    service: &Service,
    wanted: Vec<(Group, Vec<Endpoint>)>,
    known: &[Arc<EndpointSlice>],
) -> Changes {
    changes_of(&Owner::of(service), wanted, known)
}

/// The same for any owner.
pub(super) fn changes_of(
    owner: &Owner,
    wanted: Vec<(Group, Vec<Endpoint>)>,
    known: &[Arc<EndpointSlice>],
) -> Changes {
    let mut changes = Changes::default();
    let mut used: HashSet<&str> = HashSet::new();
    for (group, endpoints) in wanted {
        let slices: Vec<&Arc<EndpointSlice>> = known
            .iter()
            .filter(|s| s.address_type == group.0 && same_ports(s, &group.1))
            .collect();
        used.extend(slices.iter().filter_map(|s| s.metadata.name.as_deref()));
        fill(owner, &group, endpoints, &slices, &mut changes);
    }
    changes.delete.extend(
        known
            .iter()
            .filter_map(|s| s.metadata.name.as_deref())
            .filter(|name| !used.contains(name))
            .map(ToOwned::to_owned),
    );
    reuse(&mut changes, known);
    changes
}

/// A slice that is not needed any more becomes one that is: one write for two, and nobody sees
/// the Service without either. So does the empty one of a Service that wakes.
fn reuse(changes: &mut Changes, known: &[Arc<EndpointSlice>]) {
    let create = std::mem::take(&mut changes.create);
    for mut slice in create {
        let free = changes.delete.iter().position(|name| {
            known.iter().any(|k| {
                k.metadata.name.as_ref() == Some(name)
                    && k.metadata.deletion_timestamp.is_none()
                    && k.address_type == slice.address_type
            })
        });
        let name = free.map(|at| changes.delete.swap_remove(at));
        let old = known
            .iter()
            .find(|k| name.is_some() && k.metadata.name == name);
        match old {
            Some(old) => {
                let labels = slice.metadata.labels.take();
                slice.metadata = old.metadata.clone();
                slice.metadata.labels = labels;
                changes.update.push(slice);
            }
            None => changes.create.push(slice),
        }
    }
}

fn fill(
    owner: &Owner,
    group: &Group,
    endpoints: Vec<Endpoint>,
    slices: &[&Arc<EndpointSlice>],
    changes: &mut Changes,
) {
    let empty_group = endpoints.is_empty();
    let mut left: HashMap<String, Endpoint> =
        endpoints.into_iter().map(|e| (identity(&e), e)).collect();
    // What stays where it is.
    let mut filled: Vec<Vec<Endpoint>> = slices
        .iter()
        .map(|slice| {
            slice
                .endpoints
                .iter()
                .flatten()
                .filter_map(|e| left.remove(&identity(e)))
                .collect()
        })
        .collect();
    let mut new: Vec<Endpoint> = left.into_values().collect();
    new.sort_by(|a, b| a.addresses.cmp(&b.addresses));
    // The fullest first, so that slices become full or empty.
    let mut order: Vec<usize> = (0..filled.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(filled[*at].len()));
    for at in order {
        let room = ENDPOINTS_MAX
            .saturating_sub(filled[at].len())
            .min(new.len());
        filled[at].extend(new.drain(..room));
    }
    let mut kept = 0;
    for (slice, endpoints) in slices.iter().zip(filled) {
        // An address family without endpoints keeps one empty slice.
        if endpoints.is_empty() && !(empty_group && kept == 0) {
            changes.delete.extend(slice.metadata.name.clone());
            continue;
        }
        kept += 1;
        if let Some(changed) = with_endpoints(owner, slice, endpoints) {
            changes.update.push(changed);
        }
    }
    if empty_group && kept == 0 {
        changes.create.push(new_slice(owner, group, Vec::new()));
    }
    while !new.is_empty() {
        let rest = new.split_off(new.len().min(ENDPOINTS_MAX));
        changes.create.push(new_slice(owner, group, new));
        new = rest;
    }
}

/// The slice with these endpoints and the Service's labels; none when it is so already.
fn with_endpoints(
    owner: &Owner,
    slice: &EndpointSlice,
    endpoints: Vec<Endpoint>,
) -> Option<EndpointSlice> {
    let labels = owner.labels.clone();
    let had = slice.endpoints.as_deref().unwrap_or_default();
    if had == endpoints && slice.metadata.labels.as_ref() == Some(&labels) {
        return None;
    }
    let mut slice = slice.clone();
    slice.endpoints = Some(endpoints);
    slice.metadata.labels = Some(labels);
    Some(slice)
}

fn new_slice(owner: &Owner, group: &Group, endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.reference.name)),
            namespace: owner.namespace.clone(),
            labels: Some(owner.labels.clone()),
            owner_references: Some(vec![owner.reference.clone()]),
            ..ObjectMeta::default()
        },
        address_type: group.0.clone(),
        endpoints: Some(endpoints),
        ports: Some(group.1.clone()),
    }
}

/// The Service's own labels and those that lead from a slice to it.
fn slice_labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(
        LABEL_SERVICE_NAME.to_owned(),
        service.metadata.name.clone().unwrap_or_default(),
    );
    labels.insert(LABEL_MANAGED_BY.to_owned(), MANAGED_BY.to_owned());
    labels
}

fn families(service: &Service) -> Vec<&str> {
    let spec = service.spec.as_ref();
    let stated = spec.and_then(|s| s.ip_families.as_deref());
    match stated {
        Some(families) if !families.is_empty() => families.iter().map(String::as_str).collect(),
        _ if spec
            .and_then(|s| s.cluster_ip.as_deref())
            .is_some_and(|ip| ip.contains(':')) =>
        {
            vec!["IPv6"]
        }
        _ => vec!["IPv4"],
    }
}

/// A pod's address of a family; none while it has none and when it has ended.
pub(super) fn address<'a>(pod: &'a Pod, family: &str) -> Option<&'a str> {
    if pods::has_ended(pod) {
        return None;
    }
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    all.chain(status.pod_ip.as_deref())
        .find(|ip| !ip.is_empty() && ip.contains(':') == (family == "IPv6"))
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let mut ports: Vec<EndpointPort> = service
        .spec
        .iter()
        .flat_map(|s| s.ports.iter().flatten())
        .filter_map(|port| {
            Some(EndpointPort {
                // Without a name it is the empty one, not none.
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(target_port(pod, port)?),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    ports.sort_by(|a, b| a.name.cmp(&b.name).then(a.port.cmp(&b.port)));
    ports
}

fn same_ports(slice: &EndpointSlice, ports: &[EndpointPort]) -> bool {
    let mut theirs = slice.ports.clone().unwrap_or_default();
    for port in &mut theirs {
        port.name.get_or_insert_default();
    }
    theirs.sort_by(|a, b| a.name.cmp(&b.name).then(a.port.cmp(&b.port)));
    theirs == ports
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    address: &str,
    zone: impl Fn(&str) -> Option<String>,
) -> Endpoint {
    let serving = pods::is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let node = pod.spec.as_ref().and_then(|s| s.node_name.clone());
    let zone = node.as_deref().and_then(zone);
    let ready = publishes_not_ready(service) || (serving && !terminating);
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(service, pod),
        hints: hints(service, node.as_deref(), zone.as_deref()).filter(|_| ready),
        zone,
        node_name: node,
        target_ref: Some(target(pod)),
        ..Endpoint::default()
    }
}

/// Who is to prefer an endpoint, by `trafficDistribution`.
fn hints(service: &Service, node: Option<&str>, zone: Option<&str>) -> Option<EndpointHints> {
    let spec = service.spec.as_ref()?;
    let of_node = match spec.traffic_distribution.as_deref()? {
        "PreferSameNode" => node,
        "PreferSameZone" | "PreferClose" => None,
        _ => return None,
    };
    let for_nodes = of_node.map(|n| vec![ForNode { name: n.to_owned() }]);
    let for_zones = zone.map(|z| vec![ForZone { name: z.to_owned() }]);
    (for_nodes.is_some() || for_zones.is_some()).then_some(EndpointHints {
        for_nodes,
        for_zones,
    })
}

/// A pod's name within a headless Service.
pub(super) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let named = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    spec.hostname
        .clone()
        .filter(|h| named && !h.is_empty() && is_headless(service))
}

pub(super) fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// What makes an endpoint the same one whatever its state.
fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|t| t.uid.as_deref());
    format!(
        "{} {}",
        uid.unwrap_or_default(),
        endpoint.addresses.first().map_or("", String::as_str)
    )
}

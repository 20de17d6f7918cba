//! EndpointSlices that show the Endpoints of a Service without selector, which its owner
//! writes by hand: pure. Upstream: "EndpointSlice mirroring".

use super::plan::{Group, Owner, is_managed_by};
use crate::pods;
use ::api::constants::{LABEL_MANAGED_BY, LABEL_SERVICE_NAME};
use client::k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use client::k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointPort, EndpointSlice,
};
use std::collections::HashSet;

const MANAGED_BY: &str = "endpointslicemirroring-controller.k8s.io";
/// Label of Endpoints that are not to be shown.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Annotation of Endpoints that are only a lock.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Addresses of one subset that are shown, as upstream.
const ADDRESSES_MAX: usize = 1000;
/// Annotations that belong to the Endpoints alone.
const NOT_COPIED: &str = "endpoints.kubernetes.io/managed-by";

/// Whether a slice mirrors.
pub(super) fn is_ours(slice: &EndpointSlice) -> bool {
    is_managed_by(slice, MANAGED_BY)
}

/// Whether a Service's Endpoints are to be shown.
pub(super) fn is_mirrored(service: &Service, endpoints: &Endpoints) -> bool {
    let selects = service
        .spec
        .as_ref()
        .is_some_and(|s| s.selector.as_ref().is_some_and(|s| !s.is_empty()));
    let meta = &endpoints.metadata;
    let skips = meta
        .labels
        .as_ref()
        .and_then(|l| l.get(SKIP))
        .is_some_and(|v| v == "true");
    let locks = meta
        .annotations
        .as_ref()
        .is_some_and(|a| a.contains_key(LEADER));
    !selects && !skips && !locks && meta.deletion_timestamp.is_none()
}

/// Whose slices they are.
pub(super) fn owner(endpoints: &Endpoints) -> Owner {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.remove(NOT_COPIED);
    let name = endpoints.metadata.name.clone().unwrap_or_default();
    labels.insert(LABEL_SERVICE_NAME.to_owned(), name);
    labels.insert(LABEL_MANAGED_BY.to_owned(), MANAGED_BY.to_owned());
    Owner {
        reference: pods::controller_reference(endpoints),
        namespace: endpoints.metadata.namespace.clone(),
        labels,
    }
}

/// All endpoints that the slices should have, by group.
pub(super) fn wanted(endpoints: &Endpoints) -> Vec<(Group, Vec<Endpoint>)> {
    let mut groups: Vec<(Group, Vec<Endpoint>)> = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports = ports(subset);
        let mut seen = HashSet::new();
        for (side, ready) in [
            (&subset.addresses, true),
            (&subset.not_ready_addresses, false),
        ] {
            for address in side.iter().flatten() {
                if seen.len() >= ADDRESSES_MAX || !seen.insert(address.ip.as_str()) {
                    continue;
                }
                let family = if address.ip.contains(':') {
                    "IPv6"
                } else {
                    "IPv4"
                };
                let group = (family.to_owned(), ports.clone());
                let endpoint = endpoint(address, ready);
                match groups.iter_mut().find(|(known, _)| *known == group) {
                    Some((_, all)) => all.push(endpoint),
                    None => groups.push((group, vec![endpoint])),
                }
            }
        }
    }
    groups
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone().filter(|h| !h.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn ports(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let all = subset.ports.iter().flatten().map(|port| EndpointPort {
        // Without a name it is the empty one, not none.
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
        app_protocol: port.app_protocol.clone(),
    });
    let mut ports: Vec<_> = all.collect();
    ports.sort_by(|a, b| a.name.cmp(&b.name).then(a.port.cmp(&b.port)));
    ports
}

#[cfg(test)]
mod tests {
    use super::super::plan::changes_of;
    use super::*;
    use crate::fixture::object;
    use serde_json::json;

    fn endpoints(labels: serde_json::Value) -> Endpoints {
        object(json!({
            "metadata": {"name": "db", "namespace": "ns", "uid": "u", "labels": labels},
            "subsets": [
                {"addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}],
                    "notReadyAddresses": [{"ip": "192.0.2.2", "hostname": "b"}], "ports": [{"port": 5432}]},
                {"addresses": [{"ip": "192.0.2.3"}], "ports": [{"port": 5432}]},
            ],
        }))
    }

    #[test]
    fn endpoints_become_slices_by_family_and_ports() {
        let endpoints = endpoints(json!({"app": "db"}));
        let made = changes_of(&owner(&endpoints), wanted(&endpoints), &[]).create;
        let shown: Vec<String> = made
            .iter()
            .map(|slice| {
                let all = slice.endpoints.iter().flatten().map(|e| {
                    let ready = e.conditions.as_ref().and_then(|c| c.ready);
                    format!("{}={}", e.addresses[0], ready == Some(true))
                });
                format!(
                    "{} {}",
                    slice.address_type,
                    all.collect::<Vec<_>>().join(" ")
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                "IPv4 192.0.2.1=true 192.0.2.2=false 192.0.2.3=true",
                "IPv6 2001:db8::1=true"
            ]
        );
        let meta = &made[0].metadata;
        let labels = meta.labels.clone().unwrap_or_default();
        assert_eq!(
            (labels["app"].as_str(), labels[LABEL_SERVICE_NAME].as_str()),
            ("db", "db")
        );
        assert!(is_ours(&made[0]));
        let owners = meta.owner_references.clone().unwrap_or_default();
        assert_eq!(owners[0].kind, "Endpoints");
        let named: Vec<_> = made
            .into_iter()
            .enumerate()
            .map(|(n, mut slice)| {
                slice.metadata.name = Some(n.to_string());
                std::sync::Arc::new(slice)
            })
            .collect();
        let again = changes_of(&owner(&endpoints), wanted(&endpoints), &named);
        assert!(again.create.is_empty() && again.update.is_empty() && again.delete.is_empty());
    }

    #[test]
    fn only_endpoints_of_services_without_selector_are_shown() {
        let plain: Service = object(json!({"spec": {}}));
        let selecting: Service = object(json!({"spec": {"selector": {"a": "b"}}}));
        assert!(is_mirrored(&plain, &endpoints(json!({}))));
        assert!(!is_mirrored(&selecting, &endpoints(json!({}))));
        assert!(!is_mirrored(&plain, &endpoints(json!({SKIP: "true"}))));
        let mut lock = endpoints(json!({}));
        lock.metadata.annotations = Some([(LEADER.to_owned(), String::new())].into());
        assert!(!is_mirrored(&plain, &lock));
    }
}

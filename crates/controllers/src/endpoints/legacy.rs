//! The Endpoints object of a Service, which EndpointSlices have replaced: pure.

use super::plan;
use crate::pods;
use client::k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service,
};
use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::sync::Arc;

/// Addresses in one object, as upstream; more are left out and an annotation says so.
const ADDRESSES_MAX: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: (&str, &str) = ("endpoints.kubernetes.io/managed-by", "endpoint-controller");

/// Whether this controller made an object.
pub(super) fn is_ours(endpoints: &Endpoints) -> bool {
    endpoints
        .metadata
        .labels
        .as_ref()
        .and_then(|l| l.get(MANAGED_BY.0))
        .is_some_and(|by| by == MANAGED_BY.1)
}

/// The object as it should be; none when it is.
pub(super) fn change(
    service: &Service,
    pods: &[Arc<Pod>],
    known: Option<&Endpoints>,
) -> Option<Endpoints> {
    let (subsets, truncated) = subsets(service, pods);
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    if plan::is_headless(service) {
        labels.insert(plan::HEADLESS.to_owned(), String::new());
    }
    let mut wanted = known.cloned().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
        subsets: None,
    });
    wanted.metadata.labels = Some(labels);
    wanted.subsets = (!subsets.is_empty()).then_some(subsets);
    if truncated {
        wanted
            .metadata
            .annotations
            .get_or_insert_default()
            .insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    } else if let Some(annotations) = &mut wanted.metadata.annotations {
        annotations.remove(OVER_CAPACITY);
    }
    (known != Some(&wanted)).then_some(wanted)
}

fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let family = service
        .spec
        .as_ref()
        .and_then(|s| s.ip_families.as_ref()?.first().cloned())
        .unwrap_or_else(|| "IPv4".into());
    let mut subsets: Vec<EndpointSubset> = Vec::new();
    let mut count = 0;
    for pod in pods {
        let Some(ip) = plan::address(pod, &family) else {
            continue;
        };
        if pod.metadata.deletion_timestamp.is_some() && !plan::publishes_not_ready(service) {
            continue;
        }
        count += 1;
        if count > ADDRESSES_MAX {
            break;
        }
        let ports = ports(service, pod);
        let at = subsets.iter().position(|s| s.ports == ports);
        let subset = match at {
            Some(at) => &mut subsets[at],
            None => {
                subsets.push(EndpointSubset {
                    ports,
                    ..EndpointSubset::default()
                });
                let last = subsets.len() - 1;
                &mut subsets[last]
            }
        };
        let ready = pods::is_ready(pod) || plan::publishes_not_ready(service);
        let side = if ready {
            &mut subset.addresses
        } else {
            &mut subset.not_ready_addresses
        };
        side.get_or_insert_default().push(EndpointAddress {
            ip: ip.to_owned(),
            hostname: plan::hostname(service, pod),
            node_name: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
            target_ref: Some(plan::target(pod)),
        });
    }
    for subset in &mut subsets {
        for side in [&mut subset.addresses, &mut subset.not_ready_addresses] {
            side.iter_mut()
                .for_each(|a| a.sort_by(|a, b| a.ip.cmp(&b.ip)));
        }
    }
    (subsets, count > ADDRESSES_MAX)
}

fn ports(service: &Service, pod: &Pod) -> Option<Vec<EndpointPort>> {
    let ports: Vec<EndpointPort> = service
        .spec
        .iter()
        .flat_map(|s| s.ports.iter().flatten())
        .filter_map(|port| {
            Some(EndpointPort {
                name: port.name.clone().filter(|n| !n.is_empty()),
                port: plan::target_port(pod, port)?,
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    (!ports.is_empty()).then_some(ports)
}

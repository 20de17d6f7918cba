//! What a site tells the others about a Service that it exports, and how it is made of the
//! objects. Pure.

use crate::kinds::{ImportType, Port, ServiceExport, WEIGHT_ANNOTATION, tcp};
use k8s_openapi::api::core::v1::{Service, ServiceSpec, SessionAffinityConfig};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the keys of exports in a site's state start with.
pub(crate) const KEY_PREFIX: &str = "export/";
/// Ports of an export; of more the first are taken.
const PORTS_MAX: usize = 64;
/// Endpoints of an export that are told by name; further ones are reached by the Service's.
const HOSTS_MAX: usize = 32;

/// A Service as its site tells the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exported {
    /// When the export was made, in seconds since 1970: the older export decides.
    pub created: i64,
    /// Whether it has an address.
    #[serde(rename = "type")]
    pub type_: ImportType,
    /// Its ports.
    pub ports: Vec<Port>,
    /// As the Service has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_affinity: Option<String>,
    /// As the Service has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// As the Service has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internal_traffic_policy: Option<String>,
    /// As the Service has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_distribution: Option<String>,
    /// For the imports.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// For the imports.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// How many endpoints are ready.
    pub ready: u32,
    /// The site's share among sites as near.
    #[serde(default = "one")]
    pub weight: u32,
    /// Of a Service without address: the ready endpoints that have a host name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Of a Service without address: where endpoints answer, by a port's name, if not at the
    /// port itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub target_ports: BTreeMap<String, u16>,
}

impl Exported {
    /// Where endpoints answer for a port: clients of a Service without address ask there.
    pub(crate) fn target_port(&self, port: &Port) -> Option<u16> {
        let target = self.target_ports.get(&port.name).copied();
        target.or_else(|| u16::try_from(port.port).ok())
    }
}

fn one() -> u32 {
    1
}

/// Why a Service is not exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotExported {
    NoService,
    InvalidType,
}

impl NotExported {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::NoService => "NoService",
            Self::InvalidType => "InvalidServiceType",
        }
    }

    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::NoService => "there is no Service of this name",
            Self::InvalidType => "a Service of type ExternalName can't be exported",
        }
    }
}

/// The key of an export in a site's state.
pub(crate) fn key(namespace: &str, name: &str) -> String {
    format!("{KEY_PREFIX}{namespace}/{name}")
}

/// Namespace and name of such a key.
pub(crate) fn parse_key(key: &str) -> Option<(&str, &str)> {
    let (namespace, name) = key.strip_prefix(KEY_PREFIX)?.split_once('/')?;
    (is_label(namespace) && is_label(name)).then_some((namespace, name))
}

fn is_label(text: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.len() <= 63 && text.bytes().all(is_plain)
}

/// Reads what another site tells; `None` when it can't be so.
pub(crate) fn read(bytes: &[u8]) -> Option<Exported> {
    let mut exported: Exported = serde_json::from_slice(bytes).ok()?;
    exported.ports.truncate(PORTS_MAX);
    exported.hosts.truncate(HOSTS_MAX);
    exported.hosts.retain(|host| is_label(host));
    let valid = |p: &Port| (1..=65_535).contains(&p.port) && p.name.len() <= 63;
    exported.ports.iter().all(valid).then_some(exported)
}

/// What is told of a Service. One that is asleep answers as if it were ready.
pub(crate) fn exported(
    export: &ServiceExport,
    service: Option<&Service>,
    slices: &[Arc<EndpointSlice>],
    asleep: bool,
) -> Result<Exported, NotExported> {
    let service = service.ok_or(NotExported::NoService)?;
    let spec = service.spec.clone().unwrap_or_default();
    if spec.type_.as_deref() == Some("ExternalName") {
        return Err(NotExported::InvalidType);
    }
    let headless = spec.cluster_ip.as_deref() == Some("None");
    let ports = spec.ports.iter().flatten().take(PORTS_MAX).map(|p| Port {
        name: p.name.clone().unwrap_or_default(),
        protocol: p.protocol.clone().unwrap_or_else(tcp),
        app_protocol: p.app_protocol.clone(),
        port: p.port,
    });
    let ready = ready(slices);
    let weight = service
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(WEIGHT_ANNOTATION)?.parse().ok());
    let created = export.metadata.creation_timestamp.as_ref();
    let affinity = spec.session_affinity.clone().filter(|a| a != "None");
    Ok(Exported {
        created: created.map_or(0, |t| t.0.as_second()),
        type_: if headless {
            ImportType::Headless
        } else {
            ImportType::ClusterSetIP
        },
        ports: ports.collect(),
        session_affinity_config: affinity.as_ref().and(spec.session_affinity_config.clone()),
        session_affinity: affinity,
        internal_traffic_policy: spec
            .internal_traffic_policy
            .clone()
            .filter(|p| p != "Cluster"),
        traffic_distribution: spec.traffic_distribution.clone(),
        labels: export.spec.exported_labels.clone(),
        annotations: export.spec.exported_annotations.clone(),
        ready: u32::try_from(ready.max(asleep.into())).unwrap_or(u32::MAX),
        weight: weight.unwrap_or(1),
        hosts: if headless { hosts(slices) } else { Vec::new() },
        target_ports: if headless {
            target_ports(&spec, slices)
        } else {
            BTreeMap::new()
        },
    })
}

/// The ready endpoints that have a host name, each once.
fn hosts(slices: &[Arc<EndpointSlice>]) -> Vec<String> {
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints).flatten();
    let names = endpoints
        .filter(is_ready)
        .filter_map(|e| e.hostname.clone());
    let mut names: Vec<String> = names.filter(|name| is_label(name)).collect();
    names.sort_unstable();
    names.dedup();
    names.truncate(HOSTS_MAX);
    names
}

/// Where endpoints answer when it is not at the Service's port.
fn target_ports(spec: &ServiceSpec, slices: &[Arc<EndpointSlice>]) -> BTreeMap<String, u16> {
    let mut targets = BTreeMap::new();
    for port in spec.ports.iter().flatten().take(PORTS_MAX) {
        let name = port.name.clone().unwrap_or_default();
        let mut ports = slices.iter().flat_map(|slice| &slice.ports).flatten();
        let target = ports.find(|p| p.name.as_deref().unwrap_or_default() == name);
        let number = target.and_then(|p| p.port).filter(|n| *n != port.port);
        if let Some(number) = number.and_then(|n| u16::try_from(n).ok()) {
            targets.insert(name, number);
        }
    }
    targets
}

pub(crate) fn is_ready(endpoint: &&Endpoint) -> bool {
    let conditions = endpoint.conditions.as_ref();
    conditions.is_none_or(|c| c.ready.unwrap_or(true))
}

/// How many endpoints are ready.
pub(crate) fn ready(slices: &[Arc<EndpointSlice>]) -> usize {
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints).flatten();
    endpoints.filter(is_ready).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_service_is_told_with_its_ready_endpoints() {
        let export: ServiceExport = serde_json::from_value(json!({
            "metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"exportedLabels": {"app": "web"}}}))
        .unwrap();
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "annotations": {"salp.dev/site-weight": "3"}},
            "spec": {"clusterIP": "10.43.0.9", "sessionAffinity": "None",
                "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}))
        .unwrap();
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {}, "addressType": "IPv4", "endpoints": [
                {"addresses": ["10.42.0.1"], "conditions": {"ready": true}},
                {"addresses": ["10.42.0.2"], "conditions": {"ready": false}},
                {"addresses": ["10.42.0.3"]}]}))
        .unwrap();
        let told = exported(&export, Some(&service), &[Arc::new(slice)], false).unwrap();
        expect_test::expect![[r#"{"created":1767225600,"type":"ClusterSetIP","ports":[{"name":"http","protocol":"TCP","port":80}],"labels":{"app":"web"},"ready":2,"weight":3}"#]]
            .assert_eq(&serde_json::to_string(&told).unwrap());
        assert_eq!(read(&serde_json::to_vec(&told).unwrap()), Some(told));
        let mut headless = service.clone();
        headless.spec.as_mut().unwrap().cluster_ip = Some("None".into());
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {}, "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
            "endpoints": [
                {"addresses": ["10.42.0.1"], "hostname": "web-1"},
                {"addresses": ["10.42.0.2"], "hostname": "web-0"},
                {"addresses": ["10.42.0.3"], "hostname": "web-2", "conditions": {"ready": false}}]}))
        .unwrap();
        let told = exported(&export, Some(&headless), &[Arc::new(slice)], false).unwrap();
        assert_eq!(told.hosts, ["web-0", "web-1"]);
        assert_eq!(told.target_port(&told.ports[0]), Some(8080));
        let asleep = exported(&export, Some(&service), &[], true).unwrap();
        assert_eq!(asleep.ready, 1);
        let none = exported(&export, None, &[], false);
        assert_eq!(none, Err(NotExported::NoService));
        let mut external = service.clone();
        external.spec.as_mut().unwrap().type_ = Some("ExternalName".into());
        let refused = exported(&export, Some(&external), &[], false);
        assert_eq!(refused, Err(NotExported::InvalidType));
    }

    #[test]
    fn what_can_not_be_is_not_read() {
        for text in [
            "",
            "{}",
            r#"{"created":1,"type":"X","ports":[],"ready":1}"#,
            r#"{"created":1,"type":"Headless","ports":[{"port":70000}],"ready":1}"#,
        ] {
            assert_eq!(read(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse_key("export/shop/till"), Some(("shop", "till")));
        for key in [
            "export/shop",
            "site",
            "export//a",
            "export/a/b/c",
            "export/A/b",
        ] {
            assert_eq!(parse_key(key), None, "{key}");
        }
    }
}

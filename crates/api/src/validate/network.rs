//! Services, endpoint slices, ingresses and their classes, network policies.

use super::{Check, Unique};
use crate::access::{at, int, is_empty, list, text};
use apimachinery::names;
use apimachinery::status::FieldError;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::net::IpAddr;

/// `Service`.
pub(crate) fn service(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let spec = at(v, "spec");
    let kind = text(spec, "type");
    let headless = text(spec, "clusterIP") == "None";
    let all = list(spec, "ports");
    if all.is_empty() && !headless && kind != "ExternalName" {
        c.required("spec.ports", "");
    }
    match kind {
        "ExternalName" => {
            let name = at(spec, "externalName");
            if is_empty(name) {
                c.required("spec.externalName", "");
            } else {
                let host = text(spec, "externalName").trim_end_matches('.');
                if let Err(e) = names::dns1123_subdomain(host) {
                    c.invalid("spec.externalName", name, e);
                }
            }
            if !is_empty(at(spec, "clusterIP")) {
                c.forbidden(
                    "spec.clusterIPs",
                    "may not be set when type is 'ExternalName'",
                );
            }
        }
        "LoadBalancer" if headless => c.invalid(
            "spec.clusterIPs[0]",
            at(spec, "clusterIP"),
            "may not be set to 'None' for LoadBalancer services",
        ),
        "NodePort" if headless => c.invalid(
            "spec.clusterIPs[0]",
            at(spec, "clusterIP"),
            "may not be set to 'None' for NodePort services",
        ),
        _ => {}
    }
    c.one_of(
        "spec.type",
        at(spec, "type"),
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
    );
    c.one_of(
        "spec.sessionAffinity",
        at(spec, "sessionAffinity"),
        &["ClientIP", "None"],
    );
    c.optional_one_of(
        "spec.trafficDistribution",
        at(spec, "trafficDistribution"),
        &["PreferClose", "PreferSameNode", "PreferSameZone"],
    );
    c.labels("spec.selector", at(spec, "selector"));
    service_ports(&mut c, all, kind);
    for (i, ip) in list(spec, "externalIPs").iter().enumerate() {
        address(&mut c, format!("spec.externalIPs[{i}]"), ip);
    }
    let ip = text(spec, "clusterIP");
    if !ip.is_empty() && ip != "None" && kind != "ExternalName" {
        address(
            &mut c,
            "spec.clusterIPs[0]".to_owned(),
            at(spec, "clusterIP"),
        );
    }
    c.0
}

fn service_ports(c: &mut Check, all: &[Value], kind: &str) {
    let mut seen = Unique::default();
    let mut pairs = HashSet::new();
    let mut node_ports = HashSet::new();
    for (i, p) in all.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        let name = at(p, "name");
        if is_empty(name) {
            if all.len() > 1 {
                c.required(format!("{path}.name"), "");
            }
        } else {
            c.rule(format!("{path}.name"), name, names::dns1123_label);
            seen.check(c, format!("{path}.name"), name);
        }
        if let Err(e) = names::port_number(int(p, "port")) {
            c.invalid(format!("{path}.port"), &json!(int(p, "port")), e);
        }
        c.one_of(
            format!("{path}.protocol"),
            at(p, "protocol"),
            &["SCTP", "TCP", "UDP"],
        );
        c.port(format!("{path}.targetPort"), at(p, "targetPort"));
        let node_port = int(p, "nodePort");
        if node_port != 0 {
            if matches!(kind, "ClusterIP" | "ExternalName") {
                c.forbidden(
                    format!("{path}.nodePort"),
                    format!("may not be used when `type` is '{kind}'"),
                );
            }
            if !node_ports.insert((text(p, "protocol"), node_port)) {
                c.add(FieldError::duplicate(
                    format!("{path}.nodePort"),
                    &json!(node_port),
                ));
            }
        }
        if !pairs.insert((text(p, "protocol"), int(p, "port"))) {
            c.add(FieldError::duplicate(
                path,
                &json!({"port": int(p, "port"), "protocol": text(p, "protocol")}),
            ));
        }
    }
}

/// An address of either family.
pub(super) fn address(c: &mut Check, path: String, v: &Value) {
    if v.as_str().is_none_or(|s| s.parse::<IpAddr>().is_err()) {
        c.invalid(
            path,
            v,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        );
    }
}

/// A service keeps its cluster address as long as its type has one.
pub(crate) fn service_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let has_ip = |v: &Value| text(v, "spec.type") != "ExternalName";
    let (n, o) = (at(new, "spec.clusterIP"), at(old, "spec.clusterIP"));
    if has_ip(new) && has_ip(old) && !is_empty(o) && n != o {
        c.invalid(
            "spec.clusterIPs[0]",
            at(new, "spec.clusterIPs"),
            "may not change once set",
        );
    }
    c.0
}

/// `EndpointSlice`.
pub(crate) fn endpoint_slice(v: &Value) -> Vec<FieldError> {
    const ENDPOINTS_MAX: usize = 1000;
    const PORTS_MAX: usize = 20_000;
    let mut c = Check::default();
    let kind = text(v, "addressType");
    if kind.is_empty() {
        c.required("addressType", "");
    } else {
        c.one_of(
            "addressType",
            at(v, "addressType"),
            &["FQDN", "IPv4", "IPv6"],
        );
    }
    for (name, max) in [("endpoints", ENDPOINTS_MAX), ("ports", PORTS_MAX)] {
        let n = list(v, name).len();
        if n > max {
            c.add(FieldError::too_many(name, n, max));
        }
    }
    for (i, e) in list(v, "endpoints").iter().enumerate() {
        let all = list(e, "addresses");
        if all.is_empty() {
            c.required(
                format!("endpoints[{i}].addresses"),
                "must contain at least 1 address",
            );
        }
        for (j, a) in all.iter().enumerate() {
            if matches!(kind, "IPv4" | "IPv6") {
                address(&mut c, format!("endpoints[{i}].addresses[{j}]"), a);
            }
        }
    }
    let mut seen = HashSet::new();
    for (i, p) in list(v, "ports").iter().enumerate() {
        if !seen.insert(text(p, "name")) {
            c.add(FieldError::duplicate(
                format!("ports[{i}].name"),
                at(p, "name"),
            ));
        }
        c.one_of(
            format!("ports[{i}].protocol"),
            at(p, "protocol"),
            &["SCTP", "TCP", "UDP"],
        );
    }
    c.0
}

/// An `EndpointSlice`'s address type stays.
pub(crate) fn endpoint_slice_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    c.immutable("addressType", new, old);
    c.0
}

/// `IngressClass`.
pub(crate) fn ingress_class(v: &Value) -> Vec<FieldError> {
    const CONTROLLER_BYTES_MAX: usize = 250;
    let mut c = Check::default();
    let controller = at(v, "spec.controller");
    let name = controller.as_str().unwrap_or_default();
    if name.len() > CONTROLLER_BYTES_MAX {
        c.add(FieldError::too_long(
            "spec.controller",
            CONTROLLER_BYTES_MAX,
        ));
    }
    match name.split_once('/') {
        _ if name.is_empty() => c.required("spec.controller", ""),
        Some((domain, path)) if !path.is_empty() => {
            if let Err(e) = names::dns1123_subdomain(domain) {
                c.invalid("spec.controller", controller, e);
            }
        }
        _ => c.invalid(
            "spec.controller",
            controller,
            "must be a domain-prefixed path (such as \"acme.io/foo\")",
        ),
    }
    let parameters = at(v, "spec.parameters");
    if parameters.is_null() {
        return c.0;
    }
    for name in ["kind", "name"] {
        if text(parameters, name).is_empty() {
            c.required(
                format!("spec.parameters.{name}"),
                format!("{name} is required").as_str(),
            );
        } else {
            let path = format!("spec.parameters.{name}");
            c.rule(path, at(parameters, name), names::path_segment);
        }
    }
    let (scope, namespace) = (text(parameters, "scope"), text(parameters, "namespace"));
    match scope {
        "Namespace" if namespace.is_empty() => c.required(
            "spec.parameters.namespace",
            "`parameters.scope` is set to 'Namespace'",
        ),
        "Cluster" if !namespace.is_empty() => c.forbidden(
            "spec.parameters.namespace",
            "`parameters.scope` is set to 'Cluster'",
        ),
        _ => c.one_of(
            "spec.parameters.scope",
            at(parameters, "scope"),
            &["Cluster", "Namespace"],
        ),
    }
    c.0
}

/// An `IngressClass` stays with its controller.
pub(crate) fn ingress_class_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    c.immutable("spec.controller", new, old);
    c.0
}

/// `Ingress`.
pub(crate) fn ingress(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let spec = at(v, "spec");
    let rules = list(spec, "rules");
    if rules.is_empty() && at(spec, "defaultBackend").is_null() {
        c.invalid(
            "spec",
            rules.first().unwrap_or(&json!([])),
            "either `defaultBackend` or `rules` must be specified",
        );
    }
    if !at(spec, "defaultBackend").is_null() {
        backend(&mut c, "spec.defaultBackend", at(spec, "defaultBackend"));
    }
    for (i, r) in rules.iter().enumerate() {
        let path = format!("spec.rules[{i}]");
        let host = text(r, "host");
        if !host.is_empty() {
            let plain = host.strip_prefix("*.").unwrap_or(host);
            if host.parse::<IpAddr>().is_ok() {
                c.invalid(
                    format!("{path}.host"),
                    at(r, "host"),
                    "must be a DNS name, not an IP address",
                );
            } else if let Err(e) = names::dns1123_subdomain(plain) {
                c.invalid(format!("{path}.host"), at(r, "host"), e);
            }
        }
        if at(r, "http").is_null() {
            continue;
        }
        let paths = list(r, "http.paths");
        if paths.is_empty() {
            c.required(format!("{path}.http.paths"), "");
        }
        for (j, p) in paths.iter().enumerate() {
            let path = format!("{path}.http.paths[{j}]");
            let supported = ["Exact", "ImplementationSpecific", "Prefix"];
            if is_empty(at(p, "pathType")) {
                c.required(format!("{path}.pathType"), "pathType must be specified");
            } else {
                c.one_of(format!("{path}.pathType"), at(p, "pathType"), &supported);
            }
            let needs_slash = matches!(text(p, "pathType"), "Exact" | "Prefix");
            if needs_slash && !text(p, "path").starts_with('/') {
                c.invalid(
                    format!("{path}.path"),
                    &json!(text(p, "path")),
                    "must be an absolute path",
                );
            }
            backend(&mut c, &format!("{path}.backend"), at(p, "backend"));
        }
    }
    c.0
}

fn backend(c: &mut Check, path: &str, b: &Value) {
    let (service, resource) = (at(b, "service"), at(b, "resource"));
    match (service.is_null(), resource.is_null()) {
        (false, false) => c.invalid(
            path,
            &json!(""),
            "cannot set both resource and service backends",
        ),
        (true, true) => c.required(path, "must specify a resource or service"),
        (false, true) => {
            c.required_rule(
                format!("{path}.service.name"),
                at(service, "name"),
                names::dns1035_label,
            );
            let (name, number) = (at(service, "port.name"), at(service, "port.number"));
            if is_empty(name) && int(service, "port.number") == 0 {
                c.required(
                    format!("{path}.service.port"),
                    "port name or number is required",
                );
            } else if !is_empty(name) {
                c.rule(format!("{path}.service.port.name"), name, names::port_name);
            } else {
                c.port(format!("{path}.service.port.number"), number);
            }
        }
        (true, false) => {}
    }
}

/// `NetworkPolicy`.
pub(crate) fn network_policy(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    c.selector("spec.podSelector", at(v, "spec.podSelector"));
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in list(v, &format!("spec.{direction}")).iter().enumerate() {
            for (j, p) in list(rule, "ports").iter().enumerate() {
                let path = format!("spec.{direction}[{i}].ports[{j}]");
                c.optional_one_of(
                    format!("{path}.protocol"),
                    at(p, "protocol"),
                    &["SCTP", "TCP", "UDP"],
                );
                if !at(p, "port").is_null() {
                    c.port(format!("{path}.port"), at(p, "port"));
                }
            }
            for (j, p) in list(rule, peers).iter().enumerate() {
                let path = format!("spec.{direction}[{i}].{peers}[{j}]");
                let given = ["podSelector", "namespaceSelector", "ipBlock"]
                    .iter()
                    .filter(|k| !at(p, k).is_null())
                    .count();
                if given == 0 {
                    c.required(path, "must specify a peer");
                } else if !at(p, "ipBlock").is_null() && given > 1 {
                    c.forbidden(path, "may not specify both ipBlock and another peer");
                }
            }
        }
    }
    let types = at(v, "spec.policyTypes").as_array().map_or(0, Vec::len);
    if types > 2 {
        c.invalid(
            "spec.policyTypes",
            at(v, "spec.policyTypes"),
            "may not specify more than two policyTypes",
        );
    }
    c.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn services() {
        let mut v = json!({"spec": {"ports": [{"port": 80}, {"port": 80, "nodePort": 30000}, {"name": "x", "port": 0}],
            "externalIPs": ["nope"], "trafficDistribution": "PreferMe"}});
        crate::defaults::network::service(&mut v);
        let all: Vec<String> = service(&v).iter().map(ToString::to_string).collect();
        expect![[r#"
            spec.trafficDistribution: Unsupported value: "PreferMe": supported values: "PreferClose", "PreferSameNode", "PreferSameZone"
            spec.ports[0].name: Required value
            spec.ports[1].name: Required value
            spec.ports[1].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'
            spec.ports[1]: Duplicate value: {"port":80,"protocol":"TCP"}
            spec.ports[2].port: Invalid value: 0: must be between 1 and 65535, inclusive
            spec.ports[2].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive
            spec.externalIPs[0]: Invalid value: "nope": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"#]]
        .assert_eq(&all.join("\n"));
        let old = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]}});
        let new = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.0.0.2", "clusterIPs": ["10.0.0.2"]}});
        let all: Vec<String> = service_update(&new, &old)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            all,
            [r#"spec.clusterIPs[0]: Invalid value: ["10.0.0.2"]: may not change once set"#]
        );
    }

    #[test]
    fn ingresses() {
        let v = json!({"spec": {"rules": [{"host": "1.2.3.4", "http": {"paths": [
            {"path": "x", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {}}}}]}}]}});
        let all: Vec<String> = ingress(&v).iter().map(ToString::to_string).collect();
        expect![[r#"
            spec.rules[0].host: Invalid value: "1.2.3.4": must be a DNS name, not an IP address
            spec.rules[0].http.paths[0].path: Invalid value: "x": must be an absolute path
            spec.rules[0].http.paths[0].backend.service.port: Required value: port name or number is required"#]]
        .assert_eq(&all.join("\n"));
    }
}

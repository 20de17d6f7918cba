//! Services, endpoints, ingresses, policies.

use super::{NONE, UNSET, age, integer, labels, list, or, selector, some_of, string, wide};
use crate::Column;
use crate::access::{at, int, text};
use serde_json::{Value, json};

pub(crate) const SERVICE: &[Column] = &[
    string("Type"),
    string("Cluster-IP"),
    string("External-IP"),
    string("Port(s)"),
    string("Age"),
    wide("Selector"),
];

pub(crate) fn service(v: &Value, now: i64) -> Vec<Value> {
    let cluster_ip = match list(v, "spec.clusterIPs").first().and_then(Value::as_str) {
        Some(ip) => json!(ip),
        None => or(v, "spec.clusterIP", NONE),
    };
    vec![
        json!(text(v, "spec.type")),
        cluster_ip,
        json!(external(v)),
        json!(ports(v)),
        age(v, now),
        json!(labels(at(v, "spec.selector"))),
    ]
}

fn external(v: &Value) -> String {
    let given: Vec<&str> = list(v, "spec.externalIPs")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    match text(v, "spec.type") {
        "LoadBalancer" => {
            let mut all = balancer(v);
            all.extend(given.iter().map(ToString::to_string));
            if all.is_empty() {
                return "<pending>".to_owned();
            }
            all.join(",")
        }
        "ExternalName" => text(v, "spec.externalName").to_owned(),
        _ if given.is_empty() => NONE.to_owned(),
        _ => given.join(","),
    }
}

/// Addresses that a load balancer gave, each once.
fn balancer(v: &Value) -> Vec<String> {
    let mut all: Vec<String> = list(v, "status.loadBalancer.ingress")
        .iter()
        .map(|i| match text(i, "ip") {
            "" => text(i, "hostname").to_owned(),
            ip => ip.to_owned(),
        })
        .filter(|s| !s.is_empty())
        .collect();
    all.sort();
    all.dedup();
    all
}

fn ports(v: &Value) -> String {
    let all: Vec<String> = list(v, "spec.ports")
        .iter()
        .map(|p| match int(p, "nodePort") {
            0 => format!("{}/{}", int(p, "port"), text(p, "protocol")),
            n => format!("{}:{n}/{}", int(p, "port"), text(p, "protocol")),
        })
        .collect();
    if all.is_empty() {
        NONE.to_owned()
    } else {
        all.join(",")
    }
}

pub(crate) const ENDPOINTS: &[Column] = &[string("Endpoints"), string("Age")];

pub(crate) fn endpoints(v: &Value, now: i64) -> Vec<Value> {
    const SHOWN_MAX: usize = 3;
    let mut all = Vec::new();
    for subset in list(v, "subsets") {
        let ports = list(subset, "ports");
        let addresses = list(subset, "addresses");
        if ports.is_empty() {
            all.extend(addresses.iter().map(|a| text(a, "ip").to_owned()));
        }
        for p in ports {
            for a in addresses {
                all.push(format!("{}:{}", text(a, "ip"), int(p, "port")));
            }
        }
    }
    vec![json!(some_of(&all, SHOWN_MAX, NONE)), age(v, now)]
}

pub(crate) const ENDPOINT_SLICE: &[Column] = &[
    string("AddressType"),
    string("Ports"),
    string("Endpoints"),
    string("Age"),
];

pub(crate) fn endpoint_slice(v: &Value, now: i64) -> Vec<Value> {
    const SHOWN_MAX: usize = 3;
    let ports: Vec<String> = list(v, "ports")
        .iter()
        .map(|p| match at(p, "port").as_i64() {
            Some(n) => n.to_string(),
            None => "*".to_owned(),
        })
        .collect();
    let addresses: Vec<String> = list(v, "endpoints")
        .iter()
        .flat_map(|e| list(e, "addresses"))
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    vec![
        json!(text(v, "addressType")),
        json!(some_of(&ports, SHOWN_MAX, UNSET)),
        json!(some_of(&addresses, SHOWN_MAX, UNSET)),
        age(v, now),
    ]
}

pub(crate) const INGRESS: &[Column] = &[
    string("Class"),
    string("Hosts"),
    string("Address"),
    string("Ports"),
    string("Age"),
];

pub(crate) fn ingress(v: &Value, now: i64) -> Vec<Value> {
    const SHOWN_MAX: usize = 3;
    let class = match text(v, "spec.ingressClassName") {
        "" => at(v, "metadata.annotations")
            .get("kubernetes.io/ingress.class")
            .and_then(Value::as_str)
            .unwrap_or(NONE),
        class => class,
    };
    let hosts: Vec<String> = list(v, "spec.rules")
        .iter()
        .map(|r| text(r, "host").to_owned())
        .filter(|h| !h.is_empty())
        .collect();
    let ports = if list(v, "spec.tls").is_empty() {
        "80"
    } else {
        "80, 443"
    };
    vec![
        json!(class),
        json!(some_of(&hosts, SHOWN_MAX, "*")),
        json!(balancer(v).join(",")),
        json!(ports),
        age(v, now),
    ]
}

pub(crate) const INGRESS_CLASS: &[Column] =
    &[string("Controller"), string("Parameters"), string("Age")];

pub(crate) fn ingress_class(v: &Value, now: i64) -> Vec<Value> {
    let p = at(v, "spec.parameters");
    let parameters = match (text(p, "apiGroup"), text(p, "kind")) {
        (_, "") => NONE.to_owned(),
        ("", kind) => format!("{kind}/{}", text(p, "name")),
        (group, kind) => format!("{kind}.{group}/{}", text(p, "name")),
    };
    vec![
        json!(text(v, "spec.controller")),
        json!(parameters),
        age(v, now),
    ]
}

pub(crate) const NETWORK_POLICY: &[Column] = &[string("Pod-Selector"), string("Age")];

pub(crate) fn network_policy(v: &Value, now: i64) -> Vec<Value> {
    vec![json!(selector(at(v, "spec.podSelector"))), age(v, now)]
}

pub(crate) const IP_ADDRESS: &[Column] = &[string("ParentRef"), string("Age")];

pub(crate) fn ip_address(v: &Value, now: i64) -> Vec<Value> {
    let r = at(v, "spec.parentRef");
    let parts = ["resource", "namespace", "name"].map(|p| text(r, p));
    let parts: Vec<&str> = parts.into_iter().filter(|p| !p.is_empty()).collect();
    vec![json!(parts.join("/")), age(v, now)]
}

pub(crate) const SERVICE_CIDR: &[Column] = &[string("CIDRs"), string("Age")];

pub(crate) fn service_cidr(v: &Value, now: i64) -> Vec<Value> {
    let all: Vec<&str> = list(v, "spec.cidrs")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    vec![json!(all.join(",")), age(v, now)]
}

pub(crate) const LEASE: &[Column] = &[string("Holder"), string("Age")];

pub(crate) fn lease(v: &Value, now: i64) -> Vec<Value> {
    vec![json!(text(v, "spec.holderIdentity")), age(v, now)]
}

pub(crate) const FLOW_SCHEMA: &[Column] = &[
    string("PriorityLevel"),
    integer("MatchingPrecedence"),
    string("DistinguisherMethod"),
    string("Age"),
    string("MissingPL"),
];

pub(crate) fn flow_schema(v: &Value, now: i64) -> Vec<Value> {
    let missing = super::condition(v, "Dangling").map_or("?", |c| text(c, "status"));
    vec![
        json!(text(v, "spec.priorityLevelConfiguration.name")),
        json!(int(v, "spec.matchingPrecedence")),
        or(v, "spec.distinguisherMethod.type", NONE),
        age(v, now),
        json!(missing),
    ]
}

pub(crate) const PRIORITY_LEVEL: &[Column] = &[
    string("Type"),
    string("NominalConcurrencyShares"),
    string("Queues"),
    string("HandSize"),
    string("QueueLengthLimit"),
    string("Age"),
];

pub(crate) fn priority_level(v: &Value, now: i64) -> Vec<Value> {
    let number = |path: &str| match at(v, path) {
        Value::Null => json!(NONE),
        n => json!(n.to_string()),
    };
    vec![
        json!(text(v, "spec.type")),
        number("spec.limited.nominalConcurrencyShares"),
        number("spec.limited.limitResponse.queuing.queues"),
        number("spec.limited.limitResponse.queuing.handSize"),
        number("spec.limited.limitResponse.queuing.queueLengthLimit"),
        age(v, now),
    ]
}

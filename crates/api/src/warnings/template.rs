//! Pods and their templates.

use super::{claim_spec, fractional, paths};
use crate::access::{at, int, list, text};
use serde_json::Value;
use std::collections::HashSet;

const SECCOMP: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_OF_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APPARMOR_OF_CONTAINER: &str = "container.apparmor.security.beta.kubernetes.io/";
const USE_SECCOMP: &str = r#"non-functional in v1.27+; use the "seccompProfile" field instead"#;
const USE_APPARMOR: &str = r#"deprecated since v1.30; use the "appArmorProfile" field instead"#;
const NO_SELECTOR: &str = "a null labelSelector results in matching no pod";

/// Labels of nodes that have other names now: the old name, since when, the new one.
const NODE_LABELS: &[(&str, &str, &str)] = &[
    ("beta.kubernetes.io/arch", "v1.14", "kubernetes.io/arch"),
    ("beta.kubernetes.io/os", "v1.14", "kubernetes.io/os"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "v1.17",
        "topology.kubernetes.io/region",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "v1.17",
        "topology.kubernetes.io/zone",
    ),
    (
        "beta.kubernetes.io/instance-type",
        "v1.17",
        "node.kubernetes.io/instance-type",
    ),
];

/// Annotations that do nothing any more: which, since when, what does it now.
const ANNOTATIONS: &[(&str, &str, &str)] = &[
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "v1.16",
        "priorityClassName",
    ),
    ("security.alpha.kubernetes.io/sysctls", "v1.11", "sysctls"),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "v1.11",
        "sysctls",
    ),
];

/// Sources of volumes that are gone or go.
const SOURCES: &[(&str, &str)] = &[
    (
        "photonPersistentDisk",
        "deprecated in v1.11, non-functional in v1.16+",
    ),
    ("gitRepo", "deprecated in v1.11"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// Warns of a pod or a template; `path` is empty or that of the template with a dot.
pub(super) fn warn(all: &mut Vec<String>, path: &str, v: &Value) {
    let (spec, at_spec) = (at(v, "spec"), format!("{path}spec"));
    placement(all, &at_spec, spec);
    annotations(all, path, v);
    for (i, volume) in list(spec, "volumes").iter().enumerate() {
        let path = format!("{at_spec}.volumes[{i}]");
        volume_source(all, &path, volume);
        let claim = "ephemeral.volumeClaimTemplate.spec";
        claim_spec(all, &format!("{path}.{claim}"), at(volume, claim));
    }
    for volume in list(spec, "volumes") {
        paths::overlapping(all, volume);
    }
    twice(all, &at_spec, spec, "hostAliases", "ip");
    twice(all, &at_spec, spec, "imagePullSecrets", "name");
    for (i, secret) in list(spec, "imagePullSecrets").iter().enumerate() {
        if text(secret, "name").is_empty() {
            all.push(format!(
                r#"{at_spec}.imagePullSecrets[{i}].name: invalid empty name """#
            ));
        }
    }
    for name in ["memory", "ephemeral-storage"] {
        let amount = at(spec, "overhead").get(name);
        fractional(all, &format!("{at_spec}.overhead[{name}]"), amount);
    }
    for (path, container) in containers(&at_spec, spec) {
        amounts(all, &path, container);
        environment(all, &path, container);
    }
    ports(all, &at_spec, spec);
    if int(spec, "terminationGracePeriodSeconds") < 0 {
        all.push(format!("{at_spec}.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        affinity_terms(all, &format!("{at_spec}.affinity.{kind}"), spec, kind);
    }
}

/// Init, main and ephemeral containers with their paths.
fn containers<'a>(path: &str, spec: &'a Value) -> impl Iterator<Item = (String, &'a Value)> {
    let fields = ["initContainers", "containers", "ephemeralContainers"].into_iter();
    fields.flat_map(move |field| {
        let all = list(spec, field).iter().enumerate();
        all.map(move |(i, one)| (format!("{path}.{field}[{i}]"), one))
            .collect::<Vec<_>>()
    })
}

fn placement(all: &mut Vec<String>, path: &str, spec: &Value) {
    for key in at(spec, "nodeSelector")
        .as_object()
        .into_iter()
        .flat_map(|m| m.keys())
    {
        if let Some(text) = deprecated(key) {
            all.push(format!("{path}.nodeSelector[{key}]: {text}"));
        }
    }
    let required =
        "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    for (i, term) in list(spec, required).iter().enumerate() {
        node_term(all, &format!("{path}.{required}[{i}]"), term);
    }
    let preferred = "affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution";
    for (i, term) in list(spec, preferred).iter().enumerate() {
        let path = format!("{path}.{preferred}[{i}].preference");
        node_term(all, &path, at(term, "preference"));
    }
    for (i, spread) in list(spec, "topologySpreadConstraints").iter().enumerate() {
        let path = format!("{path}.topologySpreadConstraints[{i}]");
        node_label(
            all,
            &format!("{path}.topologyKey"),
            text(spread, "topologyKey"),
        );
        if at(spread, "labelSelector").is_null() {
            all.push(format!("{path}.labelSelector: {NO_SELECTOR}"));
        }
    }
}

fn deprecated(label: &str) -> Option<String> {
    let (_, since, instead) = NODE_LABELS.iter().find(|(old, ..)| *old == label)?;
    Some(format!("deprecated since {since}; use {instead:?} instead"))
}

/// A label of nodes that has another name now.
pub(super) fn node_label(all: &mut Vec<String>, path: &str, label: &str) {
    if let Some(text) = deprecated(label) {
        all.push(format!("{path}: {label} is {text}"));
    }
}

/// A term that selects nodes.
pub(super) fn node_term(all: &mut Vec<String>, path: &str, term: &Value) {
    for (i, one) in list(term, "matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{i}].key");
        node_label(all, &path, text(one, "key"));
    }
}

/// A volume of a kind that is gone or goes.
pub(super) fn volume_source(all: &mut Vec<String>, path: &str, volume: &Value) {
    for (field, told) in SOURCES {
        if volume.get(*field).is_some() {
            all.push(format!("{path}.{field}: {told}"));
        }
    }
}

fn annotations(all: &mut Vec<String>, path: &str, v: &Value) {
    let (given, spec) = (at(v, "metadata.annotations"), at(v, "spec"));
    let mut old = |key: &str, told: &str| {
        if given.get(key).is_some() {
            all.push(format!("{path}metadata.annotations[{key}]: {told}"));
        }
    };
    for (key, since, field) in ANNOTATIONS {
        let told = format!("non-functional in {since}+; use the {field:?} field instead");
        old(key, &told);
    }
    let of_pod = at(spec, "securityContext");
    if of_pod.get("seccompProfile").is_none() {
        old(SECCOMP, USE_SECCOMP);
    }
    for (_, container) in containers("", spec) {
        let (own, name) = (at(container, "securityContext"), text(container, "name"));
        if own.get("seccompProfile").is_none() {
            old(&format!("{SECCOMP_OF_CONTAINER}{name}"), USE_SECCOMP);
        }
        let armor = |context: &Value| context.get("appArmorProfile").is_some();
        if !path.is_empty() && !armor(of_pod) && !armor(own) {
            old(&format!("{APPARMOR_OF_CONTAINER}{name}"), USE_APPARMOR);
        }
    }
}

/// Items of a list by one key.
fn twice(all: &mut Vec<String>, path: &str, spec: &Value, field: &str, key: &str) {
    let mut seen = HashSet::new();
    for (i, item) in list(spec, field).iter().enumerate() {
        let value = text(item, key);
        if !seen.insert(value) {
            all.push(format!(
                "{path}.{field}[{i}].{key}: duplicate {key} {value:?}"
            ));
        }
    }
}

fn amounts(all: &mut Vec<String>, path: &str, container: &Value) {
    for name in ["memory", "ephemeral-storage"] {
        for part in ["limits", "requests"] {
            let amount = at(container, "resources")
                .get(part)
                .and_then(|p| p.get(name));
            fractional(all, &format!("{path}.resources.{part}[{name}]"), amount);
        }
    }
}

/// A variable that is set again, unless its new value is made of the old one.
fn environment(all: &mut Vec<String>, path: &str, container: &Value) {
    let mut seen = HashSet::new();
    for (i, item) in list(container, "env").iter().enumerate() {
        let (name, value) = (text(item, "name"), text(item, "value"));
        let itself = format!("$({name})");
        let builds_on =
            value.contains(&itself) && value != itself && item.get("valueFrom").is_none();
        if !seen.insert(name) && !builds_on {
            all.push(format!("{path}.env[{i}]: hides previous definition of {name:?}, which may be dropped when using apply"));
        }
    }
}

/// Ports of all containers of a pod, which share an address.
fn ports(all: &mut Vec<String>, path: &str, spec: &Value) {
    let mut before: Vec<(String, &Value)> = Vec::new();
    let containers: Vec<_> = containers(path, spec).collect();
    let each = containers.iter().flat_map(|(path, container)| {
        let ports = list(container, "ports").iter().enumerate();
        ports.map(move |(i, port)| (format!("{path}.ports[{i}]"), port))
    });
    for (path, port) in each {
        let (ip, host_port) = (text(port, "hostIP"), int(port, "hostPort"));
        if !ip.is_empty() && host_port == 0 {
            all.push(format!(
                "{path}: hostIP set without hostPort: {{Name:{} HostPort:0 ContainerPort:{} Protocol:{} HostIP:{ip}}}",
                text(port, "name"),
                int(port, "containerPort"),
                text(port, "protocol"),
            ));
        }
        let same = |other: &Value| {
            ["containerPort", "protocol"]
                .iter()
                .all(|key| at(other, key) == at(port, key))
        };
        for (at_other, other) in before.iter().filter(|(_, other)| same(other)) {
            let (other_ip, other_port) = (text(other, "hostIP"), int(other, "hostPort"));
            let how = if ip == other_ip && host_port == other_port {
                "duplicate"
            } else if host_port == 0 || other_port == 0 {
                "overlapping"
            } else if host_port == other_port && ip.is_empty() != other_ip.is_empty() {
                "dangerously ambiguous"
            } else {
                continue;
            };
            all.push(format!("{path}: {how} port definition with {at_other}"));
        }
        before.push((path, port));
    }
}

fn affinity_terms(all: &mut Vec<String>, path: &str, spec: &Value, kind: &str) {
    for (when, within) in [
        ("requiredDuringSchedulingIgnoredDuringExecution", ""),
        (
            "preferredDuringSchedulingIgnoredDuringExecution",
            "podAffinityTerm",
        ),
    ] {
        let terms = list(spec, &format!("affinity.{kind}.{when}"));
        for (i, term) in terms.iter().enumerate() {
            let (term, dot) = if within.is_empty() {
                (term, "")
            } else {
                (at(term, within), ".")
            };
            if at(term, "labelSelector").is_null() {
                all.push(format!(
                    "{path}.{when}[{i}]{dot}{within}.labelSelector: {NO_SELECTOR}"
                ));
            }
        }
    }
}

//! What a write is warned of though it is valid: fields that do nothing, that are deprecated,
//! or that surprise. One function a kind, of the new object and, at an update, the old one;
//! the cases and their wording are upstream's. Start with [`pod`].

mod paths;
mod template;

use crate::access::{at, is_empty, list, text};
use apimachinery::{names, quantity::Quantity};
use serde_json::Value;
use std::fmt::Display;
use std::net::Ipv6Addr;

pub(crate) type Warn = fn(&Value, Option<&Value>) -> Vec<String>;

const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const BETA_MOUNT_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";
const USE_CLASS: &str = r#"deprecated since v1.8; use "storageClassName" attribute instead"#;
/// Indexed Jobs of more than these may lose count of what failed.
const MANY_COMPLETIONS: i64 = 100_000;
const MANY_AT_ONCE: i64 = 10_000;

/// Nothing to say.
pub(crate) fn none(_: &Value, _: Option<&Value>) -> Vec<String> {
    Vec::new()
}

/// `Pod`: at its creation only, as people rarely change pods by hand.
pub(crate) fn pod(new: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some() {
        return Vec::new();
    }
    let mut all = Vec::new();
    host_name(&mut all, new, "the Pod's hostname");
    template::warn(&mut all, "", new);
    all
}

/// `Deployment`, `ReplicaSet`, `ReplicationController`.
pub(crate) fn replicated(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut all = Vec::new();
    if old.is_none() {
        host_name(&mut all, new, "Pod names and hostnames");
    }
    templated(&mut all, new, old, "spec.template");
    all
}

/// `DaemonSet`.
pub(crate) fn daemon_set(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut all = Vec::new();
    templated(&mut all, new, old, "spec.template");
    all
}

/// `StatefulSet`.
pub(crate) fn stateful_set(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut all = daemon_set(new, old);
    for (i, claim) in list(new, "spec.volumeClaimTemplates").iter().enumerate() {
        let path = format!("spec.volumeClaimTemplates[{i}].spec");
        claim_spec(&mut all, &path, at(claim, "spec"));
    }
    all
}

/// `PodTemplate`.
pub(crate) fn pod_template(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut all = Vec::new();
    templated(&mut all, new, old, "template");
    all
}

/// `Job`.
pub(crate) fn job(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut all = Vec::new();
    if old.is_none() {
        host_name(&mut all, new, "Pod names and hostnames");
    }
    job_spec(&mut all, new, old, "spec");
    all
}

/// `CronJob`.
pub(crate) fn cron_job(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut all = Vec::new();
    if old.is_none() {
        host_name(&mut all, new, "Pod names and hostnames");
    }
    job_spec(&mut all, new, old, "spec.jobTemplate.spec");
    if old.is_some() && text(new, "spec.schedule").contains("TZ") {
        all.push("cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details".to_owned());
    }
    all
}

fn job_spec(all: &mut Vec<String>, new: &Value, old: Option<&Value>, path: &str) {
    let spec = at(new, path);
    let number = |name: &str| at(spec, name).as_i64().unwrap_or_default();
    if changed(new, old)
        && text(spec, "completionMode") == "Indexed"
        && number("completions") > MANY_COMPLETIONS
        && number("parallelism") > MANY_AT_ONCE
    {
        all.push(format!("{path}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail"));
    }
    templated(all, new, old, &format!("{path}.template"));
}

/// A template, unless the update leaves the spec as it was.
fn templated(all: &mut Vec<String>, new: &Value, old: Option<&Value>, path: &str) {
    if changed(new, old) {
        template::warn(all, &format!("{path}."), at(new, path));
    }
}

/// Made, or made another generation.
fn changed(new: &Value, old: Option<&Value>) -> bool {
    let generation = |v| at(v, "metadata.generation");
    old.is_none_or(|old| generation(new) != generation(old))
}

/// Names of pods are names of hosts.
fn host_name(all: &mut Vec<String>, new: &Value, used_in: &str) {
    if let Err(e) = names::dns1123_label(text(new, "metadata.name")) {
        all.push(format!("metadata.name: this is used in {used_in}, which can result in surprising behavior; a DNS label is recommended: [{e}]"));
    }
}

/// `PersistentVolumeClaim`.
pub(crate) fn claim(new: &Value, _: Option<&Value>) -> Vec<String> {
    let mut all = Vec::new();
    annotated(&mut all, new, BETA_CLASS, USE_CLASS);
    claim_spec(&mut all, "spec", at(new, "spec"));
    all
}

/// What a claim asks for must be whole bytes.
fn claim_spec(all: &mut Vec<String>, path: &str, spec: &Value) {
    for part in ["requests", "limits"] {
        let amount = at(spec, &format!("resources.{part}")).get("storage");
        fractional(all, &format!("{path}.resources.{part}[storage]"), amount);
    }
}

/// Bytes are whole.
fn fractional(all: &mut Vec<String>, path: &str, amount: Option<&Value>) {
    let Some((amount, bytes)) = amount.and_then(|v| Some((v, Quantity::from_json(v)?))) else {
        return;
    };
    if bytes.milli_value() % 1000 != 0 {
        let amount = amount
            .as_str()
            .map_or_else(|| amount.to_string(), str::to_owned);
        all.push(format!(
            "{path}: fractional byte value {amount:?} is invalid, must be an integer"
        ));
    }
}

/// `PersistentVolume`.
pub(crate) fn volume(new: &Value, _: Option<&Value>) -> Vec<String> {
    let mut all = Vec::new();
    let required = "spec.nodeAffinity.required.nodeSelectorTerms";
    for (i, term) in list(new, required).iter().enumerate() {
        template::node_term(&mut all, &format!("{required}[{i}]"), term);
    }
    annotated(&mut all, new, BETA_CLASS, USE_CLASS);
    let options = r#"deprecated since v1.31; use "mountOptions" attribute instead"#;
    annotated(&mut all, new, BETA_MOUNT_OPTIONS, options);
    if text(new, "spec.persistentVolumeReclaimPolicy") == "Recycle" {
        all.push("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.".to_owned());
    }
    template::volume_source(&mut all, "spec", at(new, "spec"));
    all
}

fn annotated(all: &mut Vec<String>, new: &Value, key: &str, text: impl Display) {
    if at(new, "metadata.annotations").get(key).is_some() {
        all.push(format!("metadata.annotations[{key}]: {text}"));
    }
}

/// `StorageClass`.
pub(crate) fn storage_class(new: &Value, _: Option<&Value>) -> Vec<String> {
    let mut all = Vec::new();
    for (i, topology) in list(new, "allowedTopologies").iter().enumerate() {
        for (j, one) in list(topology, "matchLabelExpressions").iter().enumerate() {
            let path = format!("allowedTopologies[{i}].matchLabelExpressions[{j}].key");
            template::node_label(&mut all, &path, text(one, "key"));
        }
    }
    all
}

/// `ServiceAccount`.
pub(crate) fn service_account(new: &Value, _: Option<&Value>) -> Vec<String> {
    let mut all = Vec::new();
    let text =
        "deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets";
    annotated(
        &mut all,
        new,
        "kubernetes.io/enforce-mountable-secrets",
        text,
    );
    all
}

/// `Ingress`.
pub(crate) fn ingress(new: &Value, old: Option<&Value>) -> Vec<String> {
    const CLASS: &str = "kubernetes.io/ingress.class";
    let mut all = Vec::new();
    let set = at(new, "metadata.annotations").get(CLASS).is_some();
    if old.is_none() && set {
        all.push(format!(
            "annotation {CLASS:?} is deprecated, please use 'spec.ingressClassName' instead"
        ));
    }
    all
}

/// `Service`.
pub(crate) fn service(new: &Value, _: Option<&Value>) -> Vec<String> {
    const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
    let mut all = Vec::new();
    if at(new, "metadata.annotations").get(HINTS).is_some() {
        all.push(format!(
            "annotation {HINTS} is deprecated, please use service.kubernetes.io/topology-mode instead"
        ));
    }
    let spec = at(new, "spec");
    let kind = text(spec, "type");
    let headless = kind == "ClusterIP" && text(spec, "clusterIP") == "None";
    let external = !list(spec, "externalIPs").is_empty();
    let mut when = |is: bool, text: &str| {
        if is {
            all.push(text.to_owned());
        }
    };
    if headless {
        when(
            !is_empty(at(spec, "loadBalancerIP")),
            "spec.loadBalancerIP is ignored for headless services",
        );
        when(
            external,
            "spec.externalIPs is ignored for headless services",
        );
        when(
            text(spec, "sessionAffinity") != "None",
            "spec.SessionAffinity is ignored for headless services",
        );
    }
    let named = kind == "ExternalName";
    when(
        external && !headless && !named,
        "spec.externalIPs is deprecated and may no longer be implemented in some clusters",
    );
    when(
        external && named,
        r#"spec.externalIPs is ignored when spec.type is "ExternalName""#,
    );
    when(
        !named && !is_empty(at(spec, "externalName")),
        r#"spec.externalName is ignored when spec.type is not "ExternalName""#,
    );
    when(
        text(spec, "trafficDistribution") == "PreferClose",
        r#"spec.trafficDistribution: "PreferClose" is deprecated; use "PreferSameZone""#,
    );
    for field in ["clusterIPs", "externalIPs"] {
        for (i, ip) in list(spec, field).iter().enumerate() {
            canonical(&mut all, &format!("spec.{field}[{i}]"), ip);
        }
    }
    canonical(&mut all, "spec.loadBalancerIP", at(spec, "loadBalancerIP"));
    all
}

/// One address should be written in one way.
fn canonical(all: &mut Vec<String>, path: &str, ip: &Value) {
    let given = ip.as_str().unwrap_or_default();
    let Ok(parsed) = given.parse::<Ipv6Addr>() else {
        return;
    };
    let parsed = parsed.to_string();
    if given != parsed {
        all.push(format!(
            "{path}: IPv6 address {given:?} should be in RFC 5952 canonical format ({parsed:?})"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use serde_json::json;

    fn check(warn: Warn, v: &Value, want: Expect) {
        want.assert_eq(&warn(v, None).join("\n"));
    }

    #[test]
    fn pods_are_warned_of_at_their_creation() {
        let v = json!({
            "metadata": {"name": "a.b", "annotations": {
                "seccomp.security.alpha.kubernetes.io/pod": "x",
                "container.apparmor.security.beta.kubernetes.io/a": "x",
                "scheduler.alpha.kubernetes.io/critical-pod": "",
            }},
            "spec": {
                "nodeSelector": {"beta.kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"},
                "hostAliases": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.1"}],
                "imagePullSecrets": [{"name": "s"}, {"name": "s"}, {}],
                "terminationGracePeriodSeconds": -1,
                "topologySpreadConstraints": [
                    {"topologyKey": "failure-domain.beta.kubernetes.io/zone"},
                ],
                "affinity": {
                    "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                        {"preference": {"matchExpressions": [{"key": "beta.kubernetes.io/arch"}]}},
                    ]},
                    "podAntiAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": [{"labelSelector": {}}],
                        "preferredDuringSchedulingIgnoredDuringExecution": [{"podAffinityTerm": {}}],
                    },
                },
                "initContainers": [{"name": "i", "ports": [{"containerPort": 80, "protocol": "TCP"}]}],
                "containers": [{
                    "name": "a",
                    "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "$(A)2"}, {"name": "A", "value": "3"}],
                    "ports": [
                        {"containerPort": 80, "protocol": "TCP"},
                        {"containerPort": 81, "protocol": "TCP", "hostPort": 81},
                        {"containerPort": 81, "protocol": "TCP", "hostPort": 81, "hostIP": "10.0.0.1"},
                        {"containerPort": 82, "protocol": "TCP", "hostIP": "10.0.0.1"},
                    ],
                    "resources": {"limits": {"memory": "1m", "cpu": "1m"}},
                }],
                "volumes": [{"name": "g", "gitRepo": {}}, {"name": "e"}],
            },
        });
        check(
            pod,
            &v,
            expect![[r#"
            metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]
            spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use "kubernetes.io/os" instead
            spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].preference.matchExpressions[0].key: beta.kubernetes.io/arch is deprecated since v1.14; use "kubernetes.io/arch" instead
            spec.topologySpreadConstraints[0].topologyKey: failure-domain.beta.kubernetes.io/zone is deprecated since v1.17; use "topology.kubernetes.io/zone" instead
            spec.topologySpreadConstraints[0].labelSelector: a null labelSelector results in matching no pod
            metadata.annotations[scheduler.alpha.kubernetes.io/critical-pod]: non-functional in v1.16+; use the "priorityClassName" field instead
            metadata.annotations[seccomp.security.alpha.kubernetes.io/pod]: non-functional in v1.27+; use the "seccompProfile" field instead
            spec.volumes[0].gitRepo: deprecated in v1.11
            spec.hostAliases[1].ip: duplicate ip "10.0.0.1"
            spec.imagePullSecrets[1].name: duplicate name "s"
            spec.imagePullSecrets[2].name: invalid empty name ""
            spec.containers[0].resources.limits[memory]: fractional byte value "1m" is invalid, must be an integer
            spec.containers[0].env[2]: hides previous definition of "A", which may be dropped when using apply
            spec.containers[0].ports[0]: duplicate port definition with spec.initContainers[0].ports[0]
            spec.containers[0].ports[2]: dangerously ambiguous port definition with spec.containers[0].ports[1]
            spec.containers[0].ports[3]: hostIP set without hostPort: {Name: HostPort:0 ContainerPort:82 Protocol:TCP HostIP:10.0.0.1}
            spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1
            spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.labelSelector: a null labelSelector results in matching no pod"#]],
        );
        assert!(pod(&v, Some(&v)).is_empty());
        let fine = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "a"}]}});
        check(pod, &fine, expect![""]);
    }

    #[test]
    fn templates_are_warned_of_when_they_change() {
        let set = |generation: u32| {
            json!({
                "metadata": {"name": "a.b", "generation": generation},
                "spec": {"template": {
                    "metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/a": "x"}},
                    "spec": {"containers": [{"name": "a"}]},
                }},
            })
        };
        check(
            replicated,
            &set(1),
            expect![[r#"
            metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]
            spec.template.metadata.annotations[container.apparmor.security.beta.kubernetes.io/a]: deprecated since v1.30; use the "appArmorProfile" field instead"#]],
        );
        let old = set(1);
        assert!(replicated(&old, Some(&old)).is_empty());
        assert_eq!(replicated(&set(2), Some(&old)).len(), 1);
        let many = json!({"metadata": {"name": "a"}, "spec": {
            "completionMode": "Indexed", "completions": 100_001, "parallelism": 10_001,
        }});
        check(
            job,
            &many,
            expect![
                "spec: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail"
            ],
        );
    }

    #[test]
    fn files_of_volumes_that_hide_each_other() {
        let items = |paths: &[&str]| -> Value {
            paths
                .iter()
                .map(|path| json!({"key": "k", "path": path}))
                .collect()
        };
        let v = json!({"metadata": {"name": "p"}, "spec": {"volumes": [
            {"name": "apart", "configMap": {"name": "m", "items": items(&["a", "ab", "b/c"])}},
            {"name": "within", "secret": {"secretName": "s", "items": items(&["a/b", "a"])}},
            {"name": "many", "projected": {"sources": [
                {"configMap": {"name": "m", "items": items(&["a"])}},
                {"serviceAccountToken": {"path": "a"}},
                {"clusterTrustBundle": {"signerName": "x/y", "path": "a/c"}},
                {},
            ]}},
        ]}});
        check(
            pod,
            &v,
            expect![[r#"
            volume "within" (Secret "s"): overlapping paths: "a" with "a/b"
            volume "many" (Projected ServiceAccountToken): overlapping paths: "a" with "a"
            volume "many" (Projected ClusterTrustBundle "x/y"): overlapping paths: "a/c" with "a"
            volume "many" (Projected) has no sources provided"#]],
        );
    }

    #[test]
    fn services_volumes_and_others() {
        check(
            service,
            &json!({"metadata": {}, "spec": {
                "type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"],
                "sessionAffinity": "ClientIP", "externalIPs": ["2001:DB8::1"],
                "trafficDistribution": "PreferClose",
            }}),
            expect![[r#"
                spec.externalIPs is ignored for headless services
                spec.SessionAffinity is ignored for headless services
                spec.trafficDistribution: "PreferClose" is deprecated; use "PreferSameZone"
                spec.externalIPs[0]: IPv6 address "2001:DB8::1" should be in RFC 5952 canonical format ("2001:db8::1")"#]],
        );
        check(
            volume,
            &json!({
                "metadata": {"annotations": {BETA_CLASS: "x"}},
                "spec": {"persistentVolumeReclaimPolicy": "Recycle", "cephfs": {}},
            }),
            expect![[r#"
                metadata.annotations[volume.beta.kubernetes.io/storage-class]: deprecated since v1.8; use "storageClassName" attribute instead
                spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.
                spec.cephfs: deprecated in v1.28, non-functional in v1.31+"#]],
        );
        check(
            claim,
            &json!({"spec": {"resources": {"requests": {"storage": "0.5"}}}}),
            expect![[
                r#"spec.resources.requests[storage]: fractional byte value "0.5" is invalid, must be an integer"#
            ]],
        );
        let old_class = json!({"metadata": {"annotations": {"kubernetes.io/ingress.class": "x"}}});
        check(
            ingress,
            &old_class,
            expect![[
                r#"annotation "kubernetes.io/ingress.class" is deprecated, please use 'spec.ingressClassName' instead"#
            ]],
        );
        assert!(ingress(&old_class, Some(&old_class)).is_empty());
    }
}

//! What objects use of a namespace's quota, and which quotas they count for: pure.
//!
//! Both admission (which charges) and the controller (which counts anew) ask here. Upstream:
//! "Resource Quotas" in the policy concepts. Start with [`usage`], then [`covers`].

use apimachinery::quantity::{Format, Quantity};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Quantities by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// Kinds of the core group that count under their own name too.
const PLAIN_COUNTS: [&str; 4] = [
    "configmaps",
    "secrets",
    "replicationcontrollers",
    "resourcequotas",
];
const CLASS_SUFFIX: &str = ".storageclass.storage.k8s.io/";

/// Reads a resource list.
pub fn amounts_of_list(list: &Value) -> Amounts {
    let entries = list.as_object().into_iter().flatten();
    entries
        .filter_map(|(name, q)| Some((name.clone(), Quantity::from_json(q)?)))
        .collect()
}

/// A resource list of amounts.
pub fn list_of_amounts(amounts: &Amounts) -> Value {
    let entries = amounts.iter();
    entries
        .map(|(name, q)| (name.clone(), Value::from(text_of(name, *q))))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// An amount as text: bytes in powers of 1024, all else in those of 1000.
pub fn text_of(resource: &str, q: Quantity) -> String {
    let bytes = ["memory", "storage", "hugepages-"];
    let binary = bytes.iter().any(|b| resource.contains(b));
    let format = if binary {
        Format::BinarySi
    } else {
        Format::DecimalSi
    };
    q.text(format)
}

/// `into + more`, entry by entry.
pub fn add(into: &mut Amounts, more: &Amounts) {
    for (name, q) in more {
        let sum = into.entry(name.clone()).or_default();
        sum.nano = sum.nano.saturating_add(q.nano);
    }
}

fn raise(into: &mut Amounts, to: &Amounts) {
    for (name, q) in to {
        let max = into.entry(name.clone()).or_default();
        *max = (*max).max(*q);
    }
}

/// What a pod asks for in all: its containers together, or an init container with those
/// that run beside it if that is more; and its overhead.
pub fn pod_requests(pod: &Value) -> Amounts {
    let mut all = pod_sum(pod, "requests");
    add(&mut all, &amounts_of_list(&pod["spec"]["overhead"]));
    all
}

/// What a pod is limited to in all; resources that not all containers limit are counted as
/// far as they do.
pub fn pod_limits(pod: &Value) -> Amounts {
    let mut all = pod_sum(pod, "limits");
    for (name, q) in amounts_of_list(&pod["spec"]["overhead"]) {
        if let Some(limit) = all.get_mut(&name) {
            limit.nano = limit.nano.saturating_add(q.nano);
        }
    }
    all
}

fn pod_sum(pod: &Value, what: &str) -> Amounts {
    let items = |list: &str| pod["spec"][list].as_array().into_iter().flatten();
    let mut sum = Amounts::new();
    for container in items("containers") {
        add(&mut sum, &amounts_of_list(&container["resources"][what]));
    }
    let (mut beside, mut peak) = (Amounts::new(), Amounts::new());
    for container in items("initContainers") {
        let own = amounts_of_list(&container["resources"][what]);
        if container["restartPolicy"] == "Always" {
            add(&mut sum, &own);
            add(&mut beside, &own);
            raise(&mut peak, &beside);
        } else {
            let mut at = own;
            add(&mut at, &beside);
            raise(&mut peak, &at);
        }
    }
    raise(&mut sum, &peak);
    // What the pod states for itself counts instead.
    sum.extend(amounts_of_list(&pod["spec"]["resources"][what]));
    sum
}

/// What an object uses, by all names that a quota may bound it under.
pub fn usage(group: &str, plural: &str, object: &Value) -> Amounts {
    let mut used = Amounts::new();
    let mut one = |name: String, n: i64| {
        used.insert(name, Quantity::from_value(n));
    };
    one(count_name(group, plural), 1);
    match (group, plural) {
        ("", "pods") if has_ended(object) => {}
        ("", "pods") => {
            one("pods".to_owned(), 1);
            compute(object, &mut used);
        }
        ("", "services") => {
            one(plural.to_owned(), 1);
            let ports = object["spec"]["ports"].as_array().map_or(0, Vec::len);
            let ports = i64::try_from(ports).unwrap_or(i64::MAX);
            let balanced = object["spec"]["type"] == "LoadBalancer";
            let allocates = object["spec"]["allocateLoadBalancerNodePorts"] != false;
            if balanced {
                one("services.loadbalancers".to_owned(), 1);
            }
            if object["spec"]["type"] == "NodePort" || (balanced && allocates) {
                one("services.nodeports".to_owned(), ports);
            }
        }
        ("", "persistentvolumeclaims") => {
            one(plural.to_owned(), 1);
            let class = storage_class(object);
            let by_class = |name: &str| format!("{class}{CLASS_SUFFIX}{name}");
            if !class.is_empty() {
                one(by_class("persistentvolumeclaims"), 1);
            }
            let asked = &object["spec"]["resources"]["requests"]["storage"];
            if let Some(size) = Quantity::from_json(asked) {
                used.insert("requests.storage".to_owned(), size);
                if !class.is_empty() {
                    used.insert(by_class("requests.storage"), size);
                }
            }
        }
        ("", _) if PLAIN_COUNTS.contains(&plural) => one(plural.to_owned(), 1),
        _ => {}
    }
    used
}

/// `count/PLURAL.GROUP`.
pub fn count_name(group: &str, plural: &str) -> String {
    if group.is_empty() {
        format!("count/{plural}")
    } else {
        format!("count/{plural}.{group}")
    }
}

/// Group and plural of the kind whose objects a resource name of a quota counts; none for
/// names that nothing is counted under.
pub fn counted_kind(resource: &str) -> Option<(&str, &str)> {
    if let Some(counted) = resource.strip_prefix("count/") {
        let (plural, group) = counted.split_once('.').unwrap_or((counted, ""));
        return Some((group, plural));
    }
    if resource.starts_with("services") {
        return Some(("", "services"));
    }
    let storage = resource == "persistentvolumeclaims" || resource == "requests.storage";
    if storage || resource.contains(CLASS_SUFFIX) {
        return Some(("", "persistentvolumeclaims"));
    }
    if let Some(plain) = PLAIN_COUNTS.iter().find(|p| **p == resource) {
        return Some(("", *plain));
    }
    let compute = ["requests.", "limits.", "hugepages-"];
    let plain = ["pods", "cpu", "memory", "ephemeral-storage"];
    let is_pods = plain.contains(&resource) || compute.iter().any(|c| resource.starts_with(c));
    is_pods.then_some(("", "pods"))
}

fn has_ended(pod: &Value) -> bool {
    matches!(
        pod["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed")
    )
}

/// The amounts of a pod's resources under their names in quotas.
fn compute(pod: &Value, used: &mut Amounts) {
    for (name, q) in pod_requests(pod) {
        let plain = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
        used.insert(format!("requests.{name}"), q);
        if plain || name.starts_with("hugepages-") {
            used.insert(name, q);
        }
    }
    for (name, q) in pod_limits(pod) {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            used.insert(format!("limits.{name}"), q);
        }
    }
}

fn storage_class(claim: &Value) -> &str {
    let named = claim["spec"]["storageClassName"].as_str();
    let old = &claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"];
    named.or(old.as_str()).unwrap_or_default()
}

/// Whether an object is of those that a quota's scopes pick.
pub fn covers(quota: &Value, group: &str, plural: &str, object: &Value) -> bool {
    let spec = &quota["spec"];
    let scopes = spec["scopes"].as_array().into_iter().flatten();
    let plain = scopes.map(|s| (s.as_str().unwrap_or_default(), "Exists", &Value::Null));
    let selected = &spec["scopeSelector"]["matchExpressions"];
    let selected = selected.as_array().into_iter().flatten().map(|e| {
        let text = |key: &str| e[key].as_str().unwrap_or_default();
        (text("scopeName"), text("operator"), &e["values"])
    });
    plain
        .chain(selected)
        .all(|(scope, operator, values)| in_scope(scope, operator, values, (group, plural), object))
}

fn in_scope(
    scope: &str,
    operator: &str,
    values: &Value,
    kind: (&str, &str),
    object: &Value,
) -> bool {
    let spec = &object["spec"];
    let named = |name: Option<&str>| {
        let name = name.filter(|n| !n.is_empty());
        let listed = values
            .as_array()
            .into_iter()
            .flatten()
            .any(|v| v.as_str() == name);
        match operator {
            "In" => name.is_some() && listed,
            "NotIn" => name.is_none() || !listed,
            "DoesNotExist" => name.is_none(),
            _ => name.is_some(),
        }
    };
    match (kind, scope) {
        (("", "pods"), "Terminating") => spec["activeDeadlineSeconds"].as_i64() >= Some(0),
        (("", "pods"), "NotTerminating") => spec["activeDeadlineSeconds"].as_i64() < Some(0),
        (("", "pods"), "BestEffort") => is_best_effort(object),
        (("", "pods"), "NotBestEffort") => !is_best_effort(object),
        (("", "pods"), "PriorityClass") => named(spec["priorityClassName"].as_str()),
        (("", "pods"), "CrossNamespacePodAffinity") => crosses_namespaces(&spec["affinity"]),
        (("", "persistentvolumeclaims"), "VolumeAttributesClass") => {
            let status = &object["status"]["currentVolumeAttributesClassName"];
            named(
                spec["volumeAttributesClassName"]
                    .as_str()
                    .or(status.as_str()),
            )
        }
        _ => false,
    }
}

fn is_best_effort(pod: &Value) -> bool {
    let states = |container: &Value| {
        ["requests", "limits"].iter().any(|list| {
            let of = amounts_of_list(&container["resources"][*list]);
            ["cpu", "memory"]
                .iter()
                .any(|name| of.get(*name).is_some_and(|q| q.nano != 0))
        })
    };
    !["containers", "initContainers"].iter().any(|list| {
        let containers = pod["spec"][*list].as_array().into_iter().flatten();
        containers.into_iter().any(states)
    })
}

fn crosses_namespaces(affinity: &Value) -> bool {
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let terms = |list: &str| affinity[*kind][list].as_array().into_iter().flatten();
        let preferred = terms(preferred).map(|t| &t["podAffinityTerm"]);
        terms(required).chain(preferred).any(|term| {
            !term["namespaceSelector"].is_null()
                || term["namespaces"].as_array().is_some_and(|n| !n.is_empty())
        })
    })
}

/// What a pod must state because a quota bounds it, and does not, as upstream words it.
pub fn unstated(hard: &Amounts, pod: &Value) -> Option<String> {
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for resource in hard.keys() {
        let (list, name) = match resource.split_once('.') {
            Some((list @ ("requests" | "limits"), name)) => (list, name),
            _ => ("requests", resource.as_str()),
        };
        if !matches!(name, "cpu" | "memory" | "ephemeral-storage") {
            continue;
        }
        if !pod["spec"]["resources"][list][name].is_null() {
            continue;
        }
        for containers in ["containers", "initContainers"] {
            for container in pod["spec"][containers].as_array().into_iter().flatten() {
                if container["resources"][list][name].is_null() {
                    let of = missing.entry(resource).or_default();
                    of.insert(container["name"].as_str().unwrap_or_default());
                }
            }
        }
    }
    let parts: Vec<String> = missing
        .iter()
        .map(|(resource, names)| {
            let names: Vec<&str> = names.iter().copied().collect();
            format!("{resource} for: {}", names.join(","))
        })
        .collect();
    (!parts.is_empty()).then(|| format!("must specify {}", parts.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    fn shown(amounts: &Amounts) -> String {
        let entries = amounts.iter();
        entries
            .map(|(name, q)| format!("{name}={}", text_of(name, *q)))
            .collect::<Vec<_>>()
            .join(",")
    }

    fn pod(spec: Value) -> Value {
        json!({"spec": spec})
    }

    #[test]
    fn a_pod_counts_its_containers_or_the_greatest_step_of_its_start() {
        let container = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        let mut beside = container("200m");
        beside["restartPolicy"] = "Always".into();
        let pod = pod(json!({
            "containers": [container("100m"), container("250m")],
            "initContainers": [container("1"), beside, container("700m")],
            "overhead": {"cpu": "10m", "memory": "1Mi"},
        }));
        assert_eq!(shown(&pod_requests(&pod)), "cpu=1010m,memory=1Mi");
        assert_eq!(shown(&pod_limits(&pod)), "");
    }

    /// Upstream: "Resource Quotas", the tables of what is bounded under which names.
    #[test]
    fn objects_are_used_under_all_their_names() {
        let of = |plural: &str, object: Value| shown(&usage("", plural, &object));
        let resources = json!({"requests": {"cpu": "1", "memory": "1Gi", "example.com/gpu": "2"},
            "limits": {"cpu": "2"}});
        expect!["count/pods=1,cpu=1,limits.cpu=2,memory=1Gi,pods=1,requests.cpu=1,requests.example.com/gpu=2,requests.memory=1Gi"]
            .assert_eq(&of("pods", pod(json!({"containers": [{"resources": resources}]}))));
        expect!["count/pods=1"].assert_eq(&of("pods", json!({"status": {"phase": "Failed"}})));
        expect!["count/services=1,services=1,services.loadbalancers=1,services.nodeports=2"]
            .assert_eq(&of(
                "services",
                json!({"spec": {"type": "LoadBalancer", "ports": [{}, {}]}}),
            ));
        expect!["count/persistentvolumeclaims=1,fast.storageclass.storage.k8s.io/persistentvolumeclaims=1,fast.storageclass.storage.k8s.io/requests.storage=5Gi,persistentvolumeclaims=1,requests.storage=5Gi"]
            .assert_eq(&of("persistentvolumeclaims", json!({"spec": {"storageClassName": "fast",
                "resources": {"requests": {"storage": "5Gi"}}}})));
        expect!["configmaps=1,count/configmaps=1"].assert_eq(&of("configmaps", json!({})));
        assert_eq!(
            shown(&usage("apps", "deployments", &json!({}))),
            "count/deployments.apps=1"
        );
        for (resource, kind) in [
            ("count/deployments.apps", Some(("apps", "deployments"))),
            ("count/pods", Some(("", "pods"))),
            ("services.nodeports", Some(("", "services"))),
            ("requests.storage", Some(("", "persistentvolumeclaims"))),
            ("requests.example.com/gpu", Some(("", "pods"))),
            ("secrets", Some(("", "secrets"))),
            ("unknown", None),
        ] {
            assert_eq!(counted_kind(resource), kind, "{resource}");
        }
    }

    /// Upstream: "Resource Quotas", "Quota scopes".
    #[test]
    fn scopes_pick_pods() {
        let finite = pod(json!({"activeDeadlineSeconds": 5, "priorityClassName": "high"}));
        let stated = pod(
            json!({"containers": [{"resources": {"limits": {"cpu": "1"}}}],
            "affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                [{"namespaceSelector": {}}]}}}),
        );
        let scope = |name: &str| json!({"spec": {"scopes": [name]}});
        let class = |operator: &str| {
            json!({"spec": {"scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": operator, "values": ["high"]}]}}})
        };
        for (quota, first, second) in [
            (json!({}), true, true),
            (scope("Terminating"), true, false),
            (scope("NotTerminating"), false, true),
            (scope("BestEffort"), true, false),
            (scope("NotBestEffort"), false, true),
            (scope("PriorityClass"), true, false),
            (scope("CrossNamespacePodAffinity"), false, true),
            (class("In"), true, false),
            (class("NotIn"), false, true),
            (class("DoesNotExist"), false, true),
        ] {
            let both = (
                covers(&quota, "", "pods", &finite),
                covers(&quota, "", "pods", &stated),
            );
            assert_eq!(both, (first, second), "{quota}");
        }
        assert!(!covers(&scope("BestEffort"), "", "services", &json!({})));
    }

    #[test]
    fn what_a_quota_bounds_must_be_stated() {
        let hard = amounts_of_list(&json!({"limits.cpu": "1", "memory": "1Gi", "pods": "3"}));
        let pod = pod(
            json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": "1"}}},
            {"name": "b"}]}),
        );
        assert_eq!(
            unstated(&hard, &pod).as_deref(),
            Some("must specify limits.cpu for: b; memory for: a,b")
        );
    }
}

//! Pods, pod templates and the volumes and probes in them.

use crate::access::{
    at, default, default_text, int, items_mut, list, object_entry, object_mut, text,
};
use apimachinery::quantity;
use serde_json::{Map, Value, json};

/// `Pod`.
pub(crate) fn pod(v: &mut Value) {
    let Some(spec) = object_mut(v, "spec") else {
        return;
    };
    pod_spec(spec);
    default(spec, "enableServiceLinks", true);
    for list in ["initContainers", "containers"] {
        for c in items_mut(spec, list) {
            requests_from_limits(c);
        }
    }
    if spec.get("resources").is_some() {
        requests_from_limits(spec);
    }
}

/// `PodTemplate`.
pub(crate) fn pod_template(v: &mut Value) {
    template(v, "template");
}

/// The pod template at a field.
pub(super) fn template(v: &mut Value, field: &str) {
    if let Some(spec) = object_mut(v, field).and_then(|t| object_mut(t, "spec")) {
        pod_spec(spec);
    }
}

fn pod_spec(spec: &mut Value) {
    default_text(spec, "restartPolicy", "Always");
    default(spec, "terminationGracePeriodSeconds", 30);
    default_text(spec, "dnsPolicy", "ClusterFirst");
    default_text(spec, "schedulerName", "default-scheduler");
    default(spec, "securityContext", json!({}));
    // The deprecated alias always says the same.
    let account = match text(spec, "serviceAccountName") {
        "" => text(spec, "serviceAccount"),
        name => name,
    }
    .to_owned();
    if !account.is_empty() {
        default_text(spec, "serviceAccountName", &account);
        spec["serviceAccount"] = account.into();
    }
    let host_network = at(spec, "hostNetwork") == true;
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for c in items_mut(spec, list) {
            container(c, host_network);
        }
    }
    if spec.get("resources").is_some() {
        canonical_resources(spec);
    }
    for v in items_mut(spec, "volumes") {
        volume(v);
    }
}

fn container(c: &mut Value, host_network: bool) {
    default_text(c, "terminationMessagePath", "/dev/termination-log");
    default_text(c, "terminationMessagePolicy", "File");
    let policy = pull_policy(text(c, "image"));
    default_text(c, "imagePullPolicy", policy);
    default(c, "resources", json!({}));
    canonical_resources(c);
    for p in items_mut(c, "ports") {
        default_text(p, "protocol", "TCP");
        if host_network && int(p, "hostPort") == 0 {
            let port = at(p, "containerPort").clone();
            p["hostPort"] = port;
        }
    }
    for e in items_mut(c, "env") {
        if let Some(field) = object_mut(e, "valueFrom").and_then(|f| object_mut(f, "fieldRef")) {
            default_text(field, "apiVersion", "v1");
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(p) = object_mut(c, name) {
            probe(p);
        }
    }
    if let Some(l) = object_mut(c, "lifecycle") {
        for name in ["postStart", "preStop"] {
            if let Some(http) = object_mut(l, name).and_then(|h| object_mut(h, "httpGet")) {
                http_get(http);
            }
        }
    }
}

/// `Always` for images whose tag moves, `IfNotPresent` for those that stay.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = match image.split_once('@') {
        Some((n, d)) => (n, Some(d)),
        None => (image, None),
    };
    let last = name.rsplit('/').next().unwrap_or(name);
    match (last.split_once(':'), digest) {
        (Some((_, "latest")), _) | (None, None) => "Always",
        _ => "IfNotPresent",
    }
}

fn probe(p: &mut Value) {
    for (name, value) in [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ] {
        if int(p, name) == 0 {
            p[name] = value.into();
        }
    }
    if let Some(http) = object_mut(p, "httpGet") {
        http_get(http);
    }
    if let Some(grpc) = object_mut(p, "grpc") {
        default(grpc, "service", "");
    }
}

fn http_get(http: &mut Value) {
    default_text(http, "path", "/");
    default_text(http, "scheme", "HTTP");
}

fn volume(v: &mut Value) {
    let Some(map) = v.as_object_mut() else { return };
    if map.iter().all(|(k, v)| k == "name" || v.is_null()) {
        map.insert("emptyDir".to_owned(), Value::Object(Map::new()));
    }
    for source in ["configMap", "secret", "downwardAPI", "projected"] {
        if let Some(s) = object_mut(v, source) {
            default(s, "defaultMode", 0o644);
            downward_items(s);
        }
    }
    if let Some(image) = object_mut(v, "image") {
        let policy = pull_policy(text(image, "reference"));
        default_text(image, "pullPolicy", policy);
    }
    if let Some(p) = object_mut(v, "projected") {
        for s in items_mut(p, "sources") {
            if let Some(t) = object_mut(s, "serviceAccountToken") {
                default(t, "expirationSeconds", 3600);
            }
            if let Some(d) = object_mut(s, "downwardAPI") {
                downward_items(d);
            }
        }
    }
    if let Some(h) = object_mut(v, "hostPath") {
        default(h, "type", "");
    }
    if let Some(i) = object_mut(v, "iscsi") {
        default_text(i, "iscsiInterface", "default");
    }
    if let Some(claim) = object_mut(v, "ephemeral")
        .and_then(|e| object_mut(e, "volumeClaimTemplate"))
        .and_then(|t| object_mut(t, "spec"))
    {
        default_text(claim, "volumeMode", "Filesystem");
    }
}

fn downward_items(source: &mut Value) {
    for item in items_mut(source, "items") {
        if let Some(field) = object_mut(item, "fieldRef") {
            default_text(field, "apiVersion", "v1");
        }
    }
}

/// Quantities are stored in their canonical text.
pub(super) fn canonical_resources(owner: &mut Value) {
    let Some(resources) = object_mut(owner, "resources") else {
        return;
    };
    for list in ["limits", "requests"] {
        if let Some(map) = resources.get_mut(list).and_then(Value::as_object_mut) {
            for q in map.values_mut() {
                canonical_quantity(q);
            }
        }
    }
}

/// Rewrites a quantity canonically; what is none is left for validation.
pub(crate) fn canonical_quantity(q: &mut Value) {
    let canonical = match &*q {
        Value::String(s) => quantity::canonical(s),
        Value::Number(n) => quantity::canonical(&n.to_string()),
        _ => return,
    };
    if let Ok(c) = canonical
        && q.as_str() != Some(&c)
    {
        *q = c.into();
    }
}

/// Who states only limits requests as much.
fn requests_from_limits(owner: &mut Value) {
    let Some(limits) = at(owner, "resources.limits").as_object().cloned() else {
        return;
    };
    let requests = object_mut(owner, "resources").and_then(|r| object_entry(r, "requests"));
    if let Some(requests) = requests {
        for (name, quantity) in limits {
            default(requests, &name, quantity);
        }
    }
}

/// `status.qosClass` of a pod.
pub(crate) fn qos_class(pod: &Value) -> &'static str {
    let spec = at(pod, "spec");
    let containers = || {
        list(spec, "initContainers")
            .iter()
            .chain(list(spec, "containers"))
    };
    let nonzero = |q: &Value| quantity::Quantity::from_json(q).is_some_and(|q| q.nano > 0);
    let amount = |c: &Value, list: &str, name: &str| {
        quantity::Quantity::from_json(at(c, &format!("resources.{list}.{name}")))
            .filter(|q| q.nano > 0)
    };
    let (mut any, mut guaranteed) = (false, true);
    for c in containers() {
        for name in ["cpu", "memory"] {
            let (request, limit) = (amount(c, "requests", name), amount(c, "limits", name));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
        }
    }
    // Requests of the whole pod stand above those of its containers.
    let whole = at(spec, "resources");
    if !whole.is_null() {
        let set = |list: &str, name: &str| nonzero(at(whole, &format!("{list}.{name}")));
        let names = ["cpu", "memory"];
        if names.iter().any(|n| set("requests", n) || set("limits", n)) {
            let same = |n: &str| {
                set("limits", n)
                    && at(whole, &format!("limits.{n}")) == at(whole, &format!("requests.{n}"))
            };
            return if names.iter().all(|n| same(n)) {
                "Guaranteed"
            } else {
                "Burstable"
            };
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn a_minimal_pod() {
        let mut v = json!({"spec": {
            "containers": [{
                "name": "a", "image": "x:5000/a",
                "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1000m", "memory": "1024Mi"}},
                "livenessProbe": {"httpGet": {"port": 80}},
                "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            }],
            "volumes": [{"name": "e"}, {"name": "c", "configMap": {"name": "c"}},
                {"name": "i", "image": {"reference": "x:5000/i"}},
                {"name": "j", "image": {"reference": "j:1"}}],
        }});
        pod(&mut v);
        let once = v.clone();
        pod(&mut v);
        assert_eq!(v, once, "idempotent");
        expect![[r#"{"spec":{"containers":[{"env":[{"name":"N","valueFrom":{"fieldRef":{"apiVersion":"v1","fieldPath":"metadata.name"}}}],"image":"x:5000/a","imagePullPolicy":"Always","livenessProbe":{"failureThreshold":3,"httpGet":{"path":"/","port":80,"scheme":"HTTP"},"periodSeconds":10,"successThreshold":1,"timeoutSeconds":1},"name":"a","ports":[{"containerPort":80,"protocol":"TCP"}],"resources":{"limits":{"cpu":"1","memory":"1Gi"},"requests":{"cpu":"1","memory":"1Gi"}},"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File"}],"dnsPolicy":"ClusterFirst","enableServiceLinks":true,"restartPolicy":"Always","schedulerName":"default-scheduler","securityContext":{},"terminationGracePeriodSeconds":30,"volumes":[{"emptyDir":{},"name":"e"},{"configMap":{"defaultMode":420,"name":"c"},"name":"c"},{"image":{"pullPolicy":"Always","reference":"x:5000/i"},"name":"i"},{"image":{"pullPolicy":"IfNotPresent","reference":"j:1"},"name":"j"}]}}"#]]
        .assert_eq(&v.to_string());
    }

    #[test]
    fn pull_policies() {
        for (image, want) in [
            ("a", "Always"),
            ("a:latest", "Always"),
            ("a:1", "IfNotPresent"),
            ("localhost:5000/a", "Always"),
            ("localhost:5000/a:1", "IfNotPresent"),
            ("a@sha256:00", "IfNotPresent"),
            ("a:latest@sha256:00", "Always"),
        ] {
            assert_eq!(pull_policy(image), want, "{image}");
        }
    }

    #[test]
    fn qos() {
        let class = |resources: Value| {
            qos_class(&json!({"spec": {"containers": [{"resources": resources}]}}))
        };
        assert_eq!(class(json!({})), "BestEffort");
        assert_eq!(class(json!({"requests": {"cpu": "1"}})), "Burstable");
        assert_eq!(
            class(json!({"requests": {"nvidia.com/gpu": "1"}})),
            "BestEffort"
        );
        assert_eq!(
            class(
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}})
            ),
            "Guaranteed"
        );
        assert_eq!(
            class(
                json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}})
            ),
            "Burstable"
        );
    }
}

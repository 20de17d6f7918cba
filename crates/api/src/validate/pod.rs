//! Pods and pod templates.

use super::volumes::{PULL_POLICIES, mounts, volumes};
use super::{Check, Unique, pod_context};
use crate::access::{at, int, is_empty, list, text};
use apimachinery::names;
use apimachinery::status::FieldError;
use serde_json::{Value, json};

pub(crate) use super::pod_update::pod_update;

const MAX_SECONDS: i64 = i32::MAX as i64;

/// `Pod`.
pub(crate) fn pod(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    spec(&mut c, "spec", at(v, "spec"));
    c.0
}

/// A pod template at `path`; `policies` are the restart policies that its owner allows.
pub(super) fn template(c: &mut Check, path: &str, v: &Value, policies: &[&str]) {
    c.labels(&format!("{path}.metadata.labels"), at(v, "metadata.labels"));
    let pod = at(v, "spec");
    let path = format!("{path}.spec");
    spec(c, &path, pod);
    let policy = at(pod, "restartPolicy");
    let known = matches!(policy.as_str(), Some("Always" | "OnFailure" | "Never"));
    if known && !policies.contains(&text(pod, "restartPolicy")) {
        c.add(FieldError::not_supported(
            format!("{path}.restartPolicy"),
            policy,
            policies,
        ));
    }
    if !is_empty(at(pod, "ephemeralContainers")) {
        c.forbidden(
            format!("{path}.ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        );
    }
}

fn spec(c: &mut Check, path: &str, v: &Value) {
    let volumes = volumes(c, &format!("{path}.volumes"), list(v, "volumes"));
    if list(v, "containers").is_empty() {
        c.required(format!("{path}.containers"), "");
    }
    let mut seen = Unique::default();
    for field in ["initContainers", "containers"] {
        for (i, one) in list(v, field).iter().enumerate() {
            let path = format!("{path}.{field}[{i}]");
            seen.check(c, format!("{path}.name"), at(one, "name"));
            container(c, &path, one, field == "initContainers");
            mounts(c, &path, one, &volumes);
        }
    }
    for (i, one) in list(v, "ephemeralContainers").iter().enumerate() {
        let path = format!("{path}.ephemeralContainers[{i}]");
        seen.check(c, format!("{path}.name"), at(one, "name"));
        ephemeral(c, &path, one, v);
        mounts(c, &path, one, &volumes);
    }
    super::claims::of_pod(c, path, v);
    host_ports(c, path, v);
    c.one_of(
        format!("{path}.restartPolicy"),
        at(v, "restartPolicy"),
        &["Always", "OnFailure", "Never"],
    );
    c.one_of(
        format!("{path}.dnsPolicy"),
        at(v, "dnsPolicy"),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    if text(v, "dnsPolicy") == "None" && list(v, "dnsConfig.nameservers").is_empty() {
        c.required(
            format!("{path}.dnsConfig.nameservers"),
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        );
    }
    c.labels(&format!("{path}.nodeSelector"), at(v, "nodeSelector"));
    if let Some(n) = at(v, "activeDeadlineSeconds").as_i64()
        && !(1..=MAX_SECONDS).contains(&n)
    {
        c.invalid(
            format!("{path}.activeDeadlineSeconds"),
            &json!(n),
            format!("must be between 1 and {MAX_SECONDS}, inclusive"),
        );
    }
    for (name, rule) in [
        ("hostname", names::dns1123_label as fn(&str) -> _),
        ("subdomain", names::dns1123_label),
        ("serviceAccountName", names::dns1123_subdomain),
        ("nodeName", names::dns1123_subdomain),
        ("priorityClassName", names::dns1123_subdomain),
        ("runtimeClassName", names::dns1123_subdomain),
    ] {
        if !is_empty(at(v, name)) {
            c.rule(format!("{path}.{name}"), at(v, name), rule);
        }
    }
    for (i, t) in list(v, "tolerations").iter().enumerate() {
        toleration(c, &format!("{path}.tolerations[{i}]"), t);
    }
    for (i, t) in list(v, "topologySpreadConstraints").iter().enumerate() {
        spread(c, &format!("{path}.topologySpreadConstraints[{i}]"), t);
    }
    pod_context::context(c, path, v);
}

fn ephemeral(c: &mut Check, path: &str, v: &Value, pod: &Value) {
    for field in [
        "ports",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle",
        "resources",
        "resizePolicy",
        "restartPolicy",
    ] {
        let stated = at(v, field);
        if !is_empty(stated) && stated != &json!({}) {
            c.forbidden(
                format!("{path}.{field}"),
                "cannot be set for an Ephemeral Container",
            );
        }
    }
    let target = text(v, "targetContainerName");
    let mut names = ["containers", "initContainers"]
        .into_iter()
        .flat_map(|field| list(pod, field))
        .map(|one| text(one, "name"));
    if !target.is_empty() && !names.any(|name| name == target) {
        c.add(FieldError::not_found(
            format!("{path}.targetContainerName"),
            at(v, "targetContainerName"),
        ));
    }
    container(c, path, v, false);
}

fn container(c: &mut Check, path: &str, v: &Value, init: bool) {
    c.required_rule(format!("{path}.name"), at(v, "name"), names::dns1123_label);
    let image = text(v, "image");
    if image.is_empty() {
        c.required(format!("{path}.image"), "");
    } else if image.trim() != image {
        c.invalid(
            format!("{path}.image"),
            at(v, "image"),
            "must not have leading or trailing whitespace",
        );
    }
    c.one_of(
        format!("{path}.terminationMessagePolicy"),
        at(v, "terminationMessagePolicy"),
        &["File", "FallbackToLogsOnError"],
    );
    c.one_of(
        format!("{path}.imagePullPolicy"),
        at(v, "imagePullPolicy"),
        PULL_POLICIES,
    );
    pod_context::resize_policy(c, path, v);
    ports(c, path, v);
    environment(c, path, v);
    resources(c, &format!("{path}.resources"), at(v, "resources"));

    let sidecar = text(v, "restartPolicy") == "Always";
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let p = at(v, name);
        let path = format!("{path}.{name}");
        if p.is_null() {
            continue;
        }
        if init && !sidecar {
            c.forbidden(
                path,
                "may not be set for init containers without restartPolicy=Always",
            );
            continue;
        }
        probe(c, &path, p);
        if name != "readinessProbe" && int(p, "successThreshold") != 1 {
            c.invalid(
                format!("{path}.successThreshold"),
                at(p, "successThreshold"),
                "must be 1",
            );
        }
    }
    if !at(v, "lifecycle").is_null() {
        if init && !sidecar {
            c.forbidden(
                format!("{path}.lifecycle"),
                "may not be set for init containers without restartPolicy=Always",
            );
        }
        for name in ["postStart", "preStop"] {
            let h = at(v, &format!("lifecycle.{name}"));
            if !h.is_null() {
                handler(
                    c,
                    &format!("{path}.lifecycle.{name}"),
                    h,
                    &["exec", "httpGet", "tcpSocket", "sleep"],
                );
            }
        }
    }
}

fn ports(c: &mut Check, path: &str, v: &Value) {
    let mut seen = Unique::default();
    for (i, p) in list(v, "ports").iter().enumerate() {
        let path = format!("{path}.ports[{i}]");
        if !is_empty(at(p, "name")) {
            c.rule(format!("{path}.name"), at(p, "name"), names::port_name);
            seen.check(c, format!("{path}.name"), at(p, "name"));
        }
        match int(p, "containerPort") {
            0 => c.required(format!("{path}.containerPort"), ""),
            _ => c.port(format!("{path}.containerPort"), at(p, "containerPort")),
        }
        if int(p, "hostPort") != 0 {
            c.port(format!("{path}.hostPort"), at(p, "hostPort"));
        }
        c.one_of(
            format!("{path}.protocol"),
            at(p, "protocol"),
            &["SCTP", "TCP", "UDP"],
        );
    }
}

fn host_ports(c: &mut Check, path: &str, v: &Value) {
    let mut taken = std::collections::HashSet::new();
    for (i, container) in list(v, "containers").iter().enumerate() {
        for (j, p) in list(container, "ports").iter().enumerate() {
            let port = int(p, "hostPort");
            let path = format!("{path}.containers[{i}].ports[{j}]");
            if port == 0 {
                continue;
            }
            if at(v, "hostNetwork") == true && int(p, "containerPort") != port {
                c.invalid(
                    format!("{path}.containerPort"),
                    at(p, "containerPort"),
                    "must match `hostPort` when `hostNetwork` is true",
                );
            }
            if !taken.insert((text(p, "protocol"), text(p, "hostIP"), port)) {
                let shown = format!("{}/{}/{port}", text(p, "protocol"), text(p, "hostIP"));
                c.add(FieldError::duplicate(
                    format!("{path}.hostPort"),
                    &json!(shown),
                ));
            }
        }
    }
}

fn environment(c: &mut Check, path: &str, v: &Value) {
    for (i, e) in list(v, "env").iter().enumerate() {
        let path = format!("{path}.env[{i}]");
        c.required_rule(format!("{path}.name"), at(e, "name"), names::env_name);
        let from = at(e, "valueFrom");
        if from.is_null() {
            continue;
        }
        let path = format!("{path}.valueFrom");
        let sources = [
            "fieldRef",
            "resourceFieldRef",
            "configMapKeyRef",
            "secretKeyRef",
            "fileKeyRef",
        ];
        match sources.iter().filter(|s| !at(from, s).is_null()).count() {
            0 => c.invalid(
                path.clone(),
                &json!(""),
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
            ),
            1 => {}
            _ => c.invalid(path.clone(), &json!(""), "may not have more than one field specified at a time"),
        }
        if !text(e, "value").is_empty() {
            c.invalid(
                path.clone(),
                &json!(""),
                "may not be specified when `value` is not empty",
            );
        }
        for reference in ["configMapKeyRef", "secretKeyRef"] {
            let r = at(from, reference);
            if r.is_null() {
                continue;
            }
            if text(r, "name").is_empty() {
                c.required(format!("{path}.{reference}.name"), "");
            }
            c.required_rule(
                format!("{path}.{reference}.key"),
                at(r, "key"),
                names::config_key,
            );
        }
        if !at(from, "fieldRef").is_null() && text(from, "fieldRef.fieldPath").is_empty() {
            c.required(format!("{path}.fieldRef.fieldPath"), "");
        }
    }
    for (i, e) in list(v, "envFrom").iter().enumerate() {
        let path = format!("{path}.envFrom[{i}]");
        let (map, secret) = (at(e, "configMapRef"), at(e, "secretRef"));
        match (map.is_null(), secret.is_null()) {
            (true, true) => c.invalid(
                path.clone(),
                &json!(""),
                "must specify one of: `configMapRef` or `secretRef`",
            ),
            (false, false) => c.invalid(
                path.clone(),
                &json!(""),
                "may not have more than one field specified at a time",
            ),
            _ => {}
        }
        for (name, r) in [("configMapRef", map), ("secretRef", secret)] {
            if !r.is_null() && text(r, "name").is_empty() {
                c.required(format!("{path}.{name}.name"), "");
            }
        }
    }
}

/// Requests and limits.
fn resources(c: &mut Check, path: &str, v: &Value) {
    let map = |name: &str| at(v, name).as_object().into_iter().flatten();
    for list in ["limits", "requests"] {
        for (name, q) in map(list) {
            let path = format!("{path}.{list}[{name}]");
            let shown = json!(name);
            if let Err(e) = names::qualified_name(name) {
                c.invalid(path.as_str(), &shown, e);
            }
            let standard = matches!(&**name, "cpu" | "memory" | "ephemeral-storage")
                || name.starts_with("hugepages-");
            if !standard && !name.contains('/') {
                c.invalid(
                    path.as_str(),
                    &shown,
                    "must be a standard resource type or fully qualified",
                );
                c.invalid(
                    path.as_str(),
                    &shown,
                    "must be a standard resource for containers",
                );
            }
            c.quantity(&path, q);
        }
    }
    for (name, request) in map("requests") {
        let limit = at(v, "limits").get(name).unwrap_or(&Value::Null);
        let amount = apimachinery::quantity::Quantity::from_json;
        if let (Some(r), Some(l)) = (amount(request), amount(limit)) {
            let shown = limit
                .as_str()
                .map_or_else(|| limit.to_string(), str::to_owned);
            let extended = name.contains('/');
            if r > l {
                c.invalid(
                    format!("{path}.requests"),
                    request,
                    format!("must be less than or equal to {name} limit of {shown}"),
                );
            } else if extended && r != l {
                c.invalid(
                    format!("{path}.requests"),
                    request,
                    format!("must be equal to {name} limit of {shown}"),
                );
            }
        }
    }
}

fn probe(c: &mut Check, path: &str, p: &Value) {
    handler(c, path, p, &["exec", "httpGet", "tcpSocket", "grpc"]);
    for name in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        c.not_negative(format!("{path}.{name}"), at(p, name));
    }
}

fn handler(c: &mut Check, path: &str, h: &Value, kinds: &[&str]) {
    let mut given = 0;
    for kind in kinds {
        let v = at(h, kind);
        if v.is_null() {
            continue;
        }
        let path = format!("{path}.{kind}");
        given += 1;
        if given > 1 {
            c.forbidden(path, "may not specify more than 1 handler type");
            continue;
        }
        match *kind {
            "exec" if list(v, "command").is_empty() => c.required(format!("{path}.command"), ""),
            "httpGet" => {
                if text(v, "path").is_empty() {
                    c.required(format!("{path}.path"), "");
                }
                c.port(format!("{path}.port"), at(v, "port"));
                c.one_of(
                    format!("{path}.scheme"),
                    at(v, "scheme"),
                    &["HTTP", "HTTPS"],
                );
            }
            "tcpSocket" | "grpc" => c.port(format!("{path}.port"), at(v, "port")),
            _ => {}
        }
    }
    if given == 0 {
        c.required(path, "must specify a handler type");
    }
}

fn toleration(c: &mut Check, path: &str, t: &Value) {
    if !is_empty(at(t, "key")) {
        c.rule(format!("{path}.key"), at(t, "key"), names::qualified_name);
    } else if !matches!(text(t, "operator"), "Exists") {
        c.invalid(
            format!("{path}.operator"),
            &json!(text(t, "operator")),
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        );
    }
    match text(t, "operator") {
        "" | "Equal" => c.rule(
            format!("{path}.operator"),
            &json!(text(t, "value")),
            names::label_value,
        ),
        "Exists" if !text(t, "value").is_empty() => c.invalid(
            format!("{path}.operator"),
            at(t, "value"),
            "value must be empty when `operator` is 'Exists'",
        ),
        "Exists" | "Gt" | "Lt" => {}
        _ => c.add(FieldError::not_supported(
            format!("{path}.operator"),
            at(t, "operator"),
            &["Equal", "Exists"],
        )),
    }
    if !at(t, "tolerationSeconds").is_null() && text(t, "effect") != "NoExecute" {
        c.invalid(
            format!("{path}.effect"),
            at(t, "effect"),
            "effect must be 'NoExecute' when `tolerationSeconds` is set",
        );
    }
    c.optional_one_of(
        format!("{path}.effect"),
        at(t, "effect"),
        &["NoSchedule", "PreferNoSchedule", "NoExecute"],
    );
}

fn spread(c: &mut Check, path: &str, t: &Value) {
    if int(t, "maxSkew") <= 0 {
        c.invalid(
            format!("{path}.maxSkew"),
            at(t, "maxSkew"),
            "must be greater than zero",
        );
    }
    if text(t, "topologyKey").is_empty() {
        c.required(format!("{path}.topologyKey"), "can not be empty");
    }
    c.one_of(
        format!("{path}.whenUnsatisfiable"),
        at(t, "whenUnsatisfiable"),
        &["DoNotSchedule", "ScheduleAnyway"],
    );
    c.selector(&format!("{path}.labelSelector"), at(t, "labelSelector"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(spec: Value, want: Expect) {
        let mut v = json!({"metadata": {"name": "p"}, "spec": spec});
        crate::defaults::pod::pod(&mut v);
        let all: Vec<String> = pod(&v).iter().map(ToString::to_string).collect();
        want.assert_eq(&all.join("\n"));
    }

    #[test]
    fn a_good_pod() {
        check(
            json!({
                "containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 80, "name": "http"}],
                    "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                    "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                    "resources": {"limits": {"cpu": "1", "example.com/gpu": 1}},
                    "readinessProbe": {"httpGet": {"port": "http"}}}],
                "volumes": [{"name": "v"}],
                "tolerations": [{"operator": "Exists"}],
            }),
            expect![""],
        );
    }

    #[test]
    fn containers() {
        check(json!({}), expect!["spec.containers: Required value"]);
        check(
            json!({"containers": [{"name": "a", "image": "x"}, {"name": "a"}, {"image": " x"}]}),
            expect![[r#"
                spec.containers[1].name: Duplicate value: "a"
                spec.containers[1].image: Required value
                spec.containers[2].name: Required value
                spec.containers[2].image: Invalid value: " x": must not have leading or trailing whitespace"#]],
        );
        check(
            json!({"containers": [{"name": "a", "image": "x", "imagePullPolicy": "Sometimes",
                "ports": [{"containerPort": 70000}, {"name": "x", "containerPort": 1}, {"name": "x", "containerPort": 2, "protocol": "ICMP"}],
                "livenessProbe": {"periodSeconds": -1, "successThreshold": 2},
                "env": [{"name": "A=B"}, {"name": "C", "value": "1", "valueFrom": {}}],
                "volumeMounts": [{"name": "nope", "mountPath": "/a"}],
                "resources": {"limits": {"cpu": "1", "gpu": 1}, "requests": {"cpu": "2", "memory": "-1"}}}]}),
            expect![[r#"
                spec.containers[0].imagePullPolicy: Unsupported value: "Sometimes": supported values: "Always", "IfNotPresent", "Never"
                spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive
                spec.containers[0].ports[2].name: Duplicate value: "x"
                spec.containers[0].ports[2].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"
                spec.containers[0].env[0].name: Invalid value: "A=B": a valid environment variable name must consist only of printable ASCII characters other than '='
                spec.containers[0].env[1].valueFrom: Invalid value: "": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`
                spec.containers[0].env[1].valueFrom: Invalid value: "": may not be specified when `value` is not empty
                spec.containers[0].resources.limits[gpu]: Invalid value: "gpu": must be a standard resource type or fully qualified
                spec.containers[0].resources.limits[gpu]: Invalid value: "gpu": must be a standard resource for containers
                spec.containers[0].resources.requests[gpu]: Invalid value: "gpu": must be a standard resource type or fully qualified
                spec.containers[0].resources.requests[gpu]: Invalid value: "gpu": must be a standard resource for containers
                spec.containers[0].resources.requests[memory]: Invalid value: "-1": must be greater than or equal to 0
                spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1
                spec.containers[0].livenessProbe: Required value: must specify a handler type
                spec.containers[0].livenessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0
                spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1
                spec.containers[0].volumeMounts[0].name: Not found: "nope""#]],
        );
    }

    #[test]
    fn devices_are_claims() {
        check(
            json!({"containers": [{"name": "a", "image": "x",
                "volumeDevices": [{"name": "c", "devicePath": "/dev/c"}, {"name": "e", "devicePath": "/dev/e"}]}],
                "terminationGracePeriodSeconds": -1,
                "volumes": [{"name": "c", "persistentVolumeClaim": {"claimName": "c"}},
                    {"name": "e", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}]}),
            expect![""],
        );
        check(
            json!({"containers": [{"name": "a", "image": "x",
                "volumeMounts": [{"name": "c", "mountPath": "/dev/c"}],
                "volumeDevices": [{"name": "c", "devicePath": "/dev/c"}, {"name": "c", "devicePath": "/dev/c"},
                    {"name": "v", "devicePath": "/dev/../v"}, {"name": "no"}, {"devicePath": "/dev/x"}]}],
                "volumes": [{"name": "c", "persistentVolumeClaim": {"claimName": "c"}}, {"name": "v"}]}),
            expect![[r#"
                spec.containers[0].volumeDevices[0].name: Invalid value: "c": must not already exist in volumeMounts
                spec.containers[0].volumeDevices[0].devicePath: Invalid value: "/dev/c": must not already exist as a path in volumeMounts
                spec.containers[0].volumeDevices[1].name: Invalid value: "c": must be unique
                spec.containers[0].volumeDevices[1].devicePath: Invalid value: "/dev/c": must be unique
                spec.containers[0].volumeDevices[1].name: Invalid value: "c": must not already exist in volumeMounts
                spec.containers[0].volumeDevices[1].devicePath: Invalid value: "/dev/c": must not already exist as a path in volumeMounts
                spec.containers[0].volumeDevices[2].name: Invalid value: "v": can only use volume source type of PersistentVolumeClaim for block mode
                spec.containers[0].volumeDevices[2].devicePath: Invalid value: "/dev/../v": can not contain backsteps ('..')
                spec.containers[0].volumeDevices[3].name: Not found: "no"
                spec.containers[0].volumeDevices[3].devicePath: Required value
                spec.containers[0].volumeDevices[4].name: Required value
                spec.containers[0].volumeDevices[4].name: Not found: ""
                spec.containers[0].volumeMounts[0].name: Invalid value: "c": must not already exist in volumeDevices
                spec.containers[0].volumeMounts[0].mountPath: Invalid value: "/dev/c": must not already exist as a path in volumeDevices"#]],
        );
    }

    #[test]
    fn the_rest_of_a_pod() {
        check(
            json!({"containers": [{"name": "a", "image": "x"}], "restartPolicy": "Maybe", "dnsPolicy": "None",
                "activeDeadlineSeconds": 0, "hostname": "a.b", "tolerations": [{"key": "k", "operator": "Exists", "value": "v"}],
                "volumes": [{"name": "v", "emptyDir": {}, "configMap": {"name": "c"}}, {"name": "v", "configMap": {}},
                    {"name": "i", "image": {"pullPolicy": "Sometimes"}}]}),
            expect![[r#"
                spec.volumes[0].configMap: Forbidden: may not specify more than 1 volume type
                spec.volumes[1].configMap.name: Required value
                spec.volumes[1].name: Duplicate value: "v"
                spec.volumes[2].image.reference: Required value
                spec.volumes[2].image.pullPolicy: Unsupported value: "Sometimes": supported values: "Always", "IfNotPresent", "Never"
                spec.restartPolicy: Unsupported value: "Maybe": supported values: "Always", "OnFailure", "Never"
                spec.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver when `dnsPolicy` is None
                spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive
                spec.hostname: Invalid value: "a.b": must not contain dots
                spec.tolerations[0].operator: Invalid value: "v": value must be empty when `operator` is 'Exists'"#]],
        );
    }
}

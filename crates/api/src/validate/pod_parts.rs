//! What subresources of a pod may change of it: `resize` and `ephemeralcontainers`. Upstream's
//! `ValidatePodResize` and `ValidatePodEphemeralContainersUpdate`.

use super::Check;
use crate::access::{at, list, text};
use crate::defaults::pod::qos_class;
use apimachinery::status::FieldError;
use serde_json::Value;

/// What is wrong with a pod that was written through a subresource.
pub fn part_errors(subresource: &str, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    match subresource {
        "resize" => resize(&mut c, new, old),
        "ephemeralcontainers" => ephemeral(&mut c, new, old),
        _ => {}
    }
    c.0
}

fn resize(c: &mut Check, new: &Value, old: &Value) {
    let annotations = at(old, "metadata.annotations");
    if !annotations["kubernetes.io/config.mirror"].is_null() {
        c.forbidden("metadata", "static pods cannot be resized");
        return;
    }
    let class = match text(old, "status.qosClass") {
        "" => qos_class(old),
        set => set,
    };
    if class != qos_class(new) {
        let why = "Pod QOS Class may not change as a result of resizing";
        c.invalid("spec", &class.into(), why);
    }
    for field in ["initContainers", "containers"] {
        let pairs = list(at(new, "spec"), field).iter();
        let pairs = pairs.zip(list(at(old, "spec"), field));
        for (i, (new, old)) in pairs.enumerate() {
            container(c, &format!("spec.{field}[{i}].resources"), field, new, old);
        }
    }
}

fn container(c: &mut Check, path: &str, field: &str, new: &Value, old: &Value) {
    let fixed = field == "initContainers" && text(old, "restartPolicy") != "Always";
    if fixed && at(new, "resources") != at(old, "resources") {
        c.forbidden(
            path,
            "resources for non-sidecar init containers are immutable",
        );
        return;
    }
    for kind in ["requests", "limits"] {
        let of = |v: &Value| {
            let found = at(v, "resources")
                .get(kind)
                .and_then(Value::as_object)
                .cloned();
            found.unwrap_or_default()
        };
        let (new, old) = (of(new), of(old));
        let path = format!("{path}.{kind}");
        let resizable = |name: &str| matches!(name, "cpu" | "memory");
        if old
            .keys()
            .any(|name| resizable(name) && !new.contains_key(name))
        {
            c.forbidden(path.as_str(), format!("resource {kind} cannot be removed"));
        }
        let other = |all: &serde_json::Map<String, Value>| {
            let mut all = all.clone();
            all.retain(|name, _| !resizable(name));
            all
        };
        if other(&new) != other(&old) {
            c.forbidden(path, "only cpu and memory resources are mutable");
        }
    }
}

fn ephemeral(c: &mut Check, new: &Value, old: &Value) {
    let all = list(new, "spec.ephemeralContainers");
    for before in list(old, "spec.ephemeralContainers") {
        let name = text(before, "name");
        match all.iter().find(|c| text(c, "name") == name) {
            None => c.forbidden(
                "spec.ephemeralContainers",
                format!("existing ephemeral containers {name:?} may not be removed\n"),
            ),
            Some(now) if now != before => c.forbidden(
                "spec.ephemeralContainers",
                format!("existing ephemeral containers {name:?} may not be changed\n"),
            ),
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use serde_json::json;

    fn check(part: &str, new: Value, old: Value, expected: Expect) {
        let errors = part_errors(part, &json!({"spec": new}), &json!({"spec": old}));
        let lines: Vec<String> = errors.iter().map(|e| e.to_string()).collect();
        expected.assert_eq(&lines.join("\n"));
    }

    fn pod(requests: Value, limits: Value) -> Value {
        json!({"containers": [{"name": "a", "resources": {"requests": requests, "limits": limits}}]})
    }

    #[test]
    fn what_a_resize_may_do() {
        let old = pod(
            json!({"cpu": "1"}),
            json!({"memory": "1Gi", "example.com/gpu": "1"}),
        );
        check(
            "resize",
            pod(
                json!({"cpu": "2", "memory": "1Mi"}),
                json!({"memory": "1Mi", "example.com/gpu": "1"}),
            ),
            old.clone(),
            expect![""],
        );
        check(
            "resize",
            pod(json!({}), json!({"memory": "1Gi", "example.com/gpu": "2"})),
            old.clone(),
            expect![[r#"
                spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed
                spec.containers[0].resources.limits: Forbidden: only cpu and memory resources are mutable"#]],
        );
        let all = json!({"cpu": "1", "memory": "1Gi"});
        check(
            "resize",
            pod(all.clone(), all),
            pod(json!({"cpu": "1"}), json!({})),
            expect![[
                r#"spec: Invalid value: "Burstable": Pod QOS Class may not change as a result of resizing"#
            ]],
        );
    }

    #[test]
    fn ephemeral_containers_stay_as_they_are() {
        let one = |image: &str| json!([{"name": "d", "image": image}]);
        check(
            "ephemeralcontainers",
            json!({"ephemeralContainers": [{"name": "e", "image": "x"}, {"name": "d", "image": "x"}]}),
            json!({"ephemeralContainers": one("x")}),
            expect![""],
        );
        check(
            "ephemeralcontainers",
            json!({"ephemeralContainers": one("y")}),
            json!({"ephemeralContainers": one("x")}),
            expect![[r#"
                spec.ephemeralContainers: Forbidden: existing ephemeral containers "d" may not be changed
            "#]],
        );
    }
}

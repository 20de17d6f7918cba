//! LimitRanger: LimitRanges fill in what containers don't say, and bound pods, their
//! containers and claims.
//!
//! Upstream: "Limit Ranges" in the policy concepts; the messages are its.

use super::Operation;
use crate::registry::Call;
use api::quota::{Amounts, amounts_of_list, pod_limits, pod_requests};
use apimachinery::Status;
use apimachinery::quantity::Quantity;
use serde_json::{Value, json};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// Fills in a new pod.
pub(super) fn mutate(call: &Call<'_>, pod: &mut Value) {
    for range in ranges(call) {
        fill_in(&range, pod);
    }
}

/// Checks a new pod or claim, or one that is resized.
pub(super) fn validate(call: &Call<'_>, operation: Operation, new: &Value) -> Result<(), Status> {
    let errors_of: fn(&Value, &Value) -> Vec<String> =
        match (call.row.known(), call.subresource, operation) {
            ("pods", "", Operation::Create) | ("pods", "resize", _) => pod_errors,
            ("persistentvolumeclaims", "", _) => claim_errors,
            _ => return Ok(()),
        };
    for range in ranges(call) {
        let errors = errors_of(&range, new);
        match &errors[..] {
            [] => {}
            [one] => return Err(call.forbidden(one)),
            many => return Err(call.forbidden(format!("[{}]", many.join(", ")))),
        }
    }
    Ok(())
}

fn ranges(call: &Call<'_>) -> Vec<Value> {
    let Some(kind) = call.core.cache.named("", "limitranges") else {
        return Vec::new();
    };
    if kind.len() == 0 {
        return Vec::new();
    }
    let all = kind.all().into_iter();
    all.filter(|o| o.namespace() == call.namespace)
        .map(|o| o.value())
        .collect()
}

fn items<'a>(range: &'a Value, of: &str) -> impl Iterator<Item = &'a Value> {
    let all = range["spec"]["limits"].as_array().into_iter().flatten();
    let of = of.to_owned();
    all.filter(move |item| item["type"] == of.as_str())
}

fn fill_in(range: &Value, pod: &mut Value) {
    let mut told = Vec::new();
    for (list, what) in [
        ("containers", "container"),
        ("initContainers", "init container"),
    ] {
        let containers = pod["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            for (from, to, word) in [
                ("default", "limits", "limit"),
                ("defaultRequest", "requests", "request"),
            ] {
                let set = fill(range, container, from, to);
                if !set.is_empty() {
                    told.push(format!("{} {word} for {what} {name}", set.join(", ")));
                }
            }
        }
    }
    if !told.is_empty() {
        let text = format!("LimitRanger plugin set: {}", told.join("; "));
        if !pod["metadata"]["annotations"].is_object() {
            pod["metadata"]["annotations"] = json!({});
        }
        pod["metadata"]["annotations"][ANNOTATION] = text.into();
    }
}

/// Copies the amounts of `from` that a container's `to` lacks; their names.
fn fill(range: &Value, container: &mut Value, from: &str, to: &str) -> Vec<String> {
    let mut set = Vec::new();
    for item in items(range, "Container") {
        for (name, quantity) in item[from].as_object().into_iter().flatten() {
            if !container["resources"].is_object() {
                container["resources"] = json!({});
            }
            if !container["resources"][to].is_object() {
                container["resources"][to] = json!({});
            }
            if container["resources"][to][name].is_null() {
                container["resources"][to][name] = quantity.clone();
                set.push(name.clone());
            }
        }
    }
    set
}

fn pod_errors(range: &Value, pod: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    for item in items(range, "Container") {
        for list in ["containers", "initContainers"] {
            for container in pod["spec"][list].as_array().into_iter().flatten() {
                let requests = amounts_of_list(&container["resources"]["requests"]);
                let limits = amounts_of_list(&container["resources"]["limits"]);
                check(item, &requests, &limits, &mut errors);
            }
        }
    }
    for item in items(range, "Pod") {
        check(item, &pod_requests(pod), &pod_limits(pod), &mut errors);
    }
    errors
}

fn claim_errors(range: &Value, claim: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    let requests = amounts_of_list(&claim["spec"]["resources"]["requests"]);
    for item in items(range, "PersistentVolumeClaim") {
        for_each(item, "min", |name, text, bound| {
            errors.extend(below(item, name, text, bound, &requests, &Amounts::new()));
        });
        for_each(item, "max", |name, text, bound| {
            let start = format!("maximum {name} usage per {} is {text}", kind(item));
            match requests.get(name) {
                None => errors.push(format!("{start}.  No request is specified")),
                Some(q) if *q > bound => {
                    errors.push(format!("{start}, but request is {}", shown(name, *q)));
                }
                Some(_) => {}
            }
        });
    }
    errors
}

fn check(item: &Value, requests: &Amounts, limits: &Amounts, errors: &mut Vec<String>) {
    for_each(item, "min", |name, text, bound| {
        errors.extend(below(item, name, text, bound, requests, limits));
    });
    for_each(item, "max", |name, text, bound| {
        let start = format!("maximum {name} usage per {} is {text}", kind(item));
        match (limits.get(name), requests.get(name)) {
            (None, _) => errors.push(format!("{start}.  No limit is specified")),
            (Some(limit), _) if *limit > bound => {
                errors.push(format!("{start}, but limit is {}", shown(name, *limit)));
            }
            (_, Some(request)) if *request > bound => {
                errors.push(format!("{start}, but request is {}", shown(name, *request)));
            }
            _ => {}
        }
    });
    for_each(item, "maxLimitRequestRatio", |name, text, bound| {
        let start = format!(
            "{name} max limit to request ratio per {} is {text}",
            kind(item)
        );
        let some = |amounts: &Amounts| amounts.get(name).copied().filter(|q| q.nano != 0);
        match (some(requests), some(limits)) {
            (None, _) => {
                errors.push(format!(
                    "{start}, but no request is specified or request is 0"
                ));
            }
            (_, None) => errors.push(format!("{start}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) => {
                let ratio = as_f64(limit) / as_f64(request);
                if ratio > as_f64(bound) / as_f64(Quantity::from_value(1)) {
                    errors.push(format!("{start}, but provided ratio is {ratio:.6}"));
                }
            }
        }
    });
}

fn below(
    item: &Value,
    name: &str,
    text: &str,
    bound: Quantity,
    requests: &Amounts,
    limits: &Amounts,
) -> Option<String> {
    let start = format!("minimum {name} usage per {} is {text}", kind(item));
    match (requests.get(name), limits.get(name)) {
        (None, _) => Some(format!("{start}.  No request is specified")),
        (Some(request), _) if *request < bound => {
            Some(format!("{start}, but request is {}", shown(name, *request)))
        }
        (_, Some(limit)) if *limit < bound => {
            Some(format!("{start}, but limit is {}", shown(name, *limit)))
        }
        _ => None,
    }
}

fn for_each(item: &Value, list: &str, mut f: impl FnMut(&str, &str, Quantity)) {
    for (name, text) in item[list].as_object().into_iter().flatten() {
        if let Some(quantity) = Quantity::from_json(text) {
            f(name, text.as_str().unwrap_or_default(), quantity);
        }
    }
}

fn kind(item: &Value) -> &str {
    item["type"].as_str().unwrap_or_default()
}

fn shown(name: &str, q: Quantity) -> String {
    api::quota::text_of(name, q)
}

#[allow(clippy::cast_precision_loss, reason = "only the ratio is looked at")]
fn as_f64(q: Quantity) -> f64 {
    q.nano as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(item: Value) -> Value {
        json!({"spec": {"limits": [item]}})
    }

    fn pod(resources: Value) -> Value {
        json!({"metadata": {}, "spec": {"containers": [
            {"name": "a", "resources": resources}, {"name": "b", "resources": {
                "requests": {"cpu": "1"}, "limits": {"cpu": "1"}}}]}})
    }

    /// Upstream: "Configure Default Memory Requests and Limits for a Namespace".
    #[test]
    fn what_containers_leave_out_is_filled_in() {
        let range = range(json!({"type": "Container",
            "default": {"cpu": "500m", "memory": "1Gi"}, "defaultRequest": {"cpu": "100m"}}));
        let mut pod = pod(json!({}));
        fill_in(&range, &mut pod);
        let containers = &pod["spec"]["containers"];
        let wanted =
            json!({"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "100m"}});
        assert_eq!(containers[0]["resources"], wanted);
        assert_eq!(
            containers[1]["resources"]["limits"],
            json!({"cpu": "1", "memory": "1Gi"})
        );
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu, memory limit for container a; cpu request for container a; memory limit for container b"
        );
    }

    /// Upstream: "Configure Minimum and Maximum CPU Constraints for a Namespace".
    #[test]
    fn what_is_out_of_bounds_is_told_as_upstream_does() {
        let container = range(json!({"type": "Container", "max": {"cpu": "800m"},
            "min": {"cpu": "200m"}, "maxLimitRequestRatio": {"cpu": "2"}}));
        let errors = |resources| pod_errors(&container, &pod(resources)).join("\n");
        let both = |request: &str, limit: &str| json!({"requests": {"cpu": request}, "limits": {"cpu": limit}});
        let b = "maximum cpu usage per Container is 800m, but limit is 1";
        assert_eq!(errors(both("500m", "800m")), b);
        assert_eq!(
            errors(both("100m", "100m")),
            format!("minimum cpu usage per Container is 200m, but request is 100m\n{b}")
        );
        assert_eq!(
            errors(both("200m", "600m")),
            format!(
                "cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000\n{b}"
            )
        );
        let whole =
            range(json!({"type": "Pod", "max": {"cpu": "1500m"}, "min": {"memory": "1Gi"}}));
        assert_eq!(
            pod_errors(&whole, &pod(both("1", "1"))),
            [
                "minimum memory usage per Pod is 1Gi.  No request is specified",
                "maximum cpu usage per Pod is 1500m, but limit is 2",
            ]
        );
    }

    /// Upstream: "Limit Storage Consumption".
    #[test]
    fn claims_are_bounded_too() {
        let range = range(json!({"type": "PersistentVolumeClaim",
            "max": {"storage": "2Gi"}, "min": {"storage": "1Gi"}}));
        let claim = |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}});
        assert_eq!(claim_errors(&range, &claim("2Gi")), Vec::<String>::new());
        assert_eq!(
            claim_errors(&range, &claim("3Gi")),
            ["maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"]
        );
        assert_eq!(
            claim_errors(&range, &claim("1Mi")),
            ["minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi"]
        );
    }
}

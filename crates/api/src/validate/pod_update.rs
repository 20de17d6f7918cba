//! What of a pod may change once it is there: hardly anything.

use super::Check;
use crate::access::{at, int, is_empty, items_mut, list, text};
use crate::partition::{self, Contract};
use apimachinery::status::FieldError;
use serde_json::Value;

const ONLY_THESE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// `Pod`, written through the main resource.
pub(crate) fn pod_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    contract(&mut c, new, old);
    let (new, old) = (at(new, "spec"), at(old, "spec"));
    for field in ["containers", "initContainers"] {
        if list(new, field).len() != list(old, field).len() {
            c.forbidden(
                format!("spec.{field}"),
                "pod updates may not add or remove containers",
            );
            return c.0;
        }
    }
    deadline(&mut c, new, old);
    for t in list(old, "tolerations") {
        if !list(new, "tolerations")
            .iter()
            .any(|n| same_toleration(n, t))
        {
            c.forbidden(
                "spec.tolerations",
                "existing toleration can not be modified except its tolerationSeconds",
            );
            return c.0;
        }
    }
    for gate in list(new, "schedulingGates") {
        if !list(old, "schedulingGates").contains(gate) {
            c.forbidden(
                "spec.schedulingGates",
                format!(
                    "only deletion is allowed, but found new scheduling gate '{}'",
                    text(gate, "name")
                ),
            );
        }
    }

    let gated = !list(old, "schedulingGates").is_empty();
    let (mut after, before) = (frozen(new, gated), frozen(old, gated));
    const GRACE: &str = "terminationGracePeriodSeconds";
    if int(old, GRACE) < 0 && int(new, GRACE) == 1 {
        after[GRACE] = at(old, GRACE).clone();
    }
    if after != before {
        c.forbidden("spec", ONLY_THESE);
    }
    c.0
}

/// A node that is cut off would hold the pod to the old contract, and the server to the new.
fn contract(c: &mut Check, new: &Value, old: &Value) {
    let of = |v: &Value| {
        let all = at(v, "metadata.annotations");
        Contract::of(|key| all.get(key)?.as_str())
    };
    if !is_empty(at(old, "spec.nodeName")) && of(new) != of(old) {
        c.forbidden(
            format!("metadata.annotations[{}]", partition::ANNOTATION),
            "the partition contract may not change once the pod is bound",
        );
    }
}

fn deadline(c: &mut Check, new: &Value, old: &Value) {
    let path = "spec.activeDeadlineSeconds";
    let (n, o) = (
        at(new, "activeDeadlineSeconds"),
        at(old, "activeDeadlineSeconds"),
    );
    match (n.as_i64(), o.as_i64()) {
        (Some(n), Some(o)) if n > o => c.invalid(
            path,
            &Value::from(n),
            "must be less than or equal to previous value",
        ),
        (None, Some(_)) => c.invalid(
            path,
            n,
            "must not update from a positive integer to nil value",
        ),
        _ => {}
    }
}

fn same_toleration(a: &Value, b: &Value) -> bool {
    ["key", "operator", "value", "effect"]
        .iter()
        .all(|f| text(a, f) == text(b, f))
}

/// A pod spec without what may change.
fn frozen(spec: &Value, gated: bool) -> Value {
    let mut spec = spec.clone();
    for field in ["containers", "initContainers"] {
        for c in items_mut(&mut spec, field) {
            if let Some(c) = c.as_object_mut() {
                c.remove("image");
            }
        }
    }
    if let Some(map) = spec.as_object_mut() {
        for field in [
            "activeDeadlineSeconds",
            "tolerations",
            "schedulingGates",
            // Written together with the name that it repeats.
            "serviceAccount",
        ] {
            map.remove(field);
        }
        if gated {
            map.remove("nodeSelector");
            map.remove("affinity");
        }
        map.retain(|_, v| !is_empty(v));
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn little_may_change() {
        let old = json!({"spec": {"containers": [{"name": "a", "image": "x"}], "tolerations": [{"key": "k"}]}});
        let changed = |f: fn(&mut Value)| {
            let mut new = old.clone();
            f(&mut new["spec"]);
            let all: Vec<String> = pod_update(&new, &old)
                .iter()
                .map(|e| e.field.clone())
                .collect();
            all.join(",")
        };
        assert_eq!(changed(|s| s["containers"][0]["image"] = "y".into()), "");
        assert_eq!(changed(|s| s["activeDeadlineSeconds"] = 5.into()), "");
        assert_eq!(
            changed(|s| s["tolerations"] = json!([{"key": "k"}, {"key": "l"}])),
            ""
        );
        assert_eq!(
            changed(|s| s["tolerations"] = json!([])),
            "spec.tolerations"
        );
        assert_eq!(changed(|s| s["containers"][0]["name"] = "b".into()), "spec");
        assert_eq!(changed(|s| s["nodeName"] = "n".into()), "spec");
        assert_eq!(changed(|s| s["containers"] = json!([])), "spec.containers");
        let grace = |from: i64, to: i64| {
            let pod = |s: i64| json!({"spec": {"terminationGracePeriodSeconds": s}});
            pod_update(&pod(to), &pod(from)).is_empty()
        };
        assert_eq!(
            [grace(-1, 1), grace(-1, 2), grace(30, 1), grace(-1, -1)],
            [true, false, false, true]
        );
    }

    #[test]
    fn the_partition_contract_stays_once_a_node_has_it() {
        let pod = |node: &str, when: &str, other: &str| {
            json!({"metadata": {"annotations": {"salp.dev/when-disconnected": when, "a": other}},
                "spec": {"nodeName": node}})
        };
        let fields = |old: &Value, new: &Value| pod_update(new, old).len();
        assert_eq!(fields(&pod("", "stop", ""), &pod("", "keep", "")), 0);
        assert_eq!(fields(&pod("n", "stop", ""), &pod("n", "stop", "b")), 0);
        assert_eq!(fields(&pod("n", "stop", ""), &pod("n", "keep", "")), 1);
        assert_eq!(fields(&pod("n", "", ""), &pod("n", "stop", "")), 1);
    }
}

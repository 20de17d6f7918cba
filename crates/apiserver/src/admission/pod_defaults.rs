//! DefaultTolerationSeconds and Priority.

use crate::registry::{Call, meta};
use api::constants::{TAINT_NOT_READY, TAINT_UNREACHABLE};
use apimachinery::Status;
use serde_json::{Value, json};

/// Seconds that a pod stays on a node that is not ready or not heard from.
const TOLERATION_SECONDS: i64 = 300;

/// Lets a pod stay for a while on a node in trouble, unless it says otherwise.
pub(super) fn tolerations(pod: &mut Value) {
    let missing: Vec<&str> = [TAINT_NOT_READY, TAINT_UNREACHABLE]
        .into_iter()
        .filter(|taint| {
            !pod["spec"]["tolerations"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|t| {
                    let key = t["key"].as_str().unwrap_or_default();
                    let effect = t["effect"].as_str().unwrap_or_default();
                    (key.is_empty() || key == *taint)
                        && (effect.is_empty() || effect == "NoExecute")
                })
        })
        .collect();
    for taint in missing {
        if !pod["spec"]["tolerations"].is_array() {
            pod["spec"]["tolerations"] = json!([]);
        }
        if let Some(list) = pod["spec"]["tolerations"].as_array_mut() {
            list.push(json!({
                "key": taint, "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": TOLERATION_SECONDS,
            }));
        }
    }
}

/// Resolves the pod's priority class to a number.
pub(super) fn priority(call: &Call<'_>, pod: &mut Value) -> Result<(), Status> {
    let kind = call
        .core
        .cache
        .named("scheduling.k8s.io", "priorityclasses");
    let name = pod["spec"]["priorityClassName"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let class = if name.is_empty() {
        let default = kind.into_iter().flat_map(|k| k.all()).map(|o| o.value());
        default
            .filter(|c| c["globalDefault"] == true)
            .min_by_key(|c| c["value"].as_i64().unwrap_or(0))
    } else {
        let found = kind.and_then(|k| k.get("", &name));
        Some(
            found
                .ok_or_else(|| {
                    call.forbidden(format!("no PriorityClass with name {name} was found"))
                })?
                .value(),
        )
    };
    let (value, policy) = match &class {
        Some(c) => (
            c["value"].as_i64().unwrap_or(0),
            c["preemptionPolicy"]
                .as_str()
                .unwrap_or("PreemptLowerPriority")
                .to_owned(),
        ),
        None => (0, "PreemptLowerPriority".to_owned()),
    };
    let stated = pod["spec"]["priority"].as_i64();
    if stated.is_some_and(|s| s != value) {
        return Err(call.forbidden("the integer value of priority must not be provided in pod spec; priority admission controller computed a different value from the given PriorityClass name"));
    }
    if let Some(c) = &class {
        pod["spec"]["priorityClassName"] = meta::text(c, "name").into();
    }
    pod["spec"]["priority"] = value.into();
    if pod["spec"]["preemptionPolicy"].is_null() {
        pod["spec"]["preemptionPolicy"] = policy.into();
    }
    Ok(())
}

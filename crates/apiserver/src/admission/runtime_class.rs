//! RuntimeClass: a pod's class exists, and what it costs and where it runs is in the pod.
//!
//! Upstream: "Runtime Class", "Pod Overhead".

use crate::registry::Call;
use apimachinery::Status;
use serde_json::{Value, json};

/// Fills in a new pod.
pub(super) fn mutate(call: &Call<'_>, pod: &mut Value) -> Result<(), Status> {
    let name = pod["spec"]["runtimeClassName"].as_str().unwrap_or_default();
    let class = if name.is_empty() {
        None
    } else {
        let found = call.core.peek("node.k8s.io", "runtimeclasses", "", name);
        let missing = || call.forbidden(format!("pod rejected: RuntimeClass {name:?} not found"));
        Some(found.ok_or_else(missing)?.value())
    };
    apply(class.as_ref(), pod).map_err(|text| call.forbidden(text))
}

fn apply(class: Option<&Value>, pod: &mut Value) -> Result<(), String> {
    let fixed = class.map_or(&Value::Null, |c| &c["overhead"]["podFixed"]);
    let has = &pod["spec"]["overhead"];
    let is_set = |v: &Value| v.as_object().is_some_and(|o| !o.is_empty());
    if !is_set(fixed) {
        if is_set(has) {
            return Err("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead".to_owned());
        }
    } else if is_set(has) && has != fixed {
        return Err(
            "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".to_owned(),
        );
    } else {
        pod["spec"]["overhead"] = fixed.clone();
    }
    let Some(scheduling) = class.map(|c| &c["scheduling"]) else {
        return Ok(());
    };
    for (key, value) in scheduling["nodeSelector"].as_object().into_iter().flatten() {
        if !pod["spec"]["nodeSelector"].is_object() {
            pod["spec"]["nodeSelector"] = json!({});
        }
        let has = &mut pod["spec"]["nodeSelector"][key];
        if !has.is_null() && has != value {
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                value.as_str().unwrap_or_default(),
                has.as_str().unwrap_or_default(),
            ));
        }
        *has = value.clone();
    }
    for toleration in scheduling["tolerations"].as_array().into_iter().flatten() {
        if !pod["spec"]["tolerations"].is_array() {
            pod["spec"]["tolerations"] = json!([]);
        }
        if let Some(list) = pod["spec"]["tolerations"].as_array_mut()
            && !list.contains(toleration)
        {
            list.push(toleration.clone());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_adds_its_overhead_and_its_nodes() {
        let class = json!({"overhead": {"podFixed": {"memory": "120Mi"}}, "scheduling": {
            "nodeSelector": {"kvm": "yes"}, "tolerations": [{"key": "kvm", "operator": "Exists"}]}});
        let mut pod = json!({"spec": {"nodeSelector": {"zone": "z"}}});
        assert_eq!(apply(Some(&class), &mut pod), Ok(()));
        let wanted = json!({"spec": {"overhead": {"memory": "120Mi"},
            "nodeSelector": {"kvm": "yes", "zone": "z"},
            "tolerations": [{"key": "kvm", "operator": "Exists"}]}});
        assert_eq!(pod, wanted);
        assert_eq!(apply(Some(&class), &mut pod), Ok(()), "again");
        assert_eq!(pod, wanted);
        let mut other = json!({"spec": {"nodeSelector": {"kvm": "no"}}});
        assert_eq!(
            apply(Some(&class), &mut other).unwrap_err(),
            "conflict: runtimeClass.scheduling.nodeSelector[kvm] = yes; pod.spec.nodeSelector[kvm] = no"
        );
        assert!(apply(None, &mut pod).is_err());
    }
}

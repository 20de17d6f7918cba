//! HorizontalPodAutoscaler autoscaling/v2 (stored) and v1.
//!
//! v1 knows one metric, the processor's utilization; what else an autoscaler has is carried in
//! annotations, under upstream's names and in upstream's form, so that nothing is lost on the way
//! through a client of v1. Pure: values in, values out.

use serde_json::{Map, Value, json};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// An autoscaler of v2 as v1 has it.
pub(super) fn to_v1(mut object: Value) -> Value {
    object["apiVersion"] = "autoscaling/v1".into();
    let mut carried = Map::new();
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        let (cpu, others) = split(spec.remove("metrics"), "target");
        if let Some(cpu) = cpu {
            spec.insert("targetCPUUtilizationPercentage".to_owned(), cpu);
        }
        carry(
            &mut carried,
            METRICS,
            others.iter().map(|m| metric_to_v1(m, "target")).collect(),
        );
        if let Some(behavior) = spec.remove("behavior") {
            carried.insert(BEHAVIOR.to_owned(), behavior.to_string().into());
        }
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        let (cpu, others) = split(status.remove("currentMetrics"), "current");
        if let Some(cpu) = cpu {
            status.insert("currentCPUUtilizationPercentage".to_owned(), cpu);
        }
        carry(
            &mut carried,
            CURRENT_METRICS,
            others.iter().map(|m| metric_to_v1(m, "current")).collect(),
        );
        if let Some(Value::Array(conditions)) = status.remove("conditions") {
            carry(&mut carried, CONDITIONS, conditions);
        }
        // Always there in this version.
        for count in ["currentReplicas", "desiredReplicas"] {
            status.entry(count).or_insert_with(|| 0.into());
        }
    }
    if !carried.is_empty() {
        let annotations = &mut object["metadata"]["annotations"];
        if !annotations.is_object() {
            *annotations = json!({});
        }
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.append(&mut carried);
        }
    }
    object
}

/// An autoscaler of v1 as v2 has it. An annotation that can't be read is dropped, as upstream
/// does: it was no client's to write.
pub(super) fn to_v2(mut object: Value) -> Value {
    object["apiVersion"] = "autoscaling/v2".into();
    let mut take = |name: &str| -> Option<Value> {
        let text = object["metadata"]["annotations"]
            .as_object_mut()?
            .remove(name)?;
        serde_json::from_str(text.as_str()?).ok()
    };
    let [metrics, behavior, current, conditions] =
        [METRICS, BEHAVIOR, CURRENT_METRICS, CONDITIONS].map(&mut take);
    if let Some(metadata) = object["metadata"].as_object_mut()
        && metadata.get("annotations") == Some(&json!({}))
    {
        metadata.remove("annotations");
    }
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        let cpu = spec.remove("targetCPUUtilizationPercentage");
        let metrics = join(cpu, metrics, "target");
        if !metrics.is_empty() {
            spec.insert("metrics".to_owned(), metrics.into());
        }
        if let Some(behavior) = behavior.filter(Value::is_object) {
            spec.insert("behavior".to_owned(), behavior);
        }
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        let cpu = status.remove("currentCPUUtilizationPercentage");
        let current = join(cpu, current, "current");
        if !current.is_empty() {
            status.insert("currentMetrics".to_owned(), current.into());
        }
        if let Some(conditions) = conditions.filter(Value::is_array) {
            status.insert("conditions".to_owned(), conditions);
        }
    }
    object
}

fn carry(carried: &mut Map<String, Value>, name: &str, items: Vec<Value>) {
    if !items.is_empty() {
        carried.insert(name.to_owned(), Value::Array(items).to_string().into());
    }
}

/// The processor's utilization, and the metrics that v1 has no field for. `side` is where a
/// metric has its values: `target` or `current`.
fn split(metrics: Option<Value>, side: &str) -> (Option<Value>, Vec<Value>) {
    let Some(Value::Array(metrics)) = metrics else {
        return (None, Vec::new());
    };
    let mut cpu = None;
    let others = metrics.into_iter().filter(|metric| {
        let of = &metric["resource"];
        let utilization = &of[side]["averageUtilization"];
        let is_cpu = metric["type"] == "Resource" && of["name"] == "cpu" && utilization.is_number();
        // One that has a value beside the percentage, as a status does, is carried as well.
        if is_cpu && cpu.is_none() {
            cpu = Some(utilization.clone());
            return side == "current" && of[side].get("averageValue").is_some();
        }
        true
    });
    let others = others.collect();
    (cpu, others)
}

fn join(cpu: Option<Value>, carried: Option<Value>, side: &str) -> Vec<Value> {
    let carried = match carried {
        Some(Value::Array(carried)) => carried.iter().map(|m| metric_to_v2(m, side)).collect(),
        _ => Vec::new(),
    };
    let has_cpu = carried.iter().any(|metric: &Value| {
        let of = &metric["resource"];
        of["name"] == "cpu" && of[side]["averageUtilization"].is_number()
    });
    let cpu = cpu
        .filter(|_| !(side == "current" && has_cpu))
        .map(|percent| {
            let mut values = json!({"averageUtilization": percent});
            if side == "target" {
                values["type"] = "Utilization".into();
            }
            json!({"type": "Resource", "resource": {"name": "cpu", side: values}})
        });
    cpu.into_iter().chain(carried).collect()
}

type Names = (&'static str, &'static str);

/// Of each type of metric: v2's fields, v1's fields. `@` is the side:
/// `target` or `current`.
const METRICS_BY_TYPE: &[(&str, &[Names])] = &[
    (
        "resource",
        &[
            ("name", "name"),
            ("@/averageUtilization", "@AverageUtilization"),
            ("@/averageValue", "@AverageValue"),
        ],
    ),
    (
        "containerResource",
        &[
            ("name", "name"),
            ("container", "container"),
            ("@/averageUtilization", "@AverageUtilization"),
            ("@/averageValue", "@AverageValue"),
        ],
    ),
    (
        "pods",
        &[
            ("metric/name", "metricName"),
            ("metric/selector", "selector"),
            ("@/averageValue", "@AverageValue"),
        ],
    ),
    (
        "object",
        &[
            ("describedObject", "target"),
            ("metric/name", "metricName"),
            ("metric/selector", "selector"),
            ("@/value", "@Value"),
            ("@/averageValue", "averageValue"),
        ],
    ),
    (
        "external",
        &[
            ("metric/name", "metricName"),
            ("metric/selector", "metricSelector"),
            ("@/value", "@Value"),
            ("@/averageValue", "@AverageValue"),
        ],
    ),
];

/// A metric under its other version's names. `order` puts the names read before those written.
fn converted(metric: &Value, side: &str, order: fn(Names) -> Names) -> Value {
    let mut out = json!({"type": metric["type"]});
    for (source, names) in METRICS_BY_TYPE {
        let Some(fields) = metric.get(source) else {
            continue;
        };
        let mut renamed = Map::new();
        for names in *names {
            let (old, new) = order(*names);
            let (old, new) = (old.replace('@', side), new.replace('@', side));
            let Some(value) = fields.pointer(&format!("/{old}")) else {
                continue;
            };
            match new.split_once('/') {
                None => {
                    renamed.insert(new, value.clone());
                }
                Some((parent, child)) => {
                    renamed.entry(parent).or_insert_with(|| json!({}))[child] = value.clone();
                }
            }
        }
        out[*source] = renamed.into();
    }
    out
}

fn metric_to_v1(metric: &Value, side: &str) -> Value {
    converted(metric, side, |names| names)
}

fn metric_to_v2(metric: &Value, side: &str) -> Value {
    let mut out = converted(metric, side, |(v2, v1)| (v1, v2));
    // v1 says by the field that is set what v2 says in words.
    let kinds = [
        ("averageUtilization", "Utilization"),
        ("averageValue", "AverageValue"),
        ("value", "Value"),
    ];
    for (source, _) in METRICS_BY_TYPE {
        let fields = out.get_mut(*source);
        let Some(target) = fields.and_then(|fields| fields.get_mut("target")) else {
            continue;
        };
        if target.is_object()
            && let Some((_, kind)) = kinds.iter().find(|(field, _)| target.get(field).is_some())
        {
            target["type"] = (*kind).into();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{to_v1, to_v2};
    use serde_json::{Value, json};

    fn v2(metrics: Value, status: Value) -> Value {
        json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "web", "annotations": {"kept": "yes"}},
            "spec": {"maxReplicas": 5, "minReplicas": 1, "metrics": metrics,
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}},
            "status": status,
        })
    }

    #[test]
    fn the_processor_is_a_field_of_v1() {
        let object = v2(
            json!([{"type": "Resource", "resource":
                {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}}}]),
            json!({"currentReplicas": 1, "desiredReplicas": 1, "currentMetrics": [{"type": "Resource", "resource":
                {"name": "cpu", "current": {"averageUtilization": 30}}}]}),
        );
        let old = to_v1(object.clone());
        assert_eq!(old["apiVersion"], "autoscaling/v1");
        assert_eq!(old["spec"]["targetCPUUtilizationPercentage"], 60);
        assert_eq!(old["status"]["currentCPUUtilizationPercentage"], 30);
        assert_eq!(old["metadata"]["annotations"], json!({"kept": "yes"}));
        assert_eq!(to_v2(old), object);
    }

    #[test]
    fn nothing_is_lost_on_the_way_through_v1() {
        let mut object = v2(
            json!([
                {"type": "Resource", "resource":
                    {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}}},
                {"type": "Resource", "resource":
                    {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
                {"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "app",
                    "target": {"type": "Utilization", "averageUtilization": 50}}},
                {"type": "Pods", "pods": {"metric": {"name": "packets", "selector":
                    {"matchLabels": {"a": "b"}}}, "target": {"type": "AverageValue", "averageValue": "1k"}}},
                {"type": "Object", "object": {"describedObject": {"kind": "Service", "name": "web"},
                    "metric": {"name": "hits"}, "target": {"type": "Value", "value": "10k"}}},
                {"type": "External", "external": {"metric": {"name": "queue"},
                    "target": {"type": "AverageValue", "averageValue": "30"}}},
            ]),
            json!({
                "currentReplicas": 2, "desiredReplicas": 3,
                "currentMetrics": [
                    {"type": "Resource", "resource": {"name": "cpu", "current":
                        {"averageUtilization": 30, "averageValue": "300m"}}},
                    {"type": "Pods", "pods": {"metric": {"name": "packets"}, "current": {"averageValue": "9"}}},
                ],
                "conditions": [{"type": "AbleToScale", "status": "True"}],
            }),
        );
        object["spec"]["behavior"] = json!({"scaleDown": {"selectPolicy": "Disabled"}});
        assert_eq!(to_v2(to_v1(object.clone())), object);
    }

    #[test]
    fn an_annotation_that_is_no_metric_is_dropped() {
        let mut old = to_v1(v2(json!([]), json!({})));
        old["metadata"]["annotations"][super::METRICS] = "[{".into();
        assert_eq!(to_v2(old)["spec"].get("metrics"), None);
    }
}

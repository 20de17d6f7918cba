//! What devices there are, as drivers publish them, and taints that are set on them by hand.
//!
//! The reference is `pkg/apis/resource/validation` of upstream. Who asks for devices is in
//! [`super::claims`].

use super::claim_status::{binding, skipped};
use super::claims::{EFFECTS, ITEMS_MAX, VALUE_BYTES_MAX, distinct, pool, qualified};
use super::{Check, pod_context, storage::driver};
use crate::access::{at, int, is_empty, list, text};
use apimachinery::names;
use apimachinery::quantity::{Format, Quantity};
use apimachinery::status::FieldError;
use serde_json::{Map, Value};

/// Devices of a slice; fewer where they have taints, counters or lists.
const DEVICES_MAX: usize = 128;
const ADVANCED_DEVICES_MAX: usize = 64;
/// Values of one device's attributes, items of lists counted one by one.
const VALUES_MAX: usize = 48;
const COUNTER_SETS_MAX: usize = 8;
const CONSUMED_SETS_MAX: usize = 2;
const TAINTS_MAX: usize = 16;
const OPTIONS_MAX: usize = 10;
const RULE_CONDITIONS_MAX: usize = 8;

/// `ResourceSlice`.
pub(crate) fn slice(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let spec = at(v, "spec");
    driver(&mut c, "spec.driver".to_owned(), at(spec, "driver"));
    pool(&mut c, "spec.pool.name".to_owned(), at(spec, "pool.name"));
    if int(spec, "pool.resourceSliceCount") <= 0 {
        let shown = int(spec, "pool.resourceSliceCount").into();
        let path = "spec.pool.resourceSliceCount";
        c.invalid(path, &shown, "must be greater than zero");
    }
    if int(spec, "pool.generation") < 0 {
        let detail = "must be greater than or equal to zero";
        c.invalid("spec.pool.generation", at(spec, "pool.generation"), detail);
    }
    let set = nodes(
        &mut c,
        "spec",
        spec,
        "must be either unset or set to a non-empty string",
    );
    let terms = at(spec, "nodeSelector.nodeSelectorTerms");
    if !at(spec, "nodeSelector").is_null()
        && list(spec, "nodeSelector.nodeSelectorTerms").len() != 1
    {
        let detail = "must have exactly one node selector term";
        c.invalid("spec.nodeSelector.nodeSelectorTerms", terms, detail);
    }
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match set.len() {
        0 => c.required("spec", ONE),
        1 => {}
        _ => c.invalid(
            "spec",
            &format!("{{{}}}", set.join(", ")).into(),
            format!("{ONE}, but multiple fields are set"),
        ),
    }
    if !at(spec, "sharedCounters").is_null() && !at(spec, "devices").is_null() {
        let detail = "only one of `sharedCounters` or `devices` is allowed";
        c.invalid("spec", &"".into(), detail);
    }
    let devices = list(spec, "devices");
    let max = if devices.iter().any(is_advanced) {
        ADVANCED_DEVICES_MAX
    } else {
        DEVICES_MAX
    };
    let each = at(spec, "perDeviceNodeSelection") == true;
    c.each("spec.devices", devices, max, |c, path, one| {
        device(c, path, one, each);
    });
    distinct(&mut c, "spec.devices", devices, max, |d| {
        text(d, "name").to_owned()
    });
    let path = "spec.sharedCounters";
    let counted = list(spec, "sharedCounters");
    c.each(path, counted, COUNTER_SETS_MAX, |c, path, one| {
        counters(c, path, one, "name");
    });
    distinct(&mut c, path, counted, COUNTER_SETS_MAX, |one| {
        text(one, "name").to_owned()
    });
    partition_type(&mut c, spec);
    skipped(&mut c, "spec", spec);
    c.0
}

/// Whose devices a slice has stays.
pub(crate) fn slice_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    for path in ["spec.pool.name", "spec.driver", "spec.nodeName"] {
        c.immutable(path, new, old);
    }
    c.0
}

/// Where a slice or a device is; which of the ways it says.
fn nodes(c: &mut Check, path: &str, v: &Value, empty: &str) -> Vec<&'static str> {
    let mut set = Vec::new();
    let name = at(v, "nodeName");
    if name == "" {
        c.invalid(format!("{path}.nodeName"), name, empty);
    } else if !name.is_null() {
        set.push("`nodeName`");
        c.rule(format!("{path}.nodeName"), name, names::dns1123_subdomain);
    }
    if !at(v, "nodeSelector").is_null() {
        set.push("`nodeSelector`");
        let path = format!("{path}.nodeSelector");
        pod_context::node_selector(c, &path, at(v, "nodeSelector"));
    }
    for (name, shown) in [
        ("allNodes", "`allNodes`"),
        ("perDeviceNodeSelection", "`perDeviceNodeSelection`"),
    ] {
        match at(v, name) {
            Value::Bool(true) => set.push(shown),
            no @ Value::Bool(false) => {
                let detail = "must be either unset or set to true";
                c.invalid(format!("{path}.{name}"), no, detail);
            }
            _ => {}
        }
    }
    set
}

const LISTS: [&str; 4] = ["bools", "ints", "strings", "versions"];

fn is_advanced(device: &Value) -> bool {
    let has_list = |a: &Value| LISTS.iter().any(|name| !at(a, name).is_null());
    !list(device, "taints").is_empty()
        || !list(device, "consumesCounters").is_empty()
        || entries(device, "attributes").any(|(_, a)| has_list(a))
}

fn entries<'a>(v: &'a Value, path: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    at(v, path).as_object().into_iter().flat_map(Map::iter)
}

fn device(c: &mut Check, path: &str, v: &Value, each: bool) {
    c.rule(format!("{path}.name"), at(v, "name"), names::dns1123_label);
    let count = entries(v, "attributes").count() + entries(v, "capacity").count();
    if count > ITEMS_MAX {
        let detail =
            format!("the total number of attributes and capacities must not exceed {ITEMS_MAX}");
        c.invalid(path, &count.into(), detail);
    }
    let count_of = |a: &Value| LISTS.iter().map(|l| list(a, l).len()).sum::<usize>().max(1);
    let count: usize = entries(v, "attributes").map(|(_, a)| count_of(a)).sum();
    if count > VALUES_MAX {
        let detail = format!("the total number of attribute values must not exceed {VALUES_MAX}");
        c.invalid(path, &count.into(), detail);
    }
    for (name, one) in entries(v, "attributes") {
        let path = format!("{path}.attributes");
        qualified(c, &path, name);
        attribute(c, &format!("{path}[{name}]"), one);
    }
    for (name, one) in entries(v, "capacity") {
        let at_all = format!("{path}.capacity");
        qualified(c, &at_all, name);
        let path = format!("{at_all}[{name}].requestPolicy");
        let policy = at(one, "requestPolicy");
        if policy.is_null() {
        } else if at(v, "allowMultipleAllocations") == true {
            request_policy(c, &path, policy, at(one, "value"));
        } else {
            c.forbidden(path, "allowMultipleAllocations must be true");
        }
    }
    let tainted = format!("{path}.taints");
    c.each(&tainted, list(v, "taints"), TAINTS_MAX, taint);
    let (consumed, sets) = (
        format!("{path}.consumesCounters"),
        list(v, "consumesCounters"),
    );
    c.each(&consumed, sets, CONSUMED_SETS_MAX, |c, path, one| {
        counters(c, path, one, "counterSet");
    });
    distinct(c, &consumed, sets, CONSUMED_SETS_MAX, |one| {
        text(one, "counterSet").to_owned()
    });
    place(c, path, v, each);
    binding(c, path, v);
    node_resources(c, path, v);
}

fn place(c: &mut Check, path: &str, v: &Value, each: bool) {
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
    let fields = ["nodeName", "nodeSelector", "allNodes"];
    if !each {
        if fields.iter().any(|name| !at(v, name).is_null()) {
            let detail = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
            c.invalid(path, &Value::Null, detail);
        }
        return;
    }
    let set = nodes(c, path, v, "must not be empty");
    match set.len() {
        0 => c.required(path, ONE),
        1 => {}
        _ => c.invalid(path, &format!("{{{}}}", set.join(", ")).into(), ONE),
    }
}

fn attribute(c: &mut Check, path: &str, v: &Value) {
    let fields = ["bool", "int", "string", "version"];
    let all = fields.iter().chain(&LISTS);
    let set = all.filter(|name| !at(v, name).is_null()).count();
    let mut one = |path: String, v: &Value, is_version: bool| {
        let text = v.as_str().unwrap_or_default();
        if is_version && semver::Version::parse(text).is_err() {
            let detail = "must be a string compatible with semver.org spec 2.0.0";
            c.invalid(path.as_str(), v, detail);
        }
        if text.len() > VALUE_BYTES_MAX {
            c.add(FieldError::too_long(path, VALUE_BYTES_MAX));
        }
    };
    for name in ["string", "version"] {
        if !at(v, name).is_null() {
            one(format!("{path}.{name}"), at(v, name), name == "version");
        }
    }
    for name in ["strings", "versions"] {
        for (i, item) in list(v, name).iter().enumerate() {
            one(format!("{path}.{name}[{i}]"), item, name == "versions");
        }
    }
    for name in LISTS {
        if at(v, name).as_array().is_some_and(Vec::is_empty) {
            let detail = "must not be empty if specified";
            c.invalid(format!("{path}.{name}"), at(v, name), detail);
        }
    }
    if set != 1 {
        let empty = Value::from("");
        let shown = if set == 0 { &empty } else { v };
        c.invalid(path, shown, "exactly one value must be specified");
    }
}

fn counters(c: &mut Check, path: &str, v: &Value, name: &str) {
    let rule = names::dns1123_label;
    c.required_rule(format!("{path}.{name}"), at(v, name), rule);
    let path = format!("{path}.counters");
    let count = entries(v, "counters").count();
    if count == 0 {
        return c.required(path, "");
    }
    if count > ITEMS_MAX {
        return c.add(FieldError::too_many(path, count, ITEMS_MAX));
    }
    for (name, _) in entries(v, "counters") {
        c.rule(path.as_str(), &name.as_str().into(), rule);
    }
}

/// How much of a capacity may be asked for.
fn request_policy(c: &mut Check, path: &str, v: &Value, capacity: &Value) {
    let (values, range) = (list(v, "validValues"), at(v, "validRange"));
    let (default, name) = (
        at(v, "default"),
        if values.is_empty() {
            "validRange"
        } else {
            "validValues"
        },
    );
    if values.is_empty() && range.is_null() {
        return;
    }
    if !values.is_empty() && !range.is_null() {
        let detail = r#"exactly one policy can be specified, cannot specify "validValues" and "validRange" at the same time"#;
        return c.forbidden(path, detail);
    }
    if default.is_null() {
        return c.required(
            format!("{path}.default"),
            &format!("required when {name} is defined"),
        );
    }
    let path = format!("{path}.{name}");
    if !range.is_null() {
        return request_range(c, &path, range, default, capacity);
    }
    let most = nano(capacity);
    for pair in 1..values.len() {
        if nano(&values[pair - 1]) > nano(&values[pair]) {
            let detail = "values must be sorted in ascending order";
            c.invalid(format!("{path}[{pair}]"), &values[pair], detail);
        }
    }
    c.each(&path, values, OPTIONS_MAX, |c, path, one| {
        if nano(one) > most {
            let detail = format!("option is larger than capacity value: {}", shown(capacity));
            c.invalid(path, one, detail);
        }
    });
    distinct(c, &path, values, OPTIONS_MAX, |one| {
        Quantity { nano: nano(one) }.text(Format::DecimalSi)
    });
    if !values.iter().any(|one| nano(one) == nano(default)) {
        let detail = "default value is not valid according to the requestPolicy";
        c.invalid(path, default, detail);
    }
}

fn request_range(c: &mut Check, path: &str, range: &Value, default: &Value, capacity: &Value) {
    let [min, max, step] = ["min", "max", "step"].map(|name| at(range, name));
    if min.is_null() {
        return c.required(format!("{path}.min"), "required when validRange is defined");
    }
    let mut above = |field: &str, told: &Value, what: &str, than: &Value, name: &str, is: bool| {
        if is {
            let detail = format!("{what} than {name}: {}", shown(than));
            c.invalid(format!("{path}.{field}"), told, detail);
        }
    };
    let (low, given, most) = (nano(min), nano(default), nano(capacity));
    const CAPACITY: &str = "capacity value";
    above("min", min, "min is larger", capacity, CAPACITY, low > most);
    above(
        "default",
        default,
        "default is less",
        min,
        "min",
        given < low,
    );
    if !max.is_null() {
        let high = nano(max);
        above("max", min, "min is larger", max, "max", low > high);
        above("max", max, "max is larger", capacity, CAPACITY, high > most);
        above(
            "default",
            default,
            "default is more",
            max,
            "max",
            given > high,
        );
    }
    if step.is_null() {
        return;
    }
    let path = format!("{path}.step");
    let by = nano(step);
    if by <= 0 {
        return c.invalid(path, step, "must be greater than zero");
    }
    if low.saturating_add(by) > most {
        let detail = format!(
            "one step {} is larger than capacity value: {}",
            shown(step),
            shown(capacity)
        );
        c.invalid(path.as_str(), step, detail);
    }
    for one in [default, max] {
        if !one.is_null() && (nano(one) - low) % by != 0 {
            let detail = format!(
                "value is not a multiple of a given step ({}) from ({})",
                shown(step),
                shown(min)
            );
            c.invalid(path.as_str(), one, detail);
        }
    }
}

fn nano(v: &Value) -> i128 {
    Quantity::from_json(v).unwrap_or_default().nano
}

fn shown(v: &Value) -> String {
    v.as_str().map_or_else(|| v.to_string(), str::to_owned)
}

/// What of the node's own resources a device stands for.
fn node_resources(c: &mut Check, path: &str, v: &Value) {
    for (name, one) in entries(v, "nodeAllocatableResources") {
        let path = format!("{path}.nodeAllocatableResources[{name}]");
        let is_known = matches!(&**name, "cpu" | "memory" | "ephemeral-storage");
        if !is_known && !name.starts_with("hugepages-") {
            let detail = "must be a node allocatable resource name";
            c.invalid(path.as_str(), &name.as_str().into(), detail);
        }
        let (mapping, overhead) = (at(one, "mapping"), at(one, "overhead"));
        if mapping.is_null() && overhead.is_null() {
            let detail = "at least one of mapping or overhead must be set";
            c.required(path.as_str(), detail);
        }
        mapped(c, &format!("{path}.mapping"), mapping, at(v, "capacity"));
        if overhead.is_null() {
            continue;
        }
        let path = format!("{path}.overhead");
        let parts = ["perPod", "perContainer"];
        if parts.iter().all(|name| at(overhead, name).is_null()) {
            let detail = "at least one of perPod or perContainer must be set";
            c.invalid(path.as_str(), &"".into(), detail);
        }
        for name in parts {
            if nano(at(overhead, name)) < 0 {
                let path = format!("{path}.{name}");
                c.invalid(path, at(overhead, name), "must be non-negative");
            }
        }
    }
}

fn mapped(c: &mut Check, path: &str, v: &Value, capacities: &Value) {
    let (key, times) = (at(v, "capacityKey"), at(v, "capacityMultiplier"));
    if let Some(name) = key.as_str() {
        let path = format!("{path}.capacityKey");
        if name.is_empty() {
            c.invalid(path, key, "capacityKey must not be an empty string");
        } else if capacities.get(name).is_none() {
            c.add(FieldError::not_found(path, key));
        }
    }
    if times.is_null() && !key.is_null() {
        let detail = "capacityMultiplier is required when capacityKey is set";
        c.required(format!("{path}.capacityMultiplier"), detail);
    } else if key.is_null() && !times.is_null() {
        let detail = "capacityKey is required when capacityMultiplier is set";
        c.required(format!("{path}.capacityKey"), detail);
    }
    for name in ["capacityMultiplier", "deviceMultiplier"] {
        let v = at(v, name);
        if !v.is_null() && nano(v) <= 0 {
            c.invalid(format!("{path}.{name}"), v, "must be positive");
        }
    }
}

/// Devices that use counters say in one attribute what part of the whole they are.
fn partition_type(c: &mut Check, spec: &Value) {
    let Some(name) = at(spec, "partitionTypeAttribute").as_str() else {
        return;
    };
    let path = "spec.partitionTypeAttribute";
    let uses = |d: &Value| !list(d, "consumesCounters").is_empty();
    if !list(spec, "devices").iter().any(uses) {
        let detail = "may only be set on a slice which declares devices that consume counters";
        return c.invalid(path, &name.into(), detail);
    }
    let before = c.0.len();
    qualified(c, path, name);
    if c.0.len() > before {
        return;
    }
    let own = format!("{}/", text(spec, "driver"));
    let bare = name.strip_prefix(&own).unwrap_or(name);
    for (i, d) in list(spec, "devices")
        .iter()
        .enumerate()
        .filter(|(_, d)| uses(d))
    {
        let path = format!("spec.devices[{i}].attributes[{name}]");
        let all = at(d, "attributes");
        match all.get(name).or_else(|| all.get(bare)) {
            None => c.required(
                path,
                "device consumes counters and `partitionTypeAttribute` names this attribute, so it must be set",
            ),
            Some(a) if at(a, "string").is_null() => {
                let detail =
                    "must be a string value because `partitionTypeAttribute` names this attribute";
                c.invalid(path, a, detail);
            }
            Some(_) => {}
        }
    }
}

fn taint(c: &mut Check, path: &str, v: &Value) {
    c.rule(format!("{path}.key"), at(v, "key"), names::qualified_name);
    if !is_empty(at(v, "value")) {
        c.rule(format!("{path}.value"), at(v, "value"), names::label_value);
    }
    c.one_of(format!("{path}.effect"), at(v, "effect"), EFFECTS);
}

/// `DeviceTaintRule`.
pub(crate) fn taint_rule(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let path = "spec.deviceSelector";
    let selector = at(v, path);
    if !at(selector, "driver").is_null() {
        driver(&mut c, format!("{path}.driver"), at(selector, "driver"));
    }
    if !at(selector, "pool").is_null() {
        pool(&mut c, format!("{path}.pool"), at(selector, "pool"));
    }
    if !at(selector, "device").is_null() {
        let device = at(selector, "device");
        c.rule(format!("{path}.device"), device, names::dns1123_label);
    }
    taint(&mut c, "spec.taint", at(v, "spec.taint"));
    c.0
}

/// What is written by `/status` of a `DeviceTaintRule`.
pub(crate) fn taint_rule_status(new: &Value, _: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let path = "status.conditions";
    c.conditions(path, at(new, path), RULE_CONDITIONS_MAX);
    c.0
}

#[cfg(test)]
mod tests {
    use super::super::told;
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    fn sound() -> Value {
        json!({"spec": {
            "driver": "x.y", "nodeName": "n", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
            "partitionTypeAttribute": "x.y/part",
            "devices": [{
                "name": "d", "allowMultipleAllocations": true,
                "attributes": {"model": {"string": "a"}, "x.y/v": {"version": "1.2.3-rc.1+b"}, "part": {"string": "half"}, "l": {"ints": [1, 2]}},
                "capacity": {"memory": {"value": "4Gi", "requestPolicy": {"default": "1Gi", "validRange": {"min": "1Gi", "max": "4Gi", "step": "1Gi"}}},
                    "lanes": {"value": "8", "requestPolicy": {"default": "2", "validValues": ["1", "2", "8"]}}},
                "taints": [{"key": "k", "effect": "NoExecute"}],
                "consumesCounters": [{"counterSet": "s", "counters": {"c": {"value": "1"}}}],
                "nodeAllocatableResources": {"memory": {"mapping": {"capacityKey": "memory", "capacityMultiplier": "1"}}},
            }],
        }})
    }

    #[test]
    fn slices_say_what_there_is_and_where() {
        told(slice(&sound()), expect![""]);
        let bare = json!({"spec": {"driver": "X_", "pool": {"name": "p//q", "generation": -1}, "nodeName": "",
            "allNodes": false, "sharedCounters": [{"counters": {"C": {}}}, {}], "devices": []}});
        told(
            slice(&bare),
            expect![[r#"
            spec.driver: Invalid value: "X_": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            spec.pool.name: Invalid value: "": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            spec.pool.resourceSliceCount: Invalid value: 0: must be greater than zero
            spec.pool.generation: Invalid value: -1: must be greater than or equal to zero
            spec.nodeName: Invalid value: "": must be either unset or set to a non-empty string
            spec.allNodes: Invalid value: false: must be either unset or set to true
            spec: Required value: exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required
            spec: Invalid value: "": only one of `sharedCounters` or `devices` is allowed
            spec.sharedCounters[0].name: Required value
            spec.sharedCounters[0].counters: Invalid value: "C": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
            spec.sharedCounters[1].name: Required value
            spec.sharedCounters[1].counters: Required value
            spec.sharedCounters[1]: Duplicate value: """#]],
        );
        let mut v = sound();
        v["spec"]["allNodes"] = json!(true);
        v["spec"]["nodeSelector"] = json!({"nodeSelectorTerms": []});
        v["spec"]["devices"] = vec![json!({"name": "d"}); 129].into();
        told(
            slice(&v),
            expect![[r#"
                spec.nodeSelector.nodeSelectorTerms: Required value: must have at least one node selector term
                spec.nodeSelector.nodeSelectorTerms: Invalid value: []: must have exactly one node selector term
                spec: Invalid value: "{`nodeName`, `nodeSelector`, `allNodes`}": exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required, but multiple fields are set
                spec.devices: Too many: 129: must have at most 128 items
                spec.partitionTypeAttribute: Invalid value: "x.y/part": may only be set on a slice which declares devices that consume counters"#]],
        );
        let mut new = sound();
        new["spec"]["driver"] = json!("x.z");
        new["spec"]["pool"] = json!({"name": "q", "generation": 2});
        new["spec"]["nodeName"] = json!("m");
        told(
            slice_update(&new, &sound()),
            expect![[r#"
            spec.pool.name: Invalid value: "q": field is immutable
            spec.driver: Invalid value: "x.z": field is immutable
            spec.nodeName: Invalid value: "m": field is immutable"#]],
        );
    }

    #[test]
    fn devices_are_bounded_and_typed() {
        let mut v = sound();
        v["spec"]["devices"][0] = json!({
            "name": "D", "nodeName": "n", "bindingConditions": ["a"],
            "attributes": {"a/b/c": {"string": "x".repeat(65)}, "1": {}, "/n": {"bool": true, "int": 1},
                "v": {"version": "1.02.3"}, "l": {"strings": []}},
            "capacity": {"c": {"value": "1", "requestPolicy": {}}},
            "taints": [{"key": "", "value": "a b", "effect": "Some"}],
            "consumesCounters": [{"counterSet": "s", "counters": {}}, {"counterSet": "s", "counters": {"c": {}}}],
            "nodeAllocatableResources": {"gpu": {}, "cpu": {"mapping": {"capacityKey": "no", "deviceMultiplier": "0"}, "overhead": {}}},
        });
        told(
            slice(&v),
            expect![[r#"
            spec.devices[0].name: Invalid value: "D": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
            spec.devices[0].attributes: Invalid value: "": the domain must not be empty
            spec.devices[0].attributes[/n]: Invalid value: {"bool":true,"int":1}: exactly one value must be specified
            spec.devices[0].attributes: Invalid value: "1": a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')
            spec.devices[0].attributes[1]: Invalid value: "": exactly one value must be specified
            spec.devices[0].attributes: Invalid value: "a/b/c": must not contain more than one slash
            spec.devices[0].attributes[a/b/c].string: Too long: may not be more than 64 bytes
            spec.devices[0].attributes[l].strings: Invalid value: []: must not be empty if specified
            spec.devices[0].attributes[v].version: Invalid value: "1.02.3": must be a string compatible with semver.org spec 2.0.0
            spec.devices[0].capacity[c].requestPolicy: Forbidden: allowMultipleAllocations must be true
            spec.devices[0].taints[0].key: Invalid value: "": name part must be non-empty
            spec.devices[0].taints[0].value: Invalid value: "a b": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')
            spec.devices[0].taints[0].effect: Unsupported value: "Some": supported values: "NoExecute", "NoSchedule", "None"
            spec.devices[0].consumesCounters[0].counters: Required value
            spec.devices[0].consumesCounters[1]: Duplicate value: "s"
            spec.devices[0]: Invalid value: null: `nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec
            spec.devices[0].bindingFailureConditions: Invalid value: null: bindingFailureConditions are required to use bindingConditions
            spec.devices[0].nodeAllocatableResources[cpu].mapping.capacityKey: Not found: "no"
            spec.devices[0].nodeAllocatableResources[cpu].mapping.capacityMultiplier: Required value: capacityMultiplier is required when capacityKey is set
            spec.devices[0].nodeAllocatableResources[cpu].mapping.deviceMultiplier: Invalid value: "0": must be positive
            spec.devices[0].nodeAllocatableResources[cpu].overhead: Invalid value: "": at least one of perPod or perContainer must be set
            spec.devices[0].nodeAllocatableResources[gpu]: Invalid value: "gpu": must be a node allocatable resource name
            spec.devices[0].nodeAllocatableResources[gpu]: Required value: at least one of mapping or overhead must be set
            spec.devices[0].attributes[x.y/part]: Required value: device consumes counters and `partitionTypeAttribute` names this attribute, so it must be set"#]],
        );
        let many: Map<String, Value> = (0..33)
            .map(|i| (format!("a{i}"), json!({"ints": [1, 2]})))
            .collect();
        v["spec"] = json!({"driver": "x.y", "perDeviceNodeSelection": true, "pool": {"name": "p", "resourceSliceCount": 1},
            "devices": [{"name": "d", "attributes": many}, {"name": "d", "nodeName": "n", "allNodes": true}]});
        told(
            slice(&v),
            expect![[r#"
            spec.devices[0]: Invalid value: 33: the total number of attributes and capacities must not exceed 32
            spec.devices[0]: Invalid value: 66: the total number of attribute values must not exceed 48
            spec.devices[0]: Required value: exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec
            spec.devices[1]: Invalid value: "{`nodeName`, `allNodes`}": exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec
            spec.devices[1]: Duplicate value: "d""#]],
        );
    }

    #[test]
    fn requests_of_capacity_are_within_it() {
        let mut v = sound();
        v["spec"]["devices"][0]["capacity"] = json!({
            "a": {"value": "4", "requestPolicy": {"default": "5", "validRange": {"min": "3", "max": "2", "step": "2"}}},
            "b": {"value": "4", "requestPolicy": {"default": "3", "validValues": ["2", "1", "1", "5"]}},
            "c": {"value": "4", "requestPolicy": {"validValues": ["1"]}},
            "d": {"value": "4", "requestPolicy": {"default": "1", "validValues": ["1"], "validRange": {}}},
            "e": {"value": "4", "requestPolicy": {"default": "1", "validRange": {"min": "1", "step": "0"}}},
        });
        v["spec"]["devices"][0]["nodeAllocatableResources"] = Value::Null;
        told(
            slice(&v),
            expect![[r#"
                spec.devices[0].capacity[a].requestPolicy.validRange.max: Invalid value: "3": min is larger than max: 2
                spec.devices[0].capacity[a].requestPolicy.validRange.default: Invalid value: "5": default is more than max: 2
                spec.devices[0].capacity[a].requestPolicy.validRange.step: Invalid value: "2": one step 2 is larger than capacity value: 4
                spec.devices[0].capacity[a].requestPolicy.validRange.step: Invalid value: "2": value is not a multiple of a given step (2) from (3)
                spec.devices[0].capacity[b].requestPolicy.validValues[1]: Invalid value: "1": values must be sorted in ascending order
                spec.devices[0].capacity[b].requestPolicy.validValues[3]: Invalid value: "5": option is larger than capacity value: 4
                spec.devices[0].capacity[b].requestPolicy.validValues[2]: Duplicate value: "1"
                spec.devices[0].capacity[b].requestPolicy.validValues: Invalid value: "3": default value is not valid according to the requestPolicy
                spec.devices[0].capacity[c].requestPolicy.default: Required value: required when validValues is defined
                spec.devices[0].capacity[d].requestPolicy: Forbidden: exactly one policy can be specified, cannot specify "validValues" and "validRange" at the same time
                spec.devices[0].capacity[e].requestPolicy.validRange.step: Invalid value: "0": must be greater than zero"#]],
        );
    }

    #[test]
    fn rules_of_taints() {
        let v = json!({"spec": {"deviceSelector": {"driver": "", "pool": "P", "device": "D"}, "taint": {"key": "k"}}});
        told(
            taint_rule(&v),
            expect![[r#"
            spec.deviceSelector.driver: Required value
            spec.deviceSelector.pool: Invalid value: "P": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            spec.deviceSelector.device: Invalid value: "D": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
            spec.taint.effect: Required value"#]],
        );
        let v = json!({"spec": {"taint": {"key": "k", "effect": "None"}}});
        told(taint_rule(&v), expect![""]);
        let v = json!({"status": {"conditions": vec![json!({}); 9]}});
        told(
            taint_rule_status(&v, &json!({})),
            expect!["status.conditions: Too many: 9: must have at most 8 items"],
        );
    }
}

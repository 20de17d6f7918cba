//! What a claim of devices is given, and who uses it.
//!
//! The reference is `validateResourceClaimStatusUpdate` of upstream. What claims ask for is in
//! [`super::claims`].

use super::claims::{ITEMS_MAX, Requests, distinct, opaque, pool, raw, tolerations};
use super::{Check, IMMUTABLE, Unique, pod_context, storage::driver};
use crate::access::{at, list, text};
use apimachinery::names;
use apimachinery::schema::Format;
use apimachinery::status::FieldError;
use apimachinery::structural::has_format;
use serde_json::Value;
use std::collections::HashSet;

const CONSUMERS_MAX: usize = 256;
const CONDITIONS_MAX: usize = 8;
const BINDING_CONDITIONS_MAX: usize = 4;
const ADDRESSES_MAX: usize = 16;
const INTERFACE_BYTES_MAX: usize = 256;
const HARDWARE_ADDRESS_BYTES_MAX: usize = 128;

/// What is written by `/status` of a `ResourceClaim`.
pub(crate) fn claim_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let consumers = list(new, "status.reservedFor");
    let path = "status.reservedFor";
    c.each(path, consumers, CONSUMERS_MAX, |c, path, one| {
        for name in ["resource", "name", "uid"] {
            if text(one, name).is_empty() {
                c.required(format!("{path}.{name}"), "");
            }
        }
    });
    distinct(&mut c, path, consumers, CONSUMERS_MAX, |one| {
        text(one, "uid").to_owned()
    });
    let given = at(new, "status.allocation");
    let results: HashSet<String> = list(given, "devices.results").iter().map(id).collect();
    let path = "status.devices";
    let devices = list(new, path);
    c.each(path, devices, usize::MAX, |c, path, one| {
        device_status(c, path, one, &results);
    });
    distinct(&mut c, path, devices, usize::MAX, id);
    let had = list(old, "status.reservedFor");
    if !consumers.is_empty() && given.is_null() {
        c.forbidden(
            "status.reservedFor",
            "may not be specified when `allocated` is not set",
        );
    } else if !at(new, "metadata.deletionTimestamp").is_null()
        && consumers.iter().any(|one| !had.contains(one))
    {
        c.forbidden(
            "status.reservedFor",
            "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set",
        );
    }
    let before = at(old, "status.allocation");
    if given.is_null() {
    } else if before.is_null() {
        allocation(&mut c, given, &Requests::of(at(new, "spec.devices")));
    } else if given != before {
        c.invalid("status.allocation", given, IMMUTABLE);
    }
    c.0
}

/// Which device, and which share of it.
fn id(v: &Value) -> String {
    let parts = ["driver", "pool", "device", "shareID"].map(|name| text(v, name));
    parts.join("/").trim_end_matches('/').to_owned()
}

fn named(c: &mut Check, path: &str, v: &Value) {
    driver(c, format!("{path}.driver"), at(v, "driver"));
    pool(c, format!("{path}.pool"), at(v, "pool"));
    c.rule(
        format!("{path}.device"),
        at(v, "device"),
        names::dns1123_label,
    );
    let share = at(v, "shareID");
    let text = share.as_str().unwrap_or_default();
    let form = |(i, b): (usize, u8)| match i {
        8 | 13 | 18 | 23 => b == b'-',
        _ => b.is_ascii_digit() || (b'a'..=b'f').contains(&b),
    };
    let is_uid = text.len() == 36 && text.bytes().enumerate().all(form);
    if !share.is_null() && !is_uid {
        let detail = "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase hexadecimal characters";
        c.invalid(format!("{path}.shareID"), share, detail);
    }
}

fn device_status(c: &mut Check, path: &str, v: &Value, results: &HashSet<String>) {
    named(c, path, v);
    if !results.contains(&id(v)) {
        let detail = "must be an allocated device in the claim";
        c.invalid(path, &id(v).into(), detail);
    }
    c.conditions(
        &format!("{path}.conditions"),
        at(v, "conditions"),
        CONDITIONS_MAX,
    );
    if !at(v, "data").is_null() {
        raw(c, format!("{path}.data"), at(v, "data"));
    }
    let (path, network) = (format!("{path}.networkData"), at(v, "networkData"));
    for (name, max) in [
        ("interfaceName", INTERFACE_BYTES_MAX),
        ("hardwareAddress", HARDWARE_ADDRESS_BYTES_MAX),
    ] {
        if text(network, name).len() > max {
            c.add(FieldError::too_long(format!("{path}.{name}"), max));
        }
    }
    let (path, ips) = (format!("{path}.ips"), list(network, "ips"));
    c.each(&path, ips, ADDRESSES_MAX, |c, path, one| {
        if !has_format(Format::Cidr, one.as_str().unwrap_or_default()) {
            let detail =
                "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)";
            c.invalid(path, one, detail);
        }
    });
    let key = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    distinct(c, &path, ips, ADDRESSES_MAX, key);
}

fn allocation(c: &mut Check, v: &Value, known: &Requests<'_>) {
    let path = "status.allocation.devices.results";
    c.each(
        path,
        list(v, "devices.results"),
        ITEMS_MAX,
        |c, path, one| {
            known.check(c, &format!("{path}.request"), at(one, "request"));
            named(c, path, one);
            binding(c, path, one);
            tolerations(c, path, one);
            skipped(c, path, one);
        },
    );
    let path = "status.allocation.devices.config";
    // A class and a claim may each bring theirs.
    c.each(
        path,
        list(v, "devices.config"),
        2 * ITEMS_MAX,
        |c, path, one| {
            let sources = &["FromClaim", "FromClass"];
            c.one_of(format!("{path}.source"), at(one, "source"), sources);
            known.check_all(c, path, one);
            opaque(c, path, one);
        },
    );
    let nodes = at(v, "nodeSelector");
    pod_context::node_selector(c, "status.allocation.nodeSelector", nodes);
}

/// What must be true before a pod is bound to its node, and what must not.
pub(super) fn binding(c: &mut Check, path: &str, v: &Value) {
    let [good, bad] = ["bindingConditions", "bindingFailureConditions"];
    for name in [good, bad] {
        let (path, all) = (format!("{path}.{name}"), list(v, name));
        c.each(&path, all, BINDING_CONDITIONS_MAX, |c, path, one| {
            c.rule(path, one, names::qualified_name);
        });
        let mut seen = Unique::default();
        for (i, one) in all.iter().enumerate() {
            seen.check(c, format!("{path}[{i}]"), one);
            if name == bad && list(v, good).contains(one) {
                let detail = "bindingFailureConditions must not overlap with bindingConditions";
                c.invalid(format!("{path}[{i}]"), one, detail);
            }
        }
    }
    for (name, other) in [(good, bad), (bad, good)] {
        if list(v, name).is_empty() && !list(v, other).is_empty() {
            let detail = format!("{name} are required to use {other}");
            c.invalid(format!("{path}.{name}"), at(v, name), detail);
        }
    }
}

/// What a kubelet need not do.
pub(super) fn skipped(c: &mut Check, path: &str, v: &Value) {
    const PREPARE: &str = "NodePrepareResources";
    const UNPREPARE: &str = "NodeUnprepareResources";
    let (path, all) = (
        format!("{path}.skipNodeOperations"),
        list(v, "skipNodeOperations"),
    );
    let mut seen = Unique::default();
    for (i, one) in all.iter().enumerate() {
        let path = format!("{path}[{i}]");
        c.one_of(path.as_str(), one, &["*", PREPARE, UNPREPARE]);
        seen.check(c, path, one);
    }
    let has = |name: &str| all.iter().any(|one| one == name);
    if has(PREPARE) && !has(UNPREPARE) && !has("*") {
        let detail =
            "NodePrepareResources cannot be skipped unless NodeUnprepareResources is also skipped";
        c.invalid(path, at(v, "skipNodeOperations"), detail);
    }
}

#[cfg(test)]
mod tests {
    use super::super::told;
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    fn sound() -> Value {
        json!({"spec": {"devices": {"requests": [
            {"name": "b", "firstAvailable": [{"name": "small", "deviceClassName": "gpu"}]},
        ]}}})
    }

    #[test]
    fn what_is_given_is_what_was_asked_for() {
        let old = sound();
        let mut new = sound();
        let share = "11111111-1111-1111-1111-111111111111";
        new["status"] = json!({
            "allocation": {"devices": {
                "results": [{"request": "b/small", "driver": "x.y", "pool": "p/q", "device": "d", "shareID": share,
                    "bindingConditions": ["x.y/a"], "bindingFailureConditions": ["x.y/b"]}],
                "config": [{"source": "FromClass", "opaque": {"driver": "x.y", "parameters": {}}}],
            }},
            "reservedFor": [{"resource": "pods", "name": "p", "uid": "1"}],
            "devices": [{"driver": "x.y", "pool": "p/q", "device": "d", "shareID": share,
                "networkData": {"ips": ["10.9.8.7/24", "2001:db8::1/64"]},
                "conditions": [{"type": "Ready", "status": "True", "reason": "R", "lastTransitionTime": "t"}]}],
        });
        told(claim_status(&new, &old), expect![""]);
        let given = new.clone();
        let result = &mut new["status"]["allocation"]["devices"]["results"][0];
        result["request"] = json!("c");
        result["pool"] = json!("");
        result["bindingFailureConditions"] = json!(["x.y/a"]);
        result["skipNodeOperations"] = json!(["NodePrepareResources"]);
        new["status"]["allocation"]["devices"]["config"][0]["source"] = json!("");
        new["status"]["allocation"]["nodeSelector"] = json!({});
        new["status"]["reservedFor"] = json!([{"resource": "pods", "uid": "1"}, {"resource": "pods", "name": "q", "uid": "1"}]);
        let device = &mut new["status"]["devices"][0];
        device["shareID"] = json!("1");
        device["networkData"] = json!({"ips": ["10.9.8.7"], "interfaceName": "i".repeat(257)});
        device["data"] = json!("text");
        device["conditions"] =
            json!([{"type": "Ready", "status": "Yes", "reason": "R:"}, {"type": "Ready"}]);
        told(
            claim_status(&new, &old),
            expect![[r#"
                status.reservedFor[0].name: Required value
                status.reservedFor[1]: Duplicate value: "1"
                status.devices[0].shareID: Invalid value: "1": uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase hexadecimal characters
                status.devices[0]: Invalid value: "x.y/p/q/d/1": must be an allocated device in the claim
                status.devices[0].conditions[1].type: Duplicate value: "Ready"
                status.devices[0].conditions[0].status: Unsupported value: "Yes": supported values: "False", "True", "Unknown"
                status.devices[0].conditions[0].lastTransitionTime: Required value: must be set
                status.devices[0].conditions[0].reason: Invalid value: "R:": a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')
                status.devices[0].conditions[1].status: Unsupported value: "": supported values: "False", "True", "Unknown"
                status.devices[0].conditions[1].lastTransitionTime: Required value: must be set
                status.devices[0].conditions[1].reason: Required value: must be set
                status.devices[0].data: Invalid value: "<value omitted>": must be a valid JSON object
                status.devices[0].networkData.interfaceName: Too long: may not be more than 256 bytes
                status.devices[0].networkData.ips[0]: Invalid value: "10.9.8.7": must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)
                status.allocation.devices.results[0].request: Invalid value: "c": must be the name of a request in the claim or the name of a request and a subrequest separated by '/'
                status.allocation.devices.results[0].pool: Required value
                status.allocation.devices.results[0].bindingFailureConditions[0]: Invalid value: "x.y/a": bindingFailureConditions must not overlap with bindingConditions
                status.allocation.devices.results[0].skipNodeOperations: Invalid value: ["NodePrepareResources"]: NodePrepareResources cannot be skipped unless NodeUnprepareResources is also skipped
                status.allocation.devices.config[0].source: Required value
                status.allocation.nodeSelector.nodeSelectorTerms: Required value: must have at least one node selector term"#]],
        );
        told(
            claim_status(&new, &given),
            expect![[r#"
                status.reservedFor[0].name: Required value
                status.reservedFor[1]: Duplicate value: "1"
                status.devices[0].shareID: Invalid value: "1": uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase hexadecimal characters
                status.devices[0]: Invalid value: "x.y/p/q/d/1": must be an allocated device in the claim
                status.devices[0].conditions[1].type: Duplicate value: "Ready"
                status.devices[0].conditions[0].status: Unsupported value: "Yes": supported values: "False", "True", "Unknown"
                status.devices[0].conditions[0].lastTransitionTime: Required value: must be set
                status.devices[0].conditions[0].reason: Invalid value: "R:": a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')
                status.devices[0].conditions[1].status: Unsupported value: "": supported values: "False", "True", "Unknown"
                status.devices[0].conditions[1].lastTransitionTime: Required value: must be set
                status.devices[0].conditions[1].reason: Required value: must be set
                status.devices[0].data: Invalid value: "<value omitted>": must be a valid JSON object
                status.devices[0].networkData.interfaceName: Too long: may not be more than 256 bytes
                status.devices[0].networkData.ips[0]: Invalid value: "10.9.8.7": must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)
                status.allocation: Invalid value: {"devices":{"config":[{"opaque":{"driver":"x.y","parameters":{}},"source":""}],"results":[{"bindingConditions":["x.y/a"],"bindingFailureConditions":["x.y/a"],"device":"d","driver":"x.y","pool":"","request":"c","shareID":"11111111-1111-1111-1111-111111111111","skipNodeOperations":["NodePrepareResources"]}]},"nodeSelector":{}}: field is immutable"#]],
        );
        new = given.clone();
        new["status"]["allocation"] = Value::Null;
        new["status"]["devices"] = json!([]);
        told(
            claim_status(&new, &given),
            expect![
                "status.reservedFor: Forbidden: may not be specified when `allocated` is not set"
            ],
        );
        new = given.clone();
        new["metadata"]["deletionTimestamp"] = json!("t");
        new["status"]["reservedFor"] = json!([{"resource": "pods", "name": "q", "uid": "2"}]);
        told(
            claim_status(&new, &given),
            expect![
                "status.reservedFor: Forbidden: new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set"
            ],
        );
    }
}

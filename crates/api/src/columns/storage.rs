//! Volumes, claims, classes, drivers, devices.

use super::{UNSET, age, count, deleting, integer, list, or, scalar, string, wide, yes_no};
use crate::Column;
use crate::access::{at, text};
use serde_json::{Value, json};

pub(crate) const VOLUME: &[Column] = &[
    string("Capacity"),
    string("Access Modes"),
    string("Reclaim Policy"),
    string("Status"),
    string("Claim"),
    string("StorageClass"),
    string("VolumeAttributesClass"),
    string("Reason"),
    string("Age"),
    wide("VolumeMode"),
];

pub(crate) fn volume(v: &Value, now: i64) -> Vec<Value> {
    let claim = match at(v, "spec.claimRef") {
        Value::Null => String::new(),
        c => format!("{}/{}", text(c, "namespace"), text(c, "name")),
    };
    vec![
        json!(scalar(at(v, "spec.capacity.storage"))),
        json!(modes(at(v, "spec.accessModes"))),
        json!(text(v, "spec.persistentVolumeReclaimPolicy")),
        phase(v),
        json!(claim),
        json!(text(v, "spec.storageClassName")),
        or(v, "spec.volumeAttributesClassName", UNSET),
        json!(text(v, "status.reason")),
        age(v, now),
        or(v, "spec.volumeMode", UNSET),
    ]
}

pub(crate) const CLAIM: &[Column] = &[
    string("Status"),
    string("Volume"),
    string("Capacity"),
    string("Access Modes"),
    string("StorageClass"),
    string("VolumeAttributesClass"),
    string("Age"),
    wide("VolumeMode"),
];

pub(crate) fn claim(v: &Value, now: i64) -> Vec<Value> {
    // What a claim got is only known once it is bound.
    let (capacity, access) = match text(v, "spec.volumeName") {
        "" => (String::new(), String::new()),
        _ => (
            scalar(at(v, "status.capacity.storage")),
            modes(at(v, "status.accessModes")),
        ),
    };
    vec![
        phase(v),
        json!(text(v, "spec.volumeName")),
        json!(capacity),
        json!(access),
        json!(text(v, "spec.storageClassName")),
        or(v, "spec.volumeAttributesClassName", UNSET),
        age(v, now),
        or(v, "spec.volumeMode", UNSET),
    ]
}

fn phase(v: &Value) -> Value {
    if deleting(v) {
        json!("Terminating")
    } else {
        json!(text(v, "status.phase"))
    }
}

fn modes(v: &Value) -> String {
    let short = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let has = |mode: &str| v.as_array().is_some_and(|a| a.iter().any(|m| m == mode));
    let all: Vec<&str> = short
        .iter()
        .filter(|(mode, _)| has(mode))
        .map(|(_, short)| *short)
        .collect();
    all.join(",")
}

pub(crate) const STORAGE_CLASS: &[Column] = &[
    string("Provisioner"),
    string("ReclaimPolicy"),
    string("VolumeBindingMode"),
    string("AllowVolumeExpansion"),
    string("Age"),
];

pub(crate) fn storage_class(v: &Value, now: i64) -> Vec<Value> {
    vec![
        json!(text(v, "provisioner")),
        or(v, "reclaimPolicy", "Delete"),
        or(v, "volumeBindingMode", "Immediate"),
        yes_no(at(v, "allowVolumeExpansion"), "false"),
        age(v, now),
    ]
}

pub(crate) const ATTRIBUTES_CLASS: &[Column] = &[string("DriverName"), string("Age")];

pub(crate) fn attributes_class(v: &Value, now: i64) -> Vec<Value> {
    vec![json!(text(v, "driverName")), age(v, now)]
}

pub(crate) const ATTACHMENT: &[Column] = &[
    string("Attacher"),
    string("PV"),
    string("Node"),
    string("Attached"),
    string("Age"),
];

pub(crate) fn attachment(v: &Value, now: i64) -> Vec<Value> {
    vec![
        json!(text(v, "spec.attacher")),
        json!(text(v, "spec.source.persistentVolumeName")),
        json!(text(v, "spec.nodeName")),
        yes_no(at(v, "status.attached"), "false"),
        age(v, now),
    ]
}

pub(crate) const DRIVER: &[Column] = &[
    string("AttachRequired"),
    string("PodInfoOnMount"),
    string("StorageCapacity"),
    string("TokenRequests"),
    string("RequiresRepublish"),
    string("Modes"),
    string("Age"),
];

pub(crate) fn driver(v: &Value, now: i64) -> Vec<Value> {
    let join = |items: Vec<&str>| match items.is_empty() {
        true => json!(UNSET),
        false => json!(items.join(",")),
    };
    let modes = list(v, "spec.volumeLifecycleModes");
    let tokens = list(v, "spec.tokenRequests");
    vec![
        yes_no(at(v, "spec.attachRequired"), "true"),
        yes_no(at(v, "spec.podInfoOnMount"), "false"),
        yes_no(at(v, "spec.storageCapacity"), "false"),
        join(tokens.iter().map(|t| text(t, "audience")).collect()),
        yes_no(at(v, "spec.requiresRepublish"), "false"),
        join(modes.iter().filter_map(Value::as_str).collect()),
        age(v, now),
    ]
}

pub(crate) const CSI_NODE: &[Column] = &[integer("Drivers"), string("Age")];

pub(crate) fn csi_node(v: &Value, now: i64) -> Vec<Value> {
    vec![json!(count(at(v, "spec.drivers"))), age(v, now)]
}

pub(crate) const STORAGE_CAPACITY: &[Column] = &[string("StorageClassName"), string("Capacity")];

pub(crate) fn storage_capacity(v: &Value, _now: i64) -> Vec<Value> {
    vec![
        json!(text(v, "storageClassName")),
        json!(scalar(at(v, "capacity"))),
    ]
}

pub(crate) const RESOURCE_CLAIM: &[Column] = &[string("State"), string("Age")];

pub(crate) fn resource_claim(v: &Value, now: i64) -> Vec<Value> {
    let mut states = Vec::new();
    if deleting(v) {
        states.push("deleted");
    }
    if at(v, "status.allocation").is_null() {
        states.push("pending");
    } else {
        states.push("allocated");
        if !list(v, "status.reservedFor").is_empty() {
            states.push("reserved");
        }
    }
    vec![json!(states.join(",")), age(v, now)]
}

pub(crate) const RESOURCE_SLICE: &[Column] = &[
    string("Node"),
    string("Driver"),
    string("Pool"),
    string("Age"),
];

pub(crate) fn resource_slice(v: &Value, now: i64) -> Vec<Value> {
    vec![
        json!(text(v, "spec.nodeName")),
        json!(text(v, "spec.driver")),
        json!(text(v, "spec.pool.name")),
        age(v, now),
    ]
}

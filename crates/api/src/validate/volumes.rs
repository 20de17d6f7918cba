//! Volumes of a pod and where containers mount them.

use super::{Check, Unique};
use crate::access::{at, is_empty, list, text};
use apimachinery::names;
use apimachinery::status::FieldError;
use serde_json::Value;
use std::collections::{HashMap, HashSet};

/// Names of a pod's volumes, and whether each is a claim, whose volume may be a block device.
pub(super) type Volumes<'a> = HashMap<&'a str, bool>;

/// Checks volumes; returns their names.
pub(super) fn volumes<'a>(c: &mut Check, path: &str, all: &'a [Value]) -> Volumes<'a> {
    let mut seen = Unique::default();
    let mut known = HashMap::new();
    for (i, v) in all.iter().enumerate() {
        let path = format!("{path}[{i}]");
        source(c, &path, v);
        let name = at(v, "name");
        seen.check(c, format!("{path}.name"), name);
        c.required_rule(format!("{path}.name"), name, names::dns1123_label);
        let claims = ["persistentVolumeClaim", "ephemeral"];
        let is_claim = claims.iter().any(|kind| !at(v, kind).is_null());
        known.extend(name.as_str().map(|name| (name, is_claim)));
    }
    known
}

fn source(c: &mut Check, path: &str, v: &Value) {
    let given = v
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(k, s)| *k != "name" && !s.is_null())
        .count();
    if given == 0 {
        return c.required(path, "must specify a volume type");
    }
    let mut first = true;
    for kind in ORDER {
        let s = at(v, kind);
        if s.is_null() {
            continue;
        }
        if !first {
            c.forbidden(
                format!("{path}.{kind}"),
                "may not specify more than 1 volume type",
            );
            continue;
        }
        first = false;
        let need = match *kind {
            "hostPath" => "path",
            "configMap" => "name",
            "secret" => "secretName",
            "persistentVolumeClaim" => "claimName",
            "nfs" => "server",
            "csi" => "driver",
            // Whoever makes pods of a template may fill it in.
            "image" if path.starts_with("spec.volumes[") => "reference",
            _ => "",
        };
        if !need.is_empty() && text(s, need).is_empty() {
            c.required(format!("{path}.{kind}.{need}"), "");
        }
        if matches!(*kind, "configMap" | "secret") {
            items(c, &format!("{path}.{kind}"), s);
        }
        if *kind == "image" {
            let path = format!("{path}.image.pullPolicy");
            c.one_of(path, at(s, "pullPolicy"), PULL_POLICIES);
        }
        if *kind == "hostPath" && text(s, "path").split('/').any(|p| p == "..") {
            c.invalid(
                format!("{path}.{kind}.path"),
                at(s, "path"),
                "must not contain '..'",
            );
        }
    }
}

/// When an image's registry is asked.
pub(super) const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];

/// Sources in the order in which upstream looks at them.
const ORDER: &[&str] = &[
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

fn items(c: &mut Check, path: &str, s: &Value) {
    let mode = at(s, "defaultMode");
    if mode.as_i64().is_some_and(|m| !(0..=0o777).contains(&m)) {
        c.invalid(
            format!("{path}.defaultMode"),
            mode,
            "must be a number between 0 and 0777 (octal), both inclusive",
        );
    }
    for (i, item) in list(s, "items").iter().enumerate() {
        let path = format!("{path}.items[{i}]");
        if text(item, "key").is_empty() {
            c.required(format!("{path}.key"), "");
        }
        let to = text(item, "path");
        if to.is_empty() {
            c.required(format!("{path}.path"), "");
        } else if to.starts_with('/') {
            c.invalid(
                format!("{path}.path"),
                at(item, "path"),
                "must be a relative path",
            );
        } else if to.split('/').any(|p| p == "..") {
            c.invalid(
                format!("{path}.path"),
                at(item, "path"),
                "must not contain '..'",
            );
        }
    }
}

/// Checks a container's mounts and devices against the pod's volumes.
pub(super) fn mounts(c: &mut Check, path: &str, container: &Value, volumes: &Volumes<'_>) {
    let (all, others) = (
        list(container, "volumeMounts"),
        list(container, "volumeDevices"),
    );
    devices(c, &format!("{path}.volumeDevices"), others, all, volumes);
    let mut paths = HashSet::new();
    for (i, m) in all.iter().enumerate() {
        let path = format!("{path}.volumeMounts[{i}]");
        let name = at(m, "name");
        if is_empty(name) {
            c.required(format!("{path}.name"), "");
        } else if !volumes.contains_key(text(m, "name")) {
            c.add(FieldError::not_found(format!("{path}.name"), name));
        }
        let mount_path = text(m, "mountPath");
        if mount_path.is_empty() {
            c.required(format!("{path}.mountPath"), "");
        } else if !paths.insert(mount_path) {
            c.invalid(
                format!("{path}.mountPath"),
                at(m, "mountPath"),
                "must be unique",
            );
        }
        for (field, other, detail) in [
            ("name", "name", "must not already exist in volumeDevices"),
            (
                "mountPath",
                "devicePath",
                "must not already exist as a path in volumeDevices",
            ),
        ] {
            if has(others, other, at(m, field)) {
                c.invalid(format!("{path}.{field}"), at(m, field), detail);
            }
        }
        let sub = text(m, "subPath");
        if sub.starts_with('/') {
            c.invalid(
                format!("{path}.subPath"),
                at(m, "subPath"),
                "must be a relative path",
            );
        } else if sub.split('/').any(|p| p == "..") {
            c.invalid(
                format!("{path}.subPath"),
                at(m, "subPath"),
                "must not contain '..'",
            );
        }
    }
}

fn has(all: &[Value], field: &str, v: &Value) -> bool {
    !is_empty(v) && all.iter().any(|one| at(one, field) == v)
}

/// Claims whose volumes a container sees as devices.
fn devices(c: &mut Check, path: &str, all: &[Value], mounts: &[Value], volumes: &Volumes<'_>) {
    for (i, d) in all.iter().enumerate() {
        let (name, to, before) = (at(d, "name"), at(d, "devicePath"), &all[..i]);
        let (name_path, to_path) = (
            format!("{path}[{i}].name"),
            format!("{path}[{i}].devicePath"),
        );
        if is_empty(name) {
            c.required(name_path.as_str(), "");
        } else if has(before, "name", name) {
            c.invalid(name_path.as_str(), name, "must be unique");
        }
        match volumes.get(text(d, "name")) {
            Some(true) => {}
            Some(false) => c.invalid(
                name_path.as_str(),
                name,
                "can only use volume source type of PersistentVolumeClaim for block mode",
            ),
            None => {
                let name = text(d, "name").into();
                c.add(FieldError::not_found(name_path.as_str(), &name));
            }
        }
        if is_empty(to) {
            c.required(to_path.as_str(), "");
        } else if has(before, "devicePath", to) {
            c.invalid(to_path.as_str(), to, "must be unique");
        }
        if text(d, "devicePath").contains("..") {
            let detail = "can not contain backsteps ('..')";
            c.invalid(to_path.as_str(), to, detail);
        }
        if has(mounts, "name", name) {
            let detail = "must not already exist in volumeMounts";
            c.invalid(name_path, name, detail);
        }
        if has(mounts, "mountPath", to) {
            let detail = "must not already exist as a path in volumeMounts";
            c.invalid(to_path, to, detail);
        }
    }
}

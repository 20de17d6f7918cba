//! Volumes of a pod and where containers mount them.

use super::{Check, Unique};
use crate::access::{at, is_empty, list, text};
use apimachinery::names;
use apimachinery::status::FieldError;
use serde_json::Value;
use std::collections::HashSet;

/// Checks volumes; returns their names.
pub(super) fn volumes<'a>(c: &mut Check, path: &str, all: &'a [Value]) -> HashSet<&'a str> {
    let mut seen = Unique::default();
    let mut known = HashSet::new();
    for (i, v) in all.iter().enumerate() {
        let path = format!("{path}[{i}]");
        source(c, &path, v);
        let name = at(v, "name");
        seen.check(c, format!("{path}.name"), name);
        c.required_rule(format!("{path}.name"), name, names::dns1123_label);
        known.extend(name.as_str());
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

/// Checks a container's mounts against the pod's volumes.
pub(super) fn mounts(c: &mut Check, path: &str, container: &Value, volumes: &HashSet<&str>) {
    let mut paths = HashSet::new();
    for (i, m) in list(container, "volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{i}]");
        let name = at(m, "name");
        if is_empty(name) {
            c.required(format!("{path}.name"), "");
        } else if !volumes.contains(text(m, "name")) {
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

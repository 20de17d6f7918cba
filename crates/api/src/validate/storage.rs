//! What CSI drivers and their sidecars write.

use super::{Check, Unique};
use crate::access::{at, is_empty, list, text};
use apimachinery::names;
use apimachinery::status::FieldError;
use serde_json::{Value, json};

/// Longest name of a driver, and of a node as a driver calls it.
const DRIVER_BYTES_MAX: usize = 63;
const NODE_ID_BYTES_MAX: usize = 192;
/// Most parameters of a class of attributes, and their bytes.
const PARAMETERS_MAX: usize = 512;
const PARAMETER_BYTES_MAX: usize = 256 * 1024;

/// The name of a driver: a subdomain, capitals allowed.
pub(super) fn driver(c: &mut Check, path: String, v: &Value) {
    let name = v.as_str().unwrap_or_default();
    if name.is_empty() {
        return c.required(path, "");
    }
    if name.len() > DRIVER_BYTES_MAX {
        c.add(FieldError::too_long(path.as_str(), DRIVER_BYTES_MAX));
    }
    if let Err(e) = names::dns1123_subdomain(&name.to_lowercase()) {
        c.invalid(path, v, e);
    }
}

/// `CSIDriver`.
pub(crate) fn csi_driver(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    driver(&mut c, "metadata.name".to_owned(), at(v, "metadata.name"));
    for name in [
        "attachRequired",
        "podInfoOnMount",
        "storageCapacity",
        "requiresRepublish",
        "seLinuxMount",
    ] {
        let path = format!("spec.{name}");
        if at(v, &path).is_null() {
            c.required(path, "");
        }
    }
    c.optional_one_of(
        "spec.fsGroupPolicy",
        at(v, "spec.fsGroupPolicy"),
        &["ReadWriteOnceWithFSType", "File", "None"],
    );
    for (i, mode) in list(v, "spec.volumeLifecycleModes").iter().enumerate() {
        let path = format!("spec.volumeLifecycleModes[{i}]");
        c.one_of(path, mode, &["Persistent", "Ephemeral"]);
    }
    let mut audiences = Unique::default();
    for (i, request) in list(v, "spec.tokenRequests").iter().enumerate() {
        let path = format!("spec.tokenRequests[{i}]");
        audiences.check(&mut c, format!("{path}.audience"), at(request, "audience"));
        let seconds = at(request, "expirationSeconds");
        let path = format!("{path}.expirationSeconds");
        match seconds.as_i64() {
            Some(n) if n < 600 => {
                c.invalid(
                    path,
                    seconds,
                    "may not specify a duration less than 10 minutes",
                );
            }
            Some(n) if n > 1 << 32 => {
                c.invalid(
                    path,
                    seconds,
                    "may not specify a duration larger than 2^32 seconds",
                );
            }
            _ => {}
        }
    }
    c.0
}

/// Of a `CSIDriver` the way it attaches and its modes stay.
pub(crate) fn csi_driver_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    c.immutable("spec.attachRequired", new, old);
    c.immutable("spec.volumeLifecycleModes", new, old);
    c.0
}

/// `CSINode`.
pub(crate) fn csi_node(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let mut drivers = Unique::default();
    for (i, one) in list(v, "spec.drivers").iter().enumerate() {
        let path = format!("spec.drivers[{i}]");
        driver(&mut c, format!("{path}.name"), at(one, "name"));
        drivers.check(&mut c, format!("{path}.name"), at(one, "name"));
        let id = text(one, "nodeID");
        if id.is_empty() {
            c.required(format!("{path}.nodeID"), "");
        } else if id.len() > NODE_ID_BYTES_MAX {
            let e = format!("must be {NODE_ID_BYTES_MAX} characters or less");
            c.invalid(format!("{path}.nodeID"), at(one, "nodeID"), e);
        }
        c.not_negative(
            format!("{path}.allocatable.count"),
            at(one, "allocatable.count"),
        );
        let mut keys = Unique::default();
        for key in list(one, "topologyKeys") {
            let path = format!("{path}.topologyKeys");
            if is_empty(key) {
                c.required(path.as_str(), "");
            }
            keys.check(&mut c, path.clone(), key);
            c.rule(path, key, names::qualified_name);
        }
    }
    c.0
}

/// A driver of a `CSINode` comes and goes but does not change, save what it can attach.
pub(crate) fn csi_node_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let fixed = |v: &Value| (at(v, "nodeID").clone(), at(v, "topologyKeys").clone());
    for (i, one) in list(new, "spec.drivers").iter().enumerate() {
        let mut before = list(old, "spec.drivers").iter();
        let before = before.find(|o| at(o, "name") == at(one, "name"));
        if before.is_some_and(|before| fixed(before) != fixed(one)) {
            c.invalid(format!("spec.drivers[{i}]"), one, super::IMMUTABLE);
        }
    }
    c.0
}

/// `CSIStorageCapacity`.
pub(crate) fn csi_capacity(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    c.required_rule(
        "storageClassName",
        at(v, "storageClassName"),
        names::dns1123_subdomain,
    );
    if !at(v, "nodeTopology").is_null() {
        c.selector("nodeTopology", at(v, "nodeTopology"));
    }
    for name in ["capacity", "maximumVolumeSize"] {
        c.quantity(name, at(v, name));
    }
    c.0
}

/// Whose capacity a `CSIStorageCapacity` tells stays.
pub(crate) fn csi_capacity_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    for field in ["nodeTopology", "storageClassName"] {
        c.immutable(field, new, old);
    }
    c.0
}

/// `VolumeAttachment`.
pub(crate) fn attachment(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    driver(&mut c, "spec.attacher".to_owned(), at(v, "spec.attacher"));
    let source = at(v, "spec.source");
    let (named, inline) = (
        at(source, "persistentVolumeName"),
        at(source, "inlineVolumeSpec"),
    );
    match (named.is_null(), inline.is_null()) {
        (true, true) => c.required(
            "spec.source",
            "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
        ),
        (false, false) => c.forbidden(
            "spec.source",
            "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
        ),
        (false, true) if is_empty(named) => {
            c.required("spec.source.persistentVolumeName", "must not be empty");
        }
        _ => {}
    }
    c.required_rule(
        "spec.nodeName",
        at(v, "spec.nodeName"),
        names::dns1123_subdomain,
    );
    c.0
}

/// `VolumeAttributesClass`.
pub(crate) fn attributes_class(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    driver(&mut c, "driverName".to_owned(), at(v, "driverName"));
    let parameters = at(v, "parameters").as_object();
    let size: usize = parameters
        .into_iter()
        .flatten()
        .map(|(k, v)| k.len() + v.as_str().map_or(0, str::len))
        .sum();
    match parameters.map_or(0, serde_json::Map::len) {
        0 => c.required("parameters", "must contain at least one key/value pair"),
        n if n > PARAMETERS_MAX => c.add(FieldError::too_long("parameters", PARAMETERS_MAX)),
        _ if size > PARAMETER_BYTES_MAX => {
            c.add(FieldError::too_long("parameters", PARAMETER_BYTES_MAX));
        }
        _ if parameters.is_some_and(|p| p.contains_key("")) => {
            c.invalid("parameters", &json!(""), "field must not be empty");
        }
        _ => {}
    }
    c.0
}

/// A `VolumeAttributesClass` stays as it is.
pub(crate) fn attributes_class_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    for field in ["driverName", "parameters"] {
        if at(new, field) != at(old, field) {
            c.forbidden(field, format!("updates to {field} are forbidden."));
        }
    }
    c.0
}

#[cfg(test)]
mod tests {
    use super::super::told;
    use super::*;
    use expect_test::expect;

    #[test]
    fn drivers_and_nodes() {
        let driver = json!({"metadata": {"name": "CSI.example.com"}, "spec": {
            "attachRequired": true, "podInfoOnMount": false, "storageCapacity": false,
            "requiresRepublish": false, "seLinuxMount": false,
            "volumeLifecycleModes": ["Ephemeral", "Sometimes"], "fsGroupPolicy": "All",
            "tokenRequests": [{"audience": "a"}, {"audience": "a", "expirationSeconds": 10}],
        }});
        told(
            csi_driver(&driver),
            expect![[r#"
            spec.fsGroupPolicy: Unsupported value: "All": supported values: "ReadWriteOnceWithFSType", "File", "None"
            spec.volumeLifecycleModes[1]: Unsupported value: "Sometimes": supported values: "Persistent", "Ephemeral"
            spec.tokenRequests[1].audience: Duplicate value: "a"
            spec.tokenRequests[1].expirationSeconds: Invalid value: 10: may not specify a duration less than 10 minutes"#]],
        );
        let mut other = driver.clone();
        other["spec"]["attachRequired"] = false.into();
        told(
            csi_driver_update(&other, &driver),
            expect!["spec.attachRequired: Invalid value: false: field is immutable"],
        );
        let node = json!({"spec": {"drivers": [
            {"name": "a.b", "nodeID": "n", "topologyKeys": ["zone", "zone"], "allocatable": {"count": -1}},
            {"name": "a.b", "nodeID": ""},
        ]}});
        told(
            csi_node(&node),
            expect![[r#"
            spec.drivers[0].allocatable.count: Invalid value: -1: must be greater than or equal to 0
            spec.drivers[0].topologyKeys: Duplicate value: "zone"
            spec.drivers[1].name: Duplicate value: "a.b"
            spec.drivers[1].nodeID: Required value"#]],
        );
        let moved = json!({"spec": {"drivers": [{"name": "a.b", "nodeID": "m"}]}});
        told(
            csi_node_update(&moved, &node),
            expect![[
                r#"spec.drivers[0]: Invalid value: {"name":"a.b","nodeID":"m"}: field is immutable"#
            ]],
        );
    }

    #[test]
    fn attachments_capacities_and_classes() {
        told(
            attachment(&json!({"spec": {"attacher": "a b", "source": {}, "nodeName": ""}})),
            expect![[r#"
                spec.attacher: Invalid value: "a b": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
                spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName
                spec.nodeName: Required value"#]],
        );
        told(
            csi_capacity(&json!({"capacity": "-1", "storageClassName": "x"})),
            expect![[r#"capacity: Invalid value: "-1": must be greater than or equal to 0"#]],
        );
        let class = json!({"driverName": "a.b", "parameters": {"iops": "1"}});
        told(attributes_class(&class), expect![""]);
        let none = json!({"driverName": "a.c"});
        told(
            attributes_class(&none),
            expect!["parameters: Required value: must contain at least one key/value pair"],
        );
        told(
            attributes_class_update(&none, &class),
            expect![[r#"
            driverName: Forbidden: updates to driverName are forbidden.
            parameters: Forbidden: updates to parameters are forbidden."#]],
        );
    }
}

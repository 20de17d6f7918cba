//! APIServices: who serves a group's version. The reference is
//! `k8s.io/kube-aggregator/pkg/apis/apiregistration/validation`.

use super::Check;
use crate::access::{at, int, is_empty, text};
use apimachinery::names;
use apimachinery::status::FieldError;
use serde_json::Value;

/// `APIService`.
pub(crate) fn api_service(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let spec = at(v, "spec");
    let (group, version) = (text(spec, "group"), text(spec, "version"));
    let name = text(at(v, "metadata"), "name");
    let wanted = format!("{version}.{group}");
    if name != wanted {
        let detail = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
        c.invalid("metadata.name", &Value::from(name), detail);
    }
    // The core group has no name.
    if !group.is_empty() {
        c.rule("spec.group", &spec["group"], names::dns1123_subdomain);
    } else if version != "v1" {
        c.required(
            "spec.group",
            "only v1 may have an empty group and it better be legacy kube",
        );
    }
    c.required_rule("spec.version", &spec["version"], names::dns1035_label);
    for (key, most) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
        let n = int(spec, key);
        if !(1..=most).contains(&n) {
            let detail = format!("must be positive and less than {most}");
            c.invalid(format!("spec.{key}"), &Value::from(n), detail);
        }
    }
    let service = at(spec, "service");
    if is_empty(service) {
        for (key, sent) in [
            ("caBundle", !text(spec, "caBundle").is_empty()),
            (
                "insecureSkipTLSVerify",
                spec["insecureSkipTLSVerify"] == true,
            ),
        ] {
            if sent {
                let detail = "local APIServices may not be set";
                c.invalid(format!("spec.{key}"), &spec[key], detail);
            }
        }
        return c.0;
    }
    for key in ["namespace", "name"] {
        if text(service, key).is_empty() {
            c.required(format!("spec.service.{key}"), "");
        }
    }
    // Defaulted before.
    let port = int(service, "port");
    if let Err(e) = names::port_number(port) {
        c.invalid("spec.service.port", &Value::from(port), e);
    }
    if spec["insecureSkipTLSVerify"] == true && !text(spec, "caBundle").is_empty() {
        let detail = "may not be true if caBundle is present";
        c.invalid("spec.insecureSkipTLSVerify", &Value::from(true), detail);
    }
    c.0
}

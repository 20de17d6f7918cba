//! PodSecurity: pods keep to the level that their namespace's labels ask for.
//!
//! `enforce` refuses, `warn` tells (also of workloads' templates), `audit` notes it for the
//! audit log. The checks are those of the version of the standards that a label pins, else of
//! the newest. Upstream: "Pod Security Standards", "Pod Security Admission".

mod checks;

use super::Operation;
use crate::registry::Call;
use apimachinery::{FieldError, Status};
use checks::{Level, violations};
use serde_json::Value;

const PREFIX: &str = "pod-security.kubernetes.io/";
const LATEST: &str = "latest";
/// Violations among existing pods that one warning names.
const NAMED_PODS_MAX: usize = 10;

/// A level and the version that it is asked for in.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    level: Level,
    version: String,
}

impl Asked {
    /// Of `v1.MINOR`; of `latest`, and what can't be read, a large number.
    fn minor(&self) -> u32 {
        let minor = self.version.strip_prefix("v1.");
        minor.and_then(|m| m.parse().ok()).unwrap_or(u32::MAX)
    }
}

/// Checks what is written.
pub(super) fn validate(
    call: &Call<'_>,
    operation: Operation,
    new: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    match (call.row.group(), call.row.known(), call.subresource) {
        ("", "namespaces", "") if operation != Operation::Delete => labels(call, new, old),
        ("", "pods", "") if operation == Operation::Create => pod(call, new),
        ("", "pods", "ephemeralcontainers") => pod(call, new),
        (_, _, "") if operation != Operation::Delete => {
            template(call, new);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// What a namespace's labels ask for in a mode.
fn asked(namespace: &Value, mode: &str) -> Option<Asked> {
    let labels = &namespace["metadata"]["labels"];
    let level = Level::parse(labels[format!("{PREFIX}{mode}")].as_str()?)?;
    let version = labels[format!("{PREFIX}{mode}-version")].as_str();
    Some(Asked {
        level,
        version: version.unwrap_or(LATEST).to_owned(),
    })
}

fn namespace(call: &Call<'_>) -> Option<Value> {
    let found = call.core.peek("", "namespaces", "", call.namespace)?;
    // Most namespaces ask for nothing: don't parse them.
    let asks = ["enforce", "warn", "audit"]
        .iter()
        .any(|mode| found.label(&format!("{PREFIX}{mode}")).is_some());
    asks.then(|| found.value())
}

fn pod(call: &Call<'_>, pod: &Value) -> Result<(), Status> {
    let Some(namespace) = namespace(call) else {
        return Ok(());
    };
    note(call, &namespace, pod);
    let enforced = asked(&namespace, "enforce");
    if let Some(a) = &enforced {
        let policy = format!("{}:{}", a.level.name(), a.version);
        call.warnings
            .note(format!("{PREFIX}enforce-policy"), policy);
    }
    if let Some(text) = enforced.as_ref().and_then(|a| told(a, pod)) {
        return Err(call.forbidden(format!("violates {text}")));
    }
    if let Some(text) = asked(&namespace, "warn").and_then(|a| told(&a, pod)) {
        call.warnings.tell(format!("would violate {text}"));
    }
    Ok(())
}

/// Notes for the audit log what would violate the level that is audited.
fn note(call: &Call<'_>, namespace: &Value, pod: &Value) {
    if call.core.audit.is_none() {
        return;
    }
    if let Some(text) = asked(namespace, "audit").and_then(|a| told(&a, pod)) {
        let text = format!("would violate {text}");
        call.warnings
            .note(format!("{PREFIX}audit-violations"), text);
    }
}

/// Workloads are never refused: who makes their pods is told why there are none.
fn template(call: &Call<'_>, object: &Value) {
    let template = match call.row.known() {
        "podtemplates" => &object["template"],
        "cronjobs" => &object["spec"]["jobTemplate"]["spec"]["template"],
        "deployments"
        | "replicasets"
        | "statefulsets"
        | "daemonsets"
        | "jobs"
        | "replicationcontrollers" => &object["spec"]["template"],
        _ => return,
    };
    let Some(namespace) = namespace(call) else {
        return;
    };
    note(call, &namespace, template);
    if let Some(text) = asked(&namespace, "warn").and_then(|a| told(&a, template)) {
        call.warnings.tell(format!("would violate {text}"));
    }
}

/// `PodSecurity "LEVEL:VERSION": …`, when a pod does not keep to it.
fn told(asked: &Asked, pod: &Value) -> Option<String> {
    let found = violations(asked.level, asked.minor(), pod);
    (!found.is_empty()).then(|| {
        let all: Vec<String> = found.iter().map(ToString::to_string).collect();
        let (level, version) = (asked.level.name(), &asked.version);
        format!("PodSecurity \"{level}:{version}\": {}", all.join(", "))
    })
}

/// A namespace's labels must be readable; whoever raises a level is told of pods below it.
fn labels(call: &Call<'_>, new: &Value, old: Option<&Value>) -> Result<(), Status> {
    let errors = label_errors(new, old);
    if !errors.is_empty() {
        return Err(Status::invalid("", "Namespace", call.name, &errors));
    }
    let (Some(asked), Some(old)) = (asked(new, "enforce"), old) else {
        return Ok(());
    };
    if asked.level == Level::Privileged || self::asked(old, "enforce").as_ref() == Some(&asked) {
        return Ok(());
    }
    let kind = call.core.cache.named("", "pods");
    let all = kind.into_iter().flat_map(|k| k.all());
    let pods: Vec<Value> = all
        .filter(|o| o.namespace() == call.name)
        .map(|o| o.value())
        .collect();
    for text in existing(call.name, &asked, &pods) {
        call.warnings.tell(text);
    }
    Ok(())
}

fn label_errors(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for mode in ["enforce", "audit", "warn"] {
        for (key, is_good, expected) in [
            (
                format!("{PREFIX}{mode}"),
                (|v: &str| Level::parse(v).is_some()) as fn(&str) -> bool,
                "must be one of privileged, baseline, restricted",
            ),
            (
                format!("{PREFIX}{mode}-version"),
                is_version,
                "must be \"latest\" or \"v1.x\"",
            ),
        ] {
            let of = |o: &Value| o["metadata"]["labels"][&key].clone();
            let value = of(new);
            let unchanged = old.is_some_and(|old| of(old) == value);
            if !unchanged && value.as_str().is_some_and(|v| !is_good(v)) {
                let field = format!("metadata.labels[{key}]");
                errors.push(FieldError::invalid(field, &value, expected));
            }
        }
    }
    errors
}

fn is_version(text: &str) -> bool {
    let minor = text.strip_prefix("v1.").unwrap_or_default();
    text == LATEST
        || (minor.parse::<u16>().is_ok() && (minor == "0" || !minor.starts_with(['0', '+'])))
}

/// Warnings about pods that are there already.
fn existing(namespace: &str, asked: &Asked, pods: &[Value]) -> Vec<String> {
    let name = |pod: &Value| {
        pod["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let mut bad: Vec<(String, String)> = pods
        .iter()
        .filter_map(|pod| {
            let found = violations(asked.level, asked.minor(), pod);
            let reasons: Vec<&str> = found.iter().map(|v| v.reason).collect();
            (!found.is_empty()).then(|| (name(pod), reasons.join(", ")))
        })
        .collect();
    if bad.is_empty() {
        return Vec::new();
    }
    bad.sort();
    let (level, version) = (asked.level.name(), &asked.version);
    let mut told = vec![format!(
        "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{level}:{version}\""
    )];
    told.extend(
        bad.into_iter()
            .take(NAMED_PODS_MAX)
            .map(|(name, reasons)| format!("{name}: {reasons}")),
    );
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels_ask_for_levels() {
        let namespace = |labels: Value| json!({"metadata": {"name": "n", "labels": labels}});
        let good = namespace(json!({"pod-security.kubernetes.io/enforce": "baseline",
            "pod-security.kubernetes.io/enforce-version": "v1.30"}));
        assert_eq!(label_errors(&good, None), []);
        let found = asked(&good, "enforce");
        assert_eq!(found.map(|a| a.version).as_deref(), Some("v1.30"));
        assert_eq!(asked(&good, "warn"), None);
        let bad = namespace(json!({"pod-security.kubernetes.io/warn": "strict",
            "pod-security.kubernetes.io/audit-version": "1.30"}));
        let errors: Vec<String> = label_errors(&bad, None)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            errors,
            [
                "metadata.labels[pod-security.kubernetes.io/audit-version]: Invalid value: \"1.30\": must be \"latest\" or \"v1.x\"",
                "metadata.labels[pod-security.kubernetes.io/warn]: Invalid value: \"strict\": must be one of privileged, baseline, restricted",
            ]
        );
        assert_eq!(label_errors(&bad, Some(&bad)), [], "it was so before");
    }

    #[test]
    fn standards_are_those_of_their_version() {
        let pod = json!({"spec": {"securityContext": {"runAsNonRoot": true, "runAsUser": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
            "sysctls": [{"name": "net.ipv4.tcp_rmem", "value": "1"}]},
            "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": true,
                "capabilities": {"add": ["SYS_TIME"]}},
                "livenessProbe": {"httpGet": {"host": "h"}}}]}});
        let reasons = |version: &str| {
            let asked = Asked {
                level: Level::Restricted,
                version: version.to_owned(),
            };
            let found = violations(asked.level, asked.minor(), &pod);
            let reasons: Vec<&str> = found.iter().map(|v| v.reason).collect();
            reasons.join(", ")
        };
        let old = "non-default capabilities, forbidden sysctls";
        assert_eq!(reasons("v1.7"), old);
        assert_eq!(
            reasons("v1.8"),
            format!("{old}, allowPrivilegeEscalation != false")
        );
        assert_eq!(
            reasons("v1.23"),
            "forbidden sysctls, allowPrivilegeEscalation != false, unrestricted capabilities, runAsUser=0"
        );
        assert_eq!(
            reasons("v1.32"),
            "allowPrivilegeEscalation != false, unrestricted capabilities, runAsUser=0"
        );
        assert_eq!(reasons("latest"), reasons("v1.34"));
        assert!(reasons("latest").starts_with("probe or lifecycle host, "));
    }

    #[test]
    fn pods_below_a_new_level_are_told() {
        let asked = Asked {
            level: Level::Baseline,
            version: LATEST.to_owned(),
        };
        let pod = |name: &str, host: bool| json!({"metadata": {"name": name}, "spec": {"hostPID": host, "containers": []}});
        assert_eq!(
            existing("n", &asked, &[pod("a", false)]),
            Vec::<String>::new()
        );
        assert_eq!(
            existing("n", &asked, &[pod("a", false), pod("b", true)]),
            [
                "existing pods in namespace \"n\" violate the new PodSecurity enforce level \"baseline:latest\"",
                "b: host namespaces",
            ]
        );
    }
}

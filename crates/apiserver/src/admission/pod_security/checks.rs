//! The checks of the Pod Security Standards: pure. Reasons and details are worded as
//! upstream's, for those who read them by program.

use serde_json::Value;
use std::fmt;

/// How much a pod may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::Privileged, Self::Baseline, Self::Restricted]
            .into_iter()
            .find(|l| l.name() == text)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

/// One thing that a pod must not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) reason: &'static str,
    detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.reason, self.detail)
    }
}

type Check = fn(&Value) -> Option<Violation>;

/// A check of the baseline: since which minor version, and since which a stricter one of the
/// same field replaces it at the restricted level.
struct Basic(Check, u32, Option<u32>);

/// By their upstream names' order.
const BASELINE: &[Basic] = &[
    Basic(app_armor, 0, None),
    Basic(added_capabilities, 0, Some(22)),
    Basic(host_namespaces, 0, None),
    Basic(host_path_volumes, 0, Some(0)),
    Basic(host_ports, 0, None),
    Basic(host_probes, 34, None),
    Basic(privileged, 0, None),
    Basic(proc_mount, 0, None),
    Basic(se_linux, 0, None),
    Basic(unconfined_seccomp, 19, Some(19)),
];
/// With the minor version that each came in.
const RESTRICTED: &[(Check, u32)] = &[
    (privilege_escalation, 8),
    (kept_capabilities, 22),
    (volume_types, 0),
    (run_as_non_root, 0),
    (run_as_user, 23),
    (seccomp, 19),
];
/// Since this one, rules of Linux are not asked of pods that are Windows'.
const WINDOWS_EXEMPT: u32 = 25;

/// What a pod (or a template) does that a level forbids, as the standards were in a minor
/// version of Kubernetes: the newest for a large number.
pub(super) fn violations(level: Level, minor: u32, pod: &Value) -> Vec<Violation> {
    let mut found = Vec::new();
    if level == Level::Privileged {
        return found;
    }
    let plain;
    let pod = if minor < WINDOWS_EXEMPT && is_windows(pod) {
        let mut linux = pod.clone();
        linux["spec"]["os"] = Value::Null;
        plain = linux;
        &plain
    } else {
        pod
    };
    let stricter = level == Level::Restricted;
    for Basic(check, since, replaced) in BASELINE {
        let replaced = stricter && replaced.is_some_and(|r| minor >= r);
        if minor >= *since && !replaced {
            found.extend(check(pod));
        }
    }
    found.extend(sysctls(pod, minor));
    found.extend(windows_host_process(pod));
    if stricter {
        let asked = RESTRICTED.iter().filter(|(_, since)| minor >= *since);
        found.extend(asked.filter_map(|(check, _)| check(pod)));
    }
    found
}

const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// In the order of the versions that let them through.
const SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];
const VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];
const SE_LINUX_TYPES: [&str; 5] = [
    "",
    "container_t",
    "container_init_t",
    "container_kvm_t",
    "container_engine_t",
];
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
/// These rules are about Linux.
const WINDOWS: &str = "windows";

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|list| pod["spec"][list].as_array().into_iter().flatten())
}

fn name(v: &Value) -> &str {
    v["name"].as_str().unwrap_or_default()
}

fn quoted<S: AsRef<str>>(items: &[S]) -> String {
    let quoted = items.iter().map(|i| format!("{:?}", i.as_ref()));
    quoted.collect::<Vec<_>>().join(", ")
}

/// `container "a"`, `containers "a", "b"`.
fn these(word: &str, names: &[&str]) -> String {
    let plural = if names.len() == 1 { "" } else { "s" };
    format!("{word}{plural} {}", quoted(names))
}

fn violation(reason: &'static str, detail: String) -> Option<Violation> {
    Some(Violation { reason, detail })
}

/// A violation of those containers that a test picks.
fn of_containers(
    pod: &Value,
    reason: &'static str,
    rest: &str,
    picks: impl Fn(&Value) -> bool,
) -> Option<Violation> {
    let names: Vec<&str> = containers(pod).filter(|c| picks(c)).map(name).collect();
    if names.is_empty() {
        return None;
    }
    violation(reason, format!("{} {rest}", these("container", &names)))
}

/// The same of the pod itself, too: `pod and containers "a", "b" …`.
fn of_all(
    pod: &Value,
    reason: &'static str,
    rest: &str,
    picks: impl Fn(&Value) -> bool,
) -> Option<Violation> {
    let names: Vec<&str> = containers(pod)
        .filter(|c| picks(&c["securityContext"]))
        .map(name)
        .collect();
    let mut who = Vec::new();
    if picks(&pod["spec"]["securityContext"]) {
        who.push("pod".to_owned());
    }
    if !names.is_empty() {
        who.push(these("container", &names));
    }
    if who.is_empty() {
        return None;
    }
    violation(reason, format!("{} {rest}", who.join(" and ")))
}

fn is_windows(pod: &Value) -> bool {
    pod["spec"]["os"]["name"] == WINDOWS
}

fn host_namespaces(pod: &Value) -> Option<Violation> {
    let shared: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|key| pod["spec"][**key] == true)
        .map(|key| format!("{key}=true"))
        .collect();
    (!shared.is_empty()).then(|| Violation {
        reason: "host namespaces",
        detail: shared.join(", "),
    })
}

fn privileged(pod: &Value) -> Option<Violation> {
    let rest = "must not set securityContext.privileged=true";
    of_containers(pod, "privileged", rest, |c| {
        c["securityContext"]["privileged"] == true
    })
}

/// Names of containers and of what they add beyond what is allowed.
fn added(pod: &Value, allowed: &[&str]) -> Option<String> {
    let (mut names, mut extra): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for container in containers(pod) {
        let add = &container["securityContext"]["capabilities"]["add"];
        let add = add.as_array().into_iter().flatten();
        let bad: Vec<&str> = add
            .filter_map(Value::as_str)
            .filter(|c| !allowed.contains(c))
            .collect();
        if !bad.is_empty() {
            names.push(name(container));
            extra.extend(bad);
        }
    }
    extra.sort_unstable();
    extra.dedup();
    (!names.is_empty()).then(|| {
        let (who, what) = (these("container", &names), quoted(&extra));
        format!("{who} must not include {what} in securityContext.capabilities.add")
    })
}

fn added_capabilities(pod: &Value) -> Option<Violation> {
    violation("non-default capabilities", added(pod, &CAPABILITIES)?)
}

fn kept_capabilities(pod: &Value) -> Option<Violation> {
    if is_windows(pod) {
        return None;
    }
    let keeps = |c: &Value| {
        let drop = &c["securityContext"]["capabilities"]["drop"];
        !drop
            .as_array()
            .is_some_and(|d| d.iter().any(|c| c == "ALL"))
    };
    let names: Vec<&str> = containers(pod).filter(|c| keeps(c)).map(name).collect();
    let kept = (!names.is_empty()).then(|| {
        let who = these("container", &names);
        format!("{who} must set securityContext.capabilities.drop=[\"ALL\"]")
    });
    let details: Vec<String> = kept
        .into_iter()
        .chain(added(pod, &["NET_BIND_SERVICE"]))
        .collect();
    (!details.is_empty()).then(|| Violation {
        reason: "unrestricted capabilities",
        detail: details.join("; "),
    })
}

fn host_path_volumes(pod: &Value) -> Option<Violation> {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let names: Vec<&str> = volumes
        .filter(|v| !v["hostPath"].is_null())
        .map(name)
        .collect();
    if names.is_empty() {
        return None;
    }
    violation("hostPath volumes", these("volume", &names))
}

fn volume_types(pod: &Value) -> Option<Violation> {
    let (mut names, mut types) = (Vec::new(), Vec::new());
    for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
        let keys = volume.as_object().into_iter().flatten();
        let sources: Vec<&str> = keys
            .filter(|(key, source)| *key != "name" && !source.is_null())
            .map(|(key, _)| key.as_str())
            .collect();
        if sources.iter().any(|s| !VOLUMES.contains(s)) {
            names.push(name(volume));
            types.extend(sources);
        }
    }
    if names.is_empty() {
        return None;
    }
    types.sort_unstable();
    types.dedup();
    let (verb, plural) = if names.len() == 1 {
        ("uses", "")
    } else {
        ("use", "s")
    };
    let kinds = if types.len() == 1 && names.len() > 1 {
        ""
    } else {
        plural
    };
    let detail = format!(
        "{} {verb} restricted volume type{kinds} {}",
        these("volume", &names),
        quoted(&types)
    );
    violation("restricted volume types", detail)
}

fn host_ports(pod: &Value) -> Option<Violation> {
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for container in containers(pod) {
        let all = container["ports"].as_array().into_iter().flatten();
        let host: Vec<i64> = all
            .filter_map(|p| p["hostPort"].as_i64())
            .filter(|p| *p != 0)
            .collect();
        if !host.is_empty() {
            names.push(name(container));
            ports.extend(host);
        }
    }
    if names.is_empty() {
        return None;
    }
    ports.sort_unstable();
    ports.dedup();
    let verb = if names.len() == 1 { "uses" } else { "use" };
    let plural = if ports.len() == 1 { "" } else { "s" };
    let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
    let detail = format!(
        "{} {verb} hostPort{plural} {}",
        these("container", &names),
        ports.join(", ")
    );
    violation("hostPort", detail)
}

fn host_probes(pod: &Value) -> Option<Violation> {
    let asks = |handler: &Value| {
        ["httpGet", "tcpSocket"].iter().any(|kind| {
            handler[*kind]["host"]
                .as_str()
                .is_some_and(|h| !h.is_empty())
        })
    };
    let rest = "must not set \"host\" of probes and lifecycle handlers";
    of_containers(pod, "probe or lifecycle host", rest, |c| {
        ["livenessProbe", "readinessProbe", "startupProbe"]
            .iter()
            .any(|p| asks(&c[*p]))
            || ["postStart", "preStop"]
                .iter()
                .any(|h| asks(&c["lifecycle"][*h]))
    })
}

fn app_armor(pod: &Value) -> Option<Violation> {
    let mut details = Vec::new();
    let rest = "must not set AppArmor profile type to \"Unconfined\"";
    let unconfined = |c: &Value| c["appArmorProfile"]["type"] == "Unconfined";
    if let Some(found) = of_all(pod, "", rest, unconfined) {
        details.push(found.detail);
    }
    let mut annotations = Vec::new();
    for (key, value) in pod["metadata"]["annotations"]
        .as_object()
        .into_iter()
        .flatten()
    {
        let value = value.as_str().unwrap_or_default();
        let allowed =
            value.is_empty() || value == "runtime/default" || value.starts_with("localhost/");
        if key.starts_with(APP_ARMOR) && !allowed {
            annotations.push(format!("{key:?}={value:?}"));
        }
    }
    if !annotations.is_empty() {
        let plural = if annotations.len() == 1 { "" } else { "s" };
        details.push(format!("annotation{plural} {}", annotations.join(", ")));
    }
    let reason = if details.len() == 1 && annotations.len() < 2 {
        "forbidden AppArmor profile"
    } else {
        "forbidden AppArmor profiles"
    };
    (!details.is_empty()).then(|| Violation {
        reason,
        detail: details.join(", "),
    })
}

fn proc_mount(pod: &Value) -> Option<Violation> {
    // With a user namespace of its own a pod may unmask what is its own.
    if pod["spec"]["hostUsers"] == false {
        return None;
    }
    let other = |c: &Value| {
        let mount = c["securityContext"]["procMount"].as_str();
        mount.filter(|m| *m != "Default").map(str::to_owned)
    };
    let mut kinds: Vec<String> = containers(pod).filter_map(other).collect();
    kinds.sort();
    kinds.dedup();
    let rest = format!(
        "must not set securityContext.procMount to {}",
        quoted(&kinds)
    );
    of_containers(pod, "procMount", &rest, |c| other(c).is_some())
}

fn se_linux(pod: &Value) -> Option<Violation> {
    let options = |c: &Value| c["seLinuxOptions"].clone();
    let text = |o: &Value, key: &str| o[key].as_str().unwrap_or_default().to_owned();
    let is_bad = |c: &Value| {
        let o = options(c);
        !SE_LINUX_TYPES.contains(&text(&o, "type").as_str())
            || !text(&o, "user").is_empty()
            || !text(&o, "role").is_empty()
    };
    let all: Vec<Value> = std::iter::once(&pod["spec"]["securityContext"])
        .chain(containers(pod).map(|c| &c["securityContext"]))
        .map(options)
        .collect();
    let mut types: Vec<String> = all
        .iter()
        .map(|o| text(o, "type"))
        .filter(|t| !SE_LINUX_TYPES.contains(&t.as_str()))
        .collect();
    types.sort();
    types.dedup();
    let mut what = Vec::new();
    if !types.is_empty() {
        let plural = if types.len() == 1 { "" } else { "s" };
        what.push(format!("type{plural} {}", quoted(&types)));
    }
    for key in ["user", "role"] {
        if all.iter().any(|o| !text(o, key).is_empty()) {
            what.push(format!("{key} may not be set"));
        }
    }
    let rest = format!(
        "set forbidden securityContext.seLinuxOptions: {}",
        what.join("; ")
    );
    of_all(pod, "seLinuxOptions", &rest, is_bad)
}

const UNCONFINED: &str = "must not set securityContext.seccompProfile.type to \"Unconfined\"";

fn unconfined_seccomp(pod: &Value) -> Option<Violation> {
    of_all(pod, "seccompProfile", UNCONFINED, |c| {
        c["seccompProfile"]["type"] == "Unconfined"
    })
}

fn seccomp(pod: &Value) -> Option<Violation> {
    if is_windows(pod) {
        return None;
    }
    if let Some(found) = unconfined_seccomp(pod) {
        return Some(found);
    }
    let sets = |c: &Value| {
        matches!(
            c["seccompProfile"]["type"].as_str(),
            Some("RuntimeDefault" | "Localhost")
        )
    };
    if sets(&pod["spec"]["securityContext"]) {
        return None;
    }
    let names: Vec<&str> = containers(pod)
        .filter(|c| !sets(&c["securityContext"]))
        .map(name)
        .collect();
    let rest =
        "must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"";
    (!names.is_empty()).then(|| Violation {
        reason: "seccompProfile",
        detail: format!("pod or {} {rest}", these("container", &names)),
    })
}

fn sysctls(pod: &Value, minor: u32) -> Option<Violation> {
    let known = match minor {
        0..=26 => 5,
        27..=28 => 6,
        29..=31 => 10,
        _ => SYSCTLS.len(),
    };
    let allowed = &SYSCTLS[..known];
    let all = &pod["spec"]["securityContext"]["sysctls"];
    let bad: Vec<&str> = all
        .as_array()
        .into_iter()
        .flatten()
        .map(name)
        .filter(|n| !allowed.contains(n))
        .collect();
    (!bad.is_empty()).then(|| Violation {
        reason: "forbidden sysctls",
        detail: bad.join(", "),
    })
}

fn windows_host_process(pod: &Value) -> Option<Violation> {
    let rest = "must not set securityContext.windowsOptions.hostProcess=true";
    of_all(pod, "hostProcess", rest, |c| {
        c["windowsOptions"]["hostProcess"] == true
    })
}

fn privilege_escalation(pod: &Value) -> Option<Violation> {
    if is_windows(pod) {
        return None;
    }
    let rest = "must set securityContext.allowPrivilegeEscalation=false";
    of_containers(pod, "allowPrivilegeEscalation != false", rest, |c| {
        c["securityContext"]["allowPrivilegeEscalation"] != false
    })
}

fn run_as_non_root(pod: &Value) -> Option<Violation> {
    const REASON: &str = "runAsNonRoot != true";
    let of_pod = &pod["spec"]["securityContext"]["runAsNonRoot"];
    let own = |c: &Value| c["securityContext"]["runAsNonRoot"].clone();
    let pick = |wanted: &Value| -> Vec<&str> {
        containers(pod)
            .filter(|c| own(c) == *wanted)
            .map(name)
            .collect()
    };
    let refusing = pick(&Value::Bool(false));
    let silent = pick(&Value::Null);
    let mut who = Vec::new();
    if *of_pod == false {
        who.push("pod".to_owned());
    }
    if !refusing.is_empty() {
        who.push(these("container", &refusing));
    }
    if !who.is_empty() {
        let rest = "must not set securityContext.runAsNonRoot=false";
        return violation(REASON, format!("{} {rest}", who.join(" and ")));
    }
    if silent.is_empty() || *of_pod == true {
        return None;
    }
    let rest = "must set securityContext.runAsNonRoot=true";
    violation(
        REASON,
        format!("pod or {} {rest}", these("container", &silent)),
    )
}

fn run_as_user(pod: &Value) -> Option<Violation> {
    of_all(pod, "runAsUser=0", "must not set runAsUser=0", |c| {
        c["runAsUser"] == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(level: Level, pod: &Value) -> String {
        let found = violations(level, u32::MAX, pod);
        found
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    }

    fn pod(spec: Value, container: Value) -> Value {
        let mut spec = spec;
        let mut container = container;
        container["name"] = "c".into();
        spec["containers"] = json!([container]);
        json!({"metadata": {}, "spec": spec})
    }

    /// Upstream: the standards' page, its table of the baseline, row by row.
    #[test]
    fn the_baseline_forbids_known_escalations() {
        for (spec, container, expected) in [
            (json!({}), json!({}), ""),
            (
                json!({"hostNetwork": true, "hostIPC": true}),
                json!({}),
                "host namespaces (hostNetwork=true, hostIPC=true)",
            ),
            (
                json!({}),
                json!({"securityContext": {"privileged": true}}),
                r#"privileged (container "c" must not set securityContext.privileged=true)"#,
            ),
            (
                json!({}),
                json!({"securityContext": {"capabilities": {"add": ["NET_ADMIN", "CHOWN"]}}}),
                r#"non-default capabilities (container "c" must not include "NET_ADMIN" in securityContext.capabilities.add)"#,
            ),
            (
                json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
                json!({"ports": [{"hostPort": 80}]}),
                r#"hostPath volumes (volume "v"), hostPort (container "c" uses hostPort 80)"#,
            ),
            (
                json!({"securityContext": {"seccompProfile": {"type": "Unconfined"},
                    "sysctls": [{"name": "kernel.msgmax"}]}}),
                json!({"securityContext": {"seLinuxOptions": {"type": "bad", "user": "u"}, "procMount": "Unmasked"}}),
                r#"procMount (container "c" must not set securityContext.procMount to "Unmasked"), seLinuxOptions (container "c" set forbidden securityContext.seLinuxOptions: type "bad"; user may not be set), seccompProfile (pod must not set securityContext.seccompProfile.type to "Unconfined"), forbidden sysctls (kernel.msgmax)"#,
            ),
            (
                json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}),
                json!({"livenessProbe": {"httpGet": {"host": "10.0.0.1"}},
                    "securityContext": {"windowsOptions": {"hostProcess": true}}}),
                r#"forbidden AppArmor profile (pod must not set AppArmor profile type to "Unconfined"), probe or lifecycle host (container "c" must not set "host" of probes and lifecycle handlers), hostProcess (container "c" must not set securityContext.windowsOptions.hostProcess=true)"#,
            ),
        ] {
            let pod = pod(spec, container);
            assert_eq!(shown(Level::Baseline, &pod), expected);
            assert_eq!(shown(Level::Privileged, &pod), "");
        }
    }

    /// Upstream: what a plain pod is told in a namespace that is restricted.
    #[test]
    fn the_restricted_level_asks_for_hardening() {
        assert_eq!(
            shown(Level::Restricted, &pod(json!({}), json!({}))),
            r#"allowPrivilegeEscalation != false (container "c" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container "c" must set securityContext.capabilities.drop=["ALL"]), runAsNonRoot != true (pod or container "c" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container "c" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")"#
        );
        let hardened = json!({"securityContext": {"allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
            "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}}});
        let good = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
        assert_eq!(shown(Level::Restricted, &pod(good, hardened.clone())), "");
        let bad = json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}],
            "securityContext": {"runAsNonRoot": false, "runAsUser": 0}});
        assert_eq!(
            shown(Level::Restricted, &pod(bad, hardened)),
            r#"restricted volume types (volume "v" uses restricted volume type "hostPath"), runAsNonRoot != true (pod must not set securityContext.runAsNonRoot=false), runAsUser=0 (pod must not set runAsUser=0)"#
        );
    }
}

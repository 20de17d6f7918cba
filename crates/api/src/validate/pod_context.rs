//! Where and as whom a pod runs: affinities, names of hosts, security contexts.

use super::{Check, Unique, network::address};
use crate::access::{at, is_empty, list, text};
use apimachinery::names;
use apimachinery::status::FieldError;
use serde_json::{Value, json};

const ID_MAX: i64 = i32::MAX as i64;
const SYSCTL_BYTES_MAX: usize = 253;
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_BYTES_MAX: usize = 2048;

/// Of the spec of a pod at `path`.
pub(super) fn context(c: &mut Check, path: &str, v: &Value) {
    node_affinity(
        c,
        &format!("{path}.affinity.nodeAffinity"),
        at(v, "affinity.nodeAffinity"),
    );
    for kind in ["podAffinity", "podAntiAffinity"] {
        let path = format!("{path}.affinity.{kind}");
        pod_affinity(c, &path, at(v, &format!("affinity.{kind}")));
    }
    for (i, alias) in list(v, "hostAliases").iter().enumerate() {
        let path = format!("{path}.hostAliases[{i}]");
        address(c, format!("{path}.ip"), at(alias, "ip"));
        for (j, name) in list(alias, "hostnames").iter().enumerate() {
            c.rule(
                format!("{path}.hostnames[{j}]"),
                name,
                names::dns1123_subdomain,
            );
        }
    }
    dns_config(c, &format!("{path}.dnsConfig"), at(v, "dnsConfig"));
    let mut gates = Unique::default();
    for (i, gate) in list(v, "schedulingGates").iter().enumerate() {
        let path = format!("{path}.schedulingGates[{i}]");
        c.rule(path.as_str(), at(gate, "name"), names::qualified_name);
        gates.check(c, path, at(gate, "name"));
    }
    for (i, gate) in list(v, "readinessGates").iter().enumerate() {
        let path = format!("{path}.readinessGates[{i}].conditionType");
        c.rule(path, at(gate, "conditionType"), names::qualified_name);
    }
    if !at(v, "os").is_null() {
        c.one_of(
            format!("{path}.os.name"),
            at(v, "os.name"),
            &["linux", "windows"],
        );
    }
    c.optional_one_of(
        format!("{path}.preemptionPolicy"),
        at(v, "preemptionPolicy"),
        &["Never", "PreemptLowerPriority"],
    );
    of_pod(c, &format!("{path}.securityContext"), v);
    for field in ["initContainers", "containers", "ephemeralContainers"] {
        for (i, one) in list(v, field).iter().enumerate() {
            let path = format!("{path}.{field}[{i}].securityContext");
            of_container(c, &path, at(one, "securityContext"), v);
        }
    }
}

fn dns_config(c: &mut Check, path: &str, v: &Value) {
    let servers = list(v, "nameservers");
    if servers.len() > NAMESERVERS_MAX {
        c.invalid(
            format!("{path}.nameservers"),
            at(v, "nameservers"),
            format!("must not have more than {NAMESERVERS_MAX} nameservers"),
        );
    }
    for (i, server) in servers.iter().enumerate() {
        address(c, format!("{path}.nameservers[{i}]"), server);
    }
    let searches = list(v, "searches");
    let searched = format!("{path}.searches");
    if searches.len() > SEARCHES_MAX {
        let detail = format!("must not have more than {SEARCHES_MAX} search paths");
        c.invalid(searched.as_str(), at(v, "searches"), detail);
    }
    let names = searches.iter().filter_map(Value::as_str);
    let bytes: usize = names.map(|name| name.len() + 1).sum();
    if bytes > SEARCH_BYTES_MAX + 1 {
        let detail = format!(
            "must not have more than {SEARCH_BYTES_MAX} characters (including spaces) in the search list"
        );
        c.invalid(searched.as_str(), at(v, "searches"), detail);
    }
    for (i, search) in searches.iter().enumerate() {
        let name = search.as_str().unwrap_or_default();
        let bare = name.strip_suffix('.').unwrap_or(name);
        // Names of records may be searched in too.
        let bare = bare.replace('_', "");
        if name != "."
            && let Err(e) = names::dns1123_subdomain(&bare)
        {
            c.invalid(format!("{searched}[{i}]"), search, e);
        }
    }
    for (i, option) in list(v, "options").iter().enumerate() {
        if text(option, "name").is_empty() {
            c.required(format!("{path}.options[{i}]"), "must not be empty");
        }
    }
}

fn node_affinity(c: &mut Check, path: &str, v: &Value) {
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    node_selector(c, &format!("{path}.{required}"), at(v, required));
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    for (i, term) in list(v, preferred).iter().enumerate() {
        let path = format!("{path}.{preferred}[{i}]");
        weight(c, &path, term);
        node_term(c, &format!("{path}.preference"), at(term, "preference"));
    }
}

/// Terms of which a node must satisfy one, if they are asked for.
pub(super) fn node_selector(c: &mut Check, path: &str, v: &Value) {
    let (path, terms) = (
        format!("{path}.nodeSelectorTerms"),
        list(v, "nodeSelectorTerms"),
    );
    if terms.is_empty() && !v.is_null() {
        c.required(path.as_str(), "must have at least one node selector term");
    }
    for (i, term) in terms.iter().enumerate() {
        node_term(c, &format!("{path}[{i}]"), term);
    }
}

fn weight(c: &mut Check, path: &str, term: &Value) {
    let weight = at(term, "weight");
    if !(1..=100).contains(&weight.as_i64().unwrap_or_default()) {
        c.invalid(
            format!("{path}.weight"),
            weight,
            "must be in the range 1-100",
        );
    }
}

/// A term that selects nodes, at `path`.
pub(super) fn node_term(c: &mut Check, path: &str, term: &Value) {
    for (i, one) in list(term, "matchExpressions").iter().enumerate() {
        c.requirement(&format!("{path}.matchExpressions[{i}]"), one, true);
    }
    for (i, one) in list(term, "matchFields").iter().enumerate() {
        let path = format!("{path}.matchFields[{i}]");
        if !matches!(text(one, "operator"), "In" | "NotIn") {
            let detail = "not a valid selector operator";
            c.invalid(format!("{path}.operator"), at(one, "operator"), detail);
        } else if list(one, "values").len() != 1 {
            c.required(
                format!("{path}.values"),
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            );
        }
        if text(one, "key") != "metadata.name" {
            let detail = "not a valid field selector key";
            c.invalid(format!("{path}.key"), at(one, "key"), detail);
        }
    }
}

fn pod_affinity(c: &mut Check, path: &str, v: &Value) {
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    for (i, term) in list(v, required).iter().enumerate() {
        pod_term(c, &format!("{path}.{required}[{i}]"), term);
    }
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    for (i, term) in list(v, preferred).iter().enumerate() {
        let path = format!("{path}.{preferred}[{i}]");
        weight(c, &path, term);
        pod_term(
            c,
            &format!("{path}.podAffinityTerm"),
            at(term, "podAffinityTerm"),
        );
    }
}

fn pod_term(c: &mut Check, path: &str, term: &Value) {
    for field in ["labelSelector", "namespaceSelector"] {
        if !at(term, field).is_null() {
            c.selector(&format!("{path}.{field}"), at(term, field));
        }
    }
    for (i, namespace) in list(term, "namespaces").iter().enumerate() {
        c.rule(
            format!("{path}.namespaces[{i}]"),
            namespace,
            names::dns1123_label,
        );
    }
    let key = format!("{path}.topologyKey");
    if text(term, "topologyKey").is_empty() {
        c.required(key, "can not be empty");
    } else {
        c.rule(key, at(term, "topologyKey"), names::qualified_name);
    }
}

fn ids(c: &mut Check, path: &str, v: &Value, fields: &[&str]) {
    for field in fields {
        id(c, format!("{path}.{field}"), at(v, field));
    }
}

fn id(c: &mut Check, path: String, v: &Value) {
    if v.as_i64().is_some_and(|id| !(0..=ID_MAX).contains(&id)) {
        c.invalid(
            path,
            v,
            format!("must be between 0 and {ID_MAX}, inclusive"),
        );
    }
}

fn of_pod(c: &mut Check, path: &str, pod: &Value) {
    if at(pod, "shareProcessNamespace") == true && at(pod, "hostPID") == true {
        c.invalid(
            format!("{path}.shareProcessNamespace"),
            &json!(true),
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    let v = at(pod, "securityContext");
    ids(c, path, v, &["runAsUser", "runAsGroup", "fsGroup"]);
    for (i, group) in list(v, "supplementalGroups").iter().enumerate() {
        id(c, format!("{path}.supplementalGroups[{i}]"), group);
    }
    for (field, supported) in [
        ("fsGroupChangePolicy", ["Always", "OnRootMismatch"]),
        ("supplementalGroupsPolicy", ["Merge", "Strict"]),
    ] {
        c.optional_one_of(format!("{path}.{field}"), at(v, field), &supported);
    }
    let mut seen = Unique::default();
    for (i, sysctl) in list(v, "sysctls").iter().enumerate() {
        let path = format!("{path}.sysctls[{i}].name");
        let name = text(sysctl, "name");
        if name.is_empty() {
            c.required(path, "");
        } else if !is_sysctl(name) {
            let regex = "([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
            let detail =
                format!("must have at most {SYSCTL_BYTES_MAX} characters and match regex {regex}");
            c.invalid(path, at(sysctl, "name"), detail);
        } else {
            seen.check(c, path, at(sysctl, "name"));
        }
    }
    profiles(c, path, v);
}

/// Words of small letters, digits, dashes and underscores, with dots or slashes between.
fn is_sysctl(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let word = |word: &str| {
        let bytes = word.as_bytes();
        let ends = bytes.first().zip(bytes.last());
        ends.is_some_and(|(first, last)| plain(*first) && plain(*last))
            && bytes.iter().all(|b| plain(*b) || matches!(b, b'-' | b'_'))
    };
    name.len() <= SYSCTL_BYTES_MAX && name.split(['.', '/']).all(word)
}

/// `seccompProfile` and `appArmorProfile`.
fn profiles(c: &mut Check, path: &str, v: &Value) {
    for (field, called) in [
        ("seccompProfile", "seccomp"),
        ("appArmorProfile", "AppArmor"),
    ] {
        let (path, profile) = (format!("{path}.{field}"), at(v, field));
        if profile.is_null() {
            continue;
        }
        c.one_of(
            format!("{path}.type"),
            at(profile, "type"),
            &["Localhost", "RuntimeDefault", "Unconfined"],
        );
        let file = at(profile, "localhostProfile");
        let name = file.as_str().unwrap_or_default();
        let at_file = format!("{path}.localhostProfile");
        if text(profile, "type") != "Localhost" {
            if !file.is_null() {
                let detail = format!("can only be set when {called} type is Localhost");
                c.invalid(at_file, file, detail);
            }
        } else if name.is_empty() {
            c.required(
                at_file,
                &format!("must be set when {called} type is Localhost"),
            );
        } else if field == "seccompProfile" {
            if name.starts_with('/') {
                c.invalid(at_file.as_str(), file, "must be a relative path");
            }
            if name.split('/').any(|part| part == "..") {
                c.invalid(at_file, file, "must not contain '..'");
            }
        }
    }
}

fn of_container(c: &mut Check, path: &str, v: &Value, pod: &Value) {
    if is_empty(v) {
        return;
    }
    ids(c, path, v, &["runAsUser", "runAsGroup"]);
    let proc_mount = at(v, "procMount");
    c.optional_one_of(
        format!("{path}.procMount"),
        proc_mount,
        &["Default", "Unmasked"],
    );
    if proc_mount == "Unmasked" && at(pod, "hostUsers") != false {
        let detail = "`hostUsers` must be false to use `Unmasked`";
        c.invalid(format!("{path}.procMount"), proc_mount, detail);
    }
    profiles(c, path, v);
    if at(v, "allowPrivilegeEscalation") == false {
        if at(v, "privileged") == true {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            c.invalid(path, v, detail);
        }
        let added = list(v, "capabilities.add");
        if added.iter().any(|capability| capability == "CAP_SYS_ADMIN") {
            c.invalid(
                path,
                v,
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            );
        }
    }
}

/// When a container of a pod is restarted because what it may use changes.
pub(super) fn resize_policy(c: &mut Check, path: &str, container: &Value) {
    let mut seen = Unique::default();
    for (i, one) in list(container, "resizePolicy").iter().enumerate() {
        let path = format!("{path}.resizePolicy[{i}]");
        c.one_of(
            format!("{path}.resourceName"),
            at(one, "resourceName"),
            &["cpu", "memory"],
        );
        c.one_of(
            format!("{path}.restartPolicy"),
            at(one, "restartPolicy"),
            &["NotRequired", "RestartContainer"],
        );
        seen.check(c, path, at(one, "resourceName"));
    }
}

/// Of what a volume claims of nodes.
pub(super) fn volume_affinity(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let required = at(v, "spec.nodeAffinity.required");
    let path = "spec.nodeAffinity.required.nodeSelectorTerms";
    if !required.is_null() && list(required, "nodeSelectorTerms").is_empty() {
        c.required(path, "must have at least one node selector term");
    }
    for (i, term) in list(required, "nodeSelectorTerms").iter().enumerate() {
        node_term(&mut c, &format!("{path}[{i}]"), term);
    }
    c.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(spec: &Value, want: Expect) {
        let mut c = Check::default();
        context(&mut c, "spec", spec);
        let all: Vec<String> = c.0.iter().map(ToString::to_string).collect();
        want.assert_eq(&all.join("\n"));
    }

    #[test]
    fn affinities() {
        let expression = |operator: &str, values: &[&str]| json!({"key": "a", "operator": operator, "values": values});
        let fine = json!({"affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{
                    "matchExpressions": [expression("Gt", &["1"]), expression("In", &["x"]), expression("Exists", &[])],
                    "matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}],
                }]},
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": {}}],
            },
            "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"a": "b"}}},
            ]},
        }});
        check(&fine, expect![""]);
        let bad = json!({"affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{
                    "matchExpressions": [
                        expression("Gt", &["1", "2"]), expression("In", &[]), expression("Exists", &["x"]),
                        expression("Near", &[]),
                    ],
                    "matchFields": [{"key": "spec.name", "operator": "Exists"}],
                }]},
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 101, "preference": {}}],
            },
            "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                {"podAffinityTerm": {"namespaces": ["A"], "labelSelector": {"matchExpressions": [expression("In", &[])]}}},
            ]},
            "podAntiAffinity": {},
        }});
        check(
            &bad,
            expect![[r#"
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].values: Required value: must be specified single value when `operator` is 'Lt' or 'Gt'
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[1].values: Required value: must be specified when `operator` is 'In' or 'NotIn'
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[2].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[3].operator: Invalid value: "Near": not a valid selector operator
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchFields[0].operator: Invalid value: "Exists": not a valid selector operator
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchFields[0].key: Invalid value: "spec.name": not a valid field selector key
            spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 101: must be in the range 1-100
            spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: null: must be in the range 1-100
            spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.labelSelector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'
            spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.namespaces[0]: Invalid value: "A": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
            spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.topologyKey: Required value: can not be empty"#]],
        );
        let none = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {}}}});
        check(
            &none,
            expect![
                "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term"
            ],
        );
    }

    #[test]
    fn names_of_hosts_and_gates() {
        check(
            &json!({
                "hostAliases": [{"ip": "x", "hostnames": ["A"]}, {"ip": "::1", "hostnames": ["a.b"]}],
                "dnsConfig": {
                    "nameservers": ["1.1.1.1", "1.1.1.2", "1.1.1.3", "x"],
                    "searches": [".", "a.b.", "_srv.a", "a b"], "options": [{"value": "1"}],
                },
                "schedulingGates": [{"name": "a/b"}, {"name": "a/b"}, {"name": "a b"}],
                "readinessGates": [{"conditionType": "a b"}],
                "os": {"name": "plan9"},
                "preemptionPolicy": "Maybe",
            }),
            expect![[r#"
                spec.hostAliases[0].ip: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)
                spec.hostAliases[0].hostnames[0]: Invalid value: "A": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
                spec.dnsConfig.nameservers: Invalid value: ["1.1.1.1","1.1.1.2","1.1.1.3","x"]: must not have more than 3 nameservers
                spec.dnsConfig.nameservers[3]: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)
                spec.dnsConfig.searches[3]: Invalid value: "a b": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
                spec.dnsConfig.options[0]: Required value: must not be empty
                spec.schedulingGates[1]: Duplicate value: "a/b"
                spec.schedulingGates[2]: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
                spec.readinessGates[0].conditionType: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
                spec.os.name: Unsupported value: "plan9": supported values: "linux", "windows"
                spec.preemptionPolicy: Unsupported value: "Maybe": supported values: "Never", "PreemptLowerPriority""#]],
        );
    }

    #[test]
    fn security_contexts() {
        check(
            &json!({
                "hostPID": true, "shareProcessNamespace": true,
                "securityContext": {
                    "runAsUser": -1, "fsGroup": 4_294_967_296i64, "supplementalGroups": [0, -2],
                    "fsGroupChangePolicy": "Often", "supplementalGroupsPolicy": "Strict",
                    "sysctls": [
                        {"name": "kernel.shm_rmid_forced"}, {"name": "net/ipv4/tcp_syncookies"}, {"name": "foo-"},
                        {"name": "bar.."}, {}, {"name": "kernel.shm_rmid_forced"},
                    ],
                    "seccompProfile": {"type": "Localhost", "localhostProfile": "/../x"},
                    "appArmorProfile": {"type": "RuntimeDefault", "localhostProfile": "x"},
                },
                "containers": [{"securityContext": {
                    "runAsGroup": -1, "procMount": "Unmasked", "privileged": true, "allowPrivilegeEscalation": false,
                    "capabilities": {"add": ["CAP_SYS_ADMIN"]}, "seccompProfile": {"type": "Localhost"},
                }}],
            }),
            expect![[r#"
                spec.securityContext.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID cannot both be enabled
                spec.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive
                spec.securityContext.fsGroup: Invalid value: 4294967296: must be between 0 and 2147483647, inclusive
                spec.securityContext.supplementalGroups[1]: Invalid value: -2: must be between 0 and 2147483647, inclusive
                spec.securityContext.fsGroupChangePolicy: Unsupported value: "Often": supported values: "Always", "OnRootMismatch"
                spec.securityContext.sysctls[2].name: Invalid value: "foo-": must have at most 253 characters and match regex ([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?
                spec.securityContext.sysctls[3].name: Invalid value: "bar..": must have at most 253 characters and match regex ([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?
                spec.securityContext.sysctls[4].name: Required value
                spec.securityContext.sysctls[5].name: Duplicate value: "kernel.shm_rmid_forced"
                spec.securityContext.seccompProfile.localhostProfile: Invalid value: "/../x": must be a relative path
                spec.securityContext.seccompProfile.localhostProfile: Invalid value: "/../x": must not contain '..'
                spec.securityContext.appArmorProfile.localhostProfile: Invalid value: "x": can only be set when AppArmor type is Localhost
                spec.containers[0].securityContext.runAsGroup: Invalid value: -1: must be between 0 and 2147483647, inclusive
                spec.containers[0].securityContext.procMount: Invalid value: "Unmasked": `hostUsers` must be false to use `Unmasked`
                spec.containers[0].securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost
                spec.containers[0].securityContext: Invalid value: {"allowPrivilegeEscalation":false,"capabilities":{"add":["CAP_SYS_ADMIN"]},"privileged":true,"procMount":"Unmasked","runAsGroup":-1,"seccompProfile":{"type":"Localhost"}}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true
                spec.containers[0].securityContext: Invalid value: {"allowPrivilegeEscalation":false,"capabilities":{"add":["CAP_SYS_ADMIN"]},"privileged":true,"procMount":"Unmasked","runAsGroup":-1,"seccompProfile":{"type":"Localhost"}}: cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"#]],
        );
        let fine = json!({"securityContext": {"runAsUser": 0, "seccompProfile": {"type": "RuntimeDefault"}},
            "hostUsers": false, "containers": [{"securityContext": {"procMount": "Unmasked"}}]});
        check(&fine, expect![""]);
    }
}

//! What a pod says of Linux: namespaces, users, rights. Pure: from the API object to what a
//! runtime of containers is told; for Wasm none of it has a meaning.

use crate::image::PulledImage;
use crate::pod::Desired;
use k8s_openapi::api::core::v1 as core;
use runtime::{LinuxContainer, LinuxSandbox, Seccomp};

/// Where a container's last words are read, unless it says another place.
const TERMINATION_PATH: &str = "/dev/termination-log";

/// A pod's surroundings; nothing where they are the usual ones.
pub(crate) fn sandbox(desired: &Desired, domain: &str) -> Option<Box<LinuxSandbox>> {
    let spec = desired.pod.spec.as_ref()?;
    let is = |stated: Option<bool>| stated == Some(true);
    let aliases = spec.host_aliases.iter().flatten().filter_map(|alias| {
        let names = alias.hostnames.clone().unwrap_or_default();
        Some((alias.ip.parse().ok()?, names))
    });
    let sysctls = spec.security_context.iter();
    let sysctls = sysctls.flat_map(|s| s.sysctls.iter().flatten());
    let subdomain = spec.subdomain.as_deref().filter(|s| !s.is_empty());
    let linux = LinuxSandbox {
        handler: None,
        host_network: is(spec.host_network),
        host_pid: is(spec.host_pid),
        host_ipc: is(spec.host_ipc),
        share_process_namespace: is(spec.share_process_namespace),
        host_aliases: aliases.collect(),
        sysctls: sysctls.map(|s| (s.name.clone(), s.value.clone())).collect(),
        fqdn: subdomain.map(|subdomain| {
            let own = spec.hostname.as_deref().unwrap_or(&desired.name);
            format!("{own}.{subdomain}.{}.svc.{domain}", desired.namespace)
        }),
    };
    (linux != LinuxSandbox::default()).then(|| Box::new(linux))
}

/// A container's process; the container's own word counts before the pod's.
pub(crate) fn container(
    pod: &core::Pod,
    container: &core::Container,
    image: &PulledImage,
) -> Box<LinuxContainer> {
    let whole = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let own = container.security_context.as_ref();
    let id = |number: Option<i64>| number.and_then(|n| u32::try_from(n).ok());
    let groups = whole.iter().flat_map(|whole| {
        let more = whole.supplemental_groups.iter().flatten().copied();
        more.chain(whole.fs_group)
    });
    let capabilities = own.and_then(|own| own.capabilities.as_ref());
    let caps = |list: Option<&Vec<String>>| list.cloned().unwrap_or_default();
    let seccomp = own
        .and_then(|own| own.seccomp_profile.as_ref())
        .or_else(|| whole?.seccomp_profile.as_ref());
    let privileged = own.and_then(|own| own.privileged) == Some(true);
    Box::new(LinuxContainer {
        user: id(own.and_then(|own| own.run_as_user)).or_else(|| id(whole?.run_as_user)),
        group: id(own.and_then(|own| own.run_as_group)).or_else(|| id(whole?.run_as_group)),
        image_user: image.user.clone(),
        non_root: own
            .and_then(|own| own.run_as_non_root)
            .or_else(|| whole?.run_as_non_root)
            .unwrap_or(false),
        groups: groups.filter_map(|g| u32::try_from(g).ok()).collect(),
        privileged,
        read_only_root: own.and_then(|own| own.read_only_root_filesystem) == Some(true),
        no_new_privileges: own.and_then(|own| own.allow_privilege_escalation) == Some(false),
        add_capabilities: caps(capabilities.and_then(|c| c.add.as_ref())),
        drop_capabilities: caps(capabilities.and_then(|c| c.drop.as_ref())),
        unmasked_proc: own.and_then(|own| own.proc_mount.as_deref()) == Some("Unmasked"),
        seccomp: match seccomp.map(|profile| profile.type_.as_str()) {
            Some("Unconfined") => Seccomp::Unconfined,
            Some("Localhost") => {
                let file = seccomp.and_then(|profile| profile.localhost_profile.as_deref());
                Seccomp::Localhost(file.unwrap_or_default().into())
            }
            _ if privileged => Seccomp::Unconfined,
            _ => Seccomp::RuntimeDefault,
        },
        stop_signal: container
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.stop_signal.clone())
            .or_else(|| image.stop_signal.clone()),
        termination_path: Some(
            container
                .termination_message_path
                .clone()
                .unwrap_or_else(|| TERMINATION_PATH.to_owned()),
        ),
        termination_from_log: container.termination_message_policy.as_deref()
            == Some("FallbackToLogsOnError"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;
    use expect_test::{Expect, expect};
    use serde_json::json;

    fn image() -> PulledImage {
        PulledImage {
            id: String::new(),
            artifact: runtime::Artifact::Container {
                digest: String::new(),
                layers: vec![],
            },
            entrypoint: vec![],
            cmd: vec![],
            env: vec![],
            working_dir: None,
            user: Some("web".into()),
            stop_signal: Some("SIGQUIT".into()),
            size_bytes: 0,
        }
    }

    fn check(spec: serde_json::Value, expected: Expect) {
        let desired = pod(spec);
        let own = desired.container(0).unwrap();
        let found = container(&desired.pod, own, &image());
        let found = serde_json::to_value(&found).unwrap();
        let usual = serde_json::to_value(LinuxContainer::default()).unwrap();
        let differ = found.as_object().unwrap().iter();
        let lines: Vec<String> = differ
            .filter(|(key, value)| usual[key.as_str()] != **value)
            .map(|(key, value)| format!("{key} {value}"))
            .collect();
        expected.assert_eq(&lines.join("\n"));
    }

    #[test]
    fn what_says_nothing_is_as_the_image_is() {
        check(
            json!({"containers": [{"name": "c", "image": "i:1"}]}),
            expect![[r#"
                image_user "web"
                stop_signal "SIGQUIT"
                termination_path "/dev/termination-log""#]],
        );
        assert_eq!(
            sandbox(&pod(json!({"containers": []})), "cluster.local"),
            None
        );
    }

    #[test]
    fn the_container_s_word_counts_before_the_pod_s() {
        check(
            json!({
                "securityContext": {"runAsUser": 1, "runAsGroup": 2, "runAsNonRoot": true,
                    "fsGroup": 7, "supplementalGroups": [8],
                    "seccompProfile": {"type": "Unconfined"}},
                "containers": [{"name": "c", "image": "i:1",
                    "terminationMessagePath": "/tmp/last",
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "securityContext": {"runAsUser": 1000, "readOnlyRootFilesystem": true,
                        "allowPrivilegeEscalation": false, "procMount": "Unmasked",
                        "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}}}],
            }),
            expect![[r#"
                add_capabilities ["NET_ADMIN"]
                drop_capabilities ["ALL"]
                group 2
                groups [8,7]
                image_user "web"
                no_new_privileges true
                non_root true
                read_only_root true
                seccomp "Unconfined"
                stop_signal "SIGQUIT"
                termination_from_log true
                termination_path "/tmp/last"
                unmasked_proc true
                user 1000"#]],
        );
    }

    #[test]
    fn surroundings_that_are_not_the_usual() {
        let desired = pod(json!({
            "hostPID": true, "subdomain": "all", "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["a"]}],
            "securityContext": {"sysctls": [{"name": "net.core.somaxconn", "value": "1024"}]},
            "containers": [],
        }));
        let found = sandbox(&desired, "cluster.local").unwrap();
        assert!(found.host_pid && !found.host_network);
        assert_eq!(
            found.fqdn.as_deref(),
            Some("web.all.default.svc.cluster.local")
        );
        assert_eq!(
            found.sysctls,
            [("net.core.somaxconn".into(), "1024".into())]
        );
        assert_eq!(
            found.host_aliases,
            [([192, 0, 2, 1].into(), vec!["a".into()])]
        );
    }
}

//! What a pod says of Linux: namespaces, users, rights. Pure: from the API object to what a
//! runtime of containers is told; for Wasm none of it has a meaning.

use crate::image::PulledImage;
use crate::pod::Desired;
use crate::resources;
use k8s_openapi::api::core::v1 as core;
use runtime::{AppArmor, LinuxContainer, LinuxSandbox, Seccomp};
use std::path::Path;

/// Where a container's last words are read, unless it says another place.
const TERMINATION_PATH: &str = "/dev/termination-log";

/// A pod's surroundings; nothing where they are the usual ones.
pub(crate) fn sandbox(
    desired: &Desired,
    domain: &str,
    pids: Option<u64>,
) -> Option<Box<LinuxSandbox>> {
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
        group: resources::group(spec, pids),
        ..LinuxSandbox::default()
    };
    (linux != LinuxSandbox::default()).then(|| Box::new(linux))
}

/// Holds a container to its `runAsNonRoot`; why it can't run otherwise, in upstream's words.
pub(crate) fn verify_non_root(
    pod: &core::Pod,
    container: &core::Container,
    image: &PulledImage,
) -> Result<(), String> {
    let whole = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let own = container.security_context.as_ref();
    let asked = own
        .and_then(|own| own.run_as_non_root)
        .or_else(|| whole?.run_as_non_root);
    if asked != Some(true) {
        return Ok(());
    }
    let user = own
        .and_then(|own| own.run_as_user)
        .or_else(|| whole?.run_as_user);
    let image = image.user.as_deref().unwrap_or_default();
    let image = image.split(':').next().unwrap_or_default();
    let why = match (user, image.parse::<u32>()) {
        (Some(0), _) => "container's runAsUser breaks non-root policy".to_owned(),
        (Some(_), _) => return Ok(()),
        (None, Ok(0)) => "container has runAsNonRoot and image will run as root".to_owned(),
        (None, Ok(_)) => return Ok(()),
        (None, Err(_)) if image.is_empty() => {
            "container has runAsNonRoot and image will run as root".to_owned()
        }
        (None, Err(_)) => format!(
            "container has runAsNonRoot and image has non-numeric user ({image}), cannot verify \
             user is non-root"
        ),
    };
    let meta = &pod.metadata;
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    let (namespace, name, uid) = (text(&meta.namespace), text(&meta.name), text(&meta.uid));
    Err(format!(
        "{why} (pod: \"{name}_{namespace}({uid})\", container: {})",
        container.name
    ))
}

/// What of the machine and the pod's other containers a container's process depends on.
pub(crate) struct Machine<'a> {
    pub(crate) memory_bytes: i128,
    /// Where profiles of type `Localhost` are.
    pub(crate) seccomp_profiles: &'a Path,
    /// The container whose processes it is to see.
    pub(crate) target: Option<String>,
}

/// Where the older form of an AppArmor profile is, before the container's name.
const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Which AppArmor profile a container asks for; without a word it takes what is usual.
pub(crate) fn apparmor(pod: &core::Pod, container: &core::Container) -> AppArmor {
    let own = container.security_context.as_ref();
    let whole = || {
        pod.spec
            .as_ref()?
            .security_context
            .as_ref()?
            .app_armor_profile
            .as_ref()
    };
    let stated = own.and_then(|own| own.app_armor_profile.as_ref());
    if let Some(profile) = stated.or_else(whole) {
        let name = profile.localhost_profile.clone().unwrap_or_default();
        return match profile.type_.as_str() {
            "Unconfined" => AppArmor::Unconfined,
            "Localhost" => AppArmor::Localhost(name),
            _ => AppArmor::RuntimeDefault,
        };
    }
    let key = format!("{APPARMOR_ANNOTATION}{}", container.name);
    let annotation = pod.metadata.annotations.as_ref().and_then(|a| a.get(&key));
    match annotation.map(String::as_str) {
        None | Some("") => AppArmor::Usual,
        Some("unconfined") => AppArmor::Unconfined,
        Some("runtime/default") => AppArmor::RuntimeDefault,
        Some(other) => {
            AppArmor::Localhost(other.strip_prefix("localhost/").unwrap_or(other).to_owned())
        }
    }
}

/// A container's process; the container's own word counts before the pod's.
pub(crate) fn container(
    pod: &core::Pod,
    container: &core::Container,
    image: &PulledImage,
    machine: &Machine<'_>,
) -> Box<LinuxContainer> {
    let profiles = machine.seccomp_profiles;
    let oom_score_adj = pod
        .spec
        .as_ref()
        .map(|spec| resources::oom_score_adj(spec, container, machine.memory_bytes));
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
                Seccomp::Localhost(profiles.join(file.unwrap_or_default()))
            }
            _ if privileged => Seccomp::Unconfined,
            _ => Seccomp::RuntimeDefault,
        },
        oom_score_adj: oom_score_adj.unwrap_or_default(),
        devices: Vec::new(),
        annotations: Default::default(),
        apparmor: apparmor(pod, container),
        target: machine.target.clone(),
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
        let machine = Machine {
            memory_bytes: 1 << 30,
            seccomp_profiles: Path::new("/data/seccomp"),
            target: None,
        };
        let found = container(&desired.pod, own, &image(), &machine);
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
                oom_score_adj 1000
                stop_signal "SIGQUIT"
                termination_path "/dev/termination-log""#]],
        );
        assert_eq!(
            sandbox(&pod(json!({"containers": []})), "cluster.local", None),
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
                oom_score_adj 1000
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
    fn who_may_not_be_root_is_not() {
        let check = |user: Option<i64>, of_image: &str, expected: &str| {
            let desired = pod(json!({"securityContext": {"runAsNonRoot": true},
                "containers": [{"name": "c", "image": "i:1", "securityContext": {"runAsUser": user}}]}));
            let image = PulledImage {
                user: Some(of_image.into()),
                ..image()
            };
            let found = verify_non_root(&desired.pod, desired.container(0).unwrap(), &image);
            let found = found.err().unwrap_or_default();
            let expected = match expected {
                "" => String::new(),
                words => format!("{words} (pod: \"web_default(u1)\", container: c)"),
            };
            assert_eq!(found, expected, "{user:?} {of_image:?}");
        };
        let root = "container has runAsNonRoot and image will run as root";
        check(None, "", root);
        check(None, "0:7", root);
        check(None, "33", "");
        check(Some(5), "", "");
        check(
            Some(0),
            "33",
            "container's runAsUser breaks non-root policy",
        );
        check(
            None,
            "web",
            "container has runAsNonRoot and image has non-numeric user (web), cannot verify user \
             is non-root",
        );
    }

    #[test]
    fn profiles_of_the_machine() {
        let container = json!({"name": "c", "image": "i:1", "securityContext": {
            "seccompProfile": {"type": "Localhost", "localhostProfile": "a/b.json"}}});
        check(
            json!({"securityContext": {"appArmorProfile": {"type": "Localhost",
                "localhostProfile": "web"}}, "containers": [container]}),
            expect![[r#"
                apparmor {"Localhost":"web"}
                image_user "web"
                oom_score_adj 1000
                seccomp {"Localhost":"/data/seccomp/a/b.json"}
                stop_signal "SIGQUIT"
                termination_path "/dev/termination-log""#]],
        );
        let mut pod = (*pod(json!({"containers": [container]})).pod).clone();
        let key = format!("{APPARMOR_ANNOTATION}c");
        for (value, expected) in [
            ("runtime/default", AppArmor::RuntimeDefault),
            ("localhost/web", AppArmor::Localhost("web".into())),
            ("unconfined", AppArmor::Unconfined),
        ] {
            pod.metadata.annotations = Some([(key.clone(), value.into())].into());
            let own = &pod.spec.as_ref().unwrap().containers[0];
            assert_eq!(apparmor(&pod, own), expected);
        }
    }

    #[test]
    fn surroundings_that_are_not_the_usual() {
        let desired = pod(json!({
            "hostPID": true, "subdomain": "all", "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["a"]}],
            "securityContext": {"sysctls": [{"name": "net.core.somaxconn", "value": "1024"}]},
            "containers": [],
        }));
        let found = sandbox(&desired, "cluster.local", None).unwrap();
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

//! A pod as the agent reads it: the API object parsed once a change into what the plan
//! asks about. No decision is made here.

use api::constants::ANNOTATION_WOKEN_ON;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Probe};
use std::fmt;
use std::sync::Arc;

/// A pod's UID, the identity of everything the agent keeps about it. See [`uid_of`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Uid(pub(crate) Arc<str>);

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How the ids of sandboxes begin that were made before their pods.
pub(crate) const STANDBY: &str = "standby_";

/// The id of such a sandbox. No namespace or name has the mark in it, so that one pod can't
/// take another's.
pub(crate) fn standby_id(namespace: &str, name: &str) -> String {
    format!("{STANDBY}{namespace}_{name}")
}

/// By what a pod is known here: its UID, or for one that was woken the id of its sandbox.
pub(crate) fn uid_of(pod: &Pod) -> Option<Uid> {
    let meta = &pod.metadata;
    let annotations = meta.annotations.as_ref();
    if annotations.is_some_and(|a| a.contains_key(ANNOTATION_WOKEN_ON)) {
        let id = standby_id(meta.namespace.as_deref()?, meta.name.as_deref()?);
        return Some(Uid::from(id.as_str()));
    }
    meta.uid.as_deref().map(Uid::from)
}

impl From<&str> for Uid {
    fn from(uid: &str) -> Self {
        Self(uid.into())
    }
}

/// When an ended container is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

/// What a container is to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Runs to its end before the next starts.
    Init,
    /// An init container with `restartPolicy: Always`: runs beside the pod's containers.
    Sidecar,
    /// One of `spec.containers`.
    App,
    /// One of `spec.ephemeralContainers`: runs once, beside whatever runs.
    Ephemeral,
}

/// `imagePullPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// What the plan must know of a container; the rest is read from [`Desired::container`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DesiredContainer {
    pub(crate) name: Arc<str>,
    pub(crate) role: Role,
    pub(crate) image: Arc<str>,
    pub(crate) pull: PullPolicy,
    pub(crate) restart: RestartPolicy,
    pub(crate) has_startup: bool,
    pub(crate) has_readiness: bool,
    pub(crate) has_liveness: bool,
}

/// A pod that this node must run, or must end.
#[derive(Clone, Debug)]
pub(crate) struct Desired {
    pub(crate) pod: Arc<Pod>,
    pub(crate) uid: Uid,
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
    /// Init containers in order, then the others, then the ephemeral ones.
    pub(crate) containers: Vec<DesiredContainer>,
    /// The ephemeral ones' own words, as those of containers.
    pub(crate) ephemeral: Arc<[Container]>,
    pub(crate) restart: RestartPolicy,
    /// `deletionTimestamp` is set.
    pub(crate) deleting: bool,
    /// Seconds that containers have to end in.
    pub(crate) grace_s: u64,
    /// `activeDeadlineSeconds`.
    pub(crate) deadline_s: Option<u64>,
    /// A file on this machine describes it (`static_pods`), not the API.
    pub(crate) is_static: bool,
    /// What becomes of it when the node is cut off.
    pub(crate) contract: api::partition::Contract,
}

/// Why an object is no pod that can be run; an API server gives none such.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read pod: {0} is missing")]
pub(crate) struct ParsePodError(&'static str);

impl Desired {
    pub(crate) fn parse(pod: Arc<Pod>) -> Result<Self, ParsePodError> {
        let meta = &pod.metadata;
        let spec = pod.spec.as_ref().ok_or(ParsePodError("spec"))?;
        let restart = match spec.restart_policy.as_deref() {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        };
        let init = spec.init_containers.as_deref().unwrap_or_default();
        let ephemeral = ephemeral(spec);
        let containers = init
            .iter()
            .map(|c| DesiredContainer::parse(c, init_role(c), restart))
            .chain(
                spec.containers
                    .iter()
                    .map(|c| DesiredContainer::parse(c, Role::App, restart)),
            )
            .chain(
                ephemeral
                    .iter()
                    .map(|c| DesiredContainer::parse(c, Role::Ephemeral, RestartPolicy::Never)),
            )
            .collect();
        let deleting = meta.deletion_timestamp.is_some();
        let grace = meta
            .deletion_grace_period_seconds
            .filter(|_| deleting)
            .or(spec.termination_grace_period_seconds)
            // A negative one is no time: as little as there is, as a kubelet has it.
            .map_or(30, |s| if s < 0 { 1 } else { s });
        Ok(Self {
            uid: uid_of(&pod).ok_or(ParsePodError("metadata.uid"))?,
            namespace: meta
                .namespace
                .as_deref()
                .ok_or(ParsePodError("metadata.namespace"))?
                .into(),
            name: meta
                .name
                .as_deref()
                .ok_or(ParsePodError("metadata.name"))?
                .into(),
            containers,
            ephemeral: ephemeral.into(),
            restart,
            deleting,
            is_static: false,
            grace_s: u64::try_from(grace).unwrap_or(0),
            contract: api::partition::Contract::of(|key| {
                let annotations = pod.metadata.annotations.as_ref()?;
                annotations.get(key).map(String::as_str)
            }),
            deadline_s: spec
                .active_deadline_seconds
                .and_then(|s| u64::try_from(s).ok()),
            pod,
        })
    }

    /// The container's own words, by its place in [`Desired::containers`].
    pub(crate) fn container(&self, index: usize) -> Option<&Container> {
        let spec = self.pod.spec.as_ref()?;
        let init = spec.init_containers.as_deref().unwrap_or_default();
        let own = spec.containers.len();
        init.get(index)
            .or_else(|| spec.containers.get(index.checked_sub(init.len())?))
            .or_else(|| self.ephemeral.get(index.checked_sub(init.len() + own)?))
    }

    /// Whose processes an ephemeral container sees.
    pub(crate) fn target_of(&self, name: &str) -> Option<String> {
        let spec = self.pod.spec.as_ref()?;
        let mut all = spec.ephemeral_containers.iter().flatten();
        let target = all.find(|c| c.name == name)?.target_container_name.clone();
        target.filter(|name| !name.is_empty())
    }

    /// The place of a container.
    pub(crate) fn index_of(&self, name: &str) -> Option<usize> {
        self.containers.iter().position(|c| &*c.name == name)
    }

    /// `metadata.generation`.
    pub(crate) fn generation(&self) -> Option<i64> {
        self.pod.metadata.generation
    }

    /// The phase in the API, as it was when the pod was read.
    pub(crate) fn api_phase(&self) -> Option<&str> {
        self.pod.status.as_ref()?.phase.as_deref()
    }
}

impl DesiredContainer {
    fn parse(c: &Container, role: Role, pod: RestartPolicy) -> Self {
        let image = c.image.as_deref().unwrap_or_default();
        let restart = match (role, c.restart_policy.as_deref()) {
            (Role::Ephemeral, _) => RestartPolicy::Never,
            (Role::Sidecar, _) | (_, Some("Always")) => RestartPolicy::Always,
            (_, Some("OnFailure")) => RestartPolicy::OnFailure,
            (_, Some("Never")) => RestartPolicy::Never,
            // An init container that succeeded is never run again.
            (Role::Init, _) if pod == RestartPolicy::Always => RestartPolicy::OnFailure,
            _ => pod,
        };
        Self {
            name: c.name.as_str().into(),
            role,
            image: image.into(),
            pull: pull_policy(c.image_pull_policy.as_deref(), image),
            restart,
            has_startup: has_action(c.startup_probe.as_ref()),
            has_readiness: has_action(c.readiness_probe.as_ref()),
            has_liveness: has_action(c.liveness_probe.as_ref()),
        }
    }
}

/// Ephemeral containers as containers: they have most of their fields.
pub(crate) fn ephemeral(spec: &PodSpec) -> Vec<Container> {
    let all = spec.ephemeral_containers.iter().flatten().cloned();
    all.map(|c| Container {
        name: c.name,
        image: c.image,
        image_pull_policy: c.image_pull_policy,
        command: c.command,
        args: c.args,
        working_dir: c.working_dir,
        env: c.env,
        env_from: c.env_from,
        volume_mounts: c.volume_mounts,
        security_context: c.security_context,
        stdin: c.stdin,
        stdin_once: c.stdin_once,
        tty: c.tty,
        termination_message_path: c.termination_message_path,
        termination_message_policy: c.termination_message_policy,
        ..Container::default()
    })
    .collect()
}

fn init_role(c: &Container) -> Role {
    if c.restart_policy.as_deref() == Some("Always") {
        Role::Sidecar
    } else {
        Role::Init
    }
}

fn has_action(probe: Option<&Probe>) -> bool {
    probe.is_some()
}

/// The default is `Always` for `:latest` and for no tag, as upstream has it.
pub(crate) fn pull_policy(stated: Option<&str>, image: &str) -> PullPolicy {
    match stated {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some("IfNotPresent") => PullPolicy::IfNotPresent,
        _ => {
            let last = image.rsplit('/').next().unwrap_or_default();
            let latest = !last.contains('@') && (!last.contains(':') || last.ends_with(":latest"));
            if latest {
                PullPolicy::Always
            } else {
                PullPolicy::IfNotPresent
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    /// A pod of the default namespace with `spec` as given.
    pub(crate) fn pod(spec: serde_json::Value) -> Desired {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u1", "generation": 1},
            "spec": spec,
        }))
        .unwrap();
        Desired::parse(Arc::new(pod)).unwrap()
    }

    #[test]
    fn pull_policy_defaults_by_tag() {
        for (image, expected) in [
            ("hello", PullPolicy::Always),
            ("localhost:5000/hello", PullPolicy::Always),
            ("localhost:5000/hello:latest", PullPolicy::Always),
            ("localhost:5000/hello:1", PullPolicy::IfNotPresent),
            ("hello@sha256:00", PullPolicy::IfNotPresent),
        ] {
            assert_eq!(pull_policy(None, image), expected, "{image}");
        }
    }

    #[test]
    fn roles_and_restart_policies_of_containers() {
        let d = pod(json!({
            "initContainers": [
                {"name": "a", "image": "i:1"},
                {"name": "b", "image": "i:1", "restartPolicy": "Always"},
            ],
            "containers": [{"name": "c", "image": "i:1"}],
            "ephemeralContainers": [{"name": "d", "image": "i:1", "targetContainerName": "c"}],
            "restartPolicy": "OnFailure",
        }));
        let seen: Vec<_> = d
            .containers
            .iter()
            .map(|c| (&*c.name, c.role, c.restart))
            .collect();
        assert_eq!(
            seen,
            [
                ("a", Role::Init, RestartPolicy::OnFailure),
                ("b", Role::Sidecar, RestartPolicy::Always),
                ("c", Role::App, RestartPolicy::OnFailure),
                ("d", Role::Ephemeral, RestartPolicy::Never),
            ]
        );
        assert_eq!(d.container(2).map(|c| c.name.as_str()), Some("c"));
        assert_eq!(d.container(3).map(|c| c.name.as_str()), Some("d"));
        assert_eq!(d.target_of("d").as_deref(), Some("c"));
    }

    #[test]
    fn a_woken_pod_is_known_by_its_own_name_only() {
        let pod = |annotations: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "web-1", "namespace": "shop",
                "uid": "u1", "annotations": annotations}}))
            .unwrap()
        };
        let uid = |annotations| uid_of(&pod(annotations)).unwrap();
        assert_eq!(uid(json!({})), Uid::from("u1"));
        let woken = json!({"salp.dev/woken-on": "standby_other_web-9"});
        assert_eq!(uid(woken), Uid::from("standby_shop_web-1"));
    }

    #[test]
    fn the_deletion_grace_wins_once_deleting() {
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u1",
                "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 1},
            "spec": {"containers": [], "terminationGracePeriodSeconds": 60},
        }))
        .unwrap();
        assert_eq!(Desired::parse(Arc::new(pod.clone())).unwrap().grace_s, 1);
        pod.metadata.deletion_timestamp = None;
        assert_eq!(Desired::parse(Arc::new(pod.clone())).unwrap().grace_s, 60);
        let spec = pod.spec.as_mut().unwrap();
        spec.termination_grace_period_seconds = Some(-5);
        assert_eq!(Desired::parse(Arc::new(pod)).unwrap().grace_s, 1);
    }
}

//! A pod that stands by: all of a pod but its start and its API object.
//!
//! It is made by the same jobs as any pod, of what the API server itself says that a pod of
//! the ReplicaSet would be (a create that is only tried). Its sandbox has an id of its own,
//! of namespace and name, because the UID of the API object is known only when that is made;
//! the object, once there, says by an annotation that this is its sandbox ([`is_standby`]).

use super::{ADOPT_WITHIN, FORGET_AFTER, plan};
use crate::agent::{Agent, Slot};
use crate::container;
use crate::pod::{Desired, Role, Uid};
use crate::state::{Image, Run};
use crate::volumes;
use api::constants::{ANNOTATION_WOKEN_ON, ANNOTATION_WOKEN_POD};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1 as core;
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use runtime::{RuntimeError, SandboxId, SandboxStatus};
use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Letters of a pod's name that spell no words, as upstream has them.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// What a request that came at the last moment has to end in, milliseconds.
const GRACE_MS: u64 = 10_000;

/// Whether this is the id of a sandbox that stands by, or was woken.
pub(crate) fn is_standby(uid: &Uid) -> bool {
    uid.0.starts_with(crate::pod::STANDBY)
}

/// Which pods that stand by may have changed.
#[derive(Default)]
pub(crate) struct Hints {
    /// Held for look-ups only.
    hinted: Mutex<Hinted>,
    notify: Notify,
}

/// What was hinted at.
#[derive(Default)]
pub(super) struct Hinted {
    all: bool,
    changed: HashSet<Uid>,
    stale: HashSet<Uid>,
}

impl Hints {
    /// A runtime is back, with what it still has.
    pub(crate) fn all(&self) {
        self.hinted.lock().all = true;
        self.notify.notify_one();
    }

    /// The runtime says that its sandbox changed.
    pub(crate) fn changed(&self, uid: Uid) {
        self.hinted.lock().changed.insert(uid);
        self.notify.notify_one();
    }

    /// A ConfigMap or Secret that it uses changed.
    pub(crate) fn stale(&self, uid: Uid) {
        self.hinted.lock().stale.insert(uid);
        self.notify.notify_one();
    }

    pub(super) async fn told(&self) {
        self.notify.notified().await;
    }

    pub(super) fn take(&self) -> Hinted {
        std::mem::take(&mut self.hinted.lock())
    }
}

impl Hinted {
    pub(super) fn is_about(&self, uid: &Uid) -> bool {
        self.all || self.changed.contains(uid) || self.stale.contains(uid)
    }

    pub(super) fn is_stale(&self, uid: &Uid) -> bool {
        self.stale.contains(uid)
    }
}

/// A pod that stands by, or was woken.
pub(super) struct Standby {
    runtime: usize,
    namespace: String,
    pod: String,
    uid: Uid,
    /// UID of its ReplicaSet.
    set: String,
    /// None of one that an earlier agent made.
    slot: Option<Arc<Slot>>,
    stale: bool,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Sleeps,
    Woken,
    Rising(Instant),
}

impl Standby {
    /// Makes one.
    pub(super) async fn make(
        agent: &Arc<Agent>,
        client: &kube::Client,
        set: &ReplicaSet,
    ) -> Result<Self, String> {
        let pod = try_pod(agent, client, set).await?;
        let desired = Desired::parse(Arc::new(pod)).map_err(|e| e.to_string())?;
        if desired.containers.iter().any(|c| c.role != Role::App) {
            return Err("its pods have init containers, which run before every start".into());
        }
        let spec = desired.pod.spec.as_ref();
        if spec.and_then(|spec| spec.host_network) == Some(true) {
            return Err("its pods use the host's network".into());
        }
        if spec.is_some_and(|spec| agent.devices.wants(spec).next().is_some()) {
            return Err("its pods use devices, which a pod has only while it runs".into());
        }
        let containers = desired.containers.len();
        let slot = agent.standby_slot(desired);
        let made = async {
            agent.try_set_up(&slot).await.map_err(|e| e.message)?;
            for index in 0..containers {
                agent.pull(&slot, index).await;
                if let Image::Failed { message, .. } = &slot.lock().actual.containers[index].image {
                    return Err(message.clone());
                }
                let created = agent.try_create(&slot, index, 0).await;
                created.map_err(|failure| failure.message)?;
            }
            Ok(())
        };
        let made = made.await;
        let (runtime, namespace, pod) = {
            let record = slot.lock();
            let desired = &record.desired;
            (
                record.runtime.unwrap_or(0),
                desired.namespace.to_string(),
                desired.name.to_string(),
            )
        };
        let standby = Self {
            runtime,
            namespace,
            pod,
            uid: slot.uid.clone(),
            set: set.metadata.uid.clone().unwrap_or_default(),
            slot: Some(slot),
            stale: false,
            state: State::Sleeps,
        };
        match made {
            Ok(()) => Ok(standby),
            Err(error) => {
                standby.discard(agent).await;
                Err(error)
            }
        }
    }

    /// One that an earlier agent made; none if nobody waits for it.
    pub(super) fn found(
        runtime: usize,
        sandbox: &SandboxStatus,
        set: &ReplicaSet,
        awaited: Option<&str>,
        asleep: bool,
    ) -> Option<Self> {
        let annotations = set.metadata.annotations.as_ref();
        let told = annotations.and_then(|a| a.get(ANNOTATION_WOKEN_POD));
        let mut places = told.map(String::as_str).into_iter().chain(awaited);
        let state = if sandbox.standby {
            State::Sleeps
        } else if places.any(|place| place.rsplit('/').next() == Some(sandbox.name.as_str())) {
            State::Rising(Instant::now())
        } else if asleep {
            State::Woken
        } else {
            return None;
        };
        Some(Self {
            runtime,
            namespace: sandbox.namespace.clone(),
            pod: sandbox.name.clone(),
            uid: Uid::from(sandbox.id.0.as_str()),
            set: set.metadata.uid.clone().unwrap_or_default(),
            slot: None,
            stale: false,
            state,
        })
    }

    pub(super) fn uid(&self) -> &Uid {
        &self.uid
    }

    pub(super) fn pod(&self) -> &str {
        &self.pod
    }

    pub(super) fn sleeps(&self) -> bool {
        self.state == State::Sleeps
    }

    pub(super) fn is_woken(&self) -> bool {
        self.state == State::Woken
    }

    /// The API has been told.
    pub(super) fn risen(&mut self) {
        self.state = State::Rising(Instant::now());
    }

    /// What it is to the plan.
    pub(super) fn fact(&self, agent: &Agent, newest: Option<&ReplicaSet>) -> plan::Standby {
        match self.state {
            State::Woken => plan::Standby::Woken,
            State::Rising(since) => match agent.slot(&self.uid) {
                Some(slot) if since.elapsed() >= FORGET_AFTER && is_ready(&slot) => {
                    plan::Standby::Adopted
                }
                None if since.elapsed() >= ADOPT_WITHIN => plan::Standby::Unclaimed,
                // Woken while somebody scaled it up by hand: others were made meanwhile.
                None if since.elapsed() >= FORGET_AFTER && newest.is_some_and(is_whole) => {
                    plan::Standby::Unclaimed
                }
                _ => plan::Standby::Rising,
            },
            State::Sleeps => {
                let other = |set: &ReplicaSet| set.metadata.uid.as_deref() != Some(&self.set);
                let expires = |slot: &Arc<Slot>| {
                    let at = slot.lock().refresh_at;
                    at.is_some_and(|at| at <= agent.now())
                };
                let outdated = self.stale
                    || newest.is_some_and(other)
                    || self.slot.as_ref().is_none_or(expires);
                if outdated {
                    plan::Standby::Outdated
                } else {
                    plan::Standby::Ready
                }
            }
        }
    }

    /// Asks the runtime how it is.
    pub(super) async fn look(&mut self, agent: &Agent, stale: bool) {
        self.stale |= stale;
        let id = Agent::sandbox_id(&self.uid);
        match agent.runtime(self.runtime).sandbox(&id).await {
            Ok(Some(seen)) if !seen.standby => {
                if self.state == State::Sleeps {
                    self.state = State::Woken;
                }
                let mut adoptable = agent.adoptable.lock();
                adoptable.insert(self.uid.clone(), (self.runtime, seen));
            }
            Ok(Some(_)) => {}
            // Lost, with the runtime: another is made.
            Ok(None) => self.stale = true,
            Err(error) => tracing::debug!(pod = self.pod, %error, "standby not read"),
        }
    }

    /// Its pod is seen by all.
    pub(super) async fn release(&self, agent: &Agent) {
        let id = Agent::sandbox_id(&self.uid);
        if let Err(error) = agent.runtime(self.runtime).adopted(&id).await {
            tracing::debug!(pod = self.pod, %error, "runtime not told of an adopted pod");
        }
    }

    /// Removes it, and lets what a request has just begun in it end.
    pub(super) async fn discard(self, agent: &Agent) {
        let (namespace, pod) = (&self.namespace, &self.pod);
        agent
            .discard_standby(self.runtime, &self.uid, namespace, pod)
            .await;
    }
}

impl Agent {
    /// Sandboxes that stand by or were woken, and that no pod of the API owns.
    pub(super) async fn standbys_of_runtimes(&self) -> Vec<(usize, SandboxStatus)> {
        let mut found = Vec::new();
        for (index, (_, runtime)) in self.runtimes.iter().enumerate() {
            let Ok(sandboxes) = runtime.sandboxes().await else {
                continue;
            };
            let unowned = sandboxes.into_iter().filter(|sandbox| {
                let uid = Uid::from(sandbox.id.0.as_str());
                is_standby(&uid) && self.slot(&uid).is_none()
            });
            found.extend(unowned.map(|sandbox| (index, sandbox)));
        }
        found
    }

    pub(super) async fn discard_standby(
        &self,
        runtime: usize,
        uid: &Uid,
        namespace: &str,
        name: &str,
    ) {
        // Taken by a pod after all.
        if self.slot(uid).is_some() {
            return;
        }
        self.adoptable.lock().remove(uid);
        let id: SandboxId = Self::sandbox_id(uid);
        let runtime = self.runtime(runtime);
        let containers = match runtime.sandbox(&id).await {
            Ok(Some(sandbox)) => sandbox.containers,
            _ => Vec::new(),
        };
        for container in containers {
            // From then on no request wakes it; what one has just woken answers. Failing, it
            // ends with its sandbox.
            drop(runtime.stop_container(&container.id, GRACE_MS).await);
        }
        match runtime.remove_sandbox(&id).await {
            Ok(()) | Err(RuntimeError::NotFound(_)) => {}
            Err(error) => tracing::warn!(name, %error, "a pod that stood by is not removed"),
        }
        self.addresses.release(uid);
        self.objects.release(uid);
        self.tokens.release(&uid.0);
        let dirs = [
            volumes::tear_down(&volumes::pod_dir(&self.fixed.dir, &uid.0))
                .map_err(|error| error.to_string()),
            remove(&container::log_dir(
                &self.fixed.dir,
                namespace,
                name,
                &uid.0,
            )),
        ];
        for error in dirs.into_iter().filter_map(Result::err) {
            tracing::warn!(name, error, "files of a pod that stood by are not removed");
        }
    }

    /// How many pods of a ReplicaSet are on this node and not about to go.
    pub(super) fn slots_of(&self, set: Option<&str>) -> usize {
        let of_set = |slot: &Arc<Slot>| {
            let record = slot.lock();
            let owners = record.desired.pod.metadata.owner_references.iter();
            let mut owners = owners.flatten();
            !record.desired.deleting
                && owners.any(|o| o.controller == Some(true) && Some(o.uid.as_str()) == set)
        };
        self.slots().iter().filter(|slot| of_set(slot)).count()
    }
}

fn remove(dir: &std::path::Path) -> Result<(), String> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(()),
    }
}

/// Whether it is to have pods, and has as many.
fn is_whole(set: &ReplicaSet) -> bool {
    let wanted = set.spec.replicas.unwrap_or(1);
    let seen = |s: &&ReplicaSetStatus| s.observed_generation >= set.metadata.generation;
    let status = set.status.as_ref().filter(seen);
    wanted > 0 && status.is_some_and(|s| s.replicas >= wanted)
}

fn is_ready(slot: &Slot) -> bool {
    let record = slot.lock();
    let mut runs = record.actual.containers.iter().map(|c| &c.run);
    runs.all(|run| matches!(run, Run::Running { ready: true, .. }))
}

/// The pod as the API server would make it, without making it.
async fn try_pod(
    agent: &Agent,
    client: &kube::Client,
    set: &ReplicaSet,
) -> Result<core::Pod, String> {
    let template = set.spec.template.clone().unwrap_or_default();
    let namespace = set.metadata.namespace.clone().unwrap_or_default();
    let set_name = set.metadata.name.as_deref().unwrap_or_default();
    let name = format!("{set_name}-{}", suffix());
    let mut metadata = template.metadata.unwrap_or_default();
    metadata.name = Some(name.clone());
    metadata.namespace = Some(namespace.clone());
    metadata
        .annotations
        .get_or_insert_default()
        .insert(ANNOTATION_WOKEN_ON.to_owned(), agent.fixed.name.clone());
    let mut spec = template.spec.unwrap_or_default();
    spec.node_name = Some(agent.fixed.name.clone());
    let pod = core::Pod {
        metadata,
        spec: Some(spec),
        status: None,
    };
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let pods = Api::<core::Pod>::namespaced(client.clone(), &namespace);
    let mut pod = pods.create(&dry, &pod).await.map_err(|error| match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    })?;
    pod.status = None;
    // That of the real one will be another.
    pod.metadata.uid = Some(crate::pod::standby_id(&namespace, &name));
    Ok(pod)
}

fn suffix() -> String {
    let mut random = RandomState::new().hash_one(0u8);
    let count = LETTERS.len() as u64;
    let letters = (0..5).map(|_| {
        let letter = LETTERS[usize::try_from(random % count).unwrap_or(0)];
        random /= count;
        char::from(letter)
    });
    letters.collect()
}

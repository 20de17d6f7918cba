//! The loop: keeps the snapshot as the informers tell, places what waits, binds.
//!
//! One task decides; bindings are made beside it, and a pod counts as placed from the
//! decision on (it is assumed) until its binding fails.

use crate::claims::{self, Claims, Reservation, Storage};
use crate::demand::Demand;
use crate::pending::Pending;
use crate::place::{Unschedulable, place};
use crate::snapshot::Snapshot;
use client::k8s_openapi::api::core::v1::{
    Binding, Namespace, Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod,
};
use client::k8s_openapi::api::storage::v1::StorageClass;
use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status, Time};
use client::volumes::SELECTED_NODE;
use client::{Change, Clock, EventRecorder, EventType, Informer, Informers, ObjectKey};
use futures::{FutureExt as _, Stream, StreamExt as _};
use kube::api::{Api, Patch, PatchParams, PostParams};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Pods with this `schedulerName` are scheduled here.
pub const SCHEDULER_NAME: &str = "default-scheduler";
/// Bindings and status updates under way at once; when as many are, placing waits.
const WRITES_MAX: usize = 64;
/// Placements between two looks at what has changed.
const PLACEMENTS_AT_ONCE: usize = 32;

/// What the scheduler needs.
#[derive(Clone, Debug)]
pub struct Config {
    /// The process's informers; their client also binds.
    pub informers: Informers,
    /// Time of conditions and events.
    pub clock: Clock,
    /// Decides between nodes that are equally good.
    pub seed: u64,
}

/// Starts the scheduler in `scope`; it runs until the scope is cancelled.
pub fn run(config: Config, scope: &lifecycle::Scope) {
    let client = config.informers.client().clone();
    let recorder = EventRecorder::new(
        client.clone(),
        SCHEDULER_NAME,
        "",
        config.clock.clone(),
        scope,
    );
    let (written, writes) = mpsc::channel(WRITES_MAX);
    let scheduler = Scheduler {
        pods: config.informers.get(),
        nodes: config.informers.get(),
        namespaces: config.informers.get(),
        claims: config.informers.get(),
        volumes: config.informers.get(),
        classes: config.informers.get(),
        snapshot: Snapshot::new(),
        pending: Pending::default(),
        assumed: HashMap::new(),
        rng: StdRng::seed_from_u64(config.seed),
        writing: 0,
        writer: Writer {
            client,
            recorder,
            clock: config.clock,
            written,
        },
        scope: scope.clone(),
    };
    scope.spawn_cancellable(scheduler.run(writes));
}

struct Scheduler {
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    namespaces: Informer<Namespace>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    snapshot: Snapshot,
    pending: Pending,
    /// Uid → node of pods that are placed but not yet told as bound by the informer.
    assumed: HashMap<String, String>,
    rng: StdRng,
    writing: usize,
    writer: Writer,
    scope: lifecycle::Scope,
}

enum Input {
    Pod(Change<Pod>),
    Node(Change<Node>),
    Namespace(Change<Namespace>),
    /// A claim, a volume or a class.
    Storage,
}

/// A write that ended.
enum Written {
    Bound(Arc<Pod>, Result<(), kube::Error>),
    Reported,
    /// Volumes were reserved for a pod's claims.
    Reserved(ObjectKey, Result<(), kube::Error>),
}

/// The storage of a pod's namespace.
struct Stored<'a> {
    namespace: &'a str,
    of: &'a Scheduler,
}

impl Storage for Stored<'_> {
    fn claim(&self, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.of.claims.get(self.namespace, name)
    }

    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.of.volumes.get("", name)
    }

    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.of.volumes.list()
    }

    fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.of.classes.get("", name)
    }

    fn is_used(&self, claim: &str) -> bool {
        let mut pods = self.of.snapshot.nodes().flat_map(|(_, node)| node.pods());
        pods.any(|pod| {
            pod.metadata.namespace.as_deref() == Some(self.namespace)
                && client::volumes::claims_of(pod).any(|(name, _)| name == claim)
        })
    }
}

impl Scheduler {
    async fn run(mut self, mut writes: mpsc::Receiver<Written>) {
        let mut inputs = self.inputs();
        self.pods.synced().await;
        self.nodes.synced().await;
        self.namespaces.synced().await;
        self.claims.synced().await;
        self.volumes.synced().await;
        self.classes.synced().await;
        self.rebuild();
        loop {
            while let Some(Some(input)) = inputs.next().now_or_never() {
                self.take(input);
            }
            while let Ok(written) = writes.try_recv() {
                self.settle(written);
            }
            for _ in 0..PLACEMENTS_AT_ONCE {
                if !self.place_next() {
                    break;
                }
            }
            if self.writing < WRITES_MAX && self.pending.has_active(Instant::now()) {
                tokio::task::yield_now().await;
                continue;
            }
            let due = self.pending.next_due();
            tokio::select! {
                Some(input) = inputs.next() => self.take(input),
                Some(written) = writes.recv() => self.settle(written),
                () = sleep_until(due) => {}
            }
        }
    }

    fn inputs(&self) -> impl Stream<Item = Input> + Unpin + use<> {
        futures::stream::select_all([
            self.pods.subscribe().map(Input::Pod).boxed(),
            self.nodes.subscribe().map(Input::Node).boxed(),
            self.namespaces.subscribe().map(Input::Namespace).boxed(),
            self.claims.subscribe().map(|_| Input::Storage).boxed(),
            self.volumes.subscribe().map(|_| Input::Storage).boxed(),
            self.classes.subscribe().map(|_| Input::Storage).boxed(),
        ])
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Pod(Change::Object { old, new, .. }) => self.pod_changed(old, new),
            Input::Node(Change::Object { key, new, .. }) => match new {
                Some(node) => {
                    if self.snapshot.set_node(node) {
                        self.pending.wake(|_| true, Instant::now());
                    }
                }
                None => self.snapshot.remove_node(&key.name),
            },
            Input::Namespace(Change::Object { key, new, .. }) => match new {
                Some(namespace) => self.snapshot.set_namespace(
                    &key.name,
                    namespace.metadata.labels.clone().unwrap_or_default(),
                ),
                None => self.snapshot.remove_namespace(&key.name),
            },
            Input::Storage => self.pending.wake(claims::has_any, Instant::now()),
            Input::Pod(Change::Resync)
            | Input::Node(Change::Resync)
            | Input::Namespace(Change::Resync) => self.rebuild(),
        }
    }

    /// Reads everything anew from the informers.
    fn rebuild(&mut self) {
        self.snapshot = Snapshot::new();
        for node in self.nodes.list() {
            self.snapshot.set_node(node);
        }
        for namespace in self.namespaces.list() {
            if let Some(name) = &namespace.metadata.name {
                let labels = namespace.metadata.labels.clone().unwrap_or_default();
                self.snapshot.set_namespace(name, labels);
            }
        }
        let pods = self.pods.list();
        let assumed = std::mem::take(&mut self.assumed);
        for pod in &pods {
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            if let Some(node) = assumed.get(uid).filter(|_| node_of(pod).is_none()) {
                self.snapshot.add_pod(node, pod.clone());
                self.assumed.insert(uid.to_owned(), node.clone());
            }
            self.pod_changed(None, Some(pod.clone()));
        }
        let informer = &self.pods;
        self.pending
            .retain(|key| informer.get_key(key).is_some_and(|p| node_of(&p).is_none()));
        self.pending.wake(|_| true, Instant::now());
    }

    fn pod_changed(&mut self, old: Option<Arc<Pod>>, new: Option<Arc<Pod>>) {
        let same = old.as_ref().map(|o| &o.metadata.uid) == new.as_ref().map(|n| &n.metadata.uid);
        if let Some(old) = &old {
            let stays = same && new.as_ref().is_some_and(|n| holds_room(n));
            if !stays {
                self.release(old);
            }
        }
        let Some(new) = new else {
            return;
        };
        let uid = new.metadata.uid.clone().unwrap_or_default();
        if let Some(node) = node_of(&new) {
            if let Some(assumed) = self.assumed.remove(&uid)
                && assumed != node
            {
                self.snapshot.remove_pod(&assumed, &uid);
            }
            self.pending.remove(&ObjectKey::of(&*new));
            if holds_room(&new) {
                let arrived = old.is_none_or(|o| node_of(&o).is_none());
                self.snapshot.add_pod(node, new.clone());
                if arrived {
                    self.pending.wake(looks_at_pods, Instant::now());
                }
            }
        } else if is_ours(&new) {
            if !self.assumed.contains_key(&uid) {
                self.pending.add(new, Instant::now());
            }
        } else {
            self.pending.remove(&ObjectKey::of(&*new));
        }
    }

    /// A pod is gone or has ended: its room is free.
    fn release(&mut self, pod: &Pod) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let assumed = self.assumed.remove(uid);
        let node = node_of(pod).or(assumed.as_deref());
        let freed = node.is_some_and(|node| self.snapshot.remove_pod(node, uid));
        if node.is_none() || assumed.is_some() {
            self.pending.remove(&ObjectKey::of(pod));
        }
        if freed {
            self.pending.wake(|_| true, Instant::now());
        }
    }

    /// Places one pod, if one waits and a write may be started.
    fn place_next(&mut self) -> bool {
        if self.writing >= WRITES_MAX {
            return false;
        }
        let Some(pod) = self.pending.take(Instant::now()) else {
            return false;
        };
        let placed = self.place(&pod);
        self.writing += 1;
        let writer = self.writer.clone();
        match placed {
            Ok((node, reservations)) if !reservations.is_empty() => {
                // Placed anew when they are bound, where they are then.
                let key = ObjectKey::of(&*pod);
                self.pending.parked(&key, Instant::now());
                self.scope.spawn_cancellable(async move {
                    writer.reserve(key, node, reservations).await;
                });
            }
            Ok((node, _)) => {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                self.snapshot.add_pod(&node, pod.clone());
                self.assumed.insert(uid, node.clone());
                self.scope
                    .spawn_cancellable(async move { writer.bind(pod, node).await });
            }
            Err(reasons) => {
                self.pending
                    .failed(&ObjectKey::of(&*pod), true, Instant::now());
                self.scope
                    .spawn_cancellable(async move { writer.report(pod, reasons).await });
            }
        }
        true
    }

    /// The node for a pod, and what is to be written of its claims before it may run there.
    fn place(&mut self, pod: &Arc<Pod>) -> Result<(String, Vec<Reservation>), Unschedulable> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let stored = Stored {
            namespace,
            of: self,
        };
        let claims = Claims::of(pod, &stored).map_err(|reason| Unschedulable {
            nodes: self.snapshot.nodes().count(),
            pod: Some(reason),
            ..Unschedulable::default()
        })?;
        let demand = Demand::of(pod).with_claims(claims);
        let name = place(&demand, &self.snapshot, &mut self.rng)?;
        let node = self.snapshot.nodes().find(|(known, _)| *known == name);
        let reservations = node.map(|(name, node)| demand.claims.reserve(name, node));
        Ok((name.to_owned(), reservations.unwrap_or_default()))
    }

    fn settle(&mut self, written: Written) {
        self.writing -= 1;
        if let Written::Reserved(key, Err(error)) = &written {
            tracing::debug!(pod = %key, %error, "volumes not reserved, trying again");
            self.pending.wake(claims::has_any, Instant::now());
        }
        let Written::Bound(pod, Err(error)) = written else {
            return;
        };
        let key = ObjectKey::of(&*pod);
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if let Some(node) = self.assumed.remove(&uid) {
            self.snapshot.remove_pod(&node, &uid);
        }
        if client::is_not_found(&error) || client::is_conflict(&error) {
            // Gone, going or bound by another: the informer tells what it is now.
            tracing::debug!(pod = %key, %error, "binding refused");
            self.pending.remove(&key);
        } else {
            tracing::warn!(pod = %key, %error, "binding failed, trying again");
            self.pending.failed(&key, false, Instant::now());
        }
    }
}

#[derive(Clone)]
struct Writer {
    client: kube::Client,
    recorder: EventRecorder,
    clock: Clock,
    written: mpsc::Sender<Written>,
}

impl Writer {
    async fn bind(self, pod: Arc<Pod>, node: String) {
        let ObjectKey { namespace, name } = ObjectKey::of(&*pod);
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.clone()),
                uid: pod.metadata.uid.clone(),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(node.clone()),
                ..ObjectReference::default()
            },
        };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let bound = api
            .create_subresource::<_, Status>("binding", &name, &PostParams::default(), &binding)
            .await;
        if bound.is_ok() {
            self.recorder.normal(
                &*pod,
                "Scheduled",
                &format!("Successfully assigned {namespace}/{name} to {node}"),
            );
        }
        // Closed only when the scheduler has ended.
        let _ = self
            .written
            .send(Written::Bound(pod, bound.map(|_| ())))
            .await;
    }

    /// Says which volumes are for the claims of a pod, or on which node they are to be made.
    async fn reserve(self, key: ObjectKey, node: String, reservations: Vec<Reservation>) {
        let params = PatchParams::default();
        let mut all = Ok(());
        for reservation in reservations {
            let done = match reservation {
                Reservation::Underway => continue,
                Reservation::Volume(volume, claim) => {
                    let api: Api<PersistentVolume> = Api::all(self.client.clone());
                    let reference = client::events::reference(&*claim);
                    let patch = Patch::Merge(json!({
                        "metadata": {"resourceVersion": volume.metadata.resource_version},
                        "spec": {"claimRef": reference},
                    }));
                    let name = volume.metadata.name.as_deref().unwrap_or_default();
                    api.patch(name, &params, &patch).await.map(drop)
                }
                Reservation::Node(claim) => {
                    let api: Api<PersistentVolumeClaim> =
                        Api::namespaced(self.client.clone(), &key.namespace);
                    let patch = Patch::Merge(json!({"metadata": {
                        "resourceVersion": claim.metadata.resource_version,
                        "annotations": {SELECTED_NODE: node},
                    }}));
                    let name = claim.metadata.name.as_deref().unwrap_or_default();
                    api.patch(name, &params, &patch).await.map(drop)
                }
            };
            all = all.and(done);
        }
        // Closed only when the scheduler has ended.
        let _ = self.written.send(Written::Reserved(key, all)).await;
    }

    async fn report(self, pod: Arc<Pod>, reasons: Unschedulable) {
        let message = reasons.to_string();
        self.recorder.record(
            client::events::reference(&*pod),
            EventType::Warning,
            "FailedScheduling",
            &message,
        );
        if let Some(patch) = unschedulable_patch(&pod, &message, self.clock.now()) {
            let ObjectKey { namespace, name } = ObjectKey::of(&*pod);
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
            let patched = api
                .patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch))
                .await;
            match patched {
                Err(error) if !client::is_not_found(&error) => {
                    tracing::debug!(pod = name, %error, "condition not written");
                }
                _ => {}
            }
        }
        let _ = self.written.send(Written::Reported).await;
    }
}

/// The patch that says in a pod's status why it waits; none when it says so already.
fn unschedulable_patch(
    pod: &Pod,
    message: &str,
    now: jiff::Timestamp,
) -> Option<serde_json::Value> {
    let known = pod
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .find(|c| c.type_ == "PodScheduled");
    if known.is_some_and(|c| {
        c.status == "False"
            && c.reason.as_deref() == Some("Unschedulable")
            && c.message.as_deref() == Some(message)
    }) {
        return None;
    }
    let since = known
        .filter(|c| c.status == "False")
        .and_then(|c| c.last_transition_time.clone())
        .unwrap_or(Time(now));
    Some(serde_json::json!({
        "metadata": {"uid": pod.metadata.uid},
        "status": {"conditions": [{
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastTransitionTime": since,
            "observedGeneration": pod.metadata.generation,
        }]},
    }))
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()?
        .node_name
        .as_deref()
        .filter(|n| !n.is_empty())
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether a pod takes room on a node, or will once it is bound.
fn holds_room(pod: &Pod) -> bool {
    !has_ended(pod)
}

/// Whether a pod without a node waits for this scheduler.
fn is_ours(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else {
        return false;
    };
    pod.metadata.deletion_timestamp.is_none()
        && !has_ended(pod)
        && spec.scheduler_name.as_deref().unwrap_or(SCHEDULER_NAME) == SCHEDULER_NAME
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
}

/// Whether where other pods are decides on where this one may be.
fn looks_at_pods(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|s| {
        s.affinity
            .as_ref()
            .is_some_and(|a| a.pod_affinity.is_some() || a.pod_anti_affinity.is_some())
            || s.topology_spread_constraints
                .as_ref()
                .is_some_and(|c| !c.is_empty())
    })
}

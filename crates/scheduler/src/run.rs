//! The loop: keeps the snapshot as the informers tell, places what waits, binds.
//!
//! One task decides; bindings are made beside it, and a pod counts as placed from the
//! decision on (it is assumed) until its binding fails.

use crate::claims::{self, Claims, Reservation, Storage};
use crate::demand::Demand;
use crate::pending::Pending;
use crate::place::{Unschedulable, place};
use crate::preempt::{self, Preemption, priority, uid};
use crate::snapshot::Snapshot;
use crate::write::{Writer, Written};
use client::k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod,
};
use client::k8s_openapi::api::policy::v1::PodDisruptionBudget;
use client::k8s_openapi::api::storage::v1::StorageClass;
use client::{Change, Clock, EventRecorder, Informer, Informers, ObjectKey};
use futures::{FutureExt as _, Stream, StreamExt as _};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
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
        budgets: config.informers.get(),
        snapshot: Snapshot::new(),
        pending: Pending::default(),
        assumed: HashMap::new(),
        nominated: HashMap::new(),
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
    budgets: Informer<PodDisruptionBudget>,
    snapshot: Snapshot,
    pending: Pending,
    /// Uid → node of pods that are placed but not yet told as bound by the informer.
    assumed: HashMap<String, String>,
    /// Uid → node of pods for which others have been made to go: none of a lower priority takes
    /// their room.
    nominated: HashMap<String, (String, Arc<Pod>)>,
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
        self.budgets.synced().await;
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
            let status = pod.status.as_ref();
            let node = status.and_then(|s| s.nominated_node_name.clone());
            if let Some(node) = node.filter(|_| node_of(pod).is_none() && is_ours(pod)) {
                self.nominated.insert(uid.to_owned(), (node, pod.clone()));
            }
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
            self.nominated.remove(&uid);
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
        let uid = uid(pod);
        self.nominated.remove(uid);
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
                let uid = uid(&pod).to_owned();
                self.nominated.remove(&uid);
                self.snapshot.add_pod(&node, pod.clone());
                self.assumed.insert(uid, node.clone());
                self.scope
                    .spawn_cancellable(async move { writer.bind(pod, node).await });
            }
            Err(mut reasons) => {
                self.pending
                    .failed(&ObjectKey::of(&*pod), true, Instant::now());
                match self.preempt(&pod, &mut reasons) {
                    None => {
                        self.scope
                            .spawn_cancellable(async move { writer.report(pod, reasons).await });
                    }
                    Some(preemption) => {
                        self.scope.spawn_cancellable(async move {
                            writer.preempt(pod, preemption, reasons).await;
                        });
                    }
                }
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
        let promised: Vec<(String, Arc<Pod>)> = self
            .nominated
            .values()
            .filter(|(_, other)| uid(other) != uid(pod) && priority(other) >= priority(pod))
            .cloned()
            .collect();
        for (node, other) in &promised {
            self.snapshot.add_pod(node, other.clone());
        }
        let placed = place(&demand, &self.snapshot, &mut self.rng).map(str::to_owned);
        for (node, other) in &promised {
            self.snapshot.remove_pod(node, uid(other));
        }
        let name = placed?;
        let node = self.snapshot.node(&name);
        let reservations = node.map(|node| demand.claims.reserve(&name, node));
        Ok((name, reservations.unwrap_or_default()))
    }

    /// Whom a pod that no node can take makes go, and what is said of it.
    fn preempt(&mut self, pod: &Arc<Pod>, reasons: &mut Unschedulable) -> Option<Preemption> {
        if reasons.pod.is_some() || reasons.blocked_by_pods == 0 {
            return None;
        }
        if let Some(why) = preempt::not_eligible(pod, &self.snapshot) {
            reasons.preemption = Some(why.to_owned());
            return None;
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let stored = Stored {
            namespace,
            of: self,
        };
        let claims = Claims::of(pod, &stored).ok()?;
        let demand = Demand::of(pod).with_claims(claims);
        let budgets = self.budgets.list();
        let mut preemption = preempt::preempt(&demand, &mut self.snapshot, &budgets)?;
        reasons.preemption = Some(String::new());
        let node = preemption.node.clone();
        // Those of a lower priority that were to have the same room are to look again.
        let outdone = self
            .nominated
            .extract_if(|_, (at, other)| *at == node && priority(other) < priority(pod));
        preemption.outdone = outdone.map(|(_, (_, other))| other).collect();
        self.nominated
            .insert(uid(pod).to_owned(), (node, pod.clone()));
        Some(preemption)
    }

    fn settle(&mut self, written: Written) {
        self.writing -= 1;
        if let Written::Reserved(key, Err(error)) = &written {
            tracing::debug!(pod = %key, %error, "volumes not reserved, trying again");
            self.pending.wake(claims::has_any, Instant::now());
        }
        if let Written::Preempted(pod, Err(error)) = &written {
            tracing::warn!(pod = %ObjectKey::of(&**pod), %error, "not all were made to go, trying again");
            self.nominated.remove(uid(pod));
            let of = |other: &Pod| uid(other) == uid(pod);
            self.pending.wake(of, Instant::now());
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

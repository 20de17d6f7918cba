//! The agent's heart: which pods there are, and one loop that brings each nearer to what
//! is wanted.
//!
//! A pod is reconciled by its UID alone: the loop re-reads what is wanted and what is,
//! plans, begins the steps as jobs (`jobs`) and leaves. A job that ends writes what it
//! found into the record and queues the pod again. Start with [`Agent::reconcile`].

mod contract;
mod record;

use contract::Verdict;
pub(crate) use record::{Record, Slot};

use crate::addresses::Addresses;
use crate::admit::{self, Requests, Totals};
use crate::checkpoint::Checkpoint;
use crate::contact::Contact;
use crate::devices::Devices;
use crate::image::ImageSource;
use crate::objects::ObjectCache;
use crate::plan::{self, Step, Why};
use crate::pod::{Role, Uid};
use crate::probes;
use crate::shutdown;
use crate::sleep::{Hints, is_standby};
use crate::state::{Ended, Image, Run, Sandbox};
use crate::static_pods::Mirrors;
use crate::tokens::Tokens;
use apimachinery::quantity::Quantity;
use client::{Clock, EventRecorder, EventType, Informer, WorkQueue};
use k8s_openapi::api::core::v1 as core;
use parking_lot::{Mutex, RwLock};
use runtime::{PodRuntime, SandboxId, Traffic};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

/// Containers that are created and started at once; more wait in turn.
const STARTS_MAX: usize = 32;
/// Images that are pulled at once; more wait in turn.
const PULLS_MAX: usize = 8;
/// Pods whose volumes and sandboxes are made at once; more wait in turn.
const SETUPS_MAX: usize = 64;
/// A failed pull is shown as `ErrImagePull` this long, then as `ImagePullBackOff`.
const PULL_ERROR_SHOWN_MS: u64 = 1000;

/// What is fixed while the agent runs.
pub(crate) struct Fixed {
    pub(crate) name: String,
    pub(crate) node_ip: IpAddr,
    pub(crate) dir: PathBuf,
    pub(crate) cluster_dns: Vec<IpAddr>,
    pub(crate) cluster_domain: String,
    pub(crate) pods_max: u32,
    pub(crate) pod_pids_limit: Option<u64>,
    pub(crate) allocatable: BTreeMap<String, Quantity>,
}

/// All pods of the node and what they are run with.
pub(crate) struct Agent {
    pub(crate) fixed: Fixed,
    pub(crate) client: kube::Client,
    pub(crate) clock: Clock,
    pub(crate) events: EventRecorder,
    pub(crate) images: Arc<dyn ImageSource>,
    /// By RuntimeClass handler; the first is the default.
    pub(crate) runtimes: Vec<(String, Arc<dyn PodRuntime>)>,
    pub(crate) services: Informer<core::Service>,
    pub(crate) objects: Arc<ObjectCache>,
    pub(crate) tokens: Tokens,
    pub(crate) addresses: Addresses,
    pub(crate) checkpoint: Arc<Checkpoint>,
    pub(crate) devices: Devices,
    /// When the API server was last reached.
    pub(crate) contact: Arc<Contact>,
    /// Pods to reconcile.
    pub(crate) queue: WorkQueue<Uid>,
    /// Pods whose status may have changed.
    pub(crate) statuses: WorkQueue<Uid>,
    pub(crate) starts: Semaphore,
    pub(crate) pulls: Semaphore,
    pub(crate) setups: Semaphore,
    pub(crate) scope: lifecycle::Scope,
    /// Held for sums only.
    pub(crate) totals: Mutex<Totals>,
    /// When the agent started, Unix milliseconds.
    pub(crate) started_ms: i64,
    /// The zero of [`Agent::now`].
    origin: Instant,
    /// The node is being drained: nothing is begun and nothing told any more.
    pub(crate) draining: AtomicBool,
    /// Whether the machine goes down.
    pub(crate) stage: watch::Sender<shutdown::Stage>,
    /// How often something was done at a runtime: tells whether an answer is older than that.
    deeds: AtomicU64,
    /// What runtimes had when the agent started, until its pods are known. Held for
    /// look-ups only.
    pub(crate) adoptable: Mutex<HashMap<Uid, (usize, runtime::SandboxStatus)>>,
    /// What carries the node's Services, if it is known.
    pub(crate) traffic: OnceLock<Arc<dyn Traffic>>,
    /// Pods that stand by and may have changed.
    pub(crate) standby_hints: Hints,
    /// What the API shows of static pods.
    pub(crate) mirrors: Mirrors,
    /// Whether the API server has told of all pods since the agent started.
    pub(crate) pods_known: watch::Sender<bool>,
    /// Held for look-ups and never across an await; taken before any record's lock.
    pub(crate) pods: RwLock<HashMap<Uid, Arc<Slot>>>,
}

/// What an [`Agent`] is made of.
pub(crate) struct Parts {
    /// Gets tokens for pods that stand by, where any do.
    pub(crate) unbound: Option<kube::Client>,
    pub(crate) fixed: Fixed,
    pub(crate) client: kube::Client,
    pub(crate) clock: Clock,
    pub(crate) events: EventRecorder,
    pub(crate) images: Arc<dyn ImageSource>,
    pub(crate) runtimes: Vec<(String, Arc<dyn PodRuntime>)>,
    pub(crate) services: Informer<core::Service>,
    pub(crate) addresses: Addresses,
    pub(crate) checkpoint: Arc<Checkpoint>,
    pub(crate) contact: Arc<Contact>,
    pub(crate) scope: lifecycle::Scope,
}

impl Agent {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let scope = parts.scope.clone();
        let dir = parts.fixed.dir.clone();
        Arc::new_cyclic(|this: &std::sync::Weak<Self>| Self {
            objects: ObjectCache::new(parts.client.clone(), &scope, {
                let this = this.clone();
                move |users| {
                    if let Some(this) = this.upgrade() {
                        this.objects_changed(users);
                    }
                }
            }),
            tokens: Tokens::new(parts.client.clone(), parts.unbound, parts.clock.clone()),
            fixed: parts.fixed,
            client: parts.client,
            clock: parts.clock.clone(),
            events: parts.events,
            images: parts.images,
            runtimes: parts.runtimes,
            services: parts.services,
            addresses: parts.addresses,
            checkpoint: parts.checkpoint,
            devices: Devices::open(&dir),
            contact: parts.contact,
            queue: WorkQueue::new(),
            statuses: WorkQueue::new(),
            starts: Semaphore::new(STARTS_MAX),
            pulls: Semaphore::new(PULLS_MAX),
            setups: Semaphore::new(SETUPS_MAX),
            scope: parts.scope,
            totals: Mutex::default(),
            draining: AtomicBool::new(false),
            stage: watch::Sender::default(),
            deeds: AtomicU64::new(0),
            adoptable: Mutex::default(),
            traffic: OnceLock::new(),
            standby_hints: Hints::default(),
            mirrors: Mirrors::default(),
            pods_known: watch::Sender::new(false),
            started_ms: parts.clock.now().as_millisecond(),
            origin: Instant::now(),
            pods: RwLock::default(),
        })
    }

    /// Milliseconds of a clock that never jumps.
    pub(crate) fn now(&self) -> u64 {
        // From one hour on, so that "never" (zero) is long ago.
        3_600_000 + u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX / 2)
    }

    pub(crate) fn slot(&self, uid: &Uid) -> Option<Arc<Slot>> {
        self.pods.read().get(uid).cloned()
    }

    /// All pods, in no order.
    pub(crate) fn slots(&self) -> Vec<Arc<Slot>> {
        self.pods.read().values().cloned().collect()
    }

    /// The pod of a name; of several, the one that is not being deleted.
    pub(crate) fn find(&self, namespace: &str, name: &str) -> Option<Arc<Slot>> {
        let slots = self.slots();
        let mut found: Vec<_> = slots
            .into_iter()
            .filter(|s| {
                let record = s.lock();
                &*record.desired.namespace == namespace && &*record.desired.name == name
            })
            .collect();
        found.sort_by_key(|s| {
            let record = s.lock();
            (record.actual.gone, record.desired.deleting)
        });
        found.into_iter().next()
    }

    pub(crate) fn runtime(&self, index: usize) -> &Arc<dyn PodRuntime> {
        &self.runtimes[index.min(self.runtimes.len() - 1)].1
    }

    /// The API server no longer has the pod.
    pub(crate) fn gone(&self, uid: &Uid) {
        if let Some(slot) = self.slot(uid) {
            slot.lock().actual.gone = true;
            self.queue.add(uid.clone());
        }
    }

    /// A ConfigMap or Secret changed: volumes are written anew, and what waited for it is
    /// tried at once.
    fn objects_changed(&self, users: &HashSet<Uid>) {
        for uid in users {
            let Some(slot) = self.slot(uid) else {
                if is_standby(uid) {
                    self.standby_hints.stale(uid.clone());
                }
                continue;
            };
            let mut record = slot.lock();
            record.stale = true;
            if let Sandbox::Failed { retry_at } = &mut record.actual.sandbox {
                *retry_at = 0;
            }
            for container in &mut record.actual.containers {
                if let Run::Failed {
                    reason: "CreateContainerConfigError",
                    retry_at,
                    ..
                } = &mut container.run
                {
                    *retry_at = 0;
                }
            }
            self.queue.add(uid.clone());
        }
    }

    /// Every pod that the API server does not have is gone: after a listing.
    pub(crate) fn retain(&self, known: &HashSet<Uid>) {
        for slot in self.slots() {
            let is_static = slot.lock().desired.is_static;
            if !is_static && !known.contains(&slot.uid) {
                self.gone(&slot.uid);
            }
        }
        self.devices.retain(|uid| self.slot(&uid.into()).is_some());
    }

    /// How often something was done at a runtime so far.
    pub(crate) fn deeds(&self) -> u64 {
        self.deeds.load(Ordering::SeqCst)
    }

    /// Counts that something was done at a runtime; what [`Agent::deeds`] then says.
    pub(crate) fn deed(&self) -> u64 {
        self.deeds.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Takes over what the runtime says of a sandbox.
    pub(crate) fn observe(
        &self,
        slot: &Slot,
        runtime: usize,
        seen: Option<&runtime::SandboxStatus>,
    ) {
        let mut record = slot.lock();
        let record = &mut *record;
        if let Some(seen) = seen {
            record.runtime = Some(runtime);
            record.ip = Some(seen.ip);
            self.addresses.adopt(&slot.uid, seen.ip);
        }
        let wall_ms = self.clock.now().as_millisecond();
        let was = record.actual.sandbox;
        record
            .actual
            .observe(&record.desired, seen, self.now(), wall_ms);
        if was == Sandbox::Up && record.actual.sandbox == Sandbox::Absent {
            self.events.normal(
                &*record.desired.pod,
                "SandboxChanged",
                "Pod sandbox changed, it will be killed and re-created.",
            );
        }
    }

    /// Plans for a pod and begins what the plan says.
    pub(crate) fn reconcile(self: &Arc<Self>, uid: &Uid) {
        let Some(slot) = self.slot(uid) else {
            return;
        };
        if self.draining.load(Ordering::SeqCst) {
            slot.changed.notify_waiters();
            return;
        }
        let now = self.now();
        let mut forget = false;
        {
            let mut record = slot.lock();
            let record = &mut *record;
            self.admit(record);
            self.check_deadline(record, now);
            let plan = match self.check_contract(record, self.contact.silence()) {
                Verdict::Waits => plan::Plan::default(),
                Verdict::May | Verdict::Ends => plan::plan(&record.desired, &record.actual, now),
            };
            if plan::has_finished(&record.desired, &record.actual) && !record.over {
                // It must not be run again by a boot without an API server.
                record.over = true;
                self.checkpoint.remove_pod(uid);
            }
            if record.desired.deleting || record.actual.gone || record.actual.ended.is_some() {
                slot.ending.cancel();
            }
            for step in plan.steps {
                forget |= step == Step::Forget;
                self.begin(&slot, record, step, now);
            }
            self.refresh_volumes(&slot, record, now);
            self.tell_waiting(&slot, record, now);
            probes::sync(self, &slot, record);
            let deadline = record
                .deadline_at
                .filter(|at| *at > now && record.actual.ended.is_none());
            let refresh = record.refresh_at.filter(|at| *at > now);
            let next = [plan.wake_at, deadline, refresh];
            if let Some(at) = next.into_iter().flatten().min() {
                self.wake_at(uid, at, now);
            }
            if !forget {
                self.announce(&slot, record);
            }
        }
        slot.changed.notify_waiters();
        if forget {
            self.uncount(&mut slot.lock());
            self.pods.write().remove(uid);
            self.checkpoint.remove_pod(uid);
        }
    }

    fn refresh_volumes(self: &Arc<Self>, slot: &Arc<Slot>, record: &mut Record, now: u64) {
        let due = record.stale || record.refresh_at.is_some_and(|at| at <= now);
        if due
            && !record.refreshing
            && record.actual.sandbox == Sandbox::Up
            && !slot.ending.is_cancelled()
        {
            record.stale = false;
            record.refreshing = true;
            record.refresh_at = None;
            self.spawn_job(
                slot,
                |agent, slot| async move { agent.refresh(&slot).await },
            );
        }
    }

    pub(crate) fn wake_at(&self, uid: &Uid, at: u64, now: u64) {
        let delay = Duration::from_millis(at.saturating_sub(now).max(1));
        self.queue.add_after(uid.clone(), delay);
    }

    fn begin(self: &Arc<Self>, slot: &Arc<Slot>, record: &mut Record, step: Step, now: u64) {
        match step {
            Step::Setup => {
                record.actual.sandbox = Sandbox::Busy;
                self.spawn_job(slot, |agent, slot| async move { agent.set_up(&slot).await });
            }
            Step::Pull { container } => {
                record.actual.containers[container].image = Image::Pulling;
                self.spawn_job(slot, move |agent, slot| async move {
                    agent.pull(&slot, container).await;
                });
            }
            Step::Start { container, attempt } => {
                let wanted = &record.desired.containers[container];
                let actual = &mut record.actual.containers[container];
                if let Run::Exited { exit, .. } = std::mem::take(&mut actual.run) {
                    actual.crashes.grow(now);
                    actual.last = Some(exit);
                }
                actual.run = Run::Starting;
                actual.unhealthy = None;
                record.actual.initialised |= wanted.role == Role::App;
                self.spawn_job(slot, move |agent, slot| async move {
                    agent.start(&slot, container, attempt).await;
                });
            }
            Step::Stop { container, why } => {
                if let Run::Running { stopping, .. } = &mut record.actual.containers[container].run
                {
                    *stopping = true;
                }
                self.tell_killing(record, container, why);
                self.spawn_job(slot, move |agent, slot| async move {
                    agent.stop(&slot, container, why).await;
                });
            }
            Step::Teardown => {
                record.actual.sandbox = Sandbox::Busy;
                self.spawn_job(
                    slot,
                    |agent, slot| async move { agent.tear_down(&slot).await },
                );
            }
            Step::Delete => record.actual.finishing = true,
            Step::Forget => self.remove_logs(record),
        }
    }

    /// Runs a job and then queues the pod again. Cut short when the agent stops: a
    /// restarted one finds out by itself how far it came.
    pub(crate) fn spawn_job<F, Fut>(self: &Arc<Self>, slot: &Arc<Slot>, job: F)
    where
        F: FnOnce(Arc<Self>, Arc<Slot>) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let job = job(self.clone(), slot.clone());
        let (queue, uid) = (self.queue.clone(), slot.uid.clone());
        self.scope.spawn_cancellable(async move {
            job.await;
            queue.add(uid);
        });
    }

    fn tell_killing(&self, record: &Record, container: usize, why: Why) {
        let name = &record.desired.containers[container].name;
        let words = match why {
            Why::PodEnds => format!("Stopping container {name}"),
            Why::Changed => format!("Container {name} definition changed, will be restarted"),
            Why::Unhealthy => {
                let what = record.actual.containers[container].unhealthy.as_deref();
                format!(
                    "Container {name} {}, will be restarted",
                    what.unwrap_or("failed liveness probe")
                )
            }
        };
        self.container_event(record, container, EventType::Normal, "Killing", &words);
    }

    /// An event about one container of the pod.
    pub(crate) fn container_event(
        &self,
        record: &Record,
        container: usize,
        kind: EventType,
        reason: &str,
        message: &str,
    ) {
        if record.standby {
            return;
        }
        let wanted = &record.desired.containers[container];
        let list = match wanted.role {
            Role::App => "containers",
            Role::Init | Role::Sidecar => "initContainers",
            Role::Ephemeral => "ephemeralContainers",
        };
        let about = core::ObjectReference {
            field_path: Some(format!("spec.{list}{{{}}}", wanted.name)),
            ..client::events::reference(&*record.desired.pod)
        };
        self.events.record(about, kind, reason, message);
    }

    /// An event about an image: a container's, else a volume's, which the pod is told of.
    pub(crate) fn image_event(
        &self,
        record: &Record,
        container: Option<usize>,
        kind: EventType,
        reason: &str,
        message: &str,
    ) {
        match container {
            Some(index) => self.container_event(record, index, kind, reason, message),
            None if record.standby => {}
            None => {
                let about = client::events::reference(&*record.desired.pod);
                self.events.record(about, kind, reason, message);
            }
        }
    }

    /// Tells of crash loops, and turns a pull error into a pull back-off after a while.
    fn tell_waiting(&self, slot: &Slot, record: &mut Record, now: u64) {
        let ends = record.desired.deleting || record.actual.gone || record.actual.ended.is_some();
        for index in 0..record.desired.containers.len() {
            let wanted = record.desired.containers[index].clone();
            let side = &mut record.sides[index];
            let actual = &mut record.actual.containers[index];
            if let Run::Exited { exit, restart_at } = &actual.run
                && *restart_at > now
                && !ends
                && crate::state::ContainerActual::restarts(wanted.restart, exit.code)
                && side.crash_told != Some(exit.attempt)
            {
                side.crash_told = Some(exit.attempt);
                let words = format!(
                    "Back-off restarting failed container {} in pod {}_{}({})",
                    wanted.name, record.desired.name, record.desired.namespace, slot.uid
                );
                self.container_event(record, index, EventType::Warning, "BackOff", &words);
                continue;
            }
            if let Image::Failed {
                reason,
                message,
                of_volume,
                ..
            } = &mut actual.image
                && *reason == "ErrImagePull"
            {
                let flip_at = side.pull_failed_at + PULL_ERROR_SHOWN_MS;
                if flip_at > now {
                    self.wake_at(&slot.uid, flip_at, now);
                    continue;
                }
                *reason = "ImagePullBackOff";
                let image = of_volume.as_ref().unwrap_or(&wanted.image);
                let words = format!("Back-off pulling image {:?}", &**image);
                *message = format!("{words}: ErrImagePull: {message}");
                let about = of_volume.is_none().then_some(index);
                self.image_event(record, about, EventType::Normal, "BackOff", &words);
            }
        }
    }

    fn check_deadline(&self, record: &mut Record, now: u64) {
        let over = record.deadline_at.is_some_and(|at| at <= now);
        if over
            && record.actual.ended.is_none()
            && !plan::has_finished(&record.desired, &record.actual)
        {
            record.actual.ended = Some(Ended {
                reason: "DeadlineExceeded".into(),
                message: "Pod was active on the node longer than the specified deadline".into(),
            });
            self.events.normal(
                &*record.desired.pod,
                "DeadlineExceeded",
                "Pod was active on the node longer than the specified deadline",
            );
        }
    }

    /// Turns a new pod away that the node has no room for; the scheduler may have counted
    /// with an older state.
    fn admit(&self, record: &mut Record) {
        if std::mem::replace(&mut record.admitted, true) || record.desired.deleting {
            return;
        }
        let requests = Requests::of(&record.desired.pod);
        let up = match self.is_going_down() {
            true => Err(shutdown::refusal()),
            false => Ok(()),
        };
        let enforceable = || admit::enforceable(&record.desired.pod, admit::has_apparmor);
        let room = || {
            let mut totals = self.totals.lock();
            totals.admit(requests, &self.fixed.allocatable, self.fixed.pods_max)
        };
        let admitted = up.and_then(|()| enforceable()).and_then(|()| room());
        match admitted {
            Ok(()) => record.counted = Some(requests),
            Err(ended) => {
                self.events
                    .warning(&*record.desired.pod, &ended.reason, &ended.message);
                record.actual.ended = Some(ended);
            }
        }
    }

    /// Takes a pod that holds nothing any more out of the count.
    pub(crate) fn uncount(&self, record: &mut Record) {
        if let Some(requests) = record.counted.take() {
            self.totals.lock().remove(requests);
        }
    }

    pub(crate) fn sandbox_id(uid: &Uid) -> SandboxId {
        SandboxId(uid.0.to_string())
    }
}

#[cfg(test)]
mod tests;

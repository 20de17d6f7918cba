//! What is kept of each pod, and how the API server's word changes it.

use super::Agent;
use crate::admit::Requests;
use crate::image::PulledImage;
use crate::objects::PodObjects;
use crate::plan;
use crate::pod::{Desired, Uid};
use crate::probes;
use crate::publish::{Published, is_own};
use crate::state::{Actual, Image};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use parking_lot::{Mutex, MutexGuard};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// A pod's place.
pub(crate) struct Slot {
    pub(crate) uid: Uid,
    /// Cancelled when the pod is to end: pulls and probes stop.
    pub(crate) ending: CancellationToken,
    /// Notified after every reconcile: who follows a log learns of its container's end.
    pub(crate) changed: Notify,
    /// Held while its runtime is asked how it is.
    pub(crate) looking: tokio::sync::Mutex<()>,
    /// Held while the images of its volumes are fetched.
    pub(crate) fetching: tokio::sync::Mutex<()>,
    /// Never held across an await.
    record: Mutex<Record>,
}

impl Slot {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock()
    }
}

/// All that is known of a pod.
pub(crate) struct Record {
    pub(crate) desired: Desired,
    pub(crate) actual: Actual,
    /// In the order of [`Desired::containers`].
    pub(crate) sides: Vec<Side>,
    /// Which of [`Agent::runtimes`] has it, once known.
    pub(crate) runtime: Option<usize>,
    pub(crate) ip: Option<IpAddr>,
    pub(crate) start_time: Timestamp,
    /// When `activeDeadlineSeconds` is over, of the agent's clock.
    pub(crate) deadline_at: Option<u64>,
    pub(crate) objects: PodObjects,
    /// When its tokens are fetched again, of the agent's clock.
    pub(crate) refresh_at: Option<u64>,
    /// A job brings its volumes up to date.
    pub(crate) refreshing: bool,
    /// An object that it refers to changed.
    pub(crate) stale: bool,
    /// Set-ups that failed.
    pub(crate) setups: crate::backoff::Backoff,
    pub(crate) conditions: Vec<core::PodCondition>,
    pub(crate) published: Published,
    /// All that it had to do is done.
    pub(super) over: bool,
    /// It was checked against the node's resources.
    pub(super) admitted: bool,
    /// When all of it has ended, of the agent's clock, for the machine goes down.
    pub(crate) ends_by: Option<u64>,
    /// What it is counted with in the node's totals.
    pub(super) counted: Option<Requests>,
    /// The API server told of it since the agent started; else the checkpoint did.
    pub(crate) confirmed: bool,
    /// [`Agent::deed`] of what was last done for it at its runtime.
    pub(crate) done_at: u64,
    /// The API has no such pod, and nothing is told of it.
    pub(crate) standby: bool,
    /// The server has given it up: what still runs of it is killed.
    pub(super) fenced: bool,
}

/// What is kept beside a container's state.
#[derive(Default)]
pub(crate) struct Side {
    pub(crate) pulled: Option<Arc<PulledImage>>,
    pub(crate) pull_failed_at: u64,
    /// The attempt whose crash was told by an event.
    pub(super) crash_told: Option<u32>,
    /// Grace that a failed probe asks for.
    pub(crate) kill_grace_s: Option<u64>,
    pub(crate) probes: Option<probes::Running>,
}

impl Agent {
    /// Takes in a pod as the API server, or the checkpoint, has it.
    pub(crate) fn update(self: &Arc<Self>, pod: Arc<core::Pod>, confirmed: bool) {
        self.take_in(pod, confirmed, false);
    }

    /// Takes in a pod that a file describes.
    pub(crate) fn run_static(self: &Arc<Self>, pod: Arc<core::Pod>) {
        self.take_in(pod, false, true);
    }

    fn take_in(self: &Arc<Self>, pod: Arc<core::Pod>, confirmed: bool, is_static: bool) {
        let desired = match Desired::parse(pod) {
            Ok(desired) => Desired {
                is_static,
                ..desired
            },
            Err(error) => {
                tracing::warn!(%error, "pod left out");
                return;
            }
        };
        let uid = desired.uid.clone();
        let mut pods = self.pods.write();
        match pods.get(&uid).cloned() {
            Some(slot) => {
                drop(pods);
                self.update_record(&mut slot.lock(), desired, confirmed);
            }
            None => {
                let slot = Arc::new(Slot {
                    uid: uid.clone(),
                    ending: CancellationToken::new(),
                    changed: Notify::new(),
                    looking: tokio::sync::Mutex::new(()),
                    fetching: tokio::sync::Mutex::new(()),
                    record: Mutex::new(self.new_record(desired, confirmed)),
                });
                pods.insert(uid.clone(), slot.clone());
                drop(pods);
                let runs = self.adoptable.lock().remove(&uid);
                let Some((runtime, seen)) = runs else {
                    // What its status says to run is lost.
                    self.observe(&slot, 0, None);
                    self.queue.add(uid);
                    return;
                };
                self.observe(&slot, runtime, Some(&seen));
                // Volumes made before their pod have a token that is bound to none.
                slot.lock().stale |= crate::sleep::is_standby(&uid);
                // It may have changed since it was listed.
                self.spawn_job(&slot, |agent, slot| async move { agent.look(&slot).await });
            }
        }
        self.queue.add(uid);
    }

    /// A place for a pod that stands by; it is none of the agent's pods.
    pub(crate) fn standby_slot(&self, desired: Desired) -> Arc<Slot> {
        let uid = desired.uid.clone();
        let mut record = self.new_record(desired, false);
        self.uncount(&mut record);
        record.standby = true;
        Arc::new(Slot {
            uid,
            ending: CancellationToken::new(),
            changed: Notify::new(),
            looking: tokio::sync::Mutex::new(()),
            fetching: tokio::sync::Mutex::new(()),
            record: Mutex::new(record),
        })
    }

    /// Runs what the checkpoint holds until the API server tells of its pods.
    pub(crate) fn restore(self: &Arc<Self>, restored: crate::checkpoint::Restored) {
        for pod in restored.pods {
            let uid = crate::pod::uid_of(&pod).unwrap_or_else(|| Uid::from(""));
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let refs = crate::objects::references(&pod);
            for entry in restored.objects.iter().filter(|e| e.namespace == namespace) {
                if refs.contains(&(entry.kind, entry.name.clone())) {
                    let object = entry.object.clone();
                    self.objects
                        .seed(&uid, entry.kind, namespace, &entry.name, object);
                }
            }
            self.update(pod, false);
            // It has been through what came before this agent.
            if let Some(slot) = self.slot(&uid) {
                let silence = self.contact.silence_at_start();
                self.check_contract(&mut slot.lock(), silence);
            }
        }
    }

    fn new_record(&self, desired: Desired, confirmed: bool) -> Record {
        let status = desired.pod.status.as_ref();
        let now = self.clock.now();
        let known_start = status.and_then(|s| s.start_time.as_ref()).map(|t| t.0);
        let start_time = known_start.unwrap_or(now);
        let deadline_at = desired.deadline_s.map(|s| {
            let passed = now.as_millisecond() - start_time.as_millisecond();
            let left = i64::try_from(s * 1000)
                .unwrap_or(i64::MAX)
                .saturating_sub(passed);
            self.now() + u64::try_from(left).unwrap_or(0)
        });
        let admitted = known_start.is_some() || !confirmed;
        let over = matches!(desired.api_phase(), Some("Succeeded" | "Failed"));
        if confirmed && !over {
            self.checkpoint.put_pod(&desired.pod);
        }
        let counted = (admitted && !over).then(|| Requests::of(&desired.pod));
        if let Some(requests) = counted {
            self.totals.lock().add(requests);
        }
        Record {
            over: false,
            counted,
            actual: Actual::seed(&desired),
            sides: desired.containers.iter().map(|_| Side::default()).collect(),
            runtime: None,
            ip: status
                .and_then(|s| s.pod_ip.as_deref())
                .and_then(|ip| ip.parse().ok()),
            start_time,
            deadline_at,
            objects: PodObjects::default(),
            refresh_at: None,
            refreshing: false,
            stale: false,
            setups: Default::default(),
            conditions: status
                .and_then(|s| s.conditions.clone())
                .unwrap_or_default(),
            published: Published::seed(status),
            admitted,
            confirmed,
            done_at: 0,
            standby: false,
            fenced: false,
            ends_by: None,
            desired,
        }
    }

    fn update_record(&self, record: &mut Record, desired: Desired, confirmed: bool) {
        let spec_changed = record.desired.pod.metadata.generation != desired.generation();
        let newly_confirmed = confirmed && !record.confirmed;
        record.confirmed |= confirmed;
        record.actual.gone = false;
        for (index, wanted) in desired.containers.iter().enumerate() {
            let changed = record
                .desired
                .containers
                .get(index)
                .is_none_or(|before| before.image != wanted.image);
            if changed && let Some(container) = record.actual.containers.get_mut(index) {
                container.image = Image::Unknown;
            }
        }
        if newly_confirmed {
            Self::confirm(record, &desired);
        } else if confirmed {
            let said = &record.conditions;
            record.published.overruled(&desired.pod, said);
        }
        // The number of containers of a pod can't change; be safe all the same.
        record
            .actual
            .containers
            .resize_with(desired.containers.len(), Default::default);
        record
            .sides
            .resize_with(desired.containers.len(), Side::default);
        let told = desired.pod.status.as_ref();
        let told = told.and_then(|s| s.conditions.as_deref());
        let own = || record.conditions.iter().filter(|c| is_own(c));
        let foreign = told
            .unwrap_or_default()
            .iter()
            .filter(|c| !is_own(c) && own().all(|own| own.type_ != c.type_));
        record.conditions = own().chain(foreign).cloned().collect();
        record.desired = desired;
        if (spec_changed || newly_confirmed)
            && confirmed
            && !plan::has_finished(&record.desired, &record.actual)
        {
            self.checkpoint.put_pod(&record.desired.pod);
        }
    }

    /// The API server tells of a pod that the checkpoint told of: what it knows of earlier
    /// runs is taken over, and what it was told is not told again.
    fn confirm(record: &mut Record, desired: &Desired) {
        let status = desired.pod.status.as_ref();
        record.published = Published::seed(status);
        record.conditions = status
            .and_then(|s| s.conditions.clone())
            .unwrap_or_default();
        if let Some(at) = status.and_then(|s| s.start_time.as_ref()) {
            record.start_time = at.0;
        }
        let seeded = Actual::seed(desired);
        record.actual.ended = record.actual.ended.take().or(seeded.ended);
        for (container, known) in record.actual.containers.iter_mut().zip(seeded.containers) {
            container.confirm(known);
        }
    }
}

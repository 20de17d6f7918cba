//! What plans ask for, done: set-up, pulls, starts, stops, teardown.
//!
//! Each job takes what it needs from the record, works without its lock, and writes what
//! came of it back. It decides nothing that the plan could decide.

mod pull;
mod run;

use crate::agent::{Agent, Record, Slot};
use crate::container;
use crate::env::Facts;
use crate::objects::PodObjects;
use crate::state::{Ended, Sandbox};
use crate::volumes::{self, Sources};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::node::v1::RuntimeClass;
use runtime::{RuntimeError, SandboxId};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Delays between set-ups that fail, as upstream retries mounts.
const SETUP_RETRY_MS: (u64, u64) = (500, 122_000);
/// How long the API server has to tell of a RuntimeClass.
const REACH_DEADLINE: Duration = Duration::from_secs(3);
/// Time after which a runtime that can't be reached is tried again.
const UNAVAILABLE_RETRY_MS: u64 = 1000;

/// Why a pod's surroundings can't be made: the event to show.
pub(crate) struct SetUpFailure {
    reason: &'static str,
    pub(crate) message: String,
}

impl Agent {
    /// Volumes, address, sandbox.
    pub(crate) async fn set_up(self: &Arc<Self>, slot: &Arc<Slot>) {
        let Ok(_turn) = self.setups.acquire().await else {
            return;
        };
        if let Err(message) = self.give_devices(slot).await {
            let mut record = slot.lock();
            let ended = Ended {
                reason: "UnexpectedAdmissionError".to_owned(),
                message: format!("Pod was rejected: {message}"),
            };
            self.events
                .warning(&*record.desired.pod, &ended.reason, &message);
            record.actual.ended = Some(ended);
            record.actual.sandbox = Sandbox::Absent;
            return;
        }
        let result = self.try_set_up(slot).await;
        let mut record = slot.lock();
        let record = &mut *record;
        match result {
            Ok(()) => {
                record.actual.sandbox = Sandbox::Up;
                record.done_at = self.deed();
                record.setups = Default::default();
            }
            Err(failure) => {
                let now = self.now();
                let (initial, max) = SETUP_RETRY_MS;
                let delay = record.setups.grow_from(now, initial, max);
                record.actual.sandbox = Sandbox::Failed {
                    retry_at: now + delay,
                };
                self.events
                    .warning(&*record.desired.pod, failure.reason, &failure.message);
            }
        }
    }

    async fn give_devices(&self, slot: &Slot) -> Result<(), String> {
        let pod = slot.lock().desired.pod.clone();
        match &pod.spec {
            Some(spec) => self.devices.allocate(&slot.uid.0, spec).await,
            None => Ok(()),
        }
    }

    pub(crate) async fn try_set_up(self: &Arc<Self>, slot: &Arc<Slot>) -> Result<(), SetUpFailure> {
        let pod = slot.lock().desired.pod.clone();
        let sandbox_failed = |message: String| SetUpFailure {
            reason: "FailedCreatePodSandBox",
            message: format!("Failed to create pod sandbox: {message}"),
        };
        let runtime = self.choose_runtime(&pod).await.map_err(sandbox_failed)?;
        let host_network = pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
        let ip = if host_network {
            self.fixed.node_ip
        } else {
            let known = slot.lock().ip;
            let adopted = known.is_some_and(|ip| self.addresses.adopt(&slot.uid, ip));
            match known.filter(|_| adopted) {
                Some(ip) => ip,
                None => self
                    .addresses
                    .take(&slot.uid)
                    .map_err(|e| sandbox_failed(e.to_string()))?,
            }
        };
        self.mount(slot, &pod, ip).await?;
        let spec = {
            let mut record = slot.lock();
            record.runtime = Some(runtime);
            record.ip = Some(ip);
            container::sandbox_spec(&record.desired, ip, &self.fixed, record.standby)
        };
        self.runtime(runtime)
            .run_sandbox(spec)
            .await
            .map_err(|e| sandbox_failed(e.to_string()))
    }

    /// Brings the pod's volumes up to date; run again when an object changes and before
    /// tokens expire.
    async fn mount(&self, slot: &Slot, pod: &core::Pod, ip: IpAddr) -> Result<(), SetUpFailure> {
        let failed = |message: String| SetUpFailure {
            reason: "FailedMount",
            message,
        };
        let objects = self
            .objects
            .for_pod(&slot.uid, pod)
            .await
            .map_err(|e| failed(e.to_string()))?;
        let sources = Sources {
            facts: self.facts(pod, Some(ip)),
            objects: &objects,
            tokens: &self.tokens,
            client: &self.client,
        };
        let dir = volumes::pod_dir(&self.fixed.dir, &slot.uid.0);
        let refresh = volumes::set_up(&dir, &sources)
            .await
            .map_err(|e| failed(e.to_string()))?;
        self.checkpoint.put_objects(pod, &objects);
        let mut record = slot.lock();
        record.objects = objects;
        record.refresh_at = refresh.map(|at_s| {
            let left = at_s.saturating_sub(self.clock.now().as_second()).max(1);
            self.now() + u64::try_from(left).unwrap_or(1) * 1000
        });
        Ok(())
    }

    /// Brings the volumes of a running pod up to date.
    pub(crate) async fn refresh(self: &Arc<Self>, slot: &Arc<Slot>) {
        let (pod, ip) = {
            let record = slot.lock();
            (record.desired.pod.clone(), record.ip)
        };
        let ip = ip.unwrap_or(self.fixed.node_ip);
        if let Err(failure) = self.mount(slot, &pod, ip).await {
            self.events.warning(&*pod, failure.reason, &failure.message);
            let mut record = slot.lock();
            let (initial, max) = SETUP_RETRY_MS;
            let now = self.now();
            record.refresh_at = Some(now + record.setups.grow_from(now, initial, max));
        }
        slot.lock().refreshing = false;
    }

    pub(crate) fn facts<'a>(&'a self, pod: &'a core::Pod, pod_ip: Option<IpAddr>) -> Facts<'a> {
        Facts {
            pod,
            pod_ip,
            node_ip: self.fixed.node_ip,
            node_name: &self.fixed.name,
            allocatable: &self.fixed.allocatable,
        }
    }

    /// The runtime that `runtimeClassName` names, or the first.
    async fn choose_runtime(&self, pod: &core::Pod) -> Result<usize, String> {
        let class = pod
            .spec
            .as_ref()
            .and_then(|s| s.runtime_class_name.as_deref());
        let Some(class) = class.filter(|c| !c.is_empty()) else {
            return Ok(0);
        };
        let by_handler = |handler: &str| self.runtimes.iter().position(|(h, _)| h == handler);
        let api = kube::Api::<RuntimeClass>::all(self.client.clone());
        let Ok(answer) = tokio::time::timeout(REACH_DEADLINE, api.get_opt(class)).await else {
            return by_handler(class).ok_or_else(|| format!("RuntimeClass {class:?} not read"));
        };
        match answer {
            Ok(Some(found)) => by_handler(&found.handler)
                .ok_or_else(|| format!("no runtime for {:?} is configured", found.handler)),
            Ok(None) => Err(format!("RuntimeClass {class:?} not found")),
            // Offline: the class is most often named as its handler.
            Err(error) => by_handler(class).ok_or_else(|| error.to_string()),
        }
    }

    /// Asks the runtime how the pod is.
    pub(crate) async fn look(&self, slot: &Arc<Slot>) {
        // One at a time, or an older answer could be taken over after a newer one.
        let _turn = slot.looking.lock().await;
        loop {
            let index = slot.lock().runtime.unwrap_or(0);
            let asked_at = self.deeds();
            match self
                .runtime(index)
                .sandbox(&Self::sandbox_id(&slot.uid))
                .await
            {
                // What was done meanwhile may be missing in the answer.
                Ok(_) if slot.lock().done_at > asked_at => {}
                Ok(seen) => return self.observe(slot, index, seen.as_ref()),
                Err(error) => {
                    tracing::debug!(uid = %slot.uid, %error, "sandbox not read");
                    return;
                }
            }
        }
    }

    /// Removes sandbox and volumes and gives the address back.
    pub(crate) async fn tear_down(self: &Arc<Self>, slot: &Arc<Slot>) {
        let runtime = slot.lock().runtime;
        let id: SandboxId = Self::sandbox_id(&slot.uid);
        if let Some(runtime) = runtime {
            match self.runtime(runtime).remove_sandbox(&id).await {
                Ok(()) | Err(RuntimeError::NotFound(_)) => {}
                Err(error) => {
                    tracing::warn!(uid = %slot.uid, %error, "sandbox not removed, trying again");
                    let retry_at = self.now() + UNAVAILABLE_RETRY_MS;
                    slot.lock().actual.sandbox = Sandbox::Failed { retry_at };
                    tokio::time::sleep(Duration::from_millis(UNAVAILABLE_RETRY_MS)).await;
                    return;
                }
            }
        }
        self.addresses.release(&slot.uid);
        self.devices.release(&slot.uid.0);
        self.objects.release(&slot.uid);
        self.tokens.release(&slot.uid.0);
        let dir = volumes::pod_dir(&self.fixed.dir, &slot.uid.0);
        if let Err(error) = volumes::tear_down(&dir) {
            tracing::warn!(uid = %slot.uid, %error, "volumes not removed");
        }
        let mut record = slot.lock();
        self.uncount(&mut record);
        record.objects = PodObjects::default();
        record.refresh_at = None;
        record.actual.sandbox = Sandbox::Released;
    }

    /// Removes the logs of a pod that is no more.
    pub(crate) fn remove_logs(&self, record: &Record) {
        let d = &record.desired;
        let dir = container::log_dir(&self.fixed.dir, &d.namespace, &d.name, &d.uid.0);
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(dir = %dir.display(), error = %e, "logs not removed");
            }
            _ => {}
        }
    }
}

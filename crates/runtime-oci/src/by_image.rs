//! Which runtime a pod belongs to that names none: its images say so. A sandbox is asked for
//! before its images are there, so it is made by the first runtime, which runs Wasm and makes one
//! at next to no cost, and once more by the other when the first container turns out to be one.
//!
//! A pod with images of both kinds is asked for as such ([`runtime::LinuxSandbox::mixed`]) before
//! the first Wasm container is made: both runtimes have it then, and the guests of the first
//! live in the network that the second has made.

use crate::agent::Containers;
use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use parking_lot::Mutex;
use runtime::{
    Artifact, AttachSpec, Changed, ContainerId, ContainerSpec, ContainerStats, ExecSpec,
    PodRuntime, RuntimeError, SandboxId, SandboxSpec, SandboxStatus, Session,
};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// What is told of a pod whose first container ran in the network of all Wasm pods.
const LATE: &str = "the pod's Wasm containers run already, and it was not known then that it has \
                    container images too: delete the pod, so that it is made anew";
/// What is told of a pod with images of both kinds that should sleep.
const NO_STANDBY: &str = "pods with both Wasm and container images do not sleep";

/// A runtime of Wasm pods and one of container pods as one.
pub struct ByImage {
    wasm: Arc<dyn PodRuntime>,
    containers: Containers,
    known: Mutex<Known>,
}

/// Held for look-ups only.
#[derive(Default)]
struct Known {
    /// Made by the first runtime, without a container yet.
    fresh: HashMap<SandboxId, SandboxSpec>,
    /// Those of containers.
    containers: HashSet<SandboxId>,
    /// Those that both runtimes have, and their Wasm containers.
    beside: HashMap<SandboxId, HashSet<ContainerId>>,
}

impl Known {
    /// Of the first runtime's sandboxes those that stood by with a supervisor that is gone, which
    /// nobody can wake any more, or whose network went with it; and the others, without those that
    /// are there twice: on their way to the other runtime, standing by, or part of a pod there.
    fn sorted(
        &mut self,
        mut all: Vec<SandboxStatus>,
        containers: &[SandboxStatus],
    ) -> (Vec<SandboxStatus>, Vec<SandboxStatus>) {
        let ids = containers.iter().map(|sandbox| sandbox.id.clone());
        self.containers.extend(ids);
        // One whose other half is gone is taken away below.
        let whole = |id: &SandboxId| containers.iter().any(|sandbox| sandbox.id == *id);
        all.retain(|sandbox| {
            !self.containers.contains(&sandbox.id) || (sandbox.beside && !whole(&sandbox.id))
        });
        all.into_iter().partition(|sandbox| {
            let asleep = sandbox.standby && sandbox.containers.is_empty();
            (asleep && !self.fresh.contains_key(&sandbox.id)) || sandbox.beside
        })
    }

    /// Adds to a pod's containers those that the first runtime has beside them.
    fn join(&mut self, sandbox: &mut SandboxStatus, guests: SandboxStatus) {
        let known = self.beside.entry(guests.id).or_default();
        known.extend(guests.containers.iter().map(|c| c.id.clone()));
        sandbox.containers.extend(guests.containers);
    }
}

impl ByImage {
    /// Puts two together.
    pub fn new(wasm: Arc<dyn PodRuntime>, containers: Containers) -> Self {
        Self {
            wasm,
            containers,
            known: Mutex::default(),
        }
    }

    /// The runtime that has a sandbox.
    fn of(&self, id: &SandboxId) -> &dyn PodRuntime {
        if self.known.lock().containers.contains(id) {
            &self.containers
        } else {
            &*self.wasm
        }
    }

    fn of_container(&self, id: &ContainerId) -> &dyn PodRuntime {
        let sandbox = SandboxId(id.0.split('/').next().unwrap_or_default().to_owned());
        let beside = |known: &Known| known.beside.get(&sandbox)?.contains(id).then_some(());
        if beside(&self.known.lock()).is_some() {
            return &*self.wasm;
        }
        self.of(&sandbox)
    }

    /// Makes the sandbox of a pod with images of both kinds, where either is not there yet.
    async fn run_both(&self, mut spec: SandboxSpec) -> Result<(), RuntimeError> {
        let id = spec.id.clone();
        if spec.standby {
            return Err(RuntimeError::RunSandbox(NO_STANDBY.to_owned()));
        }
        let guests = self.wasm.sandbox(&id).await?;
        if self.containers.sandbox(&id).await?.is_none() {
            // One of a network that is gone is gone with it.
            let late = |guests: &SandboxStatus| !guests.beside && !guests.containers.is_empty();
            if guests.as_ref().is_some_and(late) {
                return Err(RuntimeError::RunSandbox(LATE.to_owned()));
            }
            self.containers.run_sandbox(spec.clone()).await?;
            self.known.lock().containers.insert(id.clone());
            self.wasm.remove_sandbox(&id).await?;
        } else if guests.is_some_and(|guests| guests.beside) {
            return Ok(());
        }
        let linux = spec.linux.get_or_insert_default();
        if !linux.host_network {
            linux.network = Some(self.containers.network(&id)?);
        }
        self.wasm.run_sandbox(spec).await?;
        let mut known = self.known.lock();
        known.fresh.remove(&id);
        known.containers.insert(id.clone());
        known.beside.entry(id).or_default();
        Ok(())
    }

    /// Makes the sandbox once more, where containers run.
    async fn hand_over(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let has_containers = |status: Option<SandboxStatus>| {
            status.is_some_and(|status| !status.containers.is_empty())
        };
        if has_containers(self.wasm.sandbox(id).await?) {
            return Err(RuntimeError::CreateContainer(LATE.to_owned()));
        }
        let spec = self.known.lock().fresh.get(id).cloned();
        let Some(spec) = spec else {
            // An earlier agent asked for it: the pod's agent asks again once it is gone.
            self.wasm.remove_sandbox(id).await?;
            let why = "the sandbox is made again, for containers";
            return Err(RuntimeError::Unavailable(why.to_owned()));
        };
        // Requests find one that stands by where Services are carried, and wake it from there.
        let standby = spec.standby;
        let made = self.containers.run_sandbox(spec).await;
        made.map_err(|error| match error {
            RuntimeError::RunSandbox(why) => RuntimeError::CreateContainer(why),
            other => other,
        })?;
        // From here on it is there twice, and never not at all.
        self.known.lock().containers.insert(id.clone());
        if standby {
            return Ok(());
        }
        self.wasm.remove_sandbox(id).await
    }
}

#[async_trait]
impl PodRuntime for ByImage {
    fn version(&self) -> String {
        self.wasm.version()
    }

    async fn run_sandbox(&self, spec: SandboxSpec) -> Result<(), RuntimeError> {
        if spec.linux.as_ref().is_some_and(|l| l.mixed) {
            return self.run_both(spec).await;
        }
        if self.known.lock().containers.contains(&spec.id) {
            return self.containers.run_sandbox(spec).await;
        }
        let kept = spec.clone();
        self.wasm.run_sandbox(spec).await?;
        self.known.lock().fresh.insert(kept.id.clone(), kept);
        Ok(())
    }

    async fn create_container(&self, spec: ContainerSpec) -> Result<(), RuntimeError> {
        let id = spec.sandbox.clone();
        let is_container = matches!(spec.artifact, Artifact::Container { .. });
        let placed = self.known.lock().containers.contains(&id);
        match (is_container, placed) {
            (true, false) => self.hand_over(&id).await?,
            (false, true) => {
                self.wasm.create_container(spec.clone()).await?;
                let mut known = self.known.lock();
                known.beside.entry(id).or_default().insert(spec.id);
                return Ok(());
            }
            (true, true) | (false, false) => {}
        }
        self.known.lock().fresh.remove(&id);
        let twin = match is_container {
            true => self.wasm.sandbox(&id).await?,
            false => None,
        };
        if twin.is_some_and(|twin| !twin.beside) {
            // It stands by.
            self.containers.create_container(spec.clone()).await?;
            return self.wasm.create_container(spec).await;
        }
        self.of(&id).create_container(spec).await
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.of_container(id).start_container(id).await
    }

    async fn stop_container(&self, id: &ContainerId, grace_ms: u64) -> Result<(), RuntimeError> {
        self.of_container(id).stop_container(id, grace_ms).await
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.of_container(id).remove_container(id).await
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        self.wasm.remove_sandbox(id).await?;
        self.containers.remove_sandbox(id).await?;
        let mut known = self.known.lock();
        known.fresh.remove(id);
        known.containers.remove(id);
        known.beside.remove(id);
        Ok(())
    }

    async fn wake(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        self.of(id).wake(id).await
    }

    async fn adopted(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        if self.known.lock().containers.contains(id) {
            // It was only there to be found.
            self.wasm.remove_sandbox(id).await?;
        }
        self.of(id).adopted(id).await
    }

    async fn contact(&self, at_ms: u64) -> Result<(), RuntimeError> {
        self.wasm.contact(at_ms).await
    }

    async fn exec(&self, spec: ExecSpec) -> Result<Session, RuntimeError> {
        self.of_container(&spec.container).exec(spec).await
    }

    async fn attach(&self, spec: AttachSpec) -> Result<Session, RuntimeError> {
        self.of_container(&spec.container).attach(spec).await
    }

    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        let all = self.wasm.sandboxes().await?;
        let mut containers = self.containers.sandboxes().await?;
        for guests in all.iter().filter(|sandbox| sandbox.beside) {
            if let Some(whole) = containers.iter_mut().find(|s| s.id == guests.id) {
                self.known.lock().join(whole, guests.clone());
            }
        }
        let (lost, mut all) = self.known.lock().sorted(all, &containers);
        for sandbox in lost {
            self.wasm.remove_sandbox(&sandbox.id).await?;
        }
        all.extend(containers);
        Ok(all)
    }

    async fn sandbox(&self, id: &SandboxId) -> Result<Option<SandboxStatus>, RuntimeError> {
        let (placed, beside) = {
            let known = self.known.lock();
            (known.containers.contains(id), known.beside.contains_key(id))
        };
        let guests = match placed && !beside {
            true => None,
            false => self.wasm.sandbox(id).await?,
        };
        let guests = match guests {
            Some(alone) if !alone.beside && !placed => return Ok(Some(alone)),
            guests => guests.filter(|guests| guests.beside),
        };
        let Some(mut found) = self.containers.sandbox(id).await? else {
            if guests.is_some() {
                // Their network went with it.
                self.wasm.remove_sandbox(id).await?;
                self.known.lock().beside.remove(id);
            }
            return Ok(None);
        };
        let mut known = self.known.lock();
        known.containers.insert(id.clone());
        if let Some(guests) = guests {
            known.join(&mut found, guests);
        }
        Ok(Some(found))
    }

    async fn stats(&self) -> Result<Vec<(ContainerId, ContainerStats)>, RuntimeError> {
        let mut all = self.wasm.stats().await?;
        all.extend(self.containers.stats().await?);
        Ok(all)
    }

    /// Ends when either is lost.
    async fn changes(&self) -> Result<BoxStream<'static, Changed>, RuntimeError> {
        let end = || stream::once(async { None });
        let wasm = self.wasm.changes().await?.map(Some).chain(end());
        let containers = self.containers.changes().await?.map(Some).chain(end());
        let both = stream::select(wasm, containers);
        Ok(both
            .take_while(|changed| futures::future::ready(changed.is_some()))
            .filter_map(futures::future::ready)
            .boxed())
    }
}

//! Starting and ending a container.

use crate::agent::{Agent, Slot};
use crate::container::{self, Ingredients, SpecError};
use crate::exec::Exec;
use crate::hooks;
use crate::plan::Why;
use crate::state::{Image, Run};
use crate::volumes::VolumeError;
use client::EventType;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1 as core;
use runtime::{Artifact, ContainerId, RuntimeError};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::UNAVAILABLE_RETRY_MS;

/// Containers that are ended at once when the node is drained.
const DRAINS_MAX: usize = 256;
/// How long a first pod waits for the list of Services, for its environment.
const SERVICES_DEADLINE: Duration = Duration::from_secs(5);

impl Agent {
    /// Creates a container and starts it.
    pub(crate) async fn start(self: &Arc<Self>, slot: &Arc<Slot>, index: usize, attempt: u32) {
        let confirmed = slot.lock().confirmed;
        if confirmed && !self.services.has_synced() {
            // Past the deadline the pod starts without what Services would add.
            let _ = tokio::time::timeout(SERVICES_DEADLINE, self.services.synced()).await;
        }
        let Ok(_turn) = self.starts.acquire().await else {
            return;
        };
        let result = self.try_start(slot, index, attempt).await;
        let now = self.now();
        let post_start = {
            let mut record = slot.lock();
            let record = &mut *record;
            let wanted = record.desired.containers[index].clone();
            match result {
                Ok(started) => {
                    let (kind, reason, words) = match &started {
                        Started::Runs => (EventType::Normal, "Started", "Container started".into()),
                        Started::Refused(why) => {
                            (EventType::Warning, "Failed", format!("Error: {why}"))
                        }
                    };
                    self.container_event(record, index, kind, reason, &words);
                    record.done_at = self.deed();
                    let container = &mut record.actual.containers[index];
                    container.attempt = attempt;
                    container.next_attempt = attempt + 1;
                    container.run_image = Some(wanted.image.clone());
                    container.run = Run::Running {
                        started_ms: self.clock.now().as_millisecond(),
                        started: !wanted.has_startup,
                        ready: !wanted.has_startup && !wanted.has_readiness,
                        stopping: false,
                    };
                    if wanted.pull == crate::pod::PullPolicy::Always {
                        // Each start asks the registry again.
                        container.image = Image::Unknown;
                    }
                    let c = record.desired.container(index);
                    let hook = c.and_then(|c| c.lifecycle.as_ref()?.post_start.clone());
                    let hook = hook.filter(|_| started == Started::Runs);
                    hook.map(|hook| (hook, record.ip))
                }
                Err(failure) => {
                    let words = format!("Error: {}", failure.message);
                    self.container_event(record, index, EventType::Warning, "Failed", &words);
                    let container = &mut record.actual.containers[index];
                    let delay = match failure.unavailable {
                        true => UNAVAILABLE_RETRY_MS,
                        false => container.crashes.grow(now),
                    };
                    container.run = Run::Failed {
                        reason: failure.reason,
                        message: failure.message,
                        retry_at: now + delay,
                    };
                    return;
                }
            }
        };
        // It may have ended before it was noted as running.
        self.look(slot).await;
        if let Some((hook, ip)) = post_start {
            self.post_start(slot, index, &hook, ip).await;
        }
    }

    async fn try_start(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        index: usize,
        attempt: u32,
    ) -> Result<Started, StartFailure> {
        let id = self.try_create(slot, index, attempt).await?;
        let runtime = self.runtime(slot.lock().runtime.unwrap_or(0)).clone();
        if let Err(error) = runtime.start_container(&id).await {
            let sandbox = runtime.sandbox(&Self::sandbox_id(&slot.uid)).await;
            let containers = sandbox.ok().flatten().map(|s| s.containers);
            let own = containers.into_iter().flatten().find(|c| c.id == id);
            if own.is_some_and(|c| matches!(c.state, runtime::ContainerState::Exited(_))) {
                // A run that has an end: what becomes of it is for its restart policy to say.
                let failure = StartFailure::new("StartError", error);
                return Ok(Started::Refused(failure.message));
            }
            // Made anew at the next try.
            if let Err(error) = runtime.remove_container(&id).await {
                tracing::debug!(container = id.0, %error, "failed container not removed");
            }
            return Err(StartFailure::new("RunContainerError", error));
        }
        Ok(Started::Runs)
    }

    /// Makes a container, which does not run yet.
    pub(crate) async fn try_create(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        index: usize,
        attempt: u32,
    ) -> Result<ContainerId, StartFailure> {
        let (desired, image, ip, runtime) = {
            let record = slot.lock();
            (
                record.desired.clone(),
                record.sides[index].pulled.clone(),
                record.ip,
                self.runtime(record.runtime.unwrap_or(0)).clone(),
            )
        };
        let config_error = |message: String| StartFailure {
            reason: "CreateContainerConfigError",
            message,
            unavailable: false,
        };
        let (Some(image), Some(own)) = (image, desired.container(index)) else {
            return Err(config_error("image is not ready".into()));
        };
        // What env refers to may have come or changed since the volumes were made.
        let objects = self
            .objects
            .for_pod(&slot.uid, &desired.pod)
            .await
            .map_err(|e| config_error(e.to_string()))?;
        let services = self.visible_services(&desired.namespace);
        let given = self.devices.given(&slot.uid.0, &own.name);
        self.devices
            .before_start(&given)
            .await
            .map_err(config_error)?;
        let spec = container::container_spec(&Ingredients {
            desired: &desired,
            container: own,
            attempt,
            image: &image,
            objects: &objects,
            given: &given,
            services: &services,
            facts: self.facts(&desired.pod, ip),
            fixed: &self.fixed,
        })
        .map_err(|e| StartFailure {
            // It is the runtime that mounts images, upstream.
            reason: match e {
                SpecError::Volume(VolumeError::ImageSubPath { .. }) => "CreateContainerError",
                _ => "CreateContainerConfigError",
            },
            ..config_error(e.to_string())
        })?;
        let id = spec.id.clone();
        if matches!(image.artifact, Artifact::Wasm { .. })
            && let Some(ip) = ip
            && self.has_containers(slot, index).await
        {
            let standby = slot.lock().standby;
            let mut sandbox = container::sandbox_spec(&desired, ip, &self.fixed, standby);
            sandbox.linux.get_or_insert_default().mixed = true;
            let made = runtime.run_sandbox(sandbox).await;
            made.map_err(|e| StartFailure::new("CreateContainerError", e))?;
        }
        if let Some(before) = attempt.checked_sub(1) {
            // Its end is in the record; a failure to forget it costs memory only.
            let before = container::container_id(&desired, &own.name, before);
            if let Err(error) = runtime.remove_container(&before).await {
                tracing::debug!(container = before.0, %error, "old run not removed");
            }
            crate::logs::remove_older(&self.fixed.dir, &desired, &own.name, before_of(attempt));
        }
        runtime
            .create_container(spec)
            .await
            .map_err(|e| StartFailure::new("CreateContainerError", e))?;
        let record = slot.lock();
        let words = "Container created";
        self.container_event(&record, index, EventType::Normal, "Created", words);
        Ok(id)
    }

    /// Services of the pod's namespace and `default/kubernetes`.
    fn visible_services(&self, namespace: &str) -> Vec<Arc<core::Service>> {
        let mut services: Vec<_> = self
            .services
            .get("default", "kubernetes")
            .into_iter()
            .collect();
        let own = self.services.list_namespace(namespace);
        services.extend(own.into_iter().filter(|s| {
            namespace != "default" || s.metadata.name.as_deref() != Some("kubernetes")
        }));
        services
    }

    async fn post_start(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        index: usize,
        hook: &core::LifecycleHandler,
        ip: Option<IpAddr>,
    ) {
        let container = {
            let record = slot.lock();
            record.desired.container(index).cloned()
        };
        let Some(container) = container else {
            return;
        };
        let exec = {
            let record = slot.lock();
            let attempt = record.actual.containers[index].attempt;
            Exec {
                runtime: self.runtime(record.runtime.unwrap_or(0)).clone(),
                container: container::container_id(&record.desired, &container.name, attempt),
            }
        };
        if let Err(error) = hooks::run(hook, &container, ip, &exec).await {
            let mut record = slot.lock();
            let words = format!("PostStartHook failed: {error}");
            self.container_event(
                &record,
                index,
                EventType::Warning,
                "FailedPostStartHook",
                &words,
            );
            record.actual.containers[index].unhealthy = Some("failed postStart hook".into());
        }
    }

    /// Runs the preStop hook and ends the container, within its grace.
    pub(crate) async fn stop(self: &Arc<Self>, slot: &Arc<Slot>, index: usize, why: Why) {
        let (id, runtime, grace_s, hook, container, ip) = {
            let record = slot.lock();
            let desired = &record.desired;
            let attempt = record.actual.containers[index].attempt;
            let own_grace = record.sides[index]
                .kill_grace_s
                .filter(|_| why == Why::Unhealthy);
            let container = desired.container(index).cloned();
            let hook = container
                .as_ref()
                .and_then(|c| c.lifecycle.as_ref()?.pre_stop.clone());
            (
                container::container_id(desired, &desired.containers[index].name, attempt),
                self.runtime(record.runtime.unwrap_or(0)).clone(),
                own_grace.unwrap_or_else(|| self.grace_left_s(&record)),
                hook,
                container,
                record.ip,
            )
        };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(grace_s);
        if let (Some(hook), Some(container), true) = (hook, container, grace_s > 0) {
            let exec = Exec {
                runtime: runtime.clone(),
                container: id.clone(),
            };
            let run = hooks::run(&hook, &container, ip, &exec);
            match tokio::time::timeout_at(deadline, run).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    let record = slot.lock();
                    let words = format!("PreStopHook failed: {error}");
                    self.container_event(
                        &record,
                        index,
                        EventType::Warning,
                        "FailedPreStopHook",
                        &words,
                    );
                }
                Err(_) => tracing::debug!(container = id.0, "preStop hook outlasted the grace"),
            }
        }
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        let grace_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        let stopped = runtime.stop_container(&id, grace_ms).await;
        self.look(slot).await;
        match stopped {
            Ok(()) | Err(RuntimeError::NotFound(_)) => {}
            Err(error) => {
                tracing::warn!(container = id.0, %error, "container not stopped, trying again");
                tokio::time::sleep(Duration::from_millis(UNAVAILABLE_RETRY_MS)).await;
            }
        }
        // Still there: the plan asks again.
        if let Run::Running { stopping, .. } = &mut slot.lock().actual.containers[index].run {
            *stopping = false;
        }
    }

    /// Ends every container with its pod's grace.
    pub(crate) async fn drain_all(self: &Arc<Self>) {
        self.draining.store(true, Ordering::SeqCst);
        let stops = self.slots().into_iter().flat_map(|slot| {
            let running: Vec<usize> = {
                let record = slot.lock();
                let containers = record.actual.containers.iter().enumerate();
                containers
                    .filter(|(_, c)| matches!(c.run, Run::Running { .. }))
                    .map(|(index, _)| index)
                    .collect()
            };
            running.into_iter().map(move |index| (slot.clone(), index))
        });
        futures::stream::iter(stops)
            .for_each_concurrent(DRAINS_MAX, |(slot, index)| async move {
                self.stop(&slot, index, Why::PodEnds).await;
            })
            .await;
    }
}

/// What came of a start.
#[derive(Debug, PartialEq, Eq)]
enum Started {
    Runs,
    /// It ended before it ran: its program can't be run.
    Refused(String),
}

/// Why a container did not start: reason and message of its waiting state.
pub(crate) struct StartFailure {
    reason: &'static str,
    pub(crate) message: String,
    unavailable: bool,
}

impl StartFailure {
    fn new(reason: &'static str, error: RuntimeError) -> Self {
        let unavailable = matches!(error, RuntimeError::Unavailable(_));
        let message = match error {
            RuntimeError::CreateContainer(m)
            | RuntimeError::StartContainer(m)
            | RuntimeError::RunSandbox(m) => m,
            other => other.to_string(),
        };
        Self {
            reason,
            message,
            unavailable,
        }
    }
}

/// The last run whose log is kept beside the newest one's.
fn before_of(attempt: u32) -> u32 {
    attempt.saturating_sub(1)
}

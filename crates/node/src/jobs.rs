//! What plans ask for, done: set-up, pulls, starts, stops, teardown.
//!
//! Each job takes what it needs from the record, works without its lock, and writes what
//! came of it back. It decides nothing that the plan could decide.

use crate::agent::{Agent, Record, Slot};
use crate::backoff::MAX_MS;
use crate::container::{self, Ingredients};
use crate::env::Facts;
use crate::image::{self, Obtained, PulledImage};
use crate::objects::Kind;
use crate::plan::Why;
use crate::state::{Image, Run, Sandbox};
use crate::volumes::{self, Sources};
use crate::{hooks, objects::PodObjects};
use client::EventType;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::node::v1::RuntimeClass;
use runtime::{RuntimeError, SandboxId};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Delays between set-ups that fail, as upstream retries mounts.
const SETUP_RETRY_MS: (u64, u64) = (500, 122_000);
/// Time after which a runtime that can't be reached is tried again.
const UNAVAILABLE_RETRY_MS: u64 = 1000;
/// Containers that are ended at once when the node is drained.
const DRAINS_MAX: usize = 256;
/// How long a first pod waits for the list of Services, for its environment.
const SERVICES_DEADLINE: Duration = Duration::from_secs(5);

/// Why a pod's surroundings can't be made: the event to show.
struct SetUpFailure {
    reason: &'static str,
    message: String,
}

impl Agent {
    /// Volumes, address, sandbox.
    pub(crate) async fn set_up(self: &Arc<Self>, slot: &Arc<Slot>) {
        let Ok(_turn) = self.setups.acquire().await else {
            return;
        };
        let result = self.try_set_up(slot).await;
        let mut record = slot.lock();
        let record = &mut *record;
        match result {
            Ok(()) => {
                record.actual.sandbox = Sandbox::Up;
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

    async fn try_set_up(self: &Arc<Self>, slot: &Arc<Slot>) -> Result<(), SetUpFailure> {
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
            container::sandbox_spec(&record.desired, ip, &self.fixed)
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
        match api.get_opt(class).await {
            Ok(Some(found)) => by_handler(&found.handler)
                .ok_or_else(|| format!("no runtime for {:?} is configured", found.handler)),
            Ok(None) => Err(format!("RuntimeClass {class:?} not found")),
            // Offline: the class is most often named as its handler.
            Err(error) => by_handler(class).ok_or_else(|| error.to_string()),
        }
    }

    /// Finds or pulls a container's image.
    pub(crate) async fn pull(self: &Arc<Self>, slot: &Arc<Slot>, index: usize) {
        let (wanted, pod, mut secrets, known) = {
            let record = slot.lock();
            (
                record.desired.containers[index].clone(),
                record.desired.pod.clone(),
                pull_secrets(&record.desired.pod, &record.objects),
                record.actual.containers[index].image_id.clone(),
            )
        };
        let names_secrets = pod
            .spec
            .as_ref()
            .is_some_and(|s| s.image_pull_secrets.as_ref().is_some_and(|l| !l.is_empty()));
        if names_secrets
            && secrets.is_empty()
            && let Ok(objects) = self.objects.for_pod(&slot.uid, &pod).await
        {
            secrets = pull_secrets(&pod, &objects);
        }
        let began = tokio::time::Instant::now();
        let mut turn_at = began;
        let work = async {
            // What is here needs no turn.
            let local = wanted.pull != crate::pod::PullPolicy::Always;
            if local && let Ok(Some(found)) = self.images.local(&wanted.image).await {
                return Ok(Obtained::Present(found));
            }
            let _turn = self.pulls.acquire().await;
            turn_at = tokio::time::Instant::now();
            image::obtain(&*self.images, &wanted.image, wanted.pull, &secrets, || {
                let record = slot.lock();
                let words = format!("Pulling image {:?}", &*wanted.image);
                self.container_event(&record, index, EventType::Normal, "Pulling", &words);
            })
            .await
        };
        let Some(mut result) = slot.ending.run_until_cancelled(work).await else {
            slot.lock().actual.containers[index].image = Image::Unknown;
            return;
        };
        // Cut off, a pod that ran this image here before may run it again.
        if let Err(failure) = &result
            && failure.unreachable
            && known.is_some()
            && let Ok(Some(found)) = self.images.local(&wanted.image).await
        {
            result = Ok(Obtained::Present(found));
        }
        let mut record = slot.lock();
        match result {
            Ok(obtained) => {
                let (image, words) = match obtained {
                    Obtained::Present(image) => {
                        let words = format!(
                            "Container image {:?} already present on machine",
                            &*wanted.image
                        );
                        (image, words)
                    }
                    Obtained::Pulled(image) => {
                        let words = pulled_words(&wanted.image, turn_at, began, image.size_bytes);
                        (image, words)
                    }
                };
                self.container_event(&record, index, EventType::Normal, "Pulled", &words);
                self.pulled(&mut record, index, image);
            }
            Err(failure) => {
                let words = format!(
                    "Failed to pull image {:?}: {}",
                    &*wanted.image, failure.message
                );
                let reason = failure.reason;
                let warn = |words: &str| {
                    self.container_event(&record, index, EventType::Warning, "Failed", words);
                };
                if reason == "ErrImagePull" {
                    warn(&words);
                } else {
                    warn(&failure.message);
                }
                warn(&format!("Error: {reason}"));
                let now = self.now();
                record.sides[index].pull_failed_at = now;
                let container = &mut record.actual.containers[index];
                let delay = container.pulls.grow(now);
                let retry_at = if reason == "InvalidImageName" {
                    now + MAX_MS
                } else {
                    now + delay
                };
                container.image = Image::Failed {
                    reason,
                    message: failure.message,
                    retry_at,
                };
            }
        }
    }

    fn pulled(&self, record: &mut Record, index: usize, image: PulledImage) {
        let container = &mut record.actual.containers[index];
        container.image = Image::Ready;
        container.image_id = Some(image.id.as_str().into());
        container.pulls = Default::default();
        record.sides[index].pulled = Some(Arc::new(image));
    }

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
                Ok(()) => {
                    let words = format!("Started container {}", wanted.name);
                    self.container_event(record, index, EventType::Normal, "Started", &words);
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
    ) -> Result<(), StartFailure> {
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
        let spec = container::container_spec(&Ingredients {
            desired: &desired,
            container: own,
            attempt,
            image: &image,
            objects: &objects,
            services: &services,
            facts: self.facts(&desired.pod, ip),
            fixed: &self.fixed,
        })
        .map_err(|e| config_error(e.to_string()))?;
        let id = spec.id.clone();
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
        {
            let record = slot.lock();
            let words = format!("Created container: {}", own.name);
            self.container_event(&record, index, EventType::Normal, "Created", &words);
        }
        if let Err(error) = runtime.start_container(&id).await {
            // Made anew at the next try.
            if let Err(error) = runtime.remove_container(&id).await {
                tracing::debug!(container = id.0, %error, "failed container not removed");
            }
            return Err(StartFailure::new("RunContainerError", error));
        }
        Ok(())
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
        if let Err(error) = hooks::run(hook, &container, ip).await {
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
                own_grace.unwrap_or(desired.grace_s),
                hook,
                container,
                record.ip,
            )
        };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(grace_s);
        if let (Some(hook), Some(container), true) = (hook, container, grace_s > 0) {
            match tokio::time::timeout_at(deadline, hooks::run(&hook, &container, ip)).await {
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

    /// Asks the runtime how the pod is.
    pub(crate) async fn look(&self, slot: &Arc<Slot>) {
        let index = slot.lock().runtime.unwrap_or(0);
        match self
            .runtime(index)
            .sandbox(&Self::sandbox_id(&slot.uid))
            .await
        {
            Ok(seen) => self.observe(slot, index, seen.as_ref()),
            Err(error) => tracing::debug!(uid = %slot.uid, %error, "sandbox not read"),
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

    /// Ends every container with its pod's grace.
    pub(crate) async fn drain_all(self: &Arc<Self>) {
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

/// Why a container did not start: reason and message of its waiting state.
struct StartFailure {
    reason: &'static str,
    message: String,
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

fn pull_secrets(pod: &core::Pod, objects: &PodObjects) -> Vec<Vec<u8>> {
    let names = pod
        .spec
        .iter()
        .flat_map(|s| s.image_pull_secrets.iter().flatten());
    names
        .filter_map(|r| {
            objects
                .get(Kind::Secret, &r.name)?
                .data
                .get(".dockerconfigjson")
                .cloned()
        })
        .collect()
}

fn pulled_words(
    image: &str,
    turn_at: tokio::time::Instant,
    began: tokio::time::Instant,
    bytes: u64,
) -> String {
    let words = |d: Duration| {
        if d.as_secs() == 0 {
            format!("{}ms", d.as_millis())
        } else {
            format!("{}.{:03}s", d.as_secs(), d.subsec_millis())
        }
    };
    format!(
        "Successfully pulled image {image:?} in {} ({} including waiting). Image size: {bytes} bytes.",
        words(turn_at.elapsed()),
        words(began.elapsed())
    )
}

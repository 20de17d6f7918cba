//! For tests: a runtime, images and an API server that live in memory.

use crate::addresses::Addresses;
use crate::agent::{Agent, Fixed, Parts};
use crate::checkpoint::Checkpoint;
use crate::image::{ImageSource, PullFailure, PulledImage, Wanted};
use crate::pod::Uid;
use async_trait::async_trait;
use bytes::Bytes;
use client::{Clock, EventRecorder, Informers};
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use k8s_openapi::api::core::v1 as core;
use kube::client::Body;
use parking_lot::Mutex;
use runtime::{
    Artifact, Changed, ContainerId, ContainerSpec, ContainerState, ContainerStats, ContainerStatus,
    Exit, ExitReason, PodRuntime, RuntimeError, SandboxId, SandboxSpec, SandboxStatus,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;

/// The time at which tests begin.
pub(crate) const EPOCH: &str = "2026-01-01T00:00:00Z";

/// A runtime in memory. Containers run until told to exit.
pub(crate) struct FakeRuntime {
    pub(crate) sandboxes: Mutex<BTreeMap<SandboxId, SandboxStatus>>,
    pub(crate) specs: Mutex<Vec<ContainerSpec>>,
    /// Every call with the virtual second it came in.
    pub(crate) calls: Mutex<Vec<(u64, String)>>,
    pub(crate) create_error: Mutex<Option<RuntimeError>>,
    changes: broadcast::Sender<Changed>,
    clock: Clock,
}

impl FakeRuntime {
    pub(crate) fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            sandboxes: Mutex::default(),
            specs: Mutex::default(),
            calls: Mutex::default(),
            create_error: Mutex::default(),
            changes: broadcast::channel(4096).0,
            clock,
        })
    }

    fn call(&self, what: String) {
        let epoch: jiff::Timestamp = EPOCH.parse().unwrap();
        let at = self.clock.now().as_second() - epoch.as_second();
        self.calls.lock().push((at as u64, what));
    }

    /// The calls so far, one a line: `second what`.
    pub(crate) fn told(&self) -> String {
        let mut lines = String::new();
        for (at, what) in self.calls.lock().iter() {
            lines += &format!("{at} {what}\n");
        }
        lines
    }

    /// Ends the newest run of a container.
    pub(crate) fn exit(&self, uid: &str, container: &str, code: i32) {
        let id = SandboxId(uid.into());
        let mut sandboxes = self.sandboxes.lock();
        let sandbox = sandboxes.get_mut(&id).unwrap();
        let newest = sandbox
            .containers
            .iter_mut()
            .filter(|c| c.name == container)
            .max_by_key(|c| c.attempt)
            .unwrap();
        let now = self.clock.now().as_millisecond();
        newest.state = ContainerState::Exited(Exit {
            code,
            reason: if code == 0 {
                ExitReason::Completed
            } else {
                ExitReason::Error
            },
            message: String::new(),
            started_ms: now,
            finished_ms: now,
        });
        drop(sandboxes);
        let _ = self.changes.send(Changed(id));
    }

    /// Loses everything, as a data plane that crashed.
    pub(crate) fn crash(&self) {
        let ids: Vec<_> = std::mem::take(&mut *self.sandboxes.lock())
            .into_keys()
            .collect();
        for id in ids {
            let _ = self.changes.send(Changed(id));
        }
    }

    fn with<T>(
        &self,
        id: &ContainerId,
        work: impl FnOnce(&mut Vec<ContainerStatus>) -> T,
    ) -> Option<T> {
        let uid = id.0.split('/').next().unwrap();
        let mut sandboxes = self.sandboxes.lock();
        sandboxes
            .get_mut(&SandboxId(uid.into()))
            .map(|s| work(&mut s.containers))
    }

    fn changed(&self, id: &ContainerId) {
        let uid = id.0.split('/').next().unwrap();
        let _ = self.changes.send(Changed(SandboxId(uid.into())));
    }
}

#[async_trait]
impl PodRuntime for FakeRuntime {
    fn version(&self) -> String {
        "fake://1".into()
    }

    async fn run_sandbox(&self, spec: SandboxSpec) -> Result<(), RuntimeError> {
        let mixed = spec.linux.as_ref().is_some_and(|l| l.mixed);
        let kinds = if mixed { " of both kinds" } else { "" };
        self.call(format!("run_sandbox {}{kinds}", spec.name));
        self.sandboxes
            .lock()
            .entry(spec.id.clone())
            .or_insert(SandboxStatus {
                id: spec.id,
                namespace: spec.namespace,
                name: spec.name,
                ip: spec.ip,
                containers: vec![],
                standby: spec.standby,
                beside: false,
            });
        Ok(())
    }

    async fn create_container(&self, spec: ContainerSpec) -> Result<(), RuntimeError> {
        self.call(format!("create {}", spec.id.0));
        if let Some(error) = self.create_error.lock().clone() {
            return Err(error);
        }
        self.specs.lock().push(spec.clone());
        let status = ContainerStatus {
            id: spec.id.clone(),
            name: spec.name,
            attempt: spec.attempt,
            image: spec.image,
            state: ContainerState::Created,
        };
        self.with(&spec.id, |containers| containers.push(status))
            .ok_or(RuntimeError::NotFound(spec.sandbox.0))
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.call(format!("start {}", id.0));
        let started_ms = self.clock.now().as_millisecond();
        self.with(id, |containers| {
            for c in containers.iter_mut().filter(|c| c.id == *id) {
                c.state = ContainerState::Running { started_ms };
            }
        });
        self.changed(id);
        Ok(())
    }

    async fn stop_container(&self, id: &ContainerId, grace_ms: u64) -> Result<(), RuntimeError> {
        self.call(format!("stop {} within {grace_ms} ms", id.0));
        let now = self.clock.now().as_millisecond();
        self.with(id, |containers| {
            for c in containers.iter_mut().filter(|c| c.id == *id) {
                if let ContainerState::Running { started_ms } = c.state {
                    c.state = ContainerState::Exited(Exit {
                        code: 0,
                        reason: ExitReason::Completed,
                        message: String::new(),
                        started_ms,
                        finished_ms: now,
                    });
                }
            }
        });
        self.changed(id);
        Ok(())
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.with(id, |containers| containers.retain(|c| c.id != *id));
        Ok(())
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        self.call(format!("remove_sandbox {}", id.0));
        self.sandboxes.lock().remove(id);
        let _ = self.changes.send(Changed(id.clone()));
        Ok(())
    }

    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        Ok(self.sandboxes.lock().values().cloned().collect())
    }

    async fn sandbox(&self, id: &SandboxId) -> Result<Option<SandboxStatus>, RuntimeError> {
        Ok(self.sandboxes.lock().get(id).cloned())
    }

    async fn stats(&self) -> Result<Vec<(ContainerId, ContainerStats)>, RuntimeError> {
        let sandboxes = self.sandboxes.lock();
        let containers = sandboxes.values().flat_map(|s| &s.containers);
        Ok(containers
            .map(|c| {
                let stats = ContainerStats {
                    cpu_ns: 1_500_000_000,
                    memory_bytes: 4096,
                    requests: 7,
                    instances: 1,
                };
                (c.id.clone(), stats)
            })
            .collect())
    }

    async fn changes(&self) -> Result<BoxStream<'static, Changed>, RuntimeError> {
        let receiver = self.changes.subscribe();
        Ok(futures::stream::unfold(receiver, |mut r| async move {
            r.recv().await.ok().map(|change| (change, r))
        })
        .boxed())
    }
}

/// Has every image but those that are set to fail; those called `box` are of containers.
#[derive(Default)]
pub(crate) struct FakeImages {
    pub(crate) failure: Mutex<Option<PullFailure>>,
    /// What any image has for files; none can be had before.
    pub(crate) files: Mutex<Option<PathBuf>>,
}

#[async_trait]
impl ImageSource for FakeImages {
    async fn local(&self, _: &str, _: Wanted) -> Result<Option<PulledImage>, PullFailure> {
        Ok(None)
    }

    async fn permits(&self, _: &str, _: &[Vec<u8>]) -> Result<bool, PullFailure> {
        Ok(true)
    }

    async fn pull(
        &self,
        image: &str,
        wanted: Wanted,
        _: &[Vec<u8>],
    ) -> Result<PulledImage, PullFailure> {
        if let Some(failure) = self.failure.lock().clone() {
            return Err(failure);
        }
        let digest = "sha256:00".to_owned();
        let artifact = match wanted {
            Wanted::Run if image.starts_with("box:") => Artifact::Container {
                digest,
                layers: vec!["/layer".into()],
            },
            Wanted::Run => Artifact::Wasm {
                digest,
                path: "/x.wasm".into(),
                rootfs: None,
            },
            Wanted::Files => Artifact::Container {
                digest,
                layers: self.files.lock().iter().cloned().collect(),
            },
        };
        Ok(PulledImage {
            id: format!("{image}@sha256:00"),
            artifact,
            entrypoint: vec!["/x".into()],
            cmd: vec![],
            env: vec![],
            working_dir: None,
            user: None,
            stop_signal: None,
            size_bytes: 9,
        })
    }

    async fn list(&self) -> Vec<(Vec<String>, u64)> {
        vec![]
    }
}

type Answer = UnsyncBoxBody<Bytes, Infallible>;

/// An API server that takes every write and knows some ConfigMaps.
#[derive(Clone, Default)]
pub(crate) struct FakeApi {
    /// `METHOD path` and body of every write.
    pub(crate) writes: Arc<Mutex<Vec<(String, Value)>>>,
    pub(crate) config_maps: Arc<Mutex<BTreeMap<String, Value>>>,
    pub(crate) nodes: Arc<Mutex<BTreeMap<String, Value>>>,
    /// Nothing answers.
    pub(crate) down: Arc<Mutex<bool>>,
}

impl FakeApi {
    pub(crate) fn client(&self) -> kube::Client {
        let this = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let this = this.clone();
            async move { Ok::<_, Infallible>(this.answer(request).await) }.boxed()
        });
        kube::Client::new(service, "default")
    }

    async fn answer(&self, request: Request<Body>) -> Response<Answer> {
        let json = |code: StatusCode, value: Value| {
            let bytes = Bytes::from(value.to_string());
            let mut response = Response::new(Full::new(bytes).boxed_unsync());
            *response.status_mut() = code;
            response
        };
        let (parts, body) = request.into_parts();
        let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
        if *self.down.lock() {
            let status = json!({"kind": "Status", "status": "Failure", "code": 503, "reason": "ServiceUnavailable", "message": "down"});
            return json(StatusCode::SERVICE_UNAVAILABLE, status);
        }
        if parts.method == Method::GET {
            if query.contains("watch=true") {
                if path.ends_with("/services") {
                    // An empty listing, then silence.
                    let end = json!({"type": "BOOKMARK", "object": {"apiVersion": "v1", "kind": "Service",
                        "metadata": {"resourceVersion": "1", "annotations": {"k8s.io/initial-events-end": "true"}}}});
                    let first =
                        futures::stream::iter([Ok(Frame::data(Bytes::from(format!("{end}\n"))))]);
                    let stream = first.chain(futures::stream::pending::<Result<_, Infallible>>());
                    return Response::new(BodyExt::boxed_unsync(StreamBody::new(stream)));
                }
                let silent = futures::stream::pending::<Result<Frame<Bytes>, Infallible>>();
                return Response::new(BodyExt::boxed_unsync(StreamBody::new(silent)));
            }
            if path.ends_with("/configmaps") || path.ends_with("/secrets") {
                let name = query.split("metadata.name%3D").nth(1).unwrap_or_default();
                let name = name.split('&').next().unwrap_or_default();
                let items: Vec<_> = self
                    .config_maps
                    .lock()
                    .get(name)
                    .cloned()
                    .into_iter()
                    .collect();
                return json(
                    StatusCode::OK,
                    json!({"metadata": {"resourceVersion": "1"}, "items": items}),
                );
            }
            let node = path.strip_prefix("/api/v1/nodes/");
            if let Some(node) = node.and_then(|name| self.nodes.lock().get(name).cloned()) {
                return json(StatusCode::OK, node);
            }
            let status = json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": "no"});
            return json(StatusCode::NOT_FOUND, status);
        }
        let bytes = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        self.writes
            .lock()
            .push((format!("{} {path}", parts.method), body));
        json(
            StatusCode::OK,
            json!({"metadata": {"name": "x", "uid": "x"}, "spec": {"containers": []}}),
        )
    }

    /// `reason: message` of each event, in order.
    pub(crate) fn events(&self) -> String {
        let writes = self.writes.lock();
        writes
            .iter()
            .filter(|(to, _)| to.contains("/events"))
            .filter_map(|(_, body)| {
                Some(format!(
                    "{}: {}\n",
                    body["reason"].as_str()?,
                    body["message"].as_str().or(body["note"].as_str())?
                ))
            })
            .collect()
    }

    /// Status of the pod as the patches so far make it.
    pub(crate) fn status(&self, pod: &str) -> Value {
        let mut status = json!({});
        for (to, body) in self.writes.lock().iter() {
            if to.ends_with(&format!("/pods/{pod}/status")) {
                for (name, value) in body["status"].as_object().into_iter().flatten() {
                    status[name] = value.clone();
                }
            }
        }
        status
    }

    pub(crate) fn wrote(&self, what: &str) -> bool {
        self.writes.lock().iter().any(|(to, _)| to == what)
    }
}

/// An agent with everything around it faked.
pub(crate) struct Rig {
    pub(crate) agent: Arc<Agent>,
    pub(crate) runtime: Arc<FakeRuntime>,
    pub(crate) images: Arc<FakeImages>,
    pub(crate) api: FakeApi,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) scope: lifecycle::Scope,
}

/// The epoch of the fake node's Lease.
pub(crate) fn epoch(count: u64) -> ::api::partition::Epoch {
    let lease = "e".to_owned();
    ::api::partition::Epoch { lease, count }
}

impl Rig {
    pub(crate) async fn new() -> Self {
        let clock = Clock::following_tokio(EPOCH.parse().unwrap());
        let runtime = FakeRuntime::new(clock.clone());
        Self::on(
            tempfile::tempdir().unwrap(),
            runtime,
            clock,
            FakeApi::default(),
        )
        .await
    }

    /// One that knows so much of its contact with its server.
    pub(crate) async fn in_contact(known: api::partition::Contact) -> Self {
        let clock = Clock::following_tokio(EPOCH.parse().unwrap());
        let runtime = FakeRuntime::new(clock.clone());
        let dir = tempfile::tempdir().unwrap();
        Self::made(dir, runtime, clock, FakeApi::default(), known).await
    }

    /// A second agent over what another left.
    pub(crate) async fn on(
        dir: tempfile::TempDir,
        runtime: Arc<FakeRuntime>,
        clock: Clock,
        api: FakeApi,
    ) -> Self {
        let known = ::api::partition::Contact::known(Some(0), Some(epoch(0)));
        Self::made(dir, runtime, clock, api, known).await
    }

    async fn made(
        dir: tempfile::TempDir,
        runtime: Arc<FakeRuntime>,
        clock: Clock,
        api: FakeApi,
        known: ::api::partition::Contact,
    ) -> Self {
        let scope = lifecycle::Scope::new();
        let images = Arc::new(FakeImages::default());
        let (checkpoint, restored) = Checkpoint::open(dir.path(), &scope);
        let client = api.client();
        let began = tokio::time::Instant::now();
        let elapsed = move || u64::try_from(began.elapsed().as_millis()).unwrap();
        let contact = crate::contact::Contact::new(Arc::new(elapsed), None, known);
        let agent = Agent::new(Parts {
            unbound: None,
            fixed: Fixed {
                name: "n1".into(),
                node_ip: [192, 0, 2, 1].into(),
                dir: dir.path().into(),
                cluster_dns: vec![],
                cluster_domain: "cluster.local".into(),
                pods_max: 5000,
                pod_pids_limit: None,
                allocatable: BTreeMap::new(),
            },
            events: EventRecorder::new(client.clone(), "kubelet", "n1", clock.clone(), &scope),
            client,
            clock,
            images: images.clone(),
            runtimes: vec![("wasm".into(), runtime.clone())],
            services: Informers::new(api.client(), &scope).get(),
            addresses: Addresses::new("127.42.0.0/16".parse().unwrap()).unwrap(),
            checkpoint,
            contact: Arc::new(contact),
            scope: scope.clone(),
        });
        crate::node::run_loops(&agent, &scope);
        crate::feed::list_runtimes(&agent).await;
        agent.restore(restored);
        Self {
            agent,
            runtime,
            images,
            api,
            dir,
            scope,
        }
    }

    /// A pod of the default namespace whose UID is its name.
    pub(crate) fn apply(&self, name: &str, spec: Value) {
        self.agent.update(Arc::new(pod(name, spec)), true);
    }

    /// The pod with a deletion timestamp.
    pub(crate) fn delete(&self, name: &str, grace_s: i64) {
        let slot = self.agent.slot(&Uid::from(name)).unwrap();
        let mut pod = (*slot.lock().desired.pod).clone();
        pod.metadata.deletion_timestamp = Some(
            k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.agent.clock.now()),
        );
        pod.metadata.deletion_grace_period_seconds = Some(grace_s);
        self.agent.update(Arc::new(pod), true);
    }

    /// Waits, in virtual time, until the condition holds.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..100_000 {
            if holds(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!(
            "never came: {what}\ncalls:\n{}events:\n{}writes: {:#?}",
            self.runtime.told(),
            self.api.events(),
            self.api.writes.lock().last()
        );
    }

    /// A field of the container's published status.
    pub(crate) fn container(&self, pod: &str, pointer: &str) -> Value {
        let status = self.api.status(pod);
        status["containerStatuses"][0]
            .pointer(pointer)
            .cloned()
            .unwrap_or_default()
    }
}

pub(crate) fn pod(name: &str, spec: Value) -> core::Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default", "uid": name, "generation": 1},
        "spec": spec,
    }))
    .unwrap()
}

/// A spec with one container `c`.
pub(crate) fn one() -> Value {
    json!({"containers": [{"name": "c", "image": "hello:1"}]})
}

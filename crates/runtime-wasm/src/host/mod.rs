//! The data plane's side: all sandboxes and containers of this machine's Wasm pods.
//!
//! It lives on when the agent restarts; the agent then asks for [`Host::sandboxes`] and adopts
//! them. Start at [`Host::start`]; a container's life is in `container`, its requests
//! in `serve`; the socket is crate `remote-runtime`'s.

mod attach;
mod container;
mod exec;
mod kept;
mod programs;
mod serve;
mod silence;
mod spec;
mod standby;

pub use serve::{HttpEndpoint, ResponseBody};
pub use standby::{Standby, Standbys, Woken};

use async_trait::async_trait;
use container::Container;
use futures::stream::{self, BoxStream, StreamExt as _};
use kept::{Kept, KeptSandbox, Runs};
use lifecycle::Scope;
use parking_lot::RwLock;
use remote_runtime::LogLimits;
use runtime::{
    Artifact, AttachSpec, Changed, ContainerId, ContainerSpec, ContainerState, ContainerStats,
    ExecSpec, PodRuntime, Port, RuntimeError, SandboxId, SandboxSpec, SandboxStatus, Session,
    Traffic,
};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use tokio::sync::{Semaphore, broadcast, watch};
use wasm::{KeyValue, MemoryMeter, Network};

/// Sandboxes of before that are made again at once.
const RESTORES_MAX: usize = 32;

/// Hints not yet read by a subscriber; past it the subscriber is told to list again.
const CHANGES_QUEUED_MAX: usize = 4096;

/// How to start a [`Host`].
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Where the agent connects; its folder is made with mode 0700 when missing.
    /// `None` for a host used only in its own process.
    pub socket: Option<PathBuf>,
    /// Where compiled programs are kept.
    pub compiled_dir: PathBuf,
    /// Where sandboxes are kept, so that a host that was killed serves again by itself;
    /// `None` for one that forgets.
    pub kept_dir: Option<PathBuf>,
    /// How much log a container keeps.
    pub log_limits: LogLimits,
    /// The site's own DNS server. Pods name a server by its address alone; where this one may
    /// not listen on port 53, it is asked at its own port.
    pub dns: Option<SocketAddr>,
}

/// Why a host did not start.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The engine could not be set up.
    #[error("start the Wasm host")]
    Runtime(#[from] wasm::RuntimeError),
    /// The folder for sandboxes could not be made.
    #[error("make directory {}", path.display())]
    Kept {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its socket could not be made.
    #[error("listen at {}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The Wasm runtime itself. Clones are the same host.
#[derive(Clone)]
pub struct Host {
    shared: Arc<Shared>,
}

/// What containers need of their host.
pub(crate) struct Shared {
    runtime: wasm::Runtime,
    log_limits: LogLimits,
    dns: Option<SocketAddr>,
    kept: Option<Kept>,
    sandboxes: RwLock<HashMap<SandboxId, Arc<Sandbox>>>,
    /// Who answers at an address of a pod.
    endpoints: RwLock<HashMap<SocketAddr, Arc<HttpEndpoint>>>,
    changes: broadcast::Sender<Changed>,
    standbys: watch::Sender<Standbys>,
    /// Those of the list, by address. Taken last.
    standby_at: RwLock<HashMap<IpAddr, SandboxId>>,
    traffic: OnceLock<Arc<dyn Traffic>>,
    contact: silence::Contact,
    scope: Scope,
}

struct Sandbox {
    spec: SandboxSpec,
    memory: Arc<MemoryMeter>,
    /// What its guests keep by `wasi:keyvalue`.
    store: Arc<KeyValue>,
    /// Of a pod that has containers too: theirs.
    network: Option<Arc<Network>>,
    containers: RwLock<BTreeMap<ContainerId, Arc<Container>>>,
    /// Held while a container is loaded, so that one asked for twice is made once.
    creating: tokio::sync::Mutex<()>,
    /// What it is to whoever wakes it.
    standby: standby::Phase,
    /// Ports of containers that another runtime has: the pod is here so that requests wake it.
    elsewhere: RwLock<Option<Vec<Port>>>,
    /// For programs beside its containers' own, and for those who take part.
    execs: Arc<Semaphore>,
}

impl Host {
    /// Sets up the engine and listens for agents; all tasks run in the scope.
    ///
    /// # Errors
    /// When the engine or the socket can't be set up.
    pub async fn start(config: HostConfig, scope: &Scope) -> Result<Self, HostError> {
        let runtime = wasm::Runtime::new(&wasm::RuntimeConfig {
            compiled_dir: config.compiled_dir,
        })?;
        let kept = match config.kept_dir {
            Some(path) => {
                Some(Kept::open(&path).map_err(|source| HostError::Kept { path, source })?)
            }
            None => None,
        };
        let host = Self {
            shared: Arc::new(Shared {
                runtime,
                kept,
                log_limits: config.log_limits,
                dns: config.dns,
                sandboxes: RwLock::default(),
                endpoints: RwLock::default(),
                changes: broadcast::channel(CHANGES_QUEUED_MAX).0,
                standbys: watch::Sender::default(),
                standby_at: RwLock::default(),
                traffic: OnceLock::new(),
                contact: silence::Contact::now(),
                scope: scope.clone(),
            }),
        };
        // Before an agent asks, or it would make anew what is about to be there.
        host.restore().await;
        scope.spawn_cancellable(silence::watch(host.clone()));
        if let Some(path) = config.socket {
            remote_runtime::listen(host.clone(), &path, scope)
                .map_err(|source| HostError::Socket { path, source })?;
        }
        Ok(host)
    }

    /// The HTTP guest that serves at an address, for callers in this process: no connection,
    /// no second hop.
    pub fn http_endpoint(&self, address: SocketAddr) -> Option<Arc<HttpEndpoint>> {
        self.shared.endpoints.read().get(&address).cloned()
    }

    /// Makes the sandboxes of a host that was killed again.
    async fn restore(&self) {
        let kept = self.shared.kept.as_ref().map(Kept::read);
        let sandboxes = stream::iter(kept.into_iter().flatten());
        sandboxes
            .for_each_concurrent(RESTORES_MAX, |sandbox| async {
                let id = sandbox.spec.id.clone();
                let Err(error) = self.restore_sandbox(sandbox).await else {
                    return;
                };
                tracing::info!(sandbox = id.0, %error, "a sandbox of before is left to the agent");
                if let Err(error) = self.remove_sandbox(&id).await {
                    tracing::warn!(sandbox = id.0, %error, "sandbox not removed");
                }
                if let Some(kept) = &self.shared.kept {
                    kept.remove(&id);
                }
            })
            .await;
    }

    /// One sandbox: servers serve again, as their next run; one on standby stands by.
    async fn restore_sandbox(&self, kept: KeptSandbox) -> Result<(), RuntimeError> {
        let KeptSandbox { spec, containers } = kept;
        let ran = |runs: Runs| containers.iter().any(|(_, r)| *r == Some(runs));
        let left = |why: &str| Err(RuntimeError::RunSandbox(why.to_owned()));
        if ran(Runs::Command) {
            return left("a command ran in it");
        }
        if spec.dies_after_silence_ms.is_some() {
            return left("its node must be in contact with its server first");
        }
        if !(ran(Runs::Http) || spec.standby) {
            return left("nothing ran in it");
        }
        let woken = ran(Runs::Http);
        self.run_sandbox(spec).await?;
        for (container, runs) in containers {
            match runs {
                Some(_) => {
                    let next = next_run(container);
                    let id = next.id.clone();
                    self.create_container(next).await?;
                    self.start_container(&id).await?;
                }
                None if woken => {}
                None => self.create_container(container).await?,
            }
        }
        Ok(())
    }

    /// Stops all containers, each with the same time to finish its requests.
    /// Those that served serve again in the next host of the same folder.
    pub async fn stop(&self, grace_ms: u64) {
        if let Some(kept) = &self.shared.kept {
            kept.close();
        }
        let containers: Vec<_> = self
            .shared
            .all()
            .iter()
            .flat_map(|sandbox| sandbox.all())
            .collect();
        futures::future::join_all(containers.iter().map(|container| container.stop(grace_ms)))
            .await;
    }

    fn find(&self, id: &SandboxId) -> Option<Arc<Sandbox>> {
        self.shared.sandboxes.read().get(id).cloned()
    }

    fn container(&self, id: &ContainerId) -> Result<Arc<Container>, RuntimeError> {
        self.shared
            .all()
            .iter()
            .find_map(|sandbox| sandbox.containers.read().get(id).cloned())
            .ok_or_else(|| RuntimeError::NotFound(id.0.clone()))
    }

    /// What is asked about the Services of this node, once it is known who carries them.
    pub fn set_traffic(&self, traffic: Arc<dyn Traffic>) {
        // The first stays.
        let _ = self.shared.traffic.set(traffic);
    }
}

impl remote_runtime::Served for Host {
    fn subscribe(&self) -> broadcast::Receiver<Changed> {
        self.shared.changes.subscribe()
    }

    fn traffic(&self) -> Result<&dyn Traffic, RuntimeError> {
        let none = || RuntimeError::Unavailable("no Services are carried here".to_owned());
        self.shared.traffic.get().map(|t| &**t).ok_or_else(none)
    }
}

/// The run after this one, with a number and a log of its own.
fn next_run(mut spec: ContainerSpec) -> ContainerSpec {
    spec.attempt += 1;
    let run = (&spec.sandbox.0, &spec.name, spec.attempt);
    spec.id = ContainerId(format!("{}/{}/{}", run.0, run.1, run.2));
    spec.log_path = spec
        .log_path
        .with_file_name(format!("{}.log", spec.attempt));
    spec
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host")
            .field("sandboxes", &self.shared.sandboxes.read().len())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn all(&self) -> Vec<Arc<Sandbox>> {
        self.sandboxes.read().values().cloned().collect()
    }

    /// Says that a sandbox changed; nobody need listen.
    fn changed(&self, sandbox: &SandboxId) {
        self.list_standby(sandbox);
        drop(self.changes.send(Changed(sandbox.clone())));
    }
}

impl Sandbox {
    fn all(&self) -> Vec<Arc<Container>> {
        self.containers.read().values().cloned().collect()
    }

    fn status(&self) -> SandboxStatus {
        let containers = self
            .containers
            .read()
            .values()
            .map(|c| c.status())
            .collect();
        self.spec.status(containers, self.standby.sleeps())
    }
}

#[async_trait]
impl PodRuntime for Host {
    fn version(&self) -> String {
        crate::VERSION.to_owned()
    }

    async fn run_sandbox(&self, spec: SandboxSpec) -> Result<(), RuntimeError> {
        if self.find(&spec.id).is_some() {
            return Ok(());
        }
        let network = spec.linux.as_ref().and_then(|l| l.network.as_deref());
        let network = network.map(Network::open).transpose().map_err(|error| {
            RuntimeError::RunSandbox(format!("open the network of the pod's containers: {error}"))
        })?;
        if let Some(kept) = &self.shared.kept {
            kept.sandbox(&spec);
        }
        let mut sandboxes = self.shared.sandboxes.write();
        if sandboxes.contains_key(&spec.id) {
            return Ok(());
        }
        let id = spec.id.clone();
        let memory = Arc::new(MemoryMeter::new(spec.memory_limit_bytes, None));
        let standby = standby::Phase::new(spec.standby);
        sandboxes.insert(
            id.clone(),
            Arc::new(Sandbox {
                spec,
                memory,
                store: Arc::default(),
                network: network.map(Arc::new),
                containers: RwLock::default(),
                creating: tokio::sync::Mutex::default(),
                standby,
                elsewhere: RwLock::default(),
                execs: Arc::new(Semaphore::new(exec::EXECS_MAX)),
            }),
        );
        drop(sandboxes);
        self.shared.changed(&id);
        Ok(())
    }

    async fn create_container(&self, spec: ContainerSpec) -> Result<(), RuntimeError> {
        let sandbox = self
            .find(&spec.sandbox)
            .ok_or_else(|| RuntimeError::NotFound(spec.sandbox.0.clone()))?;
        let _creating = sandbox.creating.lock().await;
        if sandbox.containers.read().contains_key(&spec.id) {
            return Ok(());
        }
        let id = spec.id.clone();
        if let Some(kept) = &self.shared.kept {
            kept.container(&spec);
        }
        if sandbox.spec.standby && matches!(spec.artifact, Artifact::Container { .. }) {
            let mut elsewhere = sandbox.elsewhere.write();
            elsewhere.get_or_insert_default().extend(spec.ports);
            drop(elsewhere);
            self.shared.changed(&sandbox.spec.id);
            return Ok(());
        }
        let container = Container::create(
            &self.shared,
            &sandbox.spec,
            &sandbox.memory,
            &sandbox.store,
            sandbox.network.as_ref(),
            spec,
        )
        .await
        .map_err(RuntimeError::CreateContainer)?;
        // Removed while the image was compiled?
        if self.find(&sandbox.spec.id).is_none() {
            return Err(RuntimeError::NotFound(sandbox.spec.id.0.clone()));
        }
        sandbox.containers.write().insert(id, container);
        self.shared.changed(&sandbox.spec.id);
        Ok(())
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let container = self.container(id)?;
        if let Some(sandbox) = self.find(container.sandbox()) {
            sandbox.standby.woken();
        }
        container.start().map_err(RuntimeError::StartContainer)
    }

    async fn stop_container(&self, id: &ContainerId, grace_ms: u64) -> Result<(), RuntimeError> {
        self.container(id)?.stop(grace_ms).await;
        Ok(())
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        // Gone already is as good.
        let Ok(container) = self.container(id) else {
            return Ok(());
        };
        if matches!(container.status().state, ContainerState::Running { .. }) {
            container.stop(0).await;
        }
        if let Some(sandbox) = self.find(container.sandbox()) {
            sandbox.containers.write().remove(id);
            self.shared.changed(&sandbox.spec.id);
        }
        Ok(())
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let Some(sandbox) = self.shared.sandboxes.write().remove(id) else {
            return Ok(());
        };
        let containers = sandbox.all();
        futures::future::join_all(containers.iter().map(|container| container.stop(0))).await;
        if let Some(kept) = &self.shared.kept {
            kept.remove(id);
        }
        self.shared.changed(id);
        Ok(())
    }

    async fn exec(&self, spec: ExecSpec) -> Result<Session, RuntimeError> {
        self.run_beside(spec).await
    }

    async fn attach(&self, spec: AttachSpec) -> Result<Session, RuntimeError> {
        self.take_part(&spec)
    }

    async fn wake(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        self.wake_now(id)
    }

    async fn adopted(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        if let Some(sandbox) = self.find(id) {
            sandbox.standby.adopted();
            self.shared.list_standby(id);
            let shared = self.shared.clone();
            let kept = tokio::task::spawn_blocking(move || {
                if let Some(kept) = &shared.kept {
                    kept.sandbox(&SandboxSpec {
                        standby: false,
                        ..sandbox.spec.clone()
                    });
                }
            });
            drop(kept.await);
        }
        Ok(())
    }

    async fn contact(&self, at_ms: u64) -> Result<(), RuntimeError> {
        self.shared.contact.made(at_ms);
        Ok(())
    }

    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        Ok(self
            .shared
            .all()
            .iter()
            .map(|sandbox| sandbox.status())
            .collect())
    }

    async fn sandbox(&self, id: &SandboxId) -> Result<Option<SandboxStatus>, RuntimeError> {
        Ok(self.find(id).map(|sandbox| sandbox.status()))
    }

    async fn stats(&self) -> Result<Vec<(ContainerId, ContainerStats)>, RuntimeError> {
        Ok(self
            .shared
            .all()
            .iter()
            .flat_map(|sandbox| sandbox.all())
            .map(|container| (container.id().clone(), container.stats()))
            .collect())
    }

    async fn changes(&self) -> Result<BoxStream<'static, Changed>, RuntimeError> {
        Ok(remote_runtime::hints(self.shared.changes.subscribe()))
    }
}

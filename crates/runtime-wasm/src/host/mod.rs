//! The data plane's side: all sandboxes and containers of this machine's Wasm pods.
//!
//! It lives on when the agent restarts; the agent then asks for [`Host::sandboxes`] and adopts
//! them. Start at [`Host::start`]; a container's life is in `container`, its requests
//! in `serve`, the socket in `server`.

mod container;
mod serve;
mod server;
mod spec;

pub use serve::{HttpEndpoint, ResponseBody};

use crate::log_file::LogLimits;
use async_trait::async_trait;
use container::Container;
use futures::stream::BoxStream;
use lifecycle::Scope;
use parking_lot::RwLock;
use runtime::{
    Changed, ContainerId, ContainerSpec, ContainerState, ContainerStats, PodRuntime, RuntimeError,
    SandboxId, SandboxSpec, SandboxStatus,
};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::broadcast;
use wasm::MemoryMeter;

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
    sandboxes: RwLock<HashMap<SandboxId, Arc<Sandbox>>>,
    /// Who answers at an address of a pod.
    endpoints: RwLock<HashMap<SocketAddr, Arc<HttpEndpoint>>>,
    changes: broadcast::Sender<Changed>,
    scope: Scope,
}

struct Sandbox {
    spec: SandboxSpec,
    memory: Arc<MemoryMeter>,
    containers: RwLock<BTreeMap<ContainerId, Arc<Container>>>,
    /// Held while a container is loaded, so that one asked for twice is made once.
    creating: tokio::sync::Mutex<()>,
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
        let host = Self {
            shared: Arc::new(Shared {
                runtime,
                log_limits: config.log_limits,
                dns: config.dns,
                sandboxes: RwLock::default(),
                endpoints: RwLock::default(),
                changes: broadcast::channel(CHANGES_QUEUED_MAX).0,
                scope: scope.clone(),
            }),
        };
        if let Some(path) = config.socket {
            server::listen(host.clone(), &path, scope)
                .map_err(|source| HostError::Socket { path, source })?;
        }
        Ok(host)
    }

    /// The HTTP guest that serves at an address, for callers in this process: no connection,
    /// no second hop.
    pub fn http_endpoint(&self, address: SocketAddr) -> Option<Arc<HttpEndpoint>> {
        self.shared.endpoints.read().get(&address).cloned()
    }

    /// Stops all containers, each with the same time to finish its requests.
    pub async fn stop(&self, grace_ms: u64) {
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

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Changed> {
        self.shared.changes.subscribe()
    }
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
        drop(self.changes.send(Changed(sandbox.clone())));
    }
}

impl Sandbox {
    fn all(&self) -> Vec<Arc<Container>> {
        self.containers.read().values().cloned().collect()
    }

    fn status(&self) -> SandboxStatus {
        SandboxStatus {
            id: self.spec.id.clone(),
            namespace: self.spec.namespace.clone(),
            name: self.spec.name.clone(),
            ip: self.spec.ip,
            containers: self
                .containers
                .read()
                .values()
                .map(|container| container.status())
                .collect(),
        }
    }
}

#[async_trait]
impl PodRuntime for Host {
    fn version(&self) -> String {
        crate::version()
    }

    async fn run_sandbox(&self, spec: SandboxSpec) -> Result<(), RuntimeError> {
        let mut sandboxes = self.shared.sandboxes.write();
        if sandboxes.contains_key(&spec.id) {
            return Ok(());
        }
        let id = spec.id.clone();
        let memory = Arc::new(MemoryMeter::new(spec.memory_limit_bytes, None));
        sandboxes.insert(
            id.clone(),
            Arc::new(Sandbox {
                spec,
                memory,
                containers: RwLock::default(),
                creating: tokio::sync::Mutex::default(),
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
        let container = Container::create(&self.shared, &sandbox.spec, &sandbox.memory, spec)
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
        self.container(id)?
            .start()
            .map_err(RuntimeError::StartContainer)
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
        self.shared.changed(id);
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
        Ok(crate::remote::hints(self.subscribe()))
    }
}

//! The supervisor as the agent sees it: started by the first pod that needs it, found again by
//! the agents after.

use crate::sandbox;
use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use lifecycle::Scope;
use remote_runtime::{Peer, Remote};
use runtime::{
    AttachSpec, Changed, ContainerId, ContainerSpec, ContainerStats, ExecSpec, PodRuntime,
    RuntimeError, SandboxId, SandboxSpec, SandboxStatus, Session,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;

/// A supervisor at a socket, for whoever has something to ask of it: connected to in the scope.
pub fn connect(socket: &Path, scope: &Scope) -> Remote {
    let peer = Peer {
        name: "the supervisor",
        version: crate::VERSION,
    };
    Remote::connect(peer, socket, scope)
}

/// Starts the supervisor's process if it does not run.
pub type Launch = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Container pods, for the agent. Clones are the same.
#[derive(Clone)]
pub struct Containers {
    shared: Arc<Shared>,
    /// Of a RuntimeClass, where this is not for pods that name none.
    handler: Option<String>,
}

/// Where the supervisor's files are.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where it is spoken to.
    pub socket: PathBuf,
    /// Where its process id is.
    pub pid_file: PathBuf,
    /// Its own directory.
    pub dir: PathBuf,
}

struct Shared {
    place: Place,
    scope: Scope,
    launch: Launch,
    /// None until a pod needs it, or an earlier agent's was found.
    remote: watch::Sender<Option<Remote>>,
    /// Held while the process is started.
    launching: tokio::sync::Mutex<()>,
}

impl Containers {
    /// The supervisor of a place: connected to in the scope, at once if it runs.
    pub fn new(place: Place, runs: bool, launch: Launch, scope: &Scope) -> Self {
        let shared = Shared {
            scope: scope.clone(),
            launch,
            remote: watch::Sender::new(None),
            launching: tokio::sync::Mutex::default(),
            place,
        };
        if runs {
            shared.connect();
        }
        Self {
            shared: Arc::new(shared),
            handler: None,
        }
    }

    /// The same for pods of a RuntimeClass with this handler.
    #[must_use]
    pub fn with_handler(&self, handler: &str) -> Self {
        Self {
            shared: self.shared.clone(),
            handler: Some(handler.to_owned()),
        }
    }

    /// The network namespace of a pod, for another process. The supervisor's mounts, which keep
    /// it, are its own: they are seen through it.
    pub(crate) fn network(&self, id: &SandboxId) -> Result<PathBuf, RuntimeError> {
        let place = &self.shared.place;
        let pid = std::fs::read_to_string(&place.pid_file);
        let pid = pid.map_err(|error| RuntimeError::Unavailable(error.to_string()))?;
        let root = Path::new("/proc").join(pid.trim()).join("root");
        let dir = sandbox::dir(&place.dir, id);
        let dir = root.join(dir.strip_prefix("/").unwrap_or(&dir));
        Ok(dir.join(sandbox::NETWORK))
    }

    /// Whether there was a pod that needed it.
    pub(crate) fn is_used(&self) -> bool {
        self.shared.remote.borrow().is_some()
    }

    fn remote(&self, id: &str) -> Result<Remote, RuntimeError> {
        let remote = self.shared.remote.borrow().clone();
        remote.ok_or_else(|| RuntimeError::NotFound(id.to_owned()))
    }

    /// Starts the process where it does not run (any more).
    async fn launched(&self) -> Result<Remote, RuntimeError> {
        let _one = self.shared.launching.lock().await;
        let launch = self.shared.launch.clone();
        let launched = tokio::task::spawn_blocking(move || launch()).await;
        let launched = launched.map_err(|error| RuntimeError::Unavailable(error.to_string()))?;
        launched.map_err(RuntimeError::RunSandbox)?;
        if !self.is_used() {
            self.shared.connect();
        }
        self.remote("supervisor")
    }
}

impl Shared {
    fn connect(&self) {
        let remote = connect(&self.place.socket, &self.scope);
        self.remote.send_replace(Some(remote));
    }
}

#[async_trait]
impl PodRuntime for Containers {
    fn version(&self) -> String {
        crate::VERSION.to_owned()
    }

    async fn run_sandbox(&self, mut spec: SandboxSpec) -> Result<(), RuntimeError> {
        if self.handler.is_some() {
            if spec.standby {
                let why = "container pods of a RuntimeClass do not sleep";
                return Err(RuntimeError::RunSandbox(why.to_owned()));
            }
            spec.linux.get_or_insert_default().handler = self.handler.clone();
        }
        self.launched().await?.run_sandbox(spec).await
    }

    async fn create_container(&self, spec: ContainerSpec) -> Result<(), RuntimeError> {
        self.remote(&spec.sandbox.0)?.create_container(spec).await
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.remote(&id.0)?.start_container(id).await
    }

    async fn stop_container(&self, id: &ContainerId, grace_ms: u64) -> Result<(), RuntimeError> {
        self.remote(&id.0)?.stop_container(id, grace_ms).await
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        match self.remote(&id.0) {
            Ok(remote) => remote.remove_container(id).await,
            Err(_) => Ok(()),
        }
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        match self.remote(&id.0) {
            Ok(remote) => remote.remove_sandbox(id).await,
            Err(_) => Ok(()),
        }
    }

    async fn exec(&self, spec: ExecSpec) -> Result<Session, RuntimeError> {
        self.remote(&spec.container.0)?.exec(spec).await
    }

    async fn attach(&self, spec: AttachSpec) -> Result<Session, RuntimeError> {
        self.remote(&spec.container.0)?.attach(spec).await
    }

    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        // Each is told of once, by the runtime for pods that name none.
        if !self.is_used() || self.handler.is_some() {
            return Ok(Vec::new());
        }
        // One that was killed is started again: what it had is known to be gone then.
        self.launched().await?.sandboxes().await
    }

    async fn sandbox(&self, id: &SandboxId) -> Result<Option<SandboxStatus>, RuntimeError> {
        let Ok(remote) = self.remote(&id.0) else {
            return Ok(None);
        };
        match remote.sandbox(id).await {
            Err(RuntimeError::Unavailable(_)) => self.launched().await?.sandbox(id).await,
            seen => seen,
        }
    }

    async fn stats(&self) -> Result<Vec<(ContainerId, ContainerStats)>, RuntimeError> {
        match self.remote("") {
            Ok(remote) if self.handler.is_none() => remote.stats().await,
            _ => Ok(Vec::new()),
        }
    }

    async fn changes(&self) -> Result<BoxStream<'static, Changed>, RuntimeError> {
        if self.is_used() {
            // Asked for anew after it was lost: it may have been killed.
            return self.launched().await?.changes().await;
        }
        // From the first pod on.
        let mut remote = self.shared.remote.subscribe();
        let first = async move {
            let found = remote.wait_for(Option::is_some).await.ok()?.clone()?;
            found.changes().await.ok()
        };
        let changes = futures::stream::once(first)
            .flat_map(|changes| changes.unwrap_or_else(|| futures::stream::empty().boxed()));
        Ok(changes.boxed())
    }
}

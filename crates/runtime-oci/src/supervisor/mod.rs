//! The supervisor: the process that all containers of a node belong to. It has one thread, holds
//! their output and writes their logs, and goes on when the agent ends; the next agent finds it at
//! its socket. Started by the first container pod, so a node without any pays nothing.
//!
//! Its mounts are its own: should it be killed, they and the namespaces that they keep end with the
//! containers. One that starts ends what an earlier one left. Start at [`supervise`].

mod container;
mod exec;
mod streams;

use crate::cgroup::{self, Tree};
use crate::mounts;
use crate::pause::Pause;
use crate::process;
use crate::programs::{BUILT_IN, Program, SELF};
use crate::sandbox::{self, Surroundings};
use crate::seam::OciRuntime;
use crate::spec::Rights;
use async_trait::async_trait;
use container::{Container, chain};
use futures::stream::BoxStream;
use lifecycle::Scope;
use parking_lot::Mutex;
use remote_runtime::LogLimits;
use runtime::{
    AttachSpec, Changed, ContainerId, ContainerSpec, ContainerState, ContainerStats, ExecSpec,
    Limits, PodRuntime, QosClass, RuntimeError, SandboxId, SandboxSpec, SandboxStatus, Session,
    Traffic,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast;

/// Hints not yet read by a subscriber; past it the subscriber is told to list again.
const CHANGES_QUEUED_MAX: usize = 4096;
/// What containers have to end in when the supervisor is told to.
const GRACE: Duration = Duration::from_secs(10);
/// How the kernel is told to spare the supervisor, as upstream's kubelet is spared.
const OOM_SCORE_ADJ: i32 = -999;
/// A second signal is not waited for: tasks that still run then are left.
const CLOSE: Duration = Duration::from_secs(5);

/// What the process is told, by a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Of the program that wrote it.
    pub version: String,
    /// Where agents connect.
    pub socket: PathBuf,
    /// Where its process id is.
    pub pid_file: PathBuf,
    /// Its own directory: pods' files, containers' root directories.
    pub dir: PathBuf,
    /// The machine's address in the pods' network: their way out.
    pub gateway: Ipv4Addr,
    /// The machine's OCI runtimes, in no order.
    pub runtimes: Vec<Program>,
    /// What runs as the first process of pods whose containers share them ([`crate::pause()`]):
    /// program and arguments, its directory comes last.
    #[serde(default)]
    pub pause: Vec<PathBuf>,
    /// How much log a container keeps.
    #[serde(skip)]
    pub log_limits: LogLimits,
}

/// Why there is no supervisor.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// It is not root.
    #[error("leave the machine's mounts: container pods need root and CAP_SYS_ADMIN")]
    Mounts(#[source] io::Error),
    /// A file or socket can't be made.
    #[error("set up {}", .path.display())]
    SetUp {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused something else.
    #[error("{0}")]
    Kernel(&'static str, #[source] io::Error),
}

/// Runs the supervisor until it is told to end (SIGTERM). The process has one thread so far.
///
/// # Errors
/// When it can't be set up.
pub fn supervise(config: Config) -> Result<(), SuperviseError> {
    mounts::leave_machine().map_err(SuperviseError::Mounts)?;
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own))
        .map_err(|e| SuperviseError::Kernel("become subreaper", e.into()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| SuperviseError::Kernel("start runtime", e))?;
    runtime.block_on(serve(config))
}

/// Shows this program at a place where it can only be read, and runs it from there: a container can
/// open what runs in it (`/proc/PID/exe`), and would write to it.
fn run_from(config: &mut Config) -> Result<(), SuperviseError> {
    let own = config.dir.join("program");
    mounts::own_program(&own).map_err(|source| SuperviseError::SetUp {
        path: own.clone(),
        source,
    })?;
    let programs = config.runtimes.iter_mut().map(|program| &mut program.path);
    for path in programs.chain(config.pause.first_mut()) {
        if path == Path::new(SELF) {
            path.clone_from(&own);
        }
    }
    Ok(())
}

async fn serve(mut config: Config) -> Result<(), SuperviseError> {
    let kernel = |what| move |error| SuperviseError::Kernel(what, error);
    let mut terminated = signal(SignalKind::terminate()).map_err(kernel("watch signals"))?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(kernel("watch signals"))?;
    let mut children = signal(SignalKind::child()).map_err(kernel("watch signals"))?;
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| SuperviseError::SetUp { path, source }
    };
    for name in ["sandboxes", "containers", "state"] {
        let dir = config.dir.join(name);
        let mut make = fs::DirBuilder::new();
        let made = make.recursive(true).mode(0o700).create(&dir);
        made.map_err(at(&dir))?;
    }
    run_from(&mut config)?;
    // Between pods, and between pods and other machines.
    let forward = Path::new("/proc/sys/net/ipv4/ip_forward");
    fs::write(forward, "1").map_err(at(forward))?;
    let scope = Scope::new();
    let supervisor = Supervisor {
        shared: Arc::new(Shared {
            config,
            sandboxes: Mutex::default(),
            changes: broadcast::channel(CHANGES_QUEUED_MAX).0,
            rights: Rights::of(
                &fs::read_to_string("/proc/self/status").unwrap_or_default(),
                lowest_oom_score(),
            ),
            groups: Tree::of_machine(),
            scope: scope.clone(),
        }),
    };
    let config = &supervisor.shared.config;
    supervisor.clear_leftovers().await;
    let pid = std::process::id().to_string();
    fs::write(&config.pid_file, &pid).map_err(at(&config.pid_file))?;
    let agents = Scope::new();
    remote_runtime::listen(supervisor.clone(), &config.socket, &agents)
        .map_err(at(&config.socket))?;
    tracing::info!(socket = %config.socket.display(), "supervisor is ready");
    loop {
        tokio::select! {
            _ = terminated.recv() => break,
            _ = children.recv() => process::reap_others(),
            _ = interrupted.recv() => {}
        }
    }
    let end = supervisor.end();
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => break,
            _ = children.recv() => process::reap_others(),
        }
    }
    for scope in [agents, scope] {
        if let Err(left) = scope.close_within(CLOSE).await {
            tracing::error!(left, "stop supervisor: tasks still run");
        }
    }
    if fs::read_to_string(&config.pid_file).is_ok_and(|text| text == pid) {
        let _gone = fs::remove_file(&config.pid_file);
    }
    let _gone = fs::remove_file(&config.socket);
    Ok(())
}

/// All container pods of this machine. Clones share them.
#[derive(Clone)]
struct Supervisor {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    /// Held for look-ups only.
    sandboxes: Mutex<BTreeMap<SandboxId, Arc<Sandbox>>>,
    changes: broadcast::Sender<Changed>,
    /// What containers can be given at most.
    rights: Rights,
    groups: Tree,
    /// Where containers live.
    scope: Scope,
}

struct Sandbox {
    spec: SandboxSpec,
    /// Made and not started: a request wakes it.
    asleep: AtomicBool,
    surroundings: Surroundings,
    /// Where volumes in memory are mounted. Held for look-ups only.
    memory: Mutex<BTreeSet<PathBuf>>,
    /// Held for look-ups only.
    pause: Mutex<Option<Pause>>,
    /// Held for look-ups only.
    containers: Mutex<BTreeMap<ContainerId, Arc<Container>>>,
}

impl Shared {
    fn changed(&self, id: &SandboxId) {
        // Nobody need listen.
        drop(self.changes.send(Changed(id.clone())));
    }

    /// The runtime of a RuntimeClass's handler, or the one for all.
    fn oci_runtime(&self, handler: Option<&str>) -> Result<OciRuntime, RuntimeError> {
        let name = handler.unwrap_or(BUILT_IN);
        let mut runtimes = self.config.runtimes.iter();
        let program = runtimes.find(|known| known.name == name).ok_or_else(|| {
            let message = format!("no OCI runtime {name:?} is on this machine: install it");
            RuntimeError::CreateContainer(message)
        })?;
        let state = self.config.dir.join("state").join(&program.name);
        Ok(OciRuntime::new(program.clone(), state))
    }

    fn bundle_dir(&self, sandbox: &SandboxId, spec: &ContainerSpec) -> PathBuf {
        let dir = self.config.dir.join("containers").join(&sandbox.0);
        dir.join(format!("{}-{}", spec.name, spec.attempt))
    }
}

impl Sandbox {
    fn all(&self) -> Vec<Arc<Container>> {
        self.containers.lock().values().cloned().collect()
    }

    /// The first process of the container whose processes another is to see.
    fn target_of(&self, spec: &ContainerSpec) -> Result<Option<i32>, RuntimeError> {
        let Some(target) = spec.linux.as_ref().and_then(|l| l.target.as_ref()) else {
            return Ok(None);
        };
        let mut named = self.all().into_iter().filter(|c| c.spec.name == *target);
        let pid = named.find_map(|container| container.pid());
        let why =
            || RuntimeError::CreateContainer(format!("target container {target:?} does not run"));
        pid.map(Some).ok_or_else(why)
    }

    fn status(&self) -> SandboxStatus {
        let containers = self.all().iter().map(|c| c.status()).collect();
        (self.spec).status(containers, self.asleep.load(Ordering::SeqCst))
    }
}

impl Supervisor {
    fn all(&self) -> Vec<Arc<Sandbox>> {
        self.shared.sandboxes.lock().values().cloned().collect()
    }

    fn find(&self, id: &SandboxId) -> Option<Arc<Sandbox>> {
        self.shared.sandboxes.lock().get(id).cloned()
    }

    fn container(&self, id: &ContainerId) -> Result<(Arc<Sandbox>, Arc<Container>), RuntimeError> {
        let found = self.all().into_iter().find_map(|sandbox| {
            let container = sandbox.containers.lock().get(id).cloned()?;
            Some((sandbox, container))
        });
        found.ok_or_else(|| RuntimeError::NotFound(id.0.clone()))
    }

    /// Tells the kernel what the pods' classes get when cores are busy.
    fn share(&self) {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let burstable = |sandbox: &Arc<Sandbox>| {
            let group = &sandbox.spec.linux.as_ref()?.group;
            (group.class == QosClass::Burstable).then_some(group.limits.cpu_request_millis)
        };
        let asked = self.all().iter().filter_map(burstable).sum();
        (self.shared.groups).share(asked, cores as u64 * 1000);
    }

    /// Ends what a supervisor left that was killed; nobody has its output any more.
    async fn clear_leftovers(&self) {
        let dir = &self.shared.config.dir;
        for program in &self.shared.config.runtimes {
            let state = dir.join("state").join(&program.name);
            let runtime = OciRuntime::new(program.clone(), state);
            for id in runtime.known() {
                if let Err(error) = runtime.delete(&id, dir).await {
                    tracing::warn!(
                        container = id,
                        error = chain(&error),
                        "container of an earlier supervisor not deleted"
                    );
                }
            }
        }
        for name in ["sandboxes", "containers"] {
            let entries = fs::read_dir(dir.join(name)).into_iter().flatten().flatten();
            for entry in entries {
                if let Some(id) = entry.file_name().to_str() {
                    self.shared.groups.remove_pod(id);
                }
                if let Err(error) = fs::remove_dir_all(entry.path()) {
                    tracing::warn!(path = %entry.path().display(), %error, "files of an earlier supervisor not removed");
                }
            }
        }
    }

    /// Ends all containers.
    async fn end(&self) {
        let sandboxes = self.all();
        let stop = |container: Arc<Container>| async move { container.stop(GRACE).await };
        let stops = sandboxes.iter().flat_map(|s| s.all()).map(stop);
        for stopped in futures::future::join_all(stops).await {
            if let Err(error) = stopped {
                tracing::error!(%error, "container not stopped");
            }
        }
        for sandbox in sandboxes {
            if let Err(error) = self.remove_sandbox(&sandbox.spec.id).await {
                tracing::error!(%error, "sandbox not removed");
            }
        }
    }
}

/// The supervisor is among the last that the kernel ends for want of memory; what it may at least
/// say of a process.
fn lowest_oom_score() -> i32 {
    let file = "/proc/self/oom_score_adj";
    match fs::write(file, OOM_SCORE_ADJ.to_string()) {
        Ok(()) => -1000,
        Err(error) => {
            tracing::info!(
                %error,
                "this machine does not let processes be kept from its out-of-memory killer: \
                 guaranteed pods are no safer from it than others"
            );
            let own = fs::read_to_string(file).unwrap_or_default();
            own.trim().parse().unwrap_or(0)
        }
    }
}

/// A pod's group and what it may use.
fn pod_group(sandbox: &SandboxSpec) -> (String, Limits) {
    let group = sandbox.linux.as_ref().map(|l| &l.group);
    let group = group.cloned().unwrap_or_default();
    (cgroup::pod_group(group.class, &sandbox.id.0), group.limits)
}

/// Runs what would keep the one thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RuntimeError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| RuntimeError::Unavailable(error.to_string()))
}

impl remote_runtime::Served for Supervisor {
    fn subscribe(&self) -> broadcast::Receiver<Changed> {
        self.shared.changes.subscribe()
    }

    fn traffic(&self) -> Result<&dyn Traffic, RuntimeError> {
        let none = "no Services are carried by the supervisor";
        Err(RuntimeError::Unavailable(none.to_owned()))
    }
}

#[async_trait]
impl PodRuntime for Supervisor {
    fn version(&self) -> String {
        crate::VERSION.to_owned()
    }

    async fn run_sandbox(&self, spec: SandboxSpec) -> Result<(), RuntimeError> {
        if self.find(&spec.id).is_some() {
            return Ok(());
        }
        let dir = sandbox::dir(&self.shared.config.dir, &spec.id);
        let surroundings = Surroundings::of(dir, &spec);
        let gateway = self.shared.config.gateway;
        // What one that was killed left; its link may take a moment to go by itself.
        let cleared = surroundings.remove().await;
        cleared.map_err(|error| RuntimeError::RunSandbox(chain(&error)))?;
        let (making, wanted) = (surroundings.clone(), spec.clone());
        let groups = self.shared.groups.clone();
        let program = self.shared.config.pause.clone();
        let made = blocking(move || {
            let (group, limits) = pod_group(&wanted);
            groups.make(&group, &limits).map_err(|e| chain(&e))?;
            making.make(&wanted, gateway).map_err(|e| chain(&e))?;
            making.pause(&program).map_err(|e| chain(&e))
        });
        let pause = match made.await? {
            Ok(pause) => pause,
            Err(error) => {
                if let Err(error) = surroundings.remove().await {
                    tracing::debug!(%error, "half a sandbox not removed");
                }
                self.shared.groups.remove_pod(&spec.id.0);
                return Err(RuntimeError::RunSandbox(error));
            }
        };
        let id = spec.id.clone();
        let sandbox = Arc::new(Sandbox {
            asleep: AtomicBool::new(spec.standby),
            spec,
            surroundings,
            memory: Mutex::default(),
            pause: Mutex::new(pause),
            containers: Mutex::default(),
        });
        self.shared.sandboxes.lock().insert(id.clone(), sandbox);
        self.share();
        self.shared.changed(&id);
        Ok(())
    }

    async fn create_container(&self, spec: ContainerSpec) -> Result<(), RuntimeError> {
        let sandbox = self.find(&spec.sandbox);
        let sandbox = sandbox.ok_or_else(|| RuntimeError::NotFound(spec.sandbox.0.clone()))?;
        if sandbox.containers.lock().contains_key(&spec.id) {
            return Ok(());
        }
        let target = sandbox.target_of(&spec)?;
        let memory = spec.mounts.iter().filter_map(|mount| mount.memory.as_ref());
        let memory = memory.map(|volume| volume.dir.clone());
        sandbox.memory.lock().extend(memory);
        let (shared, of) = (self.shared.clone(), sandbox.clone());
        let made = blocking(move || {
            Container::make(&shared, &of.spec, &of.surroundings, spec, target).map(Arc::new)
        })
        .await??;
        let id = made.id().clone();
        sandbox.containers.lock().insert(id, made);
        Ok(())
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let (sandbox, container) = self.container(id)?;
        container.start(&self.shared, &sandbox.spec.id).await?;
        sandbox.asleep.store(false, Ordering::SeqCst);
        Ok(())
    }

    async fn wake(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let sandbox = self.find(id);
        let sandbox = sandbox.ok_or_else(|| RuntimeError::NotFound(id.0.clone()))?;
        for container in sandbox.all() {
            container.start(&self.shared, id).await?;
            if let ContainerState::Exited(exit) = container.status().state {
                return Err(RuntimeError::StartContainer(exit.message));
            }
        }
        if sandbox.asleep.swap(false, Ordering::SeqCst) {
            self.shared.changed(id);
        }
        Ok(())
    }

    async fn stop_container(&self, id: &ContainerId, grace_ms: u64) -> Result<(), RuntimeError> {
        let (_, container) = self.container(id)?;
        container.stop(Duration::from_millis(grace_ms)).await
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let Ok((sandbox, container)) = self.container(id) else {
            return Ok(());
        };
        container.remove().await?;
        sandbox.containers.lock().remove(id);
        Ok(())
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let Some(sandbox) = self.find(id) else {
            return Ok(());
        };
        for container in sandbox.all() {
            container.remove().await?;
            sandbox.containers.lock().remove(container.id());
        }
        if let Some(pause) = sandbox.pause.lock().take()
            && let Err(error) = pause.end()
        {
            tracing::warn!(pod = id.0, %error, "first process of the pod not ended");
        }
        let removed = sandbox.surroundings.remove().await;
        removed.map_err(|error| RuntimeError::Unavailable(chain(&error)))?;
        self.shared.groups.remove_pod(&id.0);
        for dir in std::mem::take(&mut *sandbox.memory.lock()) {
            mounts::unmount(&dir).map_err(|e| RuntimeError::Unavailable(e.to_string()))?;
        }
        let dir = self.shared.config.dir.join("containers").join(&id.0);
        // Empty by now.
        let _gone = fs::remove_dir(dir);
        self.shared.sandboxes.lock().remove(id);
        self.share();
        self.shared.changed(id);
        Ok(())
    }

    async fn exec(&self, spec: ExecSpec) -> Result<Session, RuntimeError> {
        let (sandbox, container) = self.container(&spec.container)?;
        let hostname = &sandbox.spec.hostname;
        exec::exec(
            &container,
            spec,
            hostname,
            self.shared.rights,
            &self.shared.scope,
        )
        .await
    }

    async fn attach(&self, spec: AttachSpec) -> Result<Session, RuntimeError> {
        let (_, container) = self.container(&spec.container)?;
        Ok(exec::attach(&container, spec.stdin, &self.shared.scope))
    }

    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        Ok(self.all().iter().map(|sandbox| sandbox.status()).collect())
    }

    async fn sandbox(&self, id: &SandboxId) -> Result<Option<SandboxStatus>, RuntimeError> {
        Ok(self.find(id).map(|sandbox| sandbox.status()))
    }

    async fn stats(&self) -> Result<Vec<(ContainerId, ContainerStats)>, RuntimeError> {
        let groups = &self.shared.groups;
        let mut stats = Vec::new();
        for sandbox in self.all() {
            let all = sandbox.all();
            let running = || all.iter().filter(|container| container.is_running());
            stats.extend(running().map(|c| (c.id().clone(), groups.stats(&c.cgroup))));
            let whole = groups.stats(&pod_group(&sandbox.spec).0);
            stats.push((ContainerId(sandbox.spec.id.0.clone()), whole));
        }
        Ok(stats)
    }

    async fn changes(&self) -> Result<BoxStream<'static, Changed>, RuntimeError> {
        Ok(remote_runtime::hints(self.shared.changes.subscribe()))
    }
}

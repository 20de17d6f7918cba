//! A container's life: created, running, exited.

use super::attach::{Input, Shown, Sink};
use super::exec::reader;
use super::kept::Runs;
use super::serve::{self, Closed, HttpEndpoint};
use super::{Shared, spec};
use crate::names::PodNames;
use jiff::Timestamp;
use lifecycle::{CancellationToken, Scope};
use parking_lot::Mutex;
use runtime::{
    ContainerId, ContainerSpec, ContainerState, ContainerStats, ContainerStatus, Exit, ExitReason,
    Port, SandboxId, SandboxSpec,
};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use wasm::{
    CommandGuest, CpuMeter, Guest, GuestInput, GuestSpec, HttpGuest, KeyValue, MemoryMeter,
    Network, Outcome,
};

/// Exit code of a container that was told to stop, as after SIGTERM.
const TERMINATED: i32 = 143;

/// Exit code of a container that was ended by force, as after SIGKILL.
pub(super) const KILLED: i32 = 137;

/// Between looks at requests that came past the listeners, while a container drains.
const DRAIN_LOOK: Duration = Duration::from_millis(10);

/// Longest message of an exit, as Kubernetes cuts a termination message.
const MESSAGE_MAX_BYTES: usize = 4096;

pub(super) struct Container {
    host: Weak<Shared>,
    sandbox: SandboxId,
    id: ContainerId,
    name: String,
    attempt: u32,
    image: String,
    guest: Guest,
    shown: Arc<Shown>,
    input: Option<Input>,
    memory: Arc<MemoryMeter>,
    cpu: Arc<CpuMeter>,
    /// Where an HTTP guest serves.
    addresses: Vec<SocketAddr>,
    /// Declared ports, of one that stands by.
    ports: Vec<Port>,
    network: Option<Arc<Network>>,
    state: watch::Sender<ContainerState>,
    /// Starting, stopping: one at a time.
    phase: Mutex<Phase>,
    /// What somebody takes part in while it runs.
    sessions: Scope,
}

enum Phase {
    Created,
    Http(Serving),
    Command(Scope),
    Ended,
}

#[derive(Clone)]
struct Serving {
    guest: HttpGuest,
    endpoint: Arc<HttpEndpoint>,
    draining: CancellationToken,
    scope: Scope,
}

impl Container {
    /// Loads and links; the error is what a person reads in the pod's status.
    pub(super) async fn create(
        host: &Arc<Shared>,
        sandbox: &SandboxSpec,
        pod_memory: &Arc<MemoryMeter>,
        pod_store: &Arc<KeyValue>,
        network: Option<&Arc<Network>>,
        spec: ContainerSpec,
    ) -> Result<Arc<Self>, String> {
        let (digest, path) = spec::artifact(&spec)?;
        let preopens = spec::preopens(&spec)?;
        let http = spec::http_options(sandbox)?;
        let egress = spec::egress(sandbox)?;
        let log = remote_runtime::LogFile::create(&spec.log_path, host.log_limits)
            .map_err(|error| format!("make the log {}: {error}", spec.log_path.display()))?;
        let shown = Shown::new(log);
        let (input, given) = Input::of(&spec).unzip();
        let program = host
            .runtime
            .load(digest, path)
            .await
            .map_err(|error| error.to_string())?;
        let memory = Arc::new(MemoryMeter::new(
            spec.memory_limit_bytes,
            Some(pod_memory.clone()),
        ));
        let cpu = Arc::new(CpuMeter::new(spec.cpu_limit_millis));
        let addresses = addresses(sandbox.ip, &spec);
        let ports = if sandbox.standby {
            spec.ports.clone()
        } else {
            Vec::new()
        };
        let guest = program
            .guest(GuestSpec {
                args: spec.args,
                env: spec.env,
                cwd: spec.working_dir,
                preopens,
                memory: memory.clone(),
                cpu: cpu.clone(),
                log: Arc::new(Sink(shown.clone())),
                input: given.map(|given| Box::new(reader(Some(given))) as GuestInput),
                address: Some(sandbox.ip),
                network: network.cloned(),
                egress,
                names: PodNames::of(&sandbox.dns, host.dns, network),
                store: pod_store.clone(),
                http,
            })
            .map_err(|error| error.to_string())?;
        Ok(Arc::new(Self {
            host: Arc::downgrade(host),
            sandbox: spec.sandbox,
            id: spec.id,
            name: spec.name,
            attempt: spec.attempt,
            image: spec.image,
            guest,
            shown,
            input,
            memory,
            cpu,
            addresses,
            ports,
            network: network.cloned(),
            state: watch::Sender::new(ContainerState::Created),
            phase: Mutex::new(Phase::Created),
            sessions: host.scope.child(),
        }))
    }

    pub(super) fn id(&self) -> &ContainerId {
        &self.id
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn guest(&self) -> &Guest {
        &self.guest
    }

    pub(super) fn shown(&self) -> &Shown {
        &self.shown
    }

    pub(super) fn input(&self) -> Option<&Input> {
        self.input.as_ref()
    }

    pub(super) fn watch(&self) -> watch::Receiver<ContainerState> {
        self.state.subscribe()
    }

    /// Where sessions live: they end with it.
    pub(super) fn sessions(&self) -> Result<&Scope, String> {
        match *self.state.borrow() {
            ContainerState::Running { .. } => Ok(&self.sessions),
            ContainerState::Created => Err(format!("container {:?} waits to start", self.name)),
            ContainerState::Exited(_) => Err(format!("container {:?} has ended", self.name)),
        }
    }

    pub(super) fn ports(&self) -> &[Port] {
        &self.ports
    }

    pub(super) fn is_http(&self) -> bool {
        matches!(self.guest, Guest::Http(_))
    }

    pub(super) fn sandbox(&self) -> &SandboxId {
        &self.sandbox
    }

    pub(super) fn status(&self) -> ContainerStatus {
        ContainerStatus {
            id: self.id.clone(),
            name: self.name.clone(),
            attempt: self.attempt,
            image: self.image.clone(),
            state: self.state.borrow().clone(),
        }
    }

    pub(super) fn stats(&self) -> ContainerStats {
        let (requests, instances) = match &self.guest {
            Guest::Http(guest) => (guest.requests(), guest.instances()),
            Guest::Command(guest) => (0, guest.instances()),
        };
        ContainerStats {
            cpu_ns: self.cpu.used_ns(),
            memory_bytes: self.memory.used_bytes(),
            requests,
            instances,
        }
    }

    /// Runs it. Already started is as good.
    pub(super) fn start(self: &Arc<Self>) -> Result<(), String> {
        if self.begin()? {
            self.keep_begun();
        }
        Ok(())
    }

    /// Starts it, but for the mark on disk ([`Container::keep_begun`]). Whether it had not
    /// been started.
    pub(super) fn begin(self: &Arc<Self>) -> Result<bool, String> {
        let Some(host) = self.host.upgrade() else {
            return Err("the host is stopping".into());
        };
        let mut phase = self.phase.lock();
        if !matches!(*phase, Phase::Created) {
            return Ok(false);
        }
        *phase = match &self.guest {
            Guest::Http(guest) => Phase::Http(self.serve(&host, guest)?),
            Guest::Command(guest) => Phase::Command(self.run(&host, guest)),
        };
        // Under the lock: a command may have ended already.
        self.state.send_if_modified(|state| {
            let created = matches!(state, ContainerState::Created);
            if created {
                *state = ContainerState::Running {
                    started_ms: now_ms(),
                };
            }
            created
        });
        drop(phase);
        host.changed(&self.sandbox);
        Ok(true)
    }

    /// Marks on disk that it runs, unless it does no more.
    pub(super) fn keep_begun(&self) {
        let Some(host) = self.host.upgrade() else {
            return;
        };
        let phase = self.phase.lock();
        if let Some(kept) = &host.kept
            && !matches!(*phase, Phase::Ended)
        {
            let runs = match &self.guest {
                Guest::Http(_) => Runs::Http,
                Guest::Command(_) => Runs::Command,
            };
            kept.started(&self.sandbox, &self.name, runs);
        }
    }

    /// Ends it; returns when it has exited.
    pub(super) async fn stop(self: &Arc<Self>, grace_ms: u64) {
        enum How {
            Http(Serving),
            Command(Scope),
            Created,
        }
        let how = match &mut *self.phase.lock() {
            Phase::Http(serving) => How::Http(serving.clone()),
            Phase::Command(scope) => How::Command(scope.clone()),
            phase @ Phase::Created => {
                *phase = Phase::Ended;
                How::Created
            }
            Phase::Ended => return,
        };
        match how {
            How::Created => self.end(KILLED, ExitReason::Error, "stopped before it started"),
            How::Command(scope) => {
                // WASI has no signals, so there is nothing that the program could do with time.
                scope.close().await;
                let code = if grace_ms == 0 { KILLED } else { TERMINATED };
                self.end(code, ExitReason::Error, "stopped");
            }
            How::Http(serving) => {
                self.leave(&serving);
                serving.draining.cancel();
                let drained = drained(&serving);
                let grace = Duration::from_millis(grace_ms);
                let in_time = tokio::time::timeout(grace, drained).await.is_ok();
                serving.scope.close().await;
                serving.guest.stop().await;
                if in_time {
                    self.end(0, ExitReason::Completed, "");
                } else {
                    let message = "stopped with requests under way";
                    self.end(KILLED, ExitReason::Error, message);
                }
            }
        }
    }

    /// Binds the pod's ports and serves.
    fn serve(self: &Arc<Self>, host: &Arc<Shared>, guest: &HttpGuest) -> Result<Serving, String> {
        let mut listeners = Vec::with_capacity(self.addresses.len());
        for address in &self.addresses {
            let listener = self
                .bind(*address)
                .map_err(|error| format!("listen at {address}: {error}"))?;
            listeners.push(listener);
        }
        let serving = Serving {
            guest: guest.clone(),
            endpoint: HttpEndpoint::new(guest.clone()),
            draining: CancellationToken::new(),
            scope: host.scope.child(),
        };
        let mut endpoints = host.endpoints.write();
        for address in &self.addresses {
            endpoints.insert(*address, serving.endpoint.clone());
        }
        drop(endpoints);
        for listener in listeners {
            let accepting = serve::accept(
                listener,
                serving.endpoint.clone(),
                serving.draining.clone(),
                serving.scope.clone(),
            );
            let this = self.clone();
            let watched = serving.clone();
            let host = host.scope.clone();
            serving.scope.spawn_cancellable(async move {
                if let Closed::OutOfMemory = accepting.await {
                    // Not in the container's own scope, which it closes.
                    host.spawn(async move { this.out_of_memory(&watched).await });
                }
            });
        }
        Ok(serving)
    }

    /// In a network of the pod's own any address is the pod's, its loopback too.
    fn bind(&self, address: SocketAddr) -> io::Result<TcpListener> {
        match &self.network {
            Some(network) => {
                let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
                network.enter(|| serve::bind(any))?
            }
            None => serve::bind(address),
        }
    }

    async fn out_of_memory(&self, serving: &Serving) {
        self.leave(serving);
        serving.scope.close().await;
        serving.guest.stop().await;
        self.end(KILLED, ExitReason::OomKilled, "memory limit exceeded");
    }

    /// No new requests, by neither way.
    fn leave(&self, serving: &Serving) {
        serving.endpoint.leave();
        if let Some(host) = self.host.upgrade() {
            host.endpoints
                .write()
                .retain(|_, endpoint| !Arc::ptr_eq(endpoint, &serving.endpoint));
        }
    }

    fn run(self: &Arc<Self>, host: &Arc<Shared>, guest: &CommandGuest) -> Scope {
        let scope = host.scope.child();
        let this = self.clone();
        let running = guest.run();
        let task = scope.clone();
        scope.spawn(async move {
            // Dropped when the container is stopped; `stop` says how it ended then.
            let Some(outcome) = task.token().run_until_cancelled(running).await else {
                return;
            };
            match outcome {
                Outcome::Exited(0) => this.end(0, ExitReason::Completed, ""),
                Outcome::Exited(code) => this.end(code, ExitReason::Error, ""),
                Outcome::Failed(message) => this.end(1, ExitReason::Error, &message),
                Outcome::OutOfMemory(exceeded) => {
                    this.end(KILLED, ExitReason::OomKilled, &exceeded.to_string());
                }
            }
        });
        scope
    }

    /// The first end counts.
    fn end(&self, code: i32, reason: ExitReason, message: &str) {
        {
            let mut phase = self.phase.lock();
            *phase = Phase::Ended;
            // Under the lock, so that it comes after the mark that its start made.
            let host = self.host.upgrade();
            if let Some(kept) = host.as_ref().and_then(|host| host.kept.as_ref()) {
                kept.ended(&self.sandbox, &self.name);
            }
        }
        self.sessions.token().cancel();
        let finished_ms = now_ms();
        let first = self.state.send_if_modified(|state| {
            let started_ms = match state {
                ContainerState::Exited(_) => return false,
                ContainerState::Running { started_ms } => *started_ms,
                ContainerState::Created => finished_ms,
            };
            let end = message.floor_char_boundary(MESSAGE_MAX_BYTES);
            *state = ContainerState::Exited(Exit {
                code,
                reason,
                message: message[..end].to_owned(),
                started_ms,
                finished_ms,
            });
            true
        });
        if first && let Some(host) = self.host.upgrade() {
            host.changed(&self.sandbox);
        }
    }
}

/// Returns when no connection and no request of this process is left.
async fn drained(serving: &Serving) {
    // The accept loops and connections end by themselves once they drain.
    while !serving.scope.is_empty() || !serving.endpoint.is_idle() {
        tokio::time::sleep(DRAIN_LOOK).await;
    }
}

fn addresses(ip: IpAddr, spec: &ContainerSpec) -> Vec<SocketAddr> {
    spec::ports(spec)
        .into_iter()
        .map(|port| SocketAddr::new(ip, port))
        .collect()
}

fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

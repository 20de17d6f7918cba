//! A program tied to one container: arguments, environment, directories, limits, log.

use crate::command::CommandGuest;
use crate::egress::{Egress, EgressRules};
use crate::environment::Environment;
use crate::http::HttpGuest;
use crate::keyvalue::KeyValue;
use crate::limits::{CpuMeter, Limiter, MemoryMeter};
use crate::names::Resolve;
use crate::network::Network;
use crate::pipe::Stdio;
use crate::program::{Code, Program};
use crate::state::{ComponentState, Live, ModuleState};
use crate::stdio::{GuestOutput, LogSink, LogStream};
use crate::surroundings::{Surroundings, is_machines};
use crate::ticker::TICK;
use parking_lot::Mutex;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::{Duration, Instant};
use wasmtime::component::ResourceTable;
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi::cli::AsyncStdinStream;
use wasmtime_wasi::filesystem::WasiFilesystemCtx;
use wasmtime_wasi::sockets::{SocketAddrUse, WasiSocketsCtx};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder};
use wasmtime_wasi_http::WasiHttpCtx;

/// What a container gives its guest.
pub struct GuestSpec {
    /// Program name and arguments.
    pub args: Vec<String>,
    /// Environment; of a name that comes twice the later value holds.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: Option<String>,
    /// Directories that the guest sees.
    pub preopens: Vec<Preopen>,
    /// Memory of the container.
    pub memory: Arc<MemoryMeter>,
    /// Processor time of the container.
    pub cpu: Arc<CpuMeter>,
    /// Where its output goes.
    pub log: Arc<dyn LogSink>,
    /// The pod's: the only one that it may listen at, where "any" and the loopback lead to.
    /// `None` forbids listening.
    pub address: Option<IpAddr>,
    /// Where all its sockets are, for a pod that has a network of its own: it has that one's
    /// loopback and listens wherever it wants.
    pub network: Option<Arc<Network>>,
    /// What a program that runs to its end reads; else there is no input.
    pub input: Option<GuestInput>,
    /// To where it may send HTTP requests.
    pub egress: EgressRules,
    /// Finds the hosts that it connects to and looks up; `None` for the machine's resolver.
    pub names: Option<Arc<dyn Resolve>>,
    /// What it keeps by `wasi:keyvalue`; the pod's.
    pub store: Arc<KeyValue>,
    /// How requests are served, for HTTP guests.
    pub http: HttpOptions,
}

/// Where input comes from.
pub type GuestInput = Box<dyn tokio::io::AsyncRead + Send + Sync + Unpin>;

/// A directory of the host as a guest sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preopen {
    /// On the host.
    pub host: PathBuf,
    /// In the guest.
    pub guest: String,
    /// Whether all writing is refused.
    pub read_only: bool,
}

/// How an HTTP guest serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpOptions {
    /// Requests that one instance serves before it is replaced; 1 gives each request a fresh one.
    /// `None` for the engine's convention: 1 for 0.2 guests, 128 for 0.3 guests.
    pub requests_per_instance: Option<u32>,
    /// Requests at once; more wait.
    pub requests_max: u32,
    /// Until the response begins.
    pub timeout: Duration,
    /// How long an instance is kept with nothing to do.
    pub idle: Duration,
    /// How old an instance may get; then it finishes what it has and another takes over.
    pub lifetime: Option<Duration>,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            requests_per_instance: None,
            requests_max: 512,
            timeout: Duration::from_secs(60),
            idle: Duration::from_secs(5),
            lifetime: None,
        }
    }
}

/// Why a guest could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A directory to show the guest can't be opened.
    #[error("open {} for the guest's {guest}: {reason}", host.display())]
    Preopen {
        /// On the host.
        host: PathBuf,
        /// In the guest.
        guest: String,
        /// Why.
        reason: String,
    },
}

/// A guest by what it does.
#[derive(Clone, Debug)]
pub enum Guest {
    /// Answers requests.
    Http(HttpGuest),
    /// Runs to its end.
    Command(CommandGuest),
}

impl Program {
    /// Ties the program to a container. Nothing runs yet.
    ///
    /// # Errors
    /// When a directory can't be opened.
    pub fn guest(self: &Arc<Self>, spec: GuestSpec) -> Result<Guest, PrepareError> {
        let options = spec.http.clone();
        let bound = Bound::new(self.clone(), spec)?;
        Ok(if self.kind.is_http() {
            Guest::Http(HttpGuest::new(bound, options))
        } else {
            Guest::Command(CommandGuest::new(bound))
        })
    }
}

impl Guest {
    /// Program name and arguments that it was given.
    pub fn args(&self) -> &[String] {
        &self.bound().args
    }

    /// Its environment, each name once.
    pub fn env(&self) -> &Environment {
        &self.bound().around.settings
    }

    /// Its working directory.
    pub fn cwd(&self) -> Option<&str> {
        self.bound().cwd.as_deref()
    }

    /// The directories that it sees.
    pub fn preopens(&self) -> &[Preopen] {
        &self.bound().preopens
    }

    /// What it runs.
    pub fn program(&self) -> &Arc<Program> {
        &self.bound().program
    }

    /// Another program in the same surroundings, with the same limits, for one run. `None`
    /// for a program that serves requests: it runs to no end.
    pub fn beside(
        &self,
        program: &Arc<Program>,
        args: Vec<String>,
        stdio: Stdio,
    ) -> Option<CommandGuest> {
        let command = !program.kind.is_http();
        command.then(|| CommandGuest::new(self.bound().beside(program.clone(), args, stdio)))
    }

    fn bound(&self) -> &Bound {
        match self {
            Self::Http(guest) => guest.bound(),
            Self::Command(guest) => guest.bound(),
        }
    }
}

/// What every new instance of a container is made from.
pub(crate) struct Bound {
    pub(crate) program: Arc<Program>,
    pub(crate) memory: Arc<MemoryMeter>,
    pub(crate) cpu: Arc<CpuMeter>,
    pub(crate) live: Arc<AtomicU32>,
    around: Arc<Surroundings>,
    args: Vec<String>,
    cwd: Option<String>,
    preopens: Vec<Preopen>,
    /// Of a run that somebody takes part in; else there is no input, and output is logged.
    stdio: Option<Stdio>,
    /// For the one instance that runs, where output is logged.
    input: Mutex<Option<GuestInput>>,
    filesystem: WasiFilesystemCtx,
    sockets: WasiSocketsCtx,
}

impl Bound {
    fn new(program: Arc<Program>, spec: GuestSpec) -> Result<Self, PrepareError> {
        let mut builder = WasiCtxBuilder::new();
        open_dirs(&mut builder, &spec.preopens)?;
        permit_sockets(&mut builder, spec.address, spec.network.is_some());
        let mut template = builder.build();
        let variables = &program.runtime.shared.variables;
        let settings = variables.environment(spec.env);
        Ok(Self {
            program,
            memory: spec.memory,
            cpu: spec.cpu,
            live: Arc::default(),
            around: Arc::new(Surroundings {
                address: spec.address,
                network: spec.network,
                names: spec.names,
                egress: spec.egress,
                log: spec.log,
                settings,
                store: spec.store,
                told: AtomicBool::new(false),
            }),
            args: spec.args,
            cwd: spec.cwd,
            preopens: spec.preopens,
            stdio: None,
            input: Mutex::new(spec.input),
            filesystem: template.filesystem().clone(),
            sockets: template.sockets().clone(),
        })
    }

    fn beside(&self, program: Arc<Program>, args: Vec<String>, stdio: Stdio) -> Self {
        Self {
            program,
            // What it needs says nothing about what the container's own instances need.
            memory: Arc::new(MemoryMeter::new(None, Some(self.memory.clone()))),
            cpu: self.cpu.clone(),
            live: Arc::default(),
            around: self.around.clone(),
            args,
            cwd: self.cwd.clone(),
            preopens: self.preopens.clone(),
            stdio: Some(stdio),
            input: Mutex::default(),
            filesystem: self.filesystem.clone(),
            sockets: self.sockets.clone(),
        }
    }

    fn builder(&self) -> WasiCtxBuilder {
        let mut builder = WasiCtxBuilder::new();
        builder.args(&self.args);
        match &self.stdio {
            Some(stdio) => {
                if let Some(input) = stdio.take_input() {
                    builder.stdin(input);
                }
                builder
                    .stdout(stdio.output(LogStream::Stdout))
                    .stderr(stdio.output(LogStream::Stderr));
            }
            None => {
                if let Some(input) = self.input.lock().take() {
                    builder.stdin(AsyncStdinStream::new(input));
                }
                builder
                    .stdout(self.output(LogStream::Stdout))
                    .stderr(self.output(LogStream::Stderr));
            }
        }
        if let Some(cwd) = &self.cwd {
            builder.initial_cwd(cwd);
        }
        builder
    }

    fn output(&self, stream: LogStream) -> GuestOutput {
        GuestOutput::new(self.around.log.clone(), stream)
    }

    /// Directories are opened once and shared by all instances, and so is the environment
    /// (`settings::link_environment`).
    fn wasi(&self) -> WasiCtx {
        let mut wasi = self.builder().build();
        *wasi.filesystem() = self.filesystem.clone();
        *wasi.sockets() = self.sockets.clone();
        wasi
    }

    /// A store for an instance of a component.
    pub(crate) fn component_store(&self, engine: &wasmtime::Engine) -> Store<ComponentState> {
        let mut store = Store::new(
            engine,
            ComponentState {
                wasi: self.wasi(),
                table: ResourceTable::new(),
                http: WasiHttpCtx::new(),
                egress: Egress {
                    around: self.around.clone(),
                },
                limiter: Limiter::new(self.memory.clone()),
                _live: Live::new(self.live.clone()),
            },
        );
        store.limiter(|state| &mut state.limiter);
        yield_each_tick(&mut store);
        store
    }

    /// A store for an instance that serves several requests at a time. Its processor time is
    /// counted by ticks, because its tasks share one poll; a limit holds all of them back.
    pub(crate) fn concurrent_store(&self, engine: &wasmtime::Engine) -> Store<ComponentState> {
        let mut store = self.component_store(engine);
        let cpu = self.cpu.clone();
        store.epoch_deadline_callback(move |_| {
            let now = Instant::now();
            let tick = now.checked_sub(TICK).unwrap_or(now);
            Ok(match cpu.charge(tick, now) {
                Some(resume) => UpdateDeadline::YieldCustom(
                    1,
                    Box::pin(tokio::time::sleep_until(resume.into())),
                ),
                None => UpdateDeadline::Yield(1),
            })
        });
        store
    }

    /// A store for an instance of a preview-1 module.
    pub(crate) fn module_store(
        &self,
        engine: &wasmtime::Engine,
    ) -> Result<Store<ModuleState>, PrepareError> {
        let mut builder = self.builder();
        let env: Vec<_> = self.around.settings.iter().collect();
        builder.envs(&env);
        open_dirs(&mut builder, &self.preopens)?;
        let around = &self.around;
        permit_sockets(&mut builder, around.address, around.network.is_some());
        let mut store = Store::new(
            engine,
            ModuleState {
                wasi: builder.build_p1(),
                limiter: Limiter::new(self.memory.clone()),
                _live: Live::new(self.live.clone()),
            },
        );
        store.limiter(|state| &mut state.limiter);
        yield_each_tick(&mut store);
        Ok(store)
    }

    /// A line about the guest, from the host, in the guest's own log.
    pub(crate) fn note(&self, message: &str) {
        self.around.note(message);
    }

    pub(crate) fn code(&self) -> &Code {
        &self.program.code
    }
}

fn open_dirs(builder: &mut WasiCtxBuilder, preopens: &[Preopen]) -> Result<(), PrepareError> {
    for preopen in preopens {
        let perms = if preopen.read_only {
            FsPerms::ReadOnly
        } else {
            FsPerms::ReadWrite
        };
        builder
            .preopened_dir(&preopen.host, &preopen.guest, perms)
            .map_err(|error| PrepareError::Preopen {
                host: preopen.host.clone(),
                guest: preopen.guest.clone(),
                reason: error.root_cause().to_string(),
            })?;
    }
    Ok(())
}

fn permit_sockets(builder: &mut WasiCtxBuilder, address: Option<IpAddr>, own_network: bool) {
    builder
        .allow_tcp(true)
        .allow_udp(true)
        .allow_ip_name_lookup(true)
        .socket_addr_check(move |addr, used_for| {
            let permitted = own_network || socket_permitted(address, addr, used_for);
            Box::pin(async move { permitted })
        });
}

fn yield_each_tick<T>(store: &mut Store<T>) {
    store.epoch_deadline_async_yield_and_update(1);
    store.set_epoch_deadline(1);
}

/// Outgoing as any pod; listening on the pod's own address alone. The machine's loopback is
/// not the pod's: what listens there trusts local callers.
fn socket_permitted(own: Option<IpAddr>, addr: SocketAddr, used_for: SocketAddrUse) -> bool {
    let ip = addr.ip().to_canonical();
    // The pod's own address may be the machine's loopback, when it shares the machine's network.
    let machine_only = (is_machines(ip) && Some(ip) != own) || ip.is_unspecified();
    match used_for {
        // Asked with the wildcard and port 0 before a connect or send.
        SocketAddrUse::TcpBind | SocketAddrUse::UdpBind => {
            Some(ip) == own || (ip.is_unspecified() && addr.port() == 0)
        }
        SocketAddrUse::TcpListen => Some(ip) == own,
        SocketAddrUse::TcpConnect | SocketAddrUse::UdpSend => !machine_only,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets() {
        let own = Some(IpAddr::from([10, 42, 0, 7]));
        let permitted =
            |addr: &str, used_for| socket_permitted(own, addr.parse().unwrap(), used_for);
        assert!(permitted("10.42.0.7:8080", SocketAddrUse::TcpBind));
        assert!(permitted("10.42.0.7:8080", SocketAddrUse::TcpListen));
        assert!(!permitted("10.42.0.8:8080", SocketAddrUse::TcpBind));
        assert!(!permitted("0.0.0.0:8080", SocketAddrUse::TcpBind));
        assert!(permitted("0.0.0.0:0", SocketAddrUse::UdpBind));
        assert!(!permitted("0.0.0.0:0", SocketAddrUse::TcpListen));
        assert!(permitted("1.1.1.1:53", SocketAddrUse::UdpSend));
        assert!(permitted("127.10.0.3:80", SocketAddrUse::TcpConnect));
        assert!(!permitted("127.0.0.1:6443", SocketAddrUse::TcpConnect));
        assert!(!permitted(
            "[::ffff:127.0.0.1]:6443",
            SocketAddrUse::TcpConnect
        ));
        assert!(!permitted("[::1]:6443", SocketAddrUse::TcpConnect));
    }
}

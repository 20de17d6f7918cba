//! The data plane process: Wasm host, service proxy, cluster DNS and the site's place in the
//! lattice.
//!
//! [`ensure`] starts it or keeps the one that runs; [`main`] is what runs in it. It outlives
//! the control plane; SIGTERM makes it drain and end. What it serves it keeps on disk, so that
//! one that was killed serves again by itself.

use crate::config::{Layout, write_atomic};
use crate::{process, sites_server, stop};
use anyhow::{Context as _, Result, bail};
use client::connect::Agent;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, Response};
use lifecycle::{Scope, Stack};
use prometheus_client::registry::Registry;
use runtime::{PodRuntime as _, RuntimeError, SandboxId, ServiceName, ServiceTraffic};
use runtime_wasm::{Host, HostConfig, HttpEndpoint, LogLimits, Remote, Standby, Woken};
use serde::{Deserialize, Serialize};
use service_proxy::table::{Protocol, Sleeper, SleeperPort};
use service_proxy::{
    Activator, BoxError, CallError, LocalEndpoints, LocalHttp, Proxy, ProxyConfig, RequestBody,
    ResponseBody, Sleepers,
};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How long requests and connections may go on after SIGTERM.
const DRAIN: Duration = Duration::from_secs(10);
/// Connections of the proxy at once; further ones wait in the kernel.
const CONNECTIONS_MAX: usize = 16_384;
/// Before a container that was woken is tried again, first and longest.
const CONNECT_AGAIN_FIRST: Duration = Duration::from_millis(1);
const CONNECT_AGAIN_LONGEST: Duration = Duration::from_millis(50);
/// How long a new data plane may take to answer.
const START_DEADLINE: Duration = Duration::from_secs(10);
/// Before a data plane that ended is started again, first and longest.
const RESTART_FIRST: Duration = Duration::from_millis(20);
const RESTART_LONGEST: Duration = Duration::from_secs(10);
/// One that ran this long is no crash loop.
const RESTART_CALM: Duration = Duration::from_secs(10);

/// What the process is told, by a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Of the program that wrote it.
    pub version: String,
    pub socket: PathBuf,
    /// Where the process of container pods answers, if there is one.
    pub supervisor_socket: PathBuf,
    pub pid_file: PathBuf,
    pub images: PathBuf,
    /// What it must know to serve again without being told: Services, sandboxes.
    pub state: PathBuf,
    pub kubeconfig: PathBuf,
    pub node_name: String,
    pub node_port_addresses: Vec<IpAddr>,
    pub dns: SocketAddr,
    /// Nothing on a node that has joined: the site's first node speaks for it.
    pub sites: Option<sites_server::Config>,
}

/// Starts the data plane, or keeps the one that runs with this configuration.
pub fn ensure(layout: &Layout, config: &Config) -> Result<()> {
    let path = layout.dataplane_config();
    let bytes = serde_json::to_vec_pretty(config).context("encode data plane configuration")?;
    if process::running(&layout.dataplane_pid()).is_some() {
        if std::fs::read(&path).is_ok_and(|was| was == bytes) {
            return Ok(());
        }
        tracing::warn!(
            "the data plane runs with another configuration or version: it is restarted"
        );
        stop::end_dataplane(layout)?;
    }
    write_atomic(&path, &bytes, 0o600)?;
    process::spawn_dataplane(layout).map(drop)
}

/// Starts the data plane again whenever it ends; the node agent then makes its pods anew.
async fn keep_running(layout: Layout) {
    let mut pid = process::running(&layout.dataplane_pid());
    let mut delay = RESTART_FIRST;
    loop {
        let since = Instant::now();
        if let Some(pid) = pid {
            if let Err(error) = process::ended(pid).await {
                tracing::error!(%error, "watch data plane: it is not started again if it ends");
                return;
            }
            tracing::error!(log = %layout.dataplane_log().display(), "the data plane ended; starting it again");
        }
        delay = if since.elapsed() > RESTART_CALM {
            RESTART_FIRST
        } else {
            (delay * 2).min(RESTART_LONGEST)
        };
        tokio::time::sleep(delay).await;
        pid = match process::spawn_dataplane(&layout) {
            Ok(pid) => Some(pid),
            Err(error) => {
                tracing::error!("{error:#}");
                None
            }
        };
    }
}

/// The agent's side of the socket, once the data plane answers. From then on it is started
/// again when it ends.
pub async fn connect(layout: &Layout, stack: &mut Stack) -> Result<Remote> {
    let scope = Scope::new();
    let remote = runtime_wasm::connect(&layout.dataplane_socket(), &scope);
    stack.push(
        "data plane connection",
        Duration::from_secs(1),
        move || async move { scope.close().await },
    );
    let answered = tokio::time::timeout(START_DEADLINE, async {
        while runtime::PodRuntime::sandboxes(&remote).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    if answered.await.is_err() {
        bail!(
            "start data plane: no answer; see {}",
            layout.dataplane_log().display()
        );
    }
    let watch = Scope::new();
    watch.spawn_cancellable(keep_running(layout.clone()));
    stack.push(
        "data plane watch",
        Duration::from_secs(1),
        move || async move { watch.close().await },
    );
    Ok(remote)
}

/// `salp dataplane`.
pub fn main(config: &Path) -> Result<ExitCode> {
    let bytes = std::fs::read(config).with_context(|| format!("read {}", config.display()))?;
    let config: Config =
        serde_json::from_slice(&bytes).with_context(|| format!("read {}", config.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start runtime")?;
    let result = runtime.block_on(serve(config));
    runtime.shutdown_timeout(Duration::from_millis(200));
    result.map(|()| ExitCode::SUCCESS)
}

async fn serve(config: Config) -> Result<()> {
    let mut terminated = signal(SignalKind::terminate()).context("watch signals")?;
    // Ctrl-C in the terminal is for `salp up`, which says what is to happen here.
    let mut interrupted = signal(SignalKind::interrupt()).context("watch signals")?;
    write_atomic(
        &config.pid_file,
        std::process::id().to_string().as_bytes(),
        0o600,
    )?;
    let (host_scope, proxy_scope) = (Scope::new(), Scope::new());
    let images = images::ImageStore::open(&config.images).context("open images")?;
    let host = Host::start(
        HostConfig {
            socket: Some(config.socket.clone()),
            compiled_dir: images.compiled_dir(),
            kept_dir: Some(config.state.join("sandboxes")),
            log_limits: LogLimits::default(),
            dns: Some(config.dns),
        },
        &host_scope,
    )
    .await
    .context("start Wasm host")?;
    let client = client::connect::from_kubeconfig_as(&config.kubeconfig, Agent("kube-proxy"))
        .await
        .context("connect to API server")?;
    let recorder = client::EventRecorder::new(
        client.clone(),
        "service-proxy",
        &config.node_name,
        client::Clock::system(),
        &proxy_scope,
    );
    let informers = client::Informers::new(client, &proxy_scope);
    let services = informers.get();
    let proxy = Proxy::start(
        ProxyConfig {
            informers,
            local: Arc::new(Guests(host.clone())),
            activator: Arc::new(Standbys::follow(
                host.clone(),
                config.supervisor_socket,
                &proxy_scope,
            )),
            node_name: config.node_name.clone(),
            node_port_addresses: config.node_port_addresses.clone(),
            dns: Some(service_proxy::dns::DnsConfig {
                address: config.dns,
                domain: "cluster.local".to_owned(),
                upstreams: None,
            }),
            checkpoint: Some(config.state.join("services")),
            connections_max: CONNECTIONS_MAX,
            drain: DRAIN,
        },
        &proxy_scope,
    );
    host.set_traffic(Arc::new(Carried(proxy.clone())));
    proxy_scope.spawn_cancellable(tell_bind_failures(proxy.failures(), services, recorder));
    let sites_scope = Scope::new();
    let body = config
        .sites
        .map(|sites| sites_server::start(sites, &sites_scope));
    let body = body.transpose()?;
    tracing::info!(socket = %config.socket.display(), "data plane is ready");
    loop {
        tokio::select! {
            _ = terminated.recv() => break,
            _ = interrupted.recv() => {}
        }
    }
    // First the other sites hear of it, and ask here no more.
    if let Some(body) = body {
        body.leave().await;
    }
    sites_scope.close().await;
    drop(proxy);
    if let Err(left) = proxy_scope.close_within(DRAIN).await {
        tracing::error!(left, "stop service proxy: tasks still run");
    }
    host.stop(u64::try_from(DRAIN.as_millis()).unwrap_or(u64::MAX))
        .await;
    if let Err(left) = host_scope.close_within(DRAIN).await {
        tracing::error!(left, "stop Wasm host: tasks still run");
    }
    // Only its own: another may have started meanwhile.
    let own = std::process::id().to_string();
    if std::fs::read_to_string(&config.pid_file).is_ok_and(|pid| pid == own) {
        std::fs::remove_file(&config.pid_file).context("remove pid file")?;
    }
    Ok(())
}

/// Tells of each address that a Service can't be had at, once, by an event on the Service.
/// (What is no Service is in the log alone.)
async fn tell_bind_failures(
    mut failures: tokio::sync::watch::Receiver<Vec<service_proxy::BindFailure>>,
    services: client::Informer<client::k8s_openapi::api::core::v1::Service>,
    recorder: client::EventRecorder,
) {
    let mut told = std::collections::HashSet::new();
    while failures.changed().await.is_ok() {
        let current = failures.borrow_and_update().clone();
        told.retain(|known| current.iter().any(|f| f.address == *known));
        for failure in current {
            if told.insert(failure.address)
                && let Some(service) = services.get(&failure.namespace, &failure.service)
            {
                let about = client::events::reference(&*service);
                let kind = client::EventType::Warning;
                recorder.record(about, kind, "FailedListen", &failure.message);
            }
        }
    }
}

/// The Wasm host's HTTP guests as the proxy's local endpoints.
struct Guests(Host);

impl LocalEndpoints for Guests {
    fn http(&self, address: SocketAddr) -> Option<Arc<dyn LocalHttp>> {
        let endpoint = self.0.http_endpoint(address)?;
        (!endpoint.is_gone()).then(|| Arc::new(Guest(endpoint)) as Arc<dyn LocalHttp>)
    }
}

/// The sandboxes on standby as the proxy's sleepers: the Wasm host's own, and those that it knows
/// of whose containers the supervisor has.
struct Standbys {
    host: Host,
    sleepers: watch::Receiver<Sleepers>,
    supervisor: Arc<Supervisor>,
}

/// The supervisor, connected to when there is something to wake.
struct Supervisor {
    socket: PathBuf,
    scope: Scope,
    remote: OnceLock<Remote>,
}

impl Supervisor {
    /// Has it start what stands by, and waits until that takes connections.
    async fn wake(&self, id: &SandboxId, address: SocketAddr) -> Result<(), RuntimeError> {
        let connect = || runtime_oci::connect(&self.socket, &self.scope);
        self.remote.get_or_init(connect).wake(id).await?;
        let mut wait = CONNECT_AGAIN_FIRST;
        // As long as the request is held.
        while let Err(error) = TcpStream::connect(address).await {
            tracing::trace!(%address, %error, "a container that was woken does not listen yet");
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(CONNECT_AGAIN_LONGEST);
        }
        Ok(())
    }
}

impl Standbys {
    fn follow(host: Host, supervisor: PathBuf, scope: &Scope) -> Self {
        let mut standbys = host.standbys();
        // Before the proxy reads what it served last: those of a host that was killed are here.
        let mut known = standbys.borrow_and_update().clone();
        let (told, sleepers) = watch::channel(sleepers(&[], &[], &known));
        scope.spawn_cancellable(async move {
            while standbys.changed().await.is_ok() {
                let now = standbys.borrow_and_update().clone();
                told.send_modify(|list| *list = self::sleepers(&known, list, &now));
                known = now;
            }
        });
        let supervisor = Arc::new(Supervisor {
            socket: supervisor,
            scope: scope.clone(),
            remote: OnceLock::new(),
        });
        Self {
            host,
            sleepers,
            supervisor,
        }
    }
}

/// The sleepers that those on standby are; `list` is what it was of those `known`, and what has
/// not changed is the same there. Both are by id.
fn sleepers(known: &[Arc<Standby>], list: &[Arc<Sleeper>], now: &[Arc<Standby>]) -> Sleepers {
    let mut before = known.iter().zip(list).peekable();
    let of = |standby: &Arc<Standby>| {
        while before.next_if(|(was, _)| was.id < standby.id).is_some() {}
        match before.next_if(|(was, _)| Arc::ptr_eq(was, standby)) {
            Some((_, sleeper)) => sleeper.clone(),
            None => Arc::new(sleeper(standby)),
        }
    };
    Arc::new(now.iter().map(of).collect())
}

fn sleeper(standby: &Standby) -> Sleeper {
    let ports = standby.ports.iter().filter_map(|port| {
        let protocol = match port.protocol.as_str() {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            _ => return None,
        };
        Some(SleeperPort {
            name: port.name.clone(),
            number: port.number,
            protocol,
        })
    });
    Sleeper {
        namespace: standby.namespace.clone(),
        labels: standby.labels.clone(),
        ip: standby.ip,
        ports: ports.collect(),
        http: standby.http,
    }
}

impl Activator for Standbys {
    fn sleepers(&self) -> watch::Receiver<Sleepers> {
        self.sleepers.clone()
    }

    fn wake(&self, address: SocketAddr) -> BoxFuture<'static, Result<(), BoxError>> {
        let (host, supervisor) = (self.host.clone(), self.supervisor.clone());
        async move {
            let woken = match host.wake_at(address.ip()) {
                Ok(Woken::Here) => Ok(()),
                Ok(Woken::Elsewhere(id)) => supervisor.wake(&id, address).await,
                Err(error) => Err(error),
            };
            if let Err(error) = &woken {
                tracing::warn!(%address, %error, "a pod on standby can't be woken");
            }
            woken.map_err(BoxError::from)
        }
        .boxed()
    }
}

/// What the proxy counts, for the agent.
struct Carried(Proxy);

#[async_trait::async_trait]
impl runtime::Traffic for Carried {
    async fn traffic(&self, services: &[ServiceName]) -> Result<Vec<ServiceTraffic>, RuntimeError> {
        let keys = services
            .iter()
            .map(|s| client::ObjectKey::new(&s.namespace, &s.name));
        let carried = self.0.traffic(&keys.collect::<Vec<_>>());
        Ok(carried
            .iter()
            .map(|traffic| ServiceTraffic {
                carried: traffic.carried,
                under_way: traffic.under_way as u64,
            })
            .collect())
    }

    async fn metrics(&self) -> Result<String, RuntimeError> {
        let mut registry = Registry::default();
        self.0.metrics().register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)
            .map_err(|error| RuntimeError::Unavailable(error.to_string()))?;
        Ok(text)
    }
}

struct Guest(Arc<HttpEndpoint>);

impl LocalHttp for Guest {
    fn call(
        &self,
        request: Request<RequestBody>,
    ) -> BoxFuture<'static, Result<Response<ResponseBody>, CallError>> {
        let endpoint = self.0.clone();
        async move {
            match endpoint.try_call(request).await {
                Ok(response) => Ok(response.map(ResponseBody::new)),
                Err(request) => Err(CallError::Gone(Some(Box::new(request)))),
            }
        }
        .boxed()
    }

    fn in_flight(&self) -> usize {
        self.0.in_flight()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleepers_that_stay_are_the_same() {
        let standby = |id: &str, port: u16| {
            Arc::new(Standby {
                id: runtime::SandboxId(id.to_owned()),
                namespace: "d".to_owned(),
                labels: [("app".to_owned(), id.to_owned())].into(),
                ip: [10, 42, 0, 2].into(),
                ports: vec![runtime::Port {
                    name: String::new(),
                    number: port,
                    protocol: "TCP".to_owned(),
                }],
                http: true,
            })
        };
        let known = vec![standby("a", 1), standby("b", 1), standby("d", 1)];
        let list = sleepers(&[], &[], &known);
        let now = vec![
            standby("c", 1),
            known[1].clone(),
            standby("d", 2),
            standby("e", 1),
        ];
        let mut now = now;
        now.sort_by(|a, b| a.id.cmp(&b.id));
        let then = sleepers(&known, &list, &now);
        let shown: Vec<_> = then
            .iter()
            .map(|s| (s.labels["app"].as_str(), s.ports[0].number))
            .collect();
        assert_eq!(shown, [("b", 1), ("c", 1), ("d", 2), ("e", 1)]);
        assert!(Arc::ptr_eq(&then[0], &list[1]));
    }
}

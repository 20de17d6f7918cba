//! `salp up`: brings a site to life, part by part, and stops it in reverse.

use crate::api_access::Access;
use crate::cli::UpArgs;
use crate::config::{self, Layout, Site as SiteConfig};
use crate::output::{self, Phases};
use crate::site::Site;
use crate::{dataplane, manifests, pki, process, site, stop};
use anyhow::{Context as _, Result, bail};
use lifecycle::{Scope, Stack};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How long a part may take to stop before it is named and left.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// How long `up -f` waits for a URL to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// First port tried for the kubelet API.
const KUBELET_PORT: u16 = 10_250;

/// Why the site stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// Ctrl-C: everything.
    Everything,
    /// SIGTERM: this process; the data plane goes on serving the pods.
    ControlPlane,
}

/// `salp up`.
pub fn up(args: UpArgs) -> Result<ExitCode> {
    let config = config::site(&args)?;
    let objects = manifests::read(&args.filename)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start runtime")?;
    let result = runtime.block_on(serve(config, &args.filename, objects));
    // Threads that are still reading a file are not worth waiting for.
    runtime.shutdown_timeout(Duration::from_millis(200));
    result.map(|()| ExitCode::SUCCESS)
}

async fn serve(
    config: SiteConfig,
    files: &[std::path::PathBuf],
    objects: Vec<serde_json::Value>,
) -> Result<()> {
    let mut interrupted = signal(SignalKind::interrupt()).context("watch signals")?;
    let mut terminated = signal(SignalKind::terminate()).context("watch signals")?;
    let layout = Layout::new(&config.data_dir);
    let mut stack = Stack::new();
    let mut phases = Phases::new();
    let started = tokio::select! {
        started = start(&config, &layout, &mut phases, &mut stack) => started,
        _ = interrupted.recv() => Err(anyhow::anyhow!("start site: interrupted")),
        _ = terminated.recv() => Err(anyhow::anyhow!("start site: terminated")),
    };
    let running = match started {
        Ok(running) => running,
        Err(error) => {
            phases.clear();
            stack.stop().await;
            return Err(error);
        }
    };
    let took = phases.finish();
    usage(&layout, &config);
    let wait_for_stop = async {
        tokio::select! {
            _ = interrupted.recv() => Stop::Everything,
            _ = terminated.recv() => Stop::ControlPlane,
        }
    };
    tokio::pin!(wait_for_stop);
    let stop = {
        let applied = apply_and_wait(&running, &config, files, objects);
        tokio::pin!(applied);
        tokio::select! {
            stop = &mut wait_for_stop => Some(stop),
            applied = &mut applied => {
                // A manifest that is refused is no reason to take a site down.
                if let Err(error) = applied {
                    output::error(&error);
                }
                None
            }
        }
    };
    let stop = match stop {
        Some(stop) => stop,
        None => {
            output::line(format!("Ready in {} ms. Ctrl-C stops the site.", took.as_millis()));
            wait_for_stop.await
        }
    };
    finish(stop, running, stack, &layout).await
}

/// What the rest of `up` needs of a started site.
struct Running {
    client: kube::Client,
    node: node::Node,
    /// Held until the end.
    _lock: process::Lock,
    _claim: site::Claim,
}

async fn start(
    config: &SiteConfig,
    layout: &Layout,
    phases: &mut Phases,
    stack: &mut Stack,
) -> Result<Running> {
    phases.begin("certificates");
    layout.create()?;
    let lock = process::lock(layout)?;
    let api_listener = listen_api(config)?;
    let (kubelet_listener, kubelet_address) = listen_kubelet(config)?;
    let (site, claim) = site::load_or_create(layout).await?;
    let node_ip = node_ip(config.bind_address)?;
    let addresses = vec![
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        node_ip,
        IpAddr::V4(site.api_service()),
    ];
    let reached = pki::Reached { node_name: config.node_name.clone(), addresses };
    let pki = {
        let layout = layout.clone();
        tokio::task::spawn_blocking(move || pki::load_or_create(&layout, &reached))
            .await
            .context("make certificates")??
    };
    let api_port = api_listener.local_addr().context("read API address")?.port();
    let server = format!("https://{}:{api_port}", local(config.bind_address));
    pki::write_kubeconfig(&layout.kubeconfig(), &server, &pki.ca_pem, "salp-admin", &pki.admin)?;
    let proxy_kubeconfig = layout.run().join("proxy.kubeconfig");
    pki::write_kubeconfig(&proxy_kubeconfig, &server, &pki.ca_pem, "salp-proxy", &pki.proxy)?;
    // Begins early: it needs nothing of what follows but the files above.
    let dataplane_config = dataplane::Config {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        socket: layout.dataplane_socket(),
        pid_file: layout.dataplane_pid(),
        images: layout.images(),
        state: layout.root.join("dataplane"),
        kubeconfig: proxy_kubeconfig,
        node_name: config.node_name.clone(),
        node_port_addresses: vec![config.bind_address],
        dns: SocketAddr::new(IpAddr::V4(site.dns()), 53),
        service_network: site.service_network,
        pod_network: site.pod_network,
    };
    dataplane::ensure(layout, &dataplane_config)?;

    phases.begin("store");
    let store = {
        let path = layout.store();
        let opened = tokio::task::spawn_blocking(move || store::embedded::EmbeddedStore::open(&path));
        Arc::new(opened.await.context("open store")??)
    };
    {
        let store = store.clone();
        stack.push("store", STOP_DEADLINE, move || async move {
            if let Err(error) = store::Store::close(&*store).await {
                tracing::error!(%error, "close store");
            }
        });
    }

    phases.begin("API server");
    let advertise = SocketAddr::new(node_ip, api_port);
    let server = start_apiserver(store, api_listener, &pki, &site, advertise, stack).await?;
    let client_for = |user: &str, groups: &[&str]| client::connect::from_service(server.service(user, groups));
    let system = client_for("system:salp", &["system:masters"]);

    phases.begin("controllers");
    let informers = start_control(&system, &pki, stack);

    phases.begin("data plane");
    let remote = dataplane::connect(layout).await?;

    phases.begin("node");
    let node = start_node(
        NodeParts { config, layout, site: &site, pki: &pki, node_ip, kubelet_listener, kubelet_address },
        informers,
        remote,
        stack,
    )
    .await?;
    Ok(Running { client: system, node, _lock: lock, _claim: claim })
}

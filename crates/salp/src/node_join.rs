//! `salp node join|leave`: this machine as a node of a site that runs elsewhere: the agent
//! and a data plane of its own, and no control plane.

use crate::api_access::{self, Access, block_on};
use crate::cli::{DataDir, NodeFlags};
use crate::config::{self, Layout, Site as SiteConfig};
use crate::node_credentials::{self, Invitation};
use crate::node_place::place;
use crate::node_start::{self, NodeParts};
use crate::output::{self, Phases};
use crate::shutdown::{self, Signals, Stop};
use crate::site::{self, Site};
use crate::up;
use crate::{dataplane, node_rights, node_routes, process, servers, stop};
use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use client::connect::Agent;
use k8s_openapi::api::core::v1::Node;
use lifecycle::{Scope, Stack};
use rustix::process::Signal;
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// How long a part may take to stop before it is named and left.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// How long pods have to move when a node leaves.
const DRAIN_DEADLINE: Duration = Duration::from_secs(120);

/// What `salp node` can do.
#[derive(Clone, Debug, Subcommand)]
pub enum NodeCommand {
    /// Run this machine as a node of a site that was started elsewhere with `salp up`.
    #[command(
        after_help = "Examples:\n  salp node join --server https://192.0.2.1:6443 --token abcdef.0123456789abcdef --ca-hash sha256:1a2b\n  salp node join --kubeconfig bootstrap.kubeconfig\n  salp node join"
    )]
    Join(Box<JoinArgs>),
    /// Move this node's pods to others, delete its Node and stop.
    #[command(after_help = "Examples:\n  salp node leave\n  salp node leave --data-dir ./node-2")]
    Leave(DataDir),
}

/// Flags of `salp node`.
#[derive(Clone, Debug, Args)]
pub struct NodeArgs {
    #[command(subcommand)]
    pub command: NodeCommand,
}

/// Flags of `salp node join`; `salp token create` prints the first three.
#[derive(Clone, Debug, Args)]
pub struct JoinArgs {
    #[command(flatten)]
    pub data_dir: DataDir,
    /// The site's API server.
    #[arg(long, env = "SALP_SERVER", value_name = "URL", requires_all = ["token", "ca_hash"])]
    pub server: Option<String>,
    /// A bootstrap token; needed the first time only.
    #[arg(long, env = "SALP_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Hash of the site's CA: `sha256:` and 64 digits.
    #[arg(long, env = "SALP_CA_HASH", value_name = "HASH")]
    pub ca_hash: Option<String>,
    /// Joins the Kubernetes that this file names; its user asks for the node's first certificate.
    #[arg(long, env = "SALP_BOOTSTRAP_KUBECONFIG", value_name = "FILE", conflicts_with_all = ["server", "token", "ca_hash"])]
    pub kubeconfig: Option<PathBuf>,
    /// Address by which other machines of the site reach this one [default: that of the default route].
    #[arg(long, env = "SALP_NODE_IP", value_name = "IP")]
    pub node_ip: Option<IpAddr>,
    #[command(flatten)]
    pub node: NodeFlags,
}

/// `salp node`.
pub fn node(args: NodeArgs) -> Result<ExitCode> {
    match args.command {
        NodeCommand::Join(args) => join(*args),
        NodeCommand::Leave(dir) => leave(&config::data_dir(&dir)?),
    }
}

fn join(args: JoinArgs) -> Result<ExitCode> {
    let invitation = match (&args.server, &args.token, &args.ca_hash) {
        (Some(server), Some(token), Some(hash)) => Some(Invitation::Token {
            server: server.trim_end_matches('/').to_owned(),
            token: token.clone(),
            ca_hash: hash.clone(),
        }),
        _ => args.kubeconfig.map(Invitation::Kubeconfig),
    };
    let config = config::site(&crate::cli::UpArgs {
        data_dir: args.data_dir,
        config: None,
        api_port: None,
        bind_address: args.node_ip,
        filename: Vec::new(),
        disable: Vec::new(),
        node: args.node,
        store: crate::store_commands::StoreArgs::default(),
        api: crate::api_args::ApiArgs::default(),
        lattice: crate::cli::LatticeArgs::default(),
    })?;
    let config = SiteConfig {
        bind_address: args.node_ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        ..config
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start runtime")?;
    let result = runtime.block_on(serve(config, invitation));
    runtime.shutdown_timeout(Duration::from_millis(200));
    result.map(|()| ExitCode::SUCCESS)
}

async fn serve(config: SiteConfig, invitation: Option<Invitation>) -> Result<()> {
    let mut signals = Signals::watch(!config.shutdown_grace.total.is_zero())?;
    let layout = Layout::new(&config.data_dir);
    let mut stack = Stack::new();
    let mut phases = Phases::new();
    let started = tokio::select! {
        started = start(&config, &layout, invitation, &mut phases, &mut stack) => started,
        stop = signals.next() => Err(match stop {
            Stop::Everything => anyhow::anyhow!("join: interrupted"),
            Stop::Process | Stop::Machine => anyhow::anyhow!("join: terminated"),
        }),
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
    output::line(format!(
        "Node {} runs; ready in {} ms. Ctrl-C stops it and its pods; `salp node leave` moves them first.",
        config.node_name,
        took.as_millis()
    ));
    let stop = signals.next().await;
    shutdown::end_pods(stop, &running.node, config.shutdown_grace).await;
    for laggard in stack.stop().await {
        tracing::error!("{laggard}");
    }
    if stop != Stop::Process {
        let ended = layout.clone();
        tokio::task::spawn_blocking(move || stop::end_pods(&ended))
            .await
            .context("stop data plane")??;
        site::clear(&layout).await?;
    }
    Ok(())
}

struct Running {
    node: Arc<node::Node>,
    /// Held until the end.
    _lock: process::Lock,
    _claim: site::Claim,
}

async fn start(
    config: &SiteConfig,
    layout: &Layout,
    invitation: Option<Invitation>,
    phases: &mut Phases,
    stack: &mut Stack,
) -> Result<Running> {
    phases.begin("certificates");
    layout.create()?;
    let lock = process::lock(layout)?;
    let node_ip = up::node_ip(config.bind_address)?;
    if node_ip.is_loopback() {
        bail!("join: other machines can't reach {node_ip}: give this one's address with --node-ip");
    }
    let kubelet_listener = node_start::listen_kubelet(config)?;
    let name = &config.node_name;
    let credentials = node_credentials::obtain(layout, name, invitation.as_ref()).await?;
    let kubeconfig = node_credentials::kubeconfig(layout);
    let client = client::connect::from_kubeconfig_as(&kubeconfig, Agent("kubelet")).await?;
    phases.begin("data plane");
    // Beside it the certificate to serve with, which takes as long.
    let by_kubeconfig = matches!(invitation, Some(Invitation::Kubeconfig(_)));
    let wait = if matches!(invitation, Some(Invitation::Token { .. })) {
        node_credentials::SERVING_WAIT
    } else {
        Duration::ZERO
    };
    let (serving, (site, claim, remote)) = tokio::try_join!(
        node_credentials::serving(layout, name, node_ip, wait),
        Box::pin(serve_pods(
            layout,
            &client,
            config,
            by_kubeconfig,
            node_ip,
            stack
        )),
    )?;

    phases.begin("node");
    let images = node_start::open_images(config, layout).await?;
    let scope = Scope::new();
    let informers = client::Informers::new(client.clone(), &scope);
    scope.spawn_cancellable(node_routes::run(informers.get(), name.clone()));
    scope.spawn_cancellable(node_rights::warn_of_missing(client.clone()));
    let (kept, node) = (layout.clone(), name.clone());
    scope.spawn_cancellable(servers::follow(
        layout.clone(),
        informers.clone(),
        move || node_credentials::name_servers(&kept, &node),
    ));
    stack.push("informers", STOP_DEADLINE, move || async move {
        scope.close().await;
    });
    let parts = NodeParts {
        config,
        layout,
        site: &site,
        serving: &serving,
        ca_pem: &credentials.ca_pem,
        node_ip,
        kubelet_listener,
        images,
        // Deployments are scaled by the node beside the control plane.
        sleeper: None,
        shares_pods: false,
    };
    let node = node_start::start_node(parts, client, informers, remote, stack).await?;
    let scope = Scope::new();
    let renewed = node_credentials::Renewed {
        layout: layout.clone(),
        name: name.clone(),
        address: node_ip,
        node: node.clone(),
    };
    scope.spawn_cancellable(renewed.keep_fresh());
    stack.push("certificates", STOP_DEADLINE, move || async move {
        scope.close().await;
    });
    Ok(Running {
        node,
        _lock: lock,
        _claim: claim,
    })
}

/// Settles the node's addresses, and starts the data plane or finds it.
async fn serve_pods(
    layout: &Layout,
    client: &kube::Client,
    config: &SiteConfig,
    by_kubeconfig: bool,
    node_ip: IpAddr,
    stack: &mut Stack,
) -> Result<(Site, site::Claim, runtime_wasm::Remote)> {
    let (site, claim) = place(layout, client, config, by_kubeconfig).await?;
    let kubeconfig = node_credentials::kubeconfig(layout);
    let dataplane_config = node_start::dataplane_config(config, layout, &site, kubeconfig, node_ip);
    dataplane::ensure(layout, &dataplane_config)?;
    let remote = dataplane::connect(layout, stack).await?;
    Ok((site, claim, remote))
}

/// `salp node leave`.
fn leave(data_dir: &std::path::Path) -> Result<ExitCode> {
    let layout = Layout::new(data_dir);
    let kubeconfig = node_credentials::kubeconfig(&layout);
    if !kubeconfig.exists() {
        bail!(
            "leave: {} is no node's directory: give its --data-dir",
            data_dir.display()
        );
    }
    block_on(async {
        let user = kube::config::Kubeconfig::read_from(&kubeconfig)
            .context("read node's kubeconfig")?
            .auth_infos
            .into_iter()
            .next()
            .map(|u| u.name)
            .unwrap_or_default();
        let name = user.trim_start_matches("system:node:").to_owned();
        let access = Access {
            client: client::connect::from_kubeconfig_as(&kubeconfig, Agent("kubelet")).await?,
            namespace: "default".to_owned(),
        };
        let nodes: kube::Api<Node> = kube::Api::all(access.client.clone());
        // Somebody may have deleted it.
        let is_there = nodes.get_opt(&name).await.context("read node")?.is_some();
        if is_there {
            drain(&access, &name).await?;
        }
        // First, or it would register again.
        if let Some(pid) = process::lock_holder(&layout) {
            process::end(pid, Signal::TERM, STOP_DEADLINE)?;
        }
        if is_there {
            delete_node(&access, &name).await?;
        }
        anyhow::Ok(())
    })?;
    stop::end_pods(&layout)?;
    block_on(site::clear(&layout))?;
    for path in node_credentials::files(&layout) {
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("remove {}", path.display()));
            }
            _ => {}
        }
    }
    let _ = std::fs::remove_file(layout.site_file());
    Ok(ExitCode::SUCCESS)
}

/// Deletes this machine's Node. One that others gave taints or labels is not the node's own to
/// delete: it could come again without them.
async fn delete_node(access: &Access, name: &str) -> Result<()> {
    let request = http::Request::delete(format!("/api/v1/nodes/{name}"))
        .body(Vec::new())
        .context("make request")?;
    match access.client.request::<serde_json::Value>(request).await {
        Ok(_) => output::note(format!("deleted node {name}")),
        Err(kube::Error::Api(status)) if status.code == 403 => output::note(format!(
            "{}; delete it with `kubectl delete node {name}`",
            status.message
        )),
        Err(error) => {
            return Err(api_access::explain(error)).with_context(|| format!("delete node {name}"));
        }
    }
    Ok(())
}

/// Lets nothing new come and everything that is there go.
async fn drain(access: &Access, node: &str) -> Result<()> {
    let cordon = json!({"spec": {"unschedulable": true}});
    let body = serde_json::to_vec(&cordon).context("encode patch")?;
    access
        .send(
            "PATCH",
            &format!("/api/v1/nodes/{node}"),
            "application/merge-patch+json",
            body,
        )
        .await
        .with_context(|| format!("cordon node {node}"))?;
    let list = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}");
    let deadline = tokio::time::Instant::now() + DRAIN_DEADLINE;
    loop {
        let pods = access.get(&list).await.context("list pods")?;
        let pods: Vec<_> = pods["items"].as_array().cloned().unwrap_or_default();
        if pods.is_empty() {
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            bail!(
                "drain node {node}: {} pods do not end; see `kubectl get pods -A --field-selector spec.nodeName={node}`",
                pods.len()
            );
        }
        for pod in pods {
            let meta = &pod["metadata"];
            if !meta["deletionTimestamp"].is_null() {
                continue;
            }
            let (name, namespace) = (&meta["name"], &meta["namespace"]);
            let eviction = json!({
                "apiVersion": "policy/v1", "kind": "Eviction",
                "metadata": {"name": name, "namespace": namespace},
            });
            let path = format!(
                "/api/v1/namespaces/{}/pods/{}/eviction",
                namespace.as_str().unwrap_or_default(),
                name.as_str().unwrap_or_default()
            );
            // A budget may refuse for now, and the pod may have gone by itself.
            if let Err(error) = access.post(&path, &eviction).await {
                tracing::debug!("evict: {error:#}");
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

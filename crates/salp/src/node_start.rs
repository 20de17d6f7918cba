//! The node agent: beside the control plane in `salp up`, alone in `salp node join`.

use crate::config::{Layout, Site as SiteConfig};
use crate::image_commands::registry_config;
use crate::output::Phases;
use crate::site::Site;
use crate::{dataplane, image_collection, pki, supervisor};
use anyhow::{Context as _, Result};
use client::connect::Agent;
use lifecycle::{Scope, Stack};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long it may take to stop before it is named and left.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// First port tried for the kubelet API.
const KUBELET_PORT: u16 = 10_250;

/// Listens for the kubelet API: the port asked for, else 10250, else any.
pub fn listen_kubelet(config: &SiteConfig) -> Result<TcpListener> {
    let bind = |port| TcpListener::bind(SocketAddr::new(config.bind_address, port));
    match config.kubelet_port {
        Some(port) => bind(port)
            .with_context(|| format!("listen on port {port}: choose another with --kubelet-port")),
        None => bind(KUBELET_PORT)
            .or_else(|_| bind(0))
            .context("listen for the kubelet API"),
    }
}

/// What the node of `salp up` is given by what started before it.
pub struct Beside<'a> {
    pub config: &'a SiteConfig,
    pub layout: &'a Layout,
    pub site: &'a Site,
    pub pki: &'a pki::Pki,
    pub node_ip: IpAddr,
    pub kubelet_listener: TcpListener,
    pub server: &'a apiserver::ApiServer,
    pub informers: client::Informers,
}

/// Starts the node beside the control plane, once the data plane answers.
pub async fn start_beside(
    beside: Beside<'_>,
    phases: &mut Phases,
    stack: &mut Stack,
) -> Result<(Arc<node::Node>, images::ImageStore)> {
    let (config, layout, server) = (beside.config, beside.layout, beside.server);
    phases.begin("data plane");
    let remote = dataplane::connect(layout, stack).await?;
    phases.begin("node");
    let images = open_images(config, layout).await?;
    let user = format!("system:node:{}", config.node_name);
    let service = server.service(&user, &["system:nodes"]);
    let kubelet = client::connect::from_service_as(service, Agent("kubelet"));
    let service = server.service("system:salp-sleep", &[]);
    let sleeper = client::connect::from_service_as(service, Agent("salp-sleep"));
    let parts = NodeParts {
        config,
        layout,
        site: beside.site,
        serving: &beside.pki.kubelet,
        ca_pem: &beside.pki.ca_pem,
        node_ip: beside.node_ip,
        kubelet_listener: beside.kubelet_listener,
        images: images.clone(),
        sleeper: Some(sleeper),
        shares_pods: true,
    };
    let node = start_node(parts, kubelet, beside.informers, remote, stack).await?;
    Ok((node, images))
}

/// What a data plane is told: where its files are, as whom it follows Services, and where its node
/// ports are.
pub fn dataplane_config(
    config: &SiteConfig,
    layout: &Layout,
    site: &Site,
    kubeconfig: PathBuf,
    node_ports_at: IpAddr,
) -> dataplane::Config {
    dataplane::Config {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        socket: layout.dataplane_socket(),
        supervisor_socket: layout.supervisor_socket(),
        pid_file: layout.dataplane_pid(),
        images: layout.images(),
        state: layout.dataplane_state(),
        kubeconfig,
        node_name: config.node_name.clone(),
        node_port_addresses: vec![node_ports_at],
        dns: SocketAddr::new(IpAddr::V4(site.dns()), site.ports().dns),
        sites: None,
    }
}

/// What the node agent is made of.
pub struct NodeParts<'a> {
    pub config: &'a SiteConfig,
    pub layout: &'a Layout,
    pub site: &'a Site,
    /// What the kubelet API is served with.
    pub serving: &'a pki::Pair,
    pub ca_pem: &'a str,
    pub node_ip: IpAddr,
    pub kubelet_listener: TcpListener,
    pub images: images::ImageStore,
    /// Scales Deployments to zero and back, where that is this node's to do.
    pub sleeper: Option<kube::Client>,
    /// The process watches all pods anyway.
    pub shares_pods: bool,
}

pub async fn open_images(config: &SiteConfig, layout: &Layout) -> Result<images::ImageStore> {
    let registry = registry_config(&config.insecure_registries, &config.registry_mirrors);
    let dir = layout.images();
    let opened = tokio::task::spawn_blocking(move || images::ImageStore::open_with(dir, registry));
    let images = opened.await.context("open images")?;
    let images = images.context("open images")?;
    Ok(if supervisor::is_possible() {
        images.for_containers()
    } else {
        images
    })
}

pub async fn start_node(
    parts: NodeParts<'_>,
    client: kube::Client,
    informers: client::Informers,
    remote: runtime_wasm::Remote,
    stack: &mut Stack,
) -> Result<Arc<node::Node>> {
    let NodeParts {
        config,
        layout,
        site,
        serving,
        ca_pem,
        node_ip,
        kubelet_listener,
        images,
        sleeper,
        shares_pods,
    } = parts;
    kubelet_listener
        .set_nonblocking(true)
        .context("listen for the kubelet API")?;
    let [pod_cidr, _] = site.networks()?;
    let addresses = pod_network::IpPool::new(pod_cidr)
        .ok()
        .map(|pool| pool.capacity());
    let sleep = sleeper.map(|client| node::Sleep {
        client,
        traffic: Arc::new(remote.clone()),
    });
    let wasm = Arc::new(remote);
    let runtimes = supervisor::runtimes(layout, pod_cidr, &config.oci_runtimes, wasm, stack)?;
    let scope = Scope::new();
    let pods = if shares_pods {
        informers.get()
    } else {
        informers.get_selected(node::own_pods(&config.node_name))
    };
    scope.spawn_cancellable(image_collection::run(images.clone(), pods, layout.node()));
    let node = node::Node::start(
        node::Config {
            name: config.node_name.clone(),
            client,
            informers,
            images: Arc::new(images),
            runtimes,
            dir: layout.node(),
            node_ip,
            pod_cidr,
            cluster_dns: vec![IpAddr::V4(site.dns())],
            cluster_domain: "cluster.local".to_owned(),
            kubelet: node::Kubelet {
                listener: kubelet_listener,
                cert_pem: serving.cert_pem.clone(),
                key_pem: serving.key_pem.clone(),
                client_ca_pem: ca_pem.to_owned(),
            },
            labels: config.node_labels.clone(),
            taints: config.node_taints.clone(),
            static_pods: config.pod_manifest_path.clone(),
            kubelet_dirs: kubelet_dirs(config, layout),
            // Each has an address.
            max_pods: addresses.map_or(config.max_pods, |all| all.min(config.max_pods)),
            pod_pids_limit: config.pod_max_pids,
            share_pod_informer: shares_pods,
            sleep,
            version: format!(
                "{}+salp.{}",
                api::constants::KUBERNETES_VERSION,
                env!("CARGO_PKG_VERSION")
            ),
            clock: client::Clock::system(),
        },
        &scope,
    )
    .await
    .context("start node agent")?;
    stack.push("node agent", STOP_DEADLINE, move || async move {
        scope.close().await
    });
    Ok(Arc::new(node))
}

/// Where device plugins look for a kubelet: real ones have its own directory built in.
fn kubelet_dirs(config: &SiteConfig, layout: &Layout) -> Vec<PathBuf> {
    if let Some(dir) = &config.kubelet_dir {
        return vec![dir.clone()];
    }
    let usual = rustix::process::geteuid()
        .is_root()
        .then(|| "/var/lib/kubelet".into());
    let own = layout.node().join("kubelet");
    usual.into_iter().chain([own]).collect()
}

/// Waits until the Node says Ready, and says so since `began`: a Node of an earlier start may
/// still claim it.
pub async fn node_ready(informers: &client::Informers, name: &str, began: jiff::Timestamp) {
    use futures::StreamExt as _;
    use k8s_openapi::api::core::v1::Node;
    let nodes = informers.get::<Node>();
    let mut changes = nodes.subscribe();
    loop {
        let ready = nodes.get("", name).is_some_and(|node| {
            let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
            conditions.into_iter().flatten().any(|c| {
                let heard = c.last_heartbeat_time.as_ref();
                c.type_ == "Ready"
                    && c.status == "True"
                    && heard.is_some_and(|t| t.0.as_second() >= began.as_second())
            })
        });
        if ready || changes.next().await.is_none() {
            return;
        }
    }
}

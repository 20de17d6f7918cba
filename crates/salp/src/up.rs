//! `salp up`: brings a site to life, part by part, and stops it in reverse.

use crate::api_access::Access;
use crate::api_args::ApiArgs;
use crate::authority::Authority;
use crate::cli::{Part, UpArgs};
use crate::config::{self, Layout, Site as SiteConfig};
use crate::image_commands::registry_config;
use crate::node_start::{self, Beside};
use crate::output::{self, Phases};
use crate::renewal::{self, Renewal};
use crate::shutdown::{self, Signals, Stop};
use crate::site::Site;
use crate::{
    answers, dataplane, manifests, node_routes, pki, process, servers, shared_site, site, sites,
    sites_server, stop, store_commands,
};
use anyhow::{Context as _, Result, bail};
use client::connect::Agent;
use lifecycle::{Scope, Stack};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// How long a part may take to stop before it is named and left.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// How long `up -f` waits for a URL to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// `salp up`.
pub fn up(args: UpArgs) -> Result<ExitCode> {
    let config = config::site(&args)?;
    let objects = manifests::read(&args.filename)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start runtime")?;
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
    let mut signals = Signals::watch(!config.shutdown_grace.total.is_zero())?;
    let layout = Layout::new(&config.data_dir);
    let mut stack = Stack::new();
    let mut phases = Phases::new();
    let mut begun = Begun::default();
    let started = tokio::select! {
        started = start(&config, &layout, &mut phases, &mut stack, &mut begun) => started,
        stop = signals.next() => Err(match stop {
            Stop::Everything => anyhow::anyhow!("start site: interrupted"),
            Stop::Process | Stop::Machine => anyhow::anyhow!("start site: terminated"),
        }),
    };
    let running = match started {
        Ok(running) => running,
        Err(error) => {
            phases.clear();
            stack.stop().await;
            if begun.data_plane {
                // Without pods it is of no use to anybody.
                tokio::task::spawn_blocking(move || stop::end_dataplane(&layout))
                    .await
                    .context("stop data plane")??;
            }
            return Err(with_cure(error, &config));
        }
    };
    let took = phases.finish();
    usage(&layout, &config, running.port);
    let wait_for_stop = signals.next();
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
            output::line(format!(
                "Ready in {} ms. Ctrl-C stops the site.",
                took.as_millis()
            ));
            wait_for_stop.await
        }
    };
    if let Some(node) = &running.node {
        shutdown::end_pods(stop, node, config.shutdown_grace).await;
    }
    finish(stop, stack, &layout, running.node.is_some()).await
}

/// What a start that fails must undo.
#[derive(Debug, Default)]
struct Begun {
    /// The data plane is this start's, not one that served before.
    data_plane: bool,
}

/// Adds what to do where the disk is full: no part that fails on it knows whose disk it is.
fn with_cure(error: anyhow::Error, config: &SiteConfig) -> anyhow::Error {
    let full = error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        io.is_some_and(|io| io.kind() == std::io::ErrorKind::StorageFull)
    });
    if !full {
        return error;
    }
    error.context(format!(
        "start site in {}: its disk is full: free space there, or choose another place with --data-dir",
        config.data_dir.display()
    ))
}

/// What the rest of `up` needs of a started site.
struct Running {
    client: kube::Client,
    /// Of the API: the one asked for, or any where that was 0.
    port: u16,
    /// `None`: this machine is no node.
    node: Option<Arc<node::Node>>,
    images: Option<images::ImageStore>,
    /// Held until the end.
    _lock: process::Lock,
    _claim: site::Claim,
}

async fn start(
    config: &SiteConfig,
    layout: &Layout,
    phases: &mut Phases,
    stack: &mut Stack,
    begun: &mut Begun,
) -> Result<Running> {
    let began = jiff::Timestamp::now();
    phases.begin("certificates");
    layout.create()?;
    let lock = process::lock(layout)?;
    let api_listener = listen_api(config)?;
    let kubelet_listener = config
        .runs(Part::Node)
        .then(|| node_start::listen_kubelet(config))
        .transpose()?;
    let shared = config.store.is_shared();
    let mut opened = None;
    let (site, claim) = if shared && !shared_site::is_settled(layout) {
        phases.begin("store");
        let store = store_commands::open(&config.store, layout).await?;
        let settled = shared_site::settle(&*store, config, layout).await?;
        opened = Some(store);
        settled
    } else {
        site::load_or_create(layout).await?
    };
    let ports = site.ports();
    let node_ip = node_ip(config.bind_address)?;
    let addresses = vec![
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        node_ip,
        IpAddr::V4(site.api_service()),
    ];
    let reached = pki::Reached {
        node_name: config.node_name.clone(),
        addresses,
    };
    let mut pki = load_pki(layout, &reached).await?;
    let api_port = api_listener
        .local_addr()
        .context("read API address")?
        .port();
    let url = format!("https://{}:{api_port}", local(config.bind_address));
    renewal::write_kubeconfigs(layout, &url, &pki)?;
    if kubelet_listener.is_some() {
        // Begins early: it needs nothing of what follows but the files above.
        begun.data_plane = process::running(&layout.dataplane_pid()).is_none();
        dataplane::ensure(layout, &dataplane_config(config, layout, &site, node_ip)?)?;
    }

    phases.begin("store");
    let store = match opened {
        Some(store) => store,
        None => store_commands::open(&config.store, layout).await?,
    };
    if shared && shared_site::agree(&*store, config, layout, &site).await? {
        pki = load_pki(layout, &reached).await?;
    }
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
    let api = ApiReached {
        listener: api_listener,
        advertise,
        service_port: ports.api,
        args: &config.api,
        shared: shared.then(|| apiserver::Shared::new(config.node_name.clone())),
    };
    let server = start_apiserver(store, api, &pki, &site, stack).await?;
    // For what is done in the administrator's name.
    let system = client::connect::from_service(server.service("system:salp", &["system:masters"]));

    phases.begin("controllers");
    let signer = Arc::new(Authority::load(layout)?);
    let informers = start_control(config, layout, &server, &pki, signer, stack);
    if site.needs_route() {
        keep_routes(&informers, &config.node_name, stack);
    }

    let own = match kubelet_listener {
        Some(kubelet_listener) => {
            let beside = Beside {
                config,
                layout,
                site: &site,
                pki: &pki,
                node_ip,
                kubelet_listener,
                server: &server,
                informers: informers.clone(),
            };
            Some(node_start::start_beside(beside, phases, stack).await?)
        }
        None => None,
    };
    let (node, images) = own.unzip();
    let scope = Scope::new();
    if shared {
        // Kubeconfigs are written anew with the certificates.
        let follow = servers::follow(layout.clone(), informers.clone(), || Ok(()));
        scope.spawn_cancellable(follow);
    }
    let renewal = Renewal {
        layout: layout.clone(),
        reached,
        url,
        server: server.clone(),
        node: node.clone(),
        pki,
    };
    scope.spawn_cancellable(renewal.run());
    stack.push("certificates", STOP_DEADLINE, move || async move {
        scope.close().await
    });
    if let Some(settings) = &config.lattice {
        phases.begin("lattice");
        let as_fleet = client::connect::from_service_as(
            server.service("system:salp-fleet", &[]),
            Agent("salp-fleet"),
        );
        let to = server.clone();
        let connect = Arc::new(move || to.connection("system:salp-fleet-exec", &[]));
        answers::start(
            settings,
            layout,
            as_fleet,
            connect,
            informers.clone(),
            stack,
        )?;
    }
    if node.is_some() {
        sites::follow(config.lattice.as_ref(), layout, &informers, stack).await?;
        node_start::node_ready(&informers, &config.node_name, began).await;
    }
    Ok(Running {
        client: system,
        port: api_port,
        node,
        images,
        _lock: lock,
        _claim: claim,
    })
}

fn dataplane_config(
    config: &SiteConfig,
    layout: &Layout,
    site: &Site,
    node_ip: IpAddr,
) -> Result<dataplane::Config> {
    let kubeconfig = layout.kubeconfig_of("proxy");
    let at = config.bind_address;
    Ok(dataplane::Config {
        sites: Some(sites_server::Config {
            socket: layout.sites_socket(),
            lattice: layout.lattice(),
            kubeconfig: layout.kubeconfig_of("sites"),
            fleet: layout.fleet_socket(),
            node_ip,
            gates: IpAddr::V4(site.gates()),
            gate_block: pod_network::set_aside(site.networks()?[0]).map(RangeInclusive::into_inner),
            kept: layout.dataplane_state().join("imports.json"),
        }),
        ..node_start::dataplane_config(config, layout, site, kubeconfig, at)
    })
}

async fn load_pki(layout: &Layout, reached: &pki::Reached) -> Result<pki::Pki> {
    let (layout, reached) = (layout.clone(), reached.clone());
    tokio::task::spawn_blocking(move || pki::load_or_create(&layout, &reached))
        .await
        .context("make certificates")?
}

/// Listens for the API, or says who to ask.
fn listen_api(config: &SiteConfig) -> Result<TcpListener> {
    let address = SocketAddr::new(config.bind_address, config.api_port);
    TcpListener::bind(address).with_context(|| {
        format!("listen on {address}: choose another port with --api-port, or another address with --bind-address")
    })
}

/// The address by which this machine is reached: the one bound, else that of the default route.
pub fn node_ip(bind: IpAddr) -> Result<IpAddr> {
    if !bind.is_unspecified() {
        return Ok(bind);
    }
    // Connecting a UDP socket sends nothing; it makes the kernel choose a source address.
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").context("find own address")?;
    match probe
        .connect("192.0.2.1:9")
        .and_then(|()| probe.local_addr())
    {
        Ok(address) => Ok(address.ip()),
        // Cut off: there is no route, but the site must start.
        Err(_) => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
    }
}

/// The address that clients on this machine use.
fn local(bind: IpAddr) -> IpAddr {
    if bind.is_unspecified() {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    } else {
        bind
    }
}

/// Where the API server is reached.
struct ApiReached<'a> {
    listener: TcpListener,
    /// From pods, behind the `kubernetes` Service…
    advertise: SocketAddr,
    /// …which has this port.
    service_port: u16,
    args: &'a ApiArgs,
    /// By which name, where there may be others.
    shared: Option<apiserver::Shared>,
}

async fn start_apiserver(
    store: Arc<dyn store::Store>,
    reached: ApiReached<'_>,
    pki: &pki::Pki,
    site: &Site,
    stack: &mut Stack,
) -> Result<apiserver::ApiServer> {
    reached
        .listener
        .set_nonblocking(true)
        .context("listen for the API")?;
    let scope = Scope::new();
    let mut config = apiserver::Config::new(
        store,
        pki.apiserver.cert_pem.clone(),
        pki.apiserver.key_pem.clone(),
        pki.ca_pem.clone(),
        pki.service_account_key_pem.clone(),
    );
    config.listeners = vec![reached.listener];
    config.service_port = reached.service_port;
    config.shared = reached.shared;
    config.service_cidr = apiserver::ServiceCidr {
        base: site.service_network,
        prefix: site::PREFIX,
    };
    config.advertise = Some(reached.advertise);
    config.kubelet = renewal::kubelet_access(pki);
    config.front_proxy = Some(apiserver::FrontProxy {
        cert: pki.front_proxy.cert_pem.clone(),
        key: pki.front_proxy.key_pem.clone(),
        ca: pki.front_proxy_ca_pem.clone(),
    });
    reached.args.apply(&mut config)?;
    let started = apiserver::ApiServer::start(config, &scope).await;
    let server = started
        .map_err(|error| match reached.args.file_of(&error) {
            Some(file) => {
                let file = format!("use {}", file.display());
                anyhow::Error::new(error).context(file)
            }
            None => error.into(),
        })
        .context("start API server")?;
    stack.push("API server", STOP_DEADLINE, move || async move {
        scope.close().await
    });
    Ok(server)
}

/// Scheduler and controllers, each with the identity and the name that upstream's have. The
/// informers that all share watch as the controllers, who may read everything.
fn start_control(
    config: &SiteConfig,
    layout: &Layout,
    server: &apiserver::ApiServer,
    pki: &pki::Pki,
    signer: Arc<Authority>,
    stack: &mut Stack,
) -> client::Informers {
    let scope = Scope::new();
    let clock = client::Clock::system();
    let part = |name: &'static str| {
        let service = server.service(&format!("system:{name}"), &[]);
        client::connect::from_service_as(service, Agent(name))
    };
    let informers = client::Informers::new(part("kube-controller-manager"), &scope);
    let leads = Leads {
        scope: &scope,
        clock: clock.clone(),
        identity: config.store.is_shared().then(|| {
            let unique: u64 = rand::random();
            format!("{}_{unique:016x}", config.node_name)
        }),
    };
    let scheduler = scheduler::Config {
        informers: informers.with_client(part("kube-scheduler")),
        clock: clock.clone(),
        seed: rand::random(),
    };
    if config.runs(Part::Scheduler) {
        let client = part("kube-scheduler");
        leads.run("kube-scheduler", client, move |scope| {
            scheduler::run(scheduler.clone(), scope);
        });
    }
    let controllers = controllers::Config {
        informers: informers.clone(),
        root_ca_pem: pki.ca_pem.clone(),
        signer: Some(signer),
        clock: clock.clone(),
        seed: rand::random(),
    };
    if config.runs(Part::Controllers) {
        let client = part("kube-controller-manager");
        leads.run("kube-controller-manager", client, move |scope| {
            controllers::run(controllers.clone(), scope);
        });
    }
    // What a site follows may be anything, as with `kubectl apply` by its administrator.
    let service = server.service("system:salp-gitops", &["system:masters"]);
    let client = client::connect::from_service_as(service, Agent("salp-gitops"));
    let gitops = gitops::Config {
        informers: informers.with_client(client.clone()),
        data_dir: layout.gitops(),
        manifests: config.manifests.clone(),
        clock,
        seed: rand::random(),
        registry: registry_config(&config.insecure_registries, &config.registry_mirrors),
    };
    if config.runs(Part::Gitops) {
        leads.run("salp-gitops", client, move |scope| {
            gitops::run(gitops.clone(), scope);
        });
    }
    stack.push("controllers", STOP_DEADLINE, move || async move {
        scope.close().await
    });
    informers
}

/// Where parts run that one server of a site runs for all.
struct Leads<'a> {
    scope: &'a Scope,
    clock: client::Clock,
    /// Name of this process among the servers; none where it is the only one, which asks
    /// nobody.
    identity: Option<String>,
}

impl Leads<'_> {
    /// Runs a part while this server is the one; the Lease has upstream's name.
    fn run(
        &self,
        lease: &str,
        client: kube::Client,
        part: impl Fn(&Scope) + Send + Sync + 'static,
    ) {
        let Some(identity) = &self.identity else {
            part(self.scope);
            return;
        };
        let election = client::Election {
            client,
            namespace: "kube-system".to_owned(),
            name: lease.to_owned(),
            identity: identity.clone(),
            timing: client::election::Timing::default(),
            clock: self.clock.clone(),
            seed: rand::random(),
        };
        client::election::start(election, self.scope, part);
    }
}

/// Routes to the pods of nodes that join.
fn keep_routes(informers: &client::Informers, node: &str, stack: &mut Stack) {
    let scope = Scope::new();
    scope.spawn_cancellable(node_routes::run(informers.get(), node.to_owned()));
    stack.push("routes", STOP_DEADLINE, move || async move {
        scope.close().await
    });
}

/// Says how to use the site.
fn usage(layout: &Layout, config: &SiteConfig, port: u16) {
    let kubeconfig = layout.kubeconfig();
    // As it was called: it need not be on the PATH.
    let program = std::env::args().next();
    output::line(format!(
        "Site in {} with API on {}:{}\n\n  export KUBECONFIG={}\n  kubectl get nodes\n  {} ps -A\n",
        layout.root.display(),
        local(config.bind_address),
        port,
        kubeconfig.display(),
        program.as_deref().unwrap_or("salp"),
    ));
}

/// `-f`: loads images that lie beside the manifests, applies these and prints what answers.
async fn apply_and_wait(
    running: &Running,
    config: &SiteConfig,
    files: &[std::path::PathBuf],
    objects: Vec<serde_json::Value>,
) -> Result<()> {
    if objects.is_empty() {
        return Ok(());
    }
    for (file, reference) in manifests::images_beside(files, &objects)? {
        let name = images::Reference::parse(&reference)
            .with_context(|| format!("read image name {reference:?}"))?;
        let Some(store) = &running.images else {
            bail!(
                "load {}: --disable node leaves no place for images here",
                file.display()
            );
        };
        if store.get(&name, None).context("read images")?.is_none() {
            store
                .load_wasm(&file, &name)
                .await
                .with_context(|| format!("load {}", file.display()))?;
            output::line(format!("loaded {} as {reference}", file.display()));
        }
    }
    let access = Access {
        client: running.client.clone(),
        namespace: "default".to_owned(),
    };
    let applied = manifests::apply(&access, objects).await?;
    for object in &applied {
        output::line(format!(
            "{}/{} applied",
            object.kind.to_lowercase(),
            object.name
        ));
    }
    let address = local(config.bind_address).to_string();
    for url in manifests::urls(&access, &applied, &address).await? {
        if answers(&url).await {
            output::line(format!("answers at {url}"));
        } else {
            bail!("wait for {url}: no answer; see `kubectl get pods` and `kubectl describe pods`");
        }
    }
    Ok(())
}

/// Whether something answers HTTP at the URL before the deadline.
async fn answers(url: &str) -> bool {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let Ok(url) = url::Url::parse(url) else {
        return false;
    };
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return false;
    };
    let ask = async {
        loop {
            if let Ok(mut stream) = tokio::net::TcpStream::connect((host, port)).await {
                let request =
                    format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
                let mut head = [0u8; 12];
                if stream.write_all(request.as_bytes()).await.is_ok()
                    && stream.read_exact(&mut head).await.is_ok()
                    && head.starts_with(b"HTTP/1.")
                    && head[9] != b'5'
                {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(ANSWER_DEADLINE, ask).await.is_ok()
}

/// Stops in reverse, the data plane too if the pods have ended.
async fn finish(stop: Stop, stack: Stack, layout: &Layout, has_pods: bool) -> Result<()> {
    for laggard in stack.stop().await {
        tracing::error!("{laggard}");
    }
    if stop != Stop::Process {
        let ended = layout.clone();
        tokio::task::spawn_blocking(move || stop::end_pods(&ended))
            .await
            .context("stop data plane")??;
        site::clear(layout).await?;
    } else if has_pods {
        output::note(
            "stopped the control plane; pods go on, `salp up` adopts them, `salp down` stops them",
        );
    }
    Ok(())
}

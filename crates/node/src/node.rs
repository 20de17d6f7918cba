//! A running node agent: started, stopped, drained.

use crate::addresses::Addresses;
use crate::agent::{Agent, Fixed, Parts};
use crate::checkpoint::{Checkpoint, Restored};
use crate::config::{Config, Error, TlsError};
use crate::contact::Contact;
use crate::devices::Devices;
use crate::feed;
use crate::machine::Capacity;
use crate::register::Registration;
use crate::server::{Server, Serving};
use crate::shutdown::ShutdownGrace;
use crate::static_pods::Follower;
use crate::volumes;
use client::{EventRecorder, Informer, Selected};
use k8s_openapi::api::core::v1::Pod;
use lifecycle::Scope;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often partition contracts are held against the silence of the server.
const CONTRACTS_LOOK: Duration = Duration::from_millis(500);

/// A started node agent.
pub struct Node {
    agent: Arc<Agent>,
    serving: Arc<Serving>,
    scope: Scope,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("name", &self.agent.fixed.name)
            .field("pods", &self.agent.slots().len())
            .finish_non_exhaustive()
    }
}

impl Node {
    /// Starts the agent: adopts what runs, registers the Node, follows its pods. Returns
    /// as soon as all is under way; nothing here needs an answer of the API server.
    ///
    /// # Errors
    /// When its configuration can't be used.
    pub async fn start(config: Config, scope: &Scope) -> Result<Self, Error> {
        if config.runtimes.is_empty() {
            return Err(Error::NoRuntime);
        }
        let scope = scope.clone();
        for dir in [
            &config.dir,
            &config.dir.join("pods"),
            &config.dir.join("logs/pods"),
        ] {
            make_private(dir)?;
        }
        let capacity = Capacity::read(&config.dir, config.max_pods);
        let events = EventRecorder::new(
            config.client.clone(),
            "kubelet",
            &config.name,
            config.clock.clone(),
            &scope,
        );
        let (checkpoint, restored) = Checkpoint::open(&config.dir, &scope);
        let agent = Agent::new(Parts {
            unbound: config.sleep.as_ref().map(|s| s.client.clone()),
            fixed: Fixed {
                name: config.name.clone(),
                node_ip: config.node_ip,
                dir: config.dir.clone(),
                cluster_dns: config.cluster_dns.clone(),
                cluster_domain: config.cluster_domain.clone(),
                pods_max: config.max_pods,
                pod_pids_limit: config.pod_pids_limit,
                allocatable: capacity.quantities(),
            },
            client: config.client.clone(),
            clock: config.clock.clone(),
            events,
            images: config.images.clone(),
            runtimes: config.runtimes.clone(),
            services: config.informers.get(),
            addresses: Addresses::new(config.pod_cidr).map_err(Error::Addresses)?,
            checkpoint,
            contact: Arc::new(Contact::open(&config.dir)),
            scope: scope.clone(),
        });
        let port = config
            .kubelet
            .listener
            .local_addr()
            .map_err(Error::Listen)?
            .port();
        register(&config, capacity, port, &agent).start(&scope);
        let pods = if config.share_pod_informer {
            config.informers.get()
        } else {
            config.informers.get_selected(own_pods(&config.name))
        };
        Devices::start(&agent, &config.kubelet_dirs, &scope);
        run(&agent, pods, restored, config.static_pods, &scope);
        if let Some(sleep) = config.sleep {
            crate::sleep::start(&agent, sleep, &config.informers);
        }
        let serving = Server::start(agent.clone(), config.kubelet, &scope)?;
        Ok(Self {
            agent,
            serving,
            scope,
        })
    }

    /// Serves the kubelet API with another certificate from now on; PEM.
    ///
    /// # Errors
    /// When it and its key can't be used together: then the one before goes on.
    pub fn serve_with(&self, cert_pem: &str, key_pem: &str) -> Result<(), TlsError> {
        self.serving.replace(cert_pem, key_pem)
    }

    /// Ends all containers with their grace, as at a machine's shutdown. Pods stay in the
    /// API and run again at the next start.
    pub async fn drain_all(&self) {
        self.agent.drain_all().await;
    }

    /// Takes no more pods and ends those that run, in order and with their grace, for the machine
    /// goes down. In the API they have failed; whoever made them replaces them.
    pub async fn shut_down(&self, grace: ShutdownGrace) {
        self.agent.shut_down(grace).await;
    }

    /// Stops the agent by closing the scope that it was started in; pods run on.
    pub async fn stop(self) {
        self.scope.close().await;
    }
}

/// The pods of a node: all that one may watch.
pub fn own_pods(node: &str) -> Selected {
    Selected::fields(format!("spec.nodeName={node}"))
}

/// The loops, and what feeds them.
fn run(
    agent: &Arc<Agent>,
    pods: Informer<Pod>,
    restored: Restored,
    static_pods: Option<PathBuf>,
    scope: &Scope,
) {
    run_loops(agent, scope);
    let fed = agent.clone();
    scope.spawn_cancellable(async move {
        feed::list_runtimes(&fed).await;
        fed.restore(restored);
        let statics = static_pods.map(|dir| Follower::start(fed.clone(), dir));
        let follow_statics = async {
            if let Some(statics) = statics {
                statics.follow().await;
            }
        };
        tokio::join!(feed::follow_pods(fed, pods), follow_statics);
    });
}

/// The reconcile loop, the status writers, the runtimes' followers.
pub(crate) fn run_loops(agent: &Arc<Agent>, scope: &Scope) {
    agent.start_publishing();
    scope.spawn_cancellable(volumes::watch_limits(agent.clone()));
    scope.spawn_cancellable(volumes::reclaim(agent.clone()));
    let watched = agent.clone();
    scope.spawn_cancellable(async move {
        loop {
            tokio::time::sleep(CONTRACTS_LOOK).await;
            watched.check_contracts();
        }
    });
    for index in 0..agent.runtimes.len() {
        scope.spawn_cancellable(feed::follow_runtime(agent.clone(), index));
    }
    let agent = agent.clone();
    scope.spawn_cancellable(async move {
        while let Some(uid) = agent.queue.next().await {
            agent.reconcile(&uid);
            agent.queue.done(&uid);
            // One loop for thousands of pods must let others run.
            tokio::task::consume_budget().await;
        }
    });
}

fn register(config: &Config, capacity: Capacity, port: u16, agent: &Arc<Agent>) -> Registration {
    Registration {
        agent: agent.clone(),
        regained: tokio::sync::Notify::new(),
        name: config.name.clone(),
        client: config.client.clone(),
        clock: config.clock.clone(),
        labels: config.labels.clone(),
        taints: config.taints.clone(),
        node_ip: config.node_ip,
        pod_cidr: config.pod_cidr.to_string(),
        kubelet_port: port,
        capacity,
        dir: config.dir.clone(),
        runtime_version: config.runtimes[0].1.version(),
        handlers: config.runtimes.iter().map(|(h, _)| h.clone()).collect(),
        images: config.images.clone(),
        version: config.version.clone(),
        listed: Default::default(),
    }
}

fn make_private(dir: &Path) -> Result<(), Error> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| Error::Directory {
            path: dir.into(),
            source,
        })
}

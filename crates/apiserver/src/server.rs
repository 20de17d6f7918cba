//! Starting, serving and stopping.

use crate::allocate::Allocator;
use crate::audit::Audit;
use crate::authn::oidc::Oidc;
use crate::authn::request_header::RequestHeaders;
use crate::authn::token::Tokens;
use crate::authn::{Authenticator, User};
use crate::authz::{Authorizer, NamedByNodes};
use crate::bootstrap;
use crate::cache::Cache;
use crate::config::{Config, KubeletAccess};
use crate::definitions;
use crate::encryption::{Encrypted, Encryption};
use crate::expiry;
use crate::flow::Flow;
use crate::handler::{Caller, handle, is_ready};
use crate::http::respond::{Body, BoxError};
use crate::kubelet::Kubelets;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::server_state::{Core, DiskTrouble};
use crate::serving::{self, Identity};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use lifecycle::Scope;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

/// Streams of one HTTP/2 connection at once: client-go opens a watch a kind on one connection.
const STREAMS_MAX: u32 = 1000;
/// Bytes on their way within the process, each way; past it who writes waits.
const IN_PROCESS_BUFFER_BYTES: usize = 64 << 10;
/// How long a client may take over its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may linger at a stop once all its requests are answered: a client that is
/// suspended or cut off does not say that it has heard of the end.
const LINGER: Duration = Duration::from_secs(2);
/// How long an HTTP/1.1 connection may be without a request: longer than clients keep idle
/// connections (90 s in Go), so that they never write into one that is being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// Why an API server did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store can't be read.
    #[error("read store")]
    Store(#[source] store::Error),
    /// The serving certificate or key is no PEM or does not fit.
    #[error("load serving certificate")]
    ServingCertificate(#[source] BoxError),
    /// The client CA is no PEM certificate.
    #[error("load client CA")]
    ClientCa(#[source] BoxError),
    /// A ServiceAccount key is no EC P-256 key in PEM (PKCS#8 to sign).
    #[error("load service account key: an EC P-256 key in PEM (PKCS#8) is needed")]
    ServiceAccountKey,
    /// The kubelet client certificate or CA is not usable.
    #[error("load kubelet client certificate")]
    Kubelet(#[source] BoxError),
    /// What extension servers are shown is not usable.
    #[error("load front-proxy certificate")]
    FrontProxy(#[source] BoxError),
    /// Whom to believe about who asks is not usable.
    #[error("read request-header configuration")]
    RequestHeader(#[source] BoxError),
    /// The NodePort range is empty.
    #[error("check NodePort range: {0}-{1} has no ports")]
    NodePorts(u16, u16),
    /// The authentication configuration is none; why.
    #[error("read authentication configuration: {0}")]
    Authentication(String),
    /// The audit policy is none; why.
    #[error("read audit policy: {0}")]
    AuditPolicy(String),
    /// The audit log can't be opened.
    #[error("open audit log")]
    AuditLog(#[source] std::io::Error),
    /// The encryption configuration is none; why.
    #[error("read encryption configuration: {0}")]
    Encryption(String),
    /// A listener can't be used.
    #[error("listen")]
    Listen(#[source] std::io::Error),
    /// The objects that every cluster has could not be written.
    #[error("write bootstrap objects: {0}")]
    Bootstrap(String),
}

/// A running API server. Clones share it; it stops when the scope it was started in closes.
#[derive(Clone)]
pub struct ApiServer {
    core: Arc<Core>,
    addresses: Vec<SocketAddr>,
    certificate: Arc<Identity>,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

impl ApiServer {
    /// Reads the store, writes what a first start lacks and serves until `scope` closes:
    /// then no connection is accepted, watches end, and requests under way are finished.
    ///
    /// # Errors
    /// When keys, listeners or the store are not usable.
    pub async fn start(config: Config, scope: &Scope) -> Result<Self, Error> {
        config.check()?;
        let proxies = RequestHeaders::new(config.front_proxy.as_ref(), &config.request_header)
            .map_err(Error::RequestHeader)?
            .map(Arc::new);
        let clients = serving::authorities(&config.client_ca).map_err(Error::ClientCa)?;
        let (tls, certificate) = serving::tls(&config, proxies.as_deref().map(|p| p.ca()))?;
        let tokens = Tokens::new(
            &config.issuer,
            &config.service_account_key,
            &config.service_account_verify_keys,
        )?;
        let kubelets = Kubelets::new(&config.kubelet)?;
        let oidc = config.authentication.as_deref();
        let oidc = oidc
            .map(|text| Oidc::parse(text, &config.issuer).map_err(Error::Authentication))
            .transpose()?;
        let mut metrics = Metrics::new();
        let audit = config.audit.clone();
        let audit = audit
            .map(|a| Audit::open(a, metrics.registry()).map(Arc::new))
            .transpose()?;
        let (store, encrypted) = match &config.encryption {
            Some(text) => {
                let how = Encryption::parse(text).map_err(Error::Encryption)?;
                let encrypted = Arc::new(Encrypted::new(config.store.clone(), how));
                (encrypted.clone() as Arc<dyn store::Store>, Some(encrypted))
            }
            None => (config.store.clone(), None),
        };
        // Requests under way still need the cache: it is fed until the last is answered.
        let (serving, feeding) = (Scope::new(), Scope::new());
        let cache = Cache::start(store.clone(), config.limits, &feeding)
            .await
            .map_err(Error::Store)?;
        let entropy = config.entropy.clone();
        let (cidr, ports) = (config.service_cidr, config.node_ports);
        let services = match &config.shared {
            Some(_) => Allocator::shared(cidr, ports, entropy, config.store.clone(), &feeding),
            None => Allocator::new(cidr, ports, entropy, cache.named("", "services").as_ref()),
        };
        let peers = config.shared.clone().zip(config.advertise);
        let peers = peers.map(|(shared, address)| {
            let mut bytes = [0; 8];
            (config.entropy)(&mut bytes);
            Peers::new(shared, address, &config.client_ca, &hex::encode(bytes))
        });
        let limits = config.limits;
        let told = crate::flow::Metrics::new(metrics.registry());
        let flow = Flow::new(&cache, limits.in_flight_max, limits.request_timeout, told);
        let core = Arc::new(Core {
            authz: Authorizer::new(&cache),
            named: NamedByNodes::new(&cache),
            store,
            cache,
            authn: Authenticator {
                tokens,
                oidc,
                request_headers: proxies,
                clients,
                audience: config.issuer.clone(),
            },
            services,
            peers,
            kubelets,
            metrics,
            audit,
            encrypted,
            clock: config.clock.clone(),
            entropy: config.entropy.clone(),
            limits: config.limits,
            issuer: config.issuer.clone(),
            flow,
            stop: serving.token().clone(),
            streams: serving.clone(),
            ready: AtomicBool::new(false),
            openapi: crate::discovery::OpenApi::default(),
            disk_trouble: DiskTrouble::default(),
            aggregator: crate::aggregation::Aggregator::new(config.front_proxy.as_ref())
                .map_err(Error::FrontProxy)?,
            resource_metrics: crate::resource_metrics::Readings::default(),
            dynamic: crate::admission::dynamic::Dynamic::default(),
        });
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for listener in config.listeners {
            listener.set_nonblocking(true).map_err(Error::Listen)?;
            addresses.push(listener.local_addr().map_err(Error::Listen)?);
            listeners.push(TcpListener::from_std(listener).map_err(Error::Listen)?);
        }
        let stop = scope.token().clone();
        let (ending, fed) = (serving.clone(), feeding.clone());
        let leaving = Arc::downgrade(&core);
        let recorded = core.audit.clone();
        scope.spawn(async move {
            stop.cancelled().await;
            // First, so that no client is sent here any more.
            if let Some(core) = leaving.upgrade() {
                Peers::leave(&core).await;
            }
            ending.close().await;
            fed.close().await;
            if let Some(audit) = recorded {
                audit.close().await;
            }
        });
        expiry::start(&core, &feeding);
        definitions::start(&core, &feeding);
        crate::admission::dynamic::start(&core, &feeding);
        bootstrap::run(
            &core,
            config.service_cidr,
            config.service_port,
            config.advertise,
            &config.client_ca,
        )
        .await
        .map_err(|s| Error::Bootstrap(s.message))?;
        Peers::start(&core, &feeding)
            .await
            .map_err(|s| Error::Bootstrap(s.message))?;
        core.ready.store(true, Ordering::Release);
        crate::aggregation::start(&core, &feeding);
        crate::flow::start(&core, &feeding);
        // Not before: without the first roles all would be refused. Who is early waits in the
        // listener's queue.
        let connections = Arc::new(Semaphore::new(config.limits.connections_max));
        for listener in listeners {
            serving.spawn(accept(
                core.clone(),
                listener,
                TlsAcceptor::from(tls.clone()),
                serving.clone(),
                connections.clone(),
            ));
        }
        Ok(Self {
            core,
            addresses,
            certificate,
        })
    }

    /// A service for clients in this process, which act as `user`; `system:authenticated`
    /// is added to the groups.
    pub fn service(&self, user: &str, groups: &[&str]) -> InProcess {
        InProcess {
            core: self.core.clone(),
            user: Arc::new(User::new(user, groups)),
        }
    }

    /// A connection for a client in this process, which acts as `user`: for requests that
    /// change its protocol. It speaks HTTP/1.1.
    pub fn connection(&self, user: &str, groups: &[&str]) -> tokio::io::DuplexStream {
        let (ours, theirs) = tokio::io::duplex(IN_PROCESS_BUFFER_BYTES);
        let (core, user) = (self.core.clone(), Arc::new(User::new(user, groups)));
        let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
            let (core, caller) = (core.clone(), Caller::Local(user.clone()));
            let request = request.map(|b| b.map_err(|e| -> BoxError { e.into() }).boxed_unsync());
            async move { Ok::<_, Infallible>(handle(core, request, caller).await) }
        });
        self.core.streams.spawn_cancellable(async move {
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(ours), service)
                .with_upgrades();
            if let Err(error) = served.await {
                tracing::debug!(%error, "connection within the process ended");
            }
        });
        theirs
    }

    /// Serves with another certificate from now on (PEM); open connections go on.
    ///
    /// # Errors
    /// When it and its key don't belong together: it serves with what it has.
    pub fn serve_with(&self, cert_pem: &str, key_pem: &str) -> Result<(), Error> {
        let replaced = self.certificate.replace(cert_pem, key_pem);
        replaced.map_err(Error::ServingCertificate)
    }

    /// Shows extension servers another certificate from now on (PEM), of the same authority;
    /// open connections go on.
    ///
    /// # Errors
    /// When it and its key don't belong together: they are shown what they were.
    pub fn call_extensions_with(&self, cert_pem: &str, key_pem: &str) -> Result<(), Error> {
        let replaced = self.core.aggregator.show(cert_pem, key_pem);
        replaced.map_err(Error::FrontProxy)
    }

    /// Shows kubelets another certificate from now on.
    ///
    /// # Errors
    /// When it is not usable: they are shown what they were.
    pub fn reach_kubelets_with(&self, access: &KubeletAccess) -> Result<(), Error> {
        self.core.kubelets.replace(access)
    }

    /// Addresses that are served, in the order of the listeners.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Whether everything that `/readyz` asks for is there.
    pub fn ready(&self) -> bool {
        is_ready(&self.core)
    }
}

/// Calls the API server without a network.
#[derive(Clone)]
pub struct InProcess {
    core: Arc<Core>,
    user: Arc<User>,
}

impl std::fmt::Debug for InProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InProcess")
            .field("user", &self.user.name)
            .finish_non_exhaustive()
    }
}

impl<B> tower::Service<Request<B>> for InProcess
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let core = self.core.clone();
        let caller = Caller::Local(self.user.clone());
        let request = request.map(|b| b.map_err(|e| -> BoxError { e.into() }).boxed_unsync());
        Box::pin(handle(core, request, caller).map(Ok))
    }
}

async fn accept(
    core: Arc<Core>,
    listener: TcpListener,
    tls: TlsAcceptor,
    scope: Scope,
    connections: Arc<Semaphore>,
) {
    /// Pause after a failed accept (out of file descriptors): it would fail again at once.
    const PAUSE: Duration = Duration::from_millis(50);
    loop {
        let next = async {
            let permit = connections.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let Some((permit, accepted)) = scope.token().run_until_cancelled(next).await else {
            return;
        };
        let Ok(permit) = permit else { return };
        match accepted {
            Ok((stream, from)) => {
                let (core, tls, stop) = (core.clone(), tls.clone(), scope.token().clone());
                scope.spawn(async move {
                    let _permit = permit;
                    connection(core, stream, from.ip(), tls, stop).await;
                });
            }
            Err(e) => {
                tracing::warn!(error = %e, "accepting a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn connection(
    core: Arc<Core>,
    stream: TcpStream,
    from: IpAddr,
    tls: TlsAcceptor,
    stop: lifecycle::CancellationToken,
) {
    // Answers are small; waiting to fill packets only delays them.
    let _ = stream.set_nodelay(true);
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream));
    let stream = match stop.run_until_cancelled(handshake).await {
        Some(Ok(Ok(stream))) => stream,
        Some(Ok(Err(e))) => {
            tracing::debug!(error = %e, "TLS handshake");
            return;
        }
        _ => return,
    };
    let shown = Arc::new(core.authn.shown(stream.get_ref().1.peer_certificates()));
    let under_way = TaskTracker::new();
    under_way.close();
    let requests = under_way.clone();
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let (core, caller) = (core.clone(), Caller::Remote(shown.clone(), from));
        let request = request.map(|b| b.map_err(|e| -> BoxError { e.into() }).boxed_unsync());
        let counted = requests.token();
        async move {
            let answer = handle(core, request, caller).await;
            Ok::<_, Infallible>(answer.map(|body| body.with(counted)))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(15));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let left = async {
                under_way.wait().await;
                tokio::time::sleep(LINGER).await;
            };
            tokio::select! {
                ended = connection => ended,
                () = left => {
                    tracing::debug!("client does not close its connection");
                    return;
                }
            }
        }
    };
    if let Err(e) = ended {
        tracing::debug!(error = %e, "connection ended");
    }
}

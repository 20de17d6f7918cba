//! The direct way to other sites: one connection of HTTP/2 over TLS to each that can be
//! reached, kept while it is needed; each connection to a Service is a stream of it (a
//! CONNECT). Not here: who is chosen (`choose`), and the way over NATS (`tunnel`), which is
//! taken while there is no direct one.
//!
//! Who is at the other end is known by its key (`lattice`, `tls`). A site tells the others
//! where it listens by a value of its state.

use crate::tunnel::{ANSWER_MAX, Refusal, Tunnels};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioIo, TokioTimer};
use lattice::{Lattice, SiteId, SiteState, View};
use lifecycle::Scope;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

/// The key under which a site tells where it listens.
pub(crate) const KEY: &str = "route";
/// Addresses of one site that are tried; of more, the first.
const ADDRESSES_MAX: usize = 8;
/// Connections whose other end has not shown who it is; further ones wait to be accepted.
const STRANGERS_MAX: usize = 128;
/// Connections of one site: of more the oldest are closed, which are those that it has lost.
const OF_SITE_MAX: usize = 4;
/// Streams of one connection; a site that wants more waits.
const STREAMS_MAX: u32 = 4096;
/// Bytes on their way in one stream, and in all of a connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// How long a connection may take to be made, TLS and all.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// While streams are open the other side is asked for a sign of life this often, and is given
/// so long and two round trips: a link that is cut is noticed within a second.
const PING: Duration = Duration::from_millis(250);
const PING_MAX: Duration = Duration::from_millis(600);
/// A site whose connection has just broken is suspected for so long; by then it is reached
/// again, or the lattice knows better.
const SUSPECTED_FOR: Duration = Duration::from_secs(2);
/// How often a site that the lattice does not hear is asked on its connection.
const DOUBTED_AGAIN: Duration = Duration::from_secs(5);
/// How often the side that was called asks on an idle connection, to forget it when it is dead.
/// It costs what is sent on it in a day: 0.1 MB.
const IDLE_PING: Duration = Duration::from_secs(120);
/// The first and the longest pause before a site is tried again.
const AGAIN_MIN: Duration = Duration::from_millis(200);
const AGAIN_MAX: Duration = Duration::from_secs(30);

const SERVICE: HeaderName = HeaderName::from_static("salp-service");

/// Where this site is reached, as it tells the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) addresses: Vec<String>,
}

impl Told {
    /// Reads what another site tells.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut told: Self = serde_json::from_slice(bytes).ok()?;
        told.addresses.truncate(ADDRESSES_MAX);
        Some(told)
    }

    pub(crate) fn to_bytes(&self) -> Bytes {
        serde_json::to_vec(self).unwrap_or_default().into()
    }
}

/// A connection to another site's Service.
pub(crate) type Far = TokioIo<Upgraded>;

/// The ways to other sites.
#[derive(Clone)]
pub(crate) struct Routes(Arc<Inner>);

struct Inner {
    lattice: Lattice,
    /// Whether sites on this machine are reached.
    on_loopback: bool,
    scope: Scope,
    /// Sites that are wanted, and how each is given up. Taken alone.
    wanted: Mutex<BTreeMap<SiteId, CancellationToken>>,
    /// Connections that are open. Taken alone, for a moment.
    open: Mutex<BTreeMap<SiteId, http2::SendRequest<Empty<Bytes>>>>,
    /// Sites whose connection has broken, and when. Taken alone, for a moment.
    broken: Mutex<BTreeMap<SiteId, Instant>>,
    reached: watch::Sender<BTreeSet<SiteId>>,
}

impl Routes {
    /// To sites on this machine there are only ways where `on_loopback`.
    pub(crate) fn new(lattice: Lattice, on_loopback: bool, scope: &Scope) -> Self {
        Self(Arc::new(Inner {
            lattice,
            on_loopback,
            scope: scope.clone(),
            wanted: Mutex::default(),
            open: Mutex::default(),
            broken: Mutex::default(),
            reached: watch::Sender::default(),
        }))
    }

    /// Sites that there is a connection to, as it changes.
    pub(crate) fn reached(&self) -> watch::Receiver<BTreeSet<SiteId>> {
        self.0.reached.subscribe()
    }

    /// Whether the connection to a site has just broken, and there is none yet.
    pub(crate) fn is_suspect(&self, site: SiteId) -> bool {
        let broken = self.0.broken.lock();
        let since = broken.get(&site);
        since.is_some_and(|since| since.elapsed() < SUSPECTED_FOR)
    }

    /// Keeps connections to these sites, as far as they can be reached, and to no others.
    pub(crate) fn want(&self, sites: &BTreeSet<SiteId>) {
        let mut wanted = self.0.wanted.lock();
        wanted.retain(|site, stop| {
            let keep = sites.contains(site);
            if !keep {
                stop.cancel();
            }
            keep
        });
        for site in sites {
            wanted.entry(*site).or_insert_with(|| {
                let stop = self.0.scope.token().child_token();
                let (routes, site, until) = (self.clone(), *site, stop.clone());
                self.0.scope.spawn(async move {
                    until.run_until_cancelled(routes.keep(site)).await;
                    routes.lost(site);
                });
                stop
            });
        }
    }

    /// A connection to a port of another site's Service; nothing when there is no way there
    /// now, so that another is to be tried.
    pub(crate) async fn connect(&self, site: SiteId, port: &str) -> Option<Result<Far, Refusal>> {
        let mut sender = self.0.open.lock().get(&site)?.clone();
        let mut request = Request::new(Empty::new());
        *request.method_mut() = http::Method::CONNECT;
        *request.uri_mut() = http::Uri::from_static("site:1");
        let value = HeaderValue::from_str(port).ok()?;
        request.headers_mut().insert(SERVICE, value);
        let asked = async {
            sender.ready().await.ok()?;
            let answer = sender.send_request(request).await.ok()?;
            match answer.status() {
                StatusCode::OK => {
                    let upgraded = hyper::upgrade::on(answer).await.ok()?;
                    Some(Ok(TokioIo::new(upgraded)))
                }
                StatusCode::NOT_FOUND => Some(Err(Refusal::NotExported)),
                _ => Some(Err(Refusal::NoAnswer)),
            }
        };
        tokio::time::timeout(ANSWER_MAX, asked).await.ok().flatten()
    }

    async fn keep(&self, site: SiteId) {
        let mut pause = AGAIN_MIN;
        loop {
            let addresses = self.addresses(site).await;
            if let Some((sender, connection)) = self.reach(site, &addresses).await {
                pause = AGAIN_MIN;
                self.0.open.lock().insert(site, sender);
                self.0.broken.lock().remove(&site);
                self.changed();
                tokio::select! {
                    // How it ended says no more than that it did.
                    _ = connection => self.suspect(site),
                    () = until_no_member(&self.0.lattice, site) => {}
                    () = self.doubt(site) => {}
                }
                self.lost(site);
            }
            // Where it listens may change meanwhile.
            let mut view = self.0.lattice.view();
            let elsewhere = view.wait_for(|v| told(v, site).as_ref() != Some(&addresses));
            tokio::select! {
                moved = elsewhere => if moved.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(AGAIN_MAX);
        }
    }

    /// Asks for an answer over the connection while the lattice does not hear the site: on an
    /// idle one nobody notices that the line is cut, and with a request on it it ends by itself.
    async fn doubt(&self, site: SiteId) {
        let mut view = self.0.lattice.view();
        let silent = |v: &Arc<View>| {
            let seen = v.sites.iter().find(|s| s.id == site);
            seen.is_some_and(|s| s.state != SiteState::Alive)
        };
        loop {
            if view.wait_for(silent).await.is_err() {
                // The lattice has stopped.
                return std::future::pending().await;
            }
            // Whatever it says to this is a sign of life.
            let _refused = self.connect(site, "").await;
            tokio::time::sleep(DOUBTED_AGAIN).await;
        }
    }

    /// Waits until a site tells where it is reached.
    async fn addresses(&self, site: SiteId) -> Vec<String> {
        let mut view = self.0.lattice.view();
        let known = view.wait_for(|v| told(v, site).is_some_and(|a| !a.is_empty()));
        let told = known.await.ok().and_then(|view| told(&view, site));
        match told {
            Some(addresses) => addresses,
            // The lattice has stopped.
            None => std::future::pending().await,
        }
    }

    async fn reach(&self, site: SiteId, addresses: &[String]) -> Option<Connection> {
        for address in addresses {
            let made = tokio::time::timeout(CONNECT_MAX, self.handshake(site, address)).await;
            match made {
                Ok(Ok(made)) => {
                    tracing::debug!(%site, address, "direct route");
                    return Some(made);
                }
                Ok(Err(error)) => tracing::debug!(%site, address, %error, "no direct route"),
                Err(_) => tracing::debug!(%site, address, "no direct route: no answer"),
            }
        }
        None
    }

    async fn handshake(&self, site: SiteId, address: &str) -> io::Result<Connection> {
        let config = self.0.lattice.tls_client(site).map_err(io::Error::other)?;
        let found = tokio::net::lookup_host(address).await?;
        let found = found.filter(|a| may_be_site(a.ip(), self.0.on_loopback));
        let stream = TcpStream::connect(&found.collect::<Vec<_>>()[..]).await?;
        stream.set_nodelay(true)?;
        // The verifier looks at keys, not at names.
        let name = rustls_pki_types::ServerName::from(stream.peer_addr()?.ip());
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await?;
        let mut builder = http2::Builder::new(InScope(self.0.scope.clone()));
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING_MAX + self.round_trip(site) * 2)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let made = builder.handshake(TokioIo::new(stream)).await;
        made.map_err(io::Error::other)
    }

    fn round_trip(&self, site: SiteId) -> Duration {
        let view = self.0.lattice.view();
        let view = view.borrow();
        let seen = view.sites.iter().find(|s| s.id == site);
        seen.and_then(|s| s.rtt).unwrap_or_default()
    }

    fn suspect(&self, site: SiteId) {
        self.0.broken.lock().insert(site, Instant::now());
        // The lattice asks it at once, and knows in time.
        self.0.lattice.traffic(site);
        let routes = self.clone();
        self.0.scope.spawn_cancellable(async move {
            tokio::time::sleep(SUSPECTED_FOR).await;
            // It is no suspect any more: that is looked at again.
            routes.0.reached.send_modify(|_| {});
        });
    }

    fn lost(&self, site: SiteId) {
        self.0.open.lock().remove(&site);
        self.changed();
    }

    fn changed(&self) {
        let now: BTreeSet<SiteId> = self.0.open.lock().keys().copied().collect();
        self.0.reached.send_if_modified(|reached| {
            let differs = *reached != now;
            *reached = now;
            differs
        });
    }
}

type Connection = (
    http2::SendRequest<Empty<Bytes>>,
    http2::Connection<TokioIo<tokio_rustls::client::TlsStream<TcpStream>>, Empty<Bytes>, InScope>,
);

/// Runs what HTTP/2 runs beside its connection.
#[derive(Clone)]
struct InScope(Scope);

impl<F> hyper::rt::Executor<F> for InScope
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        drop(self.0.spawn_cancellable(async move { drop(task.await) }));
    }
}

fn told(view: &View, site: SiteId) -> Option<Vec<String>> {
    let seen = view.sites.iter().find(|s| s.id == site)?;
    Some(Told::read(seen.entries.get(KEY)?)?.addresses)
}

/// Whether a site can be at an address that it tells: it has no business with what is this
/// machine's own, or its link's.
fn may_be_site(ip: IpAddr, on_loopback: bool) -> bool {
    let ip = ip.to_canonical();
    let of_link = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let nobody = ip.is_unspecified() || ip.is_multicast();
    !of_link && !nobody && (on_loopback || !ip.is_loopback())
}

/// Returns when a site is a member no more.
async fn until_no_member(lattice: &Lattice, site: SiteId) {
    let mut view = lattice.view();
    let gone = view.wait_for(|v| v.sites.iter().all(|s| s.id != site));
    let _ = gone.await;
}

/// Takes connections of other sites until the scope is cancelled.
pub(crate) fn serve(
    listener: std::net::TcpListener,
    lattice: &Lattice,
    tunnels: &Tunnels,
    scope: &Scope,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let config = lattice.tls_server().map_err(io::Error::other)?;
    let server = Server {
        tls: TlsAcceptor::from(Arc::new(config)),
        lattice: lattice.clone(),
        tunnels: tunnels.clone(),
        scope: scope.clone(),
        connected: Arc::default(),
    };
    scope.spawn_cancellable(server.accept(listener));
    Ok(())
}

#[derive(Clone)]
struct Server {
    tls: TlsAcceptor,
    lattice: Lattice,
    tunnels: Tunnels,
    scope: Scope,
    /// Connections of each site, oldest first. Taken for a moment.
    connected: Arc<Mutex<BTreeMap<SiteId, VecDeque<CancellationToken>>>>,
}

impl Server {
    async fn accept(self, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(STRANGERS_MAX));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else {
                return;
            };
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "accept from another site");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            let server = self.clone();
            self.scope.spawn_cancellable(async move {
                if let Err(error) = server.serve(stream, from, place).await {
                    tracing::debug!(%from, %error, "connection of another site");
                }
            });
        }
    }

    async fn serve(
        self,
        stream: TcpStream,
        from: SocketAddr,
        stranger: OwnedSemaphorePermit,
    ) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let stream = tokio::time::timeout(CONNECT_MAX, self.tls.accept(stream)).await??;
        let site = self
            .lattice
            .tls_peer(stream.get_ref().1.peer_certificates());
        // Revoked since the handshake.
        let site = site.ok_or(io::ErrorKind::PermissionDenied)?;
        drop(stranger);
        tracing::debug!(%from, %site, "direct route");
        let stale = self.connected(site);
        let mut builder = hyper::server::conn::http2::Builder::new(InScope(self.scope.clone()));
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(Some(IDLE_PING))
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let server = self.clone();
        let service = service_fn(move |request| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(site, request).await) }
        });
        let serving = builder.serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            served = serving => served.map_err(io::Error::other),
            () = until_no_member(&self.lattice, site) => Err(io::ErrorKind::PermissionDenied.into()),
            () = stale.cancelled() => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }

    /// Counts a connection of a site; what it ends by.
    fn connected(&self, site: SiteId) -> CancellationToken {
        let token = CancellationToken::new();
        let mut connected = self.connected.lock();
        let of_site = connected.entry(site).or_default();
        of_site.push_back(token.clone());
        if of_site.len() > OF_SITE_MAX
            && let Some(oldest) = of_site.pop_front()
        {
            oldest.cancel();
        }
        token
    }

    async fn answer(&self, site: SiteId, request: Request<Incoming>) -> Response<Empty<Bytes>> {
        let port = request.headers().get(SERVICE).and_then(|v| v.to_str().ok());
        let reached = match port {
            Some(port) if request.method() == http::Method::CONNECT => {
                self.tunnels.reach(site, port).await
            }
            _ => return status(StatusCode::BAD_REQUEST),
        };
        let (mut connection, permit) = match reached {
            Ok(reached) => reached,
            Err(Refusal::NotExported) => return status(StatusCode::NOT_FOUND),
            Err(Refusal::NoAnswer) => return status(StatusCode::BAD_GATEWAY),
            Err(Refusal::TooMany) => return status(StatusCode::SERVICE_UNAVAILABLE),
        };
        self.scope.spawn_cancellable(async move {
            // It begins when the answer is out.
            if let Ok(upgraded) = hyper::upgrade::on(request).await {
                let mut far = TokioIo::new(upgraded);
                // How a connection ends is its two ends' affair.
                let _ = tokio::io::copy_bidirectional(&mut connection, &mut far).await;
            }
            drop(permit);
        });
        status(StatusCode::OK)
    }
}

fn status(status: StatusCode) -> Response<Empty<Bytes>> {
    let mut response = Response::new(Empty::new());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_not_at_addresses_of_this_machine_or_its_link() {
        for (address, here, elsewhere) in [
            ("192.0.2.7", true, true),
            ("10.0.0.7", true, true),
            ("2001:db8::7", true, true),
            ("127.0.0.1", true, false),
            ("::1", true, false),
            ("::ffff:127.0.0.1", true, false),
            ("169.254.169.254", false, false),
            ("fe80::1", false, false),
            ("0.0.0.0", false, false),
            ("::", false, false),
            ("255.255.255.255", false, false),
            ("224.0.0.1", false, false),
            ("ff02::1", false, false),
        ] {
            let ip = address.parse().unwrap();
            assert_eq!(may_be_site(ip, true), here, "{address}");
            assert_eq!(may_be_site(ip, false), elsewhere, "{address}");
        }
    }

    #[test]
    fn what_a_site_tells_is_read_and_bounded() {
        let told = Told {
            addresses: vec!["192.0.2.7:7443".into()],
        };
        assert_eq!(Told::read(&told.to_bytes()), Some(told));
        let many = Told {
            addresses: vec![String::new(); 100],
        };
        let read = Told::read(&many.to_bytes()).unwrap();
        assert_eq!(read.addresses.len(), ADDRESSES_MAX);
        assert_eq!(Told::read(b"[]"), None);
    }
}

//! Connections from site to site: listeners of this machine whose connections come out at
//! another site's Service, and the other end of such. They go directly where there is a way
//! (`routes`), else over the lattice.
//!
//! There the first line of a stream says where it is to go. Only exported Services are reached.

use crate::plan::Gate;
use crate::routes::Routes;
use lattice::{Incoming, Lattice, SiteId, SiteState, SiteStream};
use lifecycle::Scope;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// The protocol of such streams.
pub(crate) const PROTOCOL: &str = "service";
/// Connections to and from other sites at once; further ones wait to be accepted, and those
/// of other sites are refused.
const CONNECTIONS_MAX: usize = 4096;
/// Bytes of the first line.
const LINE_MAX: usize = 512;
/// While a connection is open its site is watched; this often it is said again.
const TRAFFIC_EVERY: Duration = Duration::from_secs(5);
/// How long this site's own Service may take to accept.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Where an exported port of this site answers.
pub(crate) type Targets = HashMap<(String, String, String), Vec<SocketAddr>>;

/// Why a port of a Service is not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    NotExported,
    NoAnswer,
    TooMany,
}

impl Refusal {
    fn text(self) -> &'static str {
        match self {
            Self::NotExported => "the Service is not exported",
            Self::NoAnswer => "the Service does not answer",
            Self::TooMany => "too many connections",
        }
    }
}

/// The listeners, and who is reached from outside.
#[derive(Clone)]
pub(crate) struct Tunnels {
    lattice: Lattice,
    routes: Routes,
    scope: Scope,
    /// What listens, and how it is stopped. Taken alone.
    open: Arc<Mutex<BTreeMap<Gate, (u16, CancellationToken)>>>,
    /// Replaced as a whole.
    targets: Arc<RwLock<Targets>>,
    connections: Arc<Semaphore>,
}

impl Tunnels {
    pub(crate) fn new(lattice: Lattice, routes: Routes, scope: &Scope) -> Self {
        Self {
            lattice,
            routes,
            scope: scope.clone(),
            open: Arc::default(),
            targets: Arc::default(),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        }
    }

    /// Says what of this site may be reached.
    pub(crate) fn set_targets(&self, targets: Targets) {
        *self.targets.write() = targets;
    }

    /// Listens for these gates and no others; the ports. Open connections go on.
    pub(crate) fn listen(&self, wanted: &BTreeSet<Gate>) -> BTreeMap<Gate, u16> {
        let mut open = self.open.lock();
        open.retain(|gate, (_, stop)| {
            let keep = wanted.contains(gate);
            if !keep {
                stop.cancel();
            }
            keep
        });
        for gate in wanted {
            if open.contains_key(gate) {
                continue;
            }
            match bind() {
                Ok((listener, port)) => {
                    let stop = self.scope.token().child_token();
                    let serving = self.clone().accept(listener, gate.clone());
                    let until = stop.clone();
                    self.scope
                        .spawn(async move { until.run_until_cancelled(serving).await });
                    open.insert(gate.clone(), (port, stop));
                }
                Err(error) => {
                    tracing::warn!(%error, service = gate.service, "listen for an import")
                }
            }
        }
        open.iter()
            .map(|(gate, (port, _))| (gate.clone(), *port))
            .collect()
    }

    async fn accept(self, listener: TcpListener, gate: Gate) {
        loop {
            let Ok(permit) = self.connections.clone().acquire_owned().await else {
                return;
            };
            let connection = match listener.accept().await {
                Ok((connection, _)) => connection,
                Err(error) => {
                    tracing::debug!(%error, "accept for an import");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            let (tunnels, gate) = (self.clone(), gate.clone());
            self.scope.spawn_cancellable(async move {
                if let Err(error) = tunnels.go(connection, &gate).await {
                    tracing::debug!(%error, service = gate.service, "connection to another site");
                }
                drop(permit);
            });
        }
    }

    /// Carries one connection to another site.
    async fn go(&self, mut connection: TcpStream, gate: &Gate) -> io::Result<()> {
        let _ = connection.set_nodelay(true);
        let port = format!("{}/{}/{}", gate.namespace, gate.service, gate.port);
        if let Some(far) = self.routes.connect(gate.site, &port).await {
            let mut far = far.map_err(|refusal| io::Error::other(refusal.text()))?;
            let done = tokio::io::copy_bidirectional(&mut connection, &mut far);
            return done.await.map(drop);
        }
        if self.routes.is_suspect(gate.site) {
            // Over NATS it would wait for what may be dead; somebody else may answer.
            return Err(io::ErrorKind::HostUnreachable.into());
        }
        self.lattice.traffic(gate.site);
        let stream = self.lattice.open(gate.site, PROTOCOL, None).await;
        let mut stream = stream.map_err(io::Error::other)?;
        stream.write_all(format!("{port}\n").as_bytes()).await?;
        tokio::select! {
            done = tokio::io::copy_bidirectional(&mut connection, &mut stream) => done.map(drop),
            () = self.watch(gate.site) => Err(io::ErrorKind::HostUnreachable.into()),
        }
    }

    /// Keeps a site watched until it is gone.
    async fn watch(&self, site: SiteId) {
        let mut view = self.lattice.view();
        let gone = view.wait_for(|view| {
            let seen = view.sites.iter().find(|s| s.id == site);
            seen.is_none_or(|s| matches!(s.state, SiteState::Gone | SiteState::Left))
        });
        tokio::pin!(gone);
        let mut again = tokio::time::interval(TRAFFIC_EVERY);
        loop {
            tokio::select! {
                _ = &mut gone => return,
                _ = again.tick() => self.lattice.traffic(site),
            }
        }
    }

    /// Takes a stream of another site to this site's Service.
    pub(crate) fn take(&self, incoming: Incoming) {
        let tunnels = self.clone();
        self.scope.spawn_cancellable(async move {
            if let Err(error) = tunnels.come(incoming.stream).await {
                tracing::debug!(%error, from = %incoming.from, "connection of another site");
            }
        });
    }

    async fn come(&self, mut stream: SiteStream) -> io::Result<()> {
        let line = line(&stream).await?;
        let (mut connection, _permit) = match self.reach(&line).await {
            Ok(reached) => reached,
            Err(refusal) => {
                stream.cancel(refusal.text());
                return Ok(());
            }
        };
        tokio::io::copy_bidirectional(&mut connection, &mut stream)
            .await
            .map(drop)
    }

    /// Connects to a port of this site's Service, in the name of another site.
    pub(crate) async fn reach(
        &self,
        port: &str,
    ) -> Result<(TcpStream, OwnedSemaphorePermit), Refusal> {
        let permits = self.connections.clone();
        let permit = permits.try_acquire_owned().map_err(|_| Refusal::TooMany)?;
        let target = parse(port).and_then(|key| {
            let targets = self.targets.read();
            let addresses = targets.get(&key)?;
            addresses.first().copied()
        });
        let target = target.ok_or(Refusal::NotExported)?;
        let connecting = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(target));
        let connection = match connecting.await {
            Ok(Ok(connection)) => connection,
            refused => {
                tracing::debug!(?refused, port, "reach a Service for another site");
                return Err(Refusal::NoAnswer);
            }
        };
        let _ = connection.set_nodelay(true);
        Ok((connection, permit))
    }
}

/// The first line of a stream.
pub(crate) async fn line(stream: &SiteStream) -> io::Result<String> {
    let mut line = Vec::new();
    while line.len() < LINE_MAX {
        // One byte at a time: what follows is not for here.
        let byte = stream.next(1).await.map_err(io::Error::other)?;
        match byte.first() {
            Some(b'\n') => {
                return String::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData.into());
            }
            Some(byte) => line.push(*byte),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

fn parse(line: &str) -> Option<(String, String, String)> {
    let mut parts = line.split('/').map(str::to_owned);
    let key = (parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then_some(key)
}

fn bind() -> io::Result<(TcpListener, u16)> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    Ok((TcpListener::from_std(listener)?, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_names_a_port() {
        let key = ("shop".to_owned(), "till".to_owned(), "http".to_owned());
        assert_eq!(parse("shop/till/http"), Some(key));
        assert!(parse("shop/till/").is_some());
        for bad in ["", "shop", "shop/till", "shop/till/http/x"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}

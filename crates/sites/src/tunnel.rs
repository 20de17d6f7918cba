//! Connections from site to site: one end asks for a port of the other's Service, the other
//! connects to it. They go directly where there is a way (`routes`), else over the lattice.
//!
//! There the first line of a stream says where it is to go, and one byte answers that it is
//! there: what is said before that byte can be said to another site as well. Only exported
//! Services are reached.

use crate::routes::{self, Routes};
use bytes::Bytes;
use lattice::{Incoming, Lattice, SiteId, SiteState, SiteStream};
use lifecycle::Scope;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// The protocol of such streams.
pub(crate) const PROTOCOL: &str = "service";
/// Connections of one site at once; further ones are refused.
const CONNECTIONS_OF_SITE_MAX: usize = 2048;
/// Bytes of the first line.
const LINE_MAX: usize = 512;
/// Says that the Service has taken the connection.
const TAKEN: &[u8] = b"+";
/// While a connection is open its site is watched; this often it is said again.
const TRAFFIC_EVERY: Duration = Duration::from_secs(5);
/// How long this site's own Service may take to accept.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Endpoints of a Service without address that are tried for one connection.
const ENDPOINTS_TRIED: usize = 3;
/// How long the other side may take to reach its Service: longer than it gives itself.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(12);

/// Where an exported port of this site answers, by namespace, Service, and port; or port and
/// host name, `PORT/HOST`, of one endpoint.
pub(crate) type Targets = HashMap<(String, String, String), Vec<SocketAddr>>;

/// Why a port of a Service is not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the Service is not exported")]
    NotExported,
    #[error("the Service does not answer")]
    NoAnswer,
    #[error("too many connections")]
    TooMany,
}

/// Why there is no connection to another site's Service.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreached {
    /// The site says so.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There is no way to the site now.
    #[error("reach site")]
    NoWay(#[source] io::Error),
}

/// A connection to another site's Service.
pub(crate) enum Far {
    Direct(routes::Far),
    Lattice(SiteStream),
}

/// Both ends.
#[derive(Clone)]
pub(crate) struct Tunnels {
    lattice: Lattice,
    routes: Routes,
    scope: Scope,
    /// Replaced as a whole; nothing until this site knows its own Services.
    targets: Arc<watch::Sender<Option<Targets>>>,
    /// Counts connections, so that endpoints of a Service without address take turns.
    turn: Arc<AtomicUsize>,
    /// One a member that has asked. Taken for a moment.
    taken: Arc<Mutex<HashMap<SiteId, Arc<Semaphore>>>>,
}

impl Tunnels {
    pub(crate) fn new(lattice: Lattice, routes: Routes, scope: &Scope) -> Self {
        Self {
            lattice,
            routes,
            scope: scope.clone(),
            targets: Arc::default(),
            turn: Arc::default(),
            taken: Arc::default(),
        }
    }

    pub(crate) fn lattice(&self) -> &Lattice {
        &self.lattice
    }

    pub(crate) fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Says what of this site may be reached.
    pub(crate) fn set_targets(&self, targets: Targets) {
        self.targets.send_replace(Some(targets));
    }

    /// Connects to a port of another site's Service, `namespace/service/port`. When there is
    /// none nothing was said to it.
    pub(crate) async fn connect(&self, site: SiteId, port: &str) -> Result<Far, Unreached> {
        if let Some(far) = self.routes.connect(site, port).await {
            return Ok(Far::Direct(far?));
        }
        if self.routes.is_suspect(site) {
            // Over NATS it would wait for what may be dead; somebody else may answer.
            return Err(Unreached::NoWay(io::ErrorKind::HostUnreachable.into()));
        }
        self.lattice.traffic(site);
        let line = Bytes::from(format!("{port}\n"));
        let asked = async {
            let stream = self.lattice.open(site, PROTOCOL, None).await;
            let mut stream = stream.map_err(io::Error::other)?;
            stream.write_all(&line).await?;
            let answer = stream.next(TAKEN.len()).await;
            match answer.map_err(io::Error::other)? {
                answer if answer == TAKEN => Ok(Far::Lattice(stream)),
                _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
            }
        };
        let answered = tokio::select! {
            answered = tokio::time::timeout(ANSWER_MAX, asked) => answered,
            () = self.watch(site) => Ok(Err(io::ErrorKind::HostUnreachable.into())),
        };
        let far = answered.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        far.map_err(|error| match refusal(&error) {
            Some(refusal) => Unreached::Refused(refusal),
            None => Unreached::NoWay(error),
        })
    }

    /// Carries bytes both ways until both ends have said all, or the site is gone.
    pub(crate) async fn carry(
        &self,
        mut near: TcpStream,
        far: Far,
        site: SiteId,
    ) -> io::Result<()> {
        let done = match far {
            Far::Direct(mut far) => tokio::io::copy_bidirectional(&mut near, &mut far).await,
            Far::Lattice(mut far) => tokio::select! {
                done = tokio::io::copy_bidirectional(&mut near, &mut far) => done,
                () = self.watch(site) => Err(io::ErrorKind::HostUnreachable.into()),
            },
        };
        done.map(drop)
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
            if let Err(error) = tunnels.come(incoming.stream, incoming.from).await {
                tracing::debug!(%error, from = %incoming.from, "connection of another site");
            }
        });
    }

    async fn come(&self, mut stream: SiteStream, from: SiteId) -> io::Result<()> {
        let line = tokio::time::timeout(CONNECT_MAX, line(&stream)).await??;
        let (mut connection, _permit) = match self.reach(from, &line).await {
            Ok(reached) => reached,
            Err(refusal) => {
                stream.cancel(&refusal.to_string());
                return Ok(());
            }
        };
        stream.write_all(TAKEN).await?;
        tokio::io::copy_bidirectional(&mut connection, &mut stream)
            .await
            .map(drop)
    }

    /// Connects to a port of this site's Service, in the name of another site.
    pub(crate) async fn reach(
        &self,
        from: SiteId,
        port: &str,
    ) -> Result<(TcpStream, OwnedSemaphorePermit), Refusal> {
        let permits = {
            let mut taken = self.taken.lock();
            let of_site = taken.entry(from);
            of_site
                .or_insert_with(|| Arc::new(Semaphore::new(CONNECTIONS_OF_SITE_MAX)))
                .clone()
        };
        let permit = permits.try_acquire_owned().map_err(|_| Refusal::TooMany)?;
        let reached = tokio::time::timeout(CONNECT_MAX, self.target(port)).await;
        let connection = match reached {
            Ok(Ok(connection)) => connection,
            Ok(Err(refusal)) => return Err(refusal),
            Err(_) => return Err(Refusal::NoAnswer),
        };
        let _ = connection.set_nodelay(true);
        Ok((connection, permit))
    }

    async fn target(&self, port: &str) -> Result<TcpStream, Refusal> {
        let key = parse(port).ok_or(Refusal::NotExported)?;
        let mut targets = self.targets.subscribe();
        // Just after a start they are not known yet.
        let mut addresses = {
            let known = targets.wait_for(Option::is_some).await;
            let known = known.map_err(|_| Refusal::NoAnswer)?;
            let addresses = known.as_ref().and_then(|t| t.get(&key));
            addresses.ok_or(Refusal::NotExported)?.clone()
        };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let first = turn % addresses.len().max(1);
        addresses.rotate_left(first);
        for address in addresses.into_iter().take(ENDPOINTS_TRIED) {
            match TcpStream::connect(address).await {
                Ok(connection) => return Ok(connection),
                Err(error) => tracing::debug!(%error, port, "reach a Service for another site"),
            }
        }
        Err(Refusal::NoAnswer)
    }
}

/// What the other side meant by cancelling a stream.
fn refusal(error: &io::Error) -> Option<Refusal> {
    let why = error.get_ref()?.downcast_ref::<lattice::StreamError>()?;
    let lattice::StreamError::Reset(why) = why else {
        return None;
    };
    let all = [Refusal::NotExported, Refusal::NoAnswer, Refusal::TooMany];
    all.into_iter().find(|r| why.contains(&r.to_string()))
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
    let mut parts = line.splitn(3, '/').map(str::to_owned);
    let key = (parts.next()?, parts.next()?, parts.next()?);
    // The port's name, or that and a host's.
    (key.2.split('/').count() <= 2).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_names_a_port() {
        let key = ("shop".to_owned(), "till".to_owned(), "http".to_owned());
        assert_eq!(parse("shop/till/http"), Some(key));
        assert!(parse("shop/till/").is_some());
        let one = (
            "shop".to_owned(),
            "till".to_owned(),
            "http/web-0".to_owned(),
        );
        assert_eq!(parse("shop/till/http/web-0"), Some(one));
        for bad in ["", "shop", "shop/till", "shop/till/http/x/y"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_cancelled_stream_says_why() {
        let reset = |why: &str| io::Error::other(lattice::StreamError::Reset(why.into()));
        let refused = reset("the Service is not exported");
        assert_eq!(refusal(&refused), Some(Refusal::NotExported));
        assert_eq!(refusal(&reset("the site has restarted")), None);
        assert_eq!(refusal(&io::ErrorKind::TimedOut.into()), None);
    }
}

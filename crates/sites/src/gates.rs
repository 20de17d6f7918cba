//! Listeners of this machine whose connections come out at another site's Service: what an
//! import's endpoints are when another site answers.
//!
//! Each is for one site. When that one has no way at the moment, or does not want it, and
//! nothing was said to it yet, the connection goes to the next that exports the Service; when
//! there is none it is held for a while. So whoever writes the endpoints may be late, or dead.
//!
//! One of a Service without address listens where the Service's clients ask: at its true port,
//! at an address of its own. Others, and those that find this taken, share one address.
//!
//! Ports and what the site told the others are kept in a file ([`Kept`]): a process that is
//! started again listens where its predecessor did.

use crate::plan::Gate;
use crate::tunnel::{Far, Tunnels, Unreached};
use bytes::Bytes;
use lattice::SiteId;
use lifecycle::Scope;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Connections to other sites at once; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 4096;
/// How long a connection is held while no site can be reached.
const HELD_MAX: Duration = Duration::from_secs(5);
/// Pause before sites are tried again, after a change or not.
const AGAIN_MIN: Duration = Duration::from_millis(20);
const AGAIN_MAX: Duration = Duration::from_millis(500);

/// Who is asked for a Service, nearest first.
pub(crate) type Order = HashMap<(String, String), Vec<SiteId>>;

type Open = BTreeMap<Gate, (SocketAddr, CancellationToken)>;

/// The listeners.
#[derive(Clone)]
pub(crate) struct Gates {
    tunnels: Tunnels,
    address: IpAddr,
    /// For those that have an address of their own.
    block: Option<RangeInclusive<Ipv4Addr>>,
    scope: Scope,
    /// What listens, and how it is stopped. Taken alone.
    open: Arc<Mutex<Open>>,
    /// Replaced as a whole.
    order: Arc<RwLock<Order>>,
    connections: Arc<Semaphore>,
}

impl Gates {
    /// Without listeners yet; they will be at this address, or at ones of this block.
    pub(crate) fn new(
        tunnels: Tunnels,
        address: IpAddr,
        block: Option<RangeInclusive<Ipv4Addr>>,
        scope: &Scope,
    ) -> Self {
        Self {
            tunnels,
            address,
            block,
            scope: scope.clone(),
            open: Arc::default(),
            order: Arc::default(),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        }
    }

    /// Says who is asked when a gate's own site can't be.
    pub(crate) fn set_order(&self, order: Order) {
        *self.order.write() = order;
    }

    /// Listens where the process before this one did.
    pub(crate) fn restore(&self, kept: &Kept) {
        let mut open = self.open.lock();
        for kept in &kept.gates {
            let Some(gate) = kept.gate() else { continue };
            let at = SocketAddr::new(kept.address.unwrap_or(self.address), kept.listen);
            match self.bind(&gate, at) {
                Ok(opened) => drop(open.insert(gate, opened)),
                // Somebody else's by now: the endpoints will be told another.
                Err(error) => tracing::debug!(%error, %at, "listen again"),
            }
        }
    }

    /// Listens for these gates as well; where all that are open listen.
    pub(crate) fn open(&self, wanted: &BTreeSet<Gate>) -> BTreeMap<Gate, SocketAddr> {
        let mut open = self.open.lock();
        for gate in wanted {
            if open.contains_key(gate) {
                continue;
            }
            let own = self.own_place(gate, &open).and_then(|at| {
                let bound = self.bind(gate, at);
                // A port of the privileged, or somebody's.
                bound
                    .inspect_err(|error| tracing::debug!(%error, %at, "listen for an import"))
                    .ok()
            });
            let bound = own.map_or_else(|| self.bind(gate, SocketAddr::new(self.address, 0)), Ok);
            match bound {
                Ok(opened) => drop(open.insert(gate.clone(), opened)),
                Err(error) => {
                    tracing::warn!(%error, service = gate.service, "listen for an import");
                }
            }
        }
        let listens = open.iter().map(|(gate, (at, _))| (gate.clone(), *at));
        listens.collect()
    }

    /// Where a gate listens that is to have an address of its own, the same for all ports of
    /// one endpoint, and most likely the same whenever it is asked for.
    fn own_place(&self, gate: &Gate, open: &Open) -> Option<SocketAddr> {
        let port = gate.own?;
        let (first, last) = self.block.clone()?.into_inner();
        let (first, size) = (first.to_bits(), last.to_bits() - first.to_bits() + 1);
        let mut taken = BTreeSet::new();
        for (other, (at, _)) in open.iter().filter(|(other, _)| other.own.is_some()) {
            if other.is_beside(gate) && at.ip() != self.address {
                return Some(SocketAddr::new(at.ip(), port));
            }
            taken.insert(at.ip());
        }
        let named = format!(
            "{}/{}/{}/{}",
            gate.namespace, gate.service, gate.site, gate.host
        );
        let digest = Sha256::digest(named);
        let start = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) % size;
        let mut numbers = (start..size).chain(0..start);
        let address = numbers.find_map(|n| {
            let address = IpAddr::V4(Ipv4Addr::from_bits(first + n));
            (!taken.contains(&address)).then_some(address)
        })?;
        Some(SocketAddr::new(address, port))
    }

    /// Listens for no others any more, once no endpoint says their ports. Open connections
    /// go on.
    pub(crate) fn close_others(&self, wanted: &BTreeSet<Gate>) {
        self.open.lock().retain(|gate, (_, stop)| {
            let keep = wanted.contains(gate);
            if !keep {
                stop.cancel();
            }
            keep
        });
    }

    fn bind(&self, gate: &Gate, at: SocketAddr) -> io::Result<(SocketAddr, CancellationToken)> {
        let listener = std::net::TcpListener::bind(at)?;
        listener.set_nonblocking(true)?;
        let at = listener.local_addr()?;
        let listener = TcpListener::from_std(listener)?;
        let stop = self.scope.token().child_token();
        let serving = self.clone().accept(listener, gate.clone());
        let until = stop.clone();
        self.scope
            .spawn(async move { until.run_until_cancelled(serving).await });
        Ok((at, stop))
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
            let (gates, gate) = (self.clone(), gate.clone());
            self.scope.spawn_cancellable(async move {
                if let Err(error) = gates.go(connection, &gate).await {
                    tracing::debug!(%error, service = gate.service, "connection to another site");
                }
                drop(permit);
            });
        }
    }

    /// Carries one connection to another site.
    async fn go(&self, near: TcpStream, gate: &Gate) -> io::Result<()> {
        let _ = near.set_nodelay(true);
        let (site, far) = self.reach(gate).await.map_err(io::Error::other)?;
        self.tunnels.carry(near, far, site).await
    }

    /// Reaches the gate's site, or another that has the Service.
    async fn reach(&self, gate: &Gate) -> Result<(SiteId, Far), Unreached> {
        let mut port = format!("{}/{}/{}", gate.namespace, gate.service, gate.port);
        if !gate.host.is_empty() {
            port = format!("{port}/{}", gate.host);
        }
        let mut view = self.tunnels.lattice().view();
        let mut reached = self.tunnels.routes().reached();
        let until = Instant::now() + HELD_MAX;
        loop {
            view.mark_unchanged();
            reached.mark_unchanged();
            let mut refused = None;
            let mut lost = None;
            for site in self.candidates(gate) {
                match self.tunnels.connect(site, &port).await {
                    Ok(far) => return Ok((site, far)),
                    Err(error) => {
                        tracing::debug!(%site, %error, port, "reach another site's Service");
                        match error {
                            Unreached::Refused(_) => refused = Some(error),
                            Unreached::NoWay(_) => lost = Some(error),
                        }
                    }
                }
            }
            // All were asked and none wants it; else somebody may be back in a moment.
            let Some(last) = lost else {
                let nobody = || Unreached::NoWay(io::ErrorKind::HostUnreachable.into());
                return Err(refused.unwrap_or_else(nobody));
            };
            if Instant::now() >= until {
                return Err(last);
            }
            tokio::time::sleep(AGAIN_MIN).await;
            tokio::select! {
                _ = view.changed() => {}
                _ = reached.changed() => {}
                () = tokio::time::sleep(AGAIN_MAX) => {}
            }
        }
    }

    fn candidates(&self, gate: &Gate) -> Vec<SiteId> {
        let order = self.order.read();
        let others = order.get(&(gate.namespace.clone(), gate.service.clone()));
        // One endpoint is no other site's.
        let others = others.filter(|_| gate.host.is_empty());
        let others = others.into_iter().flatten().copied();
        std::iter::once(gate.site)
            .chain(others.filter(|site| *site != gate.site))
            .collect()
    }
}

/// What a process leaves to the one that follows it. Nothing depends on its being there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    gates: Vec<KeptGate>,
    /// What the others were told last.
    told: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KeptGate {
    namespace: String,
    service: String,
    port: String,
    site: String,
    share: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    host: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    own: Option<u16>,
    /// None: that which all share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<IpAddr>,
    listen: u16,
}

impl KeptGate {
    fn gate(&self) -> Option<Gate> {
        Some(Gate {
            namespace: self.namespace.clone(),
            service: self.service.clone(),
            port: self.port.clone(),
            site: self.site.parse().ok()?,
            share: self.share,
            host: self.host.clone(),
            own: self.own,
        })
    }
}

impl Kept {
    pub(crate) fn new(
        listens: &BTreeMap<Gate, SocketAddr>,
        told: &BTreeMap<String, Bytes>,
    ) -> Self {
        let gates = listens.iter().map(|(gate, listen)| KeptGate {
            namespace: gate.namespace.clone(),
            service: gate.service.clone(),
            port: gate.port.clone(),
            site: gate.site.to_string(),
            share: gate.share,
            host: gate.host.clone(),
            own: gate.own,
            address: gate.own.is_some().then_some(listen.ip()),
            listen: listen.port(),
        });
        let text = |value: &Bytes| String::from_utf8(value.to_vec()).ok();
        let told = told.iter().filter_map(|(k, v)| Some((k.clone(), text(v)?)));
        Self {
            gates: gates.collect(),
            told: told.collect(),
        }
    }

    pub(crate) fn told(&self) -> BTreeMap<String, Bytes> {
        let told = self.told.iter();
        told.map(|(k, v)| (k.clone(), Bytes::from(v.clone())))
            .collect()
    }

    pub(crate) fn has_gates(&self) -> bool {
        !self.gates.is_empty()
    }

    /// What the file says; nothing when it is not there or can't be so.
    pub(crate) fn read(path: &Path) -> Self {
        let read = std::fs::read(path);
        let kept = read.map(|bytes| serde_json::from_slice(&bytes));
        match kept {
            Ok(Ok(kept)) => kept,
            Ok(Err(error)) => {
                tracing::warn!(%error, path = %path.display(), "what was kept of imports is not used");
                Self::default()
            }
            Err(_) => Self::default(),
        }
    }

    /// Replaces the file as a whole. It need not outlive a power cut: nobody would know its
    /// ports then.
    pub(crate) fn write(&self, path: &PathBuf) -> io::Result<()> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let aside = path.with_extension("new");
        let mut options = std::fs::File::options();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        options
            .open(&aside)?
            .write_all(&serde_json::to_vec(self)?)?;
        std::fs::rename(aside, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_what_is_torn_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imports.json");
        assert_eq!(Kept::read(&path), Kept::default());
        let gate = Gate {
            namespace: "shop".into(),
            service: "till".into(),
            port: "http".into(),
            site: SiteId([7; 16]),
            share: 1,
            host: "till-0".into(),
            own: Some(4711),
        };
        let at = SocketAddr::from(([10, 42, 255, 7], 4711));
        let told = BTreeMap::from([("export/shop/till".to_owned(), Bytes::from_static(b"{}"))]);
        let kept = Kept::new(&BTreeMap::from([(gate.clone(), at)]), &told);
        kept.write(&path).unwrap();
        let read = Kept::read(&path);
        assert_eq!(read, kept);
        assert_eq!(read.told(), told);
        assert_eq!(read.gates[0].gate(), Some(gate));
        assert_eq!(read.gates[0].address, Some(at.ip()));
        let whole = std::fs::read(&path).unwrap();
        for end in 0..whole.len() {
            std::fs::write(&path, &whole[..end]).unwrap();
            assert_eq!(Kept::read(&path), Kept::default(), "{end}");
        }
    }
}

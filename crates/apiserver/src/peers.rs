//! The API servers that share one store: who lives, what clients are told of them, and which
//! one does what needs to be done by one only.
//!
//! Each server renews a Lease in `kube-system` as upstream's servers do, with its address
//! beside. A server lives as long as the others see its Lease change: clocks are not compared.
//! The addresses of those that live are the endpoints of the `kubernetes` Service. A server
//! that is alone on its store has nothing of this. Start with [`Peers::start`].

use crate::allocate::repair::{self, Suspects};
use crate::bootstrap;
use crate::config::Shared;
use crate::registry::Call;
use crate::registry::create::{Tracking, create};
use crate::registry::delete::{DeleteOptions, delete};
use crate::registry::update::{Part, modify};
use crate::row::Row;
use crate::server_state::Core;
use apimachinery::Status;
use lifecycle::Scope;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

const NAMESPACE: &str = "kube-system";
/// Upstream's label of the Leases of API servers.
const LABEL: &str = "apiserver.kubernetes.io/identity";
const LABEL_VALUE: &str = "kube-apiserver";
/// Where the server is reached.
const ADDRESS: &str = "salp.dev/address";
/// Renewals in the time after which a server that is silent counts as dead.
const RENEWALS: u32 = 3;
/// Between two looks at what is claimed and what Services have; longer than a request takes.
const REPAIR_EVERY: Duration = Duration::from_secs(180);
/// How long a server that stops may take to say so.
const FAREWELL: Duration = Duration::from_secs(2);

/// One of several servers of a store.
pub(crate) struct Peers {
    settings: Shared,
    address: SocketAddr,
    /// Name of this process among all that ever were.
    holder: String,
    /// What the others' Leases were when they last changed. Guards nothing else; held for one
    /// look.
    seen: Mutex<HashMap<String, (u64, Instant)>>,
    /// It does what one does for all.
    on_duty: AtomicBool,
    leaving: AtomicBool,
    client_ca: String,
}

/// A server that lives.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Peer {
    name: String,
    address: SocketAddr,
}

impl Peers {
    pub(crate) fn new(settings: Shared, address: SocketAddr, client_ca: &str, uid: &str) -> Self {
        Self {
            holder: format!("{}_{uid}", settings.name),
            settings,
            address,
            seen: Mutex::default(),
            on_duty: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            client_ca: client_ca.to_owned(),
        }
    }

    /// Whether this is the one that does what one does for all. While servers come and go two
    /// may be: what they do bears it.
    pub(crate) fn on_duty(&self) -> bool {
        self.on_duty.load(Ordering::Relaxed)
    }

    fn lease(&self) -> String {
        lease_name(&self.settings.name)
    }

    /// Those that live, by name.
    fn alive(&self, core: &Core) -> Vec<Peer> {
        let leases = core.cache.named("coordination.k8s.io", "leases");
        let all = leases.into_iter().flat_map(|kind| kind.all());
        let of_servers = all.filter(|o| o.namespace() == NAMESPACE && o.name().starts_with(PREFIX));
        let now = Instant::now();
        let mut seen = self.seen.lock();
        let mut found = BTreeSet::new();
        let mut alive = Vec::new();
        for object in of_servers {
            let value = object.value();
            let address = &value["metadata"]["annotations"][ADDRESS];
            let address = address.as_str().and_then(|a| a.parse().ok());
            let (Some(address), LABEL_VALUE) = (
                address,
                value["metadata"]["labels"][LABEL]
                    .as_str()
                    .unwrap_or_default(),
            ) else {
                continue;
            };
            let name = object.name().trim_start_matches(PREFIX).to_owned();
            found.insert(object.name().to_owned());
            if object.name() == self.lease() {
                if !self.leaving.load(Ordering::Relaxed) {
                    alive.push(Peer { name, address });
                }
                continue;
            }
            let known = seen
                .entry(object.name().to_owned())
                .or_insert((object.revision, now));
            if known.0 != object.revision {
                *known = (object.revision, now);
            }
            if now - known.1 < self.settings.lease {
                alive.push(Peer { name, address });
            }
        }
        seen.retain(|name, _| found.contains(name));
        alive
    }

    /// Announces this server and keeps what clients are told, until the scope is cancelled.
    ///
    /// # Errors
    /// When another server lives by the same name, and what writing says.
    pub(crate) async fn start(core: &Arc<Core>, scope: &Scope) -> Result<(), Status> {
        let Some(peers) = &core.peers else {
            return Ok(());
        };
        let mut suspects = Suspects::new();
        repair::repair(core, &mut suspects)
            .await
            .map_err(Status::internal)?;
        peers.alone_by_its_name(core).await?;
        peers.renew(core).await?;
        peers.tell(core).await?;
        scope.spawn_cancellable(run(Arc::downgrade(core), peers.settings.lease, suspects));
        Ok(())
    }

    /// Says goodbye: the others and the clients need not wait for the Lease to run out.
    pub(crate) async fn leave(core: &Arc<Core>) {
        let Some(peers) = &core.peers else { return };
        peers.leaving.store(true, Ordering::Relaxed);
        peers.on_duty.store(false, Ordering::Relaxed);
        let farewell = async {
            peers.tell(core).await?;
            peers.drop_lease(core, &peers.lease()).await
        };
        match tokio::time::timeout(FAREWELL, farewell).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::debug!(error = %e, "taking leave of the other servers"),
            Err(_) => tracing::debug!("taking leave of the other servers: no time left"),
        }
    }

    /// A server that lives by this name at another address is another machine's.
    async fn alone_by_its_name(&self, core: &Arc<Core>) -> Result<(), Status> {
        let lease = || core.peek("coordination.k8s.io", "leases", NAMESPACE, &self.lease());
        let Some(found) = lease() else { return Ok(()) };
        let value = found.value();
        let address = value["metadata"]["annotations"][ADDRESS].as_str();
        let address = address.unwrap_or_default();
        if address == self.address.to_string() {
            return Ok(());
        }
        let until = Instant::now() + self.settings.lease;
        let mut applied = core.cache.subscribe();
        loop {
            match lease() {
                None => return Ok(()),
                Some(now) if now.revision != found.revision => {
                    return Err(Status::conflict(
                        "coordination.k8s.io",
                        "leases",
                        &self.lease(),
                        format!(
                            "an API server named {} runs at {address}: give this one another --node-name",
                            self.settings.name
                        ),
                    ));
                }
                Some(_) => {}
            }
            if tokio::time::timeout_at(until, applied.changed())
                .await
                .is_err()
            {
                return Ok(());
            }
        }
    }

    async fn renew(&self, core: &Arc<Core>) -> Result<(), Status> {
        let row = row("coordination.k8s.io", "leases")?;
        let (user, name) = (Core::own_user(), self.lease());
        let call = Call::own(core, &row, NAMESPACE, &name, &user);
        let now = core
            .clock
            .now()
            .strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
            .to_string();
        let lease = json!({
            "kind": "Lease", "apiVersion": "coordination.k8s.io/v1",
            "metadata": {
                "name": name, "namespace": NAMESPACE,
                "labels": {LABEL: LABEL_VALUE, "kubernetes.io/hostname": self.settings.name},
                "annotations": {ADDRESS: self.address.to_string()},
            },
            "spec": {
                "holderIdentity": self.holder,
                "leaseDurationSeconds": self.settings.lease.as_secs().max(1),
                "renewTime": now,
            },
        });
        let there = core.peek("coordination.k8s.io", "leases", NAMESPACE, &name);
        if there.is_none() {
            match create(&call, lease.clone(), Tracking::Update).await {
                Err(s) if s.reason == "AlreadyExists" => {}
                made => return made.map(drop),
            }
        }
        let renewed = |old: &Value| {
            let mut new = old.clone();
            new["spec"] = lease["spec"].clone();
            for key in ["labels", "annotations"] {
                new["metadata"][key] = lease["metadata"][key].clone();
            }
            Ok(new)
        };
        match modify(&call, Part::Main, Tracking::Update, &renewed).await {
            // Another took it for dead: the next time it is made anew.
            Err(s) if s.code == 404 => Ok(()),
            done => done.map(drop),
        }
    }

    async fn drop_lease(&self, core: &Arc<Core>, name: &str) -> Result<(), Status> {
        let row = row("coordination.k8s.io", "leases")?;
        let user = Core::own_user();
        let call = Call::own(core, &row, NAMESPACE, name, &user);
        match delete(&call, &DeleteOptions::default()).await {
            Err(s) if s.code != 404 => Err(s),
            _ => Ok(()),
        }
    }

    /// Brings what clients are told in line with who lives.
    async fn tell(&self, core: &Arc<Core>) -> Result<(), Status> {
        let alive = self.alive(core);
        let first = alive.first().map(|peer| &peer.name);
        let own = first == Some(&self.settings.name);
        self.on_duty.store(own, Ordering::Relaxed);
        // Who leaves takes itself away, whoever has the duty.
        if !own && !self.leaving.load(Ordering::Relaxed) && self.listed(core) {
            return Ok(());
        }
        if alive.is_empty() {
            return Ok(());
        }
        let wanted = slices(&alive);
        for slice in wanted.values() {
            bootstrap::keep(core, slice, &["endpoints", "ports"]).await?;
        }
        let slices = core.cache.named("discovery.k8s.io", "endpointslices");
        let row = row("discovery.k8s.io", "endpointslices")?;
        let user = Core::own_user();
        for old in slices.into_iter().flat_map(|kind| kind.all()) {
            let ours = old.namespace() == "default" && is_slice(old.name());
            if ours && !wanted.contains_key(old.name()) {
                let call = Call::own(core, &row, "default", old.name(), &user);
                match delete(&call, &DeleteOptions::default()).await {
                    Err(s) if s.code != 404 => return Err(s),
                    _ => {}
                }
            }
        }
        let addresses: Vec<SocketAddr> = alive.iter().map(|peer| peer.address).collect();
        bootstrap::keep_endpoints(core, &addresses).await?;
        bootstrap::keep_cluster_info(core, &addresses, &self.client_ca).await?;
        for name in self.dead(core, &alive) {
            tracing::warn!(
                server = name,
                "this API server has not been heard of: it is not told of any more"
            );
            self.drop_lease(core, &lease_name(&name)).await?;
        }
        Ok(())
    }

    /// Whether clients are told of this server.
    fn listed(&self, core: &Core) -> bool {
        let slices = core.cache.named("discovery.k8s.io", "endpointslices");
        let mut slices = slices.into_iter().flat_map(|kind| kind.all());
        slices.any(|slice| {
            slice.namespace() == "default" && is_slice(slice.name()) && {
                let value = slice.value();
                let port = value["ports"][0]["port"] == self.address.port();
                let ip = self.address.ip().to_string();
                let endpoints = value["endpoints"].as_array();
                let addresses = endpoints
                    .into_iter()
                    .flatten()
                    .flat_map(|e| e["addresses"].as_array());
                port && addresses.flatten().any(|a| *a == ip.as_str())
            }
        })
    }

    /// Names of those whose Lease has run out.
    fn dead(&self, core: &Core, alive: &[Peer]) -> Vec<String> {
        let leases = core.cache.named("coordination.k8s.io", "leases");
        let all = leases.into_iter().flat_map(|kind| kind.all());
        all.filter(|o| o.namespace() == NAMESPACE)
            .filter_map(|o| Some(o.name().strip_prefix(PREFIX)?.to_owned()))
            .filter(|name| *name != self.settings.name)
            .filter(|name| alive.iter().all(|peer| peer.name != *name))
            .filter(|name| self.seen.lock().contains_key(&lease_name(name)))
            .collect()
    }
}

const PREFIX: &str = "apiserver-";

fn lease_name(server: &str) -> String {
    format!("{PREFIX}{server}")
}

async fn run(core: Weak<Core>, lease: Duration, mut suspects: Suspects) {
    let mut interval = tokio::time::interval(lease / RENEWALS);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut repaired = Instant::now();
    loop {
        interval.tick().await;
        let Some(core) = core.upgrade() else { return };
        let Some(peers) = &core.peers else { return };
        let done = async {
            peers.renew(&core).await?;
            peers.tell(&core).await
        };
        if let Err(error) = done.await {
            tracing::debug!(%error, "telling of the API servers");
        }
        if peers.on_duty() && repaired.elapsed() >= REPAIR_EVERY {
            repaired = Instant::now();
            if let Err(error) = repair::repair(&core, &mut suspects).await {
                tracing::debug!(%error, "looking at what Services have");
            }
        }
    }
}

/// Whether an EndpointSlice is one of those that are written here.
fn is_slice(name: &str) -> bool {
    let port = name.strip_prefix("kubernetes-");
    name == "kubernetes" || port.is_some_and(|p| p.parse::<u16>().is_ok())
}

/// The EndpointSlices of the `kubernetes` Service, by name: upstream's one, and one more for
/// each further port that servers listen at.
fn slices(alive: &[Peer]) -> BTreeMap<String, Value> {
    let mut ports: BTreeMap<u16, BTreeSet<SocketAddr>> = BTreeMap::new();
    for peer in alive {
        ports
            .entry(peer.address.port())
            .or_default()
            .insert(peer.address);
    }
    let first = ports.keys().next().copied();
    let slice = |(port, addresses): (u16, BTreeSet<SocketAddr>)| {
        let name = if first == Some(port) {
            "kubernetes".to_owned()
        } else {
            format!("kubernetes-{port}")
        };
        let endpoints: Vec<Value> = addresses
            .iter()
            .map(|a| json!({"addresses": [a.ip().to_string()], "conditions": {"ready": true}}))
            .collect();
        let v4 = addresses.iter().all(SocketAddr::is_ipv4);
        let slice = json!({
            "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
            "metadata": {
                "name": name, "namespace": "default",
                "labels": {"kubernetes.io/service-name": "kubernetes"},
            },
            "addressType": if v4 { "IPv4" } else { "IPv6" },
            "endpoints": endpoints,
            "ports": [{"name": "https", "protocol": "TCP", "port": port}],
        });
        (name, slice)
    };
    ports.into_iter().map(slice).collect()
}

fn row(group: &str, plural: &str) -> Result<Row, Status> {
    Row::builtin(group, "v1", plural).ok_or_else(|| Status::internal(format!("no kind {plural}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_one_port_are_one_slice() {
        let peer = |name: &str, address: &str| Peer {
            name: name.to_owned(),
            address: address.parse().unwrap(),
        };
        let alive = [
            peer("a", "192.0.2.1:6443"),
            peer("b", "192.0.2.2:6443"),
            peer("c", "192.0.2.1:7443"),
        ];
        let all = slices(&alive);
        let told: Vec<String> = all
            .iter()
            .map(|(name, slice)| {
                let endpoints = slice["endpoints"].as_array().unwrap();
                let ips: Vec<&str> = endpoints
                    .iter()
                    .filter_map(|e| e["addresses"][0].as_str())
                    .collect();
                format!("{name} {} {}", slice["ports"][0]["port"], ips.join(","))
            })
            .collect();
        assert_eq!(
            told,
            [
                "kubernetes 6443 192.0.2.1,192.0.2.2",
                "kubernetes-7443 7443 192.0.2.1"
            ]
        );
        assert!(all.keys().all(|name| is_slice(name)) && !is_slice("kubernetes-abc"));
    }
}

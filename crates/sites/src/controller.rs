//! Reads exports and what other sites tell, and keeps the objects that follow. One task, which
//! looks at everything again after any change, and writes what differs.
//!
//! It may have no API server for a while, or for long: then it goes on with what it knows.

mod status;

use crate::choose::{Candidate, order};
use crate::exported::{self, Exported};
use crate::fleet::{self, Fleet};
use crate::gates::{Gates, Kept};
use crate::kinds::{ServiceExport, ServiceImport};
use crate::plan::{self, IMPORT_LABEL, Import, OWNER, Offer};
use crate::routes::{self, Routes};
use crate::set_up::set_up;
use crate::tunnel::{self, Targets, Tunnels};
use api::constants::ANNOTATION_ASLEEP_ON;
use bytes::Bytes;
use client::{Informer, Informers};
use futures::{FutureExt as _, StreamExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use lattice::{Incoming, Lattice, SiteId, SiteName, SiteState, Standing, View};
use lifecycle::Scope;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How long changes are gathered before everything is looked at again.
const GATHER: Duration = Duration::from_millis(10);
/// What was written is compared to what is there this often, and after a failed write.
const AGAIN: Duration = Duration::from_secs(300);
const AGAIN_AFTER_ERROR: Duration = Duration::from_secs(2);
/// Between attempts to have the API server serve the kinds.
const SET_UP_AGAIN: Duration = Duration::from_millis(200);
/// What was woken counts as asleep until it is ready, but no longer than this.
const WAKES_WITHIN: Duration = Duration::from_secs(15);
/// Sites of one import that are measured at once, those that are likely near first.
const MEASURED_MAX: usize = 4;
/// After a restart the endpoints of other sites stay until these were heard of, but no longer.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

/// What the sites' services work with.
pub struct Config {
    /// The process's informers; their client also writes.
    pub informers: Informers,
    /// The lattice, and the streams that others open.
    pub lattice: Lattice,
    /// Who takes them.
    pub incoming: mpsc::Receiver<Incoming>,
    /// The socket where questions of other sites are answered ([`crate::fleet::answers`]).
    pub fleet: PathBuf,
    /// How other sites reach this one without NATS, if they do.
    pub direct: Option<Direct>,
    /// Where connections for other sites are taken: an address that all nodes of the site
    /// reach.
    pub gates: IpAddr,
    /// Addresses of the same kind for Services without one: each endpoint of another site
    /// has one of these. Without any they are at the address above, at another port.
    pub gate_block: Option<RangeInclusive<Ipv4Addr>>,
    /// The file of what the next process is to know, so that it listens where this one did.
    pub kept: Option<PathBuf>,
}

/// How other sites reach this one without NATS.
#[derive(Debug)]
pub struct Direct {
    /// Where.
    pub listener: std::net::TcpListener,
    /// As what: `host:port`, tried in this order.
    pub addresses: Vec<String>,
}

/// Why other sites can't be served.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum StartError {
    #[error("listen for other sites")]
    Listen(#[source] std::io::Error),
}

/// Starts; runs until the scope is cancelled. Connections are carried from now on; objects
/// follow once the API server can be reached.
///
/// # Errors
/// When other sites can't be listened for.
pub fn start(config: Config, scope: &Scope) -> Result<(), StartError> {
    let Config {
        informers,
        lattice,
        mut incoming,
        fleet,
        direct,
        gates,
        gate_block,
        kept: file,
    } = config;
    let on_loopback = direct.as_ref().is_none_or(Direct::on_loopback);
    let routes = Routes::new(lattice.clone(), on_loopback, scope);
    let tunnels = Tunnels::new(lattice.clone(), routes.clone(), scope);
    let gates = Gates::new(tunnels.clone(), gates, gate_block, scope);
    let kept = file.as_deref().map(Kept::read).unwrap_or_default();
    gates.restore(&kept);
    let mut always_told = BTreeMap::new();
    if let Some(direct) = direct {
        routes::serve(direct.listener, &lattice, &tunnels, scope).map_err(StartError::Listen)?;
        let addresses = direct.addresses;
        always_told.insert(
            routes::KEY.to_owned(),
            routes::Told { addresses }.to_bytes(),
        );
    }
    let fleet = Fleet::new(fleet, scope);
    let takers = tunnels.clone();
    scope.spawn_cancellable(async move {
        while let Some(stream) = incoming.recv().await {
            match stream.protocol.as_str() {
                tunnel::PROTOCOL => takers.take(stream),
                fleet::PROTOCOL => fleet.take(stream),
                _ => stream.stream.cancel("no such protocol"),
            }
        }
    });
    scope.spawn_cancellable(async move {
        let mut told = kept.told();
        told.extend(always_told.clone());
        publish(
            &lattice,
            told.iter().map(|(k, v)| (k.clone(), Some(v.clone()))),
        )
        .await;
        serve_kinds(informers.client()).await;
        let controller = Controller {
            client: informers.client().clone(),
            exports: informers.get(),
            imports: informers.get(),
            services: informers.get(),
            slices: informers.get(),
            deployments: informers.get(),
            namespaces: informers.get(),
            lattice,
            tunnels,
            gates,
            always_told,
            told,
            file,
            kept,
            applied: HashMap::new(),
            slept: HashMap::new(),
            unreachable: HashMap::new(),
            measuring: HashSet::new(),
        };
        controller.run().await;
    });
    Ok(())
}

/// Returns when the API server serves imports and exports.
async fn serve_kinds(client: &kube::Client) {
    while let Err(error) = set_up(client).await {
        tracing::debug!(%error, "serve imports and exports");
        tokio::time::sleep(SET_UP_AGAIN).await;
    }
}

async fn publish(lattice: &Lattice, values: impl Iterator<Item = (String, Option<Bytes>)>) {
    let values: Vec<_> = values.collect();
    if values.is_empty() {
        return;
    }
    if let Err(error) = lattice.publish(values).await {
        tracing::warn!(%error, "tell other sites of a Service");
    }
}

impl Direct {
    /// Whether only sites of this machine reach it.
    fn on_loopback(&self) -> bool {
        let bound = self.listener.local_addr();
        bound.is_ok_and(|address| address.ip().is_loopback())
    }
}

struct Controller {
    client: kube::Client,
    exports: Informer<ServiceExport>,
    imports: Informer<ServiceImport>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    deployments: Informer<Deployment>,
    namespaces: Informer<Namespace>,
    lattice: Lattice,
    tunnels: Tunnels,
    gates: Gates,
    /// What this site tells the others from its start on.
    always_told: BTreeMap<String, Bytes>,
    /// What this site tells the others.
    told: BTreeMap<String, Bytes>,
    /// Where what the next process is to know is kept, and what it says.
    file: Option<PathBuf>,
    kept: Kept,
    /// What was written last, by path.
    applied: HashMap<String, Value>,
    /// Exported Services that sleep, or that were woken at a time and are not ready yet.
    slept: HashMap<Key, Option<Instant>>,
    /// Since when each silent site is silent, as text that stays the same.
    unreachable: HashMap<(SiteId, Duration), String>,
    /// Sites that were asked how far they are.
    measuring: HashSet<SiteId>,
}

type Key = (String, String);

impl Controller {
    async fn run(mut self) {
        self.exports.synced().await;
        self.imports.synced().await;
        self.services.synced().await;
        self.slices.synced().await;
        self.deployments.synced().await;
        self.namespaces.synced().await;
        let mut changes = futures::stream::select_all([
            self.exports.subscribe().map(drop).boxed(),
            self.imports.subscribe().map(drop).boxed(),
            self.services.subscribe().map(drop).boxed(),
            self.slices.subscribe().map(drop).boxed(),
            self.deployments.subscribe().map(drop).boxed(),
            self.namespaces.subscribe().map(drop).boxed(),
        ]);
        let mut view = self.lattice.view();
        if self.kept.has_gates() {
            let heard = view.wait_for(|v| v.sites.iter().all(was_heard));
            // Who is silent for longer is gone.
            let _ = tokio::time::timeout(HEARD_WITHIN, heard).await;
        }
        let mut reached = self.tunnels.routes().reached();
        loop {
            let seen = {
                let reached = reached.borrow_and_update();
                let suspect = |site| self.tunnels.routes().is_suspect(site);
                with_routes(&view.borrow_and_update(), &reached, suspect)
            };
            let again = match self.look(&seen).await {
                Ok(()) => AGAIN,
                Err(error) => {
                    match client::code(&error) {
                        // Somebody was quicker, or there is no API server now: that is told
                        // by who watches it.
                        Some(409) | None => tracing::debug!(%error, "keep imports"),
                        Some(_) => tracing::warn!(%error, "keep imports"),
                    }
                    AGAIN_AFTER_ERROR
                }
            };
            // One that did not become ready in time is asleep no more.
            let waking = self.slept.values().flatten().min();
            let waking = waking.map(|at| *at + WAKES_WITHIN);
            let over = async {
                match waking {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = changes.next() => {}
                () = over => {}
                changed = view.changed() => if changed.is_err() { return },
                changed = reached.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(again) => {
                    self.applied.clear();
                    self.measuring.clear();
                }
            }
            tokio::time::sleep(GATHER).await;
            while changes.next().now_or_never().is_some() {}
        }
    }

    /// Looks at everything once and writes what differs.
    async fn look(&mut self, view: &View) -> Result<(), kube::Error> {
        let own = self.own();
        self.tell(&own).await;
        self.tunnels.set_targets(self.targets(&own));
        let offers = self.offers(&own, view);
        let others = offers.values().flatten().filter_map(|offer| offer.site);
        self.tunnels.routes().want(&others.collect());
        self.measure(&view.name, &offers);
        let mut imports: BTreeMap<Key, Import> = BTreeMap::new();
        for ((namespace, name), offers) in &offers {
            if self.namespaces.get("", namespace).is_none() {
                continue;
            }
            if let Some(import) = plan::import(&view.name, namespace, name, offers) {
                imports.insert((namespace.clone(), name.clone()), import);
            }
        }
        let gates = imports.values().flat_map(|i| &i.tunnels);
        let gates: BTreeSet<_> = gates.flat_map(|t| t.gates.iter().cloned()).collect();
        let listens = self.gates.open(&gates);
        let order = imports
            .iter()
            .map(|(key, i)| (key.clone(), i.order.clone()));
        self.gates.set_order(order.collect());
        self.keep_for_next(&listens);
        for import in imports.values() {
            self.keep(import, &listens, view).await?;
        }
        for export in self.exports.list() {
            self.judge(&export, &own, &imports).await?;
        }
        self.remove(&imports, view).await?;
        // No endpoint says the others' ports any more.
        self.gates.close_others(&gates);
        Ok(())
    }

    /// Writes what the next process is to know, when it differs.
    fn keep_for_next(&mut self, listens: &BTreeMap<plan::Gate, SocketAddr>) {
        let Some(file) = &self.file else { return };
        let now = Kept::new(listens, &self.told);
        if now == self.kept {
            return;
        }
        match now.write(file) {
            Ok(()) => self.kept = now,
            Err(error) => tracing::warn!(%error, path = %file.display(), "keep what is imported"),
        }
    }

    /// This site's exports; an error says why one is none.
    fn own(&mut self) -> BTreeMap<Key, Result<Exported, exported::NotExported>> {
        let in_time = |at: &Option<Instant>| at.is_none_or(|at| at.elapsed() < WAKES_WITHIN);
        self.slept.retain(|_, at| in_time(at));
        let mut own = BTreeMap::new();
        for export in self.exports.list() {
            let Some((namespace, name)) = key_of(&export.metadata) else {
                continue;
            };
            let service = self.services.get(&namespace, &name);
            let slices = self.slices_of(&namespace, &name);
            let key = (namespace.clone(), name.clone());
            if service.as_deref().is_some_and(|s| self.sleeps(s)) {
                self.slept.insert(key, None);
            } else if service.is_none() || exported::ready(&slices) > 0 {
                self.slept.remove(&key);
            } else if let Some(woken) = self.slept.get_mut(&key) {
                woken.get_or_insert_with(Instant::now);
            }
            let asleep = self.slept.contains_key(&(namespace.clone(), name.clone()));
            let told = exported::exported(&export, service.as_deref(), &slices, asleep);
            own.insert((namespace, name), told);
        }
        own
    }

    /// Whether a Deployment behind a Service sleeps: a request to the Service wakes it.
    fn sleeps(&self, service: &Service) -> bool {
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
        let Some(selector) = selector.filter(|s| !s.is_empty()) else {
            return false;
        };
        let sleeping = self.deployments.select_namespace(namespace, |deployment| {
            let annotations = deployment.metadata.annotations.as_ref();
            let template = deployment.spec.template.metadata.as_ref();
            let labels = template.and_then(|t| t.labels.as_ref());
            annotations.is_some_and(|a| a.contains_key(ANNOTATION_ASLEEP_ON))
                && labels.is_some_and(|l| selector.iter().all(|(k, v)| l.get(k) == Some(v)))
        });
        !sleeping.is_empty()
    }

    fn slices_of(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
        let mut slices = self.slices.select_namespace(namespace, |slice| {
            let labels = slice.metadata.labels.as_ref();
            labels
                .and_then(|l| l.get("kubernetes.io/service-name"))
                .map(String::as_str)
                == Some(service)
        });
        slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        slices
    }

    /// Tells the other sites what has changed.
    async fn tell(&mut self, own: &BTreeMap<Key, Result<Exported, exported::NotExported>>) {
        let exports = own.iter().filter_map(|((namespace, name), told)| {
            let value = serde_json::to_vec(told.as_ref().ok()?).ok()?;
            Some((exported::key(namespace, name), value.into()))
        });
        let mut now = self.always_told.clone();
        now.extend(exports);
        let gone = self.told.keys().filter(|k| !now.contains_key(*k));
        let mut values: Vec<_> = gone.map(|k| (k.clone(), None)).collect();
        for (key, value) in &now {
            if self.told.get(key) != Some(value) {
                values.push((key.clone(), Some(value.clone())));
            }
        }
        if !values.is_empty() {
            publish(&self.lattice, values.into_iter()).await;
            self.told = now;
        }
    }

    /// Where this site's exported ports answer.
    fn targets(&self, own: &BTreeMap<Key, Result<Exported, exported::NotExported>>) -> Targets {
        let mut targets = Targets::new();
        for ((namespace, name), told) in own {
            let (Ok(told), Some(service)) = (told, self.services.get(namespace, name)) else {
                continue;
            };
            let spec = service.spec.as_ref();
            let ip = spec.and_then(|s| s.cluster_ip.as_ref()?.parse::<IpAddr>().ok());
            for port in &told.ports {
                let mut add = |port: String, addresses| {
                    targets.insert((namespace.clone(), name.clone(), port), addresses);
                };
                if let (Some(ip), Ok(number)) = (ip, u16::try_from(port.port)) {
                    add(port.name.clone(), vec![SocketAddr::new(ip, number)]);
                    continue;
                }
                let slices = self.slices_of(namespace, name);
                for host in &told.hosts {
                    let addresses = ready_endpoints(&slices, &port.name, Some(host));
                    add(format!("{}/{host}", port.name), addresses);
                }
                let addresses = ready_endpoints(&slices, &port.name, None);
                add(port.name.clone(), addresses);
            }
        }
        targets
    }

    /// All exports, by Service.
    fn offers(
        &self,
        own: &BTreeMap<Key, Result<Exported, exported::NotExported>>,
        view: &View,
    ) -> BTreeMap<Key, Vec<Offer>> {
        let mut offers: BTreeMap<Key, Vec<Offer>> = BTreeMap::new();
        for (key, told) in own {
            if let Ok(told) = told {
                offers.entry(key.clone()).or_default().push(Offer {
                    site: None,
                    candidate: Candidate {
                        place: view.name.clone(),
                        own: true,
                        state: SiteState::Alive,
                        rtt: None,
                        ready: told.ready,
                        weight: told.weight,
                    },
                    exported: told.clone(),
                });
            }
        }
        for site in &view.sites {
            for (key, value) in site.entries.iter() {
                let Some((namespace, name)) = exported::parse_key(key) else {
                    continue;
                };
                let Some(told) = exported::read(value) else {
                    tracing::debug!(site = site.name.name, key, "not an export");
                    continue;
                };
                let key = (namespace.to_owned(), name.to_owned());
                offers.entry(key).or_default().push(Offer {
                    site: Some(site.id),
                    candidate: Candidate {
                        place: site.name.clone(),
                        own: false,
                        state: site.state,
                        rtt: site.rtt,
                        ready: told.ready,
                        weight: told.weight,
                    },
                    exported: told,
                });
            }
        }
        offers
    }

    /// Has sites measured that may be asked for a Service: where many are, most are alive by
    /// others' word, and nobody knows how far they are.
    fn measure(&mut self, own: &SiteName, offers: &BTreeMap<Key, Vec<Offer>>) {
        for offers in offers.values() {
            let candidates: Vec<Candidate> = offers.iter().map(|o| o.candidate.clone()).collect();
            let unknown = |c: &Candidate| c.rtt.is_none() && c.state == SiteState::Alive;
            let order = order(own, &candidates).into_iter();
            let nearest = order
                .filter(|i| unknown(&candidates[*i]))
                .take(MEASURED_MAX);
            for site in nearest.filter_map(|i| offers[i].site) {
                if self.measuring.insert(site) {
                    self.lattice.measure(site);
                }
            }
        }
    }

    /// Keeps the objects of one import.
    async fn keep(
        &mut self,
        import: &Import,
        listens: &BTreeMap<plan::Gate, SocketAddr>,
        view: &View,
    ) -> Result<(), kube::Error> {
        let (namespace, name) = (&import.namespace, &import.name);
        let derived = plan::derived(namespace, name);
        let service = self.services.get(namespace, &derived);
        let ips: Vec<String> = service
            .as_ref()
            .and_then(|s| s.spec.as_ref()?.cluster_ips.clone())
            .unwrap_or_default();
        let existing = self.imports.get(namespace, name);
        let present = existing.is_some();
        let wanted = plan::service_import(import, &ips);
        self.apply::<ServiceImport>(namespace, name, wanted, present)
            .await?;
        let Some(existing) = existing else {
            // Its event brings the rest.
            return Ok(());
        };
        let uid = existing.metadata.uid.clone().unwrap_or_default();
        let wanted = plan::service(import, &uid);
        self.apply::<Service>(namespace, &derived, wanted, service.is_some())
            .await?;
        let mut own = Vec::new();
        if import.own.is_some() {
            own = self.slices_of(namespace, name);
            let exported = self.services.get(namespace, name);
            let asleep = self.slept.contains_key(&(namespace.clone(), name.clone()));
            own.extend(exported.filter(|_| asleep).and_then(|s| bell(&s)));
        }
        let mut names = BTreeSet::new();
        for wanted in plan::slices(import, &uid, &own, listens) {
            let slice = wanted["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            let present = self.slices.get(namespace, &slice).is_some();
            self.apply::<EndpointSlice>(namespace, &slice, wanted, present)
                .await?;
            names.insert(slice);
        }
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), namespace);
        for slice in self.slices_of(namespace, &derived) {
            let slice = slice.metadata.name.clone().unwrap_or_default();
            if !names.contains(&slice) {
                self.applied
                    .remove(&path::<EndpointSlice>(namespace, &slice));
                delete(&api, &slice).await?;
            }
        }
        let clusters: Vec<String> = import.clusters.clone();
        self.tell_import(&existing, &clusters, view).await
    }

    /// Writes an object unless that was done already.
    async fn apply<K>(
        &mut self,
        namespace: &str,
        name: &str,
        wanted: Value,
        present: bool,
    ) -> Result<(), kube::Error>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug,
    {
        let path = path::<K>(namespace, name);
        if present && self.applied.get(&path) == Some(&wanted) {
            return Ok(());
        }
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let params = PatchParams::apply(OWNER).force();
        api.patch(name, &params, &Patch::Apply(&wanted)).await?;
        self.applied.insert(path, wanted);
        Ok(())
    }

    /// Removes imports that nobody exports any more. A site that was not heard of since this
    /// one has started may export still.
    async fn remove(
        &mut self,
        wanted: &BTreeMap<Key, Import>,
        view: &View,
    ) -> Result<(), kube::Error> {
        if view.standing == Standing::Joining {
            return Ok(());
        }
        for import in self.imports.list() {
            let labels = import.metadata.labels.as_ref();
            let Some(key) = key_of(&import.metadata) else {
                continue;
            };
            if wanted.contains_key(&key) || labels.is_none_or(|l| !l.contains_key(IMPORT_LABEL)) {
                continue;
            }
            let clusters: Vec<String> = import
                .status
                .clusters
                .iter()
                .map(|c| c.cluster.clone())
                .collect();
            let unheard = view.sites.iter().any(|site| {
                let silent = site.state != SiteState::Alive && !was_heard(site);
                silent && clusters.contains(&site.name.name)
            });
            if unheard {
                self.tell_import(&import, &clusters, view).await?;
                continue;
            }
            let api: Api<ServiceImport> = Api::namespaced(self.client.clone(), &key.0);
            delete(&api, &key.1).await?;
            self.applied.remove(&path::<ServiceImport>(&key.0, &key.1));
        }
        Ok(())
    }
}

/// A site that there is a direct way to is there, whatever NATS says; one whose connection has
/// just broken may be gone, whatever was heard of it.
fn with_routes(
    view: &Arc<View>,
    reached: &BTreeSet<SiteId>,
    suspect: impl Fn(SiteId) -> bool,
) -> Arc<View> {
    let state = |s: &lattice::SiteView| match s.state {
        _ if reached.contains(&s.id) => SiteState::Alive,
        SiteState::Alive if suspect(s.id) => SiteState::Suspect,
        state => state,
    };
    if view.sites.iter().all(|s| s.state == state(s)) {
        return view.clone();
    }
    let mut view = View::clone(view);
    for site in &mut view.sites {
        site.state = state(site);
    }
    Arc::new(view)
}

/// Whether a site was heard of since this one has started, or has said that it leaves.
fn was_heard(site: &lattice::SiteView) -> bool {
    site.revision > 0 || site.state == SiteState::Left
}

fn key_of(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Option<Key> {
    Some((metadata.namespace.clone()?, metadata.name.clone()?))
}

fn path<K: kube::Resource<DynamicType = ()>>(namespace: &str, name: &str) -> String {
    format!("{}/{namespace}/{name}", K::plural(&()))
}

async fn delete<K>(api: &Api<K>, name: &str) -> Result<(), kube::Error>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    match api.delete(name, &DeleteParams::background()).await {
        Err(error) if !client::is_not_found(&error) => Err(error),
        _ => Ok(()),
    }
}

/// The address of a Service whose pods sleep, as an endpoint: there a request wakes them.
fn bell(service: &Service) -> Option<Arc<EndpointSlice>> {
    let spec = service.spec.as_ref()?;
    let ip: IpAddr = spec.cluster_ip.as_ref()?.parse().ok()?;
    let ports = spec.ports.iter().flatten().map(|port| EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: port.protocol.clone(),
        app_protocol: None,
    });
    Some(Arc::new(EndpointSlice {
        address_type: if ip.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned(),
        endpoints: Some(vec![Endpoint {
            addresses: vec![ip.to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(true),
                ..EndpointConditions::default()
            }),
            ..Endpoint::default()
        }]),
        ports: Some(ports.collect()),
        ..EndpointSlice::default()
    }))
}

/// Ready endpoints of a port by name, for Services without an address; all, or those of a
/// host name.
fn ready_endpoints(
    slices: &[Arc<EndpointSlice>],
    port: &str,
    host: Option<&str>,
) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for slice in slices {
        let number = slice.ports.iter().flatten().find_map(|p| {
            let same = p.name.as_deref().unwrap_or_default() == port;
            same.then(|| u16::try_from(p.port?).ok())?
        });
        let Some(number) = number else { continue };
        let ready = slice.endpoints.iter().flatten();
        for endpoint in ready.filter(exported::is_ready) {
            if host.is_none_or(|host| endpoint.hostname.as_deref() == Some(host))
                && let Some(Ok(ip)) = endpoint.addresses.first().map(|a| a.parse())
            {
                found.push(SocketAddr::new(ip, number));
            }
        }
    }
    found
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("lattice", &self.lattice)
            .finish_non_exhaustive()
    }
}

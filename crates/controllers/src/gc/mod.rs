//! Garbage collection: what is owned goes with its owners.
//!
//! It watches the metadata of every kind that can be deleted and keeps only uids and who
//! owns what (`graph`), never objects. What it is about to delete it first asks the API
//! server about. Start with [`Collector::collect`].

mod graph;

use crate::context::Context;
use crate::error::Error;
use crate::writes::for_each;
use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use client::metadata::watch_metadata;
use client::{Outcome, WorkQueue};
use futures::StreamExt as _;
use graph::{Graph, Place, Uid, Work};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::core::PartialObjectMeta;
use kube::core::discovery::Scope as ResourceScope;
use kube::discovery::Discovery;
use kube::runtime::watcher::Event;
use parking_lot::{Mutex, RwLock};
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

const NAME: &str = "garbage-collector-controller";
const WORKERS: usize = 8;
/// What is served is looked up again this often, and at once when a CRD changes.
const DISCOVERY_EVERY: Duration = Duration::from_secs(300);
/// After a CRD changed, until the API server serves it.
const DISCOVERY_SETTLES: Duration = Duration::from_secs(1);
const DISCOVERY_RETRY: Duration = Duration::from_secs(2);
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

type Metadata = PartialObjectMeta<DynamicObject>;

/// A resource that is watched.
struct Watched {
    id: u16,
    resource: ApiResource,
    namespaced: bool,
    stop: CancellationToken,
}

struct Collector {
    context: Context,
    /// Guards the graph for single changes and look-ups, never across an await.
    graph: Mutex<Graph>,
    watched: RwLock<HashMap<(String, String), Watched>>,
    queue: WorkQueue<Work>,
    /// Resources whose first listing is not complete.
    unsynced: AtomicUsize,
    rediscover: Notify,
}

pub(crate) fn start(context: &Context) {
    let queue = context.queue();
    let collector = Arc::new(Collector {
        context: context.clone(),
        graph: Mutex::default(),
        watched: RwLock::default(),
        queue: queue.clone(),
        unsynced: AtomicUsize::new(0),
        rediscover: Notify::new(),
    });
    let discovering = collector.clone();
    context
        .scope
        .spawn_cancellable(async move { discovering.discover().await });
    context.work(NAME, queue, WORKERS, Vec::new(), move |work| {
        let collector = collector.clone();
        async move { collector.work(work).await }
    });
}

/// Kinds that nobody owns and that come and go too often to look at.
fn is_ignored(resource: &ApiResource) -> bool {
    resource.plural == "events"
}

impl Collector {
    /// Keeps a watch on all that is served.
    async fn discover(self: Arc<Self>) {
        let mut next_id = 0;
        loop {
            let found = Discovery::new(self.context.client.clone())
                .run_aggregated()
                .await;
            let pause = match found {
                Ok(found) => {
                    self.watch_all(&found, &mut next_id);
                    DISCOVERY_EVERY
                }
                Err(error) => {
                    tracing::warn!(%error, "discovery failed, trying again");
                    DISCOVERY_RETRY
                }
            };
            if tokio::time::timeout(pause, self.rediscover.notified())
                .await
                .is_ok()
            {
                tokio::time::sleep(DISCOVERY_SETTLES).await;
            }
        }
    }

    fn watch_all(self: &Arc<Self>, found: &Discovery, next_id: &mut u16) {
        let mut served = HashSet::new();
        for group in found.groups() {
            for (resource, capabilities) in group.recommended_resources() {
                let deletable = ["list", "watch", "delete"]
                    .iter()
                    .all(|verb| capabilities.supports_operation(verb));
                if !deletable || is_ignored(&resource) {
                    continue;
                }
                let key = (resource.group.clone(), resource.plural.clone());
                served.insert(key.clone());
                if self.watched.read().contains_key(&key) {
                    continue;
                }
                let id = *next_id;
                *next_id = next_id.wrapping_add(1);
                let stop = self.context.scope.token().child_token();
                self.watched.write().insert(
                    key,
                    Watched {
                        id,
                        namespaced: capabilities.scope == ResourceScope::Namespaced,
                        resource: resource.clone(),
                        stop: stop.clone(),
                    },
                );
                self.unsynced.fetch_add(1, Ordering::AcqRel);
                let this = self.clone();
                self.context.scope.spawn(async move {
                    let watch = this.clone().watch(id, resource);
                    if stop.run_until_cancelled(watch).await.is_none() {
                        let mut graph = this.graph.lock();
                        let work = graph.forget_resource(id);
                        drop(graph);
                        this.add(work);
                    }
                });
            }
        }
        self.watched.write().retain(|key, watched| {
            let keep = served.contains(key);
            if !keep {
                watched.stop.cancel();
            }
            keep
        });
    }

    async fn watch(self: Arc<Self>, id: u16, resource: ApiResource) {
        let is_crd = resource.plural == "customresourcedefinitions";
        let mut events = std::pin::pin!(watch_metadata(self.context.client.clone(), &resource));
        let mut listed = HashSet::new();
        let mut synced = false;
        while let Some(event) = events.next().await {
            let work = match event {
                Event::Init => {
                    listed.clear();
                    Vec::new()
                }
                Event::InitApply(object) => {
                    listed.insert(Uid::of(&object.metadata));
                    self.graph.lock().apply(id, &object.metadata)
                }
                Event::InitDone => {
                    let work = self.graph.lock().relisted(id, &listed);
                    listed = HashSet::new();
                    if !std::mem::replace(&mut synced, true) {
                        self.synced();
                    }
                    work
                }
                Event::Apply(object) => {
                    if is_crd {
                        self.rediscover.notify_one();
                    }
                    self.graph.lock().apply(id, &object.metadata)
                }
                Event::Delete(object) => {
                    if is_crd {
                        self.rediscover.notify_one();
                    }
                    self.graph.lock().delete(Uid::of(&object.metadata))
                }
            };
            self.add(work);
        }
    }

    /// One more resource is listed; once all are, what has lost its owners before is found.
    fn synced(&self) {
        if self.unsynced.fetch_sub(1, Ordering::AcqRel) == 1 {
            let work = self.graph.lock().without_owners();
            self.add(work);
        }
    }

    fn is_synced(&self) -> bool {
        self.unsynced.load(Ordering::Acquire) == 0
    }

    fn add(&self, work: Vec<Work>) {
        for work in work {
            self.queue.add(work);
        }
    }

    async fn work(&self, work: Work) -> Result<Outcome, Error> {
        match work {
            Work::Collect(uid) => self.collect(uid).await,
            Work::Orphan(uid) => self.orphan(uid).await,
            Work::Foreground(uid) => self.foreground(uid).await,
        }
    }

    /// Looks at an object that may have lost its owners.
    async fn collect(&self, uid: Uid) -> Result<Outcome, Error> {
        let Some((place, live)) = self.live(uid).await? else {
            return Ok(Outcome::Done);
        };
        let finalizers = live.metadata.finalizers.clone().unwrap_or_default();
        let foreground = finalizers.iter().any(|f| f == FOREGROUND);
        if live.metadata.deletion_timestamp.is_some() {
            return if foreground {
                self.foreground(uid).await
            } else {
                Ok(Outcome::Done)
            };
        }
        let owners = live.metadata.owner_references.clone().unwrap_or_default();
        if owners.is_empty() {
            return Ok(Outcome::Done);
        }
        let (mut solid, mut dangling, mut waiting) = (0, Vec::new(), Vec::new());
        for owner in &owners {
            match self.owner_state(&place, owner).await? {
                OwnerState::Solid => solid += 1,
                OwnerState::Absent => dangling.push(owner.uid.clone()),
                OwnerState::Waiting => waiting.push(owner.uid.clone()),
            }
        }
        if solid > 0 {
            if !dangling.is_empty() || !waiting.is_empty() {
                let gone: HashSet<_> = dangling.into_iter().chain(waiting).collect();
                self.drop_owners(&place, &live.metadata, |uid| gone.contains(uid))
                    .await?;
            }
            return Ok(Outcome::Done);
        }
        // Its own dependents go first when its owner waits for it; else as it was asked
        // of it before, else afterwards.
        let has_dependents = self.graph.lock().has_dependents(uid);
        let params = if !waiting.is_empty() && has_dependents || foreground {
            DeleteParams::foreground()
        } else if finalizers.iter().any(|f| f == ORPHAN) {
            DeleteParams::orphan()
        } else {
            DeleteParams::background()
        };
        self.delete(&place, &live.metadata, params).await?;
        Ok(Outcome::Done)
    }

    /// An object that waits for its dependents: deletes them, and lets it go when none is
    /// left that blocks.
    async fn foreground(&self, uid: Uid) -> Result<Outcome, Error> {
        let dependents = self.graph.lock().dependents(uid);
        let blocking = dependents.iter().any(|d| d.blocks);
        for dependent in dependents {
            self.queue.add(Work::Collect(dependent.uid));
        }
        if blocking || !self.is_synced() {
            return Ok(Outcome::Done);
        }
        if let Some((place, live)) = self.live(uid).await?
            && live.metadata.deletion_timestamp.is_some()
        {
            self.drop_finalizer(&place, &live.metadata, FOREGROUND)
                .await?;
        }
        Ok(Outcome::Done)
    }

    /// An object that is deleted without its dependents: these forget it first.
    async fn orphan(&self, uid: Uid) -> Result<Outcome, Error> {
        let Some((place, live)) = self.live(uid).await? else {
            return Ok(Outcome::Done);
        };
        if live.metadata.deletion_timestamp.is_none() {
            return Ok(Outcome::Done);
        }
        let owner = live.metadata.uid.clone().unwrap_or_default();
        let owner = &owner;
        let dependents = self.graph.lock().dependents(uid);
        for_each(dependents, |dependent| async move {
            let Some((place, live)) = self.live(dependent.uid).await? else {
                return Ok(());
            };
            self.drop_owners(&place, &live.metadata, |uid| uid == owner)
                .await
        })
        .await?;
        self.drop_finalizer(&place, &live.metadata, ORPHAN).await?;
        Ok(Outcome::Done)
    }

    /// An object as it is now, by its uid; none when it is gone.
    async fn live(&self, uid: Uid) -> Result<Option<(Place, Metadata)>, Error> {
        let Some(place) = self.graph.lock().place(uid) else {
            return Ok(None);
        };
        let Some(api) = self.api(place.resource, &place.namespace) else {
            return Ok(None);
        };
        let live = api
            .get_metadata_opt(&place.name)
            .await
            .map_err(|source| Error::Get {
                what: place.to_string(),
                source,
            })?;
        match live {
            Some(live) if Uid::of(&live.metadata) == uid => Ok(Some((place, live))),
            _ => {
                let work = self.graph.lock().delete(uid);
                self.add(work);
                Ok(None)
            }
        }
    }

    async fn owner_state(
        &self,
        place: &Place,
        owner: &OwnerReference,
    ) -> Result<OwnerState, Error> {
        let uid = Uid::parse(&owner.uid);
        match self.graph.lock().owner(uid) {
            Some(true) if owner.block_owner_deletion == Some(true) => {
                return Ok(OwnerState::Waiting);
            }
            Some(_) => return Ok(OwnerState::Solid),
            None => {}
        }
        // Not known: it may be too new, or of a kind that is not watched. Ask.
        let group = owner.api_version.split_once('/').map_or("", |(g, _)| g);
        let api = {
            let watched = self.watched.read();
            let Some(kind) = watched
                .values()
                .find(|w| w.resource.group == group && w.resource.kind == owner.kind)
            else {
                tracing::debug!(object = %place, kind = owner.kind, "owner of an unknown kind");
                return Ok(OwnerState::Solid);
            };
            if kind.namespaced && place.namespace.is_empty() {
                tracing::warn!(object = %place, owner = owner.name, "cluster-scoped object with an owner in a namespace");
                return Ok(OwnerState::Solid);
            }
            let namespace = if kind.namespaced {
                &place.namespace
            } else {
                ""
            };
            dynamic(&self.context.client, &kind.resource, namespace)
        };
        let live = api
            .get_metadata_opt(&owner.name)
            .await
            .map_err(|source| Error::Get {
                what: format!("{} {}, owner of {place}", owner.kind, owner.name),
                source,
            })?;
        let Some(live) = live.filter(|l| l.metadata.uid.as_deref() == Some(&owner.uid)) else {
            return Ok(OwnerState::Absent);
        };
        let waits = live.metadata.deletion_timestamp.is_some()
            && has_finalizer(&live.metadata, FOREGROUND)
            && owner.block_owner_deletion == Some(true);
        Ok(if waits {
            OwnerState::Waiting
        } else {
            OwnerState::Solid
        })
    }

    async fn delete(
        &self,
        place: &Place,
        meta: &ObjectMeta,
        params: DeleteParams,
    ) -> Result<(), Error> {
        let Some(api) = self.api(place.resource, &place.namespace) else {
            return Ok(());
        };
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: meta.uid.clone(),
                resource_version: meta.resource_version.clone(),
            }),
            ..params
        };
        match api.delete(&place.name, &params).await {
            Ok(_) => {
                tracing::debug!(object = %place, "collected");
                Ok(())
            }
            Err(error) if client::is_not_found(&error) => Ok(()),
            Err(source) => Err(Error::Delete {
                what: place.to_string(),
                source,
            }),
        }
    }

    async fn drop_owners(
        &self,
        place: &Place,
        meta: &ObjectMeta,
        gone: impl Fn(&str) -> bool,
    ) -> Result<(), Error> {
        let mut owners = meta.owner_references.clone().unwrap_or_default();
        let before = owners.len();
        owners.retain(|owner| !gone(&owner.uid));
        if owners.len() == before {
            return Ok(());
        }
        self.patch(place, meta, json!({"ownerReferences": owners}))
            .await
    }

    async fn drop_finalizer(
        &self,
        place: &Place,
        meta: &ObjectMeta,
        finalizer: &str,
    ) -> Result<(), Error> {
        if !has_finalizer(meta, finalizer) {
            return Ok(());
        }
        let mut finalizers = meta.finalizers.clone().unwrap_or_default();
        finalizers.retain(|f| f != finalizer);
        self.patch(place, meta, json!({"finalizers": finalizers}))
            .await
    }

    /// Changes metadata, only if the object is still as it was read.
    async fn patch(
        &self,
        place: &Place,
        meta: &ObjectMeta,
        mut change: serde_json::Value,
    ) -> Result<(), Error> {
        let Some(api) = self.api(place.resource, &place.namespace) else {
            return Ok(());
        };
        change["uid"] = json!(meta.uid);
        change["resourceVersion"] = json!(meta.resource_version);
        let patch = Patch::Merge(json!({"metadata": change}));
        match api
            .patch_metadata(&place.name, &PatchParams::default(), &patch)
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if client::is_not_found(&error) => Ok(()),
            Err(source) => Err(Error::Update {
                what: place.to_string(),
                source,
            }),
        }
    }

    fn api(&self, id: u16, namespace: &str) -> Option<Api<DynamicObject>> {
        let watched = self.watched.read();
        let resource = &watched.values().find(|w| w.id == id)?.resource;
        Some(dynamic(&self.context.client, resource, namespace))
    }
}

enum OwnerState {
    /// It is there.
    Solid,
    /// It is not.
    Absent,
    /// It is being deleted and waits until this object is gone.
    Waiting,
}

fn dynamic(client: &kube::Client, resource: &ApiResource, namespace: &str) -> Api<DynamicObject> {
    if namespace.is_empty() {
        Api::all_with(client.clone(), resource)
    } else {
        Api::namespaced_with(client.clone(), namespace, resource)
    }
}

fn has_finalizer(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|f| f == finalizer)
}

//! Shared informers: each kind (and selector) is listed, watched, parsed and kept once
//! a process, however many ask for it.
//!
//! Not here: what consumers derive from the objects; they keep their own projections.
//! Start with [`Informers::get`], then [`Informer::subscribe`].

use crate::store::Objects;
use crate::text::{self, Text};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use kube::Resource as _;
use kube::api::ApiResource;
use kube::runtime::watcher::{self, Event};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

/// Changes that a subscriber may lag behind; one that lags more gets
/// [`Change::Resync`] in their place and lists again.
pub const CHANGES_PENDING_MAX: usize = 512;

/// A watch that fails for less is not told of: that is a server that starts again.
const TELL_AFTER: Duration = Duration::from_secs(15);

/// Namespace and name of an object; the namespace of cluster-scoped ones is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Namespace, or empty.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ObjectKey {
    /// From its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key of an object.
    pub fn of<K: kube::Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for ObjectKey {
    /// `namespace/name`, or only the name of a cluster-scoped object.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// What a subscriber is told. The informer already holds the new state then.
#[derive(Debug)]
pub enum Change<K> {
    /// One object came (`old` is none), changed, or went (`new` is none).
    Object {
        /// Which.
        key: ObjectKey,
        /// As it was.
        old: Option<Arc<K>>,
        /// As it is.
        new: Option<Arc<K>>,
    },
    /// Anything may have changed: list. The first item of every subscription, once the
    /// informer has synced; also sent to a subscriber that lagged.
    Resync,
}

impl<K> Clone for Change<K> {
    fn clone(&self) -> Self {
        match self {
            Self::Object { key, old, new } => Self::Object {
                key: key.clone(),
                old: old.clone(),
                new: new.clone(),
            },
            Self::Resync => Self::Resync,
        }
    }
}

/// Which objects of a kind; the default is all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selected {
    /// Label selector in its query form, or empty.
    pub labels: String,
    /// Field selector in its query form, such as `spec.nodeName=n1`, or empty.
    pub fields: String,
}

impl Selected {
    /// Those with matching labels.
    pub fn labels(selector: impl Into<String>) -> Self {
        Self {
            labels: selector.into(),
            ..Self::default()
        }
    }

    /// Those with matching fields.
    pub fn fields(selector: impl Into<String>) -> Self {
        Self {
            fields: selector.into(),
            ..Self::default()
        }
    }

    fn config(&self) -> watcher::Config {
        let mut config = watcher::Config::default().streaming_lists();
        if !self.labels.is_empty() {
            config = config.labels(&self.labels);
        }
        if !self.fields.is_empty() {
            config = config.fields(&self.fields);
        }
        config
    }
}

/// What an informer can be had of: any kind of `k8s_openapi` and any derived one.
pub trait Kind:
    kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug + Send + Sync + 'static
{
}

impl<K> Kind for K where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + DeserializeOwned
        + fmt::Debug
        + Send
        + Sync
        + 'static
{
}

/// All informers of a process, one a kind and selector. Clones share them.
#[derive(Clone)]
pub struct Informers {
    shared: Arc<Shared>,
    /// Of who holds this one, for its own requests.
    client: kube::Client,
}

struct Shared {
    client: kube::Client,
    scope: lifecycle::Scope,
    /// Guards nothing but the table; held while an informer is made, never across an await.
    running: Mutex<HashMap<(TypeId, Selected), Box<dyn Any + Send + Sync>>>,
}

impl fmt::Debug for Informers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Informers")
            .field("running", &self.shared.running.lock().len())
            .finish_non_exhaustive()
    }
}

impl Informers {
    /// None yet; what is started runs in `scope`.
    pub fn new(client: kube::Client, scope: &lifecycle::Scope) -> Self {
        Self {
            shared: Arc::new(Shared {
                client: client.clone(),
                scope: scope.clone(),
                running: Mutex::default(),
            }),
            client,
        }
    }

    /// The same informers for a part that makes its own requests with another client.
    #[must_use]
    pub fn with_client(&self, client: kube::Client) -> Self {
        Self {
            shared: self.shared.clone(),
            client,
        }
    }

    /// The client for the holder's own requests.
    pub fn client(&self) -> &kube::Client {
        &self.client
    }

    /// The informer of a kind in all namespaces, started when it is the first asked for.
    pub fn get<K: Kind>(&self) -> Informer<K> {
        self.get_selected(Selected::default())
    }

    /// The informer of those objects of a kind that a selector matches. It has its own
    /// watch: for a share that is small beside the whole, such as one node's pods.
    pub fn get_selected<K: Kind>(&self, selected: Selected) -> Informer<K> {
        let mut running = self.shared.running.lock();
        let known = (TypeId::of::<K>(), selected);
        if let Some(informer) = running
            .get(&known)
            .and_then(|any| any.downcast_ref::<Informer<K>>())
        {
            return informer.clone();
        }
        let informer = Informer::<K>::default();
        let taker = Box::new(Taker {
            informer: informer.clone(),
            listing: Objects::default(),
        });
        let watched = text::watch(
            self.shared.client.clone(),
            &ApiResource::erase::<K>(&()),
            known.1.config(),
        );
        self.shared
            .scope
            .spawn_cancellable(follow(watched, K::kind(&()).into_owned(), taker));
        running.insert(known, Box::new(informer.clone()));
        informer
    }
}

/// A kind's objects as the API server last told. Clones share it.
pub struct Informer<K> {
    inner: Arc<Inner<K>>,
}

struct Inner<K> {
    /// Changes are sent while this is held for writing, so that they come in the order
    /// in which they were stored.
    objects: RwLock<Objects<K>>,
    changes: broadcast::Sender<Change<K>>,
    synced: watch::Sender<bool>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

impl<K> fmt::Debug for Informer<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Informer")
            .field("kind", &std::any::type_name::<K>())
            .field("synced", &*self.inner.synced.borrow())
            .field("len", &self.inner.objects.read().len())
            .finish()
    }
}

impl<K> Default for Informer<K> {
    fn default() -> Self {
        Self {
            inner: Arc::new(Inner {
                objects: RwLock::default(),
                changes: broadcast::Sender::new(CHANGES_PENDING_MAX),
                synced: watch::Sender::new(false),
            }),
        }
    }
}

impl<K> Informer<K> {
    /// One object; the namespace of cluster-scoped ones is empty.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.inner.objects.read().get(namespace, name).cloned()
    }

    /// One object by its key.
    pub fn get_key(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.get(&key.namespace, &key.name)
    }

    /// All objects, by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        let objects = self.inner.objects.read();
        let mut list = Vec::with_capacity(objects.len());
        list.extend(objects.all().map(|(_, _, o)| o.clone()));
        list
    }

    /// Those of a namespace, by name.
    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.inner
            .objects
            .read()
            .namespace(namespace)
            .cloned()
            .collect()
    }

    /// Those of a namespace that `wanted` picks, by name. Holds back changes while it
    /// runs: `wanted` must be quick and ask no informer.
    pub fn select_namespace(&self, namespace: &str, wanted: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        self.inner
            .objects
            .read()
            .namespace(namespace)
            .filter(|o| wanted(o))
            .cloned()
            .collect()
    }

    /// Those that `wanted` picks, by namespace and name. As [`Informer::select_namespace`],
    /// it holds back changes.
    pub fn select(&self, wanted: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        self.inner
            .objects
            .read()
            .all()
            .filter(|(_, _, o)| wanted(o))
            .map(|(_, _, o)| o.clone())
            .collect()
    }

    /// Those whose controller has this uid, in no order.
    pub fn owned_by(&self, uid: &str) -> Vec<Arc<K>> {
        self.inner.objects.read().owned_by(uid).cloned().collect()
    }

    /// Those without a controller that `wanted` picks, in no order. As
    /// [`Informer::select_namespace`], it holds back changes.
    pub fn orphans(&self, wanted: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        self.inner
            .objects
            .read()
            .owned_by("")
            .filter(|o| wanted(o))
            .cloned()
            .collect()
    }

    /// The greatest resourceVersion among what has been told. Whoever wrote an object of
    /// this kind and got a greater one back does not see that write here yet
    /// (resourceVersions are comparable: KEP-5504).
    pub fn revision(&self) -> u64 {
        self.inner.objects.read().revision
    }

    /// All keys.
    pub fn keys(&self) -> Vec<ObjectKey> {
        self.inner
            .objects
            .read()
            .all()
            .map(|(namespace, name, _)| ObjectKey::new(namespace, name))
            .collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.inner.objects.read().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the first listing is complete.
    pub fn has_synced(&self) -> bool {
        *self.inner.synced.borrow()
    }

    /// Returns when the first listing is complete. Cancel-safe.
    pub async fn synced(&self) {
        // The sender lives in `self`, so waiting can't fail.
        let _ = self.inner.synced.subscribe().wait_for(|done| *done).await;
    }
}

impl<K: Send + Sync + 'static> Informer<K> {
    /// [`Informer::synced`], on its own: what [`crate::queue::start_workers`] waits for.
    pub fn ready(&self) -> BoxFuture<'static, ()> {
        let informer = self.clone();
        Box::pin(async move { informer.synced().await })
    }

    /// Calls `told` in `scope` with each object before and after each of its changes; after
    /// a resync with all objects, as if they had just come.
    pub fn each_change(
        &self,
        scope: &lifecycle::Scope,
        mut told: impl FnMut(Option<&Arc<K>>, Option<&Arc<K>>) + Send + 'static,
    ) {
        let mut changes = self.subscribe();
        let informer = self.clone();
        scope.spawn_cancellable(async move {
            while let Some(change) = changes.next().await {
                match change {
                    Change::Object { old, new, .. } => told(old.as_ref(), new.as_ref()),
                    Change::Resync => {
                        for object in informer.list() {
                            told(None, Some(&object));
                        }
                    }
                }
            }
        });
    }

    /// The changes from now on, after one [`Change::Resync`] when the informer has
    /// synced. Never ends. Cancel-safe between items.
    pub fn subscribe(&self) -> impl Stream<Item = Change<K>> + Send + Unpin + use<K> {
        let changes = self.inner.changes.subscribe();
        let informer = self.clone();
        let start = futures::stream::once(async move {
            informer.synced().await;
            Change::Resync
        });
        let rest = futures::stream::unfold(changes, |mut changes| async move {
            match changes.recv().await {
                Ok(change) => Some((change, changes)),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::debug!(kind = std::any::type_name::<K>(), missed, "lagged, resync");
                    Some((Change::Resync, changes.resubscribe()))
                }
                Err(broadcast::error::RecvError::Closed) => None,
            }
        });
        Box::pin(start.chain(rest))
    }
}

/// Hands each event to `taker`; once a process, whatever the kind.
async fn follow(
    events: BoxStream<'static, Result<Event<Text>, watcher::Error>>,
    kind: String,
    mut taker: Box<dyn Take>,
) {
    let mut events = events;
    let mut trouble = Trouble::default();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                trouble.over(&kind);
                taker.take(event);
            }
            Err(error) => trouble.failed(&kind, &error),
        }
    }
}

/// What becomes of the events of a kind.
trait Take: Send {
    fn take(&mut self, event: Event<Text>);
}

/// The informer that is told, and the listing that is being gathered for it.
struct Taker<K> {
    informer: Informer<K>,
    listing: Objects<K>,
}

impl<K: Kind> Take for Taker<K> {
    fn take(&mut self, event: Event<Text>) {
        match event {
            Event::Init => self.listing = Objects::default(),
            Event::InitApply(text) => {
                let key = ObjectKey::of(&text);
                let known = self.informer.get_key(&key).filter(|known| {
                    known.meta().resource_version == text.meta().resource_version
                        && known.meta().uid == text.meta().uid
                });
                if let Some(object) = known.or_else(|| read(&text)) {
                    self.listing.insert(&key.namespace, &key.name, object);
                }
            }
            Event::InitDone => self.informer.relist(std::mem::take(&mut self.listing)),
            Event::Apply(text) => {
                if let Some(object) = read(&text) {
                    self.informer.apply(object);
                }
            }
            Event::Delete(text) => self.informer.delete(&text),
        }
    }
}

impl<K: Kind> Informer<K> {
    fn apply(&self, new: Arc<K>) {
        let key = ObjectKey::of(&*new);
        let mut objects = self.inner.objects.write();
        let old = objects.insert(&key.namespace, &key.name, new.clone());
        self.tell(key, old, Some(new));
    }

    fn delete(&self, object: &Text) {
        let key = ObjectKey::of(object);
        let mut objects = self.inner.objects.write();
        objects.saw(object);
        if let Some(old) = objects.remove(&key.namespace, &key.name) {
            self.tell(key, Some(old), None);
        }
    }

    /// Puts a complete listing in place of what is known and tells the difference, or
    /// [`Change::Resync`] when that is more than a subscriber's queue takes.
    fn relist(&self, listing: Objects<K>) {
        let mut objects = self.inner.objects.write();
        let before = std::mem::replace(&mut *objects, listing);
        objects.revision = objects.revision.max(before.revision);
        if !self.has_synced() {
            // Subscribers wait for the flag and then list by themselves.
            self.inner.synced.send_replace(true);
            return;
        }
        let gone = before
            .all()
            .filter(|(namespace, name, _)| objects.get(namespace, name).is_none())
            .map(|(namespace, name, old)| (namespace, name, Some(old), None));
        let come =
            objects
                .all()
                .filter_map(|(namespace, name, new)| match before.get(namespace, name) {
                    Some(old) if Arc::ptr_eq(old, new) => None,
                    old => Some((namespace, name, old, Some(new))),
                });
        let changed: Vec<_> = gone.chain(come).take(CHANGES_PENDING_MAX / 2 + 1).collect();
        if changed.len() > CHANGES_PENDING_MAX / 2 {
            let _ = self.inner.changes.send(Change::Resync);
            return;
        }
        for (namespace, name, old, new) in changed {
            self.tell(ObjectKey::new(namespace, name), old.cloned(), new.cloned());
        }
    }

    fn tell(&self, key: ObjectKey, old: Option<Arc<K>>, new: Option<Arc<K>>) {
        // Fails only when nobody has subscribed.
        let _ = self.inner.changes.send(Change::Object { key, old, new });
    }
}

/// The object without what no consumer reads: managed fields are often half of it. `None`,
/// and told, when it is none of its kind.
fn read<K: Kind>(text: &Text) -> Option<Arc<K>> {
    let mut object = match text.parse::<K>() {
        Ok(object) => object,
        Err(error) => {
            let (kind, key) = (K::kind(&()), ObjectKey::of(text));
            tracing::error!(%kind, %key, %error, "object can't be read, left out");
            return None;
        }
    };
    object.meta_mut().managed_fields = None;
    Some(Arc::new(object))
}

/// A watch that fails, and since when.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    since: Option<Instant>,
    told: bool,
}

impl Trouble {
    pub(crate) fn failed(&mut self, kind: &str, error: &dyn fmt::Display) {
        let since = *self.since.get_or_insert_with(Instant::now);
        if !self.told && since.elapsed() >= TELL_AFTER {
            self.told = true;
            tracing::warn!(kind, %error, "watch fails for a while, trying on");
        } else {
            tracing::debug!(kind, %error, "watch failed, trying again");
        }
    }

    pub(crate) fn over(&mut self, kind: &str) {
        if std::mem::take(self).told {
            tracing::info!(kind, "watch works again");
        }
    }
}

#[cfg(test)]
mod tests;

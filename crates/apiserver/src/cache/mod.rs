//! The watch cache: every kind's objects as the store last told, and a ring of its latest
//! events that all watchers read from.
//!
//! Kinds of custom resources come and go with their definitions, which the cache takes from
//! the very stream of events that it serves.
//!
//! Filled at start by one range and fed by one watch. Reads are consistent: they wait
//! until the cache has reached the store's revision. Start with [`Cache::start`].

mod object;
mod source;

pub(crate) use object::{Object, encode};
pub(crate) use source::{Next, Source};

use crate::config::Limits;
use crate::definitions::{self, Definitions};
use crate::row::Row;
use api::Resource;
use apimachinery::Status;
use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::RwLock;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use store::{EventKind, RangeRequest, Revision, Store, WatchItem};
use tokio::sync::watch;

/// Where all objects live in the store.
const ROOT: &str = "/registry/";
/// Records read at a time when the cache is filled.
const FILL_PAGE: usize = 500;
/// How long a read waits for the cache to catch up with the store.
const CATCH_UP: Duration = Duration::from_secs(3);

/// What a watcher is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Added,
    Modified,
    Deleted,
}

impl Change {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// A change of one object. Encodings are made once and shared by all watchers.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) change: Change,
    /// After the change; for a deletion the last state under the deletion's revision.
    pub(crate) object: Arc<Object>,
    pub(crate) previous: Option<Arc<Object>>,
    /// One line of a JSON watch.
    pub(crate) json: OnceLock<Bytes>,
    /// One line of a metadata watch.
    pub(crate) metadata: OnceLock<Bytes>,
    /// One frame of a protobuf watch.
    pub(crate) protobuf: OnceLock<Bytes>,
    /// One frame of a metadata watch in protobuf.
    pub(crate) protobuf_metadata: OnceLock<Bytes>,
    /// One document of a watch in CBOR.
    pub(crate) cbor: OnceLock<Bytes>,
    /// One document of a metadata watch in CBOR.
    pub(crate) cbor_metadata: OnceLock<Bytes>,
}

impl Event {
    fn new(change: Change, object: Arc<Object>, previous: Option<Arc<Object>>) -> Arc<Self> {
        Arc::new(Self {
            change,
            object,
            previous,
            json: OnceLock::new(),
            metadata: OnceLock::new(),
            protobuf: OnceLock::new(),
            protobuf_metadata: OnceLock::new(),
            cbor: OnceLock::new(),
            cbor_metadata: OnceLock::new(),
        })
    }
}

/// Objects of a list, all at one revision.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) objects: Vec<Arc<Object>>,
    pub(crate) revision: u64,
}

/// Objects by key, in the store's order.
type Objects = BTreeMap<Arc<str>, Arc<Object>>;

/// One kind's objects and latest events.
#[derive(Debug)]
pub(crate) struct Kind {
    pub(crate) group: Box<str>,
    pub(crate) plural: Box<str>,
    /// The row under which objects are stored; none for custom resources.
    pub(crate) table: Option<&'static Resource>,
    /// Its definition was deleted: watches end.
    gone: AtomicBool,
    state: RwLock<State>,
    /// Sequence number after the newest event; told after the state has it.
    end: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    items: Objects,
    ring: VecDeque<Arc<Event>>,
    /// Sequence number of the ring's first event.
    first: u64,
    /// Events up to this revision are not in the ring any more.
    floor: u64,
    /// Bytes of the ring's objects.
    bytes: usize,
    /// Revision of the last change.
    revision: u64,
}

/// Kinds by group, then plural.
type Kinds = HashMap<Box<str>, Arc<HashMap<Box<str>, Arc<Kind>>>>;

/// All kinds.
#[derive(Debug)]
pub(crate) struct Cache {
    kinds: ArcSwap<Kinds>,
    /// What custom resources there are.
    pub(crate) definitions: Arc<Definitions>,
    applied: watch::Sender<u64>,
    limits: Limits,
}

impl Cache {
    /// Fills the cache and keeps it fed in `scope`.
    pub(crate) async fn start(
        store: Arc<dyn Store>,
        limits: Limits,
        scope: &lifecycle::Scope,
    ) -> Result<Arc<Self>, store::Error> {
        let mut kinds: HashMap<Box<str>, HashMap<_, _>> = HashMap::new();
        for row in api::resources()
            .iter()
            .filter(|r| r.stored && r.stored_as.is_none())
        {
            kinds
                .entry(row.group.into())
                .or_default()
                .entry(row.plural.into())
                .or_insert_with(|| Arc::new(Kind::new(row.group, row.plural, Some(row))));
        }
        let kinds: Kinds = kinds.into_iter().map(|(g, k)| (g, Arc::new(k))).collect();
        let cache = Arc::new(Self {
            kinds: ArcSwap::from_pointee(kinds),
            definitions: Arc::default(),
            applied: watch::Sender::new(0),
            limits,
        });
        let revision = cache.fill(&*store).await?;
        let feed = cache.clone();
        scope.spawn_cancellable(async move { feed.follow(store, revision).await });
        Ok(cache)
    }

    /// The kind that holds a row's objects.
    pub(crate) fn kind(&self, row: &Row) -> Option<Arc<Kind>> {
        match row {
            Row::Builtin(r) => {
                let group = r.stored_as.map_or(r.group, |(g, _)| g);
                self.named(group, r.plural)
            }
            Row::Custom(_) => self.named(row.group(), row.plural()),
        }
    }

    /// The kind by group and plural.
    pub(crate) fn named(&self, group: &str, plural: &str) -> Option<Arc<Kind>> {
        self.kinds.load().get(group)?.get(plural).cloned()
    }

    /// Every kind.
    pub(crate) fn kinds(&self) -> Vec<Arc<Kind>> {
        let kinds = self.kinds.load();
        kinds.values().flat_map(|g| g.values().cloned()).collect()
    }

    /// Takes a definition in; its kind is there from now on.
    fn define(&self, object: &Arc<Object>) {
        let Some(d) = self.definitions.define(object) else {
            return;
        };
        let (group, plural) = (&*d.names.group, &*d.names.plural);
        // A definition in the way of a built-in kind gets none of its own.
        if self.named(group, plural).is_none() {
            let kind = Arc::new(Kind::new(group, plural, None));
            self.change(group, |k| {
                k.insert(plural.into(), kind.clone());
            });
        }
    }

    /// Drops a definition and its kind; watches of that end.
    fn undefine(&self, name: &str) {
        let Some((plural, group)) = name.split_once('.') else {
            return;
        };
        self.definitions.remove(group, plural);
        if let Some(kind) = self.named(group, plural).filter(|k| k.table.is_none()) {
            self.change(group, |k| {
                k.remove(plural);
            });
            kind.gone.store(true, Ordering::Release);
            kind.end.send_modify(|_| {});
        }
    }

    fn change(&self, group: &str, f: impl Fn(&mut HashMap<Box<str>, Arc<Kind>>)) {
        self.kinds.rcu(|all| {
            let mut all = Kinds::clone(all);
            let mut inner = all
                .get(group)
                .map(|g| HashMap::clone(g))
                .unwrap_or_default();
            f(&mut inner);
            if inner.is_empty() {
                all.remove(group);
            } else {
                all.insert(group.into(), Arc::new(inner));
            }
            all
        });
    }

    /// Newest revision that every kind has.
    pub(crate) fn applied(&self) -> u64 {
        *self.applied.borrow()
    }

    /// Tells of each revision that every kind has.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Waits until the cache has a revision.
    pub(crate) async fn reach(&self, revision: u64) -> Result<(), Status> {
        if self.applied() >= revision {
            return Ok(());
        }
        let mut applied = self.applied.subscribe();
        match tokio::time::timeout(CATCH_UP, applied.wait_for(|r| *r >= revision)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Status::new(
                504,
                "Timeout",
                format!(
                    "Too large resource version: {revision}, current: {}",
                    self.applied()
                ),
            )
            .with_details(serde_json::json!({"causes": [{
                "reason": "ResourceVersionTooLarge", "message": "Too large resource version",
            }], "retryAfterSeconds": 1}))),
        }
    }

    /// Reads everything at one revision.
    async fn fill(&self, store: &dyn Store) -> Result<Revision, store::Error> {
        // Definitions first: they say which other keys are objects.
        let mut fresh: HashMap<String, Objects> = HashMap::new();
        let defined = store_prefix(definitions::GROUP, definitions::PLURAL);
        let at = self.read(store, &defined, None, &mut fresh).await?;
        let found = fresh.remove(&defined).unwrap_or_default();
        for gone in self.definitions.all() {
            if !found.contains_key(&*gone.name) {
                self.undefine(&gone.name);
            }
        }
        for object in found.values() {
            self.define(object);
        }
        let revision = self.read(store, ROOT, Some(at), &mut fresh).await?;
        for kind in self.kinds() {
            let mut state = kind.state.write();
            state.items = fresh.remove(&kind.prefix()).unwrap_or_default();
            // Watchers behind this point have missed events: they must list again.
            state.first += state.ring.len() as u64 + 1;
            state.ring.clear();
            state.bytes = 0;
            state.floor = revision.0;
            state.revision = revision.0;
            let end = state.first;
            drop(state);
            kind.end.send_replace(end);
        }
        self.applied.send_replace(revision.0);
        Ok(revision)
    }

    /// Reads all objects below a key at one revision, by the prefixes of their kinds.
    async fn read(
        &self,
        store: &dyn Store,
        prefix: &str,
        mut at: Option<Revision>,
        out: &mut HashMap<String, Objects>,
    ) -> Result<Revision, store::Error> {
        let mut after = None;
        loop {
            let page = store
                .range(RangeRequest {
                    prefix: prefix.to_owned(),
                    after: after.take(),
                    limit: FILL_PAGE,
                    at,
                })
                .await?;
            at = Some(page.revision);
            for record in &page.records {
                let Some((kind, key)) = self.locate(&record.key) else {
                    continue;
                };
                if let Some(o) = Object::parse(
                    kind.table,
                    key.clone(),
                    record.value.clone(),
                    record.modified.0,
                ) {
                    out.entry(kind.prefix())
                        .or_default()
                        .insert(key, Arc::new(o));
                }
            }
            if page.remaining == 0 || page.records.is_empty() {
                return Ok(page.revision);
            }
            after = page.records.last().map(|r| r.key.to_string());
        }
    }

    /// Applies the store's events for ever.
    async fn follow(&self, store: Arc<dyn Store>, mut from: Revision) {
        const RETRY: Duration = Duration::from_millis(100);
        loop {
            match store.watch(ROOT, Some(from)).await {
                Ok(mut events) => loop {
                    match events.next().await {
                        Some(Ok(item)) => from = self.apply(item),
                        Some(Err(e)) => {
                            tracing::debug!(error = %e, "watch of the store ended");
                            break;
                        }
                        None => break,
                    }
                },
                Err(store::Error::Compacted(_)) => match self.fill(&*store).await {
                    Ok(revision) => {
                        from = revision;
                        continue;
                    }
                    Err(e) => tracing::warn!(error = %e, "reading the store"),
                },
                Err(store::Error::Closed) => return,
                Err(e) => tracing::warn!(error = %e, "watching the store"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    fn apply(&self, item: WatchItem) -> Revision {
        let revision = match item {
            WatchItem::Progress(revision) => revision,
            WatchItem::Events(events) => {
                for event in events.iter() {
                    self.apply_event(event);
                }
                events.last().map_or(Revision(0), |e| e.record.modified)
            }
        };
        self.applied.send_if_modified(|r| {
            let newer = revision.0 > *r;
            *r = revision.0.max(*r);
            newer
        });
        Revision(self.applied())
    }

    fn apply_event(&self, event: &store::Event) {
        let Some((kind, key)) = self.locate(&event.record.key) else {
            return;
        };
        kind.apply(key.clone(), event, &self.limits);
        let deleted = event.kind == EventKind::Deleted;
        if &*kind.group == definitions::GROUP && &*kind.plural == definitions::PLURAL {
            match kind.get("", &key) {
                Some(object) => self.define(&object),
                None => self.undefine(&key),
            }
        } else if deleted
            && kind.table.is_none()
            && let Some(d) = self.definitions.get(&kind.group, &kind.plural)
            && d.deleting
            && kind.len() == 0
        {
            self.definitions.look_at(&d.name);
        }
    }

    /// Which kind a store key belongs to, and the object's key in it.
    fn locate(&self, key: &str) -> Option<(Arc<Kind>, Arc<str>)> {
        let mut parts = key.strip_prefix(ROOT)?.splitn(3, '/');
        let (group, plural, rest) = (parts.next()?, parts.next()?, parts.next()?);
        let group = if group == "core" { "" } else { group };
        let kind = self.named(group, plural)?;
        Some((kind, rest.into()))
    }
}

/// The store key of an object.
pub(crate) fn store_key(row: &Row, key: &str) -> String {
    let group = match row {
        Row::Builtin(r) => r.stored_as.map_or(r.group, |(g, _)| g),
        Row::Custom(_) => row.group(),
    };
    format!("{}{key}", store_prefix(group, row.plural()))
}

/// What all store keys of a kind start with.
fn store_prefix(group: &str, plural: &str) -> String {
    let group = if group.is_empty() { "core" } else { group };
    format!("{ROOT}{group}/{plural}/")
}

/// `namespace/name`, or `name` for cluster-scoped objects.
pub(crate) fn object_key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() {
        name.to_owned()
    } else {
        format!("{namespace}/{name}")
    }
}

impl Kind {
    fn new(group: &str, plural: &str, table: Option<&'static Resource>) -> Self {
        let (end, _) = watch::channel(0);
        Self {
            group: group.into(),
            plural: plural.into(),
            table,
            gone: AtomicBool::new(false),
            state: RwLock::default(),
            end,
        }
    }

    /// What all its store keys start with.
    pub(crate) fn prefix(&self) -> String {
        store_prefix(&self.group, &self.plural)
    }

    /// Whether its definition was deleted.
    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// One object.
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        let state = self.state.read();
        if namespace.is_empty() {
            state.items.get(name).cloned()
        } else {
            state
                .items
                .get(object_key(namespace, name).as_str())
                .cloned()
        }
    }

    /// How many objects there are.
    pub(crate) fn len(&self) -> usize {
        self.state.read().items.len()
    }

    /// Revision of the kind's last change.
    pub(crate) fn revision(&self) -> u64 {
        self.state.read().revision
    }

    /// Objects of a namespace (all if empty) after a key. `applied` is the cache's revision
    /// read before: the list holds everything up to the larger of it and the kind's own.
    pub(crate) fn list(&self, namespace: &str, after: Option<&str>, applied: u64) -> Snapshot {
        let state = self.state.read();
        Snapshot {
            objects: state.range(namespace, after).cloned().collect(),
            revision: applied.max(state.revision),
        }
    }

    /// Every object.
    pub(crate) fn all(&self) -> Vec<Arc<Object>> {
        self.state.read().items.values().cloned().collect()
    }

    /// Every object, and the sequence number of the event that comes next.
    pub(crate) fn all_before(&self) -> (Vec<Arc<Object>>, u64) {
        let state = self.state.read();
        let next = state.first + state.ring.len() as u64;
        (state.items.values().cloned().collect(), next)
    }

    /// A receiver that changes whenever the kind does.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.end.subscribe()
    }

    /// Events from a sequence number on; `None` when they are gone.
    pub(crate) fn events_from(
        &self,
        seq: u64,
        max: usize,
        out: &mut VecDeque<Arc<Event>>,
    ) -> Option<u64> {
        let state = self.state.read();
        let skip = usize::try_from(seq.checked_sub(state.first)?).ok()?;
        let before = out.len();
        out.extend(state.ring.iter().skip(skip).take(max).cloned());
        Some(seq + (out.len() - before) as u64)
    }

    fn apply(&self, key: Arc<str>, event: &store::Event, limits: &Limits) {
        let revision = event.record.modified.0;
        let mut state = self.state.write();
        if revision <= state.revision && revision <= state.floor {
            return;
        }
        let previous = state.items.get(&key).cloned();
        let made = if event.kind == EventKind::Deleted {
            let Some(previous) = previous else { return };
            state.items.remove(&key);
            Event::new(
                Change::Deleted,
                Arc::new(previous.at(revision)),
                Some(previous),
            )
        } else {
            let Some(object) = Object::parse(
                self.table,
                key.clone(),
                event.record.value.clone(),
                revision,
            ) else {
                tracing::error!(key = %event.record.key, revision, "stored object can't be read");
                return;
            };
            let object = Arc::new(object);
            state.items.insert(key, object.clone());
            let change = if previous.is_some() {
                Change::Modified
            } else {
                Change::Added
            };
            Event::new(change, object, previous)
        };
        state.revision = revision;
        state.push(made, limits);
        let end = state.first + state.ring.len() as u64;
        drop(state);
        self.end.send_replace(end);
    }
}

impl State {
    fn range(&self, namespace: &str, after: Option<&str>) -> impl Iterator<Item = &Arc<Object>> {
        let prefix = if namespace.is_empty() {
            String::new()
        } else {
            format!("{namespace}/")
        };
        let start = match after {
            Some(key) if key >= prefix.as_str() => Bound::Excluded(key.to_owned()),
            _ => Bound::Included(prefix.clone()),
        };
        self.items
            .range::<str, _>((start.as_ref().map(String::as_str), Bound::Unbounded))
            .take_while(move |(k, _)| k.starts_with(&*prefix))
            .map(|(_, o)| o)
    }

    fn push(&mut self, event: Arc<Event>, limits: &Limits) {
        self.bytes += event.object.bytes.len();
        self.ring.push_back(event);
        while self.ring.len() > limits.events_max
            || (self.bytes > limits.event_bytes_max && self.ring.len() > 1)
        {
            if let Some(old) = self.ring.pop_front() {
                self.bytes -= old.object.bytes.len();
                self.floor = old.object.revision;
                self.first += 1;
            }
        }
    }
}

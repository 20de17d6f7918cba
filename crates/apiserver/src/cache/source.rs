//! Where one watcher's events come from: the kind's ring, or, when it is below the ring,
//! the store's own history until it has caught up.
//!
//! A watcher holds a position, not a queue. One that does not keep up finds its position
//! gone from the ring and reads on from the store; only what is compacted is lost to it.

use super::{Cache, Change, Event, Kind, Object, Snapshot};
use apimachinery::Status;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use std::collections::VecDeque;
use std::sync::Arc;
use store::{EventKind, Revision, Store, WatchItem};
use tokio::sync::watch;

/// Events taken from the ring at a time.
const BATCH: usize = 64;

/// What a source yields.
pub(crate) enum Next {
    /// A change.
    Event(Arc<Event>),
    /// Everything there is has been yielded.
    CaughtUp,
    /// The kind is gone.
    Ended,
}

/// A watcher's events.
pub(crate) struct Source {
    cache: Arc<Cache>,
    store: Arc<dyn Store>,
    kind: Arc<Kind>,
    from: From,
    /// Events that are taken but not yet yielded.
    batch: VecDeque<Arc<Event>>,
    /// Everything up to this revision is yielded or in the batch.
    reached: u64,
    /// What was last told with [`Next::CaughtUp`].
    told: u64,
    end: watch::Receiver<u64>,
}

enum From {
    /// At a position of the ring.
    Ring { next: u64 },
    /// Reading history.
    Store {
        events: BoxStream<'static, Result<WatchItem, store::Error>>,
    },
    /// Below the ring: history is to be opened.
    Behind,
}

impl Source {
    /// Events after a list of all objects, which is returned.
    pub(crate) fn after_list(
        cache: &Arc<Cache>,
        store: &Arc<dyn Store>,
        kind: &Arc<Kind>,
        namespace: &str,
    ) -> (Snapshot, Self) {
        let applied = cache.applied();
        let end = kind.end.subscribe();
        let state = kind.state.read();
        let snapshot = Snapshot {
            objects: state.range(namespace, None).cloned().collect(),
            revision: applied.max(state.revision),
        };
        let next = state.first + state.ring.len() as u64;
        drop(state);
        let source = Self {
            cache: cache.clone(),
            store: store.clone(),
            kind: kind.clone(),
            from: From::Ring { next },
            batch: VecDeque::new(),
            reached: snapshot.revision,
            told: 0,
            end,
        };
        (snapshot, source)
    }

    /// Events after a revision.
    ///
    /// # Errors
    /// 410 when the store has compacted it.
    pub(crate) async fn after_revision(
        cache: &Arc<Cache>,
        store: &Arc<dyn Store>,
        kind: &Arc<Kind>,
        revision: u64,
    ) -> Result<Self, Status> {
        let mut source = Self {
            cache: cache.clone(),
            store: store.clone(),
            kind: kind.clone(),
            from: From::Behind,
            batch: VecDeque::new(),
            reached: revision,
            told: 0,
            end: kind.end.subscribe(),
        };
        if !source.join_ring() {
            source.open_history().await?;
        }
        Ok(source)
    }

    /// Goes to the ring if it has everything after what is reached.
    fn join_ring(&mut self) -> bool {
        let state = self.kind.state.read();
        if self.reached < state.floor {
            return false;
        }
        let skip = state
            .ring
            .partition_point(|e| e.object.revision <= self.reached);
        self.from = From::Ring {
            next: state.first + skip as u64,
        };
        true
    }

    async fn open_history(&mut self) -> Result<(), Status> {
        let prefix = self.kind.prefix();
        let events = self
            .store
            .watch(&prefix, Some(Revision(self.reached)))
            .await
            .map_err(|e| expired_or_internal(e, self.reached))?;
        self.from = From::Store { events };
        Ok(())
    }

    /// The next change, at once or when it happens. [`Next::CaughtUp`] comes whenever there is
    /// nothing more at the moment. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Next, Status> {
        loop {
            if let Some(event) = self.batch.pop_front() {
                return Ok(Next::Event(event));
            }
            match &mut self.from {
                From::Behind => self.open_history().await?,
                From::Ring { next } => {
                    // Read before the ring: what it says is then in the ring.
                    let applied = self.cache.applied();
                    self.end.borrow_and_update();
                    match self.kind.events_from(*next, BATCH, &mut self.batch) {
                        Some(end) => *next = end,
                        None => {
                            self.from = From::Behind;
                            continue;
                        }
                    }
                    // Where history was left, the ring may repeat its last events.
                    while self
                        .batch
                        .front()
                        .is_some_and(|e| e.object.revision <= self.reached)
                    {
                        self.batch.pop_front();
                    }
                    if let Some(last) = self.batch.back() {
                        self.reached = last.object.revision;
                        continue;
                    }
                    self.reached = self.reached.max(applied);
                    if self.kind.is_gone() {
                        return Ok(Next::Ended);
                    }
                    if applied > self.told {
                        self.told = applied;
                        return Ok(Next::CaughtUp);
                    }
                    if self.end.changed().await.is_err() {
                        return Err(Status::expired("the watch cache was closed"));
                    }
                }
                From::Store { events } => match events.next().await {
                    Some(Ok(WatchItem::Progress(revision))) => {
                        self.reached = self.reached.max(revision.0);
                        self.join_ring();
                        return Ok(Next::CaughtUp);
                    }
                    Some(Ok(WatchItem::Events(list))) => {
                        self.batch
                            .extend(list.iter().filter_map(|e| historic(&self.kind, e)));
                        if let Some(last) = list.last() {
                            self.reached = last.record.modified.0;
                        }
                    }
                    // The client is slower than the store's buffer: read on from the file.
                    Some(Err(store::Error::Slow)) => self.from = From::Behind,
                    Some(Err(e)) => return Err(expired_or_internal(e, self.reached)),
                    None => return Err(Status::expired("the store was closed")),
                },
            }
        }
    }

    /// Newest revision that a bookmark may state now: everything up to it was yielded.
    pub(crate) fn bookmark(&self) -> Option<u64> {
        self.batch.is_empty().then_some(self.reached)
    }
}

/// An event of the store's history.
fn historic(kind: &Kind, event: &store::Event) -> Option<Arc<Event>> {
    let key: Arc<str> = event.record.key.strip_prefix(&kind.prefix())?.into();
    let revision = event.record.modified.0;
    let previous = event
        .previous
        .clone()
        .and_then(|b| Object::parse(kind.table, key.clone(), b, revision))
        .map(Arc::new);
    Some(match event.kind {
        EventKind::Deleted => {
            let last = previous?;
            Event::new(Change::Deleted, last.clone(), Some(last))
        }
        made => {
            let object = Arc::new(Object::parse(
                kind.table,
                key,
                event.record.value.clone(),
                revision,
            )?);
            let change = if made == EventKind::Created {
                Change::Added
            } else {
                Change::Modified
            };
            Event::new(change, object, previous)
        }
    })
}

/// A store error as a client sees it.
pub(crate) fn expired_or_internal(e: store::Error, revision: u64) -> Status {
    match e {
        store::Error::Compacted(oldest) => Status::expired(format!(
            "too old resource version: {revision} ({})",
            oldest.0
        )),
        store::Error::Slow => {
            Status::expired("the watcher did not keep up: too old resource version")
        }
        e => Status::internal(e),
    }
}

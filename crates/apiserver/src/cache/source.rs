//! Where one watcher's events come from: the kind's ring, or, when it starts below the
//! ring, the store's own history.
//!
//! A watcher holds a position, not a queue: one that does not keep up finds its position
//! gone from the ring and is told that it expired.

use super::{Cache, Change, Event, Kind, Object, Snapshot, store_prefix};
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
}

/// A watcher's events.
pub(crate) struct Source {
    kind: Arc<Kind>,
    from: From,
    batch: VecDeque<Arc<Event>>,
}

enum From {
    Ring {
        cache: Arc<Cache>,
        next: u64,
        end: watch::Receiver<u64>,
        told: u64,
    },
    Store {
        events: BoxStream<'static, Result<WatchItem, store::Error>>,
    },
}

impl Source {
    /// Events after a list of all objects, which is returned.
    pub(crate) fn after_list(
        cache: &Arc<Cache>,
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
        (snapshot, Self::ring(cache, kind, next, end))
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
        let end = kind.end.subscribe();
        {
            let state = kind.state.read();
            if revision >= state.floor {
                let skip = state
                    .ring
                    .partition_point(|e| e.object.revision <= revision);
                let next = state.first + skip as u64;
                drop(state);
                return Ok(Self::ring(cache, kind, next, end));
            }
        }
        let events = store
            .watch(&store_prefix(kind.row), Some(Revision(revision)))
            .await
            .map_err(|e| expired_or_internal(e, revision))?;
        Ok(Self {
            kind: kind.clone(),
            from: From::Store { events },
            batch: VecDeque::new(),
        })
    }

    fn ring(cache: &Arc<Cache>, kind: &Arc<Kind>, next: u64, end: watch::Receiver<u64>) -> Self {
        Self {
            kind: kind.clone(),
            from: From::Ring {
                cache: cache.clone(),
                next,
                end,
                told: 0,
            },
            batch: VecDeque::new(),
        }
    }

    /// The next change, at once or when it happens. [`Next::CaughtUp`] comes whenever there is
    /// nothing more at the moment. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Next, Status> {
        loop {
            if let Some(event) = self.batch.pop_front() {
                return Ok(Next::Event(event));
            }
            match &mut self.from {
                From::Ring {
                    cache,
                    next,
                    end,
                    told,
                } => {
                    // Read before the ring: what it says is then in the ring.
                    let applied = cache.applied();
                    end.borrow_and_update();
                    *next = self
                        .kind
                        .events_from(*next, BATCH, &mut self.batch)
                        .ok_or_else(|| {
                            Status::expired("the watcher did not keep up: too old resource version")
                        })?;
                    if !self.batch.is_empty() {
                        continue;
                    }
                    if applied > *told {
                        *told = applied;
                        return Ok(Next::CaughtUp);
                    }
                    if end.changed().await.is_err() {
                        return Err(Status::expired("the watch cache was closed"));
                    }
                }
                From::Store { events } => match events.next().await {
                    Some(Ok(WatchItem::Progress(_))) => return Ok(Next::CaughtUp),
                    Some(Ok(WatchItem::Events(list))) => {
                        self.batch
                            .extend(list.iter().filter_map(|e| historic(&self.kind, e)));
                    }
                    Some(Err(e)) => return Err(expired_or_internal(e, 0)),
                    None => return Err(Status::expired("the store was closed")),
                },
            }
        }
    }

    /// Newest revision that a bookmark may state now, if everything before it was yielded.
    pub(crate) fn bookmark(&self) -> Option<u64> {
        let From::Ring { cache, next, .. } = &self.from else {
            return None;
        };
        let applied = cache.applied();
        let state = self.kind.state.read();
        (self.batch.is_empty() && *next == state.first + state.ring.len() as u64).then_some(applied)
    }
}

/// An event of the store's history.
fn historic(kind: &Kind, event: &store::Event) -> Option<Arc<Event>> {
    let key: Arc<str> = event
        .record
        .key
        .strip_prefix(&store_prefix(kind.row))?
        .into();
    let revision = event.record.modified.0;
    let previous = event
        .previous
        .clone()
        .and_then(|b| Object::parse(kind.row, key.clone(), b, revision))
        .map(Arc::new);
    Some(match event.kind {
        EventKind::Deleted => {
            let last = previous?;
            Event::new(Change::Deleted, last.clone(), Some(last))
        }
        made => {
            let object = Arc::new(Object::parse(
                kind.row,
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

//! Watches: history from the table, then what is published, without gap or duplicate.
//!
//! A watcher is registered and the newest revision read under one lock; up to that
//! revision it reads history, after it it listens.

use super::table::event;
use super::{Shared, State};
use crate::{Error, Event, Revision, WatchItem};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use std::sync::Arc;
use tokio::sync::mpsc::{self, error::TrySendError};

/// Commits that a watcher may be behind; one more and it is dropped as too slow.
const EVENTS_PENDING_MAX: usize = 1024;
/// Rows of history looked at in one go.
const HISTORY_CHUNK: usize = 256;

/// The sending side of a watch.
pub(super) struct Watcher {
    prefix: String,
    items: mpsc::Sender<WatchItem>,
    /// The last revision that the watch knows of.
    told: u64,
}

impl State {
    /// Sends events of one commit to those whose prefix matches; whether some other
    /// watcher is now behind the newest revision.
    pub(super) fn publish(&mut self, events: Arc<[Event]>) -> bool {
        let newest = self.newest;
        let mut behind = false;
        self.watchers.retain_mut(|watcher| {
            let matching = |event: &&Event| event.record.key.starts_with(&watcher.prefix);
            let count = events.iter().filter(matching).count();
            if count == 0 {
                behind = true;
                return !watcher.items.is_closed();
            }
            let events = if count == events.len() {
                events.clone()
            } else {
                events.iter().filter(matching).cloned().collect()
            };
            watcher.told = newest;
            watcher.items.try_send(WatchItem::Events(events)).is_ok()
        });
        behind
    }

    /// Tells the newest revision to those who have not heard of it.
    pub(super) fn publish_progress(&mut self) {
        let newest = self.newest;
        self.watchers.retain_mut(|watcher| {
            if watcher.told == newest {
                return true;
            }
            match watcher
                .items
                .try_send(WatchItem::Progress(Revision(newest)))
            {
                Ok(()) => {
                    watcher.told = newest;
                    true
                }
                // It has enough to do; what it has not read tells more.
                Err(TrySendError::Full(_)) => true,
                Err(TrySendError::Closed(_)) => false,
            }
        });
    }
}

/// Where a watch is.
struct Watch {
    shared: Arc<Shared>,
    prefix: String,
    items: mpsc::Receiver<WatchItem>,
    /// History is read after the first and up to the second.
    history: (u64, u64),
    /// Lazy writes that are not in the table, told after history.
    lazy: Vec<Event>,
    /// Told when all before is, once.
    caught_up: Option<u64>,
}

pub(super) fn watch(
    shared: &Arc<Shared>,
    prefix: &str,
    from: Option<Revision>,
) -> Result<BoxStream<'static, Result<WatchItem, Error>>, Error> {
    let mut state = shared.state.write();
    let from = state.readable(from)?;
    let lazy = state
        .lazy
        .range(from + 1..)
        .filter(|(_, lazy)| lazy.row.key.starts_with(prefix))
        .map(|(_, lazy)| event(lazy.row.clone(), lazy.previous.clone()))
        .collect();
    let (sender, items) = mpsc::channel(EVENTS_PENDING_MAX);
    let newest = state.newest;
    state.watchers.push(Watcher {
        prefix: prefix.to_owned(),
        items: sender,
        told: newest,
    });
    let watch = Watch {
        shared: shared.clone(),
        prefix: prefix.to_owned(),
        items,
        history: (from, state.flushed),
        lazy,
        caught_up: Some(newest),
    };
    drop(state);
    let items = stream::try_unfold(watch, |mut watch| async move {
        let item = watch.next().await?;
        Ok(Some((item, watch)))
    });
    Ok(items.boxed())
}

impl Watch {
    async fn next(&mut self) -> Result<WatchItem, Error> {
        while self.history.0 < self.history.1 {
            let events = self.read_history().await?;
            if !events.is_empty() {
                return Ok(WatchItem::Events(events.into()));
            }
        }
        if !self.lazy.is_empty() {
            let events = std::mem::take(&mut self.lazy);
            return Ok(WatchItem::Events(events.into()));
        }
        if let Some(revision) = self.caught_up.take() {
            return Ok(WatchItem::Progress(Revision(revision)));
        }
        match self.items.recv().await {
            Some(item) => Ok(item),
            None if self.shared.state.read().closed => Err(Error::Closed),
            None => Err(Error::Slow),
        }
    }

    async fn read_history(&mut self) -> Result<Vec<Event>, Error> {
        let (from, until) = self.history;
        let prefix = self.prefix.clone();
        let (events, reached) = self
            .shared
            .read(move |table| table.history(&prefix, from, until, HISTORY_CHUNK))
            .await?;
        // Rows are removed only after `compacted` says so: checked after reading, it tells
        // whether all of them were still there.
        let compacted = self.shared.state.read().meta.compacted;
        if from < compacted {
            return Err(Error::Compacted(Revision(compacted)));
        }
        self.history.0 = reached;
        Ok(events)
    }
}

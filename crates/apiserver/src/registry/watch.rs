//! Watches: a body that yields one line (in protobuf one frame, in CBOR one document) an event until its time is up, its client goes,
//! the server stops or it falls behind.

use super::list::{Filter, revision_parameter};
use super::render::{View, version_meta};
use crate::cache::{Change, Event, Next, Object, Snapshot, Source};
use crate::convert;
use crate::http::negotiate::{Encoding, Shape};
use crate::http::request::Query;
use crate::http::respond::{Body, BoxError, to_cbor, to_json, to_protobuf};
use crate::row::Row;
use crate::server_state::Core;
use apimachinery::{Status, cbor, protobuf};
use bytes::Bytes;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a watch lasts that states no timeout, at least; up to twice that.
const TIMEOUT_MIN: Duration = Duration::from_secs(1800);
/// Time between bookmarks.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// Bytes gathered into one chunk when many events are ready.
const CHUNK: usize = 32 * 1024;

struct Watch {
    core: Arc<Core>,
    source: Source,
    filter: Filter,
    view: View,
    /// Objects of the initial list that are still to be sent.
    initial: VecDeque<Arc<Object>>,
    /// Revision of the initial list, for the bookmark that ends it.
    initial_end: Option<u64>,
    bookmarks: bool,
    next_bookmark: Instant,
    sent_columns: bool,
    deadline: Instant,
    done: bool,
}

/// Opens a watch.
///
/// # Errors
/// 410 when the revision asked for is gone; 400 for options that contradict each other.
pub(crate) async fn open(
    core: &Arc<Core>,
    filter: Filter,
    view: View,
    query: &Query,
) -> Result<Body, Status> {
    let row = filter
        .row
        .as_ref()
        .ok_or_else(|| Status::internal("watch without a kind"))?;
    let kind = core.kind(row)?;
    let version = revision_parameter(query)?;
    let initial_events = query
        .get("sendInitialEvents")
        .map(|v| v != "false" && v != "0");
    let bookmarks = query.flag("allowWatchBookmarks");
    check_initial(initial_events, query)?;
    let send_list = match initial_events {
        Some(send) => send,
        None => version.unwrap_or(0) == 0,
    };
    match version {
        Some(v) if v > 0 => core.cache.reach(v).await?,
        Some(_) => {}
        None => core.fresh().await?,
    }
    let (snapshot, source) = if send_list {
        if initial_events == Some(true) {
            core.fresh().await?;
        }
        let (snapshot, source) =
            Source::after_list(&core.cache, &core.store, &kind, &filter.namespace);
        (Some(snapshot), source)
    } else {
        match version.unwrap_or(0) {
            0 => (
                None,
                Source::after_list(&core.cache, &core.store, &kind, &filter.namespace).1,
            ),
            v => (
                None,
                Source::after_revision(&core.cache, &core.store, &kind, v).await?,
            ),
        }
    };
    let seconds = query.number::<u64>("timeoutSeconds")?.unwrap_or(0);
    let timeout = if seconds > 0 {
        Duration::from_secs(seconds)
    } else {
        spread(core)
    };
    let now = Instant::now();
    let mut watch = Watch {
        core: core.clone(),
        source,
        filter,
        view,
        initial: VecDeque::new(),
        initial_end: None,
        bookmarks,
        next_bookmark: now + BOOKMARK_INTERVAL,
        sent_columns: false,
        deadline: now + timeout,
        done: false,
    };
    if let Some(Snapshot { objects, revision }) = snapshot {
        let chosen: Vec<Arc<Object>> = objects
            .into_iter()
            .filter(|o| watch.filter.matches(o))
            .collect();
        convert::prepare(core, &watch.view.row, &chosen).await?;
        watch.initial = chosen.into();
        if initial_events == Some(true) && bookmarks {
            watch.initial_end = Some(revision);
        }
    }
    Ok(Body::stream(futures::stream::unfold(
        watch,
        |mut w| async move {
            let chunk = w.chunk().await?;
            Some((Ok::<_, BoxError>(chunk), w))
        },
    )))
}

fn check_initial(initial: Option<bool>, query: &Query) -> Result<(), Status> {
    let matching = query.get("resourceVersionMatch");
    let forbidden = |text: &str| {
        Err(Status::new(
            422,
            "Invalid",
            format!("ListOptions.meta.k8s.io \"\" is invalid: {text}"),
        ))
    };
    match (initial, matching) {
        (Some(_), Some("NotOlderThan")) | (None, None) => Ok(()),
        (Some(_), _) => forbidden(
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
        (None, Some(_)) => forbidden(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
    }
}

/// A timeout between the minimum and twice that, so that watches do not all end at once.
fn spread(core: &Core) -> Duration {
    let mut byte = [0; 1];
    (core.entropy)(&mut byte);
    TIMEOUT_MIN + TIMEOUT_MIN * u32::from(byte[0]) / 256
}

impl Watch {
    /// The next bytes; `None` ends the watch.
    async fn chunk(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        match self.initial_chunk() {
            Ok(None) => {}
            Ok(Some(bytes)) => return Some(bytes),
            Err(status) => return Some(self.failure(&status)),
        }
        loop {
            let stop = self.core.stop.clone();
            let next = tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                () = tokio::time::sleep_until(self.deadline) => return None,
                () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.next_bookmark += BOOKMARK_INTERVAL;
                    match self.source.bookmark() {
                        Some(revision) => return Some(self.bookmark(revision, false).into()),
                        None => continue,
                    }
                }
                next = self.source.next() => next,
            };
            match next {
                Ok(Next::CaughtUp) => {}
                Ok(Next::Ended) => return None,
                Ok(Next::Event(event)) => {
                    let shown = match self.prepare(&event).await {
                        Ok(()) => self.events(&event),
                        Err(status) => Err(status),
                    };
                    match shown {
                        Ok(None) => {}
                        Ok(Some(bytes)) => return Some(bytes),
                        Err(status) => return Some(self.failure(&status)),
                    }
                }
                Err(status) => return Some(self.failure(&status)),
            }
        }
    }

    /// The event that ends the watch early.
    fn failure(&mut self, status: &Status) -> Bytes {
        self.done = true;
        self.told("ERROR", &status.to_value()).into()
    }

    /// Has what an event shows converted, where that is a webhook's.
    async fn prepare(&mut self, event: &Event) -> Result<(), Status> {
        let row = &self.view.row;
        if matches!(row, Row::Custom(c) if c.conversion.is_some()) {
            let mut shown = vec![event.object.clone()];
            shown.extend(event.previous.clone());
            shown.retain(|o| self.filter.matches(o));
            convert::prepare(&self.core, row, &shown).await?;
        }
        Ok(())
    }

    fn initial_chunk(&mut self) -> Result<Option<Bytes>, Status> {
        let mut out = Vec::new();
        while let Some(object) = self.initial.pop_front() {
            self.write("ADDED", &object, &mut out)?;
            if out.len() >= CHUNK {
                return Ok(Some(out.into()));
            }
        }
        if let Some(revision) = self.initial_end.take() {
            out.extend(self.bookmark(revision, true));
        }
        Ok((!out.is_empty()).then(|| out.into()))
    }

    /// An event as this watcher sees it.
    fn events(&mut self, event: &Event) -> Result<Option<Bytes>, Status> {
        let is = self.filter.matches(&event.object);
        let was = event
            .previous
            .as_ref()
            .is_some_and(|p| self.filter.matches(p));
        let seen = match (event.change, was, is) {
            (Change::Deleted, true, _) => Change::Deleted,
            (Change::Deleted, false, _) | (_, false, false) => return Ok(None),
            (_, false, true) => Change::Added,
            (_, true, true) => Change::Modified,
            (_, true, false) => Change::Deleted,
        };
        // Most watchers see the event as it is: they share one encoding.
        let whole = seen == event.change && !convert::differs(&self.view.row, &event.object);
        let accepted = self.view.accepted;
        let shared = match (accepted.shape, accepted.encoding) {
            _ if !whole || accepted.beta => None,
            (Shape::Object, Encoding::Json) => Some(&event.json),
            (Shape::Object, Encoding::Protobuf) => Some(&event.protobuf),
            (Shape::Object, Encoding::Cbor) => Some(&event.cbor),
            (Shape::Metadata, Encoding::Json) => Some(&event.metadata),
            (Shape::Metadata, Encoding::Protobuf) => Some(&event.protobuf_metadata),
            (Shape::Metadata, Encoding::Cbor) => Some(&event.cbor_metadata),
            (Shape::Table | Shape::Discovery, _) | (_, Encoding::Yaml) => None,
        };
        if let Some(bytes) = shared.and_then(|s| s.get()) {
            return Ok(Some(bytes.clone()));
        }
        let mut out = Vec::new();
        // Leaving the selection shows the last state inside it, under this event's revision.
        match (&event.previous, seen) {
            (Some(previous), Change::Deleted) if event.change != Change::Deleted => {
                self.write(seen.name(), &previous.at(event.object.revision), &mut out)?;
            }
            _ => self.write(seen.name(), &event.object, &mut out)?,
        }
        let bytes = Bytes::from(out);
        Ok(Some(match shared {
            // Whoever was first.
            Some(shared) => shared.get_or_init(|| bytes).clone(),
            None => bytes,
        }))
    }

    /// Appends an event.
    fn write(&mut self, event: &str, object: &Object, out: &mut Vec<u8>) -> Result<(), Status> {
        let accepted = self.view.accepted;
        match (accepted.encoding, accepted.shape) {
            (Encoding::Protobuf, _) => {
                return protobuf::frame(out, event, |out| self.view.write_enclosed(object, out));
            }
            (Encoding::Cbor, Shape::Object | Shape::Metadata) => {
                write_document(event, out);
                return self.view.write_enclosed(object, out);
            }
            (Encoding::Cbor, _) => {
                let table = self.table(object);
                write_document(event, out);
                out.extend(to_cbor(&table));
            }
            (Encoding::Json | Encoding::Yaml, _) => {
                let body = self.body(object);
                write_line(event, &body, out);
            }
        }
        Ok(())
    }

    /// An event of an object that is not stored.
    fn told(&self, event: &str, object: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        let messages = match self.view.accepted.encoding {
            Encoding::Protobuf => to_protobuf(object),
            _ => None,
        };
        match (self.view.accepted.encoding, messages) {
            (_, Some(body)) => protobuf::frame(&mut out, event, |out| out.extend(body)),
            (Encoding::Cbor, _) => {
                write_document(event, &mut out);
                out.extend(to_cbor(object));
            }
            _ => write_line(event, &to_json(object), &mut out),
        }
        out
    }

    /// The Table of one event.
    fn table(&mut self, object: &Object) -> Value {
        let view = View {
            now: self.core.clock.now().as_second(),
            ..self.view.clone()
        };
        let meta = version_meta(object.revision);
        let table = view.table(&[object], &meta, !self.sent_columns);
        self.sent_columns = true;
        table
    }

    fn body(&mut self, object: &Object) -> Vec<u8> {
        if self.view.accepted.shape == Shape::Table {
            return to_json(&self.table(object));
        }
        let mut out = Vec::with_capacity(object.bytes.len() + 64);
        match self.view.accepted.shape {
            Shape::Metadata => object.write_metadata(self.view.accepted.meta(), &mut out),
            _ => self.view.write_object(object, &mut out),
        }
        out
    }

    fn bookmark(&mut self, revision: u64, end_of_initial: bool) -> Vec<u8> {
        let mut meta = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if end_of_initial {
            meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let row = &self.view.row;
        let version = self.view.accepted.meta();
        let object = match self.view.accepted.shape {
            Shape::Metadata => json!({
                "kind": "PartialObjectMetadata", "apiVersion": version, "metadata": meta,
            }),
            Shape::Table => {
                let shown = json!({
                    "kind": "PartialObjectMetadata", "apiVersion": version, "metadata": meta,
                });
                json!({
                    "kind": "Table", "apiVersion": version,
                    "metadata": version_meta(revision), "columnDefinitions": Value::Null,
                    "rows": [{"cells": empty_cells(row), "object": shown}],
                })
            }
            _ => skeleton(row, meta),
        };
        self.told("BOOKMARK", &object)
    }
}

fn empty_cells(row: &Row) -> Vec<Value> {
    vec![Value::from(""); row.column_count() + usize::from(row.name_column())]
}

/// The least object of a kind that typed clients can parse: a bookmark carries only a
/// revision, but several clients decode it as a whole object of the kind.
fn skeleton(row: &Row, meta: Value) -> Value {
    json!({"kind": row.kind(), "apiVersion": row.api_version(), "metadata": meta})
}

/// Begins a document of CBOR with an event, whose object is to follow.
fn write_document(kind: &str, out: &mut Vec<u8>) {
    cbor::enclose(out, |out| {
        cbor::map(2, out);
        for part in ["type", kind, "object"] {
            cbor::string(part.as_bytes(), out);
        }
    });
}

fn write_line(kind: &str, body: &[u8], out: &mut Vec<u8>) {
    out.reserve(body.len() + 40);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(body);
    out.extend_from_slice(b"}\n");
}

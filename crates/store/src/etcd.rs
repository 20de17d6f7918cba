//! The store in an etcd cluster: keys and values as they are, revisions are etcd's.
//!
//! `rpc` asks the members, `messages` has the protocol. A call is tried again while no member
//! answers; a write that may have been heard the first time is recognised by what it left.
//!
//! A watch follows the whole key space and passes on what has its prefix. So it knows of
//! every revision, and what etcd says about progress is not needed: members before 3.4.25 and
//! 3.5.8 may tell it ahead of the events. The etcd of a site should be its own.

mod messages;
mod rpc;

pub use rpc::Config;

use crate::{
    Durability, Error, Event, EventKind, Range, RangeRequest, Record, Revision, Store, WatchItem,
    Write,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{SinkExt as _, StreamExt as _};
use lifecycle::Scope;
use messages::{Operation, Outcome, WatchAsk};
use rpc::Members;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::{Code, Status};

/// Records asked for at once; longer ranges are read in pages of one revision.
const PAGE: usize = 1000;
/// Answers of etcd that a watcher may be behind; one more and it is dropped as too slow.
const ITEMS_PENDING_MAX: usize = 1024;
/// How often a quiet member is asked for a sign of life, and how long it has for it.
const SIGN_EVERY: Duration = Duration::from_secs(5);

/// A [`Store`] in an etcd cluster.
#[derive(Debug)]
pub struct EtcdStore {
    members: Arc<Members>,
    /// Before each key.
    prefix: Arc<str>,
    /// Owns the tasks of watches; cancelled once the store is closed.
    scope: Scope,
}

impl EtcdStore {
    /// Connects, and asks once so that a wrong address or certificate is told now.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for addresses and certificates that can't be right,
    /// [`Error::Unavailable`] when no member answers.
    pub async fn connect(config: &Config) -> Result<Self, Error> {
        let store = Self {
            members: Arc::new(Members::new(config)?),
            prefix: config.prefix.as_str().into(),
            scope: Scope::new(),
        };
        store.revision().await?;
        Ok(store)
    }

    fn open(&self) -> Result<(), Error> {
        if self.scope.token().is_cancelled() {
            return Err(Error::Closed);
        }
        Ok(())
    }

    async fn read(
        &self,
        request: messages::RangeRequest,
    ) -> Result<messages::RangeResponse, Error> {
        self.open()?;
        let revision = request.revision;
        match self.members.call("/etcdserverpb.KV/Range", &request).await {
            Ok((answer, _)) => Ok(answer),
            Err(status) => Err(self.refused(&status, revision).await),
        }
    }

    /// What etcd's refusal means; `at` is the revision that was asked for.
    async fn refused(&self, status: &Status, at: i64) -> Error {
        let message = status.message();
        if message.contains("has been compacted") {
            return match self.oldest().await {
                Ok(oldest) => Error::Compacted(oldest),
                Err(e) => e,
            };
        }
        if message.contains("is a future revision") {
            return match self.revision().await {
                Ok(newest) => Error::Future(newest),
                // It is below what was asked for, whatever it is.
                Err(_) => Error::Future(Revision(unsigned(at).saturating_sub(1))),
            };
        }
        if message.contains("database space exceeded") {
            return Error::Disk(io::Error::new(
                io::ErrorKind::StorageFull,
                message.to_owned(),
            ));
        }
        if message.contains("request is too large") {
            return Error::TooLarge;
        }
        Error::Unavailable(Box::new(status.clone()))
    }

    /// The revision below which everything is compacted: etcd tells it to a watch from there.
    async fn oldest(&self) -> Result<Revision, Error> {
        let mut answers = self.answers(1, |_| false).await?;
        match answers.next().await {
            Some(Ok(answer)) => Ok(Revision(unsigned(answer.compact_revision))),
            _ => Err(unavailable("etcd did not say what it has compacted")),
        }
    }

    /// Watch answers from a revision (inclusive) on, those that are wanted; and a sign of life
    /// now and then, or the end.
    async fn answers(
        &self,
        from: i64,
        wanted: impl Fn(&messages::WatchResponse) -> bool + Send + 'static,
    ) -> Result<BoxStream<'static, Result<messages::WatchResponse, Error>>, Error> {
        let (mut ask, asked) = futures::channel::mpsc::channel(1);
        let create = WatchAsk::Create(messages::WatchCreateRequest {
            key: ALL.into(),
            range_end: ALL.into(),
            start_revision: from,
            prev_kv: true,
            fragment: true,
        });
        let ask_for = |ask| messages::WatchRequest { request: Some(ask) };
        // The channel is empty and its other end is here.
        let _ = ask.try_send(ask_for(create));
        let opened = self.members.watch(asked).await;
        let answers = opened.map_err(|status| Error::Unavailable(Box::new(status)))?;
        let begin = (answers, ask, wanted);
        let answers = stream::unfold(begin, move |(mut answers, mut ask, wanted)| async move {
            let mut silent = false;
            loop {
                match tokio::time::timeout(SIGN_EVERY, answers.next()).await {
                    Ok(Some(Ok(answer))) if answer.canceled || wanted(&answer) => {
                        return Some((Ok(answer), (answers, ask, wanted)));
                    }
                    Ok(Some(Ok(_))) => silent = false,
                    Ok(Some(Err(status))) => {
                        let error = Error::Unavailable(Box::new(status));
                        return Some((Err(error), (answers, ask, wanted)));
                    }
                    Ok(None) => return None,
                    Err(_) if silent => {
                        let error = unavailable("etcd gives no sign of life");
                        return Some((Err(error), (answers, ask, wanted)));
                    }
                    Err(_) => {
                        silent = true;
                        let sign = WatchAsk::Progress(messages::WatchProgressRequest {});
                        if ask.send(ask_for(sign)).await.is_err() {
                            return None;
                        }
                    }
                }
            }
        });
        Ok(answers.boxed())
    }

    /// The record at a key whose write was refused.
    fn found(key: &str, answer: &messages::TxnResponse) -> Option<Record> {
        match answer.responses.first()?.response.as_ref()? {
            Outcome::Range(range) => range.kvs.first().map(|kv| record(key, kv)),
            _ => None,
        }
    }

    /// A key, or what keys begin with, as etcd has it.
    fn there(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        self.scope.token().cancel();
    }
}

/// From the first possible key; as an end, to the last.
const ALL: &[u8] = &[0];

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Record>, Error> {
        let request = messages::RangeRequest {
            key: self.there(key).into(),
            revision: at.map_or(0, signed),
            ..messages::RangeRequest::default()
        };
        let answer = self.read(request).await?;
        Ok(answer.kvs.first().map(|kv| record(key, kv)))
    }

    async fn range(&self, request: RangeRequest) -> Result<Range, Error> {
        let prefix = self.there(&request.prefix);
        let end = end_of(&prefix);
        let mut next = match &request.after {
            Some(after) => after_key(&self.there(after)),
            None => start_of(&prefix),
        };
        let mut range = Range {
            records: Vec::new(),
            revision: request.at.unwrap_or_default(),
            remaining: 0,
        };
        let mut at = request.at;
        loop {
            let wanted = match request.limit {
                0 => PAGE,
                limit => PAGE.min(limit - range.records.len()),
            };
            let answer = self
                .read(messages::RangeRequest {
                    key: next,
                    range_end: end.clone(),
                    limit: i64::try_from(wanted).unwrap_or(i64::MAX),
                    revision: at.map_or(0, signed),
                    ..messages::RangeRequest::default()
                })
                .await?;
            if at.is_none() {
                range.revision = revision_of(answer.header.as_ref());
                at = Some(range.revision);
            }
            let count = usize::try_from(answer.count).unwrap_or_default();
            range.remaining = count.saturating_sub(answer.kvs.len());
            let skip = self.prefix.len();
            let records = answer
                .kvs
                .iter()
                .map(|kv| record(&text(&kv.key[skip..]), kv));
            range.records.extend(records);
            let full = request.limit != 0 && range.records.len() >= request.limit;
            match range.records.last() {
                Some(last) if range.remaining > 0 && !full => {
                    next = after_key(&self.there(&last.key));
                }
                _ => return Ok(range),
            }
        }
    }

    async fn count(&self, prefix: &str) -> Result<usize, Error> {
        let request = messages::RangeRequest {
            key: start_of(&self.there(prefix)),
            range_end: end_of(&self.there(prefix)),
            count_only: true,
            ..messages::RangeRequest::default()
        };
        let answer = self.read(request).await?;
        Ok(usize::try_from(answer.count).unwrap_or_default())
    }

    async fn write(&self, key: &str, write: Write, _: Durability) -> Result<Record, Error> {
        self.open()?;
        let request = transaction(&self.there(key), &write);
        let sent = self.members.call("/etcdserverpb.KV/Txn", &request).await;
        let (answer, again): (messages::TxnResponse, _) = match sent {
            Ok(sent) => sent,
            Err(status) => return Err(self.refused(&status, 0).await),
        };
        if answer.succeeded {
            return done(key, write, &answer);
        }
        let there = Self::found(key, &answer);
        if again {
            // Asked twice: the first time it may have been done, and the answer lost.
            match (&write, &there) {
                (Write::Create { value } | Write::Update { value, .. }, Some(record))
                    if record.value == *value =>
                {
                    return Ok(record.clone());
                }
                (Write::Delete { expected }, None) => {
                    if let Some(mut record) = self.get(key, Some(*expected)).await? {
                        record.modified = revision_of(answer.header.as_ref());
                        return Ok(record);
                    }
                }
                _ => {}
            }
        }
        Err(match (write, there) {
            (Write::Create { .. }, Some(there)) => Error::Exists(there.modified),
            (_, there) => Error::Conflict(there),
        })
    }

    async fn watch(
        &self,
        prefix: &str,
        from: Option<Revision>,
    ) -> Result<BoxStream<'static, Result<WatchItem, Error>>, Error> {
        // Also says whether the revision is still there, and reached.
        let request = messages::RangeRequest {
            key: ALL.into(),
            revision: from.map_or(0, signed),
            count_only: true,
            ..messages::RangeRequest::default()
        };
        let newest = revision_of(self.read(request).await?.header.as_ref());
        let from = from.unwrap_or(newest);
        let mut answers = self
            .answers(signed(from) + 1, |answer| !answer.events.is_empty())
            .await?;
        let (items, receiver) = mpsc::channel(ITEMS_PENDING_MAX);
        // Who has nothing more to hear knows that it has heard everything.
        let known = (from == newest).then_some(Ok(WatchItem::Progress(newest)));
        let (prefix, skip) = (self.there(prefix), self.prefix.len());
        let closed = self.scope.token().clone();
        self.scope.spawn_cancellable(async move {
            while let Some(answer) = answers.next().await {
                let item = match answer {
                    Ok(answer) if answer.canceled => Err(ended(&answer)),
                    Ok(answer) => Ok(item(&prefix, skip, &answer)),
                    Err(e) => Err(e),
                };
                let last = item.is_err();
                if items.try_send(item).is_err() || last {
                    return;
                }
            }
        });
        let begin = (receiver, closed, false);
        let items = stream::unfold(begin, |(mut items, closed, over)| async move {
            if over {
                return None;
            }
            let item = tokio::select! {
                biased;
                () = closed.cancelled() => Err(Error::Closed),
                item = items.recv() => match item {
                    Some(item) => item,
                    // The task ended without a word: what came was too much.
                    None => Err(Error::Slow),
                },
            };
            let over = item.is_err();
            Some((item, (items, closed, over)))
        });
        Ok(stream::iter(known).chain(items).boxed())
    }

    async fn revision(&self) -> Result<Revision, Error> {
        let request = messages::RangeRequest {
            key: ALL.into(),
            count_only: true,
            ..messages::RangeRequest::default()
        };
        Ok(revision_of(self.read(request).await?.header.as_ref()))
    }

    async fn compact(&self, at: Revision) -> Result<(), Error> {
        self.open()?;
        let request = messages::CompactionRequest {
            revision: signed(at),
        };
        let path = "/etcdserverpb.KV/Compact";
        let sent: Result<(messages::CompactionResponse, bool), _> =
            self.members.call(path, &request).await;
        match sent {
            Ok(_) => Ok(()),
            // Someone else did.
            Err(status) if status.message().contains("has been compacted") => Ok(()),
            Err(status) => Err(self.refused(&status, request.revision).await),
        }
    }

    async fn close(&self) -> Result<(), Error> {
        self.scope.close().await;
        Ok(())
    }
}

/// The one write of a key, if its last write was the expected one; else what is there.
fn transaction(key: &str, write: &Write) -> messages::TxnRequest {
    let key = Bytes::from(key.to_owned());
    let operation = |request| messages::RequestOp {
        request: Some(request),
    };
    let look = |keys_only| {
        operation(Operation::Range(messages::RangeRequest {
            key: key.clone(),
            keys_only,
            ..messages::RangeRequest::default()
        }))
    };
    let put = |value: &Bytes| {
        let request = messages::PutRequest {
            key: key.clone(),
            value: value.clone(),
        };
        vec![operation(Operation::Put(request)), look(true)]
    };
    let (expected, success) = match write {
        Write::Create { value } => (0, put(value)),
        Write::Update { value, expected } => (signed(*expected), put(value)),
        Write::Delete { expected } => {
            let request = messages::DeleteRangeRequest {
                key: key.clone(),
                prev_kv: true,
            };
            (
                signed(*expected),
                vec![operation(Operation::Delete(request))],
            )
        }
    };
    messages::TxnRequest {
        compare: vec![messages::Compare {
            result: 0,
            target: 2,
            key: key.clone(),
            mod_revision: Some(expected),
        }],
        success,
        failure: vec![look(false)],
    }
}

/// The record that a write made, or removed.
fn done(key: &str, write: Write, answer: &messages::TxnResponse) -> Result<Record, Error> {
    let modified = revision_of(answer.header.as_ref());
    let missing = || unavailable("etcd's answer to a write lacks the key");
    let outcome = answer.responses.last().and_then(|r| r.response.as_ref());
    let (kv, value) = match (outcome, write) {
        (Some(Outcome::Range(range)), Write::Create { value } | Write::Update { value, .. }) => {
            (range.kvs.first(), Some(value))
        }
        (Some(Outcome::Delete(deleted)), _) => (deleted.prev_kvs.first(), None),
        _ => (None, None),
    };
    let kv = kv.ok_or_else(missing)?;
    Ok(Record {
        key: key.into(),
        value: value.unwrap_or_else(|| kv.value.clone()),
        created: Revision(unsigned(kv.create_revision)),
        modified,
    })
}

/// What a watch answer tells about keys with the prefix, of which so many bytes are not shown.
fn item(prefix: &str, skip: usize, answer: &messages::WatchResponse) -> WatchItem {
    let mut newest = 0;
    let mut events = Vec::new();
    for event in &answer.events {
        let Some(kv) = &event.kv else { continue };
        newest = newest.max(kv.mod_revision);
        if !kv.key.starts_with(prefix.as_bytes()) {
            continue;
        }
        let mut record = record(&text(&kv.key[skip..]), kv);
        let previous = event.prev_kv.as_ref();
        let kind = if event.kind == 1 {
            record.created = previous.map_or(record.modified, |previous| {
                Revision(unsigned(previous.create_revision))
            });
            EventKind::Deleted
        } else if record.created == record.modified {
            EventKind::Created
        } else {
            EventKind::Updated
        };
        events.push(Event {
            record,
            previous: previous.map(|previous| previous.value.clone()),
            kind,
        });
    }
    if events.is_empty() {
        return WatchItem::Progress(Revision(unsigned(newest)));
    }
    WatchItem::Events(events.into())
}

/// Why etcd ended a watch.
fn ended(answer: &messages::WatchResponse) -> Error {
    if answer.compact_revision > 0 {
        return Error::Compacted(Revision(unsigned(answer.compact_revision)));
    }
    Error::Unavailable(Box::new(Status::new(
        Code::Aborted,
        format!("etcd ended the watch: {}", answer.cancel_reason),
    )))
}

fn unavailable(text: &str) -> Error {
    Error::Unavailable(text.into())
}

fn record(key: &str, kv: &messages::KeyValue) -> Record {
    Record {
        key: key.into(),
        value: kv.value.clone(),
        created: Revision(unsigned(kv.create_revision)),
        modified: Revision(unsigned(kv.mod_revision)),
    }
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

fn revision_of(header: Option<&messages::ResponseHeader>) -> Revision {
    Revision(header.map_or(0, |header| unsigned(header.revision)))
}

fn unsigned(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or_default()
}

fn signed(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

/// The first key with a prefix.
fn start_of(prefix: &str) -> Bytes {
    if prefix.is_empty() {
        return ALL.into();
    }
    prefix.to_owned().into()
}

/// What comes after all keys with a prefix.
fn end_of(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end.into();
        }
    }
    ALL.into()
}

/// The least key after this one.
fn after_key(key: &str) -> Bytes {
    let mut next = key.as_bytes().to_vec();
    next.push(0);
    next.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_ranges() {
        for (prefix, start, end) in [
            ("/a/", &b"/a/"[..], &b"/a0"[..]),
            ("", b"\0", b"\0"),
            ("/a\u{7f}", b"/a\x7f", b"/a\x80"),
        ] {
            assert_eq!(start_of(prefix), start);
            assert_eq!(end_of(prefix), end, "{prefix:?}");
        }
        assert_eq!(after_key("/a"), &b"/a\0"[..]);
    }

    #[test]
    fn addresses_must_be_urls() {
        for endpoints in [
            vec![],
            vec!["10.0.0.1:2379"],
            vec!["unix:///etcd"],
            vec!["http://"],
        ] {
            let config = Config {
                endpoints: endpoints.iter().map(|e| (*e).to_owned()).collect(),
                ..Config::default()
            };
            let told = Members::new(&config);
            assert!(matches!(told, Err(Error::Corrupt(_))), "{endpoints:?}");
        }
    }
}

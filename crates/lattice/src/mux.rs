//! All streams of a site: which frame belongs to which, whose timer is due, and the handle
//! that readers and writers hold.

use crate::identity::SiteId;
use crate::message::{Frame, FrameBody, PROTOCOL_MAX};
use crate::streams::{Stream, StreamError};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// Streams that one site may have open here; more are refused.
const STREAMS_PER_SITE_MAX: usize = 1024;
/// Streams that are over and remembered, to answer a site that has not heard so.
const FINISHED_MAX: usize = 1024;

/// Whose it is, its number, and whether this site opened it.
pub(crate) type Key = (SiteId, u64, bool);

/// Streams whose reader or writer has done something since they were last looked at.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    keys: Mutex<BTreeSet<Key>>,
    notify: Notify,
}

impl Dirty {
    fn add(&self, key: Key) {
        self.keys.lock().insert(key);
        self.notify.notify_one();
    }

    /// Returns when there is something. Cancel-safe.
    pub(crate) async fn wait(&self) {
        self.notify.notified().await;
    }
}

#[derive(Debug)]
struct Shared {
    key: Key,
    // Taken for a moment at a time, never together with `Dirty::keys`.
    stream: Mutex<Stream>,
    dirty: Arc<Dirty>,
}

/// A stream to or from another site: bytes both ways. Shutting it down says that nothing more
/// will be written; dropping it before both ends were reached cancels it.
#[derive(Debug)]
pub struct SiteStream(Arc<Shared>);

/// A stream that another site has opened.
#[derive(Debug)]
pub struct Incoming {
    /// The site.
    pub from: SiteId,
    /// What it is for.
    pub protocol: String,
    /// The stream.
    pub stream: SiteStream,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Mux {
    streams: BTreeMap<Key, Arc<Shared>>,
    timers: BTreeSet<(Duration, Key)>,
    due: BTreeMap<Key, Duration>,
    finished: VecDeque<(Key, u64)>,
    opened: u64,
    dirty: Arc<Dirty>,
}

impl Mux {
    pub(crate) fn dirty(&self) -> Arc<Dirty> {
        Arc::clone(&self.dirty)
    }

    /// Opens a stream; what is written before its first frames go out goes with them.
    pub(crate) fn open(
        &mut self,
        site: SiteId,
        protocol: &str,
        now: Duration,
        rtt: Duration,
    ) -> SiteStream {
        self.opened += 1;
        let key = (site, self.opened, true);
        let protocol = protocol.chars().take(PROTOCOL_MAX / 4).collect();
        let stream = Stream::open(self.opened, protocol, now, rtt);
        self.insert(key, stream)
    }

    fn insert(&mut self, key: Key, stream: Stream) -> SiteStream {
        let shared = Arc::new(Shared {
            key,
            stream: Mutex::new(stream),
            dirty: Arc::clone(&self.dirty),
        });
        self.streams.insert(key, Arc::clone(&shared));
        self.dirty.add(key);
        SiteStream(shared)
    }

    /// Takes in a frame. What is to be sent goes to `out`.
    pub(crate) fn take(
        &mut self,
        now: Duration,
        from: SiteId,
        frame: Frame,
        rtt: Duration,
        out: &mut Vec<(SiteId, Frame)>,
    ) -> Option<Incoming> {
        let key = (from, frame.stream, !frame.opener);
        if let Some(shared) = self.streams.get(&key) {
            shared.stream.lock().take(now, frame.body);
            self.pump(now, key, out);
            return None;
        }
        let answer = |body| Frame {
            stream: frame.stream,
            opener: !frame.opener,
            body,
        };
        let known = self.finished.iter().find(|(k, _)| *k == key);
        match (frame.body, known) {
            (FrameBody::Data { .. }, Some((_, received))) => {
                let body = FrameBody::Window {
                    received: *received,
                    fin: true,
                    limit: *received,
                    gap: false,
                };
                out.push((from, answer(body)));
                None
            }
            (
                FrameBody::Data {
                    open: Some(protocol),
                    offset,
                    fin,
                    bytes,
                },
                None,
            ) if frame.opener => {
                let theirs = self
                    .streams
                    .range((from, 0, false)..=(from, u64::MAX, true));
                if theirs.filter(|(k, _)| !k.2).count() >= STREAMS_PER_SITE_MAX {
                    let reason = "too many streams".to_owned();
                    out.push((from, answer(FrameBody::Reset { reason })));
                    return None;
                }
                let mut stream = Stream::accept(frame.stream, now, rtt);
                let body = FrameBody::Data {
                    open: None,
                    offset,
                    fin,
                    bytes,
                };
                stream.take(now, body);
                let stream = self.insert(key, stream);
                self.pump(now, key, out);
                Some(Incoming {
                    from,
                    protocol,
                    stream,
                })
            }
            (FrameBody::Data { .. }, None) => {
                let reason = "no such stream".to_owned();
                out.push((from, answer(FrameBody::Reset { reason })));
                None
            }
            (FrameBody::Window { .. } | FrameBody::Reset { .. }, _) => None,
        }
    }

    /// Sends what readers and writers have made ready, and what is due.
    pub(crate) fn pump_all(&mut self, now: Duration, out: &mut Vec<(SiteId, Frame)>) {
        let mut keys = std::mem::take(&mut *self.dirty.keys.lock());
        let due = self.timers.iter().take_while(|(at, _)| *at <= now);
        keys.extend(due.map(|(_, key)| *key));
        for key in keys {
            self.pump(now, key, out);
        }
    }

    fn pump(&mut self, now: Duration, key: Key, out: &mut Vec<(SiteId, Frame)>) {
        if let Some(at) = self.due.remove(&key) {
            self.timers.remove(&(at, key));
        }
        let Some(shared) = self.streams.get(&key) else {
            return;
        };
        let mut stream = shared.stream.lock();
        out.extend(stream.frames(now).into_iter().map(|f| (key.0, f)));
        if let Some(at) = stream.next(now) {
            self.timers.insert((at, key));
            self.due.insert(key, at);
        } else if stream.is_over() {
            let (received, whole) = stream.received();
            drop(stream);
            self.streams.remove(&key);
            if whole {
                self.finished.push_back((key, received));
                if self.finished.len() > FINISHED_MAX {
                    self.finished.pop_front();
                }
            }
        }
    }

    /// When something is due.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Ends all streams with a site, or with all, telling nobody.
    pub(crate) fn fail(&mut self, site: Option<SiteId>, error: &StreamError) {
        for (key, shared) in &self.streams {
            if site.is_none_or(|site| site == key.0) {
                shared.stream.lock().fail(error.clone());
                self.dirty.add(*key);
            }
        }
        self.finished
            .retain(|(key, _)| site.is_some_and(|site| site != key.0));
    }
}

impl SiteStream {
    /// The site at the other end.
    pub fn site(&self) -> SiteId {
        self.0.key.0
    }

    /// Gives it up both ways, and tells the other site why.
    pub fn cancel(&self, reason: &str) {
        self.0.stream.lock().cancel(reason);
        self.0.dirty.add(self.0.key);
    }

    /// Writes without waiting, as much as there is room for.
    pub(crate) fn write_now(&self, bytes: &[u8]) -> Result<usize, StreamError> {
        let written = self.0.stream.lock().write(bytes)?;
        self.0.dirty.add(self.0.key);
        Ok(written)
    }

    /// Says without waiting that nothing more is written.
    pub(crate) fn finish_now(&self) {
        self.0.stream.lock().finish();
        self.0.dirty.add(self.0.key);
    }

    /// What came in, at most `max` bytes; empty at the end. Cancel-safe.
    ///
    /// # Errors
    /// When the stream has ended before its end.
    pub async fn next(&self, max: usize) -> Result<Bytes, StreamError> {
        std::future::poll_fn(|cx| self.poll_next(cx, max)).await
    }

    /// Writes as much as there is room for, at least something. Cancel-safe.
    pub(crate) async fn write(&self, bytes: &[u8]) -> Result<usize, StreamError> {
        std::future::poll_fn(|cx| self.poll_put(cx, bytes)).await
    }

    fn poll_put(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, StreamError>> {
        let mut stream = self.0.stream.lock();
        let written = stream.write(bytes)?;
        if written == 0 && !bytes.is_empty() {
            stream.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        drop(stream);
        self.0.dirty.add(self.0.key);
        Poll::Ready(Ok(written))
    }

    fn poll_next(&self, cx: &mut Context<'_>, max: usize) -> Poll<Result<Bytes, StreamError>> {
        let mut stream = self.0.stream.lock();
        let read = stream.read(max)?;
        let tell = stream.wants_to_tell();
        if read.is_none() {
            stream.reader = Some(cx.waker().clone());
        }
        drop(stream);
        if tell {
            self.0.dirty.add(self.0.key);
        }
        read.map_or(Poll::Pending, |bytes| Poll::Ready(Ok(bytes)))
    }
}

impl Drop for SiteStream {
    fn drop(&mut self) {
        let mut stream = self.0.stream.lock();
        if !stream.is_finished() {
            stream.cancel("not wanted any more");
        }
        drop(stream);
        self.0.dirty.add(self.0.key);
    }
}

fn broken(error: StreamError) -> io::Error {
    let kind = match error {
        StreamError::Stalled => io::ErrorKind::TimedOut,
        StreamError::Reset(_) | StreamError::Closed => io::ErrorKind::ConnectionReset,
        StreamError::Cancelled => io::ErrorKind::BrokenPipe,
    };
    io::Error::new(kind, error)
}

impl AsyncRead for SiteStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.poll_next(cx, buf.remaining()) {
            Poll::Ready(Ok(bytes)) => {
                buf.put_slice(&bytes);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(broken(e))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for SiteStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_put(cx, bytes).map_err(broken)
    }

    /// What was written is on its way already.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish_now();
        Poll::Ready(Ok(()))
    }
}

//! Streams between two sites over messages that may be lost: bytes both ways, in order, with
//! back-pressure, half-close and cancellation. Pure.
//!
//! NATS delivers at most once. What was sent is therefore kept until the other side says that
//! it came in, and sent again from there when it says that something is missing, or says
//! nothing. A side may send up to the limit that the other has granted: what its reader has
//! taken, and [`WINDOW`] more.

use crate::message::{FRAME_MAX, Frame, FrameBody};
use bytes::{Buf as _, Bytes, BytesMut};
use std::task::Waker;
use std::time::Duration;

/// Bytes on their way or waiting for their reader, each way; the writer waits for more room.
pub const WINDOW: usize = 256 * 1024;
/// Without progress for this long a stream is given up.
pub(crate) const STALL_MAX: Duration = Duration::from_secs(30);
/// The first and the longest time until something is sent again.
const RESEND_MIN: Duration = Duration::from_millis(300);
const RESEND_MAX: Duration = Duration::from_secs(4);
/// Frames made at once for one stream, so that others have their turn.
const BURST: usize = 8;

/// Why a stream has ended before its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The other side gave it up, and said why.
    #[error("read stream: the other site ended it: {0}")]
    Reset(String),
    /// Nothing came through for too long.
    #[error("read stream: nothing came through for {STALL_MAX:?}")]
    Stalled,
    /// This side gave it up.
    #[error("read stream: it was cancelled")]
    Cancelled,
    /// The lattice was stopped.
    #[error("read stream: this site leaves the lattice")]
    Closed,
}

/// One side of a stream.
#[derive(Debug)]
pub(crate) struct Stream {
    number: u64,
    opener: bool,
    /// Said with the first bytes until they have come in.
    protocol: Option<String>,
    send: Sending,
    receive: Receiving,
    error: Option<StreamError>,
    /// A reset is to be told.
    reset: Option<String>,
    rtt: Duration,
    progress_at: Duration,
    resend_at: Option<Duration>,
    resend_after: Duration,
    pub(crate) reader: Option<Waker>,
    pub(crate) writer: Option<Waker>,
}

#[derive(Debug, Default)]
struct Sending {
    /// From `acknowledged` on.
    buffer: BytesMut,
    acknowledged: u64,
    sent: u64,
    limit: u64,
    fin: bool,
    fin_sent: bool,
    fin_acknowledged: bool,
    open_sent: bool,
    /// To be asked for the window, with a frame that holds nothing.
    probe: bool,
    /// Where it went back to last, and when: all frames after a lost one tell of the same gap.
    back: Option<(u64, Duration)>,
}

impl Sending {
    fn unsent(&self) -> u64 {
        self.acknowledged + self.buffer.len() as u64 - self.sent
    }

    /// Sends again what is not acknowledged.
    fn go_back(&mut self) {
        self.sent = self.acknowledged;
        self.fin_sent = false;
        self.open_sent = false;
    }
}

#[derive(Debug, Default)]
struct Receiving {
    buffer: BytesMut,
    /// Everything before this came in.
    received: u64,
    fin: bool,
    /// What the other side was told it may send.
    granted: u64,
    /// A window is to be told.
    tell: bool,
    gap: bool,
}

impl Stream {
    /// A stream that this side opens.
    pub(crate) fn open(number: u64, protocol: String, now: Duration, rtt: Duration) -> Self {
        Self::new(number, true, Some(protocol), now, rtt)
    }

    /// A stream that the other side has opened.
    pub(crate) fn accept(number: u64, now: Duration, rtt: Duration) -> Self {
        Self::new(number, false, None, now, rtt)
    }

    fn new(
        number: u64,
        opener: bool,
        protocol: Option<String>,
        now: Duration,
        rtt: Duration,
    ) -> Self {
        let send = Sending {
            limit: WINDOW as u64,
            ..Sending::default()
        };
        let receive = Receiving {
            granted: WINDOW as u64,
            ..Receiving::default()
        };
        Self {
            number,
            opener,
            protocol,
            send,
            receive,
            error: None,
            reset: None,
            rtt,
            progress_at: now,
            resend_at: None,
            resend_after: (rtt * 3).clamp(RESEND_MIN, RESEND_MAX),
            reader: None,
            writer: None,
        }
    }

    /// Takes bytes to be sent, as many as there is room for.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<usize, StreamError> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        if self.send.fin {
            return Err(StreamError::Cancelled);
        }
        let count = bytes.len().min(WINDOW - self.send.buffer.len().min(WINDOW));
        self.send.buffer.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    /// Nothing more will be written.
    pub(crate) fn finish(&mut self) {
        self.send.fin = true;
    }

    /// What came in; `None` is to be waited for, empty is the end.
    pub(crate) fn read(&mut self, max: usize) -> Result<Option<Bytes>, StreamError> {
        let receive = &mut self.receive;
        if !receive.buffer.is_empty() {
            let count = receive.buffer.len().min(max);
            let bytes = receive.buffer.split_to(count).freeze();
            let limit = receive.received - receive.buffer.len() as u64 + WINDOW as u64;
            // Not for every byte: a quarter of the window is worth a message.
            if !receive.fin && limit - receive.granted >= WINDOW as u64 / 4 {
                receive.tell = true;
            }
            return Ok(Some(bytes));
        }
        if receive.fin {
            return Ok(Some(Bytes::new()));
        }
        match &self.error {
            Some(error) => Err(error.clone()),
            None => Ok(None),
        }
    }

    /// Gives it up, both ways.
    pub(crate) fn cancel(&mut self, reason: &str) {
        if self.error.is_none() && !self.is_over() {
            self.reset = Some(reason.to_owned());
            self.fail(StreamError::Cancelled);
        }
    }

    /// Ends it with an error, telling nobody.
    pub(crate) fn fail(&mut self, error: StreamError) {
        self.error.get_or_insert(error);
        // Nothing looks at what was not sent any more.
        self.send = Sending::default();
        self.resend_at = None;
        self.wake();
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
        {
            waker.wake();
        }
    }

    /// How much came in, and whether that was all: what is answered when the stream is gone
    /// and the other side has not heard so.
    pub(crate) fn received(&self) -> (u64, bool) {
        (self.receive.received, self.receive.fin)
    }

    /// Whether the reader has taken everything up to the end, and the writer has said its end.
    pub(crate) fn is_finished(&self) -> bool {
        self.send.fin && self.receive.fin && self.receive.buffer.is_empty()
    }

    /// Whether a window is to be told.
    pub(crate) fn wants_to_tell(&self) -> bool {
        self.receive.tell
    }

    /// Whether nothing more will be said about it: both ways are at their end, or it failed.
    pub(crate) fn is_over(&self) -> bool {
        if self.reset.is_some() {
            return false;
        }
        let done = self.send.fin_acknowledged && self.receive.fin && !self.receive.tell;
        self.error.is_some() || done
    }

    /// Takes in a frame of the other side.
    pub(crate) fn take(&mut self, now: Duration, body: FrameBody) {
        if self.error.is_some() {
            return;
        }
        match body {
            FrameBody::Data {
                offset, fin, bytes, ..
            } => self.take_data(now, offset, fin, &bytes),
            FrameBody::Window {
                received,
                fin,
                limit,
                gap,
            } => self.take_window(now, received, fin, limit, gap),
            FrameBody::Reset { reason } => self.fail(StreamError::Reset(reason)),
        }
    }

    fn take_data(&mut self, now: Duration, offset: u64, fin: bool, bytes: &Bytes) {
        // An answer shows that the question has come in.
        let receive = &mut self.receive;
        receive.tell = true;
        if offset > receive.received {
            receive.gap = true;
            return;
        }
        let known = usize::try_from(receive.received - offset).unwrap_or(usize::MAX);
        let end = offset.saturating_add(bytes.len() as u64);
        if end > receive.granted {
            // More than was granted: an honest site does not.
            self.reset = Some("more than the window".to_owned());
            self.fail(StreamError::Cancelled);
            return;
        }
        if known < bytes.len() && !receive.fin {
            receive.buffer.extend_from_slice(&bytes[known..]);
            receive.received = end;
            self.progress_at = now;
        }
        if fin && end == receive.received {
            receive.fin = true;
            self.progress_at = now;
        }
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    fn take_window(&mut self, now: Duration, received: u64, fin: bool, limit: u64, gap: bool) {
        let send = &mut self.send;
        // Of what was sent before going back all may have come in.
        if received < send.acknowledged || received > send.acknowledged + send.buffer.len() as u64 {
            return;
        }
        self.protocol = None;
        let moved = received > send.acknowledged || fin && !send.fin_acknowledged;
        if received > send.acknowledged {
            send.buffer.advance((received - send.acknowledged) as usize);
            send.acknowledged = received;
            send.sent = send.sent.max(received);
        }
        send.fin_acknowledged |= fin && send.fin && send.buffer.is_empty();
        send.limit = send.limit.max(limit);
        self.progress_at = now;
        if moved {
            self.resend_after = (self.rtt * 3).clamp(RESEND_MIN, RESEND_MAX);
            self.resend_at = None;
        }
        let again = send
            .back
            .is_none_or(|(to, at)| to != received || now >= at + self.rtt);
        if gap && send.sent > received && again {
            send.back = Some((received, now));
            send.go_back();
        }
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }

    /// Frames to be sent now; more may be ready when [`Stream::next`] says now.
    pub(crate) fn frames(&mut self, now: Duration) -> Vec<Frame> {
        let mut frames = Vec::new();
        if let Some(reason) = self.reset.take() {
            frames.push(self.frame(FrameBody::Reset { reason }));
            return frames;
        }
        if self.error.is_some() {
            return frames;
        }
        if self.waits() && now >= self.progress_at + STALL_MAX {
            self.reset = Some("nothing came through".to_owned());
            self.fail(StreamError::Stalled);
            return self.frames(now);
        }
        let overdue = self.resend_at.is_some_and(|at| at <= now);
        if overdue {
            self.resend_after = (self.resend_after * 2).min(RESEND_MAX);
            self.resend_at = None;
            self.send.go_back();
            self.send.probe = !self.has_data();
        }
        if self.receive.tell {
            self.receive.tell = false;
            let receive = &mut self.receive;
            receive.granted = receive.received - receive.buffer.len() as u64 + WINDOW as u64;
            let body = FrameBody::Window {
                received: receive.received,
                fin: receive.fin,
                limit: receive.granted,
                gap: std::mem::take(&mut receive.gap),
            };
            frames.push(self.frame(body));
        }
        while frames.len() < BURST && self.has_data() {
            let body = self.data();
            frames.push(self.frame(body));
        }
        if self.waits() && self.resend_at.is_none() {
            if !overdue {
                // It was at rest, or went on: what waits now waits from now on.
                self.progress_at = now;
            }
            self.resend_at = Some(now + self.resend_after);
        }
        frames
    }

    /// When [`Stream::frames`] is to be asked again.
    pub(crate) fn next(&self, now: Duration) -> Option<Duration> {
        if self.reset.is_some() || self.error.is_none() && (self.receive.tell || self.has_data()) {
            return Some(now);
        }
        self.resend_at
    }

    /// Whether something was sent that the other side has not acknowledged, or can't be sent
    /// for lack of its grant.
    fn waits(&self) -> bool {
        let send = &self.send;
        self.protocol.is_some() || !send.buffer.is_empty() || send.fin && !send.fin_acknowledged
    }

    fn has_data(&self) -> bool {
        let send = &self.send;
        let unsent = send.unsent();
        unsent > 0 && send.sent < send.limit
            || unsent == 0 && send.fin && !send.fin_sent
            || self.protocol.is_some() && !send.open_sent
            || send.probe
    }

    fn data(&mut self) -> FrameBody {
        let send = &mut self.send;
        let from = (send.sent - send.acknowledged) as usize;
        let room = usize::try_from(send.limit.saturating_sub(send.sent)).unwrap_or(usize::MAX);
        let count = (send.buffer.len() - from).min(room).min(FRAME_MAX);
        let bytes = Bytes::copy_from_slice(&send.buffer[from..from + count]);
        let offset = send.sent;
        send.sent += count as u64;
        send.fin_sent = send.fin && send.unsent() == 0;
        send.open_sent = true;
        send.probe = false;
        FrameBody::Data {
            // Said until it has come in: any of the first frames may be lost.
            open: self.protocol.clone(),
            offset,
            fin: send.fin_sent,
            bytes,
        }
    }

    fn frame(&self, body: FrameBody) -> Frame {
        Frame {
            stream: self.number,
            opener: self.opener,
            body,
        }
    }
}

#[cfg(test)]
mod tests;

//! A guest's standard output and error.

use bytes::Bytes;
use parking_lot::Mutex;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// Most bytes that a guest may write in one call; the host copies so many at once.
const WRITE_MAX_BYTES: usize = 64 << 10;

/// Which of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Where a container's output goes.
pub trait LogSink: Send + Sync + 'static {
    /// A writer for one stream of one instance, so that the half-written lines of instances
    /// that run side by side do not mix. What is left unfinished is written when it is dropped.
    fn open(&self, stream: LogStream) -> Box<dyn LogWriter>;
}

/// Takes the bytes of one stream of one instance. Must not block for long.
pub trait LogWriter: Send + 'static {
    /// Takes bytes as the guest wrote them.
    fn write(&mut self, bytes: &[u8]);
}

/// One stream of one instance, opened in the sink when the guest first writes.
#[derive(Clone)]
pub(crate) struct GuestOutput {
    stream: LogStream,
    state: Arc<Mutex<State>>,
}

enum State {
    Closed(Arc<dyn LogSink>),
    Open(Box<dyn LogWriter>),
}

impl GuestOutput {
    pub(crate) fn new(sink: Arc<dyn LogSink>, stream: LogStream) -> Self {
        Self {
            stream,
            state: Arc::new(Mutex::new(State::Closed(sink))),
        }
    }

    fn put(&self, bytes: &[u8]) {
        let mut state = self.state.lock();
        if let State::Closed(sink) = &*state {
            *state = State::Open(sink.open(self.stream));
        }
        if let State::Open(writer) = &mut *state {
            writer.write(bytes);
        }
    }
}

impl IsTerminal for GuestOutput {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for GuestOutput {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for GuestOutput {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.put(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_MAX_BYTES)
    }
}

#[async_trait::async_trait]
impl Pollable for GuestOutput {
    async fn ready(&mut self) {}
}

impl AsyncWrite for GuestOutput {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.put(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

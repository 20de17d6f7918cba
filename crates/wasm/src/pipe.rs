//! Standard streams of a run that somebody takes part in: output that waits until it is taken,
//! input as it comes. Logs are not this ([`crate::LogSink`]): nobody waits for them.

use crate::stdio::LogStream;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite};
use wasmtime_wasi::cli::{AsyncStdinStream, IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// Most bytes of one write, and so of one piece.
const WRITE_MAX_BYTES: usize = 32 << 10;

/// Bytes that nobody has taken yet; past it the guest waits. One write may go past it.
const WAITING_MAX_BYTES: usize = 128 << 10;

/// Standard streams of one run.
pub struct Stdio {
    input: Mutex<Option<AsyncStdinStream>>,
    output: Arc<OutputPipe>,
}

impl Stdio {
    /// Input that is read from `input`, output that waits in the pipe. Needs a tokio runtime.
    pub fn new(input: impl AsyncRead + Send + Sync + 'static, output: Arc<OutputPipe>) -> Self {
        Self {
            input: Mutex::new(Some(AsyncStdinStream::new(input))),
            output,
        }
    }

    /// For the one instance that runs.
    pub(crate) fn take_input(&self) -> Option<AsyncStdinStream> {
        self.input.lock().take()
    }

    pub(crate) fn output(&self, stream: LogStream) -> PipedOutput {
        PipedOutput {
            stream,
            pipe: self.output.clone(),
        }
    }
}

/// Both output streams of a run, in the order in which they were written.
#[derive(Default)]
pub struct OutputPipe {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pieces: VecDeque<(LogStream, Bytes)>,
    bytes: usize,
    reader: Option<Waker>,
    /// One for each stream that waits for room.
    writers: Vec<Waker>,
}

impl OutputPipe {
    /// The next piece; never ends, as the run's own end says when there is no more.
    pub async fn next(&self) -> (LogStream, Bytes) {
        std::future::poll_fn(|cx| {
            if let Some(piece) = self.try_next() {
                return Poll::Ready(piece);
            }
            let mut state = self.state.lock();
            // Written meanwhile?
            if state.pieces.is_empty() {
                state.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }

    /// What was written and not yet taken.
    pub fn try_next(&self) -> Option<(LogStream, Bytes)> {
        let mut state = self.state.lock();
        let piece = state.pieces.pop_front()?;
        state.bytes -= piece.1.len();
        let writers = std::mem::take(&mut state.writers);
        drop(state);
        writers.into_iter().for_each(Waker::wake);
        Some(piece)
    }

    fn has_room(&self) -> bool {
        self.state.lock().bytes < WAITING_MAX_BYTES
    }

    fn put(&self, stream: LogStream, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        state.bytes += bytes.len();
        state.pieces.push_back((stream, bytes));
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.bytes < WAITING_MAX_BYTES {
            return Poll::Ready(());
        }
        if !state.writers.iter().any(|w| w.will_wake(cx.waker())) {
            state.writers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl std::fmt::Debug for OutputPipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let waiting = self.state.lock().bytes;
        f.debug_struct("OutputPipe")
            .field("waiting_bytes", &waiting)
            .finish()
    }
}

/// One of the two streams.
#[derive(Clone)]
pub(crate) struct PipedOutput {
    stream: LogStream,
    pipe: Arc<OutputPipe>,
}

impl IsTerminal for PipedOutput {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for PipedOutput {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for PipedOutput {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.pipe.put(self.stream, bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        let room = self.pipe.has_room();
        Ok(if room { WRITE_MAX_BYTES } else { 0 })
    }
}

#[async_trait::async_trait]
impl Pollable for PipedOutput {
    async fn ready(&mut self) {
        std::future::poll_fn(|cx| self.pipe.poll_room(cx)).await
    }
}

impl AsyncWrite for PipedOutput {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.pipe.poll_room(cx));
        let taken = &bytes[..bytes.len().min(WRITE_MAX_BYTES)];
        self.pipe.put(self.stream, Bytes::copy_from_slice(taken));
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn a_writer_waits_until_its_output_is_taken() {
        let pipe = Arc::<OutputPipe>::default();
        let stdio = Stdio::new(tokio::io::empty(), pipe.clone());
        let mut out = stdio.output(LogStream::Stdout);
        let mut err = stdio.output(LogStream::Stderr);
        let piece = vec![7; WRITE_MAX_BYTES];
        let mut written = 0;
        while let Some(wrote) = AsyncWriteExt::write(&mut out, &piece).now_or_never() {
            written += wrote.unwrap();
        }
        assert_eq!(written, WAITING_MAX_BYTES);
        assert_eq!(err.check_write().unwrap(), 0);
        let waiting = async {
            err.ready().await;
            err.write_all(b"late").await.unwrap();
        };
        let taking = async {
            let mut taken = Vec::new();
            loop {
                let (stream, bytes) = pipe.next().await;
                if stream == LogStream::Stderr {
                    return (taken.len(), bytes);
                }
                taken.extend_from_slice(&bytes);
            }
        };
        let ((), (before, late)) = tokio::join!(waiting, taking);
        assert_eq!(before, WAITING_MAX_BYTES);
        assert_eq!(&late[..], b"late");
        assert_eq!(pipe.try_next(), None);
    }
}

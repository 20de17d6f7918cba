//! Those who take part in what a container runs: its output from now on, and its input where its
//! spec has one.

use super::Host;
use super::exec::{refused, stream};
use bytes::Bytes;
use futures::channel::mpsc as futures_mpsc;
use futures::{SinkExt as _, StreamExt as _};
use parking_lot::Mutex;
use remote_runtime::{LineWriter, LogFile, OutputStream};
use runtime::{AttachSpec, ContainerSpec, ContainerState, RuntimeError, Said, Session};
use std::sync::{Arc, OnceLock};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc, watch};
use wasm::{LogSink, LogStream, LogWriter};

/// Pieces of output that one who takes part has not read; past it they are told that some are
/// missing: the guest does not wait for them, as its log has all.
const PIECES_KEPT: usize = 256;

/// Pieces on their way to who takes part.
const PIECES_MAX: usize = 4;

type Piece = (LogStream, Bytes);

/// A container's log, and those who see what goes into it.
pub(super) struct Shown {
    log: LogFile,
    /// Made when the first asks: most containers are never attached to.
    seen: OnceLock<broadcast::Sender<Piece>>,
}

impl Shown {
    pub(super) fn new(log: LogFile) -> Arc<Self> {
        Arc::new(Self {
            log,
            seen: OnceLock::new(),
        })
    }

    fn watch(&self) -> broadcast::Receiver<Piece> {
        let seen = self.seen.get_or_init(|| broadcast::channel(PIECES_KEPT).0);
        seen.subscribe()
    }
}

/// What the guest is given: a handle of its own on what is shown.
pub(super) struct Sink(pub(super) Arc<Shown>);

impl LogSink for Sink {
    fn open(&self, stream: LogStream) -> Box<dyn LogWriter> {
        let lines = match stream {
            LogStream::Stdout => OutputStream::Stdout,
            LogStream::Stderr => OutputStream::Stderr,
        };
        Box::new(Writer {
            log: self.0.log.writer(lines),
            shown: self.0.clone(),
            stream,
        })
    }
}

struct Writer {
    log: LineWriter,
    shown: Arc<Shown>,
    stream: LogStream,
}

impl LogWriter for Writer {
    fn write(&mut self, bytes: &[u8]) {
        self.log.write(bytes);
        if let Some(seen) = self.shown.seen.get()
            && seen.receiver_count() > 0
        {
            // Whoever has left since needs none.
            drop(seen.send((self.stream, Bytes::copy_from_slice(bytes))));
        }
    }
}

/// A container's input, which waits for who gives it.
pub(super) struct Input {
    to_guest: Mutex<Option<futures_mpsc::Sender<Bytes>>>,
    /// It ends with the first who gives it.
    once: bool,
}

impl Input {
    /// Of a container whose spec has one: it, and what the guest reads.
    pub(super) fn of(spec: &ContainerSpec) -> Option<(Self, futures_mpsc::Receiver<Bytes>)> {
        if !spec.stdin {
            return None;
        }
        let (to_guest, given) = remote_runtime::input();
        let input = Self {
            to_guest: Mutex::new(Some(to_guest)),
            once: spec.stdin_once,
        };
        Some((input, given))
    }

    fn take(&self) -> Option<futures_mpsc::Sender<Bytes>> {
        let mut to_guest = self.to_guest.lock();
        if self.once {
            to_guest.take()
        } else {
            to_guest.clone()
        }
    }
}

impl Host {
    /// Lets somebody take part in a container.
    pub(super) fn take_part(&self, spec: &AttachSpec) -> Result<Session, RuntimeError> {
        let container = self.container(&spec.container)?;
        container.sessions().map_err(refused)?;
        let sandbox = self.find(container.sandbox());
        let sandbox = sandbox.ok_or_else(|| RuntimeError::NotFound(spec.container.0.clone()))?;
        let permit = sandbox.execs.clone().try_acquire_owned().map_err(|_| {
            refused(format!(
                "{} sessions with this pod are open already",
                super::exec::EXECS_MAX
            ))
        })?;
        let (input, given) = remote_runtime::input();
        let to_guest = match (spec.stdin, container.input()) {
            (false, _) => None,
            (true, Some(input)) => Some(input.take().ok_or_else(|| {
                refused(format!(
                    "the input of container {:?} has ended with who gave it first (stdinOnce)",
                    container.name()
                ))
            })?),
            (true, None) => {
                return Err(refused(format!(
                    "container {:?} takes no input: its spec does not say `stdin: true`",
                    container.name()
                )));
            }
        };
        let (said, output) = mpsc::channel(PIECES_MAX);
        let shown = container.shown().watch();
        let state = container.watch();
        // Not among the sessions that end with it: its end is yet to be said.
        self.shared.scope.spawn_cancellable(async move {
            let hearing = hear(shown, state, said, permit);
            let typing = async {
                pass(given, to_guest).await;
                std::future::pending::<()>().await
            };
            tokio::select! {
                () = hearing => {}
                () = typing => {}
            }
        });
        Ok(Session {
            input,
            output: stream(output),
            // Guests have no terminal whose size they could ask for.
            sizes: None,
        })
    }
}

async fn pass(
    mut given: futures_mpsc::Receiver<Bytes>,
    to_guest: Option<futures_mpsc::Sender<Bytes>>,
) {
    let Some(mut to_guest) = to_guest else {
        return;
    };
    while let Some(bytes) = given.next().await {
        if to_guest.send(bytes).await.is_err() {
            return;
        }
    }
}

/// Until the container's end, or until nobody listens.
async fn hear(
    mut shown: broadcast::Receiver<Piece>,
    mut state: watch::Receiver<ContainerState>,
    said: mpsc::Sender<Said>,
    permit: OwnedSemaphorePermit,
) {
    let _permit = permit;
    let piece = |(stream, bytes)| match stream {
        LogStream::Stdout => Said::Stdout(bytes),
        LogStream::Stderr => Said::Stderr(bytes),
    };
    let ended = async {
        let exited = |state: &ContainerState| matches!(state, ContainerState::Exited(_));
        // Gone is ended as well.
        let _gone = state.wait_for(exited).await;
    };
    let mut ended = std::pin::pin!(ended);
    let mut last = false;
    loop {
        let next = if last {
            match shown.try_recv() {
                Ok(next) => piece(next),
                // How it ended is the pod's to tell.
                Err(_) => break drop(said.send(Said::Exited { code: 0 }).await),
            }
        } else {
            tokio::select! {
                biased;
                next = shown.recv() => match next {
                    Ok(next) => piece(next),
                    Err(RecvError::Lagged(missed)) => {
                        let words = format!("salp: {missed} pieces of output are not shown\n");
                        Said::Stderr(words.into())
                    }
                    Err(RecvError::Closed) => return,
                },
                () = &mut ended => {
                    last = true;
                    continue;
                }
                () = said.closed() => return,
            }
        };
        if said.send(next).await.is_err() {
            return;
        }
    }
}

//! Programs that run beside a container's own, for somebody who takes part.

use super::Host;
use super::container::Container;
use super::programs::{Found, NotFound, Seen};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::channel::mpsc as futures_mpsc;
use runtime::{ExecSpec, RuntimeError, Said, Session};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::io::StreamReader;
use wasm::{CommandGuest, LogStream, Outcome, OutputPipe, Program, Stdio};

/// Sessions of one pod: programs beside its containers' own, and those who take part; further
/// ones are refused.
pub(super) const EXECS_MAX: usize = 16;

/// Pieces on their way to who listens; past it the guest waits.
const PIECES_MAX: usize = 4;

impl Host {
    /// Finds, loads and starts a program in a container's surroundings.
    pub(super) async fn run_beside(&self, spec: ExecSpec) -> Result<Session, RuntimeError> {
        let container = self.container(&spec.container)?;
        let scope = container.sessions().map_err(refused)?;
        let sandbox = self.find(container.sandbox());
        let sandbox = sandbox.ok_or_else(|| RuntimeError::NotFound(spec.container.0.clone()))?;
        let permit = sandbox.execs.clone().try_acquire_owned().map_err(|_| {
            refused(format!(
                "{EXECS_MAX} sessions with this pod are open already"
            ))
        })?;
        let program = self.program(&container, &spec.command).await?;
        let (input, given) = remote_runtime::input();
        let pipe = Arc::<OutputPipe>::default();
        let given = if spec.stdin { Some(given) } else { None };
        let stdio = Stdio::new(reader(given), pipe.clone());
        let command = spec.command.first().cloned().unwrap_or_default();
        let guest = container.guest().beside(&program, spec.command, stdio);
        let guest = guest.ok_or_else(|| {
            refused(format!(
                "{command:?}: it serves requests and runs to no end; only commands can be run"
            ))
        })?;
        let (said, output) = mpsc::channel(PIECES_MAX);
        scope.spawn_cancellable(run(guest, pipe, said, spec.tty, permit));
        Ok(Session {
            input,
            output: stream(output),
            // Guests have no terminal whose size they could ask for.
            sizes: None,
        })
    }

    async fn program(
        &self,
        container: &Arc<Container>,
        command: &[String],
    ) -> Result<Arc<Program>, RuntimeError> {
        let Some(name) = command.first().cloned() else {
            return Err(refused("no command was given".to_owned()));
        };
        let of = container.clone();
        let asked = name.clone();
        let found = tokio::task::spawn_blocking(move || {
            let guest = of.guest();
            Seen {
                container: of.name(),
                args: guest.args(),
                path: guest.env().get("PATH").unwrap_or_default(),
                cwd: guest.cwd(),
                preopens: guest.preopens(),
                own_runs: !guest.program().kind().is_http(),
            }
            .find(&asked)
        });
        let found = found.await.map_err(|e| refused(e.to_string()))?;
        match found {
            Ok(Found::Own) => Ok(container.guest().program().clone()),
            Ok(Found::File { content, of_image }) => {
                let loaded = self.shared.runtime.load_bytes(content, of_image).await;
                loaded.map_err(|e| refused(format!("{name:?}: {e}")))
            }
            Err(NotFound { code, message }) => Err(RuntimeError::Exec { code, message }),
        }
    }
}

pub(super) fn refused(message: String) -> RuntimeError {
    RuntimeError::Exec { code: 126, message }
}

/// Input as bytes come; empty without.
pub(super) fn reader(
    given: Option<futures_mpsc::Receiver<Bytes>>,
) -> impl tokio::io::AsyncRead + Send + Sync + 'static {
    let pieces = futures::stream::iter(given).flatten();
    StreamReader::new(pieces.map(Ok::<_, io::Error>))
}

/// Until the guest's end, or until nobody listens.
async fn run(
    guest: CommandGuest,
    pipe: Arc<OutputPipe>,
    said: mpsc::Sender<Said>,
    tty: bool,
    permit: OwnedSemaphorePermit,
) {
    let _permit = permit;
    let piece = |(stream, bytes)| match stream {
        LogStream::Stderr if !tty => Said::Stderr(bytes),
        _ => Said::Stdout(bytes),
    };
    let mut running = pin!(guest.run());
    let outcome = loop {
        tokio::select! {
            biased;
            next = pipe.next() => {
                if said.send(piece(next)).await.is_err() {
                    return;
                }
            }
            outcome = &mut running => break outcome,
            () = said.closed() => return,
        }
    };
    while let Some(next) = pipe.try_next() {
        if said.send(piece(next)).await.is_err() {
            return;
        }
    }
    let (code, words) = match outcome {
        Outcome::Exited(code) => (code, None),
        Outcome::Failed(message) => (1, Some(message)),
        Outcome::OutOfMemory(exceeded) => (super::container::KILLED, Some(exceeded.to_string())),
    };
    if let Some(words) = words {
        let words = Bytes::from(format!("salp: {words}\n"));
        if said.send(piece((LogStream::Stderr, words))).await.is_err() {
            return;
        }
    }
    // Who has left needs no code.
    drop(said.send(Said::Exited { code }).await);
}

/// A receiver as a stream.
pub(super) fn stream<T: Send + 'static>(
    mut receiver: mpsc::Receiver<T>,
) -> futures::stream::BoxStream<'static, T> {
    futures::stream::poll_fn(move |cx| receiver.poll_recv(cx)).boxed()
}

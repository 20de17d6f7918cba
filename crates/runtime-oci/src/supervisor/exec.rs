//! Further programs in containers, and those who take part in what a container runs.

use super::container::{Container, both, chain};
use super::streams::{self, Stream};
use crate::console::Console;
use crate::process::Child;
use crate::seam::{SeamError, Streams};
use crate::spec;
use bytes::Bytes;
use futures::channel::mpsc;
use futures::{SinkExt as _, StreamExt as _};
use lifecycle::Scope;
use remote_runtime::OutputStream;
use runtime::{ContainerState, ExecSpec, RuntimeError, Said, Session};
use rustix::process::Signal;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;

/// Pieces on their way to who takes part; past it the program waits.
const PIECES_MAX: usize = 4;
/// How long a program's output is waited for that others hold open.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How often it is looked whether who asked for a program has left.
const LEFT_LOOK: Duration = Duration::from_millis(250);
/// What a shell says of a program that is not there, or can't be run.
const NOT_FOUND: i32 = 127;
const NOT_RUN: i32 = 126;

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// A directory of one program's own, gone with it.
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs a program in a container.
pub(super) async fn exec(
    container: &Arc<Container>,
    spec: ExecSpec,
    hostname: &str,
    rights: spec::Rights,
    scope: &Scope,
) -> Result<Session, RuntimeError> {
    let refused = |message: String| RuntimeError::Exec {
        code: NOT_RUN,
        message,
    };
    if !container.is_running() {
        return Err(refused("the container is not running".to_owned()));
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let place = Place(container.bundle.dir.join(format!("exec-{number}")));
    let io = |error: std::io::Error| refused(error.to_string());
    std::fs::create_dir(&place.0).map_err(io)?;
    let mut own = container.spec.clone();
    own.args = spec.command;
    own.tty = spec.tty;
    let process = spec::process(&own, &container.identity, hostname, rights);
    let file = place.0.join("process.json");
    let process = serde_json::to_vec(&process).map_err(|e| io(e.into()))?;
    std::fs::write(&file, process).map_err(io)?;
    let (runtime, name) = (&container.runtime, container.name.as_str());
    let (child, program) = if spec.tty {
        let console = Console::listen(&place.0).map_err(io)?;
        let path = Some(console.path());
        let run = runtime.exec(name, &place.0, &file, Streams::none(), path);
        let (child, terminal) = both(run, &console).await.map_err(failure)?;
        let terminal = Stream::terminal(terminal).map_err(io)?;
        let program = Program {
            input: spec.stdin.then(|| terminal.clone()),
            terminal: Some(terminal.clone()),
            outputs: vec![(OutputStream::Stdout, terminal)],
        };
        (child, program)
    } else {
        let (stdout, to_stdout) = streams::output().map_err(io)?;
        let (stderr, to_stderr) = streams::output().map_err(io)?;
        let input = spec.stdin.then(streams::input).transpose().map_err(io)?;
        let (input, from_input): (Option<Stream>, Option<OwnedFd>) = input.unzip();
        let theirs = Streams::of(from_input, to_stdout, to_stderr);
        let run = runtime.exec(name, &place.0, &file, theirs, None).await;
        let program = Program {
            input,
            terminal: None,
            outputs: vec![
                (OutputStream::Stdout, stdout),
                (OutputStream::Stderr, stderr),
            ],
        };
        (run.map_err(failure)?, program)
    };
    Ok(session(child, program, place, scope))
}

/// A program's streams, this side of them.
struct Program {
    outputs: Vec<(OutputStream, Stream)>,
    input: Option<Stream>,
    terminal: Option<Stream>,
}

/// Joins a program's streams with who asked for it.
fn session(child: Child, program: Program, place: Place, scope: &Scope) -> Session {
    let Program {
        outputs,
        input,
        terminal,
    } = program;
    let (to_program, mut given) = remote_runtime::input();
    let (sizes, mut resized) = remote_runtime::sizes();
    let sizes = terminal.is_some().then_some(sizes);
    let (said, output) = mpsc::channel(PIECES_MAX);
    scope.spawn_cancellable(async move {
        let _place = place;
        let feed = async {
            if let Some(stream) = input {
                while let Some(bytes) = given.next().await {
                    if stream.write(&bytes).await.is_err() {
                        break;
                    }
                }
                // Its end is the program's end of input.
                drop(stream);
            }
            std::future::pending::<()>().await;
        };
        let talk = futures::future::join_all(outputs.into_iter().map(|(kind, stream)| {
            let mut said = said.clone();
            async move {
                while let Ok(bytes) = stream.read().await {
                    if bytes.is_empty() || said.send(piece_of(kind, bytes)).await.is_err() {
                        return;
                    }
                }
            }
        }));
        let mut last = said.clone();
        drop(said);
        tokio::pin!(talk, feed);
        let mut said_all = false;
        let mut watch = tokio::time::interval(LEFT_LOOK);
        let code = loop {
            tokio::select! {
                ended = child.ended() => break ended.unwrap_or(255),
                () = &mut feed => {}
                Some(size) = resized.next() => if let Some(terminal) = &terminal
                    && let Err(error) = terminal.resize(size)
                {
                    tracing::warn!(%error, "terminal not resized");
                },
                _ = &mut talk, if !said_all => said_all = true,
                _ = watch.tick() => if last.is_closed() {
                    // Whoever asked has left: the program ends with them.
                    let _ended = child.signal(Signal::KILL);
                },
            }
        };
        if !said_all {
            let _words = tokio::time::timeout(LAST_WORDS, talk).await;
        }
        drop(last.send(Said::Exited { code }).await);
    });
    Session {
        input: to_program,
        output: output.boxed(),
        sizes,
    }
}

/// Shows a container's output from now on, and feeds it.
pub(super) fn attach(container: &Arc<Container>, stdin: bool, scope: &Scope) -> Session {
    let mut pieces = container.shown.subscribe();
    let input = container.take_input().filter(|_| stdin);
    let input = input.unwrap_or_else(|| remote_runtime::input().0);
    let (mut said, output) = mpsc::channel(PIECES_MAX);
    let (sizes, mut resized) = remote_runtime::sizes();
    let sizes = container.spec.tty.then_some(sizes);
    let container = container.clone();
    scope.spawn_cancellable(async move {
        let mut state = container.watch();
        loop {
            let next = tokio::select! {
                biased;
                piece = pieces.recv() => match piece {
                    Ok((kind, bytes)) => piece_of(kind, bytes),
                    Err(RecvError::Lagged(_)) => {
                        Said::Stderr(Bytes::from_static(b"(some output was left out here)\n"))
                    }
                    Err(RecvError::Closed) => return,
                },
                ended = ended(&mut state) => Said::Exited { code: ended },
                Some(size) = resized.next() => {
                    container.resize(size);
                    continue;
                }
            };
            let over = matches!(next, Said::Exited { .. });
            if said.send(next).await.is_err() || over {
                return;
            }
        }
    });
    Session {
        input,
        output: output.boxed(),
        sizes,
    }
}

async fn ended(state: &mut tokio::sync::watch::Receiver<ContainerState>) -> i32 {
    let over = state
        .wait_for(|s| matches!(s, ContainerState::Exited(_)))
        .await;
    match over.as_deref() {
        Ok(ContainerState::Exited(exit)) => exit.code,
        _ => 255,
    }
}

fn piece_of(kind: OutputStream, bytes: Bytes) -> Said {
    match kind {
        OutputStream::Stdout => Said::Stdout(bytes),
        OutputStream::Stderr => Said::Stderr(bytes),
    }
}

fn failure(error: SeamError) -> RuntimeError {
    let message = chain(&error);
    let missing = ["executable file not found", "no such file or directory"]
        .iter()
        .any(|words| message.contains(words));
    RuntimeError::Exec {
        code: if missing { NOT_FOUND } else { NOT_RUN },
        message,
    }
}

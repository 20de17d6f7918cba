//! One run of a container: made, started, its output logged, its end noted.

use super::Shared;
use super::streams::{self, Stream};
use crate::bundle::Bundle;
use crate::cgroup::Tree;
use crate::console::Console;
use crate::process::Child;
use crate::sandbox::Surroundings;
use crate::seam::{OciRuntime, SeamError, Streams};
use crate::users::Identity;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::channel::mpsc;
use jiff::Timestamp;
use parking_lot::Mutex;
use remote_runtime::{LogFile, OutputStream};
use runtime::{
    ContainerId, ContainerSpec, ContainerState, ContainerStatus, Exit, ExitReason, RuntimeError,
    SandboxId, SandboxSpec, TerminalSize,
};
use rustix::process::Signal;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, watch};

/// Pieces of output that one who takes part has not read; past it they miss some: the log has all.
const PIECES_KEPT: usize = 256;
/// How long a container's last words are waited for where processes outlive its first one.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// What a container that could not be run is said to have ended with, as upstream has it.
const START_ERROR: i32 = 128;
/// Of a log so much is told where it takes the place of a message: bytes…
const LOG_TAIL_BYTES: usize = 2048;
/// …and lines.
const LOG_TAIL_LINES: usize = 80;

/// What was written to which stream.
pub(super) type Piece = (OutputStream, Bytes);

/// One run.
pub(super) struct Container {
    pub(super) spec: ContainerSpec,
    pub(super) identity: Identity,
    pub(super) bundle: Bundle,
    pub(super) cgroup: String,
    groups: Tree,
    /// What the OCI runtime calls it.
    pub(super) name: String,
    pub(super) runtime: OciRuntime,
    pub(super) shown: broadcast::Sender<Piece>,
    log: LogFile,
    state: watch::Sender<ContainerState>,
    /// Its first process, while it runs.
    child: Mutex<Option<Arc<Child>>>,
    /// Where input goes, where its spec has any.
    input: Mutex<Option<mpsc::Sender<Bytes>>>,
    /// Its terminal, where its spec has one, while it runs.
    terminal: Mutex<Option<Stream>>,
    /// Starts and removals are one at a time.
    turn: tokio::sync::Mutex<()>,
}

/// A run's own streams, this side of them.
struct Ends {
    outputs: Vec<(OutputStream, Stream)>,
    input: Option<Stream>,
}

impl Container {
    /// Makes its files. Blocking.
    pub(super) fn make(
        shared: &Shared,
        sandbox: &SandboxSpec,
        surroundings: &Surroundings,
        spec: ContainerSpec,
        target: Option<i32>,
    ) -> Result<Self, RuntimeError> {
        let failed = |error: &dyn std::error::Error| RuntimeError::CreateContainer(chain(error));
        let handler = sandbox.linux.as_ref().and_then(|l| l.handler.as_deref());
        let runtime = shared.oci_runtime(handler)?;
        let name = format!("{}-{}-{}", sandbox.id.0, spec.name, spec.attempt);
        let pod = super::pod_group(sandbox).0;
        let cgroup = format!("/{pod}/{}-{}", spec.name, spec.attempt);
        let bundle = Bundle::new(shared.bundle_dir(&sandbox.id, &spec));
        // What a failure left.
        bundle.remove().map_err(|e| failed(&e))?;
        let group = (&shared.groups, cgroup.as_str());
        let made = bundle.make(sandbox, &spec, surroundings, group, shared.rights, target);
        let identity = made.map_err(|error| {
            let _cleared = bundle.remove();
            failed(&error)
        })?;
        let log = LogFile::create(&spec.log_path, shared.config.log_limits);
        let log = log.map_err(|e| failed(&e))?;
        Ok(Self {
            identity,
            bundle,
            cgroup,
            groups: shared.groups.clone(),
            name,
            runtime,
            shown: broadcast::channel(PIECES_KEPT).0,
            log,
            state: watch::Sender::new(ContainerState::Created),
            child: Mutex::default(),
            input: Mutex::default(),
            terminal: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            spec,
        })
    }

    pub(super) fn id(&self) -> &ContainerId {
        &self.spec.id
    }

    pub(super) fn status(&self) -> ContainerStatus {
        ContainerStatus {
            id: self.spec.id.clone(),
            name: self.spec.name.clone(),
            attempt: self.spec.attempt,
            image: self.spec.image.clone(),
            state: self.state.borrow().clone(),
        }
    }

    pub(super) fn watch(&self) -> watch::Receiver<ContainerState> {
        self.state.subscribe()
    }

    /// Of its first process, while it runs.
    pub(super) fn pid(&self) -> Option<i32> {
        self.child.lock().as_ref().map(|child| child.pid())
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(*self.state.borrow(), ContainerState::Running { .. })
    }

    /// Its input: the first who takes it has it, where it ends with them.
    pub(super) fn take_input(&self) -> Option<mpsc::Sender<Bytes>> {
        let mut input = self.input.lock();
        if self.spec.stdin_once {
            input.take()
        } else {
            input.clone()
        }
    }

    /// Tells its terminal how large it is now; one without has no size.
    pub(super) fn resize(&self, size: TerminalSize) {
        if let Some(terminal) = &*self.terminal.lock()
            && let Err(error) = terminal.resize(size)
        {
            tracing::warn!(container = self.spec.id.0, %error, "terminal not resized");
        }
    }

    /// Runs it. That its program can't be run is its end, and told once.
    pub(super) async fn start(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        sandbox: &SandboxId,
    ) -> Result<(), RuntimeError> {
        let _turn = self.turn.lock().await;
        if *self.state.borrow() != ContainerState::Created {
            return Ok(());
        }
        let started_ms = Timestamp::now().as_millisecond();
        match self.run().await {
            Ok((child, ends)) => {
                self.state
                    .send_replace(ContainerState::Running { started_ms });
                let (this, shared, sandbox) = (self.clone(), shared.clone(), sandbox.clone());
                let tasks = shared.scope.clone();
                tasks.spawn_cancellable(async move {
                    this.live(child, ends, started_ms).await;
                    shared.changed(&sandbox);
                });
            }
            Err(error) => {
                self.terminal.lock().take();
                self.clear().await;
                let message = chain(&error);
                self.state.send_replace(ContainerState::Exited(Exit {
                    code: START_ERROR,
                    reason: ExitReason::StartError,
                    message: message.clone(),
                    started_ms: 0,
                    finished_ms: Timestamp::now().as_millisecond(),
                }));
                shared.changed(sandbox);
                return Err(RuntimeError::StartContainer(message));
            }
        }
        shared.changed(sandbox);
        Ok(())
    }

    async fn run(&self) -> Result<(Arc<Child>, Ends), SeamError> {
        let io = |error| SeamError::Run("the container's streams".into(), error);
        let (child, ends) = if self.spec.tty {
            let console = Console::listen(&self.bundle.dir).map_err(io)?;
            let create = self.runtime.create(
                &self.name,
                &self.bundle.dir,
                Streams::none(),
                Some(console.path()),
            );
            let (child, terminal) = both(create, &console).await?;
            let terminal = Stream::terminal(terminal).map_err(io)?;
            *self.terminal.lock() = Some(terminal.clone());
            let ends = Ends {
                input: self.spec.stdin.then(|| terminal.clone()),
                outputs: vec![(OutputStream::Stdout, terminal)],
            };
            (child, ends)
        } else {
            let (stdout, to_stdout) = streams::output().map_err(io)?;
            let (stderr, to_stderr) = streams::output().map_err(io)?;
            let input = self.spec.stdin.then(streams::input).transpose();
            let (input, from_input): (Option<Stream>, Option<OwnedFd>) = input.map_err(io)?.unzip();
            let theirs = Streams::of(from_input, to_stdout, to_stderr);
            let child = self
                .runtime
                .create(&self.name, &self.bundle.dir, theirs, None)
                .await?;
            let ends = Ends {
                input,
                outputs: vec![
                    (OutputStream::Stdout, stdout),
                    (OutputStream::Stderr, stderr),
                ],
            };
            (child, ends)
        };
        self.runtime.start(&self.name, &self.bundle.dir).await?;
        let child = Arc::new(child);
        *self.child.lock() = Some(child.clone());
        Ok((child, ends))
    }

    /// From its start to its end.
    async fn live(self: &Arc<Self>, child: Arc<Child>, ends: Ends, started_ms: i64) {
        if let Some(stream) = ends.input {
            let (to, mut given) = remote_runtime::input();
            *self.input.lock() = Some(to);
            let feed = async move {
                while let Some(bytes) = given.next().await {
                    if stream.write(&bytes).await.is_err() {
                        break;
                    }
                }
                // Its end is the program's end of input.
                drop(stream);
            };
            let outputs = self.show(ends.outputs);
            self.last(&child, futures::future::join(feed, outputs), started_ms)
                .await;
        } else {
            let outputs = self.show(ends.outputs);
            self.last(&child, outputs, started_ms).await;
        }
    }

    /// Waits for its end while `streams` are carried, and for its last words.
    async fn last<T>(&self, child: &Child, streams: impl Future<Output = T>, started_ms: i64) {
        let ended = {
            tokio::pin!(streams);
            let ended = tokio::select! {
                ended = child.ended() => Some(ended),
                _ = &mut streams => None,
            };
            match ended {
                Some(ended) => {
                    // Its input may stay open for ever; its output ends with it.
                    self.input.lock().take();
                    let _words = tokio::time::timeout(LAST_WORDS, streams).await;
                    ended
                }
                None => child.ended().await,
            }
        };
        self.child.lock().take();
        self.terminal.lock().take();
        let code = ended.unwrap_or_else(|error| {
            tracing::error!(container = self.spec.id.0, %error, "end of container not seen");
            255
        });
        let oom = self.groups.oom_kills(&self.cgroup) > 0;
        self.clear().await;
        let reason = match code {
            0 => ExitReason::Completed,
            137 if oom => ExitReason::OomKilled,
            _ => ExitReason::Error,
        };
        let mut message = self.bundle.message();
        let linux = self.spec.linux.as_deref();
        if message.is_empty() && code != 0 && linux.is_some_and(|l| l.termination_from_log) {
            message = self.log_tail();
        }
        self.state.send_replace(ContainerState::Exited(Exit {
            code,
            reason,
            message,
            started_ms,
            finished_ms: Timestamp::now().as_millisecond(),
        }));
    }

    async fn show(&self, outputs: Vec<(OutputStream, Stream)>) {
        let each = outputs.into_iter().map(|(kind, stream)| async move {
            let mut log = self.log.writer(kind);
            loop {
                match stream.read().await {
                    Ok(bytes) if bytes.is_empty() => return,
                    Ok(bytes) => {
                        log.write(&bytes);
                        // Nobody may be looking.
                        drop(self.shown.send((kind, bytes)));
                    }
                    Err(error) => {
                        tracing::warn!(container = self.spec.id.0, %error, "output not read");
                        return;
                    }
                }
            }
        });
        futures::future::join_all(each).await;
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.spec.log_path).unwrap_or_default();
        // After time, stream and tag.
        let words = |line: &str| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned();
        let mut lines: Vec<String> = Vec::new();
        let mut length = 0;
        for line in text.lines().rev().take(LOG_TAIL_LINES).map(words) {
            length += line.len() + 1;
            if length > LOG_TAIL_BYTES {
                break;
            }
            lines.push(line);
        }
        lines.reverse();
        lines.join("\n")
    }

    /// The OCI runtime forgets it, and ends what is left.
    async fn clear(&self) {
        if let Err(error) = self.runtime.delete(&self.name, &self.bundle.dir).await {
            tracing::warn!(
                container = self.spec.id.0,
                error = chain(&error),
                "container not deleted"
            );
        }
    }

    /// Asks it to end, and makes it; done when it has.
    pub(super) async fn stop(&self, grace: Duration) -> Result<(), RuntimeError> {
        let failed = |error: io::Error| RuntimeError::Unavailable(error.to_string());
        let mut state = self.state.subscribe();
        let mut ended = async || {
            let over = |state: &ContainerState| !matches!(state, ContainerState::Running { .. });
            // The sender lives as long as the container.
            let _ = state.wait_for(over).await;
        };
        let child = self.child.lock().clone();
        let Some(child) = child else {
            ended().await;
            return Ok(());
        };
        if !grace.is_zero() {
            let asked = self
                .spec
                .linux
                .as_ref()
                .and_then(|l| l.stop_signal.as_deref());
            let signal = asked.and_then(signal).unwrap_or(Signal::TERM);
            child.signal(signal).map_err(failed)?;
            if tokio::time::timeout(grace, ended()).await.is_ok() {
                return Ok(());
            }
        }
        child.signal(Signal::KILL).map_err(failed)?;
        ended().await;
        Ok(())
    }

    /// Takes its files away, and it with them if it runs.
    pub(super) async fn remove(&self) -> Result<(), RuntimeError> {
        self.stop(Duration::ZERO).await?;
        let _turn = self.turn.lock().await;
        let bundle = self.bundle.clone();
        let removed = tokio::task::spawn_blocking(move || bundle.remove()).await;
        let removed = removed.map_err(|error| RuntimeError::Unavailable(error.to_string()))?;
        removed.map_err(|error| RuntimeError::Unavailable(chain(&error)))
    }
}

/// A process that the runtime makes, and the terminal that it hands over meanwhile.
pub(super) async fn both(
    create: impl Future<Output = Result<Child, SeamError>>,
    console: &Console,
) -> Result<(Child, OwnedFd), SeamError> {
    let receive = console.receive();
    tokio::pin!(create, receive);
    let lost = |error| SeamError::Run("the terminal".into(), error);
    tokio::select! {
        // Only its failure comes first.
        child = &mut create => {
            let child = child?;
            let terminal = tokio::time::timeout(LAST_WORDS, receive).await;
            let terminal = terminal.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
            Ok((child, terminal.map_err(lost)?))
        }
        terminal = &mut receive => Ok((create.await?, terminal.map_err(lost)?)),
    }
}

/// By name or number: `SIGQUIT`, `QUIT`, `3`.
fn signal(text: &str) -> Option<Signal> {
    let name = text.trim().to_uppercase();
    if let Ok(number) = name.parse::<i32>() {
        return Signal::from_named_raw(number);
    }
    let number = match name.strip_prefix("SIG").unwrap_or(&name) {
        "HUP" => libc::SIGHUP,
        "INT" => libc::SIGINT,
        "QUIT" => libc::SIGQUIT,
        "ABRT" => libc::SIGABRT,
        "KILL" => libc::SIGKILL,
        "USR1" => libc::SIGUSR1,
        "USR2" => libc::SIGUSR2,
        "TERM" => libc::SIGTERM,
        "CONT" => libc::SIGCONT,
        "STOP" => libc::SIGSTOP,
        "WINCH" => libc::SIGWINCH,
        _ => return None,
    };
    Signal::from_named_raw(number)
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        assert_eq!(signal("SIGQUIT"), Some(Signal::QUIT));
        assert_eq!(signal("winch"), Some(Signal::WINCH));
        assert_eq!(signal("15"), Some(Signal::TERM));
        assert_eq!(signal("NONE"), None);
    }
}

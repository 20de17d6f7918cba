//! The runtime's end of the socket.

use crate::protocol::{Answer, Call, Frames, FromHost, PROTOCOL, ProtocolError, ToHost};
use lifecycle::Scope;
use runtime::{Changed, PodRuntime, RuntimeError, Session, Traffic};
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, broadcast, mpsc};

/// Calls of one agent at work at once; more are not read until one is done.
const CALLS_MAX: usize = 256;

/// Messages not yet written to one agent; past it the host waits to answer more.
const MESSAGES_QUEUED_MAX: usize = 256;

/// What agents ask over a socket. Clones are the same runtime.
pub trait Served: PodRuntime + Clone {
    /// Hints of change from now on.
    fn subscribe(&self) -> broadcast::Receiver<Changed>;

    /// What carries the Services of this node, where that is known here.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`].
    fn traffic(&self) -> Result<&dyn Traffic, RuntimeError>;
}

/// Makes the socket, readable by this user alone, and serves agents in the scope.
///
/// # Errors
/// When it can't be made, or another process listens there.
pub fn listen(host: impl Served, path: &Path, scope: &Scope) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process listens there",
        ));
    }
    // Bound under another name until its mode is right.
    let making = path.with_extension(format!("{}.new", std::process::id()));
    if making.exists() {
        fs::remove_file(&making)?;
    }
    let listener = UnixListener::bind(&making)?;
    fs::set_permissions(&making, Permissions::from_mode(0o600))?;
    fs::rename(&making, path)?;
    let agents = scope.clone();
    scope.spawn_cancellable(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let host = host.clone();
                    let calls = agents.clone();
                    agents.spawn_cancellable(async move {
                        match serve(host, stream, calls).await {
                            Err(ProtocolError::Closed) => tracing::debug!("agent left"),
                            // With answers on their way.
                            Err(ProtocolError::Io(error))
                                if matches!(
                                    error.kind(),
                                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                                ) =>
                            {
                                tracing::debug!("agent left");
                            }
                            Err(error) => tracing::warn!(%error, "agent's connection ended"),
                            Ok(never) => match never {},
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "could not accept an agent");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        }
    });
    Ok(())
}

async fn serve(
    host: impl Served,
    stream: UnixStream,
    scope: Scope,
) -> Result<std::convert::Infallible, ProtocolError> {
    let (reader, writer) = stream.into_split();
    let (mut reader, mut writer) = (Frames::new(reader), Frames::new(writer));
    let protocol = match reader.read().await? {
        ToHost::Hello { protocol } => protocol,
        ToHost::Exec(spec) => return session(host.exec(*spec).await, reader, writer).await,
        ToHost::Attach(spec) => {
            return session(host.attach(*spec).await, reader, writer).await;
        }
        ToHost::Request { .. } => {
            return Err(ProtocolError::OutOfTurn("a call before the greeting"));
        }
    };
    if protocol != PROTOCOL {
        let reason = format!(
            "{} speaks protocol {PROTOCOL} and the agent {protocol}; restart the older of the two",
            host.version()
        );
        let refused = FromHost::Refused {
            reason: reason.clone(),
        };
        writer.write(&refused).await?;
        return Err(ProtocolError::Refused(reason));
    }
    // Before the greeting, so that the agent gets a hint of all that changes after it.
    let mut changes = host.subscribe();
    let hello = FromHost::Hello {
        protocol: PROTOCOL,
        version: host.version(),
    };
    writer.write(&hello).await?;
    let (messages, queued) = mpsc::channel(MESSAGES_QUEUED_MAX);
    let hints = messages.clone();
    let hinting = async move {
        loop {
            let message = match changes.recv().await {
                Ok(changed) => FromHost::Changed(changed),
                Err(RecvError::Lagged(_)) => FromHost::ChangesLost,
                Err(RecvError::Closed) => return ProtocolError::Closed,
            };
            if hints.send(message).await.is_err() {
                return ProtocolError::Closed;
            }
        }
    };
    let reading = async move {
        let calls = Arc::new(Semaphore::new(CALLS_MAX));
        loop {
            match reader.read().await {
                Ok(ToHost::Request { id, call }) => {
                    // Never closed.
                    let permit = calls.clone().acquire_owned().await.ok();
                    let (host, messages) = (host.clone(), messages.clone());
                    // Goes on when the agent leaves: what was asked for is still wanted.
                    scope.spawn_cancellable(async move {
                        let _permit = permit;
                        let result = answer(&host, call).await;
                        drop(messages.send(FromHost::Reply { id, result }).await);
                    });
                }
                Ok(ToHost::Hello { .. }) => return ProtocolError::OutOfTurn("a second greeting"),
                Ok(ToHost::Exec(_) | ToHost::Attach(_)) => {
                    return ProtocolError::OutOfTurn("a session after the greeting");
                }
                Err(error) => return error,
            }
        }
    };
    Err(tokio::select! {
        error = hinting => error,
        error = reading => error,
        error = write(writer, queued) => error,
    })
}

/// The rest of a connection that is a session.
async fn session(
    session: Result<Session, RuntimeError>,
    reader: Frames<OwnedReadHalf>,
    mut writer: Frames<OwnedWriteHalf>,
) -> Result<std::convert::Infallible, ProtocolError> {
    let (session, result) = match session {
        Ok(session) => (Some(session), Ok(Answer::Done)),
        Err(error) => (None, Err(error)),
    };
    let id = crate::session::KNOWN;
    writer.write(&FromHost::Reply { id, result }).await?;
    if let Some(session) = session {
        let (reader, writer) = (reader.into_inner(), writer.into_inner());
        let ended = crate::session::serve(session, reader, writer).await;
        if let Err(error) = ended {
            tracing::debug!(%error, "session ended");
        }
    }
    Err(ProtocolError::Closed)
}

async fn write(
    mut writer: Frames<OwnedWriteHalf>,
    mut queued: mpsc::Receiver<FromHost>,
) -> ProtocolError {
    while let Some(message) = queued.recv().await {
        if let Err(error) = writer.write(&message).await {
            return error;
        }
    }
    ProtocolError::Closed
}

async fn answer(host: &impl Served, call: Call) -> Result<Answer, RuntimeError> {
    let done = |()| Answer::Done;
    match call {
        Call::RunSandbox(spec) => host.run_sandbox(*spec).await.map(done),
        Call::CreateContainer(spec) => host.create_container(*spec).await.map(done),
        Call::StartContainer(id) => host.start_container(&id).await.map(done),
        Call::StopContainer { id, grace_ms } => host.stop_container(&id, grace_ms).await.map(done),
        Call::RemoveContainer(id) => host.remove_container(&id).await.map(done),
        Call::RemoveSandbox(id) => host.remove_sandbox(&id).await.map(done),
        Call::Sandboxes => host.sandboxes().await.map(Answer::Sandboxes),
        Call::Sandbox(id) => host.sandbox(&id).await.map(Answer::Sandbox),
        Call::Stats => host.stats().await.map(Answer::Stats),
        Call::Wake(id) => host.wake(&id).await.map(done),
        Call::Adopted(id) => host.adopted(&id).await.map(done),
        Call::Contact { at_ms } => host.contact(at_ms).await.map(done),
        Call::Traffic(services) => {
            let traffic = host.traffic()?.traffic(&services).await;
            traffic.map(Answer::Traffic)
        }
        Call::Metrics => host.traffic()?.metrics().await.map(Answer::Metrics),
    }
}

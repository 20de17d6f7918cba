//! The runtime as the agent sees it: over its socket.
//!
//! One task keeps the connection and makes a new one when it is lost. Meanwhile every call fails
//! with [`RuntimeError::Unavailable`], after a short wait for the connection to come back.
//! Guests do not notice: they belong to the host.

use crate::protocol::{Answer, Call, Frames, FromHost, PROTOCOL, ProtocolError, ToHost};
use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use lifecycle::Scope;
use parking_lot::Mutex;
use runtime::{
    AttachSpec, Changed, ContainerId, ContainerSpec, ContainerStats, ExecSpec, PodRuntime,
    RuntimeError, SandboxId, SandboxSpec, SandboxStatus, ServiceName, ServiceTraffic, Session,
    Traffic,
};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

/// Between attempts to connect, first and longest.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_LONGEST: Duration = Duration::from_secs(2);

/// How long a call waits for a connection before it fails.
const CONNECTION_WAIT: Duration = Duration::from_secs(2);

/// Calls not yet written; more wait for their turn.
const CALLS_QUEUED_MAX: usize = 64;

/// Hints not yet read by a subscriber; past it the subscriber's stream ends and it lists again.
const CHANGES_QUEUED_MAX: usize = 4096;

/// Who is at the other end, for what people read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// As in "… does not answer": `the data plane`.
    pub name: &'static str,
    /// What it is until it has said which: `salp-wasm://0.1.0`.
    pub version: &'static str,
}

/// A runtime in another process. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Remote {
    shared: Arc<Shared>,
    /// Where sessions live.
    scope: Scope,
}

#[derive(Debug)]
struct Shared {
    peer: Peer,
    socket: PathBuf,
    connection: watch::Receiver<Option<Arc<Connection>>>,
    version: Arc<Mutex<String>>,
}

#[derive(Debug)]
struct Connection {
    calls: mpsc::Sender<ToHost>,
    next_id: AtomicU64,
    /// `None` once the connection is lost.
    waiting: Mutex<Option<Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    replies: HashMap<u64, oneshot::Sender<Result<Answer, RuntimeError>>>,
    changes: broadcast::Sender<Changed>,
}

impl Remote {
    /// A runtime behind a socket. Connects, and connects again, in the scope.
    pub fn connect(peer: Peer, socket: &Path, scope: &Scope) -> Self {
        let (publish, connection) = watch::channel(None);
        let version = Arc::new(Mutex::new(peer.version.to_owned()));
        let connected = keep_connected(peer, socket.to_owned(), publish, version.clone());
        scope.spawn_cancellable(connected);
        Self {
            shared: Arc::new(Shared {
                peer,
                socket: socket.to_owned(),
                connection,
                version,
            }),
            scope: scope.clone(),
        }
    }

    async fn connection(&self) -> Result<Arc<Connection>, RuntimeError> {
        let mut current = self.shared.connection.clone();
        let connected = current.wait_for(Option::is_some);
        match tokio::time::timeout(CONNECTION_WAIT, connected).await {
            Ok(Ok(connection)) => connection.clone().ok_or_else(|| self.unavailable()),
            Ok(Err(_)) | Err(_) => Err(self.unavailable()),
        }
    }

    fn unavailable(&self) -> RuntimeError {
        RuntimeError::Unavailable(format!(
            "{} does not answer at {}",
            self.shared.peer.name,
            self.shared.socket.display()
        ))
    }

    async fn call(&self, call: Call) -> Result<Answer, RuntimeError> {
        let connection = self.connection().await?;
        let id = connection.next_id.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        match &mut *connection.waiting.lock() {
            Some(waiting) => waiting.replies.insert(id, reply),
            None => return Err(self.unavailable()),
        };
        if connection
            .calls
            .send(ToHost::Request { id, call })
            .await
            .is_err()
        {
            return Err(self.unavailable());
        }
        answer.await.unwrap_or_else(|_| Err(self.unavailable()))
    }

    /// A connection of its own that goes on as a session.
    async fn session(&self, asked: ToHost) -> Result<Session, RuntimeError> {
        let open = async {
            let (reader, writer) = UnixStream::connect(&self.shared.socket).await?.into_split();
            let (mut reader, mut writer) = (Frames::new(reader), Frames::new(writer));
            writer.write(&asked).await?;
            let reply = reader.read().await?;
            Ok::<_, ProtocolError>((reply, reader.into_inner(), writer.into_inner()))
        };
        match open.await {
            Ok((FromHost::Reply { id, result }, reader, writer)) => {
                result?;
                Ok(crate::session::of(reader, writer, id, &self.scope))
            }
            Ok(_) => Err(self.confused()),
            Err(ProtocolError::Io(_)) => Err(self.unavailable()),
            Err(ProtocolError::Closed) => Err(RuntimeError::Unavailable(format!(
                "{} ended the connection; if it is of an older version, restart it",
                self.shared.peer.name
            ))),
            Err(error) => Err(RuntimeError::Unavailable(chain(&error))),
        }
    }

    async fn done(&self, call: Call) -> Result<(), RuntimeError> {
        match self.call(call).await? {
            Answer::Done => Ok(()),
            _ => Err(self.confused()),
        }
    }

    fn confused(&self) -> RuntimeError {
        RuntimeError::Unavailable(format!(
            "{} answered something else than was asked",
            self.shared.peer.name
        ))
    }
}

#[async_trait]
impl PodRuntime for Remote {
    fn version(&self) -> String {
        self.shared.version.lock().clone()
    }

    async fn run_sandbox(&self, spec: SandboxSpec) -> Result<(), RuntimeError> {
        self.done(Call::RunSandbox(Box::new(spec))).await
    }

    async fn create_container(&self, spec: ContainerSpec) -> Result<(), RuntimeError> {
        self.done(Call::CreateContainer(Box::new(spec))).await
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.done(Call::StartContainer(id.clone())).await
    }

    async fn stop_container(&self, id: &ContainerId, grace_ms: u64) -> Result<(), RuntimeError> {
        let id = id.clone();
        self.done(Call::StopContainer { id, grace_ms }).await
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.done(Call::RemoveContainer(id.clone())).await
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        self.done(Call::RemoveSandbox(id.clone())).await
    }

    async fn wake(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        self.done(Call::Wake(id.clone())).await
    }

    async fn adopted(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        self.done(Call::Adopted(id.clone())).await
    }

    async fn contact(&self, at_ms: u64) -> Result<(), RuntimeError> {
        self.done(Call::Contact { at_ms }).await
    }

    async fn exec(&self, spec: ExecSpec) -> Result<Session, RuntimeError> {
        self.session(ToHost::Exec(Box::new(spec))).await
    }

    async fn attach(&self, spec: AttachSpec) -> Result<Session, RuntimeError> {
        self.session(ToHost::Attach(Box::new(spec))).await
    }

    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        match self.call(Call::Sandboxes).await? {
            Answer::Sandboxes(list) => Ok(list),
            _ => Err(self.confused()),
        }
    }

    async fn sandbox(&self, id: &SandboxId) -> Result<Option<SandboxStatus>, RuntimeError> {
        match self.call(Call::Sandbox(id.clone())).await? {
            Answer::Sandbox(status) => Ok(status),
            _ => Err(self.confused()),
        }
    }

    async fn stats(&self) -> Result<Vec<(ContainerId, ContainerStats)>, RuntimeError> {
        match self.call(Call::Stats).await? {
            Answer::Stats(stats) => Ok(stats),
            _ => Err(self.confused()),
        }
    }

    async fn changes(&self) -> Result<BoxStream<'static, Changed>, RuntimeError> {
        let connection = self.connection().await?;
        let receiver = match &*connection.waiting.lock() {
            Some(waiting) => waiting.changes.subscribe(),
            None => return Err(self.unavailable()),
        };
        Ok(hints(receiver))
    }
}

#[async_trait]
impl Traffic for Remote {
    async fn traffic(&self, services: &[ServiceName]) -> Result<Vec<ServiceTraffic>, RuntimeError> {
        match self.call(Call::Traffic(services.to_vec())).await? {
            Answer::Traffic(list) if list.len() == services.len() => Ok(list),
            _ => Err(self.confused()),
        }
    }

    async fn metrics(&self) -> Result<String, RuntimeError> {
        match self.call(Call::Metrics).await? {
            Answer::Metrics(text) => Ok(text),
            _ => Err(self.confused()),
        }
    }
}

/// A stream of hints that ends when any was lost.
pub fn hints(receiver: broadcast::Receiver<Changed>) -> BoxStream<'static, Changed> {
    futures::stream::unfold(receiver, |mut receiver| async move {
        let changed = receiver.recv().await.ok()?;
        Some((changed, receiver))
    })
    .boxed()
}

async fn keep_connected(
    peer: Peer,
    socket: PathBuf,
    publish: watch::Sender<Option<Arc<Connection>>>,
    version: Arc<Mutex<String>>,
) {
    let mut retry = RETRY_FIRST;
    let mut said = String::new();
    loop {
        match connect(&socket).await {
            Ok((reader, writer, host)) => {
                retry = RETRY_FIRST;
                said.clear();
                *version.lock() = host;
                let ended = serve(reader, writer, &publish).await;
                publish.send_replace(None);
                let peer = peer.name;
                tracing::info!(peer, error = %chain(&ended), "lost connection; connecting again");
            }
            Err(error) => {
                // Once for each different reason, not at every attempt.
                let error = chain(&error);
                if error != said {
                    let (peer, socket) = (peer.name, socket.display());
                    tracing::info!(%error, peer, %socket, "no connection yet");
                    said = error;
                }
            }
        }
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(RETRY_LONGEST);
    }
}

fn chain(error: &ProtocolError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

type Reader = Frames<OwnedReadHalf>;
type Writer = Frames<OwnedWriteHalf>;

async fn connect(socket: &Path) -> Result<(Reader, Writer, String), ProtocolError> {
    let (reader, writer) = UnixStream::connect(socket).await?.into_split();
    let (mut reader, mut writer) = (Frames::new(reader), Frames::new(writer));
    writer.write(&ToHost::Hello { protocol: PROTOCOL }).await?;
    match reader.read().await? {
        FromHost::Hello { protocol, version } if protocol == PROTOCOL => {
            Ok((reader, writer, version))
        }
        FromHost::Hello { protocol, version } => Err(ProtocolError::Refused(format!(
            "{version} speaks protocol {protocol} and this agent {PROTOCOL}; \
             restart the older of the two"
        ))),
        FromHost::Refused { reason } => Err(ProtocolError::Refused(reason)),
        _ => Err(ProtocolError::OutOfTurn("something else than a greeting")),
    }
}

/// Until the connection ends.
async fn serve(
    mut reader: Reader,
    mut writer: Writer,
    publish: &watch::Sender<Option<Arc<Connection>>>,
) -> ProtocolError {
    let (calls, mut queued) = mpsc::channel(CALLS_QUEUED_MAX);
    let connection = Arc::new(Connection {
        calls,
        next_id: AtomicU64::new(1),
        waiting: Mutex::new(Some(Waiting {
            replies: HashMap::new(),
            changes: broadcast::channel(CHANGES_QUEUED_MAX).0,
        })),
    });
    publish.send_replace(Some(connection.clone()));
    let reading = async {
        loop {
            match reader.read().await {
                Ok(message) => {
                    if let Err(error) = connection.take(message) {
                        return error;
                    }
                }
                Err(error) => return error,
            }
        }
    };
    let writing = async {
        while let Some(call) = queued.recv().await {
            if let Err(error) = writer.write(&call).await {
                return error;
            }
        }
        ProtocolError::Closed
    };
    let ended = tokio::select! {
        ended = reading => ended,
        ended = writing => ended,
    };
    // Dropping the senders tells all that wait.
    *connection.waiting.lock() = None;
    ended
}

impl Connection {
    fn take(&self, message: FromHost) -> Result<(), ProtocolError> {
        let mut waiting = self.waiting.lock();
        let Some(waiting) = &mut *waiting else {
            return Ok(());
        };
        match message {
            FromHost::Reply { id, result } => {
                // Whoever asked may have gone.
                if let Some(reply) = waiting.replies.remove(&id) {
                    drop(reply.send(result));
                }
            }
            // Without subscribers a hint has nobody to go to.
            FromHost::Changed(changed) => drop(waiting.changes.send(changed)),
            FromHost::ChangesLost => waiting.changes = broadcast::channel(CHANGES_QUEUED_MAX).0,
            FromHost::Hello { .. } | FromHost::Refused { .. } => {
                return Err(ProtocolError::OutOfTurn("a second greeting"));
            }
        }
        Ok(())
    }
}

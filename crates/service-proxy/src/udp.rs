//! UDP listeners: a client's datagrams go to one endpoint while it keeps sending.

use crate::Shared;
use crate::backend::{Backend, Connected, Tried};
use crate::metrics::Active;
use lifecycle::CancellationToken;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;

/// Clients of one listener; a further one takes the place of the one silent longest.
const SESSIONS_MAX: usize = 1024;
/// A client that is silent so long is forgotten.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How often those are looked for.
const IDLE_LOOK: Duration = Duration::from_secs(10);
/// The longest datagram.
const DATAGRAM_MAX: usize = 65_536;

struct Session {
    upstream: Arc<UdpSocket>,
    endpoint: SocketAddr,
    /// Milliseconds after the listener began.
    used: Arc<AtomicU64>,
    replies: CancellationToken,
    _connected: Connected,
    _active: Active,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.replies.cancel();
    }
}

struct Listener {
    socket: Arc<UdpSocket>,
    backend: Arc<Backend>,
    shared: Arc<Shared>,
    token: CancellationToken,
    sessions: HashMap<SocketAddr, Session>,
    began: Instant,
}

/// Listens at an address.
pub(crate) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// Passes datagrams on until the token is cancelled.
pub(crate) async fn serve(
    socket: UdpSocket,
    backend: Arc<Backend>,
    shared: Arc<Shared>,
    token: CancellationToken,
) {
    let mut listener = Listener {
        socket: Arc::new(socket),
        backend,
        shared,
        token,
        sessions: HashMap::new(),
        began: Instant::now(),
    };
    let mut look = tokio::time::interval(IDLE_LOOK);
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let received = tokio::select! {
            () = listener.token.cancelled() => return,
            received = listener.socket.recv_from(&mut buffer) => received,
            _ = look.tick() => {
                listener.forget_idle();
                continue;
            }
        };
        // An error is about a reply that somebody did not take.
        if let Ok((length, client)) = received {
            listener.pass_on(client, &buffer[..length]).await;
        }
    }
}

impl Listener {
    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn forget_idle(&mut self) {
        let oldest = self.now_ms().saturating_sub(IDLE_MAX.as_millis() as u64);
        self.sessions
            .retain(|_, session| session.used.load(Ordering::Relaxed) >= oldest);
    }

    /// Sends a client's datagram to its endpoint; lost, as datagrams may be, when none takes it.
    async fn pass_on(&mut self, client: SocketAddr, datagram: &[u8]) {
        let mut tried = Tried::default();
        loop {
            if !self.has_session(client) && self.begin(client, &tried).await.is_none() {
                return;
            }
            let Some(session) = self.sessions.get(&client) else {
                return;
            };
            session.used.store(self.now_ms(), Ordering::Relaxed);
            if session.upstream.send(datagram).await.is_ok() {
                return;
            }
            // The endpoint said before that nobody is there.
            let endpoint = session.endpoint;
            self.sessions.remove(&client);
            if !tried.push(endpoint) {
                return;
            }
        }
    }

    /// Whether the client has an endpoint that is still one.
    fn has_session(&mut self, client: SocketAddr) -> bool {
        let Some(session) = self.sessions.get(&client) else {
            return false;
        };
        let snapshot = self.backend.snapshot();
        let valid = snapshot
            .targets
            .iter()
            .any(|target| target.address == session.endpoint);
        if !valid {
            self.sessions.remove(&client);
        }
        valid
    }

    async fn begin(&mut self, client: SocketAddr, tried: &Tried) -> Option<()> {
        let backend = &self.backend;
        let (endpoint, target) = backend.pick(client.ip(), |target| {
            backend.connect_load(target, tried, true)
        })?;
        let any: IpAddr = match endpoint {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let upstream = UdpSocket::bind((any, 0)).await.ok()?;
        upstream.connect(endpoint).await.ok()?;
        if self.sessions.len() >= SESSIONS_MAX {
            let used = |session: &Session| session.used.load(Ordering::Relaxed);
            let oldest = self.sessions.iter().min_by_key(|(_, s)| used(s));
            if let Some(oldest) = oldest.map(|(client, _)| *client) {
                self.sessions.remove(&oldest);
            }
        }
        let session = Session {
            upstream: Arc::new(upstream),
            endpoint,
            used: Arc::new(AtomicU64::new(self.now_ms())),
            replies: self.token.child_token(),
            _connected: Connected::new(target),
            _active: self.backend.metrics.connection(),
        };
        self.shared.scope.spawn(replies(
            session.replies.clone(),
            session.upstream.clone(),
            self.socket.clone(),
            client,
            session.used.clone(),
            self.began,
        ));
        self.sessions.insert(client, session);
        Some(())
    }
}

/// Passes an endpoint's datagrams back to the client.
async fn replies(
    token: CancellationToken,
    upstream: Arc<UdpSocket>,
    socket: Arc<UdpSocket>,
    client: SocketAddr,
    used: Arc<AtomicU64>,
    began: Instant,
) {
    loop {
        tokio::select! {
            () = token.cancelled() => return,
            ready = upstream.readable() => if ready.is_err() { return },
        }
        // Only while there is something: a buffer for each silent client would add up.
        let mut buffer = vec![0; DATAGRAM_MAX];
        while let Ok(length) = upstream.try_recv(&mut buffer) {
            used.store(began.elapsed().as_millis() as u64, Ordering::Relaxed);
            // A reply that can't be sent is lost, as datagrams may be.
            let _ = socket.send_to(&buffer[..length], client).await;
        }
    }
}

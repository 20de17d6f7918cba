//! TCP listeners: whole connections to endpoints, or, when one of a route's endpoints is an
//! HTTP server of this process, HTTP requests one by one (`http`).

use crate::Shared;
use crate::backend::{Backend, Connected, Tried};
use crate::http;
use crate::wake::Woken;
use lifecycle::CancellationToken;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Connections that the kernel holds before they are accepted.
const BACKLOG: u32 = 1024;
/// An endpoint of this network answers sooner, or is gone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Per direction of a connection that is passed on.
const COPY_BUFFER: usize = 16 << 10;
/// After `accept` failed, mostly for want of file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// Listens at an address.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts until the token is cancelled.
pub(crate) async fn serve(
    listener: TcpListener,
    backend: Arc<Backend>,
    shared: Arc<Shared>,
    token: CancellationToken,
) {
    loop {
        // With too many connections, further ones wait in the kernel.
        let place = tokio::select! {
            () = token.cancelled() => return,
            place = shared.connections.clone().acquire_owned() => place,
        };
        let Ok(place) = place else {
            return;
        };
        let accepted = tokio::select! {
            () = token.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (backend, shared, token) = (backend.clone(), shared.clone(), token.clone());
                let scope = shared.scope.clone();
                scope.spawn(async move {
                    let _place = place;
                    let _active = backend.metrics.connection();
                    connection(stream, peer.ip(), backend, shared, token).await;
                });
            }
            Err(error) => {
                tracing::debug!(route = %backend.name, %error, "connection not accepted");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    client: IpAddr,
    backend: Arc<Backend>,
    shared: Arc<Shared>,
    token: CancellationToken,
) {
    prepare(&stream);
    let mut hold = None;
    loop {
        if speaks_http(&backend, &shared) {
            drop(hold);
            http::serve(stream, client, backend, shared, token).await;
            return;
        }
        if let Some((upstream, connected)) = connect(&backend, client).await {
            drop(hold);
            backend.passed.fetch_add(1, Ordering::Relaxed);
            let _ = upstream.set_nodelay(true);
            copy(stream, upstream, &shared).await;
            drop(connected);
            return;
        }
        if let Some(upstream) = wake(&backend, &shared).await {
            backend.passed.fetch_add(1, Ordering::Relaxed);
            let _ = upstream.set_nodelay(true);
            copy(stream, upstream, &shared).await;
            return;
        }
        if hold.is_none() {
            hold = backend.hold();
        }
        let again = match &mut hold {
            Some(hold) => hold.pause().await,
            None => false,
        };
        if !again || shared.scope.token().is_cancelled() {
            // Refused, as the kernel refuses where nobody listens.
            let _ = stream.set_zero_linger();
            return;
        }
    }
}

fn prepare(stream: &TcpStream) {
    // Failing only makes it slower, or a dead client is noticed later.
    let _ = stream.set_nodelay(true);
    let _ = rustix::net::sockopt::set_socket_keepalive(stream, true);
}

/// Whether an endpoint of a route is an HTTP server of this process, so that all of them
/// are understood to speak HTTP. Once found true it is not looked for again until endpoints
/// change: one that has gone is skipped.
pub(crate) fn speaks_http(backend: &Backend, shared: &Shared) -> bool {
    let snapshot = backend.snapshot();
    if snapshot.http.load(Ordering::Relaxed) {
        return true;
    }
    let mut any = false;
    for target in &snapshot.targets {
        if shared.local.http(target.address).is_some() {
            target.was_local.store(true, Ordering::Relaxed);
        }
        any |= target.was_local.load(Ordering::Relaxed);
    }
    snapshot.http.store(any, Ordering::Relaxed);
    any
}

/// A connection to a pod that stood by.
async fn wake(backend: &Backend, shared: &Shared) -> Option<TcpStream> {
    let snapshot = backend.snapshot();
    if snapshot.sleepers.is_empty() {
        return None;
    }
    match shared.waking.wake(&snapshot.sleepers, 0).await {
        Woken::Awake(address) => {
            let connected = TcpStream::connect(address);
            tokio::time::timeout(CONNECT_TIMEOUT, connected)
                .await
                .ok()?
                .ok()
        }
        Woken::Failed | Woken::Refused => None,
    }
}

/// A connection to the endpoint whose turn it is, or to the next that takes it.
async fn connect(backend: &Backend, client: IpAddr) -> Option<(TcpStream, Connected)> {
    let mut tried = Tried::default();
    loop {
        let pick = |desperate| {
            backend.pick(client, |target| {
                backend.connect_load(target, &tried, desperate)
            })
        };
        let (address, target) = pick(false).or_else(|| pick(true))?;
        let connected = Connected::new(target.clone());
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Some((stream, connected)),
            _ => {
                backend.avoid(&target);
                backend.metrics.retries.inc();
                if !tried.push(address) {
                    return None;
                }
            }
        }
    }
}

/// Passes bytes both ways until both sides are done; when the proxy stops, a while longer.
pub(crate) async fn copy<C, U>(mut client: C, mut upstream: U, shared: &Shared)
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let stopped = async {
        shared.scope.token().cancelled().await;
        tokio::time::sleep(shared.drain).await;
    };
    tokio::select! {
        // How a connection ends is its two ends' affair.
        _ = copy_bidirectional_with_sizes(&mut client, &mut upstream, COPY_BUFFER, COPY_BUFFER) => {}
        () = stopped => {}
    }
}

//! Programs that are run in pods for other sites: the API server is asked as any client would,
//! and what the program and who asked say to each other is passed on as it comes. The answer's
//! head names the WebSocket subprotocol whose frames follow; its handshake is over.

use super::answers::{Connect, say};
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use std::io;
use streaming::websocket::Handshake;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

/// Bytes of a refusal that are passed on.
const REFUSAL_MAX: usize = 64 * 1024;

/// Asks, and passes on until either end leaves.
pub(super) async fn run(
    connect: &Connect,
    path: &str,
    mut read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let connection = TokioIo::new(connect());
    let handshake = hyper::client::conn::http1::handshake(connection).await;
    let (mut sender, connection) = handshake.map_err(io::Error::other)?;
    let working = async {
        let mut request = Request::get(path)
            .header(header::HOST, "kubernetes")
            .body(Empty::<Bytes>::new())
            .map_err(io::Error::other)?;
        let handshake = Handshake::ask(request.headers_mut());
        let answer = sender.send_request(request).await;
        let mut answer = answer.map_err(io::Error::other)?;
        if answer.status() != http::StatusCode::SWITCHING_PROTOCOLS {
            return refused(answer, &mut write).await;
        }
        let protocol = handshake
            .check(answer.headers())
            .map_err(io::Error::other)?;
        let upgraded = hyper::upgrade::on(&mut answer).await;
        let upgraded = TokioIo::new(upgraded.map_err(io::Error::other)?);
        write
            .write_all(format!("101 {protocol}\n").as_bytes())
            .await?;
        let (mut heard, mut told) = tokio::io::split(upgraded);
        // Half a connection is of no use to either: a WebSocket says by frames that it ends.
        tokio::select! {
            copied = tokio::io::copy(&mut read, &mut told) => copied,
            copied = tokio::io::copy(&mut heard, &mut write) => copied,
        }?;
        write.shutdown().await
    };
    let carrying = async {
        let ended = connection.with_upgrades().await;
        ended.map_err(io::Error::other)?;
        // What it carried before may not be through yet.
        std::future::pending().await
    };
    tokio::select! {
        worked = working => worked,
        ended = carrying => ended,
    }
}

async fn refused(
    answer: http::Response<hyper::body::Incoming>,
    write: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let kind = answer.headers().get(header::CONTENT_TYPE);
    let kind = kind.and_then(|k| k.to_str().ok()).unwrap_or("text/plain");
    let head = format!("{} {kind}", answer.status().as_u16());
    let body = Limited::new(answer.into_body(), REFUSAL_MAX)
        .collect()
        .await;
    let body = body.map_err(io::Error::other)?.to_bytes();
    say(write, &head, &body).await
}

//! Port-forward over channels: of the n-th port channel 2n carries bytes and 2n+1 what went
//! wrong; the first message of each is the port's number. A port has one connection.

use super::over;
use crate::activity::Activity;
use crate::ports::{CHUNK_BYTES, Ports};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::future::join_all;
use futures::{SinkExt as _, StreamExt as _};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

/// Ports of one request; more are refused.
pub(crate) const PORTS_MAX: usize = 64;
/// Pieces on their way to a pod, and to the client; past it who sends waits.
const PIECES_MAX: usize = 4;

/// Joins a client's connection with ports of a pod, until all of them or the client have ended.
///
/// # Errors
/// When the connection fails, or too many ports are asked for.
pub async fn serve_ports(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    asked: &[u16],
    ports: &dyn Ports,
) -> io::Result<()> {
    if asked.len() > PORTS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let (mut sink, mut source) = over(stream, Role::Server).await.split();
    let activity = Activity::default();
    let (say, mut said) = mpsc::channel::<Message>(PIECES_MAX);
    let mut inputs = Vec::new();
    let mut joined = Vec::new();
    for (index, port) in asked.iter().enumerate() {
        // At most twice the most ports.
        let data = u8::try_from(index * 2).unwrap_or(u8::MAX - 1);
        let (input, given) = mpsc::channel::<Bytes>(PIECES_MAX);
        inputs.push(input);
        joined.push(join(*port, data, ports, given, say.clone()));
    }
    drop(say);
    let reading = async {
        while let Some(message) = source.next().await {
            activity.mark();
            match message.map_err(io::Error::other)? {
                Message::Binary(bytes) if bytes.len() > 1 && bytes[0].is_multiple_of(2) => {
                    if let Some(input) = inputs.get(usize::from(bytes[0] / 2)) {
                        // A pod that reads no more: its bytes have nowhere to go.
                        drop(input.send(bytes.slice(1..)).await);
                    }
                }
                Message::Close(_) => break,
                _ => {}
            }
        }
        Ok(())
    };
    let writing = async {
        while let Some(message) = said.recv().await {
            activity.mark();
            sink.send(message).await.map_err(io::Error::other)?;
        }
        // All ports have ended.
        super::close(&mut sink).await
    };
    tokio::select! {
        left = reading => left,
        written = async { tokio::join!(join_all(joined), writing).1 } => written,
        () = activity.idle() => Ok(()),
    }
}

async fn join(
    port: u16,
    data: u8,
    ports: &dyn Ports,
    mut given: mpsc::Receiver<Bytes>,
    say: mpsc::Sender<Message>,
) {
    // Nobody listens any more when one can't be sent; that ends all.
    for channel in [data, data + 1] {
        drop(say.send(message(channel, &port.to_le_bytes())).await);
    }
    let connection = match ports.dial(port).await {
        Ok(connection) => connection,
        Err(error) => {
            drop(
                say.send(message(data + 1, error.to_string().as_bytes()))
                    .await,
            );
            return;
        }
    };
    let (mut from_pod, mut to_pod) = tokio::io::split(connection);
    let outgoing = async {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match from_pod.read(&mut chunk).await {
                Ok(0) => return Ok(()),
                Ok(read) => drop(say.send(message(data, &chunk[..read])).await),
                Err(error) => return Err(error),
            }
        }
    };
    let incoming = async {
        while let Some(bytes) = given.recv().await {
            to_pod.write_all(&bytes).await?;
        }
        to_pod.shutdown().await?;
        std::future::pending().await
    };
    let ended = tokio::select! {
        ended = outgoing => ended,
        ended = incoming => ended,
    };
    if let Err(error) = ended {
        drop(
            say.send(message(data + 1, error.to_string().as_bytes()))
                .await,
        );
    }
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut message = BytesMut::with_capacity(1 + bytes.len());
    message.put_u8(channel);
    message.put_slice(bytes);
    Message::Binary(message.freeze())
}

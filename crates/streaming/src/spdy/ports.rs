//! Port-forward: for each connection that it takes the client opens two streams, one for its
//! bytes and one for what went wrong, which a number in their headers makes a pair.

use super::session::{Output, Stream, serve};
use crate::ports::{CHUNK_BYTES, DialError, Dialled, Ports};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use std::collections::HashMap;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

/// Streams that wait for the other of their pair; further ones are let go of, and with them
/// the client's connection.
const ALONE_MAX: usize = 64;

/// As [`crate::websocket::serve_ports`].
///
/// # Errors
/// When the connection fails.
pub async fn serve_ports(
    stream: impl AsyncRead + AsyncWrite + Send,
    ports: &dyn Ports,
) -> io::Result<()> {
    serve(stream, |opened| pairs(opened, ports)).await
}

/// Returns when the client has left.
async fn pairs(mut opened: mpsc::Receiver<Stream>, ports: &dyn Ports) {
    let mut alone: HashMap<String, Stream> = HashMap::new();
    let mut joined = FuturesUnordered::new();
    loop {
        tokio::select! {
            stream = opened.recv() => {
                let Some(stream) = stream else {
                    return;
                };
                if let Some((data, error)) = pair(&mut alone, stream).await {
                    joined.push(forward(data, error, ports));
                }
            }
            Some(()) = joined.next() => {}
        }
    }
}

/// The pair that a stream completes: bytes, errors.
async fn pair(alone: &mut HashMap<String, Stream>, stream: Stream) -> Option<(Stream, Stream)> {
    let header = |stream: &Stream, name| stream.headers.get(name).unwrap_or_default().to_owned();
    // Old clients gave no number; they opened one pair a port.
    let key = match stream.headers.get("requestid") {
        Some(id) => id.to_owned(),
        None => format!("port {}", header(&stream, "port")),
    };
    let Some(other) = alone.remove(&key) else {
        if alone.len() >= ALONE_MAX {
            stream.output.end().await;
            return None;
        }
        alone.insert(key, stream);
        return None;
    };
    match (
        &*header(&stream, "streamtype"),
        &*header(&other, "streamtype"),
    ) {
        ("data", "error") => Some((stream, other)),
        ("error", "data") => Some((other, stream)),
        _ => {
            stream.output.end().await;
            other.output.end().await;
            None
        }
    }
}

async fn forward(data: Stream, error: Stream, ports: &dyn Ports) {
    let asked = data.headers.get("port").unwrap_or_default();
    let dialled = match asked.parse() {
        Ok(port) => ports.dial(port).await,
        Err(_) => Err(DialError(format!("{asked:?} is no port"))),
    };
    let ended = match dialled {
        Ok(connection) => join(connection, data).await,
        Err(failed) => {
            data.output.end().await;
            Err(failed)
        }
    };
    if let Err(failed) = ended {
        error.output.send(failed.to_string().into()).await;
    }
    error.output.end().await;
}

/// Until the pod has said all, the client has broken it off, or either fails.
async fn join(connection: Dialled, data: Stream) -> Result<(), DialError> {
    let Stream {
        mut input,
        output,
        reset,
        ..
    } = data;
    let (mut from_pod, mut to_pod) = tokio::io::split(connection);
    let incoming = async {
        while let Some(bytes) = input.recv().await {
            to_pod.write_all(&bytes).await?;
        }
        to_pod.shutdown().await?;
        std::future::pending::<io::Result<()>>().await
    };
    let ended = tokio::select! {
        ended = copy(&mut from_pod, &output) => ended,
        ended = incoming => ended,
        () = reset.notified() => return Ok(()),
    };
    output.end().await;
    ended.map_err(|error| DialError(error.to_string()))
}

async fn copy(from: &mut (impl AsyncRead + Unpin), to: &Output) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = from.read(&mut chunk).await?;
        if read == 0 || !to.send(Bytes::copy_from_slice(&chunk[..read])).await {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spdy::client::Client;
    use futures::FutureExt as _;
    use futures::future::BoxFuture;

    /// Port 7 says what it is told, 81 is closed, any other says bye and closes.
    struct Pod;

    impl Ports for Pod {
        fn dial(&self, port: u16) -> BoxFuture<'static, Result<Dialled, DialError>> {
            async move {
                match port {
                    7 => {
                        let (near, far) = tokio::io::simplex(64);
                        Ok(Box::new(tokio::io::join(near, far)) as Dialled)
                    }
                    81 => Err(DialError("connection refused".to_owned())),
                    _ => {
                        let said = std::io::Cursor::new(b"bye".to_vec());
                        Ok(Box::new(tokio::io::join(said, tokio::io::sink())) as Dialled)
                    }
                }
            }
            .boxed()
        }
    }

    async fn open(client: &mut Client, id: &str, port: &str) -> (u32, u32) {
        let headers = |kind| vec![("streamtype", kind), ("port", port), ("requestid", id)];
        let error = client.open(&headers("error"), true).await;
        let data = client.open(&headers("data"), false).await;
        (data, error)
    }

    #[tokio::test]
    async fn each_pair_is_a_connection() {
        // What the client has not read yet must not hold up what it says.
        let (server, client) = tokio::io::duplex(1 << 20);
        let served = serve_ports(server, &Pod);
        let asking = async {
            let mut client = Client::new(client);
            let (echo, _) = open(&mut client, "0", "7").await;
            let (bye, bye_error) = open(&mut client, "1", "80").await;
            let (_, refused) = open(&mut client, "2", "81").await;
            let (_, no_port) = open(&mut client, "3", "http").await;
            client.say(echo, b"hello", false).await;
            client.until(|c| c.heard(echo) == b"hello").await;
            client.until(|c| c.ended(bye) && c.ended(bye_error)).await;
            assert_eq!(client.heard(bye), b"bye");
            assert_eq!(client.heard(bye_error), b"");
            client.until(|c| c.ended(refused) && c.ended(no_port)).await;
            assert_eq!(client.heard(refused), b"connection refused");
            assert_eq!(client.heard(no_port), b"\"http\" is no port");
            // It is still there.
            let big = vec![b'x'; 100_000];
            client.say(echo, &big, true).await;
            client.until(|c| c.ended(echo)).await;
            assert_eq!(client.heard(echo).len(), 100_005);
            client.ping(5).await;
        };
        let (served, ()) = tokio::join!(served, asking);
        served.unwrap();
    }
}

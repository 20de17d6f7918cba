//! A command's streams: channel 0 is its input, 1 its output, 2 its errors, 3 how it ended,
//! 4 the terminal's size, and 255 (of the fifth version) the end of another.

use super::{V5, failed, over};
use crate::activity::Activity;
use crate::{END_WITHIN, Ended, FromClient, ToClient};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use std::io;
use std::pin::pin;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Joins a client's connection with a program, until the program's end was said, the client
/// has left, or nothing was said for too long. Dropping `from` says to the program's side that
/// the client is gone.
///
/// # Errors
/// When the connection fails.
pub async fn serve_command(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    protocol: &str,
    to: mpsc::Sender<FromClient>,
    mut from: mpsc::Receiver<ToClient>,
) -> io::Result<()> {
    let (mut sink, mut source) = over(stream, Role::Server).await.split();
    let activity = Activity::default();
    // Before the fourth version an error is said in plain words.
    let plain = !matches!(protocol, super::V5 | super::V4);
    let mut reading = pin!(async {
        let mut to = Some(to);
        while let Some(message) = source.next().await {
            activity.mark();
            let bytes = match message.map_err(failed)? {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => text.into(),
                Message::Close(_) => break,
                _ => continue,
            };
            let Some(said) = read_client(bytes) else {
                continue;
            };
            if let Some(open) = &to
                && open.send(said).await.is_err()
            {
                to = None;
            }
        }
        Ok(())
    });
    let writing = async {
        while let Some(said) = from.recv().await {
            activity.mark();
            let last = matches!(said, ToClient::Ended(_));
            let message = match said {
                ToClient::Stdout(bytes) => Some(message(STDOUT, &bytes)),
                ToClient::Stderr(bytes) => Some(message(STDERR, &bytes)),
                ToClient::Ended(ended) => end_message(&ended, plain),
            };
            if let Some(message) = message {
                sink.send(message).await.map_err(failed)?;
            }
            if last {
                break;
            }
        }
        super::close(&mut sink).await
    };
    tokio::select! {
        left = &mut reading => return left,
        written = writing => written?,
        () = activity.idle() => return Ok(()),
    }
    // Closing at once would take away what the client has not read yet.
    // However it leaves, it was told all.
    let _left = tokio::time::timeout(END_WITHIN, reading).await;
    Ok(())
}

fn end_message(ended: &Ended, plain: bool) -> Option<Message> {
    match ended {
        _ if !plain => Some(message(ERROR, &ended.to_json())),
        Ended::Success => None,
        Ended::ExitCode { message: words, .. } | Ended::Failed(words) => {
            Some(message(ERROR, words.as_bytes()))
        }
    }
}

fn read_client(bytes: Bytes) -> Option<FromClient> {
    let channel = *bytes.first()?;
    let rest = bytes.slice(1..);
    match channel {
        // Clients open the channel with an empty message.
        STDIN if rest.is_empty() => None,
        STDIN => Some(FromClient::Stdin(rest)),
        CLOSE if rest.first() == Some(&STDIN) => Some(FromClient::StdinEnds),
        RESIZE => serde_json::from_slice(&rest).ok().map(FromClient::Resize),
        _ => None,
    }
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut message = BytesMut::with_capacity(1 + bytes.len());
    message.put_u8(channel);
    message.put_slice(bytes);
    Message::Binary(message.freeze())
}

/// Takes part in a command at a server; `protocol` is what the handshake chose.
pub async fn command_client<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    protocol: &str,
) -> (CommandSink<S>, CommandSource<S>) {
    let (sink, source) = over(stream, Role::Client).await.split();
    let ends = protocol == V5;
    (CommandSink { sink, ends }, CommandSource { source })
}

/// What a client says.
#[derive(Debug)]
pub struct CommandSink<S> {
    sink: SplitSink<WebSocketStream<S>, Message>,
    ends: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> CommandSink<S> {
    /// Sends a piece. A server of the fourth version can't be told that input has ended.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn send(&mut self, said: FromClient) -> io::Result<()> {
        let message = match said {
            FromClient::Stdin(bytes) => message(STDIN, &bytes),
            FromClient::StdinEnds if self.ends => message(CLOSE, &[STDIN]),
            FromClient::StdinEnds => return Ok(()),
            FromClient::Resize(resize) => message(RESIZE, &serde_json::to_vec(&resize)?),
        };
        self.sink.send(message).await.map_err(failed)
    }
}

/// What a client hears.
#[derive(Debug)]
pub struct CommandSource<S> {
    source: SplitStream<WebSocketStream<S>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> CommandSource<S> {
    /// The next piece; none when the server has closed the connection.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn next(&mut self) -> io::Result<Option<ToClient>> {
        while let Some(message) = self.source.next().await {
            let bytes = match message {
                Ok(Message::Binary(bytes)) => bytes,
                Ok(Message::Text(text)) => text.into(),
                Ok(Message::Close(_)) => return Ok(None),
                Ok(_) => continue,
                Err(error) => return Err(failed(error)),
            };
            let Some(channel) = bytes.first() else {
                continue;
            };
            let rest = bytes.slice(1..);
            match *channel {
                STDOUT | STDERR if rest.is_empty() => {}
                STDOUT => return Ok(Some(ToClient::Stdout(rest))),
                STDERR => return Ok(Some(ToClient::Stderr(rest))),
                ERROR => return Ok(Some(ToClient::Ended(Ended::from_json(&rest)))),
                _ => {}
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Resize;
    use expect_test::{Expect, expect};

    #[test]
    fn messages_of_clients() {
        let check = |bytes: &'static [u8], expect: Expect| {
            expect.assert_eq(&format!("{:?}", read_client(Bytes::from_static(bytes))));
        };
        check(b"\0hello", expect![[r#"Some(Stdin(b"hello"))"#]]);
        check(b"\xff\0", expect!["Some(StdinEnds)"]);
        check(br#"{"Width":1}"#, expect!["None"]);
        check(
            b"\x04{\"Width\":80,\"Height\":24}",
            expect!["Some(Resize(Resize { width: 80, height: 24 }))"],
        );
        for nothing in [&b""[..], b"\0", b"\x04x", b"\xff", b"\xff\x01", b"\x07x"] {
            check(nothing, expect!["None"]);
        }
    }

    async fn session(protocol: &str) -> Vec<String> {
        let (server, client) = tokio::io::duplex(1024);
        let (to, mut heard) = mpsc::channel(1);
        let (say, from) = mpsc::channel(1);
        let program = async {
            let mut lines = Vec::new();
            while let Some(said) = heard.recv().await {
                lines.push(format!("{said:?}"));
                match said {
                    FromClient::Stdin(bytes) => say.send(ToClient::Stdout(bytes)).await.unwrap(),
                    FromClient::StdinEnds => break,
                    FromClient::Resize(_) if protocol != V5 => break,
                    FromClient::Resize(_) => {}
                }
            }
            let ended = Ended::ExitCode {
                code: 3,
                message: "three".to_owned(),
            };
            say.send(ToClient::Ended(ended)).await.unwrap();
            lines
        };
        let client = async {
            let (mut sink, mut source) = command_client(client, protocol).await;
            let big = Bytes::from(vec![b'x'; 100_000]);
            let sending = async {
                sink.send(FromClient::Stdin(big.clone())).await.unwrap();
                let size = Resize {
                    width: 80,
                    height: 24,
                };
                sink.send(FromClient::Resize(size)).await.unwrap();
                sink.send(FromClient::StdinEnds).await.unwrap();
            };
            let hearing = async {
                let mut lines = Vec::new();
                while let Some(said) = source.next().await.unwrap() {
                    lines.push(match said {
                        ToClient::Stdout(bytes) => format!("{} bytes", bytes.len()),
                        said => format!("{said:?}"),
                    });
                }
                lines
            };
            tokio::join!(sending, hearing).1
        };
        let served = serve_command(server, protocol, to, from);
        let (served, heard, lines) = tokio::join!(served, program, client);
        served.unwrap();
        assert!(heard.iter().any(|line| line.contains("Resize")));
        lines
    }

    #[tokio::test]
    async fn a_session_from_both_ends() {
        let said = [
            "100000 bytes",
            r#"Ended(ExitCode { code: 3, message: "three" })"#,
        ];
        assert_eq!(session(V5).await, said);
        assert_eq!(session(super::super::V4).await, said);
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_told_of() {
        let (server, client) = tokio::io::duplex(1024);
        let (to, mut heard) = mpsc::channel(1);
        let (say, from) = mpsc::channel(1);
        let gone = async {
            drop(client);
            say.closed().await;
            heard.recv().await
        };
        let (_failed, heard) = tokio::join!(serve_command(server, V5, to, from), gone);
        assert_eq!(heard, None);
    }
}

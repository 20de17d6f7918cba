//! A session's streams over the socket between agent and runtime: a connection of its own
//! for each, which begins as any and goes on in pieces once the host has agreed.
//!
//! A piece is its kind (one byte), a length (four, big endian) and so many bytes. A host that knows
//! no sessions refuses; one that does has [`KNOWN`] as the number of its reply.

use bytes::Bytes;
use futures::channel::mpsc;
use futures::{SinkExt as _, StreamExt as _};
use runtime::{Said, Session, TerminalSize};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Pieces of input not yet read by the guest; past it the client waits.
const INPUT_PIECES_MAX: usize = 4;

/// Sizes of a terminal not yet given to it; past it the client waits.
const SIZES_MAX: usize = 4;

/// What hosts of this version know: 0 is input and output, from 1 on sizes of terminals as well.
pub(crate) const KNOWN: u64 = 1;

/// Largest piece; a longer one ends the connection.
const PIECE_MAX_BYTES: u32 = 1 << 20;

const INPUT: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const EXITED: u8 = 3;
const INPUT_ENDS: u8 = 4;
const SIZE: u8 = 5;

/// Where input goes to a program, and what it reads.
pub fn input() -> (mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>) {
    mpsc::channel(INPUT_PIECES_MAX)
}

/// Where sizes of a terminal go, and what gives them to it.
pub fn sizes() -> (mpsc::Sender<TerminalSize>, mpsc::Receiver<TerminalSize>) {
    mpsc::channel(SIZES_MAX)
}

/// Joins a session of this host with the agent, until either ends.
pub(crate) async fn serve(
    session: Session,
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let Session {
        input,
        mut output,
        mut sizes,
    } = session;
    let reading = async {
        let mut input = Some(input);
        loop {
            let (kind, bytes) = read(&mut reader).await?;
            match (kind, &mut input) {
                // A guest that reads no more is no error of who writes.
                (INPUT, Some(to)) => {
                    if to.send(bytes).await.is_err() {
                        input = None;
                    }
                }
                (INPUT, None) => {}
                (INPUT_ENDS, _) => input = None,
                (SIZE, _) => {
                    let size = size(&bytes)?;
                    // One without a terminal has no use for it.
                    if let Some(to) = &mut sizes {
                        drop(to.send(size).await);
                    }
                }
                _ => return Err(io::Error::from(io::ErrorKind::InvalidData)),
            }
        }
    };
    let writing = async {
        while let Some(said) = output.next().await {
            match said {
                Said::Stdout(bytes) => write(&mut writer, STDOUT, &bytes).await?,
                Said::Stderr(bytes) => write(&mut writer, STDERR, &bytes).await?,
                Said::Exited { code } => write(&mut writer, EXITED, &code.to_be_bytes()).await?,
            }
        }
        Ok(())
    };
    tokio::select! {
        // Endless but for errors: the agent has left.
        left = reading => left,
        written = writing => written,
    }
}

/// The agent's end of what [`serve`] does.
pub(crate) fn of(
    reader: impl AsyncRead + Unpin + Send + 'static,
    mut writer: impl AsyncWrite + Unpin + Send + 'static,
    known: u64,
    scope: &lifecycle::Scope,
) -> Session {
    let (input, mut given) = input();
    let (sizes, mut resized) = sizes();
    // Ends when the guest's end closes the connection, or `output` is dropped.
    let (alive, gone) = tokio::sync::oneshot::channel::<std::convert::Infallible>();
    scope.spawn_cancellable(async move {
        let writing = async {
            let mut input_ended = false;
            loop {
                tokio::select! {
                    bytes = given.next(), if !input_ended => match bytes {
                        Some(bytes) => {
                            for piece in bytes.chunks(PIECE_MAX_BYTES as usize) {
                                write(&mut writer, INPUT, piece).await?;
                            }
                        }
                        None => {
                            input_ended = true;
                            write(&mut writer, INPUT_ENDS, &[]).await?;
                        }
                    },
                    Some(TerminalSize { columns, rows }) = resized.next() => {
                        let [[a, b], [c, d]] = [columns.to_be_bytes(), rows.to_be_bytes()];
                        write(&mut writer, SIZE, &[a, b, c, d]).await?;
                    }
                    else => return std::future::pending::<io::Result<()>>().await,
                }
            }
        };
        let written = tokio::select! {
            written = writing => written,
            _ = gone => Ok(()),
        };
        if let Err(error) = written {
            tracing::debug!(%error, "input of a session");
        }
    });
    let output = futures::stream::unfold((reader, alive), |(mut reader, alive)| async move {
        let said = match read(&mut reader).await.ok()? {
            (STDOUT, bytes) => Said::Stdout(bytes),
            (STDERR, bytes) => Said::Stderr(bytes),
            (EXITED, bytes) => Said::Exited {
                code: i32::from_be_bytes(bytes.as_ref().try_into().ok()?),
            },
            _ => return None,
        };
        Some((said, (reader, alive)))
    });
    Session {
        input,
        output: output.boxed(),
        sizes: (known >= 1).then_some(sizes),
    }
}

fn size(bytes: &[u8]) -> io::Result<TerminalSize> {
    let [a, b, c, d] = *bytes else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    Ok(TerminalSize {
        columns: u16::from_be_bytes([a, b]),
        rows: u16::from_be_bytes([c, d]),
    })
}

async fn read(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<(u8, Bytes)> {
    let mut head = [0; 5];
    reader.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    if length > PIECE_MAX_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::new();
    let read = reader.take(length.into()).read_to_end(&mut bytes).await?;
    if read < length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((head[0], bytes.into()))
}

async fn write(writer: &mut (impl AsyncWrite + Unpin), kind: u8, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut piece = Vec::with_capacity(5 + bytes.len());
    piece.push(kind);
    piece.extend_from_slice(&length.to_be_bytes());
    piece.extend_from_slice(bytes);
    writer.write_all(&piece).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ends of a session with a host that knows so much; the host's part of it.
    fn joined(known: u64, scope: &lifecycle::Scope) -> (Session, mpsc::Receiver<TerminalSize>) {
        let (agent, host) = tokio::io::duplex(64);
        let (sizes, resized) = sizes();
        let (input, given) = input();
        let output = given.map(Said::Stdout).boxed();
        let session = Session {
            input,
            output,
            sizes: Some(sizes),
        };
        let (reader, writer) = tokio::io::split(host);
        scope.spawn_cancellable(async move { drop(serve(session, reader, writer).await) });
        let (reader, writer) = tokio::io::split(agent);
        (of(reader, writer, known, scope), resized)
    }

    #[tokio::test]
    async fn sizes_go_to_the_terminal_whether_there_is_input_or_not() {
        let scope = lifecycle::Scope::new();
        let (mut session, mut resized) = joined(KNOWN, &scope);
        let mut sizes = session.sizes.take().unwrap();
        let size = |columns, rows| TerminalSize { columns, rows };
        sizes.send(size(80, 24)).await.unwrap();
        assert_eq!(resized.next().await, Some(size(80, 24)));
        session.input.send(Bytes::from_static(b"in")).await.unwrap();
        let said = session.output.next().await;
        assert_eq!(said, Some(Said::Stdout(Bytes::from_static(b"in"))));
        drop(session.input);
        sizes.send(size(1000, 300)).await.unwrap();
        assert_eq!(resized.next().await, Some(size(1000, 300)));
        scope.close().await;
    }

    #[tokio::test]
    async fn a_host_of_before_is_told_no_sizes() {
        let scope = lifecycle::Scope::new();
        assert!(joined(0, &scope).0.sizes.is_none());
        scope.close().await;
    }
}

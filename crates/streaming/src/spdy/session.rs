//! A server's end of a connection: streams as they are opened, and what is said in them.

use super::frame::{Frame, Head, Kind, control, data_head, parse_head};
use super::headers::{Headers, Packer, Unpacker};
use crate::activity::Activity;
use crate::{END_WITHIN, ports::CHUNK_BYTES};
use bytes::{Bytes, BytesMut};
use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, ReadHalf,
};
use tokio::sync::{Notify, mpsc};

/// Streams of a connection that are open at once; further ones are refused.
const STREAMS_MAX: usize = 512;
/// Pieces of a stream that are not yet used; past it the connection is read no further.
const PIECES_MAX: usize = 4;
/// Frames that are not yet written; past it who writes waits.
const FRAMES_MAX: usize = 16;
/// Streams that are not yet looked at; past it the connection is read no further.
const OPENED_MAX: usize = 16;

const REFUSED_STREAM: u32 = 3;
const PROTOCOL_ERROR: u32 = 1;

/// A stream that a client has opened.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) headers: Headers,
    /// What the client says in it, until it has said all.
    pub(super) input: mpsc::Receiver<Bytes>,
    pub(super) output: Output,
    /// Told when the client breaks it off.
    pub(super) reset: Arc<Notify>,
}

/// A stream's other direction.
#[derive(Clone, Debug)]
pub(super) struct Output {
    stream: u32,
    frames: mpsc::Sender<Outgoing>,
}

impl Output {
    /// Says something; false when the connection is gone.
    pub(super) async fn send(&self, bytes: Bytes) -> bool {
        let stream = self.stream;
        let frame = Outgoing::Data { stream, bytes };
        self.frames.send(frame).await.is_ok()
    }

    /// Nothing follows.
    pub(super) async fn end(&self) {
        // Whoever is gone needs no end.
        drop(self.frames.send(Outgoing::End(self.stream)).await);
    }
}

#[derive(Debug)]
enum Outgoing {
    Data { stream: u32, bytes: Bytes },
    End(u32),
    Taken(u32),
    Reset { stream: u32, status: u32 },
    Ping(u32),
}

/// What the reader knows of a stream.
struct Open {
    /// None once the client has said all.
    input: Option<mpsc::Sender<Bytes>>,
    reset: Arc<Notify>,
}

/// Serves a connection: `work` gets the streams as they are opened. When it is done, all that
/// was said is written and the connection ended; `work` is dropped when the client has left or
/// nothing was carried for too long.
pub(super) async fn serve<S, W>(
    stream: S,
    work: impl FnOnce(mpsc::Receiver<Stream>) -> W,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send,
    W: Future<Output = ()>,
{
    let (read, mut write) = tokio::io::split(stream);
    let (opened, streams) = mpsc::channel(OPENED_MAX);
    let (frames, mut outgoing) = mpsc::channel(FRAMES_MAX);
    let activity = Activity::default();
    let mut reader = Reader {
        read: BufReader::new(read),
        unpacker: Unpacker::default(),
        open: HashMap::new(),
        last: 0,
        opened,
        frames,
        activity: &activity,
    };
    let mut reading = pin!(reader.run());
    let mut working = pin!(work(streams));
    let mut packer = Packer::new().map_err(io::Error::other)?;
    let done = Notify::new();
    let mut writing = pin!(async {
        loop {
            // What was said before the end of work comes before its end.
            let frame = tokio::select! {
                biased;
                frame = outgoing.recv() => frame,
                () = done.notified() => None,
            };
            let Some(frame) = frame else {
                break;
            };
            activity.mark();
            put(&mut write, frame, &mut packer).await?;
        }
        let goodbye = control(Kind::GoAway, 0, &[&[0; 8]]);
        write.write_all(&goodbye).await?;
        write.shutdown().await
    });
    tokio::select! {
        left = &mut reading => return left,
        written = &mut writing => return written,
        () = &mut working => done.notify_one(),
        () = activity.idle() => return Ok(()),
    }
    tokio::select! {
        left = &mut reading => return left,
        written = &mut writing => written?,
    }
    // Closing at once would take away what the client has not read yet.
    // However it leaves, it was told all.
    let _left = tokio::time::timeout(END_WITHIN, reading).await;
    Ok(())
}

async fn put(
    write: &mut (impl AsyncWrite + Unpin),
    frame: Outgoing,
    packer: &mut Packer,
) -> io::Result<()> {
    let frame: BytesMut = match frame {
        Outgoing::Data { stream, bytes } => {
            let mut frame = data_head(stream, false, bytes.len());
            frame.extend_from_slice(&bytes);
            frame
        }
        Outgoing::End(stream) => data_head(stream, true, 0),
        Outgoing::Taken(stream) => {
            let headers = packer.pack(&Headers::default()).map_err(io::Error::other)?;
            control(Kind::Taken, 0, &[&stream.to_be_bytes(), &headers])
        }
        Outgoing::Reset { stream, status } => control(
            Kind::Reset,
            0,
            &[&stream.to_be_bytes(), &status.to_be_bytes()],
        ),
        Outgoing::Ping(number) => control(Kind::Ping, 0, &[&number.to_be_bytes()]),
    };
    write.write_all(&frame).await?;
    write.flush().await
}

struct Reader<'a, S> {
    read: BufReader<ReadHalf<S>>,
    unpacker: Unpacker,
    open: HashMap<u32, Open>,
    /// The last stream that was opened: numbers grow.
    last: u32,
    opened: mpsc::Sender<Stream>,
    frames: mpsc::Sender<Outgoing>,
    activity: &'a Activity,
}

impl<S: AsyncRead + AsyncWrite> Reader<'_, S> {
    /// Until the client has left.
    async fn run(&mut self) -> io::Result<()> {
        loop {
            let mut head = [0; 8];
            match self.read.read_exact(&mut head).await {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
            self.activity.mark();
            match parse_head(head).map_err(io::Error::other)? {
                Head::Data {
                    stream,
                    fin,
                    length,
                } => self.data(stream, fin, length as usize).await?,
                Head::Control {
                    kind,
                    flags,
                    length,
                } => {
                    let mut payload = vec![0; length as usize];
                    self.read.read_exact(&mut payload).await?;
                    let frame = Frame::parse(kind, flags, &payload, &mut self.unpacker);
                    self.control(frame.map_err(io::Error::other)?).await;
                }
            }
        }
    }

    async fn data(&mut self, stream: u32, fin: bool, mut length: usize) -> io::Result<()> {
        while length > 0 {
            let mut piece = vec![0; length.min(CHUNK_BYTES)];
            let read = self.read.read(&mut piece).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            piece.truncate(read);
            length -= read;
            let input = self.open.get(&stream).and_then(|open| open.input.as_ref());
            if let Some(input) = input {
                // Who uses it no more has its reasons.
                drop(input.send(piece.into()).await);
            }
        }
        if fin {
            self.end(stream);
        }
        Ok(())
    }

    fn end(&mut self, stream: u32) {
        if let Some(open) = self.open.get_mut(&stream) {
            open.input = None;
        }
        self.forget_ended();
    }

    /// A stream counts until its client has said all and its input is let go of.
    fn forget_ended(&mut self) {
        self.open.retain(|_, open| {
            // Only this end knows of it any more.
            open.input.is_some() || Arc::strong_count(&open.reset) > 1
        });
    }

    async fn control(&mut self, frame: Frame) {
        let answer = match frame {
            Frame::Open {
                stream,
                headers,
                fin,
            } => match self.opened(stream, headers, fin).await {
                Ok(()) => return,
                Err(status) => Outgoing::Reset { stream, status },
            },
            Frame::Headers { stream, fin, .. } => {
                if fin {
                    self.end(stream);
                }
                return;
            }
            Frame::Reset { stream, .. } => {
                if let Some(open) = self.open.remove(&stream) {
                    open.reset.notify_one();
                }
                return;
            }
            Frame::Ping(number) => Outgoing::Ping(number),
            Frame::Taken { .. } | Frame::GoAway { .. } | Frame::Other => return,
        };
        // Whoever does not read is gone soon.
        drop(self.frames.send(answer).await);
    }

    /// The error is the status that it is refused with.
    async fn opened(&mut self, stream: u32, headers: Headers, fin: bool) -> Result<(), u32> {
        // A client's numbers are odd.
        if stream.is_multiple_of(2) || stream <= self.last {
            return Err(PROTOCOL_ERROR);
        }
        self.last = stream;
        self.forget_ended();
        if self.open.len() >= STREAMS_MAX {
            return Err(REFUSED_STREAM);
        }
        let (input, given) = mpsc::channel(PIECES_MAX);
        let reset = Arc::new(Notify::new());
        let open = Open {
            input: (!fin).then_some(input),
            reset: reset.clone(),
        };
        self.open.insert(stream, open);
        // Before anything is said in it.
        drop(self.frames.send(Outgoing::Taken(stream)).await);
        let taken = self.opened.send(Stream {
            headers,
            input: given,
            output: Output {
                stream,
                frames: self.frames.clone(),
            },
            reset,
        });
        taken.await.map_err(|_| REFUSED_STREAM)
    }
}

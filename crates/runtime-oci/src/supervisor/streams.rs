//! Descriptors of processes, read and written without blocking: pipes, and terminals' outer ends.

use bytes::Bytes;
use runtime::TerminalSize;
use rustix::fs::OFlags;
use rustix::pipe::PipeFlags;
use rustix::termios::Winsize;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Read at once at most.
const PIECE_BYTES: usize = 16 << 10;

/// One end. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Stream(Arc<AsyncFd<OwnedFd>>);

/// A pipe that a process writes: this end, and the process's.
pub(super) fn output() -> io::Result<(Stream, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    Ok((Stream::of(read, Interest::READABLE)?, write))
}

/// A pipe that a process reads: this end, and the process's.
pub(super) fn input() -> io::Result<(Stream, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    Ok((Stream::of(write, Interest::WRITABLE)?, read))
}

impl Stream {
    /// A terminal's outer end.
    pub(super) fn terminal(fd: OwnedFd) -> io::Result<Self> {
        Self::of(fd, Interest::READABLE | Interest::WRITABLE)
    }

    /// Tells a terminal, and those that run in it, how large it is now.
    pub(super) fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let size = Winsize {
            ws_col: size.columns,
            ws_row: size.rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(rustix::termios::tcsetwinsize(self.0.get_ref(), size)?)
    }

    fn of(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        #[allow(
            deprecated,
            reason = "its replacement is unsafe for types that may change their descriptor; an OwnedFd keeps its own"
        )]
        let fd = AsyncFd::with_interest(fd, interest)?;
        Ok(Self(Arc::new(fd)))
    }

    /// What was written since; nothing at the end.
    pub(super) async fn read(&self) -> io::Result<Bytes> {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let mut ready = self.0.readable().await?;
            let read = ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut piece[..])?));
            match read {
                Ok(Ok(length)) => {
                    piece.truncate(length);
                    return Ok(piece.into());
                }
                // A terminal that nobody has open any more.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => {
                    return Ok(Bytes::new());
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }

    pub(super) async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                Ok(Ok(length)) => bytes = &bytes[length..],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}

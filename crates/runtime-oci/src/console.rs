//! Terminals: an OCI runtime makes one inside the container and hands its outer end over a socket.

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use tokio::io::Interest;
use tokio::net::UnixListener;

/// Where a runtime hands over one terminal.
pub(crate) struct Console {
    path: PathBuf,
    listener: UnixListener,
}

impl Console {
    pub(crate) fn listen(dir: &Path) -> io::Result<Self> {
        let path = dir.join("tty");
        let _old = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        Ok(Self { path, listener })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The terminal, once the runtime has made it.
    pub(crate) async fn receive(&self) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept().await?;
        loop {
            stream.readable().await?;
            let received = stream.try_io(Interest::READABLE, || take(&stream));
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return received,
            }
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}

fn take(stream: &tokio::net::UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    // The terminal's name comes with it.
    let mut name = [0; 4096];
    let mut pieces = [IoSliceMut::new(&mut name)];
    rustix::net::recvmsg(stream, &mut pieces, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    descriptors
        .next()
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

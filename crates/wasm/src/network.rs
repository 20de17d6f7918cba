//! A pod's own network, where it has one: guests beside containers live in the namespace that
//! those live in, while this process stays in the machine's. A socket belongs for its whole life
//! to the namespace of the thread that made it, so only the making is done there.

use futures::FutureExt as _;
use rustix::thread::LinkNameSpaceType;
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::pin::pin;
use std::task::Context;
use std::thread;
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Handle;

/// What a thread needs that makes a socket.
const STACK_BYTES: usize = 256 << 10;

/// A network namespace. Needs CAP_SYS_ADMIN.
#[derive(Debug)]
pub struct Network(File);

impl Network {
    /// By a file that keeps it.
    ///
    /// # Errors
    /// When there is none, or not for this process.
    pub fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// Does something there. On a thread of its own, which ends with it: none of this process'
    /// is ever in another namespace.
    ///
    /// # Errors
    /// When the namespace can't be entered.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let runtime = Handle::try_current().ok();
        let there = || {
            rustix::thread::move_into_link_name_space(
                self.0.as_fd(),
                Some(LinkNameSpaceType::Network),
            )?;
            let _runtime = runtime.as_ref().map(Handle::enter);
            Ok(work())
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("pod-network".to_owned());
            let thread = thread.stack_size(STACK_BYTES).spawn_scoped(scope, there)?;
            let panicked = |_| Err(io::Error::other("the thread panicked"));
            thread.join().unwrap_or_else(panicked)
        })
    }

    /// Begins something there that goes on here: of what makes a socket and waits for it then.
    pub(crate) async fn begin<F: Future + Send>(&self, future: F) -> io::Result<F::Output>
    where
        F::Output: Send,
    {
        let mut future = pin!(future);
        let begun = poll_fn(|cx| {
            let waker = cx.waker().clone();
            let first = || future.as_mut().poll(&mut Context::from_waker(&waker));
            std::task::Poll::Ready(self.enter(first))
        });
        match begun.await? {
            std::task::Poll::Ready(done) => Ok(done),
            std::task::Poll::Pending => future.map(Ok).await,
        }
    }

    /// A connection from there.
    pub(crate) async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.enter(|| match to {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        })??;
        socket.connect(to).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::UnshareFlags;
    use std::net::{Ipv4Addr, TcpListener};

    /// A namespace with nothing in it but a loopback that is down; none without rights to make one.
    #[allow(
        unsafe_code,
        reason = "a thread leaves its network, nothing that others rely on"
    )]
    fn empty() -> Option<Network> {
        let made = thread::spawn(|| {
            // SAFETY: only descriptors' sharing would be relied on by others, and stays.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.ok()?;
            Some(Network::open(Path::new("/proc/thread-self/ns/net")).unwrap())
        });
        made.join().unwrap()
    }

    #[tokio::test]
    async fn sockets_belong_to_where_they_were_made() {
        let Some(network) = empty() else {
            return;
        };
        let here = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = here.local_addr().unwrap();
        assert!(TcpStream::connect(address).await.is_ok());
        assert!(network.connect(address).await.is_err());
        // The port is free there, whatever listens here.
        let there = network.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())));
        assert!(there.unwrap().is_ok());
        let socket = network.begin(async {
            let socket = tokio::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
            socket.writable().await?;
            io::Result::Ok(socket)
        });
        let socket = socket.await.unwrap().unwrap();
        assert!(
            socket
                .connect((Ipv4Addr::new(192, 0, 2, 1), 9))
                .await
                .is_err()
        );
        // This thread never left.
        assert!(TcpStream::connect(address).await.is_ok());
    }
}

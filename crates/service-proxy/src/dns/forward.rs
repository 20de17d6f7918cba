//! Names that are not the cluster's: asked of the machine's resolvers, packets unchanged.

use parking_lot::Mutex;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

/// Queries on their way to resolvers; further ones fail at once.
const ASKED_MAX: usize = 256;
/// One resolver's time, so that the second is asked before most clients give up.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// As many resolvers as the C library uses.
const UPSTREAMS_MAX: usize = 3;
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The file follows the machine from network to network: it is read again after this.
const REREAD: Duration = Duration::from_secs(5);
const DNS_PORT: u16 = 53;

pub(super) struct Upstreams {
    fixed: Option<Vec<SocketAddr>>,
    /// Our own address: asking it would never end.
    own: SocketAddr,
    read: Mutex<Option<(Instant, Vec<SocketAddr>)>>,
    places: Semaphore,
}

impl Upstreams {
    pub(super) fn new(fixed: Option<Vec<SocketAddr>>, own: SocketAddr) -> Self {
        Self {
            fixed,
            own,
            read: Mutex::new(None),
            places: Semaphore::new(ASKED_MAX),
        }
    }

    /// The answer of the first resolver that gives one.
    pub(super) async fn ask(&self, query: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let _place = self.places.try_acquire().ok()?;
        for upstream in self.current() {
            let answer = async {
                match tcp {
                    true => ask_tcp(upstream, query).await,
                    false => ask_udp(upstream, query).await,
                }
            };
            match tokio::time::timeout(ASK_TIMEOUT, answer).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%upstream, %error, "resolver failed"),
                Err(_) => tracing::debug!(%upstream, "resolver did not answer in time"),
            }
        }
        None
    }

    fn current(&self) -> Vec<SocketAddr> {
        if let Some(fixed) = &self.fixed {
            return fixed.clone();
        }
        let mut read = self.read.lock();
        if let Some((when, upstreams)) = &*read
            && when.elapsed() < REREAD
        {
            return upstreams.clone();
        }
        // No file means no resolvers.
        let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
        let mut upstreams = parse_resolv_conf(&text);
        upstreams.retain(|upstream| *upstream != self.own);
        *read = Some((Instant::now(), upstreams.clone()));
        upstreams
    }
}

fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next())?
        })
        .filter_map(|address| address.parse::<IpAddr>().ok())
        .map(|ip| SocketAddr::new(ip, DNS_PORT))
        .take(UPSTREAMS_MAX)
        .collect()
}

async fn ask_udp(upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match upstream {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(query).await?;
    let mut answer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut answer).await?;
        // Its identifier, or it is somebody else's.
        if length >= 12 && answer[..2] == query[..2] {
            answer.truncate(length);
            answer.shrink_to_fit();
            return Ok(answer);
        }
    }
}

async fn ask_tcp(upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_u16(length).await?;
    stream.write_all(query).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_resolv_conf() {
        let text = "# nameserver 9.9.9.9\nsearch a b\nnameserver 1.1.1.1\n nameserver\t::1 # x\n\
            nameserver bad\nnameserver 2.2.2.2\nnameserver 3.3.3.3\n";
        let upstreams: Vec<_> = parse_resolv_conf(text)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(upstreams, ["1.1.1.1:53", "[::1]:53", "2.2.2.2:53"]);
    }
}

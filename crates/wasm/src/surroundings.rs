//! What all instances of a container share of its pod: address, names, rules, log, settings.

use crate::egress::EgressRules;
use crate::environment::Environment;
use crate::keyvalue::KeyValue;
use crate::names::{self, Resolve, ResolveError};
use crate::network::Network;
use crate::stdio::{LogSink, LogStream};
use futures::future::{BoxFuture, ready};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::net::TcpStream;

pub(crate) struct Surroundings {
    /// The pod's.
    pub(crate) address: Option<IpAddr>,
    /// The pod's, if it has one: then no address in it is another's.
    pub(crate) network: Option<Arc<Network>>,
    pub(crate) names: Option<Arc<dyn Resolve>>,
    pub(crate) egress: EgressRules,
    pub(crate) log: Arc<dyn LogSink>,
    /// The environment, each name once; `wasi:config` shows it as well.
    pub(crate) settings: Environment,
    pub(crate) store: Arc<KeyValue>,
    /// A refused address to listen at is told of once.
    pub(crate) told: AtomicBool,
}

impl Surroundings {
    /// A line about the guest, from the host, in the guest's own log.
    pub(crate) fn note(&self, message: &str) {
        self.log
            .open(LogStream::Stderr)
            .write(format!("salp: {message}\n").as_bytes());
    }

    /// Addresses of a host by the pod's own way to names.
    pub(crate) fn lookup(
        &self,
        host: &str,
    ) -> BoxFuture<'static, Result<Vec<IpAddr>, ResolveError>> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Box::pin(ready(Ok(vec![ip])));
        }
        // RFC 6761: not a question for a server.
        let name = host.trim_end_matches('.');
        if name.eq_ignore_ascii_case("localhost")
            || name.to_ascii_lowercase().ends_with(".localhost")
        {
            return Box::pin(ready(Ok(vec![Ipv4Addr::LOCALHOST.into()])));
        }
        match &self.names {
            Some(names) => names.resolve(host.to_owned()),
            None => Box::pin(names::of_the_machine(host.to_owned())),
        }
    }

    /// Where a guest is let in when it asks for an address to listen at: "any" is the pod's own,
    /// as the addresses of other pods are not its; in a network of its own, those of the family
    /// that pods' addresses are of there, as a socket of the other family would not hear them.
    pub(crate) fn listen_at(&self, asked: SocketAddr) -> SocketAddr {
        let own = match &self.network {
            Some(_) => Some(Ipv4Addr::UNSPECIFIED.into()),
            None => self.address,
        };
        match own {
            // Port 0 is asked for before a connect as well, which any address does for.
            Some(own) if asked.ip().to_canonical().is_unspecified() && asked.port() != 0 => {
                SocketAddr::new(own, asked.port())
            }
            _ => asked,
        }
    }

    /// A connection, from where the pod is.
    pub(crate) async fn connect(&self, asked: SocketAddr) -> io::Result<TcpStream> {
        let to = self.connect_to(asked);
        match &self.network {
            Some(network) => network.connect(to).await,
            None => TcpStream::connect(to).await,
        }
    }

    /// Where a guest gets to that connects to an address: the loopback is its pod's.
    pub(crate) fn connect_to(&self, asked: SocketAddr) -> SocketAddr {
        match self.address {
            Some(own) if self.network.is_none() && is_machines(asked.ip()) => {
                SocketAddr::new(own, asked.port())
            }
            _ => asked,
        }
    }

    /// Says in the log, once, why the guest may not listen there.
    pub(crate) fn refuse_listening(&self, asked: SocketAddr) {
        if self.told.swap(true, Ordering::Relaxed) {
            return;
        }
        let own = match self.address {
            Some(own) => format!("its address {own}"),
            None => "no address".into(),
        };
        self.note(&format!(
            "listening at {asked} is refused: this pod has {own}; listen at 0.0.0.0 (or [::]) \
             or at that address"
        ));
    }
}

/// The machine's own loopback: what listens there trusts local callers, and pods are none.
pub(crate) fn is_machines(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    ip == IpAddr::V4(Ipv4Addr::LOCALHOST) || ip == IpAddr::V6(Ipv6Addr::LOCALHOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoLog;
    impl LogSink for NoLog {
        fn open(&self, _: LogStream) -> Box<dyn crate::LogWriter> {
            struct Nowhere;
            impl crate::LogWriter for Nowhere {
                fn write(&mut self, _: &[u8]) {}
            }
            Box::new(Nowhere)
        }
    }

    fn pod(address: &str) -> Surroundings {
        Surroundings {
            address: Some(address.parse().unwrap()),
            network: None,
            names: None,
            egress: EgressRules::anywhere(),
            log: Arc::new(NoLog),
            settings: Environment::default(),
            store: Arc::default(),
            told: AtomicBool::new(false),
        }
    }

    #[test]
    fn any_address_is_the_pods_own() {
        let pod = pod("10.42.0.7");
        let listen = |asked: &str| pod.listen_at(asked.parse().unwrap()).to_string();
        assert_eq!(listen("0.0.0.0:8080"), "10.42.0.7:8080");
        assert_eq!(listen("[::]:8080"), "10.42.0.7:8080");
        assert_eq!(listen("0.0.0.0:0"), "0.0.0.0:0");
        assert_eq!(listen("10.42.0.8:8080"), "10.42.0.8:8080");
        assert_eq!(listen("127.0.0.1:8080"), "127.0.0.1:8080");
        let connect = |asked: &str| pod.connect_to(asked.parse().unwrap()).to_string();
        assert_eq!(connect("127.0.0.1:6443"), "10.42.0.7:6443");
        assert_eq!(connect("[::1]:6443"), "10.42.0.7:6443");
        assert_eq!(connect("[::ffff:127.0.0.1]:1"), "10.42.0.7:1");
        assert_eq!(connect("127.10.0.3:80"), "127.10.0.3:80");
        let Ok(network) = Network::open(std::path::Path::new("/proc/self/ns/net")) else {
            return;
        };
        let pod = Surroundings {
            network: Some(Arc::new(network)),
            ..pod
        };
        let listen = |asked: &str| pod.listen_at(asked.parse().unwrap()).to_string();
        assert_eq!(listen("[::]:8080"), "0.0.0.0:8080");
        assert_eq!(listen("127.0.0.1:8080"), "127.0.0.1:8080");
        let connect = |asked: &str| pod.connect_to(asked.parse().unwrap()).to_string();
        assert_eq!(connect("127.0.0.1:6443"), "127.0.0.1:6443");
    }

    #[tokio::test]
    async fn addresses_and_localhost_are_no_question() {
        let pod = pod("10.42.0.7");
        for (host, found) in [
            ("10.1.2.3", "10.1.2.3"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("localhost", "127.0.0.1"),
            ("web.LOCALHOST.", "127.0.0.1"),
        ] {
            assert_eq!(pod.lookup(host).await, Ok(vec![found.parse().unwrap()]));
        }
    }
}

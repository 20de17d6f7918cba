//! Names as a pod sees them: its DNS servers and search list, as in its `resolv.conf`.

use futures::future::BoxFuture;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use runtime::Dns;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use wasm::{Network, Resolve, ResolveError};

/// Until the next server is asked.
const SERVER_TIMEOUT: Duration = Duration::from_secs(2);

/// Largest answer over UDP without extensions, with room to spare.
const ANSWER_MAX_BYTES: usize = 4096;

const DNS_PORT: u16 = 53;

/// A pod's resolver.
pub(crate) struct PodNames {
    servers: Vec<SocketAddr>,
    searches: Vec<String>,
    ndots: usize,
    /// Where it asks from.
    network: Option<Arc<Network>>,
}

impl PodNames {
    /// `None` for a pod without DNS servers of its own. A server at the address of `own` is
    /// asked at its port.
    pub(crate) fn of(
        dns: &Dns,
        own: Option<SocketAddr>,
        network: Option<&Arc<Network>>,
    ) -> Option<Arc<dyn Resolve>> {
        Some(Arc::new(Self {
            network: network.cloned(),
            ..Self::new(dns, own)?
        }))
    }

    fn new(dns: &Dns, own: Option<SocketAddr>) -> Option<Self> {
        if dns.servers.is_empty() {
            return None;
        }
        let ndots = dns
            .options
            .iter()
            .find_map(|option| option.strip_prefix("ndots:")?.parse().ok())
            .unwrap_or(1);
        let servers = dns.servers.iter().map(|ip| match own {
            Some(own) if own.ip() == *ip => own,
            _ => SocketAddr::new(*ip, DNS_PORT),
        });
        Some(Self {
            servers: servers.collect(),
            searches: dns.searches.clone(),
            ndots,
            network: None,
        })
    }

    /// The full names to ask for, in order (resolv.conf(5): `search`, `ndots`).
    fn candidates(&self, host: &str) -> Vec<String> {
        if host.ends_with('.') {
            return vec![host.to_owned()];
        }
        let mut names: Vec<String> = self
            .searches
            .iter()
            .map(|search| format!("{host}.{}.", search.trim_end_matches('.')))
            .collect();
        let whole = format!("{host}.");
        if host.matches('.').count() >= self.ndots {
            names.insert(0, whole);
        } else {
            names.push(whole);
        }
        names
    }
}

impl Resolve for PodNames {
    fn resolve(&self, host: String) -> BoxFuture<'static, Result<Vec<IpAddr>, ResolveError>> {
        let names = self.candidates(&host);
        let servers = self.servers.clone();
        let network = self.network.clone();
        Box::pin(async move {
            let mut silent = false;
            for name in names {
                match ask_all(&servers, network.as_deref(), &name).await {
                    Some(found) if !found.is_empty() => return Ok(found),
                    // They know that there is none: the next name.
                    Some(_) => {}
                    None => silent = true,
                }
            }
            Err(if silent {
                ResolveError::NoAnswer
            } else {
                ResolveError::NotFound
            })
        })
    }
}

/// Asks one server after the other; `None` when none could say.
async fn ask_all(
    servers: &[SocketAddr],
    network: Option<&Network>,
    name: &str,
) -> Option<Vec<IpAddr>> {
    for server in servers {
        let both = async {
            // Together, as each may have to come from afar.
            let of = |kind| ask(*server, network, name, kind);
            let (four, six) = futures::join!(of(RecordType::A), of(RecordType::AAAA));
            let mut found = four?;
            found.extend(six.unwrap_or_default());
            Some(found)
        };
        if let Ok(Some(found)) = tokio::time::timeout(SERVER_TIMEOUT, both).await {
            return Some(found);
        }
    }
    None
}

/// The addresses of one kind; `None` when the server does not answer or can't say.
async fn ask(
    server: SocketAddr,
    network: Option<&Network>,
    name: &str,
    kind: RecordType,
) -> Option<Vec<IpAddr>> {
    let any = if server.is_ipv4() {
        IpAddr::from(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::from(Ipv6Addr::UNSPECIFIED)
    };
    let bind = || std::net::UdpSocket::bind((any, 0));
    let bound = match network {
        Some(network) => network.enter(bind).ok()?,
        None => bind(),
    };
    let socket = bound.ok()?;
    socket.set_nonblocking(true).ok()?;
    let socket = UdpSocket::from_std(socket).ok()?;
    // Connected: answers of others are not received.
    socket.connect(server).await.ok()?;
    let id = u16::try_from(RandomState::new().hash_one(name) & 0xffff).ok()?;
    let mut query = Message::new(id, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    // A name that is none has no address.
    let Ok(asked) = Name::from_ascii(name) else {
        return Some(Vec::new());
    };
    query.add_query(Query::query(asked, kind));
    socket.send(&query.to_vec().ok()?).await.ok()?;
    let mut answer = [0; ANSWER_MAX_BYTES];
    loop {
        let length = socket.recv(&mut answer).await.ok()?;
        let Ok(message) = Message::from_vec(&answer[..length]) else {
            continue;
        };
        if message.metadata.id != id {
            continue;
        }
        let known = [ResponseCode::NoError, ResponseCode::NXDomain];
        if !known.contains(&message.metadata.response_code) {
            return None;
        }
        let records = message.answers.iter().map(|record| &record.data);
        return Some(
            records
                .filter_map(|data| match data {
                    RData::A(address) => Some(IpAddr::V4(address.0)),
                    RData::AAAA(address) => Some(IpAddr::V6(address.0)),
                    _ => None,
                })
                .collect(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tried_as_resolv_conf_says() {
        let names = PodNames {
            servers: Vec::new(),
            searches: vec![
                "default.svc.cluster.local".into(),
                "svc.cluster.local.".into(),
            ],
            ndots: 2,
            network: None,
        };
        assert_eq!(
            names.candidates("web"),
            [
                "web.default.svc.cluster.local.",
                "web.svc.cluster.local.",
                "web."
            ]
        );
        assert_eq!(names.candidates("a.example.com")[0], "a.example.com.");
        assert_eq!(names.candidates("web.default.")[..], ["web.default."]);
    }

    #[test]
    fn the_site_s_own_server_is_asked_at_its_port() {
        let dns = Dns {
            servers: vec![[127, 43, 0, 10].into(), [192, 0, 2, 1].into()],
            searches: Vec::new(),
            options: Vec::new(),
        };
        let own = SocketAddr::from(([127, 43, 0, 10], 10_053));
        let names = PodNames::new(&dns, Some(own)).expect("servers");
        let other = SocketAddr::from(([192, 0, 2, 1], DNS_PORT));
        assert_eq!(names.servers, [own, other]);
    }

    #[tokio::test]
    async fn an_answer_to_another_question_is_passed_over() {
        use hickory_proto::rr::{Record, rdata::A};
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = server.local_addr().unwrap();
        let answer = async {
            let mut buffer = [0; 512];
            let (length, client) = server.recv_from(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let name = query.queries[0].name().clone();
            let mut answer = query.into_response();
            let data = RData::A(A(Ipv4Addr::new(10, 43, 0, 9)));
            answer.add_answer(Record::from_rdata(name, 5, data));
            let id = answer.metadata.id;
            answer.metadata.id = id.wrapping_add(1);
            server
                .send_to(&answer.to_vec().unwrap(), client)
                .await
                .unwrap();
            server.send_to(b"noise", client).await.unwrap();
            answer.metadata.id = id;
            server
                .send_to(&answer.to_vec().unwrap(), client)
                .await
                .unwrap();
        };
        let (found, ()) = tokio::join!(
            ask(
                address,
                None,
                "web.default.svc.cluster.local.",
                RecordType::A
            ),
            answer
        );
        assert_eq!(found, Some(vec![IpAddr::from([10, 43, 0, 9])]));
    }
}

//! Cluster DNS: names of Services and pods from memory ([`zone`]), all others from the
//! machine's own resolvers (`forward`).

mod forward;
pub mod zone;

pub use zone::Zone;

use crate::Shared;
use crate::table::{Listen, Protocol};
use crate::{tcp, udp};
use forward::Upstreams;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::Name;
use parking_lot::RwLock;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use zone::Found;

/// TCP connections at once; further ones wait in the kernel.
const CONNECTIONS_MAX: usize = 64;
/// A connection without a query is closed after this.
const CONNECTION_IDLE: Duration = Duration::from_secs(10);
/// What answers over UDP may have without fragments (DNS flag day 2020).
const UDP_PAYLOAD_MAX: u16 = 1232;
/// And what every client takes (RFC 1035).
const UDP_PAYLOAD_MIN: u16 = 512;
/// The socket is tried again after this.
const BIND_AGAIN: Duration = Duration::from_secs(2);

/// How cluster DNS is served.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// Where, UDP and TCP.
    pub address: SocketAddr,
    /// The zone, usually `cluster.local`.
    pub domain: String,
    /// Who resolves other names; `None` for those of `/etc/resolv.conf`.
    pub upstreams: Option<Vec<SocketAddr>>,
}

struct Server {
    zone: Arc<RwLock<Zone>>,
    upstreams: Upstreams,
    turn: AtomicUsize,
}

/// Serves in the background; that it can't listen is among the failures until it can.
pub(crate) fn start(config: DnsConfig, zone: Arc<RwLock<Zone>>, shared: &Arc<Shared>) {
    let address = config.address;
    let server = Arc::new(Server {
        zone,
        upstreams: Upstreams::new(config.upstreams, address),
        turn: AtomicUsize::new(0),
    });
    let (bound, server2) = (shared.clone(), server.clone());
    shared.scope.spawn_cancellable(async move {
        let socket = bind_until(&bound, Protocol::Udp, address, || udp::bind(address)).await;
        serve_udp(Arc::new(socket), server2, &bound).await;
    });
    let bound = shared.clone();
    shared.scope.spawn_cancellable(async move {
        let listener = bind_until(&bound, Protocol::Tcp, address, || tcp::bind(address)).await;
        serve_tcp(listener, server, &bound).await;
    });
}

async fn bind_until<T>(
    shared: &Shared,
    protocol: Protocol,
    address: SocketAddr,
    bind: impl Fn() -> io::Result<T>,
) -> T {
    let listen = Listen { protocol, address };
    loop {
        match bind() {
            Ok(bound) => {
                shared.failures.clear(listen);
                return bound;
            }
            Err(error) => shared
                .failures
                .set(listen, "kube-system", "kube-dns", &error),
        }
        tokio::time::sleep(BIND_AGAIN).await;
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, server: Arc<Server>, shared: &Shared) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        // An error is about an answer that somebody did not take.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let packet = &buffer[..length];
        match server.answer(packet, false) {
            Answer::Bytes(bytes) => {
                let _ = socket.send_to(&bytes, client).await;
            }
            Answer::Drop => {}
            later => {
                let (socket, server) = (socket.clone(), server.clone());
                let packet = packet.to_vec();
                shared.scope.spawn_cancellable(async move {
                    if let Some(bytes) = server.finish(later, &packet, false).await {
                        let _ = socket.send_to(&bytes, client).await;
                    }
                });
            }
        }
    }
}

async fn serve_tcp(listener: TcpListener, server: Arc<Server>, shared: &Shared) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let server = server.clone();
        shared.scope.spawn_cancellable(async move {
            let _place = place;
            // A connection that fails is its client's affair.
            let _ = serve_stream(stream, &server).await;
        });
    }
}

async fn serve_stream(mut stream: TcpStream, server: &Server) -> io::Result<()> {
    loop {
        let read = async {
            let length = stream.read_u16().await?;
            let mut packet = vec![0; usize::from(length)];
            stream.read_exact(&mut packet).await?;
            io::Result::Ok(packet)
        };
        let packet = tokio::time::timeout(CONNECTION_IDLE, read).await??;
        let answer = server.answer(&packet, true);
        let Some(bytes) = server.finish(answer, &packet, true).await else {
            return Ok(());
        };
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        stream.write_u16(length).await?;
        stream.write_all(&bytes).await?;
    }
}

/// What a query gets.
enum Answer {
    Bytes(Vec<u8>),
    /// Whatever another resolver says.
    Forward,
    /// This, with what another resolver says of a name.
    Chase(Box<Message>, Name),
    Drop,
}

impl Server {
    fn answer(&self, packet: &[u8], tcp: bool) -> Answer {
        let Ok(query) = Message::from_vec(packet) else {
            return malformed(packet);
        };
        if query.metadata.message_type != MessageType::Query {
            return Answer::Drop;
        }
        let mut reply = reply_to(&query);
        let code = match (query.metadata.op_code, &query.queries[..]) {
            (OpCode::Query, [question]) => {
                let (name, kind) = (question.name(), question.query_type());
                let found = self.zone.read().lookup(name, kind);
                match found {
                    Found::NotOurs => return Answer::Forward,
                    Found::Alias(alias, target) => {
                        reply.add_answer(*alias);
                        return Answer::Chase(Box::new(reply), target);
                    }
                    Found::Records(mut records) => {
                        // Clients take the first: let it be another each time.
                        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                        let turn = turn % records.len().max(1);
                        records.rotate_left(turn);
                        reply.add_answers(records);
                        ResponseCode::NoError
                    }
                    Found::NoData(soa) => {
                        reply.add_authority(*soa);
                        ResponseCode::NoError
                    }
                    Found::NoName(soa) => {
                        reply.add_authority(*soa);
                        ResponseCode::NXDomain
                    }
                }
            }
            (OpCode::Query, _) => ResponseCode::FormErr,
            _ => ResponseCode::NotImp,
        };
        reply.metadata.authoritative = true;
        reply.metadata.response_code = code;
        encode(&reply, &query, tcp)
    }

    /// The rest of an answer that needs others.
    async fn finish(&self, answer: Answer, packet: &[u8], tcp: bool) -> Option<Vec<u8>> {
        match answer {
            Answer::Bytes(bytes) => Some(bytes),
            Answer::Drop => None,
            Answer::Forward => match self.upstreams.ask(packet, tcp).await {
                Some(bytes) => Some(bytes),
                None => {
                    let query = Message::from_vec(packet).ok()?;
                    let mut reply = reply_to(&query);
                    reply.metadata.response_code = ResponseCode::ServFail;
                    bytes_of(encode(&reply, &query, tcp))
                }
            },
            Answer::Chase(mut reply, target) => {
                let query = Message::from_vec(packet).ok()?;
                let kind = query.queries.first()?.query_type();
                let found = self.zone.read().lookup(&target, kind);
                match found {
                    Found::Records(records) => {
                        reply.add_answers(records);
                    }
                    Found::NotOurs => {
                        let mut asked = query.clone();
                        asked.queries[0].set_name(target);
                        let answer = match asked.to_vec() {
                            Ok(packet) => self.upstreams.ask(&packet, tcp).await,
                            Err(_) => None,
                        };
                        if let Some(Ok(more)) = answer.map(|bytes| Message::from_vec(&bytes)) {
                            reply.add_answers(more.answers);
                        }
                    }
                    Found::Alias(..) | Found::NoData(_) | Found::NoName(_) => {}
                }
                bytes_of(encode(&reply, &query, tcp))
            }
        }
    }
}

fn reply_to(query: &Message) -> Message {
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_queries(query.queries.iter().cloned());
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD_MAX);
        reply.set_edns(edns);
    }
    reply
}

fn encode(reply: &Message, query: &Message, tcp: bool) -> Answer {
    let Ok(bytes) = reply.to_vec() else {
        return Answer::Drop;
    };
    let max = match &query.edns {
        _ if tcp => u16::MAX,
        Some(edns) => edns.max_payload().clamp(UDP_PAYLOAD_MIN, UDP_PAYLOAD_MAX),
        None => UDP_PAYLOAD_MIN,
    };
    if bytes.len() <= usize::from(max) {
        return Answer::Bytes(bytes);
    }
    // The client asks again over TCP.
    let mut short = reply.clone();
    short.answers.clear();
    short.metadata.truncation = true;
    short.to_vec().map_or(Answer::Drop, Answer::Bytes)
}

fn bytes_of(answer: Answer) -> Option<Vec<u8>> {
    match answer {
        Answer::Bytes(bytes) => Some(bytes),
        _ => None,
    }
}

/// A packet that can't be read is answered if at least its identifier can.
fn malformed(packet: &[u8]) -> Answer {
    let [high, low, flags, ..] = packet else {
        return Answer::Drop;
    };
    if packet.len() < 12 || flags & 0x80 != 0 {
        return Answer::Drop;
    }
    let id = u16::from_be_bytes([*high, *low]);
    let reply = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
    reply.to_vec().map_or(Answer::Drop, Answer::Bytes)
}

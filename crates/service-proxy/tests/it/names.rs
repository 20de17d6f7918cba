//! Queries to the cluster DNS over real sockets.

use crate::{Fixture, NoLocalEndpoints, eventually, ip};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType, rdata};
use lifecycle::Scope;
use serde_json::json;
use service_proxy::dns::DnsConfig;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

async fn site() -> (Fixture, SocketAddr) {
    let fixture = Fixture::start_with(Arc::new(NoLocalEndpoints), |network| {
        Some(DnsConfig {
            address: SocketAddr::new(ip(network, 10), 5353),
            domain: "cluster.local".into(),
            upstreams: Some(vec![
                // Nobody is there; the next is asked.
                SocketAddr::new(ip(network, 11), 5353),
                SocketAddr::new(ip(network, 12), 5353),
            ]),
        })
    })
    .await;
    let address = fixture.address(10, 5353);
    (fixture, address)
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut query = Message::new(4711, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    query
}

async fn ask(address: SocketAddr, name: &str, kind: RecordType) -> Option<Message> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.ok()?;
    socket.connect(address).await.ok()?;
    socket.send(&query(name, kind).to_vec().ok()?).await.ok()?;
    let mut buffer = vec![0; 4096];
    let length = socket.recv(&mut buffer).await.ok()?;
    Message::from_vec(&buffer[..length]).ok()
}

async fn ask_tcp(address: SocketAddr, name: &str, kind: RecordType) -> Message {
    let mut stream = TcpStream::connect(address).await.expect("connect");
    let query = query(name, kind).to_vec().expect("a query");
    stream.write_u16(query.len() as u16).await.expect("write");
    stream.write_all(&query).await.expect("write");
    let length = stream.read_u16().await.expect("read");
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await.expect("read");
    Message::from_vec(&answer).expect("a message")
}

fn data(message: &Message) -> Vec<String> {
    message.answers.iter().map(|r| r.data.to_string()).collect()
}

/// A resolver that knows one address for every name.
async fn resolver(scope: &Scope, address: SocketAddr) {
    let socket = UdpSocket::bind(address).await.expect("bind");
    scope.spawn_cancellable(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let query = Message::from_vec(&buffer[..length]).expect("a query");
            let name = query.queries[0].name().clone();
            let mut answer = query.into_response();
            let address = RData::A(rdata::A(Ipv4Addr::new(192, 0, 2, 80)));
            answer.add_answer(Record::from_rdata(name, 60, address));
            let _ = socket
                .send_to(&answer.to_vec().expect("bytes"), client)
                .await;
        }
    });
}

#[tokio::test]
async fn services_have_names_as_soon_as_they_are_there() {
    let (fixture, dns) = site().await;
    let service = fixture.address(100, 8000);
    let name = "web.d.svc.cluster.local.";
    eventually(async || ask(dns, name, RecordType::A).await).await;
    let absent = ask(dns, name, RecordType::A).await.expect("an answer");
    assert_eq!(absent.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(absent.authorities.len(), 1);
    fixture.service("web", service, json!({}));
    let answer = eventually(async || {
        let answer = ask(dns, name, RecordType::A).await?;
        (!answer.answers.is_empty()).then_some(answer)
    })
    .await;
    assert_eq!(data(&answer), [service.ip().to_string()]);
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    assert_eq!(answer.metadata.id, 4711);
    let none = ask(dns, name, RecordType::AAAA).await.expect("an answer");
    assert_eq!(none.metadata.response_code, ResponseCode::NoError);
    assert_eq!((none.answers.len(), none.authorities.len()), (0, 1));
    assert_eq!(
        data(&ask_tcp(dns, name, RecordType::A).await),
        data(&answer)
    );
    fixture.scope.close().await;
}

#[tokio::test]
async fn many_endpoints_are_told_over_tcp() {
    let (fixture, dns) = site().await;
    let service = fixture.address(100, 8000);
    fixture.service(
        "db",
        service,
        json!({"clusterIP": "None", "clusterIPs": ["None"]}),
    );
    let endpoints: Vec<_> = (1..=60)
        .map(|host| (fixture.address(host, 9000), true))
        .collect();
    fixture.endpoints("db", "TCP", &endpoints);
    let name = "db.d.svc.cluster.local.";
    let short = eventually(async || {
        let answer = ask(dns, name, RecordType::A).await?;
        answer.metadata.truncation.then_some(answer)
    })
    .await;
    assert_eq!(short.answers.len(), 0);
    let answer = ask_tcp(dns, name, RecordType::A).await;
    let mut addresses: Vec<SocketAddr> = data(&answer)
        .iter()
        .map(|ip| SocketAddr::new(ip.parse().expect("an address"), 9000))
        .collect();
    addresses.sort();
    let expected: Vec<_> = endpoints.iter().map(|(address, _)| *address).collect();
    assert_eq!(addresses, expected);
    fixture.scope.close().await;
}

#[tokio::test]
async fn other_names_are_asked_of_others() {
    let (fixture, dns) = site().await;
    let failed = eventually(async || ask(dns, "example.org.", RecordType::A).await).await;
    assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
    let servers = Scope::new();
    resolver(&servers, fixture.address(12, 5353)).await;
    let answer = ask(dns, "example.org.", RecordType::A)
        .await
        .expect("an answer");
    assert_eq!(data(&answer), ["192.0.2.80"]);
    fixture.service(
        "away",
        fixture.address(100, 1),
        json!({"type": "ExternalName", "externalName": "example.org", "clusterIP": ""}),
    );
    let answer = eventually(async || {
        let answer = ask(dns, "away.d.svc.cluster.local.", RecordType::A).await?;
        (!answer.answers.is_empty()).then_some(answer)
    })
    .await;
    assert_eq!(data(&answer), ["example.org.", "192.0.2.80"]);
    servers.close().await;
    fixture.scope.close().await;
}

#[tokio::test]
async fn nonsense_is_answered_or_ignored() {
    let (_fixture, dns) = site().await;
    eventually(async || ask(dns, "x.", RecordType::A).await).await;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("bind");
    socket.connect(dns).await.expect("connect");
    for ignored in [&b""[..], b"short", &[0xff; 300]] {
        socket.send(ignored).await.expect("send");
    }
    let malformed = [0x12, 0x67, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0xff];
    socket.send(&malformed).await.expect("send");
    let mut buffer = vec![0; 512];
    let length = socket.recv(&mut buffer).await.expect("an answer");
    let answer = Message::from_vec(&buffer[..length]).expect("a message");
    assert_eq!(answer.metadata.id, 0x1267);
    assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
}

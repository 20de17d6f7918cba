//! Running sites over a NATS made of channels, in paused time.

use super::*;
use crate::link::LinkEnds;
use crate::member::Standing;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Carries envelopes between links; drops one in `loss` while that is not zero.
fn carry(ends: Vec<LinkEnds>, loss: watch::Receiver<u64>, scope: &Scope) {
    let ends: Vec<_> = ends
        .into_iter()
        .map(|e| (e.outgoing, e.incoming, e.subjects))
        .collect();
    let sinks: Vec<_> = ends.iter().map(|e| (e.1.clone(), e.2.clone())).collect();
    for (i, (mut outgoing, incoming, _)) in ends.into_iter().enumerate() {
        let (sinks, loss) = (sinks.clone(), loss.clone());
        scope.spawn_cancellable(async move {
            incoming.send(LinkEvent::Up(true)).await.ok();
            let mut count = 0;
            while let Some((subject, bytes)) = outgoing.recv().await {
                tokio::time::sleep(Duration::from_millis(1)).await;
                count += 1;
                let loss = *loss.borrow();
                if loss != 0 && count % loss == 0 {
                    continue;
                }
                let bytes = Bytes::from(bytes);
                for (j, (sink, subjects)) in sinks.iter().enumerate() {
                    if j != i && subjects.borrow().contains(&subject) {
                        sink.send(LinkEvent::Received(bytes.clone())).await.ok();
                    }
                }
            }
        });
    }
}

fn member(i: u8, token: Option<JoinToken>) -> Member {
    let config = MemberConfig {
        key: Arc::new(SiteKey::from_seed(&[i + 1; 32])),
        name: SiteName {
            name: format!("site-{i}"),
            region: "eu".into(),
            zone: String::new(),
        },
        timing: Timing::default(),
        root: (i == 0).then(|| SiteKey::from_seed(&[200; 32])),
        token,
        saved: Saved {
            incarnation: 1,
            ..Saved::default()
        },
        entropy: Entropy::seeded(i.into()),
        unix: Box::new(|| 1000),
    };
    Member::new(config).unwrap()
}

struct Sites {
    lattices: Vec<Lattice>,
    incoming: Vec<mpsc::Receiver<Incoming>>,
    loss: watch::Sender<u64>,
    /// The links'; the sites' own are its children.
    scope: Scope,
    scopes: Vec<Scope>,
}

async fn sites(count: u8) -> Sites {
    let scope = Scope::new();
    let mut hub = member(0, None);
    let token = hub.make_token(Duration::from_secs(60), 9).unwrap();
    let mut members = vec![hub];
    members.extend((1..count).map(|i| member(i, Some(token.clone()))));
    let (mut lattices, mut incoming, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    let mut scopes = Vec::new();
    for member in members {
        let (link, end) = Link::new();
        let own = scope.child();
        let (lattice, accepted) = Lattice::run(member, None, link, &own);
        scopes.push(own);
        lattices.push(lattice);
        incoming.push(accepted);
        ends.push(end);
    }
    let (loss, receiver) = watch::channel(0);
    carry(ends, receiver, &scope);
    for lattice in &lattices {
        lattice
            .wait_for(|v| {
                v.standing == Standing::Member && v.alive().count() == usize::from(count) - 1
            })
            .await;
    }
    Sites {
        lattices,
        incoming,
        loss,
        scope,
        scopes,
    }
}

/// Answers every stream with what was said on it, until the scope ends.
fn echo(mut incoming: mpsc::Receiver<Incoming>, scope: &Scope) {
    let inner = scope.clone();
    scope.spawn_cancellable(async move {
        while let Some(Incoming {
            stream, protocol, ..
        }) = incoming.recv().await
        {
            assert_eq!(protocol, "echo");
            inner.spawn_cancellable(async move {
                let (mut read, mut write) = tokio::io::split(stream);
                tokio::io::copy(&mut read, &mut write).await.ok();
                write.shutdown().await.ok();
                read
            });
        }
    });
}

#[tokio::test(start_paused = true)]
async fn values_reach_everybody() {
    let sites = sites(3).await;
    let value = Bytes::from_static(b"v");
    let published = sites.lattices[1].publish(vec![("k".into(), Some(value))]);
    published.await.unwrap();
    for i in [0, 2] {
        let view = sites.lattices[i]
            .wait_for(|v| {
                v.site("site-1")
                    .is_some_and(|s| s.entries.contains_key("k"))
            })
            .await;
        assert_eq!(view.site("site-1").unwrap().entries["k"], "v");
        assert!(view.site("site-1").unwrap().rtt.is_some());
    }
    sites.scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_body_of_megabytes_comes_back_though_envelopes_are_lost() {
    let mut sites = sites(2).await;
    echo(sites.incoming.remove(1), &sites.scope);
    sites.loss.send_replace(7);
    let body: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let stream = sites.lattices[0].open(sites.lattices[1].id(), "echo", None);
    let (mut read, mut write) = tokio::io::split(stream.await.unwrap());
    let sent = body.clone();
    let writer = sites.scope.spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
        write
    });
    let mut back = Vec::new();
    read.read_to_end(&mut back).await.unwrap();
    assert!(back == body);
    drop(writer.await.unwrap());
    sites.scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_site_is_named_at_the_deadline() {
    let mut sites = sites(3).await;
    echo(sites.incoming.remove(1), &sites.scope);
    let ids: Vec<_> = sites.lattices.iter().map(Lattice::id).collect();
    let deadline = Duration::from_millis(700);
    let body = Bytes::from_static(b"who");
    let asked = sites.lattices[0].gather(&ids[1..], "echo", &body, 100, deadline);
    let gathered = asked.await;
    assert_eq!(gathered.answers, [(ids[1], body.clone())]);
    assert_eq!(gathered.silent, [(ids[2], QueryError::Silent(deadline))]);
    let asked = sites.lattices[0].query(ids[1], "echo", body.clone(), 2, deadline);
    assert_eq!(asked.await, Err(QueryError::TooLong(2)));
    let nobody = SiteId([9; 16]);
    let asked = sites.lattices[0].query(nobody, "echo", body, 2, deadline);
    assert_eq!(asked.await, Err(QueryError::Open(OpenError::Unreachable)));
    sites.scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn dropping_a_stream_cancels_it_at_the_other_site() {
    let mut sites = sites(2).await;
    let stream = sites.lattices[0].open(sites.lattices[1].id(), "logs", None);
    let mut stream = stream.await.unwrap();
    stream.write_all(b"follow").await.unwrap();
    let taken = sites.incoming[1].recv().await.unwrap();
    assert_eq!(taken.from, sites.lattices[0].id());
    assert_eq!(taken.stream.next(99).await.unwrap(), "follow");
    drop(stream);
    let error = taken.stream.next(99).await.unwrap_err();
    assert_eq!(error, StreamError::Reset("not wanted any more".into()));
    sites.scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn leaving_is_seen_at_once() {
    let sites = sites(2).await;
    let before = Instant::now();
    sites.scopes[1].close().await;
    sites.lattices[0]
        .wait_for(|v| v.site("site-1").is_some_and(|s| s.state == SiteState::Left))
        .await;
    assert!(before.elapsed() < Duration::from_secs(1));
    assert_eq!(sites.lattices[1].approve("x").await, Err(HubError::Stopped));
    let id = sites.lattices[1].id();
    let opened = sites.lattices[0].open(id, "echo", None).await;
    assert_eq!(opened.unwrap_err(), OpenError::Unreachable);
    sites.scope.close().await;
}

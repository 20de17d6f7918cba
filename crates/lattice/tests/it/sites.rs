//! Sites that meet over a real nats-server.

use crate::nats::{Nats, Setup};
use bytes::Bytes;
use lattice::{
    Incoming, JoinToken, Lattice, LatticeConfig, LinkConfig, Role, SiteName, SiteState, Standing,
    Timing,
};
use lifecycle::Scope;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Long enough for the slowest machine; a test that waits this long has failed.
const DEADLINE: Duration = Duration::from_secs(60);

struct Site {
    lattice: Lattice,
    incoming: Option<mpsc::Receiver<Incoming>>,
    scope: Scope,
}

fn link(nats: &Nats) -> LinkConfig {
    LinkConfig {
        servers: vec![nats.url()],
        ..LinkConfig::default()
    }
}

async fn site(dir: &Path, name: &str, role: Role, link: LinkConfig) -> Site {
    let scope = Scope::new();
    let config = LatticeConfig {
        dir: dir.join(name),
        name: SiteName {
            name: name.into(),
            region: "eu".into(),
            zone: "eu-1".into(),
        },
        role,
        link,
        timing: Timing::default(),
    };
    let (lattice, incoming) = Lattice::start(config, &scope).await.unwrap();
    Site {
        lattice,
        incoming: Some(incoming),
        scope,
    }
}

async fn hub(dir: &Path, link: LinkConfig) -> (Site, JoinToken) {
    let hub = site(dir, "hub", Role::Hub, link).await;
    let token = hub.lattice.make_token(Duration::from_secs(600), 9);
    let token = token.await.unwrap();
    (hub, token)
}

fn member(token: &JoinToken) -> Role {
    Role::Member {
        token: Some(token.clone()),
    }
}

/// Waits until `site` sees another in a state.
async fn sees(site: &Site, other: &str, state: SiteState) {
    let seen = site
        .lattice
        .wait_for(|v| v.site(other).is_some_and(|s| s.state == state));
    tokio::time::timeout(DEADLINE, seen)
        .await
        .unwrap_or_else(|_| panic!("{other} is not {state:?}"));
}

/// Answers every question with itself.
fn echo(site: &mut Site) {
    let mut incoming = site.incoming.take().unwrap();
    let scope = site.scope.clone();
    site.scope.spawn_cancellable(async move {
        while let Some(Incoming { stream, .. }) = incoming.recv().await {
            scope.spawn_cancellable(async move {
                let (mut read, mut write) = tokio::io::split(stream);
                tokio::io::copy(&mut read, &mut write).await.ok();
                write.shutdown().await.ok();
                read
            });
        }
    });
}

async fn ask(from: &Site, to: &Site, body: Vec<u8>) -> Vec<u8> {
    let answer = from
        .lattice
        .query(to.lattice.id(), "echo", body.into(), 64 << 20, DEADLINE);
    answer.await.unwrap().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn sites_join_by_token_and_by_approval() {
    let dir = tempfile::tempdir().unwrap();
    let nats = Nats::start(&Setup::default());
    let (hub, token) = hub(dir.path(), link(&nats)).await;
    let mut shop = site(dir.path(), "shop-1", member(&token), link(&nats)).await;
    echo(&mut shop);
    sees(&hub, "shop-1", SiteState::Alive).await;
    sees(&shop, "hub", SiteState::Alive).await;
    let body: Vec<u8> = (0..5_000_000u32).map(|i| (i % 251) as u8).collect();
    assert!(ask(&hub, &shop, body.clone()).await == body);

    let late = site(
        dir.path(),
        "shop-2",
        Role::Member { token: None },
        link(&nats),
    )
    .await;
    hub.lattice.wait_for(|v| v.pending.len() == 1).await;
    assert_eq!(late.lattice.view().borrow().sites.len(), 0);
    hub.lattice.approve("shop-2").await.unwrap();
    sees(&late, "shop-1", SiteState::Alive).await;
    sees(&shop, "shop-2", SiteState::Alive).await;

    hub.lattice.revoke("shop-1").await.unwrap();
    let value = ("secret".to_owned(), Some(Bytes::from_static(b"x")));
    hub.lattice.publish(vec![value]).await.unwrap();
    late.lattice
        .wait_for(|v| v.site("hub").is_some_and(|s| !s.entries.is_empty()))
        .await;
    late.lattice.wait_for(|v| v.site("shop-1").is_none()).await;
    // It speaks up, and is told; of the value it never heard.
    shop.lattice.traffic(hub.lattice.id());
    let told = shop.lattice.wait_for(|v| {
        v.standing == Standing::Revoked || !v.site("hub").unwrap().entries.is_empty()
    });
    let told = tokio::time::timeout(DEADLINE, told).await.unwrap();
    assert_eq!(told.standing, Standing::Revoked);
    for site in [hub, shop, late] {
        site.scope.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_and_emptied_server_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut nats = Nats::start(&Setup::default());
    let (hub, token) = hub(dir.path(), link(&nats)).await;
    let mut shop = site(dir.path(), "shop-1", member(&token), link(&nats)).await;
    echo(&mut shop);
    sees(&hub, "shop-1", SiteState::Alive).await;
    // A body under way when the server dies comes back whole.
    let stream = hub
        .lattice
        .open(shop.lattice.id(), "echo", None)
        .await
        .unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let body: Vec<u8> = (0..3_000_000u32).map(|i| (i % 249) as u8).collect();
    let sent = body.clone();
    let (half, reached) = tokio::sync::oneshot::channel();
    let writer = hub.scope.spawn(async move {
        write.write_all(&sent[..1_000_000]).await.unwrap();
        half.send(()).unwrap();
        write.write_all(&sent[1_000_000..]).await.unwrap();
        write.shutdown().await.unwrap();
        write
    });
    let reader = hub.scope.spawn(async move {
        let mut back = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut read, &mut back)
            .await
            .unwrap();
        (back, read)
    });
    reached.await.unwrap();
    nats.kill();
    hub.lattice.wait_for(|v| !v.link).await;
    shop.lattice.wait_for(|v| !v.link).await;
    let value = ("k".to_owned(), Some(Bytes::from_static(b"while away")));
    shop.lattice.publish(vec![value]).await.unwrap();
    nats.restart();
    let (back, read) = tokio::time::timeout(DEADLINE, reader)
        .await
        .unwrap()
        .unwrap();
    assert!(back == body);
    drop((read, writer.await.unwrap()));
    let heard = hub.lattice.wait_for(|v| {
        v.site("shop-1")
            .is_some_and(|s| s.entries.contains_key("k"))
    });
    tokio::time::timeout(DEADLINE, heard).await.unwrap();
    sees(&hub, "shop-1", SiteState::Alive).await;
    for site in [hub, shop] {
        site.scope.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_site_is_a_member_still() {
    let dir = tempfile::tempdir().unwrap();
    let nats = Nats::start(&Setup::default());
    let (hub, token) = hub(dir.path(), link(&nats)).await;
    let shop = site(dir.path(), "shop-1", member(&token), link(&nats)).await;
    sees(&hub, "shop-1", SiteState::Alive).await;
    let id = shop.lattice.id();
    shop.scope.close().await;
    sees(&hub, "shop-1", SiteState::Left).await;
    hub.scope.close().await;
    // The hub comes back later, and nobody has a token any more.
    let shop = site(
        dir.path(),
        "shop-1",
        Role::Member { token: None },
        link(&nats),
    )
    .await;
    assert_eq!(shop.lattice.id(), id);
    assert_eq!(shop.lattice.view().borrow().standing, Standing::Member);
    let hub = site(dir.path(), "hub", Role::Hub, link(&nats)).await;
    sees(&hub, "shop-1", SiteState::Alive).await;
    sees(&shop, "hub", SiteState::Alive).await;
    for site in [hub, shop] {
        site.scope.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_node_carries_the_lattice_and_may_lose_its_hub() {
    let dir = tempfile::tempdir().unwrap();
    let mut cloud = Nats::start(&Setup::default());
    let edge = Nats::start(&Setup {
        leaf_of: Some(cloud.leaf_port),
        ..Setup::default()
    });
    let (hub, token) = hub(dir.path(), link(&cloud)).await;
    let mut first = site(dir.path(), "shop-1", member(&token), link(&edge)).await;
    echo(&mut first);
    let second = site(dir.path(), "shop-2", member(&token), link(&edge)).await;
    sees(&hub, "shop-1", SiteState::Alive).await;
    sees(&second, "shop-1", SiteState::Alive).await;
    sees(&second, "hub", SiteState::Alive).await;
    let body = vec![7; 500_000];
    assert!(ask(&hub, &first, body.clone()).await == body);
    // With the cloud gone the two shops go on with each other.
    cloud.kill();
    hub.lattice.wait_for(|v| !v.link).await;
    second.lattice.traffic(hub.lattice.id());
    sees(&second, "hub", SiteState::Gone).await;
    sees(&second, "shop-1", SiteState::Alive).await;
    assert!(ask(&second, &first, body.clone()).await == body);
    cloud.restart();
    sees(&hub, "shop-1", SiteState::Alive).await;
    sees(&second, "hub", SiteState::Alive).await;
    for site in [hub, first, second] {
        site.scope.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_passwords_and_nkeys() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = dir.path().join("nats.pem");
    let key = dir.path().join("nats.key");
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    // A published example of a user's nkey.
    let seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
    let public = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";
    let seed_file = dir.path().join("user.nk");
    std::fs::write(&seed_file, format!("{seed}\n")).unwrap();

    let nats = Nats::start(&Setup {
        tls: Some((certificate.clone(), key)),
        nkey: Some(public.into()),
        ..Setup::default()
    });
    let config = LinkConfig {
        servers: vec![format!("tls://127.0.0.1:{}", nats.port)],
        nkey: Some(seed_file),
        tls_ca: Some(certificate),
        ..LinkConfig::default()
    };
    let (hub, token) = hub(dir.path(), config.clone()).await;
    let shop = site(dir.path(), "shop-1", member(&token), config).await;
    sees(&hub, "shop-1", SiteState::Alive).await;
    hub.scope.close().await;
    shop.scope.close().await;

    let nats = Nats::start(&Setup {
        password: Some("tide".into()),
        ..Setup::default()
    });
    let with = |user: &str| LinkConfig {
        servers: vec![format!("nats://{user}@127.0.0.1:{}", nats.port)],
        ..LinkConfig::default()
    };
    let hub = site(dir.path(), "hub", Role::Hub, with("salp:tide")).await;
    let shop = site(
        dir.path(),
        "shop-1",
        Role::Member { token: None },
        with("salp:tide"),
    )
    .await;
    let barred = site(dir.path(), "shop-2", member(&token), with("salp:ebb")).await;
    sees(&hub, "shop-1", SiteState::Alive).await;
    assert!(!barred.lattice.view().borrow().link);
    for site in [hub, shop, barred] {
        site.scope.close().await;
    }
}

/// What comes of one site's TLS connection to another, at the other: who it is.
async fn shakes_hands(
    from: &Lattice,
    to: &Lattice,
    wanted: lattice::SiteId,
) -> Option<lattice::SiteId> {
    let client = TlsConnector::from(Arc::new(from.tls_client(wanted).unwrap()));
    let server = TlsAcceptor::from(Arc::new(to.tls_server().unwrap()));
    let (near, far) = tokio::io::duplex(16 * 1024);
    let name = rustls_pki_types::ServerName::try_from("site").unwrap();
    let (connected, accepted) = tokio::join!(client.connect(name, near), server.accept(far));
    let (connected, accepted) = (connected.ok(), accepted.ok()?);
    connected?;
    to.tls_peer(accepted.get_ref().1.peer_certificates())
}

#[tokio::test(flavor = "multi_thread")]
async fn members_speak_tls_by_their_keys_and_nobody_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let nats = Nats::start(&Setup::default());
    let (hub, token) = hub(dir.path(), link(&nats)).await;
    let shop = site(dir.path(), "shop", member(&token), link(&nats)).await;
    let late = site(
        dir.path(),
        "late",
        Role::Member { token: None },
        link(&nats),
    )
    .await;
    sees(&hub, "shop", SiteState::Alive).await;
    sees(&shop, "hub", SiteState::Alive).await;
    let (at_hub, at_shop) = (&hub.lattice, &shop.lattice);
    assert_eq!(
        shakes_hands(at_shop, at_hub, at_hub.id()).await,
        Some(at_shop.id())
    );
    assert_eq!(
        shakes_hands(at_hub, at_shop, at_shop.id()).await,
        Some(at_hub.id())
    );
    // Another site than was asked for.
    assert_eq!(shakes_hands(at_shop, at_hub, at_shop.id()).await, None);
    // One that nobody has admitted, either way.
    assert_eq!(shakes_hands(&late.lattice, at_hub, at_hub.id()).await, None);
    assert_eq!(
        shakes_hands(at_shop, &late.lattice, late.lattice.id()).await,
        None
    );
    // One that is revoked.
    at_hub.revoke("shop").await.unwrap();
    at_hub.wait_for(|v| v.site("shop").is_none()).await;
    assert_eq!(shakes_hands(at_shop, at_hub, at_hub.id()).await, None);
    for site in [hub, shop, late] {
        site.scope.close().await;
    }
}

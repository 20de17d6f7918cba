//! Two sites, each with an API server of its own, over a real nats-server: what one exports
//! the other imports, and connections arrive.
//!
//! nats-server is found in `$SALP_TOOLS/bin` or `target/tools/bin`; `cargo xtask tools
//! nats-server` fetches it.

#[allow(dead_code, reason = "shared with the lattice's own tests")]
#[path = "../../../lattice/tests/it/nats.rs"]
mod nats;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use client::Informers;
use client::informer::Kind;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use lattice::{Lattice, LatticeConfig, LinkConfig, Role, SiteName, SiteState, Timing};
use lifecycle::Scope;
use nats::{Nats, Setup};
use serde_json::{Value, json};
use sites::{CLUSTER_LABEL, ImportType, ServiceExport, ServiceImport};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use testkit::TestApi;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Nothing here takes as long, unless it never comes.
const NEVER: Duration = Duration::from_secs(60);

struct Site {
    client: kube::Client,
    informers: Informers,
    lattice: Lattice,
    scope: Scope,
    /// Of the Service that it exports: an address that this machine has.
    cluster_ip: Ipv4Addr,
    _api: TestApi,
    _dir: tempfile::TempDir,
}

impl Site {
    async fn start(name: &str, role: Role, nats: &Nats, direct: bool) -> Result<Self> {
        let cluster_ip = loopback(if name == "hub" { 97 } else { 98 });
        let api = TestApi::start_with(|config| {
            config.service_cidr.base = Ipv4Addr::new(127, 96, 0, 0);
            config.service_cidr.prefix = 12;
        })
        .await?;
        let dir = tempfile::tempdir()?;
        let scope = Scope::new();
        let client = api.client()?;
        let informers = Informers::new(client.clone(), &scope);
        let config = LatticeConfig {
            dir: dir.path().join("lattice"),
            name: SiteName {
                name: name.into(),
                region: String::new(),
                zone: String::new(),
            },
            role,
            link: LinkConfig {
                servers: vec![nats.url()],
                ..LinkConfig::default()
            },
            timing: Timing::default(),
        };
        let (lattice, incoming) = Lattice::start(config, &scope).await?;
        let fleet = dir.path().join("fleet.sock");
        sites::fleet::answers::serve(
            tokio::net::UnixListener::bind(&fleet)?,
            sites::fleet::answers::Config {
                client: client.clone(),
                informers: informers.clone(),
                answered: sites::fleet::allowed::Answered::All,
                executed: sites::fleet::allowed::Answered::Nothing,
                connect: std::sync::Arc::new(|| tokio::io::duplex(1).0),
            },
            &scope,
        );
        sites::start(
            sites::Config {
                informers: informers.clone(),
                lattice: lattice.clone(),
                incoming,
                fleet,
                direct: direct.then(listen).transpose()?,
                gates: Ipv4Addr::LOCALHOST.into(),
                gate_block: Some(if name == "hub" {
                    loopback(112)..=loopback(112)
                } else {
                    loopback(113)..=loopback(127)
                }),
                kept: None,
            },
            &scope,
        )?;
        Ok(Self {
            client,
            informers,
            lattice,
            scope,
            cluster_ip,
            _api: api,
            _dir: dir,
        })
    }

    async fn apply<K>(&self, name: &str, object: Value) -> Result<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), "default");
        let params = PatchParams::apply("test").force();
        Ok(api.patch(name, &params, &Patch::Apply(object)).await?)
    }

    async fn delete<K>(&self, name: &str) -> Result<()>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), "default");
        api.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// A Service with one endpoint.
    async fn serve(&self, port: i32, at: SocketAddr, ready: bool) -> Result<()> {
        let ip = self.cluster_ip.to_string();
        let endpoint = json!({"addresses": [at.ip().to_string()], "conditions": {"ready": ready}});
        self.serve_at(&ip, port, at.port(), json!([endpoint])).await
    }

    async fn serve_at(&self, ip: &str, port: i32, target: u16, endpoints: Value) -> Result<()> {
        self.apply::<Service>(
            "hello",
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hello"},
                "spec": {"clusterIP": ip, "ports": [{"name": "tcp", "port": port}]}}),
        )
        .await?;
        self.apply::<EndpointSlice>(
            "hello-1",
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": "hello-1", "labels": {"kubernetes.io/service-name": "hello"}},
                "addressType": "IPv4", "ports": [{"name": "tcp", "port": target}],
                "endpoints": endpoints}),
        )
        .await?;
        Ok(())
    }

    /// Where its Service answers.
    fn address(&self, port: u16) -> SocketAddr {
        (self.cluster_ip, port).into()
    }

    async fn export(&self) -> Result<()> {
        self.apply::<ServiceExport>(
            "hello",
            json!({"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
                "metadata": {"name": "hello"}, "spec": {"exportedLabels": {"team": "tide"}}}),
        )
        .await?;
        Ok(())
    }

    /// Waits until the objects of a kind are as wanted.
    async fn until<K: Kind, T>(
        &self,
        what: &str,
        mut look: impl FnMut(&[std::sync::Arc<K>]) -> Option<T>,
    ) -> Result<T> {
        let informer = self.informers.get::<K>();
        let mut changes = informer.subscribe();
        informer.synced().await;
        let wait = async {
            loop {
                if let Some(found) = look(&informer.list()) {
                    return Some(found);
                }
                changes.next().await?;
            }
        };
        match tokio::time::timeout(NEVER, wait).await {
            Ok(Some(found)) => Ok(found),
            _ => bail!("{what} never comes: {:?}", informer.list()),
        }
    }

    /// Waits until exactly these sites take requests to the import; where they do.
    async fn answered_by(&self, wanted: &[&str]) -> Result<Vec<u16>> {
        self.until::<EndpointSlice, _>(&format!("{wanted:?} answer"), |slices| {
            let mut ready = Vec::new();
            for slice in slices {
                let site = slice.metadata.labels.as_ref()?.get(CLUSTER_LABEL);
                let Some(site) = site else { continue };
                let takes = slice
                    .endpoints
                    .iter()
                    .flatten()
                    .any(|e| e.conditions.as_ref().is_some_and(|c| c.ready == Some(true)));
                if takes {
                    let ports = slice.ports.iter().flatten();
                    let port = ports.filter_map(|p| u16::try_from(p.port?).ok()).next()?;
                    ready.push((site.clone(), port));
                }
            }
            ready.sort();
            let names: Vec<&str> = ready.iter().map(|r| r.0.as_str()).collect();
            (names == wanted).then(|| ready.iter().map(|r| r.1).collect())
        })
        .await
    }
}

/// An address of this machine's that is this process's.
fn loopback(second: u8) -> Ipv4Addr {
    let [.., third, fourth] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, second, third, fourth)
}

/// A server that says its name, then what it is told until that ends.
async fn server(name: &'static str, at: SocketAddr, scope: &Scope) -> Result<SocketAddr> {
    let listener = TcpListener::bind(at).await?;
    let address = listener.local_addr()?;
    let inner = scope.clone();
    scope.spawn_cancellable(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            inner.spawn_cancellable(async move {
                let (mut read, mut write) = connection.split();
                write.write_all(name.as_bytes()).await.ok();
                tokio::io::copy(&mut read, &mut write).await.ok();
                write.shutdown().await.ok();
            });
        }
    });
    Ok(address)
}

/// What a port says when it is told something.
async fn tell(port: u16, body: &[u8]) -> Result<Vec<u8>> {
    tell_at((Ipv4Addr::LOCALHOST, port).into(), body).await
}

async fn tell_at(at: SocketAddr, body: &[u8]) -> Result<Vec<u8>> {
    let told = async {
        let connection = TcpStream::connect(at).await?;
        let (mut read, mut write) = connection.into_split();
        let mut answer = Vec::new();
        let (wrote, read) = tokio::join!(
            async {
                write.write_all(body).await?;
                write.shutdown().await
            },
            read.read_to_end(&mut answer)
        );
        wrote?;
        read?;
        anyhow::Ok(answer)
    };
    tokio::time::timeout(NEVER, told)
        .await
        .context("no answer")?
}

fn listen() -> Result<sites::Direct> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let addresses = vec![listener.local_addr()?.to_string()];
    Ok(sites::Direct {
        listener,
        addresses,
    })
}

async fn pair(nats: &Nats) -> Result<(Site, Site)> {
    pair_with(nats, false).await
}

async fn pair_with(nats: &Nats, direct: bool) -> Result<(Site, Site)> {
    let hub = Site::start("hub", Role::Hub, nats, direct).await?;
    let token = hub.lattice.make_token(NEVER, 1).await?;
    let role = Role::Member { token: Some(token) };
    let shop = Site::start("shop", role, nats, direct).await?;
    hub.lattice.wait_for(|v| v.alive().count() == 1).await;
    shop.lattice.wait_for(|v| v.alive().count() == 1).await;
    Ok((hub, shop))
}

fn reachable(import: &ServiceImport) -> Option<(String, String)> {
    let conditions = &import.status.conditions;
    let found = conditions.iter().find(|c| c.type_ == "Reachable")?;
    Some((found.status.clone(), found.message.clone()))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_imported_answered_and_covered_for() -> Result<()> {
    let nats = Nats::start(&Setup::default());
    let (hub, shop) = pair(&nats).await?;
    let (of_hub, of_shop) = (Scope::new(), Scope::new());
    let at_hub = server("hub:", hub.address(7000), &of_hub).await?;
    let at_shop = server("shop:", shop.address(7000), &of_shop).await?;

    // One site exports: the other has it, and its connections arrive.
    hub.serve(7000, at_hub, true).await?;
    hub.export().await?;
    shop.until::<ServiceImport, _>("the import", |imports| {
        let import = imports.first()?;
        assert_eq!(import.spec.type_, ImportType::ClusterSetIP);
        assert_eq!(import.spec.ports[0].port, 7000);
        assert_eq!(import.metadata.labels.as_ref()?.get("team")?, "tide");
        (import.status.clusters.first()?.cluster == "hub").then_some(())
    })
    .await?;
    let ports = shop.answered_by(&["hub"]).await?;
    assert_eq!(tell(ports[0], b"hi").await?, b"hub:hi");
    let body = vec![7; 2_000_000];
    assert_eq!(tell(ports[0], &body).await?.len(), body.len() + 4);

    // The other exports it as well, with another port: the older export decides, and both
    // are told; each site answers itself.
    shop.serve(7001, at_shop, true).await?;
    shop.export().await?;
    let own = shop.answered_by(&["shop"]).await?;
    assert_eq!(own, [at_shop.port()]);
    hub.answered_by(&["hub"]).await?;
    for site in [&hub, &shop] {
        site.until::<ServiceExport, _>("the conflict", |exports| {
            let conditions = &exports.first()?.status.conditions;
            let conflict = conditions.iter().find(|c| c.type_ == "Conflict")?;
            (conflict.status == "True" && conflict.reason == "PortConflict").then_some(())
        })
        .await?;
    }

    // Its pod goes: the hub covers; its pod returns: traffic comes home.
    shop.serve(7000, at_shop, false).await?;
    let ports = shop.answered_by(&["hub"]).await?;
    assert_eq!(tell(ports[0], b"!").await?, b"hub:!");
    shop.serve(7000, at_shop, true).await?;
    shop.answered_by(&["shop"]).await?;

    // The hub leaves: its slices go, and the import says since when.
    hub.scope.close().await;
    let (status, message) = shop
        .until::<ServiceImport, _>("the hub can't be reached", |imports| {
            let told = reachable(imports.first()?)?;
            (told.0 == "False").then_some(told)
        })
        .await?;
    assert_eq!(status, "False");
    assert!(
        message.starts_with("site hub can't be reached since 20"),
        "{message}"
    );
    shop.until::<EndpointSlice, _>("no slice of the hub", |slices| {
        let of_hub = slices.iter().any(|s| {
            let labels = s.metadata.labels.as_ref();
            labels
                .and_then(|l| l.get(CLUSTER_LABEL))
                .is_some_and(|c| c == "hub")
        });
        (!of_hub).then_some(())
    })
    .await?;
    shop.answered_by(&["shop"]).await?;
    shop.scope.close().await;
    Ok(())
}

/// Without an address for all, each endpoint that has a name is one here as well, where its
/// clients ask for it; the others of a site are one together.
#[tokio::test(flavor = "multi_thread")]
async fn endpoints_of_a_headless_service_are_at_their_true_port() -> Result<()> {
    let nats = Nats::start(&Setup::default());
    let (hub, shop) = pair(&nats).await?;
    let scope = Scope::new();
    let (one, other) = (loopback(97), loopback(99));
    let first = server("db-0:", (one, 7432).into(), &scope).await?;
    server("nameless:", (other, 7432).into(), &scope).await?;
    let endpoints = json!([
        {"addresses": [one.to_string()], "hostname": "db-0"}, {"addresses": [other.to_string()]},
    ]);
    hub.serve_at("None", 5432, first.port(), endpoints).await?;
    hub.export().await?;
    let named = async |site: &Site, wanted: &[&str]| {
        site.until::<EndpointSlice, _>(&format!("{wanted:?}"), |slices| {
            let mut found = Vec::new();
            for slice in slices {
                let labels = slice.metadata.labels.as_ref()?;
                if labels.get(CLUSTER_LABEL).is_none_or(|c| c != "hub") {
                    continue;
                }
                let port = u16::try_from(slice.ports.as_ref()?.first()?.port?).ok()?;
                for endpoint in slice.endpoints.iter().flatten() {
                    let ready = endpoint.conditions.as_ref()?.ready == Some(true);
                    let ip: Ipv4Addr = endpoint.addresses[0].parse().ok()?;
                    let host = endpoint.hostname.clone().unwrap_or_default();
                    if ready {
                        found.push((host, SocketAddr::from((ip, port))));
                    }
                }
            }
            found.sort();
            let names: Vec<&str> = found.iter().map(|(host, _)| host.as_str()).collect();
            (names == wanted).then_some(found)
        })
        .await
    };
    let found = named(&shop, &["", "db-0"]).await?;
    for (_, at) in &found {
        assert_eq!(at.port(), 7432, "{found:?}");
    }
    assert_ne!(found[0].1, found[1].1);
    for _ in 0..3 {
        assert_eq!(tell_at(found[1].1, b"hi").await?, b"db-0:hi");
    }
    // Any of the site's takes what is for the site.
    let mut said = std::collections::BTreeSet::new();
    for _ in 0..4 {
        said.insert(tell_at(found[0].1, b"").await?);
    }
    assert_eq!(said.len(), 2, "{said:?}");

    // One that is not ready has no address; who comes back has the same.
    let gone = json!([{"addresses": [other.to_string()]}]);
    hub.serve_at("None", 5432, 7432, gone).await?;
    let left = named(&shop, &[""]).await?;
    assert_eq!(left[0], found[0]);
    for site in [hub, shop] {
        site.scope.close().await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_exports_any_more_goes() -> Result<()> {
    let nats = Nats::start(&Setup::default());
    let (hub, shop) = pair(&nats).await?;
    let of_hub = Scope::new();
    let at_hub = server("hub:", hub.address(7000), &of_hub).await?;
    // An export without a Service says so.
    hub.export().await?;
    hub.until::<ServiceExport, _>("the missing Service is told", |exports| {
        let conditions = &exports.first()?.status.conditions;
        let valid = conditions.iter().find(|c| c.type_ == "Valid")?;
        (valid.status == "False" && valid.reason == "NoService").then_some(())
    })
    .await?;
    hub.serve(7000, at_hub, true).await?;
    let ports = shop.answered_by(&["hub"]).await?;
    assert_eq!(tell(ports[0], b"x").await?, b"hub:x");
    hub.delete::<ServiceExport>("hello").await?;
    shop.until::<ServiceImport, _>("no import", |imports| imports.is_empty().then_some(()))
        .await?;
    // What is not exported is not reached either.
    let stream = shop.lattice.open(hub.lattice.id(), "service", None).await?;
    let mut stream = stream;
    stream.write_all(b"default/hello/tcp\n").await?;
    let refused = stream.next(10).await.unwrap_err();
    assert!(
        refused.to_string().contains("the Service is not exported"),
        "{refused}"
    );
    for site in [hub, shop] {
        site.scope.close().await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn other_sites_answer_about_their_pods_and_nothing_else() -> Result<()> {
    let nats = Nats::start(&Setup::default());
    let (hub, shop) = pair(&nats).await?;
    let ask = async |path: &str| {
        let body = Bytes::from(format!("{path}\n"));
        let answer = shop.lattice.query(
            hub.lattice.id(),
            sites::fleet::PROTOCOL,
            body,
            1 << 20,
            NEVER,
        );
        let answer = answer.await?;
        sites::fleet::read_answer(&answer).context("no form")
    };
    let (status, kind, body) = ask("/api/v1/pods?limit=5").await?;
    assert_eq!((status, kind.as_str()), (200, "application/json"));
    let list: Value = serde_json::from_slice(&body)?;
    assert_eq!(list["kind"], "PodList");
    assert_eq!(ask("/api/v1/namespaces/default/pods/none").await?.0, 404);
    assert_eq!(ask("/api/v1/secrets").await?.0, 403);
    // A site that does not answer is named, at the deadline.
    hub.scope.close().await;
    shop.lattice
        .wait_for(|v| v.site("hub").is_some_and(|s| s.state == SiteState::Left))
        .await;
    let (asked, question) = ([hub.lattice.id()], Bytes::from_static(b"/api/v1/pods\n"));
    let deadline = Duration::from_secs(1);
    let protocol = sites::fleet::PROTOCOL;
    let silent = shop
        .lattice
        .gather(&asked, protocol, &question, 1 << 20, deadline);
    assert_eq!(silent.await.silent.len(), 1);
    shop.scope.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direct_route_needs_no_nats_and_ends_with_membership() -> Result<()> {
    let mut nats = Nats::start(&Setup::default());
    let (hub, shop) = pair_with(&nats, true).await?;
    let of_hub = Scope::new();
    let at_hub = server("hub:", hub.address(7000), &of_hub).await?;
    hub.serve(7000, at_hub, true).await?;
    hub.export().await?;
    let ports = shop.answered_by(&["hub"]).await?;
    assert_eq!(tell(ports[0], b"hi").await?, b"hub:hi");
    // Over NATS it can't go any more; any size does.
    nats.kill();
    // The route may still be on its way; what went over NATS until then stays there.
    while !matches!(
        tokio::time::timeout(Duration::from_secs(1), tell(ports[0], b"hi")).await,
        Ok(Ok(answer)) if answer == b"hub:hi"
    ) {}
    let body = vec![7; 5_000_000];
    assert_eq!(tell(ports[0], &body).await?.len(), body.len() + 4);
    // The lattice takes the hub for gone; what is reached is there.
    shop.lattice
        .wait_for(|v| v.site("hub").is_some_and(|s| s.state == SiteState::Gone))
        .await;
    assert_eq!(shop.answered_by(&["hub"]).await?, ports);
    assert_eq!(tell(ports[0], b"!").await?, b"hub:!");
    nats.restart();
    hub.lattice.wait_for(|v| v.alive().count() == 1).await;

    // Who is revoked is cut off in the middle of what it says.
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, ports[0])).await?;
    let mut answer = [0; 4];
    connection.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"hub:");
    hub.lattice.revoke("shop").await?;
    let ended = tokio::time::timeout(NEVER, connection.read(&mut answer)).await?;
    assert!(!ended.is_ok_and(|read| read > 0), "nothing more comes");
    for site in [hub, shop] {
        site.scope.close().await;
    }
    Ok(())
}

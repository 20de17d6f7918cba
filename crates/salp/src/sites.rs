//! The site's place in the lattice: started by `up`, asked by `salp sites` through a unix
//! socket that only this user can open.
//!
//! A question is a line of JSON ([`Question`]), the answer another ([`Answer`]).

use crate::config::{DirectSettings, LatticeSettings, Layout};
use ::sites::fleet;
use anyhow::{Context as _, Result};
use bytes::Bytes;
use client::Informers;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use lattice::{Lattice, LatticeConfig, SiteState, SiteStream, Standing, Timing, View};
use lifecycle::{Scope, Stack};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};

/// How long the lattice may take to say that it leaves.
const STOP_DEADLINE: Duration = Duration::from_secs(3);
/// The key under which a site tells what it is.
const ABOUT_KEY: &str = "site";
/// Between two tellings of the counts of nodes and pods, which are told when they change.
const ABOUT_EVERY: Duration = Duration::from_secs(5);
/// Pause after a failed accept.
const ACCEPT_AGAIN: Duration = Duration::from_millis(10);
/// Bytes passed on at once.
const CHUNK: usize = 64 * 1024;
/// Bytes of a question.
const QUESTION_MAX: u64 = 64 * 1024;

/// What `salp sites` asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Question {
    List,
    Approve {
        site: String,
    },
    Revoke {
        site: String,
    },
    Token {
        seconds: u64,
        uses: u32,
    },
    /// A path of another site's API, as `fleet` allows.
    Ask {
        site: String,
        path: String,
        milliseconds: u64,
    },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    Sites(Listing),
    Done(String),
    /// HTTP status and content type of another site's answer; its body follows as it comes,
    /// until the connection ends.
    Said {
        status: u16,
        kind: String,
    },
    Refused(String),
}

/// All that is known of the lattice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listing {
    pub lattice: Option<String>,
    /// Whether this site's link to NATS is up.
    pub connected: bool,
    pub hub: bool,
    pub epoch: u64,
    pub sites: Vec<Listed>,
}

/// One site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    pub name: String,
    pub id: String,
    pub region: String,
    pub zone: String,
    /// `Here`, `Alive`, `Suspect`, `Gone`, `Left`, `Pending`, `Joining`, `Revoked`.
    pub state: String,
    pub reason: Option<String>,
    /// In that state since, as time of day, by this site's clock.
    pub since: jiff::Timestamp,
    pub version: Option<String>,
    pub nodes: Option<u64>,
    pub pods: Option<u64>,
    pub exports: u64,
    pub round_trip_ms: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct About {
    version: String,
    nodes: u64,
    pods: u64,
}

/// Starts the lattice, the services of sites, and the socket.
pub async fn start(
    settings: &LatticeSettings,
    layout: &Layout,
    informers: Informers,
    node_ip: IpAddr,
    stack: &mut Stack,
) -> Result<()> {
    let scope = Scope::new();
    let direct = settings.direct.as_ref().map(|d| listen(d, node_ip));
    let config = LatticeConfig {
        dir: layout.lattice(),
        name: settings.name.clone(),
        role: settings.role.clone(),
        link: settings.link.clone(),
        timing: Timing::default(),
    };
    let (lattice, incoming) = Lattice::start(config, &scope)
        .await
        .context("join the lattice")?;
    ::sites::set_up(informers.client())
        .await
        .context("serve imports and exports")?;
    ::sites::start(
        ::sites::Config {
            fleet: layout.fleet_socket(),
            informers: informers.clone(),
            lattice: lattice.clone(),
            incoming,
            direct: direct.transpose()?,
        },
        &scope,
    )?;
    scope.spawn_cancellable(tell_about(lattice.clone(), informers.clone()));
    let path = layout.sites_socket();
    let _stale = std::fs::remove_file(&path);
    let listener =
        UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("restrict {}", path.display()))?;
    let accepting = scope.clone();
    let began = jiff::Timestamp::now();
    scope.spawn_cancellable(async move {
        loop {
            let (connection, _) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, for example: what is open now will be closed.
                    tracing::warn!(%error, "accept at the site's socket");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            let (lattice, informers) = (lattice.clone(), informers.clone());
            accepting.spawn_cancellable(async move {
                if let Err(error) = serve(connection, &lattice, &informers, began).await {
                    tracing::debug!(%error, "answer about sites");
                }
            });
        }
    });
    stack.push("lattice", STOP_DEADLINE, move || async move {
        scope.close().await
    });
    Ok(())
}

/// Listens for other sites.
fn listen(settings: &DirectSettings, node_ip: IpAddr) -> Result<::sites::Direct> {
    let address = settings.listen;
    let listener = TcpListener::bind(address).with_context(|| {
        format!("listen on {address}: choose another address with --lattice-listen, or off")
    })?;
    let mut bound = listener.local_addr().context("listen for other sites")?;
    if bound.ip().is_unspecified() {
        bound.set_ip(node_ip);
    }
    let addresses = match &settings.advertise[..] {
        [] => vec![bound.to_string()],
        told => told.to_vec(),
    };
    Ok(::sites::Direct {
        listener,
        addresses,
    })
}

async fn tell_about(lattice: Lattice, informers: Informers) {
    let (nodes, pods) = (informers.get::<Node>(), informers.get::<Pod>());
    let mut changes = futures::stream::select(
        nodes.subscribe().map(drop).boxed(),
        pods.subscribe().map(drop).boxed(),
    );
    nodes.synced().await;
    pods.synced().await;
    loop {
        let about = about(nodes.len(), pods.len());
        let value = serde_json::to_vec(&about).unwrap_or_default();
        // What is told already is not told again.
        let told = vec![(ABOUT_KEY.to_owned(), Some(Bytes::from(value)))];
        if let Err(error) = lattice.publish(told).await {
            tracing::warn!(%error, "tell of this site");
        }
        if changes.next().await.is_none() {
            return;
        }
        // A node that has just come is told at once; what changes often is not.
        if nodes.len() as u64 == about.nodes {
            tokio::time::sleep(ABOUT_EVERY).await;
        }
    }
}

fn about(nodes: usize, pods: usize) -> About {
    About {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        nodes: nodes as u64,
        pods: pods as u64,
    }
}

async fn serve(
    connection: UnixStream,
    lattice: &Lattice,
    informers: &Informers,
    began: jiff::Timestamp,
) -> Result<()> {
    let (mut read, mut write) = connection.into_split();
    let mut line = String::new();
    BufReader::new((&mut read).take(QUESTION_MAX))
        .read_line(&mut line)
        .await?;
    let answer = match serde_json::from_str(&line) {
        Ok(Question::Ask {
            site,
            path,
            milliseconds,
        }) => {
            let within = Duration::from_millis(milliseconds);
            match asked(lattice, &site, &path, within).await {
                Ok((head, stream)) => {
                    say(&mut write, &head).await?;
                    // Who asked may leave in the middle of what has no end.
                    let mut left = [0];
                    tokio::select! {
                        copied = copy(&stream, &mut write) => return copied,
                        _ = read.read(&mut left) => return Ok(()),
                    }
                }
                Err(refused) => refused,
            }
        }
        Ok(question) => answer(question, lattice, informers, began).await,
        Err(error) => Answer::Refused(format!("read question: {error}")),
    };
    say(&mut write, &answer).await
}

async fn say(write: &mut OwnedWriteHalf, answer: &Answer) -> Result<()> {
    let mut text = serde_json::to_vec(answer)?;
    text.push(b'\n');
    write.write_all(&text).await?;
    Ok(())
}

async fn copy(stream: &SiteStream, write: &mut OwnedWriteHalf) -> Result<()> {
    loop {
        let bytes = stream.next(CHUNK).await?;
        if bytes.is_empty() {
            return Ok(());
        }
        write.write_all(&bytes).await?;
    }
}

/// Asks another site; its answer's head, and the stream that the body comes by.
async fn asked(
    lattice: &Lattice,
    site: &str,
    path: &str,
    within: Duration,
) -> Result<(Answer, SiteStream), Answer> {
    let view = lattice.view().borrow().clone();
    let Some(seen) = view.site(site) else {
        let why = format!("find site {site}: no member has this name or id");
        return Err(Answer::Refused(why));
    };
    // Its end is noticed at once.
    lattice.traffic(seen.id);
    let question = Bytes::from(format!("{path}\n"));
    let ask = async {
        let stream = lattice.open(seen.id, fleet::PROTOCOL, Some(question));
        let stream = stream.await.map_err(|e| refused(&e))?;
        let head = fleet::read_head(&stream).await.map_err(|e| refused(&e))?;
        let (status, kind) = head;
        Ok((Answer::Said { status, kind }, stream))
    };
    let answer = tokio::time::timeout(within, ask).await;
    answer.unwrap_or_else(|_| {
        let why = format!("ask site {site}: no answer within {within:?}");
        Err(Answer::Refused(why))
    })
}

fn refused(error: &dyn std::error::Error) -> Answer {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    Answer::Refused(text)
}

async fn answer(
    question: Question,
    lattice: &Lattice,
    informers: &Informers,
    began: jiff::Timestamp,
) -> Answer {
    let view = lattice.view().borrow().clone();
    match question {
        Question::List => {
            let about = about(informers.get::<Node>().len(), informers.get::<Pod>().len());
            Answer::Sites(listing(&view, &about, began))
        }
        Question::Approve { site } => match lattice.approve(&site).await {
            Ok(_) => Answer::Done(format!("site {site} approved")),
            Err(error) => refused(&error),
        },
        Question::Revoke { site } => match lattice.revoke(&site).await {
            Ok(()) => Answer::Done(format!("site {site} revoked")),
            Err(error) => refused(&error),
        },
        Question::Token { seconds, uses } => {
            match lattice.make_token(Duration::from_secs(seconds), uses).await {
                Ok(token) => Answer::Done(token.to_text()),
                Err(error) => refused(&error),
            }
        }
        Question::Ask { .. } => Answer::Refused("ask site: its answer is a stream".to_owned()),
    }
}

fn listing(view: &View, own: &About, began: jiff::Timestamp) -> Listing {
    let at = |since: Duration| {
        let since = jiff::SignedDuration::try_from(since).unwrap_or_default();
        began.checked_add(since).unwrap_or(began)
    };
    let here = Listed {
        name: view.name.name.clone(),
        id: view.id.to_string(),
        region: view.name.region.clone(),
        zone: view.name.zone.clone(),
        state: match view.standing {
            Standing::Joining => "Joining",
            Standing::Member => "Here",
            Standing::Revoked => "Revoked",
        }
        .to_owned(),
        reason: (!view.link).then(|| "NATS can't be reached".to_owned()),
        since: began,
        version: Some(own.version.clone()),
        nodes: Some(own.nodes),
        pods: Some(own.pods),
        exports: 0,
        round_trip_ms: None,
    };
    let others = view.sites.iter().map(|site| {
        let about = site.entries.get(ABOUT_KEY);
        let about: Option<About> = about.and_then(|v| serde_json::from_slice(v).ok());
        Listed {
            name: site.name.name.clone(),
            id: site.id.to_string(),
            region: site.name.region.clone(),
            zone: site.name.zone.clone(),
            state: match site.state {
                SiteState::Alive => "Alive",
                SiteState::Suspect => "Suspect",
                SiteState::Gone => "Gone",
                SiteState::Left => "Left",
            }
            .to_owned(),
            reason: None,
            since: at(site.since),
            version: about.as_ref().map(|a| a.version.clone()),
            nodes: about.as_ref().map(|a| a.nodes),
            pods: about.as_ref().map(|a| a.pods),
            exports: ::sites::exports(&site.entries),
            round_trip_ms: site.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
        }
    });
    let pending = view.pending.iter().map(|site| Listed {
        name: site.name.name.clone(),
        id: site.id.to_string(),
        region: site.name.region.clone(),
        zone: site.name.zone.clone(),
        state: "Pending".to_owned(),
        reason: Some(site.reason.to_owned()),
        since: i64::try_from(site.since)
            .ok()
            .and_then(|s| jiff::Timestamp::from_second(s).ok())
            .unwrap_or(began),
        version: None,
        nodes: None,
        pods: None,
        exports: 0,
        round_trip_ms: None,
    });
    let mut others: Vec<Listed> = others.chain(pending).collect();
    others.sort_by(|a, b| a.name.cmp(&b.name));
    let mut sites = vec![here];
    sites.append(&mut others);
    Listing {
        lattice: view.lattice.map(|l| l.to_string()),
        connected: view.link,
        hub: view.hub,
        epoch: view.epoch,
        sites,
    }
}

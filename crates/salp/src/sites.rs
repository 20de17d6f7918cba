//! What is said about the site's place in the lattice at the data plane's socket, where the
//! lattice is (`sites_server`), and the control plane's end of it.
//!
//! A question is a line of JSON ([`Question`]), the answer another ([`Answer`]).

use crate::config::{LatticeSettings, Layout};
use anyhow::{Context as _, Result, bail};
use client::Informers;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use lifecycle::{Scope, Stack};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{
    AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::UnixStream;

/// How long a stop may take.
const STOP_DEADLINE: Duration = Duration::from_secs(1);
/// Between two tellings of the counts of nodes and pods, which are told when they change.
const ABOUT_EVERY: Duration = Duration::from_secs(5);
/// Pause before a data plane that has ended is told again.
const AGAIN: Duration = Duration::from_millis(50);

/// What is asked, first of all by `salp sites`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Question {
    /// What the site's lattice is to be, said by its control plane; further lines are [`About`].
    Follow(Option<Box<LatticeSettings>>),
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
    /// The same for a program's streams: after `Said` with 101, what both say goes on in the
    /// frames of the WebSocket subprotocol that is its `kind`.
    Exec {
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

/// What a site is, as it tells the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    pub version: String,
    pub nodes: u64,
    pub pods: u64,
}

/// Has the data plane be in the lattice that the settings name, or in none, now and whenever it
/// is started again; and tells it what the site is.
pub async fn follow(
    settings: Option<&LatticeSettings>,
    layout: &Layout,
    informers: &Informers,
    stack: &mut Stack,
) -> Result<()> {
    let path = layout.sites_socket();
    let connection = told(&path, settings).await?;
    let Some(settings) = settings.cloned() else {
        return Ok(());
    };
    let scope = Scope::new();
    scope.spawn_cancellable(keep_told(path, settings, informers.clone(), connection));
    stack.push("lattice", STOP_DEADLINE, move || async move {
        scope.close().await
    });
    Ok(())
}

/// Says what the lattice is to be; the connection, for what comes after.
async fn told(path: &Path, settings: Option<&LatticeSettings>) -> Result<UnixStream> {
    let asked = async {
        let mut connection = UnixStream::connect(path).await?;
        let question = Question::Follow(settings.cloned().map(Box::new));
        write_line(&mut connection, &question).await?;
        let mut line = String::new();
        // Nothing follows the answer.
        BufReader::new(&mut connection).read_line(&mut line).await?;
        let answer: Answer = serde_json::from_str(&line)?;
        anyhow::Ok((connection, answer))
    };
    match asked.await.context("tell the data plane of the lattice")? {
        (connection, Answer::Done(_)) => Ok(connection),
        (_, Answer::Refused(why)) => bail!("{why}"),
        (_, answer) => bail!("tell the data plane of the lattice: it answers {answer:?}"),
    }
}

async fn write_line(
    connection: &mut (impl AsyncWrite + Unpin),
    line: &impl Serialize,
) -> Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    connection.write_all(&text).await?;
    Ok(())
}

async fn keep_told(
    path: PathBuf,
    settings: LatticeSettings,
    informers: Informers,
    mut connection: UnixStream,
) {
    loop {
        if let Err(error) = tell_about(&mut connection, &informers).await {
            tracing::debug!(%error, "tell the data plane what the site is");
        }
        connection = loop {
            tokio::time::sleep(AGAIN).await;
            match told(&path, Some(&settings)).await {
                Ok(connection) => break connection,
                Err(error) => tracing::debug!("{error:#}"),
            }
        };
    }
}

/// Returns when the data plane has ended.
async fn tell_about(connection: &mut UnixStream, informers: &Informers) -> Result<()> {
    let (nodes, pods) = (informers.get::<Node>(), informers.get::<Pod>());
    let mut changes = futures::stream::select(
        nodes.subscribe().map(drop).boxed(),
        pods.subscribe().map(drop).boxed(),
    );
    nodes.synced().await;
    pods.synced().await;
    let mut told: Option<About> = None;
    let (mut read, mut write) = connection.split();
    let mut end = [0];
    let ended = read.read(&mut end);
    tokio::pin!(ended);
    loop {
        let about = About {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            nodes: nodes.len() as u64,
            pods: pods.len() as u64,
        };
        let same_nodes = told.as_ref().is_some_and(|t| t.nodes == about.nodes);
        if told.as_ref() != Some(&about) {
            write_line(&mut write, &about).await?;
            told = Some(about);
        }
        // A node that has just come is told at once; what changes often is not.
        let pause = if same_nodes {
            ABOUT_EVERY
        } else {
            Duration::ZERO
        };
        let changed = async {
            tokio::time::sleep(pause).await;
            if changes.next().await.is_none() {
                std::future::pending().await
            }
        };
        tokio::select! {
            _ = &mut ended => bail!("the data plane has ended"),
            () = changed => {}
        }
    }
}

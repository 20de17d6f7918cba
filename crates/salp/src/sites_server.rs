//! The site's place in the lattice, in the data plane: there it outlives the control plane, which
//! says by a unix socket that only this user can open what the lattice is to be, and may ask.
//!
//! A connection is for one question, whose answer it carries; the control plane's stays open,
//! and each further line of it says what the site is ([`About`]).

use crate::config::{DirectSettings, LatticeSettings};
use crate::sites::{About, Answer, Listed, Listing, Question};
use crate::{process, sites_gone};
use ::sites::fleet;
use anyhow::{Context as _, Result};
use bytes::Bytes;
use client::connect::Agent;
use lattice::{Lattice, SiteState, SiteStream, SiteView, Standing, View};
use lifecycle::Scope;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Mutex;

/// How long the lattice may take to say that it leaves.
const STOP_DEADLINE: Duration = Duration::from_secs(3);
/// The key under which a site tells what it is.
const ABOUT_KEY: &str = "site";
/// Pause after a failed accept.
const ACCEPT_AGAIN: Duration = Duration::from_millis(10);
/// Bytes passed on at once.
const CHUNK: usize = 64 * 1024;
/// Bytes of a question.
const QUESTION_MAX: u64 = 64 * 1024;

/// What the data plane must know to have a lattice when it is told to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    pub socket: PathBuf,
    /// Where the site's key and membership are.
    pub lattice: PathBuf,
    /// As whom imports and exports are made.
    pub kubeconfig: PathBuf,
    /// The socket where questions of other sites are answered.
    pub fleet: PathBuf,
    /// Where other sites reach this machine.
    pub node_ip: IpAddr,
    /// Where connections for other sites are taken.
    pub gates: IpAddr,
    /// First and last of the addresses that endpoints of other sites have here.
    #[serde(default)]
    pub gate_block: Option<(Ipv4Addr, Ipv4Addr)>,
    /// What the next data plane is to know of imports.
    pub kept: PathBuf,
}

/// Listens at the socket until the scope is cancelled.
pub fn start(config: Config, scope: &Scope) -> Result<Body> {
    let listener = process::listen_for_owner(&config.socket)?;
    let body = Body(Arc::new(Inner {
        config,
        part: Mutex::new(None),
    }));
    let (accepting, serving) = (scope.clone(), body.clone());
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
            let body = serving.clone();
            accepting.spawn_cancellable(async move {
                if let Err(error) = body.serve(connection).await {
                    tracing::debug!(%error, "answer about sites");
                }
            });
        }
    });
    Ok(body)
}

/// The site as a part of something larger, while it is.
#[derive(Clone)]
pub struct Body(Arc<Inner>);

struct Inner {
    config: Config,
    /// Held while it is being changed.
    part: Mutex<Option<Part>>,
}

/// What runs while the site is in a lattice.
#[derive(Clone)]
struct Part {
    settings: LatticeSettings,
    lattice: Lattice,
    scope: Scope,
    began: jiff::Timestamp,
    /// What the control plane said last.
    about: Arc<parking_lot::Mutex<Option<About>>>,
    /// What is known of sites that are gone.
    gone: sites_gone::Known,
}

impl Body {
    /// Leaves the lattice, for as long as nobody says otherwise.
    pub async fn leave(&self) {
        let part = self.0.part.lock().await.take();
        if let Some(part) = part {
            part.leave().await;
        }
    }

    /// Is in the lattice as these settings say, or in none. What is so already stays.
    async fn follow(&self, settings: Option<LatticeSettings>) -> Result<()> {
        let mut part = self.0.part.lock().await;
        match (&*part, &settings) {
            (None, None) => return Ok(()),
            (Some(part), Some(settings)) if part.is_as(settings) => return Ok(()),
            _ => {}
        }
        if let Some(part) = part.take() {
            part.leave().await;
        }
        match settings {
            Some(settings) => *part = Some(self.join(settings).await?),
            // What it imported is nobody's any more.
            None => drop(std::fs::remove_file(&self.0.config.kept)),
        }
        Ok(())
    }

    async fn join(&self, settings: LatticeSettings) -> Result<Part> {
        let config = &self.0.config;
        let scope = Scope::new();
        let started = join(config, &settings, &scope).await;
        let lattice = match started {
            Ok(lattice) => lattice,
            Err(error) => {
                scope.close().await;
                return Err(error);
            }
        };
        let began = jiff::Timestamp::now();
        let file = config.lattice.join("gone.json");
        let gone = sites_gone::Known::load(&file);
        scope.spawn_cancellable(sites_gone::run(
            lattice.clone(),
            gone.clone(),
            file,
            move |since| after(began, since).as_second(),
            about_of,
        ));
        Ok(Part {
            settings,
            lattice,
            scope,
            began,
            about: Arc::default(),
            gone,
        })
    }

    async fn part(&self) -> Option<Part> {
        self.0.part.lock().await.clone()
    }

    async fn serve(&self, connection: UnixStream) -> Result<()> {
        let (read, mut write) = connection.into_split();
        let mut read = BufReader::new(read);
        let question = match next_line(&mut read).await? {
            Some(line) => serde_json::from_str(&line),
            None => return Ok(()),
        };
        match question {
            Ok(Question::Follow(settings)) => {
                let answer = match self.follow(settings.map(|s| *s)).await {
                    Ok(()) => Answer::Done(String::new()),
                    Err(error) => Answer::Refused(format!("{error:#}")),
                };
                say(&mut write, &answer).await?;
                self.hear(&mut read).await
            }
            Ok(question) => match self.part().await {
                Some(part) => part.serve(question, &mut read, &mut write).await,
                None => {
                    let why = "ask about sites: this one is in no lattice; start it with --lattice";
                    say(&mut write, &Answer::Refused(why.to_owned())).await
                }
            },
            Err(error) => {
                let answer = Answer::Refused(format!("read question: {error}"));
                say(&mut write, &answer).await
            }
        }
    }

    /// Passes on what the control plane says of the site, until it ends.
    async fn hear(&self, read: &mut BufReader<OwnedReadHalf>) -> Result<()> {
        while let Some(line) = next_line(read).await? {
            let about: About = serde_json::from_str(&line).context("read what the site is")?;
            let Some(part) = self.part().await else {
                continue;
            };
            let value = serde_json::to_vec(&about).context("say what the site is")?;
            *part.about.lock() = Some(about);
            // What is told already is not told again.
            let told = vec![(ABOUT_KEY.to_owned(), Some(Bytes::from(value)))];
            if let Err(error) = part.lattice.publish(told).await {
                tracing::warn!(%error, "tell of this site");
            }
        }
        Ok(())
    }
}

async fn next_line(read: &mut BufReader<OwnedReadHalf>) -> Result<Option<String>> {
    let mut line = String::new();
    let length = read.take(QUESTION_MAX).read_line(&mut line).await?;
    Ok((length > 0).then_some(line))
}

async fn join(config: &Config, settings: &LatticeSettings, scope: &Scope) -> Result<Lattice> {
    let direct = settings.direct.as_ref();
    let direct = direct.map(|d| listen(d, config.node_ip)).transpose()?;
    let client = client::connect::from_kubeconfig_as(&config.kubeconfig, Agent("salp-sites"));
    let client = client.await.context("connect to API server")?;
    let (lattice, incoming) = Lattice::start(settings.config(config.lattice.clone())?, scope)
        .await
        .context("join the lattice")?;
    ::sites::start(
        ::sites::Config {
            informers: client::Informers::new(client, scope),
            fleet: config.fleet.clone(),
            lattice: lattice.clone(),
            incoming,
            direct,
            gates: config.gates,
            gate_block: config.gate_block.map(|(first, last)| first..=last),
            kept: Some(config.kept.clone()),
        },
        scope,
    )?;
    Ok(lattice)
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

impl Part {
    async fn leave(self) {
        if let Err(left) = self.scope.close_within(STOP_DEADLINE).await {
            tracing::error!(left, "leave the lattice: tasks still run");
        }
    }

    /// Whether nothing is to be done to follow these settings. Who is a member needs no token,
    /// whichever it is.
    fn is_as(&self, settings: &LatticeSettings) -> bool {
        if self.lattice.view().borrow().standing != Standing::Member {
            return self.settings == *settings;
        }
        let without = |settings: &LatticeSettings| LatticeSettings {
            token: None,
            ..settings.clone()
        };
        without(&self.settings) == without(settings)
    }

    async fn serve(
        &self,
        question: Question,
        read: &mut BufReader<OwnedReadHalf>,
        write: &mut OwnedWriteHalf,
    ) -> Result<()> {
        let answer = match question {
            Question::Ask {
                site,
                path,
                milliseconds,
            } => {
                let within = Duration::from_millis(milliseconds);
                match asked(&self.lattice, &site, &path, within, false).await {
                    Ok((head, stream)) => {
                        say(write, &head).await?;
                        // Who asked may leave in the middle of what has no end.
                        let mut left = [0];
                        tokio::select! {
                            copied = copy(&stream, write) => return copied,
                            _ = read.read(&mut left) => return Ok(()),
                        }
                    }
                    Err(refused) => refused,
                }
            }
            Question::Exec {
                site,
                path,
                milliseconds,
            } => {
                let within = Duration::from_millis(milliseconds);
                match asked(&self.lattice, &site, &path, within, true).await {
                    Ok((head, stream)) => {
                        say(write, &head).await?;
                        let (mut heard, mut told) = tokio::io::split(stream);
                        // Half of it is of no use to either end.
                        tokio::select! {
                            copied = tokio::io::copy(read, &mut told) => copied,
                            copied = tokio::io::copy(&mut heard, write) => copied,
                        }?;
                        return Ok(());
                    }
                    Err(refused) => refused,
                }
            }
            question => self.answer(question).await,
        };
        say(write, &answer).await
    }

    async fn answer(&self, question: Question) -> Answer {
        let lattice = &self.lattice;
        match question {
            Question::List => {
                let view = lattice.view().borrow().clone();
                let about = self.about.lock().clone();
                Answer::Sites(listing(&view, about.as_ref(), self.began, &self.gone))
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
            Question::Follow(_) | Question::Ask { .. } | Question::Exec { .. } => {
                Answer::Refused("ask about sites: this is no question of its own".to_owned())
            }
        }
    }
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

/// Asks another site; its answer's head, and the stream that the body comes by, and if `more`
/// is to be said goes by.
async fn asked(
    lattice: &Lattice,
    site: &str,
    path: &str,
    within: Duration,
    more: bool,
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
        let (all, first) = if more {
            (None, question)
        } else {
            (Some(question), Bytes::new())
        };
        let stream = lattice.open(seen.id, fleet::PROTOCOL, all);
        let mut stream = stream.await.map_err(|e| refused(&e))?;
        let asked = stream.write_all(&first).await;
        asked.map_err(|e| refused(&e))?;
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

/// The time of day of a time since the start.
fn after(began: jiff::Timestamp, since: Duration) -> jiff::Timestamp {
    let since = jiff::SignedDuration::try_from(since).unwrap_or_default();
    began.checked_add(since).unwrap_or(began)
}

/// What a site says of itself.
fn about_of(site: &SiteView) -> Option<About> {
    serde_json::from_slice(site.entries.get(ABOUT_KEY)?).ok()
}

fn listing(
    view: &View,
    own: Option<&About>,
    began: jiff::Timestamp,
    gone: &sites_gone::Known,
) -> Listing {
    let at = |since| after(began, since);
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
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        nodes: own.map(|a| a.nodes),
        pods: own.map(|a| a.pods),
        exports: 0,
        round_trip_ms: None,
    };
    let others = view.sites.iter().map(|site| {
        let is_gone = matches!(site.state, SiteState::Gone | SiteState::Left);
        // Of one that was not heard since this one has started others know more.
        let unheard = !sites_gone::was_heard(site);
        let word = gone.word(view, site.id).filter(|_| unheard || is_gone);
        let word_since = word.as_ref().filter(|_| is_gone);
        let word_since = word_since.and_then(|w| jiff::Timestamp::from_second(w.since).ok());
        let earlier = jiff::SignedDuration::try_from(site.earlier).unwrap_or_default();
        let since = at(site.since).checked_sub(earlier).unwrap_or(began);
        let known = word.as_ref().filter(|_| unheard);
        let about = about_of(site).or_else(|| known?.about.clone());
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
            since: word_since.map_or(since, |word| word.min(since)),
            version: about.as_ref().map(|a| a.version.clone()),
            nodes: about.as_ref().map(|a| a.nodes),
            pods: about.as_ref().map(|a| a.pods),
            exports: known.map_or_else(|| ::sites::exports(&site.entries), |word| word.exports),
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

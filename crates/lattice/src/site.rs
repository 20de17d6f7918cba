//! A running member: the task that owns the [`Member`], the link and the clock, and the
//! handle by which everything else speaks to it.

use crate::crypto::Entropy;
use crate::hub::HubError;
use crate::identity::{KeyError, SiteId, SiteKey};
use crate::link::{Link, LinkConfig, LinkError, LinkEvent};
use crate::member::{Input, Member, MemberConfig, Output, View};
use crate::membership::{SiteState, Timing};
use crate::mux::{Incoming, SiteStream};
use crate::saved::Saved;
use crate::state::PublishError;
use crate::streams::StreamError;
use crate::trust::{JoinToken, SiteName};
use crate::wire::DecodeError;
use bytes::{Bytes, BytesMut};
use futures::stream::{FuturesUnordered, StreamExt as _};
use lifecycle::Scope;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// Commands that wait; who gives a further one waits.
const COMMANDS_MAX: usize = 256;
/// Streams that others have opened and nobody has taken; further ones are cancelled.
const INCOMING_MAX: usize = 256;
/// Envelopes taken in before what follows from them goes out.
const BATCH: usize = 64;
/// How long a changed view waits for further changes, for each site in it: to make one of a
/// thousand sites for each of a thousand answers would take all there is.
const SHOW_PAUSE: Duration = Duration::from_micros(50);
/// How long certificates of others wait for further ones before they are written down, and as
/// long again for each hundred in the file. What is lost of them is asked for again.
const REMEMBER_PAUSE: Duration = Duration::from_secs(1);
/// How long a hub waits for further ones before it writes down whom it has admitted, and as
/// long again for each hundred in the file.
const ADMITTED_PAUSE: Duration = Duration::from_millis(50);

/// A site's place in the lattice.
#[derive(Clone, Debug)]
pub enum Role {
    /// It holds the lattice's root key, made at its first start, and admits the others.
    Hub,
    /// It joins: at once with a token, else when it is approved at the hub.
    Member {
        /// The token.
        token: Option<JoinToken>,
    },
}

/// What a site's lattice works with.
#[derive(Clone, Debug)]
pub struct LatticeConfig {
    /// Where keys and membership are kept; made if it is not there.
    pub dir: PathBuf,
    /// The site's name and place.
    pub name: SiteName,
    /// Its place in the lattice.
    pub role: Role,
    /// How NATS is reached.
    pub link: LinkConfig,
    /// How often and how long.
    pub timing: Timing,
}

/// Why a site has no lattice.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum StartError {
    #[error("name site {0}: a name, region or zone is lower-case letters, digits and hyphens")]
    Name(String),
    #[error("make directory {}", path.display())]
    Dir {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("load the site's key")]
    Key(#[source] KeyError),
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("read {}: move it away to join anew", path.display())]
    Saved { path: PathBuf, source: DecodeError },
    #[error("write {}", path.display())]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("connect to the lattice")]
    Link(#[source] LinkError),
}

/// Why a stream can't be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum OpenError {
    #[error("reach site: it is no member, or can't be reached now")]
    Unreachable,
    #[error("reach site: the lattice has stopped")]
    Stopped,
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum QueryError {
    #[error("ask site")]
    Open(#[from] OpenError),
    #[error("ask site")]
    Stream(#[from] StreamError),
    #[error("ask site: no answer within {0:?}")]
    Silent(Duration),
    #[error("ask site: its answer is longer than {0} bytes")]
    TooLong(usize),
}

/// What several sites have answered.
#[derive(Debug, Default)]
pub struct Gathered {
    /// The answers.
    pub answers: Vec<(SiteId, Bytes)>,
    /// Who gave none, and why.
    pub silent: Vec<(SiteId, QueryError)>,
}

/// The lattice, for everything else in the process. Clones speak to the same.
#[derive(Clone, Debug)]
pub struct Lattice {
    id: SiteId,
    key: Arc<SiteKey>,
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<Arc<View>>,
    started: Instant,
}

#[derive(Debug)]
enum Command {
    Publish(
        Vec<(String, Option<Bytes>)>,
        oneshot::Sender<Result<(), PublishError>>,
    ),
    Open(
        SiteId,
        String,
        Option<Bytes>,
        oneshot::Sender<Option<SiteStream>>,
    ),
    Traffic(SiteId),
    Measure(SiteId),
    Approve(String, oneshot::Sender<Result<SiteId, HubError>>),
    Revoke(String, oneshot::Sender<Result<(), HubError>>),
    Token(Duration, u32, oneshot::Sender<Result<JoinToken, HubError>>),
}

impl Lattice {
    /// Starts; it joins, or is a member again, when NATS can be reached. Streams that others
    /// open come out of the receiver. It leaves when the scope is closed.
    ///
    /// # Errors
    /// When the configuration or the files are wrong. That NATS can't be reached is none.
    pub async fn start(
        config: LatticeConfig,
        scope: &Scope,
    ) -> Result<(Self, mpsc::Receiver<Incoming>), StartError> {
        let (member, saved_path) = load(&config)?;
        let link = Link::nats(&config.link, scope)
            .await
            .map_err(StartError::Link)?;
        Ok(Self::run(member, Some(saved_path), link, scope))
    }

    pub(crate) fn run(
        member: Member,
        saved: Option<PathBuf>,
        link: Link,
        scope: &Scope,
    ) -> (Self, mpsc::Receiver<Incoming>) {
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let (view_sender, view) = watch::channel(Arc::new(member.view()));
        let (incoming, accepted) = mpsc::channel(INCOMING_MAX);
        let started = Instant::now();
        let (id, key) = (member.id(), member.key());
        let task = Task {
            member,
            saved,
            link,
            commands: receiver,
            view: view_sender,
            incoming,
            started,
            shown: started,
            show_at: None,
            save_at: None,
        };
        scope.spawn(task.run(scope.token().clone()));
        let lattice = Self {
            id,
            key,
            commands,
            view,
            started,
        };
        (lattice, accepted)
    }

    /// This site's id.
    pub fn id(&self) -> SiteId {
        self.id
    }

    pub(crate) fn key(&self) -> Arc<SiteKey> {
        Arc::clone(&self.key)
    }

    /// The lattice as it is seen from here, as it changes.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// When the times in a view were counted from.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Sets values that all other sites shall know, or takes them away.
    ///
    /// # Errors
    /// When one is too large or there are too many; the others are set.
    pub async fn publish(&self, values: Vec<(String, Option<Bytes>)>) -> Result<(), PublishError> {
        self.command(|done| Command::Publish(values, done))
            .await
            .unwrap_or(Ok(()))
    }

    /// Opens a stream to a site; `body`, if there is one, is all that is said on it.
    ///
    /// # Errors
    /// When the site is no member or is gone.
    pub async fn open(
        &self,
        site: SiteId,
        protocol: &str,
        body: Option<Bytes>,
    ) -> Result<SiteStream, OpenError> {
        let protocol = protocol.to_owned();
        self.command(|done| Command::Open(site, protocol, body, done))
            .await
            .ok_or(OpenError::Stopped)?
            .ok_or(OpenError::Unreachable)
    }

    /// Says that there is traffic to a site: for some seconds its end is noticed at once.
    pub fn traffic(&self, site: SiteId) {
        // When the queue is full the next request says it again.
        let _ = self.commands.try_send(Command::Traffic(site));
    }

    /// Has the round trip to a site measured that is not known yet. The view shows it.
    pub fn measure(&self, site: SiteId) {
        // When the queue is full it stays unknown until it is asked for again.
        let _ = self.commands.try_send(Command::Measure(site));
    }

    /// Asks one site and waits for the whole answer.
    ///
    /// # Errors
    /// When there is none in time, or it is longer than `max`.
    pub async fn query(
        &self,
        site: SiteId,
        protocol: &str,
        body: Bytes,
        max: usize,
        deadline: Duration,
    ) -> Result<Bytes, QueryError> {
        let ask = async {
            let mut rest = body;
            // What does not fit into the window at once is written as it moves.
            let at_once = (rest.len() <= crate::WINDOW).then(|| std::mem::take(&mut rest));
            let stream = self.open(site, protocol, at_once).await?;
            let (_, answer) =
                futures::try_join!(write_all(&stream, &rest), read_all(&stream, max))?;
            Ok(answer)
        };
        let answer = tokio::time::timeout(deadline, ask).await;
        answer.unwrap_or(Err(QueryError::Silent(deadline)))
    }

    /// Asks several sites at once; whoever has not answered by the deadline is named.
    pub async fn gather(
        &self,
        sites: &[SiteId],
        protocol: &str,
        body: &Bytes,
        max: usize,
        deadline: Duration,
    ) -> Gathered {
        let asked = sites.iter().map(|site| async move {
            let answer = self.query(*site, protocol, body.clone(), max, deadline);
            (*site, answer.await)
        });
        let mut asked: FuturesUnordered<_> = asked.collect();
        let mut gathered = Gathered::default();
        while let Some((site, answer)) = asked.next().await {
            match answer {
                Ok(answer) => gathered.answers.push((site, answer)),
                Err(e) => gathered.silent.push((site, e)),
            }
        }
        gathered
    }

    /// At the hub: admits a site that waits, by name or id.
    ///
    /// # Errors
    /// When this is no hub, or no such site waits.
    pub async fn approve(&self, site: &str) -> Result<SiteId, HubError> {
        let site = site.to_owned();
        self.command(|done| Command::Approve(site, done))
            .await
            .unwrap_or(Err(HubError::Stopped))
    }

    /// At the hub: takes a member out, by name or id, for good.
    ///
    /// # Errors
    /// When this is no hub, or there is no such member.
    pub async fn revoke(&self, site: &str) -> Result<(), HubError> {
        let site = site.to_owned();
        self.command(|done| Command::Revoke(site, done))
            .await
            .unwrap_or(Err(HubError::Stopped))
    }

    /// At the hub: a token by which `uses` sites may join for as long as it lives.
    ///
    /// # Errors
    /// When this is no hub, or too many tokens live.
    pub async fn make_token(&self, ttl: Duration, uses: u32) -> Result<JoinToken, HubError> {
        self.command(|done| Command::Token(ttl, uses, done))
            .await
            .unwrap_or(Err(HubError::Stopped))
    }

    /// Returns when a site is as wanted, or the lattice has stopped. Cancel-safe.
    pub async fn wait_for(&self, wanted: impl FnMut(&Arc<View>) -> bool) -> Arc<View> {
        let mut view = self.view.clone();
        match view.wait_for(wanted).await {
            Ok(view) => Arc::clone(&view),
            Err(_) => Arc::clone(&self.view.borrow()),
        }
    }

    async fn command<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (done, answer) = oneshot::channel();
        self.commands.send(make(done)).await.ok()?;
        answer.await.ok()
    }
}

impl View {
    /// A site by its name or id.
    pub fn site(&self, name: &str) -> Option<&crate::SiteView> {
        let named = |s: &&crate::SiteView| s.name.name == name || s.id.to_string() == name;
        self.sites.iter().find(named)
    }

    /// Members that answer.
    pub fn alive(&self) -> impl Iterator<Item = &crate::SiteView> {
        self.sites.iter().filter(|s| s.state == SiteState::Alive)
    }
}

async fn write_all(stream: &SiteStream, mut bytes: &[u8]) -> Result<(), QueryError> {
    if bytes.is_empty() {
        return Ok(());
    }
    while !bytes.is_empty() {
        let written = stream.write(bytes).await?;
        bytes = &bytes[written..];
    }
    stream.finish_now();
    Ok(())
}

async fn read_all(stream: &SiteStream, max: usize) -> Result<Bytes, QueryError> {
    let mut answer = BytesMut::new();
    loop {
        let bytes = stream.next(64 * 1024).await?;
        if bytes.is_empty() {
            return Ok(answer.freeze());
        }
        if answer.len() + bytes.len() > max {
            return Err(QueryError::TooLong(max));
        }
        answer.extend_from_slice(&bytes);
    }
}

/// Reads what the site has written down, and counts its start.
fn load(config: &LatticeConfig) -> Result<(Member, PathBuf), StartError> {
    if !config.name.is_valid() {
        return Err(StartError::Name(config.name.name.clone()));
    }
    let dir = &config.dir;
    make_dir(dir).map_err(|source| StartError::Dir {
        path: dir.clone(),
        source,
    })?;
    let mut entropy = Entropy::system();
    let key = SiteKey::load_or_create(&dir.join("site.key"), entropy.bytes());
    let key = key.map_err(StartError::Key)?;
    let root = match &config.role {
        Role::Hub => {
            let root = SiteKey::load_or_create(&dir.join("root.key"), entropy.bytes());
            Some(root.map_err(StartError::Key)?)
        }
        Role::Member { .. } => None,
    };
    let token = match &config.role {
        Role::Member { token } => token.clone(),
        Role::Hub => None,
    };
    let path = dir.join("membership");
    let mut saved = match std::fs::read(&path) {
        Ok(bytes) => Saved::decode(&bytes).map_err(|source| StartError::Saved {
            path: path.clone(),
            source,
        })?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Saved::default(),
        Err(source) => return Err(StartError::Read { path, source }),
    };
    let unix = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap_or_default().as_secs()
    };
    // A count that was lost with the file, or is that of an old copy, is made good by the
    // clock; by what others know where that is wrong.
    let lost = saved.incarnation == 0;
    saved.incarnation = (saved.incarnation + 1).max(unix());
    if lost {
        saved.incarnation = crate::member::recounted(saved.incarnation, &mut entropy);
    }
    let member = Member::new(MemberConfig {
        key: Arc::new(key),
        name: config.name.clone(),
        timing: config.timing,
        root,
        token,
        saved,
        entropy,
        unix: Box::new(unix),
    });
    let member = member.map_err(|source| StartError::Saved {
        path: path.clone(),
        source,
    })?;
    // Before anything is sent: a count that was used must never be used again.
    write(&member, &path)?;
    Ok((member, path))
}

fn make_dir(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}

fn write(member: &Member, path: &Path) -> Result<(), StartError> {
    crate::files::write(path, &member.saved().encode()).map_err(|source| StartError::Write {
        path: path.to_owned(),
        source,
    })
}

struct Task {
    member: Member,
    /// Where it is written down; nowhere in tests.
    saved: Option<PathBuf>,
    link: Link,
    commands: mpsc::Receiver<Command>,
    view: watch::Sender<Arc<View>>,
    incoming: mpsc::Sender<Incoming>,
    started: Instant,
    /// When the view was last made.
    shown: Instant,
    /// When a changed one is to be made.
    show_at: Option<Instant>,
    /// When the file is to be written again.
    save_at: Option<Instant>,
}

impl Task {
    async fn run(mut self, token: lifecycle::CancellationToken) {
        let dirty = self.member.dirty();
        self.link.subjects.send_replace(self.member.subjects());
        loop {
            let next = self.member.next().map(|at| self.started + at);
            let next = [next, self.show_at, self.save_at];
            let next = next.into_iter().flatten().min();
            let sleep = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let mut outputs;
            tokio::select! {
                () = token.cancelled() => break,
                Some(command) = self.commands.recv() => {
                    outputs = self.command(command);
                }
                event = self.link.incoming.recv() => {
                    let Some(event) = event else { break };
                    outputs = self.event(event);
                    for _ in 1..BATCH {
                        let Ok(event) = self.link.incoming.try_recv() else { break };
                        outputs.extend(self.event(event));
                    }
                }
                () = dirty.wait() => outputs = self.step(Input::Tick),
                () = sleep => outputs = self.step(Input::Tick),
            }
            self.act(outputs);
        }
        let outputs = self.step(Input::Leave);
        self.act(outputs);
        if self.save_at.is_some() {
            self.save();
        }
    }

    fn step(&mut self, input: Input) -> Vec<Output> {
        self.member.step(self.started.elapsed(), input)
    }

    fn event(&mut self, event: LinkEvent) -> Vec<Output> {
        self.step(match event {
            LinkEvent::Up(up) => Input::Link(up),
            LinkEvent::Received(bytes) => Input::Received(bytes),
        })
    }

    fn command(&mut self, command: Command) -> Vec<Output> {
        let now = self.started.elapsed();
        // Nobody may wait for the answer any more.
        match command {
            Command::Publish(values, done) => {
                let _ = done.send(self.member.publish(now, values));
            }
            Command::Open(site, protocol, body, done) => {
                let stream = self.member.open(now, site, &protocol);
                if let (Some(stream), Some(body)) = (&stream, body) {
                    // A body is at most a window.
                    let _ = stream.write_now(&body);
                    stream.finish_now();
                }
                let _ = done.send(stream);
            }
            Command::Traffic(site) => return self.step(Input::Traffic(site)),
            Command::Measure(site) => return self.step(Input::Measure(site)),
            Command::Approve(site, done) => {
                let _ = done.send(self.member.approve(now, &site));
            }
            Command::Revoke(site, done) => {
                let _ = done.send(self.member.revoke(now, &site));
            }
            Command::Token(ttl, uses, done) => {
                let _ = done.send(self.member.make_token(ttl, uses));
            }
        }
        self.step(Input::Tick)
    }

    fn act(&mut self, outputs: Vec<Output>) {
        let (mut changed, mut save, mut remember) = (false, false, None);
        // First what is listened to: the answers to what is said must not be missed.
        if outputs
            .iter()
            .any(|o| matches!(o, Output::Changed | Output::Save))
        {
            let subjects = self.member.subjects();
            self.link.subjects.send_if_modified(|now| {
                let differs = *now != subjects;
                *now = subjects;
                differs
            });
        }
        for output in outputs {
            match output {
                Output::Publish { subject, bytes } => {
                    // Full: it is lost, as it may be on its way.
                    let _ = self.link.outgoing.try_send((subject, bytes));
                }
                Output::Changed => changed = true,
                Output::Save => save = true,
                Output::Remember => {
                    remember.get_or_insert(REMEMBER_PAUSE);
                }
                Output::Admitted => remember = Some(ADMITTED_PAUSE),
                Output::Incoming(incoming) => {
                    // Full: dropping it cancels it.
                    let _ = self.incoming.try_send(incoming);
                }
            }
        }
        let now = Instant::now();
        if changed || save || remember.is_some() {
            let sites = u32::try_from(self.member.known()).unwrap_or(u32::MAX);
            let show_at = self.shown + SHOW_PAUSE * sites;
            self.show_at.get_or_insert(show_at);
        }
        if save {
            self.save_at = Some(now);
        } else if let Some(pause) = remember {
            let known = u32::try_from(self.member.known()).unwrap_or(u32::MAX);
            let at = now + pause * (1 + known / 100);
            self.save_at = Some(self.save_at.map_or(at, |sooner| sooner.min(at)));
        }
        if self.save_at.is_some_and(|at| at <= now) {
            self.save();
        }
        if self.show_at.is_some_and(|at| at <= now) {
            self.show_at = None;
            self.shown = now;
            self.view.send_replace(Arc::new(self.member.view()));
        }
    }

    fn save(&mut self) {
        self.save_at = None;
        if let Some(path) = &self.saved
            // A few kilobytes, when members come and go: not worth a thread.
            && let Err(e) = write(&self.member, path)
        {
            tracing::error!(error = %e, "membership is not on disk");
        }
    }
}

#[cfg(test)]
mod tests;

//! Other sites, for the commands: which there are, what runs there, and a client of each,
//! whose requests go through the running site's socket and the lattice. Only what
//! `sites::fleet` lets others ask can be read so.

use crate::api_access::{Access, connect, kubeconfig_path};
use crate::cli::Target;
use crate::config::Layout;
use crate::readings::Which;
use crate::sites::{Answer, Listing, Question};
use ::sites::fleet::processes::Processes;
use ::sites::fleet::{parse_head, wire};
use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{Request, Response, Uri, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use kube::client::Body;
use serde_json::Value;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

/// Bytes read at once of what another site says.
const CHUNK: usize = 64 * 1024;

/// Bytes of a refusal that are read.
const REFUSAL_MAX: u64 = 64 * 1024;
/// How much longer than another site the one that asks it may take.
const ASKED_WITHIN: Duration = Duration::from_secs(1);

/// Which sites a command is about.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct SiteArgs {
    /// All sites of the lattice.
    #[arg(long)]
    pub sites: bool,
    /// Only these sites.
    #[arg(
        long = "site",
        value_name = "NAME",
        value_delimiter = ',',
        conflicts_with = "sites"
    )]
    pub site: Vec<String>,
    /// How long a site may take to answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    pub deadline: f64,
}

/// One site.
pub struct Member {
    pub name: String,
    /// How to ask it, or why it can't be asked.
    pub access: Result<Access, String>,
    way: Way,
}

/// Where a site's list of processes is asked for.
#[derive(Clone, Debug)]
enum Way {
    /// It is this one: at its own socket.
    Here(PathBuf),
    /// By this site's.
    There(PathBuf),
}

/// Why nothing is known of a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// It does not answer.
    Silent(String),
    /// What it answered instead.
    Said(String),
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent(why) => write!(f, "silent: {why}"),
            Self::Said(text) => f.write_str(text),
        }
    }
}

impl Unknown {
    fn silent(error: impl fmt::Display) -> Self {
        Self::Silent(format!("{error:#}"))
    }
}

impl Member {
    /// What runs at the site; none, if it is of a version that has no such list.
    pub async fn processes(
        &self,
        which: &Which,
        within: Duration,
    ) -> Result<Option<Processes>, Unknown> {
        if let Err(why) = &self.access {
            return Err(Unknown::Silent(why.clone()));
        }
        let asked = tokio::time::timeout(within, self.ask_processes(which, within)).await;
        asked.unwrap_or_else(|_| Err(Unknown::Silent(format!("no answer within {within:?}"))))
    }

    async fn ask_processes(
        &self,
        which: &Which,
        within: Duration,
    ) -> Result<Option<Processes>, Unknown> {
        let path = which.processes_path();
        let (status, kind, rest) = match &self.way {
            Way::Here(socket) => match ask_here(socket, &path).await {
                Ok(answer) => answer,
                // The running site is older than this command.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(Unknown::silent(error)),
            },
            Way::There(socket) => {
                let question = Question::Ask {
                    site: self.name.clone(),
                    path,
                    milliseconds: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
                };
                let answer = ask(socket, &question).await;
                match answer.map_err(Unknown::silent)? {
                    (Answer::Said { status, kind }, rest) => (status, kind, rest),
                    (Answer::Refused(why), _) => return Err(Unknown::Silent(why)),
                    _ => return Err(Unknown::silent("the running site answers something else")),
                }
            }
        };
        let mut body = Vec::new();
        let read = rest.take(wire::LIST_MAX).read_to_end(&mut body).await;
        read.map_err(Unknown::silent)?;
        told(status, &kind, &body)
    }
}

/// Reads an answer to the question for processes.
fn told(status: u16, kind: &str, body: &[u8]) -> Result<Option<Processes>, Unknown> {
    if status == 200 && kind == wire::KIND {
        let list = wire::decode(body);
        let list = list.map_err(|e| Unknown::Silent(format!("read its answer: {e}")))?;
        return Ok(Some(list));
    }
    if let Ok(said) = serde_json::from_slice::<Value>(body)
        && let Some(message) = said["message"].as_str()
    {
        return Err(Unknown::Said(plain(message)));
    }
    // Who knows no such question says in a plain text that it may not be asked.
    if matches!(status, 403 | 404) {
        return Ok(None);
    }
    Err(Unknown::Silent(plain(String::from_utf8_lossy(body).trim())))
}

/// What another site says, without what a terminal would obey.
fn plain(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Asks this site in its owner's name; status, content type, and the body yet to be read.
async fn ask_here(
    socket: &Path,
    path: &str,
) -> std::io::Result<(u16, String, BufReader<UnixStream>)> {
    let connection = UnixStream::connect(socket).await?;
    let mut connection = BufReader::with_capacity(CHUNK, connection);
    connection
        .write_all(format!("own\n{path}\n").as_bytes())
        .await?;
    let mut line = String::new();
    connection.read_line(&mut line).await?;
    let head = parse_head(line.trim_end());
    let (status, kind) = head.ok_or(std::io::ErrorKind::InvalidData)?;
    Ok((status, kind, connection))
}

impl SiteArgs {
    /// Whether the command is about more than the site that it is given to.
    pub fn any(&self) -> bool {
        self.sites || !self.site.is_empty()
    }

    /// How long a site may take.
    pub fn within(&self) -> Result<Duration> {
        if !(self.deadline.is_finite() && self.deadline > 0.0) {
            bail!(
                "read --deadline {}: want more than 0 seconds",
                self.deadline
            );
        }
        Ok(Duration::from_secs_f64(self.deadline))
    }

    /// The sites, this one first.
    pub async fn members(&self, target: &Target) -> Result<Vec<Member>> {
        let layout = layout(target)?;
        let socket = layout.sites_socket();
        let local = connect(target).await?;
        let listing = match ask(&socket, &Question::List).await?.0 {
            Answer::Sites(listing) => listing,
            Answer::Refused(why) => bail!("{why}"),
            _ => bail!("list sites: the running site answers something else"),
        };
        let members = members(
            listing,
            [&socket, &layout.fleet_socket()],
            &local,
            self.within()?,
        );
        for name in &self.site {
            if members.iter().all(|m| m.name != *name) {
                bail!("find site {name}: no member has this name; see `salp sites`");
            }
        }
        let wanted = |m: &Member| self.site.is_empty() || self.site.contains(&m.name);
        Ok(members.into_iter().filter(wanted).collect())
    }
}

/// One site by its name.
pub async fn site(target: &Target, name: &str, within: Duration) -> Result<Access> {
    let args = SiteArgs {
        site: vec![name.to_owned()],
        deadline: within.as_secs_f64(),
        ..SiteArgs::default()
    };
    match args.members(target).await?.pop().map(|m| m.access) {
        Some(Ok(access)) => Ok(access),
        Some(Err(why)) => bail!("ask site {name}: {why}"),
        None => bail!("find site {name}: no member has this name; see `salp sites`"),
    }
}

/// A program's streams at another site, and the subprotocol of their WebSocket; `None` if the
/// site of this name is the one that is asked itself.
pub async fn exec(
    target: &Target,
    site: &str,
    path: String,
    within: Duration,
) -> Result<Option<(BufReader<UnixStream>, String)>> {
    let args = SiteArgs {
        site: vec![site.to_owned()],
        deadline: within.as_secs_f64(),
        ..SiteArgs::default()
    };
    let member = args.members(target).await?.pop();
    let member = member.with_context(|| format!("find site {site}: see `salp sites`"))?;
    if let Err(why) = member.access {
        bail!("ask site {site}: {why}");
    }
    let Way::There(socket) = member.way else {
        return Ok(None);
    };
    let question = Question::Exec {
        site: site.to_owned(),
        path,
        milliseconds: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
    };
    let asked = tokio::time::timeout(within + ASKED_WITHIN, ask(&socket, &question)).await;
    let asked = asked.with_context(|| format!("ask site {site}: no answer within {within:?}"))?;
    match asked? {
        (Answer::Said { status: 101, kind }, rest) => Ok(Some((rest, kind))),
        (Answer::Said { .. }, rest) => {
            let mut body = Vec::new();
            let mut rest = rest.take(REFUSAL_MAX);
            let read = tokio::time::timeout(within, rest.read_to_end(&mut body)).await;
            read.with_context(|| format!("ask site {site}: no answer within {within:?}"))?
                .with_context(|| format!("read the answer of site {site}"))?;
            let said = serde_json::from_slice::<Value>(&body).ok();
            let said = said.and_then(|status| Some(status["message"].as_str()?.to_owned()));
            let said = said.unwrap_or_else(|| String::from_utf8_lossy(&body).trim().to_owned());
            bail!("site {site}: {}", plain(&said))
        }
        (Answer::Refused(why), _) => bail!("{why}"),
        _ => bail!("ask site {site}: the running site answers something else"),
    }
}

fn members(
    listing: Listing,
    [socket, here]: [&Path; 2],
    local: &Access,
    within: Duration,
) -> Vec<Member> {
    let now = jiff::Timestamp::now();
    listing
        .sites
        .into_iter()
        .filter_map(|seen| {
            let access = match seen.state.as_str() {
                "Here" | "Joining" | "Revoked" => Ok(local.clone()),
                "Alive" | "Suspect" => Ok(Access {
                    client: client(socket, &seen.name, within),
                    namespace: local.namespace.clone(),
                }),
                // No member yet.
                "Pending" => return None,
                state => {
                    let since = now.as_second() - seen.since.as_second();
                    let since = crate::output::age(since);
                    let pods = match seen.pods {
                        None => String::new(),
                        Some(1) => ", and had 1 pod then".to_owned(),
                        Some(pods) => format!(", and had {pods} pods then"),
                    };
                    Err(format!(
                        "it is {} since {since}{pods}",
                        state.to_lowercase()
                    ))
                }
            };
            let name = seen.name;
            let way = if access.is_ok() && matches!(seen.state.as_str(), "Alive" | "Suspect") {
                Way::There(socket.to_owned())
            } else {
                Way::Here(here.to_owned())
            };
            Some(Member { name, access, way })
        })
        .collect()
}

/// Where the site that a command is given to has its sockets.
fn layout(target: &Target) -> Result<Layout> {
    let kubeconfig = kubeconfig_path(target)?;
    let root = kubeconfig.parent().unwrap_or(Path::new("."));
    Ok(Layout::new(root))
}

/// Asks the running site; what follows the answer is left in the connection.
async fn ask(socket: &Path, question: &Question) -> Result<(Answer, BufReader<UnixStream>)> {
    let connection = UnixStream::connect(socket).await.with_context(|| {
        format!(
            "ask the site at {}: it does not run on this machine, or without --lattice",
            socket.display()
        )
    })?;
    let mut connection = BufReader::with_capacity(CHUNK, connection);
    let mut text = serde_json::to_vec(question).context("ask the site")?;
    text.push(b'\n');
    connection.write_all(&text).await.context("ask the site")?;
    let mut line = String::new();
    let read = connection.read_line(&mut line).await;
    read.context("read the site's answer")?;
    let answer = serde_json::from_str(&line).context("read the site's answer")?;
    Ok((answer, connection))
}

/// A client of another site's API.
fn client(socket: &Path, site: &str, within: Duration) -> kube::Client {
    let (socket, site) = (socket.to_owned(), site.to_owned());
    let service = tower::service_fn(move |request: Request<Body>| {
        let (socket, site) = (socket.clone(), site.clone());
        let asked = (request.method() == http::Method::GET).then(|| request.uri().clone());
        async move { forward(&socket, site, within, asked).await }
    });
    client::connect::from_service(service)
}

type Streamed = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;

async fn forward(
    socket: &Path,
    site: String,
    within: Duration,
    asked: Option<Uri>,
) -> Result<Response<Streamed>, tower::BoxError> {
    let Some(asked) = asked else {
        return Err(format!("ask site {site}: other sites are only read").into());
    };
    let path = asked.path_and_query();
    let question = Question::Ask {
        site: site.clone(),
        path: path.map_or("/", |p| p.as_str()).to_owned(),
        milliseconds: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
    };
    let asked = tokio::time::timeout(within, ask(socket, &question)).await;
    let (answer, rest) = asked.map_err(|_| format!("ask site {site}: no answer"))??;
    let Answer::Said { status, kind } = answer else {
        let Answer::Refused(why) = answer else {
            return Err("ask site: the running site answers something else".into());
        };
        return Err(why.into());
    };
    let chunks = futures::stream::try_unfold(rest, async |mut rest| {
        let mut chunk = vec![0; CHUNK];
        let read = rest.read(&mut chunk).await?;
        chunk.truncate(read);
        let frame = Frame::data(Bytes::from(chunk));
        Ok::<_, std::io::Error>((read > 0).then_some((frame, rest)))
    });
    let response = Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, kind)
        .body(StreamBody::new(chunks).boxed_unsync())?;
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_list_a_refusal_or_of_an_older_version() {
        let list = wire::encode(Processes::default()).unwrap();
        assert_eq!(told(200, wire::KIND, &list), Ok(Some(Processes::default())));
        let cut = told(200, wire::KIND, &list[..5]).unwrap_err();
        assert!(
            cut.to_string().starts_with("silent: read its answer"),
            "{cut}"
        );
        // As sites said it that knew no list of processes.
        let old = told(403, "text/plain", b"other sites may not ask this\n");
        assert_eq!(old, Ok(None));
        let refused = br#"{"kind":"Status","message":"does not answer questions","code":403}"#;
        assert_eq!(
            told(403, "application/json", refused),
            Err(Unknown::Said("does not answer questions".to_owned()))
        );
        let down = told(503, "text/plain", b"its control plane is down\n").unwrap_err();
        assert_eq!(down.to_string(), "silent: its control plane is down");
    }
}

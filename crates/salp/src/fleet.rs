//! Other sites, for the commands: which there are, and a client of each, whose requests go
//! through the running site's socket and the lattice. Only what `sites::fleet` lets others
//! ask can be read so.

use crate::api_access::{Access, connect, kubeconfig_path};
use crate::cli::Target;
use crate::sites::{Answer, Listing, Question};
use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{Request, Response, Uri, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use kube::client::Body;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

/// Bytes read at once of what another site says.
const CHUNK: usize = 64 * 1024;

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
        let socket = socket(target)?;
        let local = connect(target).await?;
        let listing = match ask(&socket, &Question::List).await?.0 {
            Answer::Sites(listing) => listing,
            Answer::Refused(why) => bail!("{why}"),
            _ => bail!("list sites: the running site answers something else"),
        };
        let members = members(listing, &socket, &local, self.within()?);
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

fn members(listing: Listing, socket: &Path, local: &Access, within: Duration) -> Vec<Member> {
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
                    Err(format!("it is {} since {since}", state.to_lowercase()))
                }
            };
            let name = seen.name;
            Some(Member { name, access })
        })
        .collect()
}

/// The socket of the site that a command is given to.
fn socket(target: &Target) -> Result<PathBuf> {
    let kubeconfig = kubeconfig_path(target)?;
    let root = kubeconfig.parent().unwrap_or(Path::new("."));
    Ok(crate::config::Layout::new(root).sites_socket())
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

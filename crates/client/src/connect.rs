//! Making a `kube::Client`.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::HeaderValue;
use http::header::USER_AGENT;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use lifecycle::CancellationToken;
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tower::ServiceExt as _;

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig can't be read or has no usable context.
    #[error("read kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// TLS could not be set up from it.
    #[error("set up client")]
    Client(#[source] kube::Error),
}

/// A client from a kubeconfig file, its current context, over HTTPS.
///
/// # Errors
/// When the file is unreadable or its certificates are.
pub async fn from_kubeconfig(path: &Path) -> Result<kube::Client, ConnectError> {
    from_kubeconfig_as(path, Agent::default()).await
}

/// The same for a program that calls itself `agent`.
///
/// It follows the file: what it says later, such as a renewed certificate, is used for requests
/// that are made from then on. Those under way, watches too, go on as they were made.
///
/// # Errors
/// As [`from_kubeconfig`].
pub async fn from_kubeconfig_as(path: &Path, agent: Agent) -> Result<kube::Client, ConnectError> {
    follow(path, agent, LOOK).await
}

async fn follow(path: &Path, agent: Agent, look: Duration) -> Result<kube::Client, ConnectError> {
    let stamp = Stamp::of(path);
    let servers = read(path, agent).await?;
    let namespace = servers[0].client.default_namespace().to_owned();
    let follower = Arc::new(Follower {
        path: path.to_owned(),
        agent,
        look,
        known: Mutex::new(Known {
            servers,
            current: 0,
            stamp,
            looked: Instant::now(),
        }),
    });
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let follower = follower.clone();
        async move { follower.send(request).await }
    });
    Ok(kube::Client::new(service, namespace))
}

/// The extension of a kubeconfig's cluster that lists all servers of a site: `servers`, URLs.
/// Who knows it goes on to the next when one does not answer.
pub const SERVERS: &str = "salp.dev/servers";
/// How long one of several servers may take to be connected to.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How long one of several servers may take to begin its answer.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// One API server.
#[derive(Clone)]
struct Server {
    url: String,
    client: kube::Client,
    /// Cancelled when another is asked from now on: what streams from it ends.
    left: CancellationToken,
}

/// Clients of what a kubeconfig says now, one for each server; at least one.
async fn read(path: &Path, agent: Agent) -> Result<Vec<Server>, ConnectError> {
    let failed = |source| ConnectError::Kubeconfig {
        path: path.display().to_string(),
        source,
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    let others = listed(&kubeconfig);
    let mut config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(failed)?;
    config.headers.push((USER_AGENT, agent.header()));
    let mut urls = vec![config.cluster_url.clone()];
    for url in others.iter().filter_map(|url| url.parse().ok()) {
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    if urls.len() > 1 {
        config.connect_timeout = Some(CONNECT_MAX);
    }
    let server = |url: http::Uri| {
        let mut config = config.clone();
        config.cluster_url = url;
        Ok(Server {
            url: config.cluster_url.to_string(),
            client: kube::Client::try_from(config).map_err(ConnectError::Client)?,
            left: CancellationToken::new(),
        })
    };
    urls.into_iter().map(server).collect()
}

/// What the current context's cluster says in its extension.
fn listed(kubeconfig: &Kubeconfig) -> Vec<String> {
    let find = || {
        let name = kubeconfig.current_context.as_ref()?;
        let mut contexts = kubeconfig.contexts.iter();
        let context = contexts.find(|c| c.name == *name)?.context.as_ref()?;
        let mut clusters = kubeconfig.clusters.iter();
        let cluster = clusters
            .find(|c| c.name == context.cluster)?
            .cluster
            .as_ref()?;
        let mut extensions = cluster.extensions.iter().flatten();
        let extension = extensions.find(|e| e.name == SERVERS)?;
        let servers = extension.extension["servers"].as_array()?;
        let texts = servers.iter().filter_map(|s| Some(s.as_str()?.to_owned()));
        Some(texts.collect())
    };
    find().unwrap_or_default()
}

/// How often a client that makes requests looks whether its kubeconfig was written anew.
const LOOK: Duration = Duration::from_secs(10);

/// Follows a kubeconfig that is written anew now and then.
struct Follower {
    path: PathBuf,
    agent: Agent,
    look: Duration,
    /// Never held across an await.
    known: Mutex<Known>,
}

struct Known {
    servers: Vec<Server>,
    /// Which of them is asked.
    current: usize,
    stamp: Option<Stamp>,
    looked: Instant,
}

/// By what a file that was replaced is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    changed: (i64, i64),
    bytes: u64,
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let found = std::fs::metadata(path).ok()?;
        Some(Self {
            inode: found.ino(),
            changed: (found.mtime(), found.mtime_nsec()),
            bytes: found.len(),
        })
    }
}

impl Known {
    fn server(&self) -> (Server, usize) {
        (self.servers[self.current].clone(), self.servers.len())
    }

    /// Takes what the file says now; who is asked stays, if it is still listed.
    fn replace(&mut self, servers: Vec<Server>) {
        let asked = &self.servers[self.current].url;
        self.current = servers.iter().position(|s| s.url == *asked).unwrap_or(0);
        self.servers = servers;
    }
}

impl Follower {
    /// Asks the server that is asked; another when that does not answer, if asking again
    /// does no harm: it was not reached, or the request changes nothing.
    async fn send(
        &self,
        request: http::Request<Body>,
    ) -> Result<http::Response<Answer>, kube::Error> {
        let (parts, mut body) = request.into_parts();
        let changes = !(parts.method.is_safe());
        for tried in 1.. {
            let (server, count) = self.server().await;
            let spare = (tried < count).then(|| body.try_clone()).flatten();
            let request = http::Request::from_parts(parts.clone(), body);
            if count == 1 {
                let sent = server.client.send(request).await;
                return sent.map(|answer| answer.map(|body| Answer::of(body, None)));
            }
            let sent = tokio::time::timeout(ANSWER_MAX, server.client.send(request)).await;
            let error = match sent {
                Ok(Ok(answer)) => {
                    return Ok(answer.map(|body| Answer::of(body, Some(server.left))));
                }
                Ok(Err(error)) => error,
                Err(_) => kube::Error::Service("no answer in time".into()),
            };
            self.leave(&server.url);
            match spare {
                Some(spare) if !changes || was_not_reached(&error) => body = spare,
                _ => return Err(error),
            }
        }
        Err(kube::Error::Service("no server is left".into()))
    }

    /// The next server is asked from now on, if nobody has gone on to it yet.
    fn leave(&self, url: &str) {
        let mut known = self.known.lock();
        let server = &known.servers[known.current];
        if server.url != url {
            return;
        }
        server.left.cancel();
        let current = known.current;
        known.servers[current].left = CancellationToken::new();
        known.current = (current + 1) % known.servers.len();
        let next = &known.servers[known.current].url;
        tracing::debug!(left = url, next, "API server does not answer");
    }

    async fn server(&self) -> (Server, usize) {
        {
            let mut known = self.known.lock();
            if known.looked.elapsed() < self.look {
                return known.server();
            }
            known.looked = Instant::now();
            let stamp = Stamp::of(&self.path);
            if stamp.is_none() || stamp == known.stamp {
                return known.server();
            }
            known.stamp = stamp;
        }
        let made = read(&self.path, self.agent).await;
        let mut known = self.known.lock();
        match made {
            Ok(servers) => known.replace(servers),
            Err(error) => tracing::warn!(%error, "kubeconfig was changed: going on without it"),
        }
        known.server()
    }
}

/// Whether nothing of a request was sent: there was no connection.
fn was_not_reached(error: &kube::Error) -> bool {
    use std::io::ErrorKind;
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && matches!(
                io.kind(),
                ErrorKind::ConnectionRefused
                    | ErrorKind::HostUnreachable
                    | ErrorKind::NetworkUnreachable
            )
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The body of an answer, which ends when its server is left for another.
struct Answer {
    body: Body,
    left: Option<BoxFuture<'static, ()>>,
}

impl Answer {
    fn of(body: Body, left: Option<CancellationToken>) -> Self {
        let left = left.map(|left| left.cancelled_owned().boxed());
        Self { body, left }
    }
}

impl http_body::Body for Answer {
    type Data = bytes::Bytes;
    type Error = tower::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        if let Some(left) = &mut self.left
            && left.poll_unpin(context).is_ready()
        {
            self.left = None;
            self.body = Body::empty();
            return Poll::Ready(Some(Err("its server was left for another".into())));
        }
        let body = Pin::new(&mut self.body);
        body.poll_frame(context).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// The program that requests name themselves after: what `managedFields` calls the manager
/// of a write that names no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agent(pub &'static str);

impl Default for Agent {
    fn default() -> Self {
        Self("salp")
    }
}

impl Agent {
    /// The `User-Agent` header: name and version, of which the API server keeps the name.
    fn header(self) -> HeaderValue {
        let text = format!("{}/{}", self.0, env!("CARGO_PKG_VERSION"));
        // A name that can't be sent is a slip of the programmer's; it costs only the name.
        HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("salp"))
    }
}

/// A client straight into an API server of this process: no socket, no TLS. The service
/// itself decides as whom its requests are made. Needs a running tokio runtime.
pub fn from_service<S, B>(service: S) -> kube::Client
where
    S: tower::Service<http::Request<Body>, Response = http::Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<tower::BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<tower::BoxError>,
{
    from_service_as(service, Agent::default())
}

/// The same for a part that calls itself `agent`.
pub fn from_service_as<S, B>(service: S, agent: Agent) -> kube::Client
where
    S: tower::Service<http::Request<Body>, Response = http::Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<tower::BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<tower::BoxError>,
{
    let header = agent.header();
    let named = service.map_request(move |mut request: http::Request<Body>| {
        request
            .headers_mut()
            .entry(USER_AGENT)
            .or_insert_with(|| header.clone());
        request
    });
    kube::Client::new(named, "default")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_kubeconfig_is_named() {
        let error = from_kubeconfig(Path::new("/nowhere/kubeconfig"))
            .await
            .err()
            .map(|e| e.to_string());
        assert_eq!(
            error.as_deref(),
            Some("read kubeconfig /nowhere/kubeconfig")
        );
    }

    /// Answers everything with its name; how often.
    async fn server(name: &'static str, scope: &lifecycle::Scope) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        scope.spawn_cancellable(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{name}",
                    name.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        url
    }

    #[tokio::test]
    async fn a_kubeconfig_that_changes_is_followed() {
        let scope = lifecycle::Scope::new();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        let say = |server: &str| {
            let text = format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster: {{server: \"{server}\"}}\ncontexts:\n- name: c\n  context: {{cluster: c, user: u}}\nusers:\n- name: u\n  user: {{}}\n"
            );
            let next = dir.path().join("next");
            std::fs::write(&next, text).unwrap();
            std::fs::rename(&next, &path).unwrap();
        };
        say(&server("first", &scope).await);
        let client = follow(&path, Agent::default(), Duration::ZERO)
            .await
            .unwrap();
        let ask = async || {
            let request = http::Request::get("/version").body(Vec::new()).unwrap();
            client.request_text(request).await.unwrap()
        };
        assert_eq!(ask().await, "first");
        say(&server("second", &scope).await);
        assert_eq!(ask().await, "second");
        // What can't be read changes nothing.
        std::fs::write(&path, "nonsense: [").unwrap();
        assert_eq!(ask().await, "second");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(ask().await, "second");
        scope.close().await;
    }

    #[tokio::test]
    async fn the_next_server_is_asked_when_one_is_gone() {
        let (first_scope, scope) = (lifecycle::Scope::new(), lifecycle::Scope::new());
        let (first, second) = (
            server("first", &first_scope).await,
            server("second", &scope).await,
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster:\n    server: \"{first}\"\n    extensions: [{{name: {SERVERS}, extension: {{servers: [\"{first}\", \"{second}\"]}}}}]\ncontexts:\n- name: c\n  context: {{cluster: c, user: u}}\nusers:\n- name: u\n  user: {{}}\n"
        );
        std::fs::write(&path, text).unwrap();
        let client = from_kubeconfig(&path).await.unwrap();
        let ask = async |method: &str| {
            let request = http::Request::builder().method(method).uri("/version");
            let request = request.body(b"{}".to_vec()).unwrap();
            client.request_text(request).await
        };
        assert_eq!(ask("GET").await.unwrap(), "first");
        first_scope.close().await;
        // Nobody is there to have heard it: a write may be made elsewhere.
        assert_eq!(ask("POST").await.unwrap(), "second");
        assert_eq!(ask("GET").await.unwrap(), "second");
        scope.close().await;
        assert!(ask("GET").await.is_err());
    }

    #[tokio::test]
    async fn what_streams_from_a_server_that_is_left_ends() {
        use http_body_util::BodyExt as _;
        let left = CancellationToken::new();
        let mut answer = Answer::of(Body::from(b"a".to_vec()), Some(left.clone()));
        let frame = answer.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "a");
        left.cancel();
        assert!(answer.frame().await.unwrap().is_err());
        assert!(answer.frame().await.is_none());
    }
}

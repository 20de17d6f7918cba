//! Making a `kube::Client`.

use http::HeaderValue;
use http::header::USER_AGENT;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;
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
    let client = read(path, agent).await?;
    let namespace = client.default_namespace().to_owned();
    let follower = Arc::new(Follower {
        path: path.to_owned(),
        agent,
        look,
        known: Mutex::new(Known {
            client,
            stamp,
            looked: Instant::now(),
        }),
    });
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let follower = follower.clone();
        async move { follower.client().await.send(request).await }
    });
    Ok(kube::Client::new(service, namespace))
}

/// A client of what a kubeconfig says now.
async fn read(path: &Path, agent: Agent) -> Result<kube::Client, ConnectError> {
    let failed = |source| ConnectError::Kubeconfig {
        path: path.display().to_string(),
        source,
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    let mut config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(failed)?;
    config.headers.push((USER_AGENT, agent.header()));
    kube::Client::try_from(config).map_err(ConnectError::Client)
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
    client: kube::Client,
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

impl Follower {
    async fn client(&self) -> kube::Client {
        {
            let mut known = self.known.lock();
            if known.looked.elapsed() < self.look {
                return known.client.clone();
            }
            known.looked = Instant::now();
            let stamp = Stamp::of(&self.path);
            if stamp.is_none() || stamp == known.stamp {
                return known.client.clone();
            }
            known.stamp = stamp;
        }
        let made = read(&self.path, self.agent).await;
        let mut known = self.known.lock();
        match made {
            Ok(client) => known.client = client,
            Err(error) => tracing::warn!(%error, "kubeconfig was changed: going on without it"),
        }
        known.client.clone()
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
}

//! Parts of a site in one process, for tests: an API server on a store of its own, with
//! clients in the process and over HTTPS. And lines between machines that are slow.
//!
//! Start with [`TestApi::start`]. For tests only: keys are made anew each time.
//!
//! With `SALP_TEST_STORE=etcd` in the environment each API server keeps its objects in an etcd
//! of its own, so that every test of the API is one of both stores. With
//! `SALP_TEST_SERVER=PATH` each is the binary at that path instead, in a process of its own, asked
//! over HTTPS: every test of the API that needs nothing of the server's inside is one of both.

mod etcd;
mod line;
mod pki;
mod program;
mod remote;

pub use etcd::Etcd;
pub use line::Line;
pub use pki::{Identity, Pki};

use anyhow::{Context as _, Result};
use apiserver::{ApiServer, Config, Shared};
use bytes::Bytes;
use client::kube;
use http_body_util::{BodyExt as _, Full};
use lifecycle::Scope;
use program::Program;
use remote::{Body, Service};
use serde_json::Value;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::{EmbeddedStore, EtcdStore, Store};
use tower::ServiceExt as _;

/// An API server with a store in a folder that goes away with it.
pub struct TestApi {
    /// Keys and certificates.
    pub pki: Pki,
    runs: Runs,
    /// What the store is kept by, unless it is embedded.
    etcd: Option<Etcd>,
    dir: tempfile::TempDir,
}

/// Where the server is.
enum Runs {
    Here(Here),
    Program(Program),
}

/// A server of this process.
struct Here {
    server: ApiServer,
    store: Arc<dyn Store>,
    scope: Scope,
}

/// What a test is told that asks for the inside of another process.
const OUTSIDE: &str =
    "the server is another process: say above the test `/// In process only: WHY`";

impl std::fmt::Debug for TestApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestApi")
            .field("url", &self.url())
            .finish_non_exhaustive()
    }
}

/// An answer of [`TestApi::call`].
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status code.
    pub code: u16,
    /// Headers.
    pub headers: http::HeaderMap,
    /// Body, `Null` when it is no JSON.
    pub json: Value,
    /// Body as text.
    pub text: String,
    /// Body as it came.
    pub body: Bytes,
}

/// An open watch.
#[derive(Debug)]
pub struct Watch {
    /// Headers of the answer.
    pub headers: http::HeaderMap,
    body: Body,
    buffer: Vec<u8>,
}

impl Watch {
    /// The next event; `None` at the end. Fails when none comes within ten seconds.
    ///
    /// # Errors
    /// On that timeout, a broken body or a line that is no JSON.
    pub async fn next(&mut self) -> Result<Option<Value>> {
        let newline = |buffer: &[u8]| buffer.iter().position(|b| *b == b'\n').map(|end| end + 1);
        let line = self.next_by(newline).await?;
        Ok(line.map(|l| serde_json::from_slice(&l)).transpose()?)
    }

    /// The next frame of a watch in protobuf, without its length; `None` at the end.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub async fn next_frame(&mut self) -> Result<Option<Vec<u8>>> {
        let frame = |buffer: &[u8]| {
            let (len, rest) = buffer.split_first_chunk::<4>()?;
            let len = u32::from_be_bytes(*len) as usize;
            (rest.len() >= len).then_some(4 + len)
        };
        Ok(self.next_by(frame).await?.map(|f| f[4..].to_vec()))
    }

    /// The next part of a stream, whose length `end` knows once it is all here; `None` at the end.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub async fn next_by(
        &mut self,
        end: impl Fn(&[u8]) -> Option<usize>,
    ) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = end(&self.buffer) {
                return Ok(Some(self.buffer.drain(..end).collect()));
            }
            if !self.read().await? {
                return Ok(None);
            }
        }
    }

    /// Reads more; false at the end.
    async fn read(&mut self) -> Result<bool> {
        let wait = std::time::Duration::from_secs(10);
        let frame = tokio::time::timeout(wait, self.body.frame())
            .await
            .context("no event within ten seconds")?;
        let Some(frame) = frame else {
            return Ok(false);
        };
        let frame = frame.map_err(|e| anyhow::anyhow!("read watch: {e}"))?;
        if let Ok(data) = frame.into_data() {
            self.buffer.extend_from_slice(&data);
        }
        Ok(true)
    }

    /// Type and name of the next event, such as `ADDED a`.
    ///
    /// # Errors
    /// As [`Watch::next`], and at the end.
    pub async fn brief(&mut self) -> Result<String> {
        let event = self.next().await?.context("the watch has ended")?;
        let name = event["object"]["metadata"]["name"]
            .as_str()
            .unwrap_or_default();
        Ok(format!(
            "{} {name}",
            event["type"].as_str().unwrap_or_default()
        ))
    }
}

/// Path of a real program, in `$SALP_TOOLS/bin` or `target/tools/bin`.
///
/// # Errors
/// When it is not there: `cargo xtask tools` fetches it.
pub fn tool(name: &str) -> Result<PathBuf> {
    let dirs = [
        std::env::var_os("SALP_TOOLS").map(PathBuf::from),
        Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools")),
    ];
    dirs.into_iter()
        .flatten()
        .map(|dir| dir.join("bin").join(name))
        .find(|path| path.exists())
        .with_context(|| format!("{name} is not there: cargo xtask tools {name}"))
}

impl TestApi {
    /// Starts one with HTTPS on a free port of loopback.
    ///
    /// # Errors
    /// When the folder, the port or the server fails.
    pub async fn start() -> Result<Self> {
        Self::start_with(|_| {}).await
    }

    /// Starts one with a changed configuration.
    ///
    /// # Errors
    /// When the folder, the port or the server fails.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let etcd = match std::env::var("SALP_TEST_STORE").as_deref() {
            Ok("etcd") => Some(Etcd::start(1)?),
            _ => None,
        };
        let Some(program) = program::asked_for() else {
            return Self::open(dir, etcd, Pki::new()?, change).await;
        };
        let runs = Program::start(&program, dir.path(), etcd.as_ref(), change)?;
        Ok(Self {
            pki: Pki::of_site(&dir.path().join("site"))?,
            runs: Runs::Program(runs),
            etcd,
            dir,
        })
    }

    /// Stops it and starts another over the same store, with the same keys.
    ///
    /// # Errors
    /// When the server can't be started again.
    pub async fn restart(self) -> Result<Self> {
        self.restart_with(|_| {}).await
    }

    /// The same with a changed configuration.
    ///
    /// # Errors
    /// When the server can't be started again.
    pub async fn restart_with(self, change: impl FnOnce(&mut Config)) -> Result<Self> {
        let Self {
            pki,
            runs,
            etcd,
            dir,
        } = self;
        match runs {
            Runs::Here(here) => {
                here.scope.close().await;
                drop(here.server);
                here.store.close().await?;
                drop(here.store);
                Self::open(dir, etcd, pki, change).await
            }
            Runs::Program(program) => {
                let runs = Runs::Program(program.restart(etcd.as_ref(), change).await?);
                Ok(Self {
                    pki,
                    runs,
                    etcd,
                    dir,
                })
            }
        }
    }

    /// Starts another server over the same store, with the same keys: one of several, as this
    /// one must be too ([`Config::shared`]). In process only.
    ///
    /// # Errors
    /// When the port or the server fails.
    pub async fn beside(&self, change: impl FnOnce(&mut Config)) -> Result<Self> {
        let (dir, store) = (tempfile::tempdir()?, self.here()?.store.clone());
        Self::serve(dir, None, self.pki.clone(), store, change).await
    }

    /// Stops the server; the store goes on for others. In process only.
    ///
    /// # Errors
    /// When it is another process.
    pub async fn leave(&self) -> Result<()> {
        self.here()?.scope.close().await;
        Ok(())
    }

    /// The server. In process only.
    ///
    /// # Errors
    /// When it is another process.
    pub fn server(&self) -> Result<&ApiServer> {
        Ok(&self.here()?.server)
    }

    /// What it keeps its objects in. In process only.
    ///
    /// # Errors
    /// When it is another process.
    pub fn store(&self) -> Result<&Arc<dyn Store>> {
        Ok(&self.here()?.store)
    }

    fn here(&self) -> Result<&Here> {
        match &self.runs {
            Runs::Here(here) => Ok(here),
            Runs::Program(_) => anyhow::bail!(OUTSIDE),
        }
    }

    async fn open(
        dir: tempfile::TempDir,
        etcd: Option<Etcd>,
        pki: Pki,
        change: impl FnOnce(&mut Config),
    ) -> Result<Self> {
        let path = dir.path().join("store.db");
        let store: Arc<dyn Store> = match &etcd {
            Some(etcd) => Arc::new(EtcdStore::connect(&etcd.config()).await?),
            None => {
                Arc::new(tokio::task::spawn_blocking(move || EmbeddedStore::open(&path)).await??)
            }
        };
        Self::serve(dir, etcd, pki, store, change).await
    }

    async fn serve(
        dir: tempfile::TempDir,
        etcd: Option<Etcd>,
        pki: Pki,
        store: Arc<dyn Store>,
        change: impl FnOnce(&mut Config),
    ) -> Result<Self> {
        let mut config = Config::new(
            store.clone(),
            pki.serving.cert.clone(),
            pki.serving.key.clone(),
            pki.ca_cert.clone(),
            pki.service_account_key.clone(),
        );
        let listener = TcpListener::bind("127.0.0.1:0").context("bind a port of loopback")?;
        config.advertise = Some(listener.local_addr()?);
        config.listeners = vec![listener];
        // As `salp up` has it.
        config.shared = etcd.as_ref().map(|_| Shared::new("test"));
        change(&mut config);
        let scope = Scope::new();
        let server = ApiServer::start(config, &scope).await?;
        Ok(Self {
            pki,
            runs: Runs::Here(Here {
                server,
                store,
                scope,
            }),
            etcd,
            dir,
        })
    }

    /// A client that may do everything.
    ///
    /// # Errors
    /// As [`Self::client_as`].
    pub fn client(&self) -> Result<kube::Client> {
        self.client_as("kubernetes-admin", &["system:masters"])
    }

    /// A client that acts as a user.
    ///
    /// # Errors
    /// When the user can't be given a certificate.
    pub fn client_as(&self, user: &str, groups: &[&str]) -> Result<kube::Client> {
        let service = self.service(user, groups)?;
        let service = service.map_request(|request: http::Request<kube::client::Body>| {
            request.map(|body| body.map_err(Into::into).boxed_unsync())
        });
        Ok(kube::Client::new(service, "default"))
    }

    fn service(&self, user: &str, groups: &[&str]) -> Result<Service> {
        match &self.runs {
            Runs::Here(here) => Ok(remote::within(here.server.service(user, groups))),
            Runs::Program(program) => program.service(&self.pki, user, groups),
        }
    }

    /// Where HTTPS is served.
    pub fn url(&self) -> String {
        match &self.runs {
            Runs::Here(here) => {
                let address = here.server.addresses().first();
                let port = address.map_or(0, std::net::SocketAddr::port);
                format!("https://127.0.0.1:{port}")
            }
            Runs::Program(program) => program.url().to_owned(),
        }
    }

    /// A folder of this server's.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a kubeconfig for a user and returns its path.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn kubeconfig(&self, user: &str, groups: &[&str]) -> Result<PathBuf> {
        let identity = self.pki.identity(user, groups)?;
        let path = self
            .dir
            .path()
            .join(format!("kubeconfig-{}", user.replace([':', '/'], "-")));
        let files = [
            ("ca", &self.pki.ca_cert),
            ("cert", &identity.cert),
            ("key", &identity.key),
        ];
        for (suffix, text) in files {
            std::fs::write(path.with_extension(suffix), text)?;
        }
        let name = |suffix: &str| path.with_extension(suffix).display().to_string();
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": self.url(), "certificate-authority": name("ca"),
            }}],
            "users": [{"name": "test", "user": {
                "client-certificate": name("cert"), "client-key": name("key"),
            }}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        std::fs::write(&path, serde_json::to_vec_pretty(&config)?)?;
        Ok(path)
    }

    /// One plain request as the administrator; a path with query.
    ///
    /// # Errors
    /// When the request can't be made or its body ends early.
    pub async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        self.send(
            method,
            path,
            &[],
            body.map(|b| b.to_string().into_bytes()).unwrap_or_default(),
        )
        .await
    }

    /// One request as the administrator with headers and any body.
    ///
    /// # Errors
    /// When the request can't be made or its body ends early.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Answer> {
        self.send_as(
            ("kubernetes-admin", &["system:masters"]),
            method,
            path,
            headers,
            body,
        )
        .await
    }

    /// One request as a user.
    ///
    /// # Errors
    /// When the request can't be made or its body ends early.
    pub async fn send_as(
        &self,
        (user, groups): (&str, &[&str]),
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Answer> {
        let mut request = http::Request::builder().method(method).uri(path);
        for (k, v) in headers {
            request = request.header(*k, *v);
        }
        let request = request.body(full(body))?;
        let service = self.service(user, groups)?;
        let response = service.oneshot(request).await.map_err(failed)?;
        let (parts, body) = response.into_parts();
        let bytes = body
            .collect()
            .await
            .map_err(|e| anyhow::anyhow!("read body: {e}"))?
            .to_bytes();
        Ok(Answer {
            code: parts.status.as_u16(),
            headers: parts.headers,
            json: serde_json::from_slice(&bytes).unwrap_or_default(),
            text: String::from_utf8_lossy(&bytes).into_owned(),
            body: bytes,
        })
    }

    /// Opens a watch as the administrator.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn watch(&self, path: &str, headers: &[(&str, &str)]) -> Result<Watch> {
        let mut request = http::Request::builder().uri(path);
        for (k, v) in headers {
            request = request.header(*k, *v);
        }
        let request = request.body(full(Vec::new()))?;
        let service = self.service("kubernetes-admin", &["system:masters"])?;
        let response = service.oneshot(request).await.map_err(failed)?;
        anyhow::ensure!(
            response.status() == 200,
            "watch refused: {}",
            response.status()
        );
        Ok(Watch {
            headers: response.headers().clone(),
            body: response.into_body(),
            buffer: Vec::new(),
        })
    }

    /// Names a part of lines that this test makes the server log as WARN or ERROR. Any other of
    /// the binary's fails the test.
    ///
    /// # Errors
    /// When a thread that held the list has panicked.
    pub fn expects(&self, part: &str) -> Result<()> {
        match &self.runs {
            Runs::Here(_) => Ok(()),
            Runs::Program(program) => program.expects(part),
        }
    }

    /// Stops the server and its store.
    ///
    /// # Errors
    /// When the store can't be closed.
    pub async fn close(self) -> Result<()> {
        match self.runs {
            Runs::Here(here) => {
                here.scope.close().await;
                here.store.close().await?;
            }
            Runs::Program(mut program) => program.stop().await?,
        }
        Ok(())
    }
}

fn full(bytes: Vec<u8>) -> Body {
    let body = Full::new(Bytes::from(bytes));
    body.map_err(|never| match never {}).boxed_unsync()
}

fn failed(error: tower::BoxError) -> anyhow::Error {
    anyhow::anyhow!("send request: {error:#}")
}

//! How the commands reach an API server: which kubeconfig, and plain requests.

use crate::cli::Target;
use crate::config::{self, Layout};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::path::PathBuf;

/// A connected client and the namespace of its context.
#[derive(Clone)]
pub struct Access {
    pub client: kube::Client,
    pub namespace: String,
}

/// The kubeconfig file that a command uses: `--kubeconfig`, the site of `--data-dir`,
/// `$KUBECONFIG`, the default site, in this order.
pub fn kubeconfig_path(target: &Target) -> Result<PathBuf> {
    if let Some(path) = &target.kubeconfig {
        return Ok(path.clone());
    }
    if target.data_dir.data_dir.is_none()
        && let Some(path) = std::env::var_os("KUBECONFIG").filter(|v| !v.is_empty())
    {
        // Not the default site instead: that could be another one than was meant.
        return match std::env::split_paths(&path).find(|p| p.exists()) {
            Some(first) => Ok(first),
            None => bail!(
                "find kubeconfig {}: $KUBECONFIG names no file that exists; unset it, or give --kubeconfig",
                path.display()
            ),
        };
    }
    let path = Layout::new(config::data_dir(&target.data_dir)?).kubeconfig();
    if !path.exists() {
        bail!(
            "find kubeconfig {}: start a site with `salp up`, or give --kubeconfig",
            path.display()
        );
    }
    Ok(path)
}

/// Connects. No request is made yet.
pub async fn connect(target: &Target) -> Result<Access> {
    let path = kubeconfig_path(target)?;
    let name = path.display().to_string();
    let kubeconfig = kube::config::Kubeconfig::read_from(&path)
        .with_context(|| format!("read kubeconfig {name}: give a valid one with --kubeconfig"))?;
    let mut config = kube::Config::from_custom_kubeconfig(
        kubeconfig,
        &kube::config::KubeConfigOptions::default(),
    )
    .await
    .with_context(|| format!("use kubeconfig {name}: give a valid one with --kubeconfig"))?;
    let agent = concat!("salp/", env!("CARGO_PKG_VERSION"));
    config.headers.push((
        http::header::USER_AGENT,
        http::HeaderValue::from_static(agent),
    ));
    let namespace = config.default_namespace.clone();
    let client =
        kube::Client::try_from(config).with_context(|| format!("use kubeconfig {name}"))?;
    Ok(Access { client, namespace })
}

impl Access {
    /// GET of a path, JSON.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.send("GET", path, "application/json", Vec::new()).await
    }

    /// POST of an object.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.send(
            "POST",
            path,
            "application/json",
            serde_json::to_vec(body).context("encode object")?,
        )
        .await
    }

    /// DELETE with options.
    pub async fn delete(&self, path: &str) -> Result<Value> {
        self.send("DELETE", path, "application/json", b"{}".to_vec())
            .await
    }

    /// Any request whose answer is JSON.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<Value> {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type)
            .header("accept", "application/json")
            .body(body)
            .context("make request")?;
        self.client.request(request).await.map_err(explain)
    }
}

/// Says what a failed request means, with the cure where the server was not reached.
pub fn explain(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow::anyhow!("{}", status.message),
        kube::Error::HyperError(_) | kube::Error::Service(_) => anyhow::Error::new(error)
            .context("reach API server: is the site up? start it with `salp up`"),
        other => anyhow::Error::new(other).context("call API server"),
    }
}

/// A runtime for commands that only talk to a server.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start runtime")?
        .block_on(work)
}

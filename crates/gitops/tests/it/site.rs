//! An API server that follows sources, and repositories made by the program `git`.

use anyhow::{Context as _, Result, bail, ensure};
use client::{Clock, Informers};
use lifecycle::Scope;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use testkit::TestApi;

/// Nothing here takes as long, unless it never comes.
const NEVER: Duration = Duration::from_secs(60);

pub(crate) struct Site {
    pub(crate) api: TestApi,
    pub(crate) scope: Scope,
}

impl Site {
    /// That follows sources, and a folder of manifests if one is given.
    pub(crate) async fn start(manifests: Option<&Path>) -> Result<Self> {
        let api = TestApi::start().await?;
        let scope = Scope::new();
        let config = gitops::Config {
            informers: Informers::new(api.client()?, &scope),
            data_dir: api.dir().join("gitops"),
            manifests: manifests
                .map(|dir| ("test".to_owned(), dir.to_owned()))
                .into_iter()
                .collect(),
            clock: Clock::system(),
            seed: 1,
            registry: images::RegistryConfig::default(),
        };
        gitops::run(config, &scope);
        let site = Self { api, scope };
        for path in [
            "/apis/source.toolkit.fluxcd.io/v1/gitrepositories",
            "/apis/kustomize.toolkit.fluxcd.io/v1/kustomizations",
        ] {
            site.until("the kinds", path, |answer| answer["items"].is_array())
                .await?;
        }
        Ok(site)
    }

    pub(crate) async fn close(self) -> Result<()> {
        self.scope.close().await;
        self.api.close().await
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        Ok(self.api.call("GET", path, None).await?.json)
    }

    /// Waits until what a path answers is as wanted.
    pub(crate) async fn until(
        &self,
        what: &str,
        path: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let wait = async {
            loop {
                let answer = self.get(path).await?;
                if wanted(&answer) {
                    return Ok::<_, anyhow::Error>(answer);
                }
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        };
        match tokio::time::timeout(NEVER, wait).await {
            Ok(answer) => answer,
            Err(_) => bail!("{what} never came; there is {}", self.get(path).await?),
        }
    }

    pub(crate) async fn apply(&self, object: &Value) -> Result<Value> {
        let path = format!("{}?fieldManager=test&force=true", path_of(object)?);
        let answer = self
            .api
            .send(
                "PATCH",
                &path,
                &[("content-type", "application/apply-patch+yaml")],
                object.to_string().into_bytes(),
            )
            .await?;
        ensure!(answer.code < 300, "apply: {} {}", answer.code, answer.text);
        Ok(answer.json)
    }

    pub(crate) async fn merge(&self, path: &str, patch: &Value) -> Result<Value> {
        let answer = self
            .api
            .send(
                "PATCH",
                path,
                &[("content-type", "application/merge-patch+json")],
                patch.to_string().into_bytes(),
            )
            .await?;
        ensure!(answer.code < 300, "merge: {} {}", answer.code, answer.text);
        Ok(answer.json)
    }

    /// Follows a repository.
    pub(crate) async fn follow(&self, name: &str, spec: Value) -> Result<()> {
        let mut object = json!({"apiVersion": "source.toolkit.fluxcd.io/v1", "kind": "GitRepository",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"interval": "1s", "ref": {"branch": "main"}}});
        merge(&mut object["spec"], spec);
        self.apply(&object).await.map(|_| ())
    }

    /// Applies a folder of it.
    pub(crate) async fn kustomize(&self, name: &str, spec: Value) -> Result<()> {
        let mut object = json!({"apiVersion": "kustomize.toolkit.fluxcd.io/v1", "kind": "Kustomization",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"interval": "1h", "retryInterval": "1s", "prune": true, "path": "./",
                "sourceRef": {"kind": "GitRepository", "name": "repo"}}});
        merge(&mut object["spec"], spec);
        self.apply(&object).await.map(|_| ())
    }

    /// Waits for a condition of a Kustomization, of its present generation.
    pub(crate) async fn until_ready(&self, name: &str, status: &str, says: &str) -> Result<Value> {
        let path = kustomization(name);
        self.until(&format!("Ready={status} {says}"), &path, |k| {
            let ready = ready(k);
            k["status"]["observedGeneration"] == k["metadata"]["generation"]
                && ready["status"] == status
                && ready["message"].as_str().unwrap_or_default().contains(says)
        })
        .await
    }

    pub(crate) async fn until_map(&self, name: &str, key: &str, value: &str) -> Result<Value> {
        self.until(&format!("{name}.{key}={value}"), &map(name), |m| {
            m["data"][key] == value
        })
        .await
    }
}

fn merge(into: &mut Value, more: Value) {
    if let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) {
        into.extend(more);
    }
}

pub(crate) fn ready(object: &Value) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions
        .and_then(|c| c.iter().find(|c| c["type"] == "Ready"))
        .cloned()
        .unwrap_or_default()
}

pub(crate) fn kustomization(name: &str) -> String {
    format!("/apis/kustomize.toolkit.fluxcd.io/v1/namespaces/default/kustomizations/{name}")
}

pub(crate) fn repository(name: &str) -> String {
    format!("/apis/source.toolkit.fluxcd.io/v1/namespaces/default/gitrepositories/{name}")
}

pub(crate) fn map(name: &str) -> String {
    format!("/api/v1/namespaces/default/configmaps/{name}")
}

fn path_of(object: &Value) -> Result<String> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let name = text(&object["metadata"]["name"]);
    Ok(match object["kind"].as_str().context("kind")? {
        "GitRepository" => repository(&name),
        "Kustomization" => kustomization(&name),
        "ConfigMap" => map(&name),
        "Secret" => format!("/api/v1/namespaces/default/secrets/{name}"),
        other => bail!("no path for {other}"),
    })
}

/// A ConfigMap as a file.
pub(crate) fn config_map(name: &str, value: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{k: \"{value}\"}}\n"
    )
}

/// A repository with a work tree, made and changed by `git`.
pub(crate) struct Repository {
    pub(crate) dir: tempfile::TempDir,
}

impl Repository {
    pub(crate) fn new() -> Result<Self> {
        let repository = Self {
            dir: tempfile::tempdir()?,
        };
        repository.git(&["init", "-q", "-b", "main"])?;
        Ok(repository)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    pub(crate) fn url(&self) -> String {
        self.dir.path().display().to_string()
    }

    /// Runs git there; what it prints.
    pub(crate) fn git(&self, args: &[&str]) -> Result<String> {
        let output = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@example.com"])
            .args(args)
            .current_dir(self.dir.path())
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null")
            .output()?;
        ensure!(
            output.status.success(),
            "git {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Writes files (or deletes those without text) and commits; the commit.
    pub(crate) fn commit(&self, files: &[(&str, Option<&str>)]) -> Result<String> {
        for (path, text) in files {
            let file = self.dir.path().join(path);
            match text {
                Some(text) => {
                    std::fs::create_dir_all(file.parent().context("folder")?)?;
                    std::fs::write(file, text)?;
                }
                None => std::fs::remove_file(file)?,
            }
        }
        self.git(&["add", "-A"])?;
        self.git(&["commit", "-q", "-m", "change"])?;
        self.git(&["rev-parse", "HEAD"])
    }
}

//! Folders of manifests on the site's own disk, applied as they change.
//!
//! The same engine as Kustomizations; what was applied is remembered in a ConfigMap of
//! `kube-system`, for there is no object to state it on. A folder that is not there is left
//! alone: a disk that is not mounted must not delete a site. An empty one means what it says.
//! Start with [`start`].

use crate::apply::{Owner, Request, prepare};
use crate::artifact::rfc3339;
use crate::cluster::{Cluster, explain};
use crate::kinds::KustomizationSpec;
use crate::objects::{Entry, ObjectId};
use crate::plan::Action;
use crate::revision::objects;
use crate::tree::{TooLarge, Tree};
use client::Clock;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// How often the folder is looked at. A look reads names, sizes and times only.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often it is applied again, so that drift is corrected.
const INTERVAL: Duration = Duration::from_secs(10 * 60);
/// How soon after a failure, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(5 * 60));
/// How deep folders may nest.
const DEPTH_MAX: usize = 16;

const NAMESPACE: &str = "kube-system";

/// Follows a folder until the scope is cancelled.
pub fn start(
    client: &kube::Client,
    name: &str,
    dir: &Path,
    clock: &Clock,
    scope: &lifecycle::Scope,
) {
    let follower = Follower {
        cluster: Cluster::new(client.clone()),
        name: format!("manifests-{name}"),
        dir: dir.to_owned(),
        clock: clock.clone(),
    };
    scope.spawn_cancellable(follower.run());
}

struct Follower {
    cluster: Cluster,
    name: String,
    dir: PathBuf,
    clock: Clock,
}

/// Why a folder was not applied.
#[derive(Debug, thiserror::Error)]
enum DirectoryError {
    #[error("read {path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    #[error(transparent)]
    Build(#[from] crate::revision::RevisionError),
    #[error(transparent)]
    Apply(Box<crate::apply::ApplyError>),
    #[error("remember what was applied: {}", explain(.0))]
    Remember(Box<kube::Error>),
    #[error("read folder: interrupted")]
    Interrupted,
}

impl From<crate::apply::ApplyError> for DirectoryError {
    fn from(error: crate::apply::ApplyError) -> Self {
        Self::Apply(Box::new(error))
    }
}

/// What tells whether a folder changed.
type Look = Vec<(String, u64, Option<std::time::SystemTime>)>;

impl Follower {
    async fn run(self) {
        let mut applied: Option<(Look, Instant)> = None;
        let mut failures = 0_u32;
        let mut again: Option<(Look, Instant)> = None;
        loop {
            let look = self.look().await;
            let due = match (&look, &applied, &again) {
                (None, ..) => false,
                (Some(look), _, Some((failed, at))) if look == failed => Instant::now() >= *at,
                (Some(look), Some((known, at)), None) => look != known || at.elapsed() >= INTERVAL,
                (Some(_), ..) => true,
            };
            if let Some(look) = look.filter(|_| due) {
                match self.apply().await {
                    Ok(actions) => {
                        report(&self.dir, &actions);
                        failures = 0;
                        again = None;
                        applied = Some((look, Instant::now()));
                    }
                    Err(error) => {
                        tracing::warn!(dir = %self.dir.display(), %error, "manifests not applied");
                        let delay = RETRY.0.saturating_mul(1 << failures.min(10)).min(RETRY.1);
                        failures = failures.saturating_add(1);
                        again = Some((look, Instant::now() + delay));
                    }
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn look(&self) -> Option<Look> {
        let dir = self.dir.clone();
        tokio::task::spawn_blocking(move || {
            let mut look = Look::new();
            walk(&dir, "", 0, &mut |path, file| {
                let meta = std::fs::metadata(file)?;
                look.push((path.to_owned(), meta.len(), meta.modified().ok()));
                Ok(())
            })
            .ok()?;
            Some(look)
        })
        .await
        .ok()?
    }

    async fn apply(&self) -> Result<Vec<Action>, DirectoryError> {
        let dir = self.dir.clone();
        let (objects, revision) = tokio::task::spawn_blocking(move || {
            let tree = read(&dir)?;
            let mut hash = Sha256::new();
            for (path, bytes) in tree.files() {
                hash.update(path);
                hash.update(bytes);
            }
            let spec = KustomizationSpec {
                prune: true,
                ..KustomizationSpec::default()
            };
            let revision = format!("sha256:{}", hex::encode(hash.finalize()));
            Ok::<_, DirectoryError>((objects(&tree, &spec, None)?, revision))
        })
        .await
        .map_err(|_| DirectoryError::Interrupted)??;
        let known = self.known().await?;
        if objects.is_empty() && known.is_empty() {
            return Ok(Vec::new());
        }
        let request = Request {
            owner: Owner {
                name: self.name.clone(),
                namespace: NAMESPACE.to_owned(),
            },
            objects,
            namespace: "default".to_owned(),
            inventory: known.clone(),
            prune: true,
            force: false,
        };
        let prepared = prepare(&self.cluster, request).await?;
        let before = prepared.inventory_before();
        let after = prepared.inventory().to_vec();
        if before != known {
            self.remember(&before, "").await?;
        }
        let actions = prepared.execute().await?;
        let changed = actions.iter().any(|a| a.verb().is_some());
        if changed || after != before {
            self.remember(&after, &revision).await?;
        }
        Ok(actions)
    }

    fn id(&self) -> ObjectId {
        ObjectId {
            kind: "ConfigMap".to_owned(),
            group: String::new(),
            namespace: NAMESPACE.to_owned(),
            name: format!("salp-{}", self.name),
        }
    }

    async fn known(&self) -> Result<Vec<Entry>, DirectoryError> {
        let found = self.cluster.get("v1", &self.id()).await;
        let found = found.map_err(|e| DirectoryError::Remember(Box::new(e)))?;
        Ok(found
            .and_then(|map| serde_json::from_str(map["data"]["inventory"].as_str()?).ok())
            .unwrap_or_default())
    }

    async fn remember(&self, inventory: &[Entry], revision: &str) -> Result<(), DirectoryError> {
        let fail = |e: kube::Error| DirectoryError::Remember(Box::new(e));
        let id = self.id();
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": id.name, "namespace": id.namespace},
            "data": {
                "directory": self.dir.display().to_string(),
                "inventory": json!(inventory).to_string(),
                "lastAppliedRevision": revision,
                "lastAppliedTime": rfc3339(self.clock.now()),
            },
        });
        let mapping = self
            .cluster
            .mapping("v1", "ConfigMap")
            .await
            .map_err(fail)?;
        let Some(mapping) = mapping else {
            return Ok(());
        };
        let written: Result<Value, kube::Error> = self.cluster.apply(&mapping, &map, false).await;
        written.map(|_| ()).map_err(fail)
    }
}

fn report(dir: &Path, actions: &[Action]) {
    for action in actions {
        if let Some(verb) = action.verb() {
            tracing::info!(dir = %dir.display(), object = %action.id(), "{verb}");
        }
    }
}

/// Reads all files of a folder; links inside it are followed, hidden files left out.
///
/// # Errors
/// When it can't be read or holds too much.
fn read(dir: &Path) -> Result<Tree, DirectoryError> {
    let mut tree = Tree::default();
    let mut too_large = None;
    walk(dir, "", 0, &mut |path, file| {
        if std::fs::metadata(file)?.len() > crate::tree::BYTES_MAX as u64 {
            too_large = Some(TooLarge);
            return Ok(());
        }
        if let Err(error) = tree.insert(path, &std::fs::read(file)?) {
            too_large = Some(error);
        }
        Ok(())
    })
    .map_err(|source| DirectoryError::Read {
        path: dir.to_owned(),
        source,
    })?;
    match too_large {
        Some(error) => Err(error.into()),
        None => Ok(tree),
    }
}

/// Reads a folder as a source, for `salp gitops diff`.
///
/// # Errors
/// A sentence, when it can't be read or holds too much.
pub fn read_tree(dir: &Path) -> Result<Tree, String> {
    read(dir).map_err(|e| e.to_string())
}

fn walk(
    root: &Path,
    below: &str,
    depth: usize,
    f: &mut dyn FnMut(&str, &Path) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut entries: Vec<_> = std::fs::read_dir(root.join(below))?.collect::<Result<_, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let path = if below.is_empty() {
            name
        } else {
            format!("{below}/{name}")
        };
        let file = entry.path();
        // A link that leads nowhere is not there.
        let Ok(meta) = std::fs::metadata(&file) else {
            continue;
        };
        if meta.is_dir() && depth < DEPTH_MAX {
            walk(root, &path, depth + 1, f)?;
        } else if meta.is_file() {
            f(&path, &file)?;
        }
    }
    Ok(())
}

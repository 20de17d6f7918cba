//! The loops: one follows each kind of source, one applies Kustomizations.
//!
//! A reconcile takes only a key and reads the rest anew. It writes its object's status once at
//! the end, and once before when it begins something new. Start with [`Config`] and [`run`].

mod kustomization;
mod source;

use crate::artifact::{Archives, Artifact, rfc3339};
use crate::cluster::{Cluster, explain};
use crate::kinds::{Followed, GitRepository, OCIRepository, REQUESTED_AT, crds};
use crate::status::difference;
use client::{
    Clock, EventRecorder, Informer, Informers, ObjectKey, Outcome, WorkQueue, start_workers,
};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Reconciles of one kind at once.
const WORKERS: usize = 2;
/// Delays between tries of what fails.
const BACKOFF: client::queue::Backoff = client::queue::Backoff {
    min: Duration::from_millis(750),
    max: Duration::from_secs(15 * 60),
};
/// Between tries to install the definitions.
const INSTALL_AGAIN: Duration = Duration::from_secs(1);
/// A definition that is not served by then has not been accepted; looked for this often.
const SERVED_WITHIN: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What following needs.
#[derive(Clone, Debug)]
pub struct Config {
    /// The process's informers; their client also writes.
    pub informers: Informers,
    /// Folder for clones and archives.
    pub data_dir: PathBuf,
    /// Folders of manifests that are applied as they change, by a name of each.
    pub manifests: Vec<(String, PathBuf)>,
    /// Time of conditions.
    pub clock: Clock,
    /// Seed of the jitter of retries.
    pub seed: u64,
    /// How registries are reached.
    pub registry: images::RegistryConfig,
}

/// Starts following in `scope`, until it is cancelled. Installs the definitions of the kinds
/// first.
pub fn run(config: Config, scope: &lifecycle::Scope) {
    let client = config.informers.client().clone();
    for (name, dir) in &config.manifests {
        crate::directory::start(&client, name, dir, &config.clock, scope);
    }
    let context = Context {
        cluster: Cluster::new(client.clone()),
        archives: Archives::new(config.data_dir.join("archives")),
        data_dir: config.data_dir,
        recorder: EventRecorder::new(
            client.clone(),
            "salp-gitops",
            "",
            config.clock.clone(),
            scope,
        ),
        client,
        informers: config.informers,
        clock: config.clock,
        seed: config.seed,
        registry: images::Registry::new(config.registry),
        scope: scope.clone(),
    };
    scope.spawn_cancellable(async move {
        install(&context.cluster).await;
        source::start::<GitRepository>(&context);
        source::start::<OCIRepository>(&context);
        kustomization::start(&context);
    });
}

/// What a loop is started with.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) client: kube::Client,
    pub(crate) cluster: Cluster,
    pub(crate) archives: Archives,
    pub(crate) data_dir: PathBuf,
    pub(crate) recorder: EventRecorder,
    pub(crate) informers: Informers,
    pub(crate) clock: Clock,
    pub(crate) seed: u64,
    pub(crate) registry: images::Registry,
    pub(crate) scope: lifecycle::Scope,
}

/// Why a reconcile is tried again with back-off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The API server did not take a write or answer a read.
    #[error("{what} {key}")]
    Api {
        what: &'static str,
        key: String,
        #[source]
        source: kube::Error,
    },
    /// The source could not be fetched; its status says the same.
    #[error("fetch {key}: {why}")]
    Fetch { key: String, why: String },
}

impl Context {
    pub(crate) fn queue(&self) -> WorkQueue<ObjectKey> {
        WorkQueue::with(BACKOFF, self.seed)
    }

    pub(crate) fn now(&self) -> String {
        rfc3339(self.clock.now())
    }

    /// Adds keys of objects that come, go, or are asked for something else; their status is
    /// written by ourselves.
    pub(crate) fn enqueue<K: Followed>(
        &self,
        informer: &Informer<K>,
        queue: &WorkQueue<ObjectKey>,
    ) {
        let queue = queue.clone();
        informer.each_change(&self.scope, move |old, new| {
            let asked = |o: &Arc<K>| {
                let meta = o.meta();
                (
                    meta.generation,
                    meta.deletion_timestamp.is_some(),
                    requested(&**o).map(str::to_owned),
                    o.suspended(),
                )
            };
            if old.map(asked) != new.map(asked)
                && let Some(object) = new.or(old)
            {
                queue.add(ObjectKey::of(&**object));
            }
        });
    }

    /// Starts workers once what they read has synced.
    pub(crate) fn work<F, Fut>(
        &self,
        name: &'static str,
        queue: WorkQueue<ObjectKey>,
        synced: Vec<futures::future::BoxFuture<'static, ()>>,
        reconcile: F,
    ) where
        F: Fn(ObjectKey) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Outcome, Error>> + Send + 'static,
    {
        start_workers(name, queue, WORKERS, synced, &self.scope, reconcile);
    }

    /// Writes what differs of a status.
    pub(crate) async fn write_status<K: Followed>(
        &self,
        key: &ObjectKey,
        old: &Value,
        new: &Value,
    ) -> Result<(), Error> {
        let old = if old.is_object() {
            old.clone()
        } else {
            json!({})
        };
        let Some(patch) = difference(&old, new) else {
            return Ok(());
        };
        let path = format!("{}/status", path::<K>(key));
        match self.cluster.merge(&path, &json!({"status": patch})).await {
            Err(error) if client::is_not_found(&error) => Ok(()),
            Err(source) => Err(Error::Api {
                what: "update status of",
                key: named::<K>(key),
                source,
            }),
            Ok(_) => Ok(()),
        }
    }
}

/// The API path of an object.
pub(crate) fn path<K: Followed>(key: &ObjectKey) -> String {
    format!(
        "/apis/{}/{}/namespaces/{}/{}/{}",
        K::group(&()),
        K::version(&()),
        key.namespace,
        K::plural(&()),
        key.name
    )
}

/// `Kind namespace/name`, for errors.
pub(crate) fn named<K: Followed>(key: &ObjectKey) -> String {
    format!("{} {key}", K::kind(&()))
}

/// The token of a request to reconcile.
pub(crate) fn requested<K: Followed>(object: &K) -> Option<&str> {
    object
        .meta()
        .annotations
        .as_ref()?
        .get(REQUESTED_AT)
        .map(String::as_str)
}

/// Notes in a status that the object was looked at as it is.
pub(crate) fn seen<K: Followed>(object: &K, status: &mut Value) {
    if let Some(token) = requested(object) {
        status["lastHandledReconcileAt"] = json!(token);
    }
    if let Some(generation) = object.meta().generation {
        status["observedGeneration"] = json!(generation);
    }
}

/// The kept revision of a source, as its status states it.
pub(crate) fn kept(status: &Value) -> Option<Artifact> {
    serde_json::from_value(status.get("artifact")?.clone())
        .ok()
        .filter(|a: &Artifact| !a.digest.is_empty())
}

/// Applies the definitions and waits until they are served, until that succeeds.
async fn install(cluster: &Cluster) {
    let mut failing = false;
    while let Err(why) = try_install(cluster).await {
        if !std::mem::replace(&mut failing, true) {
            tracing::warn!(error = why, "definitions not installed, trying again");
        }
        tokio::time::sleep(INSTALL_AGAIN).await;
    }
}

async fn try_install(cluster: &Cluster) -> Result<(), String> {
    for text in crds() {
        let crd: Value = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        let api_version = crd["apiVersion"].as_str().unwrap_or_default();
        let mapping = cluster
            .mapping(api_version, "CustomResourceDefinition")
            .await
            .map_err(|e| explain(&e))?
            .ok_or("the server serves no CustomResourceDefinitions")?;
        let applied = cluster.apply(&mapping, &crd, false).await;
        applied.map_err(|e| explain(&e))?;
    }
    for (group, kind) in [
        (crate::kinds::SOURCE_GROUP, "GitRepository"),
        (crate::kinds::SOURCE_GROUP, "OCIRepository"),
        (crate::kinds::KUSTOMIZE_GROUP, "Kustomization"),
    ] {
        // A server takes a moment to serve what it has just been told of.
        let began = Instant::now();
        loop {
            let served = cluster.mapping(&format!("{group}/v1"), kind).await;
            if served.map_err(|e| explain(&e))?.is_some() {
                break;
            }
            if began.elapsed() > SERVED_WITHIN {
                return Err(format!("{kind} is not served"));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    Ok(())
}

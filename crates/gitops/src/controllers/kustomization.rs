//! Applying Kustomizations: build the source's revision, check it, apply it, wait, say so.

use super::{Context, Error, kept, named, path, seen};
use crate::apply::{ApplyError, Owner, Request, prepare};
use crate::artifact::Artifact;
use crate::cluster::{Cluster, explain};
use crate::health::{Health, health};
use crate::kinds::{Followed, GitRepository, Kustomization, KustomizationSpec, OCIRepository};
use crate::objects::{Entry, ObjectId, version_of};
use crate::plan::Action;
use crate::revision::{RevisionError, objects};
use crate::status::{Conditions, reason};
use crate::variables::variables;
use client::{Informer, ObjectKey, Outcome};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const FINALIZER: &str = "finalizers.fluxcd.io";
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Until what is not ready is looked at again; what it waits for wakes it sooner.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Between looks at objects whose health is waited for.
const HEALTH_AGAIN: Duration = Duration::from_millis(500);
/// Objects that a message names at most.
const NAMED_MAX: usize = 20;

pub(crate) fn start(context: &Context) {
    let all = context.informers.get::<Kustomization>();
    let git = context.informers.get::<GitRepository>();
    let oci = context.informers.get::<OCIRepository>();
    let queue = context.queue();
    context.enqueue(&all, &queue);
    wake_users(context, &git, &all, &queue);
    wake_users(context, &oci, &all, &queue);
    {
        // Those that depend on one that turned ready or was applied anew.
        let (queue, others) = (queue.clone(), all.clone());
        all.each_change(&context.scope, move |old, new| {
            let state = |o: &Arc<Kustomization>| {
                let ready = Conditions::of(&o.status).is_true("Ready");
                (ready, o.status["lastAppliedRevision"].clone())
            };
            if let Some(new) = new
                && old.map(state) != Some(state(new))
            {
                let key = ObjectKey::of(&**new);
                let waiting = others.select(|k| dependencies(k).any(|d| d == key));
                waiting.iter().for_each(|k| queue.add(ObjectKey::of(&**k)));
            }
        });
    }
    let synced = vec![all.ready(), git.ready(), oci.ready()];
    let controller = Arc::new(Controller {
        context: context.clone(),
        all,
        git,
        oci,
    });
    context.work("gitops-kustomize-controller", queue, synced, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

/// Wakes the Kustomizations of a source whose revision changed.
fn wake_users<K: Followed>(
    context: &Context,
    sources: &Informer<K>,
    all: &Informer<Kustomization>,
    queue: &client::WorkQueue<ObjectKey>,
) {
    let (queue, all) = (queue.clone(), all.clone());
    sources.each_change(&context.scope, move |old, new| {
        let digest = |o: &Arc<K>| o.raw_status()["artifact"]["digest"].clone();
        let Some(new) = new.filter(|n| old.map(digest) != Some(digest(n))) else {
            return;
        };
        let key = ObjectKey::of(&**new);
        let users = all.select(|k| k.spec.source_ref.kind == K::kind(&()) && source_of(k) == key);
        users.iter().for_each(|k| queue.add(ObjectKey::of(&**k)));
    });
}

fn source_of(object: &Kustomization) -> ObjectKey {
    let named = &object.spec.source_ref;
    let own = object.metadata.namespace.clone().unwrap_or_default();
    ObjectKey::new(named.namespace.clone().unwrap_or(own), named.name.clone())
}

fn dependencies(object: &Kustomization) -> impl Iterator<Item = ObjectKey> + '_ {
    let own = object.metadata.namespace.clone().unwrap_or_default();
    object.spec.depends_on.iter().map(move |d| {
        ObjectKey::new(
            d.namespace.clone().unwrap_or_else(|| own.clone()),
            d.name.clone(),
        )
    })
}

struct Controller {
    context: Context,
    all: Informer<Kustomization>,
    git: Informer<GitRepository>,
    oci: Informer<OCIRepository>,
}

/// Why a reconcile did not get to its end.
struct Failure {
    reason: &'static str,
    message: String,
    /// Only a change of the spec helps.
    stalled: bool,
}

impl Failure {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            stalled: false,
        }
    }
}

impl From<RevisionError> for Failure {
    fn from(error: RevisionError) -> Self {
        Self {
            reason: match error {
                RevisionError::Path { .. } => reason::ARTIFACT_FAILED,
                RevisionError::Unsupported { .. } => reason::INVALID_SPEC,
                _ => reason::BUILD_FAILED,
            },
            stalled: matches!(error, RevisionError::Unsupported { .. }),
            message: error.to_string(),
        }
    }
}

impl From<ApplyError> for Failure {
    fn from(error: ApplyError) -> Self {
        let reason = match error {
            ApplyError::Delete { .. } => reason::PRUNE_FAILED,
            _ => reason::RECONCILIATION_FAILED,
        };
        Self::new(reason, error.to_string())
    }
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Error> {
        let Some(object) = self.all.get_key(key) else {
            return Ok(Outcome::Done);
        };
        if object.metadata.deletion_timestamp.is_some() {
            return self.finalize(key, &object).await;
        }
        if !has_finalizer(&object) {
            self.set_finalizer(key, &object, true).await?;
        }
        if object.spec.suspend {
            return Ok(Outcome::Done);
        }
        let spec = &object.spec;
        let interval = spec.interval.0.max(INTERVAL_MIN);
        let mut status = if object.status.is_object() {
            object.status.clone()
        } else {
            json!({})
        };
        let began = Instant::now();
        let outcome = self.apply(key, &object, &mut status).await?;
        let generation = object.metadata.generation.unwrap_or_default();
        let now = self.context.now();
        let mut conditions = Conditions::of(&status);
        let after = match outcome {
            Ok((revision, actions)) => {
                let message = format!("Applied revision: {revision}");
                conditions.ready(reason::SUCCEEDED, &message, generation, &now);
                status["lastAppliedRevision"] = json!(revision);
                self.tell(&object, &actions, began.elapsed(), interval);
                interval
            }
            Err(failure) => {
                let said = (failure.reason, failure.message.as_str());
                conditions.failed(said, failure.stalled, generation, &now);
                if failure.reason == reason::HEALTH_FAILED {
                    conditions.set("Healthy", "False", said, generation, &now);
                }
                let recorder = &self.context.recorder;
                recorder.warning(&*object, failure.reason, &failure.message);
                let retry = spec
                    .retry_interval
                    .map_or(interval, |r| r.0.max(INTERVAL_MIN));
                match failure.reason {
                    reason::DEPENDENCY | reason::ARTIFACT_FAILED => retry.min(LOOK_AGAIN),
                    _ => retry,
                }
            }
        };
        status["conditions"] = conditions.into_value();
        seen(&*object, &mut status);
        // It may have been written before: what differs from then is written now.
        let written = self.written(key, &object).await;
        self.context
            .write_status::<Kustomization>(key, &written, &status)
            .await?;
        Ok(Outcome::After(after))
    }

    /// The status as it stands at the server.
    async fn written(&self, key: &ObjectKey, object: &Kustomization) -> Value {
        match self.context.cluster.read(&path::<Kustomization>(key)).await {
            Ok(now) => now["status"].clone(),
            Err(_) => object.status.clone(),
        }
    }

    /// Events of what was done.
    fn tell(&self, object: &Kustomization, actions: &[Action], took: Duration, interval: Duration) {
        let done: Vec<String> = actions
            .iter()
            .filter_map(|a| a.verb().map(|verb| format!("{} {verb}", a.id())))
            .collect();
        if done.is_empty() {
            return;
        }
        let mut text = done[..done.len().min(NAMED_MAX)].join("\n");
        if done.len() > NAMED_MAX {
            let _ = write!(text, "\nand {} more", done.len() - NAMED_MAX);
        }
        let recorder = &self.context.recorder;
        recorder.normal(object, reason::PROGRESSING, &text);
        recorder.normal(
            object,
            reason::SUCCEEDED,
            &format!(
                "Reconciliation finished in {} ms, next run in {}s",
                took.as_millis(),
                interval.as_secs()
            ),
        );
    }

    /// All steps; an outer error is one of writing the status.
    async fn apply(
        &self,
        key: &ObjectKey,
        object: &Arc<Kustomization>,
        status: &mut Value,
    ) -> Result<Result<(String, Vec<Action>), Failure>, Error> {
        let spec = &object.spec;
        let artifact = match self.artifact(object) {
            Ok(artifact) => artifact,
            Err(failure) => return Ok(Err(failure)),
        };
        if let Err(failure) = self.check_dependencies(object, &artifact.revision) {
            return Ok(Err(failure));
        }
        let revision = artifact.revision.clone();
        let built = self.build(key, object, artifact).await;
        status["lastAttemptedRevision"] = json!(revision);
        let objects = match built {
            Ok(objects) => objects,
            Err(failure) => return Ok(Err(failure)),
        };
        let inventory = inventory(status);
        let request = Request {
            owner: Owner {
                name: key.name.clone(),
                namespace: key.namespace.clone(),
            },
            objects,
            namespace: "default".to_owned(),
            inventory: inventory.clone(),
            prune: spec.prune,
            force: spec.force,
        };
        let cluster = self.cluster(key, spec);
        let prepared = match prepare(&cluster, request).await {
            Ok(prepared) => prepared,
            Err(error) => return Ok(Err(error.into())),
        };
        let new = prepared.inventory().to_vec();
        let before = prepared.inventory_before();
        let anew = status["lastAppliedRevision"] != revision.as_str()
            || status["observedGeneration"].as_i64() != object.metadata.generation;
        if before != inventory || anew {
            status["inventory"] = json!({"entries": before});
            let mut conditions = Conditions::of(status);
            let message = format!("Applying revision: {revision}");
            let generation = object.metadata.generation.unwrap_or_default();
            conditions.progressing(&message, generation, &self.context.now());
            status["conditions"] = conditions.into_value();
            self.context
                .write_status::<Kustomization>(key, &object.status, status)
                .await?;
        }
        let wanted: Vec<(String, ObjectId)> = if spec.wait {
            prepared
                .objects()
                .map(|(id, o)| (api_version(o), id.clone()))
                .collect()
        } else {
            health_checks(key, spec)
        };
        let actions = match prepared.execute().await {
            Ok(actions) => actions,
            Err(error) => return Ok(Err(error.into())),
        };
        status["inventory"] = json!({"entries": new});
        let timeout = spec.timeout.unwrap_or(spec.interval).0;
        if let Err(failure) = self.until_healthy(&cluster, wanted, timeout).await {
            return Ok(Err(failure));
        }
        let mut conditions = Conditions::of(status);
        if spec.wait || !spec.health_checks.is_empty() {
            let generation = object.metadata.generation.unwrap_or_default();
            let said = ("Succeeded", "Health check passed");
            conditions.set("Healthy", "True", said, generation, &self.context.now());
        } else {
            conditions.remove("Healthy");
        }
        status["conditions"] = conditions.into_value();
        Ok(Ok((revision, actions)))
    }

    fn cluster(&self, key: &ObjectKey, spec: &KustomizationSpec) -> Cluster {
        match spec
            .service_account_name
            .as_deref()
            .filter(|a| !a.is_empty())
        {
            Some(account) => {
                Cluster::acting_as(self.context.client.clone(), &key.namespace, account)
            }
            None => self.context.cluster.clone(),
        }
    }

    /// The revision of the source.
    fn artifact(&self, object: &Kustomization) -> Result<Artifact, Failure> {
        let key = source_of(object);
        let status = match object.spec.source_ref.kind.as_str() {
            "GitRepository" => self.git.get_key(&key).map(|s| s.status.clone()),
            "OCIRepository" => self.oci.get_key(&key).map(|s| s.status.clone()),
            other => {
                return Err(Failure {
                    reason: reason::INVALID_SPEC,
                    message: format!(
                        "use spec.sourceRef.kind {other}: only GitRepository and OCIRepository are supported"
                    ),
                    stalled: true,
                });
            }
        };
        let kind = &object.spec.source_ref.kind;
        let status = status.ok_or_else(|| {
            Failure::new(
                reason::ARTIFACT_FAILED,
                format!("Source '{kind}/{key}' not found"),
            )
        })?;
        kept(&status).ok_or_else(|| {
            Failure::new(
                reason::ARTIFACT_FAILED,
                format!(
                    "Source artifact not found, retrying in {}s",
                    LOOK_AGAIN.as_secs()
                ),
            )
        })
    }

    fn check_dependencies(&self, object: &Kustomization, revision: &str) -> Result<(), Failure> {
        for key in dependencies(object) {
            let failure =
                |why: &str| Failure::new(reason::DEPENDENCY, format!("dependency '{key}' {why}"));
            let Some(other) = self.all.get_key(&key) else {
                return Err(failure("not found"));
            };
            let ready = Conditions::of(&other.status).is_true("Ready")
                && other.status["observedGeneration"].as_i64() == other.metadata.generation;
            if !ready {
                return Err(failure("is not ready"));
            }
            let same_source = source_of(&other) == source_of(object)
                && other.spec.source_ref.kind == object.spec.source_ref.kind;
            if same_source && other.status["lastAppliedRevision"] != revision {
                return Err(failure("revision is not up to date"));
            }
        }
        Ok(())
    }

    async fn build(
        &self,
        key: &ObjectKey,
        object: &Arc<Kustomization>,
        artifact: Artifact,
    ) -> Result<Vec<Value>, Failure> {
        let variables = variables(
            &self.cluster(key, &object.spec),
            &key.namespace,
            &object.spec,
        )
        .await
        .map_err(|e| Failure::new(reason::BUILD_FAILED, e.to_string()))?;
        let archives = self.context.archives.clone();
        let object = object.clone();
        let work = move || {
            let tree = archives
                .read(&artifact)
                .map_err(|e| Failure::new(reason::ARTIFACT_FAILED, e.to_string()))?;
            objects(&tree, &object.spec, variables.as_ref()).map_err(Failure::from)
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
            Err(Failure::new(
                reason::BUILD_FAILED,
                "build was interrupted".to_owned(),
            ))
        })
    }

    /// Waits until objects are healthy.
    async fn until_healthy(
        &self,
        cluster: &Cluster,
        wanted: Vec<(String, ObjectId)>,
        timeout: Duration,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + timeout;
        let mut left = wanted;
        loop {
            let mut waiting = Vec::new();
            let mut words = Vec::new();
            for (api_version, id) in left {
                let found = cluster.get(&api_version, &id).await;
                let found = found.map_err(|e| {
                    Failure::new(reason::HEALTH_FAILED, format!("{id}: {}", explain(&e)))
                })?;
                match found.as_ref().map_or(Health::NotFound, health) {
                    Health::Current => continue,
                    Health::Failed(why) => {
                        return Err(Failure::new(
                            reason::HEALTH_FAILED,
                            format!("health check failed: [{id} status: 'Failed': {why}]"),
                        ));
                    }
                    other => words.push(format!("{id} status: '{}'", other.word())),
                }
                waiting.push((api_version, id));
            }
            if waiting.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                words.truncate(NAMED_MAX);
                return Err(Failure::new(
                    reason::HEALTH_FAILED,
                    format!(
                        "health check failed after {}s: timeout waiting for: [{}]",
                        timeout.as_secs(),
                        words.join(", ")
                    ),
                ));
            }
            left = waiting;
            tokio::time::sleep(HEALTH_AGAIN).await;
        }
    }

    /// Deletes what was applied, unless it is told to leave it, and lets the object go.
    async fn finalize(&self, key: &ObjectKey, object: &Kustomization) -> Result<Outcome, Error> {
        if !has_finalizer(object) {
            return Ok(Outcome::Done);
        }
        let spec = &object.spec;
        let delete = match spec.deletion_policy.as_deref() {
            Some("Delete" | "WaitForTermination") => true,
            Some("Orphan") => false,
            _ => spec.prune,
        };
        if delete && !spec.suspend {
            let request = Request {
                owner: Owner {
                    name: key.name.clone(),
                    namespace: key.namespace.clone(),
                },
                objects: Vec::new(),
                namespace: "default".to_owned(),
                inventory: inventory(&object.status),
                prune: true,
                force: false,
            };
            let gone = async {
                let prepared = prepare(&self.cluster(key, spec), request).await?;
                prepared.execute().await
            };
            if let Err(error) = gone.await {
                let message = error.to_string();
                let recorder = &self.context.recorder;
                recorder.warning(object, reason::PRUNE_FAILED, &message);
                return Err(Error::Fetch {
                    key: named::<Kustomization>(key),
                    why: message,
                });
            }
        }
        self.set_finalizer(key, object, false).await?;
        Ok(Outcome::Done)
    }

    async fn set_finalizer(
        &self,
        key: &ObjectKey,
        object: &Kustomization,
        wanted: bool,
    ) -> Result<(), Error> {
        let known = object.metadata.finalizers.iter().flatten();
        let mut all: Vec<&str> = known
            .map(String::as_str)
            .filter(|f| *f != FINALIZER)
            .collect();
        if wanted {
            all.push(FINALIZER);
        }
        let patch = json!({"metadata": {
            "finalizers": all, "resourceVersion": object.metadata.resource_version,
        }});
        let cluster = &self.context.cluster;
        match cluster.merge(&path::<Kustomization>(key), &patch).await {
            Err(error) if client::is_not_found(&error) => Ok(()),
            Err(source) => Err(Error::Api {
                what: "update finalizers of",
                key: named::<Kustomization>(key),
                source,
            }),
            Ok(_) => Ok(()),
        }
    }
}

fn has_finalizer(object: &Kustomization) -> bool {
    object
        .metadata
        .finalizers
        .iter()
        .flatten()
        .any(|f| f == FINALIZER)
}

/// The entries of a status.
fn inventory(status: &Value) -> Vec<Entry> {
    serde_json::from_value(status["inventory"]["entries"].clone()).unwrap_or_default()
}

fn api_version(object: &Value) -> String {
    let group = object["apiVersion"]
        .as_str()
        .and_then(|v| v.split_once('/'))
        .map_or("", |(g, _)| g);
    match group {
        "" => version_of(object).to_owned(),
        group => format!("{group}/{}", version_of(object)),
    }
}

/// The objects that `healthChecks` names.
fn health_checks(key: &ObjectKey, spec: &KustomizationSpec) -> Vec<(String, ObjectId)> {
    spec.health_checks
        .iter()
        .map(|named| {
            let api_version = named.api_version.clone().unwrap_or_else(|| "v1".to_owned());
            let group = api_version
                .split_once('/')
                .map_or_else(String::new, |(g, _)| g.to_owned());
            let namespace = named
                .namespace
                .clone()
                .or_else(|| spec.target_namespace.clone())
                .unwrap_or_else(|| key.namespace.clone());
            let id = ObjectId {
                kind: named.kind.clone(),
                group,
                namespace,
                name: named.name.clone(),
            };
            (api_version, id)
        })
        .collect()
}

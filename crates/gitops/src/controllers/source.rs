//! Following sources: fetch what is new, keep it, say so.

use super::{Context, Error, kept, named, seen};
use crate::kinds::{Followed, GitRepository, OCIRepository};
use crate::source::{Fetched, SourceError, git, oci};
use crate::status::{Conditions, reason};
use client::{Informer, ObjectKey, Outcome};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// How long one look may take when the spec does not say.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How often is looked at least.
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// What differs between kinds of sources.
pub(crate) trait Source: Followed {
    fn interval(&self) -> Duration;
    fn timeout(&self) -> Option<Duration>;
    fn ignore(&self) -> Option<&str>;
    /// The reason of a failure that has no better one.
    const FAILED: &'static str;
    /// What is there now; none when that is the revision `known`.
    fn fetch(
        &self,
        context: &Context,
        key: &ObjectKey,
        known: Option<&str>,
    ) -> impl Future<Output = Result<Option<Fetched>, SourceError>> + Send;
}

impl Source for GitRepository {
    const FAILED: &'static str = reason::GIT_FAILED;
    fn interval(&self) -> Duration {
        self.spec.interval.0
    }
    fn timeout(&self) -> Option<Duration> {
        self.spec.timeout.map(|t| t.0)
    }
    fn ignore(&self) -> Option<&str> {
        self.spec.ignore.as_deref()
    }
    async fn fetch(
        &self,
        context: &Context,
        key: &ObjectKey,
        known: Option<&str>,
    ) -> Result<Option<Fetched>, SourceError> {
        let timeout = self.timeout().unwrap_or(TIMEOUT);
        let request = git::Request::read(context, key, &self.spec, known, timeout).await?;
        request.fetch().await
    }
}

impl Source for OCIRepository {
    const FAILED: &'static str = reason::OCI_FAILED;
    fn interval(&self) -> Duration {
        self.spec.interval.0
    }
    fn timeout(&self) -> Option<Duration> {
        self.spec.timeout.map(|t| t.0)
    }
    fn ignore(&self) -> Option<&str> {
        self.spec.ignore.as_deref()
    }
    async fn fetch(
        &self,
        context: &Context,
        key: &ObjectKey,
        known: Option<&str>,
    ) -> Result<Option<Fetched>, SourceError> {
        oci::fetch(context, key, &self.spec, known).await
    }
}

pub(crate) fn start<K: Source>(context: &Context) {
    let informer = context.informers.get::<K>();
    let queue = context.queue();
    context.enqueue(&informer, &queue);
    let synced = vec![informer.ready()];
    let controller = Arc::new(Controller {
        context: context.clone(),
        informer,
    });
    context.work("gitops-source-controller", queue, synced, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

struct Controller<K> {
    context: Context,
    informer: Informer<K>,
}

impl<K: Source> Controller<K> {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Error> {
        let context = &self.context;
        let Some(object) = self.informer.get_key(key) else {
            let kind = K::kind(&()).into_owned();
            context.archives.remove(&kind, &key.namespace, &key.name);
            git::forget(&context.data_dir, key);
            return Ok(Outcome::Done);
        };
        if object.suspended() || object.meta().deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        let old = object.raw_status();
        let artifact = kept(old).filter(|a| context.archives.has(a));
        let same_rules = old["observedIgnore"].as_str() == object.ignore();
        let known = artifact
            .as_ref()
            .filter(|_| same_rules)
            .map(|a| a.revision.clone());
        let timeout = object.timeout().unwrap_or(TIMEOUT);
        let fetch = object.fetch(context, key, known.as_deref());
        let fetched = tokio::time::timeout(timeout, fetch)
            .await
            .unwrap_or(Err(SourceError::TimedOut(timeout)));
        let mut status = if old.is_object() {
            old.clone()
        } else {
            json!({})
        };
        let outcome = match fetched {
            Ok(fetched) => self.keep(key, &object, fetched, &mut status).await,
            Err(error) => Err(error),
        };
        let interval = object.interval().max(INTERVAL_MIN);
        let result = self.conclude(key, &*object, outcome, &mut status, interval);
        seen(&*object, &mut status);
        context.write_status::<K>(key, old, &status).await?;
        result
    }

    /// Keeps a new revision.
    async fn keep(
        &self,
        key: &ObjectKey,
        object: &Arc<K>,
        fetched: Option<Fetched>,
        status: &mut Value,
    ) -> Result<String, SourceError> {
        let Some(Fetched {
            revision,
            tree,
            signed_by,
        }) = fetched
        else {
            return Ok(status["artifact"]["revision"]
                .as_str()
                .unwrap_or_default()
                .to_owned());
        };
        let archives = self.context.archives.clone();
        let now = self.context.clock.now();
        let kind = K::kind(&()).into_owned();
        let (namespace, name, written) =
            (key.namespace.clone(), key.name.clone(), revision.clone());
        let artifact = tokio::task::spawn_blocking(move || {
            archives.write((&kind, &namespace, &name), &written, &tree, now)
        })
        .await
        .map_err(|_| SourceError::Interrupted)??;
        status["artifact"] = json!(artifact);
        match object.ignore() {
            Some(rules) => status["observedIgnore"] = json!(rules),
            None => {
                if let Some(map) = status.as_object_mut() {
                    map.remove("observedIgnore");
                }
            }
        }
        if let Some(who) = signed_by {
            let mut conditions = Conditions::of(status);
            conditions.set(
                "SourceVerified",
                "True",
                (reason::VERIFIED, &who),
                object.meta().generation.unwrap_or_default(),
                &self.context.now(),
            );
            status["conditions"] = conditions.into_value();
        }
        self.context.recorder.normal(
            &**object,
            "NewArtifact",
            &format!("stored artifact for revision '{revision}'"),
        );
        Ok(revision)
    }

    /// States how it went.
    fn conclude(
        &self,
        key: &ObjectKey,
        object: &K,
        outcome: Result<String, SourceError>,
        status: &mut Value,
        interval: Duration,
    ) -> Result<Outcome, Error> {
        let mut conditions = Conditions::of(status);
        let generation = object.meta().generation.unwrap_or_default();
        let now = self.context.now();
        let result = match outcome {
            Ok(revision) => {
                let message = format!("stored artifact for revision '{revision}'");
                conditions.ready(reason::SUCCEEDED_SOURCE, &message, generation, &now);
                Ok(Outcome::After(interval))
            }
            Err(error) => {
                let reason = error.reason().unwrap_or(K::FAILED);
                let message = error.to_string();
                if reason == reason::VERIFICATION {
                    let said = (reason, message.as_str());
                    conditions.set("SourceVerified", "False", said, generation, &now);
                }
                conditions.failed((reason, &message), error.is_stalled(), generation, &now);
                self.context.recorder.warning(object, reason, &message);
                if error.is_stalled() {
                    Ok(Outcome::Done)
                } else {
                    Err(Error::Fetch {
                        key: named::<K>(key),
                        why: message,
                    })
                }
            }
        };
        status["conditions"] = conditions.into_value();
        result
    }
}

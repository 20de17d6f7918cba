//! What all controllers share, and their start.

use crate::certificates::Signer;
use crate::error::Error;
use crate::writes::UNSEEN_RETRY;
use client::informer::Kind;
use client::{
    Clock, EventRecorder, Informer, Informers, ObjectKey, Outcome, WorkQueue, start_workers,
};
use futures::future::BoxFuture;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use serde_json::{Value, json};
use std::sync::Arc;

/// What the controllers need.
#[derive(Clone)]
pub struct Config {
    /// The process's informers; their client also writes.
    pub informers: Informers,
    /// Certificates (PEM) that pods trust the API server by: ConfigMap `kube-root-ca.crt`.
    pub root_ca_pem: String,
    /// Time of conditions, deadlines and events.
    pub clock: Clock,
    /// Seed of the jitter of retries.
    pub seed: u64,
    /// Signs certificates of nodes; without one none are approved or signed.
    pub signer: Option<Arc<dyn Signer>>,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("informers", &self.informers)
            .finish_non_exhaustive()
    }
}

/// Starts all controllers in `scope`; they run until it is cancelled.
pub fn run(config: Config, scope: &lifecycle::Scope) {
    let context = Context {
        client: config.informers.client().clone(),
        informers: config.informers,
        clock: config.clock,
        seed: config.seed,
        scope: scope.clone(),
    };
    crate::replicaset::start(&context);
    crate::deployment::start(&context);
    crate::statefulset::start(&context);
    crate::daemonset::start(&context);
    crate::endpoints::start(&context);
    crate::gc::start(&context);
    crate::namespace::start(&context);
    crate::nodes::start(&context);
    crate::job::start(&context);
    crate::cronjob::start(&context);
    crate::aggregation::start(&context);
    crate::autoscaling::start(&context);
    crate::quota::start(&context);
    crate::disruption::start(&context);
    crate::roots::start(&context, config.root_ca_pem);
    crate::tokens::start(&context);
    crate::volumes::start(&context);
    if let Some(signer) = config.signer {
        crate::certificates::start(&context, signer);
    }
}

/// What a controller is started with.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) client: kube::Client,
    pub(crate) informers: Informers,
    pub(crate) clock: Clock,
    pub(crate) seed: u64,
    pub(crate) scope: lifecycle::Scope,
}

impl Context {
    /// Writes an object's status, with its resourceVersion: what was written meanwhile is not
    /// lost. One that has gone needs none.
    pub(crate) async fn write_status<K>(&self, key: &ObjectKey, object: &K) -> Result<(), Error>
    where
        K: Kind + kube::Resource<Scope = NamespaceResourceScope> + serde::Serialize,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &key.namespace);
        let params = PostParams::default();
        match api.replace_status(&key.name, &params, object).await {
            Ok(_) => Ok(()),
            Err(error) if client::is_not_found(&error) => Ok(()),
            Err(source) => Err(Error::Update {
                what: format!("status of {}", named::<K>(key)),
                source,
            }),
        }
    }

    /// Sets an object's whole status, that is this controller's alone, whatever else was written
    /// to the object meanwhile, by this controller too. One that has gone needs none.
    pub(crate) async fn patch_status<K, S>(
        &self,
        key: &ObjectKey,
        object: &K,
        known: Option<&S>,
        status: &S,
    ) -> Result<(), Error>
    where
        K: Kind + kube::Resource<Scope = NamespaceResourceScope>,
        S: serde::Serialize,
    {
        let fields = |status: &S| match serde_json::to_value(status) {
            Ok(Value::Object(map)) => map,
            _ => serde_json::Map::new(),
        };
        let mut wanted = fields(status);
        // What it no longer has is set to null.
        for field in known.map(fields).unwrap_or_default().keys() {
            wanted.entry(field.clone()).or_insert(Value::Null);
        }
        let patch = json!({"metadata": {"uid": object.meta().uid}, "status": wanted});
        let api: Api<K> = Api::namespaced(self.client.clone(), &key.namespace);
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        match api.patch_status(&key.name, &params, &patch).await {
            Ok(_) => Ok(()),
            Err(error) if client::is_not_found(&error) => Ok(()),
            Err(source) => Err(Error::Update {
                what: format!("status of {}", named::<K>(key)),
                source,
            }),
        }
    }

    pub(crate) fn recorder(&self, component: &str) -> EventRecorder {
        EventRecorder::new(
            self.client.clone(),
            component,
            "",
            self.clock.clone(),
            &self.scope,
        )
    }

    pub(crate) fn queue<K: client::queue::Key>(&self) -> WorkQueue<K> {
        WorkQueue::with(client::queue::Backoff::default(), self.seed)
    }

    /// [`Informer::each_change`] in the controllers' scope.
    pub(crate) fn follow<K: Kind>(
        &self,
        informer: &Informer<K>,
        told: impl FnMut(Option<&Arc<K>>, Option<&Arc<K>>) + Send + 'static,
    ) {
        informer.each_change(&self.scope, told);
    }

    /// Adds the key of each object that comes, changes or goes.
    pub(crate) fn enqueue<K: Kind>(&self, informer: &Informer<K>, queue: &WorkQueue<ObjectKey>) {
        let queue = queue.clone();
        self.follow(informer, move |old, new| {
            if let Some(object) = new.or(old) {
                queue.add(ObjectKey::of(&**object));
            }
        });
    }

    /// Adds the key of the controller, when it is of kind `O`, of each object that comes,
    /// changes or goes; of both when it passes from one to another.
    pub(crate) fn enqueue_owners<O, K>(&self, informer: &Informer<K>, queue: &WorkQueue<ObjectKey>)
    where
        O: Kind,
        K: Kind,
    {
        let queue = queue.clone();
        self.follow(informer, move |old, new| {
            for object in [new, old].into_iter().flatten() {
                if let Some(key) = controller_key::<O>(&**object) {
                    queue.add(key);
                }
            }
        });
    }

    /// Starts workers once what they read has synced.
    pub(crate) fn work<K, F, Fut>(
        &self,
        name: &'static str,
        queue: WorkQueue<K>,
        workers: usize,
        synced: Vec<BoxFuture<'static, ()>>,
        reconcile: F,
    ) where
        K: client::queue::Key + Sync,
        F: Fn(K) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Outcome, Error>> + Send + 'static,
    {
        start_workers(name, queue, workers, synced, &self.scope, move |key| {
            let reconciled = reconcile(key);
            async move { forgive_gone(reconciled.await) }
        });
    }
}

/// What was to be changed has gone, and the informer has not told so yet: no error, but
/// reason to look again. What is to be deleted and has gone is deleted.
fn forgive_gone(reconciled: Result<Outcome, Error>) -> Result<Outcome, Error> {
    match reconciled {
        Err(Error::Update { what, source }) if client::is_not_found(&source) => {
            tracing::debug!(what, "gone before it was changed, looking again");
            Ok(Outcome::After(UNSEEN_RETRY))
        }
        Err(Error::Delete { source, .. }) if client::is_not_found(&source) => {
            Ok(Outcome::After(UNSEEN_RETRY))
        }
        other => other,
    }
}

/// The key of an object's controller, when that is of kind `O`.
pub(crate) fn controller_key<O: Kind>(object: &impl kube::Resource) -> Option<ObjectKey> {
    let owner = object
        .meta()
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))?;
    let group = owner.api_version.split_once('/').map_or("", |(g, _)| g);
    (owner.kind == O::kind(&()) && group == O::group(&())).then(|| {
        ObjectKey::new(
            object.meta().namespace.clone().unwrap_or_default(),
            owner.name.clone(),
        )
    })
}

/// The uid of an object's controller.
pub(crate) fn controller_uid(object: &impl kube::Resource) -> Option<&str> {
    object
        .meta()
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))
        .map(|owner| owner.uid.as_str())
}

/// `Kind namespace/name`, for errors.
pub(crate) fn named<K: Kind>(key: &ObjectKey) -> String {
    format!("{} {key}", K::kind(&()))
}

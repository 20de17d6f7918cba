//! ConfigMaps and Secrets that pods of this node refer to: fetched and watched one by
//! one while a pod uses them, shared by all that do, and seeded from the checkpoint so
//! that pods start without an API server.
//!
//! A kubelet may see no others (the Node authorizer), so there is no list of all.
//! Start with [`ObjectCache::for_pod`].

use crate::pod::Uid;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1 as core;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long a pod waits for an object that the API server does not tell of.
const LOAD_DEADLINE: Duration = Duration::from_secs(10);

/// ConfigMap or Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Kind {
    ConfigMap,
    Secret,
}

impl Kind {
    /// As in `configmap "x" not found`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
        }
    }

    /// As in `ConfigMap ns/x`.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }
}

/// Either object's content, which may be secret: it has no `Debug` of its values.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ObjectData {
    /// Values by key.
    pub(crate) data: BTreeMap<String, Vec<u8>>,
    /// `type` of a Secret.
    pub(crate) type_: Option<String>,
}

impl std::fmt::Debug for ObjectData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectData")
            .field("keys", &self.data.keys())
            .field("type", &self.type_)
            .finish()
    }
}

impl From<core::ConfigMap> for ObjectData {
    fn from(object: core::ConfigMap) -> Self {
        let mut data: BTreeMap<_, _> = object
            .data
            .into_iter()
            .flatten()
            .map(|(k, v)| (k, v.into_bytes()))
            .collect();
        data.extend(
            object
                .binary_data
                .into_iter()
                .flatten()
                .map(|(k, v)| (k, v.0)),
        );
        Self { data, type_: None }
    }
}

impl From<core::Secret> for ObjectData {
    fn from(object: core::Secret) -> Self {
        Self {
            data: object
                .data
                .into_iter()
                .flatten()
                .map(|(k, v)| (k, v.0))
                .collect(),
            type_: object.type_,
        }
    }
}

/// What a pod refers to, as it is now; absent ones are left out.
#[derive(Clone, Debug, Default)]
pub(crate) struct PodObjects {
    found: BTreeMap<(Kind, String), Arc<ObjectData>>,
}

impl PodObjects {
    pub(crate) fn get(&self, kind: Kind, name: &str) -> Option<&Arc<ObjectData>> {
        self.found.get(&(kind, name.to_string()))
    }

    pub(crate) fn insert(&mut self, kind: Kind, name: &str, object: Arc<ObjectData>) {
        self.found.insert((kind, name.into()), object);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&(Kind, String), &Arc<ObjectData>)> {
        self.found.iter()
    }
}

/// All that a pod's volumes, environment and pull secrets refer to.
pub(crate) fn references(pod: &core::Pod) -> BTreeSet<(Kind, String)> {
    let mut refs = BTreeSet::new();
    let Some(spec) = pod.spec.as_ref() else {
        return refs;
    };
    let mut config_map = |name: &str| refs.insert((Kind::ConfigMap, name.to_string()));
    let mut secrets = Vec::new();
    for volume in spec.volumes.iter().flatten() {
        if let Some(v) = &volume.config_map {
            config_map(&v.name);
        }
        if let Some(name) = volume.secret.as_ref().and_then(|v| v.secret_name.clone()) {
            secrets.push(name);
        }
        let sources = volume
            .projected
            .iter()
            .flat_map(|p| p.sources.iter().flatten());
        for source in sources {
            if let Some(v) = &source.config_map {
                config_map(&v.name);
            }
            secrets.extend(source.secret.as_ref().map(|v| v.name.clone()));
        }
    }
    let ephemeral = crate::pod::ephemeral(spec);
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .chain(&ephemeral);
    for container in containers {
        for from in container.env_from.iter().flatten() {
            if let Some(r) = &from.config_map_ref {
                config_map(&r.name);
            }
            secrets.extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
        }
        let sources = container
            .env
            .iter()
            .flatten()
            .filter_map(|v| v.value_from.as_ref());
        for source in sources {
            if let Some(r) = &source.config_map_key_ref {
                config_map(&r.name);
            }
            secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
        }
    }
    secrets.extend(
        spec.image_pull_secrets
            .iter()
            .flatten()
            .map(|r| r.name.clone()),
    );
    refs.extend(secrets.into_iter().map(|name| (Kind::Secret, name)));
    refs
}

/// The API server has not told whether an object exists.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("load {} {namespace}/{name}: no answer from the API server yet", .kind.word())]
pub(crate) struct LoadError {
    kind: Kind,
    namespace: String,
    name: String,
}

type Key = (Kind, String, String);

#[derive(Clone, Debug, PartialEq)]
enum Loaded {
    NotYet,
    Missing,
    Present(Arc<ObjectData>),
}

struct Entry {
    value: watch::Sender<Loaded>,
    users: HashSet<Uid>,
    scope: lifecycle::Scope,
}

/// Called with the users of an object that changed.
type Changed = Box<dyn Fn(&HashSet<Uid>) + Send + Sync>;

/// The objects in use. One watch each; it ends with the object's last user.
pub(crate) struct ObjectCache {
    client: kube::Client,
    scope: lifecycle::Scope,
    /// Held for look-ups and never across an await.
    entries: Mutex<HashMap<Key, Entry>>,
    /// Told the users of an object that changed.
    changed: Changed,
}

impl ObjectCache {
    pub(crate) fn new(
        client: kube::Client,
        scope: &lifecycle::Scope,
        changed: impl Fn(&HashSet<Uid>) + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            client,
            scope: scope.clone(),
            entries: Mutex::default(),
            changed: Box::new(changed),
        })
    }

    /// The objects that the pod refers to, and from now on a hint when one changes.
    pub(crate) async fn for_pod(
        self: &Arc<Self>,
        uid: &Uid,
        pod: &core::Pod,
    ) -> Result<PodObjects, LoadError> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut waiting = Vec::new();
        for (kind, name) in references(pod) {
            let key = (kind, namespace.to_string(), name);
            waiting.push((key.clone(), self.subscribe(uid, key, None)));
        }
        let mut objects = PodObjects::default();
        for ((kind, namespace, name), mut value) in waiting {
            let loaded = tokio::time::timeout(
                LOAD_DEADLINE,
                value.wait_for(|v| !matches!(v, Loaded::NotYet)),
            )
            .await;
            match loaded {
                Ok(Ok(value)) => {
                    if let Loaded::Present(object) = &*value {
                        objects.insert(kind, &name, object.clone());
                    }
                }
                _ => {
                    return Err(LoadError {
                        kind,
                        namespace,
                        name,
                    });
                }
            }
        }
        Ok(objects)
    }

    /// Puts in what a checkpoint holds; the API server's word replaces it.
    pub(crate) fn seed(
        self: &Arc<Self>,
        uid: &Uid,
        kind: Kind,
        namespace: &str,
        name: &str,
        object: Arc<ObjectData>,
    ) {
        let key = (kind, namespace.to_string(), name.to_string());
        drop(self.subscribe(uid, key, Some(object)));
    }

    /// The pod is no more: objects that only it used are let go.
    pub(crate) fn release(&self, uid: &Uid) {
        self.entries.lock().retain(|_, entry| {
            entry.users.remove(uid);
            if entry.users.is_empty() {
                entry.scope.token().cancel();
            }
            !entry.users.is_empty()
        });
    }

    fn subscribe(
        self: &Arc<Self>,
        uid: &Uid,
        key: Key,
        seed: Option<Arc<ObjectData>>,
    ) -> watch::Receiver<Loaded> {
        let mut entries = self.entries.lock();
        let entry = entries.entry(key.clone()).or_insert_with(|| {
            let entry = Entry {
                value: watch::Sender::new(seed.map_or(Loaded::NotYet, Loaded::Present)),
                users: HashSet::new(),
                scope: self.scope.child(),
            };
            self.follow(key, entry.value.clone(), &entry.scope);
            entry
        });
        entry.users.insert(uid.clone());
        entry.value.subscribe()
    }

    fn follow(self: &Arc<Self>, key: Key, value: watch::Sender<Loaded>, scope: &lifecycle::Scope) {
        let this = self.clone();
        scope.spawn_cancellable(async move {
            match key.0 {
                Kind::ConfigMap => this.follow_kind::<core::ConfigMap>(key, value).await,
                Kind::Secret => this.follow_kind::<core::Secret>(key, value).await,
            }
        });
    }

    async fn follow_kind<K>(&self, key: Key, value: watch::Sender<Loaded>)
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned
            + Into<ObjectData>
            + Send
            + 'static,
    {
        let api = kube::Api::<K>::namespaced(self.client.clone(), &key.1);
        let config = watcher::Config::default().fields(&format!("metadata.name={}", key.2));
        let mut events = std::pin::pin!(watcher(api, config).default_backoff());
        let mut listed = None;
        while let Some(event) = events.next().await {
            let next = match event {
                Ok(Event::Init) => {
                    listed = None;
                    continue;
                }
                Ok(Event::InitApply(object)) => {
                    listed = Some(object);
                    continue;
                }
                Ok(Event::InitDone) => listed.take(),
                Ok(Event::Apply(object)) => Some(object),
                Ok(Event::Delete(_)) => None,
                Err(error) => {
                    tracing::debug!(kind = key.0.word(), namespace = key.1, name = key.2, %error, "watch failed, trying again");
                    continue;
                }
            };
            let next = next.map_or(Loaded::Missing, |o| Loaded::Present(Arc::new(o.into())));
            let first = matches!(&*value.borrow(), Loaded::NotYet);
            let changed = value.send_if_modified(|known| {
                let changed = *known != next;
                *known = next;
                changed
            });
            if changed && !first {
                let users = self.entries.lock().get(&key).map(|e| e.users.clone());
                (self.changed)(&users.unwrap_or_default());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn finds_every_reference() {
        let pod: core::Pod = serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {
                "imagePullSecrets": [{"name": "pull"}],
                "volumes": [
                    {"name": "a", "configMap": {"name": "vol-cm"}},
                    {"name": "b", "secret": {"secretName": "vol-secret"}},
                    {"name": "c", "projected": {"sources": [
                        {"configMap": {"name": "kube-root-ca.crt"}}, {"secret": {"name": "proj"}}]}},
                ],
                "containers": [{"name": "c",
                    "envFrom": [{"configMapRef": {"name": "from-cm"}}, {"secretRef": {"name": "from-secret"}}],
                    "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "key-cm", "key": "k"}}}]}],
            },
        }))
        .unwrap();
        let names: Vec<String> = references(&pod)
            .into_iter()
            .map(|(kind, name)| format!("{}/{name}", kind.word()))
            .collect();
        assert_eq!(
            names,
            [
                "configmap/from-cm",
                "configmap/key-cm",
                "configmap/kube-root-ca.crt",
                "configmap/vol-cm",
                "secret/from-secret",
                "secret/proj",
                "secret/pull",
                "secret/vol-secret",
            ]
        );
    }

    #[test]
    fn secrets_do_not_show_in_debug() {
        let data = ObjectData {
            data: BTreeMap::from([("token".into(), b"t0p".to_vec())]),
            type_: None,
        };
        assert!(!format!("{data:?}").contains("116"));
        assert!(format!("{data:?}").contains("token"));
    }
}

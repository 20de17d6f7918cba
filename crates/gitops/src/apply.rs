//! Applying a revision: dry run of all, then what others need, then the rest, then deletions.
//!
//! Nothing is changed when some object of the revision is refused. Only objects that can't
//! be checked yet, for their namespace or kind comes with the same revision, are checked
//! after those are there. Start with [`prepare`], then [`Prepared::execute`].

use crate::cluster::{Cluster, Mapping, explain};
use crate::health::{Health, health};
use crate::objects::{Entry, ObjectId, is_first_stage, rank, version_of};
use crate::plan::{Action, Live, Policy, plan};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Requests under way at once.
const AT_ONCE: usize = 8;
/// How long kinds and namespaces of a revision may take to be served.
const FIRST_STAGE_MAX: Duration = Duration::from_secs(60);
/// How long an object that is created anew may take to go.
const GONE_MAX: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Labels by which an owner knows its own.
const OWNER_NAME: &str = "kustomize.toolkit.fluxcd.io/name";
const OWNER_NAMESPACE: &str = "kustomize.toolkit.fluxcd.io/namespace";
/// Annotations that say what not to do, and what to force.
const RECONCILE: &str = "kustomize.toolkit.fluxcd.io/reconcile";
const PRUNE: &str = "kustomize.toolkit.fluxcd.io/prune";
const SSA: &str = "kustomize.toolkit.fluxcd.io/ssa";
const FORCE: &str = "kustomize.toolkit.fluxcd.io/force";

/// Why a revision was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// An object of a kind that is not served.
    #[error("{id} dry-run failed: no matches for kind {:?} in version {api_version:?}", .id.kind)]
    NoKind {
        /// Which.
        id: ObjectId,
        /// Its version.
        api_version: String,
    },
    /// The server refused an object in the dry run; nothing of its stage was changed.
    #[error("{id} dry-run failed: {}", explain(.source))]
    Check {
        /// Which.
        id: ObjectId,
        /// Why.
        source: Box<kube::Error>,
    },
    /// The server refused an object.
    #[error("{id} apply failed: {}", explain(.source))]
    Apply {
        /// Which.
        id: ObjectId,
        /// Why.
        source: Box<kube::Error>,
    },
    /// The server could not be asked.
    #[error("{id} get failed: {}", explain(.source))]
    Get {
        /// Which.
        id: ObjectId,
        /// Why.
        source: Box<kube::Error>,
    },
    /// An object could not be deleted.
    #[error("{id} delete failed: {}", explain(.source))]
    Delete {
        /// Which.
        id: ObjectId,
        /// Why.
        source: Box<kube::Error>,
    },
    /// A kind or an object that others wait for did not come or go in time.
    #[error("{id} not ready: {why}")]
    NotReady {
        /// Which.
        id: ObjectId,
        /// What holds it up.
        why: String,
    },
}

/// On whose behalf objects are applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Name of the Kustomization.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

impl Owner {
    /// Puts the owner's labels on an object.
    fn mark(&self, object: &mut Value) {
        let meta = &mut object["metadata"];
        if !meta["labels"].is_object() {
            meta["labels"] = Value::Object(Map::new());
        }
        meta["labels"][OWNER_NAME] = Value::String(self.name.clone());
        meta["labels"][OWNER_NAMESPACE] = Value::String(self.namespace.clone());
    }

    /// Whether an object bears them.
    fn owns(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        labels[OWNER_NAME] == *self.name && labels[OWNER_NAMESPACE] == *self.namespace
    }
}

/// What is to be applied and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// For whom.
    pub owner: Owner,
    /// What; objects without a namespace go to `namespace`.
    pub objects: Vec<Value>,
    /// Namespace of objects that name none.
    pub namespace: String,
    /// What was applied before.
    pub inventory: Vec<Entry>,
    /// Delete what is no longer desired.
    pub prune: bool,
    /// Create anew what can't be changed.
    pub force: bool,
}

/// A revision of which all that can be checked has passed the dry run.
#[derive(Debug)]
pub struct Prepared {
    cluster: Cluster,
    request: Request,
    desired: BTreeMap<ObjectId, Value>,
    inventory: Vec<Entry>,
    live: BTreeMap<ObjectId, Live>,
    /// Objects that wait for their namespace or kind.
    late: BTreeSet<ObjectId>,
    actions: Vec<Action>,
}

/// Checks a revision against the cluster. Changes nothing.
///
/// # Errors
/// [`ApplyError`] for the first object that is refused.
pub async fn prepare(cluster: &Cluster, mut request: Request) -> Result<Prepared, ApplyError> {
    let objects = std::mem::take(&mut request.objects);
    let defined = Defined::of(&objects);
    let mut desired = BTreeMap::new();
    for mut object in objects {
        request.owner.mark(&mut object);
        let mapping = mapping(cluster, &object).await?;
        let namespaced = match (&mapping, defined.scope(&object)) {
            (Some(mapping), _) => mapping.namespaced,
            (None, Some(namespaced)) => namespaced,
            (None, None) => return Err(no_kind(&object)),
        };
        settle_namespace(&mut object, namespaced, &request.namespace);
        desired.insert(ObjectId::of(&object), object);
    }
    let mut prepared = Prepared {
        cluster: cluster.clone(),
        inventory: desired
            .iter()
            .map(|(id, object)| Entry::new(id, version_of(object)))
            .collect(),
        request,
        desired,
        live: BTreeMap::new(),
        late: BTreeSet::new(),
        actions: Vec::new(),
    };
    prepared.look(&defined).await?;
    prepared.plan();
    Ok(prepared)
}

impl Prepared {
    /// What would be done, as far as it is known.
    pub fn actions(&self) -> &[Action] {
        &self.actions
    }

    /// The inventory of this revision.
    pub fn inventory(&self) -> &[Entry] {
        &self.inventory
    }

    /// That and what was there before: whoever stores it before [`Prepared::execute`] loses
    /// track of nothing, whatever happens meanwhile.
    pub fn inventory_before(&self) -> Vec<Entry> {
        let all: BTreeSet<&Entry> = self
            .inventory
            .iter()
            .chain(&self.request.inventory)
            .collect();
        all.into_iter().cloned().collect()
    }

    /// The objects themselves, with their versions.
    pub fn objects(&self) -> impl Iterator<Item = (&ObjectId, &Value)> {
        self.desired.iter()
    }

    /// Performs the plan; what was done.
    ///
    /// # Errors
    /// [`ApplyError`] of the first thing that failed. What was done before stays; nothing is
    /// deleted then.
    pub async fn execute(mut self) -> Result<Vec<Action>, ApplyError> {
        let first: Vec<ObjectId> = self
            .desired
            .keys()
            .filter(|id| is_first_stage(id))
            .cloned()
            .collect();
        self.act_on(is_first_stage).await?;
        self.until_served(&first).await?;
        if !self.late.is_empty() {
            let late = std::mem::take(&mut self.late);
            self.check(late.into_iter().collect()).await?;
            self.plan();
        }
        self.act_on(|id| !is_first_stage(id)).await?;
        for action in &self.actions {
            if let Action::Prune(id) = action {
                self.prune(id).await?;
            }
        }
        Ok(self.actions)
    }

    fn plan(&mut self) {
        let desired: Vec<ObjectId> = self.desired.keys().cloned().collect();
        let known: Vec<ObjectId> = self
            .request
            .inventory
            .iter()
            .filter_map(Entry::object)
            .collect();
        let policy = Policy {
            prune: self.request.prune,
        };
        let fresh = plan(&desired, &known, &self.live, policy);
        // What was done in the first stage stays on the list as it was done.
        let done: BTreeMap<ObjectId, Action> = self
            .actions
            .drain(..)
            .filter(|a| is_first_stage(a.id()))
            .map(|a| (a.id().clone(), a))
            .collect();
        self.actions = fresh
            .into_iter()
            .map(|a| done.get(a.id()).cloned().unwrap_or(a))
            .collect();
    }

    /// Reads and checks all objects that can be, and reads those of the old inventory.
    async fn look(&mut self, defined: &Defined) -> Result<(), ApplyError> {
        let mut now = Vec::new();
        for (id, object) in &self.desired {
            let served = mapping(&self.cluster, object).await?.is_some();
            let housed = !defined.namespaces.contains(&id.namespace)
                || self.namespace_is_there(&id.namespace).await?;
            if served && housed {
                now.push(id.clone());
            } else {
                self.late.insert(id.clone());
            }
        }
        self.check(now).await?;
        let stale: Vec<Entry> = self
            .request
            .inventory
            .iter()
            .filter(|e| e.object().is_some_and(|id| !self.desired.contains_key(&id)))
            .cloned()
            .collect();
        let this = &*self;
        let found: Vec<(ObjectId, Live)> = futures::stream::iter(stale)
            .map(|entry| async move {
                let Some(id) = entry.object() else {
                    return Ok(None);
                };
                let live = this.cluster.get_entry(&entry).await;
                let live = live.map_err(|source| ApplyError::Get {
                    id: id.clone(),
                    source: Box::new(source),
                })?;
                Ok::<_, ApplyError>(live.map(|object| (id, this.known(&object))))
            })
            .buffer_unordered(AT_ONCE)
            .try_filter_map(|found| std::future::ready(Ok(found)))
            .try_collect()
            .await?;
        self.live.extend(found);
        Ok(())
    }

    async fn namespace_is_there(&self, name: &str) -> Result<bool, ApplyError> {
        let id = ObjectId {
            kind: "Namespace".to_owned(),
            group: String::new(),
            namespace: String::new(),
            name: name.to_owned(),
        };
        let found = self.cluster.get("v1", &id).await;
        Ok(found
            .map_err(|source| ApplyError::Get {
                id,
                source: Box::new(source),
            })?
            .is_some())
    }

    fn known(&self, object: &Value) -> Live {
        let annotation = |name: &str| {
            object["metadata"]["annotations"][name]
                .as_str()
                .map(str::to_ascii_lowercase)
                .unwrap_or_default()
        };
        Live {
            exists: true,
            ours: self.request.owner.owns(object),
            ignored: annotation(RECONCILE) == "disabled" || annotation(SSA) == "ignore",
            kept: annotation(PRUNE) == "disabled" || annotation(RECONCILE) == "disabled",
            going: !object["metadata"]["deletionTimestamp"].is_null(),
            ..Live::default()
        }
    }

    /// Reads some objects and applies them without effect.
    async fn check(&mut self, ids: Vec<ObjectId>) -> Result<(), ApplyError> {
        let this = &*self;
        let found: Vec<(ObjectId, Live)> = futures::stream::iter(ids)
            .map(|id| async move {
                let live = this.check_one(&id).await?;
                Ok::<_, ApplyError>((id, live))
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        self.live.extend(found);
        Ok(())
    }

    async fn check_one(&self, id: &ObjectId) -> Result<Live, ApplyError> {
        let object = &self.desired[id];
        let api_version = object["apiVersion"].as_str().unwrap_or_default();
        let get = self.cluster.get(api_version, id).await;
        let before = get.map_err(|source| ApplyError::Get {
            id: id.clone(),
            source: Box::new(source),
        })?;
        let mut live = before.as_ref().map(|b| self.known(b)).unwrap_or_default();
        let wanted = |name: &str| {
            object["metadata"]["annotations"][name]
                .as_str()
                .map(str::to_ascii_lowercase)
                .unwrap_or_default()
        };
        let only_once = wanted(SSA) == "ifnotpresent" && live.exists;
        live.ignored |= only_once || wanted(SSA) == "ignore" || wanted(RECONCILE) == "disabled";
        if live.ignored && live.exists {
            return Ok(live);
        }
        let mapping = mapping(&self.cluster, object).await?;
        let mapping = mapping.ok_or_else(|| no_kind(object))?;
        match self.cluster.apply(&mapping, object, true).await {
            Ok(after) => live.differs = before.is_none_or(|b| comparable(&b) != comparable(&after)),
            Err(error)
                if live.exists
                    && is_immutable(&error)
                    && (self.request.force || wanted(FORCE) == "enabled") =>
            {
                live.immutable = true;
            }
            Err(source) => {
                return Err(ApplyError::Check {
                    id: id.clone(),
                    source: Box::new(source),
                });
            }
        }
        Ok(live)
    }

    /// Performs the actions of some objects, rank by rank; those of a rank at once.
    async fn act_on(&self, wanted: impl Fn(&ObjectId) -> bool) -> Result<(), ApplyError> {
        let mut ranks: BTreeMap<u8, Vec<Action>> = BTreeMap::new();
        for action in self.actions.iter().filter(|a| wanted(a.id())) {
            let id = action.id();
            ranks
                .entry(rank(&id.group, &id.kind))
                .or_default()
                .push(action.clone());
        }
        for actions in ranks.into_values() {
            futures::stream::iter(actions)
                .map(|action| self.act(action))
                .buffer_unordered(AT_ONCE)
                .try_collect::<()>()
                .await?;
        }
        Ok(())
    }

    async fn act(&self, action: Action) -> Result<(), ApplyError> {
        let id = action.id();
        let (Action::Create(_) | Action::Configure(_) | Action::Recreate(_)) = &action else {
            return Ok(());
        };
        let object = &self.desired[id];
        let mapping = mapping(&self.cluster, object).await?;
        let mapping = mapping.ok_or_else(|| no_kind(object))?;
        if let Action::Recreate(_) = &action {
            self.remove(&mapping, id, "Foreground").await?;
            self.until_gone(object, id).await?;
        }
        let applied = self.cluster.apply(&mapping, object, false).await;
        applied.map(|_| ()).map_err(|source| ApplyError::Apply {
            id: id.clone(),
            source: Box::new(source),
        })
    }

    async fn prune(&self, id: &ObjectId) -> Result<(), ApplyError> {
        let entries = &self.request.inventory;
        let Some(entry) = entries.iter().find(|e| e.object().as_ref() == Some(id)) else {
            return Ok(());
        };
        let mapping = self.cluster.mapping(&entry.api_version(), &id.kind).await;
        let mapping = mapping.map_err(|source| ApplyError::Get {
            id: id.clone(),
            source: Box::new(source),
        })?;
        match mapping {
            Some(mapping) => self.remove(&mapping, id, "Background").await,
            None => Ok(()),
        }
    }

    async fn remove(
        &self,
        mapping: &Mapping,
        id: &ObjectId,
        policy: &str,
    ) -> Result<(), ApplyError> {
        let deleted = self.cluster.delete(mapping, id, policy).await;
        deleted.map(|_| ()).map_err(|source| ApplyError::Delete {
            id: id.clone(),
            source: Box::new(source),
        })
    }

    async fn until_gone(&self, object: &Value, id: &ObjectId) -> Result<(), ApplyError> {
        let api_version = object["apiVersion"].as_str().unwrap_or_default();
        let wait = async {
            loop {
                let get = self.cluster.get(api_version, id).await;
                let found = get.map_err(|source| ApplyError::Get {
                    id: id.clone(),
                    source: Box::new(source),
                })?;
                if found.is_none() {
                    return Ok(());
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::time::timeout(GONE_MAX, wait)
            .await
            .unwrap_or_else(|_| {
                Err(ApplyError::NotReady {
                    id: id.clone(),
                    why: "it is not gone, so it can't be created anew".to_owned(),
                })
            })
    }

    /// Waits until what others need is served.
    async fn until_served(&self, first: &[ObjectId]) -> Result<(), ApplyError> {
        let deadline = tokio::time::Instant::now() + FIRST_STAGE_MAX;
        for id in first.iter().filter(|id| rank(&id.group, &id.kind) == 0) {
            let object = &self.desired[id];
            let api_version = object["apiVersion"].as_str().unwrap_or_default();
            loop {
                let get = self.cluster.get(api_version, id).await;
                let found = get.map_err(|source| ApplyError::Get {
                    id: id.clone(),
                    source: Box::new(source),
                })?;
                let why = match found.as_ref().map_or(Health::NotFound, health) {
                    Health::Current => break,
                    Health::InProgress(why) | Health::Failed(why) => why,
                    other => other.word().to_owned(),
                };
                if tokio::time::Instant::now() >= deadline {
                    return Err(ApplyError::NotReady {
                        id: id.clone(),
                        why,
                    });
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        Ok(())
    }
}

/// Namespaces and kinds that come with a revision.
struct Defined {
    namespaces: BTreeSet<String>,
    /// Group and kind, and whether objects live in namespaces.
    kinds: BTreeMap<(String, String), bool>,
}

impl Defined {
    fn of(objects: &[Value]) -> Self {
        let mut defined = Self {
            namespaces: BTreeSet::new(),
            kinds: BTreeMap::new(),
        };
        for object in objects {
            let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
            match object["kind"].as_str() {
                Some("Namespace") => {
                    defined.namespaces.insert(text(&object["metadata"]["name"]));
                }
                Some("CustomResourceDefinition") => {
                    let spec = &object["spec"];
                    defined.kinds.insert(
                        (text(&spec["group"]), text(&spec["names"]["kind"])),
                        spec["scope"] == "Namespaced",
                    );
                }
                _ => {}
            }
        }
        defined
    }

    fn scope(&self, object: &Value) -> Option<bool> {
        let id = ObjectId::of(object);
        self.kinds.get(&(id.group, id.kind)).copied()
    }
}

async fn mapping(cluster: &Cluster, object: &Value) -> Result<Option<Mapping>, ApplyError> {
    let id = ObjectId::of(object);
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    cluster
        .mapping(api_version, &id.kind)
        .await
        .map_err(|source| ApplyError::Get {
            id,
            source: Box::new(source),
        })
}

fn no_kind(object: &Value) -> ApplyError {
    let id = ObjectId::of(object);
    ApplyError::NoKind {
        api_version: object["apiVersion"].as_str().unwrap_or_default().to_owned(),
        id,
    }
}

fn settle_namespace(object: &mut Value, namespaced: bool, default: &str) {
    let Some(meta) = object["metadata"].as_object_mut() else {
        return;
    };
    if !namespaced {
        meta.remove("namespace");
    } else if meta
        .get("namespace")
        .and_then(Value::as_str)
        .is_none_or(str::is_empty)
    {
        meta.insert("namespace".to_owned(), Value::String(default.to_owned()));
    }
}

/// An object without what changes by itself.
fn comparable(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(map) = object.as_object_mut() {
        map.remove("status");
    }
    if let Some(meta) = object["metadata"].as_object_mut() {
        for field in [
            "managedFields",
            "resourceVersion",
            "generation",
            "uid",
            "creationTimestamp",
        ] {
            meta.remove(field);
        }
    }
    object
}

fn is_immutable(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status)
        if status.code == 422 && (status.message.contains("immutable")
            || status.message.contains("may not change")
            || status.message.contains("are forbidden")))
}

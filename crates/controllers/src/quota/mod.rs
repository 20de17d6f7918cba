//! ResourceQuotas: counts anew what a namespace uses, when something has gone from it.
//!
//! Admission charges what is made; this gives back what is deleted, and what was charged and
//! then not made. Kinds beside pods and Services are looked at only once a quota bounds them:
//! of those only the number of objects is asked for. Which object uses what is in
//! `api::quota`.

use crate::context::Context;
use crate::error::Error;
use api::quota::{Amounts, add, amounts_of_list, counted_kind, covers, list_of_amounts, usage};
use client::informer::Kind;
use client::k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, Service};
use client::k8s_openapi::serde::Serialize;
use client::metadata::watch_metadata;
use client::{Informer, ObjectKey, Outcome, WorkQueue};
use futures::StreamExt as _;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "resourcequota-controller";
const WORKERS: usize = 1;
/// Every quota is counted anew this often, as upstream.
const EVERY: Duration = Duration::from_secs(300);
/// Changes of a namespace that come together are counted once.
const SETTLES: Duration = Duration::from_millis(200);
/// Kinds that quotas count and that are watched for it; of more only the regular count is kept.
const WATCHED_MAX: usize = 64;

struct Controller {
    context: Context,
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    queue: WorkQueue<ObjectKey>,
    /// By group and plural; none for what is not served. Held for single look-ups.
    kinds: Mutex<HashMap<(String, String), Option<ApiResource>>>,
}

pub(crate) fn start(context: &Context) {
    let quotas = context.informers.get::<ResourceQuota>();
    let pods = context.informers.get::<Pod>();
    let services = context.informers.get::<Service>();
    let queue = context.queue();
    context.enqueue(&quotas, &queue);
    let ready = vec![quotas.ready(), pods.ready(), services.ready()];
    let controller = Arc::new(Controller {
        context: context.clone(),
        quotas,
        pods: pods.clone(),
        services: services.clone(),
        queue: queue.clone(),
        kinds: Mutex::default(),
    });
    let ended = |pod: &Pod| crate::pods::has_ended(pod);
    controller.follow(&pods, move |old, new| ended(old) != ended(new));
    controller.follow(&services, |old, new| old.spec != new.spec);
    context.work(NAME, queue, WORKERS, ready, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

impl Controller {
    /// Counts anew when an object of a kind comes, goes or changes what it uses.
    fn follow<K: Kind>(
        &self,
        informer: &Informer<K>,
        changed: impl Fn(&K, &K) -> bool + Send + 'static,
    ) {
        let (quotas, queue) = (self.quotas.clone(), self.queue.clone());
        self.context.follow(informer, move |old, new| {
            let same = matches!((old, new), (Some(old), Some(new)) if !changed(old, new));
            if quotas.is_empty() || same {
                return;
            }
            if let Some(object) = new.or(old) {
                let namespace = object.meta().namespace.as_deref().unwrap_or_default();
                count_again(&quotas, &queue, namespace);
            }
        });
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Outcome, Error> {
        let Some(quota) = self.quotas.get_key(&key) else {
            return Ok(Outcome::Done);
        };
        let value = value_of(&*quota);
        let hard = amounts_of_list(&value["spec"]["hard"]);
        let mut used: Amounts = hard.keys().map(|n| (n.clone(), <_>::default())).collect();
        let mut kinds: Vec<_> = hard.keys().filter_map(|name| counted_kind(name)).collect();
        kinds.sort_unstable();
        kinds.dedup();
        for (group, plural) in kinds {
            let mut all = self.used_by(&value, &key.namespace, group, plural).await?;
            all.retain(|name, _| hard.contains_key(name));
            add(&mut used, &all);
        }
        self.write_status(&key, &quota, &value, &used).await?;
        Ok(Outcome::After(EVERY))
    }

    /// What all objects of a kind in a namespace use of a quota.
    async fn used_by(
        &self,
        quota: &Value,
        namespace: &str,
        group: &str,
        plural: &str,
    ) -> Result<Amounts, Error> {
        let sum = |objects: Vec<Value>| {
            let mut sum = Amounts::new();
            for object in objects.iter().filter(|o| covers(quota, group, plural, o)) {
                add(&mut sum, &usage(group, plural, object));
            }
            sum
        };
        Ok(match (group, plural) {
            ("", "pods") => sum(values(&self.pods, namespace)),
            ("", "services") => sum(values(&self.services, namespace)),
            ("", "persistentvolumeclaims") => {
                self.watch(group, plural).await?;
                let claims = self.context.informers.get::<PersistentVolumeClaim>();
                claims.synced().await;
                sum(values(&claims, namespace))
            }
            _ => {
                let one = Value::Null;
                if !covers(quota, group, plural, &one) {
                    return Ok(Amounts::new());
                }
                let n = self.count(namespace, group, plural).await?;
                let mut used = usage(group, plural, &one);
                used.values_mut().for_each(|q| q.nano *= i128::from(n));
                used
            }
        })
    }

    /// How many objects of a kind there are: two of its words, not the objects.
    async fn count(&self, namespace: &str, group: &str, plural: &str) -> Result<i64, Error> {
        let Some(resource) = self.watch(group, plural).await? else {
            return Ok(0);
        };
        let client = self.context.client.clone();
        let api: Api<PartialObjectMeta<DynamicObject>> =
            Api::namespaced_with(client, namespace, &resource);
        let page = api.list_metadata(&ListParams::default().limit(1)).await;
        let page = page.map_err(|source| Error::List {
            what: format!("{plural} of {namespace}"),
            source,
        })?;
        let first = i64::try_from(page.items.len()).unwrap_or(i64::MAX);
        Ok(first + page.metadata.remaining_item_count.unwrap_or(0))
    }

    /// Finds a kind and from then on counts anew when one of its objects comes or goes.
    async fn watch(&self, group: &str, plural: &str) -> Result<Option<ApiResource>, Error> {
        let key = (group.to_owned(), plural.to_owned());
        if let Some(known) = self.kinds.lock().get(&key) {
            return Ok(known.clone());
        }
        let found = kube::discovery::group(&self.context.client, group).await;
        let found = match found {
            Ok(found) => found,
            // A definition may serve it later: not remembered.
            Err(error) if client::is_not_found(&error) => return Ok(None),
            Err(kube::Error::Discovery(_)) => return Ok(None),
            Err(source) => {
                let what = format!("group {group:?}");
                return Err(Error::List { what, source });
            }
        };
        let resources = found.recommended_resources();
        let resource = resources
            .into_iter()
            .map(|(r, _)| r)
            .find(|r| r.plural == plural);
        let Some(resource) = resource else {
            return Ok(None);
        };
        {
            let mut kinds = self.kinds.lock();
            if kinds.len() >= WATCHED_MAX || kinds.contains_key(&key) {
                return Ok(Some(resource));
            }
            kinds.insert(key, Some(resource.clone()));
        }
        let events = watch_metadata(self.context.client.clone(), &resource);
        let (quotas, queue) = (self.quotas.clone(), self.queue.clone());
        self.context.scope.spawn_cancellable(async move {
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                match event {
                    Event::Apply(object) | Event::Delete(object) => {
                        let namespace = object.metadata.namespace.unwrap_or_default();
                        count_again(&quotas, &queue, &namespace);
                    }
                    Event::InitDone => quotas.keys().into_iter().for_each(|k| queue.add(k)),
                    Event::Init | Event::InitApply(_) => {}
                }
            }
        });
        Ok(Some(resource))
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        quota: &ResourceQuota,
        value: &Value,
        used: &Amounts,
    ) -> Result<(), Error> {
        let (hard, status) = (&value["spec"]["hard"], &value["status"]);
        let same = status["hard"] == *hard && amounts_of_list(&status["used"]) == *used;
        if same {
            return Ok(());
        }
        let read = |list: &Value| serde_json::from_value(list.clone()).unwrap_or_default();
        let mut quota = quota.clone();
        let status = quota.status.get_or_insert_default();
        status.hard = read(hard);
        status.used = read(&list_of_amounts(used));
        // With its resourceVersion: what admission charges meanwhile must not be lost.
        self.context.write_status(key, &quota).await
    }
}

fn count_again(quotas: &Informer<ResourceQuota>, queue: &WorkQueue<ObjectKey>, namespace: &str) {
    for quota in quotas.list_namespace(namespace) {
        queue.add_after(ObjectKey::of(&*quota), SETTLES);
    }
}

fn values<K: Kind + Serialize>(informer: &Informer<K>, namespace: &str) -> Vec<Value> {
    let all = informer.list_namespace(namespace);
    all.iter().map(|o| value_of(&**o)).collect()
}

fn value_of(object: &impl Serialize) -> Value {
    // What came from JSON can be written as JSON.
    serde_json::to_value(object).unwrap_or_default()
}

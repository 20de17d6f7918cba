//! EndpointSlices of Services with a selector: where their pods answer; and the older
//! Endpoints object, for clients that still read it. Endpoints that somebody else keeps of a
//! Service without selector are mirrored into slices.
//!
//! Start with [`plan::wanted`], what should be; [`plan::changes`], what to write.

mod legacy;
mod mirror;
mod plan;
#[cfg(test)]
mod tests;

use crate::context::{Context, named};
use crate::error::Error;
use crate::writes::{UNSEEN_RETRY, Unseen, for_each};
use api::constants::LABEL_SERVICE_NAME;
use client::k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use client::k8s_openapi::api::discovery::v1::EndpointSlice;
use client::{Informer, ObjectKey, Outcome, WorkQueue, labels};
use kube::api::{Api, DeleteParams, PostParams};
use parking_lot::Mutex;
use plan::Changes;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const NAME: &str = "endpointslice-controller";
const WORKERS: usize = 4;
/// A Service with more pods than this has its Endpoints object, which is then large and
/// always written as a whole, written no more often than [`LARGE_EVERY`].
const LARGE: usize = 100;
const LARGE_EVERY: Duration = Duration::from_secs(1);

struct Controller {
    context: Context,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    endpoints: Informer<Endpoints>,
    unseen: Unseen,
    /// Of the Endpoints.
    unseen_endpoints: Unseen,
    /// When the Endpoints of large Services were last written; guards only itself.
    written_at: Mutex<HashMap<ObjectKey, Instant>>,
}

pub(crate) fn start(context: &Context) {
    let services = context.informers.get::<Service>();
    let pods = context.informers.get::<Pod>();
    let nodes = context.informers.get::<Node>();
    let slices = context.informers.get::<EndpointSlice>();
    let endpoints = context.informers.get::<Endpoints>();
    let queue = context.queue();
    context.enqueue(&services, &queue);
    context.enqueue(&endpoints, &queue);
    enqueue_by_pods(context, &services, &pods, &queue);
    {
        let queue = queue.clone();
        context.follow(&slices, move |old, new| {
            if let Some(key) = new.or(old).and_then(|s| plan::service_of(s)) {
                queue.add(key);
            }
        });
    }
    let ready = vec![
        services.ready(),
        pods.ready(),
        nodes.ready(),
        slices.ready(),
        endpoints.ready(),
    ];
    let controller = Arc::new(Controller {
        context: context.clone(),
        services,
        pods,
        nodes,
        slices,
        endpoints,
        unseen: Unseen::default(),
        unseen_endpoints: Unseen::default(),
        written_at: Mutex::default(),
    });
    context.work(NAME, queue, WORKERS, ready, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

/// The Services that select a pod as it was or is, when anything changed that they show.
fn enqueue_by_pods(
    context: &Context,
    services: &Informer<Service>,
    pods: &Informer<Pod>,
    queue: &WorkQueue<ObjectKey>,
) {
    let (services, queue) = (services.clone(), queue.clone());
    context.follow(pods, move |old, new| {
        if let (Some(old), Some(new)) = (old, new)
            && plan::shows_same(old, new)
        {
            return;
        }
        let Some(either) = new.or(old) else { return };
        let namespace = either.metadata.namespace.as_deref().unwrap_or_default();
        let selected = services.select_namespace(namespace, |service| {
            plan::selector(service).is_some_and(|selector| {
                [old, new]
                    .into_iter()
                    .flatten()
                    .any(|pod| labels::matches(&selector, pod.metadata.labels.as_ref()))
            })
        });
        for service in selected {
            queue.add(ObjectKey::of(&*service));
        }
    });
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Outcome, Error> {
        let revision = self.slices.revision();
        let Some(service) = self.services.get_key(&key) else {
            // Its slices go by garbage collection, the Endpoints by name.
            self.unseen.forget(&key);
            self.unseen_endpoints.forget(&key);
            self.written_at.lock().remove(&key);
            self.remove_endpoints(&key).await?;
            return Ok(Outcome::Done);
        };
        if !self.unseen.is_seen(&key, revision) {
            return Ok(Outcome::After(UNSEEN_RETRY));
        }
        if service.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        self.mirror(&key, &service).await?;
        let Some(selector) = plan::selector(&service) else {
            // Someone else tells where it answers.
            return Ok(Outcome::Done);
        };
        let pods = self.pods.select_namespace(&key.namespace, |pod| {
            labels::matches(&selector, pod.metadata.labels.as_ref())
        });
        let zone = |node: &str| {
            let node = self.nodes.get("", node)?;
            let labels = node.metadata.labels.as_ref()?;
            labels.get("topology.kubernetes.io/zone").cloned()
        };
        let known = self.slices_of(&key, plan::is_ours);
        let wanted = plan::wanted(&service, &pods, zone);
        let changes = plan::changes(&service, wanted, &known);
        self.act(&key, changes).await?;
        self.write_endpoints(&key, &service, &pods).await
    }

    /// The slices of a Service that a controller looks after.
    fn slices_of(
        &self,
        key: &ObjectKey,
        is_ours: fn(&EndpointSlice) -> bool,
    ) -> Vec<Arc<EndpointSlice>> {
        self.slices.select_namespace(&key.namespace, |slice| {
            let labels = slice.metadata.labels.as_ref();
            is_ours(slice) && labels.and_then(|l| l.get(LABEL_SERVICE_NAME)) == Some(&key.name)
        })
    }

    /// Shows Endpoints that somebody else keeps as slices, or no longer.
    async fn mirror(&self, key: &ObjectKey, service: &Service) -> Result<(), Error> {
        let known = self.slices_of(key, mirror::is_ours);
        let endpoints = self.endpoints.get_key(key);
        let endpoints = endpoints.filter(|e| mirror::is_mirrored(service, e));
        let changes = match endpoints {
            Some(endpoints) => {
                let wanted = mirror::wanted(&endpoints);
                plan::changes_of(&mirror::owner(&endpoints), wanted, &known)
            }
            None => {
                let names = known.iter().filter_map(|s| s.metadata.name.clone());
                Changes {
                    delete: names.collect(),
                    ..Changes::default()
                }
            }
        };
        self.act(key, changes).await
    }

    async fn act(&self, key: &ObjectKey, changes: Changes) -> Result<(), Error> {
        let api: Api<EndpointSlice> = Api::namespaced(self.context.client.clone(), &key.namespace);
        for slice in &changes.create {
            let made = api
                .create(&PostParams::default(), slice)
                .await
                .map_err(|source| Error::Create {
                    what: format!("EndpointSlice of {}", named::<Service>(key)),
                    source,
                })?;
            self.unseen.wrote(key, &made);
        }
        let api = &api;
        for_each(changes.update, |slice| async move {
            let slice_key = ObjectKey::of(&slice);
            let written = api
                .replace(&slice_key.name, &PostParams::default(), &slice)
                .await
                .map_err(|source| Error::Update {
                    what: named::<EndpointSlice>(&slice_key),
                    source,
                })?;
            self.unseen.wrote(key, &written);
            Ok(())
        })
        .await?;
        for_each(changes.delete, |name| async move {
            match api.delete(&name, &DeleteParams::default()).await {
                Ok(_) => Ok(()),
                Err(error) if client::is_not_found(&error) => Ok(()),
                Err(source) => Err(Error::Delete {
                    what: format!("EndpointSlice {}/{name}", key.namespace),
                    source,
                }),
            }
        })
        .await
    }

    async fn write_endpoints(
        &self,
        key: &ObjectKey,
        service: &Service,
        pods: &[Arc<Pod>],
    ) -> Result<Outcome, Error> {
        // Before the look: what is looked at is not older.
        let revision = self.endpoints.revision();
        if !self.unseen_endpoints.is_seen(key, revision) {
            return Ok(Outcome::After(UNSEEN_RETRY));
        }
        let written_at = self.written_at.lock().get(key).copied();
        if let Some(left) = written_at.and_then(|at| LARGE_EVERY.checked_sub(at.elapsed())) {
            return Ok(Outcome::After(left));
        }
        let known = self.endpoints.get_key(key);
        let Some(wanted) = legacy::change(service, pods, known.as_deref()) else {
            self.written_at.lock().remove(key);
            return Ok(Outcome::Done);
        };
        let api: Api<Endpoints> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let written = if known.is_some() {
            api.replace(&key.name, &PostParams::default(), &wanted)
                .await
        } else {
            api.create(&PostParams::default(), &wanted).await
        };
        match written {
            Ok(written) => {
                self.unseen_endpoints.wrote(key, &written);
                if pods.len() > LARGE {
                    self.written_at.lock().insert(key.clone(), Instant::now());
                }
                Ok(Outcome::Done)
            }
            Err(source) => Err(Error::Update {
                what: named::<Endpoints>(key),
                source,
            }),
        }
    }

    async fn remove_endpoints(&self, key: &ObjectKey) -> Result<(), Error> {
        if !self
            .endpoints
            .get_key(key)
            .is_some_and(|e| legacy::is_ours(&e))
        {
            return Ok(());
        }
        let api: Api<Endpoints> = Api::namespaced(self.context.client.clone(), &key.namespace);
        match api.delete(&key.name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(error) if client::is_not_found(&error) => Ok(()),
            Err(source) => Err(Error::Delete {
                what: named::<Endpoints>(key),
                source,
            }),
        }
    }
}

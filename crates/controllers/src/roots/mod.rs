//! What every namespace gets: ServiceAccount `default` and ConfigMap `kube-root-ca.crt`,
//! by which pods trust the API server.

use crate::context::Context;
use crate::error::{Error, is_terminating};
use client::informer::Kind;
use client::k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use client::{Informer, Outcome, Selected, WorkQueue};
use kube::api::{Api, PostParams};
use std::collections::BTreeMap;
use std::sync::Arc;

const NAME: &str = "namespace-roots-controller";
const WORKERS: usize = 2;
const SERVICE_ACCOUNT: &str = "default";
const CONFIG_MAP: &str = "kube-root-ca.crt";
const CONFIG_MAP_KEY: &str = "ca.crt";
const CONFIG_MAP_ABOUT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

struct Controller {
    context: Context,
    root_ca_pem: String,
    namespaces: Informer<Namespace>,
    accounts: Informer<ServiceAccount>,
    /// Only those of that name: other ConfigMaps can be many and large.
    maps: Informer<ConfigMap>,
}

pub(crate) fn start(context: &Context, root_ca_pem: String) {
    let named = |name: &str| Selected::fields(format!("metadata.name={name}"));
    let namespaces = context.informers.get::<Namespace>();
    let accounts = context
        .informers
        .get_selected::<ServiceAccount>(named(SERVICE_ACCOUNT));
    let maps = context
        .informers
        .get_selected::<ConfigMap>(named(CONFIG_MAP));
    let queue = context.queue::<String>();
    {
        let queue = queue.clone();
        context.follow(&namespaces, move |_, new| {
            if let Some(name) = new.and_then(|n| n.metadata.name.clone()) {
                queue.add(name);
            }
        });
    }
    enqueue_namespaces(context, &accounts, &queue);
    enqueue_namespaces(context, &maps, &queue);
    let ready = vec![namespaces.ready(), accounts.ready(), maps.ready()];
    let controller = Arc::new(Controller {
        context: context.clone(),
        root_ca_pem,
        namespaces,
        accounts,
        maps,
    });
    context.work(NAME, queue, WORKERS, ready, move |name| {
        let controller = controller.clone();
        async move { controller.reconcile(&name).await }
    });
}

/// Namespaces whose object was changed or deleted.
fn enqueue_namespaces<K: Kind>(
    context: &Context,
    informer: &Informer<K>,
    queue: &WorkQueue<String>,
) {
    let queue = queue.clone();
    context.follow(informer, move |old, new| {
        if let Some(namespace) = new.or(old).and_then(|o| o.meta().namespace.clone()) {
            queue.add(namespace);
        }
    });
}

impl Controller {
    async fn reconcile(&self, namespace: &str) -> Result<Outcome, Error> {
        let going = self.namespaces.get("", namespace).is_none_or(|n| {
            n.metadata.deletion_timestamp.is_some()
                || n.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Terminating")
        });
        if going {
            return Ok(Outcome::Done);
        }
        if self.accounts.get(namespace, SERVICE_ACCOUNT).is_none() {
            let account = ServiceAccount {
                metadata: meta(namespace, SERVICE_ACCOUNT),
                ..ServiceAccount::default()
            };
            self.create(namespace, &account).await?;
        }
        let wanted = BTreeMap::from([(CONFIG_MAP_KEY.to_owned(), self.root_ca_pem.clone())]);
        match self.maps.get(namespace, CONFIG_MAP) {
            None => {
                let mut metadata = meta(namespace, CONFIG_MAP);
                metadata.annotations = Some(BTreeMap::from([(
                    "kubernetes.io/description".to_owned(),
                    CONFIG_MAP_ABOUT.to_owned(),
                )]));
                let map = ConfigMap {
                    metadata,
                    data: Some(wanted),
                    ..ConfigMap::default()
                };
                self.create(namespace, &map).await?;
            }
            Some(known) if known.data.as_ref() != Some(&wanted) => {
                let mut map = (*known).clone();
                map.data = Some(wanted);
                let api: Api<ConfigMap> = Api::namespaced(self.context.client.clone(), namespace);
                api.replace(CONFIG_MAP, &PostParams::default(), &map)
                    .await
                    .map_err(|source| Error::Update {
                        what: format!("ConfigMap {namespace}/{CONFIG_MAP}"),
                        source,
                    })?;
            }
            Some(_) => {}
        }
        Ok(Outcome::Done)
    }

    /// Creates an object unless it is there or the namespace is going.
    async fn create<K>(&self, namespace: &str, object: &K) -> Result<(), Error>
    where
        K: Kind + serde::Serialize + kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    {
        let api: Api<K> = Api::namespaced(self.context.client.clone(), namespace);
        match api.create(&PostParams::default(), object).await {
            Ok(_) => Ok(()),
            Err(error)
                if client::is_already_exists(&error)
                    || client::is_not_found(&error)
                    || is_terminating(&error) =>
            {
                Ok(())
            }
            Err(source) => Err(Error::Create {
                what: format!(
                    "{} {namespace}/{}",
                    K::kind(&()),
                    object.meta().name.as_deref().unwrap_or_default()
                ),
                source,
            }),
        }
    }
}

fn meta(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        ..ObjectMeta::default()
    }
}

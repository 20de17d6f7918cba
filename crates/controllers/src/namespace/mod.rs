//! Namespaces that are being deleted: deletes all that is in them, then lets them go.

use crate::context::Context;
use crate::error::Error;
use crate::writes::for_each;
use client::k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus, Pod};
use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use client::{Informer, Outcome};
use jiff::Timestamp;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::discovery::Scope as ResourceScope;
use kube::discovery::Discovery;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "namespace-controller";
const WORKERS: usize = 2;
const FINALIZER: &str = "kubernetes";
/// Until what is still there is looked at again; pods that go wake it at once.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

struct Controller {
    context: Context,
    namespaces: Informer<Namespace>,
}

/// What is left of one resource.
#[derive(Debug, Default)]
struct Left {
    resource: String,
    count: usize,
    finalizers: BTreeMap<String, usize>,
    failure: Option<String>,
}

pub(crate) fn start(context: &Context) {
    let namespaces = context.informers.get::<Namespace>();
    let pods = context.informers.get::<Pod>();
    let queue = context.queue::<String>();
    {
        let queue = queue.clone();
        context.follow(&namespaces, move |_, new| {
            let going = new.filter(|n| n.metadata.deletion_timestamp.is_some());
            if let Some(name) = going.and_then(|n| n.metadata.name.clone()) {
                queue.add(name);
            }
        });
    }
    {
        let (queue, namespaces) = (queue.clone(), namespaces.clone());
        context.follow(&pods, move |old, new| {
            let (Some(gone), None) = (old, new) else {
                return;
            };
            let name = gone.metadata.namespace.clone().unwrap_or_default();
            let going = namespaces
                .get("", &name)
                .is_some_and(|n| n.metadata.deletion_timestamp.is_some());
            if going {
                queue.add(name);
            }
        });
    }
    let ready = vec![namespaces.ready()];
    let controller = Arc::new(Controller {
        context: context.clone(),
        namespaces,
    });
    context.work(NAME, queue, WORKERS, ready, move |name| {
        let controller = controller.clone();
        async move { controller.reconcile(&name).await }
    });
}

impl Controller {
    async fn reconcile(&self, name: &str) -> Result<Outcome, Error> {
        let Some(namespace) = self.namespaces.get("", name) else {
            return Ok(Outcome::Done);
        };
        let waits = namespace
            .spec
            .iter()
            .flat_map(|s| s.finalizers.iter().flatten())
            .any(|f| f == FINALIZER);
        if namespace.metadata.deletion_timestamp.is_none() || !waits {
            return Ok(Outcome::Done);
        }
        let resources = self.resources().await;
        let (left, discovery_failure) = match resources {
            Ok(resources) => (self.empty(name, resources).await?, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        let status = status(
            &namespace,
            &left,
            discovery_failure.as_deref(),
            self.context.clock.now(),
        );
        let api: Api<Namespace> = Api::all(self.context.client.clone());
        let mut changed = (*namespace).clone();
        if namespace.status.as_ref() != Some(&status) {
            changed.status = Some(status);
            match api
                .replace_status(name, &PostParams::default(), &changed)
                .await
            {
                Ok(written) => changed = written,
                Err(error) if client::is_not_found(&error) => return Ok(Outcome::Done),
                Err(source) => return Err(update_failed(name, source)),
            }
        }
        if !left.is_empty() || discovery_failure.is_some() {
            return Ok(Outcome::After(LOOK_AGAIN));
        }
        if let Some(spec) = &mut changed.spec {
            spec.finalizers
                .iter_mut()
                .for_each(|f| f.retain(|f| f != FINALIZER));
        }
        match api
            .replace_subresource("finalize", name, &PostParams::default(), &changed)
            .await
        {
            Ok(_) => Ok(Outcome::Done),
            Err(error) if client::is_not_found(&error) => Ok(Outcome::Done),
            Err(source) => Err(update_failed(name, source)),
        }
    }

    /// All that can be in a namespace and be deleted.
    async fn resources(&self) -> Result<Vec<(ApiResource, bool)>, kube::Error> {
        let found = Discovery::new(self.context.client.clone())
            .run_aggregated()
            .await?;
        Ok(found
            .groups()
            .flat_map(|group| group.recommended_resources())
            .filter(|(_, capabilities)| {
                capabilities.scope == ResourceScope::Namespaced
                    && capabilities.supports_operation("list")
                    && capabilities.supports_operation("delete")
            })
            .map(|(resource, capabilities)| {
                let at_once = capabilities.supports_operation("deletecollection");
                (resource, at_once)
            })
            .collect())
    }

    /// Deletes all objects of these resources; what is left of them.
    async fn empty(
        &self,
        namespace: &str,
        resources: Vec<(ApiResource, bool)>,
    ) -> Result<Vec<Left>, Error> {
        let left = Mutex::new(Vec::new());
        let left_of = &left;
        for_each(resources, |(resource, at_once)| async move {
            match self.empty_of(namespace, &resource, at_once).await {
                Ok(None) => {}
                Ok(Some(some)) => left_of.lock().push(some),
                Err(error) => left_of.lock().push(Left {
                    resource: full_name(&resource),
                    failure: Some(crate::replicaset::message(&error)),
                    ..Left::default()
                }),
            }
            Ok::<_, Error>(())
        })
        .await?;
        let mut left = left.into_inner();
        left.sort_by(|a, b| a.resource.cmp(&b.resource));
        Ok(left)
    }

    async fn empty_of(
        &self,
        namespace: &str,
        resource: &ApiResource,
        at_once: bool,
    ) -> Result<Option<Left>, kube::Error> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.context.client.clone(), namespace, resource);
        // Most resources have nothing here: one look, no write.
        let list = ListParams::default();
        let present = api.list_metadata(&list).await?;
        if present.items.is_empty() {
            return Ok(None);
        }
        let delete = DeleteParams::background();
        if at_once {
            api.delete_collection(&delete, &list).await?;
        } else {
            for object in &present.items {
                let name = object.metadata.name.as_deref().unwrap_or_default();
                match api.delete(name, &delete).await {
                    Err(error) if !client::is_not_found(&error) => return Err(error),
                    _ => {}
                }
            }
        }
        let present = api.list_metadata(&list).await?;
        if present.items.is_empty() {
            return Ok(None);
        }
        let mut left = Left {
            resource: full_name(resource),
            count: present.items.len(),
            ..Left::default()
        };
        for finalizer in present
            .items
            .iter()
            .flat_map(|o| o.metadata.finalizers.iter().flatten())
        {
            *left.finalizers.entry(finalizer.clone()).or_insert(0) += 1;
        }
        Ok(Some(left))
    }
}

fn update_failed(name: &str, source: kube::Error) -> Error {
    Error::Update {
        what: format!("Namespace {name}"),
        source,
    }
}

/// `deployments.apps`, or `pods.` of the core group, as upstream words it.
fn full_name(resource: &ApiResource) -> String {
    format!("{}.{}", resource.plural, resource.group)
}

/// The status that says what holds up a deletion, in upstream's words.
fn status(
    namespace: &Namespace,
    left: &[Left],
    discovery_failure: Option<&str>,
    now: Timestamp,
) -> NamespaceStatus {
    let mut status = namespace.status.clone().unwrap_or_default();
    status.phase = Some("Terminating".to_owned());
    let failures: Vec<String> = left.iter().filter_map(|l| l.failure.clone()).collect();
    let remaining: Vec<String> = left
        .iter()
        .filter(|l| l.count > 0)
        .map(|l| format!("{} has {} resource instances", l.resource, l.count))
        .collect();
    let mut finalizers: BTreeMap<&str, usize> = BTreeMap::new();
    for (finalizer, count) in left.iter().flat_map(|l| &l.finalizers) {
        *finalizers.entry(finalizer).or_insert(0) += count;
    }
    let finalizers: Vec<String> = finalizers
        .iter()
        .map(|(finalizer, count)| format!("{finalizer} in {count} resource instances"))
        .collect();
    let said = |prefix: &str, parts: &[String]| {
        (!parts.is_empty()).then(|| format!("{prefix}{}", parts.join(", ")))
    };
    let conditions = [
        (
            "NamespaceDeletionDiscoveryFailure",
            ("DiscoveryFailed", "ResourcesDiscovered"),
            discovery_failure.map(|f| format!("Discovery failed for some groups, 1 failing: {f}")),
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            ("GroupVersionParsingFailed", "ParsedGroupVersions"),
            None,
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            ("ContentDeletionFailed", "ContentDeleted"),
            said(
                "Failed to delete all resource types, remaining: ",
                &failures,
            ),
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "NamespaceContentRemaining",
            ("SomeResourcesRemain", "ContentRemoved"),
            said("Some resources are remaining: ", &remaining),
            "All content successfully removed",
        ),
        (
            "NamespaceFinalizersRemaining",
            ("SomeFinalizersRemain", "ContentHasNoFinalizers"),
            said(
                "Some content in the namespace has finalizers remaining: ",
                &finalizers,
            ),
            "All content-preserving finalizers finished",
        ),
    ];
    let known = status.conditions.get_or_insert_default();
    for (kind, (bad_reason, good_reason), bad, good) in conditions {
        let new = NamespaceCondition {
            type_: kind.to_owned(),
            status: if bad.is_some() { "True" } else { "False" }.to_owned(),
            reason: Some(
                if bad.is_some() {
                    bad_reason
                } else {
                    good_reason
                }
                .to_owned(),
            ),
            message: Some(bad.unwrap_or_else(|| good.to_owned())),
            last_transition_time: Some(Time(now)),
        };
        match known.iter_mut().find(|c| c.type_ == kind) {
            None => known.push(new),
            Some(old) if old.status == new.status && old.message == new.message => {}
            Some(old) => *old = new,
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{now, object};
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn the_status_says_what_holds_it_up() {
        let namespace: Namespace = object(json!({"metadata": {"name": "n"}}));
        let left = [
            Left {
                resource: "pods.".into(),
                count: 2,
                finalizers: BTreeMap::from([("a/b".into(), 1)]),
                failure: None,
            },
            Left {
                resource: "widgets.example.com".into(),
                failure: Some("no".into()),
                ..Left::default()
            },
        ];
        let status = status(&namespace, &left, None, now());
        let shown: Vec<_> = status
            .conditions
            .iter()
            .flatten()
            .map(|c| format!("{}={} {}", c.type_, c.status, c.message.as_deref().unwrap()))
            .collect();
        expect![[r#"
            NamespaceDeletionDiscoveryFailure=False All resources successfully discovered
            NamespaceDeletionGroupVersionParsingFailure=False All legacy kube types successfully parsed
            NamespaceDeletionContentFailure=True Failed to delete all resource types, remaining: no
            NamespaceContentRemaining=True Some resources are remaining: pods. has 2 resource instances
            NamespaceFinalizersRemaining=True Some content in the namespace has finalizers remaining: a/b in 1 resource instances"#]]
        .assert_eq(&shown.join("\n"));
    }
}

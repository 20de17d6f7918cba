//! ReplicationControllers: what ReplicaSets were before. The same plan, other objects.

use super::plan::{self, Plan};
use crate::context::{Context, named};
use crate::error::{Error, is_terminating};
use crate::pods;
use crate::writes::{UNSEEN_RETRY, Unseen, for_each, slow_start};
use client::k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec, ReplicaSetStatus};
use client::k8s_openapi::api::core::v1::{
    Pod, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use client::{EventRecorder, Informer, ObjectKey, Outcome, labels};
use std::sync::Arc;

const NAME: &str = "replication-controller";
const WORKERS: usize = 1;

struct Controller {
    context: Context,
    owners: Informer<ReplicationController>,
    pods: Informer<Pod>,
    unseen: Unseen,
    recorder: EventRecorder,
}

pub(super) fn start(context: &Context) {
    let owners = context.informers.get::<ReplicationController>();
    let pods = context.informers.get::<Pod>();
    let queue = context.queue();
    context.enqueue(&owners, &queue);
    context.enqueue_owners::<ReplicationController, Pod>(&pods, &queue);
    {
        let (owners, queue) = (owners.clone(), queue.clone());
        context.follow(&pods, move |_, new| {
            let orphan = new.filter(|p| crate::context::controller_uid(&***p).is_none());
            let Some(pod) = orphan.filter(|_| !owners.is_empty()) else {
                return;
            };
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            for owner in owners.list_namespace(namespace) {
                let selector = labels::of_map(selector_of(&owner));
                if labels::matches(&selector, pod.metadata.labels.as_ref()) {
                    queue.add(ObjectKey::of(&*owner));
                }
            }
        });
    }
    let ready = vec![owners.ready(), pods.ready()];
    let controller = Arc::new(Controller {
        context: context.clone(),
        owners,
        pods,
        unseen: Unseen::default(),
        recorder: context.recorder(NAME),
    });
    context.work(NAME, queue, WORKERS, ready, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

fn selector_of(owner: &ReplicationController) -> Option<&labels::Labels> {
    owner.spec.as_ref()?.selector.as_ref()
}

/// The set that it would be today.
fn as_set(owner: &ReplicationController) -> ReplicaSet {
    let spec = owner.spec.clone().unwrap_or_default();
    let status = owner.status.clone().map(|s| ReplicaSetStatus {
        available_replicas: s.available_replicas,
        conditions: convert(s.conditions.as_ref()),
        fully_labeled_replicas: s.fully_labeled_replicas,
        observed_generation: s.observed_generation,
        ready_replicas: s.ready_replicas,
        replicas: s.replicas,
        terminating_replicas: None,
    });
    ReplicaSet {
        metadata: owner.metadata.clone(),
        spec: ReplicaSetSpec {
            min_ready_seconds: spec.min_ready_seconds,
            replicas: spec.replicas,
            selector: LabelSelector {
                match_labels: spec.selector,
                ..LabelSelector::default()
            },
            template: spec.template,
        },
        status,
    }
}

/// Conditions of one kind as those of the other: they have the same fields.
fn convert<T: serde::Serialize, U: serde::de::DeserializeOwned>(from: Option<&T>) -> Option<U> {
    serde_json::from_value(serde_json::to_value(from?).ok()?).ok()
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Outcome, Error> {
        let revision = self.pods.revision();
        let Some(owner) = self.owners.get_key(&key) else {
            self.unseen.forget(&key);
            return Ok(Outcome::Done);
        };
        if !self.unseen.is_seen(&key, revision) {
            return Ok(Outcome::After(UNSEEN_RETRY));
        }
        let selector = labels::of_map(selector_of(&owner));
        let client = &self.context.client;
        let mine = pods::claim(client, &*owner, &selector, &self.pods).await?;
        let uids = mine.iter().filter_map(|p| p.metadata.uid.as_deref());
        let deleted = self.unseen.deleted_of(&key, uids);
        let set = as_set(&owner);
        let plan = plan::plan(&set, &mine, &deleted, |_| 1, self.context.clock.now());
        let failure = self.act(&key, &owner, &plan).await;
        let after = plan.available_in;
        self.write_status(&key, &owner, &set, plan, failure.as_ref())
            .await?;
        match failure {
            Some(error) => Err(error),
            None => Ok(Outcome::after(after)),
        }
    }

    async fn act(
        &self,
        key: &ObjectKey,
        owner: &ReplicationController,
        plan: &Plan,
    ) -> Option<Error> {
        let deleted = for_each(plan.delete.clone(), |pod| async move {
            let name = pod.metadata.name.clone().unwrap_or_default();
            if pods::delete(&self.context, &self.unseen, key, &pod).await? {
                let text = format!("Deleted pod: {name}");
                self.recorder.normal(owner, "SuccessfulDelete", &text);
            }
            Ok(())
        });
        if let Err(error) = deleted.await {
            return Some(error);
        }
        let template = owner.spec.as_ref()?.template.as_ref()?;
        let pod = &pods::from_template(owner, template);
        let (_, failure) = slow_start(plan.create, |_| async move {
            let made = pods::create(&self.context, &self.unseen, key, pod).await?;
            let text = format!("Created pod: {}", made.metadata.name.unwrap_or_default());
            self.recorder.normal(owner, "SuccessfulCreate", &text);
            Ok::<_, kube::Error>(())
        })
        .await;
        // A namespace that goes takes it along: nothing to tell.
        let source = failure.filter(|e| !is_terminating(e))?;
        let text = format!("Error creating: {}", super::message(&source));
        self.recorder.warning(owner, "FailedCreate", &text);
        Some(Error::Create {
            what: format!("Pod of {}", named::<ReplicationController>(key)),
            source,
        })
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        owner: &ReplicationController,
        set: &ReplicaSet,
        plan: Plan,
        failure: Option<&Error>,
    ) -> Result<(), Error> {
        let now = self.context.clock.now();
        let conditions = plan::conditions(set.status.as_ref(), failure, plan.create > 0, now);
        let status = ReplicationControllerStatus {
            available_replicas: plan.status.available_replicas,
            conditions: convert::<_, Vec<ReplicationControllerCondition>>(conditions.as_ref()),
            fully_labeled_replicas: plan.status.fully_labeled_replicas,
            observed_generation: plan.status.observed_generation,
            ready_replicas: plan.status.ready_replicas,
            replicas: plan.status.replicas,
        };
        if owner.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut owner = owner.clone();
        owner.status = Some(status);
        self.context.write_status(key, &owner).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::object;
    use serde_json::json;

    #[test]
    fn it_is_planned_as_the_set_that_it_would_be() {
        let owner: ReplicationController = object(json!({
            "metadata": {"name": "rc", "uid": "u", "generation": 2},
            "spec": {"replicas": 2, "selector": {"a": "b"}, "template": {"metadata": {"labels": {"a": "b"}}}},
            "status": {"replicas": 1, "conditions": [{"type": "ReplicaFailure", "status": "True",
                "reason": "FailedCreate", "message": "quota", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        }));
        let set = as_set(&owner);
        let conditions = set.status.as_ref().and_then(|s| s.conditions.as_ref());
        assert_eq!(
            conditions.map(|c| c[0].reason.as_deref()),
            Some(Some("FailedCreate"))
        );
        let plan = plan::plan(&set, &[], &<_>::default(), |_| 1, crate::fixture::now());
        assert_eq!((plan.create, plan.status.observed_generation), (2, Some(2)));
    }
}

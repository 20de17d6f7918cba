//! PodDisruptionBudgets: tells how many pods may be evicted now. Evictions themselves are
//! granted by the API server, which takes them off that number.
//!
//! Start with [`plan::plan`].

mod plan;

use crate::context::{Context, controller_key, controller_uid};
use crate::error::Error;
use client::k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use client::k8s_openapi::api::core::v1::Pod;
use client::k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use client::{EventRecorder, Informer, ObjectKey, Outcome, WorkQueue, labels};
use plan::Expected;
use std::collections::HashMap;
use std::sync::Arc;

const NAME: &str = "disruption-controller";
const WORKERS: usize = 1;

struct Controller {
    context: Context,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    deployments: Informer<Deployment>,
    replica_sets: Informer<ReplicaSet>,
    stateful_sets: Informer<StatefulSet>,
    recorder: EventRecorder,
}

pub(crate) fn start(context: &Context) {
    let budgets = context.informers.get::<PodDisruptionBudget>();
    let pods = context.informers.get::<Pod>();
    let deployments = context.informers.get::<Deployment>();
    let replica_sets = context.informers.get::<ReplicaSet>();
    let stateful_sets = context.informers.get::<StatefulSet>();
    let queue = context.queue();
    context.enqueue(&budgets, &queue);
    enqueue_at_pods(context, &budgets, &pods, &queue);
    {
        // A size that changes is expected of the budget at once.
        let (budgets, queue) = (budgets.clone(), queue.clone());
        context.follow(&deployments, move |old, new| {
            let replicas = |d: &Arc<Deployment>| d.spec.replicas;
            let object = new
                .or(old)
                .filter(|_| old.map(replicas) != new.map(replicas));
            let Some(object) = object.filter(|_| !budgets.is_empty()) else {
                return;
            };
            let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
            for budget in budgets.list_namespace(namespace) {
                queue.add(ObjectKey::of(&*budget));
            }
        });
    }
    let ready = vec![
        budgets.ready(),
        pods.ready(),
        deployments.ready(),
        replica_sets.ready(),
        stateful_sets.ready(),
    ];
    let controller = Arc::new(Controller {
        context: context.clone(),
        budgets,
        pods,
        deployments,
        replica_sets,
        stateful_sets,
        recorder: context.recorder(NAME),
    });
    context.work(NAME, queue, WORKERS, ready, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

/// The budgets that cover a pod that comes, changes or goes.
fn enqueue_at_pods(
    context: &Context,
    budgets: &Informer<PodDisruptionBudget>,
    pods: &Informer<Pod>,
    queue: &WorkQueue<ObjectKey>,
) {
    let (budgets, queue) = (budgets.clone(), queue.clone());
    context.follow(pods, move |old, new| {
        if budgets.is_empty() {
            return;
        }
        for pod in [old, new].into_iter().flatten() {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            for budget in budgets.list_namespace(namespace) {
                if covers(&budget, pod) {
                    queue.add(ObjectKey::of(&*budget));
                }
            }
        }
    });
}

/// An empty selector covers all pods of the namespace, an absent one none.
fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    let selector = selector.and_then(|s| labels::parse(s).ok());
    selector.is_some_and(|s| labels::matches(&s, pod.metadata.labels.as_ref()))
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Outcome, Error> {
        let Some(budget) = self.budgets.get_key(&key) else {
            return Ok(Outcome::Done);
        };
        let pods = self.pods.select_namespace(&key.namespace, |pod| {
            !crate::pods::has_ended(pod) && covers(&budget, pod)
        });
        let expected = || self.expected(&pods);
        let plan = plan::plan(&budget, &pods, expected, self.context.clock.now());
        let failed = plan.status.conditions.iter().flatten();
        for condition in failed.filter(|c| c.reason == "SyncFailed") {
            let text = format!(
                "Failed to calculate the number of expected pods: {}",
                condition.message
            );
            self.recorder
                .warning(&*budget, "CalculateExpectedPodCountFailed", &text);
        }
        self.write_status(&key, &budget, plan.status).await?;
        Ok(Outcome::after(plan.look_again_in))
    }

    /// How many pods the controllers of these ask for. Pods without one count as none.
    fn expected(&self, pods: &[Arc<Pod>]) -> Expected {
        let mut sizes: HashMap<String, i32> = HashMap::new();
        for pod in pods {
            let Some(owner) = controller_uid(&**pod) else {
                continue;
            };
            if sizes.contains_key(owner) {
                continue;
            }
            if let Some(key) = controller_key::<ReplicaSet>(&**pod) {
                let Some(set) = self.replica_sets.get_key(&key) else {
                    continue;
                };
                let deployment =
                    controller_key::<Deployment>(&*set).and_then(|k| self.deployments.get_key(&k));
                let (uid, size) = match deployment {
                    Some(d) => (d.metadata.uid.clone(), d.spec.replicas),
                    None => (set.metadata.uid.clone(), set.spec.replicas),
                };
                sizes.insert(uid.unwrap_or_default(), size.unwrap_or(1));
            } else if let Some(key) = controller_key::<StatefulSet>(&**pod) {
                let set = self.stateful_sets.get_key(&key);
                let size = set.and_then(|s| s.spec.replicas).unwrap_or(1);
                sizes.insert(owner.to_owned(), size);
            } else {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                return Err(format!(
                    "found no controllers with a scale for pod {name:?}"
                ));
            }
        }
        Ok(sizes.values().sum())
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        budget: &PodDisruptionBudget,
        status: PodDisruptionBudgetStatus,
    ) -> Result<(), Error> {
        if budget.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut budget = budget.clone();
        budget.status = Some(status);
        // With its resourceVersion: an eviction granted meanwhile must not be lost.
        self.context.write_status(key, &budget).await
    }
}

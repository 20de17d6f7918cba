//! StatefulSets: keeps numbered pods, each with claims of its own, made, replaced and taken
//! away in order.
//!
//! Start with [`plan::plan`]; names, labels and claims are in `identity`.

mod identity;
mod plan;
#[cfg(test)]
mod tests;

use crate::context::{Context, named};
use crate::error::{Error, is_terminating};
use crate::replicaset::message;
use crate::writes::{UNSEEN_RETRY, Unseen, for_each, slow_start};
use crate::{history, pods};
use client::k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use client::k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use client::{EventRecorder, Informer, ObjectKey, Outcome, labels};
use kube::api::{Api, Patch, PatchParams, PostParams};
use plan::{Create, Plan, Revisions};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "statefulset-controller";
const WORKERS: usize = 2;
/// Label under which a revision's hash stands, as upstream's.
const HASH: &str = "controller.kubernetes.io/hash";
/// Another look at a claim that must go before its pod is made again.
const STALE_RETRY: Duration = Duration::from_secs(1);

struct Controller {
    context: Context,
    sets: Informer<StatefulSet>,
    pods: Informer<Pod>,
    revisions: Informer<ControllerRevision>,
    unseen: Unseen,
    recorder: EventRecorder,
}

/// The two revisions that a set's pods are made of.
struct Templates {
    current: Arc<ControllerRevision>,
    update: Arc<ControllerRevision>,
}

pub(crate) fn start(context: &Context) {
    let sets = context.informers.get::<StatefulSet>();
    let pods = context.informers.get::<Pod>();
    let revisions = context.informers.get::<ControllerRevision>();
    let queue = context.queue();
    context.enqueue(&sets, &queue);
    context.enqueue_owners::<StatefulSet, Pod>(&pods, &queue);
    {
        // A pod without a controller may be one of a set's own.
        let (queue, sets) = (queue.clone(), sets.clone());
        context.follow(&pods, move |_, new| {
            let orphan = new.filter(|p| crate::context::controller_uid(&***p).is_none());
            let Some((pod, (parent, _))) =
                orphan.and_then(|p| Some((p, identity::parent_and_ordinal(p)?)))
            else {
                return;
            };
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            if sets.get(namespace, parent).is_some() {
                queue.add(ObjectKey::new(namespace, parent));
            }
        });
    }
    let ready = vec![sets.ready(), pods.ready(), revisions.ready()];
    let controller = Arc::new(Controller {
        context: context.clone(),
        sets,
        pods,
        revisions,
        unseen: Unseen::default(),
        recorder: context.recorder(NAME),
    });
    context.work(NAME, queue, WORKERS, ready, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Outcome, Error> {
        let seen = self.pods.revision();
        let Some(set) = self.sets.get_key(&key) else {
            self.unseen.forget(&key);
            return Ok(Outcome::Done);
        };
        if !self.unseen.is_seen(&key, seen) {
            return Ok(Outcome::After(UNSEEN_RETRY));
        }
        let selector = labels::parse(&set.spec.selector).map_err(|source| Error::Selector {
            what: named::<StatefulSet>(&key),
            source,
        })?;
        let client = &self.context.client;
        let fits = |pod: &Pod| {
            identity::parent_and_ordinal(pod).is_some_and(|(parent, _)| parent == key.name)
        };
        let mine = pods::claim_where(client, &*set, &selector, &self.pods, fits).await?;
        let uids = mine.iter().filter_map(|p| p.metadata.uid.as_deref());
        let deleted = self.unseen.deleted_of(&key, uids);
        let known = pods::claim(client, &*set, &selector, &self.revisions).await?;
        let known = history::sorted(known);
        let status = set.status.as_ref();
        let mut collisions = status.and_then(|s| s.collision_count);
        let going = set.metadata.deletion_timestamp.is_some();
        let update = match known.last().filter(|_| going) {
            Some(last) => last.clone(),
            None if going => return Ok(Outcome::Done),
            None => {
                let template = &set.spec.template;
                history::sync(client, &*set, template, HASH, &known, &mut collisions).await?
            }
        };
        let current = status
            .and_then(|s| s.current_revision.as_ref())
            .and_then(|name| {
                known
                    .iter()
                    .find(|r| r.metadata.name.as_ref() == Some(name))
            })
            .unwrap_or(&update)
            .clone();
        let templates = Templates { current, update };
        let names = Revisions {
            current: templates
                .current
                .metadata
                .name
                .as_deref()
                .unwrap_or_default(),
            update: templates
                .update
                .metadata
                .name
                .as_deref()
                .unwrap_or_default(),
        };
        let mut plan = plan::plan(&set, &mine, &deleted, names, self.context.clock.now());
        plan.status.collision_count = collisions.or(Some(0));
        let done = self.carry_out(&key, &set, &templates, &mut plan).await;
        self.write_status(&key, &set, plan.status).await?;
        let again = done?;
        self.tidy(&set, &known, &templates, &mine).await?;
        Ok(Outcome::after(
            again.into_iter().chain(plan.look_again_in).min(),
        ))
    }

    /// Does what is planned; when to look again.
    async fn carry_out(
        &self,
        key: &ObjectKey,
        set: &StatefulSet,
        templates: &Templates,
        plan: &mut Plan,
    ) -> Result<Option<Duration>, Error> {
        let has_claims = set
            .spec
            .volume_claim_templates
            .as_ref()
            .is_some_and(|t| !t.is_empty());
        if has_claims {
            for (pods, condemned) in [(&plan.keep, false), (&plan.condemned, true)] {
                for pod in pods {
                    let whose = Some(&**pod).filter(|_| condemned);
                    self.own_claims(set, pod, whose).await?;
                }
            }
        }
        for_each(plan.relabel.clone(), |pod| async move {
            self.relabel(key, &pod).await
        })
        .await?;
        let mut wait = None;
        if has_claims {
            let mut ready = Vec::new();
            for create in plan.create.drain(..) {
                if self.make_claims(set, create.ordinal).await? {
                    ready.push(create);
                } else {
                    wait = Some(STALE_RETRY);
                }
            }
            plan.create = ready;
        }
        self.create(key, set, templates, &plan.create).await?;
        for_each(plan.delete.clone(), |pod| async move {
            let name = pod.metadata.name.clone().unwrap_or_default();
            let what = format!("Pod {name} in StatefulSet {}", key.name);
            let deleted = pods::delete(&self.context, &self.unseen, key, &pod).await;
            match &deleted {
                Ok(true) => {
                    let text = format!("delete {what} successful");
                    self.recorder.normal(set, "SuccessfulDelete", &text);
                }
                Ok(false) => {}
                Err(error) => {
                    let text = format!("delete {what} failed error: {error}");
                    self.recorder.warning(set, "FailedDelete", &text);
                }
            }
            deleted.map(drop)
        })
        .await?;
        Ok(wait)
    }

    async fn create(
        &self,
        key: &ObjectKey,
        set: &StatefulSet,
        templates: &Templates,
        create: &[Create],
    ) -> Result<(), Error> {
        let template = |revision: &ControllerRevision| {
            history::template(revision).unwrap_or_else(|| set.spec.template.clone())
        };
        let (current, update) = (template(&templates.current), template(&templates.update));
        let (_, failure) = slow_start(create.len(), |n| {
            let Create { ordinal, updated } = create[n];
            let (template, revision) = if updated {
                (&update, &templates.update)
            } else {
                (&current, &templates.current)
            };
            let revision = revision.metadata.name.as_deref().unwrap_or_default();
            let pod = identity::pod(set, template, revision, ordinal);
            async move {
                let name = identity::pod_name(set, ordinal);
                let what = format!("create Pod {name} in StatefulSet {}", key.name);
                match pods::create(&self.context, &self.unseen, key, &pod).await {
                    Ok(_) => {
                        let text = format!("{what} successful");
                        self.recorder.normal(set, "SuccessfulCreate", &text);
                        Ok(())
                    }
                    Err(source) => Err((what, source)),
                }
            }
        })
        .await;
        // A namespace that goes takes this set with it: nothing to tell.
        let Some((what, source)) = failure.filter(|(_, e)| !is_terminating(e)) else {
            return Ok(());
        };
        let text = format!("{what} failed error: {}", message(&source));
        self.recorder.warning(set, "FailedCreate", &text);
        Err(Error::Create {
            what: format!("Pod of {}", named::<StatefulSet>(key)),
            source,
        })
    }

    async fn relabel(&self, key: &ObjectKey, pod: &Pod) -> Result<(), Error> {
        let patch = serde_json::json!({"metadata": {
            "uid": pod.metadata.uid, "labels": identity::missing_labels(pod),
        }});
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        match api
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(patched) => {
                self.unseen.wrote(key, &patched);
                Ok(())
            }
            Err(error) if client::is_not_found(&error) => Ok(()),
            Err(source) => Err(Error::Update {
                what: named::<Pod>(&ObjectKey::of(pod)),
                source,
            }),
        }
    }

    /// The claims there are. Their informer starts with the first set that has some.
    async fn claims(&self) -> Informer<PersistentVolumeClaim> {
        let claims = self.context.informers.get::<PersistentVolumeClaim>();
        claims.synced().await;
        claims
    }

    /// Makes an ordinal's claims that are not there; whether its pod may be made.
    async fn make_claims(&self, set: &StatefulSet, ordinal: i32) -> Result<bool, Error> {
        let known = self.claims().await;
        let pod = identity::pod_name(set, ordinal);
        for mut claim in identity::claims(set, ordinal) {
            let key = ObjectKey::of(&claim);
            if let Some(there) = known.get_key(&key) {
                if identity::is_stale(&there, &pod) {
                    return Ok(false);
                }
                continue;
            }
            claim.metadata.owner_references = identity::claim_owners(set, &claim, None);
            let name = &key.name;
            let what = format!("Claim {name} Pod {pod} in StatefulSet");
            match self
                .claim_api(&key)
                .create(&PostParams::default(), &claim)
                .await
            {
                Ok(_) => {
                    let text = format!("create {what} {} success", named_set(set));
                    self.recorder.normal(set, "SuccessfulCreate", &text);
                }
                Err(error) if client::is_already_exists(&error) => {}
                Err(source) => {
                    let text = format!(
                        "create {what} {} failed error: {}",
                        named_set(set),
                        message(&source)
                    );
                    self.recorder.warning(set, "FailedCreate", &text);
                    let what = named::<PersistentVolumeClaim>(&key);
                    return Err(Error::Create { what, source });
                }
            }
        }
        Ok(true)
    }

    /// Makes a pod's claims go with whom they should go with.
    async fn own_claims(
        &self,
        set: &StatefulSet,
        pod: &Pod,
        condemned: Option<&Pod>,
    ) -> Result<(), Error> {
        let Some((_, ordinal)) = identity::parent_and_ordinal(pod) else {
            return Ok(());
        };
        let known = self.claims().await;
        for claim in identity::claims(set, ordinal) {
            let key = ObjectKey::of(&claim);
            let Some(there) = known.get_key(&key) else {
                continue;
            };
            let Some(owners) = identity::claim_owners(set, &there, condemned) else {
                continue;
            };
            let patch = serde_json::json!({"metadata": {
                "uid": there.metadata.uid,
                "resourceVersion": there.metadata.resource_version,
                "ownerReferences": owners,
            }});
            let patch = Patch::Merge(patch);
            match self
                .claim_api(&key)
                .patch(&key.name, &PatchParams::default(), &patch)
                .await
            {
                Ok(_) => {}
                Err(error) if client::is_not_found(&error) => {}
                Err(source) => {
                    let what = named::<PersistentVolumeClaim>(&key);
                    return Err(Error::Update { what, source });
                }
            }
        }
        Ok(())
    }

    fn claim_api(&self, key: &ObjectKey) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.context.client.clone(), &key.namespace)
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        set: &StatefulSet,
        status: StatefulSetStatus,
    ) -> Result<(), Error> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut set = set.clone();
        set.status = Some(status);
        self.context.write_status(key, &set).await
    }

    /// Deletes revisions that nothing uses, beyond those that are to be kept.
    async fn tidy(
        &self,
        set: &StatefulSet,
        known: &[Arc<ControllerRevision>],
        templates: &Templates,
        mine: &[Arc<Pod>],
    ) -> Result<(), Error> {
        let mut used: HashSet<&str> = mine.iter().map(|p| identity::revision_of(p)).collect();
        for revision in [&templates.current, &templates.update] {
            used.extend(revision.metadata.name.as_deref());
        }
        for revision in history::surplus(known, &used, set.spec.revision_history_limit) {
            history::delete(&self.context.client, &revision).await?;
        }
        Ok(())
    }
}

fn named_set(set: &StatefulSet) -> &str {
    set.metadata.name.as_deref().unwrap_or_default()
}

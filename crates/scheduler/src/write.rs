//! What the scheduler writes: bindings, reservations of volumes, why a pod waits, and that others
//! go for it.

use crate::claims::Reservation;
use crate::place::Unschedulable;
use crate::preempt::{Preemption, uid};
use crate::run::SCHEDULER_NAME;
use client::k8s_openapi::api::core::v1::{
    Binding, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod,
};
use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status, Time};
use client::volumes::SELECTED_NODE;
use client::{Clock, EventRecorder, EventType, ObjectKey};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;
use std::sync::Arc;
use tokio::sync::mpsc;

/// A write that ended.
#[derive(Debug)]
pub(crate) enum Written {
    Bound(Arc<Pod>, Result<(), kube::Error>),
    Reported,
    /// Others have been told to go for a pod, or not all of them.
    Preempted(Arc<Pod>, Result<(), kube::Error>),
    /// Volumes were reserved for a pod's claims.
    Reserved(ObjectKey, Result<(), kube::Error>),
}

/// Writes, each in a task of its own.
#[derive(Clone)]
pub(crate) struct Writer {
    pub(crate) client: kube::Client,
    pub(crate) recorder: EventRecorder,
    pub(crate) clock: Clock,
    pub(crate) written: mpsc::Sender<Written>,
}

impl Writer {
    pub(crate) async fn bind(self, pod: Arc<Pod>, node: String) {
        let ObjectKey { namespace, name } = ObjectKey::of(&*pod);
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.clone()),
                uid: pod.metadata.uid.clone(),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(node.clone()),
                ..ObjectReference::default()
            },
        };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let bound = api
            .create_subresource::<_, Status>("binding", &name, &PostParams::default(), &binding)
            .await;
        if bound.is_ok() {
            self.recorder.normal(
                &*pod,
                "Scheduled",
                &format!("Successfully assigned {namespace}/{name} to {node}"),
            );
        }
        // Closed only when the scheduler has ended.
        let _ = self
            .written
            .send(Written::Bound(pod, bound.map(|_| ())))
            .await;
    }

    /// Says which volumes are for the claims of a pod, or on which node they are to be made.
    pub(crate) async fn reserve(
        self,
        key: ObjectKey,
        node: String,
        reservations: Vec<Reservation>,
    ) {
        let params = PatchParams::default();
        let mut all = Ok(());
        for reservation in reservations {
            let done = match reservation {
                Reservation::Underway => continue,
                Reservation::Volume(volume, claim) => {
                    let api: Api<PersistentVolume> = Api::all(self.client.clone());
                    let reference = client::events::reference(&*claim);
                    let patch = Patch::Merge(json!({
                        "metadata": {"resourceVersion": volume.metadata.resource_version},
                        "spec": {"claimRef": reference},
                    }));
                    let name = volume.metadata.name.as_deref().unwrap_or_default();
                    api.patch(name, &params, &patch).await.map(drop)
                }
                Reservation::Node(claim) => {
                    let api: Api<PersistentVolumeClaim> =
                        Api::namespaced(self.client.clone(), &key.namespace);
                    let patch = Patch::Merge(json!({"metadata": {
                        "resourceVersion": claim.metadata.resource_version,
                        "annotations": {SELECTED_NODE: node},
                    }}));
                    let name = claim.metadata.name.as_deref().unwrap_or_default();
                    api.patch(name, &params, &patch).await.map(drop)
                }
            };
            all = all.and(done);
        }
        // Closed only when the scheduler has ended.
        let _ = self.written.send(Written::Reserved(key, all)).await;
    }

    pub(crate) async fn report(self, pod: Arc<Pod>, reasons: Unschedulable) {
        self.tell(&pod, &reasons, None).await;
        let _ = self.written.send(Written::Reported).await;
    }

    /// Makes others go for a pod, which is told where.
    pub(crate) async fn preempt(
        self,
        pod: Arc<Pod>,
        preemption: Preemption,
        reasons: Unschedulable,
    ) {
        let Preemption {
            node,
            victims,
            outdone,
        } = preemption;
        let mut all = Ok(());
        for other in &outdone {
            let patch = json!({
                "metadata": {"uid": other.metadata.uid},
                "status": {"nominatedNodeName": null},
            });
            self.patch_status(other, patch).await;
        }
        for victim in &victims {
            let done = self.evict(victim).await;
            if done.is_ok() {
                let text = format!("Preempted by pod {} on node {node}", uid(&pod));
                self.recorder.normal(&**victim, "Preempted", &text);
            }
            all = all.and(done);
        }
        self.tell(&pod, &reasons, Some(&node)).await;
        let _ = self.written.send(Written::Preempted(pod, all)).await;
    }

    /// Deletes a pod for another; one that is gone or going is as good.
    async fn evict(&self, victim: &Pod) -> Result<(), kube::Error> {
        if victim.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let ObjectKey { namespace, name } = ObjectKey::of(victim);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let condition = json!({
            "metadata": {"uid": victim.metadata.uid},
            "status": {"conditions": [{
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "PreemptionByScheduler",
                "message": format!("{SCHEDULER_NAME}: preempting to accommodate a higher priority pod"),
                "lastTransitionTime": Time(self.clock.now()),
                "observedGeneration": victim.metadata.generation,
            }]},
        });
        let gone = |error: &kube::Error| client::is_not_found(error) || client::is_conflict(error);
        let params = PatchParams::default();
        match api
            .patch_status(&name, &params, &Patch::Strategic(condition))
            .await
        {
            Err(error) if gone(&error) => return Ok(()),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: victim.metadata.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match api.delete(&name, &params).await {
            Err(error) if !gone(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Says why a pod waits, and on which node it is to have room.
    async fn tell(&self, pod: &Pod, reasons: &Unschedulable, nominated: Option<&str>) {
        let message = reasons.to_string();
        self.recorder.record(
            client::events::reference(pod),
            EventType::Warning,
            "FailedScheduling",
            &message,
        );
        let patch = unschedulable_patch(pod, &message, nominated, self.clock.now());
        if let Some(patch) = patch {
            self.patch_status(pod, patch).await;
        }
    }

    /// What is not written is of no use to a pod that is gone, and else written with the next try.
    async fn patch_status(&self, pod: &Pod, patch: serde_json::Value) {
        let ObjectKey { namespace, name } = ObjectKey::of(pod);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let patched = api
            .patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch))
            .await;
        match patched {
            Err(error) if !client::is_not_found(&error) => {
                tracing::debug!(pod = name, %error, "status not written");
            }
            _ => {}
        }
    }
}

/// The patch that says in a pod's status why it waits; none when it says so already.
fn unschedulable_patch(
    pod: &Pod,
    message: &str,
    nominated: Option<&str>,
    now: jiff::Timestamp,
) -> Option<serde_json::Value> {
    let known = pod
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .find(|c| c.type_ == "PodScheduled");
    if known.is_some_and(|c| {
        c.status == "False"
            && c.reason.as_deref() == Some("Unschedulable")
            && c.message.as_deref() == Some(message)
    }) && nominated.is_none()
    {
        return None;
    }
    let since = known
        .filter(|c| c.status == "False")
        .and_then(|c| c.last_transition_time.clone())
        .unwrap_or(Time(now));
    let mut patch = json!({
        "metadata": {"uid": pod.metadata.uid},
        "status": {"conditions": [{
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastTransitionTime": since,
            "observedGeneration": pod.metadata.generation,
        }]},
    });
    if let Some(node) = nominated {
        patch["status"]["nominatedNodeName"] = node.into();
    }
    Some(patch)
}

//! Telling the API server how pods are: each pod's newest status, sent only where it
//! differs from what was sent before, many pods at once but never one pod twice at once.
//!
//! Pods that are on their way up wait a little, for most are running a moment later and
//! then cost one patch instead of three.

use crate::agent::{Agent, Record, Slot};
use crate::pod::Uid;
use crate::shutdown::TERMINATION_REASON;
use crate::state::{Image, Run, Sandbox};
use crate::status::{self, Surroundings};
use client::{Outcome, run_workers};
use k8s_openapi::api::core::v1 as core;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Patches and deletes under way at once.
pub(crate) const WRITES_MAX: usize = 24;
/// How long a status that is about to change waits.
const SETTLE: Duration = Duration::from_millis(200);

/// The conditions that the agent keeps; others are left to their owners.
const OWN_CONDITIONS: [&str; 5] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
];

/// Whether the agent keeps the condition.
pub(crate) fn is_own(condition: &core::PodCondition) -> bool {
    OWN_CONDITIONS.contains(&condition.type_.as_str())
        || condition.reason.as_deref() == Some(TERMINATION_REASON)
}

/// What the API server has been told of a pod: a hash of each field of its status, for
/// the fields themselves would cost more memory than all else of the pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct Published {
    fields: BTreeMap<String, u64>,
    ip: Option<IpAddr>,
    deleted: bool,
    /// Of the pod when it was last told.
    revision: u64,
}

fn revision(pod: &core::Pod) -> u64 {
    let revision = pod.metadata.resource_version.as_deref();
    revision.and_then(|r| r.parse().ok()).unwrap_or_default()
}

impl Published {
    /// What it has by itself.
    pub(crate) fn seed(status: Option<&core::PodStatus>) -> Self {
        let mut published = Self {
            ip: status
                .and_then(|s| s.pod_ip.as_deref())
                .and_then(|ip| ip.parse().ok()),
            ..Self::default()
        };
        if let Some(status) = status {
            for (name, value) in fields(status) {
                published.fields.insert(name, hash(&value));
            }
        }
        published
    }

    /// Somebody else may have written what the agent said: the server marks the pods of a
    /// node that it does not hear of as not ready. Then it is said again.
    pub(crate) fn overruled(&mut self, pod: &core::Pod, said: &[core::PodCondition]) {
        let ready = |all: &[core::PodCondition]| {
            let found = all.iter().find(|c| c.type_ == "Ready");
            found.map(|c| c.status.clone())
        };
        let told = pod.status.as_ref().and_then(|s| s.conditions.as_deref());
        if revision(pod) > self.revision && ready(told.unwrap_or_default()) != ready(said) {
            self.fields.remove("conditions");
        }
    }

    /// The fields to send, and what is then known.
    fn difference(
        &self,
        status: &core::PodStatus,
        ip: Option<IpAddr>,
    ) -> (Map<String, Value>, Self) {
        let mut changed = Map::new();
        let mut next = Self {
            ip,
            deleted: self.deleted,
            revision: self.revision,
            ..Self::default()
        };
        for (name, value) in fields(status) {
            let hash = hash(&value);
            if self.fields.get(&name) != Some(&hash) {
                changed.insert(name.clone(), value);
            }
            next.fields.insert(name, hash);
        }
        // Only these can go once they were there; others belong to somebody else.
        for name in ["message", "reason", "podIP", "podIPs"] {
            if self.fields.contains_key(name) && !next.fields.contains_key(name) {
                changed.insert(name.into(), Value::Null);
            }
        }
        // Conditions are merged by type: what one said before has to be named to go.
        let conditions = changed.get_mut("conditions").and_then(Value::as_array_mut);
        for condition in conditions.into_iter().flatten() {
            for field in ["reason", "message"] {
                if condition[field].is_null() {
                    condition[field] = Value::Null;
                }
            }
        }
        // `podIPs` is merged by address: the old one has to be named to go.
        if let (Some(old), Some(Value::Array(ips))) = (self.ip, changed.get_mut("podIPs"))
            && Some(old) != ip
        {
            ips.push(json!({"ip": old.to_string(), "$patch": "delete"}));
        }
        (changed, next)
    }
}

fn fields(status: &core::PodStatus) -> Map<String, Value> {
    // Conditions of others are theirs to write.
    let mut status = status.clone();
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(is_own);
    }
    match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

fn hash(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.to_string().hash(&mut hasher);
    hasher.finish()
}

/// Whether the pod's images are containers, by the images or, after a restart, by what was told.
fn runs_containers(record: &Record) -> bool {
    let pulled = record.sides.iter().any(|side| {
        let artifact = side.pulled.as_ref().map(|image| &image.artifact);
        matches!(artifact, Some(runtime::Artifact::Container { .. }))
    });
    let status = record.desired.pod.status.as_ref();
    let told = status.and_then(|status| status.container_statuses.as_ref());
    let mut ids = told
        .into_iter()
        .flatten()
        .filter_map(|s| s.container_id.as_deref());
    pulled || ids.any(|id| id.starts_with("salp-oci://"))
}

impl Agent {
    /// Starts what sends statuses.
    pub(crate) fn start_publishing(self: &Arc<Self>) {
        let agent = self.clone();
        run_workers(
            "pod-status",
            &self.statuses,
            WRITES_MAX,
            &self.scope,
            move |uid: Uid| {
                let agent = agent.clone();
                async move {
                    agent.publish(&uid).await?;
                    Ok::<_, kube::Error>(Outcome::Done)
                }
            },
        );
    }

    /// Has the pod's status sent soon, if it differs.
    pub(crate) fn announce(&self, slot: &Slot, record: &Record) {
        if is_passing(record) {
            self.statuses.add_after(slot.uid.clone(), SETTLE);
        } else {
            self.statuses.add(slot.uid.clone());
        }
    }

    /// The pod's status as it is now.
    pub(crate) fn status(&self, record: &Record) -> core::PodStatus {
        let runtime = self.runtime(record.runtime.unwrap_or(0)).version();
        let scheme = match runtime.split("://").next() {
            // One runtime may run both.
            Some("salp-wasm") if runs_containers(record) => "salp-oci",
            other => other.unwrap_or("salp"),
        };
        status::pod_status(
            &record.desired,
            &record.actual,
            &Surroundings {
                node_ip: self.fixed.node_ip,
                pod_ip: record
                    .ip
                    .filter(|_| record.actual.sandbox != Sandbox::Absent),
                start_time: record.start_time,
                now: self.clock.now(),
                runtime: scheme,
                conditions: &record.conditions,
            },
        )
    }

    /// Sends what of the status was not sent yet.
    pub(crate) async fn publish(&self, uid: &Uid) -> Result<(), kube::Error> {
        // The ends that a drain brings are not the pods' own.
        if self.draining.load(Ordering::SeqCst) {
            return Ok(());
        }
        let Some(slot) = self.slot(uid) else {
            return Ok(());
        };
        let (pods, name, own, patch, next, finish) = {
            let mut record = slot.lock();
            let own = if record.desired.is_static {
                self.mirrors.uid_of(&record.desired)
            } else {
                let uid = record.desired.pod.metadata.uid.clone();
                uid.filter(|_| record.confirmed)
            };
            let Some(own) = own.filter(|_| !record.actual.gone) else {
                return Ok(());
            };
            let status = self.status(&record);
            record.conditions = status.conditions.clone().unwrap_or_default();
            let ip = record.ip;
            let (changed, next) = record.published.difference(&status, ip);
            let pods = Api::<core::Pod>::namespaced(self.client.clone(), &record.desired.namespace);
            let patch = (!changed.is_empty())
                .then(|| json!({"metadata": {"uid": &own}, "status": changed}));
            let finish = record.actual.finishing && !record.published.deleted;
            (pods, record.desired.name.clone(), own, patch, next, finish)
        };
        if let Some(patch) = patch {
            let sent = pods
                .patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch))
                .await;
            match sent {
                Ok(pod) => {
                    slot.lock().published = Published {
                        revision: revision(&pod),
                        ..next
                    };
                }
                // The pod is gone, or another one has its name; the watch tells.
                Err(e) if client::is_not_found(&e) || client::is_conflict(&e) => {}
                Err(e) => return Err(e),
            }
        }
        if finish {
            let params = DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(Preconditions {
                    uid: Some(own),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            match pods.delete(&name, &params).await {
                Err(e) if client::is_not_found(&e) || client::is_conflict(&e) => {}
                Err(e) => return Err(e),
                Ok(_) => {}
            }
            slot.lock().published.deleted = true;
        }
        Ok(())
    }
}

/// Whether the status is about to change by what is under way: the pod comes up, nothing
/// failed, nothing waits.
fn is_passing(record: &Record) -> bool {
    let actual = &record.actual;
    let failed = |c: &crate::state::ContainerActual| {
        matches!(c.image, Image::Failed { .. }) || matches!(c.run, Run::Failed { .. })
    };
    let under_way = actual.sandbox == Sandbox::Busy
        || actual
            .containers
            .iter()
            .any(|c| c.run == Run::Starting || c.image == Image::Pulling);
    under_way && actual.ended.is_none() && !actual.containers.iter().any(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(phase: &str, ip: &str) -> core::PodStatus {
        core::PodStatus {
            phase: Some(phase.into()),
            pod_ip: Some(ip.into()),
            pod_ips: Some(vec![core::PodIP { ip: ip.into() }]),
            ..core::PodStatus::default()
        }
    }

    #[test]
    fn only_what_changed_is_sent() {
        let first = status("Pending", "10.0.0.1");
        let published = Published::seed(Some(&first));
        let ip = |s: &str| Some(s.parse::<IpAddr>().unwrap());
        let (none, _) = published.difference(&first, ip("10.0.0.1"));
        assert!(none.is_empty());
        let (changed, next) = published.difference(&status("Running", "10.0.0.1"), ip("10.0.0.1"));
        assert_eq!(Value::Object(changed), json!({"phase": "Running"}));
        let (changed, _) = next.difference(&status("Running", "10.0.0.2"), ip("10.0.0.2"));
        assert_eq!(
            Value::Object(changed),
            json!({"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}, {"ip": "10.0.0.1", "$patch": "delete"}]})
        );
    }

    #[test]
    fn what_is_over_is_taken_back() {
        let mut failed = status("Failed", "10.0.0.1");
        failed.reason = Some("Evicted".into());
        let published = Published::seed(Some(&failed));
        let (changed, _) =
            published.difference(&status("Failed", "10.0.0.1"), Some([10, 0, 0, 1].into()));
        assert_eq!(Value::Object(changed), json!({"reason": null}));
    }
}

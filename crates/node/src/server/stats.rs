//! What pods use, as JSON: upstream's `/stats/summary`, and `/stats/salp`, which has what
//! upstream has no place for.
//!
//! `/stats/salp` answers `{"node": NAME, "pods": [{"uid", "namespace", "name",
//! "containers": [{"name", "attempt", "cpuNs", "memoryBytes", "requests",
//! "instances"}]}]}`: totals since each container's start, `instances` as of now.

use crate::agent::Agent;
use crate::state::Run;
use k8s_openapi::api::core::v1::Pod;
use runtime::ContainerStats;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;

/// A container in use.
pub(super) struct Usage {
    pub(super) uid: String,
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) container: String,
    pub(super) attempt: u32,
    pub(super) started_ms: i64,
    pub(super) stats: ContainerStats,
    /// Of its pod, where that is measured.
    whole: Option<ContainerStats>,
}

/// What a pod as a whole has used: by its own measure, or as its containers' sum.
pub(super) fn whole(pod: &[Usage]) -> ContainerStats {
    let sum = |of: fn(&ContainerStats) -> u64| pod.iter().map(|u| of(&u.stats)).sum();
    let own = pod.first().and_then(|usage| usage.whole.clone());
    own.unwrap_or_else(|| ContainerStats {
        cpu_ns: sum(|s| s.cpu_ns),
        memory_bytes: sum(|s| s.memory_bytes),
        ..ContainerStats::default()
    })
}

/// Every running container with what it has used, by pod.
pub(super) async fn usage(agent: &Arc<Agent>) -> Vec<Usage> {
    let mut stats: HashMap<String, ContainerStats> = HashMap::new();
    for (handler, runtime) in &agent.runtimes {
        match runtime.stats().await {
            Ok(list) => stats.extend(list.into_iter().map(|(id, s)| (id.0, s))),
            Err(error) => tracing::debug!(handler, %error, "stats not read"),
        }
    }
    let mut list = Vec::new();
    for slot in agent.slots() {
        let record = slot.lock();
        let desired = &record.desired;
        for (wanted, actual) in desired.containers.iter().zip(&record.actual.containers) {
            let Run::Running { started_ms, .. } = actual.run else {
                continue;
            };
            let id = crate::container::container_id(desired, &wanted.name, actual.attempt);
            list.push(Usage {
                uid: desired.pod.metadata.uid.clone().unwrap_or_default(),
                namespace: desired.namespace.to_string(),
                pod: desired.name.to_string(),
                container: wanted.name.to_string(),
                attempt: actual.attempt,
                started_ms,
                stats: stats.get(&id.0).cloned().unwrap_or_default(),
                whole: stats.get(&*desired.uid.0).cloned(),
            });
        }
    }
    list.sort_by(|a, b| (&a.namespace, &a.pod, &a.uid).cmp(&(&b.namespace, &b.pod, &b.uid)));
    list
}

/// `/stats/salp`.
pub(super) async fn salp(agent: &Arc<Agent>) -> Value {
    let usage = usage(agent).await;
    let pods: Vec<Value> = usage
        .chunk_by(|a, b| a.uid == b.uid)
        .map(|pod| {
            let containers: Vec<Value> = pod
                .iter()
                .map(|u| {
                    json!({"name": u.container, "attempt": u.attempt, "cpuNs": u.stats.cpu_ns,
                        "memoryBytes": u.stats.memory_bytes, "requests": u.stats.requests,
                        "instances": u.stats.instances})
                })
                .collect();
            json!({"uid": pod[0].uid, "namespace": pod[0].namespace, "name": pod[0].pod,
                "containers": containers})
        })
        .collect();
    json!({"node": agent.fixed.name, "pods": pods})
}

/// `/stats/summary`.
pub(super) async fn summary(agent: &Arc<Agent>) -> Value {
    let now = time(agent.clock.now().as_millisecond());
    let usage = usage(agent).await;
    let cpu = |ns: u64| json!({"time": now, "usageCoreNanoSeconds": ns});
    let memory = |bytes: u64| json!({"time": now, "usageBytes": bytes, "workingSetBytes": bytes, "rssBytes": bytes});
    let pods: Vec<Value> = usage
        .chunk_by(|a, b| a.uid == b.uid)
        .map(|pod| {
            let containers: Vec<Value> = pod
                .iter()
                .map(|u| {
                    json!({"name": u.container, "startTime": time(u.started_ms),
                        "cpu": cpu(u.stats.cpu_ns), "memory": memory(u.stats.memory_bytes)})
                })
                .collect();
            json!({
                "podRef": {"name": pod[0].pod, "namespace": pod[0].namespace, "uid": pod[0].uid},
                "startTime": time(pod.iter().map(|u| u.started_ms).min().unwrap_or(0)),
                "containers": containers,
                "cpu": cpu(whole(pod).cpu_ns),
                "memory": memory(whole(pod).memory_bytes),
            })
        })
        .collect();
    let machine = crate::machine::Used::read(&agent.fixed.dir);
    json!({
        "node": {
            "nodeName": agent.fixed.name,
            "startTime": time(agent.started_ms),
            "cpu": cpu(machine.cpu_ns),
            "memory": {"time": now, "availableBytes": machine.memory_free_bytes,
                "usageBytes": machine.memory_used_bytes, "workingSetBytes": machine.memory_used_bytes},
            "fs": {"time": now, "availableBytes": machine.disk_free_bytes,
                "capacityBytes": machine.disk_bytes,
                "usedBytes": machine.disk_bytes.saturating_sub(machine.disk_free_bytes)},
        },
        "pods": pods,
    })
}

/// `/pods`: the pods as the node has them, with the status that it would send.
pub(super) fn pods(agent: &Arc<Agent>) -> Value {
    let items: Vec<Pod> = agent
        .slots()
        .iter()
        .map(|slot| {
            let record = slot.lock();
            let mut pod = (*record.desired.pod).clone();
            pod.status = Some(agent.status(&record));
            pod
        })
        .collect();
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

/// `/configz`: the few settings that tools look up.
pub(super) fn configz(agent: &Arc<Agent>) -> Value {
    json!({"kubeletconfig": {
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "maxPods": agent.fixed.pods_max,
        "podPidsLimit": agent.fixed.pod_pids_limit.map_or(-1, |n| i64::try_from(n).unwrap_or(-1)),
        "clusterDomain": agent.fixed.cluster_domain,
        "clusterDNS": agent.fixed.cluster_dns,
    }})
}

fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .unwrap_or_default()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

//! Metrics in Prometheus' text format, under the names that Kubernetes has for them.

use super::stats;
use crate::agent::Agent;
use crate::state::Run;
use std::fmt::Write as _;
use std::sync::Arc;

/// `/metrics`: the agent itself.
pub(super) fn node(agent: &Arc<Agent>) -> String {
    let (mut pods, mut containers, mut restarts) = (0, 0, 0);
    for slot in agent.slots() {
        let record = slot.lock();
        let running = record
            .actual
            .containers
            .iter()
            .filter(|c| matches!(c.run, Run::Running { .. }))
            .count();
        pods += u64::from(running > 0);
        containers += running;
        restarts += record
            .actual
            .containers
            .iter()
            .map(|c| u64::from(c.attempt))
            .sum::<u64>();
    }
    let mut text = String::new();
    family(
        &mut text,
        "kubelet_node_name",
        "gauge",
        "The node's name. The count is always 1.",
    );
    let _ = writeln!(text, "kubelet_node_name{{node={:?}}} 1", agent.fixed.name);
    family(
        &mut text,
        "kubelet_running_pods",
        "gauge",
        "Number of pods that have a running container.",
    );
    let _ = writeln!(text, "kubelet_running_pods {pods}");
    family(
        &mut text,
        "kubelet_running_containers",
        "gauge",
        "Number of containers by state.",
    );
    let _ = writeln!(
        text,
        "kubelet_running_containers{{container_state=\"running\"}} {containers}"
    );
    family(
        &mut text,
        "salp_node_container_restarts",
        "gauge",
        "Restarts of the containers that the node has.",
    );
    let _ = writeln!(text, "salp_node_container_restarts {restarts}");
    text
}

/// `/metrics/dataplane`: what carries Services, wakes included; nothing while it is away.
pub(super) async fn dataplane(agent: &Arc<Agent>) -> String {
    let Some(traffic) = agent.traffic.get() else {
        return String::new();
    };
    match traffic.metrics().await {
        Ok(text) => text,
        Err(error) => {
            tracing::debug!(%error, "metrics of the data plane not read");
            String::new()
        }
    }
}

/// `/metrics/resource`: what containers and pods use.
pub(super) async fn resource(agent: &Arc<Agent>) -> String {
    let usage = stats::usage(agent).await;
    let mut text = String::new();
    let mut per_container =
        |name: &str, kind: &str, help: &str, value: &dyn Fn(&stats::Usage) -> String| {
            family(&mut text, name, kind, help);
            for u in &usage {
                let _ = writeln!(
                    text,
                    "{name}{{container={:?},namespace={:?},pod={:?}}} {}",
                    u.container,
                    u.namespace,
                    u.pod,
                    value(u)
                );
            }
        };
    per_container(
        "container_cpu_usage_seconds_total",
        "counter",
        "CPU time that the container used, seconds.",
        &|u| seconds(u.stats.cpu_ns),
    );
    per_container(
        "container_memory_working_set_bytes",
        "gauge",
        "Memory in use by the container, bytes.",
        &|u| u.stats.memory_bytes.to_string(),
    );
    per_container(
        "container_start_time_seconds",
        "gauge",
        "Start of the container, Unix seconds.",
        &|u| seconds(u64::try_from(u.started_ms).unwrap_or(0) * 1_000_000),
    );
    per_container(
        "salp_container_requests_total",
        "counter",
        "Requests that the container answered.",
        &|u| u.stats.requests.to_string(),
    );
    for (name, kind, help, value) in [
        (
            "pod_cpu_usage_seconds_total",
            "counter",
            "CPU time that the pod used, seconds.",
            (|u: &[stats::Usage]| seconds(stats::whole(u).cpu_ns)) as fn(&[stats::Usage]) -> String,
        ),
        (
            "pod_memory_working_set_bytes",
            "gauge",
            "Memory in use by the pod, bytes.",
            |u| stats::whole(u).memory_bytes.to_string(),
        ),
    ] {
        family(&mut text, name, kind, help);
        for pod in usage.chunk_by(|a, b| a.uid == b.uid) {
            let _ = writeln!(
                text,
                "{name}{{namespace={:?},pod={:?}}} {}",
                pod[0].namespace,
                pod[0].pod,
                value(pod)
            );
        }
    }
    let machine = crate::machine::Used::read(&agent.fixed.dir);
    family(
        &mut text,
        "node_cpu_usage_seconds_total",
        "counter",
        "CPU time that the node used, seconds.",
    );
    let _ = writeln!(
        text,
        "node_cpu_usage_seconds_total {}",
        seconds(machine.cpu_ns)
    );
    family(
        &mut text,
        "node_memory_working_set_bytes",
        "gauge",
        "Memory in use on the node, bytes.",
    );
    let _ = writeln!(
        text,
        "node_memory_working_set_bytes {}",
        machine.memory_used_bytes
    );
    text
}

fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn seconds(ns: u64) -> String {
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

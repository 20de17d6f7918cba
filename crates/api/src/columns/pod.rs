//! Pods: the one word that says how a pod is.

use super::{NONE, age, condition_is_true, deleting, or, since, string, wide};
use crate::Column;
use crate::access::{at, int, list, text};
use serde_json::{Value, json};

pub(crate) const POD: &[Column] = &[
    string("Ready"),
    string("Status"),
    string("Restarts"),
    string("Age"),
    wide("IP"),
    wide("Node"),
    wide("Nominated Node"),
    wide("Readiness Gates"),
];

/// What a pod's containers add up to.
struct Summary<'a> {
    reason: String,
    restarts: i64,
    /// When a container last ended before it was restarted.
    last_restart: &'a str,
    ready: usize,
    total: usize,
}

pub(crate) fn pod(v: &Value, now: i64) -> Vec<Value> {
    let s = summarize(v);
    let restarts = if s.restarts != 0 && !s.last_restart.is_empty() {
        format!(
            "{} ({} ago)",
            s.restarts,
            since(&json!(s.last_restart), now)
        )
    } else {
        s.restarts.to_string()
    };
    let ip = match list(v, "status.podIPs").first() {
        Some(ip) => or(ip, "ip", NONE),
        None => or(v, "status.podIP", NONE),
    };
    vec![
        json!(format!("{}/{}", s.ready, s.total)),
        json!(s.reason),
        json!(restarts),
        age(v, now),
        ip,
        or(v, "spec.nodeName", NONE),
        or(v, "status.nominatedNodeName", NONE),
        json!(gates(v)),
    ]
}

fn gates(v: &Value) -> String {
    let gates = list(v, "spec.readinessGates");
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let open = gates
        .iter()
        .filter(|g| condition_is_true(v, text(g, "conditionType")))
        .count();
    format!("{open}/{}", gates.len())
}

fn summarize(v: &Value) -> Summary<'_> {
    let phase = text(v, "status.phase");
    let inits = list(v, "spec.initContainers");
    let is_sidecar = |name: &str| {
        inits
            .iter()
            .any(|c| text(c, "name") == name && text(c, "restartPolicy") == "Always")
    };
    let mut s = Summary {
        reason: match text(v, "status.reason") {
            "" => phase.to_owned(),
            reason => reason.to_owned(),
        },
        restarts: 0,
        last_restart: "",
        ready: 0,
        total: list(v, "spec.containers").len()
            + inits
                .iter()
                .filter(|c| text(c, "restartPolicy") == "Always")
                .count(),
    };
    let gated = list(v, "status.conditions")
        .iter()
        .any(|c| text(c, "type") == "PodScheduled" && text(c, "reason") == "SchedulingGated");
    if gated {
        s.reason = "SchedulingGated".to_owned();
    }

    // Restarts of sidecars count for ever, those of init containers only while initializing.
    let (mut sidecar_restarts, mut sidecar_last) = (0, "");
    let mut initializing = false;
    for (i, c) in list(v, "status.initContainerStatuses").iter().enumerate() {
        let ended = text(c, "lastState.terminated.finishedAt");
        s.restarts += int(c, "restartCount");
        s.last_restart = s.last_restart.max(ended);
        let sidecar = is_sidecar(text(c, "name"));
        if sidecar {
            sidecar_restarts += int(c, "restartCount");
            sidecar_last = sidecar_last.max(ended);
        }
        let terminated = at(c, "state.terminated");
        if !terminated.is_null() && int(terminated, "exitCode") == 0 {
            continue;
        }
        if sidecar && at(c, "started") == true {
            s.ready += usize::from(at(c, "ready") == true);
            continue;
        }
        let waiting = text(c, "state.waiting.reason");
        s.reason = if !terminated.is_null() {
            format!("Init:{}", end_of(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{}", inits.len())
        };
        initializing = true;
        break;
    }
    if !initializing || condition_is_true(v, "Initialized") {
        s.restarts = sidecar_restarts;
        s.last_restart = sidecar_last;
        main_containers(v, &mut s);
    }

    if deleting(v) {
        if text(v, "status.reason") == "NodeLost" {
            s.reason = "Unknown".to_owned();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            s.reason = "Terminating".to_owned();
        }
    }
    s
}

fn main_containers<'a>(v: &'a Value, s: &mut Summary<'a>) {
    let mut running = false;
    // The first container's trouble is what is shown, so it comes last.
    for c in list(v, "status.containerStatuses").iter().rev() {
        s.restarts += int(c, "restartCount");
        s.last_restart = s
            .last_restart
            .max(text(c, "lastState.terminated.finishedAt"));
        let terminated = at(c, "state.terminated");
        let waiting = text(c, "state.waiting.reason");
        if !waiting.is_empty() {
            s.reason = waiting.to_owned();
        } else if !terminated.is_null() {
            s.reason = end_of(terminated);
        } else if at(c, "ready") == true && !at(c, "state.running").is_null() {
            running = true;
            s.ready += 1;
        }
    }
    if s.reason == "Completed" && running {
        s.reason = if condition_is_true(v, "Ready") {
            "Running".to_owned()
        } else {
            "NotReady".to_owned()
        };
    }
}

/// How a container ended.
fn end_of(terminated: &Value) -> String {
    match (text(terminated, "reason"), int(terminated, "signal")) {
        ("", 0) => format!("ExitCode:{}", int(terminated, "exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_767_225_600; // 2026-01-01T00:00:00Z

    fn shown(spec: Value, status: Value) -> String {
        let v = json!({
            "metadata": {"creationTimestamp": "2025-12-31T23:58:00Z"}, "spec": spec, "status": status,
        });
        let cells: Vec<String> = pod(&v, NOW)[..4]
            .iter()
            .map(|c| c.as_str().unwrap_or_default().to_owned())
            .collect();
        cells.join(" ")
    }

    #[test]
    fn one_word_for_every_state() {
        let one = json!({"containers": [{"name": "a"}]});
        let state = |s: Value| json!({"phase": "Running", "containerStatuses": [{"name": "a", "state": s, "restartCount": 0}]});
        for (status, want) in [
            (json!({"phase": "Pending"}), "0/1 Pending 0 2m"),
            (
                state(json!({"waiting": {"reason": "ContainerCreating"}})),
                "0/1 ContainerCreating 0 2m",
            ),
            (
                state(json!({"waiting": {"reason": "ErrImagePull"}})),
                "0/1 ErrImagePull 0 2m",
            ),
            (
                state(json!({"terminated": {"reason": "Completed", "exitCode": 0}})),
                "0/1 Completed 0 2m",
            ),
            (
                state(json!({"terminated": {"exitCode": 3}})),
                "0/1 ExitCode:3 0 2m",
            ),
            (
                state(json!({"terminated": {"exitCode": 137, "signal": 9}})),
                "0/1 Signal:9 0 2m",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [{"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}}]}),
                "1/1 Running 0 2m",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [{"name": "a", "restartCount": 3,
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                    "lastState": {"terminated": {"finishedAt": "2025-12-31T23:55:00Z", "exitCode": 1}}}]}),
                "0/1 CrashLoopBackOff 3 (5m ago) 2m",
            ),
            (
                json!({"phase": "Failed", "reason": "Evicted"}),
                "0/1 Evicted 0 2m",
            ),
        ] {
            assert_eq!(shown(one.clone(), status), want);
        }
    }

    #[test]
    fn initialization_and_sidecars() {
        let spec = json!({
            "containers": [{"name": "a"}],
            "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
        });
        for (inits, want) in [
            (
                json!([{"name": "i", "state": {"running": {}}}]),
                "0/2 Init:0/2 0 2m",
            ),
            (
                json!([{"name": "i", "state": {"waiting": {"reason": "PodInitializing"}}}]),
                "0/2 Init:0/2 0 2m",
            ),
            (
                json!([{"name": "i", "restartCount": 2, "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]),
                "0/2 Init:Error 2 2m",
            ),
            (
                json!([{"name": "i", "state": {"terminated": {"exitCode": 0}}},
                    {"name": "s", "started": true, "ready": true, "state": {"running": {}}}]),
                "1/2 Pending 0 2m",
            ),
        ] {
            let status = json!({"phase": "Pending", "initContainerStatuses": inits});
            assert_eq!(shown(spec.clone(), status), want);
        }
    }
}

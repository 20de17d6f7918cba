//! Phases and waiting reasons of states that the agent's own tests do not pass through.

use super::*;
use crate::pod::tests::pod;
use crate::state::Ended;
use serde_json::{Value, json};

fn around(conditions: &[core::PodCondition]) -> Surroundings<'_> {
    Surroundings {
        node_ip: [192, 0, 2, 1].into(),
        pod_ip: None,
        start_time: Timestamp::UNIX_EPOCH,
        now: Timestamp::UNIX_EPOCH,
        runtime: "fake",
        conditions,
    }
}

fn run(code: Option<i32>) -> Run {
    match code {
        None => Run::Running {
            started_ms: 0,
            started: true,
            ready: true,
            stopping: false,
        },
        Some(code) => Run::Exited {
            exit: Box::new(Exited {
                attempt: 0,
                code,
                reason: "Error".into(),
                message: String::new(),
                started_ms: 0,
                finished_ms: 0,
            }),
            restart_at: 0,
        },
    }
}

fn phase_of(policy: &str, runs: &[Option<i32>]) -> &'static str {
    let containers: Vec<Value> = (0..runs.len())
        .map(|n| json!({"name": format!("c{n}"), "image": "i:1"}))
        .collect();
    let desired = pod(json!({"containers": containers, "restartPolicy": policy}));
    let mut actual = Actual::seed(&desired);
    actual.initialised = true;
    for (container, code) in actual.containers.iter_mut().zip(runs) {
        container.run = run(*code);
    }
    phase(&desired, &actual)
}

#[test]
fn phases_by_policy_and_exits() {
    for (policy, runs, expected) in [
        ("Always", &[Some(0)][..], "Running"),
        ("Always", &[None, Some(1)], "Running"),
        ("Never", &[Some(0), Some(0)], "Succeeded"),
        ("Never", &[Some(0), Some(1)], "Failed"),
        ("Never", &[Some(1), None], "Running"),
        ("OnFailure", &[Some(1)], "Running"),
        ("OnFailure", &[Some(0)], "Succeeded"),
    ] {
        assert_eq!(phase_of(policy, runs), expected, "{policy} {runs:?}");
    }
}

#[test]
fn a_readiness_gate_holds_ready_back() {
    let desired = pod(json!({"containers": [{"name": "c", "image": "i:1"}],
        "readinessGates": [{"conditionType": "example.com/ok"}]}));
    let mut actual = Actual::seed(&desired);
    actual.containers[0].run = run(None);
    let ready = |conditions: &[core::PodCondition]| {
        let status = pod_status(&desired, &actual, &around(conditions));
        let list = status.conditions.unwrap();
        list.into_iter().find(|c| c.type_ == "Ready").unwrap()
    };
    let without = ready(&[]);
    assert_eq!(without.status, "False");
    assert_eq!(without.reason.as_deref(), Some("ReadinessGatesNotReady"));
    let gate = core::PodCondition {
        type_: "example.com/ok".into(),
        status: "True".into(),
        ..core::PodCondition::default()
    };
    assert_eq!(ready(&[gate]).status, "True");
}

#[test]
fn a_pod_turned_away_shows_no_containers() {
    let desired = pod(json!({"containers": [{"name": "c", "image": "i:1"}]}));
    let mut actual = Actual::seed(&desired);
    actual.ended = Some(Ended {
        reason: "OutOfcpu".into(),
        message: "no".into(),
    });
    let status = pod_status(&desired, &actual, &around(&[]));
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert_eq!(status.reason.as_deref(), Some("OutOfcpu"));
    assert!(status.container_statuses.is_none());
}

#[test]
fn durations_as_go_prints_them() {
    assert_eq!(go_duration(10_000), "10s");
    assert_eq!(go_duration(300_000), "5m0s");
    assert_eq!(go_duration(80_000), "1m20s");
}

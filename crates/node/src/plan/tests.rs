//! Plans as snapshots: a pod, what is, and the steps.

use super::*;
use crate::pod::tests::pod;
use crate::state::{Ended, Exited};
use expect_test::{Expect, expect};
use serde_json::{Value, json};

fn running() -> Run {
    Run::Running {
        started_ms: 0,
        started: true,
        ready: true,
        stopping: false,
    }
}

fn exited(code: i32, restart_at: u64) -> Run {
    Run::Exited {
        exit: Box::new(Exited {
            attempt: 0,
            code,
            reason: "".into(),
            message: String::new(),
            started_ms: 0,
            finished_ms: 0,
        }),
        restart_at,
    }
}

fn check(spec: Value, set: impl FnOnce(&mut Desired, &mut Actual), expected: Expect) {
    let mut desired = pod(spec);
    let mut actual = Actual::seed(&desired);
    set(&mut desired, &mut actual);
    let plan = plan(&desired, &actual, 1000);
    let mut text: String = plan.steps.iter().map(|s| format!("{s:?}\n")).collect();
    if let Some(at) = plan.wake_at {
        text += &format!("wake at {at}\n");
    }
    expected.assert_eq(&text);
}

fn one() -> Value {
    json!({"containers": [{"name": "c", "image": "i:1"}]})
}

#[test]
fn an_ephemeral_container_runs_once_whatever_the_others_do() {
    let desired = pod(json!({
        "initContainers": [{"name": "i", "image": "i:1"}],
        "containers": [{"name": "c", "image": "i:1"}],
        "ephemeralContainers": [{"name": "e", "image": "i:1"}],
    }));
    let mut actual = Actual::seed(&desired);
    actual.sandbox = Sandbox::Up;
    actual.containers[0].run = Run::Starting;
    actual.containers[2].image = Image::Ready;
    let start = Step::Start {
        container: 2,
        attempt: 0,
    };
    assert_eq!(plan(&desired, &actual, 1).steps, [start]);
    for code in [0, 1] {
        actual.containers[2].run = exited(code, 0);
        assert_eq!(plan(&desired, &actual, 1).steps, []);
        assert!(!has_finished(&desired, &actual));
    }
}

#[test]
fn a_new_pod_is_set_up_and_its_image_pulled_at_once() {
    check(
        one(),
        |_, _| {},
        expect![[r#"
        Setup
        Pull { container: 0 }
    "#]],
    );
}

#[test]
fn a_container_starts_once_sandbox_and_image_are_there() {
    check(
        one(),
        |_, a| {
            a.sandbox = Sandbox::Busy;
            a.containers[0].image = Image::Ready;
        },
        expect![""],
    );
    check(
        one(),
        |_, a| {
            a.sandbox = Sandbox::Up;
            a.containers[0].image = Image::Pulling;
        },
        expect![""],
    );
    check(
        one(),
        |_, a| {
            a.sandbox = Sandbox::Up;
            a.containers[0].image = Image::Ready;
        },
        expect![[r#"
        Start { container: 0, attempt: 0 }
    "#]],
    );
}

#[test]
fn what_failed_waits_for_its_time() {
    check(
        one(),
        |_, a| {
            a.sandbox = Sandbox::Failed { retry_at: 3000 };
            a.containers[0].image = Image::Failed {
                reason: "ErrImagePull",
                message: String::new(),
                retry_at: 2000,
                of_volume: None,
            };
        },
        expect![[r#"
        wake at 2000
    "#]],
    );
    check(
        one(),
        |_, a| {
            a.sandbox = Sandbox::Up;
            a.containers[0].image = Image::Ready;
            a.containers[0].run = Run::Failed {
                reason: "CreateContainerError",
                message: String::new(),
                retry_at: 1000,
            };
        },
        expect![[r#"
        Start { container: 0, attempt: 0 }
    "#]],
    );
}

#[test]
fn restart_policy_decides_what_follows_an_end() {
    let ended = |code: i32, restart_at: u64| {
        move |_: &mut Desired, a: &mut Actual| {
            a.sandbox = Sandbox::Up;
            a.initialised = true;
            a.containers[0].image = Image::Ready;
            a.containers[0].next_attempt = 1;
            a.containers[0].run = exited(code, restart_at);
        }
    };
    check(
        one(),
        ended(0, 9000),
        expect![[r#"
        wake at 9000
    "#]],
    );
    check(
        one(),
        ended(0, 0),
        expect![[r#"
        Start { container: 0, attempt: 1 }
    "#]],
    );
    let policy =
        |p: &str| json!({"containers": [{"name": "c", "image": "i:1"}], "restartPolicy": p});
    check(
        policy("OnFailure"),
        ended(1, 0),
        expect![[r#"
        Start { container: 0, attempt: 1 }
    "#]],
    );
    check(
        policy("OnFailure"),
        ended(0, 0),
        expect![[r#"
        Teardown
    "#]],
    );
    check(
        policy("Never"),
        ended(1, 0),
        expect![[r#"
        Teardown
    "#]],
    );
}

fn with_init() -> Value {
    json!({
        "initContainers": [{"name": "i", "image": "i:1"}, {"name": "s", "image": "i:1", "restartPolicy": "Always"}],
        "containers": [{"name": "c", "image": "i:1"}],
    })
}

#[test]
fn init_containers_hold_back_the_rest() {
    let ready = |a: &mut Actual| {
        a.sandbox = Sandbox::Up;
        for c in &mut a.containers {
            c.image = Image::Ready;
        }
    };
    check(
        with_init(),
        |_, a| ready(a),
        expect![[r#"
        Start { container: 0, attempt: 0 }
    "#]],
    );
    check(
        with_init(),
        |_, a| {
            ready(a);
            a.containers[0].run = exited(0, 0);
        },
        expect![[r#"
        Start { container: 1, attempt: 0 }
    "#]],
    );
    check(
        with_init(),
        |_, a| {
            ready(a);
            a.containers[0].run = exited(0, 0);
            a.containers[1].run = Run::Running {
                started_ms: 0,
                started: false,
                ready: false,
                stopping: false,
            };
        },
        expect![""],
    );
    check(
        with_init(),
        |_, a| {
            ready(a);
            a.containers[0].run = exited(0, 0);
            a.containers[1].run = running();
        },
        expect![[r#"
        Start { container: 2, attempt: 0 }
    "#]],
    );
    // Adopted without its init container: that is over.
    check(
        with_init(),
        |_, a| {
            ready(a);
            a.initialised = true;
            a.containers[1].run = running();
            a.containers[2].run = running();
        },
        expect![""],
    );
}

#[test]
fn sidecars_end_last_and_in_reverse() {
    let all = |d: &mut Desired, a: &mut Actual| {
        d.deleting = true;
        a.sandbox = Sandbox::Up;
        a.initialised = true;
        for c in &mut a.containers {
            c.run = running();
        }
        a.containers[0].run = exited(0, 0);
    };
    check(
        with_init(),
        all,
        expect![[r#"
        Stop { container: 2, why: PodEnds }
    "#]],
    );
    check(
        with_init(),
        |d, a| {
            all(d, a);
            a.containers[2].run = exited(0, 0);
        },
        expect![[r#"
        Stop { container: 1, why: PodEnds }
    "#]],
    );
    check(
        with_init(),
        |d, a| {
            all(d, a);
            a.containers[1].run = exited(0, 0);
            a.containers[2].run = exited(0, 0);
        },
        expect![[r#"
        Teardown
    "#]],
    );
}

#[test]
fn the_object_goes_last() {
    let released = |d: &mut Desired, a: &mut Actual| {
        d.deleting = true;
        a.sandbox = Sandbox::Released;
    };
    check(
        one(),
        released,
        expect![[r#"
        Delete
    "#]],
    );
    check(
        one(),
        |d, a| {
            released(d, a);
            a.finishing = true;
        },
        expect![""],
    );
    check(
        one(),
        |d, a| {
            released(d, a);
            a.gone = true;
        },
        expect![[r#"
        Forget
    "#]],
    );
}

#[test]
fn an_unhealthy_or_changed_container_is_stopped_once() {
    let up = |a: &mut Actual| {
        a.sandbox = Sandbox::Up;
        a.initialised = true;
        a.containers[0].run = running();
    };
    check(
        one(),
        |_, a| {
            up(a);
            a.containers[0].unhealthy = Some("failed liveness probe".into());
        },
        expect![[r#"
        Stop { container: 0, why: Unhealthy }
    "#]],
    );
    check(
        one(),
        |_, a| {
            up(a);
            a.containers[0].run_image = Some("i:0".into());
        },
        expect![[r#"
        Stop { container: 0, why: Changed }
    "#]],
    );
    check(
        one(),
        |_, a| {
            up(a);
            a.containers[0].unhealthy = Some("failed liveness probe".into());
            if let Run::Running { stopping, .. } = &mut a.containers[0].run {
                *stopping = true;
            }
        },
        expect![""],
    );
}

#[test]
fn a_pod_that_was_turned_away_is_only_cleaned_up() {
    check(
        one(),
        |_, a| {
            a.ended = Some(Ended {
                reason: "OutOfpods".into(),
                message: String::new(),
            });
        },
        expect![[r#"
        Teardown
    "#]],
    );
}

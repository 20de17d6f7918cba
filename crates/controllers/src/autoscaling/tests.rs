//! Tables after upstream's `replica_calculator_test.go`, `horizontal_test.go` and the
//! documentation's examples.

use super::plan::{Bounds, Memory, Sized, size};
use super::usage::{
    Asked, Proposal, Reading, Readings, Target, Tolerances, by_average, by_ratio, propose,
};
use crate::fixture::{now, object};
use client::k8s_openapi::api::core::v1::Pod;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

fn pod(i: usize, request_milli: i64, more: Value) -> Pod {
    let mut status = json!({
        "phase": "Running", "startTime": "2026-01-01T00:00:00Z",
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:01:00Z"}],
    });
    crate::fixture::merge(&mut status, more);
    object(json!({
        "metadata": {"name": format!("p{i}")},
        "spec": {"containers": [{"name": "c",
            "resources": {"requests": {"cpu": format!("{request_milli}m")}}}]},
        "status": status,
    }))
}

/// One case: use of each pod (`None`: not known), what is more of each pod's status.
struct Case {
    current: i64,
    target: Target,
    request: i64,
    used: Vec<Option<i64>>,
    more: Vec<Value>,
}

impl Case {
    fn run(&self) -> Result<Proposal, String> {
        let more = |i: usize| self.more.get(i).cloned().unwrap_or_else(|| json!({}));
        let pods: Vec<Pod> = (0..self.used.len())
            .map(|i| pod(i, self.request, more(i)))
            .collect();
        let readings: Readings = self
            .used
            .iter()
            .enumerate()
            .filter_map(|(i, used)| {
                let reading = Reading {
                    milli: (*used)?,
                    at: now(),
                    window: SignedDuration::from_secs(60),
                };
                Some((format!("p{i}"), reading))
            })
            .collect();
        let asked = Asked {
            resource: "cpu",
            container: None,
            target: self.target,
            tolerances: Tolerances { up: 0.1, down: 0.1 },
        };
        propose(
            asked,
            self.current,
            &pods.iter().collect::<Vec<_>>(),
            &readings,
            now(),
        )
    }

    fn replicas(&self) -> i64 {
        self.run().map_or_else(|e| panic!("{e}"), |p| p.replicas)
    }
}

fn used(all: &[i64]) -> Vec<Option<i64>> {
    all.iter().map(|u| Some(*u)).collect()
}

fn case(current: i64, percent: i64, all: Vec<Option<i64>>) -> Case {
    Case {
        current,
        target: Target::Utilization(percent),
        request: 1000,
        used: all,
        more: Vec::new(),
    }
}

#[test]
fn utilization_asks_for_as_many_as_upstream() {
    for (current, percent, all, want, why) in [
        (3, 30, used(&[300, 500, 700]), 5, "scale up"),
        (5, 50, used(&[100, 300, 500, 250, 250]), 3, "scale down"),
        (3, 100, used(&[1010, 1030, 1020]), 3, "tolerance"),
        (10, 100, used(&[950; 10]), 10, "tolerance below"),
        (2, 80, used(&[1600, 1600]), 4, "double"),
        (4, 50, used(&[0, 0, 0, 0]), 0, "idle"),
        // Unknown pods speak against the change: 0 % of a scale-up, 100 % of a scale-down.
        (3, 30, vec![Some(300), Some(1000), None], 5, "missing, up"),
        (2, 50, vec![Some(1000), None], 2, "missing, no up"),
        (
            4,
            50,
            vec![Some(100), Some(100), Some(100), None],
            3,
            "missing, down",
        ),
        (2, 50, vec![Some(400), None], 2, "missing, no down"),
    ] {
        assert_eq!(case(current, percent, all).replicas(), want, "{why}");
    }
}

#[test]
fn averages_ask_for_as_many_as_upstream() {
    for (current, milli, all, want) in [
        (2, 100, used(&[150, 250]), 4),
        (3, 100, used(&[100, 105, 95]), 3),
        (3, 100, used(&[10, 20, 30]), 1),
    ] {
        let mut c = case(current, 0, all);
        c.target = Target::Average(milli);
        assert_eq!(c.replicas(), want);
    }
}

#[test]
fn pods_that_start_or_go_do_not_count() {
    let starting = json!({"startTime": "2026-01-01T23:59:30Z",
        "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T23:59:31Z"}]});
    let mut c = case(3, 30, used(&[400, 500, 700]));
    c.more = vec![json!({}), json!({}), starting.clone()];
    // Two known at 45 %, the third counts as idle: 30 %, nothing to do.
    assert_eq!(c.replicas(), 3);
    let mut c = case(3, 30, used(&[900, 900, 700]));
    c.more = vec![json!({}), json!({}), starting.clone()];
    assert_eq!(c.replicas(), 6);
    let mut c = case(2, 30, used(&[300, 900]));
    c.more = vec![json!({}), json!({"phase": "Failed"})];
    assert_eq!(c.replicas(), 2, "failed pods are not there");
    let mut c = case(1, 30, used(&[300]));
    c.more = vec![starting];
    assert_eq!(
        c.run(),
        Err("did not receive metrics for targeted pods (pods might be unready)".to_owned())
    );
    let mut c = case(1, 30, used(&[300]));
    c.request = 0;
    assert_eq!(
        c.run(),
        Err("no metrics returned matched known pods".to_owned())
    );
    assert_eq!(
        case(1, 30, used(&[])).run(),
        Err("no pods returned by selector while calculating replica count".to_owned())
    );
}

#[test]
fn what_is_shown_is_what_was_found() {
    let found = case(2, 50, used(&[200, 500])).run();
    let want = Proposal {
        replicas: 2,
        utilization: Some(35),
        average: 350,
    };
    // 35 of 50 % of two pods are 1.4 pods.
    assert_eq!(found, Ok(want));
}

// `TestReplicaCalcScaleUpCMObject`, `…ScaleDown…External`, `…FromZero…` of upstream.
#[test]
fn values_of_objects_ask_for_as_many_as_upstream() {
    let tolerances = Tolerances { up: 0.1, down: 0.1 };
    let unready = json!({"conditions": [{"type": "Ready", "status": "False"}]});
    let pods: Vec<Pod> = [json!({}), json!({}), json!({}), unready]
        .into_iter()
        .enumerate()
        .map(|(i, more)| pod(i, 100, more))
        .collect();
    let pods: Vec<&Pod> = pods.iter().collect();
    for (current, used, wanted, want) in [
        (3, 20_000, 15_000, 4),
        (3, 26_000, 10_000, 8),
        // Within the tolerance it stays what it is, whatever is ready.
        (5, 10_500, 10_000, 5),
        (4, 8_600, 14_400, 2),
        (0, 10_000, 4_000, 3),
        (0, 0, 4_000, 0),
    ] {
        let ratio = f64::from(used) / f64::from(wanted);
        assert_eq!(
            by_ratio(current, ratio, tolerances, &pods),
            Ok(want),
            "{used}"
        );
    }
    assert_eq!(by_ratio(1, 1.05, tolerances, &[]), Ok(1));
    let error = by_ratio(1, 2.0, tolerances, &[]).unwrap_err();
    assert!(error.starts_with("unable to calculate ready pods: no pods returned by selector"));
    for (present, used, wanted, want) in [
        (3, 8_600, 2_150, (4, 2_867)),
        (5, 8_600, 2_867, (3, 1_720)),
        (3, 8_600, 2_867, (3, 2_867)),
        (0, 8_600, 2_867, (3, 8_600)),
        (0, 0, 2_867, (0, 0)),
    ] {
        assert_eq!(
            by_average(present, used, wanted, tolerances),
            want,
            "{used}"
        );
    }
}

fn at(seconds: i64) -> Timestamp {
    now() + SignedDuration::from_secs(seconds)
}

const BOUNDS: Bounds = Bounds { min: 1, max: 1000 };

fn brief(s: &Sized) -> (i64, &str, &str, bool) {
    (s.replicas, s.able.0, s.limit.0, s.limited)
}

#[test]
fn without_behavior_sizes_double_and_go_down_after_five_minutes() {
    let mut memory = Memory::default();
    memory.begin(at(0), 5);
    let mut go = |current, wanted, seconds| {
        let bounds = Bounds { min: 2, max: 100 };
        let sized = size(
            &mut memory,
            &Value::Null,
            (current, wanted),
            bounds,
            at(seconds),
        );
        let (n, able, limit, limited) = brief(&sized);
        (n, able.to_owned(), limit.to_owned(), limited)
    };
    let case =
        |n, able: &str, limit: &str, limited| (n, able.to_owned(), limit.to_owned(), limited);
    let within = "DesiredWithinRange";
    assert_eq!(
        go(5, 30, 0),
        case(10, "ReadyForNewScale", "ScaleUpLimit", true)
    );
    assert_eq!(
        go(60, 200, 10),
        case(100, "ReadyForNewScale", "TooManyReplicas", true)
    );
    assert_eq!(
        go(100, 3, 60),
        case(100, "ScaleDownStabilized", "TooManyReplicas", true)
    );
    assert_eq!(go(100, 3, 320), case(3, "ReadyForNewScale", within, false));
    assert_eq!(
        go(3, 1, 700),
        case(2, "ReadyForNewScale", "TooFewReplicas", true)
    );
}

#[test]
fn policies_limit_how_fast_sizes_change() {
    let rules = |side: &str, policies: Value, select: &str| json!({side: {"stabilizationWindowSeconds": 0, "policies": policies, "selectPolicy": select}});
    let pods = |n: i64| json!({"type": "Pods", "value": n, "periodSeconds": 60});
    let percent = |n: i64| json!({"type": "Percent", "value": n, "periodSeconds": 60});
    for (behavior, current, wanted, want, reason) in [
        (
            rules("scaleUp", json!([pods(4)]), "Max"),
            10,
            50,
            14,
            "ScaleUpLimit",
        ),
        (
            rules("scaleUp", json!([pods(4), percent(100)]), "Max"),
            10,
            50,
            20,
            "ScaleUpLimit",
        ),
        (
            rules("scaleUp", json!([pods(4), percent(100)]), "Min"),
            10,
            50,
            14,
            "ScaleUpLimit",
        ),
        (
            rules("scaleUp", json!([percent(33)]), "Max"),
            2,
            50,
            3,
            "ScaleUpLimit",
        ),
        (
            rules("scaleUp", json!([pods(4)]), "Disabled"),
            10,
            50,
            10,
            "ScaleUpLimit",
        ),
        (
            rules("scaleDown", json!([pods(4)]), "Max"),
            80,
            1,
            76,
            "ScaleDownLimit",
        ),
        // The documentation: of 80 replicas 10 percent, the larger change of the two.
        (
            rules("scaleDown", json!([pods(4), percent(10)]), "Max"),
            80,
            1,
            72,
            "ScaleDownLimit",
        ),
        (
            rules("scaleDown", json!([pods(4), percent(10)]), "Min"),
            80,
            1,
            76,
            "ScaleDownLimit",
        ),
        (
            rules("scaleDown", json!([percent(10)]), "Disabled"),
            80,
            1,
            80,
            "ScaleDownLimit",
        ),
        (
            rules("scaleDown", json!([percent(100)]), "Max"),
            80,
            0,
            1,
            "TooFewReplicas",
        ),
        (
            rules("scaleUp", json!([percent(900)]), "Max"),
            500,
            4000,
            1000,
            "TooManyReplicas",
        ),
    ] {
        let sized = size(
            &mut Memory::default(),
            &behavior,
            (current, wanted),
            BOUNDS,
            at(0),
        );
        assert_eq!(
            (sized.replicas, sized.limit.0),
            (want, reason),
            "{behavior}"
        );
        assert!(sized.limited);
    }
}

#[test]
fn what_was_changed_within_the_period_counts() {
    let behavior = json!({"scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max",
        "policies": [{"type": "Pods", "value": 4, "periodSeconds": 60}]}});
    let mut memory = Memory::default();
    let size_at = |memory: &mut Memory, current, seconds| {
        size(memory, &behavior, (current, 50), BOUNDS, at(seconds)).replicas
    };
    assert_eq!(size_at(&mut memory, 10, 0), 14);
    memory.scaled(at(0), 10, 14);
    assert_eq!(size_at(&mut memory, 14, 30), 14);
    assert_eq!(size_at(&mut memory, 14, 61), 18);
}

#[test]
fn windows_hold_the_size_where_it_was() {
    let behavior = json!({
        "scaleUp": {"stabilizationWindowSeconds": 60, "selectPolicy": "Max",
            "policies": [{"type": "Percent", "value": 900, "periodSeconds": 15}]},
        "scaleDown": {"stabilizationWindowSeconds": 120, "selectPolicy": "Max",
            "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]},
    });
    let mut memory = Memory::default();
    memory.begin(at(0), 10);
    let mut go = |current, wanted, seconds| {
        let sized = size(
            &mut memory,
            &behavior,
            (current, wanted),
            BOUNDS,
            at(seconds),
        );
        (sized.replicas, sized.able.0)
    };
    assert_eq!(go(10, 20, 10), (10, "ScaleUpStabilized"));
    assert_eq!(go(10, 20, 65), (20, "ReadyForNewScale"));
    assert_eq!(go(20, 5, 80), (20, "ScaleDownStabilized"));
    assert_eq!(go(20, 5, 190), (5, "ReadyForNewScale"));
}

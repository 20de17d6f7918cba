//! What a pod asks for and may use: its quality of service, its control group's limits, and how
//! soon the kernel ends its containers for want of memory. Pure; the rules are upstream's.

use apimachinery::quantity::Quantity;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use runtime::{Limits, PodGroup, QosClass};
use std::collections::BTreeMap;

const NANO: i128 = 1_000_000_000;
const MILLI: i128 = 1_000_000;
/// Pods of at least this priority are the system's own: `system-cluster-critical`.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;
/// What critical and guaranteed containers have, by upstream's numbers…
const OOM_SCORE_GUARANTEED: i32 = -997;
/// …and those that ask for nothing.
const OOM_SCORE_BEST_EFFORT: i32 = 1000;

/// Which of a container's or pod's resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Requests,
    Limits,
}

/// An amount as it is stated, in billionths; what is nothing is not stated.
pub(crate) fn stated(
    resources: Option<&core::ResourceRequirements>,
    which: Which,
    name: &str,
) -> Option<i128> {
    let resources = resources?;
    let list = match which {
        Which::Requests => resources.requests.as_ref(),
        Which::Limits => resources.limits.as_ref(),
    };
    amount(list, name)
}

fn amount(list: Option<&BTreeMap<String, ApiQuantity>>, name: &str) -> Option<i128> {
    let quantity: Quantity = list?.get(name)?.0.parse().ok()?;
    Some(quantity.nano).filter(|nano| *nano > 0)
}

/// What all of the pod comes to: its containers together; what is stated for the whole pod stands above it, and what its
/// RuntimeClass takes comes on top.
pub(crate) fn total(spec: &core::PodSpec, which: Which, name: &str) -> i128 {
    let of = |c: &core::Container| stated(c.resources.as_ref(), which, name).unwrap_or(0);
    let each = client::resources::of_containers(
        spec,
        of,
        |sum: &mut i128, more| *sum += more,
        |most, other| *most = (*most).max(*other),
    );
    let whole = stated(spec.resources.as_ref(), which, name);
    let all = whole.unwrap_or(each);
    let overhead = amount(spec.overhead.as_ref(), name).unwrap_or(0);
    match which {
        // Without a limit there is nothing that the overhead could be added to.
        Which::Limits if all == 0 => 0,
        _ => all + overhead,
    }
}

/// The limit of the whole pod, where there is one: for the pod, or for each of its containers.
fn limit(spec: &core::PodSpec, name: &str) -> Option<i128> {
    let whole = stated(spec.resources.as_ref(), Which::Limits, name).is_some();
    let each =
        || containers(spec).all(|c| stated(c.resources.as_ref(), Which::Limits, name).is_some());
    (whole || each()).then(|| total(spec, Which::Limits, name))
}

/// What a container's limits say of resources that come in whole pieces.
pub(crate) fn whole_limits(container: &core::Container) -> impl Iterator<Item = (&str, usize)> {
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    limits.into_iter().flatten().filter_map(|(name, amount)| {
        let amount: Quantity = amount.0.parse().ok()?;
        let amount = usize::try_from(amount.value()).ok()?;
        (amount > 0).then_some((name.as_str(), amount))
    })
}

pub(crate) fn containers(spec: &core::PodSpec) -> impl Iterator<Item = &core::Container> {
    let init = spec.init_containers.iter().flatten();
    spec.containers.iter().chain(init)
}

/// The pod's quality of service.
pub(crate) fn class(spec: &core::PodSpec) -> QosClass {
    let names = ["cpu", "memory"];
    let of = |resources: Option<&core::ResourceRequirements>| {
        let (mut any, mut all) = (false, true);
        for name in names {
            let limit = stated(resources, Which::Limits, name);
            let request = stated(resources, Which::Requests, name);
            any |= limit.is_some() || request.is_some();
            all &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
        (any, all)
    };
    let whole = of(spec.resources.as_ref());
    let (any, all) = match whole {
        (true, _) => whole,
        // Upstream: what is stated for the whole pod stands above its containers'.
        _ => containers(spec)
            .map(|c| of(c.resources.as_ref()))
            .fold((false, true), |(any, all), (some, every)| {
                (any || some, all && every)
            }),
    };
    match (any, all) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

/// The pod's control group.
pub(crate) fn group(spec: &core::PodSpec, pids: Option<u64>) -> PodGroup {
    let class = class(spec);
    let millis = |nano: i128| u64::try_from((nano + MILLI - 1) / MILLI).unwrap_or(u64::MAX);
    let bytes = |nano: i128| u64::try_from(nano / NANO).unwrap_or(u64::MAX);
    let limits = match class {
        QosClass::BestEffort => Limits::default(),
        QosClass::Burstable | QosClass::Guaranteed => Limits {
            cpu_request_millis: millis(total(spec, Which::Requests, "cpu")),
            cpu_limit_millis: limit(spec, "cpu").map(millis),
            memory_bytes: limit(spec, "memory").map(bytes),
            pids: None,
        },
    };
    PodGroup {
        class,
        limits: Limits { pids, ..limits },
    }
}

/// How soon the kernel ends a container for want of memory: the more it asked for, the later.
pub(crate) fn oom_score_adj(
    spec: &core::PodSpec,
    container: &core::Container,
    memory_capacity_bytes: i128,
) -> i32 {
    if spec.priority.is_some_and(|p| p >= CRITICAL_PRIORITY) {
        return OOM_SCORE_GUARANTEED;
    }
    match class(spec) {
        QosClass::Guaranteed => return OOM_SCORE_GUARANTEED,
        QosClass::BestEffort => return OOM_SCORE_BEST_EFFORT,
        QosClass::Burstable => {}
    }
    let own = |c: &core::Container| {
        stated(c.resources.as_ref(), Which::Requests, "memory").unwrap_or(0) / NANO
    };
    let score = |requested: i128| {
        let share = 1000 * requested / memory_capacity_bytes.max(1);
        i32::try_from(1000 - share).unwrap_or(0)
    };
    let is = |c: &core::Container, name: &str| c.restart_policy.as_deref() == Some(name);
    let sidecar = is(container, "Always")
        && (spec.init_containers.iter().flatten()).any(|c| c.name == container.name);
    let mut found = score(own(container));
    if sidecar {
        // It is no more likely to go than those that it serves.
        let served = spec.containers.iter().map(|c| score(own(c))).min();
        found = found.min(served.unwrap_or(found));
    }
    // Later than the guaranteed, sooner than those that ask for nothing.
    found.clamp(1000 + OOM_SCORE_GUARANTEED, OOM_SCORE_BEST_EFFORT - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    fn check(spec: Value, expected: Expect) {
        let spec: core::PodSpec = serde_json::from_value(spec).unwrap();
        let group = group(&spec, Some(64));
        let l = group.limits;
        let scores: Vec<i32> = containers(&spec)
            .map(|c| oom_score_adj(&spec, c, 1000 << 20))
            .collect();
        expected.assert_eq(&format!(
            "{} cpu {}..{:?} memory {:?} pids {:?} oom {scores:?}",
            group.class.name(),
            l.cpu_request_millis,
            l.cpu_limit_millis,
            l.memory_bytes.map(|b| b >> 20),
            l.pids
        ));
    }

    fn container(requests: Value, limits: Value) -> Value {
        json!({"name": "c", "resources": {"requests": requests, "limits": limits}})
    }

    #[test]
    fn classes_and_limits() {
        check(
            json!({"containers": [container(json!({}), json!({}))]}),
            expect!["BestEffort cpu 0..None memory None pids Some(64) oom [1000]"],
        );
        let all = json!({"cpu": "500m", "memory": "100Mi"});
        check(
            json!({"containers": [container(all.clone(), all.clone())],
                "overhead": {"cpu": "10m", "memory": "20Mi"}}),
            expect!["Guaranteed cpu 510..Some(510) memory Some(120) pids Some(64) oom [-997]"],
        );
        // One without a limit leaves the pod without.
        check(
            json!({"containers": [
                container(all.clone(), json!({"memory": "200Mi", "cpu": "1"})),
                container(json!({"memory": "999Mi"}), json!({"memory": "1Gi"}))]}),
            expect!["Burstable cpu 500..None memory Some(1224) pids Some(64) oom [900, 3]"],
        );
        // An init container that needs more than all others, and a sidecar.
        check(
            json!({"initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}},
                {"name": "i", "resources": {"requests": {"cpu": "3"}}}],
                "containers": [container(json!({"memory": "500Mi"}), json!({}))]}),
            expect!["Burstable cpu 4000..None memory None pids Some(64) oom [500, 500, 999]"],
        );
    }

    #[test]
    fn what_is_stated_for_the_whole_pod_stands_above() {
        check(
            json!({"resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2", "memory": "1Gi"}},
                "containers": [container(json!({"cpu": "100m"}), json!({}))]}),
            expect!["Burstable cpu 1000..Some(2000) memory Some(1024) pids Some(64) oom [999]"],
        );
    }

    #[test]
    fn the_system_s_own_pods_stay() {
        check(
            json!({"priority": 2_000_001_000, "containers": [container(json!({}), json!({}))]}),
            expect!["BestEffort cpu 0..None memory None pids Some(64) oom [-997]"],
        );
    }
}

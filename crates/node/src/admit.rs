//! Whether the node has room for a pod, by the requests of those it has.

use crate::resources::{Which, total};
use crate::state::Ended;
use apimachinery::quantity::Quantity;
use k8s_openapi::api::core::v1 as core;
use runtime::AppArmor;
use std::collections::BTreeMap;

/// Resources that are counted.
const COUNTED: [&str; 2] = ["cpu", "memory"];

/// What a pod, or all pods, asked for: cpu and memory, exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    nano: [i128; 2],
}

impl Requests {
    /// As the scheduler counts.
    pub(crate) fn of(pod: &core::Pod) -> Self {
        let count = |name: &&str| {
            let spec = pod.spec.as_ref();
            spec.map_or(0, |spec| total(spec, Which::Requests, name))
        };
        Self {
            nano: COUNTED.each_ref().map(count),
        }
    }
}

/// Refuses a pod that asks for what the machine can't enforce.
pub(crate) fn enforceable(pod: &core::Pod, apparmor: impl Fn() -> bool) -> Result<(), Ended> {
    let mut all = pod.spec.iter().flat_map(crate::resources::containers);
    let asks = all.any(|c| {
        let wanted = crate::linux::apparmor(pod, c);
        !matches!(wanted, AppArmor::Usual | AppArmor::Unconfined)
    });
    if !asks || apparmor() {
        return Ok(());
    }
    let why = "Cannot enforce AppArmor: AppArmor is not enabled on the host";
    Err(Ended {
        reason: "AppArmor".to_owned(),
        message: format!("Pod was rejected: {why}"),
    })
}

/// Whether the kernel confines by AppArmor.
pub(crate) fn has_apparmor() -> bool {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    enabled.is_ok_and(|text| text.trim() == "Y")
}

/// What all admitted pods of the node take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pods: u32,
    used: Requests,
}

impl Totals {
    pub(crate) fn add(&mut self, requests: Requests) {
        self.pods += 1;
        for (sum, n) in self.used.nano.iter_mut().zip(requests.nano) {
            *sum += n;
        }
    }

    pub(crate) fn remove(&mut self, requests: Requests) {
        self.pods = self.pods.saturating_sub(1);
        for (sum, n) in self.used.nano.iter_mut().zip(requests.nano) {
            *sum -= n;
        }
    }

    /// Adds the pod, or says in upstream's words why it has no room.
    pub(crate) fn admit(
        &mut self,
        requests: Requests,
        allocatable: &BTreeMap<String, Quantity>,
        pods_max: u32,
    ) -> Result<(), Ended> {
        if self.pods >= pods_max {
            return Err(no_room("pods", 1, self.pods.into(), pods_max.into()));
        }
        for (place, name) in COUNTED.iter().enumerate() {
            let Some(capacity) = allocatable.get(*name).map(|q| q.nano) else {
                continue;
            };
            let (wanted, used) = (requests.nano[place], self.used.nano[place]);
            if wanted > 0 && used + wanted > capacity {
                // cpu is told in thousandths, memory in bytes.
                let unit = if *name == "cpu" {
                    1_000_000
                } else {
                    1_000_000_000
                };
                return Err(no_room(name, wanted / unit, used / unit, capacity / unit));
            }
        }
        self.add(requests);
        Ok(())
    }
}

fn no_room(name: &str, wanted: i128, used: i128, capacity: i128) -> Ended {
    Ended {
        reason: format!("OutOf{name}"),
        message: format!(
            "Pod was rejected: Node didn't have enough resource: {name}, requested: {wanted}, \
             used: {used}, capacity: {capacity}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;
    use serde_json::json;

    fn requests(cpu: &str) -> Requests {
        Requests::of(
            &pod(json!({"containers": [
                {"name": "a", "image": "i:1", "resources": {"requests": {"cpu": cpu}}}]}))
            .pod,
        )
    }

    #[test]
    fn counts_and_turns_away() {
        let allocatable = BTreeMap::from([("cpu".to_string(), Quantity::from_milli(2000))]);
        let mut totals = Totals::default();
        totals.admit(requests("1500m"), &allocatable, 110).unwrap();
        let refused = totals
            .admit(requests("600m"), &allocatable, 110)
            .unwrap_err();
        assert_eq!(refused.reason, "OutOfcpu");
        assert_eq!(
            refused.message,
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 600, used: 1500, capacity: 2000"
        );
        totals.remove(requests("1500m"));
        totals.admit(requests("600m"), &allocatable, 110).unwrap();
        assert_eq!(
            totals
                .admit(requests("0"), &allocatable, 1)
                .unwrap_err()
                .reason,
            "OutOfpods"
        );
    }

    #[test]
    fn what_can_t_be_enforced_is_refused() {
        let asks = pod(json!({"containers": [{"name": "a", "image": "i:1",
            "securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}]}));
        let refused = enforceable(&asks.pod, || false).unwrap_err();
        assert_eq!(refused.reason, "AppArmor");
        assert_eq!(enforceable(&asks.pod, || true), Ok(()));
        let plain = pod(json!({"containers": [{"name": "a", "image": "i:1"}]}));
        assert_eq!(enforceable(&plain.pod, || false), Ok(()));
    }

    #[test]
    fn the_largest_init_container_counts() {
        let pod = pod(json!({
            "initContainers": [
                {"name": "s", "image": "i:1", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}},
                {"name": "i", "image": "i:1", "resources": {"requests": {"cpu": "3"}}}],
            "containers": [{"name": "a", "image": "i:1", "resources": {"requests": {"cpu": "2"}}}]}));
        assert_eq!(Requests::of(&pod.pod).nano[0], 4_000_000_000);
    }
}

//! Which devices there are and whose they are: pure, and what of it outlives the agent.

use super::messages::{ContainerDevices, Device, NumaNode, Options, Topology};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// How long a plugin that went away may take to come back before its devices are forgotten.
pub(super) const GONE_MAX_MS: u64 = 5 * 60 * 1000;

/// What a container was given of one resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Given {
    pub(crate) ids: BTreeSet<String>,
    /// The plugin is asked before each start.
    pub(crate) pre_start: bool,
    pub(crate) env: BTreeMap<String, String>,
    /// On the machine, in the container, read-only.
    pub(crate) mounts: Vec<(String, String, bool)>,
    /// On the machine, in the container, permissions.
    pub(crate) devices: Vec<(String, String, String)>,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// By resource.
pub(super) type OfContainer = BTreeMap<String, Given>;
/// By container.
pub(super) type OfPod = BTreeMap<String, OfContainer>;

#[derive(Clone, Debug, Default)]
struct Resource {
    /// Whether each is healthy, and where.
    devices: BTreeMap<String, (bool, Vec<i64>)>,
    options: Options,
    /// Which registration it is; none: no plugin is there, since the time given.
    plugin: Option<u64>,
    gone_at: u64,
    /// Forgotten: all that is said of it is that there is none.
    retired: bool,
}

/// All resources that plugins give, and what pods have of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Inventory {
    resources: BTreeMap<String, Resource>,
    pods: BTreeMap<String, OfPod>,
    registrations: u64,
}

/// What is kept in a file.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Kept {
    resources: BTreeSet<String>,
    pods: BTreeMap<String, OfPod>,
}

/// What may be taken, where something must be.
#[derive(Clone, Debug)]
pub(super) struct Choice {
    pub(super) available: BTreeSet<String>,
    /// Those of the pod's init containers, which are taken first.
    pub(super) reused: BTreeSet<String>,
    pub(super) count: usize,
    pub(super) options: Options,
}

impl Choice {
    /// Those that are taken: reused ones, preferred ones that may be, then any.
    pub(super) fn take(&self, preferred: &[String]) -> BTreeSet<String> {
        let preferred = preferred.iter().filter(|id| self.available.contains(*id));
        let all = self.reused.iter().chain(preferred).chain(&self.available);
        let mut taken = BTreeSet::new();
        for id in all {
            if taken.len() == self.count {
                break;
            }
            taken.insert(id.clone());
        }
        taken
    }
}

impl Inventory {
    /// What another agent knew: its plugins are gone until they come again.
    pub(super) fn restore(kept: Kept, now: u64) -> Self {
        let gone = |name| {
            let resource = Resource {
                gone_at: now,
                ..Resource::default()
            };
            (name, resource)
        };
        Self {
            resources: kept.resources.into_iter().map(gone).collect(),
            pods: kept.pods,
            registrations: 0,
        }
    }

    pub(super) fn kept(&self) -> Kept {
        let known = self.resources.iter().filter(|(_, r)| !r.retired);
        Kept {
            resources: known.map(|(name, _)| name.clone()).collect(),
            pods: self.pods.clone(),
        }
    }

    /// A plugin registered; the newest of a resource is the one that counts.
    pub(super) fn register(&mut self, name: &str, options: Options) -> u64 {
        self.registrations += 1;
        let resource = self.resources.entry(name.to_owned()).or_default();
        resource.plugin = Some(self.registrations);
        resource.options = options;
        resource.retired = false;
        self.registrations
    }

    /// What a registration's plugin has; whether it still counts.
    pub(super) fn listed(&mut self, name: &str, plugin: u64, devices: Vec<Device>) -> bool {
        let Some(resource) = self.resources.get_mut(name) else {
            return false;
        };
        if resource.plugin != Some(plugin) {
            return false;
        }
        let facts = |device: Device| {
            let nodes = device.topology.unwrap_or_default().nodes;
            let numa = nodes.iter().map(|node| node.id).collect();
            (device.id, (device.health == "Healthy", numa))
        };
        resource.devices = devices.into_iter().map(facts).collect();
        true
    }

    /// A registration's plugin went away.
    pub(super) fn gone(&mut self, name: &str, plugin: u64, now: u64) {
        let resource = self.resources.get_mut(name);
        if let Some(resource) = resource.filter(|r| r.plugin == Some(plugin)) {
            resource.plugin = None;
            resource.gone_at = now;
            for (healthy, _) in resource.devices.values_mut() {
                *healthy = false;
            }
        }
    }

    /// Forgets what has been gone for too long; whether anything has.
    pub(super) fn expire(&mut self, now: u64) -> bool {
        let mut any = false;
        for resource in self.resources.values_mut() {
            let over = resource.plugin.is_none() && now >= resource.gone_at + GONE_MAX_MS;
            if over && !resource.retired {
                any = true;
                resource.retired = true;
                resource.devices.clear();
            }
        }
        any
    }

    /// Capacity and allocatable by resource.
    pub(super) fn amounts(&self) -> BTreeMap<String, (usize, usize)> {
        let amount = |resource: &Resource| {
            let healthy = resource.devices.values().filter(|(healthy, _)| *healthy);
            (resource.devices.len(), healthy.count())
        };
        let all = self.resources.iter();
        all.map(|(name, resource)| (name.clone(), amount(resource)))
            .collect()
    }

    /// Whether a plugin gives it, or did lately.
    pub(super) fn knows(&self, name: &str) -> bool {
        self.resources.get(name).is_some_and(|r| !r.retired)
    }

    /// What a container may be given; none where it has it. The words are upstream's.
    pub(super) fn choice(
        &self,
        uid: &str,
        container: &str,
        name: &str,
        count: usize,
        reused: &BTreeSet<String>,
    ) -> Result<Option<Choice>, String> {
        if self
            .given(uid, container)
            .is_some_and(|g| g.contains_key(name))
        {
            return Ok(None);
        }
        let Some(resource) = self.resources.get(name).filter(|r| !r.retired) else {
            return Err(format!("cannot allocate unregistered device {name}"));
        };
        let healthy = |id: &&String| {
            resource
                .devices
                .get(*id)
                .is_some_and(|(healthy, _)| *healthy)
        };
        if !resource.devices.keys().any(|id| healthy(&id)) {
            return Err(format!(
                "no healthy devices present; cannot allocate unhealthy devices {name}"
            ));
        }
        let pods = self.pods.values().flat_map(BTreeMap::values);
        let taken: BTreeSet<&String> = pods
            .filter_map(|container| container.get(name))
            .flat_map(|given| &given.ids)
            .collect();
        let free = resource.devices.keys().filter(healthy);
        let available: BTreeSet<String> = free.filter(|id| !taken.contains(*id)).cloned().collect();
        let reused: BTreeSet<String> = reused.iter().filter(healthy).cloned().collect();
        if available.len() + reused.len() < count {
            return Err(format!(
                "requested number of devices unavailable for {name}. Requested: {count}, Available: {}",
                available.len()
            ));
        }
        Ok(Some(Choice {
            available,
            reused,
            count,
            options: resource.options,
        }))
    }

    pub(super) fn give(&mut self, uid: &str, container: &str, name: &str, given: Given) {
        let pod = self.pods.entry(uid.to_owned()).or_default();
        let container = pod.entry(container.to_owned()).or_default();
        container.insert(name.to_owned(), given);
    }

    pub(super) fn given(&self, uid: &str, container: &str) -> Option<&OfContainer> {
        self.pods.get(uid)?.get(container)
    }

    /// Takes all back from a pod; whether it had any.
    pub(super) fn release(&mut self, uid: &str) -> bool {
        self.pods.remove(uid).is_some()
    }

    /// Pods that have any.
    pub(super) fn holders(&self) -> Vec<String> {
        self.pods.keys().cloned().collect()
    }

    /// For the pod-resources API: each device by itself, with its place.
    pub(super) fn told<'a>(
        &'a self,
        name: &'a str,
        ids: impl IntoIterator<Item = &'a String> + 'a,
    ) -> impl Iterator<Item = ContainerDevices> + 'a {
        let devices = self.resources.get(name).map(|r| &r.devices);
        ids.into_iter().map(move |id| {
            let numa = devices.and_then(|d| d.get(id)).map(|(_, numa)| numa);
            let nodes = numa.into_iter().flatten().map(|id| NumaNode { id: *id });
            let topology = Topology {
                nodes: nodes.collect(),
            };
            ContainerDevices {
                resource_name: name.to_owned(),
                device_ids: vec![id.clone()],
                topology: Some(topology).filter(|t| !t.nodes.is_empty()),
            }
        })
    }

    /// All healthy ones.
    pub(super) fn allocatable(&self) -> Vec<ContainerDevices> {
        let each = self.resources.iter().flat_map(|(name, resource)| {
            let healthy = resource.devices.iter().filter(|(_, (healthy, _))| *healthy);
            self.told(name, healthy.map(|(id, _)| id))
        });
        each.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn devices(ids: &[(&str, &str)]) -> Vec<Device> {
        let device = |(id, health): &(&str, &str)| Device {
            id: (*id).to_owned(),
            health: (*health).to_owned(),
            topology: None,
        };
        ids.iter().map(device).collect()
    }

    fn set(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    fn give(
        inventory: &mut Inventory,
        uid: &str,
        count: usize,
    ) -> Result<BTreeSet<String>, String> {
        let none = BTreeSet::new();
        let Some(choice) = inventory.choice(uid, "c", "a.b/d", count, &none)? else {
            return Ok(inventory.given(uid, "c").unwrap()["a.b/d"].ids.clone());
        };
        let ids = choice.take(&[]);
        let given = Given {
            ids: ids.clone(),
            ..Given::default()
        };
        inventory.give(uid, "c", "a.b/d", given);
        Ok(ids)
    }

    #[test]
    fn devices_are_given_once_and_kept() {
        let mut all = Inventory::default();
        let unknown = give(&mut all, "u1", 1).unwrap_err();
        assert_eq!(unknown, "cannot allocate unregistered device a.b/d");
        let plugin = all.register("a.b/d", Options::default());
        assert!(
            give(&mut all, "u1", 1)
                .unwrap_err()
                .starts_with("no healthy devices present")
        );
        let list = [("1", "Healthy"), ("2", "Unhealthy"), ("3", "Healthy")];
        assert!(all.listed("a.b/d", plugin, devices(&list)));
        assert_eq!(all.amounts()["a.b/d"], (3, 2));
        assert_eq!(give(&mut all, "u1", 1), Ok(set(&["1"])));
        assert_eq!(give(&mut all, "u1", 1), Ok(set(&["1"])), "the same again");
        assert_eq!(
            give(&mut all, "u2", 2).unwrap_err(),
            "requested number of devices unavailable for a.b/d. Requested: 2, Available: 1"
        );
        assert_eq!(give(&mut all, "u2", 1), Ok(set(&["3"])));

        // The next agent knows whose they are, and no plugin yet.
        let text = serde_json::to_string(&all.kept()).unwrap();
        let mut next = Inventory::restore(serde_json::from_str(&text).unwrap(), 1000);
        assert_eq!(next.amounts()["a.b/d"], (0, 0));
        assert_eq!(give(&mut next, "u1", 1), Ok(set(&["1"])));
        let plugin = next.register("a.b/d", Options::default());
        next.listed("a.b/d", plugin, devices(&list));
        assert!(give(&mut next, "u3", 1).is_err());
        assert!(next.release("u1"));
        assert_eq!(give(&mut next, "u3", 1), Ok(set(&["1"])));
    }

    #[test]
    fn a_plugin_that_went_is_waited_for() {
        let mut all = Inventory::default();
        let first = all.register("a.b/d", Options::default());
        all.listed("a.b/d", first, devices(&[("1", "Healthy")]));
        let second = all.register("a.b/d", Options::default());
        all.gone("a.b/d", first, 0);
        assert!(!all.listed("a.b/d", first, vec![]), "it was replaced");
        assert_eq!(all.amounts()["a.b/d"], (1, 1));
        all.gone("a.b/d", second, 1000);
        assert_eq!(all.amounts()["a.b/d"], (1, 0));
        assert!(!all.expire(1000 + GONE_MAX_MS - 1) && all.knows("a.b/d"));
        assert!(all.expire(1000 + GONE_MAX_MS) && !all.knows("a.b/d"));
        assert_eq!(all.amounts()["a.b/d"], (0, 0));
        assert_eq!(all.kept(), Kept::default());
    }

    #[test]
    fn what_init_containers_had_is_taken_again_and_preferences_are_heard() {
        let choice = Choice {
            available: set(&["1", "2", "3"]),
            reused: set(&["9"]),
            count: 3,
            options: Options::default(),
        };
        let preferred = ["3".to_owned(), "7".to_owned()];
        assert_eq!(choice.take(&preferred), set(&["9", "3", "1"]));
    }

    proptest! {
        /// Whatever plugins say and pods ask for, no device is two pods' at once.
        #[test]
        fn no_device_has_two_owners(
            steps in prop::collection::vec((0u8..4, 0u8..6, 0usize..4, prop::collection::vec((0u8..6, any::<bool>()), 0..6)), 1..40),
        ) {
            let mut all = Inventory::default();
            let mut plugin = 0;
            for (step, pod, count, list) in steps {
                let uid = format!("u{pod}");
                match step {
                    0 => plugin = all.register("a.b/d", Options::default()),
                    1 => {
                        let health = |ok| if ok { "Healthy" } else { "broken" };
                        let list = list.into_iter().map(|(id, ok)| Device {
                            id: id.to_string(), health: health(ok).to_owned(), topology: None,
                        });
                        all.listed("a.b/d", plugin, list.collect());
                    }
                    2 => drop(give(&mut all, &uid, count)),
                    _ => drop(all.release(&uid)),
                }
                let ids: Vec<&String> = all.pods.values().flat_map(BTreeMap::values)
                    .flat_map(BTreeMap::values).flat_map(|given| &given.ids).collect();
                let distinct: BTreeSet<_> = ids.iter().collect();
                prop_assert_eq!(ids.len(), distinct.len());
            }
        }
    }
}

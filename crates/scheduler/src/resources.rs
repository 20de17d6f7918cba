//! Amounts of resources: what a pod asks for and what a node has.

use client::k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use client::k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use client::resources::of_containers;
use std::collections::BTreeMap;

/// Milli-CPU that the scores assume of a container that states none, as upstream.
const CPU_ASSUMED_MILLI: i64 = 100;
/// Bytes that the scores assume of a container that states none, as upstream.
const MEMORY_ASSUMED_BYTES: i64 = 200 * 1024 * 1024;

type Quantities = BTreeMap<String, Quantity>;

/// An amount of each resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// CPU in thousandths of a core.
    pub cpu_milli: i64,
    /// Memory in bytes.
    pub memory: i64,
    /// Ephemeral storage in bytes.
    pub ephemeral_storage: i64,
    /// Extended resources and huge pages, by name.
    pub extended: BTreeMap<String, i64>,
}

impl Resources {
    /// From a map of quantities; `pods` and unreadable ones are left out.
    pub fn of(quantities: Option<&Quantities>) -> Self {
        let mut amounts = Self::default();
        for (name, quantity) in quantities.into_iter().flatten() {
            let Ok(quantity) = quantity.0.parse::<apimachinery::quantity::Quantity>() else {
                continue;
            };
            match name.as_str() {
                "cpu" => amounts.cpu_milli = quantity.milli_value(),
                "memory" => amounts.memory = quantity.value(),
                "ephemeral-storage" => amounts.ephemeral_storage = quantity.value(),
                "pods" => {}
                _ => {
                    amounts.extended.insert(name.clone(), quantity.value());
                }
            }
        }
        amounts
    }

    /// Adds another amount.
    pub fn add(&mut self, other: &Self) {
        self.each(other, i64::saturating_add);
    }

    /// Takes another amount away.
    pub fn subtract(&mut self, other: &Self) {
        self.each(other, i64::saturating_sub);
        self.extended.retain(|_, amount| *amount != 0);
    }

    /// The greater of each.
    pub fn raise_to(&mut self, other: &Self) {
        self.each(other, i64::max);
    }

    fn each(&mut self, other: &Self, op: impl Fn(i64, i64) -> i64) {
        self.cpu_milli = op(self.cpu_milli, other.cpu_milli);
        self.memory = op(self.memory, other.memory);
        self.ephemeral_storage = op(self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.extended {
            match self.extended.get_mut(name) {
                Some(mine) => *mine = op(*mine, *amount),
                None => {
                    self.extended.insert(name.clone(), op(0, *amount));
                }
            }
        }
    }
}

/// What a pod asks for: the sum of its containers and sidecars or the most that its init
/// phase needs, whichever is more, and its overhead. Requests of the pod as a whole
/// stand above those of its containers (KEP-2837).
pub(crate) fn requests(pod: &Pod) -> Resources {
    let Some(spec) = &pod.spec else {
        return Resources::default();
    };
    let mut total = total(spec, |container| {
        Resources::of(
            container
                .resources
                .as_ref()
                .and_then(|r| r.requests.as_ref()),
        )
    });
    let whole = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    if let Some(whole) = whole {
        let amounts = Resources::of(Some(whole));
        if whole.contains_key("cpu") {
            total.cpu_milli = amounts.cpu_milli;
        }
        if whole.contains_key("memory") {
            total.memory = amounts.memory;
        }
        total.extended.extend(amounts.extended);
    }
    total.add(&Resources::of(spec.overhead.as_ref()));
    total
}

/// [`requests`] with CPU and memory assumed for containers that state none: what the
/// scores count, so that such pods spread too.
pub(crate) fn requests_for_score(pod: &Pod) -> Resources {
    let Some(spec) = &pod.spec else {
        return Resources::default();
    };
    let mut total = total(spec, |container| {
        let stated = container
            .resources
            .as_ref()
            .and_then(|r| r.requests.as_ref());
        let mut amounts = Resources::of(stated);
        amounts.extended.clear();
        if !stated.is_some_and(|s| s.contains_key("cpu")) {
            amounts.cpu_milli = CPU_ASSUMED_MILLI;
        }
        if !stated.is_some_and(|s| s.contains_key("memory")) {
            amounts.memory = MEMORY_ASSUMED_BYTES;
        }
        amounts
    });
    total.add(&Resources::of(spec.overhead.as_ref()));
    total
}

fn total(spec: &PodSpec, of: impl Fn(&Container) -> Resources) -> Resources {
    of_containers(spec, of, Resources::add, Resources::raise_to)
}

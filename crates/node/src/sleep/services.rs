//! Which Services a Deployment's pods are asked by, without looking at all Services for each
//! Deployment: they are many on a node where much sleeps.

use client::{Change, Informer};
use k8s_openapi::api::core::v1::Service;
use runtime::ServiceName;
use std::collections::{BTreeMap, HashMap};

/// Label of a Service that stands for one that several sites export: its name.
const IMPORTED: &str = "multicluster.kubernetes.io/service-name";

type Labels = BTreeMap<String, String>;

/// The node's Services by what they select.
#[derive(Default)]
pub(super) struct Index {
    namespaces: HashMap<String, Namespace>,
}

#[derive(Default)]
struct Namespace {
    /// Selectors by name.
    selectors: HashMap<String, Labels>,
    /// Names by one pair of their selector.
    by_pair: HashMap<(String, String), Vec<String>>,
    /// By the name of the Service that they stand for.
    imports: HashMap<String, Vec<String>>,
    /// Which each stands for.
    imported: HashMap<String, String>,
}

impl Index {
    /// Takes in a change.
    pub(super) fn learn(&mut self, change: &Change<Service>, all: &Informer<Service>) {
        match change {
            Change::Object { key, new, .. } => {
                self.set(&key.namespace, &key.name, new.as_deref());
            }
            Change::Resync => {
                self.namespaces.clear();
                for service in all.list() {
                    let meta = &service.metadata;
                    let namespace = meta.namespace.as_deref().unwrap_or_default();
                    let name = meta.name.as_deref().unwrap_or_default();
                    self.set(namespace, name, Some(&service));
                }
            }
        }
    }

    fn set(&mut self, namespace: &str, name: &str, service: Option<&Service>) {
        let selector = service
            .and_then(|s| s.spec.as_ref()?.selector.as_ref())
            .filter(|selector| !selector.is_empty());
        let stands_for = service.and_then(|s| s.metadata.labels.as_ref()?.get(IMPORTED));
        if selector.is_none() && stands_for.is_none() && !self.namespaces.contains_key(namespace) {
            return;
        }
        let known = self.namespaces.entry(namespace.to_owned()).or_default();
        known.forget(name);
        if let Some((pair, selector)) = selector.and_then(|s| Some((rarest(s)?, s))) {
            known.by_pair.entry(pair).or_default().push(name.to_owned());
            known.selectors.insert(name.to_owned(), selector.clone());
        }
        if let Some(of) = stands_for {
            let imports = known.imports.entry(of.clone()).or_default();
            imports.push(name.to_owned());
            known.imported.insert(name.to_owned(), of.clone());
        }
        if known.selectors.is_empty() && known.imported.is_empty() {
            self.namespaces.remove(namespace);
        }
    }

    /// The Services that select pods of these labels, and those that several sites have by
    /// their names: by them its pods are asked too. Sorted.
    pub(super) fn of_pods(&self, namespace: &str, labels: &Labels) -> Vec<ServiceName> {
        let Some(known) = self.namespaces.get(namespace) else {
            return Vec::new();
        };
        let selects = |name: &&String| {
            let selector = known.selectors.get(*name);
            selector.is_some_and(|s| s.iter().all(|(k, v)| labels.get(k) == Some(v)))
        };
        let mut names: Vec<&String> = labels
            .iter()
            .filter_map(|(k, v)| known.by_pair.get(&(k.clone(), v.clone())))
            .flatten()
            .filter(selects)
            .collect();
        let imports = |name: &&String| known.imports.get(*name).into_iter().flatten();
        let more: Vec<&String> = names.iter().flat_map(imports).collect();
        names.extend(more);
        names.sort_unstable();
        names.dedup();
        let named = |name: &String| ServiceName {
            namespace: namespace.to_owned(),
            name: name.clone(),
        };
        names.into_iter().map(named).collect()
    }
}

impl Namespace {
    fn forget(&mut self, name: &str) {
        if let Some(pair) = self.selectors.remove(name).as_ref().and_then(rarest) {
            remove(&mut self.by_pair, &pair, name);
        }
        if let Some(of) = self.imported.remove(name) {
            remove(&mut self.imports, &of, name);
        }
    }
}

/// The pair by which a selector is found: the longest value is most likely its own.
fn rarest(selector: &Labels) -> Option<(String, String)> {
    let pair = selector.iter().max_by_key(|(_, value)| value.len())?;
    Some((pair.0.clone(), pair.1.clone()))
}

fn remove<K: std::hash::Hash + Eq>(lists: &mut HashMap<K, Vec<String>>, key: &K, name: &str) {
    if let Some(list) = lists.get_mut(key) {
        list.retain(|n| n != name);
        if list.is_empty() {
            lists.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn service(selector: &Labels, stands_for: Option<&String>) -> Service {
        let labels = stands_for.map(|of| json!({IMPORTED: of}));
        serde_json::from_value(json!({
            "metadata": {"labels": labels}, "spec": {"selector": selector},
        }))
        .expect("a Service")
    }

    fn labels() -> impl Strategy<Value = Labels> {
        proptest::collection::btree_map("[ab]", "[xy]{1,2}", 0..3)
    }

    proptest! {
        #[test]
        fn it_finds_what_a_look_at_all_would(
            writes in proptest::collection::vec(
                ("[a-d]", proptest::option::of((labels(), proptest::option::of("[a-d]")))), 0..20),
            pod in labels(),
        ) {
            let mut index = Index::default();
            let mut all: BTreeMap<String, (Labels, Option<String>)> = BTreeMap::new();
            for (name, write) in writes {
                let object = write.as_ref().map(|(s, of)| service(s, of.as_ref()));
                index.set("ns", &name, object.as_ref());
                match write {
                    Some(write) => all.insert(name, write),
                    None => all.remove(&name),
                };
            }
            let selects = |selector: &Labels| {
                !selector.is_empty() && selector.iter().all(|(k, v)| pod.get(k) == Some(v))
            };
            let asked = |name: &String| all.get(name).is_some_and(|(s, _)| selects(s));
            let wanted: Vec<&String> = all
                .iter()
                .filter(|(name, (_, of))| asked(name) || of.as_ref().is_some_and(asked))
                .map(|(name, _)| name)
                .collect();
            let found = index.of_pods("ns", &pod);
            prop_assert_eq!(found.iter().map(|s| &s.name).collect::<Vec<_>>(), wanted);
            prop_assert!(index.of_pods("other", &pod).is_empty());
        }
    }
}

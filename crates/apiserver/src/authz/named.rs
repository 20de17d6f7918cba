//! What the pods of each node name: Secrets, ConfigMaps and volume claims. Kept from the watch
//! cache's own events, which a question first takes in, so that an answer is as fresh as the
//! cache and costs no walk over all pods.
//!
//! Empty until a node that is not of this process asks; then a small entry for each bound pod,
//! of those that the cache holds anyway.

use crate::admission::node_restriction::is_mirror;
use crate::cache::{Cache, Change, Kind, Object};
use crate::row::Row;
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

/// Events taken in at a time.
const BATCH: usize = 256;

/// Kinds of what is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Named {
    Secret,
    ConfigMap,
    Claim,
}

/// An object that pods name.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Thing {
    kind: Named,
    namespace: Box<str>,
    name: Box<str>,
}

/// What nodes may reach.
pub(crate) struct NamedByNodes {
    pods: Option<(Arc<Kind>, Row)>,
    index: Mutex<Option<Index>>,
}

impl std::fmt::Debug for NamedByNodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NamedByNodes")
    }
}

impl NamedByNodes {
    pub(crate) fn new(cache: &Cache) -> Self {
        Self {
            pods: cache.named("", "pods").zip(Row::builtin("", "v1", "pods")),
            index: Mutex::default(),
        }
    }

    /// Whether a pod on a node names an object.
    pub(crate) fn by(&self, node: &str, kind: Named, namespace: &str, name: &str) -> bool {
        let Some((pods, row)) = &self.pods else {
            return false;
        };
        let mut index = self.index.lock();
        let index = index.get_or_insert_default();
        index.catch_up(pods, row);
        let thing = Thing {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        };
        let things = index.nodes.get(node);
        things.is_some_and(|things| things.contains_key(&thing))
    }
}

#[derive(Debug, Default)]
struct Index {
    /// Sequence number of the event that comes next; none before the first look.
    next: Option<u64>,
    pods: HashMap<Arc<str>, Pod>,
    /// By node what its pods name, and how many of them do.
    nodes: HashMap<Arc<str>, HashMap<Arc<Thing>, usize>>,
    hasher: RandomState,
}

#[derive(Debug)]
struct Pod {
    node: Arc<str>,
    /// Of what decides what it names: most writes of a pod change its status only.
    hash: u64,
    things: Box<[Arc<Thing>]>,
}

impl Index {
    fn catch_up(&mut self, pods: &Kind, row: &Row) {
        let mut events = VecDeque::new();
        loop {
            let reached = self
                .next
                .and_then(|next| pods.events_from(next, BATCH, &mut events));
            let Some(reached) = reached else {
                let (all, next) = pods.all_before();
                self.pods.clear();
                self.nodes.clear();
                for pod in all {
                    self.set(&pod, &pod.field(row, "spec.nodeName"));
                }
                self.next = Some(next);
                return;
            };
            self.next = Some(reached);
            if events.is_empty() {
                return;
            }
            for event in events.drain(..) {
                let pod = &event.object;
                match event.change {
                    Change::Deleted => self.remove(&pod.key),
                    Change::Added | Change::Modified => {
                        self.set(pod, &pod.field(row, "spec.nodeName"));
                    }
                }
            }
        }
    }

    fn set(&mut self, pod: &Object, node: &str) {
        let parts = Parts::of(&pod.bytes).filter(|_| !node.is_empty());
        let Some(parts) = parts else {
            self.remove(&pod.key);
            return;
        };
        // A node's own word is no reason to let it read.
        let spec = parts.spec.filter(|_| !parts.mirror);
        let hash = self.hasher.hash_one(spec);
        let known = self.pods.get(&pod.key);
        if known.is_some_and(|known| &*known.node == node && known.hash == hash) {
            return;
        }
        self.remove(&pod.key);
        let spec: Value = spec
            .and_then(|spec| serde_json::from_str(spec).ok())
            .unwrap_or_default();
        let node = match self.nodes.get_key_value(node) {
            Some((node, _)) => node.clone(),
            None => node.into(),
        };
        let known = self.nodes.entry(node.clone()).or_default();
        let mut things = Vec::new();
        for (kind, name) in all_named(&spec, pod.name()) {
            let thing = Thing {
                kind,
                namespace: pod.namespace().into(),
                name: name.into(),
            };
            // One copy for all pods of a node.
            let thing = match known.get_key_value(&thing) {
                Some((thing, _)) => thing.clone(),
                None => Arc::new(thing),
            };
            *known.entry(thing.clone()).or_default() += 1;
            things.push(thing);
        }
        let things = things.into();
        self.pods
            .insert(pod.key.clone(), Pod { node, hash, things });
    }

    fn remove(&mut self, key: &str) {
        let Some(pod) = self.pods.remove(key) else {
            return;
        };
        let Some(known) = self.nodes.get_mut(&pod.node) else {
            return;
        };
        for thing in &pod.things {
            if let Some(count) = known.get_mut(thing) {
                *count -= 1;
                if *count == 0 {
                    known.remove(thing);
                }
            }
        }
        if known.is_empty() {
            self.nodes.remove(&pod.node);
        }
    }
}

/// The parts of a stored pod that decide what it names.
struct Parts<'a> {
    mirror: bool,
    spec: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        #[derive(serde::Deserialize)]
        struct Head<'a> {
            metadata: Value,
            #[serde(borrow)]
            spec: Option<&'a serde_json::value::RawValue>,
        }
        let head: Head<'a> = serde_json::from_slice(bytes).ok()?;
        Some(Self {
            mirror: is_mirror(&serde_json::json!({"metadata": head.metadata})),
            spec: head.spec.map(serde_json::value::RawValue::get),
        })
    }
}

/// Where a pod names other objects.
const NAMING: &[&str] = &[
    "volumes",
    "containers",
    "initContainers",
    "ephemeralContainers",
];

/// What a pod of a name names, each once.
fn all_named(spec: &Value, pod: &str) -> HashSet<(Named, String)> {
    let mut found = HashSet::new();
    for field in NAMING {
        find(&spec[*field], &mut found);
    }
    let pull = spec["imagePullSecrets"].as_array().into_iter().flatten();
    found.extend(pull.filter_map(|secret| name_in(Named::Secret, &secret["name"])));
    let volumes = spec["volumes"].as_array().into_iter().flatten();
    for volume in volumes.filter(|volume| volume["ephemeral"].is_object()) {
        if let Some(name) = volume["name"].as_str() {
            found.insert((Named::Claim, format!("{pod}-{name}")));
        }
    }
    found
}

/// Whether a pod names any Secret, ConfigMap or claim.
pub(crate) fn names_any(spec: &Value) -> bool {
    !all_named(spec, "").is_empty()
}

fn name_in(kind: Named, name: &Value) -> Option<(Named, String)> {
    let name = name.as_str().filter(|name| !name.is_empty())?;
    Some((kind, name.to_owned()))
}

fn find(value: &Value, found: &mut HashSet<(Named, String)>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let named = match key.as_str() {
                    // All that end so: those of volumes have drivers' names before it.
                    "secret" | "secretRef" | "secretKeyRef" | "nodePublishSecretRef" => {
                        name_in(Named::Secret, &value["name"])
                    }
                    "secretName" => name_in(Named::Secret, value),
                    "configMap" | "configMapRef" | "configMapKeyRef" => {
                        name_in(Named::ConfigMap, &value["name"])
                    }
                    "persistentVolumeClaim" => name_in(Named::Claim, &value["claimName"]),
                    _ => None,
                };
                found.extend(named);
                find(value, found);
            }
        }
        Value::Array(all) => all.iter().for_each(|value| find(value, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use serde_json::json;

    fn found(spec: &Value, kind: Named) -> Vec<String> {
        let all = all_named(spec, "pod").into_iter();
        let mut names: Vec<_> = all.filter(|(k, _)| *k == kind).map(|(_, n)| n).collect();
        names.sort();
        names
    }

    #[test]
    fn pods_name_what_their_node_may_read() {
        let spec = json!({
            "volumes": [
                {"name": "a", "secret": {"secretName": "volume"}},
                {"name": "b", "configMap": {"name": "map"}},
                {"name": "c", "projected": {"sources": [
                    {"secret": {"name": "part"}}, {"configMap": {"name": "root"}}]}},
                {"name": "d", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "e", "ephemeral": {"volumeClaimTemplate": {}}},
            ],
            "containers": [{"name": "label", "env": [
                {"name": "x", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}}],
                "envFrom": [{"configMapRef": {"name": "env"}}]}],
            "imagePullSecrets": [{"name": "pull"}],
        });
        assert_eq!(
            found(&spec, Named::Secret),
            ["key", "part", "pull", "volume"]
        );
        assert_eq!(found(&spec, Named::ConfigMap), ["env", "map", "root"]);
        assert_eq!(found(&spec, Named::Claim), ["data", "pod-e"]);
        let spec = json!({"nodeSelector": {"secretName": "x"}, "containers": [{"name": "c"}]});
        assert!(!names_any(&spec));
        for spec in [
            json!({"imagePullSecrets": [{"name": "x"}]}),
            json!({"volumes": [{"csi": {"nodePublishSecretRef": {"name": "x"}}}]}),
            json!({"ephemeralContainers": [{"envFrom": [{"secretRef": {"name": "x"}}]}]}),
            json!({"volumes": [{"azureFile": {"secretName": "x"}}]}),
        ] {
            assert_eq!(found(&spec, Named::Secret), ["x"], "{spec}");
        }
    }

    /// What the index should say, by walking all pods.
    fn naive(pods: &HashMap<usize, (usize, usize, bool)>, node: usize, name: usize) -> bool {
        pods.values()
            .any(|(on, named, mirror)| *on == node && *named == name && !mirror && node > 0)
    }

    proptest::proptest! {
        #[test]
        fn the_index_is_what_a_walk_finds(
            writes in proptest::collection::vec((0..4usize, 0..3usize, 0..3usize, 0..6u8), 0..60)
        ) {
            let mut index = Index::default();
            let mut pods = HashMap::new();
            for (pod, node, name, how) in writes {
                let key: Arc<str> = format!("ns/p{pod}").into();
                if how == 0 {
                    index.remove(&key);
                    pods.remove(&pod);
                } else {
                    let mirror = how == 1;
                    let annotations = if mirror {
                        json!({"kubernetes.io/config.mirror": "x"})
                    } else {
                        json!({})
                    };
                    let object = json!({"kind": "Pod", "apiVersion": "v1",
                        "metadata": {"name": format!("p{pod}"), "annotations": annotations},
                        "spec": {"imagePullSecrets": [{"name": format!("s{name}")}]},
                        "status": {"n": how}});
                    let bytes = Bytes::from(crate::cache::encode(&object));
                    let object = Object::parse(None, key, bytes, 1).unwrap();
                    let on = if node == 0 { String::new() } else { format!("n{node}") };
                    index.set(&object, &on);
                    pods.insert(pod, (node, name, mirror));
                }
                for node in 0..3 {
                    for name in 0..3 {
                        let thing = Thing {
                            kind: Named::Secret,
                            namespace: "ns".into(),
                            name: format!("s{name}").into(),
                        };
                        let things = index.nodes.get(&*format!("n{node}"));
                        let said = things.is_some_and(|t| t.contains_key(&thing));
                        proptest::prop_assert_eq!(said, naive(&pods, node, name));
                    }
                }
            }
            for pod in 0..4 {
                index.remove(&format!("ns/p{pod}"));
            }
            proptest::prop_assert!(index.nodes.is_empty() && index.pods.is_empty());
        }
    }
}

//! Claims of volumes: a pod waits until those that it names are there, runs where their volumes
//! are, and decides where the volumes of those are made that wait for it.

use crate::demand::NodeTerm;
use crate::filter::Rejection;
use crate::snapshot::NodeState;
use client::k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use client::k8s_openapi::api::storage::v1::StorageClass;
use client::volumes::{
    SELECTED_NODE, claims_of, class_of, is_for_one_pod, made_for, suited, volume_of, waits_for_pod,
};
use std::sync::Arc;

/// A class of this provisioner has only the volumes that somebody makes by hand.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// Whether the pod names a claim at all.
pub(crate) fn has_any(pod: &Pod) -> bool {
    claims_of(pod).next().is_some()
}

/// What there is of volumes.
pub(crate) trait Storage {
    /// A claim of the pod's namespace.
    fn claim(&self, name: &str) -> Option<Arc<PersistentVolumeClaim>>;
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>>;
    fn volumes(&self) -> Vec<Arc<PersistentVolume>>;
    fn class(&self, name: &str) -> Option<Arc<StorageClass>>;
    /// Whether a pod that has a node has this claim.
    fn is_used(&self, claim: &str) -> bool;
}

/// What a pod's claims ask of its node.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// Where the volumes are that are bound: one of the terms of each must hold.
    bound: Vec<Vec<NodeTerm>>,
    /// One of them is for a single pod, and another pod has it.
    taken: bool,
    pub(crate) waiting: Vec<Waiting>,
}

/// A claim that is bound once its pod has a node.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) claim: Arc<PersistentVolumeClaim>,
    /// Volumes that could be bound to it, and where they are; the best first.
    free: Vec<(Arc<PersistentVolume>, Option<Vec<NodeTerm>>)>,
    /// Whether one can be made anywhere.
    made: bool,
    /// The node that was chosen before: a volume may be on its way there.
    chosen: Option<String>,
}

/// What is to be written before a pod may run on a node.
#[derive(Debug, PartialEq)]
pub(crate) enum Reservation {
    /// This volume is for this claim.
    Volume(Arc<PersistentVolume>, Arc<PersistentVolumeClaim>),
    /// A volume is to be made for the claim on the node.
    Node(Arc<PersistentVolumeClaim>),
    /// That has been said; it is not made yet.
    Underway,
}

impl Claims {
    /// # Errors
    /// Why the pod must wait wherever it is to run, in upstream's words.
    pub(crate) fn of(pod: &Pod, storage: &impl Storage) -> Result<Self, String> {
        let mut all = Self::default();
        let mut unbound = false;
        for (name, made) in claims_of(pod) {
            let claim = storage.claim(&name).ok_or_else(|| missing(&name, made))?;
            if made {
                made_for(&claim, pod)?;
            }
            let modes = claim.spec.as_ref().and_then(|s| s.access_modes.as_deref());
            all.taken |= is_for_one_pod(modes) && storage.is_used(&name);
            let volume = volume_of(&claim);
            let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
            if phase == Some("Lost") {
                return Err(format!(
                    "persistentvolumeclaim {name:?} bound to non-existent persistentvolume \
                     {volume:?}"
                ));
            }
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
            }
            if !volume.is_empty() {
                // Without a volume the claim is lost, which its controller will say.
                let volume = storage.volume(volume);
                all.bound.extend(volume.as_deref().and_then(terms));
                continue;
            }
            let class = storage.class(class_of(&claim));
            match class.filter(|class| waits_for_pod(class)) {
                Some(class) => all.waiting.push(Waiting::of(claim, &class, storage)),
                None => unbound = true,
            }
        }
        if unbound {
            return Err("pod has unbound immediate PersistentVolumeClaims".into());
        }
        Ok(all)
    }

    /// Whether a node has, or can have, all volumes.
    pub(crate) fn check(&self, name: &str, node: &NodeState) -> Result<(), Rejection> {
        if self.taken {
            // Wherever that pod is.
            return Err(Rejection::by_pods(
                "node has pod using PersistentVolumeClaim with the same name and \
                 ReadWriteOncePod access mode",
            ));
        }
        let here = |terms: &Vec<NodeTerm>| terms.iter().any(|t| t.matches(name, node.labels()));
        if !self.bound.iter().all(here) {
            return Err(Rejection::by_node(
                "node(s) had volume node affinity conflict",
            ));
        }
        let mut taken = Vec::new();
        for waiting in &self.waiting {
            let elsewhere = waiting
                .chosen
                .as_deref()
                .is_some_and(|chosen| chosen != name);
            match waiting.free_at(name, node, &taken) {
                _ if elsewhere => {
                    return Err(Rejection::by_node(
                        "node(s) had a volume made for the pod elsewhere",
                    ));
                }
                Some(volume) => taken.push(volume.metadata.name.clone()),
                None if waiting.made => {}
                None => {
                    return Err(Rejection::by_node(
                        "node(s) didn't find available persistent volumes to bind",
                    ));
                }
            }
        }
        Ok(())
    }

    /// What is to be written, now that the node is chosen.
    pub(crate) fn reserve(&self, name: &str, node: &NodeState) -> Vec<Reservation> {
        let mut taken = Vec::new();
        let mut reserve = |waiting: &Waiting| match waiting.free_at(name, node, &taken) {
            Some(volume) => {
                taken.push(volume.metadata.name.clone());
                if client::volumes::is_for(volume, &waiting.claim) {
                    Reservation::Underway
                } else {
                    Reservation::Volume(volume.clone(), waiting.claim.clone())
                }
            }
            None if waiting.chosen.is_some() => Reservation::Underway,
            None => Reservation::Node(waiting.claim.clone()),
        };
        self.waiting.iter().map(&mut reserve).collect()
    }
}

impl Waiting {
    fn of(claim: Arc<PersistentVolumeClaim>, class: &StorageClass, storage: &impl Storage) -> Self {
        let free = suited(storage.volumes(), &claim).into_iter();
        let free = free.map(|volume| {
            let terms = terms(&volume);
            (volume, terms)
        });
        let notes = claim.metadata.annotations.as_ref();
        Self {
            chosen: notes.and_then(|n| n.get(SELECTED_NODE)).cloned(),
            free: free.collect(),
            made: class.provisioner != NO_PROVISIONER,
            claim,
        }
    }

    /// The best volume that is at hand on a node and not taken for another claim of the pod.
    fn free_at(
        &self,
        name: &str,
        node: &NodeState,
        taken: &[Option<String>],
    ) -> Option<&Arc<PersistentVolume>> {
        let here = |terms: &Option<Vec<NodeTerm>>| {
            terms
                .as_ref()
                .is_none_or(|terms| terms.iter().any(|t| t.matches(name, node.labels())))
        };
        let found = self
            .free
            .iter()
            .find(|(volume, terms)| here(terms) && !taken.contains(&volume.metadata.name));
        found.map(|(volume, _)| volume)
    }
}

/// Where a volume is; none for one that is everywhere.
fn terms(volume: &PersistentVolume) -> Option<Vec<NodeTerm>> {
    let affinity = volume.spec.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required.as_ref()?;
    Some(
        required
            .node_selector_terms
            .iter()
            .map(NodeTerm::of)
            .collect(),
    )
}

fn missing(name: &str, made: bool) -> String {
    if made {
        format!(
            "waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"
        )
    } else {
        format!("persistentvolumeclaim {name:?} not found")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Snapshot;
    use client::k8s_openapi::api::core::v1::Node;
    use serde_json::{Value, json};

    #[derive(Default)]
    struct Has {
        claim: Option<Value>,
        volumes: Vec<Value>,
        class: Option<Value>,
        used: bool,
    }

    fn read<T: client::informer::Kind>(v: &Value) -> Arc<T> {
        Arc::new(serde_json::from_value(v.clone()).unwrap())
    }

    impl Storage for Has {
        fn claim(&self, _: &str) -> Option<Arc<PersistentVolumeClaim>> {
            self.claim.as_ref().map(read)
        }

        fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
            self.volumes()
                .into_iter()
                .find(|v| v.metadata.name.as_deref() == Some(name))
        }

        fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
            self.volumes.iter().map(read).collect()
        }

        fn class(&self, _: &str) -> Option<Arc<StorageClass>> {
            self.class.as_ref().map(read)
        }

        fn is_used(&self, _: &str) -> bool {
            self.used
        }
    }

    fn pod(volume: &Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": "of p"},
            "spec": {"containers": [], "volumes": [volume]},
        }))
        .unwrap()
    }

    fn by_claim() -> Pod {
        pod(&json!({"name": "v", "persistentVolumeClaim": {"claimName": "data"}}))
    }

    fn volume(name: &str, node: &str, size: &str) -> Value {
        json!({
            "metadata": {"name": name}, "status": {"phase": "Available"},
            "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"],
                "storageClassName": "slow",
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}},
        })
    }

    fn asking(notes: &Value) -> Value {
        json!({
            "metadata": {"name": "data", "annotations": notes},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "slow",
                "resources": {"requests": {"storage": "1Gi"}}},
        })
    }

    fn class(provisioner: &str) -> Option<Value> {
        Some(
            json!({"metadata": {"name": "slow"}, "provisioner": provisioner,
            "volumeBindingMode": "WaitForFirstConsumer"}),
        )
    }

    /// The one node that there is.
    fn with_node<T>(name: &str, look: impl FnOnce(&str, &NodeState) -> T) -> T {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        }))
        .unwrap();
        let mut snapshot = Snapshot::new();
        snapshot.set_node(Arc::new(node));
        let (name, node) = snapshot.nodes().next().unwrap();
        look(name, node)
    }

    #[test]
    fn a_pod_waits_for_its_claims() {
        let made = pod(&json!({"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}));
        let check = |pod: &Pod, claim: Option<Value>| {
            let has = Has {
                claim,
                ..Has::default()
            };
            Claims::of(pod, &has).err()
        };
        let said = |text: &str| Some(text.to_owned());
        assert_eq!(
            check(&by_claim(), None),
            said("persistentvolumeclaim \"data\" not found")
        );
        assert_eq!(
            check(&made, None),
            said(
                "waiting for ephemeral volume controller to create the persistentvolumeclaim \"p-v\""
            )
        );
        let owned_by = |uid: &str| {
            json!({
                "metadata": {"name": "p-v", "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": true,
                }]},
                "spec": {"volumeName": "pv"},
            })
        };
        let before = owned_by("of the pod before");
        assert_eq!(
            check(&made, Some(before)),
            said("PVC p-v was not created for pod p (pod is not owner)")
        );
        assert_eq!(check(&made, Some(owned_by("of p"))), None);
        let unbound = json!({"metadata": {"name": "data"}, "spec": {}});
        assert_eq!(
            check(&by_claim(), Some(unbound)),
            said("pod has unbound immediate PersistentVolumeClaims")
        );
        let going = json!({"metadata": {"name": "data", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"volumeName": "pv"}});
        assert_eq!(
            check(&by_claim(), Some(going)),
            said("persistentvolumeclaim \"data\" is being deleted")
        );
        let bound = json!({"metadata": {"name": "data"}, "spec": {"volumeName": "pv"}});
        assert_eq!(check(&by_claim(), Some(bound)), None);
        let empty = pod(&json!({"name": "v", "emptyDir": {}}));
        assert_eq!(check(&empty, None), None);
        assert!(has_any(&by_claim()) && !has_any(&empty));
    }

    #[test]
    fn a_pod_runs_where_its_volume_is() {
        let claim = json!({"metadata": {"name": "data"}, "spec": {"volumeName": "pv"}});
        let has = Has {
            claim: Some(claim),
            volumes: vec![volume("pv", "n1", "1Gi")],
            ..Has::default()
        };
        let claims = Claims::of(&by_claim(), &has).unwrap();
        let check = |at: &str| with_node(at, |name, node| claims.check(name, node));
        assert_eq!(check("n1"), Ok(()));
        let refused = check("n2").unwrap_err();
        assert_eq!(
            refused.reasons,
            ["node(s) had volume node affinity conflict"]
        );
    }

    /// Upstream: `TestAccessModeConflicts` of the plug-in VolumeRestrictions.
    #[test]
    fn a_claim_for_one_pod_is_for_one() {
        let check = |mode: &str, used: bool| {
            let claim = json!({"metadata": {"name": "data"},
                "spec": {"volumeName": "pv", "accessModes": [mode]}});
            let has = Has {
                claim: Some(claim),
                volumes: vec![volume("pv", "n1", "1Gi")],
                class: None,
                used,
            };
            let claims = Claims::of(&by_claim(), &has).unwrap();
            with_node("n1", |name, node| claims.check(name, node))
        };
        let refused = check("ReadWriteOncePod", true).unwrap_err();
        assert_eq!(
            refused.reasons,
            [
                "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"
            ]
        );
        assert!(refused.by_pods);
        assert_eq!(check("ReadWriteOncePod", false), Ok(()));
        assert_eq!(check("ReadWriteOnce", true), Ok(()));
    }

    #[test]
    fn the_pod_s_node_decides_where_the_volume_is() {
        let check = |provisioner: &str, notes: Value, at: &str| {
            let has = Has {
                claim: Some(asking(&notes)),
                volumes: vec![volume("large", "n1", "9Gi"), volume("fits", "n1", "2Gi")],
                class: class(provisioner),
                used: false,
            };
            let claims = Claims::of(&by_claim(), &has).unwrap();
            with_node(at, |at, node| match claims.check(at, node) {
                Err(refused) => refused.reasons.join(", "),
                Ok(()) => match &claims.reserve(at, node)[..] {
                    [Reservation::Volume(v, _)] => format!("volume {:?}", v.metadata.name),
                    [Reservation::Node(_)] => "a new one".to_owned(),
                    other => format!("{other:?}"),
                },
            })
        };
        let chosen = || json!({SELECTED_NODE: "n2"});
        assert_eq!(
            check(NO_PROVISIONER, json!({}), "n1"),
            "volume Some(\"fits\")"
        );
        assert_eq!(
            check(NO_PROVISIONER, json!({}), "n2"),
            "node(s) didn't find available persistent volumes to bind"
        );
        assert_eq!(check("salp.dev/local-path", json!({}), "n2"), "a new one");
        assert_eq!(check("salp.dev/local-path", chosen(), "n2"), "[Underway]");
        assert_eq!(
            check("salp.dev/local-path", chosen(), "n1"),
            "node(s) had a volume made for the pod elsewhere"
        );
    }
}

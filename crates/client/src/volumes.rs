//! Claims and the volumes that suit them: what the scheduler, the controllers and the nodes must
//! agree on. Pure; who binds them is `controllers::volumes`.

use crate::{ObjectKey, labels};
use apimachinery::quantity::Quantity;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::api::storage::v1::StorageClass;
use std::sync::Arc;

/// Says on a claim which node the scheduler has chosen for its first pod.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// The claim of a pod's volume, and whether it is for a controller to make it.
pub fn claim_of(pod: &Pod, volume: &Volume) -> Option<(String, bool)> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some((source.claim_name.clone(), false));
    }
    volume.ephemeral.as_ref()?;
    let pod = pod.metadata.name.as_deref().unwrap_or_default();
    Some((format!("{pod}-{}", volume.name), true))
}

/// All claims of a pod, as [`claim_of`] has each.
pub fn claims_of(pod: &Pod) -> impl Iterator<Item = (String, bool)> + '_ {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.filter_map(|volume| claim_of(pod, volume))
}

/// # Errors
/// In upstream's words, when a claim of an ephemeral volume's name was made for something else:
/// by hand, or for the pod of the same name that was there before.
pub fn made_for(claim: &PersistentVolumeClaim, pod: &Pod) -> Result<(), String> {
    let owners = claim.metadata.owner_references.iter().flatten();
    let mut owners = owners.filter(|owner| owner.controller == Some(true));
    if owners.any(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref()) {
        return Ok(());
    }
    Err(format!(
        "PVC {} was not created for pod {} (pod is not owner)",
        ObjectKey::of(claim),
        ObjectKey::of(pod)
    ))
}

/// The volume that a claim names; empty while there is none.
pub fn volume_of(claim: &PersistentVolumeClaim) -> &str {
    let spec = claim.spec.as_ref();
    spec.and_then(|s| s.volume_name.as_deref())
        .unwrap_or_default()
}

/// The class of a claim; empty for none.
pub fn class_of(claim: &PersistentVolumeClaim) -> &str {
    let old = claim.metadata.annotations.as_ref();
    let old = old.and_then(|a| a.get(OLD_CLASS)).map(String::as_str);
    old.or_else(|| claim.spec.as_ref()?.storage_class_name.as_deref())
        .unwrap_or_default()
}

/// Whether a claim says of which class it is to be, be it of none.
pub fn states_class(claim: &PersistentVolumeClaim) -> bool {
    let old = claim.metadata.annotations.as_ref();
    let spec = claim.spec.as_ref();
    old.is_some_and(|a| a.contains_key(OLD_CLASS))
        || spec.is_some_and(|s| s.storage_class_name.is_some())
}

/// Whether a claim of this class waits for a pod before it gets a volume.
pub fn waits_for_pod(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

/// Whether a volume is reserved for, or bound to, this very claim.
pub fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else {
        return false;
    };
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && (reference.uid.as_deref().unwrap_or_default().is_empty()
            || reference.uid == claim.metadata.uid)
}

/// The claim that a volume is reserved for or bound to.
pub fn claimed_by(volume: &PersistentVolume) -> Option<ObjectKey> {
    let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(ObjectKey::new(
        reference.namespace.clone()?,
        reference.name.clone()?,
    ))
}

/// Whether a volume can be bound to a claim, wherever it is: free or reserved for it, of its
/// class, with its modes, large enough, and of its selection.
fn suits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(has), Some(asks)) = (&volume.spec, &claim.spec) else {
        return false;
    };
    let reserved = is_for(volume, claim);
    let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref());
    if volume.metadata.deletion_timestamp.is_some()
        || !(reserved || has.claim_ref.is_none() && phase == Some("Available"))
    {
        return false;
    }
    let mode = |mode: &Option<String>| mode.as_deref() == Some("Block");
    if has.storage_class_name.as_deref().unwrap_or_default() != class_of(claim)
        || mode(&has.volume_mode) != mode(&asks.volume_mode)
        || size(volume) < requested(claim)
    {
        return false;
    }
    let modes = has.access_modes.as_deref().unwrap_or_default();
    let wanted = asks.access_modes.iter().flatten();
    if !wanted.into_iter().all(|mode| modes.contains(mode)) {
        return false;
    }
    reserved
        || asks.selector.as_ref().is_none_or(|selector| {
            labels::parse(selector)
                .is_ok_and(|s| labels::matches(&s, volume.metadata.labels.as_ref()))
        })
}

/// The volumes that suit a claim, the best first: those that are reserved for it, then by size.
pub fn suited(
    volumes: impl IntoIterator<Item = Arc<PersistentVolume>>,
    claim: &PersistentVolumeClaim,
) -> Vec<Arc<PersistentVolume>> {
    let mut all: Vec<_> = volumes.into_iter().filter(|v| suits(v, claim)).collect();
    all.sort_by_cached_key(|volume| {
        let name = volume.metadata.name.clone();
        (!is_for(volume, claim), size(volume), name)
    });
    all
}

/// Bytes of a volume.
pub fn size(volume: &PersistentVolume) -> i64 {
    let capacity = volume.spec.as_ref().and_then(|s| s.capacity.as_ref());
    bytes(
        capacity
            .and_then(|c| c.get("storage"))
            .map(|q| q.0.as_str()),
    )
}

/// Whether only one pod at a time may have what has these access modes.
pub fn is_for_one_pod(modes: Option<&[String]>) -> bool {
    modes.is_some_and(|modes| modes.iter().any(|mode| mode == "ReadWriteOncePod"))
}

/// Bytes that a bound claim is said to have, if that is said yet.
pub fn capacity(claim: &PersistentVolumeClaim) -> Option<i64> {
    let capacity = claim.status.as_ref()?.capacity.as_ref()?;
    Some(bytes(Some(capacity.get("storage")?.0.as_str())))
}

/// Bytes that a claim asks for.
pub fn requested(claim: &PersistentVolumeClaim) -> i64 {
    let resources = claim.spec.as_ref().and_then(|s| s.resources.as_ref());
    let requests = resources.and_then(|r| r.requests.as_ref());
    bytes(
        requests
            .and_then(|r| r.get("storage"))
            .map(|q| q.0.as_str()),
    )
}

fn bytes(quantity: Option<&str>) -> i64 {
    quantity
        .and_then(|q| q.parse::<Quantity>().ok())
        .map_or(0, Quantity::value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn merge(into: &mut Value, more: Value) {
        match (into, more) {
            (Value::Object(into), Value::Object(more)) => {
                for (name, value) in more {
                    merge(into.entry(name).or_insert(Value::Null), value);
                }
            }
            (into, more) => *into = more,
        }
    }

    fn claim(spec: Value) -> PersistentVolumeClaim {
        let metadata = json!({"name": "data", "namespace": "shop", "uid": "u"});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    fn volume(name: &str, size: &str, more: Value) -> Arc<PersistentVolume> {
        let mut v = json!({
            "metadata": {"name": name, "labels": {"disk": name}},
            "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce", "ReadOnlyMany"],
                "storageClassName": "slow"},
            "status": {"phase": "Available"},
        });
        merge(&mut v, more);
        Arc::new(serde_json::from_value(v).unwrap())
    }

    #[test]
    fn the_smallest_that_suits_is_taken() {
        let all = || {
            vec![
                volume("large", "10Gi", json!({})),
                volume("fits", "2Gi", json!({})),
                volume("small", "500Mi", json!({})),
                volume(
                    "taken",
                    "1Gi",
                    json!({"spec": {"claimRef": {"name": "a", "namespace": "shop"}}}),
                ),
                volume("raw", "1Gi", json!({"spec": {"volumeMode": "Block"}})),
                volume("fast", "1Gi", json!({"spec": {"storageClassName": "fast"}})),
                volume("new", "1Gi", json!({"status": {"phase": "Pending"}})),
            ]
        };
        let found = |more: Value| {
            let mut spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "slow",
                "resources": {"requests": {"storage": "1Gi"}}});
            merge(&mut spec, more);
            let found = suited(all(), &claim(spec));
            found.first().and_then(|v| v.metadata.name.clone())
        };
        let named = |name: &str| Some(name.to_owned());
        assert_eq!(found(json!({})), named("fits"));
        assert_eq!(
            found(json!({"selector": {"matchLabels": {"disk": "large"}}})),
            named("large")
        );
        assert_eq!(found(json!({"accessModes": ["ReadWriteMany"]})), None);
        assert_eq!(found(json!({"storageClassName": "fast"})), named("fast"));
        assert_eq!(found(json!({"storageClassName": ""})), None);
        assert_eq!(found(json!({"volumeMode": "Block"})), named("raw"));
        assert_eq!(
            found(json!({"resources": {"requests": {"storage": "11Gi"}}})),
            None
        );
    }

    #[test]
    fn a_reserved_volume_goes_to_its_claim_only() {
        let reserved = |uid: Value| {
            let reference = json!({"name": "data", "namespace": "shop", "uid": uid});
            volume(
                "kept",
                "5Gi",
                json!({"spec": {"claimRef": reference}, "status": {"phase": "Released"}}),
            )
        };
        let wants = claim(
            json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "slow",
            "resources": {"requests": {"storage": "1Gi"}}}),
        );
        let free = volume("fits", "2Gi", json!({}));
        for (uid, taken) in [
            (json!(null), "kept"),
            (json!("u"), "kept"),
            (json!("other"), "fits"),
        ] {
            let found = suited([free.clone(), reserved(uid)], &wants)[0].clone();
            assert_eq!(found.metadata.name.as_deref(), Some(taken));
        }
    }
}

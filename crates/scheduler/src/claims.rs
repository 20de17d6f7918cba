//! Claims of volumes: a pod waits until those that it names are there and bound.

use client::k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use std::sync::Arc;

/// The claims that a pod names, and whether it is for a controller to make them.
fn named(pod: &Pod) -> impl Iterator<Item = (String, bool)> + '_ {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.filter_map(|volume| {
        if let Some(source) = &volume.persistent_volume_claim {
            return Some((source.claim_name.clone(), false));
        }
        volume.ephemeral.as_ref()?;
        let pod = pod.metadata.name.as_deref().unwrap_or_default();
        Some((format!("{pod}-{}", volume.name), true))
    })
}

/// Whether the pod names a claim at all.
pub(crate) fn has_any(pod: &Pod) -> bool {
    named(pod).next().is_some()
}

/// Why the pod must wait, in upstream's words.
pub(crate) fn unmet(
    pod: &Pod,
    find: impl Fn(&str) -> Option<Arc<PersistentVolumeClaim>>,
) -> Option<String> {
    let mut unbound = false;
    for (name, made) in named(pod) {
        let Some(claim) = find(&name) else {
            return Some(if made {
                format!(
                    "waiting for ephemeral volume controller to create the \
                     persistentvolumeclaim {name:?}"
                )
            } else {
                format!("persistentvolumeclaim {name:?} not found")
            });
        };
        let volume = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref());
        let volume = volume.unwrap_or_default();
        let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
        if phase == Some("Lost") {
            return Some(format!(
                "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
            ));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Some(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        unbound |= volume.is_empty();
    }
    unbound.then(|| "pod has unbound immediate PersistentVolumeClaims".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_waits_for_its_claims() {
        let pod = |volume: serde_json::Value| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "p"}, "spec": {"containers": [], "volumes": [volume]},
            }))
            .unwrap()
        };
        let by_claim = pod(json!({"name": "v", "persistentVolumeClaim": {"claimName": "data"}}));
        let made = pod(json!({"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}));
        let check = |pod: &Pod, claim: Option<serde_json::Value>| {
            let claim = claim.map(|c| Arc::new(serde_json::from_value(c).unwrap()));
            unmet(pod, |_| claim.clone())
        };
        let said = |text: &str| Some(text.to_owned());
        assert_eq!(
            check(&by_claim, None),
            said("persistentvolumeclaim \"data\" not found")
        );
        assert_eq!(
            check(&made, None),
            said(
                "waiting for ephemeral volume controller to create the persistentvolumeclaim \"p-v\""
            )
        );
        let unbound = json!({"metadata": {"name": "data"}, "spec": {}});
        assert_eq!(
            check(&by_claim, Some(unbound)),
            said("pod has unbound immediate PersistentVolumeClaims")
        );
        let going = json!({"metadata": {"name": "data", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"volumeName": "pv"}});
        assert_eq!(
            check(&by_claim, Some(going)),
            said("persistentvolumeclaim \"data\" is being deleted")
        );
        let bound = json!({"metadata": {"name": "data"}, "spec": {"volumeName": "pv"}});
        assert_eq!(check(&by_claim, Some(bound)), None);
        assert_eq!(
            check(&pod(json!({"name": "v", "emptyDir": {}})), None),
            None
        );
        assert!(has_any(&by_claim) && !has_any(&pod(json!({"name": "v"}))));
    }
}

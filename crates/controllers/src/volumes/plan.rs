//! What is to be done for one claim or one volume. Pure.

use super::{
    ANNOTATION_PROVISIONED_BY, ANNOTATION_VOLUMES_DIR, BIND_COMPLETED, FOREIGN_DIRECTORY,
    LABEL_HOSTNAME, LOCAL_PATH_PROVISIONER, Node, PersistentVolume, PersistentVolumeClaim,
    STORAGE_PROVISIONER, StorageClass,
};
use api::constants::ANNOTATIONS_DEFAULT_CLASS;
use client::k8s_openapi::api::core::v1::{
    HostPathVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, ObjectReference,
    PersistentVolumeSpec, VolumeNodeAffinity,
};
use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use client::volumes::{
    SELECTED_NODE, capacity, class_of, is_for, requested, size, states_class, suited, volume_of,
    waits_for_pod,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A class of this provisioner has only the volumes that somebody makes by hand.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// What a claim needs.
#[derive(Debug, PartialEq)]
pub(super) enum ClaimPlan {
    Keep,
    /// Nothing can be done yet; what users are told of it.
    Wait(Option<(&'static str, String)>),
    Fail(&'static str, String),
    /// What it had has gone.
    Lost(String),
    Bind(Arc<PersistentVolume>),
    /// A volume is to be made on a node.
    Provision(String),
    /// It states no class, and no volume has none: the default class is its own.
    TakeDefaultClass,
    /// Another program makes volumes of its class.
    AskProvisioner(String),
    /// It has this volume and asks for more, which the volume is to say it has: a directory has
    /// no size of its own.
    Grow(Arc<PersistentVolume>),
    /// It asks for more than its volume has, which another program is to see to.
    AwaitGrowth,
}

/// What a volume needs.
#[derive(Debug, PartialEq)]
pub(super) enum VolumePlan {
    Keep,
    Phase(&'static str),
    Fail(String),
    /// Nothing of it is left anywhere.
    Delete,
    /// It may go.
    Unprotect,
}

/// `named` is the volume that the claim names, if it is there.
pub(super) fn claim(
    claim: &PersistentVolumeClaim,
    named: Option<Arc<PersistentVolume>>,
    all: Vec<Arc<PersistentVolume>>,
    class: Option<&StorageClass>,
) -> ClaimPlan {
    let name = volume_of(claim);
    if name.is_empty() {
        return unbound(claim, all, class);
    }
    let complete = note(claim, BIND_COMPLETED).is_some();
    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
    match named {
        None if complete => ClaimPlan::Lost(
            "Bound claim has lost its PersistentVolume. Data on the volume is lost!".to_owned(),
        ),
        None => ClaimPlan::Wait(None),
        Some(volume) if is_for(&volume, claim) => {
            let bound = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
            if complete && phase == Some("Bound") && bound {
                grown(claim, volume)
            } else {
                ClaimPlan::Bind(volume)
            }
        }
        Some(volume) => {
            let taken = volume.spec.as_ref().is_some_and(|s| s.claim_ref.is_some());
            match (taken, complete) {
                (false, _) => ClaimPlan::Bind(volume),
                (true, true) => ClaimPlan::Lost(
                    "Two claims are bound to the same volume, this one is bound incorrectly"
                        .to_owned(),
                ),
                (true, false) => ClaimPlan::Fail(
                    "FailedBinding",
                    format!("volume {name:?} already bound to a different claim."),
                ),
            }
        }
    }
}

/// What a claim needs that has its volume.
fn grown(claim: &PersistentVolumeClaim, volume: Arc<PersistentVolume>) -> ClaimPlan {
    let (asks, has) = (requested(claim), size(&volume));
    if asks <= has.min(capacity(claim).unwrap_or(has)) {
        return ClaimPlan::Keep;
    }
    let by = volume.metadata.annotations.as_ref();
    let by = by.and_then(|a| a.get(ANNOTATION_PROVISIONED_BY));
    if by.is_some_and(|by| by == LOCAL_PATH_PROVISIONER) {
        ClaimPlan::Grow(volume)
    } else {
        ClaimPlan::AwaitGrowth
    }
}

/// What is said of a claim without a class.
pub(super) const NO_CLASS: &str =
    "no persistent volumes available for this claim and no storage class is set";

/// The class that claims get which state none: of several defaults the newest.
pub(super) fn default_class(all: Vec<Arc<StorageClass>>) -> Option<String> {
    let is_default = |class: &Arc<StorageClass>| {
        let notes = class.metadata.annotations.as_ref();
        let is = |key: &&str| notes.and_then(|n| n.get(*key)).is_some_and(|v| v == "true");
        ANNOTATIONS_DEFAULT_CLASS.iter().any(is)
    };
    let newest = all.into_iter().filter(is_default).max_by(|a, b| {
        let (a, b) = (&a.metadata, &b.metadata);
        let by_age = a.creation_timestamp.cmp(&b.creation_timestamp);
        by_age.then_with(|| b.name.cmp(&a.name))
    });
    newest?.metadata.name.clone()
}

fn unbound(
    claim: &PersistentVolumeClaim,
    all: Vec<Arc<PersistentVolume>>,
    class: Option<&StorageClass>,
) -> ClaimPlan {
    let delayed = class.is_some_and(waits_for_pod);
    let node = note(claim, SELECTED_NODE);
    // The scheduler reserves a volume for a claim that waits for its pod.
    let free = all
        .into_iter()
        .filter(|volume| !delayed || is_for(volume, claim));
    if let Some(volume) = suited(free, claim).into_iter().next() {
        return ClaimPlan::Bind(volume);
    }
    let name = class_of(claim);
    let Some(class) = class else {
        return if !states_class(claim) {
            ClaimPlan::TakeDefaultClass
        } else if name.is_empty() {
            ClaimPlan::Wait(Some(("FailedBinding", NO_CLASS.to_owned())))
        } else {
            ClaimPlan::Fail(
                "ProvisioningFailed",
                format!("storageclass.storage.k8s.io {name:?} not found"),
            )
        };
    };
    if delayed && node.is_none() {
        return ClaimPlan::Wait(Some((
            "WaitForFirstConsumer",
            "waiting for first consumer to be created before binding".to_owned(),
        )));
    }
    match (class.provisioner.as_str(), node) {
        (LOCAL_PATH_PROVISIONER, Some(node)) => ClaimPlan::Provision(node.to_owned()),
        (LOCAL_PATH_PROVISIONER, None) => ClaimPlan::Fail(
            "ProvisioningFailed",
            format!(
                "storage class {name:?} binds at once, but a directory needs a node: its \
                 volumeBindingMode must be WaitForFirstConsumer"
            ),
        ),
        (NO_PROVISIONER, _) => ClaimPlan::Wait(Some((
            "FailedBinding",
            "no persistent volumes available for this claim".to_owned(),
        ))),
        (other, _) if note(claim, STORAGE_PROVISIONER) == Some(other) => ClaimPlan::Wait(Some((
            "ExternalProvisioning",
            format!(
                "Waiting for a volume to be created either by the external provisioner \
                     '{other}' or manually by the system administrator."
            ),
        ))),
        (other, _) => ClaimPlan::AskProvisioner(other.to_owned()),
    }
}

/// `claim` is the one that the volume is for, while it is there.
pub(super) fn volume(
    volume: &PersistentVolume,
    claim: Option<&PersistentVolumeClaim>,
    is_node: impl Fn(&str) -> bool,
) -> VolumePlan {
    let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref());
    let turn = |to: &'static str| match phase {
        Some(is) if is == to => VolumePlan::Keep,
        _ => VolumePlan::Phase(to),
    };
    if volume.metadata.deletion_timestamp.is_some() {
        return match claim {
            Some(claim) if Some(volume_of(claim)) == volume.metadata.name.as_deref() => {
                VolumePlan::Keep
            }
            _ => VolumePlan::Unprotect,
        };
    }
    let spec = volume.spec.as_ref();
    let Some(reference) = spec.and_then(|s| s.claim_ref.as_ref()) else {
        return turn("Available");
    };
    if reference.uid.as_deref().unwrap_or_default().is_empty() {
        // Reserved for a claim that is still to come, or to be bound.
        return turn("Available");
    }
    if let Some(claim) = claim {
        let named = volume_of(claim);
        return if named.is_empty() || Some(named) == volume.metadata.name.as_deref() {
            turn("Bound")
        } else {
            turn("Released")
        };
    }
    if !matches!(phase, Some("Released" | "Failed")) {
        return VolumePlan::Phase("Released");
    }
    if spec.and_then(|s| s.persistent_volume_reclaim_policy.as_deref()) != Some("Delete")
        || phase == Some("Failed")
    {
        return VolumePlan::Keep;
    }
    let annotations = volume.metadata.annotations.as_ref();
    match annotations.and_then(|a| a.get(ANNOTATION_PROVISIONED_BY)) {
        // Its node removes the directory, and then the volume; if there is none, it is gone.
        Some(by) if by == LOCAL_PATH_PROVISIONER => match node_of(volume) {
            Some(node) if is_node(node) => VolumePlan::Keep,
            _ => VolumePlan::Delete,
        },
        Some(_) => VolumePlan::Keep,
        None => VolumePlan::Fail(format!(
            "error getting deleter volume plugin for volume {:?}: no deletable volume plugin matched",
            volume.metadata.name.as_deref().unwrap_or_default()
        )),
    }
}

/// How a volume names the claim that it is bound to.
pub(super) fn reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("PersistentVolumeClaim".to_owned()),
        namespace: claim.metadata.namespace.clone(),
        name: claim.metadata.name.clone(),
        uid: claim.metadata.uid.clone(),
        resource_version: claim.metadata.resource_version.clone(),
        ..ObjectReference::default()
    }
}

/// A directory of a node, reserved for a claim.
pub(super) fn local(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: &Node,
) -> PersistentVolume {
    let name = format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default());
    let node_name = node.metadata.name.clone().unwrap_or_default();
    let annotations = node.metadata.annotations.as_ref();
    let directory = annotations
        .and_then(|a| a.get(ANNOTATION_VOLUMES_DIR))
        .map_or(FOREIGN_DIRECTORY, String::as_str);
    let labels = node.metadata.labels.as_ref();
    let host = labels.and_then(|l| l.get(LABEL_HOSTNAME)).cloned();
    let asked = claim.spec.clone().unwrap_or_default();
    let requests = asked.resources.and_then(|r| r.requests).unwrap_or_default();
    let capacity = requests.get_key_value("storage");
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            annotations: Some(BTreeMap::from([(
                ANNOTATION_PROVISIONED_BY.to_owned(),
                LOCAL_PATH_PROVISIONER.to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: asked.access_modes,
            capacity: Some(
                capacity
                    .into_iter()
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect(),
            ),
            claim_ref: Some(reference(claim)),
            host_path: Some(HostPathVolumeSource {
                path: format!("{directory}/{name}"),
                type_: Some("DirectoryOrCreate".to_owned()),
            }),
            mount_options: class.mount_options.clone(),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector {
                    node_selector_terms: vec![NodeSelectorTerm {
                        match_expressions: Some(vec![NodeSelectorRequirement {
                            key: LABEL_HOSTNAME.to_owned(),
                            operator: "In".to_owned(),
                            values: Some(vec![host.unwrap_or(node_name)]),
                        }]),
                        match_fields: None,
                    }],
                }),
            }),
            persistent_volume_reclaim_policy: class
                .reclaim_policy
                .clone()
                .or_else(|| Some("Delete".to_owned())),
            storage_class_name: Some(class_of(claim).to_owned()),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    }
}

/// The node that a volume is pinned to, as [`local`] does it.
fn node_of(volume: &PersistentVolume) -> Option<&str> {
    let affinity = volume.spec.as_ref()?.node_affinity.as_ref()?;
    let term = affinity.required.as_ref()?.node_selector_terms.first()?;
    let requirement = term.match_expressions.as_ref()?.first()?;
    requirement.values.as_ref()?.first().map(String::as_str)
}

fn note<'a>(claim: &'a PersistentVolumeClaim, name: &str) -> Option<&'a str> {
    let annotations = claim.metadata.annotations.as_ref()?;
    annotations.get(name).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::{Value, json};

    fn read<T: serde::de::DeserializeOwned>(v: Value) -> T {
        serde_json::from_value(v).unwrap()
    }

    fn asks(class: Value, volume: &str, notes: Value, phase: &str) -> PersistentVolumeClaim {
        read(json!({
            "metadata": {"name": "data", "namespace": "shop", "uid": "u1", "annotations": notes},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
                "volumeName": volume, "resources": {"requests": {"storage": "1Gi"}}},
            "status": {"phase": phase},
        }))
    }

    fn has(name: &str, uid: Option<&str>, phase: &str, policy: &str, by: &str) -> PersistentVolume {
        let reference = uid.map(|uid| json!({"namespace": "shop", "name": "data", "uid": uid}));
        read(json!({
            "metadata": {"name": name, "annotations": {ANNOTATION_PROVISIONED_BY: by}},
            "spec": {"capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"],
                "storageClassName": "slow", "claimRef": reference, "hostPath": {"path": "/x"},
                "persistentVolumeReclaimPolicy": policy,
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": LABEL_HOSTNAME, "operator": "In", "values": ["n1"]}]}]}}},
            "status": {"phase": phase},
        }))
    }

    fn class(provisioner: &str, mode: &str) -> StorageClass {
        read(
            json!({"metadata": {"name": "slow"}, "provisioner": provisioner,
            "volumeBindingMode": mode}),
        )
    }

    fn shown(plan: ClaimPlan) -> String {
        match plan {
            ClaimPlan::Bind(volume) => format!("bind {}", volume.metadata.name.as_deref().unwrap()),
            ClaimPlan::Grow(volume) => format!("grow {}", volume.metadata.name.as_deref().unwrap()),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn an_unbound_claim_is_bound_made_for_or_waits() {
        let free = || vec![Arc::new(has("pv", None, "Available", "Retain", "hand"))];
        let check = |class_name: Value, notes: Value, all, class: Option<StorageClass>| {
            let asks = asks(class_name, "", notes, "Pending");
            shown(claim(&asks, None, all, class.as_ref()))
        };
        let (ours, first) = (LOCAL_PATH_PROVISIONER, "WaitForFirstConsumer");
        let slow = || json!("slow");
        let chosen = || json!({SELECTED_NODE: "n1"});
        let lines = [
            check(slow(), json!({}), free(), None),
            check(slow(), json!({}), free(), Some(class(ours, "Immediate"))),
            check(slow(), json!({}), free(), Some(class(ours, first))),
            check(slow(), chosen(), free(), Some(class(ours, first))),
            check(slow(), chosen(), vec![], Some(class(NO_PROVISIONER, first))),
            check(slow(), json!({}), vec![], Some(class(ours, "Immediate"))),
            check(slow(), chosen(), vec![], Some(class("csi.example", first))),
            check(slow(), json!({}), vec![], None),
            check(json!(""), json!({}), vec![], None),
            check(json!(null), json!({}), vec![], None),
        ];
        expect![[r#"
            bind pv
            bind pv
            Wait(Some(("WaitForFirstConsumer", "waiting for first consumer to be created before binding")))
            Provision("n1")
            Wait(Some(("FailedBinding", "no persistent volumes available for this claim")))
            Fail("ProvisioningFailed", "storage class \"slow\" binds at once, but a directory needs a node: its volumeBindingMode must be WaitForFirstConsumer")
            AskProvisioner("csi.example")
            Fail("ProvisioningFailed", "storageclass.storage.k8s.io \"slow\" not found")
            Wait(Some(("FailedBinding", "no persistent volumes available for this claim and no storage class is set")))
            TakeDefaultClass"#]]
        .assert_eq(&lines.join("\n"));
    }

    #[test]
    fn of_several_defaults_the_newest_is_taken() {
        let class = |name: &str, at: &str, default: &str| -> Arc<StorageClass> {
            read(json!({"metadata": {"name": name, "creationTimestamp": at,
                "annotations": {ANNOTATIONS_DEFAULT_CLASS[0]: default}}, "provisioner": "p"}))
        };
        let all = vec![
            class("a", "2026-01-01T00:00:00Z", "true"),
            class("b", "2026-01-02T00:00:00Z", "true"),
            class("c", "2026-01-02T00:00:00Z", "true"),
            class("d", "2026-01-03T00:00:00Z", "false"),
        ];
        assert_eq!(default_class(all).as_deref(), Some("b"));
        assert_eq!(default_class(vec![]), None);
    }

    #[test]
    fn a_claim_that_names_a_volume_gets_that_or_none() {
        let check = |volume: Option<PersistentVolume>, complete: bool| {
            let notes = if complete {
                json!({BIND_COMPLETED: "yes"})
            } else {
                json!({})
            };
            let phase = if complete { "Bound" } else { "Pending" };
            let asks = asks(json!("slow"), "pv", notes, phase);
            shown(claim(&asks, volume.map(Arc::new), vec![], None))
        };
        let pv = |uid, phase| Some(has("pv", uid, phase, "Retain", "hand"));
        let lines = [
            check(None, false),
            check(None, true),
            check(pv(None, "Available"), false),
            check(pv(Some("u1"), "Available"), false),
            check(pv(Some("u1"), "Bound"), true),
            check(pv(Some("other"), "Bound"), false),
            check(pv(Some("other"), "Bound"), true),
        ];
        expect![[r#"
            Wait(None)
            Lost("Bound claim has lost its PersistentVolume. Data on the volume is lost!")
            bind pv
            bind pv
            Keep
            Fail("FailedBinding", "volume \"pv\" already bound to a different claim.")
            Lost("Two claims are bound to the same volume, this one is bound incorrectly")"#]]
        .assert_eq(&lines.join("\n"));
    }

    #[test]
    fn a_claim_that_asks_for_more_grows_or_waits() {
        let check = |by: &str, asked: &str, told: Option<&str>| {
            let mut asks = asks(json!("slow"), "pv", json!({BIND_COMPLETED: "yes"}), "Bound");
            let size = |text: &str| read(json!({"storage": text}));
            let resources = asks.spec.as_mut().and_then(|s| s.resources.as_mut());
            resources.unwrap().requests = Some(size(asked));
            asks.status.as_mut().unwrap().capacity = told.map(size);
            let pv = has("pv", Some("u1"), "Bound", "Delete", by);
            shown(claim(&asks, Some(Arc::new(pv)), vec![], None))
        };
        let ours = LOCAL_PATH_PROVISIONER;
        // The volume has 2Gi.
        let lines = [
            check(ours, "2Gi", Some("2Gi")),
            check(ours, "1Gi", Some("2Gi")),
            check(ours, "2Gi", None),
            check(ours, "2049Mi", Some("2Gi")),
            // The volume was told already, the claim was not.
            check(ours, "2Gi", Some("1Gi")),
            check("csi.example", "3Gi", Some("2Gi")),
            check("csi.example", "2Gi", Some("2Gi")),
        ];
        expect![[r#"
            Keep
            Keep
            Keep
            grow pv
            grow pv
            AwaitGrowth
            Keep"#]]
        .assert_eq(&lines.join("\n"));
    }

    #[test]
    fn a_volume_follows_its_claim() {
        let bound = asks(json!("slow"), "pv", json!({}), "Bound");
        let check = |of: PersistentVolume, claim: Option<&PersistentVolumeClaim>, node: bool| {
            format!("{:?}", volume(&of, claim, |_| node))
        };
        let (ours, u1) = (LOCAL_PATH_PROVISIONER, Some("u1"));
        let mut going = has("pv", u1, "Bound", "Delete", ours);
        going.metadata.deletion_timestamp = Some(read(json!("2026-01-01T00:00:00Z")));
        let mut by_hand = has("pv", u1, "Released", "Delete", "");
        by_hand.metadata.annotations = None;
        let lines = [
            check(has("pv", None, "Pending", "Delete", ours), None, true),
            check(has("pv", Some(""), "Available", "Delete", ours), None, true),
            check(has("pv", u1, "Pending", "Delete", ours), Some(&bound), true),
            check(has("pv", u1, "Bound", "Delete", ours), Some(&bound), true),
            check(
                has("other", u1, "Bound", "Delete", ours),
                Some(&bound),
                true,
            ),
            check(has("pv", u1, "Bound", "Delete", ours), None, true),
            check(has("pv", u1, "Released", "Delete", ours), None, true),
            check(has("pv", u1, "Released", "Delete", ours), None, false),
            check(has("pv", u1, "Released", "Retain", ours), None, false),
            check(by_hand, None, true),
            check(going.clone(), Some(&bound), true),
            check(going, None, true),
        ];
        expect![[r#"
            Phase("Available")
            Keep
            Phase("Bound")
            Keep
            Phase("Released")
            Phase("Released")
            Keep
            Delete
            Keep
            Fail("error getting deleter volume plugin for volume \"pv\": no deletable volume plugin matched")
            Keep
            Unprotect"#]]
        .assert_eq(&lines.join("\n"));
    }
}

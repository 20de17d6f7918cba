//! What makes a StatefulSet's pod that one: its name, labels, host name and claims. Pure.

use crate::history::REVISION_HASH;
use crate::pods::{self, controller_reference};
use client::k8s_openapi::api::apps::v1::StatefulSet;
use client::k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use std::collections::BTreeMap;

/// Label: the pod's own name, so that a Service can be for one pod.
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
/// Label: the ordinal (KEP-4017).
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// Name of the set that a pod's name says it is of, and its ordinal.
pub(super) fn parent_and_ordinal(pod: &Pod) -> Option<(&str, i32)> {
    let (parent, ordinal) = pod.metadata.name.as_deref()?.rsplit_once('-')?;
    let digits = !ordinal.is_empty() && ordinal.bytes().all(|b| b.is_ascii_digit());
    Some((parent, ordinal.parse().ok().filter(|_| digits)?))
}

pub(super) fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", name_of(set))
}

/// The revision that a pod was made of.
pub(super) fn revision_of(pod: &Pod) -> &str {
    let labels = pod.metadata.labels.as_ref();
    labels
        .and_then(|l| l.get(REVISION_HASH))
        .map_or("", String::as_str)
}

/// The pod of an ordinal, made of a revision's template.
pub(super) fn pod(
    set: &StatefulSet,
    template: &PodTemplateSpec,
    revision: &str,
    ordinal: i32,
) -> Pod {
    let mut pod = pods::from_template(set, template);
    let name = pod_name(set, ordinal);
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(REVISION_HASH.to_owned(), revision.to_owned());
    labels.extend(labels_of(&name, ordinal));
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name);
    spec.subdomain = set.spec.service_name.clone().filter(|s| !s.is_empty());
    let volumes = spec.volumes.get_or_insert_default();
    for claim in set.spec.volume_claim_templates.iter().flatten() {
        let template = claim.metadata.name.clone().unwrap_or_default();
        // A claim of the set comes before a volume of that name in the template.
        volumes.retain(|v| v.name != template);
        volumes.push(Volume {
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(set, &template, ordinal),
                read_only: Some(false),
            }),
            name: template,
            ..Volume::default()
        });
    }
    pod
}

/// The labels that a pod of the set must have and lacks, if any.
pub(super) fn missing_labels(pod: &Pod) -> Option<BTreeMap<String, String>> {
    let (_, ordinal) = parent_and_ordinal(pod)?;
    let has = pod.metadata.labels.clone().unwrap_or_default();
    let wanted = labels_of(pod.metadata.name.as_deref()?, ordinal);
    let missing: BTreeMap<_, _> = wanted
        .into_iter()
        .filter(|(key, value)| has.get(key) != Some(value))
        .collect();
    (!missing.is_empty()).then_some(missing)
}

fn labels_of(name: &str, ordinal: i32) -> [(String, String); 2] {
    [
        (POD_NAME.to_owned(), name.to_owned()),
        (POD_INDEX.to_owned(), ordinal.to_string()),
    ]
}

/// The claims of an ordinal.
pub(super) fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let selected = set.spec.selector.match_labels.clone().unwrap_or_default();
    let templates = set.spec.volume_claim_templates.iter().flatten();
    templates
        .map(|template| {
            let mut claim = template.clone();
            let name = claim.metadata.name.take().unwrap_or_default();
            claim.metadata.name = Some(claim_name(set, &name, ordinal));
            claim.metadata.namespace.clone_from(&set.metadata.namespace);
            let labels = claim.metadata.labels.get_or_insert_default();
            labels.extend(selected.clone());
            claim.status = None;
            claim
        })
        .collect()
}

fn claim_name(set: &StatefulSet, template: &str, ordinal: i32) -> String {
    format!("{template}-{}-{ordinal}", name_of(set))
}

/// Who must go for a claim to go with it: the set, when claims are deleted with it; the
/// pod, when it is being scaled away and claims go then. Owners of other kinds stay.
///
/// Upstream: "PersistentVolumeClaim retention" in the StatefulSet concepts page.
pub(super) fn claim_owners(
    set: &StatefulSet,
    claim: &PersistentVolumeClaim,
    condemned: Option<&Pod>,
) -> Option<Vec<OwnerReference>> {
    let policy = set.spec.persistent_volume_claim_retention_policy.as_ref();
    let deletes = |when: Option<&String>| when.is_some_and(|w| w == "Delete");
    let with_set = deletes(policy.and_then(|p| p.when_deleted.as_ref()));
    let when_scaled = deletes(policy.and_then(|p| p.when_scaled.as_ref()));
    let has = claim.metadata.owner_references.clone().unwrap_or_default();
    let mut wanted: Vec<_> = has
        .iter()
        .filter(|o| !matches!(o.kind.as_str(), "StatefulSet" | "Pod") || o.controller == Some(true))
        .cloned()
        .collect();
    // A claim that another controls is not ours to delete.
    if !wanted.iter().any(|o| o.controller == Some(true)) {
        match condemned.filter(|_| when_scaled) {
            Some(pod) => wanted.push(plain(controller_reference(pod))),
            None if with_set => wanted.push(plain(controller_reference(set))),
            None => {}
        }
    }
    (wanted != has).then_some(wanted)
}

fn plain(reference: OwnerReference) -> OwnerReference {
    OwnerReference {
        controller: None,
        block_owner_deletion: None,
        ..reference
    }
}

/// Whether a claim goes with an earlier pod of the same name: the next one must wait.
pub(super) fn is_stale(claim: &PersistentVolumeClaim, pod: &str) -> bool {
    let owners = claim.metadata.owner_references.iter().flatten();
    claim.metadata.deletion_timestamp.is_some()
        || owners.into_iter().any(|o| o.kind == "Pod" && o.name == pod)
}

fn name_of(set: &StatefulSet) -> &str {
    set.metadata.name.as_deref().unwrap_or_default()
}

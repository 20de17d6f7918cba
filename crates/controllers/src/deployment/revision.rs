//! Which ReplicaSet is that of the current template, its name, and the revisions that
//! `kubectl rollout history` and `undo` read.

use super::amounts::{self, by_age};
use crate::history::template_hash;
use crate::pods::controller_reference;
use api::constants::ANNOTATION_WOKEN_POD;
use client::k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Annotation: which rollout a set was last used by.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
/// Annotation: rollouts that used it before, with commas.
pub(super) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Annotation: the Deployment's size when the set was last scaled.
pub(super) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
/// Annotation: the same with the surge.
pub(super) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// Label that tells sets of one Deployment apart.
pub(super) const TEMPLATE_HASH: &str = "pod-template-hash";
/// Longest revision history; the oldest entries go.
const HISTORY_CHARS_MAX: usize = 2000;
/// Annotations that belong to the Deployment alone.
const NOT_COPIED: [&str; 7] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "deprecated.deployment.rollback.to",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    ANNOTATION_WOKEN_POD,
];

type Annotations = BTreeMap<String, String>;

/// The set of the current template (the oldest, should there be several) and the others.
pub(super) fn split(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
) -> (Option<Arc<ReplicaSet>>, Vec<Arc<ReplicaSet>>) {
    let mut old = by_age(sets);
    let new = old
        .iter()
        .position(|set| same_template(set, deployment))
        .map(|at| old.remove(at));
    (new, old)
}

/// Whether a set makes pods of a Deployment's current template.
pub(super) fn same_template(set: &ReplicaSet, deployment: &Deployment) -> bool {
    let Some(theirs) = &set.spec.template else {
        return false;
    };
    let ours = &deployment.spec.template;
    if theirs.spec != ours.spec {
        return false;
    }
    let mut theirs = theirs.metadata.clone().unwrap_or_default();
    let mut ours = ours.metadata.clone().unwrap_or_default();
    for meta in [&mut theirs, &mut ours] {
        let labels = meta.labels.get_or_insert_default();
        labels.remove(TEMPLATE_HASH);
        meta.annotations.get_or_insert_default();
        // Go writes a null time into templates where it is not left out.
        meta.creation_timestamp = None;
    }
    theirs == ours
}

/// A set's revision; zero when it has none.
pub(super) fn revision(annotations: Option<&Annotations>) -> i64 {
    annotations
        .and_then(|a| a.get(REVISION)?.parse().ok())
        .unwrap_or(0)
}

/// The revision of the rollout that follows those of the old sets.
pub(super) fn next_revision(old: &[Arc<ReplicaSet>]) -> i64 {
    old.iter()
        .map(|s| revision(s.metadata.annotations.as_ref()))
        .max()
        .unwrap_or(0)
        + 1
}

/// The annotations that the set of the current template should have besides those about
/// sizes: the Deployment's, its revision, and the history of revisions.
pub(super) fn annotations(
    deployment: &Deployment,
    known: Option<&ReplicaSet>,
    next: i64,
) -> Annotations {
    let mut wanted: Annotations = deployment
        .metadata
        .annotations
        .iter()
        .flatten()
        .filter(|(key, _)| !NOT_COPIED.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let had = known.and_then(|s| s.metadata.annotations.as_ref());
    let before = revision(had);
    wanted.insert(REVISION.to_owned(), before.max(next).to_string());
    if before > 0 && before < next {
        let mut history = had
            .and_then(|a| a.get(REVISION_HISTORY))
            .map(|h| format!("{h},"))
            .unwrap_or_default();
        history.push_str(&before.to_string());
        while history.len() > HISTORY_CHARS_MAX {
            let Some((_, rest)) = history.split_once(',') else {
                break;
            };
            history = rest.to_owned();
        }
        wanted.insert(REVISION_HISTORY.to_owned(), history);
    }
    wanted
}

/// The annotations about sizes.
pub(super) fn size_annotations(deployment: &Deployment) -> Annotations {
    let wanted = amounts::desired(deployment);
    let (surge, _) = amounts::fenceposts(deployment);
    Annotations::from([
        (DESIRED_REPLICAS.to_owned(), wanted.to_string()),
        (
            MAX_REPLICAS.to_owned(),
            wanted.saturating_add(surge).to_string(),
        ),
    ])
}

/// The annotation that tells a set which pod of its runs already, when this Deployment was
/// last changed by being woken; else an empty one in the place of what was told before.
pub(super) fn woken_pod(deployment: &Deployment, set: &ReplicaSet) -> Option<(String, String)> {
    let told = set.metadata.annotations.as_ref();
    let told = told.and_then(|a| a.get(ANNOTATION_WOKEN_POD));
    let annotations = deployment.metadata.annotations.as_ref();
    let place = annotations
        .and_then(|a| a.get(ANNOTATION_WOKEN_POD)?.split_once('@'))
        .filter(|(_, generation)| generation.parse().ok() == deployment.metadata.generation)
        .map_or("", |(place, _)| place);
    (told.map_or("", String::as_str) != place)
        .then(|| (ANNOTATION_WOKEN_POD.to_owned(), place.to_owned()))
}

/// The set of the current template, to be created with `replicas` pods.
pub(super) fn new_set(deployment: &Deployment, next: i64, replicas: i32) -> ReplicaSet {
    let collisions = deployment
        .status
        .as_ref()
        .and_then(|s| s.collision_count)
        .unwrap_or(0);
    let hash = template_hash(&deployment.spec.template, collisions);
    let mut template = deployment.spec.template.clone();
    let meta = template.metadata.get_or_insert_default();
    let labels = meta.labels.get_or_insert_default();
    labels.insert(TEMPLATE_HASH.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = deployment.spec.selector.clone();
    selector
        .match_labels
        .get_or_insert_default()
        .insert(TEMPLATE_HASH.to_owned(), hash.clone());
    let mut annotations = annotations(deployment, None, next);
    annotations.extend(size_annotations(deployment));
    ReplicaSet {
        metadata: ObjectMeta {
            name: deployment
                .metadata
                .name
                .as_ref()
                .map(|name| format!("{name}-{hash}")),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: ReplicaSetSpec {
            replicas: Some(replicas),
            min_ready_seconds: deployment.spec.min_ready_seconds,
            selector,
            template: Some(template),
        },
        status: None,
    }
}

//! Revisions of a pod template: the ControllerRevisions of StatefulSets and DaemonSets, by
//! which their pods are told apart and which `kubectl rollout history` and `undo` read.
//!
//! Deployments keep theirs as ReplicaSets. Start with [`sync`].

use crate::context::named;
use crate::error::Error;
use crate::pods::controller_reference;
use client::ObjectKey;
use client::informer::Kind;
use client::k8s_openapi::api::apps::v1::ControllerRevision;
use client::k8s_openapi::api::core::v1::PodTemplateSpec;
use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use client::k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// Label of pods: which revision they were made of.
pub(crate) const REVISION_HASH: &str = "controller-revision-hash";
/// Names tried for a revision whose hash another template has.
const COLLISIONS_MAX: usize = 16;

/// The template that a revision keeps.
pub(crate) fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.0.get("spec")?.get("template")?.clone();
    if let Value::Object(map) = &mut template {
        map.remove("$patch");
    }
    // From text as everything is: another way of reading pods is compiled for nothing else.
    serde_json::from_str(&template.to_string()).ok()
}

/// Oldest first.
pub(crate) fn sorted(mut revisions: Vec<Arc<ControllerRevision>>) -> Vec<Arc<ControllerRevision>> {
    revisions.sort_by(|a, b| {
        let age = |r: &ControllerRevision| {
            (
                r.revision,
                r.metadata.creation_timestamp.as_ref().map(|t| t.0),
                r.metadata.name.clone(),
            )
        };
        age(a).cmp(&age(b))
    });
    revisions
}

/// What must be done so that the newest revision is that of the current template.
#[derive(Debug)]
enum Step {
    Keep(Arc<ControllerRevision>),
    /// It was used before: it becomes the newest.
    Renumber(Arc<ControllerRevision>, i64),
    Create(i64),
}

/// `known` oldest first.
fn step(wanted: &PodTemplateSpec, known: &[Arc<ControllerRevision>]) -> Step {
    let next = known.last().and_then(|r| r.revision).unwrap_or(0) + 1;
    let wanted = comparable(wanted.clone());
    let same = known
        .iter()
        .rfind(|r| template(r).map(comparable).as_ref() == Some(&wanted));
    match same {
        None => Step::Create(next),
        Some(r) if r.revision == known.last().and_then(|r| r.revision) => Step::Keep(r.clone()),
        Some(r) => Step::Renumber(r.clone(), next),
    }
}

/// Go writes a null time into templates where it is not left out.
fn comparable(mut template: PodTemplateSpec) -> PodTemplateSpec {
    let meta = template.metadata.get_or_insert_default();
    meta.creation_timestamp = None;
    meta.labels.get_or_insert_default();
    meta.annotations.get_or_insert_default();
    template
}

/// A new revision of a template.
fn revision<O: Kind>(
    owner: &O,
    wanted: &PodTemplateSpec,
    label: &str,
    number: i64,
    collisions: i32,
) -> ControllerRevision {
    let hash = template_hash(wanted, collisions);
    let mut labels = wanted
        .metadata
        .as_ref()
        .and_then(|m| m.labels.clone())
        .unwrap_or_default();
    labels.insert(label.to_owned(), hash.clone());
    let mut kept = json!(wanted);
    // So that applying it as a strategic merge patch leaves nothing of another template.
    kept["$patch"] = "replace".into();
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", name_of(owner))),
            namespace: owner.meta().namespace.clone(),
            labels: Some(labels),
            annotations: annotations(owner),
            owner_references: Some(vec![controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        data: RawExtension(json!({"spec": {"template": kept}})),
        revision: Some(number),
    }
}

/// The owner's annotations (`kubernetes.io/change-cause` is what the history shows), but not
/// the copy of all of it that `kubectl apply` leaves.
fn annotations<O: Kind>(owner: &O) -> Option<BTreeMap<String, String>> {
    let mut kept = owner.meta().annotations.clone()?;
    kept.remove("kubectl.kubernetes.io/last-applied-configuration");
    Some(kept)
}

/// The newest revision, which is that of `wanted`: kept, renumbered or made. `label` is the
/// key under which its hash stands.
pub(crate) async fn sync<O: Kind>(
    client: &kube::Client,
    owner: &O,
    wanted: &PodTemplateSpec,
    label: &str,
    known: &[Arc<ControllerRevision>],
    collisions: &mut Option<i32>,
) -> Result<Arc<ControllerRevision>, Error> {
    let namespace = owner.meta().namespace.as_deref().unwrap_or_default();
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace);
    let number = match step(wanted, known) {
        Step::Keep(revision) => return Ok(revision),
        Step::Renumber(revision, number) => return renumber(&api, owner, &revision, number).await,
        Step::Create(number) => number,
    };
    for _ in 0..COLLISIONS_MAX {
        let made = revision(owner, wanted, label, number, collisions.unwrap_or(0));
        let key = ObjectKey::of(&made);
        let source = match api.create(&PostParams::default(), &made).await {
            Ok(made) => return Ok(Arc::new(made)),
            Err(source) => source,
        };
        let what = named::<ControllerRevision>(&key);
        if !client::is_already_exists(&source) {
            return Err(Error::Create { what, source });
        }
        let there = api.get(&key.name).await.map_err(|source| Error::Get {
            what: what.clone(),
            source,
        })?;
        let ours = there.metadata.owner_references == made.metadata.owner_references;
        if ours && template(&there).map(comparable) == Some(comparable(wanted.clone())) {
            return Ok(Arc::new(there));
        }
        *collisions = Some(collisions.unwrap_or(0) + 1);
    }
    let what = format!("ControllerRevision of {}", name_of(owner));
    let status = kube::core::Status::failure("too many templates of one hash", "AlreadyExists");
    let source = kube::Error::Api(status.boxed());
    Err(Error::Create { what, source })
}

async fn renumber<O: Kind>(
    api: &Api<ControllerRevision>,
    owner: &O,
    revision: &ControllerRevision,
    number: i64,
) -> Result<Arc<ControllerRevision>, Error> {
    let key = ObjectKey::of(revision);
    let patch = json!({
        "metadata": {
            "uid": revision.metadata.uid,
            "resourceVersion": revision.metadata.resource_version,
            "annotations": annotations(owner),
        },
        "revision": number,
    });
    api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map(Arc::new)
        .map_err(|source| Error::Update {
            what: named::<ControllerRevision>(&key),
            source,
        })
}

/// Those that go: the oldest of those that nothing uses, until `limit` of them are left.
pub(crate) fn surplus(
    known: &[Arc<ControllerRevision>],
    used: &HashSet<&str>,
    limit: Option<i32>,
) -> Vec<Arc<ControllerRevision>> {
    let unused: Vec<_> = known
        .iter()
        .filter(|r| !used.contains(r.metadata.name.as_deref().unwrap_or_default()))
        .cloned()
        .collect();
    let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or(0);
    let surplus = unused.len().saturating_sub(limit);
    unused.into_iter().take(surplus).collect()
}

/// Deletes a revision.
pub(crate) async fn delete(
    client: &kube::Client,
    revision: &ControllerRevision,
) -> Result<(), Error> {
    let key = ObjectKey::of(revision);
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), &key.namespace);
    match api.delete(&key.name, &DeleteParams::background()).await {
        Ok(_) => Ok(()),
        Err(error) if client::is_not_found(&error) => Ok(()),
        Err(source) => Err(Error::Delete {
            what: named::<ControllerRevision>(&key),
            source,
        }),
    }
}

/// A short name for a template: FNV-1a over its JSON (whose maps are sorted) and the
/// number of collisions, in letters and digits that spell no words.
pub(crate) fn template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut hash = 0x811c_9dc5_u32;
    let mut feed = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    };
    // What came from JSON can be written as JSON.
    feed(&serde_json::to_vec(template).unwrap_or_default());
    if collisions > 0 {
        feed(&collisions.to_le_bytes());
    }
    hash.to_string()
        .bytes()
        .map(|digit| char::from(LETTERS[usize::from(digit) % LETTERS.len()]))
        .collect()
}

fn name_of<O: Kind>(owner: &O) -> &str {
    owner.meta().name.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::object;
    use client::k8s_openapi::api::apps::v1::StatefulSet;

    fn of_image(image: &str) -> PodTemplateSpec {
        object(json!({"metadata": {"labels": {"app": "db"}},
            "spec": {"containers": [{"name": "c", "image": image}]}}))
    }

    fn known(image: &str, number: i64) -> Arc<ControllerRevision> {
        let owner: StatefulSet = object(json!({"metadata": {"name": "db", "uid": "u"},
            "spec": {"selector": {}, "template": {}}}));
        Arc::new(revision(&owner, &of_image(image), "hash", number, 0))
    }

    #[test]
    fn a_template_that_was_used_before_becomes_the_newest_again() {
        let all = [known("a", 1), known("b", 2)];
        assert!(matches!(step(&of_image("b"), &all), Step::Keep(r) if r.revision == Some(2)));
        assert!(
            matches!(step(&of_image("a"), &all), Step::Renumber(r, 3) if r.revision == Some(1))
        );
        assert!(matches!(step(&of_image("c"), &all), Step::Create(3)));
        assert!(matches!(step(&of_image("c"), &[]), Step::Create(1)));
    }

    #[test]
    fn a_revision_keeps_the_whole_template_and_says_that_it_replaces() {
        let kept = known("a", 1);
        assert_eq!(kept.data.0["spec"]["template"]["$patch"], "replace");
        assert_eq!(template(&kept), Some(of_image("a")));
        let labels = kept.metadata.labels.clone().unwrap_or_default();
        assert_eq!(labels["app"], "db");
        assert_eq!(
            kept.metadata.name.as_deref(),
            Some(format!("db-{}", labels["hash"]).as_str())
        );
    }

    #[test]
    fn only_what_nothing_uses_goes_the_oldest_first() {
        let all = [known("a", 1), known("b", 2), known("c", 3)];
        let first = all[0].metadata.name.as_deref().unwrap_or_default();
        let gone = surplus(&all, &HashSet::from([first]), Some(1));
        assert_eq!(gone.len(), 1);
        assert_eq!(gone[0].revision, Some(2));
    }
}

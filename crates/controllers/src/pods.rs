//! What controllers ask of pods: whether they run, are ready, are available, and how
//! they are made of a template, adopted and deleted.

use crate::context::{Context, named};
use crate::error::Error;
use crate::writes::Unseen;
use apimachinery::selector::LabelSelector;
use client::informer::Kind;
use client::k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use client::k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use client::k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use client::{Informer, ObjectKey, labels};
use jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use std::sync::Arc;
use std::time::Duration;

/// A pod's phase.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .unwrap_or("Pending")
}

/// Whether a pod has run to its end.
pub(crate) fn has_ended(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether a pod runs or will, and is not being deleted.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !has_ended(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// A condition of a pod.
pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == kind)
}

/// Since when a pod is ready; none when it is not.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready")
        .filter(|c| c.status == "True")
        .map(|c| {
            c.last_transition_time
                .as_ref()
                .map_or(Timestamp::MIN, |t| t.0)
        })
}

/// Whether a pod is ready.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    ready_since(pod).is_some()
}

/// How long until a pod that is ready has been so for `min_ready`; zero when it has.
pub(crate) fn available_in(pod: &Pod, min_ready: Duration, now: Timestamp) -> Option<Duration> {
    let since = ready_since(pod)?;
    if min_ready.is_zero() || since == Timestamp::MIN {
        return Some(Duration::ZERO);
    }
    let been = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    Some(min_ready.saturating_sub(been))
}

/// Seconds of an API field; negative ones count as none.
pub(crate) fn seconds(value: Option<i32>) -> Duration {
    Duration::from_secs(value.and_then(|s| u64::try_from(s).ok()).unwrap_or(0))
}

/// A number or a percentage of `total`.
pub(crate) fn share(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(n) => (*n).max(0),
        IntOrString::String(text) => {
            let percent = text
                .trim_end_matches('%')
                .parse::<i64>()
                .unwrap_or(0)
                .max(0);
            let hundredths = percent * i64::from(total);
            let whole = if round_up {
                (hundredths + 99) / 100
            } else {
                hundredths / 100
            };
            i32::try_from(whole).unwrap_or(i32::MAX)
        }
    }
}

/// A number of things as the API tells it.
pub(crate) fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// The reference by which `owner` controls what it makes.
pub(crate) fn controller_reference<O: Kind>(owner: &O) -> OwnerReference {
    OwnerReference {
        api_version: O::api_version(&()).into_owned(),
        kind: O::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// A pod made of a template, controlled by `owner` and named after it.
pub(crate) fn from_template<O: Kind>(owner: &O, template: &PodTemplateSpec) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    // Longer prefixes are cut so that the API server has room for its suffix.
    let name = owner.meta().name.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: owner.meta().namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Creates a pod for `key`.
pub(crate) async fn create(
    context: &Context,
    unseen: &Unseen,
    key: &ObjectKey,
    pod: &Pod,
) -> Result<Pod, kube::Error> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &key.namespace);
    let made = api.create(&PostParams::default(), pod).await?;
    unseen.wrote(key, &made);
    Ok(made)
}

/// Deletes a pod for `key`, only if it is still that one. Whether it was there.
pub(crate) async fn delete(
    context: &Context,
    unseen: &Unseen,
    key: &ObjectKey,
    pod: &Pod,
) -> Result<bool, Error> {
    let pod_key = ObjectKey::of(pod);
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &pod_key.namespace);
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::background()
    };
    match api.delete(&pod_key.name, &params).await {
        Ok(_) => {
            unseen.deleted(key, pod.metadata.uid.as_deref().unwrap_or_default());
            Ok(true)
        }
        // Gone, or another of the same name: the informer tells.
        Err(error) if client::is_not_found(&error) || client::is_conflict(&error) => Ok(false),
        Err(source) => Err(Error::Delete {
            what: named::<Pod>(&pod_key),
            source,
        }),
    }
}

/// The objects that `owner` controls after it has adopted those without a controller
/// that its selector matches, and has let go of those that it no longer matches.
pub(crate) async fn claim<O, K>(
    client: &kube::Client,
    owner: &O,
    selector: &LabelSelector,
    informer: &Informer<K>,
) -> Result<Vec<Arc<K>>, Error>
where
    O: Kind,
    K: Kind + kube::Resource<Scope = kube::core::NamespaceResourceScope>,
{
    claim_where(client, owner, selector, informer, |_| true).await
}

/// [`claim`], which adopts only those that `fits` picks.
pub(crate) async fn claim_where<O, K>(
    client: &kube::Client,
    owner: &O,
    selector: &LabelSelector,
    informer: &Informer<K>,
    fits: impl Fn(&K) -> bool,
) -> Result<Vec<Arc<K>>, Error>
where
    O: Kind,
    K: Kind + kube::Resource<Scope = kube::core::NamespaceResourceScope>,
{
    let uid = owner.meta().uid.as_deref().unwrap_or_default();
    let namespace = owner.meta().namespace.as_deref().unwrap_or_default();
    let matches = |o: &K| labels::matches(selector, o.meta().labels.as_ref());
    let going = owner.meta().deletion_timestamp.is_some();
    let (mut mine, strangers): (Vec<_>, Vec<_>) = informer
        .owned_by(uid)
        .into_iter()
        .partition(|o| matches(o) || o.meta().deletion_timestamp.is_some());
    if going {
        return Ok(mine);
    }
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    for stranger in strangers {
        change_owners(&api, &*stranger, |owners| owners.retain(|o| o.uid != uid)).await?;
    }
    // A selector that matches everything adopts nothing: it is a mistake.
    if selector.is_empty() {
        return Ok(mine);
    }
    let orphans = informer.orphans(|o| {
        o.meta().namespace.as_deref().unwrap_or_default() == namespace
            && o.meta().deletion_timestamp.is_none()
            && matches(o)
            && fits(o)
    });
    for orphan in orphans {
        let reference = controller_reference(owner);
        change_owners(&api, &*orphan, |owners| owners.push(reference)).await?;
        mine.push(orphan);
    }
    Ok(mine)
}

/// Writes other owner references, only if the object has not changed meanwhile.
async fn change_owners<K: Kind>(
    api: &Api<K>,
    object: &K,
    change: impl FnOnce(&mut Vec<OwnerReference>),
) -> Result<(), Error> {
    let key = ObjectKey::of(object);
    let mut owners = object.meta().owner_references.clone().unwrap_or_default();
    change(&mut owners);
    let patch = serde_json::json!({"metadata": {
        "uid": object.meta().uid,
        "resourceVersion": object.meta().resource_version,
        "ownerReferences": owners,
    }});
    match api
        .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
        .await
    {
        Ok(_) => Ok(()),
        Err(error) if client::is_not_found(&error) => Ok(()),
        Err(source) => Err(Error::Update {
            what: named::<K>(&key),
            source,
        }),
    }
}

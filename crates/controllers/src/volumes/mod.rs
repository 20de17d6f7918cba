//! Claims get volumes: bound to one that is there, or to a directory that is made for them on the
//! node where their first pod is to run. What is given up is reclaimed, what is in use stays.
//!
//! The reference is upstream's persistent volume controller with the external provisioner's part
//! for the site's own class, and the controllers of protection and of ephemeral volumes. Where a
//! claim's first pod runs is the scheduler's choice; the directory itself is the node's to make
//! and to remove. Start with [`plan`].

mod plan;

use crate::context::Context;
use crate::error::Error;
use api::constants::{
    ANNOTATION_PROVISIONED_BY, ANNOTATION_VOLUMES_DIR, FINALIZER_CLAIM_IN_USE,
    FINALIZER_VOLUME_IN_USE, LABEL_HOSTNAME, LOCAL_PATH_PROVISIONER,
};
use client::k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use client::k8s_openapi::api::storage::v1::StorageClass;
use client::volumes::{
    claim_of, claimed_by, claims_of, class_of, is_for, made_for, requested, size, volume_of,
};
use client::{EventRecorder, Informer, ObjectKey, Outcome, WorkQueue};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use plan::{ClaimPlan, VolumePlan};
use serde_json::{Value, json};
use std::sync::Arc;

const NAME: &str = "persistentvolume-controller";
const WORKERS: usize = 2;
/// Where volumes lie on a node that does not say it: the usual place of such directories.
const FOREIGN_DIRECTORY: &str = "/opt/local-path-provisioner";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";

struct Controller {
    context: Context,
    recorder: EventRecorder,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
}

pub(crate) fn start(context: &Context) {
    let controller = Arc::new(Controller {
        context: context.clone(),
        recorder: context.recorder(NAME),
        claims: context.informers.get(),
        volumes: context.informers.get(),
        classes: context.informers.get(),
        pods: context.informers.get(),
        nodes: context.informers.get(),
    });
    let claims = context.queue::<ObjectKey>();
    let volumes = context.queue::<ObjectKey>();
    controller.follow(&claims, &volumes);
    let ready = || {
        vec![
            controller.claims.ready(),
            controller.volumes.ready(),
            controller.classes.ready(),
            controller.pods.ready(),
            controller.nodes.ready(),
        ]
    };
    let this = controller.clone();
    context.work(
        "persistentvolumeclaims",
        claims,
        WORKERS,
        ready(),
        move |key| {
            let this = this.clone();
            async move { this.reconcile_claim(&key).await }
        },
    );
    let this = controller.clone();
    context.work("persistentvolumes", volumes, WORKERS, ready(), move |key| {
        let this = this.clone();
        async move { this.reconcile_volume(&key.name).await }
    });
}

impl Controller {
    /// What is to be looked at when something changes.
    fn follow(&self, claims: &WorkQueue<ObjectKey>, volumes: &WorkQueue<ObjectKey>) {
        let context = &self.context;
        {
            let (claims, volumes) = (claims.clone(), volumes.clone());
            context.follow(&self.claims, move |old, new| {
                for claim in [old, new].into_iter().flatten() {
                    claims.add(ObjectKey::of(&**claim));
                    let volume = volume_of(claim);
                    if !volume.is_empty() {
                        volumes.add(ObjectKey::new("", volume));
                    }
                }
            });
        }
        {
            let (claims, volumes, all) = (claims.clone(), volumes.clone(), self.claims.clone());
            context.follow(&self.volumes, move |old, new| {
                for volume in [old, new].into_iter().flatten() {
                    volumes.add(ObjectKey::of(&**volume));
                    match claimed_by(volume) {
                        Some(claim) => claims.add(claim),
                        None => add_unbound(&all, &claims),
                    }
                }
            });
        }
        {
            let (claims, all) = (claims.clone(), self.claims.clone());
            context.follow(&self.classes, move |_, _| add_unbound(&all, &claims));
        }
        {
            let claims = claims.clone();
            context.follow(&self.pods, move |old, new| {
                for pod in [old, new].into_iter().flatten() {
                    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
                    for (name, _) in claims_of(pod) {
                        claims.add(ObjectKey::new(namespace.clone(), name));
                    }
                }
            });
        }
        let (volumes, all) = (volumes.clone(), self.volumes.clone());
        context.follow(&self.nodes, move |old, new| {
            if old.is_some() && new.is_none() {
                for volume in all.list() {
                    volumes.add(ObjectKey::of(&*volume));
                }
            }
        });
    }

    async fn reconcile_claim(&self, key: &ObjectKey) -> Result<Outcome, Error> {
        let Some(claim) = self.claims.get_key(key) else {
            return self.make_ephemeral(key).await;
        };
        if claim.metadata.deletion_timestamp.is_some() {
            let mut known = self.pods_of(&key.namespace);
            if !known.any(|pod| uses(&pod, &claim)) && !self.is_used(&claim).await? {
                let api: Api<PersistentVolumeClaim> = self.namespaced(&key.namespace);
                self.unprotect(&api, &*claim, FINALIZER_CLAIM_IN_USE)
                    .await?;
            }
            return Ok(Outcome::Done);
        }
        let class = self.classes.get("", class_of(&claim));
        let named = self.volumes.get("", volume_of(&claim));
        match plan::claim(&claim, named, self.volumes.list(), class.as_deref()) {
            ClaimPlan::Keep => {}
            ClaimPlan::Wait(said) => {
                if let Some((reason, message)) = said {
                    self.recorder.normal(&*claim, reason, &message);
                }
                self.claim_status(&claim, &json!({"phase": "Pending"}))
                    .await?;
            }
            ClaimPlan::TakeDefaultClass => match plan::default_class(self.classes.list()) {
                Some(class) => {
                    let patch = json!({"spec": {"storageClassName": class}});
                    self.patch_claim(&claim, &patch).await?;
                }
                None => {
                    self.recorder
                        .normal(&*claim, "FailedBinding", plan::NO_CLASS);
                    self.claim_status(&claim, &json!({"phase": "Pending"}))
                        .await?;
                }
            },
            ClaimPlan::Fail(reason, message) => {
                self.recorder.warning(&*claim, reason, &message);
                self.claim_status(&claim, &json!({"phase": "Pending"}))
                    .await?;
            }
            ClaimPlan::Lost(message) => {
                self.recorder.warning(&*claim, "ClaimLost", &message);
                self.claim_status(&claim, &json!({"phase": "Lost"})).await?;
            }
            ClaimPlan::Bind(volume) => self.bind(&volume, &claim).await?,
            ClaimPlan::Provision(node) => {
                let Some(class) = class else {
                    return Ok(Outcome::Done);
                };
                self.provision(&claim, &class, &node).await?;
            }
            ClaimPlan::Grow(volume) => self.grow(&claim, &volume).await?,
            ClaimPlan::AwaitGrowth => {
                let message = "waiting for an external controller to expand this PVC";
                self.recorder.normal(&*claim, "ExternalExpanding", message);
            }
            ClaimPlan::AskProvisioner(provisioner) => {
                let note = json!({"metadata": {"annotations": {STORAGE_PROVISIONER: provisioner}}});
                self.patch_claim(&claim, &note).await?;
            }
        }
        Ok(Outcome::Done)
    }

    async fn reconcile_volume(&self, name: &str) -> Result<Outcome, Error> {
        let Some(volume) = self.volumes.get("", name) else {
            return Ok(Outcome::Done);
        };
        let claim = match claimed_by(&volume) {
            None => None,
            Some(key) => match self.claims.get_key(&key) {
                Some(claim) => Some(claim),
                // Before it is given up, whoever knows is asked.
                None => self.read_claim(&key).await?.map(Arc::new),
            },
        };
        let claim = claim.filter(|claim| is_for(&volume, claim));
        match plan::volume(&volume, claim.as_deref(), |node| {
            // Only one that says where its volumes are removes them.
            let node = self.nodes.get("", node);
            let notes = node.as_ref().and_then(|n| n.metadata.annotations.as_ref());
            notes.is_some_and(|notes| notes.contains_key(ANNOTATION_VOLUMES_DIR))
        }) {
            VolumePlan::Keep => {}
            VolumePlan::Unprotect => {
                let api: Api<PersistentVolume> = Api::all(self.context.client.clone());
                self.unprotect(&api, &*volume, FINALIZER_VOLUME_IN_USE)
                    .await?;
            }
            VolumePlan::Phase(phase) => {
                self.volume_status(&volume, json!({"phase": phase})).await?
            }
            VolumePlan::Fail(message) => {
                self.recorder
                    .warning(&*volume, "VolumeFailedDelete", &message);
                let status = json!({"phase": "Failed", "message": message});
                self.volume_status(&volume, status).await?;
            }
            VolumePlan::Delete => {
                let api: Api<PersistentVolume> = Api::all(self.context.client.clone());
                api.delete(name, &DeleteParams::default())
                    .await
                    .map_err(|source| Error::Delete {
                        what: format!("PersistentVolume {name}"),
                        source,
                    })?;
            }
        }
        Ok(Outcome::Done)
    }

    /// Makes the claim of a pod's ephemeral volume.
    async fn make_ephemeral(&self, key: &ObjectKey) -> Result<Outcome, Error> {
        for pod in self.pods_of(&key.namespace) {
            if pod.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
            let Some(template) = volumes
                .filter(|v| claim_of(&pod, v) == Some((key.name.clone(), true)))
                .find_map(|v| v.ephemeral.as_ref()?.volume_claim_template.as_ref())
            else {
                continue;
            };
            let mut metadata = template.metadata.clone().unwrap_or_default();
            metadata.name = Some(key.name.clone());
            metadata.owner_references = Some(
                kube::Resource::controller_owner_ref(&*pod, &())
                    .into_iter()
                    .collect(),
            );
            let claim = PersistentVolumeClaim {
                metadata,
                spec: Some(template.spec.clone()),
                status: None,
            };
            let api: Api<PersistentVolumeClaim> = self.namespaced(&key.namespace);
            match api.create(&PostParams::default(), &claim).await {
                Err(source) if !client::is_already_exists(&source) => {
                    return Err(Error::Create {
                        what: format!("PersistentVolumeClaim {key}"),
                        source,
                    });
                }
                _ => {}
            }
        }
        Ok(Outcome::Done)
    }

    /// Both sides name each other, the volume first: a claim that names one has it for good.
    async fn bind(
        &self,
        volume: &PersistentVolume,
        claim: &PersistentVolumeClaim,
    ) -> Result<(), Error> {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
        if reference.is_none_or(|r| r.uid != claim.metadata.uid) {
            let mut patch = json!({
                "metadata": {"resourceVersion": volume.metadata.resource_version},
                "spec": {"claimRef": plan::reference(claim)},
            });
            if reference.is_none() {
                patch["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
            }
            self.patch_volume(name, &patch).await?;
        }
        if volume.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Bound") {
            self.volume_status(volume, json!({"phase": "Bound"}))
                .await?;
        }
        let mut annotations = json!({BIND_COMPLETED: "yes"});
        if volume_of(claim).is_empty() {
            annotations[BOUND_BY_CONTROLLER] = "yes".into();
        }
        let patch = json!({"metadata": {"annotations": annotations}, "spec": {"volumeName": name}});
        self.patch_claim(claim, &patch).await?;
        let spec = volume.spec.clone().unwrap_or_default();
        self.claim_status(
            claim,
            &json!({"phase": "Bound", "accessModes": spec.access_modes, "capacity": spec.capacity}),
        )
        .await
    }

    /// Makes the volume of a claim whose pod is to run on a node; the node makes the directory.
    async fn provision(
        &self,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
        node: &str,
    ) -> Result<(), Error> {
        let Some(node) = self.nodes.get("", node) else {
            // The choice was made for a node that has gone: the scheduler is to choose again.
            let again =
                json!({"metadata": {"annotations": {client::volumes::SELECTED_NODE: null}}});
            return self.patch_claim(claim, &again).await;
        };
        let volume = plan::local(claim, class, &node);
        let name = volume.metadata.name.clone().unwrap_or_default();
        let api: Api<PersistentVolume> = Api::all(self.context.client.clone());
        match api.create(&PostParams::default(), &volume).await {
            Ok(_) => {
                let message = format!("Successfully provisioned volume {name}");
                self.recorder
                    .normal(claim, "ProvisioningSucceeded", &message);
                Ok(())
            }
            Err(error) if client::is_already_exists(&error) => Ok(()),
            Err(source) => Err(Error::Create {
                what: format!("PersistentVolume {name}"),
                source,
            }),
        }
    }

    /// Says that a claim has what it asks for, its volume first.
    async fn grow(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> Result<(), Error> {
        let resources = claim.spec.as_ref().and_then(|s| s.resources.as_ref());
        let requests = resources.and_then(|r| r.requests.as_ref());
        let asked = json!({"storage": requests.and_then(|r| r.get("storage"))});
        if size(volume) < requested(claim) {
            let name = volume.metadata.name.as_deref().unwrap_or_default();
            let patch = json!({
                "metadata": {"resourceVersion": volume.metadata.resource_version},
                "spec": {"capacity": asked},
            });
            self.patch_volume(name, &patch).await?;
        }
        let status = json!({"capacity": asked, "allocatedResources": asked});
        self.claim_status(claim, &status).await?;
        let message = "Resize volume succeeded";
        self.recorder
            .normal(claim, "VolumeResizeSuccessful", message);
        Ok(())
    }

    /// Asks for the pods of now: one may have been placed that is not known yet.
    async fn is_used(&self, claim: &PersistentVolumeClaim) -> Result<bool, Error> {
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), namespace);
        let pods = api.list(&ListParams::default()).await;
        let pods = pods.map_err(|source| Error::List {
            what: "pods".into(),
            source,
        })?;
        Ok(pods.items.iter().any(|pod| uses(pod, claim)))
    }

    fn pods_of(&self, namespace: &str) -> impl Iterator<Item = Arc<Pod>> {
        let all = self.pods.list().into_iter();
        all.filter(move |pod| pod.metadata.namespace.as_deref() == Some(namespace))
    }

    async fn read_claim(&self, key: &ObjectKey) -> Result<Option<PersistentVolumeClaim>, Error> {
        let api: Api<PersistentVolumeClaim> = self.namespaced(&key.namespace);
        api.get_opt(&key.name).await.map_err(|source| Error::Get {
            what: format!("PersistentVolumeClaim {key}"),
            source,
        })
    }

    async fn unprotect<K>(&self, api: &Api<K>, object: &K, finalizer: &str) -> Result<(), Error>
    where
        K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let meta = object.meta();
        let had = meta.finalizers.as_deref().unwrap_or_default();
        let left: Vec<&String> = had.iter().filter(|f| *f != finalizer).collect();
        if left.len() == had.len() {
            return Ok(());
        }
        let name = meta.name.as_deref().unwrap_or_default();
        let patch = json!({"metadata": {
            "resourceVersion": meta.resource_version, "finalizers": left,
        }});
        let patched = api
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        patched.map(drop).map_err(|source| Error::Update {
            what: format!("{} {name}", K::kind(&())),
            source,
        })
    }

    async fn patch_volume(&self, name: &str, patch: &Value) -> Result<(), Error> {
        let api: Api<PersistentVolume> = Api::all(self.context.client.clone());
        let patched = api
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        patched.map(drop).map_err(|source| Error::Update {
            what: format!("PersistentVolume {name}"),
            source,
        })
    }

    async fn volume_status(&self, volume: &PersistentVolume, status: Value) -> Result<(), Error> {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let api: Api<PersistentVolume> = Api::all(self.context.client.clone());
        let patch = Patch::Merge(json!({"status": status}));
        let patched = api
            .patch_status(name, &PatchParams::default(), &patch)
            .await;
        patched.map(drop).map_err(|source| Error::Update {
            what: format!("status of PersistentVolume {name}"),
            source,
        })
    }

    async fn patch_claim(&self, claim: &PersistentVolumeClaim, patch: &Value) -> Result<(), Error> {
        let key = ObjectKey::of(claim);
        let api: Api<PersistentVolumeClaim> = self.namespaced(&key.namespace);
        let patched = api
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        patched.map(drop).map_err(|source| Error::Update {
            what: format!("PersistentVolumeClaim {key}"),
            source,
        })
    }

    /// Writes the status unless it says so already.
    async fn claim_status(
        &self,
        claim: &PersistentVolumeClaim,
        status: &Value,
    ) -> Result<(), Error> {
        let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
        if phase == status["phase"].as_str() && phase != Some("Bound") {
            return Ok(());
        }
        let key = ObjectKey::of(claim);
        let api: Api<PersistentVolumeClaim> = self.namespaced(&key.namespace);
        let patch = Patch::Merge(json!({"status": status}));
        let patched = api
            .patch_status(&key.name, &PatchParams::default(), &patch)
            .await;
        patched.map(drop).map_err(|source| Error::Update {
            what: format!("status of PersistentVolumeClaim {key}"),
            source,
        })
    }

    fn namespaced(&self, namespace: &str) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.context.client.clone(), namespace)
    }
}

fn add_unbound(all: &Informer<PersistentVolumeClaim>, claims: &WorkQueue<ObjectKey>) {
    for claim in all.list() {
        let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
        if phase != Some("Bound") {
            claims.add(ObjectKey::of(&*claim));
        }
    }
}

/// Whether a pod that has a node, and has not ended, has the claim.
fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    let placed = pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
    placed
        && !matches!(phase, Some("Succeeded" | "Failed"))
        && claims_of(pod).any(|(name, made)| {
            Some(name) == claim.metadata.name && !(made && made_for(claim, pod).is_err())
        })
}

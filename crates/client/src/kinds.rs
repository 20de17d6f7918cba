//! The kinds that several parts of the program read. What reads one is compiled in the first
//! crate that names it and shared by those above, so it is named here, below all of them:
//! parts that stand side by side would each bring their own, a tenth of a megabyte for pods
//! alone.

use crate::Informers;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::storage::v1 as storage;
use k8s_openapi::api::{apps::v1 as apps, batch::v1 as batch, core::v1 as core};

/// Starts following all of them.
pub fn follow(informers: &Informers) {
    informers.get::<core::Pod>();
    informers.get::<core::Node>();
    informers.get::<core::Service>();
    informers.get::<core::Namespace>();
    informers.get::<core::ConfigMap>();
    informers.get::<core::Secret>();
    informers.get::<core::ServiceAccount>();
    informers.get::<core::PersistentVolumeClaim>();
    informers.get::<core::PersistentVolume>();
    informers.get::<storage::StorageClass>();
    informers.get::<discovery::EndpointSlice>();
    informers.get::<apps::Deployment>();
    informers.get::<apps::ReplicaSet>();
    informers.get::<apps::StatefulSet>();
    informers.get::<apps::ControllerRevision>();
    informers.get::<batch::Job>();
}

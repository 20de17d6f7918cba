//! What the node must run, kept on disk so that it boots without an API server.

use crate::objects::PodObjects;
use crate::pod::Uid;
use k8s_openapi::api::core::v1 as core;

/// The checkpoint.
pub(crate) struct Checkpoint {}

impl Checkpoint {
    pub(crate) fn put_pod(&self, _pod: &core::Pod) {}
    pub(crate) fn put_objects(&self, _uid: &Uid, _pod: &core::Pod, _objects: &PodObjects) {}
    pub(crate) fn remove_pod(&self, _uid: &Uid) {}
}

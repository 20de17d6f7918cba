//! Aggregation: groups and versions that an extension server answers, as `APIService` objects
//! say. [`remote`] is one such server and how requests are passed on to it, [`settle`] keeps
//! the objects of what is served here, asks extension servers what they have and tells in
//! `Available` whether they answer.
//!
//! The reference is `k8s.io/kube-aggregator/pkg`. Start with [`Aggregator::route`].

pub(crate) mod remote;
mod settle;

pub(crate) use remote::{Remote, forward};
pub(crate) use settle::start;

use crate::config::FrontProxy;
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::sync::Arc;

/// Group and plural of APIServices.
pub(crate) const GROUP: &str = "apiregistration.k8s.io";
pub(crate) const PLURAL: &str = "apiservices";

/// What other servers serve.
#[derive(Default)]
pub(crate) struct Aggregator {
    /// By `GROUP/VERSION`; as many as there are objects. Written by [`settle`] alone.
    remotes: ArcSwap<HashMap<String, Arc<Remote>>>,
    identity: Option<FrontProxy>,
}

impl Aggregator {
    /// `identity` is what extension servers are shown.
    pub(crate) fn new(identity: Option<FrontProxy>) -> Self {
        Self {
            remotes: ArcSwap::default(),
            identity,
        }
    }

    /// What extension servers are shown.
    pub(crate) fn identity(&self) -> Option<&FrontProxy> {
        self.identity.as_ref()
    }

    /// Who answers a path, if it is not this server.
    pub(crate) fn route(&self, path: &str) -> Option<Arc<Remote>> {
        let remotes = self.remotes.load();
        if remotes.is_empty() {
            return None;
        }
        let path = path.strip_prefix("/openapi/v3").unwrap_or(path);
        let mut parts = path.strip_prefix("/apis/")?.splitn(3, '/');
        let (group, version) = (parts.next()?, parts.next()?);
        remotes.get(&format!("{group}/{version}")).cloned()
    }

    /// Everything that other servers serve, in order of group and version.
    pub(crate) fn all(&self) -> Vec<Arc<Remote>> {
        let mut all: Vec<_> = self.remotes.load().values().cloned().collect();
        all.sort_by(|a, b| (&a.group, &a.version).cmp(&(&b.group, &b.version)));
        all
    }
}

//! Aggregation: groups and versions that an extension server answers, as `APIService` objects
//! say. [`remote`] is one such server and how requests are passed on to it, [`settle`] keeps
//! the objects of what is served here, asks extension servers what they have and tells in
//! `Available` whether they answer.
//!
//! The reference is `k8s.io/kube-aggregator/pkg`. Start with [`Aggregator::route`].

pub(crate) mod remote;
mod settle;

pub(crate) use remote::{Part, Remote, forward};
pub(crate) use settle::start;

use crate::config::FrontProxy;
use crate::http::respond::BoxError;
use crate::serving::Identity;
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::watch;

/// Group and plural of APIServices.
pub(crate) const GROUP: &str = "apiregistration.k8s.io";
pub(crate) const PLURAL: &str = "apiservices";

/// What other servers serve.
pub(crate) struct Aggregator {
    /// By `GROUP/VERSION`; as many as there are objects. Written by [`settle`] alone.
    remotes: ArcSwap<HashMap<String, Arc<Remote>>>,
    /// What extension servers are shown.
    identity: Option<Arc<Identity>>,
    /// Counts up when they are shown another: who refused may now answer.
    shown: watch::Sender<u64>,
}

impl Aggregator {
    /// `identity` is what extension servers are shown.
    pub(crate) fn new(identity: Option<&FrontProxy>) -> Result<Self, BoxError> {
        let identity = match identity {
            Some(i) => Some(Identity::new(&i.cert, &i.key)?),
            None => None,
        };
        Ok(Self {
            remotes: ArcSwap::default(),
            identity,
            shown: watch::Sender::default(),
        })
    }

    /// Shows extension servers another certificate of the same authority from now on.
    pub(crate) fn show(&self, cert_pem: &str, key_pem: &str) -> Result<(), BoxError> {
        let identity = (self.identity.as_ref()).ok_or("extension servers are shown none")?;
        identity.replace(cert_pem, key_pem)?;
        self.shown.send_modify(|n| *n += 1);
        Ok(())
    }

    fn identity(&self) -> Option<Arc<Identity>> {
        self.identity.clone()
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

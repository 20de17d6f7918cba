//! What is known of nodes' Leases: since when there was no renewal, and whether the epoch of
//! this silence was written ([`api::partition::Heard`]).

use super::LEASES;
use crate::context::Context;
use crate::error::Error;
use api::partition::{ANNOTATION_EPOCH, Heard, Renewal, epoch_of};
use client::Informer;
use client::k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// By node.
pub(super) struct Contacts {
    origin: Instant,
    heard: Mutex<HashMap<String, Heard>>,
}

impl Contacts {
    /// Follows the Leases from now on.
    pub(super) fn follow(context: &Context, leases: &Informer<Lease>) -> Arc<Self> {
        let contacts = Arc::new(Self {
            origin: Instant::now(),
            heard: Mutex::default(),
        });
        let told = contacts.clone();
        context.follow(leases, move |_, new| {
            if let Some(lease) = new {
                told.told(lease);
            }
        });
        contacts
    }

    /// Milliseconds of the process's own clock.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn told(&self, lease: &Lease) {
        let name = lease.metadata.name.clone().unwrap_or_default();
        let (renewal, now) = (renewal(lease), self.now_ms());
        let mut heard = self.heard.lock();
        match heard.get_mut(&name) {
            Some(heard) => heard.told(renewal, now),
            None => drop(heard.insert(name, Heard::first(renewal, now))),
        }
    }

    /// For how long nothing was heard of a node: at most since this process began.
    pub(super) fn silence(&self, node: &str) -> Duration {
        let now = self.now_ms();
        let heard = self.heard.lock();
        let since_start = Duration::from_millis(now);
        heard.get(node).map_or(since_start, |h| h.silence(now))
    }

    /// Ends the node's epoch, once a silence. Whether it is over: the node may just have
    /// been heard.
    pub(super) async fn fence(&self, context: &Context, node: &str) -> Result<bool, Error> {
        let patch = {
            let heard = self.heard.lock();
            // Without a Lease there is no contact, and one made anew is another epoch.
            let Some(heard) = heard.get(node) else {
                return Ok(true);
            };
            let Some((epoch, version)) = heard.fence() else {
                return Ok(true);
            };
            json!({"metadata": {
                "resourceVersion": version,
                "annotations": {ANNOTATION_EPOCH: epoch.to_string()},
            }})
        };
        let api: Api<Lease> = Api::namespaced(context.client.clone(), LEASES);
        let written = api
            .patch(node, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        match written {
            Ok(lease) => {
                if let Some(heard) = self.heard.lock().get_mut(node) {
                    heard.fenced(renewal(&lease));
                }
                Ok(true)
            }
            Err(error) if client::is_not_found(&error) => Ok(true),
            Err(error) if client::is_conflict(&error) => Ok(false),
            Err(source) => Err(Error::Update {
                what: format!("Lease {node}"),
                source,
            }),
        }
    }
}

fn renewal(lease: &Lease) -> Renewal {
    let meta = &lease.metadata;
    Renewal {
        version: meta.resource_version.clone().unwrap_or_default(),
        renewed: lease
            .spec
            .as_ref()
            .and_then(|s| s.renew_time.as_ref())
            .map(|t| t.0),
        epoch: epoch_of(meta.annotations.as_ref()),
    }
}

//! Sandboxes on standby: made, linked and checked, with no instance, no listener and no task.
//! What wakes them is a request, see `service-proxy`.

use super::{Host, Sandbox, Shared};
use crate::host::container::Container;
use runtime::{ContainerState, Port, RuntimeError, SandboxId};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use tokio::sync::watch;

/// A pod that can be woken, or was and is not yet adopted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standby {
    /// Its sandbox.
    pub id: SandboxId,
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its address.
    pub ip: IpAddr,
    /// Ports of all its containers, those of HTTP guests that declare none included.
    pub ports: Vec<Port>,
    /// An HTTP guest is among its containers.
    pub http: bool,
}

/// Where a sandbox is between standing by and being an ordinary one.
pub(super) struct Phase(AtomicU8);

const ORDINARY: u8 = 0;
const SLEEPS: u8 = 1;
const WOKEN: u8 = 2;

impl Phase {
    pub(super) fn new(standby: bool) -> Self {
        Self(AtomicU8::new(if standby { SLEEPS } else { ORDINARY }))
    }

    pub(super) fn sleeps(&self) -> bool {
        self.0.load(Ordering::SeqCst) == SLEEPS
    }

    /// Whether requests may be given to it that the API tells nothing of.
    pub(super) fn is_listed(&self) -> bool {
        self.0.load(Ordering::SeqCst) != ORDINARY
    }

    pub(super) fn woken(&self) {
        // An ordinary one stays ordinary.
        let _ = self
            .0
            .compare_exchange(SLEEPS, WOKEN, Ordering::SeqCst, Ordering::SeqCst);
    }

    pub(super) fn adopted(&self) {
        self.0.store(ORDINARY, Ordering::SeqCst);
    }
}

impl Host {
    /// Those that can be woken, as they change.
    pub fn standbys(&self) -> watch::Receiver<Arc<Vec<Standby>>> {
        self.shared.standbys.subscribe()
    }

    /// [`runtime::PodRuntime::wake`]; nothing in it waits.
    pub(super) fn wake_now(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let sandbox = self
            .find(id)
            .ok_or_else(|| RuntimeError::NotFound(id.0.clone()))?;
        for container in sandbox.all() {
            container.start().map_err(RuntimeError::StartContainer)?;
        }
        sandbox.standby.woken();
        Ok(())
    }
}

impl Shared {
    pub(super) fn list_standbys_if(&self, changed: &SandboxId) {
        let listed = |sandbox: &Arc<Sandbox>| sandbox.standby.is_listed();
        if self.sandboxes.read().get(changed).is_some_and(listed) {
            self.list_standbys();
        }
    }

    pub(super) fn list_standbys(&self) {
        // Under the lock of the list, so that the newest is told last.
        self.standbys.send_if_modified(|list| {
            let mut now: Vec<_> = self
                .all()
                .iter()
                .filter(|sandbox| sandbox.standby.is_listed())
                .filter_map(|sandbox| sandbox.as_standby())
                .collect();
            now.sort_by(|a, b| a.id.cmp(&b.id));
            let differs = **list != now;
            if differs {
                *list = Arc::new(now);
            }
            differs
        });
    }
}

impl Sandbox {
    /// None while it has no container, or one that ended.
    fn as_standby(&self) -> Option<Standby> {
        let containers = self.all();
        let ended = |container: &Arc<Container>| {
            matches!(container.status().state, ContainerState::Exited(_))
        };
        if containers.is_empty() || containers.iter().any(ended) {
            return None;
        }
        Some(Standby {
            id: self.spec.id.clone(),
            namespace: self.spec.namespace.clone(),
            labels: self.spec.labels.clone(),
            ip: self.spec.ip,
            ports: containers.iter().flat_map(|c| c.ports()).cloned().collect(),
            http: containers.iter().any(|container| container.is_http()),
        })
    }
}

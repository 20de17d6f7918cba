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

/// Who starts what was woken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Woken {
    /// This host, which did.
    Here,
    /// Another runtime that has a sandbox of this name, and is to be asked.
    Elsewhere(SandboxId),
}

/// Of a host, by id. In a new list those that stay are the same pointers in the same order.
pub type Standbys = Arc<Vec<Arc<Standby>>>;

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
    /// Those that can be woken, by id, as they change.
    pub fn standbys(&self) -> watch::Receiver<Standbys> {
        self.shared.standbys.subscribe()
    }

    /// Starts the one at an address, as [`runtime::PodRuntime::wake`] does, if it is here.
    ///
    /// # Errors
    /// When nobody stands by there, or it can't be started.
    pub fn wake_at(&self, ip: IpAddr) -> Result<Woken, RuntimeError> {
        let id = self.shared.standby_at.read().get(&ip).cloned();
        let id = id.ok_or_else(|| RuntimeError::NotFound(format!("standby at {ip}")))?;
        if self.find(&id).is_some_and(|s| s.elsewhere.read().is_some()) {
            return Ok(Woken::Elsewhere(id));
        }
        self.wake_now(&id)?;
        Ok(Woken::Here)
    }

    /// [`runtime::PodRuntime::wake`]; nothing in it waits, not even for the disk.
    pub(super) fn wake_now(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let sandbox = self
            .find(id)
            .ok_or_else(|| RuntimeError::NotFound(id.0.clone()))?;
        // Before a container says that it runs: who looks then must see it awake.
        sandbox.standby.woken();
        for container in sandbox.all() {
            if container.begin().map_err(RuntimeError::StartContainer)? {
                // Until it is on disk the next host would find it asleep, which is as good.
                self.shared.scope.spawn(async move {
                    let kept = tokio::task::spawn_blocking(move || container.keep_begun());
                    drop(kept.await);
                });
            }
        }
        Ok(())
    }
}

impl Shared {
    /// Brings the list in line with one sandbox.
    pub(super) fn list_standby(&self, id: &SandboxId) {
        // Under the lock of the list, so that the newest is told last.
        self.standbys.send_if_modified(|list| {
            let sandbox = self.sandboxes.read().get(id).cloned();
            let listed = sandbox.filter(|sandbox| sandbox.standby.is_listed());
            let now = listed.and_then(|sandbox| sandbox.as_standby());
            let at = list.binary_search_by(|known| known.id.cmp(id));
            match (at, now) {
                (Err(_), None) => return false,
                (Ok(at), Some(now)) if *list[at] == now => return false,
                (Ok(at), Some(now)) => Arc::make_mut(list)[at] = Arc::new(now),
                (Err(at), Some(now)) => {
                    self.standby_at.write().insert(now.ip, id.clone());
                    Arc::make_mut(list).insert(at, Arc::new(now));
                }
                (Ok(at), None) => {
                    let gone = Arc::make_mut(list).remove(at);
                    self.standby_at.write().remove(&gone.ip);
                }
            }
            true
        });
    }
}

impl Sandbox {
    /// None while it has no container, or one that ended.
    fn as_standby(&self) -> Option<Standby> {
        let of = |ports, http| Standby {
            id: self.spec.id.clone(),
            namespace: self.spec.namespace.clone(),
            labels: self.spec.labels.clone(),
            ip: self.spec.ip,
            ports,
            http,
        };
        if let Some(ports) = &*self.elsewhere.read() {
            return Some(of(ports.clone(), false));
        }
        let containers = self.all();
        let ended = |container: &Arc<Container>| {
            matches!(container.status().state, ContainerState::Exited(_))
        };
        if containers.is_empty() || containers.iter().any(ended) {
            return None;
        }
        let ports = containers.iter().flat_map(|c| c.ports()).cloned().collect();
        let http = containers.iter().any(|container| container.is_http());
        Some(of(ports, http))
    }
}

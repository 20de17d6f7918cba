//! Lets requests in as long as there is room: for the guest, for its memory, for the process.

use crate::guest::Bound;
use crate::http::HttpError;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Requests of one guest that wait for room; more are refused as overload.
const WAITING_MAX: usize = 2048;

/// Memory of the pod may also be freed by another container, which tells nobody.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

pub(crate) struct Gate {
    requests: Arc<Semaphore>,
    process: Arc<Semaphore>,
    waiting: AtomicUsize,
    freed: Arc<Notify>,
}

/// Room for one request; given back when dropped.
pub(crate) struct Ticket {
    _request: OwnedSemaphorePermit,
    _instance: OwnedSemaphorePermit,
    freed: Arc<Notify>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.freed.notify_one();
    }
}

impl Gate {
    pub(crate) fn new(requests_max: u32, process: Arc<Semaphore>) -> Self {
        Self {
            requests: Arc::new(Semaphore::new(requests_max.max(1) as usize)),
            process,
            waiting: AtomicUsize::new(0),
            freed: Arc::default(),
        }
    }

    /// Room for a request, at once if there is any.
    pub(crate) async fn enter(&self) -> Result<Ticket, HttpError> {
        if let Ok(request) = self.requests.clone().try_acquire_owned()
            && let Ok(instance) = self.process.clone().try_acquire_owned()
        {
            return Ok(self.ticket(request, instance));
        }
        let _waiting = Waiting::count(&self.waiting)?;
        let request = self.requests.clone().acquire_owned().await;
        let instance = self.process.clone().acquire_owned().await;
        match (request, instance) {
            (Ok(request), Ok(instance)) => Ok(self.ticket(request, instance)),
            _ => Err(HttpError::Stopped),
        }
    }

    /// Waits while the guest's other instances leave no memory for one more.
    pub(crate) async fn memory(&self, bound: &Bound) -> Result<(), HttpError> {
        if fits(bound) {
            return Ok(());
        }
        let _waiting = Waiting::count(&self.waiting)?;
        while !fits(bound) {
            // A timeout is one more reason to look, no error.
            drop(tokio::time::timeout(LOOK_AGAIN, self.freed.notified()).await);
        }
        Ok(())
    }

    fn ticket(&self, request: OwnedSemaphorePermit, instance: OwnedSemaphorePermit) -> Ticket {
        Ticket {
            _request: request,
            _instance: instance,
            freed: self.freed.clone(),
        }
    }
}

/// The only instance may always try: if the limit is too small even for it, that is the
/// container's end and not a wait.
fn fits(bound: &Bound) -> bool {
    let live = bound.live.load(Ordering::Relaxed);
    live == 0 || bound.memory.has_room(live)
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn count(waiting: &'a AtomicUsize) -> Result<Self, HttpError> {
        let this = Self(waiting);
        if waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            return Err(HttpError::Overloaded);
        }
        Ok(this)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

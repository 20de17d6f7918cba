//! Requests of 0.3 guests: one instance serves many, several at a time.
//!
//! The loop that feeds an instance is wasmtime's `ProxyHandler`; here is when instances are
//! made, how long they live and what their end means. Each runs in a task of its own.

use crate::admit::Gate;
use crate::guest::{Bound, HttpOptions};
use crate::http::HttpError;
use crate::running::Ended;
use crate::state::ComponentState;
use crate::ticker::Ticking;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use wasmtime::component::GuestTaskId;
use wasmtime::{Store, StoreContextMut};
use wasmtime_wasi_http::handler::{
    ExpirationError, HandlerState, Instance, InstantiationError, Proxy, ProxyHandler, ShouldAccept,
    WorkerExpiration, WorkerState, WorkerStatus,
};
use wasmtime_wasi_http::p3::bindings::ServicePre;
use wasmtime_wasi_http::{WasiBody, WasiHttpView as _};

/// The engine's convention for 0.3 guests.
const REQUESTS_PER_INSTANCE: u32 = 128;
const REQUESTS_AT_ONCE: usize = 16;

/// A guest that holds its thread can't see that its request expired; some time later its
/// instance is ended from outside.
const STUCK_AFTER: Duration = Duration::from_secs(1);

/// Work after all responses are sent.
const AFTERWARDS_MAX: Duration = Duration::from_secs(60);

/// Instances of a 0.3 guest.
pub(crate) struct Handler03 {
    handler: ProxyHandler<Making>,
    timeout: Duration,
}

impl Handler03 {
    pub(crate) fn new(
        pre: ServicePre<ComponentState>,
        bound: Arc<Bound>,
        gate: Arc<Gate>,
        options: &HttpOptions,
        stopped: CancellationToken,
        failed: Arc<dyn Fn(&HttpError) + Send + Sync>,
    ) -> Self {
        let total_max = options
            .requests_per_instance
            .unwrap_or(REQUESTS_PER_INSTANCE);
        Self {
            timeout: options.timeout,
            handler: ProxyHandler::new(Making {
                pre,
                bound,
                gate,
                rules: Rules {
                    total_max: total_max.max(1) as usize,
                    timeout: options.timeout,
                    idle: options.idle,
                    lifetime: options.lifetime,
                },
                stopped,
                failed,
            }),
        }
    }

    pub(crate) async fn handle(
        &self,
        request: http::Request<WasiBody>,
    ) -> Result<http::Response<WasiBody>, HttpError> {
        let answer = self.handler.handle((), request);
        let late = self.timeout + 2 * STUCK_AFTER;
        let error = match tokio::time::timeout(late, answer).await {
            Ok(Ok(response)) => return Ok(response),
            Ok(Err(error)) => error,
            Err(_) => return Err(HttpError::Timeout(self.timeout)),
        };
        if error.is::<ExpirationError>() {
            return Err(HttpError::Timeout(self.timeout));
        }
        if let Some(failed) = error.downcast_ref::<InstantiationError<()>>() {
            return Err(failure(&failed.error));
        }
        Err(failure(&error))
    }
}

fn failure(error: &wasmtime::Error) -> HttpError {
    if let Some(refused) = error.downcast_ref::<HttpError>() {
        return refused.clone();
    }
    match Ended::of(error) {
        Ended::Exit(code) => HttpError::NoResponse(format!("it exited with code {code}")),
        Ended::OutOfMemory(exceeded) => HttpError::OutOfMemory(exceeded),
        Ended::Trap(message) => HttpError::Trap(message),
    }
}

#[derive(Clone, Copy)]
struct Rules {
    total_max: usize,
    timeout: Duration,
    idle: Duration,
    lifetime: Option<Duration>,
}

/// Makes instances.
struct Making {
    pre: ServicePre<ComponentState>,
    bound: Arc<Bound>,
    gate: Arc<Gate>,
    rules: Rules,
    stopped: CancellationToken,
    failed: Arc<dyn Fn(&HttpError) + Send + Sync>,
}

impl HandlerState for Making {
    type StoreData = ComponentState;
    type WorkerExpiration = Expiration;
    type WorkerState = Worker;

    async fn instantiate(&self) -> wasmtime::Result<Instance<ComponentState, Expiration, Worker>> {
        let shared = &self.bound.program.runtime.shared;
        let slot = shared.concurrent_slots.clone().acquire_owned().await?;
        self.gate
            .memory(&self.bound)
            .await
            .map_err(wasmtime::Error::new)?;
        let ticking = shared.ticker.start();
        let mut store = self.bound.concurrent_store(self.pre.engine());
        let service = self.pre.instantiate_async(&mut store).await?;
        Ok(Instance {
            store,
            proxy: Proxy::P3(service),
            view: ComponentState::http,
            expiration: Expiration {
                rules: self.rules,
                sleep: Box::pin(tokio::time::sleep(self.rules.idle)),
                stopped: Box::pin(self.stopped.clone().cancelled_owned()),
            },
            state: Worker {
                rules: self.rules,
                made: Instant::now(),
                failed: self.failed.clone(),
                _slot: slot,
                _ticking: ticking,
            },
        })
    }
}

/// Ends an instance in time.
struct Expiration {
    rules: Rules,
    sleep: Pin<Box<Sleep>>,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl WorkerExpiration for Expiration {
    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        state: WorkerStatus,
        start: Instant,
    ) -> Poll<()> {
        if self.stopped.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let limit = match state {
            WorkerStatus::Idle => self.rules.idle,
            WorkerStatus::Requests => self.rules.timeout + STUCK_AFTER,
            WorkerStatus::PostReturn => AFTERWARDS_MAX,
        };
        let deadline = tokio::time::Instant::from_std(start + limit);
        if self.sleep.deadline() != deadline {
            self.sleep.as_mut().reset(deadline);
        }
        self.sleep.as_mut().poll(cx)
    }
}

/// An instance at work.
struct Worker {
    rules: Rules,
    made: Instant,
    failed: Arc<dyn Fn(&HttpError) + Send + Sync>,
    _slot: OwnedSemaphorePermit,
    _ticking: Ticking,
}

impl WorkerState for Worker {
    type StoreData = ComponentState;
    type RequestData = ();

    fn should_accept_request(&self, at_once: usize, total: usize) -> ShouldAccept {
        // One that was just made serves at least what it was made for.
        let old = |lifetime| total > 0 && self.made.elapsed() >= lifetime;
        if total >= self.rules.total_max || self.rules.lifetime.is_some_and(old) {
            ShouldAccept::Never
        } else if at_once >= REQUESTS_AT_ONCE {
            ShouldAccept::No
        } else {
            ShouldAccept::Yes
        }
    }

    fn on_request_start(
        &self,
        _store: StoreContextMut<'_, ComponentState>,
        (): (),
        _task: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + 'static + Send + Sync>> {
        Box::pin(tokio::time::sleep(self.rules.timeout))
    }

    fn drop(&self, store: Store<ComponentState>, result: Result<(), wasmtime::Error>) {
        drop(store);
        if let Err(error) = result {
            (self.failed)(&failure(&error));
        }
    }
}

//! Guests that answer HTTP requests.
//!
//! A 0.2 guest's request runs inside the caller's own task: the guest is polled first by
//! [`HttpGuest::handle`] and then, once the response has begun, by the response's body. No task,
//! channel or copy is between the connection and the guest. If the caller goes away before
//! the guest is done, the rest runs in a task of its own, because a guest may do work that must
//! not stop half-way. Fresh and reused instances differ only in [`Shared::instance`].

use crate::admit::{Gate, Ticket};
use crate::guest::{Bound, HttpOptions};
use crate::http03::Handler03;
use crate::limits::MemoryExceeded;
use crate::program::Code;
use crate::running::{Ended, Metered};
use crate::state::ComponentState;
use crate::ticker::Ticking;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wasmtime::Store;
use wasmtime_wasi_http::WasiHttpView as _;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::p2::bindings::{Proxy, ProxyPre};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

/// How long a guest may go on after its caller has gone or its response has ended.
const AFTERWARDS_MAX: Duration = Duration::from_secs(60);

/// Between looks at instances that are ending.
const STOP_LOOK: Duration = Duration::from_millis(5);

/// Errors of request and response bodies.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a request got no (whole) response from the guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// The guest trapped; the message holds the reason and a backtrace.
    #[error("guest trapped: {0}")]
    Trap(String),
    /// The guest needed more memory than its container may have.
    #[error("guest ran out of memory: {0}")]
    OutOfMemory(MemoryExceeded),
    /// No response began in time.
    #[error("guest did not answer within {0:?}")]
    Timeout(Duration),
    /// Too many requests wait already.
    #[error("guest has too many requests waiting")]
    Overloaded,
    /// The guest ended, or answered with an error instead of a response.
    #[error("guest gave no response: {0}")]
    NoResponse(String),
    /// The guest was told to stop.
    #[error("guest is stopped")]
    Stopped,
}

/// A program that answers requests, tied to a container. Clones are the same guest.
#[derive(Clone)]
pub struct HttpGuest {
    shared: Arc<Shared>,
}

struct Shared {
    bound: Arc<Bound>,
    options: HttpOptions,
    requests_per_instance: u32,
    gate: Arc<Gate>,
    /// For a 0.3 guest.
    concurrent: Option<Handler03>,
    warm: Mutex<WarmStack>,
    requests: AtomicU64,
    in_flight: AtomicUsize,
    out_of_memory: CancellationToken,
    stopped: CancellationToken,
    tasks: TaskTracker,
}

struct Instance {
    store: Store<ComponentState>,
    proxy: Proxy,
    served: u32,
    made: Instant,
}

/// Instances that wait for their next request, the last used on top.
#[derive(Default)]
struct WarmStack {
    instances: Vec<Warm>,
    /// A task ends those that nobody uses. It stays while any were there lately: under load
    /// the stack is empty every few requests, and a task for each would cost more than they do.
    swept: bool,
}

struct Warm {
    instance: Instance,
    since: Instant,
    _slot: OwnedSemaphorePermit,
}

impl HttpGuest {
    pub(crate) fn new(bound: Bound, options: HttpOptions) -> Self {
        let bound = Arc::new(bound);
        let gate = Arc::new(Gate::new(
            options.requests_max,
            bound.program.runtime.shared.active.clone(),
        ));
        let out_of_memory = CancellationToken::new();
        let stopped = CancellationToken::new();
        let concurrent = match bound.code() {
            Code::Http03(pre) => {
                let (told, oom) = (bound.clone(), out_of_memory.clone());
                let failed = Arc::new(move |error: &HttpError| report(&told, &oom, error));
                Some(Handler03::new(
                    pre.clone(),
                    bound.clone(),
                    gate.clone(),
                    &options,
                    stopped.clone(),
                    failed,
                ))
            }
            _ => None,
        };
        Self {
            shared: Arc::new(Shared {
                requests_per_instance: options.requests_per_instance.unwrap_or(1).max(1),
                gate,
                bound,
                options,
                concurrent,
                warm: Mutex::default(),
                requests: AtomicU64::new(0),
                in_flight: AtomicUsize::new(0),
                out_of_memory,
                stopped,
                tasks: TaskTracker::new(),
            }),
        }
    }

    /// Lets the guest answer a request.
    ///
    /// The body of the response must be read to its end or dropped: reading it is what lets
    /// the guest go on.
    ///
    /// # Errors
    /// Why there is no response; what the guest did wrong is in its log as well.
    pub async fn handle<B>(&self, request: Request<B>) -> Result<Response<GuestBody>, HttpError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let shared = &self.shared;
        let in_flight = InFlight::count(shared.clone());
        let result = match (shared.bound.code(), &shared.concurrent) {
            (Code::Http02(pre), _) => shared.handle_02(pre.clone(), request, in_flight).await,
            (_, Some(concurrent)) => shared.handle_03(concurrent, request, in_flight).await,
            _ => Err(HttpError::NoResponse("it serves no HTTP".into())),
        };
        if let Err(error) = &result {
            shared.report(error);
        }
        result
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Requests not yet answered to the last byte, and work that guests still do after theirs.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::SeqCst)
    }

    pub(crate) fn bound(&self) -> &Bound {
        &self.shared.bound
    }

    /// Live instances.
    pub fn instances(&self) -> u32 {
        self.shared.bound.live.load(Ordering::Relaxed)
    }

    /// Is cancelled when an instance exceeded the container's memory limit.
    pub fn out_of_memory(&self) -> &CancellationToken {
        &self.shared.out_of_memory
    }

    /// Ends all that the guest still does and lets no request in any more. Requests that other
    /// tasks wait for end when those are dropped.
    pub async fn stop(&self) {
        self.shared.stopped.cancel();
        self.shared.warm.lock().instances.clear();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        // Instances of 0.3 guests end in tasks that wasmtime started.
        while self.shared.concurrent.is_some() && self.instances() > 0 {
            tokio::time::sleep(STOP_LOOK).await;
        }
    }
}

impl std::fmt::Debug for HttpGuest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpGuest")
            .field("program", &self.shared.bound.program)
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

impl Shared {
    async fn handle_02<B>(
        self: &Arc<Self>,
        pre: ProxyPre<ComponentState>,
        request: Request<B>,
        in_flight: InFlight,
    ) -> Result<Response<GuestBody>, HttpError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let timeout = self.options.timeout;
        let mut deadline = pin!(tokio::time::sleep(timeout));
        let admitted = async {
            let ticket = self.gate.enter().await?;
            let warm = self.warm.lock().instances.pop();
            if warm.is_none() {
                self.gate.memory(&self.bound).await?;
            }
            Ok((ticket, warm))
        };
        let (ticket, warm) = tokio::select! {
            biased;
            admitted = admitted => admitted?,
            () = &mut deadline => return Err(HttpError::Overloaded),
        };
        if self.stopped.is_cancelled() {
            return Err(HttpError::Stopped);
        }
        let (sender, mut receiver) = oneshot::channel();
        let held = Held {
            _ticket: ticket,
            _ticking: self.bound.program.runtime.shared.ticker.start(),
            _in_flight: in_flight,
        };
        let mut running = Running {
            shared: self.clone(),
            guest: Some(Metered::new(
                run_02(self.clone(), pre, warm, with_host(request), sender, held),
                self.bound.cpu.clone(),
            )),
        };
        let begun = poll_fn(|cx| {
            // The guest first: most have answered and ended when it returns.
            let ended = running.poll(cx);
            // Sent while the guest was polled, if at all. Polled, the channel would say "later"
            // when the task has used up its turn, and there may be no later.
            if let Ok(response) = receiver.try_recv() {
                return Poll::Ready(Ok((response, ended)));
            }
            match ended {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => Poll::Ready(Err(HttpError::NoResponse(
                    "it returned without setting one".into(),
                ))),
                Poll::Pending => deadline
                    .as_mut()
                    .poll(cx)
                    .map(|()| Err(HttpError::Timeout(timeout))),
            }
        })
        .await;
        let (response, ended) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                running.guest = None;
                return Err(error);
            }
        };
        if let Poll::Ready(Err(error)) = ended {
            return Err(error);
        }
        let response =
            response.map_err(|code| HttpError::NoResponse(format!("it answered {code:?}")))?;
        Ok(response.map(|body| GuestBody::new(body, running)))
    }

    /// An instance for one more request.
    async fn instance(
        &self,
        pre: &ProxyPre<ComponentState>,
        warm: Option<Warm>,
    ) -> wasmtime::Result<Instance> {
        if let Some(warm) = warm {
            return Ok(warm.instance);
        }
        let mut store = self.bound.component_store(pre.engine());
        let proxy = pre.instantiate_async(&mut store).await?;
        Ok(Instance {
            store,
            proxy,
            served: 0,
            made: Instant::now(),
        })
    }

    /// Keeps an instance for the next request if it may serve one and there is a slot for it.
    fn keep(self: &Arc<Self>, mut instance: Instance) {
        instance.served += 1;
        let lifetime = self.options.lifetime;
        let old = lifetime.is_some_and(|lifetime| instance.made.elapsed() >= lifetime);
        if old || instance.served >= self.requests_per_instance || self.stopped.is_cancelled() {
            return;
        }
        let slots = self.bound.program.runtime.shared.warm.clone();
        let Ok(slot) = slots.try_acquire_owned() else {
            return;
        };
        let mut warm = self.warm.lock();
        warm.instances.push(Warm {
            instance,
            since: Instant::now(),
            _slot: slot,
        });
        if !std::mem::replace(&mut warm.swept, true) {
            drop(warm);
            self.tasks.spawn(sweep(self.clone()));
        }
    }

    async fn handle_03<B>(
        &self,
        handler: &Handler03,
        request: Request<B>,
        in_flight: InFlight,
    ) -> Result<Response<GuestBody>, HttpError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let ticket = self.gate.enter().await?;
        if self.stopped.is_cancelled() {
            return Err(HttpError::Stopped);
        }
        let held = Held {
            _ticket: ticket,
            _ticking: self.bound.program.runtime.shared.ticker.start(),
            _in_flight: in_flight,
        };
        let request = with_host(request).map(|body| {
            body.map_err(|error| body_error(error.into()))
                .boxed_unsync()
        });
        let response = handler.handle(request).await?;
        Ok(response.map(|body| GuestBody {
            first: None,
            rest: Some(body),
            work: Work::Elsewhere(held),
            failed: None,
        }))
    }

    fn report(&self, error: &HttpError) {
        report(&self.bound, &self.out_of_memory, error);
    }
}

/// Says in the guest's log what it did wrong, and passes on that it is out of memory.
fn report(bound: &Bound, out_of_memory: &CancellationToken, error: &HttpError) {
    match error {
        HttpError::Trap(_) | HttpError::NoResponse(_) | HttpError::Timeout(_) => {
            bound.note(&error.to_string());
        }
        HttpError::OutOfMemory(_) => {
            bound.note(&error.to_string());
            out_of_memory.cancel();
        }
        HttpError::Overloaded | HttpError::Stopped => {}
    }
}

/// Ends instances that nobody used for a while; ends itself when there are none.
async fn sweep(shared: Arc<Shared>) {
    loop {
        let idle = shared.options.idle;
        tokio::select! {
            () = shared.stopped.cancelled() => return,
            () = tokio::time::sleep(idle) => {}
        }
        let mut warm = shared.warm.lock();
        // The least used lie at the bottom.
        let instances = &mut warm.instances;
        let unused = instances
            .iter()
            .position(|warm| warm.since.elapsed() < idle)
            .unwrap_or(instances.len());
        let unused: Vec<Warm> = instances.drain(..unused).collect();
        // None is kept and none ended: nothing was done for a whole turn.
        let done = instances.is_empty() && unused.is_empty();
        warm.swept = !done;
        drop(warm);
        drop(unused);
        if done {
            return;
        }
    }
}

/// Everything that counts a request as under way.
struct Held {
    _ticket: Ticket,
    _ticking: Ticking,
    _in_flight: InFlight,
}

struct InFlight(Arc<Shared>);

impl InFlight {
    fn count(shared: Arc<Shared>) -> Self {
        shared.requests.fetch_add(1, Ordering::Relaxed);
        shared.in_flight.fetch_add(1, Ordering::SeqCst);
        Self(shared)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

type Sender = oneshot::Sender<Result<Response<HyperOutgoingBody>, ErrorCode>>;

async fn run_02<B>(
    shared: Arc<Shared>,
    pre: ProxyPre<ComponentState>,
    warm: Option<Warm>,
    request: Request<B>,
    sender: Sender,
    _held: Held,
) -> Result<(), HttpError>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let run = async {
        let mut instance = shared.instance(&pre, warm).await?;
        let store = &mut instance.store;
        store.set_epoch_deadline(1);
        let request = request.map(|body| body.map_err(|error| body_error(error.into())));
        let request = store
            .data_mut()
            .http()
            .new_incoming_request(Scheme::Http, request)?;
        let out = store.data_mut().http().new_response_outparam(sender)?;
        instance
            .proxy
            .wasi_http_incoming_handler()
            .call_handle(&mut *store, request, out)
            .await?;
        wasmtime::error::Ok(instance)
    };
    match run.await {
        Ok(instance) => {
            shared.keep(instance);
            Ok(())
        }
        Err(error) => Err(match Ended::of(&error) {
            Ended::Exit(code) => HttpError::NoResponse(format!("it exited with code {code}")),
            Ended::OutOfMemory(exceeded) => HttpError::OutOfMemory(exceeded),
            Ended::Trap(message) => HttpError::Trap(message),
        }),
    }
}

fn body_error(error: BoxError) -> wasmtime_wasi_http::Error {
    match error.downcast::<hyper::Error>() {
        Ok(error) => wasmtime_wasi_http::Error::Hyper(*error),
        Err(error) => wasmtime_wasi_http::Error::InternalError(Some(error.to_string())),
    }
}

/// `wasi:http` needs an authority, which HTTP/1.0 requests may lack.
fn with_host<B>(mut request: Request<B>) -> Request<B> {
    if request.uri().authority().is_none() && !request.headers().contains_key(header::HOST) {
        request
            .headers_mut()
            .insert(header::HOST, HeaderValue::from_static("localhost"));
    }
    request
}

/// A guest at work on one request, owned by whoever waits for it.
struct Running {
    shared: Arc<Shared>,
    /// `None` once it has ended.
    guest: Option<Metered<Result<(), HttpError>>>,
}

impl Running {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), HttpError>> {
        let Some(guest) = &mut self.guest else {
            return Poll::Ready(Ok(()));
        };
        let polled = Pin::new(guest).poll(cx);
        if polled.is_ready() {
            self.guest = None;
        }
        polled
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(guest) = self.guest.take() else {
            return;
        };
        // Outside a runtime (a process that ends) there is nowhere to go on.
        if self.shared.stopped.is_cancelled() || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let shared = self.shared.clone();
        self.shared.tasks.spawn(async move {
            let ended = tokio::select! {
                () = shared.stopped.cancelled() => return,
                ended = tokio::time::timeout(AFTERWARDS_MAX, guest) => ended,
            };
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => shared.report(&error),
                Err(_) => shared.report(&HttpError::Timeout(AFTERWARDS_MAX)),
            }
        });
    }
}

/// The body of a guest's response; reading it lets the guest go on.
pub struct GuestBody {
    /// What was there when the guest had ended at once.
    first: Option<Bytes>,
    rest: Option<HyperOutgoingBody>,
    work: Work,
    failed: Option<HttpError>,
}

/// Who does the work behind a body.
enum Work {
    /// Whoever reads the body.
    Here(Running),
    /// A task of its own; what counts the request as under way is held here.
    Elsewhere(#[allow(dead_code, reason = "held for its drop")] Held),
}

impl GuestBody {
    fn new(body: HyperOutgoingBody, running: Running) -> Self {
        let ended = running.guest.is_none();
        let mut this = Self {
            first: None,
            rest: Some(body),
            work: Work::Here(running),
            failed: None,
        };
        if ended {
            this.take_whole();
        }
        this
    }

    /// If the whole body is one chunk that is here already, its length is known: the connection
    /// then sends it in one piece and without chunked framing.
    fn take_whole(&mut self) {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let Some(rest) = &mut self.rest else { return };
        match Pin::new(&mut *rest).poll_frame(&mut cx) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => self.first = Some(data),
                Err(trailers) => {
                    // No data, only trailers: leave it to the general way.
                    self.rest = Some(
                        http_body_util::StreamBody::new(futures::stream::iter([Ok(trailers)]))
                            .boxed_unsync(),
                    );
                    return;
                }
            },
            Poll::Ready(None) => {
                self.rest = None;
                return;
            }
            Poll::Ready(Some(Err(error))) => {
                self.rest = None;
                self.failed = Some(HttpError::NoResponse(error.to_string()));
                return;
            }
            Poll::Pending => return,
        }
        // Another frame must not be lost, so only the end is looked for.
        if rest.is_end_stream() {
            self.rest = None;
            return;
        }
        if let Poll::Ready(next) = Pin::new(&mut *rest).poll_frame(&mut cx) {
            match next {
                None => self.rest = None,
                Some(frame) => {
                    let rest = self.rest.take();
                    let frames = futures::stream::iter([frame]);
                    self.rest = rest.map(|rest| {
                        Chained {
                            before: Some(frames),
                            rest,
                        }
                        .boxed_unsync()
                    });
                }
            }
        }
    }
}

/// Frames read ahead, then the rest.
struct Chained<S> {
    before: Option<S>,
    rest: HyperOutgoingBody,
}

impl<S> Body for Chained<S>
where
    S: futures::Stream<Item = Result<Frame<Bytes>, wasmtime_wasi_http::Error>> + Unpin,
{
    type Data = Bytes;
    type Error = wasmtime_wasi_http::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(before) = &mut self.before {
            match Pin::new(before).poll_next(cx) {
                Poll::Ready(Some(frame)) => return Poll::Ready(Some(frame)),
                Poll::Ready(None) => self.before = None,
                Poll::Pending => return Poll::Pending,
            }
        }
        Pin::new(&mut self.rest).poll_frame(cx)
    }
}

impl Body for GuestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Work::Here(running) = &mut this.work
            && let Poll::Ready(Err(error)) = running.poll(cx)
        {
            running.shared.report(&error);
            this.failed = Some(error);
        }
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        if let Some(rest) = &mut this.rest {
            match Pin::new(rest).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => return Poll::Ready(Some(Ok(frame))),
                Poll::Ready(Some(Err(error))) => {
                    this.rest = None;
                    return Poll::Ready(Some(Err(error.into())));
                }
                Poll::Ready(None) => this.rest = None,
            }
        }
        // A guest that failed has not ended its body: cut the response off, so that the client
        // does not take it for whole.
        Poll::Ready(this.failed.take().map(|error| Err(error.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_none() && self.failed.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().map_or(0, Bytes::len) as u64;
        match &self.rest {
            None => SizeHint::with_exact(first),
            Some(rest) => {
                let rest = rest.size_hint();
                let mut hint = SizeHint::new();
                hint.set_lower(first + rest.lower());
                if let Some(upper) = rest.upper() {
                    hint.set_upper(first + upper);
                }
                hint
            }
        }
    }
}

impl std::fmt::Debug for GuestBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestBody").finish_non_exhaustive()
    }
}

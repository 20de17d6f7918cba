//! The clock that makes running guests yield.
//!
//! One thread raises the engines' epoch every [`TICK`] while any guest runs and sleeps
//! otherwise, so an idle site wakes no processor.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::Duration;
use wasmtime::{Engine, EngineWeak};

/// How long a guest may compute before others get their turn.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// Ticks without a running guest before the thread sleeps: waking it costs a system call, so
/// it does not go to sleep between the requests of a steady load.
const IDLE_TICKS: u32 = 20;

pub(crate) struct Ticker {
    shared: Arc<Shared>,
}

struct Shared {
    /// Running guests.
    running: AtomicUsize,
    /// The thread is parked until woken.
    asleep: AtomicBool,
    stopped: AtomicBool,
    thread: OnceLock<Thread>,
    engines: Mutex<Vec<EngineWeak>>,
}

/// The epoch rises while one of these exists.
pub(crate) struct Ticking {
    shared: Arc<Shared>,
}

impl Ticker {
    pub(crate) fn new(engine: &Engine) -> Self {
        Self {
            shared: Arc::new(Shared {
                running: AtomicUsize::new(0),
                asleep: AtomicBool::new(false),
                stopped: AtomicBool::new(false),
                thread: OnceLock::new(),
                engines: Mutex::new(vec![engine.weak()]),
            }),
        }
    }

    pub(crate) fn add(&self, engine: &Engine) {
        self.shared.engines.lock().push(engine.weak());
    }

    /// Counts a running guest.
    pub(crate) fn start(&self) -> Ticking {
        let shared = &self.shared;
        shared.running.fetch_add(1, Ordering::SeqCst);
        let thread = shared.thread.get_or_init(|| spawn(shared.clone()));
        if shared.asleep.swap(false, Ordering::SeqCst) {
            thread.unpark();
        }
        Ticking {
            shared: shared.clone(),
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        if let Some(thread) = self.shared.thread.get() {
            thread.unpark();
        }
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        self.shared.running.fetch_sub(1, Ordering::SeqCst);
    }
}

fn spawn(shared: Arc<Shared>) -> Thread {
    let run = shared.clone();
    match std::thread::Builder::new()
        .name("wasm-epoch".into())
        .stack_size(64 << 10)
        .spawn(move || run.run())
    {
        Ok(handle) => handle.thread().clone(),
        Err(error) => {
            // Guests still run; they only can't be made to yield.
            tracing::error!(%error, "could not start the thread that makes guests yield");
            std::thread::current()
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut idle = 0;
        while !self.stopped.load(Ordering::SeqCst) {
            std::thread::park_timeout(TICK);
            for engine in self.engines.lock().iter().filter_map(EngineWeak::upgrade) {
                engine.increment_epoch();
            }
            if self.running.load(Ordering::SeqCst) > 0 {
                idle = 0;
                continue;
            }
            idle += 1;
            if idle < IDLE_TICKS {
                continue;
            }
            idle = 0;
            self.asleep.store(true, Ordering::SeqCst);
            // A guest that started before `asleep` was set has not woken this thread.
            if self.running.load(Ordering::SeqCst) > 0 {
                self.asleep.store(false, Ordering::SeqCst);
                continue;
            }
            while self.asleep.load(Ordering::SeqCst) && !self.stopped.load(Ordering::SeqCst) {
                std::thread::park();
            }
        }
    }
}

//! Guests that run once to their end.

use crate::guest::Bound;
use crate::limits::MemoryExceeded;
use crate::program::Code;
use crate::running::{Ended, Metered};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A program that runs to its end, tied to a container. Clones are the same guest.
#[derive(Clone)]
pub struct CommandGuest {
    bound: Arc<Bound>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It returned or called exit with this code.
    Exited(i32),
    /// It trapped, or could not be started; the message says why.
    Failed(String),
    /// It asked for more memory than it may have.
    OutOfMemory(MemoryExceeded),
}

impl CommandGuest {
    pub(crate) fn new(bound: Bound) -> Self {
        Self {
            bound: Arc::new(bound),
        }
    }

    pub(crate) fn bound(&self) -> &Bound {
        &self.bound
    }

    /// Live instances.
    pub fn instances(&self) -> u32 {
        self.bound.live.load(Ordering::Relaxed)
    }

    /// Runs it. Dropping the future ends the guest at once.
    pub fn run(&self) -> impl Future<Output = Outcome> + Send + 'static {
        let bound = self.bound.clone();
        let cpu = bound.cpu.clone();
        let guest = Metered::new(run(bound), cpu);
        async move {
            match guest.await {
                Ok(code) => Outcome::Exited(code),
                Err(error) => match Ended::of(&error) {
                    Ended::Exit(code) => Outcome::Exited(code),
                    Ended::OutOfMemory(exceeded) => Outcome::OutOfMemory(exceeded),
                    Ended::Trap(message) => Outcome::Failed(message),
                },
            }
        }
    }
}

impl std::fmt::Debug for CommandGuest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommandGuest")
            .field("program", &self.bound.program)
            .finish()
    }
}

async fn run(bound: Arc<Bound>) -> wasmtime::Result<i32> {
    let shared = &bound.program.runtime.shared;
    // A command lives as long as it likes, so it waits for its slot like a request does.
    let _slot = shared.active.acquire().await?;
    let _ticking = shared.ticker.start();
    let returned = match bound.code() {
        Code::Preview1(pre) => {
            let mut store = bound.module_store(pre.module().engine())?;
            let instance = pre.instantiate_async(&mut store).await?;
            let start = instance.get_typed_func::<(), ()>(&mut store, "_start")?;
            start.call_async(&mut store, ()).await?;
            Ok(())
        }
        Code::Command02(pre) => {
            let mut store = bound.component_store(pre.engine());
            let command = pre.instantiate_async(&mut store).await?;
            command.wasi_cli_run().call_run(&mut store).await?
        }
        Code::Command03(pre) => {
            let mut store = bound.component_store(pre.engine());
            let command = pre.instantiate_async(&mut store).await?;
            store
                .run_concurrent(async |accessor| command.wasi_cli_run().call_run(accessor).await)
                .await??
        }
        Code::Http02(_) | Code::Http03(_) => {
            return Err(wasmtime::Error::msg("an HTTP guest does not run to an end"));
        }
    };
    Ok(i32::from(returned.is_err()))
}

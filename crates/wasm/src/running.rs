//! A guest while it computes: metered, and held back when it is past its processor limit.

use crate::limits::{CpuMeter, MemoryExceeded};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::time::Sleep;
use wasmtime_wasi::I32Exit;

/// Frames of a trap's backtrace that a message names.
const BACKTRACE_LINES_MAX: usize = 12;

/// Counts the time that polling a guest takes.
pub(crate) struct Metered<T> {
    guest: Pin<Box<dyn Future<Output = T> + Send>>,
    cpu: Arc<CpuMeter>,
    held_back: Option<Pin<Box<Sleep>>>,
}

impl<T> Metered<T> {
    pub(crate) fn new(guest: impl Future<Output = T> + Send + 'static, cpu: Arc<CpuMeter>) -> Self {
        Self {
            guest: Box::pin(guest),
            cpu,
            held_back: None,
        }
    }
}

impl<T> Future for Metered<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        if let Some(held_back) = &mut self.held_back {
            if held_back.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.held_back = None;
        }
        let start = Instant::now();
        let polled = self.guest.as_mut().poll(cx);
        if let Some(resume) = self.cpu.charge(start, Instant::now())
            && polled.is_pending()
        {
            let mut sleep = Box::pin(tokio::time::sleep_until(resume.into()));
            // Registers the wake-up; the guest's own wake-ups meanwhile come here and wait.
            if sleep.as_mut().poll(cx).is_pending() {
                self.held_back = Some(sleep);
            } else {
                cx.waker().wake_by_ref();
            }
        }
        polled
    }
}

/// How a guest ended that did not return.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Exit(i32),
    OutOfMemory(MemoryExceeded),
    Trap(String),
}

impl Ended {
    pub(crate) fn of(error: &wasmtime::Error) -> Self {
        if let Some(exit) = error.downcast_ref::<I32Exit>() {
            return Self::Exit(exit.0);
        }
        if let Some(exceeded) = error.downcast_ref::<MemoryExceeded>() {
            return Self::OutOfMemory(*exceeded);
        }
        // The trap itself is the root, the backtrace a context around it.
        let root = error.root_cause().to_string();
        let mut message = root.clone();
        for line in error
            .chain()
            .map(ToString::to_string)
            .filter(|text| *text != root)
            .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
            .take(BACKTRACE_LINES_MAX)
        {
            message.push('\n');
            message.push_str(&line);
        }
        Self::Trap(message)
    }
}

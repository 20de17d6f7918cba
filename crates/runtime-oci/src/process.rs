//! Processes that this one waits for: those it starts, and those that become its children because
//! their parents ended (it is their subreaper). All others that become its children are reaped
//! as they end.

use parking_lot::Mutex;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Whom somebody waits for. Held for look-ups only.
static AWAITED: Mutex<Option<HashSet<i32>>> = Mutex::new(None);

/// Processes that are about to be adopted: nobody is reaped meanwhile.
static ABOUT: AtomicUsize = AtomicUsize::new(0);

/// While it lives, children that nobody waits for yet are not reaped.
pub(crate) struct Hold(());

/// See [`Hold`].
pub(crate) fn hold() -> Hold {
    ABOUT.fetch_add(1, Ordering::SeqCst);
    Hold(())
}

impl Drop for Hold {
    fn drop(&mut self) {
        ABOUT.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A process whose end is waited for; it runs on when this is dropped.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    fd: AsyncFd<OwnedFd>,
}

/// Starts one.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    // Held until it is noted, or it could be reaped as nobody's.
    let mut awaited = AWAITED.lock();
    let child = command.spawn()?;
    let pid = Pid::from_child(&child);
    awaited
        .get_or_insert_default()
        .insert(pid.as_raw_nonzero().get());
    drop(awaited);
    of(pid)
}

/// Takes over one that became a child of this process.
pub(crate) fn adopt(pid: i32) -> io::Result<Child> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    AWAITED
        .lock()
        .get_or_insert_default()
        .insert(pid.as_raw_nonzero().get());
    of(pid)
}

fn of(pid: Pid) -> io::Result<Child> {
    let fd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    #[allow(
        deprecated,
        reason = "its replacement is unsafe for types that may change their descriptor; an OwnedFd keeps its own"
    )]
    let fd = AsyncFd::with_interest(fd, Interest::READABLE)?;
    Ok(Child { pid, fd })
}

impl Child {
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Sends a signal; one that has ended is none.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(self.fd.get_ref(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for its end: its exit code, or 128 and the signal that ended it.
    pub(crate) async fn ended(&self) -> io::Result<i32> {
        let _ended = self.fd.readable().await?;
        // The number may be used again once it is reaped.
        let mut awaited = AWAITED.lock();
        if let Some(awaited) = awaited.as_mut() {
            awaited.remove(&self.pid());
        }
        let ended = rustix::process::waitpid(Some(self.pid), WaitOptions::NOHANG)?;
        let Some((_, status)) = ended else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let signal = status.terminating_signal().map(|signal| 128 + signal);
        Ok(status.exit_status().or(signal).unwrap_or(255))
    }
}

/// Reaps ended children that nobody waits for.
pub(crate) fn reap_others() {
    if ABOUT.load(Ordering::SeqCst) > 0 {
        return; // The next that ends calls again.
    }
    let own = std::process::id();
    let path = format!("/proc/self/task/{own}/children");
    let Ok(children) = std::fs::read_to_string(path) else {
        return;
    };
    let awaited = AWAITED.lock();
    let is_awaited = |pid: i32| awaited.as_ref().is_some_and(|a| a.contains(&pid));
    for pid in children.split_whitespace().filter_map(|p| p.parse().ok()) {
        if let Some(pid) = Pid::from_raw(pid).filter(|_| !is_awaited(pid)) {
            // One that still runs is left alone.
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

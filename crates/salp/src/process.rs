//! Processes of a site: the lock that makes it one, and those that outlive it, the data plane and
//! the supervisor of containers.

use crate::config::{Layout, write_atomic};
use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal};
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;

/// Held while a site's control plane runs; the file has its process id.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Takes the site's lock.
///
/// # Errors
/// When another `salp up` has it; says which process.
pub fn lock(layout: &Layout) -> Result<Lock> {
    let path = layout.lock();
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut pid = String::new();
        file.read_to_string(&mut pid).unwrap_or_default();
        bail!(
            "lock {}: this site already runs as process {}; stop it with `salp down` or use another --data-dir",
            layout.root.display(),
            pid.trim()
        );
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| write!(file, "{}", std::process::id()))
        .with_context(|| format!("write {}", path.display()))?;
    Ok(Lock { _file: file })
}

/// The process that holds the site's lock, if one does.
pub fn lock_holder(layout: &Layout) -> Option<Pid> {
    let mut file = File::open(layout.lock()).ok()?;
    if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared).is_ok() {
        return None;
    }
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok().and_then(Pid::from_raw)
}

/// Listens at a unix socket that only this user can open, in place of one that was left there.
pub fn listen_for_owner(path: &Path) -> Result<UnixListener> {
    let _stale = std::fs::remove_file(path);
    let listener =
        UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("restrict {}", path.display()))?;
    Ok(listener)
}

/// Starts `salp dataplane`.
pub fn spawn_dataplane(layout: &Layout) -> Result<Pid> {
    let (config, log) = (layout.dataplane_config(), layout.dataplane_log());
    spawn(layout, "dataplane", &config, &log, &layout.dataplane_pid())
}

/// Starts `salp supervisor`.
pub fn spawn_supervisor(layout: &Layout) -> Result<Pid> {
    let (config, log) = (layout.supervisor_config(), layout.supervisor_log());
    spawn(
        layout,
        "supervisor",
        &config,
        &log,
        &layout.supervisor_pid(),
    )
}

/// Starts this program as a process group of its own, so that it outlives this process.
fn spawn(
    layout: &Layout,
    name: &'static str,
    config: &Path,
    log: &Path,
    pid_file: &Path,
) -> Result<Pid> {
    let out = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("open {}", log.display()))?;
    let program = std::env::current_exe().context("find own program file")?;
    let mut command = Command::new(program);
    command
        .arg(name)
        .arg("--config")
        .arg(config)
        .current_dir(&layout.root)
        .stdin(Stdio::null())
        .stdout(out.try_clone().context("share log file")?)
        .stderr(out)
        .process_group(0);
    let child = command.spawn();
    let mut child = child.with_context(|| format!("start {name}"))?;
    let pid = Pid::from_child(&child);
    // Reaped when it ends while this process lives; adopted by init when it outlives it.
    std::thread::Builder::new()
        .name(format!("reap-{name}"))
        .stack_size(64 * 1024)
        .spawn(move || child.wait())
        .with_context(|| format!("watch {name}"))?;
    // It writes the same once it runs; `salp down` must find it before.
    let text = pid.as_raw_nonzero().to_string();
    write_atomic(pid_file, text.as_bytes(), 0o600)?;
    Ok(pid)
}

/// Waits for the end of a process, a child or not.
pub async fn ended(pid: Pid) -> Result<()> {
    use rustix::process::{PidfdFlags, pidfd_open};
    let fd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(e) => return Err(e).context("watch process"),
    };
    #[allow(
        deprecated,
        reason = "its replacement is unsafe for types that may change their descriptor; an OwnedFd keeps its own"
    )]
    let fd = AsyncFd::with_interest(fd, Interest::READABLE).context("watch process")?;
    let _ready = fd.readable().await.context("watch process")?;
    Ok(())
}

/// The process id in a pid file, if that process runs the same program kind (`salp`).
pub fn running(pid_file: &Path) -> Option<Pid> {
    let pid: i32 = std::fs::read_to_string(pid_file)
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let args = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    args.split(|b| *b == 0)
        .any(|a| a == b"dataplane" || a == b"supervisor")
        .then_some(())?;
    Pid::from_raw(pid)
}

/// Asks a process to end and waits for that; kills it after `deadline`.
pub fn end(pid: Pid, signal: Signal, deadline: std::time::Duration) -> Result<()> {
    use rustix::process::{PidfdFlags, kill_process, pidfd_open};
    let fd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(e) => return Err(e).context("watch process"),
    };
    kill_process(pid, signal).context("signal process")?;
    if !wait(&fd, deadline)? {
        kill_process(pid, Signal::KILL).context("kill process")?;
        wait(&fd, std::time::Duration::from_secs(5))?;
    }
    Ok(())
}

/// Whether a process ends within that time.
pub fn ends_within(pid: Pid, time: std::time::Duration) -> Result<bool> {
    use rustix::process::{PidfdFlags, pidfd_open};
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => wait(&fd, time),
        Err(rustix::io::Errno::SRCH) => Ok(true),
        Err(e) => Err(e).context("watch process"),
    }
}

/// Whether the process ended in time: a pidfd is readable then.
fn wait(fd: &rustix::fd::OwnedFd, deadline: std::time::Duration) -> Result<bool> {
    use rustix::event::{PollFd, PollFlags, poll};
    let timeout = rustix::event::Timespec::try_from(deadline).context("wait for process")?;
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    Ok(poll(&mut fds, Some(&timeout)).context("wait for process")? > 0)
}

//! The first process of a pod whose containers share their processes: it does nothing, for the
//! namespace of processes is there as long as its first one is. Orphans are reaped by the kernel.
//!
//! It is this program once more, in an empty root directory and as nobody: what its containers see
//! of it has nothing of the machine.

use crate::mounts;
use rustix::thread::UnshareFlags;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Nobody's user and group.
const NOBODY: u32 = 65534;

/// The process; it ends with this.
#[derive(Debug)]
pub(crate) struct Pause {
    /// Reaped with all that nobody waits for.
    child: Child,
}

impl Pause {
    /// Starts one in a namespace of processes of its own, which is kept at `namespace`.
    pub(crate) fn start(program: &[PathBuf], dir: &Path, namespace: &Path) -> io::Result<Self> {
        let (name, args) = program.split_first().ok_or(io::ErrorKind::NotFound)?;
        let mut command = Command::new(name);
        command.args(args).arg(dir);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // The thread's children are in the new namespace, and it has no others.
        let spawned = std::thread::Builder::new().spawn(move || {
            mounts::unshare(UnshareFlags::NEWPID)?;
            command.spawn()
        })?;
        let panicked = |_| io::Error::from(io::ErrorKind::Other);
        let this = Self {
            child: spawned.join().map_err(panicked)??,
        };
        std::fs::write(namespace, "")?;
        let own = format!("/proc/{}/ns/pid", this.child.id());
        mounts::bind(Path::new(&own), namespace)?;
        Ok(this)
    }

    /// Ends it, and all processes of its namespace.
    pub(crate) fn end(mut self) -> io::Result<()> {
        self.child.kill()
    }
}

/// What the process does: it waits for the end of its input, which is that of the supervisor.
///
/// # Errors
/// Where it can't give up what it has.
pub fn pause(dir: &Path) -> io::Result<()> {
    mounts::ignore_children()?;
    rustix::process::chroot(dir)?;
    rustix::process::chdir("/")?;
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_gid(rustix::process::Gid::from_raw(NOBODY))?;
    rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(NOBODY))?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

//! What is known of a container between two calls: a directory with its name.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// Why there is nothing known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("container {0:?} exists")]
    Exists(String),
    #[error("container {0:?} does not exist")]
    NotFound(String),
    #[error("{0:?} is no name of a container")]
    Name(String),
    #[error("container {0:?} is not running")]
    NotRunning(String),
    #[error("container {0:?} was started before")]
    Started(String),
    #[error("write {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
    #[error("read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
}

/// What is written of one that was made.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Made {
    /// Its first process…
    pub(crate) pid: i32,
    /// …and when that was started, in the kernel's ticks: the number may be another's later.
    pub(crate) ticks: u64,
    pub(crate) bundle: PathBuf,
    /// Its control groups, in each tree.
    pub(crate) groups: PathBuf,
}

/// Where a container's state is.
#[derive(Debug)]
pub(crate) struct State {
    id: String,
    dir: PathBuf,
}

impl State {
    pub(crate) fn of(root: &Path, id: &str) -> Result<Self, StateError> {
        let mut parts = Path::new(id).components();
        let (first, second) = (parts.next(), parts.next());
        if !matches!(first, Some(std::path::Component::Normal(_))) || second.is_some() {
            return Err(StateError::Name(id.to_owned()));
        }
        Ok(Self {
            id: id.to_owned(),
            dir: root.join(id),
        })
    }

    pub(crate) fn make(&self) -> Result<(), StateError> {
        let failed = |e| StateError::Write(self.dir.clone(), e);
        let root = self.dir.parent().unwrap_or(Path::new("/"));
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700);
        builder.recursive(true).create(root).map_err(failed)?;
        match builder.recursive(false).create(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                Err(StateError::Exists(self.id.clone()))
            }
            made => made.map_err(failed),
        }
    }

    fn file(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    /// What starts the program is written here.
    fn gate(&self) -> PathBuf {
        self.dir.join("start")
    }

    pub(crate) fn write(&self, made: &Made) -> Result<(), StateError> {
        let failed = |e| StateError::Write(self.file(), e);
        let text = serde_json::to_vec(made).map_err(|e| failed(e.into()))?;
        fs::write(self.file(), text).map_err(failed)
    }

    pub(crate) fn exists(&self) -> bool {
        self.dir.is_dir()
    }

    /// Nothing for one whose making failed.
    pub(crate) fn read(&self) -> Result<Option<Made>, StateError> {
        if !self.exists() {
            return Err(StateError::NotFound(self.id.clone()));
        }
        let failed = |e| StateError::Read(self.file(), e);
        match fs::read(self.file()) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|e| failed(e.into())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed(e)),
        }
    }

    /// One whose first process runs.
    pub(crate) fn running(&self) -> Result<Made, StateError> {
        let gone = || StateError::NotRunning(self.id.clone());
        let made = self.read()?.ok_or_else(gone)?;
        if ticks(made.pid).ok() != Some(made.ticks) {
            return Err(gone());
        }
        Ok(made)
    }

    pub(crate) fn remove(&self) -> Result<(), StateError> {
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(StateError::Write(self.dir.clone(), e))
            }
            _ => Ok(()),
        }
    }

    /// What a container's process waits at.
    pub(crate) fn make_gate(&self) -> Result<OwnedFd, StateError> {
        let path = self.gate();
        let made = || {
            let mode = Mode::from_raw_mode(0o600);
            rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode)?;
            // Opened so, it waits for nobody; who writes finds this end.
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            rustix::fs::open(&path, flags, Mode::empty())
        };
        made().map_err(|e| StateError::Write(path.clone(), e.into()))
    }

    /// Lets it go on.
    pub(crate) fn open_gate(&self) -> Result<(), StateError> {
        self.running()?;
        let path = self.gate();
        let failed = |e| StateError::Write(path.clone(), e);
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let gate = match rustix::fs::open(&path, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Err(StateError::Started(self.id.clone())),
            Err(Errno::NXIO) => return Err(StateError::NotRunning(self.id.clone())),
            gate => gate.map_err(|e| failed(e.into()))?,
        };
        fs::File::from(gate).write_all(b"0").map_err(failed)?;
        fs::remove_file(&path).map_err(failed)
    }
}

/// Waits until the gate is opened.
pub(crate) fn wait_at(gate: &OwnedFd) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut fds = [PollFd::new(gate, PollFlags::IN)];
    loop {
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            done => done?,
        };
        let mut byte = [0];
        match rustix::io::read(gate, &mut byte) {
            Ok(1) => return Ok(()),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// When a process was started.
pub(crate) fn ticks(pid: i32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before may have anything in it.
    let after = text.rsplit_once(')').map_or("", |(_, after)| after);
    let mut fields = after.split_whitespace();
    if fields.clone().next() == Some("Z") {
        return Err(io::ErrorKind::NotFound.into());
    }
    let field = fields.nth(19).and_then(|field| field.parse().ok());
    field.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Ends a process at once; one that has ended is none.
pub(crate) fn kill(made: &Made) -> io::Result<()> {
    let Some(pid) = Pid::from_raw(made.pid) else {
        return Ok(());
    };
    if ticks(made.pid).ok() != Some(made.ticks) {
        return Ok(());
    }
    match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

//! The calls: one container, made, started, entered, deleted.

use crate::config::{Config, Linux, NamespaceKind, Process};
use crate::groups::{GroupError, Trees};
use crate::kernel::{self, Side};
use crate::process::{self, Plan, ProcessError};
use crate::rootfs::{self, RootError};
use crate::state::{self, Made, State, StateError};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

/// Of what a process says when it fails, so much is told.
const WORDS_MAX: u64 = 4096;

/// Why a call failed. Its words are other runtimes' where callers look for them.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(#[from] Failure);

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("write {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("{0}")]
    Step(&'static str, #[source] io::Error),
    /// What the container's process said before it could be one.
    #[error("{0}")]
    Inside(String),
}

fn step<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> Failure {
    move |error| Failure::Step(what, error.into())
}

/// Why the container's own process goes no further.
#[derive(Debug, thiserror::Error)]
enum Inside {
    #[error(transparent)]
    Root(#[from] RootError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("{0}")]
    Step(&'static str, #[source] io::Error),
}

/// What a call is about.
#[derive(Clone, Copy, Debug)]
pub struct Operation<'a> {
    /// Where the runtime keeps what it knows of containers.
    pub root: &'a Path,
    /// The container's name.
    pub id: &'a str,
    /// Where the process id of the process is written.
    pub pid_file: &'a Path,
    /// A socket to which a process with a terminal gives its outer end.
    pub console_socket: Option<&'a Path>,
}

/// Makes a container, whose first process waits for [`start`]. That process has the streams of the
/// calling one.
///
/// # Errors
/// When the container can't be made; [`delete`] takes away what there is of it then.
pub fn create(operation: Operation<'_>, bundle: &Path) -> Result<(), Error> {
    Ok(make(operation, bundle)?)
}

fn make(operation: Operation<'_>, bundle: &Path) -> Result<(), Failure> {
    let config: Config = read(&bundle.join("config.json"))?;
    let (process, linux) = (&config.process, &config.linux);
    let apparmor = process.apparmor_profile.as_deref();
    let plan = Plan::of(process, apparmor, linux.seccomp.as_ref())?;
    let trees = Trees::of_machine()?;
    let state = State::of(operation.root, operation.id)?;
    state.make()?;
    let mut made = Made {
        pid: 0,
        ticks: 0,
        bundle: bundle.to_owned(),
        groups: linux.cgroups_path.clone(),
    };
    state.write(&made)?;
    let gate = state.make_gate()?;
    let socket = connect(operation.console_socket, process)?;
    let pid_file = new_file(operation.pid_file)?;
    trees.enter(&linux.cgroups_path, &linux.resources)?;
    namespaces(linux)?;
    let inside = |ready: Ready| -> Result<Infallible, Inside> {
        let unshared = kernel::unshare(UnshareFlags::NEWNS);
        unshared.map_err(|e| Inside::Step("make mount namespace", e))?;
        process::begin(process)?;
        rootfs::enter(&config, &trees)?;
        if let Some(socket) = &socket {
            let terminal = process::terminal(process)?;
            process::console()?;
            give(socket, &terminal).map_err(|e| Inside::Step("give terminal", e))?;
        }
        let program = plan.become_user()?;
        ready.tell()?;
        state::wait_at(&gate).map_err(|e| Inside::Step("wait to be started", e))?;
        plan.confine_last()?;
        Err(program.run().into())
    };
    made.pid = launch(inside, pid_file)?;
    made.ticks = state::ticks(made.pid).map_err(step("look at the container's process"))?;
    Ok(state.write(&made)?)
}

/// Lets a container's first process become its program.
///
/// # Errors
/// When there is no such container, or it was started before or has ended.
pub fn start(root: &Path, id: &str) -> Result<(), Error> {
    let opened = State::of(root, id).and_then(|state| state.open_gate());
    Ok(opened.map_err(Failure::from)?)
}

/// Runs a further program in a container; `process` is a file as `config.json` has it in `process`.
///
/// # Errors
/// When the container does not run, or the program can't be.
pub fn exec(operation: Operation<'_>, process: &Path) -> Result<(), Error> {
    Ok(join(operation, process)?)
}

fn join(operation: Operation<'_>, process: &Path) -> Result<(), Failure> {
    let made = State::of(operation.root, operation.id)?.running()?;
    let process: Process = read(process)?;
    let config: Config = read(&made.bundle.join("config.json"))?;
    let own = process.apparmor_profile.as_deref();
    let apparmor = own.or(config.process.apparmor_profile.as_deref());
    let plan = Plan::of(&process, apparmor, config.linux.seccomp.as_ref())?;
    let socket = connect(operation.console_socket, &process)?;
    let pid_file = new_file(operation.pid_file)?;
    let open = |name: &str| File::open(format!("/proc/{}/ns/{name}", made.pid));
    // The machine's files are out of sight with the last.
    let order = ["ipc", "uts", "net", "cgroup", "pid", "mnt"];
    let spaces = order.map(open).into_iter().collect::<io::Result<Vec<_>>>();
    let spaces = spaces.map_err(step("find the container's namespaces"))?;
    Trees::of_machine()?.join_those_of(made.pid)?;
    process::begin(&process)?;
    for space in spaces {
        rustix::thread::move_into_link_name_space(space.as_fd(), None)
            .map_err(step("enter the container's namespaces"))?;
    }
    let inside = |ready: Ready| -> Result<Infallible, Inside> {
        if let Some(socket) = &socket {
            // A terminal is a session's, and the one that was begun has another leader.
            rustix::process::setsid().map_err(|e| Inside::Step("start session", e.into()))?;
            let terminal = process::terminal(&process)?;
            give(socket, &terminal).map_err(|e| Inside::Step("give terminal", e))?;
        }
        let program = plan.become_user()?;
        ready.tell()?;
        plan.confine_last()?;
        Err(program.run().into())
    };
    launch(inside, pid_file).map(drop)
}

/// Ends whatever is left of a container, and forgets it.
///
/// # Errors
/// When there is none, or something of it can't be ended.
pub fn delete(root: &Path, id: &str) -> Result<(), Error> {
    Ok(remove(root, id)?)
}

fn remove(root: &Path, id: &str) -> Result<(), Failure> {
    let state = State::of(root, id)?;
    if let Some(made) = state.read()? {
        state::kill(&made).map_err(step("end the container's process"))?;
        Trees::of_machine()?.remove(&made.groups)?;
    }
    Ok(state.remove()?)
}

fn new_file(path: &Path) -> Result<File, Failure> {
    File::create(path).map_err(|e| Failure::Write(path.to_owned(), e))
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let failed = |e| Failure::Read(path.to_owned(), e);
    let text = std::fs::read(path).map_err(failed)?;
    serde_json::from_slice(&text).map_err(|e| failed(e.into()))
}

/// Joins the pod's namespaces and makes the container's own. That of processes is for those that
/// are started from now on.
fn namespaces(linux: &Linux) -> Result<(), Failure> {
    let mut flags = UnshareFlags::empty();
    for space in &linux.namespaces {
        match &space.path {
            Some(path) => {
                let kind = joined(space.kind);
                let file = File::open(path).map_err(|e| Failure::Read(path.clone(), e))?;
                rustix::thread::move_into_link_name_space(file.as_fd(), Some(kind))
                    .map_err(step("join a namespace of the pod"))?;
            }
            // That of mounts is the container's process' alone: it changes the root directory.
            None if space.kind == NamespaceKind::Mount => {}
            None => flags |= made(space.kind),
        }
    }
    kernel::unshare(flags).map_err(step("make namespaces"))
}

fn joined(kind: NamespaceKind) -> LinkNameSpaceType {
    match kind {
        NamespaceKind::Mount => LinkNameSpaceType::Mount,
        NamespaceKind::Cgroup => LinkNameSpaceType::ControlGroup,
        NamespaceKind::Pid => LinkNameSpaceType::ProcessID,
        NamespaceKind::Network => LinkNameSpaceType::Network,
        NamespaceKind::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
        NamespaceKind::Ipc => LinkNameSpaceType::InterProcessCommunication,
    }
}

fn made(kind: NamespaceKind) -> UnshareFlags {
    match kind {
        NamespaceKind::Mount => UnshareFlags::NEWNS,
        NamespaceKind::Cgroup => UnshareFlags::NEWCGROUP,
        NamespaceKind::Pid => UnshareFlags::NEWPID,
        NamespaceKind::Network => UnshareFlags::NEWNET,
        NamespaceKind::Uts => UnshareFlags::NEWUTS,
        NamespaceKind::Ipc => UnshareFlags::NEWIPC,
    }
}

/// How the container's process tells that it is made.
struct Ready(OwnedFd);

impl Ready {
    fn tell(self) -> Result<(), Inside> {
        let told = rustix::io::write(&self.0, b"+");
        told.map_err(|e| Inside::Step("tell that all is made", e.into()))?;
        Ok(())
    }
}

/// Starts the container's process, and waits until it is made; its number as this process sees it.
fn launch(
    inside: impl FnOnce(Ready) -> Result<Infallible, Inside>,
    mut pid_file: File,
) -> Result<i32, Failure> {
    let pipe = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let (told, tell) = pipe.map_err(step("make pipe"))?;
    let failure = tell.try_clone().map_err(step("make pipe"))?;
    let pid = match kernel::fork().map_err(step("start process"))? {
        Side::Parent(pid) => pid,
        Side::Child => {
            drop(told);
            let Err(error) = inside(Ready(tell));
            let words = chain(&error);
            if File::from(failure).write_all(words.as_bytes()).is_err() {
                // Who called has left once all was made: the container's log is what is read.
                let _unread = writeln!(io::stderr(), "{words}");
            }
            std::process::exit(1);
        }
    };
    drop((tell, failure));
    let heard = step("hear of the container's process");
    let mut told = File::from(told).take(WORDS_MAX);
    let mut said = vec![0];
    if told.read(&mut said).map_err(&heard)? == 0 {
        let ended = "the container's process ended before it was made";
        return Err(Failure::Inside(ended.to_owned()));
    }
    if said == *b"+" {
        write!(pid_file, "{pid}").map_err(step("write process id"))?;
        return Ok(pid);
    }
    told.read_to_end(&mut said).map_err(&heard)?;
    let said = String::from_utf8_lossy(&said).into_owned();
    Err(Failure::Inside(said))
}

/// Where the terminal goes, while the machine's files can be seen.
fn connect(socket: Option<&Path>, process: &Process) -> Result<Option<OwnedFd>, Failure> {
    let Some(path) = socket.filter(|_| process.terminal) else {
        return Ok(None);
    };
    let connect = || {
        let address = rustix::net::SocketAddrUnix::new(path)?;
        let flags = rustix::net::SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &address)?;
        Ok::<_, rustix::io::Errno>(socket)
    };
    connect()
        .map(Some)
        .map_err(step("connect to the terminal's socket"))
}

fn give(socket: &OwnedFd, terminal: &OwnedFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [terminal.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let name = [IoSlice::new(b"/dev/ptmx")];
    rustix::net::sendmsg(socket, &name, &mut ancillary, SendFlags::empty())?;
    Ok(())
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

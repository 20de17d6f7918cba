//! The process of a container, from being a copy of the runtime to being the program: its user,
//! its rights and what confines it. The order is the kernel's: each step needs rights that a later
//! one gives up.

use crate::config::{Capabilities, Process};
use crate::kernel;
use crate::seccomp::{Profile, ProfileError, Program};
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Why a process is not what it is to be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    #[error("process.args is empty")]
    NoProgram,
    #[error("exec: {0:?}: executable file not found in $PATH")]
    NotFound(String),
    #[error("exec: {0:?}: {1}")]
    Exec(String, String),
    #[error("chdir to cwd ({0:?}) failed: {1}")]
    Directory(PathBuf, String),
    #[error("capability {0:?} is not known")]
    Capability(String),
    #[error("{0}")]
    Step(&'static str, #[source] io::Error),
    #[error(transparent)]
    Seccomp(#[from] ProfileError),
}

/// A step of becoming something.
fn step<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> ProcessError {
    move |error| ProcessError::Step(what, error.into())
}

/// The words of an error of the kernel, as other runtimes have them.
fn words(errno: Errno) -> String {
    let words = match errno {
        Errno::NOENT => "no such file or directory",
        Errno::ACCESS => "permission denied",
        Errno::NOTDIR => "not a directory",
        Errno::ISDIR => "is a directory",
        Errno::NOEXEC => "exec format error",
        other => return other.to_string(),
    };
    words.to_owned()
}

/// A terminal of the container's: its end is this process's three streams from now on; the other.
pub(crate) fn terminal(process: &Process) -> Result<OwnedFd, ProcessError> {
    let make = || {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let outer = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty())?;
        rustix::pty::unlockpt(&outer)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let inner = rustix::pty::ioctl_tiocgptpeer(&outer, flags)?;
        let user = Uid::from_raw(process.user.uid);
        rustix::fs::fchown(&inner, Some(user), None)?;
        rustix::stdio::dup2_stdin(&inner)?;
        rustix::stdio::dup2_stdout(&inner)?;
        rustix::stdio::dup2_stderr(&inner)?;
        rustix::process::ioctl_tiocsctty(&inner)?;
        Ok::<_, Errno>(outer)
    };
    make().map_err(step("make terminal"))
}

/// It can be used as `/dev/console` too.
pub(crate) fn console() -> Result<(), ProcessError> {
    let show = || {
        let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        drop(rustix::fs::open(
            "/dev/console",
            flags,
            Mode::from_raw_mode(0o600),
        )?);
        rustix::mount::mount_bind("/proc/self/fd/0", "/dev/console")
    };
    show().map_err(step("show terminal as /dev/console"))
}

/// The first steps, for which the machine's files are needed.
pub(crate) fn begin(process: &Process) -> Result<(), ProcessError> {
    // Others in the container that have the same user don't look into this one meanwhile.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(step("hide from others"))?;
    rustix::process::setsid().map_err(step("start session"))?;
    kernel::new_keyring().map_err(step("leave keys"))?;
    if let Some(value) = process.oom_score_adj {
        fs::write("/proc/self/oom_score_adj", value.to_string())
            .map_err(step("set oom_score_adj"))?;
    }
    Ok(())
}

/// What is to run, and what confines it.
pub(crate) struct Plan<'a> {
    process: &'a Process,
    apparmor: Option<&'a str>,
    seccomp: Option<Program>,
    capabilities: Sets,
}

impl<'a> Plan<'a> {
    /// Reads and writes nothing.
    pub(crate) fn of(
        process: &'a Process,
        apparmor: Option<&'a str>,
        seccomp: Option<&Profile>,
    ) -> Result<Self, ProcessError> {
        Ok(Self {
            process,
            apparmor,
            seccomp: seccomp.map(Program::of).transpose()?,
            capabilities: Sets::of(&process.capabilities)?,
        })
    }

    /// Gives up all rights that the program does not have; what is left is to execute it.
    pub(crate) fn become_user(&self) -> Result<Ready, ProcessError> {
        let process = self.process;
        kernel::close_on_exec().map_err(step("close descriptors"))?;
        own_streams(process).map_err(step("give streams to the user"))?;
        if let Some(profile) = self.apparmor {
            apparmor(profile).map_err(step("set AppArmor profile"))?;
        }
        // One that only root may enter is the user's all the same.
        let entered = rustix::process::chdir(&process.cwd);
        if process.no_new_privileges {
            rustix::thread::set_no_new_privs(true).map_err(step("set no new privileges"))?;
        } else {
            // Without that only who is privileged may load it: what follows is confined already.
            self.confine()?;
        }
        rustix::process::umask(Mode::from_raw_mode(0o022));
        self.capabilities
            .bound()
            .map_err(step("drop capabilities"))?;
        rustix::thread::set_keep_capabilities(true).map_err(step("keep capabilities"))?;
        let user = &process.user;
        let groups = user.additional_gids.iter();
        let groups: Vec<Gid> = groups.map(|gid| Gid::from_raw(*gid)).collect();
        rustix::thread::set_thread_groups(&groups).map_err(step("set groups"))?;
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(step("set group"))?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(step("set user"))?;
        self.capabilities.set().map_err(step("set capabilities"))?;
        // One on another machine's disk may be the user's alone.
        entered
            .or_else(|_| rustix::process::chdir(&process.cwd))
            .map_err(|e| ProcessError::Directory(process.cwd.clone(), words(e)))?;
        let name = process.args.first().ok_or(ProcessError::NoProgram)?;
        let program = find(name, &process.env)?;
        let c_strings = |list: &[String]| -> Result<Vec<CString>, ProcessError> {
            let list = list.iter().map(|text| CString::new(text.as_bytes()));
            let made: Result<_, _> = list.collect();
            made.map_err(step("pass arguments and environment"))
        };
        Ok(Ready {
            name: name.clone(),
            program: CString::new(program.as_os_str().as_bytes()).map_err(step("name program"))?,
            args: c_strings(&process.args)?,
            env: c_strings(&process.env)?,
        })
    }

    /// The last step before the program where it gets no new privileges.
    pub(crate) fn confine_last(&self) -> Result<(), ProcessError> {
        if self.process.no_new_privileges {
            self.confine()?;
        }
        Ok(())
    }

    fn confine(&self) -> Result<(), ProcessError> {
        match &self.seccomp {
            Some(program) => Ok(program.load()?),
            None => Ok(()),
        }
    }
}

/// A program that can be executed.
pub(crate) struct Ready {
    name: String,
    program: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Ready {
    /// Becomes it; comes back with why not.
    pub(crate) fn run(self) -> ProcessError {
        let error = kernel::execute(&self.program, &self.args, &self.env);
        let words = Errno::from_io_error(&error).map_or_else(|| error.to_string(), words);
        ProcessError::Exec(self.name, words)
    }
}

/// Its streams are the user's, or it could not open `/dev/stderr`.
fn own_streams(process: &Process) -> Result<(), Errno> {
    let null = rustix::fs::makedev(1, 3);
    let streams = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    for stream in streams {
        let stat = rustix::fs::fstat(stream)?;
        let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == null;
        if is_null || stat.st_uid == process.user.uid {
            continue;
        }
        match rustix::fs::fchown(stream, Some(Uid::from_raw(process.user.uid)), None) {
            // Not every file can be given away.
            Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::ROFS) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn apparmor(profile: &str) -> io::Result<()> {
    let own = Path::new("/proc/self/attr/apparmor/exec");
    let path = if own.exists() {
        own
    } else {
        Path::new("/proc/self/attr/exec")
    };
    fs::write(path, format!("exec {profile}"))
}

/// Where a program is, as the container's own `PATH` has it.
fn find(name: &str, env: &[String]) -> Result<PathBuf, ProcessError> {
    let refused = |error| ProcessError::Exec(name.to_owned(), words(error));
    if name.contains('/') {
        return match is_program(Path::new(name)) {
            Ok(()) => Ok(name.into()),
            Err(error) => Err(refused(error)),
        };
    }
    let path = env.iter().rev().find_map(|pair| pair.strip_prefix("PATH="));
    let mut denied = None;
    for dir in path.unwrap_or_default().split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        let place = Path::new(dir).join(name);
        match is_program(&place) {
            Ok(()) => return Ok(place),
            Err(error @ (Errno::ACCESS | Errno::ISDIR)) => denied = denied.or(Some(error)),
            Err(_) => {}
        }
    }
    match denied {
        Some(error) if error == Errno::ACCESS => Err(refused(error)),
        _ => Err(ProcessError::NotFound(name.to_owned())),
    }
}

fn is_program(path: &Path) -> Result<(), Errno> {
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK)
}

/// What the process may do, by the kernel's sets.
#[derive(Debug)]
struct Sets {
    bounding: CapabilitySet,
    ambient: CapabilitySet,
    sets: CapabilitySets,
}

impl Sets {
    fn of(names: &Capabilities) -> Result<Self, ProcessError> {
        let set = |names: &[String]| {
            let mut set = CapabilitySet::empty();
            for name in names {
                let known = name.strip_prefix("CAP_").and_then(CapabilitySet::from_name);
                set |= known.ok_or_else(|| ProcessError::Capability(name.clone()))?;
            }
            Ok::<_, ProcessError>(set)
        };
        Ok(Self {
            bounding: set(&names.bounding)?,
            ambient: set(&names.ambient)?,
            sets: CapabilitySets {
                effective: set(&names.effective)?,
                permitted: set(&names.permitted)?,
                inheritable: set(&names.inheritable)?,
            },
        })
    }

    /// What no program of the container can ever have again.
    fn bound(&self) -> Result<(), Errno> {
        for number in 0..64 {
            let one = CapabilitySet::from_bits_retain(1 << number);
            match rustix::thread::capability_is_in_bounding_set(one) {
                // Past the kernel's last.
                Err(Errno::INVAL) => break,
                Err(error) => return Err(error),
                Ok(held) if held && !self.bounding.contains(one) => {
                    rustix::thread::remove_capability_from_bounding_set(one)?;
                }
                Ok(_) => {}
            }
        }
        Ok(())
    }

    fn set(&self) -> Result<(), Errno> {
        rustix::thread::set_capabilities(None, self.sets)?;
        match rustix::thread::clear_ambient_capability_set() {
            // Kernels before 4.3 have none.
            Err(Errno::INVAL) if self.ambient.is_empty() => return Ok(()),
            done => done?,
        }
        for one in self.ambient.iter() {
            rustix::thread::configure_capability_in_ambient_set(one, true)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_the_path_has_them() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        for (name, mode) in [("first/x", 0o644), ("second/x", 0o755), ("first/y", 0o644)] {
            let file = dir.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        }
        let at = |name: &str| dir.path().join(name).display().to_string();
        let env = vec![format!("PATH={}:{}", at("first"), at("second"))];
        let of = |name: &str| {
            let found = find(name, &env);
            found
                .map(|p| p.display().to_string())
                .map_err(|e| e.to_string())
        };
        assert_eq!(of("x"), Ok(at("second/x")));
        assert_eq!(of("y"), Err("exec: \"y\": permission denied".to_owned()));
        let none = "exec: \"z\": executable file not found in $PATH";
        assert_eq!(of("z"), Err(none.to_owned()));
        let none = format!("exec: {:?}: no such file or directory", at("z"));
        assert_eq!(of(&at("z")), Err(none));
        let directory = format!("exec: {:?}: is a directory", at("first"));
        assert_eq!(of(&at("first")), Err(directory));
    }

    #[test]
    fn capabilities_by_name() {
        let names = |list: &[&str]| list.iter().map(|n| (*n).to_owned()).collect();
        let sets = Sets::of(&Capabilities {
            bounding: names(&["CAP_CHOWN", "CAP_NET_ADMIN"]),
            ..Capabilities::default()
        });
        let expected = CapabilitySet::CHOWN | CapabilitySet::NET_ADMIN;
        assert_eq!(sets.unwrap().bounding, expected);
        let error = Sets::of(&Capabilities {
            effective: names(&["CAP_ALL"]),
            ..Capabilities::default()
        });
        assert_eq!(
            error.unwrap_err().to_string(),
            "capability \"CAP_ALL\" is not known"
        );
    }
}

//! System calls without a safe wrapper in what is linked. The only unsafe code of this crate.

#![allow(
    unsafe_code,
    reason = "fork(2), execve(2), seccomp(2), bpf(2), keyctl(2), close_range(2) and mount_setattr(2) have no safe wrapper in what is linked"
)]

use rustix::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::ffi::{CStr, CString};
use std::io;

/// `SECCOMP_SET_MODE_FILTER`.
const SET_MODE_FILTER: libc::c_long = 1;
/// `KEYCTL_JOIN_SESSION_KEYRING`.
const JOIN_SESSION_KEYRING: libc::c_long = 1;
/// `BPF_PROG_LOAD` and `BPF_PROG_ATTACH`.
const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
/// `BPF_PROG_TYPE_CGROUP_DEVICE`.
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
/// `BPF_CGROUP_DEVICE`.
const ATTACH_DEVICE: u32 = 6;
/// `BPF_F_ALLOW_MULTI`: those of the groups above are asked too.
const ALLOW_MULTI: u32 = 2;

/// Which of two a process is after [`fork`].
pub(crate) enum Side {
    /// The one that was there, and the other's id.
    Parent(i32),
    Child,
}

/// Makes a copy of this process, which has one thread.
pub(crate) fn fork() -> io::Result<Side> {
    debug_assert_eq!(
        std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count),
        1,
        "a copy has one thread, and locks of others would stay locked in it"
    );
    // SAFETY: this process has one thread, so the copy's memory is as consistent as its own.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        pid => Ok(Side::Parent(pid)),
    }
}

/// Becomes a program, without what this process ignores or holds back of signals; comes back with
/// why not.
pub(crate) fn execute(program: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        let list = list.iter().map(|text| text.as_ptr());
        list.chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: the set is made by the first call; handlers become the usual ones.
    unsafe {
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    // SAFETY: both lists end with a null pointer, and their strings live across the call.
    unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
    let error = io::Error::last_os_error();
    // Why not is still to be told, maybe to nobody.
    // SAFETY: ignoring a signal runs no code of this process.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    error
}

/// Descriptors from 3 on are closed by what this process executes.
pub(crate) fn close_on_exec() -> io::Result<()> {
    // SAFETY: only flags of descriptors change; none is closed here.
    let done = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if done == 0 {
        return Ok(());
    }
    // Kernels before 5.11.
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(fd) = name.to_str().and_then(|text| text.parse::<i32>().ok()) else {
            continue;
        };
        if fd > 2 {
            // SAFETY: a flag of a descriptor changes; one that is closed meanwhile is an error.
            let _closed = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// One instruction of classic BPF, as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Filter {
    pub(crate) code: u16,
    pub(crate) yes: u8,
    pub(crate) no: u8,
    pub(crate) k: u32,
}

#[repr(C)]
struct FilterProgram {
    length: u16,
    filter: *const Filter,
}

/// This process' system calls are asked of a filter from now on.
pub(crate) fn set_filter(filter: &[Filter], flags: u32) -> io::Result<()> {
    let length = u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = FilterProgram {
        length,
        filter: filter.as_ptr(),
    };
    // SAFETY: the program and the instructions that it points at live across the call, and the
    // kernel checks them.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SET_MODE_FILTER,
            libc::c_long::from(flags),
            &raw const program,
        )
    };
    check(done)
}

/// Keys of who started this are not for the container.
pub(crate) fn new_keyring() -> io::Result<()> {
    // SAFETY: no name is given, so no memory is read.
    let done = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        )
    };
    match check(done) {
        // A kernel without keys, or a filter around this process: there are none to be had.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Ok(()),
        done => done,
    }
}

/// `struct mount_attr`.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// A mount and all below it can only be read.
pub(crate) fn read_only_recursively(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = MountAttributes {
        set: 1, // MOUNT_ATTR_RDONLY
        clear: 0,
        propagation: 0,
        userns: 0,
    };
    // SAFETY: the empty path ends with NUL, and both live across the call with the size that is
    // told.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    check(done)
}

/// One instruction of extended BPF, as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    /// The target's register below, the source's above.
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    log: [u64; 3],
}

#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// What processes of a control group (version 2) do with devices is asked of a program.
pub(crate) fn set_device_program(group: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    let count = u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let load = Load {
        kind: PROG_TYPE_CGROUP_DEVICE,
        count,
        instructions: program.as_ptr().expose_provenance() as u64,
        licence: c"Apache".as_ptr().expose_provenance() as u64,
        log: [0; 3],
    };
    // SAFETY: the attributes and what they point at live across the call with the sizes that are
    // told; the kernel verifies the program.
    let made =
        unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) };
    check(made)?;
    let made = i32::try_from(made).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel just made this descriptor, and nothing else owns it.
    let made = unsafe { OwnedFd::from_raw_fd(made) };
    let number = |fd: i32| u32::try_from(fd).map_err(|_| io::ErrorKind::InvalidInput);
    let attach = Attach {
        target: number(group.as_raw_fd())?,
        program: number(made.as_raw_fd())?,
        kind: ATTACH_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: the attributes live across the call with the size that is told.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_ATTACH,
            &raw const attach,
            size_of::<Attach>(),
        )
    })
}

fn check(done: libc::c_long) -> io::Result<()> {
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Leaves what the flags name for new ones of this process.
pub(crate) fn unshare(flags: rustix::thread::UnshareFlags) -> io::Result<()> {
    // SAFETY: this process has one thread, so nobody else relies on what it leaves.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

//! Network namespaces, which stand for machines. They need root.

use crate::harness::text;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// What makes the names of one test's namespaces its own; nothing, and a word, without root.
#[allow(clippy::print_stderr, reason = "a skipped test says so")]
pub(crate) fn id() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: network namespaces need root");
        return None;
    }
    static MADE: AtomicU32 = AtomicU32::new(0);
    let made = MADE.fetch_add(1, Ordering::Relaxed);
    Some(format!("{}-{made}", std::process::id()))
}

/// A program in a namespace, for the site or node in a directory.
pub(crate) fn command(namespace: &str, program: &str, data_dir: &Path, home: &Path) -> Command {
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", namespace, program])
        .env("SALP_DATA_DIR", data_dir)
        .env("HOME", home)
        .env_remove("KUBECONFIG");
    command
}

pub(crate) fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().expect("run ip");
    let words = args.join(" ");
    assert!(output.status.success(), "ip {words}: {}", text(&output));
}

/// Runs something in a network namespace; what it makes stays there.
pub(crate) fn inside<T: Send>(namespace: &str, run: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            enter(namespace);
            run()
        });
        there.join().expect("a thread in the namespace")
    })
}

/// Moves this thread, and those that it starts, into a network namespace.
pub(crate) fn enter(namespace: &str) {
    use std::os::fd::AsFd as _;
    let path = format!("/var/run/netns/{namespace}");
    let file = std::fs::File::open(path).expect("namespace");
    let kind = rustix::thread::LinkNameSpaceType::Network;
    rustix::thread::move_into_link_name_space(file.as_fd(), Some(kind)).expect("enter namespace");
}

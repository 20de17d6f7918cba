//! The one seam to what makes containers: the command line that all OCI runtimes share (`create`,
//! `start`, `kill`, `delete`, `exec`), so that any of them on the machine can be used.

use crate::process::{self, Child};
use crate::programs::Program;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Of what a runtime says when it fails, so much is told.
const WORDS_MAX: usize = 1024;

/// Why a runtime did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeamError {
    #[error("run {}", .0.display())]
    Run(PathBuf, #[source] io::Error),
    #[error("OCI runtime {operation} failed: {words}")]
    Refused {
        operation: &'static str,
        words: String,
    },
    #[error("read the process id that the runtime wrote")]
    Pid(#[source] io::Error),
}

/// A runtime on this machine.
#[derive(Clone, Debug)]
pub(crate) struct OciRuntime {
    program: Program,
    /// Where it keeps what it knows of containers.
    state: PathBuf,
}

/// What a started process reads and writes.
pub(crate) struct Streams {
    pub(crate) stdin: Stdio,
    pub(crate) stdout: Stdio,
    pub(crate) stderr: Stdio,
}

impl Streams {
    pub(crate) fn none() -> Self {
        Self {
            stdin: Stdio::null(),
            stdout: Stdio::null(),
            stderr: Stdio::null(),
        }
    }

    pub(crate) fn of(stdin: Option<OwnedFd>, stdout: OwnedFd, stderr: OwnedFd) -> Self {
        Self {
            stdin: stdin.map_or_else(Stdio::null, Stdio::from),
            stdout: stdout.into(),
            stderr: stderr.into(),
        }
    }
}

impl OciRuntime {
    pub(crate) fn new(program: Program, state: PathBuf) -> Self {
        Self { program, state }
    }

    /// Makes a container, whose first process waits; that process.
    pub(crate) async fn create(
        &self,
        id: &str,
        bundle: &Path,
        streams: Streams,
        console: Option<&Path>,
    ) -> Result<Child, SeamError> {
        let options = ["--bundle".as_ref(), bundle.as_ref()];
        self.launch("create", bundle, &options, streams, console, id)
            .await
    }

    /// Lets it run.
    pub(crate) async fn start(&self, id: &str, dir: &Path) -> Result<(), SeamError> {
        self.run("start", dir, Streams::none(), &[id.as_ref()])
            .await
    }

    /// Ends whatever is left of it, and forgets it; one that it does not know is none.
    pub(crate) async fn delete(&self, id: &str, dir: &Path) -> Result<(), SeamError> {
        let args = ["--force".as_ref(), id.as_ref()];
        match self.run("delete", dir, Streams::none(), &args).await {
            Err(SeamError::Refused { words, .. }) if words.contains("does not exist") => Ok(()),
            done => done,
        }
    }

    /// Runs a further program in it; its process.
    pub(crate) async fn exec(
        &self,
        id: &str,
        dir: &Path,
        process: &Path,
        streams: Streams,
        console: Option<&Path>,
    ) -> Result<Child, SeamError> {
        let options = [
            "--detach".as_ref(),
            "--process".as_ref(),
            process.as_os_str(),
        ];
        self.launch("exec", dir, &options, streams, console, id)
            .await
    }

    /// Starts a process of a container; it is this process's child.
    async fn launch(
        &self,
        operation: &'static str,
        dir: &Path,
        options: &[&OsStr],
        streams: Streams,
        console: Option<&Path>,
        id: &str,
    ) -> Result<Child, SeamError> {
        let _hold = process::hold();
        let pid_file = dir.join("pid");
        let mut args = options.to_vec();
        args.extend(["--pid-file".as_ref(), pid_file.as_os_str()]);
        if let Some(console) = console {
            args.extend(["--console-socket".as_ref(), console.as_os_str()]);
        }
        args.push(id.as_ref());
        self.run(operation, dir, streams, &args).await?;
        started(&pid_file)
    }

    /// The names of containers that it still knows.
    pub(crate) fn known(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.state).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }

    async fn run(
        &self,
        operation: &'static str,
        dir: &Path,
        streams: Streams,
        args: &[&OsStr],
    ) -> Result<(), SeamError> {
        let log = dir.join(format!("{operation}.log"));
        let _old = fs::remove_file(&log);
        let mut command = Command::new(&self.program.path);
        command
            .args(&self.program.args)
            .arg("--root")
            .arg(&self.state)
            // Its own words apart from the container's.
            .arg("--log")
            .arg(&log)
            .args(["--log-format", "json", operation])
            .args(args)
            .stdin(streams.stdin)
            .stdout(streams.stdout)
            .stderr(streams.stderr);
        let failed = |source| SeamError::Run(self.program.path.clone(), source);
        let child = process::spawn(&mut command).map_err(failed)?;
        // Its ends of the streams are this process's no more.
        drop(command);
        let status = child.ended().await.map_err(failed)?;
        if status == 0 {
            return Ok(());
        }
        Err(SeamError::Refused {
            operation,
            words: words(&log).unwrap_or_else(|| format!("it ended with {status}")),
        })
    }
}

fn started(pid_file: &Path) -> Result<Child, SeamError> {
    let text = fs::read_to_string(pid_file).map_err(SeamError::Pid)?;
    let pid = text.trim().parse().map_err(|_| io::ErrorKind::InvalidData);
    let pid = pid.map_err(|kind| SeamError::Pid(kind.into()))?;
    process::adopt(pid).map_err(SeamError::Pid)
}

/// The last error in a runtime's log: a JSON object a line.
fn words(log: &Path) -> Option<String> {
    let text = fs::read_to_string(log).ok()?;
    let line = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        (value["level"] == "error").then_some(())?;
        let words = value["msg"].as_str()?;
        Some(words.chars().take(WORDS_MAX).collect())
    };
    text.lines().rev().find_map(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_log_is_what_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("create.log");
        fs::write(
            &log,
            "{\"level\":\"error\",\"msg\":\"first\"}\n{\"level\":\"error\",\"msg\":\"exec: \\\"x\\\": not found\"}\n\
             {\"level\":\"warning\",\"msg\":\"later\"}\nnot JSON\n",
        )
        .unwrap();
        assert_eq!(words(&log).as_deref(), Some("exec: \"x\": not found"));
        assert_eq!(words(&dir.path().join("none")), None);
    }
}

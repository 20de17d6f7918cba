//! Programs that somebody takes part in: run beside a container's own, or attached to.

use crate::ContainerId;
use bytes::Bytes;
use futures::channel::mpsc;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

/// A program to run beside a container's own, in its surroundings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// The run of the container.
    pub container: ContainerId,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Whether input will come; else there is none from the start.
    pub stdin: bool,
    /// Output and errors are one stream, as at a terminal.
    pub tty: bool,
}

/// Somebody to take part in what a container runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachSpec {
    /// The run of the container.
    pub container: ContainerId,
    /// Whether input will come.
    pub stdin: bool,
}

/// A program's standard streams. Dropping `output` ends a program that was run by
/// [`crate::PodRuntime::exec`], and leaves one that was attached to.
pub struct Session {
    /// What it reads; dropping it is the input's end.
    pub input: mpsc::Sender<Bytes>,
    /// What it says, last of all how it ended; without that it was stopped.
    pub output: BoxStream<'static, Said>,
    /// Where the size of who asked's terminal goes, first and whenever it changes; none where the
    /// program has no terminal that has a size.
    pub sizes: Option<mpsc::Sender<TerminalSize>>,
}

/// How much a terminal shows, in letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// In a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Session")
    }
}

/// What comes of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Standard output.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// Its end.
    Exited {
        /// Exit code.
        code: i32,
    },
}

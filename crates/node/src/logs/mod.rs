//! Containers' logs: where they lie, how they are read, when they are rotated away.
//!
//! Runtimes write them, in the Container Runtime Interface's format. Start with
//! [`find`], then [`read::stream`].

pub(crate) mod cri;
pub(crate) mod read;

use crate::agent::Record;
use crate::container::{log_dir, log_path};
use crate::pod::Desired;
use crate::state::Run;
use std::path::{Path, PathBuf};

/// Why there is no log to read; Display is what `kubectl logs` shows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FindError {
    #[error("container {container} is not valid for pod {pod}")]
    NoContainer { container: String, pod: String },
    #[error("container {container:?} in pod {pod:?} is waiting to start: {reason}")]
    Waiting {
        container: String,
        pod: String,
        reason: String,
    },
    #[error("previous terminated container {container:?} in pod {pod:?} not found")]
    NoPrevious { container: String, pod: String },
}

/// A log file, and the run that writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    pub(crate) container: usize,
    pub(crate) attempt: u32,
}

/// The log of a container's newest run, or of the one before it.
pub(crate) fn find(
    dir: &Path,
    record: &Record,
    container: &str,
    previous: bool,
) -> Result<Found, FindError> {
    let desired = &record.desired;
    let names = || (container.to_string(), desired.name.to_string());
    let Some(index) = desired.index_of(container) else {
        let (container, pod) = names();
        return Err(FindError::NoContainer { container, pod });
    };
    let actual = &record.actual.containers[index];
    let last = actual.last.as_ref().map(|last| last.attempt);
    let attempt = match (&actual.run, previous) {
        (Run::Running { .. } | Run::Exited { .. }, false) => Some(actual.attempt),
        (_, false) => last,
        // While it waits in a crash loop the newest run is the terminated one.
        (Run::Exited { exit, restart_at }, true) if *restart_at > 0 => Some(exit.attempt),
        (_, true) => last,
    };
    match attempt {
        Some(attempt) => Ok(Found {
            path: log_path(dir, desired, container, attempt),
            container: index,
            attempt,
        }),
        None if previous => {
            let (container, pod) = names();
            Err(FindError::NoPrevious { container, pod })
        }
        None => {
            let (container, pod) = names();
            let reason = crate::status::waiting_reason(desired, &record.actual, index);
            Err(FindError::Waiting {
                container,
                pod,
                reason,
            })
        }
    }
}

/// Removes the logs of runs before `first`.
pub(crate) fn remove_older(dir: &Path, desired: &Desired, container: &str, first: u32) {
    let dir = log_dir(dir, &desired.namespace, &desired.name, &desired.uid.0).join(container);
    let Ok(entries) = std::fs::read_dir(&dir) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let attempt = name.to_string_lossy();
        let attempt = attempt
            .split('.')
            .next()
            .and_then(|n| n.parse::<u32>().ok());
        if attempt.is_some_and(|n| n < first)
            && let Err(error) = std::fs::remove_file(entry.path())
        {
            tracing::debug!(path = %entry.path().display(), %error, "old log not removed");
        }
    }
}

//! Containers' logs: where they lie and how they are read.
//!
//! Runtimes write them, in the Container Runtime Interface's format.

use crate::container::log_dir;
use crate::pod::Desired;
use std::path::Path;

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

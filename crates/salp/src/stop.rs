//! `salp down`: ends a site's control plane and data plane.

use crate::config::Layout;
use crate::{output, process};
use anyhow::Result;
use rustix::process::Signal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// How long a part may drain before it is killed.
pub const DRAIN: Duration = Duration::from_secs(40);

/// Stops what runs of the site in `data_dir`; nothing running is a success.
pub fn down(data_dir: &Path) -> Result<ExitCode> {
    let layout = Layout::new(data_dir);
    let mut stopped = false;
    if let Some(pid) = process::lock_holder(&layout) {
        // SIGTERM leaves the pods to the data plane, which ends next.
        process::end(pid, Signal::TERM, DRAIN)?;
        stopped = true;
    }
    stopped |= end_pods(&layout)?;
    if stopped {
        crate::api_access::block_on(crate::site::clear(&layout))?;
    } else if crate::api_access::block_on(crate::site::clear_leftovers(&layout))? {
        output::note(format!(
            "took away the routes that the site in {} left when it was killed",
            data_dir.display()
        ));
        return Ok(ExitCode::SUCCESS);
    }
    output::note(if stopped {
        format!("stopped the site in {}", data_dir.display())
    } else {
        format!("nothing runs of the site in {}", data_dir.display())
    });
    Ok(ExitCode::SUCCESS)
}

/// Ends all pods with the processes that they belong to; whether any ran.
pub fn end_pods(layout: &Layout) -> Result<bool> {
    let containers = crate::supervisor::end(layout)?;
    Ok(end_dataplane(layout)? || containers)
}

/// Ends the data plane; whether one ran.
pub fn end_dataplane(layout: &Layout) -> Result<bool> {
    let Some(pid) = process::running(&layout.dataplane_pid()) else {
        return Ok(false);
    };
    process::end(pid, Signal::TERM, DRAIN)?;
    Ok(true)
}

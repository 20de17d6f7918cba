//! Why this process is to stop: signals, and whether the whole machine goes down.
//!
//! SIGTERM alone ends no pod. It does where the machine goes down, as `systemctl` says when systemd
//! stops everything, and so does SIGPWR, by which whatever else stops a machine says it.

use crate::output;
use anyhow::{Context as _, Result, bail};
use node::ShutdownGrace;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long systemd has to say what it does.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// Why the process stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Ctrl-C: everything; the pods run again at the next start.
    Everything,
    /// SIGTERM: this process; pods go on.
    Process,
    /// The machine goes down: pods end for good, in order.
    Machine,
}

/// The signals that stop a process which runs pods.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    power: Signal,
    graceful: bool,
}

impl Signals {
    /// Watches for them from now on; without `graceful` the machine's end is none of its affairs.
    pub fn watch(graceful: bool) -> Result<Self> {
        let watch = |kind| signal(kind).context("watch signals");
        Ok(Self {
            interrupt: watch(SignalKind::interrupt())?,
            terminate: watch(SignalKind::terminate())?,
            power: watch(SignalKind::from_raw(
                rustix::process::Signal::POWER.as_raw(),
            ))?,
            graceful,
        })
    }

    /// Waits for the next.
    pub async fn next(&mut self) -> Stop {
        let machine = tokio::select! {
            _ = self.interrupt.recv() => return Stop::Everything,
            _ = self.terminate.recv() => self.graceful && is_going_down().await,
            _ = self.power.recv() => self.graceful,
        };
        if machine {
            Stop::Machine
        } else {
            Stop::Process
        }
    }
}

/// Ends the pods, if that is why the process stops.
pub async fn end_pods(stop: Stop, node: &node::Node, grace: ShutdownGrace) {
    match stop {
        Stop::Process => {}
        Stop::Everything => {
            output::note("stopping; pods get their grace period");
            node.drain_all().await;
        }
        Stop::Machine => {
            output::note("the machine goes down; pods end for good");
            node.shut_down(grace).await;
        }
    }
}

/// Whether systemd stops the machine. Where nobody can say, it does not: no pod is ended for it.
async fn is_going_down() -> bool {
    let asked = Command::new("systemctl")
        .arg("is-system-running")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(ANSWER_DEADLINE, asked).await {
        Ok(Ok(output)) => output.stdout.trim_ascii() == b"stopping",
        Ok(Err(error)) => {
            tracing::debug!(%error, "systemd not asked");
            false
        }
        Err(_) => {
            tracing::warn!("systemd does not say whether the machine goes down: pods go on");
            false
        }
    }
}

/// What flags or file say of the grace, by upstream's rules.
pub fn grace(total: Option<&str>, critical: Option<&str>) -> Result<ShutdownGrace> {
    let (total_flag, critical_flag) = (
        "--shutdown-grace-period",
        "--shutdown-grace-period-critical-pods",
    );
    let parse = |flag: &str, text: Option<&str>| {
        let Some(text) = text else {
            return Ok(Duration::ZERO);
        };
        let span: jiff::SignedDuration = text
            .parse()
            .with_context(|| format!("use {flag} {text:?}: want a duration such as 30s"))?;
        let time = Duration::try_from(span).with_context(|| format!("use {flag} {text:?}"))?;
        if !time.is_zero() && time < Duration::from_secs(1) {
            bail!("use {flag} {text:?}: want 0 or at least a second");
        }
        Ok(time)
    };
    let grace = ShutdownGrace {
        total: parse(total_flag, total)?,
        critical: parse(critical_flag, critical)?,
    };
    if grace.critical > grace.total {
        bail!("use {critical_flag}: it is a part of {total_flag}, and can't be longer");
    }
    Ok(grace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graces_are_durations_one_within_the_other() {
        let seconds = |total, critical| {
            let grace = grace(Some(total), critical).ok()?;
            Some((grace.total.as_secs(), grace.critical.as_secs()))
        };
        assert_eq!(grace(None, None).unwrap(), ShutdownGrace::default());
        assert_eq!(seconds("1m30s", Some("10s")), Some((90, 10)));
        assert_eq!(seconds("30s", None), Some((30, 0)));
        assert_eq!(seconds("0s", Some("0s")), Some((0, 0)));
        for (total, critical) in [
            ("10s", Some("11s")),
            ("0s", Some("1s")),
            ("-1s", None),
            ("500ms", None),
            ("soon", None),
        ] {
            assert_eq!(seconds(total, critical), None, "{total} {critical:?}");
        }
    }
}

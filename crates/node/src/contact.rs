//! When this node last reached its server, by a clock that no one sets and that runs while the
//! machine sleeps: what partition contracts ([`api::partition`]) are counted by.
//!
//! What is known is kept in a file, for the next agent: the moment counts on the same boot of
//! the machine, the epoch on any.

use api::partition::{self, Epoch};
use parking_lot::Mutex;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Milliseconds since some moment before the machine's boot.
pub(crate) type BootClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The last contact.
pub(crate) struct Contact {
    clock: BootClock,
    /// The file, and which boot of the machine this is.
    file: Option<(PathBuf, String)>,
    /// Held for single reads and writes, and while the file is written.
    known: Mutex<partition::Contact>,
    silence_at_start: Option<Duration>,
}

impl Contact {
    /// Reads what the last agent left in `dir`.
    pub(crate) fn open(dir: &Path) -> Self {
        let clock: BootClock = Arc::new(|| {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
            let milliseconds = now.tv_sec * 1000 + now.tv_nsec / 1_000_000;
            u64::try_from(milliseconds).unwrap_or_default()
        });
        let path = dir.join("contact");
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let boot = boot.trim().to_owned();
        let known = match std::fs::read_to_string(&path) {
            Ok(text) => parse(&text, &boot),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                partition::Contact::default()
            }
            Err(_) => unknown(),
        };
        Self::new(clock, Some((path, boot)), known)
    }

    /// One that knows so much.
    pub(crate) fn new(
        clock: BootClock,
        file: Option<(PathBuf, String)>,
        known: partition::Contact,
    ) -> Self {
        Self {
            silence_at_start: known.silence(clock()),
            known: Mutex::new(known),
            clock,
            file,
        }
    }

    /// Now, for [`Contact::renewed`].
    pub(crate) fn now(&self) -> u64 {
        (self.clock)()
    }

    /// How long there has been no contact; none: never on this boot of the machine.
    pub(crate) fn silence(&self) -> Option<Duration> {
        self.known.lock().silence(self.now())
    }

    /// When the last one was, if there was any.
    pub(crate) fn last(&self) -> Option<u64> {
        let silence = u64::try_from(self.silence()?.as_millis()).ok()?;
        self.now().checked_sub(silence)
    }

    /// How long there was none when the agent started.
    pub(crate) fn silence_at_start(&self) -> Option<Duration> {
        self.silence_at_start
    }

    /// [`partition::Contact::is_over`].
    pub(crate) fn is_over(&self, epoch: &Epoch) -> bool {
        self.known.lock().is_over(epoch)
    }

    /// [`partition::Contact::renewed`], kept for the next agent.
    pub(crate) fn renewed(&self, sent: u64, epoch: &Epoch) {
        let mut known = self.known.lock();
        let new_epoch = known.epoch() != Some(epoch);
        known.renewed(sent, epoch);
        if let Some((path, boot)) = &self.file
            && let Err(error) = keep(
                path,
                format!("{boot} {sent} {epoch}\n").as_bytes(),
                new_epoch,
            )
        {
            // The next agent then counts from an earlier contact: pods may end too early,
            // never too late.
            tracing::debug!(%error, "last contact not kept");
        }
    }
}

fn parse(text: &str, boot: &str) -> partition::Contact {
    let mut words = text.split_whitespace();
    let (Some(of), Some(at), Some(epoch)) = (words.next(), words.next(), words.next()) else {
        return unknown();
    };
    let Some((lease, Ok(count))) = epoch.rsplit_once('/').map(|(l, n)| (l, n.parse())) else {
        return unknown();
    };
    let at = at.parse().ok().filter(|_| !boot.is_empty() && of == boot);
    let lease = lease.to_owned();
    partition::Contact::known(at, Some(Epoch { lease, count }))
}

/// What a damaged file stands for: no server has given this epoch.
fn unknown() -> partition::Contact {
    let lease = "?".to_owned();
    partition::Contact::known(None, Some(Epoch { lease, count: 0 }))
}

/// Replaces a small file. A lost moment of contact costs little, and comes every ten seconds; a
/// lost epoch, or who has which devices, does not.
pub(crate) fn keep(path: &Path, bytes: &[u8], durably: bool) -> std::io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(bytes)?;
    if durably {
        file.sync_all()?;
    }
    std::fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(count: u64) -> Epoch {
        let lease = "a".to_owned();
        Epoch { lease, count }
    }

    #[test]
    fn the_next_agent_knows_of_the_last_contact() {
        let dir = tempfile::tempdir().unwrap();
        let first = Contact::open(dir.path());
        assert_eq!((first.silence_at_start(), first.silence()), (None, None));
        assert!(!first.is_over(&epoch(0)), "the first epoch");
        first.renewed(first.now(), &epoch(0));
        let second = Contact::open(dir.path());
        assert!(second.silence_at_start().is_some());
        assert!(second.is_over(&epoch(1)));

        let file = dir.path().join("contact");
        std::fs::write(&file, "another-boot 5 a/1").unwrap();
        let rebooted = Contact::open(dir.path());
        assert_eq!(rebooted.silence_at_start(), None);
        assert!(!rebooted.is_over(&epoch(1)));
        std::fs::write(&file, "").unwrap();
        let damaged = Contact::open(dir.path());
        assert_eq!(damaged.silence(), None);
        assert!(damaged.is_over(&epoch(1)), "who knows");
    }
}

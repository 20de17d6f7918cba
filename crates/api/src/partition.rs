//! What becomes of a pod whose node is cut off from its server, as its annotations say.
//!
//! Both sides are here, pure, so that they can't disagree: the node, which ends pods by its
//! own clock ([`Contact`]), and the server, which replaces none that may still run
//! ([`Heard`]). What joins them is the node's Lease: only a renewal of it is contact, and
//! before the server replaces a pod it writes a new epoch there, on the condition that the
//! Lease is as it last heard it. So either the renewal came first, and nothing is replaced,
//! or the node's next renewal fails, and it learns that its epoch is over. Times are
//! milliseconds of a clock of one's own that no one sets. `simulation` runs both sides
//! through cuts, delays and restarts.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

#[cfg(test)]
mod simulation;

/// `keep` or `stop`.
pub const ANNOTATION: &str = "salp.dev/when-disconnected";
/// How long after the node last reached its server, such as `45s`.
pub const ANNOTATION_AFTER: &str = "salp.dev/after";
/// Of a node's Lease: counts how often the server has given its `stop` pods up.
pub const ANNOTATION_EPOCH: &str = "salp.dev/epoch";
/// When the annotation says nothing.
pub const AFTER_DEFAULT: Duration = Duration::from_secs(45);
/// Shorter ones mean this: a node tells that it lives every ten seconds.
pub const AFTER_MIN: Duration = Duration::from_secs(15);
/// What the node may take beyond the pod's own grace to notice, and to have ended it.
pub const MARGIN: Duration = Duration::from_secs(10);
/// By how much two clocks may part, in thousandths: each is off by 100 ppm, and may be
/// slewed by another 500.
const DRIFT_PER_MILLE: u32 = 2;

/// The epoch that a Lease's annotations tell; the first, where they tell none.
pub fn epoch_of(annotations: Option<&BTreeMap<String, String>>) -> u64 {
    let told = annotations.and_then(|all| all.get(ANNOTATION_EPOCH)?.parse().ok());
    told.unwrap_or_default()
}

/// The contract of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Contract {
    /// None is stated: the node runs on, and the server replaces the pod when its tolerations
    /// of the unreachable node are over, as on any Kubernetes.
    #[default]
    Unstated,
    /// The node runs on, and the server replaces nothing.
    Keep,
    /// The node ends the pod for good when it has been cut off this long, and only when that
    /// must have happened the server replaces it.
    Stop {
        /// Counted from when the node last reached its server.
        after: Duration,
    },
}

impl Contract {
    /// Reads a pod's annotations. What can't be read is the default.
    pub fn of<'a>(annotation: impl Fn(&str) -> Option<&'a str>) -> Self {
        match annotation(ANNOTATION) {
            Some("keep") => Self::Keep,
            Some("stop") => {
                let stated = annotation(ANNOTATION_AFTER).and_then(seconds);
                Self::Stop {
                    after: stated.unwrap_or(AFTER_DEFAULT).max(AFTER_MIN),
                }
            }
            _ => Self::Unstated,
        }
    }

    /// On the node: whether the pod may not run after this silence; none: there was no
    /// contact at all.
    pub fn forbids(self, silence: Option<Duration>) -> bool {
        match self {
            Self::Stop { after } => silence.is_none_or(|silence| silence >= after),
            Self::Unstated | Self::Keep => false,
        }
    }

    /// On the server: after which silence of the node the pod has ended there for certain;
    /// none when no silence says so.
    pub fn replaced_after(self, grace: Duration) -> Option<Duration> {
        let Self::Stop { after } = self else {
            return None;
        };
        let node = after.saturating_add(grace).saturating_add(MARGIN);
        Some(node.saturating_add(node / 1000 * DRIFT_PER_MILLE))
    }
}

/// Between two of these the server has given up the `stop` pods of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// UID of the node's Lease: one made anew begins again.
    pub lease: String,
    /// [`ANNOTATION_EPOCH`].
    pub count: u64,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.lease, self.count)
    }
}

/// What a node knows of its contact with its server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contact {
    /// When the last renewal was sent that the server answered.
    last_ms: Option<u64>,
    /// The epoch that the node is in; none before the first contact.
    epoch: Option<Epoch>,
}

impl Contact {
    /// What an earlier run knew: the moment, if it is of the same clock, and the epoch.
    pub fn known(last_ms: Option<u64>, epoch: Option<Epoch>) -> Self {
        Self { last_ms, epoch }
    }

    /// How long there has been no contact; none: never.
    pub fn silence(&self, now_ms: u64) -> Option<Duration> {
        self.last_ms
            .map(|at| Duration::from_millis(now_ms.saturating_sub(at)))
    }

    /// The epoch, for the next run.
    pub fn epoch(&self) -> Option<&Epoch> {
        self.epoch.as_ref()
    }

    /// Whether the server, which now names this epoch, has given up the `stop` pods that the
    /// node has: they end for good, before [`Contact::renewed`].
    pub fn is_over(&self, epoch: &Epoch) -> bool {
        match &self.epoch {
            Some(known) => known != epoch,
            // It may have been told of pods before it could renew anything.
            None => epoch.count > 0,
        }
    }

    /// The server answered a renewal that was sent then: it counts from when it was *sent*,
    /// so that the node is never later than the server. Hold all contracts against
    /// [`Contact::silence`] before: this ends it.
    pub fn renewed(&mut self, sent_ms: u64, epoch: &Epoch) {
        self.last_ms = self.last_ms.max(Some(sent_ms));
        if self.epoch.as_ref() != Some(epoch) {
            self.epoch = Some(epoch.clone());
        }
    }
}

/// A Lease, as far as the server looks at it here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// `resourceVersion`.
    pub version: String,
    /// `renewTime`, by the node's clock: it only differs or not.
    pub renewed: Option<jiff::Timestamp>,
    /// [`ANNOTATION_EPOCH`].
    pub epoch: u64,
}

/// What the server has heard of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    last: Renewal,
    at_ms: u64,
    fenced: bool,
}

impl Heard {
    /// The server sees the Lease for the first time since it started.
    pub fn first(lease: Renewal, now_ms: u64) -> Self {
        Self {
            last: lease,
            at_ms: now_ms,
            fenced: false,
        }
    }

    /// The server is told of the Lease. Anything but a new epoch is a sign of life.
    pub fn told(&mut self, lease: Renewal, now_ms: u64) {
        if lease.version == self.last.version {
            return;
        }
        let own = lease.renewed == self.last.renewed && lease.epoch != self.last.epoch;
        if !own {
            self.at_ms = now_ms;
            self.fenced = false;
        }
        self.last = lease;
    }

    /// For how long nothing was heard.
    pub fn silence(&self, now_ms: u64) -> Duration {
        Duration::from_millis(now_ms.saturating_sub(self.at_ms))
    }

    /// The epoch to write before pods are replaced, and the version that the Lease must
    /// still have; none when it was written in this silence.
    pub fn fence(&self) -> Option<(u64, &str)> {
        (!self.fenced).then(|| (self.last.epoch + 1, &*self.last.version))
    }

    /// The epoch was written, and this is the Lease now.
    pub fn fenced(&mut self, lease: Renewal) {
        self.fenced = true;
        self.last = lease;
    }
}

/// `90s`, `2m`, `1h` or seconds alone.
fn seconds(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    let count: u64 = digits.parse().ok()?;
    Some(Duration::from_secs(count.checked_mul(unit)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contracts_are_read_from_annotations() {
        let of = |when: Option<&'static str>, after: Option<&'static str>| {
            Contract::of(|key| match key {
                ANNOTATION => when,
                ANNOTATION_AFTER => after,
                _ => None,
            })
        };
        let stop = |seconds| Contract::Stop {
            after: Duration::from_secs(seconds),
        };
        assert_eq!(of(None, Some("45s")), Contract::Unstated);
        assert_eq!(of(Some("keep"), None), Contract::Keep);
        assert_eq!(of(Some("stop"), None), stop(45));
        assert_eq!(of(Some("stop"), Some("2m")), stop(120));
        assert_eq!(of(Some("stop"), Some("90")), stop(90));
        assert_eq!(of(Some("stop"), Some("1s")), stop(15));
        assert_eq!(of(Some("stop"), Some("soon")), stop(45));
        assert_eq!(of(Some("leave"), None), Contract::Unstated);
    }

    #[test]
    fn the_server_waits_longer_than_the_node() {
        let after = Duration::from_secs(45);
        let stop = Contract::Stop { after };
        assert!(stop.forbids(None) && stop.forbids(Some(after)));
        assert!(!stop.forbids(Some(after - Duration::from_millis(1))));
        assert!(!Contract::Keep.forbids(None));
        let grace = Duration::from_secs(30);
        let waits = stop.replaced_after(grace).unwrap();
        assert!(waits > after + grace + MARGIN);
        assert_eq!(Contract::Keep.replaced_after(grace), None);
        assert_eq!(Contract::Unstated.replaced_after(grace), None);
        // A day's drift counts.
        let day = Duration::from_secs(86_400);
        let waits = Contract::Stop { after: day }.replaced_after(grace).unwrap();
        assert!(waits > day + grace + MARGIN + Duration::from_secs(100));
    }

    #[test]
    fn a_renewal_and_a_fence_shut_each_other_out() {
        let lease = |version: &str, second: i64, epoch| Renewal {
            version: version.to_owned(),
            renewed: jiff::Timestamp::from_second(second).ok(),
            epoch,
        };
        let mut heard = Heard::first(lease("1", 10, 0), 5_000);
        assert_eq!(heard.silence(65_000), Duration::from_secs(60));
        assert_eq!(heard.fence(), Some((1, "1")));
        heard.fenced(lease("2", 10, 1));
        assert_eq!(heard.fence(), None);
        // Its own write comes back, and is no sign of life.
        heard.told(lease("2", 10, 1), 66_000);
        assert_eq!(heard.silence(66_000), Duration::from_secs(61));
        heard.told(lease("3", 70, 1), 70_000);
        assert_eq!(heard.silence(70_000), Duration::ZERO);
        assert_eq!(heard.fence(), Some((2, "3")));
        // Told of before it was answered.
        heard.told(lease("4", 70, 2), 80_000);
        assert_eq!(heard.silence(80_000), Duration::from_secs(10));

        let mut contact = Contact::default();
        assert_eq!(contact.silence(1), None);
        let epoch = |lease: &str, count| Epoch {
            lease: lease.to_owned(),
            count,
        };
        assert!(!contact.is_over(&epoch("a", 0)), "the first ends nothing");
        assert!(contact.is_over(&epoch("a", 1)), "before the first contact");
        contact.renewed(10, &epoch("a", 0));
        assert!(!contact.is_over(&epoch("a", 0)) && contact.is_over(&epoch("a", 1)));
        contact.renewed(30, &epoch("a", 1));
        contact.renewed(25, &epoch("a", 1));
        assert_eq!(contact.silence(40), Some(Duration::from_millis(10)));
        let next = Contact::known(None, contact.epoch().cloned());
        assert!(
            next.is_over(&epoch("b", 0)),
            "another Lease is another epoch"
        );
    }
}

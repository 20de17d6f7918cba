//! Partition contracts ([`api::partition`]) held against how long the server was out of reach.

use super::{Agent, Record, Slot};
use crate::plan;
use crate::state::{Ended, Sandbox};
use api::partition::{Contract, Epoch};
use std::sync::Arc;
use std::time::Duration;

/// What a pod's contract says of it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    May,
    /// It may not run, and nothing of it does: it is started when there is contact.
    Waits,
    /// It ends, now or already.
    Ends,
}

impl Agent {
    /// Ends a pod that runs and may not. It is over for good: the server may have replaced
    /// it by then.
    pub(super) fn check_contract(&self, record: &mut Record, silence: Option<Duration>) -> Verdict {
        let over = record.actual.ended.is_some()
            || record.desired.deleting
            || record.actual.gone
            || plan::has_finished(&record.desired, &record.actual);
        if over || !record.desired.contract.forbids(silence) {
            return Verdict::May;
        }
        if matches!(
            record.actual.sandbox,
            Sandbox::Absent | Sandbox::Failed { .. }
        ) {
            return Verdict::Waits;
        }
        self.disconnect(
            record,
            "The node was cut off from its server for longer than the pod allows",
        );
        Verdict::Ends
    }

    fn disconnect(&self, record: &mut Record, message: &str) {
        record.actual.ended = Some(Ended {
            reason: "NodeDisconnected".into(),
            message: message.into(),
        });
        self.events
            .warning(&*record.desired.pod, "NodeDisconnected", message);
    }

    /// Holds all contracts against how long there has been no contact.
    pub(crate) fn check_contracts(&self) {
        let silence = self.contact.silence();
        for slot in self.slots() {
            let mut record = slot.lock();
            if self.check_contract(&mut record, silence) == Verdict::Ends {
                self.queue.add(slot.uid.clone());
            }
        }
    }

    /// The API server answered a renewal of the Lease that was sent then, and this is the
    /// Lease's epoch.
    pub(crate) fn contacted(self: &Arc<Self>, sent: u64, epoch: &Epoch) {
        self.check_contracts();
        let stops =
            |slot: &Arc<Slot>| matches!(slot.lock().desired.contract, Contract::Stop { .. });
        if self.contact.is_over(epoch) {
            for slot in self.slots().into_iter().filter(stops) {
                self.give_up(&slot);
            }
        }
        self.contact.renewed(sent, epoch);
        for slot in self.slots().into_iter().filter(stops) {
            // It may have waited for this.
            self.queue.add(slot.uid.clone());
        }
        self.tell_contact(sent);
    }

    /// The server has given the pod up, and may have replaced it.
    fn give_up(self: &Arc<Self>, slot: &Arc<Slot>) {
        let mut record = slot.lock();
        if plan::has_finished(&record.desired, &record.actual) {
            return;
        }
        record.fenced = true;
        if record.actual.ended.is_none() && !record.desired.deleting {
            self.disconnect(&mut record, "The server gave up the pods of this node");
        }
        drop(record);
        self.spawn_job(slot, |agent, slot| async move { agent.kill(&slot).await });
    }

    /// Tells the runtimes, which end by themselves what an agent that is gone does not.
    pub(crate) fn tell_contact(&self, at: u64) {
        for (name, runtime) in &self.runtimes {
            let (name, runtime) = (name.clone(), runtime.clone());
            self.scope.spawn_cancellable(async move {
                if let Err(error) = runtime.contact(at).await {
                    tracing::debug!(runtime = name, %error, "contact not told");
                }
            });
        }
    }

    /// Kills what runs of a pod, whatever grace it was given before.
    async fn kill(&self, slot: &Slot) {
        let (runtime, alive) = {
            let record = slot.lock();
            let pairs = record
                .desired
                .containers
                .iter()
                .zip(&record.actual.containers);
            let alive: Vec<_> = pairs
                .filter(|(_, c)| c.run.is_alive())
                .map(|(d, c)| crate::container::container_id(&record.desired, &d.name, c.attempt))
                .collect();
            (self.runtime(record.runtime.unwrap_or(0)).clone(), alive)
        };
        for id in alive {
            if let Err(error) = runtime.stop_container(&id, 0).await {
                // The pod is ending, and is tried again.
                tracing::debug!(container = id.0, %error, "container not killed");
            }
        }
    }

    /// Seconds of grace that are left to a pod that ends: by `after` and its grace all is
    /// over, however late that was noticed, and before the machine goes down.
    pub(crate) fn grace_left_s(&self, record: &Record) -> u64 {
        let grace = match record.ends_by {
            Some(at) => at.saturating_sub(self.now()).div_ceil(1000),
            None => record.desired.grace_s,
        };
        let Contract::Stop { after } = record.desired.contract else {
            return grace;
        };
        if record.fenced {
            return 0;
        }
        let silence = self.contact.silence().unwrap_or(Duration::MAX);
        let left = after.saturating_add(Duration::from_secs(grace));
        left.saturating_sub(silence).as_secs().min(grace)
    }
}

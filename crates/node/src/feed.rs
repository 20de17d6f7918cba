//! What wakes the agent: pods from the API server, changes from the runtimes.

use crate::agent::Agent;
use crate::pod::{Uid, uid_of};
use crate::sleep::is_standby;
use crate::static_pods::{self, is_mirror};
use client::{Change, Informer};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// Sandboxes read at once after changes.
const LOOKS_MAX: usize = 16;
/// Delay before a lost runtime is asked again.
const RUNTIME_RETRY: Duration = Duration::from_millis(200);

/// Lists what every runtime has, so that pods that run are adopted when they are first
/// heard of. Returns when all have answered.
pub(crate) async fn list_runtimes(agent: &Agent) {
    for (index, (handler, runtime)) in agent.runtimes.iter().enumerate() {
        let sandboxes = loop {
            match runtime.sandboxes().await {
                Ok(sandboxes) => break sandboxes,
                Err(error) => {
                    tracing::debug!(handler, %error, "runtime not reached, trying again");
                    tokio::time::sleep(RUNTIME_RETRY).await;
                }
            }
        };
        let mut adoptable = agent.adoptable.lock();
        for sandbox in sandboxes {
            let uid = Uid::from(sandbox.id.0.as_str());
            if is_standby(&uid) {
                // No pod that comes meanwhile must get its address.
                agent.addresses.adopt(&uid, sandbox.ip);
            }
            adoptable.insert(uid, (index, sandbox));
        }
    }
}

/// Follows the pods that are bound to this node.
pub(crate) async fn follow_pods(agent: Arc<Agent>, pods: Informer<Pod>) {
    let mine = {
        let name = agent.fixed.name.clone();
        move |pod: &Pod| pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(&name)
    };
    let mut changes = pods.subscribe();
    while let Some(change) = changes.next().await {
        match change {
            Change::Resync => {
                let all = pods.list();
                let known: HashSet<Uid> = all
                    .iter()
                    .filter(|p| mine(p))
                    .filter_map(|p| uid_of(p))
                    .collect();
                let mirrors = static_pods::keys(all.iter().filter(|p| mine(p)));
                for pod in all.iter().filter(|p| mine(p)) {
                    take_in(&agent, pod);
                }
                agent.mirrors.retain(&mirrors);
                agent.retain(&known);
                agent.adoptable.lock().retain(|uid, _| is_standby(uid));
                remove_unknown(&agent).await;
                agent.pods_known.send_replace(true);
            }
            Change::Object { old, new, .. } => {
                let new = new.filter(|p| mine(p));
                // One name, another pod: the old one is gone though no delete was told.
                let old = old.filter(|o| mine(o));
                if let Some(old) = old.as_ref().filter(|old| is_mirror(old))
                    && new.is_none()
                {
                    agent.mirrors.gone(old);
                }
                if let Some(old) = old.and_then(|o| uid_of(&o))
                    && new.as_ref().and_then(|n| uid_of(n)).as_ref() != Some(&old)
                {
                    agent.gone(&old);
                }
                if let Some(new) = new {
                    take_in(&agent, &new);
                }
            }
        }
    }
}

/// A pod to run, or one that only shows what runs anyway.
fn take_in(agent: &Arc<Agent>, pod: &Arc<Pod>) {
    if is_mirror(pod) {
        agent.mirrors.told(agent, pod);
    } else {
        agent.update(pod.clone(), true);
    }
}

/// Removes sandboxes of pods that nobody wants: deleted while the agent was away.
async fn remove_unknown(agent: &Arc<Agent>) {
    for (_, runtime) in &agent.runtimes {
        let Ok(sandboxes) = runtime.sandboxes().await else {
            continue;
        };
        for sandbox in sandboxes {
            let uid = Uid::from(sandbox.id.0.as_str());
            // Those that stand by are looked after elsewhere (`sleep`).
            if !is_standby(&uid) && agent.slot(&uid).is_none() {
                tracing::info!(
                    namespace = sandbox.namespace,
                    pod = sandbox.name,
                    "removing a sandbox that no pod owns"
                );
                if let Err(error) = runtime.remove_sandbox(&sandbox.id).await {
                    tracing::warn!(uid = sandbox.id.0, %error, "sandbox not removed");
                }
            }
        }
    }
}

/// Follows one runtime: what it has now, then what changes; again when it was lost.
pub(crate) async fn follow_runtime(agent: Arc<Agent>, index: usize) {
    let runtime = agent.runtime(index).clone();
    loop {
        // Hints first, then the list, so that nothing falls between.
        let hints = match runtime.changes().await {
            Ok(hints) => hints,
            Err(error) => {
                tracing::debug!(%error, "runtime not reached, trying again");
                tokio::time::sleep(RUNTIME_RETRY).await;
                continue;
            }
        };
        adopt(&agent, index).await;
        let agent = &agent;
        hints
            .for_each_concurrent(LOOKS_MAX, |changed| async move {
                let uid = Uid::from(changed.0.0.as_str());
                if let Some(slot) = agent.slot(&uid) {
                    agent.look(&slot).await;
                    agent.queue.add(uid);
                } else if is_standby(&uid) {
                    agent.standby_hints.changed(uid);
                }
            })
            .await;
        tokio::time::sleep(RUNTIME_RETRY).await;
    }
}

/// Takes over all sandboxes that the runtime has; those of known pods that it lost are
/// lost.
pub(crate) async fn adopt(agent: &Arc<Agent>, index: usize) {
    let asked_at = agent.deeds();
    let sandboxes = match agent.runtime(index).sandboxes().await {
        Ok(sandboxes) => sandboxes,
        Err(error) => {
            tracing::debug!(%error, "sandboxes not listed");
            return;
        }
    };
    agent.standby_hints.all();
    if let Some(at) = agent.contact.last() {
        agent.tell_contact(at);
    }
    let mut seen = HashSet::new();
    for sandbox in &sandboxes {
        let uid = Uid::from(sandbox.id.0.as_str());
        if let Some(slot) = agent.slot(&uid) {
            if slot.lock().done_at > asked_at {
                agent.look(&slot).await;
            } else {
                agent.observe(&slot, index, Some(sandbox));
            }
            agent.queue.add(uid.clone());
        }
        seen.insert(uid);
    }
    for slot in agent.slots() {
        let here = slot.lock().runtime == Some(index);
        if here && !seen.contains(&slot.uid) {
            agent.look(&slot).await;
            agent.queue.add(slot.uid.clone());
        }
    }
}

//! What the server forgets by itself: Events after an hour, and superseded revisions.

use crate::cache::{Cache, Object};
use crate::registry::Call;
use crate::row::Row;
use crate::server_state::Core;
use lifecycle::Scope;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// How long an Event stays after its last write.
const EVENT_TTL: Duration = Duration::from_secs(3600);
/// Events kept at most; the longest unchanged go first.
const EVENTS_KEPT_MAX: usize = 10_000;
/// How often Events are looked through.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// How much history watches and continued lists can reach back over.
const HISTORY: Duration = Duration::from_secs(300);

/// Runs both sweeps in `scope`.
pub(crate) fn start(core: &Arc<Core>, scope: &Scope) {
    scope.spawn_cancellable(events(Arc::downgrade(core)));
    scope.spawn_cancellable(compaction(Arc::downgrade(core)));
}

async fn events(core: Weak<Core>) {
    // Revision at which each Event was last seen, and since when.
    let mut seen: HashMap<Arc<str>, (u64, Instant)> = HashMap::new();
    let mut interval = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        interval.tick().await;
        let Some(core) = core.upgrade() else { return };
        if !core.on_duty() {
            continue;
        }
        let due = due(&core.cache, &mut seen, Instant::now());
        let Some(row) = Row::builtin("", "v1", "events") else {
            return;
        };
        let user = Core::own_user();
        for object in due {
            let call = Call::own(&core, &row, object.namespace(), object.name(), &user);
            if let Err(e) = call.remove(&object, &object.value()).await {
                // Written meanwhile: it lives on.
                tracing::debug!(error = %e, event = %object.key, "expiring an Event");
            }
        }
    }
}

/// Events that have not changed for the TTL, and those above the bound.
fn due(
    cache: &Cache,
    seen: &mut HashMap<Arc<str>, (u64, Instant)>,
    now: Instant,
) -> Vec<Arc<Object>> {
    let mut objects = cache
        .named("", "events")
        .map(|k| k.all())
        .unwrap_or_default();
    let mut next = HashMap::with_capacity(objects.len());
    for o in &objects {
        let since = match seen.get(&o.key) {
            Some((revision, since)) if *revision == o.revision => *since,
            _ => now,
        };
        next.insert(o.key.clone(), (o.revision, since));
    }
    *seen = next;
    objects.sort_by_key(|o| o.revision);
    let surplus = objects.len().saturating_sub(EVENTS_KEPT_MAX);
    objects
        .into_iter()
        .enumerate()
        .filter(|(i, o)| {
            *i < surplus
                || seen
                    .get(&o.key)
                    .is_some_and(|(_, since)| now - *since >= EVENT_TTL)
        })
        .map(|(_, o)| o)
        .collect()
}

async fn compaction(core: Weak<Core>) {
    let mut interval = tokio::time::interval(HISTORY);
    let mut before = None;
    loop {
        interval.tick().await;
        let Some(core) = core.upgrade() else { return };
        let Ok(newest) = core.store.revision().await else {
            continue;
        };
        if let Some(old) = before.replace(newest)
            && old < newest
            && core.on_duty()
            && let Err(e) = core.store.compact(old).await
        {
            tracing::warn!(error = %e, "compacting the store");
        }
    }
}

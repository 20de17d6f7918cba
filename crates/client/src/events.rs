//! Recording core/v1 Events: what `kubectl describe` shows of what happened to an object.
//!
//! Best effort: recording never blocks and never fails. Repeats of an event raise its
//! count instead of making a new one; many events about one object that differ only in
//! their message are combined, and a flood about one object is cut (as upstream does).

use crate::Clock;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use std::collections::{HashMap, VecDeque};
use tokio::sync::mpsc;

/// Events that wait to be sent; more are dropped, and counted in a log line.
pub const EVENTS_PENDING_MAX: usize = 1000;
/// Events and objects remembered for counting; the oldest are forgotten beyond it.
pub const EVENTS_REMEMBERED_MAX: usize = 2048;
/// Events about one object at once; then one more every [`REFILL_SECONDS`].
const BURST: f64 = 25.0;
const REFILL_SECONDS: f64 = 300.0;
/// Events alike but for their message, within [`SIMILAR_SECONDS`], that are still kept apart.
const SIMILAR_MAX: u32 = 10;
const SIMILAR_SECONDS: i64 = 600;

/// Whether an event is bad news.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// As it should be.
    Normal,
    /// Something a person may have to look at.
    Warning,
}

impl EventType {
    /// As the API has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Records events of one component. Clones share the queue.
#[derive(Clone, Debug)]
pub struct EventRecorder {
    queue: mpsc::Sender<Occurrence>,
}

#[derive(Clone, Debug)]
struct Occurrence {
    about: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
}

impl EventRecorder {
    /// A recorder for a component (`kubelet`, `default-scheduler`…); `host` is the node's
    /// name, or empty. Events are sent by a task in `scope`.
    pub fn new(
        client: kube::Client,
        component: &str,
        host: &str,
        clock: Clock,
        scope: &lifecycle::Scope,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(EVENTS_PENDING_MAX);
        let sender = Sender {
            client,
            component: component.to_owned(),
            host: host.to_owned(),
            clock,
            correlator: Correlator::default(),
        };
        scope.spawn_cancellable(sender.run(waiting));
        Self { queue }
    }

    /// A recorder whose events go nowhere.
    pub fn silent() -> Self {
        Self {
            queue: mpsc::channel(1).0,
        }
    }

    /// Records an event about an object that `about` names.
    pub fn record(&self, about: ObjectReference, kind: EventType, reason: &str, message: &str) {
        let occurrence = Occurrence {
            about,
            kind,
            reason: reason.to_owned(),
            message: message.to_owned(),
        };
        if let Err(mpsc::error::TrySendError::Full(lost)) = self.queue.try_send(occurrence) {
            tracing::debug!(reason = lost.reason, "event dropped, too many wait");
        }
    }

    /// Records that something went as it should.
    pub fn normal<K: kube::Resource<DynamicType = ()>>(&self, on: &K, reason: &str, message: &str) {
        self.record(reference(on), EventType::Normal, reason, message);
    }

    /// Records bad news.
    pub fn warning<K: kube::Resource<DynamicType = ()>>(
        &self,
        on: &K,
        reason: &str,
        message: &str,
    ) {
        self.record(reference(on), EventType::Warning, reason, message);
    }
}

/// A reference to an object as events carry it.
pub fn reference<K: kube::Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    ObjectReference {
        resource_version: object.meta().resource_version.clone(),
        ..object.object_ref(&())
    }
}

struct Sender {
    client: kube::Client,
    component: String,
    host: String,
    clock: Clock,
    correlator: Correlator,
}

impl Sender {
    async fn run(mut self, mut waiting: mpsc::Receiver<Occurrence>) {
        while let Some(occurrence) = waiting.recv().await {
            let now = self.clock.now();
            let Some(decided) = self.correlator.decide(occurrence, now) else {
                continue;
            };
            if let Err(error) = self.send(decided, now).await {
                tracing::debug!(%error, "event not recorded");
            }
        }
    }

    async fn send(&mut self, decided: Decided, now: jiff::Timestamp) -> Result<(), kube::Error> {
        let namespace = decided
            .occurrence
            .about
            .namespace
            .clone()
            .unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        if let Some(name) = &decided.known_as {
            let patch = serde_json::json!({
                "count": decided.count,
                "message": decided.occurrence.message,
                "lastTimestamp": Time(now),
            });
            let patched = api
                .patch(name, &PatchParams::default(), &Patch::Merge(patch))
                .await;
            match patched {
                Ok(_) => return Ok(()),
                // Expired meanwhile: make it anew.
                Err(error) if crate::is_not_found(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let event = self.event(&decided, &namespace, now);
        let name = event.metadata.name.clone();
        api.create(&PostParams::default(), &event).await?;
        self.correlator.sent(decided.identity, name);
        Ok(())
    }

    fn event(&self, decided: &Decided, namespace: &str, now: jiff::Timestamp) -> Event {
        let Occurrence {
            about,
            kind,
            reason,
            message,
        } = decided.occurrence.clone();
        Event {
            metadata: ObjectMeta {
                name: Some(format!(
                    "{}.{:x}",
                    about.name.as_deref().unwrap_or_default(),
                    now.as_nanosecond()
                )),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: about,
            type_: Some(kind.as_str().to_owned()),
            reason: Some(reason),
            message: Some(message),
            count: Some(decided.count),
            first_timestamp: Some(Time(decided.first)),
            last_timestamp: Some(Time(now)),
            source: Some(EventSource {
                component: Some(self.component.clone()),
                host: Some(self.host.clone()).filter(|h| !h.is_empty()),
            }),
            reporting_component: Some(self.component.clone()),
            reporting_instance: Some(self.host.clone()),
            ..Event::default()
        }
    }
}

/// What makes two occurrences alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Identity {
    namespace: Option<String>,
    uid: Option<String>,
    name: Option<String>,
    object_kind: Option<String>,
    field: Option<String>,
    kind: EventType,
    reason: String,
    /// None stands for the combination of many.
    message: Option<String>,
}

#[derive(Debug)]
struct Decided {
    occurrence: Occurrence,
    identity: Identity,
    count: i32,
    first: jiff::Timestamp,
    known_as: Option<String>,
}

#[derive(Debug)]
struct Known {
    name: Option<String>,
    count: i32,
    first: jiff::Timestamp,
}

#[derive(Debug)]
struct Similar {
    messages: u32,
    since: jiff::Timestamp,
}

#[derive(Debug)]
struct Allowance {
    tokens: f64,
    at: jiff::Timestamp,
}

/// Pure: decides of each occurrence whether it is sent, and as what.
#[derive(Debug, Default)]
struct Correlator {
    known: Remembered<Identity, Known>,
    similar: Remembered<Identity, Similar>,
    allowances: Remembered<Identity, Allowance>,
}

impl Correlator {
    fn decide(&mut self, mut occurrence: Occurrence, now: jiff::Timestamp) -> Option<Decided> {
        let mut identity = Identity {
            namespace: occurrence.about.namespace.clone(),
            uid: occurrence.about.uid.clone(),
            name: occurrence.about.name.clone(),
            object_kind: occurrence.about.kind.clone(),
            field: occurrence.about.field_path.clone(),
            kind: occurrence.kind,
            reason: occurrence.reason.clone(),
            message: Some(occurrence.message.clone()),
        };
        if !self.allowed(&identity, now) {
            return None;
        }
        if !self.known.contains(&identity) && self.too_many_alike(&identity, now) {
            identity.message = None;
            occurrence.message = format!("(combined from similar events): {}", occurrence.message);
        }
        let known = self.known.entry(identity.clone(), || Known {
            name: None,
            count: 0,
            first: now,
        });
        known.count = known.count.saturating_add(1);
        Some(Decided {
            count: known.count,
            first: known.first,
            known_as: known.name.clone(),
            occurrence,
            identity,
        })
    }

    fn sent(&mut self, identity: Identity, name: Option<String>) {
        if let Some(known) = self.known.get_mut(&identity) {
            known.name = name;
        }
    }

    /// Counts messages of one object and reason; whether they are too many to keep apart.
    fn too_many_alike(&mut self, identity: &Identity, now: jiff::Timestamp) -> bool {
        let alike = Identity {
            message: None,
            ..identity.clone()
        };
        let similar = self.similar.entry(alike, || Similar {
            messages: 0,
            since: now,
        });
        if now.as_second() - similar.since.as_second() > SIMILAR_SECONDS {
            *similar = Similar {
                messages: 0,
                since: now,
            };
        }
        similar.messages += 1;
        similar.messages > SIMILAR_MAX
    }

    /// Takes from an object's allowance.
    fn allowed(&mut self, identity: &Identity, now: jiff::Timestamp) -> bool {
        let object = Identity {
            field: None,
            reason: String::new(),
            kind: EventType::Normal,
            message: None,
            ..identity.clone()
        };
        let allowance = self.allowances.entry(object, || Allowance {
            tokens: BURST,
            at: now,
        });
        let passed = now.duration_since(allowance.at).as_secs_f64().max(0.0);
        allowance.tokens = (allowance.tokens + passed / REFILL_SECONDS).min(BURST);
        allowance.at = now;
        if allowance.tokens < 1.0 {
            return false;
        }
        allowance.tokens -= 1.0;
        true
    }
}

/// A map that forgets what was put in first when it is full.
#[derive(Debug)]
struct Remembered<K, V> {
    values: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K, V> Default for Remembered<K, V> {
    fn default() -> Self {
        Self {
            values: HashMap::new(),
            order: VecDeque::new(),
        }
    }
}

impl<K: Clone + Eq + std::hash::Hash, V> Remembered<K, V> {
    fn contains(&self, key: &K) -> bool {
        self.values.contains_key(key)
    }

    fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.values.get_mut(key)
    }

    fn entry(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        if !self.values.contains_key(&key) {
            if self.order.len() >= EVENTS_REMEMBERED_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.values.remove(&oldest);
            }
            self.order.push_back(key.clone());
        }
        self.values.entry(key).or_insert_with(make)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(name: &str) -> ObjectReference {
        ObjectReference {
            kind: Some("Pod".into()),
            namespace: Some("default".into()),
            name: Some(name.into()),
            uid: Some(format!("uid-{name}")),
            ..ObjectReference::default()
        }
    }

    fn occurrence(name: &str, message: &str) -> Occurrence {
        Occurrence {
            about: about(name),
            kind: EventType::Normal,
            reason: "Pulled".into(),
            message: message.into(),
        }
    }

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn repeats_raise_the_count_of_the_first() {
        let mut correlator = Correlator::default();
        let first = correlator.decide(occurrence("a", "m"), at(0)).unwrap();
        assert_eq!((first.count, first.known_as.clone()), (1, None));
        correlator.sent(first.identity, Some("a.1".into()));
        let second = correlator.decide(occurrence("a", "m"), at(7)).unwrap();
        assert_eq!(second.count, 2);
        assert_eq!(second.first, at(0));
        assert_eq!(second.known_as.as_deref(), Some("a.1"));
        let other = correlator.decide(occurrence("b", "m"), at(7)).unwrap();
        assert_eq!((other.count, other.known_as), (1, None));
    }

    #[test]
    fn many_that_differ_in_their_message_are_combined() {
        let mut correlator = Correlator::default();
        for n in 0..SIMILAR_MAX {
            let kept = correlator
                .decide(occurrence("a", &format!("m{n}")), at(1))
                .unwrap();
            assert_eq!(kept.occurrence.message, format!("m{n}"));
        }
        let combined = correlator.decide(occurrence("a", "m10"), at(1)).unwrap();
        assert_eq!(
            combined.occurrence.message,
            "(combined from similar events): m10"
        );
        let again = correlator.decide(occurrence("a", "m11"), at(1)).unwrap();
        assert_eq!(again.count, 2);
    }

    #[test]
    fn a_flood_about_one_object_is_cut_and_trickles_on() {
        let mut correlator = Correlator::default();
        let sent = (0..100)
            .filter(|_| correlator.decide(occurrence("a", "m"), at(0)).is_some())
            .count();
        assert_eq!(sent, 25);
        assert!(correlator.decide(occurrence("b", "m"), at(0)).is_some());
        assert!(correlator.decide(occurrence("a", "m"), at(299)).is_none());
        assert!(correlator.decide(occurrence("a", "m"), at(301)).is_some());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut correlator = Correlator::default();
        for n in 0..EVENTS_REMEMBERED_MAX + 10 {
            correlator.decide(occurrence(&n.to_string(), "m"), at(0));
        }
        assert_eq!(correlator.known.values.len(), EVENTS_REMEMBERED_MAX);
        assert_eq!(correlator.known.order.len(), EVENTS_REMEMBERED_MAX);
    }
}

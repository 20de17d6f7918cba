//! Deployments that sleep at zero replicas when nobody asks, and wake on a request.
//!
//! A Deployment annotated `salp.dev/scale-to-zero: 30s` that was idle so long gets a pod
//! that stands by (`standby`): made by the runtime under a name and an address of its own,
//! not started, not in the API. Then it is scaled to zero. The data plane starts the pod
//! when a request comes, without asking anybody; the agent learns of it and lets the API
//! follow: the Deployment is scaled back, and its ReplicaSet is told the pod's name, so that
//! the pod it creates is the one that runs already.
//!
//! What is to be done is decided in `plan`. Why it is so: docs/decisions.

mod plan;
mod services;
mod standby;

pub(crate) use standby::{Hints, is_standby};

use crate::agent::Agent;
use crate::pod::Uid;
use api::constants::{
    ANNOTATION_ASLEEP_ON, ANNOTATION_ASLEEP_REPLICAS, ANNOTATION_SCALE_TO_ZERO,
    ANNOTATION_WOKEN_POD,
};
use client::{Change, Informer, Informers, ObjectKey};
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kube::api::{Api, Patch, PatchParams};
use plan::{Facts, IdleClock, Step};
use runtime::{ServiceName, Traffic, go_duration as duration};
use serde_json::{Value, json};
use standby::Standby;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Between looks at who is idle. What a request wakes is heard of at once.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Steps that are over and not yet noted; those that end wait.
const DONE_MAX: usize = 64;
/// Before a pod that could not be made to stand by is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// After the API server refused or did not answer.
const WRITE_RETRY: Duration = Duration::from_secs(1);
/// A pod that was woken and that no ReplicaSet has taken by then is removed.
const ADOPT_WITHIN: Duration = Duration::from_secs(60);
/// A pod that was adopted is listed by every proxy by then.
const FORGET_AFTER: Duration = Duration::from_secs(10);

const REVISION: &str = "deployment.kubernetes.io/revision";

/// What sleep and wake need beside the agent.
pub struct Sleep {
    /// As whom Deployments are scaled and pods are tried; more than a node may do.
    pub client: kube::Client,
    /// What Services carry.
    pub traffic: Arc<dyn Traffic>,
}

impl std::fmt::Debug for Sleep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sleep").finish_non_exhaustive()
    }
}

/// What is kept of one Deployment.
struct Entry {
    clock: IdleClock,
    standby: Option<Standby>,
    /// A step is under way.
    busy: bool,
    /// Nothing is tried before.
    not_before: Instant,
    /// The version that was scaled, while the informer has told of no later one.
    scaled_from: Option<String>,
    /// The value that is no duration, once told.
    told: Option<String>,
}

/// A step that is over.
struct Done {
    key: ObjectKey,
    standby: Option<Standby>,
    retry_in: Duration,
    /// The version that was scaled.
    scaled_from: Option<String>,
}

struct Sleeping {
    agent: Arc<Agent>,
    client: kube::Client,
    traffic: Arc<dyn Traffic>,
    deployments: Informer<Deployment>,
    services: services::Index,
    sets: Informer<ReplicaSet>,
    entries: HashMap<ObjectKey, Entry>,
    done: mpsc::Sender<Done>,
}

/// Lets Deployments sleep and wake, in the agent's scope.
pub(crate) fn start(agent: &Arc<Agent>, sleep: Sleep, informers: &Informers) {
    // The first stays.
    let _ = agent.traffic.set(sleep.traffic.clone());
    let (done, dones) = mpsc::channel(DONE_MAX);
    let sleeping = Sleeping {
        agent: agent.clone(),
        client: sleep.client,
        traffic: sleep.traffic,
        deployments: informers.get(),
        services: services::Index::default(),
        sets: informers.get(),
        entries: HashMap::new(),
        done,
    };
    agent.scope.spawn_cancellable(sleeping.run(dones));
}

impl Sleeping {
    async fn run(mut self, mut dones: mpsc::Receiver<Done>) {
        self.deployments.synced().await;
        self.sets.synced().await;
        self.agent.services.synced().await;
        // Which pods own what runs is known only then.
        let mut pods_known = self.agent.pods_known.subscribe();
        if pods_known.wait_for(|known| *known).await.is_err() {
            return;
        }
        self.recover().await;
        let mut changes = self.deployments.subscribe();
        let mut services = self.agent.services.subscribe();
        let agent = self.agent.clone();
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Those that have changed; none: it may be any.
            let touched = tokio::select! {
                Some(change) = changes.next() => match change {
                    Change::Object { key, new, .. } => {
                        self.track(&key, new.as_deref());
                        vec![key]
                    }
                    Change::Resync => {
                        self.track_all();
                        self.entries.keys().cloned().collect()
                    }
                },
                Some(change) = services.next() => {
                    self.services.learn(&change, &self.agent.services);
                    continue;
                }
                Some(done) = dones.recv() => {
                    let key = done.key.clone();
                    self.note(done);
                    let deployment = self.deployments.get_key(&key);
                    self.track(&key, deployment.as_deref());
                    vec![key]
                }
                () = agent.standby_hints.told() => self.look_at_standbys().await,
                // With nobody to look after, nothing but a change can matter.
                _ = look.tick(), if !self.entries.is_empty() => {
                    self.look_at_traffic().await;
                    self.entries.keys().cloned().collect()
                }
            };
            for key in touched {
                if self.entries.contains_key(&key) {
                    self.step(key);
                }
            }
        }
    }

    /// How many replicas it comes back to, when it sleeps on this node.
    fn asleep(&self, deployment: &Deployment) -> Option<i32> {
        let on = annotation(deployment, ANNOTATION_ASLEEP_ON)?;
        let replicas = annotation(deployment, ANNOTATION_ASLEEP_REPLICAS)?;
        (on == self.agent.fixed.name).then(|| replicas.parse().unwrap_or(1))
    }

    /// An entry for a Deployment that may sleep, or does; none for another.
    fn track(&mut self, key: &ObjectKey, deployment: Option<&Deployment>) {
        if deployment.is_some_and(may_sleep) {
            let new = || Entry::new(Instant::now());
            self.entries.entry(key.clone()).or_insert_with(new);
            return;
        }
        let is_idle = |entry: &Entry| !entry.busy && entry.standby.is_none();
        if self.entries.get(key).is_some_and(is_idle) {
            self.entries.remove(key);
        }
    }

    fn track_all(&mut self) {
        let known: Vec<ObjectKey> = self.entries.keys().cloned().collect();
        let may = self.deployments.select(may_sleep);
        for key in may.iter().map(|d| ObjectKey::of(&**d)).chain(known) {
            let deployment = self.deployments.get_key(&key);
            self.track(&key, deployment.as_deref());
        }
    }

    /// Takes over what stands by, or was woken, since before the agent started.
    async fn recover(&mut self) {
        for (runtime, sandbox) in self.agent.standbys_of_runtimes().await {
            let set = self.sets.list_namespace(&sandbox.namespace);
            let set = set.iter().find(|set| {
                let name = set.metadata.name.as_deref().unwrap_or_default();
                let rest = sandbox.name.strip_prefix(name);
                rest.and_then(|rest| rest.strip_prefix('-'))
                    .is_some_and(|suffix| !suffix.contains('-'))
            });
            let found = set.and_then(|set| {
                let key = ObjectKey::new(&sandbox.namespace, owner_of(set)?);
                let deployment = self.deployments.get_key(&key);
                let asleep = deployment
                    .as_ref()
                    .is_some_and(|d| self.asleep(d).is_some());
                // The Deployment was told, its ReplicaSet not yet.
                let awaited = deployment.as_ref().and_then(|d| {
                    annotation(d, ANNOTATION_WOKEN_POD)?
                        .split_once('@')
                        .map(|(place, _)| place)
                });
                let standby = Standby::found(runtime, &sandbox, set, awaited, asleep)?;
                Some((key, standby))
            });
            let Some((key, standby)) = found else {
                let uid = Uid::from(sandbox.id.0.as_str());
                let (namespace, name) = (&sandbox.namespace, &sandbox.name);
                let agent = &self.agent;
                agent.discard_standby(runtime, &uid, namespace, name).await;
                continue;
            };
            let new = || Entry::new(Instant::now());
            let entry = self.entries.entry(key).or_insert_with(new);
            if let Some(other) = entry.standby.replace(standby) {
                other.discard(&self.agent).await;
            }
        }
    }

    /// Finds out which of those that stand by were woken, or lost: those hinted at.
    async fn look_at_standbys(&mut self) -> Vec<ObjectKey> {
        let hinted = self.agent.standby_hints.take();
        let mut looked_at = Vec::new();
        for (key, entry) in &mut self.entries {
            let Some(standby) = &mut entry.standby else {
                continue;
            };
            if hinted.is_about(standby.uid()) {
                standby
                    .look(&self.agent, hinted.is_stale(standby.uid()))
                    .await;
                looked_at.push(key.clone());
            }
        }
        looked_at
    }

    async fn look_at_traffic(&mut self) {
        let mut asked: Vec<ServiceName> = Vec::new();
        let mut of: Vec<(ObjectKey, usize)> = Vec::new();
        for key in self.entries.keys() {
            let Some(deployment) = self.deployments.get_key(key) else {
                continue;
            };
            let services = self.services_of(&deployment);
            if deployment.spec.replicas.unwrap_or(1) > 0 && !services.is_empty() {
                of.push((key.clone(), services.len()));
                asked.extend(services);
            }
        }
        if asked.is_empty() {
            return;
        }
        let now = Instant::now();
        match self.traffic.traffic(&asked).await {
            Ok(traffic) => {
                let mut traffic = traffic.into_iter();
                for (key, count) in of {
                    let mine: Vec<_> = traffic.by_ref().take(count).collect();
                    if let Some(entry) = self.entries.get_mut(&key) {
                        let carried = mine.iter().map(|t| t.carried).sum();
                        let under_way = mine.iter().map(|t| t.under_way).sum();
                        entry.clock.observe(carried, under_way, now);
                    }
                }
            }
            Err(error) => {
                // Nobody knows who is idle: nobody is.
                tracing::debug!(%error, "traffic not read");
                for (key, _) in of {
                    if let Some(entry) = self.entries.get_mut(&key) {
                        entry.clock.touch(now);
                    }
                }
            }
        }
    }

    /// Services that select the Deployment's pods.
    fn services_of(&self, deployment: &Deployment) -> Vec<ServiceName> {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let template = deployment.spec.template.metadata.as_ref();
        let labels = template.and_then(|meta| meta.labels.as_ref());
        labels.map_or_else(Vec::new, |labels| self.services.of_pods(namespace, labels))
    }

    /// The ReplicaSet of the Deployment's newest template.
    fn newest_set(&self, deployment: &Deployment) -> Option<Arc<ReplicaSet>> {
        let revision = annotation(deployment, REVISION)?;
        let sets = self.sets.owned_by(deployment.metadata.uid.as_deref()?);
        sets.into_iter().find(|set| {
            let annotations = set.metadata.annotations.as_ref();
            annotations
                .and_then(|a| a.get(REVISION))
                .map(String::as_str)
                == Some(revision)
        })
    }

    fn note(&mut self, done: Done) {
        let Some(entry) = self.entries.get_mut(&done.key) else {
            return;
        };
        let now = Instant::now();
        entry.busy = false;
        if let Some(standby) = &done.standby {
            // It may have been woken while nobody looked.
            self.agent.standby_hints.changed(standby.uid().clone());
        }
        entry.standby = done.standby;
        entry.not_before = now + done.retry_in;
        if done.scaled_from.is_some() {
            entry.clock.touch(now);
            entry.scaled_from = done.scaled_from;
        }
    }

    fn facts(&self, key: &ObjectKey, deployment: Option<&Deployment>, now: Instant) -> Facts {
        let entry = &self.entries[key];
        let set = deployment.and_then(|d| self.newest_set(d));
        let standby = match &entry.standby {
            None if entry.not_before > now => plan::Standby::Failed,
            None => plan::Standby::None,
            Some(standby) => standby.fact(&self.agent, set.as_deref()),
        };
        let Some(deployment) = deployment else {
            return Facts {
                period: None,
                replicas: 0,
                asleep: None,
                settled: false,
                idle_for: None,
                standby,
            };
        };
        let wanted = annotation(deployment, ANNOTATION_SCALE_TO_ZERO);
        let period = wanted
            .and_then(duration)
            .filter(|_| deployment.metadata.deletion_timestamp.is_none());
        let has_services = !self.services_of(deployment).is_empty();
        let idle_for = has_services.then(|| entry.clock.idle_for(now));
        // Asked for by those alone who are about to sleep: the node's pods are counted.
        let is_idle = idle_for >= period && period.is_some();
        Facts {
            period,
            replicas: deployment.spec.replicas.unwrap_or(1),
            asleep: self.asleep(deployment),
            settled: is_idle && set.is_some_and(|set| self.settled(deployment, &set)),
            idle_for,
            standby,
        }
    }

    /// Whether a rollout is over, and all pods are available and on this node.
    fn settled(&self, deployment: &Deployment, set: &ReplicaSet) -> bool {
        let Some(status) = &deployment.status else {
            return false;
        };
        let replicas = Some(deployment.spec.replicas.unwrap_or(1));
        let here = self.agent.slots_of(set.metadata.uid.as_deref());
        status.observed_generation == deployment.metadata.generation
            && status.replicas == replicas
            && status.updated_replicas == replicas
            && status.available_replicas == replicas
            && i32::try_from(here).ok() == replicas
    }

    /// Begins what is to be done for one Deployment.
    fn step(&mut self, key: ObjectKey) {
        let now = Instant::now();
        let deployment = self.deployments.get_key(&key);
        self.tell_invalid(&key, deployment.as_deref());
        let entry = &self.entries[&key];
        if entry.busy || entry.not_before > now {
            return;
        }
        // What was just scaled must not be judged by what it was before.
        if entry.scaled_from.is_some() && version(deployment.as_deref()) == entry.scaled_from {
            return;
        }
        let facts = self.facts(&key, deployment.as_deref(), now);
        let step = plan::plan(&facts);
        if step == Step::Rest {
            return;
        }
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        entry.busy = true;
        let standby = entry.standby.take();
        let job = Job {
            agent: self.agent.clone(),
            client: self.client.clone(),
            set: deployment.as_ref().and_then(|d| self.newest_set(d)),
            idle_for: facts.period.unwrap_or_default(),
            deployment,
        };
        let done = self.done.clone();
        self.agent.scope.spawn_cancellable(async move {
            let from = version(job.deployment.as_deref());
            let (standby, retry_in, scaled) = job.run(step, standby).await;
            let over = Done {
                key,
                standby,
                retry_in,
                scaled_from: from.filter(|_| scaled),
            };
            // Closed only when the agent stops.
            drop(done.send(over).await);
        });
    }

    /// A value that means nothing is told once.
    fn tell_invalid(&mut self, key: &ObjectKey, deployment: Option<&Deployment>) {
        let (Some(entry), Some(deployment)) = (self.entries.get_mut(key), deployment) else {
            return;
        };
        let value = annotation(deployment, ANNOTATION_SCALE_TO_ZERO);
        let invalid = value.filter(|value| duration(value).is_none());
        if entry.told.as_deref() == invalid {
            return;
        }
        entry.told = invalid.map(str::to_owned);
        if let Some(value) = invalid {
            let text = format!(
                "{ANNOTATION_SCALE_TO_ZERO}: {value:?} is no duration such as \"30s\" or \"5m\""
            );
            let events = &self.agent.events;
            events.warning(deployment, "InvalidScaleToZero", &text);
        }
    }
}

impl Entry {
    fn new(now: Instant) -> Self {
        Self {
            clock: IdleClock::new(now),
            standby: None,
            busy: false,
            not_before: now,
            scaled_from: None,
            told: None,
        }
    }
}

/// One step.
struct Job {
    agent: Arc<Agent>,
    client: kube::Client,
    deployment: Option<Arc<Deployment>>,
    set: Option<Arc<ReplicaSet>>,
    idle_for: Duration,
}

impl Job {
    /// What stands by then, after what time another step may be begun, and whether it was
    /// scaled.
    async fn run(self, step: Step, standby: Option<Standby>) -> (Option<Standby>, Duration, bool) {
        let (standby, result) = match (step, &self.deployment) {
            (Step::Rest, _) => (standby, Ok(false)),
            (Step::Prepare, Some(deployment)) => {
                return self.prepare(deployment, standby).await;
            }
            (Step::Sleep, Some(deployment)) => {
                let slept = self.sleep(deployment).await;
                (standby, slept)
            }
            (Step::Rise(replicas), Some(deployment)) => {
                let mut standby = standby;
                let risen = self.rise(deployment, replicas, &mut standby).await;
                (standby, risen)
            }
            (Step::Unmark, Some(deployment)) => {
                let unmarked = self.patch(deployment, json!({}), marks(None)).await;
                (standby, unmarked.map(|()| true))
            }
            (Step::Forget, _) => {
                if let Some(standby) = &standby {
                    standby.release(&self.agent).await;
                }
                self.forget_woken().await;
                (None, Ok(false))
            }
            // Of a Deployment that is gone nothing stands by.
            (_, None) | (Step::Discard, _) => (self.discard(standby).await, Ok(false)),
        };
        match result {
            Ok(scaled) => (standby, Duration::ZERO, scaled),
            Err(error) => {
                if !client::is_conflict(&error) && !client::is_not_found(&error) {
                    tracing::warn!(?step, %error, "Deployment not scaled, trying again");
                }
                (standby, WRITE_RETRY, false)
            }
        }
    }

    /// Removes what stands by, unless a request was quicker.
    async fn discard(&self, standby: Option<Standby>) -> Option<Standby> {
        let mut standby = standby?;
        let slept = standby.sleeps();
        standby.look(&self.agent, false).await;
        if slept && standby.is_woken() && self.deployment.is_some() {
            return Some(standby);
        }
        standby.discard(&self.agent).await;
        None
    }

    async fn prepare(
        &self,
        deployment: &Deployment,
        before: Option<Standby>,
    ) -> (Option<Standby>, Duration, bool) {
        let Some(set) = &self.set else {
            return (before, WRITE_RETRY, false);
        };
        match Standby::make(&self.agent, &self.client, set).await {
            Ok(standby) => {
                if let Some(mut before) = before {
                    before.look(&self.agent, false).await;
                    if before.is_woken() {
                        // A request was quicker.
                        standby.discard(&self.agent).await;
                        return (Some(before), Duration::ZERO, false);
                    }
                    before.discard(&self.agent).await;
                }
                (Some(standby), Duration::ZERO, false)
            }
            Err(error) => {
                let text = format!("Stays awake, for no pod could be made to stand by: {error}");
                self.agent
                    .events
                    .warning(deployment, "FailedScaleToZero", &text);
                (before, RETRY, false)
            }
        }
    }

    async fn sleep(&self, deployment: &Deployment) -> Result<bool, kube::Error> {
        let replicas = deployment.spec.replicas.unwrap_or(1);
        let node = &self.agent.fixed.name;
        let marks = marks(Some((replicas, node)));
        self.patch(deployment, json!({"replicas": 0}), marks)
            .await?;
        let text = format!(
            "Scaled down from {replicas} to 0: no request for {:?}",
            self.idle_for
        );
        self.agent.events.normal(deployment, "ScaledToZero", &text);
        Ok(true)
    }

    /// The API follows a pod that was woken, or whoever does not want to sleep any more.
    async fn rise(
        &self,
        deployment: &Deployment,
        replicas: i32,
        standby: &mut Option<Standby>,
    ) -> Result<bool, kube::Error> {
        let woken = standby.as_mut().filter(|standby| standby.is_woken());
        let from = deployment.spec.replicas.unwrap_or(1);
        let mut marks = marks(None);
        if let Some(standby) = &woken {
            // Its ReplicaSet must know the name when it needs a pod: it is told so with its
            // new size.
            let place = format!("{}/{}", self.agent.fixed.name, standby.pod());
            if from == 0 {
                let next = deployment.metadata.generation.unwrap_or(0) + 1;
                marks[ANNOTATION_WOKEN_POD] = format!("{place}@{next}").into();
            } else if let Some(set) = &self.set {
                self.tell_set(set, Value::String(place)).await?;
            }
        }
        let spec = json!({"replicas": replicas});
        self.patch(deployment, spec, marks).await?;
        if let Some(standby) = woken {
            let text = format!(
                "Woken by a request: pod {} answers; scaled up from {from} to {replicas}",
                standby.pod()
            );
            self.agent.events.normal(deployment, "Woken", &text);
            standby.risen();
        }
        Ok(true)
    }

    /// Takes the name of the woken pod from its ReplicaSet.
    async fn forget_woken(&self) {
        if let Some(set) = &self.set
            && let Err(error) = self.tell_set(set, Value::Null).await
        {
            // It names a pod that exists; it is overwritten at the next wake.
            tracing::debug!(%error, "ReplicaSet not written");
        }
    }

    async fn tell_set(&self, set: &ReplicaSet, woken: Value) -> Result<(), kube::Error> {
        let key = ObjectKey::of(set);
        let sets = Api::<ReplicaSet>::namespaced(self.client.clone(), &key.namespace);
        let patch = json!({"metadata": {
            "uid": set.metadata.uid,
            "annotations": {ANNOTATION_WOKEN_POD: woken},
        }});
        let patch = Patch::Merge(patch);
        sets.patch(&key.name, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    /// Changes the Deployment if it is still as it was looked at.
    async fn patch(
        &self,
        deployment: &Deployment,
        spec: Value,
        annotations: Value,
    ) -> Result<(), kube::Error> {
        let key = ObjectKey::of(deployment);
        let deployments = Api::<Deployment>::namespaced(self.client.clone(), &key.namespace);
        let patch = json!({
            "metadata": {
                "resourceVersion": deployment.metadata.resource_version,
                "annotations": annotations,
            },
            "spec": spec,
        });
        let params = PatchParams::default();
        deployments
            .patch(&key.name, &params, &Patch::Merge(patch))
            .await?;
        Ok(())
    }
}

/// The annotations of one that sleeps, or of one that does not.
fn marks(asleep: Option<(i32, &str)>) -> Value {
    let (replicas, on) = match asleep {
        Some((replicas, on)) => (json!(replicas.to_string()), json!(on)),
        None => (Value::Null, Value::Null),
    };
    json!({
        ANNOTATION_ASLEEP_REPLICAS: replicas,
        ANNOTATION_ASLEEP_ON: on,
        // Of the last time that it woke.
        ANNOTATION_WOKEN_POD: Value::Null,
    })
}

/// Whether it is to sleep when idle, or does.
fn may_sleep(deployment: &Deployment) -> bool {
    annotation(deployment, ANNOTATION_SCALE_TO_ZERO).is_some()
        || annotation(deployment, ANNOTATION_ASLEEP_ON).is_some()
}

fn version(deployment: Option<&Deployment>) -> Option<String> {
    deployment?.metadata.resource_version.clone()
}

fn annotation<'a>(deployment: &'a Deployment, key: &str) -> Option<&'a str> {
    let annotations: &BTreeMap<String, String> = deployment.metadata.annotations.as_ref()?;
    annotations.get(key).map(String::as_str)
}

/// The Deployment that a set is of.
fn owner_of(set: &ReplicaSet) -> Option<String> {
    let owners = set.metadata.owner_references.iter().flatten();
    let mut controllers = owners.filter(|o| o.controller == Some(true) && o.kind == "Deployment");
    controllers.next().map(|owner| owner.name.clone())
}

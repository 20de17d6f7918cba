//! Keeps APIServices true: an object for every group and version that is served here, and
//! the condition `Available` of all.

use super::{Aggregator, GROUP, PLURAL, Remote};
use crate::definitions::set_condition;
use crate::discovery::local_versions;
use crate::registry::Call;
use crate::registry::create::{Tracking, create};
use crate::registry::delete::{DeleteOptions, delete};
use crate::registry::update::{Part, modify};
use crate::row::Row;
use crate::server_state::Core;
use apimachinery::Status;
use futures::{StreamExt as _, stream};
use lifecycle::Scope;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;

/// How often an extension server is asked whether it answers.
const ASK_EVERY: Duration = Duration::from_secs(30);
/// After a change, for others that come with it.
const SETTLES: Duration = Duration::from_millis(100);
/// Pause after a failed write.
const RETRY: Duration = Duration::from_secs(1);
/// Objects written and servers asked at once.
const TOGETHER: usize = 32;

/// Whose objects are made and removed here.
const LABEL: &str = "kube-aggregator.kubernetes.io/automanaged";

/// Priorities of built-in groups and versions, as upstream states them.
const PRIORITIES: &[(&str, &str, i64, i64)] = &[
    ("", "v1", 18000, 1),
    ("apps", "v1", 17800, 15),
    ("events.k8s.io", "v1", 17750, 15),
    ("authentication.k8s.io", "v1", 17700, 15),
    ("authorization.k8s.io", "v1", 17600, 15),
    ("autoscaling", "v1", 17500, 15),
    ("autoscaling", "v2", 17500, 30),
    ("batch", "v1", 17400, 15),
    ("certificates.k8s.io", "v1", 17300, 15),
    ("networking.k8s.io", "v1", 17200, 15),
    ("policy", "v1", 17100, 15),
    ("rbac.authorization.k8s.io", "v1", 17000, 15),
    ("storage.k8s.io", "v1", 16800, 15),
    ("admissionregistration.k8s.io", "v1", 16700, 15),
    ("apiextensions.k8s.io", "v1", 16700, 15),
    ("scheduling.k8s.io", "v1", 16600, 15),
    ("coordination.k8s.io", "v1", 16500, 15),
    ("node.k8s.io", "v1", 16300, 15),
    ("discovery.k8s.io", "v1", 16200, 15),
    ("resource.k8s.io", "v1", 16100, 20),
    ("flowcontrol.apiserver.k8s.io", "v1", 16100, 21),
    ("metrics.k8s.io", "v1beta1", 100, 100),
];
/// Of custom resources.
const CUSTOM: (i64, i64) = (1000, 100);

/// Settles APIServices in `scope`.
pub(crate) fn start(core: &Arc<Core>, scope: &Scope) {
    scope.spawn_cancellable(run(Arc::downgrade(core)));
}

async fn run(core: Weak<Core>) {
    let Some(mut changed) = core.upgrade().and_then(|c| Changed::of(&c)) else {
        return;
    };
    loop {
        changed.see();
        let Some(core) = core.upgrade() else { return };
        let (remote, failed) = round(&core).await;
        drop(core);
        if failed {
            tokio::time::sleep(RETRY).await;
        } else if !changed.wait(remote).await {
            return;
        } else {
            tokio::time::sleep(SETTLES).await;
        }
    }
}

/// The kinds that decide.
struct Changed {
    always: [watch::Receiver<u64>; 2],
    /// Where extension servers are, and what they are shown.
    places: [watch::Receiver<u64>; 3],
}

impl Changed {
    fn of(core: &Core) -> Option<Self> {
        let kind = |group, plural| Some(core.cache.named(group, plural)?.subscribe());
        Some(Self {
            always: [
                kind(GROUP, PLURAL)?,
                kind(crate::definitions::GROUP, crate::definitions::PLURAL)?,
            ],
            places: [
                kind("", "services")?,
                kind("discovery.k8s.io", "endpointslices")?,
                core.aggregator.shown.subscribe(),
            ],
        })
    }

    fn see(&mut self) {
        for r in self.always.iter_mut().chain(&mut self.places) {
            r.mark_unchanged();
        }
    }

    /// Waits for a change; with extension servers, not for ever. False at the end.
    async fn wait(&mut self, remote: bool) -> bool {
        let [a, b] = &mut self.always;
        let [c, d, e] = &mut self.places;
        tokio::select! {
            r = a.changed() => r.is_ok(),
            r = b.changed() => r.is_ok(),
            r = c.changed(), if remote => r.is_ok(),
            r = d.changed(), if remote => r.is_ok(),
            r = e.changed(), if remote => r.is_ok(),
            () = tokio::time::sleep(ASK_EVERY), if remote => true,
        }
    }
}

/// Looks at everything once: whether there are extension servers, whether a write failed.
async fn round(core: &Arc<Core>) -> (bool, bool) {
    let Some(kind) = core.cache.named(GROUP, PLURAL) else {
        return (false, false);
    };
    let all: BTreeMap<String, Value> = kind
        .all()
        .iter()
        .map(|o| (o.name().to_owned(), o.value()))
        .collect();
    let broken = register(&core.aggregator, &all);
    let wanted = wanted(core);
    let mut work: Vec<Work> = Vec::new();
    for (name, object) in &wanted {
        if !all.contains_key(name) {
            work.push(Work::Make(object.clone()));
        }
    }
    for (name, object) in all {
        let local = object["spec"]["service"].is_null();
        let own = !object["metadata"]["labels"][LABEL].is_null();
        if local && own && !wanted.contains_key(&name) {
            work.push(Work::Remove(name));
        } else {
            let why = broken.get(&name).cloned();
            work.push(Work::Tell(name, object, why));
        }
    }
    let mut failed = false;
    let work = work.into_iter().map(|w| perform(core.clone(), w));
    let mut done = stream::iter(work).buffer_unordered(TOGETHER);
    while let Some(result) = done.next().await {
        if let Err(e) = result
            && !matches!(e.code, 404 | 409)
        {
            tracing::warn!(error = %e, "settling an APIService");
            failed = true;
        }
    }
    (!core.aggregator.remotes.load().is_empty(), failed)
}

/// What there is to do about one object.
enum Work {
    Make(Value),
    Remove(String),
    /// Tell whether it is available, or why it can't be.
    Tell(String, Value, Option<String>),
}

async fn perform(core: Arc<Core>, work: Work) -> Result<(), Status> {
    let row = Row::builtin(GROUP, "v1", PLURAL)
        .ok_or_else(|| Status::internal("no row for APIServices"))?;
    let user = Core::own_user();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let (name, subresource) = match &work {
        Work::Make(object) => (text(&object["metadata"]["name"]), ""),
        Work::Remove(name) => (name.clone(), ""),
        Work::Tell(name, ..) => (name.clone(), "status"),
    };
    let call = Call {
        subresource,
        manager: "kube-aggregator",
        ..Call::own(&core, &row, "", &name, &user)
    };
    match work {
        Work::Make(object) => create(&call, object, Tracking::Update).await.map(drop),
        Work::Remove(_) => delete(&call, &DeleteOptions::default()).await.map(drop),
        Work::Tell(_, object, broken) => {
            let found = match broken {
                Some(why) => Found::no("FailedDiscoveryCheck", why),
                None => look(&core, &object).await,
            };
            let now = core.timestamp();
            if told(&object, &found, &now) == object["status"] {
                return Ok(());
            }
            let change = |old: &Value| {
                let mut new = old.clone();
                new["status"] = told(old, &found, &now);
                Ok(new)
            };
            modify(&call, Part::Status, Tracking::Update, &change)
                .await
                .map(drop)
        }
    }
}

/// The table of extension servers as the objects have it; those that can't be used, with why.
fn register(aggregator: &Aggregator, all: &BTreeMap<String, Value>) -> HashMap<String, String> {
    let before = aggregator.remotes.load_full();
    let (mut now, mut broken) = (HashMap::new(), HashMap::new());
    for (name, object) in all {
        let spec = &object["spec"];
        if spec["service"].is_null() {
            continue;
        }
        let text = |key: &str| spec[key].as_str().unwrap_or_default();
        let key = format!("{}/{}", text("group"), text("version"));
        if let Some(same) = before.get(&key).filter(|r| r.spec == *spec) {
            now.insert(key, same.clone());
            continue;
        }
        match Remote::parse(object, aggregator.identity()) {
            Ok(Some(made)) => {
                now.insert(key, Arc::new(made));
            }
            Ok(None) => {}
            Err(why) => {
                broken.insert(name.clone(), why);
            }
        }
    }
    aggregator.remotes.store(Arc::new(now));
    broken
}

/// Objects of what is served here.
fn wanted(core: &Core) -> BTreeMap<String, Value> {
    local_versions(core)
        .into_iter()
        // Upstream has none of this group's own either.
        .filter(|(group, _, _)| group != GROUP)
        .map(|(group, version, custom)| {
            let known = PRIORITIES
                .iter()
                .find(|(g, v, _, _)| *g == group && *v == version);
            let (of_group, of_version) = known.map_or(CUSTOM, |(_, _, g, v)| (*g, *v));
            let name = format!("{version}.{group}");
            let managed = if custom { "true" } else { "onstart" };
            let mut spec = json!({
                "groupPriorityMinimum": of_group, "version": version, "versionPriority": of_version,
            });
            if !group.is_empty() {
                spec["group"] = group.into();
            }
            let object = json!({
                "kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1",
                "metadata": {"name": name, "labels": {LABEL: managed}}, "spec": spec,
            });
            (name, object)
        })
        .collect()
}

/// The condition `Available`.
struct Found {
    available: bool,
    reason: &'static str,
    message: String,
}

impl Found {
    fn yes(reason: &'static str, message: &str) -> Self {
        Self {
            available: true,
            reason,
            message: message.to_owned(),
        }
    }

    fn no(reason: &'static str, message: String) -> Self {
        Self {
            available: false,
            reason,
            message,
        }
    }
}

fn told(object: &Value, found: &Found, now: &str) -> Value {
    let mut status = object["status"].clone();
    if !status.is_object() {
        status = json!({});
    }
    let condition = (
        "Available",
        found.available,
        found.reason,
        found.message.as_str(),
    );
    set_condition(&mut status, condition, now);
    status
}

/// Whether a service answers; what it has is kept.
async fn look(core: &Core, object: &Value) -> Found {
    let spec = &object["spec"];
    if spec["service"].is_null() {
        return Found::yes("Local", "Local APIServices are always available");
    }
    let text = |key: &str| spec[key].as_str().unwrap_or_default();
    let key = format!("{}/{}", text("group"), text("version"));
    let remotes = core.aggregator.remotes.load();
    let Some(remote) = remotes.get(&key) else {
        return Found::no("FailedDiscoveryCheck", "not registered".to_owned());
    };
    if let Some(lacking) = place(core, remote) {
        remote.told.store(None);
        return lacking;
    }
    match remote.ask(core).await {
        Ok(has) => {
            let has = Arc::new(has);
            remote.stale.store(Some(has.clone()));
            remote.told.store(Some(has));
            Found::yes("Passed", "all checks passed")
        }
        Err(why) => {
            remote.told.store(None);
            Found::no("FailedDiscoveryCheck", why)
        }
    }
}

/// What the Service lacks.
fn place(core: &Core, remote: &Remote) -> Option<Found> {
    let s = &remote.service;
    let (name, namespace) = (&s.name, &s.namespace);
    let Some(service) = core.peek("", "services", namespace, name) else {
        let message = format!("service/{name} in {namespace:?} is not present");
        return Some(Found::no("ServiceNotFound", message));
    };
    let service = service.value();
    if service["spec"]["type"] == "ExternalName" {
        return None;
    }
    let ports = service["spec"]["ports"].as_array();
    let Some(port) = ports.into_iter().flatten().find(|p| p["port"] == s.port) else {
        let port = s.port;
        let message = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return Some(Found::no("ServicePortError", message));
    };
    let port_name = port["name"].as_str().unwrap_or_default();
    let slices: Vec<Value> = core
        .cache
        .named("discovery.k8s.io", "endpointslices")?
        .all()
        .iter()
        .filter(|o| {
            o.namespace() == *namespace && o.label("kubernetes.io/service-name") == Some(name)
        })
        .map(|o| o.value())
        .collect();
    if slices.is_empty() {
        let message = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return Some(Found::no("EndpointsNotFound", message));
    }
    let ready = slices.iter().any(|slice| {
        let mut ports = slice["ports"].as_array().into_iter().flatten();
        let mut ends = slice["endpoints"].as_array().into_iter().flatten();
        ports.any(|p| p["name"].as_str().unwrap_or_default() == port_name)
            && ends.any(|e| e["conditions"]["ready"] != false)
    });
    (!ready).then(|| {
        let message = format!(
            "endpoints for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
        );
        Found::no("MissingEndpoints", message)
    })
}

//! Device plugins: what of the machine is given to containers piece by piece, as a kubelet does
//! it, and the API that says which pod has what (`podresources.v1`).
//!
//! A plugin registers at the kubelet's socket, is asked for its devices ([`Devices::follow`]) and,
//! before a pod's sandbox is made, for what a container must be given to use some of them
//! ([`Devices::allocate`]). Who has what is kept in a file, so that an agent that comes after this
//! one takes nothing away. Start with [`Devices::start`]; what is decided is in `inventory`.

mod inventory;
mod messages;
mod rpc;

pub(crate) use inventory::Given;

use crate::agent::Agent;
use crate::contact;
use crate::plan;
use crate::resources;
use inventory::{Choice, Inventory, OfContainer};
use k8s_openapi::api::core::v1 as core;
use lifecycle::Scope;
use messages as m;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tonic::Status;
use tonic::transport::Channel;

/// The version of the protocol that is spoken.
const VERSION: &str = "v1beta1";
/// How often it is looked whether a plugin has been away for too long.
const EXPIRY_LOOK: Duration = Duration::from_secs(10);

/// Devices of the machine.
pub(crate) struct Devices {
    /// What is known outlives the agent here.
    file: PathBuf,
    /// Held for look-ups and changes, never across an await.
    inventory: Mutex<Inventory>,
    /// Plugins by resource, where they are there. Held for look-ups only.
    plugins: Mutex<BTreeMap<String, Plugin>>,
    /// Held while a pod is given devices: two pods must not be offered the same.
    turn: tokio::sync::Mutex<()>,
    /// What the Node says of them may have changed.
    pub(crate) changed: Notify,
    place: OnceLock<Place>,
    began: tokio::time::Instant,
}

/// A plugin that is there.
struct Plugin {
    channel: Channel,
    /// Another has registered in its place once this is gone.
    _replaced: tokio_util::sync::DropGuard,
}

/// Where plugins are met.
struct Place {
    plugins: PathBuf,
    /// Held while it is this agent's.
    _claim: File,
}

impl Devices {
    /// What the last agent left in `dir`.
    pub(crate) fn open(dir: &Path) -> Self {
        let file = dir.join("devices");
        let kept = match std::fs::read(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Default::default()),
            read => read.and_then(|bytes| Ok(serde_json::from_slice(&bytes)?)),
        };
        let kept = kept.unwrap_or_else(|error| {
            tracing::warn!(file = %file.display(), %error, "who has which devices is not known");
            inventory::Kept::default()
        });
        Self {
            file,
            inventory: Mutex::new(Inventory::restore(kept, 0)),
            plugins: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            changed: Notify::new(),
            place: OnceLock::new(),
            began: tokio::time::Instant::now(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX / 2)
    }

    /// Meets plugins in the first of the directories that nobody else has.
    pub(crate) fn start(agent: &Arc<Agent>, dirs: &[PathBuf], scope: &Scope) {
        let devices = &agent.devices;
        let Some((dir, place)) = dirs.iter().find_map(|dir| Some((dir, claim(dir)?))) else {
            return tracing::warn!(?dirs, "no place for device plugins");
        };
        let socket = place.plugins.join("kubelet.sock");
        let server = Arc::new(Server {
            agent: Arc::downgrade(agent),
            scope: scope.clone(),
        });
        // Plugins take this for the sign that they must register anew.
        forget_sockets(&place.plugins);
        let pods = dir.join("pod-resources/kubelet.sock");
        let _first = devices.place.set(place);
        for path in [socket, pods] {
            if let Err(error) = rpc::serve(&path, server.clone(), scope) {
                tracing::warn!(path = %path.display(), %error, "not served");
            }
        }
        let watched = agent.clone();
        scope.spawn_cancellable(async move {
            loop {
                tokio::time::sleep(EXPIRY_LOOK).await;
                let devices = &watched.devices;
                let now = devices.now();
                if devices.inventory.lock().expire(now) {
                    devices.keep();
                    devices.changed.notify_one();
                }
            }
        });
    }

    /// Capacity and allocatable by resource.
    pub(crate) fn amounts(&self) -> BTreeMap<String, (usize, usize)> {
        self.inventory.lock().amounts()
    }

    /// What a container was given.
    pub(crate) fn given(&self, uid: &str, container: &str) -> OfContainer {
        let inventory = self.inventory.lock();
        inventory.given(uid, container).cloned().unwrap_or_default()
    }

    /// Takes all back from a pod.
    pub(crate) fn release(&self, uid: &str) {
        if self.inventory.lock().release(uid) {
            self.keep();
        }
    }

    /// Takes back what pods have that are no more.
    pub(crate) fn retain(&self, is_known: impl Fn(&str) -> bool) {
        let holders = self.inventory.lock().holders();
        for uid in holders.iter().filter(|uid| !is_known(uid)) {
            self.release(uid);
        }
    }

    /// Writes down who has what.
    fn keep(&self) {
        let kept = self.inventory.lock().kept();
        let bytes = serde_json::to_vec(&kept).map_err(std::io::Error::from);
        let written = bytes.and_then(|bytes| contact::keep(&self.file, &bytes, true));
        if let Err(error) = written {
            tracing::warn!(file = %self.file.display(), %error, "who has which devices is not kept");
        }
    }

    /// What of a pod's limits plugins give: container, resource, how many, and whether the container
    /// is over before the others run.
    pub(crate) fn wants<'a>(
        &'a self,
        spec: &'a core::PodSpec,
    ) -> impl Iterator<Item = (&'a str, &'a str, usize, bool)> {
        let init = spec.init_containers.iter().flatten().map(|c| {
            let stays = c.restart_policy.as_deref() == Some("Always");
            (c, !stays)
        });
        let all = init.chain(spec.containers.iter().map(|c| (c, false)));
        all.flat_map(|(c, ends)| {
            let limits = resources::whole_limits(c);
            limits.map(move |(name, count)| (c.name.as_str(), name, count, ends))
        })
        .filter(|(_, name, ..)| self.inventory.lock().knows(name))
    }

    /// Gives a pod's containers the devices that they ask for; says in upstream's words why not.
    pub(crate) async fn allocate(&self, uid: &str, spec: &core::PodSpec) -> Result<(), String> {
        let wants: Vec<_> = self.wants(spec).collect();
        if wants.is_empty() {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        let before = self
            .inventory
            .lock()
            .holders()
            .iter()
            .any(|holder| holder == uid);
        let mut reusable: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for (container, name, count, ends) in wants {
            let reused = reusable.entry(name).or_default();
            let result = self.allocate_one(uid, container, name, count, reused).await;
            match result {
                Ok(ids) if ends => reused.extend(ids),
                Ok(ids) => reused.retain(|id| !ids.contains(id)),
                Err(why) => {
                    if !before {
                        self.inventory.lock().release(uid);
                    }
                    return Err(format!("Allocate failed due to {why}, which is unexpected"));
                }
            }
        }
        self.keep();
        Ok(())
    }

    fn plugin(&self, name: &str) -> Result<Channel, String> {
        let plugins = self.plugins.lock();
        let channel = plugins.get(name).map(|plugin| plugin.channel.clone());
        channel.ok_or_else(|| format!("endpoint {name} is not there"))
    }

    async fn allocate_one(
        &self,
        uid: &str,
        container: &str,
        name: &str,
        count: usize,
        reused: &BTreeSet<String>,
    ) -> Result<BTreeSet<String>, String> {
        let choice = self
            .inventory
            .lock()
            .choice(uid, container, name, count, reused)?;
        let Some(choice) = choice else {
            let given = self.given(uid, container).remove(name).unwrap_or_default();
            return Ok(given.ids);
        };
        let plugin = self.plugin(name)?;
        let preferred = match choice.options.get_preferred_allocation_available {
            true => preferred(plugin.clone(), &choice).await?,
            false => Vec::new(),
        };
        let ids = choice.take(&preferred);
        let request = m::AllocateRequest {
            container_requests: vec![m::DeviceIds {
                ids: ids.iter().cloned().collect(),
            }],
        };
        let answer: m::AllocateResponse =
            rpc::ask(plugin, "Allocate", request).await.map_err(said)?;
        let answer = answer.container_responses.into_iter().next();
        let answer = answer.unwrap_or_default();
        if let Some(device) = answer.cdi_devices.first() {
            let name = &device.name;
            return Err(format!(
                "the CDI device {name} that the plugin gives: CDI is not supported"
            ));
        }
        let given = Given {
            ids: ids.clone(),
            pre_start: choice.options.pre_start_required,
            env: answer.envs.into_iter().collect(),
            mounts: answer
                .mounts
                .into_iter()
                .map(|m| (m.host_path, m.container_path, m.read_only))
                .collect(),
            devices: answer
                .devices
                .into_iter()
                .map(|d| (d.host_path, d.container_path, d.permissions))
                .collect(),
            annotations: answer.annotations.into_iter().collect(),
        };
        self.inventory.lock().give(uid, container, name, given);
        Ok(ids)
    }

    /// Has plugins make ready what a container was given, where they ask for that.
    pub(crate) async fn before_start(&self, given: &OfContainer) -> Result<(), String> {
        for (name, given) in given.iter().filter(|(_, given)| given.pre_start) {
            let plugin = self.plugin(name)?;
            let request = m::DeviceIds {
                ids: given.ids.iter().cloned().collect(),
            };
            let _done: m::Empty = rpc::ask(plugin, "PreStartContainer", request)
                .await
                .map_err(said)?;
        }
        Ok(())
    }

    /// Follows a plugin until it goes away.
    async fn follow(&self, request: m::RegisterRequest) {
        let name = request.resource_name;
        let Some(place) = self.place.get() else {
            return;
        };
        let socket = place.plugins.join(&request.endpoint);
        let ended = async {
            let channel = rpc::connect(&socket).await?;
            let mut lists: tonic::Streaming<m::ListAndWatchResponse> =
                rpc::follow(channel.clone(), "ListAndWatch", m::Empty {}).await?;
            let options = request.options.unwrap_or_default();
            let plugin = self.inventory.lock().register(&name, options);
            let replaced = tokio_util::sync::CancellationToken::new();
            let there = Plugin {
                channel,
                _replaced: replaced.clone().drop_guard(),
            };
            self.plugins.lock().insert(name.clone(), there);
            self.keep();
            tracing::info!(resource = name, "device plugin registered");
            let ended = loop {
                match replaced.run_until_cancelled(lists.message()).await {
                    Some(Ok(Some(list))) => {
                        self.inventory.lock().listed(&name, plugin, list.devices);
                        self.changed.notify_one();
                    }
                    None | Some(Ok(None)) => break Ok(()),
                    Some(Err(status)) => break Err(status),
                }
            };
            let now = self.now();
            self.inventory.lock().gone(&name, plugin, now);
            self.changed.notify_one();
            ended
        };
        let ended: Result<(), Status> = ended.await;
        let why = ended.err().map(said);
        tracing::info!(resource = name, why, "device plugin went away");
    }
}

async fn preferred(plugin: Channel, choice: &Choice) -> Result<Vec<String>, String> {
    let mut available = choice.available.clone();
    available.extend(choice.reused.iter().cloned());
    if available.len() <= choice.count {
        return Ok(Vec::new());
    }
    let request = m::PreferredRequest {
        container_requests: vec![m::ContainerPreferred {
            available: available.into_iter().collect(),
            must_include: choice.reused.iter().take(choice.count).cloned().collect(),
            size: i32::try_from(choice.count).unwrap_or(i32::MAX),
        }],
    };
    let answer: m::PreferredResponse = rpc::ask(plugin, "GetPreferredAllocation", request)
        .await
        .map_err(said)?;
    let first = answer.container_responses.into_iter().next();
    Ok(first.unwrap_or_default().ids)
}

/// Whether a resource may be a plugin's: that of a domain, and not of Kubernetes' own.
fn is_extended(name: &str) -> bool {
    let own = name.contains("kubernetes.io/") || name.starts_with("requests.");
    name.contains('/') && !own && apimachinery::names::qualified_name(name).is_ok()
}

/// An error as Go's gRPC prints it.
fn said(status: Status) -> String {
    let (code, message) = (status.code(), status.message());
    format!("rpc error: code = {code:?} desc = {message}")
}

/// Makes the directories, if nobody else meets plugins there.
fn claim(dir: &Path) -> Option<Place> {
    let plugins = dir.join("device-plugins");
    let make = || {
        std::fs::create_dir_all(&plugins)?;
        std::fs::create_dir_all(dir.join("pod-resources"))?;
        File::create(plugins.join("salp.lock"))
    };
    let claim = make()
        .inspect_err(|error| tracing::debug!(dir = %dir.display(), %error, "not used"))
        .ok()?;
    let lock = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    rustix::fs::flock(&claim, lock).ok()?;
    // A kubelet takes no lock.
    let answers = std::os::unix::net::UnixStream::connect(plugins.join("kubelet.sock")).is_ok();
    (!answers).then_some(Place {
        plugins,
        _claim: claim,
    })
}

/// Removes the sockets that are there: nobody is asked at them any more.
fn forget_sockets(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_socket())
            && let Err(error) = std::fs::remove_file(entry.path())
        {
            tracing::debug!(path = %entry.path().display(), %error, "old socket not removed");
        }
    }
}

/// What answers at both sockets.
struct Server {
    agent: Weak<Agent>,
    scope: Scope,
}

impl rpc::Service for Server {
    async fn call(
        self: Arc<Self>,
        request: http::Request<hyper::body::Incoming>,
    ) -> http::Response<rpc::Body> {
        let Some(agent) = self.agent.upgrade() else {
            return rpc::unknown();
        };
        match request.uri().path() {
            "/v1beta1.Registration/Register" => {
                rpc::unary(request, async |asked| self.register(&agent, asked)).await
            }
            "/v1.PodResourcesLister/List" => {
                let list = async |_: m::Empty| {
                    Ok(m::ListResponse {
                        pod_resources: agent.pod_resources(|_| true),
                    })
                };
                rpc::unary(request, list).await
            }
            "/v1.PodResourcesLister/GetAllocatableResources" => {
                let list = async |_: m::Empty| {
                    Ok(m::AllocatableResponse {
                        devices: agent.devices.inventory.lock().allocatable(),
                    })
                };
                rpc::unary(request, list).await
            }
            "/v1.PodResourcesLister/Get" => {
                let get = async |asked: m::GetRequest| {
                    let is_it = |pod: (&str, &str)| pod == (&asked.pod_namespace, &asked.pod_name);
                    let found = agent.pod_resources(is_it).into_iter().next();
                    let none = || {
                        let (name, namespace) = (&asked.pod_name, &asked.pod_namespace);
                        Status::not_found(format!("pod {name} in namespace {namespace} not found"))
                    };
                    Ok(m::GetResponse {
                        pod_resources: Some(found.ok_or_else(none)?),
                    })
                };
                rpc::unary(request, get).await
            }
            _ => rpc::unknown(),
        }
    }
}

impl Server {
    fn register(&self, agent: &Arc<Agent>, asked: m::RegisterRequest) -> Result<m::Empty, Status> {
        if asked.version != VERSION {
            let version = &asked.version;
            return Err(Status::unknown(format!(
                "requested API version \"{version}\" is not supported by kubelet. Supported version is [\"{VERSION}\"]"
            )));
        }
        if !is_extended(&asked.resource_name) {
            let name = &asked.resource_name;
            return Err(Status::unknown(format!(
                "the ResourceName \"{name}\" is invalid"
            )));
        }
        if asked.endpoint.contains('/') || asked.endpoint.is_empty() {
            return Err(Status::unknown(
                "the endpoint is the name of a socket in this directory",
            ));
        }
        let agent = agent.clone();
        // A plugin serves once it is told that it is registered, or before.
        self.scope
            .spawn_cancellable(async move { agent.devices.follow(asked).await });
        Ok(m::Empty {})
    }
}

impl Agent {
    /// Of the pods that run, those of these namespaces and names.
    fn pod_resources(&self, is_asked: impl Fn((&str, &str)) -> bool) -> Vec<m::PodResources> {
        let inventory = self.devices.inventory.lock();
        let mut all = Vec::new();
        for slot in self.slots() {
            let record = slot.lock();
            let desired = &record.desired;
            let over = record.actual.gone || plan::has_finished(desired, &record.actual);
            if over || !is_asked((&desired.namespace, &desired.name)) {
                continue;
            }
            let spec = desired.pod.spec.iter();
            let containers = spec.flat_map(resources::containers).map(|container| {
                let given = inventory.given(&slot.uid.0, &container.name);
                let devices = given
                    .into_iter()
                    .flatten()
                    .flat_map(|(name, given)| inventory.told(name, &given.ids));
                m::ContainerResources {
                    name: container.name.clone(),
                    devices: devices.collect(),
                }
            });
            all.push(m::PodResources {
                name: desired.name.to_string(),
                namespace: desired.namespace.to_string(),
                containers: containers.collect(),
            });
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{EPOCH, FakeApi, FakeRuntime, Rig, one};
    use crate::pod::Uid;
    use client::Clock;
    use serde_json::json;

    #[tokio::test(start_paused = true)]
    async fn pods_have_what_they_had_before_their_plugin_is_back() {
        let dir = tempfile::tempdir().unwrap();
        let given = json!({"ids": ["d1"], "pre_start": false, "env": {"DEVICES": "d1", "OWN": "no"},
            "mounts": [["/opt/gadget", "/gadget", true]], "devices": [], "annotations": {}});
        let of = |pod: &str| json!({pod: {"c": {"a.b/d": given}}});
        let mut pods = of("web");
        pods["gone"] = of("gone")["gone"].clone();
        let kept = json!({"resources": ["a.b/d"], "pods": pods});
        std::fs::write(dir.path().join("devices"), kept.to_string()).unwrap();

        let clock = Clock::following_tokio(EPOCH.parse().unwrap());
        let rig = Rig::on(
            dir,
            FakeRuntime::new(clock.clone()),
            clock,
            FakeApi::default(),
        )
        .await;
        let mut spec = one();
        spec["containers"][0]["resources"] = json!({"limits": {"a.b/d": "1"}});
        spec["containers"][0]["env"] = json!([{"name": "OWN", "value": "yes"}]);
        rig.apply("web", spec.clone());
        rig.apply("late", spec);
        rig.until("it runs", |r| r.runtime.told().contains("start web/c/0"))
            .await;
        let container = rig.runtime.specs.lock()[0].clone();
        let value = |name: &str| {
            let mut env = container.env.iter().rev();
            env.find(|(n, _)| n == name).map(|(_, v)| v.clone())
        };
        assert_eq!(value("DEVICES").as_deref(), Some("d1"));
        assert_eq!(value("OWN").as_deref(), Some("yes"));
        let mut mounts = container.mounts.iter();
        let mount = mounts.find(|m| m.guest_path == "/gadget").unwrap();
        assert!(mount.read_only);

        // One that never had any can't be given any.
        rig.until("refused", |r| r.api.status("late")["phase"] == "Failed")
            .await;
        let late = rig.api.status("late");
        assert_eq!(late["reason"], "UnexpectedAdmissionError");
        assert_eq!(
            late["message"],
            "Pod was rejected: Allocate failed due to no healthy devices present; cannot allocate \
             unhealthy devices a.b/d, which is unexpected"
        );

        // What a pod has that is no more is free, and so is what has ended.
        let known = [Uid::from("web"), Uid::from("late")];
        rig.agent.retain(&known.into_iter().collect());
        let holders = || rig.agent.devices.inventory.lock().holders();
        assert_eq!(holders(), ["web"]);
        rig.delete("web", 1);
        rig.until("it ended", |_| holders().is_empty()).await;
        rig.scope.close().await;
        let text = std::fs::read_to_string(rig.dir.path().join("devices")).unwrap();
        assert_eq!(text, r#"{"resources":["a.b/d"],"pods":{}}"#);
    }

    #[test]
    fn only_names_of_other_domains_are_plugins_() {
        for (name, may) in [
            ("example.com/dev", true),
            ("nvidia.com/gpu", true),
            ("cpu", false),
            ("kubernetes.io/dev", false),
            ("node.kubernetes.io/dev", false),
            ("requests.example.com/dev", false),
            ("example.com/", false),
            ("/dev", false),
        ] {
            assert_eq!(is_extended(name), may, "{name}");
        }
    }
}

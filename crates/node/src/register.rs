//! The Node object and its Lease: registration, status, heartbeat.
//!
//! The status is sent when it changes and every five minutes, the Lease every ten
//! seconds, as upstream's kubelet does. No failure here stops a pod.

use crate::image::ImageSource;
use crate::machine::{self, Capacity, Pressure};
use crate::shutdown::Stage;
use api::partition::{Epoch, epoch_of};
use client::Clock;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Namespace of nodes' Leases.
const LEASE_NAMESPACE: &str = "kube-node-lease";
const LEASE_SECONDS: i32 = 40;
const LEASE_RENEW: Duration = Duration::from_secs(10);
/// After such a silence the server may have called the node unreachable, and is told at once
/// that it is not.
const SUSPECT: Duration = Duration::from_secs(20);
/// How long the server has to answer; a connection that a cut has killed says nothing.
const LEASE_DEADLINE: Duration = Duration::from_secs(5);
/// How often the status is looked at, and sent if it changed.
const STATUS_LOOK: Duration = Duration::from_secs(10);
/// It is sent at the latest after this.
const STATUS_SEND_SECONDS: i64 = 300;
/// Delay between tries while the API server does not answer.
const RETRY: Duration = Duration::from_secs(1);
/// How often images are listed for the status.
const IMAGES_LOOK_SECONDS: i64 = 60;
/// Images listed in the status, as upstream's default.
const IMAGES_MAX: usize = 50;

/// What the Node object says of this node.
pub(crate) struct Registration {
    /// Is told of each renewal.
    pub(crate) agent: Arc<crate::agent::Agent>,
    /// The server is reached again.
    pub(crate) regained: tokio::sync::Notify,
    pub(crate) name: String,
    pub(crate) client: kube::Client,
    pub(crate) clock: Clock,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) taints: Vec<core::Taint>,
    pub(crate) node_ip: IpAddr,
    pub(crate) pod_cidr: String,
    pub(crate) kubelet_port: u16,
    pub(crate) capacity: Capacity,
    pub(crate) dir: PathBuf,
    pub(crate) runtime_version: String,
    pub(crate) handlers: Vec<String>,
    pub(crate) images: Arc<dyn ImageSource>,
    pub(crate) version: String,
    /// Images as last listed, and when, Unix seconds.
    pub(crate) listed: parking_lot::Mutex<Option<Listed>>,
}

/// The Lease as this node last wrote or read it.
struct Held {
    version: String,
    epoch: Epoch,
}

impl Held {
    fn of(lease: &Lease) -> Self {
        let meta = &lease.metadata;
        Self {
            version: meta.resource_version.clone().unwrap_or_default(),
            epoch: Epoch {
                lease: meta.uid.clone().unwrap_or_default(),
                count: epoch_of(meta.annotations.as_ref()),
            },
        }
    }
}

/// When, and names and sizes.
type Listed = (i64, Vec<(Vec<String>, u64)>);

impl Registration {
    /// Registers and goes on telling until the scope is cancelled.
    pub(crate) fn start(self, scope: &lifecycle::Scope) {
        let this = Arc::new(self);
        let status = this.clone();
        scope.spawn_cancellable(async move { status.keep_status().await });
        scope.spawn_cancellable(async move { this.keep_lease().await });
    }

    fn nodes(&self) -> Api<core::Node> {
        Api::all(self.client.clone())
    }

    async fn keep_status(&self) {
        let mut conditions = loop {
            match self.register().await {
                Ok(conditions) => break conditions,
                Err(error) => {
                    tracing::warn!(node = self.name, %error, "node not registered, trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        tracing::info!(node = self.name, "node registered");
        let mut sent = self.clock.now();
        let mut known = self.comparable(&conditions).await;
        let mut overdue = false;
        let mut goes_down = false;
        let mut stage = self.agent.stage.subscribe();
        loop {
            tokio::select! {
                () = tokio::time::sleep(STATUS_LOOK) => {}
                _ = stage.wait_for(|stage| *stage != Stage::Up), if !goes_down => {}
                () = self.regained.notified() => overdue = true,
                () = self.agent.devices.changed.notified() => {}
            }
            goes_down = self.agent.is_going_down();
            let now = self.clock.now();
            let next = self.conditions(&conditions, now);
            let comparable = self.comparable(&next).await;
            let fresh = now.as_second() - sent.as_second() < STATUS_SEND_SECONDS;
            if comparable == known && fresh && !overdue {
                continue;
            }
            let status = self.status(next.clone()).await;
            let patch = Patch::Strategic(json!({"status": status}));
            let (nodes, params) = (self.nodes(), PatchParams::default());
            let asked = nodes.patch_status(&self.name, &params, &patch);
            let Ok(done) = tokio::time::timeout(LEASE_DEADLINE, asked).await else {
                continue;
            };
            match done {
                Ok(_) => {
                    if goes_down {
                        self.agent.stage.send_replace(Stage::Told);
                    }
                    (sent, known, conditions) = (now, comparable, next);
                    overdue = false;
                }
                // Somebody deleted the Node: it comes back, as upstream's does.
                Err(e) if client::is_not_found(&e) => {
                    if let Ok(fresh) = self.register().await {
                        conditions = fresh;
                    }
                }
                Err(error) => tracing::debug!(%error, "node status not sent, trying again"),
            }
        }
    }

    /// What of a status is worth sending at once: all but heartbeats.
    async fn comparable(&self, conditions: &[core::NodeCondition]) -> String {
        let mut status = self.status(conditions.to_vec()).await;
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        serde_json::to_string(&status).unwrap_or_default()
    }

    /// Creates the Node, or brings labels, taints and status of the existing one up to date.
    async fn register(&self) -> Result<Vec<core::NodeCondition>, kube::Error> {
        let now = self.clock.now();
        let conditions = self.conditions(&[], now);
        let node = core::Node {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some(self.all_labels()),
                annotations: Some(self.annotations()),
                ..ObjectMeta::default()
            },
            spec: Some(core::NodeSpec {
                pod_cidr: Some(self.pod_cidr.clone()),
                pod_cidrs: Some(vec![self.pod_cidr.clone()]),
                provider_id: Some(format!("salp://{}", self.name)),
                taints: Some(self.taints.clone()).filter(|t| !t.is_empty()),
                ..core::NodeSpec::default()
            }),
            status: Some(self.status(conditions.clone()).await),
        };
        match self.nodes().create(&PostParams::default(), &node).await {
            Ok(created) => {
                let kept = created
                    .status
                    .is_some_and(|s| s.conditions.is_some_and(|c| !c.is_empty()));
                if kept {
                    return Ok(conditions);
                }
            }
            Err(e) if client::is_already_exists(&e) => {
                let patch = Patch::Strategic(json!({"metadata": {
                    "labels": self.all_labels(), "annotations": self.annotations(),
                }}));
                self.nodes()
                    .patch(&self.name, &PatchParams::default(), &patch)
                    .await?;
            }
            Err(e) => return Err(e),
        }
        let existing = self.nodes().get(&self.name).await?;
        let before = existing
            .status
            .and_then(|s| s.conditions)
            .unwrap_or_default();
        let conditions = self.conditions(&before, now);
        let patch = Patch::Strategic(json!({"status": self.status(conditions.clone()).await}));
        self.nodes()
            .patch_status(&self.name, &PatchParams::default(), &patch)
            .await?;
        Ok(conditions)
    }

    /// Where volumes are made that are to be on this node.
    fn annotations(&self) -> BTreeMap<String, String> {
        let volumes = crate::volumes::directory(&self.dir);
        BTreeMap::from([(
            api::constants::ANNOTATION_VOLUMES_DIR.to_owned(),
            volumes.display().to_string(),
        )])
    }

    fn all_labels(&self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::from([
            (api::constants::LABEL_HOSTNAME.into(), self.name.clone()),
            (api::constants::LABEL_OS.into(), "linux".into()),
            (
                api::constants::LABEL_ARCH.into(),
                machine::architecture().into(),
            ),
            ("beta.kubernetes.io/os".into(), "linux".into()),
            (
                "beta.kubernetes.io/arch".into(),
                machine::architecture().into(),
            ),
            ("salp.dev/wasm".into(), "true".into()),
        ]);
        labels.extend(self.labels.clone());
        labels
    }

    async fn status(&self, conditions: Vec<core::NodeCondition>) -> core::NodeStatus {
        let images = self.listed_images().await;
        let images = images
            .into_iter()
            .map(|(names, bytes)| core::ContainerImage {
                names: Some(names),
                size_bytes: i64::try_from(bytes).ok(),
            })
            .collect();
        let (mut capacity, mut allocatable) = (self.capacity.api(), self.capacity.api());
        for (name, (all, healthy)) in self.agent.devices.amounts() {
            capacity.insert(name.clone(), Quantity(all.to_string()));
            allocatable.insert(name, Quantity(healthy.to_string()));
        }
        let address = |type_: &str, address: String| core::NodeAddress {
            type_: type_.into(),
            address,
        };
        core::NodeStatus {
            addresses: Some(vec![
                address("InternalIP", self.node_ip.to_string()),
                address("Hostname", self.name.clone()),
            ]),
            allocatable: Some(allocatable),
            capacity: Some(capacity),
            conditions: Some(conditions),
            daemon_endpoints: Some(core::NodeDaemonEndpoints {
                kubelet_endpoint: Some(core::DaemonEndpoint {
                    port: self.kubelet_port.into(),
                }),
            }),
            images: Some(images),
            node_info: Some(machine::system_info(&self.runtime_version, &self.version)),
            runtime_handlers: Some(
                self.handlers
                    .iter()
                    .map(|name| core::NodeRuntimeHandler {
                        name: Some(name.clone()),
                        features: None,
                    })
                    .collect(),
            ),
            ..core::NodeStatus::default()
        }
    }

    /// The largest images. Listing reads the store, so it is not done at each look.
    async fn listed_images(&self) -> Vec<(Vec<String>, u64)> {
        let now = self.clock.now().as_second();
        if let Some((at, known)) = &*self.listed.lock()
            && (0..IMAGES_LOOK_SECONDS).contains(&(now - at))
        {
            return known.clone();
        }
        let mut images = self.images.list().await;
        images.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        images.truncate(IMAGES_MAX);
        *self.listed.lock() = Some((now, images.clone()));
        images
    }

    fn conditions(
        &self,
        before: &[core::NodeCondition],
        now: Timestamp,
    ) -> Vec<core::NodeCondition> {
        let pressure = Pressure::read(&self.dir);
        let condition = |type_: &str, on: bool, reason: &str, message: &str| {
            let status = if on { "True" } else { "False" };
            let since = before
                .iter()
                .find(|c| c.type_ == type_ && c.status == status)
                .and_then(|c| c.last_transition_time.clone());
            core::NodeCondition {
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: Some(since.unwrap_or(Time(now))),
                message: Some(message.into()),
                reason: Some(reason.into()),
                status: status.into(),
                type_: type_.into(),
            }
        };
        let press = |type_: &str, on: bool, what: &str, has: &str, is_short: &str| {
            let (reason, message) = if on {
                (format!("KubeletHasInsufficient{what}"), is_short)
            } else {
                (format!("KubeletHas{what}"), has)
            };
            condition(type_, on, &reason, message)
        };
        vec![
            press(
                "MemoryPressure",
                pressure.memory,
                if pressure.memory {
                    "Memory"
                } else {
                    "SufficientMemory"
                },
                "kubelet has sufficient memory available",
                "kubelet has insufficient memory available",
            ),
            condition(
                "DiskPressure",
                pressure.disk,
                if pressure.disk {
                    "KubeletHasDiskPressure"
                } else {
                    "KubeletHasNoDiskPressure"
                },
                if pressure.disk {
                    "kubelet has disk pressure"
                } else {
                    "kubelet has no disk pressure"
                },
            ),
            press(
                "PIDPressure",
                pressure.pid,
                if pressure.pid { "PID" } else { "SufficientPID" },
                "kubelet has sufficient PID available",
                "kubelet has insufficient PID available",
            ),
            match self.agent.is_going_down() {
                true => condition("Ready", false, "KubeletNotReady", "node is shutting down"),
                false => condition(
                    "Ready",
                    true,
                    "KubeletReady",
                    "kubelet is posting ready status",
                ),
            },
        ]
    }

    async fn keep_lease(&self) {
        let leases = Api::<Lease>::namespaced(self.client.clone(), LEASE_NAMESPACE);
        let mut held: Option<Held> = None;
        loop {
            let sent = self.agent.contact.now();
            let asked = tokio::time::timeout(LEASE_DEADLINE, self.renew(&leases, held.as_ref()));
            let wait = match asked.await {
                // One that was only found is renewed at once: only that is a sign of life.
                Ok(Ok(found)) if held.is_none() => {
                    held = Some(found);
                    continue;
                }
                Ok(Ok(renewed)) => {
                    if self.agent.contact.silence().is_none_or(|s| s >= SUSPECT) {
                        self.regained.notify_one();
                    }
                    self.agent.contacted(sent, &renewed.epoch);
                    held = Some(renewed);
                    LEASE_RENEW
                }
                // Somebody wrote it, perhaps this node and it was not told: it is read again.
                Ok(Err(error)) if held.is_some() && client::is_conflict(&error) => {
                    held = None;
                    continue;
                }
                Ok(Err(error)) => {
                    if client::is_not_found(&error) {
                        held = None;
                    }
                    tracing::debug!(node = self.name, %error, "lease not renewed, trying again");
                    RETRY
                }
                Err(_) => {
                    tracing::debug!(node = self.name, "lease not renewed in time, trying again");
                    RETRY
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Renews the Lease if it is the one that is held; without one finds or makes it.
    async fn renew(&self, leases: &Api<Lease>, held: Option<&Held>) -> Result<Held, kube::Error> {
        let Some(held) = held else {
            return match leases.get_opt(&self.name).await? {
                Some(lease) => Ok(Held::of(&lease)),
                None => self.create_lease(leases).await.map(|l| Held::of(&l)),
            };
        };
        let renew = json!({
            "metadata": {"resourceVersion": held.version},
            "spec": {"renewTime": MicroTime(self.clock.now()),
                "holderIdentity": self.name, "leaseDurationSeconds": LEASE_SECONDS}});
        let lease = leases
            .patch(&self.name, &PatchParams::default(), &Patch::Merge(renew))
            .await?;
        Ok(Held::of(&lease))
    }

    async fn create_lease(&self, leases: &Api<Lease>) -> Result<Lease, kube::Error> {
        // Owned by the Node, so that it goes with it.
        let node = self.nodes().get(&self.name).await?;
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(LEASE_NAMESPACE.into()),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".into(),
                    kind: "Node".into(),
                    name: self.name.clone(),
                    uid: node.metadata.uid.unwrap_or_default(),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.name.clone()),
                lease_duration_seconds: Some(LEASE_SECONDS),
                renew_time: Some(MicroTime(self.clock.now())),
                ..LeaseSpec::default()
            }),
        };
        leases.create(&PostParams::default(), &lease).await
    }
}

//! Pods as processes: what `salp ps` shows, in one answer of few bytes. What the informers
//! have anyway is put into rows; the API server is asked for nothing but rights.

use super::allowed::Answered;
use super::usage::{Usage, Uses};
use api::constants::{ANNOTATION_ASLEEP_ON, ANNOTATION_ASLEEP_REPLICAS};
use apimachinery::selector::{FieldSelector, LabelSelector};
use client::{Informer, Informers};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use lifecycle::Scope;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A pod as a process.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// The site, where several are listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// Its namespace.
    pub namespace: String,
    /// Its name; that of its Deployment, if that sleeps.
    pub pod: String,
    /// Where it is.
    pub node: String,
    /// Its address.
    pub ip: String,
    /// The images of its containers.
    pub image: String,
    /// Containers that are ready, of how many.
    pub ready: String,
    /// How it is, in one word.
    pub state: String,
    /// Restarts of its containers.
    pub restarts: u64,
    /// Since it was made.
    pub age_seconds: i64,
    /// Cores in use between two readings; `None` where unknown, as below.
    pub cpu_cores: Option<f64>,
    /// Memory in use.
    pub memory_bytes: Option<u64>,
    /// Requests served between two readings.
    pub requests_per_second: Option<f64>,
    /// Requests served so far.
    pub requests: Option<u64>,
    /// Wasm instances alive.
    pub instances: Option<u64>,
}

/// A node as it is listed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// The site, where several are listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// Its name.
    pub name: String,
    /// Whether it says so.
    pub ready: bool,
    /// Cores that it has.
    pub cpu_cores: f64,
    /// Memory that it has.
    pub memory_bytes: u64,
    /// Its kubelet answered.
    pub reached: bool,
}

/// A site's processes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Processes {
    /// By namespace and name; at the end what sleeps.
    pub processes: Vec<Process>,
    /// By name.
    pub nodes: Vec<Node>,
}

/// Which pods are asked for.
#[derive(Debug, Default)]
pub(super) struct Which {
    /// `None` for all.
    pub(super) namespace: Option<String>,
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Which {
    /// Reads a query as the API has it, with `namespace` besides.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let mut which = Self::default();
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "namespace" => which.namespace = Some(value.into_owned()),
                "labelSelector" => {
                    which.labels = LabelSelector::parse(&value).map_err(|s| s.message)?;
                }
                "fieldSelector" => {
                    which.fields = FieldSelector::parse(&value).map_err(|s| s.message)?;
                    let unknown = |(path, _, _): &&(String, String, bool)| !is_field(path);
                    if let Some((path, ..)) = which.fields.requirements.iter().find(unknown) {
                        return Err(format!(
                            "Unable to find \"/v1, Resource=pods\" that match label selector {:?}, field selector {value:?}: field label not supported: {path}",
                            which.labels.to_string(),
                        ));
                    }
                }
                // Somebody newer asks.
                _ => {}
            }
        }
        Ok(which)
    }

    fn has_labels(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.labels
            .matches(|key| labels?.get(key).map(String::as_str))
    }

    fn picks(&self, pod: &core::Pod) -> bool {
        self.has_labels(pod.metadata.labels.as_ref())
            && self.fields.matches(|path| field(pod, path))
    }
}

/// Whether pods can be selected by it, as the API has it.
fn is_field(path: &str) -> bool {
    matches!(path, "metadata.name" | "metadata.namespace")
        || api::find("", "v1", "pods").is_some_and(|pods| pods.selectable.contains(&path))
}

fn field<'a>(pod: &'a core::Pod, path: &str) -> &'a str {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let found = match path {
        "metadata.name" => meta.name.as_deref(),
        "metadata.namespace" => meta.namespace.as_deref(),
        "spec.nodeName" => spec.and_then(|s| s.node_name.as_deref()),
        "spec.restartPolicy" => spec.and_then(|s| s.restart_policy.as_deref()),
        "spec.schedulerName" => spec.and_then(|s| s.scheduler_name.as_deref()),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.as_deref()),
        "spec.hostNetwork" => Some(if spec.is_some_and(|s| s.host_network == Some(true)) {
            "true"
        } else {
            "false"
        }),
        "status.phase" => status.and_then(|s| s.phase.as_deref()),
        "status.podIP" => status.and_then(|s| s.pod_ip.as_deref()),
        "status.nominatedNodeName" => status.and_then(|s| s.nominated_node_name.as_deref()),
        _ => None,
    };
    found.unwrap_or_default()
}

/// What of it may be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rights {
    deployments: bool,
    nodes: bool,
}

/// Lists processes.
pub(super) struct Lister {
    client: kube::Client,
    informers: Informers,
    usage: Usage,
}

/// Why there is no list.
#[derive(Debug)]
pub(super) enum NotListed {
    /// It may not be asked.
    Forbidden(String),
    /// The API server does not say whether it may be.
    Asking(kube::Error),
}

impl Lister {
    pub(super) fn new(client: kube::Client, informers: Informers, scope: &Scope) -> Self {
        Self {
            usage: Usage::new(client.clone(), scope),
            client,
            informers,
        }
    }

    /// Everything, for the site's owner.
    pub(super) async fn all(&self, which: Which) -> Processes {
        let everything = Rights {
            deployments: true,
            nodes: true,
        };
        let namespaces = which.namespace.clone().map(|ns| vec![ns]);
        self.list(which, namespaces, everything).await
    }

    /// What another site may know.
    pub(super) async fn permitted(
        &self,
        which: Which,
        answered: &Answered,
    ) -> Result<Processes, NotListed> {
        let namespaces = match (&which.namespace, answered) {
            (Some(ns), Answered::Namespaces(some)) if !some.contains(ns) => {
                return Err(NotListed::Forbidden(answered.to_string()));
            }
            (Some(ns), _) => Some(vec![ns.clone()]),
            (None, Answered::Namespaces(some)) => Some(some.iter().cloned().collect()),
            (None, _) => None,
        };
        let in_these = namespaces.as_deref();
        if !self.may_list("", "pods", in_these).await? {
            let why = "does not answer questions about pods".to_owned();
            return Err(NotListed::Forbidden(why));
        }
        let rights = Rights {
            deployments: self.may_list("apps", "deployments", in_these).await?,
            nodes: self.may_list("", "nodes", None).await?,
        };
        Ok(self.list(which, namespaces, rights).await)
    }

    /// Whether all of these namespaces may be listed, or without any, all there are.
    async fn may_list(
        &self,
        group: &str,
        resource: &str,
        namespaces: Option<&[String]>,
    ) -> Result<bool, NotListed> {
        let everywhere = [String::new()];
        for namespace in namespaces.unwrap_or(&everywhere) {
            let review = json!({
                "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": {
                    "verb": "list", "group": group, "resource": resource, "namespace": namespace,
                }},
            });
            let request =
                http::Request::post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
                    .header("content-type", "application/json")
                    .body(review.to_string().into_bytes());
            let request = request.map_err(|e| NotListed::Asking(kube::Error::HttpError(e)))?;
            let review = self.client.request::<Value>(request).await;
            if review.map_err(NotListed::Asking)?["status"]["allowed"] != true {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn list(
        &self,
        which: Which,
        namespaces: Option<Vec<String>>,
        rights: Rights,
    ) -> Processes {
        let pods = self.informers.get::<core::Pod>();
        let deployments = self.informers.get::<Deployment>();
        let nodes = self.informers.get::<core::Node>();
        pods.synced().await;
        deployments.synced().await;
        nodes.synced().await;
        let mut list = nodes.list().iter().map(|n| node(n)).collect::<Vec<_>>();
        let ready = list.iter().filter(|n| n.ready).map(|n| n.name.clone());
        let ready: Vec<String> = ready.collect();
        let uses = self.usage.read(&ready);
        // Thousands of rows would keep other tasks of this thread waiting.
        let rows = tokio::task::spawn_blocking(move || {
            let now = jiff::Timestamp::now().as_second();
            let picked = chosen(&pods, namespaces.as_deref(), |pod| which.picks(pod));
            let rows: Vec<_> = picked
                .iter()
                .map(|pod| (pod.metadata.uid.clone(), row(pod, now)))
                .collect();
            let sleeps = |d: &Deployment| {
                d.annotations().contains_key(ANNOTATION_ASLEEP_ON)
                    && which.has_labels(d.metadata.labels.as_ref())
            };
            // They have no fields of pods.
            let asleep = if rights.deployments && which.fields.requirements.is_empty() {
                chosen(&deployments, namespaces.as_deref(), sleeps)
            } else {
                Vec::new()
            };
            let asleep = asleep.iter().map(|d| sleeper(d, now));
            (rows, asleep.collect::<Vec<_>>())
        });
        let (uses, rows) = tokio::join!(uses, rows);
        let (rows, asleep) = rows.unwrap_or_default();
        let processes = rows.into_iter().map(|(uid, row)| with_use(row, uid, &uses));
        let processes = processes.chain(asleep).collect();
        if !rights.nodes {
            list.clear();
        }
        for node in &mut list {
            node.reached = uses.reached(&node.name);
        }
        Processes {
            processes,
            nodes: list,
        }
    }
}

/// The objects of these namespaces, or of all, that are picked.
fn chosen<K>(
    informer: &Informer<K>,
    namespaces: Option<&[String]>,
    picks: impl Fn(&K) -> bool,
) -> Vec<Arc<K>> {
    match namespaces {
        None => informer.select(picks),
        Some(some) => {
            let of = some.iter().map(|ns| informer.select_namespace(ns, &picks));
            of.flatten().collect()
        }
    }
}

fn row(pod: &core::Pod, now: i64) -> Process {
    let containers = pod.spec.iter().flat_map(|s| &s.containers);
    let statuses = pod.status.iter().flat_map(|s| &s.container_statuses);
    let restarts = statuses.flatten().map(|c| c.restart_count);
    let (ready, state) = shown(pod, now);
    Process {
        site: None,
        namespace: pod.namespace().unwrap_or_default(),
        pod: pod.name_any(),
        node: field(pod, "spec.nodeName").to_owned(),
        ip: field(pod, "status.podIP").to_owned(),
        image: images(containers),
        ready,
        state,
        restarts: restarts.map(|n| u64::try_from(n).unwrap_or(0)).sum(),
        age_seconds: age(&pod.metadata, now),
        cpu_cores: None,
        memory_bytes: None,
        requests_per_second: None,
        requests: None,
        instances: None,
    }
}

fn with_use(row: Process, uid: Option<String>, uses: &Uses) -> Process {
    let used = uid.and_then(|uid| uses.of(&uid));
    Process {
        cpu_cores: used.and_then(|u| u.cpu_cores),
        memory_bytes: used.map(|u| u.memory_bytes),
        requests_per_second: used.and_then(|u| u.requests_per_second),
        requests: used.map(|u| u.requests),
        instances: used.map(|u| u.instances),
        ..row
    }
}

/// The columns Ready and Status as `kubectl get pods` has them. They are made from the object
/// as JSON; what they do not look at is left out of it, for that is most of a pod.
fn shown(pod: &core::Pod, now: i64) -> (String, String) {
    let spec = pod.spec.as_ref();
    let inits = spec.and_then(|s| s.init_containers.as_deref());
    let inits = inits.unwrap_or_default().iter();
    let inits = inits.map(|c| json!({"name": c.name, "restartPolicy": c.restart_policy}));
    let status = pod.status.as_ref();
    let conditions = status.iter().flat_map(|s| &s.conditions).flatten();
    let conditions =
        conditions.map(|c| json!({"type": c.type_, "status": c.status, "reason": c.reason}));
    let containers = |list: fn(&core::PodStatus) -> &Option<Vec<core::ContainerStatus>>| {
        let statuses = status.and_then(|s| list(s).as_deref()).unwrap_or_default();
        let statuses = statuses.iter().map(|c| {
            json!({
                "name": c.name, "ready": c.ready, "started": c.started,
                "restartCount": c.restart_count, "state": c.state, "lastState": c.last_state,
            })
        });
        statuses.collect::<Vec<_>>()
    };
    let looked_at = json!({
        "metadata": {"deletionTimestamp": pod.metadata.deletion_timestamp},
        "spec": {
            "containers": vec![Value::Null; spec.map_or(0, |s| s.containers.len())],
            "initContainers": inits.collect::<Vec<_>>(),
        },
        "status": {
            "phase": status.and_then(|s| s.phase.as_deref()),
            "reason": status.and_then(|s| s.reason.as_deref()),
            "conditions": conditions.collect::<Vec<_>>(),
            "initContainerStatuses": containers(|s| &s.init_container_statuses),
            "containerStatuses": containers(|s| &s.container_statuses),
        },
    });
    columns(&looked_at, now)
}

fn columns(pod: &Value, now: i64) -> (String, String) {
    let Some(table) = api::find("", "v1", "pods") else {
        return Default::default();
    };
    let mut cells = (table.row)(pod, now);
    let mut cell = |name: &str| {
        let at = table.columns.iter().position(|c| c.name == name);
        let cell = at.and_then(|at| cells.get_mut(at)).map(Value::take);
        match cell {
            Some(Value::String(text)) => text,
            _ => String::new(),
        }
    };
    (cell("Ready"), cell("Status"))
}

/// A Deployment that sleeps has no pod in the API; it is shown as what it is.
fn sleeper(deployment: &Deployment, now: i64) -> Process {
    let annotation = |key: &str| deployment.annotations().get(key).map(String::as_str);
    let template = deployment.spec.template.spec.as_ref();
    Process {
        site: None,
        namespace: deployment.namespace().unwrap_or_default(),
        pod: deployment.name_any(),
        node: annotation(ANNOTATION_ASLEEP_ON)
            .unwrap_or_default()
            .to_owned(),
        ip: String::new(),
        image: images(template.iter().flat_map(|s| &s.containers)),
        ready: format!(
            "0/{}",
            annotation(ANNOTATION_ASLEEP_REPLICAS).unwrap_or("1")
        ),
        state: "Asleep".to_owned(),
        restarts: 0,
        age_seconds: age(&deployment.metadata, now),
        cpu_cores: None,
        memory_bytes: None,
        requests_per_second: None,
        requests: None,
        instances: Some(0),
    }
}

fn node(node: &core::Node) -> Node {
    let status = node.status.as_ref();
    let conditions = status.iter().flat_map(|s| &s.conditions).flatten();
    let capacity = status.and_then(|s| s.capacity.as_ref());
    let of = |name: &str| capacity.and_then(|c| c.get(name)).map_or(0.0, quantity);
    Node {
        site: None,
        name: node.name_any(),
        ready: conditions
            .into_iter()
            .any(|c| c.type_ == "Ready" && c.status == "True"),
        cpu_cores: of("cpu"),
        memory_bytes: of("memory") as u64,
        reached: false,
    }
}

fn quantity(quantity: &Quantity) -> f64 {
    let parsed = quantity.0.parse::<apimachinery::quantity::Quantity>();
    parsed.map_or(0.0, |q| q.nano as f64 / 1e9)
}

fn images<'a>(containers: impl Iterator<Item = &'a core::Container>) -> String {
    let images: Vec<Cow<'_, str>> = containers
        .filter_map(|c| c.image.as_deref().map(Cow::Borrowed))
        .collect();
    images.join(",")
}

fn age(meta: &ObjectMeta, now: i64) -> i64 {
    let made = meta.creation_timestamp.as_ref();
    made.map_or(0, |t| now - t.0.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(value: Value) -> core::Pod {
        serde_json::from_value(value).unwrap()
    }

    fn till() -> Value {
        json!({
            "metadata": {"name": "till-0", "namespace": "shop", "labels": {"app": "till"}, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "nodeName": "n1", "containers": [{"name": "a", "image": "till:1"}, {"name": "b", "image": "log:2"}],
                "initContainers": [{"name": "i", "restartPolicy": "Always"}],
            },
            "status": {
                "phase": "Running", "podIP": "10.42.0.7",
                "conditions": [{"type": "Ready", "status": "True"}, {"type": "Initialized", "status": "True"}],
                "initContainerStatuses": [{"name": "i", "image": "", "imageID": "", "ready": true, "started": true, "restartCount": 0, "state": {"running": {}}}],
                "containerStatuses": [
                    {"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 2, "state": {"running": {}}},
                    {"name": "b", "image": "", "imageID": "", "ready": false, "restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}},
                ],
            },
        })
    }

    #[test]
    fn a_pod_is_a_row() {
        let now = "2026-01-01T00:01:00Z".parse::<jiff::Timestamp>().unwrap();
        let row = row(&pod(till()), now.as_second());
        let shown = serde_json::to_string(&row).unwrap();
        expect_test::expect![[r#"{"namespace":"shop","pod":"till-0","node":"n1","ip":"10.42.0.7","image":"till:1,log:2","ready":"2/3","state":"CrashLoopBackOff","restarts":3,"ageSeconds":60,"cpuCores":null,"memoryBytes":null,"requestsPerSecond":null,"requests":null,"instances":null}"#]].assert_eq(&shown);
    }

    #[test]
    fn what_is_left_out_changes_no_column() {
        let mut pods = vec![
            till(),
            json!({"metadata": {"name": "x"}, "spec": {"containers": []}}),
        ];
        let change = |at: &str, value: Value| {
            let mut pod = till();
            *pod.pointer_mut(at).unwrap() = value;
            pod
        };
        pods.push(change("/status/containerStatuses", Value::Null));
        pods.push(change(
            "/status/initContainerStatuses/0/started",
            json!(false),
        ));
        pods.push(change("/spec/initContainers/0/restartPolicy", Value::Null));
        pods.push(change(
            "/status/containerStatuses/1/state",
            json!({"terminated": {"exitCode": 3}}),
        ));
        pods.push(change(
            "/status/conditions",
            json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]),
        ));
        let mut leaving = till();
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:30Z");
        pods.push(leaving);
        pods.push(change("/status/phase", json!("Failed")));
        let mut evicted = till();
        evicted["status"] = json!({"phase": "Failed", "reason": "Evicted"});
        pods.push(evicted);
        for value in pods {
            let pod = pod(value);
            let whole = serde_json::to_value(&pod).unwrap();
            assert_eq!(shown(&pod, 0), columns(&whole, 0), "{whole}");
        }
    }

    #[test]
    fn selectors_pick_as_the_api_does() {
        let pod = pod(till());
        for (query, want) in [
            ("", true),
            ("namespace=shop&compress=zstd", true),
            ("labelSelector=app%3Dtill", true),
            ("labelSelector=app+notin+%28till%29", false),
            ("labelSelector=%21app", false),
            (
                "fieldSelector=status.phase%3DRunning%2Cspec.nodeName%21%3Dn2",
                true,
            ),
            ("fieldSelector=metadata.name%3Dtill-1", false),
            ("fieldSelector=spec.hostNetwork%3Dfalse", true),
            (
                "labelSelector=app%3Dtill&fieldSelector=status.podIP%3D10.42.0.7",
                true,
            ),
        ] {
            let which = Which::parse(query).unwrap();
            assert_eq!(which.picks(&pod), want, "{query}");
        }
        let wrong = |query: &str| Which::parse(query).unwrap_err();
        assert!(!wrong("labelSelector=%3D%3D").is_empty());
        assert!(wrong("fieldSelector=spec.x%3D1").contains("field label not supported: spec.x"));
    }
}

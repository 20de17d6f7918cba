//! What `salp ps` and `salp top` show, read from a site's API: pods joined with what they use.
//! Not how other sites are asked, who make such a list themselves (`fleet`).

pub use ::sites::fleet::processes::{Node, Process};

use crate::api_access::Access;
use ::sites::fleet::allowed::PROCESSES;
use anyhow::Result;
use api::constants::{ANNOTATION_ASLEEP_ON, ANNOTATION_ASLEEP_REPLICAS};
use serde_json::Value;
use std::collections::HashMap;
use std::time::Instant;

/// Use of one container so far, as a kubelet's `/stats/salp` reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Used {
    cpu_ns: u64,
    memory_bytes: u64,
    requests: u64,
    instances: u64,
}

/// One look at all pods.
#[derive(Debug)]
pub struct Sample {
    taken: Instant,
    pods: Vec<Value>,
    /// Deployments that sleep at zero.
    asleep: Vec<Value>,
    /// By pod UID.
    used: HashMap<String, Used>,
    pub nodes: Vec<Node>,
}

/// Which pods.
#[derive(Clone, Debug, Default)]
pub struct Which {
    /// `None` for all namespaces.
    pub namespace: Option<String>,
    pub label_selector: Option<String>,
    pub field_selector: Option<String>,
}

impl Which {
    fn pods_path(&self) -> String {
        self.path("/api/v1", "pods")
    }

    /// Where a site's own list is asked for.
    pub fn processes_path(&self) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        let asked = [
            ("namespace", &self.namespace),
            ("labelSelector", &self.label_selector),
            ("fieldSelector", &self.field_selector),
        ];
        for (key, value) in asked {
            if let Some(value) = value {
                query.append_pair(key, value);
            }
        }
        match query.finish().as_str() {
            "" => PROCESSES.to_owned(),
            query => format!("{PROCESSES}?{query}"),
        }
    }

    fn path(&self, group: &str, resource: &str) -> String {
        let base = match &self.namespace {
            Some(ns) => format!("{group}/namespaces/{ns}/{resource}"),
            None => format!("{group}/{resource}"),
        };
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        if let Some(l) = &self.label_selector {
            query.append_pair("labelSelector", l);
        }
        if let Some(f) = &self.field_selector {
            query.append_pair("fieldSelector", f);
        }
        let query = query.finish();
        if query.is_empty() {
            base
        } else {
            format!("{base}?{query}")
        }
    }
}

/// Reads pods, nodes and what the nodes' kubelets measured. A silent kubelet leaves gaps, no error.
pub async fn sample(access: &Access, which: &Which) -> Result<Sample> {
    let pods_path = which.pods_path();
    let asleep = asleep(access, which).await;
    let (pods, nodes) = tokio::try_join!(access.get(&pods_path), access.get("/api/v1/nodes"))?;
    let mut used = HashMap::new();
    let mut listed = Vec::new();
    for node in items(&nodes) {
        let name = text(node, "/metadata/name").to_owned();
        let stats = access
            .get(&format!("/api/v1/nodes/{name}/proxy/stats/salp"))
            .await;
        if let Ok(stats) = &stats {
            read_used(stats, &mut used);
        }
        listed.push(Node {
            site: None,
            ready: node
                .pointer("/status/conditions")
                .and_then(Value::as_array)
                .is_some_and(|list| {
                    list.iter()
                        .any(|c| c["type"] == "Ready" && c["status"] == "True")
                }),
            cpu_cores: quantity(text(node, "/status/capacity/cpu")),
            memory_bytes: quantity(text(node, "/status/capacity/memory")) as u64,
            reached: stats.is_ok(),
            name,
        });
    }
    let pods = match pods {
        Value::Object(mut list) => match list.remove("items") {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        },
        _ => Vec::new(),
    };
    Ok(Sample {
        taken: Instant::now(),
        pods,
        asleep,
        used,
        nodes: listed,
    })
}

/// Deployments that sleep; none for those who may not list them, or ask for pods by a field.
async fn asleep(access: &Access, which: &Which) -> Vec<Value> {
    if which.field_selector.is_some() {
        return Vec::new();
    }
    let path = which.path("/apis/apps/v1", "deployments");
    let list = access.get(&path).await.unwrap_or_default();
    let sleeps = |deployment: &&Value| {
        deployment["metadata"]["annotations"][ANNOTATION_ASLEEP_ON].is_string()
    };
    items(&list).filter(sleeps).cloned().collect()
}

fn read_used(stats: &Value, used: &mut HashMap<String, Used>) {
    let Some(pods) = stats["pods"].as_array() else {
        return;
    };
    for pod in pods {
        let Some(uid) = pod["uid"].as_str() else {
            continue;
        };
        let sum: &mut Used = used.entry(uid.to_owned()).or_default();
        for c in pod["containers"].as_array().into_iter().flatten() {
            let n = |key: &str| c[key].as_u64().unwrap_or(0);
            sum.cpu_ns += n("cpuNs");
            sum.memory_bytes += n("memoryBytes");
            sum.requests += n("requests");
            sum.instances += n("instances");
        }
    }
}

/// The pods of the later sample, with rates between the two.
pub fn processes(earlier: Option<&Sample>, later: &Sample) -> Vec<Process> {
    let now = jiff::Timestamp::now().as_second();
    let table = api::find("", "v1", "pods");
    let column = |name: &str| {
        table.and_then(|t| {
            t.columns
                .iter()
                .position(|c| c.name.eq_ignore_ascii_case(name))
        })
    };
    let (ready_at, status_at) = (column("Ready"), column("Status"));
    let asleep = later
        .asleep
        .iter()
        .map(|deployment| sleeper(deployment, now));
    later
        .pods
        .iter()
        .map(|pod| {
            let cells = table.map(|t| (t.row)(pod, now)).unwrap_or_default();
            let cell = |at: Option<usize>| {
                at.and_then(|i| cells.get(i))
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned()
            };
            let uid = text(pod, "/metadata/uid");
            let used = later.used.get(uid);
            let before = earlier
                .and_then(|e| Some((e.used.get(uid)?, (later.taken - e.taken).as_secs_f64())));
            let rate = |get: fn(&Used) -> u64| {
                let (now, (before, seconds)) = (used?, before?);
                (seconds > 0.0).then(|| get(now).saturating_sub(get(before)) as f64 / seconds)
            };
            Process {
                site: None,
                namespace: text(pod, "/metadata/namespace").to_owned(),
                pod: text(pod, "/metadata/name").to_owned(),
                node: text(pod, "/spec/nodeName").to_owned(),
                ip: text(pod, "/status/podIP").to_owned(),
                image: images(pod.pointer("/spec/containers")),
                ready: cell(ready_at),
                state: cell(status_at),
                restarts: pod
                    .pointer("/status/containerStatuses")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .filter_map(|c| c["restartCount"].as_u64())
                    .sum(),
                age_seconds: age(pod, now),
                cpu_cores: rate(|u| u.cpu_ns).map(|ns| ns / 1e9),
                memory_bytes: used.map(|u| u.memory_bytes),
                requests_per_second: rate(|u| u.requests),
                requests: used.map(|u| u.requests),
                instances: used.map(|u| u.instances),
            }
        })
        .chain(asleep)
        .collect()
}

/// A Deployment that sleeps has no pod in the API; it is shown as what it is.
fn sleeper(deployment: &Value, now: i64) -> Process {
    let annotation = |key: &str| deployment["metadata"]["annotations"][key].as_str();
    let containers = deployment.pointer("/spec/template/spec/containers");
    Process {
        site: None,
        namespace: text(deployment, "/metadata/namespace").to_owned(),
        pod: text(deployment, "/metadata/name").to_owned(),
        node: annotation(ANNOTATION_ASLEEP_ON)
            .unwrap_or_default()
            .to_owned(),
        ip: String::new(),
        image: images(containers),
        ready: format!(
            "0/{}",
            annotation(ANNOTATION_ASLEEP_REPLICAS).unwrap_or("1")
        ),
        state: "Asleep".to_owned(),
        restarts: 0,
        age_seconds: age(deployment, now),
        cpu_cores: None,
        memory_bytes: None,
        requests_per_second: None,
        requests: None,
        instances: Some(0),
    }
}

fn images(containers: Option<&Value>) -> String {
    let containers = containers.and_then(Value::as_array).into_iter().flatten();
    let images: Vec<_> = containers.filter_map(|c| c["image"].as_str()).collect();
    images.join(",")
}

fn age(object: &Value, now: i64) -> i64 {
    text(object, "/metadata/creationTimestamp")
        .parse::<jiff::Timestamp>()
        .map_or(0, |t| now - t.as_second())
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn quantity(text: &str) -> f64 {
    text.parse::<apimachinery::quantity::Quantity>()
        .map_or(0.0, |q| q.nano as f64 / 1e9)
}

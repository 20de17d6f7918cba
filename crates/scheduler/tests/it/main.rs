//! The scheduler against a real API server in this process.

use anyhow::{Result, bail};
use client::informer::Kind;
use client::k8s_openapi::api::core::v1::{Event, Pod};
use client::{Clock, Informers};
use futures::StreamExt as _;
use lifecycle::Scope;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use testkit::TestApi;

/// Nothing here takes as long, unless it never comes.
const NEVER: Duration = Duration::from_secs(60);
const PODS: &str = "/api/v1/namespaces/default/pods";

struct Site {
    api: TestApi,
    informers: Informers,
    scope: Scope,
}

impl Site {
    async fn start() -> Result<Self> {
        let api = TestApi::start().await?;
        let scope = Scope::new();
        let informers = Informers::new(api.client()?, &scope);
        let config = scheduler::Config {
            informers: informers.clone(),
            clock: Clock::system(),
            seed: 1,
        };
        scheduler::run(config, &scope);
        let site = Self {
            api,
            informers,
            scope,
        };
        // Pods are refused without it; nobody here makes it.
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "default"}});
        site.call(
            "POST",
            "/api/v1/namespaces/default/serviceaccounts",
            account,
        )
        .await?;
        Ok(site)
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> Result<Value> {
        let answer = self.api.call(method, path, Some(&body)).await?;
        if answer.code >= 300 {
            bail!("{method} {path}: {} {}", answer.code, answer.text);
        }
        Ok(answer.json)
    }

    async fn node(&self, name: &str, cpu: &str) -> Result<()> {
        let mut node = self
            .call(
                "POST",
                "/api/v1/nodes",
                json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}),
            )
            .await?;
        node["status"] = json!({
            "allocatable": {"cpu": cpu, "memory": "4Gi", "pods": "110"},
            "capacity": {"cpu": cpu, "memory": "4Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}],
        });
        // Whatever it registered with: nothing here takes taints away.
        if let Some(spec) = node["spec"].as_object_mut() {
            spec.remove("taints");
        }
        let path = format!("/api/v1/nodes/{name}");
        let bare = self.call("PUT", &path, node.clone()).await?;
        node["metadata"] = bare["metadata"].clone();
        self.call("PUT", &format!("{path}/status"), node).await?;
        Ok(())
    }

    async fn pod(&self, name: &str, cpu: &str) -> Result<()> {
        self.call(
            "POST",
            PODS,
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
                "spec": {"containers": [{"name": "c", "image": "web:1",
                    "resources": {"requests": {"cpu": cpu}}}]}}),
        )
        .await
        .map(drop)
    }

    async fn until<K: Kind, T>(
        &self,
        what: &str,
        found: impl Fn(&[Arc<K>]) -> Option<T>,
    ) -> Result<T> {
        let informer = self.informers.get::<K>();
        let mut changes = informer.subscribe();
        let wait = async {
            while changes.next().await.is_some() {
                if let Some(found) = found(&informer.list()) {
                    return Some(found);
                }
            }
            None
        };
        match tokio::time::timeout(NEVER, wait).await {
            Ok(Some(found)) => Ok(found),
            _ => bail!("never: {what}; there are {:?}", informer.list()),
        }
    }

    async fn stop(self) -> Result<()> {
        self.scope.close().await;
        self.api.close().await
    }
}

fn node_of(pod: &Pod) -> Option<String> {
    pod.spec.as_ref()?.node_name.clone()
}

/// How many pods are on each node, once all of `count` are on one.
fn spread(pods: &[Arc<Pod>], count: usize) -> Option<BTreeMap<String, usize>> {
    let mut nodes = BTreeMap::new();
    for pod in pods {
        *nodes.entry(node_of(pod)?).or_insert(0) += 1;
    }
    (pods.len() == count).then_some(nodes)
}

fn event(events: &[Arc<Event>], about: &str, reason: &str) -> Option<String> {
    events
        .iter()
        .find(|e| {
            e.involved_object.name.as_deref() == Some(about) && e.reason.as_deref() == Some(reason)
        })
        .and_then(|e| e.message.clone())
}

#[tokio::test]
async fn pods_are_bound_and_told_of() -> Result<()> {
    let site = Site::start().await?;
    site.node("n1", "4").await?;
    site.node("n2", "4").await?;
    for n in 0..40 {
        site.pod(&format!("p{n}"), "200m").await?;
    }
    let nodes = site
        .until::<Pod, _>("all bound", |pods| spread(pods, 40))
        .await?;
    assert_eq!(
        nodes,
        BTreeMap::from([("n1".into(), 20), ("n2".into(), 20)])
    );
    let message = site
        .until::<Event, _>("event", |events| event(events, "p7", "Scheduled"))
        .await?;
    assert!(message.starts_with("Successfully assigned default/p7 to n"));
    let pod = site
        .api
        .call("GET", &format!("{PODS}/p7"), None)
        .await?
        .json;
    let scheduled = &pod["status"]["conditions"][0];
    assert_eq!(
        (&scheduled["type"], &scheduled["status"]),
        (&json!("PodScheduled"), &json!("True"))
    );
    site.stop().await
}

#[tokio::test]
async fn a_pod_that_fits_nowhere_says_why_and_is_bound_once_it_does() -> Result<()> {
    let site = Site::start().await?;
    site.node("small", "1").await?;
    site.pod("first", "1").await?;
    site.until::<Pod, _>("bound", |pods| spread(pods, 1))
        .await?;
    site.pod("second", "1").await?;
    let why = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    site.until::<Pod, _>("condition", |pods| {
        let second = pods
            .iter()
            .find(|p| p.metadata.name.as_deref() == Some("second"))?;
        second
            .status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten())
            .any(|c| {
                c.type_ == "PodScheduled"
                    && c.status == "False"
                    && c.reason.as_deref() == Some("Unschedulable")
                    && c.message.as_deref() == Some(why)
            })
            .then_some(())
    })
    .await?;
    let message = site
        .until::<Event, _>("event", |events| {
            event(events, "second", "FailedScheduling")
        })
        .await?;
    assert_eq!(message, why);
    // Room comes free, and is taken.
    site.call(
        "DELETE",
        &format!("{PODS}/first"),
        json!({"gracePeriodSeconds": 0}),
    )
    .await?;
    site.until::<Pod, _>("second bound", |pods| spread(pods, 1))
        .await?;
    // A new node is used, too.
    site.pod("third", "2").await?;
    site.until::<Event, _>("event", |events| event(events, "third", "FailedScheduling"))
        .await?;
    site.node("large", "4").await?;
    let nodes = site
        .until::<Pod, _>("third bound", |pods| spread(pods, 2))
        .await?;
    assert_eq!(nodes.len(), 2);
    site.stop().await
}

/// Upstream: `test/integration/scheduler/preemption/preemption_test.go`.
#[tokio::test]
async fn a_pod_of_a_higher_priority_takes_the_room_of_others() -> Result<()> {
    let site = Site::start().await?;
    site.node("n", "2").await?;
    for (name, policy) in [("high", "PreemptLowerPriority"), ("polite", "Never")] {
        let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": name}, "value": 1000, "preemptionPolicy": policy});
        let path = "/apis/scheduling.k8s.io/v1/priorityclasses";
        site.call("POST", path, class).await?;
    }
    let ranked = async |name: &str| {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"priorityClassName": name, "containers": [{"name": "c", "image": "web:1",
                "resources": {"requests": {"cpu": "1"}}}]}});
        site.call("POST", PODS, pod).await.map(drop)
    };
    site.pod("a", "1").await?;
    site.pod("b", "1").await?;
    site.until::<Pod, _>("bound", |pods| spread(pods, 2))
        .await?;
    ranked("polite").await?;
    let refused = site
        .until::<Event, _>("event", |events| {
            event(events, "polite", "FailedScheduling")
        })
        .await?;
    assert_eq!(
        refused,
        "0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never."
    );
    site.call(
        "DELETE",
        &format!("{PODS}/polite"),
        json!({"gracePeriodSeconds": 0}),
    )
    .await?;

    ranked("high").await?;
    let going = |pods: &[Arc<Pod>]| -> Vec<Arc<Pod>> {
        let going = pods
            .iter()
            .filter(|p| p.metadata.deletion_timestamp.is_some());
        going.cloned().collect()
    };
    let victim = site
        .until::<Pod, _>("one is to go", |pods| going(pods).pop())
        .await?;
    let name = victim.metadata.name.clone().unwrap_or_default();
    let told = serde_json::to_value(&victim.status)?;
    let condition = told["conditions"].as_array().into_iter().flatten();
    let condition = condition
        .into_iter()
        .find(|c| c["type"] == "DisruptionTarget");
    assert_eq!(
        condition.map(|c| &c["reason"]),
        Some(&json!("PreemptionByScheduler"))
    );
    let high = site
        .until::<Pod, _>("nominated", |pods| {
            let of = |p: &&Arc<Pod>| p.metadata.name.as_deref() == Some("high");
            let high = pods.iter().find(of)?;
            let node = high.status.as_ref()?.nominated_node_name.as_deref()?;
            (node == "n").then(|| high.clone())
        })
        .await?;
    let message = site
        .until::<Event, _>("event", |events| event(events, &name, "Preempted"))
        .await?;
    let uid = high.metadata.uid.clone().unwrap_or_default();
    assert_eq!(message, format!("Preempted by pod {uid} on node n"));
    let why = site
        .until::<Event, _>("event", |events| event(events, "high", "FailedScheduling"))
        .await?;
    assert_eq!(why, "0/1 nodes are available: 1 Insufficient cpu.");

    // What comes free is not for one that comes meanwhile.
    site.pod("late", "1").await?;
    site.until::<Event, _>("event", |events| event(events, "late", "FailedScheduling"))
        .await?;
    site.call(
        "DELETE",
        &format!("{PODS}/{name}"),
        json!({"gracePeriodSeconds": 0}),
    )
    .await?;
    let bound = |pods: &[Arc<Pod>], name: &str| {
        let of = |p: &&Arc<Pod>| p.metadata.name.as_deref() == Some(name);
        pods.iter().find(of).and_then(|p| node_of(p)).is_some()
    };
    let pods = site
        .until::<Pod, _>("high bound", |pods| {
            bound(pods, "high").then(|| pods.to_vec())
        })
        .await?;
    assert!(!bound(&pods, "late"), "{pods:?}");
    assert!(going(&pods).is_empty(), "one was enough");
    site.stop().await
}

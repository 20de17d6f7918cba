//! What pods use, read from the nodes while somebody asks. Rates need two readings: the last
//! is kept for who asks again soon, and who asks first waits for a second one.

use futures::StreamExt as _;
use lifecycle::Scope;
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Between the two readings of who asks first.
const SAMPLE: Duration = Duration::from_millis(150);
/// A reading this young is not taken again: several ask at once.
const FRESH_FOR: Duration = Duration::from_millis(200);
/// An older one says nothing of now.
const KEPT_FOR: Duration = Duration::from_secs(15);
/// How long the nodes may take, all together; the silent ones are left out.
const READ_WITHIN: Duration = Duration::from_secs(1);
/// Nodes asked at once.
const NODES_AT_ONCE: usize = 32;
/// Pods of a reading; what further ones use is not known.
const PODS_MAX: usize = 100_000;

/// What a pod has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Used {
    cpu_ns: u64,
    memory_bytes: u64,
    requests: u64,
    instances: u64,
}

/// What all pods have used at a time.
#[derive(Debug)]
struct Reading {
    taken: Instant,
    /// By pod UID.
    pods: HashMap<String, Used>,
    reached: HashSet<String>,
}

/// What a pod uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Use {
    pub(super) cpu_cores: Option<f64>,
    pub(super) memory_bytes: u64,
    pub(super) requests_per_second: Option<f64>,
    pub(super) requests: u64,
    pub(super) instances: u64,
}

/// What all pods use now.
#[derive(Clone, Debug)]
pub(super) struct Uses {
    earlier: Arc<Reading>,
    later: Arc<Reading>,
}

impl Uses {
    pub(super) fn reached(&self, node: &str) -> bool {
        self.later.reached.contains(node)
    }

    pub(super) fn of(&self, uid: &str) -> Option<Use> {
        let now = self.later.pods.get(uid)?;
        let before = self.earlier.pods.get(uid);
        let seconds = (self.later.taken - self.earlier.taken).as_secs_f64();
        let rate = |get: fn(&Used) -> u64| {
            let before = before.filter(|_| seconds > 0.0)?;
            // A container that was started again counts from nothing.
            Some(get(now).saturating_sub(get(before)) as f64 / seconds)
        };
        Some(Use {
            cpu_cores: rate(|u| u.cpu_ns).map(|ns| ns / 1e9),
            memory_bytes: now.memory_bytes,
            requests_per_second: rate(|u| u.requests),
            requests: now.requests,
            instances: now.instances,
        })
    }
}

/// Reads what pods use.
#[derive(Clone)]
pub(super) struct Usage {
    client: kube::Client,
    scope: Scope,
    /// Held while the nodes are asked, so that they are asked once for several who ask.
    last: Arc<Mutex<Last>>,
}

#[derive(Default)]
struct Last {
    uses: Option<Uses>,
    /// A task will forget them.
    forgets: bool,
}

impl Usage {
    pub(super) fn new(client: kube::Client, scope: &Scope) -> Self {
        Self {
            client,
            scope: scope.clone(),
            last: Arc::default(),
        }
    }

    /// What the pods of these nodes use.
    pub(super) async fn read(&self, nodes: &[String]) -> Uses {
        let mut last = self.last.lock().await;
        let age = last.uses.as_ref().map(|uses| uses.later.taken.elapsed());
        let known = last.uses.clone();
        let earlier = match known {
            Some(uses) if age.is_some_and(|age| age < FRESH_FOR) => return uses,
            Some(uses) if age.is_some_and(|age| age < KEPT_FOR) => uses.later,
            _ => {
                let first = Arc::new(self.take(nodes).await);
                tokio::time::sleep(SAMPLE).await;
                first
            }
        };
        let later = Arc::new(self.take(nodes).await);
        let uses = Uses { earlier, later };
        last.uses = Some(uses.clone());
        if !last.forgets {
            last.forgets = true;
            self.scope.spawn_cancellable(forget(self.last.clone()));
        }
        uses
    }

    async fn take(&self, nodes: &[String]) -> Reading {
        let taken = Instant::now();
        let asked = nodes.iter().cloned().map(|node| {
            let client = self.client.clone();
            async move {
                let path = format!("/api/v1/nodes/{node}/proxy/stats/salp");
                let request = http::Request::get(path).body(Vec::new()).ok()?;
                let stats = client.request::<Stats>(request).await;
                let stats = stats.inspect_err(|error| {
                    tracing::debug!(%error, node, "read what pods use");
                });
                Some((node, stats.ok()?))
            }
        });
        let mut answers = futures::stream::iter(asked).buffer_unordered(NODES_AT_ONCE);
        let mut reading = Reading {
            taken,
            pods: HashMap::new(),
            reached: HashSet::new(),
        };
        while let Ok(Some(answer)) =
            tokio::time::timeout_at(taken + READ_WITHIN, answers.next()).await
        {
            let Some((node, stats)) = answer else {
                continue;
            };
            reading.reached.insert(node);
            for pod in stats.pods {
                if reading.pods.len() == PODS_MAX {
                    break;
                }
                let used = reading.pods.entry(pod.uid).or_default();
                for c in pod.containers {
                    used.cpu_ns = used.cpu_ns.saturating_add(c.cpu_ns);
                    used.memory_bytes = used.memory_bytes.saturating_add(c.memory_bytes);
                    used.requests = used.requests.saturating_add(c.requests);
                    used.instances = used.instances.saturating_add(c.instances);
                }
            }
        }
        reading
    }
}

/// Lets go of readings when nobody asks any more.
async fn forget(last: Arc<Mutex<Last>>) {
    loop {
        tokio::time::sleep(KEPT_FOR).await;
        let mut last = last.lock().await;
        let used = last.uses.as_ref().map(|uses| uses.later.taken.elapsed());
        if used.is_none_or(|age| age >= KEPT_FOR) {
            *last = Last::default();
            return;
        }
    }
}

/// What a kubelet's `/stats/salp` answers.
#[derive(Deserialize)]
struct Stats {
    #[serde(default)]
    pods: Vec<PodStats>,
}

#[derive(Deserialize)]
struct PodStats {
    uid: String,
    #[serde(default)]
    containers: Vec<ContainerStats>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct ContainerStats {
    cpu_ns: u64,
    memory_bytes: u64,
    requests: u64,
    instances: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use kube::client::Body;
    use serde_json::json;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// A node that is asked has served ten requests more, by half a core's work in 150 ms;
    /// the node `silent` never answers.
    fn nodes(asked: &Arc<AtomicU64>) -> kube::Client {
        let asked = asked.clone();
        client::connect::from_service(tower::service_fn(move |request: Request<Body>| {
            let path = request.uri().path().to_owned();
            let n = asked.fetch_add(1, Ordering::Relaxed);
            async move {
                if path.contains("silent") {
                    std::future::pending::<()>().await;
                }
                let body = json!({"node": "n", "pods": [{"uid": "u", "containers": [
                    {"cpuNs": n * 75_000_000, "memoryBytes": 4096, "requests": n * 30},
                    {"memoryBytes": 4096, "instances": 2},
                ]}]});
                let body = Body::from(body.to_string().into_bytes());
                Ok::<_, tower::BoxError>(http::Response::new(body))
            }
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_first_gets_rates_and_who_asks_again_asks_once() {
        let (asked, scope) = (Arc::default(), Scope::new());
        let usage = Usage::new(nodes(&asked), &scope);
        let list = ["till".to_owned()];
        let uses = usage.read(&list).await;
        assert!(uses.reached("till") && !uses.reached("other"));
        let used = uses.of("u").unwrap();
        assert_eq!(used.memory_bytes, 8192);
        assert!((used.cpu_cores.unwrap() - 0.5).abs() < 0.05, "{used:?}");
        assert!((used.requests_per_second.unwrap() - 200.0).abs() < 20.0);
        assert_eq!((used.requests, used.instances), (30, 2));
        assert_eq!(uses.of("another"), None);
        assert_eq!(asked.load(Ordering::Relaxed), 2);

        // Somebody else at the same time costs nothing; later, one reading.
        usage.read(&list).await;
        assert_eq!(asked.load(Ordering::Relaxed), 2);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let used = usage.read(&list).await.of("u").unwrap();
        assert!((used.requests_per_second.unwrap() - 30.0).abs() < 3.0);
        assert_eq!(asked.load(Ordering::Relaxed), 3);

        // Nobody asks: what is old is forgotten.
        tokio::time::sleep(KEPT_FOR * 3).await;
        assert!(usage.last.lock().await.uses.is_none());
        usage.read(&list).await;
        assert_eq!(asked.load(Ordering::Relaxed), 5);
        scope.close().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_node_is_not_waited_for() {
        let (asked, scope) = (Arc::default(), Scope::new());
        let usage = Usage::new(nodes(&asked), &scope);
        let began = Instant::now();
        let uses = usage.read(&["silent".to_owned(), "till".to_owned()]).await;
        assert!(began.elapsed() <= 2 * READ_WITHIN + 2 * SAMPLE);
        assert!(uses.reached("till") && !uses.reached("silent"));
        assert!(uses.of("u").is_some());
        scope.close().await;
    }
}

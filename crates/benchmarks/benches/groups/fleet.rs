//! One list over three sites with 5,000 pods each: how long `salp ps --sites -A` takes and how
//! many bytes a site sends for it. The pods are API objects as running ones are, on a node that
//! is none; a few real ones run beside them.

use crate::harness::{Registry, Site, eventually, repo_file, text};
use crate::nats::Nats;
use crate::{client, deployment, figure, median, ms, request, runtime};
use futures::StreamExt as _;
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

/// Pods of each site.
const PODS: usize = 5_000;
/// Pods made at once.
const AT_ONCE: usize = 16;
/// Lists that are timed; the medians are told.
const ROUNDS: usize = 9;
/// A site has forgotten after this what its pods used.
const FORGOTTEN: Duration = Duration::from_secs(16);

fn pod(n: usize) -> Value {
    // As a ReplicaSet names them: nothing that packs well.
    let suffix = (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("till-6d5f8c7b94-{suffix:06x}"),
            "labels": {"app": "till", "aisle": format!("{}", n % 50), "pod-template-hash": "6d5f8c7b94"},
        },
        "spec": {
            "nodeName": "away",
            // Nobody moves them while they are counted.
            "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": "till", "image": "registry.shop.example/till:3", "ports": [{"containerPort": 8080}],
                "env": [{"name": "STORE", "value": "17"}, {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}},
                "resources": {"requests": {"cpu": "1m", "memory": "4Mi"}, "limits": {"memory": "64Mi"}},
            }],
        },
    })
}

fn status(n: usize) -> Value {
    let since = "2026-01-01T00:00:00Z";
    let condition =
        |name: &str| json!({"type": name, "status": "True", "lastTransitionTime": since});
    let conditions = [
        "PodReadyToStartContainers",
        "Initialized",
        "Ready",
        "ContainersReady",
        "PodScheduled",
    ];
    let conditions = conditions.map(condition);
    let ip = format!("10.42.{}.{}", n / 250, n % 250);
    json!({"status": {
        "phase": "Running", "hostIP": "192.0.2.1", "podIP": ip, "podIPs": [{"ip": ip}], "startTime": since,
        "conditions": conditions,
        "containerStatuses": [{
            "name": "till", "image": "registry.shop.example/till:3", "containerID": format!("salp://{n:032x}"),
            "imageID": "registry.shop.example/till@sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
            "ready": true, "started": true, "restartCount": 0, "state": {"running": {"startedAt": since}},
        }],
    }})
}

/// Makes the pods and says that they run.
async fn fill(site: &Site) {
    let client = client(site).await;
    let bytes = |value: &Value| serde_json::to_vec(value).expect("JSON");
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "away"}});
    request(&client, "POST", "/api/v1/nodes", bytes(&node))
        .await
        .expect("node");
    let path = "/api/v1/namespaces/default/pods";
    let make = |n: usize| {
        let client = client.clone();
        async move {
            let pod = pod(n);
            let name = pod["metadata"]["name"].as_str().expect("name");
            request(&client, "POST", path, bytes(&pod))
                .await
                .expect("pod");
            let patch = http::Request::patch(format!("{path}/{name}/status"))
                .header("content-type", "application/merge-patch+json")
                .body(bytes(&status(n)))
                .expect("request");
            client.request::<Value>(patch).await.expect("status");
        }
    };
    let made = futures::stream::iter((0..PODS).map(make)).buffer_unordered(AT_ONCE);
    made.collect::<()>().await;
}

/// Milliseconds of a command, and what it printed.
fn timed(site: &Site, args: &[&str]) -> (f64, String) {
    let began = Instant::now();
    let out = site.salp(args);
    let took = ms(began.elapsed());
    assert!(out.status.success(), "{}", text(&out));
    (took, String::from_utf8(out.stdout).expect("text"))
}

pub(crate) fn run(figures: &mut Map<String, Value>) {
    let (nats, registry, rt) = (Nats::start(), Registry::start(), runtime());
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    let url = nats.url();
    let start = |args: &[&str]| {
        let site = Site::start_with(&[&["--lattice", &url], args].concat());
        site.expects("NATS connection");
        site.apply(&deployment("hello", &image, 3, json!({})).to_string());
        site.ok(&["rollout", "status", "deployment/hello", "--timeout=90s"]);
        rt.block_on(fill(&site));
        site
    };
    let hub = start(&["--lattice-hub", "--site", "hub"]);
    let token = || {
        let token = hub.salp(&["sites", "token"]).stdout;
        String::from_utf8(token).expect("token").trim().to_owned()
    };
    let others =
        ["kiosk", "till"].map(|name| start(&["--site", name, "--lattice-token", &token()]));
    // However slow it is, it is measured.
    let all = ["ps", "--sites", "-A", "--deadline", "60"];
    let wanted = (PODS + 3) * 3;
    eventually("all sites are listed", || {
        let (_, list) = timed(&hub, &[&all[..], &["--no-headers"]].concat());
        let pods = list.lines().count();
        (pods == wanted)
            .then_some(())
            .ok_or(format!("{pods} of {wanted}"))
    });
    figure(figures, "pods of three sites", wanted as f64, "");
    let lists = |args: &[&str], pause: Duration| {
        let took = (0..ROUNDS).map(|_| {
            std::thread::sleep(pause);
            timed(&hub, args).0
        });
        median(took.collect())
    };
    let again = Duration::from_millis(500);
    figure(
        figures,
        "ps --sites -A, nobody asked before",
        lists(&all, FORGOTTEN),
        "ms",
    );
    figure(figures, "ps --sites -A, again", lists(&all, again), "ms");
    let some = ["ps", "--sites", "-A", "-l", "aisle=7"];
    figure(
        figures,
        "ps --sites -A -l, 100 pods a site",
        lists(&some, again),
        "ms",
    );
    let one = ["ps", "--site", "kiosk", "-A"];
    figure(
        figures,
        "ps --site -A, one other site",
        lists(&one, again),
        "ms",
    );
    let asked = hub.salp(&["sites", "get", "kiosk", "/salp/v1/processes"]);
    figure(
        figures,
        "answer of a site",
        asked.stdout.len() as f64 / 1024.0,
        "KiB",
    );
    let asked = hub.salp(&["sites", "get", "kiosk", "/api/v1/pods"]);
    figure(
        figures,
        "its pods by the API",
        asked.stdout.len() as f64 / 1024.0,
        "KiB",
    );
    // The peer: one site's pods by kubectl.
    let took = (0..ROUNDS).map(|_| {
        let began = Instant::now();
        hub.ok(&["get", "pods", "-A"]);
        ms(began.elapsed())
    });
    figure(
        figures,
        "kubectl get pods -A, one site",
        median(took.collect()),
        "ms",
    );

    // One falls silent: the list is there at the deadline, with the site named.
    let pid = others[1].pid().to_string();
    let signal = |signal: &str| {
        let sent = std::process::Command::new("kill")
            .args([signal, &pid])
            .status();
        assert!(sent.expect("kill").success());
    };
    signal("-STOP");
    let began = Instant::now();
    let out = hub.salp(&["ps", "--sites", "-A", "--deadline", "1"]);
    figure(
        figures,
        "ps --sites -A --deadline 1, one is silent",
        ms(began.elapsed()),
        "ms",
    );
    signal("-CONT");
    assert!(
        text(&out).contains("site till is silent"),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
}

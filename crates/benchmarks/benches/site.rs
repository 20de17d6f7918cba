//! Start, memory, time to first answer, density and API figures of a whole site, by the real
//! binary; and requests a second beside `wasmtime serve` with the same component and load.
//!
//! `cargo xtask bench [NAME…]` runs it on the binary that ships (`--profile dist`). It prints one
//! line a figure and, at the end, the same as JSON. Figures with a peer are ratios taken in the
//! same run.

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    dead_code,
    unused_imports,
    reason = "a program that prints; its harness has more than it needs"
)]

#[path = "groups/api.rs"]
mod api;
#[path = "../../salp/tests/it/containers.rs"]
mod container_images;
#[path = "groups/containers.rs"]
mod containers;
#[path = "groups/cri.rs"]
mod cri;
#[path = "groups/definitions.rs"]
mod definitions;
#[path = "groups/encodings.rs"]
mod encodings;
#[path = "groups/fleet.rs"]
mod fleet;
#[path = "../../salp/tests/it/harness.rs"]
mod harness;
#[path = "../../salp/tests/it/nats.rs"]
mod nats;
#[path = "groups/sites.rs"]
mod sites;

use harness::{Registry, Running, Site, eventually, free_port, get, get_ok, repo_file, tool};
use serde_json::{Map, Value, json};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Seconds that each load runs.
const LOAD_SECONDS: u32 = 4;
/// Turns of each side; the medians are told.
const LOAD_ROUNDS: u32 = 5;
/// Deployments that sleep and are woken, one after the other.
const SLEEPERS: u32 = 200;
/// Pods of the density run.
const PODS: u32 = 5_000;

/// A group of figures.
type Run = fn(&mut Map<String, Value>);

fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let mut figures = Map::new();
    let runs: [(&str, Run); 11] = [
        ("start", start),
        ("first-answer", first_answer),
        ("requests", requests),
        ("api", api::run),
        ("definitions", definitions::run),
        ("encodings", encodings::run),
        ("containers", containers::run),
        ("wake", wake),
        ("sites", sites::run),
        ("fleet", fleet::run),
        ("density", density),
    ];
    for (name, run) in runs {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            println!("# {name}");
            run(&mut figures);
        }
    }
    println!("{}", Value::Object(figures));
}

fn figure(figures: &mut Map<String, Value>, name: &str, value: f64, unit: &str) {
    println!("{name:<44} {value:>12.2} {unit}");
    figures.insert(name.to_owned(), json!(value));
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Proportional set size of a process, MiB.
fn pss_mib(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|l| l.strip_prefix("Pss:"))
        .map(|v| v.trim().trim_end_matches(" kB").trim());
    kib.and_then(|v| v.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1024.0
}

fn site_pss_mib(site: &Site) -> (f64, f64) {
    let dataplane = std::fs::read_to_string(site.dir.join("run/dataplane.pid")).unwrap_or_default();
    (
        pss_mib(site.pid()),
        dataplane.trim().parse().map_or(f64::NAN, pss_mib),
    )
}

/// Start of the process to `/readyz` and to the node's Ready condition, and memory when idle.
fn start(figures: &mut Map<String, Value>) {
    let began = Instant::now();
    let mut site = Site::start();
    figure(
        figures,
        "first start until told ready",
        ms(began.elapsed()),
        "ms",
    );
    // Let the first start's own work settle.
    site.wait_for(&["get", "nodes"], "/items/0/status/conditions", |c| {
        ready(c)
    });
    let (mut readyz, mut node) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        site.signal("-INT");
        // Heartbeats are told apart by the second.
        std::thread::sleep(Duration::from_millis(1100));
        let (r, n) = timed_start(&mut site);
        readyz.push(r);
        node.push(n);
    }
    figure(
        figures,
        "start with state until /readyz",
        median(readyz),
        "ms",
    );
    figure(
        figures,
        "start with state until node Ready",
        median(node),
        "ms",
    );
    std::thread::sleep(Duration::from_secs(10));
    let (control, data) = site_pss_mib(&site);
    figure(figures, "idle PSS, control plane and agent", control, "MiB");
    figure(figures, "idle PSS, data plane", data, "MiB");
    figure(figures, "idle PSS, whole site", control + data, "MiB");
    let size = std::fs::metadata(harness::program()).map_or(f64::NAN, |m| m.len() as f64);
    figure(figures, "binary, stripped", size / 1048576.0, "MiB");
}

fn ready(conditions: &Value) -> bool {
    conditions.as_array().is_some_and(|l| {
        l.iter()
            .any(|c| c["type"] == "Ready" && c["status"] == "True")
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime")
}

async fn client(site: &Site) -> kube::Client {
    let kubeconfig = kube::config::Kubeconfig::read_from(site.kubeconfig()).expect("kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default())
        .await
        .expect("kubeconfig");
    kube::Client::try_from(config).expect("client")
}

async fn request(
    client: &kube::Client,
    method: &str,
    path: &str,
    body: Vec<u8>,
) -> Result<Value, kube::Error> {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .header("accept", "application/json")
        .body(body)
        .expect("request");
    client.request(request).await
}

/// Starts a stopped site; ms to `/readyz` and to the Ready condition by this start.
fn timed_start(site: &mut Site) -> (f64, f64) {
    let (began, wall) = (Instant::now(), jiff::Timestamp::now());
    let watcher = {
        let kubeconfig = site.kubeconfig();
        std::thread::spawn(move || {
            let rt = runtime();
            rt.block_on(async {
                let config = kube::config::Kubeconfig::read_from(kubeconfig).expect("kubeconfig");
                let config = kube::Config::from_custom_kubeconfig(config, &Default::default())
                    .await
                    .expect("config");
                let client = kube::Client::try_from(config).expect("client");
                loop {
                    let ask = http::Request::get("/readyz")
                        .body(Vec::new())
                        .expect("request");
                    if client.request_text(ask).await.is_ok_and(|t| t == "ok") {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                let readyz = ms(began.elapsed());
                loop {
                    if let Ok(nodes) = request(&client, "GET", "/api/v1/nodes", Vec::new()).await {
                        let conditions = &nodes["items"][0]["status"]["conditions"];
                        let fresh = conditions
                            .as_array()
                            .into_iter()
                            .flatten()
                            // A Node of the start before still claims to be Ready.
                            .any(|c| {
                                let heard = c["lastHeartbeatTime"].as_str().unwrap_or_default();
                                let heard = heard.parse::<jiff::Timestamp>().ok();
                                c["type"] == "Ready"
                                    && c["status"] == "True"
                                    && heard.is_some_and(|t| t.as_second() >= wall.as_second())
                            });
                        if fresh {
                            break;
                        }
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                (readyz, ms(began.elapsed()))
            })
        })
    };
    site.up(&[]);
    watcher.join().expect("watcher")
}

/// A Deployment of the hello component with so many replicas, as JSON.
fn deployment(name: &str, image: &str, replicas: u32, annotations: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}, "annotations": annotations},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
                    "name": "hello", "image": image, "ports": [{"containerPort": 8080}],
                    "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                }]},
            },
        },
    })
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 8080}]},
    })
}

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const SERVICES: &str = "/api/v1/namespaces/default/services";

/// Makes a Service and gives its address.
fn make_service(rt: &tokio::runtime::Runtime, client: &kube::Client, name: &str) -> String {
    let made = rt
        .block_on(request(
            client,
            "POST",
            SERVICES,
            serde_json::to_vec(&service(name)).expect("JSON"),
        ))
        .expect("make service");
    format!(
        "{}:8080",
        made["spec"]["clusterIP"].as_str().expect("cluster IP")
    )
}

fn make_deployment(rt: &tokio::runtime::Runtime, client: &kube::Client, object: &Value) {
    rt.block_on(request(
        client,
        "POST",
        DEPLOYMENTS,
        serde_json::to_vec(object).expect("JSON"),
    ))
    .expect("make deployment");
}

/// POST of a Deployment to the first 200 through its Service, image cached and compiled.
fn first_answer(figures: &mut Map<String, Value>) {
    let (registry, site, rt) = (Registry::start(), Site::start(), runtime());
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    let client = rt.block_on(client(&site));
    let mut times = Vec::new();
    for n in 0..11 {
        let name = format!("first-{n}");
        let address = make_service(&rt, &client, &name);
        let began = Instant::now();
        make_deployment(&rt, &client, &deployment(&name, &image, 1, json!({})));
        while !get(&address, "/").is_ok_and(|a| a.code == 200) {
            std::thread::sleep(Duration::from_micros(500));
            assert!(began.elapsed() < Duration::from_secs(60), "no answer");
        }
        times.push(ms(began.elapsed()));
    }
    figure(
        figures,
        "POST to first 200, image not yet pulled",
        times[0],
        "ms",
    );
    figure(
        figures,
        "POST to first 200, image cached (median)",
        median(times[1..].to_vec()),
        "ms",
    );
}

/// Requests a second and the 99th percentile (ms) by wrk.
fn wrk(address: &str, connections: u32) -> (f64, f64) {
    let output = Command::new(tool("wrk"))
        .args([
            "-t",
            "1",
            "-c",
            &connections.to_string(),
            "-d",
            &format!("{LOAD_SECONDS}s"),
            "--latency",
        ])
        .arg(format!("http://{address}/"))
        .output()
        .expect("run wrk");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = |key: &str| {
        text.lines()
            .find_map(|l| l.trim().strip_prefix(key))
            .map(|v| v.trim().to_owned())
    };
    let rate = number("Requests/sec:")
        .and_then(|v| v.parse().ok())
        .unwrap_or(f64::NAN);
    let p99 = number("99%").map_or(f64::NAN, |v| {
        let digits: f64 = v
            .trim_end_matches(|c: char| c.is_alphabetic())
            .parse()
            .unwrap_or(f64::NAN);
        if v.ends_with("us") {
            digits / 1e3
        } else if v.ends_with("ms") {
            digits
        } else {
            digits * 1e3
        }
    });
    assert!(!text.contains("Non-2xx"), "{text}");
    (rate, p99)
}

fn wasmtime_serve(args: &[&str]) -> (Running, String) {
    let port = free_port();
    // In a session of its own, as the data plane is: a kernel that shares processors among
    // sessions would let it preempt what it is compared with.
    let child = Command::new("setsid")
        .arg(tool("wasmtime"))
        .args(["serve", "--addr", &format!("127.0.0.1:{port}"), "-S", "cli"])
        .args(args)
        .arg(repo_file("examples/hello/hello.wasm"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start wasmtime serve");
    let (running, address) = (Running(child), format!("127.0.0.1:{port}"));
    eventually("wasmtime serves", || get_ok(&address, "/"));
    (running, address)
}

/// The hello component through its Service beside `wasmtime serve`, fresh and reused instances.
fn requests(figures: &mut Map<String, Value>) {
    let (registry, site, rt) = (Registry::start(), Site::start(), runtime());
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    let client = rt.block_on(client(&site));
    let mut addresses = Vec::new();
    for (name, annotations) in [
        ("fresh", json!({})),
        ("reused", json!({"salp.dev/instance-reuse": "1000"})),
    ] {
        let address = make_service(&rt, &client, name);
        make_deployment(&rt, &client, &deployment(name, &image, 1, annotations));
        eventually("the service answers", || get_ok(&address, "/"));
        addresses.push((name, address));
    }
    for (name, address) in &addresses {
        let more: &[&str] = if *name == "reused" {
            &["--max-instance-reuse-count", "1000"]
        } else {
            &[]
        };
        for connections in [1, 8, 64] {
            // Each side alone, turn by turn, so that they do not share the cores and what
            // else the machine does meets both.
            let (mut rates, mut p99s) = ((vec![], vec![]), (vec![], vec![]));
            for _ in 0..LOAD_ROUNDS {
                let (_running, peer) = wasmtime_serve(more);
                let (rate, p99) = wrk(&peer, connections);
                rates.1.push(rate);
                p99s.1.push(p99);
                let (rate, p99) = wrk(address, connections);
                rates.0.push(rate);
                p99s.0.push(p99);
            }
            let (rate, peer_rate) = (median(rates.0), median(rates.1));
            let (p99, peer_p99) = (median(p99s.0), median(p99s.1));
            figure(
                figures,
                &format!("{name}, {connections} connections: salp"),
                rate,
                "req/s",
            );
            figure(
                figures,
                &format!("{name}, {connections} connections: wasmtime serve"),
                peer_rate,
                "req/s",
            );
            figure(
                figures,
                &format!("{name}, {connections} connections: ratio"),
                rate / peer_rate,
                "x",
            );
            figure(
                figures,
                &format!("{name}, {connections} connections: p99 salp"),
                p99,
                "ms",
            );
            figure(
                figures,
                &format!("{name}, {connections} connections: p99 wasmtime serve"),
                peer_p99,
                "ms",
            );
        }
    }
}

/// Thousands of Wasm pods on one node, all Ready and answering.
fn density(figures: &mut Map<String, Value>) {
    let (registry, site, rt) = (Registry::start(), Site::start(), runtime());
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    let client = rt.block_on(client(&site));
    make_deployment(&rt, &client, &deployment("warm", &image, 1, json!({})));
    site.ok(&["rollout", "status", "deployment/warm", "--timeout=60s"]);
    std::thread::sleep(Duration::from_secs(5));
    let (control0, data0) = site_pss_mib(&site);
    let began = Instant::now();
    make_deployment(&rt, &client, &deployment("many", &image, PODS, json!({})));
    loop {
        let now = rt
            .block_on(request(
                &client,
                "GET",
                &format!("{DEPLOYMENTS}/many"),
                Vec::new(),
            ))
            .expect("get");
        if now["status"]["availableReplicas"] == PODS {
            break;
        }
        assert!(
            began.elapsed() < Duration::from_secs(600),
            "not all Ready: {}",
            now["status"]
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    figure(figures, "pods", f64::from(PODS), "");
    figure(
        figures,
        "POST until all are Ready",
        began.elapsed().as_secs_f64(),
        "s",
    );
    let pods = rt
        .block_on(request(
            &client,
            "GET",
            "/api/v1/namespaces/default/pods?labelSelector=app%3Dmany",
            Vec::new(),
        ))
        .expect("list");
    let mut answered = 0u32;
    for pod in pods["items"].as_array().expect("pods") {
        let address = format!("{}:8080", pod["status"]["podIP"].as_str().expect("pod IP"));
        answered += u32::from(get(&address, "/").is_ok_and(|a| a.code == 200));
    }
    figure(figures, "pods that answer", f64::from(answered), "");
    drop(pods);
    std::thread::sleep(Duration::from_secs(10));
    let (control, data) = site_pss_mib(&site);
    let per_pod = |now: f64, before: f64| (now - before) * 1024.0 / f64::from(PODS);
    figure(
        figures,
        "PSS a pod, control plane and agent",
        per_pod(control, control0),
        "KiB",
    );
    figure(
        figures,
        "PSS a pod, data plane",
        per_pod(data, data0),
        "KiB",
    );
}

/// Requests to sleeping Services, each of which starts its pod, over what a request to the same
/// Service takes when it is awake: one after the other with a pause, and without one, when the
/// API's objects of those before are still being made.
///
/// At the 99th percentile both sorts of requests wait for a processor that another process has,
/// so what waking adds there is the difference of the percentiles, not the percentile of the
/// differences from a typical warm request; both are told.
fn wake(figures: &mut Map<String, Value>) {
    let registry = Registry::start();
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    let site = Site::start();
    let manifest: String = (0..SLEEPERS).map(|n| sleeper(n, &image)).collect();
    site.apply(&manifest);
    asleep(&site);
    let (_, data) = site_pss_mib(&site);
    figure(figures, "PSS, data plane with 200 asleep", data, "MiB");
    let list = site.json(&["get", "services", "-l", "bench=wake"]);
    let services = list["items"].as_array().cloned().unwrap_or_default();
    for (how, pause) in [
        ("20 ms apart", Duration::from_millis(20)),
        ("at once after another", Duration::ZERO),
    ] {
        asleep(&site);
        let (mut cold, mut warm, mut typical) = (Vec::new(), Vec::new(), Vec::new());
        for service in &services {
            let address = format!("{}:80", service["spec"]["clusterIP"].as_str().expect("IP"));
            let ask = || {
                let began = Instant::now();
                let answer = get(&address, "/").expect("answer");
                assert_eq!(answer.code, 200, "{answer:?}");
                ms(began.elapsed())
            };
            cold.push(ask());
            let after: Vec<f64> = (0..5).map(|_| ask()).collect();
            warm.extend(&after);
            typical.push(median(after));
            std::thread::sleep(pause);
        }
        let mut over: Vec<_> = cold.iter().zip(&typical).map(|(c, w)| c - w).collect();
        let (from_zero, again) = (p99(&mut cold), p99(&mut warm));
        let mut tell = |what: &str, value| {
            figure(figures, &format!("{what}, {how}"), value, "ms");
        };
        tell("warm request, new connection", median(typical));
        tell("warm request, new connection, p99", again);
        tell("from zero to first byte", median(cold));
        tell("from zero to first byte, p99", from_zero);
        tell("wake over a warm request, median", median(over.clone()));
        tell("wake over a typical warm request, p99", p99(&mut over));
        tell("wake over a warm request, p99 over p99", from_zero - again);
    }
}

fn p99(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() * 99 / 100]
}

/// Waits until all sleep, and the API knows.
fn asleep(site: &Site) {
    let all = |object: &Value| {
        object
            .as_array()
            .is_some_and(|l| l.len() == SLEEPERS as usize)
    };
    let asleep = |d: &Value| d["metadata"]["annotations"]["salp.dev/asleep-on"].is_string();
    let deployments = ["get", "deployments", "-l", "bench=wake"];
    site.wait_for(&deployments, "/items", |items| {
        all(items) && items.as_array().into_iter().flatten().all(asleep)
    });
    site.wait_for(&["get", "pods", "-l", "bench=wake"], "/items", |pods| {
        pods.as_array().is_some_and(Vec::is_empty)
    });
}

fn sleeper(n: u32, image: &str) -> String {
    format!(
        r#"---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: sleeper-{n}
  labels: {{bench: wake}}
  annotations: {{salp.dev/scale-to-zero: 1s}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: sleeper-{n}}}}}
  template:
    metadata:
      labels: {{app: sleeper-{n}, bench: wake}}
    spec:
      containers:
        - {{name: hello, image: "{image}", ports: [{{containerPort: 8080}}]}}
---
apiVersion: v1
kind: Service
metadata:
  name: sleeper-{n}
  labels: {{bench: wake}}
spec:
  selector: {{app: sleeper-{n}}}
  ports: [{{port: 80, targetPort: 8080}}]
"#
    )
}

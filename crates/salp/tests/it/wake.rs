//! Deployments that sleep at zero and wake on a request.

use crate::harness::http::{Busy, get_with};
use crate::harness::{Registry, Running, Site, eventually, get_ok, repo_file, salp, text};
use crate::serve::{addresses, hello};
use serde_json::Value;
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};

const DEPLOYMENT: [&str; 3] = ["get", "deployment", "hello"];
const PODS: [&str; 4] = ["get", "pods", "-l", "app=hello"];

/// A site with the hello example, which sleeps when idle for so long.
struct Sleeper {
    site: Site,
    cluster: String,
    node_port: String,
    _registry: Registry,
}

impl Sleeper {
    fn start(replicas: u32, idle: &str) -> Self {
        let registry = Registry::start();
        let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
        let site = Site::start();
        let annotated =
            format!("  name: hello\n  annotations:\n    salp.dev/scale-to-zero: {idle}\n  labels:");
        let manifest = hello(&image, replicas);
        site.apply(&manifest.replacen("  name: hello\n  labels:", &annotated, 1));
        let (cluster, node_port) = addresses(&site);
        Self {
            site,
            cluster,
            node_port,
            _registry: registry,
        }
    }

    /// Waits until it is at zero, with no pod left.
    fn asleep(&self) -> Value {
        let deployment = self
            .site
            .wait_for(&DEPLOYMENT, "/metadata/annotations", |a| {
                a["salp.dev/asleep-on"].is_string()
            });
        assert_eq!(deployment["spec"]["replicas"], 0, "{deployment}");
        self.site.wait_for(&PODS, "/items", is_empty);
        deployment
    }

    /// Waits until so many are ready, and lets somebody ask it all the time: who looks
    /// seldom would else find it asleep again.
    #[must_use = "it may sleep again when this is dropped"]
    fn awake(&self, replicas: u32) -> Busy {
        let busy = Busy::asking(&self.cluster);
        let ready = "/status/readyReplicas";
        self.site.wait_for(&DEPLOYMENT, ready, |n| *n == replicas);
        busy
    }

    fn pods(&self) -> Vec<Value> {
        let list = self.site.json(&PODS);
        list["items"].as_array().cloned().unwrap_or_default()
    }

    fn events(&self, reason: &str) -> Vec<String> {
        let selector = format!("involvedObject.name=hello,reason={reason}");
        let list = self
            .site
            .json(&["get", "events", "--field-selector", &selector]);
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let message = |e: &Value| e["message"].as_str().unwrap_or_default().to_owned();
        items.iter().map(message).collect()
    }

    fn kill_dataplane(&self) {
        self.site.expects("the data plane ended; starting it again");
        // Who was just about to say something to it.
        self.site.expects("the data plane does not answer at");
        self.site.kill("dataplane");
    }
}

fn is_empty(items: &Value) -> bool {
    items.as_array().is_some_and(Vec::is_empty)
}

/// The pod that answered: the example says its name.
fn answer(address: &str) -> Result<String, String> {
    get_ok(address, "/").map(|body| pod_in(&body))
}

fn pod_in(body: &str) -> String {
    let name = body.trim().strip_prefix("Hello from ");
    name.unwrap_or_else(|| panic!("no greeting: {body:?}"))
        .to_owned()
}

#[test]
fn a_deployment_sleeps_when_idle_and_wakes_on_a_request() {
    let sleeper = Sleeper::start(3, "2s");
    let site = &sleeper.site;
    drop(sleeper.awake(3));
    for address in [&sleeper.cluster, &sleeper.node_port] {
        let deployment = sleeper.asleep();
        let remembered = &deployment["metadata"]["annotations"]["salp.dev/asleep-replicas"];
        assert_eq!(remembered, "3");
        let slept = site.ok(&DEPLOYMENT);
        assert!(slept.contains("0/0"), "{slept}");
        let ps = salp(&["ps", "--data-dir", &site.dir.display().to_string()]);
        assert!(text(&ps).contains("Asleep"), "{}", text(&ps));

        let woken = get_with(address, "/", "Salp-Server-Timing: on\r\n").expect("an answer");
        assert_eq!(woken.code, 200, "{woken:?}");
        let timing = woken.header("server-timing");
        assert!(timing.starts_with("wake;dur="), "{timing}");
        let pod = pod_in(&woken.body);
        let busy = sleeper.awake(3);
        // The pod that answered is one of the three, and was started once.
        let pods = sleeper.pods();
        assert_eq!(pods.len(), 3, "{pods:?}");
        let mine = pods.iter().find(|p| p["metadata"]["name"] == pod.as_str());
        let mine = mine.unwrap_or_else(|| panic!("no {pod} in {pods:?}"));
        assert_eq!(mine["status"]["containerStatuses"][0]["restartCount"], 0);
        assert_eq!(mine["metadata"]["ownerReferences"][0]["kind"], "ReplicaSet");
        drop(busy);
        eventually("the event tells", || {
            let told = sleeper.events("Woken");
            let tells = told.iter().any(|t| t.contains(&pod));
            tells.then_some(()).ok_or(format!("{told:?}"))
        });
        let node = &site.json(&["get", "nodes"])["items"][0]["metadata"]["name"];
        let path = format!(
            "/api/v1/nodes/{}/proxy/metrics/dataplane",
            node.as_str().expect("name")
        );
        let metrics = site.ok(&["get", "--raw", &path]);
        let held = metrics
            .lines()
            .find(|l| l.starts_with("salp_wake_seconds_count"));
        assert!(held.is_some_and(|l| !l.ends_with(" 0")), "{metrics}");
        let told = sleeper.events("ScaledToZero");
        assert!(told.iter().any(|t| t.contains("from 3 to 0")), "{told:?}");
    }
}

#[test]
fn a_thousand_requests_at_zero_all_succeed() {
    let sleeper = Sleeper::start(1, "2s");
    sleeper.asleep();
    let together = Arc::new(Barrier::new(1000));
    let clients: Vec<_> = (0..1000)
        .map(|n| {
            let together = together.clone();
            let address = [&sleeper.cluster, &sleeper.node_port][n % 2].clone();
            let client = move || {
                together.wait();
                answer(&address)
            };
            let small = std::thread::Builder::new().stack_size(256 << 10);
            small.spawn(client).expect("thread")
        })
        .collect();
    let answers = clients.into_iter().map(|c| c.join().expect("client"));
    let (good, bad): (Vec<_>, Vec<_>) = answers.partition(Result::is_ok);
    if let Some(first) = bad.first() {
        let logs = sleeper.site.kubectl(&["logs", "-l", "app=hello"]);
        panic!("{} failed: {first:?}\n{}", bad.len(), text(&logs));
    }
    let first = good[0].clone().expect("a pod");
    assert!(good.iter().all(|a| a.as_ref() == Ok(&first)), "{good:?}");
    let _busy = sleeper.awake(1);
    let pods = sleeper.pods();
    assert_eq!(pods.len(), 1, "{pods:?}");
    assert_eq!(pods[0]["metadata"]["name"], first.as_str());
}

#[test]
fn a_wake_needs_no_control_plane_and_survives_crashes() {
    let mut sleeper = Sleeper::start(1, "2s");
    sleeper.asleep();

    // Restarted while it sleeps, the control plane lets it sleep.
    sleeper.site.signal("-TERM");
    sleeper.site.up(&[]);
    let deployment = sleeper.site.json(&DEPLOYMENT);
    assert_eq!(deployment["spec"]["replicas"], 0);
    answer(&sleeper.cluster).expect("woken");
    drop(sleeper.awake(1));

    // Killed, it is not missed; back, it takes over what was woken.
    sleeper.asleep();
    sleeper.site.signal("-KILL");
    let pod = answer(&sleeper.cluster).expect("woken with nobody to ask");
    assert_eq!(answer(&sleeper.node_port), Ok(pod.clone()));
    sleeper.site.up(&[]);
    let busy = sleeper.awake(1);
    let pods = sleeper.pods();
    assert_eq!(pods.len(), 1, "{pods:?}");
    assert_eq!(pods[0]["metadata"]["name"], pod.as_str());
    assert_eq!(pods[0]["status"]["containerStatuses"][0]["restartCount"], 0);
    drop(busy);

    // Killed while it sleeps, the data plane still knows who stands by.
    sleeper.asleep();
    sleeper.kill_dataplane();
    eventually("woken after a crash", || answer(&sleeper.cluster));
    drop(sleeper.awake(1));

    // Both killed, and the data plane alone started.
    sleeper.asleep();
    sleeper.site.signal("-KILL");
    let held = sleeper.site.hold_addresses();
    sleeper.kill_dataplane();
    let alone = Command::new(env!("CARGO_BIN_EXE_salp"))
        .args(["dataplane", "--config"])
        .arg(sleeper.site.dir.join("run/dataplane.json"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(Running)
        .expect("start data plane");
    let pod = eventually("woken by the data plane alone", || {
        answer(&sleeper.node_port)
    });
    drop(held);
    sleeper.site.up(&[]);
    let _busy = sleeper.awake(1);
    assert_eq!(answer(&sleeper.cluster), Ok(pod));
    drop(alone);
}

#[test]
fn who_scales_by_hand_is_respected() {
    let sleeper = Sleeper::start(1, "2s");
    let site = &sleeper.site;
    sleeper.asleep();
    site.ok(&["scale", "deployment/hello", "--replicas=2"]);
    drop(sleeper.awake(2));
    // It sleeps again, and comes back to what was asked for last.
    let remembered = "/metadata/annotations/salp.dev~1asleep-replicas";
    site.wait_for(&DEPLOYMENT, remembered, |n| n == "2");
    // A new template while it sleeps: what wakes is of that.
    site.ok(&["set", "env", "deployment/hello", "NEW=1"]);
    // The annotation taken away brings it back.
    site.ok(&["annotate", "deployment/hello", "salp.dev/scale-to-zero-"]);
    drop(sleeper.awake(2));
    let new = |pod: &Value| pod["spec"]["containers"][0]["env"][1]["name"] == "NEW";
    site.wait_for(&PODS, "/items", |items| {
        items
            .as_array()
            .is_some_and(|pods| pods.len() == 2 && pods.iter().all(new))
    });
    // A zero by hand is a real one.
    let hour = "salp.dev/scale-to-zero=1h";
    site.ok(&["annotate", "deployment/hello", hour]);
    site.ok(&["scale", "deployment/hello", "--replicas=0"]);
    site.wait_for(&PODS, "/items", is_empty);
    eventually("nobody answers", || match answer(&sleeper.cluster) {
        Ok(pod) => Err(pod),
        Err(_) => Ok(()),
    });
    // A value that means nothing is told, and nothing else happens.
    let soon = "salp.dev/scale-to-zero=soon";
    site.ok(&["annotate", "--overwrite", "deployment/hello", soon]);
    eventually("told", || {
        let told = sleeper.events("InvalidScaleToZero");
        (told.len() == 1).then_some(()).ok_or(format!("{told:?}"))
    });
}

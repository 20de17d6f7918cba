//! A Deployment and a Service, as a user drives them with kubectl.

use crate::harness::{Registry, Site, eventually, get, get_ok, repo_file, salp, text};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The hello example with its image in `registry` and so many replicas.
pub(crate) fn hello(image: &str, replicas: u32) -> String {
    let manifest =
        std::fs::read_to_string(repo_file("examples/hello/deployment.yaml")).expect("manifest");
    manifest
        .replace("localhost:5000/hello:1", image)
        .replace("replicas: 2", &format!("replicas: {replicas}"))
}

/// (cluster address, node port address) of the hello Service.
pub(crate) fn addresses(site: &Site) -> (String, String) {
    let service = site.json(&["get", "service", "hello"]);
    let ip = service["spec"]["clusterIP"].as_str().expect("cluster IP");
    let node_port = service["spec"]["ports"][0]["nodePort"]
        .as_u64()
        .expect("node port");
    (format!("{ip}:8080"), format!("127.0.0.1:{node_port}"))
}

/// Which pods answered how often in so many requests.
fn spread(address: &str, requests: u32) -> BTreeMap<String, u32> {
    let mut by_pod = BTreeMap::new();
    for _ in 0..requests {
        let body = get(address, "/")
            .expect("answer")
            .expect_code(200)
            .expect("200");
        *by_pod.entry(body.trim().to_owned()).or_default() += 1;
    }
    by_pod
}

/// Requests without a pause on several connections until told to stop; what failed.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<std::thread::JoinHandle<(u64, Vec<String>)>>,
}

impl Load {
    fn on(address: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..4)
            .map(|_| {
                let (stop, address) = (stop.clone(), address.to_owned());
                std::thread::spawn(move || {
                    let (mut good, mut bad) = (0, Vec::new());
                    while !stop.load(Ordering::Relaxed) {
                        match get_ok(&address, "/") {
                            Ok(_) => good += 1,
                            Err(why) => bad.push(why),
                        }
                    }
                    (good, bad)
                })
            })
            .collect();
        Self { stop, clients }
    }

    /// Ends it; every request must have been answered with 200.
    fn expect_no_failure(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = 0;
        for client in self.clients {
            let (good, bad) = client.join().expect("client");
            assert!(
                bad.is_empty(),
                "{} failed requests, such as {:?}",
                bad.len(),
                bad.first()
            );
            total += good;
        }
        assert!(total > 0, "no request was made");
        total
    }
}

#[test]
fn deployment_and_service_from_a_registry() {
    let registry = Registry::start();
    let site = Site::start();
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    let second = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:2");

    site.apply(&hello(&image, 3));
    let rolled = site.ok(&["rollout", "status", "deployment/hello", "--timeout=90s"]);
    assert!(rolled.contains("successfully rolled out"), "{rolled}");

    let wide = site.ok(&["get", "pods", "-l", "app=hello", "-o", "wide"]);
    for heading in ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"] {
        assert!(
            wide.lines().next().expect("heading").contains(heading),
            "{wide}"
        );
    }
    assert_eq!(wide.matches("1/1").count(), 3, "{wide}");
    assert_eq!(wide.matches("Running").count(), 3, "{wide}");

    let (cluster, node_port) = addresses(&site);
    eventually("the proxy knows all three pods", || {
        get(&cluster, "/").map_err(|e| e.to_string())?;
        let by_pod = spread(&cluster, 30);
        if by_pod.len() == 3 {
            Ok(())
        } else {
            Err(format!("{by_pod:?}"))
        }
    });
    assert_eq!(spread(&node_port, 30).len(), 3);

    // No request fails while pods are killed, replaced by another image, or made fewer.
    let load = Load::on(&cluster);
    let victim = site.ok(&["get", "pods", "-l", "app=hello", "-o", "name"]);
    site.ok(&[
        "delete",
        "--wait=true",
        victim.lines().next().expect("a pod"),
    ]);
    site.ok(&["rollout", "status", "deployment/hello", "--timeout=90s"]);
    site.ok(&[
        "set",
        "image",
        "deployment/hello",
        &format!("hello={second}"),
    ]);
    site.ok(&["rollout", "status", "deployment/hello", "--timeout=90s"]);
    site.ok(&["scale", "deployment/hello", "--replicas=1"]);
    site.wait_for(&["get", "deployment", "hello"], "/status/replicas", |n| {
        n == 1
    });
    load.expect_no_failure();

    let history = site.ok(&["rollout", "history", "deployment/hello"]);
    assert!(history.lines().count() >= 4, "{history}");
    let described = site.ok(&["describe", "pods", "-l", "app=hello"]);
    // Only the first pod of an image pulls it, and another may be the one that is left.
    assert!(site.ok(&["get", "events"]).contains("Pulling image"));
    for reason in ["Scheduled", "Pulled", "Created", "Started"] {
        assert!(
            described.contains(reason),
            "{reason} is missing:\n{described}"
        );
    }

    let ps = salp(&["ps", "--data-dir", &site.dir.display().to_string()]);
    assert!(
        ps.status.success() && text(&ps).contains("hello-"),
        "{}",
        text(&ps)
    );

    site.ok(&["delete", "deployment,service", "hello", "--wait=true"]);
    eventually("pods are gone", || {
        let left = site.ok(&["get", "pods", "-o", "name"]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    assert!(
        get(&cluster, "/").is_err(),
        "the deleted service still answers"
    );
}

#[test]
fn a_restart_of_the_control_plane_interrupts_nothing() {
    let registry = Registry::start();
    let mut site = Site::start();
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    site.apply(&hello(&image, 2));
    site.ok(&["rollout", "status", "deployment/hello", "--timeout=90s"]);
    let before = site.json(&["get", "pods", "-l", "app=hello"]);
    let (cluster, _) = addresses(&site);
    eventually("the service answers", || {
        get(&cluster, "/").map_err(|e| e.to_string())
    });

    let load = Load::on(&cluster);
    site.signal("-TERM");
    site.up(&[]);
    site.ok(&["rollout", "status", "deployment/hello", "--timeout=90s"]);
    // kill -9 is no different to those who are served.
    site.signal("-KILL");
    site.up(&[]);
    site.ok(&["rollout", "status", "deployment/hello", "--timeout=90s"]);
    load.expect_no_failure();

    let after = site.json(&["get", "pods", "-l", "app=hello"]);
    let identity = |list: &serde_json::Value| -> Vec<(String, u64)> {
        let items = list["items"].as_array().expect("items");
        items
            .iter()
            .map(|p| {
                let uid = p["metadata"]["uid"].as_str().expect("uid").to_owned();
                (
                    uid,
                    p["status"]["containerStatuses"][0]["restartCount"]
                        .as_u64()
                        .expect("restarts"),
                )
            })
            .collect()
    };
    assert_eq!(identity(&before), identity(&after));
}

#[test]
fn ctrl_c_stops_all_and_a_second_up_finds_it_as_it_was() {
    let registry = Registry::start();
    let mut site = Site::start();
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    site.apply(&hello(&image, 1));
    site.ok(&["rollout", "status", "deployment/hello", "--timeout=90s"]);
    let uid = site.ok(&[
        "get",
        "pods",
        "-l",
        "app=hello",
        "-o",
        "jsonpath={.items[*].metadata.uid}",
    ]);
    let (cluster, node_port) = addresses(&site);
    eventually("the node port answers", || {
        get(&node_port, "/").map_err(|e| e.to_string())
    });
    let turn = site.between_stop_and_start();
    site.signal("-INT");
    // Not at the cluster address: with its route gone it is no longer this machine's.
    assert!(
        get(&node_port, "/").is_err(),
        "the data plane still runs after Ctrl-C"
    );
    // The registry is not needed a second time.
    drop(registry);
    site.up(&[]);
    drop(turn);
    site.ok(&["rollout", "status", "deployment/hello", "--timeout=90s"]);
    eventually("the service answers", || get_ok(&cluster, "/"));
    assert_eq!(
        site.ok(&[
            "get",
            "pods",
            "-l",
            "app=hello",
            "-o",
            "jsonpath={.items[*].metadata.uid}"
        ]),
        uid
    );
}

#[test]
fn two_sites_on_one_machine() {
    let (one, two) = (Site::start(), Site::start());
    one.ok(&["create", "configmap", "only-here", "--from-literal=a=b"]);
    let missing = two.fails(&["get", "configmap", "only-here"]);
    assert!(missing.contains("NotFound"), "{missing}");
}

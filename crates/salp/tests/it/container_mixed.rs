//! Pods of Wasm and container images: one address, one loopback, the same volumes.

use crate::containers::{leftovers, now_supervisor, with_busybox};
use crate::guests::body;
use crate::harness::{Registry, Site, eventually, get_ok, repo_file};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};

/// A pod with a container and two guests, all of which serve, and a Service of one guest. What
/// the container is told goes where all see it.
fn start(site: &Site, registry: &Registry, container: &str) -> Value {
    let push = |name: &str| {
        let file = repo_file(&format!("crates/testkit/fixtures/{name}.wasm"));
        registry.push(&file, &format!("{name}:1"))
    };
    let (net, misbehave) = (push("net"), push("misbehave"));
    let shared = json!([{"name": "shared", "mountPath": "/shared"}]);
    let serve = "echo from a container > /shared/index.html; cat /shared/index.html; \
                 httpd -p 8080 -h /shared; nc -ll -p 9000 -e cat & \
                 until echo hello | nc 127.0.0.1 7000 > /shared/said; do sleep 0.1; done; \
                 trap 'exit 0' TERM; while true; do sleep 0.1; done";
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "mixed", "labels": {"app": "mixed"}},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "volumes": [{"name": "shared", "emptyDir": {}}],
            // Before it is known by any container of the pod that it has containers.
            "initContainers": [{"name": "first", "image": net, "args": ["lookup", "localhost"]}],
            "containers": [
                {"name": "box", "image": container, "volumeMounts": shared, "command": ["sh", "-c", serve]},
                {"name": "guest", "image": misbehave, "volumeMounts": shared,
                    "ports": [{"containerPort": 8081}],
                    "readinessProbe": {"httpGet": {"port": 8081, "path": "/"}, "periodSeconds": 1}},
                {"name": "line", "image": net, "args": ["serve", "127.0.0.1:7000", "line"]},
            ],
        },
    });
    site.apply(&pod.to_string());
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "mixed"},
        "spec": {"selector": {"app": "mixed"}, "ports": [{"port": 80, "targetPort": 8081}]},
    });
    site.apply(&service.to_string());
    ready(site);
    site.json(&["get", "pod", "mixed"])
}

fn ready(site: &Site) {
    let ready = "--for=condition=Ready";
    site.ok(&["wait", ready, "pod/mixed", "--timeout=60s"]);
}

fn ip(pod: &Value) -> &str {
    pod["status"]["podIP"].as_str().expect("an address")
}

/// What a guest is told at a URL, without the status.
fn fetched(address: &str, url: &str) -> Result<String, String> {
    let answer = get_ok(address, &format!("/fetch?url={url}"))?;
    let body = answer.strip_prefix("200\n").map(str::to_owned);
    body.ok_or(answer)
}

/// Whether the guest reaches the container.
fn meets(address: &str) -> Result<(), String> {
    let said = fetched(address, "http://127.0.0.1:8080/index.html")?;
    let met = said == "from a container\n";
    met.then_some(()).ok_or(said)
}

fn restarts(site: &Site) -> Vec<u64> {
    let pod = site.json(&["get", "pod", "mixed"]);
    let statuses = pod["status"]["containerStatuses"].as_array().cloned();
    let of = |status: &Value| status["restartCount"].as_u64().unwrap_or(u64::MAX);
    statuses.iter().flatten().map(of).collect()
}

#[test]
fn wasm_and_containers_share_a_pods_network_and_volumes() {
    let Some((registry, image, site)) = with_busybox(&[]) else {
        return;
    };
    let pod = start(&site, &registry, &image);
    let address = format!("{}:8081", ip(&pod));
    let inside = |container: &str, words: &[&str]| {
        site.ok(&[&["exec", "mixed", "-c", container, "--"], words].concat())
    };
    // From outside to both, and from each to each by the loopback.
    eventually("the container serves", || {
        get_ok(&format!("{}:8080", ip(&pod)), "/")
    });
    eventually("the guest reaches the container", || meets(&address));
    let ask = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc 127.0.0.1 8081 | tail -1";
    // It says at once that it has no more to say, and may so be taken for one who left.
    eventually("the container is answered by the guest", || {
        let said = inside("box", &["sh", "-c", ask]);
        (said == "ok\n").then_some(()).ok_or(said)
    });
    // A guest's sockets of its own, which listen and ask.
    eventually("the container has asked the other guest", || {
        let said = get_ok(&address, "/read?path=/shared/said")?;
        (said == "line: hello\n").then_some(()).ok_or(said)
    });
    let asked = inside("line", &["line", "ask", "127.0.0.1", "9000", "again"]);
    assert_eq!(asked, "again\n");
    // The loopback of the machine is another.
    assert!(std::net::TcpStream::connect("127.0.0.1:7000").is_err());

    // What one writes the other reads.
    body(&address, "/write?path=/shared/guest&text=by-a-guest");
    assert_eq!(inside("box", &["cat", "/shared/guest"]), "by-a-guest");

    for (container, said) in [
        ("first", "127.0.0.1\n"),
        ("line", "line listens at 127.0.0.1\n"),
        ("box", "from a container\n"),
    ] {
        assert_eq!(site.ok(&["logs", "mixed", "-c", container]), said);
    }

    // The guest by its Service, and the Service by the guest and by its name.
    let service = site.json(&["get", "service", "mixed"]);
    let cluster_ip = service["spec"]["clusterIP"].as_str().expect("an address");
    eventually("the Service has the guest", || {
        get_ok(&format!("{cluster_ip}:80"), "/")
    });
    assert_eq!(fetched(&address, "http://mixed/"), Ok("ok\n".to_owned()));

    // Others see it come from the pod's address.
    let listener = TcpListener::bind("0.0.0.0:0").expect("listen");
    let port = listener.local_addr().expect("address").port();
    let server = std::thread::spawn(move || {
        let (mut stream, from) = listener.accept().expect("a connection");
        let _request = stream.read(&mut [0; 4096]).expect("a request");
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        stream.write_all(answer.as_bytes()).expect("answer");
        from.ip().to_string()
    });
    // The machine's own address as pods see it.
    let machine = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    machine.connect(&address).expect("a route");
    let machine = machine.local_addr().expect("address").ip();
    let answer = fetched(&address, &format!("http://{machine}:{port}/"));
    assert_eq!(answer, Ok(String::new()));
    assert_eq!(server.join().expect("a server"), ip(&pod));
}

#[test]
fn a_pod_of_both_kinds_comes_back_from_kills() {
    let Some((registry, image, mut site)) = with_busybox(&[]) else {
        return;
    };
    let pod = start(&site, &registry, &image);
    let address = format!("{}:8081", ip(&pod));
    eventually("the guest reaches the container", || meets(&address));

    // The next agent finds both halves.
    site.signal("-KILL");
    meets(&address).expect("nothing of it is the agent's");
    site.up(&[]);
    ready(&site);
    assert_eq!(restarts(&site), [0, 0, 0]);

    // The next data plane brings the guests back to where the container still is.
    site.expects("the data plane ended; starting it again");
    site.expects("the data plane does not answer at");
    site.kill("dataplane");
    eventually("both guests are back", || {
        meets(&address)?;
        let now = restarts(&site);
        let back = now[0] == 0 && now[2] >= 1;
        back.then_some(()).ok_or_else(|| format!("{now:?}"))
    });

    // With the supervisor the network goes: all of the pod is made anew.
    site.kill("supervisor");
    eventually("all of it is back", || {
        let now = restarts(&site);
        let back = now.iter().all(|restarts| *restarts >= 1);
        back.then_some(()).ok_or_else(|| format!("{now:?}"))?;
        meets(&address)
    });
    let supervisor = now_supervisor(&site);
    let uid = pod["metadata"]["uid"].as_str().expect("uid");
    site.ok(&["delete", "pod", "mixed", "--timeout=60s"]);
    assert_eq!(leftovers(&site, uid, &supervisor), 0);
    assert!(get_ok(&address, "/").is_err());
}

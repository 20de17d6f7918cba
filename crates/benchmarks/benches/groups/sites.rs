//! A Service of three sites on this machine: what going through it costs at home, over each
//! way to another site, and how long it takes until another site answers for one that died
//! or fell silent.

use crate::harness::{Registry, Site, eventually, get, get_ok, repo_file};
use crate::nats::Nats;
use crate::{deployment, figure, median, ms, wrk};
use serde_json::{Map, Value, json};
use std::process::Command;
use std::time::{Duration, Instant};

/// Requests of which the slowest is looked for while a site goes away.
const REQUESTS_AFTER: usize = 200;
/// Sites that die, and that fall silent.
const ROUNDS: usize = 3;

/// A port that speaks HTTP by its name.
fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "hello"},
        "spec": {"selector": {"app": "hello"}, "ports": [{"name": "http", "port": 8080}]},
    })
}

const EXPORT: &str =
    "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: hello}\n";

struct Three {
    hub: Site,
    kiosk: Site,
    till: Site,
    /// The Service at the till, its own and that of all.
    own: String,
    import: String,
    _nats: Nats,
    _registry: Registry,
}

fn three(more: &[&str]) -> Three {
    let (nats, registry) = (Nats::start(), Registry::start());
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    let url = nats.url();
    let start = |args: &[&str]| {
        let site = Site::start_with(&[&["--lattice", &url], args, more].concat());
        site.expects("NATS connection");
        let annotations = json!({"salp.dev/instance-reuse": "1000"});
        site.apply(&deployment("hello", &image, 1, annotations).to_string());
        site.apply(&service().to_string());
        site.apply(EXPORT);
        site.ok(&["rollout", "status", "deployment/hello", "--timeout=90s"]);
        site
    };
    let hub = start(&["--lattice-hub", "--site", "hub"]);
    let token = || {
        let token = hub.salp(&["sites", "token"]).stdout;
        String::from_utf8(token).expect("token").trim().to_owned()
    };
    let kiosk = start(&["--site", "kiosk", "--lattice-token", &token()]);
    let till = start(&["--site", "till", "--lattice-token", &token()]);
    let clusters = |c: &Value| c.as_array().is_some_and(|c| c.len() == 3);
    let import = till.wait_for(
        &["get", "serviceimport", "hello"],
        "/status/clusters",
        clusters,
    );
    let import = import["spec"]["ips"][0].as_str().expect("address");
    let own = &till.json(&["get", "service", "hello"])["spec"]["clusterIP"];
    Three {
        own: format!("{}:8080", own.as_str().expect("address")),
        import: format!("{import}:8080"),
        hub,
        kiosk,
        till,
        _nats: nats,
        _registry: registry,
    }
}

/// Who answers the import.
fn answerer(import: &str) -> String {
    get_ok(import, "/").unwrap_or_default()
}

fn pods(site: &Site) -> String {
    let names = "jsonpath={.items[*].metadata.name}";
    site.ok(&["get", "pods", "-l", "app=hello", "-o", names])
}

/// Takes the till's own pods away, and waits until both others answer.
fn cover(sites: &Three) {
    sites
        .till
        .ok(&["scale", "deployment/hello", "--replicas=0"]);
    let (hub, kiosk) = (pods(&sites.hub), pods(&sites.kiosk));
    for pods in [hub, kiosk] {
        eventually("both others answer", || {
            let said = answerer(&sites.import);
            let pod = said.trim().trim_start_matches("Hello from ").to_owned();
            let by = !pod.is_empty() && pods.contains(&pod);
            by.then_some(()).ok_or(said)
        });
    }
}

/// Microseconds of one request after the other.
fn each(address: &str) -> f64 {
    1e6 / wrk(address, 1).0
}

pub(crate) fn run(figures: &mut Map<String, Value>) {
    for (way, more) in [
        ("direct", &[][..]),
        ("NATS", &["--lattice-listen", "off"][..]),
    ] {
        let mut sites = three(more);
        eventually("the import answers", || get_ok(&sites.import, "/"));
        let own = each(&sites.own);
        if way == "direct" {
            let import = each(&sites.import);
            let own = f64::midpoint(own, each(&sites.own));
            figure(figures, "local call, its own Service", own, "us");
            figure(figures, "local call, exported Service", import, "us");
            figure(figures, "added by the export", import - own, "us");
        }
        cover(&sites);
        let name = |what: &str| format!("{way}: {what}");
        let far = each(&sites.import);
        figure(figures, &name("call to another site"), far, "us");
        figure(figures, &name("added by the other site"), far - own, "us");
        let (rate, p99) = wrk(&sites.import, 32);
        figure(figures, &name("requests to other sites"), rate, "req/s");
        figure(figures, &name("requests to other sites, p99"), p99, "ms");
        let (mut killed, mut silent) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            silent.push(slowest(&sites, |pid| signal(pid, "-STOP")));
            each_process(&sites.kiosk, |pid| signal(pid, "-CONT"));
            cover(&sites);
        }
        killed.push(slowest(&sites, |pid| signal(pid, "-KILL")));
        figure(
            figures,
            &name("slowest, a site falls silent"),
            median(silent),
            "ms",
        );
        figure(
            figures,
            &name("slowest, a site is killed"),
            median(killed),
            "ms",
        );
        sites.kiosk.signal("-KILL");
    }
}

/// The slowest of many requests, one after the other, while something is done to all processes
/// of a site that answers half of them. None may fail.
fn slowest(sites: &Three, act: impl Fn(u32) + Sync) -> f64 {
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut slowest = Duration::ZERO;
            for _ in 0..REQUESTS_AFTER {
                let began = Instant::now();
                let answer = get(&sites.import, "/").expect("answer");
                assert_eq!(answer.code, 200, "{answer:?}");
                slowest = slowest.max(began.elapsed());
                std::thread::sleep(Duration::from_millis(10));
            }
            ms(slowest)
        });
        std::thread::sleep(Duration::from_millis(200));
        each_process(&sites.kiosk, act);
        client.join().expect("client")
    })
}

fn each_process(site: &Site, act: impl Fn(u32)) {
    let dataplane = std::fs::read_to_string(site.dir.join("run/dataplane.pid"));
    let dataplane = dataplane.expect("pid").trim().parse().expect("pid");
    act(site.pid());
    act(dataplane);
}

fn signal(pid: u32, signal: &str) {
    let sent = Command::new("kill")
        .args([signal, &pid.to_string()])
        .status();
    assert!(sent.expect("kill").success());
}

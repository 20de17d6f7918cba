//! Container pods: from POST to Running and from DELETE to gone through the whole of Salp, by the
//! built-in OCI runtime and by runc, beside containerd's part of it alone (sandbox, container,
//! start); one after the other and many at once, and the memory of each.

use crate::container_images::{busybox, busybox_that};
use crate::cri::Containerd;
use crate::harness::{Registry, Site};
use crate::{client, figure, median, ms, pss_mib, request, runtime, site_pss_mib};
use futures::future::join_all;
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

/// Pods one after the other.
const ROUNDS: usize = 20;
/// Pods at once.
const AT_ONCE: usize = 32;
const PODS: &str = "/api/v1/namespaces/default/pods";
/// Ends as soon as it is asked to.
const COMMAND: [&str; 3] = ["sh", "-c", "trap 'exit 0' TERM; sleep 1000000 & wait"];
/// Between looks at a pod.
const LOOK: Duration = Duration::from_millis(1);

pub(super) fn run(figures: &mut Map<String, Value>) {
    let (registry, rt) = (Registry::start(), runtime());
    let image = busybox(&registry);
    {
        let site = Site::start();
        let client = rt.block_on(client(&site));
        for handler in ["salp", "runc"] {
            site.apply(
                &json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
                    "metadata": {"name": handler}, "handler": handler})
                .to_string(),
            );
            rt.block_on(of_salp(figures, &site, &client, &image, handler));
        }
    }
    let pause = busybox_that(&registry, "pause:1", &["sleep", "1000000"]);
    rt.block_on(of_containerd(figures, &image, &pause));
}

async fn of_salp(
    figures: &mut Map<String, Value>,
    site: &Site,
    client: &kube::Client,
    image: &str,
    handler: &str,
) {
    let name = |n: usize| format!("{handler}-{n}");
    // Pulls and unpacks.
    make(client, &name(9999), image, handler).await;
    remove(client, &name(9999)).await;
    let (mut made, mut removed) = (Vec::new(), Vec::new());
    for n in 0..ROUNDS {
        let began = Instant::now();
        make(client, &name(n), image, handler).await;
        made.push(ms(began.elapsed()));
        let began = Instant::now();
        remove(client, &name(n)).await;
        removed.push(ms(began.elapsed()));
    }
    let before = all_pss_mib(site);
    let began = Instant::now();
    join_all((0..AT_ONCE).map(async |n| make(client, &name(n), image, handler).await)).await;
    let all = ms(began.elapsed());
    std::thread::sleep(Duration::from_secs(5));
    let after = all_pss_mib(site);
    join_all((0..AT_ONCE).map(async |n| remove(client, &name(n)).await)).await;
    let each = (after - before) * 1024.0 / AT_ONCE as f64;
    tell(
        figures,
        &format!("Salp with {handler}"),
        made,
        removed,
        all,
        each,
    );
}

async fn of_containerd(figures: &mut Map<String, Value>, image: &str, pause: &str) {
    let containerd = Containerd::start(image, pause).await;
    let name = |n: usize| format!("pod-{n}");
    let warm = containerd.pod(&name(9999), image, &COMMAND).await;
    containerd.remove(warm).await;
    let (mut made, mut removed) = (Vec::new(), Vec::new());
    for n in 0..ROUNDS {
        let began = Instant::now();
        let pod = containerd.pod(&name(n), image, &COMMAND).await;
        made.push(ms(began.elapsed()));
        let began = Instant::now();
        containerd.remove(pod).await;
        removed.push(ms(began.elapsed()));
    }
    let before = containerd.pss_mib();
    let began = Instant::now();
    let start = |n: usize| {
        let (containerd, name) = (&containerd, name(n + ROUNDS));
        async move { containerd.pod(&name, image, &COMMAND).await }
    };
    let pods = join_all((0..AT_ONCE).map(start)).await;
    let all = ms(began.elapsed());
    std::thread::sleep(Duration::from_secs(5));
    let after = containerd.pss_mib() + containerd.shims_pss_mib();
    for pod in pods {
        containerd.remove(pod).await;
    }
    let each = (after - before) * 1024.0 / AT_ONCE as f64;
    tell(figures, "containerd", made, removed, all, each);
}

fn tell(
    figures: &mut Map<String, Value>,
    who: &str,
    made: Vec<f64>,
    removed: Vec<f64>,
    at_once: f64,
    memory: f64,
) {
    let mut one = |what: &str, value: f64, unit: &str| {
        figure(figures, &format!("{who}: {what}"), value, unit);
    };
    one("pod made until it runs", median(made), "ms");
    one("pod removed", median(removed), "ms");
    one(&format!("{AT_ONCE} at once until all run"), at_once, "ms");
    one("PSS a pod", memory, "KiB");
}

/// All of Salp's processes.
fn all_pss_mib(site: &Site) -> f64 {
    let (control, data) = site_pss_mib(site);
    let supervisor = std::fs::read_to_string(site.dir.join("run/supervisor.pid"));
    let supervisor = supervisor.ok().and_then(|pid| pid.trim().parse().ok());
    control + data + supervisor.map_or(f64::NAN, pss_mib)
}

async fn make(client: &kube::Client, name: &str, image: &str, handler: &str) {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "runtimeClassName": handler, "terminationGracePeriodSeconds": 30,
            "containers": [{"name": "main", "image": image, "command": COMMAND}],
        },
    });
    let body = pod.to_string().into_bytes();
    request(client, "POST", PODS, body).await.expect("make pod");
    let path = format!("{PODS}/{name}");
    let began = Instant::now();
    loop {
        let pod = request(client, "GET", &path, Vec::new())
            .await
            .expect("get");
        if pod["status"]["phase"] == "Running" {
            return;
        }
        assert!(
            began.elapsed() < Duration::from_secs(90),
            "{}",
            pod["status"]
        );
        tokio::time::sleep(LOOK).await;
    }
}

async fn remove(client: &kube::Client, name: &str) {
    let path = format!("{PODS}/{name}");
    request(client, "DELETE", &path, Vec::new())
        .await
        .expect("delete");
    let began = Instant::now();
    while request(client, "GET", &path, Vec::new()).await.is_ok() {
        assert!(
            began.elapsed() < Duration::from_secs(90),
            "{name} is not gone"
        );
        tokio::time::sleep(LOOK).await;
    }
}

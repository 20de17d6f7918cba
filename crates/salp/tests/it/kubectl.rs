//! What kubectl shows while things happen: `-w`, `wait`, `logs -f`, `describe`, managed fields.

use crate::commands::ticking;
use crate::harness::{Following, Registry, Site, eventually, repo_file, text};
use crate::pods::pod;
use crate::serve::hello;
use std::collections::BTreeSet;

#[test]
fn get_w_shows_each_change() {
    let (registry, site) = (Registry::start(), Site::start());
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    let plain = Following::start(site.kubectl_command(&["get", "pods", "-w"]));
    let wide = Following::start(site.kubectl_command(&["get", "pods", "-o", "wide", "-w"]));
    site.apply(&pod(
        "seen",
        &image,
        "Always",
        "    ports: [{containerPort: 8080}]\n",
    ));
    let running = plain.wait_for(|l| l.starts_with("seen") && l.contains("Running"));
    let cells: Vec<&str> = running.split_whitespace().collect();
    assert_eq!(&cells[..4], ["seen", "1/1", "Running", "0"], "{running}");
    let object = site.json(&["get", "pod", "seen"]);
    let (ip, node) = (&object["status"]["podIP"], &object["spec"]["nodeName"]);
    let row = wide.wait_for(|l| l.starts_with("seen") && l.contains("Running"));
    for part in [ip, node] {
        assert!(
            row.contains(part.as_str().expect("text")),
            "{part} in {row}"
        );
    }
    let before = plain.lines();
    assert!(
        before[0].starts_with("NAME") && before[0].ends_with("AGE"),
        "{before:?}"
    );
    assert!(
        wide.lines()[0].contains("READINESS GATES"),
        "{:?}",
        wide.lines()
    );
    // It was watched from its first state on.
    assert!(
        before
            .iter()
            .any(|l| l.contains("Pending") || l.contains("ContainerCreating"))
    );
    site.ok(&["delete", "pod", "seen"]);
    plain.wait_for(|l| {
        l.starts_with("seen") && (l.contains("Terminating") || l.contains("Completed"))
    });
}

#[test]
fn wait_ends_when_it_is_so() {
    let (registry, site) = (Registry::start(), Site::start());
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    site.apply(&hello(&image, 2));
    let timeout = "--timeout=60s";
    site.ok(&[
        "wait",
        "--for=condition=Available",
        "deployment/hello",
        timeout,
    ]);
    site.ok(&[
        "wait",
        "--for=condition=Ready",
        "pod",
        "-l",
        "app=hello",
        timeout,
    ]);
    site.ok(&[
        "wait",
        "--for=jsonpath={.status.readyReplicas}=2",
        "deployment/hello",
        timeout,
    ]);
    let deleting = Following::start(site.kubectl_command(&[
        "wait",
        "--for=delete",
        "pod",
        "-l",
        "app=hello",
        timeout,
    ]));
    site.ok(&["delete", "deployment", "hello"]);
    let mut deleting = deleting;
    assert!(deleting.ended().success(), "{:?}", deleting.lines());
    let created = Following::start(site.kubectl_command(&[
        "wait",
        "--for=create",
        "configmap/late",
        timeout,
    ]));
    site.ok(&["create", "configmap", "late"]);
    let mut created = created;
    assert!(created.ended().success(), "{:?}", created.lines());
    let never = site.fails(&[
        "wait",
        "--for=condition=Ready",
        "pod/absent",
        "--timeout=1s",
    ]);
    assert!(never.contains("not found"), "{never}");
}

#[test]
fn logs_f_goes_over_a_restart() {
    let (registry, site) = (Registry::start(), Site::start());
    let dir = tempfile::tempdir().expect("directory");
    let image = registry.push(&ticking(dir.path(), 20), "ticking:1");
    site.apply(&pod("ticks", &image, "Always", ""));
    site.ok(&[
        "wait",
        "--for=condition=Ready",
        "pod/ticks",
        "--timeout=60s",
    ]);
    let follow = |args: &[&str]| Following::start(site.kubectl_command(args));
    // A stream ends with its container, as a kubelet's does; the next has the next run.
    let mut first = follow(&["logs", "-f", "ticks"]);
    assert!(first.ended().success());
    assert_eq!(first.lines(), vec!["tick"; 20]);
    site.wait_for(
        &["get", "pod", "ticks"],
        "/status/containerStatuses/0/restartCount",
        |n| n == 1,
    );
    let mut second = follow(&["logs", "-f", "ticks", "--timestamps"]);
    assert!(second.ended().success());
    let times = |lines: Vec<String>| -> Vec<String> {
        let time = |l: String| l.split_once(' ').expect("time and line").0.to_owned();
        lines.into_iter().map(time).collect()
    };
    let second = times(second.lines());
    assert_eq!(second.len(), 20);
    assert!(second.is_sorted(), "{second:?}");
    site.wait_for(
        &["get", "pod", "ticks"],
        "/status/containerStatuses/0/restartCount",
        |n| n == 2,
    );
    let previous = site.ok(&["logs", "ticks", "--previous", "--timestamps"]);
    assert_eq!(times(previous.lines().map(str::to_owned).collect()), second);
}

#[test]
fn describe_tells_what_happened_and_who_did_it() {
    let (registry, site) = (Registry::start(), Site::start());
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    site.apply(&hello(&image, 1));
    site.ok(&["rollout", "status", "deployment/hello", "--timeout=90s"]);
    let pods = eventually("all events are there", || {
        let text = site.ok(&["describe", "pods", "-l", "app=hello"]);
        let all = ["Scheduled", "Pulling", "Pulled", "Created", "Started"];
        if all.iter().all(|reason| text.contains(reason)) {
            Ok(text)
        } else {
            Err(text)
        }
    });
    let event = |reason: &str| -> Vec<String> {
        let mut lines = pods
            .lines()
            .map(str::trim)
            .filter(|l| l.starts_with("Normal"));
        let line = lines.find(|l| l.split_whitespace().nth(1) == Some(reason));
        line.expect(reason)
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(event("Scheduled")[3], "default-scheduler");
    assert_eq!(event("Started")[3], "kubelet");
    for part in [
        "Node:",
        "IP:",
        "Conditions:",
        "Ready ",
        "QoS Class:",
        "Controlled By:",
    ] {
        assert!(pods.contains(part), "{part} is missing:\n{pods}");
    }
    let deployment = site.ok(&["describe", "deployment", "hello"]);
    assert!(deployment.contains("ScalingReplicaSet"), "{deployment}");
    let node = site.ok(&["describe", "nodes"]);
    for part in [
        "Capacity:",
        "Allocated resources:",
        "Non-terminated Pods:",
        "KubeletReady",
    ] {
        assert!(node.contains(part), "{part} is missing:\n{node}");
    }
    let service = site.ok(&["describe", "service", "hello"]);
    assert!(
        service.contains("Endpoints:") && service.contains(":8080"),
        "{service}"
    );
}

/// Managers of an object's fields.
fn managers(site: &Site, args: &[&str]) -> BTreeSet<String> {
    let object = site.json(&[args, &["--show-managed-fields"]].concat());
    let fields = object["metadata"]["managedFields"].as_array().cloned();
    let names = fields.unwrap_or_default().into_iter();
    names
        .filter_map(|f| f["manager"].as_str().map(str::to_owned))
        .collect()
}

#[test]
fn managed_fields_name_who_wrote() {
    let (registry, site) = (Registry::start(), Site::start());
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    site.apply(&hello(&image, 1));
    site.ok(&["rollout", "status", "deployment/hello", "--timeout=90s"]);
    site.wait_for(
        &[
            "get",
            "endpointslices",
            "-l",
            "kubernetes.io/service-name=hello",
        ],
        "/items/0/endpoints/0/conditions/ready",
        |ready| ready == true,
    );
    let one = |kind: &str, selector: &str| {
        let name = site.ok(&["get", kind, "-l", selector, "-o", "name"]);
        managers(&site, &["get", name.trim()])
    };
    let set = |names: &[&str]| {
        names
            .iter()
            .map(|n| (*n).to_owned())
            .collect::<BTreeSet<_>>()
    };
    let controllers = "kube-controller-manager";
    assert_eq!(
        managers(&site, &["get", "deployment", "hello"]),
        set(&["kubectl-client-side-apply", controllers])
    );
    assert_eq!(one("replicasets", "app=hello"), set(&[controllers]));
    assert_eq!(one("pods", "app=hello"), set(&[controllers, "kubelet"]));
    let slices = "kubernetes.io/service-name=hello";
    assert_eq!(one("endpointslices", slices), set(&[controllers]));
    assert!(one("nodes", "kubernetes.io/os=linux").contains("kubelet"));
    let run = site.salp(&["run", &image, "--name=single"]);
    assert!(run.status.success(), "{}", text(&run));
    assert_eq!(
        managers(&site, &["get", "pod", "single"]),
        set(&["salp", "kubelet"])
    );
    // Nothing anywhere is by somebody unknown.
    let all = "events,pods,nodes,leases,services,endpointslices,configmaps,serviceaccounts";
    let objects = site.json(&["get", all, "-A", "--show-managed-fields"]);
    assert!(
        !objects.to_string().contains("\"manager\":\"unknown\""),
        "{objects:#}"
    );
    // Who acts has the rights of its task, not all.
    let may = |user: &str, verb: &str, what: &[&str]| {
        let user = format!("--as=system:{user}");
        let asked = [&["auth", "can-i", verb][..], what, &[&user]].concat();
        site.kubectl(&asked).status.success()
    };
    assert!(may(
        "kube-scheduler",
        "create",
        &["pods", "--subresource=binding"]
    ));
    assert!(!may("kube-scheduler", "create", &["deployments"]));
    assert!(may("kube-controller-manager", "create", &["pods"]));
    assert!(!may(
        "kube-controller-manager",
        "create",
        &["clusterrolebindings"]
    ));
}

#[test]
fn top_shows_what_pods_and_the_node_use() {
    let (registry, site) = (Registry::start(), Site::start());
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    site.apply(&hello(&image, 1));
    site.ok(&["rollout", "status", "deployment/hello", "--timeout=60s"]);
    let top = site.ok(&[
        "top",
        "pods",
        "-l",
        "app=hello",
        "--containers",
        "--no-headers",
    ]);
    let words: Vec<&str> = top.split_whitespace().collect();
    assert!(words[0].starts_with("hello-"), "{top}");
    assert!(words[2].ends_with('m') && words[3].ends_with("Mi"), "{top}");
    let top = site.ok(&["top", "nodes", "--no-headers"]);
    let words: Vec<&str> = top.split_whitespace().collect();
    assert!(words[1].ends_with('m') && words[4].ends_with('%'), "{top}");
    site.says(&["get", "apiservices", "v1beta1.metrics.k8s.io"], "True");
}

/// Go's clients, once they may, ask in CBOR where they know no type (KEP-4222), as `wait` and
/// `delete` do: objects, lists and watches.
#[test]
fn clients_that_prefer_cbor() {
    let site = Site::start();
    site.ok(&["create", "configmap", "c", "--from-literal=a=b"]);
    let cbor = |args: &[&str]| {
        let mut command = site.kubectl_command(&[&["-v=8"], args].concat());
        command.env("KUBE_FEATURE_ClientsAllowCBOR", "true");
        command.env("KUBE_FEATURE_ClientsPreferCBOR", "true");
        command
    };
    let told = |output: std::process::Output| {
        let text = text(&output);
        assert!(output.status.success(), "{text}");
        // Of what was answered, not only of what was asked for.
        assert!(text.contains("Content-Type: application/cbor"), "{text}");
        text
    };
    let waiting = Following::start(cbor(&["wait", "--for=jsonpath={.data.a}=c", "configmap/c"]));
    waiting.wait_for(|l| l.contains("watch=true"));
    site.ok(&[
        "patch",
        "configmap",
        "c",
        "--patch",
        r#"{"data": {"a": "c"}}"#,
    ]);
    waiting.wait_for(|l| l.contains("condition met"));
    let lines = waiting.lines().join("\n");
    assert!(lines.contains("application/cbor-seq"), "{lines}");
    let met = cbor(&["wait", "--for=jsonpath={.data.a}=c", "configmap/c"]);
    told({ met }.output().expect("kubectl"));
    told(
        cbor(&["delete", "configmap", "c"])
            .output()
            .expect("kubectl"),
    );
}

//! Container pods: images from a real registry, run by the built-in OCI runtime, driven by kubectl.
//!
//! They need root and say so where they have none.

use crate::harness::http::Busy;
use crate::harness::{Registry, Site, eventually, get_ok, pid_of, text, tool};
use serde_json::{Value, json};
use sha2::Digest as _;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Whether there can be container pods; tells that there are none otherwise.
#[allow(clippy::print_stderr, reason = "a skipped test says so")]
pub(crate) fn possible() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: container pods need root");
    }
    root
}

/// A site with these arguments, and a registry that has the image of [`busybox`]; none where
/// container pods can't run.
pub(crate) fn with_busybox(args: &[&str]) -> Option<(Registry, String, Site)> {
    if !possible() {
        return None;
    }
    let registry = Registry::start();
    let image = busybox(&registry);
    Some((registry, image, Site::start_with(args)))
}

/// An archive of directories, files and links: mode, name, content or link's target.
fn layer(entries: &[(u32, &str, Entry<'_>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (mode, name, entry) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(*mode);
        header.set_size(0);
        match entry {
            Entry::Dir => {
                header.set_entry_type(tar::EntryType::Directory);
                builder.append_data(&mut header, name, &[][..])
            }
            Entry::File(content) => {
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, name, *content)
            }
            Entry::Link(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                builder.append_link(&mut header, name, target)
            }
        }
        .expect("entry");
    }
    let tar = builder.into_inner().expect("archive");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).expect("compress");
    gzip.finish().expect("compress")
}

enum Entry<'a> {
    Dir,
    File(&'a [u8]),
    Link(&'a str),
}

/// busybox in two layers, the second of which hides a file of the first.
pub(crate) fn busybox(registry: &Registry) -> String {
    busybox_that(registry, "busybox:1", &["sh"])
}

/// The same by another name, which runs something else by itself.
pub(crate) fn busybox_that(registry: &Registry, name: &str, command: &[&str]) -> String {
    let program = std::fs::read(tool("busybox")).expect("busybox");
    let mut base = vec![
        (0o755, "bin/", Entry::Dir),
        (0o755, "bin/busybox", Entry::File(&program)),
        (0o755, "etc/", Entry::Dir),
        (
            0o644,
            "etc/passwd",
            Entry::File(b"root:x:0:0:root:/root:/bin/sh\ntill:x:1000:1001::/home/till:/bin/sh\n"),
        ),
        (
            0o644,
            "etc/group",
            Entry::File(b"root:x:0:\ntill:x:1001:\n"),
        ),
        (0o1777, "tmp/", Entry::Dir),
        (0o644, "gone", Entry::File(b"hidden")),
    ];
    for name in [
        "sh", "cat", "echo", "env", "false", "hostname", "httpd", "id", "ls", "mount", "nslookup",
        "sleep", "stat", "touch", "true", "tail", "dd", "nc", "tty", "stty", "readlink", "grep",
    ] {
        let path = Box::leak(format!("bin/{name}").into_boxed_str());
        base.push((0o777, path, Entry::Link("busybox")));
    }
    let upper = [
        (0o644, ".wh.gone", Entry::File(b"")),
        (0o644, "tmp/from-upper", Entry::File(b"upper\n")),
        (0o755, "www/", Entry::Dir),
        (0o644, "www/index.html", Entry::File(b"container\n")),
    ];
    let layers = [layer(&base), layer(&upper)];
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Cmd": command, "Env": ["PATH=/bin", "FROM=image"], "WorkingDir": "/tmp"},
        "rootfs": {"type": "layers", "diff_ids": layers.each_ref().map(|layer| diff_id(layer))},
    });
    registry.put(
        name,
        (CONFIG, config.to_string().into_bytes()),
        &layers.map(|layer| (LAYER, layer)),
    )
}

/// The digest of a layer that is not compressed.
fn diff_id(layer: &[u8]) -> String {
    let mut tar = Vec::new();
    let mut gzip = flate2::read::GzDecoder::new(layer);
    gzip.read_to_end(&mut tar).expect("decompress");
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(&tar)))
}

/// A pod of one container.
pub(crate) fn pod(name: &str, container: Value, spec: Value) -> String {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1},
    });
    let into = pod["spec"].as_object_mut().expect("spec");
    into.extend(spec.as_object().cloned().unwrap_or_default());
    let mut own = json!({"name": "main"});
    let fields = own.as_object_mut().expect("container");
    fields.extend(container.as_object().cloned().unwrap_or_default());
    pod["spec"]["containers"] = json!([own]);
    pod.to_string()
}

pub(crate) fn phase(site: &Site, pod: &str, phase: &str) -> Value {
    site.wait_for(&["get", "pod", pod], "/status/phase", |p| p == phase)
}

#[test]
fn a_container_pod_runs_as_its_image_and_its_spec_say() {
    let Some((_registry, image, site)) = with_busybox(&[]) else {
        return;
    };
    site.ok(&[
        "run",
        "first",
        "--image",
        &image,
        "--restart=Never",
        "--",
        "sh",
        "-c",
        "echo $FROM $(pwd) $(hostname) $(cat from-upper) $(ls /gone 2>&1); id; exit 3",
    ]);
    let ended = phase(&site, "first", "Failed");
    let state = &ended["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (&state["exitCode"], &state["reason"]),
        (&json!(3), &json!("Error"))
    );
    let log = site.ok(&["logs", "first"]);
    assert_eq!(
        log,
        "image /tmp first upper ls: /gone: No such file or directory\nuid=0(root) gid=0(root)\n"
    );

    site.apply(
        r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "conf"}, "data": {"greeting": "hello"}}"#,
    );
    site.apply(&pod(
        "spec",
        json!({
            "image": image,
            "command": ["sh", "-c", "cat /conf/greeting; echo; echo $WHO; id -u; id -g; touch /x 2>/dev/null || echo read-only; echo done > /scratch/f && cat /scratch/f; echo last words > /dev/termination-log"],
            "env": [{"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "securityContext": {"runAsUser": 1000, "runAsGroup": 7, "readOnlyRootFilesystem": true},
            "volumeMounts": [
                {"name": "conf", "mountPath": "/conf"},
                {"name": "scratch", "mountPath": "/scratch"},
            ],
        }),
        json!({"volumes": [
            {"name": "conf", "configMap": {"name": "conf"}},
            {"name": "scratch", "emptyDir": {}},
        ]}),
    ));
    let ended = phase(&site, "spec", "Succeeded");
    let state = &ended["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (&state["reason"], &state["message"]),
        (&json!("Completed"), &json!("last words\n"))
    );
    let log = site.ok(&["logs", "spec"]);
    assert_eq!(log, "hello\nspec\n1000\n7\nread-only\ndone\n");

    // A program that is not there is the container's end, not a riddle.
    site.apply(&pod(
        "lost",
        json!({"image": image, "command": ["/no-such"]}),
        json!({}),
    ));
    let ended = phase(&site, "lost", "Failed");
    let state = &ended["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (&state["exitCode"], &state["reason"]),
        (&json!(128), &json!("StartError"))
    );
    assert!(
        state["message"]
            .as_str()
            .is_some_and(|m| m.contains("no-such")),
        "{state}"
    );
}

/// Waits until a container does not start for a reason that has these words.
pub(crate) fn waits(site: &Site, pod: &str, reason: &str, words: &str) {
    let at = "/status/containerStatuses/0/state/waiting/message";
    let has = |message: &Value| message.as_str().is_some_and(|m| m.contains(words));
    let pod = site.wait_for(&["get", "pod", pod], at, has);
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    assert_eq!(waiting["reason"], reason);
}

#[test]
fn containers_of_a_pod_start_in_order_and_end_by_their_limits() {
    let Some((_registry, image, site)) = with_busybox(&[]) else {
        return;
    };
    site.apply(
        r#"{"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "other"}, "handler": "runc"}"#,
    );
    let shared = json!([{"name": "shared", "mountPath": "/shared"}]);
    site.apply(&pod(
        "order",
        json!({"image": image, "volumeMounts": shared,
            "command": ["sh", "-c", "cat /shared/init; until echo | nc 127.0.0.1 9000 >/dev/null 2>&1; do sleep 0.1; done; echo met"]}),
        json!({
            "runtimeClassName": "other",
            "volumes": [{"name": "shared", "emptyDir": {}}],
            "initContainers": [
                {"name": "beside", "image": image, "restartPolicy": "Always",
                    "command": ["sh", "-c", "httpd -f -p 9000 -h /tmp"]},
                {"name": "first", "image": image, "volumeMounts": shared,
                    "command": ["sh", "-c", "echo prepared > /shared/init"]},
            ],
        }),
    ));
    phase(&site, "order", "Succeeded");
    assert_eq!(site.ok(&["logs", "order", "-c", "main"]), "prepared\nmet\n");

    site.apply(&pod(
        "hungry",
        json!({"image": image, "command": ["dd", "if=/dev/zero", "of=/dev/null", "bs=256M"],
            "resources": {"limits": {"memory": "32Mi"}}}),
        json!({}),
    ));
    let ended = phase(&site, "hungry", "Failed");
    let state = &ended["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (&state["exitCode"], &state["reason"]),
        (&json!(137), &json!("OOMKilled"))
    );

    site.apply(&pod(
        "again",
        json!({"image": image, "command": ["sh", "-c", "sleep 0.2; exit 7"]}),
        json!({"restartPolicy": "OnFailure"}),
    ));
    site.wait_for(
        &["get", "pod", "again"],
        "/status/containerStatuses/0/restartCount",
        |n| n.as_u64().is_some_and(|n| n >= 1),
    );
}

#[test]
fn without_root_a_container_pod_says_what_it_needs() {
    let registry = Registry::start();
    let image = busybox(&registry);
    let site = Site::start_unprivileged();
    site.ok(&["run", "box", "--image", &image]);
    waits(
        &site,
        "box",
        "CreateContainerError",
        "container pods need root",
    );
}

#[test]
fn a_container_pod_is_reached_and_taken_part_in() {
    let Some((_registry, image, mut site)) = with_busybox(&[]) else {
        return;
    };
    let web = |name: &str| {
        pod(
            name,
            json!({
                "image": image,
                "command": ["sh", "-c", "trap 'echo bye; exit 0' TERM; httpd -p 8080 -h /www; n=0; while true; do echo tick $n; n=$((n+1)); sleep 0.1; done"],
                "ports": [{"containerPort": 8080}],
                "readinessProbe": {"httpGet": {"port": 8080, "path": "/"}, "periodSeconds": 1},
                "livenessProbe": {"exec": {"command": ["cat", "/www/index.html"]}, "periodSeconds": 1},
                "resources": {"limits": {"memory": "32Mi", "cpu": "500m"}},
            }),
            json!({"restartPolicy": "Always"}),
        )
    };
    site.apply(&web("web"));
    site.apply(
        r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}"#,
    );
    site.ok(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"]);
    let ip = site.json(&["get", "pod", "web"])["status"]["podIP"].clone();
    let ip = ip.as_str().expect("an address").to_owned();
    let answer = get_ok(&format!("{ip}:8080"), "/");
    assert_eq!(answer.as_deref(), Ok("container\n"));
    let service = site.json(&["get", "service", "web"])["spec"]["clusterIP"].clone();
    let service = service.as_str().expect("an address").to_owned();
    eventually("the Service answers", || {
        let answer = crate::harness::get(&format!("{service}:80"), "/");
        let answer = answer.map_err(|e| e.to_string())?;
        answer.expect_code(200)
    });

    // Another pod asks by name, through DNS and the Service, and by address.
    site.apply(&pod(
        "client",
        json!({"image": image, "command": ["sh", "-c",
            &format!("cat /etc/resolv.conf; printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc web 80 | tail -1; printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc {ip} 8080 | tail -1")]}),
        json!({}),
    ));
    phase(&site, "client", "Succeeded");
    let log = site.ok(&["logs", "client"]);
    assert!(log.starts_with("search default.svc.cluster.local"), "{log}");
    assert!(log.ends_with("container\ncontainer\n"), "{log}");

    // Programs beside it.
    let said = site.ok(&[
        "exec",
        "web",
        "--",
        "sh",
        "-c",
        "hostname; cat /proc/1/comm",
    ]);
    assert_eq!(said, "web\nsh\n");
    let failed = site.kubectl(&["exec", "web", "--", "sh", "-c", "exit 5"]);
    assert_eq!(failed.status.code(), Some(5), "{}", text(&failed));
    let mut cat = site.kubectl_command(&["exec", "-i", "web", "--", "cat"]);
    let mut cat = cat
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("kubectl");
    cat.stdin
        .take()
        .expect("stdin")
        .write_all(b"through\n")
        .expect("write");
    let said = cat.wait_with_output().expect("kubectl");
    assert_eq!(String::from_utf8_lossy(&said.stdout), "through\n");

    // An agent that is killed leaves it as it is, and the next finds it.
    let before = site.json(&["get", "pod", "web"])["status"]["containerStatuses"][0].clone();
    let supervisor = now_supervisor(&site);
    site.signal("-KILL");
    let lines = ticks(&site);
    eventually("it goes on saying so", || {
        let now = ticks(&site);
        (now > lines)
            .then_some(())
            .ok_or_else(|| format!("{now} lines"))
    });
    site.up(&[]);
    site.ok(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"]);
    let after = site.json(&["get", "pod", "web"])["status"]["containerStatuses"][0].clone();
    assert_eq!(before["containerID"], after["containerID"]);
    assert_eq!(before["restartCount"], after["restartCount"]);
    assert_eq!(supervisor, now_supervisor(&site));
    let log = site.ok(&["logs", "web"]);
    let ticks: Vec<&str> = log.lines().filter(|l| l.starts_with("tick")).collect();
    for (n, tick) in ticks.iter().enumerate() {
        assert_eq!(*tick, format!("tick {n}"), "no line is lost");
    }

    // A supervisor that is killed takes its containers with it; all come again.
    site.kill("supervisor");
    site.wait_for(
        &["get", "pod", "web"],
        "/status/containerStatuses/0/restartCount",
        |n| n.as_u64().is_some_and(|n| n >= 1),
    );
    eventually("the Service answers again", || {
        let answer = crate::harness::get(&format!("{service}:80"), "/");
        answer.map_err(|e| e.to_string())?.expect_code(200)
    });
    let supervisor = now_supervisor(&site);

    // Its end leaves nothing.
    let uid = site.json(&["get", "pod", "web"])["metadata"]["uid"].clone();
    let uid = uid.as_str().expect("uid").to_owned();
    assert!(leftovers(&site, &uid, &supervisor) > 0);
    site.ok(&["delete", "pod", "web", "client", "--timeout=60s"]);
    assert_eq!(leftovers(&site, &uid, &supervisor), 0);
}

pub(crate) fn now_supervisor(site: &Site) -> String {
    pid_of(&site.dir, "supervisor")
}

/// Lines of the pod's log on disk.
fn ticks(site: &Site) -> usize {
    let pods = site.dir.join("node/logs/pods");
    let dirs = std::fs::read_dir(pods).expect("logs").flatten();
    let logs = dirs.map(|dir| dir.path().join("main/0.log"));
    let web = logs.filter(|log| log.display().to_string().contains("default_web_"));
    web.filter_map(|log| std::fs::read_to_string(log).ok())
        .map(|text| text.lines().count())
        .sum()
}

/// Mounts, directories and control groups that there are of a pod.
pub(crate) fn leftovers(site: &Site, uid: &str, supervisor: &str) -> usize {
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", supervisor.trim()));
    let mounts = mounts.expect("mounts");
    let mounts = mounts.lines().filter(|line| line.contains(uid)).count();
    let dirs = ["sandboxes", "containers"]
        .iter()
        .filter(|name| site.dir.join("containers").join(name).join(uid).exists())
        .count();
    let groups = groups(uid).len();
    mounts + dirs + groups
}

/// A pod's control groups, in each of the trees that the machine has.
pub(crate) fn groups(uid: &str) -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    let trees = std::fs::read_dir(&root).expect("control groups");
    let trees = trees.flatten().map(|tree| tree.path());
    let below = ["", "burstable/", "besteffort/"];
    std::iter::once(root)
        .chain(trees)
        .flat_map(|tree| below.map(|class| tree.join(format!("kubepods/{class}pod{uid}"))))
        .filter(|group| group.exists())
        .collect()
}

#[test]
fn a_deployment_of_containers_sleeps_and_wakes_on_a_request() {
    let Some((_registry, image, mut site)) = with_busybox(&[]) else {
        return;
    };
    // It listens a while after it was started, as programs do.
    let serve = "sleep 0.5; exec httpd -f -p 8080 -h /www";
    site.apply(
        &json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "annotations": {"salp.dev/scale-to-zero": "2s"}},
            "spec": {
                "replicas": 1, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "main", "image": image, "command": ["sh", "-c", serve]}],
                }},
            },
        })
        .to_string(),
    );
    site.ok(&[
        "expose",
        "deployment",
        "web",
        "--port=80",
        "--target-port=8080",
    ]);
    let service = site.json(&["get", "service", "web"]);
    let address = format!("{}:80", service["spec"]["clusterIP"].as_str().expect("IP"));
    let asleep = |site: &Site| {
        site.wait_for(
            &["get", "deployment", "web"],
            "/metadata/annotations",
            |a| a["salp.dev/asleep-on"].is_string(),
        );
        let pods = ["get", "pods", "-l", "app=web"];
        site.wait_for(&pods, "/items", |l| l.as_array().is_some_and(Vec::is_empty));
    };
    let answered = || assert_eq!(get_ok(&address, "/"), Ok("container\n".to_owned()));
    eventually("the container answers", || get_ok(&address, "/"));
    let awake = |site: &Site| {
        let busy = Busy::asking(&address);
        let ready = "/status/readyReplicas";
        site.wait_for(&["get", "deployment", "web"], ready, |n| *n == 1);
        busy
    };
    asleep(&site);
    answered();
    let busy = awake(&site);
    let pods = site.json(&["get", "pods", "-l", "app=web"]);
    let pods = pods["items"].as_array().cloned().unwrap_or_default();
    assert_eq!(pods.len(), 1, "{pods:?}");
    assert_eq!(pods[0]["status"]["containerStatuses"][0]["restartCount"], 0);
    drop(busy);

    // Without the control plane: the data plane asks the supervisor.
    asleep(&site);
    site.signal("-KILL");
    answered();
    site.up(&[]);
    drop(awake(&site));

    // Killed, the next data plane knows who stands by.
    asleep(&site);
    site.expects("the data plane ended; starting it again");
    site.expects("the data plane does not answer at");
    site.kill("dataplane");
    eventually("the container answers", || get_ok(&address, "/"));
    drop(awake(&site));

    // With the supervisor all that stands by is gone, and made anew.
    asleep(&site);
    site.expects("a pod on standby can't be woken");
    site.kill("supervisor");
    eventually("the container answers", || get_ok(&address, "/"));
}

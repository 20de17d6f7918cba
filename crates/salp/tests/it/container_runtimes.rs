//! Container pods by other OCI runtimes than the built-in one, and with the machine's own namespaces.

use crate::containers::{busybox, leftovers, now_supervisor, phase, pod, possible, with_busybox};
use crate::harness::{Registry, Site, eventually, get_ok, text, tool};
use serde_json::{Value, json};

/// crun takes no machine that has both versions of control groups: it is shown the first alone.
const FIRST_VERSION_ALONE: &str = "exec unshare --mount sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$0\" \"$@\"' \"$@\"";

#[test]
fn a_runtime_class_names_the_runtime_of_its_pods() {
    if !possible() {
        return;
    }
    let registry = Registry::start();
    let image = busybox(&registry);
    let dir = tempfile::tempdir().expect("directory");
    let config = dir.path().join("config.yaml");
    let stated = json!({"oci-runtimes": {"gvisor": {
        "path": tool("runsc"), "args": ["--platform=ptrace", "--network=host"],
    }}});
    std::fs::write(&config, stated.to_string()).expect("configuration");
    let args = ["--config", config.to_str().expect("UTF-8")];
    let site = Site::start_by(FIRST_VERSION_ALONE, &args);
    site.apply(
        r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "www"}, "data": {"index.html": "served\n"}}"#,
    );
    for handler in ["runc", "crun", "gvisor"] {
        assert!(tool(handler.strip_prefix("gvisor").map_or(handler, |_| "runsc")).exists());
        site.apply(
            &json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
                "metadata": {"name": handler}, "handler": handler})
            .to_string(),
        );
        let serve = "echo $FROM $(id -u) $(cat /proc/version); httpd -p 8080 -h /vol; \
                     trap 'echo asked to end; exit 0' TERM; while true; do sleep 0.1; done";
        site.apply(&pod(
            handler,
            json!({
                "image": image, "command": ["sh", "-c", serve],
                "securityContext": {"runAsUser": 1000},
                "readinessProbe": {"httpGet": {"port": 8080, "path": "/"}, "periodSeconds": 1},
                "volumeMounts": [{"name": "www", "mountPath": "/vol"}],
            }),
            json!({"runtimeClassName": handler, "volumes": [{"name": "www", "configMap": {"name": "www"}}],
                "terminationGracePeriodSeconds": 30}),
        ));
        let of = format!("pod/{handler}");
        site.ok(&["wait", "--for=condition=Ready", &of, "--timeout=60s"]);
        let now = site.json(&["get", "pod", handler]);
        let ip = now["status"]["podIP"].as_str().expect("an address");
        assert_eq!(
            get_ok(&format!("{ip}:8080"), "/").as_deref(),
            Ok("served\n"),
            "{handler}"
        );
        let log = site.ok(&["logs", handler]);
        assert!(log.starts_with("image 1000 Linux version "), "{log}");
        // A kernel of its own.
        let kernel = std::fs::read_to_string("/proc/version").expect("kernel");
        assert_eq!(log.contains(kernel.trim()), handler != "gvisor", "{log}");
        let uid = now["metadata"]["uid"].as_str().expect("uid");
        let state = site.dir.join("containers/state").join(handler);
        let known = std::fs::read_dir(state).expect("state").flatten();
        let mut known = known.map(|entry| entry.file_name().into_string().expect("UTF-8"));
        assert!(known.any(|name| name.contains(uid)), "{handler} has it");
        let said = site.ok(&["exec", handler, "--", "sh", "-c", "id -u; echo $FROM"]);
        assert_eq!(said, "1000\nimage\n", "{handler}");
        let failed = site.kubectl(&["exec", handler, "--", "sh", "-c", "exit 5"]);
        assert_eq!(failed.status.code(), Some(5), "{}", text(&failed));

        let supervisor = now_supervisor(&site);
        let logs = site.kubectl_command(&["logs", "-f", handler]);
        let mut logs = crate::harness::Following::start(logs);
        site.ok(&["delete", "pod", handler, "--timeout=60s"]);
        logs.wait_for(|line| line == "asked to end");
        logs.ended();
        eventually("nothing is left", || {
            match leftovers(&site, uid, &supervisor) {
                0 => Ok(()),
                left => Err(format!("{left} things of {handler}")),
            }
        });

        site.apply(&pod(
            "ends",
            json!({"image": image, "command": ["sh", "-c", "exit 3"]}),
            json!({"runtimeClassName": handler}),
        ));
        let ended = phase(&site, "ends", "Failed");
        let state = &ended["status"]["containerStatuses"][0]["state"]["terminated"];
        assert_eq!(
            (&state["exitCode"], &state["reason"]),
            (&json!(3), &json!("Error")),
            "{handler}"
        );
        site.ok(&["delete", "pod", "ends", "--timeout=60s"]);
    }
}

/// A namespace of this process, as the kernel names it.
fn own(namespace: &str) -> String {
    let link = std::fs::read_link(format!("/proc/self/ns/{namespace}")).expect("a namespace");
    link.display().to_string()
}

#[test]
fn a_pod_may_have_the_machines_namespaces_and_rights() {
    let Some((_registry, image, site)) = with_busybox(&[]) else {
        return;
    };
    let kinds = ["net", "pid", "ipc", "uts", "mnt"];
    let tell = "for n in net pid ipc uts mnt; do readlink /proc/self/ns/$n; done; \
                grep CapBnd /proc/self/status; mount -t tmpfs none /tmp 2>/dev/null && echo mounted; true";
    // Which of them are the machine's.
    for (name, fields, shared) in [
        ("plain", json!({}), &[][..]),
        ("net", json!({"hostNetwork": true}), &["net", "uts"]),
        ("pid", json!({"hostPID": true}), &["pid"]),
        ("ipc", json!({"hostIPC": true}), &["ipc"]),
    ] {
        let privileged = name == "plain";
        for (name, privileged) in [(name.to_owned(), false), (format!("{name}-all"), true)]
            .into_iter()
            .take(1 + usize::from(privileged))
        {
            site.apply(&pod(
                &name,
                json!({"image": image, "command": ["sh", "-c", tell],
                    "securityContext": {"privileged": privileged}}),
                fields.clone(),
            ));
            let ended = phase(&site, &name, "Succeeded");
            let log = site.ok(&["logs", &name]);
            let lines: Vec<&str> = log.lines().collect();
            for (kind, line) in kinds.iter().zip(&lines) {
                assert_eq!(
                    *line == own(kind),
                    shared.contains(kind),
                    "{name} {kind}: {log}"
                );
            }
            let status = std::fs::read_to_string("/proc/self/status").expect("status");
            let all = status.lines().find(|line| line.starts_with("CapBnd:"));
            assert_eq!(Some(lines[5]) == all, privileged, "{name}: {log}");
            assert_eq!(
                lines.get(6) == Some(&"mounted"),
                privileged,
                "{name}: {log}"
            );
            let (pod_ip, host_ip) = (&ended["status"]["podIP"], &ended["status"]["hostIP"]);
            assert_eq!(pod_ip == host_ip, name == "net", "{pod_ip} {host_ip}");
        }
    }
}

#[test]
fn a_container_that_waits_for_input_gets_it() {
    let Some((_registry, image, site)) = with_busybox(&[]) else {
        return;
    };
    let container = json!({"image": image, "command": ["sh", "-c", "echo begun; cat; echo over"],
        "stdin": true, "stdinOnce": true});
    site.apply(&pod("cat", container, json!({})));
    site.ok(&["wait", "--for=condition=Ready", "pod/cat", "--timeout=60s"]);
    let mut attached = site
        .kubectl_command(&["attach", "-i", "cat"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("kubectl");
    std::io::Write::write_all(&mut attached.stdin.take().expect("stdin"), b"typed\n")
        .expect("write");
    let said = attached.wait_with_output().expect("kubectl");
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.ends_with("typed\nover\n"), "{said}");
    let ended: Value = phase(&site, "cat", "Succeeded");
    assert_eq!(ended["status"]["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(site.ok(&["logs", "cat"]), "begun\ntyped\nover\n");
}
